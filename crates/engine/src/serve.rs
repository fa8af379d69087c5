//! `backstay serve`: the scheduler.
//!
//! One thread looks every second which app is due and starts its run in a thread of its own, at the lowest priority;
//! one looks every minute what is wrong and tells it ([`watch`]); one looks after the apps that Backstay started
//! ([`tend`]). Nothing that talks to people or to other machines runs in the first, so a mail server that hangs holds
//! up no point.
//!
//! Invariants: one scheduler a state ([`lock`]). One run of an app at a time, a few at once. What is due follows from
//! the notes in the catalog and the clocks alone, so a scheduler that was killed goes on where it was: an hour whose
//! run did not end is still due. Asked to stop, it starts nothing more, cancels what runs (which leaves nothing half
//! done) and ends when that has ended.

mod custom;
pub(crate) mod lock;
pub(crate) mod note;
mod run;
mod service;
mod tend;
mod watch;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use backstay_catalog::{App, Owner};
use backstay_model::schedule::{self, LastRun, Missed, Moment, Next};
use backstay_model::{AppName, Cancel, Code, Result};
use jiff::Timestamp;

use crate::alerts::Condition;
use crate::notify::{Ping, utc, why};
use crate::private;
use crate::state::Engine;

/// How often it is looked what is due.
const TICK: Duration = Duration::from_secs(1);
/// For so long after the start an app that waits for its run is not told as overdue.
const FIRST_ROUND: Duration = Duration::from_secs(3_600);

/// Asks a scheduler to stop or to read its configuration anew.
#[derive(Clone, Default)]
pub struct Control(Arc<(Mutex<Wishes>, Condvar)>);

#[derive(Default)]
struct Wishes {
    stop: bool,
    reload: bool,
    /// Counts what happened, so that nobody sleeps over it.
    news: u64,
}

impl Control {
    /// With no wishes yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn change(&self, change: impl FnOnce(&mut Wishes)) {
        let (wishes, changed) = &*self.0;
        let mut wishes = wishes.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut wishes);
        wishes.news = wishes.news.wrapping_add(1);
        changed.notify_all();
    }

    /// Nothing more is started, what runs is cancelled.
    pub fn stop(&self) {
        self.change(|w| w.stop = true);
    }

    /// The configuration is read anew. When it cannot be read the old one stays.
    pub fn reload(&self) {
        self.change(|w| w.reload = true);
    }

    fn stopped(&self) -> bool {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).stop
    }

    fn take_reload(&self) -> bool {
        std::mem::take(&mut self.0.0.lock().unwrap_or_else(PoisonError::into_inner).reload)
    }

    fn news(&self) -> u64 {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).news
    }

    /// Waits until something has happened since `news`, at most so long; gives the present count.
    fn wait(&self, news: u64, time: Duration) -> u64 {
        let (wishes, changed) = &*self.0;
        let wishes = wishes.lock().unwrap_or_else(PoisonError::into_inner);
        let (wishes, _) = changed
            .wait_timeout_while(wishes, time, |w| w.news == news && !w.stop)
            .unwrap_or_else(PoisonError::into_inner);
        wishes.news
    }
}

impl Control {
    /// Waits so long, or until the scheduler is to stop.
    fn wait_for_stop(&self, time: Duration) {
        let (wishes, changed) = &*self.0;
        let wishes = wishes.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout_while(wishes, time, |w| !w.stop);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

/// Who is told what the scheduler does, one line each.
pub type Log<'a> = &'a (dyn Fn(String) + Sync);

/// What the threads share.
struct Hub<'a> {
    engine: Mutex<Arc<Engine>>,
    shared: Mutex<Shared>,
    control: &'a Control,
    log: Log<'a>,
    boot: String,
    started: Instant,
    /// Held while waiting points move into the vault.
    moving: Mutex<()>,
    /// Held while points expire.
    upkeep: Mutex<()>,
}

#[derive(Default)]
struct Shared {
    running: BTreeMap<AppName, Cancel>,
    /// Apps that are due or running.
    waiting: BTreeSet<AppName>,
    /// Failed runs are tried again after this time since boot.
    not_before: BTreeMap<AppName, Duration>,
    /// The same for custom backups.
    custom_not_before: BTreeMap<AppName, Duration>,
    pings: VecDeque<(AppName, Ping)>,
    /// The hours before this scheduler began, until they are made up for.
    down: Option<(Condition, BTreeSet<AppName>)>,
    first_look_done: bool,
    last_error: Option<String>,
}

/// A run that is due.
struct Due {
    app: App,
    last: LastRun,
    missed: Option<Missed>,
    tries: u32,
}

/// Runs the scheduler until it is asked to stop. `make` opens the state, again when the configuration is to be read
/// anew. `ServerRunning` when another process schedules this state.
pub fn serve(make: &(dyn Fn() -> Result<Engine> + Sync), control: &Control, log: Log<'_>) -> Result<()> {
    let engine = make()?;
    private::make_folder(&*engine.fs, &engine.state)?;
    let _lock = lock::take(&engine.state)?;
    engine.catalog()?;
    log(format!("serving {}", engine.state.display()));
    let hub = Hub {
        engine: Mutex::new(Arc::new(engine)),
        shared: Mutex::default(),
        control,
        log,
        boot: Owner::current().boot,
        started: Instant::now(),
        moving: Mutex::new(()),
        upkeep: Mutex::new(()),
    };
    service::tell("READY=1");
    std::thread::scope(|scope| {
        let tending = Cancel::new();
        scope.spawn(|| watch::watch(&hub));
        let theirs = tending.clone();
        let hub = &hub;
        scope.spawn(move || tend::tend(hub, &theirs));
        let mut news = control.news();
        while !control.stopped() {
            if control.take_reload() {
                hub.reload(make);
            }
            service::tell("WATCHDOG=1");
            hub.start_due(scope);
            news = control.wait(news, TICK);
        }
        service::tell("STOPPING=1");
        tending.cancel();
        hub.shared().running.values().for_each(Cancel::cancel);
    });
    log("stopped".to_owned());
    Ok(())
}

impl<'a> Hub<'a> {
    fn engine(&self) -> Arc<Engine> {
        Arc::clone(&self.engine.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reload(&self, make: &dyn Fn() -> Result<Engine>) {
        match make() {
            Ok(engine) => {
                *self.engine.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(engine);
                (self.log)("configuration read anew".to_owned());
            }
            Err(e) => (self.log)(format!("the configuration stays as it was: {}", why(&e))),
        }
    }

    /// Starts what is due, as far as there is room. What fails here (a state that cannot be read, say) is told once
    /// and tried again.
    fn start_due<'scope>(&'scope self, scope: &'scope std::thread::Scope<'scope, '_>) {
        let engine = self.engine();
        let due = match self.due(&engine) {
            Ok(due) => due,
            Err(e) => {
                let text = why(&e);
                let mut shared = self.shared();
                if shared.last_error.as_ref() != Some(&text) {
                    (self.log)(format!("cannot see what is due: {text}"));
                    shared.last_error = Some(text);
                }
                return;
            }
        };
        self.shared().last_error = None;
        if !self.shared().first_look_done {
            self.tell_missed(&engine, &due);
            self.shared().first_look_done = true;
            self.control.change(|_news| ());
        }
        for due in due {
            let (name, theirs) = (due.app.name.clone(), Arc::clone(&engine));
            if !self.start(scope, &engine, name, move |cancel| self.run(&theirs, &due, cancel)) {
                return;
            }
        }
        match self.due_custom(&engine) {
            Ok(due) => {
                for due in due {
                    let (name, theirs) = (due.app.name.clone(), Arc::clone(&engine));
                    if !self.start(scope, &engine, name, move |cancel| self.run_custom(&theirs, &due, cancel))
                    {
                        return;
                    }
                }
            }
            Err(e) => self.shared().last_error = Some(why(&e)),
        }
    }

    /// Starts a run of an app in a thread of its own; false where there is no room for it now.
    fn start<'scope>(
        &'scope self,
        scope: &'scope std::thread::Scope<'scope, '_>,
        engine: &Engine,
        name: AppName,
        work: impl FnOnce(&Cancel) + Send + 'scope,
    ) -> bool {
        let cancel = Cancel::new();
        {
            let mut shared = self.shared();
            if shared.running.len() >= engine.config.automatic.parallel {
                return false;
            }
            shared.running.insert(name.clone(), cancel.clone());
        }
        let started = std::thread::Builder::new()
            .name(format!("run {name}"))
            .spawn_scoped(scope, move || work(&cancel));
        if let Err(e) = started {
            (self.log)(format!("{name}: cannot start a thread: {e}"));
            self.shared().running.remove(&name);
            return false;
        }
        true
    }

    /// What is due now, longest waiting first.
    fn due(&self, engine: &Engine) -> Result<Vec<Due>> {
        let now = engine.clock.now();
        let moment = Moment { now, boot: &self.boot, uptime: engine.clock.uptime() };
        let notes = engine.run_notes()?;
        let mut due = Vec::new();
        for app in engine.apps()? {
            let note = notes.get(&app.name);
            let wanted = app.home.is_some() && app.config.wants_automatic(now);
            if !wanted && note.is_none_or(|n| n.last.is_none()) {
                continue;
            }
            let offset = schedule::offset(&app.name, engine.config.automatic.jitter);
            match schedule::next(&moment, note.and_then(|n| n.last.as_ref()), offset) {
                // Hours of a pause are not missed.
                Next::Run { last, .. } if !wanted => {
                    let note = note::RunNote { last: Some(last), ..note.cloned().unwrap_or_default() };
                    engine.save_run_note(&app.name, &note)?;
                }
                Next::Run { last, missed } => {
                    let tries = note.map_or(0, |n| n.tries(last.hour));
                    due.push(Due { app, last, missed, tries });
                }
                Next::Wait { settle: Some(last), .. } => {
                    let note = note::RunNote { last: Some(last), ..note.cloned().unwrap_or_default() };
                    engine.save_run_note(&app.name, &note)?;
                }
                Next::Wait { settle: None, .. } => {}
            }
        }
        let mut shared = self.shared();
        shared.waiting =
            due.iter().map(|d| d.app.name.clone()).chain(shared.running.keys().cloned()).collect();
        due.retain(|d| {
            let name = &d.app.name;
            !shared.running.contains_key(name)
                && shared.not_before.get(name).is_none_or(|t| *t <= moment.uptime)
        });
        due.sort_by_key(|d| (d.tries, d.missed.map_or(i64::MAX, |m| m.from.as_second())));
        Ok(due)
    }

    /// Hours in which no scheduler ran are one alert, not one for each app.
    fn tell_missed(&self, engine: &Engine, due: &[Due]) {
        let Some(missed) = missed_by_all(due) else { return };
        let now = engine.clock.now();
        let condition = Condition {
            kind: "scheduler-down",
            app: None,
            code: Some(Code::BackupMissed.as_str().to_owned()),
            message: format!(
                "No automatic points from {} to {} ({} missed): no scheduler ran",
                utc(missed.from),
                utc(now),
                missed.runs
            ),
            advice:
                "Points are taken again as of now. See that `backstay serve` is started with the machine \
                     (docs/operations.md)."
                    .to_owned(),
        };
        (self.log)(condition.message.clone());
        if let Err(e) = engine.note_alert(&condition) {
            (self.log)(format!("the alert could not be noted: {}", why(&e)));
        }
        let apps = due.iter().map(|d| d.app.name.clone()).collect();
        self.shared().down = Some((condition, apps));
    }
}

/// The longest time without points of any app.
fn missed_by_all(due: &[Due]) -> Option<Missed> {
    let all = || due.iter().filter_map(|d| d.missed);
    let from: Timestamp = all().map(|m| m.from).min()?;
    Some(Missed { from, runs: all().map(|m| m.runs).max()? })
}
