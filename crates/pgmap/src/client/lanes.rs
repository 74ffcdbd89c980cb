//! Which lane a thread pins in: found without a lock, given back when the thread ends.
//!
//! A thread keeps the lane it used last, so that its next pin costs nothing to begin. A client has
//! fewer lanes than it may have threads, so some are shared: a thread that comes when all others
//! are kept takes a shared one for the time of a pin (ADR 0043).

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Weak};
use std::time::Duration;

use pgmap_mm::error::PinError;
use pgmap_mm::extent::Extent;
use pgmap_mm::gup::GupError;
use pgmap_mm::ledger::Agent;
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::pin::{ClientSide, Lane, LaneParts, Pin, Pinner};
use pgmap_os::clock::Instant;

use crate::client::Inner;
use crate::client::side::ProcessSide;

/// Most lanes one thread takes of one client.
const MAX_LANES_PER_THREAD: usize = 64;

/// How long a thread waits for one of the shared lanes, each of which is in use for one pin at a
/// time.
const LANE_WAIT: Duration = Duration::from_secs(1);

thread_local! {
    /// The lane used last, ready for the next pin. Needs no destructor, so reaching it is cheap.
    static CURRENT: Cell<Option<LaneParts>> = const { Cell::new(None) };
    /// The thread's other lanes, and whose they are.
    static OTHERS: RefCell<Lanes> = const { RefCell::new(Lanes { lanes: Vec::new() }) };
}

#[derive(Debug)]
struct KnownLane {
    client: Weak<Inner>,
    identity: u64,
    /// `None` while it is the current one, or in use.
    parts: Option<LaneParts>,
}

#[derive(Default)]
struct Lanes {
    lanes: Vec<KnownLane>,
}

impl Drop for Lanes {
    fn drop(&mut self) {
        if let Some(parts) = CURRENT.take() {
            self.put_back(parts);
        }
        for owned in self.lanes.drain(..) {
            if let (Some(client), Some(parts)) = (owned.client.upgrade(), owned.parts) {
                // Dropping a lane gives it back.
                drop(Lane::from_parts(&client.pinner, parts));
            }
        }
    }
}

impl Lanes {
    fn put_back(&mut self, parts: LaneParts) {
        let place = self
            .lanes
            .iter_mut()
            .find(|owned| owned.identity == parts.identity() && owned.parts.is_none());
        if let Some(owned) = place {
            owned.parts = Some(parts);
        }
    }

    fn take(&mut self, client: &Arc<Inner>) -> Option<LaneParts> {
        self.lanes.retain(|owned| owned.client.strong_count() > 0);
        let identity = client.pinner.side().identity();
        let owned = self
            .lanes
            .iter_mut()
            .find(|owned| owned.identity == identity && owned.parts.is_some())?;
        owned.parts.take()
    }
}

/// A thread's lanes, taken out of it: threads of a simulation share one of the machine's.
#[cfg(feature = "sim")]
#[derive(Debug, Default)]
pub struct ThreadLanes {
    current: Option<LaneParts>,
    others: Vec<KnownLane>,
}

#[cfg(feature = "sim")]
impl ThreadLanes {
    /// Exchanges these with the calling thread's.
    pub fn exchange(&mut self) {
        self.current = CURRENT.replace(self.current.take());
        OTHERS.with_borrow_mut(|lanes| std::mem::swap(&mut lanes.lanes, &mut self.others));
    }

    /// The calling thread ends: gives back what it has.
    pub fn end() {
        drop(OTHERS.take());
    }
}

/// An error that may be a lane's.
pub(crate) trait LaneError: From<PinError> {
    /// Whether it says that the lane is full, so that another lane may do.
    fn is_lane_full(&self) -> bool;
}

impl LaneError for PinError {
    #[inline]
    fn is_lane_full(&self) -> bool {
        matches!(self, Self::LaneFull { .. })
    }
}

impl LaneError for GupError {
    #[inline]
    fn is_lane_full(&self) -> bool {
        matches!(self, Self::Hold(PinError::LaneFull { .. }))
    }
}

/// Pins `run` of `extent` in this thread's lane of `client`; in further lanes when that is full.
#[inline(always)]
pub(super) fn pin<'c>(
    client: &'c Arc<Inner>,
    extent: &Extent,
    run: PfnRange,
    agent: Agent,
) -> Result<Pin<'c, ProcessSide>, PinError> {
    with_lane(client, |lane| lane.pin(extent, run, agent))
}

/// Runs `hold` with this thread's lane of `client`; with further lanes when that is full.
///
/// Inlined, and the rest of this file is not: copying a pin from one stack frame to the next costs
/// more than taking it (pgmap-bench, `library pin`).
#[inline(always)]
pub(crate) fn with_lane<'c, T, E: LaneError>(
    client: &'c Arc<Inner>,
    hold: impl Fn(&Lane<'c, ProcessSide>) -> Result<T, E>,
) -> Result<T, E> {
    let Some(lane) = take_current(client) else { return without_current(client, &hold) };
    let result = hold(&lane);
    rest(lane.into_parts());
    match result {
        Err(error) if error.is_lane_full() => in_further_lanes(client, &hold),
        result => result,
    }
}

/// Takes this thread's current lane, if it is one of `client`; it must come back through [`rest`].
#[inline(always)]
pub(crate) fn take_current(client: &Arc<Inner>) -> Option<Lane<'_, ProcessSide>> {
    match Lane::from_parts(&client.pinner, CURRENT.take()?) {
        Ok(lane) => Some(lane),
        Err(parts) => {
            put_aside(parts);
            None
        }
    }
}

/// Makes a lane the current one. Another may be by now: what held pages may have faulted, and so
/// have pinned, itself.
#[inline(always)]
pub(crate) fn rest(parts: LaneParts) {
    if let Some(other) = CURRENT.replace(Some(parts)) {
        put_aside(other);
    }
}

/// The current lane is another client's.
#[cold]
#[inline(never)]
fn put_aside(parts: LaneParts) {
    OTHERS.with_borrow_mut(|lanes| lanes.put_back(parts));
}

#[cold]
#[inline(never)]
fn without_current<'c, T, E: LaneError>(
    client: &'c Arc<Inner>,
    hold: &impl Fn(&Lane<'c, ProcessSide>) -> Result<T, E>,
) -> Result<T, E> {
    match in_other_lane(client, hold) {
        Err(error) if error.is_lane_full() => in_further_lanes(client, hold),
        result => result,
    }
}

#[cold]
#[inline(never)]
fn in_other_lane<'c, T, E: LaneError>(
    client: &'c Arc<Inner>,
    hold: &impl Fn(&Lane<'c, ProcessSide>) -> Result<T, E>,
) -> Result<T, E> {
    let lane = other_lane(client)?;
    let result = hold(&lane);
    settle(lane);
    result
}

/// Another lane of this thread, else one that nobody has.
fn other_lane(client: &Arc<Inner>) -> Result<Lane<'_, ProcessSide>, PinError> {
    // A thread at its end has no others any more.
    let known = OTHERS.try_with(|lanes| lanes.borrow_mut().take(client)).ok().flatten();
    if let Some(Ok(lane)) = known.map(|parts| Lane::from_parts(&client.pinner, parts)) {
        return Ok(lane);
    }
    let lane = claim(&client.pinner)?;
    if !lane.is_shared() {
        let known = KnownLane {
            client: Arc::downgrade(client),
            identity: client.pinner.side().identity(),
            parts: None,
        };
        // At its end the thread keeps no lane: see `is_kept`.
        let _kept = OTHERS.try_with(|lanes| lanes.borrow_mut().lanes.push(known));
    }
    Ok(lane)
}

/// Takes a lane that nobody has, waiting a while for one of those that are shared.
pub(crate) fn claim(pinner: &Pinner<ProcessSide>) -> Result<Lane<'_, ProcessSide>, PinError> {
    let start = Instant::now();
    loop {
        match pinner.lane() {
            Err(PinError::NoLane { .. }) if start.elapsed() < LANE_WAIT => {
                pgmap_os::thread::yield_now();
            }
            result => return result,
        }
    }
}

/// Makes a lane the current one if the thread keeps it, else gives it back.
fn settle(lane: Lane<'_, ProcessSide>) {
    if is_kept(&lane) {
        rest(lane.into_parts());
    }
}

/// Whether the thread keeps the lane for its next pins: it is not shared, and the thread is not at
/// its end.
fn is_kept(lane: &Lane<'_, ProcessSide>) -> bool {
    !lane.is_shared() && OTHERS.try_with(|_| ()).is_ok()
}

/// The current lane is full: tries the thread's other lanes, then those that nobody has.
#[cold]
#[inline(never)]
fn in_further_lanes<'c, T, E: LaneError>(
    client: &'c Arc<Inner>,
    hold: &impl Fn(&Lane<'c, ProcessSide>) -> Result<T, E>,
) -> Result<T, E> {
    let mut full = Vec::new();
    let result = loop {
        let next = match take_current(client) {
            Some(lane) => Ok(lane),
            None => other_lane(client),
        };
        let lane = match next {
            Ok(lane) => lane,
            Err(error) => break Err(error.into()),
        };
        let result = hold(&lane);
        if full.len() == MAX_LANES_PER_THREAD || !result.as_ref().is_err_and(E::is_lane_full) {
            settle(lane);
            break result;
        }
        // Taken until another one did, so that it is not found again.
        full.push(lane);
    };
    for lane in full.into_iter().filter(is_kept) {
        put_aside(lane.into_parts());
    }
    result
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use crate::space::AddressSpace;
    use crate::{Client, FolioSize, Owner, Pool, PoolOptions};
    use pgmap_mm::mm::Placed;
    use pgmap_mm::prot::Prot;

    const PAGE: u64 = 4096;

    fn owner_of_one_file() -> (Owner, Client) {
        let owner = Owner::start(Pool::create(&PoolOptions::anonymous(4 << 20)).unwrap()).unwrap();
        let client = owner.client().unwrap();
        client.create("a", PAGE, FolioSize::Pages4K).unwrap().commit().unwrap();
        (owner, client)
    }

    fn nr_free_lanes(client: &Client) -> usize {
        let lanes = || client.inner.pinner.lane().ok();
        std::iter::from_fn(lanes).collect::<Vec<_>>().len()
    }

    /// Lanes that stayed taken were a slow leak: with shared ones nothing fails because of it.
    #[test]
    fn a_thread_that_ends_gives_its_lane_back() {
        let (_owner, client) = owner_of_one_file();
        let nr_lanes = nr_free_lanes(&client);
        let gate = Barrier::new(8);
        std::thread::scope(|scope| {
            let live = || {
                drop(client.get("a").unwrap());
                gate.wait();
                if gate.wait().is_leader() {
                    assert_eq!(nr_free_lanes(&client), nr_lanes - 8, "one each while they live");
                }
                gate.wait();
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(live)).collect();
            // The end of a scope does not wait for the destructors of a thread's own values; a join
            // does.
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
        assert_eq!(nr_free_lanes(&client), nr_lanes);
    }

    #[test]
    fn an_address_space_that_is_closed_gives_its_lanes_back() {
        let (_owner, client) = owner_of_one_file();
        let nr_lanes = nr_free_lanes(&client);
        let space = AddressSpace::for_process(&client, 1 << 30).unwrap();
        let file = client.open("a").unwrap();
        let at = space.map(&file, 0, PAGE, Placed::Anywhere, Prot::READ).unwrap();
        space.populate(at, PAGE).unwrap();
        assert!(nr_free_lanes(&client) < nr_lanes, "the mapping is a hold");
        drop(space);
        assert_eq!(nr_free_lanes(&client), nr_lanes);
    }
}
