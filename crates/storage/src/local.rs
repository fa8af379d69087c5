//! Objects as files of a local folder.
//!
//! How an object comes to be: a file of its own name in the making (`.tmp-…`) in the folder where it belongs, all
//! bytes, fsync of the file, rename to its name, fsync of the folder, and of the folders above where those may be
//! new. So under its name there is nothing, the old object or the new one, whatever is killed or loses power.
//!
//! * Every system call goes through [`FileSystem`], so tests can stop the world at each.
//! * The root is held open: a root that is deleted, moved or unmounted is not made again behind its back.
//! * What lies directly in the folder that [`Storage::list`] is asked for, and what `ObjectExists` speaks of, survives
//!   a power loss: the folder is synced first, because a process that was killed between its rename and its fsync may
//!   have left the entry. Folders below are not synced: the only objects there are packs, and nobody relies on a pack
//!   before an object in `index` names it, which is written after the pack's own put has returned. A vault has 256 such
//!   folders, and a disk may take a millisecond for each sync.
//! * Files in the making of dead processes are removed on open (`temporary` says whose).
//! * Locks: two small mutexes (folders known to be durable, open handles), held without any system call, and one
//!   for reading the entries of the root, whose handle all threads share. None is taken while another is held.

mod handles;
mod stream;
mod temporary;

use std::collections::{HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use backstay_model::{Code, Error, Result};
use backstay_tree::fs::{FileSystem, Host, Kind, Rename};
use rustix::io::Errno;

use self::handles::Handles;
use crate::{Object, Put, Storage, Upload, check_name, too_short};

/// So many folders, the shallow ones first, are looked through for abandoned files when a place is opened. A vault
/// has less than 300.
const FOLDERS_SWEPT: usize = 1000;

/// A [`Storage`] in a local folder: folders 0700, files 0600.
#[derive(Debug)]
pub struct Local {
    fs: Arc<dyn FileSystem>,
    root: OwnedFd,
    path: PathBuf,
    /// Folders (relative, without the root) whose entry in their parent survives a power loss.
    durable: Mutex<HashSet<String>>,
    handles: Handles,
    /// A folder's handle has one reading position, and the root's is shared.
    root_entries: Mutex<()>,
}

/// A folder on the way to an object whose entries must be synced before the object may be relied on.
struct Unsettled {
    handle: OwnedFd,
    folders: Vec<String>,
}

impl Local {
    /// Opens an existing folder; `StorageNotFound` when there is none.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_on(Arc::new(Host), path)
    }

    /// Opens a folder and makes it, with those above it, where it does not exist yet.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        Self::create_on(Arc::new(Host), path)
    }

    /// [`Local::open`] on a given file system.
    pub fn open_on(fs: Arc<dyn FileSystem>, path: impl AsRef<Path>) -> Result<Self> {
        let path = absolute(path.as_ref())?;
        let root = match fs.open_root(&path) {
            Ok(root) => root,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(Error::new(
                    Code::StorageNotFound,
                    format!("There is no folder {}", path.display()),
                ));
            }
            Err(e) => {
                return Err(failure(&e, &format!("Cannot open the folder {}", path.display())).because(e));
            }
        };
        let local = Local {
            fs,
            root,
            path,
            durable: Mutex::default(),
            handles: Handles::default(),
            root_entries: Mutex::default(),
        };
        local.sweep();
        Ok(local)
    }

    /// [`Local::create`] on a given file system.
    pub fn create_on(fs: Arc<dyn FileSystem>, path: impl AsRef<Path>) -> Result<Self> {
        let path = absolute(path.as_ref())?;
        make_folders(&*fs, &path)
            .map_err(|e| failure(&e, &format!("Cannot make the folder {}", path.display())).because(e))?;
        Self::open_on(fs, path)
    }

    /// Removes files in the making that belong to nobody any more. What cannot be looked at or removed is left:
    /// such files are never listed or read, they only take space. Bounded: a place may be named by mistake, and
    /// opening it must not walk a whole disk.
    fn sweep(&self) {
        let mut folders = VecDeque::from([String::new()]);
        for _ in 0..FOLDERS_SWEPT {
            let Some(folder) = folders.pop_front() else { break };
            let Ok(dir) = self.folder(&folder) else { continue };
            for (name, kind) in self.entries(dir.as_fd(), &folder).unwrap_or_default() {
                let Some(text) = name.to_str() else { continue };
                if temporary::is(text) {
                    let stat = self.fs.stat(dir.as_fd(), &name);
                    if stat.is_ok_and(|s| s.kind == Kind::File && temporary::is_abandoned(text, s.mtime.secs))
                    {
                        self.fs.unlink(dir.as_fd(), &name).ok();
                    }
                } else if self.kind(dir.as_fd(), &name, kind).is_ok_and(|k| k == Kind::Dir) {
                    folders.push_back(join(&folder, text));
                }
            }
        }
    }

    fn entries(&self, dir: BorrowedFd<'_>, folder: &str) -> io::Result<Vec<(OsString, Option<Kind>)>> {
        let _alone =
            folder.is_empty().then(|| self.root_entries.lock().unwrap_or_else(PoisonError::into_inner));
        self.fs.entries(dir)
    }

    fn kind(&self, dir: BorrowedFd<'_>, name: &OsStr, known: Option<Kind>) -> io::Result<Kind> {
        known.map_or_else(|| self.fs.stat(dir, name).map(|s| s.kind), Ok)
    }

    /// Opens a folder below the root.
    fn folder(&self, folder: &str) -> io::Result<OwnedFd> {
        let mut dir = self.root.try_clone()?;
        for part in folder.split('/').filter(|p| !p.is_empty()) {
            dir = self.fs.open_dir(dir.as_fd(), part.as_ref())?;
        }
        Ok(dir)
    }

    /// Opens a folder below the root and makes what is missing of it. The second value is what must be settled
    /// before an object in it may be relied on: a folder that exists may have been made by a process that was
    /// killed before it synced the parent, so each is settled once per process.
    fn folder_for_writing(&self, folder: &str) -> io::Result<(OwnedFd, Vec<Unsettled>)> {
        let mut dir = self.root.try_clone()?;
        let mut path = String::new();
        let mut unsettled = Vec::new();
        for part in folder.split('/').filter(|p| !p.is_empty()) {
            let next = match self.fs.open_dir(dir.as_fd(), part.as_ref()) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    match self.fs.create_dir(dir.as_fd(), part.as_ref()) {
                        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                        other => other?,
                    }
                    self.fs.open_dir(dir.as_fd(), part.as_ref())
                }
                other => other,
            }?;
            let child = join(&path, part);
            if !self.is_durable(&child) {
                // One sync settles all folders that are there now, not only this one.
                let folders = self.subfolders(dir.as_fd(), &path)?;
                unsettled.push(Unsettled { handle: dir, folders });
            }
            path = child;
            dir = next;
        }
        Ok((dir, unsettled))
    }

    fn subfolders(&self, dir: BorrowedFd<'_>, path: &str) -> io::Result<Vec<String>> {
        let entries = self.entries(dir, path)?;
        let is_dir = |name: &OsStr, kind| self.kind(dir, name, kind).is_ok_and(|k| k == Kind::Dir);
        Ok(entries
            .iter()
            .filter(|(name, kind)| is_dir(name, *kind))
            .filter_map(|(name, _)| name.to_str())
            .map(|name| join(path, name))
            .collect())
    }

    fn settle(&self, unsettled: Vec<Unsettled>) -> io::Result<()> {
        for parent in unsettled {
            sync_folder(&*self.fs, parent.handle.as_fd())?;
            self.durable.lock().unwrap_or_else(PoisonError::into_inner).extend(parent.folders);
        }
        Ok(())
    }

    fn is_durable(&self, folder: &str) -> bool {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner).contains(folder)
    }

    /// A new, empty file in the making.
    fn new_temporary(&self, dir: BorrowedFd<'_>) -> io::Result<(String, OwnedFd)> {
        loop {
            let name = temporary::new_name();
            match self.fs.create_file(dir, name.as_ref()) {
                Ok(file) => return Ok((name, file)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// A new file in the making with all the bytes, synced. On an error nothing of it is left.
    fn write_temporary(&self, dir: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<String> {
        let (name, file) = self.new_temporary(dir)?;
        let written = match bytes {
            [] => Ok(()),
            _ => self.fs.write_at(file.as_fd(), bytes, 0),
        };
        match written.and_then(|()| self.fs.sync(file.as_fd())) {
            Ok(()) => Ok(name),
            Err(e) => {
                self.fs.unlink(dir, name.as_ref()).ok();
                Err(e)
            }
        }
    }

    /// Gives a file in the making its name. It has no other name afterwards, whether that went well or not.
    fn publish(&self, dir: BorrowedFd<'_>, from: &str, to: &str, mode: Put) -> io::Result<()> {
        let how = match mode {
            Put::IfAbsent => Rename::NoReplace,
            Put::Replace => Rename::Replace,
        };
        let mut done = self.fs.rename(dir, from.as_ref(), dir, to.as_ref(), how);
        if mode == Put::IfAbsent
            && done.as_ref().is_err_and(|e| is(e, &[Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP]))
        {
            // A file system without a rename that refuses to replace (NFS): a second name is as atomic.
            done = self.fs.link(dir, from.as_ref(), dir, to.as_ref());
            self.fs.unlink(dir, from.as_ref()).ok();
        } else if done.is_err() {
            self.fs.unlink(dir, from.as_ref()).ok();
        }
        done
    }

    fn put_file(&self, folder: &str, file: &str, bytes: &[u8], mode: Put) -> io::Result<()> {
        let (dir, unsettled) = self.folder_for_writing(folder)?;
        let temporary = self.write_temporary(dir.as_fd(), bytes)?;
        let published = self.publish(dir.as_fd(), &temporary, file, mode);
        match published {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        // The folders above last: where the file system has a journal these find nothing left to write.
        sync_folder(&*self.fs, dir.as_fd())?;
        self.settle(unsettled)?;
        published
    }

    /// Opens an object with its size.
    fn open_object(&self, name: &str) -> io::Result<(OwnedFd, u64)> {
        let (folder, file) = split(name);
        let dir = self.folder(folder)?;
        let handle = self.fs.open_file(dir.as_fd(), file.as_ref())?;
        let stat = self.fs.stat_handle(handle.as_fd())?;
        match stat.kind {
            Kind::File => Ok((handle, stat.size)),
            _ => Err(Errno::NOENT.into()),
        }
    }

    /// The same, keeping the handle: a pack is read in many ranges. A kept handle whose file has no name any more
    /// (replaced, deleted, by whatever process) is not used.
    fn open_object_kept(&self, name: &str) -> io::Result<(Arc<OwnedFd>, u64)> {
        if let Some(handle) = self.handles.get(name) {
            let stat = self.fs.stat_handle(handle.as_fd())?;
            if stat.links > 0 {
                return Ok((handle, stat.size));
            }
            self.handles.forget(name);
        }
        let (handle, size) = self.open_object(name)?;
        let handle = Arc::new(handle);
        self.handles.keep(name, Arc::clone(&handle));
        Ok((handle, size))
    }

    fn read(&self, name: &str, file: BorrowedFd<'_>, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let got = self.fs.read_at(file, &mut bytes, offset).map_err(|e| self.error(e, "read", name))?;
        if got < len {
            return Err(too_short(name, offset.saturating_add(got as u64), offset, len));
        }
        Ok(bytes)
    }

    /// Fails when the root was deleted: it is never made again, and must not look like an empty place.
    fn check_root(&self) -> Result<()> {
        let stat =
            self.fs.stat_handle(self.root.as_fd()).map_err(|e| self.error(e, "look at", "its root"))?;
        if stat.links == 0 {
            return Err(Error::new(
                Code::StorageUnavailable,
                format!("The folder {} was deleted while it was in use", self.path.display()),
            ));
        }
        Ok(())
    }

    fn error(&self, e: io::Error, verb: &str, name: &str) -> Error {
        let place = self.path.display();
        let below_an_object = e.kind() == io::ErrorKind::NotADirectory && verb != "write";
        if e.kind() == io::ErrorKind::NotFound || below_an_object {
            return match self.fs.stat_handle(self.root.as_fd()) {
                Ok(stat) if stat.links == 0 => Error::new(
                    Code::StorageUnavailable,
                    format!("The folder {place} was deleted while it was in use"),
                ),
                _ => Error::new(Code::ObjectNotFound, format!("There is no {name} in {place}")),
            };
        }
        if e.kind() == io::ErrorKind::AlreadyExists {
            return Error::new(Code::ObjectExists, format!("{name} is in {place} already"));
        }
        failure(&e, &format!("Cannot {verb} {name} in {place}")).because(e)
    }

    fn list_folder(
        &self,
        folder: &str,
        durable: bool,
        pending: &mut Vec<String>,
        each: &mut dyn FnMut(Object) -> Result<()>,
    ) -> Result<()> {
        let dir = match self.folder(folder) {
            Ok(dir) => dir,
            // Not there, or deleted meanwhile, or an object: nothing to show.
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(());
            }
            Err(e) => return Err(self.error(e, "list", folder)),
        };
        let dir = dir.as_fd();
        let entries = self.entries(dir, folder).map_err(|e| self.error(e, "list", folder))?;
        if durable && !entries.is_empty() {
            sync_folder(&*self.fs, dir).map_err(|e| self.error(e, "sync", folder))?;
        }
        for (name, kind) in entries {
            let Some(text) = name.to_str() else { continue };
            let path = join(folder, text);
            if check_name(&path).is_err() || !matches!(kind, None | Some(Kind::File | Kind::Dir)) {
                continue;
            }
            if kind == Some(Kind::Dir) {
                pending.push(path);
                continue;
            }
            match self.fs.stat(dir, &name) {
                Ok(stat) if stat.kind == Kind::File => each(Object { name: path, size: stat.size })?,
                Ok(stat) if stat.kind == Kind::Dir => pending.push(path),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(self.error(e, "look at", &path)),
            }
        }
        Ok(())
    }
}

impl Local {
    fn remove(&self, name: &str, durably: bool) -> Result<()> {
        check_name(name)?;
        let (folder, file) = split(name);
        self.handles.forget(name);
        self.folder(folder)
            .and_then(|dir| {
                self.fs.unlink(dir.as_fd(), file.as_ref())?;
                if durably { sync_folder(&*self.fs, dir.as_fd()) } else { Ok(()) }
            })
            .map_err(|e| match is(&e, &[Errno::ISDIR]) {
                true => self.error(Errno::NOENT.into(), "delete", name),
                false => self.error(e, "delete", name),
            })
    }
}

impl Storage for Local {
    fn location(&self) -> String {
        self.path.display().to_string()
    }

    fn put(&self, name: &str, bytes: &[u8], mode: Put) -> Result<()> {
        check_name(name)?;
        let (folder, file) = split(name);
        let done = self.put_file(folder, file, bytes, mode).map_err(|e| self.error(e, "write", name));
        if mode == Put::Replace {
            self.handles.forget(name);
        }
        done
    }

    fn put_stream<'a>(&'a self, name: &str, mode: Put) -> Result<Box<dyn Upload + 'a>> {
        check_name(name)?;
        Ok(Box::new(stream::Stream::begin(self, name, mode)?))
    }

    fn get(&self, name: &str) -> Result<Vec<u8>> {
        check_name(name)?;
        let (handle, size) = self.open_object(name).map_err(|e| self.error(e, "read", name))?;
        let len = usize::try_from(size).map_err(|_beyond_memory| too_short(name, size, 0, usize::MAX))?;
        self.read(name, handle.as_fd(), 0, len)
    }

    fn get_range(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>> {
        check_name(name)?;
        let (handle, size) = self.open_object_kept(name).map_err(|e| self.error(e, "read", name))?;
        // Asked of the size first: an absurd length must not be allocated.
        if offset.checked_add(len as u64).is_none_or(|end| end > size) {
            return Err(too_short(name, size, offset, len));
        }
        self.read(name, handle.as_fd(), offset, len)
    }

    fn size(&self, name: &str) -> Result<u64> {
        check_name(name)?;
        let (folder, file) = split(name);
        let stat = self.folder(folder).and_then(|dir| self.fs.stat(dir.as_fd(), file.as_ref()));
        match stat {
            Ok(stat) if stat.kind == Kind::File => Ok(stat.size),
            Ok(_) => Err(self.error(Errno::NOENT.into(), "look at", name)),
            Err(e) => Err(self.error(e, "look at", name)),
        }
    }

    fn list(&self, folder: &str, each: &mut dyn FnMut(Object) -> Result<()>) -> Result<()> {
        if !folder.is_empty() {
            check_name(folder)?;
        }
        self.check_root()?;
        let mut pending = Vec::new();
        self.list_folder(folder, true, &mut pending, each)?;
        while let Some(folder) = pending.pop() {
            self.list_folder(&folder, false, &mut pending, each)?;
        }
        Ok(())
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.remove(name, true)
    }

    fn discard(&self, name: &str) -> Result<()> {
        self.remove(name, false)
    }
}

/// The folder and the last part of a name.
fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('/').unwrap_or(("", name))
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| {
        Error::new(Code::InvalidValue, format!("{:?} is not a path", path.display().to_string())).because(e)
    })
}

/// Makes a folder and those above it. Each one that was made, and the folder itself in any case (a process may have
/// been killed between making and syncing it), survives a power loss when this returns.
fn make_folders(fs: &dyn FileSystem, path: &Path) -> io::Result<()> {
    let mut missing = Vec::new();
    let mut existing = path;
    let mut dir = loop {
        match fs.open_root(existing) {
            Ok(dir) => break dir,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
        let (Some(parent), Some(name)) = (existing.parent(), existing.file_name()) else {
            return Err(Errno::NOENT.into());
        };
        missing.push(name);
        existing = parent;
    };
    for above in existing.ancestors().skip(1) {
        // What this user may not open, this user did not make.
        if let Ok(above) = fs.open_root(above) {
            sync_folder(fs, above.as_fd())?;
        }
    }
    while let Some(name) = missing.pop() {
        match fs.create_dir(dir.as_fd(), name) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        sync_folder(fs, dir.as_fd())?;
        dir = fs.open_dir(dir.as_fd(), name)?;
    }
    Ok(())
}

/// Fsync of a folder. Some file systems (several FUSE ones, read-only ones) cannot sync folders and say so: there
/// is nothing more to be done about durability on them.
fn sync_folder(fs: &dyn FileSystem, dir: BorrowedFd<'_>) -> io::Result<()> {
    match fs.sync(dir) {
        Err(e) if is(&e, &[Errno::INVAL, Errno::OPNOTSUPP, Errno::ROFS]) => Ok(()),
        other => other,
    }
}

fn is(e: &io::Error, any: &[Errno]) -> bool {
    Errno::from_io_error(e).is_some_and(|e| any.contains(&e))
}

/// The error for a failed system call, by its number.
fn failure(e: &io::Error, what: &str) -> Error {
    let code = match Errno::from_io_error(e) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => Code::StorageFull,
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => Code::StorageDenied,
        Some(
            Errno::AGAIN
            | Errno::MFILE
            | Errno::NFILE
            | Errno::NOMEM
            | Errno::TIMEDOUT
            | Errno::STALE
            | Errno::HOSTDOWN
            | Errno::HOSTUNREACH,
        ) => Code::StorageUnavailable,
        _ => Code::StorageFailed,
    };
    Error::new(code, what)
}

#[cfg(test)]
mod tests;
