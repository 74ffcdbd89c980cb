//! One entry of the page table: absent, a leaf, or the table one level down, in one word.
//!
//! # Layout
//!
//! A leaf is `pfn:36 | span:24 | peer:1 | raw:1 | write:1 | 1`. The span number leads to what else
//! a reader must know: the extent, its life word, and how far the mapping goes on. Because frame
//! and span number lie in one word, no reader can see one without the other. A table is
//! `.. | chunk:20 | word:24 | .. | middle:1 | table:1 | 0`. All-zero is absent. The entry's level
//! is the level of the table that it lies in.

use crate::flags::flag_set;
use crate::pfn::{PFN_BITS, Pfn};

/// Bits of a span number.
pub(super) const SPAN_BITS: u32 = 24;

const LEAF: u64 = 1;
const WRITE: u64 = 1 << 1;
const RAW: u64 = 1 << 2;
const PEER: u64 = 1 << 3;
const SPAN_SHIFT: u32 = 4;
const PFN_SHIFT: u32 = SPAN_SHIFT + SPAN_BITS;
const SPAN_MASK: u64 = (1 << SPAN_BITS) - 1;
const _: () = assert!(PFN_SHIFT + PFN_BITS == u64::BITS);
/// In a word that is no leaf.
const TABLE: u64 = 1 << 1;
/// In a table's word: it is the one middle table of its GiB of addresses.
const MIDDLE: u64 = 1 << 2;
const WORD_SHIFT: u32 = 4;
const WORD_MASK: u64 = (1 << NodeId::WORD_BITS) - 1;
const CHUNK_SHIFT: u32 = WORD_SHIFT + NodeId::WORD_BITS;

/// What a leaf says besides frame and span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct LeafFlags(u64);

flag_set!(LeafFlags);

impl LeafFlags {
    /// Readable, pinnable, ordinary memory.
    pub const NONE: Self = Self(0);
    /// May be written.
    pub const WRITE: Self = Self(WRITE);
    /// Mapped, never pinnable (`VM_PFNMAP`).
    pub const RAW: Self = Self(RAW);
    /// Another device's memory: pinned only by who asks for `P2PDMA`.
    pub const PEER: Self = Self(PEER);
}

/// Number of a span in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct SpanId(pub(super) u32);

impl SpanId {
    /// The number.
    #[inline(always)]
    pub(crate) const fn number(self) -> u32 {
        self.0
    }
}

/// Where a table page lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NodeId {
    /// A table of 2 MiB entries: of this GiB of addresses, and never of another.
    Middle { gib: u32 },
    /// A table of 4 KiB entries: in which chunk of the arena, and its first word there.
    Last { chunk: u32, word: u32 },
}

impl NodeId {
    /// Bits of a word's number in its chunk.
    pub(super) const WORD_BITS: u32 = 24;
}

/// A leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leaf(u64);

impl Leaf {
    #[must_use]
    pub(super) const fn new(pfn: Pfn, span: SpanId, flags: LeafFlags) -> Self {
        Self(LEAF | flags.0 | ((span.0 as u64) << SPAN_SHIFT) | (pfn.number() << PFN_SHIFT))
    }

    /// The leaf in this word; `None` if it says anything else.
    #[inline(always)]
    pub(super) const fn read(bits: u64) -> Option<Self> {
        if bits & LEAF != 0 { Some(Self(bits)) } else { None }
    }

    /// The number of the first frame.
    #[inline]
    pub(crate) const fn pfn(self) -> u64 {
        self.0 >> PFN_SHIFT
    }

    /// The span that the leaf is part of.
    #[inline]
    pub(crate) const fn span(self) -> SpanId {
        SpanId(((self.0 >> SPAN_SHIFT) & SPAN_MASK) as u32)
    }

    #[inline]
    pub(crate) const fn flags(self) -> LeafFlags {
        LeafFlags(self.0 & (WRITE | RAW | PEER))
    }

    #[inline]
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    /// The same span and flags, `pages` frames further on.
    pub(super) const fn advanced(self, pages: u64) -> Self {
        Self(self.0 + (pages << PFN_SHIFT))
    }

    /// The same frame and flags in another span.
    pub(super) const fn in_span(self, span: SpanId) -> Self {
        Self((self.0 & !(SPAN_MASK << SPAN_SHIFT)) | ((span.0 as u64) << SPAN_SHIFT))
    }

    /// The same frame and span under other flags.
    pub(super) const fn with_flags(self, flags: LeafFlags) -> Self {
        Self((self.0 & !(WRITE | RAW | PEER)) | flags.0)
    }
}

/// What an entry's word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Absent,
    Leaf(Leaf),
    Table(NodeId),
}

impl Entry {
    #[inline]
    pub(super) const fn read(bits: u64) -> Self {
        if bits & LEAF != 0 {
            Self::Leaf(Leaf(bits))
        } else if bits & TABLE != 0 {
            Self::Table(if bits & MIDDLE != 0 {
                NodeId::Middle { gib: (bits >> WORD_SHIFT) as u32 }
            } else {
                let word = ((bits >> WORD_SHIFT) & WORD_MASK) as u32;
                NodeId::Last { chunk: (bits >> CHUNK_SHIFT) as u32, word }
            })
        } else {
            Self::Absent
        }
    }

    pub(super) const fn bits(self) -> u64 {
        match self {
            Self::Absent => 0,
            Self::Leaf(leaf) => leaf.0,
            Self::Table(NodeId::Middle { gib }) => TABLE | MIDDLE | ((gib as u64) << WORD_SHIFT),
            Self::Table(NodeId::Last { chunk, word }) => {
                TABLE | ((chunk as u64) << CHUNK_SHIFT) | ((word as u64) << WORD_SHIFT)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_leaf_do_not_run_into_each_other() {
        let pfn = Pfn::new((1 << PFN_BITS) - 1).unwrap();
        let span = SpanId((1 << SPAN_BITS) - 1);
        let all = LeafFlags::WRITE.with(LeafFlags::RAW).with(LeafFlags::PEER);
        let leaf = Leaf::new(pfn, span, all);
        assert_eq!((leaf.pfn(), leaf.span(), leaf.flags()), (pfn.number(), span, all));
        let other = leaf.in_span(SpanId(0)).with_flags(LeafFlags::NONE);
        assert_eq!(
            (other.pfn(), other.span(), other.flags()),
            (pfn.number(), SpanId(0), LeafFlags::NONE)
        );
        assert_eq!(Entry::read(leaf.bits()), Entry::Leaf(leaf));
    }

    #[test]
    fn a_table_is_no_leaf_and_zero_is_absent() {
        let last = NodeId::Last { chunk: (1 << 20) - 1, word: (1 << 24) - 512 };
        let first = NodeId::Last { chunk: 0, word: 0 };
        let middles = [NodeId::Middle { gib: 0 }, NodeId::Middle { gib: (1 << 18) - 1 }];
        for node in [last, first].into_iter().chain(middles) {
            assert_eq!(Entry::read(Entry::Table(node).bits()), Entry::Table(node));
        }
        assert_eq!(Entry::read(0), Entry::Absent);
    }
}
