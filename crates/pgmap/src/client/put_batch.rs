//! Puts of many files: while the client copies some, an owner in another process makes room for the
//! next and commits those before.
//!
//! The files go in *waves*. At any moment at most one create and one commit are under way:
//!
//! ```text
//!   client   create 1 | create 2, copy 1 | create 3, commit 1, copy 2 | commit 2, copy 3 | commit 3
//!   owner             |     create 2     |     create 3, commit 1     |     commit 2     |
//! ```

use std::ops::Range;

use crate::client::batch::{encoded_bytes, nr_fitting};
use crate::client::link::{BegunCall, Link};
use crate::client::writer::{FileWriter, STREAM_BYTES, Writer};
use crate::client::{BegunCommit, Client};
use crate::error::Error;
use crate::wire::{CreateSpec, MAX_BATCH, Request};

/// So many waves, if the files are enough.
const NR_WAVES: usize = 4;
/// Files of a wave at the least, so that a call costs little beside what it does.
const MIN_WAVE: usize = 8;

/// A wave that was copied, and whose commit was asked for.
struct CommittingWave<'c> {
    /// Which files of the batch they are.
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
        mut files: Vec<(CreateSpec, &[u8])>,
    ) -> Result<Vec<Result<(), Error>>, Error> {
        if files.len() == 1
            && let Some((spec, contents)) = files.pop()
        {
            // Alone it may cost one call.
            let put = self.put(spec, contents);
            let is_answered =
                matches!(put, Ok(()) | Err(Error::Refused(_) | Error::OutOfRange { .. }));
            return if is_answered { Ok(vec![put]) } else { put.map(|()| Vec::new()) };
        }
        let mut answers = Vec::with_capacity(files.len());
        if let Err(error) = self.put_waves(&files, &mut answers) {
            if answers.iter().all(Option::is_none) {
                return Err(error);
            }
            // What that call was for, and what was not asked for.
            answers.resize_with(files.len(), || None);
            for answer in answers.iter_mut().filter(|answer| answer.is_none()) {
                *answer = Some(Err(error.again()));
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// Adds the answers; of a file that was asked for and not answered, `None`.
    fn put_waves(
        &self,
        files: &[(CreateSpec, &[u8])],
        answers: &mut Vec<Option<Result<(), Error>>>,
    ) -> Result<(), Error> {
        let all_bytes: u64 = files.iter().map(|(_, contents)| contents.len() as u64).sum();
        let is_of_many = all_bytes >= STREAM_BYTES;
        let waves = self.waves(files, is_of_many);
        let mut creating = waves.first().map(|wave| self.begin_wave(files, wave)).transpose()?;
        let mut committing = None;
        for (nth, wave) in waves.iter().enumerate() {
            let Some((specs, call)) = creating.take() else { break };
            let created = self.finish_create(call, &specs, || self).and_then(|created| {
                let next = waves.get(nth + 1).map(|wave| self.begin_wave(files, wave));
                creating = next.transpose()?;
                Ok(created)
            });
            let copied = created.and_then(|created| {
                let mut copied = (Vec::new(), Vec::new());
                for (place, writer) in wave.clone().zip(created) {
                    let filled = writer.and_then(|mut writer: FileWriter<'_>| {
                        writer.set_of_many(is_of_many);
                        writer.write_all_at(0, files[place].1)?;
                        Ok(writer)
                    });
                    answers.push(filled.map_or_else(
                        |error| Some(Err(error)),
                        |writer| {
                            copied.0.push(place);
                            copied.1.push(writer);
                            None
                        },
                    ));
                }
                Ok(copied)
            });
            // That one was asked for, whatever came of this one.
            let before = committing.take().map_or(Ok(()), |wave| self.finish_wave(wave, answers));
            let (places, mut writers) = copied?;
            before?;
            if !writers.is_empty() {
                let call = Writer::begin_commit_all(self, &mut writers)?;
                committing = Some(CommittingWave { places, writers, call });
            }
        }
        committing.map_or(Ok(()), |last| self.finish_wave(last, answers))
    }

    fn begin_wave(
        &self,
        files: &[(CreateSpec, &[u8])],
        wave: &Range<usize>,
    ) -> Result<(Vec<CreateSpec>, BegunCall<'_>), Error> {
        let specs: Vec<_> = files[wave.clone()].iter().map(|(spec, _)| spec.clone()).collect();
        let call = self.begin(Request::Create(specs.clone()))?;
        Ok((specs, call))
    }

    fn finish_wave(
        &self,
        wave: CommittingWave<'_>,
        answers: &mut [Option<Result<(), Error>>],
    ) -> Result<(), Error> {
        let CommittingWave { places, mut writers, call } = wave;
        let committed = self.finish_commit(call)?;
        for (place, answer) in places.into_iter().zip(Writer::finish_all(&mut writers, committed)) {
            answers[place] = Some(answer);
        }
        Ok(())
    }

    /// Which files go together: as many as one message takes, and fewer where the owner can be at
    /// work meanwhile.
    fn waves(&self, files: &[(CreateSpec, &[u8])], is_of_many: bool) -> Vec<Range<usize>> {
        let is_remote = matches!(self.inner.link, Link::Remote(_));
        let most = match is_of_many && is_remote {
            true => files.len().div_ceil(NR_WAVES).clamp(MIN_WAVE, MAX_BATCH),
            false => MAX_BATCH,
        };
        let mut waves = Vec::new();
        let mut start = 0;
        while start < files.len() {
            let lens_bytes = files[start..].iter().map(|(spec, _)| encoded_bytes(spec));
            let end = start + nr_fitting(lens_bytes).min(most);
            waves.push(start..end);
            start = end;
        }
        waves
    }
}
