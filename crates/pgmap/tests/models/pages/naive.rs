//! The model: files as lists of pages, pins as the frames that they keep.

use std::collections::{BTreeMap, BTreeSet};

use pgmap::{Access, Agent, FileRules, LongtermRule, MemoryType, Replace};

use super::{EFAULT, EHWPOISON, EINVAL, EOPNOTSUPP, PAGE_BYTES};

/// A page of a file. Its bytes are a number, over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    Bytes { frame: u64, number: u64 },
    Hole,
    Poisoned { frame: u64 },
}

impl Page {
    pub const fn frame(self) -> Option<u64> {
        match self {
            Self::Bytes { frame, .. } | Self::Poisoned { frame } => Some(frame),
            Self::Hole => None,
        }
    }

    pub fn bytes(self) -> Vec<u8> {
        let number = if let Self::Bytes { number, .. } = self { number } else { 0 };
        number.to_le_bytes().repeat(PAGE_BYTES as usize / 8)
    }
}

/// A file or a draft. It may have more pages than bytes: a folio is whole.
#[derive(Clone, Debug)]
pub struct File {
    pub len: u64,
    pub rules: FileRules,
    pub pages: Vec<Page>,
}

impl File {
    pub fn frames(&self) -> impl Iterator<Item = u64> + '_ {
        self.pages.iter().filter_map(|page| page.frame())
    }

    pub fn range(&self, from: u64, len: u64) -> &[Page] {
        &self.pages[(from / PAGE_BYTES) as usize..(from + len).div_ceil(PAGE_BYTES) as usize]
    }

    pub fn bytes(&self, from: u64, len: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity((len + 2 * PAGE_BYTES) as usize);
        for page in self.range(from, len) {
            bytes.extend_from_slice(&page.bytes());
        }
        bytes.drain(..(from % PAGE_BYTES) as usize);
        bytes.truncate(len as usize);
        bytes
    }

    pub fn is_damaged(&self) -> bool {
        self.pages.iter().any(|page| matches!(page, Page::Poisoned { .. }))
    }
}

pub struct Draft {
    pub name: String,
    pub replace: Replace,
    pub file: File,
}

/// Everything there is.
pub struct Model {
    pub memory_type: MemoryType,
    pub files: BTreeMap<String, File>,
    pub drafts: BTreeMap<u64, Draft>,
    /// The frames that each pin keeps.
    pub pins: BTreeMap<u64, BTreeSet<u64>>,
    pub poisoned: BTreeSet<u64>,
    pub next_number: u64,
}

impl Model {
    pub fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    pub fn is_held(&self, frames: impl IntoIterator<Item = u64>) -> bool {
        let frames: BTreeSet<u64> = frames.into_iter().collect();
        self.pins.values().any(|held| !held.is_disjoint(&frames))
    }

    pub fn live(&self) -> BTreeSet<u64> {
        self.files.values().flat_map(File::frames).collect()
    }

    pub fn reserved(&self) -> BTreeSet<u64> {
        self.drafts.values().flat_map(|draft| draft.file.frames()).collect()
    }

    /// Frames that only pins keep.
    pub fn only_pinned(&self) -> BTreeSet<u64> {
        let owned: BTreeSet<u64> = self.live().union(&self.reserved()).copied().collect();
        self.pins.values().flatten().filter(|frame| !owned.contains(frame)).copied().collect()
    }

    /// Failed frames that nobody has or holds.
    pub fn failed_and_unowned(&self) -> BTreeSet<u64> {
        let (live, reserved, pinned) = (self.live(), self.reserved(), self.only_pinned());
        let is_owned = |frame| [&live, &reserved, &pinned].iter().any(|set| set.contains(frame));
        self.poisoned.iter().filter(|frame| !is_owned(frame)).copied().collect()
    }

    /// Why a short-term or long-term pin of `pages` fails: the first page that does not agree says.
    pub fn pin_refused(&self, file: &File, pages: &[Page], is_longterm: bool) -> Option<i32> {
        let is_asked =
            matches!(file.rules.longterm, LongtermRule::Forbid | LongtermRule::ForbidDevice)
                || self.memory_type != MemoryType::Generic;
        pages.iter().find_map(|page| match page {
            Page::Hole => None,
            Page::Poisoned { .. } => Some(EHWPOISON),
            Page::Bytes { .. } if file.rules.is_raw => Some(EFAULT),
            Page::Bytes { .. } => (is_longterm && is_asked).then_some(EOPNOTSUPP),
        })
    }

    pub fn lease_refused(
        &self,
        file: &File,
        pages: &[Page],
        agent: Agent,
        access: Access,
    ) -> Option<i32> {
        let is_writable = !file.rules.is_read_only && !file.pages.contains(&Page::Hole);
        match self.pin_refused(file, pages, true) {
            None if access == Access::Read || is_writable => return None,
            None | Some(EOPNOTSUPP) => {}
            refused => return refused,
        }
        let rule = file.rules.longterm;
        let is_forbidden = rule == LongtermRule::Forbid
            || (rule == LongtermRule::ForbidDevice && agent == Agent::Device)
            || (self.memory_type == MemoryType::FsDax && rule != LongtermRule::Leasable);
        if pages.contains(&Page::Hole) {
            Some(EINVAL)
        } else if access == Access::Write && file.rules.is_read_only {
            Some(EFAULT)
        } else if is_forbidden {
            Some(EOPNOTSUPP)
        } else {
            self.pin_refused(file, pages, false)
        }
    }

    pub fn poison(&mut self, failed: u64) {
        self.poisoned.insert(failed);
        let files = self.files.values_mut();
        for file in files.chain(self.drafts.values_mut().map(|draft| &mut draft.file)) {
            for page in file.pages.iter_mut().filter(|page| page.frame() == Some(failed)) {
                *page = Page::Poisoned { frame: failed };
            }
        }
    }
}
