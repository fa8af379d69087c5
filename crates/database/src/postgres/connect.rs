//! Connections to a PostgreSQL server.
//!
//! Invariants: the hosts of an endpoint are tried in their order, each of a host's addresses too; what was reached is
//! remembered, so that a tool goes to the same server. A session knows its time zone and formats: texts of values are
//! the same whatever the server's, the database's and the role's settings are. A long statement is stopped at the
//! server when the work is cancelled.

use std::io::BufRead as _;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use backstay_model::{Cancel, Code, Error, Result};
use postgres::config::SslMode;
use postgres::types::ToSql;
use postgres::{CancelToken, Client, Config, Row, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::errors::{During, driver};
use super::tls;
use crate::adapter::{Options, TlsSeen};
use crate::endpoint::{Endpoint, Place, TlsMode};

/// Values as text are the same everywhere; nothing of what is ours ends by a timeout of the server's settings.
const SETTINGS: &str = "SET search_path = ''; SET timezone = 'UTC'; SET datestyle = 'ISO, YMD'; \
    SET intervalstyle = 'postgres'; SET extra_float_digits = 3; SET bytea_output = 'hex'; SET lc_monetary = 'C'; \
    SET xmlbinary = 'base64'; SET client_encoding = 'UTF8'; SET quote_all_identifiers = off; SET row_security = off; \
    SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET default_transaction_read_only = off;";

/// A server that was reached.
#[derive(Clone, Debug)]
pub(super) enum Reached {
    /// On the network: its name, its port and the address that answered.
    Host(String, u16, IpAddr),
    /// Behind a socket: its folder and port.
    Socket(PathBuf, u16),
}

/// A connection.
pub(super) struct Session {
    client: Client,
    stop: Stop,
    cancel: Cancel,
    /// The server.
    pub(super) reached: Reached,
    /// Whether the tool is to use TLS as the connection string says; false where only a connection in clear worked.
    pub(super) tls: TlsMode,
    /// The server's version as a number (150018).
    pub(super) version: i32,
    /// Whether the server's settings end connections that are idle.
    pub(super) ends_idle: bool,
}

/// Stops the statement that a session is running, from another thread.
#[derive(Clone)]
pub(super) struct Stop {
    token: CancelToken,
    tls: MakeRustlsConnect,
}

impl Stop {
    /// Stops it. Where that fails the statement runs to its end.
    pub(super) fn now(&self) {
        self.token.cancel_query(self.tls.clone()).ok();
    }
}

impl Session {
    /// Connects to the endpoint's database, or to another one of its server.
    pub(super) fn open(endpoint: &Endpoint, options: &Options, database: Option<&str>) -> Result<Self> {
        let mut last = None;
        for reached in targets(endpoint)? {
            match Self::reach(endpoint, options, database, reached) {
                Ok(session) => return Ok(session),
                // Whoever answers decides; the next one is for those that do not.
                Err(e) if e.code() != Code::DatabaseUnreachable => return Err(e),
                Err(e) => last = Some(e),
            }
            check(&options.cancel)?;
        }
        Err(last.unwrap_or_else(|| {
            Error::new(Code::InvalidValue, "The connection string of a PostgreSQL database names no server")
        }))
    }

    fn reach(
        endpoint: &Endpoint,
        options: &Options,
        database: Option<&str>,
        reached: Reached,
    ) -> Result<Self> {
        let connector = MakeRustlsConnect::new(tls::config(&endpoint.tls)?);
        let wanted = match reached {
            Reached::Host(..) => tls::mode(&endpoint.tls),
            Reached::Socket(..) => TlsMode::Off,
        };
        let what = what(endpoint, database, &reached);
        let connect =
            |mode: TlsMode| config(endpoint, options, database, &reached, mode).connect(connector.clone());
        let (made, mode) = match connect(wanted) {
            // "Where the server has it" includes servers that let nobody in with it.
            Err(e) if wanted == TlsMode::Preferred && refuses_tls(&e) => {
                (connect(TlsMode::Off), TlsMode::Off)
            }
            made => (made, wanted),
        };
        let client = made.map_err(|e| driver(e, During::Connecting, &what))?;
        let stop = Stop { token: client.cancel_token(), tls: connector };
        let mut session = Session {
            client,
            stop,
            cancel: options.cancel.clone(),
            reached,
            tls: mode,
            version: 0,
            ends_idle: false,
        };
        session.run(SETTINGS)?;
        let wait = options.lock_wait.as_millis();
        session.run(&format!("SET lock_timeout = {wait}"))?;
        session.version = session.one("SELECT current_setting('server_version_num')::int", &[])?;
        if session.version >= 140_000 {
            let idle: String = session.one("SELECT current_setting('idle_session_timeout')", &[])?;
            session.ends_idle = idle != "0";
            session.run("SET idle_session_timeout = 0")?;
        }
        if session.version >= 170_000 {
            session.run("SET transaction_timeout = 0")?;
        }
        Ok(session)
    }

    /// Runs statements that give nothing.
    pub(super) fn run(&mut self, sql: &str) -> Result<()> {
        self.watched(|client| client.batch_execute(sql))
    }

    /// Runs a query.
    pub(super) fn rows(&mut self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        self.watched(|client| client.query(sql, parameters))
    }

    /// The first column of a query's only row.
    pub(super) fn one<T>(&mut self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<T>
    where
        T: for<'a> postgres::types::FromSql<'a>,
    {
        let row = self.watched(|client| client.query_one(sql, parameters))?;
        column(&row, 0)
    }

    /// The first column of all rows.
    pub(super) fn column<T>(&mut self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<T>>
    where
        T: for<'a> postgres::types::FromSql<'a>,
    {
        self.rows(sql, parameters)?.iter().map(|row| column(row, 0)).collect()
    }

    /// The first column of all rows as texts, whatever its type, without those that are NULL.
    pub(super) fn texts(&mut self, sql: &str) -> Result<Vec<String>> {
        let messages = self.watched(|client| client.simple_query(sql))?;
        let text = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        };
        Ok(messages.iter().filter_map(text).collect())
    }

    /// The first column of the first rows of somebody's query, in a transaction that can only read.
    pub(super) fn first_texts(&mut self, sql: &str, limit: usize) -> Result<Vec<String>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        // A cursor reads no more than is wanted, and takes nothing but a query.
        self.rows(&format!("DECLARE backstay NO SCROLL CURSOR FOR {sql}"), &[])?;
        self.texts(&format!("FETCH {limit} FROM backstay"))
    }

    /// Gives what a `COPY … TO STDOUT` gives, piece by piece.
    pub(super) fn copy_out(&mut self, sql: &str, mut take: impl FnMut(&[u8])) -> Result<()> {
        let copied = self.watched(|client| {
            let mut reader = client.copy_out(sql)?;
            loop {
                let read = match reader.fill_buf() {
                    Ok([]) => return Ok(Ok(())),
                    Ok(bytes) => {
                        take(bytes);
                        bytes.len()
                    }
                    Err(e) => match e.downcast::<postgres::Error>() {
                        Ok(e) => return Err(e),
                        Err(e) => return Ok(Err(e)),
                    },
                };
                reader.consume(read);
            }
        })?;
        copied.map_err(|e| Error::new(Code::DatabaseInterrupted, "PostgreSQL cannot be read").because(e))
    }

    /// The server's major version.
    pub(super) fn major(&self) -> u32 {
        u32::try_from(self.version / 10_000).unwrap_or_default()
    }

    /// TLS as the server sees it.
    pub(super) fn seen(&mut self) -> Result<TlsSeen> {
        let version: Option<Option<String>> = self
            .column(
                "SELECT version FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()",
                &[],
            )?
            .pop();
        let version = version.flatten();
        let verified = matches!(self.tls, TlsMode::VerifyCa | TlsMode::VerifyFull) && version.is_some();
        Ok(TlsSeen { version, verified: verified.then_some(self.tls) })
    }

    /// Runs something while another thread watches for cancellation.
    fn watched<T>(&mut self, work: impl FnOnce(&mut Client) -> Result<T, postgres::Error>) -> Result<T> {
        check(&self.cancel)?;
        let (stop, cancel, client) = (&self.stop, &self.cancel, &mut self.client);
        let done = AtomicBool::new(false);
        let result = thread::scope(|scope| {
            let watcher = scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    // Most statements are over before this.
                    thread::park_timeout(Duration::from_millis(100));
                    if cancel.is_cancelled() && !done.load(Ordering::Acquire) {
                        stop.now();
                    }
                }
            });
            let result = work(client);
            done.store(true, Ordering::Release);
            watcher.thread().unpark();
            result
        });
        match result {
            Err(_) if cancel.is_cancelled() => Err(Error::new(Code::Cancelled, "Stopped as asked")),
            other => other.map_err(|e| driver(e, During::Working, "PostgreSQL")),
        }
    }
}

/// A column of a row.
pub(super) fn column<T>(row: &Row, index: usize) -> Result<T>
where
    T: for<'a> postgres::types::FromSql<'a>,
{
    row.try_get(index)
        .map_err(|e| Error::new(Code::Internal, "An answer of PostgreSQL is not understood").because(e))
}

/// Whether the work is to go on.
pub(super) fn check(cancel: &Cancel) -> Result<()> {
    match cancel.is_cancelled() {
        true => Err(Error::new(Code::Cancelled, "Stopped as asked")),
        false => Ok(()),
    }
}

/// A name as it stands in a statement.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as it stands in a statement.
pub(super) fn literal(text: &str) -> String {
    match text.contains('\\') {
        true => format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''")),
        false => format!("'{}'", text.replace('\'', "''")),
    }
}

/// The servers of an endpoint, in the order in which they are tried.
fn targets(endpoint: &Endpoint) -> Result<Vec<Reached>> {
    let hosts = match &endpoint.place {
        Place::Socket(folder, port) => return Ok(vec![Reached::Socket(folder.clone(), *port)]),
        Place::Hosts(hosts) => hosts,
        Place::File(_) => return Ok(Vec::new()),
    };
    let mut targets = Vec::new();
    let mut unknown = None;
    for host in hosts {
        match (host.name.as_str(), host.port).to_socket_addrs() {
            Ok(found) => {
                targets.extend(found.map(|a| Reached::Host(host.name.clone(), host.port, a.ip())));
            }
            Err(e) => {
                let message =
                    format!("Cannot connect to {endpoint}: the name `{}` has no address", host.name);
                unknown = Some(Error::new(Code::DatabaseUnreachable, message).because(e));
            }
        }
    }
    match unknown {
        Some(e) if targets.is_empty() => Err(e),
        _ => Ok(targets),
    }
}

fn what(endpoint: &Endpoint, database: Option<&str>, reached: &Reached) -> String {
    let mut one = endpoint.clone();
    if let Some(database) = database {
        one.database = Some(database.to_owned());
    }
    if let Reached::Host(name, port, _) = reached {
        one.place = Place::Hosts(vec![crate::Host { name: name.clone(), port: *port }]);
    }
    one.to_string()
}

fn config(
    endpoint: &Endpoint,
    options: &Options,
    database: Option<&str>,
    reached: &Reached,
    mode: TlsMode,
) -> Config {
    let mut config = Config::new();
    match reached {
        Reached::Host(name, port, address) => config.host(name).hostaddr(*address).port(*port),
        Reached::Socket(folder, port) => config.host_path(folder).port(*port),
    };
    config
        .application_name("backstay")
        .connect_timeout(options.connect)
        .keepalives_idle(Duration::from_secs(30))
        .keepalives_interval(Duration::from_secs(10))
        .keepalives_retries(3)
        .tcp_user_timeout(options.idle)
        .ssl_mode(match mode {
            TlsMode::Off => SslMode::Disable,
            TlsMode::Preferred => SslMode::Prefer,
            _ => SslMode::Require,
        });
    if let Some(user) = &endpoint.user {
        config.user(user);
    }
    if let Some(password) = &endpoint.password {
        config.password(password.reveal());
    }
    if let Some(database) = database.or(endpoint.database.as_deref()) {
        config.dbname(database);
    }
    config
}

/// Whether the server lets us in only without TLS.
fn refuses_tls(error: &postgres::Error) -> bool {
    error.as_db_error().is_some_and(|e| {
        e.code().code() == "28000"
            && e.message().contains("pg_hba.conf")
            && e.message().contains("SSL encryption")
    })
}
