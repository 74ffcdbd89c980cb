//! How a verb reaches the owner of a pool.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use pgmap::{Client, Error};

use crate::failure::Failure;

/// Attaches to the owner that listens at `socket`.
///
/// # Errors
/// When nobody serves there, with the way out; whatever else keeps a client from attaching.
pub fn attach(socket: &Path) -> Result<Client, Failure> {
    Client::connect(socket).map_err(|error| match &error {
        Error::Os(os) if is_nobody(os.kind()) => Failure::new(format!(
            "nobody serves at {}: start one with `pgmap serve{}`",
            socket.display(),
            option_for(socket)
        )),
        _ => error.into(),
    })
}

fn is_nobody(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::ConnectionRefused)
}

/// The option that makes `serve` listen where this command looked.
fn option_for(socket: &Path) -> String {
    if socket == pgmap::os::places::default_socket_path() {
        return String::new();
    }
    format!(" --socket {}", socket.display())
}

/// A file's name as the pool takes it: any bytes.
pub fn name_bytes(name: &OsStr) -> &[u8] {
    name.as_bytes()
}
