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
use crate::wire::{
    CommitSpec, Committed, CreateSpec, Draft, MAX_SPARE_BYTES, MAX_SPARES, MAX_SPARES_BYTES,
    PutAnswer, PutSpec, Request,
};

/// Of so many kinds of files a client has spares at most.
const MAX_KINDS: usize = 8;

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
}

impl SpareKind {
    fn is_of(&self, spec: &CreateSpec) -> bool {
        self.like.has_like_frames(spec)
    }

    const fn bytes(&self) -> u64 {
        self.spares.len() as u64 * self.like.len_bytes
    }
}

/// How many spares for files of this length a client has at most.
fn most_spares(len_bytes: u64) -> usize {
    match len_bytes {
        1..=MAX_SPARE_BYTES => MAX_SPARES.min((MAX_SPARES_BYTES / len_bytes) as usize),
        _ => 0,
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

    /// Takes note of a put, in a message that asks for `nr_asked` spares already. Returns whether
    /// to ask for one more, and the spares that are given up for it.
    fn note_put(&self, spec: &CreateSpec, nr_asked: usize) -> (bool, Vec<u64>) {
        let most = most_spares(spec.len_bytes);
        if most == 0 {
            return (false, Vec::new());
        }
        let mut kinds = self.lock();
        let place = kinds.iter().position(|kind| kind.is_of(spec));
        let known = place.and_then(|place| kinds.remove(place));
        let is_known = known.is_some();
        let mut given_up = Vec::new();
        if kinds.len() >= MAX_KINDS {
            given_up.extend(kinds.pop_front().into_iter().flat_map(|kind| kind.spares));
        }
        let nr_own = known.as_ref().map_or(0, |kind| kind.spares.len()) + nr_asked;
        let wants_more = is_known && nr_own < most;
        let has_room = |kinds: &VecDeque<SpareKind>| {
            let (nr_others, others_bytes) = kinds
                .iter()
                .fold((0, 0), |(nr, bytes), kind| (nr + kind.spares.len(), bytes + kind.bytes()));
            let own_bytes = (nr_own as u64 + 1) * spec.len_bytes;
            nr_own + nr_others < MAX_SPARES && own_bytes + others_bytes <= MAX_SPARES_BYTES
        };
        while wants_more
            && !has_room(&kinds)
            && let Some(spare) = kinds.iter_mut().find_map(|kind| kind.spares.pop())
        {
            given_up.push(spare);
        }
        kinds.push_back(
            known.unwrap_or_else(|| SpareKind { like: spec.clone(), spares: Vec::new() }),
        );
        (wants_more, given_up.into_iter().map(|draft| draft.id).collect())
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
        Ok(if self.may_be_new(spec) { self.pin_spare(spec) } else { None })
    }

    /// Whether no file has the name, or it may be replaced.
    fn may_be_new(&self, spec: &CreateSpec) -> bool {
        spec.replace || !matches!(self.inner.index.id_of(spec.name.as_bytes()), Lookup::Found(_))
    }

    /// A writer in frames that were handed out ahead, if there are any.
    pub(super) fn pin_spare(&self, spec: &CreateSpec) -> Option<FileWriter<'_>> {
        let spare = self.inner.spares.take(spec)?;
        // Where it cannot be pinned the owner took it back, or was replaced.
        let writer = Writer::new(self, spare, (spec.len_bytes, spec.is_checksummed));
        writer.ok().map(|writer| writer.named_at_commit(spec.clone()))
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
        let begun = self.begin_puts(vec![CommitSpec { id, checksum }], vec![spec])?;
        Ok(one(self.finish_commit(begun)?)??)
    }

    /// Asks for drafts to be committed as the files that are said, and for spares like them,
    /// without waiting for the answer.
    pub(super) fn begin_puts(
        &self,
        commits: Vec<CommitSpec>,
        named: Vec<CreateSpec>,
    ) -> Result<BegunCommit<'_>, Error> {
        let (mut nr_asked, mut given_up) = (0, Vec::new());
        let puts = commits.iter().zip(&named).map(|(commit, spec)| {
            let (wants_spare, unkept) = self.inner.spares.note_put(spec, nr_asked);
            nr_asked += usize::from(wants_spare);
            given_up.extend(unkept);
            let CommitSpec { id, checksum } = *commit;
            let CreateSpec { name, replace, rules, metadata, .. } = spec.clone();
            PutSpec { id, name, replace, rules, metadata, checksum, wants_spare }
        });
        let request = Request::Put(puts.collect());
        if !given_up.is_empty() {
            self.abort_ids(given_up);
        }
        let ids = commits.iter().map(|commit| commit.id).collect();
        Ok(BegunCommit { ids, named, call: self.begin(request)? })
    }

    /// Keeps the spares that answers bring, and gives back those that there is no place for.
    pub(super) fn keep_spares(
        &self,
        named: &[CreateSpec],
        answers: Vec<PutAnswer>,
    ) -> Vec<Result<Committed, Refusal>> {
        let mut unkept = Vec::new();
        let keep = |(answer, spec): (PutAnswer, &CreateSpec)| {
            let spare = answer.spare.and_then(|spare| self.inner.spares.keep(spec, spare));
            unkept.extend(spare.map(|spare| spare.id));
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
        Draft { id, extents: Vec::new() }
    }

    #[test]
    fn the_second_put_of_a_size_asks_for_a_spare_and_the_third_has_it() {
        let spares = Spares::default();
        assert_eq!(spares.note_put(&spec(5), 0), (false, vec![]));
        assert_eq!(spares.note_put(&spec(6), 0), (false, vec![]));
        assert_eq!(spares.note_put(&spec(5), 0), (true, vec![]));
        assert!(spares.keep(&spec(5), spare(1)).is_none());
        assert!(spares.take(&spec(6)).is_none());
        assert_eq!(spares.take(&spec(5)).map(|spare| spare.id), Some(1));
        assert!(spares.take(&spec(5)).is_none());
        for len_bytes in [0, MAX_SPARE_BYTES + 1] {
            spares.note_put(&spec(len_bytes), 0);
            assert!(!spares.note_put(&spec(len_bytes), 0).0, "{len_bytes}");
        }
    }

    #[test]
    fn a_message_asks_for_no_more_spares_than_there_is_a_place_for() {
        let spares = Spares::default();
        spares.note_put(&spec(5), 0);
        let asks = |nr_asked| spares.note_put(&spec(5), nr_asked).0;
        assert!((0..MAX_SPARES).all(asks) && !asks(MAX_SPARES));
        assert!(spares.keep(&spec(5), spare(1)).is_none());
        assert!(asks(MAX_SPARES - 2) && !asks(MAX_SPARES - 1));
    }

    #[test]
    fn there_are_so_many_bytes_of_spares_at_most_and_those_of_the_size_not_put_for_longest_go() {
        let spares = Spares::default();
        // Two of each make up nearly all that a client may have.
        let nth = |kind: u64| spec(MAX_SPARES_BYTES / (2 * MAX_KINDS as u64) - 10 + kind);
        for kind in 1..=MAX_KINDS as u64 {
            spares.note_put(&nth(kind), 0);
            for id in [kind, 10 * kind] {
                assert_eq!(spares.note_put(&nth(kind), 0), (true, vec![]));
                assert!(spares.keep(&nth(kind), spare(id)).is_none());
            }
        }
        // Another of a size that has some: one of the oldest size goes for it.
        assert_eq!(spares.note_put(&nth(2), 0), (true, vec![10]));
        assert!(spares.keep(&nth(2), spare(21)).is_none());
        // A new size has the place of the oldest one.
        assert_eq!(spares.note_put(&spec(100), 0), (false, vec![1]));
        assert_eq!(spares.note_put(&spec(101), 0), (false, vec![3, 30]));
        assert_eq!(spares.keep(&nth(3), spare(30)).map(|spare| spare.id), Some(30));
    }

    #[test]
    fn there_are_so_many_spares_at_most() {
        let spares = Spares::default();
        spares.note_put(&spec(5), 0);
        for id in 0..MAX_SPARES as u64 {
            assert_eq!(spares.note_put(&spec(5), 0), (true, vec![]));
            assert!(spares.keep(&spec(5), spare(id)).is_none());
        }
        assert_eq!(spares.note_put(&spec(5), 0), (false, vec![]));
        assert_eq!(spares.keep(&spec(5), spare(999)).map(|spare| spare.id), Some(999));
    }
}
