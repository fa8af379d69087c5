//! A point of the vault as what goes into an archive.
//!
//! Invariants: entries come in the order of their names, each behind its folder. A name that no folder could hold is told
//! and left out; data that the vault has lost ends the work, since half a file is none. Nothing is locked. Memory: the
//! open folders, and one piece of content for each file that is being read.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_archive::source::{
    Content, Details, Failure, Item, Names, Opened, Reader as Bytes, RootItem, Sink, Source, TreeItem, What,
};
use backstay_model::{Code, Error, Problem, ProblemKind, Result};
use backstay_tree::fs::{FileTime, Kind};
use backstay_tree::path::escape;
use backstay_vault::blob::BlobKind;
use backstay_vault::{Id, Node, Reader};

/// Deepest nesting that is followed.
const DEPTH_MAX: usize = 8_000;

/// Where the holes of files are, by path.
pub(super) type Holes = HashMap<PathBuf, Vec<(u64, u64)>>;

/// The home in a point.
pub(super) struct TreeSource {
    pub reader: Arc<Reader>,
    pub tree: Id,
    /// The home itself; none for snapshots of other programs.
    pub top: Option<Node>,
    pub holes: Holes,
    /// The time of a home of which nothing is known.
    pub time: FileTime,
}

fn details(node: &Node) -> Details {
    let known = |name: &Arc<str>| (!name.is_empty()).then(|| Arc::clone(name));
    Details {
        mode: node.mode,
        uid: node.uid,
        gid: node.gid,
        user: known(&node.user),
        group: known(&node.group),
        mtime: node.mtime,
        xattrs: node.xattrs.clone(),
    }
}

impl Source for TreeSource {
    fn walk(&self, sink: &mut dyn Sink) -> Result<()> {
        let unknown = Node { mode: 0o755, mtime: self.time, ..Node::default() };
        let top = details(self.top.as_ref().unwrap_or(&unknown));
        let mut walk = Walk { source: self, sink, firsts: HashMap::new() };
        walk.give(PathBuf::new(), What::Folder(top), Names::One)?;
        let mut open: Vec<(PathBuf, std::vec::IntoIter<Node>)> =
            vec![(PathBuf::new(), self.reader.tree(&self.tree)?.into_iter())];
        while let Some((folder, nodes)) = open.last_mut() {
            let Some(node) = nodes.next() else {
                open.pop();
                continue;
            };
            let path = folder.join(&node.name);
            walk.sink.check()?;
            if let Some(tree) = walk.entry(&path, node)? {
                if open.len() >= DEPTH_MAX {
                    let message = format!("Folders are nested deeper than {DEPTH_MAX}");
                    return Err(Error::new(Code::LimitExceeded, message));
                }
                open.push((path, self.reader.tree(&tree)?.into_iter()));
            }
        }
        Ok(())
    }
}

struct Walk<'w> {
    source: &'w TreeSource,
    sink: &'w mut dyn Sink,
    /// First paths of files with several names.
    firsts: HashMap<(u64, u64, Kind), PathBuf>,
}

impl Walk<'_> {
    fn give(&mut self, path: PathBuf, what: What, names: Names) -> Result<()> {
        self.sink.item(Item::Tree(TreeItem { path, what, names }))
    }

    fn tell(&mut self, path: &Path, kind: ProblemKind, detail: &str) {
        let path = escape(path.as_os_str());
        self.sink.problem(Problem { path, kind, detail: detail.to_owned() });
    }

    /// Gives an entry; of a folder, its tree.
    fn entry(&mut self, path: &Path, node: Node) -> Result<Option<Id>> {
        let Some(kind) = node.kind.filter(|_| node.safe_name().is_some()) else {
            self.tell(path, ProblemKind::Unsafe, "Its name or kind is none that a folder could hold");
            return Ok(None);
        };
        let names = self.names(path, kind, &node);
        let mut below = None;
        let what = match kind {
            Kind::Dir => {
                let path = escape(path.as_os_str());
                let lost = || Error::new(Code::VaultDamaged, format!("The point has lost what is in {path}"));
                below = Some(node.subtree.ok_or_else(lost)?);
                What::Folder(details(&node))
            }
            Kind::Symlink => What::Symlink(node.link_target.clone(), details(&node)),
            Kind::File => {
                let reader = Arc::clone(&self.source.reader);
                let sparse = self.source.holes.get(path).cloned();
                let size = node.size;
                What::File { size, content: Box::new(Stored { reader, node, sparse, in_home: true }) }
            }
            other => What::Special(other, node.device, details(&node)),
        };
        self.give(path.to_owned(), what, names)?;
        Ok(below)
    }

    fn names(&mut self, path: &Path, kind: Kind, node: &Node) -> Names {
        if node.links < 2 || matches!(kind, Kind::Dir | Kind::Socket) {
            return Names::One;
        }
        match self.firsts.entry((node.inode, node.device_id, kind)) {
            std::collections::hash_map::Entry::Occupied(first) => Names::Further(first.get().clone()),
            std::collections::hash_map::Entry::Vacant(new) => {
                new.insert(path.to_owned());
                Names::First
            }
        }
    }
}

/// A file of a point that lies beside the home in an archive.
pub(super) struct Beside {
    pub reader: Arc<Reader>,
    /// Its name in the archive.
    pub name: String,
    pub node: Node,
}

impl Source for Beside {
    fn walk(&self, sink: &mut dyn Sink) -> Result<()> {
        let (reader, node) = (Arc::clone(&self.reader), self.node.clone());
        let mtime = node.mtime;
        let content = Box::new(Stored { reader, node, sparse: None, in_home: false });
        sink.item(Item::Root(RootItem { name: self.name.clone(), mtime, content }))
    }
}

/// Content in the vault.
struct Stored {
    reader: Arc<Reader>,
    node: Node,
    sparse: Option<Vec<(u64, u64)>>,
    in_home: bool,
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stored({} bytes)", self.node.size)
    }
}

impl Content for Stored {
    fn open(&self) -> Result<Opened, Failure> {
        let reader = Box::new(Pieces {
            reader: Arc::clone(&self.reader),
            ids: self.node.content.clone(),
            next: 0,
            piece: Vec::new(),
            at: 0,
            left: self.node.size,
        });
        Ok(Opened {
            details: self.in_home.then(|| details(&self.node)),
            size: Some(self.node.size),
            sparse: self.sparse.clone(),
            same: true,
            reader,
        })
    }
}

struct Pieces {
    reader: Arc<Reader>,
    ids: Vec<Id>,
    next: usize,
    piece: Vec<u8>,
    /// Bytes of the piece that were given.
    at: usize,
    left: u64,
}

impl std::fmt::Debug for Pieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pieces({} of {})", self.next, self.ids.len())
    }
}

impl Bytes for Pieces {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, Failure> {
        let mut done = 0;
        while let Some(room) = buf.get_mut(done..).filter(|room| !room.is_empty()) {
            let rest = self.piece.get(self.at..).unwrap_or_default();
            if rest.is_empty() {
                let Some(id) = self.ids.get(self.next) else { break };
                self.piece = self.reader.blob(BlobKind::Data, id)?;
                (self.next, self.at) = (self.next + 1, 0);
                continue;
            }
            let now = rest.len().min(room.len());
            room.get_mut(..now).unwrap_or_default().copy_from_slice(rest.get(..now).unwrap_or_default());
            self.at += now;
            self.left = self.left.saturating_sub(now as u64);
            done += now;
        }
        if done < buf.len() && self.left > 0 {
            let message = format!("A file of the point is {} bytes too short", self.left);
            return Err(Failure::Fatal(Error::new(Code::VaultDamaged, message)));
        }
        Ok(done)
    }
}
