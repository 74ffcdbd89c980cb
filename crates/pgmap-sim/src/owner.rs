//! The owner's process.

use std::sync::Arc;
use std::time::Duration;

use pgmap::holder::{DrainReason, Holder, HolderAnswer, HolderId, Requester};
use pgmap::mm::pagemap::FailureFlags;
use pgmap::mm::pfn::PfnRange;
use pgmap::{Durability, Error, Owner, Pool, PoolOptions};

use crate::episode::{Episode, episode};
use crate::verdict::ANY;

/// How often it looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(40);

/// How long the holder may think.
const PATIENCE: Duration = Duration::from_millis(200);

/// Makes or opens the pool and serves it until it is asked to stop.
pub fn run() {
    let episode = episode();
    match serve(&episode) {
        Ok(()) => *episode.owner_error.borrow_mut() = None,
        Err(error) => {
            episode.machine.note(|| format!("the owner ends: {error}"));
            let from = episode.owner_from.get();
            let has_cause = episode.machine.has_failed_since(from, episode.machine.running(), &ANY)
                || episode.plan.knobs.no_membarrier > 0;
            if !has_cause {
                episode.fail(format!("the owner ended without a cause: {error}"));
            }
            *episode.owner_error.borrow_mut() = Some(error.to_string());
            pgmap_os::thread::sleep(LOOK);
        }
    }
}

fn serve(episode: &Episode) -> Result<(), Error> {
    let plan = &episode.plan;
    let size = u64::from(plan.pool_pages) * 4096;
    let options = match plan.is_kept {
        true => PoolOptions::in_directory(&episode.directory, size),
        false => PoolOptions::anonymous(size),
    };
    let durability = match (plan.knobs.is_disk, plan.knobs.is_flushed) {
        (_, true) => Durability::PowerFailure,
        (true, false) => Durability::Restart,
        (false, false) => Durability::Processes,
    };
    let mut options = options.max_files(plan.max_files.into()).durability(durability);
    if !plan.backings.is_empty() {
        options = options.room((plan.backings.len() as u64) << 30);
    }
    let is_there = plan.is_kept && Pool::is_in(&episode.directory)?;
    let pool = match is_there {
        true => Pool::open(&episode.directory)?,
        false => Pool::create(&options)?,
    };
    episode.made();
    let owner = Owner::start(pool)?;
    let id = HolderId::new(1).filter(|_| plan.has_holder);
    let holder = id.map(|id| owner.set_holder(id, Arc::new(Decider), PATIENCE));
    let holder = match holder.transpose() {
        Ok(holder) => holder,
        Err(error) => {
            // The pool does without one then, as any pool may.
            goes_without(episode, "no holder", &error);
            None
        }
    };
    let served = owner.serve(&episode.socket);
    if served.is_ok() {
        episode.does_serve.set(true);
        episode.books.borrow_mut().new_owner(episode.machine.steps());
        episode.machine.note(|| "serves".to_owned());
        if let Some(number) = plan.embedded {
            start_client(episode, &owner, number.into());
        }
        while !episode.is_owner_to_end.get() && !owner.is_closed() {
            pgmap_os::thread::sleep(LOOK);
        }
        // A pool that was closed has no owner any more either.
        episode.is_owner_to_end.set(true);
    }
    drop(holder);
    end(episode, owner);
    served
}

/// The pool's holder: it says yes, no, and for a while.
struct Decider;

impl Holder for Decider {
    fn longterm_admit(&self, run: PfnRange, who: &Requester) -> HolderAnswer {
        let episode = episode();
        episode.machine.note(|| format!("the holder is asked for {run} by {who:?}"));
        match episode.machine.below(4) {
            0 => HolderAnswer::Deny,
            1 => {
                let now_ms = episode.machine.time_ns() / 1_000_000;
                HolderAnswer::Lease(now_ms + episode.machine.below(400))
            }
            _ => HolderAnswer::Allow,
        }
    }

    fn notify_failure(&self, run: PfnRange, flags: FailureFlags) {
        let episode = episode();
        episode.machine.note(|| format!("the holder is notified that {run} failed: {flags:?}"));
        if !episode.failures.borrow().is_any() {
            episode.fail(format!("the holder is notified that {run} failed, which nothing did"));
        }
    }

    fn drain_requested(&self, run: PfnRange, reason: DrainReason, deadline_ms: u64) {
        let episode = episode();
        episode.machine.note(|| format!("notified of {run}: {reason:?} {deadline_ms}"));
    }
}

/// The owner goes without something, which must be for a fault that was injected.
fn goes_without(episode: &Episode, what: &str, error: &Error) {
    episode.machine.note(|| format!("{what}: {error}"));
    let (from, pid) = (episode.owner_from.get(), episode.machine.running());
    if !episode.machine.has_failed_since(from, pid, &ANY) {
        episode.fail(format!("{what}: {error}"));
    }
}

/// Starts a client in the owner's process. It may be at work still when the owner ends.
fn start_client(episode: &Episode, owner: &Owner, number: usize) {
    let client = match owner.client() {
        Ok(client) => client,
        Err(error) => {
            goes_without(episode, "no client in the owner's process", &error);
            return;
        }
    };
    let run = move || crate::client::run_embedded(&client, number);
    if let Err(error) = pgmap_os::thread::Builder::new().spawn(run) {
        episode.machine.note(|| format!("no thread for a client: {error}"));
    }
}

/// Ends the owner, who syncs the pool and puts that on record.
fn end(episode: &Episode, owner: Owner) {
    episode.machine.note(|| "stops".to_owned());
    let from = episode.machine.steps();
    episode.model.borrow_mut().owner_ended(from, None);
    drop(owner);
    // It says to its log only if it could not put its end on record.
    if !episode.machine.has_failed_since(from, episode.machine.running(), &ANY) {
        episode.model.borrow_mut().owner_ended(from, Some(episode.machine.steps()));
    }
}
