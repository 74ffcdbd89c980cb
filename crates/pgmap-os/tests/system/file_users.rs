//! Who uses a file: this process and a child of it, as proc shows them.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use pgmap_os::file_users::{FileUse, FileUsers, UseKind};
use pgmap_os::{FileAccess, MemoryFile, WriteMapping};

fn uses_of(path: &Path, pid: u32) -> Vec<FileUse> {
    let users = FileUsers::of(path).unwrap();
    users.uses.into_iter().filter(|a_use| a_use.pid == pid as i32).collect()
}

#[test]
fn descriptors_and_mappings_are_found_and_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a file");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let me = std::process::id();
    assert_eq!(uses_of(&path, me), []);
    let reader = File::open(&path).unwrap();
    let kinds: Vec<_> = uses_of(&path, me).iter().map(|a_use| a_use.kind).collect();
    assert!(matches!(kinds[..], [UseKind::Open { is_writable: false, .. }]), "{kinds:?}");
    drop(reader);
    let file = MemoryFile::open_named(&path, FileAccess::ReadWrite).unwrap();
    let mapping = WriteMapping::map(&file, 0, 1 << 20).unwrap();
    let found = uses_of(&path, me);
    let is_mapped = |a_use: &FileUse| {
        matches!(
            a_use.kind,
            UseKind::Mapped {
                len_bytes: 1_048_576,
                offset: 0,
                is_writable: true,
                is_shared: true,
                ..
            }
        )
    };
    assert!(found.iter().any(is_mapped), "{found:?}");
    drop((mapping, file));
    assert_eq!(uses_of(&path, me), []);
}

#[test]
fn another_process_is_found_by_name_through_another_path() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    File::create(&path).unwrap().write_all(b"x").unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let mut child = Command::new("sh")
        .args(["-c", "exec 9<>\"$0\"; echo; read line"])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    let found = uses_of(&link, child.id());
    drop(child.stdin.take());
    child.wait().unwrap();
    let [a_use] = &found[..] else { panic!("{found:?}") };
    assert_eq!((&*a_use.command, a_use.kind), ("sh", UseKind::Open { fd: 9, is_writable: true }));
    assert_eq!(uses_of(&link, child.id()), []);
}

#[test]
fn a_device_is_found_by_its_numbers() {
    let null = File::open("/dev/null").unwrap();
    let found = uses_of(Path::new("/dev/null"), std::process::id());
    assert!(found.iter().any(|a_use| matches!(a_use.kind, UseKind::Open { .. })), "{found:?}");
    drop(null);
}

#[test]
fn a_file_that_is_not_there_is_an_error_with_its_name() {
    let error = FileUsers::of(Path::new("/nonexistent/file")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/file"), "{error}");
}
