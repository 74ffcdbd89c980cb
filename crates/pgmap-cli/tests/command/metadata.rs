//! put --meta and --checksum, get --verify, check --data; events.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::process::Stdio;

use crate::server::{Server, ended, noise, send};
use serde_json::Value;

#[test]
fn metadata_and_checksum_are_shown_as_they_were_put_and_verified() {
    let mut server = Server::start();
    let file = server.file("in", &noise(300_000));
    let shape = server.file("shape", b"f16\n128");
    server.good(&["put", &file, "a", "--meta", &format!("@{shape}"), "--checksum"]);
    server.good(&["put", &file, "b", "--meta", "plain"]);
    let stat = server.json(&["stat", "a"]);
    assert_eq!(stat["metadata"], "f16\n128");
    assert_eq!(stat["metadata_base64"], "ZjE2CjEyOA==");
    let checksum = stat["checksum"].as_u64().unwrap();
    assert!(server.good(&["stat", "a"]).contains(&format!("{checksum:#010x}")));
    server.signal(rustix::process::Signal::TERM);
    server.restart();
    let files = server.json(&["ls"]);
    assert_eq!(files["files"][0]["checksum"], checksum);
    assert_eq!(
        (&files["files"][1]["checksum"], &files["files"][1]["metadata"]),
        (&Value::Null, &"plain".into())
    );
    let out = server.file("out", b"");
    server.good(&["get", "a", &out, "--verify"]);
    assert!(std::fs::read(&out).unwrap() == noise(300_000));
    assert!(server.fails(&["get", "b", "--verify"], 1).contains("--checksum"));
    let long = "x".repeat(257);
    assert!(server.fails(&["put", &file, "c", "--meta", &long], 1).contains("257"));
    assert!(server.fails(&["put", &file, "c", "--meta", "@/not"], 1).contains("/not"));
    // Somebody writes where only the owner's clients should.
    let data = File::options().read(true).write(true).open(server.path("pool/data")).unwrap();
    let mut bytes = vec![0; data.metadata().unwrap().len() as usize];
    data.read_exact_at(&mut bytes, 0).unwrap();
    let start = &noise(300_000)[..4096];
    let page = bytes.chunks(4096).position(|page| page == start).unwrap() as u64;
    for page in (page..).take(600).filter(|&page| bytes[page as usize * 4096..].starts_with(start))
    {
        data.write_all_at(b"!", page * 4096 + 99).unwrap();
    }
    let out = server.file("out", b"as before");
    let error = server.fails(&["get", "a", &out, "--verify"], 1);
    assert!(error.contains(&format!("{checksum:#010x}")), "{error}");
    assert_eq!(std::fs::read(&out).unwrap(), b"as before");
    server.good(&["get", "a", &out]);
}

#[test]
fn events_follow_a_prefix_line_by_line() {
    let server = Server::start();
    let file = server.file("in", &noise(5000));
    let arguments = ["events", "--prefix", "kv/", "--count", "3", "--json"];
    let mut follower = server.command(&arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut endless = server.command(&["events"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut text = BufReader::new(endless.stdout.take().unwrap());
    // Whoever is not subscribed yet misses what comes before: the marks show when both are.
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let maker = std::thread::scope(|scope| {
        let puts = scope.spawn(|| {
            for _ in 0..40 {
                server.good(&["put", &file, "kv/a"]);
                server.good(&["rm", "kv/a"]);
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        });
        let events: Vec<Value> =
            lines.by_ref().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
        let mut first = String::new();
        text.read_line(&mut first).unwrap();
        assert!(first.starts_with("1 ") && first.ends_with(" kv/a\n"), "{first}");
        (puts.join().is_ok(), events)
    });
    let (is_put, events) = maker;
    assert!(is_put && events.len() == 3, "{events:?}");
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["schema"], "pgmap.event/1");
        assert_eq!(event["sequence"], number as u64 + 1);
        assert_eq!((&event["name"], &event["nr_missed"]), (&"kv/a".into(), &0.into()));
        assert!(["created", "removed", "drained"].contains(&event["change"].as_str().unwrap()));
    }
    assert!(ended(&mut follower).success());
    send(&endless, rustix::process::Signal::TERM);
    assert!(!ended(&mut endless).success());
    assert!(server.fails(&["events", "--only", "burnt"], 2).contains("evicted"));
}
