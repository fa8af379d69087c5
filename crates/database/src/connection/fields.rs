//! Pairs of keys and values, whatever form they came in, to an endpoint.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use backstay_model::{Result, Secret};

use super::{bad, host_and_port};
use crate::endpoint::{Endpoint, Host, Kind, Place, Tls, TlsMode};

/// What the pairs say.
#[derive(Debug, Default)]
pub(super) struct Fields {
    pub hosts: Vec<Host>,
    pub place: Option<Place>,
    pub database: Option<String>,
    pub user: Option<String>,
    pub password: Option<Secret>,
    server: Option<String>,
    port: Option<String>,
    file: Option<String>,
    socket: Option<String>,
    tls: Vec<(String, String)>,
    integrated: bool,
    /// Keys, as hints at the kind.
    keys: BTreeSet<String>,
    unused: BTreeSet<String>,
}

impl From<Vec<(String, String)>> for Fields {
    fn from(pairs: Vec<(String, String)>) -> Self {
        let mut fields = Fields::default();
        for (key, value) in pairs {
            // Blanks and underlines do not tell keys apart: `User Id`, `UserID`, `user_id`.
            let key: String =
                key.chars().filter(|c| !matches!(c, ' ' | '_' | '-')).collect::<String>().to_lowercase();
            fields.set(&key, value);
            fields.keys.insert(key);
        }
        fields
    }
}

impl Fields {
    /// A place and nothing else.
    pub(super) fn at(place: Place) -> Self {
        Fields { place: Some(place), ..Fields::default() }
    }

    fn set(&mut self, key: &str, value: String) {
        match key {
            "server" | "datasource" | "address" | "addr" | "networkaddress" | "host" | "hostaddr"
            | "hostname" | "servername" => self.server = Some(value),
            "filename" | "file" | "fulluri" => self.file = Some(value),
            "port" | "portnumber" => self.port = Some(value),
            "unixsocket" | "socket" | "protocolsocket" => self.socket = Some(value),
            "database" | "initialcatalog" | "dbname" | "databasename" => self.database = Some(value),
            "userid" | "uid" | "user" | "username" => self.user = Some(value),
            "password" | "pwd" => self.password = Some(Secret::new(value)),
            "integratedsecurity" | "trustedconnection" => {
                self.integrated = matches!(value.to_lowercase().as_str(), "true" | "yes" | "sspi");
            }
            _ if is_tls(key) => self.tls.push((key.to_owned(), value)),
            _ => {
                self.unused.insert(key.to_owned());
            }
        }
    }

    /// The endpoint; `kind` where it is known from elsewhere.
    pub(super) fn endpoint(mut self, kind: Option<Kind>) -> Result<Endpoint> {
        let kind = match kind.or_else(|| self.sniff()) {
            Some(kind) => kind,
            None => {
                return Err(bad(
                    "nothing in it tells the kind of database; give it the type MySql, PostgreSQL, SQLServer or \
                                SQLAzure",
                ));
            }
        };
        let place = self.place(kind)?;
        if let Place::Hosts(hosts) = &place
            && hosts.iter().any(|host| host.name.is_empty() || host.name.contains(char::is_whitespace))
        {
            return Err(bad("it names no server"));
        }
        self.place = Some(place);
        let mut endpoint = self.plain(kind);
        endpoint.database = endpoint.database.filter(|name| !name.is_empty());
        endpoint.user = endpoint.user.filter(|name| !name.is_empty());
        Ok(endpoint)
    }

    /// The endpoint of a place that is known.
    pub(super) fn plain(self, kind: Kind) -> Endpoint {
        let place = self.place.unwrap_or(Place::Hosts(Vec::new()));
        Endpoint {
            kind,
            place,
            database: self.database,
            user: self.user,
            password: self.password,
            integrated: self.integrated,
            tls: tls(&self.tls),
            unused: self.unused,
        }
    }

    fn place(&mut self, kind: Kind) -> Result<Place> {
        let ports = self.ports(kind)?;
        let port = ports.first().copied();
        let default = port.unwrap_or(kind.port());
        if kind == Kind::Sqlite {
            let path = self.file.take().or_else(|| self.server.take()).unwrap_or_default();
            let path = path.strip_prefix("file:").unwrap_or(&path);
            let path = path.split_once('?').map_or(path, |(path, _)| path);
            return match path {
                "" => Err(bad("it names no file")),
                ":memory:" => Err(bad("it names a database in memory")),
                path => Ok(Place::File(PathBuf::from(path))),
            };
        }
        if let Some(socket) = self.socket.take().filter(|s| !s.is_empty()) {
            return Ok(Place::Socket(PathBuf::from(socket), default));
        }
        let mut hosts = std::mem::take(&mut self.hosts);
        if let Some(server) = self.server.take() {
            hosts = match kind {
                Kind::SqlServer => vec![sql_server(&server, default)?],
                _ if server.starts_with('/') => vec![Host { name: server, port: default }],
                _ => server
                    .split(',')
                    .map(|one| host_and_port(one.trim().trim_start_matches("tcp:"), default))
                    .map(|found| found.map(|(name, port)| Host { name, port }))
                    .collect::<Result<_>>()?,
            };
        } else if let Some(port) = port {
            hosts.iter_mut().for_each(|host| host.port = port);
        }
        // Several ports are those of several hosts, one each.
        if ports.len() > 1 {
            if ports.len() != hosts.len() {
                return Err(bad("it names several ports, and not one for each server"));
            }
            hosts.iter_mut().zip(&ports).for_each(|(host, port)| host.port = *port);
        }
        match hosts.as_slice() {
            [] => Err(bad("it names no server")),
            [host] if host.name.starts_with('/') => Ok(Place::Socket(PathBuf::from(&host.name), host.port)),
            _ => Ok(Place::Hosts(hosts)),
        }
    }

    /// The ports that are named, in the order of the servers; libpq takes a gap for the usual one.
    fn ports(&self, kind: Kind) -> Result<Vec<u16>> {
        let text = self.port.as_deref().map(str::trim).unwrap_or_default();
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let several = text.contains(',');
        text.split(',')
            .map(|one| match one.trim() {
                "" if several => Ok(kind.port()),
                one => match one.parse::<u16>() {
                    Ok(port) if port > 0 => Ok(port),
                    _ => Err(bad("its port is no number from 1 to 65535")),
                },
            })
            .collect()
    }

    /// The kind that the keys and values hint at.
    fn sniff(&self) -> Option<Kind> {
        let has = |keys: &[&str]| keys.iter().any(|key| self.keys.contains(*key));
        let server = self.server.as_deref().unwrap_or_default().to_lowercase();
        let port = self.port.as_deref().map(str::trim).unwrap_or_default();
        let behind =
            |c: char| server.rsplit_once(c).map(|(_, port)| port.trim().to_owned()).unwrap_or_default();
        if self.file.is_some() || (is_file(&server) && self.user.is_none() && self.port.is_none()) {
            return Some(Kind::Sqlite);
        }
        // Names and ports of servers say most; `.database.` is in the names of all of a cloud's.
        if server.contains("postgres") || port == "5432" || behind(':') == "5432" {
            return Some(Kind::PostgreSql);
        }
        if server.contains("mysql") || server.contains("mariadb") || port == "3306" || behind(':') == "3306" {
            return Some(Kind::MySql);
        }
        let windows = [
            "multipleactiveresultsets",
            "trustservercertificate",
            "encrypt",
            "initialcatalog",
            "persistsecurityinfo",
            "integratedsecurity",
            "trustedconnection",
            "attachdbfilename",
            "applicationintent",
        ];
        if server.starts_with("tcp:")
            || server.starts_with("np:")
            || server.starts_with("(localdb)")
            || server.contains('\\')
            || server.contains(".database.")
            || behind(',').parse::<u16>().is_ok()
            || has(&windows)
        {
            return Some(Kind::SqlServer);
        }
        let mysql = [
            "allowuservariables",
            "charset",
            "charactersetresults",
            "convertzerodatetime",
            "allowzerodatetime",
            "oldguids",
        ];
        if has(&mysql) {
            return Some(Kind::MySql);
        }
        // Npgsql says `Host` and `Username`; MySQL's connectors `Server` and `Uid`, or a port behind the data source.
        match () {
            () if has(&["host"]) && has(&["username", "sslmode", "searchpath", "pooling"]) => {
                Some(Kind::PostgreSql)
            }
            () if has(&["uid", "pwd"]) && has(&["server"]) => Some(Kind::MySql),
            () if has(&["datasource"]) && behind(':').parse::<u16>().is_ok() => Some(Kind::MySql),
            () => None,
        }
    }
}

/// Whether a data source is a file by its look.
fn is_file(server: &str) -> bool {
    let ending = Path::new(server).extension().and_then(|e| e.to_str()).unwrap_or_default();
    matches!(ending, "db" | "db3" | "sqlite" | "sqlite3" | "sdb" | "s3db") && !server.contains(',')
}

/// `tcp:host,1433`, `host\instance`, `.`.
fn sql_server(server: &str, default: u16) -> Result<Host> {
    let lower = server.to_lowercase();
    if lower.starts_with("np:") || lower.starts_with("(localdb)") || lower.starts_with("lpc:") {
        return Err(bad("it names a server of this Windows machine"));
    }
    let server = if lower.starts_with("tcp:") { server.get(4..).unwrap_or_default() } else { server };
    let (name, port) = match server.split_once(',') {
        Some((name, port)) => match port.trim().parse::<u16>() {
            Ok(port) if port > 0 => (name, port),
            _ => return Err(bad("its port is no number from 1 to 65535")),
        },
        None => (server, default),
    };
    // Behind `\` an instance is named, which is found by asking the server; the port decides where one is given.
    let name = name.split_once('\\').map_or(name, |(name, _instance)| name).trim();
    let (name, port) = host_and_port(name, port)?;
    let name = if matches!(name.as_str(), "." | "(local)") { "localhost".to_owned() } else { name };
    Ok(Host { name, port })
}

fn is_tls(key: &str) -> bool {
    matches!(
        key,
        "sslmode"
            | "usessl"
            | "ssl"
            | "requiressl"
            | "encrypt"
            | "trustservercertificate"
            | "verifyservercertificate"
            | "sslrootcert"
            | "rootcertificate"
            | "sslca"
            | "cacertificatefile"
            | "sslcert"
            | "sslcertificate"
            | "certificatefile"
            | "sslkey"
            | "sslaccept"
            | "sslverify"
            | "servercertificate"
    )
}

/// What the keys of all drivers say about TLS, together.
fn tls(pairs: &[(String, String)]) -> Tls {
    let mut tls = Tls::default();
    let yes = |value: &str| matches!(value, "true" | "yes" | "1" | "on" | "mandatory");
    let mut unverified = None;
    for (key, value) in pairs {
        let word: String = value.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
        let path = || Some(PathBuf::from(value)).filter(|p| !p.as_os_str().is_empty());
        let mode = match (key.as_str(), word.as_str()) {
            ("sslmode", "disable" | "disabled" | "none") => Some(TlsMode::Off),
            ("sslmode", "allow" | "prefer" | "preferred") => Some(TlsMode::Preferred),
            ("sslmode", "require" | "required") => Some(TlsMode::Required),
            ("sslmode", "verifyca") => Some(TlsMode::VerifyCa),
            ("sslmode", "verifyfull" | "verifyidentity") => Some(TlsMode::VerifyFull),
            ("encrypt", "strict") => Some(TlsMode::VerifyFull),
            ("encrypt", word) => Some(if yes(word) { TlsMode::VerifyFull } else { TlsMode::Off }),
            ("usessl" | "ssl" | "requiressl", word) => {
                Some(if yes(word) { TlsMode::Required } else { TlsMode::Off })
            }
            ("verifyservercertificate" | "sslverify", word) if yes(word) => Some(TlsMode::VerifyCa),
            ("sslaccept", "strict") => Some(TlsMode::VerifyFull),
            ("sslaccept", _) => Some(TlsMode::Required),
            ("trustservercertificate", word) => {
                unverified = Some(yes(word));
                None
            }
            ("sslrootcert" | "rootcertificate" | "sslca" | "cacertificatefile", _) => {
                tls.authorities = path();
                None
            }
            ("sslcert" | "sslcertificate" | "certificatefile", _) => {
                tls.certificate = path();
                None
            }
            ("sslkey", _) => {
                tls.key = path();
                None
            }
            _ => None,
        };
        tls.mode = mode.or(tls.mode);
    }
    // SQL Server's drivers verify unless told not to.
    if unverified == Some(true) && tls.mode > Some(TlsMode::Required) {
        tls.mode = Some(TlsMode::Required);
    }
    tls
}
