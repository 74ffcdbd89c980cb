//! What a pool in a directory promises after damage, mix-ups and restarts of the machine.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::PathBuf;

use super::*;
use crate::wire::FolioSize;
use crate::{Client, Owner, Refusal};

mod check;
mod damage;

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
    // The machine stops here: the catalog is on the disk, the frames of "new" are as "old" left
    // them.
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
    assert!(error.contains("format 1") && error.contains("format 8"), "{error}");
    let on_device = path.with_extension("device");
    fs::create_dir(&on_device).unwrap();
    fs::write(on_device.join(directory::DATA), [b"pgmapSB1".as_slice(), &[0; 8184]].concat())
        .unwrap();
    let error = Pool::open(&on_device).map(drop).unwrap_err().to_string();
    assert!(error.contains("format 1") && error.contains("format 8"), "{error}");
    assert!(Pool::create(&PoolOptions::in_directory(&on_device, POOL_BYTES)).is_err());
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

/// An old catalog beside newer data named frames that were other files' by then, and the pool
/// opened with their bytes. A copy of either from before, made whenever an owner had stopped, is
/// distinguished from what goes together now.
#[test]
fn an_old_copy_of_catalog_or_data_is_refused() {
    let (directory, path) = place();
    let owner = create(&path);
    put(&owner.client().unwrap(), "first", 1, 5000);
    drop(owner);
    let old = directory.path().join("old");
    copy(&path, &old);
    let owner = Owner::start(Pool::open(&path).unwrap()).unwrap();
    let client = owner.client().unwrap();
    client.unlink("first").unwrap();
    put(&client, "second", 2, 5000);
    let killed = directory.path().join("killed");
    copy(&path, &killed);
    drop((client, owner));
    for (name, why) in
        [(directory::CATALOG, "its catalog is older"), (directory::DATA, "its data is")]
    {
        for (now, is_killed) in [(&path, false), (&killed, true)] {
            let mixed = directory.path().join(format!("{name}-{is_killed}"));
            copy(now, &mixed);
            fs::copy(old.join(name), mixed.join(name)).unwrap();
            let error = Pool::open(&mixed).map(drop).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("older"), "{error}");
        }
    }
    // What goes together is opened, also by an owner that only looked at it.
    for together in [&path, &killed, &old] {
        let first =
            contents(&Owner::start(Pool::open(together).unwrap()).unwrap().client().unwrap());
        let again =
            contents(&Owner::start(Pool::open(together).unwrap()).unwrap().client().unwrap());
        assert!(first.len() == 1 && first == again);
    }
}

/// A pool that lost its catalog was said not to be there, as if another directory had been meant.
#[test]
fn a_pool_that_lost_its_catalog_is_said_to_have_lost_it() {
    let (_directory, path) = place();
    drop(create(&path));
    fs::remove_file(path.join(directory::CATALOG)).unwrap();
    let error = Pool::open(&path).map(drop).unwrap_err().to_string();
    assert!(error.contains("data (a file of") && error.contains("catalog"), "{error}");
}

/// A failure in the memory of a pagemap, or one of the head that was on record when the owner was
/// killed, was looked for at the next start in a folio that is nobody's. That start failed, and so
/// did all others.
#[test]
fn failed_frames_that_are_offline_now_do_not_keep_a_pool_from_being_opened() {
    let (_directory, path) = place();
    let options = PoolOptions::in_directory(&path, 16 << 20).metadata_on_device();
    let owner = Owner::start(Pool::create(&options.capacity(2 << 30)).unwrap()).unwrap();
    let range = pgmap_mm::pagemap::DeviceRange { start_bytes: 1 << 30, len_bytes: 8 << 20 };
    let spec = pgmap_mm::pagemap::PagemapSpec {
        memory_type: MemoryType::Generic,
        ranges: vec![range],
        owner: None,
        largest_level: 1,
        ops: pgmap_mm::pagemap::OpsPresent::NONE,
    };
    owner.add_pagemap("device", &spec, None).unwrap();
    let client = owner.client().unwrap();
    put(&client, "a", 1, 5000);
    client.memory_failure((1 << 18) + 7).unwrap();
    drop((client, owner));
    let pool = Pool::open(&path).unwrap();
    pool.begin().unwrap();
    pool.record(&[Change::Poisoned(1)]).unwrap();
    drop(pool);
    let owner = Owner::start(Pool::open(&path).unwrap()).unwrap();
    assert_eq!(contents(&owner.client().unwrap())["a"], [1; 5000]);
}

/// The refusal said nothing of the pool. No pool is of memory that processors cannot reach.
#[test]
fn a_pool_of_memory_that_needs_a_driver_is_refused_by_name() {
    let (_directory, path) = place();
    let options = PoolOptions::in_directory(&path, POOL_BYTES).memory_type(MemoryType::Private);
    let pool = Pool::create(&options).unwrap();
    let error = Owner::start(pool).map(drop).unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()) && error.contains("private"), "{error}");
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

/// The other places where data can lie: one file, and a directory of huge pages.
#[test]
fn data_apart_from_its_directory_is_the_pool_and_one_owner_has_it() {
    let (_directory, path) = place();
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("data");
    let owner =
        Owner::start(Pool::create(&PoolOptions::on(&file, &path).size(32 << 20)).unwrap()).unwrap();
    put(&owner.client().unwrap(), "a", 1, 5000);
    let other = place.path().join("other");
    // While it has an owner nobody else opens it, and the owner is named.
    let owned = |error: Error| {
        let (error, own) = (error.to_string(), format!("process {}", std::process::id()));
        assert!(error.contains("has an owner already") && error.contains(&own), "{error}");
    };
    owned(Pool::open_on(&file, &other).unwrap_err());
    assert!(!other.exists(), "nothing is left behind");
    let error = Pool::create(&PoolOptions::on(&file, &other).size(32 << 20)).unwrap_err();
    assert!(error.to_string().contains("there is a pool already"), "{error}");
    drop(owner);
    let owner = Owner::start(Pool::open(&path).unwrap()).unwrap();
    assert_eq!(contents(&owner.client().unwrap())["a"], [1; 5000]);
    drop(owner);
    // Nobody is left, so a fresh directory will do. The old one says what it says.
    let owner = Owner::start(Pool::open_on(&file, &other).unwrap()).unwrap();
    assert_eq!(contents(&owner.client().unwrap())["a"], [1; 5000]);
    owned(Pool::open(&path).unwrap_err());
    // With a client on the roster that no ledger here is of, nobody knows what it holds.
    let holder = owner.client().unwrap();
    drop(owner);
    let third = place.path().join("third");
    let error = Pool::open_on(&file, &third).unwrap_err().to_string();
    assert!(error.contains("another directory"), "{error}");
    drop(holder);
    let second = place.path().join("second");
    drop(
        Pool::create(&PoolOptions::on(&second, place.path().join("fourth")).size(32 << 20))
            .unwrap(),
    );
    let error = Pool::open_on(&second, &other).unwrap_err().to_string();
    assert!(error.contains("choose another directory"), "{error}");
}

#[test]
fn data_in_huge_pages_of_a_directory_is_found_again() {
    let name = "data_in_huge_pages_of_a_directory_is_found_again";
    let Some(mount) = crate::pool::tests::hugetlbfs() else {
        return println!("SKIPPED {name}: no hugetlbfs is mounted, or it has no free pages");
    };
    let (_directory, path) = place();
    let on = tempfile::tempdir_in(mount).unwrap();
    let made = Pool::create(&PoolOptions::on(on.path(), &path).size(16 << 20));
    let owner = Owner::start(made.unwrap()).unwrap();
    put(&owner.client().unwrap(), "a", 7, 3_000_000);
    drop(owner);
    let owner = Owner::start(Pool::open(&path).unwrap()).unwrap();
    assert_eq!(contents(&owner.client().unwrap())["a"], [7; 3_000_000]);
}

/// Where 2 MiB pages can be had as files.
fn hugetlbfs() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let mount = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (place, kind) = (words.next()?, words.next()?);
        let is_usual = words.next()?.contains("pagesize=2M");
        (kind == "hugetlbfs" && is_usual).then(|| PathBuf::from(place))
    })?;
    let free =
        fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").ok()?;
    (free.trim().parse::<u64>().ok()? >= 16).then_some(mount)
}

#[test]
fn what_cannot_be_kept_is_refused_before_anything_is_made() {
    let (_directory, path) = place();
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    for durability in [Durability::Restart, Durability::PowerFailure] {
        let file = memory.path().join("data");
        let options = PoolOptions::on(&file, &path).size(32 << 20).durability(durability);
        let error = Pool::create(&options).unwrap_err();
        assert!(matches!(error, Error::NotDurable { .. }), "{error}");
        assert!(error.to_string().contains("shmem"), "{error}");
        assert!(!file.exists() && !path.join(directory::ON).exists());
    }
    let refused = |on: &std::path::Path, size, why: &str| {
        let error = Pool::create(&PoolOptions::on(on, &path).size(size)).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    let file = memory.path().join("file");
    refused(&file, 0, "needs a size");
    fs::write(&file, b"of somebody").unwrap();
    refused(&file, 32 << 20, "there is a file of 11 bytes");
    refused(std::path::Path::new("/dev/null"), 0, "device-dax");
    refused(&memory.path().join("far/away"), 32 << 20, "No such file");
    assert_eq!(fs::read(&file).unwrap(), b"of somebody");
}

/// With files that outlive a power failure nothing is dropped that a commit was answered for; the
/// same pool without the promise drops it.
#[test]
fn a_commit_that_returned_outlives_a_power_failure_where_that_was_asked_for() {
    for (durability, is_kept) in [(Durability::PowerFailure, true), (Durability::Restart, false)] {
        // On a disk: the file system must outlive it too.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pool");
        let options = PoolOptions::in_directory(&path, POOL_BYTES).durability(durability);
        let pool = match Pool::create(&options) {
            Err(Error::NotDurable { why, .. }) => {
                return println!("SKIPPED a_commit_that_returned_outlives…: {why}");
            }
            made => made.unwrap(),
        };
        let owner = Owner::start(pool).unwrap();
        put(&owner.client().unwrap(), "a", 1, 5000);
        // As the disk is while the owner runs, which then never stops.
        let cut = directory.path().join("cut");
        copy(&path, &cut);
        drop(owner);
        let pool = Pool::open_in_boot(&cut, OTHER_BOOT).unwrap();
        let owner = Owner::start(pool).unwrap();
        assert_eq!(contents(&owner.client().unwrap()).contains_key("a"), is_kept, "{durability:?}");
        if is_kept {
            assert_eq!(contents(&owner.client().unwrap())["a"], [1; 5000]);
        }
    }
}

/// The kernel registers no page cache of a disk for a device, and neither does a pool on it.
#[test]
fn on_a_disk_a_device_may_not_hold_for_long_and_a_processor_may_ask() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pool");
    let owner = create(&path);
    if owner.pool().data.kind() != pgmap_os::MemoryKind::PageCache {
        return println!("SKIPPED on_a_disk_a_device…: the temporary directory is on no disk");
    }
    let client = owner.client().unwrap();
    put(&client, "a", 1, 5000);
    let file = client.open("a").unwrap();
    let lease = |agent| file.lease(0..4096, agent, crate::Access::Write).map(drop);
    let error = lease(crate::Agent::Device).unwrap_err();
    assert_eq!(error.errno(), libc::EOPNOTSUPP, "{error}");
    lease(crate::Agent::Cpu).unwrap();
    // A transfer that ends soon is another thing.
    drop(file.pin_for_device(0..4096).unwrap());
}
