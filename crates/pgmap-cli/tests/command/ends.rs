//! How the command ends: exit codes, messages, signals, restarts.

use std::process::{Command, Stdio};

use crate::server::{self, Server, User, ended, noise, output_of, pgmap, run, send, text, until};
use rustix::process::Signal;
use serde_json::Value;

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
    let output = run(pgmap().args(["ls", "--wait", "50"]).arg("--socket").arg(&socket));
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
fn a_drain_waits_for_holders_names_them_and_ends_the_owner() {
    let mut server = Server::start();
    let bytes = noise(1 << 20);
    let file = server.file("in", &bytes);
    server.good(&["put", &file, "a", "--folio", "4K"]);
    let client = pgmap::Client::connect(server.path("socket")).unwrap();
    let pin = client.get("a").unwrap();
    let own = format!("(pid {})", std::process::id());
    let late = server.fails(&["drain", "--deadline", "50ms"], 124);
    assert!(late.contains(&own) && late.contains("pin of 0x"), "{late}");
    let busy = server.fails(&["drain", "--deadline", "0"], 3);
    assert!(busy.contains(&own), "{busy}");
    assert!(server.fails(&["drain", "--deadline", "1.5s"], 2).contains("30s, 500ms"));
    // It is open as before.
    assert_eq!(server.pipe(&["get", "a"], b""), bytes);
    server.good(&["put", &file, "b"]);
    // The holder lets go while the drain waits.
    let mut drain = server.command(&["drain", "--json"]);
    let drain = drain.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("nobody new gets in", || {
        let put = server.run(&["put", &file, "c", "--json"]);
        let error: Value = serde_json::from_slice(&put.stdout).unwrap();
        error["kind"] == "denied" && text(&put.stderr).contains("drained")
    });
    assert!(client.get("a").is_err(), "a new pin is refused");
    let mut first = [0; 16];
    pin.read_at(0, &mut first).unwrap();
    assert_eq!(first, bytes[..16], "what is held stays");
    drop(pin);
    let output = output_of(drain);
    let done: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(done["schema"], "pgmap.drain/1", "{}", text(&output.stderr));
    assert!(ended(&mut server.child).success());
    server.restart();
    assert_eq!(server.pipe(&["get", "a"], b""), bytes);
    server.good(&["drain"]);
    // The next server would have been refused as long as this one had the pool.
    assert!(server.child.try_wait().unwrap().is_some_and(|status| status.success()));
}

#[test]
fn a_backing_is_drained_given_up_and_added_again_while_the_rest_is_served() {
    let server = Server::start_with(&["--room", "2GiB"]);
    let bytes = noise(1 << 20);
    let (file, far) = (server.file("in", &bytes), server.path("far"));
    server.good(&["backing", "add", far.to_str().unwrap(), "--size", "8M"]);
    server.good(&["put", &file, "a", "--only", "far"]);
    server.good(&["put", &file, "b", "--only", "data"]);
    let client = pgmap::Client::connect(server.path("socket")).unwrap();
    let pin = client.get("a").unwrap();
    let own = format!("(pid {})", std::process::id());
    let late = server.fails(&["drain", "far", "--deadline", "50ms"], 124);
    assert!(late.contains(&own) && late.contains("pin of 0x"), "{late}");
    assert_eq!(server.pipe(&["get", "a"], b""), bytes, "as before");
    let mut drain = server.command(&["drain", "far", "--json"]);
    let drain = drain.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("nobody new gets in", || client.get("a").is_err());
    assert_eq!(server.pipe(&["get", "b"], b""), bytes, "the rest is served");
    server.good(&["put", &file, "c"]);
    drop(pin);
    let output = output_of(drain);
    let done: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(done["backing"], "far", "{}", text(&output.stderr));
    let listed = server.good(&["backing", "ls"]);
    assert!(listed.contains("it was drained"), "{listed}");
    let error = server.fails(&["get", "a"], 1);
    assert!(error.contains("\"far\"") && error.contains("drained"), "{error}");
    server.good(&["stat", "a"]);
    server.good(&["backing", "add", far.to_str().unwrap()]);
    assert_eq!(server.pipe(&["get", "a"], b""), bytes);
    // A part of it stays out of use.
    server.good(&["drain", "far:2M.."]);
    let error = server.fails(&["get", "a"], 3);
    assert!(error.contains("drained with the memory"), "{error}");
    assert!(server.good(&["backing", "ls"]).contains("are drained"));
    server.good(&["drain", "far", "--undo"]);
    assert_eq!(server.pipe(&["get", "a"], b""), bytes);
}

/// Frames of a dead client's device were out of use until the machine restarted.
#[test]
fn the_quarantine_is_listed_by_client_and_released_by_an_operator() {
    let server = Server::start_in_memory();
    let file = server.file("in", &noise(1 << 20));
    server.good(&["put", &file, "a", "--folio", "4K"]);
    let client = pgmap::Client::connect(server.path("socket")).unwrap();
    let id = client.id().to_string();
    std::mem::forget(client.open("a").unwrap().pin_for_device(0..1 << 20).unwrap());
    assert_eq!(server.json(&["quarantine", "ls"])["clients"], serde_json::json!([]));
    drop(client);
    until("it is dead", || server.json(&["stat"])["orphaned_bytes"] == 1 << 20);
    let listed = server.json(&["quarantine", "ls"]);
    assert_eq!(listed["clients"][0]["pid"], std::process::id(), "{listed}");
    assert_eq!(listed["clients"][0]["orphaned_bytes"], 1 << 20, "{listed}");
    let table = server.good(&["quarantine", "ls"]);
    assert!(table.contains("unknown") && table.contains(&id), "{table}");
    // A drain cannot know that the device is done.
    let late = server.fails(&["drain", "--deadline", "50ms"], 124);
    assert!(late.contains(&id) && late.contains("quarantine ls"), "{late}");
    assert!(server.fails(&["quarantine", "release", "9999"], 1).contains("9999"));
    server.good(&["quarantine", "release", &id]);
    until("it is released", || server.json(&["stat"])["orphaned_bytes"] == 0);
    assert_eq!(server.json(&["quarantine", "ls"])["clients"], serde_json::json!([]));
    server.good(&["drain", "--deadline", "5s"]);
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
    ended(&mut server.child);
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
        assert!(ended(&mut server.child).success());
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
    let help = text(&run(pgmap().arg("--help")).stdout);
    for verb in [
        "serve", "put", "get", "ls", "stat", "rm", "mv", "truncate", "punch", "who", "poison",
        "repair", "debug", "demo",
    ] {
        assert!(help.contains(verb), "{verb}");
        let page = run(pgmap().args(["man", verb]));
        assert!(page.status.success());
        let page = text(&page.stdout);
        assert!(page.contains(".TH") && page.contains(verb), "{page}");
    }
    assert!(!help.contains("demo-child") && help.contains("124"));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(pgmap().args(["completions", shell]));
        assert!(script.status.success() && text(&script.stdout).contains("truncate"), "{shell}");
    }
}

#[test]
fn an_error_has_a_kind_and_an_errno_and_the_exit_code_that_it_had() {
    let server = Server::start();
    let file = server.file("in", &noise(5000));
    server.good(&["put", &file, "a"]);
    server.good(&["put", &file, "raw", "--raw"]);
    let long = "x".repeat(300);
    for (arguments, kind, errno, code) in [
        (&["get", "nope", "/dev/null"][..], "not_found", "ENOENT", 1),
        (&["put", &file, "a"], "exists", "EEXIST", 1),
        (&["mv", "raw", "a"], "exists", "EEXIST", 1),
        (&["put", &file, "b", "--folio", "1G"], "bad_length", "EINVAL", 1),
        (&["put", "-", "b", "--size", "60M", "--folio", "2M"], "wrong_length", "EINVAL", 1),
        (&["put", &file, &long], "bad_name", "EINVAL", 1),
        (&["get", "raw", "/dev/null"], "raw", "EFAULT", 1),
        (&["put", "/nowhere/at/all", "b"], "system", "ENOENT", 1),
        (&["put", "/", "b"], "is_a_directory", "EISDIR", 1),
        (&["repair", "a", "0", "--zero"], "invalid", "EINVAL", 1),
        (&["stat", "a", "--socket", "/nowhere", "--wait", "0"], "no_owner", "ENOENT", 1),
        (&["get", "a"], "usage", "EINVAL", 2),
        (&["get", "a", "b", "c"], "usage", "EINVAL", 2),
    ] {
        let output = server.run(&[arguments, &["--json"]].concat());
        let error: Value = serde_json::from_slice(&output.stdout).unwrap();
        let got = (error["kind"].as_str(), error["errno"]["name"].as_str(), output.status.code());
        assert_eq!(got, (Some(kind), Some(errno), Some(code)), "{arguments:?}: {error}");
        assert_eq!(error["exit_code"], code, "{arguments:?}");
        assert!(error["errno"]["number"].as_i64().unwrap() > 0);
    }
    server.pipe(&["put", "-", "big", "--size", "40M"], &noise(40 << 20));
    let full = server.run(&["put", "-", "more", "--size", "40M", "--json"]);
    let error: Value = serde_json::from_slice(&full.stdout).unwrap();
    assert_eq!((&error["kind"], &error["errno"]["name"]), (&"no_space".into(), &"ENOSPC".into()));
    let some: Value =
        serde_json::from_slice(&server.run(&["rm", "nope", "", "a", "--json"]).stdout).unwrap();
    assert_eq!(some["removed"][0], "a", "the others go: {some}");
    let kinds: Vec<&str> =
        some["failed"].as_array().unwrap().iter().map(|f| f["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["bad_name", "not_found"]);
    assert_eq!((&some["schema"], &some["kind"]), (&"pgmap.error/1".into(), &"bad_name".into()));
}

/// It printed a result of its own that said what failed, and no error.
#[test]
fn rm_of_what_is_not_there_is_an_error_object_as_of_any_verb() {
    let server = Server::start();
    server.good(&["put", &server.file("in", b"bytes"), "a"]);
    let error = server.error(&["rm".as_ref(), "missing".as_ref()]);
    let stated = server.error(&["stat".as_ref(), "missing".as_ref()]);
    for field in ["schema", "kind", "errno", "error", "exit_code", "name", "name_base64"] {
        assert_eq!(error[field], stated[field], "{field}");
    }
    assert_eq!(server.json(&["rm", "a"])["schema"], "pgmap.rm/1");
}

#[test]
fn a_verb_waits_for_an_owner_that_is_only_starting() {
    for _ in 0..5 {
        let directory = server::roomy();
        let socket = directory.path().join("socket");
        let mut put = pgmap();
        put.args(["put", "/proc/version", "early", "--wait", "20000"]).env("PGMAP_SOCKET", &socket);
        let mut put = put.spawn().unwrap();
        let mut serve = pgmap();
        serve.args(["serve", "--size", "16M", "--pool"]).arg(directory.path().join("pool"));
        serve.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut serve = serve.env("PGMAP_SOCKET", &socket).spawn().unwrap();
        assert!(ended(&mut put).success());
        server::send(&serve, Signal::TERM);
        ended(&mut serve);
    }
}

#[test]
fn a_pool_has_room_for_as_many_files_as_serve_was_told() {
    let server = Server::start();
    let pool = server.path("other");
    let socket = server.path("other-socket");
    let serve = |more: &[&str]| {
        let mut command = pgmap();
        command.arg("serve").arg("--pool").arg(&pool).arg("--socket").arg(&socket).args(more);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        command.spawn().unwrap()
    };
    let mut first = serve(&["--size", "16M", "--max-files", "20"]);
    let other = ["--socket", socket.to_str().unwrap()];
    let file = server.file("in", b"a");
    let mut full = String::new();
    for number in 0..100 {
        let name = format!("f{number}");
        let output = server.run(&[&["put", &file, &name][..], &other].concat());
        if !output.status.success() {
            full = text(&output.stderr);
            break;
        }
        assert!(number < 50, "as many as it likes");
    }
    assert!(full.contains("index") && full.contains("--max-files"), "{full}");
    server::send(&first, Signal::TERM);
    ended(&mut first);
    let refused = output_of(serve(&["--max-files", "30"]));
    let why = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{why}");
    assert!(why.contains("room for 20 files, not 30"), "{why}");
    let none = output_of(serve(&["--max-files", "0"]));
    assert_eq!(none.status.code(), Some(1));
}

#[test]
fn a_default_place_that_another_user_prepared_is_not_trusted_unless_it_is_named() {
    let Some(user) = User::new("a_default_place_that_another_user_prepared") else { return };
    let thief = user.id + 1000;
    let place = std::path::PathBuf::from(format!("/dev/shm/pgmap-{}", user.id));
    let _ = std::fs::remove_dir_all(&place);
    let socket = place.join("pgmap/pgmap.sock");
    let theirs = server::roomy();
    std::os::unix::fs::chown(theirs.path(), Some(thief), None).unwrap();
    let serve = |id: u32| {
        let mut command = user.command_as(id);
        command.args(["serve", "--size", "16M", "--socket"]).arg(&socket);
        command.arg("--pool").arg(theirs.path().join("pool"));
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command.spawn().unwrap()
    };
    let secret = ["put", "/proc/version", "secret", "--json"];
    let ask = |more: &[&str]| {
        let output = run(user.command().args(secret).args(more));
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.success(), answer["kind"].clone(), answer["error"].to_string())
    };
    // The other user's directory, though everybody may use what is in it.
    let mut server = serve(thief);
    until("the other user serves", || socket.exists());
    for path in [&place, &place.join("pgmap"), &socket] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .unwrap();
    }
    let (is_done, kind, why) = ask(&[]);
    assert!(!is_done && kind == "not_trusted", "{why}");
    assert!(why.contains(&format!("user {thief}")) && why.contains("--socket"), "{why}");
    let own = run(user.command().args(["serve", "--size", "16M"]));
    assert_eq!(own.status.code(), Some(1), "{}", text(&own.stderr));
    // A directory of the user's own with a socket in it that the other listens at.
    std::os::unix::fs::chown(&place, Some(user.id), None).unwrap();
    std::os::unix::fs::chown(place.join("pgmap"), Some(user.id), None).unwrap();
    let (is_done, kind, why) = ask(&[]);
    assert!(!is_done && kind == "not_trusted" && why.contains("others may write"), "{why}");
    for path in [&place, &place.join("pgmap")] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .unwrap();
    }
    std::os::unix::fs::chown(&socket, Some(user.id), None).unwrap();
    let (is_done, kind, why) = ask(&[]);
    assert!(!is_done && kind == "not_trusted", "{why}");
    assert!(why.contains(&format!("process of user {thief}")), "{why}");
    // Named, it is the user's own decision.
    let (is_done, _, why) = ask(&["--socket", socket.to_str().unwrap()]);
    assert!(is_done, "{why}");
    server.kill().unwrap();
    ended(&mut server);
    std::fs::remove_dir_all(&place).unwrap();
    // One's own, and root's, are trusted.
    let mut own = user.command();
    own.args(["serve", "--size", "16M"]).stdout(std::process::Stdio::null());
    let mut own = own.stderr(std::process::Stdio::null()).spawn().unwrap();
    until("the user's own server listens", || socket.exists());
    let (is_done, _, why) = ask(&[]);
    assert!(is_done, "{why}");
    own.kill().unwrap();
    ended(&mut own);
    std::fs::remove_dir_all(&place).unwrap();
}

#[test]
fn a_server_that_was_started_to_ignore_hang_ups_lives_on_and_another_stops_cleanly() {
    let mut server = Server::start();
    server.signal(Signal::HUP);
    assert!(ended(&mut server.child).success());
    assert!(!server.path("socket").exists());
    let script = format!(
        "trap '' HUP INT; exec '{}' serve --pool '{}' --socket '{}' >/dev/null 2>&1",
        env!("CARGO_BIN_EXE_pgmap"),
        server.path("pool").display(),
        server.path("socket").display()
    );
    server.child = std::process::Command::new("sh").args(["-c", &script]).spawn().unwrap();
    server.good(&["ls", "--wait", "20000"]);
    server.signal(Signal::HUP);
    server.signal(Signal::INT);
    server.good(&["ls"]);
    server.signal(Signal::TERM);
    assert!(ended(&mut server.child).success());
}

#[test]
fn trim_says_how_much_memory_went_back() {
    let server = Server::start();
    let file = server.file("in", &noise(10 << 20));
    server.good(&["put", &file, "a"]);
    server.good(&["put", &file, "b"]);
    server.good(&["rm", "a"]);
    until("it is free", || server.json(&["stat"])["free_bytes"] == 54 << 20);
    let backed = |of: &Value| of["backed_bytes"].as_u64().unwrap();
    let before = backed(&server.json(&["stat"]));
    let done = server.json(&["trim"]);
    assert_eq!(done["schema"], "pgmap.trim/1");
    let freed = done["freed_bytes"].as_u64().unwrap();
    // A file system on a disk counts blocks of its own, too.
    assert!((10 << 20..11 << 20).contains(&freed), "{done}");
    assert_eq!(before - backed(&done), freed);
    assert!(server.good(&["trim", "-u"]).contains("given back"));
    assert!(server.pipe(&["get", "b"], b"") == noise(10 << 20));
}

/// With room for no client it served, and told each that the pool is full, or that it was gone.
#[test]
fn a_server_that_may_open_few_files_says_so_at_the_start_or_serves_some_clients() {
    let directory = server::roomy();
    let nr_inherited = server::nr_inherited_descriptors(40);
    let start = |limit: u32, log: &str| {
        let place = directory.path().display();
        let limit = limit + nr_inherited;
        let script = format!(
            "ulimit -n {limit}; exec '{}' serve --size 16M --pool '{place}/{limit}'",
            env!("CARGO_BIN_EXE_pgmap")
        );
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).env("PGMAP_SOCKET", directory.path().join("socket"));
        let log = std::fs::File::create(directory.path().join(log)).unwrap();
        shell.stdout(Stdio::null()).stderr(log).spawn().unwrap()
    };
    let said = |log: &str| std::fs::read_to_string(directory.path().join(log)).unwrap();
    // All of them: with 17 the server could not see how many it had, and served nobody.
    for limit in 6..=25 {
        let mut child = start(limit, "refused");
        assert_eq!(ended(&mut child).code(), Some(1), "{limit}: {}", said("refused"));
        let why = said("refused");
        assert!(why.contains("Too many open files") && why.contains("ulimit -n"), "{limit}: {why}");
        assert!(why.lines().count() < 3, "{limit}: {why}");
    }
    let mut child = start(40, "log");
    let client = |arguments: &[&str]| {
        let mut command = pgmap();
        command.args(arguments).env("PGMAP_SOCKET", directory.path().join("socket"));
        command
    };
    until("it serves", || run(&mut client(&["ls"])).status.success());
    // A put more each time: an `ls` may have had the last place while a put was refused.
    let mut many = Vec::new();
    until("it is full", || {
        let mut put = client(&["put", "-", &format!("f{}", many.len()), "--size", "4096"]);
        many.push(put.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
        let output = run(&mut client(&["ls", "--json"]));
        let kind = serde_json::from_slice::<Value>(&output.stdout).unwrap()["kind"].clone();
        assert!(kind.is_null() || kind == "pool_full", "{}", text(&output.stderr));
        kind == "pool_full"
    });
    let ends = many.into_iter().map(output_of);
    for output in ends {
        let why = text(&output.stderr);
        assert!(why.contains("nothing was put") || why.contains("is full"), "{why}");
    }
    until("there is room again", || run(&mut client(&["ls"])).status.success());
    send(&child, Signal::TERM);
    assert_eq!(ended(&mut child).code(), Some(0));
    let log = said("log");
    // One line for each client that was served is right, however often this test looked.
    let others = log.lines().filter(|line| !line.contains("client reaped"));
    assert!(others.count() < 5, "{log}");
}
