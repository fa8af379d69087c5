//! What a restore in place must change: from the tree that is live to the tree of a point, under rules.
//!
//! Invariants:
//! * A path that the rules keep is in no step, and neither is a folder that holds one: what is kept is never moved.
//! * A step lies at the highest level that differs, and none lies below another. A folder that is on both sides is
//!   gone into, never replaced, so its inode stays.
//! * What is the same in content and metadata is in no step, though inode and change time differ; folders that are the
//!   same tree on both sides are not even read, so the cost goes with the difference.
//! * Names of one file are replaced together or not at all ([`links`]), so the links afterwards are those of the point.
//! * What cannot be read is never taken for equal, empty or absent: it stays as it is and is told, or, where it is
//!   live content that could not be read, is replaced.
//!
//! The plan is a value: it is printed, sent over the API, recorded, and applied as it is. Nothing is locked or
//! written here. Memory: the entries of the folders on the way down, and some 100 bytes for each step.

mod facts;
mod links;
mod rules;
#[cfg(test)]
mod tests;
mod text;
mod walk;

use std::collections::HashMap;
use std::path::PathBuf;

use backstay_model::{Cancel, Problem, Result};
use backstay_tree::fs::{FileTime, Kind};
use serde::{Deserialize, Serialize};

pub use rules::{Keep, Rules, Unknown, not_in_point, unknown};

use crate::id::Id;
use crate::node::Node;
use crate::reader::Reader;
use crate::restore::RestoreOptions;

/// One side of a plan: a tree of the vault.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// The tree.
    pub tree: Id,
    /// The node of the folder itself; without it the metadata of the home is left alone.
    pub top: Option<&'a Node>,
}

/// What is to be done with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// The live tree does not have it.
    Add,
    /// Both have it, and it differs.
    Replace,
    /// The point does not have it.
    Remove,
}

/// What lies at a path, with all below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// What it is.
    #[serde(with = "text::kind")]
    pub kind: Kind,
    /// Regular files: itself, or those below it.
    pub files: u64,
    /// Their bytes of content.
    pub bytes: u64,
}

/// How a live entry was seen, to notice that it has changed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// What it was.
    #[serde(with = "text::kind")]
    pub kind: Kind,
    /// Its inode number.
    pub inode: u64,
    /// Its last change.
    #[serde(with = "text::time")]
    pub ctime: FileTime,
    /// Bytes of content; 0 of all but regular files.
    pub size: u64,
}

/// Something that is added, replaced or removed, with all that is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Where, below the home. In JSON as in [`backstay_tree::path::escape`].
    #[serde(with = "text::path")]
    pub path: PathBuf,
    /// What is done.
    pub action: Action,
    /// What is live; none where nothing is, or where it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Extent>,
    /// What will be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Extent>,
    /// The live entry as it was seen; none where nothing is, or where it could not be read for certain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Seen>,
}

/// Metadata that is set in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits (`0o7777`).
    pub mode: u32,
    /// Last change of content: seconds and nanoseconds since 1970.
    #[serde(with = "text::time")]
    pub mtime: FileTime,
    /// Extended attributes, ACLs among them, sorted by name.
    #[serde(with = "text::xattrs", default, skip_serializing_if = "Vec::is_empty")]
    pub xattrs: Vec<(std::ffi::OsString, Vec<u8>)>,
}

/// An entry that stays and gets other metadata: a folder, or a regular file with one name.
///
/// A folder in which a step happens is listed even where `before` and `after` are equal: the steps change its time,
/// and it must get it back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaChange {
    /// Where; empty for the home itself.
    #[serde(with = "text::path")]
    pub path: PathBuf,
    /// The live entry as it was seen.
    pub seen: Seen,
    /// Its metadata now.
    pub before: Meta,
    /// Its metadata then.
    pub after: Meta,
}

impl MetaChange {
    /// Whether a person should hear of it: not where only the time of a folder differs, which tells no more than the
    /// steps in it.
    #[must_use]
    pub fn is_worth_telling(&self) -> bool {
        let time = |meta: &Meta| (self.seen.kind != Kind::Dir).then_some(meta.mtime);
        let rest = |meta: &Meta| (meta.uid, meta.gid, meta.mode);
        rest(&self.before) != rest(&self.after)
            || time(&self.before) != time(&self.after)
            || !facts::same_xattrs(&self.before.xattrs, &self.after.xattrs)
    }
}

/// A path that the filter keeps as it is although the sides differ there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Where.
    #[serde(with = "text::path")]
    pub path: PathBuf,
    /// Whether it is in the live tree.
    pub live: bool,
    /// Whether it is in the point, which is then not restored.
    pub in_point: bool,
}

/// Why something is left out that is no content of the app, or not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhyLeftOut {
    /// It is protected: a mount, another app's home, something of Backstay's own.
    Protected,
    /// The point does not know what is there: it could not be read or was left out when the point was taken.
    NotInPoint,
}

/// A path that is left as it is, with all below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// Where.
    #[serde(with = "text::path")]
    pub path: PathBuf,
    /// Why.
    pub why: WhyLeftOut,
}

/// Something of the point that cannot be brought back because of what must stay. A restore with conflicts is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// Where the point has something.
    #[serde(with = "text::path")]
    pub path: PathBuf,
    /// What is in the way, in words.
    pub why: String,
}

/// Files and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Steps.
    pub steps: u64,
    /// Regular files in them.
    pub files: u64,
    /// Their bytes of content.
    pub bytes: u64,
}

/// A plan in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// What is added.
    pub added: Tally,
    /// What is replaced, as it will be.
    pub changed: Tally,
    /// What is removed.
    pub removed: Tally,
    /// Entries of which only metadata changes, as far as it is worth telling.
    pub metadata: u64,
    /// Paths kept by the filter although the sides differ.
    pub kept: u64,
    /// Bytes of content that are staged, each file counted once whatever the number of its names. Holes count too.
    pub stage_bytes: u64,
}

/// What must change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangePlan {
    /// What is added, replaced and removed.
    pub steps: Vec<Step>,
    /// What gets other metadata in place, a folder after what is in it.
    pub metadata: Vec<MetaChange>,
    /// What the filter keeps.
    pub kept: Vec<Kept>,
    /// What is left as it is for another reason.
    pub left_out: Vec<LeftOut>,
    /// Why the restore cannot be done.
    pub conflicts: Vec<Conflict>,
    /// What is not staged although it lies in something that is added.
    #[serde(with = "text::paths", default, skip_serializing_if = "Vec::is_empty")]
    pub omit: Vec<PathBuf>,
    /// What was asked for; none: everything.
    #[serde(with = "text::maybe_paths", default, skip_serializing_if = "Option::is_none")]
    pub select: Option<Vec<PathBuf>>,
    /// All that in numbers.
    pub totals: Totals,
    /// What of the two trees cannot be compared, by path. It stays as it is.
    pub problems: Vec<Problem>,
}

impl ChangePlan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.metadata.is_empty()
    }

    /// How to stage what is new: [`crate::restore::restore`] of the point's tree into an empty folder (without its
    /// `top`), from where each step's path is then moved into place. Everything is synced.
    #[must_use]
    pub fn staging(&self, sparse: HashMap<PathBuf, Vec<(u64, u64)>>) -> RestoreOptions {
        let taken = self.steps.iter().filter(|step| step.after.is_some()).map(|step| step.path.clone());
        RestoreOptions {
            sparse,
            select: Some(self.staged()),
            omit: self.omit.clone(),
            taken: taken.collect(),
            sync: true,
        }
    }

    /// The paths of the point that must be staged.
    #[must_use]
    pub fn staged(&self) -> Vec<PathBuf> {
        let mut staged = Vec::new();
        for step in self.steps.iter().filter(|step| step.after.is_some()) {
            let below = |path: &&PathBuf| path.starts_with(&step.path) && **path != step.path;
            let selected = self.select.iter().flatten();
            let before = staged.len();
            if !selected.clone().any(|path| step.path.starts_with(path)) {
                // A folder on the way to what was asked for is made for that alone.
                staged.extend(selected.filter(below).cloned());
            }
            if staged.len() == before {
                staged.push(step.path.clone());
            }
        }
        staged
    }

    /// Counts the steps anew; what is known of bytes to be staged stays.
    fn count(&mut self) {
        let totals = &mut self.totals;
        (totals.added, totals.changed, totals.removed) = Default::default();
        for step in &self.steps {
            let (tally, extent) = match step.action {
                Action::Add => (&mut totals.added, step.after),
                Action::Replace => (&mut totals.changed, step.after),
                Action::Remove => (&mut totals.removed, step.before),
            };
            tally.steps += 1;
            tally.files += extent.map_or(0, |e| e.files);
            tally.bytes = tally.bytes.saturating_add(extent.map_or(0, |e| e.bytes));
        }
        let told = self.metadata.iter().filter(|change| change.is_worth_telling()).count();
        totals.metadata = u64::try_from(told).unwrap_or(u64::MAX);
        totals.kept = u64::try_from(self.kept.len()).unwrap_or(u64::MAX);
    }
}

/// Plans how the live tree becomes that of the point.
///
/// Errors: `PathNotFound` (a selected path that the point does not have), `InvalidValue` (a selected path that is
/// none), `LimitExceeded`, `StorageUnavailable`, `Cancelled`. Everything else is in the plan.
pub fn plan(
    reader: &Reader,
    live: &Side<'_>,
    target: &Side<'_>,
    rules: &Rules<'_>,
    cancel: &Cancel,
) -> Result<ChangePlan> {
    walk::plan(reader, live, target, rules, cancel)
}
