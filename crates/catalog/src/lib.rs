//! The state of Backstay: apps, points, jobs and leases.
//!
//! One trait, [`Catalog`], with the promises below; [`Sqlite`] keeps them in one file. The API is blocking: an
//! implementation owns what runtime it needs.
//!
//! Invariants that every implementation keeps (held by [`conformance`]):
//! * Each call is one transaction: killed at any moment, all of it happened or nothing.
//! * At most one exclusive job per app runs. Every job has a fencing token greater than all before it; only who
//!   shows the token may renew or end the job.
//! * No job runs for ever: one whose lease ran out or whose process is gone is marked failed by the next call of
//!   [`Catalog::expire_jobs`] or [`Catalog::begin_job`].
//! * What opens a container, and the value of a setting, is stored as the sealed text that was given, never in clear.
//! * Custom backups are a view of the containers, as points are one of the vault.
//! * Points are a view of the vault: they may be lost and are read again from there. A power loss may take the last
//!   records with it (they are not synced one by one), never the consistency of the rest.

mod clock;
pub mod conformance;
mod lease;
mod owner;
mod setting;
mod sqlite;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use backstay_model::app::AppConfig;
use backstay_model::{AppName, Counts, CustomBackup, Job, JobId, JobKind, JobState, Point, Result, Step};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use clock::{Clock, ManualClock, SystemClock};
pub use owner::{Life, Owner};
pub use setting::{PRODUCTION, SealedRecord, SettingKind, SettingRecord};
pub use sqlite::Sqlite;

/// How long a lease holds unless it is renewed.
pub const LEASE: Duration = Duration::from_secs(60);

/// A protected app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    /// Its name.
    pub name: AppName,
    /// Its content root, where this machine has it.
    pub home: Option<PathBuf>,
    /// What kind of app; `folder` for an adopted folder.
    pub kind: String,
    /// When it became known.
    pub created: Timestamp,
    /// What is set about it.
    pub config: AppConfig,
    /// When it was removed; none while it is protected. A removed app keeps its points, its configuration and its name.
    pub removed: Option<Timestamp>,
}

impl App {
    /// An app with nothing set.
    #[must_use]
    pub fn new(name: AppName, home: Option<PathBuf>, kind: &str, created: Timestamp) -> Self {
        App { name, home, kind: kind.to_owned(), created, config: AppConfig::default(), removed: None }
    }
}

/// A point with what the vault's snapshot says about its origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointRecord {
    /// The point.
    #[serde(flatten)]
    pub point: Point,
    /// The host that took it.
    pub host: String,
    /// The folders it was taken from, as told by the snapshot.
    pub paths: Vec<String>,
    /// The vault's id of the tree (64 hexadecimal digits).
    pub tree: String,
}

/// A job to begin.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Its id.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// Whose app; none for work on a whole vault.
    pub app: Option<AppName>,
    /// Whether no other exclusive job of the app may run beside it.
    pub exclusive: bool,
    /// Whether the scheduler began it; such a job is not cancelled by [`Catalog::cancel_job`].
    pub automatic: bool,
}

/// What a job has done so far.
#[derive(Clone, Debug, Default)]
pub struct Work {
    /// Its steps.
    pub steps: Vec<Step>,
    /// Running totals.
    pub progress: Counts,
    /// Lines for its log that were not stored yet.
    pub log: Vec<LogLine>,
}

/// How a job ended.
#[derive(Clone, Debug)]
pub struct End {
    /// Succeeded, failed or cancelled.
    pub state: JobState,
    /// What to read about it.
    pub message: Option<String>,
    /// The stable code, where it failed or is partial.
    pub code: Option<String>,
}

/// A line of a job's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When.
    pub time: Timestamp,
    /// What.
    pub text: String,
}

/// A change of the view of one vault's points.
#[derive(Clone, Debug, Default)]
pub struct PointChanges {
    /// Points to add (a known snapshot is replaced).
    pub add: Vec<PointRecord>,
    /// Snapshot ids to forget.
    pub remove: Vec<String>,
}

impl PointChanges {
    /// Whether there is nothing to change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }
}

/// A place for custom backups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its address, without secrets.
    pub address: String,
    /// What opens it, sealed; none where nothing is needed.
    pub credentials: Option<String>,
    /// Until when that is valid, where it is known.
    pub expires: Option<Timestamp>,
    /// How it is talked to, as JSON.
    pub options: String,
    /// When it became known.
    pub created: Timestamp,
}

/// A change of the view of custom backups.
#[derive(Clone, Debug, Default)]
pub struct CustomChanges {
    /// Backups to add, or to replace what is known of them.
    pub put: Vec<CustomBackup>,
    /// Backups to forget: address of the container and name.
    pub remove: Vec<(String, String)>,
}

/// The state. All methods may be called from several threads and by several processes at once.
pub trait Catalog: Send + Sync {
    /// The place in words, for messages.
    fn location(&self) -> String;

    /// All apps by name, without those that were removed.
    fn apps(&self) -> Result<Vec<App>>;

    /// The removed apps by name.
    fn removed_apps(&self) -> Result<Vec<App>>;

    /// One app, also a removed one; none when the name is free.
    fn app(&self, name: &AppName) -> Result<Option<App>>;

    /// Adds an app. `AlreadyExists` when the name, or `Conflict` when the home, belongs to another. The name of a removed
    /// app is not free, its home is.
    fn add_app(&self, app: &App) -> Result<()>;

    /// Changes the configuration of an app, removed or not, in one transaction, and gives the app as it is then. When
    /// `change` fails, nothing is changed. `AppNotFound` when there is none.
    fn change_app_config(
        &self,
        name: &AppName,
        change: &mut dyn FnMut(&mut AppConfig) -> Result<()>,
    ) -> Result<App>;

    /// Notes that an app is no longer protected. Everything about it stays. `AppNotFound` when there is none or it was
    /// removed already.
    fn remove_app(&self, name: &AppName) -> Result<App>;

    /// Takes a removal back. `Conflict` when its home belongs to another app by now; `AppNotFound` when no app of that
    /// name was removed.
    fn revive_app(&self, name: &AppName) -> Result<App>;

    /// Forgets apps that were removed before `limit` and have no point left in any vault and no custom backup, with their
    /// settings; gives their names.
    fn forget_removed(&self, limit: Timestamp) -> Result<Vec<AppName>>;

    /// Gives a known app another home, none for "not on this machine". `Conflict` when that belongs to another app.
    fn move_app(&self, app: &App) -> Result<()>;

    /// All points known of one vault, newest first.
    fn points(&self, vault: &str) -> Result<Vec<PointRecord>>;

    /// Changes what is known of one vault's points, and adds `apps` whose names are free (without their
    /// home where that belongs to another app). A removed app stays removed.
    fn change_points(&self, vault: &str, changes: &PointChanges, apps: &[App]) -> Result<()>;

    /// All containers by name.
    fn containers(&self) -> Result<Vec<Container>>;

    /// One container; none when it is not known.
    fn container(&self, name: &str) -> Result<Option<Container>>;

    /// Adds a container, or with `replace` changes the one of that name. `AlreadyExists` when the name is in use.
    fn put_container(&self, container: &Container, replace: bool) -> Result<()>;

    /// Forgets a container. `ContainerNotFound` when there is none, `Conflict` when the schedule of an app, removed or
    /// not, names it.
    fn remove_container(&self, name: &str) -> Result<Container>;

    /// The custom backups of one app or of all, newest first.
    fn custom_backups(&self, app: Option<&AppName>) -> Result<Vec<CustomBackup>>;

    /// Changes what is known of custom backups.
    fn change_custom_backups(&self, changes: &CustomChanges) -> Result<()>;

    /// The settings and connection strings of an app and slot, by kind and name.
    fn settings(&self, app: &AppName, slot: &str) -> Result<Vec<SettingRecord>>;

    /// Adds one, or gives the one of that kind and name another value. `AppNotFound` when there is no such app.
    fn set_setting(&self, app: &AppName, slot: &str, setting: &SettingRecord) -> Result<()>;

    /// Takes one away and gives it back. `SettingNotFound` or `ConnectionNotFound` when there is none, `AppNotFound` when
    /// there is no such app.
    fn delete_setting(
        &self,
        app: &AppName,
        slot: &str,
        kind: SettingKind,
        name: &str,
    ) -> Result<SettingRecord>;

    /// Puts these in the place of all that the app and slot have; with `keep_sticky` those that belong to the slot stay as
    /// they are, whatever is given. `AppNotFound` when there is no such app.
    fn put_settings(
        &self,
        app: &AppName,
        slot: &str,
        settings: &[SettingRecord],
        keep_sticky: bool,
    ) -> Result<()>;

    /// Gives every sealed text to `change`, with the record it is sealed for, and stores what that gives back; none leaves
    /// it as it is. Gives the number of changed ones. When `change` fails, nothing is changed.
    fn reseal(&self, change: &mut dyn FnMut(&SealedRecord, &str) -> Result<Option<String>>) -> Result<u64>;

    /// Begins a job in this process with a lease of [`LEASE`]. `AppBusy` when an exclusive job of the app runs.
    fn begin_job(&self, job: &NewJob) -> Result<Job>;

    /// Renews the lease and stores the work done; true when somebody asked the job to stop. `LeaseLost` when the
    /// job is no longer this process's.
    fn renew_job(&self, id: &JobId, token: i64, work: &Work) -> Result<bool>;

    /// Whether somebody asked the job to stop; `LeaseLost` when the job is no longer this process's. Writes nothing.
    fn watch_job(&self, id: &JobId, token: i64) -> Result<bool>;

    /// Ends a job and gives its lease back. `LeaseLost` when it was not this process's any more.
    fn end_job(&self, id: &JobId, token: i64, work: &Work, end: &End) -> Result<()>;

    /// Marks jobs as failed whose lease ran out or whose process is gone, and gives them back.
    fn expire_jobs(&self) -> Result<Vec<Job>>;

    /// The newest jobs, newest first.
    fn jobs(&self, limit: u32) -> Result<Vec<Job>>;

    /// One job; none when it is not known.
    fn job(&self, id: &JobId) -> Result<Option<Job>>;

    /// The exclusive job of an app that runs now, where there is one.
    fn exclusive_job(&self, app: &AppName) -> Result<Option<Job>>;

    /// Asks a job to stop and gives its record. `JobNotFound` when there is none, `AutomaticJob` when the scheduler's
    /// runs; no change when it has ended.
    fn cancel_job(&self, id: &JobId) -> Result<Job>;

    /// The log of a job, oldest line first.
    fn job_log(&self, id: &JobId) -> Result<Vec<LogLine>>;

    /// The notes whose names begin with `prefix`, by name. A note is a small text that its writer remembers.
    fn notes(&self, prefix: &str) -> Result<BTreeMap<String, String>>;

    /// Writes notes, or removes those without a value, all or none of them.
    fn set_notes(&self, changes: &[(String, Option<String>)]) -> Result<()>;
}
