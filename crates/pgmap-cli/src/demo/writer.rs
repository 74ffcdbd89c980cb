//! Writers: recycle blocks by DMA as fast as they can, under leases and under pins.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use pgmap::{Agent, Client, CreateSpec, Error, FileName, FileWriter, FolioSize, Refusal};
use serde::{Deserialize, Serialize};

use super::NR_BLOCKS;
use super::block::{BLOCK_BYTES, Identity, NR_IMAGES, PAGE_BYTES, image_bytes, page_sums, stamp};
use super::child::{DemoChild, file_name, say_tally, wait_for_start};
use super::dma::{Dma, Kind, Memory, Transfer};
use super::lease::{Board, Phase};
use super::reader::open_plain;
use crate::failure::Failure;

/// Blocks whose new contents are under way at a time.
const DEPTH: usize = 4;
/// Pause when no block can be had.
const PAUSE: Duration = Duration::from_micros(200);

/// What a writer counted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WriterTally {
    /// Blocks that got new contents.
    pub recycled: u64,
    /// Times a block or frames had to be waited for.
    pub waits: u64,
    /// Bytes moved by DMA.
    pub dma_bytes: u64,
    /// How.
    pub dma: Kind,
}

/// Sums of the pages of all images.
struct Sums(Vec<Vec<u64>>);

impl Sums {
    fn new() -> Self {
        Self((0..NR_IMAGES).map(|image| page_sums(&image_bytes(image))).collect())
    }

    /// The stamps of a block's pages and where they go.
    fn stamps(&self, identity: Identity) -> impl Iterator<Item = (u64, [u8; 32])> {
        let sums = &self.0[identity.image() as usize];
        sums.iter()
            .enumerate()
            .map(move |(page, &sum)| ((page * PAGE_BYTES) as u64, stamp(identity, sum)))
    }
}

fn dma_failure(error: &io::Error) -> Failure {
    Failure::io("move bytes to", "the pool", error)
}

/// Refills blocks whose leases are out until told to stop.
///
/// # Errors
/// When the demo's files cannot be used.
pub fn under_leases(child: &DemoChild) -> Result<(), Failure> {
    let board = child.board()?;
    let memory = open_plain(child)?;
    let dma = Dma::open(Memory::Plain(memory.clone()), &child.scratch, child.dma);
    let mut dma = dma.map_err(|error| dma_failure(&error))?;
    let sums = Sums::new();
    let mut tally = WriterTally::default();
    let mut generations: HashMap<u64, u64> = HashMap::new();
    let mut turn = 0;
    let mut is_filled = false;
    loop {
        let mut nr_refused = 0;
        while dma.nr_in_flight() < DEPTH && nr_refused < NR_BLOCKS && board.phase() != Phase::Stop {
            let block = turn % NR_BLOCKS;
            if turn == NR_BLOCKS && !is_filled {
                break;
            }
            turn += 1;
            let Some(old) = board.begin_refill(block) else {
                nr_refused += 1;
                continue;
            };
            let identity = Identity { block, generation: old + 1 };
            generations.insert(block, identity.generation);
            dma.start(transfer(block * BLOCK_BYTES as u64, BLOCK_BYTES as u64, identity, 0, block))
                .map_err(|error| dma_failure(&error))?;
        }
        if dma.nr_in_flight() == 0 {
            match board.phase() {
                Phase::Stop => break,
                Phase::Wait => {
                    wait_for_start(&board)?;
                    is_filled = true;
                }
                Phase::Go => {
                    tally.waits += 1;
                    std::thread::sleep(PAUSE);
                }
            }
            continue;
        }
        let block = dma.wait().map_err(|error| dma_failure(&error))?;
        let identity = Identity { block, generation: generations.remove(&block).unwrap_or(0) };
        for (offset, stamp) in sums.stamps(identity) {
            let at = block * BLOCK_BYTES as u64 + offset;
            memory.copy_in(at, &stamp).map_err(Error::from)?;
        }
        board.publish(block, identity.generation);
        tally.recycled += 1;
    }
    tally.dma_bytes = dma.nr_bytes();
    tally.dma = dma.kind().clone();
    say_tally(&tally)
}

fn transfer(target: u64, len_bytes: u64, identity: Identity, skip: u64, tag: u64) -> Transfer {
    Transfer {
        target,
        len_bytes: len_bytes as u32,
        source: identity.image() * BLOCK_BYTES as u64 + skip,
        tag,
    }
}

/// Replaces files until told to stop.
///
/// # Errors
/// When the pool cannot be used.
pub fn under_pins(child: &DemoChild) -> Result<(), Failure> {
    let board = child.board()?;
    let client = child.client()?;
    let dma = Dma::open(Memory::Pool(client.clone()), &child.scratch, child.dma);
    let dma = dma.map_err(|error| dma_failure(&error))?;
    let mut recycler =
        Recycler { client: &client, board, dma, sums: Sums::new(), tally: WriterTally::default() };
    for first in (0..NR_BLOCKS).step_by(DEPTH) {
        recycler.recycle(first)?;
    }
    wait_for_start(&recycler.board)?;
    let mut first = 0;
    while recycler.board.phase() != Phase::Stop {
        recycler.recycle(first)?;
        first = (first + DEPTH as u64) % NR_BLOCKS;
    }
    recycler.tally.dma_bytes = recycler.dma.nr_bytes();
    recycler.tally.dma = recycler.dma.kind().clone();
    say_tally(&recycler.tally)
}

struct Recycler<'c> {
    client: &'c Client,
    board: Board,
    dma: Dma,
    sums: Sums,
    tally: WriterTally,
}

impl<'c> Recycler<'c> {
    /// Replaces the contents of the next few blocks from `first` on.
    fn recycle(&mut self, first: u64) -> Result<(), Failure> {
        let identities: Vec<Identity> = (first..(first + DEPTH as u64).min(NR_BLOCKS))
            .map(|block| {
                let generation = self.board.generation(block).unwrap_or(0) + 1;
                Identity { block, generation }
            })
            .collect();
        let mut drafts = self.create(&identities)?;
        for (identity, draft) in &mut drafts {
            fill_by_dma(&mut self.dma, *identity, draft)?;
        }
        while self.dma.nr_in_flight() > 0 {
            self.dma.wait().map_err(|error| dma_failure(&error))?;
        }
        let mut identities = Vec::new();
        let mut writers = Vec::new();
        for (identity, mut draft) in drafts {
            draft.set_agent(Agent::Cpu);
            for (offset, stamp) in self.sums.stamps(identity) {
                draft.write_all_at(offset, &stamp)?;
            }
            identities.push(identity);
            writers.push(draft);
        }
        for result in self.client.commit_batch(writers)? {
            result?;
        }
        let mut old = Vec::new();
        for Identity { block, generation } in identities {
            self.board.publish(block, generation);
            self.tally.recycled += 1;
            if generation > 1 {
                old.push(FileName::new(file_name(block, generation - 1))?);
            }
        }
        for result in self.client.unlink_batch(&old)? {
            result?;
        }
        Ok(())
    }

    /// Frames for new contents; for fewer blocks than asked, or none, while readers hold the rest.
    fn create(
        &mut self,
        identities: &[Identity],
    ) -> Result<Vec<(Identity, FileWriter<'c>)>, Failure> {
        let specs = identities.iter().map(|identity| draft_spec(file_name_of(*identity)));
        let specs: Vec<CreateSpec> = specs.collect::<Result<_, _>>()?;
        let mut drafts = Vec::new();
        for (&identity, created) in identities.iter().zip(self.client.create_batch(specs)?) {
            match created {
                Ok(draft) => drafts.push((identity, draft)),
                Err(Error::Refused(Refusal::NoSpace { .. })) => self.tally.waits += 1,
                Err(error) => return Err(error.into()),
            }
        }
        if drafts.is_empty() {
            std::thread::sleep(PAUSE);
        }
        Ok(drafts)
    }
}

fn file_name_of(identity: Identity) -> String {
    file_name(identity.block, identity.generation)
}

/// A file of one block.
///
/// # Errors
/// For an invalid name.
pub fn draft_spec(name: impl AsRef<[u8]>) -> Result<CreateSpec, Failure> {
    Ok(CreateSpec::new(FileName::new(name)?, BLOCK_BYTES as u64, FolioSize::BestFit))
}

/// Starts the transfers that fill a draft. From here on a device writes to it.
pub fn fill_by_dma(
    dma: &mut Dma,
    identity: Identity,
    draft: &mut FileWriter<'_>,
) -> Result<(), Failure> {
    draft.set_agent(Agent::Device);
    let mut skip = 0;
    for (_, len_bytes, target) in draft.segments() {
        dma.start(transfer(target, len_bytes, identity, skip, identity.block))
            .map_err(|error| dma_failure(&error))?;
        skip += len_bytes;
    }
    Ok(())
}
