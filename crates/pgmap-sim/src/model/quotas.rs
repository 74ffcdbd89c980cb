//! Quotas, naively: what was asked when for which prefix, and how it ended.

use super::{Deed, End, Model};

/// What a quota allows: files and bytes, of which there is no limit where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub files: Option<u64>,
    pub bytes: Option<u64>,
}

/// Somebody asked for a quota, or that there be none.
#[derive(Clone, Debug)]
struct Change {
    prefix: String,
    limits: Option<Limits>,
    deed: Deed,
}

/// All that was ever asked.
#[derive(Debug, Default)]
pub struct Quotas {
    changes: Vec<Change>,
    /// Until when nothing is certain.
    certain_from: u64,
}

impl Quotas {
    pub fn ask(&mut self, prefix: &str, limits: Option<Limits>, from: u64) {
        let deed = Deed { from, end: End::Unknown };
        self.changes.push(Change { prefix: prefix.into(), limits, deed });
    }

    /// What became of what was asked at `from`.
    pub fn ended(&mut self, from: u64, end: End) {
        let own = self.changes.iter_mut().filter(|change| change.deed.from == from);
        own.for_each(|change| change.deed.end = end);
    }

    /// All of it may be gone.
    pub(super) const fn forget(&mut self, at: u64) {
        self.certain_from = at;
    }

    fn of<'q>(&'q self, prefix: &'q str) -> impl Iterator<Item = &'q Change> {
        self.changes.iter().filter(move |change| change.prefix == prefix)
    }

    /// Whether a quota with such limits may have been there at some time from `from` to `to`.
    pub fn may_be(
        &self,
        prefix: &str,
        (from, to): (u64, u64),
        is_such: impl Fn(Limits) -> bool,
    ) -> bool {
        self.of(prefix).any(|change| {
            let is_later = |other: &Change| match change.deed.end {
                End::Done(done) => other.deed.from > done && other.deed.is_done_before(from),
                End::Unknown | End::Refused(_) => false,
            };
            change.limits.is_some_and(&is_such)
                && change.deed.may_show(from, to)
                && !self.of(prefix).any(is_later)
        })
    }

    /// The limits that a prefix had all the time from `from` to `to`, and none if there may have
    /// been another quota, or no quota.
    pub fn must_be(&self, prefix: &str, from: u64, to: u64) -> Option<Limits> {
        let last = self.of(prefix).filter(|change| change.deed.is_done_before(from));
        let last = last.max_by_key(|change| change.deed.from)?;
        let is_apart = |other: &Change| {
            other.deed.from == last.deed.from
                || other.deed.from > to
                || other.deed.is_over_before(last.deed.from)
                || matches!(other.deed.end, End::Refused(_))
        };
        let is_certain = last.deed.from > self.certain_from && self.of(prefix).all(is_apart);
        last.limits.filter(|_| is_certain)
    }
}

impl Model {
    /// Somebody reserved a file under a name between `from` and `to`: each quota that counts it had
    /// room for one more.
    pub fn had_room(&self, name: &str, from: u64, to: u64) -> Result<(), String> {
        for len in 1..=name.len() {
            let prefix = &name[..len];
            let limits = self.quotas.must_be(prefix, from, to);
            let Some(limit) = limits.and_then(|limits| limits.files) else { continue };
            let is_there = |name: &&super::Name| {
                name.versions.iter().any(|version| name.must_be(version, from, to, (None, &[])))
            };
            let its = self.names.iter().filter(|(other, _)| other.starts_with(prefix));
            let nr_files = its.filter(|(_, known)| is_there(known)).count() as u64;
            if nr_files + 1 > limit {
                return Err(format!(
                    "{name:?} was reserved between steps {from} and {to}, although {prefix:?} may \
                     have {limit} files, and {nr_files} others are there"
                ));
            }
        }
        Ok(())
    }
}
