//! How an app is run and protected: what a person has set about it.
//!
//! Invariants: every field has a default, so a configuration written by an older version is read by a newer one, and an
//! empty one is that of a folder of static files. [`AppConfig::check`] is asked before anything is stored. Durations
//! are whole seconds in JSON. Nothing in here is a secret: what an app must not show belongs into a file that
//! [`CommandRuntime::env_file`] names.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Result, Schedule};

mod check;

/// What is set about an app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AppConfig {
    /// How it is started and stopped.
    pub runtime: Runtime,
    /// How to see that it works; none where running is enough.
    pub health: Option<Health>,
    /// What runs before and after a backup or a restore.
    pub hooks: Hooks,
    /// Paths left out, in the language of `_backup.filter`.
    pub excludes: Vec<String>,
    /// Whether automatic backups obey the filter too.
    pub filter_automatic: bool,
    /// The greatest age that the newest point may have before it is told (recovery point objective).
    #[serde(rename = "rpo_seconds", with = "seconds")]
    pub rpo: Duration,
    /// Whether points are taken every hour.
    pub automatic: bool,
    /// Set while automatic backups rest.
    pub paused: Option<Pause>,
    /// Whether a restore in place is taken back by itself when the app is not healthy afterwards.
    pub undo_on_unhealthy: bool,
    /// What is changed in the files of a new app made from a point of this one, before it takes its name.
    pub post_restore: Vec<Replace>,
    /// The resource group.
    pub resource_group: String,
    /// The plan.
    pub plan: String,
    /// When custom backups are taken by themselves; none for never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// How its linked databases are saved.
    pub databases: Databases,
    /// Whether it has a MariaDB of its own that Backstay runs ("MySQL in-app").
    pub in_app_mysql: bool,
    /// Whether its home is read from a snapshot of the volume that it lies on.
    pub snapshot: VolumeSnapshot,
    /// What its databases say lies in the home; compared after backups and restores.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<Reference>,
}

impl Default for AppConfig {
    fn default() -> Self {
        AppConfig {
            runtime: Runtime::Static,
            health: None,
            hooks: Hooks::default(),
            excludes: Vec::new(),
            filter_automatic: false,
            rpo: Duration::from_hours(2),
            automatic: true,
            paused: None,
            undo_on_unhealthy: false,
            post_restore: Vec::new(),
            resource_group: "default".to_owned(),
            plan: "default".to_owned(),
            schedule: None,
            databases: Databases::default(),
            in_app_mysql: false,
            snapshot: VolumeSnapshot::Off,
            references: Vec::new(),
        }
    }
}

/// Whether a home is read from a snapshot of its volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeSnapshot {
    /// It is read as it is.
    #[default]
    Off,
    /// Where its volume can be snapshotted, by whatever that is.
    Auto,
    /// By Btrfs.
    Btrfs,
    /// By ZFS.
    Zfs,
    /// By LVM.
    Lvm,
}

/// How the linked databases of an app are saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Databases {
    /// Whether they are in its points at all.
    pub take: bool,
    /// Names of connections that are left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<String>,
    /// How often they are in automatic points; none for every hour, large ones every sixth.
    #[serde(rename = "every_seconds", with = "maybe_seconds", skip_serializing_if = "Option::is_none")]
    pub every: Option<Duration>,
    /// Which tables get a hash of their content; none for those that are small enough not to be felt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hashes: Option<Hashes>,
    /// Connections whose databases are read from elsewhere for a dump: each with the connection of a replica.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub replicas: BTreeMap<String, String>,
}

impl Default for Databases {
    fn default() -> Self {
        Databases { take: true, without: Vec::new(), every: None, hashes: None, replicas: BTreeMap::new() }
    }
}

/// A query that lists paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// The name of the connection.
    pub connection: String,
    /// The query; its first column is a path, or NULL. It can only read.
    pub query: String,
    /// The folder that the paths are relative to, itself relative to the home.
    pub folder: String,
}

/// Which tables of a database get a hash of their content in the record of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hashes {
    /// None: rows are counted.
    None,
    /// Small ones.
    Affordable,
    /// All.
    All,
}

impl AppConfig {
    /// Whether automatic backups rest at that time.
    #[must_use]
    pub fn is_paused(&self, now: Timestamp) -> bool {
        self.paused.as_ref().is_some_and(|p| p.until.is_none_or(|until| now < until))
    }

    /// Whether points are to be taken every hour at that time.
    #[must_use]
    pub fn wants_automatic(&self, now: Timestamp) -> bool {
        self.automatic && !self.is_paused(now)
    }

    /// `InvalidValue` where something in it could not be meant.
    pub fn check(&self) -> Result<()> {
        check::config(self)
    }
}

/// Since when and why automatic backups rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// When the pause began.
    pub since: Timestamp,
    /// Why, in a person's words.
    #[serde(default)]
    pub reason: Option<String>,
    /// When it ends by itself; none for "until resumed".
    #[serde(default)]
    pub until: Option<Timestamp>,
}

/// How an app is started and stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Runtime {
    /// Files alone: nothing to start or stop.
    #[default]
    Static,
    /// A process that Backstay starts.
    Command(CommandRuntime),
    /// A unit of systemd.
    Systemd {
        /// The unit (`blog.service`).
        unit: String,
        /// Whether it is one of the user's own service manager.
        #[serde(default)]
        user: bool,
    },
    /// The services of a compose file.
    Compose {
        /// The file, as an absolute path.
        file: String,
        /// The project's name; none for compose's own choice.
        #[serde(default)]
        project: Option<String>,
    },
}

impl Runtime {
    /// The kind as one word.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Runtime::Static => "static",
            Runtime::Command(_) => "command",
            Runtime::Systemd { .. } => "systemd",
            Runtime::Compose { .. } => "compose",
        }
    }

    /// Whether there is something to start and stop.
    #[must_use]
    pub fn runs(&self) -> bool {
        !matches!(self, Runtime::Static)
    }
}

/// A process that Backstay starts, in a session and process group of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandRuntime {
    /// What is run.
    pub command: CommandLine,
    /// Its working folder, absolute or relative to the home; none for the home.
    #[serde(default)]
    pub folder: Option<String>,
    /// Variables added to its environment, which is otherwise PATH, HOME, LANG and the app's settings. Not for secrets.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// A file of `NAME=VALUE` lines, read at each start and stored nowhere else; absolute or relative to the home.
    #[serde(default)]
    pub env_file: Option<String>,
    /// The user it runs as; none for the one that starts it.
    #[serde(default)]
    pub user: Option<String>,
    /// The signal that asks it to stop.
    #[serde(default)]
    pub stop_signal: StopSignal,
    /// How long it may take to stop before the whole group is killed.
    #[serde(default = "grace", rename = "grace_seconds", with = "seconds")]
    pub grace: Duration,
    /// Whether `backstay serve` starts it again when it ends by itself.
    #[serde(default = "yes")]
    pub restart: bool,
}

impl CommandRuntime {
    /// That command with the defaults.
    #[must_use]
    pub fn new(command: CommandLine) -> Self {
        CommandRuntime {
            command,
            folder: None,
            env: BTreeMap::new(),
            env_file: None,
            user: None,
            stop_signal: StopSignal::Term,
            grace: grace(),
            restart: true,
        }
    }
}

/// A command: words, or a line for `/bin/sh`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum CommandLine {
    /// A line that `/bin/sh -c` reads.
    Line(String),
    /// The program and its arguments, run without a shell.
    Words(Vec<String>),
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CommandLine::Line(line) => f.write_str(line),
            CommandLine::Words(words) => f.write_str(&words.join(" ")),
        }
    }
}

/// The signals that may ask an app to stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "the names say it")]
pub enum StopSignal {
    #[default]
    Term,
    Int,
    Quit,
    Hup,
    Usr1,
    Usr2,
    Winch,
}

/// How to see that an app works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// What is asked.
    #[serde(flatten)]
    pub check: Check,
    /// How long one answer may take.
    #[serde(default = "answer", rename = "timeout_seconds", with = "seconds")]
    pub timeout: Duration,
    /// How long the app may take after its start until it answers well.
    #[serde(default = "deadline", rename = "deadline_seconds", with = "seconds")]
    pub deadline: Duration,
}

impl Health {
    /// That check with the default limits.
    #[must_use]
    pub fn new(check: Check) -> Self {
        Health { check, timeout: answer(), deadline: deadline() }
    }
}

/// What a health check asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Check {
    /// A GET of an address must be answered with a status in a range. Redirects are answers, not followed.
    Http {
        /// The address (http or https), without a password in it.
        url: String,
        /// The least status that is well.
        #[serde(default = "status_min")]
        status_min: u16,
        /// The greatest status that is well.
        #[serde(default = "status_max")]
        status_max: u16,
    },
    /// A command must end with status 0.
    Command {
        /// The command, run in the home.
        command: CommandLine,
    },
}

impl Check {
    /// A GET that must be answered with 200 to 399.
    #[must_use]
    pub fn http(url: impl Into<String>) -> Self {
        Check::Http { url: url.into(), status_min: status_min(), status_max: status_max() }
    }
}

/// What runs before and after a backup or a restore. A failing `before` stops the work before anything has
/// changed; a failing `after` makes the result partial.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hooks {
    /// Before files are read.
    pub before_backup: Option<Hook>,
    /// After the point was written, or the backup failed.
    pub after_backup: Option<Hook>,
    /// Before the app is stopped.
    pub before_restore: Option<Hook>,
    /// After the app runs again; for a new app before it takes its name.
    pub after_restore: Option<Hook>,
    /// Before the snapshots of linked databases, and of the home's volume: holds the app's writing still.
    pub quiesce: Option<Hook>,
    /// Lets the app write again: when the snapshots stand and what of the files has changed is read, whatever has happened.
    pub resume: Option<Hook>,
}

impl Hooks {
    /// The hook of a moment.
    #[must_use]
    pub fn get(&self, moment: Moment) -> Option<&Hook> {
        match moment {
            Moment::BeforeBackup => self.before_backup.as_ref(),
            Moment::AfterBackup => self.after_backup.as_ref(),
            Moment::BeforeRestore => self.before_restore.as_ref(),
            Moment::AfterRestore => self.after_restore.as_ref(),
            Moment::Quiesce => self.quiesce.as_ref(),
            Moment::Resume => self.resume.as_ref(),
        }
    }

    /// The place of the hook of a moment.
    pub fn get_mut(&mut self, moment: Moment) -> &mut Option<Hook> {
        match moment {
            Moment::BeforeBackup => &mut self.before_backup,
            Moment::AfterBackup => &mut self.after_backup,
            Moment::BeforeRestore => &mut self.before_restore,
            Moment::AfterRestore => &mut self.after_restore,
            Moment::Quiesce => &mut self.quiesce,
            Moment::Resume => &mut self.resume,
        }
    }
}

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the fields of `Hooks` say it")]
pub enum Moment {
    BeforeBackup,
    AfterBackup,
    BeforeRestore,
    AfterRestore,
    Quiesce,
    Resume,
}

impl Moment {
    /// Every moment.
    pub const ALL: [Moment; 6] = [
        Moment::BeforeBackup,
        Moment::AfterBackup,
        Moment::BeforeRestore,
        Moment::AfterRestore,
        Moment::Quiesce,
        Moment::Resume,
    ];

    /// As words for people ("before-backup").
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Moment::BeforeBackup => "before-backup",
            Moment::AfterBackup => "after-backup",
            Moment::BeforeRestore => "before-restore",
            Moment::AfterRestore => "after-restore",
            Moment::Quiesce => "quiesce",
            Moment::Resume => "resume",
        }
    }
}

/// A command with a limit of time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// What is run, in the home.
    pub command: CommandLine,
    /// How long it may take before its whole process group is killed.
    #[serde(default = "hook_time", rename = "timeout_seconds", with = "seconds")]
    pub timeout: Duration,
}

impl Hook {
    /// That command with the default limit.
    #[must_use]
    pub fn new(command: CommandLine) -> Self {
        Hook { command, timeout: hook_time() }
    }
}

/// A text that is replaced in files of a new app made from a point (host names, paths).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replace {
    /// The files: a path relative to the home; `*` and `?` stand for characters of a name, `**` for folders.
    pub file: String,
    /// The text that is there, literally. `{app}` and `{home}` stand for the name and home of the app of the point.
    pub from: String,
    /// The text that is to be there. `{app}` and `{home}` stand for the name and home of the new app.
    pub to: String,
}

fn yes() -> bool {
    true
}

fn grace() -> Duration {
    Duration::from_secs(10)
}

fn answer() -> Duration {
    Duration::from_secs(5)
}

fn deadline() -> Duration {
    Duration::from_secs(30)
}

fn hook_time() -> Duration {
    Duration::from_mins(5)
}

fn status_min() -> u16 {
    200
}

fn status_max() -> u16 {
    399
}

/// Durations as whole seconds.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(time.as_secs())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        u64::deserialize(d).map(Duration::from_secs)
    }
}

/// The same, where there may be none.
mod maybe_seconds {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => s.serialize_some(&time.as_secs()),
            None => s.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
        Option::<u64>::deserialize(d).map(|seconds| seconds.map(Duration::from_secs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_configuration_is_the_default_and_unknown_fields_do_no_harm() {
        let read = |text: &str| serde_json::from_str::<AppConfig>(text).unwrap();
        assert_eq!(read("{}"), AppConfig::default());
        assert_eq!(read(r#"{"a_newer_field": 1}"#), AppConfig::default());
        let line = CommandLine::Line("node server.js".into());
        let config =
            read(r#"{"runtime": {"kind": "command", "command": "node server.js"}, "rpo_seconds": 60}"#);
        assert_eq!(config.runtime, Runtime::Command(CommandRuntime::new(line)));
        assert_eq!(config.rpo, Duration::from_secs(60));
        let health = r#"{"health": {"kind": "http", "url": "http://localhost/"}}"#;
        assert_eq!(read(health).health, Some(Health::new(Check::http("http://localhost/"))));
    }

    #[test]
    fn every_field_round_trips() {
        let words = CommandLine::Words(vec!["python3".into(), "-m".into(), "http.server".into()]);
        let mut config = AppConfig {
            runtime: Runtime::Compose { file: "/srv/blog/compose.yaml".into(), project: Some("blog".into()) },
            health: Some(Health::new(Check::Command { command: words.clone() })),
            excludes: vec!["cache/*".into()],
            filter_automatic: true,
            rpo: Duration::from_secs(90),
            automatic: false,
            paused: Some(Pause { since: Timestamp::UNIX_EPOCH, reason: None, until: None }),
            undo_on_unhealthy: true,
            post_restore: vec![Replace { file: "a".into(), from: "b".into(), to: "c".into() }],
            resource_group: "web".into(),
            plan: "large".into(),
            snapshot: VolumeSnapshot::Btrfs,
            ..AppConfig::default()
        };
        for moment in Moment::ALL {
            *config.hooks.get_mut(moment) = Some(Hook::new(CommandLine::Line(moment.name().into())));
        }
        for runtime in [
            config.runtime.clone(),
            Runtime::Command(CommandRuntime { stop_signal: StopSignal::Usr1, ..CommandRuntime::new(words) }),
            Runtime::Systemd { unit: "blog.service".into(), user: true },
        ] {
            config.runtime = runtime;
            let text = serde_json::to_string(&config).unwrap();
            assert_eq!(serde_json::from_str::<AppConfig>(&text).unwrap(), config);
        }
        for moment in Moment::ALL {
            let hook = config.hooks.get(moment).unwrap();
            assert_eq!(hook.command.to_string(), moment.name());
        }
    }

    #[test]
    fn a_pause_ends_by_itself_where_it_says_so() {
        let at = |s| Timestamp::from_second(s).unwrap();
        let mut config = AppConfig::default();
        assert!(config.wants_automatic(at(0)));
        config.paused = Some(Pause { since: at(0), reason: None, until: Some(at(100)) });
        assert!(config.is_paused(at(99)) && !config.is_paused(at(100)));
        config.paused = Some(Pause { since: at(0), reason: None, until: None });
        assert!(!config.wants_automatic(at(1_000_000)));
    }
}
