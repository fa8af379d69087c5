//! The exchange of two databases' contents under one name.
//!
//! A side is all that one database holds: the old one rests in `kept`, the new one in `staged`, the one in use is in `live`. Each
//! carries its marker ([`super::objects`]). A step from one side to the other is:
//!
//! 1. save the leaving side's views, routines, triggers and events in its own marker (one transaction);
//! 2. remove them from `live`;
//! 3. one `RENAME TABLE`: all tables of `live` to their resting place, all of the coming side to `live`, the coming side's marker
//!    last;
//! 4. make the coming side's objects from its marker; say that it is whole.
//!
//! Invariants:
//! * No table is ever dropped here.
//! * Every step looks at the server first, so it can be repeated after a kill at any moment, in either direction. Both sides are
//!   written with the same code.
//! * Servers whose `RENAME TABLE` of many tables may stop halfway (MySQL before 8, MariaDB before 10.6) are understood
//!   too: which side a table in `live` is of follows from the lists in the markers.
//!
//! Crash story: `docs/adr/0007-mysql-exchange.md` has the table. Locks: a named lock of the server for the whole exchange, so that a
//! statement of a killed process that still waits at the server is waited for.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use backstay_model::{Code, Error, Result};

use super::connect::{Session, literal, name, text};
use super::objects::{self, MARKER, Marker, Phase};
use crate::adapter::{Exchange, Side};

/// The longest name that the server takes, in characters.
const LONGEST: usize = 64;

/// How long a lock is waited for before the sessions in the database are ended once more.
const ROUND: Duration = Duration::from_secs(1);

pub(super) fn names(live: &str, job: &str) -> Exchange {
    let beside = |end: &str| {
        let end = format!("_bs_{job}_{end}");
        let kept = LONGEST.saturating_sub(end.chars().count());
        format!("{}{end}", live.chars().take(kept).collect::<String>())
    };
    Exchange { live: live.to_owned(), staged: beside("new"), kept: beside("old") }
}

/// Where a side rests while the other is in use.
fn resting(exchange: &Exchange, side: Side) -> &str {
    match side {
        Side::Old => &exchange.kept,
        Side::New => &exchange.staged,
    }
}

fn other(side: Side) -> Side {
    match side {
        Side::Old => Side::New,
        Side::New => Side::Old,
    }
}

/// What the server says of all three databases.
struct State {
    live: Option<Marker>,
    staged: Option<Marker>,
    kept: Option<Marker>,
}

impl State {
    fn of(session: &mut Session, exchange: &Exchange) -> Result<Self> {
        Ok(State {
            live: objects::marker(session, &exchange.live)?,
            staged: objects::marker(session, &exchange.staged)?,
            kept: objects::marker(session, &exchange.kept)?,
        })
    }

    fn is_live(&self, side: Side) -> bool {
        self.live.is_some_and(|marker| marker.side == side)
    }

    fn rests(&self, side: Side) -> bool {
        let place = match side {
            Side::Old => self.kept,
            Side::New => self.staged,
        };
        place.is_some_and(|marker| marker.side == side)
    }
}

/// Which side is in use.
pub(super) fn side(session: &mut Session, exchange: &Exchange) -> Result<Side> {
    let marker = objects::marker(session, &exchange.live)?;
    Ok(marker.map_or(Side::Old, |marker| marker.side))
}

/// Brings a side into use.
pub(super) fn exchange(session: &mut Session, exchange: &Exchange, to: Side) -> Result<()> {
    lock(session, exchange)?;
    bring(session, exchange, to)
}

fn bring(session: &mut Session, exchange: &Exchange, to: Side) -> Result<()> {
    let state = State::of(session, exchange)?;
    if state.is_live(to) {
        return complete(session, exchange, to);
    }
    if !state.rests(to) {
        // The old side has no marker before it first leaves.
        return match to {
            Side::Old if !state.is_live(Side::New) => Ok(()),
            _ => {
                let message =
                    format!("There is nothing in `{}` that could be brought into use", resting(exchange, to));
                Err(Error::new(Code::DatabaseNotFound, message))
            }
        };
    }
    refuse_foreign_keys(session, exchange, to)?;
    let moved = leave(session, exchange, &state, to)
        .and_then(|()| patiently(session, exchange, |session| rename(session, exchange, to)));
    if let Err(error) = moved {
        // The side in use must not stay without its objects because of a lock that did not come.
        let now = State::of(session, exchange);
        if now.is_ok_and(|now| now.is_live(other(to))) {
            complete(session, exchange, other(to)).ok();
        }
        return Err(error);
    }
    complete(session, exchange, to)
}

/// Saves the side in use and takes its objects away.
fn leave(session: &mut Session, exchange: &Exchange, state: &State, to: Side) -> Result<()> {
    let from = other(to);
    let rest = resting(exchange, from);
    if !session.has_database(&exchange.live)? {
        let like = charset(session, resting(exchange, to))?;
        session.change(&format!("CREATE DATABASE IF NOT EXISTS {}{like}", name(&exchange.live)))?;
        let marker = Marker { side: from, phase: Phase::Absent };
        objects::save(session, &exchange.live, marker, &[])?;
    } else if !state.rests(from) && state.live.is_none_or(|marker| marker.phase == Phase::Present) {
        definers(session, &exchange.live)?;
        let present = objects::present(session, &exchange.live)?;
        let marker = Marker { side: from, phase: Phase::Saved };
        objects::save(session, &exchange.live, marker, &present)?;
    }
    if !session.has_database(rest)? {
        let like = charset(session, &exchange.live)?;
        session.change(&format!("CREATE DATABASE IF NOT EXISTS {}{like}", name(rest)))?;
    }
    patiently(session, exchange, |session| objects::remove(session, &exchange.live))
}

/// Does what needs locks of the app's tables. Sessions that come back are ended again, until locks were waited for as long as
/// they may be.
fn patiently(
    session: &mut Session,
    exchange: &Exchange,
    mut work: impl FnMut(&mut Session) -> Result<()>,
) -> Result<()> {
    let begin = Instant::now();
    let wait = |seconds: u64| format!("SET SESSION lock_wait_timeout={}", seconds.max(1));
    let whole = session.lock_wait;
    session.run(&wait(ROUND.min(whole).as_secs()))?;
    let done = loop {
        end_sessions(session, exchange)?;
        match work(session) {
            Err(error) if error.code() == Code::DatabaseLockTimeout && begin.elapsed() < whole => {}
            done => break done,
        }
    };
    session.run(&wait(whole.as_secs()))?;
    done
}

/// Character set and collation of a database, as the making of another takes them.
pub(super) fn charset(session: &mut Session, database: &str) -> Result<String> {
    let rows = session.rows(&format!(
        "SELECT DEFAULT_CHARACTER_SET_NAME, DEFAULT_COLLATION_NAME FROM information_schema.SCHEMATA \
         WHERE SCHEMA_NAME = {}",
        literal(database)
    ))?;
    Ok(match rows.first() {
        Some(row) => format!(" CHARACTER SET {} COLLATE {}", text(row, 0), text(row, 1)),
        None => String::new(),
    })
}

/// An object of somebody else cannot be made again without the right to name its definer.
pub(super) fn definers(session: &mut Session, database: &str) -> Result<()> {
    let others = objects::other_definers(session, database)?;
    let Some(first) = others.first() else { return Ok(()) };
    let grants = super::grants::Grants::of(session)?;
    if super::rights::sets_definers(&grants) {
        return Ok(());
    }
    let message = format!(
        "Objects of `{database}` are defined by `{first}`; to make them again this user needs: GRANT {} ON *.* TO {}",
        super::rights::definer_right(session.flavour),
        session.grantee()
    );
    Err(Error::new(Code::DatabasePrivileges, message))
}

/// Foreign keys of other databases would follow the tables to their resting place.
pub(super) fn refuse_foreign_keys(session: &mut Session, exchange: &Exchange, to: Side) -> Result<()> {
    let ours = [&exchange.live, &exchange.staged, &exchange.kept].map(|name| literal(name)).join(", ");
    let moved = format!("{}, {}", literal(&exchange.live), literal(resting(exchange, to)));
    let found = session.rows(&format!(
        "SELECT CONSTRAINT_SCHEMA, TABLE_NAME FROM information_schema.REFERENTIAL_CONSTRAINTS \
         WHERE UNIQUE_CONSTRAINT_SCHEMA IN ({moved}) AND CONSTRAINT_SCHEMA NOT IN ({ours}) LIMIT 1"
    ))?;
    match found.first() {
        None => Ok(()),
        Some(row) => {
            let message = format!(
                "The table `{}`.`{}` of another database has a foreign key into `{}`, which would follow the old tables",
                text(row, 0),
                text(row, 1),
                exchange.live
            );
            Err(Error::new(Code::DatabaseFailed, message)
                .advise("Drop that key for the time of the restore."))
        }
    }
}

/// Moves all tables in one statement.
fn rename(session: &mut Session, exchange: &Exchange, to: Side) -> Result<()> {
    let from = other(to);
    let (leaving, coming) = (resting(exchange, from), resting(exchange, to));
    let state = State::of(session, exchange)?;
    let live = objects::tables(session, &exchange.live)?;
    let gone: BTreeSet<_> = objects::tables(session, leaving)?.into_iter().collect();
    let waiting = objects::tables(session, coming)?;
    let of_coming: BTreeSet<_> = objects::saved_tables(session, coming)?.into_iter().collect();
    let arrived =
        |table: &String| gone.contains(table) || (of_coming.contains(table) && !waiting.contains(table));
    let mut moves = Vec::new();
    let mut add = |table: &str, from: &str, to: &str| {
        moves.push(format!("{}.{} TO {}.{}", name(from), name(table), name(to), name(table)));
    };
    for table in live.iter().filter(|table| !arrived(table)) {
        add(table, &exchange.live, leaving);
    }
    if state.is_live(from) {
        add(MARKER, &exchange.live, leaving);
    }
    for table in &waiting {
        add(table, coming, &exchange.live);
    }
    add(MARKER, coming, &exchange.live);
    session.run("SET SESSION foreign_key_checks=0")?;
    let moved = session.change(&format!("RENAME TABLE {}", moves.join(", ")));
    session.run("SET SESSION foreign_key_checks=1")?;
    moved
}

/// Ends the sessions in the database in use, as far as this user may: they could hold its tables.
fn end_sessions(session: &mut Session, exchange: &Exchange) -> Result<()> {
    let others = session.column(&format!(
        "SELECT ID FROM information_schema.PROCESSLIST WHERE DB = {} AND ID <> CONNECTION_ID()",
        literal(&exchange.live)
    ))?;
    for id in others.iter().filter_map(|id| id.parse::<u64>().ok()) {
        // Gone already, or not ours to end: then the lock is waited for.
        session.try_run(&format!("KILL {id}")).ok();
    }
    Ok(())
}

/// Brings back the tables of the side in use that a rename, stopped before it reached the marker, has moved already.
fn gather(session: &mut Session, exchange: &Exchange, to: Side) -> Result<()> {
    let rest = resting(exchange, to);
    let strays = objects::tables(session, rest)?;
    if strays.is_empty() {
        return Ok(());
    }
    let back = |table: &String| {
        format!("{}.{} TO {}.{}", name(rest), name(table), name(&exchange.live), name(table))
    };
    let moves: Vec<_> = strays.iter().map(back).collect();
    session.run("SET SESSION foreign_key_checks=0")?;
    let moved = session.change(&format!("RENAME TABLE {}", moves.join(", ")));
    session.run("SET SESSION foreign_key_checks=1")?;
    moved
}

/// Makes what the side in use still lacks.
fn complete(session: &mut Session, exchange: &Exchange, to: Side) -> Result<()> {
    let Some(marker) = objects::marker(session, &exchange.live)? else { return Ok(()) };
    gather(session, exchange, to)?;
    match marker.phase {
        Phase::Present => Ok(()),
        Phase::Saved => {
            patiently(session, exchange, |session| objects::make(session, &exchange.live))?;
            objects::set_phase(session, &exchange.live, Phase::Present)
        }
        // The side that is no database: it is one only for its marker.
        Phase::Absent if to == Side::Old && objects::tables(session, &exchange.live)?.is_empty() => {
            session.change(&format!("DROP DATABASE IF EXISTS {}", name(&exchange.live)))
        }
        Phase::Absent => Ok(()),
    }
}

/// Removes what is not in use, and the marker of what is.
pub(super) fn discard(session: &mut Session, exchange: &Exchange) -> Result<()> {
    lock(session, exchange)?;
    let state = State::of(session, exchange)?;
    let in_use = state.live.map_or(Side::Old, |marker| marker.side);
    if state.rests(in_use) {
        // Moved in part: its tables are in both.
        bring(session, exchange, in_use)?;
    } else {
        complete(session, exchange, in_use)?;
    }
    for database in [&exchange.staged, &exchange.kept] {
        if session.has_database(database)? {
            session.run("SET SESSION foreign_key_checks=0")?;
            session.change(&format!("DROP DATABASE IF EXISTS {}", name(database)))?;
            session.run("SET SESSION foreign_key_checks=1")?;
        }
    }
    match session.has_database(&exchange.live)? {
        true => session.change(&format!("DROP TABLE IF EXISTS {}.{}", name(&exchange.live), name(MARKER))),
        false => Ok(()),
    }
}

/// One exchange of a database at a time, those of dead processes included.
fn lock(session: &mut Session, exchange: &Exchange) -> Result<()> {
    let row = session.row(&format!(
        "SELECT GET_LOCK(CONCAT('backstay ', SHA1({})), @@SESSION.lock_wait_timeout)",
        literal(&exchange.live)
    ))?;
    match text(&row, 0).as_str() {
        "1" => Ok(()),
        _ => {
            let message = format!("Another exchange of `{}` is under way at the server", exchange.live);
            Err(Error::new(Code::DatabaseLockTimeout, message))
        }
    }
}
