//! Where the sockets and pools of a user live. Decides; creates nothing.
//!
//! `$XDG_RUNTIME_DIR` is the user's own tmpfs where a login session made one. Elsewhere (containers,
//! services) it is `/dev/shm/pgmap-UID`. `/dev/shm` is open to everybody: whoever creates the
//! directory must do so with mode 0700 and check that it is the user's own.

use rustix::fs::{Access, access};
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Returns `$XDG_RUNTIME_DIR` if it is absolute and writable, else `/dev/shm/pgmap-UID`.
pub fn default_runtime_dir() -> PathBuf {
    runtime_dir(env::var_os("XDG_RUNTIME_DIR"))
}

/// Returns the socket of the user's default service: `<runtime dir>/pgmap/pgmap.sock`.
pub fn default_socket_path() -> PathBuf {
    default_runtime_dir().join("pgmap/pgmap.sock")
}

/// Returns the directory of the user's default pool: `<runtime dir>/pgmap/pool`.
pub fn default_pool_dir() -> PathBuf {
    default_runtime_dir().join("pgmap/pool")
}

fn runtime_dir(configured: Option<OsString>) -> PathBuf {
    match configured.map(PathBuf::from) {
        Some(dir) if is_usable(&dir) => dir,
        _ => format!("/dev/shm/pgmap-{}", rustix::process::geteuid().as_raw()).into(),
    }
}

fn is_usable(dir: &Path) -> bool {
    dir.is_absolute() && dir.is_dir() && access(dir, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configured_directory_is_used_where_it_can_be() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(runtime_dir(Some(dir.path().into())), dir.path());
    }

    #[test]
    fn missing_or_relative_directory_falls_back_to_shared_memory() {
        let uid = rustix::process::geteuid().as_raw();
        let fallback = PathBuf::from(format!("/dev/shm/pgmap-{uid}"));
        assert_eq!(runtime_dir(None), fallback);
        assert_eq!(runtime_dir(Some("relative".into())), fallback);
        assert_eq!(runtime_dir(Some("/nowhere/at/all".into())), fallback);
    }

    #[test]
    fn socket_and_pool_share_one_directory() {
        let (socket, pool) = (default_socket_path(), default_pool_dir());
        assert_eq!(socket.parent(), pool.parent());
        assert!(socket.ends_with("pgmap/pgmap.sock"));
    }
}
