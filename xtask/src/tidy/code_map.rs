//! Rule `code-map`: docs/code-map.md names every source file, and says of each what the
//! first sentence of its header says. `cargo xtask docs` writes it.

use std::collections::BTreeMap;

use super::Violation;
use super::source::{Source, Tree};

/// The document that holds the map. Where it is missing, the rule is silent.
pub const MAP: &str = "docs/code-map.md";

/// What a crate's part of the map begins with, and the crate's folder follows.
const SECTION: &str = "### `";

/// Finds paths that lead nowhere, crates without a section, and a map that is not as it is written.
pub fn check(tree: &Tree, found: &mut Vec<Violation>) {
    let Some(text) = tree.texts.get(MAP) else {
        return;
    };
    let mut violation = |line, advice: String| {
        found.push(Violation::new(MAP, line, "code-map", advice));
    };
    for (index, line) in text.lines().enumerate() {
        for path in source_paths(line) {
            if !tree.sources.iter().any(|source| source.path == path) {
                violation(index + 1, format!("{path} does not exist: run `cargo xtask docs`"));
            }
        }
    }
    for source in mapped(tree) {
        let section = format!("{SECTION}{}`", crate_of(&source.path));
        if !text.contains(&section) {
            violation(1, format!("{} has no section: add `{section}` and a table", source.path));
        }
    }
    let expected = written(tree, text);
    let differs = |(_, (is, should)): &(usize, (&str, &str))| is != should;
    let lines = text.lines().chain([""]).zip(expected.lines().chain([""])).enumerate();
    if let Some((index, (_, should))) = lines.into_iter().find(differs) {
        violation(index + 1, format!("run `cargo xtask docs`; it writes here: {should}"));
    }
}

/// The document with its map as it should be: a row for each file, in order of path. The columns
/// between path and purpose are kept.
pub fn written(tree: &Tree, text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut rows: Option<(&str, usize, BTreeMap<&str, &str>)> = None;
    for line in text.lines().chain([""]) {
        if let Some(rest) = line.strip_prefix(SECTION) {
            let folder = rest.split('`').next().unwrap_or(rest);
            rows = Some((folder, 0, BTreeMap::new()));
        } else if let Some((folder, nr_columns, known)) = &mut rows {
            match (line.starts_with("| `"), line.starts_with('|')) {
                (true, _) => {
                    let path = line["| `".len()..].split('`').next().unwrap_or_default();
                    known.insert(path, line);
                    continue;
                }
                (false, true) => *nr_columns = line.matches('|').count().saturating_sub(1),
                (false, false) if *nr_columns > 0 => {
                    let below = mapped(tree).filter(|source| crate_of(&source.path) == *folder);
                    lines.extend(below.map(|source| row(source, known, *nr_columns)));
                    rows = None;
                }
                (false, false) => {}
            }
        }
        lines.push(line.to_owned());
    }
    lines.pop();
    lines.join("\n") + "\n"
}

fn row(source: &Source, known: &BTreeMap<&str, &str>, nr_columns: usize) -> String {
    let nr_middle = nr_columns.saturating_sub(2);
    let cells = known.get(source.path.as_str()).map(|line| cells(line)).unwrap_or_default();
    let middle = (1..=nr_middle).map(|nr| format!(" {} |", cells.get(nr).copied().unwrap_or("")));
    format!("| `{}` |{} {} |", source.path, middle.collect::<String>(), purpose(source))
}

/// The cells of a table's row.
fn cells(line: &str) -> Vec<&str> {
    let inner = line.trim().trim_start_matches('|').trim_end_matches('|');
    inner.split(" |").map(str::trim).collect()
}

/// The first sentence of a file's header, for a cell of a table.
fn purpose(source: &Source) -> String {
    let header = source.raw.lines().skip_while(|line| !line.starts_with("//! "));
    let paragraph: Vec<&str> = header
        .map_while(|line| line.strip_prefix("//!").map(str::trim).filter(|text| !text.is_empty()))
        .collect();
    let text = paragraph.join(" ");
    let sentence = text.split_once(". ").map_or(text.as_str(), |(first, _)| first);
    without_links(sentence.trim_end_matches('.')).replace('|', "\\|")
}

/// `[name](target)` and ``[`name`]`` become `name`: targets mean nothing outside the source. Other
/// brackets stay.
fn without_links(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('[') {
        let Some((name, after)) = after.split_once(']') else { break };
        plain.push_str(before);
        let target = after.strip_prefix('(').and_then(|target| target.split_once(')'));
        let is_link = target.is_some() || name.starts_with('`');
        plain.push_str(&if is_link { name.to_owned() } else { format!("[{name}]") });
        rest = target.map_or(after, |(_, after)| after);
    }
    plain + rest
}

/// The files that belong on the map.
fn mapped(tree: &Tree) -> impl Iterator<Item = &Source> {
    tree.below("crates/").filter(|source| source.path.split('/').nth(2) == Some("src"))
}

/// `crates/NAME` of a path below it.
fn crate_of(path: &str) -> &str {
    let end = path.match_indices('/').nth(1).map_or(path.len(), |(at, _)| at);
    &path[..end]
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

    const PIN: (&str, &str) =
        ("crates/pgmap-mm/src/pin.rs", "//! Pins [NR]: holds of a\n//! [`Folio`](x). More.\n");
    const HEAD: &str = "# A\n\n### `crates/pgmap-mm`: B\n\n| file | type | what |\n|---|---|---|\n";
    const ROW: &str = "| `crates/pgmap-mm/src/pin.rs` | `Pin` | Pins [NR]: holds of a `Folio` |\n";

    fn violations(files: &[(&str, &str)]) -> Vec<usize> {
        let mut found = Vec::new();
        check(&tree(files), &mut found);
        found.into_iter().map(|violation| violation.line).collect()
    }

    #[test]
    fn a_map_that_says_what_the_headers_say_is_good() {
        let map = format!("{HEAD}{ROW}\nAnd so on.\n");
        assert_eq!(violations(&[(MAP, &map), PIN]), [] as [usize; 0]);
    }

    #[test]
    fn another_purpose_and_a_missing_row_are_found_and_written() {
        for rows in ["| `crates/pgmap-mm/src/pin.rs` | `Pin` | Something |\n", ""] {
            let map = format!("{HEAD}{rows}\n");
            assert_eq!(violations(&[(MAP, &map), PIN]), [7], "{rows:?}");
            let middle = if rows.is_empty() { "  " } else { " `Pin` " };
            let expected = format!("{HEAD}{ROW}\n").replace(" `Pin` ", middle);
            assert_eq!(written(&tree(&[PIN]), &map), expected);
        }
    }

    #[test]
    fn a_path_that_leads_nowhere_is_found() {
        let map = "\n`crates/pgmap/src/gone.rs`\n";
        assert_eq!(violations(&[(MAP, map)]), [2]);
    }

    #[test]
    fn a_crate_without_a_section_is_found() {
        assert_eq!(violations(&[(MAP, "# A\n"), PIN]), [1]);
    }

    #[test]
    fn without_the_document_there_is_nothing_to_check() {
        assert!(violations(&[PIN]).is_empty());
    }
}
