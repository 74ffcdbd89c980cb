//! Rule `module-layer`: inside pgmap-mm and pgmap a module names only what stands before it in the
//! crate's table.
//!
//! Test code is exempt: a test of a low module may well need a high one. So is `lib.rs`, which
//! names them all.

use super::Violation;
use super::source::{Source, Tree, closing_bracket, find_word, leading_word};

/// Where the table is, for those who must edit it.
const TABLE: &str = "xtask/src/layers.rs";

/// The table, as `(layer, modules)` from the bottom up.
type Layers<'a> = &'a [(&'a str, &'a [&'a str])];

/// Finds uses in the crate below `folder` that point up, modules that `layers` does not know, and
/// names in it of no module.
pub fn check(tree: &Tree, folder: &str, layers: Layers, found: &mut Vec<Violation>) {
    let sources = format!("{folder}src/");
    check_names(tree, &sources, layers, found);
    for source in tree.below(&sources) {
        let own = module_of(&source.path[sources.len()..]);
        if own == "lib" || source.is_test_file {
            continue;
        }
        match place(layers, own) {
            Some(place) => check_uses(source, own, place, layers, found),
            None => {
                let advice =
                    format!("add module `{own}` to {TABLE}, after everything it builds on");
                found.push(Violation::new(&source.path, 1, "module-layer", advice));
            }
        }
    }
}

/// A name in the table without a file; nothing in a tree without the crate.
fn check_names(tree: &Tree, sources: &str, layers: Layers, found: &mut Vec<Violation>) {
    let below = tree.below(sources).map(|source| module_of(&source.path[sources.len()..]));
    let modules: Vec<&str> = below.collect();
    if !modules.contains(&"lib") {
        return;
    }
    for name in layers.iter().flat_map(|(_, names)| *names).filter(|name| !modules.contains(name)) {
        let advice = format!("{sources} has no module `{name}`: remove it from the table");
        found.push(Violation::new(TABLE, 1, "module-layer", advice));
    }
}

/// The top-level module that the file at `path`, below a crate's sources, belongs to.
fn module_of(path: &str) -> &str {
    let first = path.split('/').next().unwrap_or(path);
    first.strip_suffix(".rs").unwrap_or(first)
}

/// Where `module` stands: layer, then place in the layer. Lower is less.
fn place(layers: Layers, module: &str) -> Option<(usize, usize)> {
    layers.iter().enumerate().find_map(|(layer, (_, modules))| {
        modules.iter().position(|known| *known == module).map(|index| (layer, index))
    })
}

fn check_uses(
    source: &Source,
    own: &str,
    own_place: (usize, usize),
    layers: Layers,
    found: &mut Vec<Violation>,
) {
    for (offset, name) in crate_names(&source.code) {
        let line = source.line_of(offset);
        if source.is_test_line(line) {
            continue;
        }
        let advice = match place(layers, name) {
            Some(place) if place <= own_place => continue,
            Some((layer, _)) => format!(
                "`{own}` ({}) must not use `{name}` ({}): the table in {TABLE} puts it higher",
                layers[own_place.0].0, layers[layer].0
            ),
            None => format!(
                "`crate::{name}`: name the module it lives in; a new module goes into {TABLE}"
            ),
        };
        found.push(Violation::new(&source.path, line, "module-layer", advice));
    }
}

/// Every name that directly follows `crate::` in `code`, groups in braces included, and where.
fn crate_names(code: &str) -> Vec<(usize, &str)> {
    let mut names = Vec::new();
    for offset in find_word(code, "crate") {
        let rest = &code[offset + "crate".len()..];
        let Some(path) = rest.trim_start().strip_prefix("::").map(str::trim_start) else {
            continue;
        };
        if path.starts_with('{') {
            let start = code.len() - path.len();
            let group = &path[1..closing_bracket(path, 0).max(1)];
            names.extend(group_heads(group).map(|(at, name)| (start + 1 + at, name)));
        } else {
            names.push((offset, leading_word(path)));
        }
    }
    names
}

/// The first name of each entry of a use group, with its offset; nested groups are passed over.
fn group_heads(group: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut depth = 0;
    let mut starts = vec![0];
    for (offset, byte) in group.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' if depth == 0 => starts.push(offset + 1),
            _ => {}
        }
    }
    starts
        .into_iter()
        .map(move |start| {
            let entry = &group[start..];
            (start + entry.len() - entry.trim_start().len(), leading_word(entry))
        })
        .filter(|(_, name)| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::testing::tree;
    use super::*;

    const FOLDER: &str = "crates/pgmap-mm/";
    const LAYERS: Layers<'static> = &[("low", &["pfn", "level"]), ("high", &["pin", "drain"])];

    fn violations(file: &str, text: &str) -> Vec<usize> {
        let mut found = Vec::new();
        let path = format!("{FOLDER}src/{file}");
        check(&tree(&[(path.as_str(), text)]), FOLDER, LAYERS, &mut found);
        let of_file = found.into_iter().filter(|violation| violation.path == path);
        of_file.map(|violation| violation.line).collect()
    }

    #[test]
    fn down_back_and_itself_are_good() {
        assert!(violations("pin.rs", "use crate::pfn::Pfn;\nuse crate::pin::Pin;").is_empty());
        assert!(violations("level.rs", "use crate::pfn::Pfn;").is_empty());
        assert!(
            violations("drain/scan.rs", "use crate::{level::Level, pin::{self, A}};").is_empty()
        );
    }

    #[test]
    fn up_and_forward_are_found() {
        assert_eq!(violations("pfn.rs", "\nuse crate::pin::Pin;"), [2]);
        assert_eq!(violations("pfn.rs", "use crate::level::Level;"), [1]);
        assert_eq!(violations("pin.rs", "fn f() {\n    crate::drain::start()\n}"), [2]);
        assert_eq!(
            violations("level.rs", "use crate::{\n    pfn::{A, B},\n    drain::C,\n};"),
            [3]
        );
    }

    #[test]
    fn a_module_the_table_does_not_know_is_found() {
        assert_eq!(violations("tier.rs", "//! A.\n"), [1]);
        assert_eq!(violations("tier/far.rs", "//! A.\n"), [1]);
        assert_eq!(violations("pin.rs", "use crate::Pfn;"), [1]);
    }

    #[test]
    fn a_name_in_the_table_of_no_module_is_found() {
        let mut found = Vec::new();
        let files = ["lib", "pfn", "level", "pin"].map(|name| format!("{FOLDER}src/{name}.rs"));
        let files = files.each_ref().map(|path| (path.as_str(), "//! A.\n"));
        check(&tree(&files), FOLDER, LAYERS, &mut found);
        let advice: Vec<_> = found.iter().map(|violation| violation.advice.as_str()).collect();
        assert_eq!(
            advice,
            ["crates/pgmap-mm/src/ has no module `drain`: remove it from the table"]
        );
    }

    #[test]
    fn visibility_tests_and_the_root_are_not_uses() {
        assert!(violations("pfn.rs", "pub(crate) fn f() {}\npub(in crate) fn g() {}").is_empty());
        assert!(
            violations("pfn.rs", "#[cfg(test)]\nmod tests { use crate::pin::Pin; }").is_empty()
        );
        assert!(violations("lib.rs", "pub use crate::pin::Pin;").is_empty());
        assert!(violations("tier/tests.rs", "use crate::pin::Pin;").is_empty());
    }
}
