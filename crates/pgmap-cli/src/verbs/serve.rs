//! `pgmap serve`: owns a pool until it is told to stop.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use pgmap::os::{file_lock, places};
use pgmap::{Error, Owner, PageSize, Pool, PoolOptions, Populate};
use serde::Serialize;

use crate::attach::{Place, check_default};
use crate::failure::{Exit, Failure};
use crate::names::Exact;
use crate::output::{Output, Show, Units};
use crate::sizes;
use crate::standard_streams::is_stdout_closed;
use crate::stop::Stop;
use crate::table::Table;

const DEFAULT_BYTES: u64 = 1 << 30;
/// The file in a pool's directory whose lock says that the pool has an owner.
const OWNER_LOCK: &str = "owner.lock";

/// Own a pool and serve it until SIGTERM or SIGINT
///
/// Makes a pool of 1 GiB under $XDG_RUNTIME_DIR (or /dev/shm), or opens the one that is there: files
/// outlive the server. Prints one line when clients can attach. Logs go to stderr.
///
/// The memory of a pool is taken when it is first handed out, so that shortage is an error there and
/// never a signal. A pool of huge pages lives in no directory and ends with the server.
#[derive(Debug, clap::Args)]
pub struct Serve {
    /// Size of a new pool: 4GiB, 512M, 0x40000000 [default: 1GiB]
    #[arg(long, value_name = "SIZE", value_parser = sizes::parse)]
    size: Option<u64>,
    /// Directory of the pool [default: $XDG_RUNTIME_DIR/pgmap/pool]
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pool: Option<PathBuf>,
    /// Most files that a new pool can hold [default: one for each 64 KiB of it, at least 1024]
    #[arg(long, value_name = "N")]
    max_files: Option<u64>,
    /// Take all the memory now
    #[arg(long = "populate")]
    is_populated: bool,
    /// Use the system's huge pages; the pool then ends with the server
    #[arg(long, value_name = "SIZE", conflicts_with = "pool")]
    huge: Option<HugePages>,
}

/// Sizes of huge pages.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum HugePages {
    /// 2 MiB
    #[value(name = "2M", alias = "2MiB")]
    Huge2M,
    /// 1 GiB
    #[value(name = "1G", alias = "1GiB")]
    Huge1G,
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
        let pool = self.open()?;
        let owner = Owner::start(pool)?;
        owner.serve(socket)?;
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
        let signal = stop.wait();
        tracing::info!(signal, "stopping");
        drop(owner);
        Ok(())
    }

    fn open(&self) -> Result<Pool, Failure> {
        let populate = if self.is_populated { Populate::Upfront } else { Populate::OnDemand };
        let size_bytes = self.size.unwrap_or(DEFAULT_BYTES);
        if let Some(huge) = self.huge {
            let page_size = match huge {
                HugePages::Huge2M => PageSize::Huge2M,
                HugePages::Huge1G => PageSize::Huge1G,
            };
            let mut options = PoolOptions::anonymous(size_bytes).huge_pages(page_size);
            if let Some(max_files) = self.max_files {
                options = options.max_files(max_files);
            }
            return Ok(Pool::create(&options.populate(populate))?);
        }
        let directory = self.pool.clone().unwrap_or_else(places::default_pool_dir);
        make_parent(&directory)?;
        if self.pool.is_none() {
            check_default(&directory, "--pool")?;
        }
        let mut options = PoolOptions::in_directory(&directory, size_bytes).populate(populate);
        if let Some(max_files) = self.max_files {
            options = options.max_files(max_files);
        }
        if !Pool::is_in(&directory)? {
            return Pool::create(&options).map_err(|error| not_opened(&directory, error));
        }
        let pool = Pool::open(&directory).map_err(|error| not_opened(&directory, error))?;
        if let [first, more @ ..] = pool.unsynced() {
            tracing::warn!(
                "the machine was restarted before everything was synced: \"{first}\" and {} more \
                 files are gone",
                more.len()
            );
        }
        self.check_as_made(&directory, &pool)?;
        Ok(pool)
    }

    /// Refuses to serve a pool that was made otherwise than is asked for.
    fn check_as_made(&self, directory: &Path, pool: &Pool) -> Result<(), Failure> {
        let differs = |option: &str, has: String, wanted: u64| {
            Failure::new(
                "bad_pool",
                libc::EINVAL,
                format!(
                    "the pool in {} has {has}, not {wanted}: leave {option} out, or choose another \
                     --pool",
                    directory.display()
                ),
            )
        };
        let (size_bytes, max_files) = (pool.size_bytes(), pool.max_files());
        match (self.size, self.max_files) {
            (Some(wanted), _) if wanted.checked_next_multiple_of(4096) != Some(size_bytes) => {
                Err(differs("--size", format!("{size_bytes} bytes"), wanted))
            }
            (_, Some(wanted)) if wanted != max_files => {
                Err(differs("--max-files", format!("room for {max_files} files"), wanted))
            }
            _ => Ok(()),
        }
    }
}

/// A pool that could not be opened because it has an owner is busy.
fn not_opened(directory: &Path, error: Error) -> Failure {
    // Whatever has that name: opening a named pipe would wait for a writer.
    let lock = fs::File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(directory.join(OWNER_LOCK));
    let is_owned = lock.is_ok_and(|lock| file_lock::is_locked(&lock).unwrap_or(false));
    match error {
        error @ Error::BadPool { .. } if is_owned => {
            Failure { exit: Exit::Busy, kind: "pool_in_use", errno: libc::EBUSY, ..error.into() }
        }
        error => error.into(),
    }
}

/// Makes the directory that `path` will be in, for this user alone.
fn make_parent(path: &Path) -> Result<(), Failure> {
    let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else {
        return Ok(());
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(parent)
        .map_err(|error| Failure::io("create", parent.display(), &error))
}
