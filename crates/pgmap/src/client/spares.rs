//! Puts, and the frames that an owner hands out ahead for them: spares.
//!
//! A put from another process than the owner's asks for frames, copies and commits: two calls. Who
//! puts a second file of a size asks, with that commit, for frames for a third, and then each put
//! is one call. A batch asks for frames for the first files of the next one. A spare is held by
//! nobody until its writer pins it, so the owner can take it back whenever somebody needs the room;
//! the pin fails then, before anything is written, and frames are asked for as without it. See
//! docs/adr/0099-spares.md.

use std::collections::VecDeque;
use std::sync::PoisonError;

use pgmap_mm::index::Lookup;
use pgmap_mm::pin::ClientSide;
use pgmap_os::sync::{Mutex, MutexGuard};

use crate::client::link::Link;
use crate::client::writer::{FileWriter, Writer};
use crate::client::{BegunCommit, Client, one};
use crate::error::Error;
use crate::refusal::Refusal;
use crate::spare_places::{SparePlaces, SpareShare};
use crate::wire::{
    CommitSpec, Committed, CreateSpec, Draft, MAX_SPARE_BYTES, MAX_SPARES, MAX_SPARES_BYTES,
    PutAnswer, PutSpec, Request,
};

/// Of so many kinds of files a client has spares at most.
const MAX_KINDS: usize = 8;
/// A kind gives up its spares when so many files of others were put since one of it.
const MAX_OTHERS: usize = 8 * MAX_SPARES;
/// The owner is woken before so much is copied. In a simulation copies cost nothing.
const WAKE_BYTES: usize = if cfg!(feature = "sim") { 1 } else { 1 << 20 };
const PLACES: SparePlaces = SparePlaces { nr: MAX_SPARES, bytes: MAX_SPARES_BYTES };

/// The spares of a client.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    /// What was put lately, the latest last; at most [`MAX_KINDS`].
    kinds: Mutex<VecDeque<SpareKind>>,
}

/// Files whose frames are alike.
#[derive(Debug)]
struct SpareKind {
    /// What was put first.
    like: CreateSpec,
    spares: Vec<Draft>,
    /// How many files of other kinds were put since one of this.
    nr_others_since: usize,
}

impl SpareKind {
    const fn new(like: CreateSpec) -> Self {
        Self { like, spares: Vec::new(), nr_others_since: 0 }
    }

    fn is_of(&self, spec: &CreateSpec) -> bool {
        self.like.has_like_frames(spec)
    }

    const fn share(&self) -> SpareShare {
        SpareShare { nr: self.spares.len(), len_bytes: self.like.len_bytes }
    }
}

/// How many spares for files of this length a client has at most.
fn most_spares(len_bytes: u64) -> usize {
    match len_bytes {
        1..=MAX_SPARE_BYTES => MAX_SPARES.min((MAX_SPARES_BYTES / len_bytes) as usize),
        _ => 0,
    }
}

/// How many spares a call asks for, for files like each of these.
#[derive(Debug, Default)]
pub(super) struct AskedSpares(Vec<(CreateSpec, usize)>);

impl AskedSpares {
    fn nr_like(&self, spec: &CreateSpec) -> usize {
        let is_like = |(like, _): &&(CreateSpec, usize)| like.has_like_frames(spec);
        self.0.iter().find(is_like).map_or(0, |&(_, nr)| nr)
    }

    fn add(&mut self, spec: &CreateSpec) {
        match self.0.iter_mut().find(|(like, _)| like.has_like_frames(spec)) {
            Some((_, nr)) => *nr += 1,
            None => self.0.push((spec.clone(), 1)),
        }
    }
}

impl Spares {
    fn lock(&self) -> MutexGuard<'_, VecDeque<SpareKind>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, spec: &CreateSpec) -> Option<Draft> {
        let mut kinds = self.lock();
        kinds.iter_mut().find(|kind| kind.is_of(spec))?.spares.pop()
    }

    /// How many there are for files like this.
    fn nr_like(&self, spec: &CreateSpec) -> usize {
        self.lock().iter().find(|kind| kind.is_of(spec)).map_or(0, |kind| kind.spares.len())
    }

    /// Takes note of a put. Returns whether it is the first of its size, and the spares that are
    /// given up for it.
    fn note_put(&self, spec: &CreateSpec) -> (bool, Vec<u64>) {
        if most_spares(spec.len_bytes) == 0 {
            return (true, Vec::new());
        }
        let mut kinds = self.lock();
        let place = kinds.iter().position(|kind| kind.is_of(spec));
        let known = place.and_then(|place| kinds.remove(place));
        let is_first = known.is_none();
        let mut kind = known.unwrap_or_else(|| SpareKind::new(spec.clone()));
        kind.nr_others_since = 0;
        let mut given_up = Vec::new();
        if kinds.len() >= MAX_KINDS {
            given_up.extend(kinds.pop_front().into_iter().flat_map(|kind| kind.spares));
        }
        for other in kinds.iter_mut() {
            other.nr_others_since += 1;
            if other.nr_others_since >= MAX_OTHERS {
                given_up.append(&mut other.spares);
            }
        }
        kinds.push_back(kind);
        (is_first, given_up.into_iter().map(|draft| draft.id).collect())
    }

    /// Makes a place for one more spare like what was put, when `nr_asked` are still to come.
    /// Returns the spares that are given up for it; `None` if there is no place.
    fn make_place(&self, spec: &CreateSpec, nr_asked: usize) -> Option<Vec<u64>> {
        let mut kinds = self.lock();
        let nth_own = kinds.iter().position(|kind| kind.is_of(spec))?;
        let nr = kinds[nth_own].spares.len() + nr_asked;
        if nr >= most_spares(spec.len_bytes) {
            return None;
        }
        let own = SpareShare { nr, len_bytes: spec.len_bytes };
        let others = kinds.iter().enumerate().map(|(nth, kind)| match nth == nth_own {
            // It is counted by itself.
            true => SpareShare { nr: 0, ..kind.share() },
            false => kind.share(),
        });
        let giving = PLACES.for_one_more(own, others)?;
        Some(giving.into_iter().filter_map(|nth| kinds[nth].spares.pop()).map(|it| it.id).collect())
    }

    /// Keeps a spare for the next put; returns it if there is no place for it any more.
    fn keep(&self, spec: &CreateSpec, spare: Draft) -> Option<Draft> {
        let mut kinds = self.lock();
        let nr_kept: usize = kinds.iter().map(|kind| kind.spares.len()).sum();
        match kinds.iter_mut().find(|kind| kind.is_of(spec)) {
            Some(kind) if nr_kept < MAX_SPARES => {
                kind.spares.push(spare);
                None
            }
            _ => Some(spare),
        }
    }
}

impl Client {
    /// Creates, fills and publishes one file. Contents that are shorter than `spec` says are
    /// followed by zeros.
    ///
    /// From the second file of a size on, up to 4 MiB, an owner in another process hands out frames
    /// for the next file with its answer. They count as this client's, in its quotas too, and go
    /// back as soon as somebody needs the room or the client ends.
    ///
    /// # Errors
    /// As [`create`](Self::create) and [`FileWriter::commit`]; [`Error::OutOfRange`] when the
    /// contents are longer than `spec` says.
    ///
    /// ```
    /// # use pgmap::{CreateSpec, FileName, FolioSize, Owner, Pool, PoolOptions};
    /// # let owner = Owner::start(Pool::create(&PoolOptions::anonymous(16 << 20))?)?;
    /// # let client = owner.client()?;
    /// let spec = CreateSpec::new(FileName::new("block")?, 6, FolioSize::BestFit);
    /// client.put(spec, b"tokens")?;
    /// assert_eq!(client.get("block")?.to_vec()?, b"tokens");
    /// # Ok::<(), pgmap::Error>(())
    /// ```
    pub fn put(&self, spec: CreateSpec, contents: &[u8]) -> Result<(), Error> {
        let fill = |mut writer: FileWriter<'_>| {
            writer.write_all_at(0, contents)?;
            writer.commit()
        };
        if let Some(writer) = self.writer_of_spare(&spec)? {
            if contents.len() >= WAKE_BYTES {
                self.inner.link.wake_owner();
            }
            match fill(writer) {
                // An owner that went meanwhile knew of it, and did not commit it.
                Err(Error::Refused(Refusal::NoDraft { .. })) => {}
                ended => return ended,
            }
        }
        fill(self.create_to_put(spec)?)
    }

    /// As [`create`](Self::create), in frames that were handed out ahead if there are any: without
    /// a call then, so that what a create would be refused for is refused at the commit.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_ahead(&self, spec: CreateSpec) -> Result<FileWriter<'_>, Error> {
        match self.writer_of_spare(&spec)? {
            Some(writer) => Ok(writer),
            None => self.create_to_put(spec),
        }
    }

    pub(super) fn create_to_put(&self, spec: CreateSpec) -> Result<FileWriter<'_>, Error> {
        // In the owner's process a call is cheaper than what saves it.
        let named = matches!(self.inner.link, Link::Remote(_)).then(|| spec.clone());
        let writer = one(self.create_batch(vec![spec])?)??;
        Ok(match named {
            Some(spec) => writer.named_at_commit(spec),
            None => writer,
        })
    }

    /// A writer in frames that were handed out ahead; `None` if there are none, or the name is
    /// taken: the owner says so.
    pub(super) fn writer_of_spare(
        &self,
        spec: &CreateSpec,
    ) -> Result<Option<FileWriter<'_>>, Error> {
        if self.inner.pinner.side().is_forked() {
            return Err(Error::Forked);
        }
        let writer = if self.may_be_new(spec) { self.pin_spare(spec) } else { None };
        Ok(writer.map(|writer| writer.named_at_commit(spec.clone())))
    }

    /// Whether no file has the name, or it may be replaced.
    fn may_be_new(&self, spec: &CreateSpec) -> bool {
        spec.replace || !matches!(self.inner.index.id_of(spec.name.as_bytes()), Lookup::Found(_))
    }

    /// A writer in frames that were handed out ahead, if there are any. Its commit must name it.
    pub(super) fn pin_spare(&self, spec: &CreateSpec) -> Option<FileWriter<'_>> {
        let spare = self.inner.spares.take(spec)?;
        // Where it cannot be pinned the owner took it back, or was replaced.
        Writer::new(self, spare, (spec.len_bytes, spec.is_checksummed)).ok()
    }

    /// Which of several files [`pin_spare`](Self::pin_spare) has frames for, as of now.
    ///
    /// # Errors
    /// [`Error::Forked`].
    pub(super) fn places_of_spares<'s>(
        &self,
        specs: impl Iterator<Item = &'s CreateSpec>,
    ) -> Result<Vec<usize>, Error> {
        if self.inner.pinner.side().is_forked() {
            return Err(Error::Forked);
        }
        let mut kinds: Vec<(&CreateSpec, usize)> = Vec::new();
        let mut places = Vec::new();
        for (place, spec) in specs.enumerate() {
            let known = kinds.iter().position(|(kind, _)| kind.has_like_frames(spec));
            let nth = known.unwrap_or_else(|| {
                kinds.push((spec, self.inner.spares.nr_like(spec)));
                kinds.len() - 1
            });
            let nr_left = &mut kinds[nth].1;
            if *nr_left > 0 && self.may_be_new(spec) {
                *nr_left -= 1;
                places.push(place);
            }
        }
        Ok(places)
    }

    /// Commits a draft as the file that `spec` says.
    pub(super) fn put_draft(
        &self,
        id: u64,
        spec: CreateSpec,
        checksum: Option<u32>,
    ) -> Result<Committed, Error> {
        let commits = vec![CommitSpec { id, checksum }];
        let begun = self.begin_puts(commits, vec![spec], 1, [].iter())?;
        Ok(one(self.finish_commit(begun, self.deadline())?)??)
    }

    /// Asks for drafts to be committed as the files that are said, and for up to `most` spares like
    /// each, without waiting for the answer. Spares are `coming` that were asked for by calls under
    /// way.
    pub(super) fn begin_puts<'a>(
        &self,
        commits: Vec<CommitSpec>,
        named: Vec<CreateSpec>,
        most: u8,
        coming: impl Iterator<Item = &'a AskedSpares>,
    ) -> Result<BegunCommit<'_>, Error> {
        let coming: Vec<_> = coming.collect();
        let is_alone = commits.len() == 1;
        let (mut asked, mut given_up) = (AskedSpares::default(), Vec::new());
        let puts = commits.iter().zip(&named).map(|(commit, spec)| {
            let nr_coming: usize = coming.iter().map(|coming| coming.nr_like(spec)).sum();
            let (is_first, unkept) = self.inner.spares.note_put(spec);
            given_up.extend(unkept);
            // Who puts one file may end then.
            let most = if is_first && is_alone { 0 } else { most };
            let mut nr_spares = 0;
            while nr_spares < most {
                let nr_asked = nr_coming + asked.nr_like(spec);
                let Some(unkept) = self.inner.spares.make_place(spec, nr_asked) else { break };
                given_up.extend(unkept);
                asked.add(spec);
                nr_spares += 1;
            }
            let CommitSpec { id, checksum } = *commit;
            let CreateSpec { name, replace, rules, metadata, .. } = spec.clone();
            PutSpec { id, name, replace, rules, metadata, checksum, nr_spares }
        });
        let request = Request::Put(puts.collect());
        if !given_up.is_empty() {
            self.abort_ids(given_up);
        }
        let ids = commits.iter().map(|commit| commit.id).collect();
        Ok(BegunCommit { ids, named, asked, call: self.begin(request)? })
    }

    /// Keeps the spares that answers bring, and gives back those that there is no place for.
    pub(super) fn keep_spares(
        &self,
        named: &[CreateSpec],
        answers: Vec<PutAnswer>,
    ) -> Vec<Result<Committed, Refusal>> {
        let mut unkept = Vec::new();
        let keep = |(answer, spec): (PutAnswer, &CreateSpec)| {
            let spares = answer.spares.into_iter();
            let given_back = spares.filter_map(|spare| self.inner.spares.keep(spec, spare));
            unkept.extend(given_back.map(|spare| spare.id));
            answer.committed
        };
        let committed = answers.into_iter().zip(named).map(keep).collect();
        if !unkept.is_empty() {
            self.abort_ids(unkept);
        }
        committed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::FileName;
    use crate::wire::FolioSize;

    fn spec(len_bytes: u64) -> CreateSpec {
        CreateSpec::new(FileName::new("a").unwrap(), len_bytes, FolioSize::BestFit)
    }

    fn spare(id: u64) -> Draft {
        Draft { id, extents: smallvec::SmallVec::new() }
    }

    /// As a put alone does it: whether it asks for a spare, and what is given up for it.
    fn note_put(spares: &Spares, spec: &CreateSpec, nr_asked: usize) -> (bool, Vec<u64>) {
        let (is_first, mut given_up) = spares.note_put(spec);
        let place = if is_first { None } else { spares.make_place(spec, nr_asked) };
        let asks = place.is_some();
        given_up.extend(place.into_iter().flatten());
        (asks, given_up)
    }

    #[test]
    fn the_second_put_of_a_size_asks_for_a_spare_and_the_third_has_it() {
        let spares = Spares::default();
        assert_eq!(note_put(&spares, &spec(5), 0), (false, vec![]));
        assert_eq!(note_put(&spares, &spec(6), 0), (false, vec![]));
        assert_eq!(note_put(&spares, &spec(5), 0), (true, vec![]));
        assert!(spares.keep(&spec(5), spare(1)).is_none());
        assert!(spares.take(&spec(6)).is_none());
        assert_eq!(spares.take(&spec(5)).map(|spare| spare.id), Some(1));
        assert!(spares.take(&spec(5)).is_none());
        for len_bytes in [0, MAX_SPARE_BYTES + 1] {
            note_put(&spares, &spec(len_bytes), 0);
            assert!(!note_put(&spares, &spec(len_bytes), 0).0, "{len_bytes}");
        }
    }

    #[test]
    fn a_message_asks_for_no_more_spares_than_there_is_a_place_for() {
        let spares = Spares::default();
        note_put(&spares, &spec(5), 0);
        let asks = |nr_asked| note_put(&spares, &spec(5), nr_asked).0;
        assert!((0..MAX_SPARES).all(asks) && !asks(MAX_SPARES));
        assert!(spares.keep(&spec(5), spare(1)).is_none());
        assert!(asks(MAX_SPARES - 2) && !asks(MAX_SPARES - 1));
    }

    #[test]
    fn there_are_so_many_bytes_of_spares_at_most_and_the_size_with_the_most_gives() {
        const MIB: u64 = 1 << 20;
        let spares = Spares::default();
        let put = |len_bytes, id| {
            let (asks, given_up) = note_put(&spares, &spec(len_bytes), 0);
            if asks {
                assert!(spares.keep(&spec(len_bytes), spare(id)).is_none());
            }
            (asks, given_up)
        };
        let most = MAX_SPARES_BYTES / (2 * MIB);
        assert_eq!(put(2 * MIB, 0), (false, vec![]));
        for id in 1..=most {
            assert_eq!(put(2 * MIB, id), (true, vec![]));
        }
        assert_eq!(put(2 * MIB, 0), (false, vec![]), "it has all that there may be");
        // Another size has half at the end.
        assert_eq!(put(MIB, 0), (false, vec![]));
        for id in 1..=most {
            let gives = if id % 2 == 1 { vec![most - id / 2] } else { vec![] };
            assert_eq!(put(MIB, 100 + id), (true, gives));
        }
        assert_eq!(put(MIB, 0), (false, vec![]));
        // Two sizes that are put in turns take nothing from each other.
        for _ in 0..4 {
            for (len_bytes, id) in [(2 * MIB, 50), (MIB, 60)] {
                assert!(spares.take(&spec(len_bytes)).is_some());
                assert_eq!(put(len_bytes, id), (true, vec![]));
            }
        }
    }

    /// It kept half of the places for ever.
    #[test]
    fn a_size_that_is_put_no_more_gives_up_its_places() {
        let spares = Spares::default();
        for len_bytes in [5, 5, 5, 6, 6] {
            if note_put(&spares, &spec(len_bytes), 0).0 {
                assert!(spares.keep(&spec(len_bytes), spare(len_bytes)).is_none());
            }
        }
        let given_up: Vec<u64> =
            (2..MAX_OTHERS).flat_map(|_| note_put(&spares, &spec(6), MAX_SPARES).1).collect();
        assert_eq!(given_up, [5, 5]);
        assert!(spares.take(&spec(6)).is_some() && spares.take(&spec(5)).is_none());
    }

    #[test]
    fn a_size_too_many_has_the_place_of_that_put_longest_ago() {
        let spares = Spares::default();
        for kind in 1..=MAX_KINDS as u64 {
            note_put(&spares, &spec(kind), 0);
            assert_eq!(note_put(&spares, &spec(kind), 0), (true, vec![]));
            assert!(spares.keep(&spec(kind), spare(kind)).is_none());
        }
        assert_eq!(note_put(&spares, &spec(1), 0), (true, vec![]));
        assert_eq!(note_put(&spares, &spec(100), 0), (false, vec![2]));
        assert_eq!(spares.keep(&spec(2), spare(30)).map(|spare| spare.id), Some(30));
    }

    #[test]
    fn there_are_so_many_spares_at_most() {
        let spares = Spares::default();
        note_put(&spares, &spec(5), 0);
        for id in 0..MAX_SPARES as u64 {
            assert_eq!(note_put(&spares, &spec(5), 0), (true, vec![]));
            assert!(spares.keep(&spec(5), spare(id)).is_none());
        }
        assert_eq!(note_put(&spares, &spec(5), 0), (false, vec![]));
        assert_eq!(spares.keep(&spec(5), spare(999)).map(|spare| spare.id), Some(999));
    }
}
