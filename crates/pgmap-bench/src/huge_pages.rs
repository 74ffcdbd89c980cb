//! Huge pages that the system keeps for as long as a row needs them.

use std::fs;
use std::path::PathBuf;

use pgmap::os::PageSize;

use crate::failure::Failure;

/// Huge pages, given back on drop: those in use then go when their files do.
pub struct Reserved {
    /// Where the system has their number, and what that was.
    changed: Option<(PathBuf, u64)>,
}

impl Reserved {
    /// Has `bytes` in huge pages be free. Where they are not the system is asked for them, which
    /// root may do.
    ///
    /// # Errors
    /// How many are free of how many.
    pub fn new(page: PageSize, bytes: u64) -> Result<Self, Failure> {
        let page_bytes = page.len_bytes();
        let folder = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", page_bytes >> 10);
        let folder = PathBuf::from(folder);
        let number = |name: &str| -> Result<u64, Failure> {
            let text = fs::read_to_string(folder.join(name))
                .map_err(|error| Failure::new(format!("{}: {error}", folder.display())))?;
            Ok(text.trim().parse()?)
        };
        let wanted = bytes.div_ceil(page_bytes);
        let missing = |free: u64| {
            let mib = page_bytes >> 20;
            Failure::new(format!("{free} of {wanted} huge pages of {mib} MiB are free"))
        };
        let free = number("free_hugepages")?.saturating_sub(number("resv_hugepages")?);
        if free >= wanted {
            return Ok(Self { changed: None });
        }
        let (path, before) = (folder.join("nr_hugepages"), number("nr_hugepages")?);
        fs::write(&path, (before + wanted - free).to_string()).map_err(|_| missing(free))?;
        let reserved = Self { changed: Some((path, before)) };
        match number("free_hugepages")? {
            free if free < wanted => Err(missing(free)),
            _ => Ok(reserved),
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some((path, before)) = &self.changed
            && let Err(error) = fs::write(path, before.to_string())
        {
            eprintln!("pgmap-bench: {}: {error}; it was {before}", path.display());
        }
    }
}
