//! The command runtime: a process that Backstay starts.
//!
//! Invariants: there is at most one instance. The record is written first (without a process), then a shell is started
//! that waits for one word; its number and start time are recorded; only then it gets the word and becomes the app.
//! Killed anywhere before that, the shell reads an end of file and is gone: what was never recorded never runs. The
//! app leads a session of its own and carries a random word in its environment; what belongs to the session, or
//! carries the word, is the app, also when its leader has ended.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use backstay_model::app::{CommandLine, CommandRuntime, StopSignal};
use backstay_model::{Cancel, Code, Error, Result};
use rustix::process::Signal;

use crate::app::{Condition, Runtime, State};
use crate::proc::{self, Seen};
use crate::record::{Leader, Record};
use crate::{child, log, session};

/// The variable with the word by which the app's processes are known.
const TOKEN: &str = "BACKSTAY_RUN";
/// Waits for the word, then becomes the command. Its number and start time stay the same.
const GATE: &str = r#"IFS= read -r word && [ "$word" = go ] && exec "$@" < /dev/null; exit 1"#;
/// How long a process must run before it counts as started.
const SETTLE: Duration = Duration::from_millis(400);
/// How long is waited for processes to be gone after they were killed.
const KILLED: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(25);
/// Bytes of the log that an error repeats.
const TOLD: u64 = 2_000;

/// The processes of the app that run.
pub(crate) fn members(record: &Record) -> Result<Vec<Seen>> {
    if record.boot != proc::boot() {
        return Ok(Vec::new());
    }
    if record.space != proc::space() {
        let message = "The app was started from another container, whose processes cannot be seen from here";
        return Err(Error::new(Code::RuntimeUnavailable, message)
            .advise("Start and stop the app where it was started, or stop it by hand."));
    }
    let all = proc::all().map_err(|e| Error::new(Code::System, "Cannot look at processes").because(e))?;
    // While the leader is there, ended or not, its session's number is its own.
    let session = record
        .leader
        .filter(|leader| all.iter().any(|p| p.pid == leader.pid && p.start == leader.start))
        .map(|leader| leader.pid);
    let word = format!("{TOKEN}={}", record.token);
    let ours = |p: &Seen| !p.zombie && (Some(p.session) == session || proc::has_variable(p.pid, &word));
    Ok(all.into_iter().filter(ours).collect())
}

/// Whether the app runs.
pub(crate) fn state(app: &Runtime) -> Result<Condition> {
    let Some(record) = Record::load(&app.run)? else { return Ok(Condition::of(State::Stopped)) };
    let members = members(&record)?;
    if members.is_empty() {
        let detail = match (record.stopping, record.boot == proc::boot()) {
            (true, _) => return Ok(Condition::of(State::Stopped)),
            (false, false) => "It ran when the machine was shut down".to_owned(),
            (false, true) => "It ended by itself".to_owned(),
        };
        return Ok(Condition {
            detail: Some(detail),
            since: Some(record.started),
            ..Condition::of(State::Failed)
        });
    }
    let leader = record.leader.map(|l| l.pid).filter(|pid| members.iter().any(|m| m.pid == *pid));
    let pid = leader.or_else(|| members.first().map(|m| m.pid)).and_then(|pid| u32::try_from(pid).ok());
    let since = Some(record.started);
    Ok(Condition { pid, since, detail: None, ..Condition::of(State::Running) })
}

/// Starts the app unless it runs. The caller holds the app's lock. True when it was started by this.
pub(crate) fn start(app: &Runtime, it: &CommandRuntime, restarts: u32, cancel: &Cancel) -> Result<bool> {
    let runs = match Record::load(&app.run)? {
        Some(record) if !members(&record)?.is_empty() => Some(record),
        _ => None,
    };
    match runs {
        Some(record) if !record.stopping => return Ok(false),
        // A stop that was not brought to its end.
        Some(_) => stop(app, it, cancel).map(|_ran| ())?,
        None => {}
    }
    cancel.check()?;
    let mut record = Record::new(random_word()?, restarts);
    let mut command = command(app, it, &record.token)?;
    let before = log::length(&app.run);
    record.save(&app.run)?;
    let started =
        launch(&mut command, app, &mut record).and_then(|child| settle(app, child, &record, before));
    if started.is_err() {
        Record::remove(&app.run)?;
    }
    started.map(|()| true)
}

/// Stops the app: asks every process of it, waits, then kills what is left. The caller holds the app's lock. True when
/// it ran.
pub(crate) fn stop(app: &Runtime, it: &CommandRuntime, cancel: &Cancel) -> Result<bool> {
    let Some(mut record) = Record::load(&app.run)? else { return Ok(false) };
    let first = members(&record)?;
    if !first.is_empty() {
        record.stopping = true;
        record.save(&app.run)?;
        send(&app.name.to_string(), &first, signal(it.stop_signal))?;
        if !gone(&record, it.grace, Some(cancel))? {
            let asked = Instant::now();
            while !gone(&record, TICK, None)? {
                if asked.elapsed() > KILLED {
                    let left = members(&record)?;
                    let pids: Vec<String> = left.iter().map(|m| m.pid.to_string()).collect();
                    let message =
                        format!("App `{}` does not end, even killed (process {})", app.name, pids.join(", "));
                    return Err(Error::new(Code::AppStopFailed, message));
                }
                // Again each time: what was killed may have started others in between.
                send(&app.name.to_string(), &members(&record)?, Signal::KILL)?;
            }
        }
    }
    Record::remove(&app.run)?;
    Ok(!first.is_empty())
}

fn send(app: &str, members: &[Seen], signal: Signal) -> Result<()> {
    members.iter().try_for_each(|member| {
        proc::signal(member, signal).map_err(|e| {
            let message = format!("Cannot signal process {} of app `{app}`", member.pid);
            Error::new(Code::AppStopFailed, message).because(e)
        })
    })
}

/// Waits until nothing of the app runs; false when the time is up.
fn gone(record: &Record, limit: Duration, cancel: Option<&Cancel>) -> Result<bool> {
    let started = Instant::now();
    loop {
        if members(record)?.is_empty() {
            return Ok(true);
        }
        cancel.map_or(Ok(()), Cancel::check)?;
        if started.elapsed() >= limit {
            return Ok(false);
        }
        std::thread::sleep(TICK);
    }
}

fn signal(signal: StopSignal) -> Signal {
    match signal {
        StopSignal::Term => Signal::TERM,
        StopSignal::Int => Signal::INT,
        StopSignal::Quit => Signal::QUIT,
        StopSignal::Hup => Signal::HUP,
        StopSignal::Usr1 => Signal::USR1,
        StopSignal::Usr2 => Signal::USR2,
        StopSignal::Winch => Signal::WINCH,
    }
}

/// Whether the system has an account of that name.
#[must_use]
pub fn has_account(name: &str) -> bool {
    nix::unistd::User::from_name(name).is_ok_and(|user| user.is_some())
}

fn random_word() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::new(Code::System, "The system gives no random numbers").because(e.to_string()))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

fn cannot_start(app: &Runtime, why: &str) -> Error {
    Error::new(Code::AppStartFailed, format!("App `{}` cannot be started: {why}", app.name))
}

/// The gate with the command behind it.
fn command(app: &Runtime, it: &CommandRuntime, token: &str) -> Result<Command> {
    let folder = it.folder.as_ref().map_or_else(|| app.home.clone(), |f| app.home.join(f));
    if !folder.is_dir() {
        return Err(cannot_start(app, &format!("{} is not a folder", folder.display())));
    }
    let words = match &it.command {
        CommandLine::Line(line) => vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()],
        CommandLine::Words(words) => words.clone(),
    };
    let mut gate = vec!["/bin/sh".to_owned(), "-c".to_owned(), GATE.to_owned(), "backstay-start".to_owned()];
    gate.extend(words);
    let mut command = child::clean(&CommandLine::Words(gate));
    // Whatever the app's configuration names by itself comes later and wins.
    for (name, value) in app.environment.variables()? {
        command.env(name, value.reveal());
    }
    if let Some(name) = &it.user {
        let user = nix::unistd::User::from_name(name)
            .map_err(|e| cannot_start(app, &format!("user `{name}` cannot be looked up")).because(e))?
            .ok_or_else(|| cannot_start(app, &format!("there is no user `{name}`")))?;
        command.env("HOME", &user.dir).env("USER", name).env("LOGNAME", name);
        if user.uid.as_raw() != rustix::process::geteuid().as_raw() {
            // Other groups of ours are given up with this.
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
    }
    if let Some(file) = &it.env_file {
        command.envs(variables(app, &app.home.join(file))?);
    }
    command.envs(&it.env).env(TOKEN, token).current_dir(&folder);
    Ok(command)
}

/// `NAME=VALUE` lines; empty lines and those that begin with `#` are left out; quotes around a value are taken off.
fn variables(app: &Runtime, file: &PathBuf) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(file)
        .map_err(|e| cannot_start(app, &format!("{} cannot be read", file.display())).because(e))?;
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines().map(str::trim)) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let pair = line.split_once('=').map(|(name, value)| (name.trim(), value.trim()));
        let Some((name, value)) = pair.filter(|(name, _)| !name.is_empty() && !name.contains(' ')) else {
            let why = format!("line {number} of {} is not NAME=VALUE", file.display());
            return Err(cannot_start(app, &why));
        };
        let bare = ['"', '\''].iter().find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q));
        found.push((name.to_owned(), bare.unwrap_or(value).to_owned()));
    }
    Ok(found)
}

/// Starts the gate, records it and lets it go.
fn launch(command: &mut Command, app: &Runtime, record: &mut Record) -> Result<Child> {
    let out = log::open(&app.run)?;
    let failed = |e: std::io::Error| cannot_start(app, "the shell cannot be run").because(e);
    let err = out.try_clone().map_err(failed)?;
    command.stdin(Stdio::piped()).stdout(out).stderr(err);
    let mut child = session::lead_new(command).spawn().map_err(failed)?;
    let seen = i32::try_from(child.id()).ok().and_then(proc::look);
    let released = seen.ok_or_else(|| cannot_start(app, "its process cannot be seen")).and_then(|seen| {
        record.leader = Some(Leader { pid: seen.pid, start: seen.start });
        record.save(&app.run)?;
        let mut gate = child.stdin.take().ok_or_else(|| cannot_start(app, "the shell has no input"))?;
        gate.write_all(b"go\n").map_err(failed)
    });
    if let Err(e) = released {
        drop(child.stdin.take());
        // Without its word it ends by itself.
        child.wait().map_err(failed)?;
        return Err(e);
    }
    Ok(child)
}

/// Waits until the process has run for a moment. One that hands over to others and ends well is fine.
fn settle(app: &Runtime, mut child: Child, record: &Record, log_before: u64) -> Result<()> {
    let started = Instant::now();
    let failed = |e: std::io::Error| cannot_start(app, "its process cannot be waited for").because(e);
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if started.elapsed() >= SETTLE {
            // Somebody must collect it when it ends, as long as this process lives. A thread that cannot be made
            // leaves that to the system, once this process has ended.
            let collect = move || child.wait().map(|_status| ());
            let _thread = std::thread::Builder::new().name("app".to_owned()).spawn(collect);
            return Ok(());
        }
        std::thread::sleep(TICK);
    };
    if status.success() && !members(record)?.is_empty() {
        return Ok(());
    }
    for left in members(record)? {
        send(&app.name.to_string(), &[left], Signal::KILL)?;
    }
    let why = format!("it ended at once with {}", child::status_text(status));
    let written = log::length(&app.run).saturating_sub(log_before);
    let said = log::tail(&app.run, written.min(TOLD))?;
    let error = cannot_start(app, &why);
    Err(if said.is_empty() { error } else { error.because(said) })
}

/// The log of the app, for messages.
pub(crate) fn log_path(run: &Path) -> PathBuf {
    run.join("log")
}
