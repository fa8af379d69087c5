//! A file system that lets a test act between two system calls, or look through tinted glass.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use backstay_tree::fs::{Call, FileSystem, FileTime, Host, Kind, Rename, Stat};

type Before = dyn Fn(Call, &OsStr, u64) + Send + Sync;
type See = dyn Fn(&OsStr, Stat) -> Stat + Send + Sync;

/// The real file system (or another), with hooks.
pub struct Hooked {
    inner: Arc<dyn FileSystem>,
    before: Box<Before>,
    see: Box<See>,
    /// Whether hooks want the names of open files: in very deep trees the kernel is slow to tell.
    names: bool,
}

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooked")
    }
}

/// The name an open file or folder has now.
fn kernel_name(handle: BorrowedFd<'_>) -> OsString {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", handle.as_raw_fd())).unwrap_or_default();
    path.file_name().unwrap_or_default().to_owned()
}

impl Hooked {
    pub fn new(inner: Arc<dyn FileSystem>) -> Self {
        Hooked { inner, before: Box::new(|_, _, _| ()), see: Box::new(|_, stat| stat), names: true }
    }

    /// Calls `hook` before each reading call with the name and, for reads, the offset.
    pub fn before(mut self, hook: impl Fn(Call, &OsStr, u64) + Send + Sync + 'static) -> Self {
        self.before = Box::new(hook);
        self
    }

    /// Hooks get no names of open files and folders.
    pub fn without_names(mut self) -> Self {
        self.names = false;
        self
    }

    fn name_of(&self, handle: BorrowedFd<'_>) -> OsString {
        if self.names { kernel_name(handle) } else { OsString::new() }
    }

    /// Lets `see` change what `stat` tells of a name.
    pub fn see(mut self, see: impl Fn(&OsStr, Stat) -> Stat + Send + Sync + 'static) -> Self {
        self.see = Box::new(see);
        self
    }
}

/// Shows every change as an hour older than it is: what was changed just now counts as settled, so that tests need
/// not wait until it does.
pub fn aged(inner: Arc<dyn FileSystem>) -> Arc<dyn FileSystem> {
    Arc::new(Hooked::new(inner).without_names().see(|_, stat| {
        let ctime = FileTime { secs: stat.ctime.secs - 3600, ..stat.ctime };
        Stat { ctime, ..stat }
    }))
}

pub fn aged_host() -> Arc<dyn FileSystem> {
    aged(Arc::new(Host))
}

impl FileSystem for Hooked {
    fn open_root(&self, path: &Path) -> io::Result<OwnedFd> {
        (self.before)(Call::OpenRoot, path.as_os_str(), 0);
        self.inner.open_root(path)
    }

    fn open_dir(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        (self.before)(Call::OpenDir, name, 0);
        self.inner.open_dir(dir, name)
    }

    fn open_dir_beneath(&self, dir: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
        (self.before)(Call::OpenDirBeneath, path.as_os_str(), 0);
        self.inner.open_dir_beneath(dir, path)
    }

    fn open_file(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        (self.before)(Call::OpenFile, name, 0);
        self.inner.open_file(dir, name)
    }

    fn entries(&self, dir: BorrowedFd<'_>) -> io::Result<Vec<(OsString, Option<Kind>)>> {
        (self.before)(Call::Entries, &self.name_of(dir), 0);
        self.inner.entries(dir)
    }

    fn stat(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Stat> {
        (self.before)(Call::Stat, name, 0);
        Ok((self.see)(name, self.inner.stat(dir, name)?))
    }

    fn stat_handle(&self, handle: BorrowedFd<'_>) -> io::Result<Stat> {
        let name = self.name_of(handle);
        (self.before)(Call::StatHandle, &name, 0);
        Ok((self.see)(&name, self.inner.stat_handle(handle)?))
    }

    fn read_at(&self, file: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        (self.before)(Call::ReadAt, &self.name_of(file), offset);
        self.inner.read_at(file, buf, offset)
    }

    fn next_data(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<Option<(u64, u64)>> {
        (self.before)(Call::NextData, &self.name_of(file), offset);
        self.inner.next_data(file, offset)
    }

    fn read_link(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OsString> {
        (self.before)(Call::ReadLink, name, 0);
        self.inner.read_link(dir, name)
    }

    fn xattrs(&self, handle: BorrowedFd<'_>) -> io::Result<Vec<(OsString, Vec<u8>)>> {
        (self.before)(Call::Xattrs, &self.name_of(handle), 0);
        self.inner.xattrs(handle)
    }

    fn xattrs_at(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Vec<(OsString, Vec<u8>)>> {
        (self.before)(Call::XattrsAt, name, 0);
        self.inner.xattrs_at(dir, name)
    }

    // --- a backup writes nothing: what is below is only here because the trait has it

    fn create_dir(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        self.inner.create_dir(dir, name)
    }

    fn create_file(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        self.inner.create_file(dir, name)
    }

    fn write_at(&self, file: BorrowedFd<'_>, buf: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_at(file, buf, offset)
    }

    fn truncate(&self, file: BorrowedFd<'_>, len: u64) -> io::Result<()> {
        self.inner.truncate(file, len)
    }

    fn sync(&self, handle: BorrowedFd<'_>) -> io::Result<()> {
        self.inner.sync(handle)
    }

    fn sync_all(&self, handle: BorrowedFd<'_>) -> io::Result<()> {
        self.inner.sync_all(handle)
    }

    fn rename(
        &self,
        from: BorrowedFd<'_>,
        from_name: &OsStr,
        to: BorrowedFd<'_>,
        to_name: &OsStr,
        how: Rename,
    ) -> io::Result<()> {
        self.inner.rename(from, from_name, to, to_name, how)
    }

    fn link(
        &self,
        from: BorrowedFd<'_>,
        from_name: &OsStr,
        to: BorrowedFd<'_>,
        to_name: &OsStr,
    ) -> io::Result<()> {
        self.inner.link(from, from_name, to, to_name)
    }

    fn unlink(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        self.inner.unlink(dir, name)
    }

    fn remove_dir(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        self.inner.remove_dir(dir, name)
    }

    fn symlink(&self, target: &OsStr, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        self.inner.symlink(target, dir, name)
    }

    fn make_node(&self, dir: BorrowedFd<'_>, name: &OsStr, kind: Kind, rdev: u64) -> io::Result<()> {
        self.inner.make_node(dir, name, kind, rdev)
    }

    fn set_owner(&self, handle: BorrowedFd<'_>, uid: u32, gid: u32) -> io::Result<()> {
        self.inner.set_owner(handle, uid, gid)
    }

    fn set_owner_at(&self, dir: BorrowedFd<'_>, name: &OsStr, uid: u32, gid: u32) -> io::Result<()> {
        self.inner.set_owner_at(dir, name, uid, gid)
    }

    fn set_mode(&self, handle: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
        self.inner.set_mode(handle, mode)
    }

    fn set_mode_at(&self, dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> io::Result<()> {
        self.inner.set_mode_at(dir, name, mode)
    }

    fn set_times(&self, handle: BorrowedFd<'_>, mtime: FileTime) -> io::Result<()> {
        self.inner.set_times(handle, mtime)
    }

    fn set_times_at(&self, dir: BorrowedFd<'_>, name: &OsStr, mtime: FileTime) -> io::Result<()> {
        self.inner.set_times_at(dir, name, mtime)
    }

    fn set_xattr(&self, handle: BorrowedFd<'_>, name: &OsStr, value: &[u8]) -> io::Result<()> {
        self.inner.set_xattr(handle, name, value)
    }

    fn set_xattr_at(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        attribute: &OsStr,
        value: &[u8],
    ) -> io::Result<()> {
        self.inner.set_xattr_at(dir, name, attribute, value)
    }

    fn remove_xattr(&self, handle: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        self.inner.remove_xattr(handle, name)
    }

    fn remove_xattr_at(&self, dir: BorrowedFd<'_>, name: &OsStr, attribute: &OsStr) -> io::Result<()> {
        self.inner.remove_xattr_at(dir, name, attribute)
    }
}
