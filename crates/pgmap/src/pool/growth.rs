//! Pools that get more memory, or room for it, after they were made.
//!
//! The data of a pool keeps its length: its seal, the catalog at its head and what every process
//! has mapped follow from that. So a pool grows by backings of its own (docs/adr/0086). While it is
//! served there must be room for those, which is a matter of descriptors and ledgers: those are
//! made again for a pool that nobody uses, and then there can be more.

use std::path::{Path, PathBuf};

use pgmap_os::MemoryKind;

use crate::error::Error;
use crate::pool::backing::{BackingOptions, DATA_NAME};
use crate::pool::catalog::Head;
use crate::pool::directory::kind_of;
use crate::pool::options::span_bytes;
use crate::pool::{Pool, ledgers};
use crate::refusal::Refusal;

/// More than any pool has backings.
const MAX_NAMES: u64 = 1 << 10;

impl Pool {
    /// The backing by which the pool gets `by_bytes` more; `is_taken` says of a name whether a
    /// backing has it.
    pub(crate) fn growth(
        &self,
        by_bytes: u64,
        is_taken: impl Fn(&str) -> bool,
    ) -> Result<BackingOptions, Error> {
        let refused = |why: String| Err(Refusal::Invalid { why }.into());
        if self.data.kind() == MemoryKind::DevDax {
            return refused(format!(
                "{} has {} bytes and no more; add another device or a file (pgmap backing add)",
                self.data.name(),
                self.data.len_bytes()
            ));
        }
        let is_anonymous = self.directory().is_none();
        for number in 2..MAX_NAMES {
            let name = format!("{DATA_NAME}-{number}");
            let path = (!is_anonymous).then(|| beside(Path::new(self.data.name()), number));
            let is_there = match &path {
                Some(path) => kind_of(path)?.is_some(),
                None => false,
            };
            if !is_taken(&name) && !is_there {
                let options = path.map_or_else(|| BackingOptions::anonymous(0), BackingOptions::on);
                return Ok(options.size(by_bytes).name(name));
            }
        }
        refused(format!("all names up to {DATA_NAME}-{MAX_NAMES} are taken"))
    }

    /// Gives a pool that nobody serves and nobody uses room for `room_bytes` of further backings
    /// in all, as [`PoolOptions::room`](crate::PoolOptions::room) does when it is made. Room is
    /// never taken away.
    ///
    /// # Errors
    /// [`Error::BadPool`] for an anonymous pool, one with its descriptors on the device, one whose
    /// clients may not have ended, and for less room than there is.
    pub fn give_room(self, room_bytes: u64) -> Result<(), Error> {
        let bad = |why: String| Err(Error::BadPool { pool: self.name(), why });
        let (Some(catalog), Some(directory)) = (&self.catalog, self.directory()) else {
            return bad("it ends with its owner; make it with room".into());
        };
        if self.stored.head == Head::CatalogAndDescriptors {
            return bad("its descriptors lie before its frames, and cannot be more; make a pool \
                        with room, and copy the files"
                .into());
        }
        if !catalog.is_idle() {
            let clients: Vec<String> =
                catalog.roster().iter().map(|one| one.client.to_string()).collect();
            return bad(format!(
                "clients {} of its last owner have ledgers; serve it until they have ended, then \
                 stop it",
                clients.join(", ")
            ));
        }
        let Some(span) = span_bytes(self.stored.capacity_bytes, room_bytes) else {
            return bad(format!("room for {room_bytes} bytes is more than a pool can have"));
        };
        if span < self.stored.span_bytes {
            let has = self.stored.span_bytes - self.stored.capacity_bytes;
            return bad(format!("it has room for {has} bytes already, and keeps that"));
        }
        // A ledger is as long as the pool is wide. There is a spare one.
        ledgers::remove_all(directory)?;
        self.begin()?;
        catalog.set_span(span)?;
        self.end()
    }
}

/// The name of data beside this.
fn beside(data: &Path, number: u64) -> PathBuf {
    let mut name = data.file_name().unwrap_or_default().to_owned();
    name.push(format!("-{number}"));
    data.with_file_name(name)
}
