//! Reading attributes below a root, and remembering which could not be read.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Unread;

/// A root with `sys` and `proc` in it.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
    unread: RefCell<Vec<Unread>>,
}

impl Tree {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), unread: RefCell::default() }
    }

    /// Where `path` lies here.
    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The attribute `path` without the white space around it; `None` if it is absent or cannot be
    /// read.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        self.kept(path, fs::read_to_string(self.at(path))).map(|text| text.trim().to_owned())
    }

    /// The attribute `path` as a number, which may be written in hexadecimal.
    pub(super) fn number(&self, path: &str) -> Option<u64> {
        let text = self.text(path)?;
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        }
    }

    /// The attribute `path` as a node's number; `None` also for -1, which stands for no node.
    pub(super) fn node(&self, path: &str) -> Option<u32> {
        self.text(path)?.parse().ok()
    }

    /// Names in the directory `path`, numbers in them in order of their value.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let entries = self.kept(path, fs::read_dir(self.at(path)));
        let mut names: Vec<String> = entries
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort_by_key(|name| (numbers(name), name.clone()));
        names
    }

    /// The last name in what the link `path` says.
    pub(super) fn link(&self, path: &str) -> Option<String> {
        let target = self.kept(path, fs::read_link(self.at(path)))?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// Names of the directories that the device `path` lies in, from the outermost.
    pub(super) fn ancestry(&self, path: &str) -> Vec<String> {
        let real = self.kept(path, fs::canonicalize(self.at(path)));
        let names = real.iter().flat_map(|real| real.components());
        names.filter_map(|name| Some(name.as_os_str().to_str()?.to_owned())).collect()
    }

    /// Remembers that `path` could not be read, unless it is not there.
    fn kept<T>(&self, path: &str, read: io::Result<T>) -> Option<T> {
        match read {
            Ok(value) => Some(value),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    self.lost(path, error);
                }
                None
            }
        }
    }

    /// Remembers that `path` could not be read.
    pub(super) fn lost(&self, path: &str, error: io::Error) {
        self.unread.borrow_mut().push(Unread { path: Path::new("/").join(path), error });
    }

    pub(super) fn into_unread(self) -> Vec<Unread> {
        self.unread.into_inner()
    }
}

/// The numbers in `name`.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|text| text.parse().ok())
        .collect()
}
