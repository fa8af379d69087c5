//! A dump becomes a new database beside the one in use.
//!
//! Invariants: the new database is made from `template0` with the encoding and the locale of the one in use; everything is
//! restored in one transaction. It is compared with the record (rows, hashes, structure) before anybody hears that it is
//! there, and dropped when anything fails. What the database in use has outside its content (owner, grants, settings,
//! comment, limit of connections) it has too: an exchange is then nothing but renames.

use std::io::{self, Read, Write as _};

use backstay_model::{Code, Error, Result};

use super::connect::{Session, check, column, literal, quoted};
use super::exchange::{There, beside, drop_database, restore_tool};
use super::{Postgres, archive, catalog, structure, tools};
use crate::adapter::{DumpRecord, Exchange, TableRecord};

/// Read of a dump at a time.
const BLOCK: usize = 256 << 10;

/// Fills the staged database and compares it.
pub(super) fn stage(
    postgres: &Postgres,
    dump: &mut dyn Read,
    record: &DumpRecord,
    exchange: &Exchange,
) -> Result<Vec<String>> {
    if record.format != super::dump::FORMAT {
        let message = format!("A dump of the form `{}` cannot be restored into PostgreSQL", record.format);
        return Err(Error::new(Code::DatabaseDumpUnusable, message));
    }
    let mut session = beside(postgres, exchange)?;
    let there = There::look(&mut session, exchange)?;
    if there.staged {
        let message = format!("There is a database {} already", exchange.staged);
        return Err(Error::new(Code::AlreadyExists, message)
            .advise("It is of a restore before; remove it, or take that up."));
    }
    let mut words = Vec::new();
    create(&mut session, exchange, there.live, &mut words)?;
    let filled = fill(postgres, &session, dump, record, exchange, &mut words)
        .and_then(|()| compare(postgres, record, exchange, &mut words))
        .and_then(|()| carry_over(&mut session, exchange, there.live, &mut words));
    match filled {
        Ok(()) => Ok(words),
        Err(error) => Err(clear_away(postgres, exchange, error)),
    }
}

/// Drops what was staged, whether the work was cancelled or not.
fn clear_away(postgres: &Postgres, exchange: &Exchange, error: Error) -> Error {
    let mut options = postgres.options.clone();
    options.cancel = backstay_model::Cancel::new();
    let uncancelled =
        Postgres { endpoint: postgres.endpoint.clone(), options, name: postgres.name.clone(), dumper: None };
    match drop_database(&uncancelled, exchange, &exchange.staged) {
        Ok(()) => error,
        Err(e) => error.context(format!("The database {} is left behind ({e})", exchange.staged)),
    }
}

/// Makes the new database as the one in use is, else as the server makes them.
fn create(session: &mut Session, exchange: &Exchange, live: bool, words: &mut Vec<String>) -> Result<()> {
    let new = quoted(&exchange.staged);
    if !live {
        return session.run(&format!("CREATE DATABASE {new} TEMPLATE template0"));
    }
    let (icu, provider) = match session.version {
        170_000.. => ("d.datlocale", "d.datlocprovider::text"),
        150_000.. => ("d.daticulocale", "d.datlocprovider::text"),
        _ => ("NULL::text", "'c'"),
    };
    let sql = format!(
        "SELECT pg_catalog.pg_encoding_to_char(d.encoding)::text, d.datcollate::text, d.datctype::text, {icu}, {provider},
                CASE WHEN t.spcname <> 'pg_default' THEN t.spcname::text END, o.rolname::text, pg_has_role(d.datdba, 'MEMBER')
           FROM pg_catalog.pg_database d JOIN pg_catalog.pg_tablespace t ON t.oid = d.dattablespace
                LEFT JOIN pg_catalog.pg_roles o ON o.oid = d.datdba
          WHERE d.datname::text = $1"
    );
    let rows = session.rows(&sql, &[&exchange.live])?;
    let row = rows.first().ok_or_else(|| {
        Error::new(Code::DatabaseInterrupted, format!("The database {} went away meanwhile", exchange.live))
    })?;
    let text = |index| column::<Option<String>>(row, index);
    let mut made = format!("CREATE DATABASE {new} TEMPLATE template0");
    let mut add = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            made.push_str(&format!(" {key} {}", literal(&value)));
        }
    };
    add("ENCODING", text(0)?);
    add("LC_COLLATE", text(1)?);
    add("LC_CTYPE", text(2)?);
    match text(4)?.as_deref() {
        Some("i") => {
            add("LOCALE_PROVIDER", Some("icu".to_owned()));
            add("ICU_LOCALE", text(3)?);
        }
        Some("b") => {
            add("LOCALE_PROVIDER", Some("builtin".to_owned()));
            add("BUILTIN_LOCALE", text(3)?);
        }
        _ => {}
    }
    if let (Some(owner), true) = (text(6)?, column::<bool>(row, 7)?) {
        made.push_str(&format!(" OWNER {}", quoted(&owner)));
    }
    let Some(tablespace) = text(5)? else { return session.run(&made) };
    match session.run(&format!("{made} TABLESPACE {}", quoted(&tablespace))) {
        Err(e) if e.code() == Code::DatabasePrivileges => {
            words.push(format!(
                "The new database lies in the default tablespace: this user may not use {tablespace}"
            ));
            session.run(&made)
        }
        other => other,
    }
}

/// Restores the dump into the new database.
fn fill(
    postgres: &Postgres,
    session: &Session,
    dump: &mut dyn Read,
    record: &DumpRecord,
    exchange: &Exchange,
    words: &mut Vec<String>,
) -> Result<()> {
    let options = &postgres.options;
    let tool = restore_tool(session, record, options)?;
    let mut new = Session::open(&postgres.endpoint, options, Some(&exchange.staged))?;
    let mut program = tools::program(&tool, &postgres.endpoint, &new, Some(&exchange.staged), options)?;
    program.args(["--exit-on-error", "--single-transaction"]);
    program.args(owners(&mut new, record, words)?);
    let mut input = program.input(&tools::limits(options), tools::explain())?;
    let mut block = vec![0; BLOCK];
    loop {
        check(&options.cancel)?;
        let read = match dump.read(&mut block) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(source(e)),
        };
        input.write_all(block.get(..read).unwrap_or_default()).map_err(unwanted)?;
    }
    input.finish()?;
    new.run("ANALYZE")
}

/// The error of whoever gives the dump.
fn source(error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => Error::new(Code::DatabaseDumpUnusable, "The dump cannot be read").because(error),
    }
}

/// The error of a tool that does not take what it is fed: it has ended, well or not, before the dump had.
fn unwanted(error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(_) => Error::new(Code::DatabaseDumpUnusable, "Something follows behind the end of the dump"),
    }
}

/// Whether owners and grants are restored: where their roles exist, and we may give things to them.
fn owners(session: &mut Session, record: &DumpRecord, words: &mut Vec<String>) -> Result<Vec<String>> {
    let known: Vec<String> = session.column(
        "SELECT rolname::text FROM pg_catalog.pg_roles WHERE rolname::text = ANY ($1)",
        &[&record.roles],
    )?;
    let gone: Vec<&str> =
        record.roles.iter().filter(|role| !known.contains(role)).map(String::as_str).collect();
    let foreign: Vec<String> = session.column(
        "SELECT rolname::text FROM pg_catalog.pg_roles WHERE rolname::text = ANY ($1) AND NOT pg_has_role(oid, 'MEMBER')",
        &[&record.roles],
    )?;
    let mut arguments = Vec::new();
    if !gone.is_empty() {
        arguments.push("--no-privileges".to_owned());
        words.push(format!("Grants are not restored: the server has no role {}", gone.join(", ")));
    }
    if gone.is_empty() && foreign.is_empty() {
        return Ok(arguments);
    }
    arguments.push("--no-owner".to_owned());
    let why = if gone.is_empty() {
        format!("this user may not give anything to {}", foreign.join(", "))
    } else {
        "see above".to_owned()
    };
    // Who owns the database is who the app most likely is.
    let owner: String = session.one(
        "SELECT pg_catalog.pg_get_userbyid(datdba)::text FROM pg_catalog.pg_database WHERE datname = current_database()",
        &[],
    )?;
    words.push(format!("Owners are not restored ({why}): everything is {owner}'s"));
    arguments.push(format!("--role={owner}"));
    Ok(arguments)
}

/// Compares the new database with the record.
fn compare(
    postgres: &Postgres,
    record: &DumpRecord,
    exchange: &Exchange,
    words: &mut Vec<String>,
) -> Result<()> {
    let mut session = Session::open(&postgres.endpoint, &postgres.options, Some(&exchange.staged))?;
    let tables = catalog::tables(&mut session)?;
    let mut wanted = record.tables.clone();
    // Hashes of another kind, as earlier versions made them, or of values that this server writes otherwise.
    let comparable = catalog::write_as(&mut session, &record.settings)?;
    if !comparable {
        words.push(
            "Rows were counted and not compared: this server does not write values as the dump's did"
                .to_owned(),
        );
    }
    for table in &mut wanted {
        table.hash = table.hash.take().filter(|hash| {
            table.name == catalog::LARGE_OBJECTS || comparable && hash.starts_with(archive::MARK)
        });
    }
    session.run("BEGIN READ ONLY")?;
    let found = catalog::content(&mut session, &tables, &wanted, &|| check(&postgres.options.cancel))?;
    session.run("COMMIT")?;
    if let Some(difference) = difference(&wanted, &found) {
        let message = format!("What was restored is not what was dumped: {difference}");
        return Err(Error::new(Code::DatabaseMismatch, message));
    }
    // Another version writes the same structure in other words.
    if record.server.split('.').next() != postgres.version(&mut session)?.split('.').next() {
        words.push(format!("The structure was not compared, since the dump is of {}", record.server));
    } else if structure::schema_hash(&mut session)? != record.schema_hash {
        let message = "What was restored is not what was dumped: the structure is another";
        return Err(Error::new(Code::DatabaseMismatch, message));
    }
    Ok(())
}

fn difference(wanted: &[TableRecord], found: &[TableRecord]) -> Option<String> {
    for table in wanted {
        let Some(other) = found.iter().find(|other| other.name == table.name) else {
            return Some(format!("{} is not there", table.name));
        };
        if other.rows != table.rows {
            return Some(format!("{} has {} rows, not {}", table.name, other.rows, table.rows));
        }
        if table.hash.is_some() && other.hash != table.hash {
            return Some(format!("the rows of {} are others", table.name));
        }
    }
    let more = found.iter().find(|other| !wanted.iter().any(|table| table.name == other.name))?;
    Some(format!("{} is there, and was not", more.name))
}

/// Gives the new database what the one in use has outside its content.
fn carry_over(session: &mut Session, exchange: &Exchange, live: bool, words: &mut Vec<String>) -> Result<()> {
    if !live {
        return Ok(());
    }
    let mut statements = grants(session, exchange)?;
    statements.extend(settings(session, exchange)?);
    let new = quoted(&exchange.staged);
    let rows = session.rows(
        "SELECT datconnlimit, pg_catalog.shobj_description(oid, 'pg_database') FROM pg_catalog.pg_database WHERE datname::text = $1",
        &[&exchange.live],
    )?;
    if let Some(row) = rows.first() {
        let limit: i32 = column(row, 0)?;
        statements.push(format!("ALTER DATABASE {new} CONNECTION LIMIT {limit}"));
        if let Some(comment) = column::<Option<String>>(row, 1)? {
            statements.push(format!("COMMENT ON DATABASE {new} IS {}", literal(&comment)));
        }
    }
    for statement in statements {
        match session.run(&statement) {
            Ok(()) => {}
            Err(e) if e.code() == Code::DatabasePrivileges => {
                words.push(format!("This user may not carry over: {statement}"));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The grants on the database; none where nobody has changed them.
fn grants(session: &mut Session, exchange: &Exchange) -> Result<Vec<String>> {
    let new = quoted(&exchange.staged);
    let sql = "SELECT a.privilege_type, a.is_grantable, CASE WHEN a.grantee <> 0 THEN pg_catalog.pg_get_userbyid(a.grantee)::text END
                 FROM pg_catalog.pg_database d, pg_catalog.aclexplode(d.datacl) a WHERE d.datname::text = $1";
    let rows = session.rows(sql, &[&exchange.live])?;
    let mut statements = Vec::new();
    for row in &rows {
        let (privilege, again): (String, bool) = (column(row, 0)?, column(row, 1)?);
        let to = column::<Option<String>>(row, 2)?.map_or("PUBLIC".to_owned(), |role| quoted(&role));
        let option = if again { " WITH GRANT OPTION" } else { "" };
        statements.push(format!("GRANT {privilege} ON DATABASE {new} TO {to}{option}"));
    }
    if !statements.is_empty() {
        statements.insert(0, format!("REVOKE ALL ON DATABASE {new} FROM PUBLIC"));
    }
    Ok(statements)
}

/// The settings of the database, and of roles in it.
fn settings(session: &mut Session, exchange: &Exchange) -> Result<Vec<String>> {
    // Of some settings the value is a list that is quoted already.
    let sql = "SELECT pg_catalog.pg_get_userbyid(nullif(s.setrole, 0))::text, pg_catalog.split_part(c.line, '=', 1),
                      pg_catalog.substr(c.line, pg_catalog.strpos(c.line, '=') + 1)
                 FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase,
                      pg_catalog.unnest(s.setconfig) c(line) WHERE d.datname::text = $1";
    let rows = session.rows(sql, &[&exchange.live])?;
    let new = quoted(&exchange.staged);
    rows.iter()
        .map(|row| {
            let (name, value): (String, String) = (column(row, 1)?, column(row, 2)?);
            let value = match LISTS.contains(&name.to_lowercase().as_str()) && !value.is_empty() {
                true => value,
                false => literal(&value),
            };
            let set = format!("SET {} TO {value}", setting(&name));
            Ok(match column::<Option<String>>(row, 0)? {
                Some(role) => format!("ALTER ROLE {} IN DATABASE {new} {set}", quoted(&role)),
                None => format!("ALTER DATABASE {new} {set}"),
            })
        })
        .collect()
}

/// The settings whose values are lists of names.
const LISTS: [&str; 8] = [
    "search_path",
    "local_preload_libraries",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
    "synchronous_standby_names",
    "listen_addresses",
];

/// The name of a setting: `plpgsql.check_asserts` has two parts.
fn setting(name: &str) -> String {
    name.split('.').map(quoted).collect::<Vec<_>>().join(".")
}
