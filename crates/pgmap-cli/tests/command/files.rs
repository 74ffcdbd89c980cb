//! put, get, ls, stat, rm, mv: files through the command.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use crate::server::{self, Server, User, ended, noise, output_of, run, send, text, until};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustix::process::Signal;
use serde_json::json;

#[test]
fn a_file_comes_back_as_it_was_through_files_and_pipes() {
    let server = Server::start();
    let bytes = noise((9 << 20) + 4567);
    let file = server.file("in", &bytes);
    let put = server.json(&["put", &file, "by-path"]);
    assert_eq!(put["schema"], "pgmap.put/1");
    assert_eq!(put["len_bytes"], bytes.len());
    server.pipe(&["put", "-", "by-pipe"], &bytes);
    server.pipe(&["put", "-", "streamed", "--size", &bytes.len().to_string()], &bytes);
    for name in ["by-path", "by-pipe", "streamed"] {
        assert!(server.pipe(&["get", name], b"") == bytes, "{name} to stdout");
        assert!(server.pipe(&["get", name, "-"], b"") == bytes, "{name} to -");
    }
    let out = server.file("out", b"what was there before");
    let got = server.json(&["get", "by-pipe", &out]);
    assert_eq!(got["schema"], "pgmap.get/1");
    assert!(std::fs::read(&out).unwrap() == bytes);
    let left = std::fs::read_dir(server.directory.path()).unwrap();
    let left: Vec<_> =
        left.map(|entry| text(entry.unwrap().file_name().as_encoded_bytes())).collect();
    assert!(left.iter().all(|name| !name.ends_with(".pgmap")), "{left:?}");
}

#[test]
fn json_has_a_schema_and_raw_integers_and_the_table_the_same_value() {
    let server = Server::start();
    let file = server.file("in", &noise(5 << 20));
    server.good(&["put", &file, "b", "--folio", "2M"]);
    server.good(&["put", &file, "a", "--folio", "4K"]);
    let listing = server.json(&["ls"]);
    assert_eq!(listing["schema"], "pgmap.ls/1");
    assert_eq!(listing["nr_files"], 2);
    assert_eq!(listing["len_bytes"], 10 << 20);
    assert_eq!(listing["files"][0]["name"], "a");
    assert_eq!(listing["files"][0]["nr_folios_4k"], 1280);
    assert_eq!(listing["files"][1]["nr_folios_2m"], 3);
    assert_eq!(listing["files"][1]["allocated_bytes"], 6 << 20);
    let stat = server.json(&["stat", "b"]);
    assert_eq!(stat["schema"], "pgmap.stat/1");
    assert_eq!(stat["len_bytes"], 5 << 20);
    let pool = server.json(&["stat"]);
    assert_eq!(pool["schema"], "pgmap.pool/1");
    assert_eq!(pool["size_bytes"], 64 << 20);
    assert_eq!(pool["live_bytes"], 11 << 20);
    let table = server.good(&["ls", "-u"]);
    assert!(table.contains("5 MiB") && table.ends_with("2 files, 10 MiB in 11 MiB of frames\n"));
    assert!(server.good(&["ls"]).contains(&(5 << 20).to_string()));
    assert!(!server.good(&["ls", "--quiet"]).contains("2 files"));
    assert!(!table.contains('\u{1b}'), "no colours in a pipe");
}

#[test]
fn who_names_the_process_and_what_it_holds() {
    let server = Server::start();
    let file = server.file("in", &noise(1 << 20));
    server.good(&["put", &file, "a"]);
    let client = pgmap::Client::connect(server.path("socket")).unwrap();
    let pin = client.get("a").unwrap();
    pin.set_tag(77);
    let who = server.json(&["who", "a"]);
    assert_eq!(who["schema"], "pgmap.who/1");
    assert_eq!(who["nr_holders"], 1);
    let holder = &who["holders"][0];
    assert_eq!(holder["pid"], std::process::id());
    assert_eq!(holder["kind"], "short");
    assert_eq!(holder["tag"], 77);
    assert_eq!(holder["file"], "a");
    assert_eq!(holder["len_bytes"], 1 << 20);
    let table = server.good(&["who"]);
    assert!(table.contains(&std::process::id().to_string()) && table.contains("1 hold\n"));
    drop(pin);
    assert_eq!(server.json(&["who", "a"])["holders"], json!([]));
    assert_eq!(server.good(&["who", "a"]), "0 holds\n");
}

#[test]
fn names_move_are_replaced_and_go() {
    let server = Server::start();
    let (one, two) = (server.file("one", &noise(5000)), server.file("two", &noise(70_000)));
    server.good(&["put", &one, "a"]);
    let taken = server.fails(&["put", &two, "a"], 1);
    assert!(taken.starts_with("pgmap: ") && taken.contains("\"a\" exists"), "{taken}");
    server.good(&["put", &two, "a", "--replace"]);
    assert_eq!(server.json(&["stat", "a"])["len_bytes"], 70_000);
    server.good(&["put", &one, "b"]);
    server.fails(&["mv", "a", "b"], 1);
    assert_eq!(server.json(&["mv", "a", "b", "--replace"])["schema"], "pgmap.mv/1");
    assert_eq!(server.json(&["truncate", "b", "0x1000"])["schema"], "pgmap.truncate/1");
    assert!(server.pipe(&["get", "b"], b"") == noise(70_000)[..4096]);
    let some = server.run(&["rm", "nope", "b", "--json"]);
    assert_eq!(some.status.code(), Some(1));
    let removed: serde_json::Value = serde_json::from_slice(&some.stdout).unwrap();
    assert_eq!(removed["removed"], json!(["b"]));
    assert_eq!(removed["failed"][0]["name"], "nope");
    assert_eq!(server.json(&["ls"])["files"], json!([]));
    assert_eq!(server.json(&["stat"])["free_bytes"], 64 << 20);
}

#[test]
fn puts_that_are_killed_or_interrupted_leave_nothing() {
    let server = Server::start();
    let free = server.json(&["stat"])["free_bytes"].clone();
    for signal in [Signal::KILL, Signal::INT] {
        let mut puts: Vec<_> = ["x", "y"]
            .map(|name| {
                let mut command = server.command(&["put", "-", name, "--size", "8M"]);
                command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
            })
            .into();
        for put in &mut puts {
            use std::io::Write;
            put.stdin.as_mut().unwrap().write_all(&noise(5 << 20)).unwrap();
        }
        until("both have their frames", || server.json(&["stat"])["reserved_bytes"] == 16 << 20);
        server.fails(&["get", "x"], 1);
        for put in &mut puts {
            send(put, signal);
            ended(put);
        }
        until("everything is back", || server.json(&["stat"])["free_bytes"] == free);
    }
    assert_eq!(server.json(&["ls"])["nr_files"], 0);
}

/// It copied to the end, or waited for bytes, for an owner that was long gone.
#[test]
fn a_put_whose_owner_is_killed_ends_at_once_and_says_why() {
    let mut server = Server::start();
    let mut put = server.command(&["put", "-", "a", "--size", "16M"]);
    let mut put = put.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = put.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, &noise(1 << 20)).unwrap();
    until("it has room", || server.json(&["stat"])["reserved_bytes"] == 16 << 20);
    server.child.kill().unwrap();
    let killed = std::time::Instant::now();
    // More never comes, and no end.
    let output = output_of(put);
    assert!(killed.elapsed() < std::time::Duration::from_secs(4), "{:?}", killed.elapsed());
    let why = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{why}");
    assert!(why.contains("owner that reserved it is gone"), "{why}");
    assert!(!why.contains("is gone (the pool's owner"), "said once: {why}");
    drop(stdin);
}

#[test]
fn a_source_of_another_length_than_told_is_refused_whole() {
    let server = Server::start();
    for (bytes, told) in [(5000, "4096"), (5000, "6000")] {
        let mut command = server.command(&["put", "-", "a", "--size", told]);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), &noise(bytes)).unwrap();
        let output = output_of(child);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("nothing was put"), "{}", text(&output.stderr));
    }
    assert_eq!(server.json(&["ls"])["nr_files"], 0);
    assert_eq!(server.json(&["stat"])["free_bytes"], 64 << 20);
}

#[test]
fn a_target_that_cannot_be_written_is_an_error_and_a_device_is_not_replaced() {
    let server = Server::start();
    let file = server.file("in", &noise(5000));
    server.good(&["put", &file, "a"]);
    assert!(server.fails(&["get", "a", "/nowhere/at/all"], 1).contains("/nowhere/at/all"));
    server.good(&["get", "a", "/dev/null"]);
    assert!(!std::fs::metadata("/dev/null").unwrap().is_file());
}

#[test]
fn names_of_any_bytes_come_back_exactly_from_every_verb_that_prints_them() {
    let server = Server::start();
    let odd: [&[u8]; 7] =
        [b"a\\nb", b"a\nb", b"\xff", b"\\xff", "é \u{202e}".as_bytes(), b"\xc3\x28\"", b" "];
    let file = server.file("in", b"bytes");
    let path = std::path::PathBuf::from(&file);
    for name in odd {
        let put = server.json_os(&["put".as_ref(), path.as_os_str(), OsStr::from_bytes(name)]);
        assert_eq!(exact(&put, "name"), name);
    }
    let listing = server.json(&["ls"]);
    let mut listed: Vec<Vec<u8>> =
        listing["files"].as_array().unwrap().iter().map(|file| exact(file, "name")).collect();
    listed.sort();
    let mut wanted: Vec<Vec<u8>> = odd.iter().map(|name| name.to_vec()).collect();
    wanted.sort();
    assert_eq!(listed, wanted);
    let table = server.good(&["ls", "-q"]);
    assert_eq!(table.lines().count(), 1 + odd.len(), "a name never takes two lines: {table}");
    for row in [r"a\\nb ", r"a\nb ", r"\xff ", r"\\xff "] {
        assert!(table.lines().any(|line| line.starts_with(row)), "{row} in {table}");
    }
    let client = pgmap::Client::connect(server.path("socket")).unwrap();
    for name in odd {
        let os = OsStr::from_bytes(name);
        let verb = |verb: &str| server.json_os(&[verb.as_ref(), os]);
        assert_eq!(exact(&verb("stat"), "name"), name);
        if let Ok(text) = std::str::from_utf8(name) {
            assert_eq!(verb("stat")["name"], text, "UTF-8 is itself");
        }
        let pin = client.get(name).unwrap();
        let who = verb("who");
        assert_eq!(exact(&who, "name"), name);
        assert_eq!(exact(&who["holders"][0], "file"), name);
        let held = server.error(&["truncate".as_ref(), os, "0".as_ref(), "--deadline=0".as_ref()]);
        assert_eq!((&held["kind"], exact(&held, "name")), (&json!("held"), name.to_vec()));
        assert_eq!(exact(&held["holders"][0], "file"), name);
        drop(pin);
        assert_eq!(exact(&verb("rm"), "removed"), name);
        let gone = server.error(&["get".as_ref(), os, "/dev/null".as_ref()]);
        assert_eq!((&gone["kind"], exact(&gone, "name")), (&json!("not_found"), name.to_vec()));
    }
}

#[test]
fn get_keeps_mode_owner_links_and_what_is_no_file() {
    let server = Server::start();
    let file = server.file("in", &noise(9000));
    server.good(&["put", &file, "a"]);
    let path = |name: &str| server.path(name).to_str().unwrap().to_owned();
    let mode = |place: &str| std::fs::metadata(place).unwrap().mode() & 0o7777;
    for (name, bits) in [("secret", 0o600), ("shared", 0o664), ("script", 0o755)] {
        let place = server.file(name, &noise(20_000));
        std::fs::set_permissions(&place, Permissions::from_mode(bits)).unwrap();
        let before = std::fs::metadata(&place).unwrap().ino();
        server.good(&["get", "a", &place]);
        assert_eq!(mode(&place), bits, "{name}");
        assert!(std::fs::read(&place).unwrap() == noise(9000), "{name}");
        assert_ne!(std::fs::metadata(&place).unwrap().ino(), before, "whole or not at all");
    }
    // As the umask wants it where nothing was.
    server.good(&["get", "a", &path("new")]);
    let plain = server.file("plain", b"");
    assert_eq!(mode(&path("new")), mode(&plain));
    // Hard links stay one file, symbolic links stay links, also those to nothing yet.
    let linked = server.file("linked", &noise(100_000));
    std::fs::hard_link(&linked, path("other")).unwrap();
    server.good(&["get", "a", &linked]);
    assert!(std::fs::read(path("other")).unwrap() == noise(9000));
    std::os::unix::fs::symlink("linked", path("to-linked")).unwrap();
    std::os::unix::fs::symlink("not-yet", path("to-nothing")).unwrap();
    for link in ["to-linked", "to-nothing"] {
        server.good(&["get", "a", &path(link)]);
        assert!(std::fs::symlink_metadata(path(link)).unwrap().is_symlink(), "{link}");
        assert!(std::fs::read(path(link)).unwrap() == noise(9000), "{link}");
    }
    // The longest name that a file can have.
    let long = path(&"n".repeat(255));
    server.good(&["get", "a", &long]);
    assert!(std::fs::read(&long).unwrap() == noise(9000));
    // A directory is refused and stays; a pipe gets the bytes.
    std::fs::create_dir(path("dir")).unwrap();
    for place in [path("dir"), path("dir/"), path("nowhere/")] {
        let error = server.error(&["get".as_ref(), "a".as_ref(), place.as_ref()]);
        assert_eq!(error["kind"], "system", "{place}: {error}");
    }
    rustix::fs::mkfifoat(rustix::fs::CWD, path("pipe"), rustix::fs::Mode::RWXU).unwrap();
    let pipe = path("pipe");
    let reader = std::thread::spawn(move || std::fs::read(pipe).unwrap());
    server.good(&["get", "a", &path("pipe")]);
    assert!(reader.join().unwrap() == noise(9000));
    assert!(!std::fs::metadata(path("pipe")).unwrap().is_file());
    nothing_is_left(&server);
}

#[test]
fn get_as_an_ordinary_user_keeps_owners_and_writes_where_no_file_can_be_made() {
    let Some(user) = User::new("get_as_an_ordinary_user_keeps_owners") else { return };
    let server = Server::start_as(&user);
    let file = server.file("in", &noise(9000));
    server.good(&["put", &file, "a"]);
    // root's file in the user's directory, which everybody may write: it stays root's.
    let others = server.file("others", &noise(20_000));
    std::fs::set_permissions(&others, Permissions::from_mode(0o666)).unwrap();
    server.good(&["get", "a", &others]);
    let after = std::fs::metadata(&others).unwrap();
    assert_eq!((after.uid(), after.mode() & 0o7777), (0, 0o666));
    assert!(std::fs::read(&others).unwrap() == noise(9000));
    // The user's file in a directory that only root may change.
    std::fs::create_dir(server.path("fixed")).unwrap();
    let inside = server.file("fixed/inside", &noise(20_000));
    std::os::unix::fs::chown(&inside, Some(user.id), None).unwrap();
    server.good(&["get", "a", &inside]);
    assert!(std::fs::read(&inside).unwrap() == noise(9000));
    let denied = server.error(&["get".as_ref(), "a".as_ref(), server.path("fixed/no").as_os_str()]);
    assert_eq!(denied["errno"], json!({"name": "EACCES", "number": 13}));
    // A file that nobody may write is not replaced behind its owner's back.
    let locked = server.file("locked", b"precious");
    std::os::unix::fs::chown(&locked, Some(user.id), None).unwrap();
    std::fs::set_permissions(&locked, Permissions::from_mode(0o400)).unwrap();
    server.fails(&["get", "a", &locked], 1);
    assert_eq!(std::fs::read(&locked).unwrap(), b"precious");
}

#[test]
fn get_onto_a_full_disk_leaves_the_old_file_and_nothing_else() {
    let server = Server::start();
    let file = server.file("in", &noise(8 << 20));
    server.good(&["put", &file, "a"]);
    let disk = server.path("disk");
    std::fs::create_dir(&disk).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=4M", "none"])
        .arg(&disk)
        .output()
        .unwrap();
    if !mounted.status.success() {
        println!("skipped: get_onto_a_full_disk: mounting is not allowed here (needs root)");
        return;
    }
    for links in [1, 2] {
        let old = server.file("disk/old", b"what was there");
        if links == 2 {
            std::fs::hard_link(&old, server.path("disk/other")).unwrap();
        }
        let error = server.error(&["get".as_ref(), "a".as_ref(), old.as_ref()]);
        assert_eq!(error["errno"]["name"], "ENOSPC", "{error}");
        assert_eq!(std::fs::read(&old).unwrap(), b"what was there");
        assert_eq!(std::fs::read_dir(&disk).unwrap().count(), links);
    }
    // Something mounted on the file itself: another cannot take its place.
    let place = server.file("place", b"old");
    let over = server.file("over", b"under the mount");
    let bind = std::process::Command::new("mount").args(["--bind", &over, &place]).status();
    assert!(bind.unwrap().success());
    server.good(&["get", "a", &place]);
    assert!(std::fs::read(&over).unwrap() == noise(8 << 20));
    for mount in [place.as_ref(), disk.as_os_str()] {
        std::process::Command::new("umount").arg(mount).status().unwrap();
    }
}

#[test]
fn get_that_a_signal_ends_leaves_nothing_and_an_ignored_signal_ends_nothing() {
    let server = Server::start();
    let bytes = noise(40 << 20);
    server.pipe(&["put", "-", "a", "--size", "40M"], &bytes);
    for (signal, code) in [(Signal::HUP, 129), (Signal::INT, 130), (Signal::TERM, 143)] {
        let out = server.file("out", b"what was there");
        let mut get = server.command(&["get", "a", &out]);
        let mut get = get.stderr(Stdio::null()).spawn().unwrap();
        // Stopped where it may be: before, while, or after it writes.
        std::thread::sleep(std::time::Duration::from_millis(8));
        send(&get, signal);
        let status = ended(&mut get);
        let ended = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap();
        let left = std::fs::read(&out).unwrap();
        match ended {
            0 => assert!(left == bytes),
            _ => assert!(ended == code && left == b"what was there", "{ended} {}", left.len()),
        }
        nothing_is_left(&server);
    }
    let out = server.path("ignored");
    let script = format!(
        "trap '' INT HUP; '{}' get a '{}' & get=$!; kill -INT $get; kill -HUP $get; wait $get",
        env!("CARGO_BIN_EXE_pgmap"),
        out.display()
    );
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &script]).env("PGMAP_SOCKET", server.path("socket"));
    assert_eq!(shell.status().unwrap().code(), Some(0));
    assert!(std::fs::read(out).unwrap() == bytes);
}

#[test]
fn empty_files_go_in_and_out() {
    let mut server = Server::start();
    let empty = server.file("in", b"");
    server.good(&["put", &empty, "by-path"]);
    assert_eq!(server.json_os(&["put".as_ref(), "-".as_ref(), "by-pipe".as_ref()])["len_bytes"], 0);
    server.good(&["put", "/dev/null", "by-device", "--size", "0"]);
    let some = server.file("some", &noise(70_000));
    server.good(&["put", &some, "cut"]);
    assert_eq!(server.json(&["truncate", "cut", "0"])["len_bytes"], 0);
    server.signal(Signal::TERM);
    server.restart();
    let names = ["by-device", "by-path", "by-pipe", "cut"];
    let listing = server.json(&["ls"]);
    for (file, name) in listing["files"].as_array().unwrap().iter().zip(names) {
        assert_eq!((&file["name"], &file["len_bytes"]), (&json!(name), &json!(0)));
        assert_eq!(file["state"], "live");
        let out = server.file("out", b"what was there");
        server.good(&["get", name, &out]);
        assert_eq!(std::fs::read(out).unwrap(), b"");
        assert_eq!(server.pipe(&["get", name], b""), b"");
        assert_eq!(server.json(&["who", name])["nr_holders"], 0);
    }
    assert_eq!(server.json(&["stat"])["free_bytes"], 64 << 20);
}

#[test]
fn put_reads_what_is_there_whatever_length_the_system_says() {
    let server = Server::start();
    server.good(&["put", "/proc/version", "proc"]);
    assert!(server.pipe(&["get", "proc"], b"") == std::fs::read("/proc/version").unwrap());
    let lies = "/sys/kernel/mm/transparent_hugepage/enabled";
    if std::fs::metadata(lies).is_ok() {
        server.good(&["put", lies, "sys"]);
        assert!(server.pipe(&["get", "sys"], b"") == std::fs::read(lies).unwrap());
    }
    // From where stdin stands, not from the start of its file.
    let file = server.file("in", &noise(9 << 20));
    let mut open = std::fs::File::open(&file).unwrap();
    std::io::Seek::seek(&mut open, std::io::SeekFrom::Start(5000)).unwrap();
    let mut put = server.command(&["put", "-", "rest"]);
    assert!(put.stdin(open).status().unwrap().success());
    assert!(server.pipe(&["get", "rest"], b"") == noise(9 << 20)[5000..]);
    let error = server.error(&["put".as_ref(), "/dev/zero".as_ref(), "a".as_ref()]);
    assert_eq!((&error["kind"], &error["errno"]["name"]), (&json!("too_large"), &json!("EFBIG")));
    // A file that grows while it is put: all of it, or an error, never a part.
    let grown = server.file("grown", &noise(30 << 20));
    let mut more = std::fs::File::options().append(true).open(&grown).unwrap();
    let mut put = server.command(&["put", &grown, "grown"]).spawn().unwrap();
    std::io::Write::write_all(&mut more, b"and more").unwrap();
    if ended(&mut put).success() {
        let got = server.pipe(&["get", "grown"], b"");
        assert!(got[..30 << 20] == noise(30 << 20));
        assert!(matches!(&got[30 << 20..], b"" | b"and more"), "{}", got.len());
    }
    assert_eq!(server.json(&["stat"])["reserved_bytes"], 0);
}

#[test]
fn what_cannot_be_written_out_is_an_error_to_the_last_byte() {
    let server = Server::start();
    server.pipe(&["put", "-", "short"], b"abc");
    server.pipe(&["put", "-", "long"], &noise(1 << 20));
    for arguments in [&["get", "short"][..], &["get", "long"], &["ls"], &["stat"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = server.command(arguments);
        let output = command.stdout(full).stderr(Stdio::piped()).spawn().unwrap();
        let output = output_of(output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(text(&output.stderr).contains("No space left"), "{arguments:?}");
    }
    // The limit of the process, whose signal would end it.
    let old = server.file("old", b"what was there");
    let script =
        format!("ulimit -f 8; exec '{}' get long '{old}' --json", env!("CARGO_BIN_EXE_pgmap"));
    let mut shell = std::process::Command::new("sh");
    let output = run(shell.args(["-c", &script]).env("PGMAP_SOCKET", server.path("socket")));
    let error: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["errno"]["name"], "EFBIG", "{error}");
    assert_eq!(std::fs::read(&old).unwrap(), b"what was there");
    nothing_is_left(&server);
}

/// The runtime puts `/dev/null` in the place of a closed stdout, and all that was written there was
/// lost.
#[test]
fn what_is_written_to_a_closed_stdout_is_an_error() {
    let server = Server::start();
    let file = server.file("in", &noise(5000));
    let run = |arguments: &str| {
        let script = format!("exec '{}' {arguments} >&-", env!("CARGO_BIN_EXE_pgmap"));
        let mut shell = std::process::Command::new("sh");
        server::run(shell.args(["-c", &script]).env("PGMAP_SOCKET", server.path("socket")))
    };
    // What writes nothing there needs none.
    for arguments in [format!("put '{file}' a"), format!("get a '{file}'")] {
        assert_eq!(run(&arguments).status.code(), Some(0), "{arguments}");
    }
    for arguments in ["get a", "get a -", "ls", "stat a --json", "rm nope --json", "--help", "man"]
    {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments}");
        assert!(!output.stderr.is_empty(), "{arguments}");
    }
    assert!(text(&run("get a").stderr).contains("Bad file descriptor"));
    assert_eq!(run("rm a").status.code(), Some(0));
}

fn nothing_is_left(server: &Server) {
    let left = std::fs::read_dir(server.directory.path()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.as_bytes().starts_with(b".pgmap-")), "{left:?}");
}

/// The bytes that a result says exactly, of a field or of a list of one.
fn exact(value: &serde_json::Value, field: &str) -> Vec<u8> {
    let encoded = &value[format!("{field}_base64")];
    let encoded = encoded.as_str().or(encoded[0].as_str());
    BASE64_STANDARD.decode(encoded.unwrap_or_else(|| panic!("{field} in {value}"))).unwrap()
}
