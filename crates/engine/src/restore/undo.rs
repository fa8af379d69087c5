//! Taking a restore back.
//!
//! Invariants: an undo brings the app to what its last restore (or undo) replaced: exactly that, what the app has
//! done since included in what is replaced. What is replaced is kept as a safety point first, so an undo can be
//! undone. Where the journal of the restore is still there and nothing else has changed, it is turned round: renames,
//! no data is read. Else the safety point is restored like any other point. Where there is no safety point, or the vault
//! cannot be reached, the journal alone is turned: then what the app did since elsewhere stays, and is told.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use backstay_catalog::{App, PointRecord};
use backstay_model::{
    Cancel, Code, Counts, Error, JobKind, Origin, Phase, Problem, ProblemKind, Progress, Result,
};
use backstay_tree::apply::{Journal, Side, Values};
use backstay_tree::path::escape;
use backstay_vault::change::{Action, ChangePlan, Step};

use super::beside::databases;
use super::in_place::{InPlace, InPlaceReport, Note, Outcome, told};
use super::plan::{RestorePlan, Scene};
use super::resume::{Kept, journals};
use super::safety;
use crate::job::Running;
use crate::state::Engine;

/// By what an undo is done.
enum Way {
    /// Restoring the safety point; by the journal, where that does the same.
    Point(Box<Scene>, Option<Kept>),
    /// The journal alone, and why.
    Journal(Box<App>, Kept, String),
}

impl Engine {
    /// What an undo would do.
    pub fn plan_undo(
        &self,
        app: &str,
        how: &InPlace<'_>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<RestorePlan> {
        match self.way_back(app, how)? {
            Way::Point(scene, _) => {
                let live = self.survey(&scene, progress, cancel)?;
                self.plan(&scene, &live, how, cancel)
            }
            Way::Journal(app, kept, _) => {
                let journal = Journal::open(self.fs.clone(), &self.jobs_folder(), kept.job)?;
                self.journal_plan(&app, &journal, how)
            }
        }
    }

    /// Brings an app back to what its last restore or undo replaced.
    pub fn undo(
        &self,
        app: &str,
        how: &InPlace<'_>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<InPlaceReport> {
        match self.way_back(app, how)? {
            Way::Point(scene, kept) => {
                self.as_job(JobKind::Undo, &scene.app.name.clone(), progress, cancel, |job| match kept {
                    Some(kept) => self.turn_or_change(&scene, &kept, how, job),
                    None => self.change(&scene, how, job),
                })
            }
            Way::Journal(app, kept, why) => {
                self.as_job(JobKind::Undo, &app.name.clone(), progress, cancel, |job| {
                    self.turn_alone(&app, &kept, why, how, job)
                })
            }
        }
    }

    fn way_back(&self, name: &str, how: &InPlace<'_>) -> Result<Way> {
        let app = self.known_app(name)?;
        let kept = journals(self, Some(&app.name)).into_iter().next();
        let points = match (self.points(), kept) {
            (Ok(points), kept) => (points, kept),
            (Err(e), Some(kept)) => {
                let why = format!("The vault cannot be used ({e}): only the journal was turned round");
                return Ok(Way::Journal(Box::new(app), kept, why));
            }
            (Err(e), None) => return Err(e),
        };
        let (points, kept) = points;
        let pending = safety::pending(self)?;
        let is_target = |r: &&PointRecord| {
            let fits = kept.as_ref().is_none_or(|k| k.target() == Some(r.point.id));
            r.point.app == app.name
                && r.point.origin == Origin::Safety
                && fits
                && !pending.contains(&r.point.id)
        };
        match (points.records.iter().find(is_target).cloned(), kept) {
            (Some(target), kept) => {
                let scene = self.scene_of(points, target, app, None, how)?;
                Ok(Way::Point(Box::new(scene), kept))
            }
            (None, Some(kept)) => {
                let why = "There is no safety point of the restore: only its journal was turned round";
                Ok(Way::Journal(Box::new(app), kept, why.to_owned()))
            }
            (None, None) => {
                let message = format!("There is no restore of `{}` to take back", app.name);
                Err(Error::new(Code::NothingToUndo, message))
            }
        }
    }

    /// Turns the journal round where that does exactly what the plan says; else restores the safety point.
    fn turn_or_change(
        &self,
        scene: &Scene,
        kept: &Kept,
        how: &InPlace<'_>,
        job: &Running<'_>,
    ) -> Result<Outcome> {
        let exchanges = self.has_exchange(kept.job);
        if !scene.databases.is_empty() && !exchanges {
            // The old ones are gone from the server: the dumps of the safety point bring them back.
            return self.change(scene, how, job);
        }
        let (live, safety) = self.secure(scene, how, exchanges, job)?;
        job.phase(Phase::Planning);
        let plan = self.plan(scene, &live, how, job.cancel())?;
        let journal = Journal::open(self.fs.clone(), &self.jobs_folder(), kept.job)?;
        if does_the_same(&journal, &plan.changes) && (exchanges || plan.settings.is_none()) {
            return self.turn(&scene.app, (plan, safety), kept, journal, how, job);
        }
        drop(journal);
        job.log("The app has changed since: the safety point is restored");
        if let Some(safety) = safety {
            // The change takes one of its own.
            self.forget_point(&scene.points.vault, &safety, job.cancel())?;
        }
        self.change(scene, how, job)
    }

    fn turn_alone(
        &self,
        app: &App,
        kept: &Kept,
        why: String,
        how: &InPlace<'_>,
        job: &Running<'_>,
    ) -> Result<Outcome> {
        let home = self.home_of(app)?;
        let safety = match how.safety_point {
            true => self.safety_point(app, &home, job).map(Some).unwrap_or_else(|e| {
                job.log(format!("No safety point: {e}"));
                None
            }),
            false => None,
        };
        let journal = Journal::open(self.fs.clone(), &self.jobs_folder(), kept.job)?;
        let mut plan = self.journal_plan(app, &journal, how)?;
        plan.changes.problems.push(Problem { path: String::new(), kind: ProblemKind::Told, detail: why });
        self.turn(app, (plan, safety), kept, journal, how, job)
    }

    fn turn(
        &self,
        app: &App,
        (plan, safety): (RestorePlan, Option<PointRecord>),
        kept: &Kept,
        mut journal: Journal,
        how: &InPlace<'_>,
        job: &Running<'_>,
    ) -> Result<Outcome> {
        let mut problems = plan.changes.problems.clone();
        let runs = plan.stops || kept.note.down;
        let mut note = Note { runs, down: false, ..kept.note.clone() };
        // Said of the side that is live: a kill before the turn leaves what leads back as it was.
        let live = safety.as_ref().map(|s| s.point.id);
        match journal.goal() {
            Side::New => note.new = live,
            Side::Old => note.old = live,
        }
        job.still_ours()?;
        let stopped = Instant::now();
        journal.set_note(&note.to_value()?)?;
        // From here on a kill makes the next command start the app again.
        journal.reopen()?;
        let turned = self.stop_noted(&note, app, job).and_then(|()| {
            job.phase(Phase::Applying);
            let goal = journal.goal().other();
            let settled = journal.settle(goal)?;
            self.exchange_to(journal.job(), databases(goal))?;
            Ok(settled)
        });
        match turned {
            Ok(settled) => problems.extend(told(&settled)),
            Err(e) if journal.is_settled() => return Err(self.stay(e, journal, &note, app)),
            Err(e) => return Err(e),
        }
        let after =
            self.bring_up(app, plan.point.as_ref(), how, &note, &mut journal, stopped, &mut problems, job)?;
        journal.close()?;
        Ok(Outcome { plan, safety, counts: Counts::default(), problems, after })
    }

    /// Before the turn: everything as it was.
    fn stay(&self, error: Error, mut journal: Journal, note: &Note, app: &App) -> Error {
        let started = if note.runs { self.start_again(app) } else { Ok(()) };
        match started.and_then(|()| journal.close()) {
            Ok(()) => error,
            Err(e) => error.context(format!("The app could not be started again ({e})")),
        }
    }

    /// What turning a journal round does, as a plan without sizes.
    fn journal_plan(&self, app: &App, journal: &Journal, how: &InPlace<'_>) -> Result<RestorePlan> {
        let step = |path: &Path| Step {
            path: PathBuf::from(path),
            action: Action::Replace,
            before: None,
            after: None,
            seen: None,
        };
        let mut changes = ChangePlan { steps: journal.paths().map(step).collect(), ..ChangePlan::default() };
        changes.totals.changed.steps = u64::try_from(changes.steps.len()).unwrap_or(u64::MAX);
        Ok(RestorePlan {
            app: app.name.clone(),
            home: escape(journal.home().as_os_str()),
            point: None,
            runtime: app.config.runtime.kind().to_owned(),
            stops: self.is_running(app)?,
            safety_point: how.safety_point,
            databases: Vec::new(),
            settings: None,
            filter: Vec::new(),
            changes,
        })
    }
}

/// Whether turning the journal round does all of the plan and nothing else. What it exchanges beyond the plan is equal
/// on both sides (another name of a file that is there, say), unless the plan leaves something out.
fn does_the_same(journal: &Journal, plan: &ChangePlan) -> bool {
    let steps: HashSet<&Path> = journal.paths().collect();
    let goal = journal.goal().other();
    let metadata: HashMap<&Path, &Values> = journal.metadata(goal).collect();
    let all = plan.kept.is_empty() && plan.left_out.is_empty() && plan.problems.is_empty();
    (all || steps.len() == plan.steps.len())
        && plan.steps.iter().all(|step| steps.contains(step.path.as_path()))
        && plan.metadata.iter().all(|m| {
            let after = |v: &&Values| {
                let a = &m.after;
                (v.uid, v.gid, v.mode, v.mtime, &v.xattrs) == (a.uid, a.gid, a.mode, a.mtime, &a.xattrs)
            };
            metadata.get(m.path.as_path()).is_some_and(after)
        })
}
