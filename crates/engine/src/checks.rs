//! Whether connection strings lead to databases that can be dumped: each is opened and looked at, as a backup does it.
//!
//! Invariants: looking changes nothing at a server and nothing here; no result holds a password. What one database says
//! never hides the others. Crash, locks: nothing is written and no lock is taken.

use std::ffi::OsStr;

use backstay_catalog::App;
use backstay_database::{ConnectionType, Endpoint, Probe, TlsMode, Tool};
use backstay_model::{AppName, Cancel, Code, Error, Result};
use backstay_tree::path::escape;
use serde::Serialize;

use crate::containers::StepError;
use crate::databases::linked::options;
use crate::in_app::{self, ByHand};
use crate::settings::Link;
use crate::state::Engine;

/// What became of looking at a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Checked {
    /// It can be dumped as a whole.
    Well,
    /// Its user does not see everything: no dump is taken.
    Incomplete,
    /// It cannot be reached, opened or dumped.
    Failed,
    /// It is a file of SQLite in the home: content of each point.
    Content,
    /// It is no string of a database.
    NoDatabase,
}

/// A connection that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct ConnectionCheck {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What became of it.
    pub result: Checked,
    /// The kind of database it points to; none where it points to none.
    pub database_kind: Option<&'static str>,
    /// Where it points, in words.
    pub points_to: Option<String>,
    /// Whether backups take it.
    pub in_points: bool,
    /// Whether it is the app's own MySQL, which no connection string was set for.
    pub in_app: bool,
    /// Whether it was set by hand for the app's own MySQL, or under its name.
    pub by_hand: bool,
    /// The server's version.
    pub version: Option<String>,
    /// As whom the server sees us.
    pub user: Option<String>,
    /// The protocol of TLS; none for a connection in clear or through a socket.
    pub tls: Option<String>,
    /// How far the server's certificate was checked; none where it was not.
    pub tls_verified: Option<TlsMode>,
    /// Bytes that a dump may have, about.
    pub estimated_bytes: Option<u64>,
    /// The program that would dump it.
    pub tool: Option<Tool>,
    /// What its user does not see, each with the grant that would show it.
    pub missing: Vec<String>,
    /// What a person should know.
    pub notes: Vec<String>,
    /// Why it failed, or why it is no database.
    pub error: Option<StepError>,
}

impl ConnectionCheck {
    fn of(link: &Link, result: Checked, in_points: bool) -> Self {
        let endpoint = link.endpoint.as_ref().ok();
        ConnectionCheck {
            name: link.name.clone(),
            kind: link.kind.as_str(),
            result,
            database_kind: endpoint.map(|e| e.kind.name()),
            points_to: endpoint.map(points_to),
            in_points,
            in_app: false,
            by_hand: false,
            version: None,
            user: None,
            tls: None,
            tls_verified: None,
            estimated_bytes: None,
            tool: None,
            missing: Vec::new(),
            notes: Vec::new(),
            error: None,
        }
    }

    fn with(mut self, probe: Probe) -> Self {
        if !probe.missing.is_empty() {
            self.result = Checked::Incomplete;
        }
        self.version = Some(probe.version);
        self.user = Some(probe.user);
        self.tls = probe.tls.version;
        self.tls_verified = probe.tls.verified.filter(|mode| *mode >= TlsMode::VerifyCa);
        self.estimated_bytes = Some(probe.estimated_bytes);
        self.tool = Some(probe.tool);
        self.missing = probe.missing;
        self.notes = probe.notes;
        self
    }

    fn failed(mut self, e: &Error) -> Self {
        if self.result == Checked::Well {
            self.result = Checked::Failed;
        }
        self.error = Some(StepError {
            code: e.code(),
            message: e.message().to_owned(),
            advice: e.advice().to_owned(),
            cause: e.causes().into_iter().next(),
        });
        self
    }
}

impl Engine {
    /// Opens the database of each connection of an app, or of one, and looks at it.
    pub fn check_connections(
        &self,
        app: &AppName,
        name: Option<&str>,
        cancel: &Cancel,
    ) -> Result<Vec<ConnectionCheck>> {
        let mut links = self.connections(app)?;
        let mut own = self.known_app(app.as_str())?.config.in_app_mysql;
        if let Some(name) = name {
            links.retain(|link| link.name == name);
            own &= name == in_app::NAME;
            if links.is_empty() && !own {
                let message = format!("App `{app}` has no connection `{}`", name.escape_debug());
                return Err(Error::new(Code::ConnectionNotFound, message));
            }
        }
        let app = self.known_app(app.as_str())?;
        let taken = self.linked_names(&app)?;
        let mut everything = app.clone();
        everything.config.databases.take = true;
        everything.config.databases.without.clear();
        everything.config.databases.replicas.clear();
        let databases = self.linked_names(&everything)?;
        let mut checks = Vec::new();
        if own {
            checks.push(self.check_in_app(&app, cancel)?);
        }
        for link in &links {
            cancel.check()?;
            let mut check = match self.in_app_by_hand(&app, link) {
                None => look(&app, link, (&databases, &taken), cancel),
                Some(by_hand) => self.check_by_hand(&app, link, by_hand, cancel),
            };
            for (name, replica) in &app.config.databases.replicas {
                if *name == link.name {
                    check.notes.push(format!("Points have it as its replica `{replica}` has it"));
                } else if *replica == link.name {
                    check.notes.push(format!("A replica: what points have of `{name}` is read here"));
                }
            }
            checks.push(check);
        }
        cancel.check()?;
        Ok(checks)
    }

    /// Looks at the app's own MySQL, which is started for that.
    fn check_in_app(&self, app: &App, cancel: &Cancel) -> Result<ConnectionCheck> {
        let endpoint = self.in_app_endpoint(app);
        let (name, kind) = (in_app::NAME.to_owned(), ConnectionType::MySql);
        let link = Link { name, kind, endpoint, sticky: true, changed: app.created };
        let taken = app.config.databases.take && !app.config.databases.without.contains(&link.name);
        let check = ConnectionCheck { in_app: true, ..ConnectionCheck::of(&link, Checked::Well, taken) };
        let looked = self
            .hold_in_app(&app.name, cancel)
            .and_then(|held| held.endpoint().and_then(|endpoint| open(app, &endpoint, cancel)));
        Ok(match looked {
            Ok(probe) => check.with(probe),
            Err(e) => check.failed(&e),
        })
    }

    /// Looks at one that was set by hand for the app's own MySQL.
    fn check_by_hand(&self, app: &App, link: &Link, by_hand: ByHand, cancel: &Cancel) -> ConnectionCheck {
        let check = ConnectionCheck { by_hand: true, ..ConnectionCheck::of(link, Checked::Well, false) };
        let held = self.hold_in_app(&app.name, cancel);
        let mut check = match link.endpoint.as_ref().map(|endpoint| open(app, endpoint, cancel)) {
            Ok(Ok(probe)) => check.with(probe),
            Ok(Err(e)) => check.failed(&e),
            Err(e) => check.failed(e),
        };
        drop(held);
        check.notes.insert(0, by_hand.told);
        check
    }

    fn linked_names(&self, app: &App) -> Result<Vec<String>> {
        Ok(self.linked(app)?.into_iter().map(|linked| linked.name).collect())
    }
}

/// Looks at one. `databases` are the connections that are linked databases, `taken` those that backups take.
fn look(
    app: &App,
    link: &Link,
    (databases, taken): (&[String], &[String]),
    cancel: &Cancel,
) -> ConnectionCheck {
    let is_database = databases.contains(&link.name);
    let check = |result| ConnectionCheck::of(link, result, taken.contains(&link.name));
    match &link.endpoint {
        Ok(_) if !is_database => check(Checked::Content),
        Ok(endpoint) => match open(app, endpoint, cancel) {
            Ok(probe) => check(Checked::Well).with(probe),
            Err(e) => check(Checked::Well).failed(&e),
        },
        Err(e) if is_database => check(Checked::Well).failed(e),
        // One of the type Custom may be anything, and one that does not open is told by its code.
        Err(e) if e.code() != Code::InvalidValue => check(Checked::Well).failed(e),
        Err(e) => check(Checked::NoDatabase).failed(e),
    }
}

fn open(app: &App, endpoint: &Endpoint, cancel: &Cancel) -> Result<Probe> {
    backstay_database::open(endpoint, options(app, cancel))?.probe()
}

/// Where a connection string leads, as a text that can be printed anywhere.
pub(crate) fn points_to(endpoint: &Endpoint) -> String {
    escape(OsStr::new(&endpoint.to_string()))
}
