//! fork: the child is told that it is detached, whatever it calls, and takes nothing from its parent;
//! and a child that keeps a dead client's socket and ledger open does not keep its holds (T6).

// UNSAFETY: fork, _exit and waitpid are the subject; rustix offers no fork.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a helper of a test fails as its test does")]

mod support;

use std::path::Path;

use pgmap::{
    Client, CreateSpec, Error, FileName, FilePin, FileWriter, FolioSize, PinError, Replace,
};
use support::{Second, block};

const POOL_BYTES: u64 = 32 << 20;

/// Forks. The child runs `child` and leaves with its answer as exit status.
fn forked(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: this process has one thread that runs (the test harness's first waits for this one),
    // so the child finds every lock free; it leaves without running the parent's exit handlers.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid > 0 {
        return pid;
    }
    let status = child();
    // SAFETY: ends the child at once.
    unsafe { libc::_exit(status) }
}

fn wait_for(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: waits for our own child; the status lives on this stack.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid);
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 200 + libc::WTERMSIG(status) }
}

#[test]
fn child_entry() {
    let Some((role, place)) = support::role() else { return };
    let client = Client::connect(&place).unwrap();
    match role.as_str() {
        "fork-and-check" => fork_and_check(&client),
        "fork-and-stay" => fork_and_stay(&client),
        other => panic!("no such role: {other}"),
    }
    drop(client);
    std::process::exit(0);
}

/// Forks in the middle of everything, lets the child try everything, and goes on.
fn fork_and_check(client: &Client) {
    let pin = client.get("a").unwrap();
    let longterm = client.open("a").unwrap().pin_longterm(0, 4096).unwrap();
    let mut writer = client.create("draft", 10_000, FolioSize::BestFit).unwrap();
    writer.write_all_at(0, &block::make(5, 10_000)).unwrap();
    let spare = client.create("spare", 4096, FolioSize::BestFit).unwrap();
    let file = client.open("a").unwrap();
    // What the child drops is its copy of each; the parent's own are still in use afterwards.
    let inherited = Inherited {
        pin: std::mem::ManuallyDrop::new(pin),
        longterm: std::mem::ManuallyDrop::new(longterm),
        writer: std::mem::ManuallyDrop::new(writer),
        spare: std::mem::ManuallyDrop::new(spare),
    };
    let mut inherited = inherited;
    let clone = std::mem::ManuallyDrop::new(client.clone());
    let child = forked(|| {
        let wrong = nr_of_first_wrong(client, &file, &mut inherited);
        drop(std::mem::ManuallyDrop::into_inner(inherited));
        drop(std::mem::ManuallyDrop::into_inner(clone));
        wrong
    });
    let status = wait_for(child);
    support::say(format!("child {status}"));
    for command in support::commands() {
        match command.as_str() {
            "stat" => support::say(client.stat("kept").map_or(0, |info| info.len_bytes)),
            other => panic!("no such command: {other}"),
        }
    }
}
