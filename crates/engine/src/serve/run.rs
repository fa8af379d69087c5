//! One automatic run of one app: its point, then what has to be done after it.
//!
//! Invariants: a run is done in a thread of its own, which gives up its priority for good before it begins; the
//! threads and programs it starts inherit that. Linux derives the priority of disk access from it: the lowest of the
//! best-effort class. The hour counts as done when the run has ended, well or not; an hour whose run failed for a
//! passing reason is tried again a few times, one whose run was cancelled or killed is still due.

use std::sync::PoisonError;
use std::time::Duration;

use backstay_model::{AppName, Cancel, Code, Error, Origin, Result, Retry, Silent};

use super::note::{RunNote, RunResult};
use super::{Due, Hub};
use crate::expire::ExpireRequest;
use crate::notify::{Ping, why};
use crate::spool::Automatic;
use crate::state::Engine;

/// How often an hour is tried.
const TRIES: u32 = 3;
/// How long a failed run waits for its next try.
const PAUSE: Duration = Duration::from_secs(300);
/// The lowest priority there is.
pub(super) const NICE: i32 = 19;

impl Hub<'_> {
    /// The whole life of the thread of a run.
    pub(super) fn run(&self, engine: &Engine, due: &Due, cancel: &Cancel) {
        let name = &due.app.name;
        if let Err(e) = rustix::process::setpriority_process(None, NICE) {
            (self.log)(format!("{name}: cannot lower the priority: {e}"));
        }
        match self.run_noted(engine, due, cancel) {
            Ok(true) => self.expire(engine, name, cancel),
            Ok(false) => {}
            Err(e) => {
                (self.log)(format!("{name}: the run could not be noted: {}", why(&e)));
                self.try_again_later(engine, name);
            }
        }
        {
            let mut shared = self.shared();
            shared.running.remove(name);
            shared.waiting.remove(name);
            if let Some((_, apps)) = &mut shared.down {
                apps.remove(name);
            }
        }
        self.control.change(|_news| ());
    }

    /// Lets the app's points go by age, and frees their space where that is due. One run at a time: a prune wants the
    /// vault for itself for a moment.
    fn expire(&self, engine: &Engine, name: &AppName, cancel: &Cancel) {
        let _one = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner);
        let request = ExpireRequest { app: Some(name.as_str()), dry_run: false, origin: Origin::Automatic };
        match engine.expire(&request, &Silent, cancel) {
            Ok(expiry) => {
                let gone: usize = expiry.apps.iter().map(|a| a.expired.len()).sum();
                if gone > 0 {
                    (self.log)(format!("{name}: {gone} points expired"));
                }
                // The next run looks after space again.
                if let Some(e) = expiry.prune_failed {
                    (self.log)(format!("space could not be given back: {}", why(&e)));
                }
            }
            Err(e) if e.code() == Code::Cancelled => {}
            Err(e) => (self.log)(format!("{name}: its points could not expire: {}", why(&e))),
        }
    }

    /// Takes the point and notes how that went; true when the vault has it.
    fn run_noted(&self, engine: &Engine, due: &Due, cancel: &Cancel) -> Result<bool> {
        let name = &due.app.name;
        let mut note = engine.run_notes()?.remove(name).unwrap_or_default();
        let before = note.clone();
        note.begun = Some((due.last.hour, due.tries.saturating_add(1)));
        engine.save_run_note(name, &note)?;
        if let Some(missed) = due.missed {
            (self.log)(format!("{name}: {} missed since {}", missed.runs, missed.from));
        }
        self.shared().pings.push_back((name.clone(), Ping::Start));
        let taken = self.take(engine, name, cancel);
        if taken.as_ref().is_err_and(|e| e.code() == Code::Cancelled) {
            (self.log)(format!("{name}: stopped"));
            engine.save_run_note(name, &RunNote { begun: before.begun, ..note })?;
            return Ok(false);
        }
        let result = self.result(engine, name, &taken);
        self.shared().pings.push_back((name.clone(), if result.failed { Ping::Fail } else { Ping::Success }));
        let passing = taken.as_ref().is_err_and(|e| e.code().retry() == Retry::Later);
        if passing && due.tries.saturating_add(1) < TRIES {
            self.try_again_later(engine, name);
        } else {
            note.last = Some(due.last.clone());
            note.begun = None;
        }
        note.result = Some(result);
        engine.save_run_note(name, &note)?;
        Ok(taken.is_ok_and(|taken| !taken.spooled))
    }

    /// Points that wait for the vault go first, so that it has them in order.
    fn take(&self, engine: &Engine, name: &AppName, cancel: &Cancel) -> Result<Automatic> {
        if let Err(e) = self.move_spooled(engine, cancel)
            && e.code() == Code::Cancelled
        {
            return Err(e);
        }
        engine.automatic_point(name, cancel)
    }

    fn result(&self, engine: &Engine, name: &AppName, taken: &Result<Automatic>) -> RunResult {
        let result = match taken {
            Ok(taken) => {
                let report = &taken.report;
                let point = &report.point.point;
                let failures = report.failures().len();
                let waits = if taken.spooled { "; it waits on this machine for the vault" } else { "" };
                let message = match failures {
                    0 => format!("Point {} taken: {} files{waits}", point.id.short(), point.files),
                    n => format!("Point {} taken with {n} problems{waits}", point.id.short()),
                };
                RunResult {
                    ended: engine.clock.now(),
                    failed: false,
                    code: (failures > 0).then(|| Code::PartiallySucceeded.as_str().to_owned()),
                    message,
                    advice: String::new(),
                    spooled: taken.spooled,
                    unmatched: report.filter.as_ref().map_or_else(Vec::new, |f| f.unmatched.clone()),
                }
            }
            Err(e) => failed(engine, e),
        };
        let code = result.code.as_ref().map_or_else(String::new, |c| format!(" ({c})"));
        (self.log)(format!("{name}: {}{code}", result.message));
        result
    }

    fn try_again_later(&self, engine: &Engine, name: &AppName) {
        let at = engine.clock.uptime() + PAUSE;
        self.shared().not_before.insert(name.clone(), at);
    }
}

pub(super) fn failed(engine: &Engine, e: &Error) -> RunResult {
    RunResult {
        ended: engine.clock.now(),
        failed: true,
        code: Some(e.code().as_str().to_owned()),
        message: why(e),
        advice: e.advice().to_owned(),
        spooled: false,
        unmatched: Vec::new(),
    }
}
