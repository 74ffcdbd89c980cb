//! Eviction: removing files that nobody holds, so that others have room.
//!
//! # States
//!
//! ```text
//!   live ── held, as far as the ledgers say ──▶ live, used just now
//!     └── not held ──▶ shut: heads Dying ── heavy barrier, scan ──▶ nobody: removed, frames idle
//!                                                     └──▶ held: opened again, used just now
//! ```
//!
//! # Who may touch what
//!
//! The owner, in one go under its lock: who asks the owner about a file that is shut is answered
//! when it is live again or gone.
//!
//! # Lost races
//!
//! *Pin against eviction.* That of a pin against a drain: a pin that was published before the heavy
//! barrier is found by the scan, and the file is opened again; one published later finds the head
//! Dying, and is undone. Its taker looks again, and after a few attempts asks the owner, which
//! waits for the lock. The file has its stamp again when it is opened, which is sound: a pin that
//! finds the old word finds a file that is live.
//!
//! *The owner is killed.* Until the removal is on record the catalog has the file, and the next
//! owner writes its head again. From then on it is as after an unlink.
//!
//! # Differs from Linux
//!
//! `__remove_mapping` freezes the folio's count at the value that it has without users, and gives
//! the folio up if it is another (Linux 7.1: mm/vmscan.c). Here the count is in the ledgers, so it
//! is read twice: before, because most files that are held are found so without harm, and after.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use pgmap_mm::folio::Sizing;
use pgmap_mm::frames::FramesShort;
use pgmap_mm::index::FileId;
use pgmap_mm::level::Level;
use pgmap_mm::pfn::{Pfn, PfnRange};
use pgmap_mm::runs::SortedRuns;

use crate::name::FileName;
use crate::owner::clients::ClientRecord;
use crate::owner::core::Core;
use crate::owner::evictables::Rank;
use crate::owner::file_book::FileRecord;
use crate::owner::files::{checked_batch, file_idle};
use crate::owner::quotas::QuotaId;
use crate::pool::catalog::Change;
use crate::refusal::{ClientHold, Refusal};
use crate::wire::{FileChange, Placement, Reply};

/// Most files that one request evicts: some ten milliseconds.
const MAX_EVICTED: usize = 16_384;
/// Most files that one request finds held. Those go behind all others, so that the next request
/// begins with others.
const MAX_HELD: usize = 16_384;
/// Most files of which one request reads again when they were used.
const MAX_READ: usize = 65_536;
/// Files that are shut at a time: one barrier and one scan serve all of them.
const MAX_SHUT: usize = 64;
/// A request for room has up to this part of the pool evicted beyond what it lacks, so that one
/// barrier and one scan serve those that follow, too. As direct reclaim of Linux takes
/// `SWAP_CLUSTER_MAX` pages at the least (Linux 7.1: mm/vmscan.c).
const AHEAD_PART: u64 = 128;
/// And at most so many times what it wants.
const MAX_AHEAD: u64 = 16;
/// How often the choice of a block is made again because what lies there was used.
const MAX_CHOICES: usize = 4;

/// What one request has evicted so far, and what it met.
#[derive(Debug, Default)]
pub(crate) struct Eviction {
    nr_evicted: usize,
    nr_read: usize,
    /// Where in the order it is.
    last: Option<Rank>,
    /// Files that somebody holds, and their frames.
    held: HashSet<FileId>,
    held_pages: u64,
    /// Nothing is left to evict, or the catalog takes no removals.
    is_over: bool,
}

impl Eviction {
    /// Frames of files that somebody holds.
    pub(crate) const fn held_pages(&self) -> u64 {
        self.held_pages
    }

    fn is_over(&self) -> bool {
        self.is_over || self.nr_evicted >= MAX_EVICTED || self.held.len() >= MAX_HELD
    }
}

/// What a request that found no room wants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want<'o> {
    pub pages: u64,
    /// These, and the frames that the rest of its batch is about to want.
    pub batch_pages: u64,
    /// Files that are to go at the least.
    pub nr_files: usize,
    pub sizing: Sizing,
    /// The zones that it may be in.
    pub order: &'o [u64],
}

/// A block of frames as large as a folio, in which all that is not free may be evicted.
#[derive(Debug, Default)]
struct EvictableBlock {
    pages: u64,
    /// When what lies in it was last used, by the file that would go last.
    rank: Option<Rank>,
    files: Vec<FileId>,
}

impl Core {
    /// Evicts some of what may be, for a request that found no room; false if there is nothing left
    /// that helps.
    pub(crate) fn evict_for(
        &mut self,
        eviction: &mut Eviction,
        want: Want<'_>,
        short: &FramesShort,
    ) -> bool {
        !short.lacks_descriptors && self.evict_some(eviction, want)
    }

    /// Evicts files until the index has room for `nr_new` more, of `nr_slots` slots together, or
    /// nothing is left to evict.
    pub(crate) fn evict_for_index(&mut self, nr_new: usize, nr_slots: usize) {
        let mut eviction = Eviction::default();
        loop {
            let most = usize::try_from(self.pool.max_files()).unwrap_or(usize::MAX);
            let nr_over = (self.files.len() + nr_new).saturating_sub(most);
            let is_full = match self.frames.check_room(nr_slots) {
                Err(Refusal::IndexFull { .. }) => true,
                Ok(()) | Err(_) => false,
            };
            let nr_files = nr_over.max(usize::from(is_full));
            if nr_files == 0 {
                return;
            }
            let Ok(order) = self.frames.order(&Placement::Any) else { return };
            let want =
                Want { pages: 0, batch_pages: 0, nr_files, sizing: Sizing::BestFit, order: &order };
            if !self.evict_some(&mut eviction, want) {
                return;
            }
        }
    }

    /// Evicts some files that a quota counts: as many as have so many frames, and so many at the
    /// least; false if there is none that may go.
    pub(crate) fn evict_of_quota(
        &mut self,
        eviction: &mut Eviction,
        quota: QuotaId,
        pages: u64,
        nr_files: usize,
    ) -> bool {
        self.evict_chosen(eviction, |core, eviction| {
            core.choose_oldest(eviction, Some(quota), pages, nr_files)
        })
    }

    /// As [`evict_of_quota`](Self::evict_of_quota), of all files.
    pub(crate) fn evict_of_all(&mut self, eviction: &mut Eviction, pages: u64) -> bool {
        self.evict_chosen(eviction, |core, eviction| core.choose_oldest(eviction, None, pages, 0))
    }

    fn evict_some(&mut self, eviction: &mut Eviction, want: Want<'_>) -> bool {
        self.evict_chosen(eviction, |core, eviction| core.choose(eviction, want))
    }

    /// Evicts what is chosen, at most [`MAX_SHUT`] files, and chooses again where all of that is
    /// held.
    fn evict_chosen(
        &mut self,
        eviction: &mut Eviction,
        choose: impl Fn(&mut Self, &mut Eviction) -> Vec<FileId>,
    ) -> bool {
        while !eviction.is_over() {
            let files = choose(self, eviction);
            if files.is_empty() {
                eviction.is_over = true;
                return false;
            }
            match self.evict(eviction, files) {
                Ok(0) => {}
                Ok(_) => return true,
                Err(refusal) => {
                    tracing::warn!(%refusal, "nothing can be evicted");
                    eviction.is_over = true;
                }
            }
        }
        false
    }

    /// The files that are to go next: the least recently used, as many as there are frames missing,
    /// and a few for the requests that follow. Where enough frames are free, and not together,
    /// those of the block that was used longest ago.
    fn choose(&mut self, eviction: &mut Eviction, want: Want<'_>) -> Vec<FileId> {
        let (mut files, mut freed, mut zone) = (Vec::new(), 0, None);
        let needed = want.batch_pages.max(want.pages);
        let ahead = (self.all_pages() / AHEAD_PART).min(want.pages.saturating_mul(MAX_AHEAD));
        let most = needed.max(want.pages.saturating_add(ahead));
        while files.len() < MAX_SHUT {
            let Some(rank) = self.evictables.after(eviction.last, None) else { break };
            let (_, used, id) = rank;
            let Some(file) = self.evictable(id) else {
                eviction.last = Some(rank);
                continue;
            };
            let its_zone = self.zone_of(file).filter(|its| want.order.contains(its));
            let Some(its_zone) = its_zone.filter(|_| !eviction.held.contains(&id)) else {
                eviction.last = Some(rank);
                continue;
            };
            if zone.is_some_and(|zone| its_zone != zone) {
                // First what that makes room for is tried.
                break;
            }
            let (entry, pages) = (file.entry, file.allocated_pages());
            let free = self.frames.free_around(its_zone);
            let is_enough = free + freed >= needed && files.len() >= want.nr_files.max(1);
            if is_enough && free + freed + pages > most {
                break;
            }
            if eviction.nr_read < MAX_READ {
                eviction.nr_read += 1;
                let last = self.last_use(entry).filter(|&last| last > used);
                if last.is_some_and(|last| self.evictables.note_use(id, last)) {
                    continue;
                }
            }
            let zone = *zone.get_or_insert(its_zone);
            if files.is_empty()
                && free >= want.pages
                && let Some(block) = self.choose_block(eviction, zone, want.sizing)
            {
                return block;
            }
            eviction.last = Some(rank);
            files.push(id);
            freed += pages;
        }
        files
    }

    /// The least recently used files, of all or of those that a quota counts, until they have so
    /// many frames and are so many, wherever they lie.
    fn choose_oldest(
        &mut self,
        eviction: &mut Eviction,
        quota: Option<QuotaId>,
        pages: u64,
        nr_files: usize,
    ) -> Vec<FileId> {
        let (mut files, mut freed) = (Vec::new(), 0);
        while files.len() < MAX_SHUT && (freed < pages || files.len() < nr_files) {
            let Some(rank) = self.evictables.after(eviction.last, quota) else { break };
            let (_, used, id) = rank;
            let file = self.evictable(id).filter(|_| !eviction.held.contains(&id));
            let Some((entry, its_pages)) = file.map(|file| (file.entry, file.allocated_pages()))
            else {
                eviction.last = Some(rank);
                continue;
            };
            if eviction.nr_read < MAX_READ {
                eviction.nr_read += 1;
                let last = self.last_use(entry).filter(|&last| last > used);
                if last.is_some_and(|last| self.evictables.note_use(id, last)) {
                    continue;
                }
            }
            eviction.last = Some(rank);
            // What frees nothing is not evicted for room.
            if its_pages > 0 || pages == 0 {
                files.push(id);
                freed += its_pages;
            }
        }
        files
    }

    /// A file that may be evicted, unless something is being done to it.
    fn evictable(&self, id: FileId) -> Option<&FileRecord> {
        let (_, file) = self.files.by_id(id)?;
        (file.doing.is_none()).then_some(file)
    }

    /// The zone in which a file has its frames; `None` if it has none.
    fn zone_of(&self, file: &FileRecord) -> Option<u64> {
        let first = file.runs().next()?.start();
        Some(self.frames.backings().at(first).first_pfn)
    }

    /// The files in the block of the folio size that is wanted which was used longest ago, of those
    /// in which all that is not free may go.
    fn choose_block(
        &mut self,
        eviction: &mut Eviction,
        zone: u64,
        sizing: Sizing,
    ) -> Option<Vec<FileId>> {
        let Sizing::Fixed(level) = sizing else { return None };
        if level == self.frames.smallest() {
            return None;
        }
        for _ in 0..MAX_CHOICES {
            let files = self.oldest_block(eviction, zone, level)?;
            let mut was_used = false;
            for &id in &files {
                let last =
                    self.evictable(id).map(|file| file.entry).and_then(|at| self.last_use(at));
                eviction.nr_read += 1;
                was_used |= last.is_some_and(|last| self.evictables.note_use(id, last));
            }
            if !was_used || eviction.nr_read >= MAX_READ {
                return Some(files);
            }
        }
        self.oldest_block(eviction, zone, level)
    }

    fn oldest_block(&self, eviction: &Eviction, zone: u64, level: Level) -> Option<Vec<FileId>> {
        let mut blocks: HashMap<u64, EvictableBlock> = HashMap::new();
        for rank in self.evictables.iter().filter(|rank| !eviction.held.contains(&rank.2)) {
            let Some(file) = self.evictable(rank.2) else { continue };
            if self.zone_of(file) != Some(zone) {
                continue;
            }
            for run in file.runs() {
                let last = (run.end() - 1) >> level.shift();
                for number in run.start() >> level.shift()..=last {
                    let Some(folio) = folio_at(number, level) else { continue };
                    let block = blocks.entry(number).or_default();
                    block.pages += run.intersection(folio).map_or(0, PfnRange::nr_pages);
                    // In order, so this is the latest.
                    block.rank = Some(rank);
                    if block.files.last() != Some(&rank.2) {
                        block.files.push(rank.2);
                    }
                }
            }
        }
        let is_whole = |(number, block): &(u64, EvictableBlock)| {
            folio_at(*number, level)
                .is_some_and(|folio| self.frames.pages_in_use(folio) == block.pages)
        };
        let whole = blocks.into_iter().filter(is_whole);
        whole.min_by_key(|(number, block)| (block.rank, *number)).map(|(_, block)| block.files)
    }

    /// Evicts those of `files` that nobody holds. Returns how many those are.
    fn evict(&mut self, eviction: &mut Eviction, files: Vec<FileId>) -> Result<usize, Refusal> {
        let mut nr_evicted = 0;
        for files in files.chunks(MAX_SHUT) {
            let names = files.iter().filter_map(|id| self.files.name_of(*id)).cloned().collect();
            let (gone, held) = self.remove_unheld(names, FileChange::Evicted)?;
            let now = self.frames.generation();
            for name in held {
                let Some(file) = self.files.get(&name) else { continue };
                // Who holds it uses it.
                if eviction.held.insert(file.id) {
                    eviction.held_pages += file.allocated_pages();
                }
                self.evictables.note_use(file.id, now);
            }
            nr_evicted += gone.len();
        }
        eviction.nr_evicted += nr_evicted;
        Ok(nr_evicted)
    }

    /// Takes names away, and the frames with them, of files that nobody holds.
    pub(crate) fn unlink_unless_held(&mut self, names: &[FileName]) -> Result<Reply, Refusal> {
        checked_batch(names.len())?;
        let mut results = Vec::with_capacity(names.len());
        let (mut wanted, mut seen) = (Vec::new(), HashSet::new());
        for name in names {
            let verdict = match self.files.get(name) {
                Some(file) if !seen.contains(name) => file_idle(name, file),
                _ => Err(Refusal::NotFound { name: name.to_string() }),
            };
            if verdict.is_ok() {
                seen.insert(name);
                wanted.push(name.clone());
            }
            results.push(verdict);
        }
        let is_batch = names.len() > 1;
        let found = self.remove_and_name_holders(wanted)?;
        // Those whose holders let go before they could be named, once more.
        let (let_go, mut held): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|(_, holders)| holders.is_empty());
        let again = let_go.iter().map(|(name, _)| name.clone()).collect();
        // The first ones are gone by now, whatever comes of these.
        held.extend(self.remove_and_name_holders(again).unwrap_or(let_go));
        for (name, mut holders) in held {
            if is_batch {
                holders.truncate(1);
            }
            let place = names.iter().position(|other| *other == name);
            if let Some(result) = place.and_then(|place| results.get_mut(place)) {
                let name = name.to_string();
                *result = Err(Refusal::Held { name, holders, waited_ms: 0 });
            }
        }
        Ok(Reply::Unlinked(results))
    }

    /// Removes those of the files `names` that nobody holds; the others, each with who holds it.
    fn remove_and_name_holders(
        &mut self,
        names: Vec<FileName>,
    ) -> Result<Vec<(FileName, Vec<ClientHold>)>, Refusal> {
        let (_, held) = self.remove_unheld(names, FileChange::Removed)?;
        let named = held.into_iter().filter_map(|name| {
            let runs: SortedRuns = self.files.get(&name)?.runs().collect();
            Some((name, self.holders_of(&runs, 0)))
        });
        Ok(named.collect())
    }

    /// Removes those of the files `names`, to which nothing is being done, that nobody holds.
    /// Returns which those are, and which others somebody holds.
    ///
    /// # Errors
    /// When the removals cannot be put on record: nothing is removed then.
    fn remove_unheld(
        &mut self,
        names: Vec<FileName>,
        change: FileChange,
    ) -> Result<(Vec<FileName>, Vec<FileName>), Refusal> {
        // Most files that are held are found so, and left alone.
        let (names, mut held) = self.part_held(names);
        if names.is_empty() {
            return Ok((names, held));
        }
        for name in &names {
            if let Some(file) = self.files.get(name) {
                self.frames.shut(&file.extents);
            }
        }
        let runs_of = |core: &Self, name: &FileName| -> SortedRuns {
            core.files.get(name).into_iter().flat_map(FileRecord::runs).collect()
        };
        let all: SortedRuns =
            names.iter().flat_map(|name| runs_of(self, name).iter().collect::<Vec<_>>()).collect();
        let drain = self.scan_for(all);
        let (mut going, mut gone) = (Vec::with_capacity(names.len()), Vec::new());
        for name in names {
            let part = drain.part(runs_of(self, &name));
            if part.is_idle() {
                going.push((name, part));
            } else {
                self.open_file(&name);
                held.push(name);
            }
        }
        let changes: Vec<Change<'_>> = going.iter().map(|(name, _)| Change::Delete(name)).collect();
        if let Err(refusal) = self.record(&changes) {
            going.iter().for_each(|(name, _)| self.open_file(name));
            return Err(refusal);
        }
        for (name, drain) in going {
            let Some((name, file)) = self.files.remove(&name) else { continue };
            self.frames.unlist(file.entry, &name);
            self.evictables.forget(file.id);
            if change == FileChange::Evicted {
                self.evictables.nr_evicted += 1;
                self.evictables.evicted_pages += file.allocated_pages();
            }
            self.announce(change, &name, file.id, file.len_bytes);
            // Of those that cannot be pinned, too.
            self.frames.retire(&file.extents);
            let fading = self.fading(&name, &file);
            self.took_one_out(drain, fading);
            gone.push(name);
        }
        self.reclaim_some();
        Ok((gone, held))
    }

    fn open_file(&mut self, name: &FileName) {
        if let Some(file) = self.files.get(name) {
            self.frames.open_again(&file.extents);
        }
    }

    /// Which of the files `names` nobody holds, as far as the ledgers say, and which somebody does.
    fn part_held(&self, names: Vec<FileName>) -> (Vec<FileName>, Vec<FileName>) {
        let (mut idle, mut held) = (Vec::with_capacity(names.len()), Vec::new());
        for name in names {
            let Some(file) = self.files.get(&name) else { continue };
            let runs: SortedRuns = file.runs().collect();
            match self.is_held(&runs) {
                true => held.push(name),
                false => idle.push(name),
            }
        }
        (idle, held)
    }

    /// Whether anybody holds any of `runs`, as far as the ledgers say without a barrier, or was
    /// given a lease of it.
    pub(crate) fn is_held(&self, runs: &SortedRuns) -> bool {
        let is_leased = self.leases.is_leased(runs);
        let has_none = |client: &ClientRecord| {
            client.ledger.try_for_each_hold(runs, |_| ControlFlow::Break(())).is_continue()
        };
        is_leased || !self.clients.values().all(has_none)
    }
}

/// The folio of a level with this number.
fn folio_at(number: u64, level: Level) -> Option<PfnRange> {
    Pfn::new(number << level.shift()).map(|pfn| PfnRange::folio(pfn, level))
}
