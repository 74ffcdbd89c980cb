//! `kill -9` in mid-flight: how long until everything is back, and whether it is.

use std::time::{Duration, Instant};

use pgmap::{Client, FolioSize, Owner, PoolInfo};

use super::block::BLOCK_BYTES;
use super::cast::{Actor, Pace};
use super::child::Role;
use super::ground::Ground;
use super::halves::clear;
use super::holder::victim_file;
use super::stage::Stage;
use super::{NR_HELD_BLOCKS, NR_KILLS};
use crate::failure::Failure;
use crate::stop::Stop;

/// What a killed process had.
const HELD_BYTES: u64 = NR_HELD_BLOCKS * BLOCK_BYTES as u64;
/// After this, what is not back counts as leaked.
const MAX_RECLAIM: Duration = Duration::from_secs(3);
/// Between two looks at the pool.
const LOOK: Duration = Duration::from_micros(50);
/// The moments of the kills differ by this.
const SHIFT: Duration = Duration::from_micros(370);
/// How long memory given back is watched for a late device.
const WATCH: Duration = Duration::from_millis(15);
/// What the memory is filled with meanwhile.
const PATTERN: u8 = 0xa5;

/// What the kills showed.
#[derive(Clone, Debug, Default)]
pub struct Kills {
    /// Times from kill to all back, of readers.
    pub readers: Vec<Duration>,
    /// The same of writers.
    pub writers: Vec<Duration>,
    /// Bytes that did not come back.
    pub leaked_bytes: u64,
    /// Pins that were not dropped.
    pub leaked_pins: u64,
    /// Clients that stayed on the books.
    pub leaked_clients: u64,
    /// Bytes that a dead writer's device changed after somebody else had them.
    pub overwritten_bytes: u64,
}

/// Kills readers and writers in turn.
///
/// # Errors
/// When a process cannot be started, or a signal comes.
pub fn play(
    stage: &Stage,
    ground: &Ground,
    client: &Client,
    stop: &mut Stop,
) -> Result<Kills, Failure> {
    let mut kills = Kills::default();
    let owner = ground.owner();
    for round in 0..NR_KILLS {
        stop.check()?;
        let before = idle_pool(ground)?;
        for at in 0..NR_HELD_BLOCKS {
            put(client, &victim_file(at), BLOCK_BYTES as u64)?;
        }
        let mut reader = Actor::enter((stage, ground), Role::Pinned, round, Pace::Brisk)?;
        reader.wait_ready()?;
        clear(client)?;
        let held = owner.info().draining_bytes;
        expect_held(held, "pinned by a reader")?;
        kills.readers.push(kill(&mut reader, round, owner, before, &mut kills.leaked_bytes)?);
        drop(reader);

        let mut writer = Actor::enter((stage, ground), Role::Unfinished, round, Pace::Brisk)?;
        writer.wait_ready()?;
        expect_held(owner.info().reserved_bytes, "reserved by a writer")?;
        kills.writers.push(kill(&mut writer, round, owner, before, &mut kills.leaked_bytes)?);
        kills.overwritten_bytes += watch_free_memory(client)?;
        drop(writer);
        let after = owner.info();
        kills.leaked_clients += after.nr_clients.saturating_sub(before.nr_clients);
    }
    let holders = client.who_all()?.holders;
    kills.leaked_pins = holders.iter().map(|holder| u64::from(holder.nr_pins)).sum();
    Ok(kills)
}

/// The pool when nobody but this process is attached to it, and nothing is in it that comes and
/// goes.
fn idle_pool(ground: &Ground) -> Result<PoolInfo, Failure> {
    let until = Instant::now() + MAX_RECLAIM;
    loop {
        let info = ground.owner().info();
        if info.nr_clients == 1 && info.free_bytes == ground.idle_bytes() {
            return Ok(info);
        }
        if Instant::now() > until {
            return Err(Failure::new(
                "demo",
                0,
                format!("the pool does not become idle: {info:?}"),
            ));
        }
        std::thread::sleep(LOOK);
    }
}

fn expect_held(bytes: u64, how: &str) -> Result<(), Failure> {
    if bytes >= HELD_BYTES {
        return Ok(());
    }
    Err(Failure::new(
        "demo",
        0,
        format!("only {bytes} of {HELD_BYTES} bytes are {how}; nothing to show"),
    ))
}

/// Kills a process and returns how long it took until the pool was as before; adds what is missing
/// then to `leaked_bytes`.
fn kill(
    actor: &mut Actor,
    round: u64,
    owner: &Owner,
    before: PoolInfo,
    leaked_bytes: &mut u64,
) -> Result<Duration, Failure> {
    // So that not every kill finds the process at the same point.
    std::thread::sleep(SHIFT * round as u32);
    let killed = actor.kill()?;
    loop {
        let now = owner.info();
        let elapsed = killed.elapsed();
        let is_back = now.free_bytes == before.free_bytes
            && now.orphaned_bytes == 0
            && now.nr_clients == before.nr_clients;
        if is_back {
            return Ok(elapsed);
        }
        if elapsed > MAX_RECLAIM {
            *leaked_bytes += before.free_bytes.saturating_sub(now.free_bytes);
            return Ok(elapsed);
        }
        std::thread::sleep(LOOK);
    }
}

fn put(client: &Client, name: &str, len_bytes: u64) -> Result<(), Failure> {
    let mut writer = client.create(name, len_bytes, FolioSize::BestFit)?;
    writer.write_all_at(0, &vec![PATTERN; len_bytes as usize])?;
    Ok(writer.commit()?)
}

/// Takes all free memory, which a moment ago a dead process's device was writing to, fills it, and
/// counts the bytes that change by themselves.
fn watch_free_memory(client: &Client) -> Result<u64, Failure> {
    const NAME: &str = "watched";
    put(client, NAME, client.pool_stat()?.free_bytes)?;
    std::thread::sleep(WATCH);
    let bytes = client.get(NAME)?.to_vec()?;
    client.unlink(NAME)?;
    Ok(bytes.iter().filter(|&&byte| byte != PATTERN).count() as u64)
}
