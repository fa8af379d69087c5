//! Which point is meant.
//!
//! Invariants: pure. A word of hexadecimal digits is always an id or its prefix, never a date; `latest` counts by
//! the times in the points, so a clock that was set back is told by the list, not hidden by the choice.

use std::fmt;
use std::str::FromStr;

use backstay_catalog::PointRecord;
use backstay_model::{Code, Error, Origin, Result};
use jiff::civil;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _, Zoned};

/// How a point is named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The newest but so many. Safety points do not count: a restore of the latest point twice is the same as once.
    Latest(usize),
    /// An id or the beginning of one, in lower case.
    Id(String),
    /// The newest not after a time.
    At(Timestamp),
}

impl FromStr for Selector {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text, &TimeZone::system())
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Latest(0) => f.write_str("latest"),
            Selector::Latest(n) => write!(f, "latest~{n}"),
            Selector::Id(prefix) => f.write_str(prefix),
            Selector::At(time) => write!(f, "{time}"),
        }
    }
}

impl Selector {
    /// Reads `latest`, `latest~2`, an id or prefix, or a time: RFC 3339, or date and time in `zone`, or a date alone,
    /// which means its whole day.
    pub fn parse(text: &str, zone: &TimeZone) -> Result<Self> {
        let bad = || {
            Error::new(Code::InvalidValue, format!("`{}` does not name a point", text.escape_debug()))
                .advise("Give an id or a prefix of it, latest, latest~2, or a time such as 2026-11-20T14:00.")
        };
        if let Some(rest) = text.strip_prefix("latest") {
            return match rest.strip_prefix('~') {
                Some(number) => number.parse().map(Selector::Latest).map_err(|_not_a_number| bad()),
                None if rest.is_empty() => Ok(Selector::Latest(0)),
                None => Err(bad()),
            };
        }
        if (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(Selector::Id(text.to_ascii_lowercase()));
        }
        if let Ok(time) = text.parse::<Timestamp>() {
            return Ok(Selector::At(time));
        }
        if let Ok(time) = text.parse::<Zoned>() {
            return Ok(Selector::At(time.timestamp()));
        }
        let has_time = text.contains([':', 'T', 't']);
        let local = if has_time {
            text.parse::<civil::DateTime>().ok()
        } else {
            text.parse::<civil::Date>()
                .ok()
                .and_then(|d| d.tomorrow().ok())
                .map(|d| d.to_datetime(civil::Time::midnight()))
        };
        let zoned = local.and_then(|t| t.to_zoned(zone.clone()).ok()).ok_or_else(bad)?;
        let time = if has_time { Some(zoned) } else { zoned.checked_sub(1.nanosecond()).ok() };
        time.map(|t| Selector::At(t.timestamp())).ok_or_else(bad)
    }

    /// The point among `points`, which are those of one app, newest first.
    pub fn pick<'a>(&self, app: &str, points: &'a [PointRecord]) -> Result<&'a PointRecord> {
        let none = |what: String| Err(Error::new(Code::PointNotFound, what));
        if points.is_empty() {
            return none(format!("App `{app}` has no points"));
        }
        match self {
            Selector::Latest(back) => {
                let counted = || points.iter().filter(|p| p.point.origin != Origin::Safety);
                counted().nth(*back).map_or_else(
                    || {
                        let n = counted().count();
                        none(format!("App `{app}` has {n} points, `{self}` is before the oldest"))
                    },
                    Ok,
                )
            }
            Selector::At(time) => match points.iter().find(|p| p.point.time <= *time) {
                Some(point) => Ok(point),
                None => none(format!("App `{app}` has no point from {time} or before")),
            },
            Selector::Id(prefix) => {
                let mut fits = points.iter().filter(|p| p.point.id.to_string().starts_with(prefix.as_str()));
                match (fits.next(), fits.next()) {
                    (Some(point), None) => Ok(point),
                    (None, _) => none(format!("App `{app}` has no point {prefix}")),
                    (Some(_), Some(_)) => {
                        let message =
                            format!("{} points of app `{app}` begin with {prefix}", fits.count() + 2);
                        Err(Error::new(Code::PointAmbiguous, message))
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_catalog::conformance::point;

    fn parse(text: &str) -> Result<Selector> {
        Selector::parse(text, &TimeZone::fixed(jiff::tz::offset(2)))
    }

    fn at(text: &str) -> Selector {
        Selector::At(text.parse().unwrap())
    }

    #[test]
    fn all_forms_are_read() {
        assert_eq!(parse("latest").unwrap(), Selector::Latest(0));
        assert_eq!(parse("latest~12").unwrap(), Selector::Latest(12));
        assert_eq!(parse("AB12").unwrap(), Selector::Id("ab12".into()));
        assert_eq!(parse("20261120").unwrap(), Selector::Id("20261120".into()));
        assert_eq!(parse("2026-11-20T14:00:00Z").unwrap(), at("2026-11-20T14:00:00Z"));
        assert_eq!(parse("2026-11-20T14:00:00+05:30").unwrap(), at("2026-11-20T08:30:00Z"));
        assert_eq!(parse("2026-11-20 14:00").unwrap(), at("2026-11-20T12:00:00Z"));
        assert_eq!(parse("2026-11-20T14:00").unwrap(), at("2026-11-20T12:00:00Z"));
        assert_eq!(parse("2026-11-20").unwrap(), at("2026-11-20T21:59:59.999999999Z"));
        for bad in
            ["", "latest~", "latest~x", "latest2", "yesterday", "2026-13-01", "14:00", "latest~-1", "-1"]
        {
            assert_eq!(parse(bad).unwrap_err().code(), Code::InvalidValue, "{bad}");
        }
    }

    #[test]
    fn the_right_point_is_picked() {
        // Times 1003, 1002, 1001; ids 0303…, 0202…, 0101….
        let points = [point("blog", 3), point("blog", 2), point("blog", 1)];
        let pick = |text: &str| parse(text).unwrap().pick("blog", &points).map(|p| p.point.id.short());
        assert_eq!(pick("latest").unwrap(), "03030303");
        assert_eq!(pick("latest~2").unwrap(), "01010101");
        assert_eq!(pick("02").unwrap(), "02020202");
        assert_eq!(pick("0").unwrap_err().code(), Code::PointAmbiguous);
        assert_eq!(pick("0").unwrap_err().message(), "3 points of app `blog` begin with 0");
        assert_eq!(pick("ff").unwrap_err().code(), Code::PointNotFound);
        assert_eq!(pick("latest~3").unwrap_err().code(), Code::PointNotFound);
        assert_eq!(pick("1970-01-01T00:16:42.5Z").unwrap(), "02020202");
        assert_eq!(pick("1970-01-01T00:16:42Z").unwrap(), "02020202");
        assert_eq!(pick("1970-01-01T00:16:40Z").unwrap_err().code(), Code::PointNotFound);
        assert_eq!(Selector::Latest(0).pick("blog", &[]).unwrap_err().code(), Code::PointNotFound);
    }
}
