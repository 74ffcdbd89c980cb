//! Which lane a thread pins in by address: found without a lock, given back when the thread ends.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use pgmap_mm::error::PinError;
use pgmap_mm::gup::GupError;
use pgmap_mm::pin::{ClientSide, Lane, LaneParts};

use crate::client::Inner;
use crate::client::side::ProcessSide;

/// Most lanes one thread takes of one client; each holds as many pins as a lane has slots.
const MAX_LANES_PER_THREAD: usize = 16;

thread_local! {
    static LANES: RefCell<Lanes> = const { RefCell::new(Lanes { owned: Vec::new() }) };
}

/// A lane that rests between two calls, and whose it is.
struct Owned {
    client: Weak<Inner>,
    parts: LaneParts,
}

/// The lanes of one thread; the one used last is last.
struct Lanes {
    owned: Vec<Owned>,
}

impl Drop for Lanes {
    fn drop(&mut self) {
        for owned in self.owned.drain(..) {
            if let Some(client) = owned.client.upgrade() {
                // Dropping a lane gives it back.
                drop(Lane::from_parts(&client.pinner, owned.parts));
            }
        }
    }
}

impl Lanes {
    fn take(&mut self, identity: u64) -> Option<Owned> {
        let place = self.owned.iter().rposition(|owned| owned.parts.identity() == identity)?;
        Some(self.owned.remove(place))
    }

    fn put(&mut self, owned: Owned) {
        // What a client that is gone left behind goes here, when the list would grow.
        if self.owned.len() == self.owned.capacity() {
            self.owned.retain(|owned| owned.client.strong_count() > 0);
        }
        self.owned.push(owned);
    }
}

/// Runs `pin` with a lane of this thread; with further ones while those are full.
#[inline]
pub(super) fn with_lane<'c, T>(
    client: &'c Arc<Inner>,
    pin: impl Fn(&Lane<'c, ProcessSide>) -> Result<T, GupError>,
) -> Result<T, GupError> {
    let (lane, owner) = take_or_new(client)?;
    let result = pin(&lane);
    if !matches!(result, Err(GupError::Hold(PinError::LaneFull { .. }))) {
        give_back(lane, owner);
        return result;
    }
    in_further_lanes(client, &pin, (lane, owner), result)
}

#[inline]
fn take_or_new(client: &Arc<Inner>) -> Result<(Lane<'_, ProcessSide>, Weak<Inner>), GupError> {
    let identity = client.pinner.side().identity();
    let known = LANES.with_borrow_mut(|lanes| lanes.take(identity));
    if let Some(owned) = known
        && let Ok(lane) = Lane::from_parts(&client.pinner, owned.parts)
    {
        return Ok((lane, owned.client));
    }
    let lane = client.pinner.lane().map_err(GupError::Hold)?;
    Ok((lane, Arc::downgrade(client)))
}

#[inline]
fn give_back(lane: Lane<'_, ProcessSide>, client: Weak<Inner>) {
    LANES.with_borrow_mut(|lanes| lanes.put(Owned { client, parts: lane.into_parts() }));
}

/// The lane is full: tries the thread's other lanes, then new ones.
#[cold]
fn in_further_lanes<'c, T>(
    client: &'c Arc<Inner>,
    pin: &impl Fn(&Lane<'c, ProcessSide>) -> Result<T, GupError>,
    first: (Lane<'c, ProcessSide>, Weak<Inner>),
    mut result: Result<T, GupError>,
) -> Result<T, GupError> {
    let mut lanes = vec![first];
    while lanes.len() < MAX_LANES_PER_THREAD
        && matches!(result, Err(GupError::Hold(PinError::LaneFull { .. })))
    {
        match take_or_new(client) {
            Ok(next) => {
                result = pin(&next.0);
                lanes.push(next);
            }
            Err(error) => {
                result = Err(error);
                break;
            }
        }
    }
    // The one with room last, where the next call looks first.
    for (lane, owner) in lanes {
        give_back(lane, owner);
    }
    result
}
