//! `pgmap who /dev/dax0.0 | FILE`: who uses a file or device that need not be a pool's.

use std::path::Path;

use pgmap::os::file_users::{FileUse, FileUsers, UseKind};
use serde::Serialize;

use crate::failure::Failure;
use crate::names::{self, Exact};
use crate::output::{Output, Show, Units};
use crate::table::{Side, Table};

/// One use, in tables and JSON.
#[derive(Debug, Serialize)]
struct UseRow {
    pid: i32,
    command: String,
    uid: u32,
    /// `open`, `mapped`, `ring-buffers`, `ring-file`, `maybe-pinned` or `maybe-ring-buffers`.
    kind: &'static str,
    /// Whether the bytes are pinned for sure.
    is_pinned: bool,
    fd: Option<i32>,
    address: Option<u64>,
    offset: Option<u64>,
    len_bytes: Option<u64>,
    is_writable: Option<bool>,
    is_shared: Option<bool>,
    nr_buffers: Option<u64>,
}

#[derive(Debug, Serialize)]
struct UnreadRow {
    pid: i32,
    command: String,
    what: &'static str,
    errno: Option<i32>,
    error: String,
}

#[derive(Debug, Serialize)]
struct Users {
    schema: &'static str,
    #[serde(flatten)]
    file: Exact,
    uses: Vec<UseRow>,
    mounts: Vec<String>,
    unread: Vec<UnreadRow>,
}

impl UseRow {
    fn of(a_use: &FileUse) -> Self {
        let mut row = Self {
            pid: a_use.pid,
            command: a_use.command.clone(),
            uid: a_use.uid,
            kind: "open",
            is_pinned: false,
            fd: None,
            address: None,
            offset: None,
            len_bytes: None,
            is_writable: None,
            is_shared: None,
            nr_buffers: None,
        };
        match a_use.kind {
            UseKind::Open { fd, is_writable } => {
                (row.fd, row.is_writable) = (Some(fd), Some(is_writable));
            }
            UseKind::Mapped { address, len_bytes, offset, is_writable, is_shared } => {
                row.kind = "mapped";
                (row.address, row.len_bytes, row.offset) =
                    (Some(address), Some(len_bytes), Some(offset));
                (row.is_writable, row.is_shared) = (Some(is_writable), Some(is_shared));
            }
            UseKind::RingBuffers { fd, nr_buffers, len_bytes } => {
                (row.kind, row.is_pinned) = ("ring-buffers", true);
                (row.fd, row.nr_buffers, row.len_bytes) =
                    (Some(fd), Some(nr_buffers), Some(len_bytes));
            }
            UseKind::RingFile { fd } => (row.kind, row.fd) = ("ring-file", Some(fd)),
            UseKind::MaybePinned { len_bytes } => {
                (row.kind, row.len_bytes) = ("maybe-pinned", Some(len_bytes));
            }
            UseKind::MaybeRingBuffers { fd, len_bytes } => {
                (row.kind, row.fd, row.len_bytes) =
                    ("maybe-ring-buffers", Some(fd), Some(len_bytes));
            }
        }
        row
    }

    fn detail(&self) -> String {
        let writable = match self.is_writable {
            Some(true) => " rw",
            Some(false) => " r",
            None => "",
        };
        match (self.address, self.offset, self.fd) {
            (Some(address), Some(offset), _) => {
                let shared = if self.is_shared == Some(false) { " private" } else { "" };
                format!("at {address:#x} from offset {offset:#x}{writable}{shared}")
            }
            (_, _, Some(fd)) => match self.nr_buffers {
                Some(nr) => format!("{nr} in ring {fd}: pinned"),
                None if self.kind == "open" => format!("descriptor {fd}{writable}"),
                None => format!("ring {fd}"),
            },
            _ => "pinned by the process in all".into(),
        }
    }
}

impl Show for Users {
    fn table(&self, units: Units) -> Table {
        let mut table = Table::new(&[
            ("PID", Side::Right),
            ("COMMAND", Side::Left),
            ("UID", Side::Right),
            ("USE", Side::Left),
            ("SIZE", Side::Right),
            ("DETAIL", Side::Left),
        ]);
        for row in &self.uses {
            table.row(vec![
                row.pid.to_string(),
                row.command.clone(),
                row.uid.to_string(),
                row.kind.into(),
                row.len_bytes.map_or_else(|| "-".into(), |bytes| units.bytes(bytes)),
                row.detail(),
            ]);
        }
        for mount in &self.mounts {
            table.closing(format!("mounted at {mount}"));
        }
        let uses = if self.uses.len() == 1 { "use" } else { "uses" };
        table.closing(format!("{} {uses}", self.uses.len()));
        for unread in &self.unread {
            let UnreadRow { pid, command, what, error, .. } = unread;
            table.closing(format!("not read: {what} of {command} (pid {pid}): {error}"));
        }
        table
    }
}

/// Whether an argument of `who` is a path on disk and not a name in the pool.
pub fn is_path(argument: &std::ffi::OsStr) -> bool {
    let bytes = argument.as_encoded_bytes();
    ["/", "./", "../"].iter().any(|start| bytes.starts_with(start.as_bytes()))
}

/// Shows who uses `path`.
///
/// # Errors
/// When there is no such file, or no /proc.
pub fn run(path: &Path, output: &Output) -> Result<(), Failure> {
    let users = FileUsers::of(path).map_err(|error| {
        let errno = std::error::Error::source(&error)
            .and_then(|source| source.downcast_ref::<std::io::Error>())
            .and_then(std::io::Error::raw_os_error);
        let kind = if errno == Some(libc::ENOENT) { "not_found" } else { "system" };
        Failure::new(kind, errno.unwrap_or(libc::EIO), error.to_string())
    })?;
    output.show(&Users {
        schema: "pgmap.who-file/1",
        file: Exact::file(path),
        uses: users.uses.iter().map(UseRow::of).collect(),
        mounts: users.mounts.iter().map(|mount| names::shown(mount.as_os_str())).collect(),
        unread: users
            .unread
            .iter()
            .map(|unread| UnreadRow {
                pid: unread.pid,
                command: unread.command.clone(),
                what: unread.what,
                errno: unread.error.raw_os_error(),
                error: unread.error.to_string(),
            })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_from_names_by_how_they_begin() {
        for path in ["/dev/dax0.0", "./weights", "../weights"] {
            assert!(is_path(path.as_ref()), "{path}");
        }
        for name in ["weights", "dev/dax0.0", ".hidden", "..", "~/x"] {
            assert!(!is_path(name.as_ref()), "{name}");
        }
    }
}
