//! A file's content as a stream that is pulled.
//!
//! Invariants: what is given is authenticated, in order and complete, or the read fails: at the end the length is
//! compared with what the node says. What is not in its place is looked for elsewhere, as a restore does. Memory: one
//! window of a pack ([`WINDOW`]), and of a distant storage as many more as it is asked for at once. The threads that
//! read ahead only fetch; they end when the stream is dropped.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::thread::JoinHandle;

use backstay_model::{Code, Error, Result};
use backstay_tree::fs::Kind;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::source::{Opened, Scratch, Source, plain_part};
use crate::blob::{BlobKind, Place};
use crate::id::Id;
use crate::node::Node;
use crate::reader::Reader;
use crate::vault::{Folder, Vault};

/// Most bytes of a pack that are read at once, unless one blob is larger.
const WINDOW: u64 = 4 << 20;
/// Bytes between two pieces that are read along rather than asked for anew.
const GAP: u64 = 64 << 10;

/// Pieces that lie one behind the other in a pack.
struct Window {
    pack: Id,
    start: u64,
    end: u64,
    pieces: VecDeque<(Id, Place)>,
}

impl Window {
    fn new(id: Id, place: Place) -> Self {
        let start = u64::from(place.offset);
        let end = start + u64::from(place.length);
        Window { pack: place.pack, start, end, pieces: VecDeque::from([(id, place)]) }
    }

    /// Takes a piece that lies behind the others and near enough.
    fn take(&mut self, id: Id, place: Place) -> bool {
        let (from, to) = (u64::from(place.offset), u64::from(place.offset) + u64::from(place.length));
        let near = place.pack == self.pack && from >= self.end && from <= self.end + GAP;
        if near && to - self.start <= WINDOW {
            self.end = to;
            self.pieces.push_back((id, place));
            return true;
        }
        false
    }

    fn length(&self) -> usize {
        usize::try_from(self.end - self.start).unwrap_or(usize::MAX)
    }
}

type Fetched = Result<Vec<u8>>;

/// A range of a pack that is wanted, and who wants it.
struct Wanted {
    pack: Id,
    start: u64,
    length: usize,
    answer: Sender<Fetched>,
}

/// Threads that fetch.
struct Ahead {
    sender: Option<Sender<Wanted>>,
    threads: Vec<JoinHandle<()>>,
}

impl Ahead {
    fn new(vault: &Vault, threads: usize) -> Self {
        let (sender, receiver) = unbounded::<Wanted>();
        let start = |_| {
            let (vault, receiver) = (vault.clone(), receiver.clone());
            std::thread::spawn(move || {
                for wanted in receiver {
                    let name = Folder::Data.object(&wanted.pack);
                    let fetched = vault.storage().get_range(&name, wanted.start, wanted.length);
                    // The stream may be gone.
                    wanted.answer.send(fetched).unwrap_or_default();
                }
            })
        };
        Ahead { sender: Some(sender), threads: (0..threads).map(start).collect() }
    }

    fn ask(&self, window: &Window) -> Receiver<Fetched> {
        let (answer, answered) = bounded(1);
        let wanted = Wanted { pack: window.pack, start: window.start, length: window.length(), answer };
        if let Some(sender) = &self.sender {
            // Threads that are gone give no answer, which is told as one.
            sender.send(wanted).unwrap_or_default();
        }
        answered
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        drop(self.sender.take());
        for thread in self.threads.drain(..) {
            thread.join().unwrap_or_default();
        }
    }
}

/// The content of a file, read as it is pulled. Errors are the vault's [`Error`] inside an [`io::Error`].
pub struct Content<'r> {
    source: Source<'r>,
    scratch: Scratch,
    ids: std::vec::IntoIter<Id>,
    /// A window that was begun when the one before it was full.
    begun: Option<Window>,
    ahead: Option<Ahead>,
    /// So many windows are asked for at once.
    depth: usize,
    asked: VecDeque<(Window, Option<Receiver<Fetched>>)>,
    window: Option<(Window, Vec<u8>)>,
    plain: Vec<u8>,
    /// Bytes of `plain` that were given.
    at: usize,
    given: u64,
    size: u64,
    failed: bool,
}

impl Reader {
    /// A file's content as a stream; on a distant storage it is read ahead. `InvalidValue` for what is no file.
    pub fn stream(&self, node: &Node) -> Result<Content<'_>> {
        if node.kind != Some(Kind::File) {
            return Err(Error::new(Code::InvalidValue, format!("`{}` is not a file", node.name.display())));
        }
        let vault = self.vault();
        let ahead = vault.storage().is_distant() && node.content.len() > 1;
        let depth = if ahead { vault.at_once() } else { 1 };
        Ok(Content {
            source: Source::new(self),
            scratch: Scratch::new()?,
            ids: node.content.clone().into_iter(),
            begun: None,
            ahead: ahead.then(|| Ahead::new(vault, depth)),
            depth,
            asked: VecDeque::new(),
            window: None,
            plain: Vec::new(),
            at: 0,
            given: 0,
            size: node.size,
            failed: false,
        })
    }
}

impl Content<'_> {
    /// The next pieces that lie together; none at the end.
    fn plan(&mut self) -> Result<Option<Window>> {
        let mut window = self.begun.take();
        for id in self.ids.by_ref() {
            let place = self.source.place(BlobKind::Data, &id).ok_or_else(|| {
                Error::new(Code::VaultDamaged, format!("The blob {} is not in the index", id.short()))
            })?;
            match &mut window {
                None => window = Some(Window::new(id, place)),
                Some(open) => {
                    if !open.take(id, place) {
                        self.begun = Some(Window::new(id, place));
                        break;
                    }
                }
            }
        }
        Ok(window)
    }

    /// Asks for what comes next and waits for the first of it; none at the end.
    fn next_window(&mut self) -> Result<Option<(Window, Vec<u8>)>> {
        while self.asked.len() < self.depth {
            let Some(window) = self.plan()? else { break };
            let answer = self.ahead.as_ref().map(|ahead| ahead.ask(&window));
            self.asked.push_back((window, answer));
        }
        let Some((window, answer)) = self.asked.pop_front() else { return Ok(None) };
        let fetched = match answer {
            Some(answer) => answer.recv().unwrap_or_else(|_gone| Ok(Vec::new())),
            None => self.source.range(&window.pack, window.start, window.length()),
        };
        // What could not be read in this way is looked for piece by piece.
        Ok(Some((window, fetched.unwrap_or_default())))
    }

    /// Opens the next piece; `false` at the end.
    fn next_piece(&mut self) -> Result<bool> {
        let (id, place, sealed) = loop {
            if let Some((window, bytes)) = &mut self.window
                && let Some((id, place)) = window.pieces.pop_front()
            {
                let from = usize::try_from(u64::from(place.offset) - window.start).unwrap_or(usize::MAX);
                let to = from.saturating_add(usize::try_from(place.length).unwrap_or(usize::MAX));
                break (id, place, bytes.get_mut(from..to));
            }
            self.window = self.next_window()?;
            if self.window.is_none() {
                return Ok(false);
            }
        };
        self.at = 0;
        self.plain.clear();
        if let Some(sealed) = sealed {
            match self.source.open(BlobKind::Data, &id, place.uncompressed, sealed, &mut self.scratch) {
                Ok(Opened::InPlace) => {
                    self.plain.extend_from_slice(plain_part(sealed));
                    return Ok(true);
                }
                Ok(Opened::InScratch) => {
                    std::mem::swap(&mut self.plain, &mut self.scratch.plain);
                    return Ok(true);
                }
                Err(_) => {}
            }
        }
        self.source.blob(BlobKind::Data, &id, &mut self.scratch)?;
        std::mem::swap(&mut self.plain, &mut self.scratch.plain);
        Ok(true)
    }

    fn fail(&mut self, error: Error) -> io::Error {
        self.failed = true;
        io::Error::other(error)
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        if self.failed {
            return Err(io::Error::other("The content could not be read"));
        }
        loop {
            let rest = self.plain.get(self.at..).unwrap_or_default();
            let count = rest.len().min(buf.len());
            if let (1.., Some(room), Some(bytes)) = (count, buf.get_mut(..count), rest.get(..count)) {
                room.copy_from_slice(bytes);
                self.at += count;
                self.given += u64::try_from(count).unwrap_or(0);
                return Ok(count);
            }
            match self.next_piece() {
                Ok(true) => {}
                Ok(false) if self.given == self.size => return Ok(0),
                Ok(false) => {
                    let message = format!("The content has {} bytes instead of {}", self.given, self.size);
                    return Err(self.fail(Error::new(Code::VaultDamaged, message)));
                }
                Err(e) => return Err(self.fail(e)),
            }
        }
    }
}
