//! A library that installed pgmap's signal handlers and is closed again: a fault after that still
//! reaches the program's own handler.

// UNSAFETY: a library is opened by name, and a fault is made.
#![allow(unsafe_code)]
use std::ffi::{CString, c_int};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::Command;
use std::ptr;

const ROLE: &str = "PGMAP_OS_TEST_ROLE";
/// How the process ends whose handler is reached.
const REACHED: i32 = 7;

/// The example `handlers`, built as a library.
fn library() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.ancestors().nth(2).unwrap().join("examples/libhandlers.so")
}

extern "C" fn end(_: c_int) {
    // SAFETY: ends the process at once; may be called in a handler.
    unsafe { libc::_exit(REACHED) };
}

/// Opens the library, has it install its handlers, closes it, and faults.
fn open_close_and_fault(signal: c_int) -> ! {
    let handler = end as extern "C" fn(c_int) as libc::sighandler_t;
    // SAFETY: the handler makes one call, which is allowed there.
    assert_ne!(unsafe { libc::signal(signal, handler) }, libc::SIG_ERR);
    let path = CString::new(library().as_os_str().as_bytes()).unwrap();
    // SAFETY: the library's initialisers are those of any Rust library.
    let opened = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    assert!(!opened.is_null(), "{} does not open", library().display());
    // SAFETY: the handle is that of an open library.
    let symbol = unsafe { libc::dlsym(opened, c"install_handlers".as_ptr()) };
    assert!(!symbol.is_null());
    // SAFETY: the example exports it with this type.
    let install =
        unsafe { std::mem::transmute::<*mut libc::c_void, extern "C" fn(usize) -> i32>(symbol) };
    assert_eq!(install(0x10_0000), 0);
    // SAFETY: nothing of the library is used after this, except what the kernel calls.
    assert_eq!(unsafe { libc::dlclose(opened) }, 0);
    if signal == libc::SIGBUS {
        // SAFETY: no precondition.
        unsafe { libc::raise(signal) };
    } else {
        // SAFETY: nothing is mapped there, and the fault is what is asked for.
        unsafe { ptr::with_exposed_provenance::<u64>(0x20_0000).read_volatile() };
    }
    std::process::exit(1);
}

#[test]
fn a_handler_outlives_the_library_that_installed_it() {
    if let Ok(signal) = std::env::var(ROLE) {
        open_close_and_fault(signal.parse().unwrap());
    }
    if !library().exists() {
        println!("skipped: `cargo build -p pgmap-os --examples` builds the library that it opens");
        return;
    }
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let test = "a_handler_outlives_the_library_that_installed_it";
        command.args(["--exact", &crate::test_path(module_path!(), test), "--nocapture"]);
        let status = command.env(ROLE, signal.to_string()).status().unwrap();
        assert_eq!(status.code(), Some(REACHED), "signal {signal}: {status}");
    }
}
