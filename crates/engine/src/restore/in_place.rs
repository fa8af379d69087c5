//! Restoring over an app: plan, safety point, stop, stage, journal, apply, start, health.
//!
//! Invariants:
//! * Until the journal is committed nothing of the app has changed but that it may be stopped: what fails before
//!   removes what was staged, forgets the safety point ([`super::safety`]) and starts the app again.
//! * What is there is kept twice: as the safety point (unless that was refused), and on the other side of the journal
//!   until the next restore of the app.
//! * A point that cannot be staged whole is not applied.
//!
//! Crash: [`super::resume`]. Locks: the job's lease, exclusive for the app; the vault's lock only while the safety
//! point is taken; the journal's own lock ([`backstay_tree::apply`]).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use backstay_catalog::{App, PointRecord};
use backstay_model::app::Moment;
use backstay_model::{
    AppName, Cancel, Code, Counts, Error, JobId, JobKind, Origin, Phase, PointId, Problem, ProblemKind,
    Progress, Result,
};
use backstay_tree::apply::{self, Changes, Journal, MetaChange, Seen, Side, Step, Values, Workplace};
use backstay_tree::path::escape;
use backstay_vault::change::{Action, ChangePlan};
use backstay_vault::restore::restore;
use serde::{Deserialize, Serialize};

use super::beside::{databases, later, refuse_unsaved};
use super::plan::{Live, RestorePlan, Scene};
use super::{RestoreRequest, resume, safety};
use crate::adopt::Subject;
use crate::backup::{Taken, What};
use crate::browse::content;
use crate::databases::choose::Elsewhere;
use crate::databases::references::Files;
use crate::job::{Done, Running, Task, run};
use crate::manifest::Manifest;
use crate::state::{Engine, OpenVault};

/// How a restore in place is done.
#[derive(Clone, Copy, Debug)]
pub struct InPlace<'a> {
    /// The app that goes to the point; none for the one whose point it is.
    pub target: Option<&'a AppName>,
    /// Whether what is there is kept as a point first.
    pub safety_point: bool,
    /// Whether it is taken back by itself when the app is not well afterwards; none: as is set about the app.
    pub undo_on_unhealthy: Option<bool>,
    /// Whether the linked databases are restored too.
    pub databases: bool,
    /// Places for databases that are not to go where the app's connections lead.
    pub elsewhere: &'a [Elsewhere],
    /// Whether settings and connection strings are restored too.
    pub settings: bool,
}

impl Default for InPlace<'_> {
    fn default() -> Self {
        InPlace {
            target: None,
            safety_point: true,
            undo_on_unhealthy: None,
            databases: false,
            elsewhere: &[],
            settings: true,
        }
    }
}

/// What became of a restore in place, or of an undo.
#[derive(Clone, Debug, Serialize)]
pub struct InPlaceReport {
    /// What was done.
    pub plan: RestorePlan,
    /// The point that holds what was there before.
    pub safety: Option<PointRecord>,
    /// Files and bytes of content that were written.
    pub counts: Counts,
    /// What a person should know.
    pub problems: Vec<Problem>,
    /// Whether the app works afterwards; none where nothing says how to see that, or it does not run.
    pub healthy: Option<bool>,
    /// Whether everything was taken back because the app did not work afterwards.
    pub taken_back: bool,
    /// How long the app was stopped, in seconds; none where it was not.
    pub downtime_seconds: Option<f64>,
    /// The job that did it.
    pub job: JobId,
    /// How long it took.
    pub seconds: f64,
}

impl InPlaceReport {
    /// The problems that make the result partial.
    #[must_use]
    pub fn failures(&self) -> Vec<Problem> {
        self.problems.iter().filter(|p| p.kind.is_failure()).cloned().collect()
    }
}

/// What the journal keeps for us.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Note {
    /// The app that changes.
    pub app: AppName,
    /// The point it goes to.
    pub point: PointId,
    /// Whether it ran, and is to be started again.
    pub runs: bool,
    /// The point that holds the old side of the journal: what the restore found.
    pub old: Option<PointId>,
    /// The point that holds the new side: what the last undo found.
    pub new: Option<PointId>,
    /// Whether it should run and does not, because it could not be started or did not become well.
    #[serde(default)]
    pub down: bool,
}

/// What was done to the app.
pub(super) struct Outcome {
    pub plan: RestorePlan,
    pub safety: Option<PointRecord>,
    pub counts: Counts,
    pub problems: Vec<Problem>,
    pub after: After,
}

/// How the app is after it was started again.
#[derive(Default)]
pub(super) struct After {
    pub healthy: Option<bool>,
    pub taken_back: bool,
    pub downtime: Option<f64>,
}

impl Engine {
    /// Brings an app to a point, wholly or not at all.
    pub fn restore_in_place(
        &self,
        request: &RestoreRequest<'_>,
        how: &InPlace<'_>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<InPlaceReport> {
        let scene = self.scene(request, how)?;
        self.as_job(JobKind::Restore, &scene.app.name.clone(), progress, cancel, |job| {
            self.change(&scene, how, job)
        })
    }

    /// Runs a change of an app as its job.
    pub(super) fn as_job(
        &self,
        kind: JobKind,
        app: &AppName,
        progress: &dyn Progress,
        cancel: &Cancel,
        work: impl FnOnce(&Running<'_>) -> Result<Outcome>,
    ) -> Result<InPlaceReport> {
        let started = Instant::now();
        let task = Task { kind, app: Some(app), exclusive: true };
        run(self.catalog()?, &self.clock, &task, (progress, cancel), |job| {
            self.refuse_unfinished(app)?;
            let done = work(job);
            // What cannot be noted or forgotten now is by the next command.
            match &done {
                Ok(_) => safety::keep(self, job.id()),
                Err(_) => safety::forget(self, job.id()),
            }
            .unwrap_or_default();
            let Outcome { plan, safety, counts, problems, after } = done?;
            let to = match &plan.point {
                Some(point) => format!("point {}", point.point.id.short()),
                None => "what its last restore replaced".to_owned(),
            };
            let failed = problems.iter().any(|p| p.kind.is_failure());
            let (message, partial) = match (&after, failed) {
                (After { taken_back: true, .. }, _) => {
                    (format!("Taken back: `{app}` did not work at {to}"), Some(Code::HealthCheckFailed))
                }
                (After { healthy: Some(false), .. }, _) => {
                    (format!("`{app}` is at {to} and does not work"), Some(Code::HealthCheckFailed))
                }
                (_, true) => (format!("`{app}` is at {to}, with problems"), Some(Code::RestoreIncomplete)),
                _ => (format!("`{app}` is at {to}"), None),
            };
            let report = InPlaceReport {
                plan,
                safety,
                counts,
                problems,
                healthy: after.healthy,
                taken_back: after.taken_back,
                downtime_seconds: after.downtime,
                job: job.id(),
                seconds: crate::backup::seconds(started.elapsed()),
            };
            Ok(Done { value: report, message, partial })
        })
    }

    /// From the plan to the started app.
    pub(super) fn change(&self, scene: &Scene, how: &InPlace<'_>, job: &Running<'_>) -> Result<Outcome> {
        let app = &scene.app;
        self.hook(app, Moment::BeforeRestore, Some(&scene.record), job)?;
        // Of an app that is stopped the databases are kept when it stands still.
        let stops = self.is_running(app)? || self.is_down(&app.name);
        let (live, mut safety) = self.secure(scene, how, !stops, job)?;
        job.phase(Phase::Planning);
        let plan = self.plan(scene, &live, how, job.cancel())?;
        plan.refuse()?;
        if how.safety_point {
            refuse_unkept(&plan.changes, &live.problems)?;
        }
        let mut problems = plan.changes.problems.clone();
        if plan.is_empty() {
            if let Some(safety) = safety.take() {
                self.forget_point(&scene.points.vault, &safety, job.cancel())?;
            }
            return Ok(Outcome {
                plan,
                safety,
                counts: Counts::default(),
                problems,
                after: After::default(),
            });
        }
        let mut note = Note {
            app: app.name.clone(),
            point: scene.record.point.id,
            runs: plan.stops || self.is_down(&app.name),
            old: safety.as_ref().map(|s| s.point.id),
            new: None,
            down: false,
        };
        let mut work = Workplace::prepare(
            self.fs.clone(),
            &scene.home,
            &self.jobs_folder(),
            job.id(),
            &note.to_value()?,
        )?;
        job.log(format!("What is new is staged in {}", escape(work.path().as_os_str())));
        // The app goes on while new databases are filled beside its own.
        let loaded = self.load(scene, job, &mut problems);
        let stopped = Instant::now();
        let stop = loaded.and_then(|()| self.stop_noted(&note, app, job));
        let staged = stop.and_then(|()| {
            let (plan, live) = match note.runs {
                true => self.plan_again(scene, how, (&mut note, &work), &mut safety, job)?,
                false => (plan, live),
            };
            let counts = self.stage(scene, &plan, &live, &work, &mut problems, job)?;
            job.still_ours()?;
            let journal = work.commit(&changes(&plan.changes, &live.sqlite, &work)?)?;
            Ok((plan, counts, journal))
        });
        let (plan, counts, mut journal) = match staged {
            Ok(staged) => staged,
            Err(e) => return Err(self.give_up(e, work, &note, app, job)),
        };
        job.phase(Phase::Applying);
        job.log("Committed");
        self.exchange_or_back(&note, app, &mut journal, job)?;
        problems.extend(told(&journal.settle(Side::New)?));
        let after =
            self.bring_up(app, Some(&scene.record), how, &note, &mut journal, stopped, &mut problems, job)?;
        journal.close()?;
        drop(journal);
        problems.extend(self.conclude_exchange(job, &after));
        for chosen in scene.databases.iter().filter(|_| !after.taken_back) {
            let named =
                self.names(app, &scene.home, (&chosen.saved.connection, &chosen.endpoint), job.cancel());
            problems.extend(named.iter().flat_map(|named| self.dangling(named, &Files::of(&scene.home))));
        }
        self.forget_older(&app.name, job);
        Ok(Outcome { plan, safety, counts, problems, after })
    }

    /// The app as it is, kept as a safety point where one is wanted.
    pub(super) fn secure(
        &self,
        scene: &Scene,
        how: &InPlace<'_>,
        with_databases: bool,
        job: &Running<'_>,
    ) -> Result<(Live, Option<PointRecord>)> {
        if !how.safety_point {
            return Ok((self.survey(scene, job, job.cancel())?, None));
        }
        let databases = with_databases && scene.databases.iter().any(|c| !c.elsewhere);
        let (vault, taken) = self.take_safety(&scene.app, &scene.home, databases, job)?;
        if databases {
            refuse_unsaved(&scene.databases, &taken)?;
        }
        let reader = vault.vault.reader()?;
        let (tree, top) = content(&reader, &taken.record)?;
        let (problems, sqlite) = (taken.problems, taken.sqlite);
        Ok((Live { tree, top, problems, sqlite, reader }, Some(taken.record)))
    }

    /// Keeps an app as it is as a safety point.
    pub(super) fn safety_point(&self, app: &App, home: &Path, job: &Running<'_>) -> Result<PointRecord> {
        Ok(self.take_safety(app, home, false, job)?.1.record)
    }

    fn take_safety(
        &self,
        app: &App,
        home: &Path,
        databases: bool,
        job: &Running<'_>,
    ) -> Result<(OpenVault, Taken)> {
        job.phase(Phase::Securing);
        let subject = Subject { app: app.clone(), new: false };
        let points = self.points()?;
        let taken = self.take(job, &points, &subject, home, What { origin: Origin::Safety, databases })?;
        Ok((points.vault, taken))
    }

    /// The plan for the app now that it is stopped: it may have written since the safety point was taken. Of two
    /// safety points the later one stays.
    fn plan_again(
        &self,
        scene: &Scene,
        how: &InPlace<'_>,
        (note, work): (&mut Note, &Workplace),
        safety: &mut Option<PointRecord>,
        job: &Running<'_>,
    ) -> Result<(RestorePlan, Live)> {
        let (live, again) = self.secure(scene, how, true, job)?;
        if let (Some(again), Some(before)) = (again, safety.as_mut()) {
            note.old = Some(again.point.id);
            work.set_note(&note.to_value()?)?;
            let earlier = std::mem::replace(before, again);
            self.forget_point(&scene.points.vault, &earlier, job.cancel())?;
        }
        let plan = self.plan(scene, &live, how, job.cancel())?;
        plan.refuse()?;
        Ok((plan, live))
    }

    /// Writes what is new beside the home. All of it or an error.
    fn stage(
        &self,
        scene: &Scene,
        plan: &RestorePlan,
        live: &Live,
        work: &Workplace,
        problems: &mut Vec<Problem>,
        job: &Running<'_>,
    ) -> Result<Counts> {
        self.check_space(work, plan.changes.totals.stage_bytes)?;
        if plan.changes.steps.iter().all(|step| step.after.is_none()) {
            return Ok(Counts::default());
        }
        let (tree, _) = content(&live.reader, &scene.record)?;
        let holes = scene.manifest.as_ref().map(Manifest::holes).unwrap_or_default();
        let options = plan.changes.staging(holes);
        let target = work.staging_path();
        let outcome = restore(&live.reader, &self.fs, &tree, None, &target, &options, job, job.cancel())?;
        let (lost, told): (Vec<_>, Vec<_>) = outcome.problems.into_iter().partition(|p| is_missing(p.kind));
        if let Some(first) = lost.first() {
            let message = format!("{} of the point cannot be restored: {}", first.path, first.detail);
            for problem in &lost {
                job.problem(problem);
            }
            return Err(Error::new(Code::RestoreRefused, message).advise(format!(
                "Nothing was changed. `backstay job log {}` lists all of it. What is whole can be restored with --path, or into a \
                 folder with --directory.",
                job.id().short()
            )));
        }
        problems.extend(told);
        Ok(outcome.counts)
    }

    /// Refuses to fill a disk: what is staged must fit beside what is there.
    fn check_space(&self, work: &Workplace, bytes: u64) -> Result<()> {
        let stat = rustix::fs::statvfs(work.staging_path())
            .map_err(|e| Error::new(Code::System, "The free space cannot be read").because(e))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if bytes <= free {
            return Ok(());
        }
        let message = format!("The restore needs {bytes} bytes beside the app, {free} are free");
        Err(Error::new(Code::TargetFull, message)
            .advise("Nothing was changed. Free space on the file system of the app's home."))
    }

    /// Stops the app where it runs.
    pub(super) fn stop_noted(&self, note: &Note, app: &App, job: &Running<'_>) -> Result<()> {
        if note.runs { self.stop_for(app, job) } else { Ok(()) }
    }

    /// Before the commit: everything as it was.
    fn give_up(&self, error: Error, work: Workplace, note: &Note, app: &App, job: &Running<'_>) -> Error {
        let left = escape(work.path().as_os_str());
        let mut error = error;
        if let Err(e) = work.abandon() {
            job.log(format!("{left} could not be removed: {e}. The next command tries again."));
        }
        if let Err(e) = self.end_exchange(job.id()) {
            job.log(later(&e));
        }
        if note.runs
            && let Err(e) = self.start_again(app)
        {
            error = error.context(format!("The app could not be started again ({e})"));
        }
        error
    }

    /// After the exchange: configuration, start, health; back again where that was asked for.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn bring_up(
        &self,
        app: &App,
        point: Option<&PointRecord>,
        how: &InPlace<'_>,
        note: &Note,
        journal: &mut Journal,
        stopped: Instant,
        problems: &mut Vec<Problem>,
        job: &Running<'_>,
    ) -> Result<After> {
        job.phase(Phase::Starting);
        let mut after = After::default();
        let started = if note.runs { self.start_again(app) } else { Ok(()) };
        let up = started.and_then(|()| self.wait_healthy(app, note.runs, job));
        after.downtime = note.runs.then(|| crate::backup::seconds(stopped.elapsed()));
        match up {
            Ok(healthy) => after.healthy = healthy,
            // Nobody waits for it any more; the app was started.
            Err(e) if e.code() == Code::Cancelled => {
                let detail = "Stopped before it was known whether the app works".to_owned();
                problems.push(Problem { path: String::new(), kind: ProblemKind::Told, detail });
            }
            Err(e) => {
                job.log(e.to_string());
                after.healthy = Some(false);
                if how.undo_on_unhealthy.unwrap_or(app.config.undo_on_unhealthy) {
                    self.stop_noted(note, app, job)?;
                    let back = journal.goal().other();
                    problems.extend(told(&journal.settle(back)?));
                    self.exchange_to(journal.job(), databases(back))?;
                    if note.runs {
                        self.start_again(app)?;
                    }
                    after.taken_back = true;
                } else {
                    // An undo starts it although it does not run now.
                    let note = Note { down: note.runs, ..note.clone() };
                    journal.set_note(&note.to_value()?)?;
                    problems.push(Problem {
                        path: String::new(),
                        kind: ProblemKind::Unhealthy,
                        detail: e.to_string(),
                    });
                }
            }
        }
        if !after.taken_back
            && let Err(e) = self.hook(app, Moment::AfterRestore, point, job)
        {
            job.log(e.to_string());
            problems.push(Problem { path: String::new(), kind: ProblemKind::Hook, detail: e.to_string() });
        }
        Ok(after)
    }

    /// Whether the last restore of the app left it not running although it should.
    fn is_down(&self, app: &AppName) -> bool {
        resume::journals(self, Some(app)).first().is_some_and(|kept| kept.note.down)
    }

    /// The journals of earlier restores of the app go: only the last can be taken back by its journal.
    fn forget_older(&self, app: &AppName, job: &Running<'_>) {
        for kept in resume::journals(self, Some(app)) {
            if kept.job != job.id()
                && let Err(e) = self.discard_journal(kept.job)
            {
                job.log(format!("What job {} replaced could not be removed yet: {e}", kept.job.short()));
            }
        }
    }

    pub(super) fn jobs_folder(&self) -> PathBuf {
        self.state.join("jobs")
    }
}

impl Note {
    pub(super) fn to_value(&self) -> Result<serde_json::Value> {
        serde_json::to_value(self)
            .map_err(|e| Error::new(Code::Internal, "A note cannot be written").because(e))
    }
}

/// Refuses to replace or remove what could not be read: the safety point does not hold it, so nothing could bring it
/// back once the journal is gone.
fn refuse_unkept(plan: &ChangePlan, problems: &[Problem]) -> Result<()> {
    let unread = problems.iter().filter(|p| p.kind == ProblemKind::Unreadable);
    for path in unread.filter_map(|p| backstay_tree::path::unescape(&p.path)) {
        if plan.steps.iter().any(|step| Path::new(&path).starts_with(&step.path)) {
            let message = format!("{} cannot be read, so no safety point can keep it", escape(&path));
            return Err(Error::new(Code::RestoreRefused, message).advise(
                "Nothing was changed. Run it as a user who may read it, or move it away. With --no-safety-point it is replaced, and \
                 only the next undo can bring it back.",
            ));
        }
    }
    Ok(())
}

/// Whether such a problem means that something of the point is not there.
fn is_missing(kind: ProblemKind) -> bool {
    matches!(kind, ProblemKind::Lost | ProblemKind::Unsafe | ProblemKind::Unwritable)
}

/// The plan in the words of the journal. What the walk of the home could not read is looked at now.
fn changes(plan: &ChangePlan, sqlite: &BTreeSet<PathBuf>, work: &Workplace) -> Result<Changes> {
    let seen = |s: &backstay_vault::change::Seen| Seen {
        kind: s.kind,
        inode: s.inode,
        ctime: s.ctime,
        size: s.size,
    };
    let step = |s: &backstay_vault::change::Step| {
        let old = match (s.action, &s.seen) {
            (Action::Add, _) => None,
            (_, Some(s)) => Some(seen(s)),
            (_, None) => work.look(&s.path)?,
        };
        Ok(Step { path: s.path.clone(), old, new: s.after.map(|a| a.kind) })
    };
    let meta = |m: &backstay_vault::change::MetaChange| {
        let now = if sqlite.contains(&m.path) { work.look(&m.path)? } else { None };
        Ok(MetaChange {
            path: m.path.clone(),
            seen: now.unwrap_or_else(|| seen(&m.seen)),
            new: Values {
                uid: m.after.uid,
                gid: m.after.gid,
                mode: m.after.mode,
                mtime: m.after.mtime,
                xattrs: m.after.xattrs.clone(),
            },
        })
    };
    let mut steps = plan.steps.iter().map(step).collect::<Result<Vec<_>>>()?;
    // What is gone meanwhile need not go.
    steps.retain(|step| step.old.is_some() || step.new.is_some());
    Ok(Changes { steps, metadata: plan.metadata.iter().map(meta).collect::<Result<_>>()? })
}

/// What a turn could not do, for people.
pub(super) fn told(settled: &apply::Settled) -> Vec<Problem> {
    let metadata = settled.problems.iter().map(|(path, problem)| Problem {
        path: escape(path.as_os_str()),
        kind: ProblemKind::Metadata,
        detail: problem.to_string(),
    });
    let skipped = settled.skipped.iter().map(|path| Problem {
        path: escape(path.as_os_str()),
        kind: ProblemKind::Metadata,
        detail: "It was replaced or removed meanwhile; its metadata was not set".to_owned(),
    });
    metadata.chain(skipped).collect()
}
