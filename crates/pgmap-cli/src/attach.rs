//! How a verb reaches the owner of a pool.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use pgmap::os::places;
use pgmap::{Client, ConnectOptions, Error};

use crate::failure::Failure;

/// How often a socket is tried that nobody listens at yet.
const RETRY: Duration = Duration::from_millis(10);

/// Where an owner listens, or will.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its socket.
    pub socket: PathBuf,
    /// Whether somebody named it. The default place is trusted only if it is this user's own.
    pub is_chosen: bool,
    /// How long to wait for an owner that is only starting.
    pub wait: Duration,
}

impl Place {
    /// The place that was `chosen`, or the default one.
    pub fn new(chosen: Option<PathBuf>, wait: Duration) -> Self {
        let is_chosen = chosen.is_some();
        Self { socket: chosen.unwrap_or_else(places::default_socket_path), is_chosen, wait }
    }

    /// Refuses a default place that another user could have prepared.
    ///
    /// # Errors
    /// With the directory, what is wrong with it, and the way out.
    pub fn check(&self) -> Result<(), Failure> {
        if self.is_chosen { Ok(()) } else { check_default(&self.socket, "--socket") }
    }
}

/// Checks a place that nobody chose; `option` would choose it.
///
/// # Errors
/// As [`Place::check`].
pub fn check_default(path: &Path, option: &str) -> Result<(), Failure> {
    places::check_own(path).map_err(|error| {
        let failure = Failure::from(Error::from(error));
        let message = format!("{failure}; name another place with {option}");
        Failure { kind: "not_trusted", message, ..failure }
    })
}

/// Attaches to the owner at `place`.
///
/// # Errors
/// When nobody serves there, with the way out; whatever else keeps a client from attaching.
pub fn attach(place: &Place) -> Result<Client, Failure> {
    attach_with(place, &ConnectOptions::new())
}

/// As [`attach`], for a verb that only reads: nothing of the pool can be written by it.
///
/// # Errors
/// As [`attach`].
pub fn attach_to_read(place: &Place) -> Result<Client, Failure> {
    attach_with(place, &ConnectOptions::new().read_only())
}

fn attach_with(place: &Place, options: &ConnectOptions) -> Result<Client, Failure> {
    place.check()?;
    let until = Instant::now() + place.wait;
    loop {
        let attached = match place.is_chosen {
            true => Client::connect_with(&place.socket, options),
            false => Client::connect_own_with(&place.socket, options),
        };
        match attached {
            Err(Error::Os(error))
                if (is_nobody(error.kind()) || error.kind() == ErrorKind::WouldBlock)
                    && Instant::now() < until =>
            {
                thread::sleep(RETRY);
                // Whoever makes the directory meanwhile must be trusted as well.
                place.check()?;
            }
            attached => return attached.map_err(|error| why_not(place, error)),
        }
    }
}

fn why_not(place: &Place, error: Error) -> Failure {
    let socket = place.socket.display();
    match &error {
        Error::Os(os) if is_nobody(os.kind()) => Failure {
            message: format!(
                "nobody serves at {socket}: start one with `pgmap serve{}`",
                if place.is_chosen { format!(" --socket {socket}") } else { String::new() }
            ),
            kind: "no_owner",
            ..error.into()
        },
        Error::Os(os) if os.what() == "trust" => {
            let failure = Failure::from(error);
            let message = format!("{failure}; name the socket with --socket if you trust it");
            Failure { kind: "not_trusted", message, ..failure }
        }
        _ => error.into(),
    }
}

fn is_nobody(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::ConnectionRefused)
}

/// A file's name as the pool takes it: any bytes.
pub fn name_bytes(name: &OsStr) -> &[u8] {
    name.as_bytes()
}
