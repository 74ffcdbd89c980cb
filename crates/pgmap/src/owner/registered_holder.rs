//! The pool's holder in the owner's books, and what it is being asked.
//!
//! # Invariants
//!
//! - There is a way to a holder (`line`) exactly while one is registered.
//! - A question is about one run, and has one verdict: the holder's answer, or no once its deadline
//!   has passed or the holder is gone. None is left of a client that died.
//! - A question is passed to the holder once, by [`RegisteredHolder::pass_questions`].

use pgmap_mm::drain::ClientId;
use pgmap_mm::error::errno::EACCES;
use pgmap_mm::holder::{
    HolderAnswer, HolderError, HolderId, HolderSlot, Question, QuestionId, Questions, Requester,
    Verdict,
};
use pgmap_mm::pfn::PfnRange;

use crate::owner::holders::{Call, HolderLine};
use crate::refusal::Refusal;

/// The pool's holder, if there is one.
#[derive(Debug)]
pub(crate) struct RegisteredHolder {
    slot: HolderSlot,
    line: Option<HolderLine>,
    patience_ms: u64,
    questions: Questions,
    /// Those of the questions that are still to be passed to it.
    unsent: Vec<Question>,
}

impl RegisteredHolder {
    pub(crate) fn new() -> Self {
        Self {
            slot: HolderSlot::new(),
            line: None,
            patience_ms: 0,
            questions: Questions::new(),
            unsent: Vec::new(),
        }
    }

    /// Registers `id`, reached by `line`, which has so long to answer.
    ///
    /// # Errors
    /// [`HolderError`] when another one is registered.
    pub(crate) fn register(
        &mut self,
        id: HolderId,
        line: HolderLine,
        patience_ms: u64,
    ) -> Result<(), HolderError> {
        self.slot.register(id)?;
        self.line = Some(line);
        self.patience_ms = patience_ms;
        Ok(())
    }

    /// Releases the holder. What it was asked and has not answered is answered no.
    ///
    /// # Errors
    /// [`HolderError`] when `id` is not registered.
    pub(crate) fn unregister(&mut self, id: HolderId) -> Result<Vec<Verdict>, HolderError> {
        self.slot.unregister(id)?;
        self.line = None;
        Ok(self.questions.holder_gone(id))
    }

    pub(crate) fn id(&self) -> Option<HolderId> {
        self.slot.holder()
    }

    /// Notifies the holder, if there is one.
    pub(crate) fn notify(&self, call: Call) {
        if let Some(line) = &self.line {
            line.call(call);
        }
    }

    /// Asks whether `who` may pin `run`.
    ///
    /// # Errors
    /// [`Refusal::Denied`] when there is no holder, or too many questions wait.
    pub(crate) fn ask(
        &mut self,
        run: PfnRange,
        who: Requester,
        now_ms: u64,
    ) -> Result<QuestionId, Refusal> {
        let holder = self.id().ok_or_else(|| Refusal::Denied {
            why: "the holder that had to be asked has gone".into(),
            errno: EACCES,
        })?;
        let deadline_ms = now_ms.saturating_add(self.patience_ms);
        let question = self
            .questions
            .ask(holder, run, who, now_ms, deadline_ms)
            .map_err(|error| Refusal::Denied { why: error.to_string(), errno: error.errno() })?;
        self.unsent.push(question);
        Ok(question.id)
    }

    /// Passes new questions to the holder.
    pub(crate) fn pass_questions(&mut self) {
        for question in std::mem::take(&mut self.unsent) {
            self.notify(Call::Ask(question));
        }
    }

    /// Whether questions are still to be passed to the holder.
    pub(crate) const fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// What the holder answered, or its panic, makes of a question, if that still waits.
    pub(crate) fn answer(
        &mut self,
        question: QuestionId,
        answer: Option<HolderAnswer>,
        now_ms: u64,
    ) -> Option<Verdict> {
        self.questions.answer(question, answer, now_ms)
    }

    /// Denies what the holder left unanswered.
    pub(crate) fn expire(&mut self, now_ms: u64) -> Vec<Verdict> {
        self.questions.expire(now_ms)
    }

    pub(crate) fn client_died(&mut self, client: ClientId) {
        self.questions.client_died(client);
    }

    pub(crate) fn next_deadline_ms(&self) -> Option<u64> {
        self.questions.next_deadline_ms()
    }
}
