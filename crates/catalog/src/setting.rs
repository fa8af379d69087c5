//! Settings and connection strings of apps, as they are stored.
//!
//! Invariants: a value is the sealed text that was given; nothing here can open it.

use std::fmt;

use backstay_model::AppName;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The slot of an app's production.
pub const PRODUCTION: &str = "";

/// What an app finds in its environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SettingKind {
    /// A connection string.
    Connection,
    /// A setting.
    Setting,
}

impl SettingKind {
    /// The kind as one word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            SettingKind::Connection => "connection",
            SettingKind::Setting => "setting",
        }
    }

    /// The kind of that word.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        [SettingKind::Connection, SettingKind::Setting].into_iter().find(|k| k.word() == word)
    }
}

impl fmt::Display for SettingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SettingKind::Connection => "connection string",
            SettingKind::Setting => "setting",
        })
    }
}

/// A setting or connection string of an app and slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingRecord {
    /// Which of the two.
    pub kind: SettingKind,
    /// Its name, unique among those of its kind.
    pub name: String,
    /// Its value, sealed.
    pub value: String,
    /// The type of a connection string, as its owner spells it.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub connection_type: Option<String>,
    /// Whether it belongs to the slot, not to what runs in it.
    pub sticky: bool,
    /// When it was given.
    pub changed: Timestamp,
}

/// A record that holds a sealed text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SealedRecord {
    /// What opens a container.
    Container {
        /// The container.
        name: String,
    },
    /// The value of a setting or connection string.
    Setting {
        /// The app.
        app: AppName,
        /// The slot.
        slot: String,
        /// Which of the two.
        kind: SettingKind,
        /// Its name.
        name: String,
    },
}
