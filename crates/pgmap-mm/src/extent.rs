//! Extents: frames handed out together under one stamp.

use crate::descriptor::Descriptor;
use crate::level::Level;
use crate::pfn::{Pfn, PfnRange};

/// A run of frames with one life word: the descriptor of its first folio.
///
/// An extent may mix folio sizes; `head_level` is the size of the first, which is where the life
/// word lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// The frames.
    pub run: PfnRange,
    /// Level of the first folio.
    pub head_level: Level,
    /// What the life word must be for this extent to be in use as it was handed out.
    pub life: Descriptor,
}

const LEVEL_SHIFT: u32 = 40;

impl Extent {
    /// An extent as its owner gave it out: `life` is what the owner published for the first folio.
    /// What a descriptor says at any other folio is no life word, though it looks like one.
    ///
    /// `None` when no folio of `head_level` can start at the run's first frame or the run
    /// is shorter than that folio.
    #[must_use]
    pub const fn new(run: PfnRange, head_level: Level, life: Descriptor) -> Option<Self> {
        if run.first().is_aligned(head_level) && run.nr_pages() >= head_level.nr_pages() {
            Some(Self { run, head_level, life })
        } else {
            None
        }
    }

    /// A hole of `nr_pages` in a file: frames that were punched out. Its life word is Free, under
    /// which nothing can be pinned.
    #[must_use]
    pub const fn hole(nr_pages: u64) -> Option<Self> {
        match PfnRange::new(0, nr_pages) {
            Some(run) => Some(Self { run, head_level: Level::Pte, life: Descriptor::FREE }),
            None => None,
        }
    }

    /// Whether this is a hole: it has a length and no frames.
    #[inline]
    #[must_use]
    pub const fn is_hole(&self) -> bool {
        self.life.bits() == Descriptor::FREE.bits()
    }

    /// First frame.
    #[must_use]
    pub const fn first(&self) -> Pfn {
        self.run.first()
    }

    /// As three words: `level | first frame`, frames, life word.
    #[must_use]
    pub const fn to_words(self) -> [u64; 3] {
        [
            ((self.head_level.number() as u64) << LEVEL_SHIFT) | self.run.start(),
            self.run.nr_pages(),
            self.life.bits(),
        ]
    }

    /// From three words that somebody else wrote; `None` if they are not a valid extent.
    #[must_use]
    pub fn from_words(words: [u64; 3]) -> Option<Self> {
        let level = Level::from_number(u8::try_from(words[0] >> LEVEL_SHIFT).ok()?)?;
        let run = PfnRange::new(words[0] & ((1 << LEVEL_SHIFT) - 1), words[1])?;
        Self::new(run, level, Descriptor::from_bits(words[2]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_are_no_extent_are_refused() {
        let run = PfnRange::new(512, 1024).unwrap();
        let extent = Extent::new(run, Level::Pmd, Descriptor::FREE).unwrap();
        assert_eq!(Extent::from_words(extent.to_words()), Some(extent));
        assert_eq!(
            Extent::new(PfnRange::new(513, 1024).unwrap(), Level::Pmd, Descriptor::FREE),
            None
        );
        assert_eq!(Extent::from_words([u64::MAX, 1, 0]), None);
        assert_eq!(Extent::from_words([0, 0, 0]), None);
        assert_eq!(Extent::from_words([3 << LEVEL_SHIFT, 512, 0]), None);
    }
}
