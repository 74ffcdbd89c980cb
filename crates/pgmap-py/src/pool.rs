//! A pool, and what is done with one name.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use pgmap::{
    Client, ConnectOptions, CreateSpec, Error, FileName, FolioSize, Owner, PoolOptions, Populate,
    Prefault, Replace, UserMetadata,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes};

use crate::errors::{OrRaise, closed};
use crate::infos::{FileInfo, PoolInfo};
use crate::memory::Source;
use crate::names;
use crate::pin::Pin;
use crate::sizes;
use crate::writer::Writer;

/// A pool of memory, attached to this process.
///
/// `Pool.create` makes one whose owner lives in this process; `Pool.connect` attaches to one of
/// another process. Safe to use from any thread. After a fork the child has to connect itself.
#[pyclass(frozen, module = "pgmap", weakref)]
pub struct Pool {
    client: RwLock<Option<Client>>,
    owner: Mutex<Option<Owner>>,
}

impl Pool {
    /// The client, unless the pool was closed.
    pub fn client(&self) -> PyResult<Client> {
        let client = self.client.read().unwrap_or_else(PoisonError::into_inner);
        client.clone().ok_or_else(|| closed("pool"))
    }
}

/// Where none is given.
const NO_METADATA: &[u8] = &[];

/// What is wanted of a new file beside its name and length.
#[derive(Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// It takes the place of a file of that name.
    pub replace: bool,
    /// What its users want to know of it.
    pub metadata: &'a [u8],
    /// It gets a checksum of its contents.
    pub checksum: bool,
    /// Its priority among those that the owner may evict; 0 if it may not.
    pub evictable: u8,
}

impl Wanted<'_> {
    /// What is to be created.
    pub fn spec(self, py: Python<'_>, name: &[u8], len_bytes: u64) -> PyResult<CreateSpec> {
        let name = FileName::new(name).map_err(Error::from).or_raise(py)?;
        let metadata = UserMetadata::new(self.metadata).map_err(Error::from).or_raise(py)?;
        Ok(CreateSpec {
            replace: self.replace,
            metadata,
            is_checksummed: self.checksum,
            ..CreateSpec::new(name, len_bytes, FolioSize::BestFit).evictable(self.evictable)
        })
    }
}

/// A time in seconds, as Python gives it.
pub fn seconds(seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| PyValueError::new_err(format!("{seconds} is not a time in seconds")))
}

#[pymethods]
impl Pool {
    /// Makes a pool of `size` bytes, or text like "64MiB", owned by this process.
    ///
    /// Without `directory` it ends with its last user. With one its files outlive this process, and
    /// a pool that is there is opened again. `populate` takes the memory at once.
    #[staticmethod]
    #[pyo3(signature = (size, *, directory = None, populate = false, max_files = None))]
    fn create(
        py: Python<'_>,
        size: &Bound<'_, PyAny>,
        directory: Option<PathBuf>,
        populate: bool,
        max_files: Option<u64>,
    ) -> PyResult<Self> {
        let size_bytes = sizes::bytes(size)?;
        let options = match &directory {
            None => PoolOptions::anonymous(size_bytes),
            Some(directory) => PoolOptions::in_directory(directory, size_bytes),
        };
        let options =
            options.populate(if populate { Populate::Upfront } else { Populate::OnDemand });
        let options = max_files.map_or(options.clone(), |max_files| options.max_files(max_files));
        let (owner, client) = py
            .detach(|| {
                let pool = match &directory {
                    Some(directory) if pgmap::Pool::is_in(directory)? => {
                        pgmap::Pool::open(directory)?
                    }
                    _ => pgmap::Pool::create(&options)?,
                };
                let owner = Owner::start(pool)?;
                let client = owner.client()?;
                Ok::<_, Error>((owner, client))
            })
            .or_raise(py)?;
        Ok(Self { client: RwLock::new(Some(client)), owner: Mutex::new(Some(owner)) })
    }

    /// Attaches to the pool whose owner listens at `path`: another process's `Pool.serve`, or
    /// `pgmap serve`.
    ///
    /// `label` is what the process is called where people ask who holds what. `deadline` says how
    /// many seconds a call waits for the owner. With `read_only` nothing of the pool can be
    /// written: its memory is mapped for reading, and every change raises ReadOnly.
    #[staticmethod]
    #[pyo3(signature = (path, *, label = None, deadline = 10.0, read_only = false))]
    fn connect(
        py: Python<'_>,
        path: PathBuf,
        label: Option<String>,
        deadline: f64,
        read_only: bool,
    ) -> PyResult<Self> {
        let mut options = ConnectOptions::new().deadline(seconds(deadline)?);
        if let Some(label) = label {
            options = options.label(label);
        }
        if read_only {
            options = options.read_only();
        }
        let client = py.detach(|| Client::connect_with(&path, &options)).or_raise(py)?;
        Ok(Self { client: RwLock::new(Some(client)), owner: Mutex::new(None) })
    }

    /// Lets other processes connect at the socket `path`, until the pool is closed.
    ///
    /// After two requests that came within `busy_poll` seconds of each other, the owner's thread
    /// polls for the next one for that long before it sleeps: 0.00025 unless said.
    #[pyo3(signature = (path, *, busy_poll = None))]
    fn serve(&self, py: Python<'_>, path: PathBuf, busy_poll: Option<f64>) -> PyResult<()> {
        let busy_poll = busy_poll.map(seconds).transpose()?;
        let owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(owner) = owner.as_ref() else {
            return Err(PyValueError::new_err("this pool is another process's: it serves it"));
        };
        if let Some(busy_poll) = busy_poll {
            owner.set_busy_poll(busy_poll).or_raise(py)?;
        }
        owner.serve(path).or_raise(py)
    }

    /// Detaches, and ends the owner if it is in this process. Pins stay valid.
    fn close(&self, py: Python<'_>) {
        let client = self.client.write().unwrap_or_else(PoisonError::into_inner).take();
        let owner = self.owner.lock().unwrap_or_else(PoisonError::into_inner).take();
        py.detach(|| drop((client, owner)));
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _kind: &Bound<'_, PyAny>,
        _error: &Bound<'_, PyAny>,
        _trace: &Bound<'_, PyAny>,
    ) {
        self.close(py);
    }

    /// Whether it attached read-only.
    #[getter]
    fn read_only(&self) -> PyResult<bool> {
        Ok(self.client()?.is_read_only())
    }

    /// How many seconds a call waits for the owner's answer.
    #[getter]
    fn deadline(&self) -> PyResult<f64> {
        Ok(self.client()?.deadline().as_secs_f64())
    }

    #[setter]
    fn set_deadline(&self, deadline: f64) -> PyResult<()> {
        self.client()?.set_deadline(seconds(deadline)?);
        Ok(())
    }

    /// Finds a file by name and pins all of it, without a call to the owner.
    ///
    /// Raises NotFound.
    fn get(&self, py: Python<'_>, name: &Bound<'_, PyAny>) -> PyResult<Pin> {
        let name = names::bytes(name)?;
        let client = self.client()?;
        let pin = match client.try_get_owned(&name).or_raise(py)? {
            Some(pin) => pin,
            None => py.detach(|| client.get_owned(&name)).or_raise(py)?,
        };
        Ok(Pin::new(pin))
    }

    /// Whether a file has this name, without a call to the owner.
    fn exists(&self, py: Python<'_>, name: &Bound<'_, PyAny>) -> PyResult<bool> {
        self.client()?.exists(names::bytes(name)?).or_raise(py)
    }

    fn __contains__(&self, py: Python<'_>, name: &Bound<'_, PyAny>) -> PyResult<bool> {
        self.exists(py, name)
    }

    /// Stores `data`, an object with a buffer or (address, nbytes), as a new file.
    ///
    /// With `replace` it takes the place of a file of that name; else that raises Exists.
    /// `metadata` is up to 256 bytes that `Pool.metadata` returns. With `checksum` the file gets a
    /// CRC-32C of its contents, with which `Pool.verify` compares them. A file that is `evictable`,
    /// 1 to 255, may be evicted when others need room and nobody holds it: of the lowest number the
    /// least recently used goes first.
    #[pyo3(signature = (name, data, *, replace = false, metadata = NO_METADATA,
                        checksum = false, evictable = 0))]
    #[expect(clippy::too_many_arguments, reason = "they are Python's keywords")]
    fn put(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyAny>,
        data: &Bound<'_, PyAny>,
        replace: bool,
        metadata: &[u8],
        checksum: bool,
        evictable: u8,
    ) -> PyResult<()> {
        let (client, source) = (self.client()?, Source::of(data)?);
        let bytes = source.bytes();
        let wanted = Wanted { replace, metadata, checksum, evictable };
        let spec = wanted.spec(py, &names::bytes(name)?, bytes.len() as u64)?;
        py.detach(|| client.put(spec, bytes)).or_raise(py)
    }

    /// Reserves a file of `nbytes`, to be filled and committed. The rest is as in `put`.
    #[pyo3(signature = (name, nbytes, *, replace = false, metadata = NO_METADATA,
                        checksum = false, evictable = 0))]
    #[expect(clippy::too_many_arguments, reason = "they are Python's keywords")]
    fn writer(
        &self,
        py: Python<'_>,
        name: &Bound<'_, PyAny>,
        nbytes: u64,
        replace: bool,
        metadata: &[u8],
        checksum: bool,
        evictable: u8,
    ) -> PyResult<Writer> {
        let client = self.client()?;
        let wanted = Wanted { replace, metadata, checksum, evictable };
        let spec = wanted.spec(py, &names::bytes(name)?, nbytes)?;
        Ok(Writer::new(py.detach(|| client.create_owned_with(spec)).or_raise(py)?))
    }

    /// The bytes that a file's creator gave it as `metadata`, without a call to the owner.
    ///
    /// Raises NotFound.
    fn metadata(&self, py: Python<'_>, name: &Bound<'_, PyAny>) -> PyResult<Py<PyBytes>> {
        let (client, name) = (self.client()?, names::bytes(name)?);
        let read = || client.open(&name)?.metadata();
        let metadata = py.detach(read).or_raise(py)?;
        Ok(PyBytes::new(py, metadata.user.as_bytes()).unbind())
    }

    /// Whether a file has the contents that it was committed with: True or False, or None if it has
    /// no checksum. Reads all of it.
    ///
    /// Raises NotFound.
    fn verify(&self, py: Python<'_>, name: &Bound<'_, PyAny>) -> PyResult<Option<bool>> {
        let (client, name) = (self.client()?, names::bytes(name)?);
        py.detach(|| {
            let file = client.open(&name)?;
            let Some(wanted) = file.metadata()?.checksum else { return Ok(None) };
            Ok(Some(file.pin_all()?.checksum()? == wanted))
        })
        .or_raise(py)
    }

    /// Takes a name away at once; the memory is free when its last pin goes.
    ///
    /// Raises NotFound.
    fn unlink(&self, py: Python<'_>, name: &Bound<'_, PyAny>) -> PyResult<()> {
        let (client, name) = (self.client()?, names::bytes(name)?);
        py.detach(|| client.unlink(&name)).or_raise(py)
    }

    /// Gives a file another name; with `replace` it takes the place of the file that has it.
    #[pyo3(signature = (old, new, *, replace = false))]
    fn rename(
        &self,
        py: Python<'_>,
        old: &Bound<'_, PyAny>,
        new: &Bound<'_, PyAny>,
        replace: bool,
    ) -> PyResult<()> {
        let (client, old, new) = (self.client()?, names::bytes(old)?, names::bytes(new)?);
        let replace = if replace { Replace::Yes } else { Replace::No };
        py.detach(|| client.rename(&old, &new, replace)).or_raise(py)
    }

    /// Describes the files whose names begin with `prefix`, in the order of their names.
    #[pyo3(signature = (prefix = None))]
    fn list(&self, py: Python<'_>, prefix: Option<&Bound<'_, PyAny>>) -> PyResult<Vec<FileInfo>> {
        let client = self.client()?;
        let prefix = prefix.map(names::bytes).transpose()?.unwrap_or_default();
        let files = py.detach(|| client.list_prefix(&prefix)).or_raise(py)?;
        files.iter().map(|file| FileInfo::new(py, file)).collect()
    }

    /// Describes a file.
    ///
    /// Raises NotFound.
    fn stat(&self, py: Python<'_>, name: &Bound<'_, PyAny>) -> PyResult<FileInfo> {
        let (client, name) = (self.client()?, names::bytes(name)?);
        FileInfo::new(py, &py.detach(|| client.stat(&name)).or_raise(py)?)
    }

    /// Maps the pool's memory in this process now, so that later puts and reads need not page by
    /// page: only what has memory, in steps. Ends after `deadline` seconds, or when `progress`,
    /// which is called with the bytes done and those in all after each step, returns False.
    /// Returns these two numbers.
    #[pyo3(signature = (*, deadline = 60.0, progress = None))]
    fn prefault(
        &self,
        py: Python<'_>,
        deadline: f64,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<(u64, u64)> {
        let (client, deadline) = (self.client()?, seconds(deadline)?);
        let mut raised = None;
        let tell = |py: Python<'_>, so_far: Prefault| {
            py.check_signals()?;
            let Some(progress) = &progress else { return Ok(true) };
            let answer = progress.call1(py, (so_far.seen_bytes, so_far.total_bytes))?;
            Ok::<_, PyErr>(!answer.bind(py).is(PyBool::new(py, false)))
        };
        let step = |so_far| match Python::attach(|py| tell(py, so_far)) {
            Ok(true) => ControlFlow::Continue(()),
            Ok(false) => ControlFlow::Break(()),
            Err(error) => {
                raised = Some(error);
                ControlFlow::Break(())
            }
        };
        let result = py.detach(|| client.prefault(deadline, step));
        match raised {
            Some(error) => Err(error),
            None => result.map(|it| (it.seen_bytes, it.total_bytes)).or_raise(py),
        }
    }

    /// Describes the pool.
    fn info(&self, py: Python<'_>) -> PyResult<PoolInfo> {
        let client = self.client()?;
        Ok(PoolInfo::new(&py.detach(|| client.pool_stat()).or_raise(py)?))
    }
}
