//! memcpy into memory that is there and mapped: the least that putting bytes into a pool can cost.

use std::fs::File;

use pgmap::os::{MemoryFile, PageSize};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::failure::Failure;

/// A shared mapping of a memfd, every page of it touched.
pub struct Faulted {
    region: MmapRegion<()>,
    block_bytes: usize,
    nr_blocks: u64,
}

impl Faulted {
    /// `nr_blocks` of `block_bytes` each.
    pub fn new(nr_blocks: u64, block_bytes: u64) -> Result<Self, Failure> {
        let len = (nr_blocks * block_bytes).next_multiple_of(1 << 21);
        let file = MemoryFile::anonymous("bench-memcpy", len, PageSize::Base)?;
        Self::over((File::from(file.try_clone_fd()?), 0), nr_blocks, block_bytes)
    }

    /// The same of a file from an offset on, which is long enough.
    pub fn over(
        (file, offset): (File, u64),
        nr_blocks: u64,
        block_bytes: u64,
    ) -> Result<Self, Failure> {
        // A device is mapped by whole pages of its own.
        let len = (nr_blocks * block_bytes).next_multiple_of(1 << 21);
        let file = FileOffset::new(file, offset);
        let region = MmapRegion::from_file(file, len as usize)?;
        let faulted = Self { region, block_bytes: block_bytes as usize, nr_blocks };
        let page = vec![1; block_bytes as usize];
        for block in 0..nr_blocks {
            faulted.copy(block, &page)?;
        }
        Ok(faulted)
    }

    /// Copies `source` over one block, blocks in turn. vm-memory does this with
    /// `ptr::copy_nonoverlapping`, that is the C library's memcpy.
    pub fn copy(&self, turn: u64, source: &[u8]) -> Result<(), Failure> {
        let at = (turn % self.nr_blocks) as usize * self.block_bytes;
        self.region.get_slice(at, self.block_bytes)?.copy_from(source);
        Ok(())
    }

    /// Copies one block to `target`, blocks in turn.
    pub fn copy_out(&self, turn: u64, target: &mut [u8]) -> Result<(), Failure> {
        let at = (turn % self.nr_blocks) as usize * self.block_bytes;
        self.region.get_slice(at, self.block_bytes)?.copy_to(target);
        Ok(())
    }

    /// How many blocks a turn has.
    pub const fn nr_blocks(&self) -> u64 {
        self.nr_blocks
    }
}
