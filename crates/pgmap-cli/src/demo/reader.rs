//! Readers: the same work under leases and under pins.
//!
//! A read copies a block's first half, is perhaps delayed, copies the rest, and only then judges
//! what it got. Neither reader looks at anything but the bytes to do so.

use std::sync::Arc;
use std::time::Duration;

use pgmap::os::WriteMapping;
use pgmap::{Error, Refusal};
use serde::{Deserialize, Serialize};

use super::block::{BLOCK_BYTES, Identity, Verdict, judge};
use super::child::{DemoChild, Dice, file_name, open_shared, say_tally, wait_for_start};
use super::lease::Phase;
use super::{NR_BLOCKS, PLAIN_BYTES};
use crate::failure::Failure;

/// What a reader counted.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct ReaderTally {
    /// Reads that ended.
    pub reads: u64,
    /// Reads that got pages of another block or generation.
    pub other: u64,
    /// Reads whose pages did not add up.
    pub torn: u64,
    /// Attempts that found the block gone or being replaced, and said so.
    pub misses: u64,
}

impl ReaderTally {
    fn count(&mut self, verdict: Verdict) {
        self.reads += 1;
        match verdict {
            Verdict::Right => {}
            Verdict::Other => self.other += 1,
            Verdict::Torn => self.torn += 1,
        }
    }

    /// Both together.
    pub const fn plus(self, more: Self) -> Self {
        Self {
            reads: self.reads + more.reads,
            other: self.other + more.other,
            torn: self.torn + more.torn,
            misses: self.misses + more.misses,
        }
    }
}

/// Opens the lease half's blocks.
///
/// # Errors
/// When they cannot be mapped.
pub fn open_plain(child: &DemoChild) -> Result<Arc<WriteMapping>, Failure> {
    let file = open_shared(&child.plain)?;
    Ok(Arc::new(WriteMapping::map(&file, child.plain_offset, PLAIN_BYTES)?))
}

/// Reads under leases until told to stop.
///
/// # Errors
/// When the demo's files cannot be used.
pub fn under_leases(child: &DemoChild) -> Result<(), Failure> {
    let board = child.board()?;
    let memory = open_plain(child)?;
    let ttl = Duration::from_millis(child.ttl_ms);
    let mut reader = Reader::new(child);
    wait_for_start(&board)?;
    while board.phase() != Phase::Stop {
        let block = reader.dice.below(NR_BLOCKS);
        let leased = board
            .generation(block)
            .filter(|&generation| board.take_lease(child.index, block, generation, ttl));
        let Some(generation) = leased else {
            reader.tally.misses += 1;
            continue;
        };
        let base = block * BLOCK_BYTES as u64;
        reader.copy(|offset, part| Ok(memory.copy_out(base + offset, part)?))?;
        board.give_lease_back(child.index);
        reader.judge(Identity { block, generation });
    }
    say_tally(&reader.tally)
}

/// Reads under pins until told to stop.
///
/// # Errors
/// When the pool cannot be used.
pub fn under_pins(child: &DemoChild) -> Result<(), Failure> {
    let board = child.board()?;
    let client = child.client()?;
    let mut reader = Reader::new(child);
    wait_for_start(&board)?;
    while board.phase() != Phase::Stop {
        let block = reader.dice.below(NR_BLOCKS);
        let Some(generation) = board.generation(block) else {
            reader.tally.misses += 1;
            continue;
        };
        let pin = match client.get(file_name(block, generation)) {
            Ok(pin) => pin,
            Err(Error::Refused(
                Refusal::NotFound { .. } | Refusal::Stale { .. } | Refusal::InUse { .. },
            )) => {
                reader.tally.misses += 1;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        reader.copy(|offset, part| pin.read_at(offset, part))?;
        drop(pin);
        reader.judge(Identity { block, generation });
    }
    say_tally(&reader.tally)
}

struct Reader {
    dice: Dice,
    bytes: Vec<u8>,
    pause: Duration,
    tally: ReaderTally,
}

impl Reader {
    fn new(child: &DemoChild) -> Self {
        Self {
            dice: Dice::new(child.index),
            bytes: vec![0; BLOCK_BYTES],
            pause: Duration::from_millis(child.pause_ms),
            tally: ReaderTally::default(),
        }
    }

    fn copy(&mut self, part: impl Fn(u64, &mut [u8]) -> Result<(), Error>) -> Result<(), Failure> {
        let (first, second) = self.bytes.split_at_mut(BLOCK_BYTES / 2);
        part(0, first)?;
        if !self.pause.is_zero() {
            std::thread::sleep(self.pause);
        }
        part(BLOCK_BYTES as u64 / 2, second)?;
        Ok(())
    }

    fn judge(&mut self, asked: Identity) {
        self.tally.count(judge(&self.bytes, asked));
    }
}
