//! Saving what a reader gives: a dump that a program writes while it is stored.
//!
//! Invariants: a document is in the snapshot whole or not at all. An error of the reader ends only its document: what
//! was stored of it is in the vault as if it were left over, and others may rely on it. An error of the vault ends the
//! backup. Where content is cut does not depend on how it arrives, and the list of pieces is in the order of the stream,
//! whoever stored them.
//!
//! The calling thread reads and cuts; from the second batch on, others hash, compress and store, so that whoever writes
//! is not kept waiting. What waits is bounded: [`WAITING`] batches and one for each thread.

use std::io::Read;
use std::sync::Arc;

use backstay_model::{Code, Error, Result};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use parking_lot::Mutex;

use super::SnapshotWriter;
use super::session::{Session, Worker};
use crate::chunker::{Chunker, Sizes};
use crate::id::Id;

/// Bytes that are handed to another thread at once, unless two of the largest pieces are more.
const BATCH: usize = 1 << 20;
/// zstd's level, at most: whoever writes a stream holds a snapshot of a database meanwhile, so speed comes before the last few
/// per cent of size.
const LEVEL: i32 = 1;
/// Batches that wait for a thread.
const WAITING: usize = 4;

/// Whole pieces of a stream.
struct Batch {
    number: usize,
    bytes: Vec<u8>,
    lengths: Vec<usize>,
}

/// What was stored of a stream that is in no snapshot yet.
#[derive(Debug)]
pub struct SavedStream {
    content: Vec<Id>,
    size: u64,
}

/// Saves one stream, in the thread that calls it alone: slower than [`SnapshotWriter::save_stream`], and several at a time take little
/// memory.
pub struct StreamSaver {
    session: Arc<Session>,
    worker: Worker,
}

impl StreamSaver {
    /// Stores what a reader gives; errors as those of [`SnapshotWriter::save_stream`], in which `name` stands for the stream.
    pub fn save(
        mut self,
        name: &str,
        reader: &mut dyn Read,
        expected_bytes: u64,
    ) -> Result<Result<SavedStream>> {
        let chunker = Chunker::new(self.session.vault.master(), Sizes::for_stream(expected_bytes));
        let stored = self.store(&chunker, reader);
        told(&self.session, name, stored)
    }

    fn store(&mut self, chunker: &Chunker, reader: &mut dyn Read) -> Result<std::io::Result<SavedStream>> {
        let (give_back, spare) = unbounded();
        let mut stream = Stream { chunker, reader, spare, rest: Vec::new(), batches: 0, size: 0 };
        let lists: Mutex<Vec<Vec<Id>>> = Mutex::default();
        loop {
            self.session.go_on().or_else(|_stopped| self.session.check())?;
            let (batch, last) = match stream.next() {
                Ok(next) => next,
                Err(e) => return Ok(Err(e)),
            };
            store(&batch, &mut self.worker, &lists)?;
            if last {
                return Ok(Ok(SavedStream { content: in_order(lists), size: stream.size }));
            }
            // It waits for the next round.
            give_back.send(batch.bytes).unwrap_or_default();
        }
    }
}

/// An error of the vault ends the backup: whatever the caller does then, nothing is committed.
fn told<T>(session: &Session, name: &str, stored: Result<std::io::Result<T>>) -> Result<Result<T>> {
    match stored {
        Ok(stored) => Ok(stored.map_err(|e| of_reader(name, e))),
        Err(e) => {
            session.fail(e);
            session.check()?;
            Err(super::ended())
        }
    }
}

fn in_order(lists: Mutex<Vec<Vec<Id>>>) -> Vec<Id> {
    lists.into_inner().into_iter().flatten().collect()
}

impl SnapshotWriter {
    /// Saves what a reader gives as `name` (or `group/name`); `expected_bytes` decides how finely it is cut. Gives the
    /// bytes read.
    ///
    /// The outer error ends the backup. The inner one is the reader's ([`Error`] as it is, where that is what it gave):
    /// nothing of the document is in the snapshot, a document of that name that was saved before stays, and the backup
    /// can go on.
    pub fn save_stream(
        &mut self,
        name: &str,
        reader: &mut dyn Read,
        expected_bytes: u64,
    ) -> Result<Result<u64>> {
        let stored = self.store_stream(name, reader, expected_bytes)?;
        Ok(stored.map(|stored| {
            let size = stored.size;
            self.add_stream(name, stored);
            size
        }))
    }

    /// The same without a place in the snapshot: [`SnapshotWriter::add_stream`] gives it one. `name` stands in errors.
    pub fn store_stream(
        &self,
        name: &str,
        reader: &mut dyn Read,
        expected_bytes: u64,
    ) -> Result<Result<SavedStream>> {
        let chunker = Chunker::new(self.session.vault.master(), Sizes::for_stream(expected_bytes));
        let stored = self.store_by_threads(&chunker, reader).and_then(|stored| {
            self.session.check()?;
            Ok(stored)
        });
        told(&self.session, name, stored)
    }

    /// What saves a stream in a thread of its own, while the writer does something else. It must be gone before the commit.
    pub fn begin_stream(&self) -> Result<StreamSaver> {
        Ok(StreamSaver { session: Arc::clone(&self.session), worker: self.stream_worker()? })
    }

    /// Takes what a [`StreamSaver`] has stored into the snapshot, as [`SnapshotWriter::save_stream`] does.
    pub fn add_stream(&mut self, name: &str, stored: SavedStream) {
        self.add_document(name, stored.content, stored.size);
    }

    /// A worker that compresses lightly.
    fn stream_worker(&self) -> Result<Worker> {
        self.worker_of(self.session.level().min(LEVEL))
    }

    fn store_by_threads(
        &self,
        chunker: &Chunker,
        reader: &mut dyn Read,
    ) -> Result<std::io::Result<SavedStream>> {
        let lists: Mutex<Vec<Vec<Id>>> = Mutex::default();
        let (sender, receiver) = bounded(WAITING);
        let (give_back, spare) = unbounded();
        let mut stream = Stream { chunker, reader, spare, rest: Vec::new(), batches: 0, size: 0 };
        let read = std::thread::scope(|scope| -> Result<std::io::Result<()>> {
            let sender: Sender<Batch> = sender;
            // Given up once others have it: when they are gone, sending fails and does not wait.
            let mut receiver = Some(receiver);
            loop {
                self.session.go_on().or_else(|_stopped| self.session.check())?;
                let (batch, last) = match stream.next() {
                    Ok(next) => next,
                    Err(e) => return Ok(Err(e)),
                };
                if last && receiver.is_some() {
                    store(&batch, &mut self.stream_worker()?, &lists)?;
                    return Ok(Ok(()));
                }
                if let Some(receiver) = receiver.take() {
                    for _ in 0..crate::workers() {
                        let (worker, receiver, give_back) =
                            (self.stream_worker()?, receiver.clone(), give_back.clone());
                        let (session, lists) = (&*self.session, &lists);
                        scope.spawn(move || help(session, worker, &receiver, &give_back, lists));
                    }
                }
                sender.send(batch).map_err(|_ended| super::ended())?;
                if last {
                    return Ok(Ok(()));
                }
            }
        })?;
        Ok(read.map(|()| SavedStream { content: in_order(lists), size: stream.size }))
    }
}

/// The error of a reader as the caller gave it to the reader, if it did.
fn of_reader(name: &str, error: std::io::Error) -> Error {
    let failed = |e: std::io::Error| Error::new(Code::System, format!("Reading `{name}` failed")).because(e);
    if !error.get_ref().is_some_and(|inner| inner.is::<Error>()) {
        return failed(error);
    }
    match error.into_inner().map(|inner| inner.downcast::<Error>()) {
        Some(Ok(inner)) => *inner,
        _ => Error::new(Code::System, format!("Reading `{name}` failed")),
    }
}

/// A thread's share of a stream.
fn help(
    session: &Session,
    mut worker: Worker,
    receiver: &Receiver<Batch>,
    give_back: &Sender<Vec<u8>>,
    lists: &Mutex<Vec<Vec<Id>>>,
) {
    for batch in receiver {
        if session.stopped() {
            continue;
        }
        match store(&batch, &mut worker, lists) {
            // Nobody may want it any more.
            Ok(()) => give_back.send(batch.bytes).unwrap_or_default(),
            Err(e) => session.fail(e),
        }
    }
}

/// Stores the pieces of a batch and puts their ids where they belong.
fn store(batch: &Batch, worker: &mut Worker, lists: &Mutex<Vec<Vec<Id>>>) -> Result<()> {
    let mut ids = Vec::with_capacity(batch.lengths.len());
    let mut rest = batch.bytes.as_slice();
    for length in &batch.lengths {
        let (piece, after) = rest.split_at((*length).min(rest.len()));
        ids.push(worker.store_data(piece)?);
        rest = after;
    }
    let mut lists = lists.lock();
    if lists.len() <= batch.number {
        lists.resize_with(batch.number + 1, Vec::new);
    }
    if let Some(list) = lists.get_mut(batch.number) {
        *list = ids;
    }
    Ok(())
}

/// A stream that is cut into batches of pieces.
struct Stream<'r> {
    chunker: &'r Chunker,
    reader: &'r mut dyn Read,
    /// Buffers to be used again.
    spare: Receiver<Vec<u8>>,
    /// What was read and is in no batch yet.
    rest: Vec<u8>,
    batches: usize,
    size: u64,
}

impl Stream<'_> {
    /// The next batch, and whether it is the last one.
    fn next(&mut self) -> std::io::Result<(Batch, bool)> {
        let max = self.chunker.sizes().max;
        let room = BATCH.max(2 * max);
        let mut bytes = self.spare.try_recv().unwrap_or_default();
        bytes.clear();
        bytes.extend_from_slice(&self.rest);
        let mut filled = bytes.len();
        bytes.resize(room, 0);
        let mut last = false;
        while filled < room && !last {
            match self.reader.read(bytes.get_mut(filled..).unwrap_or_default()) {
                Ok(read) => {
                    filled += read;
                    self.size += u64::try_from(read).unwrap_or(0);
                    last = read == 0;
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        // What is cut must not depend on where a batch ends: the last piece waits until the largest would fit.
        let (mut whole, mut lengths) = (0, Vec::new());
        while filled > whole && (last || filled - whole >= max) {
            let length = self.chunker.cut(bytes.get(whole..filled).unwrap_or_default());
            lengths.push(length);
            whole += length;
        }
        self.rest.clear();
        self.rest.extend_from_slice(bytes.get(whole..filled).unwrap_or_default());
        let number = self.batches;
        self.batches += 1;
        Ok((Batch { number, bytes, lengths }, last))
    }
}
