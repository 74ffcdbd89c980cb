//! Quotas and water marks: what an operator says of a pool that is served.

use pgmap::quota::{QuotaInfo, QuotaLimits, QuotaOf};
use pgmap::{Error, FileName, WaterMarks};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::errors::OrRaise;
use crate::names;
use crate::pool::Pool;
use crate::sizes;

/// What a user or a name prefix may take, and takes.
#[pyclass(frozen, get_all, module = "pgmap")]
pub struct Quota {
    /// The user, if it is one's.
    uid: Option<u32>,
    /// How the names begin, if it is a prefix's.
    prefix: Option<Py<PyAny>>,
    /// Most bytes of memory; None for any number.
    nbytes: Option<u64>,
    /// Most files.
    files: Option<u64>,
    /// Most clients of a user.
    clients: Option<u64>,
    /// Bytes that its files have.
    used_nbytes: u64,
    /// Its files.
    used_files: u64,
    /// Clients of its user.
    used_clients: u64,
}

impl Quota {
    fn new(py: Python<'_>, info: &QuotaInfo) -> PyResult<Self> {
        let (uid, prefix) = match &info.of {
            QuotaOf::Uid(uid) => (Some(*uid), None),
            QuotaOf::Prefix(prefix) => (None, Some(names::shown(py, prefix.as_bytes())?)),
        };
        Ok(Self {
            uid,
            prefix: prefix.map(|prefix| prefix.into_any().unbind()),
            nbytes: info.limits.bytes,
            files: info.limits.files,
            clients: info.limits.clients,
            used_nbytes: info.used_bytes,
            used_files: info.used_files,
            used_clients: info.used_clients,
        })
    }
}

#[pymethods]
impl Quota {
    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let of = match (&self.uid, &self.prefix) {
            (Some(uid), _) => format!("uid={uid}"),
            (None, Some(prefix)) => format!("prefix={}", prefix.bind(py).repr()?),
            (None, None) => String::new(),
        };
        let Self { used_nbytes, used_files, .. } = self;
        Ok(format!("Quota({of}, used_nbytes={used_nbytes}, used_files={used_files})"))
    }
}

/// Whom a quota is for: a prefix or a uid, one of the two.
fn subject(
    py: Python<'_>,
    prefix: Option<&Bound<'_, PyAny>>,
    uid: Option<u32>,
) -> PyResult<QuotaOf> {
    match (prefix, uid) {
        (Some(prefix), None) => {
            let prefix = FileName::new(names::bytes(prefix)?);
            Ok(QuotaOf::Prefix(prefix.map_err(Error::from).or_raise(py)?))
        }
        (None, Some(uid)) => Ok(QuotaOf::Uid(uid)),
        _ => Err(PyValueError::new_err("a quota is of a prefix or of a uid: name one of them")),
    }
}

#[pymethods]
impl Pool {
    /// Limits what files whose names begin with `prefix`, or those of the user `uid`, may take, in
    /// the place of what was set for it before. The pool keeps it.
    ///
    /// What would exceed it raises OverQuota, after files that it counts and that may be evicted
    /// have made room. Only root and the owner's user may set it.
    #[pyo3(signature = (*, prefix = None, uid = None, nbytes = None, files = None, clients = None))]
    fn set_quota(
        &self,
        py: Python<'_>,
        prefix: Option<&Bound<'_, PyAny>>,
        uid: Option<u32>,
        nbytes: Option<&Bound<'_, PyAny>>,
        files: Option<u64>,
        clients: Option<u64>,
    ) -> PyResult<()> {
        let (client, of) = (self.client()?, subject(py, prefix, uid)?);
        let bytes = nbytes.map(sizes::bytes).transpose()?;
        let limits = QuotaLimits { bytes, files, clients };
        py.detach(|| client.set_quota(of, limits)).or_raise(py)
    }

    /// Ends a quota.
    #[pyo3(signature = (*, prefix = None, uid = None))]
    fn remove_quota(
        &self,
        py: Python<'_>,
        prefix: Option<&Bound<'_, PyAny>>,
        uid: Option<u32>,
    ) -> PyResult<()> {
        let (client, of) = (self.client()?, subject(py, prefix, uid)?);
        py.detach(|| client.remove_quota(of)).or_raise(py)
    }

    /// The quotas, and how much of each is used.
    fn quotas(&self, py: Python<'_>) -> PyResult<Vec<Quota>> {
        let client = self.client()?;
        let quotas = py.detach(|| client.quotas()).or_raise(py)?;
        quotas.iter().map(|info| Quota::new(py, info)).collect()
    }

    /// Has the owner keep room free: with less than `low` it evicts files that may be evicted, the
    /// least recently used first, until `high` is free. Zeros end it. The pool keeps it.
    fn set_water_marks(
        &self,
        py: Python<'_>,
        low: &Bound<'_, PyAny>,
        high: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let client = self.client()?;
        let (low_bytes, high_bytes) = (sizes::bytes(low)?, sizes::bytes(high)?);
        py.detach(|| client.set_water_marks(WaterMarks { low_bytes, high_bytes })).or_raise(py)
    }

    /// The water marks in bytes, (low, high).
    fn water_marks(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        let client = self.client()?;
        let WaterMarks { low_bytes, high_bytes } =
            py.detach(|| client.water_marks()).or_raise(py)?;
        Ok((low_bytes, high_bytes))
    }
}
