//! What a block of the demo holds, and how a reader finds out whether it got what it asked for.
//!
//! A block is sixteen pages. Each page starts with a stamp that says which block this is, of which
//! generation, and what the rest of the page sums up to; the rest comes from the scratch file by
//! DMA. A read is right when every page carries the stamp that was asked for and adds up.

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Pages of a block.
pub const PAGES: usize = 16;
/// Bytes of a block.
pub const BLOCK_BYTES: usize = PAGES * PAGE_BYTES;
/// Bytes of a stamp.
pub const STAMP_BYTES: usize = 32;
/// Different contents that the scratch file has.
pub const NR_IMAGES: u64 = 64;

/// Which contents a reader asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The block.
    pub block: u64,
    /// Its generation: 1 for its first contents, one more for each that follow.
    pub generation: u64,
}

impl Identity {
    /// Which image of the scratch file makes these contents.
    pub const fn image(self) -> u64 {
        self.block.wrapping_mul(7).wrapping_add(self.generation) % NR_IMAGES
    }
}

/// What a reader got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// What it asked for.
    Right,
    /// Pages of another block or generation.
    Other,
    /// Pages that do not add up: overwritten while they were read.
    Torn,
}

/// An image of the scratch file.
pub fn image_bytes(image: u64) -> Vec<u8> {
    let mut state = image.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(BLOCK_BYTES);
    while bytes.len() < BLOCK_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// The sums of an image's pages, without the place of the stamps.
pub fn page_sums(image: &[u8]) -> Vec<u64> {
    image.chunks_exact(PAGE_BYTES).map(|page| sum(&page[STAMP_BYTES..])).collect()
}

/// The stamp of a page that sums up to `page_sum`.
pub fn stamp(identity: Identity, page_sum: u64) -> [u8; STAMP_BYTES] {
    let words = [identity.block, identity.generation, page_sum, 0];
    let mut stamp = [0; STAMP_BYTES];
    for (place, word) in stamp.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    let own_sum = sum(&stamp[..24]);
    stamp[24..].copy_from_slice(&own_sum.to_le_bytes());
    stamp
}

/// Whether the bytes of a block are what was asked for.
pub fn judge(bytes: &[u8], asked: Identity) -> Verdict {
    let mut verdict = Verdict::Right;
    for page in bytes.chunks_exact(PAGE_BYTES) {
        let (head, payload) = page.split_at(STAMP_BYTES);
        let is_stamp = word(head, 3) == sum(&head[..24]);
        let found = Identity { block: word(head, 0), generation: word(head, 1) };
        if is_stamp && found != asked {
            return Verdict::Other;
        }
        if !is_stamp || word(head, 2) != sum(payload) {
            verdict = Verdict::Torn;
        }
    }
    verdict
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at * 8..at * 8 + 8]);
    u64::from_le_bytes(word)
}

/// A sum in which every byte and its place count.
fn sum(bytes: &[u8]) -> u64 {
    const PRIME: u64 = 0x9e37_79b1_85eb_ca87;
    let mut lanes = [1u64, 2, 3, 4];
    for (at, chunk) in bytes.chunks_exact(8).enumerate() {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        let lane = &mut lanes[at % 4];
        *lane = (*lane ^ u64::from_le_bytes(word)).wrapping_mul(PRIME).rotate_left(29);
    }
    lanes.iter().fold(0, |sum, lane| (sum ^ lane).wrapping_mul(PRIME).rotate_left(31))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(identity: Identity) -> Vec<u8> {
        let mut bytes = image_bytes(identity.image());
        let sums = page_sums(&bytes);
        for (page, sum) in bytes.chunks_exact_mut(PAGE_BYTES).zip(sums) {
            page[..STAMP_BYTES].copy_from_slice(&stamp(identity, sum));
        }
        bytes
    }

    #[test]
    fn a_block_is_what_its_stamps_say_and_nothing_else() {
        let asked = Identity { block: 3, generation: 9 };
        let bytes = block(asked);
        assert_eq!(judge(&bytes, asked), Verdict::Right);
        assert_eq!(judge(&bytes, Identity { generation: 10, ..asked }), Verdict::Other);
        assert_eq!(judge(&bytes, Identity { block: 4, ..asked }), Verdict::Other);
    }

    #[test]
    fn one_page_or_byte_of_another_generation_is_seen() {
        let asked = Identity { block: 3, generation: 9 };
        let next = block(Identity { generation: 10, ..asked });
        for page in 0..PAGES {
            let (from, to) = (page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
            let mut mixed = block(asked);
            mixed[from..to].copy_from_slice(&next[from..to]);
            assert_eq!(judge(&mixed, asked), Verdict::Other);
            let mut torn = block(asked);
            torn[from + STAMP_BYTES..to].copy_from_slice(&next[from + STAMP_BYTES..to]);
            assert_eq!(judge(&torn, asked), Verdict::Torn);
            let mut flipped = block(asked);
            flipped[to - 1] ^= 1;
            assert_eq!(judge(&flipped, asked), Verdict::Torn);
        }
        assert_eq!(judge(&vec![0; BLOCK_BYTES], asked), Verdict::Torn);
    }
}
