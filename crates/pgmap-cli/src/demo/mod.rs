//! `pgmap demo`: the same readers, writer and device over the same blocks, twice.
//!
//! Once the blocks are guarded by leases that time out, once by pins. Then processes are killed in
//! mid-flight, and a block that a slow process holds is asked back. Read it in this order:
//!
//! | module | one concept |
//! |---|---|
//! | `block` | what a block holds, and how a reader knows that it got what it asked for |
//! | `lease` | the board all processes share, and the lease that times out |
//! | `dma` | a device that writes by itself: io_uring, or a thread with preadv |
//! | `reader`, `writer`, `holder` | the roles |
//! | `child` | a process that plays a role; `cast` starts it |
//! | `stage` | files and directories, gone when the demo ends |
//! | `ground` | what the memory lies on |
//! | `halves`, `kill`, `drain` | the acts |
//! | `report` | the figures |

pub mod block;
mod cast;
pub mod child;
pub mod dma;
mod drain;
mod ground;
mod halves;
mod holder;
mod kill;
mod lease;
mod reader;
pub mod report;
mod stage;
mod writer;

use std::path::PathBuf;
use std::time::Duration;

use self::block::BLOCK_BYTES;
use self::ground::Ground;
use self::report::Report;
use self::stage::Stage;
use crate::failure::Failure;
use crate::own_command::OwnCommand;
use crate::stop::Stop;

/// Blocks that readers read.
const NR_BLOCKS: u64 = 48;
/// Bytes of the lease half's blocks.
const PLAIN_BYTES: u64 = NR_BLOCKS * BLOCK_BYTES as u64;
/// Frames beyond those of the blocks: so few that whatever is given back is used again at once.
const NR_SPARE_BLOCKS: u64 = 8;
/// Bytes of the pool. Small enough to be registered with io_uring where locked memory is limited.
const POOL_BYTES: u64 = (NR_BLOCKS + NR_SPARE_BLOCKS) * BLOCK_BYTES as u64;
/// Readers that are as fast as they can.
const NR_BRISK_READERS: u64 = 2;
/// Readers that are delayed half-way through each read: descheduled, swapped, on a slow link.
const NR_SLOW_READERS: u64 = 1;
/// How long a lease lasts: five hundred times as long as a read takes.
const TTL: Duration = Duration::from_millis(10);
/// How long the slow readers are delayed.
const PAUSE: Duration = Duration::from_millis(25);
/// Blocks that a process holds when it is killed.
const NR_HELD_BLOCKS: u64 = 8;
/// Readers killed, and writers.
const NR_KILLS: u64 = 9;
/// What killing and draining may take of the time.
const LAST_ACTS: Duration = Duration::from_millis(1500);
/// Time the two halves have at least.
const MIN_HALF: Duration = Duration::from_millis(500);
/// The file that a slow process holds.
const HELD_FILE: &str = "held";

/// What the demo is asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How long it may take, about.
    pub length: Duration,
    /// What the pool lies on; a memfd when none.
    pub on: Option<PathBuf>,
    /// Where the scratch file goes; wherever there is a disk when none.
    pub scratch: Option<PathBuf>,
    /// What moves the bytes.
    pub dma: dma::Wanted,
    /// What its processes are started with.
    pub command: OwnCommand,
}

/// Plays it.
///
/// # Errors
/// When a process or file that it needs cannot be had, or a signal ends it.
pub fn play(plan: &Plan, told: impl FnMut(&str)) -> Result<Report, Failure> {
    let mut stop = Stop::listen()?;
    let stage = Stage::set_up(plan)?;
    // Ctrl-C ends the processes too, and then one of them may be missed first.
    play_acts(plan, &stage, &mut stop, told)
        .map_err(|failure| stop.check().err().unwrap_or(failure))
}

fn play_acts(
    plan: &Plan,
    stage: &Stage,
    stop: &mut Stop,
    mut told: impl FnMut(&str),
) -> Result<Report, Failure> {
    let half = plan.length.saturating_sub(LAST_ACTS).div_f64(2.0).max(MIN_HALF);
    told(&format!(
        "leases of {} ms: {} readers, 1 writer, {:.1} s",
        TTL.as_millis(),
        NR_BRISK_READERS + NR_SLOW_READERS,
        half.as_secs_f64()
    ));
    let ground = Ground::make(stage, plan.on.as_deref())?;
    let ttl = halves::under_leases(stage, &ground, half, stop)?;
    told(&format!("pins: the same processes and work, {:.1} s", half.as_secs_f64()));
    let pins = halves::under_pins(stage, &ground, half, stop)?;
    let client = ground.owner().client()?;
    halves::clear(&client)?;
    told(&format!("kill -9: {NR_KILLS} readers that hold pins, {NR_KILLS} writers with DMA"));
    let kill = kill::play(stage, &ground, &client, stop)?;
    told("drain: a truncate of what a slow process holds");
    let drain = drain::play(stage, &ground, &client, stop)?;
    Ok(Report::new(ground.kind(), ttl, pins, kill, drain))
}
