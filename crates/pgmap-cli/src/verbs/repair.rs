//! `pgmap repair`: brings failed memory back into use.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use pgmap::Client;
use pgmap::mm::level::PAGE_BYTES;
use serde::Serialize;

use crate::attach::{Place, attach, name_bytes};
use crate::failure::Failure;
use crate::names::{self, Exact};
use crate::output::Output;
use crate::sizes;

/// Bring failed memory back: of a file's page, or all that no file has
///
/// The system is asked for other memory in the place of what failed. A page of a file needs its
/// bytes again, from a copy of the file or as zeros; `pgmap stat NAME` lists the pages that failed.
/// Whoever holds the page must let go first: the exit code is 3.
#[derive(Debug, clap::Args)]
pub struct Repair {
    /// Name in the pool; all that no file has when absent
    #[arg(requires_all = ["offset", "bytes"])]
    name: Option<OsString>,
    /// First byte of the page, a multiple of 4096
    #[arg(value_parser = sizes::parse)]
    offset: Option<u64>,
    #[command(flatten)]
    bytes: Bytes,
}

// No doc comment: clap would make it the help of the verb.
#[derive(Debug, clap::Args)]
#[group(id = "bytes", multiple = false)]
struct Bytes {
    /// A copy of the whole file, to take the page's bytes from
    #[arg(long, value_name = "FILE", requires = "name", value_hint = clap::ValueHint::FilePath)]
    from: Option<PathBuf>,
    /// Make the page zeros: what it held is given up
    #[arg(long = "zero", requires = "name")]
    is_zeroed: bool,
}

#[derive(Debug, Serialize)]
struct Done {
    schema: &'static str,
    #[serde(flatten)]
    name: Exact,
    offset: Option<u64>,
    poisoned_bytes: u64,
}

impl Repair {
    /// Brings it back.
    ///
    /// # Errors
    /// When the page has not failed or is held, or the copy is none.
    pub fn run(self, place: &Place, output: &Output) -> Result<(), Failure> {
        let client = attach(place)?;
        match (&self.name, self.offset) {
            (Some(name), Some(offset)) => {
                let page = self.bytes.page(&client, name, offset)?;
                client.clear_poison(name_bytes(name), offset, &page)?;
            }
            _ => client.repair_free()?,
        }
        let poisoned_bytes = client.pool_stat()?.poisoned_bytes;
        if poisoned_bytes > 0 {
            let size = sizes::human(poisoned_bytes);
            output.note(&format!("{size} are still out of use; `pgmap ls` shows whose"));
        }
        output.show_done(&Done {
            schema: "pgmap.repair/1",
            name: Exact::name(self.name.as_deref().map(name_bytes)),
            offset: self.offset,
            poisoned_bytes,
        })
    }
}

impl Bytes {
    /// The page's new contents; zeros behind the end of the file.
    fn page(&self, client: &Client, name: &OsStr, offset: u64) -> Result<Vec<u8>, Failure> {
        let mut page = vec![0; PAGE_BYTES as usize];
        let Some(path) = &self.from else { return Ok(page) };
        let failed = |what| move |error| Failure::io(what, path.display(), &error);
        let copy = File::open(path).map_err(failed("open"))?;
        let copy_bytes = copy.metadata().map_err(failed("inspect"))?.len();
        let len_bytes = client.stat(name_bytes(name))?.len_bytes;
        if copy_bytes != len_bytes {
            let why = format!(
                "{} has {copy_bytes} bytes and \"{}\" {len_bytes}: it is no copy of it",
                path.display(),
                names::shown(name)
            );
            return Err(Failure::new("not_a_copy", libc::EINVAL, why).of_file(name_bytes(name)));
        }
        let wanted = len_bytes.saturating_sub(offset).min(PAGE_BYTES) as usize;
        copy.read_exact_at(&mut page[..wanted], offset).map_err(failed("read"))?;
        Ok(page)
    }
}
