//! Clients that attached read-only: they read as any other, and change nothing.

// UNSAFETY: a store to memory that must refuse it, and mprotect of it, are the subject.
#![allow(unsafe_code)]

use std::time::Duration;

use pgmap::mm::prot::Prot;
use pgmap::quota::{QuotaLimits, QuotaOf};
use pgmap::{
    Access, AddressSpace, Agent, BackingOptions, Client, ConnectOptions, CreateSpec, Error,
    FileName, FolioSize, Owner, Placed, Placement, Pool, PoolOptions, Refusal, Replace,
};

use crate::support::{self, Second, block, serving_owner, wait_until};

const MIB: u64 = 1 << 20;
const POOL_BYTES: u64 = 32 * MIB;

#[test]
fn child_entry() {
    if let Some((role, place)) = support::role()
        && role == "storer"
    {
        let client = Client::connect_with(&place, &ConnectOptions::new().read_only()).unwrap();
        let pin = client.get("a").unwrap();
        let at = pin.segments().next().unwrap().ptr;
        support::say("ok");
        for _ in support::commands() {
            // Nobody is asked: the processor says no.
            // SAFETY: the byte is mapped as long as the pin is there. That it cannot be written is
            // what is tried: the process ends here.
            unsafe { at.write_volatile(1) };
            support::say("stored");
        }
    }
    support::owner_role::run_if_asked(POOL_BYTES);
}

/// The error number of asking for write access to a mapping.
fn make_writable(at: *mut u8, len: usize) -> i32 {
    // SAFETY: the range is mapped, and nobody relies on its protection but this test.
    let done = unsafe { libc::mprotect(at.cast(), len, libc::PROT_READ | libc::PROT_WRITE) };
    match done {
        0 => 0,
        _ => std::io::Error::last_os_error().raw_os_error().unwrap_or(-1),
    }
}

fn reader(socket: &std::path::Path) -> Client {
    Client::connect_with(socket, &ConnectOptions::new().read_only().label("reader")).unwrap()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Error>) {
    let is_refused = matches!(result, Err(Error::Refused(Refusal::ReadOnlyClient { .. })));
    assert!(is_refused, "{result:?}");
}

#[test]
fn a_reader_reads_and_holds_and_every_change_is_refused() {
    let (_owner, _place, socket) = serving_owner(POOL_BYTES);
    let writer = Client::connect(&socket).unwrap();
    support::put(&writer, "a", &block::make(3, MIB as usize)).unwrap();
    let client = reader(&socket);
    assert!(client.is_read_only() && !writer.is_read_only());
    let pin = client.get("a").unwrap();
    assert_eq!(block::check(&pin.to_vec().unwrap()), Ok(3));
    let file = client.open("a").unwrap();
    drop(file.pin_longterm(0..4096).unwrap());
    drop(file.lease(0..4096, Agent::Cpu, Access::Read).unwrap());
    refused(file.lease(0..4096, Agent::Cpu, Access::Write));
    refused(client.create("b", MIB, FolioSize::BestFit));
    refused(client.unlink("a"));
    refused(client.rename("a", "b", Replace::No));
    refused(client.truncate("a", 0, Duration::from_millis(100)));
    refused(client.punch("a", 0..4096, Duration::from_millis(100)));
    refused(client.grow(MIB));
    refused(client.set_quota(QuotaOf::Uid(0), QuotaLimits::new().files(1)));
    let said = client.unlink("a").unwrap_err();
    let expected = "unlink: this client attached read-only; attach another one that may write";
    assert_eq!((said.to_string().as_str(), said.errno()), (expected, 30));
    // It is listed as what it is.
    assert_eq!(client.stat("a").unwrap().len_bytes, MIB);
    let holders = writer.who("a").unwrap().holders;
    assert!(holders.iter().all(|holder| holder.is_read_only && holder.label == "reader"));
    assert_eq!(holders.len(), 1, "{holders:?}");
    let stat = client.pool_stat().unwrap();
    assert_eq!((stat.nr_clients, stat.nr_read_only_clients), (2, 1));
    // Its pins hold as any other's.
    writer.unlink("a").unwrap();
    assert_eq!(writer.pool_stat().unwrap().draining_bytes, MIB);
    assert_eq!(block::check(&pin.to_vec().unwrap()), Ok(3));
    drop(pin);
    wait_until("it is free", || (writer.pool_stat().unwrap().draining_bytes == 0).then_some(()));
}

#[test]
fn nothing_of_the_pool_can_be_written_through_what_a_reader_was_handed() {
    let (_owner, _place, socket) = serving_owner(POOL_BYTES);
    let writer = Client::connect(&socket).unwrap();
    support::put(&writer, "a", &block::make(3, 2 * MIB as usize)).unwrap();
    // An address space of it maps for reading alone.
    let client = reader(&socket);
    let space = AddressSpace::for_process(&client, 64 * MIB).unwrap();
    let file = client.open("a").unwrap();
    assert!(space.map(&file, 0, MIB, Placed::Anywhere, Prot::READ_WRITE).is_err());
    let at = space.map(&file, 0, MIB, Placed::Anywhere, Prot::READ).unwrap();
    let mut bytes = vec![0; MIB as usize];
    space.read_at(at, &mut bytes).unwrap();
    assert!(space.write_at(at, &[1]).is_err());
    // Nor can the mapping be made writable: its descriptor is not.
    let (pool, len) = client.pool_address();
    assert_eq!(make_writable(pool, len), libc::EACCES);
    let (pool, len) = writer.pool_address();
    assert_eq!(make_writable(pool, len), 0);
    // A store is the end of who tries.
    let mut storer = Second::ready("storer", &socket);
    storer.tell("store");
    let status = storer.end();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(11), "{status}");
    assert_eq!(block::check(&writer.get("a").unwrap().to_vec().unwrap()), Ok(3));
}

#[test]
fn what_lies_on_a_further_backing_is_for_reading_too() {
    let directory = support::roomy();
    let place = directory.path();
    let options = PoolOptions::in_directory(place.join("pool"), 8 * MIB).room(4 << 30);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    owner.serve(place.join("s")).unwrap();
    let writer = Client::connect(place.join("s")).unwrap();
    // One that comes before the backing does, and one that comes after.
    let early = reader(&place.join("s"));
    owner.add_backing(&BackingOptions::on(place.join("far")).size(4 * MIB)).unwrap();
    let name = FileName::new("a").unwrap();
    let mut spec = CreateSpec::new(name, MIB, FolioSize::BestFit);
    spec.placement = Placement::Only(vec!["far".into()]);
    let put = writer.put_batch(vec![(spec, &block::make(4, MIB as usize)[..])]).unwrap();
    put.into_iter().for_each(Result::unwrap);
    for client in [early, reader(&place.join("s"))] {
        let pin = client.get("a").unwrap();
        assert_eq!(block::check(&pin.to_vec().unwrap()), Ok(4));
        let at = pin.segments().next().unwrap().ptr;
        assert_eq!(make_writable(at, MIB as usize), libc::EACCES);
    }
}

#[test]
fn a_reader_is_one_also_after_a_restart_of_the_owner() {
    let directory = support::roomy();
    let place = directory.path();
    let mut owner = Second::ready("create", place);
    let writer = Client::connect(place.join("s")).unwrap();
    support::put(&writer, "a", &block::make(5, MIB as usize)).unwrap();
    let client = reader(&place.join("s"));
    owner.kill();
    let _second = Second::ready("open", place);
    assert_eq!(client.pool_stat().unwrap().nr_clients, 2);
    refused(client.unlink("a"));
    assert_eq!(client.pool_stat().unwrap().nr_read_only_clients, 1);
    assert_eq!(block::check(&client.get("a").unwrap().to_vec().unwrap()), Ok(5));
    writer.unlink("a").unwrap();
}
