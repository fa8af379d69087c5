//! Saving a tree that is given as a list: what an archive holds, say.
//!
//! Invariants: the tree is what a walk of the same files would have made. Content is cut at the same places (so what the
//! vault has already is not stored again), and the names of one file share an inode number, by which a restore joins
//! them. There is no time of change and no inode that a file on a disk could have too, so the next backup reads every
//! file itself. Nothing is visible before the snapshot; what a listing gives is not trusted beyond its own entries: names
//! are checked by whoever restores.
//!
//! Memory: a record for each entry, the ids of its pieces, and two of the largest pieces a thread.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use backstay_model::{Code, Counts, Error, Phase, Progress, Result};
use backstay_tree::fs::{FileTime, Kind};
use backstay_tree::path::escape;
use parking_lot::Mutex;

use super::read::without_small_holes;
use super::report::Report;
use super::session::{Session, Worker};
use super::{SnapshotWriter, SparseFile, TreeSummary, ended};
use crate::chunker::{Chunker, Sizes};
use crate::id::Id;
use crate::node::{Node, TreeBuilder};

/// Content that a thread reads at a time, in bytes and in files.
const BATCH_BYTES: u64 = 8 << 20;
const BATCH_FILES: usize = 512;

/// Takes content: the number of the file and the next of its bytes.
pub type Receive<'r> = dyn FnMut(usize, &[u8]) -> Result<()> + 'r;

/// Takes the next bytes of one document.
pub type Take<'t> = dyn FnMut(&[u8]) -> Result<()> + 't;

/// A tree as a list.
pub trait Listing: Sync {
    /// How many entries it has. The first is the root; each other one comes behind its folder.
    fn count(&self) -> usize;

    /// The path of an entry below the root; empty for the root itself.
    fn path(&self, number: usize) -> &Path;

    /// What an entry is.
    fn entry(&self, number: usize) -> Listed<'_>;

    /// Kind and metadata of an entry: all of its node but name, content, size and the numbers that join names.
    fn node(&self, number: usize) -> Node;

    /// Gives the content of files, one behind the other in any order. What is given counts only when this returned well.
    fn read(&self, files: &[usize], receive: &mut Receive<'_>) -> Result<()>;
}

/// What an entry of a listing is.
#[derive(Clone, Copy, Debug)]
pub enum Listed<'l> {
    /// A folder.
    Folder,
    /// A file that is to be read.
    File {
        /// Bytes of content.
        size: u64,
        /// Where its content lies: files are read in this order.
        place: u64,
        /// Where it has data, if it has holes.
        sparse: Option<&'l [(u64, u64)]>,
    },
    /// A further name of an entry that came before.
    Further(&'l Path),
    /// A link, a FIFO, a device.
    Special,
}

/// What is known of a file after it was read.
#[derive(Clone, Default)]
struct Content {
    ids: Vec<Id>,
    size: u64,
}

/// The names of a file that has several.
struct Group {
    number: usize,
    names: u64,
}

impl SnapshotWriter {
    /// Saves a listing as `name` in the snapshot's root. `InvalidValue` for one that is no tree; an error of the listing
    /// ends the backup.
    pub fn save_listing(
        &mut self,
        name: &str,
        listing: &dyn Listing,
        progress: &dyn Progress,
    ) -> Result<TreeSummary> {
        progress.phase(Phase::Reading);
        let mut files: Vec<(u64, usize, u64)> = Vec::new();
        for number in 0..listing.count() {
            if let Listed::File { size, place, .. } = listing.entry(number) {
                files.push((place, number, size));
            }
        }
        files.sort_unstable();
        let batches = batches(&files);
        progress.expect(files.len() as u64, files.iter().map(|(.., size)| size).sum());
        progress.done(files.iter().filter(|(.., size)| *size == 0).count() as u64, 0);
        let session = self.session.clone();
        let contents: Mutex<HashMap<usize, Content>> = Mutex::new(HashMap::with_capacity(files.len()));
        let reading = Reading {
            listing,
            batches: &batches,
            next: AtomicUsize::new(0),
            session: &session,
            contents: &contents,
            zeros: OnceLock::new(),
            progress,
        };
        let threads = crate::workers().min(batches.len()).max(1);
        let workers: Vec<Worker> = (0..threads).map(|_| self.worker()).collect::<Result<_>>()?;
        std::thread::scope(|scope| {
            for worker in workers {
                scope.spawn(|| reading.work(worker));
            }
        });
        self.session.check()?;
        let contents = contents.into_inner();
        let counts = Counts {
            files: files.len() as u64,
            bytes: contents.values().map(|c| c.size).sum(),
            ..Counts::default()
        };
        let (mut root, counts) = self.trees(listing, &contents, counts)?;
        let tree = root.subtree.ok_or_else(ended)?;
        root.name = name.into();
        self.nodes.push(root);
        let report = Report { sparse: holes(listing), ..Report::default() };
        Ok(report.summary(tree, counts, None))
    }

    /// Saves what `give` hands over as `name` (or `group/name`), as [`SnapshotWriter::save_stream`] does.
    pub fn save_given(
        &mut self,
        name: &str,
        expected_bytes: u64,
        give: &mut dyn FnMut(&mut Take<'_>) -> Result<()>,
    ) -> Result<u64> {
        let chunker = Chunker::new(self.session.vault.master(), Sizes::for_stream(expected_bytes));
        let mut worker = self.worker()?;
        let zeros = OnceLock::new();
        let mut cutter = Cutter::new(&chunker, &zeros, None);
        give(&mut |bytes| {
            self.session.go_on().or_else(|_stopped| self.session.check())?;
            cutter.take(bytes, &mut worker)
        })?;
        let Content { ids, size } = cutter.finish(&mut worker)?;
        self.add_document(name, ids, size);
        Ok(size)
    }

    /// Stores the trees, the deepest first; gives the node of the root and what was counted.
    fn trees(
        &self,
        listing: &dyn Listing,
        contents: &HashMap<usize, Content>,
        mut counts: Counts,
    ) -> Result<(Node, Counts)> {
        let shape = Shape::of(listing)?;
        let mut worker = self.worker()?;
        let mut subtrees: HashMap<usize, Id> = HashMap::new();
        for folder in (0..listing.count()).rev() {
            if !matches!(listing.entry(folder), Listed::Folder) {
                continue;
            }
            self.session.go_on().or_else(|_stopped| self.session.check())?;
            let mut nodes = Vec::new();
            for number in shape.children.get(folder).into_iter().flatten() {
                let mut node = shape.node(listing, *number, contents);
                node.subtree = subtrees.remove(number);
                if node.kind == Some(Kind::File) && matches!(listing.entry(*number), Listed::Further(_)) {
                    counts.files += 1;
                    counts.bytes += node.size;
                }
                nodes.push(node);
            }
            nodes.sort_by(|a, b| a.name.cmp(&b.name));
            if let Some([node, ..]) = nodes.windows(2).find(|pair| matches!(pair, [a, b] if a.name == b.name))
            {
                return Err(refused(&listing.path(folder).join(&node.name), "is named twice"));
            }
            let mut builder = TreeBuilder::new(std::mem::take(&mut worker.json));
            nodes.iter().for_each(|node| builder.push(node));
            let json = builder.finish();
            subtrees.insert(folder, worker.store_tree(&json)?);
            worker.json = json;
            self.tally.dirs_new.fetch_add(1, Ordering::Relaxed);
        }
        self.tally.new.fetch_add(counts.files, Ordering::Relaxed);
        self.tally.files.fetch_add(counts.files, Ordering::Relaxed);
        self.tally.bytes.fetch_add(counts.bytes, Ordering::Relaxed);
        let mut root = shape.node(listing, 0, contents);
        root.subtree = subtrees.remove(&0);
        Ok((root, counts))
    }
}

/// Files in the order in which they lie, in portions for a thread.
fn batches(files: &[(u64, usize, u64)]) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let (mut open, mut bytes) = (Vec::new(), 0u64);
    for (_, number, size) in files.iter().filter(|(.., size)| *size > 0) {
        open.push(*number);
        bytes = bytes.saturating_add(*size);
        if open.len() >= BATCH_FILES || bytes >= BATCH_BYTES {
            batches.push(std::mem::take(&mut open));
            bytes = 0;
        }
    }
    batches.extend(Some(open).filter(|open| !open.is_empty()));
    batches
}

/// Where the holes are, for the point's manifest.
fn holes(listing: &dyn Listing) -> Vec<SparseFile> {
    let mut found = Vec::new();
    let mut of_path: HashMap<&Path, Vec<(u64, u64)>> = HashMap::new();
    for number in 0..listing.count() {
        let path = listing.path(number);
        let data = match listing.entry(number) {
            Listed::File { size, sparse: Some(sparse), .. } if sparse != [(0, size)] => {
                of_path.insert(path, sparse.to_vec());
                sparse.to_vec()
            }
            // A walk notes them for every name.
            Listed::Further(first) => match of_path.get(first) {
                Some(data) => data.clone(),
                None => continue,
            },
            _ => continue,
        };
        found.push(SparseFile { path: escape(path.as_os_str()), data });
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn refused(path: &Path, why: &str) -> Error {
    let path = escape(path.as_os_str());
    Error::new(Code::InvalidValue, format!("The list cannot be saved: `{path}` {why}"))
}

/// What lies in which folder, and which names are of one file.
struct Shape<'l> {
    children: Vec<Vec<usize>>,
    groups: HashMap<&'l Path, Group>,
}

impl<'l> Shape<'l> {
    fn of(listing: &'l dyn Listing) -> Result<Self> {
        let mut folders: HashMap<&[u8], usize> = HashMap::new();
        let mut children: Vec<Vec<usize>> = Vec::new();
        let mut groups: HashMap<&Path, Group> = HashMap::new();
        children.resize_with(listing.count(), Vec::new);
        for number in 0..listing.count() {
            let path = listing.path(number);
            let bytes = path.as_os_str().as_bytes();
            let entry = listing.entry(number);
            if matches!(entry, Listed::Folder) && folders.insert(bytes, number).is_some() {
                return Err(refused(path, "is named twice"));
            }
            if let Listed::Further(first) = entry {
                groups.entry(first).or_insert(Group { number: 0, names: 1 }).names += 1;
            }
            if number == 0 {
                continue;
            }
            let at = bytes.iter().rposition(|b| *b == b'/').unwrap_or(0);
            let folder = folders.get(bytes.get(..at).unwrap_or_default()).copied();
            let folder = folder.and_then(|folder| children.get_mut(folder));
            folder.ok_or_else(|| refused(path, "comes before its folder"))?.push(number);
        }
        if !folders.contains_key(b"".as_slice()) {
            return Err(refused(Path::new(""), "has no root"));
        }
        for number in 0..listing.count() {
            let is_first = !matches!(listing.entry(number), Listed::Further(_) | Listed::Folder);
            if is_first && let Some(group) = groups.get_mut(listing.path(number)) {
                group.number = number;
            }
        }
        match groups.iter().find(|(_, group)| group.number == 0) {
            Some((first, _)) => Err(refused(first, "is not there for its further names")),
            None => Ok(Shape { children, groups }),
        }
    }

    fn node(&self, listing: &dyn Listing, number: usize, contents: &HashMap<usize, Content>) -> Node {
        let path = listing.path(number);
        let (first, group) = match listing.entry(number) {
            Listed::Further(first) => {
                let group = self.groups.get(first);
                (group.map_or(number, |g| g.number), group)
            }
            _ => (number, self.groups.get(path)),
        };
        let mut node = listing.node(number);
        node.name = path.file_name().unwrap_or(OsStr::new("")).to_owned();
        node.ctime = FileTime::default();
        node.links = match node.kind {
            Some(Kind::Dir) => 0,
            _ => group.map_or(1, |g| g.names),
        };
        (node.inode, node.device_id) = match group {
            Some(group) if node.links > 1 => (group.number as u64, 1),
            _ => (0, 0),
        };
        let content = contents.get(&first).filter(|_| node.kind == Some(Kind::File));
        let Content { ids, size } = content.cloned().unwrap_or_default();
        (node.content, node.size) = (ids, size);
        node
    }
}

/// The threads that read.
struct Reading<'r> {
    listing: &'r dyn Listing,
    batches: &'r [Vec<usize>],
    next: AtomicUsize,
    session: &'r Session,
    contents: &'r Mutex<HashMap<usize, Content>>,
    zeros: OnceLock<Id>,
    progress: &'r dyn Progress,
}

impl Reading<'_> {
    fn work(&self, mut worker: Worker) {
        while let Some(batch) = self.batches.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            if self.session.stopped() {
                break;
            }
            match self.batch(batch, &mut worker) {
                Ok(read) => self.contents.lock().extend(read),
                Err(e) => self.session.fail(e),
            }
        }
    }

    fn batch(&self, batch: &[usize], worker: &mut Worker) -> Result<Vec<(usize, Content)>> {
        let mut read = Vec::with_capacity(batch.len());
        let mut open: Option<(usize, Cutter<'_>)> = None;
        self.listing.read(batch, &mut |number, bytes| {
            self.session.go_on()?;
            if open.as_ref().is_none_or(|(at, _)| *at != number) {
                self.end(&mut open, worker, &mut read)?;
                let sparse = match self.listing.entry(number) {
                    Listed::File { sparse, .. } => sparse,
                    _ => None,
                };
                let mut cutter = Cutter::new(&self.session.chunker, &self.zeros, sparse);
                cutter.buffer = std::mem::take(&mut worker.buffer);
                cutter.buffer.clear();
                open = Some((number, cutter));
            }
            self.progress.done(0, bytes.len() as u64);
            match &mut open {
                Some((_, cutter)) => cutter.take(bytes, worker),
                None => Ok(()),
            }
        })?;
        self.end(&mut open, worker, &mut read)?;
        self.progress.done(batch.len() as u64, 0);
        Ok(read)
    }

    fn end(
        &self,
        open: &mut Option<(usize, Cutter<'_>)>,
        worker: &mut Worker,
        read: &mut Vec<(usize, Content)>,
    ) -> Result<()> {
        if let Some((number, cutter)) = open.take() {
            read.push((number, cutter.finish(worker)?));
        }
        Ok(())
    }
}

/// Cuts content that comes in parts of any length, as a walk cuts a file: ranges of data each by itself, the holes
/// between them in pieces of the largest size.
struct Cutter<'c> {
    chunker: &'c Chunker,
    /// The piece of the largest size that is all zeros, once it was stored.
    zeros: &'c OnceLock<Id>,
    /// Ranges of data; none: all of it is.
    data: Option<Vec<(u64, u64)>>,
    /// What was not stored yet.
    buffer: Vec<u8>,
    /// Bytes before `buffer`.
    at: u64,
    ids: Vec<Id>,
}

impl<'c> Cutter<'c> {
    fn new(chunker: &'c Chunker, zeros: &'c OnceLock<Id>, sparse: Option<&[(u64, u64)]>) -> Self {
        let data = sparse.map(without_small_holes);
        Cutter { chunker, zeros, data, buffer: Vec::new(), at: 0, ids: Vec::new() }
    }

    /// Where what lies at `self.at` ends, and whether it is a piece of a hole.
    fn bound(&self) -> (u64, bool) {
        let Some(data) = &self.data else { return (u64::MAX, false) };
        let full = self.at.saturating_add(self.chunker.sizes().max as u64);
        match data.get(data.partition_point(|(_, end)| *end <= self.at)) {
            Some((start, end)) if *start <= self.at && *end > self.at => (*end, false),
            Some((start, _)) if *start > self.at => (full.min(*start), true),
            _ => (full, true),
        }
    }

    fn take(&mut self, mut bytes: &[u8], worker: &mut Worker) -> Result<()> {
        let max = self.chunker.sizes().max;
        while !bytes.is_empty() {
            let (bound, hole) = self.bound();
            let filled = self.buffer.len();
            let left = bound.saturating_sub(self.at).saturating_sub(filled as u64);
            let room = usize::try_from(left).unwrap_or(usize::MAX).min((2 * max).saturating_sub(filled));
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            bytes = rest;
            if now.len() as u64 == left {
                self.store(hole, 0, worker)?;
            } else if self.buffer.len() >= 2 * max {
                self.store(hole, max, worker)?;
            }
        }
        Ok(())
    }

    /// Stores pieces until fewer than `keep` bytes are left; of a hole, all as one.
    fn store(&mut self, hole: bool, keep: usize, worker: &mut Worker) -> Result<()> {
        let buffer = std::mem::take(&mut self.buffer);
        let mut rest = buffer.as_slice();
        while !rest.is_empty() && rest.len() >= keep {
            let length = if hole { rest.len() } else { self.chunker.cut(rest) };
            let (piece, after) = rest.split_at(length.min(rest.len()));
            let id = match self.zeros.get() {
                Some(id) if hole && self.is_full_of_zeros(piece) => *id,
                _ => worker.store_data(piece)?,
            };
            if hole && self.is_full_of_zeros(piece) {
                self.zeros.get_or_init(|| id);
            }
            self.ids.push(id);
            self.at += piece.len() as u64;
            rest = after;
        }
        let from = buffer.len() - rest.len();
        self.buffer = buffer;
        self.buffer.drain(..from);
        Ok(())
    }

    fn is_full_of_zeros(&self, piece: &[u8]) -> bool {
        piece.len() == self.chunker.sizes().max && piece.iter().all(|byte| *byte == 0)
    }

    /// Stores the rest.
    fn finish(mut self, worker: &mut Worker) -> Result<Content> {
        let (_, hole) = self.bound();
        self.store(hole, 0, worker)?;
        worker.buffer = self.buffer;
        Ok(Content { ids: self.ids, size: self.at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Cost;
    use crate::{Strength, Vault};
    use backstay_model::{Cancel, Secret, Silent};
    use std::sync::Arc;
    use std::time::Duration;

    const FILE: Listed<'static> = Listed::File { size: 1, place: 0, sparse: None };

    struct List(Vec<(&'static str, Listed<'static>)>);

    impl Listing for List {
        fn count(&self) -> usize {
            self.0.len()
        }

        fn path(&self, number: usize) -> &Path {
            Path::new(self.0[number].0)
        }

        fn entry(&self, number: usize) -> Listed<'_> {
            self.0[number].1
        }

        fn node(&self, number: usize) -> Node {
            let kind = match self.0[number].1 {
                Listed::Folder => Kind::Dir,
                Listed::Special => Kind::Fifo,
                _ => Kind::File,
            };
            Node { kind: Some(kind), mode: 0o644, ..Node::default() }
        }

        fn read(&self, files: &[usize], receive: &mut Receive<'_>) -> Result<()> {
            files.iter().try_for_each(|number| receive(*number, b"x"))
        }
    }

    fn save(list: Vec<(&'static str, Listed<'static>)>) -> Result<(Vec<Node>, Counts)> {
        let storage = Arc::new(backstay_storage::Memory::new());
        let vault = Vault::init(storage, &Secret::new("password"), Cost::RANDOM)?;
        let lock = vault.lock(Strength::Shared, Duration::ZERO, &Cancel::new())?;
        let mut writer = vault.begin(&lock, 3, &Cancel::new())?;
        let saved = writer.save_listing("content", &List(list), &Silent)?;
        let details = super::super::SnapshotDetails {
            time: writer.started(),
            paths: Vec::new(),
            tags: Vec::new(),
            parent: None,
        };
        writer.commit(&lock, details, &Silent)?;
        Ok((vault.reader()?.tree(&saved.tree)?, saved.counts))
    }

    #[test]
    fn names_of_one_file_are_joined_and_nothing_looks_like_a_file_on_a_disk() {
        let list = vec![
            ("", Listed::Folder),
            ("b", FILE),
            ("a", Listed::Further(Path::new("b"))),
            ("c", FILE),
            ("p", Listed::Special),
        ];
        let (nodes, counts) = save(list).unwrap();
        assert_eq!((counts.files, counts.bytes), (3, 3));
        let told: Vec<_> =
            nodes.iter().map(|n| (n.name.to_str().unwrap(), n.inode, n.links, n.content.len())).collect();
        assert_eq!(told, [("a", 1, 2, 1), ("b", 1, 2, 1), ("c", 0, 1, 1), ("p", 0, 1, 0)]);
        assert!(nodes.iter().all(|n| n.ctime == FileTime::default()));
    }

    #[test]
    fn lists_that_are_no_tree_are_refused() {
        let lists = [
            vec![],
            vec![("a", FILE)],
            vec![("", Listed::Folder), ("x/y", FILE)],
            vec![("", Listed::Folder), ("x", FILE), ("x/y", FILE)],
            vec![("", Listed::Folder), ("x", FILE), ("x", FILE)],
            vec![("", Listed::Folder), ("x", Listed::Folder), ("x", Listed::Folder)],
            vec![("", Listed::Folder), ("b", Listed::Further(Path::new("a")))],
            vec![("", Listed::Folder), ("b", Listed::Further(Path::new("")))],
        ];
        for list in lists {
            let names: Vec<_> = list.iter().map(|(name, _)| *name).collect();
            assert_eq!(save(list).unwrap_err().code(), Code::InvalidValue, "{names:?}");
        }
    }
}
