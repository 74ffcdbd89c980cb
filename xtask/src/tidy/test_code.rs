//! Tells test code from the rest: by path, by attribute, by declaration.

use std::ops::Range;

use super::source::{closing_bracket, find_word, leading_word};

/// Folders whose files are tests or benchmarks as a whole.
const TEST_FOLDERS: [&str; 2] = ["tests", "benches"];

/// Words that begin an item to which a test attribute may belong.
const ITEM_WORDS: [&str; 13] = [
    "pub",
    "mod",
    "fn",
    "async",
    "const",
    "static",
    "use",
    "impl",
    "struct",
    "enum",
    "trait",
    "type",
    "macro_rules",
];

/// True if a file at `path` is a test by its place alone.
pub fn is_test_path(path: &str) -> bool {
    path.split('/').any(|part| TEST_FOLDERS.contains(&part)) || path.ends_with("/tests.rs")
}

/// The parts of `code` that only a test build compiles: each item under `#[test]` or under a
/// `#[cfg(…)]` that asks for `test`.
pub fn regions(code: &str) -> Vec<Range<usize>> {
    let mut regions = Vec::new();
    for (start, _) in code.match_indices("#[") {
        let end = closing_bracket(code, start + 1);
        let attribute = code.get(start + 2..end).unwrap_or("");
        if asks_for_test(attribute) {
            regions.push(start..item_end(code, end + 1));
        }
    }
    regions
}

/// Paths, without `.rs`, of the modules that the file at `path` declares as tests.
pub fn declared_modules(path: &str, code: &str) -> Vec<String> {
    let folder = module_folder(path);
    let declared = |region: Range<usize>| {
        let item = &code[region];
        let name = leading_word(&item[find_word(item, "mod").next()? + "mod".len()..]);
        (!name.is_empty() && item.trim_end().ends_with(';')).then(|| format!("{folder}/{name}"))
    };
    regions(code).into_iter().filter_map(declared).collect()
}

fn asks_for_test(attribute: &str) -> bool {
    let attribute = attribute.trim();
    if attribute == "test" {
        return true;
    }
    leading_word(attribute) == "cfg"
        && find_word(attribute, "test").next().is_some()
        && !attribute.contains("not(test)")
}

/// The folder in which the submodules of the file at `path` live.
fn module_folder(path: &str) -> &str {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    match name {
        "lib.rs" | "main.rs" | "mod.rs" => folder,
        _ => path.strip_suffix(".rs").unwrap_or(path),
    }
}

/// Where the item that follows an attribute ends; right there if it is no item but, say, a field.
fn item_end(code: &str, after_attribute: usize) -> usize {
    let mut at = after_attribute;
    loop {
        let rest = code.get(at..).unwrap_or("");
        let skipped = rest.len() - rest.trim_start().len();
        if !rest.trim_start().starts_with("#[") {
            break;
        }
        at = closing_bracket(code, at + skipped + 1) + 1;
    }
    let rest = code.get(at..).unwrap_or("");
    if !ITEM_WORDS.contains(&leading_word(rest)) {
        return after_attribute.min(code.len());
    }
    let mut depth = 0;
    for (offset, byte) in rest.bytes().enumerate() {
        match byte {
            b'{' if depth == 0 => return (closing_bracket(code, at + offset) + 1).min(code.len()),
            b';' if depth == 0 => return at + offset + 1,
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region_texts(code: &str) -> Vec<&str> {
        regions(code).into_iter().map(|region| &code[region]).collect()
    }

    #[test]
    fn a_test_module_is_a_region_to_its_last_brace() {
        let code = "fn a() {}\n#[cfg(test)]\nmod tests { fn b() {} }\nfn c() {}";
        assert_eq!(region_texts(code), ["#[cfg(test)]\nmod tests { fn b() {} }"]);
    }

    #[test]
    fn attributes_in_between_belong_to_the_item() {
        let code = "#[test]\n#[should_panic]\nfn b(x: [u8; 2]) { x }\nfn c() {}";
        assert_eq!(region_texts(code), ["#[test]\n#[should_panic]\nfn b(x: [u8; 2]) { x }"]);
    }

    #[test]
    fn what_a_test_build_leaves_out_is_not_test_code() {
        assert!(regions("#[cfg(not(test))]\nfn a() {}").is_empty());
        assert!(regions("#[cfg(loom)]\nfn a() {}").is_empty());
    }

    #[test]
    fn a_field_ends_its_region_at_once() {
        let code = "struct A {\n#[cfg(test)]\nx: u8,\n}\nfn long() { }";
        assert_eq!(region_texts(code), ["#[cfg(test)]"]);
    }

    #[test]
    fn declared_modules_lie_beside_or_below_their_file() {
        let code = "#[cfg(test)]\npub mod model;\n#[cfg(test)]\nmod tests { mod x; }";
        assert_eq!(declared_modules("c/src/lib.rs", code), ["c/src/model"]);
        assert_eq!(declared_modules("c/src/pin.rs", code), ["c/src/pin/model"]);
    }

    #[test]
    fn folders_tell_tests() {
        assert!(is_test_path("crates/a/tests/kill.rs"));
        assert!(is_test_path("crates/a/src/pin/tests.rs"));
        assert!(!is_test_path("crates/a/src/attests.rs"));
    }
}
