//! File systems that are full: shortage is an error for bookkeeping too, never a signal, and what
//! was refused works again when there is room.
//!
//! Each test runs itself once more in namespaces of its own, with a small tmpfs mounted. Where the
//! system allows no such namespaces the tests are skipped by name.

use crate::support;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use pgmap::{Client, Error, FolioSize, Owner, Pool, PoolOptions, Populate};

const MIB: u64 = 1 << 20;
/// Says in which process the test is, and where the file system is mounted.
const PLACE: &str = "PGMAP_FULL_PLACE";

/// Runs the test `name` again on a tmpfs of `size_mib`, in a mount namespace of its own. Returns
/// the place in that process, and `None` in the first one, when all is done.
fn on_tmpfs(name: &str, size_mib: u64) -> Option<PathBuf> {
    if let Some(place) = std::env::var_os(PLACE) {
        return Some(place.into());
    }
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let script =
        format!("mount -t tmpfs -o size={size_mib}m,mode=700 tmpfs \"$1\" && shift && exec \"$@\"");
    let wrapper = |command: &[&str]| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--user", "--map-root-user", "--mount", "--propagation", "private"]);
        unshare.args(["sh", "-c", &script, "sh"]).arg(place).args(command);
        unshare.env(PLACE, place);
        unshare
    };
    let probe = wrapper(&["true"]).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        println!(
            "SKIPPED {name}: no user and mount namespaces here (kernel.unprivileged_userns_clone)"
        );
        return None;
    }
    let program = std::env::current_exe().unwrap();
    let test = support::test_path(module_path!(), name);
    let arguments = [program.to_str().unwrap(), "--exact", &test, "--nocapture"];
    let status = wrapper(&arguments).status().unwrap();
    assert!(status.success(), "{status}, signal {:?}", status.signal());
    None
}

/// Fills the file system at `place` to the last page.
fn fill(place: &Path) -> PathBuf {
    let path = place.join("eat");
    let mut file = File::create(&path).unwrap();
    for len in [1 << 20, 1 << 16, 4096] {
        while file.write_all(&vec![1; len]).is_ok() {}
    }
    path
}

fn pool_in(place: &Path, size_bytes: u64) -> Pool {
    Pool::create(&PoolOptions::in_directory(place.join("pool"), size_bytes)).unwrap()
}

fn put(client: &Client, name: &str, len: usize, size: FolioSize) -> Result<(), Error> {
    let mut writer = client.create(name, len as u64, size)?;
    writer.write_all_at(0, &vec![name.len() as u8; len])?;
    writer.commit()
}

#[test]
fn a_full_file_system_refuses_lets_remove_and_works_again() {
    let Some(place) = on_tmpfs("a_full_file_system_refuses_lets_remove_and_works_again", 16) else {
        return;
    };
    let owner = Owner::start(pool_in(&place, 8 * MIB)).unwrap();
    let client = owner.client().unwrap();
    for number in 0..40 {
        put(&client, &format!("small-{number}"), 9000, FolioSize::BestFit).unwrap();
    }
    drop(client);
    let eaten = fill(&place);
    // A new client, of another lane and ledger, can look, read and remove.
    for _ in 0..3 {
        let client = owner.client().unwrap();
        assert_eq!(client.get("small-0").unwrap().to_vec().unwrap(), [7; 9000]);
        let error = put(&client, "large", 3 << 20, FolioSize::BestFit).unwrap_err();
        assert!(matches!(error.errno(), libc::ENOSPC | libc::ENOMEM), "{error}");
        let said = error.to_string();
        assert!(said.contains("are missing") || said.contains("no room"), "{said}");
    }
    let client = owner.client().unwrap();
    for number in 1..40 {
        client.unlink(format!("small-{number}")).unwrap();
    }
    // So can another owner, although the first one cannot have left it any room.
    drop((client, owner));
    let owner = Owner::start(Pool::open(place.join("pool")).unwrap()).unwrap();
    let client = owner.client().unwrap();
    assert_eq!(client.list().unwrap().len(), 1);
    client.unlink("small-0").unwrap();
    assert_eq!(owner.info().free_bytes, 8 * MIB);
    fs::remove_file(eaten).unwrap();
    put(&client, "large", 3 << 20, FolioSize::BestFit).unwrap();
    assert_eq!(client.get("large").unwrap().to_vec().unwrap().len(), 3 << 20);
}

/// An owner that starts clears what a killed predecessor may have left below whole folios. Below
/// those that were never split there is no memory, and the zeros took some: with a full file system
/// that was a SIGBUS. The soak of everything met it once in some minutes on a busy machine.
#[test]
fn an_owner_starts_on_a_full_file_system_with_folios_that_were_never_split() {
    let Some(place) =
        on_tmpfs("an_owner_starts_on_a_full_file_system_with_folios_that_were_never_split", 96)
    else {
        return;
    };
    let owner = Owner::start(pool_in(&place, 64 * MIB)).unwrap();
    put(&owner.client().unwrap(), "large", 56 << 20, FolioSize::Pages2M).unwrap();
    drop(owner);
    fill(&place);
    let owner = Owner::start(Pool::open(place.join("pool")).unwrap()).unwrap();
    let client = owner.client().unwrap();
    assert_eq!(client.get("large").unwrap().to_vec().unwrap(), vec![5; 56 << 20]);
}

/// The pool is as large as its file system, so that descriptors, index, ledgers and catalog have
/// less than they need.
#[test]
fn a_pool_as_large_as_its_file_system_takes_files_until_it_is_full() {
    let Some(place) =
        on_tmpfs("a_pool_as_large_as_its_file_system_takes_files_until_it_is_full", 64)
    else {
        return;
    };
    let owner = Owner::start(pool_in(&place, 64 * MIB)).unwrap();
    let client = owner.client().unwrap();
    let mut pins = Vec::new();
    let mut nr_refused = 0;
    for number in 0..1000 {
        let name = format!("f{number}");
        let size = if number % 3 == 0 { FolioSize::Pages4K } else { FolioSize::BestFit };
        match put(&client, &name, 80_000, size) {
            Ok(()) => pins.push(client.get(&name).unwrap()),
            Err(_) => nr_refused += 1,
        }
    }
    assert!(nr_refused > 100 && pins.len() > 500, "{nr_refused} refused");
    // Threads of their own need lanes of their own.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..2000 {
                    let _pin = client.get("f0");
                    let _longterm = client.open("f1").map(|file| drop(file.pin_longterm(0..4096)));
                }
            });
        }
    });
    drop(pins);
    for file in client.list().unwrap() {
        client.unlink(file.name.as_bytes()).unwrap();
    }
    while let [file, ..] = &client.list().unwrap()[..] {
        client.unlink(file.name.as_bytes()).unwrap();
    }
    support::wait_for_info(&owner, "all is free", |info| info.free_bytes == 64 * MIB);
    put(&client, "again", 80_000, FolioSize::Pages4K).unwrap();
}

#[test]
fn a_pool_that_its_file_system_cannot_hold_is_refused_whole() {
    let Some(place) = on_tmpfs("a_pool_that_its_file_system_cannot_hold_is_refused_whole", 16)
    else {
        return;
    };
    for populate in [Populate::OnDemand, Populate::Upfront] {
        let options = PoolOptions::in_directory(place.join("pool"), 64 * MIB).populate(populate);
        let error = Pool::create(&options).map(drop).unwrap_err();
        assert_eq!(error.errno(), libc::ENOSPC, "{error}");
    }
    let options = PoolOptions::in_directory(place.join("pool"), 15 * MIB + 900 * 1024);
    let error = Pool::create(&options.populate(Populate::Upfront)).map(drop).unwrap_err();
    assert_eq!(error.errno(), libc::ENOSPC, "{error}");
    let left: Vec<_> = fs::read_dir(place.join("pool")).unwrap().flatten().collect();
    let bytes: u64 = left.iter().map(|entry| entry.metadata().unwrap().len()).sum();
    assert!(left.iter().all(|entry| entry.file_name() != "data"), "{left:?} {bytes}");
    drop(Owner::start(pool_in(&place, 8 * MIB)).unwrap());
}

/// Splits, cuts and long-term pins need descriptors and counts that are not there yet.
#[test]
fn what_needs_more_bookkeeping_is_refused_whole_on_a_full_file_system() {
    let Some(place) =
        on_tmpfs("what_needs_more_bookkeeping_is_refused_whole_on_a_full_file_system", 32)
    else {
        return;
    };
    let owner = Owner::start(pool_in(&place, 16 * MIB)).unwrap();
    let client = owner.client().unwrap();
    put(&client, "large", 8 << 20, FolioSize::Pages2M).unwrap();
    let eaten = fill(&place);
    for offset in [4096, 2 * MIB + 8192] {
        let error = client.punch("large", offset..offset + 4096, Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("room"), "{error}");
    }
    assert_eq!(client.get("large").unwrap().to_vec().unwrap(), vec![5; 8 << 20]);
    let file = client.open("large").unwrap();
    let many: Vec<_> =
        (0..600).map(|page| file.pin_longterm(page * 4096..page * 4096 + 4096)).collect();
    assert!(many.iter().any(Result::is_err), "there is no page for counts");
    drop(many);
    let many: Vec<_> =
        (0..5000).map(|page| file.pin(page % 2000 * 4096..page % 2000 * 4096 + 4096)).collect();
    assert!(many.iter().any(Result::is_err), "there are no pages for slots");
    drop(many);
    fs::remove_file(eaten).unwrap();
    client.punch("large", 4096..8192, Duration::ZERO).unwrap();
    let many: Vec<_> = (0..5000)
        .map(|page| file.pin(2 * MIB + page % 1000 * 4096..2 * MIB + page % 1000 * 4096 + 4096))
        .collect();
    assert!(many.iter().all(Result::is_ok));
}
