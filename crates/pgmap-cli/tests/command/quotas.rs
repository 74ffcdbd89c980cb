//! quota, set: what an operator says of a pool that is served.

use serde_json::{Value, json};

use crate::server::{Server, noise};

#[test]
fn a_quota_is_set_listed_kept_and_removed_and_its_refusal_is_for_programs_too() {
    let mut server = Server::start();
    let file = server.file("in", &noise(1 << 20));
    server.good(&["put", &file, "kv/a", "--evictable"]);
    server.good(&["put", &file, "kept"]);
    let set = ["quota", "set", "--prefix", "kv/", "--bytes", "2M", "--files", "1k"];
    server.good(&set);
    server.good(&["quota", "set", "--uid", "4711", "--clients", "7"]);
    server.good(&["quota", "set", "--prefix", "ke", "--files", "1"]);
    server.signal(rustix::process::Signal::TERM);
    server.restart();
    let listing = server.json(&["quota", "ls"]);
    assert_eq!(listing["schema"], "pgmap.quotas/1");
    let quotas = listing["quotas"].as_array().unwrap();
    assert_eq!(quotas.len(), 3);
    assert_eq!((&quotas[0]["uid"], &quotas[0]["max_clients"]), (&json!(4711), &json!(7)));
    let kv = &quotas[2];
    assert_eq!((&kv["prefix"], &kv["uid"]), (&json!("kv/"), &Value::Null));
    assert_eq!((&kv["max_bytes"], &kv["used_bytes"]), (&json!(2 << 20), &json!(1 << 20)));
    assert_eq!((&kv["max_files"], &kv["used_files"]), (&json!(1000), &json!(1)));
    let table = server.good(&["quota", "ls", "-u"]);
    assert!(table.contains("prefix kv/") && table.ends_with("3 quotas\n"), "{table}");
    let refused = server.error(&["put", &file, "ke2"].map(std::ffi::OsStr::new));
    assert_eq!(refused["kind"], "over_quota");
    assert!(refused.to_string().contains("1 files: 1 are used"), "{refused}");
    server.good(&["put", &file, "kv/b", "--evictable"]);
    server.good(&["put", &file, "kv/c", "--evictable"]);
    let names = server.good(&["ls"]);
    assert!(!names.contains("kv/a") && names.contains("kv/c") && names.contains("kept"), "{names}");
    server.good(&["quota", "rm", "--prefix", "kv/"]);
    server.fails(&["quota", "rm", "--prefix", "kv/"], 1);
    let odd = server.fails(&["quota", "set", "--prefix", "x", "--clients", "1"], 1);
    assert!(odd.contains("limit those of a uid"), "{odd}");
    for odd in [
        &["quota", "set", "--prefix", "x"][..],
        &["quota", "set", "--files", "1"],
        &["quota", "set", "--prefix", "x", "--uid", "1", "--files", "1"],
        &["quota", "set", "--uid", "1", "--files", "1G"],
        &["set", "--evict-low", "1M"],
    ] {
        server.fails(odd, 2);
    }
}

#[test]
fn water_marks_are_set_shown_and_kept() {
    let mut server = Server::start();
    let set = server.json(&["set", "--evict-low", "8M", "--evict-high", "16M"]);
    assert_eq!(set["schema"], "pgmap.settings/1");
    server.signal(rustix::process::Signal::TERM);
    server.restart();
    let shown = server.json(&["set"]);
    assert_eq!(
        (&shown["evict_low_bytes"], &shown["evict_high_bytes"]),
        (&json!(8 << 20), &json!(16 << 20))
    );
    let stat = server.json(&["stat"]);
    assert_eq!(stat["evict_low_bytes"], 8 << 20);
    // It looks, and could change nothing.
    assert_eq!((&stat["nr_clients"], &stat["nr_read_only_clients"]), (&json!(1), &json!(1)));
    assert!(
        server
            .fails(&["set", "--evict-low", "2M", "--evict-high", "1M"], 1)
            .contains("water marks")
    );
}
