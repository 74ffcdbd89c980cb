//! Which pool is meant, and how it is made if it is not there: the options of `create` and `serve`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use pgmap::os::{file_lock, places};
use pgmap::{Durability, Error, PageSize, Pool, PoolOptions, Populate};

use crate::attach::check_default;
use crate::failure::{Exit, Failure};
use crate::sizes;
use crate::verbs::folio_level::FolioLevel;

const DEFAULT_BYTES: u64 = 1 << 30;
/// The file in a pool's directory whose lock says that the pool has an owner.
const OWNER_LOCK: &str = "owner.lock";

/// The options.
#[derive(Debug, clap::Args)]
pub struct PoolArguments {
    /// Size of a new pool: 4GiB, 512M, 0x40000000 [default: 1GiB; all of a device]
    #[arg(long, value_name = "SIZE", value_parser = sizes::parse)]
    size: Option<u64>,
    /// Directory of the pool [default: $XDG_RUNTIME_DIR/pgmap/pool]
    ///
    /// With --on, what is good for this run of the machine only lies there: locks, ledgers, index.
    /// Default then: a directory beside the default one, named after PATH.
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pool: Option<PathBuf>,
    /// Where the data lies: a device, a file, or a directory of huge pages
    ///
    /// A device-dax device (/dev/dax0.0) is used as a whole unless --size says otherwise. A file
    /// that does not exist is made, on ext4, XFS or Btrfs, on a file system mounted with DAX, or on
    /// tmpfs; it needs --size. In a directory of hugetlbfs a file `pgmap-data` is made. The data
    /// then carries the pool's catalog: it can be opened on another machine. What this machine has
    /// to offer is in `pgmap list --devices`.
    ///
    /// Needs: for tmpfs, huge pages and a disk Linux 5.10 and write access to the directory (huge
    /// pages: to the mount, and that root has the system keep some); for files on DAX Linux 6.12
    /// and the same; for a device Linux 6.12 and read and write access to it, which root has unless
    /// its mode says otherwise.
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::AnyPath)]
    on: Option<PathBuf>,
    /// Smallest folio of a new pool: a file takes whole folios. Goes with --on [default: 4K]
    #[arg(long, value_name = "SIZE", requires = "on")]
    smallest_folio: Option<FolioLevel>,
    /// What committed files must outlive; a pool that cannot keep it is refused
    #[arg(long, value_name = "WHAT")]
    durability: Option<Outlives>,
    /// Most files that a new pool can hold [default: one for each 64 KiB of it, at least 1024]
    #[arg(long, value_name = "N")]
    max_files: Option<u64>,
    /// Room for backings that are added to a new pool later, see `pgmap backing` [default: none]
    ///
    /// Room is addresses, and takes no memory before it is used. Each backing takes its size,
    /// rounded up to a whole GiB and some.
    #[arg(long, value_name = "SIZE", value_parser = sizes::parse)]
    room: Option<u64>,
    /// Take memory on this NUMA node alone [default: where it is first written]
    ///
    /// For memory that is not bound to a node: tmpfs and huge pages. Holds for memory that is taken
    /// from now on.
    #[arg(long, value_name = "N", conflicts_with = "interleave")]
    node: Option<u32>,
    /// Take memory on these NUMA nodes in turn: 0,1
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    interleave: Vec<u32>,
    /// Take all the memory now
    #[arg(long = "populate")]
    is_populated: bool,
    /// Use the system's huge pages; the pool then ends with the server
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["pool", "on"])]
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

/// What files outlive.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Outlives {
    /// Processes
    Processes,
    /// An orderly restart of the machine, after the server has stopped
    Restart,
    /// A power failure, from the moment that a file was committed
    PowerFailure,
}

/// What becomes of a pool that is there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It is opened.
    Open,
    /// It is an error.
    Refuse,
}

impl PoolArguments {
    /// Opens the pool, or makes it.
    ///
    /// # Errors
    /// As [`Pool::create`] and [`Pool::open`]; when there is one that was made otherwise.
    pub fn open(&self, existing: Existing) -> Result<Pool, Failure> {
        if let Some(huge) = self.huge {
            let page_size = match huge {
                HugePages::Huge2M => PageSize::Huge2M,
                HugePages::Huge1G => PageSize::Huge1G,
            };
            let size_bytes = self.size.unwrap_or(DEFAULT_BYTES);
            let options = PoolOptions::anonymous(size_bytes).huge_pages(page_size);
            return Ok(Pool::create(&self.finish(options))?);
        }
        let directory = self.directory();
        make_parent(&directory)?;
        if self.pool.is_none() {
            check_default(&directory, "--pool")?;
        }
        let failed = |error| not_opened(&directory, error);
        let is_there = match &self.on {
            Some(on) => Pool::is_on(on).map_err(failed)?,
            None => Pool::is_in(&directory)?,
        };
        if !is_there || existing == Existing::Refuse {
            let options = match &self.on {
                Some(on) => PoolOptions::on(on, &directory).size(self.size.unwrap_or(0)),
                None => {
                    let size_bytes = self.size.unwrap_or(DEFAULT_BYTES);
                    PoolOptions::in_directory(&directory, size_bytes)
                }
            };
            return Pool::create(&self.finish(options)).map_err(failed);
        }
        let pool = match &self.on {
            Some(on) => Pool::open_on(on, &directory),
            None => Pool::open(&directory),
        };
        let pool = pool.map_err(failed)?;
        pool.take_on(&self.nodes())?;
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

    /// Opens the pool in the directory `pool`, or on `on`; that there is none is an error.
    ///
    /// # Errors
    /// As [`Pool::open`].
    pub fn open_existing(pool: Option<PathBuf>, on: Option<PathBuf>) -> Result<Pool, Failure> {
        let arguments = Self {
            pool,
            on,
            size: None,
            smallest_folio: None,
            durability: None,
            max_files: None,
            room: None,
            node: None,
            interleave: Vec::new(),
            is_populated: false,
            huge: None,
        };
        let directory = arguments.directory();
        if arguments.pool.is_none() {
            check_default(&directory, "--pool")?;
        }
        let opened = match &arguments.on {
            Some(on) => Pool::open_on(on, &directory),
            None => Pool::open(&directory),
        };
        opened.map_err(|error| not_opened(&directory, error))
    }

    fn finish(&self, mut options: PoolOptions) -> PoolOptions {
        let populate = if self.is_populated { Populate::Upfront } else { Populate::OnDemand };
        options = options.populate(populate).nodes(self.nodes());
        if let Some(room) = self.room {
            options = options.room(room);
        }
        if let Some(max_files) = self.max_files {
            options = options.max_files(max_files);
        }
        if let Some(level) = self.smallest_folio {
            options = options.smallest_folio(level.into());
        }
        match self.durability {
            Some(Outlives::Restart) => options.durability(Durability::Restart),
            Some(Outlives::PowerFailure) => options.durability(Durability::PowerFailure),
            Some(Outlives::Processes) | None => options,
        }
    }

    fn nodes(&self) -> BTreeSet<u32> {
        self.node.iter().chain(&self.interleave).copied().collect()
    }

    fn directory(&self) -> PathBuf {
        let beside = || {
            let default = places::default_pool_dir();
            let Some(on) = &self.on else { return default };
            let whole = std::path::absolute(on).unwrap_or_else(|_| on.clone());
            let name = whole.to_string_lossy().replace('/', "-");
            default.with_file_name(format!("on{name}"))
        };
        self.pool.clone().unwrap_or_else(beside)
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
///
/// # Errors
/// What the system says.
pub fn make_parent(path: &Path) -> Result<(), Failure> {
    let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else {
        return Ok(());
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(parent)
        .map_err(|error| Failure::io("create", parent.display(), &error))
}
