//! Connections to a server of MySQL or MariaDB.
//!
//! Invariants:
//! * Whom the server takes us for is compared with whom the connection string names, on every connection.
//! * MariaDB refuses a connection in clear, where it wants TLS, with the words of a wrong password. So a refusal without TLS
//!   is tried once with TLS before it is called one.
//! * The session speaks UTF-8, sees times in UTC, waits for locks no longer than it may, and has no mode that changes
//!   how quotes are read.

use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use ::mysql::prelude::Queryable as _;
use ::mysql::{ClientIdentity, Conn, OptsBuilder, SslOpts, Value};
use backstay_model::{Code, Error, Result};

use super::errors;
use crate::adapter::{Options, TlsSeen};
use crate::endpoint::{Endpoint, Host, Place, TlsMode};

/// Whether the server is of MariaDB or of MySQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavour {
    MariaDb,
    MySql,
}

impl Flavour {
    pub(super) fn name(self) -> &'static str {
        match self {
            Flavour::MariaDb => "MariaDB",
            Flavour::MySql => "MySQL",
        }
    }
}

/// A connection.
pub(super) struct Session {
    conn: Conn,
    pub(super) flavour: Flavour,
    /// `10.11.19`.
    pub(super) version: String,
    pub(super) tls: TlsSeen,
    /// The account that the server takes us for: `app@%`.
    pub(super) account: String,
    /// Which of the hosts answered; none for a socket.
    pub(super) host: Option<Host>,
    /// How long a lock is waited for.
    pub(super) lock_wait: Duration,
    /// How many statements that change something may still be sent; none for all. See [`super::MySql::stop_after`].
    pub(super) left: Option<u64>,
}

/// A row as the server sends it.
pub(super) type Row = Vec<Option<Vec<u8>>>;

/// Nothing of what is ours ends by a timeout of the server's settings: 86400 s is what the tools of MySQL set for themselves.
pub(super) fn patience(flavour: Flavour) -> &'static str {
    match flavour {
        Flavour::MariaDb => {
            "SET SESSION wait_timeout=86400, net_read_timeout=86400, net_write_timeout=86400 \
             /*M!100101 , max_statement_time=0 */ \
             /*M!100300 , idle_transaction_timeout=0, idle_readonly_transaction_timeout=0, idle_write_transaction_timeout=0 */"
        }
        Flavour::MySql => {
            "SET SESSION wait_timeout=86400, net_read_timeout=86400, net_write_timeout=86400 /*!50708 , max_execution_time=0 */"
        }
    }
}

impl Session {
    /// Connects to the database that the endpoint names, or to none where `database` is false.
    pub(super) fn open(endpoint: &Endpoint, options: &Options, database: bool) -> Result<Self> {
        let hosts: Vec<Option<&Host>> = match &endpoint.place {
            Place::Hosts(hosts) => hosts.iter().map(Some).collect(),
            Place::Socket(..) => vec![None],
            Place::File(_) => Vec::new(),
        };
        let mut last = Error::new(Code::InvalidValue, "The connection string names no server");
        for host in hosts {
            options.cancel.check()?;
            match Self::open_at(endpoint, options, host, database) {
                Err(error) if matches!(error.code(), Code::DatabaseUnreachable | Code::DatabaseBusy) => {
                    last = error
                }
                other => return other,
            }
        }
        Err(last)
    }

    fn open_at(endpoint: &Endpoint, options: &Options, host: Option<&Host>, database: bool) -> Result<Self> {
        let doing = connecting(endpoint, host);
        let mode = match host {
            Some(_) => endpoint.tls.mode.unwrap_or(TlsMode::Preferred),
            None => TlsMode::Off,
        };
        let connect = |mode| connect(endpoint, options, host, mode, database);
        let (conn, mode) = match connect(mode)? {
            Ok(conn) => (conn, mode),
            Err(::mysql::Error::DriverError(::mysql::DriverError::TlsNotSupported))
                if mode == TlsMode::Preferred =>
            {
                (connect(TlsMode::Off)?.map_err(|e| refused(e, endpoint, &doing))?, TlsMode::Off)
            }
            Err(error) if mode == TlsMode::Off && errors::number(&error) == Some(1045) && host.is_some() => {
                return Err(match connect(TlsMode::Required)? {
                    Ok(_) => {
                        Error::new(Code::DatabaseTlsRequired, format!("{doing}: the server takes only TLS"))
                    }
                    Err(_) => refused(error, endpoint, &doing),
                });
            }
            Err(error) => return Err(refused(error, endpoint, &doing)),
        };
        Self::begin(conn, endpoint, options, host, mode)
    }

    fn begin(
        conn: Conn,
        endpoint: &Endpoint,
        options: &Options,
        host: Option<&Host>,
        mode: TlsMode,
    ) -> Result<Self> {
        let mut session = Session {
            conn,
            flavour: Flavour::MySql,
            version: String::new(),
            tls: TlsSeen::default(),
            account: String::new(),
            host: host.cloned(),
            lock_wait: options.lock_wait,
            left: None,
        };
        session.run("SET NAMES utf8mb4")?;
        let wait = options.lock_wait.as_secs().max(1);
        session.run(&format!(
            "SET SESSION sql_mode='', time_zone='+00:00', lock_wait_timeout={wait}, innodb_lock_wait_timeout={wait}, \
             sql_quote_show_create=1"
        ))?;
        let row = session.row("SELECT VERSION(), CURRENT_USER()")?;
        let version = text(&row, 0);
        session.flavour = match version.to_lowercase().contains("mariadb") {
            true => Flavour::MariaDb,
            false => Flavour::MySql,
        };
        // Behind some proxies MariaDB puts an old version of MySQL before its own.
        let version = version.strip_prefix("5.5.5-").unwrap_or(&version);
        session.version = version.split('-').next().unwrap_or_default().to_owned();
        session.account = text(&row, 1);
        session.is_whom(endpoint)?;
        session.run(patience(session.flavour))?;
        let seen = session.rows("SHOW SESSION STATUS LIKE 'Ssl_version'")?;
        let seen = seen.first().map(|row| text(row, 1)).filter(|version| !version.is_empty());
        session.tls = TlsSeen { verified: seen.as_ref().map(|_| mode), version: seen };
        Ok(session)
    }

    /// Whether the server takes us for whom the connection string names.
    fn is_whom(&self, endpoint: &Endpoint) -> Result<()> {
        let user = self.account.rsplit_once('@').map_or(self.account.as_str(), |(user, _)| user);
        let wanted = endpoint.user.as_deref().unwrap_or_default();
        if user == wanted {
            return Ok(());
        }
        let message =
            format!("The server takes us for `{}`, the connection string names `{wanted}`", self.account);
        Err(Error::new(Code::DatabaseLoginFailed, message))
    }

    /// Version and flavour for people.
    pub(super) fn server(&self) -> String {
        format!("{} {}", self.flavour.name(), self.version)
    }

    /// Whether the server is of that version or newer.
    pub(super) fn is_since(&self, major: u32, minor: u32) -> bool {
        let mut parts = self.version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (major, minor)
    }

    /// The account as a grant names it: `` `app`@`%` ``.
    pub(super) fn grantee(&self) -> String {
        let (user, host) = self.account.rsplit_once('@').unwrap_or((&self.account, "%"));
        format!("{}@{}", name(user), name(host))
    }

    /// Runs a statement that gives no rows.
    pub(super) fn run(&mut self, statement: &str) -> Result<()> {
        self.try_run(statement).map_err(|e| errors::from_driver(e, doing(statement), false))
    }

    /// The same with the driver's own error.
    pub(super) fn try_run(&mut self, statement: &str) -> ::mysql::Result<()> {
        self.conn.query_drop(statement)
    }

    /// Runs a statement that changes something. Tests cut the work short here.
    pub(super) fn change(&mut self, statement: &str) -> Result<()> {
        match self.try_change(statement) {
            Ok(()) => Ok(()),
            Err(Refusal::Cut(error)) => Err(error),
            Err(Refusal::Server(error)) => Err(errors::from_driver(error, doing(statement), false)),
        }
    }

    /// The same with the driver's own error.
    pub(super) fn try_change(&mut self, statement: &str) -> Result<(), Refusal> {
        self.count().map_err(Refusal::Cut)?;
        self.try_run(statement).map_err(Refusal::Server)
    }

    /// Runs a statement that changes something, with values for its question marks.
    pub(super) fn change_with(&mut self, statement: &str, values: Vec<Value>) -> Result<()> {
        self.count()?;
        let done = self.conn.exec_drop(statement, ::mysql::Params::Positional(values));
        done.map_err(|e| errors::from_driver(e, doing(statement), false))
    }

    fn count(&mut self) -> Result<()> {
        match &mut self.left {
            None => Ok(()),
            Some(0) => Err(Error::new(Code::DatabaseInterrupted, "The work was cut short")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    /// The rows of a query.
    pub(super) fn rows(&mut self, query: &str) -> Result<Vec<Row>> {
        self.try_rows(query).map_err(|e| errors::from_driver(e, doing(query), false))
    }

    /// The same with the driver's own error.
    pub(super) fn try_rows(&mut self, query: &str) -> ::mysql::Result<Vec<Row>> {
        let rows: Vec<::mysql::Row> = self.conn.query(query)?;
        Ok(rows.into_iter().map(|row| row.unwrap().into_iter().map(bytes).collect()).collect())
    }

    /// The rows of a query whose columns differ between servers, by their names; the error is the driver's own.
    pub(super) fn try_named(&mut self, query: &str) -> ::mysql::Result<Vec<Vec<(String, String)>>> {
        let rows: Vec<::mysql::Row> = self.conn.query(query)?;
        let named = |row: ::mysql::Row| {
            let names: Vec<String> = row.columns_ref().iter().map(|c| c.name_str().into_owned()).collect();
            let value = |value| String::from_utf8_lossy(&bytes(value).unwrap_or_default()).into_owned();
            let values = row.unwrap().into_iter().map(value);
            names.into_iter().zip(values).collect()
        };
        Ok(rows.into_iter().map(named).collect())
    }

    /// The first row of a query that always has one.
    pub(super) fn row(&mut self, query: &str) -> Result<Row> {
        let first = self.rows(query)?.into_iter().next();
        first.ok_or_else(|| Error::new(Code::DatabaseFailed, format!("{}: no answer", doing(query))))
    }

    /// The first column of all rows.
    pub(super) fn column(&mut self, query: &str) -> Result<Vec<String>> {
        Ok(self.rows(query)?.iter().map(|row| text(row, 0)).collect())
    }

    /// The first column of a query of the user's, as texts without those that are NULL, at most `limit` of them. Only what
    /// reads is let through, and that in a transaction in which the server lets nothing be changed.
    pub(super) fn texts(&mut self, query: &str, limit: usize) -> Result<Vec<String>> {
        let mut words =
            query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|w| !w.is_empty());
        let first = words.clone().next().unwrap_or_default().to_uppercase();
        let to_file =
            words.any(|word| word.eq_ignore_ascii_case("OUTFILE") || word.eq_ignore_ascii_case("DUMPFILE"));
        if !matches!(first.as_str(), "SELECT" | "WITH" | "VALUES" | "SHOW" | "TABLE") || to_file {
            return Err(Error::new(Code::InvalidValue, "The query is none that only reads"));
        }
        self.run("START TRANSACTION READ ONLY")?;
        let failed = |e| errors::from_driver(e, "The query", false);
        let mut texts = Vec::new();
        // Prepared: the server takes one statement then, and not what stands behind a semicolon.
        for row in self.conn.exec_iter(query, ()).map_err(failed)? {
            let row: Row = row.map_err(failed)?.unwrap().into_iter().map(bytes).collect();
            if texts.len() < limit && row.first().is_some_and(Option::is_some) {
                texts.push(text(&row, 0));
            }
        }
        self.run("ROLLBACK")?;
        Ok(texts)
    }

    /// Whether a database of that name exists and is shown.
    pub(super) fn has_database(&mut self, database: &str) -> Result<bool> {
        let query =
            format!("SELECT 1 FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = {}", literal(database));
        Ok(!self.rows(&query)?.is_empty())
    }
}

/// Why a statement was not done.
pub(super) enum Refusal {
    /// A test wants it so.
    Cut(Error),
    /// The server says so.
    Server(::mysql::Error),
}

fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::NULL => None,
        Value::Bytes(bytes) => Some(bytes),
        other => Some(other.as_sql(true).trim_matches('\'').as_bytes().to_vec()),
    }
}

/// A column of a row as text; empty where there is none.
pub(super) fn text(row: &Row, column: usize) -> String {
    let value = row.get(column).and_then(Option::as_deref).unwrap_or_default();
    String::from_utf8_lossy(value).into_owned()
}

/// A name as SQL writes it.
pub(super) fn name(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A text as SQL writes it. Right only without the mode `NO_BACKSLASH_ESCAPES`, which a session here does not have.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// The first words of a statement: what was being done, without anything that it holds.
fn doing(statement: &str) -> &str {
    let mut words = statement.char_indices().filter(|(_, c)| c.is_whitespace());
    let end = words.nth(1).map_or(statement.len(), |(at, _)| at);
    statement.get(..end.min(40)).unwrap_or("A statement")
}

fn connecting(endpoint: &Endpoint, host: Option<&Host>) -> String {
    match (host, &endpoint.place) {
        (Some(host), _) => format!("Connecting to {}:{}", host.name, host.port),
        (None, Place::Socket(path, _)) => format!("Connecting to {}", path.display()),
        (None, _) => "Connecting".to_owned(),
    }
}

fn refused(error: ::mysql::Error, endpoint: &Endpoint, doing: &str) -> Error {
    let number = errors::number(&error);
    let error = errors::from_driver(error, doing, true);
    match number {
        Some(1045) if endpoint.tls.certificate.is_none() => error.advise(
            "Correct user and password in the connection string. A user that needs a certificate of the client is \
             refused with the same words: name it there (`SslCert=` and `SslKey=`).",
        ),
        _ => error,
    }
}

/// One attempt. The outer error is of what was read here, the inner one of the driver. A server that takes the
/// connection and says nothing is given up after the time that connecting may take.
fn connect(
    endpoint: &Endpoint,
    options: &Options,
    host: Option<&Host>,
    mode: TlsMode,
    database: bool,
) -> Result<::mysql::Result<Conn>> {
    let opts = settings(endpoint, options, host, mode, database)?;
    let (tell, told) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .spawn(move || tell.send(Conn::new(opts)).ok())
        .map_err(|e| Error::new(Code::System, "No thread for a connection can be started").because(e))?;
    let begin = Instant::now();
    loop {
        match told.recv_timeout(Duration::from_millis(50)) {
            Ok(conn) => return Ok(conn),
            Err(RecvTimeoutError::Timeout) if begin.elapsed() < options.connect => options.cancel.check()?,
            Err(RecvTimeoutError::Timeout) => {
                let message = format!(
                    "{}: no answer within {} s",
                    connecting(endpoint, host),
                    options.connect.as_secs_f32()
                );
                return Err(Error::new(Code::DatabaseUnreachable, message));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::new(Code::DatabaseFailed, "The driver gave up the connection"));
            }
        }
    }
}

fn settings(
    endpoint: &Endpoint,
    options: &Options,
    host: Option<&Host>,
    mode: TlsMode,
    database: bool,
) -> Result<OptsBuilder> {
    let mut builder = OptsBuilder::new()
        .user(endpoint.user.clone())
        .pass(endpoint.password.as_ref().map(|password| password.reveal().to_owned()))
        .prefer_socket(false)
        .tcp_connect_timeout(Some(options.connect))
        .read_timeout(Some(options.idle.max(options.lock_wait * 2)))
        .write_timeout(Some(options.idle));
    if database {
        builder = builder.db_name(endpoint.database.clone());
    }
    builder = match (host, &endpoint.place) {
        (Some(host), _) => builder.ip_or_hostname(Some(host.name.clone())).tcp_port(host.port),
        (None, Place::Socket(path, _)) => builder.socket(Some(path.to_string_lossy())),
        (None, _) => builder,
    };
    if mode == TlsMode::Off {
        return Ok(builder);
    }
    let mut tls = SslOpts::default();
    match mode {
        TlsMode::Off | TlsMode::Preferred | TlsMode::Required => {
            tls = tls.with_danger_accept_invalid_certs(true)
        }
        TlsMode::VerifyCa => tls = tls.with_danger_skip_domain_validation(true),
        TlsMode::VerifyFull => {}
    }
    if mode >= TlsMode::VerifyCa
        && let Some(path) = &endpoint.tls.authorities
    {
        readable(path, Code::DatabaseCertificateUnknown, "The certificates of the authorities")?;
        tls = tls.with_root_cert_path(Some(path.clone()));
    }
    match (&endpoint.tls.certificate, &endpoint.tls.key) {
        (Some(certificate), Some(key)) => {
            readable(certificate, Code::DatabaseClientCertificate, "The certificate of the client")?;
            readable(key, Code::DatabaseClientCertificate, "The key of the client's certificate")?;
            tls = tls.with_client_identity(Some(ClientIdentity::new(certificate.clone(), key.clone())));
        }
        (None, None) => {}
        _ => {
            let message = "The connection string names one of certificate and key of the client, not both";
            return Err(Error::new(Code::DatabaseClientCertificate, message));
        }
    }
    Ok(builder.ssl_opts(tls))
}

fn readable(path: &Path, code: Code, what: &str) -> Result<()> {
    match std::fs::File::open(path) {
        Ok(_) => Ok(()),
        Err(e) => Err(Error::new(code, format!("{what} cannot be read: {}", path.display())).because(e)),
    }
}
