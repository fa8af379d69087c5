//! The living home as a source.
//!
//! Invariants: everything is reached by handles from the home's folder; links are not followed, mounts and exclusions
//! are left out and told. The details of a file are those of the opened file. A folder is opened a second time to read
//! its files, while they are read: few handles are open however deep or wide the tree is; it must be the folder
//! that was listed, else its files have vanished. Lock: one per folder, held while it is opened.
//!
//! SQLite databases are recognised by how they begin. Where somebody copies them ([`Live::copied_by`]), the bytes are
//! those of the copy, and the files beside them that the copy stands for too are left out.

use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use backstay_model::{Code, Error, Problem, ProblemKind, Result};
use backstay_tree::beneath::Root;
use backstay_tree::fs::{FileSystem, Kind, Stat};
use backstay_tree::{Entry, Exclusions, Metadata, Owners, Trail, Why, open_regular, scan, sparse};
use parking_lot::Mutex;

use crate::source::{
    Content, Details, Failure, Item, Names, Opened, Reader, Sink, Source, Steadiness, TreeItem, What,
};
use crate::worker::problem;

/// Most ranges of a sparse file that are remembered.
const EXTENTS_MAX: usize = 10_000;

/// Folders that are kept open to read their files.
const OPEN: usize = 32;

/// Decides by path below the home whether an entry (a folder: with all in it) is left out.
pub type LeaveOut<'a> = dyn Fn(&Path, Kind) -> bool + Sync + 'a;

/// Makes a consistent copy of the SQLite database at a path below the home and gives the file; none where its plain bytes are all
/// that can be had.
pub type Copier = dyn Fn(&Path) -> Result<Option<PathBuf>> + Send + Sync;

/// How every SQLite database begins.
const SQLITE: &[u8; 16] = b"SQLite format 3\0";
/// What belongs to one, by the end of the name.
const SIBLINGS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// A folder on this machine.
pub struct Live<'a> {
    home: Arc<Home>,
    exclusions: Exclusions,
    leave_out: Option<Box<LeaveOut<'a>>>,
}

struct Home {
    root: Root,
    owners: Owners,
    copier: Option<Arc<Copier>>,
    /// The folders that were opened last.
    open: Mutex<VecDeque<Arc<OwnedFd>>>,
}

impl std::fmt::Debug for Home {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Home({})", self.root.path().display())
    }
}

impl<'a> Live<'a> {
    /// The folder at `path`.
    pub fn open(fs: Arc<dyn FileSystem>, path: &Path, exclusions: Exclusions) -> Result<Self> {
        let root = Root::open(fs, path).map_err(|e| {
            let path = backstay_tree::path::escape(path.as_os_str());
            Error::new(Code::SourceNotFound, format!("Cannot open the folder {path}")).because(e)
        })?;
        Ok(Live {
            home: Arc::new(Home { root, owners: Owners::new(), copier: None, open: Mutex::default() }),
            exclusions,
            leave_out: None,
        })
    }

    /// Takes the bytes of SQLite databases from copies.
    #[must_use]
    pub fn copied_by(mut self, copier: Arc<Copier>) -> Self {
        let Home { root, owners, open, .. } = match Arc::try_unwrap(self.home) {
            Ok(home) => home,
            Err(home) => {
                self.home = home;
                return self;
            }
        };
        self.home = Arc::new(Home { root, owners, copier: Some(copier), open });
        self
    }

    /// Leaves out what a filter says.
    #[must_use]
    pub fn leave_out(mut self, filter: impl Fn(&Path, Kind) -> bool + Sync + 'a) -> Self {
        self.leave_out = Some(Box::new(filter));
        self
    }
}

impl Source for Live<'_> {
    fn walk(&self, sink: &mut dyn Sink) -> Result<()> {
        let root = self.home.root.handle().try_clone_to_owned();
        let start = |e: io::Error| {
            let path = backstay_tree::path::escape(self.home.root.path().as_os_str());
            Error::new(Code::FileUnreadable, format!("Cannot read the folder {path}")).because(e)
        };
        let trail = Trail::new(&**self.home.root.fs(), root.map_err(start)?).map_err(start)?;
        let mut walk = Walk { live: self, trail, sink, firsts: HashMap::new() };
        let mut levels = vec![walk.folder()?.unwrap_or_default().into_iter()];
        while let Some(level) = levels.last_mut() {
            match level.next() {
                Some(todo) => {
                    if let Some(below) = walk.entry(todo)? {
                        levels.push(below.into_iter());
                    }
                }
                None => {
                    levels.pop();
                    walk.trail.leave();
                }
            }
        }
        Ok(())
    }
}

/// An entry that was listed, and its folder.
struct Todo {
    entry: Entry,
    folder: Arc<Folder>,
}

struct Walk<'w> {
    live: &'w Live<'w>,
    trail: Trail<'w>,
    sink: &'w mut dyn Sink,
    /// First paths of files with several names.
    firsts: HashMap<(u64, u64), PathBuf>,
}

impl Walk<'_> {
    fn tell(&mut self, path: &Path, e: &io::Error) {
        let kind = match e.kind() {
            io::ErrorKind::NotFound => ProblemKind::Vanished,
            _ => ProblemKind::Unreadable,
        };
        self.sink.problem(problem(path, kind, e.to_string()));
    }

    /// Gives the folder where the trail stands, and lists it; none when that is not possible, which is told.
    fn folder(&mut self) -> Result<Option<Vec<Todo>>> {
        let path = self.trail.path();
        match self.list() {
            Ok((details, stat, listing)) => {
                let what = What::Folder(details);
                self.sink.item(Item::Tree(TreeItem { path: path.clone(), what, names: Names::One }))?;
                for left in listing.left_out {
                    let kind = match left.why {
                        Why::Mount => (ProblemKind::Mount, "Something else is mounted there"),
                        Why::Excluded => (ProblemKind::Excluded, "It belongs to Backstay itself"),
                        Why::Hole => (ProblemKind::Volume, "A volume of its own lies there"),
                    };
                    self.sink.problem(problem(&path.join(left.name), kind.0, kind.1));
                }
                for (name, e) in listing.problems {
                    self.tell(&path.join(name), &e);
                }
                let (home, device) = (Arc::clone(&self.live.home), self.trail.device());
                let folder = Arc::new(Folder { home, path, id: stat.id(), device, open: Mutex::default() });
                let entries = self.without_siblings(listing.entries)?;
                let todo = |entry| Todo { entry, folder: Arc::clone(&folder) };
                Ok(Some(entries.into_iter().map(todo).collect()))
            }
            Err(e) if path.as_os_str().is_empty() => {
                Err(Error::new(Code::FileUnreadable, "Cannot read the folder").because(e))
            }
            Err(e) => {
                self.tell(&path, &e);
                Ok(None)
            }
        }
    }

    fn list(&mut self) -> io::Result<(Details, Stat, backstay_tree::Listing)> {
        let live = self.live;
        let fs = &**live.home.root.fs();
        let device = self.trail.device();
        let handle = self.trail.handle()?;
        let stat = fs.stat_handle(handle)?;
        let metadata = Metadata::of_handle(fs, handle, stat, &live.home.owners)?;
        let listing = scan(fs, handle, &live.exclusions, device)?;
        Ok(((&metadata).into(), stat, listing))
    }

    /// Leaves out what the copy of a database stands for too. The database counts as large as both, since the copy may be.
    fn without_siblings(&mut self, mut entries: Vec<Entry>) -> Result<Vec<Entry>> {
        if self.live.home.copier.is_none() {
            return Ok(entries);
        }
        let base = |name: &OsStr| {
            let bytes = name.as_bytes();
            let base = SIBLINGS.iter().find_map(|end| bytes.strip_suffix(end.as_bytes()))?;
            Some(OsStr::from_bytes(base).to_owned())
        };
        let found: Vec<(OsString, OsString, u64)> = entries
            .iter()
            .filter(|e| e.stat.kind == Kind::File)
            .filter_map(|e| Some((e.name.clone(), base(&e.name)?, e.stat.size)))
            .collect();
        for (name, base, size) in found {
            if !entries.iter().any(|e| e.name == base && e.stat.kind == Kind::File) || !self.is_sqlite(&base)
            {
                continue;
            }
            entries.retain(|e| e.name != name);
            if let Some(database) = entries.iter_mut().find(|e| e.name == base) {
                database.stat.size = database.stat.size.saturating_add(size);
            }
        }
        Ok(entries)
    }

    fn is_sqlite(&mut self, name: &OsStr) -> bool {
        let fs = &**self.live.home.root.fs();
        let device = self.trail.device();
        let Ok(handle) = self.trail.handle() else { return false };
        open_regular(fs, handle, name, device).is_ok_and(|(file, _)| begins_like_sqlite(fs, &file))
    }

    /// Gives one entry; of a folder, what is in it.
    fn entry(&mut self, todo: Todo) -> Result<Option<Vec<Todo>>> {
        let Todo { entry: Entry { name, stat }, folder } = todo;
        let path = folder.path.join(&name);
        self.sink.check()?;
        if self.live.leave_out.as_ref().is_some_and(|filter| filter(&path, stat.kind)) {
            return Ok(None);
        }
        if stat.kind == Kind::Dir {
            return match self.trail.enter(&name) {
                Ok(_) => {
                    let below = self.folder()?;
                    if below.is_none() {
                        self.trail.leave();
                    }
                    Ok(below)
                }
                Err(e) => {
                    self.tell(&path, &e);
                    Ok(None)
                }
            };
        }
        let names = self.names(&path, &stat);
        let what = match stat.kind {
            Kind::File => {
                let content = Box::new(LiveFile { folder, name, id: stat.id() });
                What::File { size: stat.size, content }
            }
            _ => match self.special(&name, stat) {
                Ok(what) => what,
                Err(e) => {
                    self.tell(&path, &e);
                    return Ok(None);
                }
            },
        };
        self.sink.item(Item::Tree(TreeItem { path, what, names }))?;
        Ok(None)
    }

    fn special(&mut self, name: &OsStr, stat: Stat) -> io::Result<What> {
        let live = self.live;
        let fs = &**live.home.root.fs();
        let dir = self.trail.handle()?;
        let metadata = Metadata::of_entry(fs, dir, name, stat, &live.home.owners)?;
        let details = (&metadata).into();
        Ok(match metadata.link_target {
            Some(target) => What::Symlink(target, details),
            None => What::Special(stat.kind, stat.rdev, details),
        })
    }

    fn names(&mut self, path: &Path, stat: &Stat) -> Names {
        if stat.links < 2 || stat.kind == Kind::Socket {
            return Names::One;
        }
        match self.firsts.entry(stat.id()) {
            std::collections::hash_map::Entry::Occupied(first) => Names::Further(first.get().clone()),
            std::collections::hash_map::Entry::Vacant(new) => {
                new.insert(path.to_owned());
                Names::First
            }
        }
    }
}

/// A folder whose files are read.
#[derive(Debug)]
struct Folder {
    home: Arc<Home>,
    path: PathBuf,
    id: (u64, u64),
    device: u64,
    /// Gone when it is not among those opened last and none of its files is being read.
    open: Mutex<Weak<OwnedFd>>,
}

impl Folder {
    fn handle(&self) -> io::Result<Arc<OwnedFd>> {
        let mut open = self.open.lock();
        if let Some(handle) = open.upgrade() {
            return Ok(handle);
        }
        let handle = self.home.root.open_dir(&self.path).map_err(io::Error::other)?;
        if self.home.root.fs().stat_handle(handle.as_fd())?.id() != self.id {
            return Err(io::Error::new(io::ErrorKind::NotFound, "its folder was replaced"));
        }
        let handle = Arc::new(handle);
        *open = Arc::downgrade(&handle);
        let mut kept = self.home.open.lock();
        if kept.len() >= OPEN {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(&handle));
        Ok(handle)
    }
}

#[derive(Debug)]
struct LiveFile {
    folder: Arc<Folder>,
    name: OsString,
    /// As it was listed.
    id: (u64, u64),
}

impl Content for LiveFile {
    fn open(&self) -> Result<Opened, Failure> {
        let folder = self.folder.handle().map_err(of_file)?;
        let home = &self.folder.home;
        let fs = &**home.root.fs();
        let (file, stat) =
            open_regular(fs, folder.as_fd(), &self.name, self.folder.device).map_err(of_file)?;
        let metadata = Metadata::of_handle(fs, file.as_fd(), stat, &home.owners).map_err(of_file)?;
        let same = stat.id() == self.id;
        let copy = match &home.copier {
            Some(copier) if begins_like_sqlite(fs, &file) => self.copy(&**copier)?,
            _ => None,
        };
        let (file, stat) = copy.unwrap_or((file, stat));
        let sparse = if sparse::may_have_holes(&stat) {
            let found = sparse::extents(fs, file.as_fd(), stat.size, EXTENTS_MAX).map_err(of_file)?;
            Some(found).filter(|found| found.as_slice() != [(0, stat.size)])
        } else {
            None
        };
        let reader = LiveReader { home: Arc::clone(home), file, stat, at: 0, sparse: sparse.clone() };
        Ok(Opened {
            details: Some((&metadata).into()),
            size: Some(stat.size),
            sparse,
            same,
            reader: Box::new(reader),
        })
    }
}

impl LiveFile {
    /// The copy of a database, opened.
    fn copy(&self, copier: &Copier) -> Result<Option<(OwnedFd, Stat)>, Failure> {
        let told = |e: Error| Failure::Item(ProblemKind::Unreadable, format!("no consistent copy: {e}"));
        let Some(copy) = copier(&self.folder.path.join(&self.name)).map_err(told)? else { return Ok(None) };
        let fs = &**self.folder.home.root.fs();
        let (Some(folder), Some(name)) = (copy.parent(), copy.file_name()) else { return Ok(None) };
        let folder = fs.open_root(folder).map_err(of_file)?;
        let device = fs.stat_handle(folder.as_fd()).map_err(of_file)?.device;
        open_regular(fs, folder.as_fd(), name, device).map(Some).map_err(of_file)
    }
}

fn begins_like_sqlite(fs: &dyn FileSystem, file: &OwnedFd) -> bool {
    let mut first = [0; 16];
    fs.read_at(file.as_fd(), &mut first, 0).is_ok_and(|read| read == first.len() && first == *SQLITE)
}

fn of_file(e: io::Error) -> Failure {
    let kind = match e.kind() {
        io::ErrorKind::NotFound => ProblemKind::Vanished,
        _ => ProblemKind::Unreadable,
    };
    Failure::Item(kind, e.to_string())
}

#[derive(Debug)]
struct LiveReader {
    home: Arc<Home>,
    file: OwnedFd,
    stat: Stat,
    at: u64,
    sparse: Option<Vec<(u64, u64)>>,
}

impl LiveReader {
    /// Where the hole ends in which the next byte lies, if it lies in one.
    fn hole_end(&self) -> Option<u64> {
        let extents = self.sparse.as_ref()?;
        let next = extents.partition_point(|(_, end)| *end <= self.at);
        match extents.get(next) {
            Some((start, _)) if *start > self.at => Some(*start),
            Some(_) => None,
            None => Some(self.stat.size),
        }
    }
}

impl Reader for LiveReader {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, Failure> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let room = rest.len() as u64;
            let hole = self.hole_end().map(|end| end.saturating_sub(self.at).min(room));
            let got = match hole {
                Some(0) => 0,
                Some(zeros) => {
                    let zeros = usize::try_from(zeros).unwrap_or(rest.len());
                    rest.get_mut(..zeros).unwrap_or_default().fill(0);
                    zeros
                }
                None => {
                    let left = self.sparse.as_ref().and_then(|list| {
                        let next = list.partition_point(|(_, end)| *end <= self.at);
                        list.get(next).map(|(_, end)| end.saturating_sub(self.at))
                    });
                    let want = usize::try_from(left.unwrap_or(room).min(room)).unwrap_or(rest.len());
                    let part = rest.get_mut(..want).unwrap_or_default();
                    let got =
                        self.home.root.fs().read_at(self.file.as_fd(), part, self.at).map_err(of_file)?;
                    if got < want {
                        self.at += got as u64;
                        return Ok(done + got);
                    }
                    got
                }
            };
            if got == 0 {
                break;
            }
            self.at += got as u64;
            done += got;
        }
        Ok(done)
    }

    fn steadiness(&mut self, read: u64) -> Steadiness {
        let Ok(after) = self.home.root.fs().stat_handle(self.file.as_fd()) else {
            return Steadiness::Changed;
        };
        let before = &self.stat;
        if read < before.size {
            Steadiness::Changed
        } else if (before.mtime, before.ctime, before.size) == (after.mtime, after.ctime, after.size) {
            Steadiness::Steady
        } else if after.size > before.size {
            Steadiness::Grew
        } else {
            Steadiness::Changed
        }
    }
}

/// Problems that say that a result is only part of what was asked for.
#[must_use]
pub fn is_partial(problems: &[Problem]) -> bool {
    problems.iter().any(|problem| problem.kind.is_failure())
}
