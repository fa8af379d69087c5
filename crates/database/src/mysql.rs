//! MySQL and MariaDB: dumps by the server's own tool, restores beside the database in use, an exchange of contents.
//!
//! Invariants, beside those of [`Database`](crate::Database):
//! * Counts and hashes of a dump are read from the dump's own bytes ([`stream`]): record and dump are of one snapshot by
//!   construction.
//! * A dump that would lack something without a word is refused beforehand ([`probe`]).
//! * An exchange never renames the database (no server can, and apps keep its name in files of their own): it moves the
//!   contents, all tables in one statement ([`exchange`], `docs/adr/0007-mysql-exchange.md`).
//! * The password reaches a tool only in a sealed file in memory, together with every other option of the connection;
//!   the user is always named, so that a file that is not read cannot mean somebody else.
//!
//! What MariaDB's tools before 11.4 cannot do: insist on TLS without checking the name. The connection that looks first
//! does insist, and the tool is told to use TLS then; somebody who stands between the two connections and takes TLS out
//! of the second one only is kept out by `verify-full` alone.
//!
//! Crash story: see [`exchange`]. Locks: a named lock of the server is held within an exchange only.

mod connect;
mod dump;
mod errors;
mod exchange;
mod grants;
mod objects;
mod private;
mod probe;
mod rights;
mod stage;
mod stream;
mod tools;

use std::io::Read;

use backstay_model::{Code, Error, Result};

use crate::adapter::{Database, Dump, DumpRecord, Exchange, Options, Probe, Side};
use crate::endpoint::{Endpoint, Kind};
use connect::Session;

pub use private::InApp;

/// A database of MySQL or MariaDB.
#[derive(Debug)]
pub struct MySql {
    endpoint: Endpoint,
    options: Options,
    left: Option<u64>,
}

impl MySql {
    /// The database that an endpoint names. Nothing is connected yet.
    #[must_use]
    pub fn new(endpoint: Endpoint, options: Options) -> Self {
        MySql { endpoint, options, left: None }
    }

    /// For tests: the statement after so many that change something is not sent, nor any later one; as if this process had
    /// been killed there.
    #[doc(hidden)]
    pub fn stop_after(&mut self, statements: Option<u64>) {
        self.left = statements;
    }

    /// The name of the database.
    fn database(&self) -> Result<&str> {
        let none = || Error::new(Code::DatabaseNotFound, "The connection string names no database");
        self.endpoint.database.as_deref().ok_or_else(none)
    }

    /// A connection to the database.
    fn session(&self) -> Result<Session> {
        self.database()?;
        Session::open(&self.endpoint, &self.options, true)
    }

    /// A connection to the server, whether the database exists or not.
    fn server(&self) -> Result<Session> {
        self.database()?;
        let mut session = Session::open(&self.endpoint, &self.options, false)?;
        session.left = self.left;
        Ok(session)
    }
}

impl Database for MySql {
    fn kind(&self) -> Kind {
        Kind::MySql
    }

    fn probe(&mut self) -> Result<Probe> {
        probe::probe(&mut self.session()?, &self.endpoint, &self.options)
    }

    fn texts(&mut self, sql: &str, limit: usize) -> Result<Vec<String>> {
        self.session()?.texts(sql, limit)
    }

    /// MariaDB's tool leaves `net_write_timeout` as it is: 60 s, unless the server says otherwise.
    fn dump_waits(&self) -> bool {
        false
    }

    fn dump(&mut self) -> Result<Box<dyn Dump + '_>> {
        dump::begin(&mut self.session()?, &self.endpoint, &self.options)
    }

    fn exchange_names(&self, job: &str) -> Exchange {
        exchange::names(self.endpoint.database.as_deref().unwrap_or_default(), job)
    }

    fn check_restore(&mut self, record: &DumpRecord, exchange: &Exchange) -> Result<Vec<String>> {
        rights::check(&mut self.server()?, &self.options, record, exchange)
    }

    fn stage(
        &mut self,
        dump: &mut dyn Read,
        record: &DumpRecord,
        exchange: &Exchange,
    ) -> Result<Vec<String>> {
        stage::stage(&mut self.server()?, &self.endpoint, &self.options, dump, record, exchange)
    }

    fn exchange(&mut self, exchange: &Exchange, to: Side) -> Result<()> {
        exchange::exchange(&mut self.server()?, exchange, to)
    }

    fn side(&mut self, exchange: &Exchange) -> Result<Side> {
        exchange::side(&mut self.server()?, exchange)
    }

    fn discard(&mut self, exchange: &Exchange) -> Result<()> {
        exchange::discard(&mut self.server()?, exchange)
    }
}
