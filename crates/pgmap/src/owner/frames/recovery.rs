//! Taking over frames from an owner that was killed at any step.
//!
//! The catalog says whose a frame is and which failed; descriptors are believed only where every
//! folio of an extent agrees with it. Where one does not, the extent was being changed, or the file
//! of descriptors was damaged: either way the extent gets descriptors and a stamp of its own again,
//! which ends whatever readers may know of its pieces.

use pgmap_mm::descriptor::{Descriptor, FolioFlags, FolioState};
use pgmap_mm::drain::ClientId;
use pgmap_mm::extent::Extent;
use pgmap_mm::index::MAX_EXTENTS;
use pgmap_mm::pfn::{Pfn, PfnRange};
use pgmap_mm::runs::SortedRuns;

use super::PoolFrames;
use super::reclaim::without;
use crate::owner::backing::Backing;
use crate::refusal::Refusal;

impl PoolFrames {
    /// Takes an extent's frames back and returns what readers must be given for it; `None` when a
    /// frame is another file's or outside the pool. `is_known` says that a client may know the
    /// extent's life word from before, `nr_extents` how many the file has.
    ///
    /// # Errors
    /// What taking a stamp can fail with, and cutting failed frames out.
    pub(crate) fn recover_extent(
        &mut self,
        extent: &Extent,
        is_known: bool,
        nr_extents: usize,
    ) -> Result<Option<Vec<Extent>>, Refusal> {
        if self.is_intact(extent) {
            let is_claimed = self.folios.claim(extent.run);
            if is_claimed {
                self.folios.discard_stale_below(extent.run);
            }
            return Ok(is_claimed.then(|| vec![*extent]));
        }
        let most = extent.head_level.max(self.smallest());
        let is_lost = self.folios.as_found(extent).is_none();
        let life = if is_lost && !is_known {
            extent.life
        } else {
            let flags = extent.life.flags().without(FolioFlags::PARTIAL);
            Descriptor::new(extent.life.state(), flags, self.take_stamp()?)
        };
        if !self.is_free(extent.run) {
            return Ok(None);
        }
        if !self.folios.reclaim(extent.run, most, life) {
            let why = format!("no room for the descriptors of frames {}", extent.run);
            return Err(Refusal::NoMemory { why });
        }
        self.folios.discard_stale_below(extent.run);
        let piece = self.folios.piece(extent.run).unwrap_or(Extent { life, ..*extent });
        if life.state() != FolioState::Live {
            return Ok(Some(vec![piece]));
        }
        let failed = self.failed.within(extent.run);
        if let Some(first) = failed.first().filter(|_| nr_extents + 2 > MAX_EXTENTS) {
            let fresh = self.take_stamp()?;
            let withheld = self.folios.isolate_in_whole(first.first(), &piece, fresh)?;
            return Ok(Some(withheld.pieces));
        }
        let mut pieces = Vec::new();
        let mut rest = Some(piece);
        for failed in failed {
            let Some(whole) = rest else { break };
            let fresh = self.take_stamp()?;
            let cut = self.folios.cut_out(&whole, failed, fresh)?;
            self.folios.change(failed, |word| word.in_state(FolioState::Poisoned));
            let hole = Extent { life: cut.hole.life.in_state(FolioState::Poisoned), ..cut.hole };
            pieces.extend(cut.before.into_iter().chain([hole]));
            rest = cut.after;
        }
        pieces.extend(rest);
        Ok(Some(pieces))
    }

    /// Whether the descriptors say of every folio of `extent` what the catalog does.
    fn is_intact(&self, extent: &Extent) -> bool {
        if self.folios.as_found(extent) != Some(*extent)
            || !self.vmemmap().layout().covers(extent.run)
        {
            return false;
        }
        let is_withheld = extent.life.state() == FolioState::Quarantined;
        let partial = FolioFlags::PARTIAL;
        self.vmemmap().folios(extent.run).all(|(first, level, word)| {
            let folio = PfnRange::folio(first, level);
            if first == extent.first() {
                // Its word is the extent's. That it failed may be on record before that is said.
                return extent.life.state() != FolioState::Live || !self.failed.overlaps(folio);
            }
            match word.state() {
                FolioState::Poisoned => {
                    self.failed.is_free(folio)
                        && (is_withheld || extent.life.state() == FolioState::Poisoned)
                }
                FolioState::Live => {
                    extent.run.covers(folio)
                        && !self.failed.overlaps(folio)
                        && word.flags().without(partial) == extent.life.flags().without(partial)
                        && word.stamp().is_some()
                }
                _ => false,
            }
        })
    }

    /// Takes every frame that no file has, and that is not Free by its descriptor or is in `held`,
    /// out of the free ones: frames that were on their way somewhere when the last owner ended.
    /// They are retired; what is left is to wait for their holders.
    ///
    /// # Errors
    /// [`Refusal::NoMemory`] when there is no room to describe them.
    pub(crate) fn claim_strays(
        &mut self,
        held: impl Iterator<Item = PfnRange>,
    ) -> Result<SortedRuns, Refusal> {
        let mut strays = Vec::new();
        let free: Vec<(u64, u64)> = self.folios.frames().runs().collect();
        for (start, length) in free {
            let mut at = start;
            while at < start + length {
                let Some(pfn) = Pfn::new(at) else { break };
                let Some((level, word)) = self.vmemmap().folio_of(pfn) else { break };
                let folio = PfnRange::folio(pfn, level);
                if word != Descriptor::FREE {
                    strays.push(folio);
                }
                at = folio.end();
            }
        }
        // A live client may also hold frames whose descriptors were lost.
        let whole = held.map(|run| self.in_smallest_folios(run));
        strays.extend(whole.flat_map(|run| self.folios.frames().within(run)));
        let strays = SortedRuns::new(strays);
        // What is free, and no more, where a damaged word made a folio too large.
        let strays: SortedRuns =
            strays.iter().flat_map(|run| self.folios.frames().within(run)).collect();
        for run in strays.iter() {
            self.folios.claim_any_of(run);
            if !self.folios.stray(run) {
                let why = format!("no room for the descriptors of frames {run}");
                return Err(Refusal::NoMemory { why });
            }
        }
        Ok(strays)
    }

    /// A device of the dead `client` may still write to `runs`: notes those that are in use. With
    /// `are_doubtful`, those that are free are detached at once, for nobody knows any more whether
    /// the hold was one that its owner was about to undo.
    pub(crate) fn orphan(
        &mut self,
        client: ClientId,
        runs: impl IntoIterator<Item = PfnRange>,
        are_doubtful: bool,
    ) {
        let described = self.vmemmap().layout().nr_pages();
        for run in runs {
            // A ledger may say anything, also of frames that the pool does not have (I9).
            let nr_pages = run.end().min(described).saturating_sub(run.start());
            let Some(run) = PfnRange::new(run.start(), nr_pages) else { continue };
            for used in self.folios.frames().without_free(run) {
                for used in self.in_use(used) {
                    self.orphans.add(client, used);
                }
            }
            if !are_doubtful {
                continue;
            }
            for free in self.folios.frames().within(run) {
                let pages = self.whole_pages(free);
                if let Err(refusal) = self.detach_with(pages, free) {
                    tracing::warn!(run = %free, %refusal, "frames are quarantined");
                    self.orphans.add(client, free);
                    self.quarantine_free(self.in_smallest_folios(free));
                }
            }
        }
    }

    /// Puts what is free of `run`, made of whole smallest folios, in quarantine. It may be a part
    /// of a larger free folio, which is described again then.
    fn quarantine_free(&mut self, run: PfnRange) {
        for free in self.folios.frames().within(run) {
            self.folios.claim_any_of(free);
            if self.folios.stray(free) {
                self.quarantine_run(free);
            } else {
                // They are out of use all the same, until the next owner starts.
                tracing::warn!(run = %free, "no room for the descriptors of frames in quarantine");
            }
            self.quarantined.give(free);
        }
    }

    /// `run`, widened to the smallest folios that the pool describes.
    fn in_smallest_folios(&self, run: PfnRange) -> PfnRange {
        let unit = self.smallest().nr_pages();
        let start = run.start() - run.start() % unit;
        PfnRange::new(start, run.end().next_multiple_of(unit) - start).unwrap_or(run)
    }

    /// What of `run`, which is not free, is in use: all of it inside the pool's own frames and its
    /// backings', and what the descriptors say of further pagemaps'.
    fn in_use(&self, run: PfnRange) -> Vec<PfnRange> {
        let own: Vec<PfnRange> = self
            .backings
            .iter()
            .flat_map(Backing::runs)
            .filter_map(|of_backing| of_backing.intersection(run))
            .collect();
        let further = without_all(run, &own);
        let is_used =
            |word: Descriptor| !matches!(word.state(), FolioState::Free | FolioState::Offline);
        let of_pagemaps = further.into_iter().flat_map(|further| {
            let folios = self.vmemmap().folios(further);
            folios.filter(|&(.., word)| is_used(word)).filter_map(move |(first, level, _)| {
                PfnRange::folio(first, level).intersection(further)
            })
        });
        own.into_iter().chain(of_pagemaps).collect()
    }

    /// Frames that dead clients' devices may still write to.
    pub(crate) const fn orphaned_pages(&self) -> u64 {
        self.orphans.nr_pages()
    }

    /// Dead clients that have no such frame any more since the last call.
    pub(crate) fn take_ended_orphans(&mut self) -> Vec<ClientId> {
        self.orphans.take_ended()
    }

    /// Whether a device of the dead `client` may still write anywhere.
    pub(crate) fn has_orphans(&self, client: ClientId) -> bool {
        self.orphans.has(client)
    }

    /// Ends the recovery of the index: what is not in it now does not exist.
    pub(crate) fn finish_recovery(&self) {
        self.index.finish_reopening();
    }
}

fn without_all(run: PfnRange, gone: &[PfnRange]) -> Vec<PfnRange> {
    gone.iter().fold(vec![run], |rest, gone| without(rest, *gone))
}
