//! From items to the bytes of their entries, in parallel and in order.
//!
//! One thread walks the source and reads what is large; workers read, hash and compress batches of small files and the
//! blocks of large ones; the calling thread puts the results into their order and writes them.
//!
//! Invariants: every piece of work has a number, results are written in the order of the numbers. Memory is bounded by
//! [`Budget`]: a piece is paid for before it is given out and the price returned when it was written, so the walk waits
//! for the slowest of all, be it the place that is written to. The first fatal error ends all threads. What one item
//! alone suffers from is a problem of the result.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use backstay_model::{Cancel, Code, Error, Problem, ProblemKind, Progress, Result};
use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use crate::budget::Budget;
use crate::index::{Index, Note};
use crate::names;
use crate::record::{Record, RecordKind};
use crate::source::{Details, Item, RootItem, Sink, Source, TreeItem, What};
use crate::worker::{Worker, problem};
use crate::zip::Method;
use crate::zip::write::{Container, Content, Head};

/// Files up to this size are packed whole.
pub(crate) const WHOLE_MAX: u64 = 16 << 20;
/// Content of a batch of files, roughly, in bytes.
const BATCH_BYTES: u64 = 1 << 20;
/// Most items of a batch.
const BATCH_ITEMS: usize = 128;
/// Bytes of a large file that are packed at a time.
pub(crate) const BLOCK: usize = 1 << 20;
/// Pieces that may be on their way however small they are: a part of the budget each.
const PIECES: u64 = 64;

/// How archives are packed.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of deflate, 1 (fast) to 9 (small).
    pub level: u8,
    /// Threads that compress.
    pub workers: usize,
    /// Bytes that may be in memory on their way, beside the index of the archive and some 2 MiB a worker.
    pub budget: u64,
}

impl Default for Options {
    fn default() -> Self {
        let workers = std::thread::available_parallelism().map_or(2, usize::from).min(16);
        Options { level: 3, workers, budget: 96 << 20 }
    }
}

/// An entry, or only a record, that is ready to be written.
pub(crate) struct Ready {
    /// None: it has no entry in the zip.
    pub head: Option<Head>,
    pub method: Method,
    pub content: Content,
    pub sha256: [u8; 32],
    /// Where its packed bytes lie in those of the batch.
    pub packed: Range<usize>,
    pub note: Note,
}

/// Work for the workers.
pub(crate) enum Task {
    Batch(Vec<TreeItem>),
    Block { before: Vec<u8>, plain: Vec<u8>, last: bool },
}

/// What the writer gets.
pub(crate) enum Done {
    Batch(Vec<Ready>, Vec<u8>),
    Begin(Head, Option<u64>),
    Block(Vec<u8>),
    End { content: Content, sha256: [u8; 32], note: Note },
    Failed(Error),
}

/// The place of a piece in the order, and what it costs.
#[derive(Clone, Copy)]
pub(crate) struct Ticket {
    number: u64,
    cost: u64,
}

pub(crate) type Results = Sender<(Ticket, Done)>;

/// What all threads share.
pub(crate) struct Shared<'a> {
    pub options: &'a Options,
    pub budget: Budget,
    pub problems: Mutex<Vec<Problem>>,
    pub progress: &'a dyn Progress,
    pub cancel: &'a Cancel,
    /// Buffers that were written and can be used again: fresh memory costs more than what it is used for.
    pub spare: Mutex<Vec<Vec<u8>>>,
}

/// Buffers that are kept, and the largest that is.
const SPARE_MAX: usize = 16;
const SPARE_BYTES: usize = 3 << 20;

impl Shared<'_> {
    /// An empty buffer.
    pub(crate) fn buffer(&self) -> Vec<u8> {
        self.spare.lock().pop().unwrap_or_default()
    }

    /// Takes back a buffer.
    pub(crate) fn give_back(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut spare = self.spare.lock();
        if spare.len() < SPARE_MAX && buffer.capacity() <= SPARE_BYTES {
            spare.push(buffer);
        }
    }

    pub(crate) fn problem(&self, problem: Problem) {
        self.progress.problem(&problem);
        self.problems.lock().push(problem);
    }
}

/// Packs everything that a source gives into the archive. Problems are appended to `index`.
pub(crate) fn pack<W: Write>(
    source: &dyn Source,
    container: &mut Container<W>,
    index: &mut Index,
    options: &Options,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<()> {
    let budget = Budget::new(options.budget);
    let shared =
        Shared { options, budget, problems: Mutex::default(), progress, cancel, spare: Mutex::default() };
    let (tasks, todo) = unbounded();
    let (results, done) = unbounded();
    let written = std::thread::scope(|scope| {
        for _ in 0..options.workers.max(1) {
            let (todo, results, shared) = (todo.clone(), results.clone(), &shared);
            scope.spawn(move || work(shared, &todo, &results));
        }
        let shared = &shared;
        scope.spawn(move || {
            let mut feed = Feed { shared, tasks, results, number: 0, batch: Vec::new(), bytes: 0 };
            let walked = source.walk(&mut feed).and_then(|()| feed.flush());
            if let Err(e) = walked {
                let ticket = Ticket { number: feed.number, cost: 0 };
                // Where nobody listens any more an earlier error is on its way.
                feed.results.send((ticket, Done::Failed(e))).ok();
            }
        });
        let written = write(shared, &done, container, index);
        shared.budget.close();
        written
    });
    index.problems.append(&mut shared.problems.into_inner());
    written
}

fn work(shared: &Shared<'_>, todo: &Receiver<(Ticket, Task)>, results: &Results) {
    let mut worker = match Worker::new(shared) {
        Ok(worker) => worker,
        Err(e) => {
            // A failure is looked at whatever its number.
            results.send((Ticket { number: 0, cost: 0 }, Done::Failed(e))).ok();
            return;
        }
    };
    for (ticket, task) in todo {
        if shared.budget.is_closed() {
            return;
        }
        let done = worker.run(task).unwrap_or_else(Done::Failed);
        if results.send((ticket, done)).is_err() {
            return;
        }
    }
}

/// Takes results as they come and writes them in their order.
fn write<W: Write>(
    shared: &Shared<'_>,
    done: &Receiver<(Ticket, Done)>,
    container: &mut Container<W>,
    index: &mut Index,
) -> Result<()> {
    let mut early: BTreeMap<u64, (u64, Done)> = BTreeMap::new();
    let mut next = 0;
    for (ticket, result) in done {
        shared.cancel.check()?;
        if let Done::Failed(e) = result {
            return Err(e);
        }
        early.insert(ticket.number, (ticket.cost, result));
        while let Some((cost, result)) = early.remove(&next) {
            put(shared, result, container, index)?;
            shared.budget.give(cost);
            next += 1;
        }
    }
    if early.is_empty() {
        Ok(())
    } else {
        Err(Error::new(Code::Internal, "A piece of the archive was lost on its way"))
    }
}

fn put<W: Write>(
    shared: &Shared<'_>,
    result: Done,
    container: &mut Container<W>,
    index: &mut Index,
) -> Result<()> {
    match result {
        Done::Batch(entries, bytes) => {
            for ready in entries {
                if let Some(head) = ready.head {
                    let packed = bytes.get(ready.packed).unwrap_or_default();
                    let placed =
                        container.entry(&head, ready.method, ready.content, packed).map_err(writing)?;
                    index.add(head.name, ready.content.size, ready.sha256, placed.crc)?;
                }
                index.note(ready.note, &ready.sha256)?;
            }
            shared.give_back(bytes);
        }
        Done::Begin(head, size) => {
            index.open = head.name.clone();
            container.begin(head, size).map_err(writing)?;
        }
        Done::Block(bytes) => {
            container.data(&bytes).map_err(writing)?;
            shared.give_back(bytes);
        }
        Done::End { content, sha256, note } => {
            let placed = container.end(content).map_err(writing)?;
            let name = std::mem::take(&mut index.open);
            index.add(name, content.size, sha256, placed.crc)?;
            index.note(note, &sha256)?;
        }
        Done::Failed(e) => return Err(e),
    }
    Ok(())
}

/// The error of a write to the archive. One that a storage made comes out as it went in.
pub(crate) fn writing(e: std::io::Error) -> Error {
    match e.downcast::<Error>() {
        Ok(error) => error,
        Err(e) if e.kind() == std::io::ErrorKind::StorageFull => {
            Error::new(Code::StorageFull, "No space is left for the archive").because(e)
        }
        Err(e) => Error::new(Code::StorageFailed, "The archive cannot be written").because(e),
    }
}

/// The walking thread's end.
pub(crate) struct Feed<'a> {
    pub shared: &'a Shared<'a>,
    tasks: Sender<(Ticket, Task)>,
    results: Results,
    number: u64,
    batch: Vec<TreeItem>,
    bytes: u64,
}

impl Feed<'_> {
    fn ticket(&mut self, cost: u64) -> Result<Ticket> {
        self.shared.cancel.check()?;
        let cost = cost.max(self.shared.options.budget / PIECES);
        if !self.shared.budget.take(cost) {
            return Err(Error::new(Code::Cancelled, "The archive could not be written"));
        }
        let number = self.number;
        self.number += 1;
        Ok(Ticket { number, cost })
    }

    fn task(&mut self, cost: u64, task: Task) -> Result<()> {
        let ticket = self.ticket(cost)?;
        self.tasks.send((ticket, task)).map_err(|_closed| gone())
    }

    fn result(&mut self, done: Done) -> Result<()> {
        let ticket = self.ticket(0)?;
        self.results.send((ticket, done)).map_err(|_closed| gone())
    }

    fn flush(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        // Plain and packed.
        let cost = 2 * std::mem::take(&mut self.bytes);
        self.task(cost, Task::Batch(batch))
    }

    pub(crate) fn begin(&mut self, head: Head, size: Option<u64>) -> Result<()> {
        self.result(Done::Begin(head, size))
    }

    pub(crate) fn block(&mut self, before: Vec<u8>, plain: Vec<u8>, last: bool) -> Result<()> {
        let cost = 2 * plain.len() as u64;
        self.task(cost, Task::Block { before, plain, last })
    }

    pub(crate) fn end(&mut self, content: Content, sha256: [u8; 32], note: Note) -> Result<()> {
        self.result(Done::End { content, sha256, note })
    }
}

fn gone() -> Error {
    Error::new(Code::Cancelled, "The archive could not be written")
}

impl Sink for Feed<'_> {
    fn item(&mut self, item: Item) -> Result<()> {
        match item {
            Item::Tree(TreeItem { path, what: What::File { size, content }, names }) if size > WHOLE_MAX => {
                self.flush()?;
                crate::stream::file(self, &path, &*content, names)
            }
            Item::Tree(item) => {
                if let What::File { size, .. } = &item.what {
                    if self.bytes.saturating_add(*size) > BATCH_BYTES {
                        self.flush()?;
                    }
                    self.bytes = self.bytes.saturating_add(*size);
                }
                self.batch.push(item);
                if self.batch.len() >= BATCH_ITEMS { self.flush() } else { Ok(()) }
            }
            Item::Root(RootItem { name, mtime, content }) => {
                self.flush()?;
                crate::stream::root(self, &name, mtime, &*content)
            }
        }
    }

    fn problem(&mut self, problem: Problem) {
        self.shared.problem(problem);
    }

    fn check(&self) -> Result<()> {
        self.shared.cancel.check()?;
        if self.shared.budget.is_closed() { Err(gone()) } else { Ok(()) }
    }
}

/// The folder of the home in an archive.
pub(crate) const CONTENT: &str = "fs/";

/// The head of a home's entry; none when its name does not fit a zip, which is told.
pub(crate) fn head(shared: &Shared<'_>, path: &Path, kind: RecordKind, details: &Details) -> Option<Head> {
    let path_bytes = path.as_os_str().as_bytes();
    let mut name = Vec::with_capacity(path_bytes.len() + 4);
    name.extend_from_slice(CONTENT.as_bytes());
    name.extend_from_slice(path_bytes);
    let bits = match kind {
        RecordKind::File => 0o100_000,
        RecordKind::Folder => 0o040_000,
        RecordKind::Symlink => 0o120_000,
        RecordKind::Fifo | RecordKind::Char | RecordKind::Block => return None,
    };
    if kind == RecordKind::Folder && !path_bytes.is_empty() {
        name.push(b'/');
    }
    // What a reader would refuse must not be written.
    let refused = if path_bytes.is_empty() { Ok(()) } else { names::check(path_bytes) };
    if refused.is_err() || name.len() > crate::zip::write::NAME_MAX {
        shared.problem(problem(path, ProblemKind::Unreadable, "Its path is too long for an archive"));
        return None;
    }
    let owner = (details.uid, details.gid);
    Some(Head { name, mode: bits | details.mode & 0o7777, mtime: details.mtime, owner })
}

/// A record without content.
pub(crate) fn record(path: &Path, kind: RecordKind, details: Details) -> Record {
    Record {
        path: path.to_owned(),
        kind,
        details,
        device: 0,
        target: None,
        link: None,
        sparse: None,
        size: 0,
        incomplete: false,
    }
}
