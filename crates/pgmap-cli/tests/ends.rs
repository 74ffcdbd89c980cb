//! How the command ends: exit codes, messages, signals, restarts.

mod server;

use rustix::process::Signal;
use serde_json::Value;
use server::{Server, noise, pgmap, text, until};

#[test]
fn a_wrong_command_line_is_2_and_says_what_to_write() {
    let server = Server::start();
    for arguments in [
        &["nonsense"][..],
        &["ls", "--nonsense"],
        &["rm"],
        &["truncate", "a", "1.5G"],
        &["truncate", "a", "99999999999999T"],
        &["serve", "--size", "2GB"],
        &["serve", "--huge", "3M"],
        &["get", "a", "--json"],
        &["man", "nonsense"],
        &["demo", "--seconds", "100"],
    ] {
        let stderr = server.fails(arguments, 2);
        assert!(!stderr.is_empty(), "{arguments:?}");
    }
    assert!(server.fails(&["serve", "--size", "2GB"], 2).contains("GiB"));
}

#[test]
fn what_is_not_there_is_1() {
    let server = Server::start();
    for arguments in
        [&["get", "nope"][..], &["stat", "nope"], &["who", "nope"], &["truncate", "nope", "1"]]
    {
        let stderr = server.fails(arguments, 1);
        assert_eq!(stderr, "pgmap: no file \"nope\" in the pool\n", "{arguments:?}");
    }
    server.fails(&["put", "/nowhere/at/all", "a"], 1);
    server.fails(&["put", "/", "a"], 1);
    let output = server.run(&["stat", "nope", "--json"]);
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["schema"], "pgmap.error/1");
    assert_eq!(error["exit_code"], 1);
}

#[test]
fn nobody_there_is_1_and_says_how_to_start_one() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("none");
    let output = pgmap().arg("ls").arg("--socket").arg(&socket).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("nobody serves at") && stderr.contains("pgmap serve"), "{stderr}");
    assert!(stderr.contains(socket.to_str().unwrap()), "{stderr}");
}

#[test]
fn a_held_file_is_124_at_the_deadline_and_3_without_one_and_names_the_holder() {
    let server = Server::start();
    let file = server.file("in", &noise(1 << 20));
    server.good(&["put", &file, "a", "--folio", "4K"]);
    let client = pgmap::Client::connect(server.path("socket")).unwrap();
    let pin = client.get("a").unwrap();
    let own = format!("(pid {})", std::process::id());
    let late = server.fails(&["truncate", "a", "4096", "--deadline", "50"], 124);
    assert!(late.contains(&own) && late.contains("pin of 0x"), "{late}");
    let busy = server.fails(&["truncate", "a", "4096", "--deadline", "0"], 3);
    assert!(busy.contains(&own), "{busy}");
    let output = server.run(&["truncate", "a", "4096", "--deadline", "50", "--json"]);
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["exit_code"], 124);
    assert_eq!(error["holders"][0]["pid"], std::process::id());
    assert_eq!(server.json(&["stat", "a"])["len_bytes"], 1 << 20, "as before");
    drop(pin);
    server.good(&["truncate", "a", "4096", "--deadline", "5000"]);
}

#[test]
fn a_quarantining_truncate_is_4_and_the_memory_comes_back_with_the_last_holder() {
    let server = Server::start();
    let file = server.file("in", &noise(1 << 20));
    server.good(&["put", &file, "a", "--folio", "4K"]);
    let client = pgmap::Client::connect(server.path("socket")).unwrap();
    let pin = client.get("a").unwrap();
    let arguments = ["truncate", "a", "4096", "--deadline", "30", "--quarantine"];
    let stderr = server.fails(&arguments, 4);
    assert!(stderr.contains(&format!("(pid {})", std::process::id())), "{stderr}");
    assert_eq!(server.json(&["stat", "a"])["len_bytes"], 4096);
    assert_eq!(server.json(&["stat"])["quarantined_bytes"], (1 << 20) - 4096);
    drop(pin);
    until("it is free", || server.json(&["stat"])["free_bytes"] == (64 << 20) - 4096);
}

#[test]
fn a_second_owner_is_refused_as_busy() {
    let server = Server::start();
    let (pool, socket) = (server.path("pool"), server.path("socket"));
    let elsewhere = server.path("elsewhere");
    let (pool, socket) = (pool.to_str().unwrap(), socket.to_str().unwrap());
    let elsewhere = elsewhere.to_str().unwrap();
    let stderr = server.fails(&["serve", "--pool", pool, "--socket", elsewhere], 3);
    assert!(stderr.contains("owner") && stderr.contains(pool), "{stderr}");
    let stderr = server.fails(&["serve", "--pool", elsewhere, "--socket", socket], 3);
    assert!(stderr.contains("in use") && stderr.contains("pgmap"), "{stderr}");
    server.good(&["ls"]);
}

#[test]
fn a_pool_of_another_size_than_asked_is_refused() {
    let mut server = Server::start();
    server.signal(Signal::TERM);
    server.child.wait().unwrap();
    let pool = server.path("pool");
    let stderr = server.fails(&["serve", "--pool", pool.to_str().unwrap(), "--size", "128M"], 1);
    assert!(stderr.contains("67108864"), "{stderr}");
    server.restart();
}

#[test]
fn a_signal_stops_the_server_cleanly_and_its_files_are_found_again() {
    let mut server = Server::start();
    let bytes = noise(3 << 20);
    let file = server.file("in", &bytes);
    server.good(&["put", &file, "kept"]);
    for signal in [Signal::TERM, Signal::INT] {
        server.signal(signal);
        assert!(server.child.wait().unwrap().success());
        assert!(!server.path("socket").exists());
        server.fails(&["ls"], 1);
        server.restart();
        assert!(server.pipe(&["get", "kept"], b"") == bytes);
    }
    server.signal(Signal::KILL);
    server.restart();
    assert!(server.pipe(&["get", "kept"], b"") == bytes, "after kill -9 too");
    until("nobody else is attached", || server.json(&["stat"])["nr_clients"] == 1);
}

#[test]
fn manual_pages_and_completions_are_made_for_every_verb_and_shell() {
    let help = text(&pgmap().arg("--help").output().unwrap().stdout);
    for verb in [
        "serve", "put", "get", "ls", "stat", "rm", "mv", "truncate", "punch", "who", "poison",
        "repair", "debug", "demo",
    ] {
        assert!(help.contains(verb), "{verb}");
        let page = pgmap().args(["man", verb]).output().unwrap();
        assert!(page.status.success());
        let page = text(&page.stdout);
        assert!(page.contains(".TH") && page.contains(verb), "{page}");
    }
    assert!(!help.contains("demo-child") && help.contains("124"));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = pgmap().args(["completions", shell]).output().unwrap();
        assert!(script.status.success() && text(&script.stdout).contains("truncate"), "{shell}");
    }
}
