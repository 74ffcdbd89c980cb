//! Rule `decisions`: the pages of docs/adr have one form, and the index lists each of them.

use super::Violation;
use super::source::Tree;

/// Where the pages are.
const FOLDER: &str = "docs/adr/";

/// The list of all pages.
pub const INDEX: &str = "docs/adr/README.md";

/// A list that is kept up to date, and so no decision of one day.
const DEPENDENCIES: &str = "docs/adr/0002-dependencies.md";

/// What each page has.
const PARTS: [&str; 2] = ["**Context.**", "**Choice.**"];

/// What is above the list in the index.
const INDEX_HEAD: &str = "\
# Decisions

Why pgmap is as it is: a page for each choice that somebody may later want to undo. The form is that
of [0001](0001-record-decisions.md). `cargo xtask docs` writes this table.

| number | choice |
|---|---|
";

/// Finds pages of another form, and an index that does not list what is there.
pub fn check(tree: &Tree, found: &mut Vec<Violation>) {
    let mut has_pages = false;
    for (path, text) in pages(tree) {
        has_pages = true;
        let number = number(path);
        if title(path, text).is_none() {
            let advice = format!("the first line is `# {number}: what was chosen`");
            found.push(Violation::new(path, 1, "decisions", advice));
        }
        for part in PARTS.iter().filter(|part| path != DEPENDENCIES && !text.contains(**part)) {
            let advice = format!("a paragraph begins with `{part}`: see docs/adr/0001");
            found.push(Violation::new(path, 1, "decisions", advice));
        }
    }
    if has_pages && tree.texts.get(INDEX).is_none_or(|index| *index != written(tree)) {
        let advice = "the list is not that of the pages: run `cargo xtask docs`";
        found.push(Violation::new(INDEX, 1, "decisions", advice));
    }
}

/// The index, as it should be.
pub fn written(tree: &Tree) -> String {
    let mut index = INDEX_HEAD.to_owned();
    for (path, text) in pages(tree) {
        let title = title(path, text).unwrap_or("(no title)");
        let file = &path[FOLDER.len()..];
        index.push_str(&format!("| [{}]({file}) | {title} |\n", number(path)));
    }
    index
}

/// The pages in order of their number.
fn pages(tree: &Tree) -> impl Iterator<Item = (&str, &str)> {
    let texts = tree.texts.iter().map(|(path, text)| (path.as_str(), text.as_str()));
    texts.filter(|(path, _)| path.starts_with(FOLDER) && *path != INDEX)
}

/// The digits that the file's name begins with.
fn number(path: &str) -> &str {
    let name = &path[FOLDER.len()..];
    name.split('-').next().unwrap_or(name)
}

/// What the heading says after the number.
fn title<'t>(path: &str, text: &'t str) -> Option<&'t str> {
    let heading = text.lines().next()?.strip_prefix("# ")?;
    heading.strip_prefix(number(path))?.strip_prefix(": ")
}

#[cfg(test)]
mod tests {
    use super::super::testing::tree;
    use super::*;

    const PAGE: &str = "# 0007: It is so\n\n**Context.** A.\n\n**Choice.** B.\n";

    fn violations(files: &[(&str, &str)]) -> Vec<String> {
        let mut found = Vec::new();
        check(&tree(files), &mut found);
        found.into_iter().map(|violation| violation.path).collect()
    }

    #[test]
    fn a_page_of_the_form_that_is_listed_is_good() {
        let page = ("docs/adr/0007-so.md", PAGE);
        let index = format!("{INDEX_HEAD}| [0007](0007-so.md) | It is so |\n");
        assert!(violations(&[page, (INDEX, &index)]).is_empty());
        assert_eq!(violations(&[page, (INDEX, INDEX_HEAD)]), [INDEX]);
        assert_eq!(violations(&[page]), [INDEX], "a missing index is a wrong one");
    }

    #[test]
    fn a_page_without_number_or_parts_is_found() {
        for text in [PAGE.replace("# 0007: ", "# "), PAGE.replace("**Choice.**", "We choose")] {
            let files = [("docs/adr/0007-so.md", text.as_str())];
            let index = written(&tree(&files));
            assert_eq!(violations(&[files[0], (INDEX, &index)]), ["docs/adr/0007-so.md"]);
        }
    }
}
