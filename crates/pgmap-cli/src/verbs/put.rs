//! `pgmap put FILE|- NAME`: streams a file into the pool; nobody sees it before its last byte.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::ValueEnum;
use pgmap::MAX_METADATA_BYTES;
use pgmap::{
    Client, CreateSpec, FileName, FileRules, FileWriter, FolioSize, LongtermRule, Placement,
    UserMetadata,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;

use super::CHUNK_BYTES;
use crate::attach::{Place, attach, name_bytes};
use crate::failure::Failure;
use crate::names::Exact;
use crate::output::Output;
use crate::progress::Progress;
use crate::sizes;

/// Put a file, or what stdin brings, into the pool
///
/// Until all of it is there nobody can open it; interrupted or killed, nothing is left. The length
/// of a pipe is not known beforehand: it is read to its end first, unless --size tells; so is a
/// file that is not as long as the system says.
#[derive(Debug, clap::Args)]
pub struct Put {
    /// File to read; - for stdin
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// Name in the pool
    name: OsString,
    /// Take the place of a file of that name, in one step; for a moment the pool holds both
    #[arg(long = "replace")]
    is_replacing: bool,
    /// Size of the folios that hold it
    #[arg(long, value_name = "SIZE", default_value = "auto")]
    folio: Folios,
    /// What long-term pins of it are allowed
    #[arg(long, value_name = "RULE", default_value = "as-type")]
    longterm: Longterm,
    /// Let it be mapped and never pinned; `pgmap get` cannot read it then
    #[arg(long = "raw")]
    is_raw: bool,
    /// Let nobody pin it for writing
    #[arg(long = "read-only")]
    is_read_only: bool,
    /// Let the owner evict it when others need room and nobody holds it: the least recently used of
    /// the lowest PRIORITY (1 to 255) first
    #[arg(
        long,
        value_name = "PRIORITY",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1",
        value_parser = clap::value_parser!(u8).range(1..)
    )]
    evictable: Option<u8>,
    /// Lie on this backing and on no other; again for the next one to try
    #[arg(long, value_name = "BACKING", conflicts_with = "prefer")]
    only: Vec<String>,
    /// Lie on this backing if there is room; again for the next one to try
    #[arg(long, value_name = "BACKING")]
    prefer: Vec<String>,
    /// Keep up to 256 bytes beside the contents: TEXT, or what @FILE has
    #[arg(long = "meta", value_name = "TEXT|@FILE")]
    metadata: Option<OsString>,
    /// Keep a checksum (CRC-32C) of the contents, for `get --verify` and `check --data`
    #[arg(long = "checksum")]
    is_checksummed: bool,
    /// Length of what is read, to stream it; another is an error
    #[arg(long, value_name = "SIZE", value_parser = sizes::parse)]
    size: Option<u64>,
}

/// Sizes of folios.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Folios {
    /// The largest that fit
    Auto,
    /// 4 KiB
    #[value(name = "4K", alias = "4KiB")]
    Of4K,
    /// 2 MiB
    #[value(name = "2M", alias = "2MiB")]
    Of2M,
    /// 1 GiB
    #[value(name = "1G", alias = "1GiB")]
    Of1G,
}

impl From<Folios> for FolioSize {
    fn from(folios: Folios) -> Self {
        match folios {
            Folios::Auto => Self::BestFit,
            Folios::Of4K => Self::Pages4K,
            Folios::Of2M => Self::Pages2M,
            Folios::Of1G => Self::Pages1G,
        }
    }
}

/// Rules for long-term pins.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Longterm {
    /// What the pool's type says
    AsType,
    /// None
    Forbid,
    /// None that a device writes through
    ForbidDevice,
    /// As leases, which the owner may ask back
    Leasable,
}

impl From<Longterm> for LongtermRule {
    fn from(rule: Longterm) -> Self {
        match rule {
            Longterm::AsType => Self::AsType,
            Longterm::Forbid => Self::Forbid,
            Longterm::ForbidDevice => Self::ForbidDevice,
            Longterm::Leasable => Self::Leasable,
        }
    }
}

#[derive(Debug, Serialize)]
struct Done {
    schema: &'static str,
    #[serde(flatten)]
    name: Exact,
    id: u64,
    len_bytes: u64,
    elapsed_ms: u64,
}

/// What is put, and how long it is.
struct Source {
    reader: Box<dyn Read>,
    len_bytes: u64,
    /// The file, and where in it the bytes start, if the length is the system's word.
    believed: Option<(File, u64)>,
    /// Tells when there is something to read, of what may keep its reader waiting.
    pipe: Option<OwnedFd>,
}

impl Put {
    /// Puts it.
    ///
    /// # Errors
    /// When the file cannot be read, the name is taken or the pool is full.
    pub fn run(self, place: &Place, output: &Output) -> Result<(), Failure> {
        let client = attach(place)?;
        let started = Instant::now();
        let name = FileName::new(name_bytes(&self.name))?;
        let source = self.open(&client)?;
        let (id, len_bytes) = match self.transfer(&client, &name, source, output) {
            // It is not as long as the system said: its end is where reading ends.
            Err(Problem::Length(_, Some((mut file, start)))) => {
                file.seek(SeekFrom::Start(start)).map_err(|error| self.failed("rewind", &error))?;
                let source = self.read_all(&client, Box::new(file))?;
                self.transfer(&client, &name, source, output)
            }
            result => result,
        }
        .map_err(|problem| self.failure(problem))?;
        output.note(&format!("put {} as {name}", sizes::human(len_bytes)));
        output.show_done(&Done {
            schema: "pgmap.put/1",
            name: Exact::name(Some(name.as_bytes())),
            id,
            len_bytes,
            elapsed_ms: started.elapsed().as_millis() as u64,
        })
    }

    /// What to read and how long it is.
    fn open(&self, client: &Client) -> Result<Source, Failure> {
        let file = if self.file.as_os_str() == "-" {
            let stdin = io::stdin().as_fd().try_clone_to_owned();
            File::from(stdin.map_err(|error| self.failed("read", &error))?)
        } else {
            File::open(&self.file).map_err(|error| self.failed("open", &error))?
        };
        let metadata = file.metadata().map_err(|error| self.failed("inspect", &error))?;
        if metadata.is_dir() {
            let why = format!("{} is a directory", self.file.display());
            return Err(Failure::new("is_a_directory", libc::EISDIR, why));
        }
        if let Some(len_bytes) = self.size {
            let pipe =
                if metadata.is_file() { None } else { file.as_fd().try_clone_to_owned().ok() };
            return Ok(Source { reader: Box::new(file), len_bytes, believed: None, pipe });
        }
        // What is short is read to its end in any case: files of /proc and /sys have any size.
        if metadata.is_file()
            && metadata.len() > CHUNK_BYTES as u64
            && let Ok(start) = (&file).stream_position()
        {
            let again = file.try_clone().map_err(|error| self.failed("open", &error))?;
            let len_bytes = metadata.len().saturating_sub(start);
            return Ok(Source {
                reader: Box::new(file),
                len_bytes,
                believed: Some((again, start)),
                pipe: None,
            });
        }
        self.read_all(client, Box::new(file))
    }

    /// Reads to the end: where that is, is not known beforehand.
    fn read_all(&self, client: &Client, reader: Box<dyn Read>) -> Result<Source, Failure> {
        // One byte more than fits tells that it does not.
        let mut bytes = Vec::new();
        let limit = client.pool_bytes();
        reader
            .take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| self.failed("read", &error))?;
        let len_bytes = bytes.len() as u64;
        if len_bytes > limit {
            let why = format!(
                "{} brings more than the whole pool holds ({limit} bytes)",
                self.file.display()
            );
            return Err(Failure::new("too_large", libc::EFBIG, why));
        }
        let reader = Box::new(io::Cursor::new(bytes));
        Ok(Source { reader, len_bytes, believed: None, pipe: None })
    }

    /// On which backings the file may lie.
    fn placement(&self) -> Placement {
        match (self.only.as_slice(), self.prefer.as_slice()) {
            ([], []) => Placement::Any,
            ([], prefer) => Placement::Prefer(prefer.to_vec()),
            (only, _) => Placement::Only(only.to_vec()),
        }
    }

    /// What is to be kept beside the contents.
    fn metadata(&self) -> Result<UserMetadata, Problem> {
        let Some(given) = &self.metadata else { return Ok(UserMetadata::default()) };
        let bytes = match given.as_bytes().strip_prefix(b"@") {
            Some(path) => {
                let path = Path::new(OsStr::from_bytes(path));
                read_little(path).map_err(|error| Problem::Metadata(path.to_owned(), error))?
            }
            None => given.as_bytes().to_vec(),
        };
        UserMetadata::new(bytes).map_err(|refusal| Problem::Pool(refusal.into()))
    }

    /// Puts what `source` brings, and returns the file's number and length.
    fn transfer(
        &self,
        client: &Client,
        name: &FileName,
        mut source: Source,
        output: &Output,
    ) -> Result<(u64, u64), Problem> {
        let spec = CreateSpec {
            replace: self.is_replacing,
            rules: FileRules {
                longterm: self.longterm.into(),
                is_raw: self.is_raw,
                is_read_only: self.is_read_only,
                evict_priority: self.evictable.unwrap_or(0),
            },
            placement: self.placement(),
            metadata: self.metadata()?,
            is_checksummed: self.is_checksummed,
            ..CreateSpec::new(name.clone(), source.len_bytes, self.folio.into())
        };
        let created = client.create_batch(vec![spec]).map_err(Problem::Pool)?.pop();
        let mut writer = created.ok_or(Problem::NoAnswer)?.map_err(Problem::Pool)?;
        let progress = Progress::start(output, name.to_string(), source.len_bytes);
        if let Err(why) = copy(&mut source, &mut writer, &progress)? {
            return Err(Problem::Length(why, source.believed));
        }
        let id = writer.id();
        writer.commit().map_err(Problem::Pool)?;
        Ok((id, source.len_bytes))
    }

    fn failed(&self, what: &str, error: &io::Error) -> Failure {
        Failure::io(what, self.file.display(), error)
    }

    fn failure(&self, problem: Problem) -> Failure {
        let file = self.file.display();
        match problem {
            Problem::Pool(error) => error.into(),
            Problem::Metadata(path, error) => Failure::io("read", path.display(), &error),
            Problem::NoAnswer => {
                Failure::new("protocol", libc::EPROTO, "the owner answered nothing; ask its log")
            }
            Problem::Source(error) => {
                let failure = self.failed("read", &error);
                Failure { message: format!("{failure}; nothing was put"), ..failure }
            }
            Problem::Length(why, _) => {
                let why = format!("{file}: {why}; nothing was put");
                Failure::new("wrong_length", libc::EINVAL, why)
            }
        }
    }
}

enum Problem {
    Pool(pgmap::Error),
    Metadata(PathBuf, io::Error),
    NoAnswer,
    Source(io::Error),
    /// The source is shorter or longer than it was said to be; what to read again, if that was only
    /// the system's word.
    Length(String, Option<(File, u64)>),
}

/// What a file has, or its start if that is too much to be metadata.
fn read_little(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_METADATA_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// How often a put that waits for its source asks whether the owner is still there.
const OWNER_POLL: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// Fills `writer` from `source`, which must end where the file does: says why it does not.
fn copy(
    source: &mut Source,
    writer: &mut FileWriter<'_>,
    progress: &Progress,
) -> Result<Result<(), String>, Problem> {
    let len_bytes = writer.len_bytes();
    let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(len_bytes).unwrap_or(CHUNK_BYTES))];
    let mut at = 0;
    while at < len_bytes {
        let want = chunk.len().min(usize::try_from(len_bytes - at).unwrap_or(usize::MAX));
        let nr_read = read_full(source, writer, &mut chunk[..want])?;
        if nr_read == 0 {
            return Ok(Err(format!("it ended after {at} of {len_bytes} bytes")));
        }
        writer.write_all_at(at, &chunk[..nr_read]).map_err(Problem::Pool)?;
        at += nr_read as u64;
        progress.advance(nr_read as u64);
    }
    match read_full(source, writer, &mut [0])? {
        0 => Ok(Ok(())),
        _ => Ok(Err(format!("there is more of it than {len_bytes} bytes"))),
    }
}

/// Reads until `chunk` is full or the source ends; gives up when the owner is gone.
fn read_full(
    source: &mut Source,
    writer: &mut FileWriter<'_>,
    chunk: &mut [u8],
) -> Result<usize, Problem> {
    let mut at = 0;
    while at < chunk.len() {
        if let Some(pipe) = &source.pipe {
            wait_for_bytes(pipe, writer)?;
        }
        match source.reader.read(&mut chunk[at..]) {
            Ok(0) => break,
            Ok(nr_read) => at += nr_read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Problem::Source(error)),
        }
    }
    Ok(at)
}

/// Returns when `pipe` can be read.
fn wait_for_bytes(pipe: &OwnedFd, writer: &mut FileWriter<'_>) -> Result<(), Problem> {
    loop {
        match poll(&mut [PollFd::new(pipe, PollFlags::IN)], Some(&OWNER_POLL)) {
            Ok(0) => writer.check_owner().map_err(Problem::Pool)?,
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Problem::Source(errno.into())),
        }
    }
}
