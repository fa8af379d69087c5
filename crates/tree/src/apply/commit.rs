//! What is checked before the commit, and the journal that comes of it.
//!
//! Invariants: nothing of the home is changed here. When [`check`] returns a journal, every live entry was as the
//! plan saw it, every staged one is there, nothing is mounted where something changes, and the workplace with its
//! names is synced. Killed here, the job has not committed. Lock: the job's is held.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use backstay_model::{Code, Error, Result};
use rustix::io::Errno;

use super::place::Place;
use super::record::{
    FORMAT, Id, Journal, MetaRecord, Side, StepRecord, Values, check_paths, in_order, split,
};
use super::{Changes, MetaChange, Seen, Step};
use crate::beneath::writing;
use crate::fs::{FileSystem, Kind, Stat};
use crate::mounts;
use crate::path::escape;
use crate::scan::open_regular;

/// More handles than this are synced with one call for all of the file system: each one waits for the disk.
pub(super) const SYNC_EACH: usize = 8;

/// Compares everything with the plan.
pub(super) fn check(place: &Place, changes: &Changes) -> Result<Journal> {
    let steps = || changes.steps.iter().map(|s| &*s.path);
    check_paths(steps(), changes.metadata.iter().map(|m| &*m.path))
        .map_err(|why| Error::new(Code::Internal, format!("A restore in place has wrong steps: {why}")))?;
    home_is_still_there(place)?;
    no_mounts(place, steps())?;
    let mut journal = Journal {
        format: FORMAT,
        turn: 1,
        goal: Side::New,
        inside: place.inside,
        workplace: place.work_inode,
        steps: Vec::with_capacity(changes.steps.len()),
        metadata: Vec::with_capacity(changes.metadata.len()),
    };
    for change in &changes.metadata {
        journal.metadata.push(staying(place, change)?);
    }
    let named: BTreeSet<PathBuf> = journal.metadata.iter().map(|m| m.path.clone()).collect();
    let mut groups: BTreeMap<&Path, Vec<&Step>> = BTreeMap::new();
    for step in &changes.steps {
        groups.entry(split(&step.path).0).or_default().push(step);
    }
    let mut made = BTreeSet::new();
    for (folder, steps) in groups {
        check_folder(place, folder, &steps, named.contains(folder), &mut journal, &mut made)?;
    }
    in_order(&mut journal.steps);
    sync(place, &made)?;
    Ok(journal)
}

fn home_is_still_there(place: &Place) -> Result<()> {
    let path = place.home.path();
    let now = place.fs().open_root(path).and_then(|home| place.fs().stat_handle(home.as_fd()));
    match now {
        Ok(stat) if stat.inode == place.home_inode && stat.device == place.home.device() => Ok(()),
        Ok(_) => Err(changed(path, "is another folder now")),
        Err(e) => Err(changed(path, "cannot be opened any more").because(e)),
    }
}

/// No mount lies at or below a step.
pub(super) fn no_mounts<'a>(place: &Place, steps: impl Iterator<Item = &'a Path>) -> Result<()> {
    let below = mounts::below(place.home.path())?;
    let mounts: Vec<&Path> = below.iter().filter_map(|at| at.strip_prefix(place.home.path()).ok()).collect();
    if mounts.is_empty() {
        return Ok(());
    }
    let steps: BTreeSet<&Path> = steps.collect();
    match mounts.iter().find(|mount| mount.ancestors().any(|above| steps.contains(above))) {
        Some(mount) => Err(mounted(&place.home.path().join(mount))),
        None => Ok(()),
    }
}

fn mounted(path: &Path) -> Error {
    let path = escape(path.as_os_str());
    Error::new(Code::Conflict, format!("Something is mounted in {path}, which the restore is to change"))
        .advise("Unmount it, or leave that path out of the restore. Nothing on the mount was changed.")
}

fn changed(path: &Path, how: &str) -> Error {
    Error::new(Code::HomeChanged, format!("{} {how}", escape(path.as_os_str())))
}

/// Why a live entry could not be looked at as the plan had it.
fn not_as_seen(path: &Path, e: io::Error) -> Error {
    match Errno::from_io_error(&e) {
        Some(Errno::XDEV) => mounted(path),
        Some(Errno::LOOP) => changed(path, "is a link or lies behind one now"),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::STALE) => changed(path, "is gone"),
        _ => Error::new(Code::TargetUnusable, format!("Cannot look at {}", escape(path.as_os_str())))
            .advise("Check the owner and the mode of the folders on the way.")
            .because(e),
    }
}

pub(super) fn look(fs: &dyn FileSystem, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<Stat>> {
    match fs.stat(dir, name) {
        Ok(stat) => Ok(Some(stat)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// What lies at a path of the home.
pub(super) fn live_entry(place: &Place, path: &Path) -> Result<Option<Stat>> {
    let (folder, name) = split(path);
    let parent = match place.home.descend(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened,
    };
    let found = parent.and_then(|parent| look(&**place.fs(), parent.as_fd(), name));
    found.map_err(|e| not_as_seen(&place.home.path().join(path), e))
}

/// Opens a folder of the home that lies where entries can be moved to from the workplace.
fn open_live(place: &Place, folder: &Path) -> Result<(OwnedFd, Stat)> {
    let path = place.home.path().join(folder);
    let open = || {
        let handle = match folder.as_os_str().is_empty() {
            true => place.home.handle().try_clone_to_owned()?,
            false => place.home.descend(folder)?,
        };
        let stat = place.fs().stat_handle(handle.as_fd())?;
        Ok((handle, stat))
    };
    let (handle, stat) = open().map_err(|e| not_as_seen(&path, e))?;
    if stat.device == place.work.device() {
        return Ok((handle, stat));
    }
    let path = escape(path.as_os_str());
    Err(Error::new(Code::Conflict, format!("{path} lies on another file system or subvolume than the home"))
        .advise("Make it an app of its own, or leave it out of the restore. Nothing was changed."))
}

/// Checks the steps of one folder and adds them to the journal.
fn check_folder(
    place: &Place,
    folder: &Path,
    steps: &[&Step],
    named: bool,
    journal: &mut Journal,
    made: &mut BTreeSet<PathBuf>,
) -> Result<()> {
    let fs = &**place.fs();
    let (live, stat) = open_live(place, folder)?;
    if !named {
        let path = place.home.path().join(folder);
        let xattrs = fs.xattrs(live.as_fd()).map_err(|e| not_as_seen(&path, e))?;
        let values = Values::new(&stat, xattrs);
        let record =
            MetaRecord { path: folder.to_owned(), id: Id::from(&stat), old: values.clone(), new: values };
        journal.metadata.push(record);
    }
    let slots = slot_folder(place, folder, made)?;
    for step in steps {
        let name = split(&step.path).1;
        let path = place.home.path().join(&step.path);
        let old = look(fs, live.as_fd(), name).map_err(|e| not_as_seen(&path, e))?;
        check_live(&path, step.old.as_ref(), old.as_ref(), place.work.device())?;
        let staged = place.slots.path().join(&step.path);
        let new = look(fs, slots.as_fd(), name).map_err(|e| writing("Cannot look at", &staged, e))?;
        if new.map(|new| new.kind) != step.new {
            let staged = escape(staged.as_os_str());
            return Err(Error::new(Code::Internal, format!("{staged} was not staged as planned")));
        }
        journal.steps.push(StepRecord {
            path: step.path.clone(),
            todo: true,
            slot: new.as_ref().map(Id::from),
            live_mode: old.as_ref().and_then(locked_mode),
            slot_mode: new.as_ref().and_then(locked_mode),
        });
    }
    Ok(())
}

/// The mode of a folder that its owner cannot write: moving it elsewhere needs that, except for root.
pub(super) fn locked_mode(stat: &Stat) -> Option<u32> {
    (stat.kind == Kind::Dir && stat.mode & 0o200 == 0).then_some(stat.mode)
}

fn check_live(path: &Path, seen: Option<&Seen>, now: Option<&Stat>, device: u64) -> Result<()> {
    match (seen, now) {
        (None, None) => Ok(()),
        (Some(_), Some(now)) if now.mount_root => Err(mounted(path)),
        (Some(seen), Some(now)) if seen.is_still(now) => {
            if now.kind == Kind::Dir && now.device != device {
                return Err(mounted(path));
            }
            Ok(())
        }
        (Some(_), Some(_)) => Err(changed(path, "was changed since the plan was made")),
        (Some(_), None) => Err(changed(path, "was removed since the plan was made")),
        (None, Some(_)) => Err(changed(path, "was made since the plan was made")),
    }
}

/// The folder with the slots of a folder; what is missing of it is made and noted.
fn slot_folder(place: &Place, folder: &Path, made: &mut BTreeSet<PathBuf>) -> Result<OwnedFd> {
    match place.slots.descend(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            made.extend(folder.ancestors().map(Path::to_owned));
            place.slots.make_dirs(folder)
        }
        opened => opened.map_err(|e| writing("Cannot open", &place.slots.path().join(folder), e)),
    }
}

/// Checks an entry that stays, and reads the metadata that it has now.
fn staying(place: &Place, change: &MetaChange) -> Result<MetaRecord> {
    let fs = &**place.fs();
    let path = place.home.path().join(&change.path);
    let (stat, xattrs) = match change.seen.kind {
        Kind::Dir => {
            let (handle, stat) = open_live(place, &change.path)?;
            (stat, fs.xattrs(handle.as_fd()))
        }
        Kind::File => {
            let (folder, name) = split(&change.path);
            let (parent, _) = open_live(place, folder)?;
            match open_regular(fs, parent.as_fd(), name, place.home.device()) {
                Ok((handle, stat)) => (stat, fs.xattrs(handle.as_fd())),
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                    let stat = fs.stat(parent.as_fd(), name).map_err(|e| not_as_seen(&path, e))?;
                    (stat, fs.xattrs_at(parent.as_fd(), name))
                }
                Err(e) => return Err(not_as_seen(&path, e)),
            }
        }
        _ => {
            let path = escape(path.as_os_str());
            return Err(Error::new(
                Code::Internal,
                format!("{path} is neither file nor folder and cannot stay"),
            ));
        }
    };
    if !change.seen.is_still(&stat) || (stat.kind == Kind::File && stat.links != 1) {
        return Err(changed(&path, "was changed since the plan was made"));
    }
    let xattrs = xattrs.map_err(|e| not_as_seen(&path, e))?;
    Ok(MetaRecord {
        path: change.path.clone(),
        id: Id::from(&stat),
        old: Values::new(&stat, xattrs),
        new: change.new.clone(),
    })
}

/// Makes the workplace's own folders survive a power loss.
fn sync(place: &Place, made: &BTreeSet<PathBuf>) -> Result<()> {
    let fs = place.fs();
    let failed = |path: &Path, e| writing("Cannot sync", path, e);
    if made.len() > SYNC_EACH {
        return fs.sync_all(place.work.handle()).map_err(|e| failed(place.work.path(), e));
    }
    for folder in made {
        let sync = || fs.sync(place.slots.descend(folder)?.as_fd());
        sync().map_err(|e| failed(&place.slots.path().join(folder), e))?;
    }
    for handle in [place.slots.handle(), place.work.handle(), place.base()] {
        fs.sync(handle).map_err(|e| failed(place.work.path(), e))?;
    }
    Ok(())
}
