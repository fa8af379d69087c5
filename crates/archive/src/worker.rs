//! What one packing thread does.
//!
//! Invariants: a file that changed while it was read is read again, at most [`TRIES`] times, then told as a problem. One
//! that only grew is taken at the length it had when it was opened.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use backstay_model::{Code, Error, Problem, ProblemKind, Result};
use backstay_tree::fs::Kind;
use sha2::{Digest as _, Sha256};

use crate::deflate::Packer;
use crate::index::Note;
use crate::pack::{Done, Ready, Shared, Task, WHOLE_MAX, head, record};
use crate::record::{Record, RecordKind};
use crate::source::{self, Details, Failure, Names, Opened, Steadiness, TreeItem, What};
use crate::zip::Method;
use crate::zip::write::Content;

/// How often a file that changes is read.
const TRIES: usize = 3;
/// A worker's read buffer is given back when it became larger than this.
const BUFFER_KEPT: usize = 2 << 20;

pub(crate) struct Worker<'a> {
    shared: &'a Shared<'a>,
    packer: Packer,
    buffer: Vec<u8>,
}

/// A problem with a path.
pub(crate) fn problem(path: &Path, kind: ProblemKind, detail: impl Into<String>) -> Problem {
    Problem { path: backstay_tree::path::escape(path.as_os_str()), kind, detail: detail.into() }
}

/// What is told when content is no longer what it was when it was opened.
pub(crate) fn unsteady(path: &Path, steadiness: Steadiness) -> Option<Problem> {
    match steadiness {
        Steadiness::Steady => None,
        Steadiness::Grew => Some(problem(path, ProblemKind::Grew, "It became longer while it was read")),
        Steadiness::Changed => Some(problem(path, ProblemKind::Changed, "It changed while it was read")),
    }
}

impl<'a> Worker<'a> {
    pub(crate) fn new(shared: &'a Shared<'a>) -> Result<Self> {
        let packer = Packer::new(shared.options.level)
            .map_err(|e| Error::new(Code::System, "Compression cannot be set up").because(e))?;
        Ok(Worker { shared, packer, buffer: Vec::new() })
    }

    pub(crate) fn run(&mut self, task: Task) -> Result<Done> {
        match task {
            Task::Batch(items) => self.batch(items),
            Task::Block { before, plain, last } => {
                let mut packed = self.shared.buffer();
                self.packer.block(&before, &plain, last, &mut packed).map_err(failed)?;
                self.shared.give_back(plain);
                Ok(Done::Block(packed))
            }
        }
    }

    fn batch(&mut self, items: Vec<TreeItem>) -> Result<Done> {
        let mut ready = Vec::with_capacity(items.len());
        let mut packed = self.shared.buffer();
        let (mut files, mut bytes) = (0, 0);
        for item in items {
            self.shared.cancel.check()?;
            match self.item(item, &mut packed)? {
                Some((entry, is_file)) => {
                    files += u64::from(is_file);
                    bytes += entry.content.size;
                    ready.push(entry);
                }
                None => continue,
            }
        }
        self.shared.progress.done(files, bytes);
        Ok(Done::Batch(ready, packed))
    }

    fn item(&mut self, mut item: TreeItem, packed: &mut Vec<u8>) -> Result<Option<(Ready, bool)>> {
        let what = std::mem::replace(&mut item.what, What::Symlink(Default::default(), nobody()));
        let record = match what {
            What::File { content, .. } => return self.file(&item, &*content, packed),
            What::Folder(details) => record(&item.path, RecordKind::Folder, details),
            What::Symlink(target, details) => {
                let mut record = record(&item.path, RecordKind::Symlink, details);
                record.size = target.len() as u64;
                record.target = Some(target);
                record
            }
            What::Special(kind, device, details) => {
                let Some(kind) = RecordKind::of(kind).filter(|k| !matches!(k.kind(), Kind::File | Kind::Dir))
                else {
                    self.shared.problem(problem(
                        &item.path,
                        ProblemKind::Socket,
                        "A socket has no content to save",
                    ));
                    return Ok(None);
                };
                Record { device, ..record(&item.path, kind, details) }
            }
        };
        let target = record.target.clone().unwrap_or_default();
        Ok(self.entry(record, item.names, target.as_os_str(), packed).map(|ready| (ready, false)))
    }

    /// An entry whose content is the target of a link, or empty.
    fn entry(
        &mut self,
        record: Record,
        names: Names,
        content: &OsStr,
        packed: &mut Vec<u8>,
    ) -> Option<Ready> {
        let head = head(self.shared, &record.path, record.kind, &record.details);
        if head.is_none() && matches!(record.kind, RecordKind::Folder | RecordKind::Symlink) {
            return None;
        }
        let start = packed.len();
        let bytes = content.as_bytes();
        packed.extend_from_slice(bytes);
        Some(Ready {
            head,
            method: Method::Stored,
            content: Content { size: bytes.len() as u64, crc: libdeflater::crc32(bytes) },
            sha256: Sha256::digest(bytes).into(),
            packed: start..packed.len(),
            note: Note::of(self.shared, record, names),
        })
    }

    fn file(
        &mut self,
        item: &TreeItem,
        content: &dyn source::Content,
        packed: &mut Vec<u8>,
    ) -> Result<Option<(Ready, bool)>> {
        let (opened, size) = match self.read(&item.path, content) {
            Ok(read) => read,
            Err(Failure::Fatal(e)) => return Err(e),
            Err(Failure::Item(kind, detail)) => {
                self.shared.problem(problem(&item.path, kind, detail));
                return Ok(None);
            }
        };
        let details = opened.details.unwrap_or_else(nobody);
        let mut record = record(&item.path, RecordKind::File, details);
        record.sparse = opened.sparse.map(|sparse| clipped(sparse, size as u64));
        record.size = size as u64;
        let Some(head) = head(self.shared, &record.path, record.kind, &record.details) else {
            return Ok(None);
        };
        let plain = self.buffer.get(..size).unwrap_or_default();
        let content = Content { size: size as u64, crc: libdeflater::crc32(plain) };
        let sha256 = Sha256::digest(plain).into();
        let start = packed.len();
        let method = self.packer.whole(plain, packed).map_err(failed)?;
        let names = if opened.same { item.names.clone() } else { Names::One };
        let note = Note::of(self.shared, record, names);
        if self.buffer.capacity() > BUFFER_KEPT {
            self.buffer = Vec::new();
        }
        let packed = start..packed.len();
        Ok(Some((Ready { head: Some(head), method, content, sha256, packed, note }, true)))
    }

    /// Reads a whole file into the buffer.
    fn read(&mut self, path: &Path, content: &dyn source::Content) -> Result<(Opened, usize), Failure> {
        let mut attempt = 1;
        loop {
            let mut opened = content.open()?;
            let wanted = opened.size.unwrap_or(WHOLE_MAX);
            // Much larger than when it was listed: what fits is taken, and it is told.
            let size = usize::try_from(wanted.min(WHOLE_MAX)).unwrap_or(usize::MAX);
            if self.buffer.len() < size {
                self.buffer.resize(size, 0);
            }
            let room = self.buffer.get_mut(..size).unwrap_or_default();
            let read = opened.reader.read(room)?;
            let mut steadiness = opened.reader.steadiness(read as u64);
            if wanted > WHOLE_MAX {
                steadiness = Steadiness::Changed;
            }
            if steadiness == Steadiness::Changed && attempt < TRIES {
                attempt += 1;
                continue;
            }
            if let Some(told) = unsteady(path, steadiness) {
                self.shared.problem(told);
            }
            return Ok((opened, read));
        }
    }
}

fn failed(e: std::io::Error) -> Error {
    Error::new(Code::Internal, "Compression failed").because(e)
}

/// Ranges of data within the first `size` bytes: of a file that became shorter while it was read.
pub(crate) fn clipped(mut sparse: Vec<(u64, u64)>, size: u64) -> Vec<(u64, u64)> {
    sparse.retain(|(start, _)| *start < size);
    if let Some((_, end)) = sparse.last_mut() {
        *end = size.min(*end);
    }
    sparse
}

/// Details of what has none.
pub(crate) fn nobody() -> Details {
    Details {
        mode: 0o600,
        uid: 0,
        gid: 0,
        user: None,
        group: None,
        mtime: Default::default(),
        xattrs: Vec::new(),
    }
}
