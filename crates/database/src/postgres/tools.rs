//! `pg_dump` and `pg_restore`: which of them, and how they reach the server.

use std::path::Path;

use backstay_model::{Code, Error, Result};

use super::connect::{Reached, Session};
use super::{errors, tls};
use crate::adapter::{Options, Tool};
use crate::endpoint::{Endpoint, TlsMode};
use crate::tool::{Found, Limits, Program, find};

/// Where they are beside PATH.
const USUAL: [&str; 4] =
    ["/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/usr/local/pgsql/bin", "/usr/libexec/postgresql*"];

/// The limits of a tool.
pub(super) fn limits(options: &Options) -> Limits {
    Limits { cancel: options.cancel.clone(), idle: options.idle }
}

/// The oldest tool of that name that is not older than `major`.
pub(super) fn choose(name: &str, major: u32, options: &Options) -> Result<Tool> {
    let package = format!("postgresql-client-{major}");
    let found: Vec<Found> = find(&[name], &options.tools, &USUAL, &package, &limits(options))?;
    let mut tools: Vec<(u32, Tool)> = found
        .into_iter()
        .filter_map(|found| {
            let version = number(&found.version)?.to_owned();
            let tool = Tool { path: found.path.to_string_lossy().into_owned(), version };
            Some((self::major(&tool.version)?, tool))
        })
        .collect();
    tools.sort_by_key(|(major, _)| *major);
    let newest = tools.last().map(|(_, tool)| tool.version.clone()).unwrap_or_default();
    tools.into_iter().find(|(found, _)| *found >= major).map(|(_, tool)| tool).ok_or_else(|| {
        let message = format!("`{name}` {newest} is too old: {major} or newer is needed");
        Error::new(Code::DatabaseToolTooOld, message).advise(format!("Install the package {package}."))
    })
}

/// `pg_dump (PostgreSQL) 15.18 (Debian …)` → `15.18`.
fn number(said: &str) -> Option<&str> {
    said.split_once("(PostgreSQL) ")?.1.split_whitespace().next()
}

/// `15.18`, `16beta1` → the major version.
pub(super) fn major(version: &str) -> Option<u32> {
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version.get(..digits)?.parse().ok()
}

/// A tool that is told how to reach the server that a session has reached, and a database there.
pub(super) fn program(
    tool: &Tool,
    endpoint: &Endpoint,
    session: &Session,
    database: Option<&str>,
    options: &Options,
) -> Result<Program> {
    let mut program = Program::new(&tool.path);
    let mut words = Words::default();
    match &session.reached {
        Reached::Host(name, port, address) => {
            words.add("host", name).add("hostaddr", &address.to_string()).add("port", &port.to_string());
        }
        Reached::Socket(folder, port) => {
            words.path("host", folder)?.add("port", &port.to_string());
        }
    }
    if let Some(user) = &endpoint.user {
        words.add("user", user);
    }
    if let Some(database) = database.or(endpoint.database.as_deref()) {
        words.add("dbname", database);
    }
    if let Some(password) = &endpoint.password {
        let line = password_line(password.reveal())?;
        words.add("passfile", &program.secret(line.as_bytes())?);
    }
    add_tls(&mut program, &mut words, endpoint, session.tls)?;
    words
        .add("connect_timeout", &options.connect.as_secs().max(1).to_string())
        .add("keepalives_idle", "30")
        .add("keepalives_interval", "10")
        .add("keepalives_count", "3")
        .add("gssencmode", "disable")
        .add("application_name", "backstay");
    if session.ends_idle {
        // A pooler in between may not take options: only where they are needed.
        words.add("options", "-c idle_session_timeout=0");
    }
    program.args(["--no-password", "-d", &words.0]);
    Ok(program)
}

fn add_tls(program: &mut Program, words: &mut Words, endpoint: &Endpoint, mode: TlsMode) -> Result<()> {
    words.add(
        "sslmode",
        match mode {
            TlsMode::Off => "disable",
            TlsMode::Preferred => "prefer",
            TlsMode::Required => "require",
            TlsMode::VerifyCa => "verify-ca",
            TlsMode::VerifyFull => "verify-full",
        },
    );
    if mode == TlsMode::Off {
        return Ok(());
    }
    if let Some(authorities) = tls::authorities(&endpoint.tls)? {
        words.path("sslrootcert", &authorities)?;
    }
    if let (Some(certificate), Some(key)) = (&endpoint.tls.certificate, &endpoint.tls.key) {
        words.path("sslcert", certificate)?;
        // libpq refuses a key whose owner or mode it does not like; the driver has taken it already.
        let bytes = std::fs::read(key).map_err(|e| {
            let message = format!("The key of the client {} cannot be read", key.display());
            Error::new(Code::DatabaseClientCertificate, message).because(e)
        })?;
        let bytes = zeroize::Zeroizing::new(bytes);
        words.add("sslkey", &program.secret(&bytes)?);
    }
    Ok(())
}

/// The error of a tool.
pub(super) fn explain() -> crate::tool::Explain {
    Box::new(errors::tool)
}

/// The line of a password file that gives this password everywhere.
fn password_line(password: &str) -> Result<zeroize::Zeroizing<String>> {
    if password.contains(['\n', '\r', '\0']) {
        let message = "The password holds an end of line, which the tools of PostgreSQL cannot be given";
        return Err(Error::new(Code::InvalidValue, message));
    }
    let escaped = zeroize::Zeroizing::new(password.replace('\\', "\\\\").replace(':', "\\:"));
    Ok(zeroize::Zeroizing::new(format!("*:*:*:*:{}\n", *escaped)))
}

/// A connection string of libpq's own form.
#[derive(Default)]
struct Words(String);

impl Words {
    fn add(&mut self, key: &str, value: &str) -> &mut Self {
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        let value = value.replace('\\', "\\\\").replace('\'', "\\'");
        self.0.push_str(&format!("{key}='{value}'"));
        self
    }

    fn path(&mut self, key: &str, path: &Path) -> Result<&mut Self> {
        let text = path.to_str().ok_or_else(|| {
            Error::new(Code::InvalidValue, format!("The path {} is not text", path.display()))
        })?;
        Ok(self.add(key, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(number("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some("15.18"));
        assert_eq!(number("pg_dump (PostgreSQL) 16beta1"), Some("16beta1"));
        assert_eq!((major("16beta1"), major("9.6.24"), major("15.18")), (Some(16), Some(9), Some(15)));
    }

    #[test]
    fn words_and_passwords_are_escaped() {
        let mut words = Words::default();
        words.add("host", "/a b").add("user", r"o'ne\two");
        assert_eq!(words.0, r"host='/a b' user='o\'ne\\two'");
        assert_eq!(password_line(r"a:b\c").unwrap().as_str(), "*:*:*:*:a\\:b\\\\c\n");
        assert_eq!(password_line("a\nb").unwrap_err().code(), Code::InvalidValue);
    }
}
