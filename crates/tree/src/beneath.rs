//! Writing beneath a root, and nowhere else.
//!
//! Invariants: paths are relative and of plain components; no component may be a symbolic link, and no mount below
//! the root is entered, so nothing can be made to land outside, whatever is swapped in meanwhile. Folders that
//! are made are empty and private (0700) until their metadata is applied. Killed in between, folders made so
//! far stay; nothing is synced here.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_model::{Code, Error, Result};
use rustix::io::Errno;

use crate::fs::{FileSystem, is_component};
use crate::path::escape;
use crate::scan::open_folder;

/// Bytes of a path that the kernel takes in one call, with room to spare.
const PATH_PIECE: usize = 3 * 1024;

/// The target folder of a restore, held open.
#[derive(Debug)]
pub struct Root {
    fs: Arc<dyn FileSystem>,
    handle: OwnedFd,
    device: u64,
    path: PathBuf,
}

impl Root {
    /// Holds the folder at `path`, which must exist. Links on the way there are followed: the caller names it.
    pub fn open(fs: Arc<dyn FileSystem>, path: &Path) -> Result<Self> {
        let open = || {
            let handle = fs.open_root(path)?;
            let device = fs.stat_handle(handle.as_fd())?.device;
            Ok((handle, device))
        };
        let (handle, device) = open().map_err(|e: io::Error| {
            let path = escape(path.as_os_str());
            Error::new(Code::TargetUnusable, format!("Cannot open the folder {path}")).because(e)
        })?;
        Ok(Root { fs, handle, device, path: path.to_owned() })
    }

    /// A folder that is open already. `path` is for messages.
    pub fn at(fs: Arc<dyn FileSystem>, handle: OwnedFd, path: &Path) -> io::Result<Self> {
        let device = fs.stat_handle(handle.as_fd())?.device;
        Ok(Root { fs, handle, device, path: path.to_owned() })
    }

    /// The file system it is on.
    #[must_use]
    pub fn fs(&self) -> &Arc<dyn FileSystem> {
        &self.fs
    }

    /// The folder itself.
    #[must_use]
    pub fn handle(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// Device that the folder lies on.
    #[must_use]
    pub fn device(&self) -> u64 {
        self.device
    }

    /// The path it was opened by, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a folder below; the empty path is the root itself. Any depth, any length of path.
    pub fn open_dir(&self, path: &Path) -> Result<OwnedFd> {
        self.descend(path).map_err(|e| self.failed("open the folder", path, e))
    }

    /// Opens a folder below, making what is missing on the way.
    pub fn make_dirs(&self, path: &Path) -> Result<OwnedFd> {
        let mut at = self.handle.try_clone().map_err(|e| self.failed("open the folder", path, e))?;
        if path.as_os_str().is_empty() {
            return Ok(at);
        }
        // Mostly it is there already.
        match self.descend(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other.map_err(|e| self.failed("open the folder", path, e)),
        }
        for name in path.as_os_str().as_bytes().split(|b| *b == b'/') {
            at = self
                .make_dir(at.as_fd(), OsStr::from_bytes(name))
                .map_err(|e| self.failed("make the folder", path, e))?;
        }
        Ok(at)
    }

    /// Opens a folder of a folder beneath the root, making it when it is missing.
    pub fn make_dir(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        match self.fs.create_dir(dir, name) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        Ok(open_folder(&*self.fs, dir, name, self.device)?.0)
    }

    /// The same with the error of the kernel.
    pub(crate) fn descend(&self, path: &Path) -> io::Result<OwnedFd> {
        let bytes = path.as_os_str().as_bytes();
        if bytes.is_empty() {
            return self.handle.try_clone();
        }
        if !bytes.split(|b| *b == b'/').all(|name| is_component(OsStr::from_bytes(name))) {
            return Err(Errno::INVAL.into());
        }
        let mut rest = bytes;
        let mut at: Option<OwnedFd> = None;
        while !rest.is_empty() {
            let (piece, after) = split_path(rest);
            let from = at.as_ref().map_or(self.handle.as_fd(), AsFd::as_fd);
            at = Some(self.fs.open_dir_beneath(from, Path::new(OsStr::from_bytes(piece)))?);
            rest = after;
        }
        at.ok_or_else(|| Errno::INVAL.into())
    }

    fn failed(&self, what: &str, path: &Path, e: io::Error) -> Error {
        writing(&format!("Cannot {what}"), &self.path.join(path), e)
    }
}

/// Takes whole components off the front of a path, as many as the kernel takes at once.
fn split_path(path: &[u8]) -> (&[u8], &[u8]) {
    if path.len() <= PATH_PIECE {
        return (path, &[]);
    }
    let cut = path.get(..PATH_PIECE).and_then(|front| front.iter().rposition(|b| *b == b'/'));
    let cut = cut.or_else(|| path.iter().position(|b| *b == b'/'));
    match cut.and_then(|at| path.split_at_checked(at)) {
        Some((piece, [b'/', after @ ..])) => (piece, after),
        _ => (path, &[]),
    }
}

/// The error for a failed call that was to change `path` in the target of a restore: its code tells a full disk
/// and an unsafe path from the rest. `what` begins the sentence: "Cannot write".
#[must_use]
pub fn writing(what: &str, path: &Path, e: io::Error) -> Error {
    let path = escape(path.as_os_str());
    let (code, why) = match Errno::from_io_error(&e) {
        Some(Errno::NOSPC | Errno::DQUOT) => (Code::TargetFull, ": no space is left"),
        Some(Errno::XDEV) => (Code::UnsafePath, ": something else is mounted there"),
        Some(Errno::LOOP) => (Code::UnsafePath, ": a symbolic link is in the way"),
        Some(Errno::INVAL | Errno::NAMETOOLONG) => (Code::UnsafePath, ": that name cannot be made"),
        _ => (Code::RestoreIncomplete, ""),
    };
    Error::new(code, format!("{what} {path}{why}")).because(e)
}

/// The error for a failed call that was to read `path`. `what` begins the sentence: "Cannot read".
#[must_use]
pub fn reading(what: &str, path: &Path, e: io::Error) -> Error {
    Error::new(Code::FileUnreadable, format!("{what} {}", escape(path.as_os_str()))).because(e)
}
