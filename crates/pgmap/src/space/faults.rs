//! Raw touches of a process address space that find nothing: resolved, offered to the program, or
//! fatal.
//!
//! One thread per process address space answers them ([`pgmap_os::touch`]), in this order: what an
//! area and its file have is mapped and the touch is done again; what the owner is just changing is
//! waited for a little; all else goes to the program's handler; without one the thread that touched
//! gets its SIGSEGV, at that instruction.

use pgmap_os::clock::Instant;
use pgmap_os::thread::JoinHandle;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use pgmap_mm::error::errno::ESTALE;
use pgmap_mm::fault::FaultError;
use pgmap_mm::mm::FillError;
use pgmap_mm::pin::ClientSide;
use pgmap_mm::prot::Access;
use pgmap_mm::vma::BackingError;
use pgmap_os::{Touch, TouchAccess, TouchAnswer, TouchWatch, touch};

use super::inner::{Resolved, SpaceInner};
use crate::client::Client;
use crate::error::Error;

/// How often a touch that meets a change of the file is looked at again before it is an error.
const MAX_LOOKS: usize = 100;
/// The pause in between.
const LOOK_PAUSE: Duration = Duration::from_micros(200);
/// How often the same touch may be found in order in a row, with nothing to be done about it,
/// before it is an error: then the processor disagrees. Many threads may wait for one page, and
/// each is found in order once the first one's touch is resolved, so it must have gone on for a
/// while, too.
const MAX_REPEATS: u32 = 1000;
const REPEATED_FOR: Duration = Duration::from_secs(1);

/// A raw touch that cannot be resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TouchFault {
    /// The address that was touched.
    pub address: u64,
    /// What was to be done there.
    pub access: Access,
    /// Why there is nothing.
    pub error: FaultError,
}

/// What becomes of the thread that touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultAnswer {
    /// It touches again: the program has mapped something there, or will have.
    Retry,
    /// It gets SIGSEGV at that instruction.
    Fail,
}

/// What a program does about raw touches that cannot be resolved.
///
/// Called on a thread of the address space, in ordinary context; the thread that touched waits. It
/// must not touch the address space's addresses itself, nor take a lock that a touching thread may
/// hold. A panic counts as [`FaultAnswer::Fail`].
pub type FaultHandler = dyn Fn(&TouchFault) -> FaultAnswer + Send + Sync;

/// The thread that answers touches.
#[derive(Debug)]
pub(super) struct FaultService {
    client: Client,
    watch: Arc<TouchWatch>,
    thread: Option<JoinHandle<()>>,
}

impl FaultService {
    /// Answers touches of `addresses` from now on.
    ///
    /// # Errors
    /// [`Error::Os`] when the handler cannot be installed or the thread not started.
    pub(super) fn start(
        client: &Client,
        addresses: std::ops::Range<usize>,
        space: Arc<SpaceInner>,
    ) -> Result<Self, Error> {
        let watch = Arc::new(touch::watch(addresses)?);
        let served = Arc::clone(&watch);
        let thread = pgmap_os::thread::Builder::new()
            .name("pgmap-faults".into())
            .spawn(move || serve(&served, &space))
            .map_err(|error| pgmap_os::OsError::new("start", "a thread for faults", error))?;
        Ok(Self { client: client.clone(), watch, thread: Some(thread) })
    }
}

impl Drop for FaultService {
    fn drop(&mut self) {
        let thread = self.thread.take();
        if self.client.inner.pinner.side().is_forked() {
            // The thread is the parent's.
            std::mem::forget(thread);
            return;
        }
        self.watch.stop();
        if let Some(thread) = thread
            && thread.thread().id() != pgmap_os::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("a thread for faults panicked");
        }
    }
}

/// A touch that was found in order, how often in a row, and since when.
#[derive(Default)]
struct Repeated {
    address: usize,
    nr: u32,
    since: Option<Instant>,
}

fn serve(watch: &TouchWatch, space: &SpaceInner) {
    let mut repeated = Repeated::default();
    while let Some(touch) = watch.wait() {
        let address = touch.address;
        // This thread must live, or every touch after a panic would wait for ever: what lies behind
        // an area may be the program's own code, and so may whoever is notified of translations
        // that ended.
        let resolved = catch_unwind(AssertUnwindSafe(|| resolve(space, &touch, &mut repeated)));
        let answer = resolved.unwrap_or_else(|_| {
            tracing::error!(address, "what was asked about a raw touch panicked");
            TouchAnswer::Fail
        });
        watch.answer(touch, answer);
    }
}

fn resolve(space: &SpaceInner, touch: &Touch, repeated: &mut Repeated) -> TouchAnswer {
    let address = touch.address as u64;
    let access = match touch.access {
        TouchAccess::Load => Access::Read,
        TouchAccess::Store => Access::Write,
        // What may be loaded was not touched for loading.
        TouchAccess::Unknown => match &space.cpu {
            Some(cpu) if cpu.allows(address, Access::Read) => Access::Write,
            _ => Access::Read,
        },
    };
    match fault_patiently(space, address, access) {
        Ok(Resolved::Mapped) => {
            *repeated = Repeated::default();
            return TouchAnswer::Retry;
        }
        Ok(Resolved::InOrder) if !repeated.is_too_often(touch.address) => {
            return TouchAnswer::Retry;
        }
        Ok(Resolved::InOrder) => tracing::error!(address, "mapped, and touched in vain"),
        Err(error) => {
            if asked(space, &TouchFault { address, access, error }) == FaultAnswer::Retry {
                return TouchAnswer::Retry;
            }
            tracing::debug!(%error, "a raw touch fails");
        }
    }
    TouchAnswer::Fail
}

/// What the program's handler says.
fn asked(space: &SpaceInner, fault: &TouchFault) -> FaultAnswer {
    space.handler().map_or(FaultAnswer::Fail, |handler| handler(fault))
}

fn fault_patiently(
    space: &SpaceInner,
    address: u64,
    access: Access,
) -> Result<Resolved, FaultError> {
    let mut result = space.fault(address, access);
    for _ in 0..MAX_LOOKS {
        match result {
            Err(FaultError::Fill {
                error: FillError::Backing(BackingError::Busy) | FillError::Cpu(ESTALE),
                ..
            }) => pgmap_os::thread::sleep(LOOK_PAUSE),
            result => return result,
        }
        result = space.fault(address, access);
    }
    result
}

impl Repeated {
    fn is_too_often(&mut self, address: usize) -> bool {
        if self.address != address {
            *self = Self { address, ..Self::default() };
        }
        self.nr += 1;
        let since = *self.since.get_or_insert_with(Instant::now);
        self.nr > MAX_REPEATS && since.elapsed() > REPEATED_FOR
    }
}
