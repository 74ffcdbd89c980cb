//! Taking memory from the system for a large file in bounded steps, so that others are served
//! meanwhile.
//!
//! The frames are reserved at once, and their draft is in the books; its answer comes when the
//! memory is there. A step is taken without the books' lock: only the thread that runs the owner's
//! loop takes them, and a frame whose draft is still in the books is freed, and its memory given
//! back, by nobody.
//!
//! # Invariants
//!
//! - The answer to a population's ticket comes once its last step was taken, and not if it was
//!   given up.
//! - A draft that lacks memory is the client's own, and cannot be committed.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use pgmap_mm::drain::ClientId;
use pgmap_mm::index::FileId;
use pgmap_mm::level::PAGE_BYTES;
use pgmap_mm::pfn::PfnRange;
use pgmap_os::{MemoryFile, OsError, clock};

use crate::owner::core::{Core, Ticket};
use crate::refusal::Refusal;
use crate::wire::{Draft, Reply};

/// Memory of one step, in frames: 4 MiB, which takes a few milliseconds.
pub(crate) const STEP_PAGES: u64 = 1024;
/// How often whoever waits hears that the owner is at work.
const SIGN_MS: u64 = 500;

/// A batch of files whose memory is not all there yet.
#[derive(Debug)]
pub(crate) struct Population {
    ticket: Ticket,
    client: ClientId,
    /// The answer so far.
    drafts: Vec<Result<Draft, Refusal>>,
    /// Which of them lack memory: its place among them, its number, and the runs to be looked at,
    /// last first.
    todo: Vec<(usize, FileId, Vec<PfnRange>)>,
    signed_ms: u64,
}

/// One step: what to ask the system for.
#[derive(Debug)]
pub(crate) struct PopulateStep {
    data: Arc<MemoryFile>,
    /// Where in that it is.
    bytes: Range<u64>,
    run: PfnRange,
}

impl PopulateStep {
    /// Takes the memory. This is what takes long.
    pub(crate) fn take(&self) -> Result<(), OsError> {
        self.data.reserve(self.bytes.clone())
    }
}

/// The populations that have not ended. Steps are taken of the first.
#[derive(Debug, Default)]
pub(crate) struct Populations {
    queue: VecDeque<Population>,
}

impl Populations {
    fn add(&mut self, population: Population) {
        self.queue.push_back(population);
    }

    /// Whether no step of a population is due.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether the answer to this ticket waits for memory.
    pub(crate) fn is_waited_for(&self, ticket: Ticket) -> bool {
        self.queue.iter().any(|population| population.ticket == ticket)
    }

    /// Whether a draft lacks memory; nobody was given it.
    pub(crate) fn lacks_memory(&self, id: FileId) -> bool {
        self.queue.iter().flat_map(|p| &p.todo).any(|(_, lacking, _)| *lacking == id)
    }

    /// Those who wait and have not heard for a while that the owner is at work.
    pub(crate) fn signs_due(&mut self) -> Vec<Ticket> {
        let now_ms = clock::monotonic_ms();
        let due = self.queue.iter_mut().filter(|p| now_ms >= p.signed_ms + SIGN_MS);
        due.map(|population| {
            population.signed_ms = now_ms;
            population.ticket
        })
        .collect()
    }

    fn take(&mut self, ticket: Ticket) -> Option<Population> {
        let place = self.queue.iter().position(|population| population.ticket == ticket)?;
        self.queue.remove(place)
    }
}

impl Core {
    /// Answers later, when the drafts in `todo` have memory.
    pub(crate) fn populate(
        &mut self,
        client: ClientId,
        drafts: Vec<Result<Draft, Refusal>>,
        todo: Vec<(usize, FileId, Vec<PfnRange>)>,
    ) -> Ticket {
        let ticket = self.outbox.new_ticket();
        let signed_ms = clock::monotonic_ms();
        self.populations.add(Population { ticket, client, drafts, todo, signed_ms });
        ticket
    }

    /// What to ask the system for next; a population that lacks nothing is answered.
    pub(crate) fn next_step(&mut self) -> Option<PopulateStep> {
        // Every turn takes something off a list.
        while let Some(population) = self.populations.queue.front_mut() {
            let Some((_, id, runs)) = population.todo.last_mut() else {
                if let Some(done) = self.populations.queue.pop_front() {
                    self.outbox.answer(done.ticket, Reply::Created(done.drafts));
                }
                continue;
            };
            let is_wanted = self.files.draft_of(*id, population.client).is_some();
            let Some(run) = runs.pop().filter(|_| is_wanted) else {
                population.todo.pop();
                continue;
            };
            let backing = self.frames.backings().at(run.start());
            let unit = (backing.page_bytes() / PAGE_BYTES).max(STEP_PAGES);
            let in_step = unit - run.start() % unit;
            let Some(step) = run.sub_run(0, in_step.min(run.nr_pages())) else { continue };
            runs.extend(run.without(step).1);
            if self.frames.missing_pages(step) > 0 {
                let data = Arc::clone(backing.data.as_ref().unwrap_or(&self.pool.data));
                return Some(PopulateStep { data, bytes: backing.bytes_of(step), run: step });
            }
        }
        None
    }

    /// Takes note of what became of a step.
    pub(crate) fn step_taken(&mut self, step: &PopulateStep, result: Result<(), OsError>) {
        let Some(population) = self.populations.queue.front_mut() else { return };
        let Some((place, id, _)) = population.todo.last() else { return };
        let (place, id) = (*place, *id);
        let holds = self
            .files
            .draft_of(id, population.client)
            .is_some_and(|draft| draft.extents.iter().any(|extent| extent.run.overlaps(step.run)));
        if !holds {
            // Its client died or left, and the frames may have gone through other hands since.
            return;
        }
        match result {
            Ok(()) => self.frames.has_memory(step.run),
            Err(error) => {
                population.drafts[place] = Err(Refusal::NoMemory { why: error.to_string() });
                population.todo.pop();
                if let Some(draft) = self.files.take_draft(id) {
                    // Nobody was given these frames, so nobody holds them.
                    self.frames.give_back(&draft.extents);
                }
            }
        }
    }

    /// Gives up a population that nobody waits for any more, and all its drafts.
    pub(crate) fn drop_population(&mut self, ticket: Ticket) {
        let Some(population) = self.populations.take(ticket) else { return };
        let ids: Vec<u64> = population.drafts.iter().flatten().map(|draft| draft.id).collect();
        let given_up = ids.iter().filter_map(|&id| self.files.take_draft(FileId(id))).collect();
        self.retire_drafts(given_up);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::FileName;
    use crate::owner::clients::ClientIdentity;
    use crate::owner::core::Outcome;
    use crate::pool::{Pool, PoolOptions};
    use crate::wire::{CreateSpec, FolioSize};

    /// The next step begins where a unit does, wherever the file does: steps share no page of
    /// memory.
    #[test]
    fn memory_is_taken_a_unit_at_a_time_and_the_answer_comes_with_the_last() {
        let pool = Pool::create(&PoolOptions::anonymous(8 << 20)).unwrap();
        let mut core = Core::open(Arc::new(pool)).unwrap();
        let (client, _attachment) = core.attach(ClientIdentity::own(), false).unwrap();
        let spec = |(name, pages): (&str, u64)| {
            CreateSpec::new(FileName::new(name).unwrap(), pages * PAGE_BYTES, FolioSize::Pages4K)
        };
        let specs = [("a", 3), ("b", 500), ("c", 500), ("d", 500)].map(spec).to_vec();
        let outcome = core.create(client, specs).unwrap();
        let Outcome::Later(ticket) = outcome else { panic!("{outcome:?}") };
        assert!(
            core.populations.is_waited_for(ticket)
                && !core.populations.is_waited_for(Ticket(ticket.0 + 1))
        );
        let mut steps = Vec::new();
        while let Some(step) = core.next_step() {
            assert!(!core.populations.is_empty() && core.take_answers().is_empty());
            let result = step.take();
            core.step_taken(&step, result);
            steps.push((step.run.start(), step.run.end()));
        }
        assert_eq!(steps, [(1003, 1024), (1024, 1503)]);
        assert!(core.populations.is_empty() && !core.populations.is_waited_for(ticket));
        let answers = core.take_answers();
        let [(its, Reply::Created(drafts))] = &answers[..] else { panic!("{answers:?}") };
        assert!(*its == ticket && drafts.iter().all(Result::is_ok) && drafts.len() == 4);
    }
}
