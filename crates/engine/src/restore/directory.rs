//! Bringing a point out into a folder, which may become a new app.
//!
//! Invariants: see [`super::target`]. A new app is known only when its folder is complete, durable and has its name:
//! killed before, the next command leaves neither ([`super::arrival`]). Nothing of the vault is locked.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::time::Instant;

use backstay_catalog::{App, PointRecord};
use backstay_database::Side;
use backstay_model::app::Moment;
use backstay_model::{
    AppName, Cancel, Code, Counts, Error, JobId, JobKind, Origin, Problem, ProblemKind, Progress, Result,
};
use backstay_platform::{HookTarget, Names, replace, run_hook};
use backstay_vault::restore::RestoreOptions;
use serde::Serialize;

use super::target::{Target, check_free, unusable};
use super::{RestoreRequest, arrival};
use crate::adopt::SITES;
use crate::databases::choose::{self, DatabasePlan, Elsewhere};
use crate::databases::exchange::{BothSettings, Chosen};
use crate::in_app::Hold;
use crate::job::{Done, Running, Task, run};
use crate::manifest::Manifest;
use crate::points::Found;
use crate::private;
use crate::state::Engine;

/// What became of a restore into a folder.
#[derive(Clone, Debug, Serialize)]
pub struct RestoreReport {
    /// The point.
    pub point: PointRecord,
    /// The app that was made of it; none where it is only a folder.
    pub app: Option<AppName>,
    /// The folder.
    pub directory: String,
    /// Files and bytes of content written.
    pub counts: Counts,
    /// The databases that were restored too.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<DatabasePlan>,
    /// What a person should know, with what was wrong in the point already.
    pub problems: Vec<Problem>,
    /// The job that did it.
    pub job: JobId,
    /// How long it took.
    pub seconds: f64,
}

impl RestoreReport {
    /// The problems that make the result partial.
    #[must_use]
    pub fn failures(&self) -> Vec<Problem> {
        self.problems.iter().filter(|p| p.kind.is_failure()).cloned().collect()
    }
}

/// What a new app gets beside the files.
#[derive(Clone, Copy, Debug)]
pub struct NewHome<'a> {
    /// Its home; none for a folder of its name in the state folder.
    pub home: Option<&'a Path>,
    /// Whether the databases of the point are restored too: each needs a place in `elsewhere`.
    pub databases: bool,
    /// Places for databases; the connections of the new app lead there.
    pub elsewhere: &'a [Elsewhere],
    /// Whether it gets the settings and connection strings of the point.
    pub settings: bool,
}

impl Default for NewHome<'_> {
    fn default() -> Self {
        NewHome { home: None, databases: false, elsewhere: &[], settings: true }
    }
}

/// What goes with the files of a new app.
#[derive(Default)]
struct Beside {
    chosen: Vec<Chosen>,
    plan: Vec<DatabasePlan>,
    settings: Option<BothSettings>,
    told: Vec<Problem>,
    /// Keeps the new app's own MySQL running from when it is made.
    held: OnceCell<Hold>,
}

impl Beside {
    /// Whether the new app gets a MySQL of its own.
    fn has_in_app(&self) -> bool {
        self.chosen.iter().any(|c| c.in_app)
    }
}

/// What is told of a new app's own MySQL.
fn own_mysql(name: &AppName) -> Problem {
    let detail = format!(
        "`{name}` has a MySQL in-app of its own, with the database of the point in it; `backstay app start {name}` starts it"
    );
    Problem { path: String::new(), kind: ProblemKind::Told, detail }
}

impl Engine {
    /// Restores a point, or some paths of it, into a folder that does not exist yet or is empty.
    pub fn restore_to_directory(
        &self,
        request: &RestoreRequest<'_>,
        directory: &Path,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<RestoreReport> {
        let directory = std::path::absolute(directory).map_err(|e| unusable(directory, "", e))?;
        check_free(&directory)?;
        let found = self.find(request.app, request.point)?;
        self.check_restorable(&found.record)?;
        self.bring_out(request, &found, directory, None, progress, cancel)
    }

    /// Makes a new app of a point. It is an app of
    /// static files until something else is set about it, so that two copies of one app do not run at once. An app that
    /// is known by its points alone and has no home on this machine gets this one.
    pub fn restore_to_new_app(
        &self,
        request: &RestoreRequest<'_>,
        name: &AppName,
        how: &NewHome<'_>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<RestoreReport> {
        let found = self.find(request.app, request.point)?;
        self.check_restorable(&found.record)?;
        if self.apps()?.iter().any(|a| a.name == *name && a.home.is_some()) {
            let message = format!("There is an app `{name}` already");
            return Err(Error::new(Code::AlreadyExists, message));
        }
        let directory = match how.home {
            Some(home) => std::path::absolute(home).map_err(|e| unusable(home, "", e))?,
            None => {
                let sites = self.state.join(SITES);
                private::make_folder(&*self.fs, &sites)?;
                sites.join(name.as_str())
            }
        };
        check_free(&directory)?;
        self.bring_out(request, &found, directory, Some((name, how)), progress, cancel)
    }

    /// Makes a new app of the copy of another, before it has its name: the texts that the other's rules replace, then
    /// its hook after restores. Gives what a person should know.
    fn adapt(
        &self,
        found: &Found,
        name: &AppName,
        target: &Target,
        job: &Running<'_>,
    ) -> Result<Vec<Problem>> {
        let Ok(origin) = self.known_app(found.record.point.app.as_str()) else { return Ok(Vec::new()) };
        let text = |path: &Path| path.display().to_string();
        let (old, new) = (origin.home.as_deref().map(text).unwrap_or_default(), text(&target.directory));
        let names =
            (Names { app: origin.name.as_str(), home: &old }, Names { app: name.as_str(), home: &new });
        let mut problems = Vec::new();
        for file in replace(&self.fs, &target.fill, &origin.config.post_restore, names, job.cancel())? {
            match file.left {
                None => job.log(format!("{} texts replaced in {}", file.count, file.path)),
                Some(why) => {
                    let detail = format!("No text was replaced in it: {why}");
                    problems.push(Problem { path: file.path, kind: ProblemKind::Told, detail });
                }
            }
        }
        let app = App { name: name.clone(), home: Some(target.directory.clone()), ..origin };
        let about = HookTarget {
            job: Some(job.id()),
            point: Some(found.record.point.id),
            target: Some(&target.fill),
            failed: false,
        };
        match run_hook(&self.runtime(&app)?, Moment::AfterRestore, &about, job.cancel()) {
            Ok(None) => {}
            Ok(Some(ran)) => {
                job.log(format!("The after-restore hook ended well after {} s", ran.seconds));
                ran.output.lines().for_each(|line| job.log(format!("  {line}")));
            }
            Err(e) if e.code() == Code::Cancelled => return Err(e),
            Err(e) => {
                job.log(e.to_string());
                let detail = e.to_string();
                problems.push(Problem { path: String::new(), kind: ProblemKind::Hook, detail });
            }
        }
        Ok(problems)
    }

    /// What goes with a new app, found possible.
    fn beside(&self, found: &Found, name: &AppName, how: &NewHome<'_>, cancel: &Cancel) -> Result<Beside> {
        if found.record.point.origin == Origin::Foreign {
            return Ok(Beside::default());
        }
        let mut app = App::new(name.clone(), None, "folder", self.clock.now());
        let reader = found.vault.vault.reader()?;
        let root = found.record.tree.parse()?;
        let manifest = Manifest::load(&reader, &root)?;
        let saved = manifest.as_ref().map(|m| m.databases.as_slice()).unwrap_or_default();
        let placed = |name: &str| how.elsewhere.iter().any(|e| e.connection == name);
        let has_own = saved.iter().any(|d| d.in_app && !placed(&d.connection));
        let mut told = Vec::new();
        let chosen = match how.databases {
            true => {
                app.config.in_app_mysql = has_own;
                if has_own {
                    self.refuse_other_in_app(name)?;
                }
                self.choose_databases(&app, manifest.as_ref(), how.elsewhere, false, cancel)?
            }
            false => Vec::new(),
        };
        if has_own && !how.databases {
            let detail = format!(
                "The MySQL in-app of the point is not brought along; with --with-databases `{name}` gets one of its own"
            );
            told.push(Problem { path: String::new(), kind: ProblemKind::Told, detail });
        }
        let plan = choose::plan(&app, &chosen, cancel)?;
        let settings = match how.settings {
            true => self.settings_in(&reader, &root, name, &mut told)?,
            false => None,
        };
        Ok(Beside { chosen, plan, settings, told, held: OnceCell::new() })
    }

    /// Fills the databases of a new app, before it has its name.
    fn bring_beside(
        &self,
        found: &Found,
        name: &AppName,
        beside: &Beside,
        job: &Running<'_>,
    ) -> Result<Vec<Problem>> {
        let app = App::new(name.clone(), None, "folder", self.clock.now());
        self.begin_exchange(job.id(), (&app, true), &beside.chosen, beside.settings.clone())?;
        if beside.has_in_app() {
            let held = self.begin_in_app(&app, job.id(), job.cancel())?;
            job.log(format!("`{name}` has a MariaDB of its own"));
            beside.held.set(held).unwrap_or_default();
        }
        let reader = found.vault.vault.reader()?;
        let root = found.record.tree.parse()?;
        let words = self.stage_databases(job, &app, &beside.chosen, (&reader, &root))?;
        let told = |detail| Problem { path: String::new(), kind: ProblemKind::Told, detail };
        Ok(beside.told.iter().cloned().chain(words.into_iter().map(told)).collect())
    }

    /// What is to be told of connections that lead where those of the other app do.
    fn shared_connections(
        &self,
        name: &AppName,
        other: &AppName,
        beside: &Beside,
    ) -> Result<Option<Problem>> {
        let has_own =
            |name: &String| beside.chosen.iter().any(|c| c.elsewhere && c.saved.connection == *name);
        let links = self.connections(name)?.into_iter().filter(|link| link.endpoint.is_ok());
        let shared: Vec<String> = links
            .map(|link| link.name)
            .filter(|name| !has_own(name))
            .map(|name| format!("`{name}`"))
            .collect();
        if shared.is_empty() || name == other {
            return Ok(None);
        }
        let detail = format!(
            "Connections of `{name}` lead to the databases of `{other}`: {}. `backstay connection set {name} NAME` gives it others",
            shared.join(", ")
        );
        Ok(Some(Problem { path: String::new(), kind: ProblemKind::Told, detail }))
    }

    fn bring_out(
        &self,
        request: &RestoreRequest<'_>,
        found: &Found,
        directory: PathBuf,
        new: Option<(&AppName, &NewHome<'_>)>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<RestoreReport> {
        let started = Instant::now();
        let select = request.selected()?;
        let task = Task {
            kind: JobKind::Restore,
            app: Some(new.map_or(&found.record.point.app, |(name, _)| name)),
            exclusive: new.is_some(),
        };
        let (name, beside) = match new {
            Some((name, how)) => (Some(name), self.beside(found, name, how, cancel)?),
            None => (None, Beside::default()),
        };
        run(self.catalog()?, &self.clock, &task, (progress, cancel), |job| {
            let target = Target::prepare(self, &directory, job)?;
            let options = RestoreOptions { select, sync: name.is_some(), ..RestoreOptions::default() };
            let has_in_app = beside.has_in_app();
            let noted = name.map_or(Ok(()), |name| arrival::begin(self, name, &target, has_in_app, job.id()));
            let filled = noted.and_then(|()| {
                let (counts, mut problems) = self.fill(found, &target, options, job)?;
                if let Some(name) = name {
                    problems.extend(self.bring_beside(found, name, &beside, job)?);
                    problems.extend(self.adapt(found, name, &target, job)?);
                }
                job.still_ours()?;
                target.finish(self)?;
                Ok((counts, problems))
            });
            let (counts, problems) = filled.map_err(|e| {
                let forgotten = name.map_or(Ok(()), |name| self.forget_in_app(name, job.id()));
                if let Err(e) = forgotten {
                    job.log(format!("The MySQL of the new app could not be removed: {e}"));
                }
                if let Err(e) = self.end_exchange(job.id()) {
                    job.log(format!("New databases could not be removed yet: {e}"));
                }
                let error = target.discard(self, e);
                arrival::end(self, job.id());
                error
            })?;
            let mut problems = problems;
            if let Some(name) = name {
                arrival::make_known(self, name, directory.clone(), has_in_app)?;
                problems.extend(has_in_app.then(|| own_mysql(name)));
                self.exchange_to(job.id(), Side::New)?;
                problems.extend(self.shared_connections(name, &found.record.point.app, &beside)?);
                // First its own note: with it the next command would bring into use what is so already and has nothing beside it
                // any more.
                arrival::end(self, job.id());
                problems.extend(self.clear_exchange(job));
            }
            let failures = problems.iter().filter(|p| p.kind.is_failure()).count();
            let short = found.record.point.id.short();
            Ok(Done {
                message: match failures {
                    0 => format!("Point {short} restored: {} files", counts.files),
                    n => format!("Point {short} restored with {n} problems: {} files", counts.files),
                },
                partial: (failures > 0).then_some(Code::RestoreIncomplete),
                value: RestoreReport {
                    point: found.record.clone(),
                    app: name.cloned(),
                    databases: beside.plan,
                    directory: directory.display().to_string(),
                    counts,
                    problems,
                    job: job.id(),
                    seconds: crate::backup::seconds(started.elapsed()),
                },
            })
        })
    }
}
