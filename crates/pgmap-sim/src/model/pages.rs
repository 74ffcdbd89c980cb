//! What may be read at an address: single pages of a version that is mapped.
//!
//! Whoever maps a file keeps it whatever it is called by now, so these ask for versions, under any
//! name.

use super::{Cut, CutDeed, End, Model, Name, PAGE, Version, describe, is_pattern};

impl Model {
    fn version(&self, number: u64) -> Option<&Version> {
        let versions = self.names.values().flat_map(|name| &name.versions);
        versions.into_iter().find(|version| version.number == number && version.before.is_empty())
    }

    fn is_under_any(&self, number: u64, is_so: impl Fn(&Name, &Version) -> bool) -> bool {
        let of = |name: &Name| {
            let own = |version: &&Version| version.number == number;
            name.versions.iter().filter(own).any(|version| is_so(name, version))
        };
        self.names.values().any(of)
    }

    /// Whether a version may be somewhere at some time between two steps.
    pub fn may_live(&self, number: u64, from: u64, to: u64) -> bool {
        self.is_under_any(number, |name, version| name.may_be(version, from, to))
    }

    /// Whether a version is there all the while.
    pub fn must_live(&self, number: u64, from: u64, to: u64) -> bool {
        self.is_under_any(number, |name, version| name.must_be(version, from, to, (None, &[])))
    }

    /// The lengths that cuts give a version, and those cuts.
    fn shortened<'m>(
        &'m self,
        version: &'m Version,
    ) -> impl Iterator<Item = (u64, &'m CutDeed)> + 'm {
        self.cuts_of(version).filter_map(|own| match own.cut {
            Cut::Shorten(len) => Some((len, own)),
            Cut::Punch(..) | Cut::Heal(_) => None,
        })
    }

    fn holes<'m>(&'m self, version: &'m Version, page: u64) -> impl Iterator<Item = &'m CutDeed> {
        self.cuts_of(version).filter(move |own| match own.cut {
            Cut::Punch(start, end) => (start / PAGE..end.div_ceil(PAGE)).contains(&page),
            Cut::Heal(healed) => healed == page,
            Cut::Shorten(_) => false,
        })
    }

    /// Whether a page of a version may have lain behind the file's end.
    pub fn may_be_beyond(&self, number: u64, page: u64, from: u64, to: u64) -> bool {
        let Some(version) = self.version(number) else { return true };
        let is_behind = |len: u64| len <= page * PAGE;
        is_behind(version.len)
            || self
                .shortened(version)
                .any(|(len, own)| is_behind(len) && own.deed.may_show(from, to))
    }

    /// Whether a page of a version may have been a hole.
    pub fn may_be_hole(&self, number: u64, page: u64, from: u64, to: u64) -> bool {
        let Some(version) = self.version(number) else { return true };
        self.holes(version, page).any(|own| own.deed.may_show(from, to))
    }

    /// Whether a cut of a version may have gone on between two steps.
    pub fn may_be_cut(&self, number: u64, from: u64, to: u64) -> bool {
        let Some(version) = self.version(number) else { return true };
        self.cuts_of(version).any(|own| own.deed.from <= to && !own.deed.is_over_before(from))
    }

    /// Whether so many pages of a version, from one on, are to be reclaimed if anything of it is:
    /// no cut of it was given up, or took other pages only.
    pub fn is_wanted(&self, number: u64, page: u64, nr_pages: u64) -> bool {
        let Some(version) = self.version(number) else { return false };
        self.cuts_of(version).all(|own| {
            let (from, to) = match own.cut {
                Cut::Shorten(len) => (len.div_ceil(PAGE), u64::MAX),
                Cut::Punch(from, to) => (from / PAGE, to.div_ceil(PAGE)),
                Cut::Heal(page) => (page, page + 1),
            };
            own.deed.end == End::Unknown && from < page + nr_pages && page < to
        })
    }

    /// Whether a reader who looked from `from` to `to` may have found these bytes in a page of a
    /// version that is mapped. What a truncate cut off of its last page may stay there if `tails`
    /// may.
    pub fn page(
        &self,
        number: u64,
        page: u64,
        bytes: &[u8],
        (from, to): (u64, u64),
        tails: bool,
    ) -> Result<(), String> {
        let Some(version) = self.version(number) else {
            return Err(format!("there is no version {number}"));
        };
        let wrong = |why: String| {
            let holds = describe(bytes);
            Err(format!("page {page} of version {number} holds {holds} from {from} to {to}{why}"))
        };
        if !self.may_live(number, from, to) {
            return wrong(", and the file is gone".into());
        }
        let start = page * PAGE;
        let certain = |own: &CutDeed| own.met == Some(number) && own.deed.is_done_before(from);
        if let Some((len, _)) =
            self.shortened(version).find(|(len, own)| *len <= start && certain(own))
        {
            return wrong(format!(", and the file was cut to {len} bytes"));
        }
        let is_zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
        if is_zero(bytes) && self.holes(version, page).any(|own| own.deed.may_show(from, to)) {
            return Ok(());
        }
        if let Some(own) = self.holes(version, page).find(|own| certain(own)) {
            return wrong(format!(", after {:?}", own.cut));
        }
        let shown = self.shortened(version).filter(|(_, own)| own.deed.may_show(from, to));
        let most =
            self.shortened(version).filter(|(_, own)| certain(own)).map(|(len, _)| len).min();
        let lengths = shown.map(|(len, _)| len).chain([version.len]);
        for len in lengths.filter(|&len| len > start && most.is_none_or(|most| len <= most)) {
            let used = (len - start).min(PAGE) as usize;
            let (own, tail) = bytes.split_at(used.min(bytes.len()));
            if is_pattern(own, number, page) && (is_zero(tail) || tails) {
                return Ok(());
            }
        }
        wrong(String::new())
    }
}
