//! The life of frames: folios, pins of two clients, and drains, against a word for each frame and a
//! list of what is held.

use std::collections::BTreeMap;
use std::sync::Arc;

use pgmap_mm::barrier::PortableBarrier;
use pgmap_mm::descriptor::{Descriptor, FolioFlags, FolioState};
use pgmap_mm::drain::{ClientId, Drain};
use pgmap_mm::error::PinError;
use pgmap_mm::extent::Extent;
use pgmap_mm::folio::{Folios, Sizing};
use pgmap_mm::ledger::{Agent, HoldPlace};
use pgmap_mm::level::Level;
use pgmap_mm::longterm::LongtermPin;
use pgmap_mm::pfn::{Pfn, PfnRange};
use pgmap_mm::pin::{Lane, Pin};
use pgmap_mm::runs::SortedRuns;
use pgmap_mm::words::HeapWords;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::config;
use crate::heap_world::{Client, Side, World, run, stamp};

/// Frames of the pool: eight folios of 2 MiB, and a piece.
const NR_PAGES: u64 = 8 * 512 + 100;
/// Slots of the one lane that each client has.
const NR_SLOTS: usize = 4;

/// One step. Numbers that name a file, a pin or a told extent are taken modulo how many there are.
#[derive(Clone, Debug)]
enum Step {
    Reserve {
        nr_pages: u64,
        sizing: Sizing,
    },
    Publish {
        file: usize,
        is_longterm_ok: bool,
    },
    /// Pins part of an extent as some client was once told it, perhaps long ago.
    Pin {
        client: usize,
        told: usize,
        part: (u64, u64),
        agent: Agent,
    },
    PinLongterm {
        client: usize,
        told: usize,
        part: (u64, u64),
        agent: Agent,
    },
    Drop {
        pin: usize,
    },
    DropLongterm {
        pin: usize,
    },
    ChangeAndRestoreLife {
        file: usize,
    },
    /// Takes the second half of a file's folios out of use under a changed life word.
    TakeTail {
        file: usize,
    },
    Kill {
        file: usize,
    },
    LookAgain {
        file: usize,
    },
    Trim,
}

fn step() -> impl Strategy<Value = Step> {
    let agent = || prop_oneof![Just(Agent::Cpu), Just(Agent::Device)];
    let sizing = prop_oneof![
        Just(Sizing::BestFit),
        Just(Sizing::Fixed(Level::Pte)),
        Just(Sizing::Fixed(Level::Pmd)),
    ];
    let part = || prop_oneof![1 => Just((0, u64::MAX)), 2 => (0u64..1600, 1u64..1100)];
    let any_file = || 0usize..8;
    prop_oneof![
        4 => (1u64..1500, sizing).prop_map(|(nr_pages, sizing)| Step::Reserve { nr_pages, sizing }),
        4 => (any_file(), any::<bool>())
            .prop_map(|(file, is_longterm_ok)| Step::Publish { file, is_longterm_ok }),
        6 => (0usize..2, 0usize..30, part(), agent())
            .prop_map(|(client, told, part, agent)| Step::Pin { client, told, part, agent }),
        6 => (0usize..2, 0usize..30, part(), agent())
            .prop_map(|(client, told, part, agent)| {
                Step::PinLongterm { client, told, part, agent }
            }),
        4 => (0usize..20).prop_map(|pin| Step::Drop { pin }),
        4 => (0usize..20).prop_map(|pin| Step::DropLongterm { pin }),
        1 => any_file().prop_map(|file| Step::ChangeAndRestoreLife { file }),
        2 => any_file().prop_map(|file| Step::TakeTail { file }),
        3 => any_file().prop_map(|file| Step::Kill { file }),
        4 => any_file().prop_map(|file| Step::LookAgain { file }),
        1 => Just(Step::Trim),
    ]
}

/// Frames handed out together, and where they stand.
struct File {
    extents: Vec<Extent>,
    drain: Option<Drain>,
}

/// A short-term pin and what the model knows of it.
struct Held<'p> {
    pin: Pin<'p, Side>,
    client: usize,
    told: Extent,
    agent: Agent,
}

struct HeldLongterm<'p> {
    pin: LongtermPin<'p, Side>,
    client: usize,
    told: Extent,
    agent: Agent,
}

struct History<'p> {
    clients: &'p [Client; 2],
    lanes: [Lane<'p, Side>; 2],
    folios: Folios<Arc<HeapWords>>,
    /// What the descriptor of each frame's folio must be.
    words: Vec<Descriptor>,
    files: Vec<File>,
    /// Every extent that anybody was ever told of.
    told: Vec<Extent>,
    pins: Vec<Held<'p>>,
    longterm: Vec<HeldLongterm<'p>>,
    nr_bells: [u64; 2],
    next_stamp: u64,
}

type Checked = Result<(), TestCaseError>;

impl<'p> History<'p> {
    fn new(world: &World, clients: &'p [Client; 2]) -> Self {
        let mut folios = Folios::new(world.vmemmap());
        folios.bring_online(Pfn::new(0).unwrap(), NR_PAGES);
        Self {
            clients,
            lanes: [0, 1].map(|client| clients[client].pinner.lane().unwrap()),
            folios,
            words: vec![Descriptor::FREE; NR_PAGES as usize],
            files: vec![],
            told: vec![],
            pins: vec![],
            longterm: vec![],
            nr_bells: [0; 2],
            next_stamp: 1,
        }
    }

    fn apply(&mut self, step: &Step) -> Checked {
        match *step {
            Step::Reserve { nr_pages, sizing } => self.reserve(nr_pages, sizing),
            Step::Publish { file, is_longterm_ok } => self.publish(file, is_longterm_ok),
            Step::Pin { client, told, part, agent } => self.pin(client, told, part, agent),
            Step::PinLongterm { client, told, part, agent } => {
                self.pin_longterm(client, told, part, agent)
            }
            Step::Drop { pin } => self.drop_pin(pin),
            Step::DropLongterm { pin } => self.drop_longterm(pin),
            Step::ChangeAndRestoreLife { file } => self.change_and_restore_life(file),
            Step::TakeTail { file } => self.take_tail(file),
            Step::Kill { file } => self.kill(file),
            Step::LookAgain { file } => self.look_again(file),
            Step::Trim => {
                self.folios.trim();
                Ok(())
            }
        }
    }

    // The model.

    fn word(&self, extent: &Extent) -> Descriptor {
        self.words[extent.first().number() as usize]
    }

    fn set_words(&mut self, run: PfnRange, change: impl Fn(Descriptor) -> Descriptor) {
        for word in &mut self.words[run.start() as usize..run.end() as usize] {
            *word = change(*word);
        }
    }

    fn is_held(&self, frames: PfnRange) -> bool {
        self.pins.iter().any(|held| held.pin.run().overlaps(frames))
            || self.longterm.iter().any(|held| held.pin.run().overlaps(frames))
    }

    /// What a drain of `runs` must name: short-term pins one by one, long-term pins by folio.
    fn expected_holds(&self, runs: &SortedRuns) -> Vec<String> {
        let mut holds = Vec::new();
        for held in &self.pins {
            if runs.overlaps(held.pin.run()) {
                holds.push(format!("{} {:?} {:?}", held.client, held.pin.run(), held.agent));
            }
        }
        let mut counts: BTreeMap<_, u32> = BTreeMap::new();
        for held in &self.longterm {
            let run = held.pin.run();
            let unit = held.told.head_level.nr_pages();
            let is_whole = run.start() % unit == 0 && run.nr_pages() % unit == 0;
            let unit = if is_whole { unit } else { 1 };
            for first in (run.start()..run.end()).step_by(unit as usize) {
                let folio = PfnRange::new(first, unit).unwrap();
                if runs.overlaps(folio) {
                    let what = format!("{} {folio:?} {:?}", held.client, held.agent);
                    *counts.entry(what).or_default() += 1;
                }
            }
        }
        holds.extend(counts.into_iter().map(|(what, nr)| format!("{what} x{nr}")));
        holds.sort();
        holds
    }

    fn pick(&self, file: usize) -> Option<usize> {
        (!self.files.is_empty()).then(|| file % self.files.len())
    }

    // Steps of the owner.

    fn reserve(&mut self, nr_pages: u64, sizing: Sizing) -> Checked {
        let nr_pages = self.folios.pages_for(nr_pages * 4096, sizing).unwrap();
        let stamp = stamp(self.next_stamp);
        self.next_stamp += 1;
        let Ok(extents) = self.folios.reserve(nr_pages, sizing, stamp) else {
            let nr_free = self.words.iter().filter(|&&word| word == Descriptor::FREE).count();
            let is_small = sizing != Sizing::Fixed(Level::Pmd);
            prop_assert!(!is_small || (nr_free as u64) < nr_pages, "{nr_free} frames are free");
            return Ok(());
        };
        let word = Descriptor::new(FolioState::Reserved, FolioFlags::NONE, stamp);
        prop_assert_eq!(extents.iter().map(|extent| extent.run.nr_pages()).sum::<u64>(), nr_pages);
        for extent in &extents {
            prop_assert!(!self.is_held(extent.run), "{:?} handed out while held", extent.run);
            prop_assert_eq!(extent.life, word);
            for pfn in extent.run.start()..extent.run.end() {
                prop_assert_eq!(self.words[pfn as usize], Descriptor::FREE, "frame {} twice", pfn);
            }
            self.set_words(extent.run, |_| word);
        }
        self.told.extend(&extents);
        self.files.push(File { extents, drain: None });
        Ok(())
    }

    fn publish(&mut self, file: usize, is_longterm_ok: bool) -> Checked {
        let Some(file) = self.pick(file) else { return Ok(()) };
        let extents = &self.files[file].extents;
        if extents.iter().any(|extent| self.word(extent).state() != FolioState::Reserved) {
            return Ok(());
        }
        let longterm = if is_longterm_ok { FolioFlags::LONGTERM_OK } else { FolioFlags::NONE };
        let flags = FolioFlags::WRITABLE.with(longterm);
        let live = self.folios.publish(extents, flags);
        for extent in &live {
            let publish = |word: Descriptor| word.in_state(FolioState::Live).with_flags(flags);
            self.set_words(extent.run, publish);
            prop_assert_eq!(extent.life, self.word(extent));
        }
        self.told.extend(&live);
        self.files[file].extents = live;
        Ok(())
    }

    fn change_and_restore_life(&mut self, file: usize) -> Checked {
        let Some(file) = self.pick(file) else { return Ok(()) };
        let extent = self.files[file].extents[0];
        if self.word(&extent) != extent.life || self.files[file].drain.is_some() {
            return Ok(());
        }
        let fresh = stamp(self.next_stamp);
        self.next_stamp += 1;
        let changed = self.folios.change_life(&extent, fresh);
        prop_assert_ne!(changed.life, extent.life);
        let refused = self.lanes[0].pin(&extent, run(extent.run.start(), 1), Agent::Cpu).map(drop);
        prop_assert!(refused.is_err(), "pinned under a life word that changed");
        let is_rung = matches!(refused, Err(PinError::Changed { .. }));
        self.nr_bells[0] += u64::from(is_rung);
        self.folios.restore_life(&extent);
        Ok(())
    }

    fn take_tail(&mut self, file: usize) -> Checked {
        let Some(file) = self.pick(file) else { return Ok(()) };
        let extent = self.files[file].extents[0];
        let head = PfnRange::folio(extent.first(), extent.head_level);
        let half = extent.run.nr_pages() / 2;
        let at = extent.run.start() + half.next_multiple_of(512);
        if self.files[file].drain.is_some()
            || self.files[file].extents.len() > 1
            || at < head.end()
            || at >= extent.run.end()
        {
            return Ok(());
        }
        // A multiple of 2 MiB from the start need not be one from frame 0: cut where a folio
        // starts.
        let (first, ..) = self.folios.vmemmap().folios(run(at, 1)).next().unwrap();
        let at = first.number().max(head.end());
        let tail = run(at, extent.run.end() - at);
        let kept = run(extent.run.start(), at - extent.run.start());

        let fresh = stamp(self.next_stamp);
        self.next_stamp += 1;
        let changed = self.folios.change_life(&extent, fresh);
        self.set_words(head, |_| changed.life);
        let dying = |word: Descriptor| word.in_state(FolioState::Dying);
        self.folios.change(tail, dying);
        self.set_words(tail, dying);
        let drain = self.start_drain(vec![tail])?;
        let kept = Extent { run: kept, ..changed };
        self.told.push(kept);
        self.files[file].extents = vec![kept];
        let tail = self.folios.piece(tail);
        prop_assert!(tail.is_some(), "a folio starts where the tail does");
        self.files.push(File { extents: tail.into_iter().collect(), drain: Some(drain) });
        Ok(())
    }

    fn kill(&mut self, file: usize) -> Checked {
        let Some(file) = self.pick(file) else { return Ok(()) };
        if self.files[file].drain.is_some() {
            return Ok(());
        }
        let runs: Vec<PfnRange> = self.files[file].extents.iter().map(|e| e.run).collect();
        let dying = |word: Descriptor| word.in_state(FolioState::Dying);
        for &run in &runs {
            self.folios.change(run, dying);
            self.set_words(run, dying);
        }
        self.files[file].drain = Some(self.start_drain(runs)?);
        Ok(())
    }

    fn start_drain(&self, runs: Vec<PfnRange>) -> Result<Drain, TestCaseError> {
        let ledgers = || (0..2).map(|i| (ClientId(i as u64), &self.clients[i].reader));
        let drain = Drain::start(SortedRuns::new(runs), &PortableBarrier, ledgers());
        self.check_drain(&drain)?;
        Ok(drain)
    }

    fn check_drain(&self, drain: &Drain) -> Checked {
        let name = |held: &pgmap_mm::drain::Held| {
            let what = format!("{} {:?} {:?}", held.client.0, held.hold.run, held.hold.agent);
            match held.hold.place {
                HoldPlace::Slot(_)
                | HoldPlace::LongSlot(_)
                | HoldPlace::Unseen
                | HoldPlace::Lost => what,
                HoldPlace::Count(_) => format!("{what} x{}", held.hold.nr_pins),
            }
        };
        // A drain keeps the number of pins that it found first; who is named is what must be right.
        let without_number = |name: String| name.split(" x").next().unwrap_or_default().to_owned();
        let mut found: Vec<String> = drain.held().iter().map(name).map(without_number).collect();
        found.sort();
        let mut expected: Vec<String> =
            self.expected_holds(drain.runs()).into_iter().map(without_number).collect();
        expected.sort();
        prop_assert_eq!(found, expected);
        let is_held = drain.runs().iter().any(|frames| self.is_held(frames));
        prop_assert_eq!(drain.is_idle(), !is_held);
        Ok(())
    }

    fn look_again(&mut self, file: usize) -> Checked {
        let Some(file) = self.pick(file) else { return Ok(()) };
        let Some(mut drain) = self.files[file].drain.take() else { return Ok(()) };
        drain.look_again(|id| self.clients.get(id.0 as usize).map(|client| &client.reader));
        self.check_drain(&drain)?;
        if drain.is_idle() {
            for extent in self.files.swap_remove(file).extents {
                prop_assert!(!self.is_held(extent.run), "{:?} freed while held", extent.run);
                self.folios.free(extent.run);
                self.set_words(extent.run, |_| Descriptor::FREE);
            }
        } else {
            self.files[file].drain = Some(drain);
        }
        Ok(())
    }

    // Steps of the clients.

    /// The extent that was given out, and the part of it to pin.
    fn wanted(&self, told: usize, part: (u64, u64)) -> Option<(Extent, PfnRange)> {
        // The last ones told are wanted most; now and then an old one is.
        let told = *self.told.iter().rev().nth(told % self.told.len().max(1))?;
        let skip = part.0 % told.run.nr_pages();
        let run = told.run.sub_run(skip, part.1.min(told.run.nr_pages() - skip))?;
        Some((told, run))
    }

    fn expected(&self, told: &Extent, run: PfnRange) -> Result<(), PinError> {
        let now = self.word(told);
        if !told.life.is_pinnable() {
            Err(PinError::NotPinnable { word: told.life })
        } else if now != told.life {
            Err(PinError::Changed { run, now })
        } else {
            Ok(())
        }
    }

    /// Compares how a pin ended with how it had to; returns the pin.
    fn compare<P>(
        &mut self,
        client: usize,
        got: Result<P, PinError>,
        expected: Result<(), PinError>,
    ) -> Result<Option<P>, TestCaseError> {
        if let Err(PinError::Changed { .. }) = expected {
            self.nr_bells[client] += 1;
        }
        match (got, expected) {
            (Ok(pin), Ok(())) => Ok(Some(pin)),
            // What the word says now depends on the level it is read at; only old is old.
            (Err(PinError::Changed { .. }), Err(PinError::Changed { .. })) => Ok(None),
            (Err(got), Err(expected)) if got == expected => Ok(None),
            (got, expected) => Err(TestCaseError::fail(format!(
                "pin: got {:?}, expected {expected:?}",
                got.map(drop)
            ))),
        }
    }

    fn pin(&mut self, client: usize, told: usize, part: (u64, u64), agent: Agent) -> Checked {
        let Some((told, run)) = self.wanted(told, part) else { return Ok(()) };
        let mut expected = self.expected(&told, run);
        let nr_held = self.pins.iter().filter(|held| held.client == client).count();
        if nr_held == NR_SLOTS && !matches!(expected, Err(PinError::NotPinnable { .. })) {
            expected = Err(PinError::LaneFull { nr_slots: NR_SLOTS });
        }
        let got = self.lanes[client].pin(&told, run, agent);
        if let Some(pin) = self.compare(client, got, expected)? {
            self.pins.push(Held { pin, client, told, agent });
        }
        Ok(())
    }

    fn pin_longterm(
        &mut self,
        client: usize,
        told: usize,
        part: (u64, u64),
        agent: Agent,
    ) -> Checked {
        let Some((told, run)) = self.wanted(told, part) else { return Ok(()) };
        let mut expected = self.expected(&told, run);
        if !told.life.flags().contains(FolioFlags::LONGTERM_OK) && told.life.is_pinnable() {
            expected = Err(PinError::NeedsConsent { run });
        }
        let got = self.clients[client].pinner.pin_longterm(&told, run, agent);
        if let Some(pin) = self.compare(client, got, expected)? {
            self.longterm.push(HeldLongterm { pin, client, told, agent });
        }
        Ok(())
    }

    fn drop_pin(&mut self, pin: usize) -> Checked {
        if self.pins.is_empty() {
            return Ok(());
        }
        let held = self.pins.swap_remove(pin % self.pins.len());
        let is_wanted = self.word(&held.told) != held.told.life;
        prop_assert_eq!(held.pin.is_reclaim_requested(), is_wanted);
        self.nr_bells[held.client] += u64::from(is_wanted);
        drop(held.pin);
        Ok(())
    }

    fn drop_longterm(&mut self, pin: usize) -> Checked {
        if self.longterm.is_empty() {
            return Ok(());
        }
        let held = self.longterm.swap_remove(pin % self.longterm.len());
        let is_wanted = self.word(&held.told) != held.told.life;
        prop_assert_eq!(held.pin.is_reclaim_requested(), is_wanted);
        self.nr_bells[held.client] += u64::from(is_wanted);
        drop(held.pin);
        Ok(())
    }

    // What must hold after each step.

    fn check(&self) -> Checked {
        for (pfn, &word) in self.words.iter().enumerate() {
            let at = Pfn::new(pfn as u64).unwrap();
            let (level, found) = self.folios.vmemmap().folio_of(at).unwrap();
            prop_assert_eq!(found, word, "frame {} at level {}", pfn, level);
        }
        let nr_free = self.words.iter().filter(|&&word| word == Descriptor::FREE).count();
        prop_assert_eq!(self.folios.frames().free_pages(), nr_free as u64);
        for (client, &nr_bells) in self.clients.iter().zip(&self.nr_bells) {
            prop_assert_eq!(client.nr_bells(), nr_bells, "a bell too many or too few");
        }
        Ok(())
    }

    /// Everybody lets go and everything is freed: the pool is as it was at first.
    fn end(&mut self) -> Checked {
        while !self.pins.is_empty() {
            self.drop_pin(0)?;
        }
        while !self.longterm.is_empty() {
            self.drop_longterm(0)?;
        }
        for file in 0..self.files.len() {
            self.kill(file)?;
        }
        while !self.files.is_empty() {
            let nr_files = self.files.len();
            self.look_again(0)?;
            prop_assert!(self.files.len() < nr_files, "nobody holds it, and it is not freed");
        }
        self.folios.trim();
        self.check()?;
        prop_assert_eq!(self.folios.frames().free_pages(), NR_PAGES);
        for folio in 0..NR_PAGES / 512 {
            let level = self.folios.vmemmap().folio_of(Pfn::new(folio * 512).unwrap()).unwrap().0;
            prop_assert_eq!(level, Level::Pmd, "a table of free frames was kept");
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(config(1500))]

    #[test]
    fn a_pool_lives_as_its_naive_model(steps in prop::collection::vec(step(), 1..80)) {
        let world = World::new();
        let clients = [1, 2].map(|identity| world.client(identity, 1, NR_SLOTS));
        let mut history = History::new(&world, &clients);
        for step in &steps {
            history.apply(step)?;
            history.check()?;
        }
        history.end()?;
    }
}
