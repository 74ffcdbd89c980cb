//! A process of the demo: its roles, and how it is started and ended.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use pgmap::Client;
use pgmap::os::MemoryFile;
use serde::Serialize;

use super::dma::Wanted;
use super::lease::{Board, Phase};
use super::{holder, reader, writer};
use crate::failure::Failure;

/// Told by a child when it has all it needs.
pub const READY: &str = "ready";
/// How long a child waits for the others.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// What a process of the demo does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Reads blocks under leases
    LeaseReader,
    /// Refills blocks whose leases are out
    LeaseWriter,
    /// Reads blocks under pins
    PinReader,
    /// Replaces files
    PinWriter,
    /// Pins files and reads them until it is killed
    Pinned,
    /// Has uncommitted files and transfers under way until it is killed
    Unfinished,
    /// Pins a file until its stdin ends
    Slow,
}

/// A process of the demo.
#[derive(Debug, clap::Args)]
pub struct DemoChild {
    /// What it does
    pub role: Role,
    /// Where the owner listens
    #[arg(long)]
    pub owner: PathBuf,
    /// The board
    #[arg(long)]
    pub board: PathBuf,
    /// The blocks of the lease half
    #[arg(long)]
    pub plain: PathBuf,
    /// Where in their file they begin
    #[arg(long, default_value_t = 0)]
    pub plain_offset: u64,
    /// The file that transfers come from
    #[arg(long)]
    pub scratch: PathBuf,
    /// The demo's process
    #[arg(long)]
    pub parent: i32,
    /// Which reader this is
    #[arg(long, default_value_t = 0)]
    pub index: u64,
    /// How long each read is delayed half-way, in milliseconds
    #[arg(long, default_value_t = 0)]
    pub pause_ms: u64,
    /// How long leases last, in milliseconds
    #[arg(long, default_value_t = 0)]
    pub ttl_ms: u64,
    /// What transfers are made with
    #[arg(long, default_value = "auto")]
    pub dma: Wanted,
}

impl DemoChild {
    /// Plays the role.
    ///
    /// # Errors
    /// Whatever keeps it from doing so.
    pub fn run(self) -> Result<(), Failure> {
        end_with_parent(self.parent)?;
        match self.role {
            Role::LeaseReader => reader::under_leases(&self),
            Role::LeaseWriter => writer::under_leases(&self),
            Role::PinReader => reader::under_pins(&self),
            Role::PinWriter => writer::under_pins(&self),
            Role::Pinned => holder::read_for_ever(&self),
            Role::Unfinished => holder::write_for_ever(&self),
            Role::Slow => holder::hold_until_told(&self),
        }
    }

    /// The board.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn board(&self) -> Result<Board, Failure> {
        Ok(Board::over(&open_shared(&self.board)?)?)
    }

    /// A client of the demo's pool.
    ///
    /// # Errors
    /// When the owner cannot be reached.
    pub fn client(&self) -> Result<Client, Failure> {
        Ok(Client::connect(&self.owner)?)
    }
}

/// The name of a block's contents in the pool.
pub fn file_name(block: u64, generation: u64) -> String {
    format!("block-{block}.{generation}")
}

/// Says that everything is ready.
///
/// # Errors
/// When nobody listens.
pub fn say_ready() -> Result<(), Failure> {
    say(READY)
}

/// Says what was counted.
///
/// # Errors
/// When nobody listens.
pub fn say_tally(tally: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(tally)
        .map_err(|error| Failure::new("demo", 0, format!("a tally is no JSON: {error}")))?;
    say(&text)
}

fn say(line: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::io("tell", "the demo", &error))
}

/// Says "ready" and waits for the others.
///
/// # Errors
/// When the start never comes.
pub fn wait_for_start(board: &Board) -> Result<(), Failure> {
    say_ready()?;
    let until = Instant::now() + MAX_WAIT;
    while board.phase() == Phase::Wait {
        if Instant::now() > until {
            return Err(Failure::new("demo", 0, "the demo never started"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Makes the kernel kill this process when the demo ends, however that happens.
fn end_with_parent(parent: i32) -> Result<(), Failure> {
    let kill = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(kill)
        .map_err(|error| Failure::io("tie", "a child to the demo", &error.into()))?;
    // It may have ended before the call.
    let now = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    if now == parent {
        Ok(())
    } else {
        Err(Failure::new("demo", 0, "this verb is a part of `pgmap demo` and of no use by itself"))
    }
}

/// Small random numbers; the seed is the role's index, so that runs are alike.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Dice that fall the same way for the same index.
    pub const fn new(index: u64) -> Self {
        Self((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `limit`.
    pub const fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

/// Opens memory of the demo's first process by its descriptor in /proc, which is a link.
///
/// # Errors
/// When it cannot be opened.
pub fn open_shared(path: &Path) -> Result<MemoryFile, Failure> {
    let file = std::fs::File::options().read(true).write(true).open(path);
    let file = file.map_err(|error| Failure::io("open", path.display(), &error))?;
    Ok(MemoryFile::from_fd(file.into())?)
}
