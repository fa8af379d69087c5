//! What the tests of changing a live tree share: trees, a small stager and planner, and one job from end to end.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_model::{JobId, Result};
use backstay_tree::apply::{Changes, MetaChange, Seen, Step, Values, is_workplace};
use backstay_tree::compare::{self, Options};
use backstay_tree::fs::{FileSystem, Host, Kind, Stat};
use backstay_tree::metadata::{self, Metadata};
use backstay_tree::{Exclusions, Owners, scan};

pub fn job(number: u8) -> JobId {
    JobId::from_bytes([number; 16])
}

pub fn host() -> Arc<dyn FileSystem> {
    Arc::new(Host)
}

/// Compares two trees with all metadata, workplaces left out.
#[track_caller]
pub fn same(first: &Path, second: &Path, what: &str) {
    let differences = differences(first, second, true);
    assert!(differences.is_empty(), "{what}: {}", shown(&differences));
}

/// How two trees differ, workplaces left out; the time of the roots themselves where asked.
pub fn differences(first: &Path, second: &Path, root_time: bool) -> Vec<compare::Difference> {
    let mut found = compare::trees(first, second, &Options::default());
    found.retain(|d| !d.path.components().next().is_some_and(|name| is_workplace(name.as_os_str())));
    found.retain(|d| root_time || !(d.path.as_os_str().is_empty() && d.what == compare::What::Mtime));
    found
}

pub fn shown(differences: &[compare::Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// A copy with everything, hard links and times included.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    let mut copier = Copier { fs: &Host, links: BTreeMap::new() };
    let (from, to) = (Host.open_root(from).unwrap(), Host.open_root(to).unwrap());
    copier.folder(from.as_fd(), to.as_fd()).unwrap();
}

/// Copies entries through a file system seam; the same inode becomes the same new file.
pub struct Copier<'a> {
    pub fs: &'a dyn FileSystem,
    links: BTreeMap<u64, (std::os::fd::OwnedFd, OsString)>,
}

impl<'a> Copier<'a> {
    pub fn new(fs: &'a dyn FileSystem) -> Self {
        Copier { fs, links: BTreeMap::new() }
    }

    /// Content and metadata of a folder.
    pub fn folder(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
        let listing = scan(&Host, from, &Exclusions::new(), Host.stat_handle(from)?.device)?;
        for entry in listing.entries {
            self.entry(from, to, &entry.name, &entry.stat)?;
        }
        let meta = Metadata::of_handle(&Host, from, Host.stat_handle(from)?, &Owners::new())?;
        told(metadata::apply(self.fs, to, &(&meta).into()))
    }

    pub fn entry(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &OsStr,
        stat: &Stat,
    ) -> io::Result<()> {
        if stat.kind != Kind::Dir
            && let Some((dir, first)) = self.links.get(&stat.inode)
        {
            return self.fs.link(dir.as_fd(), first, to, name);
        }
        match stat.kind {
            Kind::Dir => {
                self.fs.create_dir(to, name)?;
                let made = self.fs.open_dir(to, name)?;
                return self.folder(Host.open_dir(from, name)?.as_fd(), made.as_fd());
            }
            Kind::File => {
                let source = Host.open_file(from, name)?;
                let mut bytes = vec![0; usize::try_from(stat.size).unwrap()];
                Host.read_at(source.as_fd(), &mut bytes, 0)?;
                let file = self.fs.create_file(to, name)?;
                self.fs.write_at(file.as_fd(), &bytes, 0)?;
                let meta = Metadata::of_handle(&Host, source.as_fd(), *stat, &Owners::new())?;
                told(metadata::apply(self.fs, file.as_fd(), &(&meta).into()))?;
            }
            Kind::Symlink => self.fs.symlink(&Host.read_link(from, name)?, to, name)?,
            kind => self.fs.make_node(to, name, kind, stat.rdev)?,
        }
        if stat.kind != Kind::File {
            let meta = Metadata::of_entry(&Host, from, name, *stat, &Owners::new())?;
            told(metadata::apply_at(self.fs, to, name, &(&meta).into()))?;
        }
        if stat.links > 1 {
            self.links.insert(stat.inode, (to.try_clone_to_owned()?, name.to_owned()));
        }
        Ok(())
    }
}

fn told(problems: Vec<metadata::Problem>) -> io::Result<()> {
    problems.into_iter().next().map_or(Ok(()), |p| Err(p.error))
}

/// What has to change to make the tree `live` the tree `target`.
pub fn plan(live: &Path, target: &Path) -> Changes {
    let mut planner = Planner { changes: Changes::default(), replace: links_to_replace(live, target) };
    let (a, b) = (Host.open_root(live).unwrap(), Host.open_root(target).unwrap());
    planner.folder(Path::new(""), a.as_fd(), b.as_fd());
    planner.changes
}

struct Planner {
    changes: Changes,
    /// Files with several names, on either side: all their names are replaced.
    replace: Vec<PathBuf>,
}

fn links_to_replace(live: &Path, target: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in [live, target] {
        walk(root, Path::new(""), &mut |path, stat| {
            if stat.links > 1 && stat.kind != Kind::Dir {
                found.push(path.to_owned());
            }
        });
    }
    found
}

/// Calls `see` for every entry.
pub fn walk(root: &Path, below: &Path, see: &mut dyn FnMut(&Path, &Stat)) {
    let handle = Host.open_root(&root.join(below)).unwrap();
    let device = Host.stat_handle(handle.as_fd()).unwrap().device;
    for entry in scan(&Host, handle.as_fd(), &Exclusions::new(), device).unwrap().entries {
        let path = below.join(&entry.name);
        see(&path, &entry.stat);
        if entry.stat.kind == Kind::Dir {
            walk(root, &path, see);
        }
    }
}

impl Planner {
    fn folder(&mut self, path: &Path, a: BorrowedFd<'_>, b: BorrowedFd<'_>) {
        let before = self.changes.steps.len();
        let list = |dir: BorrowedFd<'_>| -> BTreeMap<OsString, Stat> {
            let device = Host.stat_handle(dir).unwrap().device;
            let entries = scan(&Host, dir, &Exclusions::new(), device).unwrap().entries;
            entries.into_iter().filter(|e| !is_workplace(&e.name)).map(|e| (e.name, e.stat)).collect()
        };
        let (old, new) = (list(a), list(b));
        for name in old.keys().chain(new.keys().filter(|n| !old.contains_key(*n))) {
            let child = path.join(name);
            match (old.get(name), new.get(name)) {
                (Some(x), Some(y)) if x.kind == Kind::Dir && y.kind == Kind::Dir => {
                    let (x, y) = (Host.open_dir(a, name).unwrap(), Host.open_dir(b, name).unwrap());
                    self.folder(&child, x.as_fd(), y.as_fd());
                }
                (Some(x), Some(y)) => self.both(&child, (a, x), (b, y)),
                (x, y) => self.step(child, x, y),
            }
        }
        let (x, y) = (Host.stat_handle(a).unwrap(), Host.stat_handle(b).unwrap());
        let (have, want) = (Values::from(&meta(a, x)), Values::from(&meta(b, y)));
        if have != want || self.changes.steps.len() > before {
            self.changes.metadata.push(MetaChange { path: path.to_owned(), seen: Seen::from(&x), new: want });
        }
    }

    fn step(&mut self, path: PathBuf, old: Option<&Stat>, new: Option<&Stat>) {
        self.changes.steps.push(Step { path, old: old.map(Seen::from), new: new.map(|s| s.kind) });
    }

    fn both(&mut self, path: &Path, (a, x): (BorrowedFd<'_>, &Stat), (b, y): (BorrowedFd<'_>, &Stat)) {
        let name = path.file_name().unwrap();
        if x.kind == Kind::File && y.kind == Kind::File && !self.replace.iter().any(|p| p == path) {
            let (f, g) = (Host.open_file(a, name).unwrap(), Host.open_file(b, name).unwrap());
            let (mut left, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
            let got = Host.read_at(f.as_fd(), &mut left, 0).unwrap();
            if x.size == y.size && got == Host.read_at(g.as_fd(), &mut right, 0).unwrap() && left == right {
                let (have, want) = (Values::from(&meta(f.as_fd(), *x)), Values::from(&meta(g.as_fd(), *y)));
                if have != want {
                    let seen = Seen::from(x);
                    self.changes.metadata.push(MetaChange { path: path.to_owned(), seen, new: want });
                }
                return;
            }
        } else if x.kind == Kind::Symlink
            && y.kind == Kind::Symlink
            && Host.read_link(a, name).unwrap() == Host.read_link(b, name).unwrap()
            && x.mtime == y.mtime
        {
            return;
        }
        self.step(path.to_owned(), Some(x), Some(y));
    }
}

fn meta(handle: BorrowedFd<'_>, stat: Stat) -> Metadata {
    Metadata::of_handle(&Host, handle, stat, &Owners::new()).unwrap()
}

/// Writes what is new as the vault's restore does: folders on the way, entries with metadata, one sync for all.
pub fn stage(fs: &dyn FileSystem, target: &Path, staging: &Path, changes: &Changes) -> io::Result<()> {
    let source = Host.open_root(target)?;
    let staging = fs.open_root(staging)?;
    let mut copier = Copier::new(fs);
    for step in changes.steps.iter().filter(|s| s.new.is_some()) {
        let (mut from, mut to) = (source.try_clone()?, staging.try_clone()?);
        let parent = step.path.parent().unwrap();
        for name in parent.as_os_str().as_bytes().split(|b| *b == b'/').filter(|n| !n.is_empty()) {
            let name = OsStr::from_bytes(name);
            match fs.create_dir(to.as_fd(), name) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            to = fs.open_dir(to.as_fd(), name)?;
            from = Host.open_dir(from.as_fd(), name)?;
        }
        let name = step.path.file_name().unwrap();
        copier.entry(from.as_fd(), to.as_fd(), name, &Host.stat(from.as_fd(), name)?)?;
    }
    // A restore that writes nothing syncs nothing.
    if changes.steps.iter().any(|s| s.new.is_some()) { fs.sync_all(staging.as_fd()) } else { Ok(()) }
}

/// An error of staging as the whole job gives it.
pub fn staged(result: io::Result<()>) -> Result<()> {
    result.map_err(|e| backstay_tree::beneath::writing("Cannot write", Path::new("staged"), e))
}
