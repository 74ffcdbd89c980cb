//! put, get, ls, stat, rm, mv: files through the command.

mod server;

use std::process::Stdio;

use rustix::process::Signal;
use serde_json::json;
use server::{Server, noise, send, text, until};

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
            put.wait().unwrap();
        }
        until("everything is back", || server.json(&["stat"])["free_bytes"] == free);
    }
    assert_eq!(server.json(&["ls"])["nr_files"], 0);
}

#[test]
fn a_source_of_another_length_than_told_is_refused_whole() {
    let server = Server::start();
    for (bytes, told) in [(5000, "4096"), (5000, "6000")] {
        let mut command = server.command(&["put", "-", "a", "--size", told]);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), &noise(bytes)).unwrap();
        let output = child.wait_with_output().unwrap();
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
