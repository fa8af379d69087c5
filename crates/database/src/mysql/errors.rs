//! What the server and its tools say, told apart into codes.
//!
//! Invariant: numbers decide, words only where there is no number (certificates, what a tool says). Nothing here repeats what
//! could hold a password: neither a statement nor the line of a grant.

use backstay_model::{Code, Error};
use rustls::{AlertDescription, CertificateError};

use crate::tool::Ended;

/// The code of an error number of the server or of the client library; `connecting` where it came before a statement was
/// run: the same number then says that the database is not shown.
pub(super) fn code_of(number: u16, connecting: bool) -> Code {
    match number {
        1049 => Code::DatabaseNotFound,
        1044 if connecting => Code::DatabaseNotFound,
        1045 | 1130 | 1251 | 1275 | 1524 | 1698 | 1820 | 1862 | 4151 => Code::DatabaseLoginFailed,
        1044 | 1142 | 1143 | 1227 | 1347 | 1370 | 1410 | 1419 => Code::DatabasePrivileges,
        1040 | 1129 | 1203 | 1226 => Code::DatabaseBusy,
        1205 | 1213 => Code::DatabaseLockTimeout,
        1021 | 1114 => Code::DatabaseFull,
        3159 => Code::DatabaseTlsRequired,
        1053 | 1077 | 1079 | 1152 | 1158..=1161 | 1184 | 1317 | 1412 | 1927 | 2006 | 2013 | 2055 => {
            Code::DatabaseInterrupted
        }
        2001..=2005 => Code::DatabaseUnreachable,
        _ => Code::DatabaseFailed,
    }
}

/// The number of an error of the server.
pub(super) fn number(error: &::mysql::Error) -> Option<u16> {
    match error {
        ::mysql::Error::MySqlError(told) => Some(told.code),
        _ => None,
    }
}

/// The error of a connection or a statement; `doing` says in a few words what was being done.
pub(super) fn from_driver(error: ::mysql::Error, doing: &str, connecting: bool) -> Error {
    match error {
        ::mysql::Error::MySqlError(told) => {
            let code =
                if is_full(&told.message) { Code::DatabaseFull } else { code_of(told.code, connecting) };
            Error::new(code, format!("{doing}: the server says {}: {}", told.code, told.message))
        }
        error => match tls_code(&error) {
            Some(code) => Error::new(code, format!("{doing}: {}", tls_words(code))).because(error),
            None if connecting => {
                Error::new(Code::DatabaseUnreachable, format!("{doing}: no connection")).because(error)
            }
            None => {
                let message = format!("{doing}: the connection to the server broke");
                Error::new(Code::DatabaseInterrupted, message).because(error)
            }
        },
    }
}

/// Errors of the server's disk come with many numbers; the system's own stands in the text.
fn is_full(message: &str) -> bool {
    message.contains("No space left on device")
        || message.contains("errno: 28")
        || message.contains("error 28")
}

fn tls_code(error: &::mysql::Error) -> Option<Code> {
    use ::mysql::error::{DriverError, tls::TlsError};
    match error {
        ::mysql::Error::DriverError(DriverError::TlsNotSupported) => Some(Code::DatabaseTlsUnavailable),
        ::mysql::Error::TlsError(TlsError::Tls(error)) => Some(rustls_code(error)),
        ::mysql::Error::TlsError(_) => Some(Code::DatabaseCertificateUnknown),
        ::mysql::Error::IoError(error) => io_code(error),
        ::mysql::Error::CodecError(error) => {
            let cause = std::error::Error::source(error);
            cause.and_then(|cause| cause.downcast_ref::<std::io::Error>()).and_then(io_code)
        }
        _ => None,
    }
}

fn io_code(error: &std::io::Error) -> Option<Code> {
    error.get_ref()?.downcast_ref::<rustls::Error>().map(rustls_code)
}

fn rustls_code(error: &rustls::Error) -> Code {
    match error {
        rustls::Error::InvalidCertificate(reason) => match reason {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Code::DatabaseCertificateName
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Code::DatabaseCertificateExpired,
            _ => Code::DatabaseCertificateUnknown,
        },
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied,
        )
        | rustls::Error::InconsistentKeys(_) => Code::DatabaseClientCertificate,
        rustls::Error::NoCertificatesPresented => Code::DatabaseCertificateUnknown,
        _ => Code::DatabaseTlsUnavailable,
    }
}

fn tls_words(code: Code) -> &'static str {
    match code {
        Code::DatabaseCertificateName => "the certificate of the server is of another name",
        Code::DatabaseCertificateExpired => "the certificate of the server is not valid at this time",
        Code::DatabaseCertificateUnknown => {
            "the certificate of the server is of no authority that is believed"
        }
        Code::DatabaseClientCertificate => "the certificate of this client is refused or cannot be used",
        _ => "the server has no TLS that could be used",
    }
}

/// The error of a tool that has ended badly, from what it said.
pub(super) fn from_tool(ended: &Ended, doing: &str) -> Error {
    let said = words(&ended.stderr);
    let code = match number_in(&said) {
        _ if is_full(&ended.stderr) => Code::DatabaseFull,
        Some(2026) => tool_tls(&said),
        Some(number) => code_of(number, said.contains("when trying to connect")),
        None if ended.status.code().is_none() => Code::DatabaseInterrupted,
        None => Code::DatabaseFailed,
    };
    // The server repeats names where it refuses, and content where it does not understand.
    let names = matches!(code, Code::DatabasePrivileges | Code::DatabaseLoginFailed | Code::DatabaseNotFound);
    let said = if names || ended.program.contains("dump") { said } else { without_quotes(&said) };
    let how = ended.status_text();
    let told = if said.is_empty() { String::new() } else { format!(": {said}") };
    Error::new(code, format!("{doing}: `{}` ended with {how}{told}", ended.program))
}

fn without_quotes(said: &str) -> String {
    let parts = said.split('\'').enumerate();
    let plain = parts.map(|(i, part)| if i % 2 == 0 { part } else { "'…'" });
    plain.collect()
}

fn tool_tls(said: &str) -> Code {
    let said = said.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if has(&["eof", "reset", "broken pipe"]) {
        Code::DatabaseInterrupted
    } else if has(&["expired", "not yet valid"]) {
        Code::DatabaseCertificateExpired
    } else if has(&["validation of ssl server certificate failed", "hostname", "does not match"]) {
        Code::DatabaseCertificateName
    } else if has(&["private key", "alert"]) {
        Code::DatabaseClientCertificate
    } else if has(&["certificate"]) {
        Code::DatabaseCertificateUnknown
    } else {
        Code::DatabaseTlsUnavailable
    }
}

/// The first number that reads as one of an error: `Got error: 1045: …`, `Error 2013: …`, `ERROR 1045 (28000) …`, `… (1044)`.
fn number_in(said: &str) -> Option<u16> {
    let after = ["Got error: ", "Error ", "ERROR ", "error: "].iter().find_map(|word| {
        said.match_indices(word).find_map(|(at, _)| leading(said.get(at + word.len()..).unwrap_or_default()))
    });
    let in_brackets =
        || said.match_indices('(').find_map(|(at, _)| leading(said.get(at + 1..).unwrap_or_default()));
    after.or_else(in_brackets)
}

fn leading(text: &str) -> Option<u16> {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok().filter(|number| *number >= 1000)
}

/// What a tool said, as one line. The client repeats the statement that failed, with all its content: of what it says only
/// the lines count that begin as an error does.
fn words(stderr: &str) -> String {
    let is_error = |line: &&str| line.starts_with("ERROR ");
    let all = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let short = |line: &str| line.chars().take(400).collect::<String>();
    let errors: Vec<String> = all().filter(is_error).map(short).collect();
    match errors.is_empty() {
        false => errors.join("; "),
        true => all().take(8).map(short).collect::<Vec<_>>().join("; "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_found_in_what_each_tool_says() {
        let cases = [
            ("mariadb-dump: Got error: 1045: \"Access denied\" when trying to connect", Some(1045)),
            (
                "mariadb-dump: Error 2013: Lost connection to server when dumping table `t` at row: 3",
                Some(2013),
            ),
            ("ERROR 1142 (42000) at line 3: CREATE command denied", Some(1142)),
            (
                "mariadb-dump: Couldn't execute 'show events': Access denied for user 'a'@'%' (1044)",
                Some(1044),
            ),
            ("mariadb-dump: Got errno 28 on write", None),
        ];
        for (said, number) in cases {
            assert_eq!(number_in(said), number, "{said}");
        }
    }

    #[test]
    fn the_same_refusal_means_another_thing_before_the_first_statement() {
        assert_eq!(code_of(1044, true), Code::DatabaseNotFound);
        assert_eq!(code_of(1044, false), Code::DatabasePrivileges);
    }

    #[test]
    fn a_statement_that_the_client_quotes_is_not_repeated() {
        let said = "--------------\nINSERT INTO t VALUES ('secret')\n--------------\n\nERROR 1114 (HY000) at line 9: full";
        assert_eq!(words(said), "ERROR 1114 (HY000) at line 9: full");
        assert_eq!(without_quotes("near 'secret' at line 1"), "near '…' at line 1");
    }
}
