//! The simulated machine: processes and threads, the clock, what fails, and who runs next.
//!
//! Threads are coroutines. One runs at a time, until the step at which another is to run; which one
//! and after how many steps is drawn from the seed. Every load and store of shared memory and every
//! system call is a step. A process that is killed unwinds from the step at which it stands; what
//! its destructors do reaches nobody, as [`World::is_ended`] tells the layer below.

// UNSAFETY: a coroutine reaches its machine, and its own way out, by pointers.
#![allow(unsafe_code)]

mod names;
mod power;
mod world;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use pgmap::ThreadLanes;
use pgmap_os::sim::{Ended, Happening};

use self::names::Names;
use crate::knobs::Knobs;

/// Bytes of a thread's stack: the owner's message buffers are on the heap.
const STACK_BYTES: usize = 2 << 20;
/// What the trace keeps.
const MAX_TRACE: usize = 20_000;
/// First process number.
const FIRST_PID: i32 = 1_000;

/// A process of the simulated machine.
pub type Pid = i32;
type Run = Box<dyn FnOnce()>;
type Task = Coroutine<(), (), (), DefaultStack>;

struct Thread {
    pid: Pid,
    task: Option<Task>,
    /// Set once it has started.
    yielder: *const Yielder<(), ()>,
    lanes: ThreadLanes,
    waits: Option<Wait>,
    nr_locks: u32,
}

#[derive(Clone, Copy)]
struct Wait {
    until_ns: Option<u64>,
    what: Happening,
    /// How much had happened when the wait began.
    seen: u64,
}

struct Process {
    name: String,
    /// Threads that are not over.
    threads: Vec<u64>,
    /// Absent once the process has ended.
    pidfd: Option<OwnedFd>,
    /// Until which step it does not run.
    stopped_until: u64,
    nr_lock_events: u64,
    nr_condition_events: u64,
    is_ending: bool,
    has_membarrier: bool,
}

impl Process {
    /// How often something happened that its threads wait for.
    const fn happened(&self, what: Happening) -> u64 {
        match what {
            Happening::Lock => self.nr_lock_events,
            _ => self.nr_condition_events,
        }
    }
}

/// What the machine keeps in its books.
#[derive(Default)]
struct Books {
    threads: BTreeMap<u64, Thread>,
    processes: BTreeMap<Pid, Process>,
    listeners: BTreeMap<PathBuf, Pid>,
    /// Contents of files when they were last synced, by inode.
    durable: BTreeMap<u64, Vec<u8>>,
    /// How often the memory behind each page of a file, by inode, was given back.
    punched: BTreeMap<(u64, u64), u64>,
    stacks: Vec<DefaultStack>,
    trace: VecDeque<String>,
}

/// The machine.
pub struct Machine {
    books: RefCell<Books>,
    chance: RefCell<fastrand::Rng>,
    knobs: Cell<Knobs>,
    current: Cell<u64>,
    current_pid: Cell<Pid>,
    is_ended: Cell<bool>,
    nr_steps: Cell<u64>,
    /// The step at which the running thread lets another run.
    until_step: Cell<u64>,
    now_ns: Cell<u64>,
    nr_descriptor_events: Cell<u64>,
    next_thread: Cell<u64>,
    next_pid: Cell<Pid>,
    boot: Cell<u128>,
    has_faults: Cell<bool>,
    is_disk_full: Cell<bool>,
    is_disk_broken: Cell<bool>,
    short_of_descriptors: Cell<Pid>,
    is_traced: bool,
    wrong: RefCell<Option<String>>,
    names: RefCell<Names>,
    /// System calls that failed because a plan says so: at which step, of whom, with which errno.
    faults: RefCell<Vec<(u64, Pid, i32)>>,
}

/// Why a run ended early.
#[derive(Debug)]
pub struct Panicked {
    /// Which party.
    pub party: String,
    /// What it said.
    pub what: String,
}

impl Machine {
    pub fn new(seed: u64, knobs: Knobs, is_traced: bool) -> Self {
        let mut chance = fastrand::Rng::with_seed(seed);
        let boot = u128::from(chance.u64(1..));
        Self {
            books: RefCell::default(),
            chance: RefCell::new(chance),
            knobs: Cell::new(knobs),
            current: Cell::new(0),
            current_pid: Cell::new(0),
            is_ended: Cell::new(false),
            nr_steps: Cell::new(0),
            until_step: Cell::new(0),
            now_ns: Cell::new(1_000_000_000),
            nr_descriptor_events: Cell::new(0),
            next_thread: Cell::new(1),
            next_pid: Cell::new(FIRST_PID),
            boot: Cell::new(boot),
            has_faults: Cell::new(true),
            is_disk_full: Cell::new(false),
            is_disk_broken: Cell::new(false),
            short_of_descriptors: Cell::new(0),
            is_traced,
            wrong: RefCell::new(None),
            names: RefCell::default(),
            faults: RefCell::default(),
        }
    }

    /// What a party found wrong in itself.
    pub fn wrong(&self) -> Option<String> {
        self.wrong.borrow().clone()
    }

    pub fn steps(&self) -> u64 {
        self.nr_steps.get()
    }

    /// Whether a call of `pid` failed with one of `errnos` at step `from` or later.
    pub fn has_failed_since(&self, from: u64, pid: Pid, errnos: &[i32]) -> bool {
        let faults = self.faults.borrow();
        let late = faults.iter().rev().take_while(|&&(at, ..)| at >= from);
        late.into_iter().any(|&(_, of, errno)| of == pid && errnos.contains(&errno))
    }

    /// Whether any call ever failed.
    pub fn has_any_failed(&self) -> bool {
        !self.faults.borrow().is_empty()
    }

    /// Until which step a process is or was stopped.
    pub fn stopped_until(&self, pid: Pid) -> u64 {
        self.books.borrow().processes.get(&pid).map_or(0, |own| own.stopped_until)
    }

    /// The process that runs.
    pub fn running(&self) -> Pid {
        self.current_pid.get()
    }

    /// The time in nanoseconds.
    pub fn time_ns(&self) -> u64 {
        self.now_ns.get()
    }

    pub fn below(&self, limit: u64) -> u64 {
        self.chance.borrow_mut().u64(0..limit.max(1))
    }

    /// True `rate` times in 65,536.
    fn happens(&self, rate: u32) -> bool {
        rate != 0 && self.chance.borrow_mut().u32(0..65_536) < rate
    }

    pub fn set_faults(&self, has_faults: bool) {
        self.has_faults.set(has_faults);
        if !has_faults {
            self.is_disk_full.set(false);
            self.is_disk_broken.set(false);
            self.short_of_descriptors.set(0);
            for process in self.books.borrow_mut().processes.values_mut() {
                process.stopped_until = process.stopped_until.min(self.nr_steps.get());
            }
        }
    }

    pub fn set_disk_full(&self, is_full: bool) {
        self.is_disk_full.set(is_full);
    }

    pub fn set_disk_broken(&self, is_broken: bool) {
        self.is_disk_broken.set(is_broken);
    }

    pub fn set_short_of_descriptors(&self, pid: Pid) {
        self.short_of_descriptors.set(pid);
    }

    /// How often the memory behind a page of a file was given back.
    pub fn times_punched(&self, inode: u64, page: u64) -> u64 {
        self.books.borrow().punched.get(&(inode, page)).copied().unwrap_or(0)
    }

    /// Notes something for people.
    pub fn note(&self, what: impl FnOnce() -> String) {
        if !self.is_traced {
            return;
        }
        let mut books = self.books.borrow_mut();
        let pid = self.current_pid.get();
        let who = books.processes.get(&pid).map_or("machine", |process| process.name.as_str());
        let line = format!(
            "{:>8} {:>12.3} ms {who:<10} t{:<3} {}",
            self.nr_steps.get(),
            self.now_ns.get() as f64 / 1e6,
            self.current.get(),
            what()
        );
        if books.trace.len() == MAX_TRACE {
            books.trace.pop_front();
        }
        books.trace.push_back(line);
    }

    pub fn take_trace(&self) -> Vec<String> {
        std::mem::take(&mut self.books.borrow_mut().trace).into()
    }

    /// Starts a process.
    pub fn start(&self, name: &str, run: impl FnOnce() + 'static) -> Pid {
        let pid = self.next_pid.get();
        self.next_pid.set(pid + 1);
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let pidfd = match rustix::event::eventfd(0, flags) {
            Ok(pidfd) => pidfd,
            Err(errno) => panic!("the real machine has no descriptor left: {errno}"),
        };
        let has_membarrier = !self.happens(self.knobs.get().no_membarrier);
        let process = Process {
            name: name.to_owned(),
            threads: Vec::new(),
            pidfd: Some(pidfd),
            stopped_until: 0,
            nr_lock_events: 0,
            nr_condition_events: 0,
            is_ending: false,
            has_membarrier,
        };
        self.books.borrow_mut().processes.insert(pid, process);
        self.start_thread(pid, Box::new(run));
        self.note(|| format!("starts {name} (pid {pid})"));
        pid
    }

    fn start_thread(&self, pid: Pid, run: Run) -> u64 {
        let number = self.next_thread.get();
        self.next_thread.set(number + 1);
        let mut books = self.books.borrow_mut();
        let stack = books.stacks.pop().unwrap_or_else(|| match DefaultStack::new(STACK_BYTES) {
            Ok(stack) => stack,
            Err(error) => panic!("the real machine has no memory for a stack: {error}"),
        });
        let machine: *const Self = self;
        let task = Task::with_stack(stack, move |yielder, ()| {
            // SAFETY: the machine outlives its threads: `Drop` ends them.
            let machine = unsafe { &*machine };
            if let Some(thread) = machine.books.borrow_mut().threads.get_mut(&number) {
                thread.yielder = yielder;
            }
            if machine.is_current_ending() {
                machine.is_ended.set(true);
                drop(run);
            } else {
                run();
                // The thread's end gives its lanes back.
                ThreadLanes::end();
            }
        });
        let thread = Thread {
            pid,
            task: Some(task),
            yielder: std::ptr::null(),
            lanes: ThreadLanes::default(),
            waits: None,
            nr_locks: 0,
        };
        books.threads.insert(number, thread);
        if let Some(process) = books.processes.get_mut(&pid) {
            process.threads.push(number);
        }
        number
    }

    pub fn is_alive(&self, pid: Pid) -> bool {
        self.books.borrow().processes.get(&pid).is_some_and(|process| !process.threads.is_empty())
    }

    /// SIGSTOP for so many steps.
    pub fn stop(&self, pid: Pid, nr_steps: u64) {
        let until = self.nr_steps.get() + nr_steps;
        if let Some(process) = self.books.borrow_mut().processes.get_mut(&pid) {
            process.stopped_until = until;
        }
        self.note(|| format!("SIGSTOP to {pid} for {nr_steps} steps"));
    }

    /// SIGKILL: every thread of the process ends where it stands.
    pub fn kill(&self, pid: Pid) -> Result<(), Panicked> {
        self.note(|| format!("SIGKILL to {pid}"));
        let threads = {
            let mut books = self.books.borrow_mut();
            let Some(process) = books.processes.get_mut(&pid) else { return Ok(()) };
            process.is_ending = true;
            let mut threads = process.threads.clone();
            // Destructors take locks: who has one goes first, after those that have what it waits
            // for.
            threads.sort_by_key(|number| match books.threads.get(number) {
                Some(thread) if thread.nr_locks > 0 => {
                    u32::from(thread.waits.is_some_and(|wait| wait.what == Happening::Lock))
                }
                _ => 2,
            });
            threads
        };
        for number in threads {
            while self.books.borrow().threads.contains_key(&number) {
                self.resume(number)?;
            }
        }
        Ok(())
    }

    pub fn kill_all(&self) -> Result<(), Panicked> {
        let pids: Vec<Pid> = self.books.borrow().processes.keys().copied().collect();
        pids.into_iter().try_for_each(|pid| self.kill(pid))
    }

    /// Lets steps pass in which nobody does anything.
    pub fn pass(&self, nr_steps: u64) {
        self.nr_steps.set(self.nr_steps.get() + nr_steps);
        self.now_ns.set(self.now_ns.get() + 1_000_000);
    }

    fn is_current_ending(&self) -> bool {
        let books = self.books.borrow();
        books.processes.get(&self.current_pid.get()).is_some_and(|process| process.is_ending)
    }

    /// Lets a thread run to its next switch.
    fn resume(&self, number: u64) -> Result<(), Panicked> {
        let (mut task, mut lanes, pid) = {
            let mut books = self.books.borrow_mut();
            let Some(thread) = books.threads.get_mut(&number) else { return Ok(()) };
            thread.waits = None;
            let Some(task) = thread.task.take() else { return Ok(()) };
            (task, std::mem::take(&mut thread.lanes), thread.pid)
        };
        self.current.set(number);
        self.current_pid.set(pid);
        let knobs = self.knobs.get();
        let turn = 1 + self.below(u64::from(knobs.longest_turn));
        self.until_step.set(self.nr_steps.get() + turn);
        lanes.exchange();
        let ended = catch_unwind(AssertUnwindSafe(|| task.resume(())));
        let is_over = !matches!(ended, Ok(CoroutineResult::Yield(())));
        if is_over {
            // What a thread that was ended has left is nobody's.
            self.is_ended.set(true);
            ThreadLanes::end();
        }
        lanes.exchange();
        self.is_ended.set(false);
        self.current.set(0);
        self.current_pid.set(0);
        {
            let mut books = self.books.borrow_mut();
            if is_over {
                books.stacks.push(task.into_stack());
                self.forget(&mut books, number, pid);
            } else if let Some(thread) = books.threads.get_mut(&number) {
                thread.task = Some(task);
                thread.lanes = lanes;
            }
        }
        match ended {
            Err(payload) if !payload.is::<Ended>() => {
                let party = self.books.borrow().processes[&pid].name.clone();
                Err(Panicked { party, what: said(&*payload) })
            }
            _ => Ok(()),
        }
    }

    fn forget(&self, books: &mut Books, number: u64, pid: Pid) {
        books.threads.remove(&number);
        if let Some(process) = books.processes.get_mut(&pid) {
            process.threads.retain(|&thread| thread != number);
            process.nr_lock_events += 1;
            if process.threads.is_empty()
                && let Some(pidfd) = process.pidfd.take()
            {
                // Readable from now on, as a pidfd is.
                let _ = rustix::io::write(&pidfd, &1u64.to_ne_bytes());
            }
        }
        self.nr_descriptor_events.set(self.nr_descriptor_events.get() + 1);
    }

    /// Runs one thread for one turn. False if none can run, now or ever.
    pub fn turn(&self) -> Result<bool, Panicked> {
        let Some(number) = self.choose() else { return Ok(false) };
        self.resume(number)?;
        Ok(true)
    }

    fn choose(&self) -> Option<u64> {
        loop {
            let (mut ready, mut next_ns, mut next_step) = (Vec::new(), u64::MAX, u64::MAX);
            let books = self.books.borrow();
            for (&number, thread) in &books.threads {
                let process = &books.processes[&thread.pid];
                if process.stopped_until > self.nr_steps.get() {
                    next_step = next_step.min(process.stopped_until);
                    continue;
                }
                match thread.waits {
                    None => ready.push(number),
                    Some(wait) => {
                        let happened = match wait.what {
                            Happening::Lock | Happening::Condition => process.happened(wait.what),
                            Happening::Descriptor => self.nr_descriptor_events.get(),
                        };
                        if happened != wait.seen
                            || wait.until_ns.is_some_and(|until| until <= self.now_ns.get())
                        {
                            ready.push(number);
                        } else {
                            next_ns = next_ns.min(wait.until_ns.unwrap_or(u64::MAX));
                        }
                    }
                }
            }
            drop(books);
            if !ready.is_empty() {
                return Some(ready[self.below(ready.len() as u64) as usize]);
            }
            if next_step != u64::MAX {
                self.nr_steps.set(next_step);
            } else if next_ns != u64::MAX {
                self.now_ns.set(next_ns);
                self.nr_steps.set(self.nr_steps.get() + 1);
            } else {
                return None;
            }
        }
    }

    fn suspend(&self, waits: Option<Wait>) {
        let yielder = {
            let mut books = self.books.borrow_mut();
            let Some(thread) = books.threads.get_mut(&self.current.get()) else { return };
            thread.waits = waits;
            thread.yielder
        };
        if yielder.is_null() {
            return;
        }
        // SAFETY: the yielder of the running coroutine, which lies on the stack that runs now.
        unsafe { (*yielder).suspend(()) };
        if self.is_current_ending() {
            self.is_ended.set(true);
            resume_unwind(Box::new(Ended));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.kill_all();
    }
}

fn said(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| payload.downcast_ref::<&str>().map(|&text| text.to_owned()))
        .unwrap_or_else(|| "a panic without words".to_owned())
}
