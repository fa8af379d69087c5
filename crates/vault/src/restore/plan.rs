//! What a restore is going to make: the trees of the vault, walked and judged before anything is written.
//!
//! Invariants: what is in a [`Plan`] has a safe name that is unique in its folder, a folder that comes before it,
//! and content that the index knows and that adds up to the size that is claimed. Everything else has become a
//! problem. Memory grows with the number of entries only, and that is bounded even where trees are used again
//! and again ([`REPEATED`]). Nothing is locked; threads only read trees, one batch at a time.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use backstay_model::{Cancel, ProblemKind, Result};
use backstay_tree::fs::{FileTime, Kind};
use backstay_tree::metadata;
use parking_lot::Mutex;

use super::problems::Problems;
use super::select::Scope;
use super::source::{Scratch, Source, is_fatal};
use super::{RestoreOptions, crew};
use crate::blob::BlobKind;
use crate::id::Id;
use crate::node::{Node, for_each_node};

/// Folders inside each other that are restored.
pub(super) const DEPTH_MAX: u32 = 4096;
/// Entries that may come from trees that are there already at another place. (A few nested trees, each named ten
/// times by the one above, would be more entries than any disk can hold.)
const REPEATED: u64 = 1_000_000;
/// Entries of a folder that are refused by name.
const REFUSED: usize = 1000;
/// Trees that are read before their entries are planned.
const BATCH: usize = 512;

/// Metadata of an entry.
#[derive(Debug, Default)]
pub(super) struct Meta {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
    pub(super) mtime: FileTime,
    pub(super) xattrs: Box<[(OsString, Vec<u8>)]>,
}

impl Meta {
    fn of(node: &mut Node) -> Self {
        Meta {
            uid: node.uid,
            gid: node.gid,
            mode: node.mode,
            mtime: node.mtime,
            xattrs: std::mem::take(&mut node.xattrs).into_boxed_slice(),
        }
    }

    pub(super) fn wanted(&self) -> metadata::Wanted<'_> {
        let Meta { uid, gid, mode, mtime, ref xattrs } = *self;
        metadata::Wanted { uid, gid, mode, mtime, xattrs }
    }
}

/// A folder; number 0 is the target itself.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) parent: u32,
    pub(super) name: Box<OsStr>,
    pub(super) depth: u32,
    /// None: its metadata is left as it comes.
    pub(super) meta: Option<Meta>,
}

/// A regular file.
#[derive(Debug)]
pub(super) struct File {
    pub(super) folder: u32,
    pub(super) name: Box<OsStr>,
    pub(super) meta: Meta,
    pub(super) size: u64,
}

/// A link, FIFO or device.
#[derive(Debug)]
pub(super) struct Special {
    pub(super) folder: u32,
    pub(super) name: Box<OsStr>,
    pub(super) meta: Meta,
    pub(super) kind: Kind,
    pub(super) device: u64,
    pub(super) target: OsString,
}

/// A further name of a file or special.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) folder: u32,
    pub(super) name: Box<OsStr>,
    /// Folder and name of what it is another name of.
    pub(super) first: (u32, Box<OsStr>),
    pub(super) is_file: bool,
}

/// A piece of content and where it belongs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) id: Id,
    /// Number of the pack in [`Plan::packs`].
    pub(super) pack: u32,
    pub(super) offset: u32,
    pub(super) length: u32,
    /// Plain bytes when compressed, else 0.
    pub(super) plain: u32,
    /// Number of the file in [`Plan::files`].
    pub(super) file: u32,
}

impl Piece {
    pub(super) fn uncompressed(&self) -> Option<u32> {
        (self.plain != 0).then_some(self.plain)
    }

    pub(super) fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.length)
    }
}

/// A file of several pieces, or one with holes.
#[derive(Debug)]
pub(super) struct Large {
    pub(super) file: u32,
    /// Its pieces in [`Plan::pieces`].
    pub(super) pieces: std::ops::Range<usize>,
    /// Where it has data, sorted; none: everywhere.
    pub(super) extents: Option<Vec<(u64, u64)>>,
}

/// All that is to be made.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) folders: Vec<Folder>,
    pub(super) files: Vec<File>,
    pub(super) specials: Vec<Special>,
    pub(super) links: Vec<Link>,
    pub(super) packs: Vec<Id>,
    /// Files without content.
    pub(super) empty: Vec<u32>,
    /// The pieces that are all of their file.
    pub(super) small: Vec<Piece>,
    pub(super) large: Vec<Large>,
    /// The pieces of the large files, file by file in the order of content.
    pub(super) pieces: Vec<(Piece, u64)>,
    pub(super) total_files: u64,
    pub(super) total_bytes: u64,
}

impl Plan {
    /// The path of a folder below the target.
    pub(super) fn folder_path(&self, folder: u32) -> PathBuf {
        let mut names: Vec<&OsStr> = Vec::new();
        let mut at = folder;
        while at != 0
            && let Some(f) = usize::try_from(at).ok().and_then(|n| self.folders.get(n))
        {
            names.push(&f.name);
            at = f.parent;
        }
        let mut path = OsString::with_capacity(names.iter().map(|n| n.len() + 1).sum());
        for name in names.iter().rev() {
            if !path.is_empty() {
                path.push("/");
            }
            path.push(name);
        }
        path.into()
    }

    /// The path of an entry of a folder.
    pub(super) fn path(&self, folder: u32, name: &OsStr) -> PathBuf {
        let mut path = self.folder_path(folder).into_os_string();
        if !path.is_empty() {
            path.push("/");
        }
        path.push(name);
        path.into()
    }

    pub(super) fn folder(&self, folder: u32) -> Option<&Folder> {
        usize::try_from(folder).ok().and_then(|n| self.folders.get(n))
    }

    pub(super) fn file(&self, file: u32) -> Option<&File> {
        usize::try_from(file).ok().and_then(|n| self.files.get(n))
    }
}

/// A folder whose entries are still to be planned.
struct Pending<'s> {
    folder: u32,
    tree: Id,
    scope: Scope<'s>,
}

/// The first name of something that has several.
struct First {
    folder: u32,
    name: Box<OsStr>,
    /// What it holds: names are only of one file when they agree in this.
    content: Id,
    size: u64,
}

/// What was read of a tree.
#[derive(Default)]
struct Listing {
    nodes: Vec<Node>,
    /// Entries that cannot be restored: name, kind of problem, reason; and how many are not named here.
    refused: Vec<(OsString, ProblemKind, String)>,
    unnamed: u64,
    /// Why not all of it could be read.
    incomplete: Option<String>,
}

impl Listing {
    fn refuse(&mut self, name: OsString, kind: ProblemKind, why: impl Into<String>) {
        if self.refused.len() < REFUSED {
            self.refused.push((name, kind, why.into()));
        } else {
            self.unnamed += 1;
        }
    }
}

pub(super) struct Planner<'a> {
    source: &'a Source<'a>,
    problems: &'a Problems<'a>,
    options: &'a RestoreOptions,
    cancel: &'a Cancel,
    plan: Plan,
    pack_numbers: HashMap<Id, u32>,
    firsts: HashMap<(u64, u64, Kind), First>,
    seen: HashSet<Id>,
    repeated: u64,
    /// The first folder that was left out for that, and how many were.
    left_out: Option<(u32, u64)>,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        source: &'a Source<'a>,
        problems: &'a Problems<'a>,
        options: &'a RestoreOptions,
        cancel: &'a Cancel,
    ) -> Self {
        Planner {
            source,
            problems,
            options,
            cancel,
            plan: Plan::default(),
            pack_numbers: HashMap::new(),
            firsts: HashMap::new(),
            seen: HashSet::new(),
            repeated: 0,
            left_out: None,
        }
    }

    /// Plans the tree below the target.
    pub(super) fn plan(mut self, tree: &Id, top: Option<&Node>, scope: Scope<'a>) -> Result<Plan> {
        let root = Folder {
            parent: 0,
            name: Box::from(OsStr::new("")),
            depth: 0,
            meta: top.map(|node| Meta::of(&mut node.clone())),
        };
        self.plan.folders.push(root);
        let mut level = vec![Pending { folder: 0, tree: *tree, scope }];
        while !level.is_empty() {
            let mut next = Vec::new();
            for batch in level.chunks(BATCH) {
                self.cancel.check()?;
                let (too_much, batch): (Vec<_>, Vec<_>) =
                    batch.iter().partition(|pending| self.is_too_much(&pending.tree));
                too_much.iter().for_each(|pending| self.leave_out(pending.folder));
                for (pending, listing) in batch.iter().zip(self.read(&batch)?) {
                    self.folder(pending, listing, &mut next);
                }
            }
            level = next;
        }
        if let Some((first, count)) = self.left_out {
            let why = format!("The same folders are repeated too often in the point; {count} were left out");
            self.problems.add(&self.plan.folder_path(first), ProblemKind::Unsafe, why);
        }
        Ok(self.plan)
    }

    /// Whether a tree is one of those that are repeated too often.
    fn is_too_much(&self, tree: &Id) -> bool {
        self.repeated > REPEATED && self.seen.contains(tree)
    }

    fn leave_out(&mut self, folder: u32) {
        self.left_out.get_or_insert((folder, 0)).1 += 1;
    }

    /// Reads the trees of a batch, with all workers.
    fn read(&self, batch: &[&Pending<'_>]) -> Result<Vec<Listing>> {
        let results: Mutex<Vec<(usize, Listing)>> = Mutex::default();
        let next = AtomicUsize::new(0);
        let threads = crate::workers().min(batch.len().div_ceil(16));
        crew(threads, |_| {
            let mut scratch = Scratch::new()?;
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let Some(pending) = batch.get(n) else { return Ok(()) };
                self.cancel.check()?;
                let listing = read_listing(self.source, &pending.tree, &mut scratch)?;
                results.lock().push((n, listing));
            }
        })?;
        let mut results = results.into_inner();
        results.sort_unstable_by_key(|(n, _)| *n);
        Ok(results.into_iter().map(|(_, listing)| listing).collect())
    }

    fn folder(&mut self, pending: &Pending<'a>, listing: Listing, next: &mut Vec<Pending<'a>>) {
        let folder = pending.folder;
        if let Some(why) = listing.incomplete {
            self.problems.add(&self.plan.folder_path(folder), ProblemKind::Lost, why);
        }
        for (name, kind, why) in listing.refused {
            self.problems.add(&self.plan.path(folder, &name), kind, why);
        }
        if listing.unnamed > 0 {
            let why = format!("{} more of its entries cannot be restored", listing.unnamed);
            self.problems.add(&self.plan.folder_path(folder), ProblemKind::Unsafe, why);
        }
        if !listing.nodes.is_empty() && !self.seen.insert(pending.tree) {
            self.repeated += listing.nodes.len() as u64;
            if self.is_too_much(&pending.tree) {
                return self.leave_out(folder);
            }
        }
        for node in listing.nodes {
            if let Some(scope) = pending.scope.entry(&node.name) {
                self.entry(folder, node, scope, next);
            }
        }
    }

    fn refuse(&self, folder: u32, name: &OsStr, kind: ProblemKind, why: impl Into<String>) {
        self.problems.add(&self.plan.path(folder, name), kind, why);
    }

    fn entry(&mut self, folder: u32, mut node: Node, scope: Scope<'a>, next: &mut Vec<Pending<'a>>) {
        let name: Box<OsStr> = node.name.as_os_str().into();
        let Some(kind) = node.kind else { return };
        if kind == Kind::Dir {
            return self.subfolder(folder, name, node, scope, next);
        }
        if !scope.is_whole() {
            // The selection names something below it, but it is no folder.
            return self.refuse(folder, &name, ProblemKind::Lost, "It is not a folder in the point");
        }
        if kind == Kind::Socket {
            return self.refuse(folder, &name, ProblemKind::Socket, "Sockets have no content to restore");
        }
        if kind == Kind::File {
            self.plan.total_files += 1;
        }
        if node.links > 1 && self.link(folder, &name, &node, kind) {
            return;
        }
        let meta = Meta::of(&mut node);
        if kind == Kind::File {
            return self.file(folder, name, meta, node);
        }
        let target = std::mem::take(&mut node.link_target);
        self.plan.specials.push(Special { folder, name, meta, kind, device: node.device, target });
    }

    fn subfolder(
        &mut self,
        parent: u32,
        name: Box<OsStr>,
        mut node: Node,
        scope: Scope<'a>,
        next: &mut Vec<Pending<'a>>,
    ) {
        let depth = self.plan.folder(parent).map_or(0, |f| f.depth) + 1;
        if depth > DEPTH_MAX {
            let why = format!("More than {DEPTH_MAX} folders inside each other");
            return self.refuse(parent, &name, ProblemKind::Unsafe, why);
        }
        let Ok(number) = u32::try_from(self.plan.folders.len()) else {
            return self.refuse(parent, &name, ProblemKind::Unsafe, "Too many folders");
        };
        match node.subtree {
            Some(tree) => next.push(Pending { folder: number, tree, scope }),
            None => self.refuse(parent, &name, ProblemKind::Lost, "The point does not say what is in it"),
        }
        let meta = (!scope.is_way()).then(|| Meta::of(&mut node));
        self.plan.folders.push(Folder { parent, name, depth, meta });
    }

    /// Plans an entry as a further name of an earlier one, if it is one.
    fn link(&mut self, folder: u32, name: &OsStr, node: &Node, kind: Kind) -> bool {
        let content = content_id(node);
        match self.firsts.get(&(node.device_id, node.inode, kind)) {
            // Names of one file agree in what they hold; whatever does not is restored for itself.
            Some(first) if first.content == content && first.size == node.size => {
                let first = (first.folder, first.name.clone());
                let is_file = kind == Kind::File;
                self.plan.links.push(Link { folder, name: name.into(), first, is_file });
                true
            }
            Some(_) => false,
            None => {
                let first = First { folder, name: name.into(), content, size: node.size };
                self.firsts.insert((node.device_id, node.inode, kind), first);
                false
            }
        }
    }

    fn file(&mut self, folder: u32, name: Box<OsStr>, meta: Meta, node: Node) {
        let Ok(number) = u32::try_from(self.plan.files.len()) else {
            return self.refuse(folder, &name, ProblemKind::Unsafe, "Too many files");
        };
        let start = self.plan.pieces.len();
        let mut at = 0u64;
        for id in &node.content {
            let Some(place) = self.source.place(BlobKind::Data, id) else {
                self.plan.pieces.truncate(start);
                let why = format!("A piece of its content is not in the vault ({})", id.short());
                return self.refuse(folder, &name, ProblemKind::Lost, why);
            };
            let pack = self.pack_number(place.pack);
            let (offset, length, plain) = (place.offset, place.length, place.uncompressed.unwrap_or(0));
            self.plan.pieces.push((Piece { id: *id, pack, offset, length, plain, file: number }, at));
            at = at.saturating_add(place.plain_length());
        }
        if at != node.size {
            self.plan.pieces.truncate(start);
            let why = format!("It should have {} bytes, but the point holds {at} bytes of it", node.size);
            return self.refuse(folder, &name, ProblemKind::Lost, why);
        }
        let extents = self.extents(folder, &name);
        match node.content.as_slice() {
            [] => self.plan.empty.push(number),
            [_] if extents.is_none() => {
                self.plan.small.extend(self.plan.pieces.pop().map(|(piece, _)| piece))
            }
            _ => {
                let pieces = start..self.plan.pieces.len();
                self.plan.large.push(Large { file: number, pieces, extents });
            }
        }
        self.plan.total_bytes = self.plan.total_bytes.saturating_add(node.size);
        self.plan.files.push(File { folder, name, meta, size: node.size });
    }

    fn pack_number(&mut self, pack: Id) -> u32 {
        let packs = &mut self.plan.packs;
        *self.pack_numbers.entry(pack).or_insert_with(|| {
            packs.push(pack);
            // The index numbers its packs with 32 bits too.
            u32::try_from(packs.len() - 1).unwrap_or(u32::MAX)
        })
    }

    fn extents(&self, folder: u32, name: &OsStr) -> Option<Vec<(u64, u64)>> {
        if self.options.sparse.is_empty() {
            return None;
        }
        let mut extents = self.options.sparse.get(&self.plan.path(folder, name))?.clone();
        extents.sort_unstable();
        Some(extents)
    }
}

/// What a file's names must agree in, beside its size.
pub(crate) fn content_id(node: &Node) -> Id {
    let mut text = Vec::with_capacity(node.content.len() * 32 + node.link_target.len() + 8);
    for id in &node.content {
        text.extend_from_slice(&id.0);
    }
    text.extend_from_slice(node.link_target.as_encoded_bytes());
    text.extend_from_slice(&node.device.to_le_bytes());
    Id::of(&text)
}

/// Reads a tree and sorts out what can be restored of it. An error only where the whole storage fails.
fn read_listing(source: &Source<'_>, tree: &Id, scratch: &mut Scratch) -> Result<Listing> {
    let mut listing = Listing::default();
    if let Err(e) = source.blob(BlobKind::Tree, tree, scratch) {
        if is_fatal(&e) {
            return Err(e);
        }
        listing.incomplete = Some(format!("What is in it cannot be read: {e}"));
        return Ok(listing);
    }
    let mut names = HashSet::new();
    let parsed = for_each_node(&scratch.plain, &mut |node| match node {
        Ok(node) => match judge(&node) {
            Some((kind, why)) => listing.refuse(node.name, kind, why),
            None if names.contains(&node.name) => {
                let why = "There is an entry of that name already; only the first is restored";
                listing.refuse(node.name, ProblemKind::Unsafe, why);
            }
            None => {
                names.insert(node.name.clone());
                listing.nodes.push(node);
            }
        },
        Err(e) => listing.refuse(OsString::new(), ProblemKind::Lost, format!("An entry of it is lost: {e}")),
    });
    if let Err(e) = parsed {
        listing.incomplete = Some(format!("What is in it cannot be read to its end: {e}"));
    }
    Ok(listing)
}

/// Why an entry cannot be restored, whatever else there is.
fn judge(node: &Node) -> Option<(ProblemKind, &'static str)> {
    if node.safe_name().is_none() {
        return Some((ProblemKind::Unsafe, "Nothing can have that name"));
    }
    if node.kind.is_none() {
        return Some((ProblemKind::Unsafe, "It is of a kind that this program does not know"));
    }
    None
}
