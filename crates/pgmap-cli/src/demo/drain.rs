//! A block that a slow process holds is asked back, with a deadline: the answer must name it.

use std::time::{Duration, Instant};

use pgmap::{Client, Error, FolioSize, Refusal};

use super::HELD_FILE;
use super::block::{BLOCK_BYTES, PAGE_BYTES};
use super::cast::{Actor, Pace};
use super::child::Role;
use super::ground::Ground;
use super::stage::Stage;
use crate::failure::Failure;
use crate::stop::Stop;

/// How long the truncate waits for the holder.
const DEADLINE: Duration = Duration::from_millis(250);
/// How long once the holder was asked to let go.
const AFTERWARDS: Duration = Duration::from_secs(3);

/// What the drain showed.
#[derive(Clone, Debug)]
pub struct Drained {
    /// The process that the answer named.
    pub named_pid: i32,
    /// Its name in the answer.
    pub named_command: String,
    /// The process that held the block.
    pub expected_pid: i32,
    /// How long the owner waited before it answered.
    pub waited_ms: u64,
    /// How long the truncate took when the holder had been asked to let go.
    pub released_ms: u64,
    /// What the answer said.
    pub answer: String,
}

/// Drains it.
///
/// # Errors
/// When the truncate succeeds although the file is held, or fails when it is not.
pub fn play(
    stage: &Stage,
    ground: &Ground,
    client: &Client,
    stop: &mut Stop,
) -> Result<Drained, Failure> {
    stop.check()?;
    let mut writer = client.create(HELD_FILE, BLOCK_BYTES as u64, FolioSize::Pages4K)?;
    writer.write_all_at(0, &[1; BLOCK_BYTES])?;
    writer.commit()?;
    let mut holder = Actor::enter((stage, ground), Role::Slow, 0, Pace::Slow)?;
    holder.wait_ready()?;
    let error = match client.truncate(HELD_FILE, PAGE_BYTES as u64, DEADLINE) {
        Ok(()) => {
            return Err(Failure::new("demo", 0, "a truncate took memory that a process holds"));
        }
        Err(error) => error,
    };
    let answer = error.to_string();
    let Error::Refused(Refusal::Held { holders, waited_ms, .. }) = error else {
        return Err(error.into());
    };
    let named = holders.first();
    let started = Instant::now();
    holder.let_go();
    client.truncate(HELD_FILE, PAGE_BYTES as u64, AFTERWARDS)?;
    Ok(Drained {
        named_pid: named.map_or(0, |holder| holder.pid),
        named_command: named.map_or_else(String::new, |holder| holder.command.clone()),
        expected_pid: holder.pid(),
        waited_ms,
        released_ms: started.elapsed().as_millis() as u64,
        answer,
    })
}
