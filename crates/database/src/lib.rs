//! Linked databases: what a connection string says, whatever its form, and what is done with the database behind it.
//!
//! - [`connection::parse`] reads a connection string of any form into an [`Endpoint`]. Drivers and tools are set up from
//!   the endpoint, never from the string: they read fewer forms, and each reads them differently.
//! - [`discover`] finds connection strings in the files and the environment of an app.
//! - [`Database`] is the one trait of all kinds: looked at, dumped, filled anew beside the one in use, exchanged.
//! - [`sqlite`] copies files of SQLite that are in use, among them those in the middle of an app's content.

mod adapter;
pub mod conformance;
pub mod connection;
pub mod discover;
mod endpoint;
mod mysql;
mod postgres;
mod rows;
pub mod sqlite;
mod tool;

pub use adapter::{
    Database, Dump, DumpRecord, Exchange, Hashes, Options, Probe, Side, TableRecord, TlsSeen, Tool,
};
pub use connection::ConnectionType;
pub use endpoint::{Endpoint, Host, Kind, Place, Tls, TlsMode};
pub use mysql::{InApp, MySql};

use backstay_model::{Code, Error, Result};
use sqlite::Sqlite;

/// The database behind an endpoint. Nothing is connected yet.
pub fn open(endpoint: &Endpoint, options: Options) -> Result<Box<dyn Database>> {
    match endpoint.kind {
        Kind::PostgreSql => Ok(Box::new(postgres::Postgres::new(endpoint.clone(), options)?)),
        Kind::MySql => Ok(Box::new(MySql::new(endpoint.clone(), options))),
        Kind::Sqlite => Ok(Box::new(Sqlite::new(endpoint, None, sqlite::Child::default(), options)?)),
        Kind::SqlServer => Err(Error::new(
            Code::DatabaseFailed,
            format!("Databases of {} cannot be dumped and restored", endpoint.kind.name()),
        )
        .advise("Leave the database out of the backup, and dump it by other means.")),
    }
}
