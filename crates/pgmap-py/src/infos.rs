//! What a pool says of its files and of itself.

use pyo3::prelude::*;

use crate::names;

/// A file of a listing.
#[pyclass(frozen, get_all, module = "pgmap")]
pub struct FileInfo {
    /// Its name; bytes that are no UTF-8 are surrogates.
    name: Py<PyAny>,
    /// Its number, never given to another file.
    id: u64,
    /// Its length in bytes.
    nbytes: u64,
    /// Bytes of the frames it takes.
    allocated: u64,
    /// In how many pieces it lies.
    pieces: u64,
    /// The user whose client created it.
    uid: u32,
}

impl FileInfo {
    /// As the library says it.
    pub fn new(py: Python<'_>, info: &pgmap::FileInfo) -> PyResult<Self> {
        Ok(Self {
            name: names::shown(py, info.name.as_bytes())?.into_any().unbind(),
            id: info.id,
            nbytes: info.len_bytes,
            allocated: info.allocated_bytes,
            pieces: info.nr_extents,
            uid: info.uid,
        })
    }
}

#[pymethods]
impl FileInfo {
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let name = self.name.bind(py).repr()?;
        Ok(format!("FileInfo(name={name}, nbytes={}, pieces={})", self.nbytes, self.pieces))
    }
}

/// A pool in figures, in bytes.
#[pyclass(frozen, get_all, module = "pgmap")]
pub struct PoolInfo {
    /// All frames.
    size: u64,
    /// Frames nobody has.
    free: u64,
    /// Frames of files.
    live: u64,
    /// Frames of files that are being written.
    reserved: u64,
    /// Frames of unlinked files that somebody still holds.
    draining: u64,
    /// Memory behind the data.
    backed: u64,
    /// Files.
    files: u64,
    /// Frames of files that may be evicted.
    evictable: u64,
    /// Files that this owner evicted.
    evicted: u64,
    /// Clients attached.
    clients: u64,
}

impl PoolInfo {
    /// As the library says it.
    pub const fn new(info: &pgmap::PoolInfo) -> Self {
        Self {
            size: info.size_bytes,
            free: info.free_bytes,
            live: info.live_bytes,
            reserved: info.reserved_bytes,
            draining: info.draining_bytes,
            backed: info.backed_bytes,
            files: info.nr_files,
            evictable: info.evictable_bytes,
            evicted: info.nr_evicted,
            clients: info.nr_clients,
        }
    }
}

#[pymethods]
impl PoolInfo {
    fn __repr__(&self) -> String {
        let Self { size, free, draining, files, clients, .. } = self;
        format!(
            "PoolInfo(size={size}, free={free}, draining={draining}, files={files}, \
             clients={clients})"
        )
    }
}
