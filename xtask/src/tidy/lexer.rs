//! Separates what a Rust file says to the compiler from what it says to the reader.
//!
//! The rules look for words, and a word in a string or a comment means nothing to the compiler. So
//! the lexer makes two copies of a file, equal to it in length and in lines: one keeps the code,
//! the other the comments, and everything else is blanked out. It knows as much of Rust as that
//! takes: nested comments, escapes, raw strings, and that `'a` may be a lifetime.

/// The two copies of one file. Every offset and line number holds in both and in the original.
pub struct Lexed {
    /// Only code: comments, strings and character literals are blank.
    pub code: String,
    /// Only comments, with their slashes.
    pub comments: String,
}

/// What a part of the file is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code,
    Comment,
    Literal,
}

/// Splits `text`. Broken Rust never fails here: an open string or comment runs to the end.
pub fn lex(text: &str) -> Lexed {
    let bytes = text.as_bytes();
    let mut code = blank(bytes);
    let mut comments = code.clone();
    let mut at = 0;
    while at < bytes.len() {
        let (kind, end) = next_part(bytes, at);
        let end = end.clamp(at + 1, bytes.len());
        match kind {
            Kind::Code => code[at..end].copy_from_slice(&bytes[at..end]),
            Kind::Comment => comments[at..end].copy_from_slice(&bytes[at..end]),
            Kind::Literal => {}
        }
        at = end;
    }
    Lexed {
        code: String::from_utf8_lossy(&code).into_owned(),
        comments: String::from_utf8_lossy(&comments).into_owned(),
    }
}

fn blank(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|&byte| if byte == b'\n' { b'\n' } else { b' ' }).collect()
}

/// The kind of the part that begins at `at`, and where it ends.
fn next_part(bytes: &[u8], at: usize) -> (Kind, usize) {
    let rest = &bytes[at..];
    if rest.starts_with(b"//") {
        return (Kind::Comment, end_of_line(bytes, at));
    }
    if rest.starts_with(b"/*") {
        return (Kind::Comment, end_of_block_comment(bytes, at));
    }
    match rest[0] {
        b'"' => (Kind::Literal, end_of_string(bytes, at)),
        b'\'' => end_of_char(bytes, at).map_or((Kind::Code, at + 1), |end| (Kind::Literal, end)),
        byte if is_word_byte(byte) => word_or_raw_string(bytes, at),
        _ => (Kind::Code, at + 1),
    }
}

/// True for bytes that may stand in an identifier or a number; every non-ASCII byte counts.
pub fn is_word_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn end_of_line(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|&byte| byte == b'\n').map_or(bytes.len(), |len| at + len)
}

fn end_of_block_comment(bytes: &[u8], at: usize) -> usize {
    let mut depth = 0;
    let mut here = at;
    while here < bytes.len() {
        if bytes[here..].starts_with(b"/*") {
            depth += 1;
            here += 2;
        } else if bytes[here..].starts_with(b"*/") {
            depth -= 1;
            here += 2;
            if depth == 0 {
                return here;
            }
        } else {
            here += 1;
        }
    }
    bytes.len()
}

fn end_of_string(bytes: &[u8], at: usize) -> usize {
    let mut here = at + 1;
    while here < bytes.len() {
        match bytes[here] {
            b'\\' => here += 2,
            b'"' => return here + 1,
            _ => here += 1,
        }
    }
    bytes.len()
}

/// Where the character literal at `at` ends; `None` if the quote begins a lifetime or a label.
fn end_of_char(bytes: &[u8], at: usize) -> Option<usize> {
    let first = *bytes.get(at + 1)?;
    if first == b'\\' {
        // The byte after the backslash may itself be a quote, so the search starts behind it.
        let close = bytes.get(at + 3..)?.iter().position(|&byte| byte == b'\'')?;
        return Some(at + 3 + close + 1);
    }
    let close = at + 1 + utf8_len(first);
    (bytes.get(close) == Some(&b'\'')).then_some(close + 1)
}

fn utf8_len(first: u8) -> usize {
    match first {
        0xf0.. => 4,
        0xe0.. => 3,
        0xc0.. => 2,
        _ => 1,
    }
}

/// A word is taken whole, so that the `r` of `for` is never mistaken for the start of a raw string.
fn word_or_raw_string(bytes: &[u8], at: usize) -> (Kind, usize) {
    let len = bytes[at..].iter().take_while(|&&byte| is_word_byte(byte)).count();
    let end = at + len;
    if !matches!(&bytes[at..end], b"r" | b"br" | b"cr") {
        return (Kind::Code, end);
    }
    let hashes = bytes[end..].iter().take_while(|&&byte| byte == b'#').count();
    if bytes.get(end + hashes) != Some(&b'"') {
        return (Kind::Code, end);
    }
    let body = end + hashes + 1;
    let mut close = vec![b'"'];
    close.resize(1 + hashes, b'#');
    let found = bytes[body..].windows(close.len()).position(|window| window == close);
    (Kind::Literal, found.map_or(bytes.len(), |len| body + len + close.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code_words(text: &str) -> Vec<String> {
        lex(text).code.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn both_copies_keep_lengths_and_lines() {
        let text = "let a = \"x\ny\"; // über\n/* 1\n2 */ fn b() {}\n";
        let lexed = lex(text);
        assert_eq!(lexed.code.len(), text.len());
        assert_eq!(lexed.comments.len(), text.len());
        assert_eq!(lexed.code.lines().count(), text.lines().count());
        assert!(lexed.comments.contains("// über"));
        assert!(!lexed.code.contains("über"));
    }

    #[test]
    fn strings_of_every_kind_are_blanked() {
        for text in [
            r#"a "hidden" z"#,
            r#"a "say \"hidden\"" z"#,
            r#"a b"hidden" z"#,
            r#"a c"hidden" z"#,
            r##"a r"hidden" z"##,
            r###"a r##"hidden "# still "## z"###,
            r##"a br#"hidden"# z"##,
        ] {
            let words = code_words(text);
            assert!(!words.iter().any(|word| word.contains("hidden")), "{text}: {words:?}");
            assert_eq!(words.last().map(String::as_str), Some("z"), "{text}");
        }
    }

    #[test]
    fn a_lifetime_is_code_and_a_character_is_not() {
        assert!(lex("fn f<'a>(x: &'a str) {}").code.contains("'a str"));
        assert_eq!(lex("x '{' y").code, "x     y");
        assert_eq!(lex(r"x '\'' y").code, "x      y");
        assert_eq!(lex(r"x '\u{7b}' y").code, "x          y");
        assert_eq!(lex("x 'ü' y").code.split_whitespace().count(), 2);
    }

    #[test]
    fn comments_nest_and_end() {
        assert_eq!(code_words("a /* b /* c */ d */ e"), ["a", "e"]);
        assert_eq!(code_words("a // b \"\nc"), ["a", "c"]);
        assert_eq!(code_words("a \"//\" b"), ["a", "b"]);
    }

    #[test]
    fn raw_identifiers_are_code() {
        assert_eq!(code_words("let r#type = for\"x\";"), ["let", "r#type", "=", "for", ";"]);
    }

    #[test]
    fn an_open_string_runs_to_the_end() {
        assert_eq!(code_words("a \"b c"), ["a"]);
        assert_eq!(code_words("a \"b \\"), ["a"]);
        assert_eq!(code_words("a r#\"b"), ["a"]);
        assert_eq!(code_words("a /* b"), ["a"]);
    }
}
