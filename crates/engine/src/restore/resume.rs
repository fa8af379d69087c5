//! What a restore in place left behind that was killed.
//!
//! Invariants: a command that works on apps calls [`Engine::resume`] first. A restore that had not been committed is
//! cleared away, one that had is finished; then the app is started again if it ran, and the hook after restores
//! runs. Until that could be done nothing else works on the app ([`Engine::refuse_unfinished`]). A restore that a living
//! process works on is left alone: its journal is locked.

use backstay_model::app::Moment;
use backstay_model::{AppName, Cancel, Code, Error, JobId, PointId, Result};
use backstay_platform::{HookTarget, run_hook};
use backstay_tree::apply::{self, Journal, Outcome};
use backstay_tree::path::escape;
use jiff::Timestamp;
use serde::Serialize;

use super::arrival;
use super::beside::databases;
use super::in_place::Note;
use super::safety;
use crate::databases::exchange;
use crate::state::Engine;

/// A restore that was stopped, and what became of it now.
#[derive(Clone, Debug, Serialize)]
pub struct Resumed {
    /// The job that was stopped.
    pub job: JobId,
    /// The app, where it is known.
    pub app: Option<AppName>,
    /// What became of it, in a sentence.
    pub what: String,
    /// Whether something still hinders it: then the app is neither old nor new, and nothing else works on it.
    pub stuck: bool,
}

/// A restore that can be taken back by its journal.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub job: JobId,
    pub note: Note,
    /// The side that the app is on.
    pub side: apply::Side,
}

impl Kept {
    /// The point that holds what an undo brings back.
    pub fn target(&self) -> Option<PointId> {
        match self.side {
            apply::Side::New => self.note.old,
            apply::Side::Old => self.note.new,
        }
    }
}

impl Engine {
    /// Finishes restores that were stopped. Cheap where there are none.
    pub fn resume(&self) -> Result<Vec<Resumed>> {
        let mut resumed = arrival::resume(self)?;
        let folder = self.jobs_folder();
        if folder.exists() {
            let found = apply::recover(&self.fs, &folder)?;
            resumed.extend(found.into_iter().map(|found| self.resume_one(found)));
        }
        resumed.extend(self.resume_exchanges()?);
        let told = |(job, app, e): (JobId, AppName, Error)| Resumed {
            job,
            what: format!("`{app}` was told to be quiet and cannot be told to go on: {e}"),
            app: Some(app),
            stuck: false,
        };
        resumed.extend(self.resume_quiet()?.into_iter().map(told));
        resumed.extend(self.resume_snapshots());
        // Where the vault cannot be used now, a later command does it; until then they are no way back.
        safety::resume(self).unwrap_or_default();
        Ok(resumed)
    }

    fn resume_one(&self, found: apply::Recovered) -> Resumed {
        let apply::Recovered { job, home, note, outcome } = found;
        let note: Option<Note> = serde_json::from_value(note).ok();
        let app = note.as_ref().map(|n| n.app.clone());
        let of = match (&app, &home) {
            (Some(app), _) => format!("`{app}`"),
            (None, Some(home)) => escape(home.as_os_str()),
            (None, None) => "an app".to_owned(),
        };
        let told = |what: String| Resumed { job, app: app.clone(), what, stuck: false };
        match outcome {
            Outcome::NotCommitted => {
                let started = self.start_noted(note.as_ref());
                told(format!("A restore of {of} was stopped before it changed anything{started}"))
            }
            Outcome::Discarded => told(format!("What a restore of {of} had replaced is removed")),
            Outcome::Settled(journal, _) => {
                let side = match journal.goal() {
                    apply::Side::New => "finished",
                    apply::Side::Old => "taken back",
                };
                if let Err(e) = self.exchange_to(job, databases(journal.goal())) {
                    let causes: String = e.causes().iter().map(|c| format!(": {c}")).collect();
                    return Resumed {
                        stuck: true,
                        ..told(format!("A restore of {of} cannot be {side}: {e}{causes}"))
                    };
                }
                let started = self.start_noted(note.as_ref());
                let hooked = self.hook_noted(job, note.as_ref(), journal.goal());
                match { journal }.close() {
                    Ok(()) => {
                        told(format!("A restore of {of} that was stopped is {side} now{started}{hooked}"))
                    }
                    Err(e) => Resumed {
                        stuck: true,
                        ..told(format!("A restore of {of} is {side}, and that cannot be noted: {e}"))
                    },
                }
            }
            Outcome::Stuck(e) => {
                let causes: String = e.causes().iter().map(|c| format!(": {c}")).collect();
                Resumed { stuck: true, ..told(format!("A restore of {of} cannot be finished: {e}{causes}")) }
            }
        }
    }

    /// Clears away what jobs that are over have left at database servers.
    fn resume_exchanges(&self) -> Result<Vec<Resumed>> {
        if !self.has_catalog() {
            return Ok(Vec::new());
        }
        let jobs = apply::list(&self.fs, &self.jobs_folder())?;
        let closed: Vec<JobId> = jobs.iter().filter(|kept| kept.closed).map(|kept| kept.job).collect();
        let arriving = arrival::pending(self);
        // A job whose journal cannot be read counts as open: nobody knows which side it wants.
        let has_folder = |job: &JobId| self.jobs_folder().join(job.to_string()).exists();
        let is_open = |job: &JobId| arriving.contains(job) || (has_folder(job) && !closed.contains(job));
        let failed = exchange::resume(self, &is_open)?;
        let told = |(job, app, e): (JobId, AppName, Error)| Resumed {
            job,
            what: format!("What a restore of `{app}` left at a database server cannot be removed yet: {e}"),
            app: Some(app),
            stuck: false,
        };
        Ok(failed.into_iter().map(told).collect())
    }

    /// Starts an app that ran before its restore; what to say about it.
    fn start_noted(&self, note: Option<&Note>) -> String {
        let Some(note) = note.filter(|n| n.runs) else { return String::new() };
        let started = self.known_app(note.app.as_str()).and_then(|app| self.start_again(&app));
        match started {
            Ok(()) => "; the app runs again".to_owned(),
            Err(e) => format!("; the app could NOT be started: {e}"),
        }
    }

    /// Runs the hook after a restore or an undo that was stopped; what to say about it. A restore that was taken back
    /// because the app was not well has none. It may have run before the stop: then it runs twice.
    fn hook_noted(&self, job: JobId, note: Option<&Note>, side: apply::Side) -> String {
        let Some(note) = note.filter(|n| side == apply::Side::New || n.new.is_some()) else {
            return String::new();
        };
        let point = match side {
            apply::Side::New => Some(note.point),
            apply::Side::Old => note.old,
        };
        let about = HookTarget { job: Some(job), point, ..HookTarget::default() };
        let ran = self
            .known_app(note.app.as_str())
            .and_then(|app| run_hook(&self.runtime(&app)?, Moment::AfterRestore, &about, &Cancel::new()));
        match ran {
            Ok(None) => String::new(),
            Ok(Some(_)) => "; the after-restore hook has run".to_owned(),
            Err(e) => format!("; {}", e.message()),
        }
    }

    /// Fails when a restore of the app was stopped and is not finished yet.
    pub(crate) fn refuse_unfinished(&self, app: &AppName) -> Result<()> {
        let unfinished = |kept: &apply::Kept| !kept.closed && note(kept).is_some_and(|n| n.app == *app);
        let jobs = apply::list(&self.fs, &self.jobs_folder())?;
        match jobs.iter().find(|kept| unfinished(kept)) {
            None => Ok(()),
            Some(kept) => {
                let message = format!("The restore {} of `{app}` is not finished", kept.job.short());
                Err(Error::new(Code::RestoreUnfinished, message))
            }
        }
    }

    /// Deletes what a restore replaced: it can be taken back by its safety point alone from then on.
    pub(super) fn discard_journal(&self, job: JobId) -> Result<()> {
        self.end_exchange(job)?;
        Journal::open(self.fs.clone(), &self.jobs_folder(), job)?.discard()
    }
}

/// A job of the state as a restore that can be taken back.
pub(super) fn kept(found: &apply::Kept) -> Option<Kept> {
    Some(Kept { job: found.job, note: note(found)?, side: found.side })
}

fn note(kept: &apply::Kept) -> Option<Note> {
    serde_json::from_value(kept.note.clone()).ok()
}

/// The restores that can be taken back by their journals, newest first.
pub(super) fn journals(engine: &Engine, app: Option<&AppName>) -> Vec<Kept> {
    let listed = apply::list(&engine.fs, &engine.jobs_folder()).unwrap_or_default();
    let mut found: Vec<(Option<Timestamp>, Kept)> = listed
        .iter()
        .filter(|kept| kept.closed)
        .filter_map(kept)
        .filter(|kept| app.is_none_or(|app| kept.note.app == *app))
        .map(|kept| {
            let record = engine.catalog().and_then(|c| c.job(&kept.job)).ok().flatten();
            (record.map(|r| r.created), kept)
        })
        .collect();
    found.sort_by_key(|(created, _)| std::cmp::Reverse(*created));
    found.into_iter().map(|(_, kept)| kept).collect()
}
