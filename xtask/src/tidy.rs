//! The house rules as a check: each rule is one file below this one, and looks at the whole tree.
//!
//! A rule gets the [`Tree`] and adds a [`Violation`] for each place that breaks it. Rules look at
//! code with comments and strings blanked out (see [`lexer`]), so that text about a rule never
//! breaks it.

mod atomics_door;
mod breakages;
mod code_map;
mod comment_width;
mod crate_layers;
mod decisions;
mod file_length;
mod fn_length;
mod header;
mod idioms;
mod ignored_tests;
mod lexer;
mod machine_door;
mod module_layers;
mod orderings;
mod source;
mod test_code;
mod type_names;
mod unsafe_code;
mod words;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::{fs, io};

use self::source::Tree;
use crate::{allowed, layers};

/// One place that breaks a rule. Violations sort by path, then line.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// Path from the workspace root.
    pub path: String,
    /// Line, from 1.
    pub line: usize,
    /// Short name of the rule.
    pub rule: &'static str,
    /// What is wrong and what to do about it.
    pub advice: String,
}

impl Violation {
    fn new(path: &str, line: usize, rule: &'static str, advice: impl Into<String>) -> Violation {
        Violation { path: path.to_owned(), line, rule, advice: advice.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.path, self.line, self.rule, self.advice)
    }
}

/// Files that are neither Rust nor documents, and that a rule reads.
const TEXTS: [&str; 1] = [crate_layers::MM_MANIFEST];

/// Checks the workspace at `root`, prints each violation and a closing count, and returns true if
/// there was none.
///
/// # Errors
/// A file that cannot be read.
pub fn run(root: &Path) -> io::Result<bool> {
    let tree = load(root)?;
    let violations = check(&tree);
    for violation in &violations {
        println!("{violation}");
    }
    let files: BTreeSet<&str> = violations.iter().map(|violation| &*violation.path).collect();
    let nr_sources = tree.sources.len();
    println!(
        "tidy: files checked: {nr_sources}, violations: {}, in files: {}",
        violations.len(),
        files.len()
    );
    Ok(violations.is_empty())
}

/// Writes what documents say of files: the purposes in the code map, and the index of decisions.
///
/// # Errors
/// A file that cannot be read or written.
pub fn write_docs(root: &Path) -> io::Result<bool> {
    let tree = load(root)?;
    let map = tree.texts.get(code_map::MAP).map(|text| code_map::written(&tree, text));
    let index = Some(decisions::written(&tree));
    for (path, text) in [(code_map::MAP, map), (decisions::INDEX, index)] {
        let Some(text) = text else { continue };
        if tree.texts.get(path) != Some(&text) {
            fs::write(root.join(path), text)?;
            println!("written: {path}");
        }
    }
    Ok(true)
}

/// Every violation in `tree`, in order of path and line.
fn check(tree: &Tree) -> Vec<Violation> {
    let mut found = Vec::new();
    file_length::check(tree, &mut found);
    comment_width::check(tree, &mut found);
    fn_length::check(tree, &mut found);
    header::check(tree, &mut found);
    unsafe_code::check(tree, allowed::UNSAFE_FILES, &mut found);
    orderings::check(tree, allowed::ORDERING_FILES, &mut found);
    atomics_door::check(tree, &mut found);
    machine_door::check(tree, &mut found);
    crate_layers::check(tree, layers::FOREIGN_NAMES, &mut found);
    module_layers::check(tree, "crates/pgmap-mm/", layers::MM_LAYERS, &mut found);
    module_layers::check(tree, "crates/pgmap/", layers::PGMAP_LAYERS, &mut found);
    type_names::check(tree, &mut found);
    words::check(tree, &mut found);
    idioms::check(tree, &mut found);
    decisions::check(tree, &mut found);
    code_map::check(tree, &mut found);
    ignored_tests::check(tree, &mut found);
    breakages::check(tree, &mut found);
    found.sort();
    found
}

fn load(root: &Path) -> io::Result<Tree> {
    let mut paths = match paths_from_git(root) {
        Some(paths) => paths,
        None => paths_from_disk(root)?,
    };
    paths.extend(TEXTS.map(str::to_owned));
    let mut files = Vec::new();
    for path in paths {
        match fs::read_to_string(root.join(&path)) {
            Ok(text) => files.push((path, text)),
            // Git still lists a file that was deleted but not yet committed as such.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io::Error::new(error.kind(), format!("{path}: {error}"))),
        }
    }
    Ok(Tree::new(files))
}

/// The Rust files and documents that git tracks or would track; `None` if git cannot say.
fn paths_from_git(root: &Path) -> Option<Vec<String>> {
    let output = Command::new("git")
        // A check run as root in another user's checkout is otherwise refused.
        .args(["-c", "safe.directory=*", "ls-files", "-z"])
        .args(["--cached", "--others", "--exclude-standard", "--", "*.rs", "*.md"])
        .current_dir(root)
        .output()
        .ok()?;
    if !output.status.success() {
        return None;
    }
    let listing = String::from_utf8(output.stdout).ok()?;
    // A file in conflict is listed once per side.
    let paths: BTreeSet<&str> = listing.split_terminator('\0').collect();
    Some(paths.into_iter().map(str::to_owned).collect())
}

/// The Rust files and documents below `root`, in a source archive without git. Hidden folders and
/// cargo's target folders are left out.
fn paths_from_disk(root: &Path) -> io::Result<Vec<String>> {
    let mut paths = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = format!("{folder}{name}");
            let is_folder = entry.file_type()?.is_dir();
            if is_folder && !name.starts_with('.') && !name.starts_with("target") {
                folders.push(format!("{path}/"));
            } else if !is_folder && (name.ends_with(".rs") || name.ends_with(".md")) {
                paths.push(path);
            }
        }
    }
    Ok(paths)
}

/// What the rules' tests share.
#[cfg(test)]
mod testing {
    use super::source::Tree;
    use super::{Violation, allowed, layers};

    /// A tree of the given files.
    pub fn tree(files: &[(&str, &str)]) -> Tree {
        Tree::new(files.iter().map(|(path, text)| (path.to_string(), text.to_string())).collect())
    }

    /// The lines that `rule` complains about in a tree of one file.
    pub fn lines(path: &str, text: &str, rule: fn(&Tree, &mut Vec<Violation>)) -> Vec<usize> {
        let mut found = Vec::new();
        rule(&tree(&[(path, text)]), &mut found);
        found.into_iter().map(|violation| violation.line).collect()
    }

    #[test]
    fn a_violation_prints_as_path_line_rule_advice() {
        let violation = Violation::new("a/b.rs", 7, "words", "remove it");
        assert_eq!(violation.to_string(), "a/b.rs:7: words: remove it");
    }

    #[test]
    fn the_whole_check_is_ordered_by_path_and_line() {
        let bad = "fn f() {\n    todo!();\n    dbg!(1);\n}\n";
        let found: Vec<_> = super::check(&tree(&[("b.rs", bad), ("a.rs", bad)]))
            .into_iter()
            .filter(|violation| violation.path.len() == "a.rs".len())
            .map(|violation| (violation.path, violation.line, violation.rule))
            .collect();
        let expected =
            |path: &str| {
                [(path.to_owned(), 1, "header"), (path.to_owned(), 2, "words")]
                    .into_iter()
                    .chain([(path.to_owned(), 3, "words")])
            };
        assert_eq!(found, expected("a.rs").chain(expected("b.rs")).collect::<Vec<_>>());
    }

    #[test]
    fn no_list_names_anything_twice() {
        let modules = |layers: &[(&str, &'static [&'static str])]| {
            layers.iter().flat_map(|layer| layer.1).copied().collect::<Vec<&str>>()
        };
        let (mm, pgmap) = (modules(layers::MM_LAYERS), modules(layers::PGMAP_LAYERS));
        for list in [&mm, &pgmap, allowed::UNSAFE_FILES, allowed::ORDERING_FILES] {
            for (index, entry) in list.iter().enumerate() {
                assert!(!list[..index].contains(entry), "{entry} is listed twice");
            }
        }
    }
}
