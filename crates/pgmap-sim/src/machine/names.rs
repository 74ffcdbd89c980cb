//! Names of files that have not reached their disk.
//!
//! A file system with a journal loses the latest changes of names, in order. What a change took
//! away is kept under another name until it has reached its disk.

use std::path::{Path, PathBuf};

use pgmap_os::sim::Naming;

enum Change {
    Made(PathBuf),
    /// From, to, and what had that name before.
    Renamed(PathBuf, PathBuf, Option<PathBuf>),
    /// What, and where it is kept.
    Removed(PathBuf, Option<PathBuf>),
}

impl Change {
    fn directory(&self) -> Option<&Path> {
        match self {
            Self::Made(path) | Self::Renamed(_, path, _) | Self::Removed(path, _) => path.parent(),
        }
    }

    /// Has everything as it was before.
    fn undo(self) -> std::io::Result<String> {
        match self {
            Self::Made(path) => {
                std::fs::remove_file(&path)?;
                Ok(format!("the making of {}", path.display()))
            }
            Self::Renamed(from, to, kept) => {
                std::fs::rename(&to, &from)?;
                if let Some(kept) = kept {
                    std::fs::rename(kept, &to)?;
                }
                Ok(format!("the renaming of {} to {}", from.display(), to.display()))
            }
            Self::Removed(path, kept) => {
                if let Some(kept) = kept {
                    std::fs::rename(kept, &path)?;
                }
                Ok(format!("the removal of {}", path.display()))
            }
        }
    }
}

/// Changes of names that have not reached their disk, in order.
#[derive(Default)]
pub struct Names {
    changes: Vec<Change>,
    nr_kept: u64,
}

impl Names {
    pub fn note(&mut self, what: Naming<'_>) {
        match what {
            Naming::Made(path) => self.changes.push(Change::Made(path.to_owned())),
            Naming::Renamed(from, to) => {
                let kept = self.keep(to);
                self.changes.push(Change::Renamed(from.to_owned(), to.to_owned(), kept));
            }
            Naming::Removed(path) => {
                let kept = self.keep(path);
                self.changes.push(Change::Removed(path.to_owned(), kept));
            }
            Naming::Synced(directory) => {
                self.changes.retain(|change| change.directory() != Some(directory));
            }
        }
    }

    /// Keeps what has a name now, beside the pool.
    fn keep(&mut self, path: &Path) -> Option<PathBuf> {
        let run = path.ancestors().find(|above| {
            let name = above.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with("run-") || name.starts_with("shrink-"))
        })?;
        self.nr_kept += 1;
        let kept = run.join(format!("kept-{}", self.nr_kept));
        std::fs::hard_link(path, &kept).ok().map(|()| kept)
    }

    pub const fn len(&self) -> usize {
        self.changes.len()
    }

    /// Loses all but the first `nr_kept` changes. Says which those were.
    pub fn lose(&mut self, nr_kept: usize) -> Vec<String> {
        let lost = self.changes.split_off(nr_kept);
        self.changes.clear();
        // What failed, or was undone by its maker, changed nothing.
        lost.into_iter().rev().filter_map(|change| change.undo().ok()).collect()
    }
}
