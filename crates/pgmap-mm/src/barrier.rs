//! The asymmetric barrier pair: cheap for the many who pin, expensive for the one who drains.
//!
//! Both races of this crate have the shape "I store here, then load there; you store there, then
//! load here; one of us must see the other". That needs a full barrier on both sides. The *light*
//! side runs on every pin and unpin, so it is a compiler fence, and the *heavy* side makes up for
//! it by running a full barrier on every processor that runs a registered process: `membarrier(2)`,
//! `MEMBARRIER_CMD_GLOBAL_EXPEDITED`.
//!
//! # Orderings
//!
//! Light, asymmetric: the compiler keeps program order; when a heavy barrier interrupts the
//! processor, everything before the light barrier is visible to the barrier's caller, or everything
//! after it sees what the caller stored before. Light, fenced: `fence(SeqCst)` pairs with the
//! `fence(SeqCst)` that every heavy barrier contains.
//!
//! # The portable twin
//!
//! loom cannot see `membarrier`, so under loom both modes are `fence(SeqCst)`: what loom proves is
//! the protocol built on a pair of full barriers. That the cheap pair is one is the kernel's
//! promise (Linux 7.1: kernel/sched/membarrier.c), and the two-process test measures it with its
//! control.
//!
//! `--cfg pgmap_break_light` and `--cfg pgmap_break_heavy` take one side away, to see loom object.

#[cfg(not(any(loom, pgmap_break_light)))]
use crate::sync::compiler_fence;
use crate::sync::{Ordering, fence};

/// How a client orders its own store before its own load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarrierMode {
    /// A compiler fence; this process is registered for `membarrier`, and so is the owner.
    Asymmetric,
    /// A full fence, for where `membarrier` is refused.
    Fenced,
}

impl BarrierMode {
    /// The light side of the pair.
    #[inline(always)]
    pub fn light(self) {
        #[cfg(not(any(loom, pgmap_break_light)))]
        match self {
            // SeqCst: keeps the compiler from moving the load over the store; the processor's part
            // is done by the heavy barrier this pairs with.
            Self::Asymmetric => compiler_fence(Ordering::SeqCst),
            // SeqCst: pairs with the fence in every heavy barrier.
            Self::Fenced => fence(Ordering::SeqCst),
        }
        // SeqCst: the portable twin of both modes; pairs with the fence in `PortableBarrier`.
        #[cfg(all(loom, not(pgmap_break_light)))]
        fence(Ordering::SeqCst);
    }
}

/// Whose light barriers a heavy barrier pairs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// All clients'.
    All,
    /// Those of clients in [`BarrierMode::Fenced`]. What another one has stored may not be seen
    /// yet.
    Fenced,
}

/// The heavy side of the pair. The owner's platform supplies it.
pub trait HeavyBarrier {
    /// Returns once every light barrier of each client that was reached lies wholly before or
    /// wholly after this call in the sense of the module's text. Must contain a `fence(SeqCst)` for
    /// fenced clients, which are always reached.
    #[must_use = "who was not reached may hold what no scan sees"]
    fn heavy(&self) -> Reached;
}

/// A heavy barrier that is a fence: right for clients in [`BarrierMode::Fenced`], and the twin that
/// loom runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct PortableBarrier;

impl HeavyBarrier for PortableBarrier {
    #[inline]
    fn heavy(&self) -> Reached {
        // SeqCst: pairs with the fence of a light barrier in fenced mode.
        if cfg!(not(pgmap_break_heavy)) {
            fence(Ordering::SeqCst);
        }
        Reached::All
    }
}
