//! One Rust file as the rules see it, and the tree of all of them.

use std::collections::BTreeMap;

use super::lexer::{is_word_byte, lex};
use super::test_code;

/// One Rust file, taken apart once for all rules.
pub struct Source {
    /// Path from the workspace root, with forward slashes.
    pub path: String,
    /// The file as it is.
    pub raw: String,
    /// The file with everything but code blanked out.
    pub code: String,
    /// The file with everything but comments blanked out.
    pub comments: String,
    /// True if the whole file is test code.
    pub is_test_file: bool,
    line_starts: Vec<usize>,
    is_test_line: Vec<bool>,
}

impl Source {
    /// Takes the file apart.
    pub fn new(path: &str, raw: &str) -> Source {
        let lexed = lex(raw);
        let line_starts: Vec<usize> = std::iter::once(0)
            .chain(lexed.code.match_indices('\n').map(|(offset, _)| offset + 1))
            .collect();
        let mut source = Source {
            path: path.to_owned(),
            raw: raw.to_owned(),
            code: lexed.code,
            comments: lexed.comments,
            is_test_file: test_code::is_test_path(path),
            is_test_line: vec![false; line_starts.len()],
            line_starts,
        };
        for region in test_code::regions(&source.code) {
            let (first, last) = (source.line_of(region.start), source.line_of(region.end));
            source.is_test_line[first - 1..last].fill(true);
        }
        source
    }

    /// The number, from 1, of the line that holds byte `offset`.
    pub fn line_of(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|&start| start <= offset)
    }

    /// True if `line`, counted from 1, is test code.
    pub fn is_test_line(&self, line: usize) -> bool {
        self.is_test_file || self.is_test_line.get(line - 1).copied().unwrap_or(false)
    }

    /// Number of lines in the file.
    pub fn nr_lines(&self) -> usize {
        self.raw.lines().count()
    }
}

/// Every file the rules look at.
#[derive(Default)]
pub struct Tree {
    /// The Rust files, in path order.
    pub sources: Vec<Source>,
    /// Other files that a rule reads, by path; a file that is missing is not in here.
    pub texts: BTreeMap<String, String>,
}

impl Tree {
    /// Builds a tree from `(path, text)` pairs. Rust files that another file declares as a test
    /// module are marked as test code.
    pub fn new(files: Vec<(String, String)>) -> Tree {
        let mut tree = Tree::default();
        for (path, text) in files {
            if path.ends_with(".rs") {
                tree.sources.push(Source::new(&path, &text));
            } else {
                tree.texts.insert(path, text);
            }
        }
        tree.sources.sort_by(|a, b| a.path.cmp(&b.path));
        tree.mark_test_modules();
        tree
    }

    /// `#[cfg(test)] mod x;` makes the file of `x`, and all below it, test code.
    fn mark_test_modules(&mut self) {
        let stems: Vec<String> = self
            .sources
            .iter()
            .flat_map(|source| test_code::declared_modules(&source.path, &source.code))
            .collect();
        for source in &mut self.sources {
            source.is_test_file |= stems.iter().any(|stem| {
                source
                    .path
                    .strip_prefix(stem)
                    .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
            });
        }
    }

    /// The Rust files below `folder`, which ends in a slash.
    pub fn below<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = &'a Source> {
        self.sources.iter().filter(move |source| source.path.starts_with(folder))
    }
}

/// Offsets at which `word` stands in `code` as a word of its own. A `word` that ends in
/// punctuation, such as `loom::`, is bounded only at its start.
pub fn find_word<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = code.as_bytes();
    let ends_as_word = word.bytes().last().is_some_and(is_word_byte);
    code.match_indices(word).map(|(offset, _)| offset).filter(move |&offset| {
        let free_before = offset == 0 || !is_word_byte(bytes[offset - 1]);
        let after = bytes.get(offset + word.len()).copied();
        free_before && !(ends_as_word && after.is_some_and(is_word_byte))
    })
}

/// The identifier that `text` begins with, after white space; empty if there is none.
pub fn leading_word(text: &str) -> &str {
    let text = text.trim_start();
    let len = text.bytes().take_while(|&byte| is_word_byte(byte)).count();
    &text[..len]
}

/// The offset of the bracket that closes the one at `open`; the end of `code` if none does.
pub fn closing_bracket(code: &str, open: usize) -> usize {
    let mut depth = 0;
    for (offset, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return offset;
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> Tree {
        Tree::new(files.iter().map(|(path, text)| (path.to_string(), text.to_string())).collect())
    }

    #[test]
    fn lines_count_from_one() {
        let source = Source::new("a.rs", "one\ntwo\n");
        assert_eq!(source.line_of(0), 1);
        assert_eq!(source.line_of(3), 1);
        assert_eq!(source.line_of(4), 2);
        assert_eq!(source.nr_lines(), 2);
    }

    #[test]
    fn a_word_is_not_found_inside_another() {
        let code = "unsafe_code unsafe xunsafe unsafe{";
        assert_eq!(find_word(code, "unsafe").collect::<Vec<_>>(), [12, 27]);
        assert_eq!(find_word("xloom::a loom::b", "loom::").collect::<Vec<_>>(), [9]);
    }

    #[test]
    fn brackets_are_matched() {
        assert_eq!(closing_bracket("a { b { c } ( ) } d", 2), 16);
        assert_eq!(closing_bracket("a {", 2), 3);
    }

    #[test]
    fn a_file_declared_as_a_test_module_is_test_code() {
        let tree = tree(&[
            ("c/src/lib.rs", "#[cfg(all(test, loom))]\nmod loom_races;\nmod pin;\n"),
            ("c/src/loom_races.rs", "fn f() {}"),
            ("c/src/loom_races/one.rs", "fn f() {}"),
            ("c/src/pin.rs", "#[cfg(test)]\nmod model;\n"),
            ("c/src/pin/model.rs", "fn f() {}"),
        ]);
        let marks: Vec<bool> = tree.sources.iter().map(|source| source.is_test_file).collect();
        assert_eq!(marks, [false, true, true, false, true]);
    }
}
