//! Which databases of a point a restore brings back, and to where.
//!
//! Invariants: nothing is begun at a server before all of it was found possible with the rights at hand. A database of the
//! point goes to the connection of the same name of the app that changes, or to the place that was named for it; never to one that was
//! only guessed. No two go to the same place.

use backstay_catalog::App;
use backstay_database::{ConnectionType, Database, Endpoint, Place};
use backstay_model::{Cancel, Code, Error, Result, Secret};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::exchange::{Chosen, tag};
use crate::in_app;
use crate::manifest::{Manifest, SavedDatabase};
use crate::state::Engine;

/// Another place for a database: the name of its connection, and a connection string.
#[derive(Clone, Debug)]
pub struct Elsewhere {
    /// The name of the connection, as the point has it.
    pub connection: String,
    /// The connection string of the place.
    pub value: Secret,
}

/// What a restore does with a database.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DatabasePlan {
    /// The name of the connection.
    pub connection: String,
    /// The database's name when it was saved.
    pub name: String,
    /// Where it goes.
    pub target: String,
    /// When its dump's snapshot was taken.
    pub snapshot: Timestamp,
    /// Tables in the dump.
    pub tables: usize,
    /// Rows in them.
    pub rows: u64,
    /// Bytes of the dump.
    pub bytes: u64,
    /// What is done at the server.
    pub steps: Vec<String>,
}

impl Engine {
    /// The databases of a point and where they go. With `all`, one that the app is linked to and the point does not have is an
    /// error.
    pub(crate) fn choose_databases(
        &self,
        app: &App,
        manifest: Option<&Manifest>,
        elsewhere: &[Elsewhere],
        all: bool,
        cancel: &Cancel,
    ) -> Result<Vec<Chosen>> {
        let saved = manifest.map(|m| m.databases.as_slice()).unwrap_or_default();
        let known = |e: &Elsewhere| saved.iter().any(|s| s.connection == e.connection);
        if let Some(unknown) = elsewhere.iter().find(|e| !known(e)) {
            let message = format!("The point has no database of a connection `{}`", unknown.connection);
            return Err(Error::new(Code::ConnectionNotFound, message)
                .advise("`backstay show APP POINT` lists the databases of a point."));
        }
        if all {
            self.refuse_missing(app, manifest, saved)?;
        }
        let mut chosen: Vec<Chosen> = Vec::new();
        for saved in saved {
            let next = self.choose(app, saved, elsewhere, cancel)?;
            if let Some(other) = chosen.iter().find(|c| same_place(&c.endpoint, &next.endpoint)) {
                let message = format!(
                    "`{}` and `{}` would both be restored into {}",
                    other.saved.connection, saved.connection, next.endpoint
                );
                return Err(Error::new(Code::Conflict, message));
            }
            chosen.push(next);
        }
        Ok(chosen)
    }

    fn choose(
        &self,
        app: &App,
        saved: &SavedDatabase,
        elsewhere: &[Elsewhere],
        cancel: &Cancel,
    ) -> Result<Chosen> {
        let record = saved.dump.clone().ok_or_else(|| {
            let message = format!("The dump of `{}` has no record of what is in it", saved.connection);
            Error::new(Code::DatabaseDumpUnusable, message).advise(
                "It came in with an archive of another program, so it cannot be compared after a restore. Bring it out with `backstay cat` \
                 or --directory, and load it by hand.",
            )
        })?;
        let place = elsewhere.iter().find(|e| e.connection == saved.connection);
        let in_app = place.is_none() && app.config.in_app_mysql && saved.connection == in_app::NAME;
        // That of a new app is made when the rest was found possible.
        let held = match in_app && app.home.is_some() {
            true => Some(self.hold_in_app(&app.name, cancel)?),
            false => None,
        };
        let (kind, value) = match place {
            Some(place) => (ConnectionType::Custom, place.value.clone()),
            None if in_app => (ConnectionType::MySql, Secret::new("")),
            None => self.connection_value(app, saved)?,
        };
        let endpoint = match in_app {
            true => self.in_app_endpoint(app)?,
            false => backstay_database::connection::parse(value.reveal(), kind)?,
        };
        if format!("{:?}", endpoint.kind) != saved.kind {
            let message = format!(
                "`{}` was saved as {} and its connection leads to {}",
                saved.connection, saved.kind, endpoint
            );
            return Err(Error::new(Code::Conflict, message));
        }
        let elsewhere = place.is_some();
        Ok(Chosen { saved: saved.clone(), record, kind, value, endpoint, elsewhere, in_app, held })
    }

    /// A connection string of an app, with its type.
    fn connection_value(&self, app: &App, saved: &SavedDatabase) -> Result<(ConnectionType, Secret)> {
        let name = saved.connection.as_str();
        let links = match self.connections_revealed(&app.name) {
            Err(e) if e.code() == Code::AppNotFound => Vec::new(),
            links => links?,
        };
        let found = links.into_iter().find(|(link, _)| link.name == name);
        match found {
            Some((link, Some(value))) => Ok((link.kind, value)),
            Some((link, None)) => Err(link.endpoint.err().unwrap_or_else(|| {
                Error::new(Code::StateDamaged, format!("The connection string `{name}` cannot be opened"))
            })),
            None => {
                let message =
                    format!("`{}` has no connection `{name}`, which the point has a database of", app.name);
                if saved.in_app {
                    let message =
                        format!("`{}` has no MySQL in-app, which the point has a database of", app.name);
                    return Err(Error::new(Code::ConnectionNotFound, message).advise(format!(
                        "`backstay app set {} --in-app-mysql on` gives it one. Or name a place with `--database {name}=PLACE`.",
                        app.name
                    )));
                }
                Err(Error::new(Code::ConnectionNotFound, message).advise(format!(
                    "Name the place with `--database {name}=PLACE`, or make the connection known: `backstay connection set {} {name}`.",
                    app.name
                )))
            }
        }
    }

    /// A restore with databases brings all that the app is linked to, or nothing.
    fn refuse_missing(&self, app: &App, manifest: Option<&Manifest>, saved: &[SavedDatabase]) -> Result<()> {
        let links = self.linked(app)?;
        let Some(missing) = links.iter().find(|l| !saved.iter().any(|s| s.connection == l.name)) else {
            return Ok(());
        };
        let message = format!("The point does not hold the database of `{}`", missing.name);
        let waits = manifest.and_then(|m| m.waiting.iter().find(|w| w.connection == missing.name));
        let advice = match waits {
            Some(waits) => format!(
                "Point {} has it, and the files of that time. Or leave --with-databases out.",
                waits.point.short()
            ),
            None => "`backstay show APP POINT` says what a point holds and why something is missing. Choose another point, or leave \
                     --with-databases out."
                .to_owned(),
        };
        Err(Error::new(Code::RestoreRefused, message).advise(advice))
    }
}

/// Asks the servers whether all of it can be done, and what that is.
pub(crate) fn plan(app: &App, chosen: &[Chosen], cancel: &Cancel) -> Result<Vec<DatabasePlan>> {
    let one = |chosen: &Chosen| {
        if chosen.in_app && chosen.held.is_none() {
            return Ok(chosen.planned(vec![format!("make a MariaDB for `{}` alone, and fill it", app.name)]));
        }
        let mut database = chosen.open(app, cancel)?;
        if chosen.elsewhere {
            refuse_existing(&mut *database, chosen)?;
        }
        let exchange = database.exchange_names(&tag(backstay_model::JobId::from_bytes([0; 16])));
        let steps = database.check_restore(&chosen.record, &exchange).map_err(|e| {
            e.context(format!("The database of `{}` cannot be restored", chosen.saved.connection))
        })?;
        // The job that does it has an id of its own.
        Ok(chosen.planned(steps.iter().map(|step| step.replace("_bs_00000000_", "_bs_JOB_")).collect()))
    };
    chosen.iter().map(one).collect()
}

impl Chosen {
    fn planned(&self, steps: Vec<String>) -> DatabasePlan {
        DatabasePlan {
            connection: self.saved.connection.clone(),
            name: self.saved.name.clone(),
            target: self.endpoint.to_string(),
            snapshot: self.record.snapshot,
            tables: self.record.tables.len(),
            rows: self.record.tables.iter().map(|t| t.rows).sum(),
            bytes: self.record.bytes,
            steps,
        }
    }
}

/// A place of its own must be free: no safety point keeps what is there.
fn refuse_existing(database: &mut dyn Database, chosen: &Chosen) -> Result<()> {
    match database.probe() {
        Err(e) if e.code() == Code::DatabaseNotFound => Ok(()),
        Err(e) => Err(e),
        Ok(_) => Err(Error::new(Code::AlreadyExists, format!("There is {} already", chosen.endpoint))
            .advise("Name a database that does not exist yet: it is made.")),
    }
}

fn same_place(a: &Endpoint, b: &Endpoint) -> bool {
    let file = |e: &Endpoint| matches!(e.place, Place::File(_));
    a.kind == b.kind && a.place == b.place && (file(a) || a.database == b.database)
}

/// Whether a connection string holds a password, or cannot be told not to.
#[must_use]
pub fn holds_password(text: &str) -> bool {
    match backstay_database::connection::parse(text, ConnectionType::Custom) {
        Ok(endpoint) => endpoint.password.is_some(),
        Err(_) => true,
    }
}
