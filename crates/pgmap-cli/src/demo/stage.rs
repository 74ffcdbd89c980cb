//! Where the demo has its files. They have no names, so that nothing is left of them however the
//! demo ends; its processes open them through `/proc`. Only the owner's socket lies in a directory.

use std::env;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use pgmap::PageSize;
use pgmap::os::{MemoryFile, MemoryKind, places};

use super::block::{NR_IMAGES, image_bytes};
use super::lease::BOARD_BYTES;
use super::{Plan, dma};
use crate::failure::Failure;
use crate::own_command::OwnCommand;

/// The demo's files.
#[derive(Debug)]
pub struct Stage {
    directory: PathBuf,
    board: MemoryFile,
    scratch: File,
    /// What moves the bytes.
    pub dma: dma::Wanted,
    /// What its processes are started with.
    pub command: OwnCommand,
}

impl Stage {
    /// Makes them.
    ///
    /// # Errors
    /// When no place for them can be written.
    pub fn set_up(plan: &Plan) -> Result<Self, Failure> {
        Ok(Self {
            scratch: make_scratch(plan.scratch.as_deref())?,
            board: MemoryFile::anonymous("demo-board", BOARD_BYTES, PageSize::Base)?,
            directory: make_directory()?,
            dma: plan.dma,
            command: plan.command.clone(),
        })
    }

    /// The board.
    pub fn board(&self) -> &MemoryFile {
        &self.board
    }

    /// The scratch file.
    pub fn scratch(&self) -> &File {
        &self.scratch
    }

    /// Where the demo's processes find a file.
    pub fn path_of(&self, file: impl AsFd) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), file.as_fd().as_raw_fd()).into()
    }

    /// Where a pool on a path has what ends with the demo.
    pub fn pool_directory(&self) -> PathBuf {
        self.directory.join("pool")
    }

    /// Where the owner listens.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.directory) {
            tracing::warn!(directory = %self.directory.display(), %error, "a directory is left");
        }
    }
}

fn own_name() -> String {
    format!("pgmap-demo-{}", std::process::id())
}

fn make_directory() -> Result<PathBuf, Failure> {
    let shared_memory = PathBuf::from("/dev/shm");
    let mut last = None;
    for place in [places::default_runtime_dir(), shared_memory, env::temp_dir()] {
        let directory = place.join(own_name());
        match DirBuilder::new().mode(0o700).create(&directory) {
            Ok(()) => return Ok(directory),
            Err(error) => last = Some(Failure::io("create", directory.display(), &error)),
        }
    }
    Err(last.unwrap_or_else(|| Failure::new("demo", 0, "there is no place for the demo's socket")))
}

/// Makes the scratch file: on a disk that transfers can reach past the page cache, if there is one.
fn make_scratch(wanted: Option<&Path>) -> Result<File, Failure> {
    let places = match wanted {
        Some(directory) => vec![directory.to_owned()],
        None => vec![env::temp_dir(), "/var/tmp".into(), "/tmp".into(), ".".into()],
    };
    let mut second_choice = None;
    let mut last = None;
    for place in places {
        let path = place.join(format!("{}.scratch", own_name()));
        match write_scratch(&path) {
            Ok((file, Reach::Direct)) => return Ok(file),
            Ok((file, Reach::Cached)) => second_choice = second_choice.or(Some(file)),
            Err(error) => last = Some(Failure::io("create", path.display(), &error)),
        }
    }
    second_choice.ok_or_else(|| {
        last.unwrap_or_else(|| Failure::new("demo", 0, "there is no place for the scratch file"))
    })
}

/// How a file can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// Past the page cache, from a disk.
    Direct,
    /// Otherwise.
    Cached,
}

fn write_scratch(path: &Path) -> io::Result<(File, Reach)> {
    let mut options = File::options();
    let mut file = options.read(true).write(true).create_new(true).mode(0o600).open(path)?;
    let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(path);
    // From here on the file has no name.
    fs::remove_file(path)?;
    for image in 0..NR_IMAGES {
        file.write_all(&image_bytes(image))?;
    }
    file.sync_all()?;
    let is_on_disk = MemoryFile::from_fd(file.try_clone()?.into())
        .is_ok_and(|memory| memory.kind() == MemoryKind::PageCache);
    let reach = if is_on_disk && direct.is_ok() { Reach::Direct } else { Reach::Cached };
    Ok((file, reach))
}
