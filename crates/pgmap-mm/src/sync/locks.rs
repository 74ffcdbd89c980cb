//! Locks and conditions: the standard library's, or those of a simulation that says who runs.
//!
//! Readers take none; an address space that is changed does, and calls the layer above with the
//! lock held. There a simulation may let others run, so whoever finds the lock taken must not block
//! the thread that all of them share (ADR 0063). Without the feature `sim` nothing of this is
//! compiled.

#[cfg(not(feature = "sim"))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};

#[cfg(feature = "sim")]
pub(crate) use scheduled::{Condvar, Mutex, MutexGuard};
#[cfg(feature = "sim")]
pub use scheduled::{Scheduler, schedule};

#[cfg(feature = "sim")]
mod scheduled {
    use std::ops::{Deref, DerefMut};
    use std::sync::{LockResult, OnceLock, PoisonError, TryLockError};
    use std::time::Duration;

    /// Who says which thread runs. The layer above has it; this layer owns the trait.
    pub trait Scheduler: Send + Sync {
        /// The calling thread is about to take a lock: others may run first.
        fn step(&self);

        /// The time; none if nobody schedules the calling thread.
        fn now(&self) -> Option<Duration>;

        /// The calling thread has found a lock taken, or waits for a condition for so long. Returns
        /// after others have run, whatever they did; false at once if nobody schedules the thread.
        fn wait(&self, timeout: Option<Duration>) -> bool;

        /// The calling thread took a lock, or gave one back, for which others may wait.
        fn locked(&self, is_taken: bool);

        /// Something was done for which others may wait at a condition.
        fn notified(&self);
    }

    static SCHEDULER: OnceLock<&'static dyn Scheduler> = OnceLock::new();

    /// Has `scheduler` say from now on who runs. The first one stays.
    pub fn schedule(scheduler: &'static dyn Scheduler) {
        SCHEDULER.get_or_init(|| scheduler);
    }

    fn with<T>(ask: impl FnOnce(&dyn Scheduler) -> T) -> Option<T> {
        SCHEDULER.get().map(|scheduler| ask(*scheduler))
    }

    /// As the standard library's.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(std::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
            with(|scheduler| scheduler.step());
            loop {
                match self.0.try_lock() {
                    Ok(inner) => return Ok(self.taken(inner)),
                    Err(TryLockError::Poisoned(poisoned)) => {
                        return Err(PoisonError::new(self.taken(poisoned.into_inner())));
                    }
                    Err(TryLockError::WouldBlock) => {}
                }
                if !with(|scheduler| scheduler.wait(None)).unwrap_or(false) {
                    let locked = self.0.lock();
                    return locked
                        .map(|inner| self.taken(inner))
                        .map_err(|poisoned| PoisonError::new(self.taken(poisoned.into_inner())));
                }
            }
        }

        fn taken<'m>(&'m self, inner: std::sync::MutexGuard<'m, T>) -> MutexGuard<'m, T> {
            with(|scheduler| scheduler.locked(true));
            MutexGuard { mutex: self, inner: Some(inner) }
        }
    }

    /// As the standard library's.
    #[derive(Debug)]
    pub(crate) struct MutexGuard<'m, T> {
        mutex: &'m Mutex<T>,
        /// Absent only while it is dropped.
        inner: Option<std::sync::MutexGuard<'m, T>>,
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            match &self.inner {
                Some(inner) => inner,
                None => unreachable!("a guard holds its lock until it is dropped"),
            }
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            match &mut self.inner {
                Some(inner) => inner,
                None => unreachable!("a guard holds its lock until it is dropped"),
            }
        }
    }

    impl<T> Drop for MutexGuard<'_, T> {
        fn drop(&mut self) {
            if self.inner.take().is_some() {
                with(|scheduler| scheduler.locked(false));
            }
        }
    }

    /// As the standard library's.
    #[derive(Debug, Default)]
    pub(crate) struct Condvar(std::sync::Condvar);

    impl Condvar {
        pub(crate) const fn new() -> Self {
            Self(std::sync::Condvar::new())
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
            with(|scheduler| scheduler.notified());
        }

        /// As the standard library's, except that the answer does not say how it ended.
        pub(crate) fn wait_timeout_while<'m, T>(
            &self,
            mut guard: MutexGuard<'m, T>,
            timeout: Duration,
            mut is_to_wait: impl FnMut(&mut T) -> bool,
        ) -> LockResult<(MutexGuard<'m, T>, ())> {
            let mutex = guard.mutex;
            let now = || with(|scheduler| scheduler.now()).flatten();
            let Some(start) = now() else {
                let Some(inner) = guard.inner.take() else {
                    unreachable!("a guard holds its lock until it is dropped")
                };
                let waited = self.0.wait_timeout_while(inner, timeout, is_to_wait);
                let (inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
                guard.inner = Some(inner);
                return Ok((guard, ()));
            };
            let end = start.saturating_add(timeout);
            loop {
                let left = end.saturating_sub(now().unwrap_or(end));
                if left.is_zero() || !is_to_wait(&mut guard) {
                    return Ok((guard, ()));
                }
                drop(guard);
                let has_waited = with(|scheduler| scheduler.wait(Some(left))).unwrap_or(false);
                guard = mutex.lock().unwrap_or_else(PoisonError::into_inner);
                if !has_waited {
                    return Ok((guard, ()));
                }
            }
        }
    }
}
