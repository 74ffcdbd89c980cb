//! What the SIGBUS handler does besides saving copies: tells, passes on, kills as usual.
//!
//! A handler belongs to a whole process, so each test that needs one of its own starts this very
//! program again, for that one test, with `ROLE` set, and looks at how it ends.

// UNSAFETY: signal handlers, signals with a forged cause, and forks are the subject.
#![allow(unsafe_code)]
#![cfg(target_arch = "x86_64")]

use pgmap_os::sigbus::{self, FailureKind, MemoryFailure};
use pgmap_os::{
    CopyError, FaultCause, Interest, MemoryFault, MemoryFile, PageSize, Poller, ReadMapping,
    WriteMapping,
};
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

const ROLE: &str = "PGMAP_OS_TEST_ROLE";
const PAGE: u64 = 4096;
const BUS_ADRERR: c_int = 2;
const BUS_MCEERR_AR: c_int = 4;
const BUS_MCEERR_AO: c_int = 5;

/// What the kernel passes to a handler of SIGBUS (asm-generic/siginfo.h, 64-bit).
#[repr(C)]
#[derive(Clone, Copy)]
struct BusInfo {
    signal: c_int,
    errno: c_int,
    code: c_int,
    padding: c_int,
    address: usize,
    address_lsb: i16,
    rest: [u8; 102],
}

type Handler = extern "C" fn(c_int, *mut BusInfo, *mut c_void);

/// Runs `part` in a process of its own, which runs nothing else and has no other handler of ours.
fn in_own_process(test: &str, part: impl FnOnce()) -> ExitStatus {
    if std::env::var_os(ROLE).is_some() {
        part();
        std::process::exit(0);
    }
    start_again(test, "second")
}

fn start_again(test: &str, role: &str) -> ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let test = crate::test_path(module_path!(), test);
    command.args(["--exact", &test, "--nocapture"]).env(ROLE, role).status().unwrap()
}

/// Installs `handler` (or SIG_DFL, SIG_IGN) and returns what was there before.
fn set_handler(handler: usize, flags: c_int) -> usize {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a field of a zeroed place.
    unsafe { (*action.as_mut_ptr()).sa_sigaction = handler };
    // SAFETY: as above.
    unsafe { (*action.as_mut_ptr()).sa_flags = flags };
    let mut before = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: both point to a whole struct, of which all zero is a valid value.
    let set = unsafe { libc::sigaction(libc::SIGBUS, action.as_ptr(), before.as_mut_ptr()) };
    assert_eq!(set, 0);
    // SAFETY: zeroed, then filled in.
    unsafe { before.assume_init() }.sa_sigaction
}

fn set_info_handler(handler: Handler) -> usize {
    set_handler(handler as *const () as usize, libc::SA_SIGINFO | libc::SA_ONSTACK)
}

/// Sends SIGBUS to the calling thread with a cause of our choice, as the kernel would.
fn send_to_self(code: c_int, address: usize, address_lsb: i16) {
    let signal = libc::SIGBUS;
    let info = BusInfo { signal, errno: 0, code, padding: 0, address, address_lsb, rest: [0; 102] };
    // SAFETY: no precondition.
    let pid = unsafe { libc::getpid() };
    // SAFETY: no precondition.
    let tid = unsafe { libc::gettid() };
    let call = libc::SYS_rt_tgsigqueueinfo;
    // SAFETY: `info` is as long as a siginfo_t, and lives until the call returns.
    let sent = unsafe { libc::syscall(call, pid, tid, signal, &raw const info) };
    assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
}

fn mapped(len: u64) -> (MemoryFile, ReadMapping, WriteMapping) {
    let file = MemoryFile::anonymous("sigbus-handler-test", len, PageSize::Base).unwrap();
    let reader = ReadMapping::map(&file, 0, len).unwrap();
    let writer = WriteMapping::map(&file, 0, len).unwrap();
    (file, reader, writer)
}

/// Reads a byte as anybody might who does not use our copies.
fn touch(mapping: &ReadMapping, offset: u64) -> u8 {
    // SAFETY: inside the mapping; that nothing may lie behind it is what is tested.
    unsafe { mapping.as_ptr().wrapping_add(offset as usize).read_volatile() }
}

fn kill_self() {
    // SAFETY: no precondition.
    assert_eq!(unsafe { libc::raise(libc::SIGBUS) }, 0);
}

static NR_CALLS: AtomicUsize = AtomicUsize::new(0);
static LAST_CODE: AtomicI32 = AtomicI32::new(0);
static LAST_ADDRESS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn record(_signal: c_int, info: *mut BusInfo, _context: *mut c_void) {
    NR_CALLS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the kernel passes a valid siginfo_t.
    let info = unsafe { info.read() };
    LAST_CODE.store(info.code, Ordering::Relaxed);
    LAST_ADDRESS.store(info.address, Ordering::Relaxed);
}

fn recorded() -> (usize, c_int, usize) {
    let (code, address) = (LAST_CODE.load(Ordering::Relaxed), LAST_ADDRESS.load(Ordering::Relaxed));
    (NR_CALLS.load(Ordering::Relaxed), code, address)
}

#[test]
fn early_notice_reaches_the_watch_by_its_bell() {
    let (_file, reader, _writer) = mapped(8 * PAGE);
    let failures = sigbus::watch(reader.addresses()).unwrap();
    let poller = Poller::new().unwrap();
    poller.add(&failures, 5, Interest::Read).unwrap();
    send_to_self(BUS_MCEERR_AO, reader.addresses().start + 3 * PAGE as usize, 12);
    let mut ready = Vec::new();
    poller.wait(Some(std::time::Duration::ZERO), &mut ready).unwrap();
    assert_eq!(ready.first().map(|ready| (ready.token, ready.is_readable)), Some((5, true)));
    assert!(failures.clear_bell().unwrap());
    let kind = FailureKind::ActionOptional;
    let failure = MemoryFailure { offset_bytes: 3 * PAGE, len_bytes: PAGE, kind };
    assert_eq!((failures.next(), failures.next()), (Some(failure), None));
    assert!(!failures.clear_bell().unwrap());
    poller.remove(&failures).unwrap();
}

#[test]
fn one_watch_too_many_is_refused_until_another_goes() {
    let status = in_own_process("one_watch_too_many_is_refused_until_another_goes", || {
        let (_file, reader, _writer) = mapped(PAGE);
        let mut watches: Vec<_> =
            (0..sigbus::MAX_WATCHES).map(|_| sigbus::watch(reader.addresses()).unwrap()).collect();
        let error = sigbus::watch(reader.addresses()).unwrap_err();
        assert_eq!(error.errno(), libc::ENOSPC, "{error}");
        send_to_self(BUS_MCEERR_AO, reader.addresses().start, 12);
        assert!(watches.iter().all(|watch| watch.next().is_some()));
        send_to_self(BUS_MCEERR_AO, reader.addresses().start, 12);
        watches.pop();
        let last = sigbus::watch(reader.addresses()).unwrap();
        assert_eq!(last.next(), None, "a slot that is used again is empty");
    });
    assert_eq!(status.code(), Some(0), "{status}");
}

#[test]
fn handler_leaves_errno_alone() {
    let (_file, reader, _writer) = mapped(PAGE);
    let failures = sigbus::watch(reader.addresses()).unwrap();
    // A bell at its limit: the handler's write fails with EAGAIN.
    rustix::io::write(&failures, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    // SAFETY: no precondition.
    let errno_place = unsafe { libc::__errno_location() };
    // SAFETY: the calling thread's errno.
    unsafe { errno_place.write(libc::EXDEV) };
    send_to_self(BUS_MCEERR_AO, reader.addresses().start, 12);
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EXDEV));
    assert!(failures.next().is_some());
}

#[test]
fn what_is_not_ours_goes_to_the_previous_handler() {
    let status = in_own_process("what_is_not_ours_goes_to_the_previous_handler", || {
        set_info_handler(record);
        let (file, reader, _writer) = mapped(2 * PAGE);
        let start = reader.addresses().start;
        let failures = sigbus::watch(reader.addresses()).unwrap();
        // Ours: a copy, and a notice that a watch takes.
        file.set_len(PAGE).unwrap();
        reader.copy_out(PAGE, &mut [0; 64]).unwrap_err();
        send_to_self(BUS_MCEERR_AO, start, 12);
        assert_eq!(recorded().0, 0);
        assert!(failures.next().is_some());
        // A notice that no watch takes, and a plain signal.
        send_to_self(BUS_MCEERR_AO, 4096, 12);
        assert_eq!(recorded(), (1, BUS_MCEERR_AO, 4096));
        kill_self();
        assert_eq!((recorded().0, recorded().1), (2, libc::SI_TKILL));
        // A thread that touched broken memory: told, but nobody can help it but the previous one.
        send_to_self(BUS_MCEERR_AR, start + 1, 12);
        assert_eq!(recorded(), (3, BUS_MCEERR_AR, start + 1));
        assert_eq!(failures.next().map(|failure| failure.kind), Some(FailureKind::ActionRequired));
        // Copies are still saved.
        reader.copy_out(PAGE, &mut [0; 64]).unwrap_err();
    });
    assert_eq!(status.code(), Some(0), "{status}");
}

#[test]
fn previous_handler_of_one_argument_is_called_too() {
    extern "C" fn count(signal: c_int) {
        assert_eq!(signal, libc::SIGBUS);
        NR_CALLS.fetch_add(1, Ordering::Relaxed);
    }
    let status = in_own_process("previous_handler_of_one_argument_is_called_too", || {
        set_handler(count as *const () as usize, 0);
        sigbus::install().unwrap();
        kill_self();
        assert_eq!(recorded().0, 1);
    });
    assert_eq!(status.code(), Some(0), "{status}");
}

#[test]
fn previous_handler_may_end_the_process_and_sees_the_true_cause() {
    extern "C" fn exit_with_3(_signal: c_int, info: *mut BusInfo, _context: *mut c_void) {
        // SAFETY: the kernel passes a valid siginfo_t.
        let code = unsafe { (*info).code };
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(if code == BUS_ADRERR { 3 } else { 4 }) };
    }
    let test = "previous_handler_may_end_the_process_and_sees_the_true_cause";
    let status = in_own_process(test, || {
        set_info_handler(exit_with_3);
        let (file, reader, _writer) = mapped(2 * PAGE);
        file.set_len(PAGE).unwrap();
        touch(&reader, PAGE);
    });
    assert_eq!(status.code(), Some(3), "{status}");
}

/// With the handler of the standard library as the previous one, in a forked child as well.
#[test]
fn fault_outside_the_copies_still_kills_by_sigbus() {
    let (file, reader, _writer) = mapped(2 * PAGE);
    file.set_len(PAGE).unwrap();
    reader.copy_out(PAGE, &mut [0; 64]).unwrap_err();
    // SAFETY: the child only copies, reads and leaves.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        let is_saved = reader.copy_out(PAGE, &mut [0; 64]).is_err();
        let byte = if is_saved { touch(&reader, PAGE) } else { 0 };
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(byte.into()) };
    }
    let mut status = 0;
    // SAFETY: waits for our own child; the status lives on this stack.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(ExitStatus::from_raw(status).signal(), Some(libc::SIGBUS));
}

#[test]
fn default_before_us_kills_as_usual() {
    if let Some(role) = std::env::var_os(ROLE) {
        set_handler(libc::SIG_DFL, 0);
        let (file, reader, _writer) = mapped(2 * PAGE);
        file.set_len(PAGE).unwrap();
        reader.copy_out(PAGE, &mut [0; 64]).unwrap_err();
        match role.to_str() {
            Some("fault") => drop(touch(&reader, PAGE)),
            Some("notice") => send_to_self(BUS_MCEERR_AO, reader.addresses().start, 12),
            _ => kill_self(),
        }
        std::process::exit(0);
    }
    for role in ["fault", "notice", "signal"] {
        let status = start_again("default_before_us_kills_as_usual", role);
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{role}: {status}");
    }
}

#[test]
fn ignored_before_us_stays_ignored_except_for_faults() {
    let status = in_own_process("ignored_before_us_stays_ignored_except_for_faults", || {
        set_handler(libc::SIG_IGN, 0);
        let (file, reader, _writer) = mapped(2 * PAGE);
        kill_self();
        send_to_self(BUS_MCEERR_AO, reader.addresses().start, 12);
        file.set_len(PAGE).unwrap();
        reader.copy_out(PAGE, &mut [0; 64]).unwrap_err();
        touch(&reader, PAGE);
    });
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

/// A signal that only happens to arrive while a copy runs must not end the copy.
#[test]
fn signals_that_are_no_fault_do_not_end_a_copy() {
    const LEN: usize = 4 << 20;
    let status = in_own_process("signals_that_are_no_fault_do_not_end_a_copy", || {
        set_info_handler(record);
        let (_file, reader, writer) = mapped(LEN as u64);
        writer.copy_in(0, &vec![5; LEN]).unwrap();
        // SAFETY: no precondition.
        let copier = unsafe { libc::pthread_self() };
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                for _ in 0..400 {
                    // SAFETY: the thread lives until the scope ends.
                    assert_eq!(unsafe { libc::pthread_kill(copier, libc::SIGBUS) }, 0);
                    std::thread::yield_now();
                }
            });
            let mut target = vec![0; LEN];
            while !sender.is_finished() {
                reader.copy_out(0, &mut target).unwrap();
                assert!(target.iter().all(|&byte| byte == 5));
                target.fill(0);
            }
        });
        assert!(recorded().0 > 0);
    });
    assert_eq!(status.code(), Some(0), "{status}");
}

static OURS: AtomicUsize = AtomicUsize::new(0);

/// Stands in for hardware: what is really a cut file is passed on as broken memory.
extern "C" fn call_it_broken(signal: c_int, info: *mut BusInfo, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo_t, which the handler may change.
    let info = unsafe { &mut *info };
    assert_eq!(info.code, BUS_ADRERR);
    (info.code, info.address_lsb) = (BUS_MCEERR_AR, 12);
    // As the kernel reports it: by the start of the page.
    info.address &= !0xfff;
    // SAFETY: what `set_info_handler` returned: pgmap-os's own handler, of this type.
    let ours: Handler = unsafe { std::mem::transmute(OURS.load(Ordering::Relaxed)) };
    ours(signal, ptr::from_mut(info), context);
}

/// Also what happens below a handler that was installed after ours and passes on.
#[test]
fn copy_that_meets_broken_memory_is_ehwpoison_and_is_told() {
    let test = "copy_that_meets_broken_memory_is_ehwpoison_and_is_told";
    let status = in_own_process(test, || {
        let (file, reader, writer) = mapped(4 * PAGE);
        OURS.store(set_info_handler(call_it_broken), Ordering::Relaxed);
        let failures = sigbus::watch(reader.addresses()).unwrap();
        file.set_len(2 * PAGE).unwrap();
        let error = reader.copy_out(PAGE, &mut [0; 2 * PAGE as usize]).unwrap_err();
        let fault = MemoryFault { offset: 2 * PAGE, cause: FaultCause::Poisoned };
        assert_eq!((error, error.errno()), (CopyError::Fault(fault), libc::EHWPOISON));
        // A place that the range begins behind is named by the range's first byte.
        let error = reader.copy_out(2 * PAGE + 100, &mut [0; 8]).unwrap_err();
        let inside = MemoryFault { offset: 2 * PAGE + 100, ..fault };
        assert_eq!(error, CopyError::Fault(inside));
        let kind = FailureKind::ActionRequired;
        let failure = MemoryFailure { offset_bytes: 2 * PAGE, len_bytes: PAGE, kind };
        assert_eq!((failures.next(), failures.next()), (Some(failure), None));
        // The other mapping of the same page is not watched.
        assert!(writer.fill_zero(2 * PAGE, 1).is_err());
        assert_eq!(failures.next(), None);
    });
    assert_eq!(status.code(), Some(0), "{status}");
}
