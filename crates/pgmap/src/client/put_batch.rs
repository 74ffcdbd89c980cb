//! Puts of many files: while the client copies some, an owner in another process makes room for the
//! next and commits those before.
//!
//! The files go in *waves*. The first are those that there are spares for, whose frames are there
//! already (ADR 0099); the last ask for the spares of the next batch. At any moment at most one
//! create is under way, and one commit, or several of those that needed no create. Here with spares
//! for the first wave:
//!
//! ```text
//!   client   create 2, copy 1 | create 3, commit 1, copy 2 | commit 2, copy 3 | commit 3
//!   owner        create 2     |     create 3, commit 1     |     commit 2     |
//! ```
//!
//! Several, because an owner whose client was idle has cold caches: its first answer comes when the
//! next wave is copied already. One, because a file cannot be evicted for a create before its
//! commit is answered.

use std::collections::VecDeque;
use std::time::Duration;

use crate::client::batch::{encoded_bytes, nr_fitting};
use crate::client::link::{BegunCall, Link};
use crate::client::writer::{FileWriter, STREAM_BYTES, Writer};
use crate::client::{BegunCommit, Client};
use crate::error::Error;
use crate::refusal::Refusal;
use crate::wire::{CreateSpec, MAX_BATCH, Request};

/// So many waves, if the files are enough.
const NR_WAVES: usize = 4;
/// Files of a wave at the least, so that a call costs little beside what it does. In a simulation
/// batches are small, and calls cost nothing.
const MIN_WAVE: usize = if cfg!(feature = "sim") { 1 } else { 8 };
/// Most commits under way of waves that needed no create.
const MAX_COMMITTING: usize = 3;

/// Is shown each writer before it writes: for simulations, which check its frames.
pub type Seen<'s> = dyn Fn(usize, &mut FileWriter<'_>) + 's;

/// A wave that was copied, and whose commit was asked for.
struct CommittingWave<'c> {
    /// Of the files that are committed.
    places: Vec<usize>,
    writers: Vec<FileWriter<'c>>,
    call: BegunCommit<'c>,
}

impl Client {
    /// Creates, fills and publishes several files, in a few calls for all of them. Each has an
    /// answer of its own. Contents that are shorter than their spec says are followed by zeros.
    ///
    /// # Errors
    /// As [`create_batch`](Self::create_batch) and [`commit_batch`](Self::commit_batch).
    ///
    /// ```
    /// # use pgmap::{CreateSpec, FolioSize, Owner, Pool, PoolOptions};
    /// # let owner = Owner::start(Pool::create(&PoolOptions::anonymous(64 << 20))?)?;
    /// # let client = owner.client()?;
    /// let blocks = (0..1000).map(|number| {
    ///     let spec = CreateSpec::named(format!("block/{number}"), 6, FolioSize::BestFit)?;
    ///     Ok((spec, &b"tokens"[..]))
    /// });
    /// for put in client.put_batch(blocks.collect::<Result<_, pgmap::Error>>()?)? {
    ///     put?;
    /// }
    /// let names: Vec<_> = (500..1500).map(|number| format!("block/{number}")).collect();
    /// assert_eq!(client.exists_prefix(&names)?, 500);
    /// # Ok::<(), pgmap::Error>(())
    /// ```
    pub fn put_batch(
        &self,
        files: Vec<(CreateSpec, &[u8])>,
    ) -> Result<Vec<Result<(), Error>>, Error> {
        self.put_batch_seen(files, &|_, _| {})
    }

    /// As [`put_batch`](Self::put_batch), and shows each writer.
    ///
    /// # Errors
    /// The same.
    #[doc(hidden)]
    pub fn put_batch_seen(
        &self,
        mut files: Vec<(CreateSpec, &[u8])>,
        seen: &Seen<'_>,
    ) -> Result<Vec<Result<(), Error>>, Error> {
        if files.len() == 1
            && let Some((spec, contents)) = files.pop()
        {
            // Alone it may cost one call.
            let put = self.put(spec, contents);
            return match put {
                Ok(())
                | Err(
                    Error::Refused(_) | Error::OutOfRange { .. } | Error::Pin(_) | Error::Memory(_),
                ) => Ok(vec![put]),
                Err(error) => Err(error),
            };
        }
        let mut batch = PutBatch {
            client: self,
            files: &files,
            seen,
            committing: VecDeque::new(),
            answers: Vec::new(),
        };
        batch.answers.resize_with(files.len(), || None);
        let put = batch.put();
        // Those were asked for, whatever came of the others.
        let ended = batch.finish_all_but(0, put);
        let mut answers = batch.answers;
        if let Err(error) = ended {
            if answers.iter().all(Option::is_none) {
                return Err(error);
            }
            // What that call was for, and what was not asked for.
            for answer in answers.iter_mut().filter(|answer| answer.is_none()) {
                *answer = Some(Err(error.again()));
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }
}

/// A batch on its way.
struct PutBatch<'c, 'f> {
    client: &'c Client,
    files: &'f [(CreateSpec, &'f [u8])],
    seen: &'f Seen<'f>,
    /// In the order in which they were begun.
    committing: VecDeque<CommittingWave<'c>>,
    /// `None` of those that are not answered yet.
    answers: Vec<Option<Result<(), Error>>>,
}

impl<'c> PutBatch<'c, '_> {
    fn put(&mut self) -> Result<(), Error> {
        let all_bytes: u64 = self.files.iter().map(|(_, contents)| contents.len() as u64).sum();
        let is_of_many = all_bytes >= STREAM_BYTES;
        let is_remote = matches!(self.client.inner.link, Link::Remote(_));
        let most = match is_remote && (is_of_many || cfg!(feature = "sim")) {
            true => self.files.len().div_ceil(NR_WAVES).clamp(MIN_WAVE, MAX_BATCH),
            false => MAX_BATCH,
        };
        let specs = self.files.iter().map(|(spec, _)| spec);
        let mut spared = if is_remote { self.client.places_of_spares(specs)? } else { Vec::new() };
        let is_lacking = |place: &usize| spared.binary_search(place).is_err();
        let mut lacking: Vec<usize> = (0..self.files.len()).filter(is_lacking).collect();
        // In the order of `spared`. Those that are not here are pinned when they are filled.
        let mut pinned = VecDeque::new();
        if !lacking.is_empty() {
            // A create may need the room of spares that are not pinned.
            spared.retain(|&place| {
                let writer = self.pin_spare(place);
                let is_pinned = writer.is_some();
                pinned.extend(writer);
                if !is_pinned {
                    lacking.push(place);
                }
                is_pinned
            });
        }
        let mut waves = self.waves(&lacking, most);
        let mut creating = waves.first().map(|wave| self.begin_create(wave)).transpose()?;
        // Those whose spares went meanwhile.
        let mut lost = Vec::new();
        for wave in self.waves(&spared, most) {
            // All at once: one by one between the copies each would find cold caches.
            let pin = |place| (place, pinned.pop_front().or_else(|| self.pin_spare(place)));
            let (mut places, mut writers) = (Vec::new(), Vec::new());
            for (place, writer) in wave.into_iter().map(pin).collect::<Vec<_>>() {
                match writer {
                    None => lost.push(place),
                    Some(it) => self.fill(place, Ok(it), is_of_many, (&mut places, &mut writers)),
                }
            }
            self.finish_all_but(MAX_COMMITTING - 1, Ok(()))?;
            self.begin_commit(places, writers, 1)?;
        }
        self.finish_all_but(1, Ok(()))?;
        if !lost.is_empty() {
            waves = self.waves(&lost, most);
            creating = waves.first().map(|wave| self.begin_create(wave)).transpose()?;
        }
        for (nth, wave) in waves.iter().enumerate() {
            let Some((specs, call)) = creating.take() else { break };
            let created = self.client.finish_create(call, &specs, || self.client);
            let created = created.and_then(|created| {
                let next = waves.get(nth + 1).map(|wave| self.begin_create(wave));
                creating = next.transpose()?;
                Ok(created)
            });
            let (mut places, mut writers) = (Vec::new(), Vec::new());
            let copied = created.map(|created| {
                for (&place, writer) in wave.iter().zip(created) {
                    self.fill(place, writer, is_of_many, (&mut places, &mut writers));
                }
            });
            // Those were asked for, whatever came of this wave.
            self.finish_all_but(0, copied)?;
            let nr_spares = if is_remote { nr_spares_each(&waves, nth) } else { 0 };
            self.begin_commit(places, writers, nr_spares)?;
        }
        self.finish_all_but(0, Ok(()))?;
        self.put_unknown(&spared);
        Ok(())
    }

    fn pin_spare(&self, place: usize) -> Option<FileWriter<'c>> {
        self.client.pin_spare(&self.files[place].0)
    }

    /// Puts what was copied into spares of an owner that went meanwhile: its successor does not
    /// know them.
    fn put_unknown(&mut self, spared: &[usize]) {
        for &place in spared {
            if matches!(&self.answers[place], Some(Err(Error::Refused(Refusal::NoDraft { .. })))) {
                let (spec, contents) = &self.files[place];
                self.answers[place] = Some(self.client.put(spec.clone(), contents));
            }
        }
    }

    /// Which of the files `places` go together: as many as one message takes, and `most`.
    fn waves(&self, places: &[usize], most: usize) -> Vec<Vec<usize>> {
        let mut waves = Vec::new();
        let mut rest = places;
        while !rest.is_empty() {
            let lens_bytes = rest.iter().map(|&place| encoded_bytes(&self.files[place].0));
            let (wave, others) = rest.split_at(nr_fitting(lens_bytes).min(most));
            waves.push(wave.to_vec());
            rest = others;
        }
        waves
    }

    fn begin_create(&self, wave: &[usize]) -> Result<(Vec<CreateSpec>, BegunCall<'c>), Error> {
        let specs = self.specs(wave);
        let call = self.client.begin(Request::Create(specs.clone()))?;
        Ok((specs, call))
    }

    fn specs(&self, places: &[usize]) -> Vec<CreateSpec> {
        places.iter().map(|&place| self.files[place].0.clone()).collect()
    }

    /// Copies a file into its frames, and adds it to what is to be committed.
    fn fill(
        &mut self,
        place: usize,
        writer: Result<FileWriter<'c>, Error>,
        is_of_many: bool,
        (places, writers): (&mut Vec<usize>, &mut Vec<FileWriter<'c>>),
    ) {
        let filled = writer.and_then(|mut writer| {
            writer.set_of_many(is_of_many);
            (self.seen)(place, &mut writer);
            writer.write_all_at(0, self.files[place].1)?;
            Ok(writer)
        });
        match filled {
            Err(error) => self.answers[place] = Some(Err(error)),
            Ok(writer) => {
                places.push(place);
                writers.push(writer);
            }
        }
    }

    /// Begins to commit what was copied, named only now if it lies in spares or each is to bring
    /// `nr_spares`.
    fn begin_commit(
        &mut self,
        places: Vec<usize>,
        mut writers: Vec<FileWriter<'c>>,
        nr_spares: u8,
    ) -> Result<(), Error> {
        if writers.is_empty() {
            return Ok(());
        }
        let commits = Writer::complete_all(self.client, &mut writers)?;
        let coming = self.committing.iter().map(|wave| &wave.call.asked);
        let call = match nr_spares {
            0 => self.client.begin_commit(commits)?,
            most => self.client.begin_puts(commits, self.specs(&places), most, coming)?,
        };
        self.committing.push_back(CommittingWave { places, writers, call });
        Ok(())
    }

    /// Waits for the answers of all but the last few commits that were begun, whatever became of
    /// what was before; but not once more for an owner that did not answer in time. Returns the
    /// first error.
    fn finish_all_but(&mut self, nr: usize, mut ended: Result<(), Error>) -> Result<(), Error> {
        let mut is_late = matches!(ended, Err(Error::TimedOut { .. }));
        while self.committing.len() > nr
            && let Some(CommittingWave { places, mut writers, call }) = self.committing.pop_front()
        {
            let limit = if is_late { Duration::ZERO } else { self.client.deadline() };
            match self.client.finish_commit(call, limit) {
                Err(error) => {
                    is_late |= matches!(error, Error::TimedOut { .. });
                    ended = ended.and(Err(error));
                }
                Ok(committed) => {
                    let answers = Writer::finish_all(&mut writers, committed);
                    for (place, answer) in places.into_iter().zip(answers) {
                        self.answers[place] = Some(answer);
                    }
                }
            }
        }
        ended
    }
}

/// How many spares each file of a wave is to bring: with those of the last one there are as many as
/// were created. Before it creates need the room.
fn nr_spares_each(waves: &[Vec<usize>], nth: usize) -> u8 {
    if nth + 1 < waves.len() {
        return 0;
    }
    let nr_created: usize = waves.iter().map(Vec::len).sum();
    nr_created.div_ceil(waves[nth].len()).min(u8::MAX.into()) as u8
}
