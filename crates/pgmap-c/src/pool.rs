//! Connecting to a pool, and what is done by name.

// UNSAFETY: functions that C calls.
#![allow(unsafe_code, non_camel_case_types)]

use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use pgmap::{Client, ConnectOptions, Replace};

use crate::arguments::{bytes, ended, made, object, text};
use crate::failure::{Failure, answer};

/// The new file takes the place of one that has its name.
pub const PGMAP_REPLACE: u32 = 1;
/// The new file gets a CRC-32C of its contents.
pub const PGMAP_CHECKSUM: u32 = 2;
/// The owner may evict the new file when others need room and nobody holds it.
pub const PGMAP_EVICTABLE: u32 = 4;
/// The process reads and changes nothing.
pub const PGMAP_READ_ONLY: u32 = 8;

/// A pool that this process is connected to.
pub struct pgmap_pool {
    pub(crate) client: Client,
}

/// The flags that are known, or an error that names those that are not.
pub fn known(flags: u32, all: u32) -> Result<u32, Failure> {
    match flags & !all {
        0 => Ok(flags),
        unknown => Err(Failure::invalid(format!("flags {unknown:#x} are not known"))),
    }
}

/// The version of this library, as text.
#[unsafe(no_mangle)]
pub extern "C" fn pgmap_version() -> *const c_char {
    const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// Connects to the owner that listens at the socket `path`. `label` is what the process is called
/// where people ask who holds what; it may be null. `deadline_ms` is how long this call and each
/// later one waits for the owner; 0 stands for 10,000. `-ETIMEDOUT` if it does not answer,
/// `-EDQUOT` if the user of this process has as many clients as a quota allows.
///
/// # Safety
/// `path` and `label` are NUL-terminated; `pool` has room for an address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_connect(
    path: *const c_char,
    label: *const c_char,
    deadline_ms: u32,
    pool: *mut *mut pgmap_pool,
) -> c_int {
    // SAFETY: by the caller's contract, which is the same.
    unsafe { pgmap_connect_with(path, label, deadline_ms, 0, pool) }
}

/// As `pgmap_connect`. `flags`: `PGMAP_READ_ONLY`, or 0.
///
/// With `PGMAP_READ_ONLY` all memory of the pool, and so that of segments, is mapped read-only: a
/// store to it is `SIGSEGV`, and mprotect with `PROT_WRITE` is `EACCES`. Files are found, pinned
/// and followed as by any other process; a device may only read them. Every call that changes
/// something is `-EROFS`.
///
/// # Safety
/// As `pgmap_connect`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_connect_with(
    path: *const c_char,
    label: *const c_char,
    deadline_ms: u32,
    flags: u32,
    pool: *mut *mut pgmap_pool,
) -> c_int {
    answer(|| {
        if path.is_null() {
            return Err(Failure::invalid("the path is null"));
        }
        // SAFETY: `path` is NUL-terminated, by the caller's contract.
        let path = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
        let mut options = ConnectOptions::new();
        if known(flags, PGMAP_READ_ONLY)? != 0 {
            options = options.read_only();
        }
        if deadline_ms > 0 {
            options = options.deadline(Duration::from_millis(deadline_ms.into()));
        }
        // SAFETY: `label` is null or NUL-terminated, by the caller's contract.
        if let Some(label) = unsafe { text(label, "label") }? {
            options = options.label(label);
        }
        let client = Client::connect_with(path, &options)?;
        // SAFETY: `pool` is null or has room for an address, by the caller's contract.
        unsafe { made(pool, pgmap_pool { client }) }?;
        Ok(0)
    })
}

/// Whether the process connected with `PGMAP_READ_ONLY`; false for null.
///
/// # Safety
/// `pool` is null or connected.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_is_read_only(pool: *const pgmap_pool) -> bool {
    // SAFETY: `pool` is null or connected, by the caller's contract.
    unsafe { pool.as_ref() }.is_some_and(|pool| pool.client.is_read_only())
}

/// Ends the connection. Writers, pins and subscriptions stay valid, and the process attached, until
/// they are ended, too. Null is ignored.
///
/// # Safety
/// `pool` is null or connected, and is not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_disconnect(pool: *mut pgmap_pool) {
    answer(|| {
        // SAFETY: `pool` is null or connected, and not used any more, by the caller's contract.
        drop(unsafe { ended(pool) });
        Ok(0)
    });
}

/// All memory of the pool, as this process has it mapped: to be registered with a device once. A
/// segment's `pool_offset` counts from `address`. Mapped read-only if the process
/// connected with `PGMAP_READ_ONLY`.
///
/// # Safety
/// `pool` is connected; `address` and `len_bytes` have room for one value each.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_memory(
    pool: *mut pgmap_pool,
    address: *mut *mut c_void,
    len_bytes: *mut u64,
) -> c_int {
    answer(|| {
        // SAFETY: `pool` is null or connected, by the caller's contract.
        let pool = unsafe { object(pool, "pool") }?;
        // SAFETY: `address` is null or has room for one value, by the caller's contract.
        let address = unsafe { object(address, "address") }?;
        // SAFETY: `len_bytes` is null or has room for one value, by the caller's contract.
        let len_bytes = unsafe { object(len_bytes, "length") }?;
        let (start, len) = pool.client.pool_address();
        (*address, *len_bytes) = (start.cast(), len as u64);
        Ok(0)
    })
}

/// 1 if a file has this name, 0 if none has. Does not call the owner.
///
/// # Safety
/// `pool` is connected; `name` has `name_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_exists(
    pool: *mut pgmap_pool,
    name: *const c_void,
    name_len: usize,
) -> c_int {
    answer(|| {
        // SAFETY: `pool` is null or connected, by the caller's contract.
        let pool = unsafe { object(pool, "pool") }?;
        // SAFETY: `name` is null or has `name_len` bytes, by the caller's contract.
        let name = unsafe { bytes(name, name_len, "name") }?;
        Ok(pool.client.exists(name)?.into())
    })
}

/// Takes a name away at once; the memory is free when its last pin goes. `-ENOENT` if no file has
/// it.
///
/// # Safety
/// `pool` is connected; `name` has `name_len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_unlink(
    pool: *mut pgmap_pool,
    name: *const c_void,
    name_len: usize,
) -> c_int {
    answer(|| {
        // SAFETY: `pool` is null or connected, by the caller's contract.
        let pool = unsafe { object(pool, "pool") }?;
        // SAFETY: `name` is null or has `name_len` bytes, by the caller's contract.
        let name = unsafe { bytes(name, name_len, "name") }?;
        pool.client.unlink(name)?;
        Ok(0)
    })
}

/// Gives a file another name. `flags`: `PGMAP_REPLACE`, or 0. `-ENOENT` if no file has the first
/// name, `-EEXIST` if the other is taken, `-EDQUOT` if a quota of the other has no room.
///
/// # Safety
/// `pool` is connected; `name` has `name_len` bytes, `to` has `to_len`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_rename(
    pool: *mut pgmap_pool,
    name: *const c_void,
    name_len: usize,
    to: *const c_void,
    to_len: usize,
    flags: u32,
) -> c_int {
    answer(|| {
        // SAFETY: `pool` is null or connected, by the caller's contract.
        let pool = unsafe { object(pool, "pool") }?;
        // SAFETY: `name` is null or has `name_len` bytes, by the caller's contract.
        let name = unsafe { bytes(name, name_len, "name") }?;
        // SAFETY: `to` is null or has `to_len` bytes, by the caller's contract.
        let to = unsafe { bytes(to, to_len, "new name") }?;
        let replaces = known(flags, PGMAP_REPLACE)? != 0;
        pool.client.rename(name, to, if replaces { Replace::Yes } else { Replace::No })?;
        Ok(0)
    })
}
