//! Rule `atomics`: pgmap-mm takes its atomics from `crate::sync`, so that loom sees every one.

use super::Violation;
use super::source::{Tree, find_word};

/// The sources that the rule is about.
const MM_SOURCES: &str = "crates/pgmap-mm/src/";

/// Paths that only the door itself may name. Tests may drive loom, but take atomics as all do.
const BEHIND_THE_DOOR: [(&str, bool); 3] =
    [("std::sync::atomic", false), ("core::sync::atomic", false), ("loom::", true)];

/// Finds paths around the door.
pub fn check(tree: &Tree, found: &mut Vec<Violation>) {
    for source in tree.below(MM_SOURCES) {
        let module = &source.path[MM_SOURCES.len()..];
        if module == "sync.rs" || module.starts_with("sync/") {
            continue;
        }
        for (path, is_for_tests) in BEHIND_THE_DOOR {
            for line in find_word(&source.code, path).map(|offset| source.line_of(offset)) {
                if !(is_for_tests && source.is_test_line(line)) {
                    let advice = format!("`{path}`: take it from `crate::sync`");
                    found.push(Violation::new(&source.path, line, "atomics", advice));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::lines;
    use super::*;

    const PIN: &str = "crates/pgmap-mm/src/pin.rs";

    #[test]
    fn every_way_around_the_door_is_found() {
        assert_eq!(lines(PIN, "use std::sync::atomic::AtomicU64;", check), [1]);
        assert_eq!(lines(PIN, "\nuse core::sync::atomic::fence;", check), [2]);
        assert_eq!(lines(PIN, "use loom::thread;", check), [1]);
    }

    #[test]
    fn the_door_itself_and_those_who_use_it_are_good() {
        assert!(lines("crates/pgmap-mm/src/sync.rs", "use core::sync::atomic;", check).is_empty());
        assert!(lines(PIN, "use crate::sync::AtomicU64;", check).is_empty());
        assert!(lines("crates/pgmap-os/src/a.rs", "use core::sync::atomic;", check).is_empty());
    }

    #[test]
    fn tests_may_drive_loom_but_not_bypass_it() {
        let model = "#[cfg(all(test, loom))]\nmod tests { fn f() { loom::model(g) } }";
        assert!(lines(PIN, model, check).is_empty());
        let bypass = "#[cfg(test)]\nmod tests { use std::sync::atomic::AtomicU64; }";
        assert_eq!(lines(PIN, bypass, check), [2]);
    }
}
