//! What becomes of files.

// UNSAFETY: functions that C calls.
#![allow(unsafe_code, non_camel_case_types)]

use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use pgmap::{FileChange, SubscribeOptions, Subscription};

use crate::arguments::{bytes, ended, made, object};
use crate::failure::answer;
use crate::pool::pgmap_pool;

/// A file was committed under the name, or got it by a rename.
pub const PGMAP_CREATED: u32 = 1;
/// The name was taken away: unlinked, replaced, or given up for another.
pub const PGMAP_REMOVED: u32 = 2;
/// The owner removed the file to make room.
pub const PGMAP_EVICTED: u32 = 3;
/// A file was removed or evicted, and nobody holds any of its memory now.
pub const PGMAP_DRAINED: u32 = 4;

/// Most bytes of a name.
const NAME_BYTES: usize = 255;

/// What became of a file.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct pgmap_event {
    /// `PGMAP_CREATED` and so on; 0 for a change that this version does not know.
    pub change: u32,
    /// Bytes of the name.
    pub name_len: u32,
    /// The name, with a NUL after it.
    pub name: [u8; 256],
    /// The file's number.
    pub id: u64,
    /// The file's length in bytes.
    pub len_bytes: u64,
    /// The number of the event, counted from 1 in each subscription.
    pub sequence: u64,
    /// How many events just before it were lost, because nobody read them.
    pub nr_missed: u64,
}

/// A subscription to what becomes of files.
pub struct pgmap_events {
    subscription: Subscription,
}

/// Follows the files whose names begin with `prefix`; all of them if `prefix_len` is 0.
///
/// # Safety
/// `pool` is connected; `prefix` has `prefix_len` bytes; `events` has room for an address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_subscribe(
    pool: *mut pgmap_pool,
    prefix: *const c_void,
    prefix_len: usize,
    events: *mut *mut pgmap_events,
) -> c_int {
    answer(|| {
        // SAFETY: `pool` is null or connected, by the caller's contract.
        let pool = unsafe { object(pool, "pool") }?;
        // SAFETY: `prefix` is null or has `prefix_len` bytes, by the caller's contract.
        let prefix = unsafe { bytes(prefix, prefix_len, "prefix") }?;
        let subscription = pool.client.subscribe(&SubscribeOptions::new().prefix(prefix))?;
        // SAFETY: `events` is null or has room for an address, by the caller's contract.
        unsafe { made(events, pgmap_events { subscription }) }?;
        Ok(0)
    })
}

/// A descriptor that is readable when there may be an event: for poll, and never to be read from or
/// closed. Take events until there are no more: one message may bring several.
///
/// # Safety
/// `events` is subscribed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_events_fd(events: *mut pgmap_events) -> c_int {
    answer(|| {
        // SAFETY: `events` is null or subscribed, by the caller's contract.
        Ok(unsafe { object(events, "subscription") }?.subscription.as_fd().as_raw_fd())
    })
}

/// The next event, waiting up to `timeout_ms` for it: 1 if there is one, 0 if not. `-ESHUTDOWN`
/// when the owner has ended.
///
/// # Safety
/// `events` is subscribed; `event` has room for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_events_next(
    events: *mut pgmap_events,
    timeout_ms: u32,
    event: *mut pgmap_event,
) -> c_int {
    answer(|| {
        // SAFETY: `events` is null or subscribed, by the caller's contract.
        let events = unsafe { object(events, "subscription") }?;
        // SAFETY: `event` is null or has room for one value, by the caller's contract.
        let target = unsafe { object(event, "event") }?;
        let timeout = Duration::from_millis(timeout_ms.into());
        let Some(notice) = events.subscription.next(timeout)? else { return Ok(0) };
        let name = notice.event.name.as_bytes();
        let name = &name[..name.len().min(NAME_BYTES)];
        let mut padded = [0; 256];
        padded[..name.len()].copy_from_slice(name);
        *target = pgmap_event {
            change: match notice.event.change {
                FileChange::Created => PGMAP_CREATED,
                FileChange::Removed => PGMAP_REMOVED,
                FileChange::Evicted => PGMAP_EVICTED,
                FileChange::Drained => PGMAP_DRAINED,
                _ => 0,
            },
            name_len: name.len() as u32,
            name: padded,
            id: notice.event.id,
            len_bytes: notice.event.len_bytes,
            sequence: notice.event.sequence,
            nr_missed: notice.nr_missed,
        };
        Ok(1)
    })
}

/// Ends the subscription. Null is ignored.
///
/// # Safety
/// `events` is null or subscribed, and is not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_unsubscribe(events: *mut pgmap_events) {
    answer(|| {
        // SAFETY: `events` is null or subscribed, and not used any more, by the caller's contract.
        drop(unsafe { ended(events) });
        Ok(0)
    });
}
