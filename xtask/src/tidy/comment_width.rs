//! Rule `comment-width`: prose is wrapped at 100 columns, as code is.
//!
//! The formatter leaves comments alone. Tables and what stands between code fences, where diagrams
//! are, may be wider.

use super::Violation;
use super::source::{Source, Tree};

/// The widest a line of prose may be, in characters.
const MAX_COLUMNS: usize = 100;

/// Finds lines of comments that are too wide.
pub fn check(tree: &Tree, found: &mut Vec<Violation>) {
    for source in &tree.sources {
        check_source(source, found);
    }
}

fn check_source(source: &Source, found: &mut Vec<Violation>) {
    let mut is_fenced = false;
    for (number, line) in source.raw.lines().enumerate() {
        let Some(prose) = comment(line) else {
            is_fenced = false;
            continue;
        };
        if prose.starts_with("```") {
            is_fenced = !is_fenced;
        }
        let columns = line.chars().count();
        if columns > MAX_COLUMNS && !is_fenced && !prose.starts_with('|') {
            let advice = format!("{columns} columns, {MAX_COLUMNS} are allowed: wrap the comment");
            found.push(Violation::new(&source.path, number + 1, "comment-width", advice));
        }
    }
}

/// What a line that is a comment says.
fn comment(line: &str) -> Option<&str> {
    let text = line.trim_start().strip_prefix("//")?;
    Some(text.trim_start_matches(['/', '!']).trim_start())
}

#[cfg(test)]
mod tests {
    use super::super::testing::lines;
    use super::*;

    #[test]
    fn wide_comments_are_found_and_code_is_the_formatters() {
        let wide = format!("// {}\n", "x".repeat(98));
        assert_eq!(lines("a.rs", &wide, check), [1]);
        assert_eq!(lines("a.rs", &wide[1..], check), [] as [usize; 0]);
        let fits = format!("/// {}\n", "é".repeat(96));
        assert!(lines("a.rs", &fits, check).is_empty());
    }

    #[test]
    fn tables_and_fences_may_be_wider() {
        let wide = "x".repeat(120);
        let fenced = format!("//! ```text\n//! {wide}\n//! ```\n//! {wide}\n//! | {wide} |\n");
        assert_eq!(lines("a.rs", &fenced, check), [4]);
        let ended = format!("//! ```text\nfn f() {{}}\n// {wide}\n");
        assert_eq!(lines("a.rs", &ended, check), [3], "a fence ends with its comment");
    }
}
