//! A dump by the server's own tool, read along with.
//!
//! Invariant: a dump counts when the tool has ended with status 0, the end mark was its last line, and rows and structure were
//! read from the very bytes that were given out.

use std::io::{self, Read};

use backstay_model::{Cancel, Code, Error, Result};
use jiff::Timestamp;

use super::MySql;
use super::connect::{Flavour, Session, text};
use super::objects::MARKER;
use super::stream::{Along, Seen};
use super::tools::{self, Client};
use super::{probe, stream};
use crate::adapter::{Dump, DumpRecord, Hashes, Options, TlsSeen, Tool};
use crate::endpoint::Endpoint;
use crate::tool::{Output, inner};

/// What is read from the tool at once.
const BLOCK: usize = 256 << 10;
/// The snapshot stands within so many bytes, or it is no dump.
const HEADER: usize = 1 << 20;

/// A dump under way.
struct Running {
    output: Output,
    along: Along,
    /// Read already while the snapshot was waited for.
    ahead: Vec<u8>,
    given: usize,
    position: Option<String>,
    snapshot: Timestamp,
    server: String,
    tool: Tool,
    tls: TlsSeen,
    notes: Vec<String>,
    bytes: u64,
    done: bool,
    cancel: Cancel,
}

/// Begins a dump; its snapshot stands when this returns.
pub(super) fn begin(
    session: &mut Session,
    endpoint: &Endpoint,
    options: &Options,
) -> Result<Box<dyn Dump + 'static>> {
    let database = MySql::new(endpoint.clone(), options.clone()).database()?.to_owned();
    let missing = probe::missing(session, &database)?;
    if !missing.is_empty() {
        let message = format!("A dump of `{database}` would lack something: {}", missing.join("; "));
        return Err(Error::new(Code::DatabaseIncomplete, message));
    }
    let notes = probe::notes(session, &database)?;
    let client = tools::dumper(session.flavour, options)?;
    let positions = shows_position(session)?;
    let snapshot = now(session)?;
    let output = start(&client, session, endpoint, options, &database, positions)?;
    let mut running = Running {
        output,
        along: Along::new(options.hashes),
        ahead: Vec::new(),
        given: 0,
        position: None,
        snapshot,
        server: session.server(),
        tool: client.tool(),
        tls: session.tls.clone(),
        notes,
        bytes: 0,
        done: false,
        cancel: options.cancel.clone(),
    };
    running.await_snapshot()?;
    Ok(Box::new(running))
}

/// The time of the server.
fn now(session: &mut Session) -> Result<Timestamp> {
    let row = session.row("SELECT CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED)")?;
    let micros = text(&row, 0).parse().ok().and_then(|micros| Timestamp::from_microsecond(micros).ok());
    micros.ok_or_else(|| Error::new(Code::DatabaseFailed, "The server gives no time that can be read"))
}

/// Whether the tool's own transaction can tell its place in the log without a lock: MariaDB with a log.
fn shows_position(session: &mut Session) -> Result<bool> {
    if session.flavour != Flavour::MariaDb {
        return Ok(false);
    }
    let row = session.row("SELECT @@GLOBAL.log_bin")?;
    let shown = session.rows("SHOW STATUS LIKE 'binlog_snapshot_file'")?;
    Ok(text(&row, 0) == "1" && shown.first().is_some_and(|row| !text(row, 1).is_empty()))
}

fn start(
    client: &Client,
    session: &Session,
    endpoint: &Endpoint,
    options: &Options,
    database: &str,
    positions: bool,
) -> Result<Output> {
    let mut program = client.program(endpoint, session)?;
    program.args([
        "--single-transaction",
        "--quick",
        "--routines",
        "--triggers",
        "--events",
        "--hex-blob",
        "--no-tablespaces",
        "--skip-dump-date",
        "--skip-lock-tables",
        "--max-allowed-packet=1073741824",
    ]);
    match client.flavour {
        Flavour::MariaDb if positions => {
            program.args(["--master-data=2", "--gtid"]);
        }
        Flavour::MariaDb => {}
        Flavour::MySql => {
            program.args(["--loose-set-gtid-purged=OFF", "--loose-column-statistics=0"]);
        }
    }
    program.arg(format!("--ignore-table={database}.{MARKER}"));
    // Behind this nothing is an option, whatever the name of the database.
    program.args(["--", database]);
    program.output(&tools::limits(options), tools::explain("Dumping the database"))
}

impl Running {
    /// Reads until something behind the header comes: it was written after the tool's transaction had begun.
    fn await_snapshot(&mut self) -> Result<()> {
        let mut block = vec![0; BLOCK];
        while !self.along.has_begun() {
            let read = match self.output.read(&mut block) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(inner)?,
            };
            let part = block.get(..read).unwrap_or_default();
            self.along.feed(part)?;
            self.ahead.extend_from_slice(part);
            if read == 0 || self.ahead.len() > HEADER {
                return Err(Error::new(
                    Code::DatabaseInterrupted,
                    "The tool wrote something that is no dump",
                ));
            }
        }
        self.position = self.along.position();
        Ok(())
    }
}

impl Read for Running {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.cancel.check().map_err(io::Error::other)?;
        let waiting = self.ahead.get(self.given..).unwrap_or_default();
        let read = if waiting.is_empty() {
            let read = self.output.read(buf)?;
            let part = buf.get(..read).unwrap_or_default();
            self.along.feed(part).map_err(io::Error::other)?;
            self.done |= read == 0 && !buf.is_empty();
            read
        } else {
            let read = io::Read::read(&mut &*waiting, buf)?;
            self.given += read;
            read
        };
        self.bytes += read as u64;
        Ok(read)
    }
}

impl Dump for Running {
    fn position(&self) -> Option<&str> {
        self.position.as_deref()
    }

    fn snapshot(&self) -> Timestamp {
        self.snapshot
    }

    fn finish(self: Box<Self>) -> Result<DumpRecord> {
        if !self.done {
            return Err(Error::new(Code::DatabaseInterrupted, "The dump was not read to its end"));
        }
        let Seen { tables, schema_hash, position, definers, .. } = self.along.finish()?;
        Ok(DumpRecord {
            format: FORMAT.to_owned(),
            server: self.server,
            tool: self.tool,
            tls: self.tls,
            snapshot: self.snapshot,
            position,
            bytes: self.bytes,
            tables,
            schema_hash,
            roles: definers,
            notes: self.notes,
            settings: Default::default(),
        })
    }
}

/// The form of these dumps.
pub(super) const FORMAT: &str = "mysql-sql";

/// Dumps a database of the same server only to see what is in it.
pub(super) fn look(
    session: &Session,
    endpoint: &Endpoint,
    options: &Options,
    database: &str,
) -> Result<Seen> {
    let client = tools::dumper(session.flavour, options)?;
    let mut output = start(&client, session, endpoint, options, database, false)?;
    let mut along = stream::Along::new(Hashes::All);
    let mut block = vec![0; BLOCK];
    loop {
        match output.read(&mut block) {
            Ok(0) => return along.finish(),
            Ok(read) => along.feed(block.get(..read).unwrap_or_default())?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(inner(e)),
        }
    }
}
