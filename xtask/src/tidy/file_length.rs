//! Rule `file-length`: a file is one concept, and one concept fits in 700 lines.

use super::Violation;
use super::source::Tree;

/// The longest a file may be, tests and all.
const MAX_FILE_LINES: usize = 700;

/// Finds files that are too long.
pub fn check(tree: &Tree, found: &mut Vec<Violation>) {
    for source in &tree.sources {
        let nr_lines = source.nr_lines();
        if nr_lines > MAX_FILE_LINES {
            let advice =
                format!("{nr_lines} lines, {MAX_FILE_LINES} are allowed: split by concept");
            found.push(Violation::new(&source.path, MAX_FILE_LINES + 1, "file-length", advice));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::lines;
    use super::*;

    #[test]
    fn the_limit_itself_is_allowed() {
        assert!(lines("a.rs", &"x\n".repeat(700), check).is_empty());
        assert_eq!(lines("a.rs", &"x\n".repeat(701), check), [701]);
    }

    #[test]
    fn test_files_are_held_to_it_too() {
        assert_eq!(lines("c/tests/a.rs", &"x\n".repeat(900), check), [701]);
    }
}
