//! `pgmap poison`: says that memory failed.

use std::ffi::OsString;

use pgmap::mm::level::PAGE_BYTES;
use pgmap::{Client, FilePin};
use serde::Serialize;

use crate::attach::{Place, attach, name_bytes};
use crate::failure::Failure;
use crate::names::{self, Exact};
use crate::output::Output;
use crate::sizes;

/// Say that memory failed: one page is out of use, the rest lives on
///
/// For platforms that report failing memory elsewhere, and to try what a program does then. Who
/// holds the page is notified, pins taken later fail, and the page stays out of use, over restarts
/// too, until `pgmap repair`.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "pgmap poison [OPTIONS] NAME OFFSET\n       pgmap poison [OPTIONS] --pfn N"
)]
pub struct Poison {
    /// Name in the pool
    #[arg(required_unless_present = "pfn", requires = "offset", conflicts_with = "pfn")]
    name: Option<OsString>,
    /// A byte of the page that failed
    #[arg(value_parser = sizes::parse)]
    offset: Option<u64>,
    /// Number of the frame that failed, as `pgmap who` shows them
    #[arg(long, value_name = "N", value_parser = sizes::parse)]
    pfn: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Done {
    schema: &'static str,
    #[serde(flatten)]
    name: Exact,
    offset: Option<u64>,
    pfn: u64,
}

impl Poison {
    /// Says it.
    ///
    /// # Errors
    /// When there is no such frame, or it has failed already.
    pub fn run(self, place: &Place, output: &Output) -> Result<(), Failure> {
        let client = attach(place)?;
        let mut done =
            Done { schema: "pgmap.poison/1", name: Exact::name(None), offset: None, pfn: 0 };
        match (&self.name, self.offset, self.pfn) {
            (_, _, Some(pfn)) => {
                client.memory_failure(pfn)?;
                done.pfn = pfn;
            }
            (Some(name), Some(offset), None) => {
                // Pinned meanwhile: the frame cannot become another file's.
                let (_pin, pfn) = frame_at(&client, name, offset)?;
                client.memory_failure(pfn)?;
                done.name = Exact::name(Some(name_bytes(name)));
                done.offset = Some(offset - offset % PAGE_BYTES);
                done.pfn = pfn;
            }
            _ => return Err(Failure::usage("name a file and an offset, or --pfn")),
        }
        output.show_done(&done)
    }
}

/// The frame that has the byte at `offset` of a file, and the pin that keeps it there.
fn frame_at<'c>(
    client: &'c Client,
    name: &OsString,
    offset: u64,
) -> Result<(FilePin<'c>, u64), Failure> {
    let pin = client.open(name_bytes(name))?.pin(offset..offset + 1)?;
    let Some(pool_offset) = pin.segments().next().map(|segment| segment.pool_offset) else {
        let why = format!("\"{}\" has no memory at {offset}: it is a hole", names::shown(name));
        return Err(Failure::new("hole", libc::ENXIO, why).of_file(name_bytes(name)));
    };
    Ok((pin, pool_offset / PAGE_BYTES))
}
