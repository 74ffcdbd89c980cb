//! What the pool must look like, as naively as it can be said.
//!
//! A name stands for *versions*: each was put there once and taken away at some time. When
//! something was asked and when it was answered is known; what lies between, or was never answered,
//! may be or not be. A reader who asked at `from` and had an answer at `to` must have found one of
//! what may have been there in between, and may have missed only what was not there all the while.
//!
//! The contents of a version tell their number and place: word `i` is `number << 24 | i`.

mod pages;
pub mod quotas;

use std::collections::BTreeMap;

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// How something that was asked ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is not known: not answered, or its caller was killed.
    Unknown,
    Done(u64),
    Refused(u64),
}

/// Something that was asked.
#[derive(Clone, Copy, Debug)]
pub struct Deed {
    pub from: u64,
    pub end: End,
}

impl Deed {
    /// Whether it may show to one who looks from `from` to `to`.
    fn may_show(self, from: u64, to: u64) -> bool {
        self.from <= to && !matches!(self.end, End::Refused(at) if at < from)
    }

    /// Whether it was done before `at`.
    fn is_done_before(self, at: u64) -> bool {
        matches!(self.end, End::Done(done) if done < at)
    }

    /// Whether it was over before `at`, however it ended.
    fn is_over_before(self, at: u64) -> bool {
        matches!(self.end, End::Done(over) | End::Refused(over) if over < at)
    }
}

/// What cuts take away.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// All but so many bytes.
    Shorten(u64),
    /// Bytes from, to.
    Punch(u64, u64),
    /// The memory of a page, of which only zeros are left.
    Heal(u64),
}

/// Contents that were put under a name once.
#[derive(Clone, Debug)]
struct Version {
    number: u64,
    len: u64,
    put: Deed,
    /// Names that it had before.
    before: Vec<String>,
    /// Whether it may be evicted whenever somebody puts something, and so never must be there. What
    /// holds of it say stays, as of any.
    is_evictable: bool,
}

#[derive(Clone, Debug)]
struct Removal {
    deed: Deed,
    /// The version that took the place of the others.
    by: Option<u64>,
    /// The version that went, if others stayed for certain.
    only: Option<u64>,
}

impl Removal {
    fn concerns(&self, version: &Version) -> bool {
        self.by != Some(version.number) && self.only.is_none_or(|only| only == version.number)
    }
}

#[derive(Clone, Debug)]
struct CutDeed {
    cut: Cut,
    deed: Deed,
    /// The version that it certainly met.
    met: Option<u64>,
}

/// What a name stands and stood for.
#[derive(Debug, Default)]
struct Name {
    versions: Vec<Version>,
    removals: Vec<Removal>,
    cuts: Vec<CutDeed>,
}

impl Name {
    fn may_be(&self, version: &Version, from: u64, to: u64) -> bool {
        let is_put = version.put.from <= to && !matches!(version.put.end, End::Refused(_));
        is_put
            && !self.removals.iter().any(|removal| {
                // Certain only if the version was there before the removal began.
                removal.concerns(version)
                    && removal.deed.is_done_before(from)
                    && version.put.is_done_before(removal.deed.from)
            })
    }

    fn must_be(
        &self,
        version: &Version,
        from: u64,
        to: u64,
        (but, held): (Option<u64>, &[u64]),
    ) -> bool {
        version.put.is_done_before(from)
            && (!version.is_evictable || held.contains(&version.number))
            && !self.removals.iter().any(|removal| {
                removal.concerns(version)
                    && Some(removal.deed.from) != but
                    && removal.deed.from <= to
                    && !matches!(removal.deed.end, End::Refused(_))
                    && !removal.deed.is_over_before(version.put.from)
            })
    }
}

/// Fills a page with its pattern.
pub fn fill(bytes: &mut [u8], number: u64, page: u64) {
    for (word, bytes) in bytes.chunks_mut(8).enumerate() {
        let value = ((number << 24) | (page * (PAGE / 8) + word as u64)).to_le_bytes();
        bytes.copy_from_slice(&value[..bytes.len()]);
    }
}

fn is_pattern(bytes: &[u8], number: u64, page: u64) -> bool {
    bytes.chunks(8).enumerate().all(|(word, bytes)| {
        let value = ((number << 24) | (page * (PAGE / 8) + word as u64)).to_le_bytes();
        bytes == &value[..bytes.len()]
    })
}

/// Says what a page holds, for people.
fn describe(bytes: &[u8]) -> String {
    let words: Vec<String> = bytes
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7].map(|at| word[at])))
        .scan(None, |last, word| {
            let what = (word >> 24, word == 0);
            let is_new = *last != Some(what);
            *last = Some(what);
            Some(is_new.then(|| match word {
                0 => "zeros".to_owned(),
                _ => format!("version {} word {}", word >> 24, word & 0xff_ffff),
            }))
        })
        .flatten()
        .take(4)
        .collect();
    words.join(", then ")
}

/// All names.
#[derive(Debug, Default)]
pub struct Model {
    names: BTreeMap<String, Name>,
    nr_versions: u64,
    /// Renamings of which it is not known whether they are over: from, to.
    renaming: Vec<(String, String, u64)>,
    /// When owners ended, and when they had ended well.
    ends: Vec<(u64, Option<u64>)>,
    /// Whether owners evict.
    evicts: bool,
    /// What operators said that prefixes may have.
    pub quotas: quotas::Quotas,
}

/// Whether contents of this number may be evicted, where owners evict.
pub const fn is_evictable(number: u64) -> bool {
    number.is_multiple_of(2)
}

impl Model {
    /// Says whether owners evict.
    pub const fn allow_evictions(&mut self, evicts: bool) {
        self.evicts = evicts;
    }

    /// A number for contents.
    pub fn new_number(&mut self) -> u64 {
        self.nr_versions += 1;
        self.nr_versions
    }

    pub const fn nr_versions(&self) -> u64 {
        self.nr_versions
    }

    /// Nothing is known any more.
    pub fn forget(&mut self, at: u64) {
        self.quotas.forget(at);
        for name in self.names.values_mut() {
            let deeds = name.removals.iter_mut().map(|removal| &mut removal.deed);
            deeds.for_each(|deed| deed.end = End::Unknown);
            let deed = Deed { from: at, end: End::Unknown };
            name.removals.push(Removal { deed, by: None, only: None });
        }
    }

    fn of(&mut self, name: &str) -> &mut Name {
        self.names.entry(name.to_owned()).or_default()
    }

    /// Somebody asks to put contents under a name; in place of others if `replaces`.
    pub fn put(&mut self, name: &str, number: u64, len: u64, from: u64, replaces: bool) {
        let deed = Deed { from, end: End::Unknown };
        let is_evictable = self.evicts && is_evictable(number);
        self.arrive(name, Version { number, len, put: deed, before: Vec::new(), is_evictable });
        if replaces {
            self.of(name).removals.push(Removal { deed, by: Some(number), only: None });
        }
    }

    /// A version comes to a name, and may be met there by renamings that are under way.
    fn arrive(&mut self, name: &str, version: Version) {
        let mut paths = vec![(name.to_owned(), version)];
        while let Some((name, version)) = paths.pop() {
            let is_same = |other: &Version| {
                (other.number, other.put.from) == (version.number, version.put.from)
            };
            if self.of(&name).versions.iter().any(is_same) {
                continue;
            }
            for (from, to, _) in &self.renaming {
                if *from != name {
                    continue;
                }
                let put = Deed { end: End::Unknown, ..version.put };
                let before = version.before.iter().cloned().chain([name.clone()]).collect();
                paths.push((to.clone(), Version { put, before, ..version }));
            }
            self.of(&name).versions.push(version);
        }
    }

    /// What became of it.
    pub fn put_ended(&mut self, name: &str, number: u64, end: End) {
        let name = self.of(name);
        // Not where a renaming under way has brought it back to.
        let is_own = |version: &&mut Version| version.number == number && version.before.is_empty();
        name.versions.iter_mut().filter(is_own).for_each(|version| version.put.end = end);
        let removal = name.removals.iter_mut().filter(|removal| removal.by == Some(number));
        removal.for_each(|removal| removal.deed.end = end);
    }

    /// Somebody asks to take away whatever a name stands for.
    pub fn remove(&mut self, name: &str, from: u64) {
        let deed = Deed { from, end: End::Unknown };
        self.of(name).removals.push(Removal { deed, by: None, only: None });
    }

    /// What became of the removal that began at `from`.
    pub fn removal_ended(&mut self, name: &str, from: u64, end: End) {
        let own = |removal: &&mut Removal| removal.deed.from == from && removal.by.is_none();
        self.of(name).removals.iter_mut().filter(own).for_each(|removal| removal.deed.end = end);
    }

    /// Somebody asks to give what one name stands for another name.
    pub fn rename(&mut self, name: &str, to: &str, from: u64, replaces: bool) {
        self.remove(name, from);
        let put = Deed { from, end: End::Unknown };
        let old = self.of(name);
        let moved: Vec<Version> = old
            .versions
            .iter()
            .filter(|version| old.may_be(version, from, u64::MAX))
            .map(|version| {
                let mut before = version.before.clone();
                before.push(name.to_owned());
                Version { put, before, ..*version }
            })
            .collect();
        let new = self.of(to);
        if replaces {
            // Which version comes is not certain, so neither is which others go.
            let by = moved.first().map(|version| version.number);
            new.removals.push(Removal { deed: put, by, only: None });
        }
        moved.into_iter().for_each(|version| self.arrive(to, version));
        self.renaming.push((name.to_owned(), to.to_owned(), from));
    }

    /// What became of the renaming that began at `from`.
    pub fn rename_ended(&mut self, name: &str, to: &str, from: u64, end: End) {
        self.removal_ended(name, from, end);
        if end != End::Unknown {
            self.renaming.retain(|&(_, _, began)| began != from);
        }
        let new = self.of(to);
        let mut moved: Vec<&mut Version> =
            new.versions.iter_mut().filter(|version| version.put.from == from).collect();
        // Of several only one was moved.
        let is_known = moved.len() == 1 || matches!(end, End::Refused(_));
        if is_known {
            moved.iter_mut().for_each(|version| version.put.end = end);
            let own = new.removals.iter_mut().filter(|removal| removal.deed.from == from);
            own.for_each(|removal| removal.deed.end = end);
        }
    }

    /// Somebody asks to cut what a name stands for.
    pub fn cut(&mut self, name: &str, cut: Cut, from: u64) {
        let deed = Deed { from, end: End::Unknown };
        self.of(name).cuts.push(CutDeed { cut, deed, met: None });
    }

    /// What became of the cut that began at `from`, at `now`.
    pub fn cut_ended(&mut self, name: &str, from: u64, now: u64, end: End) {
        let name = self.of(name);
        let there: Vec<u64> = name
            .versions
            .iter()
            .filter(|version| name.may_be(version, from, now))
            .map(|version| version.number)
            .collect();
        let met = if there.len() == 1 { Some(there[0]) } else { None };
        for own in name.cuts.iter_mut().filter(|own| own.deed.from == from) {
            own.deed.end = end;
            own.met = met;
        }
    }

    /// The version that the cut that began at `from` met for certain.
    pub fn met(&self, name: &str, from: u64) -> Option<u64> {
        self.names.get(name)?.cuts.iter().find(|own| own.deed.from == from)?.met
    }

    /// The power failed at `at`. What was there when an owner last ended well stays. What came
    /// after that is gone; of what came meanwhile nothing is known (ADR 0026, `Catalog::open_in`).
    pub fn power_failed(&mut self, at: u64) {
        self.quotas.forget(at);
        let born: BTreeMap<u64, Deed> = self
            .names
            .values()
            .flat_map(|name| &name.versions)
            .filter(|version| version.before.is_empty())
            .map(|version| (version.number, version.put))
            .collect();
        for name in self.names.values_mut() {
            for version in &name.versions {
                let Some(put) = born.get(&version.number) else { continue };
                let is_kept =
                    self.ends.iter().any(|&(from, to)| to.is_some() && put.is_done_before(from));
                if is_kept {
                    continue;
                }
                let is_certain =
                    self.ends.iter().all(|&(_, to)| to.is_some_and(|to| to < put.from));
                let end = if is_certain { End::Done(at) } else { End::Unknown };
                let deed = Deed { from: at, end };
                let only = Some(version.number);
                name.removals.push(Removal { deed, by: None, only });
            }
        }
    }

    /// An owner began to end at `from`, and had ended well at `to`.
    pub fn owner_ended(&mut self, from: u64, to: Option<u64>) {
        self.ends.retain(|&(began, _)| began != from);
        self.ends.push((from, to));
    }

    /// A reader looked from `from` to `to` and found these bytes. Answers with their version.
    pub fn found(&self, name: &str, bytes: &[u8], from: u64, to: u64) -> Result<u64, String> {
        let mut why = String::new();
        let known = self.names.get(name);
        for version in known.iter().flat_map(|known| known.versions.iter().rev()) {
            if !known.is_some_and(|known| known.may_be(version, from, to)) {
                continue;
            }
            match self.allows(version, bytes, from, to) {
                Ok(()) => return Ok(version.number),
                Err(not) => why = not,
            }
        }
        let versions: Vec<u64> =
            known.iter().flat_map(|known| &known.versions).map(|version| version.number).collect();
        let first = describe(&bytes[..bytes.len().min(PAGE as usize)]);
        Err(format!(
            "{name:?} was read as {} bytes ({first}) between steps {from} and {to}; {why}; its \
             versions are {versions:?}",
            bytes.len()
        ))
    }

    /// The cuts that a version may have met, under whatever name.
    fn cuts_of(&self, version: &Version) -> impl Iterator<Item = &CutDeed> {
        let had = |name: &&Name| name.versions.iter().any(|other| other.number == version.number);
        let is_new = version.before.is_empty();
        let from = version.put.from;
        self.names
            .values()
            .filter(had)
            .flat_map(|name| &name.cuts)
            .filter(move |own| !is_new || !own.deed.is_over_before(from))
    }

    /// Whether a reader may have found these bytes of a version.
    fn allows(&self, version: &Version, bytes: &[u8], from: u64, to: u64) -> Result<(), String> {
        let (number, len) = (version.number, bytes.len() as u64);
        let certain = |own: &&CutDeed| own.met == Some(number) && own.deed.is_done_before(from);
        let lengths = || {
            self.cuts_of(version).filter_map(|own| match own.cut {
                Cut::Shorten(len) => Some((len, own)),
                Cut::Punch(..) | Cut::Heal(_) => None,
            })
        };
        let may_be = len == version.len
            || lengths().any(|(shorter, own)| shorter == len && own.deed.may_show(from, to));
        if !may_be || lengths().any(|(shorter, own)| len > shorter && certain(&own)) {
            return Err(format!("{len} bytes of version {number} ({} bytes)", version.len));
        }
        for (page, bytes) in bytes.chunks(PAGE as usize).enumerate() {
            let page = page as u64;
            let punches = || {
                self.cuts_of(version).filter(move |own| match own.cut {
                    Cut::Punch(start, end) => (start / PAGE..end.div_ceil(PAGE)).contains(&page),
                    Cut::Heal(healed) => healed == page,
                    Cut::Shorten(_) => false,
                })
            };
            if is_pattern(bytes, number, page) {
                if let Some(own) = punches().find(certain) {
                    return Err(format!("page {page} of {number} is there after {:?}", own.cut));
                }
            } else if bytes.iter().all(|&byte| byte == 0)
                && punches().any(|own| own.deed.may_show(from, to))
            {
                // A hole.
            } else if lengths().any(|(shorter, own)| {
                shorter / PAGE == page
                    && own.deed.may_show(from, to)
                    && is_pattern(
                        &bytes[..bytes.len().min((shorter % PAGE) as usize)],
                        number,
                        page,
                    )
                    && bytes[bytes.len().min((shorter % PAGE) as usize)..]
                        .iter()
                        .all(|&byte| byte == 0)
            }) {
                // Opened before a truncate, and read after it.
            } else {
                return Err(format!("page {page} of version {number} holds {}", describe(bytes)));
            }
        }
        Ok(())
    }

    /// What a pin of a version, from byte `start` of it on, showed first and shows now differs.
    /// Only the rest of a page may have been zeroed in which a truncate ends, as a kernel does too.
    pub fn held(
        &self,
        name: &str,
        (number, start): (u64, u64),
        first: &[u8],
        now: &[u8],
    ) -> Result<(), String> {
        let version = self.names.get(name).into_iter().flat_map(|name| &name.versions);
        let version = version.into_iter().find(|version| version.number == number);
        // A file may have been renamed, and cut, since.
        let cuts: Vec<Cut> =
            self.names.values().flat_map(|name| &name.cuts).map(|own| own.cut).collect();
        let is_cut_off = |at: u64| {
            cuts.iter().any(|cut| match *cut {
                Cut::Shorten(len) => len / PAGE == at / PAGE && at >= len,
                Cut::Punch(..) | Cut::Heal(_) => false,
            })
        };
        let differs = |&at: &usize| first[at] != now[at];
        match (0..first.len())
            .filter(differs)
            .find(|&at| now[at] != 0 || !is_cut_off(start + at as u64))
        {
            None => Ok(()),
            Some(at) => {
                let page = at / PAGE as usize * PAGE as usize;
                let shows = describe(&now[page..now.len().min(page + PAGE as usize)]);
                let put = version.map(|version| version.put);
                Err(format!(
                    "a pin of {name:?} version {number} ({put:?}) changed at byte {at}: {shows}"
                ))
            }
        }
    }

    /// What a reader that looked from `from` on found behind a file's end in its last page, where
    /// whoever maps the page sees it: zeros. As long as a truncate may still be given up the file's
    /// own bytes are there.
    pub fn tail(
        &self,
        name: &str,
        number: u64,
        len: u64,
        tail: &[u8],
        from: u64,
    ) -> Result<(), String> {
        if tail.iter().all(|&byte| byte == 0) {
            return Ok(());
        }
        let mut page = [0; PAGE as usize];
        fill(&mut page, number, len / PAGE);
        let known = self.names.get(name);
        let version = known
            .and_then(|known| known.versions.iter().rev().find(|version| version.number == number));
        let is_undecided = version.is_some_and(|version| {
            self.cuts_of(version).any(|own| {
                matches!(own.cut, Cut::Shorten(shorter) if shorter == len)
                    && !own.deed.is_over_before(from)
            })
        });
        let own = page[(len % PAGE) as usize..].iter();
        if is_undecided && tail.iter().zip(own).all(|(&byte, &own)| byte == 0 || byte == own) {
            return Ok(());
        }
        Err(format!("version {number} ends at {len}, and behind that lies {}", describe(tail)))
    }

    /// A reader looked from `from` to `to` and found nothing. One who asked for a removal itself
    /// says when. `held` are the versions that were held all the while, and so not evicted.
    pub fn missed(
        &self,
        name: &str,
        from: u64,
        to: u64,
        own: (Option<u64>, &[u64]),
    ) -> Result<(), String> {
        let Some(known) = self.names.get(name) else { return Ok(()) };
        match known.versions.iter().find(|version| known.must_be(version, from, to, own)) {
            None => Ok(()),
            Some(version) => Err(format!(
                "{name:?} was not found between steps {from} and {to}, and is version {}",
                version.number
            )),
        }
    }

    /// Whether something may be under a name.
    pub fn may_be(&self, name: &str, from: u64, to: u64) -> bool {
        let Some(known) = self.names.get(name) else { return false };
        known.versions.iter().any(|version| known.may_be(version, from, to))
    }

    /// The names under which something may be, and the longest that it may be.
    pub fn lengths(&self, from: u64, to: u64) -> Vec<(&str, u64)> {
        let longest = |known: &Name| {
            let there = known.versions.iter().filter(|version| known.may_be(version, from, to));
            there.map(|version| version.len).max()
        };
        self.names.iter().filter_map(|(name, known)| Some((&**name, longest(known)?))).collect()
    }

    /// What may be under a name.
    pub fn numbers(&self, name: &str, from: u64, to: u64) -> impl Iterator<Item = u64> + '_ {
        let known = self.names.get(name).into_iter();
        let there = move |known: &'_ Name| {
            let versions = known.versions.iter();
            let there = versions.filter(|version| known.may_be(version, from, to));
            there.map(|version| version.number).collect::<Vec<_>>()
        };
        known.flat_map(there)
    }

    /// All names that were ever used.
    pub fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }
}
