//! What a pool says of itself: sizes, options and number in the catalog, and the seal of its data.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use pgmap::owner::clients::ClientIdentity;
use pgmap::owner::core::{Core, Outcome};
use pgmap::wire::{Reply, Request};
use pgmap::{Error, Pool};

use crate::catalog::{place, write};
use crate::catalog_file::{CAPACITY_BYTES, CatalogFile};
use crate::input::Input;

/// Bytes of a seal's fields, before their checksum.
const SEAL_BYTES: usize = 48;
const PAGE_BYTES: u64 = 4096;
/// Larger pools are only opened: their books take memory.
const MOST_BYTES: u64 = 64 << 20;
const MOST_FILES: u64 = 4096;

// What is made right, whatever the input says. A bit that is 0 mends.
const KEEPS_SUM: u8 = 1;
const KEEPS_FIELDS: u8 = 2;
const IS_ON_DEVICE: u8 = 4;

thread_local! {
    static PLACE: tempfile::TempDir = place();
}

/// A pool is opened with sizes that fit each other, or refused; what its catalog says of files is
/// put back, or refused.
pub fn pool_header(bytes: &[u8]) {
    let path = PLACE.with(|place| place.path().join("pool"));
    make(&path, bytes);
    let opened = Pool::open(&path);
    match opened {
        Ok(pool) => check(pool, &path),
        Err(error) => check_error(&error, &path),
    }
    if let Err(error) = fs::remove_dir_all(&path) {
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
    }
}

/// Whether an input is a pool that opens.
pub fn is_opened(bytes: &[u8]) -> bool {
    let path = PLACE.with(|place| place.path().join("opened"));
    make(&path, bytes);
    let is_opened = Pool::open(&path).is_ok();
    fs::remove_dir_all(&path).unwrap();
    is_opened
}

/// The input that gives a pool with this catalog.
pub fn input_of(catalog: &[u8]) -> Vec<u8> {
    CatalogFile::input_of(catalog, &[0; 1 + SEAL_BYTES])
}

/// Writes catalog and data: headers, then what the seal says, then the log.
fn make(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.join("ledgers")).unwrap();
    let mut input = Input::new(bytes);
    let file = CatalogFile::take_headers(&mut input);
    let flags = input.byte();
    let mut seal: [u8; SEAL_BYTES] = input.take();
    let file = file.with_log(input.rest());
    let mut len_bytes = Input::new(&seal[40..]).number64();
    if flags & KEEPS_FIELDS == 0 {
        len_bytes = file.newest(CAPACITY_BYTES);
        let kind = if flags & IS_ON_DEVICE == 0 { 1 } else { 2 };
        let [low, high] = file.id();
        let magic = u64::from_le_bytes(*b"pgmapID2");
        for (place, field) in seal.chunks_exact_mut(8).zip([magic, kind, 0, low, high, len_bytes]) {
            place.copy_from_slice(&field.to_le_bytes());
        }
    }
    let sum = if flags & KEEPS_SUM == 0 { crc32fast::hash(&seal) } else { 0 };
    let (catalog, catalog_len) = file.bytes();
    let at = len_bytes.checked_next_multiple_of(PAGE_BYTES).filter(|&at| at < 1 << 50).unwrap_or(0);
    let data = path.join("data");
    if flags & IS_ON_DEVICE == 0 {
        write(&path.join("catalog"), &catalog, catalog_len);
        write(&data, &[], at + PAGE_BYTES);
    } else {
        write(&data, &catalog, at + PAGE_BYTES);
    }
    let data = fs::File::options().write(true).open(data).unwrap();
    data.write_all_at(&[&seal[..], &sum.to_le_bytes()].concat(), at).unwrap();
}

fn check(pool: Pool, path: &Path) {
    assert!(pool.size_bytes() > 0 && pool.size_bytes() <= pool.capacity_bytes());
    assert!(pool.size_bytes().is_multiple_of(PAGE_BYTES));
    if pool.span_bytes() > MOST_BYTES || pool.max_files() > MOST_FILES {
        return;
    }
    let size_bytes = pool.size_bytes();
    let mut core = match Core::open(Arc::new(pool)) {
        Ok(core) => core,
        Err(error) => return check_error(&error, path),
    };
    let (client, _attachment) = core.attach(ClientIdentity::own(), false).unwrap();
    let Outcome::Answer(Reply::PoolStat(info)) = core.handle(client, Request::PoolStat) else {
        panic!("no answer");
    };
    assert!(info.free_bytes + info.live_bytes <= size_bytes, "{info:?}");
    let Outcome::Answer(Reply::List(files)) = core.handle(client, Request::List(None)) else {
        panic!("no answer");
    };
    for file in files {
        assert!(file.allocated_bytes <= size_bytes, "{file:?}");
        let outcome = core.handle(client, Request::Unlink(vec![file.name]));
        assert!(matches!(outcome, Outcome::Answer(Reply::Unlinked(_))), "{outcome:?}");
    }
}

fn check_error(error: &Error, path: &Path) {
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
}
