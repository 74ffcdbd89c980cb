//! What becomes of files, as it happens.

use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use pgmap::{FileChange, Notice, SubscribeOptions};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::errors::{OrRaise, closed};
use crate::names;
use crate::pool::{Pool, seconds};

/// How long a wait goes on before it looks whether Ctrl-C was pressed.
const WAIT: Duration = Duration::from_millis(200);

/// What became of a file.
#[pyclass(frozen, get_all, module = "pgmap")]
pub struct FileEvent {
    /// "created", "removed", "evicted" or "drained".
    change: &'static str,
    /// The file's name; bytes that are not UTF-8 are surrogates.
    name: Py<PyAny>,
    /// The file's number.
    id: u64,
    /// Its length in bytes.
    nbytes: u64,
    /// The number of the event, counted from 1 in each subscription.
    sequence: u64,
    /// How many events just before it were lost, because nobody read them.
    missed: u64,
}

impl FileEvent {
    fn new(py: Python<'_>, notice: &Notice) -> PyResult<Self> {
        let event = &notice.event;
        Ok(Self {
            change: event.change.name(),
            name: names::shown(py, event.name.as_bytes())?.into_any().unbind(),
            id: event.id,
            nbytes: event.len_bytes,
            sequence: event.sequence,
            missed: notice.nr_missed,
        })
    }
}

#[pymethods]
impl FileEvent {
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let name = self.name.bind(py).repr()?;
        Ok(format!("FileEvent({}, {name}, nbytes={})", self.change, self.nbytes))
    }
}

/// What becomes of files from now on, in order.
///
/// `for event in subscription` waits for each; `async for` does the same in asyncio. The owner does
/// not wait for readers: one that is slow loses the oldest events, and `event.missed` says how
/// many. Raises OwnerGone when the owner ends.
#[pyclass(module = "pgmap", weakref)]
pub struct Subscription {
    subscription: Option<pgmap::Subscription>,
}

impl Subscription {
    fn open(&mut self) -> PyResult<&mut pgmap::Subscription> {
        self.subscription.as_mut().ok_or_else(|| closed("subscription"))
    }
}

#[pymethods]
impl Subscription {
    /// The next event, or None after `timeout` seconds; without one it waits as long as it takes.
    #[pyo3(signature = (timeout = None))]
    fn next(&mut self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<FileEvent>> {
        let limit = timeout.map(seconds).transpose()?;
        let start = Instant::now();
        let subscription = self.open()?;
        loop {
            let left = limit.map_or(WAIT, |limit| limit.saturating_sub(start.elapsed()).min(WAIT));
            if let Some(notice) = py.detach(|| subscription.next(left)).or_raise(py)? {
                return FileEvent::new(py, &notice).map(Some);
            }
            if limit.is_some_and(|limit| start.elapsed() >= limit) {
                return Ok(None);
            }
            py.check_signals()?;
        }
    }

    /// The next event that is there, or None; it does not wait.
    fn try_next(&mut self, py: Python<'_>) -> PyResult<Option<FileEvent>> {
        let notice = self.open()?.try_next().or_raise(py)?;
        notice.map(|notice| FileEvent::new(py, &notice)).transpose()
    }

    /// A descriptor that is readable when there may be an event: for select and asyncio, never to
    /// be read from. Take events until there are no more: one message may bring several.
    fn fileno(&mut self) -> PyResult<i32> {
        Ok(self.open()?.as_fd().as_raw_fd())
    }

    /// Ends it.
    fn close(&mut self) {
        self.subscription = None;
    }

    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&mut self, py: Python<'_>) -> PyResult<Option<FileEvent>> {
        self.next(py, None)
    }

    fn __aiter__<'py>(slf: Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("pgmap.aio")?.getattr("events")?.call1((slf,))
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __exit__(
        &mut self,
        _kind: &Bound<'_, PyAny>,
        _error: &Bound<'_, PyAny>,
        _trace: &Bound<'_, PyAny>,
    ) {
        self.close();
    }
}

fn change(name: &str) -> PyResult<FileChange> {
    let found = FileChange::ALL.into_iter().find(|change| change.name() == name);
    found.ok_or_else(|| {
        let known = FileChange::ALL.map(FileChange::name).join(", ");
        PyValueError::new_err(format!("'{name}' is not one of {known}"))
    })
}

#[pymethods]
impl Pool {
    /// Follows what becomes of the files whose names begin with `prefix`: all changes, or those
    /// that `only` names ("created", "removed", "evicted", "drained").
    #[pyo3(signature = (prefix = None, *, only = None))]
    fn subscribe(
        &self,
        py: Python<'_>,
        prefix: Option<&Bound<'_, PyAny>>,
        only: Option<Vec<String>>,
    ) -> PyResult<Subscription> {
        let client = self.client()?;
        let mut options = SubscribeOptions::new();
        if let Some(prefix) = prefix {
            options = options.prefix(names::bytes(prefix)?);
        }
        if let Some(only) = only {
            let only = only.iter().map(|name| change(name)).collect::<PyResult<Vec<_>>>()?;
            options = options.only(&only);
        }
        let subscription = py.detach(|| client.subscribe(&options)).or_raise(py)?;
        Ok(Subscription { subscription: Some(subscription) })
    }

    /// Waits up to `timeout` seconds until a file has this name. Returns whether one has.
    fn wait_for(&self, py: Python<'_>, name: &Bound<'_, PyAny>, timeout: f64) -> PyResult<bool> {
        let (client, name) = (self.client()?, names::bytes(name)?);
        let (limit, start) = (seconds(timeout)?, Instant::now());
        loop {
            let left = limit.saturating_sub(start.elapsed());
            let look = || client.wait_for(&name, left.min(WAIT)).map(|found| found.is_some());
            if py.detach(look).or_raise(py)? {
                return Ok(true);
            }
            if start.elapsed() >= limit {
                return Ok(false);
            }
            py.check_signals()?;
        }
    }
}
