//! Bytes that prove what they are: each 4 KiB page carries its generation, its place and a
//! checksum, so that a page of another file, or of an earlier one, or half of a page, is found out.

use super::Random;

const PAGE_BYTES: usize = 4096;
const HEADER_BYTES: usize = 24;

/// The bytes of generation `generation`: any beginning of them is valid, too.
pub fn make(generation: u64, len_bytes: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len_bytes.next_multiple_of(PAGE_BYTES));
    for page in 0..len_bytes.div_ceil(PAGE_BYTES) as u64 {
        let mut random = Random(generation ^ page.rotate_left(32));
        let body: Vec<u64> = (0..(PAGE_BYTES - HEADER_BYTES) / 8).map(|_| random.next()).collect();
        for word in [generation, page, checksum(generation, page, &body)] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(body.iter().flat_map(|word| word.to_le_bytes()));
    }
    bytes.truncate(len_bytes);
    bytes
}

/// Which generation the bytes are, all of them.
///
/// # Errors
/// A sentence on the first byte that does not belong.
pub fn check(bytes: &[u8]) -> Result<u64, String> {
    let word = |page: &[u8], at: usize| {
        page.get(at * 8..at * 8 + 8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
    };
    let Some(generation) = word(bytes, 0) else { return Ok(0) };
    for (number, page) in bytes.chunks(PAGE_BYTES).enumerate() {
        let number = number as u64;
        for (at, expected) in [(0, generation), (1, number)] {
            if let Some(found) = word(page, at)
                && found != expected
            {
                return Err(format!(
                    "page {number} of generation {generation}: word {at} is {found:#x}"
                ));
            }
        }
        if page.len() == PAGE_BYTES {
            let body: Vec<u64> = (3..PAGE_BYTES / 8).filter_map(|at| word(page, at)).collect();
            if word(page, 2) != Some(checksum(generation, number, &body)) {
                return Err(format!("page {number} of generation {generation}: wrong checksum"));
            }
        }
    }
    Ok(generation)
}

fn checksum(generation: u64, page: u64, body: &[u64]) -> u64 {
    body.iter().fold(generation ^ page.rotate_left(17) ^ 0x5851_f42d_4c95_7f2d, |sum, word| {
        (sum ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(5)
    })
}
