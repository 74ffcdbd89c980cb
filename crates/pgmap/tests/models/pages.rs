//! A naive model of the whole page model against the library: files, drafts, pins, leases, cuts,
//! folio shapes, failed memory, clients that die, owners that are restarted; the same after every
//! step.
//!
//! The model knows nothing of ledgers, folios or life words. A file is a list of pages, and a page
//! is a frame with bytes, a hole, or a frame that failed. A pin is the frames that it keeps and the
//! bytes that it must go on showing, whatever happens to the file.

mod naive;
mod steps;
use crate::support;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use naive::{Draft, File, Model, Page};
use pgmap::{
    Client, CreateSpec, Error, FileName, FilePin, FileRules, FileWriter, FolioSize, MemoryType,
    OnDeadline, Owner, Pool, PoolInfo, PoolOptions, Replace, Shape,
};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use steps::{Action, Place, Step, Term, Who, history};

const PAGE_BYTES: u64 = 4096;
const POOL_PAGES: u64 = 2048;
const NR_THREADS: u8 = 8;
const HISTORIES_PER_THREAD: u32 = 160;
/// The same histories each time; change it to see others. The last byte is the thread's number.
const SEED: [u8; 31] = *b"pgmap: the whole page model ...";

/// Longest wait for the owner to hear its bell.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How often histories repaired while a pin kept a failed frame of no file: they are worth little
/// if never.
static NR_REPAIRS_UNDER_PINS: AtomicU64 = AtomicU64::new(0);

const ENOENT: i32 = 2;
const EFAULT: i32 = 14;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;
const EOPNOTSUPP: i32 = 95;
const EHWPOISON: i32 = 133;

type Checked<T = ()> = Result<T, TestCaseError>;

/// What one client has in its hands.
struct Hands<'c> {
    client: &'c Client,
    /// The pin, its number in the model, and what it must show.
    pins: Vec<(FilePin<'c>, u64, Vec<u8>)>,
    writers: Vec<FileWriter<'c>>,
}

fn name_of(number: u8) -> String {
    format!("file {number}")
}

/// Checks the outcome of a call against the error number that the model expects, if any.
fn check<T>(what: &str, result: Result<T, Error>, refused: Option<i32>) -> Checked<Option<T>> {
    match (result, refused) {
        (Ok(done), None) => Ok(Some(done)),
        (Err(error), Some(errno)) if error.errno() == errno => Ok(None),
        (Ok(_), Some(errno)) => {
            Err(TestCaseError::fail(format!("{what}: done, and should have failed with {errno}")))
        }
        (Err(error), _) => Err(TestCaseError::fail(format!(
            "{what}: {error} ({}), where the model says {refused:?}",
            error.errno()
        ))),
    }
}

fn picked<T>(list: &[T], by: u8) -> Option<usize> {
    (!list.is_empty()).then(|| by as usize % list.len())
}

impl<'c> Hands<'c> {
    const fn of(client: &'c Client) -> Self {
        Self { client, pins: Vec::new(), writers: Vec::new() }
    }

    /// Lets go of everything.
    fn open(self, model: &mut Model) {
        for (_, number, _) in &self.pins {
            model.pins.remove(number);
        }
        for writer in &self.writers {
            model.drafts.remove(&writer.id());
        }
    }

    /// Dies: nobody lets go of anything.
    fn die(mut self, model: &mut Model) {
        for (pin, number, _) in self.pins.drain(..) {
            model.pins.remove(&number);
            std::mem::forget(pin);
        }
        for writer in self.writers.drain(..) {
            model.drafts.remove(&writer.id());
            std::mem::forget(writer);
        }
    }

    fn act(&mut self, model: &mut Model, action: &Action) -> Checked {
        match *action {
            Action::Create { name, len, size, rules, replace } => {
                self.create(model, name_of(name), len, size, rules, replace)
            }
            Action::Commit(by) => self.commit(model, by),
            Action::Abort(by) => {
                if let Some(at) = picked(&self.writers, by) {
                    model.drafts.remove(&self.writers.swap_remove(at).id());
                }
                Ok(())
            }
            Action::Pin { name, from, len, term } => {
                self.pin(model, &name_of(name), from, len, term)
            }
            Action::PinAll(name) => self.pin_all(model, &name_of(name)),
            Action::LetGo(by) => {
                if let Some(at) = picked(&self.pins, by) {
                    model.pins.remove(&self.pins.swap_remove(at).1);
                }
                Ok(())
            }
            Action::Truncate { name, len, on_deadline } => {
                self.truncate(model, &name_of(name), len, on_deadline)
            }
            Action::Punch { name, from_page, nr_pages, on_deadline } => {
                self.punch(model, &name_of(name), from_page, nr_pages, on_deadline)
            }
            Action::Reshape { name, offset, shape } => {
                self.reshape(model, &name_of(name), offset, shape)
            }
            Action::MemoryFailure(place) => self.memory_failure(model, place),
            Action::ClearPoison { name, place } => self.clear_poison(model, &name_of(name), place),
            Action::RepairFree => {
                let pinned = model.only_pinned();
                if !model.poisoned.is_disjoint(&pinned) {
                    // Relaxed: a sum that is read when all threads have ended.
                    NR_REPAIRS_UNDER_PINS.fetch_add(1, Ordering::Relaxed);
                }
                check("repair_free", self.client.repair_free(), None)?;
                let healthy = model.failed_and_unowned();
                model.poisoned.retain(|frame| !healthy.contains(frame));
                Ok(())
            }
            Action::Rename { from, to, replace } => {
                self.rename(model, &name_of(from), name_of(to), replace)
            }
            Action::Unlink(name) => self.unlink(model, &name_of(name)),
            Action::UnlinkDamaged(by) => {
                let damaged = model.files.iter().filter(|(_, file)| file.is_damaged());
                let names: Vec<String> = damaged.map(|(name, _)| name.clone()).collect();
                picked(&names, by).map_or(Ok(()), |at| self.unlink(model, &names[at]))
            }
        }
    }

    fn unlink(&self, model: &mut Model, name: &str) -> Checked {
        let refused = (!model.files.contains_key(name)).then_some(ENOENT);
        check("unlink", self.client.unlink(name), refused)?;
        model.files.remove(name);
        Ok(())
    }

    fn create(
        &mut self,
        model: &mut Model,
        name: String,
        len: u64,
        size: FolioSize,
        rules: FileRules,
        replace: Replace,
    ) -> Checked {
        let info = self.client.pool_stat().unwrap();
        let spec = CreateSpec::new(FileName::new(&name).unwrap(), len, size);
        let spec = CreateSpec { replace: replace == Replace::Yes, rules, ..spec };
        let created = self.client.create_batch(vec![spec]).unwrap().pop().unwrap();
        let unit = if size == FolioSize::Pages2M { 512 } else { 1 };
        let nr_pages = len.div_ceil(PAGE_BYTES).next_multiple_of(unit);
        // What pins keep of a large folio is more than the model knows of; and large folios may be
        // short although frames are not.
        let is_short = nr_pages * PAGE_BYTES > info.free_bytes;
        let may_be_short = is_short || size == FolioSize::Pages2M;
        let refused = if replace == Replace::No && model.files.contains_key(&name) {
            Some(EEXIST)
        } else if nr_pages > POOL_PAGES {
            Some(EINVAL)
        } else {
            let is_refused = matches!(&created, Err(error) if error.errno() == ENOSPC);
            (is_short || (may_be_short && is_refused)).then_some(ENOSPC)
        };
        let Some(mut writer) = check("create", created, refused)? else { return Ok(()) };
        let mut frames: Vec<u64> = Vec::new();
        for (_, len_bytes, pool_offset) in writer.segments() {
            let first = pool_offset / PAGE_BYTES;
            frames.extend(first..first + len_bytes.div_ceil(PAGE_BYTES));
        }
        // Frames of the last folio past the file's end.
        if let Some(&last) = frames.last() {
            frames.extend((1..=nr_pages - frames.len() as u64).map(|more| last + more));
        }
        let given: BTreeSet<u64> = frames.iter().copied().collect();
        prop_assert_eq!(given.len(), frames.len(), "a frame was given twice");
        let others = [model.live(), model.reserved(), model.only_pinned(), model.poisoned.clone()];
        for other in &others {
            prop_assert!(given.is_disjoint(other), "{name} was given frames in use: {given:?}");
        }
        let page = |frame| Page::Bytes { frame, number: model.number() };
        let file = File { len, rules, pages: frames.into_iter().map(page).collect() };
        check("write", writer.write_all_at(0, &file.bytes(0, len)), None)?;
        model.drafts.insert(writer.id(), Draft { name, replace, file });
        self.writers.push(writer);
        Ok(())
    }

    fn commit(&mut self, model: &mut Model, by: u8) -> Checked {
        let Some(at) = picked(&self.writers, by) else { return Ok(()) };
        let writer = self.writers.swap_remove(at);
        let Draft { name, replace, file } = model.drafts.remove(&writer.id()).unwrap();
        let is_taken = replace == Replace::No && model.files.contains_key(&name);
        let refused = if file.is_damaged() { Some(EHWPOISON) } else { is_taken.then_some(EEXIST) };
        if check("commit", writer.commit(), refused)?.is_some() {
            model.files.insert(name, file);
        }
        Ok(())
    }

    fn pin(&mut self, model: &mut Model, name: &str, from: u64, len: u64, term: Term) -> Checked {
        let opened = self.client.open(name);
        let Some(file) = model.files.get(name) else {
            check("open", opened, Some(ENOENT))?;
            return Ok(());
        };
        let opened = check("open", opened, None)?.unwrap();
        let pinned = match term {
            Term::Short => opened.pin(from..from + len),
            Term::ShortForDevice => opened.pin_for_device(from..from + len),
            Term::Longterm => opened.pin_longterm(from..from + len),
            Term::Lease(agent, access) => opened.lease(from..from + len, agent, access),
        };
        if from + len > file.len {
            check("pin past the end", pinned, Some(EINVAL))?;
            return Ok(());
        }
        let pages = file.range(from, len);
        let refused = match term {
            Term::Short | Term::ShortForDevice => model.pin_refused(file, pages, false),
            Term::Longterm => model.pin_refused(file, pages, true),
            Term::Lease(agent, access) => model.lease_refused(file, pages, agent, access),
        };
        let pinned = check("pin", pinned, refused)?;
        let (frames, bytes) =
            (pages.iter().filter_map(|p| p.frame()).collect(), file.bytes(from, len));
        self.keep(model, pinned, frames, bytes)
    }

    fn pin_all(&mut self, model: &mut Model, name: &str) -> Checked {
        let pinned = self.client.get(name);
        let Some(file) = model.files.get(name) else {
            check("get", pinned, Some(ENOENT))?;
            return Ok(());
        };
        let pages = file.range(0, file.len);
        let pinned = check("get", pinned, model.pin_refused(file, pages, false))?;
        let (frames, bytes) =
            (pages.iter().filter_map(|p| p.frame()).collect(), file.bytes(0, file.len));
        self.keep(model, pinned, frames, bytes)
    }

    fn keep(
        &mut self,
        model: &mut Model,
        pinned: Option<FilePin<'c>>,
        frames: BTreeSet<u64>,
        bytes: Vec<u8>,
    ) -> Checked {
        let Some(pin) = pinned else { return Ok(()) };
        let mut shown = BTreeSet::new();
        for segment in pin.segments() {
            let end = segment.pool_offset + segment.len_bytes;
            shown.extend(segment.pool_offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES));
        }
        prop_assert_eq!(&shown, &frames, "a pin keeps other frames than the file's");
        let number = model.number();
        model.pins.insert(number, frames);
        self.pins.push((pin, number, bytes));
        Ok(())
    }

    fn truncate(
        &self,
        model: &mut Model,
        name: &str,
        len: u64,
        on_deadline: OnDeadline,
    ) -> Checked {
        let cut = self.client.truncate_or(name, len, Duration::ZERO, on_deadline);
        let kept = len.div_ceil(PAGE_BYTES) as usize;
        let Some(file) = model.files.get(name).filter(|file| len <= file.len) else {
            let refused = if model.files.contains_key(name) { EINVAL } else { ENOENT };
            check("truncate", cut, Some(refused))?;
            return Ok(());
        };
        let is_held = model.is_held(file.pages[kept..].iter().filter_map(|page| page.frame()));
        let refused = (is_held && on_deadline == OnDeadline::Fail).then_some(EBUSY);
        let Some(holders) = check("truncate", cut, refused)? else { return Ok(()) };
        prop_assert_eq!(holders.is_empty(), !is_held, "{:?}", holders);
        let file = model.files.get_mut(name).unwrap();
        file.len = len;
        file.pages.truncate(kept);
        Ok(())
    }

    fn punch(
        &self,
        model: &mut Model,
        name: &str,
        from_page: u64,
        nr_pages: u64,
        on_deadline: OnDeadline,
    ) -> Checked {
        let (from, to) = (from_page * PAGE_BYTES, (from_page + nr_pages) * PAGE_BYTES);
        let cut = self.client.punch_or(name, from..to, Duration::ZERO, on_deadline);
        let Some(file) = model.files.get(name).filter(|file| to <= file.len && from < to) else {
            let refused = if model.files.contains_key(name) { EINVAL } else { ENOENT };
            check("punch", cut, Some(refused))?;
            return Ok(());
        };
        let is_held = model.is_held(file.range(from, to - from).iter().filter_map(|p| p.frame()));
        let refused = (is_held && on_deadline == OnDeadline::Fail).then_some(EBUSY);
        let Some(holders) = check("punch", cut, refused)? else { return Ok(()) };
        prop_assert_eq!(holders.is_empty(), !is_held, "{:?}", holders);
        let file = model.files.get_mut(name).unwrap();
        file.pages[from_page as usize..(from_page + nr_pages) as usize].fill(Page::Hole);
        Ok(())
    }

    /// The model has no folios: a new shape is allowed or not, and nothing else can be seen of it.
    fn reshape(&self, model: &Model, name: &str, offset: u64, shape: Shape) -> Checked {
        let reshaped = self.client.reshape(name, offset, shape);
        let Some(file) = model.files.get(name) else {
            check("reshape", reshaped, Some(ENOENT))?;
            return Ok(());
        };
        let refused = match file.pages.get((offset / PAGE_BYTES) as usize) {
            None | Some(Page::Hole) => Some(EINVAL),
            Some(Page::Poisoned { .. }) if matches!(shape, Shape::Split { .. }) => Some(EHWPOISON),
            Some(Page::Poisoned { .. } | Page::Bytes { .. }) => {
                let errno = reshaped.as_ref().err().map(Error::errno);
                errno.filter(|errno| [EINVAL, EBUSY, EHWPOISON].contains(errno))
            }
        };
        check("reshape", reshaped, refused).map(drop)
    }

    fn memory_failure(&self, model: &mut Model, place: Place) -> Checked {
        let frame = match place {
            Place::Frame(frame) => Some(frame),
            Place::PageOf { name, page } => model.files.get(&name_of(name)).and_then(|file| {
                let at = (page as usize).checked_rem(file.pages.len())?;
                file.pages[at].frame()
            }),
            Place::Pinned { pin, frame } => picked(&self.pins, pin).and_then(|at| {
                let held: Vec<u64> = model.pins[&self.pins[at].1].iter().copied().collect();
                picked(&held, frame).map(|at| held[at])
            }),
        };
        let Some(frame) = frame else { return Ok(()) };
        let refused = if frame >= POOL_PAGES {
            Some(EINVAL)
        } else {
            model.poisoned.contains(&frame).then_some(EHWPOISON)
        };
        if check("memory_failure", self.client.memory_failure(frame), refused)?.is_some() {
            model.poison(frame);
        }
        Ok(())
    }

    /// Clears one of the failed pages of the file; another page when it has none.
    fn clear_poison(&self, model: &mut Model, name: &str, place: u8) -> Checked {
        let number = model.number();
        let bytes = Page::Bytes { frame: 0, number }.bytes();
        let failed: Vec<(usize, u64)> = model.files.get(name).map_or_else(Vec::new, |file| {
            let pages = file.pages.iter().enumerate();
            pages
                .filter_map(|(at, page)| match page {
                    Page::Poisoned { frame } => Some((at, *frame)),
                    Page::Bytes { .. } | Page::Hole => None,
                })
                .collect()
        });
        let picked = picked(&failed, place).map(|at| failed[at]);
        let at = picked.map_or(u64::from(place), |(at, _)| at as u64);
        let cleared = self.client.clear_poison(name, at * PAGE_BYTES, &bytes);
        let refused = match picked {
            _ if !model.files.contains_key(name) => Some(ENOENT),
            None => Some(EINVAL),
            Some((_, frame)) => model.is_held([frame]).then_some(EBUSY),
        };
        if check("clear_poison", cleared, refused)?.is_some()
            && let Some((at, frame)) = picked
        {
            model.files.get_mut(name).unwrap().pages[at] = Page::Bytes { frame, number };
            model.poisoned.remove(&frame);
        }
        Ok(())
    }

    fn rename(&self, model: &mut Model, from: &str, to: String, replace: Replace) -> Checked {
        let renamed = self.client.rename(from, &to, replace);
        let is_taken = from != to && replace == Replace::No && model.files.contains_key(&to);
        let refused = match model.files.contains_key(from) {
            false => Some(ENOENT),
            true => is_taken.then_some(EEXIST),
        };
        if check("rename", renamed, refused)?.is_some() {
            let file = model.files.remove(from).unwrap();
            model.files.insert(to, file);
        }
        Ok(())
    }

    /// What is pinned shows what it must: the bytes that it was taken of, or, from somewhere in a
    /// page to its end, the zeros of a truncate inside that page.
    fn check_pins(&self) -> Checked {
        for (pin, _, bytes) in &self.pins {
            let now = pin.to_vec().unwrap();
            prop_assert_eq!(now.len(), bytes.len());
            let first = pin.segments().next().map_or(0, |part| part.pool_offset % PAGE_BYTES);
            let mut at = 0;
            while at < now.len() {
                let end = (at + PAGE_BYTES as usize - (first as usize + at) % PAGE_BYTES as usize)
                    .min(now.len());
                let kept =
                    now[at..end].iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
                let is_kept = now[at..at + kept] == bytes[at..at + kept];
                prop_assert!(is_kept, "a pin shows other bytes at {at}");
                at = end;
            }
        }
        Ok(())
    }
}

/// Everything that can be seen is as the model has it.
fn compare(owner: &Owner, model: &Model, host: &Hands<'_>, guest: Option<&Hands<'_>>) -> Checked {
    compare_info(owner, model)?;
    let client = host.client;
    let listed = check("list", client.list(), None)?.unwrap();
    let shown: Vec<_> = listed
        .iter()
        .map(|f| (f.name.to_string(), f.len_bytes, f.allocated_bytes / PAGE_BYTES))
        .collect();
    let expected: Vec<_> = model
        .files
        .iter()
        .map(|(name, file)| (name.clone(), file.len, file.frames().count() as u64))
        .collect();
    prop_assert_eq!(shown, expected);
    host.check_pins()?;
    guest.map_or(Ok(()), Hands::check_pins)?;
    for (name, file) in model.files.iter().filter(|(_, file)| !file.rules.is_raw) {
        let opened = check("open", client.open(name), None)?.unwrap();
        let pages = file.range(0, file.len);
        let mut at = 0;
        for part in pages.split(|page| matches!(page, Page::Poisoned { .. })) {
            let from = at * PAGE_BYTES;
            let len = (part.len() as u64 * PAGE_BYTES).min(file.len.saturating_sub(from));
            at += part.len() as u64 + 1;
            if len > 0 {
                let pin =
                    check("pin around what failed", opened.pin(from..from + len), None)?.unwrap();
                let is_right = pin.to_vec().unwrap() == file.bytes(from, len);
                prop_assert!(is_right, "{name} has other bytes");
            }
        }
    }
    Ok(())
}

/// Each frame is in one sum: free, live, reserved, held by pins alone, or failed and nobody's.
fn compare_info(owner: &Owner, model: &Model) -> Checked {
    let (live, reserved) = (model.live().len() as u64, model.reserved().len() as u64);
    let (pinned, failed) = (model.only_pinned(), model.failed_and_unowned().len() as u64);
    let pages = |bytes: u64| bytes / PAGE_BYTES;
    prop_assert_eq!(pages(owner.info().poisoned_bytes), model.poisoned.len() as u64);
    // What a dropped pin kept is free when the owner has heard the bell, and what failed of it
    // counts once: as waiting before, as nobody's after. A frame that waits for its holder counts
    // as draining, or, after a deadline, as quarantined.
    let waiting = |info: &PoolInfo| info.draining_bytes + info.quarantined_bytes;
    let is_settled = |info: &PoolInfo| {
        let known = live + reserved + failed;
        (!pinned.is_empty() || waiting(info) == 0)
            && pages(info.free_bytes + waiting(info)) + known == POOL_PAGES
    };
    let until = Instant::now() + LONGEST_WAIT;
    let mut info = owner.info();
    while !is_settled(&info) && Instant::now() < until {
        std::thread::yield_now();
        info = owner.info();
    }
    prop_assert_eq!((pages(info.live_bytes), pages(info.reserved_bytes)), (live, reserved));
    prop_assert!(!pinned.is_empty() || waiting(&info) == 0, "{:?}", info);
    let draining = pages(waiting(&info));
    prop_assert!(draining >= pinned.len() as u64, "{} pinned, {:?}", pinned.len(), info);
    let sum = pages(info.free_bytes) + live + reserved + draining + failed;
    prop_assert_eq!(sum, POOL_PAGES, "{} failed and nobody's, {:?}", failed, info);
    Ok(())
}

/// Why a guest's part of a history ended.
#[derive(PartialEq, Eq)]
enum End {
    Guest,
    Owner,
}

/// Goes on until the guest or the owner ends; returns the steps that are left.
fn run_guest<'s>(
    owner: &Owner,
    model: &mut Model,
    host: &mut Hands<'_>,
    steps: &'s [Step],
) -> Checked<(End, &'s [Step])> {
    let client = owner.client().unwrap();
    let mut guest = Hands::of(&client);
    for (at, step) in steps.iter().enumerate() {
        let left = &steps[at + 1..];
        match step {
            Step::Act(Who::Host, action) => host.act(model, action)?,
            Step::Act(Who::Guest, action) => guest.act(model, action)?,
            Step::KillGuest => {
                guest.die(model);
                drop(client);
                compare(owner, model, host, None)?;
                return Ok((End::Guest, left));
            }
            Step::GuestLeaves => {
                guest.open(model);
                drop(client);
                compare(owner, model, host, None)?;
                return Ok((End::Guest, left));
            }
            Step::RestartOwner => {
                guest.open(model);
                return Ok((End::Owner, left));
            }
        }
        compare(owner, model, host, Some(&guest))?;
    }
    guest.open(model);
    Ok((End::Owner, &[]))
}

fn run_owner<'s>(owner: &Owner, model: &mut Model, steps: &'s [Step]) -> Checked<&'s [Step]> {
    let client = owner.client().unwrap();
    let mut host = Hands::of(&client);
    let mut left = steps;
    compare(owner, model, &host, None)?;
    loop {
        let (end, rest) = run_guest(owner, model, &mut host, left)?;
        left = rest;
        if end == End::Owner {
            break;
        }
    }
    host.open(model);
    if left.is_empty() {
        give_everything_back(owner, &client, model)?;
    }
    Ok(left)
}

/// At the end of a history no frame is lost.
fn give_everything_back(owner: &Owner, client: &Client, model: &mut Model) -> Checked {
    for name in std::mem::take(&mut model.files).into_keys() {
        check("unlink", client.unlink(&name), None)?;
    }
    compare(owner, model, &Hands::of(client), None)?;
    check("repair_free", client.repair_free(), None)?;
    let info = owner.info();
    prop_assert_eq!(info.free_bytes, POOL_PAGES * PAGE_BYTES, "{:?}", info);
    prop_assert_eq!((info.orphaned_bytes, info.poisoned_bytes), (0, 0), "{:?}", info);
    Ok(())
}

fn run_history(directory: &Path, memory_type: MemoryType, steps: &[Step]) -> Checked {
    let directory = tempfile::tempdir_in(directory).unwrap();
    let path = directory.path().join("pool");
    let options =
        PoolOptions::in_directory(&path, POOL_PAGES * PAGE_BYTES).memory_type(memory_type);
    let mut pool = Pool::create(&options).unwrap();
    let mut model = Model {
        memory_type,
        files: BTreeMap::new(),
        drafts: BTreeMap::new(),
        pins: BTreeMap::new(),
        poisoned: BTreeSet::new(),
        next_number: 0,
    };
    let mut left = steps;
    loop {
        let owner = Owner::start(pool).unwrap();
        left = run_owner(&owner, &mut model, left)?;
        if left.is_empty() {
            return Ok(());
        }
        drop(owner);
        pool = Pool::open(&path).unwrap();
    }
}

#[test]
fn every_operation_does_what_a_naive_model_says() {
    let nr_histories = u32::from(NR_THREADS) * HISTORIES_PER_THREAD;
    println!("{nr_histories} histories, seed {:?} and the thread", String::from_utf8_lossy(&SEED));
    std::thread::scope(|scope| {
        for thread in 0..NR_THREADS {
            scope.spawn(move || run_histories(thread));
        }
    });
    let nr_repairs = NR_REPAIRS_UNDER_PINS.load(Ordering::Relaxed);
    println!("{nr_repairs} repairs beside pins of failed frames of no file");
    assert!(nr_repairs > 0, "no history came to what a repair must leave alone");
}

fn run_histories(thread: u8) {
    let config =
        Config { cases: HISTORIES_PER_THREAD, failure_persistence: None, ..Config::default() };
    let mut seed = [thread; 32];
    seed[..SEED.len()].copy_from_slice(&SEED);
    let mut runner =
        TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let memory_type = select(vec![MemoryType::Generic, MemoryType::FsDax]);
    let histories = (memory_type, history());
    let run = |(memory_type, steps): (MemoryType, Vec<Step>)| {
        run_history(Path::new("/dev/shm"), memory_type, &steps)
    };
    if let Err(failure) = runner.run(&histories, run) {
        panic!("thread {thread}: {failure}");
    }
}

/// A failed frame of a file that was unlinked belongs to nobody's file. Repairing took it for free
/// and replaced its memory, although a pin of the file still kept it: the pin's bytes were gone,
/// and the next file got the frame.
#[test]
fn a_failed_frame_is_not_repaired_under_a_pin() {
    let options = PoolOptions::anonymous(POOL_PAGES * PAGE_BYTES);
    let owner = Owner::start(Pool::create(&options).unwrap()).unwrap();
    let client = owner.client().unwrap();
    support::put(&client, "a", &[7; 8192]).unwrap();
    let pin = client.get("a").unwrap();
    let frame = pin.segments().next().unwrap().pool_offset / PAGE_BYTES;
    client.memory_failure(frame).unwrap();
    client.unlink("a").unwrap();
    client.repair_free().unwrap();
    assert_eq!(pin.to_vec().unwrap(), [7; 8192]);
    assert_eq!((owner.info().poisoned_bytes, owner.info().draining_bytes), (4096, 8192));
    drop(pin);
    support::wait_for_info(&owner, "the rest is free", |info| info.draining_bytes == 0);
    client.repair_free().unwrap();
    assert_eq!(owner.info().free_bytes, POOL_PAGES * PAGE_BYTES);
}
