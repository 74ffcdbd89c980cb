//! The ledgers of a pool's clients, as files.
//!
//! A ledger is made under a name of its own, sized, sealed and given the memory that its client and
//! the owner touch without a request, and only then called by its number: whatever has a number was
//! whole.
//!
//! The seal says which pool, which client and which file the ledger is. A client goes on writing
//! into the file that it was given, whatever lies under its number now, so an owner that starts
//! asks whether it is that file (ADR 0060). The catalog has a roster of the clients that have
//! ledgers, so that one that is missing is missed (ADR 0070).

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use pgmap_mm::index::IndexLayout;
use pgmap_mm::ledger::LedgerLayout;
use pgmap_mm::level::PAGE_BYTES;
use pgmap_mm::used::UsedLayout;
use pgmap_os::{FileAccess, MemoryFile, OsError, PageSize, disk, file_lock, process};

use crate::error::Error;
use crate::pool::catalog::{Change, Enrolled};
use crate::pool::directory::{LEDGERS, remove_file};
use crate::pool::identity::{FileKind, FileNumber, PoolId, Seal};
use crate::pool::{Pool, bad, os_error, pool_name};

/// A ledger that nobody has yet: what a client gets when the file system has no room for another.
const SPARE: &str = "spare";
/// A ledger that is being made.
const NEW: &str = "new";

/// Where words, counts and marks of use lie in a ledger's file, in this order.
pub(crate) struct LedgerFile {
    pub words_bytes: u64,
    pub counts_bytes: u64,
    pub used_start: u64,
    pub used_bytes: u64,
    pub len_bytes: u64,
    pub used: UsedLayout,
}

impl LedgerFile {
    pub(crate) fn new(layout: &LedgerLayout, index: &IndexLayout) -> Self {
        let words_bytes = (layout.nr_words() as u64 * 8).next_multiple_of(PAGE_BYTES);
        let counts_bytes = (layout.nr_counts() as u64 * 4).next_multiple_of(PAGE_BYTES);
        let used = UsedLayout::for_slots(index.nr_slots());
        let used_start = words_bytes + counts_bytes;
        let used_bytes = used.nr_counts() as u64 * 4;
        let len_bytes = used_start + used_bytes;
        Self { words_bytes, counts_bytes, used_start, used_bytes, len_bytes, used }
    }

    /// The marks that have memory beforehand.
    fn always_used(&self) -> std::ops::Range<u64> {
        let counts = self.used.always_used();
        self.used_start + counts.start as u64 * 4..self.used_start + counts.end as u64 * 4
    }
}

/// Whose ledger a file is, by its seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LedgerIdentity {
    /// The file that the client was given.
    Its,
    /// Another file: a copy, another client's or another pool's.
    Another,
    /// The pool's data is a copy: whose ledger this is never held any of it.
    OfOtherData,
    /// It does not say: it was cut short or written over.
    Unknown,
}

fn identity_of(
    id: PoolId,
    client: u64,
    file: &MemoryFile,
    data: &MemoryFile,
) -> Result<LedgerIdentity, Error> {
    let Some(seal) = Seal::read(file)? else { return Ok(LedgerIdentity::Unknown) };
    let (file, data) = (FileNumber::of(file)?, FileNumber::of(data)?);
    Ok(match seal.kind {
        FileKind::Ledger { data: theirs, .. } if seal.id == id && theirs != data => {
            LedgerIdentity::OfOtherData
        }
        kind if seal.id == id && kind == (FileKind::Ledger { client, file, data }) => {
            LedgerIdentity::Its
        }
        _ => LedgerIdentity::Another,
    })
}

/// The error for a file under a client's number that nobody has, and that is not its ledger.
pub(crate) fn replaced(directory: &Path, client: u64) -> Error {
    let why = format!(
        "{LEDGERS}/{client} is not the file that client {client} was given, which may live and \
         hold anything; put that back, or end all clients of the pool and remove this one"
    );
    bad(directory, why)
}

/// The clients of `roster` whose ledgers are gone, or are other files without a seal, and whose
/// processes have ended: nobody knows what their devices may still write to.
///
/// # Errors
/// [`Error::BadPool`] where such a client may live and hold anything.
pub(crate) fn find_missing(
    directory: &Path,
    id: PoolId,
    data: &MemoryFile,
    roster: &[Enrolled],
) -> Result<Vec<u64>, Error> {
    let number = FileNumber::of(data)?.number();
    let mut missing = Vec::new();
    for enrolled in roster.iter().filter(|enrolled| enrolled.data == number) {
        let client = enrolled.client;
        let path = directory.join(LEDGERS).join(client.to_string());
        let what = match MemoryFile::open_named(&path, FileAccess::ReadWrite) {
            Ok(file) => {
                // Of the very file, and of one that says what it is, more is known.
                let is_it = FileNumber::of(&file)?.number() == enrolled.ledger;
                let is_sealed = identity_of(id, client, &file, data)? != LedgerIdentity::Unknown;
                if is_it || is_sealed || !matches!(file_lock::is_locked(&file), Ok(false)) {
                    continue;
                }
                "is not the file that it was"
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => "is missing",
            Err(error) => return Err(error.into()),
        };
        may_have_ended(directory, enrolled, what)?;
        tracing::error!(client, "the ledger of this client {what}; the client has ended");
        missing.push(client);
    }
    Ok(missing)
}

/// An error if the process of a client whose ledger cannot be read may live.
fn may_have_ended(directory: &Path, enrolled: &Enrolled, what: &str) -> Result<(), Error> {
    let Enrolled { client, pid, started, namespace, .. } = *enrolled;
    let refused = |how: &str| {
        let why = format!(
            "{LEDGERS}/{client} {what}, and client {client} may live and hold anything: put the \
             file back, or {how}"
        );
        Err(bad(directory, why))
    };
    if pid == 0 {
        return refused("restart the machine: its process is not known");
    }
    if namespace != process::namespace() {
        return refused("start the owner in the namespace of process numbers of the one before it");
    }
    if process::started_at(pid)? == Some(started) {
        return refused(&format!("end process {pid}"));
    }
    Ok(())
}

impl Pool {
    /// Where everything lies in a client's ledger.
    pub(crate) fn ledger_file(&self) -> LedgerFile {
        LedgerFile::new(&self.ledger_layout(), &self.index_layout)
    }

    /// Where a client's ledger lies in a pool with a directory.
    pub(crate) fn ledger_path(&self, client: u64) -> Option<PathBuf> {
        Some(self.ledgers()?.join(client.to_string()))
    }

    fn ledgers(&self) -> Option<PathBuf> {
        Some(self.directory()?.join(LEDGERS))
    }

    /// Puts the client of process `pid`, whose ledger was made, on the catalog's roster, before it
    /// is given the ledger: an owner that finds the ledger missing knows that there was one.
    pub(crate) fn enrol(&self, client: u64, pid: i32, file: &MemoryFile) -> Result<(), Error> {
        let Some(catalog) = &self.catalog else { return Ok(()) };
        // It may be gone for a moment before that is found out.
        if self.is_device_gone() || !self.data.is_present() {
            // There is nothing that it could hold, and the catalog is gone with the device.
            return Ok(());
        }
        // A process that cannot be looked at may live, as far as the next owner knows.
        let started = process::started_at(pid).ok().flatten();
        let pid = if started.is_some() { pid } else { 0 };
        let (started, namespace) = (started.unwrap_or(0), process::namespace());
        let (data, ledger) = (FileNumber::of(&self.data)?.number(), FileNumber::of(file)?.number());
        let enrolled = Enrolled { client, data, ledger, pid, started, namespace };
        catalog.record(&[Change::Enrolled(enrolled)])
    }

    /// Makes a client's ledger: the owner's own file and the descriptor for the client, a
    /// description of its own that is locked until the last copy of it is closed.
    pub(crate) fn make_ledger(&self, client: u64) -> Result<(MemoryFile, OwnedFd), Error> {
        let file = match (self.ledgers(), self.ledger_path(client)) {
            (Some(ledgers), Some(path)) => self.make_ledger_in(&ledgers, client, &path)?,
            _ => {
                let len = self.ledger_file().len_bytes;
                let file = MemoryFile::anonymous("pgmap-ledger", len, PageSize::Base)?;
                // Its client writes it and must not take it from under the owner.
                file.seal_size()?;
                file
            }
        };
        let theirs = file.reopen_handle(FileAccess::ReadWrite)?;
        match file_lock::try_lock_exclusive(&theirs) {
            Ok(true) => Ok((file, theirs)),
            Ok(false) => Err(Error::BadPool {
                pool: self.name(),
                why: format!("somebody locks the new ledger {client}"),
            }),
            Err(error) => Err(OsError::new("lock", format!("ledger {client}"), error).into()),
        }
    }

    fn make_ledger_in(
        &self,
        ledgers: &Path,
        client: u64,
        path: &Path,
    ) -> Result<MemoryFile, Error> {
        let (new, spare) = (ledgers.join(NEW), ledgers.join(SPARE));
        let file = match self.fill_ledger(&new) {
            Ok(file) => {
                disk::rename(&new, path).map_err(|error| os_error("rename", &new, error))?;
                file
            }
            Err(Error::Os(error)) if error.kind() == std::io::ErrorKind::StorageFull => {
                if disk::rename(&spare, path).is_err() {
                    return Err(error.into());
                }
                MemoryFile::open_named(path, FileAccess::ReadWrite)?
            }
            Err(error) => return Err(error),
        };
        self.ledger_seal(client, &file)?.write(&file)?;
        Ok(file)
    }

    fn ledger_seal(&self, client: u64, file: &MemoryFile) -> Result<Seal, Error> {
        let len_bytes = self.ledger_file().len_bytes;
        let (file, data) = (FileNumber::of(file)?, FileNumber::of(&self.data)?);
        Ok(Seal { id: self.id(), kind: FileKind::Ledger { client, file, data }, len_bytes })
    }

    /// Whether `file` is the ledger that `client` was given.
    pub(crate) fn ledger_identity(
        &self,
        client: u64,
        file: &MemoryFile,
    ) -> Result<LedgerIdentity, Error> {
        identity_of(self.id(), client, file, &self.data)
    }

    /// Makes a ledger with all the memory that it needs before anything is pinned.
    fn fill_ledger(&self, path: &Path) -> Result<MemoryFile, Error> {
        let layout = self.ledger_layout();
        let parts = self.ledger_file();
        let len_bytes = parts.len_bytes;
        remove_file(path)?;
        let file = MemoryFile::create_named(path, Seal::file_bytes(len_bytes))?;
        let filled = layout
            .always_used()
            .into_iter()
            .map(|words| words.start as u64 * 8..words.end as u64 * 8)
            .chain([parts.always_used()])
            .try_for_each(|bytes| file.reserve(bytes))
            .map_err(Error::from)
            .and_then(|()| self.ledger_seal(0, &file)?.write(&file));
        match filled {
            Ok(()) => Ok(file),
            Err(error) => {
                remove_file(path)?;
                Err(error)
            }
        }
    }

    /// Makes a spare ledger where there is room for one, so that a client can attach, and remove
    /// files, when there is none.
    pub(crate) fn keep_spare_ledger(&self) {
        let Some(ledgers) = self.ledgers() else { return };
        let spare = ledgers.join(SPARE);
        if spare.exists() {
            return;
        }
        let made = self.fill_ledger(&ledgers.join(NEW)).and_then(|_| {
            disk::rename(&ledgers.join(NEW), &spare)
                .map_err(|error| os_error("rename", &spare, error))
        });
        if let Err(error) = made {
            tracing::debug!(%error, "there is no spare ledger");
        }
    }

    /// Numbers of the clients whose ledgers lie in the directory.
    ///
    /// # Errors
    /// [`Error::Os`]: who cannot read it knows of no client's holds.
    pub(crate) fn ledgers_left(&self) -> Result<Vec<u64>, Error> {
        let Some(ledgers) = self.ledgers() else { return Ok(Vec::new()) };
        numbers_in(&ledgers)
    }
}

fn numbers_in(ledgers: &Path) -> Result<Vec<u64>, Error> {
    let failed = |error| os_error("read", ledgers, error);
    let mut numbers = Vec::new();
    for entry in disk::read_dir(ledgers).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        // As the pool writes them: "+5" and "05" are somebody else's names.
        let number = name
            .to_str()
            .and_then(|name| name.parse::<u64>().ok().filter(|number| number.to_string() == name));
        numbers.extend(number);
    }
    Ok(numbers)
}

/// Whether any client of an earlier owner lives: it has its ledger's lock. Ledgers that no client
/// ever attached by are removed; not those of clients of `roster`, which are taken off that first
/// (`Core::remove_ledger`): an owner may be killed, or fail to start, in between.
///
/// # Errors
/// [`Error::BadPool`] where a ledger was replaced: then nobody can say.
pub(crate) fn has_live_client(
    directory: &Path,
    id: PoolId,
    data: &MemoryFile,
    roster: &[Enrolled],
) -> Result<bool, Error> {
    let ledgers = directory.join(LEDGERS);
    let data_number = FileNumber::of(data)?.number();
    let is_enrolled =
        |number| roster.iter().any(|one| (one.client, one.data) == (number, data_number));
    for name in [SPARE, NEW] {
        remove_file(&ledgers.join(name))?;
    }
    let mut has_live_client = false;
    for number in numbers_in(&ledgers)? {
        let path = ledgers.join(number.to_string());
        let file = MemoryFile::open_named(&path, FileAccess::ReadWrite)?;
        let is_locked = file_lock::is_locked(&file)
            .map_err(|error| os_error("ask for the lock of", &path, error))?;
        has_live_client |= is_locked;
        if is_locked {
            continue;
        }
        let why = match identity_of(id, number, &file, data)? {
            _ if is_unused(&file)? && is_enrolled(number) => continue,
            _ if is_unused(&file)? => "no client attached by it",
            LedgerIdentity::OfOtherData => "it is of the data that this is a copy of",
            LedgerIdentity::Another => return Err(replaced(directory, number)),
            LedgerIdentity::Its | LedgerIdentity::Unknown => continue,
        };
        tracing::info!(ledger = number, why, "removing a ledger");
        remove_file(&path)?;
    }
    Ok(has_live_client)
}

/// Whether no client ever attached by a ledger: that writes a number to its start. A client that
/// was killed at any moment before held nothing.
fn is_unused(file: &MemoryFile) -> Result<bool, Error> {
    let mut magic = [0; 8];
    let len = file.len_bytes().min(8) as usize;
    file.read_exact_at(&mut magic[..len], 0)
        .map_err(|error| OsError::new("read", file.name(), error))?;
    Ok(magic == [0; 8])
}

/// Removes all ledgers: the machine was restarted, and no process and no device of theirs is left.
pub(crate) fn remove_all(directory: &Path) -> Result<(), Error> {
    let ledgers = directory.join(LEDGERS);
    for number in numbers_in(&ledgers)? {
        remove_file(&ledgers.join(number.to_string()))?;
    }
    Ok(())
}

/// Makes the directory of ledgers.
pub(crate) fn make_place(directory: &Path) -> Result<(), Error> {
    let path = directory.join(LEDGERS);
    match disk::create_dir(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(Error::BadPool {
            pool: pool_name(Some(directory)),
            why: format!("its ledgers cannot be made: {error}"),
        }),
        _ => Ok(()),
    }
}
