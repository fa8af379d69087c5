//! In the child: what is in a file that nobody uses.

use std::fmt::Write as _;
use std::path::Path;

use backstay_model::Result;
use rusqlite::config::DbConfig;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ffi};
use sha2::{Digest as _, Sha256};

use super::copy::{failed, open_immutable};
use super::{Content, Journal};
use crate::adapter::{Hashes, TableRecord};
use crate::rows::hex;

/// Bytes of all tables together that are hashed without being felt.
const AFFORDABLE: u64 = 64 << 20;
/// How many faults are told.
const FAULTS: u32 = 5;

/// How closely a file is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Each page, but not whether indexes say what their tables do.
    Quick,
    /// That too, and whether rows refer to others that are not there.
    Full,
}

/// Reads the file at a path. What is damaged is told and no error.
pub(super) fn read(path: &Path, hashes: Hashes, depth: Depth) -> Result<Content> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let connection = open_immutable(&absolute).map_err(|e| failed(&e))?;
    let number = |pragma: &str| connection.query_row(pragma, (), |row| row.get::<_, i64>(0));
    let prepared = connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)
        .and_then(|_| connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false))
        .and_then(|_| connection.execute_batch("PRAGMA temp_store=MEMORY; PRAGMA cell_size_check=ON"))
        .and_then(|()| Ok((number("PRAGMA page_size")?, number("PRAGMA page_count")?)));
    let (page_size, pages) = prepared.map_err(|e| failed(&e))?;
    let mut content = Content {
        page_size: page_size.try_into().unwrap_or(0),
        pages: pages.try_into().unwrap_or(0),
        journal: journal(&absolute),
        damage: None,
        dangling: 0,
        tables: Vec::new(),
        schema_hash: String::new(),
        notes: Vec::new(),
    };
    match faults(&connection, depth) {
        Ok(faults) => content.damage = faults,
        Err(e) if is_damage(&e) => content.damage = Some(e.to_string()),
        Err(e) => content.notes.push(format!("It could not be checked: {e}")),
    }
    if depth == Depth::Full {
        match connection
            .query_row("SELECT count(*) FROM pragma_foreign_key_check", (), |row| row.get::<_, i64>(0))
        {
            Ok(count) => content.dangling = count.try_into().unwrap_or(0),
            Err(e) if is_damage(&e) => content.damage = Some(e.to_string()),
            Err(e) => content.notes.push(format!("Its foreign keys could not be checked: {e}")),
        }
    }
    match schema_hash(&connection).and_then(|hash| {
        content.schema_hash = hash;
        tables(&connection, hashes, &mut content.notes)
    }) {
        Ok(tables) => content.tables = tables,
        Err(e) => content.damage = content.damage.or(Some(e.to_string())),
    }
    Ok(content)
}

/// The first column of what a query gives. Within another query it can be nothing else, and nothing that writes.
pub(super) fn texts(path: &Path, sql: &str, limit: u32) -> Result<Vec<String>> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let read = || -> rusqlite::Result<Vec<String>> {
        let connection = open_immutable(&absolute)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        let mut statement = connection.prepare(&format!("SELECT * FROM (\n{sql}\n) LIMIT {limit}"))?;
        let text = |row: &rusqlite::Row<'_>| {
            Ok(match row.get_ref(0)? {
                ValueRef::Null => None,
                ValueRef::Integer(i) => Some(i.to_string()),
                ValueRef::Real(r) => Some(r.to_string()),
                ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
                    Some(String::from_utf8_lossy(bytes).into_owned())
                }
            })
        };
        statement.query_map((), text)?.filter_map(rusqlite::Result::transpose).collect()
    };
    read().map_err(|e| failed(&e))
}

/// From the header: a connection to an immutable file does not say it.
fn journal(path: &Path) -> Journal {
    use std::io::Read as _;
    let mut first = [0; 20];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut first));
    if read.is_ok() && first.ends_with(&[2, 2]) { Journal::Wal } else { Journal::Rollback }
}

fn is_damage(e: &rusqlite::Error) -> bool {
    e.sqlite_error()
        .is_some_and(|f| matches!(f.extended_code & 0xff, ffi::SQLITE_CORRUPT | ffi::SQLITE_NOTADB))
}

fn faults(connection: &Connection, depth: Depth) -> rusqlite::Result<Option<String>> {
    let pragma = if depth == Depth::Full { "integrity_check" } else { "quick_check" };
    let mut statement = connection.prepare(&format!("PRAGMA {pragma}({FAULTS})"))?;
    let said =
        statement.query_map((), |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
    Ok(if said == ["ok"] { None } else { Some(said.join("; ")) })
}

/// Everything that has a definition, and the numbers that apps keep in the header.
fn schema_hash(connection: &Connection) -> rusqlite::Result<String> {
    let mut hash = Sha256::new();
    for pragma in ["user_version", "application_id"] {
        let number: i64 = connection.query_row(&format!("PRAGMA {pragma}"), (), |row| row.get(0))?;
        hash.update(number.to_le_bytes());
    }
    let mut statement = connection.prepare(
        "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY type, name, sql",
    )?;
    let mut rows = statement.query(())?;
    while let Some(row) = rows.next()? {
        for column in 0..4 {
            update(&mut hash, row.get_ref(column)?);
        }
    }
    Ok(hex(&hash.finalize()))
}

fn tables(
    connection: &Connection,
    hashes: Hashes,
    notes: &mut Vec<String>,
) -> rusqlite::Result<Vec<TableRecord>> {
    let mut statement = connection.prepare(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
         AND sql NOT LIKE 'CREATE VIRTUAL%' ORDER BY name",
    )?;
    let names =
        statement.query_map((), |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
    let mut left = match hashes {
        Hashes::None => 0,
        Hashes::Affordable => AFFORDABLE,
        Hashes::All => u64::MAX,
    };
    let mut tables = Vec::new();
    for name in names {
        let quoted = format!("\"{}\"", name.replace('"', "\"\""));
        let rows: i64 =
            match connection.query_row(&format!("SELECT count(*) FROM {quoted}"), (), |row| row.get(0)) {
                Ok(rows) => rows,
                Err(e) if is_damage(&e) => return Err(e),
                // A column that is computed by a function of the app's own, say.
                Err(e) => {
                    notes.push(format!("The rows of `{name}` cannot be counted: {e}"));
                    continue;
                }
            };
        let hash = if left == 0 { None } else { rows_hash(connection, &quoted, &mut left)? };
        tables.push(TableRecord { name, rows: rows.try_into().unwrap_or(0), hash });
    }
    Ok(tables)
}

/// The sum of the hashes of all rows, so that their order does not matter; none where `left` bytes are not enough.
fn rows_hash(connection: &Connection, table: &str, left: &mut u64) -> rusqlite::Result<Option<String>> {
    let Ok(mut statement) = connection.prepare(&format!("SELECT * FROM {table}")) else { return Ok(None) };
    let columns = statement.column_count();
    let mut rows = statement.query(())?;
    let mut sum = [0_u64; 4];
    loop {
        let row = match rows.next() {
            Ok(Some(row)) => row,
            Ok(None) => break,
            Err(e) if is_damage(&e) => return Err(e),
            Err(_) => return Ok(None),
        };
        let mut hash = Sha256::new();
        let mut bytes = 0;
        for column in 0..columns {
            bytes += update(&mut hash, row.get_ref(column)?);
        }
        if bytes > *left {
            *left = 0;
            return Ok(None);
        }
        *left -= bytes;
        for (lane, part) in sum.iter_mut().zip(hash.finalize().chunks_exact(8)) {
            *lane = lane.wrapping_add(part.try_into().map_or(0, u64::from_le_bytes));
        }
    }
    Ok(Some(sum.iter().fold(String::new(), |mut all, lane| {
        write!(all, "{lane:016x}").ok();
        all
    })))
}

/// Adds a value with its type and length. Returns its bytes.
fn update(hash: &mut Sha256, value: ValueRef<'_>) -> u64 {
    let number;
    let (kind, bytes): (u8, &[u8]) = match value {
        ValueRef::Null => (0, &[]),
        ValueRef::Integer(i) => {
            number = i.to_le_bytes();
            (1, &number)
        }
        ValueRef::Real(r) => {
            number = r.to_bits().to_le_bytes();
            (2, &number)
        }
        ValueRef::Text(text) => (3, text),
        ValueRef::Blob(blob) => (4, blob),
    };
    hash.update([kind]);
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
    bytes.len() as u64 + 9
}
