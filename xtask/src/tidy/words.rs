//! Rule `words`: no leftovers of unfinished work, and no module named after nothing.

use super::Violation;
use super::source::{Source, Tree, find_word};

/// Macros that stand for unfinished work, without their `!`.
const LEFTOVER_MACROS: [&str; 3] = ["todo", "unimplemented", "dbg"];

/// Module names that say nothing of what is inside.
const EMPTY_NAMES: [&str; 4] = ["util", "utils", "common", "misc"];

/// Finds leftovers and empty names.
pub fn check(tree: &Tree, found: &mut Vec<Violation>) {
    for source in &tree.sources {
        check_macros(source, found);
        check_promises(source, found);
        check_module_name(source, found);
    }
}

fn check_macros(source: &Source, found: &mut Vec<Violation>) {
    for name in LEFTOVER_MACROS {
        for offset in find_word(&source.code, name) {
            if source.code[offset + name.len()..].starts_with('!') {
                let advice = format!("`{name}!` does not go in: finish it or leave it out");
                let line = source.line_of(offset);
                found.push(Violation::new(&source.path, line, "words", advice));
            }
        }
    }
}

/// A promise in a comment names who keeps it and when: `TODO(owner: condition)`.
fn check_promises(source: &Source, found: &mut Vec<Violation>) {
    for offset in find_word(&source.comments, "TODO") {
        if !names_owner_and_condition(&source.comments[offset + "TODO".len()..]) {
            let advice = "write `TODO(owner: condition)`: who does it, and when it is due";
            let line = source.line_of(offset);
            found.push(Violation::new(&source.path, line, "words", advice));
        }
    }
}

fn names_owner_and_condition(after: &str) -> bool {
    after
        .strip_prefix('(')
        .and_then(|rest| rest.split_once(')'))
        .and_then(|(inside, _)| inside.split_once(':'))
        .is_some_and(|(owner, condition)| !owner.trim().is_empty() && !condition.trim().is_empty())
}

fn check_module_name(source: &Source, found: &mut Vec<Violation>) {
    let mut parts = source.path.trim_end_matches(".rs").split('/');
    if let Some(name) = parts.find(|part| EMPTY_NAMES.contains(part)) {
        let advice = format!("`{name}` says nothing: name the module for what it gives");
        found.push(Violation::new(&source.path, 1, "words", advice));
    }
    for offset in find_word(&source.code, "mod") {
        let after = source.code[offset + "mod".len()..].trim_start();
        let body = after.split_once('{').map_or("", |(name, _)| name).trim();
        if EMPTY_NAMES.contains(&body) {
            let advice = format!("`{body}` says nothing: name the module for what it gives");
            found.push(Violation::new(&source.path, source.line_of(offset), "words", advice));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::lines;
    use super::*;

    #[test]
    fn leftovers_are_found() {
        assert_eq!(lines("a.rs", "fn f() { todo!() }", check), [1]);
        assert_eq!(lines("a.rs", "fn f() {\n unimplemented!(\"x\") }", check), [2]);
        assert_eq!(lines("a.rs", "dbg!(x);", check), [1]);
    }

    #[test]
    fn names_and_text_that_look_alike_are_good() {
        assert!(
            lines("a.rs", "#![deny(clippy::todo)] // todo!(\nlet dbg = \"dbg!(\";", check)
                .is_empty()
        );
    }

    #[test]
    fn a_promise_names_owner_and_condition() {
        assert!(lines("a.rs", "// TODO(mm: when fsdax takes 1 GiB files): x", check).is_empty());
        for text in ["// TODO: x", "// TODO x", "/// TODO(mm)", "// TODO(mm:)", "// TODO(: now)"] {
            assert_eq!(lines("a.rs", text, check), [1], "{text}");
        }
        assert!(lines("a.rs", "const TODO: u8 = 0;", check).is_empty());
    }

    #[test]
    fn empty_module_names_are_found() {
        assert_eq!(lines("c/src/util.rs", "//! A.", check), [1]);
        assert_eq!(lines("c/tests/common/mod.rs", "//! A.", check), [1]);
        assert_eq!(lines("c/src/a.rs", "\nmod misc { }", check), [2]);
        assert!(lines("c/src/a.rs", "mod commons { }\nmod pin;\nfn f() { }", check).is_empty());
    }
}
