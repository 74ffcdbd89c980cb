//! 16 GiB pinned long-term: as 8192 folios of 2 MiB by count, as one short slot, and as one lease.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use pgmap::mm::extent::Extent;
use pgmap::mm::folio::Sizing;
use pgmap::mm::ledger::Agent;
use pgmap::mm::level::Level;
use pgmap::mm::pfn::PfnRange;
use pgmap::mm::pin::ClientSide;
use pgmap::{Access, Client, FolioSize, Owner, Pool, PoolOptions};

use crate::failure::Failure;
use crate::harness::{Done, Path, Row, Scale, Scenario, Worker};
use crate::space::{Member, Space};

const COUNTS: &str = "floor: 8192 counts up and down again";
const NR_FOLIOS: u64 = 8192;

/// One extent of all the folios, and a client.
struct PinnedFolios {
    member: Member,
    extent: Extent,
    _space: Space,
}

impl PinnedFolios {
    fn new() -> Result<Self, Failure> {
        let nr_pages = NR_FOLIOS * Level::Pmd.nr_pages();
        let mut space = Space::new(nr_pages * pgmap::mm::level::PAGE_BYTES)?;
        let extents = space.publish(nr_pages, Sizing::Fixed(Level::Pmd))?;
        let [extent] = extents[..] else { return Err(Failure::new("several extents")) };
        Ok(Self { member: space.member()?, extent, _space: space })
    }

    /// Pins `run` by count: one call, one count a folio.
    fn by_count(&self, run: PfnRange) -> Result<u64, Failure> {
        let pinner = &self.member.pinner;
        let life = pinner.side().vmemmap().life_of(&self.extent);
        let life = life.ok_or_else(|| Failure::new("no life word"))?;
        let pin = pinner.pin_longterm_under(life, run, Level::Pmd, Agent::Device)?;
        Ok(black_box(&pin).run().nr_pages())
    }

    fn at_once(&self, nr_ops: u64) -> Result<Done, Failure> {
        self.prove_that_every_folio_is_counted()?;
        let mut nr_pages = 0;
        for _ in 0..nr_ops {
            nr_pages += self.by_count(self.extent.run)?;
        }
        Ok(Done::ops(nr_pages / self.extent.run.nr_pages()))
    }

    fn one_by_one(&self, nr_ops: u64) -> Result<Done, Failure> {
        let mut nr_pages = 0;
        for _ in 0..nr_ops {
            for folio in 0..NR_FOLIOS {
                let unit = Level::Pmd.nr_pages();
                let run = self.extent.run.sub_run(folio * unit, unit);
                nr_pages += self.by_count(run.ok_or_else(|| Failure::new("no folio"))?)?;
            }
        }
        Ok(Done::ops(nr_pages / self.extent.run.nr_pages()))
    }

    fn one_slot(&self, nr_ops: u64) -> Result<Done, Failure> {
        let lane = self.member.pinner.lane()?;
        let mut nr_pages = 0;
        for _ in 0..nr_ops {
            let pin = lane.pin(&self.extent, self.extent.run, Agent::Device)?;
            nr_pages += black_box(&pin).run().nr_pages();
        }
        Ok(Done::ops(nr_pages / self.extent.run.nr_pages()))
    }

    fn prove_that_every_folio_is_counted(&self) -> Result<(), Failure> {
        let pinner = &self.member.pinner;
        let life = pinner.side().vmemmap().life_of(&self.extent);
        let life = life.ok_or_else(|| Failure::new("no life word"))?;
        let pin = pinner.pin_longterm_under(life, self.extent.run, Level::Pmd, Agent::Device)?;
        let nr_holds = self.member.reader.all_holds().len() as u64;
        drop(pin);
        match (nr_holds, self.member.reader.all_holds().len()) {
            (NR_FOLIOS, 0) => Ok(()),
            (held, after) => Err(Failure::new(format!("{held} holds, and {after} after"))),
        }
    }
}

/// A file, in an owner in this process.
struct Leased {
    client: Client,
    len_bytes: u64,
    _owner: Owner,
}

impl Leased {
    fn new(len_bytes: u64) -> Result<Self, Failure> {
        let owner = Owner::start(Pool::create(&PoolOptions::anonymous(len_bytes))?)?;
        let client = owner.client()?;
        client.create("all", len_bytes, FolioSize::Pages2M)?.commit()?;
        Ok(Self { client, len_bytes, _owner: owner })
    }

    fn leases(&self, nr_ops: u64) -> Result<Done, Failure> {
        let file = self.client.open("all")?;
        let mut nr_bytes = 0;
        for _ in 0..nr_ops {
            let pin = file.lease(0..self.len_bytes, Agent::Device, Access::Write)?;
            nr_bytes += black_box(&pin).len_bytes();
        }
        Ok(Done::ops(nr_bytes / self.len_bytes))
    }
}

fn counts() -> Path {
    let counts: Vec<AtomicU32> = (0..NR_FOLIOS).map(|_| AtomicU32::new(0)).collect();
    Arc::new(move |worker: Worker| {
        for _ in 0..worker.nr_ops {
            // Relaxed: a floor orders nothing.
            for count in &counts {
                count.fetch_add(1, Ordering::Relaxed);
            }
            for count in &counts {
                count.fetch_sub(1, Ordering::Relaxed);
            }
        }
        Ok(Done::ops(worker.nr_ops))
    })
}

/// The scenario.
pub fn scenario(scale: Scale) -> Result<Scenario, Failure> {
    let held = Arc::new(PinnedFolios::new()?);
    // A lease costs the same for any length; the memory of the file is real.
    let len_bytes = scale.pick(1 << 30, 4 << 20);
    let leased = Arc::new(Leased::new(len_bytes)?);
    let (single, slot) = (Arc::clone(&held), Arc::clone(&held));
    let counts = counts();
    let rows = vec![
        Row::new(COUNTS, move |worker| counts(worker)),
        Row::new("pgmap: 16 GiB by count, 8192 folios in one call", move |worker| {
            held.at_once(worker.nr_ops)
        })
        .against(COUNTS),
        Row::new("pgmap: 16 GiB by count, one call per folio", move |worker| {
            single.one_by_one(worker.nr_ops)
        })
        .against(COUNTS),
        Row::new("pgmap: 16 GiB in one short slot", move |worker| slot.one_slot(worker.nr_ops))
            .against(COUNTS),
        Row::new(format!("pgmap: one lease of {} MiB, asked and ended", len_bytes >> 20), {
            move |worker| leased.leases(worker.nr_ops)
        })
        .against(COUNTS),
    ];
    let notes = vec![
        "one operation is pin and unpin of everything; the kernel's 16 GiB of 2 MiB pages: \
         87 ms before and 6.2 ms after compound pages (J8), 494 and 10 ms with an altmap (J10)"
            .into(),
        "a lease is one call of the owner and one slot per extent, whatever its length".into(),
    ];
    Ok(Scenario { title: "16 GiB long-term".into(), notes, rows })
}
