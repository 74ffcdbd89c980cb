//! Long-term pins, leases and the pool's holder: who may, who is asked, who is notified.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use pgmap::holder::{DrainReason, Holder, HolderAnswer, HolderId, Requester};
use pgmap::mm::pagemap::FailureFlags;
use pgmap::mm::pfn::PfnRange;
use pgmap::report::HoldKind;
use pgmap::{
    Access, Agent, Client, CreateSpec, Error, Event, FileName, FileRules, FolioSize, LongtermRule,
    MemoryType, OnDeadline, Owner, Pool, PoolOptions, Refusal,
};

const EACCES: i32 = 13;
const EFAULT: i32 = 14;
const EBUSY: i32 = 16;
const EOPNOTSUPP: i32 = 95;
const NOW: Duration = Duration::ZERO;
const SOON: Duration = Duration::from_secs(5);

fn owner(memory_type: MemoryType) -> Owner {
    let options = PoolOptions::anonymous(16 << 20).memory_type(memory_type);
    Owner::start(Pool::create(&options).unwrap()).unwrap()
}

fn put(client: &Client, name: &str, len: usize, rules: FileRules) {
    let name = FileName::new(name).unwrap();
    let mut spec = CreateSpec::new(name, len as u64, FolioSize::BestFit);
    spec.rules = rules;
    let mut writer = client.create_batch(vec![spec]).unwrap().pop().unwrap().unwrap();
    writer.write_all_at(0, &vec![7; len]).unwrap();
    writer.commit().unwrap();
}

fn longterm(rule: LongtermRule) -> FileRules {
    FileRules { longterm: rule, ..FileRules::default() }
}

#[test]
fn generic_memory_is_pinned_for_long_without_a_call_and_fsdax_is_not() {
    let generic = owner(MemoryType::Generic);
    let client = generic.client().unwrap();
    put(&client, "a", 3 << 20, FileRules::default());
    let file = client.open("a").unwrap();
    let pin = file.pin_longterm(0..3 << 20).unwrap();
    let holders = client.who("a").unwrap().holders;
    assert!(!holders.is_empty() && holders.iter().all(|h| h.kind == HoldKind::Longterm));
    client.unlink("a").unwrap();
    assert_eq!(generic.info().draining_bytes, 3 << 20);
    drop(pin);
    let fsdax = owner(MemoryType::FsDax);
    let client = fsdax.client().unwrap();
    put(&client, "a", 8192, FileRules::default());
    let file = client.open("a").unwrap();
    assert_eq!(file.pin_longterm(0..1).unwrap_err().errno(), EOPNOTSUPP);
    let error = file.lease(0..1, Agent::Device, Access::Write).unwrap_err();
    assert_eq!(error.errno(), EOPNOTSUPP);
    assert!(error.to_string().contains("fsdax"), "{error}");
}

#[test]
fn rules_of_a_file_are_kept() {
    let owner = owner(MemoryType::Generic);
    let client = owner.client().unwrap();
    put(&client, "forbid", 4096, longterm(LongtermRule::Forbid));
    put(&client, "cpu", 4096, longterm(LongtermRule::ForbidDevice));
    put(&client, "raw", 4096, FileRules { is_raw: true, ..FileRules::default() });
    put(&client, "ro", 4096, FileRules { is_read_only: true, ..FileRules::default() });
    let lease = |name, agent, access| client.open(name).unwrap().lease(0..4096, agent, access);
    let errno = |result: Result<_, Error>| result.map(drop).map_err(|error| error.errno());
    assert_eq!(errno(lease("forbid", Agent::Cpu, Access::Read)), Err(EOPNOTSUPP));
    assert_eq!(errno(lease("cpu", Agent::Device, Access::Read)), Err(EOPNOTSUPP));
    assert_eq!(errno(lease("cpu", Agent::Cpu, Access::Read)), Ok(()));
    assert_eq!(errno(lease("ro", Agent::Device, Access::Write)), Err(EFAULT));
    assert_eq!(errno(lease("ro", Agent::Device, Access::Read)), Ok(()));
    assert_eq!(errno(client.get("raw")), Err(EFAULT), "raw memory is never pinned");
}

#[test]
fn a_lease_is_recalled_and_the_truncate_goes_on_when_it_ends() {
    let owner = owner(MemoryType::FsDax);
    let (client, other) = (owner.client().unwrap(), owner.client().unwrap());
    put(&client, "a", 4 << 20, longterm(LongtermRule::Leasable));
    let file = client.open("a").unwrap();
    let lease = file.lease(0..4 << 20, Agent::Device, Access::Write).unwrap();
    let holders = other.who("a").unwrap().holders;
    assert_eq!((holders.len(), holders[0].kind, holders[0].is_device), (1, HoldKind::Lease, true));

    let error = other.truncate("a", 4096, Duration::from_millis(20)).unwrap_err();
    let Error::Refused(Refusal::Held { holders, .. }) = &error else { panic!("{error}") };
    assert_eq!(holders[0].kind, HoldKind::Lease);
    let told = client.next_event(NOW).unwrap();
    let Some(Event::LeaseRecalled { lease: number, deadline_ms, .. }) = told else {
        panic!("{told:?}")
    };
    assert_eq!((lease.leases().next(), deadline_ms), (Some(number), Some(20)));
    assert_eq!(file.pin_all().unwrap().len_bytes(), 4 << 20, "it failed: the file is as before");

    std::thread::scope(|scope| {
        let truncate = scope.spawn(|| other.truncate("a", 4096, Duration::from_secs(60)));
        while !matches!(client.next_event(SOON).unwrap(), Some(Event::LeaseRecalled { .. })) {}
        drop(lease);
        truncate.join().unwrap().unwrap();
    });
    assert_eq!(owner.info().free_bytes, (16 << 20) - 4096);
}

#[test]
fn past_the_deadline_held_frames_are_quarantined_and_never_reused() {
    let owner = owner(MemoryType::FsDax);
    let client = owner.client().unwrap();
    put(&client, "a", 4 << 20, longterm(LongtermRule::Leasable));
    let lease = client
        .open("a")
        .unwrap()
        .lease(2 << 20..(2 << 20) + 4096, Agent::Device, Access::Write)
        .unwrap();
    let holders =
        client.truncate_or("a", 4096, Duration::from_millis(10), OnDeadline::Quarantine).unwrap();
    assert_eq!(holders.len(), 1);
    assert_eq!(client.get("a").unwrap().len_bytes(), 4096);
    let info = owner.info();
    assert!(info.quarantined_bytes >= 4096 && info.quarantined_bytes <= 2 << 20, "{info:?}");
    assert_eq!(info.free_bytes + info.live_bytes + info.quarantined_bytes, 16 << 20);
    let most = client.create("b", info.free_bytes, FolioSize::Pages4K).unwrap();
    drop(most);
    drop(lease);
    assert_eq!(owner.info().quarantined_bytes, 0);
    assert_eq!(owner.info().free_bytes, (16 << 20) - 4096);
}

type Answer = dyn Fn(PfnRange, &Requester) -> HolderAnswer + Send + Sync;

/// A holder that a test scripts.
struct Scripted {
    answer: Box<Answer>,
    told: Sender<String>,
}

impl Holder for Scripted {
    fn longterm_admit(&self, run: PfnRange, who: &Requester) -> HolderAnswer {
        (self.answer)(run, who)
    }

    fn notify_failure(&self, run: PfnRange, _: FailureFlags) {
        let _ = self.told.send(format!("failure {run}"));
    }

    fn drain_requested(&self, run: PfnRange, reason: DrainReason, _: u64) {
        let _ = self.told.send(format!("drain {run} {reason:?}"));
    }
}

fn holder(
    owner: &Owner,
    number: u64,
    patience: Duration,
    answer: impl Fn(PfnRange, &Requester) -> HolderAnswer + Send + Sync + 'static,
) -> Result<(pgmap::holder::HolderRegistration, Receiver<String>), Error> {
    let (told, heard) = channel();
    let holder = Arc::new(Scripted { answer: Box::new(answer), told });
    let id = HolderId::new(number).unwrap();
    Ok((owner.set_holder(id, holder, patience)?, heard))
}

#[test]
fn a_holder_is_asked_per_range_and_told_of_failure_and_drain() {
    let owner = owner(MemoryType::Generic);
    let client = owner.client().unwrap();
    put(&client, "before", 8192, FileRules::default());
    let allow_first = |run: PfnRange, _: &Requester| {
        if run.start() == 0 { HolderAnswer::Allow } else { HolderAnswer::Deny }
    };
    let (registration, heard) = holder(&owner, 7, SOON, allow_first).unwrap();
    let second = holder(&owner, 8, SOON, allow_first).map(drop).unwrap_err();
    assert_eq!(second.errno(), EBUSY, "one holder at a time");

    let file = client.open("before").unwrap();
    assert_eq!(file.pin_longterm(0..4096).unwrap_err().errno(), EOPNOTSUPP, "it wants to be asked");
    let allowed = file.lease(0..4096, Agent::Device, Access::Write).unwrap();
    let denied = file.lease(4096..8192, Agent::Device, Access::Write).unwrap_err();
    assert_eq!(denied.errno(), EACCES, "{denied}");
    client.memory_failure(1).unwrap();
    assert!(heard.recv_timeout(SOON).unwrap().starts_with("failure 0x1.."));
    client.unlink("before").unwrap();
    assert!(heard.recv_timeout(SOON).unwrap().starts_with("drain"));
    drop(allowed);
    drop(registration);
    put(&client, "after", 4096, FileRules::default());
    drop(client.open("after").unwrap().pin_longterm(0..4096).unwrap());
}

#[test]
fn a_holder_that_blocks_panics_or_is_late_is_taken_for_a_no() {
    let owner = owner(MemoryType::Generic);
    let client = owner.client().unwrap();
    put(&client, "a", 4096, FileRules::default());
    let file = client.open("a").unwrap();
    let patience = Duration::from_millis(30);
    let (registration, _) = holder(&owner, 1, patience, |_, _| panic!("on purpose")).unwrap();
    assert_eq!(file.lease(0..1, Agent::Cpu, Access::Read).unwrap_err().errno(), EACCES);
    drop(registration);
    let (release, blocked) = channel::<()>();
    let blocked = std::sync::Mutex::new(blocked);
    let block = move |_: PfnRange, _: &Requester| {
        let _ = blocked.lock().map(|blocked| blocked.recv());
        HolderAnswer::Allow
    };
    let (registration, _) = holder(&owner, 2, patience, block).unwrap();
    assert_eq!(file.lease(0..1, Agent::Cpu, Access::Read).unwrap_err().errno(), EACCES);
    put(&client, "b", 4096, FileRules::default());
    assert_eq!(client.list().unwrap().len(), 2, "the owner goes on");
    drop(registration);
    drop(release);
    drop(file.pin_longterm(0..1).unwrap());
}
