//! Units of systemd, through `systemctl`.
//!
//! Invariants: no question is asked (`--no-ask-password`); names of units come after `--`, so none can be an option.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use backstay_model::{Cancel, Code, Error, Result};

use crate::app::{Condition, State};
use crate::child::{self, Ended, status_text};

const PROGRAM: &str = "systemctl";
/// Time for a question.
const ASK: Duration = Duration::from_secs(20);
/// Time for starting or stopping: longer than what systemd itself allows a unit by default.
const ACT: Duration = Duration::from_secs(120);
/// How long a unit must stay up to count as started.
const SETTLE: Duration = Duration::from_millis(400);

/// A unit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unit<'a> {
    pub unit: &'a str,
    /// Whether it is one of the user's own service manager.
    pub user: bool,
}

impl Unit<'_> {
    fn call(&self, args: &[&str], limit: Duration, cancel: &Cancel) -> Result<Ended> {
        let mut all = vec!["--no-ask-password", "--no-pager"];
        if self.user {
            all.push("--user");
        }
        all.extend_from_slice(args);
        all.extend_from_slice(&["--", self.unit]);
        let ended = child::tool(PROGRAM, &all, limit, cancel)?;
        let said = ended.output.text();
        let unreachable = [
            "Failed to connect to bus",
            "not been booted with systemd",
            "Failed to connect to system scope bus",
        ];
        if !ended.status.success() && unreachable.iter().any(|text| said.contains(text)) {
            return Err(Error::new(Code::RuntimeUnavailable, "systemd does not answer").because(said));
        }
        Ok(ended)
    }

    /// The properties of the unit that are asked about.
    fn show(&self, cancel: &Cancel) -> Result<HashMap<String, String>> {
        let properties = "--property=LoadState,ActiveState,SubState,MainPID,Result";
        let ended = self.call(&["show", properties], ASK, cancel)?;
        let said = ended.output.text();
        if ended.late || !ended.status.success() {
            let message = format!("Nothing can be learned about unit `{}`", self.unit);
            return Err(Error::new(Code::RuntimeUnavailable, message).because(said));
        }
        let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        Ok(said.lines().filter_map(pair).collect())
    }

    pub fn state(&self, cancel: &Cancel) -> Result<Condition> {
        let show = self.show(cancel)?;
        let get = |name: &str| show.get(name).map_or("", String::as_str);
        if get("LoadState") != "loaded" {
            let load = get("LoadState");
            let detail = Some(format!("unit `{}` is not loaded: {load}", self.unit));
            return Ok(Condition { detail, ..Condition::of(State::Failed) });
        }
        let state = match get("ActiveState") {
            "active" | "reloading" | "activating" | "refreshing" => State::Running,
            "inactive" | "deactivating" => State::Stopped,
            _ => State::Failed,
        };
        let pid = get("MainPID").parse().ok().filter(|pid| *pid > 0);
        let detail = match state {
            State::Failed => {
                Some(format!("unit `{}` is {}: {}", self.unit, get("ActiveState"), get("Result")))
            }
            _ if get("ActiveState") == "active" || state == State::Stopped => None,
            _ => Some(format!("unit `{}` is {}", self.unit, get("ActiveState"))),
        };
        Ok(Condition { pid, detail, ..Condition::of(state) })
    }

    pub fn start(&self, cancel: &Cancel) -> Result<bool> {
        if self.state(cancel)?.state == State::Running {
            return Ok(false);
        }
        self.act("start", Code::AppStartFailed, cancel)?;
        let started = Instant::now();
        loop {
            let now = self.state(cancel)?;
            let up = now.state == State::Running;
            if !up {
                let why =
                    now.detail.unwrap_or_else(|| format!("unit `{}` is {}", self.unit, now.state.word()));
                return Err(Error::new(Code::AppStartFailed, format!("Started, but {why}"))
                    .advise(format!("See `journalctl --unit {}`.", self.unit)));
            }
            if started.elapsed() >= SETTLE {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn stop(&self, cancel: &Cancel) -> Result<bool> {
        let before = self.state(cancel)?;
        self.act("stop", Code::AppStopFailed, cancel)?;
        match self.state(cancel)?.state {
            State::Running => {
                Err(Error::new(Code::AppStopFailed, format!("Unit `{}` runs again", self.unit))
                    .advise("Something starts it (a socket, a timer, another unit). Stop that first."))
            }
            _ => Ok(before.state == State::Running),
        }
    }

    fn act(&self, verb: &str, code: Code, cancel: &Cancel) -> Result<()> {
        let ended = self.call(&[verb], ACT, cancel)?;
        if ended.status.success() && !ended.late {
            return Ok(());
        }
        let how = if ended.late {
            format!("took longer than {} s", ACT.as_secs())
        } else {
            format!("ended with {}", status_text(ended.status))
        };
        Err(Error::new(code, format!("`systemctl {verb}` of unit `{}` {how}", self.unit))
            .because(ended.output.text()))
    }
}
