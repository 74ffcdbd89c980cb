//! The pinned bytes of a file.

// UNSAFETY: functions that C calls.
#![allow(unsafe_code, non_camel_case_types)]

use std::ffi::{c_int, c_void};

use pgmap::{OwnedPin, Segment};

use crate::arguments::{bytes, ended, fill, made, object, room};
use crate::failure::answer;
use crate::pool::pgmap_pool;

/// A run of a file's bytes in memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct pgmap_segment {
    /// The first byte.
    pub address: *mut c_void,
    /// Length in bytes.
    pub len_bytes: u64,
    /// Where it lies in the pool's memory (`pgmap_memory`), in bytes.
    pub pool_offset: u64,
    /// Where it lies in the file, in bytes.
    pub file_offset: u64,
}

/// A file's bytes, pinned: they are this file's and are given to nobody else until `pgmap_unpin`,
/// whether the file is unlinked, its owner ends or the pool is disconnected.
pub struct pgmap_pin {
    pin: OwnedPin,
}

/// Finds a file and pins all of it, without a call to the owner. `-ENOENT` if no file has this
/// name.
///
/// # Safety
/// `pool` is connected; `name` has `name_len` bytes; `pin` has room for an address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_get(
    pool: *mut pgmap_pool,
    name: *const c_void,
    name_len: usize,
    pin: *mut *mut pgmap_pin,
) -> c_int {
    answer(|| {
        // SAFETY: `pool` is null or connected, by the caller's contract.
        let pool = unsafe { object(pool, "pool") }?;
        // SAFETY: `name` is null or has `name_len` bytes, by the caller's contract.
        let name = unsafe { bytes(name, name_len, "name") }?;
        let got = pool.client.get_owned(name)?;
        // SAFETY: `pin` is null or has room for an address, by the caller's contract.
        unsafe { made(pin, pgmap_pin { pin: got }) }?;
        Ok(0)
    })
}

/// As `pgmap_get`, for a device that reads or writes the bytes: should this process die meanwhile,
/// the memory is given to nobody while the device can still write to it.
///
/// # Safety
/// As `pgmap_get`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_get_for_device(
    pool: *mut pgmap_pool,
    name: *const c_void,
    name_len: usize,
    pin: *mut *mut pgmap_pin,
) -> c_int {
    answer(|| {
        // SAFETY: `pool` is null or connected, by the caller's contract.
        let pool = unsafe { object(pool, "pool") }?;
        // SAFETY: `name` is null or has `name_len` bytes, by the caller's contract.
        let name = unsafe { bytes(name, name_len, "name") }?;
        let file = pool.client.open(name)?;
        let got = file.pin_for_device_owned(0..file.len_bytes())?;
        // SAFETY: `pin` is null or has room for an address, by the caller's contract.
        unsafe { made(pin, pgmap_pin { pin: got }) }?;
        Ok(0)
    })
}

/// How many bytes are pinned; 0 for null.
///
/// # Safety
/// `pin` is null or pinned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_pin_len(pin: *const pgmap_pin) -> u64 {
    // SAFETY: `pin` is null or pinned, by the caller's contract.
    unsafe { pin.as_ref() }.map_or(0, |pin| pin.pin.len_bytes())
}

/// Whether the file was unlinked or is being cut, and waits for this pin; false for null.
///
/// # Safety
/// `pin` is null or pinned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_is_reclaim_requested(pin: *const pgmap_pin) -> bool {
    // SAFETY: `pin` is null or pinned, by the caller's contract.
    unsafe { pin.as_ref() }.is_some_and(|pin| pin.pin.is_reclaim_requested())
}

/// Where the pinned bytes lie, in the order of the file; a hole, whose bytes are zero, is left out.
/// Fills up to `nr_room` segments and stores in `count` how many there are.
///
/// # Safety
/// `pin` is pinned; `segments` has room for `nr_room` of them; `count` for one number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_pin_segments(
    pin: *mut pgmap_pin,
    segments: *mut pgmap_segment,
    nr_room: usize,
    count: *mut usize,
) -> c_int {
    answer(|| {
        // SAFETY: `pin` is null or pinned, by the caller's contract.
        let pin = unsafe { object(pin, "pin") }?;
        // SAFETY: `segments` is null or has room for `nr_room` items, by the caller's contract.
        let target = unsafe { room(segments, nr_room, "segments") }?;
        // SAFETY: `count` is null or has room for one value, by the caller's contract.
        let count = unsafe { object(count, "count") }?;
        let segment = |segment: Segment<'_>| pgmap_segment {
            address: segment.ptr.cast(),
            len_bytes: segment.len_bytes,
            pool_offset: segment.pool_offset,
            file_offset: segment.range_offset,
        };
        *count = fill(target, pin.pin.segments().map(segment));
        Ok(0)
    })
}

/// Copies pinned bytes out, from `offset` on.
///
/// # Safety
/// `pin` is pinned; `target` has room for `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_read(
    pin: *mut pgmap_pin,
    offset: u64,
    target: *mut c_void,
    len: usize,
) -> c_int {
    answer(|| {
        // SAFETY: `pin` is null or pinned, by the caller's contract.
        let pin = unsafe { object(pin, "pin") }?;
        // SAFETY: `target` is null or has room for `len` items, by the caller's contract.
        let target = unsafe { room(target.cast::<u8>(), len, "target") }?;
        pin.pin.read_at(offset, target)?;
        Ok(0)
    })
}

/// Releases the bytes. Null is ignored.
///
/// # Safety
/// `pin` is null or pinned, and is not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_unpin(pin: *mut pgmap_pin) {
    answer(|| {
        // SAFETY: `pin` is null or pinned, and not used any more, by the caller's contract.
        drop(unsafe { ended(pin) });
        Ok(0)
    });
}
