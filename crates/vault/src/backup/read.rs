//! Reading files and storing their content.
//!
//! Invariants: a file's metadata is that of the opened file; it is looked at again after reading, and a file that
//! changed meanwhile is read again, at most [`TRIES`] times, then told as a problem. A file that only grew is taken
//! at the length it had when it was opened. Holes are not read.
//!
//! A large file is read by one thread and its pieces are stored by all that are idle; what waits is bounded.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use backstay_model::{ProblemKind, Result};
use backstay_tree::fs::{Kind, Stat};
use backstay_tree::{open_regular, sparse};
use parking_lot::Mutex;

use super::again::{SQLITE, Substitute};
use super::folder::{Folder, State, doubtful, entry};
use super::past::{Extents, PastEntry};
use super::session::Worker;
use super::walk::{Task, Walk};
use crate::id::Id;

/// How often a file that changes is read.
const TRIES: usize = 3;
/// Files up to this size are read whole.
const WHOLE_MAX: usize = 4 << 20;
/// How much of a larger file is read at a time: the largest piece and some more.
const WINDOW: usize = 6 << 20;
/// Most bytes of pieces that wait for a worker.
const LOOSE_MAX: usize = 2 * WINDOW;
/// Holes from this size on are skipped; smaller ones are read as the zeros they are.
const HOLE_MIN: u64 = 1 << 20;
/// Most ranges of a sparse file that are remembered.
const EXTENTS_MAX: usize = 10_000;

/// A large file whose pieces are stored by several threads.
pub(crate) struct Large {
    folder: Arc<Folder>,
    position: usize,
    /// As it was opened.
    stat: Stat,
    /// What is written of it.
    noted: Stat,
    name: OsString,
    xattrs: Vec<(OsString, Vec<u8>)>,
    extents: Mutex<Option<Extents>>,
    pieces: Mutex<Vec<Vec<Id>>>,
    /// Threads that still work on it, the reading one among them.
    pending: AtomicUsize,
    read: Mutex<u64>,
}

/// Where a file is.
struct Place<'p> {
    folder: &'p Arc<Folder>,
    position: usize,
    dir: BorrowedFd<'p>,
    name: &'p OsStr,
}

/// A file that is open.
struct Opened {
    file: OwnedFd,
    stat: Stat,
    /// What is written of the entry.
    noted: Stat,
    xattrs: Vec<(OsString, Vec<u8>)>,
}

/// What became of a file.
enum Outcome {
    Read(Box<PastEntry>, Stat),
    /// Others finish it.
    Shared,
}

/// How a file's content compares with what was expected when it was opened.
#[derive(PartialEq, Eq)]
enum Steadiness {
    Steady,
    Grew,
    Changed,
}

fn steadiness(before: &Stat, after: &Stat, read: u64) -> Steadiness {
    if read < before.size {
        Steadiness::Changed
    } else if before.mtime == after.mtime && before.ctime == after.ctime && before.size == after.size {
        Steadiness::Steady
    } else if after.size > before.size {
        Steadiness::Grew
    } else {
        Steadiness::Changed
    }
}

impl Walk<'_> {
    /// Reads some files of a folder.
    pub fn files(
        &self,
        folder: &Arc<Folder>,
        handle: BorrowedFd<'_>,
        positions: &[usize],
        worker: &mut Worker,
    ) -> Result<()> {
        for position in positions {
            self.session.go_on()?;
            let listed = {
                let inner = folder.inner.lock();
                inner.items.get(*position).map(|i| (i.name.clone(), i.stat, i.substitute.clone()))
            };
            let Some((name, stat, substitute)) = listed else { continue };
            let place = Place { folder, position: *position, dir: handle, name: &name };
            let substitute = substitute.as_deref().map(|s| (s, &stat));
            match self.file(&place, substitute, worker)? {
                Ok(Outcome::Read(entry, stat)) => self.file_done(folder, *position, stat, entry),
                Ok(Outcome::Shared) => {}
                Err(error) => self.lost(folder, *position, stat, &name, &error),
            }
        }
        self.complete(Arc::clone(folder), worker)
    }

    fn file_done(&self, folder: &Folder, position: usize, stat: Stat, entry: Box<PastEntry>) {
        self.note_done(1, entry.size);
        folder.set(position, stat, State::Ready(entry));
    }

    /// A file to be read: where its bytes are, what they are like, and what is written of the entry.
    fn opened(&self, place: &Place<'_>) -> io::Result<Opened> {
        let Place { folder, dir, name, .. } = place;
        let (file, stat) = open_regular(&*self.fs, *dir, name, self.device)?;
        let xattrs = self.fs.xattrs(file.as_fd());
        let (xattrs, noted) = self.attributes(xattrs, &stat, &|| folder.show(name));
        Ok(Opened { file, stat, noted, xattrs })
    }

    /// The same where the bytes are those of another file. The entry's own file is not opened: it is in use, and who
    /// closes a file gives up the locks that his process has on it.
    fn stand_in(&self, place: &Place<'_>, substitute: &Substitute, live: &Stat) -> io::Result<Opened> {
        let Place { folder, dir, name, .. } = place;
        let unusable = |why: String| io::Error::other(format!("What is to be saved in its place: {why}"));
        let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(&substitute.content);
        let file = OwnedFd::from(file.map_err(|e| unusable(e.to_string()))?);
        let stat = self.fs.stat_handle(file.as_fd())?;
        if stat.kind != Kind::File {
            return Err(unusable("It is no regular file".to_owned()));
        }
        let xattrs = match self.fs.xattrs_at(*dir, name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(e),
            xattrs => xattrs,
        };
        let (xattrs, noted) = self.attributes(xattrs, live, &|| folder.show(name));
        self.report.lock().substituted.push(folder.path(name));
        Ok(Opened { file, stat, noted: doubtful(&noted), xattrs })
    }

    /// The outer error ends the backup, the inner one is the file's own.
    fn file(
        &self,
        place: &Place<'_>,
        substitute: Option<(&Substitute, &Stat)>,
        worker: &mut Worker,
    ) -> Result<io::Result<Outcome>> {
        let Place { folder, position, name, .. } = *place;
        for attempt in 1.. {
            let opened = match substitute {
                None => self.opened(place),
                Some((substitute, live)) => self.stand_in(place, substitute, live),
            };
            let Opened { file, stat, noted, xattrs } = match opened {
                Ok(opened) => opened,
                Err(e) => return Ok(Err(e)),
            };
            let last = attempt >= TRIES || (attempt > 1 && stat.size > 64 << 20);
            let size = usize::try_from(stat.size).unwrap_or(usize::MAX);
            let extents = match self.extents(file.as_fd(), &stat) {
                Ok(extents) => extents,
                Err(e) => return Ok(Err(e)),
            };
            let (outcome, read) = if size <= WHOLE_MAX && is_whole(extents.as_ref(), stat.size) {
                match self.small(file.as_fd(), size, worker)? {
                    Ok((content, read)) => {
                        self.look_at(folder, name, worker.buffer.get(..size).unwrap_or_default());
                        let entry = entry(name.to_owned(), &noted);
                        let entry = PastEntry { content, xattrs, extents, size: read, ..entry };
                        (Outcome::Read(Box::new(entry), noted), read)
                    }
                    Err(e) => return Ok(Err(e)),
                }
            } else {
                let large = self.large(folder, position, name, (stat, noted), xattrs);
                let read = self.read_large(&large, file.as_fd(), extents.as_ref(), worker)?;
                *large.extents.lock() = extents;
                match self.settle_large(&large, file.as_fd(), read, last, worker)? {
                    Ok(Some(done)) => return Ok(Ok(done)),
                    Ok(None) => continue,
                    Err(e) => return Ok(Err(e)),
                }
            };
            let after = match self.fs.stat_handle(file.as_fd()) {
                Ok(after) => after,
                Err(e) => return Ok(Err(e)),
            };
            match steadiness(&stat, &after, read) {
                Steadiness::Steady => return Ok(Ok(outcome)),
                Steadiness::Grew => self.grew(folder, name, &stat),
                Steadiness::Changed if !last => continue,
                Steadiness::Changed => self.changed(folder, name),
            }
            return Ok(Ok(outcome));
        }
        Ok(Err(io::Error::other("Not read")))
    }

    /// Notes a file that begins like a SQLite database.
    fn look_at(&self, folder: &Folder, name: &OsStr, begin: &[u8]) {
        if begin.starts_with(SQLITE) {
            self.report.lock().sqlite.push(folder.path(name));
        }
    }

    fn grew(&self, folder: &Folder, name: &OsStr, stat: &Stat) {
        let detail = format!("It grew while it was read; the first {} bytes were saved", stat.size);
        self.problem(folder.show(name), ProblemKind::Grew, detail);
    }

    fn changed(&self, folder: &Folder, name: &OsStr) {
        let detail = "It changed each time it was read; what was saved may mix old and new";
        self.problem(folder.show(name), ProblemKind::Changed, detail);
    }

    /// A file that fits into the worker's buffer: read at once, cut, stored.
    #[allow(clippy::type_complexity)]
    fn small(
        &self,
        file: BorrowedFd<'_>,
        size: usize,
        worker: &mut Worker,
    ) -> Result<io::Result<(Vec<Id>, u64)>> {
        if size == 0 {
            return Ok(Ok((Vec::new(), 0)));
        }
        let mut buffer = std::mem::take(&mut worker.buffer);
        if buffer.len() < size {
            buffer.resize(size.next_multiple_of(64 << 10), 0);
        }
        let read = self.fs.read_at(file, buffer.get_mut(..size).unwrap_or_default(), 0);
        let result = match read {
            Ok(read) => {
                let content = self.store_all(buffer.get(..read).unwrap_or_default(), worker)?;
                Ok((content, u64::try_from(read).unwrap_or(0)))
            }
            Err(e) => Err(e),
        };
        worker.buffer = buffer;
        Ok(result)
    }

    fn store_all(&self, mut data: &[u8], worker: &mut Worker) -> Result<Vec<Id>> {
        let mut ids = Vec::with_capacity(1);
        while !data.is_empty() {
            let (piece, rest) = data.split_at(self.session.chunker.cut(data).min(data.len()));
            ids.push(worker.store_data(piece)?);
            data = rest;
        }
        Ok(ids)
    }

    // --- large files

    fn large(
        &self,
        folder: &Arc<Folder>,
        position: usize,
        name: &OsStr,
        (stat, noted): (Stat, Stat),
        xattrs: Vec<(OsString, Vec<u8>)>,
    ) -> Arc<Large> {
        Arc::new(Large {
            folder: Arc::clone(folder),
            position,
            stat,
            noted,
            name: name.to_owned(),
            xattrs,
            extents: Mutex::new(None),
            pieces: Mutex::new(Vec::new()),
            pending: AtomicUsize::new(1),
            read: Mutex::new(0),
        })
    }

    /// The ranges of data of a file that may have holes. A file without any can look so too, where the file system
    /// compresses: the answer is remembered, so that it is not read again to learn it.
    fn extents(&self, file: BorrowedFd<'_>, stat: &Stat) -> io::Result<Option<Extents>> {
        if !self.has_holes(stat) {
            return Ok(None);
        }
        sparse::extents(&*self.fs, file, stat.size, EXTENTS_MAX).map(Some)
    }

    /// Reads all ranges of data; gives how many bytes of the file were accounted for.
    fn read_large(
        &self,
        large: &Arc<Large>,
        file: BorrowedFd<'_>,
        extents: Option<&Extents>,
        worker: &mut Worker,
    ) -> Result<io::Result<u64>> {
        let size = large.stat.size;
        let segments = extents.map_or_else(|| vec![(0, size)], |found| without_small_holes(found));
        let mut at = 0;
        for (start, end) in segments {
            self.zeros(large, start - at, worker)?;
            match self.segment(large, file, start, end, worker)? {
                Ok(reached) if reached < end => return Ok(Ok(reached)),
                Ok(_) => at = end,
                Err(e) => return Ok(Err(e)),
            }
        }
        self.zeros(large, size - at, worker)?;
        Ok(Ok(size))
    }

    /// Stores `[start, end)` of a file; gives where it stopped, `end` unless the file is shorter now.
    fn segment(
        &self,
        large: &Arc<Large>,
        file: BorrowedFd<'_>,
        start: u64,
        end: u64,
        worker: &mut Worker,
    ) -> Result<io::Result<u64>> {
        let max = self.session.chunker.sizes().max;
        let (mut at, mut window, mut filled) = (start, self.window(), 0);
        loop {
            self.session.go_on()?;
            let wanted = usize::try_from(end - at).unwrap_or(WINDOW).min(WINDOW - filled);
            let room = window.get_mut(filled..filled + wanted).unwrap_or_default();
            let read = match self.fs.read_at(file, room, at) {
                Ok(read) => read,
                Err(e) => return Ok(Err(e)),
            };
            if at == 0 {
                self.look_at(&large.folder, &large.name, room.get(..read).unwrap_or_default());
            }
            at += u64::try_from(read).unwrap_or(0);
            filled += read;
            let last = read < wanted || at >= end;
            // What is cut must not depend on where a window ends: the last piece waits until the largest would fit.
            let mut whole = 0;
            while filled > whole && (last || filled - whole >= max) {
                whole += self.session.chunker.cut(window.get(whole..filled).unwrap_or_default());
            }
            let rest = window.get(whole..filled).unwrap_or_default().to_vec();
            self.hand_out(large, &mut window, whole, worker)?;
            if last {
                self.windows.lock().push(window);
                return Ok(Ok(at));
            }
            window.get_mut(..rest.len()).unwrap_or_default().copy_from_slice(&rest);
            filled = rest.len();
        }
    }

    fn window(&self) -> Vec<u8> {
        self.windows.lock().pop().unwrap_or_else(|| vec![0u8; WINDOW])
    }

    /// Stores the first `length` bytes of a window (whole pieces), here or by an idle thread.
    fn hand_out(
        &self,
        large: &Arc<Large>,
        window: &mut Vec<u8>,
        length: usize,
        worker: &mut Worker,
    ) -> Result<()> {
        let number = {
            let mut pieces = large.pieces.lock();
            pieces.push(Vec::new());
            pieces.len() - 1
        };
        if self.queue.has_idle() && self.loose.load(Ordering::Relaxed) + length <= LOOSE_MAX {
            self.loose.fetch_add(length, Ordering::Relaxed);
            large.pending.fetch_add(1, Ordering::AcqRel);
            let data = std::mem::replace(window, self.window());
            self.queue.push([Task::Pieces { large: Arc::clone(large), number, data, length }]);
            return Ok(());
        }
        self.pieces(large, number, window.get(..length).unwrap_or_default(), worker)
    }

    /// Stores pieces of a large file.
    pub fn pieces(&self, large: &Large, number: usize, data: &[u8], worker: &mut Worker) -> Result<()> {
        let ids = self.store_all(data, worker)?;
        if let Some(slot) = large.pieces.lock().get_mut(number) {
            *slot = ids;
        }
        Ok(())
    }

    fn zeros(&self, large: &Large, mut length: u64, worker: &mut Worker) -> Result<()> {
        if length == 0 {
            return Ok(());
        }
        let max = self.session.chunker.sizes().max;
        let full = u64::try_from(max).unwrap_or(u64::MAX);
        let mut ids = Vec::new();
        while length > 0 {
            let now = length.min(full);
            let known = self.zero_piece.get().filter(|_| now == full);
            ids.push(match known {
                Some(id) => *id,
                None => {
                    let id = worker.store_data(&vec![0u8; usize::try_from(now).unwrap_or(max)])?;
                    if now == full {
                        self.zero_piece.get_or_init(|| id);
                    }
                    id
                }
            });
            length -= now;
        }
        large.pieces.lock().push(ids);
        Ok(())
    }

    /// After reading: decides whether what was read counts. `None`: read it again.
    fn settle_large(
        &self,
        large: &Arc<Large>,
        file: BorrowedFd<'_>,
        read: io::Result<u64>,
        last: bool,
        worker: &mut Worker,
    ) -> Result<io::Result<Option<Outcome>>> {
        let read = match read.and_then(|read| Ok((read, self.fs.stat_handle(file)?))) {
            Ok((read, after)) => {
                match steadiness(&large.stat, &after, read) {
                    Steadiness::Steady => {}
                    Steadiness::Grew => self.grew(&large.folder, &large.name, &large.stat),
                    // The reading thread keeps its share, so pieces still under way deliver nothing.
                    Steadiness::Changed if !last => return Ok(Ok(None)),
                    Steadiness::Changed => self.changed(&large.folder, &large.name),
                }
                read
            }
            Err(e) => return Ok(Err(e)),
        };
        *large.read.lock() = read;
        // The folder waits for this file until its last piece is stored.
        large.folder.pending.fetch_add(1, Ordering::AcqRel);
        self.piece_done(large, worker)?;
        Ok(Ok(Some(Outcome::Shared)))
    }

    /// One thread fewer works on a large file; the last one delivers it.
    pub fn piece_done(&self, large: &Arc<Large>, worker: &mut Worker) -> Result<()> {
        if large.pending.fetch_sub(1, Ordering::AcqRel) != 1 {
            return Ok(());
        }
        let content: Vec<Id> = std::mem::take(&mut *large.pieces.lock()).into_iter().flatten().collect();
        let size = *large.read.lock();
        let entry = PastEntry {
            content,
            size,
            xattrs: large.xattrs.clone(),
            extents: large.extents.lock().take(),
            ..entry(large.name.clone(), &large.noted)
        };
        self.file_done(&large.folder, large.position, large.noted, Box::new(entry));
        self.complete(Arc::clone(&large.folder), worker)
    }
}

/// Whether a file has no holes.
pub(crate) fn is_whole(extents: Option<&Extents>, size: u64) -> bool {
    extents.is_none_or(|e| *e == [(0, size)])
}

/// Ranges of data with the holes between them that are worth skipping.
pub(crate) fn without_small_holes(extents: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = Vec::with_capacity(extents.len());
    for (start, end) in extents {
        match out.last_mut() {
            Some((_, before)) if start - *before < HOLE_MIN => *before = *end,
            _ => out.push((*start, *end)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_holes_are_read_and_large_ones_are_not() {
        let far = 10 << 20;
        assert_eq!(
            without_small_holes(&[(0, 4096), (8192, 12288), (far, far + 1)]),
            [(0, 12288), (far, far + 1)]
        );
        assert_eq!(without_small_holes(&[]), []);
    }
}
