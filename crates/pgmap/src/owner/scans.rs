//! Scans of the ledgers, whose holds are in the way of frames that are to go: in bounded steps, for
//! a client may have millions of slots. Nearly all scans end with their first step.
//!
//! Until its scan has ended a drain has no holders, and its frames are nobody's and not free.

use pgmap_mm::drain::{Drain, Scan};
use pgmap_mm::runs::SortedRuns;

use crate::name::FileName;
use crate::owner::closing::Closing;
use crate::owner::core::{Core, Ticket};
use crate::owner::cut::Cut;
use crate::owner::drains::Batch;
use crate::owner::pagemaps::Unplug;

/// Most slots or counts that one step reads, and holds that it puts in order: well below a
/// millisecond where few of them are in the way, a few where all are.
pub(crate) const STEP_SLOTS: usize = 32_768;

/// A scan that goes on, and what follows.
#[derive(Debug)]
pub(crate) struct PendingScan {
    scan: Scan,
    then: Scanning,
}

/// What a scan is for.
#[derive(Debug)]
pub(crate) enum Scanning {
    /// They are to be freed, file by file.
    Free(Batch),
    /// They are cut out of a file.
    Cut(Box<Cut>),
    /// They are a pagemap's, which goes.
    Unplug(Unplug),
    /// They are the pool's, which closes.
    Close(Closing),
    /// They are a part of it, which is drained for this ticket.
    Part(Ticket),
}

impl PendingScan {
    pub(crate) const fn runs(&self) -> &SortedRuns {
        self.scan.runs()
    }

    fn cut(&self) -> Option<&Cut> {
        match &self.then {
            Scanning::Cut(cut) => Some(cut),
            _ => None,
        }
    }

    pub(crate) const fn closing(&self) -> Option<&Closing> {
        match &self.then {
            Scanning::Close(closing) => Some(closing),
            _ => None,
        }
    }

    pub(crate) const fn part(&self) -> Option<Ticket> {
        match self.then {
            Scanning::Part(ticket) => Some(ticket),
            _ => None,
        }
    }

    pub(crate) const fn unplug(&self) -> Option<&Unplug> {
        match &self.then {
            Scanning::Unplug(unplug) => Some(unplug),
            _ => None,
        }
    }
}

impl Core {
    fn start_scan(&self, runs: SortedRuns) -> Scan {
        Scan::start(runs, &self.barrier, self.clients.ledgers())
    }

    /// One heavy barrier, one scan in one go: who holds any of `runs`, whose life words are
    /// changed.
    pub(crate) fn scan_for(&mut self, runs: SortedRuns) -> Drain {
        let mut scan = self.start_scan(runs);
        while !scan.look_on(usize::MAX, self.clients.ledgers_from(scan.next_client())) {}
        self.end_scan(scan)
    }

    fn end_scan(&mut self, scan: Scan) -> Drain {
        let mut drain = scan.finish();
        let lost = self.lost_holds(drain.runs());
        drain.add(lost);
        drain
    }

    /// One heavy barrier, and a scan in as many steps as it takes; then what is to follow.
    pub(crate) fn scan_then(&mut self, runs: SortedRuns, then: Scanning) {
        let scan = self.start_scan(runs);
        self.scan_on(scan, then);
    }

    fn scan_on(&mut self, mut scan: Scan, then: Scanning) {
        let next = scan.next_client();
        if !scan.look_on(STEP_SLOTS, self.clients.ledgers_from(next)) {
            return self.drains.add_scan(PendingScan { scan, then });
        }
        let drain = self.end_scan(scan);
        match then {
            Scanning::Free(batch) => self.took_out(drain, batch),
            Scanning::Cut(cut) => self.wait_for_holders(drain, cut),
            Scanning::Unplug(unplug) => self.unplug_after(drain, unplug),
            Scanning::Close(closing) => self.close_after(drain, closing),
            Scanning::Part(ticket) => self.part_after(drain, ticket),
        }
    }

    /// A step of one of the scans that go on.
    pub(crate) fn scan_some(&mut self) {
        if let Some(PendingScan { scan, then }) = self.drains.next_scan() {
            self.scan_on(scan, then);
        }
    }

    /// The cut of the file `name` for which a scan goes on.
    pub(crate) fn scanned_for(&self, name: &FileName) -> Option<Ticket> {
        let mut cuts = self.drains.scans().filter_map(PendingScan::cut);
        cuts.find(|cut| cut.name == *name).map(|cut| cut.ticket)
    }

    /// Ends the scan for the cut with this ticket.
    pub(crate) fn take_scanned_cut(&mut self, ticket: Ticket) -> Option<Cut> {
        let is_its = |pending: &PendingScan| pending.cut().is_some_and(|cut| cut.ticket == ticket);
        match self.drains.take_scan(is_its)?.then {
            Scanning::Cut(cut) => Some(*cut),
            _ => None,
        }
    }

    /// Ends the scan for which the pool is closing.
    pub(crate) fn take_closing_scan(&mut self) -> Option<Closing> {
        match self.drains.take_scan(|pending| pending.closing().is_some())?.then {
            Scanning::Close(closing) => Some(closing),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use pgmap_mm::drain::ClientId;
    use pgmap_mm::ledger::{Agent, LANE_SLOTS, SlotWord};
    use pgmap_mm::pfn::PfnRange;
    use pgmap_os::{MemoryFile, WriteMapping};

    use super::*;
    use crate::owner::clients::{Attachment, ClientIdentity};
    use crate::owner::core::Outcome;
    use crate::owner::cut::Patience;
    use crate::owner::made_file::make_file;
    use crate::pool::{Pool, PoolOptions};
    use crate::refusal::Refusal;
    use crate::wire::{OnDeadline, Reply};

    const NR_LANES: u64 = 16;
    const NR_FORGED: u64 = NR_LANES * LANE_SLOTS as u64;
    const FILE_BYTES: u64 = 16 << 20;

    /// Writes a ledger in which each of 262,144 slots holds a page of `run`.
    fn forge(core: &Core, attachment: &Attachment, run: PfnRange, agent: Agent) -> WriteMapping {
        let layout = core.pool.ledger_layout();
        let file = MemoryFile::from_fd(attachment.ledger.try_clone().unwrap()).unwrap();
        let mapping = WriteMapping::map(&file, 0, layout.nr_words() as u64 * 8).unwrap();
        let put = |at: u64, word: u64| mapping.copy_in(at * 8, &word.to_le_bytes()).unwrap();
        let [head, _, opened, _] = layout.always_used();
        put(1, NR_LANES);
        for lane in 0..NR_LANES {
            put(512 + 4 * lane, 1 << 16);
            put(512 + 4 * lane + 1, LANE_SLOTS as u64);
        }
        (0..NR_FORGED / 16).for_each(|block| put(opened.start as u64 + block, 1));
        let slots_start = head.end as u64 - 512;
        for n in 0..NR_FORGED {
            let page = run.sub_run(n * 7 % run.nr_pages(), 1).unwrap();
            put(slots_start + n, SlotWord::new(page, agent).bits());
        }
        mapping
    }

    struct World {
        core: Core,
        name: FileName,
        liar: ClientId,
        _kept: (Attachment, Attachment, WriteMapping),
    }

    fn world() -> World {
        world_of(Agent::Cpu)
    }

    fn world_of(agent: Agent) -> World {
        let pool = Pool::create(&PoolOptions::anonymous(2 * FILE_BYTES)).unwrap();
        let mut core = Core::open(Arc::new(pool)).unwrap();
        let (client, attachment) = core.attach(ClientIdentity::own(), false).unwrap();
        let name = FileName::new("a").unwrap();
        make_file(&mut core, client, &name, FILE_BYTES);
        let (liar, theirs) = core.attach(ClientIdentity::own(), false).unwrap();
        let forged = forge(&core, &theirs, core.files[&name].extents[0].run, agent);
        World { core, name, liar, _kept: (attachment, theirs, forged) }
    }

    fn patience(on_deadline: OnDeadline) -> Patience {
        Patience { wait_ms: 0, on_deadline }
    }

    /// Story: a liar's 262,144 slots were read, sorted and shared out in one go, and everybody
    /// waited.
    #[test]
    fn an_unlink_with_many_slots_to_read_goes_on_in_steps_between_which_others_are_served() {
        let mut world = world();
        let core = &mut world.core;
        core.unlink(&[world.name]).unwrap();
        let mut nr_steps = 0;
        while core.drains.scans().next().is_some() {
            let info = core.pool_info();
            assert_eq!(
                (info.free_bytes, info.draining_bytes),
                (FILE_BYTES, FILE_BYTES),
                "{info:?}"
            );
            assert!(core.is_looking() && core.is_draining());
            core.look_on();
            nr_steps += 1;
        }
        assert!(nr_steps as u64 >= NR_FORGED / STEP_SLOTS as u64, "{nr_steps} steps");
        let nr_held: usize = core.drains.iter().map(|pending| pending.drain.held().len()).sum();
        assert_eq!(nr_held as u64, NR_FORGED);
        core.reap(world.liar);
        while core.is_looking() || core.frames.has_backlog() {
            core.look_on();
        }
        assert_eq!(core.pool_info().free_bytes, 2 * FILE_BYTES);
    }

    #[test]
    fn whoever_needs_frames_whose_holders_are_looked_for_gets_those_that_nobody_holds() {
        let mut world = world();
        let core = &mut world.core;
        core.reap(world.liar);
        let (liar, theirs) = core.attach(ClientIdentity::own(), false).unwrap();
        let elsewhere = PfnRange::new(2 * FILE_BYTES / 4096 - 10, 10).unwrap();
        let _forged = forge(core, &theirs, elsewhere, Agent::Cpu);
        core.unlink(&[world.name]).unwrap();
        assert!(core.drains.scans().next().is_some());
        let name = FileName::new("b").unwrap();
        make_file(core, liar, &name, 2 * FILE_BYTES);
    }

    #[test]
    fn a_cut_waits_for_its_scan_and_then_for_its_deadline() {
        for on_deadline in [OnDeadline::Fail, OnDeadline::Quarantine] {
            let mut world = world();
            let core = &mut world.core;
            let outcome = core.truncate(world.name.clone(), 4096, patience(on_deadline));
            let Outcome::Later(ticket) = outcome else { panic!("{outcome:?}") };
            let mut nr_steps = 0;
            while core.is_looking() {
                core.look_on();
                nr_steps += 1;
            }
            assert!(nr_steps as u64 >= NR_FORGED / STEP_SLOTS as u64, "{nr_steps} steps");
            let answers = core.take_answers();
            let [(its, reply)] = &answers[..] else { panic!("{answers:?}") };
            assert_eq!(*its, ticket);
            let len_bytes = core.files[&world.name].len_bytes;
            match (on_deadline, reply) {
                (OnDeadline::Fail, Reply::Refused(Refusal::Held { .. })) => {
                    assert_eq!(len_bytes, FILE_BYTES);
                }
                (OnDeadline::Quarantine, Reply::Quarantined(_)) => assert_eq!(len_bytes, 4096),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_cut_that_is_called_off_while_its_holders_are_looked_for_never_was() {
        let mut world = world();
        let core = &mut world.core;
        let before = core.files[&world.name].extents.clone();
        let outcome = core.truncate(world.name.clone(), 4096, patience(OnDeadline::Quarantine));
        let Outcome::Later(ticket) = outcome else { panic!("{outcome:?}") };
        let is_done = matches!(core.cancel_cut(&world.name), Ok(Reply::Done));
        assert!(is_done && core.drains.scans().next().is_none() && !core.is_restoring());
        let answers = core.take_answers();
        assert!(
            matches!(&answers[..], [(its, Reply::Refused(_))] if *its == ticket),
            "{answers:?}"
        );
        let file = &core.files[&world.name];
        assert_eq!((file.len_bytes, file.doing), (FILE_BYTES, None));
        assert_eq!(file.extents[0].run, before[0].run);
        assert_eq!(core.pool_info().draining_bytes, 0);
    }

    /// Story: the slots of a dead client's devices were read, sorted and noted in one go.
    #[test]
    fn the_many_device_slots_of_a_dead_client_are_read_in_steps_between_which_others_are_served() {
        let mut world = world_of(Agent::Device);
        let core = &mut world.core;
        core.reap(world.liar);
        let mut nr_steps = 0;
        while core.clients.has_burials() {
            assert!(core.is_looking() && core.is_draining());
            if nr_steps == 0 {
                // Its holds stand until all of them are known.
                core.unlink(std::slice::from_ref(&world.name)).unwrap();
                core.reap(world.liar);
            }
            let (newcomer, _attachment) = core.attach(ClientIdentity::own(), false).unwrap();
            let info = core.pool_info();
            assert_eq!((info.free_bytes, info.draining_bytes), (FILE_BYTES, FILE_BYTES));
            core.look_on();
            core.reap(newcomer);
            nr_steps += 1;
        }
        // Each turn makes two steps: its own, and that of the newcomer's end.
        assert!(nr_steps as u64 >= NR_FORGED / STEP_SLOTS as u64 / 2 - 1, "{nr_steps} steps");
        while core.is_looking() || core.frames.has_backlog() {
            core.look_on();
        }
        let info = core.pool_info();
        assert_eq!((info.free_bytes, info.orphaned_bytes), (2 * FILE_BYTES, 0), "{info:?}");
        assert!(!core.clients.contains(world.liar));
    }

    #[test]
    fn all_frames_that_a_dead_clients_device_holds_are_orphans_when_its_slots_are_read() {
        let mut world = world_of(Agent::Device);
        let core = &mut world.core;
        core.reap(world.liar);
        assert!(core.is_looking());
        while core.is_looking() {
            core.look_on();
        }
        let info = core.pool_info();
        assert_eq!((info.orphaned_bytes, info.nr_clients), (FILE_BYTES, 1), "{info:?}");
    }
}
