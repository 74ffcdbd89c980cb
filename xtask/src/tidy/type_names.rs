//! Rule `type-names`: no two files of the library's crates have a type of the same name.

use std::collections::BTreeMap;

use super::Violation;
use super::source::{Tree, leading_word};

/// The crates that it holds for, together.
const FOLDERS: [&str; 3] = ["crates/pgmap-mm/src/", "crates/pgmap-os/src/", "crates/pgmap/src/"];

/// Finds types that are called as one of an earlier file. A file may have twins for different
/// targets, and types of tests are their own.
pub fn check(tree: &Tree, found: &mut Vec<Violation>) {
    let mut first: BTreeMap<&str, &str> = BTreeMap::new();
    for folder in FOLDERS {
        for source in tree.below(folder).filter(|source| !source.is_test_file) {
            for (index, text) in source.code.lines().enumerate() {
                let line = index + 1;
                let Some(name) = declared_type(text) else { continue };
                if source.is_test_line(line) {
                    continue;
                }
                let before = first.entry(name).or_insert(&source.path);
                if *before != source.path {
                    let advice = format!("`{name}` is a type of {before} too: rename one of them");
                    found.push(Violation::new(&source.path, line, "type-names", advice));
                }
            }
        }
    }
}

/// The type that a line at the top of a file declares. Associated types are indented.
fn declared_type(line: &str) -> Option<&str> {
    let rest = match line.strip_prefix("pub(") {
        Some(scoped) => scoped.split_once(") ")?.1,
        None => line.strip_prefix("pub ").unwrap_or(line),
    };
    let rest = rest.strip_prefix("unsafe ").unwrap_or(rest);
    let (word, rest) = rest.split_once(' ')?;
    let is_type = ["struct", "enum", "union", "trait", "type"].contains(&word);
    Some(leading_word(rest)).filter(|name| is_type && !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::testing::tree;
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<(String, usize)> {
        let mut found = Vec::new();
        check(&tree(files), &mut found);
        found.into_iter().map(|violation| (violation.path, violation.line)).collect()
    }

    #[test]
    fn one_name_for_two_types_of_a_crate_is_found() {
        let (a, b) = ("crates/pgmap/src/a.rs", "crates/pgmap/src/b.rs");
        let there = [(b.to_owned(), 2)];
        for text in ["enum Room {}", "pub(crate) trait Room {}", "pub unsafe trait Room: Send {}"] {
            assert_eq!(found(&[(a, "struct Room;"), (b, &format!("\n{text}"))]), there, "{text}");
        }
    }

    #[test]
    fn one_name_in_two_library_crates_is_found() {
        let (a, os) = ("crates/pgmap/src/a.rs", "crates/pgmap-os/src/a.rs");
        assert_eq!(found(&[(a, "struct Room;"), (os, "struct Room;")]), [(a.to_owned(), 1)]);
    }

    #[test]
    fn twins_in_a_file_tests_and_programs_are_good() {
        let (a, cli) = ("crates/pgmap/src/a.rs", "crates/pgmap-cli/src/a.rs");
        assert!(found(&[(a, "struct Room;\nstruct Room;"), (cli, "struct Room;")]).is_empty());
        let test = "#[cfg(test)]\nmod tests {\n    struct Room;\n}\nimpl A for B {\n    type Room = u8;\n}";
        assert!(found(&[(a, "struct Room;"), ("crates/pgmap/src/b.rs", test)]).is_empty());
    }
}
