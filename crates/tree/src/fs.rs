//! The seam to the file system.
//!
//! One trait whose methods are system calls relative to directory handles; [`Host`] makes them for real. Names are
//! single components (no `/`, no NUL, not `.` or `..`): [`Host`] refuses others, so nothing can be reached that is
//! not an entry of the handle's folder. Symbolic links are never followed, except in [`FileSystem::open_root`].

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

mod faulty;
mod host;

pub use faulty::{Call, Fault, Faulty, Kill, Logged};
pub use host::Host;

/// Whether a name can be given to a [`FileSystem`]: one component, not empty, not `.` or `..`, without `/` and NUL.
#[must_use]
pub fn is_component(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    !bytes.is_empty() && bytes != b"." && bytes != b".." && !bytes.iter().any(|b| matches!(b, b'/' | 0))
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// A point in time of a file: seconds and nanoseconds (0..1e9) since 1970, as the kernel gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileTime {
    /// Whole seconds, negative before 1970.
    pub secs: i64,
    /// Nanoseconds, always counted forward.
    pub nanos: u32,
}

/// What `statx` tells about an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-uid, set-gid and sticky (`0o7777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of content (0 for folders).
    pub size: u64,
    /// Blocks of 512 bytes that are allocated.
    pub blocks: u64,
    /// Names it has.
    pub links: u64,
    /// Inode number.
    pub inode: u64,
    /// Device it lies on.
    pub device: u64,
    /// Device number, for device nodes.
    pub rdev: u64,
    /// Last change of content.
    pub mtime: FileTime,
    /// Last change of content or metadata.
    pub ctime: FileTime,
    /// Whether it is the root of a mount (another file system or a bind mount begins here). Kernels before 5.8
    /// never say so: use [`Stat::is_mount_in`].
    pub mount_root: bool,
}

/// Set when the kernel has been seen not to tell mount roots.
static MOUNTS_NOT_TOLD: AtomicBool = AtomicBool::new(false);

impl Stat {
    /// Whether an entry of a folder that lies on `device` begins another mount.
    ///
    /// Devices are compared only where the kernel does not tell mounts: overlay file systems and btrfs
    /// subvolumes have entries of other devices that are no mounts.
    #[must_use]
    pub fn is_mount_in(&self, device: u64) -> bool {
        self.mount_root || (self.device != device && MOUNTS_NOT_TOLD.load(Ordering::Relaxed))
    }

    /// What tells the same entry under all its names: device and inode.
    #[must_use]
    pub fn id(&self) -> (u64, u64) {
        (self.device, self.inode)
    }
}

/// How [`FileSystem::rename`] treats an entry that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rename {
    /// Fails with `EEXIST`.
    NoReplace,
    /// Replaces it.
    Replace,
    /// Exchanges the two.
    Exchange,
}

/// Opens a folder below `dir` component by component; each one must be a folder on the same mount as its parent,
/// as far as `statx` tells.
fn open_level_by_level<F: FileSystem + ?Sized>(
    fs: &F,
    dir: BorrowedFd<'_>,
    path: &Path,
) -> io::Result<OwnedFd> {
    let device = fs.stat_handle(dir)?.device;
    let mut at: Option<OwnedFd> = None;
    for name in path.as_os_str().as_bytes().split(|b| *b == b'/').map(OsStr::from_bytes) {
        let from = at.as_ref().map_or(dir, AsFd::as_fd);
        let next = match fs.open_dir(from, name) {
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
                let is_link = fs.stat(from, name).is_ok_and(|stat| stat.kind == Kind::Symlink);
                return Err(if is_link { Errno::LOOP.into() } else { e });
            }
            opened => opened?,
        };
        let stat = fs.stat_handle(next.as_fd())?;
        if stat.is_mount_in(device) {
            return Err(Errno::XDEV.into());
        }
        at = Some(next);
    }
    at.ok_or_else(|| Errno::INVAL.into())
}

/// System calls on file systems. Errors are those of the kernel. Handles are real descriptors.
pub trait FileSystem: Send + Sync + fmt::Debug {
    // --- reading
    /// Opens a folder by path (links are followed: the caller names the root).
    fn open_root(&self, path: &Path) -> io::Result<OwnedFd>;
    /// Opens a folder inside a folder.
    fn open_dir(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd>;
    /// Opens a folder any number of levels below `dir` (`path` is relative, of plain components). No component may
    /// be a link (`ELOOP`), no mount is entered (`EXDEV`).
    ///
    /// This body is the slower way for kernels without `openat2`; it is checked level by level.
    fn open_dir_beneath(&self, dir: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
        open_level_by_level(self, dir, path)
    }
    /// Opens a regular file for reading without changing its access time where allowed; never blocks on a FIFO.
    /// The entry may have been swapped since it was looked at: check [`FileSystem::stat_handle`] of the result.
    fn open_file(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd>;
    /// The names in a folder with the kind where the kernel gives it, in the kernel's order, without `.` and `..`.
    /// The handle's position is used: not for two threads on one handle at once.
    fn entries(&self, dir: BorrowedFd<'_>) -> io::Result<Vec<(OsString, Option<Kind>)>>;
    /// About an entry of a folder.
    fn stat(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Stat>;
    /// About an open file or folder.
    fn stat_handle(&self, handle: BorrowedFd<'_>) -> io::Result<Stat>;
    /// Reads at an offset; fewer bytes than asked for only at the end.
    fn read_at(&self, file: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// The next range `[start, end)` at or after `offset` that is not a hole; none when only a hole is left.
    fn next_data(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<Option<(u64, u64)>>;
    /// Target of a symbolic link.
    fn read_link(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OsString>;
    /// Extended attributes (POSIX ACLs among them) of an open file or folder, sorted by name.
    fn xattrs(&self, handle: BorrowedFd<'_>) -> io::Result<Vec<(OsString, Vec<u8>)>>;
    /// Extended attributes of an entry that cannot be opened (links, devices, FIFOs, sockets), sorted by name.
    fn xattrs_at(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Vec<(OsString, Vec<u8>)>>;

    // --- writing: each of these is a numbered point where tests can stop the world
    /// A new folder, mode 0700.
    fn create_dir(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()>;
    /// A new empty regular file for writing, mode 0600; `EEXIST` when the name is taken.
    fn create_file(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd>;
    /// Writes all of `buf` at an offset.
    fn write_at(&self, file: BorrowedFd<'_>, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Sets a file's length; what is added is a hole.
    fn truncate(&self, file: BorrowedFd<'_>, len: u64) -> io::Result<()>;
    /// Makes a file's content, or a folder's entries, survive a power loss.
    fn sync(&self, handle: BorrowedFd<'_>) -> io::Result<()>;
    /// Makes everything on the file system that holds `handle` survive a power loss.
    fn sync_all(&self, handle: BorrowedFd<'_>) -> io::Result<()>;
    /// Moves an entry.
    fn rename(
        &self,
        from: BorrowedFd<'_>,
        from_name: &OsStr,
        to: BorrowedFd<'_>,
        to_name: &OsStr,
        how: Rename,
    ) -> io::Result<()>;
    /// A second name for an entry (links are not followed).
    fn link(
        &self,
        from: BorrowedFd<'_>,
        from_name: &OsStr,
        to: BorrowedFd<'_>,
        to_name: &OsStr,
    ) -> io::Result<()>;
    /// Removes a name that is not a folder.
    fn unlink(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()>;
    /// Removes an empty folder.
    fn remove_dir(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()>;
    /// A symbolic link with that target, taken as data.
    fn symlink(&self, target: &OsStr, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()>;
    /// A FIFO, socket or device node.
    fn make_node(&self, dir: BorrowedFd<'_>, name: &OsStr, kind: Kind, rdev: u64) -> io::Result<()>;
    /// Owner of an open file or folder.
    fn set_owner(&self, handle: BorrowedFd<'_>, uid: u32, gid: u32) -> io::Result<()>;
    /// Owner of an entry, links not followed.
    fn set_owner_at(&self, dir: BorrowedFd<'_>, name: &OsStr, uid: u32, gid: u32) -> io::Result<()>;
    /// Permission bits of an open file or folder.
    fn set_mode(&self, handle: BorrowedFd<'_>, mode: u32) -> io::Result<()>;
    /// Permission bits of an entry that is not a link (device nodes, FIFOs).
    fn set_mode_at(&self, dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> io::Result<()>;
    /// Modification time of an open file or folder; the access time is set to the same.
    fn set_times(&self, handle: BorrowedFd<'_>, mtime: FileTime) -> io::Result<()>;
    /// The same of an entry, links not followed.
    fn set_times_at(&self, dir: BorrowedFd<'_>, name: &OsStr, mtime: FileTime) -> io::Result<()>;
    /// Sets an extended attribute of an open file or folder.
    fn set_xattr(&self, handle: BorrowedFd<'_>, name: &OsStr, value: &[u8]) -> io::Result<()>;
    /// The same of the entry `name` that cannot be opened, links not followed.
    fn set_xattr_at(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        attribute: &OsStr,
        value: &[u8],
    ) -> io::Result<()>;
    /// Removes an extended attribute of an open file or folder.
    fn remove_xattr(&self, handle: BorrowedFd<'_>, name: &OsStr) -> io::Result<()>;
    /// The same of the entry `name` that cannot be opened, links not followed.
    fn remove_xattr_at(&self, dir: BorrowedFd<'_>, name: &OsStr, attribute: &OsStr) -> io::Result<()>;
}
