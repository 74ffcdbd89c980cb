//! `pgmap bench`: every row runs, the result has its form, and it ends when it is asked to.

use std::process::{Command, Output, Stdio};

use crate::server::{output_of, pgmap, run, send, text, until};
use rustix::process::Signal;
use serde_json::Value;

fn bench(arguments: &[&str]) -> Command {
    let mut command = pgmap();
    command.arg("bench").args(arguments);
    command
}

fn report(output: &Output) -> Value {
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_small_mode_runs_every_row_and_says_that_it_measures_nothing() {
    let report = report(&run(&mut bench(&["--small", "--json"])));
    assert_eq!(report["schema"], "pgmap.bench/1");
    assert_eq!(report["is_small"], true);
    assert_eq!(report["load"]["is_trusted"], false);
    let groups = report["groups"].as_array().unwrap();
    let keys: Vec<&str> = groups.iter().map(|group| group["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["A", "B", "C", "D", "E", "F", "G", "H", "J"]);
    for group in groups {
        let rows = group["rows"].as_array().unwrap();
        // With one CPU nobody can share a folio or remap under a reader.
        let is_lonely = report["machine"]["nr_cpus"] == 1;
        assert!(!rows.is_empty() || is_lonely, "{group}");
        assert_eq!(rows.iter().any(|row| row["whose"] == "pgmap"), !rows.is_empty(), "{group}");
        for row in rows {
            assert!(row["ns"]["min"].as_f64().unwrap() > 0.0, "{row}");
            let is_there = rows.iter().any(|base| base["name"] == row["base"]);
            assert!(is_there, "no base for {row}");
        }
    }
    assert_eq!(report["figures"].as_array().unwrap().len(), 3);
    let targets = report["nr_met"].as_u64().unwrap() + report["nr_missed"].as_u64().unwrap();
    assert!(targets > 10, "{targets}");
}

#[test]
fn one_row_comes_with_its_base_and_is_written_in_every_form() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (json, svg, html) = (path("r.json"), path("r.svg"), path("r.html"));
    let only = ["--small", "--only", "fast_leaf, n=1, 1T", "--save", &json, "--plot"];
    let table = run(bench(&only).arg(&svg));
    let saved: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let rows = saved["groups"][0]["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names[0].starts_with("F:") && names[1] == "pgmap: Gup::fast_leaf, n=1, 1T");
    let table = text(&table.stdout);
    assert!(table.contains(names[1]) && table.contains("not to be trusted"), "{table}");
    let picture = std::fs::read_to_string(&svg).unwrap();
    assert!(picture.starts_with("<svg ") && picture.contains("Gup::fast_leaf, n=1, 1T"));
    let markdown = run(bench(&only).arg(&html).arg("--markdown"));
    let markdown = text(&markdown.stdout);
    assert!(markdown.contains("| B | pgmap: Gup::fast_leaf, 1T |"), "{markdown}");
    assert!(std::fs::read_to_string(&html).unwrap().starts_with("<!doctype html>"));
}

#[test]
fn what_cannot_be_measured_is_refused() {
    for (arguments, word) in [
        (&["--small", "--threads", "128"][..], "CPU"),
        (&["--small", "--markdown", "--json"][..], "two forms"),
        (&["--small", "--plot", "picture.bmp"][..], ".svg"),
    ] {
        let output = run(&mut bench(arguments));
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(word), "{}", text(&output.stderr));
    }
    let output = run(&mut bench(&["--small", "--only", "no such row"]));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no row is called no such row"));
}

/// Story: the signal was in the mask of caught ones when only the handler was there that counts the
/// first, and one that came then was forgotten: a run of ten minutes went on.
#[test]
fn an_interrupted_run_ends_soon_and_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let plot = directory.path().join("r.svg");
    let mut command = bench(&["--only", "A", "--rounds", "1000", "--plot"]);
    command.arg(&plot).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    // Handlers are in place when SIGINT is in the mask of caught signals.
    let status = format!("/proc/{}/status", child.id());
    until("it listens for signals", || {
        let status = std::fs::read_to_string(&status).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        mask.is_some_and(|mask| mask & 2 != 0)
    });
    send(&child, Signal::INT);
    let output = output_of(child);
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(!plot.exists());
}
