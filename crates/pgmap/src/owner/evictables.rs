//! Files that may be evicted, in the order in which they go: by priority, then by the last use that
//! is known of.
//!
//! Clients' marks of use are read late: only those of the file that would be evicted next. If it
//! was used since, it moves to its new place in the order, and the next file is examined. So an
//! owner that evicts nothing reads nothing, and what is evicted is the least recently used file.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};

use pgmap_mm::index::{EntryId, FileId};

use crate::name::FileName;
use crate::owner::clients::Used;
use crate::owner::core::Core;
use crate::owner::file_book::FileRecord;
use crate::owner::quotas::QuotaId;

/// Files whose marks, by a client that left, are read in one step.
const STEP_FILES: usize = 4096;
/// Most clients that left whose marks are kept to be read. The oldest are dropped.
const MAX_LEFT: usize = 64;

/// A file's place in the order: its priority, its last known use, its number.
pub(crate) type Rank = (u8, u64, FileId);

/// What is known of a file that may be evicted.
#[derive(Clone, Debug)]
struct EvictableRecord {
    priority: u8,
    used: u64,
    /// The quotas that count it; of those that are over some may be left.
    quotas: Vec<QuotaId>,
}

/// All files that may be evicted.
#[derive(Debug, Default)]
pub(crate) struct Evictables {
    order: BTreeSet<Rank>,
    /// For each quota the files that it counts.
    orders: HashMap<QuotaId, BTreeSet<Rank>>,
    of: BTreeMap<FileId, EvictableRecord>,
    /// The marks of clients that left, and of which file they were read last.
    left: VecDeque<(Used, Option<FileId>)>,
    pub nr_evicted: u64,
    pub evicted_pages: u64,
}

impl Evictables {
    /// Records what is known of a file. One of priority 0 may not be evicted.
    fn put(&mut self, id: FileId, known: EvictableRecord) {
        self.forget(id);
        if known.priority > 0 {
            let rank = (known.priority, known.used, id);
            self.order.insert(rank);
            for quota in &known.quotas {
                self.orders.get_mut(quota).map(|order| order.insert(rank));
            }
            self.of.insert(id, known);
        }
    }

    /// Forgets a file that is gone.
    pub(crate) fn forget(&mut self, id: FileId) {
        drop(self.take(id));
    }

    fn take(&mut self, id: FileId) -> Option<EvictableRecord> {
        let known = self.of.remove(&id)?;
        let rank = (known.priority, known.used, id);
        self.order.remove(&rank);
        for quota in &known.quotas {
            self.orders.get_mut(quota).map(|order| order.remove(&rank));
        }
        Some(known)
    }

    /// A file was used in generation `used`, if that is later than what was known.
    pub(crate) fn note_use(&mut self, id: FileId, used: u64) -> bool {
        let is_later = self.of.get(&id).is_some_and(|known| used > known.used);
        if is_later && let Some(known) = self.take(id) {
            self.put(id, EvictableRecord { used, ..known });
        }
        is_later
    }

    /// A quota counts the files `its` from now on.
    pub(crate) fn begin_quota(&mut self, quota: QuotaId, its: &[FileId]) {
        let mut order = BTreeSet::new();
        for &id in its {
            if let Some(known) = self.of.get_mut(&id) {
                known.quotas.push(quota);
                order.insert((known.priority, known.used, id));
            }
        }
        self.orders.insert(quota, order);
    }

    /// A quota is no more.
    pub(crate) fn end_quota(&mut self, quota: QuotaId) {
        self.orders.remove(&quota);
    }

    /// The next file to be evicted after `last`, of all or of those that a quota counts.
    pub(crate) fn after(&self, last: Option<Rank>, quota: Option<QuotaId>) -> Option<Rank> {
        let from = last.map_or(Unbounded, Excluded);
        let order = match quota {
            None => &self.order,
            Some(quota) => self.orders.get(&quota)?,
        };
        order.range((from, Unbounded)).next().copied()
    }

    /// All of them, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Rank> + '_ {
        self.order.iter().copied()
    }

    /// Keeps the marks of a client that left until they were read for all files.
    pub(crate) fn client_left(&mut self, used: Used) {
        if self.order.is_empty() {
            return;
        }
        if self.left.len() >= MAX_LEFT {
            self.left.pop_front();
        }
        self.left.push_back((used, None));
    }

    /// Whether marks of such clients are left to read.
    pub(crate) fn has_left(&self) -> bool {
        !self.left.is_empty()
    }
}

impl Core {
    /// A file was put into the index, by a commit, a rename or a restart: that is its last use.
    pub(crate) fn note_listed(&mut self, name: &FileName, file: &FileRecord) {
        let priority = file.rules.evict_priority;
        // Clients mark nothing before there is a file that may be evicted.
        if priority > 0 || self.frames.generation() > 0 {
            // Its readers' marks are later than the generation that ended.
            let used = self.frames.begin_generation();
            let quotas = match priority {
                0 => Vec::new(),
                _ => self.quotas.ids_of(file.uid, name),
            };
            self.evictables.put(file.id, EvictableRecord { priority, used, quotas });
        }
    }

    /// In which generation the file in `entry` was last used, by the clients' marks. Only a mark
    /// that is later than the last known use counts: the slot may have been another file's before.
    pub(crate) fn last_use(&self, entry: EntryId) -> Option<u64> {
        let now = self.frames.generation();
        let present = self.clients.values().map(|client| &client.used);
        let left = self.evictables.left.iter().map(|(used, _)| used);
        present.chain(left).filter_map(|used| used.last_use(entry, now)).max()
    }

    /// Reads a step's worth of the marks of clients that left.
    pub(crate) fn read_last_uses(&mut self) {
        let Some((used, read_to)) = self.evictables.left.pop_front() else { return };
        let now = self.frames.generation();
        let from = read_to.map_or(Unbounded, Excluded);
        let ids = self.evictables.of.range((from, Unbounded)).map(|(&id, _)| id);
        let ids: Vec<FileId> = ids.take(STEP_FILES).collect();
        for &id in &ids {
            let file = self.files.by_id(id);
            if let Some(last) = file.and_then(|(_, file)| used.last_use(file.entry, now)) {
                self.evictables.note_use(id, last);
            }
        }
        if ids.len() == STEP_FILES {
            self.evictables.left.push_front((used, ids.last().copied()));
        }
    }
}
