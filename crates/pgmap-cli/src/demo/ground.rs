//! What the demo's memory lies on: memory without a name, or what `--on` names.
//!
//! Both halves work on the same kind of memory. On a path the pool is made there, and the blocks of
//! the lease half are a file of it that nobody pins; a second file takes what the memory has beyond
//! what the demo needs, so that whatever is given back is used again at once.

use std::fs;
use std::path::{Path, PathBuf};

use pgmap::os::{FileAccess, MemoryFile, MemoryKind};
use pgmap::{Client, Durability, FolioSize, Owner, PageSize, Pool, PoolOptions, Populate};

use super::stage::Stage;
use super::{PLAIN_BYTES, POOL_BYTES};
use crate::failure::Failure;

/// Files of the pool that are there all the time.
const PLAIN: &str = "demo-plain";
const BALLAST: &str = "demo-ballast";
/// Bytes for the head that data on a path begins with.
const HEAD_BYTES: u64 = 8 << 20;
/// What is zeroed of a device in the end: then there is no pool.
const ERASED_BYTES: usize = 4096;

/// The pool, its owner, and the lease half's blocks.
#[derive(Debug)]
pub struct Ground {
    owner: Owner,
    plain: MemoryFile,
    plain_offset: u64,
    /// Bytes that are free while nothing happens.
    idle_bytes: u64,
    kind: String,
    /// Ends after the owner.
    _made: Option<Made>,
}

impl Ground {
    /// Makes it, on `on` if that is named.
    ///
    /// # Errors
    /// When no pool can be made, or there is one already.
    pub fn make(stage: &Stage, on: Option<&Path>) -> Result<Self, Failure> {
        let ground = match on {
            None => Self::nameless()?,
            Some(on) => Self::on(stage, on)?,
        };
        ground.owner.serve(stage.socket())?;
        Ok(ground)
    }

    fn nameless() -> Result<Self, Failure> {
        let options = PoolOptions::anonymous(POOL_BYTES).populate(Populate::Upfront);
        let owner = Owner::start(Pool::create(&options)?)?;
        Ok(Self {
            idle_bytes: owner.info().free_bytes,
            kind: "memfd".into(),
            owner,
            plain: MemoryFile::anonymous("demo-plain", PLAIN_BYTES, PageSize::Base)?,
            plain_offset: 0,
            _made: None,
        })
    }

    fn on(stage: &Stage, on: &Path) -> Result<Self, Failure> {
        let size_bytes = POOL_BYTES + PLAIN_BYTES + HEAD_BYTES;
        let options = PoolOptions::on(on, stage.pool_directory())
            .size(size_bytes)
            .durability(Durability::Processes);
        let pool = Pool::create(&options)?;
        let place = if on.is_dir() { on.join("pgmap-data") } else { on.to_owned() };
        let made = Made { path: std::path::absolute(&place).unwrap_or(place) };
        let plain = MemoryFile::open_named(&made.path, FileAccess::ReadWrite)?;
        let kind = plain.kind().to_string();
        let owner = Owner::start(pool)?;
        let client = owner.client()?;
        let plain_offset = put_plain(&client)?;
        let free_bytes = owner.info().free_bytes;
        if let Some(rest) = free_bytes.checked_sub(POOL_BYTES).filter(|&rest| rest > 0) {
            put(&client, BALLAST, rest)?;
        }
        let idle_bytes = owner.info().free_bytes;
        Ok(Self { owner, plain, plain_offset, idle_bytes, kind, _made: Some(made) })
    }

    /// The pool's owner.
    pub const fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The file that the lease half's blocks lie in, and where.
    pub const fn plain(&self) -> (&MemoryFile, u64) {
        (&self.plain, self.plain_offset)
    }

    /// Bytes that are free while nothing happens.
    pub const fn idle_bytes(&self) -> u64 {
        self.idle_bytes
    }

    /// What it lies on.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Whether a file stays when the pool is cleared.
    pub fn stays(name: &[u8]) -> bool {
        name == PLAIN.as_bytes() || name == BALLAST.as_bytes()
    }
}

/// Makes the lease half's blocks, and returns where in the data they lie.
fn put_plain(client: &Client) -> Result<u64, Failure> {
    let mut writer = client.create(PLAIN, PLAIN_BYTES, FolioSize::BestFit)?;
    let segments = writer.segments();
    writer.commit()?;
    match segments.as_slice() {
        [(_, _, offset)] => Ok(*offset),
        more => Err(Failure::new("demo", 0, format!("{PLAIN} lies in {} pieces", more.len()))),
    }
}

/// A file whose contents do not matter.
fn put(client: &Client, name: &str, len_bytes: u64) -> Result<(), Failure> {
    let mut writer = client.create(name, len_bytes, FolioSize::BestFit)?;
    // Nobody reads it: what is there may stay.
    let _ = writer.segments();
    Ok(writer.commit()?)
}

/// A pool's data, which is removed, or erased where it is a device.
#[derive(Debug)]
struct Made {
    path: PathBuf,
}

impl Made {
    fn remove(&self) -> Result<(), Failure> {
        let data = MemoryFile::open_named(&self.path, FileAccess::ReadWrite)?;
        let failed = |error| Failure::io("remove the pool from", self.path.display(), &error);
        if data.kind() == MemoryKind::DevDax {
            return data.write_all_at(&[0; ERASED_BYTES], 0).map_err(failed);
        }
        drop(data);
        fs::remove_file(&self.path).map_err(failed)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(error = %error.message, "the demo's pool is left");
        }
    }
}
