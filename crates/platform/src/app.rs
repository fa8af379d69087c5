//! Any kind of runtime behind the same few calls.
//!
//! Invariants: starting and stopping hold the app's lock for as long as they take. What does not run stays as it is
//! when it is stopped, what runs stays as it is when it is started. A static app is always as it should be.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backstay_model::app::{AppConfig, Runtime as Kind};
use backstay_model::{AppName, Cancel, Code, Error, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::health::{self, Healthy};
use crate::record::{self, Record};
use crate::{command, compose, log, proc, systemd};

const LOCK: &str = "lock";
/// How long is waited for another command that starts or stops the app, beside what that one may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an app must run before the next end is a first one again.
const STEADY: u64 = 600;
/// The longest time between two starts, in seconds.
const BACKOFF_MAX: u64 = 300;

/// An app as it runs on this host.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Its name.
    pub name: AppName,
    /// Its home.
    pub home: PathBuf,
    /// Its run folder; made when something is started.
    pub run: PathBuf,
    /// What is set about it.
    pub config: AppConfig,
    /// What a command finds in its environment beside what is set; asked for at each start.
    pub environment: Environment,
}

/// Whether an app runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing of it can be started or stopped.
    Static,
    /// It runs.
    Running,
    /// It was not started, or was stopped.
    Stopped,
    /// It should run and does not, or only in part.
    Failed,
}

impl State {
    /// The state as one word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            State::Static => "static",
            State::Running => "running",
            State::Stopped => "stopped",
            State::Failed => "failed",
        }
    }
}

/// Whether an app runs, with what is known about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// The state.
    pub state: State,
    /// Its first process, where it has one here.
    pub pid: Option<u32>,
    /// When it was started, where that is known.
    pub since: Option<Timestamp>,
    /// What else a person should know.
    pub detail: Option<String>,
}

impl Condition {
    pub(crate) fn of(state: State) -> Self {
        Condition { state, pid: None, since: None, detail: None }
    }
}

/// What an app was like before it was stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WasRunning {
    /// Something of it ran.
    pub running: bool,
    /// It was meant to run: it ran, or it had ended by itself. This decides whether to start it again.
    pub wanted: bool,
}

/// What [`tend`] found or did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tended {
    /// Nothing was to be done.
    Well,
    /// The app had ended by itself and was started again.
    Restarted,
    /// The app has ended by itself again and again; it is started again after that time.
    Waiting(Duration),
}

/// The app's lock, held.
#[derive(Debug)]
pub struct Held<'a> {
    app: &'a Runtime,
    _lock: Option<File>,
}

impl Runtime {
    /// An app in a state folder.
    #[must_use]
    pub fn new(state: &Path, name: AppName, home: PathBuf, config: AppConfig) -> Self {
        let run = state.join("run").join(name.as_str());
        Runtime { name, home, run, config, environment: Environment::default() }
    }

    /// The same with variables for its command.
    #[must_use]
    pub fn with(self, environment: Environment) -> Self {
        Runtime { environment, ..self }
    }

    /// The file that a command runtime's output goes to.
    #[must_use]
    pub fn log_file(&self) -> Option<PathBuf> {
        matches!(self.config.runtime, Kind::Command(_)).then(|| command::log_path(&self.run))
    }

    /// Waits until no other command starts or stops the app. `AppBusy` when that takes too long.
    pub fn lock(&self, cancel: &Cancel) -> Result<Held<'_>> {
        if !self.config.runtime.runs() {
            return Ok(Held { app: self, _lock: None });
        }
        record::make_folder(&self.run)?;
        let path = self.run.join(LOCK);
        let failed = |e: std::io::Error| {
            Error::new(Code::StateAccess, format!("Cannot lock {}", path.display())).because(e)
        };
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(failed)?;
        let started = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Held { app: self, _lock: Some(file) }),
                Err(std::fs::TryLockError::Error(e)) => return Err(failed(e)),
                Err(std::fs::TryLockError::WouldBlock) => {}
            }
            cancel.check()?;
            if started.elapsed() >= PATIENCE + self.stop_limit() {
                let message =
                    format!("Another command has been starting or stopping app `{}` for long", self.name);
                return Err(Error::new(Code::AppBusy, message));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn stop_limit(&self) -> Duration {
        match &self.config.runtime {
            Kind::Command(it) => it.grace,
            _ => Duration::from_secs(120),
        }
    }
}

impl Held<'_> {
    /// Starts the app unless it runs; true when it was started by this. For a command runtime it runs for a moment then;
    /// whether it is well is for [`wait_healthy`] to say. `AppStartFailed` with what the app said.
    pub fn start(&self, cancel: &Cancel) -> Result<bool> {
        let app = self.app;
        match &app.config.runtime {
            Kind::Static => Ok(false),
            Kind::Command(it) => command::start(app, it, 0, cancel),
            Kind::Systemd { unit, user } => systemd::Unit { unit, user: *user }.start(cancel),
            Kind::Compose { file, project } => {
                compose::Services { file, project: project.as_deref() }.start(cancel)
            }
        }
    }

    /// Stops the app and everything it has started. `AppStopFailed` when something of it still runs. When this fails, or
    /// is cancelled, the app may run, or not: [`Held::start`] brings it to a known state.
    pub fn stop(&self, cancel: &Cancel) -> Result<WasRunning> {
        let app = self.app;
        let before = state(app, cancel)?.state;
        let wanted = matches!(before, State::Running | State::Failed);
        let running = match &app.config.runtime {
            Kind::Static => false,
            Kind::Command(it) => command::stop(app, it, cancel)?,
            Kind::Systemd { unit, user } => systemd::Unit { unit, user: *user }.stop(cancel)?,
            Kind::Compose { file, project } => {
                compose::Services { file, project: project.as_deref() }.stop(cancel)?
            }
        };
        Ok(WasRunning { running, wanted })
    }
}

/// Whether the app runs. Changes nothing and waits for no lock.
pub fn state(app: &Runtime, cancel: &Cancel) -> Result<Condition> {
    match &app.config.runtime {
        Kind::Static => Ok(Condition::of(State::Static)),
        Kind::Command(_) => command::state(app),
        Kind::Systemd { unit, user } => systemd::Unit { unit, user: *user }.state(cancel),
        Kind::Compose { file, project } => {
            compose::Services { file, project: project.as_deref() }.state(cancel)
        }
    }
}

/// Starts the app unless it runs: [`Held::start`] under the app's lock.
pub fn start(app: &Runtime, cancel: &Cancel) -> Result<bool> {
    app.lock(cancel)?.start(cancel)
}

/// Stops the app: [`Held::stop`] under the app's lock.
pub fn stop(app: &Runtime, cancel: &Cancel) -> Result<WasRunning> {
    app.lock(cancel)?.stop(cancel)
}

/// Waits until the app is well: its health check passes, or, where none is set, it runs. `HealthCheckFailed` with the
/// last answer when the deadline passes or the app ends meanwhile.
pub fn wait_healthy(app: &Runtime, cancel: &Cancel) -> Result<Healthy> {
    health::wait(app, cancel)
}

/// Looks after an app of a command runtime: holds the limit of its log, and starts it again when it ended by itself,
/// with growing pauses while it keeps ending. `may_start` is asked, under the app's lock, just before.
///
/// The new process inherits the priority of the calling thread.
pub fn tend(app: &Runtime, may_start: &dyn Fn() -> bool, cancel: &Cancel) -> Result<Tended> {
    let Kind::Command(it) = &app.config.runtime else { return Ok(Tended::Well) };
    if Record::load(&app.run)?.is_none() {
        return Ok(Tended::Well);
    }
    log::hold_limit(&app.run)?;
    if !it.restart || command::state(app)?.state != State::Failed {
        return Ok(Tended::Well);
    }
    let _held = app.lock(cancel)?;
    let Some(record) = Record::load(&app.run)? else { return Ok(Tended::Well) };
    if command::state(app)?.state != State::Failed {
        return Ok(Tended::Well);
    }
    let same_boot = record.boot == proc::boot();
    let age = if same_boot { proc::uptime().as_secs().saturating_sub(record.uptime_seconds) } else { STEADY };
    let restarts = if age >= STEADY { 0 } else { record.restarts };
    let pause =
        if same_boot { 1_u64.checked_shl(restarts).unwrap_or(BACKOFF_MAX).min(BACKOFF_MAX) } else { 0 };
    if let Some(left) = pause.checked_sub(age).filter(|left| *left > 0) {
        return Ok(Tended::Waiting(Duration::from_secs(left)));
    }
    if !may_start() {
        return Ok(Tended::Well);
    }
    let started = command::start(app, it, restarts.saturating_add(1), cancel);
    if let Err(e) = started {
        // It is still meant to run: the next try comes after a longer pause.
        Record { restarts: restarts.saturating_add(1), ..Record::new(record.token, 0) }.save(&app.run)?;
        return Err(e);
    }
    Ok(Tended::Restarted)
}
