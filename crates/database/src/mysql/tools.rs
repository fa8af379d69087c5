//! The programs that dump and load: which they are, and how they reach the server.
//!
//! Invariant: everything about the connection stands in one sealed file that replaces all other option files; the user stands in
//! the arguments too, so that a file that is not read ends in a refusal and not in another user.

use std::fmt::Write as _;

use backstay_model::{Error, Result};

use super::connect::{Flavour, Session};
use super::errors;
use crate::adapter::{Options, Tool};
use crate::endpoint::{Endpoint, Place, TlsMode};
use crate::tool::{self, Ended, Explain, Found, Limits, Program};

/// A program of the client package.
#[derive(Clone, Debug)]
pub(super) struct Client {
    found: Found,
    /// Whose it is: their options differ.
    pub(super) flavour: Flavour,
}

/// When a tool is stopped.
pub(super) fn limits(options: &Options) -> Limits {
    Limits { cancel: options.cancel.clone(), idle: options.idle }
}

/// The program that dumps; of the server's flavour where there are both.
pub(super) fn dumper(server: Flavour, options: &Options) -> Result<Client> {
    client(&["mariadb-dump", "mysqldump"], server, options)
}

/// The program that loads.
pub(super) fn loader(server: Flavour, options: &Options) -> Result<Client> {
    client(&["mariadb", "mysql"], server, options)
}

fn client(names: &[&str], server: Flavour, options: &Options) -> Result<Client> {
    let package = match server {
        Flavour::MariaDb => "mariadb-client",
        Flavour::MySql => "mysql-client (or mariadb-client)",
    };
    let usual = ["/usr/bin", "/usr/local/bin", "/opt/*/bin"];
    let found = tool::find(names, &options.tools, &usual, package, &limits(options))?;
    let mut clients = found.into_iter().map(|found| Client {
        flavour: match found.version.contains("MariaDB") {
            true => Flavour::MariaDb,
            false => Flavour::MySql,
        },
        found,
    });
    let first = clients.next();
    let fitting = first.iter().cloned().chain(clients).find(|client| client.flavour == server);
    let none = || Error::new(backstay_model::Code::DatabaseToolMissing, "No client program is installed");
    fitting.or(first).ok_or_else(none)
}

impl Client {
    /// For records.
    pub(super) fn tool(&self) -> Tool {
        Tool { path: self.found.path.to_string_lossy().into_owned(), version: self.found.version.clone() }
    }

    /// The program, set up to reach the server where the session is.
    pub(super) fn program(&self, endpoint: &Endpoint, session: &Session) -> Result<Program> {
        let mut program = Program::new(&self.found.path);
        let file = program.secret(option_file(self.flavour, endpoint, session).as_bytes())?;
        // It must be the first of all.
        program.arg(format!("--defaults-file={file}"));
        program.arg(format!("--user={}", endpoint.user.as_deref().unwrap_or_default()));
        program.arg("--default-character-set=utf8mb4");
        Ok(program)
    }
}

/// How the end of a tool is told.
pub(super) fn explain(doing: &'static str) -> Explain {
    Box::new(move |ended: &Ended| errors::from_tool(ended, doing))
}

fn option_file(flavour: Flavour, endpoint: &Endpoint, session: &Session) -> String {
    let mut file = String::from("[client]\n");
    let mut set = |key: &str, value: &str| {
        // A text always takes what is written to it.
        writeln!(file, "{key}={}", quoted(value)).ok();
    };
    set("user", endpoint.user.as_deref().unwrap_or_default());
    if let Some(password) = &endpoint.password {
        set("password", password.reveal());
    }
    match (&session.host, &endpoint.place) {
        (Some(host), _) => {
            set("protocol", "tcp");
            set("host", &host.name);
            set("port", &host.port.to_string());
        }
        (None, Place::Socket(path, _)) => {
            set("protocol", "socket");
            set("socket", &path.to_string_lossy());
        }
        (None, _) => {}
    }
    let verified = session.tls.verified.unwrap_or(TlsMode::Off);
    if let (Some(certificate), Some(key)) = (&endpoint.tls.certificate, &endpoint.tls.key)
        && verified > TlsMode::Off
    {
        set("ssl-cert", &certificate.to_string_lossy());
        set("ssl-key", &key.to_string_lossy());
    }
    if let Some(authorities) = &endpoint.tls.authorities
        && verified >= TlsMode::VerifyCa
    {
        set("ssl-ca", &authorities.to_string_lossy());
    }
    file.push_str(match (flavour, verified) {
        (Flavour::MariaDb, TlsMode::Off) => "skip-ssl\n",
        (Flavour::MariaDb, TlsMode::Preferred | TlsMode::Required | TlsMode::VerifyCa) => {
            "ssl\nloose-skip-ssl-verify-server-cert\n"
        }
        (Flavour::MariaDb, TlsMode::VerifyFull) => "ssl\nssl-verify-server-cert\n",
        (Flavour::MySql, TlsMode::Off) => "ssl-mode=DISABLED\n",
        (Flavour::MySql, TlsMode::Preferred | TlsMode::Required) => "ssl-mode=REQUIRED\n",
        (Flavour::MySql, TlsMode::VerifyCa) => "ssl-mode=VERIFY_CA\n",
        (Flavour::MySql, TlsMode::VerifyFull) => "ssl-mode=VERIFY_IDENTITY\n",
    });
    file
}

/// A value as option files hold it.
fn quoted(value: &str) -> String {
    let mut out = String::from("\"");
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
