//! The workers that write files.
//!
//! Invariants: a file whose content is one blob is made only after that blob was found right. A larger one is made
//! first, private (0600), and removed again when a piece of it cannot be had or written: under its name there is
//! the whole file or nothing when the restore returns. (A killed restore may leave a private part of one; the
//! caller knows that it did not end.) Memory of a worker: one window, one blob. Open at once: one file per worker,
//! one per large file in progress, of which there are at most two per worker. Lock: one per large file, held while
//! it is made.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use backstay_model::Progress;
use backstay_model::{ProblemKind, Result};
use parking_lot::Mutex;

use super::folders::{Handles, Target};
use super::jobs::{Job, Progressing, Queue, WINDOW};
use super::plan::{File, Large, Piece, Plan};
use super::source::{Opened, Scratch, Source, is_fatal, plain_part};
use crate::blob::{BlobKind, DATA_MAX};
use crate::id::Id;

/// A large file while its slices are written.
#[derive(Default)]
pub(super) struct Shared {
    progress: Progressing,
    handle: Mutex<Option<Arc<OwnedFd>>>,
}

impl Shared {
    pub(super) fn new(slices: usize) -> Self {
        Shared { progress: Progressing::new(slices), handle: Mutex::default() }
    }
}

/// What is the same for all workers.
pub(super) struct Site<'a> {
    pub(super) source: &'a Source<'a>,
    pub(super) plan: &'a Plan,
    pub(super) target: &'a Target<'a>,
    pub(super) queue: Queue,
    /// By number in [`Plan::large`].
    pub(super) large: Vec<Shared>,
    pub(super) progress: &'a dyn Progress,
    pub(super) files: AtomicU64,
    pub(super) bytes: AtomicU64,
}

impl Site<'_> {
    fn done(&self, files: u64, bytes: u64) {
        self.files.fetch_add(files, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.progress.done(files, bytes);
    }

    /// The pieces of the plan that a job names.
    fn pack(&self, number: u32) -> Id {
        usize::try_from(number).ok().and_then(|n| self.plan.packs.get(n)).copied().unwrap_or_default()
    }

    fn lost(&self, file: &File, why: impl Into<String>) {
        self.target.problems.add(&self.plan.path(file.folder, &file.name), ProblemKind::Lost, why);
    }
}

pub(super) struct Worker<'a> {
    site: &'a Site<'a>,
    number: usize,
    handles: Handles<'a>,
    scratch: Scratch,
    /// Ids of blobs of zeros, by length.
    zeros: HashMap<u64, Id>,
}

/// Whether the work of the worker goes on. The reason why not is in the target.
type Going = bool;

impl<'a> Worker<'a> {
    pub(super) fn new(site: &'a Site<'a>, number: usize) -> Result<Self> {
        let (handles, scratch) = (Handles::new(site.target), Scratch::new()?);
        Ok(Worker { site, number, handles, scratch, zeros: HashMap::new() })
    }

    /// Takes jobs until there are no more.
    pub(super) fn run(mut self) {
        let site = self.site;
        while let Some(job) = site.queue.next(self.number) {
            let going = match job {
                Job::Window(range) => self.window(site.plan.small.get(range.clone()).unwrap_or_default()),
                Job::Slice(number, range) => self.slice(*number, range.clone()),
                Job::Empty(range) => self.empty(site.plan.empty.get(range.clone()).unwrap_or_default()),
            };
            if !going {
                return;
            }
        }
    }

    /// Looked at for every blob.
    fn may_go_on(&self) -> Going {
        !self.site.target.is_stopped()
    }

    // --- files of one blob

    fn window(&mut self, pieces: &'a [Piece]) -> Going {
        let mut read = read_pieces(self.site, pieces.iter());
        let mut rest = pieces;
        while let Some(first) = rest.first() {
            if !self.may_go_on() {
                return false;
            }
            let same = |p: &&Piece| (p.offset, p.length, p.id) == (first.offset, first.length, first.id);
            let (these, after) = rest.split_at(rest.iter().take_while(same).count());
            rest = after;
            match self.load(first, read.as_mut()) {
                Ok(plain) => {
                    let plain = plain.of(&self.scratch, read.as_ref());
                    these.iter().for_each(|p| small_file(self.site, &mut self.handles, p.file, plain));
                }
                Err(e) if is_fatal(&e) => {
                    self.site.target.stop(e);
                    return false;
                }
                Err(e) => {
                    for file in these.iter().filter_map(|p| self.site.plan.file(p.file)) {
                        self.site.lost(file, e.to_string());
                    }
                }
            }
        }
        true
    }

    /// Opens a piece, from the window or, where that does not work, on its own.
    fn load(&mut self, piece: &Piece, window: Option<&mut Window>) -> Result<Plain> {
        let source = self.site.source;
        if let Some((bytes, range)) = window.and_then(|window| window.sealed(piece)) {
            let opened =
                source.open(BlobKind::Data, &piece.id, piece.uncompressed(), bytes, &mut self.scratch);
            match opened {
                Ok(Opened::InPlace) => return Ok(Plain::InWindow(range)),
                Ok(Opened::InScratch) => return Ok(Plain::InScratch),
                Err(_) => {}
            }
        }
        source.blob(BlobKind::Data, &piece.id, &mut self.scratch)?;
        Ok(Plain::InScratch)
    }

    fn empty(&mut self, files: &[u32]) -> Going {
        for number in files {
            if !self.may_go_on() {
                return false;
            }
            small_file(self.site, &mut self.handles, *number, &[]);
        }
        true
    }

    // --- large files

    fn slice(&mut self, number: usize, range: Range<usize>) -> Going {
        let site = self.site;
        let large = site.plan.large.get(number).zip(site.large.get(number));
        let Some((large, shared)) = large else { return true };
        let Some(file) = site.plan.file(large.file) else { return true };
        let pieces = site.plan.pieces.get(range).unwrap_or_default();
        if site.target.is_usable(file.folder) && !shared.progress.has_failed() {
            self.write_slice(file, large, shared, pieces);
        }
        if shared.progress.slice_is_done() {
            self.finish_large(file, large, shared);
        }
        self.may_go_on()
    }

    fn write_slice(&mut self, file: &File, large: &'a Large, shared: &Shared, pieces: &[(Piece, u64)]) {
        let handle = match self.large_handle(file, shared) {
            Ok(handle) => handle,
            Err(e) => {
                if shared.progress.fail() {
                    self.site.target.failed("write it", file.folder, &file.name, e);
                }
                return;
            }
        };
        let mut rest = pieces;
        while !rest.is_empty() && !shared.progress.has_failed() {
            let (together, after) = rest.split_at(contiguous(rest));
            rest = after;
            if !self.write_run(file, large, shared, &handle, together) {
                shared.progress.fail();
                return;
            }
        }
    }

    /// Writes pieces that lie behind each other in a pack. False: the file will not be whole, and that was told.
    fn write_run(
        &mut self,
        file: &File,
        large: &'a Large,
        shared: &Shared,
        handle: &OwnedFd,
        run: &[(Piece, u64)],
    ) -> Going {
        let site = self.site;
        let mut window = None;
        for (n, (piece, at)) in run.iter().enumerate() {
            if !self.may_go_on() {
                return false;
            }
            let length = plain_length(piece);
            let holes = Holes { extents: large.extents.as_deref(), start: *at, end: at + length };
            if holes.is_all() && self.is_zeros(piece, length) {
                site.done(0, length);
                continue;
            }
            if window.is_none() {
                let rest = run.get(n..).unwrap_or_default();
                window = read_pieces(site, rest.iter().map(|(piece, _)| piece));
            }
            let plain = match self.load(piece, window.as_mut()) {
                Ok(plain) => plain,
                Err(e) => {
                    if is_fatal(&e) {
                        site.target.stop(e);
                    } else if shared.progress.fail() {
                        site.lost(file, e.to_string());
                    }
                    return false;
                }
            };
            let plain = plain.of(&self.scratch, window.as_ref());
            if plain.len() as u64 != length {
                if shared.progress.fail() {
                    site.lost(file, "A piece of its content has another length than the index says");
                }
                return false;
            }
            if let Err(e) = write_around(site, handle, plain, &holes) {
                if shared.progress.fail() {
                    site.target.failed("write it", file.folder, &file.name, e);
                }
                return false;
            }
            site.done(0, length);
        }
        true
    }

    fn large_handle(&mut self, file: &File, shared: &Shared) -> io::Result<Arc<OwnedFd>> {
        let mut handle = shared.handle.lock();
        if let Some(handle) = &*handle {
            return Ok(Arc::clone(handle));
        }
        let dir = self.handles.get(file.folder)?;
        let new = Arc::new(self.site.target.root.fs().create_file(dir.as_fd(), &file.name)?);
        *handle = Some(Arc::clone(&new));
        Ok(new)
    }

    /// After the last slice: the metadata, or the end of what cannot be whole.
    fn finish_large(&mut self, file: &File, large: &Large, shared: &Shared) {
        let site = self.site;
        let Some(handle) = shared.handle.lock().take() else { return };
        let done = self.handles.get(file.folder).and_then(|dir| {
            if shared.progress.has_failed() || site.target.is_stopped() {
                remove(site, dir.as_fd(), &file.name);
                return Ok(false);
            }
            if large.extents.is_some()
                && let Err(e) = site.target.root.fs().truncate(handle.as_fd(), file.size)
            {
                remove(site, dir.as_fd(), &file.name);
                return Err(e);
            }
            dir.finish_file(site.target, handle.as_fd(), file);
            Ok(true)
        });
        match done {
            Ok(true) => site.done(1, 0),
            Ok(false) => {}
            Err(e) => site.target.failed("write it", file.folder, &file.name, e),
        }
    }

    /// Whether a piece holds nothing but zeros, by its id.
    fn is_zeros(&mut self, piece: &Piece, length: u64) -> bool {
        let Ok(size) = usize::try_from(length.min(DATA_MAX)) else { return false };
        *self.zeros.entry(length).or_insert_with(|| Id::of(&vec![0u8; size])) == piece.id
    }
}

/// Removes what cannot be whole. When that fails too the file is empty or private, and told.
fn remove(site: &Site<'_>, dir: std::os::fd::BorrowedFd<'_>, name: &OsStr) {
    site.target.root.fs().unlink(dir, name).ok();
}

fn plain_length(piece: &Piece) -> u64 {
    let sealed = u64::from(piece.length).saturating_sub(crate::crypto::OVERHEAD as u64);
    piece.uncompressed().map_or(sealed, u64::from)
}

/// How many of the first pieces lie behind each other in one pack and are one read.
fn contiguous(pieces: &[(Piece, u64)]) -> usize {
    let Some((first, _)) = pieces.first() else { return 0 };
    let follows = |pair: &&[(Piece, u64)]| match pair {
        [(before, _), (piece, _)] => {
            piece.pack == first.pack
                && u64::from(piece.offset) == before.end()
                && piece.end().saturating_sub(u64::from(first.offset)) <= WINDOW
        }
        _ => false,
    };
    1 + pieces.windows(2).take_while(follows).count()
}

/// A part of a pack in memory.
struct Window {
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// A piece's sealed bytes, and where they are.
    fn sealed(&mut self, piece: &Piece) -> Option<(&mut [u8], Range<usize>)> {
        let from = usize::try_from(u64::from(piece.offset).checked_sub(self.start)?).ok()?;
        let range = from..from.checked_add(usize::try_from(piece.length).ok()?)?;
        Some((self.bytes.get_mut(range.clone())?, range))
    }
}

/// Where the plain content of a piece is.
enum Plain {
    InWindow(Range<usize>),
    InScratch,
}

impl Plain {
    fn of<'p>(&self, scratch: &'p Scratch, window: Option<&'p Window>) -> &'p [u8] {
        match self {
            Plain::InScratch => &scratch.plain,
            Plain::InWindow(range) => {
                plain_part(window.and_then(|w| w.bytes.get(range.clone())).unwrap_or_default())
            }
        }
    }
}

/// The bytes of a pack from the first to the last of these pieces. None when they cannot be read: each piece is then
/// tried on its own.
fn read_pieces<'p>(site: &Site<'_>, pieces: impl Iterator<Item = &'p Piece> + Clone) -> Option<Window> {
    let pack = pieces.clone().next()?.pack;
    let start = pieces.clone().map(|p| u64::from(p.offset)).min()?;
    let length = pieces.map(Piece::end).max()?.checked_sub(start)?;
    if length > DATA_MAX + DATA_MAX / 64 {
        return None;
    }
    let bytes = site.source.range(&site.pack(pack), start, usize::try_from(length).ok()?).ok()?;
    Some(Window { start, bytes })
}

/// Makes a file that is one piece, or empty.
fn small_file(site: &Site<'_>, handles: &mut Handles<'_>, number: u32, plain: &[u8]) {
    let Some(file) = site.plan.file(number) else { return };
    if !site.target.is_usable(file.folder) {
        return;
    }
    // A plan is made of what the index claims; another place of the blob may tell another length.
    if plain.len() as u64 != file.size {
        let why = format!("It should have {} bytes, its content has {}", file.size, plain.len());
        return site.lost(file, why);
    }
    let fs = site.target.root.fs();
    let made = handles.get(file.folder).and_then(|dir| {
        let handle = fs.create_file(dir.as_fd(), &file.name)?;
        if !plain.is_empty()
            && let Err(e) = fs.write_at(handle.as_fd(), plain, 0)
        {
            remove(site, dir.as_fd(), &file.name);
            return Err(e);
        }
        dir.finish_file(site.target, handle.as_fd(), file);
        Ok(())
    });
    match made {
        Ok(()) => site.done(1, file.size),
        Err(e) => site.target.failed("write it", file.folder, &file.name, e),
    }
}

/// The part of a file that a piece fills, and where in it the file has data.
struct Holes<'e> {
    extents: Option<&'e [(u64, u64)]>,
    start: u64,
    end: u64,
}

impl Holes<'_> {
    /// The data ranges within the piece, in order.
    fn data(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let all = [(self.start, self.end)];
        let whole = self.extents.is_none().then_some(all).into_iter().flatten();
        let list = self.extents.unwrap_or_default();
        let from = list.partition_point(|(_, end)| *end <= self.start);
        let cut = list.get(from..).unwrap_or_default().iter().take_while(|(start, _)| *start < self.end);
        whole.chain(cut.map(|(start, end)| ((*start).max(self.start), (*end).min(self.end))))
    }

    fn is_all(&self) -> bool {
        self.data().next().is_none()
    }
}

/// Writes a piece, but not its holes. What is no hole after all, having bytes that are not zero, is written too: the
/// content is the truth.
fn write_around(site: &Site<'_>, handle: &OwnedFd, plain: &[u8], holes: &Holes<'_>) -> io::Result<()> {
    let fs = site.target.root.fs();
    let part = |from: u64, to: u64| -> &[u8] {
        let range = usize::try_from(from.saturating_sub(holes.start))
            .ok()
            .zip(usize::try_from(to.saturating_sub(holes.start)).ok());
        range.and_then(|(from, to)| plain.get(from..to)).unwrap_or_default()
    };
    let mut at = holes.start;
    for (start, end) in holes.data().chain([(holes.end, holes.end)]) {
        if start > at && part(at, start).iter().any(|byte| *byte != 0) {
            fs.write_at(handle.as_fd(), part(at, start), at)?;
        }
        let start = start.max(at);
        if end > start {
            fs.write_at(handle.as_fd(), part(start, end), start)?;
        }
        at = at.max(end);
    }
    Ok(())
}
