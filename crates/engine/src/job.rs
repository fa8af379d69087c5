//! Running something as a job.
//!
//! Invariants: work runs between `begin_job` and `end_job`; a thread renews the lease meanwhile and hands requests
//! to stop to the work's [`Cancel`]. When the lease is lost the work is told to stop and ends with `LeaseLost`;
//! [`Running::still_ours`] is asked just before anything is committed. A kill at any moment leaves a job record that
//! the next command ends. Nothing here is needed for the truth: that is in the vault.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use backstay_catalog::{Catalog, Clock, End, LEASE, LogLine, NewJob, Work};
use backstay_model::{
    AppName, Cancel, Code, Counts, Error, Job, JobId, JobKind, JobState, Origin, Phase, Problem, Progress,
    Result, Step,
};

use crate::secrets::random;

/// How often requests to stop are looked for.
const WATCH: Duration = Duration::from_secs(1);
/// How often the lease is renewed and the progress stored.
const RENEW: Duration = Duration::from_secs(LEASE.as_secs() / 4);
/// Problems that a job's log keeps; all of them are in the result.
const LOG_MAX: usize = 1_000;

/// What is to be run.
pub(crate) struct Task<'a> {
    pub kind: JobKind,
    pub app: Option<&'a AppName>,
    /// Whether it excludes other exclusive jobs of the app.
    pub exclusive: bool,
}

/// What work gives back: its value and what the job's record says about it.
pub(crate) struct Done<T> {
    pub value: T,
    pub message: String,
    /// The code of a result that is only partly what was asked for.
    pub partial: Option<Code>,
}

/// A job at work. It is the [`Progress`] that the work reports to; it passes everything on.
pub(crate) struct Running<'a> {
    job: Job,
    catalog: Arc<dyn Catalog>,
    clock: Arc<dyn Clock>,
    outer: &'a dyn Progress,
    cancel: &'a Cancel,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    ended: Condvar,
    lost: AtomicBool,
}

#[derive(Default)]
struct State {
    work: Work,
    logged: usize,
    over: bool,
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The work so far; log lines are handed out once.
    fn take_work(&self) -> Work {
        let mut state = self.state();
        let log = std::mem::take(&mut state.work.log);
        Work { log, ..state.work.clone() }
    }
}

/// Runs `work` as a job.
pub(crate) fn run<T>(
    catalog: &Arc<dyn Catalog>,
    clock: &Arc<dyn Clock>,
    task: &Task<'_>,
    watch: (&dyn Progress, &Cancel),
    work: impl FnOnce(&Running<'_>) -> Result<Done<T>>,
) -> Result<T> {
    run_for(Origin::Manual, catalog, clock, task, watch, work)
}

/// Runs `work` as a job of whoever asked for it: a job of the scheduler is not cancelled by `job cancel`.
pub(crate) fn run_for<T>(
    origin: Origin,
    catalog: &Arc<dyn Catalog>,
    clock: &Arc<dyn Clock>,
    task: &Task<'_>,
    (progress, cancel): (&dyn Progress, &Cancel),
    work: impl FnOnce(&Running<'_>) -> Result<Done<T>>,
) -> Result<T> {
    cancel.check()?;
    let new = NewJob {
        id: JobId::from_bytes(random()?),
        kind: task.kind,
        app: task.app.cloned(),
        exclusive: task.exclusive,
        automatic: origin == Origin::Automatic,
    };
    let job = catalog.begin_job(&new)?;
    let shared =
        Arc::new(Shared { state: Mutex::default(), ended: Condvar::new(), lost: AtomicBool::new(false) });
    let running = Running {
        job,
        catalog: Arc::clone(catalog),
        clock: Arc::clone(clock),
        outer: progress,
        cancel,
        shared: Arc::clone(&shared),
    };
    let pulse = Pulse {
        id: new.id,
        token: running.job.token,
        catalog: Arc::clone(catalog),
        cancel: cancel.clone(),
        shared: Arc::clone(&shared),
    };
    let thread = std::thread::Builder::new()
        .name("lease".to_owned())
        .spawn(move || pulse.beat())
        .map_err(|e| Error::new(Code::System, "Cannot start a thread").because(e));
    let result = thread.and_then(|thread| {
        let result = work(&running);
        shared.state().over = true;
        shared.ended.notify_all();
        // The thread ends at once; a panic in it would have been one of the catalog's.
        let _joined = thread.join();
        result
    });
    running.finish(result)
}

impl Running<'_> {
    /// The job's id.
    pub fn id(&self) -> JobId {
        self.job.id
    }

    /// What kind of job it is.
    pub fn kind(&self) -> JobKind {
        self.job.kind
    }

    /// What the work is to look at.
    pub fn cancel(&self) -> &Cancel {
        self.cancel
    }

    /// Fails when the work must not be committed: stopped, or no longer this process's.
    pub fn still_ours(&self) -> Result<()> {
        self.cancel.check().map_err(|e| if self.lost() { self.lease_lost() } else { e })?;
        if self.catalog.watch_job(&self.job.id, self.job.token)? {
            self.cancel.cancel();
            return self.cancel.check();
        }
        Ok(())
    }

    /// Adds a line to the job's log.
    pub fn log(&self, text: impl Into<String>) {
        let mut state = self.shared.state();
        state.logged += 1;
        if state.logged <= LOG_MAX {
            let line = LogLine { time: self.clock.now(), text: text.into() };
            state.work.log.push(line);
        }
    }

    /// Whether the lease is known to be gone: what the work holds elsewhere may be somebody else's by now.
    pub fn lease_is_lost(&self) -> bool {
        self.lost()
            || self
                .catalog
                .watch_job(&self.job.id, self.job.token)
                .is_err_and(|e| e.code() == Code::LeaseLost)
    }

    fn lost(&self) -> bool {
        self.shared.lost.load(Ordering::SeqCst)
    }

    fn lease_lost(&self) -> Error {
        Error::new(
            Code::LeaseLost,
            format!("The lease of job {} was lost while it worked", self.job.id.short()),
        )
    }

    /// Writes how the job ended and gives the caller the result.
    fn finish<T>(self, result: Result<Done<T>>) -> Result<T> {
        let result = match result {
            Err(e) if e.code() == Code::Cancelled && self.lost() => Err(self.lease_lost()),
            other => other,
        };
        let mut work = self.shared.take_work();
        if let Some(step) = work.steps.last_mut() {
            step.ended.get_or_insert(self.clock.now());
        }
        let end = match &result {
            Ok(done) => End {
                state: JobState::Succeeded,
                message: Some(done.message.clone()),
                code: done.partial.map(|c| c.as_str().to_owned()),
            },
            Err(e) => End {
                state: if e.code() == Code::Cancelled { JobState::Cancelled } else { JobState::Failed },
                message: Some(e.message().to_owned()),
                code: Some(e.code().as_str().to_owned()),
            },
        };
        let ended = self.catalog.end_job(&self.job.id, self.job.token, &work, &end);
        match (result, ended) {
            (Err(e), _) => Err(e),
            // What was done is done and in the vault; only the record says "interrupted".
            (Ok(done), Err(e)) if e.code() == Code::LeaseLost => Ok(done.value),
            (Ok(done), Err(e)) => Err(e.context(format!(
                "The work is done ({}), but its record could not be written",
                done.message
            ))),
            (Ok(done), Ok(())) => Ok(done.value),
        }
    }
}

impl Progress for Running<'_> {
    fn phase(&self, phase: Phase) {
        let now = self.clock.now();
        {
            let mut state = self.shared.state();
            if let Some(step) = state.work.steps.last_mut() {
                step.ended.get_or_insert(now);
            }
            state.work.steps.push(Step { name: phase_name(phase).to_owned(), started: now, ended: None });
        }
        self.outer.phase(phase);
    }

    fn done(&self, files: u64, bytes: u64) {
        {
            let progress: &mut Counts = &mut self.shared.state().work.progress;
            progress.files += files;
            progress.bytes += bytes;
        }
        self.outer.done(files, bytes);
    }

    fn expect(&self, files: u64, bytes: u64) {
        {
            let progress = &mut self.shared.state().work.progress;
            progress.total_files += files;
            progress.total_bytes += bytes;
        }
        self.outer.expect(files, bytes);
    }

    fn problem(&self, problem: &Problem) {
        self.log(format!("{}: {}", problem.path, problem.detail));
        self.outer.problem(problem);
    }
}

/// What a phase is called in a job's steps and on screen.
#[must_use]
pub fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Opening => "Opening the vault",
        Phase::Reading => "Reading files",
        Phase::Committing => "Writing the point",
        Phase::Planning => "Planning",
        Phase::Restoring => "Restoring files",
        Phase::Checking => "Checking the vault",
        Phase::Repacking => "Moving data together",
        Phase::Removing => "Removing",
        Phase::Copying => "Copying",
        Phase::Securing => "Taking the safety point",
        Phase::Stopping => "Stopping the app",
        Phase::Applying => "Putting files in place",
        Phase::Starting => "Starting the app",
        Phase::Dumping => "Reading a database",
        Phase::Loading => "Filling a new database",
        _ => "Working",
    }
}

/// The thread that keeps a job's lease.
struct Pulse {
    id: JobId,
    token: i64,
    catalog: Arc<dyn Catalog>,
    cancel: Cancel,
    shared: Arc<Shared>,
}

impl Pulse {
    fn beat(self) {
        let mut renewed = Instant::now();
        loop {
            let state = self.shared.state();
            let (state, _) = self
                .shared
                .ended
                .wait_timeout_while(state, WATCH, |s| !s.over)
                .unwrap_or_else(PoisonError::into_inner);
            if state.over {
                return;
            }
            drop(state);
            let due = renewed.elapsed() >= RENEW;
            let asked = if due {
                let work = self.shared.take_work();
                let answer = self.catalog.renew_job(&self.id, self.token, &work);
                if answer.as_ref().is_err_and(|e| e.code() != Code::LeaseLost) {
                    // Not stored: these lines go with the next renewal.
                    self.shared.state().work.log.splice(0..0, work.log);
                }
                answer
            } else {
                self.catalog.watch_job(&self.id, self.token)
            };
            match asked {
                Ok(stop) => {
                    if due {
                        renewed = Instant::now();
                    }
                    if stop {
                        self.cancel.cancel();
                    }
                }
                // Not to be reached for a while: the lease still holds, so it is tried again until it is over.
                Err(e) if e.code() != Code::LeaseLost && renewed.elapsed() < LEASE => {}
                Err(_) => {
                    self.shared.lost.store(true, Ordering::SeqCst);
                    self.cancel.cancel();
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_catalog::{Sqlite, SystemClock};
    use backstay_model::Silent;

    struct Place {
        catalog: Arc<dyn Catalog>,
        clock: Arc<dyn Clock>,
        _dir: tempfile::TempDir,
    }

    fn place() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let catalog = Arc::new(Sqlite::open(&dir.path().join("hosting.db"), Arc::clone(&clock)).unwrap());
        Place { catalog, clock, _dir: dir }
    }

    fn task(app: &AppName) -> Task<'_> {
        Task { kind: JobKind::Backup, app: Some(app), exclusive: true }
    }

    fn wait_for_stop(job: &Running<'_>) -> Result<Done<()>> {
        let started = Instant::now();
        while !job.cancel().is_cancelled() {
            assert!(started.elapsed() < Duration::from_secs(30), "nobody stopped the work");
            std::thread::sleep(Duration::from_millis(20));
        }
        job.cancel().check().map(|()| Done { value: (), message: String::new(), partial: None })
    }

    #[test]
    fn what_was_done_is_in_the_record_and_the_app_is_busy_meanwhile() {
        let p = place();
        let blog = AppName::suggest("blog");
        let id = run(&p.catalog, &p.clock, &task(&blog), (&Silent, &Cancel::new()), |job| {
            job.phase(Phase::Reading);
            job.done(2, 10);
            job.expect(5, 50);
            job.phase(Phase::Committing);
            job.log("a line");
            let again =
                run(&p.catalog, &p.clock, &task(&blog), (&Silent, &Cancel::new()), |_| -> Result<Done<()>> {
                    panic!("must not run");
                });
            assert_eq!(again.unwrap_err().code(), Code::AppBusy);
            job.still_ours()?;
            Ok(Done { value: job.id(), message: "ok".into(), partial: Some(Code::PartiallySucceeded) })
        })
        .unwrap();
        let job = p.catalog.job(&id).unwrap().unwrap();
        assert_eq!(job.state, JobState::Succeeded);
        assert_eq!(job.code.as_deref(), Some("PartiallySucceeded"));
        assert_eq!((job.progress.files, job.progress.total_bytes), (2, 50));
        let steps: Vec<_> = job.steps.iter().map(|s| (s.name.as_str(), s.ended.is_some())).collect();
        assert_eq!(steps, [("Reading files", true), ("Writing the point", true)]);
        assert_eq!(p.catalog.job_log(&id).unwrap()[0].text, "a line");
    }

    #[test]
    fn a_request_to_stop_reaches_the_work_and_the_record() {
        let p = place();
        let blog = AppName::suggest("blog");
        let cancel = Cancel::new();
        let result = run(&p.catalog, &p.clock, &task(&blog), (&Silent, &cancel), |job| {
            p.catalog.cancel_job(&job.id()).unwrap();
            wait_for_stop(job)
        });
        assert_eq!(result.unwrap_err().code(), Code::Cancelled);
        assert_eq!(p.catalog.jobs(1).unwrap()[0].state, JobState::Cancelled);
    }

    #[test]
    fn work_whose_lease_is_gone_is_told_to_stop_and_says_so() {
        let p = place();
        let blog = AppName::suggest("blog");
        let result = run(&p.catalog, &p.clock, &task(&blog), (&Silent, &Cancel::new()), |job| {
            let end = End { state: JobState::Failed, message: None, code: None };
            p.catalog.end_job(&job.id(), job.job.token, &Work::default(), &end).unwrap();
            assert_eq!(job.still_ours().unwrap_err().code(), Code::LeaseLost);
            wait_for_stop(job)
        });
        assert_eq!(result.unwrap_err().code(), Code::LeaseLost);
        assert_eq!(p.catalog.jobs(1).unwrap()[0].state, JobState::Failed);
    }
}
