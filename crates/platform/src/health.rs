//! Whether an app is well.
//!
//! Invariants: ends when the app is well, when its deadline has passed, when it has ended by itself, or when the work is
//! cancelled; one answer never takes longer than its own limit. No proxy is used and no redirect followed: the app
//! itself is asked. Certificates are checked against the system's authorities. An address is told without its query.

use std::time::{Duration, Instant};

use backstay_model::app::{Check, Health};
use backstay_model::{Cancel, Code, Error, Result};
use reqwest::blocking::Client;
use serde::Serialize;

use crate::app::{Runtime, State, state};
use crate::child::{self, status_text};

/// How long is waited between two checks.
const PAUSE: Duration = Duration::from_millis(250);
/// How long is waited for a runtime that says it is not up yet.
const UP: Duration = Duration::from_secs(10);

/// That an app is well, and how long it took.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Healthy {
    /// How often it was asked; 0 where no check is set.
    pub tries: u32,
    /// How long it took until it was well.
    pub seconds: f64,
    /// What was asked, for people.
    pub check: Option<String>,
}

pub(crate) fn wait(app: &Runtime, cancel: &Cancel) -> Result<Healthy> {
    let started = Instant::now();
    let Some(health) = &app.config.health else {
        runs(app, cancel, UP)?;
        return Ok(Healthy { tries: 0, seconds: seconds(started), check: None });
    };
    let prober = Prober::new(app, health)?;
    let mut tries = 0;
    loop {
        cancel.check()?;
        tries += 1;
        let last = match prober.ask(cancel) {
            Ok(()) => return Ok(Healthy { tries, seconds: seconds(started), check: Some(prober.told()) }),
            Err(e) if e.code() == Code::Cancelled => return Err(e),
            Err(e) => e,
        };
        let told = prober.told();
        // An app that has ended does not become well.
        if state(app, cancel)?.state == State::Failed {
            return Err(failed(app, "it has ended", last, &told));
        }
        if started.elapsed() >= health.deadline {
            let why = format!("not within {} s ({tries} tries)", health.deadline.as_secs());
            return Err(failed(app, &why, last, &told));
        }
        std::thread::sleep(PAUSE);
    }
}

fn failed(app: &Runtime, why: &str, last: Error, told: &str) -> Error {
    let error = Error::new(Code::HealthCheckFailed, format!("App `{}` is not healthy: {why}", app.name))
        .because(last);
    match app.log_file() {
        Some(log) => error.advise(format!("See what {told} answers and the app's log, {}.", log.display())),
        None => error,
    }
}

/// Waits until the runtime says that the app is up.
fn runs(app: &Runtime, cancel: &Cancel, limit: Duration) -> Result<()> {
    let started = Instant::now();
    loop {
        let now = state(app, cancel)?;
        match now.state {
            State::Static | State::Running => return Ok(()),
            State::Stopped if started.elapsed() < limit => {}
            State::Stopped | State::Failed => {
                let why = now.detail.unwrap_or_else(|| "it does not run".to_owned());
                let message = format!("App `{}` is not healthy: {why}", app.name);
                return Err(Error::new(Code::HealthCheckFailed, message));
            }
        }
        cancel.check()?;
        std::thread::sleep(PAUSE);
    }
}

fn seconds(since: Instant) -> f64 {
    (since.elapsed().as_secs_f64() * 1_000.0).round() / 1_000.0
}

/// Asks once.
struct Prober<'a> {
    app: &'a Runtime,
    health: &'a Health,
    client: Option<Client>,
}

impl<'a> Prober<'a> {
    fn new(app: &'a Runtime, health: &'a Health) -> Result<Self> {
        let client = match &health.check {
            Check::Command { .. } => None,
            Check::Http { .. } => Some(client(health.timeout)?),
        };
        Ok(Prober { app, health, client })
    }

    /// What is asked, without what an address may hide in its query.
    fn told(&self) -> String {
        match &self.health.check {
            Check::Http { url, .. } => url.split(['?', '#']).next().unwrap_or_default().to_owned(),
            Check::Command { command } => format!("`{command}`"),
        }
    }

    fn ask(&self, cancel: &Cancel) -> Result<()> {
        let bad = |what: String| Error::new(Code::HealthCheckFailed, what);
        match (&self.health.check, &self.client) {
            (Check::Http { url, status_min, status_max }, Some(client)) => {
                let answer = client.get(url).send().map_err(|e| {
                    let what = if e.is_timeout() { "did not answer in time" } else { "cannot be reached" };
                    bad(format!("{} {what}", self.told())).because(e.without_url())
                })?;
                let status = answer.status().as_u16();
                if (*status_min..=*status_max).contains(&status) {
                    return Ok(());
                }
                Err(bad(format!("{} answered with status {status}", self.told())))
            }
            (Check::Command { command }, _) => {
                let mut it = child::clean(command);
                it.current_dir(&self.app.home).env("BACKSTAY_APP", self.app.name.as_str());
                let ended = child::run(&mut it, self.health.timeout, cancel)?;
                if ended.late {
                    return Err(bad(format!(
                        "`{command}` took longer than {} s",
                        self.health.timeout.as_secs()
                    )));
                }
                if ended.status.success() {
                    return Ok(());
                }
                let error = bad(format!("`{command}` ended with {}", status_text(ended.status)));
                let said = ended.output.text();
                Err(if said.is_empty() { error } else { error.because(said) })
            }
            (Check::Http { .. }, None) => Err(Error::new(Code::Internal, "The check has no client")),
        }
    }
}

fn client(timeout: Duration) -> Result<Client> {
    // The one provider of this program; an error says that it is set already.
    let _set_before = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .timeout(timeout)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("backstay/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|e| Error::new(Code::System, "Cannot prepare HTTP").because(e.without_url()))
}
