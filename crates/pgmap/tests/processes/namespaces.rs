//! T6, T7 and T9: pid and mount namespaces, and a file system that is full. Needs root and
//! `unshare`; skipped by name without.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::{self, Second, block};
use pgmap::{Client, Error, Owner, Pool, PoolOptions, Refusal};

const POOL_BYTES: u64 = 32 << 20;

#[test]
fn child_entry() {
    let Some((role, place)) = support::role() else { return };
    if role == "client" {
        support::client_role::run(&place);
    }
    if role == "small file system" {
        fill_a_small_file_system(&place);
        std::process::exit(0);
    }
    let owner = Owner::start(Pool::create(&PoolOptions::anonymous(POOL_BYTES)).unwrap()).unwrap();
    owner.serve(&place).unwrap();
    support::say("ok");
    assert_eq!(support::commands().count(), 0);
    drop(owner);
    std::process::exit(0);
}

/// In a mount namespace of its own, with a tmpfs of 8 MiB at `place`.
fn fill_a_small_file_system(place: &Path) {
    let create = |size_bytes| Pool::create(&PoolOptions::in_directory(place.join("p"), size_bytes));
    let error = create(16 << 20).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
    let owner = Owner::start(create(5 << 20).unwrap()).unwrap();
    let client = owner.client().unwrap();
    // Others fill the file system after the pool was made.
    std::fs::write(place.join("ballast"), vec![1; 4 << 20]).unwrap();
    let error = client.create("a", 5 << 20, pgmap::FolioSize::BestFit).map(drop).unwrap_err();
    assert!(matches!(error, Error::Refused(Refusal::NoMemory { .. })), "{error}");
    assert_eq!(owner.info().free_bytes, 5 << 20, "nothing is lost by it");
    support::put(&client, "small", &block::make(1, 100_000)).unwrap();
    std::fs::remove_file(place.join("ballast")).unwrap();
    support::put(&client, "a", &block::make(2, 4 << 20)).unwrap();
    assert_eq!(block::check(&client.get("a").unwrap().to_vec().unwrap()), Ok(2));
    assert_eq!(block::check(&client.get("small").unwrap().to_vec().unwrap()), Ok(1));
    support::say("done");
}

/// Starts in a pid namespace of its own, where it is number 1.
const OWN_PIDS: &[&str] = &["unshare", "--pid", "--fork", "--kill-child"];

fn may_unshare(test: &str) -> bool {
    let mut probe = Command::new("unshare");
    probe.args(["--pid", "--mount", "--fork", "true"]).stderr(Stdio::null());
    let may = probe.status().is_ok_and(|status| status.success());
    if !may {
        println!("SKIPPED {test}: no right to make namespaces, or no unshare(1)");
    }
    may
}

fn start(wrapper: &[&str], role: &str, place: &Path) -> Second {
    let mut second = Second::start_by(wrapper, role, place);
    assert_eq!(second.answer(), "ok");
    second
}

#[test]
fn t6_two_processes_with_the_same_number_are_two_processes() {
    if !may_unshare("t6_two_processes_with_the_same_number_are_two_processes") {
        return;
    }
    let (owner, _directory, socket) = support::serving_owner(POOL_BYTES);
    let client = owner.client().unwrap();
    support::put(&client, "a", &block::make(1, 4 << 20)).unwrap();
    support::put(&client, "b", &block::make(2, 4 << 20)).unwrap();
    // Both are number 1 to themselves.
    let mut first = start(OWN_PIDS, "client", &socket);
    let mut second = start(OWN_PIDS, "client", &socket);
    first.must("pin a");
    second.must("pin b");
    client.unlink("a").unwrap();
    client.unlink("b").unwrap();
    first.kill();
    let info = support::wait_for_info(&owner, "the first is reaped", |info| info.nr_clients == 2);
    assert_eq!(info.draining_bytes, 4 << 20, "the second's pin stands: {info:?}");
    // Another with that number attaches, and is nobody's heir.
    let mut third = start(OWN_PIDS, "client", &socket);
    third.must("put c 3 100000");
    assert_eq!(owner.info().draining_bytes, 4 << 20);
    assert_eq!(second.ask("verify"), "generation 2");
    second.kill();
    support::wait_for_info(&owner, "the second is reaped", |info| info.draining_bytes == 0);
    assert_eq!(third.ask("get c"), "generation 3");
}

#[test]
fn t6_an_owner_that_cannot_see_its_clients_numbers_knows_who_lives() {
    if !may_unshare("t6_an_owner_that_cannot_see_its_clients_numbers_knows_who_lives") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let _owner = start(OWN_PIDS, "owner", &socket);
    let client = Client::connect(&socket).unwrap();
    let mut holder = start(&[], "client", &socket);
    holder.must("put a 1 4000000");
    holder.must("pin a");
    let error = client.truncate("a", 1, Duration::from_millis(50)).unwrap_err();
    let Error::Refused(Refusal::Held { holders, .. }) = &error else { panic!("{error}") };
    assert_eq!(holders[0].pid, 0, "a process outside has no number in there");
    client.unlink("a").unwrap();
    assert_eq!(client.pool_stat().unwrap().draining_bytes, 4_001_792);
    assert_eq!(holder.ask("verify"), "generation 1");
    holder.kill();
    support::wait_until("the holder's death is seen", || {
        let info = client.pool_stat().unwrap();
        (info.nr_clients == 1 && info.free_bytes == POOL_BYTES).then_some(())
    });
}

#[test]
fn t9_two_containers_share_a_pool_over_a_mounted_socket() {
    if !may_unshare("t9_two_containers_share_a_pool_over_a_mounted_socket") {
        return;
    }
    let (owner, directory, _socket) = support::serving_owner(POOL_BYTES);
    let container = |name: &str| {
        let inside = directory.path().join(name);
        std::fs::create_dir(&inside).unwrap();
        // The socket's directory appears at another path, seen from inside only.
        let mount = format!(
            "mount --bind {} {} && exec \"$0\" \"$@\"",
            directory.path().display(),
            inside.display()
        );
        let wrapper = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", &mount];
        start(&wrapper, "client", &inside.join("s"))
    };
    let (mut first, mut second) = (container("first"), container("second"));
    assert_eq!(owner.info().nr_clients, 2);
    first.must("put a 1 3000000");
    assert_eq!(second.ask("get a"), "generation 1");
    second.must("pin a");
    second.must("put b 2 100");
    assert_eq!(first.ask("get b"), "generation 2");
    first.must("unlink a");
    assert_eq!(second.ask("verify"), "generation 1");
    assert_eq!(first.ask("draining"), "3002368");
    second.kill();
    support::wait_for_info(&owner, "the second container is reaped", |info| {
        info.nr_clients == 1 && info.draining_bytes == 0
    });
    first.must("pin b");
    first.kill();
    let info = support::wait_for_info(&owner, "both are reaped", |info| info.nr_clients == 0);
    support::assert_accounted(&info);
}

#[test]
fn t7_a_pool_larger_than_its_file_system_is_an_error_and_never_a_signal() {
    if !may_unshare("t7_a_pool_larger_than_its_file_system_is_an_error_and_never_a_signal") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mount = format!(
        "mount -t tmpfs -o size=8m none {} && exec \"$0\" \"$@\"",
        directory.path().display()
    );
    let wrapper = ["unshare", "--mount", "sh", "-c", &mount];
    let mut second = Second::start_by(&wrapper, "small file system", directory.path());
    assert_eq!(second.answer(), "done");
    assert!(second.end().success());
}
