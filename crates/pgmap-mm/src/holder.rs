//! Holders: the driver of a pagemap, asked before long-term pins and notified of failure and
//! removal.
//!
//! # States
//!
//! ```text
//!   the slot:   empty ── register ──▶ held ── unregister ──▶ empty
//!
//!   a question: asked ── answered in time ──▶ its answer
//!                 ├────── deadline passes, holder panics or goes ──▶ Deny
//! ```
//!
//! # Who may touch what
//!
//! Any thread may register, unregister and look. Questions are the owner's own table on one thread:
//! it hands them to a worker, which calls the holder, and goes on.
//!
//! # Orderings
//!
//! One word says who the holder is. Registering is a compare-and-swap from empty, unregistering one
//! to empty (AcqRel); they pair with each other and with the Acquire load of whoever looks. Data:
//! what the holder wrote before.
//!
//! # Lost races
//!
//! *Register against register.* One compare-and-swap finds the slot empty; the other finds the
//! first and gets `EBUSY`.
//!
//! *Answer against deadline.* Both are the owner's turns. Whichever is first takes the question out
//! of the table; the other finds none and changes nothing.
//!
//! # Differs from Linux
//!
//! The only thing a holder is asked or notified of there is `notify_failure` (Linux 7.1:
//! drivers/dax/super.c, struct `dax_holder_operations`); it cannot say no to a pin, and the caller
//! waits for it without a limit. Here no answer in time is "no".

use core::fmt;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::drain::ClientId;
use crate::error::errno;
use crate::ledger::Agent;
use crate::pagemap::FailureFlags;
use crate::pfn::PfnRange;
use crate::prot::Access;
use crate::sync::{AtomicU64, Ordering};

/// Questions that may wait for holders at one time.
pub const MAX_QUESTIONS: usize = 1024;

/// Which holder: a number from 1 to 2^62 - 1 that its registrant chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HolderId(u64);

impl HolderId {
    /// The holder with this number; none for 0 and for numbers of more than 62 bits.
    #[must_use]
    pub const fn new(number: u64) -> Option<Self> {
        if number != 0 && number >> ID_BITS == 0 { Some(Self(number)) } else { None }
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// Who asks for a long-term pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requester {
    /// The client.
    pub client: ClientId,
    /// What it is about to do.
    pub access: Access,
    /// Who will do it.
    pub agent: Agent,
}

/// What a holder says to a long-term pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HolderAnswer {
    /// For as long as it likes.
    Allow,
    /// No.
    Deny,
    /// Until then, in milliseconds of the owner's clock; the owner may ask for it back earlier.
    Lease(u64),
}

/// Why reclaim of frames was requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainReason {
    /// A file gets shorter, or a hole.
    Truncate,
    /// A file goes.
    Unlink,
    /// The memory goes.
    Unplug,
    /// The operator asked.
    Operator,
}

/// The driver of a pagemap: a file system, a device-dax user, a virtual machine monitor. The owner
/// calls it on a worker of its own and does not wait longer than a deadline; it may be called on
/// any thread.
pub trait Holder: Send + Sync {
    /// May `who` pin `run` long-term?
    fn longterm_admit(&self, run: PfnRange, who: &Requester) -> HolderAnswer;

    /// Memory failed, or is about to be removed ([`FailureFlags::MEM_PRE_REMOVE`]).
    fn notify_failure(&self, run: PfnRange, flags: FailureFlags);

    /// Reclaim of `run` is requested, until `deadline_ms`.
    fn drain_requested(&self, run: PfnRange, reason: DrainReason, deadline_ms: u64);
}

/// Asks `holder`, and takes a panic for no answer. For the owner's worker.
#[must_use]
pub fn consult(holder: &dyn Holder, run: PfnRange, who: &Requester) -> Option<HolderAnswer> {
    // Nothing of the owner's is in the closure, so nothing of it can be left half done.
    catch_unwind(AssertUnwindSafe(|| holder.longterm_admit(run, who))).ok()
}

/// Tells `holder` of a failure; a panic is the holder's own affair. Says whether it returned.
pub fn tell_failure(holder: &dyn Holder, run: PfnRange, flags: FailureFlags) -> bool {
    catch_unwind(AssertUnwindSafe(|| holder.notify_failure(run, flags))).is_ok()
}

/// Why nobody became the holder, or the holder cannot be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HolderError {
    /// Another is the holder.
    Busy {
        /// Who.
        by: HolderId,
    },
    /// The one who wants to leave is not the holder.
    NotHolder {
        /// Who it says it is.
        id: HolderId,
    },
    /// As many questions wait as may.
    TooMany {
        /// How many.
        nr_questions: usize,
    },
}

impl HolderError {
    /// The Linux error number that says the same.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::Busy { .. } => errno::EBUSY,
            Self::NotHolder { .. } => errno::EINVAL,
            Self::TooMany { .. } => errno::EAGAIN,
        }
    }
}

impl fmt::Display for HolderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy { by } => write!(f, "holder {} is there already", by.0),
            Self::NotHolder { id } => write!(f, "{} is not the holder", id.0),
            Self::TooMany { nr_questions } => {
                write!(f, "{nr_questions} questions wait for holders already")
            }
        }
    }
}

impl std::error::Error for HolderError {}

const ID_BITS: u32 = 62;

/// The place of a pagemap's one holder.
#[derive(Debug)]
pub struct HolderSlot {
    word: AtomicU64,
}

impl Default for HolderSlot {
    fn default() -> Self {
        Self::new()
    }
}

impl HolderSlot {
    /// Nobody's.
    #[must_use]
    pub fn new() -> Self {
        Self { word: AtomicU64::new(0) }
    }

    /// Makes `id` the holder (Linux 7.1: drivers/dax/super.c, `fs_dax_get`).
    ///
    /// # Errors
    /// [`HolderError::Busy`] when another is.
    pub fn register(&self, id: HolderId) -> Result<(), HolderError> {
        // AcqRel, Acquire: pairs with `unregister`; data: what the holder before wrote.
        match self.word.compare_exchange(0, id.0, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(word) => Err(HolderError::Busy { by: HolderId(word) }),
        }
    }

    /// Lets `id` leave.
    ///
    /// # Errors
    /// [`HolderError::NotHolder`].
    pub fn unregister(&self, id: HolderId) -> Result<(), HolderError> {
        // AcqRel: pairs with `register`; data: what this holder wrote.
        match self.word.compare_exchange(id.0, 0, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(_) => Err(HolderError::NotHolder { id }),
        }
    }

    /// The holder, if there is one.
    #[must_use]
    pub fn holder(&self) -> Option<HolderId> {
        // Acquire: pairs with `register`; data: what the holder wrote before.
        HolderId::new(self.word.load(Ordering::Acquire))
    }
}

/// Which question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QuestionId(pub u64);

/// A question that waits for a holder: may `who` pin `run` long-term?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Which.
    pub id: QuestionId,
    /// Who is asked.
    pub holder: HolderId,
    /// About which frames.
    pub run: PfnRange,
    /// For whom.
    pub who: Requester,
    /// When it was asked.
    pub asked_ms: u64,
    /// Until when an answer counts.
    pub deadline_ms: u64,
}

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerSource {
    /// The holder gave it.
    Given,
    /// The holder gave none in time.
    Late,
    /// The holder panicked.
    Panicked,
    /// The holder went away.
    Gone,
    /// The holder granted a time that was over.
    Nonsense,
}

/// The end of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The question.
    pub question: Question,
    /// What holds now.
    pub answer: HolderAnswer,
    /// Why.
    pub source: AnswerSource,
}

/// Questions that wait. Times are milliseconds of the caller's clock.
#[derive(Debug, Default)]
pub struct Questions {
    waiting: BTreeMap<QuestionId, Question>,
    last_id: u64,
}

impl Questions {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes a question down, for a worker to ask.
    ///
    /// # Errors
    /// [`HolderError::TooMany`].
    pub fn ask(
        &mut self,
        holder: HolderId,
        run: PfnRange,
        who: Requester,
        now_ms: u64,
        deadline_ms: u64,
    ) -> Result<Question, HolderError> {
        if self.waiting.len() >= MAX_QUESTIONS {
            return Err(HolderError::TooMany { nr_questions: self.waiting.len() });
        }
        self.last_id += 1;
        let id = QuestionId(self.last_id);
        let question = Question { id, holder, run, who, asked_ms: now_ms, deadline_ms };
        self.waiting.insert(id, question);
        Ok(question)
    }

    /// Takes an answer, or the lack of one when the holder panicked. `None` if the question is not
    /// waiting any more: the answer came late, or twice.
    pub fn answer(
        &mut self,
        id: QuestionId,
        answer: Option<HolderAnswer>,
        now_ms: u64,
    ) -> Option<Verdict> {
        let question = self.waiting.remove(&id)?;
        let deny = |source| Verdict { question, answer: HolderAnswer::Deny, source };
        Some(match answer {
            _ if question.deadline_ms < now_ms => deny(AnswerSource::Late),
            None => deny(AnswerSource::Panicked),
            Some(HolderAnswer::Lease(until_ms)) if until_ms <= now_ms => {
                deny(AnswerSource::Nonsense)
            }
            Some(answer) => Verdict { question, answer, source: AnswerSource::Given },
        })
    }

    /// Denies what nobody has answered by `now_ms`.
    pub fn expire(&mut self, now_ms: u64) -> Vec<Verdict> {
        self.deny_all(AnswerSource::Late, |question| question.deadline_ms < now_ms)
    }

    /// Denies what `holder` was asked: it has gone.
    pub fn holder_gone(&mut self, holder: HolderId) -> Vec<Verdict> {
        self.deny_all(AnswerSource::Gone, |question| question.holder == holder)
    }

    /// Forgets what `client` asked for: it has died, and nobody waits for the answers.
    pub fn client_died(&mut self, client: ClientId) {
        self.waiting.retain(|_, question| question.who.client != client);
    }

    /// The earliest deadline.
    #[must_use]
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.waiting.values().map(|question| question.deadline_ms).min()
    }

    fn deny_all(
        &mut self,
        source: AnswerSource,
        which: impl Fn(&Question) -> bool,
    ) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        self.waiting.retain(|_, question| {
            let is_over = which(question);
            if is_over {
                let question = *question;
                verdicts.push(Verdict { question, answer: HolderAnswer::Deny, source });
            }
            !is_over
        });
        verdicts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> HolderId {
        HolderId::new(number).unwrap()
    }

    fn run() -> PfnRange {
        PfnRange::new(0, 512).unwrap()
    }

    fn who() -> Requester {
        Requester { client: ClientId(7), access: Access::Write, agent: Agent::Device }
    }

    #[test]
    fn the_slot_has_one_holder_at_a_time() {
        let slot = HolderSlot::new();
        assert_eq!(slot.register(id(1)), Ok(()));
        assert_eq!(slot.register(id(2)).map_err(|e| e.errno()), Err(errno::EBUSY));
        assert_eq!(slot.unregister(id(2)), Err(HolderError::NotHolder { id: id(2) }));
        slot.unregister(id(1)).unwrap();
        assert_eq!((slot.register(id(2)), slot.holder()), (Ok(()), Some(id(2))));
    }

    #[test]
    fn only_an_answer_in_time_counts() {
        let mut questions = Questions::new();
        let ask = |q: &mut Questions| q.ask(id(1), run(), who(), 0, 100).unwrap().id;
        for (answer, now_ms, expected, source) in [
            (Some(HolderAnswer::Allow), 100, HolderAnswer::Allow, AnswerSource::Given),
            (Some(HolderAnswer::Allow), 101, HolderAnswer::Deny, AnswerSource::Late),
            (Some(HolderAnswer::Lease(90)), 50, HolderAnswer::Lease(90), AnswerSource::Given),
            (Some(HolderAnswer::Lease(50)), 50, HolderAnswer::Deny, AnswerSource::Nonsense),
            (None, 50, HolderAnswer::Deny, AnswerSource::Panicked),
        ] {
            let id = ask(&mut questions);
            let verdict = questions.answer(id, answer, now_ms).unwrap();
            assert_eq!((verdict.answer, verdict.source), (expected, source));
            assert_eq!(questions.answer(id, answer, now_ms), None, "answered once");
        }
    }

    #[test]
    fn a_holder_that_never_answers_cannot_keep_a_question() {
        let mut questions = Questions::new();
        let late = questions.ask(id(1), run(), who(), 0, 100).unwrap();
        questions.ask(id(2), run(), who(), 0, 200).unwrap();
        assert!(questions.expire(100).is_empty());
        assert_eq!(questions.expire(101)[0].question, late);
        assert_eq!(questions.answer(late.id, Some(HolderAnswer::Allow), 102), None);
        assert_eq!(questions.holder_gone(id(2))[0].source, AnswerSource::Gone);
        assert_eq!(questions.next_deadline_ms(), None);
        for _ in 0..MAX_QUESTIONS {
            questions.ask(id(1), run(), who(), 0, 1).unwrap();
        }
        assert!(matches!(
            questions.ask(id(1), run(), who(), 0, 1),
            Err(HolderError::TooMany { nr_questions: MAX_QUESTIONS })
        ));
        questions.client_died(who().client);
        assert_eq!(questions.next_deadline_ms(), None);
    }

    #[test]
    fn a_panicking_holder_gives_no_answer() {
        struct Panicking;
        impl Holder for Panicking {
            fn longterm_admit(&self, _: PfnRange, _: &Requester) -> HolderAnswer {
                panic!("a holder's own bug");
            }
            fn notify_failure(&self, _: PfnRange, _: FailureFlags) {
                panic!("another");
            }
            fn drain_requested(&self, _: PfnRange, _: DrainReason, _: u64) {}
        }
        assert_eq!(consult(&Panicking, run(), &who()), None);
        assert!(!tell_failure(&Panicking, run(), FailureFlags::MEM_PRE_REMOVE));
    }
}
