//! Reading one folder.
//!
//! Invariants: entries come sorted by the bytes of their names; what begins another mount or is excluded is
//! never entered nor forgotten, it is told as left out; an entry that cannot be looked at is told as a problem.
//! Nothing is written and nothing is locked: what changes while it is read is seen before or after the change.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;

use crate::apply::is_workplace;
use crate::fs::{FileSystem, Kind, Stat, is_component};

/// Folders and files that are not part of a tree though they lie in it, known by device and inode, so that no
/// other name of them (a link to the folder, a bind mount) gets them in.
#[derive(Clone, Debug, Default)]
pub struct Exclusions {
    ids: HashSet<(u64, u64)>,
    workplaces: bool,
    /// In a snapshot of a volume: what lies below a mount of the live tree, with the root of what is mounted there.
    mounts: HashMap<(u64, u64), Stat>,
    /// In a snapshot of a volume: what stands in the place of another volume.
    holes: HashSet<(u64, u64)>,
}

impl Exclusions {
    /// Excludes nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Excludes the folder at `path`. Returns whether it exists; one that does not needs no exclusion.
    pub fn add_folder(&mut self, fs: &dyn FileSystem, path: &Path) -> io::Result<bool> {
        match fs.open_root(path) {
            Ok(handle) => {
                self.add(&fs.stat_handle(handle.as_fd())?);
                Ok(true)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Excludes an entry that has been looked at.
    pub fn add(&mut self, stat: &Stat) {
        self.ids.insert(stat.id());
    }

    /// Excludes the workplaces of restores, wherever they lie.
    pub fn add_workplaces(&mut self) {
        self.workplaces = true;
    }

    /// Takes an entry for a mount that looks like that: in a snapshot of a volume, where mounts of the live tree are not seen.
    pub fn add_mount(&mut self, below: &Stat, live: Stat) {
        self.mounts.insert(below.id(), live);
    }

    /// Takes a folder for the place of another volume, by device and inode: in a snapshot of a volume it is empty there.
    pub fn add_hole(&mut self, device: u64, inode: u64) {
        self.holes.insert((device, inode));
    }

    fn stands_for(&self, stat: &Stat) -> Option<(Stat, Why)> {
        let mount = self.mounts.get(&stat.id()).map(|live| (*live, Why::Mount));
        mount.or_else(|| self.holes.contains(&stat.id()).then_some((*stat, Why::Hole)))
    }

    /// Whether an entry is excluded.
    #[must_use]
    pub fn contains(&self, name: &OsStr, stat: &Stat) -> bool {
        (!self.ids.is_empty() && self.ids.contains(&stat.id()))
            || (self.workplaces && stat.kind == Kind::Dir && is_workplace(name))
    }
}

/// An entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: OsString,
    /// What it was when it was looked at.
    pub stat: Stat,
}

/// Why an entry is not walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Another mount begins there.
    Mount,
    /// It is among the [`Exclusions`].
    Excluded,
    /// In a snapshot of a volume: another volume lies there, which the snapshot does not hold.
    Hole,
}

/// An entry that is not part of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Its name.
    pub name: OsString,
    /// What lies there (of a mount: the root of what is mounted).
    pub stat: Stat,
    /// Why it is left out.
    pub why: Why,
}

/// What a folder holds.
#[derive(Debug, Default)]
pub struct Listing {
    /// The entries of the tree, sorted by the bytes of their names.
    pub entries: Vec<Entry>,
    /// What is not walked.
    pub left_out: Vec<LeftOut>,
    /// Entries that could not be looked at.
    pub problems: Vec<(OsString, io::Error)>,
}

/// Lists an open folder that lies on `device`. An entry that vanishes meanwhile was never there.
pub fn scan(fs: &dyn FileSystem, dir: BorrowedFd<'_>, skip: &Exclusions, device: u64) -> io::Result<Listing> {
    let names = fs.entries(dir)?;
    let mut listing = Listing { entries: Vec::with_capacity(names.len()), ..Listing::default() };
    for (name, _) in names {
        match fs.stat(dir, &name) {
            Ok(stat) if stat.is_mount_in(device) => {
                listing.left_out.push(LeftOut { name, stat, why: Why::Mount });
            }
            Ok(stat) => match skip.stands_for(&stat) {
                Some((stat, why)) => listing.left_out.push(LeftOut { name, stat, why }),
                None if skip.contains(&name, &stat) => {
                    listing.left_out.push(LeftOut { name, stat, why: Why::Excluded });
                }
                None => listing.entries.push(Entry { name, stat }),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => listing.problems.push((name, e)),
        }
    }
    listing.entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    listing.left_out.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    listing.problems.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(listing)
}

/// Opens a folder of a folder that lies on `device`, and tells what was opened. `EXDEV` when a mount has appeared
/// there since it was listed.
pub fn open_folder(
    fs: &dyn FileSystem,
    dir: BorrowedFd<'_>,
    name: &OsStr,
    device: u64,
) -> io::Result<(OwnedFd, Stat)> {
    if !is_component(name) {
        return Err(Errno::INVAL.into());
    }
    // Not `open_dir`: where the kernel has `openat2`, it refuses mounts itself, those on the same device too.
    let handle = fs.open_dir_beneath(dir, Path::new(name))?;
    let stat = fs.stat_handle(handle.as_fd())?;
    if stat.is_mount_in(device) { Err(Errno::XDEV.into()) } else { Ok((handle, stat)) }
}

/// Opens a regular file of a folder that lies on `device` for reading, and tells what was opened: it may be
/// another file than the one listed, when one was renamed over it. `ESTALE` when it is no regular file any more,
/// `EXDEV` when a mount has appeared there.
pub fn open_regular(
    fs: &dyn FileSystem,
    dir: BorrowedFd<'_>,
    name: &OsStr,
    device: u64,
) -> io::Result<(OwnedFd, Stat)> {
    let handle = fs.open_file(dir, name)?;
    let stat = fs.stat_handle(handle.as_fd())?;
    if stat.is_mount_in(device) {
        Err(Errno::XDEV.into())
    } else if stat.kind != Kind::File {
        Err(Errno::STALE.into())
    } else {
        Ok((handle, stat))
    }
}
