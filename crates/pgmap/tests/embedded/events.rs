//! Waiting for events: whoever waits is woken by what concerns it, and holds nobody else up.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::mapper_role::map;
use crate::support::{self, SetOnDrop, block};
use pgmap::mm::gup::GupFlags;
use pgmap::mm::mm::{AckToken, EndedRange, InvalidateSubscriber, Placed};
use pgmap::mm::prot::Prot;
use pgmap::space::AddressSpace;
use pgmap::{Client, Error, Event, Owner, Pool, PoolOptions};

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const WAIT: Duration = Duration::from_secs(10);

fn put(client: &Client, name: &str, nr_pages: u64) {
    support::put(client, name, &block::make(1, (nr_pages * PAGE) as usize)).unwrap();
}

fn owner() -> Owner {
    Owner::start(Pool::create(&PoolOptions::anonymous(16 * MIB)).unwrap()).unwrap()
}

/// An interruption was one flag for whoever waited, and the program took the keeper's: dropping the
/// address space then waited for the keeper's next turn, a minute later.
#[test]
fn a_program_that_waits_for_events_does_not_hold_up_the_end_of_an_address_space() {
    const NR_SPACES: usize = 30;
    let (owner, _place, socket) = support::serving_owner(16 * MIB);
    for client in [owner.client().unwrap(), Client::connect(&socket).unwrap()] {
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _over = SetOnDrop(&is_over);
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    client.next_event(Duration::from_millis(500)).unwrap();
                }
            });
            for _ in 0..NR_SPACES {
                let space = AddressSpace::for_process(&client, GIB).unwrap();
                std::thread::sleep(Duration::from_millis(3));
                let start = Instant::now();
                drop(space);
                assert!(start.elapsed() < WAIT, "{:?}", start.elapsed());
            }
        });
    }
}

#[test]
fn a_wait_without_end_ends_with_an_event() {
    let (owner, _place, socket) = support::serving_owner(16 * MIB);
    let other = owner.client().unwrap();
    for (name, client) in [("a", owner.client().unwrap()), ("b", Client::connect(&socket).unwrap())]
    {
        put(&other, name, 4);
        let pin = client.get(name).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| client.next_event(Duration::MAX).unwrap());
            other.unlink(name).unwrap();
            assert!(matches!(waiter.join().unwrap(), Some(Event::ReclaimRequested { .. })));
        });
        drop(pin);
    }
}

/// A wait without time ended before it looked at the connection: a program that polled heard of
/// nothing until its next call.
#[test]
fn who_does_not_wait_hears_what_is_there() {
    let (owner, _place, socket) = support::serving_owner(16 * MIB);
    let other = owner.client().unwrap();
    put(&other, "a", 4);
    let client = Client::connect(&socket).unwrap();
    let pin = client.get("a").unwrap();
    other.unlink("a").unwrap();
    let start = Instant::now();
    let event = loop {
        match client.next_event(Duration::ZERO).unwrap() {
            Some(event) => break event,
            None => assert!(start.elapsed() < WAIT, "nothing was heard"),
        }
    };
    assert!(matches!(event, Event::ReclaimRequested { nr_pages: 4, .. }), "{event:?}");
    drop(pin);
}

#[test]
fn a_wait_for_an_owner_of_this_process_that_stopped_says_so() {
    let owner = owner();
    let client = owner.client().unwrap();
    drop(owner);
    assert!(matches!(client.next_event(WAIT), Err(Error::OwnerGone { .. })));
}

/// It was refused as "the owner is stopping", which says that nothing was changed; but an owner
/// that has no room to put on record that a cut is called off leaves it done.
#[test]
fn a_cut_that_its_owners_end_interrupts_is_not_said_to_be_refused() {
    let owner = owner();
    let (cutter, holder) = (owner.client().unwrap(), owner.client().unwrap());
    put(&holder, "a", 4);
    let pin = holder.get("a").unwrap();
    std::thread::scope(|scope| {
        let cut = scope.spawn(|| cutter.truncate("a", PAGE, Duration::from_secs(60)));
        let start = Instant::now();
        while owner.info().draining_bytes == 0 {
            assert!(start.elapsed() < WAIT, "nothing drains");
            std::thread::yield_now();
        }
        drop(owner);
        let error = cut.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::OwnerGone { .. }), "{error}");
    });
    drop(pin);
}

#[derive(Debug, Default)]
struct Iotlb {
    nr_told: AtomicUsize,
    ended: Mutex<Vec<EndedRange>>,
}

impl InvalidateSubscriber for Iotlb {
    fn ended(&self, ranges: &[EndedRange], token: AckToken) {
        self.ended.lock().unwrap().extend(ranges);
        self.nr_told.fetch_add(1, Ordering::SeqCst);
        token.acknowledge();
    }
}

/// What a file loses changes the life word of all that it keeps of the extent, too.
#[test]
fn what_a_process_keeps_stays_mapped_while_somebody_caches() {
    let owner = owner();
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    put(&client, "a", 16);
    let space = AddressSpace::for_process(&client, GIB).unwrap();
    let at = map(&space, "a", Placed::Anywhere, Prot::READ_WRITE);
    let iotlb = Arc::new(Iotlb::default());
    space.on_invalidate(iotlb.clone());
    other.truncate("a", 8 * PAGE, Duration::from_secs(10)).unwrap();
    support::wait_until("the subscriber is notified", || {
        (iotlb.nr_told.load(Ordering::SeqCst) > 0).then_some(())
    });
    // Two of the keeper's looks at what nobody holds.
    std::thread::sleep(Duration::from_millis(50));
    let lost = EndedRange { address: at + 8 * PAGE, len_bytes: 8 * PAGE };
    assert_eq!(*iotlb.ended.lock().unwrap(), [lost]);
    assert!(space.mm().translate(at + 7 * PAGE).is_some());
}

/// Asks for another address space's keeper when it is notified.
#[derive(Debug)]
struct Maker(Client, Mutex<Option<AddressSpace>>);

impl InvalidateSubscriber for Maker {
    fn ended(&self, _: &[EndedRange], token: AckToken) {
        *self.1.lock().unwrap() = Some(AddressSpace::for_process(&self.0, GIB).unwrap());
        token.acknowledge();
    }
}

#[test]
fn a_subscriber_may_make_an_address_space_while_another_one_ends() {
    let owner = owner();
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    put(&client, "a", 4);
    let space = AddressSpace::for_device(&client, 0, GIB).unwrap();
    map(&space, "a", Placed::At(0), Prot::READ_WRITE);
    let maker = Arc::new(Maker(client.clone(), Mutex::default()));
    space.on_invalidate(maker.clone());
    let pinned = space.pin(0, 4, GupFlags::NONE).unwrap();
    other.unlink("a").unwrap();
    drop(pinned);
    drop(space);
    support::wait_until("the subscriber is notified, or will never be", || {
        (Arc::strong_count(&maker) == 1).then_some(())
    });
}

thread_local! {
    static AT_END: AtEnd = const { AtEnd(RefCell::new(None)) };
}

/// Pins when its thread ends.
struct AtEnd(RefCell<Option<Client>>);

impl Drop for AtEnd {
    fn drop(&mut self) {
        if let Some(client) = self.0.take() {
            assert_eq!(client.get("a").unwrap().len_bytes(), 4 * PAGE);
        }
    }
}

#[test]
fn a_thread_may_pin_in_the_destructors_of_its_end() {
    let owner = owner();
    let client = owner.client().unwrap();
    put(&client, "a", 4);
    let leave = || AT_END.with(|at_end| at_end.0.replace(Some(client.clone())));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            leave();
            drop(client.get("a").unwrap());
        });
        scope.spawn(|| {
            drop(client.get("a").unwrap());
            leave();
        });
    });
}
