//! Many names in one call: any number of them.

use std::borrow::Cow;

use pgmap::{Error, FileName, OwnedPin, Refusal};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;

use crate::errors::{self, OrRaise};
use crate::memory::{Source, Target};
use crate::names;
use crate::pin::Pin;
use crate::pool::{Pool, Wanted};

/// Up to so many names are looked up without giving the interpreter's lock up.
const AT_ONCE: usize = 64;

type Names<'a> = Vec<Cow<'a, [u8]>>;

fn all<'a>(names: &'a [Bound<'_, PyAny>]) -> PyResult<Names<'a>> {
    names.iter().map(names::bytes).collect()
}

/// As many objects as names.
fn check_as_many(names: usize, others: usize, what: &str) -> PyResult<()> {
    if names == others {
        return Ok(());
    }
    Err(PyValueError::new_err(format!("{names} names and {others} {what}")))
}

fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::Refused(Refusal::NotFound { .. }))
}

/// What each item of a batch raised, or None.
fn raised(py: Python<'_>, answers: Vec<Result<(), Error>>) -> PyResult<Vec<Option<Py<PyAny>>>> {
    let exception = |answer: Result<(), Error>| match answer {
        Ok(()) => Ok(None),
        Err(error) => errors::exception(py, &error).map(|exception| Some(exception.unbind())),
    };
    answers.into_iter().map(exception).collect()
}

#[pymethods]
impl Pool {
    /// Pins several files, without a call to the owner: a list of pins, None for each name that no
    /// file has.
    fn get_many(
        &self,
        py: Python<'_>,
        names: Vec<Bound<'_, PyAny>>,
    ) -> PyResult<Vec<Option<Py<Pin>>>> {
        let client = self.client()?;
        // Each becomes an object at once: a pin is larger than a reference to one.
        let object = |pin: OwnedPin| Py::new(py, Pin::new(pin)).map(Some);
        let get = |name: &Bound<'_, PyAny>| {
            let name = names::bytes(name)?;
            match client.try_get_owned(&*name) {
                Ok(Some(pin)) => object(pin),
                Err(error) if is_not_found(&error) => Ok(None),
                Ok(None) => match py.detach(|| client.get_owned(&*name)) {
                    Err(error) if is_not_found(&error) => Ok(None),
                    got => object(got.or_raise(py)?),
                },
                Err(error) => Err(errors::raised(py, &error)),
            }
        };
        names.iter().map(get).collect()
    }

    /// Whether files have these names, without a call to the owner.
    fn exists_many(&self, py: Python<'_>, names: Vec<Bound<'_, PyAny>>) -> PyResult<Vec<bool>> {
        let (client, names) = (self.client()?, all(&names)?);
        let look = || names.iter().map(|name| client.exists(name)).collect::<Result<_, _>>();
        if names.len() <= AT_ONCE { look() } else { py.detach(look) }.or_raise(py)
    }

    /// How many of these names have a file, up to the first that has none; without a call to the
    /// owner.
    fn exists_prefix(&self, py: Python<'_>, names: Vec<Bound<'_, PyAny>>) -> PyResult<usize> {
        let (client, names) = (self.client()?, all(&names)?);
        let look = || client.exists_prefix(&names);
        if names.len() <= AT_ONCE { look() } else { py.detach(look) }.or_raise(py)
    }

    /// Stores several files, each from an object with a buffer or (address, nbytes), in two calls
    /// to the owner for every 256 of them. Returns what each raised, or None. `metadatas` has the
    /// metadata of each; the rest is as in `put`.
    #[pyo3(signature = (names, datas, *, replace = false, metadatas = None, checksum = false,
                        evictable = 0))]
    #[expect(clippy::too_many_arguments, reason = "they are Python's keywords")]
    fn put_many(
        &self,
        py: Python<'_>,
        names: Vec<Bound<'_, PyAny>>,
        datas: Vec<Bound<'_, PyAny>>,
        replace: bool,
        metadatas: Option<Vec<PyBackedBytes>>,
        checksum: bool,
        evictable: u8,
    ) -> PyResult<Vec<Option<Py<PyAny>>>> {
        check_as_many(names.len(), datas.len(), "datas")?;
        if let Some(metadatas) = &metadatas {
            check_as_many(names.len(), metadatas.len(), "metadatas")?;
        }
        let metadata = |nth: usize| metadatas.as_ref().map_or(&[][..], |all| &*all[nth]);
        let client = self.client()?;
        // Loops with room ahead: what is collected of results grows as it comes.
        let mut sources = Vec::with_capacity(datas.len());
        for data in &datas {
            sources.push(Source::of(data)?);
        }
        let mut files = Vec::with_capacity(names.len());
        for (nth, (name, source)) in names.iter().zip(&sources).enumerate() {
            let bytes = source.bytes();
            let wanted = Wanted { replace, metadata: metadata(nth), checksum, evictable };
            files.push((wanted.spec(py, &names::bytes(name)?, bytes.len() as u64)?, bytes));
        }
        raised(py, py.detach(|| client.put_batch(files)).or_raise(py)?)
    }

    /// Copies several files into objects with writable buffers, or to (address, nbytes): of each as
    /// much as there is room for. Returns how long each file is, None for each name that no file
    /// has.
    fn read_many(
        &self,
        py: Python<'_>,
        names: Vec<Bound<'_, PyAny>>,
        targets: Vec<Bound<'_, PyAny>>,
    ) -> PyResult<Vec<Option<u64>>> {
        check_as_many(names.len(), targets.len(), "targets")?;
        let (client, names) = (self.client()?, all(&names)?);
        let mut targets = targets.iter().map(Target::of).collect::<PyResult<Vec<_>>>()?;
        let files = names.iter().zip(targets.iter_mut().map(Target::bytes));
        let mut files: Vec<(&Cow<'_, [u8]>, &mut [u8])> = files.collect();
        let lengths = py.detach(|| client.read_batch(&mut files));
        let length = |length: Result<u64, Error>| match length {
            Err(error) if is_not_found(&error) => Ok(None),
            length => length.map(Some).or_raise(py),
        };
        lengths.into_iter().map(length).collect()
    }

    /// Takes several names away, in one call to the owner for every 256 of them. Returns for each
    /// whether there was a file.
    fn unlink_many(&self, py: Python<'_>, names: Vec<Bound<'_, PyAny>>) -> PyResult<Vec<bool>> {
        let client = self.client()?;
        let checked = |name: &Cow<'_, [u8]>| FileName::new(name).map_err(Error::from).or_raise(py);
        let names = all(&names)?.iter().map(checked).collect::<PyResult<Vec<_>>>()?;
        let answers = py.detach(|| client.unlink_batch(&names)).or_raise(py)?;
        let answer = |answer: Result<(), Error>| match answer {
            Err(error) if is_not_found(&error) => Ok(false),
            answer => answer.map(|()| true).or_raise(py),
        };
        answers.into_iter().map(answer).collect()
    }
}
