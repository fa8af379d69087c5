//! The services of a compose file, through `docker compose`.
//!
//! Invariants: services are stopped, never removed (`stop`, not `down`), so containers keep what they hold. What was
//! never made is made by a start (`up`), what exists is started as it is.

use std::time::{Duration, Instant};

use backstay_model::{Cancel, Code, Error, Result};
use serde::Deserialize;

use crate::app::{Condition, State};
use crate::child::{self, Ended, status_text};

const PROGRAM: &str = "docker";
/// Time for a question.
const ASK: Duration = Duration::from_secs(30);
/// Time for stopping.
const STOP: Duration = Duration::from_secs(120);
/// Time for starting, which may have to fetch images.
const START: Duration = Duration::from_mins(10);
/// How long services must stay up to count as started.
const SETTLE: Duration = Duration::from_millis(800);

/// The services of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Services<'a> {
    pub file: &'a str,
    pub project: Option<&'a str>,
}

/// What `docker compose ps` tells about a container.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Container {
    #[serde(default)]
    service: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    exit_code: i64,
}

impl Container {
    fn is_up(&self) -> bool {
        matches!(self.state.as_str(), "running" | "restarting" | "paused")
    }

    /// Down, and not because it was done (0) or stopped (130, 137, 143).
    fn has_failed(&self) -> bool {
        self.state == "dead" || (self.state == "exited" && !matches!(self.exit_code, 0 | 130 | 137 | 143))
    }
}

impl Services<'_> {
    fn call(&self, args: &[&str], limit: Duration, cancel: &Cancel) -> Result<Ended> {
        let mut all = vec!["compose", "--file", self.file];
        if let Some(project) = self.project {
            all.extend_from_slice(&["--project-name", project]);
        }
        all.extend_from_slice(args);
        let ended = child::tool(PROGRAM, &all, limit, cancel)?;
        let said = ended.output.text();
        let unreachable = [
            "Cannot connect to the Docker daemon",
            "permission denied while trying to connect",
            // Without the compose plugin, docker takes its words for its own.
            "is not a docker command",
            "unknown command: docker compose",
            "unknown flag: --file",
        ];
        if !ended.status.success() && unreachable.iter().any(|text| said.contains(text)) {
            return Err(Error::new(Code::RuntimeUnavailable, "`docker compose` cannot be used").because(said));
        }
        Ok(ended)
    }

    fn containers(&self, cancel: &Cancel) -> Result<Vec<Container>> {
        let ended = self.call(&["ps", "--all", "--format", "json"], ASK, cancel)?;
        let said = ended.output.text();
        if ended.late || !ended.status.success() {
            let message = format!("Nothing can be learned about the services of {}", self.file);
            return Err(Error::new(Code::RuntimeUnavailable, message).because(said));
        }
        parse(&said).map_err(|e| {
            let message = "`docker compose ps` answers with something else than containers";
            Error::new(Code::RuntimeUnavailable, message).because(e)
        })
    }

    pub fn state(&self, cancel: &Cancel) -> Result<Condition> {
        let all = self.containers(cancel)?;
        let names = |which: fn(&Container) -> bool| {
            all.iter().filter(|c| which(c)).map(|c| c.service.as_str()).collect::<Vec<_>>().join(", ")
        };
        let failed = names(Container::has_failed);
        if !failed.is_empty() {
            let detail = Some(format!("ended by itself: {failed}"));
            return Ok(Condition { detail, ..Condition::of(State::Failed) });
        }
        let up = names(Container::is_up);
        if up.is_empty() {
            return Ok(Condition::of(State::Stopped));
        }
        Ok(Condition { detail: Some(format!("up: {up}")), ..Condition::of(State::Running) })
    }

    pub fn start(&self, cancel: &Cancel) -> Result<bool> {
        let all = self.containers(cancel)?;
        let done = |c: &Container| c.state == "exited" && c.exit_code == 0;
        if all.iter().any(Container::is_up) && all.iter().all(|c| c.is_up() || done(c)) {
            return Ok(false);
        }
        let verb: &[&str] = if all.is_empty() { &["up", "--detach"] } else { &["start"] };
        self.act(verb, START, Code::AppStartFailed, cancel)?;
        let started = Instant::now();
        loop {
            let now = self.state(cancel)?;
            if now.state != State::Running {
                let why = now.detail.unwrap_or_else(|| "no service is up".to_owned());
                return Err(Error::new(Code::AppStartFailed, format!("Started, but {why}"))
                    .advise(format!("See `docker compose --file {} logs`.", self.file)));
            }
            if started.elapsed() >= SETTLE {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    pub fn stop(&self, cancel: &Cancel) -> Result<bool> {
        let before = self.containers(cancel)?.iter().any(Container::is_up);
        self.act(&["stop"], STOP, Code::AppStopFailed, cancel)?;
        if self.containers(cancel)?.iter().any(Container::is_up) {
            return Err(Error::new(Code::AppStopFailed, format!("Services of {} still run", self.file)));
        }
        Ok(before)
    }

    fn act(&self, verb: &[&str], limit: Duration, code: Code, cancel: &Cancel) -> Result<()> {
        let ended = self.call(verb, limit, cancel)?;
        if ended.status.success() && !ended.late {
            return Ok(());
        }
        let how = if ended.late {
            format!("took longer than {} s", limit.as_secs())
        } else {
            format!("ended with {}", status_text(ended.status))
        };
        let message = format!("`docker compose {}` of {} {how}", verb.join(" "), self.file);
        Err(Error::new(code, message).because(ended.output.text()))
    }
}

/// One object a line, or (before compose 2.21) one list. Warnings may stand before it.
fn parse(text: &str) -> serde_json::Result<Vec<Container>> {
    let text: String = text
        .lines()
        .filter(|line| line.starts_with(['{', '[']))
        .fold(String::new(), |all, line| all + line + "\n");
    if text.starts_with('[') {
        return serde_json::from_str(&text);
    }
    text.lines().map(serde_json::from_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_list_are_read() {
        let lines = "time=\"…\" level=warning msg=\"version is obsolete\"\n\
            {\"Service\":\"web\",\"State\":\"running\",\"ExitCode\":0}\n\
            {\"Service\":\"job\",\"State\":\"exited\",\"ExitCode\":1,\"Name\":\"x\"}\n";
        let list = r#"[{"Service":"web","State":"running"},{"Service":"job","State":"exited","ExitCode":1}]"#;
        for text in [lines, list] {
            let all = parse(text).unwrap();
            let seen: Vec<_> = all.iter().map(|c| (c.service.as_str(), c.is_up(), c.has_failed())).collect();
            assert_eq!(seen, [("web", true, false), ("job", false, true)]);
        }
        assert_eq!(parse("").unwrap().len(), 0);
        assert!(parse("{\"Service\": 1}").is_err());
    }
}
