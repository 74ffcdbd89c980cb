//! Invalidation: notifies those who cache translations of the ranges that ended.
//!
//! A device with its own translation cache (an IOTLB, an RDMA key) subscribes. It is notified of
//! every range whose translations ended, after they ended here, and acknowledges with the token it
//! was given once its cache holds them no more. Whoever ended them gets an [`AckTicket`] and
//! decides how long to [wait](AckTicket::wait).
//!
//! A device must *hold* what it caches, by pins of its own with
//! [`DEVICE`](crate::gup::GupFlags::DEVICE): a notification ends translations, and only a hold
//! keeps frames from being reused before the device has let go. A drain then waits for the device
//! as for any holder, up to its deadline, and names it.
//!
//! # States
//!
//! ```text
//!   notified ── acknowledge ──▶ done      notified ── token dropped ──▶ abandoned: never done
//! ```
//!
//! # Who may touch what
//!
//! The token belongs to the subscriber, the ticket to the one who ended the translations.
//!
//! # Orderings
//!
//! Acknowledging is Release, asking Acquire. Data: whatever the device did through its cache
//! before. Whoever waits looks with the lock of `Acks` held, and whoever answers takes it after the
//! count is down and before it wakes: the waiter has seen the count, or is woken.
//!
//! # Lost races
//!
//! *Subscribe against unmap.* Both take the address space's lock. If the subscription is first, the
//! subscriber is notified. If the unmap is first, it is not, and cannot have cached what ended
//! before it subscribed.
//!
//! *A new mapping at the same address against the notification that the old one ended.* The
//! subscriber may be notified after the new mapping is there, and drop a translation that was good.
//! It fetches again.
//!
//! # Differs from Linux
//!
//! `mmu_notifier` callbacks return when the device has let go (Linux 7.1: mm/mmu_notifier.c), and
//! one that hangs hangs the unmap. Here the caller sees who has not answered, and may go on to
//! quarantine.

use core::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use crate::level::PAGE_BYTES;
use crate::sync::{AtomicU64, Condvar, Mutex, MutexGuard, Ordering};

/// Addresses whose translations ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndedRange {
    /// First address.
    pub address: u64,
    /// Length in bytes.
    pub len_bytes: u64,
}

/// Somebody who caches translations.
pub trait InvalidateSubscriber: Send + Sync + fmt::Debug {
    /// The translations of `ranges` have ended. `token` is to be acknowledged once no cached one is
    /// used any more, now or later. The address space is not locked.
    fn ended(&self, ranges: &[EndedRange], token: AckToken);
}

/// Answers of one telling.
#[derive(Debug)]
struct Acks {
    outstanding: AtomicU64,
    abandoned: AtomicU64,
    waiters: Mutex<()>,
    changed: Condvar,
}

impl Acks {
    fn wake(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Subscribers that have not said that they use the ended translations no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered {
    /// How many have not answered.
    pub nr_outstanding: u64,
    /// How many of those never will, because they dropped their token.
    pub nr_abandoned: u64,
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nr_outstanding, nr_abandoned } = self;
        write!(
            f,
            "{nr_outstanding} subscribers may still use translations that ended, of which \
             {nr_abandoned} will never answer; keep the frames until their devices are reset"
        )
    }
}

impl std::error::Error for Unanswered {}

/// A subscriber's duty to answer.
#[derive(Debug)]
#[must_use = "a dropped token counts as an answer that will never come"]
pub struct AckToken {
    acks: Arc<Acks>,
    is_answered: bool,
}

impl AckToken {
    /// Says that no cached translation of the ranges is used any more.
    pub fn acknowledge(mut self) {
        self.is_answered = true;
        // Release: pairs with Acquire in `is_done`; data: what the device did before.
        self.acks.outstanding.fetch_sub(1, Ordering::Release);
        self.acks.wake();
    }
}

impl Drop for AckToken {
    fn drop(&mut self) {
        if !self.is_answered {
            // Relaxed: a count for a report.
            self.acks.abandoned.fetch_add(1, Ordering::Relaxed);
            self.acks.wake();
        }
    }
}

/// Whether everybody has answered.
#[derive(Clone, Debug, Default)]
pub struct AckTicket {
    acks: Option<Arc<Acks>>,
}

impl AckTicket {
    /// Whether no subscriber uses the ended translations any more.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.nr_outstanding() == 0
    }

    /// How many subscribers have not answered.
    #[must_use]
    pub fn nr_outstanding(&self) -> u64 {
        // Acquire: pairs with Release in `acknowledge`; data: what the device did before.
        self.acks.as_ref().map_or(0, |acks| acks.outstanding.load(Ordering::Acquire))
    }

    /// Waits up to `timeout` until no subscriber uses the ended translations any more; not as long
    /// when those that are left will never answer.
    ///
    /// # Errors
    /// [`Unanswered`]: whoever is left may still use what ended.
    pub fn wait(&self, timeout: Duration) -> Result<(), Unanswered> {
        let Some(acks) = &self.acks else { return Ok(()) };
        let may_change = |(): &mut ()| self.nr_outstanding() > self.nr_abandoned();
        let waited = acks.changed.wait_timeout_while(acks.lock(), timeout, may_change);
        drop(waited);
        match self.nr_outstanding() {
            0 => Ok(()),
            nr_outstanding => Err(Unanswered { nr_outstanding, nr_abandoned: self.nr_abandoned() }),
        }
    }

    /// How many of those never will, because they dropped their token.
    #[must_use]
    pub fn nr_abandoned(&self) -> u64 {
        // Relaxed: a count for a report.
        self.acks.as_ref().map_or(0, |acks| acks.abandoned.load(Ordering::Relaxed))
    }
}

/// Which subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubscriptionId(u64);

/// The subscribers. Guarded by the address space's lock, as what ends is: whoever subscribes and
/// then looks, sees what ended before, or is notified of it.
#[derive(Debug, Default)]
pub(super) struct RangeSubscribers {
    next_id: u64,
    list: Vec<(SubscriptionId, Arc<dyn InvalidateSubscriber>)>,
}

impl RangeSubscribers {
    pub(super) fn add(&mut self, subscriber: Arc<dyn InvalidateSubscriber>) -> SubscriptionId {
        let id = SubscriptionId(self.next_id);
        self.next_id += 1;
        self.list.push((id, subscriber));
        id
    }

    pub(super) fn remove(&mut self, id: SubscriptionId) {
        self.list.retain(|(known, _)| *known != id);
    }

    /// Whether there is anybody.
    pub(super) const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whom to tell of what ended: nobody, if nothing did.
    pub(super) fn to_tell(&self, ended: &EndedRanges) -> Vec<Arc<dyn InvalidateSubscriber>> {
        if ended.nr_pages() == 0 {
            return Vec::new();
        }
        self.list.iter().map(|(_, subscriber)| subscriber.clone()).collect()
    }
}

/// Tells them what ended. The address space must not be locked.
pub(super) fn tell(
    subscribers: Vec<Arc<dyn InvalidateSubscriber>>,
    ended: &EndedRanges,
) -> AckTicket {
    if subscribers.is_empty() {
        return AckTicket::default();
    }
    let ranges: Vec<EndedRange> = ended.ranges().collect();
    let acks = Arc::new(Acks {
        outstanding: AtomicU64::new(subscribers.len() as u64),
        abandoned: AtomicU64::new(0),
        waiters: Mutex::new(()),
        changed: Condvar::new(),
    });
    for subscriber in subscribers {
        subscriber.ended(&ranges, AckToken { acks: acks.clone(), is_answered: false });
    }
    AckTicket { acks: Some(acks) }
}

/// Collects the ranges that one change of an address space ended, joining neighbours. The usual
/// change ends one range, which needs no allocation.
#[derive(Debug, Default)]
pub(crate) struct EndedRanges {
    earlier: Vec<EndedRange>,
    last: Option<EndedRange>,
    nr_pages: u64,
}

impl EndedRanges {
    pub(super) fn push(&mut self, page: u64, nr_pages: u64) {
        self.nr_pages += nr_pages;
        let address = page * PAGE_BYTES;
        let len_bytes = nr_pages * PAGE_BYTES;
        match &mut self.last {
            Some(last) if last.address + last.len_bytes == address => last.len_bytes += len_bytes,
            last => self.earlier.extend(last.replace(EndedRange { address, len_bytes })),
        }
    }

    pub(super) fn ranges(&self) -> impl Iterator<Item = EndedRange> + '_ {
        self.earlier.iter().copied().chain(self.last)
    }

    pub(super) const fn nr_pages(&self) -> u64 {
        self.nr_pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Cache(Mutex<Vec<AckToken>>);

    impl InvalidateSubscriber for Cache {
        fn ended(&self, _: &[EndedRange], token: AckToken) {
            self.0.lock().unwrap().push(token);
        }
    }

    #[test]
    fn a_dropped_token_is_no_answer() {
        let mut subscribers = RangeSubscribers::default();
        let caches = [Arc::new(Cache::default()), Arc::new(Cache::default())];
        let ids = caches.clone().map(|cache| subscribers.add(cache));
        let mut ended = EndedRanges::default();
        ended.push(0, 1);
        let ticket = tell(subscribers.to_tell(&ended), &ended);
        assert_eq!((ticket.is_done(), ticket.nr_outstanding()), (false, 2));
        let nobody = Unanswered { nr_outstanding: 2, nr_abandoned: 0 };
        assert_eq!(ticket.wait(Duration::ZERO), Err(nobody));
        caches[0].0.lock().unwrap().pop().unwrap().acknowledge();
        drop(caches[1].0.lock().unwrap().pop());
        assert_eq!((ticket.nr_outstanding(), ticket.nr_abandoned()), (1, 1));
        let never = Unanswered { nr_outstanding: 1, nr_abandoned: 1 };
        assert_eq!(ticket.wait(Duration::MAX), Err(never), "not waited for");
        subscribers.remove(ids[1]);
        let ticket = tell(subscribers.to_tell(&ended), &ended);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| ticket.wait(Duration::MAX));
            caches[0].0.lock().unwrap().pop().unwrap().acknowledge();
            assert_eq!(waiter.join().unwrap(), Ok(()));
        });
        assert!(ticket.is_done());
        assert!(subscribers.to_tell(&EndedRanges::default()).is_empty());
    }
}
