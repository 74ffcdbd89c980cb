//! `pgmap serve`: owns a pool until it is asked to stop.

use std::path::Path;
use std::time::{Duration, Instant};

use pgmap::{Owner, Pool};
use serde::Serialize;

use crate::attach::Place;
use crate::durations;
use crate::failure::Failure;
use crate::names::Exact;
use crate::output::{Output, Show, Units};
use crate::sizes;
use crate::standard_streams::is_stdout_closed;
use crate::stop::Stop;
use crate::table::Table;
use crate::verbs::pool::{Existing, PoolArguments, make_parent};

/// How often it is looked whether the pool was drained, or a device that was away is back.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a device that is back is left alone: clients give up what they had of it within 200 ms,
/// and one that did so later could keep it from being opened again.
const LEFT_ALONE: Duration = Duration::from_millis(500);
/// How long a device that is back may take to be opened.
const DEVICE_PATIENCE: Duration = Duration::from_secs(10);

/// Own a pool and serve it until SIGTERM or SIGINT
///
/// Makes a pool of 1 GiB under $XDG_RUNTIME_DIR (or /dev/shm), or opens the one that is there:
/// files outlive the server. Prints one line when clients can attach. Logs go to stderr.
///
/// A pool on a device (--on /dev/daxX.Y) outlives the device's absence: while it is gone, `ls`,
/// `stat` and `who` go on and everything that touches memory is an error; when it is back it is
/// served again.
///
/// The memory of a pool is taken when it is first handed out, so that shortage is an error there
/// and never a signal. A pool of huge pages lives in no directory and ends with the server.
#[derive(Debug, clap::Args)]
pub struct Serve {
    #[command(flatten)]
    pool: PoolArguments,
    /// How long the server polls for the next request before it sleeps
    ///
    /// It does so after two requests that came within this time of each other. To wake a sleeping
    /// server takes some 50 us on a virtual machine; a polling one uses an otherwise idle
    /// processor. 0: never; 60s at most.
    #[arg(long, value_name = "TIME", default_value = "250us", value_parser = busy_poll)]
    busy_poll: Duration,
}

fn busy_poll(text: &str) -> Result<Duration, String> {
    let time = durations::parse(text)?;
    let most = Owner::MAX_BUSY_POLL;
    (time <= most).then_some(time).ok_or_else(|| format!("it may last {most:?} at most"))
}

#[derive(Debug, Serialize)]
struct Serving {
    schema: &'static str,
    #[serde(flatten)]
    pool: Exact,
    #[serde(flatten)]
    socket: Exact,
    size_bytes: u64,
    free_bytes: u64,
    nr_files: u64,
    pid: u32,
}

impl Show for Serving {
    fn table(&self, _: Units) -> Table {
        let mut table = Table::facts();
        let size = sizes::human(self.size_bytes);
        let place = match self.pool.shown() {
            None => "an anonymous pool".to_owned(),
            Some(pool) => format!("the pool in {pool}"),
        };
        let socket = self.socket.shown().unwrap_or_default();
        table.row(vec![format!("serving {place} ({size}, {} files) at {socket}", self.nr_files)]);
        table
    }
}

impl Serve {
    /// Serves until a signal comes.
    ///
    /// # Errors
    /// When the pool has an owner, somebody listens at the socket, or there is no memory.
    pub fn run(self, place: &Place, output: &Output) -> Result<(), Failure> {
        // Before anything is there that a signal would leave behind.
        let mut stop = Stop::listen()?;
        let socket = place.socket.as_path();
        make_parent(socket)?;
        place.check()?;
        let pool = self.pool.open(Existing::Open)?;
        let owner = self.start(pool, socket)?;
        let info = owner.info();
        let serving = Serving {
            schema: "pgmap.serve/1",
            pool: Exact::pool(owner.pool().directory()),
            socket: Exact::socket(socket),
            size_bytes: info.size_bytes,
            free_bytes: info.free_bytes,
            nr_files: info.nr_files,
            pid: std::process::id(),
        };
        // Who starts a server without a stdout does not wait for its line.
        if !is_stdout_closed() {
            output.show(&serving)?;
        }
        let why = self.serve_until_end(owner, socket, &mut stop)?;
        tracing::info!(why, "stopped");
        Ok(())
    }

    fn start(&self, pool: Pool, socket: &Path) -> Result<Owner, Failure> {
        let owner = Owner::start(pool)?;
        owner.set_busy_poll(self.busy_poll)?;
        owner.serve(socket)?;
        Ok(owner)
    }

    /// Serves until a signal comes or the pool is drained, and takes the pool up again when its
    /// device was away and is back. Returns why it ended.
    fn serve_until_end(
        &self,
        mut owner: Owner,
        socket: &Path,
        stop: &mut Stop,
    ) -> Result<&'static str, Failure> {
        loop {
            if let Some(signal) = stop.wait_for(PAUSE) {
                return Ok(signal);
            }
            if owner.is_closed() {
                return Ok("the pool is drained");
            }
            if !owner.pool().is_device_back() {
                continue;
            }
            drop(owner);
            if let Some(signal) = stop.wait_for(LEFT_ALONE) {
                return Ok(signal);
            }
            let since = Instant::now();
            owner = loop {
                // The device's node may be there a moment later than the device.
                match self.pool.open(Existing::Open) {
                    Err(_) if since.elapsed() < DEVICE_PATIENCE => {}
                    opened => break self.start(opened?, socket)?,
                }
                if let Some(signal) = stop.wait_for(PAUSE) {
                    return Ok(signal);
                }
            };
            tracing::info!("the device is back, and the pool on it is served again");
        }
    }
}
