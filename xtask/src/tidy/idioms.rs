//! Rule `idioms`: comments, messages and documents use the standard phrases of the glossary.

use super::Violation;
use super::source::{Source, Tree};
use crate::glossary::{IDIOMS, Idiom, NOT_IDIOMS};

/// Where phrases are quoted: the table, this rule, and the documents that explain or record them.
const QUOTES: [&str; 4] =
    ["xtask/src/glossary.rs", "xtask/src/tidy/idioms.rs", "STYLE.md", "CHANGELOG.md"];

/// Finds idioms in comments and strings of Rust files, and in documents.
pub fn check(tree: &Tree, found: &mut Vec<Violation>) {
    for source in &tree.sources {
        check_text(&source.path, &prose(source), found);
    }
    for (path, text) in &tree.texts {
        if path.ends_with(".md") {
            check_text(path, text, found);
        }
    }
}

/// A file with its code blanked out: what is left is comments and literals.
fn prose(source: &Source) -> String {
    let code = source.code.as_bytes();
    let bytes = source.raw.bytes().enumerate();
    let kept = bytes.map(|(at, byte)| if code.get(at) == Some(&byte) { b' ' } else { byte });
    let lines =
        source.raw.bytes().zip(kept).map(|(raw, kept)| if raw == b'\n' { raw } else { kept });
    String::from_utf8_lossy(&lines.collect::<Vec<u8>>()).into_owned()
}

fn check_text(path: &str, text: &str, found: &mut Vec<Violation>) {
    if QUOTES.contains(&path) {
        return;
    }
    let words = words(text);
    for start in 0..words.len() {
        let Some((phrase, instead)) = idiom_at(text, &words[start..]) else { continue };
        let line = 1 + text[..words[start].0].matches('\n').count();
        let advice = format!("\"{phrase}\": write what readers know ({instead}); see STYLE.md");
        found.push(Violation::new(path, line, "idioms", advice));
    }
}

/// The words of `text` in lower case, and where each starts.
fn words(text: &str) -> Vec<(usize, String)> {
    let is_word = |c: char| c.is_alphanumeric() || "'_-".contains(c);
    let mut words = Vec::new();
    let mut start = None;
    for (at, c) in text.char_indices().chain([(text.len(), ' ')]) {
        match (start, is_word(c)) {
            (None, true) => start = Some(at),
            (Some(from), false) => {
                words.push((from, text[from..at].to_lowercase()));
                start = None;
            }
            _ => {}
        }
    }
    words
}

/// The idiom that `words` begin with.
fn idiom_at(text: &str, words: &[(usize, String)]) -> Option<Idiom> {
    let begins_with = |phrase: &str| {
        let mut last_end = None;
        phrase.split(' ').enumerate().all(|(nr, part)| {
            let Some((at, word)) = words.get(nr) else { return false };
            let is_next = last_end.is_none_or(|end: usize| text[end..*at].chars().all(is_gap));
            last_end = Some(at + word.len());
            is_next && word == part
        })
    };
    let idiom = IDIOMS.iter().find(|(phrase, _)| begins_with(phrase))?;
    (!NOT_IDIOMS.iter().any(|phrase| begins_with(phrase))).then_some(*idiom)
}

/// True for what may stand between two words of a phrase: a phrase goes on over the end of a line.
fn is_gap(c: char) -> bool {
    c.is_whitespace() || "/!\\".contains(c)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{lines, tree};
    use super::*;

    #[test]
    fn an_idiom_in_a_comment_or_a_message_is_found() {
        assert_eq!(lines("a.rs", "//! A.\n\n/// Who is told.\nfn f() {}\n", check), [3]);
        assert_eq!(lines("a.rs", "//! A.\nconst A: &str = \"Wanted back\";\n", check), [2]);
        assert_eq!(lines("a.rs", "//! The client is\n//! told of it.\n", check), [1]);
    }

    #[test]
    fn code_and_phrases_that_only_look_alike_are_good() {
        let text =
            "//! As it is. Told of it. For long-term pins; for long enough.\nlet unasked = 1;\n";
        assert!(lines("a.rs", text, check).is_empty());
    }

    #[test]
    fn documents_are_looked_at_and_those_that_quote_are_not() {
        let mut found = Vec::new();
        let files = [("docs/a.md", "\n# A\n\nIt is done anew.\n"), ("STYLE.md", "not *anew*\n")];
        check(&tree(&files), &mut found);
        let places: Vec<_> = found.into_iter().map(|v| (v.path, v.line)).collect();
        assert_eq!(places, [("docs/a.md".to_owned(), 4)]);
    }
}
