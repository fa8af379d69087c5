//! Taking a recovery point.
//!
//! Invariants: the point exists when its snapshot object does, which is written last, after the job's lease and the
//! vault's lock were looked at once more. Everything before is invisible. The catalog is told afterwards; when that
//! is lost the next command reads it from the vault. An app becomes known with its first point.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backstay_catalog::{App, PointChanges, PointRecord};
use backstay_model::{
    AppName, Cancel, Code, Error, JobId, JobKind, Origin, Problem, ProblemKind, Progress, Result,
};
use backstay_tree::Exclusions;
use backstay_tree::path::escape;
use jiff::Timestamp;
use serde::Serialize;

use crate::adopt::Subject;
use crate::filter::FilterRecord;
use crate::job::{Done, Task, run_for};
use crate::manifest::SavedDatabase;
use crate::points::Points;
use crate::recover::{Places, same_disk};
use crate::state::{Engine, OpenVault};
use crate::{place, private};

mod read;
pub(crate) mod still;
mod take;

pub(crate) use take::{Taken, What};

/// Folder of the file indexes in the state folder; may be deleted at any time.
const CACHE: &str = "cache";

/// What became of a backup.
#[derive(Clone, Debug, Serialize)]
pub struct BackupReport {
    /// The point.
    pub point: PointRecord,
    /// The app's home.
    pub home: String,
    /// Whether the folder became an app by this.
    pub new_app: bool,
    /// Whether the app had been removed and is protected again.
    pub revived: bool,
    /// Files that were not in the point before.
    pub files_new: u64,
    /// Files that differ from the point before.
    pub files_changed: u64,
    /// Files that are as they were.
    pub files_unchanged: u64,
    /// What a person should know: what could not be read, what was left out.
    pub problems: Vec<Problem>,
    /// The filter that was obeyed; none where everything was taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<FilterRecord>,
    /// The databases that are in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<SavedDatabase>,
    /// The volume of whose snapshot the files were read, and when that was made; none where they were read as they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotTaken>,
    /// Why the hook after the backup failed, where it did. The point is complete all the same.
    pub hook_failed: Option<String>,
    /// The job that did it.
    pub job: JobId,
    /// How long it took.
    pub seconds: f64,
    /// Where everything is, when this command made it.
    pub first_run: Option<Places>,
    /// Whether the vault lies on the disk of the home: it does not survive that disk.
    pub vault_on_same_disk: bool,
}

impl BackupReport {
    /// The problems that make the point partial.
    #[must_use]
    pub fn failures(&self) -> Vec<Problem> {
        self.problems.iter().filter(|p| p.kind.is_failure()).cloned().collect()
    }
}

/// A snapshot of a volume that was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SnapshotTaken {
    /// The volume (`Btrfs /srv`).
    pub volume: String,
    /// When it was made.
    pub time: Timestamp,
}

/// What is to be backed up.
#[derive(Clone, Copy, Debug)]
pub struct BackupRequest<'a> {
    /// Name of a known app, or a folder.
    pub target: &'a Path,
    /// Name for a folder that becomes an app; none for one after the folder.
    pub named: Option<&'a AppName>,
    /// Who asks for it.
    pub origin: Origin,
    /// Whether the linked databases are to be in it.
    pub databases: bool,
}

impl<'a> BackupRequest<'a> {
    /// What a person asks for.
    #[must_use]
    pub fn of(target: &'a Path) -> Self {
        BackupRequest { target, named: None, origin: Origin::Manual, databases: true }
    }
}

impl Engine {
    /// Takes a recovery point of the app that the target names, or of the folder at the target, which becomes one.
    /// On the very first run secrets and vault are made.
    pub fn backup(
        &self,
        request: &BackupRequest<'_>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<BackupReport> {
        self.check_target(request.target)?;
        let open = self.vault_or_new()?;
        self.backup_to(open, request, progress, cancel)
    }

    /// The same into a vault that is open.
    pub(crate) fn backup_to(
        &self,
        open: OpenVault,
        request: &BackupRequest<'_>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<BackupReport> {
        let started = Instant::now();
        let BackupRequest { target, named, origin, databases } = *request;
        let first_run = open.new.then(|| self.places(&open));
        let points = self.reconcile(open)?;
        let subject = self.subject(target, named)?;
        let home = home_of(&subject.app)?;
        let task = Task { kind: JobKind::Backup, app: Some(&subject.app.name), exclusive: true };
        let (taken, hook_failed) =
            run_for(origin, self.catalog()?, &self.clock, &task, (progress, cancel), |job| {
                let app = &subject.app;
                self.hook_before_backup(app, &home, job)?;
                let what = What { origin, databases };
                let taken = self.take(job, &points, &subject, &home, what);
                let point = taken.as_ref().ok().map(|t| t.record.point.id);
                let hook_failed = self.hook_after_backup(app, &home, point, job);
                let taken = taken?;
                let failures = taken.problems.iter().filter(|p| p.kind.is_failure()).count();
                let point = &taken.record.point;
                let mut message = match failures {
                    0 => format!("Point {} taken: {} files", point.id.short(), point.files),
                    n => format!("Point {} taken with {n} problems: {} files", point.id.short(), point.files),
                };
                if let Some(why) = &hook_failed {
                    message.push_str(&format!(". {why}"));
                }
                let partial = match (failures, &hook_failed) {
                    (0, None) => None,
                    (0, Some(_)) => Some(Code::HookFailed),
                    _ => Some(Code::PartiallySucceeded),
                };
                Ok(Done { message, partial, value: (taken, hook_failed) })
            })?;
        let vault_folder = place::local(&points.vault.address);
        Ok(BackupReport {
            home: escape(home.as_os_str()),
            new_app: subject.new,
            revived: subject.app.removed.is_some(),
            hook_failed,
            files_new: taken.files[0],
            files_changed: taken.files[1],
            files_unchanged: taken.files[2],
            problems: taken.problems,
            filter: taken.filter,
            databases: taken.databases,
            snapshot: taken.snapshot,
            job: taken.job,
            seconds: seconds(started.elapsed()),
            first_run,
            vault_on_same_disk: vault_folder.is_some_and(|v| same_disk(&home, &v)),
            point: taken.record,
        })
    }

    /// Tells the catalog of a new point, and of its app.
    fn remember(&self, points: &Points, subject: &Subject, record: &PointRecord) -> Result<()> {
        self.remember_home(subject)?;
        let changes = PointChanges { add: vec![record.clone()], remove: Vec::new() };
        self.catalog()?.change_points(&points.vault.id, &changes, std::slice::from_ref(&subject.app))
    }

    /// Tells the catalog of an app that has another home by now, or was removed and is protected again.
    fn remember_home(&self, subject: &Subject) -> Result<()> {
        let catalog = self.catalog()?;
        let name = &subject.app.name;
        if subject.new && catalog.app(name)?.is_some() {
            catalog.move_app(&subject.app)?;
        }
        if subject.app.removed.is_some() {
            match catalog.revive_app(name) {
                // Another command was faster.
                Err(e) if e.code() == Code::AppNotFound => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// Tells the catalog of an app that was backed up somewhere else than into the vault.
    pub(crate) fn remember_app(&self, subject: &Subject) -> Result<()> {
        self.remember_home(subject)?;
        self.catalog()?.change_points("", &PointChanges::default(), std::slice::from_ref(&subject.app))
    }

    /// Refuses a target that cannot be meant before anything is made for it.
    pub(crate) fn check_target(&self, target: &Path) -> Result<()> {
        if self.is_set_up()? {
            return Ok(());
        }
        // An app may have been made before its first backup.
        let is_app = |app: &App| target.as_os_str() == app.name.as_str();
        if self.has_catalog() && self.apps()?.iter().any(is_app) {
            return Ok(());
        }
        let home = crate::adopt::absolute_home(target)?;
        self.refuse_own(&home)
    }

    /// What lies in the home and is not part of it: Backstay's own folders and the homes of other apps.
    pub(crate) fn exclusions(&self, app: &App, home: &Path, vault: &str) -> Result<Exclusions> {
        let real = home.canonicalize().unwrap_or_else(|_gone| home.to_owned());
        self.exclusions_in(&real, &self.not_of(app, &real, vault)?)
    }

    /// The paths of such folders, relative to the home, whose real path is given.
    pub(crate) fn not_of(&self, app: &App, real: &Path, vault: &str) -> Result<Vec<PathBuf>> {
        let mut inside = self.own_folders(vault);
        inside.extend(self.container_folders()?);
        let others = self.apps()?.into_iter().filter(|other| other.name != app.name);
        inside.extend(others.filter_map(|other| other.home));
        let below = |folder: PathBuf| {
            let folder = folder.canonicalize().unwrap_or(folder);
            folder.strip_prefix(real).ok().filter(|path| !path.as_os_str().is_empty()).map(Path::to_owned)
        };
        Ok(inside.into_iter().filter_map(below).collect())
    }

    /// Such folders as exclusions, where the home lies there.
    pub(crate) fn exclusions_in(&self, home: &Path, inside: &[PathBuf]) -> Result<Exclusions> {
        let mut exclusions = Exclusions::new();
        for folder in inside.iter().map(|path| home.join(path)) {
            match exclusions.add_folder(&*self.fs, &folder) {
                // What cannot be looked at cannot be read either: the walk tells it.
                Err(e) if e.kind() != std::io::ErrorKind::PermissionDenied => {
                    let message = format!("Cannot look at {}", folder.display());
                    return Err(Error::new(Code::SourceNotFound, message).because(e));
                }
                _ => {}
            }
        }
        Ok(exclusions)
    }

    /// The local file that makes the next backup of an app fast.
    pub(crate) fn file_index(&self, vault: &str, app: &AppName) -> Result<PathBuf> {
        let folder = self.state.join(CACHE);
        private::make_folder(&*self.fs, &folder)?;
        let vault: String = vault.chars().take(16).collect();
        Ok(folder.join(format!("{vault}-{app}.files")))
    }
}

/// The app's home, or what to do where this machine does not know it.
pub(crate) fn home_of(app: &App) -> Result<PathBuf> {
    app.home.clone().ok_or_else(|| {
        let message = format!("The home of app `{}` on this machine is not known", app.name);
        Error::new(Code::SourceNotFound, message)
            .advise(format!("Name its folder once: `backstay backup PATH --app {}`.", app.name))
    })
}

pub(crate) fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1_000.0).round() / 1_000.0
}

/// The words for a kind of problem.
#[must_use]
pub fn problem_name(kind: ProblemKind) -> &'static str {
    match kind {
        ProblemKind::Unreadable => "unreadable",
        ProblemKind::Changed => "changed while read",
        ProblemKind::Vanished => "vanished",
        ProblemKind::Socket => "a socket",
        ProblemKind::Mount => "a mount, left out",
        ProblemKind::Metadata => "metadata incomplete",
        ProblemKind::Unwritable => "not written",
        ProblemKind::Lost => "lost in the vault",
        ProblemKind::Unsafe => "unsafe, not restored",
        ProblemKind::Excluded => "left out",
        ProblemKind::Grew => "grew while read",
        ProblemKind::Filter => "not obeyed",
        ProblemKind::Unmatched => "names nothing",
        ProblemKind::Sealed => "sealed, not opened",
        ProblemKind::Database => "database not saved",
        ProblemKind::Volume => "no snapshot of the volume",
        ProblemKind::Dangling => "names what is not there",
        _ => "to be looked at",
    }
}
