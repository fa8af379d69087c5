//! Starting and stopping apps, with the MySQL that is their own.
//!
//! Invariants: an app is not started or stopped while a restore in place of it runs: that is looked at under the app's own
//! lock, which the restore needs to stop the app. Its own MySQL is started before it and stopped after it.

use backstay_catalog::App;
use backstay_model::{AppName, Cancel, Code, Error, JobKind, Result};
use backstay_platform::{Condition, Healthy, Held, Runtime};
use serde::Serialize;

use crate::in_app::{InAppState, InAppView};
use crate::state::Engine;

/// What became of starting or stopping an app.
#[derive(Clone, Debug, Serialize)]
pub struct Operated {
    /// The app's name.
    pub name: AppName,
    /// Whether it was stopped, or was not running before.
    pub was_running: bool,
    /// How it is now.
    pub condition: Condition,
    /// That it is well, where it was started.
    pub health: Option<Healthy>,
    /// Its own MySQL; none where it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_app_mysql: Option<InAppView>,
}

impl Engine {
    /// Does something to a running app under its lock, unless a restore in place of it runs.
    fn operate<T>(
        &self,
        name: &AppName,
        cancel: &Cancel,
        work: impl FnOnce(&App, &Runtime, &Held<'_>) -> Result<T>,
    ) -> Result<T> {
        let app = self.protected_app(name)?;
        if !app.config.runtime.runs() && !app.config.in_app_mysql {
            let message = format!("App `{name}` is static: there is nothing to start or stop");
            return Err(Error::new(Code::Conflict, message).advise(format!(
                "`backstay app set {name} --command LINE` (or --systemd, --compose) says how it runs."
            )));
        }
        let runtime = self.runtime_here(&app)?;
        let held = runtime.lock(cancel)?;
        self.refuse_while_restored(name)?;
        work(&app, &runtime, &held)
    }

    fn refuse_while_restored(&self, name: &AppName) -> Result<()> {
        match self.catalog()?.exclusive_job(name)? {
            Some(job) if matches!(job.kind, JobKind::Restore | JobKind::Undo) => {
                let message = format!("App `{name}` is being restored (job {})", job.id.short());
                Err(Error::new(Code::AppBusy, message))
            }
            _ => Ok(()),
        }
    }

    /// Starts an app and waits until it is well.
    pub fn app_start(&self, name: &AppName, cancel: &Cancel) -> Result<Operated> {
        self.operate(name, cancel, |app, runtime, held| {
            self.refuse_unfinished(name)?;
            let (ran, started) = self.start_both(app, held, cancel)?;
            let was_running = if app.config.runtime.runs() { !started } else { ran };
            self.operated(app, runtime, was_running, true, cancel)
        })
    }

    /// Starts the app's own MySQL where it has one, then the app: whether the one ran, and whether the other was started.
    /// Where the app does not start, both are as before.
    fn start_both(&self, app: &App, held: &Held<'_>, cancel: &Cancel) -> Result<(bool, bool)> {
        let ran = self.runs_in_app(app);
        self.run_in_app(app, cancel)?;
        match held.start(cancel) {
            Ok(started) => Ok((ran, started)),
            Err(e) => {
                if app.config.in_app_mysql && !ran {
                    self.rest_in_app(app)?;
                }
                Err(e)
            }
        }
    }

    /// Whether the app's own MySQL runs.
    fn runs_in_app(&self, app: &App) -> bool {
        self.in_app_view(app).is_some_and(|view| view.state == InAppState::Running)
    }

    /// Stops an app.
    pub fn app_stop(&self, name: &AppName, cancel: &Cancel) -> Result<Operated> {
        self.operate(name, cancel, |app, runtime, held| {
            let was = held.stop(cancel)?;
            let ran = self.runs_in_app(app);
            if app.config.in_app_mysql {
                self.rest_in_app(app)?;
            }
            let was_running = if app.config.runtime.runs() { was.running } else { ran };
            self.operated(app, runtime, was_running, false, cancel)
        })
    }

    /// Stops an app, starts it and waits until it is well.
    pub fn app_restart(&self, name: &AppName, cancel: &Cancel) -> Result<Operated> {
        self.operate(name, cancel, |app, runtime, held| {
            self.refuse_unfinished(name)?;
            let was = held.stop(cancel)?;
            let (ran, _) = self.start_both(app, held, cancel)?;
            self.operated(app, runtime, was.running || ran, true, cancel)
        })
    }

    fn operated(
        &self,
        app: &App,
        runtime: &Runtime,
        was_running: bool,
        wait: bool,
        cancel: &Cancel,
    ) -> Result<Operated> {
        let health = wait.then(|| backstay_platform::wait_healthy(runtime, cancel)).transpose()?;
        let condition = backstay_platform::state(runtime, cancel)?;
        let in_app_mysql = self.in_app_view(app);
        Ok(Operated { name: runtime.name.clone(), was_running, condition, health, in_app_mysql })
    }
}
