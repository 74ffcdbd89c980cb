//! Touches of reserved addresses: answered from another thread, or SIGSEGV as ever.

// UNSAFETY: loads and stores at inaccessible addresses, and forks, are the subject.
#![allow(unsafe_code)]
use pgmap_os::{
    FileAccess, MemoryFile, PageSize, Reservation, TouchAccess, TouchAnswer, TouchWatch, touch,
};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::ptr;
use std::sync::Arc;

const ROLE: &str = "PGMAP_OS_TEST_ROLE";
const PAGE: usize = 4096;
const NR_PAGES: usize = 256;

/// Runs `part` in a process of its own, and says how it ended.
fn in_own_process(test: &str, part: impl FnOnce()) -> ExitStatus {
    if std::env::var_os(ROLE).is_some() {
        part();
        std::process::exit(0);
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let test = crate::test_path(module_path!(), test);
    command.args(["--exact", &test, "--nocapture"]).env(ROLE, "second").status().unwrap()
}

fn load(address: usize) -> u64 {
    // SAFETY: reserved by the test; that nothing may be mapped there is what is tested.
    unsafe { ptr::with_exposed_provenance::<u64>(address).read_volatile() }
}

fn store(address: usize, value: u64) {
    // SAFETY: as in `load`.
    unsafe { ptr::with_exposed_provenance_mut::<u64>(address).write_volatile(value) };
}

struct World {
    file: MemoryFile,
    kept: Reservation,
    watch: TouchWatch,
}

impl World {
    fn new() -> Arc<Self> {
        let len = NR_PAGES * PAGE;
        let file = MemoryFile::anonymous("touch-test", len as u64, PageSize::Base).unwrap();
        let kept = Reservation::anywhere(len, PAGE).unwrap();
        let watch = touch::watch(kept.addresses()).unwrap();
        Arc::new(Self { file, kept, watch })
    }

    fn start(&self) -> usize {
        self.kept.addresses().start
    }

    /// Maps what is touched, as it is touched, until stopped. Page 7 is never mapped.
    fn serve(self: &Arc<Self>) -> std::thread::JoinHandle<usize> {
        let world = Arc::clone(self);
        std::thread::spawn(move || {
            let mut nr = 0;
            while let Some(touch) = world.watch.wait() {
                nr += 1;
                let offset = (touch.address - world.start()) / PAGE * PAGE;
                let access = match touch.access {
                    TouchAccess::Load => FileAccess::ReadOnly,
                    TouchAccess::Store | TouchAccess::Unknown => FileAccess::ReadWrite,
                };
                let answer = if offset == 7 * PAGE {
                    TouchAnswer::Fail
                } else {
                    world.kept.map(offset, &world.file, offset as u64, PAGE, access).unwrap();
                    TouchAnswer::Retry
                };
                world.watch.answer(touch, answer);
            }
            nr
        })
    }
}

#[test]
fn touches_of_many_threads_are_answered_and_done_again() {
    let world = World::new();
    let server = world.serve();
    std::thread::scope(|scope| {
        for thread in 0..100 {
            let world = &world;
            scope.spawn(move || {
                for page in (0..NR_PAGES).filter(|&page| page != 7) {
                    let address = world.start() + page * PAGE + thread * 8;
                    assert_eq!(load(address), 0);
                    store(address, (page + thread) as u64);
                    assert_eq!(load(address), (page + thread) as u64);
                }
            });
        }
    });
    world.watch.stop();
    let nr = server.join().unwrap();
    assert!(
        nr >= (NR_PAGES - 1) * 2 || !cfg!(target_arch = "x86_64"),
        "a load, then a store: {nr}"
    );
}

#[test]
fn a_touch_that_is_refused_is_a_segmentation_fault_there() {
    let status = in_own_process("a_touch_that_is_refused_is_a_segmentation_fault_there", || {
        let world = World::new();
        let _server = world.serve();
        assert_eq!(load(world.start()), 0);
        load(world.start() + 7 * PAGE);
    });
    assert_eq!(status.signal(), Some(libc::SIGSEGV), "{status}");
}

#[test]
fn a_touch_after_the_watch_is_a_segmentation_fault() {
    let status = in_own_process("a_touch_after_the_watch_is_a_segmentation_fault", || {
        let kept = Reservation::anywhere(PAGE, PAGE).unwrap();
        drop(touch::watch(kept.addresses()).unwrap());
        load(kept.addresses().start);
    });
    assert_eq!(status.signal(), Some(libc::SIGSEGV), "{status}");
}

#[test]
fn a_touch_that_waits_when_the_watch_goes_is_a_segmentation_fault() {
    let test = "a_touch_that_waits_when_the_watch_goes_is_a_segmentation_fault";
    let status = in_own_process(test, || {
        let World { kept, watch, .. } = Arc::into_inner(World::new()).unwrap();
        let start = kept.addresses().start;
        let waiting = std::thread::spawn(move || load(start));
        let touch = watch.wait().unwrap();
        assert_eq!(touch.address, start);
        drop(watch);
        let _never = waiting.join();
    });
    assert_eq!(status.signal(), Some(libc::SIGSEGV), "{status}");
}

#[test]
fn the_thread_that_answers_is_not_made_to_wait_for_itself() {
    let status = in_own_process("the_thread_that_answers_is_not_made_to_wait_for_itself", || {
        let world = World::new();
        let toucher = Arc::clone(&world);
        std::thread::spawn(move || load(toucher.start()));
        let touch = world.watch.wait().unwrap();
        load(world.start() + PAGE);
        world.watch.answer(touch, TouchAnswer::Fail);
    });
    assert_eq!(status.signal(), Some(libc::SIGSEGV), "{status}");
}

#[test]
fn a_forked_child_waits_for_nobody() {
    let status = in_own_process("a_forked_child_waits_for_nobody", || {
        let world = World::new();
        let server = world.serve();
        assert_eq!(load(world.start()), 0);
        // SAFETY: the child touches an address and nothing else.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // The page that the parent has mapped, and one that it has not.
            load(world.start());
            load(world.start() + PAGE);
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: waits for our own child; the status lives on this stack.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert!(libc::WIFSIGNALED(status), "the child goes on: {status:#x}");
        assert_eq!(libc::WTERMSIG(status), libc::SIGSEGV);
        assert_eq!(load(world.start() + PAGE), 0, "the parent is served as before");
        world.watch.stop();
        assert_eq!(server.join().unwrap(), 2);
    });
    assert!(status.success(), "{status}");
}
