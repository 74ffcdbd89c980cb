//! Rule `fn-length`: a function body has at most 70 lines. Test code is exempt.

use super::Violation;
use super::source::{Source, Tree, closing_bracket, find_word, leading_word};

/// The most lines that may stand between a function's braces.
const MAX_BODY_LINES: usize = 70;

/// Finds functions that are too long.
pub fn check(tree: &Tree, found: &mut Vec<Violation>) {
    for source in &tree.sources {
        for offset in find_word(&source.code, "fn") {
            let line = source.line_of(offset);
            if source.is_test_line(line) {
                continue;
            }
            if let Some((name, nr_lines)) = body(source, offset)
                && nr_lines > MAX_BODY_LINES
            {
                let advice = format!(
                    "`{name}` has {nr_lines} lines, {MAX_BODY_LINES} are allowed: give a part a name"
                );
                found.push(Violation::new(&source.path, line, "fn-length", advice));
            }
        }
    }
}

/// Name of the function whose `fn` stands at `offset`, and the lines between its braces. `None` for
/// a function pointer type and for a function without a body.
fn body(source: &Source, offset: usize) -> Option<(&str, usize)> {
    let rest = &source.code[offset + "fn".len()..];
    let name = leading_word(rest);
    if name.is_empty() {
        return None;
    }
    let open = offset + "fn".len() + body_start(rest)?;
    let close = closing_bracket(&source.code, open);
    let nr_lines = (source.line_of(close) - source.line_of(open)).saturating_sub(1);
    Some((name, nr_lines))
}

/// Where the first brace outside all brackets stands, unless a semicolon comes first.
fn body_start(signature: &str) -> Option<usize> {
    let mut depth = 0;
    for (offset, byte) in signature.bytes().enumerate() {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b'{' if depth == 0 => return Some(offset),
            b';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::testing::lines;
    use super::*;

    fn function(nr_lines: usize) -> String {
        format!("fn long(x: [u8; 2]) -> u8 {{\n{}}}\n", "    step();\n".repeat(nr_lines))
    }

    #[test]
    fn the_limit_itself_is_allowed() {
        assert!(lines("a.rs", &function(70), check).is_empty());
        assert_eq!(lines("a.rs", &function(71), check), [1]);
    }

    #[test]
    fn braces_in_strings_and_comments_do_not_count() {
        let text = format!("fn a() {{\n    f(\"}}\"); // }}\n{}}}\n", "    g('}');\n".repeat(70));
        assert_eq!(lines("a.rs", &text, check), [1]);
    }

    #[test]
    fn a_signature_without_body_and_a_pointer_type_have_no_length() {
        let text = format!("trait A {{ fn a(&self); }}\ntype F = fn(u8);\n{}", "\n".repeat(99));
        assert!(lines("a.rs", &text, check).is_empty());
    }

    #[test]
    fn test_code_is_exempt() {
        assert!(lines("c/tests/a.rs", &function(99), check).is_empty());
        assert!(lines("c/benches/a.rs", &function(99), check).is_empty());
        let inside = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", function(99));
        assert!(lines("c/src/a.rs", &inside, check).is_empty());
    }
}
