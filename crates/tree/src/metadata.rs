//! All that an entry has beside its content: reading it, and setting it on a new entry.
//!
//! Invariants of setting: the order is owner, attributes, mode, times, since each would undo a later one (a change
//! of owner drops set-uid and capabilities, an ACL rewrites the mode, everything but times leaves the times
//! alone only if they come last). What fails is told, the rest is still done. An entry whose owner could not be
//! given never gets set-uid or set-gid: it would lend the rights of the wrong user. Killed in between, the entry
//! has the private mode it was made with or its final one.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::io::Errno;

use crate::fs::{FileSystem, FileTime, Kind, Stat};
use crate::owners::Owners;

/// All about an entry but its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// What `statx` tells.
    pub stat: Stat,
    /// Name of the owner, where the system has one.
    pub user: Option<Arc<str>>,
    /// Name of the group, where the system has one.
    pub group: Option<Arc<str>>,
    /// Extended attributes, POSIX ACLs among them, sorted by name.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
    /// Target, for symbolic links.
    pub link_target: Option<OsString>,
}

impl Metadata {
    /// Of an open file or folder that has been looked at.
    pub fn of_handle(
        fs: &dyn FileSystem,
        handle: BorrowedFd<'_>,
        stat: Stat,
        owners: &Owners,
    ) -> io::Result<Self> {
        let xattrs = fs.xattrs(handle)?;
        Ok(Metadata {
            user: owners.user(stat.uid),
            group: owners.group(stat.gid),
            xattrs,
            link_target: None,
            stat,
        })
    }

    /// Of an entry that is not opened (a link, a device, a FIFO, a socket) and has been looked at.
    pub fn of_entry(
        fs: &dyn FileSystem,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        stat: Stat,
        owners: &Owners,
    ) -> io::Result<Self> {
        let link_target = if stat.kind == Kind::Symlink { Some(fs.read_link(dir, name)?) } else { None };
        let xattrs = fs.xattrs_at(dir, name)?;
        Ok(Metadata { user: owners.user(stat.uid), group: owners.group(stat.gid), xattrs, link_target, stat })
    }
}

/// The metadata that an entry is to get.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits (`0o7777`); not used for symbolic links.
    pub mode: u32,
    /// Last change of content; the access time is set to the same.
    pub mtime: FileTime,
    /// Extended attributes; others are removed, except those that the system keeps itself.
    pub xattrs: &'a [(OsString, Vec<u8>)],
}

impl<'a> From<&'a Metadata> for Wanted<'a> {
    fn from(from: &'a Metadata) -> Self {
        let Stat { uid, gid, mode, mtime, .. } = from.stat;
        Wanted { uid, gid, mode, mtime, xattrs: &from.xattrs }
    }
}

/// What of the metadata could not be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// What is there could not be looked at.
    Present,
    /// Owner and group.
    Owner,
    /// Permission bits; or the set-uid and set-gid bits were left out because the owner could not be given.
    Mode,
    /// The times.
    Times,
    /// An extended attribute.
    Xattr(OsString),
}

/// Metadata that could not be set, and why.
#[derive(Debug)]
pub struct Problem {
    /// Which part.
    pub what: Attribute,
    /// Why.
    pub error: io::Error,
}

impl Problem {
    /// Whether the reason is that only root (or the owner) may do it: expected of a restore by another user.
    #[must_use]
    pub fn is_lack_of_rights(&self) -> bool {
        self.error.kind() == io::ErrorKind::PermissionDenied
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            Attribute::Present => f.write_str("metadata not read")?,
            Attribute::Owner => f.write_str("owner not set")?,
            Attribute::Mode => f.write_str("mode not set")?,
            Attribute::Times => f.write_str("times not set")?,
            Attribute::Xattr(name) => write!(f, "attribute {} not set", crate::path::escape(name))?,
        }
        write!(f, ": {}", self.error)
    }
}

/// Sets the metadata of an open file or folder. Of a folder: after its entries are done, else its times and a
/// read-only mode come too early. Returns what could not be set.
pub fn apply(fs: &dyn FileSystem, handle: BorrowedFd<'_>, want: &Wanted<'_>) -> Vec<Problem> {
    set_all(&Open { fs, handle }, want)
}

/// The same of an entry that cannot be opened: a symbolic link, device, FIFO or socket.
pub fn apply_at(fs: &dyn FileSystem, dir: BorrowedFd<'_>, name: &OsStr, want: &Wanted<'_>) -> Vec<Problem> {
    set_all(&Named { fs, dir, name }, want)
}

/// The calls that setting needs, on a handle or on a name.
trait Target {
    fn stat(&self) -> io::Result<Stat>;
    fn xattrs(&self) -> io::Result<Vec<(OsString, Vec<u8>)>>;
    fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()>;
    fn set_mode(&self, mode: u32) -> io::Result<()>;
    fn set_times(&self, mtime: FileTime) -> io::Result<()>;
    fn set_xattr(&self, name: &OsStr, value: &[u8]) -> io::Result<()>;
    fn remove_xattr(&self, name: &OsStr) -> io::Result<()>;
}

struct Open<'a> {
    fs: &'a dyn FileSystem,
    handle: BorrowedFd<'a>,
}

impl Target for Open<'_> {
    fn stat(&self) -> io::Result<Stat> {
        self.fs.stat_handle(self.handle)
    }
    fn xattrs(&self) -> io::Result<Vec<(OsString, Vec<u8>)>> {
        self.fs.xattrs(self.handle)
    }
    fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()> {
        self.fs.set_owner(self.handle, uid, gid)
    }
    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.fs.set_mode(self.handle, mode)
    }
    fn set_times(&self, mtime: FileTime) -> io::Result<()> {
        self.fs.set_times(self.handle, mtime)
    }
    fn set_xattr(&self, name: &OsStr, value: &[u8]) -> io::Result<()> {
        self.fs.set_xattr(self.handle, name, value)
    }
    fn remove_xattr(&self, name: &OsStr) -> io::Result<()> {
        self.fs.remove_xattr(self.handle, name)
    }
}

struct Named<'a> {
    fs: &'a dyn FileSystem,
    dir: BorrowedFd<'a>,
    name: &'a OsStr,
}

impl Target for Named<'_> {
    fn stat(&self) -> io::Result<Stat> {
        self.fs.stat(self.dir, self.name)
    }
    fn xattrs(&self) -> io::Result<Vec<(OsString, Vec<u8>)>> {
        self.fs.xattrs_at(self.dir, self.name)
    }
    fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()> {
        self.fs.set_owner_at(self.dir, self.name, uid, gid)
    }
    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.fs.set_mode_at(self.dir, self.name, mode)
    }
    fn set_times(&self, mtime: FileTime) -> io::Result<()> {
        self.fs.set_times_at(self.dir, self.name, mtime)
    }
    fn set_xattr(&self, name: &OsStr, value: &[u8]) -> io::Result<()> {
        self.fs.set_xattr_at(self.dir, self.name, name, value)
    }
    fn remove_xattr(&self, name: &OsStr) -> io::Result<()> {
        self.fs.remove_xattr_at(self.dir, self.name, name)
    }
}

/// Set-uid and set-gid.
const LENDS_RIGHTS: u32 = 0o6000;

fn set_all(target: &impl Target, want: &Wanted<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let now = match target.stat() {
        Ok(now) => now,
        Err(error) => return vec![Problem { what: Attribute::Present, error }],
    };
    let mut owned = true;
    let mut mode_is_known = true;
    if (now.uid, now.gid) != (want.uid, want.gid) {
        mode_is_known = false;
        if let Err(error) = target.set_owner(want.uid, want.gid) {
            owned = false;
            problems.push(Problem { what: Attribute::Owner, error });
        }
    }
    mode_is_known &= !set_xattrs(target, want.xattrs, &mut problems);
    if now.kind != Kind::Symlink {
        set_mode(target, want, &now, owned, mode_is_known, &mut problems);
    }
    if let Err(error) = target.set_times(want.mtime) {
        problems.push(Problem { what: Attribute::Times, error });
    }
    problems
}

fn set_mode(
    target: &impl Target,
    want: &Wanted<'_>,
    now: &Stat,
    owned: bool,
    now_is_current: bool,
    problems: &mut Vec<Problem>,
) {
    let mode = if owned { want.mode & 0o7777 } else { want.mode & 0o7777 & !LENDS_RIGHTS };
    if now_is_current && now.mode == mode {
        return;
    }
    let set = target.set_mode(mode).and_then(|()| {
        // The kernel drops set-gid without a word when the group is not one of ours.
        if mode & LENDS_RIGHTS != 0 && target.stat()?.mode != mode { Err(Errno::PERM.into()) } else { Ok(()) }
    });
    let left_out = if owned || want.mode & LENDS_RIGHTS == 0 { Ok(()) } else { Err(Errno::PERM.into()) };
    if let Err(error) = set.and(left_out) {
        problems.push(Problem { what: Attribute::Mode, error });
    }
}

/// Makes the attributes those wanted; returns whether any was changed.
fn set_xattrs(target: &impl Target, want: &[(OsString, Vec<u8>)], problems: &mut Vec<Problem>) -> bool {
    let have = match target.xattrs() {
        Ok(have) => have,
        Err(error) => {
            problems.push(Problem { what: Attribute::Present, error });
            Vec::new()
        }
    };
    let mut changed = false;
    for (name, _) in have.iter().filter(|(name, _)| !want.iter().any(|(wanted, _)| wanted == name)) {
        // Labels that a security module gives to every new entry are its own business.
        if name.as_bytes().starts_with(b"security.") && name != "security.capability" {
            continue;
        }
        changed = true;
        if let Err(error) = target.remove_xattr(name)
            && Errno::from_io_error(&error) != Some(Errno::NODATA)
        {
            problems.push(Problem { what: Attribute::Xattr(name.clone()), error });
        }
    }
    for wanted in want.iter().filter(|wanted| !have.contains(wanted)) {
        changed = true;
        if let Err(error) = target.set_xattr(&wanted.0, &wanted.1) {
            problems.push(Problem { what: Attribute::Xattr(wanted.0.clone()), error });
        }
    }
    changed
}
