//! `pgmap backing`: the memories that a pool lies in, through the command.

use crate::server::{Server, noise, send};
use pgmap::Client;
use serde_json::{Value, json};

fn names(listing: &Value) -> Vec<&str> {
    listing["backings"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect()
}

#[test]
fn a_pool_in_two_memories_is_served_again_and_each_file_lies_where_it_was_put() {
    let mut server = Server::start_with(&["--room", "2G"]);
    let near = server.path("near");
    let listing = server.json(&["backing", "add", near.to_str().unwrap(), "--size", "8M"]);
    assert_eq!(listing["schema"], "pgmap.backings/1");
    assert_eq!(names(&listing), ["data", "near"]);
    assert_eq!(listing["backings"][1]["size_bytes"], 8 << 20);
    let file = server.file("in", &noise(4 << 20));
    server.good(&["put", &file, "a", "--only", "near"]);
    server.good(&["put", &file, "b", "--prefer", "near"]);
    server.good(&["put", &file, "c", "--prefer", "near"]);
    let stat = server.json(&["stat"]);
    assert_eq!((&stat["size_bytes"], &stat["free_bytes"]), (&json!(72 << 20), &json!(60 << 20)));
    assert_eq!(stat["backings"][1]["free_bytes"], 0);
    assert!(server.good(&["stat"]).contains("backing near"));
    let full = server.fails(&["put", &file, "d", "--only", "near"], 1);
    assert!(full.contains("0 free on \"near\""), "{full}");
    send(&server.child, rustix::process::Signal::KILL);
    server.restart();
    for name in ["a", "b", "c"] {
        assert!(server.pipe(&["get", name], b"") == noise(4 << 20), "{name}");
    }
    assert_eq!(server.json(&["stat"])["backings"][1]["free_bytes"], 0);
}

#[test]
fn a_backing_is_taken_out_or_its_holders_are_named() {
    let server = Server::start_with(&["--room", "2G"]);
    let near = server.path("near");
    server.good(&["backing", "add", near.to_str().unwrap(), "--size", "8M", "--name", "x"]);
    let file = server.file("in", &noise(4 << 20));
    server.good(&["put", &file, "a", "--only", "x"]);
    assert!(server.fails(&["backing", "rm", "x"], 3).contains("\"a\""));
    let client = Client::connect(server.path("socket")).unwrap();
    let pin = client.get("a").unwrap();
    server.good(&["rm", "a"]);
    let own = format!("(pid {})", std::process::id());
    assert!(server.fails(&["backing", "rm", "x", "--deadline", "100"], 124).contains(&own));
    assert!(server.fails(&["backing", "rm", "x", "--deadline", "0"], 3).contains(&own));
    drop(pin);
    server.good(&["backing", "rm", "x"]);
    assert!(!near.exists());
    assert_eq!(names(&server.json(&["backing", "ls"])), ["data"]);
    assert!(server.fails(&["backing", "rm", "x"], 1).contains("none of that name"));
    assert!(server.fails(&["backing", "rm", "data"], 1).contains("own data"));
}

#[test]
fn a_pool_without_room_says_how_to_make_one() {
    let server = Server::start();
    let near = server.path("near");
    let failed = server.fails(&["backing", "add", near.to_str().unwrap(), "--size", "8M"], 1);
    assert!(failed.contains("room"), "{failed}");
    assert!(!near.exists());
}

#[test]
fn a_pool_is_given_room_and_grows() {
    let mut server = Server::start_with(&[]);
    let file = server.file("in", &noise(48 << 20));
    server.good(&["put", &file, "a"]);
    let refused = server.fails(&["grow", "--by", "64M"], 1);
    assert!(refused.contains("pgmap grow --room"), "{refused}");
    let pool = server.path("pool");
    let room = ["grow", "--room", "4G", "--pool", pool.to_str().unwrap()];
    assert!(server.fails(&room, 3).contains("has an owner"));
    send(&server.child, rustix::process::Signal::TERM);
    server.child.wait().unwrap();
    server.good(&room);
    server.restart();
    let grown = server.json(&["grow", "--by", "64M"]);
    assert_eq!(
        (&grown["schema"], &grown["size_bytes"]),
        (&json!("pgmap.grow/1"), &json!(128 << 20))
    );
    server.good(&["put", &file, "b"]);
    assert!(server.pipe(&["get", "b"], b"") == noise(48 << 20));
    assert_eq!(names(&server.json(&["backing", "ls"])), ["data", "data-2"]);
    let node =
        server.fails(&["backing", "add", "/dev/shm/never-made", "--size", "8M", "--node", "77"], 1);
    assert!(node.contains("node 77 has no memory"), "{node}");
}
