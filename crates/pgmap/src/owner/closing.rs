//! Draining a whole pool before its memory goes: nobody new gets in, whoever holds any of it is
//! asked for it and waited for, and then the owner is done with it.
//!
//! Files stay: they are on record, and the next owner finds them. What was created and is not
//! committed is given up when the owner ends, as ever.
//!
//! # States
//!
//! ```text
//!   open ──close──▶ closing ──nobody holds anything──▶ closed: the owner ends
//!    ▲                 │
//!    └──deadline, or the caller is gone──┘
//! ```
//!
//! While the pool is closing the head of every extent is Dying, of files and of what is not
//! committed, so that no pin is taken after the heavy barrier of the scan. Clients ask nobody for
//! that word: it is what they pin under. Opening again makes the heads what the extents say.
//!
//! # Who may touch what
//! The owner alone, under its lock.
//!
//! # Lost races
//! *A pin that was published before the barrier and reads its word after.* It finds Dying and is
//! undone; the scan may count it, and the next look does not find it. *A commit while the pool is
//! closing* would publish a Live head behind the scan: everything that changes a file is refused.
//! What cannot be refused, memory that fails and a policy that changes, opens the pool for a
//! moment, and the scan is made again. A cut that is given up gives its file back what it took when
//! the pool is open again.

use pgmap_mm::drain::{Drain, MAX_ASKS};
use pgmap_mm::error::errno::EBUSY;
use pgmap_mm::extent::Extent;
use pgmap_mm::holder::DrainReason;
use pgmap_mm::pfn::PfnRange;
use pgmap_mm::runs::SortedRuns;
use pgmap_os::clock;

use crate::owner::core::{Core, Outcome, Ticket};
use crate::owner::drains::{PendingDrain, Purpose};
use crate::owner::holders::Call;
use crate::owner::scans::{PendingScan, Scanning};
use crate::refusal::Refusal;
use crate::wire::{OnDeadline, Reply};

/// How far a pool is on its way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Openness {
    #[default]
    Open,
    Closing,
    Closed,
}

/// Somebody waits for a pool to be closed.
#[derive(Debug)]
pub(crate) struct Closing {
    pub ticket: Ticket,
    started_ms: u64,
    wait_ms: u64,
}

impl Closing {
    pub(crate) const fn deadline_ms(&self) -> u64 {
        self.started_ms.saturating_add(self.wait_ms)
    }
}

impl Core {
    /// Closes the pool, waiting up to `wait_ms` for whoever holds any of it.
    pub(crate) fn close(&mut self, wait_ms: u64) -> Outcome {
        if let Err(refusal) = self.check_open() {
            return Outcome::Answer(Reply::Refused(refusal));
        }
        self.call_off_parts();
        let all = SortedRuns::covering(self.pool.vmemmap_layout.nr_pages());
        for run in all.iter() {
            let until_ms = clock::monotonic_ms().saturating_add(wait_ms);
            self.holder.notify(Call::Drain(run, DrainReason::Operator, until_ms));
        }
        let (ticket, started_ms) = (self.outbox.new_ticket(), clock::monotonic_ms());
        self.shut_and_scan(Closing { ticket, started_ms, wait_ms });
        self.look_on();
        self.outbox.outcome_of(ticket)
    }

    fn shut_and_scan(&mut self, closing: Closing) {
        self.openness = Openness::Closing;
        // Those in a part that is drained are shut already.
        self.files.all_extents().for_each(|extents| self.frames.shut(extents));
        let all = SortedRuns::covering(self.pool.vmemmap_layout.nr_pages());
        self.scan_then(all, Scanning::Close(closing));
    }

    /// Does what changes life words, which the heads of a pool that is closing do not say: it is
    /// open for that moment, and whoever takes a pin then is found by another scan.
    pub(crate) fn while_open<T>(&mut self, act: impl FnOnce(&mut Self) -> T) -> T {
        let closing = self.take_closing();
        if closing.is_some() {
            self.open_again();
        }
        let done = act(self);
        if let Some(closing) = closing {
            self.shut_and_scan(closing);
        }
        done
    }

    /// Ends the scan or drain for which the pool is closing.
    fn take_closing(&mut self) -> Option<Closing> {
        let is_it = |pending: &PendingDrain| matches!(pending.purpose, Purpose::Close(_));
        let Some(pending) = self.drains.take(is_it) else {
            return self.take_closing_scan();
        };
        self.leases.call_off_recall(pending.drain.runs());
        match pending.purpose {
            Purpose::Close(closing) => Some(closing),
            _ => None,
        }
    }

    /// # Errors
    /// [`Refusal::Denied`] with `EBUSY` when the pool is being drained, or was.
    pub(crate) fn check_open(&self) -> Result<(), Refusal> {
        if self.openness == Openness::Open {
            return Ok(());
        }
        let why = "the pool is being drained: files cannot be changed until that has ended".into();
        Err(Refusal::Denied { why, errno: EBUSY })
    }

    /// Whether nobody holds anything, and nobody will.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.openness == Openness::Closed
    }

    /// Everything that is held is known now: its holders are asked for it, and waited for.
    pub(crate) fn close_after(&mut self, drain: Drain, closing: Closing) {
        self.ask_holders(&drain, MAX_ASKS, Some(closing.wait_ms), OnDeadline::Fail);
        let (started_ms, purpose) = (closing.started_ms, Purpose::Close(closing));
        self.drains.add_first(PendingDrain { drain, started_ms, purpose, unasked: None });
    }

    /// Whether nothing is in the way of closing the pool beside what `drain` says is held: a device
    /// of a dead client may be writing.
    pub(crate) fn is_quiet(&self, drain: &Drain) -> bool {
        drain.is_idle() && self.dead.is_empty() && !self.clients.has_burials()
    }

    /// Nobody holds anything.
    pub(crate) fn finish_close(&mut self, closing: &Closing) {
        self.openness = Openness::Closed;
        self.frames.close();
        self.outbox.answer(closing.ticket, Reply::Done);
    }

    /// The deadline passed, and somebody holds some of the pool.
    pub(crate) fn give_up_close(&mut self, drain: &Drain, closing: &Closing) {
        let waited_ms = clock::monotonic_ms() - closing.started_ms;
        let holders = self.holders(drain.held(), Some(waited_ms));
        let dead: Vec<String> = self.dead.ids().map(|client| client.0.to_string()).collect();
        self.leases.call_off_recall(drain.runs());
        let refusal = if holders.is_empty() {
            let why = format!(
                "devices of dead clients may still be writing: {} (`pgmap quarantine ls`)",
                dead.join(", ")
            );
            Refusal::Denied { why, errno: EBUSY }
        } else {
            Refusal::Held { name: self.pool.name(), holders, waited_ms }
        };
        self.open_again();
        self.outbox.refuse(closing.ticket, refusal);
    }

    /// Calls off the closing with this ticket. Says whether there was one.
    pub(crate) fn call_off_close(&mut self, ticket: Ticket) -> bool {
        let drained = self.drains.iter().filter_map(|pending| match &pending.purpose {
            Purpose::Close(closing) => Some(closing),
            _ => None,
        });
        let scanned = self.drains.scans().filter_map(PendingScan::closing);
        let is_its = drained.chain(scanned).any(|closing| closing.ticket == ticket);
        let was_closing = is_its && self.take_closing().is_some();
        if was_closing {
            self.open_again();
        }
        was_closing
    }

    /// Opens what was shut, but for what lies in a part that is drained.
    fn open_again(&mut self) {
        let is_shut = |extent: &&Extent| self.parts.at(extent.run).is_some();
        let all = self.files.all_extents().flatten();
        self.frames.open_again(all.filter(|extent| !is_shut(extent)));
        self.openness = Openness::Open;
    }
}

impl PendingScan {
    /// Whether none of it is on its way anywhere: it is of all of the pool, or of a part that is
    /// drained.
    pub(crate) const fn is_of_all(&self) -> bool {
        self.closing().is_some() || self.part().is_some()
    }
}

impl PendingDrain {
    /// The frames that are on their way somewhere.
    pub(crate) fn going(&self) -> impl Iterator<Item = PfnRange> {
        let is_going = !matches!(self.purpose, Purpose::Close(_) | Purpose::Part(_));
        is_going.then(|| self.drain.runs().iter()).into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pgmap_mm::descriptor::FolioState;
    use pgmap_mm::level::PAGE_BYTES;

    use super::*;
    use crate::name::FileName;
    use crate::owner::clients::{Attachment, ClientIdentity};
    use crate::owner::cut::Patience;
    use crate::owner::made_file::make_file;
    use crate::pool::{Pool, PoolOptions};
    use crate::wire::{CreateSpec, FolioSize, Request};

    /// Books with the file "a" of 16 pages and a draft of 4, all of which a client may hold.
    struct World {
        core: Core,
        name: FileName,
        _attachment: Attachment,
    }

    fn world() -> World {
        let pool = Pool::create(&PoolOptions::anonymous(64 * PAGE_BYTES)).unwrap();
        let mut core = Core::open(Arc::new(pool)).unwrap();
        let (client, attachment) = core.attach(ClientIdentity::own(), false).unwrap();
        let name = FileName::new("a").unwrap();
        make_file(&mut core, client, &name, 16 * PAGE_BYTES);
        let draft = FileName::new("b").unwrap();
        let spec = CreateSpec::new(draft, 4 * PAGE_BYTES, FolioSize::Pages4K);
        drop(core.handle(client, Request::Create(vec![spec])));
        assert_eq!(core.files.drafts().count(), 1);
        core.clients.get_mut(client).unwrap().may_hold = Some(core.frames.all_in_use());
        World { core, name, _attachment: attachment }
    }

    impl World {
        /// Begins to close the pool, which waits for the client.
        fn close(&mut self) -> Ticket {
            let outcome = self.core.close(60_000);
            let Outcome::Later(ticket) = outcome else { panic!("{outcome:?}") };
            assert_eq!(self.nr_pinnable(), 0);
            ticket
        }

        fn extents(&self) -> impl Iterator<Item = &Extent> {
            let all = self.core.files.all_extents();
            all.flatten().filter(|extent| !extent.is_hole())
        }

        /// How many extents whoever knows them can pin.
        fn nr_pinnable(&self) -> usize {
            let vmemmap = self.core.frames.vmemmap();
            let is_current =
                |it: &&Extent| vmemmap.load(it.head_level, it.first()) == Some(it.life);
            self.extents().filter(can_be_pinned).filter(is_current).count()
        }

        fn nr_pages(&self) -> u64 {
            self.extents().map(|extent| extent.run.nr_pages()).sum()
        }
    }

    fn can_be_pinned(extent: &&Extent) -> bool {
        matches!(extent.life.state(), FolioState::Live | FolioState::Reserved)
    }

    /// Story: the writer of a draft took its hold after the scan, and had a device write while the
    /// memory went.
    #[test]
    fn nobody_takes_a_pin_of_a_file_or_a_draft_while_the_pool_is_closing() {
        let mut world = world();
        assert_eq!(world.nr_pinnable(), 2);
        let ticket = world.close();
        world.core.call_off(ticket);
        assert_eq!(world.nr_pinnable(), 2);
        assert!(world.core.check_open().is_ok());
        assert!(world.core.drains.is_empty());
    }

    /// Story: the file lost all of the extent whose first frame failed, for good.
    #[test]
    fn memory_that_fails_while_the_pool_is_closing_costs_one_frame() {
        for page in [0, 5] {
            let mut world = world();
            let first = world.core.files[&world.name].extents[0].run.start();
            let ticket = world.close();
            world.core.memory_failure(first + page).unwrap();
            assert_eq!((world.nr_pinnable(), world.nr_pages()), (0, 20), "page {page}");
            assert!(matches!(world.core.outbox.outcome_of(ticket), Outcome::Later(_)));
            world.core.call_off(ticket);
            let failed = world.extents().filter(|extent| !can_be_pinned(extent));
            let failed: u64 = failed.map(|extent| extent.run.nr_pages()).sum();
            assert_eq!(failed, 1, "page {page}");
            assert_eq!(world.nr_pinnable(), world.extents().filter(can_be_pinned).count());
        }
    }

    #[test]
    fn a_policy_that_changes_while_the_pool_is_closing_lets_nobody_in() {
        let mut world = world();
        let ticket = world.close();
        world.core.files.get_mut(&world.name).unwrap().rules.is_read_only = true;
        world.core.republish();
        assert_eq!(world.nr_pinnable(), 0);
        world.core.call_off(ticket);
        assert_eq!(world.nr_pinnable(), 2);
    }

    #[test]
    fn a_cut_that_is_given_up_while_the_pool_is_closing_is_undone_when_it_is_open_again() {
        let mut world = world();
        let patience = Patience { wait_ms: 60_000, on_deadline: OnDeadline::Fail };
        let cut = world.core.truncate(world.name.clone(), 4 * PAGE_BYTES, patience);
        let Outcome::Later(cut) = cut else { panic!("{cut:?}") };
        let ticket = world.close();
        world.core.call_off(cut);
        world.core.look_on();
        assert_eq!(world.nr_pinnable(), 0);
        assert_eq!(world.core.files[&world.name].len_bytes, 4 * PAGE_BYTES);
        let run = world.core.restorations.runs().next().unwrap();
        let folios = world.core.frames.vmemmap().folios(run);
        assert_eq!(folios.filter(|(.., word)| word.state() == FolioState::Live).count(), 0);
        world.core.call_off(ticket);
        world.core.look_on();
        assert_eq!(world.core.files[&world.name].len_bytes, 16 * PAGE_BYTES);
        assert_eq!(world.nr_pinnable(), 2);
    }

    /// Story: the caller of the cut heard that the file was as before, and read the length that the
    /// cut had given it.
    #[test]
    fn a_cut_that_is_called_off_while_the_pool_is_closing_has_its_answer_when_the_file_is_whole() {
        let mut world = world();
        let patience = Patience { wait_ms: 60_000, on_deadline: OnDeadline::Fail };
        let cut = world.core.truncate(world.name.clone(), 4 * PAGE_BYTES, patience);
        let Outcome::Later(cut) = cut else { panic!("{cut:?}") };
        let ticket = world.close();
        world.core.cancel_cut(&world.name).unwrap();
        world.core.look_on();
        assert!(matches!(world.core.outbox.outcome_of(cut), Outcome::Later(_)));
        world.core.call_off(ticket);
        world.core.look_on();
        assert_eq!(world.core.files[&world.name].len_bytes, 16 * PAGE_BYTES);
        let outcome = world.core.outbox.outcome_of(cut);
        let is_called_off =
            |reply: &Reply| matches!(reply, Reply::Refused(Refusal::CalledOff { .. }));
        assert!(matches!(&outcome, Outcome::Answer(reply) if is_called_off(reply)), "{outcome:?}");
    }
}
