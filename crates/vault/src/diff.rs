//! Comparing two trees of a vault.
//!
//! Invariants: differences come one by one, a folder before what is in it, in the order of names; folders that are
//! the same tree on both sides are not even read, so the cost goes with the difference. Memory: the entries of
//! the folders on the way down. What cannot be read is told as a problem, never taken for equal or empty.
//! Nothing is locked or written.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_model::{Cancel, Code, Error, Problem, ProblemKind, Result};
use backstay_tree::fs::Kind;
use backstay_tree::path::escape;
use serde::{Serialize, Serializer};

use crate::id::Id;
use crate::node::Node;
use crate::reader::Reader;

/// Folders inside each other that are compared.
const DEPTH_MAX: usize = 4096;
/// Entries that are looked at in all; more can only be a tree made to waste time.
const ENTRIES_MAX: u64 = 100_000_000;

/// In what way a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// Only the second tree has it.
    Added,
    /// Only the first tree has it.
    Removed,
    /// Its content (bytes, target of a link, number of a device), and perhaps its metadata too.
    Content,
    /// Only its owner, mode, attributes or (not of folders) time.
    Metadata,
    /// It was a file and is a folder, say. What was below a folder is told as removed, what is below as added.
    Kind,
}

/// One path that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Path below the roots. In JSON bytes that are not UTF-8 are escaped as `\xNN`.
    #[serde(serialize_with = "escaped")]
    pub path: PathBuf,
    /// In what way.
    pub change: Change,
    /// `file`, `dir`, `symlink`, `dev`, `chardev`, `fifo`, `socket`, `irregular`; of the second tree where it is there.
    pub kind: &'static str,
    /// Bytes of content in the first tree; none where it is not there.
    pub size_before: Option<u64>,
    /// Bytes of content in the second tree; none where it is not there.
    pub size_after: Option<u64>,
}

fn escaped<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&escape(path.as_os_str()))
}

/// What differs, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DiffTotals {
    /// Paths only in the second tree.
    pub added: u64,
    /// Their bytes of content.
    pub added_bytes: u64,
    /// Paths only in the first tree.
    pub removed: u64,
    /// Their bytes of content.
    pub removed_bytes: u64,
    /// Paths in both that differ.
    pub changed: u64,
    /// Folders that could not be compared.
    pub problems: Vec<Problem>,
}

/// Compares two trees and hands over each difference.
pub fn diff(
    reader: &Reader,
    before: &Id,
    after: &Id,
    cancel: &Cancel,
    each: &mut dyn FnMut(Difference) -> Result<()>,
) -> Result<DiffTotals> {
    let mut walk =
        Walk { reader, cancel, each, totals: DiffTotals::default(), path: PathBuf::new(), entries: 0 };
    if before != after {
        walk.run(Some(*before), Some(*after))?;
    }
    Ok(walk.totals)
}

/// An entry on either side or both.
type Pair = (OsString, Option<Node>, Option<Node>);

struct Walk<'a> {
    reader: &'a Reader,
    cancel: &'a Cancel,
    each: &'a mut dyn FnMut(Difference) -> Result<()>,
    totals: DiffTotals,
    /// The folder whose entries are compared.
    path: PathBuf,
    entries: u64,
}

impl Walk<'_> {
    fn run(&mut self, before: Option<Id>, after: Option<Id>) -> Result<()> {
        let mut levels = vec![self.pairs(before, after)?];
        while let Some(level) = levels.last_mut() {
            self.cancel.check()?;
            let Some((name, before, after)) = level.next() else {
                levels.pop();
                self.path.pop();
                continue;
            };
            self.entries += 1;
            if self.entries > ENTRIES_MAX {
                let message = format!("More than {ENTRIES_MAX} entries are to be compared");
                return Err(Error::new(Code::LimitExceeded, message));
            }
            self.compare(&name, before.as_ref(), after.as_ref())?;
            let (before, after) = (before.and_then(folder), after.and_then(folder));
            if before == after {
                continue;
            }
            if levels.len() >= DEPTH_MAX {
                self.problem(
                    &self.path.join(&name),
                    ProblemKind::Unsafe,
                    "Too many folders inside each other".into(),
                );
                continue;
            }
            self.path.push(&name);
            levels.push(self.pairs(before, after)?);
        }
        Ok(())
    }

    /// The entries of two trees, matched by name.
    fn pairs(&mut self, before: Option<Id>, after: Option<Id>) -> Result<std::vec::IntoIter<Pair>> {
        let mut before = self.nodes(before)?.into_iter().peekable();
        let mut after = self.nodes(after)?.into_iter().peekable();
        let mut pairs: Vec<Pair> = Vec::with_capacity(before.len().max(after.len()));
        loop {
            let order = match (before.peek(), after.peek()) {
                (Some((a, _)), Some((b, _))) => a.cmp(b),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => break,
            };
            let first = if order == Ordering::Greater { None } else { before.next() };
            let second = if order == Ordering::Less { None } else { after.next() };
            let name = first.as_ref().or(second.as_ref()).map(|(name, _)| name.clone()).unwrap_or_default();
            pairs.push((name, first.map(|(_, node)| node), second.map(|(_, node)| node)));
        }
        Ok(pairs.into_iter())
    }

    /// The nodes of a tree by name. Of several with one name the first counts, as in a restore.
    fn nodes(&mut self, tree: Option<Id>) -> Result<BTreeMap<OsString, Node>> {
        let Some(tree) = tree else { return Ok(BTreeMap::new()) };
        let mut found = BTreeMap::new();
        match self.reader.tree(&tree) {
            Ok(nodes) => {
                for node in nodes {
                    if let Some(name) = node.safe_name().map(OsStr::to_owned) {
                        found.entry(name).or_insert(node);
                    } else {
                        let path = self.path.clone();
                        let why =
                            format!("An entry was left out: nothing can be named `{}`", escape(&node.name));
                        self.problem(&path, ProblemKind::Unsafe, why);
                    }
                }
            }
            Err(e) if matches!(e.code(), Code::StorageUnavailable | Code::Cancelled) => return Err(e),
            Err(e) => {
                let path = self.path.clone();
                self.problem(&path, ProblemKind::Lost, format!("What is in it cannot be read: {e}"));
            }
        }
        Ok(found)
    }

    fn problem(&mut self, path: &Path, kind: ProblemKind, detail: String) {
        self.totals.problems.push(Problem { path: escape(path.as_os_str()), kind, detail });
    }

    fn compare(&mut self, name: &OsStr, before: Option<&Node>, after: Option<&Node>) -> Result<()> {
        let change = match (before, after) {
            (None, Some(node)) => {
                self.totals.added += 1;
                self.totals.added_bytes += size(node);
                Change::Added
            }
            (Some(node), None) => {
                self.totals.removed += 1;
                self.totals.removed_bytes += size(node);
                Change::Removed
            }
            (Some(a), Some(b)) => match compare_nodes(a, b) {
                Some(change) => {
                    self.totals.changed += 1;
                    change
                }
                None => return Ok(()),
            },
            (None, None) => return Ok(()),
        };
        (self.each)(Difference {
            path: self.path.join(name),
            change,
            kind: after.or(before).map_or("", Node::type_name),
            size_before: before.map(size),
            size_after: after.map(size),
        })
    }
}

/// The tree of a folder that can be gone into.
fn folder(node: Node) -> Option<Id> {
    if node.kind == Some(Kind::Dir) { node.subtree } else { None }
}

fn size(node: &Node) -> u64 {
    if node.kind == Some(Kind::File) { node.size } else { 0 }
}

fn compare_nodes(a: &Node, b: &Node) -> Option<Change> {
    if a.kind != b.kind {
        return Some(Change::Kind);
    }
    let is_dir = a.kind == Some(Kind::Dir);
    let held = |n: &Node| (n.size, n.device);
    if !is_dir && (a.content != b.content || a.link_target != b.link_target || held(a) != held(b)) {
        return Some(Change::Content);
    }
    // A folder's time changes with its entries, which are told anyway.
    let time = |n: &Node| (!is_dir).then_some(n.mtime);
    let owner = |n: &Node| (n.uid, n.gid, Arc::clone(&n.user), Arc::clone(&n.group));
    if a.mode != b.mode || a.xattrs != b.xattrs || owner(a) != owner(b) || time(a) != time(b) {
        return Some(Change::Metadata);
    }
    None
}
