//! `backstay.toml`: the operator's configuration. Every key has a default, the file may be absent.
//!
//! Invariants: Backstay reads it and never writes it. An unknown key is an error, since a misspelt one would be
//! obeyed by nobody. Errors name the line and never repeat it: it may hold a password or a secret address.

mod values;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_model::{AppName, Code, Error, Result, Secret};
use serde::{Deserialize, Deserializer};

use crate::limits::Limits;
use crate::private;

pub(crate) use values::optional_size;
pub use values::{parse_duration, parse_size};

/// The name of the file in the state folder.
pub(crate) const FILE: &str = "backstay.toml";

/// The configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Address of the vault: a folder. Relative paths count from the state folder.
    pub vault: Option<String>,
    /// Automatic points.
    pub automatic: Automatic,
    /// Who is told what went wrong.
    pub notify: Notify,
    /// How large backups may be, by plan.
    pub plans: BTreeMap<String, Limits>,
}

/// `[automatic]`: the hourly points.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Automatic {
    /// Runs of different apps are spread over this time after the full hour; below an hour.
    #[serde(deserialize_with = "values::duration")]
    pub jitter: Duration,
    /// Runs at once.
    pub parallel: usize,
    /// Most bytes of points that wait on this machine while the vault cannot be reached.
    #[serde(deserialize_with = "values::size")]
    pub spool: u64,
    /// Below so many free bytes at the place of the vault an alert is raised.
    #[serde(deserialize_with = "values::size")]
    pub vault_free: u64,
}

impl Default for Automatic {
    fn default() -> Self {
        Automatic { jitter: Duration::from_secs(600), parallel: 2, spool: 10 << 30, vault_free: 1 << 30 }
    }
}

/// `[notify]`: who is told.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Notify {
    /// After so long an alert that is still true is told again.
    #[serde(deserialize_with = "values::duration")]
    pub reminder: Duration,
    /// `[notify.mail]`
    pub mail: Option<Mail>,
    /// `[[notify.webhook]]`
    pub webhook: Vec<Webhook>,
    /// `[[notify.command]]`
    pub command: Vec<Command>,
    /// `[notify.ping]`
    pub ping: Ping,
}

impl Default for Notify {
    fn default() -> Self {
        Notify {
            reminder: Duration::from_secs(86_400),
            mail: None,
            webhook: Vec::new(),
            command: Vec::new(),
            ping: Ping::default(),
        }
    }
}

/// `[notify.mail]`: a mail server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mail {
    /// Name or address of the server.
    pub host: String,
    /// Its port; none for the usual one of the kind of TLS (587, 465 or 25).
    pub port: Option<u16>,
    /// How the connection is protected.
    #[serde(default)]
    pub tls: Tls,
    /// A file (PEM) with the certificate of an authority of one's own, beside the public ones.
    pub ca_file: Option<PathBuf>,
    /// Who logs in; none for nobody.
    pub user: Option<String>,
    /// The file whose first line is the password.
    pub password_file: Option<PathBuf>,
    /// The variable of the environment that holds the password.
    pub password_env: Option<String>,
    /// The sender's address.
    pub from: String,
    /// The receivers' addresses.
    pub to: Vec<String>,
}

/// How a connection to a mail server is protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Tls {
    /// Begun in the clear and changed to TLS before anything is said; refused when the server cannot.
    #[default]
    Starttls,
    /// TLS from the first byte.
    Implicit,
    /// None at all: for a server on this machine.
    None,
}

/// `[[notify.webhook]]`: an address that takes JSON.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Webhook {
    /// How it is called in messages; none for `webhook-N`.
    pub name: Option<String>,
    /// The address. It is a secret: only its host is ever shown.
    #[serde(deserialize_with = "secret")]
    pub url: Secret,
    /// The file whose first line is sent as bearer token.
    pub bearer_file: Option<PathBuf>,
}

/// `[[notify.command]]`: a program that is given the message.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Command {
    /// How it is called in messages; none for `command-N`.
    pub name: Option<String>,
    /// The program and its arguments.
    pub run: Vec<String>,
}

/// `[notify.ping]`: addresses that want a sign of life after each automatic point.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Ping {
    /// For all apps that have none of their own.
    #[serde(deserialize_with = "optional_secret")]
    pub url: Option<Secret>,
    /// By app.
    #[serde(deserialize_with = "secrets")]
    pub apps: BTreeMap<AppName, Secret>,
}

impl Ping {
    /// The address for an app.
    pub fn of(&self, app: &AppName) -> Option<&Secret> {
        self.apps.get(app).or(self.url.as_ref())
    }
}

fn secret<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Secret, D::Error> {
    String::deserialize(d).map(Secret::new)
}

fn optional_secret<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Option<Secret>, D::Error> {
    secret(d).map(Some)
}

fn secrets<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<BTreeMap<AppName, Secret>, D::Error> {
    let plain = BTreeMap::<AppName, String>::deserialize(d)?;
    Ok(plain.into_iter().map(|(app, url)| (app, Secret::new(url))).collect())
}

/// The host and port of an address, which may be shown; none when it is not an `http` or `https` address.
pub(crate) fn shown_host(url: &Secret) -> Option<String> {
    let url = reqwest::Url::parse(url.reveal()).ok()?;
    let host = url.host_str().filter(|_| matches!(url.scheme(), "http" | "https"))?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

/// Whether a mail server is this machine.
fn is_here(host: &str) -> bool {
    matches!(host, "localhost" | "::1" | "[::1]") || host.starts_with("127.")
}

const KEYS: &str = "Correct the line named. Known keys: vault; [automatic] jitter, parallel, spool, vault_free; [notify] reminder; \
    [notify.mail] host, port, tls, ca_file, user, password_file, password_env, from, to; [[notify.webhook]] name, url, \
    bearer_file; [[notify.command]] name, run; [notify.ping] url, and [notify.ping.apps] with one address per app; [plans.NAME] automatic, custom, databases.";

impl Config {
    /// Reads the file of a state.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let Some(bytes) = private::read(&path)? else { return Ok(Self::default()) };
        let text = String::from_utf8_lossy(&bytes);
        let refused = |why: String| {
            let message = format!("{} is not a valid configuration", path.display());
            Error::new(Code::InvalidValue, message).because(why).advise(KEYS)
        };
        let config: Config = toml::from_str(&text).map_err(|e| refused(told(&text, &e)))?;
        config.check().map_err(|why| refused(why.to_owned()))?;
        Ok(config)
    }

    /// What the form alone cannot say.
    fn check(&self) -> std::result::Result<(), &'static str> {
        if self.automatic.jitter >= Duration::from_secs(3_600) {
            return Err("automatic.jitter must be shorter than an hour");
        }
        if self.automatic.parallel == 0 {
            return Err("automatic.parallel must be at least 1");
        }
        if self.notify.reminder.is_zero() {
            return Err("notify.reminder must be longer than nothing");
        }
        let pings = self.notify.ping.apps.values().chain(&self.notify.ping.url);
        let mut urls = self.notify.webhook.iter().map(|w| &w.url).chain(pings);
        if urls.any(|url| shown_host(url).is_none()) {
            return Err("an address of a webhook or ping is not a whole http:// or https:// address");
        }
        if self.notify.command.iter().any(|c| c.run.first().is_none_or(String::is_empty)) {
            return Err("notify.command.run names no program");
        }
        self.notify.mail.as_ref().map_or(Ok(()), Mail::check)
    }
}

impl Mail {
    fn check(&self) -> std::result::Result<(), &'static str> {
        if self.to.is_empty() {
            return Err("notify.mail.to names nobody");
        }
        if self.password_file.is_some() && self.password_env.is_some() {
            return Err("notify.mail has both password_file and password_env: one is enough");
        }
        let password = self.password_file.is_some() || self.password_env.is_some();
        if self.user.is_some() != password {
            return Err("notify.mail needs user and password_file (or password_env) together");
        }
        if password && self.tls == Tls::None && !is_here(&self.host) {
            return Err(
                "notify.mail would send the password in the clear: use tls = \"starttls\" or \"implicit\"",
            );
        }
        Ok(())
    }
}

/// What is wrong and in which line, without the line itself: it may hold a secret.
fn told(text: &str, e: &toml::de::Error) -> String {
    let line = e.span().and_then(|s| text.get(..s.start)).map(|before| before.matches('\n').count() + 1);
    match line {
        Some(line) => format!("line {line}: {}", e.message()),
        None => e.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), text).unwrap();
        Config::load(dir.path())
    }

    #[test]
    fn a_misspelt_key_is_told_and_an_absent_file_is_the_default() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Config::load(dir.path()).unwrap(), Config::default());
        assert_eq!(load("vault = \"/mnt/v\"\n").unwrap().vault.as_deref(), Some("/mnt/v"));
        let error = load("vualt = \"/mnt/v\"\n").unwrap_err();
        assert_eq!(error.code(), Code::InvalidValue);
        assert!(error.causes().concat().contains("vualt"), "{error:?}");
        for text in
            ["[notify]\nremindr = \"1h\"", "[[notify.webhook]]\nulr = \"http://h\"", "[automatic]\nx = 1"]
        {
            assert_eq!(load(text).unwrap_err().code(), Code::InvalidValue, "{text}");
        }
    }

    #[test]
    fn everything_that_is_documented_is_understood() {
        let config = load(
            r#"
            vault = "/mnt/v"
            [automatic]
            jitter = "5m"
            parallel = 1
            spool = "2GiB"
            vault_free = "500MB"
            [notify]
            reminder = "12h"
            [notify.mail]
            host = "mail.example.org"
            tls = "implicit"
            user = "u"
            password_env = "MAIL_PASSWORD"
            from = "Backstay <backstay@example.org>"
            to = ["ops@example.org"]
            [[notify.webhook]]
            url = "https://hooks.example.org:8443/s3cret"
            bearer_file = "/etc/token"
            [[notify.command]]
            run = ["/usr/bin/logger", "-t", "backstay"]
            [notify.ping]
            url = "https://hc.example.org/all-s3cret"
            [notify.ping.apps]
            blog = "https://hc.example.org/blog-s3cret"
            [plans.small]
            custom = "1GB"
            "#,
        )
        .unwrap();
        assert_eq!((config.automatic.spool, config.automatic.jitter.as_secs()), (2 << 30, 300));
        assert_eq!(config.notify.reminder.as_secs(), 43_200);
        assert_eq!(
            (config.plans["small"].custom, config.plans["small"].automatic),
            (Some(1_000_000_000), None)
        );
        assert_eq!(config.notify.mail.as_ref().unwrap().tls, Tls::Implicit);
        let host = shown_host(&config.notify.webhook[0].url).unwrap();
        assert_eq!(host, "hooks.example.org:8443");
        let ping = |app: &str| config.notify.ping.of(&app.parse().unwrap()).unwrap().reveal().to_owned();
        assert!(ping("blog").ends_with("/blog-s3cret") && ping("shop").ends_with("/all-s3cret"));
        assert!(!format!("{config:?}").contains("s3cret"), "secrets are not shown");
    }

    #[test]
    fn what_cannot_work_is_refused_without_repeating_secrets() {
        let mail = "[notify.mail]\nhost = \"h\"\nfrom = \"a@b\"\nto = [\"c@d\"]\n";
        let cases = [
            "[automatic]\njitter = \"1h\"".to_owned(),
            "[automatic]\njitter = \"s3cret\"".replace("s3cret", "soon"),
            "[automatic]\nparallel = 0".to_owned(),
            "[notify]\nreminder = \"0s\"".to_owned(),
            "[[notify.webhook]]\nurl = \"ftp://s3cret\"".to_owned(),
            "[[notify.webhook]]\nurl = \"s3cret\"".to_owned(),
            "[[notify.webhook]]\nurl = [\"http://s3cret\"]".to_owned(),
            "[notify.ping]\nurl = \"https//s3cret\"".to_owned(),
            "[notify.ping.apps]\nblog = 's3cret'".to_owned(),
            "[[notify.command]]\nrun = []".to_owned(),
            "[notify.mail]\npassword = \"s3cret\"".to_owned(),
            "[notify.mail]\nhost = \"h\"\nfrom = \"a@b\"\nto = []".to_owned(),
            format!("{mail}user = \"u\""),
            format!("{mail}password_env = \"P\""),
            format!("{mail}user = \"u\"\npassword_env = \"P\"\ntls = \"none\""),
            format!("{mail}user = \"u\"\npassword_env = \"P\"\npassword_file = \"/f\""),
        ];
        for text in cases {
            let error = load(&text).unwrap_err();
            assert_eq!(error.code(), Code::InvalidValue, "{text}");
            assert!(!format!("{error:?}{}", error.advice()).contains("s3cret"), "{error:?}");
        }
        load(
            &format!("{mail}user = \"u\"\npassword_env = \"P\"\ntls = \"none\"")
                .replace("\"h\"", "\"localhost\""),
        )
        .unwrap();
    }
}
