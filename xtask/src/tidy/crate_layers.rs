//! Rule `crate-layer`: a crate does not name a crate beside or above it, and pgmap-mm depends on
//! nothing at run time.

use super::Violation;
use super::source::{Tree, find_word};

/// The manifest whose dependencies stay empty.
pub const MM_MANIFEST: &str = "crates/pgmap-mm/Cargo.toml";

/// The tables that may fill in that manifest: neither is compiled into a user's build.
const MM_DEPENDENCY_TABLES: [&str; 2] = ["dev-dependencies", "target.'cfg(loom)'.dependencies"];

/// Finds names in `foreign` where they must not stand, and dependencies of pgmap-mm.
pub fn check(tree: &Tree, foreign: &[(&str, &[&str])], found: &mut Vec<Violation>) {
    for (folder, names) in foreign {
        for source in tree.below(folder) {
            for name in *names {
                for offset in find_word(&source.code, name) {
                    let advice = format!("`{name}` must not be named below {folder}");
                    let line = source.line_of(offset);
                    found.push(Violation::new(&source.path, line, "crate-layer", advice));
                }
            }
        }
    }
    if let Some(manifest) = tree.texts.get(MM_MANIFEST) {
        check_manifest(manifest, found);
    }
}

fn check_manifest(manifest: &str, found: &mut Vec<Violation>) {
    let mut table = String::new();
    for (index, line) in manifest.lines().enumerate() {
        let line = line.split('#').next().unwrap_or("").trim();
        let header = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Some(header) = header {
            table = header.trim().to_owned();
        }
        let is_entry = match header {
            // `[dependencies.name]` is an entry that spells itself as a table.
            Some(_) => is_dependency_table(&table) && !table.ends_with("dependencies"),
            None => !line.is_empty() && is_dependency_table(&table),
        };
        if is_entry {
            let advice = "pgmap-mm depends on nothing at run time: remove the dependency";
            found.push(Violation::new(MM_MANIFEST, index + 1, "crate-layer", advice));
        }
    }
}

/// True if entries of `table` would be compiled into a user's build.
fn is_dependency_table(table: &str) -> bool {
    let allowed = MM_DEPENDENCY_TABLES.iter().any(|allowed| table.starts_with(allowed));
    table.contains("dependencies") && !allowed
}

#[cfg(test)]
mod tests {
    use super::super::testing::{lines, tree};
    use super::*;
    use crate::layers::FOREIGN_NAMES;

    fn check_names(tree: &Tree, found: &mut Vec<Violation>) {
        check(tree, FOREIGN_NAMES, found);
    }

    fn manifest_lines(manifest: &str) -> Vec<usize> {
        let mut found = Vec::new();
        check(&tree(&[(MM_MANIFEST, manifest)]), &[], &mut found);
        found.into_iter().map(|violation| violation.line).collect()
    }

    #[test]
    fn mm_and_os_do_not_know_each_other() {
        let mm = "crates/pgmap-mm/src/pin.rs";
        assert_eq!(lines(mm, "use pgmap_os::mapping;", check_names), [1]);
        assert_eq!(lines(mm, "\nuse pgmap::Pool;", check_names), [2]);
        assert_eq!(lines("crates/pgmap-os/src/a.rs", "use pgmap_mm::Pfn;", check_names), [1]);
    }

    #[test]
    fn own_names_lower_crates_and_comments_are_good() {
        let mm = "crates/pgmap-mm/src/pin.rs";
        assert!(
            lines(mm, "// pgmap_os\nlet pgmap = pgmap_mm::Pfn::new(0);", check_names).is_empty()
        );
        assert!(
            lines("crates/pgmap/src/a.rs", "use pgmap_os::x; use pgmap_mm::y;", check_names)
                .is_empty()
        );
    }

    #[test]
    fn an_empty_table_is_good_and_so_are_test_tables() {
        let good = "[dependencies]\n# none\n\n[target.'cfg(loom)'.dependencies]\nloom.workspace = true\n\
                    [dev-dependencies]\nproptest.workspace = true\n[lints]\nworkspace = true\n";
        assert!(manifest_lines(good).is_empty());
    }

    #[test]
    fn a_dependency_is_found_however_it_is_written() {
        assert_eq!(manifest_lines("[dependencies]\nlibc = \"0.2\"\n"), [2]);
        assert_eq!(manifest_lines("[dependencies.libc]\nversion = \"0.2\"\n"), [1, 2]);
        assert_eq!(manifest_lines("[target.'cfg(unix)'.dependencies]\nlibc = \"0.2\"\n"), [2]);
    }
}
