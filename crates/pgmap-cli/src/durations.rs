//! Times as people write them: `30s`, `500ms`, `2m`, `1h`. A bare number is milliseconds.

use std::time::Duration;

/// Units, in milliseconds. The longer names come first: `ms` ends in `s`, too.
const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];

/// Reads a time.
///
/// # Errors
/// A sentence that says what is wrong and what to write.
pub fn parse(text: &str) -> Result<Duration, String> {
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (digits, unit) = trimmed.split_at(end);
    let unit_ms = match unit.trim_start() {
        "" => Some(1),
        unit => UNITS.iter().find(|(name, _)| *name == unit).map(|&(_, ms)| ms),
    };
    let wrong = || format!("invalid time `{text}`: write 30s, 500ms, 2m or 1h, without fractions");
    let unit_ms = unit_ms.ok_or_else(wrong)?;
    if digits.is_empty() {
        return Err(wrong());
    }
    let whole_ms = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_ms));
    whole_ms.map(Duration::from_millis).ok_or_else(|| format!("`{text}` is too long a time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, ms) in
            [("30s", 30_000), ("500ms", 500), ("250", 250), ("2m", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "1.5s", "-1s", "3 days", "30S", "99999999999999999999s"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("18446744073709551615h").unwrap_err().contains("too long"));
    }
}
