//! Sizes as people write them (`2GiB`, `2G`, `512K`, `0x1000`) and as they read them.
//!
//! Units are powers of 1024. `2GB` is refused: to some it is 10^9, to others 2^30 bytes.

/// Suffixes by powers of 1024, from 1024^0.
const SUFFIXES: [&str; 7] = ["", "K", "M", "G", "T", "P", "E"];

/// Reads a size in bytes.
///
/// # Errors
/// A sentence that says what is wrong and what to write.
pub fn parse(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    if let Some(digits) = trimmed.strip_prefix("0x").or_else(|| trimmed.strip_prefix("0X")) {
        return hexadecimal(text, digits);
    }
    let end = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (digits, suffix) = trimmed.split_at(end);
    if digits.is_empty() {
        return Err(format!("`{text}` is no size: write bytes or 512K, 2MiB, 2G, 0x1000"));
    }
    if suffix.starts_with('.') {
        return Err(format!("`{text}` is no whole number: write 1536M for 1.5G"));
    }
    let shift = shift_of(text, suffix.trim_start())?;
    digits
        .parse::<u64>()
        .ok()
        .and_then(|value| value.checked_mul(1 << shift))
        .ok_or_else(|| format!("`{text}` is too large: the most is {} bytes", u64::MAX))
}

fn hexadecimal(text: &str, digits: &str) -> Result<u64, String> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(format!("`{text}` is no hexadecimal number; those take no suffix"));
    }
    u64::from_str_radix(digits, 16)
        .map_err(|_| format!("`{text}` is too large: the most is {:#x}", u64::MAX))
}

fn shift_of(text: &str, suffix: &str) -> Result<u32, String> {
    let upper = suffix.to_ascii_uppercase();
    if upper.is_empty() || upper == "B" {
        return Ok(0);
    }
    let letter = upper.strip_suffix("IB").unwrap_or(&upper);
    match SUFFIXES.iter().position(|&known| known == letter) {
        Some(power) if !letter.is_empty() => Ok(10 * power as u32),
        _ if upper.len() == 2 && upper.ends_with('B') => Err(format!(
            "`{text}`: {suffix} means powers of 1000 to some and of 1024 to others; write {}iB",
            &suffix[..1]
        )),
        _ => Err(format!("`{text}`: `{suffix}` is no unit: use K, M, G, T, P, E or KiB, MiB …")),
    }
}

/// Writes a size for people: exact where that is short, else with one decimal.
pub fn human(bytes: u64) -> String {
    let power = (bytes.max(1).ilog2() / 10) as usize;
    if power == 0 {
        return format!("{bytes} B");
    }
    let unit = 1u64 << (10 * power);
    let name = SUFFIXES[power];
    if bytes.is_multiple_of(unit) {
        return format!("{} {name}iB", bytes / unit);
    }
    let tenths = (u128::from(bytes) * 10 / u128::from(unit)) as u64;
    format!("{}.{} {name}iB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("512K", 512 << 10),
            ("512k", 512 << 10),
            ("2M", 2 << 20),
            ("2MiB", 2 << 20),
            ("2 MiB", 2 << 20),
            ("2mib", 2 << 20),
            ("2G", 2 << 30),
            ("3TiB", 3 << 40),
            ("15E", 15 << 60),
            ("0x1000", 4096),
            ("0XfF", 255),
            ("18446744073709551615", u64::MAX),
            ("0xffffffffffffffff", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_does_not_fit_is_said_to_be_too_large() {
        for text in ["16E", "18446744073709551616", "0x10000000000000000", "99999999999999T"] {
            assert!(parse(text).unwrap_err().contains("too large"), "{text}");
        }
    }

    #[test]
    fn junk_is_refused_with_what_to_write_instead() {
        for text in ["", " ", "G", "-1", "iB", "two", "0x", "0x1G", "1X", "1iB", "1KK", "1K5", "١"]
        {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert!(parse("1.5G").unwrap_err().contains("1536M"));
        assert!(parse("2GB").unwrap_err().contains("write GiB"));
    }

    #[test]
    fn people_read_short_sizes_that_never_say_more_than_there_is() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
            (2 << 30, "2 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
