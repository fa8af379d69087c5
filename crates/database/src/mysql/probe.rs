//! What a server says of a database before it is dumped: above all what this user does not see.
//!
//! The dump tool leaves out what it is not shown, without a word: tables without the right to read them, triggers, events,
//! bodies of routines. Its exit status proves nothing; the grants do.

use backstay_model::Result;

use super::MySql;
use super::connect::{Flavour, Session, literal, name, text};
use super::grants::{Grants, pattern};
use super::tools;
use crate::adapter::{Options, Probe};
use crate::endpoint::Endpoint;

pub(super) fn probe(session: &mut Session, endpoint: &Endpoint, options: &Options) -> Result<Probe> {
    let database = MySql::new(endpoint.clone(), options.clone()).database()?.to_owned();
    let sizes = session.row(&format!(
        "SELECT COALESCE(SUM(DATA_LENGTH), 0) FROM information_schema.TABLES WHERE TABLE_SCHEMA = {}",
        literal(&database)
    ))?;
    Ok(Probe {
        version: session.server(),
        user: session.account.clone(),
        tls: session.tls.clone(),
        estimated_bytes: text(&sizes, 0).parse().unwrap_or(0),
        tool: tools::dumper(session.flavour, options)?.tool(),
        missing: missing(session, &database)?,
        notes: notes(session, &database)?,
        database,
    })
}

/// What a dump would lack, each with the grant that helps.
pub(super) fn missing(session: &mut Session, database: &str) -> Result<Vec<String>> {
    let grants = Grants::of(session)?;
    let here = format!("{}.*", name(&pattern(database)));
    let whom = session.grantee();
    let mut missing = Vec::new();
    let mut lacks = |right: &str, what: &str| {
        missing.push(format!("{what}: GRANT {right} ON {here} TO {whom}"));
    };
    if !grants.on(database, "SELECT") {
        lacks("SELECT", "tables that no right to read is given for are not seen");
    }
    let views = session.column(&format!(
        "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = {} AND TABLE_TYPE LIKE '%VIEW'",
        literal(database)
    ))?;
    if !views.is_empty() && !grants.on(database, "SHOW VIEW") {
        lacks("SHOW VIEW", "the definitions of views are not seen");
    }
    if !grants.on(database, "TRIGGER") {
        lacks("TRIGGER", "triggers are not seen");
    }
    if !grants.on(database, "EVENT") {
        lacks("EVENT", "events are not seen");
    }
    missing.extend(unseen_routines(session, &grants, database)?);
    Ok(missing)
}

/// Routines: their names are shown to whom may do anything with them, their bodies to fewer.
fn unseen_routines(session: &mut Session, grants: &Grants, database: &str) -> Result<Option<String>> {
    let (everything, right) = match session.flavour {
        Flavour::MariaDb => (
            grants.on_table("mysql", "proc", "SELECT")
                || (session.is_since(11, 3) && grants.on(database, "SHOW CREATE ROUTINE")),
            "SELECT ON `mysql`.`proc`",
        ),
        Flavour::MySql => (grants.global("SELECT") || grants.global("SHOW_ROUTINE"), "SHOW_ROUTINE ON *.*"),
    };
    if everything {
        return Ok(None);
    }
    let grant = format!("GRANT {right} TO {}", session.grantee());
    let names = ["EXECUTE", "ALTER ROUTINE", "CREATE ROUTINE"].iter().any(|right| grants.on(database, right));
    if !names {
        return Ok(Some(format!("stored procedures and functions are not seen: {grant}")));
    }
    let hidden = session.column(&format!(
        "SELECT ROUTINE_NAME FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = {} \
         AND ROUTINE_DEFINITION IS NULL ORDER BY ROUTINE_NAME",
        literal(database)
    ))?;
    Ok(hidden.first().map(|first| {
        format!(
            "the bodies of {} stored procedures and functions (`{first}` first) are not seen: {grant}",
            hidden.len()
        )
    }))
}

/// What a person should know.
pub(super) fn notes(session: &mut Session, database: &str) -> Result<Vec<String>> {
    let tables = session.column(&format!(
        "SELECT t.TABLE_NAME FROM information_schema.TABLES t JOIN information_schema.ENGINES e ON e.ENGINE = t.ENGINE \
         WHERE t.TABLE_SCHEMA = {} AND t.TABLE_TYPE = 'BASE TABLE' AND COALESCE(e.TRANSACTIONS, 'NO') <> 'YES' \
         ORDER BY t.TABLE_NAME",
        literal(database)
    ))?;
    let versioned = session.column(&format!(
        "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = {} AND TABLE_TYPE = 'SYSTEM VERSIONED' \
         ORDER BY TABLE_NAME",
        literal(database)
    ))?;
    let mut notes: Vec<String> = replica(session).into_iter().collect();
    if !tables.is_empty() {
        let what = "have no transactions and are dumped as they are at their turn";
        notes.push(format!("{} tables {what}: {}", tables.len(), some(&tables)));
    }
    if !versioned.is_empty() {
        let what = "keep earlier versions of their rows, of which the dump has only the present ones";
        notes.push(format!("{} tables {what}: {}", versioned.len(), some(&versioned)));
    }
    Ok(notes)
}

/// How far a replica is behind, where this user may see it.
fn replica(session: &mut Session) -> Option<String> {
    let statement = match session.flavour {
        Flavour::MariaDb => "SHOW ALL SLAVES STATUS",
        Flavour::MySql => "SHOW REPLICA STATUS",
    };
    let rows = session.try_named(statement).ok()?;
    let behind =
        rows.first()?.iter().find(|(name, _)| name.starts_with("Seconds_Behind_")).map(|(_, value)| value);
    Some(match behind {
        Some(seconds) if !seconds.is_empty() => format!("The server is a replica, {seconds} s behind"),
        _ => "The server is a replica and does not follow its primary now".to_owned(),
    })
}

/// The first of them.
fn some(tables: &[String]) -> String {
    let names: Vec<_> = tables.iter().take(20).map(|table| name(table)).collect();
    format!("{}{}", names.join(", "), if tables.len() > 20 { ", …" } else { "" })
}
