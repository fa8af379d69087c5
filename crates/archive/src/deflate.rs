//! Compressing, one [`Packer`] a thread.
//!
//! Invariants: what is packed whole is stored when deflate gains less than [`GAIN_MIN`]. A block of a stream ends on a
//! whole byte, so blocks packed by different threads stand behind each other as one deflate stream; the window before a
//! block is given to it as dictionary. Nothing is kept from one call to the next but buffers.

use std::io;

use flate2::{Compress, Compression, FlushCompress, Status};
use libdeflater::{CompressionLvl, Compressor};

use crate::zip::Method;

/// How far back deflate looks.
pub(crate) const WINDOW: usize = 32 << 10;
/// Bytes that are tried to see whether something compresses.
const PROBE: usize = 64 << 10;
/// Of 1000 bytes, how many must be saved.
const GAIN_MIN: usize = 30;
/// Longest stored block of deflate.
const STORED_MAX: usize = 65_535;

/// Compresses with buffers of its own.
pub(crate) struct Packer {
    whole: Compressor,
    probe: Compressor,
    stream: Compress,
    tried: Vec<u8>,
}

fn failed(e: impl std::fmt::Debug) -> io::Error {
    io::Error::other(format!("compression failed: {e:?}"))
}

/// Whether so much is saved that it is worth it.
fn gains(plain: usize, packed: usize) -> bool {
    packed < plain && (plain - packed).saturating_mul(1000) >= plain.saturating_mul(GAIN_MIN)
}

impl Packer {
    /// `level` from 1 to 9.
    pub(crate) fn new(level: u8) -> io::Result<Self> {
        let level = level.clamp(1, 9);
        Ok(Packer {
            whole: Compressor::new(CompressionLvl::new(level.into()).map_err(failed)?),
            probe: Compressor::new(CompressionLvl::new(1).map_err(failed)?),
            stream: Compress::new(Compression::new(level.into()), false),
            tried: Vec::new(),
        })
    }

    /// Appends `plain` to `out`, deflated or as it is.
    pub(crate) fn whole(&mut self, plain: &[u8], out: &mut Vec<u8>) -> io::Result<Method> {
        let start = out.len();
        if plain.len() <= 2 * PROBE || self.compresses(plain)? {
            // What is not smaller need not fit.
            out.resize(start + self.whole.deflate_compress_bound(plain.len()), 0);
            let room = out.get_mut(start..).unwrap_or_default();
            let len = self.whole.deflate_compress(plain, room).map_err(failed)?;
            out.truncate(start + len);
            if gains(plain.len(), len) {
                return Ok(Method::Deflated);
            }
        }
        out.truncate(start);
        out.extend_from_slice(plain);
        Ok(Method::Stored)
    }

    /// Tries a piece from the middle; what does not compress there is looked at near the start and the end too.
    fn compresses(&mut self, plain: &[u8]) -> io::Result<bool> {
        let middle = plain.len() / 2;
        let last = plain.len().saturating_sub(PROBE);
        for start in [middle.min(last), 4096.min(last), last.saturating_sub(4096)] {
            let end = plain.len().min(start + PROBE);
            let piece = plain.get(start..end).unwrap_or_default();
            self.tried.resize(self.probe.deflate_compress_bound(piece.len()), 0);
            let len = self.probe.deflate_compress(piece, &mut self.tried).map_err(failed)?;
            if gains(piece.len(), len) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Packs a block of a stream. `before` is what stands before it, at most [`WINDOW`] bytes.
    pub(crate) fn block(&mut self, before: &[u8], plain: &[u8], last: bool) -> io::Result<Vec<u8>> {
        if plain.len() > 2 * PROBE && !self.compresses(plain)? {
            return Ok(stored_blocks(plain, last));
        }
        self.stream.reset();
        if !before.is_empty() {
            self.stream.set_dictionary(before).map_err(failed)?;
        }
        let mut out = Vec::with_capacity(plain.len() / 2 + 1024);
        let flush = if last { FlushCompress::Finish } else { FlushCompress::Sync };
        let mut rest = plain;
        loop {
            let (read, written) = (self.stream.total_in(), out.len());
            let status = self.stream.compress_vec(rest, &mut out, flush).map_err(failed)?;
            let used = usize::try_from(self.stream.total_in() - read).unwrap_or(usize::MAX);
            rest = rest.get(used..).unwrap_or_default();
            let full = out.len() == out.capacity();
            match status {
                Status::StreamEnd => break,
                // Room was left over: everything is out.
                _ if rest.is_empty() && !full && !last => break,
                Status::BufError if !full && used == 0 && out.len() == written => {
                    return Err(io::Error::other("compression makes no progress"));
                }
                _ => out.reserve(64 << 10),
            }
        }
        if out.len() > plain.len() + 5 * (1 + plain.len() / STORED_MAX) {
            return Ok(stored_blocks(plain, last));
        }
        Ok(out)
    }
}

/// `plain` as stored blocks of deflate.
fn stored_blocks(plain: &[u8], last: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(plain.len() + 5 * (1 + plain.len() / STORED_MAX));
    let mut chunks = plain.chunks(STORED_MAX).peekable();
    if chunks.peek().is_none() {
        out.extend_from_slice(&[u8::from(last), 0, 0, 0xff, 0xff]);
    }
    while let Some(chunk) = chunks.next() {
        let len = u16::try_from(chunk.len()).unwrap_or(u16::MAX);
        out.push(u8::from(last && chunks.peek().is_none()));
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&(!len).to_le_bytes());
        out.extend_from_slice(chunk);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_testing::fixtures::Random;

    fn inflate(packed: &[u8], size: usize) -> Vec<u8> {
        let mut out = vec![0; size];
        let mut inflater = libdeflater::Decompressor::new();
        let len = inflater.deflate_decompress(packed, &mut out).unwrap();
        assert_eq!(len, size);
        out
    }

    #[test]
    fn blocks_of_all_kinds_behind_each_other_are_one_stream() {
        let mut random = Random::new(7);
        let block = 300_000;
        let mut plain = random.text(block * 2);
        plain.extend(random.bytes(block));
        plain.extend(vec![0; block]);
        plain.extend(random.text(17));
        let mut packer = Packer::new(3).unwrap();
        for cut in [block, 65_535, 100_001] {
            let blocks: Vec<&[u8]> = plain.chunks(cut).collect();
            let mut packed = Vec::new();
            for (n, piece) in blocks.iter().enumerate() {
                let before = n * cut;
                let window = &plain[before.saturating_sub(WINDOW)..before];
                packed.extend(packer.block(window, piece, n + 1 == blocks.len()).unwrap());
            }
            assert!(packed.len() < plain.len() / 2);
            assert_eq!(inflate(&packed, plain.len()), plain);
        }
    }

    #[test]
    fn a_stream_whose_length_is_a_multiple_of_the_block_ends_with_an_empty_block() {
        let mut packer = Packer::new(3).unwrap();
        let mut packed = packer.block(&[], b"some bytes", false).unwrap();
        packed.extend(packer.block(b"some bytes", &[], true).unwrap());
        assert_eq!(inflate(&packed, 10), b"some bytes");
        assert_eq!(inflate(&packer.block(&[], &[], true).unwrap(), 0), b"");
        assert_eq!(inflate(&stored_blocks(&[], true), 0), b"");
    }

    #[test]
    fn what_does_not_compress_is_stored_and_nothing_grows() {
        let mut random = Random::new(8);
        let mut packer = Packer::new(3).unwrap();
        for (plain, method) in [
            (random.bytes(10), Method::Stored),
            (random.bytes(100_000), Method::Stored),
            (random.bytes(3 << 20), Method::Stored),
            (random.text(5000), Method::Deflated),
            (random.text(3 << 20), Method::Deflated),
            (Vec::new(), Method::Stored),
        ] {
            let mut out = b"before".to_vec();
            assert_eq!(packer.whole(&plain, &mut out).unwrap(), method, "{}", plain.len());
            assert!(out.len() <= 6 + plain.len());
            if method == Method::Deflated {
                assert_eq!(inflate(&out[6..], plain.len()), plain);
            } else {
                assert_eq!(&out[6..], plain);
            }
        }
    }
}
