//! Settings and connection strings of apps: given, listed without their values, read as linked databases, and handed to
//! the commands that Backstay starts.
//!
//! Invariants: a value reaches the catalog sealed ([`crate::sealed`]) for its app, slot, kind and name, and is opened only
//! where it is used: to start a command, to read where a connection string points, to write a point, or for a person
//! who asks to see it. No error, view or record holds a value. Crash: each change is one transaction of the catalog.
//! Locks: none.

mod document;
mod environment;
mod snapshot;

use backstay_catalog::{App, PRODUCTION, SettingKind, SettingRecord};
use backstay_database::{ConnectionType, Endpoint, connection};
use backstay_model::{AppName, Code, Error, Result, Secret};
use jiff::Timestamp;
use serde::Serialize;

use crate::recover::Places;
use crate::sealed::{self, KeyEncryptionKey, opening_keys};
use crate::state::Engine;

pub use snapshot::{SettingName, SettingsDiff, SettingsSnapshot};

/// Longest name.
const NAME_MAX: usize = 128;
/// Longest value, in bytes: what a process takes as one variable, with room for its name.
const VALUE_MAX: usize = 64 << 10;
/// Most settings and connection strings of an app together.
const COUNT_MAX: usize = 1_000;

/// A setting as shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SettingView {
    /// Its name.
    pub name: String,
    /// Whether it belongs to the slot, not to what runs in it.
    pub slot_sticky: bool,
    /// When it was given.
    pub changed: Timestamp,
}

/// A setting that was given.
#[derive(Clone, Debug, Serialize)]
pub struct SettingSet {
    /// The setting.
    pub setting: SettingView,
    /// Whether it had a value before.
    pub replaced: bool,
    /// Where everything is, when the state was made to keep its key.
    pub first_run: Option<Places>,
}

/// A connection string and where it points.
#[derive(Debug)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: ConnectionType,
    /// Where it points; the error where that cannot be read off it: it is no linked database then.
    pub endpoint: Result<Endpoint>,
    /// Whether it belongs to the slot, not to what runs in it.
    pub sticky: bool,
    /// When it was given.
    pub changed: Timestamp,
}

/// A connection string that was given.
#[derive(Debug)]
pub struct ConnectionSet {
    /// The connection string.
    pub link: Link,
    /// Whether it had a value before.
    pub replaced: bool,
    /// Where everything is, when the state was made to keep its key.
    pub first_run: Option<Places>,
}

/// The record that a value is sealed for.
pub(crate) fn record_of(app: &AppName, slot: &str, kind: SettingKind, name: &str) -> String {
    format!("app/{app}/{slot}/{}/{name}", kind.word())
}

/// Whether a text is the name of a setting or connection string.
fn is_name(text: &str) -> bool {
    (1..=NAME_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-:".contains(&b))
}

fn check_name(kind: SettingKind, name: &str) -> Result<()> {
    if is_name(name) {
        return Ok(());
    }
    let message = format!(
        "`{}` is not a name of a {kind}: 1 to {NAME_MAX} characters of a-z, A-Z, 0-9, `_`, `.`, `-` and `:`",
        name.escape_debug()
    );
    Err(Error::new(Code::InvalidValue, message))
}

fn check_value(kind: SettingKind, value: &Secret) -> Result<()> {
    let bad = |why: &str| Error::new(Code::InvalidValue, format!("The value of the {kind} {why}"));
    match value.reveal() {
        text if text.len() > VALUE_MAX => Err(bad(&format!("is longer than {VALUE_MAX} bytes"))),
        text if text.contains('\0') => Err(bad("holds a zero byte, which no process takes")),
        "" if kind == SettingKind::Connection => Err(bad("is empty")),
        _ => Ok(()),
    }
}

fn type_of(record: &SettingRecord) -> Result<ConnectionType> {
    let text = record.connection_type.as_deref().unwrap_or_default();
    text.parse().map_err(|_unknown_type: Error| {
        let message =
            format!("The connection string `{}` has a type that this version does not know", record.name);
        Error::new(Code::StateUnsupported, message)
    })
}

fn view(record: &SettingRecord) -> SettingView {
    SettingView { name: record.name.clone(), slot_sticky: record.sticky, changed: record.changed }
}

/// Opens the value of a record of an app.
fn open(keys: &[KeyEncryptionKey], app: &AppName, record: &SettingRecord) -> Result<Secret> {
    sealed::open(keys, &record_of(app, PRODUCTION, record.kind, &record.name), &record.value)
}

/// A connection string with where it points.
fn link(keys: &[KeyEncryptionKey], app: &AppName, record: &SettingRecord) -> Result<(Link, Option<Secret>)> {
    let kind = type_of(record)?;
    let value = open(keys, app, record);
    let endpoint = match &value {
        Ok(value) => connection::parse(value.reveal(), kind),
        Err(e) => Err(Error::new(e.code(), e.message().to_owned()).advise(e.advice().to_owned())),
    };
    let link =
        Link { name: record.name.clone(), kind, endpoint, sticky: record.sticky, changed: record.changed };
    Ok((link, value.ok()))
}

impl Engine {
    /// Gives an app a setting. Whether it belongs to the slot stays as it was where that is not said.
    pub fn set_setting(
        &self,
        app: &AppName,
        name: &str,
        value: &Secret,
        sticky: Option<bool>,
    ) -> Result<SettingSet> {
        check_name(SettingKind::Setting, name)?;
        check_value(SettingKind::Setting, value)?;
        let stored = self.store(app, (SettingKind::Setting, name), value, |before| {
            (None, sticky.unwrap_or_else(|| before.is_some_and(|b| b.sticky)))
        })?;
        Ok(SettingSet {
            setting: view(&stored.record),
            replaced: stored.replaced,
            first_run: stored.first_run,
        })
    }

    /// Gives an app a connection string. Its type, and whether it belongs to the slot, stay as they were where that is not
    /// said; the first time they are `Custom` and no. `InvalidValue` when it is none of its type; one of the type
    /// `Custom` may be anything.
    pub fn set_connection(
        &self,
        app: &AppName,
        name: &str,
        value: &Secret,
        kind: Option<ConnectionType>,
        sticky: Option<bool>,
    ) -> Result<ConnectionSet> {
        check_name(SettingKind::Connection, name)?;
        check_value(SettingKind::Connection, value)?;
        let before = self.setting_records(app)?.into_iter();
        let mut before = before.filter(|r| r.kind == SettingKind::Connection && r.name == name);
        let kind = match (kind, before.next()) {
            (Some(kind), _) => kind,
            (None, Some(before)) => type_of(&before)?,
            (None, None) => ConnectionType::Custom,
        };
        let endpoint = match connection::parse(value.reveal(), kind) {
            Err(e) if kind != ConnectionType::Custom => return Err(e),
            other => other,
        };
        let stored = self.store(app, (SettingKind::Connection, name), value, |before| {
            (Some(kind), sticky.unwrap_or_else(|| before.is_some_and(|b| b.sticky)))
        })?;
        let record = stored.record;
        let link = Link { name: record.name, kind, endpoint, sticky: record.sticky, changed: record.changed };
        Ok(ConnectionSet { link, replaced: stored.replaced, first_run: stored.first_run })
    }

    /// Takes a setting away.
    pub fn delete_setting(&self, app: &AppName, name: &str) -> Result<SettingView> {
        self.delete_one(app, SettingKind::Setting, name)
    }

    /// Takes a connection string away.
    pub fn delete_connection(&self, app: &AppName, name: &str) -> Result<SettingView> {
        self.delete_one(app, SettingKind::Connection, name)
    }

    /// The settings of an app by name, without their values.
    pub fn setting_list(&self, app: &AppName) -> Result<Vec<SettingView>> {
        let records = self.setting_records(app)?;
        Ok(records.iter().filter(|r| r.kind == SettingKind::Setting).map(view).collect())
    }

    /// The settings of an app with their values, for a person who asks to see them.
    pub fn settings_revealed(&self, app: &AppName) -> Result<Vec<(SettingView, Secret)>> {
        let records = self.setting_records(app)?;
        let keys = opening_keys(&self.state)?;
        let settings = records.iter().filter(|r| r.kind == SettingKind::Setting);
        settings.map(|r| Ok((view(r), open(&keys, app, r)?))).collect()
    }

    /// The connection strings of an app by name, with where they point.
    pub fn connections(&self, app: &AppName) -> Result<Vec<Link>> {
        Ok(self.connections_revealed(app)?.into_iter().map(|(link, _value)| link).collect())
    }

    /// The same with their values, for a person who asks to see them; none where it cannot be opened.
    pub fn connections_revealed(&self, app: &AppName) -> Result<Vec<(Link, Option<Secret>)>> {
        let records = self.setting_records(app)?;
        let keys = opening_keys(&self.state)?;
        let connections = records.iter().filter(|r| r.kind == SettingKind::Connection);
        connections.map(|r| link(&keys, app, r)).collect()
    }

    /// The records of an app that is protected.
    fn setting_records(&self, app: &AppName) -> Result<Vec<SettingRecord>> {
        let app = self.app_with_settings(app)?;
        self.catalog()?.settings(&app.name, PRODUCTION)
    }

    fn app_with_settings(&self, name: &AppName) -> Result<App> {
        if !self.has_catalog() {
            return Err(self.nothing_yet(Code::AppNotFound, &format!("There is no app `{name}`")));
        }
        self.known_app(name.as_str())
    }

    /// Seals and stores one; `about` says its type and whether it belongs to the slot, from what was there before.
    fn store(
        &self,
        app: &AppName,
        (kind, name): (SettingKind, &str),
        value: &Secret,
        about: impl FnOnce(Option<&SettingRecord>) -> (Option<ConnectionType>, bool),
    ) -> Result<Stored> {
        let all = self.setting_records(app)?;
        let before = all.iter().find(|r| r.kind == kind && r.name == name);
        if before.is_none() && all.len() >= COUNT_MAX {
            let message = format!("App `{app}` has {COUNT_MAX} settings and connection strings already");
            return Err(Error::new(Code::LimitExceeded, message));
        }
        let (connection_type, sticky) = about(before);
        let first_run = self.secrets_or_new()?.1;
        let record = SettingRecord {
            kind,
            name: name.to_owned(),
            value: self.seal_value(&record_of(app, PRODUCTION, kind, name), value)?,
            connection_type: connection_type.map(|t| t.as_str().to_owned()),
            sticky,
            changed: self.clock.now(),
        };
        self.catalog()?.set_setting(app, PRODUCTION, &record)?;
        Ok(Stored { record, replaced: before.is_some(), first_run })
    }

    fn delete_one(&self, app: &AppName, kind: SettingKind, name: &str) -> Result<SettingView> {
        let app = self.app_with_settings(app)?;
        Ok(view(&self.catalog()?.delete_setting(&app.name, PRODUCTION, kind, name)?))
    }
}

/// A record that was stored.
struct Stored {
    record: SettingRecord,
    replaced: bool,
    first_run: Option<Places>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_apps_have() {
        let long = "a".repeat(NAME_MAX);
        for good in ["A", "a.b", "Logging__Level", "Logging:Level", "x-1", "1", long.as_str()] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "a b", "a=b", "a/b", "ä", "a\n", "a\0", &"a".repeat(NAME_MAX + 1)] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }
}
