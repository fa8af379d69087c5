//! Dumps of a PostgreSQL database: `pg_dump -Fc -Z0` in a snapshot of ours, and what the record says of it taken in the same.
//!
//! Invariants:
//! * One transaction of ours holds the snapshot, and a lock on every table that lets others read and write, from before the
//!   snapshot is taken to after the tool has ended. Nobody can rewrite or remove a table meanwhile.
//! * The structure's hash is taken in the snapshot and again when the tool has read the catalogs: those show what others
//!   have committed since. Where both differ, all is begun anew.
//! * The stream starts as the tool's own form does, and ends well only after the tool has ended with status 0.
//! * Every table that is in the snapshot is in the stream, which is read along with ([`Archive`]): its rows are counted and
//!   hashed there. Large objects are asked of the server, in the snapshot, once the tool has ended.

use std::collections::BTreeMap;
use std::io::{self, Read};

use backstay_model::{Code, Error, Result};
use jiff::Timestamp;

use super::archive::Archive;
use super::catalog::{self, Table};
use super::connect::{Session, check};
use super::{Postgres, structure, tools};
use crate::adapter::{Dump, DumpRecord, Hashes, Options, TableRecord, TlsSeen, Tool};
use crate::tool::Output;

/// The form of the dumps.
pub(super) const FORMAT: &str = "pg-custom";
/// How a dump begins.
const MAGIC: &[u8] = b"PGDMP";
/// How often a dump is begun anew because the structure has changed under it.
const TRIES: u32 = 3;
/// Read at a time while the beginning is looked at.
const FIRST: usize = 64 << 10;

/// A dump under way.
pub(super) struct PostgresDump {
    output: Output,
    /// What was read to look at the beginning, and how much of it was given on.
    first: Vec<u8>,
    given: usize,
    bytes: u64,
    ended: bool,
    archive: Archive,
    /// Holds the snapshot and the locks.
    session: Session,
    options: Options,
    snapshot: Timestamp,
    position: Option<String>,
    facts: Facts,
}

/// What is known before the first byte.
struct Facts {
    server: String,
    tool: Tool,
    tls: TlsSeen,
    schema_hash: String,
    roles: Vec<String>,
    notes: Vec<String>,
    settings: BTreeMap<String, String>,
    tables: Vec<Table>,
}

/// Begins a dump.
pub(super) fn begin(postgres: &mut Postgres) -> Result<PostgresDump> {
    let mut tries = 1;
    loop {
        match attempt(postgres)? {
            Some(dump) => return Ok(dump),
            None if tries < TRIES => tries += 1,
            None => {
                let message =
                    format!("The structure of the database changed while {TRIES} dumps of it began");
                return Err(Error::new(Code::DatabaseInterrupted, message));
            }
        }
    }
}

/// One attempt; none where the structure has changed meanwhile.
fn attempt(postgres: &mut Postgres) -> Result<Option<PostgresDump>> {
    let mut session = Session::open(&postgres.endpoint, &postgres.options, None)?;
    let tool = postgres.dumper(&session)?;
    let options = &postgres.options;
    if !lock_tables(&mut session)? {
        return Ok(None);
    }
    let (name, snapshot, position) = take_snapshot(&mut session)?;
    let missing = catalog::missing(&mut session)?;
    if !missing.is_empty() {
        return Err(incomplete(&missing));
    }
    let mut program = tools::program(&tool, &postgres.endpoint, &session, None, options)?;
    program.args(["-Fc", "-Z0", "--snapshot", &name]);
    program.arg(format!("--lock-wait-timeout={}", options.lock_wait.as_millis()));
    let mut output = program.output(&tools::limits(options), tools::explain())?;
    // While the tool reads the catalogs, so do we.
    let facts = Facts::ask(postgres, &mut session, tool)?;
    let mut other = Session::open(&postgres.endpoint, options, None)?;
    let first = beginning(&mut output)?;
    if structure::schema_hash(&mut other)? != facts.schema_hash {
        return Ok(None);
    }
    let mut archive = Archive::new(options.hashes);
    archive.feed(&first)?;
    Ok(Some(PostgresDump {
        output,
        first,
        given: 0,
        bytes: 0,
        ended: false,
        archive,
        session,
        options: options.clone(),
        snapshot,
        position,
        facts,
    }))
}

impl Facts {
    fn ask(postgres: &Postgres, session: &mut Session, tool: Tool) -> Result<Self> {
        Ok(Facts {
            server: postgres.version(session)?,
            tool,
            tls: session.seen()?,
            schema_hash: structure::schema_hash(session)?,
            roles: catalog::roles(session)?,
            notes: catalog::notes(session)?,
            settings: catalog::settings(session)?,
            tables: catalog::tables(session)?,
        })
    }
}

/// Opens the transaction and locks every table against being rewritten or removed. False where one is gone already.
fn lock_tables(session: &mut Session) -> Result<bool> {
    let tables = catalog::tables(session)?;
    let missing = catalog::missing(session)?;
    if !missing.is_empty() {
        return Err(incomplete(&missing));
    }
    // A lock is taken before the snapshot is, so what the snapshot shows is what is locked.
    session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
    for some in tables.chunks(200) {
        let names: Vec<String> = some.iter().map(|table| format!("ONLY {}", table.quoted())).collect();
        let locked = session.run(&format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", ")));
        match locked {
            Ok(()) => {}
            Err(e) if e.code() == Code::DatabaseLockTimeout => return Err(name_holder(session, e, some)),
            // Dropped or renamed since the list was made.
            Err(e) if e.message().contains("does not exist") => return Ok(false),
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

/// Says which table of some it is that cannot be locked.
fn name_holder(session: &mut Session, error: Error, tables: &[Table]) -> Error {
    if session.run("ROLLBACK").is_err() {
        return error;
    }
    let sql = "SELECT DISTINCT l.relation::regclass::text FROM pg_catalog.pg_locks l
                WHERE l.mode = 'AccessExclusiveLock' AND l.locktype = 'relation' AND l.granted
                  AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())";
    let held: Vec<String> = session.column(sql, &[]).unwrap_or_default();
    let names = match held.is_empty() {
        true => tables.iter().map(Table::quoted).take(1).collect(),
        false => held,
    };
    error.context(format!("Somebody holds a lock on {}", names.join(", ")))
}

fn incomplete(missing: &[String]) -> Error {
    let (shown, more) = (missing.iter().take(5), missing.len().saturating_sub(5));
    let mut message = shown.map(String::as_str).collect::<Vec<_>>().join("; ");
    if more > 0 {
        message.push_str(&format!("; and {more} more"));
    }
    Error::new(Code::DatabaseIncomplete, format!("A dump would lack what this user may not read: {message}"))
}

/// Exports the snapshot: its name, its time by the server's clock, and where the server's log stood.
fn take_snapshot(session: &mut Session) -> Result<(String, Timestamp, Option<String>)> {
    let name: String = session.one("SELECT pg_catalog.pg_export_snapshot()", &[])?;
    let micros: i64 =
        session.one("SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint", &[])?;
    let snapshot = Timestamp::from_microsecond(micros)
        .map_err(|e| Error::new(Code::DatabaseFailed, "The clock of the server is far off").because(e))?;
    let recovering: bool = session.one("SELECT pg_catalog.pg_is_in_recovery()", &[])?;
    let function = if recovering { "pg_last_wal_replay_lsn()" } else { "pg_current_wal_lsn()" };
    let allowed: bool =
        session.one("SELECT has_function_privilege($1, 'EXECUTE')", &[&format!("pg_catalog.{function}")])?;
    let position = match allowed {
        true => session.one::<Option<String>>(&format!("SELECT pg_catalog.{function}::text"), &[])?,
        false => None,
    };
    Ok((name, snapshot, position))
}

/// Reads the first bytes: by then the tool has read all catalogs and holds all its locks.
fn beginning(output: &mut Output) -> Result<Vec<u8>> {
    let mut first = vec![0; FIRST];
    let mut have = 0;
    while have < MAGIC.len() {
        match output.read(first.get_mut(have..).unwrap_or_default()) {
            Ok(0) => break,
            Ok(read) => have += read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(crate::tool::inner(e)),
        }
    }
    first.truncate(have);
    match first.starts_with(MAGIC) {
        true => Ok(first),
        false => Err(Error::new(Code::DatabaseInterrupted, "What `pg_dump` wrote is no dump")),
    }
}

impl Read for PostgresDump {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(left) = self.first.get(self.given..).filter(|left| !left.is_empty()) {
            let mut left = left;
            let read = left.read(buf)?;
            self.given += read;
            self.bytes += read as u64;
            return Ok(read);
        }
        let read = self.output.read(buf)?;
        self.archive.feed(buf.get(..read).unwrap_or_default()).map_err(io::Error::other)?;
        self.bytes += read as u64;
        self.ended |= read == 0 && !buf.is_empty();
        Ok(read)
    }
}

impl Dump for PostgresDump {
    fn position(&self) -> Option<&str> {
        self.position.as_deref()
    }

    fn snapshot(&self) -> Timestamp {
        self.snapshot
    }

    fn texts(&mut self, sql: &str, limit: usize) -> Option<Result<Vec<String>>> {
        // Names without a schema are what the app means by them. All of it is taken back, an error too.
        let asked = self
            .session
            .run("SAVEPOINT backstay; SET LOCAL search_path TO DEFAULT")
            .and_then(|()| self.session.first_texts(sql, limit));
        let back = self.session.run("ROLLBACK TO SAVEPOINT backstay; RELEASE SAVEPOINT backstay");
        Some(asked.and_then(|texts| back.map(|()| texts)))
    }

    fn finish(self: Box<Self>) -> Result<DumpRecord> {
        if !self.ended {
            return Err(Error::new(Code::DatabaseInterrupted, "The dump was not read to its end"));
        }
        let PostgresDump { archive, mut session, options, mut facts, snapshot, position, bytes, .. } = *self;
        let tables = tables(archive, &mut session, &options, &mut facts)?;
        Ok(DumpRecord {
            format: FORMAT.to_owned(),
            server: facts.server,
            tool: facts.tool,
            tls: facts.tls,
            snapshot,
            position,
            bytes,
            tables,
            schema_hash: facts.schema_hash,
            roles: facts.roles,
            notes: facts.notes,
            settings: facts.settings,
        })
    }
}

/// The tables of the snapshot as they are in the dump.
fn tables(
    archive: Archive,
    session: &mut Session,
    options: &Options,
    facts: &mut Facts,
) -> Result<Vec<TableRecord>> {
    let Some(read) = archive.finish()? else {
        let why = "only counted, not hashed: its `pg_dump` writes a form that is newer than this Backstay";
        facts.notes.push(format!("The rows of the dump were {why}"));
        return catalog::content(session, &facts.tables, &[], &|| check(&options.cancel));
    };
    if options.hashes == Hashes::All {
        let without = read.iter().filter(|table| table.hash.is_none()).map(|table| table.name.as_str());
        let without: Vec<&str> = without.collect();
        if !without.is_empty() {
            let tables = without.join(", ");
            facts.notes.push(format!("Only counted, not hashed (a row has more than 16 MB, or not the fields of its table): {tables}"));
        }
    }
    // Others than these are an extension's.
    let mut read: BTreeMap<String, TableRecord> = read.into_iter().map(|t| (t.name.clone(), t)).collect();
    let mut tables = Vec::with_capacity(facts.tables.len() + 1);
    for table in &facts.tables {
        let name = table.full();
        let lacking = || Error::new(Code::DatabaseIncomplete, format!("The dump lacks the rows of {name}"));
        tables.push(read.remove(&name).ok_or_else(lacking)?);
    }
    tables.extend(catalog::large_objects(session, options.hashes)?);
    tables.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tables)
}
