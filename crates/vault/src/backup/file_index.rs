//! The file index: what the last backup saw, in a local file made for asking "is this folder as it was?".
//!
//! It is a cache: it may be deleted at any time, and every part of it is checked before it is believed. It is valid
//! only while the snapshot it describes (known by its tree) exists in the vault.
//!
//! Layout: two header slots of 256 bytes, then one block a folder. A folder's block holds its entries and, for each
//! child folder, the place of its block; blocks are appended children first. A finished backup writes the slot that
//! was not the newest, so a crash at any point leaves the other slot and all its blocks as they were. When more than
//! half of the file is dead, the next backup writes a new file and renames it into place.
//!
//! A backup of two passes ([`FileIndex::again`]) writes blocks twice; the first pass's are the past of the second, though
//! no slot names them. Where there is no file to write to (another backup has it, the disk is full), they are kept in
//! memory.
//!
//! Lock: the file is locked (`flock`) by the backup that uses it; a second one works without it. Nothing is synced:
//! after a power loss checksums tell what did not reach the disk.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use backstay_tree::fs::{FileTime, Kind};
use parking_lot::Mutex;

use super::past::{Block, Extents, Meta, Origin, Past, PastEntry};
use crate::id::Id;

const MAGIC: &[u8; 8] = b"bsfiles2";
const SLOT: usize = 256;
const BLOCKS_FROM: u64 = 2 * SLOT as u64;
const CHECKSUM: usize = 8;
/// Largest block that is read: a folder of some millions of entries.
const BLOCK_MAX: u32 = 1 << 30;

/// What a header slot says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    sequence: u64,
    /// Digest of vault and home: an index never serves another tree.
    identity: [u8; 32],
    /// When the backup that wrote it began to read.
    pub started: FileTime,
    /// The tree of the root folder.
    pub tree: Id,
    /// The root folder's block.
    pub root: Block,
    /// Where the next block goes.
    end: u64,
    /// Bytes of blocks that are in use.
    live: u64,
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM] {
    blake3::hash(bytes).as_bytes().first_chunk().copied().unwrap_or_default()
}

/// Reads numbers and bytes off the front of a slice; `None` at its end.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(count)?;
        self.0 = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[b]| b)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn count(&mut self) -> Option<usize> {
        usize::try_from(self.u32()?).ok()
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.count()?;
        self.bytes(length)
    }

    fn time(&mut self) -> Option<FileTime> {
        Some(FileTime { secs: self.array().map(i64::from_le_bytes)?, nanos: self.u32()? })
    }

    fn id(&mut self) -> Option<Id> {
        self.array().map(Id)
    }

    fn meta(&mut self) -> Option<Meta> {
        let (mode, uid, gid) = (self.u32()?, self.u32()?, self.u32()?);
        Some(Meta { mode, uid, gid, links: self.u64()?, rdev: self.u64()? })
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) -> Option<()> {
    out.extend_from_slice(&u32::try_from(count).ok()?.to_le_bytes());
    Some(())
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    put_count(out, text.len())?;
    out.extend_from_slice(text);
    Some(())
}

fn put_time(out: &mut Vec<u8>, time: FileTime) {
    out.extend_from_slice(&time.secs.to_le_bytes());
    out.extend_from_slice(&time.nanos.to_le_bytes());
}

fn put_meta(out: &mut Vec<u8>, meta: &Meta) {
    let Meta { mode, uid, gid, links, rdev } = meta;
    [mode, uid, gid].into_iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
    [links, rdev].into_iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
}

impl Slot {
    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.identity);
        put_time(&mut out, self.started);
        out.extend_from_slice(&self.tree.0);
        out.extend_from_slice(&self.root.offset.to_le_bytes());
        out.extend_from_slice(&self.root.length.to_le_bytes());
        out.extend_from_slice(&self.end.to_le_bytes());
        out.extend_from_slice(&self.live.to_le_bytes());
        out.resize(SLOT - CHECKSUM, 0);
        let sum = checksum(&out);
        out.extend_from_slice(&sum);
        out
    }

    fn decode(bytes: &[u8]) -> Option<Slot> {
        let (body, sum) = bytes.split_last_chunk::<CHECKSUM>()?;
        if checksum(body) != *sum {
            return None;
        }
        let mut c = Cursor(body);
        if c.array()? != *MAGIC {
            return None;
        }
        Some(Slot {
            sequence: c.u64()?,
            identity: c.array()?,
            started: c.time()?,
            tree: c.id()?,
            root: Block { offset: c.u64()?, length: c.u32()? },
            end: c.u64()?,
            live: c.u64()?,
        })
    }
}

fn kind_code(kind: Kind) -> u8 {
    match kind {
        Kind::File => 0,
        Kind::Dir => 1,
        Kind::Symlink => 2,
        Kind::Fifo => 3,
        Kind::Socket => 4,
        Kind::CharDevice => 5,
        Kind::BlockDevice => 6,
    }
}

fn kind_of(code: u8) -> Option<Kind> {
    [Kind::File, Kind::Dir, Kind::Symlink, Kind::Fifo, Kind::Socket, Kind::CharDevice, Kind::BlockDevice]
        .into_iter()
        .find(|k| kind_code(*k) == code)
}

const HAS_XATTRS: u8 = 0x10;
const HAS_TARGET: u8 = 0x20;
const HAS_EXTENTS: u8 = 0x40;

fn encode_entry(out: &mut Vec<u8>, e: &PastEntry) -> Option<()> {
    let flag = |on: bool, bit: u8| if on { bit } else { 0 };
    let flags = flag(!e.xattrs.is_empty(), HAS_XATTRS)
        | flag(!e.link_target.is_empty(), HAS_TARGET)
        | flag(e.extents.is_some(), HAS_EXTENTS);
    out.push(kind_code(e.kind) | flags);
    put_text(out, e.name.as_encoded_bytes())?;
    out.extend_from_slice(&e.size.to_le_bytes());
    put_time(out, e.mtime);
    put_time(out, e.ctime);
    out.extend_from_slice(&e.inode.to_le_bytes());
    put_meta(out, &e.meta);
    if e.kind == Kind::Dir {
        let Some(Origin::Block(block)) = e.origin else { return None };
        out.extend_from_slice(&e.tree?.0);
        out.extend_from_slice(&block.offset.to_le_bytes());
        out.extend_from_slice(&block.length.to_le_bytes());
    }
    put_count(out, e.content.len())?;
    e.content.iter().for_each(|id| out.extend_from_slice(&id.0));
    if !e.xattrs.is_empty() {
        put_count(out, e.xattrs.len())?;
        for (name, value) in &e.xattrs {
            put_text(out, name.as_encoded_bytes())?;
            put_text(out, value)?;
        }
    }
    if !e.link_target.is_empty() {
        put_text(out, e.link_target.as_encoded_bytes())?;
    }
    if let Some(extents) = &e.extents {
        put_count(out, extents.len())?;
        for (start, end) in extents {
            out.extend_from_slice(&start.to_le_bytes());
            out.extend_from_slice(&end.to_le_bytes());
        }
    }
    Some(())
}

fn decode_entry(c: &mut Cursor<'_>) -> Option<PastEntry> {
    let tag = c.u8()?;
    let kind = kind_of(tag & 0x0f)?;
    let name = OsString::from_vec(c.text()?.to_vec());
    let (size, mtime, ctime, inode) = (c.u64()?, c.time()?, c.time()?, c.u64()?);
    let meta = c.meta()?;
    let (mut tree, mut origin) = (None, None);
    if kind == Kind::Dir {
        tree = Some(c.id()?);
        origin = Some(Origin::Block(Block { offset: c.u64()?, length: c.u32()? }));
    }
    let count = c.count()?;
    let (ids, _) = c.bytes(count.checked_mul(32)?)?.as_chunks::<32>();
    let content = ids.iter().map(|id| Id(*id)).collect();
    let mut xattrs = Vec::new();
    if tag & HAS_XATTRS != 0 {
        for _ in 0..c.count()? {
            xattrs.push((OsString::from_vec(c.text()?.to_vec()), c.text()?.to_vec()));
        }
    }
    let link_target =
        if tag & HAS_TARGET != 0 { OsString::from_vec(c.text()?.to_vec()) } else { OsString::new() };
    let mut extents = None;
    if tag & HAS_EXTENTS != 0 {
        let mut list = Extents::new();
        for _ in 0..c.count()? {
            list.push((c.u64()?, c.u64()?));
        }
        extents = Some(list);
    }
    Some(PastEntry {
        name,
        kind,
        size,
        mtime,
        ctime,
        inode,
        meta,
        content,
        xattrs,
        link_target,
        extents,
        tree,
        origin,
    })
}

fn decode_block(bytes: &[u8]) -> Option<Past> {
    let (body, sum) = bytes.split_last_chunk::<CHECKSUM>()?;
    if checksum(body) != *sum {
        return None;
    }
    let mut c = Cursor(body);
    let tree = Some(c.id()?);
    let count = c.count()?;
    let mut entries = Vec::with_capacity(count.min(body.len() / 40));
    for _ in 0..count {
        entries.push(decode_entry(&mut c)?);
    }
    Some(Past { tree, entries, block: None })
}

struct Tail {
    file: File,
    end: u64,
    /// Bytes of the blocks that this backup uses, old and new.
    live: u64,
    /// Blocks not written yet; they begin at `end - pending.len()`.
    pending: Vec<u8>,
    /// Nothing can be written (any more).
    broken: bool,
}

/// The file index of one tree, open for reading the past and writing the present.
pub(crate) struct FileIndex {
    path: PathBuf,
    identity: [u8; 32],
    /// The newest valid slot, if it describes the snapshot that was asked for.
    past: Option<Slot>,
    /// The file as it was opened: locked as long as this is in use.
    file: File,
    /// Where blocks of the past are read.
    source: File,
    /// Blocks of the past that could not be written, and where they would be.
    unwritten: (u64, Vec<u8>),
    /// A new file is written instead of appending to the old one.
    fresh: bool,
    /// Whether blocks of the past stay where they are.
    appends: bool,
    /// Blocks that cannot be written are kept in memory: a second pass needs them.
    keeps: bool,
    /// Nothing of it is to outlive this backup.
    scratch: bool,
    tail: Mutex<Tail>,
}

fn fresh_path(path: &Path) -> PathBuf {
    path.with_extension("new")
}

fn open_rw(path: &Path, truncate: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(truncate).mode(0o600).open(path)
}

/// Whether this open file is the one that the path names.
fn is_at(file: &File, path: &Path) -> bool {
    let id = |m: std::fs::Metadata| (m.dev(), m.ino());
    file.metadata().map(id).is_ok_and(|ours| std::fs::metadata(path).map(id).is_ok_and(|there| ours == there))
}

fn newest_slot(file: &File, identity: &[u8; 32]) -> Option<Slot> {
    let mut bytes = [0u8; 2 * SLOT];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let (slots, _) = bytes.as_chunks::<SLOT>();
    slots
        .iter()
        .filter_map(|s| Slot::decode(s))
        .filter(|s| s.identity == *identity)
        .max_by_key(|s| s.sequence)
}

impl FileIndex {
    /// Opens the index at `path`, making it where it is missing. Its past is used only if it is that of
    /// `expected_tree`. `None` when it cannot be used (no room, another backup has it): the backup works without.
    pub fn open(path: &Path, identity: [u8; 32], expected_tree: Option<Id>) -> Option<FileIndex> {
        let file = open_rw(path, false).ok()?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).ok()?;
        // Whoever had the lock may have put a new file in its place meanwhile: that one is not locked by us.
        if !is_at(&file, path) {
            return None;
        }
        let slot = newest_slot(&file, &identity).filter(|s| Some(s.tree) == expected_tree);
        let dead = slot.as_ref().map_or(0, |s| s.end.saturating_sub(BLOCKS_FROM).saturating_sub(s.live));
        let fresh = slot.as_ref().is_none_or(|s| dead > s.live + (1 << 20));
        let end = slot.as_ref().filter(|_| !fresh).map_or(BLOCKS_FROM, |s| s.end);
        let out = if fresh { open_rw(&fresh_path(path), true).ok()? } else { file.try_clone().ok()? };
        let tail = Tail { file: out, end, live: 0, pending: Vec::new(), broken: false };
        Some(FileIndex {
            path: path.to_owned(),
            fresh,
            appends: !fresh,
            ..Self::over(file, identity, slot, tail)?
        })
    }

    fn over(file: File, identity: [u8; 32], past: Option<Slot>, tail: Tail) -> Option<FileIndex> {
        Some(FileIndex {
            path: PathBuf::new(),
            identity,
            past,
            source: file.try_clone().ok()?,
            file,
            unwritten: (u64::MAX, Vec::new()),
            fresh: false,
            appends: true,
            keeps: false,
            scratch: false,
            tail: Mutex::new(tail),
        })
    }

    /// One without a name and without a past, for what a second pass needs to know.
    pub fn scratch(identity: [u8; 32]) -> Option<FileIndex> {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("backstay files", flags).ok()?);
        let out = file.try_clone().ok()?;
        let tail = Tail { file: out, end: BLOCKS_FROM, live: 0, pending: Vec::new(), broken: false };
        Some(FileIndex { scratch: true, keeps: true, ..Self::over(file, identity, None, tail)? })
    }

    /// The same, to be used by two passes: what is written is there for the second one, whatever happens.
    pub fn twice(self) -> FileIndex {
        FileIndex { keeps: true, ..self }
    }

    /// For another pass: what was written so far is now the past, with that root. None when it cannot be read back.
    pub fn again(self, tree: Id, root: Block, started: FileTime) -> Option<FileIndex> {
        let FileIndex { path, identity, past, file, fresh, scratch, unwritten, tail, .. } = self;
        let mut tail = tail.into_inner();
        tail.flush();
        let sequence = past.map_or(0, |s| s.sequence);
        let past = Slot { sequence, identity, started, tree, root, end: tail.end, live: tail.live };
        let source = tail.file.try_clone().ok()?;
        let unwritten = if tail.broken {
            let (from, mut bytes) = unwritten;
            let begin = tail.end.saturating_sub(u64::try_from(tail.pending.len()).unwrap_or(0));
            bytes.append(&mut tail.pending);
            (from.min(begin), bytes)
        } else {
            unwritten
        };
        tail.live = 0;
        let tail = Mutex::new(tail);
        let past = Some(past);
        let (appends, keeps) = (true, true);
        Some(FileIndex {
            path,
            identity,
            past,
            file,
            source,
            unwritten,
            fresh,
            appends,
            keeps,
            scratch,
            tail,
        })
    }

    /// Opens the index at `path` for reading only; nothing is made, locked or written. Blocks that another backup
    /// appends meanwhile are behind those of the past, and a file that it replaces stays open here.
    pub fn peek(path: &Path, identity: [u8; 32], expected_tree: Option<Id>) -> Option<FileIndex> {
        let file = File::open(path).ok()?;
        let slot = newest_slot(&file, &identity).filter(|s| Some(s.tree) == expected_tree)?;
        let out = file.try_clone().ok()?;
        let tail = Tail { file: out, end: slot.end, live: 0, pending: Vec::new(), broken: true };
        Self::over(file, identity, Some(slot), tail)
    }

    /// The slot of the past, if there is one.
    pub fn slot(&self) -> Option<&Slot> {
        self.past.as_ref()
    }

    /// Whether blocks of the past stay where they are.
    pub fn appends(&self) -> bool {
        self.appends
    }

    /// What the block says; none when it is damaged or not that of the tree.
    pub fn read(&self, block: Block, tree: &Id) -> Option<Past> {
        if block.length > BLOCK_MAX {
            return None;
        }
        let length = usize::try_from(block.length).ok()?;
        let mut past = match block.offset.checked_sub(self.unwritten.0) {
            Some(from) => {
                let from = usize::try_from(from).ok()?;
                decode_block(self.unwritten.1.get(from..from.checked_add(length)?)?)
            }
            None => {
                let mut bytes = vec![0u8; length];
                self.source.read_exact_at(&mut bytes, block.offset).ok()?;
                decode_block(&bytes)
            }
        }
        .filter(|p| p.tree.as_ref() == Some(tree))?;
        past.block = Some(block);
        Some(past)
    }

    /// Writes a folder's block; none when that is not possible (the index is then given up, not the backup).
    pub fn write(&self, tree: &Id, entries: &[PastEntry]) -> Option<Block> {
        let mut bytes = tree.0.to_vec();
        put_count(&mut bytes, entries.len())?;
        for entry in entries {
            encode_entry(&mut bytes, entry)?;
        }
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        let length = u32::try_from(bytes.len()).ok().filter(|l| *l <= BLOCK_MAX)?;
        let mut tail = self.tail.lock();
        if tail.broken && !self.keeps {
            return None;
        }
        let block = Block { offset: tail.end, length };
        tail.end += u64::from(length);
        tail.live += u64::from(length);
        tail.pending.extend_from_slice(&bytes);
        if tail.pending.len() >= 1 << 20 {
            tail.flush();
        }
        (!tail.broken || self.keeps).then_some(block)
    }

    /// Goes on using a block of the past where it is; only when [`FileIndex::appends`]. Blocks that are neither written
    /// nor kept are dead.
    pub fn keep(&self, block: Block) {
        self.tail.lock().live += u64::from(block.length);
    }

    /// Makes what was written the newest state: after the snapshot that it describes exists.
    pub fn commit(self, tree: Id, root: Block, started: FileTime) -> Option<()> {
        let mut tail = self.tail.lock();
        tail.flush();
        if tail.broken || self.scratch {
            return None;
        }
        let sequence = self.past.as_ref().map_or(0, |s| s.sequence) + 1;
        let identity = self.identity;
        let slot = Slot { sequence, identity, started, tree, root, end: tail.end, live: tail.live };
        let offset = if sequence.is_multiple_of(2) { 0 } else { SLOT as u64 };
        tail.file.write_all_at(&slot.encode(), offset).ok()?;
        if self.fresh {
            std::fs::rename(fresh_path(&self.path), &self.path).ok()?;
        }
        Some(())
    }
}

impl Tail {
    fn flush(&mut self) {
        if self.broken {
            return;
        }
        let at = self.end.saturating_sub(u64::try_from(self.pending.len()).unwrap_or(0));
        match self.file.write_all_at(&self.pending, at) {
            Ok(()) => self.pending.clear(),
            // Whoever keeps them needs them.
            Err(_) => self.broken = true,
        }
    }
}

#[cfg(test)]
mod tests;
