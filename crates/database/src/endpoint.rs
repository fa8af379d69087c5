//! Where a database is and how it is reached.
//!
//! Invariants: the password is a [`Secret`] and stands nowhere else; what `Display` shows may be logged.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use backstay_model::Secret;
use serde::{Deserialize, Serialize};

/// The kinds of databases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// PostgreSQL.
    PostgreSql,
    /// MySQL or MariaDB.
    MySql,
    /// A file of SQLite.
    Sqlite,
    /// Microsoft SQL Server, Azure SQL among them.
    SqlServer,
}

impl Kind {
    /// The port where none is named; 0 for files.
    #[must_use]
    pub fn port(self) -> u16 {
        match self {
            Kind::PostgreSql => 5432,
            Kind::MySql => 3306,
            Kind::SqlServer => 1433,
            Kind::Sqlite => 0,
        }
    }

    /// Its name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::PostgreSql => "PostgreSQL",
            Kind::MySql => "MySQL",
            Kind::Sqlite => "SQLite",
            Kind::SqlServer => "SQL Server",
        }
    }
}

/// A server to try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Name or address, without brackets.
    pub name: String,
    /// Port.
    pub port: u16,
}

/// Where a database is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// On the network: the servers in the order in which they are tried.
    Hosts(Vec<Host>),
    /// Behind a Unix socket. PostgreSQL: the folder of the socket and the port in its name; others: the socket.
    Socket(PathBuf, u16),
    /// In a file.
    File(PathBuf),
}

/// How much of TLS is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// Never.
    Off,
    /// Where the server has it, unverified.
    Preferred,
    /// Always, unverified.
    Required,
    /// Always, with a certificate of a known authority.
    VerifyCa,
    /// The same, and it is that of the host.
    VerifyFull,
}

/// TLS of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tls {
    /// How much is asked for; none where the string does not say.
    pub mode: Option<TlsMode>,
    /// Certificates of the authorities that are believed (PEM).
    pub authorities: Option<PathBuf>,
    /// Certificate of the client (PEM).
    pub certificate: Option<PathBuf>,
    /// Its key (PEM).
    pub key: Option<PathBuf>,
}

/// A database, where it is and as whom it is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Of which kind.
    pub kind: Kind,
    /// Where.
    pub place: Place,
    /// Its name; none where the string names only a server, and for files.
    pub database: Option<String>,
    /// As whom.
    pub user: Option<String>,
    /// With which password.
    #[serde(skip)]
    pub password: Option<Secret>,
    /// Whether the system's own account is used instead (integrated security, peer authentication).
    pub integrated: bool,
    /// TLS.
    pub tls: Tls,
    /// Names of options that are not used here, for whom they may concern.
    pub unused: BTreeSet<String>,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind.name())?;
        if let Some(database) = &self.database {
            write!(f, " `{database}`")?;
        }
        match &self.place {
            Place::Hosts(hosts) => {
                f.write_str(" on ")?;
                for (i, host) in hosts.iter().enumerate() {
                    let comma = if i == 0 { "" } else { ", " };
                    match host.name.contains(':') {
                        true => write!(f, "{comma}[{}]:{}", host.name, host.port)?,
                        false => write!(f, "{comma}{}:{}", host.name, host.port)?,
                    }
                }
            }
            Place::Socket(path, _) => write!(f, " at {}", path.display())?,
            Place::File(path) => write!(f, " in {}", path.display())?,
        }
        match &self.user {
            Some(user) => write!(f, " as `{user}`"),
            None => Ok(()),
        }
    }
}
