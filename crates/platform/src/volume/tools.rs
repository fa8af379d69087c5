//! The system's own programs for volumes.

use std::ffi::{OsStr, OsString};
use std::io;
use std::process::Command;
use std::time::Duration;

use backstay_model::{Cancel, Code, Error, Result};

use super::failed;
use crate::child::{self, Ended, status_text};

/// Longest that a tool may take which can be stopped.
const LIMIT: Duration = Duration::from_mins(5);
/// Where such programs are, also where PATH (that of cron, say) does not name it.
const FOLDERS: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// A call of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub program: &'static str,
    pub args: Vec<OsString>,
    /// It must not be stopped in the middle.
    pub whole: bool,
}

impl Call {
    pub fn new(program: &'static str) -> Self {
        Call { program, args: Vec::new(), whole: false }
    }

    /// With words that are options or names which cannot be taken for such.
    pub fn words(mut self, words: &[&str]) -> Self {
        self.args.extend(words.iter().map(OsString::from));
        self
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub fn whole(self) -> Self {
        Call { whole: true, ..self }
    }

    /// The call as a person would type it, for messages: the program and what it is to do.
    pub fn shown(&self) -> String {
        let verbs = self.args.iter().take_while(|a| !a.to_string_lossy().starts_with(['-', '/']));
        let verbs: Vec<_> = verbs.take(2).map(|a| a.to_string_lossy()).collect();
        [&[self.program.into()], verbs.as_slice()].concat().join(" ")
    }
}

/// Who runs them.
pub(super) trait Tools {
    /// Runs one to its end and gives what it wrote; `VolumeSnapshotFailed` with that where it did not end well.
    fn run(&self, call: &Call, cancel: &Cancel) -> Result<String>;
}

/// This machine's.
pub(super) struct Host;

impl Tools for Host {
    fn run(&self, call: &Call, cancel: &Cancel) -> Result<String> {
        let mut command = Command::new(call.program);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = [path.as_os_str(), FOLDERS.as_ref()].join(OsStr::new(":"));
        command.args(&call.args).env("PATH", folders).env("LC_ALL", "C").env_remove("BACKSTAY_HOME");
        command.current_dir("/");
        let ended =
            if call.whole { child::run_whole(&mut command) } else { child::run(&mut command, LIMIT, cancel) };
        judge(call, ended)
    }
}

fn judge(call: &Call, ended: Result<Ended>) -> Result<String> {
    let shown = call.shown();
    let ended = ended.map_err(|e| {
        let cause = std::error::Error::source(&e).and_then(|s| s.downcast_ref::<io::Error>());
        match cause.map(io::Error::kind) {
            _ if e.code() == Code::Cancelled => e,
            Some(io::ErrorKind::NotFound) => failed(format!("`{}` is not installed", call.program))
                .advise(format!("Install the package that holds `{}`.", call.program)),
            _ => failed(format!("`{shown}` cannot be run")).because(e),
        }
    })?;
    let output = ended.output.text();
    if ended.status.success() && !ended.late {
        return Ok(output);
    }
    let how = match ended.late {
        true => format!("took longer than {} s and was stopped", LIMIT.as_secs()),
        false => format!("ended with {}", status_text(ended.status)),
    };
    Err(told(failed(format!("`{shown}` {how}")), &output))
}

/// With what the tool said, on one line.
fn told(error: Error, output: &str) -> Error {
    let said: Vec<&str> = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if said.is_empty() { error } else { error.because(said.join("; ")) }
}
