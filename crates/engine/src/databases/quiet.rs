//! Holding an app's writing still while the snapshots of its databases are begun.
//!
//! Invariants: what was told to be quiet is told to go on, whatever happens: when the work is over, when it fails, and when it was
//! killed by the next command, as the catalog has a note of it from before. The note goes when the hook has ended well.

use std::path::Path;

use backstay_catalog::App;
use backstay_model::app::Moment;
use backstay_model::{AppName, Cancel, Error, JobId, JobState, Result};
use backstay_platform::{HookTarget, run_hook};

use crate::job::Running;
use crate::state::Engine;

/// Names of the notes in the catalog: this and the app. The value is the job.
const NOTES: &str = "quiet/";

/// An app that holds its writing still.
pub(crate) struct Quiet<'q> {
    engine: &'q Engine,
    app: &'q App,
    home: &'q Path,
    job: &'q Running<'q>,
    over: bool,
}

fn note(app: &AppName) -> String {
    format!("{NOTES}{app}")
}

impl Engine {
    /// Holds the app's writing still, where it says how. It writes again when the value is dropped at the latest.
    pub(crate) fn quiesce<'q>(
        &'q self,
        app: &'q App,
        home: &'q Path,
        job: &'q Running<'q>,
    ) -> Result<Option<Quiet<'q>>> {
        if app.config.hooks.get(Moment::Quiesce).is_none() {
            return Ok(None);
        }
        self.catalog()?.set_notes(&[(note(&app.name), Some(job.id().to_string()))])?;
        let quiet = Quiet { engine: self, app, home, job, over: false };
        let about = HookTarget { job: Some(job.id()), ..HookTarget::default() };
        self.backup_hook(app, home, Moment::Quiesce, &about, job, job.cancel())?;
        Ok(Some(quiet))
    }

    /// Lets apps write again whose backups were killed. Cheap where there are none. Gives what could not be done.
    pub(crate) fn resume_quiet(&self) -> Result<Vec<(JobId, AppName, Error)>> {
        if !self.has_catalog() {
            return Ok(Vec::new());
        }
        let catalog = self.catalog()?;
        let mut failed = Vec::new();
        for (name, job) in catalog.notes(NOTES)? {
            let app = name.strip_prefix(NOTES).and_then(|app| app.parse::<AppName>().ok());
            let (Some(app), Ok(job)) = (app, job.parse::<JobId>()) else { continue };
            if catalog.job(&job)?.is_some_and(|j| j.state == JobState::Running) {
                continue;
            }
            let about = HookTarget { job: Some(job), failed: true, ..HookTarget::default() };
            let ran = self
                .known_app(app.as_str())
                .and_then(|app| run_hook(&self.runtime(&app)?, Moment::Resume, &about, &Cancel::new()));
            match ran {
                Ok(_) => catalog.set_notes(&[(name, None)])?,
                Err(e) => failed.push((job, app, e)),
            }
        }
        Ok(failed)
    }
}

impl Quiet<'_> {
    /// Lets it write again.
    pub fn end(mut self) -> Result<()> {
        self.resume()
    }

    fn resume(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.over, true) {
            return Ok(());
        }
        let about = HookTarget { job: Some(self.job.id()), ..HookTarget::default() };
        let (engine, app) = (self.engine, self.app);
        engine.backup_hook(app, self.home, Moment::Resume, &about, self.job, &Cancel::new())?;
        engine.catalog()?.set_notes(&[(note(&app.name), None)])
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // The hook's failure stands in the job's log; something else has failed already.
        self.resume().unwrap_or_default();
    }
}
