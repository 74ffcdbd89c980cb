//! `pgmap put FILE|- NAME`: streams a file into the pool; nobody sees it before its last byte.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::ValueEnum;
use pgmap::{Client, CreateSpec, FileName, FileRules, FileWriter, FolioSize, LongtermRule};
use serde::Serialize;

use super::CHUNK_BYTES;
use crate::attach::{attach, name_bytes};
use crate::failure::Failure;
use crate::output::Output;
use crate::progress::Progress;
use crate::sizes;

/// Put a file, or what stdin brings, into the pool
///
/// Until all of it is there nobody can open it; interrupted or killed, nothing is left. The length
/// of a pipe is not known beforehand: it is read to its end first, unless --size tells.
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
    /// Length of what stdin brings, to stream it
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
    name: String,
    id: u64,
    len_bytes: u64,
    elapsed_ms: u64,
}

impl Put {
    /// Puts it.
    ///
    /// # Errors
    /// When the file cannot be read, the name is taken or the pool is full.
    pub fn run(self, socket: &Path, output: &Output) -> Result<(), Failure> {
        let client = attach(socket)?;
        let started = Instant::now();
        let (mut source, len_bytes) = self.open(&client)?;
        let name = FileName::new(name_bytes(&self.name))?;
        let shown = name.to_string();
        let spec = CreateSpec {
            name,
            len_bytes,
            folio_size: self.folio.into(),
            replace: self.is_replacing,
            rules: FileRules {
                longterm: self.longterm.into(),
                is_raw: self.is_raw,
                is_read_only: self.is_read_only,
            },
        };
        let created = client.create_batch(vec![spec])?.pop();
        let mut writer =
            created.ok_or_else(|| Failure::new("the owner answered nothing; ask its log"))??;
        let progress = Progress::start(output, shown.clone(), len_bytes);
        copy(&mut *source, &mut writer, &progress).map_err(|problem| match problem {
            Problem::Pool(error) => error.into(),
            Problem::Source(why) => {
                Failure::new(format!("{}: {why}; nothing was put", self.file.display()))
            }
        })?;
        let id = writer.id();
        writer.commit()?;
        drop(progress);
        output.note(&format!("put {} as {shown}", sizes::human(len_bytes)));
        output.show_done(&Done {
            schema: "pgmap.put/1",
            name: shown,
            id,
            len_bytes,
            elapsed_ms: started.elapsed().as_millis() as u64,
        })
    }

    /// What to read and how long it is.
    fn open(&self, client: &Client) -> Result<(Box<dyn Read>, u64), Failure> {
        let failed = |what: &str, error: &io::Error| Failure::io(what, self.file.display(), error);
        let (source, known): (Box<dyn Read>, Option<u64>) = if self.file.as_os_str() == "-" {
            (Box::new(io::stdin().lock()), None)
        } else {
            let file = File::open(&self.file).map_err(|error| failed("open", &error))?;
            let metadata = file.metadata().map_err(|error| failed("inspect", &error))?;
            if metadata.is_dir() {
                return Err(Failure::new(format!("{} is a directory", self.file.display())));
            }
            (Box::new(file), metadata.is_file().then_some(metadata.len()))
        };
        if let Some(len_bytes) = self.size.or(known) {
            return Ok((source, len_bytes));
        }
        // One byte more than fits tells that it does not.
        let mut bytes = Vec::new();
        let limit = client.pool_bytes();
        source.take(limit + 1).read_to_end(&mut bytes).map_err(|error| failed("read", &error))?;
        if bytes.len() as u64 > limit {
            return Err(Failure::new(format!(
                "{} brings more than the whole pool holds ({limit} bytes)",
                self.file.display()
            )));
        }
        let len_bytes = bytes.len() as u64;
        Ok((Box::new(io::Cursor::new(bytes)), len_bytes))
    }
}

enum Problem {
    Pool(pgmap::Error),
    Source(String),
}

/// Fills `writer` from `source`, which must end where the file does.
fn copy(
    source: &mut dyn Read,
    writer: &mut FileWriter<'_>,
    progress: &Progress,
) -> Result<(), Problem> {
    let broken = |error: io::Error| Problem::Source(error.to_string());
    let len_bytes = writer.len_bytes();
    let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(len_bytes).unwrap_or(CHUNK_BYTES))];
    let mut at = 0;
    while at < len_bytes {
        let want = chunk.len().min(usize::try_from(len_bytes - at).unwrap_or(usize::MAX));
        let nr_read = read_full(source, &mut chunk[..want]).map_err(broken)?;
        if nr_read == 0 {
            return Err(Problem::Source(format!("it ended after {at} of {len_bytes} bytes")));
        }
        writer.write_all_at(at, &chunk[..nr_read]).map_err(Problem::Pool)?;
        at += nr_read as u64;
        progress.advance(nr_read as u64);
    }
    if read_full(source, &mut [0]).map_err(broken)? != 0 {
        return Err(Problem::Source(format!("there is more of it than {len_bytes} bytes")));
    }
    Ok(())
}

/// Reads until `chunk` is full or the source ends.
fn read_full(source: &mut dyn Read, chunk: &mut [u8]) -> io::Result<usize> {
    let mut at = 0;
    while at < chunk.len() {
        match source.read(&mut chunk[at..]) {
            Ok(0) => break,
            Ok(nr_read) => at += nr_read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}
