//! Where the sockets and pools of a user live. Decides; creates nothing.
//!
//! `$XDG_RUNTIME_DIR` is the user's own tmpfs where a login session made one. Elsewhere
//! (containers, services) it is `/dev/shm/pgmap-UID`. `/dev/shm` is open to everybody, so another
//! user may have made that directory first: nothing in it is to be believed before [`check_own`]
//! has passed. The directory is made with mode 0700.

use crate::OsError;
use rustix::fs::{Access, FileType, Mode, access, lstat};
use rustix::io::Errno;
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Returns `$XDG_RUNTIME_DIR` if it is absolute, writable and this user's own, else
/// `/dev/shm/pgmap-UID`.
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

/// Checks that nobody but this user and root could have made, or can change, what is at `path`:
/// each directory from the default runtime directory down to `path` is theirs, no symbolic link,
/// and not writable by others. What does not exist cannot mislead, and passes.
///
/// # Errors
/// `EPERM`, `ELOOP` or `ENOTDIR` with the directory and what is wrong with it.
pub fn check_own(path: &Path) -> Result<(), OsError> {
    check_below(&default_runtime_dir(), path)
}

fn check_below(runtime: &Path, path: &Path) -> Result<(), OsError> {
    let mut places: Vec<&Path> =
        path.ancestors().take_while(|place| place.starts_with(runtime)).collect();
    places.reverse();
    for place in places {
        let stat = match lstat(place) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(OsError::new("inspect", place.display().to_string(), errno)),
        };
        let refused = |errno: Errno, why: String| {
            Err(OsError::new("trust", place.display().to_string(), errno).with_advice(why))
        };
        let own = rustix::process::geteuid().as_raw();
        if stat.st_uid != own && stat.st_uid != 0 {
            let why = format!("it belongs to user {}, and this is user {own}", stat.st_uid);
            return refused(Errno::PERM, why);
        }
        let mode = Mode::from_raw_mode(stat.st_mode);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if mode.intersects(Mode::WGRP | Mode::WOTH) => {
                let why = format!("others may write to it (mode {:o})", mode.bits() & 0o7777);
                return refused(Errno::PERM, why);
            }
            FileType::Symlink => return refused(Errno::LOOP, "it is a symbolic link".into()),
            FileType::Directory => {}
            _ if place == path => {}
            _ => return refused(Errno::NOTDIR, "it is no directory".into()),
        }
    }
    Ok(())
}

fn runtime_dir(configured: Option<OsString>) -> PathBuf {
    match configured.map(PathBuf::from) {
        // Without symbolic links, which `check_own` refuses.
        Some(dir) if is_usable(&dir) => dir.canonicalize().unwrap_or(dir),
        _ => format!("/dev/shm/pgmap-{}", rustix::process::geteuid().as_raw()).into(),
    }
}

fn is_usable(dir: &Path) -> bool {
    dir.is_absolute() && is_own_dir(dir) && access(dir, Access::WRITE_OK | Access::EXEC_OK).is_ok()
}

fn is_own_dir(dir: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    rustix::fs::stat(dir).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::Directory && stat.st_uid == own
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_place_that_others_could_have_made_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = dir.path().join("runtime");
        let socket = runtime.join("pgmap/pgmap.sock");
        check_below(&runtime, &socket).expect("what is not there misleads nobody");
        fs::create_dir_all(runtime.join("pgmap")).unwrap();
        let open_to = |mode| fs::Permissions::from_mode(mode);
        fs::set_permissions(&runtime, open_to(0o700)).unwrap();
        fs::set_permissions(runtime.join("pgmap"), open_to(0o755)).unwrap();
        check_below(&runtime, &socket).expect("this user's, and nobody else writes there");
        for mode in [0o777, 0o770, 0o1777, 0o702] {
            for place in [runtime.clone(), runtime.join("pgmap")] {
                fs::set_permissions(&place, open_to(mode)).unwrap();
                let error = check_below(&runtime, &socket).unwrap_err();
                assert_eq!(error.errno(), libc::EPERM, "{mode:o}: {error}");
                assert!(error.to_string().contains(&format!("mode {mode:o}")), "{error}");
                fs::set_permissions(&place, open_to(0o700)).unwrap();
            }
        }
        symlink("/dev/null", &socket).unwrap();
        assert_eq!(check_below(&runtime, &socket).unwrap_err().errno(), libc::ELOOP);
        fs::remove_dir_all(runtime.join("pgmap")).unwrap();
        symlink(dir.path(), runtime.join("pgmap")).unwrap();
        assert_eq!(check_below(&runtime, &socket).unwrap_err().errno(), libc::ELOOP);
        fs::remove_file(runtime.join("pgmap")).unwrap();
        fs::write(runtime.join("pgmap"), "").unwrap();
        assert_eq!(check_below(&runtime, &socket).unwrap_err().errno(), libc::ENOTDIR);
    }

    #[test]
    fn a_runtime_directory_of_another_user_is_not_used() {
        let uid = rustix::process::geteuid().as_raw();
        let dir = tempfile::tempdir().unwrap();
        let theirs = if uid == 0 {
            std::os::unix::fs::chown(dir.path(), Some(54321), None).unwrap();
            dir.path()
        } else {
            Path::new("/")
        };
        let fallback = PathBuf::from(format!("/dev/shm/pgmap-{uid}"));
        assert_eq!(runtime_dir(Some(theirs.into())), fallback);
    }

    #[test]
    fn configured_directory_is_used_where_it_can_be() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        assert_eq!(runtime_dir(Some(dir.path().into())), real);
        let link = real.join("link");
        symlink(&real, &link).unwrap();
        assert_eq!(runtime_dir(Some(link.into())), real);
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
