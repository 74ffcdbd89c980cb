//! Rule `breakages`: what `xtask breakages` puts back must still fit the sources.

use super::Violation;
use super::source::Tree;

/// Finds places that are to be broken and are not there any more.
pub fn check(tree: &Tree, found: &mut Vec<Violation>) {
    check_places(tree, crate::breakages::places(), found);
}

fn check_places<'a>(
    tree: &Tree,
    places: impl Iterator<Item = (&'a str, &'a str)>,
    found: &mut Vec<Violation>,
) {
    for (path, text) in places {
        let source = tree.sources.iter().find(|source| source.path == path);
        if !source.is_some_and(|source| source.raw.contains(text)) {
            let advice = format!("it no longer has `{text}`: say in xtask/src/breakages.rs how");
            found.push(Violation::new(path, 1, "breakages", advice));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::tree;
    use super::*;

    #[test]
    fn a_place_that_is_gone_is_found() {
        let tree = tree(&[("a.rs", "one two")]);
        let mut found = Vec::new();
        check_places(&tree, [("a.rs", "one")].into_iter(), &mut found);
        assert!(found.is_empty());
        check_places(&tree, [("a.rs", "three"), ("b.rs", "one")].into_iter(), &mut found);
        assert_eq!(found.len(), 2);
    }
}
