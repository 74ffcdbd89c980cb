//! Sizes and names of the command line: what is read is written, and read again.

use pgmap::Escaped;
use pgmap::FileName;

#[path = "../../pgmap-cli/src/names.rs"]
#[allow(dead_code, reason = "the command uses the rest")]
mod names;
#[path = "../../pgmap-cli/src/sizes.rs"]
mod sizes;

/// The first byte says whether the others are a size or a name.
pub fn cli(bytes: &[u8]) {
    let Some((&kind, rest)) = bytes.split_first() else { return };
    if kind.is_multiple_of(2) {
        size(&String::from_utf8_lossy(rest));
    } else {
        name(rest);
    }
}

fn size(text: &str) {
    let bytes = match sizes::parse(text) {
        Ok(bytes) => bytes,
        Err(why) => {
            assert!(why.contains(text), "the error does not name {text:?}: {why}");
            return;
        }
    };
    assert_eq!(sizes::parse(&bytes.to_string()), Ok(bytes));
    assert_eq!(sizes::parse(&format!("{bytes:#x}")), Ok(bytes));
    for (power, letter) in ["K", "M", "G", "T", "P", "E"].into_iter().enumerate() {
        let shift = 10 * (power as u32 + 1);
        if bytes.trailing_zeros() >= shift {
            let units = bytes.checked_shr(shift).unwrap_or(0);
            assert_eq!(sizes::parse(&format!("{units}{letter}")), Ok(bytes));
            assert_eq!(sizes::parse(&format!("{units} {letter}iB")), Ok(bytes));
        }
    }
    let shown = sizes::human(bytes);
    let Some((whole, tenths_and_unit)) = shown.split_once('.') else {
        assert_eq!(sizes::parse(&shown), Ok(bytes), "{shown}");
        return;
    };
    // Never more than there is, and less than a tenth less.
    let (tenths, unit) = tenths_and_unit.split_once(' ').unwrap();
    let unit = u128::from(sizes::parse(&format!("1{unit}")).unwrap());
    let tenths: u128 = format!("{whole}{tenths}").parse().unwrap();
    let bytes = u128::from(bytes);
    assert!(tenths * unit <= bytes * 10 && bytes * 10 < (tenths + 1) * unit, "{shown}");
}

fn name(bytes: &[u8]) {
    let shown = Escaped(bytes).to_string();
    assert!(!shown.chars().any(char::is_control), "{shown:?}");
    match FileName::new(bytes) {
        Ok(name) => {
            assert_eq!(name.as_bytes(), bytes);
            assert_eq!(name.to_string(), shown);
            assert_eq!(FileName::unescape(&shown), Some(name));
        }
        Err(refusal) => assert!(!refusal.to_string().is_empty()),
    }
    if let Ok(text) = str::from_utf8(bytes)
        && let Some(name) = FileName::unescape(text)
    {
        assert_eq!(FileName::unescape(&name.to_string()), Some(name));
    }
    let exact = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, names::base64_of(bytes));
    assert_eq!(exact.as_deref(), Ok(bytes));
    assert!(!names::text_of(bytes).is_empty() || bytes.is_empty());
}
