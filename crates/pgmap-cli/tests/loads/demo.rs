//! `pgmap demo`: the figures are there, fit together, and nothing is left behind.

use std::process::{Command, Stdio};

use crate::server::{ended, pgmap, run, send, text, until};
use rustix::process::Signal;
use serde_json::Value;

fn number(report: &Value, path: &str) -> f64 {
    let value = report.pointer(&format!("/{}", path.replace('.', "/")));
    value.and_then(Value::as_f64).unwrap_or_else(|| panic!("{path} in {report}"))
}

/// The demo with its files in a directory of the test.
fn demo(directory: &std::path::Path, arguments: &[&str]) -> Command {
    let mut command = pgmap();
    command.arg("demo").args(arguments).env("XDG_RUNTIME_DIR", directory);
    command
}

fn is_empty(directory: &std::path::Path) -> bool {
    std::fs::read_dir(directory).unwrap().next().is_none()
}

fn check(report: &Value) {
    assert_eq!(report["schema"], "pgmap.demo/1");
    for path in ["ttl.reads", "pgmap.reads", "pgmap.reads_per_second", "dma.bytes"] {
        assert!(number(report, path) > 0.0, "{path}");
    }
    assert!(number(report, "ttl.stale_reads_served") <= number(report, "ttl.reads"));
    for path in ["pgmap.stale_reads_served", "kill.leaked_bytes", "kill.leaked_pins"] {
        assert!(number(report, path) == 0.0, "{path} in {report}");
    }
    let (p50, max) = (number(report, "kill.reclaim_ms_p50"), number(report, "kill.reclaim_ms_max"));
    assert!(0.0 < p50 && p50 <= max && max < 3000.0, "{report}");
    assert!(number(report, "kill.nr_readers") >= 9.0 && number(report, "kill.nr_writers") >= 9.0);
    assert_eq!(report["drain"]["named_pid"], report["drain"]["expected_pid"]);
    assert!(number(report, "drain.expected_pid") > 1.0);
    assert!(number(report, "drain.waited_ms") >= 250.0);
    let blocks = number(report, "pgmap.recycled_blocks") + number(report, "ttl.recycled_blocks");
    let block_bytes = number(report, "work.block_bytes");
    assert!(number(report, "dma.bytes") >= blocks * block_bytes, "{report}");
    let slow = number(report, "ttl.slow_reads");
    let proved = number(report, "ttl.stale_reads_served") > 0.0;
    let notes = report["notes"].to_string();
    assert!(proved != notes.contains("proved nothing"), "{slow} slow reads: {report}");
}

#[test]
fn leases_serve_stale_reads_and_pins_do_not() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let output = run(&mut demo(directory.path(), &["--json", "--seconds", "3"]));
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}\n{}", text(&output.stdout));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    check(&report);
    assert!(is_empty(directory.path()), "files are left");
}

#[test]
fn the_demo_lies_on_what_is_named_and_leaves_nothing_there() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let place = tempfile::tempdir_in("/dev/shm").unwrap();
    let data = place.path().join("data");
    let on = ["--json", "--seconds", "2", "--on", data.to_str().unwrap()];
    let output = run(&mut demo(directory.path(), &on));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    check(&report);
    assert_eq!(report["on"], "shmem", "{report}");
    assert!(is_empty(place.path()) && is_empty(directory.path()), "files are left");
    std::fs::write(&data, "somebody's").unwrap();
    let output = run(&mut demo(directory.path(), &on));
    assert!(!output.status.success());
    assert!(text(&output.stdout).contains("name one that does not exist"));
    assert_eq!(std::fs::read(&data).unwrap(), b"somebody's");
}

#[test]
fn a_thread_stands_in_for_io_uring_and_the_table_says_so() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let mut command = demo(directory.path(), &["--seconds", "2", "--dma", "thread", "--scratch"]);
    let output = run(command.arg(scratch.path()));
    let table = text(&output.stdout);
    assert!(output.status.success(), "{}\n{table}", text(&output.stderr));
    assert!(table.contains("preadv-thread") && table.contains("stale reads served"), "{table}");
    assert!(table.ends_with("pgmap served no stale read and lost nothing\n"), "{table}");
    assert!(is_empty(scratch.path()), "the scratch file is left");
}

#[test]
fn an_interrupted_demo_leaves_no_file_and_a_killed_one_no_process() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    for signal in [Signal::INT, Signal::KILL] {
        let mut command = demo(directory.path(), &["--seconds", "20"]);
        let mut demo = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let board = format!("/proc/{}/fd/", demo.id());
        until("its processes run", || children_of(&board) >= 4);
        send(&demo, signal);
        let status = ended(&mut demo);
        until("its processes are gone", || children_of(&board) == 0);
        if signal == Signal::INT {
            assert_eq!(status.code(), Some(130));
            assert!(is_empty(directory.path()), "files are left");
        }
    }
}

/// Processes whose command line names `board`.
fn children_of(board: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(board)).count()
}
