//! The acceptance tests of docs/acceptance.md that need a second process: T1 (client side), T2, T5,
//! T11, T12, T14 (as far as truncate goes) and T15.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{self, Second, block};
use pgmap::report::HoldKind;
use pgmap::{Client, CreateSpec, Error, FolioSize, Owner, Refusal};
use rustix::process::Signal;

const MIB: u64 = 1 << 20;

#[test]
fn child_entry() {
    if let Some((_, place)) = support::role() {
        support::client_role::run(&place);
    }
}

fn start(socket: &Path) -> Second {
    let mut second = Second::start("client", socket);
    assert_eq!(second.answer(), "ok");
    second
}

fn put(client: &Client, name: &str, generation: u64, len_bytes: u64) {
    support::put(client, name, &block::make(generation, len_bytes as usize)).unwrap();
}

fn generation(client: &Client, name: &str) -> u64 {
    block::check(&client.get(name).unwrap().to_vec().unwrap()).unwrap()
}

/// Fills all free memory with files of another generation, looks at them, and unlinks them.
fn churn(client: &Client, owner: &Owner, generation_of_others: u64) {
    let mut nr_files = 0;
    while owner.info().free_bytes >= MIB {
        put(client, &format!("churn{nr_files}"), generation_of_others, MIB);
        nr_files += 1;
    }
    for file in 0..nr_files {
        assert_eq!(generation(client, &format!("churn{file}")), generation_of_others);
        client.unlink(format!("churn{file}")).unwrap();
    }
}

#[test]
fn t1_a_client_killed_at_any_step_leaves_nothing_and_the_pool_works_at_once() {
    let (owner, _directory, socket) = support::serving_owner(64 * MIB);
    let client = owner.client().unwrap();
    put(&client, "kept", 1, 5 * MIB);
    let steps: [&[&str]; 8] = [
        &[],
        &["pin kept"],
        &["pin-longterm kept"],
        &["pin-device kept"],
        &["write draft 2 3000000"],
        &["write-device draft 2 3000000"],
        &["put mine 3 3000000", "pin mine", "unlink mine"],
        &["put mine 3 3000000", "pin-device mine", "unlink mine", "write draft 4 100", "pin kept"],
    ];
    for step in steps {
        let mut second = start(&socket);
        step.iter().for_each(|command| second.must(command));
        assert_eq!(owner.info().nr_clients, 2);
        second.kill();
        let info =
            support::wait_for_info(&owner, "the dead is reaped", |info| info.nr_clients == 1);
        support::assert_accounted(&info);
        assert_eq!(info.live_bytes, 5 * MIB, "after {step:?}");
        assert_eq!(client.who_all().unwrap().holders, [], "after {step:?}");
        assert_eq!(generation(&client, "kept"), 1);
        put(&client, "next", 9, 40 * MIB);
        assert_eq!(generation(&client, "next"), 9);
        client.unlink("next").unwrap();
    }
    client.unlink("kept").unwrap();
    let info = owner.info();
    assert_eq!((info.free_bytes, info.orphaned_bytes), (64 * MIB, 0), "{info:?}");
}

#[test]
fn t2_a_reader_slower_than_any_time_out_blocks_reuse() {
    let (owner, _directory, socket) = support::serving_owner(32 * MIB);
    let client = owner.client().unwrap();
    put(&client, "slow", 77, 8 * MIB);
    let mut reader = start(&socket);
    reader.must("pin slow");
    reader.signal(Signal::STOP);
    client.unlink("slow").unwrap();
    let started = Instant::now();
    // The owner looks every 20 ms: give it many chances to be wrong, and somebody to give frames
    // to.
    while started.elapsed() < Duration::from_secs(1) {
        churn(&client, &owner, 5);
        assert_eq!(owner.info().draining_bytes, 8 * MIB);
    }
    let full = client.create("too large", 32 * MIB, FolioSize::BestFit).unwrap_err();
    let Error::Refused(Refusal::NoSpace { draining_bytes, .. }) = full else { panic!("{full}") };
    assert_eq!(draining_bytes, 8 * MIB, "the refusal says what is being waited for");
    reader.signal(Signal::CONT);
    assert_eq!(reader.ask("wanted"), "true");
    assert_eq!(reader.ask("verify"), "generation 77");
    reader.must("drop");
    let info = support::wait_for_info(&owner, "the frames are free", |i| i.draining_bytes == 0);
    assert_eq!(info.free_bytes, 32 * MIB);
}

#[test]
fn t5_a_drain_with_a_stuck_holder_names_it_and_ends_at_the_deadline() {
    let (owner, _directory, socket) = support::serving_owner(32 * MIB);
    let client = owner.client().unwrap();
    for (pin, kind, is_device) in [
        ("pin", HoldKind::Short, false),
        ("pin-longterm", HoldKind::Longterm, false),
        ("pin-device", HoldKind::Short, true),
    ] {
        put(&client, "held", 3, 8 * MIB);
        let mut holder = start(&socket);
        holder.must(&format!("{pin} held"));
        holder.signal(Signal::STOP);
        let started = Instant::now();
        let error = client.truncate("held", 100, Duration::from_millis(60)).unwrap_err();
        let elapsed = started.elapsed();
        let Error::Refused(Refusal::Held { holders, waited_ms, name }) = &error else {
            panic!("{error}")
        };
        assert!(*waited_ms >= 60 && elapsed < Duration::from_secs(5), "{waited_ms} {elapsed:?}");
        assert_eq!(name, "held");
        let found = &holders[0];
        assert_eq!((found.pid, found.kind, found.is_device), (holder.pid(), kind, is_device));
        assert!(found.nr_pages > 0 && error.to_string().contains(&holder.pid().to_string()));
        assert_eq!(error.errno(), 16);
        assert_eq!(client.stat("held").unwrap().len_bytes, 8 * MIB, "the file is as before");
        assert_eq!(generation(&client, "held"), 3);
        holder.signal(Signal::CONT);
        assert_eq!(holder.ask("verify"), "generation 3");
        drop(holder);
        client.truncate("held", 100, Duration::from_secs(10)).unwrap();
        client.unlink("held").unwrap();
    }
    support::wait_for_info(&owner, "all is free", |info| info.free_bytes == 32 * MIB);
}

#[test]
fn t14_a_holder_that_lets_go_ends_the_wait_at_once() {
    let (owner, _directory, socket) = support::serving_owner(32 * MIB);
    let client = owner.client().unwrap();
    put(&client, "held", 3, 8 * MIB);
    let mut holder = start(&socket);
    holder.must("pin held");
    std::thread::scope(|scope| {
        let started = Instant::now();
        let truncate = scope.spawn(|| client.truncate("held", 4096, Duration::from_secs(50)));
        support::wait_until("the holder sees that its frames are wanted", || {
            (holder.ask("wanted") == "true").then_some(())
        });
        assert_eq!(holder.ask("verify"), "generation 3");
        holder.must("drop");
        truncate.join().unwrap().unwrap();
        assert!(started.elapsed() < Duration::from_secs(40), "the bell was heard");
    });
    assert_eq!(holder.ask("stat held"), "4096 bytes");
}

#[test]
fn t11_an_unfinished_write_is_never_readable() {
    let (owner, _directory, socket) = support::serving_owner(32 * MIB);
    let client = owner.client().unwrap();
    let mut writer = start(&socket);
    writer.must("write new 2 1000000");
    let is_absent = |name: &str| {
        matches!(client.get(name), Err(Error::Refused(Refusal::NotFound { .. })))
            && client.stat(name).is_err()
            && client.list().unwrap().is_empty()
    };
    assert!(is_absent("new"));
    assert_eq!(writer.ask("get new").split(' ').nth(1), Some("2"), "not even by its writer");
    writer.kill();
    support::wait_for_info(&owner, "the draft is gone", |info| info.free_bytes == 32 * MIB);
    assert!(is_absent("new"));

    // In place of an old file: the old one is served until the new one is whole.
    put(&client, "old", 1, MIB);
    let spec = CreateSpec::named("old", MIB, FolioSize::BestFit).unwrap().replacing();
    let mut drafts = client.create_batch(vec![spec]).unwrap();
    let mut draft = drafts.pop().unwrap().unwrap();
    draft.write_all_at(0, &block::make(2, MIB as usize / 2)).unwrap();
    assert_eq!(generation(&client, "old"), 1);
    draft.write_all_at(0, &block::make(2, MIB as usize)).unwrap();
    assert_eq!(generation(&client, "old"), 1);
    draft.commit().unwrap();
    assert_eq!(generation(&client, "old"), 2);
}

#[test]
fn t12_a_reference_from_before_a_reuse_is_refused() {
    let (owner, _directory, socket) = support::serving_owner(4 * MIB);
    let client = owner.client().unwrap();
    put(&client, "a", 1, 3 * MIB);
    let mut reader = start(&socket);
    reader.must("open a");
    assert_eq!(reader.ask("pin-opened"), "generation 1");
    client.unlink("a").unwrap();
    // The same name, the same length, the same frames: the pool has no others.
    put(&client, "a", 2, 3 * MIB);
    assert_eq!(reader.ask("pin-opened").split(' ').nth(1), Some("116"), "ESTALE");
    assert_eq!(reader.ask("get a"), "generation 2");
    client.rename("a", "b", pgmap::Replace::No).unwrap();
    put(&client, "a", 3, MIB / 2);
    assert_eq!(reader.ask("pin-opened").split(' ').nth(1), Some("116"));
    reader.must("open b");
    client.truncate("b", 4096, Duration::from_secs(10)).unwrap();
    assert_eq!(reader.ask("pin-opened"), "generation 2", "a shortened file is the same file");
}

/// Cuts a process's connection to its owner, from outside; `None` where the system does not let it.
fn cut_connection(second: &Second, test: &str) -> Option<()> {
    let sockets = support::sockets_of(second.pid(), test)?;
    assert_eq!(sockets.len(), 1, "a client has one socket");
    rustix::net::shutdown(&sockets[0], rustix::net::Shutdown::Both).unwrap();
    Some(())
}

#[test]
fn t15_no_pin_is_taken_from_a_living_holder_even_without_its_connection() {
    let (owner, _directory, socket) = support::serving_owner(32 * MIB);
    let client = owner.client().unwrap();
    put(&client, "a", 8, 8 * MIB);
    let mut holder = start(&socket);
    holder.must("pin a");
    holder.must("write draft 9 1000000");
    let test = "t15_no_pin_is_taken_from_a_living_holder_even_without_its_connection";
    if cut_connection(&holder, test).is_none() {
        return;
    }
    for _ in 0..20 {
        let error = client.truncate("a", 100, Duration::from_millis(10)).unwrap_err();
        let Error::Refused(Refusal::Held { holders, .. }) = &error else { panic!("{error}") };
        assert_eq!(holders[0].pid, holder.pid());
    }
    client.unlink("a").unwrap();
    churn(&client, &owner, 4);
    assert_eq!(owner.info().nr_clients, 2, "it lives, so it stays");
    assert_eq!(holder.ask("verify"), "generation 8");
    // Letting go needs no connection either.
    holder.must("drop");
    support::wait_for_info(&owner, "the frames are free", |info| info.draining_bytes == 0);
    holder.kill();
    let info = support::wait_for_info(&owner, "it is reaped", |info| info.nr_clients == 1);
    support::assert_accounted(&info);
    assert_eq!(info.free_bytes, 32 * MIB);
}
