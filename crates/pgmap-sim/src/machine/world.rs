//! What the machine answers when the code below asks it.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use pgmap_os::Ready;
use pgmap_os::sim::{Happening, Naming, World};

use super::{Machine, Run, Wait};

impl World for Machine {
    #[inline]
    fn step(&self, what: &'static str) {
        let step = self.nr_steps.get() + 1;
        self.nr_steps.set(step);
        self.now_ns.set(self.now_ns.get() + u64::from(self.knobs.get().step_ns));
        if self.is_traced && what != "word" {
            self.note(|| format!("  {what}"));
        }
        if step >= self.until_step.get() && !self.is_ended() {
            self.suspend(None);
        }
    }

    fn fault(&self, name: &'static str) -> Option<i32> {
        if !self.has_faults.get() || self.current.get() == 0 {
            return None;
        }
        let knobs = self.knobs.get();
        let takes_room =
            matches!(name, "fallocate" | "pwrite" | "open" | "mkdir" | "rename" | "bind");
        let takes_descriptor =
            matches!(name, "open" | "dup" | "memfd_create" | "accept" | "connect");
        let errno = match name {
            _ if takes_room && self.is_disk_full.get() && name != "open" => libc::ENOSPC,
            "pwrite" | "fdatasync" | "pread" | "fallocate" if self.is_disk_broken.get() => {
                libc::EIO
            }
            _ if takes_descriptor && self.short_of_descriptors.get() == self.current_pid.get() => {
                libc::EMFILE
            }
            "pwrite" | "fallocate" if self.happens(knobs.no_space) => libc::ENOSPC,
            "pwrite" | "fdatasync" | "pread" if self.happens(knobs.io_error) => libc::EIO,
            "sendmsg" if self.happens(knobs.full_socket) => libc::EAGAIN,
            "mmap" | "clone" if self.happens(knobs.no_memory) => libc::ENOMEM,
            "membarrier" if self.happens(knobs.no_membarrier) => libc::EPERM,
            _ => return None,
        };
        self.note(|| format!("  {name} fails with errno {errno}"));
        self.faults.borrow_mut().push((self.nr_steps.get(), self.current_pid.get(), errno));
        Some(errno)
    }

    fn is_ended(&self) -> bool {
        self.is_ended.get() || std::thread::panicking()
    }

    fn now_ns(&self) -> u64 {
        if self.is_ended() {
            // Whoever unwinds waits for nothing any more.
            self.now_ns.set(self.now_ns.get() + 1_000_000);
        }
        self.now_ns.get()
    }

    fn wait(&self, until_ns: Option<u64>, what: Happening) {
        let seen = match what {
            Happening::Lock | Happening::Condition => {
                let books = self.books.borrow();
                let own = books.processes.get(&self.current_pid.get());
                own.map_or(0, |own| own.happened(what))
            }
            Happening::Descriptor => self.nr_descriptor_events.get(),
        };
        self.nr_steps.set(self.nr_steps.get() + 1);
        self.suspend(Some(Wait { until_ns, what, seen }));
    }

    fn happened(&self, what: Happening) {
        match what {
            Happening::Lock | Happening::Condition => {
                let mut books = self.books.borrow_mut();
                if let Some(process) = books.processes.get_mut(&self.current_pid.get()) {
                    match what {
                        Happening::Lock => process.nr_lock_events += 1,
                        _ => process.nr_condition_events += 1,
                    }
                }
            }
            Happening::Descriptor => {
                self.nr_descriptor_events.set(self.nr_descriptor_events.get() + 1);
            }
        }
    }

    fn locked(&self, is_taken: bool) {
        if let Some(thread) = self.books.borrow_mut().threads.get_mut(&self.current.get()) {
            thread.nr_locks = match is_taken {
                true => thread.nr_locks + 1,
                false => thread.nr_locks.saturating_sub(1),
            };
        }
    }

    fn pid(&self) -> i32 {
        self.current_pid.get()
    }

    fn random(&self) -> u64 {
        self.chance.borrow_mut().u64(..)
    }

    fn spawn(&self, run: Run) -> u64 {
        self.start_thread(self.current_pid.get(), run)
    }

    fn thread(&self) -> u64 {
        self.current.get()
    }

    fn is_over(&self, thread: u64) -> bool {
        !self.books.borrow().threads.contains_key(&thread)
    }

    fn started_at(&self, pid: i32) -> Option<u64> {
        // No number is given twice.
        self.is_alive(pid).then_some(pid.unsigned_abs().into())
    }

    fn pidfd(&self, pid: i32) -> Option<OwnedFd> {
        let books = self.books.borrow();
        books.processes.get(&pid)?.pidfd.as_ref()?.try_clone().ok()
    }

    fn listens(&self, path: &Path) {
        self.books.borrow_mut().listeners.insert(path.to_owned(), self.current_pid.get());
    }

    fn listener(&self, path: &Path) -> Option<i32> {
        self.books.borrow().listeners.get(path).copied()
    }

    fn arrange(&self, ready: &mut Vec<Ready>) {
        if ready.len() > 1 {
            self.chance.borrow_mut().shuffle(ready);
            let knobs = self.knobs.get();
            if self.happens(knobs.late_event) {
                let kept = 1 + self.below(ready.len() as u64 - 1) as usize;
                ready.truncate(kept);
            }
        }
    }

    fn is_ring_lost(&self) -> bool {
        self.has_faults.get() && self.happens(self.knobs.get().lost_ring)
    }

    fn deliveries(&self) -> usize {
        let knobs = self.knobs.get();
        match self.has_faults.get() {
            true if self.happens(knobs.lost_event) => 0,
            true if self.happens(knobs.doubled_event) => 2,
            _ => 1,
        }
    }

    fn has_membarrier(&self) -> bool {
        let books = self.books.borrow();
        books.processes.get(&self.current_pid.get()).is_none_or(|process| process.has_membarrier)
    }

    fn synced(&self, file: BorrowedFd<'_>) {
        let Ok(clone) = file.as_fd().try_clone_to_owned() else { return };
        // What cannot be read was not synced.
        let _ = self.note_synced(&std::fs::File::from(clone));
    }

    fn is_disk(&self) -> bool {
        self.knobs.get().is_disk
    }

    fn naming(&self, what: Naming<'_>) {
        if self.knobs.get().is_disk && !self.is_ended() {
            self.names.borrow_mut().note(what);
        }
    }

    fn punched(&self, file: BorrowedFd<'_>, range: Range<u64>) {
        let Ok(stat) = rustix::fs::fstat(file) else { return };
        let mut books = self.books.borrow_mut();
        for page in range.start / 4096..range.end / 4096 {
            *books.punched.entry((stat.st_ino, page)).or_default() += 1;
        }
    }

    fn can_punch(&self) -> bool {
        !self.knobs.get().is_attached
    }

    fn failed(&self, what: &str) {
        self.wrong.borrow_mut().get_or_insert_with(|| what.to_owned());
    }

    fn changed(&self, what: &dyn Fn() -> String) {
        self.note(|| format!("  {}", what()));
    }

    fn boot_id(&self) -> u128 {
        self.boot.get()
    }
}
