//! How values read: sizes, times, tables.
//!
//! Invariants: pure. Sizes are decimal (1 MB = 1,000,000 bytes) with the exact number in JSON; times are in the
//! user's zone; no text holds control characters of a file name (names come escaped).

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A size for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1_000 {
        return format!("{bytes} B");
    }
    let (mut whole, mut rest) = (bytes, 0);
    let mut name = "B";
    for unit in UNITS {
        rest = whole % 1_000;
        whole /= 1_000;
        name = unit;
        if whole < 1_000 {
            break;
        }
    }
    if whole < 10 { format!("{whole}.{} {name}", rest / 100) } else { format!("{whole} {name}") }
}

/// A number with separators.
pub fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 file`, `2 files`.
pub fn count(n: u64, one: &str) -> String {
    format!("{} {one}{}", number(n), if n == 1 { "" } else { "s" })
}

/// A duration for people.
pub fn duration(time: Duration) -> String {
    let secs = time.as_secs();
    match secs {
        0..10 => format!("{secs}.{} s", time.subsec_millis() / 100),
        10..120 => format!("{secs} s"),
        120..7_200 => format!("{} min", secs / 60),
        _ => format!("{} h {} min", secs / 3_600, secs % 3_600 / 60),
    }
}

/// A time in the user's zone.
pub fn time(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// How long ago a time is.
pub fn age(time: Timestamp, now: Timestamp) -> String {
    match u64::try_from(now.as_second() - time.as_second()) {
        Ok(secs @ 0..120) => format!("{secs} s ago"),
        Ok(secs @ 120..7_200) => format!("{} min ago", secs / 60),
        Ok(secs @ 7_200..172_800) => format!("{} h ago", secs / 3_600),
        Ok(secs) => format!("{} days ago", secs / 86_400),
        Err(_) => "in the future".to_owned(),
    }
}

/// A table with aligned columns. Columns whose heading begins with a space are aligned to the right.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With these headings.
    pub fn new(headings: &[&str]) -> Self {
        Table { rows: vec![headings.iter().map(|h| (*h).to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = |s: &str| s.trim_start().chars().count();
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|c| self.rows.iter().filter_map(|r| r.get(c)).map(|s| width(s)).max().unwrap_or(0))
            .collect();
        let right: Vec<bool> =
            self.rows.first().map(|h| h.iter().map(|h| h.starts_with(' ')).collect()).unwrap_or_default();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let cell = cell.trim_start();
                let pad = widths.get(column).unwrap_or(&0).saturating_sub(width(cell));
                let gap = if column == 0 { "" } else { "  " };
                if right.get(column).copied().unwrap_or(false) {
                    write!(line, "{gap}{:pad$}{cell}", "")?;
                } else {
                    write!(line, "{gap}{cell}{:pad$}", "")?;
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_numbers_and_durations_read_well() {
        let sizes =
            [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (1_250_000, "1.2 MB"), (10_999_999, "10 MB")];
        for (bytes, text) in sizes {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(u64::MAX), "18 EB");
        assert_eq!(
            (number(0), number(999), number(1_000), number(1_234_567)),
            ("0".into(), "999".into(), "1,000".into(), "1,234,567".into())
        );
        assert_eq!((count(1, "file"), count(2_000, "file")), ("1 file".into(), "2,000 files".into()));
        assert_eq!(duration(Duration::from_millis(340)), "0.3 s");
        assert_eq!(duration(Duration::from_secs(3_725)), "62 min");
        assert_eq!(duration(Duration::from_secs(9_000)), "2 h 30 min");
    }

    #[test]
    fn tables_are_aligned_without_blanks_at_the_end() {
        let mut table = Table::new(&["APP", " SIZE", "NOTE"]);
        table.row(["blog".into(), "1 B".into(), String::new()]);
        table.row(["a".into(), "100 kB".into(), "pinned".into()]);
        assert_eq!(table.to_string(), "APP     SIZE  NOTE\nblog     1 B\na     100 kB  pinned\n");
    }
}
