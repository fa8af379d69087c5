//! Deleting a tree.
//!
//! Invariants: only entries reached by handles from the given folder are deleted; links are deleted, not followed;
//! a mount is never entered or deleted, it ends the work with an error. Killed in between, the rest is still
//! there and the same call goes on with it. Nothing is synced: the caller syncs the folder it was called on.
//! No locks: threads that delete side by side have a folder each.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use backstay_model::{Code, Error, Result};
use rustix::io::Errno;

use crate::fs::{FileSystem, Kind};
use crate::path::escape;
use crate::scan::open_folder;
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

/// Folders beside each other from which threads are worth their start.
const WIDE: usize = 32;
/// How many levels are looked at for so many folders.
const LEVELS: usize = 16;
/// Threads: each deletion waits for the file system's log, and those in different folders wait at the same time.
const THREADS: usize = 8;

/// The same for a tree that may be large: where it is wide, several threads delete a folder each.
pub(crate) fn remove_large_tree(fs: &dyn FileSystem, dir: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    // What cannot be looked at or deleted here is met again below, and told there.
    let folders = many_folders(fs, dir, name).unwrap_or_default();
    if !folders.is_empty() {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    while let Some((parent, name)) = folders.get(next.fetch_add(1, Ordering::Relaxed)) {
                        remove_tree(fs, parent.as_fd(), name).unwrap_or_default();
                    }
                });
            }
        });
    }
    remove_tree(fs, dir, name)
}

/// The folders of the first level below that has many, each with the folder it is in; none where no level has.
fn many_folders(
    fs: &dyn FileSystem,
    dir: BorrowedFd<'_>,
    name: &OsStr,
) -> io::Result<Vec<(Arc<OwnedFd>, OsString)>> {
    let mut level = vec![(Arc::new(dir.try_clone_to_owned()?), name.to_owned())];
    for _ in 0..LEVELS {
        let mut below = Vec::new();
        for (parent, name) in &level {
            let device = fs.stat_handle(parent.as_fd())?.device;
            let Ok((handle, _)) = open_folder(fs, parent.as_fd(), name, device) else { continue };
            let handle = Arc::new(handle);
            let entries = fs.entries(handle.as_fd())?.into_iter();
            let folders = entries.filter(|(_, kind)| *kind == Some(Kind::Dir));
            below.extend(folders.map(|(name, _)| (handle.clone(), name)));
        }
        if below.len() >= WIDE {
            return Ok(below);
        }
        level = below;
    }
    Ok(Vec::new())
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use super::*;
    use crate::fs::Host;

    fn write(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    }

    #[test]
    fn large_trees_go_wholly_and_nothing_else() {
        for way in ["", "one/two/three"] {
            let dir = tempfile::tempdir().unwrap();
            let kept = dir.path().join("kept/deep/file");
            write(&kept);
            let top = dir.path().join("gone").join(way);
            for n in 0..WIDE + 5 {
                for m in 0..5 {
                    write(&top.join(format!("f{n}/sub/deeper/{m}")));
                    write(&top.join(format!("f{n}/{m}")));
                }
                symlink(dir.path().join("kept"), top.join(format!("f{n}/out"))).unwrap();
                symlink(dir.path().join("kept"), top.join(format!("out{n}"))).unwrap();
            }
            std::fs::set_permissions(top.join("f3/sub"), PermissionsExt::from_mode(0o500)).unwrap();
            std::fs::set_permissions(top.join("f4"), PermissionsExt::from_mode(0o000)).unwrap();
            let root = Host.open_root(dir.path()).unwrap();
            let wide = many_folders(&Host, root.as_fd(), OsStr::new("gone")).unwrap();
            assert_eq!(wide.len(), WIDE + 5, "several threads work");
            drop(wide);
            remove_large_tree(&Host, root.as_fd(), OsStr::new("gone")).unwrap();
            let left: Vec<_> =
                std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert_eq!(left, ["kept"]);
            assert_eq!(std::fs::read(&kept).unwrap(), b"x");
            remove_large_tree(&Host, root.as_fd(), OsStr::new("gone")).unwrap();
        }
    }

    #[test]
    fn what_hinders_is_told_after_the_rest_is_gone() {
        let fs = crate::fs::Faulty::new(Arc::new(Host));
        let dir = tempfile::tempdir().unwrap();
        for n in 0..WIDE {
            write(&dir.path().join(format!("gone/f{n}/file")));
        }
        let root = Host.open_root(dir.path()).unwrap();
        fs.fail(crate::fs::Fault::about("f7", 5));
        let e = remove_large_tree(&fs, root.as_fd(), OsStr::new("gone")).unwrap_err();
        assert_eq!(e.code(), Code::System, "{e}");
        let left = std::fs::read_dir(dir.path().join("gone")).unwrap().count();
        assert!(left < WIDE, "what is not hindered goes");
        fs.heal();
        remove_large_tree(&fs, root.as_fd(), OsStr::new("gone")).unwrap();
        assert!(!dir.path().join("gone").exists());
    }
}
