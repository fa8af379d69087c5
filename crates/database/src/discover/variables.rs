//! Variables of an environment, whether from a file or from a process.

use std::collections::BTreeMap;

use backstay_model::Secret;

use super::parts::Parts;
use super::{Found, azure, beneath};
use crate::connection::ConnectionType;
use crate::endpoint::Kind;

/// Values by name; none where a value is there and cannot be read.
pub(super) type Variables = BTreeMap<String, Option<String>>;

/// Ends of the names of variables that hold an address.
const ADDRESSES: [&str; 13] = [
    "DATABASE_URL",
    "DATABASE_URI",
    "DATABASE_DSN",
    "DB_URL",
    "DB_URI",
    "DB_DSN",
    "JAWSDB_URL",
    "JAWSDB_MARIA_URL",
    "POSTGRES_URL",
    "POSTGRESQL_URL",
    "PG_URL",
    "MYSQL_URL",
    "MARIADB_URL",
];
/// How the variables begin that .NET reads as `ConnectionStrings:NAME`.
const DOTNET: &str = "ConnectionStrings__";

/// Variables that are one database together.
struct Set {
    name: &'static str,
    /// Its kind; none where one of `kinds` says it.
    kind: Option<Kind>,
    kinds: &'static [&'static str],
    host: &'static [&'static str],
    port: &'static [&'static str],
    socket: &'static [&'static str],
    database: &'static [&'static str],
    user: &'static [&'static str],
    password: &'static [&'static str],
}

const SETS: [Set; 4] = [
    Set {
        name: "DB",
        kind: None,
        kinds: &["DB_CONNECTION", "DB_DRIVER", "DB_TYPE", "DB_ENGINE", "DB_CLIENT", "DB_DIALECT"],
        host: &["DB_HOST", "DB_HOSTNAME", "DB_SERVER"],
        port: &["DB_PORT"],
        socket: &["DB_SOCKET"],
        database: &["DB_DATABASE", "DB_NAME"],
        user: &["DB_USERNAME", "DB_USER"],
        password: &["DB_PASSWORD", "DB_PASS"],
    },
    Set {
        name: "PG",
        kind: Some(Kind::PostgreSql),
        kinds: &[],
        host: &["PGHOST"],
        port: &["PGPORT"],
        socket: &[],
        database: &["PGDATABASE"],
        user: &["PGUSER"],
        password: &["PGPASSWORD"],
    },
    Set {
        name: "POSTGRES",
        kind: Some(Kind::PostgreSql),
        kinds: &[],
        host: &["POSTGRES_HOST", "POSTGRES_SERVER"],
        port: &["POSTGRES_PORT"],
        socket: &[],
        database: &["POSTGRES_DB", "POSTGRES_DATABASE"],
        user: &["POSTGRES_USER"],
        password: &["POSTGRES_PASSWORD"],
    },
    Set {
        name: "MYSQL",
        kind: Some(Kind::MySql),
        kinds: &[],
        host: &["MYSQL_HOST"],
        port: &["MYSQL_PORT"],
        socket: &["MYSQL_SOCKET"],
        database: &["MYSQL_DATABASE", "MYSQL_DB"],
        user: &["MYSQL_USER", "MYSQL_USERNAME"],
        password: &["MYSQL_PASSWORD"],
    },
];

/// The kind of a driver's name.
pub(super) fn kind(driver: &str) -> Option<Kind> {
    let driver = driver.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| driver.contains(word));
    match () {
        () if has(&["pgsql", "postg", "npgsql"]) || driver == "pg" => Some(Kind::PostgreSql),
        () if has(&["mysql", "mariadb", "trilogy"]) => Some(Kind::MySql),
        () if has(&["sqlite"]) => Some(Kind::Sqlite),
        () if has(&["sqlsrv", "sqlserver", "sql_server", "mssql", "sqlclient"]) => Some(Kind::SqlServer),
        () => None,
    }
}

/// Looks at variables, of which only those that are `own` make something be found. Relative paths are meant from `folder`.
pub(super) fn look(
    all: &Variables,
    own: &dyn Fn(&str) -> bool,
    found_in: &str,
    folder: &str,
    found: &mut Found,
) {
    for (name, value) in all.iter().filter(|(name, _)| own(name)) {
        let upper = name.to_ascii_uppercase();
        let (shown, typed, otherwise) = match azure::split(name) {
            Some((typed, shown)) => (shown, Some(typed), None),
            None if is_dotnet(name) => {
                (name.get(DOTNET.len()..).unwrap_or_default(), None, Some(ConnectionType::SqlServer))
            }
            None if ADDRESSES.iter().any(|end| upper.ends_with(end)) => (name.as_str(), None, None),
            None => continue,
        };
        match value {
            Some(value) if value.trim().is_empty() => {}
            Some(value) => found.string(shown, value, typed, otherwise, found_in),
            None => found.unread(shown, found_in, "a part of it is filled in from elsewhere"),
        }
    }
    for set in &SETS {
        set.look(all, own, found_in, folder, found);
    }
}

fn is_dotnet(name: &str) -> bool {
    name.get(..DOTNET.len()).is_some_and(|head| head.eq_ignore_ascii_case(DOTNET))
        && name.len() > DOTNET.len()
}

/// The value of the first variable that is there and not empty.
fn first(all: &Variables, names: &[&str]) -> Result<Option<String>, String> {
    for name in names {
        match all.get(*name) {
            Some(Some(value)) if !value.is_empty() => return Ok(Some(value.clone())),
            Some(None) => return Err(format!("`{name}` is filled in from elsewhere")),
            _ => {}
        }
    }
    Ok(None)
}

impl Set {
    fn look(
        &self,
        all: &Variables,
        own: &dyn Fn(&str) -> bool,
        found_in: &str,
        folder: &str,
        found: &mut Found,
    ) {
        let some = [self.kinds, self.host, self.database].concat();
        if !some.iter().any(|name| own(name) && all.contains_key(*name)) {
            return;
        }
        match self.read(all, folder) {
            Ok(Some((kind, parts))) => parts.put(self.name, kind, found_in, found),
            Ok(None) => {}
            Err(why) => found.unread(self.name, found_in, why),
        }
    }

    fn read(&self, all: &Variables, folder: &str) -> Result<Option<(Kind, Parts)>, String> {
        let port = match first(all, self.port)? {
            None => None,
            Some(port) => match port.trim().parse::<u16>() {
                Ok(port) if port > 0 => Some(port),
                _ => return Err("its port is no number from 1 to 65535".to_owned()),
            },
        };
        let driver = first(all, self.kinds)?;
        let host = first(all, self.host)?;
        let database = first(all, self.database)?;
        if host.is_none() && driver.is_none() && self.kind.is_none() {
            return Ok(None);
        }
        let by_port = match port {
            Some(5432) => Some(Kind::PostgreSql),
            Some(3306) => Some(Kind::MySql),
            Some(1433) => Some(Kind::SqlServer),
            _ => None,
        };
        let named = match driver {
            Some(driver) => match kind(&driver) {
                None => return Err("its kind of database is none that can be linked".to_owned()),
                named => named,
            },
            None => None,
        };
        let Some(kind) = self.kind.or(named).or(by_port) else {
            return Err("nothing tells its kind of database".to_owned());
        };
        if kind == Kind::Sqlite {
            // Where Laravel puts it unless told otherwise.
            let path = database.unwrap_or_else(|| "database/database.sqlite".to_owned());
            let path = beneath(folder, &path).ok_or("its path leads out of the app's home")?;
            return Ok(Some((kind, Parts { database: Some(path), ..Parts::default() })));
        }
        // Containers of database servers are set up by the same names, without a host.
        let Some(database) = database.filter(|_| host.is_some() || self.name == "DB") else {
            return Ok(None);
        };
        let socket = first(all, self.socket)?.or_else(|| host.clone().filter(|host| host.starts_with('/')));
        let parts = Parts {
            host,
            port,
            socket,
            database: Some(database),
            user: first(all, self.user)?,
            password: first(all, self.password)?.map(Secret::new),
            ..Parts::default()
        };
        Ok(Some((kind, parts)))
    }
}
