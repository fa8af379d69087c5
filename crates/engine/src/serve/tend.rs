//! The thread that looks after apps that Backstay started (one that ended by itself is started again) and after
//! restores whose process was killed (they are finished).
//!
//! Invariants: it never has a lowered priority, since what it starts inherits its own. It starts nothing while a
//! restore of the app is under way, which stopped it on purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use backstay_catalog::App;
use backstay_model::app::Runtime;
use backstay_model::{AppName, Cancel, JobKind, JobState, Result};
use backstay_platform::Tended;

use super::Hub;
use crate::notify::why;
use crate::state::Engine;

/// How often it looks.
const LOOK: Duration = Duration::from_secs(2);
/// How long after a failure the MySQL of an app is started again.
const AGAIN: Duration = Duration::from_mins(1);

/// Looks after apps until the scheduler is asked to stop.
pub(super) fn tend(hub: &Hub<'_>, cancel: &Cancel) {
    let mut told = BTreeMap::new();
    let mut failed = BTreeMap::new();
    let mut stuck = BTreeSet::new();
    while !cancel.is_cancelled() {
        let engine = hub.engine();
        resume(hub, &engine, &mut stuck);
        let apps = engine.apps().unwrap_or_default();
        for app in apps.iter().filter(|a| a.config.in_app_mysql) {
            in_app(hub, &engine, app, &mut failed, cancel);
        }
        for app in apps.iter().filter(|a| matches!(a.config.runtime, Runtime::Command(_))) {
            one(hub, &engine, app, &mut told, cancel);
        }
        hub.control.wait_for_stop(LOOK);
    }
}

/// Finishes restores whose process was killed. What hinders one is told once.
fn resume(hub: &Hub<'_>, engine: &Engine, stuck: &mut BTreeSet<String>) {
    match engine.resume() {
        Ok(found) => {
            for resumed in found {
                if !resumed.stuck || stuck.insert(resumed.what.clone()) {
                    (hub.log)(resumed.what);
                }
            }
        }
        Err(e) => {
            let text = format!("restores that were stopped cannot be looked at: {}", why(&e));
            if stuck.insert(text.clone()) {
                (hub.log)(text);
            }
        }
    }
}

/// Looks after the MySQL of one app, before the app; the same failure is told once.
fn in_app(
    hub: &Hub<'_>,
    engine: &Engine,
    app: &App,
    failed: &mut BTreeMap<AppName, (String, Instant)>,
    cancel: &Cancel,
) {
    if failed.get(&app.name).is_some_and(|(_, at)| at.elapsed() < AGAIN) {
        return;
    }
    match engine.tend_in_app(app, cancel) {
        Ok(true) => {
            failed.remove(&app.name);
            (hub.log)(format!("{}: its MySQL in-app did not run and was started again", app.name));
        }
        Ok(false) => {}
        Err(_) if cancel.is_cancelled() => {}
        Err(e) => {
            let text = why(&e);
            if failed.get(&app.name).is_none_or(|(told, _)| *told != text) {
                (hub.log)(format!("{}: its MySQL in-app cannot be started: {text}", app.name));
            }
            failed.insert(app.name.clone(), (text, Instant::now()));
        }
    }
}

/// Looks after one app; the same failure is told once.
fn one(hub: &Hub<'_>, engine: &Engine, app: &App, told: &mut BTreeMap<AppName, String>, cancel: &Cancel) {
    let tended = engine.runtime(app).and_then(|runtime| {
        let may_start = || !cancel.is_cancelled() && being_restored(engine, app).is_ok_and(|busy| !busy);
        backstay_platform::tend(&runtime, &may_start, cancel)
    });
    match tended {
        Ok(Tended::Restarted) => {
            told.remove(&app.name);
            (hub.log)(format!("{}: it had ended by itself and was started again", app.name));
        }
        Ok(_) => {}
        Err(_) if cancel.is_cancelled() => {}
        Err(e) => {
            let text = why(&e);
            if told.get(&app.name) != Some(&text) {
                (hub.log)(format!("{}: cannot be started again: {text}", app.name));
                told.insert(app.name.clone(), text);
            }
        }
    }
}

/// Whether a restore of the app runs, or waits to be taken up again.
fn being_restored(engine: &Engine, app: &App) -> Result<bool> {
    if engine.refuse_unfinished(&app.name).is_err() {
        return Ok(true);
    }
    let at_work = |kind| matches!(kind, JobKind::Restore | JobKind::Undo);
    let jobs = engine.catalog()?.jobs(1_000)?;
    Ok(jobs
        .iter()
        .any(|j| j.app.as_ref() == Some(&app.name) && j.state == JobState::Running && at_work(j.kind)))
}
