//! Locks and condition variables: the standard library's, or a simulation's.
//!
//! In a simulation whoever waits lets others run.

#[cfg(not(feature = "sim"))]
pub use std::sync::{Condvar, Mutex, MutexGuard};

#[cfg(feature = "sim")]
pub use simulated::{Condvar, Mutex, MutexGuard};

#[cfg(feature = "sim")]
mod simulated {
    use std::ops::{Deref, DerefMut};
    use std::sync::{LockResult, PoisonError, TryLockError};
    use std::time::Duration;

    use crate::sim::{self, Happening};

    /// As the standard library's.
    #[derive(Debug, Default)]
    pub struct Mutex<T>(std::sync::Mutex<T>);

    impl<T> Mutex<T> {
        /// As the standard library's.
        pub const fn new(value: T) -> Self {
            Self(std::sync::Mutex::new(value))
        }

        /// As the standard library's.
        ///
        /// # Errors
        /// If a thread panicked with the lock.
        pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
            let guard = |inner| {
                sim::with(|world| world.locked(true));
                MutexGuard { mutex: self, inner: Some(inner) }
            };
            loop {
                match self.0.try_lock() {
                    Ok(inner) => return Ok(guard(inner)),
                    Err(TryLockError::Poisoned(poisoned)) => {
                        return Err(PoisonError::new(guard(poisoned.into_inner())));
                    }
                    Err(TryLockError::WouldBlock) => {
                        let waited = sim::with(|world| {
                            assert!(!world.is_ended(), "a party that was ended waits for a lock");
                            world.wait(None, Happening::Lock);
                        });
                        if waited.is_none() {
                            return self.0.lock().map(guard).map_err(|poisoned| {
                                PoisonError::new(guard(poisoned.into_inner()))
                            });
                        }
                    }
                }
            }
        }

        /// As the standard library's.
        ///
        /// # Errors
        /// If a thread panicked with the lock.
        pub fn get_mut(&mut self) -> LockResult<&mut T> {
            self.0.get_mut()
        }

        /// As the standard library's.
        ///
        /// # Errors
        /// If a thread panicked with the lock.
        pub fn into_inner(self) -> LockResult<T> {
            self.0.into_inner()
        }
    }

    /// As the standard library's.
    #[derive(Debug)]
    pub struct MutexGuard<'m, T> {
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
            drop(self.inner.take());
            sim::with(|world| {
                world.locked(false);
                world.happened(Happening::Lock);
            });
        }
    }

    /// As the standard library's.
    #[derive(Debug, Default)]
    pub struct Condvar(std::sync::Condvar);

    impl Condvar {
        /// As the standard library's.
        pub const fn new() -> Self {
            Self(std::sync::Condvar::new())
        }

        /// As the standard library's.
        pub fn notify_all(&self) {
            self.0.notify_all();
            sim::with(|world| world.happened(Happening::Condition));
        }

        /// As the standard library's.
        ///
        /// # Errors
        /// If a thread panicked with the lock.
        pub fn wait<'m, T>(&self, guard: MutexGuard<'m, T>) -> LockResult<MutexGuard<'m, T>> {
            // No clock gets so far.
            let waited = self.wait_timeout(guard, Duration::MAX);
            waited
                .map(|(guard, ())| guard)
                .map_err(|poisoned| PoisonError::new(poisoned.into_inner().0))
        }

        /// As the standard library's, except that the answer does not say whether the time is over.
        ///
        /// # Errors
        /// If a thread panicked with the lock.
        pub fn wait_timeout<'m, T>(
            &self,
            mut guard: MutexGuard<'m, T>,
            timeout: Duration,
        ) -> LockResult<(MutexGuard<'m, T>, ())> {
            let mutex = guard.mutex;
            let is_simulated = sim::with(|world| world.now_ns());
            let Some(now_ns) = is_simulated else {
                let Some(inner) = guard.inner.take() else {
                    unreachable!("a guard holds its lock until it is dropped")
                };
                let (inner, _) =
                    self.0.wait_timeout(inner, timeout).unwrap_or_else(PoisonError::into_inner);
                guard.inner = Some(inner);
                return Ok((guard, ()));
            };
            drop(guard);
            let nanos = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
            sim::with(|world| {
                if !world.is_ended() {
                    world.wait(now_ns.checked_add(nanos), Happening::Condition);
                }
            });
            mutex
                .lock()
                .map(|guard| (guard, ()))
                .map_err(|poisoned| PoisonError::new((poisoned.into_inner(), ())))
        }
    }
}
