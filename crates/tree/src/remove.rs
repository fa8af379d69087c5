//! Deleting a tree.
//!
//! Invariants: only entries reached by handles from the given folder are deleted; links are deleted, not followed;
//! a mount is never entered or deleted, it ends the work with an error. Killed in between, the rest is still
//! there and the same call goes on with it. Nothing is synced: the caller syncs the folder it was called on.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use backstay_model::{Code, Error, Result};
use rustix::io::Errno;

use crate::fs::{FileSystem, Kind};
use crate::path::escape;
use crate::trail::Trail;

/// How often a folder is emptied again when somebody else writes into it meanwhile.
const PATIENCE: u32 = 16;

/// Deletes `name` in the folder `dir` with all that is in it, down to any depth. Nothing there is fine.
pub fn remove_tree(fs: &dyn FileSystem, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    let start = dir.try_clone_to_owned().map_err(|e| failed(name.into(), e))?;
    let mut work = Removal { trail: Trail::new(fs, start).map_err(|e| failed(name.into(), e))?, fs };
    work.run(name).map_err(|e| {
        let mut at = work.trail.path().into_os_string().into_encoded_bytes();
        if at.is_empty() {
            at.extend_from_slice(name.as_bytes());
        }
        failed(OsStr::from_bytes(&at).to_owned(), e)
    })
}

fn failed(at: OsString, e: io::Error) -> Error {
    let at = escape(&at);
    match Errno::from_io_error(&e) {
        Some(Errno::XDEV | Errno::BUSY) => {
            Error::new(Code::Conflict, format!("Something is mounted in {at}, which is to be deleted"))
                .advise("Unmount it and run the command again. Nothing on the mount was deleted.")
                .because(e)
        }
        _ => Error::new(Code::System, format!("Cannot delete {at}")).because(e),
    }
}

struct Removal<'a> {
    fs: &'a dyn FileSystem,
    trail: Trail<'a>,
}

impl Removal<'_> {
    fn run(&mut self, name: &OsStr) -> io::Result<()> {
        // Folders still to be deleted, by level; the last one is where the trail stands.
        let mut levels: Vec<(Vec<OsString>, u32)> = vec![(Vec::new(), 0)];
        self.remove_entry(name, None, &mut levels)?;
        while let Some((folders, _)) = levels.last_mut() {
            if let Some(next) = folders.pop() {
                if self.enter(&next)? {
                    levels.push((Vec::new(), 0));
                    self.empty(&mut levels)?;
                }
                continue;
            }
            if levels.len() == 1 {
                break;
            }
            let Some((_, tries)) = levels.pop() else { break };
            let Some(left) = self.trail.leave() else { break };
            match self.in_writable(|fs, dir| fs.remove_dir(dir, &left)) {
                Err(e) if is_not_empty(&e) && tries < PATIENCE => {
                    self.trail.enter(&left)?;
                    levels.push((Vec::new(), tries + 1));
                    self.empty(&mut levels)?;
                }
                other => gone_is_fine(other)?,
            }
        }
        Ok(())
    }

    /// Deletes what is in the current folder and is no folder; notes the folders.
    fn empty(&mut self, levels: &mut [(Vec<OsString>, u32)]) -> io::Result<()> {
        let entries = self.fs.entries(self.trail.handle()?)?;
        for (name, kind) in entries {
            self.remove_entry(&name, kind, levels)?;
        }
        Ok(())
    }

    fn remove_entry(
        &mut self,
        name: &OsStr,
        kind: Option<Kind>,
        levels: &mut [(Vec<OsString>, u32)],
    ) -> io::Result<()> {
        let kind = match kind {
            Some(kind) => kind,
            None => match self.in_writable(|fs, dir| fs.stat(dir, name)) {
                Ok(stat) => stat.kind,
                Err(e) => return gone_is_fine(Err(e)),
            },
        };
        if kind == Kind::Dir {
            if let Some((folders, _)) = levels.last_mut() {
                folders.push(name.to_owned());
            }
            return Ok(());
        }
        match self.in_writable(|fs, dir| fs.unlink(dir, name)) {
            // It was swapped for a folder: the next look at this folder finds it.
            Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::ISDIR | Errno::PERM)) => {
                match self.fs.stat(self.trail.handle()?, name) {
                    Ok(stat) if stat.kind == Kind::Dir => Ok(()),
                    _ => Err(e),
                }
            }
            other => gone_is_fine(other),
        }
    }

    /// Goes into a folder, making it readable first where needed. False when it is no folder any more.
    fn enter(&mut self, name: &OsStr) -> io::Result<bool> {
        let entered = match self.trail.enter(name) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                self.in_writable(|fs, dir| fs.set_mode_at(dir, name, 0o700))?;
                self.trail.enter(name)
            }
            other => other,
        };
        match entered {
            Ok(_) => Ok(true),
            Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NOTDIR | Errno::LOOP)) => {
                self.in_writable(|fs, dir| fs.unlink(dir, name)).map(|()| false)
            }
            Err(e) => gone_is_fine(Err(e)).map(|()| false),
        }
    }

    /// Does something in the current folder; where its mode forbids it, gives ourselves the right first. The folder
    /// that the caller named is left as it is.
    fn in_writable<T>(
        &mut self,
        change: impl Fn(&dyn FileSystem, BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        let fs = self.fs;
        let ours = self.trail.depth() > 0;
        let dir = self.trail.handle()?;
        match change(fs, dir) {
            Err(e) if ours && e.kind() == io::ErrorKind::PermissionDenied => {
                if fs.set_mode(dir.as_fd(), 0o700).is_err() {
                    return Err(e);
                }
                change(fs, dir)
            }
            other => other,
        }
    }
}

fn is_not_empty(e: &io::Error) -> bool {
    matches!(Errno::from_io_error(e), Some(Errno::NOTEMPTY | Errno::EXIST))
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
