//! `pgmap get NAME [FILE|-]`: writes a pinned file out; a file on disk appears whole or not at all.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use pgmap::{Checksum, Client, FilePin, Observer};
use serde::Serialize;

use super::CHUNK_BYTES;
use crate::attach::{Place, attach_to_read, name_bytes};
use crate::failure::Failure;
use crate::names::{self, Exact};
use crate::output::{Output, stdout, stdout_failure};
use crate::progress::Progress;
use crate::sizes;
use crate::stop::Stop;
use crate::target::Target;

/// Write a file of the pool to a file, or to stdout
///
/// The file is pinned meanwhile: it stays what it is although others remove or replace it. A file
/// on disk appears whole or not at all, and one that was there keeps its mode and owner. Only a
/// file that cannot be replaced unnoticed (it has hard links or access lists, or its directory is
/// not writable) is written in place, as devices and pipes are.
#[derive(Debug, clap::Args)]
pub struct Get {
    /// Name in the pool
    name: OsString,
    /// File to write; - or nothing for stdout
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// Read the pool whose data is PATH, a device or a file, without its server
    ///
    /// For reading only, and without a pin: the server may be on another machine that has the same
    /// memory. What is read was committed, and was not removed before all of it was read.
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::AnyPath)]
    from: Option<PathBuf>,
    /// Fail if the bytes have not the checksum that `put --checksum` kept
    #[arg(long = "verify")]
    is_verifying: bool,
}

#[derive(Debug, Serialize)]
struct Done {
    schema: &'static str,
    #[serde(flatten)]
    name: Exact,
    #[serde(flatten)]
    file: Exact,
    len_bytes: u64,
    elapsed_ms: u64,
}

impl Get {
    /// Gets it.
    ///
    /// # Errors
    /// When there is no such file in the pool, or the target cannot be written.
    pub fn run(self, place: &Place, output: &Output) -> Result<(), Failure> {
        let file = self.file.as_deref().filter(|file| file.as_os_str() != "-");
        if file.is_none() && output.is_json() {
            return Err(Failure::usage("stdout cannot take both the file and --json: name a FILE"));
        }
        if let Some(from) = &self.from {
            return self.run_from(from, file, output);
        }
        let client = attach_to_read(place)?;
        let started = Instant::now();
        let name = name_bytes(&self.name);
        let shown = names::shown(&self.name);
        let (pin, expected) = self.pin(&client, name, &shown)?;
        let progress = Progress::start(output, shown.clone(), pin.len_bytes());
        let Some(file) = file else {
            let mut stdout = stdout()?;
            let sum = copy(&pin, &progress, |chunk| {
                stdout.write_all(chunk).map_err(|error| stdout_failure(&error))
            })?;
            verify(&shown, expected, sum)?;
            // What is left in the buffer would be lost without a word.
            return stdout.flush().map_err(|error| stdout_failure(&error));
        };
        let mut target = Target::open(file)?;
        // Before anything is there that a signal would leave behind. A pipe's reader may never read
        // on.
        let mut stop = if target.is_file() { Some(Stop::listen()?) } else { None };
        target.prepare(pin.len_bytes())?;
        let sum = copy(&pin, &progress, |chunk| match stop.as_mut().map_or(Ok(()), Stop::check) {
            Ok(()) => target.write(chunk),
            Err(stopped) => Err(target.spoilt(stopped)),
        })?;
        verify(&shown, expected, sum).map_err(|damaged| target.spoilt(damaged))?;
        target.finish()?;
        drop(progress);
        output.note(&format!("{shown}: {}", sizes::human(pin.len_bytes())));
        output.show_done(&Done {
            schema: "pgmap.get/1",
            name: Exact::name(Some(name)),
            file: Exact::file(file),
            len_bytes: pin.len_bytes(),
            elapsed_ms: started.elapsed().as_millis() as u64,
        })
    }
}

impl Get {
    fn run_from(&self, from: &Path, file: Option<&Path>, output: &Output) -> Result<(), Failure> {
        let (started, name) = (Instant::now(), name_bytes(&self.name));
        let observer = Observer::open(from)?;
        let bytes = observer.read(name).map_err(|error| Failure::from(error).of_file(name))?;
        let Some(file) = file else { return to_stdout(&bytes) };
        let mut target = Target::open(file)?;
        target.prepare(bytes.len() as u64)?;
        target.write(&bytes)?;
        target.finish()?;
        output.show_done(&Done {
            schema: "pgmap.get/1",
            name: Exact::name(Some(name)),
            file: Exact::file(file),
            len_bytes: bytes.len() as u64,
            elapsed_ms: started.elapsed().as_millis() as u64,
        })
    }

    /// Pins the file, and says which checksum it is to have.
    fn pin<'c>(
        &self,
        client: &'c Client,
        name: &[u8],
        shown: &str,
    ) -> Result<(FilePin<'c>, Option<u32>), Failure> {
        let failed = |error| Failure::from(error).of_file(name);
        if !self.is_verifying {
            return Ok((client.get(name).map_err(failed)?, None));
        }
        let file = client.open(name).map_err(failed)?;
        // What is pinned is not cut, and so keeps its checksum.
        let pin = file.pin_all().map_err(failed)?;
        let checksum = file.metadata().map_err(failed)?.checksum;
        if checksum.is_none() {
            let why = format!("{shown} has no checksum to verify: put it with --checksum");
            return Err(Failure::new("no_checksum", libc::ENODATA, why));
        }
        Ok((pin, checksum))
    }
}

/// Fails if the bytes of a file have another checksum than `expected`.
fn verify(shown: &str, expected: Option<u32>, sum: Checksum) -> Result<(), Failure> {
    match expected {
        Some(expected) if expected != sum.value() => {
            let why = format!(
                "{shown} has the checksum {:#010x}, and was put with {expected:#010x}: its bytes \
                 were changed since",
                sum.value()
            );
            Err(Failure::new("damaged", libc::EIO, why))
        }
        _ => Ok(()),
    }
}

/// Hands the pinned bytes to `write`, chunk by chunk, and returns their checksum.
fn copy(
    pin: &FilePin<'_>,
    progress: &Progress,
    mut write: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<Checksum, Failure> {
    let mut sum = Checksum::default();
    let len_bytes = pin.len_bytes();
    let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(len_bytes).unwrap_or(CHUNK_BYTES))];
    let mut at = 0;
    while at < len_bytes {
        let nr = chunk.len().min(usize::try_from(len_bytes - at).unwrap_or(usize::MAX));
        pin.read_at(at, &mut chunk[..nr])?;
        sum.update(&chunk[..nr]);
        write(&chunk[..nr])?;
        at += nr as u64;
        progress.advance(nr as u64);
    }
    Ok(sum)
}

/// Writes all of `bytes` to stdout.
///
/// # Errors
/// When stdout cannot be written; silently when its reader has gone.
pub fn to_stdout(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = stdout()?;
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| stdout_failure(&error))
}
