//! The real file system.
//!
//! Invariants: names are checked before the kernel sees them; no call follows a symbolic link except
//! [`FileSystem::open_root`]; calls interrupted by signals are made again; descriptors close on exec. Nothing is
//! kept between calls but a buffer per thread and whether the kernel has `openat2`, so there is nothing to lose
//! in a crash and there are no locks. This is the hot path of a walk over millions of files: one system call
//! per method in the common case, no allocation beyond what is returned.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, SeekFrom, Statx,
    StatxAttributes, StatxFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::{Errno, retry_on_intr};

use super::{FileSystem, FileTime, Kind, MOUNTS_NOT_TOLD, Rename, Stat, is_component, open_level_by_level};

/// The file system of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Host;

/// Bytes of the buffer that each thread reads folders into.
const DIRENT_BUFFER: usize = 128 * 1024;
/// Attribute lists and values up to this length need one call; nearly all do.
const XATTR_GUESS: usize = 512;
/// What an attribute list or value can have at most on Linux.
const XATTR_MAX: usize = 64 * 1024;

/// The times are all that `Stat` needs of the basic set, except the access time.
const STAT_MASK: StatxFlags = StatxFlags::BASIC_STATS.difference(StatxFlags::ATIME);

thread_local! {
    static DIRENTS: RefCell<Vec<MaybeUninit<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Set once the kernel (or a sandbox) has refused `openat2`.
static NO_OPENAT2: AtomicBool = AtomicBool::new(false);

fn component(name: &OsStr) -> io::Result<&OsStr> {
    if is_component(name) { Ok(name) } else { Err(Errno::INVAL.into()) }
}

fn kind_of(file_type: FileType) -> Option<Kind> {
    Some(match file_type {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::CharDevice,
        FileType::BlockDevice => Kind::BlockDevice,
        FileType::Unknown => return None,
    })
}

fn stat_of(raw: &Statx) -> io::Result<Stat> {
    if !raw.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        MOUNTS_NOT_TOLD.store(true, Ordering::Relaxed);
    }
    let mode = u32::from(raw.stx_mode);
    let kind = kind_of(FileType::from_raw_mode(mode)).ok_or_else(|| io::Error::from(Errno::INVAL))?;
    Ok(Stat {
        kind,
        mode: mode & 0o7777,
        uid: raw.stx_uid,
        gid: raw.stx_gid,
        size: if kind == Kind::Dir { 0 } else { raw.stx_size },
        blocks: raw.stx_blocks,
        links: u64::from(raw.stx_nlink),
        inode: raw.stx_ino,
        device: rustix::fs::makedev(raw.stx_dev_major, raw.stx_dev_minor),
        rdev: rustix::fs::makedev(raw.stx_rdev_major, raw.stx_rdev_minor),
        mtime: FileTime { secs: raw.stx_mtime.tv_sec, nanos: raw.stx_mtime.tv_nsec },
        ctime: FileTime { secs: raw.stx_ctime.tv_sec, nanos: raw.stx_ctime.tv_nsec },
        mount_root: raw.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
    })
}

fn statx(dir: BorrowedFd<'_>, name: &OsStr, more: AtFlags) -> io::Result<Stat> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | more;
    stat_of(&retry_on_intr(|| rustix::fs::statx(dir, name, flags, STAT_MASK))?)
}

fn timestamps(time: FileTime) -> Timestamps {
    let at = Timespec { tv_sec: time.secs, tv_nsec: time.nanos.into() };
    Timestamps { last_access: at, last_modification: at }
}

/// The largest number is no owner: to the kernel it means "leave it as it is".
fn owner(uid: u32, gid: u32) -> io::Result<(Option<Uid>, Option<Gid>)> {
    if uid == u32::MAX || gid == u32::MAX {
        return Err(Errno::INVAL.into());
    }
    Ok((Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))))
}

fn mode_of(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

/// The path of an entry through its folder's handle. Only its last component can be a link, and only calls that
/// do not follow that one are made with it.
fn proc_path(dir: BorrowedFd<'_>, name: &OsStr) -> OsString {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.as_bytes());
    OsString::from_vec(path)
}

/// Calls `get` with a small buffer, then with the largest, and hands what it wrote to `take`.
fn with_buffer<T>(
    get: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
    take: impl FnOnce(&[u8]) -> T,
) -> rustix::io::Result<T> {
    let mut small = [0u8; XATTR_GUESS];
    match retry_on_intr(|| get(&mut small)) {
        Ok(len) => Ok(take(small.get(..len).unwrap_or(&small))),
        Err(Errno::RANGE) => {
            let mut large = vec![0u8; XATTR_MAX];
            let len = retry_on_intr(|| get(&mut large))?;
            Ok(take(large.get(..len).unwrap_or(&large)))
        }
        Err(e) => Err(e),
    }
}

/// All attributes, by a call that lists the names and one that gets a value.
fn read_xattrs(
    list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
    value: impl Fn(&OsStr, &mut [u8]) -> rustix::io::Result<usize>,
) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    let names = with_buffer(list, |names| {
        names
            .split(|b| *b == 0)
            .filter(|name| !name.is_empty())
            .map(|name| OsStr::from_bytes(name).to_owned())
            .collect::<Vec<_>>()
    });
    let names = match names {
        Ok(names) => names,
        Err(Errno::NOTSUP | Errno::NOSYS) => return Ok(Vec::new()),
        Err(e) => return Err(e.into()),
    };
    let mut found = Vec::with_capacity(names.len());
    for name in names {
        match with_buffer(|buf| value(&name, buf), <[u8]>::to_vec) {
            Ok(bytes) => found.push((name, bytes)),
            // Removed in the meantime, or a name that this file system lists without serving it.
            Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(e) => return Err(e.into()),
        }
    }
    found.sort_unstable();
    Ok(found)
}

impl FileSystem for Host {
    fn open_root(&self, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(retry_on_intr(|| rustix::fs::openat(CWD, path, flags, Mode::empty()))?)
    }

    fn open_dir(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        let name = component(name)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(retry_on_intr(|| rustix::fs::openat(dir, name, flags, Mode::empty()))?)
    }

    fn open_dir_beneath(&self, dir: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
        if !path.as_os_str().as_bytes().split(|b| *b == b'/').all(|c| is_component(OsStr::from_bytes(c))) {
            return Err(Errno::INVAL.into());
        }
        if NO_OPENAT2.load(Ordering::Relaxed) {
            return open_level_by_level(self, dir, path);
        }
        // Without O_NOFOLLOW a link at the end is told as one (ELOOP), not as something that is no folder.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        loop {
            match rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve) {
                Ok(fd) => return Ok(fd),
                // EAGAIN: something was renamed meanwhile and the kernel cannot say whether it stayed beneath.
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(Errno::NOSYS | Errno::PERM) => {
                    NO_OPENAT2.store(true, Ordering::Relaxed);
                    return open_level_by_level(self, dir, path);
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn open_file(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        let name = component(name)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = |flags| retry_on_intr(|| rustix::fs::openat(dir, name, flags, Mode::empty()));
        match open(flags | OFlags::NOATIME) {
            // Only the owner and root may leave the access time alone. Who owns it costs as much to ask.
            Err(Errno::PERM) => Ok(open(flags)?),
            other => Ok(other?),
        }
    }

    fn entries(&self, dir: BorrowedFd<'_>) -> io::Result<Vec<(OsString, Option<Kind>)>> {
        rustix::fs::seek(dir, SeekFrom::Start(0))?;
        DIRENTS.with_borrow_mut(|buffer| {
            buffer.resize(DIRENT_BUFFER, MaybeUninit::uninit());
            let mut found = Vec::new();
            let mut raw = RawDir::new(dir, buffer);
            while let Some(entry) = raw.next() {
                let entry = match entry {
                    Err(Errno::INTR) => continue,
                    other => other?,
                };
                let name = entry.file_name().to_bytes();
                if name != b"." && name != b".." {
                    found.push((OsStr::from_bytes(name).to_owned(), kind_of(entry.file_type())));
                }
            }
            Ok(found)
        })
    }

    fn stat(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Stat> {
        statx(dir, component(name)?, AtFlags::empty())
    }

    fn stat_handle(&self, handle: BorrowedFd<'_>) -> io::Result<Stat> {
        statx(handle, OsStr::new(""), AtFlags::EMPTY_PATH)
    }

    fn read_at(&self, file: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        let mut at = offset;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let got = retry_on_intr(|| rustix::io::pread(file, &mut *rest, at))?;
            if got == 0 {
                break;
            }
            done += got;
            at += got as u64;
        }
        Ok(done)
    }

    fn next_data(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<Option<(u64, u64)>> {
        let start = match retry_on_intr(|| rustix::fs::seek(file, SeekFrom::Data(offset))) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            // A file system that knows no holes: all of it is data.
            Err(Errno::INVAL | Errno::NOTSUP) => {
                let size = self.stat_handle(file)?.size;
                return Ok((offset < size).then_some((offset, size)));
            }
            Err(e) => return Err(e.into()),
        };
        match retry_on_intr(|| rustix::fs::seek(file, SeekFrom::Hole(start))) {
            Ok(end) => Ok(Some((start, end))),
            // Shortened in the meantime.
            Err(Errno::NXIO) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn read_link(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OsString> {
        let name = component(name)?;
        let target = retry_on_intr(|| rustix::fs::readlinkat(dir, name, Vec::new()))?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    fn xattrs(&self, handle: BorrowedFd<'_>) -> io::Result<Vec<(OsString, Vec<u8>)>> {
        read_xattrs(
            |buf| rustix::fs::flistxattr(handle, buf),
            |name, buf| rustix::fs::fgetxattr(handle, name, buf),
        )
    }

    fn xattrs_at(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Vec<(OsString, Vec<u8>)>> {
        let path = &proc_path(dir, component(name)?);
        read_xattrs(
            |buf| rustix::fs::llistxattr(path, buf),
            |name, buf| rustix::fs::lgetxattr(path, name, buf),
        )
    }

    fn create_dir(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        let name = component(name)?;
        Ok(retry_on_intr(|| rustix::fs::mkdirat(dir, name, Mode::RWXU))?)
    }

    fn create_file(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        let name = component(name)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(retry_on_intr(|| rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR))?)
    }

    fn write_at(&self, file: BorrowedFd<'_>, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut rest = buf;
        let mut at = offset;
        while !rest.is_empty() {
            let done = retry_on_intr(|| rustix::io::pwrite(file, rest, at))?;
            if done == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            rest = rest.get(done..).unwrap_or_default();
            at += done as u64;
        }
        Ok(())
    }

    fn truncate(&self, file: BorrowedFd<'_>, len: u64) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::ftruncate(file, len))?)
    }

    fn sync(&self, handle: BorrowedFd<'_>) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::fsync(handle))?)
    }

    fn sync_all(&self, handle: BorrowedFd<'_>) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::syncfs(handle))?)
    }

    fn rename(
        &self,
        from: BorrowedFd<'_>,
        from_name: &OsStr,
        to: BorrowedFd<'_>,
        to_name: &OsStr,
        how: Rename,
    ) -> io::Result<()> {
        let (from_name, to_name) = (component(from_name)?, component(to_name)?);
        let flags = match how {
            Rename::NoReplace => RenameFlags::NOREPLACE,
            Rename::Replace => RenameFlags::empty(),
            Rename::Exchange => RenameFlags::EXCHANGE,
        };
        Ok(retry_on_intr(|| rustix::fs::renameat_with(from, from_name, to, to_name, flags))?)
    }

    fn link(
        &self,
        from: BorrowedFd<'_>,
        from_name: &OsStr,
        to: BorrowedFd<'_>,
        to_name: &OsStr,
    ) -> io::Result<()> {
        let (from_name, to_name) = (component(from_name)?, component(to_name)?);
        Ok(retry_on_intr(|| rustix::fs::linkat(from, from_name, to, to_name, AtFlags::empty()))?)
    }

    fn unlink(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        let name = component(name)?;
        Ok(retry_on_intr(|| rustix::fs::unlinkat(dir, name, AtFlags::empty()))?)
    }

    fn remove_dir(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        let name = component(name)?;
        Ok(retry_on_intr(|| rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR))?)
    }

    fn symlink(&self, target: &OsStr, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        let name = component(name)?;
        Ok(retry_on_intr(|| rustix::fs::symlinkat(target, dir, name))?)
    }

    fn make_node(&self, dir: BorrowedFd<'_>, name: &OsStr, kind: Kind, rdev: u64) -> io::Result<()> {
        let name = component(name)?;
        let (file_type, rdev) = match kind {
            Kind::Fifo => (FileType::Fifo, 0),
            Kind::Socket => (FileType::Socket, 0),
            Kind::CharDevice => (FileType::CharacterDevice, rdev),
            Kind::BlockDevice => (FileType::BlockDevice, rdev),
            Kind::File | Kind::Dir | Kind::Symlink => return Err(Errno::INVAL.into()),
        };
        let mode = Mode::RUSR | Mode::WUSR;
        Ok(retry_on_intr(|| rustix::fs::mknodat(dir, name, file_type, mode, rdev))?)
    }

    fn set_owner(&self, handle: BorrowedFd<'_>, uid: u32, gid: u32) -> io::Result<()> {
        let (uid, gid) = owner(uid, gid)?;
        Ok(retry_on_intr(|| rustix::fs::fchown(handle, uid, gid))?)
    }

    fn set_owner_at(&self, dir: BorrowedFd<'_>, name: &OsStr, uid: u32, gid: u32) -> io::Result<()> {
        let name = component(name)?;
        let (uid, gid) = owner(uid, gid)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        Ok(retry_on_intr(|| rustix::fs::chownat(dir, name, uid, gid, flags))?)
    }

    fn set_mode(&self, handle: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::fchmod(handle, mode_of(mode)))?)
    }

    fn set_mode_at(&self, dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> io::Result<()> {
        // Before Linux 6.6 there is no chmod that refuses links: pin the entry, look at it, and name it by its
        // handle. Opening by path does not touch a device or wait for a FIFO.
        let name = component(name)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let entry = retry_on_intr(|| rustix::fs::openat(dir, name, flags, Mode::empty()))?;
        if self.stat_handle(entry.as_fd())?.kind == Kind::Symlink {
            return Err(Errno::NOTSUP.into());
        }
        let path = format!("/proc/self/fd/{}", entry.as_raw_fd());
        Ok(retry_on_intr(|| rustix::fs::chmod(path.as_str(), mode_of(mode)))?)
    }

    fn set_times(&self, handle: BorrowedFd<'_>, mtime: FileTime) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::futimens(handle, &timestamps(mtime)))?)
    }

    fn set_times_at(&self, dir: BorrowedFd<'_>, name: &OsStr, mtime: FileTime) -> io::Result<()> {
        let name = component(name)?;
        let times = timestamps(mtime);
        Ok(retry_on_intr(|| rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW))?)
    }

    fn set_xattr(&self, handle: BorrowedFd<'_>, name: &OsStr, value: &[u8]) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::fsetxattr(handle, name, value, XattrFlags::empty()))?)
    }

    fn set_xattr_at(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        attribute: &OsStr,
        value: &[u8],
    ) -> io::Result<()> {
        let path = &proc_path(dir, component(name)?);
        Ok(retry_on_intr(|| rustix::fs::lsetxattr(path, attribute, value, XattrFlags::empty()))?)
    }

    fn remove_xattr(&self, handle: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        Ok(retry_on_intr(|| rustix::fs::fremovexattr(handle, name))?)
    }

    fn remove_xattr_at(&self, dir: BorrowedFd<'_>, name: &OsStr, attribute: &OsStr) -> io::Result<()> {
        let path = &proc_path(dir, component(name)?);
        Ok(retry_on_intr(|| rustix::fs::lremovexattr(path, attribute))?)
    }
}
