//! What a database holds, asked of its catalogs: tables and their content, structure, rights.
//!
//! Invariants: nothing here depends on object ids, on the order of rows or columns, or on the name of the database, so a
//! restored database gives the same answers. What belongs to an extension is the extension's, not the database's.

use std::collections::BTreeMap;

use backstay_model::Result;

use super::archive;
use super::connect::{Session, column, literal, quoted};
use crate::adapter::{Hashes, TableRecord};

/// The name under which the large objects are recorded.
pub(super) const LARGE_OBJECTS: &str = "large objects";

/// Schemas that are the system's (of the alias `n`), and objects that are an extension's.
pub(super) const OURS: &str = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";

/// A table with rows of its own.
pub(super) struct Table {
    oid: u32,
    schema: String,
    name: String,
}

impl Table {
    /// Its name in a record.
    pub(super) fn full(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// Its name in a statement.
    pub(super) fn quoted(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }
}

/// The tables that have rows of their own and that a dump holds: not those of extensions, but the ones whose rows an
/// extension says are the user's.
pub(super) fn tables(session: &mut Session) -> Result<Vec<Table>> {
    let sql = format!(
        "SELECT c.oid, n.nspname::text, c.relname::text
           FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND {OURS} AND {}
          ORDER BY 2, 3",
        unowned("pg_class", "c.oid")
    );
    let rows = session.rows(&sql, &[])?;
    rows.iter()
        .map(|row| Ok(Table { oid: column(row, 0)?, schema: column(row, 1)?, name: column(row, 2)? }))
        .collect()
}

/// The condition that an object is no extension's.
pub(super) fn unowned(catalog: &str, oid: &str) -> String {
    format!(
        "NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.{catalog}'::regclass \
         AND d.objid = {oid} AND d.deptype = 'e')"
    )
}

/// Bytes that a dump may have, about. Tables that somebody has locked are left out: their sizes would be waited for.
pub(super) fn estimate(session: &mut Session) -> Result<u64> {
    let sql = "SELECT coalesce(sum(pg_catalog.pg_table_size(c.oid)), 0)::bigint
                 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                WHERE c.relkind IN ('r', 'm') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
                      AND NOT EXISTS (SELECT FROM pg_catalog.pg_locks l WHERE l.relation = c.oid AND l.granted
                                      AND l.mode = 'AccessExclusiveLock')";
    let tables: i64 = session.one(sql, &[])?;
    Ok(u64::try_from(tables).unwrap_or_default())
}

/// Counts the rows of the tables, and hashes those that have a hash in `record` as the dump's reader does
/// ([`archive`](super::archive)). `more` is asked before each.
pub(super) fn content(
    session: &mut Session,
    tables: &[Table],
    record: &[TableRecord],
    more: &dyn Fn() -> Result<()>,
) -> Result<Vec<TableRecord>> {
    let hashed = |name: &str| record.iter().find(|r| r.name == name).and_then(|r| r.hash.as_ref());
    let mut records = Vec::with_capacity(tables.len() + 1);
    for table in tables {
        more()?;
        let name = table.full();
        records.push(match hashed(&name).is_some() {
            true => copied(session, table)?,
            false => {
                let sql = format!("SELECT count(*) FROM ONLY {}", table.quoted());
                TableRecord { name, rows: session.one::<i64>(&sql, &[])?.unsigned_abs(), hash: None }
            }
        });
    }
    more()?;
    let hashed = if hashed(LARGE_OBJECTS).is_some() { Hashes::All } else { Hashes::None };
    records.extend(large_objects(session, hashed)?);
    Ok(records)
}

/// Hashes the lines that `COPY` gives, its columns in the order of their names.
fn copied(session: &mut Session, table: &Table) -> Result<TableRecord> {
    let columns: Vec<String> = session.column(
        "SELECT attname::text FROM pg_catalog.pg_attribute
          WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attname COLLATE \"C\"",
        &[&table.oid],
    )?;
    let columns: Vec<String> = columns.iter().map(|name| quoted(name)).collect();
    let columns = if columns.is_empty() { String::new() } else { format!(" ({})", columns.join(", ")) };
    let encoding: String = session.one("SELECT pg_catalog.getdatabaseencoding()::text", &[])?;
    let sql = format!("COPY {}{columns} TO STDOUT WITH (ENCODING {})", table.quoted(), literal(&encoding));
    let mut lines = archive::Table::sorted(table.full());
    session.copy_out(&sql, |bytes| lines.lines(bytes))?;
    Ok(lines.record())
}

/// The sum of a 64-bit hash of each row does not depend on their order.
fn sum_of(text: &str) -> String {
    format!(
        "coalesce(sum(('x' || pg_catalog.substr(pg_catalog.md5({text}), 1, 16))::bit(64)::bigint), 0)::text"
    )
}

/// The settings by which values are written that `pg_dump` does not set itself, as a new session of this user here has them,
/// and the encoding.
pub(super) fn settings(session: &mut Session) -> Result<BTreeMap<String, String>> {
    let rows = session.rows(
        "SELECT name::text, reset_val::text FROM pg_catalog.pg_settings WHERE name = ANY ($1)
          UNION ALL SELECT 'encoding', pg_catalog.getdatabaseencoding()::text",
        &[&SETTINGS.as_slice()],
    )?;
    rows.iter().map(|row| Ok((column(row, 0)?, column(row, 1)?))).collect()
}

/// Has this session write values as those of [`settings`]; false where this server cannot.
pub(super) fn write_as(session: &mut Session, settings: &BTreeMap<String, String>) -> Result<bool> {
    for (name, value) in settings {
        let done = match SETTINGS.contains(&name.as_str()) {
            true => session.run(&format!("SET {} = {}", quoted(name), literal(value))).map(|()| true),
            false => session
                .one::<String>("SELECT pg_catalog.getdatabaseencoding()::text", &[])
                .map(|e| e == *value),
        };
        match done {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(e) if e.code() == backstay_model::Code::DatabaseFailed => return Ok(false),
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}

const SETTINGS: [&str; 3] = ["TimeZone", "bytea_output", "lc_monetary"];

/// So many large objects are few enough to be hashed where only what is affordable is: not everybody may see their sizes.
const FEW: i64 = 1000;

/// The large objects, if there are any.
pub(super) fn large_objects(session: &mut Session, hashes: Hashes) -> Result<Option<TableRecord>> {
    let rows: i64 = session.one("SELECT count(*) FROM pg_catalog.pg_largeobject_metadata", &[])?;
    if rows == 0 {
        return Ok(None);
    }
    let hashed = match hashes {
        Hashes::None => false,
        Hashes::Affordable => rows <= FEW,
        Hashes::All => true,
    };
    let hash = match hashed {
        true => {
            let one = "oid::text || ' ' || pg_catalog.md5(pg_catalog.lo_get(oid))";
            let sql = format!("SELECT {} FROM pg_catalog.pg_largeobject_metadata", sum_of(one));
            Some(session.one(&sql, &[])?)
        }
        false => None,
    };
    Ok(Some(TableRecord { name: LARGE_OBJECTS.to_owned(), rows: rows.unsigned_abs(), hash }))
}

/// What this user does not see and a dump would lack, each with the grant that would show it.
pub(super) fn missing(session: &mut Session) -> Result<Vec<String>> {
    let user: String = session.one("SELECT current_user::text", &[])?;
    let user = quoted(&user);
    let mut missing = Vec::new();
    let hidden = "has_schema_privilege(n.oid, 'USAGE')";
    let sql = format!(
        "SELECT n.nspname::text FROM pg_catalog.pg_namespace n WHERE {OURS} AND NOT {hidden} ORDER BY 1"
    );
    for schema in session.column::<String>(&sql, &[])? {
        missing.push(format!("schema {schema}: GRANT USAGE ON SCHEMA {} TO {user}", quoted(&schema)));
    }
    // With `row_security = off` the server does not say from whom rows are hidden: the owner sees all unless that is forced.
    let policies = "c.relkind = 'r' AND c.relrowsecurity AND (c.relforcerowsecurity OR NOT pg_has_role(c.relowner, 'USAGE'))
         AND NOT (SELECT r.rolsuper OR r.rolbypassrls FROM pg_catalog.pg_roles r WHERE r.rolname = current_user)";
    let sql = format!(
        "SELECT c.relkind = 'S', n.nspname::text, c.relname::text, has_table_privilege(c.oid, 'SELECT')
           FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind IN ('r', 'p', 'S') AND c.relpersistence <> 't' AND {OURS} AND {}
                AND (NOT has_table_privilege(c.oid, 'SELECT') OR {policies})
          ORDER BY 2, 3",
        unowned("pg_class", "c.oid")
    );
    for row in session.rows(&sql, &[])? {
        let (sequence, schema, name): (bool, String, String) =
            (column(&row, 0)?, column(&row, 1)?, column(&row, 2)?);
        let object = format!("{}.{}", quoted(&schema), quoted(&name));
        missing.push(match (column::<bool>(&row, 3)?, sequence) {
            (false, true) => format!("sequence {schema}.{name}: GRANT SELECT ON SEQUENCE {object} TO {user}"),
            (false, false) => format!("table {schema}.{name}: GRANT SELECT ON TABLE {object} TO {user}"),
            (true, _) => {
                format!("rows of {schema}.{name} that its policies hide: ALTER ROLE {user} BYPASSRLS")
            }
        });
    }
    missing.extend(hidden_large_objects(session, &user)?);
    Ok(missing)
}

fn hidden_large_objects(session: &mut Session, user: &str) -> Result<Option<String>> {
    let sql = "SELECT oid::text FROM pg_catalog.pg_largeobject_metadata m
                WHERE NOT (SELECT r.rolsuper FROM pg_catalog.pg_roles r WHERE r.rolname = current_user)
                  AND NOT EXISTS (SELECT FROM pg_catalog.aclexplode(coalesce(m.lomacl, pg_catalog.acldefault('L', m.lomowner))) a
                       WHERE a.privilege_type = 'SELECT' AND (a.grantee = 0 OR pg_has_role(a.grantee, 'USAGE')))
                ORDER BY m.oid";
    let hidden: Vec<String> = session.column(sql, &[])?;
    let Some(first) = hidden.first() else { return Ok(None) };
    Ok(Some(format!("{} large objects: GRANT SELECT ON LARGE OBJECT {first}, … TO {user}", hidden.len())))
}

/// What hinders no dump and a person should know.
pub(super) fn notes(session: &mut Session) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let superuser: bool =
        session.one("SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user", &[])?;
    let foreign: i64 = session.one("SELECT count(*) FROM pg_catalog.pg_class WHERE relkind = 'f'", &[])?;
    if foreign > 0 {
        notes.push(format!("The rows of {foreign} foreign tables are elsewhere and not in the dump"));
    }
    let mine = "SELECT count(*) FROM pg_catalog.pg_stat_subscription";
    if !superuser && session.one::<i64>(mine, &[])? > 0 {
        notes.push("Subscriptions are in the dump of a superuser only".to_owned());
    }
    notes.extend(standby(session)?);
    let untrusted = "SELECT e.extname::text FROM pg_catalog.pg_extension e
         JOIN pg_catalog.pg_available_extension_versions v ON v.name = e.extname AND v.version = e.extversion
        WHERE v.superuser AND NOT v.trusted ORDER BY 1";
    if session.version >= 130_000 {
        let names: Vec<String> = session.column(untrusted, &[])?;
        if !names.is_empty() {
            notes.push(format!("A restore takes a superuser, for the extension {}", names.join(", ")));
        }
    }
    Ok(notes)
}

/// How far a standby is behind.
fn standby(session: &mut Session) -> Result<Option<String>> {
    if !session.one::<bool>("SELECT pg_catalog.pg_is_in_recovery()", &[])? {
        return Ok(None);
    }
    let last: Option<String> =
        session.one("SELECT date_trunc('second', pg_catalog.pg_last_xact_replay_timestamp())::text", &[])?;
    let follows = match session.one::<bool>("SELECT pg_catalog.pg_is_wal_replay_paused()", &[])? {
        true => ", and following is paused",
        false if session.one("SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_wal_receiver)", &[])? => "",
        false => ", and is not connected to its primary now",
    };
    let last = last.map_or("has seen no change since it was started".to_owned(), |last| {
        format!("has what was committed until {last}")
    });
    Ok(Some(format!("The server is a standby: it {last}{follows}")))
}

/// The roles that own something, or to whom something is granted.
pub(super) fn roles(session: &mut Session) -> Result<Vec<String>> {
    // The server notes who is needed by what, but for the one it was made with: that one is looked for among the owners.
    let owned = |catalog: &str, owner: &str, of: &str| {
        let ours = unowned(catalog, "o.oid");
        format!("SELECT o.{owner} FROM pg_catalog.{catalog} o WHERE o.oid >= 16384 AND {of} AND {ours}")
    };
    let sql = format!(
        "SELECT r.rolname::text FROM (
             SELECT s.refobjid FROM pg_catalog.pg_shdepend s JOIN pg_catalog.pg_database d ON d.oid = s.dbid
              WHERE d.datname = pg_catalog.current_database() AND s.refclassid = 'pg_catalog.pg_authid'::regclass
             UNION {} UNION {} UNION {} UNION {}) x (role)
           JOIN pg_catalog.pg_roles r ON r.oid = x.role WHERE r.rolname !~ '^pg_' ORDER BY r.rolname COLLATE \"C\"",
        owned("pg_class", "relowner", "o.relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c')"),
        owned("pg_proc", "proowner", "true"),
        // An array goes with its element, and whatever is a table's with the table.
        owned("pg_type", "typowner", "o.typcategory <> 'A' AND o.typrelid = 0"),
        owned("pg_namespace", "nspowner", "true"),
    );
    session.column(&sql, &[])
}
