//! Durations and sizes as people write them.
//!
//! Invariants: pure; one function for each. What is not of the form is refused with the form, never guessed.

use std::time::Duration;

use backstay_model::{Code, Error, Result};
use serde::{Deserialize as _, Deserializer};

/// A duration: a whole number and a unit (`s`, `m` or `min`, `h`, `d`), one or several (`1h30m`).
pub fn parse_duration(text: &str) -> Result<Duration> {
    let bad = || {
        let message = format!("`{}` is not a duration", text.escape_debug());
        Error::new(Code::InvalidValue, message)
            .advise("Write a whole number and a unit: 90s, 10m, 24h, 7d, 1h30m.")
    };
    let mut rest = text.trim();
    let mut total = 0_u64;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let (number, after) = leading_number(rest).ok_or_else(bad)?;
        let unit_end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let seconds = match unit {
            "s" => 1,
            "m" | "min" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => return Err(bad()),
        };
        total = number.checked_mul(seconds).and_then(|n| total.checked_add(n)).ok_or_else(bad)?;
        rest = after.trim_start();
    }
    Ok(Duration::from_secs(total))
}

/// A size in bytes: a whole number and a unit (`kB`, `MB`, `GB`, `TB`: powers of 1,000; `KiB`, `MiB`, `GiB`, `TiB`:
/// powers of 1,024; none or `B`: bytes).
pub fn parse_size(text: &str) -> Result<u64> {
    let bad = || {
        let message = format!("`{}` is not a size", text.escape_debug());
        Error::new(Code::InvalidValue, message)
            .advise("Write a whole number and a unit: 500MB (powers of 1,000) or 10GiB (powers of 1,024).")
    };
    let (number, unit) = leading_number(text.trim()).ok_or_else(bad)?;
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1_u64 << 40,
        _ => return Err(bad()),
    };
    number.checked_mul(factor).ok_or_else(bad)
}

fn leading_number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

/// A duration in a file of configuration.
pub(super) fn duration<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Duration, D::Error> {
    let text = String::deserialize(d)?;
    parse_duration(&text).map_err(|e| serde::de::Error::custom(format!("{}. {}", e.message(), e.advice())))
}

/// A size in a file of configuration.
pub(super) fn size<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<u64, D::Error> {
    let text = String::deserialize(d)?;
    parse_size(&text).map_err(|e| serde::de::Error::custom(format!("{}. {}", e.message(), e.advice())))
}

/// A size that may be missing in a file of configuration.
pub(crate) fn optional_size<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Option<u64>, D::Error> {
    size(d).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_whole_numbers_with_units() {
        for (text, seconds) in [
            ("0s", 0),
            ("90s", 90),
            ("10m", 600),
            ("10min", 600),
            ("24h", 86_400),
            ("7d", 604_800),
            ("1h30m", 5_400),
            (" 1h 30m ", 5_400),
        ] {
            assert_eq!(parse_duration(text).unwrap().as_secs(), seconds, "{text}");
        }
        for bad in
            ["", "10", "h", "-1h", "1.5h", "1 week", "1h30", "99999999999999999999s", "9999999999999999d"]
        {
            assert_eq!(parse_duration(bad).unwrap_err().code(), Code::InvalidValue, "{bad}");
        }
    }

    #[test]
    fn sizes_are_whole_numbers_with_units_of_both_kinds() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("17 B", 17),
            ("5kB", 5_000),
            ("500MB", 500_000_000),
            ("10GiB", 10 << 30),
            ("1 TiB", 1 << 40),
            ("2tb", 2_000_000_000_000),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for bad in ["", "GiB", "-1", "1.5GB", "10G", "10 apples", "99999999TiB"] {
            assert_eq!(parse_size(bad).unwrap_err().code(), Code::InvalidValue, "{bad}");
        }
    }
}
