//! Short-term pins of one 2 MiB folio at random: the page model, the library, and rivals.

use std::cell::Cell;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use pgmap::memory::Readable;
use pgmap::mm::descriptor::Descriptor;
use pgmap::mm::error::PinError;
use pgmap::mm::extent::Extent;
use pgmap::mm::ledger::Agent;
use pgmap::mm::level::Level;
use pgmap::mm::pfn::{Pfn, PfnRange};
use pgmap::mm::pin::{Lane, LaneParts, Pin, Pinner};
use pgmap::mm::vmemmap::{LifeWord, Vmemmap};
use pgmap::{Client, FolioSize, Owner, Pool, PoolOptions, ProcessSide};

use crate::failure::Failure;
use crate::harness::{Done, Row, Scale, Scenario, Target, Worker};
use crate::random::Random;
use crate::rivals;
use crate::rows::floor::{self, F, Tree};
use crate::rows::{BLOCK_BYTES, SPACE_BYTES};
use crate::space::{Member, Space};

const NR_PAGES_MASK: u64 = SPACE_BYTES / 4096 - 1;
/// Peers.md, target B.
const TARGETS: [Target; 2] = [Target::Ratio(0.65), Target::Ratio(0.50)];

/// A client of 64 GiB of live 2 MiB folios.
pub struct Live {
    /// Keeps the owner's side, as an owner would.
    _space: Space,
    pub member: Member,
    pub extents: Vec<Extent>,
}

impl Live {
    /// Makes the space and proves that a pin in it is one: the owner's scan finds it while it lives
    /// and not afterwards.
    pub fn new() -> Result<Arc<Self>, Failure> {
        let mut space = Space::new(SPACE_BYTES)?;
        let extents = space.fill(Level::Pmd)?;
        let member = space.member()?;
        let live = Self { _space: space, member, extents };
        let lane = live.member.pinner.lane()?;
        let pfn = Pfn::new(77 * 512 + 5).ok_or_else(|| Failure::new("a frame number"))?;
        let pin = pin_at(&live.member.pinner, &lane, pfn)?;
        let holds = live.member.reader.all_holds();
        if holds.len() != 1 || holds.first().map(|hold| hold.run) != Some(pin.run()) {
            return Err(Failure::new(format!("a pin of {} shows as {holds:?}", pin.run())));
        }
        drop(pin);
        if !live.member.reader.all_holds().is_empty() {
            return Err(Failure::new("a dropped pin is still in the ledger"));
        }
        drop(lane);
        Ok(Arc::new(live))
    }
}

/// From a frame number to a pin: the descriptor is loaded, the folio pinned under it.
#[inline(always)]
pub fn pin_at<'p>(
    pinner: &Pinner<ProcessSide>,
    lane: &Lane<'p, ProcessSide>,
    pfn: Pfn,
) -> Result<Pin<'p, ProcessSide>, Failure> {
    use pgmap::mm::pin::ClientSide;
    let vmemmap = pinner.side().vmemmap();
    let Some(life) = life_of_folio(vmemmap, pfn) else { return Err(no_frame()) };
    lane.pin_under(life, PfnRange::folio(pfn, Level::Pmd), Agent::Cpu).map_err(refused)
}

/// Out of line, so that the loop around a pin carries nothing for it.
#[cold]
#[inline(never)]
pub fn refused(error: PinError) -> Failure {
    error.into()
}

/// The life word of the folio of 2 MiB that contains `pfn`, taken for an extent of its own: nobody
/// drains while pins are measured.
#[inline(always)]
pub fn life_of_folio(vmemmap: &Vmemmap<Readable>, pfn: Pfn) -> Option<LifeWord> {
    // Found once, and what the extent's holder would have been given is looked up there. A folio's
    // range is an extent by nature, so nothing is checked.
    let run = PfnRange::folio(pfn, Level::Pmd);
    let life = vmemmap.life_of(&Extent { run, head_level: Level::Pmd, life: Descriptor::FREE })?;
    Some(life.with_expected(vmemmap.life_now(life)))
}

#[cold]
fn no_frame() -> Failure {
    Failure::new("a frame outside the space")
}

#[inline(always)]
fn random_pfn(random: &mut Random) -> Result<Pfn, Failure> {
    Pfn::new(random.next() & NR_PAGES_MASK).ok_or_else(no_frame)
}

/// Pins of `pfn` in one lane.
#[inline(always)]
pub fn in_lane(
    live: &Live,
    worker: Worker,
    pfn: impl Fn(&mut Random) -> Result<Pfn, Failure>,
) -> Result<Done, Failure> {
    let Worker { nr_ops, mut random, .. } = worker;
    let pinner = &live.member.pinner;
    let lane = pinner.lane()?;
    let mut held = 0;
    for _ in 0..nr_ops {
        let pin = pin_at(pinner, &lane, pfn(&mut random)?)?;
        held += u64::from(black_box(pin.run().start()) <= NR_PAGES_MASK);
    }
    Ok(Done::ops(held))
}

thread_local! {
    static LANE: Cell<Option<LaneParts>> = const { Cell::new(None) };
}

/// Pins of `pfn` in a lane that is taken from the thread and put back each time, as the library's
/// clients do.
#[inline(always)]
pub fn in_thread_lane(
    live: &Live,
    worker: Worker,
    pfn: impl Fn(&mut Random) -> Result<Pfn, Failure>,
) -> Result<Done, Failure> {
    let Worker { nr_ops, mut random, .. } = worker;
    let pinner = &live.member.pinner;
    LANE.set(Some(pinner.lane()?.into_parts()));
    let mut held = 0;
    for _ in 0..nr_ops {
        let pfn = pfn(&mut random)?;
        let parts = LANE.take().ok_or_else(no_frame)?;
        let lane = Lane::from_parts(pinner, parts).map_err(|_| no_frame())?;
        let pin = pin_at(pinner, &lane, pfn);
        LANE.set(Some(lane.into_parts()));
        held += u64::from(black_box(pin?.run().start()) <= NR_PAGES_MASK);
    }
    if let Some(parts) = LANE.take() {
        drop(Lane::from_parts(pinner, parts));
    }
    Ok(Done::ops(held))
}

fn own_rows(live: &Arc<Live>, nr_threads: usize) -> Vec<Row> {
    let (plain, threaded, by_extent) = (Arc::clone(live), Arc::clone(live), Arc::clone(live));
    let target = TARGETS[nr_threads - 1];
    let rows = [
        Row::new(format!("pgmap: Lane::pin_under at an address, {nr_threads}T"), move |w| {
            in_lane(&plain, w, random_pfn)
        })
        .target(target),
        Row::new(format!("pgmap: the same, lane from a thread-local, {nr_threads}T"), move |w| {
            in_thread_lane(&threaded, w, random_pfn)
        })
        .target(target),
        Row::new(format!("pgmap: Lane::pin of a known extent, {nr_threads}T"), move |w| {
            let Worker { nr_ops, mut random, .. } = w;
            let live = &by_extent;
            let lane = live.member.pinner.lane()?;
            let mut held = 0;
            for _ in 0..nr_ops {
                let pfn = random_pfn(&mut random)?;
                let extent = &live.extents[pfn.folio(Level::Pud) as usize];
                let pin = lane.pin(extent, PfnRange::folio(pfn, Level::Pmd), Agent::Cpu)?;
                held += u64::from(black_box(pin.run().start()) <= NR_PAGES_MASK);
            }
            Ok(Done::ops(held))
        })
        .target(target),
    ];
    rows.into_iter().map(|row| row.on_threads(nr_threads).against(F[nr_threads - 1])).collect()
}

/// The scenario at the page model.
pub fn scenario(scale: Scale) -> Result<Scenario, Failure> {
    let tree = Tree::new()?;
    let live = Live::new()?;
    let mut rows = Vec::new();
    for nr_threads in [1, 2] {
        rows.push(floor::floor(&tree, nr_threads));
        rows.extend(floor::lower_floors(&tree, nr_threads));
        rows.extend(own_rows(&live, nr_threads));
        let rivals = rivals::pin_rows(scale, nr_threads)?;
        rows.extend(rivals.into_iter().map(|row| row.against(F[nr_threads - 1])));
    }
    let notes = vec![
        "uniformly random 4 KiB addresses over 64 GiB of 2 MiB folios; data is never touched"
            .into(),
        "every row draws its address from the same generator, about 1 ns".into(),
    ];
    Ok(Scenario { title: "short pin".into(), notes, rows })
}

/// Files of a real pool and a client that pins them.
struct Library {
    client: Client,
    names: Vec<String>,
    _owner: Owner,
}

impl Library {
    fn new(nr_files: u64) -> Result<Arc<Self>, Failure> {
        let owner = Owner::start(Pool::create(&PoolOptions::anonymous(nr_files * BLOCK_BYTES))?)?;
        let client = owner.client()?;
        let mut names = Vec::new();
        for number in 0..nr_files {
            let name = format!("block-{number}");
            let mut writer = client.create(&name, BLOCK_BYTES, FolioSize::Pages2M)?;
            // The frames are as the system gave them: zero.
            let _ = writer.segments();
            writer.commit()?;
            names.push(name);
        }
        Ok(Arc::new(Self { client, names, _owner: owner }))
    }

    fn pins(&self, mut worker: Worker) -> Result<Done, Failure> {
        let files: Vec<_> =
            self.names.iter().map(|name| self.client.open(name)).collect::<Result<_, _>>()?;
        let start = Instant::now();
        let mut held = 0;
        for _ in 0..worker.nr_ops {
            let pin = files[worker.random.below(files.len() as u64) as usize].pin_all()?;
            held += u64::from(black_box(pin.len_bytes()) == BLOCK_BYTES);
        }
        Ok(Done::timed(held, start.elapsed()))
    }
}

/// The scenario through the library.
pub fn library_scenario(scale: Scale) -> Result<Scenario, Failure> {
    let tree = Tree::new()?;
    let library = Library::new(scale.pick(512, 8))?;
    let mut rows = Vec::new();
    for nr_threads in [1, 2] {
        let library = Arc::clone(&library);
        rows.push(floor::floor(&tree, nr_threads));
        let name = format!("pgmap: File::pin_all + drop, {nr_threads}T");
        let row = Row::new(name, move |worker| library.pins(worker));
        rows.push(row.on_threads(nr_threads).against(F[nr_threads - 1]));
    }
    let notes = vec!["512 committed files of 2 MiB (1 GiB), opened before; random file".into()];
    Ok(Scenario { title: "library pin".into(), notes, rows })
}
