//! Objects of unknown or great length, sent in pieces side by side.
//!
//! * Nothing is begun until the first piece is full: what fits into one piece is put with one request.
//! * Memory: pieces on their way hold at most [`IN_FLIGHT`] bytes (or one piece, where that is larger) and one more piece is
//!   being filled. Pieces are 8 MiB for the first thousand and double with every thousand, so that the ten thousand
//!   that all services allow hold 8 TB; up to 56 GB no piece is larger than 64 MiB.
//! * An upload that is not committed is given up when it is dropped, after what is on its way has ended, so that no piece
//!   arrives afterwards. A killed process leaves its pieces to [`super::Remote::sweep`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};

use backstay_model::{Code, Error, Result};
use bytes::Bytes;

use super::service::{Piece, Write};
use super::{Inner, mark, runtime};
use crate::{Put, Upload};

const MIB: u64 = 1 << 20;
/// The first pieces.
const FIRST: u64 = 8 * MIB;
/// So many pieces an upload may have.
const PIECES: u32 = 10_000;
/// So many bytes may be on their way.
const IN_FLIGHT: u64 = 64 * MIB;

/// The size of a piece by its number.
fn piece_size(number: u32, expected: Option<u64>) -> u64 {
    let grown = FIRST << (number / 1000).min(12);
    // A little room, should the length have been told a bit too small.
    let needed = expected.unwrap_or(0).div_ceil(u64::from(PIECES) * 9 / 10).div_ceil(MIB) * MIB;
    grown.max(needed)
}

/// An upload in the making.
pub(crate) struct Parts {
    inner: Arc<Inner>,
    name: String,
    key: String,
    mark: String,
    mode: Put,
    expected: Option<u64>,
    /// The upload, once it is begun.
    id: Option<String>,
    buffer: Vec<u8>,
    offset: u64,
    number: u32,
    /// Pieces on their way, the oldest first, with their lengths.
    in_flight: VecDeque<(u64, Receiver<Result<String>>)>,
    in_flight_bytes: u64,
    sent: Vec<String>,
    /// Whether a piece was lost, so that the rest must never become an object.
    failed: bool,
}

impl Parts {
    /// An upload to a name, of a length that may be known.
    pub fn begin(inner: Arc<Inner>, name: &str, mode: Put, expected: Option<u64>) -> Result<Self> {
        Ok(Parts {
            key: inner.key(name),
            name: name.to_owned(),
            mark: mark()?,
            inner,
            mode,
            expected,
            id: None,
            buffer: Vec::new(),
            offset: 0,
            number: 0,
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            sent: Vec::new(),
            failed: false,
        })
    }

    fn size_of_piece(&self) -> usize {
        usize::try_from(piece_size(self.number, self.expected)).unwrap_or(usize::MAX)
    }

    /// The upload's id; begins it where that has not been done.
    fn id(&mut self) -> Result<String> {
        if let Some(id) = &self.id {
            return Ok(id.clone());
        }
        let inner = Arc::clone(&self.inner);
        let (name, key, mark, mode) = (self.name.clone(), self.key.clone(), self.mark.clone(), self.mode);
        let id = runtime::wait(async move {
            // Better told now than after an hour of sending; the condition is checked again by the commit.
            if mode == Put::IfAbsent {
                match inner.size(&name).await {
                    Ok(_) => return Err(inner.explain.exists(&name)),
                    Err(e) if e.code() == Code::ObjectNotFound => {}
                    Err(e) => return Err(e),
                }
            }
            let write = Write { key: &key, mode, mark: &mark };
            inner.retried("write", &name, |_| inner.service.begin(write)).await
        })?;
        self.id = Some(id.clone());
        Ok(id)
    }

    /// Takes what is in the buffer as the next piece.
    fn next_piece(&mut self) -> Piece {
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        let piece = Piece { number: self.number, offset: self.offset, bytes, again: false };
        self.number += 1;
        self.offset += piece.bytes.len() as u64;
        piece
    }

    /// Sends the buffer as a piece, once there is room for it on the way.
    fn send(&mut self) -> Result<()> {
        if self.number >= PIECES {
            return Err(Error::new(
                Code::LimitExceeded,
                format!("{} is larger than an upload of {PIECES} pieces can be", self.name),
            ));
        }
        let id = self.id()?;
        let piece = self.next_piece();
        let len = piece.bytes.len() as u64;
        while !self.in_flight.is_empty()
            && (self.inner.service.is_sequential() || self.in_flight_bytes + len > IN_FLIGHT)
        {
            self.arrived()?;
        }
        let (done, result) = sync_channel(1);
        let (inner, key, name) = (Arc::clone(&self.inner), self.key.clone(), self.name.clone());
        runtime::get()?.spawn(async move {
            let send = |again| inner.service.piece(&key, &id, Piece { again, ..piece.clone() });
            // Nobody waits when the upload was dropped with the process.
            let _ended = done.send(inner.retried("write", &name, send).await);
        });
        self.in_flight.push_back((len, result));
        self.in_flight_bytes += len;
        Ok(())
    }

    /// Waits for the oldest piece on its way.
    fn arrived(&mut self) -> Result<()> {
        let Some((len, result)) = self.in_flight.pop_front() else { return Ok(()) };
        self.in_flight_bytes -= len;
        let sent = result.recv().map_err(|e| {
            Error::new(Code::Internal, "A piece of an upload ended unexpectedly").because(e)
        })??;
        self.sent.push(sent);
        Ok(())
    }

    fn finish(&mut self) -> Result<u64> {
        if self.id.is_none() {
            let (inner, name, mode) = (Arc::clone(&self.inner), self.name.clone(), self.mode);
            let bytes = Bytes::from(std::mem::take(&mut self.buffer));
            let size = bytes.len() as u64;
            return runtime::wait(async move { inner.put(&name, bytes, mode).await }).map(|()| size);
        }
        let id = self.id()?;
        let mut tail = None;
        if self.inner.service.is_sequential() {
            tail = Some(self.next_piece());
        } else if !self.buffer.is_empty() {
            self.send()?;
        }
        while !self.in_flight.is_empty() {
            self.arrived()?;
        }
        let inner = Arc::clone(&self.inner);
        let (name, key, mark, mode) = (self.name.clone(), self.key.clone(), self.mark.clone(), self.mode);
        let sent = std::mem::take(&mut self.sent);
        runtime::wait(async move {
            let write = Write { key: &key, mode, mark: &mark };
            let made = AtomicU32::new(0);
            let commit = || {
                let again = made.fetch_add(1, Ordering::Relaxed) > 0;
                let tail = tail.clone().map(|piece| Piece { again, ..piece });
                inner.service.commit(write, &id, &sent, tail)
            };
            inner.written(&name, write, commit).await
        })?;
        self.id = None;
        Ok(self.offset)
    }
}

impl Upload for Parts {
    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        // Until the end of this call went well.
        let failed_before = std::mem::replace(&mut self.failed, true);
        while !bytes.is_empty() {
            if self.buffer.len() >= self.size_of_piece() {
                self.send()?;
            }
            let size = self.size_of_piece();
            let room = size.saturating_sub(self.buffer.len()).min(bytes.len());
            let (now, later) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            if self.buffer.is_empty() && self.id.is_some() {
                self.buffer.reserve_exact(size);
            }
            self.buffer.extend_from_slice(now);
            bytes = later;
        }
        self.failed = failed_before;
        Ok(())
    }

    fn commit(mut self: Box<Self>) -> Result<u64> {
        if self.failed {
            return Err(Error::new(
                Code::StorageFailed,
                format!("{} was not written as a whole and cannot be finished", self.name),
            ));
        }
        self.finish()
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        while let Some((_, result)) = self.in_flight.pop_front() {
            // Only its end matters.
            result.recv().ok();
        }
        let (inner, key) = (Arc::clone(&self.inner), self.key.clone());
        // What cannot be given up now is found by the next sweep.
        runtime::wait(async move { inner.abort(&key, &id).await }).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_pieces_hold_5_tb_and_begin_small() {
        let total = |expected| (0..PIECES).map(|n| piece_size(n, expected)).sum::<u64>();
        assert!(total(None) > 5_000_000_000_000);
        assert_eq!((piece_size(0, None), piece_size(999, None)), (FIRST, FIRST));
        let up_to_64_mib: u64 = (0..PIECES).map(|n| piece_size(n, None)).filter(|s| *s <= 64 * MIB).sum();
        assert!(up_to_64_mib > 56_000_000_000 && up_to_64_mib >> 20 < 1 << 20);
        assert!(total(Some(5_000_000_000_000)) > 5_000_000_000_000);
        assert_eq!(piece_size(0, Some(5_000_000_000_000)), 530 * MIB);
        assert_eq!(piece_size(0, Some(u64::from(u32::MAX))), FIRST);
    }
}
