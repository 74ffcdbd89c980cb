//! pgmap for Python: the native part of the package `pgmap`.
//!
//! | module | one concept |
//! |---|---|
//! | `pool` | a pool, its owner if it is in this process, and what is done by name |
//! | `quotas` | what users and name prefixes may take, and what is kept free |
//! | `batch` | the same for many names in one call |
//! | `pin` | pinned bytes, with the buffer protocol |
//! | `writer` | a file that is being written |
//! | `subscription` | what becomes of files |
//! | `views` | how many buffers of an object Python has out |
//! | `memory` | memory that Python lends: buffers, and addresses |
//! | `dlpack` | pinned bytes for array libraries |
//! | `names`, `sizes`, `infos`, `errors` | values and exceptions as Python has them |
//!
//! The command `pgmap` is the one of pgmap-cli, run in the interpreter (`pgmap.__main__`).
//!
//! # The interpreter's lock
//! Whatever calls the owner, waits, or copies gives it up. A look-up or a pin does not: it takes
//! less than handing the lock over. No lock of this crate is kept while the interpreter's is given
//! up, so none is taken at the moment of a fork.

mod batch;
mod dlpack;
mod errors;
mod infos;
mod memory;
mod names;
mod pin;
mod pool;
mod quotas;
mod sizes;
mod subscription;
mod views;
mod writer;

/// What the package `pgmap` is made of.
#[pyo3::pymodule(gil_used = true)]
mod _native {
    use std::ffi::OsString;

    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::infos::{FileInfo, PoolInfo};
    #[pymodule_export]
    use crate::pin::Pin;
    #[pymodule_export]
    use crate::pool::Pool;
    #[pymodule_export]
    use crate::quotas::Quota;
    #[pymodule_export]
    use crate::subscription::{FileEvent, Subscription};
    #[pymodule_export]
    use crate::writer::Writer;

    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "Python calls it so")]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    /// Runs the command line `words` of the command `pgmap`, its name first. Returns its exit code.
    #[pyfunction]
    fn run_command(py: Python<'_>, words: Vec<OsString>) -> u8 {
        py.detach(|| pgmap_cli::run(&words))
    }
}
