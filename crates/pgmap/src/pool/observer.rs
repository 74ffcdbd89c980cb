//! Reading a pool without its owner, which may be on another machine that has the same memory.
//!
//! An observer holds nothing and is known to nobody. It reads what the catalog says of a file,
//! copies the bytes, and reads the catalog again: a file that is on record as before was there all
//! the time, because a file is off the record before its frames can be given to another. What the
//! second look finds changed is copied again.
//!
//! # Orderings
//! The copy comes before the second look (an Acquire fence between them). It pairs with what the
//! owner does in between two uses of a frame: it writes and syncs the catalog, then clears the
//! frame. Between machines this holds only as far as their memory is coherent: see
//! docs/shared-devices.md.
//!
//! # Lost races
//! *A file that goes while it is copied.* The second look does not find it as it was, the copy is
//! thrown away. *A catalog that is written again while it is read.* A checksum is wrong, and it is
//! read again.
//!
//! # Differs from Linux
//! A file system cannot be mounted on two machines at once, for reading neither.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use pgmap_mm::extent::Extent;
use pgmap_mm::level::PAGE_BYTES;
use pgmap_os::{FileAccess, MemoryFile, thread};

use crate::error::Error;
use crate::name::FileName;
use crate::pool::bad;
use crate::pool::catalog::header::is_catalog;
use crate::pool::catalog::{Catalog, StoredFile};
use crate::pool::on::place_of;
use crate::refusal::Refusal;

/// How often a catalog or a file is read that changes meanwhile, and the pause in between.
const MAX_ATTEMPTS: u32 = 64;
const PAUSE: Duration = Duration::from_millis(5);

/// A pool that is read without its owner.
///
/// Finds the files that are committed, whoever serves the pool, on this machine or another. What
/// is read is what was committed; by the time it is read it may have been removed. Of a pool whose
/// machine stopped, files that were not to outlive a power failure may be incomplete.
#[derive(Debug)]
pub struct Observer {
    data: Arc<MemoryFile>,
}

impl Observer {
    /// Looks at the pool whose data is `path`: a device, a file, or a directory of huge pages. It
    /// is opened for reading only.
    ///
    /// # Errors
    /// [`Error::BadPool`] when there is none; [`Error::Os`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let data = Arc::new(MemoryFile::open_named(&place_of(path)?, FileAccess::ReadOnly)?);
        if !is_catalog(&data)? {
            return Err(bad(path, "there is no pool whose catalog lies in its data"));
        }
        Ok(Self { data })
    }

    /// The committed files and their lengths.
    ///
    /// # Errors
    /// [`Error::Catalog`] when the catalog is damaged, or changes all the time.
    pub fn list(&self) -> Result<Vec<(FileName, u64)>, Error> {
        let files = self.files()?.into_iter();
        Ok(files.map(|(name, file)| (name, file.len_bytes)).collect())
    }

    /// All bytes of a file.
    ///
    /// # Errors
    /// [`Refusal::NotFound`]; [`Refusal::InUse`] when it is changed again and again;
    /// [`Refusal::NoBacking`] for a file on a further backing; [`Error::Catalog`], [`Error::Os`].
    pub fn read(&self, name: impl AsRef<[u8]>) -> Result<Vec<u8>, Error> {
        let name = FileName::new(name)?;
        let absent = || Refusal::NotFound { name: name.to_string() };
        let mut file = self.files()?.remove(&name).ok_or_else(absent)?;
        for _ in 0..MAX_ATTEMPTS {
            let copied = self.copy(&name, &file);
            // Acquire: see the head of this file.
            fence(Ordering::Acquire);
            let now = self.files()?.remove(&name).ok_or_else(absent)?;
            if now == file {
                return copied;
            }
            file = now;
        }
        let doing = "changed again and again".into();
        Err(Refusal::InUse { name: name.to_string(), doing }.into())
    }

    fn copy(&self, name: &FileName, file: &StoredFile) -> Result<Vec<u8>, Error> {
        let odd = |why: String| Error::Catalog { path: self.data.name().into(), why };
        let len = usize::try_from(file.len_bytes).map_err(|error| odd(error.to_string()))?;
        let extents = file.extents().ok_or_else(|| odd(format!("file \"{name}\" is damaged")))?;
        let mut bytes = vec![0; len];
        let mut rest = bytes.as_mut_slice();
        for extent in &extents {
            let here = rest.len().min(extent.run.len_bytes() as usize);
            let (part, behind) = std::mem::take(&mut rest).split_at_mut(here);
            rest = behind;
            self.copy_extent(name, extent, part)?;
        }
        if !rest.is_empty() {
            return Err(odd(format!("file \"{name}\" has too few frames")));
        }
        Ok(bytes)
    }

    fn copy_extent(&self, name: &FileName, extent: &Extent, part: &mut [u8]) -> Result<(), Error> {
        if extent.is_hole() {
            return Ok(());
        }
        let start = extent.run.start() * PAGE_BYTES;
        if start + part.len() as u64 > self.data.len_bytes() {
            let why = format!("frames of \"{name}\" lie behind {}", self.data.name());
            return Err(Refusal::NoBacking { backing: String::new(), why }.into());
        }
        self.data.read_exact_at(part, start).map_err(|error| {
            pgmap_os::OsError::new("read", format!("\"{name}\" in {}", self.data.name()), error)
                .into()
        })
    }

    /// What the catalog says now.
    fn files(&self) -> Result<BTreeMap<FileName, StoredFile>, Error> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match Catalog::observe(&self.data) {
                Ok((_, files)) => return Ok(files),
                Err(error) if attempt == MAX_ATTEMPTS => return Err(error),
                Err(_) => thread::sleep(PAUSE),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::{Client, FolioSize, Owner, Pool, PoolOptions, Replace};

    fn put(client: &Client, name: &str, byte: u8, len: usize) {
        let mut writer = client.create("new", len as u64, FolioSize::BestFit).unwrap();
        writer.write_all_at(0, &vec![byte; len]).unwrap();
        writer.commit().unwrap();
        client.rename("new", name, Replace::Yes).unwrap();
    }

    /// Each read is one of the contents that the file had, whole, although its frames are given to
    /// other files all the time.
    #[test]
    fn what_is_read_beside_an_owner_at_work_is_a_file_that_was_committed() {
        let place = tempfile::tempdir_in("/dev/shm").unwrap();
        let (file, directory) = (place.path().join("data"), place.path().join("pool"));
        let pool = Pool::create(&PoolOptions::on(&file, &directory).size(16 << 20)).unwrap();
        let owner = Owner::start(pool).unwrap();
        let client = owner.client().unwrap();
        put(&client, "a", 0, 1 << 20);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut turn = 0_u32;
                while !is_over.load(Ordering::Relaxed) {
                    turn += 1;
                    put(&client, "a", turn as u8, (1 << 20) + turn as usize % 4096);
                    put(&client, "b", !(turn as u8), 3 << 20);
                }
                turn
            });
            let observer = Observer::open(&file).unwrap();
            let (mut seen, mut nr_read) = (std::collections::BTreeSet::new(), 0);
            let until = std::time::Instant::now() + Duration::from_secs(2);
            while std::time::Instant::now() < until || seen.len() < 3 {
                match observer.read("a") {
                    Ok(bytes) => {
                        let turn = bytes[0];
                        assert!(bytes.iter().all(|&byte| byte == turn), "a mixture");
                        assert!(bytes.len() >= 1 << 20);
                        seen.insert(turn);
                        nr_read += 1;
                    }
                    Err(Error::Refused(Refusal::InUse { .. })) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            is_over.store(true, Ordering::Relaxed);
            assert!(nr_read > 3 && writer.join().unwrap() > 3);
        });
        let observer = Observer::open(&file).unwrap();
        assert!(observer.list().unwrap().iter().any(|(name, _)| name.as_bytes() == b"b"));
        assert!(matches!(observer.read("c"), Err(Error::Refused(Refusal::NotFound { .. }))));
        let none = Observer::open(directory.join("vmemmap")).unwrap_err().to_string();
        assert!(none.contains("no pool"), "{none}");
    }
}
