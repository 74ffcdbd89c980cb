//! Rule `code-map`: the map in ARCHITECTURE.md and the tree agree.

use super::Violation;
use super::source::Tree;

/// The document that holds the map. Where it is missing, the rule is silent.
pub const ARCHITECTURE: &str = "ARCHITECTURE.md";

/// The sources that the map names one by one.
const MM_SOURCES: &str = "crates/pgmap-mm/src/";

/// Finds paths in the map that lead nowhere, and files of pgmap-mm that are not on it.
pub fn check(tree: &Tree, found: &mut Vec<Violation>) {
    let Some(text) = tree.texts.get(ARCHITECTURE) else {
        return;
    };
    let mut named = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for path in source_paths(line) {
            if !tree.sources.iter().any(|source| source.path == path) {
                let advice = format!("{path} does not exist: correct the map");
                found.push(Violation::new(ARCHITECTURE, index + 1, "code-map", advice));
            }
            named.push(path);
        }
    }
    for source in tree.below(MM_SOURCES) {
        if !named.contains(&source.path.as_str()) {
            let advice = format!("put the file on the code map in {ARCHITECTURE}");
            found.push(Violation::new(&source.path, 1, "code-map", advice));
        }
    }
}

/// Every `crates/….rs` path on `line`.
fn source_paths(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !(c.is_ascii_alphanumeric() || "/_-.".contains(c)))
        .filter_map(|word| word.find("crates/").map(|start| word[start..].trim_end_matches('.')))
        .filter(|path| path.ends_with(".rs"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::tree;
    use super::*;

    const PIN: &str = "crates/pgmap-mm/src/pin.rs";

    fn violations(files: &[(&str, &str)]) -> Vec<(String, usize)> {
        let mut found = Vec::new();
        check(&tree(files), &mut found);
        found.into_iter().map(|violation| (violation.path, violation.line)).collect()
    }

    #[test]
    fn a_map_that_agrees_is_good_in_every_notation() {
        for map in [
            "| pin | `crates/pgmap-mm/src/pin.rs` |",
            "[pin](./crates/pgmap-mm/src/pin.rs)",
            "See crates/pgmap-mm/src/pin.rs.",
        ] {
            assert!(violations(&[(ARCHITECTURE, map), (PIN, "")]).is_empty(), "{map}");
        }
    }

    #[test]
    fn a_path_that_leads_nowhere_is_found() {
        let map = "\n`crates/pgmap/src/gone.rs`";
        assert_eq!(violations(&[(ARCHITECTURE, map)]), [(ARCHITECTURE.to_owned(), 2)]);
    }

    #[test]
    fn a_file_of_pgmap_mm_that_is_not_on_the_map_is_found() {
        assert_eq!(violations(&[(ARCHITECTURE, ""), (PIN, "")]), [(PIN.to_owned(), 1)]);
        assert!(violations(&[(ARCHITECTURE, ""), ("crates/pgmap/src/a.rs", "")]).is_empty());
    }

    #[test]
    fn without_the_document_there_is_nothing_to_check() {
        assert!(violations(&[(PIN, "")]).is_empty());
    }
}
