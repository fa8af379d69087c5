//! Connection strings as they stand in the files of real apps, and in files that are anything.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod any;
mod forms;

use backstay_database::connection::parse;
use backstay_database::discover::{self, Found};
use backstay_database::{Endpoint, Place};

/// What is found in files.
fn look(files: &[(&str, &str)]) -> Found {
    discover::files(files.iter().map(|(path, _)| *path), |path| {
        files.iter().find(|(name, _)| *name == path).map(|(_, text)| text.as_bytes().to_vec())
    })
}

/// What an endpoint says, on one line.
fn line(endpoint: &Endpoint) -> String {
    let place = match &endpoint.place {
        Place::Hosts(hosts) => {
            hosts.iter().map(|h| format!("{}:{}", h.name, h.port)).collect::<Vec<_>>().join(",")
        }
        Place::Socket(path, port) => format!("socket {} {port}", path.display()),
        Place::File(path) => format!("file {}", path.display()),
    };
    let or = |text: Option<&str>| text.unwrap_or("-").to_owned();
    format!(
        "{} {place} {} {} {}",
        endpoint.kind.name(),
        or(endpoint.database.as_deref()),
        or(endpoint.user.as_deref()),
        or(endpoint.password.as_ref().map(|p| p.reveal())),
    )
}

/// What was found, read again, and what was told: one line each.
fn told(found: &Found) -> Vec<String> {
    let strings = found.strings.iter().map(|s| {
        let endpoint = parse(s.value.reveal(), s.kind).unwrap();
        let note = s.note.as_deref().map(|note| format!(" ({note})")).unwrap_or_default();
        format!("{}: {} {}{note}", s.name, s.kind, line(&endpoint))
    });
    let unread = found.unread.iter().map(|u| format!("{} not: {}", u.name, u.why));
    strings.chain(unread).collect()
}

/// The same of one file.
fn one(path: &str, text: &str) -> Vec<String> {
    told(&look(&[(path, text)]))
}
