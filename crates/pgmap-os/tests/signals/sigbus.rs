//! Copies of memory that does not answer come back as errors, and the process lives on.

// UNSAFETY: memory is broken on purpose (MADV_HWPOISON), which no safe call offers.
#![allow(unsafe_code)]
#![cfg(target_arch = "x86_64")]

use pgmap_os::sigbus::watch;
use pgmap_os::{
    CopyError, FaultCause, MemoryFault, MemoryFile, PageSize, ReadMapping, WriteMapping,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const PAGE: u64 = 4096;

fn mapped(len: u64) -> (MemoryFile, ReadMapping, WriteMapping) {
    let file = MemoryFile::anonymous("sigbus-test", len, PageSize::Base).unwrap();
    let reader = ReadMapping::map(&file, 0, len).unwrap();
    let writer = WriteMapping::map(&file, 0, len).unwrap();
    (file, reader, writer)
}

fn unbacked(offset: u64) -> Result<(), CopyError> {
    Err(CopyError::Fault(MemoryFault { offset, cause: FaultCause::Unbacked }))
}

/// Every copy that there is, of `len` bytes at `offset`.
fn all_copies(
    reader: &ReadMapping,
    writer: &WriteMapping,
    offset: u64,
    len: usize,
) -> [Result<(), CopyError>; 4] {
    let mut bytes = vec![0xEE; len];
    [
        reader.copy_out(offset, &mut bytes),
        writer.copy_out(offset, &mut bytes),
        writer.copy_in(offset, &bytes),
        writer.fill_zero(offset, len as u64),
    ]
}

#[test]
fn copy_of_a_truncated_range_is_an_error_that_names_the_offset() {
    let (file, reader, writer) = mapped(4 * PAGE);
    writer.copy_in(0, &[7; 4 * PAGE as usize]).unwrap();
    file.set_len(2 * PAGE).unwrap();
    for result in all_copies(&reader, &writer, 0, 4 * PAGE as usize) {
        assert_eq!(result, unbacked(2 * PAGE));
        assert_eq!(result.unwrap_err().errno(), libc::EIO);
    }
    for result in all_copies(&reader, &writer, 0, 2 * PAGE as usize) {
        assert_eq!(result, Ok(()), "what is left can be copied");
    }
    file.set_len(4 * PAGE).unwrap();
    for result in all_copies(&reader, &writer, 0, 4 * PAGE as usize) {
        assert_eq!(result, Ok(()), "an error is not for ever");
    }
}

/// Lengths that go through each part of the loops, with the first lost byte at every place in them
/// that matters: the first, the middle, the last, each side of a boundary of 16, 32 and 128.
#[test]
fn fault_at_any_byte_of_any_length_is_found_there() {
    let (file, reader, writer) = mapped(4 * PAGE);
    let end = 2 * PAGE;
    for len in (1..=40).chain([63, 64, 65, 127, 128, 129, 200, 255, 256, 300, 1000, 4096]) {
        for nr_good in [0, 1, 15, 16, 17, 31, 32, 33, 127, 128, 129, len / 2, len - 1] {
            if nr_good >= len {
                continue;
            }
            let start = end - nr_good as u64;
            file.set_len(4 * PAGE).unwrap();
            for result in all_copies(&reader, &writer, start, len) {
                assert_eq!(result, Ok(()), "{len} bytes at {start} before the cut");
            }
            file.set_len(end).unwrap();
            for result in all_copies(&reader, &writer, start, len) {
                assert_eq!(result, unbacked(end), "{len} bytes, {nr_good} of them there");
            }
        }
    }
    // Deep inside what is lost, and far from the start of its page.
    for result in all_copies(&reader, &writer, 3 * PAGE + 77, 5) {
        assert_eq!(result, unbacked(3 * PAGE + 77));
    }
}

#[test]
fn bytes_before_the_first_lost_page_are_not_disturbed_by_a_failed_copy_out() {
    let (file, reader, writer) = mapped(2 * PAGE);
    writer.copy_in(0, &[7; 2 * PAGE as usize]).unwrap();
    file.set_len(PAGE).unwrap();
    let mut bytes = [1; 2 * PAGE as usize];
    assert_eq!(reader.copy_out(0, &mut bytes), unbacked(PAGE));
    assert!(bytes[..PAGE as usize - 128].iter().all(|&byte| byte == 7), "came before the fault");
    assert!(bytes[PAGE as usize..].iter().all(|&byte| byte == 1), "nothing was made up");
    assert_eq!(writer.copy_out(0, &mut bytes[..PAGE as usize]), Ok(()));
}

#[test]
fn slice_that_does_not_answer_is_told_from_a_mapping_that_does_not() {
    let (_file, reader, writer) = mapped(2 * PAGE);
    let (other_file, _other_reader, other) = mapped(2 * PAGE);
    other_file.set_len(PAGE).unwrap();
    // SAFETY: mapped for as long as `other`; that its second page is gone is what is tested, and
    // the bytes are only passed to copies in assembly.
    let slice = unsafe { std::slice::from_raw_parts_mut(other.as_ptr(), 2 * PAGE as usize) };
    let fault = MemoryFault { offset: PAGE, cause: FaultCause::Unbacked };
    assert_eq!(writer.copy_in(0, slice), Err(CopyError::SliceFault(fault)));
    assert_eq!(reader.copy_out(0, slice), Err(CopyError::SliceFault(fault)));
}

#[test]
fn copies_racing_with_truncation_succeed_or_fail_and_never_kill() {
    const LEN: u64 = 64 * PAGE;
    const KEPT: u64 = 3 * PAGE;
    let (file, reader, writer) = mapped(LEN);
    let deadline = Instant::now() + Duration::from_secs(1);
    let copy_until_the_deadline = |copy: &dyn Fn(u64) -> Result<(), CopyError>| {
        let (mut nr_done, mut nr_failed) = (0, 0);
        while Instant::now() < deadline {
            match copy(nr_done % PAGE) {
                Ok(()) => nr_done += 1,
                Err(CopyError::Fault(MemoryFault { offset, cause: FaultCause::Unbacked })) => {
                    assert!((KEPT..LEN).contains(&offset), "offset {offset}");
                    nr_failed += 1;
                }
                Err(other) => panic!("{other}"),
            }
        }
        (nr_done, nr_failed)
    };
    let len = (LEN - PAGE) as usize;
    let (out, inn) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while Instant::now() < deadline {
                file.set_len(KEPT).unwrap();
                std::thread::yield_now();
                file.set_len(LEN).unwrap();
                std::thread::yield_now();
            }
        });
        let out = scope.spawn(|| {
            let target = std::cell::RefCell::new(vec![0; len]);
            copy_until_the_deadline(&|at| reader.copy_out(at, &mut target.borrow_mut()))
        });
        let source = vec![1; len];
        let inn = copy_until_the_deadline(&|at| match at % 2 {
            0 => writer.copy_in(at, &source),
            _ => writer.fill_zero(at, len as u64),
        });
        (out.join().unwrap(), inn)
    });
    println!("copies done and failed: out {out:?}, in {inn:?}");
    assert!(out.0 > 0 && out.1 > 0 && inn.0 > 0 && inn.1 > 0, "both ends of the race were seen");
}

/// A tmpfs of its own, unmounted with the test.
struct SmallTmpfs {
    dir: tempfile::TempDir,
}

impl SmallTmpfs {
    fn mount(size: &str) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={size}"), "pgmap-test"]);
        let output = command.arg(dir.path()).output().map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(Self { dir });
        }
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for SmallTmpfs {
    fn drop(&mut self) {
        let unmount = |dir: &Path| Command::new("umount").arg("--lazy").arg(dir).status();
        // A test that fails tells more than a mount that stays.
        let _ = unmount(self.dir.path());
    }
}

#[test]
fn copy_into_a_full_tmpfs_is_an_error() {
    let tmpfs = match SmallTmpfs::mount("64k") {
        Ok(tmpfs) => tmpfs,
        Err(reason) => {
            println!("SKIPPED copy_into_a_full_tmpfs_is_an_error: no mount: {reason}");
            return;
        }
    };
    let file = MemoryFile::create_named(&tmpfs.path("pool"), 32 * PAGE).unwrap();
    let reader = ReadMapping::map(&file, 0, 32 * PAGE).unwrap();
    let writer = WriteMapping::map(&file, 0, 32 * PAGE).unwrap();
    assert_eq!(writer.copy_in(0, &[1; 8 * PAGE as usize]), Ok(()));
    // 64 KiB are 16 pages, however much of them the file system keeps for itself.
    for result in all_copies(&reader, &writer, 0, 32 * PAGE as usize) {
        let Err(CopyError::Fault(fault)) = result else { panic!("{result:?}") };
        assert!((8 * PAGE..=16 * PAGE).contains(&fault.offset), "{fault}");
        assert_eq!((fault.cause, fault.errno()), (FaultCause::Unbacked, libc::EIO));
    }
    assert_eq!(writer.copy_out(0, &mut [0; 8 * PAGE as usize]), Ok(()));
}

/// Breaks a page for real, where that is allowed: root, CONFIG_MEMORY_FAILURE.
#[test]
fn copy_of_broken_memory_is_an_error_and_the_watch_hears_of_it() {
    let (_file, reader, writer) = mapped(3 * PAGE);
    let failures = watch(reader.addresses()).unwrap();
    assert_eq!(writer.copy_in(0, &[1; 3 * PAGE as usize]), Ok(()));
    let page = writer.as_ptr().wrapping_add(PAGE as usize);
    // SAFETY: one page of our own mapping; losing its bytes is what is tested.
    let broken = unsafe { libc::madvise(page.cast(), PAGE as usize, libc::MADV_HWPOISON) };
    if broken != 0 {
        let reason = std::io::Error::last_os_error();
        println!(
            "SKIPPED copy_of_broken_memory_is_an_error_and_the_watch_hears_of_it: \
             MADV_HWPOISON: {reason}"
        );
        return;
    }
    let mut bytes = [0; 3 * PAGE as usize];
    let error = reader.copy_out(0, &mut bytes).unwrap_err();
    let fault = MemoryFault { offset: PAGE, cause: FaultCause::Poisoned };
    assert_eq!((error, error.errno()), (CopyError::Fault(fault), libc::EHWPOISON));
    let failure = failures.next().unwrap();
    assert_eq!((failure.offset_bytes, failure.len_bytes), (PAGE, PAGE));
    assert_eq!(reader.copy_out(0, &mut bytes[..PAGE as usize]), Ok(()), "the page before");
    assert_eq!(reader.copy_out(2 * PAGE, &mut bytes[..PAGE as usize]), Ok(()), "the page after");
}
