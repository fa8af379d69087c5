//! Backing up: from a file tree, streams and small documents to one snapshot.
//!
//! Invariants:
//! * Nothing is visible before [`SnapshotWriter::commit`]: the snapshot object is written last of all, after every
//!   pack and index object it needs is durable, and after the lock and the packs were looked at once more.
//! * A crash or error at any point leaves at most packs and index objects that nothing refers to.
//! * What could not be read is in the result; the caller decides what to call the point.
//!
//! Crash story of the local file index: see [`file_index`].

mod again;
mod file_index;
mod folder;
mod handle;
mod leave_out;
mod listing;
mod past;
mod queue;
mod read;
mod report;
mod session;
mod stream;
mod survey;
mod walk;

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use backstay_model::{Cancel, Code, Counts, Error, Phase, Problem, Progress, Result};
use backstay_tree::filter::Filter;
use backstay_tree::fs::{FileSystem, FileTime, Kind};
use backstay_tree::{Exclusions, Owners};
use jiff::Timestamp;
use parking_lot::Mutex;

pub use again::Substitute;
pub use leave_out::Filtered;
pub use listing::{Listed, Listing, Receive, Take};
pub use report::SparseFile;
pub use stream::{SavedStream, StreamSaver};
pub use survey::{Survey, survey};

use crate::id::Id;
use crate::lock::Lock;
use crate::node::{Node, TreeBuilder};
use crate::snapshot::{Snapshot, Summary};
use crate::vault::{Folder, Vault};
use again::{FirstPass, Held, Places};
use file_index::FileIndex;
use folder::node;
use leave_out::LeaveOut;
use past::{Origin, PastEntry};
use queue::Queue;
use report::{Report, Tally};
use session::{Session, Uploads, Worker};
use walk::{Task, Walk};

/// zstd's level unless another is asked for.
pub const DEFAULT_LEVEL: i32 = 3;

/// Name of the folder that groups entries saved as `group/name`.
type Groups = BTreeMap<String, Vec<Node>>;

/// What to save of a file tree.
#[derive(Debug, Default)]
pub struct TreeOptions {
    /// What is not part of it although it lies in it.
    pub exclusions: Exclusions,
    /// Rules that name what else is left out.
    pub filter: Option<Filter>,
    /// The snapshot to compare with: what is as it was there is not read.
    pub parent: Option<Id>,
    /// The local file that makes comparing fast; made when missing, never trusted without check.
    pub file_index: Option<PathBuf>,
    /// Where the tree stands still, and since when: it is read there, and is that of the home all the same.
    pub still: Option<Still>,
}

/// A tree as it was at a moment: in a snapshot of its volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Still {
    /// Where it is.
    pub home: PathBuf,
    /// A time before that moment. What changed later is not in it, so the next backup must take it for changed.
    pub since: Timestamp,
}

/// What was saved of a file tree.
#[derive(Debug)]
pub struct TreeSummary {
    /// Its tree in the vault.
    pub tree: Id,
    /// Files and bytes of content in it.
    pub counts: Counts,
    /// What a person should know: what could not be read, what was left out.
    pub problems: Vec<Problem>,
    /// What the filter left out, where there was one.
    pub filtered: Option<Filtered>,
    /// Where the holes of its sparse files are; a restore needs it to make them again.
    pub sparse: Vec<SparseFile>,
    /// Files that are SQLite databases: those that were read and begin like one, and those that were not read and have a
    /// `-wal` beside them. Others that are as they were before are not looked into.
    pub sqlite: Vec<PathBuf>,
    /// Of a second pass: what it did not find or could not read any more, and what is in the tree as the first pass read
    /// it. A folder stands for all below it.
    pub vanished: Vec<PathBuf>,
    /// Of a second pass: files whose content was taken from elsewhere.
    pub substituted: HashSet<PathBuf>,
    /// Of a second pass: paths with a substitute where no regular file could be found or the substitute not be read. What
    /// the first pass read there, if anything, is in the tree.
    pub not_substituted: Vec<PathBuf>,
    /// Of a second pass: files that were left out because a substitute stands for them too.
    pub siblings: Vec<PathBuf>,
}

/// What a snapshot says beside its content.
#[derive(Clone, Debug)]
pub struct SnapshotDetails {
    /// When the reading began.
    pub time: Timestamp,
    /// The paths it stands for.
    pub paths: Vec<String>,
    /// Labels.
    pub tags: Vec<String>,
    /// The snapshot it was compared with.
    pub parent: Option<Id>,
}

/// What a finished backup was.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The snapshot's id.
    pub id: Id,
    /// The snapshot.
    pub snapshot: Snapshot,
}

struct PendingIndex {
    name: String,
    index: FileIndex,
    tree: Id,
    block: past::Block,
    started: FileTime,
}

/// What a pass over a tree begins with.
struct PassSetup<'p> {
    name: &'p str,
    home: &'p Path,
    still: Option<Still>,
    exclusions: Exclusions,
    filter: Option<Filter>,
    index: Option<FileIndex>,
    root_past: Option<PastEntry>,
    limit: FileTime,
    started: FileTime,
    places: Places,
    /// What the pass before told.
    held: Option<Held>,
    first_tally: Option<Tally>,
    /// Another pass may come.
    twice: bool,
}

/// A backup under way. Dropping it leaves nothing visible.
pub struct SnapshotWriter {
    session: Arc<Session>,
    uploads: Option<Uploads>,
    started: Timestamp,
    nodes: Vec<Node>,
    groups: Groups,
    indexes: Vec<PendingIndex>,
    /// What second passes need.
    first: Vec<FirstPass>,
    tally: Tally,
}

impl Vault {
    /// Begins a backup under a lock that the caller holds until it is committed.
    pub fn begin(&self, _lock: &Lock, level: i32, cancel: &Cancel) -> Result<SnapshotWriter> {
        let (session, uploads) = Session::begin(self, level, cancel)?;
        Ok(SnapshotWriter::new(session, Some(uploads)))
    }
}

fn ended() -> Error {
    Error::new(Code::Internal, "The backup has ended")
}

/// When what is read was like that at the earliest.
fn started(still: Option<&Still>) -> FileTime {
    file_time(still.map_or_else(Timestamp::now, |still| still.since))
}

fn file_time(time: Timestamp) -> FileTime {
    let nanos = time.as_nanosecond();
    FileTime {
        secs: i64::try_from(nanos.div_euclid(1_000_000_000)).unwrap_or(0),
        nanos: u32::try_from(nanos.rem_euclid(1_000_000_000)).unwrap_or(0),
    }
}

impl SnapshotWriter {
    fn new(session: Arc<Session>, uploads: Option<Uploads>) -> Self {
        SnapshotWriter {
            session,
            uploads,
            started: Timestamp::now(),
            nodes: Vec::new(),
            groups: Groups::new(),
            indexes: Vec::new(),
            first: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// When it began.
    #[must_use]
    pub fn started(&self) -> Timestamp {
        self.started
    }

    fn worker(&self) -> Result<Worker> {
        self.worker_of(self.session.level())
    }

    fn worker_of(&self, level: i32) -> Result<Worker> {
        if self.uploads.is_none() && !self.session.is_dry() {
            return Err(ended());
        }
        Worker::new(&self.session, self.uploads.as_ref(), level)
    }

    /// Saves a folder and all in it as `name` in the snapshot's root.
    pub fn save_tree(
        &mut self,
        name: &str,
        fs: &Arc<dyn FileSystem>,
        home: &Path,
        options: TreeOptions,
        progress: &dyn Progress,
    ) -> Result<TreeSummary> {
        self.save_tree_with(name, fs, home, options, None, progress)
    }

    /// `deferred`: what the first of two passes leaves to the second one.
    fn save_tree_with(
        &mut self,
        name: &str,
        fs: &Arc<dyn FileSystem>,
        home: &Path,
        mut options: TreeOptions,
        deferred: Option<Places>,
        progress: &dyn Progress,
    ) -> Result<TreeSummary> {
        progress.phase(Phase::Reading);
        options.exclusions.add_workplaces();
        let twice = deferred.is_some();
        let started = started(options.still.as_ref());
        let parent = options.parent.and_then(|id| self.past_of_snapshot(&id, name));
        let expected = parent.as_ref().and_then(|(node, _)| node.subtree);
        let open_index = if self.session.is_dry() { FileIndex::peek } else { FileIndex::open };
        let identity = self.identity(name, home);
        let mut index = options.file_index.as_deref().and_then(|p| open_index(p, identity, expected));
        if twice {
            index = index.map(FileIndex::twice).or_else(|| FileIndex::scratch(identity));
        }
        let (root_past, limit) = past_of_root(index.as_ref(), parent);
        let setup = PassSetup {
            name,
            home,
            still: options.still,
            exclusions: options.exclusions,
            filter: options.filter.filter(|f| !f.is_empty()),
            index,
            root_past,
            limit,
            started,
            places: deferred.unwrap_or_default(),
            held: None,
            first_tally: None,
            twice,
        };
        self.pass(setup, fs, progress)
    }

    /// One pass over a tree.
    fn pass(
        &mut self,
        mut setup: PassSetup<'_>,
        fs: &Arc<dyn FileSystem>,
        progress: &dyn Progress,
    ) -> Result<TreeSummary> {
        let unreadable = |e| match std::io::Error::kind(&e) {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
                let message = format!("There is no folder {}", setup.home.display());
                Error::new(Code::SourceNotFound, message).because(e)
            }
            _ => backstay_tree::beneath::reading("Cannot read the folder", setup.home, e),
        };
        let place = setup.still.as_ref().map_or(setup.home, |still| &still.home);
        let root = fs.open_root(place).map_err(unreadable)?;
        let device = fs.stat_handle(root.as_fd()).map_err(unreadable)?.device;
        let first = Task::Folder { parent: None, above: None, name: OsString::new() };
        let walk = Walk {
            home: setup.home.to_owned(),
            root,
            open: Arc::new(AtomicUsize::new(0)),
            session: Arc::clone(&self.session),
            fs: Arc::clone(fs),
            owners: Owners::new(),
            exclusions: setup.exclusions.clone(),
            leave_out: setup.filter.clone().map(LeaveOut::new),
            device,
            index: setup.index.take(),
            root_past: setup.root_past.take(),
            limit: setup.limit,
            places: std::mem::take(&mut setup.places),
            held: setup.held.take(),
            queue: Queue::new(first),
            progress,
            report: Mutex::new(Report::default()),
            tally: Tally::default(),
            finished: Mutex::new(None),
            loose: AtomicUsize::new(0),
            zero_piece: OnceLock::new(),
            windows: Mutex::new(Vec::new()),
        };
        let workers: Vec<Worker> = (0..crate::workers()).map(|_| self.worker()).collect::<Result<_>>()?;
        let mut workers = workers.into_iter();
        let own = workers.next().ok_or_else(ended)?;
        std::thread::scope(|scope| {
            for worker in workers {
                scope.spawn(|| walk.work(worker));
            }
            walk.work(own);
        });
        self.session.check()?;
        self.conclude(setup, walk)
    }

    fn conclude(&mut self, setup: PassSetup<'_>, walk: Walk<'_>) -> Result<TreeSummary> {
        let Walk { index, owners, device, report, mut tally, finished, leave_out, .. } = walk;
        let done = finished
            .into_inner()
            .ok_or_else(|| Error::new(Code::Internal, "The walk did not come to its end"))?;
        let tree = done.entry.tree.ok_or_else(ended)?;
        let block = done.block();
        let entry = PastEntry { name: setup.name.into(), ..done.entry };
        self.nodes.push(node(&done.stat, &entry, &owners, device));
        if let Some(first) = &setup.first_tally {
            tally.follow(first);
        }
        let counts = Counts {
            files: tally.files.load(Ordering::Relaxed),
            bytes: tally.bytes.load(Ordering::Relaxed),
            ..Counts::default()
        };
        self.tally.add(&tally);
        let filtered = leave_out.map(|l| l.result());
        let summary = report.into_inner().summary(tree, counts, filtered);
        if setup.twice {
            self.first.push(FirstPass {
                name: setup.name.to_owned(),
                home: setup.home.to_owned(),
                still: setup.still,
                exclusions: setup.exclusions,
                filter: setup.filter,
                unmatched: summary.filtered.as_ref().map(|f| f.unmatched.clone()).unwrap_or_default(),
                held: Held::new(&summary, setup.limit),
                tally,
            });
        }
        if let (Some(index), Some(block)) = (index, block) {
            let name = setup.name.to_owned();
            self.indexes.push(PendingIndex { name, index, tree, block, started: setup.started });
        }
        Ok(summary)
    }

    /// What tells one file index from another: the vault, the name and the place.
    fn identity(&self, name: &str, home: &Path) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.session.vault.config().id.0);
        for part in [name.as_bytes(), home.as_os_str().as_encoded_bytes()] {
            hasher.update(&u64::try_from(part.len()).unwrap_or(0).to_le_bytes()).update(part);
        }
        *hasher.finalize().as_bytes()
    }

    /// The node of that name in a snapshot's root, and when the snapshot was begun. A parent that cannot be read
    /// is no parent.
    fn past_of_snapshot(&self, id: &Id, name: &str) -> Option<(Node, Timestamp)> {
        let vault = &self.session.vault;
        let snapshot = vault.snapshot(id).ok()?;
        let place = self.session.index().find(crate::blob::BlobKind::Tree, &snapshot.tree)?;
        let json = vault.read_blob(crate::blob::BlobKind::Tree, &snapshot.tree, &place).ok()?;
        let nodes = crate::node::parse_tree(&json).ok()?;
        let node = nodes.into_iter().find(|n| n.name == name)?;
        Some((node, snapshot.time))
    }

    /// A small document of an earlier snapshot, by the index that this backup has loaded anyway; none where it cannot be
    /// read.
    #[must_use]
    pub fn document_of(&self, id: &Id, name: &str) -> Option<Vec<u8>> {
        let (node, _) = self.past_of_snapshot(id, name)?;
        let mut bytes = Vec::new();
        for piece in &node.content {
            let place = self.session.index().find(crate::blob::BlobKind::Data, piece)?;
            bytes.extend(self.session.vault.read_blob(crate::blob::BlobKind::Data, piece, &place).ok()?);
        }
        Some(bytes)
    }

    /// Saves a small document as `name` (or `group/name`) in the snapshot.
    pub fn save_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut reader = bytes;
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.save_stream(name, &mut reader, length)?.map(|_size| ())
    }

    /// Puts what was stored into the snapshot as `name` or `group/name`, in the place of a document of that name.
    fn add_document(&mut self, name: &str, content: Vec<Id>, size: u64) {
        self.drop_document(name);
        let time = file_time(self.started);
        let (group, name) = name.rsplit_once('/').map_or((None, name), |(g, n)| (Some(g), n));
        let node = Node { name: name.into(), kind: Some(Kind::File), content, size, ..document(time) };
        match group {
            Some(group) => self.groups.entry(group.to_owned()).or_default().push(node),
            None => self.nodes.push(node),
        }
    }

    /// Takes out a document of that name that was saved before.
    fn drop_document(&mut self, name: &str) {
        let (group, name) = name.rsplit_once('/').map_or((None, name), |(g, n)| (Some(g), n));
        let nodes = match group {
            Some(group) => self.groups.get_mut(group),
            None => Some(&mut self.nodes),
        };
        if let Some(nodes) = nodes {
            nodes.retain(|node| node.name != name || node.kind != Some(Kind::File));
        }
    }

    /// Writes the snapshot: the one step that makes the point exist.
    pub fn commit(
        mut self,
        lock: &Lock,
        details: SnapshotDetails,
        progress: &dyn Progress,
    ) -> Result<Committed> {
        progress.phase(Phase::Committing);
        let tree = self.write_root()?;
        let uploads = self.uploads.take().ok_or_else(ended)?;
        self.session.finish(uploads)?;
        let mut snapshot = Snapshot::new(details.time, tree);
        snapshot.paths = details.paths;
        snapshot.tags = details.tags;
        snapshot.parent = details.parent;
        snapshot.hostname = crate::process::Process::current().hostname;
        snapshot.username = crate::vault::username();
        snapshot.uid = rustix::process::getuid().as_raw();
        snapshot.gid = rustix::process::getgid().as_raw();
        snapshot.summary = Some(self.summary());
        self.session.cancel.check()?;
        lock.check()?;
        self.session.check_packs()?;
        let id = self.session.vault.put_json(Folder::Snapshots, &snapshot)?;
        for pending in self.indexes {
            // The index is a cache: without it the next backup is slower, nothing else.
            let _slower = pending.index.commit(pending.tree, pending.block, pending.started);
        }
        Ok(Committed { id, snapshot })
    }

    fn write_root(&mut self) -> Result<Id> {
        let mut worker = self.worker()?;
        let time = file_time(self.started);
        for (name, nodes) in std::mem::take(&mut self.groups) {
            let subtree = Some(worker.store_tree(&tree_of(nodes))?);
            let folder =
                Node { name: name.into(), kind: Some(Kind::Dir), mode: 0o700, subtree, ..document(time) };
            self.nodes.push(folder);
        }
        let tree = worker.store_tree(&tree_of(std::mem::take(&mut self.nodes)))?;
        Ok(tree)
    }

    fn summary(&self) -> Summary {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let (added, tally) = (&self.session.added, &self.tally);
        Summary {
            backup_start: Some(self.started),
            backup_end: Some(Timestamp::now()),
            files_new: get(&tally.new),
            files_changed: get(&tally.changed),
            files_unmodified: get(&tally.unmodified),
            dirs_new: get(&tally.dirs_new),
            dirs_changed: get(&tally.dirs_changed),
            dirs_unmodified: get(&tally.dirs_unmodified),
            data_blobs: get(&added.data_blobs),
            tree_blobs: get(&added.tree_blobs),
            data_added: get(&added.plain_bytes),
            data_added_packed: get(&added.stored_bytes),
            total_files_processed: get(&tally.files),
            total_bytes_processed: get(&tally.bytes),
            other: serde_json::Map::new(),
        }
    }
}

fn document(time: FileTime) -> Node {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    Node { mode: 0o600, mtime: time, ctime: time, uid, gid, links: 1, ..Node::default() }
}

fn tree_of(mut nodes: Vec<Node>) -> Vec<u8> {
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let mut builder = TreeBuilder::new(Vec::new());
    nodes.iter().for_each(|n| builder.push(n));
    builder.finish()
}

/// What is known of the root folder, and from what time on a change could hide behind an equal time stamp.
fn past_of_root(
    index: Option<&FileIndex>,
    parent: Option<(Node, Timestamp)>,
) -> (Option<PastEntry>, FileTime) {
    let Some((node, time)) = parent else { return (None, FileTime::default()) };
    let mut started = file_time(time);
    let mut past = PastEntry::from_node(node);
    if let (Some(past), Some(slot)) = (&mut past, index.and_then(FileIndex::slot)) {
        past.origin = Some(Origin::Block(slot.root));
        started = slot.started;
    }
    (past, limit_of(started))
}

/// From what time on a change may have been missed by a pass that began then. Time stamps of files are coarser than the
/// clock: what changed in the last second is read again.
fn limit_of(started: FileTime) -> FileTime {
    FileTime { secs: started.secs - 1, ..started }
}
