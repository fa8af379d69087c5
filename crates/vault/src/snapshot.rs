//! Snapshot objects: the one object that makes a recovery point exist.
//!
//! Invariants: written last, never changed. Changing tags means a new object, then deleting the old one; a
//! crash between the two leaves both, and readers take the younger. Fields that other programs added are kept.

use backstay_model::{Code, Error, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::id::Id;

/// The JSON of a snapshot object, in restic's field order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When its reading began.
    pub time: Timestamp,
    /// The snapshot it was compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Id>,
    /// Its root tree.
    pub tree: Id,
    /// The paths that were saved.
    #[serde(default)]
    pub paths: Vec<String>,
    /// The machine that took it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// The user that took it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub username: String,
    /// That user's number.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub uid: u32,
    /// That user's group.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gid: u32,
    /// Free labels. Backstay's begin with `backstay` or are `name=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The snapshot that this one is a changed form of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<Id>,
    /// Which program wrote it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub program_version: String,
    /// Totals, as restic writes them since 0.17.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// What other programs added.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

/// Totals of a backup.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    /// When it began.
    pub backup_start: Option<Timestamp>,
    /// When the last data was stored.
    pub backup_end: Option<Timestamp>,
    /// Files that were not in the parent.
    pub files_new: u64,
    /// Files that differ from the parent.
    pub files_changed: u64,
    /// Files taken over from the parent.
    pub files_unmodified: u64,
    /// Folders that were not in the parent.
    pub dirs_new: u64,
    /// Folders that differ.
    pub dirs_changed: u64,
    /// Folders taken over.
    pub dirs_unmodified: u64,
    /// Pieces of data stored.
    pub data_blobs: u64,
    /// Trees stored.
    pub tree_blobs: u64,
    /// Plain bytes stored.
    pub data_added: u64,
    /// Bytes stored, packed.
    pub data_added_packed: u64,
    /// Files seen.
    pub total_files_processed: u64,
    /// Bytes of content seen.
    pub total_bytes_processed: u64,
    /// What other programs added.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

impl Snapshot {
    /// A snapshot with what must be there.
    #[must_use]
    pub fn new(time: Timestamp, tree: Id) -> Self {
        Snapshot {
            time,
            parent: None,
            tree,
            paths: Vec::new(),
            hostname: String::new(),
            username: String::new(),
            uid: 0,
            gid: 0,
            tags: Vec::new(),
            original: None,
            program_version: concat!("backstay ", env!("CARGO_PKG_VERSION")).to_owned(),
            summary: None,
            other: serde_json::Map::new(),
        }
    }

    /// The value of a tag `name=value`.
    #[must_use]
    pub fn tag(&self, name: &str) -> Option<&str> {
        self.tags.iter().find_map(|t| t.strip_prefix(name)?.strip_prefix('='))
    }

    /// Whether it has a tag.
    #[must_use]
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.iter().any(|t| t == tag)
    }

    pub(crate) fn parse(json: &[u8]) -> Result<Self> {
        serde_json::from_slice(json)
            .map_err(|e| Error::new(Code::VaultDamaged, "A snapshot cannot be understood").because(e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_restic_wrote_survives_a_round_trip() {
        let json = r#"{"time":"2026-11-20T10:11:12.123456789+01:00","tree":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "paths":["/srv"],"hostname":"h","username":"u","uid":1000,"tags":["a","app=blog"],"excludes":["x"],
            "summary":{"files_new":3,"some_day":1}}"#;
        let snapshot = Snapshot::parse(json.as_bytes()).unwrap();
        assert_eq!(snapshot.tag("app"), Some("blog"));
        assert!(snapshot.has_tag("a") && !snapshot.has_tag("b"));
        let text = serde_json::to_string(&snapshot).unwrap();
        assert!(text.contains(r#""excludes":["x"]"#) && text.contains(r#""some_day":1"#), "{text}");
        assert!(text.starts_with(r#"{"time":"2026-11-20T09:11:12.123456789Z","tree""#), "{text}");
    }
}
