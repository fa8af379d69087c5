//! Bringing a point out into a folder, which may become a new app.
//!
//! Invariants: see [`super::target`]. A new app is known only when its folder is complete, durable and has its name:
//! killed before, the next command leaves neither ([`super::arrival`]). Nothing of the vault is locked.

use std::path::{Path, PathBuf};
use std::time::Instant;

use backstay_catalog::{App, PointRecord};
use backstay_model::app::Moment;
use backstay_model::{
    AppName, Cancel, Code, Counts, Error, JobId, JobKind, Problem, ProblemKind, Progress, Result,
};
use backstay_platform::{HookTarget, Names, replace, run_hook};
use backstay_vault::restore::RestoreOptions;
use serde::Serialize;

use super::target::{Target, check_free, unusable};
use super::{RestoreRequest, arrival};
use crate::adopt::SITES;
use crate::job::{Done, Running, Task, run};
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

    /// Makes a new app of a point: its home is `home`, or a folder of its name in the state folder. It is an app of
    /// static files until something else is set about it, so that two copies of one app do not run at once. An app that
    /// is known by its points alone and has no home on this machine gets this one.
    pub fn restore_to_new_app(
        &self,
        request: &RestoreRequest<'_>,
        name: &AppName,
        home: Option<&Path>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<RestoreReport> {
        let found = self.find(request.app, request.point)?;
        self.check_restorable(&found.record)?;
        if self.apps()?.iter().any(|a| a.name == *name && a.home.is_some()) {
            let message = format!("There is an app `{name}` already");
            return Err(Error::new(Code::AlreadyExists, message));
        }
        let directory = match home {
            Some(home) => std::path::absolute(home).map_err(|e| unusable(home, "", e))?,
            None => {
                let sites = self.state.join(SITES);
                private::make_folder(&*self.fs, &sites)?;
                sites.join(name.as_str())
            }
        };
        check_free(&directory)?;
        self.bring_out(request, &found, directory, Some(name), progress, cancel)
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

    fn bring_out(
        &self,
        request: &RestoreRequest<'_>,
        found: &Found,
        directory: PathBuf,
        new: Option<&AppName>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<RestoreReport> {
        let started = Instant::now();
        let select = request.selected()?;
        let task = Task {
            kind: JobKind::Restore,
            app: Some(new.unwrap_or(&found.record.point.app)),
            exclusive: new.is_some(),
        };
        run(self.catalog()?, &self.clock, &task, (progress, cancel), |job| {
            let target = Target::prepare(self, &directory, job)?;
            let options = RestoreOptions { select, sync: new.is_some(), ..RestoreOptions::default() };
            let noted = new.map_or(Ok(()), |name| arrival::begin(self, name, &target, job.id()));
            let filled = noted.and_then(|()| {
                let (counts, mut problems) = self.fill(found, &target, options, job)?;
                if let Some(name) = new {
                    problems.extend(self.adapt(found, name, &target, job)?);
                }
                job.still_ours()?;
                target.finish(self)?;
                Ok((counts, problems))
            });
            let (counts, problems) = filled.map_err(|e| {
                let error = target.discard(self, e);
                arrival::end(self, job.id());
                error
            })?;
            if let Some(name) = new {
                arrival::make_known(self, name, directory.clone())?;
                arrival::end(self, job.id());
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
                    app: new.cloned(),
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
