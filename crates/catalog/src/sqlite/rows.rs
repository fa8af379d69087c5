//! Rows to values and back.
//!
//! Invariants: a row this version cannot read is `StateDamaged`, never a panic and never skipped in silence.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_model::app::AppConfig;
use backstay_model::{Code, Error, Job, Result};
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::Step;
use crate::App;
use crate::lease::Lease;

/// A job with what decides about its lease.
pub(super) struct JobRow {
    pub job: Job,
    pub lease: Lease,
}

/// A time as stored: all nine digits, so that texts sort as times do.
pub(super) fn text(time: Timestamp) -> String {
    format!("{time:.9}")
}

pub(super) fn path_bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

pub(super) fn odd(what: &str, value: &str) -> Error {
    Error::new(Code::StateDamaged, format!("The state holds `{}` as {what}", value.escape_debug()))
}

pub(super) fn to_json<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|e| Error::new(Code::Internal, "A record cannot be written").because(e))
}

fn from_json<T: DeserializeOwned>(what: &str, value: &str) -> Result<T> {
    serde_json::from_str(value).map_err(|e| odd(what, value).because(e))
}

/// The one word by which a kind or state is stored.
pub(super) fn word<T: Serialize>(value: &T) -> Result<String> {
    Ok(to_json(value)?.trim_matches('"').to_owned())
}

fn from_word<T: DeserializeOwned>(what: &str, value: &str) -> Result<T> {
    from_json(what, &format!("\"{}\"", value.escape_debug()))
}

fn parse_time(value: &str) -> Result<Timestamp> {
    value.parse().map_err(|e: jiff::Error| odd("a time", value).because(e))
}

pub(super) fn time(row: &SqliteRow, column: &str) -> Step<Timestamp> {
    Ok(parse_time(row.try_get(column)?)?)
}

pub(super) fn time_or_none(row: &SqliteRow, column: &str) -> Step<Option<Timestamp>> {
    Ok(row.try_get::<Option<&str>, _>(column)?.map(parse_time).transpose()?)
}

pub(super) fn read_app(row: &SqliteRow) -> Step<App> {
    let name: &str = row.try_get("name")?;
    let home: Option<&[u8]> = row.try_get("home")?;
    Ok(App {
        name: name.parse().map_err(|_bad_name| odd("the name of an app", name))?,
        home: home.map(|bytes| PathBuf::from(OsStr::from_bytes(bytes))),
        kind: row.try_get("kind")?,
        created: time(row, "created")?,
        config: read_config(name, row.try_get("config")?)?,
        removed: time_or_none(row, "removed")?,
    })
}

/// A configuration that is JSON but holds a word this version does not know was written by a newer one.
fn read_config(app: &str, value: &str) -> Result<AppConfig> {
    serde_json::from_str(value).map_err(|e| match e.classify() {
        serde_json::error::Category::Data => {
            let message = format!("The configuration of app `{app}` holds what this version does not know");
            Error::new(Code::StateUnsupported, message).because(e)
        }
        _ => odd("the configuration of an app", value).because(e),
    })
}

pub(super) fn read_job(row: &SqliteRow) -> Step<JobRow> {
    let id: &str = row.try_get("id")?;
    let app: Option<&str> = row.try_get("app")?;
    let owner: String = row.try_get("owner")?;
    let uptime: Option<i64> = row.try_get("lease_uptime_ms")?;
    let job = Job {
        id: id.parse().map_err(|_bad_id| odd("the id of a job", id))?,
        kind: from_word("the kind of a job", row.try_get("kind")?)?,
        app: app.map(|a| a.parse().map_err(|_bad_name| odd("the name of an app", a))).transpose()?,
        state: from_word("the state of a job", row.try_get("state")?)?,
        created: time(row, "created")?,
        started: time_or_none(row, "started")?,
        ended: time_or_none(row, "ended")?,
        owner,
        token: row.try_get("token")?,
        lease_until: time_or_none(row, "lease_until")?,
        cancel_requested: row.try_get::<i64, _>("cancel_requested")? != 0,
        automatic: row.try_get::<i64, _>("automatic")? != 0,
        steps: from_json("the steps of a job", row.try_get("steps")?)?,
        progress: from_json("the progress of a job", row.try_get("progress")?)?,
        message: row.try_get("message")?,
        code: row.try_get("code")?,
    };
    let lease = Lease {
        owner: job.owner.parse().ok(),
        until: job.lease_until,
        until_uptime: uptime.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis),
    };
    Ok(JobRow { job, lease })
}
