//! Telling people: mail, webhooks, programs; and pings for services that watch for signs of life.
//!
//! Invariants: nothing here decides what is told (that is [`crate::alerts`]), nothing here waits longer than
//! [`LIMIT`] for an answer, and nothing here is done by a thread that takes backups. A channel that fails has no say
//! over the others. Addresses of webhooks and pings are secrets: errors and results name their hosts only. Nothing
//! is stored: who was told what is remembered by the caller, after the channel took the message; killed in between,
//! a message comes twice rather than never.

mod command;
mod http;
mod mail;

use std::time::Duration;

use backstay_model::{AppName, Code, Error, Result, Secret};
use jiff::Timestamp;
use serde::Serialize;

use crate::config::{self, Notify, shown_host};
use crate::manifest::host;
use crate::state::Engine;

use self::http::Http;

/// How long a channel may take for its answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Most characters of a text in a message.
const TEXT_MAX: usize = 4_000;

/// Why a message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Event {
    /// It became true.
    Raised,
    /// It is still true.
    Reminder,
    /// It is well again.
    Cleared,
    /// Somebody tries the channel.
    Test,
}

/// A message, which is also the JSON that webhooks and programs are given. Additive: fields are never taken away.
#[derive(Clone, Debug, Serialize)]
pub struct Message {
    /// The version of this form.
    pub format: u32,
    /// Why it is sent.
    pub event: Event,
    /// What it is about, as one word (`backup-failed`).
    pub kind: String,
    /// Whose app; none for what is about the whole.
    pub app: Option<AppName>,
    /// The machine.
    pub host: String,
    /// Since when it is true.
    pub since: Timestamp,
    /// When the message was made.
    pub time: Timestamp,
    /// The stable error code, where there is one.
    pub code: Option<String>,
    /// What happened.
    pub message: String,
    /// What to do.
    pub advice: String,
    /// One line.
    pub subject: String,
    /// Everything as one text for people.
    pub text: String,
}

/// What a message is about.
#[derive(Clone, Debug)]
pub(crate) struct About<'a> {
    pub event: Event,
    pub kind: &'a str,
    pub app: Option<&'a AppName>,
    pub since: Timestamp,
    pub code: Option<&'a str>,
    pub message: &'a str,
    pub advice: &'a str,
}

impl Message {
    /// The message with its texts.
    pub(crate) fn new(about: &About<'_>, host: &str, now: Timestamp) -> Self {
        let About { event, kind, app, since, code, message, advice } = *about;
        let whose = app.map_or_else(|| "Backstay".to_owned(), |app| format!("App `{app}`"));
        let first = line(message);
        let subject = match event {
            Event::Raised => format!("[backstay {host}] {whose}: {first}"),
            Event::Reminder => format!("[backstay {host}] {whose}, still: {first}"),
            Event::Cleared => format!("[backstay {host}] {whose}: well again ({})", kind.replace('-', " ")),
            Event::Test => format!("[backstay {host}] A test message"),
        };
        let mut text = match event {
            Event::Cleared => format!("{whose}: well again.\n\nIt was: {first}\n"),
            Event::Reminder => format!("{whose}: {first}\n\nThis is still so; it was told before.\n"),
            _ => format!("{whose}: {first}\n"),
        };
        if event != Event::Cleared && !advice.is_empty() {
            text.push_str(&format!("What to do: {advice}\n"));
        }
        if let Some(code) = code {
            text.push_str(&format!("Code: {code} (docs/errors.md#{})\n", code.to_ascii_lowercase()));
        }
        if event != Event::Test {
            text.push_str(&format!("Since: {}\n", utc(since)));
        }
        text.push_str(&format!("Machine: {host}\n"));
        Message {
            format: 1,
            event,
            kind: kind.to_owned(),
            app: app.cloned(),
            host: host.to_owned(),
            since,
            time: now,
            code: code.map(str::to_owned),
            message: first,
            advice: advice.to_owned(),
            subject: subject.chars().take(200).collect(),
            text,
        }
    }

    fn json(&self) -> Result<String> {
        serde_json::to_string(self)
            .map_err(|e| Error::new(Code::Internal, "The message cannot be written as JSON").because(e))
    }
}

/// A text as one line without control characters, cut to what a message takes.
fn line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TEXT_MAX).collect()
}

/// A time as messages tell it.
pub(crate) fn utc(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

/// What a run has come to, for pings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ping {
    Start,
    Success,
    Fail,
}

/// What became of a message on one channel.
#[derive(Clone, Debug, Serialize)]
pub struct Delivery {
    /// The channel's name.
    pub channel: String,
    /// Where it goes, without secrets.
    pub target: String,
    /// Whether it was taken.
    pub delivered: bool,
    /// Why not.
    pub error: Option<String>,
}

enum Kind<'a> {
    Mail(&'a config::Mail),
    Webhook(&'a config::Webhook),
    Command(&'a config::Command),
}

/// A channel that takes messages.
pub(crate) struct Channel<'a> {
    /// Its name, by which it is remembered who was told.
    pub name: String,
    kind: Kind<'a>,
}

/// All channels of a configuration.
pub(crate) struct Notifier<'a> {
    config: &'a Notify,
    http: Http,
}

impl<'a> Notifier<'a> {
    pub fn new(config: &'a Notify) -> Self {
        Notifier { config, http: Http::default() }
    }

    /// The channels in the order of the configuration.
    pub fn channels(&self) -> Vec<Channel<'a>> {
        let mail = self.config.mail.iter().map(|m| Channel { name: "mail".to_owned(), kind: Kind::Mail(m) });
        let named = |name: &Option<String>, kind: &str, n: usize| {
            name.clone().unwrap_or_else(|| format!("{kind}-{}", n + 1))
        };
        let webhooks = self
            .config
            .webhook
            .iter()
            .enumerate()
            .map(|(n, w)| Channel { name: named(&w.name, "webhook", n), kind: Kind::Webhook(w) });
        let commands = self
            .config
            .command
            .iter()
            .enumerate()
            .map(|(n, c)| Channel { name: named(&c.name, "command", n), kind: Kind::Command(c) });
        mail.chain(webhooks).chain(commands).collect()
    }

    /// Sends a message through one channel.
    pub fn send(&self, channel: &Channel<'_>, message: &Message) -> Result<()> {
        match channel.kind {
            Kind::Mail(mail) => mail::send(mail, message),
            Kind::Webhook(webhook) => {
                let token = webhook.bearer_file.as_deref().map(first_line).transpose()?;
                self.http.post(&webhook.url, token.as_ref(), message.json()?)
            }
            Kind::Command(command) => command::run(command, message),
        }
    }

    /// Tells the address that watches an app what its run has come to. Nothing where there is none.
    pub fn ping(&self, app: &AppName, ping: Ping) -> Result<()> {
        match self.config.ping.of(app) {
            Some(url) => self.http.ping(url, ping),
            None => Ok(()),
        }
    }
}

impl Channel<'_> {
    /// Where it goes, without secrets.
    fn target(&self) -> String {
        match self.kind {
            Kind::Mail(mail) => format!("{} by {}", mail.to.join(", "), mail.host),
            Kind::Webhook(webhook) => shown_host(&webhook.url).unwrap_or_default(),
            Kind::Command(command) => command.run.first().cloned().unwrap_or_default(),
        }
    }
}

/// The first line of a file with a secret.
fn first_line(path: &std::path::Path) -> Result<Secret> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Error::new(Code::NotifyFailed, format!("Cannot read {}", path.display())).because(e))?;
    Ok(Secret::new(text.lines().next().unwrap_or_default().trim()))
}

/// The error and its causes as one line.
pub(crate) fn why(e: &Error) -> String {
    let causes = e.causes();
    std::iter::once(e.message().to_owned()).chain(causes).collect::<Vec<_>>().join(": ")
}

impl Engine {
    /// Sends a test message through every channel, and a sign of life to every ping address; tells what became of
    /// each. Empty when no channel is configured.
    #[must_use]
    pub fn notify_test(&self) -> Vec<Delivery> {
        let config = &self.config.notify;
        let notifier = Notifier::new(config);
        let now = self.clock.now();
        let about = About {
            event: Event::Test,
            kind: "test",
            app: None,
            since: now,
            code: None,
            message: "This is a test. Messages from this machine arrive",
            advice: "",
        };
        let message = Message::new(&about, &host(), now);
        let told = |channel: String, target: String, done: Result<()>| Delivery {
            channel,
            target,
            delivered: done.is_ok(),
            error: done.err().map(|e| why(&e)),
        };
        let messages = notifier
            .channels()
            .into_iter()
            .map(|c| told(c.name.clone(), c.target(), notifier.send(&c, &message)));
        let all = config.ping.url.iter().map(|url| ("ping".to_owned(), url));
        let apps = config.ping.apps.iter().map(|(app, url)| (format!("ping {app}"), url));
        let pings = all.chain(apps).map(|(name, url)| {
            told(name, shown_host(url).unwrap_or_default(), notifier.http.ping(url, Ping::Success))
        });
        messages.chain(pings).collect()
    }
}
