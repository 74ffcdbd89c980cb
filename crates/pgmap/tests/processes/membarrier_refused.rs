//! An owner whose process may not call `membarrier` any more, because it entered a sandbox after
//! its start.

// UNSAFETY: a seccomp filter is set by plain system calls that no crate here wraps.
#![allow(unsafe_code)]
use std::time::Duration;

use crate::support::{self, Second, block};
use pgmap::os::Membarrier;
use pgmap::report::HoldKind;
use pgmap::{Client, Error, FolioSize, Owner, Pool, PoolOptions, Refusal};

const POOL_BYTES: u64 = 1 << 20;

/// From now on `membarrier` fails with `errno`, in every thread of this process.
fn refuse_membarrier(errno: i32) {
    let filter = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_membarrier as u32),
        filter(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        filter(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let prog = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
    // SAFETY: takes four numbers.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    let (set, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC);
    // SAFETY: the program and what it points to live on this stack until the call has copied them.
    let installed = unsafe { libc::syscall(libc::SYS_seccomp, set, flags, &raw const prog) };
    assert_eq!(installed, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn child_entry() {
    let Some((role, place)) = support::role() else { return };
    match role.as_str() {
        "client" => support::client_role::run(&place),
        "owner" => {
            let pool = Pool::create(&PoolOptions::anonymous(POOL_BYTES)).unwrap();
            let owner = Owner::start(pool).unwrap();
            owner.serve(place.join("s")).unwrap();
            support::say("ok");
            for errno in support::commands() {
                refuse_membarrier(errno.parse().unwrap());
                support::say("ok");
            }
            std::process::exit(0);
        }
        other => panic!("{other}"),
    }
}

struct Sandboxed {
    owner: Second,
    directory: tempfile::TempDir,
}

impl Sandboxed {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut owner = Second::start("owner", directory.path());
        assert_eq!(owner.answer(), "ok");
        Self { owner, directory }
    }

    fn client(&self) -> Client {
        Client::connect(self.directory.path().join("s")).unwrap()
    }

    fn is_alive(&mut self) -> bool {
        self.owner.process.try_wait().unwrap().is_none()
    }
}

/// It aborted at the first drain.
#[test]
fn an_owner_that_may_not_interrupt_any_more_serves_clients_that_come_then() {
    for errno in [libc::EPERM, libc::ENOSYS, libc::ENOMEM] {
        let mut sandboxed = Sandboxed::start();
        sandboxed.owner.must(&errno.to_string());
        let client = sandboxed.client();
        // More than the pool has, so frames must come back.
        for generation in 0..4 {
            support::put(&client, "a", &block::make(generation, 500_000)).unwrap();
            let pin = client.get("a").unwrap();
            client.unlink("a").unwrap();
            assert!(client.pool_stat().unwrap().draining_bytes > 0, "it is held");
            drop(pin);
            support::wait_until("the frames are free", || {
                (client.pool_stat().unwrap().draining_bytes == 0).then_some(())
            });
        }
        assert!(sandboxed.is_alive());
    }
}

/// What a client of before may hold unseen is nobody else's until that client is gone; nothing else
/// waits.
#[test]
fn what_a_client_of_before_may_hold_is_free_when_it_is_gone() {
    if !Membarrier::register().is_global_available() {
        return println!(
            "SKIPPED what_a_client_of_before_may_hold_is_free_when_it_is_gone: membarrier is \
             refused here"
        );
    }
    let mut sandboxed = Sandboxed::start();
    let mut before = Second::start("client", &sandboxed.directory.path().join("s"));
    assert_eq!(before.answer(), "ok");
    let first = sandboxed.client();
    support::put(&first, "a", &block::make(1, 8192)).unwrap();
    support::put(&first, "b", &block::make(1, 8192)).unwrap();
    before.must("pin a");
    before.must("drop");
    drop(first);
    sandboxed.owner.must(&libc::EPERM.to_string());
    let client = sandboxed.client();
    let Err(Error::Refused(Refusal::Held { holders, .. })) =
        client.truncate("a", 4096, Duration::from_millis(30))
    else {
        panic!("cut under a client that nobody can ask");
    };
    let kinds: Vec<_> = holders.iter().map(|h| (h.kind, h.pid as u32)).collect();
    assert_eq!(kinds, [(HoldKind::Unseen, before.process.id())]);
    assert_eq!(before.ask("get a"), "generation 1", "it goes on");
    client.unlink("b").unwrap();
    assert_eq!(client.pool_stat().unwrap().draining_bytes, 8192);
    client.create("c", 4096, FolioSize::Pages4K).unwrap().commit().unwrap();
    before.process.kill().unwrap();
    before.process.wait().unwrap();
    support::wait_until("the frames are free", || {
        (client.pool_stat().unwrap().draining_bytes == 0).then_some(())
    });
    client.truncate("a", 4096, Duration::from_secs(10)).unwrap();
    assert!(sandboxed.is_alive());
}
