//! `pgmap who [NAME | PATH]`: who holds what.

use std::ffi::OsString;
use std::fmt;

use pgmap::report::{ClientHold, HolderList};
use serde::Serialize;

use crate::attach::{Place, attach_to_read, name_bytes};
use crate::failure::Failure;
use crate::names::Exact;
use crate::output::{Output, Show, Units};
use crate::table::{Side, Table};
use crate::verbs::who_file;

/// Bytes of a frame.
const FRAME_BYTES: u64 = 4096;

/// Show who holds a file, or anything; or who uses a device or file outside any pool
///
/// A NAME in the pool: who holds it, asked of the owner. One line per process and run of frames.
/// KIND is short, long-term (counted), lease (long-term, and the owner may ask it back) or writer
/// (not committed yet), and whether its client attached read-only; AGENT says whether a device may
/// be writing through the hold. Asking takes no hold and stops nobody.
///
/// A PATH, which begins with `/`, `./` or `../`, such as /dev/dax0.0: which processes have it open,
/// map it, or have it registered with an io_uring, by /proc; no pool and no owner is needed. USE is
/// open, mapped, ring-buffers (pinned until they are unregistered), ring-file (open in a ring
/// without a descriptor), maybe-pinned (the process maps it and has memory pinned, the kernel does
/// not say which) or maybe-ring-buffers (a ring has buffers where nothing is mapped now). Pins of
/// other kernel users, such as RDMA or VFIO, show as maybe-pinned at best. Processes that this user
/// has no right to look into are named below the table.
#[derive(Debug, clap::Args)]
pub struct Who {
    /// Name in the pool, or path of a device or file; everything in the pool when absent
    #[arg(value_name = "NAME|PATH")]
    name: Option<OsString>,
    /// Take it for a name in the pool though it looks like a path
    #[arg(long = "in-pool", requires = "name")]
    is_in_pool: bool,
}

/// A holder as tables, JSON and messages show it.
#[derive(Clone, Debug, Serialize)]
pub struct HolderRow {
    /// Its process.
    pub pid: i32,
    /// The process's name when it attached.
    pub command: String,
    /// What the client calls itself.
    pub label: String,
    /// Whether it attached read-only.
    pub is_read_only: bool,
    /// The process's user.
    pub uid: u32,
    /// The owner's number for the client.
    pub client: u64,
    /// `short`, `long-term`, `lease`, `writer` or `unreadable`.
    pub kind: &'static str,
    /// Whether a device may be writing through the hold.
    pub is_device: bool,
    /// `device` or `cpu`, for the same.
    pub agent: &'static str,
    /// First frame.
    pub first_pfn: u64,
    /// Frames.
    pub nr_pages: u64,
    /// Bytes of these frames.
    pub len_bytes: u64,
    /// Pins this stands for.
    pub nr_pins: u32,
    /// What the client says the pin is for; 0 for nothing.
    pub tag: u64,
    /// The file, where the frames belong to one.
    #[serde(flatten)]
    pub file: Exact,
    /// For how long the owner has been seeing it; `None` if nothing waits for it.
    pub seen_for_ms: Option<u64>,
}

impl From<&ClientHold> for HolderRow {
    fn from(holder: &ClientHold) -> Self {
        Self {
            pid: holder.pid,
            command: holder.command.clone(),
            label: holder.label.clone(),
            is_read_only: holder.is_read_only,
            uid: holder.uid,
            client: holder.client,
            kind: holder.kind.name(),
            is_device: holder.is_device,
            agent: if holder.is_device { "device" } else { "cpu" },
            first_pfn: holder.first_pfn,
            nr_pages: holder.nr_pages,
            len_bytes: holder.nr_pages.saturating_mul(FRAME_BYTES),
            nr_pins: holder.nr_pins,
            tag: holder.tag,
            file: Exact::file_shown(holder.file.as_deref()),
            seen_for_ms: holder.seen_for_ms,
        }
    }
}

impl HolderRow {
    fn kind(&self) -> String {
        let access = if self.is_read_only { " (read-only)" } else { "" };
        format!("{}{access}", self.kind)
    }

    fn frames(&self) -> String {
        format!("{:#x}..{:#x}", self.first_pfn, self.first_pfn.saturating_add(self.nr_pages))
    }
}

impl fmt::Display for HolderRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = if self.is_device { " device" } else { "" };
        let Self { command, pid, kind, .. } = self;
        write!(f, "{command} (pid {pid}): {kind}{device} pin of {}", self.frames())
    }
}

#[derive(Debug, Serialize)]
struct Holders {
    schema: &'static str,
    #[serde(flatten)]
    name: Exact,
    holders: Vec<HolderRow>,
    nr_holders: u64,
    is_cut: bool,
}

impl Show for Holders {
    fn table(&self, units: Units) -> Table {
        let mut table = Table::new(&[
            ("PID", Side::Right),
            ("COMMAND", Side::Left),
            ("LABEL", Side::Left),
            ("UID", Side::Right),
            ("KIND", Side::Left),
            ("AGENT", Side::Left),
            ("FRAMES", Side::Left),
            ("SIZE", Side::Right),
            ("PINS", Side::Right),
            ("TAG", Side::Right),
            ("SEEN FOR", Side::Right),
            ("FILE", Side::Left),
        ]);
        for holder in &self.holders {
            table.row(vec![
                holder.pid.to_string(),
                holder.command.clone(),
                holder.label.clone(),
                holder.uid.to_string(),
                holder.kind(),
                holder.agent.into(),
                holder.frames(),
                units.bytes(holder.len_bytes),
                holder.nr_pins.to_string(),
                tag_text(holder.tag),
                holder.seen_for_ms.map_or_else(|| "-".into(), |ms| format!("{ms} ms")),
                holder.file.shown().unwrap_or_else(|| "(removed)".into()),
            ]);
        }
        let more = if self.is_cut { " and more that the answer has no room for" } else { "" };
        let holds = if self.nr_holders == 1 { "hold" } else { "holds" };
        table.closing(format!("{} {holds}{more}", self.nr_holders));
        table
    }
}

/// A tag as people read it: those that spell a word, such as the one of processors' mappings, as
/// that.
fn tag_text(tag: u64) -> String {
    let bytes = tag.to_le_bytes();
    let len = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let (word, rest) = bytes.split_at(len);
    let is_word = !word.is_empty()
        && word.iter().all(u8::is_ascii_graphic)
        && rest.iter().all(|&byte| byte == 0)
        && word.iter().any(|byte| byte.is_ascii_alphabetic())
        && word.len() > 2;
    if is_word { String::from_utf8_lossy(word).into_owned() } else { tag.to_string() }
}

impl Who {
    /// Shows them.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn run(self, place: &Place, output: &Output) -> Result<(), Failure> {
        if let Some(path) = self.name.as_deref().filter(|name| who_file::is_path(name))
            && !self.is_in_pool
        {
            return who_file::run(path.as_ref(), output);
        }
        let client = attach_to_read(place)?;
        let HolderList { holders, is_cut } = match self.name.as_deref() {
            Some(name) => client.who(name_bytes(name))?,
            None => client.who_all()?,
        };
        output.show(&Holders {
            schema: "pgmap.who/1",
            name: Exact::name(self.name.as_deref().map(name_bytes)),
            nr_holders: holders.len() as u64,
            holders: holders.iter().map(HolderRow::from).collect(),
            is_cut,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_that_spells_a_word_is_shown_as_the_word() {
        assert_eq!(tag_text(pgmap::space::CPU_MAPPING_TAG), "cpu-map");
        for tag in [0, 7, 65, 0x4141, u64::MAX, 0x4100_4141_4141] {
            assert_eq!(tag_text(tag), tag.to_string());
        }
    }
}
