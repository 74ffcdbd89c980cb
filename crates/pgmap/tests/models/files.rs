//! A naive model of files, pins and frames against the library with an embedded owner: thousands of
//! random histories, the same after every step.
//!
//! The model knows nothing of ledgers or descriptors: a file is its bytes and its pages, a page is
//! a number that nobody else has, a pin is the bytes it must go on showing and the pages it keeps.

use crate::support;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pgmap::{
    Client, CreateSpec, Error, File, FileName, FilePin, FileWriter, FolioSize, Owner, Pool,
    PoolOptions, Refusal, Replace,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

/// Less than one 2 MiB folio, so that every folio is a page and frames can be counted exactly.
const POOL_PAGES: u64 = 500;
const PAGE_BYTES: u64 = 4096;
const NR_NAMES: u8 = 6;
const NR_HISTORIES: u32 = 6000;
/// The same histories each time; change it to see others.
const SEED: [u8; 32] = *b"pgmap: files and pins, a model..";

#[derive(Clone, Debug)]
enum Step {
    /// Create with so many bytes, write from there on so many, and keep the writer.
    Create {
        name: u8,
        len: u64,
        written: (u64, u64),
        replace: bool,
    },
    Commit(u8),
    Abort(u8),
    Get(u8),
    Open(u8),
    /// Pin a part through an open handle; how: short, long-term, device.
    Pin {
        file: u8,
        from: u64,
        len: u64,
        how: u8,
    },
    Drop(u8),
    Unlink(u8),
    UnlinkBatch(u8, u8),
    Rename {
        from: u8,
        to: u8,
        replace: bool,
    },
    Truncate {
        name: u8,
        len: u64,
    },
    Punch {
        name: u8,
        from_page: u64,
        nr_pages: u64,
    },
    Stat(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0..NR_NAMES;
    let len = prop_oneof![
        1..20_000u64,
        1..400_000u64,
        Just(0),
        Just(1),
        Just(PAGE_BYTES),
        Just(3_000_000)
    ];
    prop_oneof![
        4 => (name.clone(), len.clone(), (0..400_000u64, 0..400_000u64), any::<bool>())
            .prop_map(|(name, len, written, replace)| Step::Create { name, len, written, replace }),
        4 => any::<u8>().prop_map(Step::Commit),
        1 => any::<u8>().prop_map(Step::Abort),
        2 => name.clone().prop_map(Step::Get),
        1 => name.clone().prop_map(Step::Open),
        2 => (any::<u8>(), 0..400_000u64, 1..100_000u64, 0..3u8)
            .prop_map(|(file, from, len, how)| Step::Pin { file, from, len, how }),
        3 => any::<u8>().prop_map(Step::Drop),
        2 => name.clone().prop_map(Step::Unlink),
        1 => (name.clone(), name.clone()).prop_map(|(a, b)| Step::UnlinkBatch(a, b)),
        2 => (name.clone(), name.clone(), any::<bool>())
            .prop_map(|(from, to, replace)| Step::Rename { from, to, replace }),
        2 => (name.clone(), len).prop_map(|(name, len)| Step::Truncate { name, len }),
        1 => (name.clone(), 0..20u64, 0..10u64)
            .prop_map(|(name, from_page, nr_pages)| Step::Punch { name, from_page, nr_pages }),
        1 => name.prop_map(Step::Stat),
    ]
}

/// A file as the model sees it. A page that was punched out is none.
#[derive(Clone, Debug)]
struct Model {
    id: u64,
    bytes: Vec<u8>,
    pages: Vec<Option<u64>>,
}

impl Model {
    fn held(&self, from: u64, len: u64) -> BTreeSet<u64> {
        let pages = from / PAGE_BYTES..(from + len).div_ceil(PAGE_BYTES);
        self.pages[pages.start as usize..pages.end as usize].iter().flatten().copied().collect()
    }

    fn frames(&self) -> BTreeSet<u64> {
        self.pages.iter().flatten().copied().collect()
    }
}

struct Pinned<'c> {
    pin: FilePin<'c>,
    bytes: Vec<u8>,
    pages: BTreeSet<u64>,
}

struct Draft<'c> {
    writer: FileWriter<'c>,
    name: String,
    replace: bool,
    model: Model,
}

struct World<'c> {
    owner: &'c Owner,
    client: &'c Client,
    files: BTreeMap<String, Model>,
    drafts: Vec<Draft<'c>>,
    handles: Vec<(File<'c>, u64)>,
    pins: Vec<Pinned<'c>>,
    next_page: u64,
    fill: u8,
}

type Checked = Result<(), TestCaseError>;

fn name_of(number: u8) -> String {
    format!("file {number}")
}

fn refusal<T>(result: Result<T, Error>) -> Result<Refusal, TestCaseError> {
    match result {
        Err(Error::Refused(refusal)) => Ok(refusal),
        Err(other) => Err(TestCaseError::fail(format!("an error of another kind: {other}"))),
        Ok(_) => Err(TestCaseError::fail("done, and should have been refused")),
    }
}

macro_rules! prop_refused {
    ($result:expr, $refusal:pat) => {
        let refused = refusal($result)?;
        let is_right = matches!(refused, $refusal);
        prop_assert!(is_right, "{}", refused);
    };
}

fn done<T>(result: Result<T, Error>) -> Result<T, TestCaseError> {
    result.map_err(|error| TestCaseError::fail(format!("should have been done: {error}")))
}

impl<'c> World<'c> {
    fn take(&mut self, step: &Step) -> Checked {
        match *step {
            Step::Create { name, len, written, replace } => {
                self.create(name_of(name), len, written, replace)
            }
            Step::Commit(draft) => self.commit(draft),
            Step::Abort(draft) => {
                if !self.drafts.is_empty() {
                    drop(self.drafts.swap_remove(draft as usize % self.drafts.len()));
                }
                Ok(())
            }
            Step::Get(name) => self.get(&name_of(name)),
            Step::Open(name) => self.open(&name_of(name)),
            Step::Pin { file, from, len, how } => self.pin(file, from, len, how),
            Step::Drop(pin) => {
                if !self.pins.is_empty() {
                    drop(self.pins.swap_remove(pin as usize % self.pins.len()));
                }
                Ok(())
            }
            Step::Unlink(name) => self.unlink(&name_of(name)),
            Step::UnlinkBatch(a, b) => self.unlink_batch(name_of(a), name_of(b)),
            Step::Rename { from, to, replace } => self.rename(name_of(from), name_of(to), replace),
            Step::Truncate { name, len } => self.truncate(&name_of(name), len),
            Step::Punch { name, from_page, nr_pages } => {
                self.punch(&name_of(name), from_page, nr_pages)
            }
            Step::Stat(name) => self.stat(&name_of(name)),
        }
    }

    fn create(&mut self, name: String, len: u64, written: (u64, u64), replace: bool) -> Checked {
        let spec = CreateSpec {
            replace,
            ..CreateSpec::new(FileName::new(&name).unwrap(), len, FolioSize::BestFit)
        };
        let created = done(self.client.create_batch(vec![spec]))?.pop().unwrap();
        if self.files.contains_key(&name) && !replace {
            prop_refused!(created, Refusal::Exists { .. });
            return Ok(());
        }
        let nr_pages = len.div_ceil(PAGE_BYTES);
        if nr_pages > POOL_PAGES {
            prop_refused!(created, Refusal::BadLength { .. });
            return Ok(());
        }
        if nr_pages > self.free_pages() {
            prop_refused!(created, Refusal::NoSpace { .. });
            return Ok(());
        }
        let mut writer = done(created)?;
        let pages = (self.next_page..self.next_page + nr_pages).map(Some).collect();
        self.next_page += nr_pages;
        let mut bytes = vec![0; len as usize];
        let (from, nr) = written;
        self.fill = self.fill.wrapping_add(1);
        let part = vec![self.fill; nr as usize];
        let result = writer.write_all_at(from, &part);
        if from + nr <= len {
            done(result)?;
            bytes[from as usize..(from + nr) as usize].copy_from_slice(&part);
        } else {
            let is_refused = matches!(result, Err(Error::OutOfRange { .. }));
            prop_assert!(is_refused, "{result:?}");
        }
        let model = Model { id: writer.id(), bytes, pages };
        self.drafts.push(Draft { writer, name, replace, model });
        Ok(())
    }

    fn commit(&mut self, draft: u8) -> Checked {
        if self.drafts.is_empty() {
            return Ok(());
        }
        let Draft { writer, name, replace, model } =
            self.drafts.swap_remove(draft as usize % self.drafts.len());
        let committed = writer.commit();
        if self.files.contains_key(&name) && !replace {
            prop_refused!(committed, Refusal::Exists { .. });
            return Ok(());
        }
        done(committed)?;
        self.files.insert(name, model);
        Ok(())
    }

    fn get(&mut self, name: &str) -> Checked {
        let got = self.client.get(name);
        let Some(model) = self.files.get(name) else {
            prop_refused!(got, Refusal::NotFound { .. });
            return Ok(());
        };
        let pages = model.frames();
        self.pins.push(Pinned { pin: done(got)?, bytes: model.bytes.clone(), pages });
        Ok(())
    }

    fn open(&mut self, name: &str) -> Checked {
        let opened = self.client.open(name);
        let Some(model) = self.files.get(name) else {
            prop_refused!(opened, Refusal::NotFound { .. });
            return Ok(());
        };
        let file = done(opened)?;
        prop_assert_eq!((file.id(), file.len_bytes()), (model.id, model.bytes.len() as u64));
        self.handles.push((file, model.id));
        Ok(())
    }

    fn pin(&mut self, file: u8, from: u64, len: u64, how: u8) -> Checked {
        if self.handles.is_empty() {
            return Ok(());
        }
        let (file, id) = &self.handles[file as usize % self.handles.len()];
        let pinned = match how {
            0 => file.pin(from..from + len),
            1 => file.pin_longterm(from..from + len),
            _ => file.pin_for_device(from..from + len),
        };
        let Some(model) = self.files.values().find(|model| model.id == *id) else {
            // It may have been refused for its old length before anybody saw that it is gone.
            let is_right = matches!(
                pinned,
                Err(Error::Refused(Refusal::Stale { .. }) | Error::OutOfRange { .. })
            );
            prop_assert!(is_right, "a handle of a file that is gone: {pinned:?}");
            return Ok(());
        };
        let end = from + len;
        if end > model.bytes.len() as u64 {
            let is_refused = matches!(pinned, Err(Error::OutOfRange { .. }));
            prop_assert!(is_refused, "{pinned:?}");
            return Ok(());
        }
        let bytes = model.bytes[from as usize..end as usize].to_vec();
        let pages = model.held(from, len);
        self.pins.push(Pinned { pin: done(pinned)?, bytes, pages });
        Ok(())
    }

    fn unlink(&mut self, name: &str) -> Checked {
        let unlinked = self.client.unlink(name);
        if self.files.remove(name).is_none() {
            prop_refused!(unlinked, Refusal::NotFound { .. });
            return Ok(());
        }
        done(unlinked)
    }

    fn unlink_batch(&mut self, first: String, second: String) -> Checked {
        let names = [&first, &second].map(|name| FileName::new(name).unwrap()).to_vec();
        let results = done(self.client.unlink_batch(&names))?;
        for (name, result) in [first, second].into_iter().zip(results) {
            prop_assert_eq!(result.is_ok(), self.files.remove(&name).is_some());
        }
        Ok(())
    }

    fn rename(&mut self, from: String, to: String, replace: bool) -> Checked {
        let how = if replace { Replace::Yes } else { Replace::No };
        let renamed = self.client.rename(&from, &to, how);
        if !self.files.contains_key(&from) {
            prop_refused!(renamed, Refusal::NotFound { .. });
            return Ok(());
        }
        if from != to && self.files.contains_key(&to) && !replace {
            prop_refused!(renamed, Refusal::Exists { .. });
            return Ok(());
        }
        done(renamed)?;
        let model = self.files.remove(&from).unwrap();
        self.files.insert(to, model);
        Ok(())
    }

    fn is_held(&self, pages: &BTreeSet<u64>) -> bool {
        self.pins.iter().any(|pinned| !pinned.pages.is_disjoint(pages))
    }

    fn truncate(&mut self, name: &str, len: u64) -> Checked {
        let truncated = self.client.truncate(name, len, Duration::ZERO);
        let Some(model) = self.files.get(name) else {
            prop_refused!(truncated, Refusal::NotFound { .. });
            return Ok(());
        };
        if len > model.bytes.len() as u64 {
            prop_refused!(truncated, Refusal::BadLength { .. });
            return Ok(());
        }
        let kept = len.div_ceil(PAGE_BYTES) as usize;
        if self.is_held(&model.pages[kept..].iter().flatten().copied().collect()) {
            prop_refused!(truncated, Refusal::Held { .. });
            return Ok(());
        }
        done(truncated)?;
        let model = self.files.get_mut(name).unwrap();
        model.bytes.truncate(len as usize);
        model.pages.truncate(kept);
        Ok(())
    }

    fn punch(&mut self, name: &str, from_page: u64, nr_pages: u64) -> Checked {
        let (from, len) = (from_page * PAGE_BYTES, nr_pages * PAGE_BYTES);
        let punched = self.client.punch(name, from..from + len, Duration::ZERO);
        let Some(model) = self.files.get(name) else {
            prop_refused!(punched, Refusal::NotFound { .. });
            return Ok(());
        };
        if len == 0 || from + len > model.bytes.len() as u64 {
            prop_refused!(punched, Refusal::BadLength { .. });
            return Ok(());
        }
        if self.is_held(&model.held(from, len)) {
            prop_refused!(punched, Refusal::Held { .. });
            return Ok(());
        }
        done(punched)?;
        let model = self.files.get_mut(name).unwrap();
        model.bytes[from as usize..(from + len) as usize].fill(0);
        model.pages[from_page as usize..(from_page + nr_pages) as usize].fill(None);
        Ok(())
    }

    fn stat(&self, name: &str) -> Checked {
        let stat = self.client.stat(name);
        let Some(model) = self.files.get(name) else {
            prop_refused!(stat, Refusal::NotFound { .. });
            return Ok(());
        };
        let info = done(stat)?;
        prop_assert_eq!((info.id, info.len_bytes), (model.id, model.bytes.len() as u64));
        prop_assert_eq!(info.allocated_bytes, model.frames().len() as u64 * PAGE_BYTES);
        Ok(())
    }

    fn live(&self) -> BTreeSet<u64> {
        self.files.values().flat_map(Model::frames).collect()
    }

    fn reserved(&self) -> BTreeSet<u64> {
        self.drafts.iter().flat_map(|draft| draft.model.frames()).collect()
    }

    /// Pages that only pins keep.
    fn draining(&self) -> BTreeSet<u64> {
        let (live, reserved) = (self.live(), self.reserved());
        let pinned = self.pins.iter().flat_map(|pinned| pinned.pages.iter().copied());
        pinned.filter(|page| !live.contains(page) && !reserved.contains(page)).collect()
    }

    fn free_pages(&self) -> u64 {
        let in_use = self.live().len() + self.reserved().len() + self.draining().len();
        POOL_PAGES - in_use as u64
    }

    /// Everything that can be seen is as the model has it.
    fn compare(&self) -> Checked {
        let expected = [
            self.free_pages(),
            self.live().len() as u64,
            self.reserved().len() as u64,
            self.draining().len() as u64,
        ]
        .map(|nr_pages| nr_pages * PAGE_BYTES);
        // What a dropped pin kept is free when the owner has heard the bell.
        support::wait_for_info(self.owner, &format!("free, live, … are {expected:?}"), |info| {
            [info.free_bytes, info.live_bytes, info.reserved_bytes, info.draining_bytes] == expected
        });
        let listed: Vec<(String, u64)> = done(self.client.list())?
            .into_iter()
            .map(|file| (file.name.to_string(), file.len_bytes))
            .collect();
        let files: Vec<(String, u64)> =
            self.files.iter().map(|(name, m)| (name.clone(), m.bytes.len() as u64)).collect();
        prop_assert_eq!(listed, files);
        for pinned in &self.pins {
            prop_assert!(done(pinned.pin.to_vec())? == pinned.bytes, "a pin shows other bytes");
        }
        for (name, model) in &self.files {
            let bytes = done(done(self.client.get(name))?.to_vec())?;
            prop_assert!(bytes == model.bytes, "{name} has other bytes");
        }
        Ok(())
    }
}

fn run_history(steps: &[Step]) -> Checked {
    let options = PoolOptions::anonymous(POOL_PAGES * PAGE_BYTES);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    let client = owner.client().unwrap();
    let mut world = World {
        owner: &owner,
        client: &client,
        files: BTreeMap::new(),
        drafts: Vec::new(),
        handles: Vec::new(),
        pins: Vec::new(),
        next_page: 0,
        fill: 0,
    };
    for step in steps {
        world.take(step)?;
        world.compare()?;
    }
    world.pins.clear();
    world.drafts.clear();
    world.compare()
}

#[test]
fn the_library_does_what_a_naive_model_says() {
    println!("{NR_HISTORIES} histories, seed {:?}", String::from_utf8_lossy(&SEED));
    let config = Config { cases: NR_HISTORIES, failure_persistence: None, ..Config::default() };
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &SEED);
    let mut runner = TestRunner::new_with_rng(config, random);
    let histories = prop::collection::vec(step(), 1..40);
    if let Err(failure) = runner.run(&histories, |steps| run_history(&steps)) {
        panic!("{failure}");
    }
}
