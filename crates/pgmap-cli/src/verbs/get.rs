//! `pgmap get NAME [FILE|-]`: writes a pinned file out; a file on disk appears whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use pgmap::FilePin;
use serde::Serialize;

use super::CHUNK_BYTES;
use crate::attach::{attach, name_bytes};
use crate::failure::Failure;
use crate::output::{Output, stdout_failure};
use crate::progress::Progress;
use crate::sizes;
use crate::stop::Stop;

/// Write a file of the pool to a file, or to stdout
///
/// The file is pinned meanwhile: it stays what it is although others remove or replace it. A file on
/// disk is written beside its place and renamed, so that it appears whole or not at all.
#[derive(Debug, clap::Args)]
pub struct Get {
    /// Name in the pool
    name: OsString,
    /// File to write; - or nothing for stdout
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Done {
    schema: &'static str,
    name: String,
    file: PathBuf,
    len_bytes: u64,
    elapsed_ms: u64,
}

impl Get {
    /// Gets it.
    ///
    /// # Errors
    /// When there is no such file in the pool, or the target cannot be written.
    pub fn run(self, socket: &Path, output: &Output) -> Result<(), Failure> {
        let file = self.file.as_deref().filter(|file| file.as_os_str() != "-");
        if file.is_none() && output.is_json() {
            return Err(Failure::usage("stdout cannot take both the file and --json: name a FILE"));
        }
        let client = attach(socket)?;
        let started = Instant::now();
        let pin = client.get(name_bytes(&self.name))?;
        let shown = self.name.to_string_lossy().into_owned();
        let progress = Progress::start(output, shown.clone(), pin.len_bytes());
        let Some(file) = file else {
            let mut stdout = io::stdout().lock();
            return copy(&pin, &progress, |chunk| {
                stdout.write_all(chunk).map_err(|error| stdout_failure(&error))
            });
        };
        let mut stop = Stop::listen()?;
        let mut target = Target::open(file)?;
        copy(&pin, &progress, |chunk| {
            stop.check()?;
            target.write(chunk)
        })?;
        target.finish()?;
        drop(progress);
        output.note(&format!("{shown}: {}", sizes::human(pin.len_bytes())));
        output.show_done(&Done {
            schema: "pgmap.get/1",
            name: shown,
            file: file.to_owned(),
            len_bytes: pin.len_bytes(),
            elapsed_ms: started.elapsed().as_millis() as u64,
        })
    }
}

/// Hands the pinned bytes to `write`, chunk by chunk.
fn copy(
    pin: &FilePin<'_>,
    progress: &Progress,
    mut write: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let len_bytes = pin.len_bytes();
    let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(len_bytes).unwrap_or(CHUNK_BYTES))];
    let mut at = 0;
    while at < len_bytes {
        let nr = chunk.len().min(usize::try_from(len_bytes - at).unwrap_or(usize::MAX));
        pin.read_at(at, &mut chunk[..nr])?;
        write(&chunk[..nr])?;
        at += nr as u64;
        progress.advance(nr as u64);
    }
    Ok(())
}

/// Writes all of `bytes` to stdout.
///
/// # Errors
/// When stdout cannot be written; silently when its reader has gone.
pub fn to_stdout(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| stdout_failure(&error))
}

/// A file that is being written: beside its place, until it is whole.
struct Target {
    place: PathBuf,
    file: File,
    /// Removed unless the file was finished; none for what cannot be replaced, a device or pipe.
    draft: Option<PathBuf>,
}

impl Target {
    fn open(place: &Path) -> Result<Self, Failure> {
        // Through a symbolic link: what it points at is replaced, the link stays.
        let place = fs::canonicalize(place).unwrap_or_else(|_| place.to_owned());
        let failed = |error| Failure::io("create", place.display(), &error);
        if fs::metadata(&place).is_ok_and(|there| !there.is_file()) {
            let file = File::options().write(true).open(&place).map_err(failed)?;
            return Ok(Self { place, file, draft: None });
        }
        let Some(name) = place.file_name() else {
            return Err(Failure::usage(format!("{} is no file name", place.display())));
        };
        let draft = format!(".{}.{}.pgmap", name.to_string_lossy(), std::process::id());
        let draft = place.with_file_name(draft);
        let file = File::options().write(true).create_new(true).open(&draft).map_err(failed)?;
        Ok(Self { place, file, draft: Some(draft) })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let Self { place, file, .. } = self;
        file.write_all(bytes).map_err(|error| Failure::io("write", place.display(), &error))
    }

    fn finish(mut self) -> Result<(), Failure> {
        let Some(draft) = &self.draft else { return Ok(()) };
        fs::rename(draft, &self.place)
            .map_err(|error| Failure::io("write", self.place.display(), &error))?;
        self.draft = None;
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(draft) = &self.draft
            && let Err(error) = fs::remove_file(draft)
        {
            tracing::warn!(file = %draft.display(), %error, "a part of a file is left");
        }
    }
}
