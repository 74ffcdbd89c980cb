//! One run of a plan, from an empty directory to the last check.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use pgmap_os::sim::World;

use crate::books::Books;
use crate::failures::Failures;
use crate::held::Heard;
use crate::holders::Holders;
use crate::machine::{Machine, Panicked, Pid};
use crate::media::{Media, Medium};
use crate::model::{Model, PAGE, fill};
use crate::plan::{Fate, Plan};
use crate::{client, operator, owner};

/// Steps in which everything that can end must end once nothing fails any more.
const MAX_LAST_STEPS: u64 = 3_000_000;
/// Owners that may end before one serves the pool at last.
const MAX_LAST_OWNERS: u32 = 20;
/// Most steps of a run before it is ended.
const MAX_STEPS_PER_OP: u64 = 20_000;

/// What a device still writes.
struct Transfer {
    number: u64,
    /// Whose it is.
    pid: Pid,
    medium: Rc<Medium>,
    /// Page of the pool, page of the file, how often its memory had been given back.
    pages: Vec<(u64, u64, u64)>,
    at_step: u64,
    is_done: Rc<Cell<bool>>,
    /// The lock of its client's ledger, where its client promised that it keeps that.
    _lock: Option<OwnedFd>,
}

impl Transfer {
    /// Whether what it writes can reach the pool in `frames`.
    fn reaches(&self, machine: &Machine, frames: &Range<u64>) -> bool {
        self.pages.iter().any(|&(frame, _, punched)| {
            frames.contains(&frame) && self.medium.times_punched(machine, frame) == punched
        })
    }
}

/// What the parties of a run share with its checks.
pub struct Episode {
    pub machine: Machine,
    pub model: RefCell<Model>,
    pub plan: Plan,
    pub directory: PathBuf,
    /// Where further backings lie.
    pub media_directory: PathBuf,
    pub socket: PathBuf,
    /// The next operation of each client.
    pub next_op: RefCell<Vec<usize>>,
    /// Whether clients are to end.
    pub is_last: Cell<bool>,
    /// Whether the owner is to stop.
    pub is_owner_to_end: Cell<bool>,
    /// Why the owner last could not be there.
    pub owner_error: RefCell<Option<String>>,
    failure: RefCell<Option<String>>,
    transfers: RefCell<Vec<Transfer>>,
    /// Whether a deadline or a dead device may have taken frames out of use.
    pub may_quarantine: Cell<bool>,
    pub media: RefCell<Media>,
    pub has_operator_ended: Cell<bool>,
    /// How many owners there were.
    pub nr_owners: Cell<u32>,
    pub books: RefCell<Books>,
    pub failures: RefCell<Failures>,
    pub heard: RefCell<Heard>,
    /// The owner's process, when it was started, and the last step at which it did not serve.
    pub owner_pid: Cell<Pid>,
    pub owner_from: Cell<u64>,
    pub away_at: Cell<u64>,
    pub does_serve: Cell<bool>,
    /// Whether the client in the owner's process is at work.
    pub is_embedded_busy: Cell<bool>,
    /// Operations under way, and how many were begun.
    pub nr_ops: Cell<u32>,
    pub nr_ops_begun: Cell<u64>,
    /// Who may hold frames.
    pub holders: RefCell<Holders>,
}

/// An operation under way.
pub struct Busy;

impl Drop for Busy {
    fn drop(&mut self) {
        let episode = episode();
        episode.nr_ops.set(episode.nr_ops.get() - 1);
    }
}

thread_local! {
    static EPISODE: RefCell<Option<Rc<Episode>>> = const { RefCell::new(None) };
}

/// The run that the calling party is part of.
pub fn episode() -> Rc<Episode> {
    EPISODE.with_borrow(|episode| match episode {
        Some(episode) => Rc::clone(episode),
        None => panic!("a party runs outside a run"),
    })
}

/// How a run went.
pub struct Outcome {
    pub nr_steps: u64,
    /// What was wrong.
    pub failure: Option<String>,
    pub trace: Vec<String>,
    /// Sum over what happened: the same for each run of a plan.
    pub sum: u64,
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps what a panic says, and where it was.
pub fn note_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let is_first = PANIC.with_borrow_mut(|noted| {
        let is_first = noted.is_none();
        noted.get_or_insert(panic.to_string());
        is_first
    });
    if !is_first {
        eprintln!("{panic}");
    }
}

/// Runs a plan in `place`, an empty directory.
pub fn run(plan: &Plan, place: &Path, is_traced: bool) -> Outcome {
    let machine = Machine::new(plan.seed, plan.knobs, is_traced);
    let episode = Rc::new(Episode {
        machine,
        model: RefCell::default(),
        directory: place.join("pool"),
        media_directory: place.join("media"),
        socket: place.join("s"),
        next_op: RefCell::new(vec![0; plan.scripts.len()]),
        is_last: Cell::new(false),
        is_owner_to_end: Cell::new(false),
        owner_error: RefCell::new(None),
        failure: RefCell::new(None),
        transfers: RefCell::default(),
        may_quarantine: Cell::new(false),
        media: RefCell::default(),
        has_operator_ended: Cell::new(false),
        nr_owners: Cell::new(0),
        books: RefCell::default(),
        failures: RefCell::default(),
        heard: RefCell::default(),
        owner_pid: Cell::new(0),
        owner_from: Cell::new(0),
        away_at: Cell::new(0),
        does_serve: Cell::new(false),
        is_embedded_busy: Cell::new(false),
        nr_ops: Cell::new(0),
        nr_ops_begun: Cell::new(0),
        holders: RefCell::default(),
        plan: plan.clone(),
    });
    episode.model.borrow_mut().allow_evictions(plan.knobs.evicts);
    episode.books.borrow_mut().allow_evictions(plan.knobs.evicts);
    if let Err(error) = std::fs::create_dir_all(&episode.media_directory) {
        panic!("the real machine has no directory for backings: {error}");
    }
    EPISODE.set(Some(Rc::clone(&episode)));
    let failure = pgmap_os::sim::enter(&episode.machine, || {
        let played = episode.play();
        // Everybody is gone before the machine is.
        let ended = episode.machine.kill_all();
        match (episode.failure.take(), played.and(ended)) {
            (Some(failure), _) => Some(failure),
            (None, Err(Panicked { party, what })) => {
                let what = PANIC.take().unwrap_or(what);
                Some(format!("{party} panicked: {what}"))
            }
            (None, Ok(())) => None,
        }
    });
    EPISODE.set(None);
    Outcome {
        nr_steps: episode.machine.steps(),
        failure,
        trace: episode.machine.take_trace(),
        sum: World::now_ns(&episode.machine) ^ World::random(&episode.machine),
    }
}

impl Episode {
    /// Says that something is wrong; the first word counts.
    pub fn fail(&self, what: impl Into<String>) {
        let what = what.into();
        self.machine.note(|| format!("FAILURE: {what}"));
        self.failure.borrow_mut().get_or_insert(what);
    }

    fn has_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }

    pub fn check(&self, result: Result<(), String>) {
        if let Err(what) = result {
            self.fail(what);
        }
    }

    fn play(&self) -> Result<(), Panicked> {
        let mut fates = self.plan.fates.iter().copied().peekable();
        let mut ends: Vec<(u64, Fate)> = Vec::new();
        let mut owner: Pid = 0;
        let mut clients = vec![0; self.plan.scripts.len()];
        let nr_ops: usize = self.plan.scripts.iter().map(Vec::len).sum();
        let most_steps = (nr_ops as u64 + 10) * MAX_STEPS_PER_OP;
        let mut last_from = None;
        loop {
            let step = self.machine.steps();
            if let Some(what) = self.machine.wrong() {
                self.fail(what);
            }
            if self.has_failed() {
                return Ok(());
            }
            if last_from.is_none() {
                while let Some((_, fate)) = fates.next_if(|&(at, _)| at <= step) {
                    self.befall(fate, owner, &clients, &mut ends)?;
                }
                ends.retain(|&(at, fate)| {
                    if at > step {
                        return true;
                    }
                    match fate {
                        Fate::FullDisk { .. } => self.machine.set_disk_full(false),
                        Fate::BrokenDisk { .. } => self.machine.set_disk_broken(false),
                        Fate::TakeMedium { which, .. } => self.bring_medium(which),
                        _ => self.machine.set_short_of_descriptors(0),
                    }
                    false
                });
            }
            self.complete_transfers(step);
            self.look_at_owner();
            if !self.machine.is_alive(owner) && (self.plan.is_kept || self.nr_owners.get() == 0) {
                owner = self.start_owner();
            }
            let mut is_work_left = false;
            for (number, pid) in clients.iter_mut().enumerate() {
                let is_left = self.next_op.borrow()[number] < self.plan.scripts[number].len();
                is_work_left |= is_left || self.machine.is_alive(*pid);
                let is_own = self.plan.embedded != Some(number as u8);
                if is_own && is_left && !self.machine.is_alive(*pid) && last_from.is_none() {
                    *pid =
                        self.machine.start(&format!("client{number}"), move || client::run(number));
                }
            }
            let is_pool_gone = !self.plan.is_kept && !self.machine.is_alive(owner);
            if last_from.is_none() && (!is_work_left || is_pool_gone || step > most_steps) {
                self.begin_last();
                last_from = Some(step);
            }
            if let Some(from) = last_from {
                let is_owner_busy = self.is_embedded_busy.get() && self.machine.is_alive(owner);
                let is_quiet = clients.iter().all(|&pid| !self.machine.is_alive(pid))
                    && !is_owner_busy
                    && self.transfers.borrow().is_empty();
                if is_quiet {
                    return self.end(owner);
                }
                if step > from + MAX_LAST_STEPS {
                    self.fail(format!("a client does not end: {clients:?}"));
                }
            }
            if !self.machine.turn()? {
                // Nobody waits for anything: time passes for devices only.
                self.machine.pass(1);
            }
        }
    }

    /// Nothing fails from here on, and nobody begins anything.
    fn begin_last(&self) {
        self.machine.note(|| "nothing fails from here on".to_owned());
        self.machine.set_faults(false);
        self.is_last.set(true);
        self.next_op.borrow_mut().iter_mut().for_each(|next| *next = usize::MAX);
    }

    fn start_owner(&self) -> Pid {
        self.is_owner_to_end.set(false);
        self.nr_owners.set(self.nr_owners.get() + 1);
        self.does_serve.set(false);
        self.is_embedded_busy.set(false);
        self.away_at.set(self.machine.steps());
        self.owner_from.set(self.machine.steps());
        let owner = self.machine.start("owner", owner::run);
        self.owner_pid.set(owner);
        owner
    }

    /// Takes note whether the owner serves.
    pub fn look_at_owner(&self) {
        let is_there = self.does_serve.get() && !self.is_owner_to_end.get();
        if !is_there || !self.machine.is_alive(self.owner_pid.get()) {
            self.away_at.set(self.machine.steps());
        }
    }

    /// An operation begins.
    pub fn begin_op(&self) -> Busy {
        self.nr_ops.set(self.nr_ops.get() + 1);
        self.nr_ops_begun.set(self.nr_ops_begun.get() + 1);
        Busy
    }

    /// Nobody has any of these frames any more who had it before `from`.
    pub fn check_let_go(&self, what: &str, from: u64, frames: Range<u64>) {
        for pin in self.holders.borrow().pins.values() {
            let held = pin.frames.iter().find(|frame| frames.contains(frame));
            if let Some(frame) = held.filter(|_| pin.since < from) {
                let (pid, since) = (pin.pid, pin.since);
                self.fail(format!("{what}, and {pid} holds frame {frame} since {since}"));
            }
        }
        let transfers = self.transfers.borrow();
        if let Some(transfer) = transfers.iter().find(|own| own.reaches(&self.machine, &frames)) {
            let (pid, number) = (transfer.pid, transfer.number);
            self.fail(format!("{what}, and a device of {pid} still writes version {number}"));
        }
    }

    /// Whether a device of a process still writes to the pool. Whose it is an owner may not know.
    pub fn is_writing(&self, pid: Pid) -> bool {
        let transfers = self.transfers.borrow();
        let mut own = transfers.iter().filter(|own| pid == 0 || own.pid == pid);
        own.any(|own| own.reaches(&self.machine, &(0..u64::MAX)))
    }

    /// Whether a transfer of a process is under way, if only into memory that is nobody's any more.
    pub fn is_transferring(&self, pid: Pid) -> bool {
        self.transfers.borrow().iter().any(|own| pid == 0 || own.pid == pid)
    }

    /// Whether somebody was killed.
    pub fn was_killed(&self) -> bool {
        self.holders.borrow().was_killed
    }

    fn befall(
        &self,
        fate: Fate,
        owner: Pid,
        clients: &[Pid],
        ends: &mut Vec<(u64, Fate)>,
    ) -> Result<(), Panicked> {
        self.machine.note(|| format!("{fate:?}"));
        let step = self.machine.steps();
        match fate {
            Fate::KillOwner => {
                if self.plan.embedded.is_some() {
                    self.holders.borrow_mut().was_killed = true;
                }
                self.machine.kill(owner)?;
            }
            Fate::KillClient(client) => {
                self.holders.borrow_mut().was_killed = true;
                self.machine.kill(clients[usize::from(client)])?;
            }
            Fate::EndOwner => self.is_owner_to_end.set(true),
            Fate::StopOwner { steps } => self.machine.stop(owner, steps.into()),
            Fate::StopClient { client, steps } => {
                self.machine.stop(clients[usize::from(client)], steps.into());
            }
            Fate::FullDisk { steps } => {
                self.machine.set_disk_full(true);
                ends.push((step + u64::from(steps), fate));
            }
            Fate::BrokenDisk { steps } => {
                self.machine.set_disk_broken(true);
                ends.push((step + u64::from(steps), fate));
            }
            Fate::NoDescriptors { steps } => {
                self.machine.set_short_of_descriptors(owner);
                ends.push((step + u64::from(steps), fate));
            }
            Fate::TakeMedium { which, steps } => {
                if self.plan.embedded.is_some() {
                    self.holders.borrow_mut().was_killed = true;
                }
                self.machine.kill(owner)?;
                self.take_medium(which);
                ends.push((step + u64::from(steps), fate));
            }
            Fate::LosePower => {
                self.machine.lose_power(&[&self.directory, &self.media_directory])?;
                self.transfers.borrow_mut().clear();
                self.books.borrow_mut().forget();
                // What was answered stays, where that is promised.
                if !self.plan.knobs.is_flushed {
                    self.model.borrow_mut().power_failed(self.machine.steps());
                }
                if !self.plan.knobs.is_disk {
                    self.media.borrow_mut().power_failed(self.machine.steps());
                }
            }
        }
        Ok(())
    }

    /// A device writes a file's pages, which lie in one medium, and is ready after `steps` steps.
    pub fn transfer(
        &self,
        number: u64,
        (medium, pages): (Rc<Medium>, &[u64]),
        steps: u32,
        lock: Option<OwnedFd>,
    ) -> Rc<Cell<bool>> {
        let pages = pages
            .iter()
            .enumerate()
            .map(|(at, &page)| (page, at as u64, medium.times_punched(&self.machine, page)))
            .collect();
        let is_done = Rc::new(Cell::new(false));
        let at_step = self.machine.steps() + u64::from(steps);
        let (pid, is_done_there) = (self.machine.running(), Rc::clone(&is_done));
        self.transfers.borrow_mut().push(Transfer {
            number,
            pid,
            medium,
            pages,
            at_step,
            is_done: is_done_there,
            _lock: lock,
        });
        is_done
    }

    /// Somebody who asked at `from` was given pages of the pool, for contents `number`: no device
    /// may still write to them, and none has failed.
    pub fn given(&self, number: u64, pages: &[u64], from: u64) {
        self.check_healthy(pages, from);
        for transfer in self.transfers.borrow().iter().filter(|other| other.number != number) {
            let is_shared = |&&page: &&u64| transfer.reaches(&self.machine, &(page..page + 1));
            if let Some(page) = pages.iter().find(is_shared) {
                self.fail(format!(
                    "page {page} was given out, and a device still writes version {} to it",
                    transfer.number
                ));
            }
        }
    }

    /// None of these pages of the pool is known to have failed before `from`.
    pub fn check_healthy(&self, pages: &[u64], from: u64) {
        let failures = self.failures.borrow();
        if let Some(page) = pages.iter().find(|&&page| failures.is_failed_before(page, from)) {
            self.fail(format!("page {page} has failed, and somebody was given it after {from}"));
        }
    }

    fn complete_transfers(&self, step: u64) {
        let mut transfers = self.transfers.borrow_mut();
        let due = transfers.extract_if(.., |transfer| transfer.at_step <= step);
        for transfer in due.collect::<Vec<_>>() {
            for &(page, at, punched) in &transfer.pages {
                if transfer.medium.times_punched(&self.machine, page) != punched {
                    // The memory that the device has is nobody's any more.
                    continue;
                }
                let mut bytes = [0; 4096];
                fill(&mut bytes, transfer.number, at);
                if let Err(error) = transfer.medium.write(page, &bytes) {
                    self.fail(format!("a device cannot write page {page}: {error}"));
                }
            }
            transfer.is_done.set(true);
            self.machine.note(|| format!("the device has written version {}", transfer.number));
        }
    }

    /// The pool was made: devices reach its memory from now on.
    pub fn made(&self) {
        if self.media.borrow().of(0).is_some() || !self.plan.is_kept {
            return;
        }
        let path = self.directory.join("data");
        let frames = (0, u64::from(self.plan.pool_pages));
        if let Some(medium) = Medium::open(&path, frames, 0) {
            self.media.borrow_mut().know(medium);
        }
    }

    /// What lies in the pool's memory; nothing where devices do not reach it.
    pub fn data_at(&self, offset: u64, len: u64) -> Vec<u8> {
        let Some(medium) = self.media.borrow().of(offset / PAGE) else { return Vec::new() };
        match medium.read(offset, len) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.fail(format!("the pool's memory cannot be read at {offset}: {error}"));
                Vec::new()
            }
        }
    }

    /// Whether the owner may have failed to zero what a truncate cut off, and has to try again.
    pub fn may_leave_tails(&self) -> bool {
        let (knobs, fates) = (self.plan.knobs, &self.plan.fates);
        let breaks_disk =
            |(_, fate): &(_, Fate)| matches!(fate, Fate::FullDisk { .. } | Fate::BrokenDisk { .. });
        knobs.io_error > 0 || knobs.no_space > 0 || fates.iter().any(breaks_disk)
    }

    /// Whether the file system may have had no room.
    pub fn may_lack_disk(&self) -> bool {
        self.plan.fates.iter().any(|(_, fate)| matches!(fate, Fate::FullDisk { .. }))
    }

    pub fn has_devices(&self) -> bool {
        !self.media.borrow().is_empty()
    }

    /// Everybody but the owner is gone: an operator looks at what is left.
    fn end(&self, mut owner: Pid) -> Result<(), Panicked> {
        if !self.plan.is_kept && !self.machine.is_alive(owner) {
            return Ok(());
        }
        let (from, before) = (self.machine.steps(), self.nr_owners.get());
        let operator = self.machine.start("operator", operator::operate);
        while self.machine.is_alive(operator) && !self.has_failed() {
            if !self.machine.is_alive(owner) {
                if !self.plan.is_kept {
                    return Ok(());
                }
                owner = self.start_owner();
            }
            if self.nr_owners.get() > MAX_LAST_OWNERS + before {
                let why = self.owner_error.borrow().clone();
                self.fail(format!("no owner can serve the pool any more: {why:?}"));
            }
            self.look_at_owner();
            let is_late = self.machine.steps() > from + MAX_LAST_STEPS;
            if !self.machine.turn()? || is_late {
                let why = self.owner_error.borrow().clone();
                self.fail(format!("the pool does not come to rest: {why:?}"));
            }
        }
        if !self.has_operator_ended.get() && !self.has_failed() {
            self.fail("the operator ended early");
        }
        Ok(())
    }
}
