//! PostgreSQL: dumps by `pg_dump`, restores by `pg_restore` into a new database, exchange by renaming.
//!
//! Invariants: see the modules. Whatever is done, it is done by a connection of ours first, so that what fails has the
//! server's own code; tools are told the server that was reached.
//!
//! Crash story: `stage` leaves at most a database of the staged name behind, which `discard` removes. `exchange` is one
//! transaction. Locks: those of the server's transactions, gone with the connection.

mod archive;
mod catalog;
mod connect;
mod dump;
mod errors;
mod exchange;
mod stage;
mod structure;
mod tls;
mod tools;

use std::io::Read;

use backstay_model::{Code, Error, Result};

use crate::adapter::{Database, Dump, DumpRecord, Exchange, Options, Probe, Side, Tool};
use crate::endpoint::{Endpoint, Kind};
use connect::Session;

/// A database of a PostgreSQL server.
pub(crate) struct Postgres {
    endpoint: Endpoint,
    options: Options,
    /// The database's name: the one of the connection string, else, as everywhere, the user's.
    name: String,
    /// The program that dumps it, once it was looked for.
    dumper: Option<Tool>,
}

impl Postgres {
    /// Nothing is connected yet.
    pub(crate) fn new(endpoint: Endpoint, options: Options) -> Result<Self> {
        let name = endpoint
            .database
            .clone()
            .or_else(|| endpoint.user.clone())
            .ok_or_else(|| Error::new(Code::InvalidValue, "The connection string names no database"))?;
        Ok(Postgres {
            endpoint: Endpoint { database: Some(name.clone()), ..endpoint },
            options,
            name,
            dumper: None,
        })
    }

    /// The program that dumps it. It is not asked for its version twice.
    fn dumper(&mut self, session: &Session) -> Result<Tool> {
        if let Some(tool) = &self.dumper {
            return Ok(tool.clone());
        }
        let tool = tools::choose("pg_dump", session.major(), &self.options)?;
        Ok(self.dumper.insert(tool).clone())
    }

    /// The server's version for people.
    fn version(&self, session: &mut Session) -> Result<String> {
        let version: String = session.one("SELECT current_setting('server_version')", &[])?;
        Ok(format!("PostgreSQL {}", version.split_whitespace().next().unwrap_or_default()))
    }
}

impl Database for Postgres {
    fn kind(&self) -> Kind {
        Kind::PostgreSql
    }

    fn probe(&mut self) -> Result<Probe> {
        let mut session = Session::open(&self.endpoint, &self.options, None)?;
        let tool = self.dumper(&session)?;
        Ok(Probe {
            version: self.version(&mut session)?,
            user: session.one("SELECT current_user::text", &[])?,
            database: session.one("SELECT current_database()::text", &[])?,
            tls: session.seen()?,
            estimated_bytes: catalog::estimate(&mut session)?,
            tool,
            missing: catalog::missing(&mut session)?,
            notes: catalog::notes(&mut session)?,
        })
    }

    fn texts(&mut self, sql: &str, limit: usize) -> Result<Vec<String>> {
        let mut session = Session::open(&self.endpoint, &self.options, None)?;
        // Names without a schema are what the app means by them.
        session.run("RESET search_path; BEGIN READ ONLY")?;
        session.first_texts(sql, limit)
    }

    fn dump(&mut self) -> Result<Box<dyn Dump + '_>> {
        Ok(Box::new(dump::begin(self)?))
    }

    fn exchange_names(&self, job: &str) -> Exchange {
        exchange::names(&self.name, job)
    }

    fn check_restore(&mut self, record: &DumpRecord, exchange: &Exchange) -> Result<Vec<String>> {
        exchange::check_restore(self, record, exchange)
    }

    fn stage(
        &mut self,
        dump: &mut dyn Read,
        record: &DumpRecord,
        exchange: &Exchange,
    ) -> Result<Vec<String>> {
        stage::stage(self, dump, record, exchange)
    }

    fn exchange(&mut self, exchange: &Exchange, to: Side) -> Result<()> {
        exchange::exchange(self, exchange, to)
    }

    fn side(&mut self, exchange: &Exchange) -> Result<Side> {
        exchange::side(self, exchange)
    }

    fn discard(&mut self, exchange: &Exchange) -> Result<()> {
        exchange::discard(self, exchange)
    }
}
