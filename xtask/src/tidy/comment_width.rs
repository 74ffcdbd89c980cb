//! Rule `comment-width`: prose is wrapped at 100 columns, as code is, and so are messages.
//!
//! The formatter leaves comments and documents alone. Tables and what stands between code fences,
//! where diagrams are, may be wider, and so may what a program wrote between HTML comments.

use super::Violation;
use super::source::{Source, Tree};

/// The widest a line of prose may be, in characters.
const MAX_COLUMNS: usize = 100;

/// Where code is held to the width as well. Elsewhere it has texts that others read by line.
const CRATES: &str = "crates/";

/// Finds lines of comments and of documents that are too wide.
pub fn check(tree: &Tree, found: &mut Vec<Violation>) {
    for source in &tree.sources {
        check_source(source, found);
    }
    for (path, text) in tree.texts.iter().filter(|(path, _)| path.ends_with(".md")) {
        check_document(path, text, found);
    }
}

fn check_document(path: &str, text: &str, found: &mut Vec<Violation>) {
    let (mut is_fenced, mut is_written) = (false, false);
    for (number, line) in text.lines().enumerate() {
        let is_fence = line.trim_start().starts_with("```");
        is_fenced ^= is_fence;
        if line.starts_with("<!--") {
            is_written = !line.starts_with("<!-- end");
        }
        let columns = line.chars().count();
        let is_code = is_fenced || line.starts_with("    ");
        let may_be_wide = is_code || is_written || line.starts_with('|');
        if columns > MAX_COLUMNS && !may_be_wide {
            let advice = format!("{columns} columns, {MAX_COLUMNS} are allowed: wrap the line");
            found.push(Violation::new(path, number + 1, "comment-width", advice));
        }
    }
}

fn check_source(source: &Source, found: &mut Vec<Violation>) {
    let mut is_fenced = false;
    for (number, line) in source.raw.lines().enumerate() {
        let Some(prose) = comment(line) else {
            is_fenced = false;
            if line.chars().count() > MAX_COLUMNS && source.path.starts_with(CRATES) {
                let advice = "break the string with `\\`: the formatter leaves it alone";
                found.push(Violation::new(&source.path, number + 1, "comment-width", advice));
            }
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
    use super::super::testing::{lines, tree};
    use super::*;

    #[test]
    fn wide_comments_are_found_and_code_is_the_formatters() {
        let wide = format!("// {}\n", "x".repeat(98));
        assert_eq!(lines("a.rs", &wide, check), [1]);
        assert_eq!(lines("a.rs", &wide[1..], check), [] as [usize; 0]);
        let code = "x".repeat(101);
        assert_eq!(lines("crates/a/src/a.rs", &code, check), [1], "the formatter gave up");
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

    #[test]
    fn prose_of_documents_is_wrapped_and_tables_fences_and_written_parts_need_not_be() {
        let wide = "x ".repeat(60);
        let text = format!(
            "{wide}\n| {wide} |\n```\n{wide}\n```\n<!-- a -->\n{wide}\n<!-- end -->\n{wide}\n"
        );
        let mut found = Vec::new();
        check(&tree(&[("a.md", &text)]), &mut found);
        assert_eq!(found.iter().map(|found| found.line).collect::<Vec<_>>(), [1, 9]);
    }
}
