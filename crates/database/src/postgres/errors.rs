//! What PostgreSQL, its driver and its tools say, as our errors.
//!
//! Invariants: the server's own messages are kept; rows never are (what a tool says after `DETAIL` and `CONTEXT` may quote
//! them). Codes come from SQLSTATE and from the TLS library's own errors. Texts are looked at only where there is
//! nothing else: at the tools' (which run with `LC_ALL=C`), and where one SQLSTATE means two things.

use std::error::Error as StdError;
use std::io;

use backstay_model::{Code, Error};
use rustls::{AlertDescription, CertificateError};

use crate::tool::Ended;

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum During {
    /// A connection was being made.
    Connecting,
    /// A statement was being run.
    Working,
}

/// The driver's error. `what` names the database or the step.
pub(super) fn driver(error: postgres::Error, during: During, what: &str) -> Error {
    let (code, said) = match error.as_db_error() {
        Some(told) => (server(told.code().code(), told.message()), told.message().to_owned()),
        None => transport(&error, during),
    };
    let message = match during {
        During::Connecting => format!("Cannot connect to {what}: {said}"),
        During::Working => format!("{what}: {said}"),
    };
    Error::new(code, message)
}

/// The code of an error that the server has sent.
fn server(state: &str, message: &str) -> Code {
    let has = |text: &str| message.contains(text);
    match state {
        "28000" | "28P01" if has("no encryption") => Code::DatabaseTlsRequired,
        "28000" | "28P01" if has("client certificate") || has("certificate authentication failed") => {
            Code::DatabaseClientCertificate
        }
        "28000" | "28P01" => Code::DatabaseLoginFailed,
        "3D000" => Code::DatabaseNotFound,
        "42501" => Code::DatabasePrivileges,
        "53100" => Code::DatabaseFull,
        "53300" => Code::DatabaseBusy,
        "55006" => Code::DatabaseBusy,
        "55P03" => Code::DatabaseLockTimeout,
        "57014" if has("timeout") => Code::DatabaseLockTimeout,
        "57014" => Code::Cancelled,
        // Of a standby: what is read was removed at the primary.
        "40001" if has("conflict with recovery") => Code::DatabaseInterrupted,
        "57P03" => Code::DatabaseUnreachable,
        _ if state.starts_with("57P") || state.starts_with("08") => Code::DatabaseInterrupted,
        _ => Code::DatabaseFailed,
    }
}

/// The code and the words of an error of the way to the server.
fn transport(error: &postgres::Error, during: During) -> (Code, String) {
    let mut last = error.to_string();
    let mut cause: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(found) = cause {
        last = found.to_string();
        let inside = found.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = inside.and_then(|e| e.downcast_ref::<rustls::Error>());
        if let Some(tls) = tls.or_else(|| found.downcast_ref::<rustls::Error>()) {
            return (certificate(tls, during), tls.to_string());
        }
        cause = found.source();
    }
    let code = match last.as_str() {
        "server does not support TLS" => Code::DatabaseTlsUnavailable,
        "password missing" => Code::DatabaseLoginFailed,
        _ if error.to_string().starts_with("authentication error") => Code::DatabaseLoginFailed,
        _ if during == During::Connecting => Code::DatabaseUnreachable,
        _ => Code::DatabaseInterrupted,
    };
    let last = match code {
        Code::DatabaseLoginFailed if last == "password missing" => {
            "the server asks for a password, and there is none".to_owned()
        }
        _ => last,
    };
    (code, last)
}

fn certificate(error: &rustls::Error, during: During) -> Code {
    use CertificateError as C;
    match error {
        rustls::Error::InvalidCertificate(
            C::Expired | C::ExpiredContext { .. } | C::NotValidYet | C::NotValidYetContext { .. },
        ) => Code::DatabaseCertificateExpired,
        rustls::Error::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. }) => {
            Code::DatabaseCertificateName
        }
        rustls::Error::InvalidCertificate(_) => Code::DatabaseCertificateUnknown,
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRevoked
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::DecryptError,
        ) => Code::DatabaseClientCertificate,
        _ if during == During::Connecting => Code::DatabaseUnreachable,
        _ => Code::DatabaseInterrupted,
    }
}

/// What a tool says, and what it means. The first that is found counts.
const TOOLS: [(&str, Code); 32] = [
    ("due to conflict with recovery", Code::DatabaseInterrupted),
    ("server version mismatch", Code::DatabaseToolTooOld),
    ("unsupported version", Code::DatabaseToolTooOld),
    ("unrecognized data block type", Code::DatabaseDumpUnusable),
    ("could not read from input file", Code::DatabaseDumpUnusable),
    ("does not appear to be a valid archive", Code::DatabaseDumpUnusable),
    ("corrupt", Code::DatabaseDumpUnusable),
    ("entry ID", Code::DatabaseDumpUnusable),
    ("found unexpected block ID", Code::DatabaseDumpUnusable),
    ("unexpected section code", Code::DatabaseDumpUnusable),
    ("bad dumpId", Code::DatabaseDumpUnusable),
    ("too short", Code::DatabaseDumpUnusable),
    ("invalid byte sequence", Code::DatabaseDumpUnusable),
    ("No space left on device", Code::DatabaseFull),
    ("Disk quota exceeded", Code::DatabaseFull),
    ("canceling statement due to lock timeout", Code::DatabaseLockTimeout),
    ("canceling statement due to statement timeout", Code::DatabaseLockTimeout),
    ("could not obtain lock", Code::DatabaseLockTimeout),
    ("too many connections", Code::DatabaseBusy),
    ("remaining connection slots", Code::DatabaseBusy),
    ("password authentication failed", Code::DatabaseLoginFailed),
    ("permission denied", Code::DatabasePrivileges),
    ("must be owner", Code::DatabasePrivileges),
    ("must be superuser", Code::DatabasePrivileges),
    ("must be member", Code::DatabasePrivileges),
    ("row-level security", Code::DatabaseIncomplete),
    ("invalid snapshot identifier", Code::DatabaseInterrupted),
    ("terminating connection", Code::DatabaseInterrupted),
    ("server closed the connection", Code::DatabaseInterrupted),
    ("EOF detected", Code::DatabaseInterrupted),
    ("PQgetCopyData() failed", Code::DatabaseInterrupted),
    ("connection to server", Code::DatabaseInterrupted),
];

/// The error of a tool that has failed.
pub(super) fn tool(ended: &Ended) -> Error {
    let complaints = complaints(&ended.stderr);
    let code = TOOLS.iter().find(|(text, _)| complaints.iter().any(|line| line.contains(text)));
    let said = match complaints.first() {
        Some(first) => format!(": {first}"),
        None => String::new(),
    };
    let message = format!("`{}` ended with {}{said}", ended.program, ended.status_text());
    let error = match (code, complaints.is_empty()) {
        (Some((_, code)), _) => Error::new(*code, message),
        // It was killed, or could not even say why.
        (None, true) => Error::new(Code::DatabaseInterrupted, message),
        (None, false) => Error::new(Code::DatabaseFailed, message),
    };
    match complaints.iter().find_map(|line| extension(line)) {
        Some(advice) => error.advise(advice),
        None => error,
    }
}

/// The lines that say what went wrong, without those that may quote rows.
fn complaints(stderr: &str) -> Vec<&str> {
    let useful = |line: &&str| {
        line.contains("error:")
            || line.contains("ERROR:")
            || line.contains("FATAL:")
            || line.contains("detail:")
    };
    stderr
        .lines()
        .filter(useful)
        .map(|line| line.split_once("error: ").map_or(line, |(_, rest)| rest))
        .collect()
}

/// What to do when an extension is in the way.
fn extension(line: &str) -> Option<String> {
    let name = |after: &str| line.split_once(after)?.1.split('"').next().map(str::to_owned);
    if let Some(name) = name("permission denied to create extension \"") {
        return Some(format!(
            "Only a superuser may create the extension {name}: use one in the connection string for the restore."
        ));
    }
    name("extension \"")
        .filter(|_| line.contains("is not available"))
        .map(|name| format!("Install the extension {name} at the server, then run it again."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    fn told(stderr: &str) -> Error {
        tool(&Ended {
            program: "pg_dump".to_owned(),
            status: std::process::ExitStatus::from_raw(256),
            stderr: stderr.to_owned(),
        })
    }

    #[test]
    fn what_tools_say_has_a_code() {
        for (stderr, code) in [
            (
                "pg_dump: error: aborting because of server version mismatch\npg_dump: detail: server version: 16.4; pg_dump version: 15.18\n",
                Code::DatabaseToolTooOld,
            ),
            (
                "pg_dump: error: Dumping the contents of table \"posts\" failed: PQgetCopyData() failed.\npg_dump: detail: Error message from server: SSL SYSCALL error: EOF detected\n",
                Code::DatabaseInterrupted,
            ),
            ("pg_restore: error: could not read from input file: end of file\n", Code::DatabaseDumpUnusable),
            ("", Code::DatabaseInterrupted),
            ("pg_dump: error: something else\n", Code::DatabaseFailed),
        ] {
            assert_eq!(told(stderr).code(), code, "{stderr}");
        }
    }

    #[test]
    fn rows_are_not_repeated() {
        let error = told(
            "pg_restore: error: COPY failed for table \"t\": ERROR:  duplicate key value violates unique constraint \"k\"\nDETAIL:  Key (email)=(a@b.c) already exists.\nCONTEXT:  COPY t, line 3\n",
        );
        assert!(!format!("{error:?}").contains("a@b.c"));
    }

    #[test]
    fn an_extension_is_named_in_the_advice() {
        let error = told(
            "pg_restore: error: could not execute query: ERROR:  permission denied to create extension \"plperlu\"\n",
        );
        assert_eq!(error.code(), Code::DatabasePrivileges);
        assert!(error.advice().contains("plperlu"));
    }
}
