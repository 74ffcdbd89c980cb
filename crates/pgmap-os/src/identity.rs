//! Numbers that nobody else has: of the machine's present run, and fresh ones.

use crate::OsError;
use std::io;

/// Returns the identity of the machine's present run.
///
/// # Errors
/// `ENOENT` without `/proc`.
pub fn boot_id() -> Result<u128, OsError> {
    #[cfg(feature = "sim")]
    if let Some(identity) = crate::sim::with(|world| world.boot_id()) {
        return Ok(identity);
    }
    #[cfg(feature = "sim")]
    if let Some(identity) = crate::sim::power::boot_id() {
        return Ok(identity);
    }
    read_uuid("/proc/sys/kernel/random/boot_id")
}

/// Returns a number that was never returned before, anywhere.
///
/// # Errors
/// Those of `getrandom(2)`.
pub fn random_id() -> Result<u128, OsError> {
    #[cfg(feature = "sim")]
    if let Some((low, high)) = crate::sim::with(|world| (world.random(), world.random())) {
        return Ok(u128::from(low) | u128::from(high) << 64);
    }
    let mut bytes = [0; size_of::<u128>()];
    let flags = rustix::rand::GetRandomFlags::empty();
    let failed = |error| OsError::new("get", "a random number", error);
    let nr_bytes = rustix::io::retry_on_intr(|| rustix::rand::getrandom(&mut bytes, flags));
    // Up to 256 bytes come all at once.
    match nr_bytes.map_err(failed)? {
        nr_bytes if nr_bytes == bytes.len() => Ok(u128::from_ne_bytes(bytes)),
        _ => Err(failed(rustix::io::Errno::IO)),
    }
}

/// Returns a number that others cannot guess.
pub fn random_u64() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    #[cfg(feature = "sim")]
    if let Some(number) = crate::sim::with(|world| world.random()) {
        return number;
    }
    RandomState::new().hash_one(crate::clock::monotonic_ns())
}

fn read_uuid(path: &'static str) -> Result<u128, OsError> {
    let text = std::fs::read_to_string(path).map_err(|error| OsError::new("read", path, error))?;
    let digits: String = text.trim().chars().filter(|&digit| digit != '-').collect();
    u128::from_str_radix(&digits, 16).map_err(|_| {
        let odd = io::Error::new(io::ErrorKind::InvalidData, "it is no UUID");
        OsError::new("read", path, odd)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_stays_the_same_and_random_numbers_do_not() {
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
        assert_ne!(random_id().unwrap(), random_id().unwrap());
        assert_ne!(random_u64(), random_u64());
    }
}
