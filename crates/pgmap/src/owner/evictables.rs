//! Files that may be evicted, in the order in which they go: by priority, then by the last use that
//! is known of.
//!
//! What clients say in their marks is read late: of the file that would go next. If it was used
//! since, it moves to where that puts it, and the next one is looked at. So an owner that evicts
//! nothing reads nothing, and the file that goes is the one whose last use lies furthest back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};

use pgmap_mm::index::{EntryId, FileId};

use crate::owner::clients::Used;
use crate::owner::core::{Core, FileRecord};

/// Files of which one step reads what a client that left said of them.
const STEP_FILES: usize = 4096;
/// Clients that left whose marks wait to be read. What older ones said is forgotten.
const MAX_LEFT: usize = 64;

/// A file's place in the order: its priority, its last known use, its number.
pub(crate) type Rank = (u8, u64, FileId);

/// All files that may be evicted.
#[derive(Debug, Default)]
pub(crate) struct Evictables {
    order: BTreeSet<Rank>,
    of: BTreeMap<FileId, (u8, u64)>,
    /// The marks of clients that left, and of which file they were read last.
    left: VecDeque<(Used, Option<FileId>)>,
    pub nr_evicted: u64,
    pub evicted_pages: u64,
}

impl Evictables {
    /// Takes note of a file that was last used so long ago; of no priority, that it may not be
    /// evicted.
    fn put(&mut self, id: FileId, priority: u8, used: u64) {
        self.forget(id);
        if priority > 0 {
            self.order.insert((priority, used, id));
            self.of.insert(id, (priority, used));
        }
    }

    /// Forgets a file that is gone.
    pub(crate) fn forget(&mut self, id: FileId) {
        if let Some((priority, used)) = self.of.remove(&id) {
            self.order.remove(&(priority, used, id));
        }
    }

    /// A file was used in generation `used`, if that is later than what was known.
    pub(crate) fn note_use(&mut self, id: FileId, used: u64) -> bool {
        let Some(&(priority, before)) = self.of.get(&id) else { return false };
        let is_later = used > before;
        if is_later {
            self.put(id, priority, used);
        }
        is_later
    }

    /// The next one to go after `last`.
    pub(crate) fn after(&self, last: Option<Rank>) -> Option<Rank> {
        let from = last.map_or(Unbounded, Excluded);
        self.order.range((from, Unbounded)).next().copied()
    }

    /// All of them, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Rank> + '_ {
        self.order.iter().copied()
    }

    /// Keeps what a client that left said until it was read of all files.
    pub(crate) fn client_left(&mut self, used: Used) {
        if self.order.is_empty() {
            return;
        }
        if self.left.len() >= MAX_LEFT {
            self.left.pop_front();
        }
        self.left.push_back((used, None));
    }

    /// Whether there is left to read of what those said.
    pub(crate) fn has_left(&self) -> bool {
        !self.left.is_empty()
    }
}

impl Core {
    /// A file was put into the index, by a commit, a rename or a restart: that is its last use.
    pub(crate) fn note_listed(&mut self, file: &FileRecord) {
        let priority = file.rules.evict_priority;
        // Clients say nothing while there was never a file that may be evicted.
        if priority > 0 || self.frames.generation() > 0 {
            // What its readers say from now on is later than the generation that ended.
            let used = self.frames.begin_generation();
            self.evictables.put(file.id, priority, used);
        }
    }

    /// In which generation the file in `entry` was last used, by what clients say. Only what is
    /// later than what is known of the file counts, for the slot may have been another's before.
    pub(crate) fn last_use(&self, entry: EntryId) -> Option<u64> {
        let now = self.frames.generation();
        let present = self.clients.values().map(|client| &client.used);
        let left = self.evictables.left.iter().map(|(used, _)| used);
        present.chain(left).filter_map(|used| used.last_use(entry, now)).max()
    }

    /// Reads a step's worth of what clients that left said.
    pub(crate) fn read_last_uses(&mut self) {
        let Some((used, read_to)) = self.evictables.left.pop_front() else { return };
        let now = self.frames.generation();
        let from = read_to.map_or(Unbounded, Excluded);
        let ids = self.evictables.of.range((from, Unbounded)).map(|(&id, _)| id);
        let ids: Vec<FileId> = ids.take(STEP_FILES).collect();
        for &id in &ids {
            let name = self.names.get(&id);
            let file = name.and_then(|name| self.files.get(name));
            if let Some(last) = file.and_then(|file| used.last_use(file.entry, now)) {
                self.evictables.note_use(id, last);
            }
        }
        if ids.len() == STEP_FILES {
            self.evictables.left.push_front((used, ids.last().copied()));
        }
    }
}
