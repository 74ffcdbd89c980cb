//! What an operator says of a pool that is served: quotas and water marks.

// UNSAFETY: functions that C calls.
#![allow(unsafe_code, non_camel_case_types)]

use std::ffi::{c_int, c_void};

use pgmap::quota::{MAX_QUOTAS, QuotaInfo, QuotaLimits, QuotaOf};
use pgmap::{Error, FileName, WaterMarks};

use crate::arguments::{bytes, fill, object, room};
use crate::failure::{Failure, answer};
use crate::pool::pgmap_pool;

/// Stands for no limit. Zero is a limit: it allows nothing.
pub const PGMAP_NO_LIMIT: u64 = u64::MAX;

/// Most quotas of a pool.
pub const PGMAP_MAX_QUOTAS: usize = 128;
const _: () = assert!(PGMAP_MAX_QUOTAS == MAX_QUOTAS, "the header's number is the library's");

/// A quota, and how much of it is used.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct pgmap_quota {
    /// The user it is for, if `prefix_len` is 0.
    pub uid: u32,
    /// Bytes of the prefix; 0 for the quota of a user.
    pub prefix_len: u32,
    /// How the names begin that it is for, with a NUL after it.
    pub prefix: [u8; 256],
    /// Most bytes of memory of its files, those that are being written among them, or
    /// `PGMAP_NO_LIMIT`.
    pub max_bytes: u64,
    /// Most files, those that are being written among them, or `PGMAP_NO_LIMIT`.
    pub max_files: u64,
    /// Most clients of its user at a time, or `PGMAP_NO_LIMIT`.
    pub max_clients: u64,
    /// Bytes of memory that its files have.
    pub used_bytes: u64,
    /// Its files.
    pub used_files: u64,
    /// The clients of its user that are connected; 0 for a prefix.
    pub used_clients: u64,
}

impl From<QuotaInfo> for pgmap_quota {
    fn from(info: QuotaInfo) -> Self {
        let limit = |limit: Option<u64>| limit.unwrap_or(PGMAP_NO_LIMIT);
        let (uid, name) = match &info.of {
            QuotaOf::Uid(uid) => (*uid, &[][..]),
            QuotaOf::Prefix(prefix) => (0, prefix.as_bytes()),
        };
        let mut prefix = [0; 256];
        // A name has 255 bytes at most.
        prefix.iter_mut().zip(name).for_each(|(place, byte)| *place = *byte);
        Self {
            uid,
            prefix_len: name.len() as u32,
            prefix,
            max_bytes: limit(info.limits.bytes),
            max_files: limit(info.limits.files),
            max_clients: limit(info.limits.clients),
            used_bytes: info.used_bytes,
            used_files: info.used_files,
            used_clients: info.used_clients,
        }
    }
}

/// A limit as C has it.
fn limit(number: u64) -> Option<u64> {
    (number != PGMAP_NO_LIMIT).then_some(number)
}

fn prefix_of(prefix: &[u8]) -> Result<QuotaOf, Failure> {
    Ok(QuotaOf::Prefix(FileName::new(prefix).map_err(Error::from)?))
}

/// Limits what the user `uid` may have in the pool: bytes of memory and number of the files that
/// its clients create, those that are being written among them, and clients at a time. Each is a
/// number or `PGMAP_NO_LIMIT`. The quota replaces an earlier one of the same user, and is kept in
/// the pool. What is there and exceeds it stays. A create or rename that would exceed it first
/// evicts files that it counts and that may be evicted, then is `-EDQUOT`; so is a connect.
///
/// `-EPERM` unless this process runs as root or as the owner's user; `-EROFS` if it connected
/// read-only; `-EINVAL` if nothing is limited; `-E2BIG` for more than `PGMAP_MAX_QUOTAS` quotas.
///
/// # Safety
/// `pool` is connected.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_set_uid_quota(
    pool: *mut pgmap_pool,
    uid: u32,
    max_bytes: u64,
    max_files: u64,
    max_clients: u64,
) -> c_int {
    answer(|| {
        // SAFETY: `pool` is null or connected, by the caller's contract.
        let pool = unsafe { object(pool, "pool") }?;
        let limits = QuotaLimits {
            bytes: limit(max_bytes),
            files: limit(max_files),
            clients: limit(max_clients),
        };
        pool.client.set_quota(QuotaOf::Uid(uid), limits)?;
        Ok(0)
    })
}

/// As `pgmap_set_uid_quota`, for all files whose names begin with `prefix`, of all users. A
/// prefix has 1 to 255 bytes. A file that several quotas count must not exceed any of them.
///
/// # Safety
/// `pool` is connected; `prefix` has `prefix_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_set_prefix_quota(
    pool: *mut pgmap_pool,
    prefix: *const c_void,
    prefix_len: usize,
    max_bytes: u64,
    max_files: u64,
) -> c_int {
    answer(|| {
        // SAFETY: `pool` is null or connected, by the caller's contract.
        let pool = unsafe { object(pool, "pool") }?;
        // SAFETY: `prefix` is null or has `prefix_len` bytes, by the caller's contract.
        let prefix = unsafe { bytes(prefix, prefix_len, "prefix") }?;
        let limits =
            QuotaLimits { bytes: limit(max_bytes), files: limit(max_files), clients: None };
        pool.client.set_quota(prefix_of(prefix)?, limits)?;
        Ok(0)
    })
}

/// Ends the quota of a user. `-EINVAL` if there is none; `-EPERM` and `-EROFS` as
/// `pgmap_set_uid_quota`.
///
/// # Safety
/// `pool` is connected.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_remove_uid_quota(pool: *mut pgmap_pool, uid: u32) -> c_int {
    answer(|| {
        // SAFETY: `pool` is null or connected, by the caller's contract.
        unsafe { object(pool, "pool") }?.client.remove_quota(QuotaOf::Uid(uid))?;
        Ok(0)
    })
}

/// Ends the quota of a prefix. `-EINVAL` if there is none; `-EPERM` and `-EROFS` as
/// `pgmap_set_uid_quota`.
///
/// # Safety
/// `pool` is connected; `prefix` has `prefix_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_remove_prefix_quota(
    pool: *mut pgmap_pool,
    prefix: *const c_void,
    prefix_len: usize,
) -> c_int {
    answer(|| {
        // SAFETY: `pool` is null or connected, by the caller's contract.
        let pool = unsafe { object(pool, "pool") }?;
        // SAFETY: `prefix` is null or has `prefix_len` bytes, by the caller's contract.
        let prefix = unsafe { bytes(prefix, prefix_len, "prefix") }?;
        pool.client.remove_quota(prefix_of(prefix)?)?;
        Ok(0)
    })
}

/// The quotas and how much of each is used, those of users first. Fills up to `nr_room` of the
/// caller's array and stores in `count` how many there are; `PGMAP_MAX_QUOTAS` is room for all.
/// Any process may ask.
///
/// # Safety
/// `pool` is connected; `quotas` has room for `nr_room` of them; `count` for one number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_quotas(
    pool: *mut pgmap_pool,
    quotas: *mut pgmap_quota,
    nr_room: usize,
    count: *mut usize,
) -> c_int {
    answer(|| {
        // SAFETY: `pool` is null or connected, by the caller's contract.
        let pool = unsafe { object(pool, "pool") }?;
        // SAFETY: `quotas` is null or has room for `nr_room` items, by the caller's contract.
        let target = unsafe { room(quotas, nr_room, "quotas") }?;
        // SAFETY: `count` is null or has room for one value, by the caller's contract.
        let count = unsafe { object(count, "count") }?;
        *count = fill(target, pool.client.quotas()?.into_iter().map(pgmap_quota::from));
        Ok(0)
    })
}

/// Has the owner keep room free, so that a create need not wait for it: with fewer than `low_bytes`
/// free it evicts files that may be evicted, the least recently used first, until `high_bytes` are
/// free. Two zeros end it. The pool keeps the marks.
///
/// `-EINVAL` unless the low mark is below the high one, which is at most the pool's size;
/// `-EPERM` and `-EROFS` as `pgmap_set_uid_quota`.
///
/// # Safety
/// `pool` is connected.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_set_water_marks(
    pool: *mut pgmap_pool,
    low_bytes: u64,
    high_bytes: u64,
) -> c_int {
    answer(|| {
        // SAFETY: `pool` is null or connected, by the caller's contract.
        let pool = unsafe { object(pool, "pool") }?;
        pool.client.set_water_marks(WaterMarks { low_bytes, high_bytes })?;
        Ok(0)
    })
}

/// The water marks in bytes; zeros if there are none. Any process may ask.
///
/// # Safety
/// `pool` is connected; `low_bytes` and `high_bytes` have room for one value each.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_water_marks(
    pool: *mut pgmap_pool,
    low_bytes: *mut u64,
    high_bytes: *mut u64,
) -> c_int {
    answer(|| {
        // SAFETY: `pool` is null or connected, by the caller's contract.
        let pool = unsafe { object(pool, "pool") }?;
        let marks = pool.client.water_marks()?;
        // One after the other: should both be one address, there is never a second reference.
        // SAFETY: `low_bytes` is null or has room for one value, by the caller's contract.
        *unsafe { object(low_bytes, "low mark") }? = marks.low_bytes;
        // SAFETY: `high_bytes` is null or has room for one value, by the caller's contract.
        *unsafe { object(high_bytes, "high mark") }? = marks.high_bytes;
        Ok(0)
    })
}
