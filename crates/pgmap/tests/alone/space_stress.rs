//! Threads of two processes pin, map, unmap, move, truncate, punch and unlink at random, and check
//! every byte they pinned.
//!
//! A file's number in its name, its page and its generation are in each word of each page, and an
//! address tells which file and page must lie there, whoever mapped it. Pins for writing write what
//! is there once more, so that one of frames that were given away spoils another file.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{self, Random, Second};
use pgmap::mm::gup::GupFlags;
use pgmap::mm::level::Level;
use pgmap::mm::mm::Placed;
use pgmap::mm::prot::Prot;
use pgmap::space::{AddressSpace, PinnedPages};
use pgmap::{Client, FolioSize};

const PAGE: u64 = 4096;
const BASE: u64 = 1 << 32;
const POOL_BYTES: u64 = 56 << 20;
/// Short files, and after them long ones of folios of 2 MiB.
const NR_SHORT_FILES: u64 = 12;
const NR_FILES: u64 = NR_SHORT_FILES + 2;
const HUGE: u64 = Level::Pmd.nr_pages();
const MIB2: u64 = Level::Pmd.size_bytes();
/// Windows of addresses into short files; after them those into long ones, in leaves of 2 MiB.
const NR_SHORT_WINDOWS: u64 = 48;
const NR_WINDOWS: u64 = NR_SHORT_WINDOWS + 4;
const SHORT_WINDOW_PAGES: u64 = 256;
const LONG_WINDOW_PAGES: u64 = 2 * HUGE;
const NR_THREADS: u64 = 3;
/// How long it goes on, unless the environment says otherwise.
const DEFAULT_SECONDS: u64 = 30;
const SECONDS: &str = "PGMAP_SPACE_STRESS_SECONDS";

/// What a random step may be refused with: gone, dead, busy, no room, taken, not mapped, try again.
const EXPECTED: [i32; 10] = [2, 6, 11, 12, 14, 16, 17, 22, 28, 116];

#[derive(Debug, Default)]
struct Tally {
    nr_pins: u64,
    nr_pages: u64,
    /// Pins with one hold over more than a leaf of 2 MiB.
    nr_across: u64,
    nr_steps: BTreeMap<&'static str, u64>,
    refused: BTreeMap<(&'static str, i32), u64>,
}

impl Tally {
    fn note(&mut self, step: &'static str, result: Result<(), i32>) {
        match result {
            Ok(()) => *self.nr_steps.entry(step).or_default() += 1,
            Err(errno) => {
                assert!(EXPECTED.contains(&errno), "{step}: errno {errno}");
                *self.refused.entry((step, errno)).or_default() += 1;
            }
        }
    }

    fn add(&mut self, other: &Self) {
        self.nr_pins += other.nr_pins;
        self.nr_pages += other.nr_pages;
        self.nr_across += other.nr_across;
        for (step, nr) in &other.nr_steps {
            *self.nr_steps.entry(step).or_default() += nr;
        }
        for (what, nr) in &other.refused {
            *self.refused.entry(*what).or_default() += nr;
        }
    }
}

fn word_of(generation: u64, file: u64, page: u64, at: u64) -> u64 {
    (generation << 32 | file << 24 | page << 10 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn page_of(generation: u64, file: u64, page: u64) -> Vec<u8> {
    (0..PAGE / 8).flat_map(|at| word_of(generation, file, page, at).to_le_bytes()).collect()
}

/// Checks a page all over; returns its generation.
fn check(bytes: &[u8], file: u64, page: u64) -> u64 {
    const INVERSE: u64 = 0xf1de_83e1_9937_733d;
    let word = |at: usize| u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().unwrap());
    let plain = word(0).wrapping_mul(INVERSE);
    let generation = plain >> 32;
    for at in 0..PAGE / 8 {
        let expected = word_of(generation, file, page, at);
        assert_eq!(word(at as usize), expected, "file {file} page {page} word {at}: {plain:#x}");
    }
    generation
}

/// Addresses at which a part of one file lies, if anything, and their mirror.
#[derive(Clone, Copy)]
struct Window(u64);

impl Window {
    fn is_long(self) -> bool {
        self.0 >= NR_SHORT_WINDOWS
    }

    fn nr_pages(self) -> u64 {
        if self.is_long() { LONG_WINDOW_PAGES } else { SHORT_WINDOW_PAGES }
    }

    fn file(self) -> u64 {
        if self.is_long() {
            NR_SHORT_FILES + self.0 % (NR_FILES - NR_SHORT_FILES)
        } else {
            self.0 % NR_SHORT_FILES
        }
    }

    /// The first of them starts where its file does, the next ones further on; those into long
    /// files at whole folios.
    fn first_page(self) -> u64 {
        if self.is_long() {
            return (self.0 - NR_SHORT_WINDOWS) / (NR_FILES - NR_SHORT_FILES) * HUGE;
        }
        let nr_of_file = NR_SHORT_WINDOWS / NR_SHORT_FILES;
        (self.0 / NR_SHORT_FILES) * (pages_of(self.file()) - SHORT_WINDOW_PAGES) / nr_of_file
    }

    fn address(self, half: u64) -> u64 {
        let nr_short_pages = 2 * NR_SHORT_WINDOWS * SHORT_WINDOW_PAGES;
        let page = if self.is_long() {
            let nr_long = NR_WINDOWS - NR_SHORT_WINDOWS;
            let at = half * nr_long + self.0 - NR_SHORT_WINDOWS;
            nr_short_pages + at * LONG_WINDOW_PAGES
        } else {
            (half * NR_SHORT_WINDOWS + self.0) * SHORT_WINDOW_PAGES
        };
        BASE + page * PAGE
    }
}

fn pages_of(file: u64) -> u64 {
    if file < NR_SHORT_FILES { 640 } else { 3 * HUGE }
}

/// Pages that are held, and what was in them at first.
struct Kept<'s> {
    pinned: PinnedPages<'s>,
    file: u64,
    page: u64,
    generations: Vec<u64>,
}

impl Kept<'_> {
    /// Nobody else may give the pages another generation while they are held.
    fn check(&self) {
        let now = generations(&self.pinned, self.file, self.page);
        assert_eq!(now, self.generations, "file {} from page {} on", self.file, self.page);
    }
}

/// Checks every page that is held; returns their generations.
fn generations(pinned: &PinnedPages<'_>, file: u64, page: u64) -> Vec<u64> {
    let mut bytes = [0; PAGE as usize];
    let generation = |at| {
        pinned.read_at(at * PAGE, &mut bytes).unwrap();
        let generation = check(&bytes, file, page + at);
        assert!(generation > 0, "a page of zeros");
        generation
    };
    (0..pinned.nr_pages()).map(generation).collect()
}

struct Player<'s> {
    space: &'s AddressSpace,
    random: Random,
    tally: Tally,
    held: Vec<Kept<'s>>,
}

impl<'s> Player<'s> {
    fn play(mut self, until: Instant) -> Tally {
        while Instant::now() < until {
            let step = self.random.below(100);
            let (name, result) = match step {
                0..60 => ("pin", self.pin()),
                60..74 => ("map", self.map()),
                74..82 => ("unmap", self.unmap()),
                82..86 => ("remap", self.remap()),
                86..92 => ("truncate", self.truncate()),
                92..95 => ("punch", self.punch()),
                95..97 => ("unlink", self.unlink()),
                _ => ("create", self.create()),
            };
            self.tally.note(name, result);
        }
        self.held.iter().for_each(Kept::check);
        self.tally
    }

    fn client(&self) -> &'s Client {
        self.space.client()
    }

    /// One in four is a window into a long file.
    fn window(&mut self) -> Window {
        if self.random.below(4) == 0 {
            Window(NR_SHORT_WINDOWS + self.random.below(NR_WINDOWS - NR_SHORT_WINDOWS))
        } else {
            Window(self.random.below(NR_SHORT_WINDOWS))
        }
    }

    fn pin(&mut self) -> Result<(), i32> {
        let window = self.window();
        let skip = self.random.below(window.nr_pages());
        let most = if window.is_long() { HUGE + 32 } else { 32 };
        let nr_pages = (1 + self.random.below(most)).min(window.nr_pages() - skip);
        let flags = [GupFlags::NONE, GupFlags::WRITE, GupFlags::LONGTERM, GupFlags::NOFAULT];
        let flags = flags[self.random.below(4) as usize];
        let address = window.address(self.random.below(2)) + skip * PAGE;
        let pinned = self.space.pin(address, nr_pages, flags).map_err(|error| error.errno())?;
        let (file, page) = (window.file(), window.first_page() + skip);
        let generations = generations(&pinned, file, page);
        self.tally.nr_pins += 1;
        self.tally.nr_pages += generations.len() as u64;
        if pinned.segments().any(|segment| segment.level == Level::Pmd && segment.len_bytes > MIB2)
        {
            self.tally.nr_across += 1;
        }
        if flags == GupFlags::WRITE {
            for (at, generation) in (0..).zip(&generations) {
                pinned.write_at(at * PAGE, &page_of(*generation, file, page + at)).unwrap();
            }
        }
        // Some are kept for a while, and checked again before they go.
        if self.random.below(4) == 0 {
            self.held.push(Kept { pinned, file, page, generations });
        }
        if self.held.len() > 8 {
            let at = self.random.below(8) as usize;
            self.held.swap_remove(at).check();
        }
        Ok(())
    }

    fn map(&mut self) -> Result<(), i32> {
        let window = self.window();
        let address = window.address(self.random.below(2));
        let file = self.client().open(name(window.file())).map_err(|error| error.errno())?;
        let over = self.random.below(2) == 0;
        let place = if over { Placed::Over(address) } else { Placed::At(address) };
        let (offset, len) = (window.first_page() * PAGE, window.nr_pages() * PAGE);
        let mapped = self.space.map(&file, offset, len, place, Prot::READ_WRITE);
        mapped.map(drop).map_err(|error| error.errno())
    }

    fn unmap(&mut self) -> Result<(), i32> {
        let window = self.window();
        // Whole leaves half of the time, where there are any.
        let unit = if window.is_long() && self.random.below(2) == 0 { HUGE } else { 1 };
        let skip = self.random.below(window.nr_pages() / unit) * unit;
        let nr_pages = (1 + self.random.below((window.nr_pages() - skip) / unit)) * unit;
        let address = window.address(self.random.below(2)) + skip * PAGE;
        let ended = self.space.unmap(address, nr_pages * PAGE);
        ended.map(drop).map_err(|error| error.errno())
    }

    fn remap(&mut self) -> Result<(), i32> {
        let window = self.window();
        let from = self.random.below(2);
        let len = window.nr_pages() * PAGE;
        let to = Placed::Over(window.address(1 - from));
        let moved = self.space.remap(window.address(from), len, len, to);
        moved.map(drop).map_err(|error| error.errno())
    }

    /// A file to be cut: seldom a long one, which few pins across its leaves would find whole.
    fn file_to_cut(&mut self) -> u64 {
        if self.random.below(32) == 0 {
            self.random.below(NR_FILES)
        } else {
            self.random.below(NR_SHORT_FILES)
        }
    }

    fn truncate(&mut self) -> Result<(), i32> {
        let file = self.file_to_cut();
        let nr_pages = 1 + self.random.below(pages_of(file));
        let cut = self.client().truncate(
            name(file),
            nr_pages * PAGE,
            Duration::from_millis(self.random.below(20)),
        );
        cut.map_err(|error| error.errno())
    }

    fn punch(&mut self) -> Result<(), i32> {
        let file = self.file_to_cut();
        let page = self.random.below(pages_of(file) - 8);
        let cut = self.client().punch(
            name(file),
            page * PAGE..page * PAGE + 8 * PAGE,
            Duration::from_millis(self.random.below(20)),
        );
        cut.map_err(|error| error.errno())
    }

    fn unlink(&mut self) -> Result<(), i32> {
        let file = self.file_to_cut();
        self.client().unlink(name(file)).map_err(|error| error.errno())
    }

    fn create(&mut self) -> Result<(), i32> {
        let file = self.window().file();
        let generation = 1 + self.random.below(u64::from(u32::MAX) - 1);
        create(self.client(), file, generation).map_err(|error| error.errno())
    }
}

fn name(file: u64) -> String {
    format!("file{file}")
}

fn create(client: &Client, file: u64, generation: u64) -> Result<(), pgmap::Error> {
    let size = match file {
        NR_SHORT_FILES.. => FolioSize::Pages2M,
        _ if file.is_multiple_of(3) => FolioSize::Pages4K,
        _ => FolioSize::BestFit,
    };
    let mut writer = client.create(name(file), pages_of(file) * PAGE, size)?;
    for page in 0..pages_of(file) {
        writer.write_all_at(page * PAGE, &page_of(generation, file, page))?;
    }
    writer.commit()
}

/// Plays in this process until the time is up.
fn play(client: &Client, seed: u64, seconds: u64) -> Tally {
    let space = AddressSpace::for_device(client, BASE, 1 << 32).unwrap();
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut sum = Tally::default();
    std::thread::scope(|scope| {
        let space = &space;
        let threads: Vec<_> = (0..NR_THREADS)
            .map(|thread| {
                let random = Random(seed ^ thread.rotate_left(40));
                let (tally, held) = (Tally::default(), Vec::new());
                scope.spawn(move || Player { space, random, tally, held }.play(until))
            })
            .collect();
        while Instant::now() < until {
            let _event = space.next_event(Duration::from_millis(20)).unwrap();
            let _ended = space.refresh();
        }
        threads.into_iter().for_each(|thread| sum.add(&thread.join().unwrap()));
    });
    let usage = space.mm().usage();
    println!("{usage:?} {sum:?}");
    for step in ["pin", "map", "unmap", "remap", "truncate", "punch", "unlink", "create"] {
        assert!(sum.nr_steps.get(step).is_some_and(|&nr| nr > 0), "no {step} ever succeeded");
    }
    assert!(sum.refused.contains_key(&("pin", 14)), "no pin ever met a file that was cut");
    assert!(sum.nr_across > 0, "no pin ever went across leaves of 2 MiB");
    sum
}

fn seconds() -> u64 {
    std::env::var(SECONDS).ok().and_then(|text| text.parse().ok()).unwrap_or(DEFAULT_SECONDS)
}

#[test]
fn child_entry() {
    let Some((_, place)) = support::role() else { return };
    play_as_child(&place);
}

fn play_as_child(place: &Path) -> ! {
    let client = Client::connect(place).unwrap();
    support::say("ok");
    let seed = support::commands().next().unwrap().parse().unwrap();
    let tally = play(&client, seed, seconds());
    support::say(tally.nr_pages);
    drop(client);
    std::process::exit(0);
}

#[test]
fn every_pinned_byte_is_the_files_while_two_processes_map_and_cut_at_random() {
    let _alone = crate::alone();
    let (owner, _directory, socket) = support::serving_owner(POOL_BYTES);
    let client = owner.client().unwrap();
    for file in (0..NR_SHORT_FILES / 2).chain(NR_SHORT_FILES..NR_FILES) {
        create(&client, file, 1).unwrap();
    }
    let seed = support::seed();
    let mut second = Second::start("player", &socket);
    assert_eq!(second.answer(), "ok");
    second.tell(&(seed ^ 0x5555).to_string());
    let tally = play(&client, seed, seconds());
    let theirs: u64 = second.answer().parse().unwrap();
    assert!(second.end().success());
    println!("{} pages checked here, {theirs} there", tally.nr_pages);
    assert!(tally.nr_pages > 0 && theirs > 0);
    for info in client.list().unwrap() {
        client.unlink(info.name.to_string()).unwrap();
    }
    support::wait_for_info(&owner, "all is free", |info| info.free_bytes == info.size_bytes);
}
