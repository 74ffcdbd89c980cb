//! A catalog's bytes out of an input: two headers and a log, with the checksums that a fuzzer
//! cannot guess.
//!
//! The layout is written down once more here, because the reader's own is what is tried.

use std::fs;
use std::ops::Range;
use std::sync::OnceLock;

use crate::input::Input;

/// Bytes of a header's fields, before their checksum.
const FIELDS_BYTES: usize = 168;
const SLOT_STEP_BYTES: usize = 4096;
const LOG_START: usize = 2 * SLOT_STEP_BYTES;
const RECORD_HEAD_BYTES: usize = 8;

// Fields of a header, by number.
const ID: usize = 2;
pub(crate) const CAPACITY_BYTES: usize = 5;
const SEQUENCE: usize = 10;
const START: usize = 11;
const END: usize = 12;
const AREA_BYTES: usize = 13;
const BOOT: usize = 15;

// What is made right, whatever the input says. A bit that is 0 mends.
const IS_OTHER_BOOT: u8 = 1;
const KEEPS_SLOT_SUMS: u8 = 2;
const KEEPS_RECORD_SUMS: u8 = 4;
const HAS_OWN_SECOND: u8 = 8;
const KEEPS_AREA: u8 = 16;

/// Longest file that is made as long as its header says.
const MOST_BYTES: u64 = 1 << 20;

/// The two headers, each with room for its checksum.
pub struct CatalogFile {
    flags: u8,
    slots: [[u8; FIELDS_BYTES]; 2],
    log: Vec<u8>,
}

impl CatalogFile {
    /// Takes flags and headers from `input`, and the log from what is left then.
    pub fn take_headers(input: &mut Input<'_>) -> Self {
        let flags = input.byte();
        let first: [u8; FIELDS_BYTES] = input.take();
        let second = if flags & HAS_OWN_SECOND == 0 { first } else { input.take() };
        let mut file = Self { flags, slots: [first, second], log: Vec::new() };
        if flags & HAS_OWN_SECOND == 0 {
            let sequence = file.field(0, SEQUENCE) & !1;
            file.set(0, SEQUENCE, sequence);
            file.set(1, SEQUENCE, sequence.wrapping_add(1));
        }
        if flags & IS_OTHER_BOOT == 0 {
            for slot in 0..2 {
                let boot = this_boot();
                file.set(slot, BOOT, boot as u64);
                file.set(slot, BOOT + 1, (boot >> 64) as u64);
            }
        }
        file
    }

    /// The input that gives the catalog `bytes`, with `between` before its log.
    pub fn input_of(bytes: &[u8], between: &[u8]) -> Vec<u8> {
        let slots = [0, SLOT_STEP_BYTES].map(|at| bytes[at..][..FIELDS_BYTES].try_into().unwrap());
        let file = Self { flags: 0, slots, log: Vec::new() };
        let newest = usize::from(file.field(1, SEQUENCE) > file.field(0, SEQUENCE));
        let end = usize::try_from(file.newest(END)).unwrap();
        [&[file.flags], &file.slots[newest][..], between, &bytes[LOG_START..end]].concat()
    }

    /// The log.
    pub fn with_log(mut self, log: &[u8]) -> Self {
        self.log = log.to_vec();
        if self.flags & KEEPS_RECORD_SUMS == 0 {
            self.seal_records();
        }
        self
    }

    /// Whether the headers speak of this boot, so that nothing counts as lost.
    pub const fn is_of_this_boot(&self) -> bool {
        self.flags & IS_OTHER_BOOT == 0
    }

    /// A field of the newer header.
    pub fn newest(&self, field: usize) -> u64 {
        let slot = usize::from(self.field(1, SEQUENCE) > self.field(0, SEQUENCE));
        self.field(slot, field)
    }

    /// The pool's number, in two fields.
    pub fn id(&self) -> [u64; 2] {
        [self.newest(ID), self.newest(ID + 1)]
    }

    /// The file's bytes, and the length that it is to have.
    pub fn bytes(&self) -> (Vec<u8>, u64) {
        let mut bytes = vec![0; LOG_START];
        for (slot, fields) in self.slots.iter().enumerate() {
            let at = slot * SLOT_STEP_BYTES;
            let sum = match self.flags & KEEPS_SLOT_SUMS {
                0 => crc32fast::hash(fields),
                _ => 0,
            };
            bytes[at..][..FIELDS_BYTES].copy_from_slice(fields);
            bytes[at + FIELDS_BYTES..][..4].copy_from_slice(&sum.to_le_bytes());
        }
        bytes.extend(&self.log);
        let wanted = self.newest(AREA_BYTES).saturating_mul(2).saturating_add(LOG_START as u64);
        let is_long = self.flags & KEEPS_AREA == 0 && wanted <= MOST_BYTES;
        let len = (bytes.len() as u64).max(if is_long { wanted } else { 0 });
        (bytes, len)
    }

    fn place(field: usize) -> Range<usize> {
        field * 8..field * 8 + 8
    }

    fn field(&self, slot: usize, field: usize) -> u64 {
        Input::new(&self.slots[slot][Self::place(field)]).number64()
    }

    fn set(&mut self, slot: usize, field: usize, value: u64) {
        self.slots[slot][Self::place(field)].copy_from_slice(&value.to_le_bytes());
    }

    /// Gives each record of the log that the newer header speaks of its checksum.
    fn seal_records(&mut self) {
        let (start, end) = (self.newest(START), self.newest(END));
        let id = self.id();
        let in_log = |at: u64| usize::try_from(at).ok()?.checked_sub(LOG_START);
        let (Some(mut at), Some(end)) = (in_log(start), in_log(end)) else { return };
        let end = end.min(self.log.len());
        while at + RECORD_HEAD_BYTES <= end {
            let len = Input::new(&self.log[at..]).number32() as usize;
            // A record that would reach too far ends where the log does.
            let len = len.min(end - at - RECORD_HEAD_BYTES);
            let mut sum = crc32fast::Hasher::new();
            id.iter().for_each(|half| sum.update(&half.to_le_bytes()));
            sum.update(&((at + LOG_START) as u64).to_le_bytes());
            sum.update(&(len as u64).to_le_bytes());
            sum.update(&self.log[at + RECORD_HEAD_BYTES..][..len]);
            self.log[at..at + 4].copy_from_slice(&(len as u32).to_le_bytes());
            self.log[at + 4..at + 8].copy_from_slice(&sum.finalize().to_le_bytes());
            at += RECORD_HEAD_BYTES + len;
        }
    }
}

fn this_boot() -> u128 {
    static BOOT: OnceLock<u128> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        u128::from_str_radix(&text.trim().replace('-', ""), 16).unwrap()
    })
}
