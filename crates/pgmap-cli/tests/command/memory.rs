//! punch, poison, repair, debug and the rules of put: the page model through the command.

use crate::server::{Server, noise, text, until};
use pgmap::{Access, Agent, Client};
use serde_json::{Value, json};

/// A server with one file "a" of 4 MiB in folios of `folio`, and the path of its copy.
fn served(folio: &str, flags: &[&str]) -> (Server, String) {
    let server = Server::start();
    let file = server.file("in", &noise(4 << 20));
    server.good(&[&["put", &file, "a", "--folio", folio], flags].concat());
    (server, file)
}

/// The same in shared memory, with a file of 64 KiB.
fn served_in_memory() -> (Server, String) {
    let server = Server::start_in_memory();
    let file = server.file("in", &noise(64 << 10));
    server.good(&["put", &file, "a", "--folio", "4K"]);
    (server, file)
}

fn client(server: &Server) -> Client {
    Client::connect(server.path("socket")).unwrap()
}

fn folios(of: &Value) -> [u64; 3] {
    ["nr_folios_4k", "nr_folios_2m", "nr_folios_1g"].map(|field| of[field].as_u64().unwrap())
}

#[test]
fn a_punched_range_reads_as_zero_and_its_frames_are_free() {
    let (server, _) = served("2M", &[]);
    let done = server.json(&["punch", "a", "8192", "1M"]);
    assert_eq!(done["schema"], "pgmap.punch/1");
    assert_eq!((&done["offset"], &done["len_bytes"]), (&json!(8192), &json!(1 << 20)));
    let mut wanted = noise(4 << 20);
    wanted[8192..8192 + (1 << 20)].fill(0);
    assert!(server.pipe(&["get", "a"], b"") == wanted);
    assert_eq!(server.json(&["stat"])["free_bytes"], (61 << 20));
    let stat = server.json(&["stat", "a"]);
    assert_eq!(folios(&stat), [256, 1, 0], "only the punched folio is split");
    assert_eq!(stat["len_bytes"], 4 << 20);
    server.fails(&["punch", "a", "100", "4096"], 1);
    server.fails(&["punch", "a", "0", "8M"], 1);
    assert!(server.fails(&["poison", "a", "8192"], 1).contains("hole"));
}

#[test]
fn a_held_range_is_not_punched_unless_quarantined_and_the_holder_of_the_rest_is_not_in_the_way() {
    let (server, _) = served("2M", &[]);
    let client = client(&server);
    let file = client.open("a").unwrap();
    let pin = file.pin(0..4096).unwrap();
    server.good(&["punch", "a", "1M", "4096", "--deadline", "0"]);
    let own = format!("(pid {})", std::process::id());
    assert!(server.fails(&["punch", "a", "0", "4096", "--deadline", "30"], 124).contains(&own));
    assert!(server.fails(&["punch", "a", "0", "4096", "--deadline", "0"], 3).contains(&own));
    assert_eq!(server.json(&["stat"])["quarantined_bytes"], 0);
    let arguments = ["punch", "a", "0", "4096", "--deadline", "30", "--quarantine"];
    assert!(server.fails(&arguments, 4).contains(&own));
    assert_eq!(server.json(&["stat"])["quarantined_bytes"], 4096);
    drop(pin);
    until("it is free", || server.json(&["stat"])["quarantined_bytes"] == 0);
}

#[test]
fn a_poisoned_page_is_named_refused_and_repaired_from_a_copy() {
    let (server, copy) = served("2M", &[]);
    let done = server.json(&["poison", "a", "12345"]);
    assert_eq!(done["schema"], "pgmap.poison/1");
    assert_eq!(done["offset"], 12288);
    assert!(done["pfn"].is_u64());
    let stat = server.json(&["stat", "a"]);
    assert_eq!((&stat["state"], &stat["poisoned_offsets"]), (&json!("poisoned"), &json!([12288])));
    let listing = server.json(&["ls"]);
    assert_eq!(listing["files"][0]["state"], "poisoned");
    assert_eq!(listing["nr_poisoned"], 1);
    assert!(server.good(&["ls"]).contains("poisoned"));
    assert!(server.good(&["stat", "a"]).contains("12288"));
    assert_eq!(server.json(&["stat"])["poisoned_bytes"], 4096);
    for arguments in [&["get", "a"][..], &["poison", "a", "12288"]] {
        let stderr = server.fails(arguments, 1);
        assert!(stderr.contains("memory there failed"), "{stderr}");
        assert!(stderr.contains("pgmap repair NAME OFFSET"), "{stderr}");
    }
    let pfn = done["pfn"].to_string();
    assert!(server.fails(&["poison", "--pfn", &pfn], 1).contains("already"));
    let short = server.file("short", &noise(4096));
    assert!(server.fails(&["repair", "a", "12288", "--from", &short], 1).contains("no copy"));
    server.fails(&["repair", "a", "0", "--zero"], 1);
    let repaired = server.json(&["repair", "a", "12288", "--from", &copy]);
    assert_eq!(repaired["schema"], "pgmap.repair/1");
    assert_eq!(repaired["poisoned_bytes"], 0);
    assert!(server.pipe(&["get", "a"], b"") == noise(4 << 20));
    assert_eq!(server.json(&["stat", "a"])["state"], "live");
}

#[test]
fn several_failed_pages_are_all_listed_and_zeroed_one_by_one() {
    let (server, _) = served("4K", &[]);
    let offsets = [0, 8192, 12288, (4 << 20) - 4096];
    let mut wanted = noise(4 << 20);
    for offset in offsets {
        server.good(&["poison", "a", &offset.to_string()]);
        wanted[offset..offset + 4096].fill(0);
    }
    assert_eq!(server.json(&["stat", "a"])["poisoned_offsets"], json!(offsets));
    for offset in offsets {
        server.good(&["repair", "a", &offset.to_string(), "--zero"]);
    }
    assert!(server.pipe(&["get", "a"], b"") == wanted);
}

#[test]
fn a_held_failed_page_is_busy_and_failed_frames_of_no_file_are_repaired_without_a_name() {
    let (server, _) = served("4K", &[]);
    let client = client(&server);
    let pin = client.open("a").unwrap().pin(4096..4097).unwrap();
    let done = server.json(&["poison", "a", "4096"]);
    let pfn = done["pfn"].as_u64().unwrap();
    assert_eq!(pin.segments().next().unwrap().pool_offset / 4096, pfn);
    server.fails(&["repair", "a", "4096", "--zero"], 3);
    drop(pin);
    server.good(&["rm", "a"]);
    until("the rest is free", || server.json(&["stat"])["free_bytes"] == (64 << 20) - 4096);
    assert_eq!(server.json(&["stat"])["poisoned_bytes"], 4096);
    assert_eq!(server.json(&["repair"])["poisoned_bytes"], 0);
    assert_eq!(server.json(&["stat"])["free_bytes"], 64 << 20);
    server.good(&["poison", "--pfn", &format!("{pfn:#x}")]);
    assert_eq!(server.json(&["stat"])["poisoned_bytes"], 4096, "a free frame fails too");
    server.fails(&["poison", "--pfn", "0xffffffffffff"], 1);
}

#[test]
fn folios_are_split_and_merged_under_the_same_bytes() {
    let (server, _) = served("2M", &[]);
    let split = server.json(&["debug", "split", "a", "2M", "4K"]);
    assert_eq!(split["schema"], "pgmap.debug.split/1");
    assert_eq!(split["folio_bytes"], 4096);
    assert_eq!(folios(&split), [512, 1, 0]);
    assert_eq!(folios(&server.json(&["stat", "a"])), [512, 1, 0]);
    assert_eq!(folios(&server.json(&["stat"])), [512, 1, 0], "the pool, by level");
    assert!(server.good(&["stat"]).contains("folios of 2 MiB"));
    let listing = server.json(&["ls"]);
    assert_eq!((folios(&listing), folios(&listing["files"][0])), ([512, 1, 0], [512, 1, 0]));
    assert!(server.good(&["ls"]).contains("512/1/0"));
    let merged = server.json(&["debug", "merge", "a", "3M", "2M"]);
    assert_eq!(merged["schema"], "pgmap.debug.merge/1");
    assert_eq!(folios(&merged), [0, 2, 0]);
    assert!(server.fails(&["debug", "merge", "a", "0", "1G"], 1).contains("one extent"));
    assert!(server.fails(&["debug", "merge", "a", "0", "2M"], 1).contains("is of 2M now"));
    assert!(server.fails(&["debug", "split", "a", "64M", "4K"], 1).contains("no memory at"));
    server.fails(&["debug", "split", "nope", "0", "4K"], 1);
    assert!(server.pipe(&["get", "a"], b"") == noise(4 << 20));
}

#[test]
fn who_tells_short_long_term_and_lease_cpu_and_device() {
    let (server, copy) = served_in_memory();
    // The owner is asked for each of its long-term pins, and grants a lease where no device writes.
    server.good(&["put", &copy, "leased", "--longterm", "forbid-device"]);
    let client = client(&server);
    let counted = client.open("a").unwrap().pin_longterm(0..4096).unwrap();
    let file = client.open("leased").unwrap();
    let leased = file.lease(0..4096, Agent::Cpu, Access::Read).unwrap();
    let short = file.pin_for_device(4096..8192).unwrap();
    short.set_tag(5);
    let kinds = |name: &str| {
        let who = server.json(&["who", name]);
        let holders = who["holders"].as_array().unwrap();
        let mut kinds: Vec<String> =
            holders.iter().map(|h| format!("{} {} {}", h["kind"], h["agent"], h["tag"])).collect();
        kinds.sort();
        kinds
    };
    assert_eq!(kinds("a"), [r#""long-term" "cpu" 0"#]);
    assert_eq!(kinds("leased"), [r#""lease" "cpu" 0"#, r#""short" "device" 5"#]);
    let table = server.good(&["who"]);
    for word in ["KIND", "AGENT", "SEEN FOR", "long-term", "lease", "device", "cpu"] {
        assert!(table.contains(word), "{word} in {table}");
    }
    drop((counted, leased, short));
}

#[test]
fn put_sets_the_rules_of_a_file() {
    let (server, copy) = served_in_memory();
    for (name, rule) in [
        ("forbid", "forbid"),
        ("nodev", "forbid-device"),
        ("type", "as-type"),
        ("leasable", "leasable"),
    ] {
        server.good(&["put", &copy, name, "--longterm", rule]);
    }
    server.good(&["put", &copy, "fixed", "--read-only"]);
    server.good(&["put", &copy, "raw", "--raw"]);
    let client = client(&server);
    let lease = |name: &str, agent, access| {
        client.open(name).unwrap().lease(0..4096, agent, access).map(drop).map_err(|e| e.errno())
    };
    assert_eq!(lease("forbid", Agent::Cpu, Access::Read), Err(95));
    assert_eq!(lease("nodev", Agent::Device, Access::Write), Err(95));
    assert_eq!(lease("type", Agent::Device, Access::Write), Ok(()));
    assert_eq!(lease("leasable", Agent::Device, Access::Write), Ok(()));
    assert!(lease("fixed", Agent::Cpu, Access::Write).is_err());
    assert_eq!(server.json(&["stat", "a"])["is_longterm_free"], true);
    assert_eq!(server.json(&["stat", "forbid"])["is_longterm_free"], false);
    assert_eq!(server.json(&["stat", "raw"])["state"], "raw");
    server.fails(&["get", "raw"], 1);
    server.fails(&["put", &copy, "b", "--longterm", "sometimes"], 2);
}

#[test]
fn half_a_command_line_is_2_and_each_verb_has_a_help_of_its_own() {
    let server = Server::start();
    for arguments in [
        &["poison"][..],
        &["poison", "a"],
        &["poison", "a", "0", "--pfn", "1"],
        &["repair", "a"],
        &["repair", "a", "0"],
        &["repair", "--zero"],
        &["repair", "a", "0", "--zero", "--from", "x"],
        &["punch", "a", "0"],
        &["debug"],
        &["debug", "split", "a", "0", "8K"],
    ] {
        server.fails(arguments, 2);
    }
    assert!(server.fails(&["poison"], 2).contains("pgmap poison [OPTIONS] --pfn N"));
    for (arguments, words) in [
        (&["-h"][..], "One memory pool"),
        (&["punch", "--help"], "Take pages out of a file"),
        (&["truncate", "--help"], "Shorten a file"),
        (&["poison", "--help"], "Say that memory failed"),
        (&["repair", "--help"], "Bring failed memory back"),
        (&["debug", "split", "--help"], "Split the folio around a byte"),
    ] {
        let help = text(&server.run(arguments).stdout);
        assert!(help.starts_with(words), "{help}");
    }
    let help = text(&server.run(&["repair", "--help"]).stdout);
    assert!(help.contains("the exit code is 3"), "{help}");
}
