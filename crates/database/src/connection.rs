//! Connection strings of every usual form: ADO.NET (`Server=…;Database=…`), addresses (`postgres://…`, `jdbc:…`) and
//! libpq's own (`host=… dbname=…`).
//!
//! Invariants: no text makes the parser panic. No error repeats any part of the text but the names of keys that are
//! known: what cannot be understood may be a password. The sources of the grammars: Microsoft's `DbConnectionStringBuilder`,
//! RFC 3986, libpq §34.1.1.

mod ado;
mod fields;
mod keywords;
mod uri;

use std::fmt;
use std::str::FromStr;

use backstay_model::{Code, Error, Result};
use serde::{Deserialize, Serialize};

use crate::endpoint::{Endpoint, Kind};
use fields::Fields;

/// The types that connection strings have in the settings of an app.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub enum ConnectionType {
    SqlAzure,
    SqlServer,
    MySql,
    PostgreSql,
    /// Anything; what it is is read off the string.
    Custom,
}

impl ConnectionType {
    /// All of them.
    pub const ALL: [ConnectionType; 5] = [
        ConnectionType::SqlAzure,
        ConnectionType::SqlServer,
        ConnectionType::MySql,
        ConnectionType::PostgreSql,
        ConnectionType::Custom,
    ];

    /// As the seeds spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ConnectionType::SqlAzure => "SQLAzure",
            ConnectionType::SqlServer => "SQLServer",
            ConnectionType::MySql => "MySql",
            ConnectionType::PostgreSql => "PostgreSQL",
            ConnectionType::Custom => "Custom",
        }
    }

    /// What the app finds before the name of the string in its environment.
    #[must_use]
    pub fn variable_prefix(self) -> &'static str {
        match self {
            ConnectionType::SqlAzure => "SQLAZURECONNSTR_",
            ConnectionType::SqlServer => "SQLCONNSTR_",
            ConnectionType::MySql => "MYSQLCONNSTR_",
            ConnectionType::PostgreSql => "POSTGRESQLCONNSTR_",
            ConnectionType::Custom => "CUSTOMCONNSTR_",
        }
    }

    /// The kind of database that the type promises; none for `Custom`.
    #[must_use]
    pub fn kind(self) -> Option<Kind> {
        match self {
            ConnectionType::SqlAzure | ConnectionType::SqlServer => Some(Kind::SqlServer),
            ConnectionType::MySql => Some(Kind::MySql),
            ConnectionType::PostgreSql => Some(Kind::PostgreSql),
            ConnectionType::Custom => None,
        }
    }
}

impl fmt::Display for ConnectionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ConnectionType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|t| t.as_str().eq_ignore_ascii_case(text)).ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str).join(", ");
            Error::new(
                Code::InvalidValue,
                format!("There is no such type of connection string; there are {names}"),
            )
        })
    }
}

/// Longest connection string, in bytes.
const LENGTH_MAX: usize = 16 << 10;

/// Reads a connection string. `InvalidValue` when it cannot be one, when it is one of another kind than its type says,
/// or when nothing in it tells the kind.
pub fn parse(text: &str, typed: ConnectionType) -> Result<Endpoint> {
    if text.len() > LENGTH_MAX {
        return Err(bad(format!("it is longer than {LENGTH_MAX} bytes")));
    }
    let text = text.trim();
    if text.is_empty() {
        return Err(bad("it is empty"));
    }
    let endpoint = match uri::scheme(text) {
        Some((kind, rest)) => uri::parse(kind, rest)?,
        None if keywords::looks_like(text) => {
            Fields::from(keywords::pairs(text)?).endpoint(Some(Kind::PostgreSql))?
        }
        None => Fields::from(ado::pairs(text)?).endpoint(typed.kind())?,
    };
    match typed.kind() {
        Some(kind) if kind != endpoint.kind => {
            Err(bad(format!("its type says {}, it is one of {}", kind.name(), endpoint.kind.name())))
        }
        _ => Ok(endpoint),
    }
}

/// The string within one of Entity Framework's (`metadata=…;provider connection string="…"`).
pub(crate) fn inner_string(text: &str) -> Option<String> {
    let pairs = ado::pairs(text.get(..LENGTH_MAX).unwrap_or(text)).ok()?;
    pairs.into_iter().find_map(|(key, value)| (key == "provider connection string").then_some(value))
}

/// The error of a string that is none.
fn bad(why: impl fmt::Display) -> Error {
    Error::new(Code::InvalidValue, format!("The connection string cannot be used: {why}"))
}

/// `host`, `host:port`, `[address]:port` → name and port.
fn host_and_port(text: &str, default: u16) -> Result<(String, u16)> {
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(bad("its port is no number from 1 to 65535")),
    };
    if let Some(rest) = text.strip_prefix('[') {
        let (name, after) = rest.split_once(']').ok_or_else(|| bad("its host has a `[` without `]`"))?;
        return match after.strip_prefix(':') {
            Some(after) => Ok((name.to_owned(), port(after)?)),
            None if after.is_empty() => Ok((name.to_owned(), default)),
            None => Err(bad("something stands behind the `]` of its host")),
        };
    }
    match text.rsplit_once(':') {
        // An address of IPv6 without brackets has no port.
        Some((name, after)) if !name.contains(':') => Ok((name.to_owned(), port(after)?)),
        _ => Ok((text.to_owned(), default)),
    }
}
