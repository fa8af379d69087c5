//! Which databases an app has, and which of them are due in a point.
//!
//! Invariants: what is due follows from the manifest of the point before alone, so a lost state changes nothing. A database that was
//! never saved is always due, and so is every one in a point that a person asked for or that comes before a restore.

use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_catalog::App;
use backstay_database::{ConnectionType, Endpoint, Kind, Options, Place};
use backstay_model::{Cancel, Code, Error, Origin, Problem, ProblemKind, Result};
use jiff::Timestamp;

use crate::in_app;
use crate::manifest::{Manifest, Waiting};
use crate::settings::Link;
use crate::state::Engine;

/// From so many bytes on a database is not dumped every hour.
const LARGE: u64 = 2 << 30;
/// How often then.
const LARGE_EVERY: Duration = Duration::from_hours(6);
/// Points are taken on the hour, not to the second.
const SLACK: Duration = Duration::from_mins(15);

/// A database that an app has a connection string for.
pub(crate) struct Linked {
    /// The name of the connection.
    pub name: String,
    /// Whether it is the app's own MySQL, which may have to be started ([`Engine::hold_linked`]).
    pub in_app: bool,
    /// What is read for a dump.
    endpoint: Result<Endpoint>,
    /// The connection that it is read through, where that is another.
    replica: Option<String>,
}

/// Whether a database is to be in a point.
pub(crate) enum Due {
    Now,
    Later(Waiting),
}

impl Engine {
    /// The databases that an app is linked to. SQLite files in its home are content, and connections that are no
    /// database at all are not.
    pub(crate) fn linked(&self, app: &App) -> Result<Vec<Linked>> {
        if !app.config.databases.take {
            return Ok(Vec::new());
        }
        let (left_out, replicas) = (&app.config.databases.without, &app.config.databases.replicas);
        let home = app.home.as_ref().and_then(|home| home.canonicalize().ok());
        let links = match self.connections(&app.name) {
            // Its first backup makes it known.
            Err(e) if e.code() == Code::AppNotFound => Vec::new(),
            links => links?,
        };
        let wanted = |link: &&Link| {
            !left_out.contains(&link.name)
                && !replicas.values().any(|r| *r == link.name)
                && self.in_app_by_hand(app, link).is_none()
        };
        let linked = links.iter().filter(wanted).filter_map(|link| {
            let linked = linked(link, home.as_ref())?;
            Some(match replicas.get(&link.name) {
                Some(replica) => linked.read_from(replica, &links),
                None => linked,
            })
        });
        Ok(self.linked_in_app(app).into_iter().chain(linked).collect())
    }

    /// The app's own MySQL, unless it is left out.
    fn linked_in_app(&self, app: &App) -> Option<Linked> {
        let wanted =
            app.config.in_app_mysql && !app.config.databases.without.iter().any(|n| n == in_app::NAME);
        wanted.then(|| {
            let endpoint = self.in_app_endpoint(app);
            Linked { name: in_app::NAME.to_owned(), in_app: true, endpoint, replica: None }
        })
    }
}

fn linked(link: &Link, home: Option<&PathBuf>) -> Option<Linked> {
    match &link.endpoint {
        // Of a custom string that is no database's nothing can be said.
        Err(_) if link.kind == ConnectionType::Custom => None,
        Ok(Endpoint { kind: Kind::Sqlite, place: Place::File(file), .. })
            if home.is_some_and(|home| is_inside(file, home)) =>
        {
            None
        }
        endpoint => {
            Some(Linked { name: link.name.clone(), in_app: false, endpoint: again(endpoint), replica: None })
        }
    }
}

/// The same; an error with its words and what to do.
fn again(endpoint: &Result<Endpoint>) -> Result<Endpoint> {
    match endpoint {
        Ok(endpoint) => Ok(endpoint.clone()),
        Err(e) => Err(Error::new(e.code(), e.message()).advise(e.advice())),
    }
}

fn is_inside(file: &std::path::Path, home: &Path) -> bool {
    let folder = file.parent().and_then(|folder| folder.canonicalize().ok());
    !file.is_absolute() || folder.is_some_and(|folder| folder.starts_with(home))
}

impl Linked {
    /// It cannot be reached, and why.
    pub fn failed(&mut self, why: Error) {
        self.endpoint = Err(why);
    }

    /// The same, read through another connection of the app. Never through its own instead: whoever names a replica wants the
    /// primary left alone.
    fn read_from(self, replica: &str, links: &[Link]) -> Self {
        let kind = self.endpoint.as_ref().ok().map(|e| e.kind);
        let endpoint = match links.iter().find(|link| link.name == replica) {
            None => Err(Error::new(
                Code::ConnectionNotFound,
                format!(
                    "The replica of `{}` is to be read through `{replica}`, which is no connection of the app",
                    self.name
                ),
            )),
            Some(link) => again(&link.endpoint).and_then(|endpoint| match kind {
                Some(kind) if kind != endpoint.kind => Err(Error::new(
                    Code::Conflict,
                    format!("`{}` is {} and its replica `{replica}` is {endpoint}", self.name, kind.name()),
                )),
                _ => Ok(endpoint),
            }),
        };
        Linked { endpoint, replica: Some(replica.to_owned()), ..self }
    }

    /// Where it is read; the error is that its string cannot be read.
    pub fn endpoint(&self) -> Result<&Endpoint> {
        self.endpoint.as_ref().map_err(|e| Error::new(e.code(), e.message()).advise(e.advice()))
    }

    /// Where it is read, in words.
    pub fn source(&self) -> String {
        let endpoint = self.endpoint.as_ref().map(ToString::to_string).unwrap_or_default();
        match &self.replica {
            Some(replica) => format!("{endpoint} (through `{replica}`)"),
            None => endpoint,
        }
    }

    /// What the dump is named after.
    pub fn file_name(&self) -> String {
        let database = self.endpoint.as_ref().ok().and_then(|e| e.database.clone());
        database.unwrap_or_else(|| self.name.clone())
    }

    /// Of which kind it is, as a manifest says it.
    pub fn kind(&self) -> String {
        self.endpoint.as_ref().map(|e| format!("{:?}", e.kind)).unwrap_or_default()
    }

    /// What stands for it where a path would.
    pub fn path(&self) -> String {
        format!("database {}", self.name)
    }

    /// Whether it is to be in a point that is taken now.
    pub fn due(&self, app: &App, bytes: u64, origin: Origin, past: Option<&Manifest>, now: Timestamp) -> Due {
        let every = match app.config.databases.every {
            Some(every) => every,
            None if bytes >= LARGE => LARGE_EVERY,
            None => return Due::Now,
        };
        let Some(last) = past.and_then(|past| last_saved(past, &self.name)) else { return Due::Now };
        let age = now.duration_since(last.at);
        let enough = jiff::SignedDuration::try_from(every.saturating_sub(SLACK)).unwrap_or_default();
        // A clock that was set back must not hold a dump up.
        let recent = age >= jiff::SignedDuration::ZERO && age < enough;
        match origin == Origin::Automatic && recent {
            true => Due::Later(Waiting { every_seconds: every.as_secs(), bytes, ..last }),
            false => Due::Now,
        }
    }
}

/// When a database was saved last, as the manifest of a point says.
fn last_saved(past: &Manifest, connection: &str) -> Option<Waiting> {
    if past.databases.iter().any(|d| d.connection == connection && d.dump.is_some()) {
        return Some(Waiting {
            connection: connection.to_owned(),
            point: past.point,
            at: past.started,
            every_seconds: 0,
            bytes: 0,
        });
    }
    past.waiting.iter().find(|w| w.connection == connection).cloned()
}

impl Waiting {
    /// What is told of it.
    pub(crate) fn told(&self) -> Problem {
        let hours = self.every_seconds / 3_600;
        let every = match hours {
            0 => format!("{} minutes", self.every_seconds / 60),
            1 => "hour".to_owned(),
            n => format!("{n} hours"),
        };
        Problem {
            path: format!("database {}", self.connection),
            kind: ProblemKind::Told,
            detail: format!(
                "Not in this point: it is dumped every {every}, the last time into point {}",
                self.point.short()
            ),
        }
    }
}

/// How the databases of an app are worked on.
pub(crate) fn options(app: &App, cancel: &Cancel) -> Options {
    let hashes = app.config.databases.hashes.map(hashes).unwrap_or_default();
    Options { cancel: cancel.clone(), hashes, ..Options::default() }
}

fn hashes(wanted: backstay_model::app::Hashes) -> backstay_database::Hashes {
    match wanted {
        backstay_model::app::Hashes::None => backstay_database::Hashes::None,
        backstay_model::app::Hashes::Affordable => backstay_database::Hashes::Affordable,
        backstay_model::app::Hashes::All => backstay_database::Hashes::All,
    }
}
