//! What a database holds beside its tables: views, routines, triggers and events; saved as SQL inside the database itself.
//!
//! `RENAME TABLE` moves tables and sequences. The rest cannot move: it is saved in the table [`MARKER`] of the same database,
//! removed, and made again on the side that comes into use. The table moves with all others, so the server alone knows
//! which side is where and what it still lacks.
//!
//! Invariants:
//! * Objects are removed only after all of them are saved and committed.
//! * What is saved is replaced only while [`Phase::Present`] says that the database itself has everything.
//! * Making them can be repeated: each is removed first where it exists.

use ::mysql::Value;
use backstay_model::{Code, Error, Result};

use super::connect::{Refusal, Row, Session, literal, name, text};
use super::errors;
use crate::adapter::Side;

/// The table that holds them.
pub(super) const MARKER: &str = "_backstay_objects";

/// How a side stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// What is saved counts; the database may lack any of it.
    Saved,
    /// The database has everything; what is saved may be old.
    Present,
    /// The database did not exist before the exchange.
    Absent,
}

impl Phase {
    fn word(self) -> &'static str {
        match self {
            Phase::Saved => "saved",
            Phase::Present => "present",
            Phase::Absent => "absent",
        }
    }
}

/// Which side a database holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Marker {
    pub side: Side,
    pub phase: Phase,
}

fn word(side: Side) -> &'static str {
    match side {
        Side::Old => "old",
        Side::New => "new",
    }
}

/// Kinds in the order in which they are made; the other way round they are removed.
const KINDS: [&str; 7] = ["FUNCTION", "PROCEDURE", "PACKAGE", "PACKAGE BODY", "VIEW", "TRIGGER", "EVENT"];

/// An object and all that its making depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Object {
    pub kind: String,
    pub name: String,
    pub statement: String,
    sql_mode: String,
    charset: String,
    collation: String,
    time_zone: String,
    /// A view of something that is not there cannot be made.
    pub broken: bool,
}

/// The marker of a database; none where it has none or does not exist.
pub(super) fn marker(session: &mut Session, database: &str) -> Result<Option<Marker>> {
    let query = format!("SELECT name, statement FROM {} WHERE kind = 'side'", table(database));
    let rows = match session.try_rows(&query) {
        Ok(rows) => rows,
        // No such database, no such table, or neither is shown.
        Err(e) if matches!(errors::number(&e), Some(1044 | 1049 | 1142 | 1146)) => return Ok(None),
        Err(e) => return Err(errors::from_driver(e, "Looking for the marker of an exchange", false)),
    };
    let Some(row) = rows.first() else { return Ok(None) };
    let side = match text(row, 0).as_str() {
        "new" => Side::New,
        _ => Side::Old,
    };
    let phase = match text(row, 1).as_str() {
        "present" => Phase::Present,
        "absent" => Phase::Absent,
        _ => Phase::Saved,
    };
    Ok(Some(Marker { side, phase }))
}

fn table(database: &str) -> String {
    format!("{}.{}", name(database), name(MARKER))
}

/// The tables and sequences of a database, in the order of their names, without the marker.
pub(super) fn tables(session: &mut Session, database: &str) -> Result<Vec<String>> {
    session.column(&format!(
        "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = {} \
         AND TABLE_TYPE NOT LIKE '%VIEW' AND TABLE_NAME <> {} ORDER BY BINARY TABLE_NAME",
        literal(database),
        literal(MARKER)
    ))
}

/// The tables that a side had when it was saved.
pub(super) fn saved_tables(session: &mut Session, database: &str) -> Result<Vec<String>> {
    session.column(&format!("SELECT name FROM {} WHERE kind = 'table'", table(database)))
}

/// Saves the side that a database holds, all of it or nothing.
pub(super) fn save(session: &mut Session, database: &str, marker: Marker, objects: &[Object]) -> Result<()> {
    let tables = tables(session, database)?;
    session.change(&format!(
        "CREATE TABLE IF NOT EXISTS {} (id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY, kind VARCHAR(16) NOT NULL, \
         name VARCHAR(255) NOT NULL, statement LONGTEXT NOT NULL, sql_mode TEXT NOT NULL, charset VARCHAR(64) NOT NULL, \
         collation_name VARCHAR(64) NOT NULL, time_zone VARCHAR(64) NOT NULL, broken INT NOT NULL) \
         ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_bin",
        table(database)
    ))?;
    session.run("START TRANSACTION")?;
    session.change(&format!("DELETE FROM {}", table(database)))?;
    let plain = |kind: &str, name: &str, statement: &str| Object {
        kind: kind.to_owned(),
        name: name.to_owned(),
        statement: statement.to_owned(),
        sql_mode: String::new(),
        charset: String::new(),
        collation: String::new(),
        time_zone: String::new(),
        broken: false,
    };
    let side = plain("side", word(marker.side), marker.phase.word());
    let tables = tables.iter().map(|table| plain("table", table, ""));
    let all: Vec<Object> = [side].into_iter().chain(tables).chain(objects.iter().cloned()).collect();
    for part in all.chunks(64) {
        insert(session, database, part)?;
    }
    session.change("COMMIT")
}

fn insert(session: &mut Session, database: &str, objects: &[Object]) -> Result<()> {
    let places = vec!["(?, ?, ?, ?, ?, ?, ?, ?)"; objects.len()].join(", ");
    let values = objects.iter().flat_map(|object| {
        let broken = if object.broken { "1" } else { "0" };
        [
            &object.kind,
            &object.name,
            &object.statement,
            &object.sql_mode,
            &object.charset,
            &object.collation,
            &object.time_zone,
            broken,
        ]
        .map(|text| Value::Bytes(text.as_bytes().to_vec()))
    });
    let columns = "kind, name, statement, sql_mode, charset, collation_name, time_zone, broken";
    let statement = format!("INSERT INTO {} ({columns}) VALUES {places}", table(database));
    session.change_with(&statement, values.collect())
}

/// Says that the database has everything.
pub(super) fn set_phase(session: &mut Session, database: &str, phase: Phase) -> Result<()> {
    session.change(&format!(
        "UPDATE {} SET statement = {} WHERE kind = 'side'",
        table(database),
        literal(phase.word())
    ))
}

/// The objects that a database has now, in the order in which they can be made.
pub(super) fn present(session: &mut Session, database: &str) -> Result<Vec<Object>> {
    session.run(&format!("USE {}", name(database)))?;
    let mut objects = Vec::new();
    for (kind, name) in names(session, database)? {
        objects.push(look(session, &kind, &name)?);
    }
    Ok(objects)
}

/// Kinds and names, in the order of [`KINDS`].
pub(super) fn names(session: &mut Session, database: &str) -> Result<Vec<(String, String)>> {
    let here = literal(database);
    let rows = session.rows(&format!(
        "SELECT ROUTINE_TYPE, ROUTINE_NAME, '' AS a, '' AS b, 0 AS c FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = {here} \
         UNION ALL SELECT 'VIEW', TABLE_NAME, '', '', 0 FROM information_schema.TABLES \
             WHERE TABLE_SCHEMA = {here} AND TABLE_TYPE LIKE '%VIEW' \
         UNION ALL SELECT 'TRIGGER', TRIGGER_NAME, EVENT_OBJECT_TABLE, CONCAT(ACTION_TIMING, EVENT_MANIPULATION), ACTION_ORDER \
             FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = {here} \
         UNION ALL SELECT 'EVENT', EVENT_NAME, '', '', 0 FROM information_schema.EVENTS WHERE EVENT_SCHEMA = {here} \
         ORDER BY 3, 4, 5, 2"
    ))?;
    let mut found: Vec<_> = rows.iter().map(|row| (text(row, 0), text(row, 1))).collect();
    found.sort_by_key(|(kind, _)| KINDS.iter().position(|known| known == kind));
    Ok(found)
}

fn look(session: &mut Session, kind: &str, object: &str) -> Result<Object> {
    let row = session.row(&format!("SHOW CREATE {kind} {}", name(object)))?;
    // Where each kind's answer has its statement and what belongs to it.
    let (sql_mode, time_zone, statement, charset) = match kind {
        "VIEW" => (None, None, 1, 2),
        "EVENT" => (Some(1), Some(2), 3, 4),
        _ => (Some(1), None, 2, 3),
    };
    let column = |at: Option<usize>| at.map(|at| text(&row, at)).unwrap_or_default();
    let object = Object {
        kind: kind.to_owned(),
        name: object.to_owned(),
        statement: whole(&row, statement, kind, object)?,
        sql_mode: column(sql_mode),
        charset: column(Some(charset)),
        collation: column(Some(charset + 1)),
        time_zone: column(time_zone),
        broken: false,
    };
    let broken = kind == "VIEW"
        && session
            .try_rows(&format!("SELECT 1 FROM {} LIMIT 0", name(&object.name)))
            .is_err_and(|e| is_broken(&e));
    Ok(Object { broken, ..object })
}

/// Whether the server says of a view that what it shows is not there.
fn is_broken(error: &::mysql::Error) -> bool {
    matches!(errors::number(error), Some(1054 | 1146 | 1305 | 1356 | 1449))
}

/// A statement, if the server shows it and it is text.
fn whole(row: &Row, column: usize, kind: &str, object: &str) -> Result<String> {
    let kind = kind.to_lowercase();
    let hidden = || {
        let message =
            format!("The server does not show the definition of the {kind} `{object}` to this user");
        Error::new(Code::DatabasePrivileges, message)
    };
    let bytes = row.get(column).cloned().flatten().ok_or_else(hidden)?;
    String::from_utf8(bytes).map_err(|e| {
        let message =
            format!("The definition of the {kind} `{object}` is no text, so it could not be made again");
        Error::new(Code::DatabaseFailed, message).because(e)
    })
}

/// The accounts other than this one that objects are defined by.
pub(super) fn other_definers(session: &mut Session, database: &str) -> Result<Vec<String>> {
    let here = literal(database);
    let account = literal(&session.account);
    session.column(&format!(
        "SELECT DISTINCT d FROM (SELECT DEFINER AS d FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = {here} \
         UNION SELECT DEFINER FROM information_schema.VIEWS WHERE TABLE_SCHEMA = {here} \
         UNION SELECT DEFINER FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = {here} \
         UNION SELECT DEFINER FROM information_schema.EVENTS WHERE EVENT_SCHEMA = {here}) AS x \
         WHERE d <> {account} ORDER BY d"
    ))
}

/// Removes all objects of a database. They must be saved.
pub(super) fn remove(session: &mut Session, database: &str) -> Result<()> {
    for (kind, object) in names(session, database)?.into_iter().rev() {
        let statement = format!("DROP {kind} IF EXISTS {}.{}", name(database), name(&object));
        match kind.starts_with("PACKAGE") {
            false => session.change(&statement)?,
            // The server knows that word in this mode only.
            true => {
                session.run("SET SESSION sql_mode='ORACLE'")?;
                session.change(&statement)?;
                session.run("SET SESSION sql_mode=''")?;
            }
        }
    }
    Ok(())
}

/// Makes what is saved in a database again.
pub(super) fn make(session: &mut Session, database: &str) -> Result<()> {
    let rows = session.rows(&format!(
        "SELECT kind, name, statement, sql_mode, charset, collation_name, time_zone, broken FROM {} \
         WHERE kind NOT IN ('side', 'table') ORDER BY id",
        table(database)
    ))?;
    // What is there as it was saved stays: making it again would only wait for locks.
    let there = present(session, database)?;
    let objects: Vec<Object> = rows.iter().map(object).filter(|object| !there.contains(object)).collect();
    let made = objects
        .iter()
        .filter(|object| object.kind != "VIEW" && object.kind != "TRIGGER" && object.kind != "EVENT")
        .try_for_each(|object| make_one(session, object))
        .and_then(|()| views(session, &objects))
        .and_then(|()| {
            let mut last = objects.iter().filter(|object| object.kind == "TRIGGER" || object.kind == "EVENT");
            last.try_for_each(|object| make_one(session, object))
        });
    // Whatever happened, the session speaks as before.
    session.run("SET NAMES utf8mb4")?;
    session.run("SET SESSION sql_mode='', time_zone='+00:00'")?;
    made
}

fn object(row: &Row) -> Object {
    Object {
        kind: text(row, 0),
        name: text(row, 1),
        statement: text(row, 2),
        sql_mode: text(row, 3),
        charset: text(row, 4),
        collation: text(row, 5),
        time_zone: text(row, 6),
        broken: text(row, 7) == "1",
    }
}

/// Views show views: they are tried until all are made, or none more can be.
fn views(session: &mut Session, objects: &[Object]) -> Result<()> {
    let mut left: Vec<&Object> = objects.iter().filter(|object| object.kind == "VIEW").collect();
    loop {
        let before = left.len();
        let mut refused = Vec::new();
        let mut why = None;
        for view in left {
            match try_make(session, view) {
                Ok(()) => {}
                Err(Refusal::Server(e)) if is_broken(&e) => {
                    if !view.broken {
                        why = Some(failed(view, e));
                    }
                    refused.push(view);
                }
                Err(Refusal::Server(e)) => return Err(failed(view, e)),
                Err(Refusal::Cut(e)) => return Err(e),
            }
        }
        left = refused;
        match why {
            Some(error) if left.len() == before => return Err(error),
            // Only those are left that were broken before.
            None if left.len() == before || left.is_empty() => return Ok(()),
            _ => {}
        }
    }
}

fn make_one(session: &mut Session, object: &Object) -> Result<()> {
    match try_make(session, object) {
        Ok(()) => Ok(()),
        Err(Refusal::Cut(error)) => Err(error),
        Err(Refusal::Server(error)) => Err(failed(object, error)),
    }
}

fn failed(object: &Object, error: ::mysql::Error) -> Error {
    let kind = object.kind.to_lowercase();
    errors::from_driver(error, &format!("Making the {kind} `{}`", object.name), false)
}

fn try_make(session: &mut Session, object: &Object) -> Result<(), Refusal> {
    // The statement is sent as UTF-8. Another character set of the client can be claimed where that makes no difference.
    let claimed = object.statement.is_ascii() || object.charset.starts_with("utf8");
    let charset = if claimed && !object.charset.is_empty() { &object.charset } else { "utf8mb4" };
    let mut settings = format!("SET SESSION character_set_client={charset}");
    if !object.collation.is_empty() {
        settings.push_str(&format!(", collation_connection={}", object.collation));
    }
    settings.push_str(&format!(", sql_mode={}", literal(&object.sql_mode)));
    if !object.time_zone.is_empty() {
        settings.push_str(&format!(", time_zone={}", literal(&object.time_zone)));
    }
    session.try_run(&settings).map_err(Refusal::Server)?;
    session.try_change(&format!("DROP {} IF EXISTS {}", object.kind, name(&object.name)))?;
    session.try_change(&object.statement)
}

/// An event's statement with another state than it has.
pub(super) fn with_event_state(object: &mut Object, state: &str) {
    let Some((now, end)) = super::stream::event_state(&object.statement, 0) else { return };
    let before = object.statement.get(..end - now.len()).unwrap_or_default();
    let after = object.statement.get(end..).unwrap_or_default();
    object.statement = format!("{before}{state}{after}");
}
