//! What a memory file promises, on memfd, tmpfs and what is neither.

use super::*;
use std::fs::File;
use std::os::unix::fs::FileExt;

const MIB: u64 = 1 << 20;

fn memfd(len: u64) -> MemoryFile {
    MemoryFile::anonymous("test", len, PageSize::Base).unwrap()
}

fn as_file(file: &MemoryFile) -> File {
    file.try_clone_fd().unwrap().into()
}

#[test]
fn fresh_memfd_has_its_length_and_occupies_nothing() {
    let file = memfd(1 << 40);
    assert_eq!(file.len_bytes(), 1 << 40);
    assert_eq!(file.resident_bytes(), 0);
    assert_eq!(file.access(), FileAccess::ReadWrite);
    assert_eq!((file.page_size(), file.kind()), (PageSize::Base, MemoryKind::Shmem));
    assert_eq!(file.available_bytes(), None, "a memfd has no limit of its own");
    file.check_capacity(u64::MAX).unwrap();
    assert_eq!(file.name(), "memfd:test");
    assert_eq!(rustix::fs::fstat(&file).unwrap().st_mode & 0o777, 0o600);
}

#[test]
fn reserved_bytes_are_resident_and_punched_ones_are_gone_and_zero() {
    let file = memfd(4 * MIB);
    file.reserve(MIB..3 * MIB).unwrap();
    assert_eq!(file.resident_bytes(), 2 * MIB);
    as_file(&file).write_all_at(b"x", MIB).unwrap();
    file.punch(MIB..2 * MIB).unwrap();
    assert_eq!(file.resident_bytes(), MIB);
    assert_eq!(file.len_bytes(), 4 * MIB);
    let mut byte = [1];
    as_file(&file).read_exact_at(&mut byte, MIB).unwrap();
    assert_eq!(byte, [0]);
}

#[test]
fn bytes_with_memory_are_found_between_holes() {
    let file = memfd(4 * MIB);
    assert_eq!(file.next_with_memory(0..4 * MIB), None);
    let bytes = vec![1; MIB as usize];
    as_file(&file).write_all_at(&bytes, MIB).unwrap();
    as_file(&file).write_all_at(&bytes, 3 * MIB).unwrap();
    assert_eq!(file.next_with_memory(0..4 * MIB), Some(MIB..2 * MIB));
    assert_eq!(file.next_with_memory(MIB + 4096..4 * MIB), Some(MIB + 4096..2 * MIB));
    assert_eq!(file.next_with_memory(0..MIB + 4096), Some(MIB..MIB + 4096));
    assert_eq!(file.next_with_memory(2 * MIB..3 * MIB), None);
    assert_eq!(file.next_with_memory(2 * MIB..4 * MIB), Some(3 * MIB..4 * MIB));
    assert_eq!(file.next_with_memory(MIB..MIB), None);
    file.reserve(0..4 * MIB).unwrap();
    assert_eq!(file.next_with_memory(5..4 * MIB), Some(5..4 * MIB), "the whole file has memory");
}

#[test]
fn empty_and_reversed_ranges_are_refused_not_wrapped() {
    let file = memfd(MIB);
    #[expect(clippy::reversed_empty_ranges, reason = "that is the point")]
    let reversed = 4096..0;
    assert_eq!(file.reserve(reversed.clone()).unwrap_err().errno(), libc::EINVAL);
    assert_eq!(file.punch(reversed).unwrap_err().errno(), libc::EINVAL);
    assert_eq!(file.punch(0..0).unwrap_err().errno(), libc::EINVAL);
    assert_eq!(file.set_len(u64::MAX).unwrap_err().errno(), libc::EINVAL);
}

#[test]
fn named_file_is_exclusive_private_and_opens_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pool");
    let file = MemoryFile::create_named(&path, MIB).unwrap();
    let error = MemoryFile::create_named(&path, MIB).unwrap_err();
    assert_eq!(error.errno(), libc::EEXIST);
    assert!(error.to_string().contains("pool"), "{error}");
    assert_eq!(rustix::fs::fstat(&file).unwrap().st_mode & 0o777, 0o600);
    let again = MemoryFile::open_named(&path, FileAccess::ReadOnly).unwrap();
    assert_eq!((again.len_bytes(), again.access()), (MIB, FileAccess::ReadOnly));
    assert!(again.set_len(0).is_err());
    assert!(again.punch(0..4096).is_err());
}

#[test]
fn failed_creation_leaves_no_name_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pool");
    assert!(MemoryFile::create_named(&path, u64::MAX).is_err());
    assert!(!path.exists());
}

#[test]
fn what_is_no_regular_file_is_refused_by_name() {
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    let pipe = MemoryFile::from_fd(reader).unwrap_err();
    assert_eq!(pipe.errno(), libc::EINVAL);
    assert!(pipe.to_string().contains("pipe:"), "{pipe}");
    for path in ["/dev/null", "/"] {
        let error = MemoryFile::from_fd(File::open(path).unwrap().into()).unwrap_err();
        assert_eq!(error.errno(), libc::EINVAL, "{error}");
    }
}

#[test]
fn named_pipe_is_refused_without_waiting_for_its_other_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    rustix::fs::mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
    let error = MemoryFile::open_named(&path, FileAccess::ReadOnly).unwrap_err();
    assert_eq!(error.errno(), libc::EINVAL);
}

#[test]
fn descriptor_that_cannot_be_read_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let write_only = File::create(dir.path().join("w")).unwrap();
    assert_eq!(MemoryFile::from_fd(write_only.into()).unwrap_err().errno(), libc::EBADF);
    let path_only = rustix::fs::open(dir.path().join("w"), OFlags::PATH, Mode::empty()).unwrap();
    assert_eq!(MemoryFile::from_fd(path_only).unwrap_err().errno(), libc::EBADF);
}

#[test]
fn reopened_file_is_another_description_of_the_same_bytes() {
    let file = memfd(MIB);
    as_file(&file).write_all_at(b"shared", 0).unwrap();
    let reader = file.reopen(FileAccess::ReadOnly).unwrap();
    let mut bytes = [0; 6];
    as_file(&reader).read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"shared");
    assert!(as_file(&reader).write_all_at(b"no", 0).is_err());
    assert!(crate::file_lock::try_lock_exclusive(&file).unwrap());
    assert!(crate::file_lock::is_locked(&reader).unwrap());
}

#[test]
fn sealed_size_cannot_change() {
    let file = memfd(MIB);
    assert!(!file.is_shrink_sealed());
    file.seal_size().unwrap();
    assert!(file.is_shrink_sealed());
    assert_eq!(file.set_len(0).unwrap_err().errno(), libc::EPERM);
    assert_eq!(file.set_len(2 * MIB).unwrap_err().errno(), libc::EPERM);
    file.reserve(0..MIB).unwrap();
}

#[test]
fn write_seal_keeps_others_from_writing_and_also_forbids_punching() {
    let file = memfd(MIB);
    file.reserve(0..MIB).unwrap();
    file.seal_against_future_writes().unwrap();
    assert!(as_file(&file).write_all_at(b"x", 0).is_err());
    assert_eq!(file.punch(0..4096).unwrap_err().errno(), libc::EPERM, "documented at the seal");
}

#[test]
fn named_file_cannot_be_sealed_and_says_why() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = MemoryFile::create_named(&dir.path().join("f"), MIB).unwrap();
    let error = file.seal_size().unwrap_err();
    assert!(error.to_string().contains("memfd"), "{error}");
    assert!(!file.is_shrink_sealed());
}

#[test]
fn capacity_check_names_both_sizes_before_anything_dies() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = MemoryFile::create_named(&dir.path().join("f"), MIB).unwrap();
    let Some(available) = file.available_bytes() else {
        println!("SKIPPED capacity_check_names_both_sizes: /dev/shm has no size limit here");
        return;
    };
    file.check_capacity(MIB).unwrap();
    let wanted = available.saturating_mul(4);
    let error = file.check_capacity(wanted).unwrap_err();
    assert_eq!(error.errno(), libc::ENOSPC);
    let text = error.to_string();
    assert!(text.contains(&wanted.to_string()), "{text}");
    assert!(text.contains("bytes are free") && text.contains("are missing"), "{text}");
}

#[test]
fn reservation_beyond_the_file_system_is_an_error_with_the_bytes_missing() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = MemoryFile::create_named(&dir.path().join("f"), 0).unwrap();
    let Some(available) = file.available_bytes() else {
        println!("SKIPPED reservation_beyond_the_file_system: /dev/shm has no size limit here");
        return;
    };
    // tmpfs compares the whole request with its limit before it takes a single page.
    let error = file.reserve(0..available.saturating_mul(4)).unwrap_err();
    assert_eq!(error.errno(), libc::ENOSPC);
    assert!(error.to_string().contains("are missing"), "{error}");
    assert_eq!(file.resident_bytes(), 0);
}

#[test]
fn huge_page_shortage_is_an_error_at_creation() {
    let error = MemoryFile::anonymous("huge", 1 << 42, PageSize::Huge2M).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("2048 KiB"), "{text}");
}

#[test]
fn part_of_a_huge_page_is_no_length() {
    match MemoryFile::anonymous("huge", 4096, PageSize::Huge2M) {
        Err(error) if error.to_string().contains("offers no pages") => {
            println!("SKIPPED part_of_a_huge_page_is_no_length: no 2 MiB pages on this machine");
        }
        Err(error) => {
            assert_eq!(error.errno(), libc::EINVAL);
            assert!(error.to_string().contains("multiple of the page size"), "{error}");
        }
        Ok(_) => panic!("4096 bytes of 2 MiB pages were accepted"),
    }
}

#[test]
fn huge_pages_are_booked_when_the_file_is_made() {
    let before = huge_pages::available_bytes(PageSize::Huge2M).unwrap_or(0);
    if before < 4 * MIB {
        println!(
            "SKIPPED huge_pages_are_booked_when_the_file_is_made: fewer than 2 free huge pages"
        );
        return;
    }
    let file = MemoryFile::anonymous("huge", 4 * MIB, PageSize::Huge2M).unwrap();
    assert_eq!(file.page_size(), PageSize::Huge2M);
    let after = huge_pages::available_bytes(PageSize::Huge2M).unwrap();
    assert!(after < before, "{before} -> {after}");
    file.check_capacity(4 * MIB).unwrap();
}

#[test]
fn what_a_file_lies_in_decides_what_it_can_do() {
    let memfd = MemoryFile::anonymous("kind-test", 8192, PageSize::Base).unwrap();
    assert_eq!((memfd.kind(), memfd.persistence()), (MemoryKind::Shmem, Persistence::Processes));
    assert_eq!(memfd.kind().long_term(), LongTerm::Allowed);
    assert!(memfd.is_present() && memfd.numa_node().is_none());
    let rows = [
        (MemoryKind::Hugetlb, true, true, false, LongTerm::Allowed),
        (MemoryKind::PageCache, true, true, true, LongTerm::Refused),
        (MemoryKind::FsDax, true, true, true, LongTerm::Leased),
        (MemoryKind::DevDax, false, false, false, LongTerm::Allowed),
    ];
    for (kind, can_punch, must_reserve, has_pread, long_term) in rows {
        assert_eq!((kind.can_punch(), kind.must_reserve()), (can_punch, must_reserve), "{kind}");
        assert_eq!((kind.has_pread(), kind.long_term()), (has_pread, long_term), "{kind}");
    }
}

#[test]
fn a_device_that_is_no_memory_is_refused_by_name() {
    let error = MemoryFile::open_named(Path::new("/dev/null"), FileAccess::ReadWrite).unwrap_err();
    assert_eq!(error.errno(), libc::EINVAL);
    let text = error.to_string();
    assert!(text.contains("/dev/null") && text.contains("device-dax"), "{text}");
}

#[test]
fn a_file_that_was_given_up_reads_as_an_error_and_keeps_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let file = MemoryFile::create_named(&path, 8192).unwrap();
    file.write_all_at(b"seen", 0).unwrap();
    file.abandon().unwrap();
    assert!(file.read_exact_at(&mut [0; 4], 0).is_err());
    assert!(file.write_all_at(b"lost", 0).is_err() && file.set_len(4096).is_err());
    let again = MemoryFile::open_named(&path, FileAccess::ReadOnly).unwrap();
    let mut bytes = [0; 4];
    again.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"seen");
}

/// Huge pages can be written by mapping only, and from any offset.
#[test]
fn huge_pages_are_read_and_written_at_any_offset_and_mapped_from_any_page() {
    let name = "huge_pages_are_read_and_written_at_any_offset_and_mapped_from_any_page";
    let file = match MemoryFile::anonymous("huge-test", 4 << 20, PageSize::Huge2M) {
        Ok(file) => file,
        Err(error) => return println!("SKIPPED {name}: {error}"),
    };
    let at = (2 << 20) - 3;
    file.write_all_at(b"across", at).unwrap();
    let mut bytes = [0; 6];
    file.read_exact_at(&mut bytes, at).unwrap();
    assert_eq!(&bytes, b"across");
    let mapping = crate::ReadMapping::map(&file, (2 << 20) - 4096, 8192).unwrap();
    mapping.copy_out(4093, &mut bytes).unwrap();
    assert_eq!(&bytes, b"across");
    assert_eq!(mapping.len_bytes(), 8192);
    assert!(file.write_all_at(b"beyond", (4 << 20) - 5).is_err());
}
