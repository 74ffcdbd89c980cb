//! What the owner has to say to clients: answers that come later, and events.
//!
//! # Invariants
//!
//! - The number of a ticket is never used again.
//! - A ticket has at most one answer, which is handed out once: to the request itself if it is
//!   ready by then, else with the others.
//! - Events leave in the order in which they came.

use pgmap_mm::drain::ClientId;

use crate::owner::core::{Outcome, Ticket};
use crate::refusal::Refusal;
use crate::wire::{Event, Reply};

/// Answers and events that are still to be sent.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    answers: Vec<(Ticket, Reply)>,
    events: Vec<(ClientId, Event)>,
    last_ticket: u64,
}

impl Outbox {
    /// A ticket for a request whose answer comes later.
    pub(crate) fn new_ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        Ticket(self.last_ticket)
    }

    /// Answers the request with this ticket, which has no answer yet.
    pub(crate) fn answer(&mut self, ticket: Ticket, reply: Reply) {
        debug_assert!(
            self.answers.iter().all(|&(answered, _)| answered != ticket),
            "{ticket:?} has an answer already"
        );
        self.answers.push((ticket, reply));
    }

    /// Refuses the request with this ticket.
    pub(crate) fn refuse(&mut self, ticket: Ticket, refusal: Refusal) {
        self.answer(ticket, Reply::Refused(refusal));
    }

    /// What became of the request with this ticket: its answer, if there is one by now.
    pub(crate) fn outcome_of(&mut self, ticket: Ticket) -> Outcome {
        match self.answers.iter().position(|&(answered, _)| answered == ticket) {
            Some(place) => Outcome::Answer(self.answers.swap_remove(place).1),
            None => Outcome::Later(ticket),
        }
    }

    /// The answers that have become ready.
    pub(crate) fn take_answers(&mut self) -> Vec<(Ticket, Reply)> {
        std::mem::take(&mut self.answers)
    }

    /// Notifies a client.
    pub(crate) fn notify(&mut self, client: ClientId, event: Event) {
        self.events.push((client, event));
    }

    /// Notifies a client, unless the same event is still to be sent to it.
    pub(crate) fn notify_once(&mut self, client: ClientId, event: Event) {
        let notice = (client, event);
        if !self.events.contains(&notice) {
            self.events.push(notice);
        }
    }

    /// The events that are still to be sent.
    pub(crate) fn take_events(&mut self) -> Vec<(ClientId, Event)> {
        std::mem::take(&mut self.events)
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.answers.is_empty() && self.events.is_empty()
    }
}
