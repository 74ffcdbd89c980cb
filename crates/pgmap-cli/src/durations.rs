//! Times as people write them: `30s`, `500ms`, `250us`, `2m`, `1h`. A bare number is milliseconds.

use std::time::Duration;

/// Units, in microseconds.
const UNITS: [(&str, u64); 5] =
    [("us", 1), ("ms", 1000), ("s", 1_000_000), ("m", 60_000_000), ("h", 3_600_000_000)];

/// Reads a time.
///
/// # Errors
/// A sentence that says what is wrong and what to write.
pub fn parse(text: &str) -> Result<Duration, String> {
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (digits, unit) = trimmed.split_at(end);
    let unit = match unit.trim_start() {
        "" => "ms",
        unit => unit,
    };
    let unit_us = UNITS.iter().find(|(name, _)| *name == unit).map(|&(_, us)| us);
    let wrong =
        || format!("invalid time `{text}`: write 30s, 500ms, 250us, 2m or 1h, without fractions");
    let unit_us = unit_us.ok_or_else(wrong)?;
    if digits.is_empty() {
        return Err(wrong());
    }
    let whole_us = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_us));
    whole_us.map(Duration::from_micros).ok_or_else(|| format!("`{text}` is too long a time"))
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
        assert_eq!(parse("250us"), Ok(Duration::from_micros(250)));
        for text in ["", "s", "1.5s", "-1s", "3 days", "30S", "99999999999999999999s"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("18446744073709551615h").unwrap_err().contains("too long"));
    }
}
