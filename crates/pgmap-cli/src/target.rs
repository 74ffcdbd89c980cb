//! A file on disk that a verb writes: whole or not at all where the system can do that.
//!
//! What is written is a draft that has no name until it is whole, so that nothing is left of it
//! however the command ends; then it takes the place of the file. That file's mode and owner are
//! kept. A file whose place another cannot take unnoticed (it has further names, or attributes, or
//! its directory cannot be written) is written in place, and so are devices and pipes.

use std::fs::{self, File, Permissions};
use std::io::{self, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::failure::Failure;

/// Symbolic links that are followed to a file that does not exist yet, as many as Linux follows.
const MAX_LINKS: usize = 40;
/// Temporary names that are tried; each is taken only if somebody prepared it.
const MAX_NAMES: u32 = 64;
/// Where an open file has a name that `linkat` takes.
const OPEN_FILES: &str = "/proc/self/fd";

/// A file that is being written.
#[derive(Debug)]
pub struct Target {
    /// As it was named.
    place: PathBuf,
    /// Where it is, without symbolic links.
    real: PathBuf,
    /// What is there, opened for writing; `None` if nothing is.
    there: Option<File>,
    /// What will take its place; `None` if it is written in place.
    draft: Option<Draft>,
    len_bytes: u64,
}

impl Target {
    /// Opens what is at `place`. Waits for a reader if that is a named pipe.
    ///
    /// # Errors
    /// When it is a directory, or cannot be written.
    pub fn open(place: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::io("write", place.display(), &error);
        let is_directory = place.as_os_str().as_bytes().ends_with(b"/");
        let options = File::options().write(true).custom_flags(libc::O_NOCTTY).open(place);
        let (there, real) = match options {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_directory => {
                (None, followed(place))
            }
            there => (Some(there.map_err(failed)?), fs::canonicalize(place).unwrap_or_default()),
        };
        Ok(Self { place: place.to_owned(), real, there, draft: None, len_bytes: 0 })
    }

    /// Whether it is, or will be, an ordinary file: then something is to be undone when writing
    /// ends early.
    pub fn is_file(&self) -> bool {
        let is_file = |there: &File| there.metadata().is_ok_and(|metadata| metadata.is_file());
        self.there.as_ref().is_none_or(is_file)
    }

    /// Gets ready for `len_bytes` bytes.
    ///
    /// # Errors
    /// When the file cannot be created, or there is no room for it.
    pub fn prepare(&mut self, len_bytes: u64) -> Result<(), Failure> {
        self.len_bytes = len_bytes;
        if !self.is_file() {
            return Ok(());
        }
        let draft = match &self.there {
            None => Draft::create(&self.real, Mode::from_raw_mode(0o666)).map(Some),
            // Where no draft can be made the file itself can be written all the same.
            Some(there) => Ok(Draft::for_replacing(&self.real, there).unwrap_or(None)),
        };
        self.draft = draft.map_err(|error| Failure::io("create", self.place.display(), &error))?;
        match (&self.draft, &self.there) {
            (None, Some(there)) => self.reserve(there),
            _ => Ok(()),
        }
    }

    /// Takes room before anything is overwritten.
    fn reserve(&self, there: &File) -> Result<(), Failure> {
        if self.len_bytes == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(there, FallocateFlags::KEEP_SIZE, 0, self.len_bytes) {
            Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => {
                Err(Failure::io("write", self.place.display(), &errno.into()))
            }
            // Elsewhere a shortage shows when it is written.
            _ => Ok(()),
        }
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    /// When they cannot be written; says what is left of the file.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let mut file = match (&self.draft, &self.there) {
            (Some(draft), _) => &draft.file,
            (None, Some(there)) => there,
            (None, None) => return Ok(()),
        };
        let written = file.write_all(bytes);
        written.map_err(|error| self.spoilt(Failure::io("write", self.place.display(), &error)))
    }

    /// A failure while it was written, with what is left of it.
    pub fn spoilt(&self, failure: Failure) -> Failure {
        if self.draft.is_some() || !self.is_file() {
            return failure;
        }
        let message = format!(
            "{failure}; {} was written in place and holds only a part now",
            self.place.display()
        );
        Failure { message, holders: Vec::new(), ..failure }
    }

    /// Puts what was written in its place.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn finish(mut self) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::io("write", self.place.display(), &error);
        let Some(mut draft) = self.draft.take() else {
            return match &self.there {
                Some(there) if self.is_file() => there.set_len(self.len_bytes).map_err(failed),
                _ => Ok(()),
            };
        };
        match (draft.publish(&self.real), &self.there) {
            (Ok(()), _) => Ok(()),
            (Err(error), None) => Err(failed(error)),
            // Something is mounted on it, or its directory keeps others' files: written in place.
            (Err(_), Some(there)) => {
                self.reserve(there)?;
                let copied = draft.file.rewind().and_then(|()| {
                    io::copy(&mut &draft.file, &mut &*there)?;
                    there.set_len(self.len_bytes)
                });
                copied.map_err(|error| self.spoilt(failed(error)))
            }
        }
    }
}

/// A file without a name, or with one that nobody is to see.
#[derive(Debug)]
struct Draft {
    file: File,
    /// `None` if it has no name, or its name is the file's own.
    name: Option<PathBuf>,
}

impl Draft {
    /// A draft of what will be at `real`.
    fn create(real: &Path, mode: Mode) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let unnamed = match Path::new(OPEN_FILES).exists() {
            true => rustix::fs::open(directory_of(real), flags, mode),
            false => Err(Errno::OPNOTSUPP),
        };
        match unnamed {
            Ok(file) => return Ok(Self { file: file.into(), name: None }),
            // Not every file system has files without names, and old kernels do not know the flag.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let (file, name) = with_free_name(real, |name| rustix::fs::open(name, flags, mode))?;
        Ok(Self { file: file.into(), name: Some(name) })
    }

    /// A draft with mode and owner of the file that is `there`; `None` if others would notice that
    /// the file was replaced.
    fn for_replacing(real: &Path, there: &File) -> io::Result<Option<Self>> {
        let old = there.metadata()?;
        let is_at_place = fs::symlink_metadata(real)
            .is_ok_and(|place| (place.dev(), place.ino()) == (old.dev(), old.ino()));
        if !is_at_place || old.nlink() != 1 || has_attributes(there) {
            return Ok(None);
        }
        let draft = Self::create(real, Mode::RUSR | Mode::WUSR)?;
        let new = draft.file.metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            fchown(&draft.file, Some(old.uid()), Some(old.gid()))?;
        }
        draft.file.set_permissions(Permissions::from_mode(old.mode() & 0o777))?;
        Ok(Some(draft))
    }

    /// Gives it the name `real`, in one step, whatever has that name.
    fn publish(&mut self, real: &Path) -> io::Result<()> {
        if self.name.is_none() {
            let link = |name: &Path| {
                let open = format!("{OPEN_FILES}/{}", self.file.as_raw_fd());
                rustix::fs::linkat(CWD, open, CWD, name, AtFlags::SYMLINK_FOLLOW)
            };
            match link(real) {
                Ok(()) => return Ok(()),
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            self.name = Some(with_free_name(real, link)?.1);
        }
        if let Some(name) = &self.name {
            fs::rename(name, real)?;
            self.name = None;
        }
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(name) = &self.name
            && let Err(error) = fs::remove_file(name)
        {
            tracing::warn!(file = %name.display(), %error, "a part of a file is left");
        }
    }
}

/// Makes something beside `real` under a name that is free. The name is short: `real`'s own may be
/// as long as names can be.
fn with_free_name<T>(
    real: &Path,
    make: impl Fn(&Path) -> Result<T, Errno>,
) -> io::Result<(T, PathBuf)> {
    for number in 0..MAX_NAMES {
        let name = format!(".pgmap-{}-{number}", std::process::id());
        let name = directory_of(real).join(name);
        match make(&name) {
            Err(Errno::EXIST) => {}
            made => return Ok((made?, name)),
        }
    }
    Err(Errno::EXIST.into())
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Where the symbolic links at `place`, if it is one, lead to: nothing is there yet.
fn followed(place: &Path) -> PathBuf {
    let mut place = place.to_owned();
    for _ in 0..MAX_LINKS {
        let Ok(target) = fs::read_link(&place) else { break };
        place = directory_of(&place).join(target);
    }
    place
}

/// Whether a file has access lists or other attributes that a new file would lack. Those of
/// security modules do not count: a new file in the same directory gets its own.
fn has_attributes(file: &File) -> bool {
    let mut names = [0_u8; 4096];
    match rustix::fs::flistxattr(file, &mut names[..]) {
        Ok(len) => names[..len]
            .split(|&byte| byte == 0)
            .any(|name| !name.is_empty() && !name.starts_with(b"security.")),
        Err(Errno::NOTSUP) => false,
        Err(_) => true,
    }
}
