//! Where a job works: the home, and the workplace on the same mount.
//!
//! Invariants: home and workplace are held by handles; the home's path was resolved once and is only used to find
//! the same inode again. The workplace is private (0700) and named by its job; nothing else is ever
//! removed here, whatever lies under its name.
//! Crash: the state names the home before the workplace is made, so [`Place::remove`] finds what was left, in
//! either place. No locks of its own: the job's is held.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_model::{Code, Error, JobId, Result};
use rustix::io::Errno;
use serde_json::Value;

use super::record::{FORMAT, Journal, PlaceRecord};
use super::state::{JobDir, Jobs, PLACE};
use super::workplace_name;
use crate::beneath::{Root, writing};
use crate::fs::{FileSystem, Rename};
use crate::path::escape;
use crate::scan::open_folder;

/// The folder in a workplace with the other side of each step.
const STAGED: &str = "staged";
/// The folder in a workplace for file systems that cannot exchange.
pub(super) const ASIDE: &str = "aside";

/// A folder's path that leads through an open handle, links on the way or not.
pub(super) fn path_of_handle(handle: BorrowedFd<'_>) -> PathBuf {
    format!("/proc/self/fd/{}", handle.as_raw_fd()).into()
}

/// The home of a job, found.
#[derive(Debug)]
struct Home {
    root: Root,
    inode: u64,
    /// The folder that holds it, where the home is an ordinary entry of it.
    parent: Option<(OwnedFd, PathBuf)>,
}

impl Home {
    fn open(fs: &Arc<dyn FileSystem>, path: &Path) -> Result<Home> {
        let root = Root::open(fs.clone(), path)?;
        let find = || -> io::Result<_> {
            let inode = fs.stat_handle(root.handle())?;
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return Ok((inode.inode, None));
            };
            let handle = fs.open_root(parent)?;
            let (above, here) = (fs.stat_handle(handle.as_fd())?, fs.stat(handle.as_fd(), name)?);
            let ordinary =
                here.id() == inode.id() && here.device == above.device && !here.is_mount_in(above.device);
            Ok((inode.inode, ordinary.then(|| (handle, parent.to_owned()))))
        };
        match find() {
            Ok((inode, parent)) => Ok(Home { inode, parent, root }),
            // A parent that may be passed through but not read: there is the home itself.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                let inode = fs.stat_handle(root.handle()).map_err(|e| unusable(path, e))?.inode;
                Ok(Home { root, inode, parent: None })
            }
            Err(e) => Err(unusable(path, e)),
        }
    }

    /// The places where a workplace can be, with their paths.
    fn bases(&self) -> impl Iterator<Item = (bool, BorrowedFd<'_>, &Path)> {
        let beside = self.parent.as_ref().map(|(handle, path)| (false, handle.as_fd(), &**path));
        beside.into_iter().chain([(true, self.root.handle(), self.root.path())])
    }
}

fn unusable(path: &Path, e: io::Error) -> Error {
    Error::new(Code::TargetUnusable, format!("Cannot use the home {}", escape(path.as_os_str())))
        .advise("Check that it exists, its owner and its mode.")
        .because(e)
}

/// Home and workplace of a job, open, with the job's folder in the state.
#[derive(Debug)]
pub(super) struct Place {
    pub state: JobDir,
    pub home: Root,
    pub home_inode: u64,
    pub work: Root,
    /// Inode of the workplace.
    pub work_inode: u64,
    pub slots: Root,
    pub inside: bool,
    /// The folder that holds the workplace.
    base: OwnedFd,
}

impl Place {
    pub fn fs(&self) -> &Arc<dyn FileSystem> {
        self.state.fs()
    }

    /// Makes the job's folder in the state, then its workplace.
    pub fn make(
        fs: Arc<dyn FileSystem>,
        home: &Path,
        jobs: &Path,
        job: JobId,
        note: &Value,
    ) -> Result<Place> {
        let resolved = std::fs::canonicalize(home).map_err(|e| unusable(home, e))?;
        let home = Home::open(&fs, &resolved)?;
        let state = Jobs::make(fs, jobs)?.create(job)?;
        let record = PlaceRecord { format: FORMAT, home: resolved, inode: home.inode, note: note.clone() };
        let made = state.write(PLACE, &record).and_then(|()| make_workplace(state.fs(), &home, job));
        match made {
            Ok(inside) => Place::enter(state, home, inside)
                .map_err(|e| writing("Cannot open the workplace of a restore of", &record.home, e)),
            Err(e) => {
                // What cannot be removed now is removed by the next recovery.
                Place::remove_any(&state, &record, None).and_then(|()| state.forget()).ok();
                Err(e)
            }
        }
    }

    /// Finds home and workplace of a job again.
    pub fn open(state: JobDir, record: &PlaceRecord, journal: &Journal) -> Result<Place> {
        let home = find_home(&state, record)?;
        let missing = |e: io::Error| {
            let home = escape(record.home.as_os_str());
            Error::new(Code::RestoreUnfinished, format!("Cannot find the workplace of a restore of {home}"))
                .because(e)
        };
        let place = Place::enter(state, home, journal.inside).map_err(missing)?;
        if journal.workplace == place.work_inode { Ok(place) } else { Err(missing(Errno::STALE.into())) }
    }

    /// Opens the workplace.
    fn enter(state: JobDir, home: Home, inside: bool) -> io::Result<Place> {
        let fs = state.fs().clone();
        let name = OsString::from(workplace_name(state.job()));
        let (base, path) = match (inside, &home.parent) {
            (true, _) => (home.root.handle().try_clone_to_owned()?, home.root.path().join(&name)),
            (false, Some((handle, path))) => (handle.try_clone()?, path.join(&name)),
            (false, None) => return Err(Errno::NOENT.into()),
        };
        let device = fs.stat_handle(base.as_fd())?.device;
        let (work, stat) = open_folder(&*fs, base.as_fd(), &name, device)?;
        let (slots, _) = open_folder(&*fs, work.as_fd(), OsStr::new(STAGED), stat.device)?;
        if stat.mode & 0o077 != 0 {
            return Err(Errno::STALE.into());
        }
        Ok(Place {
            home_inode: home.inode,
            home: home.root,
            work: Root::at(fs.clone(), work, &path)?,
            work_inode: stat.inode,
            slots: Root::at(fs, slots, &path.join(STAGED))?,
            inside,
            base,
            state,
        })
    }

    /// The folder that holds the workplace.
    pub fn base(&self) -> BorrowedFd<'_> {
        self.base.as_fd()
    }

    /// After a power loss: the empty folder that was moved into the home to see whether that can be done may be
    /// back there.
    pub fn remove_probe(&self) -> Result<()> {
        if self.inside {
            return Ok(());
        }
        let name = OsString::from(workplace_name(self.state.job()));
        let path = self.home.path().join(&name);
        remove_from(&**self.fs(), (self.home.handle(), &name), &path, true, None)
    }

    /// Removes the workplace for good.
    pub fn remove(&self) -> Result<()> {
        let name = OsString::from(workplace_name(self.state.job()));
        let at = (self.base.as_fd(), &*name);
        remove_from(&**self.fs(), at, self.work.path(), self.inside, Some(self.work_inode))
    }

    /// Removes what there is of a job that has not committed, or that was being removed; then its workplace is known.
    pub fn remove_any(state: &JobDir, record: &PlaceRecord, journal: Option<&Journal>) -> Result<()> {
        let home = find_home(state, record)?;
        let name = OsString::from(workplace_name(state.job()));
        home.bases().try_for_each(|(inside, base, path)| {
            let inode = journal.filter(|j| j.inside == inside).map(|j| j.workplace);
            remove_from(&**state.fs(), (base, &name), &path.join(&name), inside, inode)
        })
    }

    pub fn write_note(&self, note: &Value) -> Result<()> {
        let record = PlaceRecord {
            format: FORMAT,
            home: self.home.path().to_owned(),
            inode: self.home_inode,
            note: note.clone(),
        };
        self.state.write(PLACE, &record)
    }
}

fn find_home(state: &JobDir, record: &PlaceRecord) -> Result<Home> {
    let told = escape(record.home.as_os_str());
    let home = Home::open(state.fs(), &record.home).map_err(|e| {
        Error::new(Code::RestoreUnfinished, format!("Cannot open {told}, where a restore was stopped"))
            .because(e)
    })?;
    if home.inode == record.inode {
        return Ok(home);
    }
    Err(Error::new(
        Code::RestoreUnfinished,
        format!(
            "{told}, where a restore was stopped, is another folder now: it was moved, or its disk is not there"
        ),
    ))
}

/// Removes the workplace from a folder for good; none is fine. Only what a workplace has is deleted, through a handle
/// on the folder that was found to be one: whoever may rename in `base` must not get others' folders deleted.
/// `inode` is its inode, where that is known.
fn remove_from(
    fs: &dyn FileSystem,
    (base, name): (BorrowedFd<'_>, &OsStr),
    path: &Path,
    inside: bool,
    inode: Option<u64>,
) -> Result<()> {
    let failed =
        |e| Error::new(Code::System, format!("Cannot delete {}", escape(path.as_os_str()))).because(e);
    let open = || open_folder(fs, base, name, fs.stat_handle(base)?.device);
    let (work, stat) = match open() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(failed)?,
    };
    let ours = match inode {
        Some(inode) => inode == stat.inode,
        None => stat.uid == rustix::process::geteuid().as_raw() && stat.mode & 0o077 == 0,
    };
    if !ours {
        return Err(failed(io::Error::other("it is not the workplace that was made")));
    }
    for entry in [OsStr::new(STAGED), OsStr::new(ASIDE), name] {
        crate::remove::remove_large_tree(fs, work.as_fd(), entry)
            .map_err(|e| e.context(escape(path.as_os_str())))?;
    }
    keeping_time(fs, base, inside, || fs.remove_dir(base, name)).map_err(failed)?;
    fs.sync(base).map_err(failed)
}

/// Does something in a folder; one that is a home has its own time afterwards as before, where we may set it.
fn keeping_time<T>(fs: &dyn FileSystem, base: BorrowedFd<'_>, is_home: bool, work: impl FnOnce() -> T) -> T {
    let before = if is_home { fs.stat_handle(base).ok() } else { None };
    let done = work();
    if let Some(before) = before {
        // The time of a folder that belongs to somebody else is left as the kernel set it.
        drop(fs.set_times(base, before.mtime));
    }
    done
}

/// Makes the workplace where it can be; tells whether that is inside the home.
fn make_workplace(fs: &Arc<dyn FileSystem>, home: &Home, job: JobId) -> Result<bool> {
    let name = &*OsString::from(workplace_name(job));
    let mut refused = None;
    for (inside, base, path) in home.bases() {
        match try_base(&**fs, base, name, inside, home.root.handle()) {
            Ok(()) => return Ok(inside),
            Err(e) if may_be_elsewhere(&e) => refused = Some(e),
            Err(e) => return Err(writing("Cannot make the folder", &path.join(name), e)),
        }
    }
    let home = escape(home.root.path().as_os_str());
    let e =
        Error::new(Code::TargetUnusable, format!("Neither {home} nor the folder it lies in can be written"))
            .advise("Give the user that runs Backstay the right to write one of the two.");
    Err(match refused {
        Some(why) => e.because(why),
        None => e,
    })
}

/// Whether a place is refused for a reason that another place may not have.
fn may_be_elsewhere(e: &io::Error) -> bool {
    matches!(Errno::from_io_error(e), Some(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::XDEV))
}

/// Makes the workplace in a folder. Beside the home: only if entries can be moved from there into the home.
fn try_base(
    fs: &dyn FileSystem,
    base: BorrowedFd<'_>,
    name: &OsStr,
    inside: bool,
    home: BorrowedFd<'_>,
) -> io::Result<()> {
    keeping_time(fs, base, inside, || fs.create_dir(base, name))?;
    let device = fs.stat_handle(base)?.device;
    let (work, _) = open_folder(fs, base, name, device)?;
    if !inside && let Err(e) = probe(fs, work.as_fd(), home, name) {
        crate::remove_tree(fs, base, name).map_err(io::Error::other)?;
        return Err(e);
    }
    fs.create_dir(work.as_fd(), OsStr::new(STAGED))
}

/// Moves an empty folder from the workplace into the home, and removes it there.
fn probe(fs: &dyn FileSystem, work: BorrowedFd<'_>, home: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    fs.create_dir(work, name)?;
    let moved = keeping_time(fs, home, true, || {
        move_to_free(fs, (work, name), (home, name))?;
        fs.remove_dir(home, name)
    });
    match moved {
        // A home that its owner may not write: where something is to change it is opened for the moment.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => fs.remove_dir(work, name),
        other => other,
    }
}

/// Moves an entry to a name that must be free, where the file system can say so in one call or not.
pub(super) fn move_to_free(
    fs: &dyn FileSystem,
    from: (BorrowedFd<'_>, &OsStr),
    to: (BorrowedFd<'_>, &OsStr),
) -> io::Result<()> {
    match fs.rename(from.0, from.1, to.0, to.1, Rename::NoReplace) {
        Err(e) if cannot_say(&e) => match fs.stat(to.0, to.1) {
            Ok(_) => Err(Errno::EXIST.into()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                fs.rename(from.0, from.1, to.0, to.1, Rename::Replace)
            }
            Err(e) => Err(e),
        },
        other => other,
    }
}

/// Whether a rename failed because the file system knows only the plain one.
pub(super) fn cannot_say(e: &io::Error) -> bool {
    matches!(Errno::from_io_error(e), Some(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP))
}
