//! Who decides on long-term holds that the life word does not allow.

use super::pinned::Lease;
use crate::extent::Extent;
use crate::ledger::Agent;
use crate::pfn::PfnRange;
use crate::prot::Access;
use crate::vma::VmaKind;

/// A request to hold pages for long that the life word does not answer.
#[derive(Clone, Copy, Debug)]
pub struct LongtermAsk<'q> {
    /// The extent.
    pub extent: &'q Extent,
    /// The frames.
    pub run: PfnRange,
    /// The area's kind.
    pub kind: VmaKind,
    /// What for.
    pub access: Access,
    /// By whom.
    pub agent: Agent,
}

/// Why pages may not be held for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LongtermRefusal {
    /// This type of memory does not allow it.
    Unsupported,
    /// The holder of the memory said no.
    Denied,
    /// The owner cannot be asked now.
    Busy,
}

/// Decides on long-term holds that the life word does not allow. The layer above asks the owner;
/// this layer owns the trait. Called without the address space's lock, while the frames are held
/// for the moment.
pub trait LongtermPolicy: Send + Sync {
    /// A lease of the frames.
    ///
    /// # Errors
    /// Why there is none.
    fn lease(&self, ask: &LongtermAsk<'_>) -> Result<Box<dyn Lease>, LongtermRefusal>;
}
