//! On which NUMA nodes the memory of a file is taken.
//!
//! A memfd, a file on tmpfs and one of huge pages have a policy of their own, which all processes
//! share and which lasts as long as the file (Linux 7.1: mm/shmem.c, `shmem_set_policy`;
//! mm/hugetlb.c, `hugetlb_vm_op_open`). The page cache of a disk has none: it lies where the
//! process runs that touches it first. A device lies where it lies.

// UNSAFETY: mbind is a system call without a safe wrapper.
#![allow(unsafe_code)]

use crate::{MemoryFile, MemoryKind, OsError, WriteMapping};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::fs;
use std::io;

const WITH_MEMORY: &str = "/sys/devices/system/node/has_memory";
/// More nodes than any kernel is built for (`CONFIG_NODES_SHIFT` is at most 10).
const MAX_NODES: usize = 1024;
const WORD_BITS: usize = u64::BITS as usize;

/// The nodes of this machine that have memory.
///
/// # Errors
/// What reading sysfs says; a kernel without NUMA has no such file.
pub fn nodes_with_memory() -> Result<BTreeSet<u32>, OsError> {
    let failed = |error: io::Error| OsError::new("read", WITH_MEMORY, error);
    let text = fs::read_to_string(WITH_MEMORY).map_err(failed)?;
    parse_list(text.trim())
        .ok_or_else(|| failed(io::Error::other(format!("it says \"{}\"", text.trim()))))
}

/// The numbers of a list as sysfs writes it: `0-2,5`.
fn parse_list(text: &str) -> Option<BTreeSet<u32>> {
    let mut numbers = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if usize::try_from(last).ok()? >= MAX_NODES {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

impl MemoryFile {
    /// Has memory for the first `len` bytes be taken on `nodes` from now on, by whichever process:
    /// on one node alone, or on several in turn. What is there already stays where it is.
    ///
    /// # Errors
    /// `EINVAL` for no node, one without memory, and a file whose memory lies elsewhere by its
    /// nature, each by name; what `mbind` says.
    pub fn place_on(&self, nodes: &BTreeSet<u32>, len: u64) -> Result<(), OsError> {
        let names: Vec<String> = nodes.iter().map(u32::to_string).collect();
        let subject = format!("memory of {} on node {}", self.name(), names.join(","));
        let refused =
            |why: String| OsError::new("take", subject.clone(), Errno::INVAL).with_advice(why);
        match self.kind() {
            MemoryKind::Shmem | MemoryKind::Hugetlb => {}
            MemoryKind::DevDax => {
                let node = self.numa_node().map_or("its own".into(), |node| node.to_string());
                return Err(refused(format!("a device lies where it lies, on node {node}")));
            }
            kind @ (MemoryKind::PageCache | MemoryKind::FsDax) => {
                return Err(refused(format!(
                    "its memory is of the kind \"{kind}\", which has no policy of its own: use a \
                     memfd, a file on tmpfs, or huge pages"
                )));
            }
        }
        let there = nodes_with_memory()?;
        let list = there.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        if nodes.is_empty() {
            return Err(refused(format!("name a node; this machine has memory on node {list}")));
        }
        if let Some(absent) = nodes.iter().find(|node| !there.contains(node)) {
            return Err(refused(format!(
                "node {absent} has no memory; this machine has memory on node {list}"
            )));
        }
        let mode = if nodes.len() == 1 { libc::MPOL_BIND } else { libc::MPOL_INTERLEAVE };
        let mut mask = [0_u64; MAX_NODES / WORD_BITS];
        for &node in nodes {
            mask[node as usize / WORD_BITS] |= 1 << (node as usize % WORD_BITS);
        }
        let mapping = WriteMapping::map(self, 0, len)?;
        // SAFETY: the range is a mapping that lives until the end of this call, and the mask has as
        // many bits as is said; the call changes no memory.
        let done = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                mapping.as_ptr(),
                len as libc::c_ulong,
                libc::c_long::from(mode),
                mask.as_ptr(),
                // The kernel looks at one bit less than that (mm/mempolicy.c, `get_nodes`).
                (MAX_NODES + 1) as libc::c_ulong,
                0 as libc::c_long,
            )
        };
        if done == 0 {
            return Ok(());
        }
        Err(OsError::new("take", subject, io::Error::last_os_error()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PageSize;

    #[test]
    fn lists_of_nodes_are_read_as_sysfs_writes_them() {
        let read = |text| parse_list(text).map(|set| set.into_iter().collect::<Vec<_>>());
        assert_eq!(read("0"), Some(vec![0]));
        assert_eq!(read("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(read(""), Some(vec![]));
        assert_eq!(read("0-4000000000"), None);
        assert_eq!(read("x"), None);
    }

    #[test]
    fn a_policy_stays_with_the_file_and_unknown_nodes_are_named() {
        let file = MemoryFile::anonymous("placed", 8 << 20, PageSize::Base).unwrap();
        let there = nodes_with_memory().unwrap();
        let first = *there.first().unwrap();
        let absent = there.last().unwrap() + 7;
        let error = file.place_on(&[absent].into(), 8 << 20).unwrap_err().to_string();
        assert!(error.contains(&format!("node {absent} has no memory")), "{error}");
        assert!(file.place_on(&BTreeSet::new(), 8 << 20).is_err());
        file.place_on(&[first].into(), 8 << 20).unwrap();
        // Another mapping, later, has it: the policy is the file's.
        let mapping = WriteMapping::map(&file, 0, 8 << 20).unwrap();
        let _done = mapping.populate().unwrap();
        let maps = fs::read_to_string("/proc/self/numa_maps").unwrap();
        let start = format!("{:x} ", mapping.as_ptr() as usize);
        let line = maps.lines().find(|line| line.starts_with(&start)).unwrap();
        assert!(line.contains(&format!("bind:{first}")), "{line}");
        assert!(line.contains(&format!("N{first}=2048")), "{line}");
    }

    #[test]
    fn a_file_of_a_disk_has_no_policy_and_says_so() {
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = directory.path().join("file");
        let file = MemoryFile::create_named(&path, 1 << 20).unwrap();
        if file.kind() == MemoryKind::Shmem {
            println!("SKIPPED a_file_of_a_disk_has_no_policy: the sources lie on tmpfs");
            return;
        }
        let error = file.place_on(&[0].into(), 1 << 20).unwrap_err().to_string();
        assert!(error.contains("no policy of its own"), "{error}");
    }
}
