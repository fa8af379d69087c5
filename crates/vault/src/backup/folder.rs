//! A folder on its way from the file system to a tree in the vault.
//!
//! Invariant: a folder is finished exactly once, by whoever delivers its last entry; then it is delivered to its
//! parent in the same way. No recursion: depth costs memory, not stack, and of memory only what names take.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use backstay_tree::filter::At;
use backstay_tree::fs::{FileTime, Kind, Stat};
use backstay_tree::{Owners, path};
use parking_lot::Mutex;

use super::again::Substitute;
use super::past::{Meta, Past, PastEntry};
use crate::node::Node;

/// What is known of an entry so far.
#[derive(Debug)]
pub(crate) enum State {
    /// Somebody is at it.
    Waiting,
    /// It is not in the point.
    Gone,
    /// Exactly as in the past.
    Unchanged,
    /// Read anew.
    Ready(Box<PastEntry>),
}

/// An entry of a folder.
#[derive(Debug)]
pub(crate) struct Item {
    pub name: OsString,
    pub stat: Stat,
    /// Its position in the past's entries.
    pub past: Option<usize>,
    pub state: State,
    /// What is read in its place.
    pub substitute: Option<Arc<Substitute>>,
}

#[derive(Debug, Default)]
pub(crate) struct Inner {
    pub past: Past,
    pub items: Vec<Item>,
    /// In a second pass: positions in the past of entries that are left out now, so not gone.
    pub left_out: Vec<usize>,
}

/// A folder being read.
#[derive(Debug)]
pub(crate) struct Folder {
    /// The parent and the position of this folder in it.
    pub parent: Option<(Arc<Folder>, usize)>,
    /// Its name; empty for the root.
    pub name: OsString,
    /// How many folders are above it.
    pub depth: usize,
    pub stat: Stat,
    pub xattrs: Vec<(OsString, Vec<u8>)>,
    /// Where it stands in the filter.
    pub at: At,
    pub inner: Mutex<Inner>,
    /// Tasks whose entries are not delivered yet.
    pub pending: AtomicUsize,
}

impl Folder {
    /// The names of the folders from below the root down to this one.
    pub fn names(&self) -> Vec<&OsStr> {
        let mut names = Vec::with_capacity(self.depth);
        let mut at = self;
        while let Some((parent, _)) = &at.parent {
            names.push(at.name.as_os_str());
            at = parent;
        }
        names.reverse();
        names
    }

    /// The path of an entry.
    pub fn path(&self, name: &OsStr) -> PathBuf {
        self.names().into_iter().chain([name]).collect()
    }

    /// The path of an entry, for messages.
    pub fn show(&self, name: &OsStr) -> String {
        path::escape(self.path(name).as_os_str())
    }

    /// Sets what became of an entry.
    pub fn set(&self, position: usize, stat: Stat, state: State) {
        if let Some(item) = self.inner.lock().items.get_mut(position) {
            item.stat = stat;
            item.state = state;
        }
    }

    /// One task fewer; `true` for the last one.
    pub fn is_complete(&self) -> bool {
        self.pending.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Not by recursion either: when a backup ends early, the deepest folder may be the last to hold all above it.
        let mut above = self.parent.take();
        while let Some((folder, _)) = above {
            above = Arc::into_inner(folder).and_then(|mut f| f.parent.take());
        }
    }
}

/// What is written of an entry whose metadata could not be read whole: no time of change, so that the next backup
/// does not take it for unchanged.
pub(crate) fn doubtful(stat: &Stat) -> Stat {
    Stat { ctime: FileTime::default(), ..*stat }
}

/// The node of an entry.
pub(crate) fn node(stat: &Stat, entry: &PastEntry, owners: &Owners, root_device: u64) -> Node {
    let name_of = |name: Option<Arc<str>>| name.unwrap_or_else(|| Arc::from(""));
    let is_dir = stat.kind == Kind::Dir;
    let has_rdev = matches!(stat.kind, Kind::CharDevice | Kind::BlockDevice);
    // A device's number may change with the next start of the machine; within one file system it tells nothing.
    let device_id = match () {
        () if is_dir || stat.links < 2 => 0,
        () if stat.device == root_device => 1,
        () => stat.device,
    };
    Node {
        name: entry.name.clone(),
        kind: Some(stat.kind),
        mode: stat.mode,
        mtime: stat.mtime,
        ctime: stat.ctime,
        uid: stat.uid,
        gid: stat.gid,
        user: name_of(owners.user(stat.uid)),
        group: name_of(owners.group(stat.gid)),
        inode: stat.inode,
        device_id,
        size: if stat.kind == Kind::File { entry.size } else { 0 },
        links: if is_dir { 0 } else { stat.links },
        link_target: entry.link_target.clone(),
        xattrs: entry.xattrs.clone(),
        device: if has_rdev { stat.rdev } else { 0 },
        content: entry.content.clone(),
        subtree: if is_dir { entry.tree } else { None },
    }
}

/// An entry that has no content, from what was just looked at.
pub(crate) fn entry(name: OsString, stat: &Stat) -> PastEntry {
    PastEntry {
        name,
        kind: stat.kind,
        size: stat.size,
        mtime: stat.mtime,
        ctime: stat.ctime,
        inode: stat.inode,
        meta: Meta::of(stat),
        content: Vec::new(),
        xattrs: Vec::new(),
        link_target: OsString::new(),
        extents: None,
        tree: None,
        origin: None,
    }
}
