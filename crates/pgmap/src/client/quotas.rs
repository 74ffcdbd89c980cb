//! What an operator says of a pool that is served: quotas and water marks.

use crate::client::{Client, unexpected};
use crate::error::Error;
use crate::wire::{QuotaInfo, QuotaLimits, QuotaOf, Reply, Request, WaterMarks};

impl Client {
    /// Limits what a user, or all files whose names begin alike, may take of the pool, from now on
    /// and after a restart of its owner. What was set before for the same is forgotten. Files that
    /// are there and exceed it stay; a create or rename that would exceed it evicts files that the
    /// quota counts and that may be evicted, then is refused
    /// ([`Refusal::OverQuota`](crate::Refusal::OverQuota)). Only root and the owner's user may.
    ///
    /// ```
    /// use pgmap::quota::{QuotaLimits, QuotaOf};
    /// use pgmap::{FileName, Owner, Pool, PoolOptions};
    ///
    /// let owner = Owner::start(Pool::create(&PoolOptions::anonymous(16 << 20))?)?;
    /// let client = owner.client()?;
    /// let of = QuotaOf::Prefix(FileName::new("kv/")?);
    /// client.set_quota(of, QuotaLimits::new().bytes(8 << 20).files(100))?;
    /// assert_eq!(client.quotas()?[0].used_files, 0);
    /// # Ok::<(), pgmap::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Refusal::Denied`](crate::Refusal::Denied) with `EPERM`; `Invalid` for limits that limit
    /// nothing, and of clients for a prefix; `TooMuch` for too many quotas.
    pub fn set_quota(&self, of: QuotaOf, limits: QuotaLimits) -> Result<(), Error> {
        self.done(Request::SetQuota { of, limits })
    }

    /// Ends a quota.
    ///
    /// # Errors
    /// [`Refusal::Denied`](crate::Refusal::Denied) with `EPERM`; `Invalid` when there is none.
    pub fn remove_quota(&self, of: QuotaOf) -> Result<(), Error> {
        self.done(Request::RemoveQuota(of))
    }

    /// The quotas and how much of each is used, those of users first.
    ///
    /// # Errors
    /// [`Error::OwnerGone`].
    pub fn quotas(&self) -> Result<Vec<QuotaInfo>, Error> {
        match self.call(Request::Quotas)? {
            Reply::Quotas(quotas, _) => Ok(quotas),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Has the owner keep room free: with fewer bytes free than the low mark it evicts files that
    /// may be evicted, the least recently used first, until as many are free as the high mark says.
    /// A create then finds room without waiting for that. Zeros end it.
    ///
    /// # Errors
    /// [`Refusal::Denied`](crate::Refusal::Denied) with `EPERM`; `Invalid` for marks that no pool
    /// of this size can have.
    pub fn set_water_marks(&self, marks: WaterMarks) -> Result<(), Error> {
        self.done(Request::SetWaterMarks(marks))
    }

    /// The water marks.
    ///
    /// # Errors
    /// [`Error::OwnerGone`].
    pub fn water_marks(&self) -> Result<WaterMarks, Error> {
        match self.call(Request::Quotas)? {
            Reply::Quotas(_, marks) => Ok(marks),
            reply => Err(unexpected(&reply)),
        }
    }
}
