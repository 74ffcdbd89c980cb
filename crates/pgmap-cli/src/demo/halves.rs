//! The two halves: the same readers and writer, under leases and under pins.

use std::time::{Duration, Instant};

use pgmap::wire::MAX_BATCH;
use pgmap::{Client, FileName};

use super::cast::{Actor, Pace};
use super::child::Role;
use super::ground::Ground;
use super::lease::{Board, Phase};
use super::reader::ReaderTally;
use super::stage::Stage;
use super::writer::WriterTally;
use super::{NR_BRISK_READERS, NR_SLOW_READERS};
use crate::failure::Failure;
use crate::stop::Stop;

/// How often signals are looked for.
const TICK: Duration = Duration::from_millis(20);

/// What a half counted.
#[derive(Clone, Debug)]
pub struct Half {
    /// All readers together.
    pub readers: ReaderTally,
    /// Those that were delayed.
    pub slow_readers: ReaderTally,
    /// The writer.
    pub writer: WriterTally,
    /// How long they worked.
    pub elapsed: Duration,
}

/// Under leases that time out.
///
/// # Errors
/// When a process fails, or a signal comes.
pub fn under_leases(
    stage: &Stage,
    ground: &Ground,
    length: Duration,
    stop: &mut Stop,
) -> Result<Half, Failure> {
    play(stage, ground, [Role::LeaseReader, Role::LeaseWriter], length, stop)
}

/// Under pins.
///
/// # Errors
/// When a process fails, or a signal comes.
pub fn under_pins(
    stage: &Stage,
    ground: &Ground,
    length: Duration,
    stop: &mut Stop,
) -> Result<Half, Failure> {
    play(stage, ground, [Role::PinReader, Role::PinWriter], length, stop)
}

fn play(
    stage: &Stage,
    ground: &Ground,
    [reader, writer]: [Role; 2],
    length: Duration,
    stop: &mut Stop,
) -> Result<Half, Failure> {
    let board = Board::over(stage.board())?;
    board.wipe();
    let mut writer = Actor::enter((stage, ground), writer, 0, Pace::Brisk)?;
    let mut readers = Vec::new();
    for index in 0..NR_BRISK_READERS + NR_SLOW_READERS {
        let pace = if index < NR_BRISK_READERS { Pace::Brisk } else { Pace::Slow };
        readers.push((pace, Actor::enter((stage, ground), reader, index, pace)?));
    }
    writer.wait_ready()?;
    for (_, reader) in &mut readers {
        reader.wait_ready()?;
    }
    let started = Instant::now();
    board.set_phase(Phase::Go);
    while started.elapsed() < length {
        stop.check()?;
        std::thread::sleep(TICK.min(length.saturating_sub(started.elapsed())));
    }
    board.set_phase(Phase::Stop);
    let elapsed = started.elapsed();
    let (mut all, mut slow) = (ReaderTally::default(), ReaderTally::default());
    for (pace, reader) in readers {
        let tally: ReaderTally = reader.tally()?;
        all = all.plus(tally);
        if pace == Pace::Slow {
            slow = slow.plus(tally);
        }
    }
    let writer = writer.tally()?;
    Ok(Half { readers: all, slow_readers: slow, writer, elapsed })
}

/// Removes all files from the pool but those that stay.
///
/// # Errors
/// When one cannot be removed.
pub fn clear(client: &Client) -> Result<(), Failure> {
    let names: Vec<FileName> = client
        .list()?
        .into_iter()
        .map(|file| file.name)
        .filter(|name| !Ground::stays(name.as_bytes()))
        .collect();
    for batch in names.chunks(MAX_BATCH) {
        for result in client.unlink_batch(batch)? {
            result?;
        }
    }
    Ok(())
}
