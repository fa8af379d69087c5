//! Jobs and the whole at a glance.
//!
//! Invariants: looking changes nothing and needs no vault: when that cannot be reached, the points are told as last
//! seen. What is well is decided here, once, for people ([`Status::well`]) and for alerts alike.

use std::collections::BTreeMap;
use std::path::Path;

use backstay_catalog::{App, LogLine, Owner, PointRecord};
use backstay_model::app::Pause;
use backstay_model::schedule::{self, Moment, Next};
use backstay_model::{AppName, Code, Error, Job, JobKind, JobState, Occasion, Origin, Result, Schedule};
use backstay_vault::{Folder, Vault};
use jiff::Timestamp;
use serde::Serialize;

use crate::alerts::AlertView;
use crate::in_app::{InAppState, InAppView};
use crate::notify::why;
use crate::recover::same_disk;
use crate::secrets::Secrets;
use crate::serve::lock;
use crate::serve::note::{RunNote, RunResult};
use crate::state::Engine;
use crate::{adopt::FOREIGN, place};

/// Points of the future (the clock was set back) that are younger than this count as taken now.
const FUTURE: i64 = 3_600;

/// The whole at a glance.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The state folder.
    pub state: String,
    /// Whether anything was ever done in it.
    pub set_up: bool,
    /// Whether nothing is wrong: the vault answers, each app has the points it should have, and nothing else is to
    /// be looked at.
    pub well: bool,
    /// Whether `backstay serve` works on this state.
    pub server: bool,
    /// The vault, where there is one.
    pub vault: Option<VaultStatus>,
    /// The apps by name.
    pub apps: Vec<AppStatus>,
    /// Points that wait on this machine for the vault.
    pub spool: SpoolStatus,
    /// Why points do not expire at present, where the clock is in doubt.
    pub expiry_held: Option<String>,
    /// Containers whose keys will soon not be valid any more, or are not.
    pub containers_expiring: Vec<ExpiringContainer>,
    /// Alerts that hold, oldest first.
    pub alerts: Vec<AlertView>,
    /// Jobs that run now.
    pub running: Vec<Job>,
    /// Snapshots of other programs in the vault.
    pub foreign_points: usize,
}

/// A container whose key ends.
#[derive(Clone, Debug, Serialize)]
pub struct ExpiringContainer {
    /// Its name.
    pub name: String,
    /// When.
    pub expires: Timestamp,
}

/// The scheduled custom backups of an app at a glance.
#[derive(Clone, Debug, Serialize)]
pub struct CustomStatus {
    /// What is set.
    pub schedule: Schedule,
    /// When the next one is due.
    pub next_run: Option<Timestamp>,
    /// When the newest was taken.
    pub newest: Option<Timestamp>,
    /// How the last run ended.
    pub last_result: Option<LastResult>,
}

/// The vault at a glance.
#[derive(Clone, Debug, Serialize)]
pub struct VaultStatus {
    /// Its address.
    pub address: String,
    /// Its own id.
    pub id: String,
    /// Whether it could be opened and its points could be listed.
    pub reachable: bool,
    /// Why not.
    pub error: Option<VaultError>,
    /// Bytes of data in it, where it is reachable and was asked.
    pub bytes: Option<u64>,
    /// Bytes that are free where it lies, where that is a folder.
    pub free_bytes: Option<u64>,
    /// Whether it lies on the disk of an app's home: it does not survive that disk.
    pub same_disk_as_an_app: bool,
}

/// Why a vault cannot be used.
#[derive(Clone, Debug, Serialize)]
pub struct VaultError {
    /// The stable code.
    pub code: String,
    /// What happened.
    pub message: String,
    /// What to do.
    pub advice: String,
}

/// Points that wait.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SpoolStatus {
    /// How many.
    pub points: usize,
    /// When the oldest was taken.
    pub oldest: Option<Timestamp>,
}

/// An app at a glance.
#[derive(Clone, Debug, Serialize)]
pub struct AppStatus {
    /// Its name.
    pub name: String,
    /// Its home on this machine, as known.
    pub home: Option<String>,
    /// Whether the home is there.
    pub home_exists: bool,
    /// Its points in the vault.
    pub points: usize,
    /// Its points that wait for the vault.
    pub spooled: usize,
    /// When the newest was taken, the waiting ones included.
    pub newest: Option<Timestamp>,
    /// The greatest age that the newest may have.
    pub rpo_seconds: u64,
    /// Whether it is younger than that; none where nobody watches (paused, not automatic, no home here).
    pub rpo_met: Option<bool>,
    /// Whether points are taken every hour, but for a pause.
    pub automatic: bool,
    /// Set while automatic points rest.
    pub paused: Option<Pause>,
    /// When the next automatic point is due, where a scheduler runs.
    pub next_run: Option<Timestamp>,
    /// Whether a backup of it runs now.
    pub running: bool,
    /// How its last backup ended, asked for or automatic, where this state knows.
    pub last_result: Option<LastResult>,
    /// Rules of its filter that named nothing at the last automatic point.
    pub filter_unmatched: Vec<String>,
    /// How its last backup that is over ended, where this state knows.
    pub last_backup: Option<Job>,
    /// Its scheduled custom backups; none where it has no schedule.
    pub custom: Option<CustomStatus>,
    /// Its own MySQL; none where it has none.
    pub in_app_mysql: Option<InAppView>,
    /// Whether points are to be taken of it now.
    #[serde(skip)]
    pub(crate) watched: bool,
}

/// How a backup ended.
#[derive(Clone, Debug, Serialize)]
pub struct LastResult {
    /// When.
    pub time: Timestamp,
    /// Whether there is no point of it.
    pub failed: bool,
    /// The stable code, where it failed or is partial.
    pub code: Option<String>,
    /// What to read about it.
    pub message: String,
    /// What to do, where it failed.
    #[serde(skip)]
    pub(crate) advice: String,
}

impl AppStatus {
    /// Whether the last backup failed with a code.
    pub(crate) fn failed_with(&self, code: Code) -> bool {
        self.last_result.as_ref().is_some_and(|r| r.failed && r.code.as_deref() == Some(code.as_str()))
    }

    /// Whether its points are as declared and its last backup did not fail.
    fn well(&self) -> bool {
        let custom_failed =
            self.custom.as_ref().and_then(|c| c.last_result.as_ref()).is_some_and(|r| r.failed);
        let failed = self.watched && self.last_result.as_ref().is_some_and(|r| r.failed);
        let mysql = self.in_app_mysql.as_ref().map(|view| view.state);
        let mysql_failed = matches!(mysql, Some(InAppState::Failed | InAppState::Gone));
        self.rpo_met != Some(false) && !failed && !custom_failed && !mysql_failed
    }
}

impl Status {
    /// Whether everything is well but that the last backup of an app left something out.
    #[must_use]
    pub fn partial(&self) -> bool {
        let is_partial = |r: Option<&LastResult>| r.is_some_and(|r| !r.failed && r.code.is_some());
        let partial = |a: &AppStatus| {
            let custom = a.custom.as_ref().and_then(|c| c.last_result.as_ref());
            (is_partial(a.last_result.as_ref()) && a.watched) || is_partial(custom)
        };
        self.apps.iter().any(partial)
    }
}

/// What there is to know of the points.
struct Seen {
    vault: VaultStatus,
    records: Vec<PointRecord>,
}

impl Engine {
    /// The whole at a glance. A state in which nothing was done yet is not an error, nor is a vault that is away.
    pub fn status(&self) -> Result<Status> {
        let state = self.state.display().to_string();
        let server = lock::is_held(&self.state);
        let secrets = Secrets::load(&self.state)?;
        let known = secrets.is_some() || self.state.join(crate::state::CATALOG).exists();
        if !known {
            return Ok(Status {
                state,
                set_up: false,
                well: true,
                server,
                vault: None,
                apps: Vec::new(),
                spool: SpoolStatus::default(),
                expiry_held: None,
                containers_expiring: Vec::new(),
                alerts: Vec::new(),
                running: Vec::new(),
                foreign_points: 0,
            });
        }
        let seen = secrets.as_ref().map(|s| self.look_at_vault(s)).transpose()?;
        let (vault, records) = seen.map_or_else(|| (None, Vec::new()), |s| (Some(s.vault), s.records));
        let spooled = self.spooled_points().unwrap_or_default();
        let jobs = self.catalog()?.jobs(1_000)?;
        let notes = self.run_notes()?;
        let view =
            View { engine: self, records: &records, spooled: &spooled, jobs: &jobs, notes: &notes, server };
        let mut apps: Vec<AppStatus> = Vec::new();
        for app in self.apps()? {
            apps.push(AppStatus { custom: self.custom_status(&app)?, ..view.app(&app) });
        }
        let expiring = self.expiring_containers()?.into_iter();
        let containers_expiring: Vec<ExpiringContainer> =
            expiring.map(|(name, expires)| ExpiringContainer { name, expires }).collect();
        let alerts = self.alerts()?;
        let reachable = vault.as_ref().is_none_or(|v| v.reachable);
        Ok(Status {
            state,
            set_up: secrets.is_some(),
            well: reachable
                && apps.iter().all(AppStatus::well)
                && alerts.is_empty()
                && containers_expiring.is_empty(),
            server,
            vault,
            apps,
            spool: SpoolStatus { points: spooled.len(), oldest: spooled.iter().map(|r| r.point.time).min() },
            expiry_held: self.expiry_held()?,
            containers_expiring,
            alerts,
            running: jobs.iter().filter(|j| j.state == JobState::Running).cloned().collect(),
            foreign_points: records.iter().filter(|r| r.point.origin == Origin::Foreign).count(),
        })
    }

    fn custom_status(&self, app: &App) -> Result<Option<CustomStatus>> {
        let Some(schedule) = app.config.schedule.clone() else { return Ok(None) };
        let view = self.schedule_view(app)?;
        let backups = self.catalog()?.custom_backups(Some(&app.name))?;
        let taken = backups.iter().find(|b| b.occasion == Occasion::Scheduled && !b.removing);
        Ok(Some(CustomStatus {
            schedule,
            next_run: view.next_run.filter(|_| view.server && app.home.is_some()),
            newest: taken.map(|b| b.time),
            last_result: view.last_result,
        }))
    }

    /// The bytes of data in the vault: one listing, which may take a while in a large one.
    #[must_use]
    pub fn vault_bytes(&self) -> Option<u64> {
        let data = |vault: &Vault| vault.objects(Folder::Data);
        Some(data(&self.vault().ok()?.vault).ok()?.into_values().sum())
    }

    fn look_at_vault(&self, secrets: &Secrets) -> Result<Seen> {
        let address = self.vault_address(Some(secrets))?;
        let folder = place::local(&address);
        let homes = self.apps()?.into_iter().filter_map(|a| a.home);
        let on_its_disk = |home: &Path| folder.as_deref().is_some_and(|v| same_disk(home, v));
        let mut vault = VaultStatus {
            id: secrets.vault.as_ref().map(|v| v.id.clone()).unwrap_or_default(),
            reachable: true,
            error: None,
            bytes: None,
            free_bytes: folder.as_deref().and_then(free_bytes),
            same_disk_as_an_app: homes.into_iter().any(|home| on_its_disk(&home)),
            address,
        };
        let records = match self.points() {
            Ok(points) => {
                vault.id.clone_from(&points.vault.id);
                points.records
            }
            // What this state itself cannot do is no news about the vault.
            Err(e) if matches!(e.code(), Code::StateAccess | Code::StateDamaged | Code::StateUnsupported) => {
                return Err(e);
            }
            Err(e) => {
                vault.reachable = false;
                vault.error = Some(VaultError {
                    code: e.code().as_str().to_owned(),
                    message: why(&e),
                    advice: e.advice().to_owned(),
                });
                self.catalog()?.points(&vault.id)?
            }
        };
        Ok(Seen { vault, records })
    }

    /// The newest jobs, newest first.
    pub fn jobs(&self, limit: u32) -> Result<Vec<Job>> {
        if self.is_set_up()? { self.catalog()?.jobs(limit) } else { Ok(Vec::new()) }
    }

    /// The job of that id or unique prefix.
    pub fn job(&self, prefix: &str) -> Result<Job> {
        let prefix = prefix.to_ascii_lowercase();
        let all = self.jobs(u32::MAX)?;
        let mut fits =
            all.into_iter().filter(|j| !prefix.is_empty() && j.id.to_string().starts_with(&prefix));
        match (fits.next(), fits.next()) {
            (Some(job), None) => Ok(job),
            (None, _) => {
                let state = self.state.display();
                Err(Error::new(Code::JobNotFound, format!("There is no job {prefix} in the state {state}")))
            }
            (Some(_), Some(_)) => {
                Err(Error::new(Code::InvalidValue, format!("Several jobs begin with {prefix}"))
                    .advise("Give more characters of the id."))
            }
        }
    }

    /// The log of a job.
    pub fn job_log(&self, job: &Job) -> Result<Vec<LogLine>> {
        self.catalog()?.job_log(&job.id)
    }

    /// Asks a job to stop; gives its record.
    pub fn job_cancel(&self, job: &Job) -> Result<Job> {
        let now = self.catalog()?.cancel_job(&job.id)?;
        if matches!(now.state, JobState::Running | JobState::Queued) {
            return Ok(now);
        }
        let message = format!("Job {} is over already", job.id.short());
        Err(Error::new(Code::Conflict, message).advise("Nothing is to be done."))
    }

    /// Whether a name is that of the points of other programs.
    #[must_use]
    pub fn is_foreign(app: &str) -> bool {
        app == FOREIGN
    }
}

/// What an app is looked at with.
struct View<'a> {
    engine: &'a Engine,
    records: &'a [PointRecord],
    spooled: &'a [PointRecord],
    jobs: &'a [Job],
    notes: &'a BTreeMap<AppName, RunNote>,
    server: bool,
}

impl View<'_> {
    fn app(&self, app: &App) -> AppStatus {
        let now = self.engine.clock.now();
        let of_app = |r: &&PointRecord| r.point.app == app.name;
        let soon = |t: &Timestamp| t.as_second() <= now.as_second().saturating_add(FUTURE);
        let all = || self.records.iter().chain(self.spooled).filter(of_app).map(|r| r.point.time);
        // After a clock was set back a point of the future says nothing about the present.
        let newest = all().filter(soon).max();
        let watched = app.home.is_some() && app.config.wants_automatic(now);
        let age = newest.map(|t| u64::try_from(now.as_second().saturating_sub(t.as_second())).unwrap_or(0));
        let backup = |j: &&Job| j.app.as_ref() == Some(&app.name) && j.kind == JobKind::Backup;
        let over = |j: &&Job| backup(j) && !matches!(j.state, JobState::Running | JobState::Queued);
        AppStatus {
            name: app.name.to_string(),
            in_app_mysql: self.engine.in_app_view(app),
            home_exists: app.home.as_ref().is_some_and(|h| h.is_dir()),
            home: app.home.as_ref().map(|h| backstay_tree::path::escape(h.as_os_str())),
            points: self.records.iter().filter(of_app).count(),
            spooled: self.spooled.iter().filter(of_app).count(),
            newest: newest.or_else(|| all().max()),
            rpo_seconds: app.config.rpo.as_secs(),
            rpo_met: watched.then(|| age.is_some_and(|age| age <= app.config.rpo.as_secs())),
            automatic: app.config.automatic,
            paused: app.config.paused.clone().filter(|_| app.config.is_paused(now)),
            next_run: self.next_run(app).filter(|_| watched && self.server),
            running: self.jobs.iter().any(|j| backup(&j) && j.state == JobState::Running),
            last_result: self.last_result(app),
            filter_unmatched: self.noted(app).map_or_else(Vec::new, |r| r.unmatched.clone()),
            last_backup: self.jobs.iter().find(over).cloned(),
            custom: None,
            watched,
        }
    }

    /// How the scheduler's last run ended.
    fn noted(&self, app: &App) -> Option<&RunResult> {
        self.notes.get(&app.name)?.result.as_ref()
    }

    fn next_run(&self, app: &App) -> Option<Timestamp> {
        let clock = &self.engine.clock;
        let boot = Owner::current().boot;
        let moment = Moment { now: clock.now(), boot: &boot, uptime: clock.uptime() };
        let last = self.notes.get(&app.name).and_then(|n| n.last.as_ref());
        let offset = schedule::offset(&app.name, self.engine.config.automatic.jitter);
        match schedule::next(&moment, last, offset) {
            Next::Run { .. } => Some(moment.now),
            Next::Wait { time, .. } => moment.now.saturating_add(time).ok(),
        }
    }

    /// The later of what the scheduler noted and what the last job says: a run may fail before it has a job.
    fn last_result(&self, app: &App) -> Option<LastResult> {
        let noted = self.noted(app).map(|r| LastResult {
            time: r.ended,
            failed: r.failed,
            code: r.code.clone(),
            message: r.message.clone(),
            advice: r.advice.clone(),
        });
        let ended = |j: &&Job| {
            j.app.as_ref() == Some(&app.name)
                && j.kind == JobKind::Backup
                && matches!(j.state, JobState::Succeeded | JobState::Failed)
        };
        let job = self.jobs.iter().find(ended).and_then(|job| {
            let code = Code::ALL.iter().find(|c| job.code.as_deref() == Some(c.as_str()));
            Some(LastResult {
                time: job.ended?,
                failed: job.state == JobState::Failed,
                code: job.code.clone(),
                message: job.message.clone().unwrap_or_default(),
                advice: code.map_or_else(String::new, |c| c.advice().to_owned()),
            })
        });
        match (noted, job) {
            (Some(noted), Some(job)) if job.time > noted.time => Some(job),
            (None, job) => job,
            (noted, _) => noted,
        }
    }
}

/// The bytes an ordinary user may still write where a folder lies.
fn free_bytes(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}
