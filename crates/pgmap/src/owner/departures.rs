//! Taking a backing out of a pool: files first, then whoever holds a frame, then the record.

use std::path::Path;

use pgmap_mm::pfn::PfnRange;
use pgmap_os::clock;

use crate::owner::backing::{Backing, BackingState};
use crate::owner::backing_changes::Departure;
use crate::owner::backings::{backing_of, release};
use crate::owner::core::{Core, Outcome, Ticket};
use crate::owner::frames::stored;
use crate::owner::scans::PendingScan;
use crate::pool::catalog::{Change, StoredBacking};
use crate::refusal::Refusal;
use crate::wire::Reply;

impl Core {
    /// Takes a backing out on which no file lies: nothing new is put there, and when nobody holds a
    /// frame of it any more it goes. Waits up to `wait_ms` for that; past it, it is as before.
    pub(crate) fn remove_backing(&mut self, name: &str, wait_ms: u64) -> Outcome {
        let ticket = match self.begin_departure(name, wait_ms) {
            Ok(ticket) => ticket,
            Err(refusal) => return Outcome::Answer(Reply::Refused(refusal)),
        };
        // What nobody holds is freed here, as far as that takes no long.
        self.look_again();
        self.outbox.outcome_of(ticket)
    }

    /// Has nothing more put on the backing, and waits for its frames from now on.
    ///
    /// # Errors
    /// [`Refusal::NoBacking`]; [`Refusal::Invalid`] for the pool's own data; [`Refusal::InUse`]
    /// when files lie on it, or it is taken out or drained already. Nothing is changed then.
    fn begin_departure(&mut self, name: &str, wait_ms: u64) -> Result<Ticket, Refusal> {
        let absent = || {
            let why = "the pool has none of that name".into();
            Refusal::NoBacking { backing: name.into(), why }
        };
        let backing = self.frames.backings().named(name).ok_or_else(absent)?;
        if backing.id == 0 {
            let why = "the pool's own data cannot be taken out of it".into();
            return Err(Refusal::Invalid { why });
        }
        if backing.state == BackingState::Leaving {
            return Err(Refusal::InUse { name: name.into(), doing: "taken out already".into() });
        }
        self.refuse_files_on(backing)?;
        self.refuse_parts_of(backing)?;
        let id = backing.id;
        let was_missing = match &backing.state {
            BackingState::Missing(why) => Some(why.clone()),
            BackingState::Open | BackingState::Leaving => None,
        };
        self.frames.backings_mut().set_state(id, BackingState::Leaving);
        let (ticket, started_ms) = (self.outbox.new_ticket(), clock::monotonic_ms());
        let deadline_ms = started_ms.saturating_add(wait_ms);
        self.changes.depart(Departure { ticket, id, started_ms, deadline_ms, was_missing });
        Ok(ticket)
    }

    /// Ends those of which every frame is free, or whose time is up.
    pub(crate) fn see_departures(&mut self) {
        for departure in self.changes.take_departures() {
            let Some(backing) = self.frames.backings().iter().find(|it| it.id == departure.id)
            else {
                continue;
            };
            let there: Vec<PfnRange> = backing.runs().into_iter().collect();
            self.take_spares_back(u64::MAX, |_, draft| {
                draft.runs().any(|run| there.iter().any(|of_backing| of_backing.overlaps(run)))
            });
            let Some(backing) = self.frames.backings().iter().find(|it| it.id == departure.id)
            else {
                continue;
            };
            let (free_pages, _) = self.frames.free_in(backing);
            let is_late = clock::monotonic_ms() >= departure.deadline_ms;
            let ended = if free_pages == backing.nr_pages {
                Some(self.finish_departure(&departure))
            } else if is_late {
                // A draft may have become a file.
                let refused = self.refuse_files_on(backing);
                Some(refused.and_then(|()| Err(self.held_on(backing, &departure))))
            } else {
                None
            };
            match ended {
                None => self.changes.depart(departure),
                Some(Ok(())) => self.outbox.answer(departure.ticket, Reply::Done),
                Some(Err(refusal)) => {
                    self.outbox.refuse(departure.ticket, refusal);
                    self.stay(departure);
                }
            }
        }
    }

    /// Ends the departure of this ticket, for which nobody waits any more.
    pub(crate) fn drop_departure(&mut self, ticket: Ticket) {
        if let Some(departure) = self.changes.take_departure(ticket) {
            self.stay(departure);
        }
    }

    /// The backing is as before.
    fn stay(&mut self, departure: Departure) {
        let is_there = self.frames.backings().iter().any(|backing| {
            // It may have been taken back meanwhile.
            backing.id == departure.id && backing.data.is_some()
        });
        let was_missing = departure.was_missing.filter(|_| !is_there);
        let state = was_missing.map_or(BackingState::Open, BackingState::Missing);
        self.frames.backings_mut().set_state(departure.id, state);
    }

    /// Who is in the way of a departure.
    fn held_on(&self, backing: &Backing, departure: &Departure) -> Refusal {
        let waited_ms = clock::monotonic_ms() - departure.started_ms;
        let holders = self.holders_of(&backing.runs().into_iter().collect(), waited_ms);
        let name = backing.name.clone();
        if holders.is_empty() {
            return Refusal::InUse { name, doing: self.why_kept(backing) };
        }
        Refusal::Held { name, holders, waited_ms }
    }

    /// Why a backing is not free on which no file lies and that nobody holds.
    fn why_kept(&self, backing: &Backing) -> String {
        let runs = backing.runs();
        let is_there = |run: PfnRange| runs.iter().any(|of_backing| of_backing.overlaps(run));
        let mut drafts = self.files.drafts();
        if let Some((_, draft)) =
            drafts.find(|(_, draft)| draft.extents.iter().any(|it| is_there(it.run)))
        {
            return format!("used by the file \"{}\", which is not committed yet", draft.name);
        }
        let waiting = self.drains.iter().map(|pending| pending.drain.runs());
        let mut waiting = waiting.chain(self.drains.scans().map(PendingScan::runs));
        if waiting.any(|waiting| waiting.iter().any(is_there))
            || runs.iter().any(|&run| self.frames.is_in_backlog(run))
        {
            return "given back by whoever had it; wait a little longer".into();
        }
        let why = "kept by frames that failed, or that a dead process's device may still write \
                   to; pgmap stat says how many";
        why.into()
    }

    /// Every frame of the backing is free: it goes. First from the record.
    fn finish_departure(&mut self, departure: &Departure) -> Result<(), Refusal> {
        let backing = backing_of(self, departure.id)?;
        let first_pfn = backing.first_pfn;
        let line = StoredBacking {
            is_retired: true,
            path: Vec::new(),
            ..stored(&self.pool.data, backing, Path::new(""))
        };
        self.record(&[Change::Backing(line.clone())])?;
        let Some(backing) = self.frames.remove_backing(departure.id) else {
            let why = format!("backing {} has frames that are not free", departure.id);
            return Err(Refusal::Internal { why });
        };
        self.pagemaps.remove_at(first_pfn);
        self.changes.retire(line, self.clients.ids());
        self.end_retirements();
        self.frames.backings_changed();
        release(backing);
        Ok(())
    }

    /// Refuses while a file has frames of it.
    fn refuse_files_on(&self, backing: &Backing) -> Result<(), Refusal> {
        let runs = backing.runs();
        let is_there = |run: PfnRange| runs.iter().any(|of_backing| of_backing.overlaps(run));
        let mut on_it = self.files.iter().filter(|(_, file)| file.runs().any(is_there));
        let Some((first, _)) = on_it.next() else { return Ok(()) };
        let (name, nr_more) = (backing.name.clone(), on_it.count());
        let doing = format!("used by the file \"{first}\" and {nr_more} more; unlink them");
        Err(Refusal::InUse { name, doing })
    }
}
