//! Connection strings in the files and the environment of an app: what linked databases it has without being told.
//!
//! Everything here works on contents that somebody else has read: nothing is opened, run or connected to. What is found
//! is a suggestion that a person confirms.
//!
//! Invariants: no content makes it panic or take long, and of a file only its first MiB is looked at. A string that is found
//! is one that [`connection::parse`] reads as what was meant: it is read back before it counts. What was seen and cannot be
//! read (a function, a variable of the environment, a placeholder) is told, never guessed. Values stand in [`Secret`]s
//! and nowhere else: not in notes, not in names.

mod appsettings;
mod azure;
mod cursor;
mod django;
mod dotenv;
mod parts;
mod rails;
mod variables;
mod webconfig;
mod wordpress;

use std::collections::BTreeSet;

use backstay_model::Secret;

use crate::connection::{self, ConnectionType};
use crate::endpoint::Kind;

/// Most of a file that is looked at.
pub const SIZE_MAX: usize = 1 << 20;
/// Most that is found in one app.
const FOUND_MAX: usize = 200;
/// Folders whose files are those of others: samples, packages, other versions.
const FOREIGN: [&str; 7] =
    ["node_modules", "vendor", "site-packages", ".git", ".venv", "venv", "__pycache__"];

/// A connection string that was found.
#[derive(Clone, Debug)]
pub struct Discovered {
    /// What it is called where it was found (`DATABASE_URL`, `DefaultConnection`), made unique.
    pub name: String,
    /// The type to link it with.
    pub kind: ConnectionType,
    /// The string.
    pub value: Secret,
    /// The file, or `environment`.
    pub found_in: String,
    /// What a person should know before it is linked.
    pub note: Option<String>,
}

/// Something that looks like a connection string and could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    /// What it is called there.
    pub name: String,
    /// The file, or `environment`.
    pub found_in: String,
    /// Why not, as the end of a sentence.
    pub why: String,
}

/// What an app holds.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// What can be linked.
    pub strings: Vec<Discovered>,
    /// What was seen and cannot be read.
    pub unread: Vec<Unread>,
}

/// Whether a file may hold connection strings, by its path beneath the app's home.
#[must_use]
pub fn is_candidate(path: &str) -> bool {
    !path.split('/').any(|part| FOREIGN.contains(&part)) && Form::of(path).is_some()
}

/// Looks into those of the paths beneath an app's home that are candidates, in their order. `read` gives the content of one;
/// none where it is not there or may not be read.
pub fn files<P: AsRef<str>>(
    paths: impl IntoIterator<Item = P>,
    mut read: impl FnMut(&str) -> Option<Vec<u8>>,
) -> Found {
    let mut found = Found::default();
    for path in paths {
        let path = path.as_ref();
        let Some(form) = Form::of(path).filter(|_| is_candidate(path)) else { continue };
        let Some(mut content) = read(path) else { continue };
        if content.len() > SIZE_MAX {
            found.unread("", path, "it is larger than 1 MiB, and only that much was looked at");
            content.truncate(SIZE_MAX);
        }
        let text = String::from_utf8_lossy(content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&content));
        match form {
            Form::Environment => {
                // What a special file does not say, the general one beside it does.
                let general = general(path).and_then(&mut read).unwrap_or_default();
                let general = general.get(..SIZE_MAX).unwrap_or(&general);
                dotenv::look(&text, &String::from_utf8_lossy(general), path, &mut found);
            }
            Form::AppSettings => appsettings::look(&text, path, &mut found),
            Form::WebConfig => webconfig::look(&text, path, &mut found),
            Form::WordPress => wordpress::look(&content, path, &mut found),
            Form::Django => django::look(&text, path, &mut found),
            Form::Rails => rails::look(&text, path, &mut found),
        }
    }
    found.in_order()
}

/// Looks at variables of an environment, those with the prefixes of a cloud's app service among them.
pub fn environment<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Found {
    let mut found = Found::default();
    let all = variables.into_iter().map(|(k, v)| (k.to_owned(), Some(v.to_owned()))).collect();
    variables::look(&all, &|_| true, "environment", "", &mut found);
    found.in_order()
}

/// What kind of file it is.
#[derive(Clone, Copy)]
enum Form {
    Environment,
    AppSettings,
    WebConfig,
    WordPress,
    Django,
    Rails,
}

impl Form {
    fn of(path: &str) -> Option<Self> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let lower = name.to_ascii_lowercase();
        let folder = folder.rsplit('/').next().unwrap_or_default();
        match lower.as_str() {
            ".env" | ".env.local" | ".env.production" => Some(Form::Environment),
            "web.config" => Some(Form::WebConfig),
            "wp-config.php" => Some(Form::WordPress),
            "settings.py" => Some(Form::Django),
            "database.yml" if folder == "config" => Some(Form::Rails),
            _ if folder == "settings" && name.ends_with(".py") => Some(Form::Django),
            _ if lower.starts_with("appsettings.") && lower.ends_with(".json") => Some(Form::AppSettings),
            _ => None,
        }
    }
}

/// The `.env` beside a `.env.local`.
fn general(path: &str) -> Option<&str> {
    let end = path.len() - path.rsplit('/').next()?.len();
    let general = path.get(..end + ".env".len())?;
    (general.len() < path.len()).then_some(general)
}

/// A path in a file, as one beneath the home; none where it leads out of it.
fn beneath(folder: &str, path: &str) -> Option<String> {
    if path.starts_with('/') {
        return Some(path.to_owned());
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in folder.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

impl Found {
    /// Adds a string as it stands there, when it is one of a database. `typed` where its kind is known; `otherwise` where
    /// nothing in it may tell the kind.
    fn string(
        &mut self,
        name: &str,
        value: &str,
        typed: Option<ConnectionType>,
        otherwise: Option<ConnectionType>,
        found_in: &str,
    ) {
        let value = value.trim();
        if let Some(why) = placeholder(value) {
            return self.unread(name, found_in, why);
        }
        let typed = typed.unwrap_or(ConnectionType::Custom);
        let read = connection::parse(value, typed).map(|endpoint| (endpoint, None));
        let read = read.or_else(|e| match otherwise.filter(|_| typed == ConnectionType::Custom) {
            Some(otherwise) => {
                let note = format!("Nothing in it tells the kind of database; taken for one of {otherwise}");
                connection::parse(value, otherwise)
                    .map(|endpoint| (endpoint, Some(note)))
                    .map_err(|_second| e)
            }
            None => Err(e),
        });
        match read {
            Ok((endpoint, note)) => {
                self.add(name, of_kind(endpoint.kind), Secret::new(value), found_in, note)
            }
            Err(_) if is_other_address(value) => {
                let why = "it is an address of something else than a database that can be linked";
                self.unread(name, found_in, why);
            }
            Err(e) => self.unread(name, found_in, e.message()),
        }
    }

    fn add(&mut self, name: &str, kind: ConnectionType, value: Secret, found_in: &str, note: Option<String>) {
        let known = self.strings.iter().any(|s| s.value.reveal() == value.reveal());
        if !known && self.strings.len() < FOUND_MAX {
            let found_in = found_in.to_owned();
            self.strings.push(Discovered { name: tidy(name), kind, value, found_in, note });
        }
    }

    fn unread(&mut self, name: &str, found_in: &str, why: impl Into<String>) {
        if self.unread.len() < FOUND_MAX {
            self.unread.push(Unread { name: tidy(name), found_in: found_in.to_owned(), why: why.into() });
        }
    }

    /// Names made unique.
    fn in_order(mut self) -> Self {
        let mut taken = BTreeSet::new();
        for string in &mut self.strings {
            let stem = string.name.clone();
            let mut number = 2;
            while !taken.insert(string.name.to_lowercase()) {
                string.name = format!("{stem}_{number}");
                number += 1;
            }
        }
        self
    }
}

/// The type to link a database of that kind with.
fn of_kind(kind: Kind) -> ConnectionType {
    match kind {
        Kind::PostgreSql => ConnectionType::PostgreSql,
        Kind::MySql => ConnectionType::MySql,
        Kind::SqlServer => ConnectionType::SqlServer,
        Kind::Sqlite => ConnectionType::Custom,
    }
}

/// Why a value is none yet; none where it looks like one.
fn placeholder(value: &str) -> Option<&'static str> {
    let lower = value.to_ascii_lowercase();
    let marks =
        ["{your_password}", "{your_username}", "#{", "<%", "${", "$(", "%(", "{{", "<password>", "<your"];
    match value {
        "" => Some("it is empty"),
        _ if marks.iter().any(|mark| lower.contains(mark)) => {
            Some("a part of it is filled in by something else")
        }
        _ => None,
    }
}

/// Whether it is an address, of a kind that is not known.
fn is_other_address(value: &str) -> bool {
    let scheme = value.split_once("://").map(|(scheme, _)| scheme).unwrap_or_default();
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
    let base = scheme.split_once('+').map_or(scheme, |(base, _driver)| base);
    !scheme.is_empty() && scheme.bytes().all(plain) && variables::kind(base).is_none()
}

/// A name that may be one: short, and of characters that need no quotes.
fn tidy(name: &str) -> String {
    let plain = |c: char| if c.is_alphanumeric() || matches!(c, '_' | '-' | '.') { c } else { '_' };
    name.chars().take(100).map(plain).collect()
}
