//! Hooks: commands of the app's owner that run before and after a backup or a restore.
//!
//! Invariants: a hook runs in the app's home, with nothing of Backstay's environment; it ends within its limit, and
//! nothing of its process group outlives it (what it starts with `setsid` does). Its output never goes to standard
//! output; the end of it is given back for the job's log.

use std::path::Path;
use std::time::Instant;

use backstay_model::app::Moment;
use backstay_model::{Cancel, Code, Error, JobId, PointId, Result};
use serde::Serialize;

use crate::app::Runtime;
use crate::child::{self, status_text};

/// What a hook is told about the work, as variables.
#[derive(Clone, Copy, Debug, Default)]
pub struct HookTarget<'a> {
    /// The job (`BACKSTAY_JOB`).
    pub job: Option<JobId>,
    /// The point that was taken or is restored (`BACKSTAY_POINT`).
    pub point: Option<PointId>,
    /// The folder that is restored into (`BACKSTAY_TARGET`), where the hook runs too. For a new app this is not yet its
    /// home.
    pub target: Option<&'a Path>,
    /// Whether the work that came before failed (`BACKSTAY_FAILED` is 1 then).
    pub failed: bool,
}

/// What became of a hook that ended well.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HookOutput {
    /// The end of what it wrote.
    pub output: String,
    /// How long it took.
    pub seconds: f64,
}

/// Runs the hook of a moment; none where the app has none. `HookFailed` with the end of its output as the cause.
pub fn run_hook(
    app: &Runtime,
    moment: Moment,
    about: &HookTarget<'_>,
    cancel: &Cancel,
) -> Result<Option<HookOutput>> {
    let Some(hook) = app.config.hooks.get(moment) else { return Ok(None) };
    let name = moment.name();
    let failed =
        |why: &str| Error::new(Code::HookFailed, format!("The {name} hook of app `{}` {why}", app.name));
    let folder = about.target.unwrap_or(&app.home);
    let mut command = child::clean(&hook.command);
    command.current_dir(folder).env("BACKSTAY_APP", app.name.as_str()).env("BACKSTAY_HOME_DIR", &app.home);
    command.envs(about.job.map(|id| ("BACKSTAY_JOB", id.to_string())));
    command.envs(about.point.map(|id| ("BACKSTAY_POINT", id.to_string())));
    command.envs(about.target.map(|path| ("BACKSTAY_TARGET", path)));
    command.env("BACKSTAY_FAILED", if about.failed { "1" } else { "0" });
    let started = Instant::now();
    let ended = child::run(&mut command, hook.timeout, cancel).map_err(|e| match e.code() {
        Code::Cancelled => e,
        _ if !folder.is_dir() => failed(&format!("cannot run: {} is not a folder", folder.display())),
        _ => failed("cannot be run").because(e),
    })?;
    let output = ended.output.text();
    let told = |error: Error| if output.is_empty() { error } else { error.because(output.clone()) };
    if ended.late {
        let why = format!("took longer than {} s and was killed", hook.timeout.as_secs());
        return Err(told(failed(&why)));
    }
    if !ended.status.success() {
        return Err(told(failed(&format!("ended with {}", status_text(ended.status)))));
    }
    let seconds = (started.elapsed().as_secs_f64() * 1_000.0).round() / 1_000.0;
    Ok(Some(HookOutput { output, seconds }))
}
