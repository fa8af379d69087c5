//! From the flags of `app add` and `app set` to what is set about an app.
//!
//! Invariants: pure but for finding the compose file. What is not given stays as it is.

use std::collections::BTreeMap;
use std::time::Duration;

use backstay_engine::parse_duration;
use backstay_model::app::{
    AppConfig, Check, CommandLine, CommandRuntime, Databases, Hashes, Health, Hook, Moment, Reference,
    Replace, Runtime, StopSignal, VolumeSnapshot,
};
use backstay_model::{Code, Error, Result};

use crate::args::{AppFlags, SnapshotBy};

fn usage(message: impl Into<String>) -> Error {
    Error::new(Code::Usage, message)
}

fn time(text: Option<&String>) -> Result<Option<Duration>> {
    text.map(|t| parse_duration(t)).transpose()
}

/// Changes a configuration as the flags say.
pub fn change(flags: &AppFlags, config: &mut AppConfig) -> Result<()> {
    runtime(flags, &mut config.runtime)?;
    command(flags, &mut config.runtime)?;
    health(flags, &mut config.health)?;
    hooks(flags, config)?;
    protection(flags, config)?;
    databases(flags, &mut config.databases)?;
    config.in_app_mysql = flags.in_app_mysql.map_or(config.in_app_mysql, crate::args::Switch::is_on);
    references(flags, &mut config.references);
    if let Some(group) = &flags.group {
        config.resource_group.clone_from(group);
    }
    if let Some(plan) = &flags.plan {
        config.plan.clone_from(plan);
    }
    Ok(())
}

fn runtime(flags: &AppFlags, runtime: &mut Runtime) -> Result<()> {
    if flags.static_files {
        *runtime = Runtime::Static;
    }
    if let Some(line) = &flags.command {
        let line = CommandLine::Line(line.clone());
        match runtime {
            Runtime::Command(it) => it.command = line,
            _ => *runtime = Runtime::Command(CommandRuntime::new(line)),
        }
    }
    if let Some(unit) = &flags.systemd {
        let unit = if unit.contains('.') { unit.clone() } else { format!("{unit}.service") };
        *runtime = Runtime::Systemd { unit, user: flags.user };
    }
    if let Some(file) = &flags.compose {
        let missing = |e: std::io::Error| {
            Error::new(Code::InvalidValue, format!("There is no compose file {}", file.display())).because(e)
        };
        let path = file.canonicalize().map_err(missing)?;
        let text = path
            .to_str()
            .ok_or_else(|| Error::new(Code::InvalidValue, "The path of a compose file must be UTF-8 text"))?;
        *runtime = Runtime::Compose { file: text.to_owned(), project: flags.project.clone() };
    }
    Ok(())
}

fn command(flags: &AppFlags, runtime: &mut Runtime) -> Result<()> {
    let given = flags.work_in.is_some()
        || flags.run_as.is_some()
        || !flags.env.is_empty()
        || flags.env_file.is_some()
        || flags.stop_signal.is_some()
        || flags.grace.is_some()
        || flags.restart.is_some();
    let it = match runtime {
        Runtime::Command(it) => it,
        _ if given => {
            return Err(usage("These flags are for an app that Backstay runs by a command")
                .advise("Add --command LINE."));
        }
        _ => return Ok(()),
    };
    let or_none = |text: &String| (!text.is_empty()).then(|| text.clone());
    if let Some(folder) = &flags.work_in {
        it.folder = or_none(folder);
    }
    if let Some(user) = &flags.run_as {
        it.user = or_none(user);
    }
    if let Some(file) = &flags.env_file {
        it.env_file = or_none(file);
    }
    for variable in &flags.env {
        let (name, value) = variable.split_once('=').ok_or_else(|| usage("--env takes NAME=VALUE"))?;
        match value {
            "" => drop(it.env.remove(name)),
            value => drop(it.env.insert(name.to_owned(), value.to_owned())),
        }
    }
    if let Some(signal) = &flags.stop_signal {
        it.stop_signal = stop_signal(signal)?;
    }
    if let Some(grace) = time(flags.grace.as_ref())? {
        it.grace = grace;
    }
    if let Some(restart) = flags.restart {
        it.restart = restart.is_on();
    }
    Ok(())
}

fn stop_signal(text: &str) -> Result<StopSignal> {
    let upper = text.to_ascii_uppercase();
    match upper.strip_prefix("SIG").unwrap_or(&upper) {
        "TERM" => Ok(StopSignal::Term),
        "INT" => Ok(StopSignal::Int),
        "QUIT" => Ok(StopSignal::Quit),
        "HUP" => Ok(StopSignal::Hup),
        "USR1" => Ok(StopSignal::Usr1),
        "USR2" => Ok(StopSignal::Usr2),
        "WINCH" => Ok(StopSignal::Winch),
        _ => Err(Error::new(
            Code::InvalidValue,
            format!("`{}` is not a signal to stop by", text.escape_debug()),
        )
        .advise("Give TERM, INT, QUIT, HUP, USR1, USR2 or WINCH.")),
    }
}

fn health(flags: &AppFlags, health: &mut Option<Health>) -> Result<()> {
    let limits = |it: &Option<Health>, check: Check| match it {
        Some(before) => Health { check, ..before.clone() },
        None => Health::new(check),
    };
    if let Some(url) = &flags.health {
        *health = Some(limits(health, Check::http(url)));
    }
    if let Some(line) = &flags.health_command {
        *health = Some(limits(health, Check::Command { command: CommandLine::Line(line.clone()) }));
    }
    if flags.no_health {
        *health = None;
    }
    let (timeout, deadline) = (time(flags.health_timeout.as_ref())?, time(flags.health_deadline.as_ref())?);
    if timeout.is_none() && deadline.is_none() && flags.health_status.is_none() {
        return Ok(());
    }
    let Some(it) = health else {
        return Err(usage("There is no health check to set that of").advise("Add --health URL."));
    };
    if let Some(text) = &flags.health_status {
        let Check::Http { status_min, status_max, .. } = &mut it.check else {
            return Err(usage("--health-status is for a check by --health URL"));
        };
        (*status_min, *status_max) = statuses(text)?;
    }
    it.timeout = timeout.unwrap_or(it.timeout);
    it.deadline = deadline.unwrap_or(it.deadline);
    Ok(())
}

fn statuses(text: &str) -> Result<(u16, u16)> {
    let (min, max) = text.split_once('-').unwrap_or((text, text));
    match (min.trim().parse(), max.trim().parse()) {
        (Ok(min), Ok(max)) => Ok((min, max)),
        _ => Err(Error::new(
            Code::InvalidValue,
            format!("`{}` is not a range of statuses", text.escape_debug()),
        )
        .advise("Write 200-399, or 204 alone.")),
    }
}

fn hooks(flags: &AppFlags, config: &mut AppConfig) -> Result<()> {
    let lines = [
        (Moment::BeforeBackup, &flags.before_backup),
        (Moment::AfterBackup, &flags.after_backup),
        (Moment::BeforeRestore, &flags.before_restore),
        (Moment::AfterRestore, &flags.after_restore),
        (Moment::Quiesce, &flags.quiesce),
        (Moment::Resume, &flags.resume),
    ];
    for (moment, line) in lines {
        let place = config.hooks.get_mut(moment);
        match line.as_deref() {
            None => {}
            Some("") => *place = None,
            Some(line) => {
                let timeout = place.as_ref().map(|h| h.timeout);
                let mut hook = Hook::new(CommandLine::Line(line.to_owned()));
                hook.timeout = timeout.unwrap_or(hook.timeout);
                *place = Some(hook);
            }
        }
    }
    if let Some(time) = time(flags.hook_timeout.as_ref())? {
        for moment in Moment::ALL {
            if let Some(hook) = config.hooks.get_mut(moment) {
                hook.timeout = time;
            }
        }
    }
    Ok(())
}

fn databases(flags: &AppFlags, databases: &mut Databases) -> Result<()> {
    if let Some(take) = flags.databases {
        databases.take = take.is_on();
    }
    match flags.databases_every.as_deref() {
        None => {}
        Some("") => databases.every = None,
        Some(time) => databases.every = Some(parse_duration(time)?),
    }
    if !flags.without_database.is_empty() {
        databases.without = flags.without_database.iter().filter(|n| !n.is_empty()).cloned().collect();
    }
    if !flags.replica.is_empty() {
        databases.replicas = replicas(&flags.replica)?;
    }
    match flags.database_hashes.as_deref() {
        None => {}
        Some("none") => databases.hashes = Some(Hashes::None),
        Some("affordable") => databases.hashes = None,
        Some("all") => databases.hashes = Some(Hashes::All),
        Some(_) => return Err(usage("--database-hashes takes none, affordable or all")),
    }
    Ok(())
}

/// `NAME=REPLICA`, each a name of a connection; an empty one is none.
fn replicas(given: &[String]) -> Result<BTreeMap<String, String>> {
    let pair = |text: &&String| !text.is_empty();
    let pairs = given.iter().filter(pair).map(|text| match text.split_once('=') {
        Some((name, replica)) if !name.is_empty() && !replica.is_empty() && name != replica => {
            Ok((name.to_owned(), replica.to_owned()))
        }
        _ => Err(usage("--replica takes NAME=REPLICA, the names of two connections")),
    });
    let replicas: BTreeMap<String, String> = pairs.collect::<Result<_>>()?;
    match replicas.values().any(|replica| replicas.contains_key(replica)) {
        true => Err(usage("A replica cannot have a replica of its own")),
        false => Ok(replicas),
    }
}

fn references(flags: &AppFlags, references: &mut Vec<Reference>) {
    if !flags.reference.is_empty() || flags.no_references {
        references.clear();
    }
    references.extend(flags.reference.chunks_exact(3).filter_map(|rule| match rule {
        [connection, query, folder] => {
            Some(Reference { connection: connection.clone(), query: query.clone(), folder: folder.clone() })
        }
        _ => None,
    }));
}

fn protection(flags: &AppFlags, config: &mut AppConfig) -> Result<()> {
    if !flags.exclude.is_empty() || flags.no_excludes {
        config.excludes.clone_from(&flags.exclude);
    }
    if let Some(rpo) = time(flags.rpo.as_ref())? {
        config.rpo = rpo;
    }
    config.snapshot = match flags.snapshot {
        None => config.snapshot,
        Some(SnapshotBy::Off) => VolumeSnapshot::Off,
        Some(SnapshotBy::Auto) => VolumeSnapshot::Auto,
        Some(SnapshotBy::Btrfs) => VolumeSnapshot::Btrfs,
        Some(SnapshotBy::Zfs) => VolumeSnapshot::Zfs,
        Some(SnapshotBy::Lvm) => VolumeSnapshot::Lvm,
    };
    for (given, set) in [
        (flags.filter_automatic, &mut config.filter_automatic),
        (flags.automatic, &mut config.automatic),
        (flags.undo_on_unhealthy, &mut config.undo_on_unhealthy),
    ] {
        *set = given.map_or(*set, crate::args::Switch::is_on);
    }
    if flags.no_replace {
        config.post_restore.clear();
    }
    let rules = flags.replace.chunks_exact(3).filter_map(|rule| match rule {
        [file, from, to] => Some(Replace { file: file.clone(), from: from.clone(), to: to.clone() }),
        _ => None,
    });
    let rules: Vec<Replace> = rules.collect();
    if !rules.is_empty() {
        config.post_restore = rules;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    use crate::args::{App, Cli, Command};

    fn set(config: &mut AppConfig, words: &[&str]) -> Result<()> {
        let cli = Cli::try_parse_from([&["backstay", "app", "set", "blog"], words].concat()).unwrap();
        let Command::App(App::Set { flags, .. }) = cli.command else { panic!("{words:?}") };
        change(&flags, config)?;
        config.check()
    }

    #[test]
    fn what_is_given_changes_and_the_rest_stays() {
        let mut config = AppConfig::default();
        set(
            &mut config,
            &["--command", "node server.js", "--env", "PORT=1", "--env", "A=b", "--grace", "30s"],
        )
        .unwrap();
        set(&mut config, &["--health", "http://localhost:1/", "--health-status", "204", "--rpo", "4h"])
            .unwrap();
        set(
            &mut config,
            &["--before-backup", "./dump", "--hook-timeout", "1m", "--exclude", "a", "--exclude", "b"],
        )
        .unwrap();
        set(
            &mut config,
            &["--command", "node other.js", "--env", "A=", "--restart", "off", "--stop-signal", "sigint"],
        )
        .unwrap();
        set(&mut config, &["--replace", "a", "b", "c", "--replace", "d", "e", "", "--automatic", "off"])
            .unwrap();
        let Runtime::Command(it) = &config.runtime else { panic!("{config:?}") };
        assert_eq!(it.command, CommandLine::Line("node other.js".into()));
        assert_eq!(it.env.iter().collect::<Vec<_>>(), [(&"PORT".to_owned(), &"1".to_owned())]);
        assert_eq!((it.grace, it.restart, it.stop_signal), (Duration::from_secs(30), false, StopSignal::Int));
        let check = Check::Http { url: "http://localhost:1/".into(), status_min: 204, status_max: 204 };
        assert_eq!(config.health, Some(Health::new(check)));
        assert_eq!(config.hooks.before_backup.as_ref().unwrap().timeout, Duration::from_mins(1));
        assert_eq!(config.excludes, ["a", "b"]);
        assert_eq!((config.post_restore.len(), config.automatic), (2, false));
        assert_eq!(config.rpo, Duration::from_hours(4));

        set(
            &mut config,
            &["--static", "--no-health", "--before-backup", "", "--no-excludes", "--no-replace"],
        )
        .unwrap();
        let plain = AppConfig { rpo: config.rpo, automatic: false, ..AppConfig::default() };
        assert_eq!(config, plain);
        set(&mut config, &["--systemd", "blog", "--user"]).unwrap();
        assert_eq!(config.runtime, Runtime::Systemd { unit: "blog.service".into(), user: true });
    }

    #[test]
    fn flags_that_do_not_fit_are_told() {
        let bad: [(&[&str], Code); 7] = [
            (&["--grace", "1s"], Code::Usage),
            (&["--health-timeout", "1s"], Code::Usage),
            (&["--command", "x", "--stop-signal", "KILL"], Code::InvalidValue),
            (&["--rpo", "soon"], Code::InvalidValue),
            (&["--health", "http://x/", "--health-status", "ok"], Code::InvalidValue),
            (&["--compose", "/no/such/file"], Code::InvalidValue),
            (&["--systemd", "--no-pager"], Code::InvalidValue),
        ];
        for (words, code) in bad {
            let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
            let words: Vec<&str> = match words.as_slice() {
                [flag, value] if value.starts_with("--") => {
                    vec![Box::leak(format!("{flag}={value}").into_boxed_str())]
                }
                all => all.iter().map(String::as_str).collect(),
            };
            assert_eq!(set(&mut AppConfig::default(), &words).unwrap_err().code(), code, "{words:?}");
        }
    }
}
