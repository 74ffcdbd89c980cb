//! Threads: the standard library's, or a simulation's.

#[cfg(not(feature = "sim"))]
pub use std::thread::{Builder, JoinHandle, current, sleep, yield_now};

#[cfg(feature = "sim")]
pub use simulated::{Builder, JoinHandle, current, sleep, yield_now};

#[cfg(feature = "sim")]
mod simulated {
    use std::io;
    use std::sync::{Arc, Mutex, PoisonError};
    use std::time::Duration;

    use crate::sim::{self, Happening};

    /// As the standard library's.
    #[derive(Debug, Default)]
    pub struct Builder {
        name: Option<String>,
    }

    impl Builder {
        /// As the standard library's.
        #[must_use]
        pub const fn new() -> Self {
            Self { name: None }
        }

        /// As the standard library's.
        #[must_use]
        pub fn name(mut self, name: String) -> Self {
            self.name = Some(name);
            self
        }

        /// As the standard library's.
        ///
        /// # Errors
        /// If the system starts no further thread.
        pub fn spawn<T: Send + 'static>(
            self,
            run: impl FnOnce() -> T + Send + 'static,
        ) -> io::Result<JoinHandle<T>> {
            if sim::with(|_| ()).is_none() {
                let builder = std::thread::Builder::new().name(self.name.unwrap_or_default());
                return builder.spawn(run).map(JoinHandle::Real);
            }
            sim::call("clone")?;
            let result = Arc::new(Mutex::new(None));
            let place = Arc::clone(&result);
            let run = move || {
                let value = run();
                *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
            };
            let number = sim::with(|world| world.spawn(Box::new(run))).unwrap_or(0);
            Ok(JoinHandle::Simulated(number, result))
        }
    }

    /// As the standard library's.
    #[derive(Debug)]
    pub enum JoinHandle<T> {
        /// A thread of the machine.
        Real(std::thread::JoinHandle<T>),
        /// A thread of a simulation, and where its result will be.
        Simulated(u64, Arc<Mutex<Option<T>>>),
    }

    impl<T> JoinHandle<T> {
        /// As the standard library's.
        ///
        /// # Errors
        /// If the thread panicked.
        pub fn join(self) -> std::thread::Result<T> {
            let (number, result) = match self {
                Self::Real(handle) => return handle.join(),
                Self::Simulated(number, result) => (number, result),
            };
            let is_waiting =
                || sim::with(|world| !world.is_over(number) && !world.is_ended()).unwrap_or(false);
            while is_waiting() {
                sim::with(|world| world.wait(None, Happening::Descriptor));
            }
            let value = result.lock().unwrap_or_else(PoisonError::into_inner).take();
            value.ok_or_else(|| Box::new("the thread ended early") as _)
        }

        /// As the standard library's.
        pub fn thread(&self) -> Thread {
            match self {
                Self::Real(handle) => Thread::Real(handle.thread().id()),
                Self::Simulated(number, _) => Thread::Simulated(*number),
            }
        }
    }

    /// As the standard library's.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Thread {
        /// A thread of the machine.
        Real(std::thread::ThreadId),
        /// A thread of a simulation.
        Simulated(u64),
    }

    impl Thread {
        /// As the standard library's.
        #[must_use]
        pub const fn id(self) -> Self {
            self
        }
    }

    /// As the standard library's.
    #[must_use]
    pub fn current() -> Thread {
        sim::with(|world| Thread::Simulated(world.thread()))
            .unwrap_or_else(|| Thread::Real(std::thread::current().id()))
    }

    /// As the standard library's.
    pub fn sleep(duration: Duration) {
        let slept = sim::with(|world| {
            let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
            let until_ns = world.now_ns().saturating_add(nanos);
            while world.now_ns() < until_ns && !world.is_ended() {
                world.wait(Some(until_ns), Happening::Descriptor);
            }
        });
        if slept.is_none() {
            std::thread::sleep(duration);
        }
    }

    /// As the standard library's.
    pub fn yield_now() {
        let yielded = sim::with(|world| {
            if !world.is_ended() {
                world.wait(Some(world.now_ns()), Happening::Descriptor);
            }
        });
        if yielded.is_none() {
            std::thread::yield_now();
        }
    }
}
