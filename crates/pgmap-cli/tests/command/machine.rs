//! Verbs that ask the machine and no owner: `list --devices` and `who PATH`.

use std::fs::File;

use crate::server::{Server, pgmap, run, text};
use serde_json::Value;

fn json(arguments: &[&str]) -> Value {
    let output = run(pgmap().args(arguments).arg("--json"));
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn who_of_a_path_names_this_process_without_any_owner() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let file = File::create(&path).unwrap();
    let shown = path.to_str().unwrap();
    let found = json(&["who", shown]);
    assert_eq!((&found["schema"], &found["file"]), (&"pgmap.who-file/1".into(), &shown.into()));
    let uses = found["uses"].as_array().unwrap();
    let mine: Vec<_> = uses.iter().filter(|one| one["pid"] == std::process::id()).collect();
    assert_eq!(mine.len(), 1, "{found}");
    assert_eq!((&mine[0]["kind"], &mine[0]["is_writable"]), (&"open".into(), &true.into()));
    drop(file);
    assert_eq!(json(&["who", shown])["uses"], Value::Array(Vec::new()));
}

#[test]
fn a_path_that_is_not_there_is_named() {
    let output = run(pgmap().args(["who", "/nonexistent", "--json"]));
    assert_eq!(output.status.code(), Some(1));
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&error["kind"], &error["errno"]["name"]), (&"not_found".into(), &"ENOENT".into()));
    assert!(text(&output.stderr).contains("/nonexistent"));
}

#[test]
fn a_name_in_the_pool_that_looks_like_a_path_can_be_asked_for() {
    let server = Server::start();
    server.pipe(&["put", "-", "/odd"], b"bytes");
    assert_eq!(server.json(&["who", "--in-pool", "/odd"])["schema"], "pgmap.who/1");
    server.fails(&["who", "/odd"], 1);
}

#[test]
fn list_shows_the_machines_memory() {
    let found = json(&["list", "--devices"]);
    assert_eq!(found["schema"], "pgmap.devices/1");
    let mounts = found["mounts"].as_array().unwrap();
    let shared = mounts.iter().find(|mount| mount["path"] == "/dev/shm");
    assert!(shared.is_none_or(|mount| mount["type"] == "tmpfs" && mount["size"].is_u64()));
    for list in ["dax_devices", "pmem_namespaces", "cxl_regions", "huge_pages", "unread"] {
        assert!(found[list].is_array(), "{list}");
    }
}

#[test]
fn list_of_a_place_without_sys_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_str().unwrap();
    let output = run(pgmap().args(["list", "--devices", "--root", root]));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/sys"), "{}", text(&output.stderr));
}
