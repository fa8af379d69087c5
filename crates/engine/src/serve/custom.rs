//! Scheduled custom backups: one run of one app.
//!
//! Invariants: an app has one run at a time, of its points or of its custom backups. What is due follows from the
//! schedule, its note and the clocks. A time counts as done when its run has ended, well or not; one that failed for a
//! passing reason is tried again a few times with growing pauses, but not beyond the next time, so runs never pile up.
//! One that was stopped with the scheduler, or killed, is still due.

use std::path::Path;
use std::time::Duration;

use backstay_catalog::App;
use backstay_model::schedule::{LastRun, Missed, Moment, Next};
use backstay_model::{AppName, Cancel, Code, Occasion, Result, Retry, Schedule, Silent};

use super::Hub;
use super::note::{RunNote, RunResult};
use super::run::{NICE, failed};
use crate::archive::SealBy;
use crate::custom::{CustomReport, CustomRequest};
use crate::notify::why;
use crate::state::Engine;

/// How often one time is tried.
const TRIES: u32 = 4;
/// How long a failed run waits for its second try; each further one waits three times as long.
const PAUSE: Duration = Duration::from_secs(300);
/// How long it waits for another job of the app.
const BUSY: Duration = Duration::from_secs(60);

/// A run that is due.
pub(super) struct DueCustom {
    pub app: App,
    schedule: Schedule,
    last: LastRun,
    missed: Option<Missed>,
    tries: u32,
}

impl Hub<'_> {
    /// The custom backups that are due now and not held back.
    pub(super) fn due_custom(&self, engine: &Engine) -> Result<Vec<DueCustom>> {
        let now = engine.clock.now();
        let moment = Moment { now, boot: &self.boot, uptime: engine.clock.uptime() };
        let notes = engine.custom_notes()?;
        let mut due = Vec::new();
        for app in engine.apps()? {
            let Some(schedule) = app.config.schedule.clone() else { continue };
            let note = notes.get(&app.name).cloned().unwrap_or_default();
            let wanted = app.home.is_some() && !app.config.is_paused(now);
            match schedule.next(&moment, note.last.as_ref()) {
                // Times of a pause are not missed.
                Next::Run { last, .. } if !wanted => {
                    engine.save_custom_note(&app.name, &RunNote { last: Some(last), ..note })?;
                }
                Next::Run { last, missed } => {
                    let tries = note.tries(last.hour);
                    due.push(DueCustom { app, schedule, last, missed, tries });
                }
                Next::Wait { settle: Some(last), .. } => {
                    engine.save_custom_note(&app.name, &RunNote { last: Some(last), ..note })?;
                }
                Next::Wait { settle: None, .. } => {}
            }
        }
        let shared = self.shared();
        due.retain(|d| {
            let held = shared.custom_not_before.get(&d.app.name).is_some_and(|t| *t > moment.uptime);
            !held && !shared.running.contains_key(&d.app.name)
        });
        due.sort_by_key(|d| (d.tries, d.last.hour));
        Ok(due)
    }

    /// The whole life of the thread of a run.
    pub(super) fn run_custom(&self, engine: &Engine, due: &DueCustom, cancel: &Cancel) {
        let name = &due.app.name;
        if let Err(e) = rustix::process::setpriority_process(None, NICE) {
            (self.log)(format!("{name}: cannot lower the priority: {e}"));
        }
        match self.custom_noted(engine, due, cancel) {
            Ok(true) => self.expire_custom(engine, &due.app, cancel),
            Ok(false) => {}
            Err(e) => {
                (self.log)(format!("{name}: the custom backup could not be noted: {}", why(&e)));
                self.custom_later(engine, name, BUSY);
            }
        }
        self.shared().running.remove(name);
        self.control.change(|_news| ());
    }

    /// Takes the backup and notes how that went; true when it is there.
    fn custom_noted(&self, engine: &Engine, due: &DueCustom, cancel: &Cancel) -> Result<bool> {
        let name = &due.app.name;
        let mut note = engine.custom_notes()?.remove(name).unwrap_or_default();
        let before = note.clone();
        note.begun = Some((due.last.hour, due.tries.saturating_add(1)));
        engine.save_custom_note(name, &note)?;
        if let Some(missed) = due.missed {
            (self.log)(format!("{name}: {} custom backups missed since {}", missed.runs, missed.from));
        }
        let request = CustomRequest {
            target: Path::new(name.as_str()),
            named: None,
            container: &due.schedule.container,
            name: None,
            seal: &SealBy::Server,
            databases: true,
            occasion: Occasion::Scheduled,
        };
        let taken = engine.custom_backup(&request, &Silent, cancel);
        let code = taken.as_ref().err().map(backstay_model::Error::code);
        let busy = code == Some(Code::AppBusy);
        if busy || (code == Some(Code::Cancelled) && self.control.stopped()) {
            engine.save_custom_note(name, &RunNote { begun: before.begun, ..note })?;
            if busy {
                self.custom_later(engine, name, BUSY);
            }
            return Ok(false);
        }
        let result = self.custom_result(engine, name, &taken);
        let passing = taken.as_ref().is_err_and(|e| e.code().retry() == Retry::Later);
        if passing && code != Some(Code::Cancelled) && due.tries.saturating_add(1) < TRIES {
            self.custom_later(engine, name, PAUSE.saturating_mul(3_u32.saturating_pow(due.tries)));
        } else {
            note.last = Some(due.last.clone());
            note.begun = None;
        }
        note.result = Some(result);
        // The schedule may have been changed or taken away meanwhile: then the note is another's.
        let now = engine.catalog()?.app(name)?.and_then(|a| a.config.schedule);
        if now.is_some_and(|s| s.every_hours == due.schedule.every_hours && s.start == due.schedule.start) {
            engine.save_custom_note(name, &note)?;
        }
        Ok(taken.is_ok())
    }

    fn custom_result(&self, engine: &Engine, name: &AppName, taken: &Result<CustomReport>) -> RunResult {
        let result = match taken {
            Ok(report) => {
                let failures = report.failures().len();
                let with = if failures == 0 { String::new() } else { format!(" with {failures} problems") };
                let partial = (failures > 0).then_some(Code::PartiallySucceeded);
                let code = partial.or(report.hook_failed.as_ref().map(|_| Code::HookFailed));
                RunResult {
                    ended: engine.clock.now(),
                    failed: false,
                    code: code.map(|c| c.as_str().to_owned()),
                    message: format!("{} written to {}{with}", report.custom.name, report.container),
                    advice: String::new(),
                    spooled: false,
                    unmatched: report.filter.unmatched.clone(),
                }
            }
            Err(e) => failed(engine, e),
        };
        let code = result.code.as_ref().map_or_else(String::new, |c| format!(" ({c})"));
        (self.log)(format!("{name}: custom backup: {}{code}", result.message));
        result
    }

    /// Lets the app's scheduled backups go by age. What hinders it is tried again after the next run.
    fn expire_custom(&self, engine: &Engine, app: &App, cancel: &Cancel) {
        match engine.expire_custom(app, cancel) {
            Ok(expiry) => {
                for gone in &expiry.expired {
                    (self.log)(format!("{}: custom backup {gone} expired", app.name));
                }
                if let Some(why) = expiry.held {
                    (self.log)(format!("{}: custom backups do not expire for now: {why}", app.name));
                }
            }
            Err(e) if e.code() == Code::Cancelled => {}
            Err(e) => (self.log)(format!("{}: custom backups could not expire: {}", app.name, why(&e))),
        }
    }

    fn custom_later(&self, engine: &Engine, name: &AppName, pause: Duration) {
        let at = engine.clock.uptime() + pause;
        self.shared().custom_not_before.insert(name.clone(), at);
    }
}
