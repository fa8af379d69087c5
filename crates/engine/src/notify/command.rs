//! Programs that are given a message.
//!
//! Invariants: the program gets the message as JSON on standard input and a few words in its environment, nothing
//! else of ours (its environment is cleared but for PATH, HOME and LANG). It and what it started in its process group
//! are ended when it takes longer than the limit.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use backstay_model::{Code, Error, Result};
use rustix::process::{Pid, Signal, kill_process_group};

use super::{LIMIT, Message};
use crate::config::Command;

/// How often it is looked whether the program has ended.
const LOOK: Duration = Duration::from_millis(20);

/// Runs the program with the message; an error when it fails or takes too long.
pub(super) fn run(command: &Command, message: &Message) -> Result<()> {
    let Some((program, arguments)) = command.run.split_first() else {
        return Err(Error::new(Code::InvalidValue, "A command of notify names no program"));
    };
    let failed = |what: &str| Error::new(Code::NotifyFailed, format!("{program} {what}"));
    let mut process = std::process::Command::new(program);
    process.args(arguments).env_clear().process_group(0);
    for name in ["PATH", "HOME", "LANG"] {
        process.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    let event = serde_json::to_value(message.event).ok();
    process.env("BACKSTAY_EVENT", event.as_ref().and_then(|e| e.as_str()).unwrap_or_default());
    process.env("BACKSTAY_KIND", &message.kind).env("BACKSTAY_SUBJECT", &message.subject);
    process.env("BACKSTAY_APP", message.app.as_ref().map_or("", |a| a.as_str()));
    // What the program says goes where this one's messages go; standard output is for data.
    process.stdin(Stdio::piped()).stdout(Stdio::null());
    let json = message.json()?;
    let mut child = process.spawn().map_err(|e| failed("cannot be started").because(e))?;
    if let Some(mut input) = child.stdin.take() {
        // Well below what a pipe takes at once. A program that does not read is none of our business.
        let _unread = input.write_all(json.as_bytes());
    }
    let status = wait(&mut child).map_err(|e| failed("cannot be waited for").because(e))?;
    match status {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(failed(&format!("ended with {status}"))),
        None => Err(failed(&format!("took longer than {} s", LIMIT.as_secs()))),
    }
}

/// The status with which the program ended; none when it had to be ended.
fn wait(child: &mut Child) -> std::io::Result<Option<std::process::ExitStatus>> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if started.elapsed() >= LIMIT {
            if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                // It may have ended just now.
                let _gone = kill_process_group(group, Signal::KILL);
            }
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}
