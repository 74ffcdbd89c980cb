//! Areas sorted by address, in chunks.
//!
//! A chunk is a sorted array of up to [`CHUNK_AREAS`] areas, and the chunks are sorted too. Looking
//! up is one binary search over the chunks and one in a chunk, over arrays of page numbers and
//! without a branch that depends on them; putting in and taking out move half a chunk. A tree of
//! tens of thousands of areas costs several cache misses and mispredicted branches a level instead.

use super::Vma;

/// Most areas of a chunk. Few in tests, so that they have many chunks.
const CHUNK_AREAS: usize = if cfg!(test) { 5 } else { 64 };

#[derive(Debug, Default)]
struct AreaChunk {
    /// First pages of the areas.
    pages: Vec<u64>,
    areas: Vec<Vma>,
}

impl AreaChunk {
    fn split_off(&mut self, at: usize) -> Self {
        Self { pages: self.pages.split_off(at), areas: self.areas.split_off(at) }
    }

    fn append(&mut self, mut other: Self) {
        self.pages.append(&mut other.pages);
        self.areas.append(&mut other.areas);
    }
}

/// Where an area is, or would be put in. Holds until something is put in or taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    chunk: usize,
    at: usize,
}

/// Areas by first page. An area's first page does not change while it is in.
#[derive(Debug, Default)]
pub(super) struct SortedAreas {
    /// First page of each chunk's first area.
    firsts: Vec<u64>,
    /// None of them empty.
    chunks: Vec<AreaChunk>,
    len: usize,
}

impl SortedAreas {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// The place of the first area that starts at `page` or later.
    pub(super) fn lower_bound(&self, page: u64) -> Place {
        let Some(chunk) = self.firsts.partition_point(|&first| first < page).checked_sub(1) else {
            return Place { chunk: 0, at: 0 };
        };
        let pages = &self.chunks[chunk].pages;
        self.normal(Place { chunk, at: pages.partition_point(|&first| first < page) })
    }

    /// The place in the next chunk, where it is past the end of its own.
    fn normal(&self, place: Place) -> Place {
        let is_past =
            self.chunks.get(place.chunk).is_some_and(|chunk| place.at >= chunk.areas.len());
        if is_past { Place { chunk: place.chunk + 1, at: 0 } } else { place }
    }

    /// The place before; none before the first.
    pub(super) fn before(&self, place: Place) -> Option<Place> {
        if place.at > 0 {
            return Some(Place { at: place.at - 1, ..place });
        }
        let chunk = place.chunk.checked_sub(1)?;
        Some(Place { chunk, at: self.chunks[chunk].areas.len() - 1 })
    }

    /// The area there; none past the last.
    pub(super) fn get(&self, place: Place) -> Option<&Vma> {
        self.chunks.get(place.chunk)?.areas.get(place.at)
    }

    /// The area there, whose first page must stay what it is.
    pub(super) fn get_mut(&mut self, place: Place) -> Option<&mut Vma> {
        self.chunks.get_mut(place.chunk)?.areas.get_mut(place.at)
    }

    /// The areas from there on.
    pub(super) fn iter_from(&self, place: Place) -> impl Iterator<Item = &Vma> {
        let chunks = self.chunks.iter().skip(place.chunk);
        chunks.flat_map(|chunk| &chunk.areas).skip(place.at)
    }

    /// Puts an area in before the one at `place`, where it belongs.
    pub(super) fn insert(&mut self, place: Place, vma: Vma) {
        self.len += 1;
        // At the end of a chunk rather than before the first of the next, whose first page would
        // change.
        let Place { chunk, at } = match self.before(place).filter(|_| place.at == 0) {
            Some(before) => Place { at: before.at + 1, ..before },
            None => place,
        };
        if chunk == self.chunks.len() {
            self.firsts.push(vma.page);
            self.chunks.push(AreaChunk::default());
        }
        if at == 0 {
            self.firsts[chunk] = vma.page;
        }
        let into = &mut self.chunks[chunk];
        into.pages.insert(at, vma.page);
        into.areas.insert(at, vma);
        if into.areas.len() > CHUNK_AREAS {
            // What is mapped in rising order fills chunks.
            let is_rising = at + 1 == into.areas.len();
            let half = into.split_off(if is_rising { at } else { CHUNK_AREAS / 2 });
            self.firsts.insert(chunk + 1, half.pages[0]);
            self.chunks.insert(chunk + 1, half);
        }
    }

    /// Takes the area there out; returns the place of the one after it.
    pub(super) fn remove(&mut self, place: Place) -> Place {
        let Place { chunk, at } = place;
        let Some(from) = self.chunks.get_mut(chunk).filter(|chunk| at < chunk.areas.len()) else {
            return place;
        };
        from.pages.remove(at);
        from.areas.remove(at);
        self.len -= 1;
        match from.pages.first() {
            None => {
                self.firsts.remove(chunk);
                self.chunks.remove(chunk);
                return Place { chunk, at: 0 };
            }
            Some(&first) => self.firsts[chunk] = first,
        }
        let left = from.areas.len();
        if self.chunks.get(chunk + 1).is_some_and(|next| left + next.areas.len() < CHUNK_AREAS / 2)
        {
            self.firsts.remove(chunk + 1);
            let next = self.chunks.remove(chunk + 1);
            self.chunks[chunk].append(next);
        }
        self.normal(place)
    }
}
