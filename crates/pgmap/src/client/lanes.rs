//! Which lane a thread pins in: found without a lock, given back when the thread ends.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Weak};

use pgmap_mm::error::PinError;
use pgmap_mm::extent::Extent;
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

/// Pins `run` of `extent` in this thread's lane of `client`; in further lanes when that is full.
///
/// Inlined, and the rest of this file is not: copying a pin from one stack frame to the next costs
/// more than taking it (pgmap-bench, `library pin`).
#[inline(always)]
pub(super) fn pin<'c>(
    client: &'c Arc<Inner>,
    extent: &Extent,
    run: PfnRange,
    agent: Agent,
) -> Result<Pin<'c, ProcessSide>, PinError> {
    let Some(parts) = CURRENT.take() else { return without_current(client, extent, run, agent) };
    let lane = match Lane::from_parts(&client.pinner, parts) {
        Ok(lane) => lane,
        Err(parts) => {
            put_aside(parts);
            return without_current(client, extent, run, agent);
        }
    };
    let result = lane.pin(extent, run, agent);
    CURRENT.set(Some(lane.into_parts()));
    match result {
        Err(PinError::LaneFull { .. }) => in_further_lanes(client, extent, run, agent),
        result => result,
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
fn without_current<'c>(
    client: &'c Arc<Inner>,
    extent: &Extent,
    run: PfnRange,
    agent: Agent,
) -> Result<Pin<'c, ProcessSide>, PinError> {
    match in_other_lane(client, extent, run, agent) {
        Err(PinError::LaneFull { .. }) => in_further_lanes(client, extent, run, agent),
        result => result,
    }
}

#[cold]
#[inline(never)]
fn in_other_lane<'c>(
    client: &'c Arc<Inner>,
    extent: &Extent,
    run: PfnRange,
    agent: Agent,
) -> Result<Pin<'c, ProcessSide>, PinError> {
    let known = OTHERS.with_borrow_mut(|lanes| lanes.take(client));
    let lane = match known.map(|parts| Lane::from_parts(&client.pinner, parts)) {
        Some(Ok(lane)) => lane,
        _ => new_lane(client)?,
    };
    let result = lane.pin(extent, run, agent);
    CURRENT.set(Some(lane.into_parts()));
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
fn in_further_lanes<'c>(
    client: &'c Arc<Inner>,
    extent: &Extent,
    run: PfnRange,
    agent: Agent,
) -> Result<Pin<'c, ProcessSide>, PinError> {
    let identity = client.pinner.side().identity();
    let nr_lanes = OTHERS.with_borrow(|lanes| lanes.nr_of(identity));
    let mut full = Vec::new();
    let mut result = Err(PinError::NoLane { nr_lanes });
    while full.len() <= nr_lanes && full.len() < MAX_LANES_PER_THREAD {
        full.extend(CURRENT.take());
        result = in_other_lane(client, extent, run, agent);
        if !matches!(result, Err(PinError::LaneFull { .. })) {
            break;
        }
    }
    OTHERS.with_borrow_mut(|lanes| full.into_iter().for_each(|parts| lanes.put_back(parts)));
    result
}
