//! Rule `header`: a file opens by saying what it is. Short build scripts need not.

use super::Violation;
use super::source::{Source, Tree};

/// The header starts in one of this many lines.
const HEADER_LINES: usize = 3;

/// A build script may go without a header below this many lines.
const SHORT_BUILD_SCRIPT_LINES: usize = 40;

/// Finds files that do not open with `//!`.
pub fn check(tree: &Tree, found: &mut Vec<Violation>) {
    for source in &tree.sources {
        let has_header = source.comments.lines().take(HEADER_LINES).any(opens_with_header);
        if !has_header && !is_short_build_script(source) {
            let advice = format!(
                "open the file with `//!` in its first {HEADER_LINES} lines: what it is, in a sentence"
            );
            found.push(Violation::new(&source.path, 1, "header", advice));
        }
    }
}

fn opens_with_header(line: &str) -> bool {
    line.trim_start().strip_prefix("//!").is_some_and(|text| !text.trim().is_empty())
}

fn is_short_build_script(source: &Source) -> bool {
    let name = source.path.rsplit('/').next();
    name == Some("build.rs") && source.nr_lines() < SHORT_BUILD_SCRIPT_LINES
}

#[cfg(test)]
mod tests {
    use super::super::testing::lines;
    use super::*;

    #[test]
    fn a_header_may_follow_two_lines() {
        assert!(lines("a.rs", "//! What it is.\n", check).is_empty());
        assert!(lines("a.rs", "// UNSAFETY: x\n\n//! What it is.\n", check).is_empty());
        assert_eq!(lines("a.rs", "\n\n\n//! Too late.\n", check), [1]);
    }

    #[test]
    fn an_empty_header_and_one_in_a_string_are_none() {
        assert_eq!(lines("a.rs", "//!\nfn f() {}\n", check), [1]);
        assert_eq!(lines("a.rs", "const A: &str = \"\n//! no\";\n", check), [1]);
    }

    #[test]
    fn only_a_short_build_script_goes_without() {
        assert!(lines("c/build.rs", "fn main() {}\n", check).is_empty());
        assert_eq!(lines("c/build.rs", &"// x\n".repeat(40), check), [1]);
    }
}
