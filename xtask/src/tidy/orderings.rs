//! Rule `ordering`: memory orderings are named only where a protocol is written down, and in tests.

use super::Violation;
use super::source::{Source, Tree, closing_bracket, find_word, leading_word};

/// What `Ordering::` may be followed by to be a memory ordering. `cmp::Ordering` has none of these.
const ORDERINGS: [&str; 5] = ["Relaxed", "Acquire", "Release", "AcqRel", "SeqCst"];

/// Where the list is, for those who must edit it.
const LIST: &str = "xtask/src/allowed.rs";

/// Finds memory orderings outside the files and folders in `allowed`, and entries of `allowed` that
/// nothing needs.
pub fn check(tree: &Tree, allowed: &[&str], found: &mut Vec<Violation>) {
    let mut is_needed = vec![false; allowed.len()];
    for source in &tree.sources {
        let entry = allowed.iter().position(|entry| covers(entry, &source.path));
        for line in ordering_lines(source) {
            match entry {
                Some(entry) => is_needed[entry] = true,
                None => found.push(Violation::new(&source.path, line, "ordering", advice())),
            }
        }
    }
    for (entry, _) in allowed.iter().zip(is_needed).filter(|(_, is_needed)| !is_needed) {
        let advice = format!("remove {entry}: nothing there names a memory ordering");
        found.push(Violation::new(LIST, 1, "ordering", advice));
    }
}

fn advice() -> String {
    format!(
        "call a method of the protocol's own file; or write this file's protocol down and add it to {LIST}"
    )
}

fn covers(entry: &str, path: &str) -> bool {
    entry == path || (entry.ends_with('/') && path.starts_with(entry))
}

/// Lines of `source`, outside tests, that name a memory ordering.
fn ordering_lines(source: &Source) -> Vec<usize> {
    find_word(&source.code, "Ordering")
        .filter(|&offset| names_ordering(&source.code[offset + "Ordering".len()..]))
        .map(|offset| source.line_of(offset))
        .filter(|&line| !source.is_test_line(line))
        .collect()
}

fn names_ordering(after: &str) -> bool {
    let Some(member) = after.trim_start().strip_prefix("::").map(str::trim_start) else {
        return false;
    };
    if member.starts_with('{') {
        let group = &member[..closing_bracket(member, 0)];
        return ORDERINGS.iter().any(|ordering| find_word(group, ordering).next().is_some());
    }
    ORDERINGS.contains(&leading_word(member)) || member.starts_with('*')
}

#[cfg(test)]
mod tests {
    use super::super::testing::tree;
    use super::*;

    fn violations(path: &str, text: &str, allowed: &[&str]) -> Vec<(String, usize)> {
        let mut found = Vec::new();
        check(&tree(&[(path, text)]), allowed, &mut found);
        found.into_iter().map(|violation| (violation.path, violation.line)).collect()
    }

    #[test]
    fn orderings_are_found_however_they_are_named() {
        for text in [
            "a.load(Ordering::Relaxed)",
            "a.load(sync::Ordering::SeqCst)",
            "use crate::sync::Ordering::{Acquire, Release};",
            "use crate::sync::Ordering::*;",
            "Ordering\n    ::AcqRel",
        ] {
            assert_eq!(violations("a.rs", text, &[]), [("a.rs".to_owned(), 1)], "{text}");
            assert!(violations("a.rs", text, &["a.rs"]).is_empty(), "{text}");
        }
    }

    #[test]
    fn comparison_text_and_tests_are_not_meant() {
        for text in [
            "a.cmp(b) == Ordering::Less",
            "use std::cmp::Ordering::{Less, Greater};",
            "// Ordering::Relaxed",
            "f(\"Ordering::Relaxed\")",
            "#[cfg(test)]\nmod tests { fn f() { a.load(Ordering::Relaxed) } }",
        ] {
            assert!(violations("c/src/a.rs", text, &[]).is_empty(), "{text}");
        }
        assert!(violations("c/tests/a.rs", "Ordering::SeqCst", &[]).is_empty());
    }

    #[test]
    fn a_folder_covers_what_lies_below_it() {
        assert!(violations("c/src/rivals/a.rs", "Ordering::SeqCst", &["c/src/rivals/"]).is_empty());
        assert_eq!(violations("c/src/a.rs", "Ordering::SeqCst", &["c/src/rivals/"]).len(), 2);
    }

    #[test]
    fn an_entry_nobody_needs_is_a_violation() {
        assert_eq!(violations("a.rs", "fn f() {}", &["a.rs"]), [(LIST.to_owned(), 1)]);
    }
}
