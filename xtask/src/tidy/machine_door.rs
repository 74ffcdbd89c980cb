//! Rule `machine`: pgmap takes time, threads, locks and names of files from pgmap-os, so that a
//! simulation sees every one.

use super::Violation;
use super::source::{Tree, find_word};

/// The sources that the rule is about.
const SOURCES: &str = "crates/pgmap/src/";

/// Paths around the door, and what stands there instead.
const AROUND: [(&str, &str); 8] = [
    ("std::time::Instant", "pgmap_os::clock::Instant"),
    ("std::thread", "pgmap_os::thread"),
    ("std::process::id", "pgmap_os::process::id"),
    ("std::sync::Mutex", "pgmap_os::sync::Mutex"),
    ("std::sync::Condvar", "pgmap_os::sync::Condvar"),
    ("fs::rename", "pgmap_os::disk::rename"),
    ("fs::remove_file", "pgmap_os::disk::remove_file"),
    ("fs::read_dir", "pgmap_os::disk::read_dir"),
];

/// Names that an import of several must not take from the standard library.
const NAMES: [(&str, &str); 4] = [
    ("std::time::{", "Instant"),
    ("std::sync::{", "Mutex"),
    ("std::sync::{", "MutexGuard"),
    ("std::sync::{", "Condvar"),
];

/// Finds paths around the door. Tests run on the machine itself and may use it.
pub fn check(tree: &Tree, found: &mut Vec<Violation>) {
    for source in tree.below(SOURCES) {
        let mut report = |line: usize, advice: String| {
            if !source.is_test_line(line) && !source.path.ends_with("tests.rs") {
                found.push(Violation::new(&source.path, line, "machine", advice));
            }
        };
        for (path, instead) in AROUND {
            for offset in find_word(&source.code, path) {
                report(source.line_of(offset), format!("`{path}`: use `{instead}`"));
            }
        }
        for (import, name) in NAMES {
            for (offset, _) in source.code.match_indices(import) {
                let list = source.code[offset + import.len()..].split('}').next();
                let names = list.unwrap_or_default().split(',').map(str::trim);
                if names.into_iter().any(|listed| listed == name) {
                    let advice = format!("`{name}` of the standard library: use pgmap_os's");
                    report(source.line_of(offset), advice);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::lines;
    use super::*;

    const OWNER: &str = "crates/pgmap/src/owner.rs";

    #[test]
    fn every_way_around_the_door_is_found() {
        assert_eq!(lines(OWNER, "use std::time::Instant;", check), [1]);
        assert_eq!(lines(OWNER, "use std::time::{Duration, Instant};", check), [1]);
        assert_eq!(lines(OWNER, "\nuse std::sync::{Arc, Mutex};", check), [2]);
        assert_eq!(lines(OWNER, "fn f() { std::fs::rename(a, b) }", check), [1]);
    }

    #[test]
    fn the_door_tests_and_other_crates_are_good() {
        assert!(lines(OWNER, "use std::sync::{Arc, OnceLock};", check).is_empty());
        assert!(lines(OWNER, "use pgmap_os::sync::Mutex;", check).is_empty());
        assert!(lines("crates/pgmap-os/src/a.rs", "use std::sync::Mutex;", check).is_empty());
        let test = "#[cfg(test)]\nmod tests { use std::sync::{Arc, Mutex}; }";
        assert!(lines(OWNER, test, check).is_empty());
    }
}
