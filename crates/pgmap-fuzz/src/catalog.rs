//! A catalog: any headers and any log, opened by the code that opens a pool's.

use std::path::{Path, PathBuf};
use std::{fs, thread};

use pgmap::pool::catalog::{Catalog, Change, StoredFile};
use pgmap::report::FileMetadata;
use pgmap::{Error, FileName, FileRules, UserMetadata};

use crate::catalog_file::CatalogFile;
use crate::input::Input;

thread_local! {
    static PLACE: tempfile::TempDir = place();
}

/// A directory in memory that goes away with its thread.
pub fn place() -> tempfile::TempDir {
    let thread = format!("pgmap-fuzz-{:?}-", thread::current().id());
    tempfile::Builder::new().prefix(&thread).tempdir_in("/dev/shm").unwrap()
}

/// Writes `bytes` to a file and makes it `len` bytes long.
pub fn write(path: &Path, bytes: &[u8], len: u64) {
    fs::write(path, bytes).unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_len(len).unwrap();
}

/// Opens the catalog that an input is.
fn open(bytes: &[u8], path: &Path) -> (CatalogFile, Result<Catalog, Error>) {
    let mut input = Input::new(bytes);
    let file = CatalogFile::take_headers(&mut input).with_log(input.rest());
    let (bytes, len) = file.bytes();
    write(path, &bytes, len);
    (file, Catalog::open(path))
}

fn path() -> PathBuf {
    PLACE.with(|place| place.path().join("catalog"))
}

/// How many files there are in the catalog that an input is; nothing if it is none.
pub fn nr_files_of(bytes: &[u8]) -> Option<usize> {
    open(bytes, &path()).1.ok().map(|catalog| catalog.files().unwrap().len())
}

/// What is opened can be written and opened again; everything else is an error of the catalog.
pub fn catalog(bytes: &[u8]) {
    let path = path();
    let (file, opened) = open(bytes, &path);
    let catalog = match opened {
        Ok(catalog) => catalog,
        Err(error) => {
            check_error(&error, &path);
            return;
        }
    };
    let pool = catalog.pool();
    assert!(pool.size_bytes <= pool.capacity_bytes && pool.max_files > 0, "{pool:?}");
    let mut expected = catalog.files().unwrap();
    expected.values().for_each(|file| drop(file.extents()));
    if !file.is_of_this_boot() {
        return;
    }
    assert!(catalog.unsynced().is_empty());
    let name = FileName::new("a new file").unwrap();
    let added = StoredFile {
        id: 77,
        len_bytes: 4096,
        largest_level: 0,
        rules: FileRules::default(),
        extents: vec![[1, 1, 77]; 30],
        metadata: FileMetadata { user: UserMetadata::new([7; 256]).unwrap(), checksum: Some(7) },
        uid: 7,
    };
    let mut is_added = false;
    for _ in 0..3 {
        let done = catalog.record(&[Change::Put(&name, added.clone()), Change::OpenTail(77)]);
        match done {
            Ok(()) => is_added = true,
            Err(error) => check_error(&error, &path),
        }
    }
    if is_added {
        expected.insert(name, added);
    }
    let removed = expected.keys().next().cloned();
    if let Some(name) = removed
        && catalog.record(&[Change::Delete(&name), Change::Poisoned(5)]).is_ok()
    {
        expected.remove(&name);
    }
    let id = catalog.id();
    drop(catalog);
    let again = Catalog::open(&path).unwrap_or_else(|error| panic!("it was opened once: {error}"));
    assert_eq!((again.id(), again.pool()), (id, pool));
    assert_eq!(again.files().unwrap(), expected);
}

fn check_error(error: &Error, path: &Path) {
    assert!(matches!(error, Error::Catalog { .. } | Error::Os(_)), "{error}");
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
}
