//! `pgmap demo`: what leases that time out cost, and what pins do instead.

use std::path::PathBuf;
use std::time::Duration;

use crate::demo::dma::Wanted;
use crate::demo::{Plan, play};
use crate::failure::Failure;
use crate::output::Output;
use crate::own_command::OwnCommand;

/// Show leases that time out against pins, with real processes and real I/O
///
/// Needs nothing but itself: no daemon, no root, no huge pages. Starts an owner and processes over
/// one pool: readers, one of them slow, and a writer that recycles blocks by DMA (io_uring with
/// registered buffers and O_DIRECT from a scratch file; where that is refused, a thread with
/// preadv, and the table says so). The same work runs twice: guarded by leases that time out, the
/// way it is usually done, and by pgmap pins. Then readers and writers are killed with SIGKILL in
/// mid-flight, and a block that a slow process holds is asked back.
///
/// Every figure is counted. A read is stale when stamps and sums written into the block itself say
/// that it returned something else than what was asked for. The exit code is 0 only if pgmap served
/// no stale read, lost nothing, and the drain named the right process.
#[derive(Debug, clap::Args)]
pub struct Demo {
    /// Show it on this memory: a device, a file, or a directory of huge pages [default: a memfd]
    ///
    /// As with `pgmap create --on`: a device-dax device, of which the beginning is overwritten and
    /// then erased, a file that is made and removed again, on a file system with DAX or without, or
    /// a directory of hugetlbfs. A pool that is there is refused. Where the kernel does not let a
    /// device have the memory long-term, a thread stands in for io_uring.
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::AnyPath)]
    on: Option<PathBuf>,
    /// About how long it takes
    #[arg(long, value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(2..=25))]
    seconds: u64,
    /// What moves the bytes
    #[arg(long, default_value = "auto")]
    dma: Wanted,
    /// Directory for the scratch file [default: where there is a disk]
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    scratch: Option<PathBuf>,
}

impl Demo {
    /// Plays it and shows the figures.
    ///
    /// # Errors
    /// When it cannot be played, or pgmap did not do what it promises.
    pub fn run(self, output: &Output, command: &OwnCommand) -> Result<(), Failure> {
        let plan = Plan {
            length: Duration::from_secs(self.seconds),
            on: self.on,
            scratch: self.scratch,
            dma: self.dma,
            command: command.clone(),
        };
        let report = play(&plan, |text| output.note(text))?;
        output.show(&report)?;
        match report.complaints() {
            complaints if complaints.is_empty() => Ok(()),
            complaints => {
                eprintln!("pgmap: demo: {}", complaints.join("; "));
                Err(Failure::silent(crate::failure::Exit::Error))
            }
        }
    }
}
