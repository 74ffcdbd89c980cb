//! What a batch of creates may take, and what it evicts.

use pgmap_mm::drain::ClientId;

use crate::owner::core::Core;
use crate::owner::evict::Eviction;
use crate::owner::populate::STEP_PAGES;
use crate::owner::quotas::QuotaEvictions;
use crate::wire::{CreateSpec, MAX_REPLY_EXTENTS};

/// What is left for the rest of a batch: extents of the answer, and frames whose memory is taken at
/// once. And what was evicted for it.
pub(crate) struct BatchRoom {
    pub nr_extents: usize,
    pub nr_pages: u64,
    /// Frames that it wants in all, if it is to make room for all of them at once; else 0.
    pub wanted_pages: u64,
    pub eviction: Eviction,
    pub of_quotas: QuotaEvictions,
}

impl BatchRoom {
    pub(crate) fn new() -> Self {
        Self {
            nr_extents: MAX_REPLY_EXTENTS,
            nr_pages: STEP_PAGES,
            wanted_pages: 0,
            eviction: Eviction::default(),
            of_quotas: QuotaEvictions::new(),
        }
    }
}

impl Core {
    /// The frames that a batch wants, if it lacks room and its files make it alike: then one
    /// eviction serves many of them. 0 where each is to make room for itself, because it may be
    /// refused, or only some files may go for it.
    pub(crate) fn wanted_pages(&self, client: ClientId, specs: &[CreateSpec]) -> u64 {
        let pages = |spec: &CreateSpec| {
            let pages = self.frames.pages_for(spec.len_bytes, spec.folio_size.sizing());
            // What is larger than the pool is refused.
            pages.filter(|&pages| pages <= self.all_pages()).unwrap_or(0)
        };
        let wanted = specs.iter().map(pages).fold(0_u64, u64::saturating_add);
        if specs.len() < 2 || wanted <= self.frames.free_pages() {
            return 0;
        }
        let uid = self.uid_of(client);
        let is_alike = |spec: &CreateSpec| {
            spec.placement == specs[0].placement
                && self.check_name_free(&spec.name, spec.replace).is_ok()
                && self.quotas.matching(uid, &spec.name).next().is_none()
        };
        if specs.iter().all(is_alike) { wanted } else { 0 }
    }
}
