//! Several files at once: any number of them, in as few calls as messages allow.

use std::borrow::Borrow;

use pgmap_mm::index::Lookup;
use pgmap_mm::pin::ClientSide;

use crate::client::file::File;
use crate::client::link::BegunCall;
use crate::client::pinned::FilePin;
use crate::client::writer::{FileWriter, Writer};
use crate::client::{Client, unexpected};
use crate::error::Error;
use crate::name::FileName;
use crate::refusal::Refusal;
use crate::wire::{self, CreateSpec, MAX_BATCH, MAX_MESSAGE_BYTES, Reply, Request};

/// What a message says besides its items, and an item besides what is counted of it, at most.
const FRAME_BYTES: usize = 1024;
const ITEM_BYTES: usize = 32;

impl Client {
    /// Reserves frames for several files, in one call for every 256 of them. Each has an answer of
    /// its own.
    ///
    /// # Errors
    /// As [`create`](Self::create), where the first call fails. A call that fails after another
    /// succeeded is the answer of each file that it was for, and of those that follow, and so it is
    /// with all batches.
    pub fn create_batch(
        &self,
        specs: Vec<CreateSpec>,
    ) -> Result<Vec<Result<FileWriter<'_>, Error>>, Error> {
        self.create_all(specs, || self)
    }

    /// Creates files whose writers get a client from `client`.
    pub(super) fn create_all<C: Borrow<Client>>(
        &self,
        mut specs: Vec<CreateSpec>,
        client: impl Fn() -> C,
    ) -> Result<Vec<Result<Writer<C>, Error>>, Error> {
        in_pieces(&mut specs, encoded_bytes, |piece| self.create_piece(piece, &client))
    }

    /// Creates files that one message has room for.
    fn create_piece<C: Borrow<Client>>(
        &self,
        specs: &[CreateSpec],
        client: impl Fn() -> C,
    ) -> Result<Vec<Result<Writer<C>, Error>>, Error> {
        self.finish_create(self.begin(Request::Create(specs.to_vec()))?, specs, client)
    }

    /// Waits for the answer to a create of `specs`.
    pub(super) fn finish_create<C: Borrow<Client>>(
        &self,
        call: BegunCall<'_>,
        specs: &[CreateSpec],
        client: impl Fn() -> C,
    ) -> Result<Vec<Result<Writer<C>, Error>>, Error> {
        let mut answers = self.ask_drafts(call, specs, &client)?;
        let mut nr_refused = specs.len();
        // One answer has room for so many extents. A file that was refused because others had taken
        // the room is asked for again, as long as that gets anywhere.
        loop {
            let again: Vec<usize> = (0..answers.len())
                .filter(|&at| {
                    let error = answers[at].as_ref().err();
                    matches!(error.and_then(Error::refusal), Some(Refusal::TooMuch { .. }))
                })
                .collect();
            if again.is_empty() || again.len() >= nr_refused {
                return Ok(answers);
            }
            nr_refused = again.len();
            let specs: Vec<_> = again.iter().map(|&at| specs[at].clone()).collect();
            let call = self.begin(Request::Create(specs.clone()))?;
            for (at, answer) in again.into_iter().zip(self.ask_drafts(call, &specs, &client)?) {
                answers[at] = answer;
            }
        }
    }

    fn ask_drafts<C: Borrow<Client>>(
        &self,
        call: BegunCall<'_>,
        specs: &[CreateSpec],
        client: impl Fn() -> C,
    ) -> Result<Vec<Result<Writer<C>, Error>>, Error> {
        match self.finish(call, self.deadline()).map_err(|failed| failed.error)? {
            Reply::Created(drafts) if drafts.len() == specs.len() => Ok(drafts
                .into_iter()
                .zip(specs)
                .map(|(draft, spec)| {
                    Writer::new(client(), draft?, (spec.len_bytes, spec.is_checksummed))
                })
                .collect()),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Publishes several files, in one call for every 256 of them. Each has an answer of its own; a
    /// writer whose commit was refused is given up.
    ///
    /// # Errors
    /// [`Error::OwnerGone`] and those of writing.
    pub fn commit_batch(
        &self,
        writers: Vec<FileWriter<'_>>,
    ) -> Result<Vec<Result<(), Error>>, Error> {
        Writer::commit_all(self, writers)
    }

    /// Finds several files by name, without a call. Each has an answer of its own.
    pub fn open_batch<N: AsRef<[u8]>>(&self, names: &[N]) -> Vec<Result<File<'_>, Error>> {
        names.iter().map(|name| self.open(name)).collect()
    }

    /// Finds several files by name and pins each, without a call. Each has an answer of its own.
    pub fn get_batch<N: AsRef<[u8]>>(&self, names: &[N]) -> Vec<Result<FilePin<'_>, Error>> {
        names.iter().map(|name| self.get(name)).collect()
    }

    /// Copies several files into buffers, without a call: of each file as much as its buffer takes.
    /// Returns how long each file is.
    pub fn read_batch<N: AsRef<[u8]>>(
        &self,
        files: &mut [(N, &mut [u8])],
    ) -> Vec<Result<u64, Error>> {
        let read = |(name, buffer): &mut (N, &mut [u8])| {
            let pinned = self.get(name.as_ref())?;
            let len_bytes = pinned.len_bytes();
            let nr_copied = buffer.len().min(usize::try_from(len_bytes).unwrap_or(usize::MAX));
            pinned.read_at(0, &mut buffer[..nr_copied])?;
            Ok(len_bytes)
        };
        files.iter_mut().map(read).collect()
    }

    /// Whether a file has this name, without a call unless the owner keeps changing the index.
    ///
    /// # Errors
    /// [`Error::Forked`] in a forked child; those of a call.
    pub fn exists(&self, name: impl AsRef<[u8]>) -> Result<bool, Error> {
        let inner = &self.inner;
        if inner.pinner.side().is_forked() {
            return Err(Error::Forked);
        }
        match inner.index.id_of(name.as_ref()) {
            Lookup::Found(_) => Ok(true),
            Lookup::Absent => Ok(false),
            Lookup::Busy => match self.look_up_slowly(name.as_ref()) {
                Err(Error::Refused(Refusal::NotFound { .. })) => Ok(false),
                found => found.map(|_| true),
            },
        }
    }

    /// How many of these names have a file, up to the first that has none.
    ///
    /// # Errors
    /// As [`exists`](Self::exists).
    pub fn exists_prefix<N: AsRef<[u8]>>(&self, names: &[N]) -> Result<usize, Error> {
        for (nr_found, name) in names.iter().enumerate() {
            if !self.exists(name)? {
                return Ok(nr_found);
            }
        }
        Ok(names.len())
    }

    /// Takes several names away, in one call for every 256 of them. Each has an answer of its own.
    ///
    /// # Errors
    /// [`Refusal::BadName`] if one cannot be a name, and then none is taken away;
    /// [`Error::OwnerGone`] and the like, where the first call fails.
    pub fn unlink_batch<N: AsRef<[u8]>>(
        &self,
        names: &[N],
    ) -> Result<Vec<Result<(), Error>>, Error> {
        self.unlink_all(names, Request::Unlink)
    }

    /// Takes several names away, of files that nobody holds, in one call for every 256 of them.
    /// Each has an answer of its own, [`Refusal::Held`] for one that somebody holds.
    ///
    /// # Errors
    /// As [`unlink_batch`](Self::unlink_batch).
    pub fn unlink_unless_held_batch<N: AsRef<[u8]>>(
        &self,
        names: &[N],
    ) -> Result<Vec<Result<(), Error>>, Error> {
        self.unlink_all(names, Request::UnlinkUnlessHeld)
    }

    fn unlink_all<N: AsRef<[u8]>>(
        &self,
        names: &[N],
        request: fn(Vec<FileName>) -> Request,
    ) -> Result<Vec<Result<(), Error>>, Error> {
        let mut names: Vec<FileName> = names.iter().map(FileName::new).collect::<Result<_, _>>()?;
        in_pieces(
            &mut names,
            |name| name.as_bytes().len(),
            |piece| match self.call(request(piece.to_vec()))? {
                Reply::Unlinked(results) if results.len() == piece.len() => {
                    Ok(results.into_iter().map(|result| result.map_err(Error::from)).collect())
                }
                reply => Err(unexpected(&reply)),
            },
        )
    }
}

pub(super) fn encoded_bytes(spec: &CreateSpec) -> usize {
    // What cannot be encoded at all fails where it is sent.
    wire::encode(spec).map_or(0, |bytes| bytes.len())
}

/// Calls for the items of a batch, in pieces that are as large as a message takes. Where the first
/// call fails nothing was done, and that is the answer; one that fails later answers for its own
/// items and for all that follow, which are not asked for.
pub(super) fn in_pieces<I, T>(
    items: &mut [I],
    len_bytes: impl Fn(&I) -> usize,
    mut call: impl FnMut(&mut [I]) -> Result<Vec<Result<T, Error>>, Error>,
) -> Result<Vec<Result<T, Error>>, Error> {
    let nr_items = items.len();
    let mut answers = Vec::with_capacity(nr_items);
    let mut rest = items;
    loop {
        let (piece, others) = rest.split_at_mut(nr_fitting(rest.iter().map(&len_bytes)));
        match call(piece) {
            Ok(some) => answers.extend(some),
            Err(error) if answers.is_empty() => return Err(error),
            Err(error) => {
                answers.extend((answers.len()..nr_items).map(|_| Err(error.again())));
                return Ok(answers);
            }
        }
        if others.is_empty() {
            return Ok(answers);
        }
        rest = others;
    }
}

/// How many items, of so many encoded bytes each, one message takes: one at least, for one that is
/// too long is asked for by itself, and refused.
pub(super) fn nr_fitting(lens_bytes: impl ExactSizeIterator<Item = usize>) -> usize {
    let nr_items = lens_bytes.len();
    let mut left = MAX_MESSAGE_BYTES - FRAME_BYTES;
    let fits = |len_bytes: usize| {
        let after = left.checked_sub(len_bytes + ITEM_BYTES);
        left = after.unwrap_or(0);
        after.is_some()
    };
    let nr_fitting = lens_bytes.take(MAX_BATCH).map(fits).take_while(|&fits| fits).count();
    nr_fitting.max(1).min(nr_items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone() -> Error {
        Error::OwnerGone { why: "it was killed".into() }
    }

    #[test]
    fn pieces_are_as_large_as_messages_take() {
        let mut items: Vec<usize> = [vec![10; 600], vec![60_000; 3], vec![100_000, 5]].concat();
        let mut pieces = Vec::new();
        let answers = in_pieces(
            &mut items,
            |&len| len,
            |piece| {
                pieces.push(piece.len());
                Ok(piece.iter().map(|&len| Ok(len)).collect())
            },
        );
        let answers: Vec<_> = answers.unwrap().into_iter().map(Result::unwrap).collect();
        assert_eq!(answers, items, "each has its answer, in order");
        assert_eq!(pieces, [256, 256, 89, 1, 1, 1, 1]);
    }

    #[test]
    fn a_call_that_fails_answers_for_what_was_not_asked() {
        let mut items = [(); 600];
        let mut nr_calls = 0;
        let answers = in_pieces(
            &mut items,
            |()| 1,
            |piece| {
                nr_calls += 1;
                if nr_calls == 2 {
                    Err(gone())
                } else {
                    Ok(piece.iter().map(|()| Ok(())).collect())
                }
            },
        );
        let answers = answers.unwrap();
        assert_eq!((answers.len(), nr_calls), (600, 2));
        assert!(answers[..256].iter().all(Result::is_ok));
        let is_gone = |answer: &Result<(), Error>| matches!(answer, Err(Error::OwnerGone { .. }));
        assert!(answers[256..].iter().all(is_gone));
        let first = in_pieces(&mut items, |()| 1, |_| Err::<Vec<Result<(), _>>, _>(gone()));
        assert!(matches!(first, Err(Error::OwnerGone { .. })), "nothing was done");
        let none = in_pieces(&mut [(); 0], |()| 1, |_| Ok(Vec::<Result<(), _>>::new()));
        assert!(none.unwrap().is_empty());
    }
}
