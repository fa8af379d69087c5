//! Two databases change their names.
//!
//! Invariants:
//! * An exchange is one transaction of renames: the server knows the old state or the new one, whatever is killed when.
//! * The first rename locks the name before it looks for sessions. While it waits for them to go, another connection of
//!   ours ends them, and new ones wait at the lock: nobody can slip in, and nobody stays locked out after a kill.
//! * What has which name says which side is in use. Only where no database was in use there is none to keep: then the new one
//!   carries a mark in its comment, until `discard` takes that away.
//! * A database is dropped only when it is of the exchange and not in use.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backstay_model::{Code, Error, Result};

use super::connect::{Session, check, column, literal, quoted};
use super::{Postgres, tools};
use crate::adapter::{DumpRecord, Exchange, Options, Side};

/// Longest name of a database, in bytes. What is longer the server cuts off.
const NAME_MAX: usize = 63;
/// How often sessions are ended while a rename waits for them.
const AGAIN: Duration = Duration::from_millis(50);

/// The names of an exchange.
pub(super) fn names(live: &str, job: &str) -> Exchange {
    let name = |side: &str| {
        let tail = format!("_bs_{job}_{side}");
        let mut end = live.len().min(NAME_MAX.saturating_sub(tail.len()));
        while !live.is_char_boundary(end) {
            end -= 1;
        }
        format!("{}{tail}", live.get(..end).unwrap_or_default())
    };
    Exchange { live: live.to_owned(), staged: name("new"), kept: name("old") }
}

/// Which of an exchange's databases there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct There {
    /// The one in use.
    pub(super) live: bool,
    /// The new one before the exchange.
    pub(super) staged: bool,
    /// The old one after it.
    pub(super) kept: bool,
    /// The one in use was exchanged where none was in use.
    alone: bool,
}

impl There {
    /// Looks.
    pub(super) fn look(session: &mut Session, exchange: &Exchange) -> Result<Self> {
        let sql = "SELECT d.datname::text, pg_catalog.shobj_description(d.oid, 'pg_database')
                     FROM pg_catalog.pg_database d WHERE d.datname::text = ANY ($1)";
        let names = [&exchange.live, &exchange.staged, &exchange.kept].map(String::as_str);
        let rows = session.rows(sql, &[&names.as_slice()])?;
        let mut there = There { live: false, staged: false, kept: false, alone: false };
        for row in &rows {
            let name: String = column(row, 0)?;
            let comment: Option<String> = column(row, 1)?;
            there.staged |= name == exchange.staged;
            there.kept |= name == exchange.kept;
            if name == exchange.live {
                there.live = true;
                there.alone = comment.as_deref() == Some(mark(exchange).as_str());
            }
        }
        Ok(there)
    }

    fn side(self) -> Side {
        match self.live && !self.staged && (self.kept || self.alone) {
            true => Side::New,
            false => Side::Old,
        }
    }
}

/// The comment of a database that took a name which nobody had.
fn mark(exchange: &Exchange) -> String {
    format!("Restored by Backstay as {}", exchange.staged)
}

/// A connection to another database of the server than those that are renamed.
pub(super) fn beside(postgres: &Postgres, exchange: &Exchange) -> Result<Session> {
    let ours = [&exchange.live, &exchange.staged, &exchange.kept];
    let mut last = None;
    for database in ["postgres", "template1", "defaultdb"] {
        if ours.iter().any(|name| *name == database) {
            continue;
        }
        match Session::open(&postgres.endpoint, &postgres.options, Some(database)) {
            Ok(session) => return Ok(session),
            Err(e)
                if matches!(
                    e.code(),
                    Code::DatabaseNotFound | Code::DatabasePrivileges | Code::DatabaseLoginFailed
                ) =>
            {
                // What is said of the first is what counts: a wrong password is wrong everywhere.
                last.get_or_insert(e);
            }
            Err(e) => return Err(e),
        }
    }
    Err(last.unwrap_or_else(|| {
        Error::new(Code::DatabaseFailed, "There is no other database of the server to connect to meanwhile")
    }))
}

/// Which side is in use.
pub(super) fn side(postgres: &Postgres, exchange: &Exchange) -> Result<Side> {
    let mut session = beside(postgres, exchange)?;
    Ok(There::look(&mut session, exchange)?.side())
}

/// Brings that side into use.
pub(super) fn exchange(postgres: &Postgres, exchange: &Exchange, to: Side) -> Result<()> {
    let options = &postgres.options;
    let begin = Instant::now();
    loop {
        let mut session = beside(postgres, exchange)?;
        let there = There::look(&mut session, exchange)?;
        let Some(steps) = steps(there, exchange, to)? else { return Ok(()) };
        match rename(postgres, &mut session, exchange, &steps) {
            Ok(()) => return Ok(()),
            // Somebody could not be ended in time, or was in a database of ours for a moment.
            Err(e) if e.code() == Code::DatabaseBusy && begin.elapsed() < options.lock_wait => {
                check(&options.cancel)?;
            }
            Err(e) if e.code() == Code::DatabaseBusy => return Err(name_sessions(&mut session, exchange, e)),
            Err(e) => return Err(e),
        }
    }
}

/// The statements that bring a side into use; none where it is.
fn steps(there: There, exchange: &Exchange, to: Side) -> Result<Option<Vec<String>>> {
    let Exchange { live, staged, kept } = exchange;
    let rename = |from: &str, to: &str| format!("ALTER DATABASE {} RENAME TO {}", quoted(from), quoted(to));
    let comment = |text: &str| format!("COMMENT ON DATABASE {} IS {text}", quoted(live));
    let three = || {
        let message = format!("There are databases of all three names {live}, {staged} and {kept}");
        Error::new(Code::Conflict, message)
    };
    Ok(match (to, there.live, there.staged, there.kept) {
        (_, true, true, true) => return Err(three()),
        (Side::New, true, true, false) => Some(vec![rename(live, kept), rename(staged, live)]),
        (Side::New, false, true, true) => Some(vec![rename(staged, live)]),
        (Side::New, false, true, false) => {
            Some(vec![rename(staged, live), comment(&literal(&mark(exchange)))])
        }
        (Side::New, _, false, _) if there.side() == Side::New => None,
        (Side::New, _, false, _) => {
            let message = format!("There is no database {staged} that could take the place of {live}");
            return Err(Error::new(Code::DatabaseNotFound, message).advise("Stage the dump again."));
        }
        (Side::Old, true, false, true) => Some(vec![rename(live, staged), rename(kept, live)]),
        (Side::Old, false, _, true) => Some(vec![rename(kept, live)]),
        (Side::Old, true, false, false) if there.alone => Some(vec![comment("NULL"), rename(live, staged)]),
        (Side::Old, _, _, false) => None,
    })
}

/// Renames in one transaction while the sessions in the way are ended by another connection.
fn rename(postgres: &Postgres, session: &mut Session, exchange: &Exchange, steps: &[String]) -> Result<()> {
    let mut other = beside(postgres, exchange)?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let ender = scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                // Whom we may not end is told when the rename fails.
                if end_sessions(&mut other, exchange).is_err() {
                    return;
                }
                thread::park_timeout(AGAIN);
            }
        });
        let result = in_one(session, steps);
        done.store(true, Ordering::Release);
        ender.thread().unpark();
        result
    })
}

fn in_one(session: &mut Session, steps: &[String]) -> Result<()> {
    session.run("BEGIN")?;
    for step in steps {
        if let Err(error) = session.run(step) {
            // Where the connection is gone, so is the transaction.
            session.run("ROLLBACK").ok();
            return Err(error);
        }
    }
    session.run("COMMIT")
}

/// Ends every session in the databases of an exchange that we may end.
fn end_sessions(session: &mut Session, exchange: &Exchange) -> Result<()> {
    let names = [&exchange.live, &exchange.staged, &exchange.kept].map(String::as_str);
    let sql = "SELECT pid FROM pg_catalog.pg_stat_activity
                WHERE datname::text = ANY ($1) AND pid <> pg_catalog.pg_backend_pid() AND backend_type = 'client backend'";
    for pid in session.column::<i32>(sql, &[&names.as_slice()])? {
        match session.rows("SELECT pg_catalog.pg_terminate_backend($1)", &[&pid]) {
            Ok(_) => {}
            Err(e) if e.code() == Code::DatabasePrivileges => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Says who is in the way.
fn name_sessions(session: &mut Session, exchange: &Exchange, error: Error) -> Error {
    let names = [&exchange.live, &exchange.staged, &exchange.kept].map(String::as_str);
    let sql = "SELECT DISTINCT coalesce(usename::text, 'the server itself') || coalesce(' (' || nullif(application_name, '') || ')', '')
                 FROM pg_catalog.pg_stat_activity WHERE datname::text = ANY ($1)";
    let who: Vec<String> = session.column(sql, &[&names.as_slice()]).unwrap_or_default();
    match who.is_empty() {
        true => error,
        false => error.context(format!("Sessions of {} are in the way", who.join(", "))),
    }
}

/// Removes what is not in use.
pub(super) fn discard(postgres: &Postgres, exchange: &Exchange) -> Result<()> {
    let mut session = beside(postgres, exchange)?;
    let there = There::look(&mut session, exchange)?;
    match there.side() {
        Side::New if there.kept => drop_database(postgres, exchange, &exchange.kept),
        // It is in use like any other from here on.
        Side::New => session.run(&format!("COMMENT ON DATABASE {} IS NULL", quoted(&exchange.live))),
        Side::Old if there.staged => drop_database(postgres, exchange, &exchange.staged),
        Side::Old => Ok(()),
    }
}

/// Drops a database of an exchange, and ends whoever is in it.
pub(super) fn drop_database(postgres: &Postgres, exchange: &Exchange, name: &str) -> Result<()> {
    let begin = Instant::now();
    let only = Exchange { live: name.to_owned(), staged: name.to_owned(), kept: name.to_owned() };
    loop {
        let mut session = beside(postgres, exchange)?;
        let mut other = beside(postgres, exchange)?;
        let done = AtomicBool::new(false);
        let dropped = thread::scope(|scope| {
            let ender = scope.spawn(|| {
                while !done.load(Ordering::Acquire) && end_sessions(&mut other, &only).is_ok() {
                    thread::park_timeout(AGAIN);
                }
            });
            let result = session.run(&format!("DROP DATABASE IF EXISTS {}", quoted(name)));
            done.store(true, Ordering::Release);
            ender.thread().unpark();
            result
        });
        match dropped {
            Err(e) if e.code() == Code::DatabaseBusy && begin.elapsed() < postgres.options.lock_wait => {}
            other => return other,
        }
    }
}

/// Whether a restore could be done, and what it will do.
pub(super) fn check_restore(
    postgres: &Postgres,
    record: &DumpRecord,
    exchange: &Exchange,
) -> Result<Vec<String>> {
    if record.format != super::dump::FORMAT {
        let message = format!("A dump of the form `{}` cannot be restored into PostgreSQL", record.format);
        return Err(Error::new(Code::DatabaseDumpUnusable, message));
    }
    let mut session = beside(postgres, exchange)?;
    restore_tool(&session, record, &postgres.options)?;
    let row = session.rows(
        "SELECT current_user::text, rolsuper, rolsuper OR rolcreatedb FROM pg_catalog.pg_roles WHERE rolname = current_user",
        &[],
    )?;
    let row =
        row.first().ok_or_else(|| Error::new(Code::Internal, "PostgreSQL does not know its own user"))?;
    let (user, superuser, may_create): (String, bool, bool) =
        (column(row, 0)?, column(row, 1)?, column(row, 2)?);
    if !may_create {
        let message = format!("The user {user} may not create a database, and a restore makes a new one");
        return Err(Error::new(Code::DatabasePrivileges, message)
            .advise(format!("Run at the server: ALTER ROLE {} CREATEDB", quoted(&user))));
    }
    let there = There::look(&mut session, exchange)?;
    let Exchange { live, staged, kept } = exchange;
    if !there.live {
        return Ok(vec![format!("There is no database {live}: the restored one takes that name")]);
    }
    let owner: bool = session.one(
        "SELECT pg_has_role(datdba, 'USAGE') FROM pg_catalog.pg_database WHERE datname::text = $1",
        &[&live],
    )?;
    if !owner {
        let message =
            format!("The database {live} is not the user {user}'s, who may therefore not rename it");
        return Err(Error::new(Code::DatabasePrivileges, message).advise(format!(
            "Run at the server: ALTER DATABASE {} OWNER TO {}",
            quoted(live),
            quoted(&user)
        )));
    }
    let mut words = vec![
        format!("The dump is restored into the new database {staged} and compared with its record"),
        format!(
            "Then {live} is renamed {kept}, and {staged} is renamed {live}: every session in {live} is ended"
        ),
        "Owner, grants, settings, comment and limit of connections of the database are carried over"
            .to_owned(),
    ];
    words.extend(foreign_sessions(&mut session, live, superuser)?);
    Ok(words)
}

/// Says whose sessions we may not end.
fn foreign_sessions(session: &mut Session, live: &str, superuser: bool) -> Result<Option<String>> {
    if superuser {
        return Ok(None);
    }
    let sql = "SELECT DISTINCT a.usename::text FROM pg_catalog.pg_stat_activity a
                 JOIN pg_catalog.pg_roles r ON r.oid = a.usesysid
                WHERE a.datname::text = $1 AND NOT pg_has_role(a.usesysid, 'USAGE')
                  AND (r.rolsuper OR NOT pg_has_role('pg_signal_backend', 'USAGE'))";
    let others: Vec<String> = session.column(sql, &[&live])?;
    Ok((!others.is_empty()).then(|| {
        format!("Sessions of {} cannot be ended by this user and must go by themselves", others.join(", "))
    }))
}

/// The tool that can read the dump and fill this server.
pub(super) fn restore_tool(
    session: &Session,
    record: &DumpRecord,
    options: &Options,
) -> Result<crate::adapter::Tool> {
    let wrote = tools::major(&record.tool.version).unwrap_or_default();
    tools::choose("pg_restore", session.major().max(wrote), options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_stay_text() {
        let names = names("blog", "1a2b3c4d");
        assert_eq!(
            (names.staged.as_str(), names.kept.as_str()),
            ("blog_bs_1a2b3c4d_new", "blog_bs_1a2b3c4d_old")
        );
        for live in ["é".repeat(31), "x".repeat(63), "🦀".repeat(15)] {
            let names = super::names(&live, "1a2b3c4d");
            assert!(names.staged.len() <= NAME_MAX && names.staged.ends_with("_bs_1a2b3c4d_new"));
            assert!(live.starts_with(names.staged.trim_end_matches("_bs_1a2b3c4d_new")));
        }
    }

    #[test]
    fn every_state_has_its_steps() {
        let exchange = names("a", "1");
        let there = |live, staged, kept, alone| There { live, staged, kept, alone };
        let count = |state, to| steps(state, &exchange, to).map(|s| s.map(|s| s.len()));
        // Staged, exchanged, back.
        assert_eq!(count(there(true, true, false, false), Side::New).unwrap(), Some(2));
        assert_eq!(count(there(true, true, false, false), Side::Old).unwrap(), None);
        assert_eq!(count(there(true, false, true, false), Side::New).unwrap(), None);
        assert_eq!(count(there(true, false, true, false), Side::Old).unwrap(), Some(2));
        // Where none was in use.
        assert_eq!(count(there(false, true, false, false), Side::New).unwrap(), Some(2));
        assert_eq!(count(there(true, false, false, true), Side::New).unwrap(), None);
        assert_eq!(count(there(true, false, false, true), Side::Old).unwrap(), Some(2));
        // Nothing staged: the old side is what there is.
        assert_eq!(count(there(true, false, false, false), Side::Old).unwrap(), None);
        assert!(count(there(true, false, false, false), Side::New).is_err());
        // Somebody dropped the one in use: whatever is asked for comes.
        assert_eq!(count(there(false, true, true, false), Side::New).unwrap(), Some(1));
        assert_eq!(count(there(false, false, true, false), Side::Old).unwrap(), Some(1));
        assert!(count(there(true, true, true, false), Side::Old).is_err());
    }
}
