//! Unpacking the data of one entry.
//!
//! Invariants: never more bytes come out than the directory says the content has, whatever the data would give; memory is
//! bounded by [`WHOLE_MAX`] each way. The data must give exactly that many.

use backstay_model::{Code, Error, Result};
use flate2::{Decompress, FlushDecompress, Status};
use libdeflater::{Crc, Decompressor};

use crate::bytes::Forward;
use crate::zip::read::Central;

/// Up to this size, packed and unpacked, an entry is unpacked at once.
const WHOLE_MAX: u64 = 16 << 20;
/// Bytes that a larger one is unpacked by.
const PIECE: usize = 256 << 10;

/// Unpacks entry after entry.
pub(crate) struct Unpacker {
    whole: Decompressor,
    stream: Decompress,
    plain: Vec<u8>,
}

/// Where plain bytes go. An error ends the work.
pub(crate) type Out<'o> = dyn FnMut(&[u8]) -> Result<()> + 'o;

impl Unpacker {
    pub(crate) fn new() -> Self {
        Unpacker { whole: Decompressor::new(), stream: Decompress::new(false), plain: Vec::new() }
    }

    /// Gives the content of an entry whose data begins at `start` to `out`, its packed bytes to `raw`. The inner error
    /// says what is wrong with the data.
    pub(crate) fn entry(
        &mut self,
        from: &mut Forward<'_>,
        entry: &Central,
        start: u64,
        raw: &mut Crc,
        out: &mut Out<'_>,
    ) -> Result<Result<(), &'static str>> {
        match entry.method {
            0 if entry.packed != entry.size => Ok(Err("it is stored and has two different sizes")),
            0 => stored(from, entry, start, raw, out).map(Ok),
            8 if entry.packed <= WHOLE_MAX && entry.size <= WHOLE_MAX => {
                self.at_once(from, entry, start, raw, out)
            }
            8 => self.in_pieces(from, entry, start, raw, out),
            _ => Ok(Err("its compression is not known")),
        }
    }

    fn at_once(
        &mut self,
        from: &mut Forward<'_>,
        entry: &Central,
        start: u64,
        raw: &mut Crc,
        out: &mut Out<'_>,
    ) -> Result<Result<(), &'static str>> {
        let packed = from.get(start, length(entry.packed)?)?;
        raw.update(packed);
        let size = length(entry.size)?;
        if self.plain.len() < size {
            self.plain.resize(size, 0);
        }
        let room = self.plain.get_mut(..size).unwrap_or_default();
        match self.whole.deflate_decompress(packed, room) {
            Ok(got) if got == size => out(room).map(Ok),
            Ok(_) => Ok(Err("its content is shorter than it says")),
            Err(libdeflater::DecompressionError::InsufficientSpace) => {
                Ok(Err("its content is longer than it says"))
            }
            Err(libdeflater::DecompressionError::BadData) => Ok(Err("its data cannot be unpacked")),
        }
    }

    fn in_pieces(
        &mut self,
        from: &mut Forward<'_>,
        entry: &Central,
        start: u64,
        raw: &mut Crc,
        out: &mut Out<'_>,
    ) -> Result<Result<(), &'static str>> {
        self.stream.reset(false);
        self.plain.resize(self.plain.len().max(PIECE), 0);
        let (mut at, mut got) = (0u64, 0u64);
        let mut flaw = None;
        let mut ended = false;
        // The packed bytes are read to their end even when they are wrong: the whole zip is hashed as well.
        while at < entry.packed {
            let len = length((entry.packed - at).min(PIECE as u64))?;
            let mut packed = from.get(start + at, len)?;
            at += len as u64;
            raw.update(packed);
            while flaw.is_none() && !(packed.is_empty() && ended) {
                let room = self.plain.get_mut(..PIECE).unwrap_or_default();
                let (before_in, before_out) = (self.stream.total_in(), self.stream.total_out());
                let status = self.stream.decompress(packed, room, FlushDecompress::None);
                let used = length(self.stream.total_in() - before_in)?;
                let made = length(self.stream.total_out() - before_out)?;
                packed = packed.get(used..).unwrap_or_default();
                got += made as u64;
                match status {
                    Err(_) => flaw = Some("its data cannot be unpacked"),
                    _ if got > entry.size => flaw = Some("its content is longer than it says"),
                    Ok(status) => {
                        out(self.plain.get(..made).unwrap_or_default())?;
                        ended = status == Status::StreamEnd;
                        if ended && (!packed.is_empty() || at < entry.packed) {
                            flaw = Some("there are bytes behind its data");
                        } else if used == 0 && made == 0 {
                            break;
                        }
                    }
                }
            }
        }
        Ok(match flaw {
            Some(flaw) => Err(flaw),
            None if !ended => Err("its data is cut off"),
            None if got != entry.size => Err("its content is shorter than it says"),
            None => Ok(()),
        })
    }
}

fn stored(
    from: &mut Forward<'_>,
    entry: &Central,
    start: u64,
    raw: &mut Crc,
    out: &mut Out<'_>,
) -> Result<()> {
    let mut at = 0;
    while at < entry.packed {
        let len = length((entry.packed - at).min(PIECE as u64))?;
        let bytes = from.get(start + at, len)?;
        raw.update(bytes);
        out(bytes)?;
        at += len as u64;
    }
    Ok(())
}

fn length(bytes: u64) -> Result<usize> {
    usize::try_from(bytes)
        .map_err(|_large| Error::new(Code::LimitExceeded, "An entry is too large for this machine"))
}
