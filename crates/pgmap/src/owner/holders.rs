//! The pool's holder, as the embedding program registers one: asked before long-term pins, told of
//! failure and of drains.
//!
//! It is called on a worker thread of its own. One that blocks, panics or answers late hurts nobody
//! but itself: questions it does not answer in time are answered no.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};

use pgmap_mm::holder::{
    DrainReason, Holder, HolderAnswer, HolderError, HolderId, Question, QuestionId, consult,
    tell_failure,
};
use pgmap_mm::pagemap::FailureFlags;
use pgmap_mm::pfn::PfnRange;
use pgmap_os::sync::{Condvar, Mutex, MutexGuard};

use crate::owner::core::Core;
use crate::refusal::Refusal;

/// Calls that wait for a holder. More are dropped: a question then ends by its deadline.
const MAX_CALLS: usize = 4096;

/// Something to call the holder for.
#[derive(Debug)]
pub(crate) enum Call {
    Ask(Question),
    Failure(PfnRange, FailureFlags),
    Drain(PfnRange, DrainReason, u64),
}

/// The way to the holder's worker, who ends when it is dropped.
#[derive(Debug)]
pub(crate) struct HolderLine {
    calls: Arc<Calls>,
}

/// Calls that the worker has not made yet.
#[derive(Debug, Default)]
struct Calls {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    calls: VecDeque<Call>,
    is_over: bool,
}

impl Calls {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next call, as soon as there is one; `None` if there will be no more.
    fn next(&self) -> Option<Call> {
        let mut waiting = self.lock();
        loop {
            if let Some(call) = waiting.calls.pop_front() {
                return Some(call);
            }
            if waiting.is_over {
                return None;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl HolderLine {
    /// Starts a worker for `holder`, which gives answers to `answered`.
    pub(crate) fn open(
        holder: Arc<dyn Holder>,
        answered: impl Fn(QuestionId, Option<HolderAnswer>) + Send + 'static,
    ) -> Result<Self, std::io::Error> {
        let calls = Arc::new(Calls::default());
        let taken = Arc::clone(&calls);
        // Not joined: a holder that blocks for ever must not keep the owner from stopping.
        pgmap_os::thread::Builder::new()
            .name("pgmap-holder".into())
            .spawn(move || work(&*holder, &taken, &answered))?;
        Ok(Self { calls })
    }

    pub(crate) fn call(&self, call: Call) {
        let mut waiting = self.calls.lock();
        if waiting.calls.len() >= MAX_CALLS {
            drop(waiting);
            tracing::warn!(?call, "the holder is too slow");
            return;
        }
        waiting.calls.push_back(call);
        drop(waiting);
        self.calls.changed.notify_all();
    }
}

impl Drop for HolderLine {
    fn drop(&mut self) {
        self.calls.lock().is_over = true;
        self.calls.changed.notify_all();
    }
}

fn work(holder: &dyn Holder, calls: &Calls, answered: &impl Fn(QuestionId, Option<HolderAnswer>)) {
    while let Some(call) = calls.next() {
        let returned = match call {
            Call::Ask(question) => {
                let answer = consult(holder, question.run, &question.who);
                answered(question.id, answer);
                answer.is_some()
            }
            Call::Failure(run, flags) => tell_failure(holder, run, flags),
            Call::Drain(run, reason, deadline_ms) => {
                let told = std::panic::AssertUnwindSafe(|| {
                    holder.drain_requested(run, reason, deadline_ms);
                });
                std::panic::catch_unwind(told).is_ok()
            }
        };
        if !returned {
            tracing::error!("the holder panicked");
        }
    }
}

impl From<HolderError> for Refusal {
    fn from(error: HolderError) -> Self {
        Self::Denied { why: error.to_string(), errno: error.errno() }
    }
}

impl Core {
    /// Makes `id` the pool's holder, reached by `line`.
    pub(crate) fn set_holder(
        &mut self,
        id: HolderId,
        line: HolderLine,
        patience_ms: u64,
    ) -> Result<(), HolderError> {
        self.holder.register(id, line, patience_ms)?;
        self.republish();
        Ok(())
    }

    /// Lets the holder go. What it was asked and has not answered is answered no.
    pub(crate) fn unset_holder(&mut self, id: HolderId) -> Result<(), HolderError> {
        for verdict in self.holder.unregister(id)? {
            self.hear(&verdict);
        }
        self.republish();
        Ok(())
    }
}
