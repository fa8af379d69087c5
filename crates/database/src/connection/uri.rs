//! The form of addresses: `postgres://user:password@host:port/database?sslmode=require`, with the prefixes that
//! frameworks give them (`jdbc:`, `mysql+pymysql://`, `sqlite:file`).

use std::path::PathBuf;

use backstay_model::{Result, Secret};
use percent_encoding::percent_decode_str;

use super::fields::Fields;
use super::{bad, host_and_port};
use crate::endpoint::{Endpoint, Host, Kind, Place};

/// Schemes and what they mean. What stands behind a `+` (the driver) does not count.
const SCHEMES: [(&str, Kind); 13] = [
    ("postgres", Kind::PostgreSql),
    ("postgresql", Kind::PostgreSql),
    ("postgis", Kind::PostgreSql),
    ("pgsql", Kind::PostgreSql),
    ("mysql", Kind::MySql),
    ("mysql2", Kind::MySql),
    ("mysqli", Kind::MySql),
    ("mariadb", Kind::MySql),
    ("sqlite", Kind::Sqlite),
    ("sqlite3", Kind::Sqlite),
    ("file", Kind::Sqlite),
    ("sqlserver", Kind::SqlServer),
    ("mssql", Kind::SqlServer),
];

/// The kind that an address names, and what stands behind the `:` of its scheme.
pub(super) fn scheme(text: &str) -> Option<(Kind, &str)> {
    let text = match text.get(..5) {
        Some(jdbc) if jdbc.eq_ignore_ascii_case("jdbc:") => text.get(5..)?,
        _ => text,
    };
    let (scheme, rest) = text.split_once(':')?;
    let base = scheme.split_once('+').map_or(scheme, |(base, _driver)| base);
    let (_, kind) = SCHEMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(base))?;
    (*kind == Kind::Sqlite || rest.starts_with("//")).then_some((*kind, rest))
}

/// Reads what stands behind the scheme.
pub(super) fn parse(kind: Kind, rest: &str) -> Result<Endpoint> {
    if kind == Kind::Sqlite {
        return file(rest);
    }
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    // JDBC for SQL Server has its options behind `;`.
    let (rest, options) = match kind {
        Kind::SqlServer if rest.contains(';') => {
            let (rest, options) = rest.split_once(';').unwrap_or((rest, ""));
            (rest, super::ado::pairs(options)?)
        }
        _ => match rest.split_once('?') {
            Some((rest, query)) => (rest, query_pairs(query)?),
            None => (rest, Vec::new()),
        },
    };
    let rest = rest.split_once('#').map_or(rest, |(rest, _fragment)| rest);
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (account, hosts) = match authority.rsplit_once('@') {
        Some((account, hosts)) => (Some(account), hosts),
        None => (None, authority),
    };
    let mut fields = Fields::from(options);
    if let Some(account) = account {
        let (user, password) = account.split_once(':').map_or((account, None), |(u, p)| (u, Some(p)));
        fields.user = Some(decode(user)?).filter(|u| !u.is_empty()).or(fields.user);
        fields.password = password.map(decode).transpose()?.map(Secret::new).or(fields.password.take());
    }
    if !path.is_empty() {
        fields.database = Some(decode(path)?);
    }
    if !hosts.is_empty() {
        fields.hosts = hosts.split(',').map(|host| self::host(host, kind)).collect::<Result<_>>()?;
    }
    fields.endpoint(Some(kind))
}

fn host(text: &str, kind: Kind) -> Result<Host> {
    let text = decode(text)?;
    // A socket may stand in the place of the host: `postgres://%2Fvar%2Frun%2Fpostgresql/app`.
    if text.starts_with('/') {
        return Ok(Host { name: text, port: kind.port() });
    }
    let (name, port) = host_and_port(&text, kind.port())?;
    Ok(Host { name, port })
}

/// `//relative`, `///absolute`, `relative`, each with a query that does not matter.
fn file(rest: &str) -> Result<Endpoint> {
    let (path, _query) = rest.split_once('?').unwrap_or((rest, ""));
    // `sqlite:///absolute` has an empty host; the driver of Python means a relative path by it and writes
    // `////absolute`. Both agree when the folder is that of the app.
    let path = match path.strip_prefix("//") {
        Some(path) if path.starts_with("//") => path.get(1..).unwrap_or_default(),
        Some(path) => path,
        None => path,
    };
    let path = decode(path)?;
    if path.is_empty() || path == ":memory:" || path == "/:memory:" {
        return Err(bad("it names a database in memory"));
    }
    Ok(Fields::at(Place::File(PathBuf::from(path))).plain(Kind::Sqlite))
}

fn query_pairs(query: &str) -> Result<Vec<(String, String)>> {
    query
        .split(['&', ';'])
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            Ok((decode(key)?.to_lowercase(), decode(&value.replace('+', "%20"))?))
        })
        .collect()
}

fn decode(text: &str) -> Result<String> {
    let text = percent_decode_str(text).decode_utf8().map_err(|_not| bad("a part of it is not UTF-8"))?;
    match text.contains('\0') {
        true => Err(bad("a part of it holds a NUL")),
        false => Ok(text.into_owned()),
    }
}
