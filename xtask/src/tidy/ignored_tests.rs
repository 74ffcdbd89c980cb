//! Rule `ignored-test`: a test runs or it is not there. One that cannot run here says so and
//! passes, or is a different kind of check.

use super::Violation;
use super::source::{Tree, closing_bracket, find_word};

/// Finds attributes that keep a test from running, conditional ones included.
pub fn check(tree: &Tree, found: &mut Vec<Violation>) {
    for source in &tree.sources {
        for (start, _) in source.code.match_indices("#[") {
            let end = closing_bracket(&source.code, start + 1);
            let attribute = source.code.get(start..end).unwrap_or("");
            if find_word(attribute, "ignore").next().is_some() {
                let advice = "tests are not ignored: make it run everywhere, or remove it";
                let line = source.line_of(start);
                found.push(Violation::new(&source.path, line, "ignored-test", advice));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::lines;
    use super::*;

    #[test]
    fn ignored_tests_are_found_wherever_they_hide() {
        assert_eq!(lines("a.rs", "#[test]\n#[ignore]\nfn f() {}", check), [2]);
        assert_eq!(lines("c/tests/a.rs", "#[ignore = \"slow\"]", check), [1]);
        assert_eq!(lines("a.rs", "#[cfg_attr(miri, ignore)]", check), [1]);
    }

    #[test]
    fn other_attributes_and_text_are_good() {
        assert!(lines("a.rs", "#[must_use]\n// #[ignore]\nf(\"#[ignore]\");", check).is_empty());
    }
}
