//! What condition a file's memory is in, found as any reader would find it: by pinning it for a
//! moment, without a call to the owner.

use pgmap::mm::level::PAGE_BYTES;
use pgmap::{Client, Error, File, PinError};
use serde::Serialize;

/// Most failed pages that are listed; one of a file's is bad luck, more than this a broken module.
pub const MAX_FAILED: usize = 64;
/// Most pins one look takes: enough for that many failed pages in a file of any length.
const MAX_PINS: usize = 1 << 14;

/// The condition of a file's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// All of it can be pinned.
    Live,
    /// Some of it failed.
    Poisoned,
    /// It can be mapped, never pinned.
    Raw,
    /// It changed under the look, or went.
    Unknown,
}

impl State {
    /// As tables show it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Poisoned => "poisoned",
            Self::Raw => "raw",
            Self::Unknown => "-",
        }
    }
}

/// What a look found.
#[derive(Debug)]
pub struct Condition {
    /// All in all.
    pub state: State,
    /// Where in the file its failed pages start, the first few of them.
    pub failed: Vec<u64>,
}

impl Condition {
    /// Looks at a file, until `max_failed` failed pages were found.
    pub fn of(client: &Client, name: &[u8], max_failed: usize) -> Self {
        let unknown = Self { state: State::Unknown, failed: Vec::new() };
        let Ok(file) = client.inspect(name) else { return unknown };
        let mut failed = Vec::new();
        let mut is_known = true;
        let mut ranges = vec![(0, file.len_bytes())];
        let mut nr_pins = 0;
        while let Some((start, end)) = ranges.pop().filter(|_| failed.len() < max_failed) {
            nr_pins += 1;
            let errno = match file.pin(start..end) {
                Ok(_) => continue,
                Err(error) => error.errno(),
            };
            let is_page = end - start <= PAGE_BYTES;
            match errno {
                libc::EFAULT => return Self { state: State::Raw, failed: Vec::new() },
                libc::EHWPOISON if is_page => failed.push(start),
                // More extents than a thread may pin at once, or a failed page somewhere: halves.
                libc::EHWPOISON | libc::EAGAIN if !is_page && nr_pins < MAX_PINS => {
                    let half = (end - start).div_ceil(2).next_multiple_of(PAGE_BYTES);
                    let middle = start + half;
                    ranges.extend([(middle, end), (start, middle)]);
                }
                _ => is_known = false,
            }
        }
        let state = match is_known {
            _ if !failed.is_empty() => State::Poisoned,
            true => State::Live,
            false => State::Unknown,
        };
        Self { state, failed }
    }
}

/// Whether a file's first page may be pinned long-term without asking; `None` if that cannot be
/// told.
pub fn is_longterm_free(client: &Client, name: &[u8]) -> Option<bool> {
    let file: File<'_> = client.inspect(name).ok()?;
    match file.pin_longterm(0..1) {
        Ok(pin) => pin.segments().next().map(|_| true),
        Err(Error::Pin(PinError::NeedsConsent { .. })) => Some(false),
        Err(_) => None,
    }
}
