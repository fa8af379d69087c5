//! A dump into a new database, compared with its record.
//!
//! Invariants:
//! * Nothing but the new database changes. Events are made switched off, so that none runs there.
//! * What is compared is read back from the server: the new database is dumped by the same tool through the same reader.
//! * When it is done the database holds tables and the marker; all else is saved in the marker, so nothing of it acts before
//!   the exchange.
//!
//! Crash story: a killed load leaves the new database, without a marker or with one; [`super::exchange::discard`] removes
//! it either way.

use std::io::{self, Read, Write as _};

use backstay_model::{Code, Error, Result};

use super::connect::{Session, name, patience};
use super::dump::{self, FORMAT};
use super::grants::Grants;
use super::objects::{self, Marker, Phase};
use super::stream::{Along, Changes, Seen};
use super::{exchange, rights, tools};
use crate::adapter::{DumpRecord, Exchange, Options, Side, TableRecord};
use crate::endpoint::Endpoint;
use crate::tool::inner;

/// What is read of the dump at once.
const BLOCK: usize = 256 << 10;

pub(super) fn stage(
    session: &mut Session,
    endpoint: &Endpoint,
    options: &Options,
    dump: &mut dyn Read,
    record: &DumpRecord,
    exchange: &Exchange,
) -> Result<Vec<String>> {
    if record.format != FORMAT {
        let message = format!("The dump is of the form `{}`, which is none of MySQL", record.format);
        return Err(Error::new(Code::DatabaseDumpUnusable, message));
    }
    let staged = &exchange.staged;
    if session.has_database(staged)? {
        return Err(Error::new(Code::AlreadyExists, format!("There is a database `{staged}` already")));
    }
    let like = exchange::charset(session, &exchange.live)?;
    session.change(&format!("CREATE DATABASE {}{like}", name(staged)))?;
    let done = fill(session, endpoint, options, dump, record, staged);
    match done {
        Ok(words) => Ok(words),
        Err(error) => Err(clear(session, endpoint, options, staged, error)),
    }
}

/// Removes what was made. The connection may be what failed.
fn clear(session: &mut Session, endpoint: &Endpoint, options: &Options, staged: &str, error: Error) -> Error {
    let statement = format!("DROP DATABASE IF EXISTS {}", name(staged));
    if session.try_run(&statement).is_ok() {
        return error;
    }
    // Being cancelled must not hinder the clearing away.
    let options = Options { cancel: backstay_model::Cancel::new(), ..options.clone() };
    match Session::open(endpoint, &options, false).and_then(|mut again| again.run(&statement)) {
        Ok(()) => error,
        Err(_) => error.context(format!("The database `{staged}` is left and could not be removed")),
    }
}

fn fill(
    session: &mut Session,
    endpoint: &Endpoint,
    options: &Options,
    dump: &mut dyn Read,
    record: &DumpRecord,
    staged: &str,
) -> Result<Vec<String>> {
    let without_definers = !rights::sets_definers(&Grants::of(session)?);
    let changes = Changes { database: staged.to_owned(), without_definers };
    let read = load(session, endpoint, options, dump, record, changes)?;
    compare_tables(&record.tables, &read.tables, "The dump")?;
    if record.schema_hash != read.schema_hash {
        return Err(Error::new(
            Code::DatabaseMismatch,
            "The structure in the dump is not that of its record",
        ));
    }
    options.cancel.check()?;
    let found = dump::look(session, endpoint, options, staged)?;
    compare_tables(&record.tables, &found.tables, "The restored database")?;
    let same = record.server == session.server();
    if same && found.schema_hash != record.schema_hash {
        let message = "The structure of the restored database is not that of the record";
        return Err(Error::new(Code::DatabaseMismatch, message));
    }
    save(session, staged, &read)?;
    Ok(words(session, &read, record, same, without_definers))
}

fn load(
    session: &Session,
    endpoint: &Endpoint,
    options: &Options,
    dump: &mut dyn Read,
    record: &DumpRecord,
    changes: Changes,
) -> Result<Seen> {
    let client = tools::loader(session.flavour, options)?;
    let mut program = client.program(endpoint, session)?;
    program.arg(format!("--init-command={}", patience(session.flavour)));
    // Binary mode: a dump cannot give the client commands.
    program.args(["--batch", "--binary-mode", "--no-auto-rehash", "--max-allowed-packet=1073741824", "--"]);
    program.arg(&changes.database);
    let mut input = program.input(&tools::limits(options), tools::explain("Loading the dump"))?;
    let mut along = Along::changing(changes);
    let mut block = vec![0; BLOCK];
    let mut bytes = 0;
    loop {
        options.cancel.check()?;
        let read = match dump.read(&mut block) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(inner(e)),
        };
        bytes += read as u64;
        along.feed(block.get(..read).unwrap_or_default())?;
        input.write_all(&along.take()).map_err(inner)?;
    }
    if bytes != record.bytes {
        let message = format!("The dump has {bytes} bytes, its record says {}", record.bytes);
        return Err(Error::new(Code::DatabaseDumpUnusable, message));
    }
    let rest = along.take();
    let seen = along.finish().map_err(|e| Error::new(Code::DatabaseDumpUnusable, e.message()))?;
    input.write_all(&rest).map_err(inner)?;
    input.finish()?;
    Ok(seen)
}

fn compare_tables(record: &[TableRecord], found: &[TableRecord], what: &str) -> Result<()> {
    let mismatch = |message: String| Err(Error::new(Code::DatabaseMismatch, message));
    for expected in record {
        let Some(table) = found.iter().find(|table| table.name == expected.name) else {
            return mismatch(format!("{what} has no table `{}`", expected.name));
        };
        if table.rows != expected.rows {
            return mismatch(format!(
                "{what} has {} rows in `{}`, the record says {}",
                table.rows, table.name, expected.rows
            ));
        }
        if expected.hash.is_some() && expected.hash != table.hash {
            return mismatch(format!("{what} has other content in `{}` than the record says", table.name));
        }
    }
    match found.iter().find(|table| record.iter().all(|expected| expected.name != table.name)) {
        Some(table) => mismatch(format!("{what} has a table `{}` that the record does not name", table.name)),
        None => Ok(()),
    }
}

/// Saves the objects in the marker, events as they were in the dump, and removes them.
fn save(session: &mut Session, staged: &str, read: &Seen) -> Result<()> {
    let mut present = objects::present(session, staged)?;
    for object in present.iter_mut().filter(|object| object.kind == "EVENT") {
        if let Some(state) = read.events.get(&object.name) {
            objects::with_event_state(object, &state.0);
        }
    }
    objects::save(session, staged, Marker { side: Side::New, phase: Phase::Saved }, &present)?;
    objects::remove(session, staged)
}

fn words(
    session: &Session,
    read: &Seen,
    record: &DumpRecord,
    same: bool,
    without_definers: bool,
) -> Vec<String> {
    let mut words = Vec::new();
    let others: Vec<_> = read
        .definers
        .iter()
        .filter(|definer| **definer != session.account)
        .map(|d| format!("`{d}`"))
        .collect();
    if without_definers && !others.is_empty() {
        words.push(format!(
            "What was defined by {} is defined by `{}` now: this user may not name others",
            others.join(", "),
            session.account
        ));
    }
    if !same {
        words.push(format!(
            "The dump is of {}, the server is {}: content was compared, structure was not",
            record.server,
            session.server()
        ));
    }
    words
}
