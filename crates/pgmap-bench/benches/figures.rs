//! The same program for `cargo bench`; `cargo test` runs its small mode.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    // Cargo says `--bench` when it is to be measured, and nothing when it is to be tested.
    let is_measured = args.iter().any(|arg| arg == "--bench");
    args.retain(|arg| arg != "--bench");
    if !is_measured && args.is_empty() {
        args.push("--small".into());
    }
    pgmap_bench::run(args)
}
