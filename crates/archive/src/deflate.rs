//! Compressing, one [`Packer`] a thread.
//!
//! Invariants: what is packed whole is stored when deflate gains less than [`GAIN_MIN`]. Whether something compresses is
//! seen from the spread of the bytes in three places, and where that is nearly even, from one try at the fastest level. A
//! block of a stream ends on a
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
/// What is not longer is compressed without a look.
const LOOK_FROM: usize = 8 << 10;
/// Bytes whose spread is looked at, in each of three places.
const SAMPLE: usize = 4 << 10;
/// Bits a byte from which the spread counts as nearly even. Photographs have 7.9, texts less than 6.
const EVEN: f32 = 7.6;
/// Of 1000 bytes, how many must be saved.
const GAIN_MIN: usize = 30;
/// Longest stored block of deflate.
const STORED_MAX: usize = 65_535;

/// How many bits a byte carries when each is taken alone (Shannon's entropy).
fn bits_per_byte(sample: &[u8]) -> f32 {
    // Two tables: equal bytes behind each other do not wait for each other.
    let mut counts = [[0u16; 256]; 2];
    for pair in sample.chunks(2) {
        for (table, byte) in counts.iter_mut().zip(pair) {
            if let Some(count) = table.get_mut(usize::from(*byte)) {
                *count += 1;
            }
        }
    }
    let [even, odd] = counts;
    let total = f32::from(u16::try_from(sample.len()).unwrap_or(u16::MAX));
    let bits = even
        .iter()
        .zip(&odd)
        .map(|(a, b)| f32::from(a + b))
        .filter(|n| *n > 0.0)
        .map(|n| n * (total / n).log2());
    bits.sum::<f32>() / total.max(1.0)
}

/// The first `len` bytes of a buffer that grows as needed.
fn room(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    buffer.get_mut(..len).unwrap_or_default()
}

/// Compresses with buffers of its own.
pub(crate) struct Packer {
    whole: Compressor,
    probe: Compressor,
    stream: Compress,
    packed: Vec<u8>,
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
            packed: Vec::new(),
        })
    }

    /// Appends `plain` to `out`, deflated or as it is.
    pub(crate) fn whole(&mut self, plain: &[u8], out: &mut Vec<u8>) -> io::Result<Method> {
        if plain.len() <= LOOK_FROM || self.compresses(plain)? {
            let room = room(&mut self.packed, self.whole.deflate_compress_bound(plain.len()));
            let len = self.whole.deflate_compress(plain, room).map_err(failed)?;
            if gains(plain.len(), len) {
                out.extend_from_slice(self.packed.get(..len).unwrap_or_default());
                return Ok(Method::Deflated);
            }
        }
        out.extend_from_slice(plain);
        Ok(Method::Stored)
    }

    /// See the module.
    fn compresses(&mut self, plain: &[u8]) -> io::Result<bool> {
        let last = plain.len().saturating_sub(SAMPLE);
        for start in [last / 2, last.min(SAMPLE), last.saturating_sub(SAMPLE)] {
            let sample = plain.get(start..plain.len().min(start + SAMPLE)).unwrap_or_default();
            if bits_per_byte(sample) < EVEN {
                return Ok(true);
            }
        }
        let start = plain.len().saturating_sub(PROBE) / 2;
        let piece = plain.get(start..plain.len().min(start + PROBE)).unwrap_or_default();
        let room = room(&mut self.packed, self.probe.deflate_compress_bound(piece.len()));
        let len = self.probe.deflate_compress(piece, room).map_err(failed)?;
        Ok(gains(piece.len(), len))
    }

    /// Packs a block of a stream and appends it to `out`. `before` is what stands before it, at most [`WINDOW`] bytes.
    pub(crate) fn block(
        &mut self,
        before: &[u8],
        plain: &[u8],
        last: bool,
        out: &mut Vec<u8>,
    ) -> io::Result<()> {
        if plain.len() > LOOK_FROM && !self.compresses(plain)? {
            stored_blocks(plain, last, out);
            return Ok(());
        }
        self.stream.reset();
        if !before.is_empty() {
            self.stream.set_dictionary(before).map_err(failed)?;
        }
        let start = out.len();
        out.reserve(plain.len() / 2 + 1024);
        let flush = if last { FlushCompress::Finish } else { FlushCompress::Sync };
        let mut rest = plain;
        loop {
            let (read, written) = (self.stream.total_in(), out.len());
            let status = self.stream.compress_vec(rest, out, flush).map_err(failed)?;
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
        if out.len() - start > stored_len(plain) {
            out.truncate(start);
            stored_blocks(plain, last, out);
        }
        Ok(())
    }
}

/// Bytes of [`stored_blocks`].
fn stored_len(plain: &[u8]) -> usize {
    plain.len() + 5 * (1 + plain.len() / STORED_MAX)
}

/// `plain` as stored blocks of deflate.
fn stored_blocks(plain: &[u8], last: bool, out: &mut Vec<u8>) {
    out.reserve(stored_len(plain));
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
                packer.block(window, piece, n + 1 == blocks.len(), &mut packed).unwrap();
            }
            assert!(packed.len() < plain.len() / 2);
            assert_eq!(inflate(&packed, plain.len()), plain);
        }
    }

    #[test]
    fn a_stream_whose_length_is_a_multiple_of_the_block_ends_with_an_empty_block() {
        let mut packer = Packer::new(3).unwrap();
        let mut packed = Vec::new();
        packer.block(&[], b"some bytes", false, &mut packed).unwrap();
        packer.block(b"some bytes", &[], true, &mut packed).unwrap();
        assert_eq!(inflate(&packed, 10), b"some bytes");
        for nothing in [true, false] {
            let mut packed = Vec::new();
            if nothing {
                packer.block(&[], &[], true, &mut packed).unwrap();
            } else {
                stored_blocks(&[], true, &mut packed);
            }
            assert_eq!(inflate(&packed, 0), b"");
        }
    }

    #[test]
    fn even_bytes_are_told_from_others() {
        let mut random = Random::new(9);
        assert!(bits_per_byte(&random.bytes(SAMPLE)) > 7.9);
        assert!(bits_per_byte(&random.text(SAMPLE)) < 6.0);
        assert!(bits_per_byte(&[5; SAMPLE]).abs() < 0.001);
        assert!((bits_per_byte(&[0, 1, 2, 3]) - 2.0).abs() < 0.001);
        assert!(bits_per_byte(&[]).abs() < 0.001);
        // Even bytes that repeat do compress.
        let repeated = random.bytes(20_000).repeat(10);
        let mut out = Vec::new();
        assert_eq!(Packer::new(3).unwrap().whole(&repeated, &mut out).unwrap(), Method::Deflated);
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
