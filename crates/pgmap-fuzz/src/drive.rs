//! Inputs without a fuzzer: those of the corpus, changed a little, and a few of nothing but chance.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Target;

/// Longest input.
const MOST_BYTES: usize = 4096;
/// One input takes microseconds. At this the target hangs, for all that anybody waits.
const MOST_TIME: Duration = Duration::from_secs(10);
/// Most changes of one input.
const MOST_CHANGES: u64 = 6;
/// Values at which code turns.
const EDGES: [u64; 12] =
    [0, 1, 7, 0x7f, 0x80, 0xff, 4096, 0xffff, 1 << 31, 1 << 36, i64::MAX as u64, u64::MAX];

/// A small generator (splitmix64).
#[derive(Clone, Copy, Debug)]
pub struct Random(pub u64);

impl Random {
    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }

    fn index(&mut self, len: usize) -> usize {
        self.below(len.max(1) as u64) as usize
    }
}

/// The corpora in the repository: a folder for each target.
#[must_use]
pub fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus")
}

/// The inputs of a target's corpus, in order of their names.
#[must_use]
pub fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = corpora().join(target.name);
    let mut paths: Vec<PathBuf> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

/// Runs `target` on one input.
///
/// # Errors
/// What is wrong, with the input in hexadecimal digits.
pub fn run_one(target: &Target, input: &[u8]) -> Result<(), String> {
    let started = Instant::now();
    let done = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let taken = started.elapsed();
    let what = match done {
        Err(_) => "panicked".to_owned(),
        Ok(()) if taken > MOST_TIME => format!("took {taken:?}"),
        Ok(()) => return Ok(()),
    };
    let digits: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
    Err(format!("{} {what} on these bytes: {digits}", target.name))
}

/// Runs `target` on `nr_inputs` inputs made from `seeds` and `random`.
///
/// # Errors
/// As [`run_one`], on the first input that is not well.
pub fn run_random(
    target: &Target,
    seeds: &[Vec<u8>],
    nr_inputs: u64,
    random: &mut Random,
) -> Result<(), String> {
    for _ in 0..nr_inputs {
        let mut input = match seeds {
            [] => Vec::new(),
            seeds if random.below(16) > 0 => seeds[random.index(seeds.len())].clone(),
            _ => (0..random.below(300)).map(|_| random.below(256) as u8).collect(),
        };
        for _ in 0..=random.below(MOST_CHANGES) {
            change(&mut input, seeds, random);
        }
        input.truncate(MOST_BYTES);
        run_one(target, &input)?;
    }
    Ok(())
}

/// Changes `input` in one place.
fn change(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let at = random.index(input.len());
    match random.below(9) {
        0 | 1 if !input.is_empty() => input[at] ^= 1 << random.below(8),
        2 if !input.is_empty() => input[at] = random.below(256) as u8,
        3 => {
            let edge = EDGES[random.index(EDGES.len())].wrapping_sub(random.below(2));
            let len = [1, 2, 4, 8][random.index(4)].min(input.len() - at);
            input[at..at + len].copy_from_slice(&edge.to_le_bytes()[..len]);
        }
        4 => {
            let added: Vec<u8> =
                (0..1 + random.below(12)).map(|_| random.below(256) as u8).collect();
            input.splice(at..at, added);
        }
        5 if !input.is_empty() => {
            let end = (at + 1 + random.index(16)).min(input.len());
            input.drain(at..end);
        }
        6 => input.truncate(at),
        7 => {
            // A part of this, or of another input, once more.
            let other = match seeds {
                [] => input.clone(),
                seeds if random.below(2) == 0 => seeds[random.index(seeds.len())].clone(),
                _ => input.clone(),
            };
            let from = random.index(other.len());
            let end = (from + 1 + random.index(64)).min(other.len());
            let place = if random.below(2) == 0 { at..at } else { at..input.len() };
            input.splice(place, other[from..end].iter().copied());
        }
        _ => {
            let other = random.index(input.len());
            if other < input.len() {
                input.swap(at, other);
            }
        }
    }
}
