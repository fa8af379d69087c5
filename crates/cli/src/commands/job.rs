//! `backstay job …`

use backstay_engine::{Engine, LogLine};
use backstay_model::{Job, JobKind, JobState, Result};
use serde::Serialize;

use crate::args;
use crate::failure::say;
use crate::out::Out;
use crate::text::{self, Table, count, duration, size};

#[derive(Serialize)]
struct Jobs {
    jobs: Vec<Job>,
}

#[derive(Serialize)]
struct OneJob {
    job: Job,
}

#[derive(Serialize)]
struct Log {
    job: String,
    lines: Vec<LogLine>,
}

/// Runs one of the commands.
pub fn run(engine: &Engine, command: args::Job, out: &mut Out) -> Result<u8> {
    match command {
        args::Job::List { limit } => list(engine, limit, out),
        args::Job::Show { id } => {
            let job = engine.job(&id)?;
            out.either(&OneJob { job }, |j| details(&j.job)).map(|()| 0)
        }
        args::Job::Log { id } => {
            let job = engine.job(&id)?;
            let log = Log { job: job.id.to_string(), lines: engine.job_log(&job)? };
            let line = |l: &LogLine| format!("{}  {}\n", text::time(l.time), l.text);
            out.either(&log, |log| log.lines.iter().map(line).collect()).map(|()| 0)
        }
        args::Job::Cancel { id } => {
            let job = engine.job_cancel(&engine.job(&id)?)?;
            say(format!("Job {} was asked to stop.", job.id.short()));
            if out.json { out.value(&OneJob { job }).map(|()| 0) } else { Ok(0) }
        }
    }
}

fn list(engine: &Engine, limit: u32, out: &mut Out) -> Result<u8> {
    let jobs = engine.jobs(limit)?;
    if jobs.is_empty() {
        say(format!("No jobs in the state {}.", engine.state().display()));
    }
    out.either(&Jobs { jobs }, |j| if j.jobs.is_empty() { String::new() } else { table(&j.jobs) })?;
    Ok(0)
}

/// One word for people.
pub fn state(state: JobState) -> &'static str {
    match state {
        JobState::Queued => "queued",
        JobState::Running => "running",
        JobState::Succeeded => "succeeded",
        JobState::Failed => "failed",
        JobState::Cancelled => "cancelled",
    }
}

/// The kind as one word.
pub fn kind(job: &Job) -> String {
    match job.kind {
        JobKind::CustomBackup => "custom backup".to_owned(),
        kind => format!("{kind:?}").to_lowercase(),
    }
}

fn took(job: &Job) -> String {
    let ended = job.ended.and_then(|ended| ended.duration_since(job.started?).try_into().ok());
    ended.map(duration).unwrap_or_default()
}

fn table(jobs: &[Job]) -> String {
    let mut table = Table::new(&["JOB", "KIND", "APP", "STATE", "STARTED", " TOOK", "MESSAGE"]);
    for job in jobs {
        let partial = job.state == JobState::Succeeded && job.code.is_some();
        table.row([
            job.id.short(),
            kind(job),
            job.app.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
            if partial { "partial".to_owned() } else { state(job.state).to_owned() },
            job.started.map(text::time).unwrap_or_default(),
            took(job),
            job.message.clone().unwrap_or_default(),
        ]);
    }
    table.to_string()
}

fn details(job: &Job) -> String {
    let mut rows = vec![
        ("Job", job.id.to_string()),
        ("Kind", kind(job)),
        ("App", job.app.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string)),
        ("State", state(job.state).to_owned()),
        ("Created", text::time(job.created)),
    ];
    let times = [("Started", job.started), ("Ended", job.ended), ("Lease until", job.lease_until)];
    rows.extend(times.into_iter().filter_map(|(name, time)| Some((name, text::time(time?)))));
    if job.progress.files > 0 || job.progress.bytes > 0 {
        rows.push(("Done", format!("{}, {}", count(job.progress.files, "file"), size(job.progress.bytes))));
    }
    rows.extend(job.message.clone().map(|m| ("Message", m)));
    rows.extend(job.code.clone().map(|c| ("Code", c)));
    rows.push(("Owner", job.owner.clone()));
    let steps = job.steps.iter().map(|s| {
        let took = s.ended.and_then(|e| e.duration_since(s.started).try_into().ok()).map(duration);
        ("Step", format!("{}  {}", s.name, took.unwrap_or_else(|| "not ended".to_owned())))
    });
    rows.extend(steps);
    rows.iter().map(|(name, value)| format!("{name:<12}{value}\n")).collect()
}
