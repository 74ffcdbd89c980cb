//! What a pool in a directory promises after damage, mix-ups and restarts of the machine.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::PathBuf;

use super::*;
use crate::wire::FolioSize;
use crate::{Client, Owner, Refusal};

const POOL_BYTES: u64 = 4 << 20;
const OTHER_BOOT: BootId = BootId(1);

/// A directory in memory, and where in it a pool is to be.
fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = directory.path().join("pool");
    (directory, path)
}

fn create(path: &Path) -> Owner {
    Owner::start(Pool::create(&PoolOptions::in_directory(path, POOL_BYTES)).unwrap()).unwrap()
}

fn put(client: &Client, name: &str, byte: u8, len: usize) {
    let mut writer = client.create(name, len as u64, FolioSize::BestFit).unwrap();
    writer.write_all_at(0, &vec![byte; len]).unwrap();
    writer.commit().unwrap();
}

/// Every file and its bytes.
fn contents(client: &Client) -> BTreeMap<String, Vec<u8>> {
    let files = client.list().unwrap();
    let read = |name: &str| client.get(name).unwrap().to_vec().unwrap();
    files.iter().map(|file| (file.name.to_string(), read(&file.name.to_string()))).collect()
}

/// A copy of all files of a pool, as a machine would find them that stopped now.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.join(directory::LEDGERS)).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten().filter(|entry| entry.path().is_file()) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn names(pool: &Pool) -> Vec<String> {
    pool.unsynced().iter().map(ToString::to_string).collect()
}

#[test]
fn what_was_not_synced_before_the_machine_was_restarted_is_gone_and_named() {
    let (directory, path) = place();
    let owner = create(&path);
    let client = owner.client().unwrap();
    put(&client, "kept", 1, 5000);
    put(&client, "old", 2, 5000);
    drop((client, owner));
    let owner = Owner::start(Pool::open_in_boot(&path, OTHER_BOOT).unwrap()).unwrap();
    let client = owner.client().unwrap();
    assert_eq!(contents(&client).len(), 2, "a clean stop outlives a restart");
    client.unlink("old").unwrap();
    put(&client, "new", 3, 5000);
    client.rename("kept", "renamed", crate::Replace::No).unwrap();
    // The machine stops here: the catalog is on the disk, the frames of "new" are as "old" left them.
    let stopped = directory.path().join("stopped");
    copy(&path, &stopped);
    drop((client, owner));
    let pool = Pool::open_in_boot(&stopped, BootId(2)).unwrap();
    assert_eq!(names(&pool), ["new"]);
    let owner = Owner::start(pool).unwrap();
    let client = owner.client().unwrap();
    let refused = client.get("new").map(drop).unwrap_err();
    assert!(matches!(refused.refusal(), Some(Refusal::NotFound { .. })), "{refused}");
    assert_eq!(contents(&client), BTreeMap::from([("renamed".to_owned(), vec![1; 5000])]));
    drop((client, owner));
    assert!(names(&Pool::open_in_boot(&stopped, BootId(3)).unwrap()).is_empty());
}

#[test]
fn an_owner_that_was_killed_loses_nothing_as_long_as_the_machine_runs() {
    let (directory, path) = place();
    let owner = create(&path);
    let client = owner.client().unwrap();
    put(&client, "new", 3, 5000);
    let killed = directory.path().join("killed");
    copy(&path, &killed);
    let pool = Pool::open(&killed).unwrap();
    assert!(names(&pool).is_empty());
    let owner = Owner::start(pool).unwrap();
    assert_eq!(contents(&owner.client().unwrap())["new"], [3; 5000]);
}

#[test]
fn files_of_two_pools_do_not_go_together() {
    let (directory, path) = place();
    let other = directory.path().join("other");
    for (path, byte) in [(&path, 1), (&other, 2)] {
        let owner = create(path);
        put(&owner.client().unwrap(), "a", byte, 5000);
    }
    for name in [directory::CATALOG, directory::DATA, directory::VMEMMAP, directory::INDEX] {
        let mixed = directory.path().join(format!("mixed-{name}"));
        copy(&path, &mixed);
        fs::copy(other.join(name), mixed.join(name)).unwrap();
        let error = Pool::open(&mixed).map(drop).unwrap_err().to_string();
        assert!(error.contains("belongs to pool"), "{name}: {error}");
    }
}

#[test]
fn a_pool_of_another_format_is_refused_by_both_numbers() {
    let (_directory, path) = place();
    drop(create(&path));
    fs::write(path.join(directory::CATALOG), b"redb\x1a\x0a\xa9\x0d\x0a and more").unwrap();
    let error = Pool::open(&path).map(drop).unwrap_err().to_string();
    assert!(error.contains("format 1") && error.contains("format 2"), "{error}");
    let on_device = path.with_extension("device");
    fs::create_dir(&on_device).unwrap();
    fs::write(on_device.join(directory::DATA), [b"pgmapSB1".as_slice(), &[0; 8184]].concat())
        .unwrap();
    let error = Pool::open(&on_device).map(drop).unwrap_err().to_string();
    assert!(error.contains("format 1") && error.contains("format 2"), "{error}");
    assert!(Pool::create(&PoolOptions::in_directory(&on_device, POOL_BYTES)).is_err());
}

/// A small generator (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// Damages one file of a pool and says how.
fn damage(path: &Path, name: &str, random: &mut Random) -> String {
    let file = path.join(name);
    let raw = fs::File::options().read(true).write(true).open(&file).unwrap();
    let len = raw.metadata().unwrap().len();
    // What files hold is theirs: no file system without checksums of data sees that it changed.
    let first = if name == directory::DATA { POOL_BYTES } else { 0 };
    let at = match random.below(4) {
        // Where things are: the head, the tail, what is in use.
        0 => first + random.below(256.min(len - first)),
        1 => len - 1 - random.below(4096.min(len - first)),
        2 => first + random.below(24576.min(len - first)),
        _ => first + random.below(len - first),
    };
    let done = match random.below(6) {
        0 | 1 => {
            let mut byte = [0];
            raw.read_exact_at(&mut byte, at).unwrap();
            raw.write_all_at(&[byte[0] ^ 1 << random.below(8)], at).unwrap();
            "a bit flipped"
        }
        2 => {
            let bytes: Vec<u8> =
                (0..1 + random.below(64)).map(|_| random.below(256) as u8).collect();
            raw.write_all_at(&bytes, at).unwrap();
            "random bytes"
        }
        3 => {
            raw.write_all_at(&[0; 4096][..(len - at).min(4096) as usize], at).unwrap();
            "zeros"
        }
        4 => {
            raw.set_len(at).unwrap();
            "cut off"
        }
        _ => {
            let mut words = [0; 16];
            raw.read_exact_at(&mut words, at.min(len - 16)).unwrap();
            let to = first + random.below(len - first - 15);
            raw.write_all_at(&words, to).unwrap();
            "16 bytes copied elsewhere"
        }
    };
    format!("{name}: {done} at {at} of {len}")
}

#[test]
fn damage_to_any_file_of_a_closed_pool_is_a_clear_error_or_changes_nothing() {
    let nr_trials: u64 = 800;
    let seed = std::env::var("PGMAP_TEST_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(pgmap_os::clock::monotonic_ns);
    println!("seed {seed}; repeat with PGMAP_TEST_SEED={seed}");
    let mut random = Random(seed);
    let (directory, path) = place();
    let owner = create(&path);
    let client = owner.client().unwrap();
    for number in 0..12 {
        put(&client, &format!("file-{number}"), 1 + number, 3000 + 20_000 * usize::from(number));
    }
    client.punch("file-7", 8192, 8192, 0).unwrap();
    client.truncate("file-9", 50_000, 0).unwrap();
    client.unlink("file-3").unwrap();
    let expected = contents(&client);
    drop((client, owner));
    let (mut nr_errors, mut nr_right) = (0, 0);
    for _ in 0..nr_trials {
        let damaged = directory.path().join("damaged");
        copy(&path, &damaged);
        let names = ["catalog", "catalog", "data", "vmemmap", "index", "owner.lock"];
        let name = names[random.below(names.len() as u64) as usize];
        let what = if fs::metadata(damaged.join(name)).unwrap().len() == 0 {
            fs::write(damaged.join(name), [7; 9]).unwrap();
            format!("{name}: 9 bytes written")
        } else {
            damage(&damaged, name, &mut random)
        };
        match Pool::open(&damaged).and_then(Owner::start) {
            Ok(owner) => {
                let found = contents(&owner.client().unwrap());
                assert!(found == expected, "wrong bytes after {what}");
                let info = owner.info();
                assert_eq!(info.free_bytes + info.live_bytes, POOL_BYTES, "{what}: {info:?}");
                nr_right += 1;
            }
            Err(error) => {
                let said = error.to_string();
                assert!(said.contains(damaged.to_str().unwrap()), "{what}: {said}");
                nr_errors += 1;
            }
        }
        fs::remove_dir_all(&damaged).unwrap();
    }
    println!("{nr_trials} trials: {nr_errors} errors, {nr_right} times nothing was lost");
    assert!(nr_errors > nr_trials / 10 && nr_right > nr_trials / 10);
}

#[test]
fn what_no_pool_made_is_left_alone_and_named() {
    for name in [
        directory::DATA,
        directory::VMEMMAP,
        directory::INDEX,
        directory::CATALOG_NEW,
        directory::LEDGERS,
        "owner.lock",
    ] {
        let (_directory, path) = place();
        fs::create_dir(&path).unwrap();
        fs::write(path.join(name), "mine").unwrap();
        let error = Pool::create(&PoolOptions::in_directory(&path, POOL_BYTES)).unwrap_err();
        assert!(error.to_string().contains(&format!("{name} (a file of 4 bytes)")), "{error}");
        assert_eq!(fs::read(path.join(name)).unwrap(), b"mine");
        fs::remove_file(path.join(name)).unwrap();
        symlink("/dev/null", path.join(name)).unwrap();
        let error = Pool::create(&PoolOptions::in_directory(&path, POOL_BYTES)).unwrap_err();
        assert!(error.to_string().contains("a symbolic link to /dev/null"), "{error}");
        fs::remove_file(path.join(name)).unwrap();
        fs::create_dir(path.join(name)).unwrap();
        fs::write(path.join(name).join("x"), "mine").unwrap();
        assert!(Pool::create(&PoolOptions::in_directory(&path, POOL_BYTES)).is_err());
        assert_eq!(fs::read(path.join(name).join("x")).unwrap(), b"mine");
        fs::remove_dir_all(path.join(name)).unwrap();
        drop(create(&path));
    }
}

#[test]
fn a_pool_without_its_catalog_is_neither_opened_nor_made_again() {
    let (_directory, path) = place();
    put(&create(&path).client().unwrap(), "a", 1, 5000);
    let catalog = fs::read(path.join(directory::CATALOG)).unwrap();
    fs::remove_file(path.join(directory::CATALOG)).unwrap();
    assert!(Pool::open(&path).is_err());
    let error = Pool::create(&PoolOptions::in_directory(&path, POOL_BYTES)).unwrap_err();
    assert!(error.to_string().contains("lost its catalog"), "{error}");
    fs::write(path.join(directory::CATALOG), catalog).unwrap();
    let owner = Owner::start(Pool::open(&path).unwrap()).unwrap();
    assert_eq!(contents(&owner.client().unwrap())["a"], [1; 5000]);
}

#[test]
fn a_pool_on_its_device_is_a_pool_and_what_a_file_says_makes_none() {
    let (directory, path) = place();
    let options = PoolOptions::in_directory(&path, 64 << 20).metadata_on_device();
    drop(Owner::start(Pool::create(&options).unwrap()).unwrap());
    assert!(Pool::is_in(&path).unwrap());
    let error = Pool::create(&options).map(drop).unwrap_err();
    assert!(error.to_string().contains("there is a pool already"), "{error}");
    let header = fs::read(path.join(directory::DATA)).unwrap()[..4096].to_vec();
    // The first frame of another pool, as a client may write it.
    let other = directory.path().join("other");
    drop(create(&other));
    let data = fs::File::options().write(true).open(other.join(directory::DATA)).unwrap();
    data.write_all_at(&header, 0).unwrap();
    drop(Owner::start(Pool::open(&other).unwrap()).unwrap());
    fs::remove_file(other.join(directory::CATALOG)).unwrap();
    assert!(!Pool::is_in(&other).unwrap());
}

#[test]
fn a_creation_that_was_cut_short_is_done_again() {
    let (_directory, path) = place();
    drop(Pool::create(&PoolOptions::in_directory(&path, POOL_BYTES)).unwrap());
    fs::rename(path.join(directory::CATALOG), path.join(directory::CATALOG_NEW)).unwrap();
    assert!(!Pool::is_in(&path).unwrap());
    put(&create(&path).client().unwrap(), "a", 1, 5000);
    assert!(Pool::is_in(&path).unwrap());
    let (_directory, path) = place();
    fs::create_dir(&path).unwrap();
    fs::write(path.join(directory::CATALOG_NEW), [0; 4096]).unwrap();
    drop(create(&path));
}

#[test]
fn a_creation_that_fails_leaves_no_files() {
    let (_directory, path) = place();
    let options = PoolOptions::in_directory(&path, 1 << 45);
    assert!(Pool::create(&options).is_err(), "32 TiB are not there");
    for name in [directory::DATA, directory::CATALOG, directory::CATALOG_NEW, directory::INDEX] {
        assert!(!path.join(name).exists(), "{name}");
    }
    drop(create(&path));
}

#[test]
fn the_directory_is_the_users_own_and_no_link() {
    let (directory, path) = place();
    drop(create(&path));
    let link = directory.path().join("link");
    symlink(&path, &link).unwrap();
    let error = Pool::create(&PoolOptions::in_directory(&link, POOL_BYTES)).unwrap_err();
    assert!(error.to_string().contains("symbolic link"), "{error}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    let error = Pool::open(&path).map(drop).unwrap_err();
    assert!(error.to_string().contains("every user may change it (mode 0777)"), "{error}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    if pgmap_os::process::effective_uid() == 0 {
        std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
        let error = Pool::open(&path).map(drop).unwrap_err();
        assert!(error.to_string().contains("user 12345, not 0"), "{error}");
    } else {
        println!("SKIPPED another user's directory: only root can make one");
    }
}

#[test]
fn a_ledger_that_no_client_attached_by_shuts_nobody_out() {
    let (_directory, path) = place();
    put(&create(&path).client().unwrap(), "a", 1, 5000);
    let ledgers = path.join(directory::LEDGERS);
    for (number, len) in [("77", 0), ("78", 3), ("79", 4096), ("80", 1 << 24), ("spare", 7)] {
        fs::File::create(ledgers.join(number)).unwrap().set_len(len).unwrap();
    }
    fs::write(ledgers.join("a note"), "mine").unwrap();
    let owner = Owner::start(Pool::open(&path).unwrap()).unwrap();
    assert_eq!(contents(&owner.client().unwrap())["a"], [1; 5000]);
    assert_eq!(owner.info().free_bytes + 8192, POOL_BYTES);
    assert!(["77", "78", "79", "80"].iter().all(|number| !ledgers.join(number).exists()));
    assert_eq!(fs::read(ledgers.join("a note")).unwrap(), b"mine");
}

#[test]
fn nobody_else_may_read_any_file_of_a_pool() {
    let (_directory, path) = place();
    let owner = create(&path);
    let _client = owner.client().unwrap();
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    for directory in [path.clone(), path.join(directory::LEDGERS)] {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            assert_eq!(mode(&entry.path()) & 0o077, 0, "{}", entry.path().display());
        }
    }
}

#[test]
fn a_limit_for_the_size_of_files_is_an_error() {
    let file = MemoryFile::anonymous("limit-test", 0, PageSize::Base).unwrap();
    // The limit is the process's, so other tests must not meet it: it is only lowered to more than
    // any of them needs.
    let wanted = 1 << 44;
    let limits = rustix::process::getrlimit(rustix::process::Resource::Fsize);
    let lower = rustix::process::Rlimit { current: Some(1 << 43), maximum: limits.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Fsize, lower).unwrap();
    let errors = [file.set_len(wanted).unwrap_err(), file.reserve(0..wanted).unwrap_err()];
    rustix::process::setrlimit(rustix::process::Resource::Fsize, limits).unwrap();
    for error in errors {
        assert_eq!(error.errno(), libc::EFBIG, "{error}");
        assert!(error.to_string().contains("RLIMIT_FSIZE"), "{error}");
    }
}
