//! What a configuration must be like before it is stored.
//!
//! Invariants: pure. What passes cannot be taken for an option by a program it is handed to, and no text or limit
//! in it is absurd.

use std::path::Path;
use std::time::Duration;

use super::{AppConfig, Check, CommandLine, CommandRuntime, Health, Hook, Moment, Replace, Runtime};
use crate::{Code, Error, Result};

/// Longest text of a command, a path or a rule, in bytes.
const TEXT_MAX: usize = 16 * 1024;
/// Most excludes, rules or variables.
const LIST_MAX: usize = 10_000;
/// Longest limit of time that can be set.
const TIME_MAX: Duration = Duration::from_hours(24);

pub(super) fn config(config: &AppConfig) -> Result<()> {
    runtime(&config.runtime)?;
    config.health.as_ref().map_or(Ok(()), health)?;
    for moment in Moment::ALL {
        config.hooks.get(moment).map_or(Ok(()), |hook| self::hook(moment, hook))?;
    }
    if config.rpo < Duration::from_mins(1) {
        return Err(bad("The RPO is below one minute"));
    }
    if config.excludes.len() > LIST_MAX || config.post_restore.len() > LIST_MAX {
        return Err(bad("There are more than 10,000 excludes or rules"));
    }
    config.excludes.iter().try_for_each(|line| text("An exclude", line))?;
    config.post_restore.iter().try_for_each(replace)?;
    group("resource group", &config.resource_group)?;
    group("plan", &config.plan)?;
    config.schedule.as_ref().map_or(Ok(()), crate::Schedule::check)
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidValue, message)
}

fn text(what: &str, value: &str) -> Result<()> {
    match value {
        "" => Err(bad(format!("{what} is empty"))),
        v if v.len() > TEXT_MAX => Err(bad(format!("{what} is longer than 16 KiB"))),
        v if v.contains('\0') => Err(bad(format!("{what} holds a NUL character"))),
        _ => Ok(()),
    }
}

fn limit(what: &str, time: Duration, least: Duration) -> Result<()> {
    if time < least || time > TIME_MAX {
        return Err(bad(format!("{what} must be {} to 86400 seconds", least.as_secs())));
    }
    Ok(())
}

fn command(what: &str, line: &CommandLine) -> Result<()> {
    match line {
        CommandLine::Line(line) if line.trim().is_empty() => Err(bad(format!("{what} is empty"))),
        CommandLine::Line(line) => text(what, line),
        CommandLine::Words(words) => {
            let program = words.first().ok_or_else(|| bad(format!("{what} is empty")))?;
            text(what, program)?;
            if words.iter().any(|w| w.len() > TEXT_MAX || w.contains('\0')) {
                return Err(bad(format!("{what} has a word that is too long or holds a NUL character")));
            }
            Ok(())
        }
    }
}

fn runtime(runtime: &Runtime) -> Result<()> {
    match runtime {
        Runtime::Static => Ok(()),
        Runtime::Command(it) => command_runtime(it),
        Runtime::Systemd { unit, .. } => {
            let good = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
            if unit.is_empty() || unit.len() > 255 || unit.starts_with('-') || !unit.chars().all(good) {
                return Err(bad(format!("`{}` is not the name of a systemd unit", unit.escape_debug())));
            }
            Ok(())
        }
        Runtime::Compose { file, project } => {
            text("The compose file", file)?;
            if !Path::new(file).is_absolute() {
                return Err(bad("The compose file must be an absolute path"));
            }
            let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
            let first = |p: &str| p.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
            match project {
                Some(p) if !first(p) || p.len() > 200 || !p.chars().all(good) => {
                    Err(bad(format!("`{}` is not the name of a compose project", p.escape_debug())))
                }
                _ => Ok(()),
            }
        }
    }
}

fn command_runtime(it: &CommandRuntime) -> Result<()> {
    command("The command", &it.command)?;
    it.folder.as_deref().map_or(Ok(()), |f| text("The working folder", f))?;
    it.env_file.as_deref().map_or(Ok(()), |f| text("The file of variables", f))?;
    it.user.as_deref().map_or(Ok(()), |u| text("The user", u))?;
    if it.env.len() > LIST_MAX {
        return Err(bad("There are more than 10,000 variables"));
    }
    for (name, value) in &it.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') || value.len() > TEXT_MAX {
            return Err(bad(format!("`{}` cannot be a variable", name.escape_debug())));
        }
    }
    limit("The time to stop", it.grace, Duration::ZERO)
}

fn health(health: &Health) -> Result<()> {
    limit("The time for a health check's answer", health.timeout, Duration::from_secs(1))?;
    limit("The time until the app is healthy", health.deadline, Duration::from_secs(1))?;
    match &health.check {
        Check::Command { command } => self::command("The health command", command),
        Check::Http { url, status_min, status_max } => {
            text("The health address", url)?;
            let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
            let host = rest.and_then(|r| r.split(['/', '?', '#']).next()).unwrap_or("");
            if host.is_empty() || url.chars().any(|c| c.is_whitespace() || c.is_control()) {
                return Err(bad("The health address must be http://HOST… or https://HOST…"));
            }
            if host.contains('@') {
                return Err(bad("The health address holds a user or password").advise(
                    "Use an address that needs none, or a health command that reads it from a file.",
                ));
            }
            if !(100..=599).contains(status_min) || status_max < status_min || *status_max > 599 {
                return Err(bad("The statuses of a health check must be 100 to 599, the lesser first"));
            }
            Ok(())
        }
    }
}

fn hook(moment: Moment, hook: &Hook) -> Result<()> {
    command(&format!("The {} hook", moment.name()), &hook.command)?;
    limit(&format!("The time for the {} hook", moment.name()), hook.timeout, Duration::from_secs(1))
}

fn replace(rule: &Replace) -> Result<()> {
    text("The file of a rule", &rule.file)?;
    text("The text that a rule looks for", &rule.from)?;
    if rule.to.len() > TEXT_MAX {
        return Err(bad("The text that a rule puts in is longer than 16 KiB"));
    }
    let inside = |part: &str| !part.is_empty() && part != "." && part != "..";
    if !rule.file.split('/').all(inside) {
        return Err(bad(format!("`{}` is not a path relative to the home", rule.file.escape_debug())));
    }
    Ok(())
}

fn group(what: &str, name: &str) -> Result<()> {
    let good = |c: char| c.is_alphanumeric() || "-_.()".contains(c);
    if name.is_empty() || name.chars().count() > 90 || name.ends_with('.') || !name.chars().all(good) {
        return Err(bad(format!(
            "`{}` cannot be a {what}: letters, digits, `-`, `_`, `.`, brackets, not `.` at the end",
            name.escape_debug()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::{Pause, Runtime};

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let ok = AppConfig::default();
        ok.check().unwrap();
        let unit = |unit: &str| Runtime::Systemd { unit: unit.into(), user: false };
        let compose = |file: &str, project: Option<&str>| Runtime::Compose {
            file: file.into(),
            project: project.map(str::to_owned),
        };
        let run = |line: &str| Runtime::Command(CommandRuntime::new(CommandLine::Line(line.into())));
        let mut named = CommandRuntime::new(CommandLine::Line("true".into()));
        named.env.insert("A=B".into(), "x".into());
        let runtimes = [
            unit("-H"),
            unit("a b"),
            unit(""),
            compose("rel.yaml", None),
            compose("/a", Some("-x")),
            run("  "),
            run("a\0b"),
            Runtime::Command(CommandRuntime::new(CommandLine::Words(vec![]))),
            Runtime::Command(named),
        ];
        for runtime in runtimes {
            let config = AppConfig { runtime, ..ok.clone() };
            assert_eq!(config.check().unwrap_err().code(), Code::InvalidValue, "{:?}", config.runtime);
        }
        for url in ["ftp://x/", "http://", "http://u:p@host/", "http://a b/", "localhost", "https:///x"] {
            let config = AppConfig { health: Some(Health::new(Check::http(url))), ..ok.clone() };
            assert_eq!(config.check().unwrap_err().code(), Code::InvalidValue, "{url}");
        }
        for file in ["/etc/passwd", "../x", "a//b", "./a", ""] {
            let rule = Replace { file: file.into(), from: "a".into(), to: String::new() };
            let config = AppConfig { post_restore: vec![rule], ..ok.clone() };
            assert_eq!(config.check().unwrap_err().code(), Code::InvalidValue, "{file}");
        }
        assert!(AppConfig { rpo: Duration::from_secs(1), ..ok.clone() }.check().is_err());
        assert!(AppConfig { plan: "a/b".into(), ..ok.clone() }.check().is_err());
    }

    #[test]
    fn what_people_set_passes() {
        let ok = AppConfig {
            runtime: Runtime::Systemd { unit: "blog@1.service".into(), user: true },
            health: Some(Health::new(Check::http("http://[::1]:8080/health?x=@y"))),
            paused: Some(Pause { since: jiff::Timestamp::UNIX_EPOCH, reason: None, until: None }),
            post_restore: vec![Replace { file: "**/*.php".into(), from: "a".into(), to: String::new() }],
            ..AppConfig::default()
        };
        ok.check().unwrap();
        let compose = Runtime::Compose { file: "/srv/compose.yaml".into(), project: Some("b_1-x".into()) };
        AppConfig { runtime: compose, ..ok }.check().unwrap();
    }
}
