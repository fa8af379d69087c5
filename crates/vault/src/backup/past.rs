//! What the last backup of the same tree knew about a folder, from whichever source is at hand: the local file
//! index (fast), or the trees of the last snapshot in the vault (slower, always right).
//!
//! Invariant: an entry is believed only if its content is really in the vault; a wrong or damaged past can make a
//! backup slower, never wrong.

use std::ffi::{OsStr, OsString};

use backstay_tree::fs::{FileTime, Kind, Stat};

use crate::blob::BlobKind;
use crate::id::Id;
use crate::node::Node;

/// Where a folder's own past is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A block of the file index.
    Block(Block),
    /// A tree in the vault.
    Tree(Id),
}

/// A place in the file index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Block {
    pub offset: u64,
    pub length: u32,
}

/// Ranges of data of a sparse file.
pub(crate) type Extents = Vec<(u64, u64)>;

/// What else belongs to an entry. Nothing is compared with it: whoever changes one of these changes the time of change
/// too. It is for entries that are gone when a second pass comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub links: u64,
    pub rdev: u64,
}

impl Meta {
    pub fn of(stat: &Stat) -> Self {
        Meta { mode: stat.mode, uid: stat.uid, gid: stat.gid, links: stat.links, rdev: stat.rdev }
    }
}

/// An entry of a folder as the last backup saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PastEntry {
    pub name: OsString,
    pub kind: Kind,
    pub size: u64,
    pub mtime: FileTime,
    pub ctime: FileTime,
    pub inode: u64,
    pub meta: Meta,
    pub content: Vec<Id>,
    pub xattrs: Vec<(OsString, Vec<u8>)>,
    pub link_target: OsString,
    /// Data ranges of a sparse file; none when it is not sparse or it is not known.
    pub extents: Option<Extents>,
    /// For folders: their tree.
    pub tree: Option<Id>,
    /// For folders: where their own past is.
    pub origin: Option<Origin>,
}

/// A folder as the last backup saw it.
#[derive(Debug, Default)]
pub(crate) struct Past {
    /// Its tree in the vault; none when nothing is known.
    pub tree: Option<Id>,
    /// Its entries, sorted by the bytes of their names.
    pub entries: Vec<PastEntry>,
    /// Where in the file index it stands.
    pub block: Option<Block>,
}

impl PastEntry {
    /// From a node of the last snapshot; none for kinds that are unknown.
    pub fn from_node(node: Node) -> Option<Self> {
        Some(PastEntry {
            kind: node.kind?,
            name: node.name,
            size: node.size,
            mtime: node.mtime,
            ctime: node.ctime,
            inode: node.inode,
            meta: Meta {
                mode: node.mode,
                uid: node.uid,
                gid: node.gid,
                links: node.links,
                rdev: node.device,
            },
            content: node.content,
            xattrs: node.xattrs,
            link_target: node.link_target,
            extents: None,
            tree: node.subtree,
            origin: node.subtree.map(Origin::Tree),
        })
    }

    /// Whether the entry is as it was: same kind, size, times and inode, and last changed before `limit`, the
    /// time from which a change could hide behind the same time stamp.
    pub fn matches(&self, stat: &Stat, limit: FileTime) -> bool {
        self.kind == stat.kind
            && (self.kind == Kind::Dir || self.size == stat.size)
            && self.mtime == stat.mtime
            && self.ctime == stat.ctime
            && self.inode == stat.inode
            && stat.ctime < limit
    }

    /// What a look at it would have told, on that device.
    pub fn stat(&self, device: u64) -> Stat {
        let Meta { mode, uid, gid, links, rdev } = self.meta;
        Stat {
            kind: self.kind,
            mode,
            uid,
            gid,
            size: self.size,
            blocks: 0,
            links,
            inode: self.inode,
            device,
            rdev,
            mtime: self.mtime,
            ctime: self.ctime,
            mount_root: false,
        }
    }

    /// Whether all of its content is in the vault.
    pub fn is_stored(&self, has: impl Fn(BlobKind, &Id) -> bool) -> bool {
        self.content.iter().all(|id| has(BlobKind::Data, id))
    }
}

impl Past {
    /// The position of an entry.
    pub fn position(&self, name: &OsStr) -> Option<usize> {
        self.entries.binary_search_by(|e| e.name.as_os_str().cmp(name)).ok()
    }
}
