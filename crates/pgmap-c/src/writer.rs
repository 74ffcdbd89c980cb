//! A file that is being written.

// UNSAFETY: functions that C calls.
#![allow(unsafe_code, non_camel_case_types)]

use std::ffi::{c_int, c_void};

use pgmap::{Agent, CreateSpec, Error, FileName, FolioSize, OwnedWriter};

use crate::arguments::{bytes, ended, fill, made, object, room};
use crate::failure::{Failure, answer};
use crate::pin::pgmap_segment;
use crate::pool::{PGMAP_CHECKSUM, PGMAP_EVICTABLE, PGMAP_REPLACE, known, pgmap_pool};

/// A file that nobody else sees before it is committed.
pub struct pgmap_writer {
    writer: OwnedWriter,
}

/// Reserves a file of `len_bytes`, to be filled and committed. `flags`: `PGMAP_REPLACE`,
/// `PGMAP_CHECKSUM`, `PGMAP_EVICTABLE`, or 0. `-EEXIST` if the name is taken, `-ENOSPC` if there is
/// no room, `-EDQUOT` if a quota has none, `-EROFS` if the process connected read-only.
///
/// # Safety
/// `pool` is connected; `name` has `name_len` bytes; `writer` has room for an address.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_create(
    pool: *mut pgmap_pool,
    name: *const c_void,
    name_len: usize,
    len_bytes: u64,
    flags: u32,
    writer: *mut *mut pgmap_writer,
) -> c_int {
    answer(|| {
        // SAFETY: `pool` is null or connected, by the caller's contract.
        let pool = unsafe { object(pool, "pool") }?;
        // SAFETY: `name` is null or has `name_len` bytes, by the caller's contract.
        let name = unsafe { bytes(name, name_len, "name") }?;
        let flags = known(flags, PGMAP_REPLACE | PGMAP_CHECKSUM | PGMAP_EVICTABLE)?;
        let name = FileName::new(name).map_err(Error::from)?;
        let priority = u8::from(flags & PGMAP_EVICTABLE != 0);
        let spec = CreateSpec {
            replace: flags & PGMAP_REPLACE != 0,
            is_checksummed: flags & PGMAP_CHECKSUM != 0,
            ..CreateSpec::new(name, len_bytes, FolioSize::BestFit).evictable(priority)
        };
        let created = pool.client.create_owned_with(spec)?;
        // SAFETY: `writer` is null or has room for an address, by the caller's contract.
        unsafe { made(writer, pgmap_writer { writer: created }) }?;
        Ok(0)
    })
}

/// Copies bytes into the file, from `offset` on. What is never written is zero.
///
/// # Safety
/// `writer` is open; `source` has `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_write(
    writer: *mut pgmap_writer,
    offset: u64,
    source: *const c_void,
    len: usize,
) -> c_int {
    answer(|| {
        // SAFETY: `writer` is null or not ended yet, by the caller's contract.
        let writer = unsafe { object(writer, "writer") }?;
        // SAFETY: `source` is null or has `len` bytes, by the caller's contract.
        let source = unsafe { bytes(source, len, "source") }?;
        writer.writer.write_all_at(offset, source)?;
        Ok(0)
    })
}

/// Where the file's memory lies, to be filled by other means: what is not written there has any
/// bytes. Fills up to `room` segments and stores in `count` how many there are.
///
/// # Safety
/// `writer` is open; `segments` has room for `room` of them; `count` for one number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_writer_segments(
    writer: *mut pgmap_writer,
    segments: *mut pgmap_segment,
    nr_room: usize,
    count: *mut usize,
) -> c_int {
    answer(|| {
        // SAFETY: `writer` is null or not ended yet, by the caller's contract.
        let writer = unsafe { object(writer, "writer") }?;
        // SAFETY: `segments` is null or has room for `nr_room` items, by the caller's contract.
        let target = unsafe { room(segments, nr_room, "segments") }?;
        // SAFETY: `count` is null or has room for one value, by the caller's contract.
        let count = unsafe { object(count, "count") }?;
        let mut file_offset = 0;
        let all = writer.writer.segments().into_iter().map(|(address, len_bytes, pool_offset)| {
            let segment =
                pgmap_segment { address: address.cast(), len_bytes, pool_offset, file_offset };
            file_offset += len_bytes;
            segment
        });
        *count = fill(target, all);
        Ok(0)
    })
}

/// Says whether a device may be writing to the file from now on. Should this process die meanwhile,
/// the memory is given to nobody while the device can still write to it.
///
/// # Safety
/// `writer` is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_set_device(writer: *mut pgmap_writer, is_device: bool) -> c_int {
    answer(|| {
        // SAFETY: `writer` is null or not ended yet, by the caller's contract.
        let writer = unsafe { object(writer, "writer") }?;
        writer.writer.set_agent(if is_device { Agent::Device } else { Agent::Cpu });
        Ok(0)
    })
}

/// Publishes the file under its name, and ends the writer, also when that fails: the file is given
/// up then.
///
/// # Safety
/// `writer` is open, and is not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_commit(writer: *mut pgmap_writer) -> c_int {
    answer(|| {
        // SAFETY: `writer` is null or not ended, and not used any more, by the caller's contract.
        let writer = unsafe { ended(writer) };
        writer.ok_or_else(|| Failure::invalid("the writer is null"))?.writer.commit()?;
        Ok(0)
    })
}

/// Gives the file up. Null is ignored.
///
/// # Safety
/// `writer` is null or open, and is not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pgmap_abort(writer: *mut pgmap_writer) {
    answer(|| {
        // SAFETY: `writer` is null or not ended, and not used any more, by the caller's contract.
        drop(unsafe { ended(writer) });
        Ok(0)
    });
}
