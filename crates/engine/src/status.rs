//! Jobs and the whole at a glance.

use backstay_catalog::LogLine;
use backstay_model::{Code, Error, Job, JobState, Origin, Result};
use jiff::Timestamp;
use serde::Serialize;

use crate::recover::same_disk;
use crate::secrets::Secrets;
use crate::state::Engine;
use crate::{adopt::FOREIGN, place};

/// The whole at a glance.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The state folder.
    pub state: String,
    /// Whether anything was ever done in it.
    pub set_up: bool,
    /// The vault, where there is one.
    pub vault: Option<VaultStatus>,
    /// The apps by name.
    pub apps: Vec<AppStatus>,
    /// Jobs that run now.
    pub running: Vec<Job>,
    /// Snapshots of other programs in the vault.
    pub foreign_points: usize,
}

/// The vault at a glance.
#[derive(Clone, Debug, Serialize)]
pub struct VaultStatus {
    /// Its address.
    pub address: String,
    /// Its own id.
    pub id: String,
    /// Whether it lies on the disk of an app's home: it does not survive that disk.
    pub same_disk_as_an_app: bool,
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
    /// Its points.
    pub points: usize,
    /// When the newest was taken.
    pub newest: Option<Timestamp>,
    /// How its last backup that is over ended, where this state knows.
    pub last_backup: Option<Job>,
}

impl Engine {
    /// The whole at a glance. A state in which nothing was done yet is not an error.
    pub fn status(&self) -> Result<Status> {
        let state = self.state.display().to_string();
        if Secrets::load(&self.state)?.is_none() {
            return Ok(Status {
                state,
                set_up: false,
                vault: None,
                apps: Vec::new(),
                running: Vec::new(),
                foreign_points: 0,
            });
        }
        let points = self.points()?;
        let jobs = self.catalog()?.jobs(1_000)?;
        let apps = self.apps()?;
        let vault_folder = place::local(&points.vault.address);
        let on_vault_disk =
            |home: &std::path::Path| vault_folder.as_ref().is_some_and(|v| same_disk(home, v));
        let vault = VaultStatus {
            address: points.vault.address.clone(),
            id: points.vault.id.clone(),
            same_disk_as_an_app: apps.iter().filter_map(|a| a.home.as_deref()).any(on_vault_disk),
        };
        let apps = apps
            .into_iter()
            .map(|app| {
                let mut of_app = points.records.iter().filter(|r| r.point.app == app.name);
                let newest = of_app.next().map(|r| r.point.time);
                let over = |j: &&Job| {
                    j.app.as_ref() == Some(&app.name)
                        && j.kind == backstay_model::JobKind::Backup
                        && !matches!(j.state, JobState::Running | JobState::Queued)
                };
                AppStatus {
                    points: of_app.count() + usize::from(newest.is_some()),
                    newest,
                    last_backup: jobs.iter().find(over).cloned(),
                    home_exists: app.home.as_ref().is_some_and(|h| h.is_dir()),
                    home: app.home.map(|h| backstay_tree::path::escape(h.as_os_str())),
                    name: app.name.to_string(),
                }
            })
            .collect();
        let foreign = |r: &&backstay_catalog::PointRecord| r.point.origin == Origin::Foreign;
        Ok(Status {
            state,
            set_up: true,
            vault: Some(vault),
            apps,
            running: jobs.into_iter().filter(|j| j.state == JobState::Running).collect(),
            foreign_points: points.records.iter().filter(foreign).count(),
        })
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
