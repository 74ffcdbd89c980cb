//! The program `pgmap-bench`: `cargo run --release -p pgmap-bench`.

use std::process::ExitCode;

fn main() -> ExitCode {
    pgmap_bench::run(std::env::args().skip(1).collect())
}
