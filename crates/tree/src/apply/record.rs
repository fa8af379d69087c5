//! What the files of a job in the state say, as values with their JSON.
//!
//! Invariants: a value that came from a file has been checked ([`Journal::check`]): paths are relative, of plain
//! components, do not lie below each other, and each step's folder is recorded. A newer format is "unsupported".
//! Values only: no I/O, no locks.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::is_workplace;
use crate::fs::{FileTime, Kind, Stat, is_component};
use crate::metadata::{Metadata, Wanted};

/// The format of all files of a job.
pub(super) const FORMAT: u32 = 1;
/// Bytes of a path at most: far beyond what a tree can have.
const MAX_PATH: usize = 1 << 20;

/// One of the two states of a home.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// As it was before the restore.
    Old,
    /// As it is after the restore.
    New,
}

impl Side {
    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Side::Old => Side::New,
            Side::New => Side::Old,
        }
    }
}

/// How far a turn is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Phase {
    /// Under way.
    Committed,
    /// All is in its place and synced.
    Settled,
    /// The caller is done with it, too.
    Closed,
    /// The other side is being deleted.
    Discarding,
}

/// `state.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub format: u32,
    pub turn: u64,
    pub phase: Phase,
}

impl State {
    pub fn new(turn: u64, phase: Phase) -> Self {
        State { format: FORMAT, turn, phase }
    }
}

/// `place.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct PlaceRecord {
    pub format: u32,
    #[serde(with = "path_text")]
    pub home: PathBuf,
    /// Inode of the home.
    pub inode: u64,
    pub note: Value,
}

/// `journal.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Journal {
    pub format: u32,
    /// Counts the directions: 1 at the commit, one more for each undo.
    pub turn: u64,
    pub goal: Side,
    /// Whether the workplace lies inside the home.
    pub inside: bool,
    /// Inode of the workplace.
    pub workplace: u64,
    /// By folder, see [`in_order`].
    pub steps: Vec<StepRecord>,
    pub metadata: Vec<MetaRecord>,
}

/// An exchange.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct StepRecord {
    #[serde(with = "path_text")]
    pub path: PathBuf,
    /// False when the entry was on the goal's side already as the turn began.
    pub todo: bool,
    /// What the slot held as the turn began.
    pub slot: Option<Id>,
    /// Mode of the live entry as the turn began, if it is a folder that its owner cannot write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_mode: Option<u32>,
    /// The same of the entry in the slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot_mode: Option<u32>,
}

/// Which entry, on the one file system that a job is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Id {
    #[serde(with = "kind_text")]
    pub kind: Kind,
    pub inode: u64,
}

impl From<&Stat> for Id {
    fn from(stat: &Stat) -> Self {
        Id { kind: stat.kind, inode: stat.inode }
    }
}

/// Metadata of an entry that stays, on both sides.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct MetaRecord {
    #[serde(with = "path_text")]
    pub path: PathBuf,
    pub id: Id,
    pub old: Values,
    pub new: Values,
}

/// The metadata that an entry has or is to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Values {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits (`0o7777`).
    pub mode: u32,
    /// Last change of content.
    #[serde(with = "time_text")]
    pub mtime: FileTime,
    /// All extended attributes.
    #[serde(with = "xattrs_text", default, skip_serializing_if = "Vec::is_empty")]
    pub xattrs: Vec<(OsString, Vec<u8>)>,
}

impl Values {
    pub(super) fn new(stat: &Stat, xattrs: Vec<(OsString, Vec<u8>)>) -> Self {
        Values { uid: stat.uid, gid: stat.gid, mode: stat.mode, mtime: stat.mtime, xattrs }
    }

    pub(super) fn wanted(&self) -> Wanted<'_> {
        let Values { uid, gid, mode, mtime, ref xattrs } = *self;
        Wanted { uid, gid, mode, mtime, xattrs }
    }
}

impl From<&Metadata> for Values {
    fn from(from: &Metadata) -> Self {
        Values::new(&from.stat, from.xattrs.clone())
    }
}

/// The folder of a path and its last name.
pub(super) fn split(path: &Path) -> (&Path, &OsStr) {
    (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default())
}

/// Sorts so that steps of one folder follow each other.
pub(super) fn in_order(steps: &mut [StepRecord]) {
    steps.sort_unstable_by(|a, b| split(&a.path).cmp(&split(&b.path)));
}

impl Journal {
    /// What is wrong with it, if anything.
    pub fn check(&self) -> Result<(), String> {
        if self.turn == 0 {
            return Err("its turn is 0".into());
        }
        check_paths(self.steps.iter().map(|s| &*s.path), self.metadata.iter().map(|m| &*m.path))?;
        let folders: BTreeSet<&Path> =
            self.metadata.iter().filter(|m| m.id.kind == Kind::Dir).map(|m| &*m.path).collect();
        for step in &self.steps {
            if !folders.contains(split(&step.path).0) {
                return Err(format!("the folder of {} is not recorded", shown(&step.path)));
            }
        }
        match self.metadata.iter().find(|m| !matches!(m.id.kind, Kind::Dir | Kind::File)) {
            Some(meta) => Err(format!("{} is neither file nor folder", shown(&meta.path))),
            None => Ok(()),
        }
    }

    /// The recorded folders by path.
    pub fn folders(&self) -> BTreeMap<&Path, Id> {
        self.metadata.iter().filter(|m| m.id.kind == Kind::Dir).map(|m| (&*m.path, m.id)).collect()
    }
}

fn shown(path: &Path) -> String {
    crate::path::escape(path.as_os_str())
}

fn is_plain(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    let first = bytes.split(|b| *b == b'/').next().unwrap_or_default();
    bytes.len() <= MAX_PATH
        && bytes.split(|b| *b == b'/').all(|name| is_component(OsStr::from_bytes(name)))
        && !is_workplace(OsStr::from_bytes(first))
}

/// Whether paths of steps and of entries that stay can stand together; else what is wrong.
pub(super) fn check_paths<'a>(
    steps: impl Iterator<Item = &'a Path>,
    staying: impl Iterator<Item = &'a Path>,
) -> Result<(), String> {
    let mut known: BTreeSet<&Path> = BTreeSet::new();
    for path in steps {
        if !is_plain(path) {
            return Err(format!("{} is no path below a home", shown(path)));
        }
        if !known.insert(path) {
            return Err(format!("{} is there twice", shown(path)));
        }
    }
    // Sorted by components, a path is followed at once by what lies below it.
    for (path, next) in known.iter().zip(known.iter().skip(1)) {
        if next.starts_with(path) {
            return Err(format!("{} lies below another step", shown(next)));
        }
    }
    let mut named = BTreeSet::new();
    for path in staying {
        if !path.as_os_str().is_empty() && !is_plain(path) {
            return Err(format!("{} is no path below a home", shown(path)));
        }
        if !named.insert(path) {
            return Err(format!("{} is there twice", shown(path)));
        }
        if path.ancestors().any(|above| known.contains(above)) {
            return Err(format!("{} cannot stay, it lies in a step", shown(path)));
        }
    }
    Ok(())
}

mod path_text {
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&crate::path::escape(path.as_os_str()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        let text = String::deserialize(from)?;
        crate::path::unescape(&text)
            .map(PathBuf::from)
            .ok_or_else(|| D::Error::custom("a path with a wrong escape"))
    }
}

mod time_text {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

    use crate::fs::FileTime;

    pub fn serialize<S: Serializer>(time: &FileTime, to: S) -> Result<S::Ok, S::Error> {
        (time.secs, time.nanos).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<FileTime, D::Error> {
        let (secs, nanos) = <(i64, u32)>::deserialize(from)?;
        if nanos < 1_000_000_000 {
            Ok(FileTime { secs, nanos })
        } else {
            Err(D::Error::custom("a wrong time"))
        }
    }
}

mod kind_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    use crate::fs::Kind;

    const NAMES: [(Kind, &str); 7] = [
        (Kind::File, "file"),
        (Kind::Dir, "folder"),
        (Kind::Symlink, "symlink"),
        (Kind::Fifo, "fifo"),
        (Kind::Socket, "socket"),
        (Kind::CharDevice, "character device"),
        (Kind::BlockDevice, "block device"),
    ];

    pub fn serialize<S: Serializer>(kind: &Kind, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(NAMES.iter().find(|(k, _)| k == kind).map_or("", |(_, name)| name))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Kind, D::Error> {
        let text = String::deserialize(from)?;
        let known = NAMES.iter().find(|(_, name)| *name == text);
        known.map(|(kind, _)| *kind).ok_or_else(|| D::Error::custom("an unknown kind of entry"))
    }
}

mod xattrs_text {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::{OsStrExt, OsStringExt};

    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    use crate::path::{escape, unescape};

    pub fn serialize<S: Serializer>(xattrs: &[(OsString, Vec<u8>)], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(xattrs.iter().map(|(name, value)| (escape(name), escape(OsStr::from_bytes(value)))))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<(OsString, Vec<u8>)>, D::Error> {
        let texts = Vec::<(String, String)>::deserialize(from)?;
        let bytes =
            |text: &str| unescape(text).ok_or_else(|| D::Error::custom("an attribute with a wrong escape"));
        texts.iter().map(|(name, value)| Ok((bytes(name)?, bytes(value)?.into_vec()))).collect()
    }
}
