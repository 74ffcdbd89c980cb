//! T3: a process dies while a device may still reach its frames. They are detached before anybody
//! else gets them.
//!
//! The device is a pipe. A page given to it by `vmsplice` is held by its physical address, as a
//! transfer in flight holds it, and outlives the process: what the pipe later yields is what the
//! device's page holds then. Under a DEVICE hold it must be the old bytes, whoever has the frames
//! now. A CPU hold is the control: those frames are reused as they are, and the pipe shows the new
//! bytes.

// UNSAFETY: vmsplice takes raw memory; that is the point of it.
#![allow(unsafe_code)]
use std::io::Read;
use std::os::fd::AsRawFd;
use std::process::ChildStdout;

use crate::support::{self, block};
use pgmap::{Agent, Client, FolioSize, Owner};

const POOL_BYTES: u64 = 4 << 20;
const PAGE_BYTES: usize = 4096;

#[test]
fn child_entry() {
    let Some((role, place)) = support::role() else { return };
    let client = Client::connect(&place).unwrap();
    support::say("ok");
    // Whoever stays alive until the kill holds what it has.
    match role.as_str() {
        "reader-device" => splice_pin(&client, Agent::Device),
        "reader-cpu" => splice_pin(&client, Agent::Cpu),
        "writer-device" => splice_draft(&client, Agent::Device),
        "writer-cpu" => splice_draft(&client, Agent::Cpu),
        other => panic!("no such role: {other}"),
    }
}

fn splice_pin(client: &Client, agent: Agent) {
    let file = client.open("a").unwrap();
    let pin = match agent {
        Agent::Device => file.pin_for_device(0..PAGE_BYTES as u64).unwrap(),
        Agent::Cpu => file.pin(0..PAGE_BYTES as u64).unwrap(),
    };
    give_to_pipe(pin.segments().next().unwrap().ptr);
    assert_eq!(support::commands().count(), 0);
}

fn splice_draft(client: &Client, agent: Agent) {
    let mut writer = client.create("draft", POOL_BYTES / 2, FolioSize::BestFit).unwrap();
    writer.set_agent(agent);
    writer.write_all_at(0, &block::make(1, PAGE_BYTES)).unwrap();
    give_to_pipe(writer.segments()[0].0);
    assert_eq!(support::commands().count(), 0);
}

/// Gives the page at `page` to the pipe that is this process's standard output.
fn give_to_pipe(page: *mut u8) {
    let part = libc::iovec { iov_base: page.cast(), iov_len: PAGE_BYTES };
    let out = std::io::stdout();
    // SAFETY: the descriptor is open; the one part lies in a mapping that is pinned meanwhile, and
    // the kernel only takes a reference to its page.
    let given = unsafe { libc::vmsplice(out.as_raw_fd(), &raw const part, 1, 0) };
    assert_eq!(given, PAGE_BYTES as isize, "{}", std::io::Error::last_os_error());
}

/// Reads up to and with the answer "ok", byte by byte: what follows must stay in the pipe.
fn read_ok(pipe: &mut ChildStdout) {
    let mut seen = Vec::new();
    while !seen.ends_with(b"@ok\n") {
        let mut byte = [0];
        assert_eq!(pipe.read(&mut byte).unwrap(), 1, "the child ended");
        seen.push(byte[0]);
    }
}

fn wait_for_splice(pipe: &ChildStdout) {
    support::wait_until("the page is in the pipe", || {
        (rustix::io::ioctl_fionread(pipe).unwrap() >= PAGE_BYTES as u64).then_some(())
    });
}

/// What the device's page holds after its process was killed and somebody else filled the pool.
fn generation_in_the_device(role: &str) -> u64 {
    let (owner, _directory, socket) = support::serving_owner(POOL_BYTES);
    let client = owner.client().unwrap();
    if role.starts_with("reader") {
        support::put(&client, "a", &block::make(1, POOL_BYTES as usize / 2)).unwrap();
    }
    let epoch = client.detach_epoch();
    let mut child = support::command(&[], role, &socket).spawn().unwrap();
    let mut pipe = support::take_output(&mut child);
    read_ok(&mut pipe);
    wait_for_splice(&pipe);
    child.kill().unwrap();
    child.wait().unwrap();
    let info = support::wait_for_info(&owner, "it is reaped", |info| info.nr_clients == 1);
    let is_device = role.ends_with("device");
    if role.starts_with("reader") {
        assert_eq!(info.orphaned_bytes, if is_device { PAGE_BYTES as u64 } else { 0 });
        client.unlink("a").unwrap();
    }
    take_all(&owner, &client);
    assert_eq!(client.detach_epoch() - epoch, u64::from(is_device));
    // The transfer ends late.
    let mut page = vec![0; PAGE_BYTES];
    pipe.read_exact(&mut page).unwrap();
    block::check(&page).unwrap()
}

/// Somebody else gets every frame and fills it.
fn take_all(owner: &Owner, client: &Client) {
    let info = owner.info();
    assert_eq!((info.free_bytes, info.orphaned_bytes), (POOL_BYTES, 0), "{info:?}");
    // Page by page, so that whichever page the pipe has is the first of its file.
    for page in 0..POOL_BYTES / PAGE_BYTES as u64 {
        support::put(client, format!("f{page}"), &block::make(2, PAGE_BYTES)).unwrap();
    }
    assert_eq!(owner.info().free_bytes, 0);
}

#[test]
fn t3_frames_under_a_dead_readers_transfer_are_detached_before_reuse() {
    assert_eq!(generation_in_the_device("reader-device"), 1, "the device has its own page");
    assert_eq!(generation_in_the_device("reader-cpu"), 2, "the control sees the frame reused");
}

#[test]
fn t3_frames_under_a_dead_writers_transfer_are_detached_before_reuse() {
    assert_eq!(generation_in_the_device("writer-device"), 1, "the device has its own page");
    assert_eq!(generation_in_the_device("writer-cpu"), 2, "the control sees the frame reused");
}
