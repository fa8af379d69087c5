//! Schedules of custom backups: what is set, and what is remembered of their runs.
//!
//! Invariants: a schedule is part of what is set about an app and changes in one transaction. It names a container by its
//! name, so a new key for the container is enough when the old one ends. What its scheduler remembers is a note of
//! its own beside that of the hourly points; a note that is lost costs one run too many.

use std::collections::BTreeMap;

use backstay_catalog::{App, Owner};
use backstay_model::schedule::{Moment, Next};
use backstay_model::{AppName, Code, Error, Result, Schedule};
use jiff::civil;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _, Zoned};
use serde::Serialize;

use crate::config::parse_duration;
use crate::serve::note::{RunNote, RunResult};
use crate::state::Engine;
use crate::status::LastResult;

/// Names of the notes in the catalog.
const NOTES: &str = "custom-run/";
const HOUR: u64 = 3_600;

/// A schedule to be set. What is not given stays as it is, or has its default.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScheduleChange<'a> {
    /// Time from one run to the next (`6h`, `2d`).
    pub every: Option<&'a str>,
    /// The first run: a time, or a time of day.
    pub start: Option<&'a str>,
    /// How long backups stay (`14d`; `0` for ever).
    pub keep: Option<&'a str>,
    /// Whether the newest whole one stays whatever its age.
    pub keep_one: Option<bool>,
    /// The container's name.
    pub container: Option<&'a str>,
}

/// A schedule as shown.
#[derive(Clone, Debug, Serialize)]
pub struct ScheduleView {
    /// The app.
    pub app: AppName,
    /// What is set; none where nothing is.
    pub schedule: Option<Schedule>,
    /// When the next backup is due; in the past where it waits for a scheduler.
    pub next_run: Option<Timestamp>,
    /// Whether a scheduler works on this state.
    pub server: bool,
    /// How the last run ended.
    pub last_result: Option<LastResult>,
}

impl Engine {
    /// Sets the schedule of an app's custom backups. Without a start the first one is taken at once.
    pub fn schedule_set(&self, app: &str, change: &ScheduleChange<'_>) -> Result<ScheduleView> {
        let app = self.app_to_schedule(app)?;
        let now = self.clock.now();
        let before = app.config.schedule.as_ref();
        let missing = |what: &str, flag: &str| {
            Error::new(Code::Usage, format!("A new schedule needs {what}")).advise(format!("Add {flag}."))
        };
        let container = match (change.container, before) {
            (Some(name), _) => self.container_show(name)?.name,
            (None, Some(before)) => before.container.clone(),
            (None, None) => {
                return Err(missing("a container", "--container NAME (`backstay container add`)"));
            }
        };
        let every_hours = match (change.every, before) {
            (Some(every), _) => hours(every)?,
            (None, Some(before)) => before.every_hours,
            (None, None) => {
                return Err(missing("a time from one backup to the next", "--every 6h or --every 2d"));
            }
        };
        let start = match (change.start, before) {
            (Some(start), _) => parse_start(start, now, &TimeZone::system())?,
            // Another interval counts from now, else its times would be those of another schedule.
            (None, Some(before)) if before.every_hours == every_hours => before.start,
            (None, _) => whole_second(now),
        };
        let keep_days = match (change.keep, before) {
            (Some(keep), _) => days(keep)?,
            (None, Some(before)) => before.keep_days,
            (None, None) => 30,
        };
        let keep_one = change.keep_one.or(before.map(|b| b.keep_one)).unwrap_or(false);
        let schedule = Schedule { every_hours, start, keep_days, keep_one, container };
        schedule.check()?;
        let same_times = before.is_some_and(|b| b.every_hours == every_hours && b.start == start);
        if !same_times {
            // Written first: a schedule without its note would run at once at a time that was not asked for.
            let last =
                (start < whole_second(now)).then(|| schedule.passed(&self.moment(&Owner::current().boot)));
            self.save_custom_note(&app.name, &RunNote { last, ..RunNote::default() })?;
        }
        let changed = self.catalog()?.change_app_config(&app.name, &mut |config| {
            config.schedule = Some(schedule.clone());
            Ok(())
        })?;
        self.schedule_view(&changed)
    }

    /// Takes the schedule of an app away. What it took stays until it is deleted.
    pub fn schedule_clear(&self, app: &str) -> Result<ScheduleView> {
        let app = self.app_to_schedule(app)?;
        let changed = self.catalog()?.change_app_config(&app.name, &mut |config| {
            config.schedule = None;
            Ok(())
        })?;
        self.catalog()?.set_notes(&[(format!("{NOTES}{}", app.name), None)])?;
        self.schedule_view(&changed)
    }

    /// The schedule of an app.
    pub fn schedule_show(&self, app: &str) -> Result<ScheduleView> {
        let app = self.app_to_schedule(app)?;
        self.schedule_view(&app)
    }

    fn app_to_schedule(&self, name: &str) -> Result<App> {
        if !self.has_catalog() {
            return Err(self.nothing_yet(Code::AppNotFound, &format!("There is no app `{name}`")));
        }
        self.known_app(name)
    }

    pub(crate) fn schedule_view(&self, app: &App) -> Result<ScheduleView> {
        let note = self.custom_notes()?.remove(&app.name).unwrap_or_default();
        Ok(ScheduleView {
            app: app.name.clone(),
            next_run: app.config.schedule.as_ref().map(|s| self.next_custom(s, &note)),
            schedule: app.config.schedule.clone(),
            server: crate::serve::lock::is_held(&self.state),
            last_result: note.result.as_ref().map(LastResult::from),
        })
    }

    fn next_custom(&self, schedule: &Schedule, note: &RunNote) -> Timestamp {
        let boot = Owner::current().boot;
        let moment = self.moment(&boot);
        match schedule.next(&moment, note.last.as_ref()) {
            Next::Run { .. } => moment.now,
            Next::Wait { time, .. } => moment.now.saturating_add(time).unwrap_or(moment.now),
        }
    }

    fn moment<'b>(&self, boot: &'b str) -> Moment<'b> {
        Moment { now: self.clock.now(), boot, uptime: self.clock.uptime() }
    }

    /// The notes of all apps whose schedule has run.
    pub(crate) fn custom_notes(&self) -> Result<BTreeMap<AppName, RunNote>> {
        let note = |(name, value): (String, String)| {
            Some((name.strip_prefix(NOTES)?.parse().ok()?, serde_json::from_str(&value).ok()?))
        };
        Ok(self.catalog()?.notes(NOTES)?.into_iter().filter_map(note).collect())
    }

    pub(crate) fn save_custom_note(&self, app: &AppName, note: &RunNote) -> Result<()> {
        let text = serde_json::to_string(note)
            .map_err(|e| Error::new(Code::Internal, "A note of a run cannot be written").because(e))?;
        self.catalog()?.set_notes(&[(format!("{NOTES}{app}"), Some(text))])
    }
}

impl From<&RunResult> for LastResult {
    fn from(r: &RunResult) -> Self {
        LastResult {
            time: r.ended,
            failed: r.failed,
            code: r.code.clone(),
            message: r.message.clone(),
            advice: r.advice.clone(),
        }
    }
}

fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// Whole hours.
fn hours(text: &str) -> Result<u32> {
    let seconds = parse_duration(text)?.as_secs();
    let bad = || {
        Error::new(
            Code::InvalidValue,
            format!("`{}` is not a whole number of hours or days", text.escape_debug()),
        )
        .advise("Write 6h, 1d, 7d.")
    };
    if seconds % HOUR != 0 {
        return Err(bad());
    }
    u32::try_from(seconds / HOUR).map_err(|_too_large| bad())
}

/// Whole days; 0 for ever.
fn days(text: &str) -> Result<u32> {
    let bad = || {
        Error::new(Code::InvalidValue, format!("`{}` is not a whole number of days", text.escape_debug()))
            .advise("Write 14d, or 0 to keep backups for ever.")
    };
    if text.trim() == "0" {
        return Ok(0);
    }
    let seconds = parse_duration(text)?.as_secs();
    if seconds % (24 * HOUR) != 0 || seconds == 0 {
        return Err(bad());
    }
    u32::try_from(seconds / (24 * HOUR)).map_err(|_too_large| bad())
}

/// A time as people write it: RFC 3339, a date and time in the user's zone, or a time of day, which is the next such time.
fn parse_start(text: &str, now: Timestamp, zone: &TimeZone) -> Result<Timestamp> {
    let bad = || {
        Error::new(Code::InvalidValue, format!("`{}` is not a time", text.escape_debug()))
            .advise("Write 02:30, 2026-11-21T02:30 or 2026-11-21T02:30:00Z.")
    };
    let text = text.trim();
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(whole_second(time));
    }
    if let Ok(time) = text.parse::<Zoned>() {
        return Ok(whole_second(time.timestamp()));
    }
    if !text.contains(['T', 't', ' ', '-'])
        && let Ok(time) = text.parse::<civil::Time>()
    {
        let today = now.to_zoned(zone.clone()).date();
        let at =
            |date: civil::Date| date.to_datetime(time).to_zoned(zone.clone()).ok().map(|z| z.timestamp());
        let later = at(today).filter(|t| *t >= now).or_else(|| at(today.checked_add(1.day()).ok()?));
        return later.map(whole_second).ok_or_else(bad);
    }
    let local = text.parse::<civil::DateTime>().ok().filter(|_| text.contains(':'));
    let zoned = local.and_then(|t| t.to_zoned(zone.clone()).ok()).ok_or_else(bad)?;
    Ok(whole_second(zoned.timestamp()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        let now: Timestamp = "2026-11-20T16:00:00.5Z".parse().unwrap();
        let start = |text: &str| parse_start(text, now, &zone).map(|t| t.to_string());
        assert_eq!(start("02:30").unwrap(), "2026-11-21T00:30:00Z");
        assert_eq!(start("23:15").unwrap(), "2026-11-20T21:15:00Z");
        assert_eq!(start("17:59").unwrap(), "2026-11-21T15:59:00Z", "that time has passed today");
        assert_eq!(start("2026-12-01T02:30").unwrap(), "2026-12-01T00:30:00Z");
        assert_eq!(start("2026-12-01 02:30").unwrap(), "2026-12-01T00:30:00Z");
        assert_eq!(start("2026-12-01T02:30:00Z").unwrap(), "2026-12-01T02:30:00Z");
        for bad in ["", "soon", "25:00", "2026-12-01", "7"] {
            assert_eq!(start(bad).unwrap_err().code(), Code::InvalidValue, "{bad}");
        }
    }

    #[test]
    fn intervals_are_whole_hours_and_days() {
        assert_eq!((hours("6h").unwrap(), hours("2d").unwrap(), hours("1d12h").unwrap()), (6, 48, 36));
        assert_eq!((days("14d").unwrap(), days("0").unwrap(), days("48h").unwrap()), (14, 0, 2));
        for bad in ["90m", "30s", "x", ""] {
            assert_eq!(hours(bad).unwrap_err().code(), Code::InvalidValue, "{bad}");
        }
        for bad in ["6h", "0d", "-1", "x"] {
            assert_eq!(days(bad).unwrap_err().code(), Code::InvalidValue, "{bad}");
        }
    }
}
