//! How two trees differ.
//!
//! Invariants: everything is compared as bytes and numbers, streaming, in the order of names; what cannot be read
//! is a difference, so an empty answer means that all that was asked for was seen and is equal. Mounts below the
//! roots are not part of the trees. Nothing is written, nothing is locked: compare trees that are at rest.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use crate::fs::{FileSystem, Host, Kind, Stat};
use crate::path::escape;
use crate::scan::{Entry, Exclusions, open_regular, scan};
use crate::sparse;
use crate::trail::Trail;

/// What is compared beside names, kinds, content, link targets and device numbers.
#[derive(Clone, Debug)]
pub struct Options {
    /// User and group, as numbers.
    pub owner: bool,
    /// Permission bits (not of symbolic links).
    pub mode: bool,
    /// Times of modification, to the nanosecond, of all but folders.
    pub mtime: bool,
    /// The same of folders.
    pub folder_mtime: bool,
    /// Extended attributes and ACLs.
    pub xattrs: bool,
    /// Which names are the same file.
    pub hard_links: bool,
    /// Where files have holes.
    pub holes: bool,
    /// The metadata of the two roots themselves.
    pub root: bool,
    /// The comparison ends after so many differences.
    pub limit: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            owner: true,
            mode: true,
            mtime: true,
            folder_mtime: true,
            xattrs: true,
            hard_links: true,
            holes: true,
            root: true,
            limit: 1000,
        }
    }
}

/// In what an entry differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// The second tree does not have it.
    OnlyInFirst,
    /// The first tree does not have it.
    OnlyInSecond,
    /// A file in one, a folder in the other, say.
    Kind,
    /// Length of a file.
    Size,
    /// Bytes of a file.
    Content,
    /// Permission bits.
    Mode,
    /// User or group.
    Owner,
    /// Time of modification.
    Mtime,
    /// Extended attributes, ACLs among them.
    Xattrs,
    /// Target of a symbolic link.
    LinkTarget,
    /// Number of a device node.
    Device,
    /// It is another name of a file in one tree and not in the other.
    HardLinks,
    /// Where a file has holes.
    Holes,
    /// It could not be read in one of the trees.
    Unreadable,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Path below the roots; empty for the roots themselves.
    pub path: PathBuf,
    /// In what.
    pub what: What,
    /// Both sides, for people.
    pub detail: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.as_os_str().is_empty() { ".".into() } else { escape(self.path.as_os_str()) };
        write!(f, "{path}: {:?}", self.what)?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, " ({})", self.detail) }
    }
}

/// Compares the trees below two folders.
#[must_use]
pub fn trees(first: &Path, second: &Path, options: &Options) -> Vec<Difference> {
    let mut found = Found { list: Vec::new(), limit: options.limit, here: PathBuf::new() };
    let roots = Side::open(first).and_then(|a| Ok((a, Side::open(second)?)));
    match roots {
        Ok((a, b)) => Comparison { a, b, options, found: &mut found, buffers: Default::default() }.run(),
        Err(e) => found.add(OsStr::new(""), What::Unreadable, e.to_string()),
    }
    found.list
}

/// Most data ranges of a file that are compared as such; the rest of a file with more counts as one.
const MAX_EXTENTS: usize = 1 << 20;
/// Bytes read at once.
const BUFFER: usize = 256 * 1024;

static HOST: Host = Host;

struct Found {
    list: Vec<Difference>,
    limit: usize,
    /// The folder that is being compared.
    here: PathBuf,
}

impl Found {
    fn is_full(&self) -> bool {
        self.list.len() >= self.limit
    }

    fn add(&mut self, name: &OsStr, what: What, detail: String) {
        if !self.is_full() {
            let path = if name.is_empty() { self.here.clone() } else { self.here.join(name) };
            self.list.push(Difference { path, what, detail });
        }
    }

    fn check<T: PartialEq + fmt::Debug>(&mut self, name: &OsStr, what: What, a: &T, b: &T) {
        if a != b {
            self.add(name, what, format!("{a:?}, {b:?}"));
        }
    }
}

struct Side {
    trail: Trail<'static>,
    /// First name seen of each file that has several.
    first_names: HashMap<(u64, u64), PathBuf>,
}

impl Side {
    fn open(path: &Path) -> io::Result<Self> {
        Ok(Side { trail: Trail::new(&HOST, HOST.open_root(path)?)?, first_names: HashMap::new() })
    }

    /// The entries of the current folder; what cannot be looked at is told.
    fn entries(&mut self, found: &mut Found) -> io::Result<Vec<Entry>> {
        let device = self.trail.device();
        let listing = scan(&HOST, self.trail.handle()?, &Exclusions::new(), device)?;
        for (name, e) in listing.problems {
            found.add(&name, What::Unreadable, e.to_string());
        }
        for entry in &listing.entries {
            if entry.stat.links > 1 && entry.stat.kind != Kind::Dir {
                self.first_names.entry(entry.stat.id()).or_insert_with(|| found.here.join(&entry.name));
            }
        }
        Ok(listing.entries)
    }

    /// The first name of an entry's file; its own where it has one only.
    fn first_name(&self, stat: &Stat, own: PathBuf) -> PathBuf {
        self.first_names.get(&stat.id()).cloned().unwrap_or(own)
    }
}

struct Comparison<'a> {
    a: Side,
    b: Side,
    options: &'a Options,
    found: &'a mut Found,
    buffers: (Vec<u8>, Vec<u8>),
}

impl Comparison<'_> {
    fn run(&mut self) {
        if self.options.root
            && let Err(e) = self.roots()
        {
            self.found.add(OsStr::new(""), What::Unreadable, e.to_string());
        }
        // Folders still to be entered, by level; the last level is where the trails stand.
        let mut levels = vec![self.folder()];
        while let Some(folders) = levels.last_mut() {
            if self.found.is_full() {
                return;
            }
            match folders.pop() {
                Some(name) => match self.enter(&name) {
                    Ok(()) => {
                        self.found.here.push(&name);
                        levels.push(self.folder());
                    }
                    Err(e) => self.found.add(&name, What::Unreadable, e.to_string()),
                },
                None => {
                    levels.pop();
                    self.found.here.pop();
                    self.a.trail.leave();
                    self.b.trail.leave();
                }
            }
        }
    }

    fn roots(&mut self) -> io::Result<()> {
        let a = HOST.stat_handle(self.a.trail.handle()?)?;
        let b = HOST.stat_handle(self.b.trail.handle()?)?;
        self.stats(OsStr::new(""), &a, &b);
        let xattrs = (HOST.xattrs(self.a.trail.handle()?)?, HOST.xattrs(self.b.trail.handle()?)?);
        self.xattrs(OsStr::new(""), &xattrs.0, &xattrs.1);
        Ok(())
    }

    fn enter(&mut self, name: &OsStr) -> io::Result<()> {
        self.a.trail.enter(name)?;
        if let Err(e) = self.b.trail.enter(name) {
            self.a.trail.leave();
            return Err(e);
        }
        Ok(())
    }

    /// Compares the entries of the current folders; returns the names of folders in both, last one first.
    fn folder(&mut self) -> Vec<OsString> {
        let lists = self.a.entries(self.found).and_then(|a| Ok((a, self.b.entries(self.found)?)));
        let (a, b) = match lists {
            Ok(lists) => lists,
            Err(e) => {
                self.found.add(OsStr::new(""), What::Unreadable, e.to_string());
                return Vec::new();
            }
        };
        let mut folders = Vec::new();
        let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
        loop {
            let order = match (a.peek(), b.peek()) {
                (Some(x), Some(y)) => x.name.cmp(&y.name),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => break,
            };
            match order {
                Ordering::Less => {
                    a.next().into_iter().for_each(|x| self.only(x, What::OnlyInFirst));
                }
                Ordering::Greater => {
                    b.next().into_iter().for_each(|y| self.only(y, What::OnlyInSecond));
                }
                Ordering::Equal => {
                    if let (Some(x), Some(y)) = (a.next(), b.next()) {
                        if let Err(e) = self.entry(&x.name, &x.stat, &y.stat) {
                            self.found.add(&x.name, What::Unreadable, e.to_string());
                        }
                        if x.stat.kind == Kind::Dir && y.stat.kind == Kind::Dir {
                            folders.push(x.name.clone());
                        }
                    }
                }
            }
        }
        folders.reverse();
        folders
    }

    fn only(&mut self, entry: &Entry, what: What) {
        self.found.add(&entry.name, what, format!("{:?}", entry.stat.kind));
    }

    fn entry(&mut self, name: &OsStr, a: &Stat, b: &Stat) -> io::Result<()> {
        if a.kind != b.kind {
            self.found.check(name, What::Kind, &a.kind, &b.kind);
            return Ok(());
        }
        self.stats(name, a, b);
        if self.options.hard_links && a.kind != Kind::Dir {
            let own = self.found.here.join(name);
            let (x, y) = (self.a.first_name(a, own.clone()), self.b.first_name(b, own));
            self.found.check(name, What::HardLinks, &x, &y);
        }
        match a.kind {
            Kind::File => return self.files(name),
            Kind::Dir => return self.folder_xattrs(name),
            Kind::Symlink => {
                let target = HOST.read_link(self.a.trail.handle()?, name)?;
                let other = HOST.read_link(self.b.trail.handle()?, name)?;
                self.found.check(name, What::LinkTarget, &target, &other);
            }
            Kind::CharDevice | Kind::BlockDevice => {
                self.found.check(name, What::Device, &a.rdev, &b.rdev);
            }
            Kind::Fifo | Kind::Socket => {}
        }
        if self.options.xattrs {
            let x = HOST.xattrs_at(self.a.trail.handle()?, name)?;
            let y = HOST.xattrs_at(self.b.trail.handle()?, name)?;
            self.xattrs(name, &x, &y);
        }
        Ok(())
    }

    fn stats(&mut self, name: &OsStr, a: &Stat, b: &Stat) {
        if self.options.mode && a.kind != Kind::Symlink && a.mode != b.mode {
            self.found.add(name, What::Mode, format!("{:o}, {:o}", a.mode, b.mode));
        }
        if self.options.owner {
            self.found.check(name, What::Owner, &(a.uid, a.gid), &(b.uid, b.gid));
        }
        if if a.kind == Kind::Dir { self.options.folder_mtime } else { self.options.mtime } {
            self.found.check(name, What::Mtime, &a.mtime, &b.mtime);
        }
    }

    fn xattrs(&mut self, name: &OsStr, a: &Vec<(OsString, Vec<u8>)>, b: &Vec<(OsString, Vec<u8>)>) {
        if self.options.xattrs {
            self.found.check(name, What::Xattrs, a, b);
        }
    }

    fn folder_xattrs(&mut self, name: &OsStr) -> io::Result<()> {
        if self.options.xattrs {
            let x = HOST.open_dir(self.a.trail.handle()?, name)?;
            let y = HOST.open_dir(self.b.trail.handle()?, name)?;
            let (x, y) = (HOST.xattrs(x.as_fd())?, HOST.xattrs(y.as_fd())?);
            self.xattrs(name, &x, &y);
        }
        Ok(())
    }

    fn files(&mut self, name: &OsStr) -> io::Result<()> {
        let (device_a, device_b) = (self.a.trail.device(), self.b.trail.device());
        let (x, a) = open_regular(&HOST, self.a.trail.handle()?, name, device_a)?;
        let (y, b) = open_regular(&HOST, self.b.trail.handle()?, name, device_b)?;
        if self.options.xattrs {
            let (x, y) = (HOST.xattrs(x.as_fd())?, HOST.xattrs(y.as_fd())?);
            self.xattrs(name, &x, &y);
        }
        if a.size != b.size {
            self.found.check(name, What::Size, &a.size, &b.size);
            return Ok(());
        }
        let ranges = if sparse::may_have_holes(&a) || sparse::may_have_holes(&b) {
            let x = sparse::extents(&HOST, x.as_fd(), a.size, MAX_EXTENTS)?;
            let y = sparse::extents(&HOST, y.as_fd(), b.size, MAX_EXTENTS)?;
            if self.options.holes && x != y {
                let count = format!("{} and {} ranges of data", x.len(), y.len());
                self.found.add(name, What::Holes, count);
            }
            union(x, y)
        } else {
            vec![(0, a.size)]
        };
        if let Some(at) = self.first_unequal(x.as_fd(), y.as_fd(), &ranges)? {
            self.found.add(name, What::Content, format!("from byte {at}"));
        }
        Ok(())
    }

    /// Offset of the first byte within the ranges that differs.
    fn first_unequal(
        &mut self,
        x: BorrowedFd<'_>,
        y: BorrowedFd<'_>,
        ranges: &[(u64, u64)],
    ) -> io::Result<Option<u64>> {
        let (left, right) = &mut self.buffers;
        left.resize(BUFFER, 0);
        right.resize(BUFFER, 0);
        for (start, end) in ranges {
            let mut at = *start;
            while at < *end {
                let want = usize::try_from(end - at).unwrap_or(BUFFER).min(BUFFER);
                let (Some(p), Some(q)) = (left.get_mut(..want), right.get_mut(..want)) else { break };
                let got = HOST.read_at(x, p, at)?;
                if got != HOST.read_at(y, q, at)? || got == 0 {
                    return Ok(Some(at));
                }
                if p != q {
                    let same = p.iter().zip(q.iter()).take_while(|(l, r)| l == r).count();
                    return Ok(Some(at + same as u64));
                }
                at += got as u64;
            }
        }
        Ok(None)
    }
}

/// The ranges that are in either list, in order and disjoint.
fn union(mut a: Vec<(u64, u64)>, b: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    a.extend(b);
    a.sort_unstable();
    let mut merged: Vec<(u64, u64)> = Vec::with_capacity(a.len());
    for (start, end) in a {
        match merged.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged
}
