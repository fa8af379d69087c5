//! Starting, stopping and asking an app as part of a job.
//!
//! Invariants: an app is started and stopped by one command at a time (the platform's lock). What runs under a job
//! stops waiting when the job is stopped.

use backstay_catalog::{App, PointRecord};
use backstay_model::app::Moment;
use backstay_model::{Cancel, Code, Error, Phase, Progress as _, Result};
use backstay_platform::{HookTarget, Runtime, State, run_hook};

use crate::job::Running;
use crate::state::Engine;

impl Engine {
    /// The app as it runs on this host.
    pub(crate) fn runtime(&self, app: &App) -> Result<Runtime> {
        let home = app.home.clone().ok_or_else(|| {
            Error::new(
                Code::TargetUnusable,
                format!("The home of app `{}` on this machine is not known", app.name),
            )
        })?;
        let runtime = Runtime::new(&self.state, app.name.clone(), home, app.config.clone());
        Ok(runtime.with(self.environment(&app.name)?))
    }

    /// Whether the app runs, or should.
    pub(crate) fn is_running(&self, app: &App) -> Result<bool> {
        if !app.config.runtime.runs() {
            return Ok(false);
        }
        let state = backstay_platform::state(&self.runtime(app)?, &Cancel::new())?.state;
        Ok(matches!(state, State::Running | State::Failed))
    }

    /// Stops the app. Its own MySQL goes on: a restore may be about to exchange what is in it.
    pub(crate) fn stop_for(&self, app: &App, job: &Running<'_>) -> Result<()> {
        job.phase(Phase::Stopping);
        backstay_platform::stop(&self.runtime(app)?, job.cancel()).map(drop)
    }

    /// Starts the app. A job that was told to stop starts it all the same: it must not stay down for that.
    pub(crate) fn start_again(&self, app: &App) -> Result<()> {
        self.run_in_app(app, &Cancel::new())?;
        backstay_platform::start(&self.runtime(app)?, &Cancel::new()).map(drop)
    }

    /// Waits until the app is well; true when it is, none where there is nothing to see it by.
    pub(crate) fn wait_healthy(&self, app: &App, runs: bool, job: &Running<'_>) -> Result<Option<bool>> {
        let has_runtime = app.config.runtime.runs();
        if (has_runtime && !runs) || (!has_runtime && app.config.health.is_none()) {
            return Ok(None);
        }
        let healthy = backstay_platform::wait_healthy(&self.runtime(app)?, job.cancel())?;
        if let Some(check) = &healthy.check {
            job.log(format!("Healthy after {} s: {check}", healthy.seconds));
        }
        Ok(Some(true))
    }

    /// Runs the hook of a moment, where the app has one.
    pub(crate) fn hook(
        &self,
        app: &App,
        moment: Moment,
        point: Option<&PointRecord>,
        job: &Running<'_>,
    ) -> Result<()> {
        if app.config.hooks.get(moment).is_none() {
            return Ok(());
        }
        let about =
            HookTarget { job: Some(job.id()), point: point.map(|p| p.point.id), ..HookTarget::default() };
        if let Some(ran) = run_hook(&self.runtime(app)?, moment, &about, job.cancel())? {
            job.log(format!("The {} hook ended well after {} s", moment.name(), ran.seconds));
            for line in ran.output.lines() {
                job.log(format!("  {line}"));
            }
        }
        Ok(())
    }
}
