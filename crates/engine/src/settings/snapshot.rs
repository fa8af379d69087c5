//! All settings of an app as one value: what a point holds, what a restore replaces, what an undo brings back.
//!
//! Invariants: values in a snapshot are sealed for its app, so it may lie in a note of a journal; only the document of a
//! point ([`super::document`]) is in clear, and only in memory. Putting a snapshot is one transaction and may be repeated
//! after a kill at any moment: the second time changes nothing.
//!
//! Rule of those that belong to a slot: a point goes back into the app it was taken of with all its settings. Into another
//! app, those that are marked are not taken along, and the marked ones of the other app stay as they are, also
//! against one of the same name in the point.

use std::collections::BTreeMap;

use backstay_catalog::{App, PRODUCTION, SettingKind, SettingRecord};
use backstay_model::{AppName, Code, Error, Result};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::document::{self, Open};
use super::{open, record_of, type_of};
use crate::sealed::{self, KeyEncryptionKey, opening_keys};
use crate::state::Engine;

const VERSION: u32 = 1;

/// The settings and connection strings of an app, sealed for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsSnapshot {
    version: u32,
    app: AppName,
    /// None where it says nothing about them: then putting it changes nothing.
    settings: Option<Vec<SettingRecord>>,
    /// Whether those of the app that belong to the slot stay.
    keep_sticky: bool,
    /// Those that the point has and that belong to the slot they were taken from.
    left_out: Vec<SettingName>,
}

impl SettingsSnapshot {
    /// Whether it says nothing about settings: it was made from an archive of before there were any.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.settings.is_none()
    }
}

/// A setting or connection string without its value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SettingName {
    /// Which of the two.
    pub kind: SettingKind,
    /// Its name.
    pub name: String,
    /// The type of a connection string.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub connection_type: Option<String>,
}

/// What putting a snapshot changes. No values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsDiff {
    /// Those that the app does not have now.
    pub added: Vec<SettingName>,
    /// Those whose value, type or mark is another, as they will be.
    pub changed: Vec<SettingName>,
    /// Those that the snapshot does not have.
    pub removed: Vec<SettingName>,
    /// Those that stay because they belong to the slot.
    pub kept: Vec<SettingName>,
    /// Those of the point that are not taken along because they belong to the slot of another app.
    pub left_out: Vec<SettingName>,
}

impl SettingsDiff {
    /// Whether nothing changes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }
}

fn name_of(record: &SettingRecord) -> SettingName {
    SettingName {
        kind: record.kind,
        name: record.name.clone(),
        connection_type: record.connection_type.clone(),
    }
}

/// Records by kind and name.
fn by_name(records: &[SettingRecord]) -> BTreeMap<(SettingKind, &str), &SettingRecord> {
    records.iter().map(|r| ((r.kind, r.name.as_str()), r)).collect()
}

/// Whether two records of an app are the same to those who use them. One that cannot be opened is like no other.
fn same(keys: &[KeyEncryptionKey], app: &AppName, a: &SettingRecord, b: &SettingRecord) -> bool {
    let values = || Some((open(keys, app, a).ok()?, open(keys, app, b).ok()?));
    a.connection_type == b.connection_type
        && a.sticky == b.sticky
        && (a.value == b.value || values().is_some_and(|(a, b)| a == b))
}

impl Engine {
    /// The settings of an app, removed or not, as they are now.
    pub fn settings_snapshot(&self, app: &AppName) -> Result<SettingsSnapshot> {
        let settings = Some(self.present_settings(app)?);
        Ok(SettingsSnapshot {
            version: VERSION,
            app: app.clone(),
            settings,
            keep_sticky: false,
            left_out: Vec::new(),
        })
    }

    /// The document with the settings of an app for a point; none when it has none. The same settings are the same
    /// bytes.
    pub fn settings_document(&self, app: &AppName) -> Result<Option<Zeroizing<Vec<u8>>>> {
        let settings = self.open_settings(app)?;
        if settings.is_empty() {
            return Ok(None);
        }
        document::write(app, None, settings).map(Some)
    }

    /// The document for an archive: the settings of an app with what is set about it.
    pub fn settings_document_for_archive(&self, app: &App) -> Result<Zeroizing<Vec<u8>>> {
        document::write(&app.name, Some(app), self.open_settings(&app.name)?)
    }

    /// What the document of a point or archive says, sealed for an app, which need not be the one it was written for.
    /// `VaultUnsupported` for one of a newer version or another program, `VaultDamaged` for what is none.
    pub fn snapshot_of_document(&self, app: &AppName, bytes: &[u8]) -> Result<SettingsSnapshot> {
        let told = document::read(bytes)?;
        let keep_sticky = told.app != *app;
        let mut snapshot = SettingsSnapshot {
            version: VERSION,
            app: app.clone(),
            settings: None,
            keep_sticky,
            left_out: Vec::new(),
        };
        let Some(all) = told.settings else { return Ok(snapshot) };
        let keys = if all.is_empty() { Vec::new() } else { self.sealing_keys()? };
        let mut settings = Vec::new();
        for it in all {
            let record = SettingRecord {
                value: sealed::seal(&keys, &record_of(app, PRODUCTION, it.kind, &it.name), &it.value)?,
                kind: it.kind,
                name: it.name,
                connection_type: it.connection_type.map(|t| t.as_str().to_owned()),
                sticky: it.sticky,
                changed: self.clock.now(),
            };
            match keep_sticky && record.sticky {
                true => snapshot.left_out.push(name_of(&record)),
                false => settings.push(record),
            }
        }
        snapshot.settings = Some(settings);
        Ok(snapshot)
    }

    /// Puts the settings of a snapshot in the place of those that its app has. The app must be known.
    pub fn put_settings_snapshot(&self, app: &AppName, snapshot: &SettingsSnapshot) -> Result<()> {
        check(app, snapshot)?;
        match &snapshot.settings {
            None => Ok(()),
            Some(all) => self.catalog()?.put_settings(app, PRODUCTION, all, snapshot.keep_sticky),
        }
    }

    /// What [`Engine::put_settings_snapshot`] would change.
    pub fn settings_diff(&self, app: &AppName, snapshot: &SettingsSnapshot) -> Result<SettingsDiff> {
        check(app, snapshot)?;
        let mut diff = SettingsDiff { left_out: snapshot.left_out.clone(), ..SettingsDiff::default() };
        let Some(new) = &snapshot.settings else { return Ok(diff) };
        let present = self.present_settings(app)?;
        let keys = opening_keys(&self.state)?;
        let (before, after) = (by_name(&present), by_name(new));
        let stays = |r: &SettingRecord| snapshot.keep_sticky && r.sticky;
        for (key, record) in &before {
            match after.get(key) {
                _ if stays(record) => diff.kept.push(name_of(record)),
                None => diff.removed.push(name_of(record)),
                Some(new) if !same(&keys, app, record, new) => diff.changed.push(name_of(new)),
                Some(_) => {}
            }
        }
        for (key, record) in &after {
            if !before.contains_key(key) {
                diff.added.push(name_of(record));
            }
        }
        Ok(diff)
    }

    fn present_settings(&self, app: &AppName) -> Result<Vec<SettingRecord>> {
        if self.has_catalog() { self.catalog()?.settings(app, PRODUCTION) } else { Ok(Vec::new()) }
    }

    fn open_settings(&self, app: &AppName) -> Result<Vec<Open>> {
        let records = self.present_settings(app)?;
        let keys = opening_keys(&self.state)?;
        let opened = |r: &SettingRecord| {
            let connection_type = match r.kind {
                SettingKind::Setting => None,
                SettingKind::Connection => Some(type_of(r)?),
            };
            let (kind, name, sticky) = (r.kind, r.name.clone(), r.sticky);
            Ok(Open { kind, name, value: open(&keys, app, r)?, connection_type, sticky })
        };
        records.iter().map(opened).collect()
    }
}

/// A snapshot must be one of this app, in a form that is known.
fn check(app: &AppName, snapshot: &SettingsSnapshot) -> Result<()> {
    if snapshot.version > VERSION {
        let message = format!("The settings noted for app `{app}` were written by a newer version");
        return Err(Error::new(Code::StateUnsupported, message));
    }
    if snapshot.app != *app {
        let message = format!("The settings noted for app `{}` are not those of app `{app}`", snapshot.app);
        return Err(Error::new(Code::Internal, message));
    }
    Ok(())
}
