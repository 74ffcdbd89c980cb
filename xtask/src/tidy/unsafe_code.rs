//! Rule `unsafe`: unsafe code stands only in listed files, and each piece of it says why it is
//! sound.

use super::Violation;
use super::source::{Source, Tree, find_word, leading_word};

/// The `// UNSAFETY:` line stands in one of this many first lines.
const UNSAFETY_LINES: usize = 50;

/// A `// SAFETY:` comment stands at most this many lines above what it is about.
const SAFETY_DISTANCE_LINES: usize = 12;

/// The crate that can never be on the list.
const SAFE_CRATE: &str = "crates/pgmap-mm/";

/// Where the list is, for those who must edit it.
const LIST: &str = "xtask/src/allowed.rs";

/// Finds unsafe code outside the files in `allowed`, unsafe code without its reasons, and entries
/// of `allowed` that nothing needs.
pub fn check(tree: &Tree, allowed: &[&str], found: &mut Vec<Violation>) {
    for source in &tree.sources {
        let may = allowed.contains(&source.path.as_str()) && !source.path.starts_with(SAFE_CRATE);
        if may {
            check_reasons(source, found);
        } else {
            check_absence(source, found);
        }
    }
    check_list(tree, allowed, found);
}

fn check_absence(source: &Source, found: &mut Vec<Violation>) {
    for offset in find_word(&source.code, "unsafe") {
        let advice = if source.path.starts_with(SAFE_CRATE) {
            "no unsafe in pgmap-mm: let a crate that may have it own the memory".to_owned()
        } else {
            format!("move it into a file that {LIST} lists, or list this one and say why it must")
        };
        found.push(Violation::new(&source.path, source.line_of(offset), "unsafe", advice));
    }
}

fn check_reasons(source: &Source, found: &mut Vec<Violation>) {
    let comments: Vec<&str> = source.comments.lines().collect();
    let has_unsafety = comments.iter().take(UNSAFETY_LINES).any(|line| says(line, "// UNSAFETY:"));
    if !has_unsafety {
        let advice = format!(
            "add `// UNSAFETY: why this file cannot do without` in the first {UNSAFETY_LINES} lines"
        );
        found.push(Violation::new(&source.path, 1, "unsafe", advice));
    }
    for offset in find_word(&source.code, "unsafe") {
        let rest = &source.code[offset + "unsafe".len()..];
        if !rest.trim_start().starts_with('{') && leading_word(rest) != "impl" {
            continue;
        }
        let line = source.line_of(offset);
        let first = line.saturating_sub(1 + SAFETY_DISTANCE_LINES);
        let has_safety = comments[first..line].iter().any(|line| says(line, "// SAFETY:"));
        if !has_safety {
            let advice = format!(
                "put `// SAFETY:` above it (at most {SAFETY_DISTANCE_LINES} lines): \
                 each precondition and what discharges it"
            );
            found.push(Violation::new(&source.path, line, "unsafe", advice));
        }
    }
}

/// True if a comment on `line` begins with `mark` and goes on after it.
fn says(line: &str, mark: &str) -> bool {
    line.trim_start().strip_prefix(mark).is_some_and(|reason| !reason.trim().is_empty())
}

fn check_list(tree: &Tree, allowed: &[&str], found: &mut Vec<Violation>) {
    for entry in allowed {
        if entry.starts_with(SAFE_CRATE) {
            let advice = format!("remove {entry}: pgmap-mm has no unsafe code");
            found.push(Violation::new(LIST, 1, "unsafe", advice));
        }
        let mut sources = tree.sources.iter().filter(|source| source.path == *entry);
        if !sources.any(|source| find_word(&source.code, "unsafe").next().is_some()) {
            let advice = format!("remove {entry}: there is no such file, or no unsafe in it");
            found.push(Violation::new(LIST, 1, "unsafe", advice));
        }
    }
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

    const GOOD: &str = "//! A.\n// UNSAFETY: maps memory.\nfn f() {\n    // SAFETY: p is valid.\n    unsafe { g(p) };\n}\n";

    #[test]
    fn a_listed_file_with_its_reasons_is_good() {
        assert!(violations("a.rs", GOOD, &["a.rs"]).is_empty());
    }

    #[test]
    fn the_same_file_unlisted_is_not() {
        assert_eq!(violations("a.rs", GOOD, &[]), [("a.rs".to_owned(), 5)]);
    }

    #[test]
    fn comments_strings_and_lint_names_are_not_unsafe_code() {
        let text = "//! A.\n#![deny(unsafe_code)]\n// unsafe\nconst A: &str = \"unsafe {\";\n";
        assert!(violations("a.rs", text, &[]).is_empty());
    }

    #[test]
    fn each_reason_is_asked_for() {
        let unsaid = GOOD.replace("// UNSAFETY: maps memory.", "// Maps memory.");
        assert_eq!(violations("a.rs", &unsaid, &["a.rs"]), [("a.rs".to_owned(), 1)]);
        let empty = GOOD.replace("// SAFETY: p is valid.", "// SAFETY:");
        assert_eq!(violations("a.rs", &empty, &["a.rs"]), [("a.rs".to_owned(), 5)]);
        let impls = format!("{GOOD}{}unsafe impl Send for A {{}}\n", "\n".repeat(20));
        assert_eq!(violations("a.rs", &impls, &["a.rs"]), [("a.rs".to_owned(), 27)]);
    }

    #[test]
    fn a_safety_comment_counts_twelve_lines_down_and_no_further() {
        let text =
            |nr| format!("// UNSAFETY: x.\n// SAFETY: y.\n{}unsafe {{ }}\n", "\n".repeat(nr));
        assert!(violations("a.rs", &text(11), &["a.rs"]).is_empty());
        assert_eq!(violations("a.rs", &text(12), &["a.rs"]).len(), 1);
    }

    #[test]
    fn an_unsafe_fn_needs_no_safety_comment_here() {
        let text = "// UNSAFETY: x.\n/// # Safety\n/// y\nunsafe fn f() {}\n";
        assert!(violations("a.rs", text, &["a.rs"]).is_empty());
    }

    #[test]
    fn listing_pgmap_mm_does_not_help() {
        let path = "crates/pgmap-mm/src/a.rs";
        let found = violations(path, GOOD, &[path]);
        assert_eq!(found, [(path.to_owned(), 5), (LIST.to_owned(), 1)]);
    }

    #[test]
    fn an_entry_nobody_needs_is_a_violation() {
        assert_eq!(
            violations("a.rs", "fn f() {}\n", &["a.rs"]).last(),
            Some(&(LIST.to_owned(), 1))
        );
        assert_eq!(violations("a.rs", "", &["gone.rs"]), [(LIST.to_owned(), 1)]);
    }
}
