//! What two entries are compared by.
//!
//! Invariant: entries are the same exactly when a restore of the second over the first would change nothing: inode,
//! change time and the names of owners play no role, numbers of owners do.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use backstay_tree::fs::Kind;

use super::{Extent, Meta, Seen};
use crate::node::Node;

impl Meta {
    /// Of a node.
    pub(super) fn of(node: &Node) -> Self {
        Meta { uid: node.uid, gid: node.gid, mode: node.mode, mtime: node.mtime, xattrs: node.xattrs.clone() }
    }
}

impl Seen {
    /// Of a live node; none for kinds that are unknown.
    pub(super) fn of(node: &Node) -> Option<Self> {
        let kind = node.kind?;
        let size = if kind == Kind::File { node.size } else { 0 };
        Some(Seen { kind, inode: node.inode, ctime: node.ctime, size })
    }
}

impl Extent {
    /// Of an entry that is no folder; none for kinds that are unknown.
    pub(super) fn of(node: &Node) -> Option<Self> {
        let kind = node.kind?;
        let (files, bytes) = if kind == Kind::File { (1, node.size) } else { (0, 0) };
        Some(Extent { kind, files, bytes })
    }

    pub(super) fn folder() -> Self {
        Extent { kind: Kind::Dir, files: 0, bytes: 0 }
    }

    pub(super) fn add(&mut self, other: Extent) {
        self.files += other.files;
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// Whether the live attributes are those wanted. Labels that a security module gives to every new entry are its own
/// business: a restore does not remove them.
pub(super) fn same_xattrs(live: &[(OsString, Vec<u8>)], target: &[(OsString, Vec<u8>)]) -> bool {
    let is_label =
        |name: &OsString| name.as_bytes().starts_with(b"security.") && name != "security.capability";
    let wanted = |name: &OsString| target.iter().any(|(n, _)| n == name);
    target.iter().all(|x| live.contains(x)) && live.iter().all(|(name, _)| wanted(name) || is_label(name))
}

/// Whether all metadata that a restore sets is the same.
pub(super) fn same_metadata(live: &Node, target: &Node) -> bool {
    let rest = |n: &Node| (n.uid, n.gid, n.mtime);
    rest(live) == rest(target)
        && (live.mode == target.mode || target.kind == Some(Kind::Symlink))
        && same_xattrs(&live.xattrs, &target.xattrs)
}

/// Whether two entries that are no folders hold the same.
pub(super) fn same_content(live: &Node, target: &Node) -> bool {
    live.kind == target.kind
        && live.size == target.size
        && live.device == target.device
        && live.link_target == target.link_target
        && live.content == target.content
}
