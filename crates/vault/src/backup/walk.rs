//! Walking a tree and saving what changed.
//!
//! Threads take tasks from one stack: a folder to be listed, some of its files to be read, pieces of a large file
//! to be stored. Everything is reached through the handle of its folder (or, when many are open, by its path below
//! the root), and links are never followed.
//!
//! Invariants: an entry is in the point with the metadata that belongs to the content that was read (both come
//! from the opened file); what cannot be read is told as a problem and is not in the point; nothing is read across a
//! mount or in what is excluded.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use backstay_model::{Problem, ProblemKind, Progress, Result};
use backstay_tree::filter::At;
use backstay_tree::fs::{FileSystem, FileTime, Kind, Stat};
use backstay_tree::{Exclusions, Listing, Owners, Why, scan, sparse};
use parking_lot::Mutex;

use super::again::{Held, Places, with_wal};
use super::file_index::FileIndex;
use super::folder::{Folder, Inner, Item, State, doubtful, entry, node};
use super::handle::Handle;
use super::leave_out::LeaveOut;
use super::past::{Block, Origin, Past, PastEntry};
use super::queue::Queue;
use super::read::{Large, is_whole};
use super::report::{Report, SparseFile, Tally};
use super::session::{Session, Worker};
use crate::blob::BlobKind;
use crate::id::Id;
use crate::node::{TreeBuilder, parse_tree};

/// Deepest nesting of folders that is entered.
const DEPTH_MAX: usize = 20_000;

pub(crate) enum Task {
    /// `above` is the folder it lies in; none when too many are open.
    Folder {
        parent: Option<(Arc<Folder>, usize)>,
        above: Option<Arc<Handle>>,
        name: OsString,
    },
    Files {
        folder: Arc<Folder>,
        handle: Arc<Handle>,
        positions: Vec<usize>,
    },
    Pieces {
        large: Arc<Large>,
        number: usize,
        data: Vec<u8>,
        length: usize,
    },
}

/// The root folder when it is finished.
#[derive(Clone, Debug)]
pub(crate) struct Finished {
    pub stat: Stat,
    pub entry: PastEntry,
}

pub(crate) struct Walk<'a> {
    /// The root folder's path, for messages.
    pub home: PathBuf,
    /// The root folder.
    pub root: OwnedFd,
    /// How many [`Handle`]s are open.
    pub open: Arc<AtomicUsize>,
    pub session: Arc<Session>,
    pub fs: Arc<dyn FileSystem>,
    pub owners: Owners,
    pub exclusions: Exclusions,
    pub leave_out: Option<LeaveOut>,
    pub device: u64,
    pub index: Option<FileIndex>,
    /// What the last backup knows of the root folder.
    pub root_past: Option<PastEntry>,
    /// Entries changed at or after this time are read even if they look as before.
    pub limit: FileTime,
    /// Files that are not read as they are.
    pub places: Places,
    /// In a second pass: what the first one told.
    pub held: Option<Held>,
    pub queue: Queue<Task>,
    pub progress: &'a dyn Progress,
    pub report: Mutex<Report>,
    pub tally: Tally,
    pub finished: Mutex<Option<Finished>>,
    /// Bytes of pieces that wait for a worker.
    pub loose: AtomicUsize,
    pub zero_piece: OnceLock<Id>,
    /// Buffers for reading large files, to be used again.
    pub windows: Mutex<Vec<Vec<u8>>>,
}

impl Walk<'_> {
    /// One thread's share of the work.
    pub fn work(&self, mut worker: Worker) {
        while let Some((task, _turn)) = self.queue.pop() {
            if !self.session.stopped()
                && let Err(e) = self.perform(task, &mut worker)
            {
                self.session.fail(e);
            }
        }
    }

    fn perform(&self, task: Task, worker: &mut Worker) -> Result<()> {
        match task {
            Task::Folder { parent, above, name } => self.folder(parent, above, name, worker),
            Task::Files { folder, handle, positions } => {
                self.files(&folder, handle.as_fd(), &positions, worker)
            }
            Task::Pieces { large, number, data, length } => {
                let result = self.pieces(&large, number, data.get(..length).unwrap_or_default(), worker);
                self.loose.fetch_sub(length, Ordering::Relaxed);
                self.windows.lock().push(data);
                result.and_then(|()| self.piece_done(&large, worker))
            }
        }
    }

    /// Tells of something about a path.
    pub fn problem(&self, path: String, kind: ProblemKind, detail: impl Into<String>) {
        let problem = Problem { path, kind, detail: detail.into() };
        if self.held.as_ref().is_none_or(|held| !held.has_told(&problem)) {
            self.progress.problem(&problem);
        }
        self.report.lock().problems.push(problem);
    }

    fn io_problem(&self, path: String, error: &io::Error) {
        let kind = match error.raw_os_error() {
            Some(e) if e == rustix::io::Errno::NOENT.raw_os_error() => ProblemKind::Vanished,
            Some(e)
                if [rustix::io::Errno::STALE, rustix::io::Errno::LOOP, rustix::io::Errno::NOTDIR]
                    .iter()
                    .any(|n| n.raw_os_error() == e) =>
            {
                ProblemKind::Changed
            }
            Some(e) if e == rustix::io::Errno::XDEV.raw_os_error() => ProblemKind::Mount,
            _ => ProblemKind::Unreadable,
        };
        self.problem(path, kind, error.to_string());
    }

    /// An entry that cannot be read is not in the point.
    pub fn lost(&self, folder: &Arc<Folder>, position: usize, stat: Stat, name: &OsStr, error: &io::Error) {
        self.gone(folder, position, name, error);
        if self.held.is_some() {
            let path = folder.path(name);
            self.report.lock().substituted.retain(|p| *p != path);
        }
        folder.set(position, stat, State::Gone);
    }

    /// Tells why an entry is lost. In a second pass, what vanished is told when it is kept.
    fn gone(&self, folder: &Folder, position: usize, name: &OsStr, error: &io::Error) {
        let known = || folder.inner.lock().items.get(position).is_some_and(|i| i.past.is_some());
        if self.held.is_none() || error.kind() != io::ErrorKind::NotFound || !known() {
            self.io_problem(folder.show(name), error);
        }
    }

    // --- folders

    fn folder(
        &self,
        parent: Option<(Arc<Folder>, usize)>,
        above: Option<Arc<Handle>>,
        name: OsString,
        worker: &mut Worker,
    ) -> Result<()> {
        let depth = parent.as_ref().map_or(0, |(p, _)| p.depth + 1);
        let opened = match &parent {
            None => self.root.try_clone().and_then(|h| Ok((self.fs.stat_handle(h.as_fd())?, h))),
            Some(_) if depth > DEPTH_MAX => Err(io::Error::other("Folders are nested too deeply")),
            Some((folder, _)) => self.open(folder, above.as_deref(), &name),
        };
        drop(above);
        let listed = opened.and_then(|(stat, handle)| {
            Ok((scan(&*self.fs, handle.as_fd(), &self.exclusions, self.device)?, stat, handle))
        });
        let (mut listing, stat, handle) = match listed {
            Ok(listed) => listed,
            Err(e) => {
                return match parent {
                    // Without the root there is no point.
                    None => Err(backstay_tree::beneath::reading("Cannot read the folder", &self.home, e)),
                    Some((folder, position)) => {
                        self.gone(&folder, position, &name, &e);
                        folder.set(position, stat_nothing(&folder.stat), State::Gone);
                        self.complete(folder, worker)
                    }
                };
            }
        };
        let at = self.leave_out.as_ref().map_or_else(At::default, |leave_out| {
            let at = leave_out.at(parent.as_ref().map(|(above, _)| (&above.at, name.as_os_str())));
            leave_out.thin(&at, &mut listing);
            at
        });
        let own_past = match &parent {
            None => self.root_past.clone(),
            Some((folder, position)) => {
                let inner = folder.inner.lock();
                let past = inner.items.get(*position).and_then(|i| i.past);
                past.and_then(|n| inner.past.entries.get(n)).cloned()
            }
        };
        let show = || parent.as_ref().map_or_else(String::new, |(p, _)| p.show(&name));
        let (xattrs, stat) = match own_past.as_ref().filter(|p| p.matches(&stat, self.limit)) {
            Some(past) => (past.xattrs.clone(), stat),
            None => self.attributes(self.fs.xattrs(handle.as_fd()), &stat, &show),
        };
        let past = own_past.and_then(|p| self.past(p.tree?, p.origin?)).unwrap_or_default();
        let inner = Mutex::new(Inner { past, ..Inner::default() });
        let folder =
            Arc::new(Folder { parent, name, depth, stat, xattrs, at, inner, pending: AtomicUsize::new(1) });
        self.entries(&folder, Handle::new(handle, &self.open), listing, worker)?;
        self.complete(folder, worker)
    }

    /// Attributes and what to write of the entry; attributes that cannot be read are told, and asked for again by the
    /// next backup.
    pub fn attributes(
        &self,
        result: io::Result<Vec<(OsString, Vec<u8>)>>,
        stat: &Stat,
        show: &dyn Fn() -> String,
    ) -> (Vec<(OsString, Vec<u8>)>, Stat) {
        match result {
            Ok(xattrs) => (xattrs, *stat),
            Err(e) => {
                self.problem(show(), ProblemKind::Metadata, format!("Extended attributes: {e}"));
                (Vec::new(), doubtful(stat))
            }
        }
    }

    /// What is known of a folder with that tree.
    fn past(&self, tree: Id, origin: Origin) -> Option<Past> {
        match origin {
            Origin::Block(block) => self.index.as_ref().and_then(|i| i.read(block, &tree)),
            Origin::Tree(id) => self.past_of_tree(&id),
        }
    }

    fn past_of_tree(&self, id: &Id) -> Option<Past> {
        let place = self.session.index().find(BlobKind::Tree, id)?;
        let json = self.session.vault.read_blob(BlobKind::Tree, id, &place).ok()?;
        let nodes = parse_tree(&json).ok()?;
        let mut entries: Vec<_> = nodes.into_iter().filter_map(PastEntry::from_node).collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Some(Past { tree: Some(*id), entries, block: None })
    }

    /// Decides for every entry of a folder whether it must be read, and queues what must.
    fn entries(
        &self,
        folder: &Arc<Folder>,
        handle: Handle,
        mut listing: Listing,
        worker: &mut Worker,
    ) -> Result<()> {
        for (name, error) in &listing.problems {
            self.io_problem(folder.show(name), error);
        }
        let handle = Arc::new(handle);
        let may_keep = handle.may_be_kept();
        let mut inner = folder.inner.lock();
        let mut tasks = Vec::new();
        let mut batch = Batch::default();
        let (mut files, mut bytes) = (0, 0);
        let mut mounts = Vec::new();
        let substitutes = self.set_aside(folder, &mut listing, &mut inner);
        let open_databases = with_wal(&listing);
        for left in listing.left_out {
            let known = inner.past.position(&left.name);
            inner.left_out.extend(known);
            let (kind, detail) = match left.why {
                Why::Mount => (ProblemKind::Mount, "Left out"),
                Why::Excluded => (ProblemKind::Excluded, "Left out"),
                Why::Hole => (ProblemKind::Volume, "A volume of its own, which the snapshot does not hold"),
            };
            self.problem(folder.show(&left.name), kind, detail);
            if left.why != Why::Excluded && left.stat.kind == Kind::Dir {
                let past = inner.past.position(&left.name);
                let known = past.and_then(|n| inner.past.entries.get(n));
                mounts.push(Item { past, ..self.empty_folder(left.name, left.stat, known, worker)? });
            }
        }
        let mut items = Vec::with_capacity(listing.entries.len());
        let mut from = 0;
        for e in listing.entries {
            let past = seek(&inner.past.entries, &mut from, &e.name);
            let known = past.and_then(|n| inner.past.entries.get(n));
            let position = items.len();
            let substitute = substitutes.get(&e.name).filter(|_| e.stat.kind == Kind::File).cloned();
            let mut item = Item { name: e.name, stat: e.stat, past, state: State::Waiting, substitute };
            if item.stat.kind == Kind::Socket {
                let detail = "A socket has no content to save";
                self.problem(folder.show(&item.name), ProblemKind::Socket, detail);
            }
            if item.stat.kind == Kind::Dir {
                let (parent, name) = (Some((Arc::clone(folder), position)), item.name.clone());
                let above = may_keep.then(|| Arc::clone(&handle));
                tasks.push(Task::Folder { parent, above, name });
            } else if item.substitute.is_none() && known.is_some_and(|k| self.is_unchanged(k, &item.stat)) {
                item.state = State::Unchanged;
                self.hold(folder, &item.name);
                if item.stat.kind == Kind::File {
                    files += 1;
                    bytes += item.stat.size;
                    if open_databases.contains(&item.name) {
                        self.report.lock().sqlite.push(folder.path(&item.name));
                    }
                }
            } else if item.stat.kind == Kind::File {
                batch.add(position, item.stat.size);
                self.count(known, item.substitute.is_some());
            } else {
                (item.state, item.stat) = self.special(folder, handle.as_fd(), &item);
            }
            items.push(item);
        }
        // Out of order: tasks know entries by position. Trees are sorted when they are written.
        items.extend(mounts);
        inner.items = items;
        drop(inner);
        self.tally.unmodified.fetch_add(files, Ordering::Relaxed);
        self.note_unchanged(files, bytes);
        let reads = batch.finish().into_iter().map(|positions| Task::Files {
            folder: Arc::clone(folder),
            handle: Arc::clone(&handle),
            positions,
        });
        tasks.extend(reads);
        folder.pending.fetch_add(tasks.len(), Ordering::AcqRel);
        self.queue.push(tasks);
        Ok(())
    }

    pub fn note_done(&self, files: u64, bytes: u64) {
        self.tally.files.fetch_add(files, Ordering::Relaxed);
        self.tally.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.progress.done(files, bytes);
    }

    /// Files that need not be read; those of a second pass were told to whoever watches by the first one.
    fn note_unchanged(&self, files: u64, bytes: u64) {
        if files > 0 && self.held.is_none() {
            self.note_done(files, bytes);
        } else {
            self.tally.files.fetch_add(files, Ordering::Relaxed);
            self.tally.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Counts a file that is read as new or changed, unless the first pass has. One with a substitute may have been
    /// deferred: it is not new because the first pass does not have it.
    fn count(&self, known: Option<&PastEntry>, substituted: bool) {
        let Tally { new, changed, .. } = &self.tally;
        match (&self.held, known) {
            (Some(held), Some(known)) if held.has_counted(known) => {}
            (Some(_), None) if substituted => _ = changed.fetch_add(1, Ordering::Relaxed),
            (_, None) => _ = new.fetch_add(1, Ordering::Relaxed),
            (_, Some(_)) => _ = changed.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn is_unchanged(&self, known: &PastEntry, stat: &Stat) -> bool {
        known.matches(stat, self.limit)
            && (known.extents.is_some() || !self.has_holes(stat))
            && known.is_stored(|kind, id| self.session.has(kind, id))
    }

    /// Whether it is worth asking where a file's holes are.
    pub fn has_holes(&self, stat: &Stat) -> bool {
        stat.kind == Kind::File && stat.size > 4096 && sparse::may_have_holes(stat)
    }

    /// Links, devices, FIFOs and sockets: metadata only.
    fn special(&self, folder: &Arc<Folder>, dir: BorrowedFd<'_>, item: &Item) -> (State, Stat) {
        let (name, stat) = (&item.name, &item.stat);
        let link =
            if stat.kind == Kind::Symlink { self.fs.read_link(dir, name) } else { Ok(OsString::new()) };
        let read = link.and_then(|target| match self.fs.xattrs_at(dir, name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(e),
            xattrs => Ok((target, xattrs)),
        });
        match read {
            Ok((link_target, xattrs)) => {
                let (xattrs, stat) = self.attributes(xattrs, stat, &|| folder.show(name));
                let entry = PastEntry { xattrs, link_target, ..entry(name.clone(), &stat) };
                (State::Ready(Box::new(entry)), stat)
            }
            Err(e) => {
                self.io_problem(folder.show(name), &e);
                (State::Gone, *stat)
            }
        }
    }

    fn empty_folder(
        &self,
        name: OsString,
        stat: Stat,
        known: Option<&PastEntry>,
        worker: &mut Worker,
    ) -> Result<Item> {
        let tree = worker.store_tree(&TreeBuilder::new(Vec::new()).finish())?;
        let block = self.index.as_ref().and_then(|index| {
            let known = known.filter(|k| k.tree == Some(tree) && index.appends());
            match known.and_then(|k| k.origin) {
                Some(Origin::Block(block)) => {
                    index.keep(block);
                    Some(block)
                }
                _ => index.write(&tree, &[]),
            }
        });
        let origin = Some(Origin::Block(block.unwrap_or_default()));
        let ready = PastEntry { tree: Some(tree), origin, ..entry(name.clone(), &stat) };
        Ok(Item { name, stat, past: None, state: State::Ready(Box::new(ready)), substitute: None })
    }

    // --- finishing

    /// One task of the folder is done; when it was the last one, the folder is finished, and so on upwards.
    pub fn complete(&self, folder: Arc<Folder>, worker: &mut Worker) -> Result<()> {
        let mut at = folder;
        while at.is_complete() {
            let finished = self.finish(&at, worker)?;
            let Some((parent, position)) = at.parent.clone() else {
                *self.finished.lock() = Some(finished);
                return Ok(());
            };
            parent.set(position, finished.stat, State::Ready(Box::new(finished.entry)));
            at = parent;
        }
        Ok(())
    }

    fn finish(&self, folder: &Arc<Folder>, worker: &mut Worker) -> Result<Finished> {
        self.session.go_on()?;
        let Inner { mut past, mut items, left_out } = std::mem::take(&mut *folder.inner.lock());
        items.retain(|i| !matches!(i.state, State::Gone | State::Waiting));
        let kept = self.kept(&items, &past, &left_out);
        for entry in kept.iter().filter_map(|n| past.entries.get(*n)) {
            self.keep(folder, entry);
        }
        let same = |i: &Item| self.same(i, &past);
        let (tree_same, block_same) =
            items.iter().map(same).fold((true, true), |(t, b), (x, y)| (t && x, b && y));
        let whole = items.len() + kept.len() == past.entries.len();
        let old_tree = past.tree.filter(|t| tree_same && whole && self.session.has(BlobKind::Tree, t));
        let counter = match (old_tree, past.tree) {
            (Some(_), _) => &self.tally.dirs_unmodified,
            (None, Some(_)) => &self.tally.dirs_changed,
            (None, None) => &self.tally.dirs_new,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let old_block =
            past.block.filter(|_| block_same && self.index.as_ref().is_some_and(FileIndex::appends));
        self.note_sparse(folder, &items, &past);
        let (tree, block) = match (old_tree, old_block) {
            (Some(tree), Some(block)) => {
                self.index.iter().for_each(|i| i.keep(block));
                (tree, Some(block))
            }
            _ => {
                let kept: Vec<_> = kept.iter().filter_map(|n| past.entries.get(*n)).cloned().collect();
                let mut entries = take_entries(items, &mut past);
                entries.extend(kept.into_iter().map(|e| (e.stat(self.device), e)));
                entries.sort_by(|a, b| a.1.name.cmp(&b.1.name));
                let tree = match old_tree {
                    Some(tree) => tree,
                    None => self.write_tree(&entries, worker)?,
                };
                let list: Vec<PastEntry> = entries.into_iter().map(|(_, e)| e).collect();
                (tree, self.index.as_ref().and_then(|i| i.write(&tree, &list)))
            }
        };
        let entry = PastEntry {
            xattrs: folder.xattrs.clone(),
            tree: Some(tree),
            origin: block.map(Origin::Block),
            ..entry(folder.name.clone(), &folder.stat)
        };
        Ok(Finished { stat: folder.stat, entry })
    }

    /// Whether an entry is as in the past: in the tree, and in the file index (where the places of blocks count).
    fn same(&self, item: &Item, past: &Past) -> (bool, bool) {
        match &item.state {
            State::Unchanged => (true, true),
            State::Gone | State::Waiting => (false, false),
            State::Ready(now) => {
                let Some(then) = item.past.and_then(|n| past.entries.get(n)) else { return (false, false) };
                let meta = then.ctime == now.ctime && then.mtime == now.mtime && then.inode == now.inode;
                let tree = meta
                    && then.kind == now.kind
                    && then.size == now.size
                    && then.tree == now.tree
                    && then.content == now.content
                    && then.xattrs == now.xattrs
                    && then.link_target == now.link_target;
                (tree, tree && then.origin == now.origin && then.extents == now.extents)
            }
        }
    }

    fn note_sparse(&self, folder: &Folder, items: &[Item], past: &Past) {
        for item in items {
            let entry = match &item.state {
                State::Ready(entry) => Some(&**entry),
                State::Unchanged => item.past.and_then(|n| past.entries.get(n)),
                State::Gone | State::Waiting => None,
            };
            let Some(entry) = entry else { continue };
            if let Some(data) = entry.extents.as_ref().filter(|e| !is_whole(Some(e), entry.size)) {
                let path = folder.show(&item.name);
                self.report.lock().sparse.push(SparseFile { path, data: data.clone() });
            }
        }
    }

    fn write_tree(&self, entries: &[(Stat, PastEntry)], worker: &mut Worker) -> Result<Id> {
        let mut builder = TreeBuilder::new(std::mem::take(&mut worker.json));
        for (stat, entry) in entries {
            builder.push(&node(stat, entry, &self.owners, self.device));
        }
        let json = builder.finish();
        let id = worker.store_tree(&json)?;
        worker.json = json;
        Ok(id)
    }
}

/// A stat for an entry that is not there.
fn stat_nothing(like: &Stat) -> Stat {
    Stat { size: 0, inode: 0, ..*like }
}

/// The position of a name in sorted entries, searching forward from `from`.
fn seek(entries: &[PastEntry], from: &mut usize, name: &OsStr) -> Option<usize> {
    while let Some(entry) = entries.get(*from) {
        match entry.name.as_os_str().cmp(name) {
            std::cmp::Ordering::Less => *from += 1,
            std::cmp::Ordering::Equal => return Some(*from),
            std::cmp::Ordering::Greater => return None,
        }
    }
    None
}

fn take_entries(items: Vec<Item>, past: &mut Past) -> Vec<(Stat, PastEntry)> {
    let mut old: Vec<Option<PastEntry>> = std::mem::take(&mut past.entries).into_iter().map(Some).collect();
    items
        .into_iter()
        .filter_map(|item| match item.state {
            State::Ready(entry) => Some((item.stat, *entry)),
            State::Unchanged => {
                item.past.and_then(|n| old.get_mut(n)).and_then(Option::take).map(|e| (item.stat, e))
            }
            State::Gone | State::Waiting => None,
        })
        .collect()
}

/// Groups files into tasks that are worth handing to another thread, and not more.
#[derive(Default)]
struct Batch {
    done: Vec<Vec<usize>>,
    open: Vec<usize>,
    bytes: u64,
}

impl Batch {
    fn add(&mut self, position: usize, size: u64) {
        self.open.push(position);
        self.bytes += size;
        if self.open.len() >= 32 || self.bytes >= 1 << 20 {
            self.done.push(std::mem::take(&mut self.open));
            self.bytes = 0;
        }
    }

    /// The tasks, last ones first, so that a stack gives them in order.
    fn finish(mut self) -> Vec<Vec<usize>> {
        if !self.open.is_empty() {
            self.done.push(self.open);
        }
        self.done.reverse();
        self.done
    }
}

impl Finished {
    /// The block of the root folder, where the file index could be written.
    pub fn block(&self) -> Option<Block> {
        match self.entry.origin {
            Some(Origin::Block(block)) => Some(block),
            _ => None,
        }
    }
}
