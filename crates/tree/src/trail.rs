//! The way from a root down to a folder, for walks of any depth with few open handles.
//!
//! Invariant: at most [`OPEN`] handles plus the root are open. A level whose handle was closed is opened again
//! from the root, level by level, and must be the same folder (device and inode) as before, else `ESTALE`: a walk
//! cannot be led astray by folders that are moved while it goes on. No links, no mounts. Nothing is locked.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::fs::{FileSystem, Stat};
use crate::scan::open_folder;

/// Handles that a trail keeps open at most, beside its root.
const OPEN: usize = 32;

/// A folder beneath a root, and how to go back up.
#[derive(Debug)]
pub struct Trail<'a> {
    fs: &'a dyn FileSystem,
    root: OwnedFd,
    device: u64,
    levels: Vec<Level>,
    /// Levels below this index have no open handle; those from it on have one.
    closed: usize,
}

#[derive(Debug)]
struct Level {
    name: OsString,
    id: (u64, u64),
    /// Device of the folder itself (an entry on another one is perhaps a mount).
    device: u64,
    handle: Option<OwnedFd>,
}

impl<'a> Trail<'a> {
    /// Stands at an open folder.
    pub fn new(fs: &'a dyn FileSystem, root: OwnedFd) -> io::Result<Self> {
        let device = fs.stat_handle(root.as_fd())?.device;
        Ok(Trail { fs, root, device, levels: Vec::new(), closed: 0 })
    }

    /// Levels below the root: 0 at the root.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.levels.len()
    }

    /// Device of the folder where the trail stands.
    #[must_use]
    pub fn device(&self) -> u64 {
        self.levels.last().map_or(self.device, |level| level.device)
    }

    /// The path from the root to here; empty at the root.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let mut path = Vec::new();
        for level in &self.levels {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(level.name.as_bytes());
        }
        PathBuf::from(OsStr::from_bytes(&path))
    }

    /// The folder where the trail stands.
    pub fn handle(&mut self) -> io::Result<BorrowedFd<'_>> {
        if !self.levels.is_empty() && self.closed == self.levels.len() {
            self.reopen()?;
        }
        Ok(self.levels.last().and_then(|level| level.handle.as_ref()).unwrap_or(&self.root).as_fd())
    }

    /// Goes into a folder of the current one; tells what it is. `EXDEV` when a mount begins there.
    pub fn enter(&mut self, name: &OsStr) -> io::Result<Stat> {
        let (fs, device) = (self.fs, self.device());
        let (handle, stat) = open_folder(fs, self.handle()?, name, device)?;
        if self.levels.len() - self.closed == OPEN {
            self.close_first();
        }
        let level = Level { name: name.to_owned(), id: stat.id(), device: stat.device, handle: Some(handle) };
        self.levels.push(level);
        Ok(stat)
    }

    /// Goes back up; returns the name of the folder that was left, none at the root.
    pub fn leave(&mut self) -> Option<OsString> {
        let level = self.levels.pop()?;
        self.closed = self.closed.min(self.levels.len());
        Some(level.name)
    }

    fn close_first(&mut self) {
        if let Some(level) = self.levels.get_mut(self.closed) {
            level.handle = None;
            self.closed += 1;
        }
    }

    /// Opens the last levels again.
    fn reopen(&mut self) -> io::Result<()> {
        let first_kept = self.levels.len().saturating_sub(OPEN);
        let mut above: Option<OwnedFd> = None;
        let mut device = self.device;
        for (index, level) in self.levels.iter_mut().enumerate() {
            let at = above.as_ref().unwrap_or(&self.root).as_fd();
            let (handle, stat) = open_folder(self.fs, at, &level.name, device)?;
            if stat.id() != level.id {
                return Err(Errno::STALE.into());
            }
            device = stat.device;
            if index >= first_kept {
                level.handle = Some(handle.try_clone()?);
            }
            above = Some(handle);
        }
        self.closed = first_kept;
        Ok(())
    }
}
