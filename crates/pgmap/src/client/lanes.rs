//! Which lane a thread pins in: found without a lock, given back when the thread ends.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Weak};

use pgmap_mm::error::PinError;
use pgmap_mm::extent::Extent;
use pgmap_mm::gup::GupError;
use pgmap_mm::ledger::Agent;
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::pin::{ClientSide, Lane, LaneParts, Pin};

use crate::client::Inner;
use crate::client::side::ProcessSide;

/// Most lanes one thread takes of one client; each holds as many pins as a lane has slots.
const MAX_LANES_PER_THREAD: usize = 64;

thread_local! {
    /// The lane used last, ready for the next pin. Needs no destructor, so reaching it is cheap.
    static CURRENT: Cell<Option<LaneParts>> = const { Cell::new(None) };
    /// The thread's other lanes, and whose they are.
    static OTHERS: RefCell<Lanes> = const { RefCell::new(Lanes { lanes: Vec::new() }) };
}

struct Owned {
    client: Weak<Inner>,
    identity: u64,
    /// None while it is the current one.
    parts: Option<LaneParts>,
}

struct Lanes {
    lanes: Vec<Owned>,
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

    fn nr_of(&self, identity: u64) -> usize {
        self.lanes.iter().filter(|owned| owned.identity == identity).count()
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

/// Makes a lane the current one. Another may be by now: what held pages may have faulted, and so have
/// pinned, itself.
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
    let Ok(known) = OTHERS.try_with(|lanes| lanes.borrow_mut().take(client)) else {
        // The thread is at its end and keeps no lanes any more.
        return hold(&client.pinner.lane()?);
    };
    let lane = match known.map(|parts| Lane::from_parts(&client.pinner, parts)) {
        Some(Ok(lane)) => lane,
        _ => new_lane(client)?,
    };
    let result = hold(&lane);
    rest(lane.into_parts());
    result
}

fn new_lane(client: &Arc<Inner>) -> Result<Lane<'_, ProcessSide>, PinError> {
    let lane = client.pinner.lane()?;
    OTHERS.with_borrow_mut(|lanes| {
        lanes.lanes.push(Owned {
            client: Arc::downgrade(client),
            identity: client.pinner.side().identity(),
            parts: None,
        });
    });
    Ok(lane)
}

/// The current lane is full: tries the thread's other lanes, then a new one.
#[cold]
#[inline(never)]
fn in_further_lanes<'c, T, E: LaneError>(
    client: &'c Arc<Inner>,
    hold: &impl Fn(&Lane<'c, ProcessSide>) -> Result<T, E>,
) -> Result<T, E> {
    let identity = client.pinner.side().identity();
    let nr_lanes = OTHERS.with_borrow(|lanes| lanes.nr_of(identity));
    let mut full = Vec::new();
    let mut result = Err(PinError::NoLane { nr_lanes }.into());
    while full.len() <= nr_lanes && full.len() < MAX_LANES_PER_THREAD {
        full.extend(CURRENT.take());
        result = in_other_lane(client, hold);
        if !result.as_ref().is_err_and(E::is_lane_full) {
            break;
        }
    }
    OTHERS.with_borrow_mut(|lanes| full.into_iter().for_each(|parts| lanes.put_back(parts)));
    result
}
