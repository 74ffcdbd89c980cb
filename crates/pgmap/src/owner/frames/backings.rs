//! The frames of further backings: taken into use when a backing is added or found again, and out
//! of use when it is taken out.

use std::borrow::Cow;
use std::path::Path;

use pgmap_mm::level::PAGE_BYTES;
use pgmap_mm::memory_type::MemoryType;
use pgmap_mm::pfn::Pfn;
use pgmap_os::MemoryFile;

use super::PoolFrames;
use crate::error::Error;
use crate::owner::backing::{Backing, BackingState, Backings, MAX_BACKINGS};
use crate::pool::backing::{open_backing, path_of};
use crate::pool::catalog::StoredBacking;
use crate::refusal::{FreeOn, Refusal};
use crate::wire::Placement;

impl PoolFrames {
    /// The backings.
    pub(crate) const fn backings(&self) -> &Backings {
        &self.backings
    }

    /// As [`backings`](Self::backings), to be changed.
    pub(crate) const fn backings_mut(&mut self) -> &mut Backings {
        &mut self.backings
    }

    /// Takes the backings on record into use. One whose medium is not there, or is not it, has its
    /// files and no contents.
    pub(super) fn open_backings(&mut self) -> Result<(), Error> {
        let lines = self.pool.catalog.as_ref().map_or(&[][..], |catalog| catalog.backings());
        let lines: Vec<StoredBacking> = lines.iter().filter(|it| !it.is_retired).cloned().collect();
        for line in lines {
            let pool = self.pool.name();
            let bad = |why: &str| Error::BadPool {
                pool: pool.clone(),
                why: format!("its backing \"{}\" on record {why}", line.name),
            };
            let memory_type = MemoryType::from_number(line.memory_type);
            let memory_type = memory_type.ok_or_else(|| bad("is no known kind of memory"))?;
            if !self.is_possible(&line) {
                return Err(bad("lies where no backing can"));
            }
            let (path, offset_bytes) = (path_of(&self.pool.data, &line), line.offset_bytes);
            let (first_pfn, nr_pages) = (line.first_pfn, line.nr_pages);
            let (state, data, lock) = match open_backing(self.pool.id(), &line, &path) {
                Ok(medium) => (BackingState::Open, Some(medium.data), medium.lock),
                Err(error) => {
                    tracing::error!(backing = %line.name, %error, "a backing is missing");
                    (BackingState::Missing(error.to_string()), None, None)
                }
            };
            let (id, name, end_pfn) = (line.id, line.name.clone(), first_pfn + nr_pages);
            let backing = Backing {
                id,
                name,
                path,
                first_pfn,
                nr_pages,
                offset_bytes,
                memory_type,
                state,
                data,
                lock,
                end_pfn,
                #[cfg(test)]
                as_if: crate::owner::backing::AsIf::default(),
            };
            if !self.add_zone(&backing) {
                return Err(bad("has no room for its descriptors, or frames of another"));
            }
            self.backings.add(backing);
        }
        Ok(())
    }

    /// Whether a line of the catalog can be a backing's.
    fn is_possible(&self, line: &StoredBacking) -> bool {
        let end = self.pool.span_bytes() / PAGE_BYTES;
        let unit = self.smallest().nr_pages();
        let last = self.backings.iter().map(|backing| (backing.first_pfn, backing.end_pfn));
        let is_apart =
            |(first, taken)| line.first_pfn > taken || line.first_pfn + line.nr_pages < first;
        line.id != 0
            && line.nr_pages > 0
            && line.nr_pages <= end
            && line.first_pfn.is_multiple_of(pgmap_mm::level::Level::Pud.nr_pages())
            && line.first_pfn <= end - line.nr_pages
            && line.nr_pages.is_multiple_of(unit)
            && line.offset_bytes.is_multiple_of(PAGE_BYTES)
            && self.backings.iter().count() < MAX_BACKINGS
            && last.into_iter().all(is_apart)
    }

    fn add_zone(&mut self, backing: &Backing) -> bool {
        let first = Pfn::new(backing.first_pfn);
        first.is_some_and(|first| self.folios.add_zone(first, backing.nr_pages))
    }

    /// Takes a fresh backing's frames into use: they are free.
    ///
    /// # Errors
    /// [`Refusal::NoMemory`] when there is no memory to describe them; nothing is changed then.
    pub(crate) fn add_backing(&mut self, backing: Backing) -> Result<(), Refusal> {
        if let Some(first) = Pfn::new(backing.first_pfn) {
            self.folios.forget(first, backing.nr_pages);
        }
        if !self.add_zone(&backing) {
            let why = "its file system has no room for the backing's descriptors".into();
            return Err(Refusal::NoMemory { why });
        }
        self.backings.add(backing);
        Ok(())
    }

    /// Takes a backing out whose frames are all free; `None` if one is not.
    pub(crate) fn remove_backing(&mut self, id: u64) -> Option<Backing> {
        let runs = self.backings.iter().find(|backing| backing.id == id && id != 0)?.runs();
        self.folios.remove_zone(&runs).then(|| self.backings.remove(id))?
    }

    /// The backings that a new file may lie on, in order, by their first frames.
    ///
    /// # Errors
    /// [`Refusal::NoBacking`] for one that there is not, and if none of those allowed is there.
    pub(crate) fn order(&self, placement: &Placement) -> Result<Cow<'static, [u64]>, Refusal> {
        if *placement == Placement::Any && self.backings.is_data_alone() {
            return Ok(Cow::Borrowed(&[0]));
        }
        let mut order: Vec<&Backing> = Vec::new();
        let (wanted, takes_others) = match placement {
            Placement::Any => (&[][..], true),
            Placement::Only(names) => (names.as_slice(), false),
            Placement::Prefer(names) => (names.as_slice(), true),
        };
        for name in wanted {
            let absent = || {
                let has: Vec<&str> = self.backings.iter().map(|it| it.name.as_str()).collect();
                let why = format!("the pool has none of that name; it has {}", has.join(", "));
                Refusal::NoBacking { backing: name.clone(), why }
            };
            order.push(self.backings.named(name).ok_or_else(absent)?);
        }
        if takes_others {
            order.extend(self.backings.iter());
        }
        let mut open: Vec<u64> = Vec::with_capacity(order.len());
        for backing in order.iter().filter(|backing| backing.state == BackingState::Open) {
            if !open.contains(&backing.first_pfn) {
                open.push(backing.first_pfn);
            }
        }
        match (open.as_slice(), order.first()) {
            ([], Some(backing)) => Err(closed(backing)),
            ([], None) => Err(Refusal::Invalid { why: "a file with no place to lie".into() }),
            _ => Ok(Cow::Owned(open)),
        }
    }

    /// What is free on each backing of `order`.
    pub(crate) fn free_on(&self, order: &[u64]) -> Vec<FreeOn> {
        let mut tried: Vec<FreeOn> = Vec::new();
        for &first in order {
            let (free_pages, longest_pages) = self.folios.frames().free_in_zone(first);
            let backing = self.backings.at(first).name.clone();
            let (free_bytes, longest_bytes) = (free_pages * PAGE_BYTES, longest_pages * PAGE_BYTES);
            tried.push(FreeOn { backing, free_bytes, longest_bytes });
        }
        tried
    }

    /// Frames that are free of a backing, and of its longest free run.
    pub(crate) fn free_in(&self, backing: &Backing) -> (u64, u64) {
        self.folios.frames().free_in_zone(backing.first_pfn)
    }

    /// The places of `order` as an error calls them.
    pub(crate) fn places(&self, order: &[u64]) -> String {
        if self.backings.is_data_alone() {
            return "the whole pool".into();
        }
        let names: Vec<String> =
            order.iter().map(|&first| format!("\"{}\"", self.backings.at(first).name)).collect();
        format!("the largest of the backings {}", names.join(", "))
    }

    /// Frames of the largest backing of `order`.
    pub(crate) fn most_pages(&self, order: &[u64]) -> u64 {
        order.iter().map(|&first| self.backings.at(first).nr_pages).max().unwrap_or(0)
    }
}

/// Why nothing can be put on a backing.
fn closed(backing: &Backing) -> Refusal {
    let why = match &backing.state {
        BackingState::Missing(why) => format!("it is missing: {why}"),
        BackingState::Open | BackingState::Leaving => "it is being taken out".into(),
    };
    Refusal::NoBacking { backing: backing.name.clone(), why }
}

/// What the catalog of a pool with this `data` says of a backing at `path`.
pub(crate) fn stored(data: &MemoryFile, backing: &Backing, path: &Path) -> StoredBacking {
    StoredBacking {
        id: backing.id,
        name: backing.name.clone(),
        path: crate::pool::backing::path_bytes(data, path),
        first_pfn: backing.first_pfn,
        nr_pages: backing.nr_pages,
        offset_bytes: backing.offset_bytes,
        memory_type: backing.memory_type.number(),
        is_retired: false,
    }
}
