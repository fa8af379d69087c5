//! What every kind of database can do for a backup and a restore: one trait, one conformance suite.
//!
//! Invariants that every implementation keeps:
//! * Looking ([`Database::probe`], [`Database::check_restore`]) and dumping change nothing at the server.
//! * A dump counts only when [`Dump::finish`] has given its record: the tool has ended well, its end mark was seen, and
//!   the record's counts were taken in the same snapshot as the dump. Until then nobody may call it a dump.
//! * [`Database::stage`] fills a *new* database and compares it with the record. Nothing in use has changed when it
//!   returns, well or not; when it fails, what it made is gone, or named in the error where even that failed.
//! * [`Database::exchange`] is the only step that changes what is in use. It may be called again after a kill at any
//!   moment, for either side, and then completes. [`Database::side`] says what is so, from the server alone.
//! * [`Database::discard`] removes the side that is not in use, and whatever else an exchange may have left; again and
//!   again if need be.
//! * No secret stands in arguments, environments, errors or records.
//!
//! Crash story: an exchange is named by an [`Exchange`] that the caller has written down before `stage` is called; with it
//! alone a later process finishes or clears away. Locks: none are held between calls.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use backstay_model::{Cancel, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::endpoint::{Kind, TlsMode};

/// How a database is worked on.
#[derive(Clone, Debug)]
pub struct Options {
    /// Stops the work when asked to.
    pub cancel: Cancel,
    /// How long a connection may take to be made.
    pub connect: Duration,
    /// How long a lock is waited for.
    pub lock_wait: Duration,
    /// How long a tool may be silent before it counts as hung.
    pub idle: Duration,
    /// Which tables get a hash of their content beside the number of their rows.
    pub hashes: Hashes,
    /// The folders in which tools are looked for; empty: those of PATH, and where systems keep several versions.
    pub tools: Vec<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            cancel: Cancel::new(),
            connect: Duration::from_secs(10),
            lock_wait: Duration::from_secs(60),
            idle: Duration::from_secs(300),
            hashes: Hashes::Affordable,
            tools: Vec::new(),
        }
    }
}

/// Which tables get a hash of their content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hashes {
    /// None: numbers of rows only.
    None,
    /// Those that are small enough not to be felt.
    #[default]
    Affordable,
    /// All.
    All,
}

/// TLS as it is, not as it was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsSeen {
    /// The protocol (`TLSv1.3`); none for a connection in clear or through a socket.
    pub version: Option<String>,
    /// How far the server's certificate was checked.
    pub verified: Option<TlsMode>,
}

/// A program that dumps or restores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tool {
    /// Its path; empty where it is part of Backstay.
    pub path: String,
    /// Its version, as it says.
    pub version: String,
}

/// What a server says of a database before anything is done with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// The server's version, with its flavour (`PostgreSQL 15.18`, `MariaDB 10.11.19`).
    pub version: String,
    /// As whom the server sees us.
    pub user: String,
    /// The database.
    pub database: String,
    /// TLS of the connection.
    pub tls: TlsSeen,
    /// Bytes that a dump may have, about.
    pub estimated_bytes: u64,
    /// The program that would dump it.
    pub tool: Tool,
    /// What this user does not see and a dump would lack, each with the grant that would show it. Not empty: a dump
    /// is refused with `DatabaseIncomplete`.
    pub missing: Vec<String>,
    /// What a person should know and that hinders no dump (tables without transactions, say).
    pub notes: Vec<String>,
}

/// A table as it was in the snapshot of a dump.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRecord {
    /// Its name, with its schema where there are several (`public.posts`).
    pub name: String,
    /// Its rows.
    pub rows: u64,
    /// A hash of its content that does not depend on the order of rows; none where it was not taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
}

/// What is known of a dump that counts. It stands in the point's manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpRecord {
    /// The form of the dump: `pg-custom`, `mysql-sql`, `sqlite`.
    pub format: String,
    /// The server's version, as [`Probe::version`].
    pub server: String,
    /// The program that wrote it.
    pub tool: Tool,
    /// TLS of the connection.
    pub tls: TlsSeen,
    /// When the snapshot was taken, by the server's clock.
    pub snapshot: Timestamp,
    /// Where the log of the server stood then, as it names that; none where the user may not see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// Bytes of the dump.
    pub bytes: u64,
    /// Its tables in the same snapshot.
    pub tables: Vec<TableRecord>,
    /// A hash of the structure (tables, columns, keys, views, routines, triggers, …) as [`Database::stage`] computes it again.
    pub schema_hash: String,
    /// The accounts of the server that own something in it or that something in it is granted to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// What a person should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Settings of the server by which values are written, where hashes depend on them (`TimeZone`, say).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
}

/// Two databases that change places. Names are at most as long as the server takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// The name in use.
    pub live: String,
    /// The new one's name before the exchange.
    pub staged: String,
    /// The old one's name after it.
    pub kept: String,
}

/// The two sides of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The database as it was before.
    Old,
    /// The restored one.
    New,
}

/// A dump under way. Reading gives its bytes; the end comes only when the tool has ended well and its end mark was seen, else
/// an error does. The error's inner value is a [`backstay_model::Error`].
pub trait Dump: Read + Send {
    /// Where the log of the server stands in the dump's snapshot.
    fn position(&self) -> Option<&str>;

    /// When the snapshot was taken, by the server's clock.
    fn snapshot(&self) -> Timestamp;

    /// As [`Database::texts`], of the dump's own snapshot; none where nobody but the tool sees that.
    fn texts(&mut self, sql: &str, limit: usize) -> Option<Result<Vec<String>>> {
        let _ = (sql, limit);
        None
    }

    /// The record of a dump that was read to its end. An error where it was not, or where it does not count.
    fn finish(self: Box<Self>) -> Result<DumpRecord>;
}

/// One linked database.
pub trait Database: Send {
    /// Its kind.
    fn kind(&self) -> Kind;

    /// Looks at it, as a dump would.
    fn probe(&mut self) -> Result<Probe>;

    /// The first column of what a query gives, as texts without those that are NULL: at most `limit` of them. It cannot
    /// change anything.
    fn texts(&mut self, sql: &str, limit: usize) -> Result<Vec<String>>;

    /// Whether a dump that was begun stands for as long as nobody reads it. Where it does not, the server ends one that is left alone
    /// for some time.
    fn dump_waits(&self) -> bool {
        true
    }

    /// Begins a dump: from here on its snapshot stands. `DatabaseIncomplete` where the user does not see everything.
    fn dump(&mut self) -> Result<Box<dyn Dump + '_>>;

    /// The names of an exchange for a job (8 hexadecimal digits of its id).
    fn exchange_names(&self, job: &str) -> Exchange;

    /// Whether a dump of that record could be staged and exchanged with the rights of this user: the error says what is
    /// missing. The words are what the exchange will do, for the plan that a person reads.
    fn check_restore(&mut self, record: &DumpRecord, exchange: &Exchange) -> Result<Vec<String>>;

    /// Fills `exchange.staged`, which must not exist, from a dump and compares it with its record. The words are what a person
    /// should know.
    fn stage(&mut self, dump: &mut dyn Read, record: &DumpRecord, exchange: &Exchange)
    -> Result<Vec<String>>;

    /// Brings that side into use. When the database in use does not exist, the new side takes its name all the same.
    fn exchange(&mut self, exchange: &Exchange, to: Side) -> Result<()>;

    /// Which side is in use.
    fn side(&mut self, exchange: &Exchange) -> Result<Side>;

    /// Removes all of an exchange but the side that is in use. Nothing there is no error.
    fn discard(&mut self, exchange: &Exchange) -> Result<()>;
}
