//! zstd, with contexts that live as long as their worker, and a probe that saves the work where it is useless.
//!
//! Invariants: nothing is decompressed beyond a stated limit, whatever the frame claims.

use std::io::Read;

use backstay_model::{Code, Error, Result};

/// Compresses many pieces with one context.
pub struct Compressor {
    full: zstd::bulk::Compressor<'static>,
    probe: zstd::bulk::Compressor<'static>,
    scratch: Vec<u8>,
}

/// Pieces below this size are compressed without a probe: the probe would cost as much.
const PROBE_FROM: usize = 8 << 10;
/// How much of a piece is probed, from its middle.
const PROBE: usize = 4 << 10;

impl Compressor {
    /// At zstd's level (negative is faster, 3 is its default, 19 the densest that is sensible here).
    pub fn new(level: i32) -> Result<Self> {
        let make = |level| {
            zstd::bulk::Compressor::new(level)
                .map_err(|e| Error::new(Code::System, "Cannot set up compression").because(e))
        };
        Ok(Compressor { full: make(level)?, probe: make(1)?, scratch: vec![0; PROBE * 2] })
    }

    /// Compresses into `room`; `None` when it does not become smaller (and `room` holds rubbish).
    pub fn compress(&mut self, data: &[u8], room: &mut [u8]) -> Option<usize> {
        if data.len() < 32 || self.looks_incompressible(data) {
            return None;
        }
        // A room of the data's own size: zstd gives up when the result would not be smaller.
        let room = room.get_mut(..data.len().saturating_sub(1))?;
        self.full.compress_to_buffer(data, room).ok()
    }

    /// Whether a look at the middle says that zstd would find nothing: bytes as evenly spread as random ones,
    /// and no repetition in the sample.
    fn looks_incompressible(&mut self, data: &[u8]) -> bool {
        if data.len() < PROBE_FROM {
            return false;
        }
        let at = (data.len() - PROBE) / 2;
        let Some(sample) = data.get(at..at + PROBE) else { return false };
        if !evenly_spread(sample) {
            return false;
        }
        match self.probe.compress_to_buffer(sample, self.scratch.as_mut_slice()) {
            Ok(size) => size * 100 >= PROBE * 98,
            Err(_) => true,
        }
    }
}

/// Chi-squared test of the byte counts of a sample of [`PROBE`] bytes: random bytes give about 255 with a
/// deviation of 23; compressed media stay below 600, text and code are in the tens of thousands.
fn evenly_spread(sample: &[u8]) -> bool {
    let mut counts = [0u32; 256];
    for byte in sample {
        if let Some(count) = counts.get_mut(usize::from(*byte)) {
            *count += 1;
        }
    }
    let expected = u64::try_from(sample.len() / 256).unwrap_or(1).max(1);
    let sum: u64 = counts.iter().map(|c| u64::from(*c).abs_diff(expected).pow(2)).sum();
    sum / expected < 1000
}

/// Decompresses a frame into `out` (which is cleared), at most `limit` bytes.
pub fn decompress(frame: &[u8], limit: u64, out: &mut Vec<u8>) -> Result<()> {
    out.clear();
    let damaged = |e| Error::new(Code::VaultDamaged, "Compressed data cannot be read").because(e);
    let mut reader = zstd::stream::read::Decoder::with_buffer(frame).map_err(damaged)?;
    let read = reader.by_ref().take(limit.saturating_add(1)).read_to_end(out).map_err(damaged)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > limit {
        let message = format!("Compressed data grows beyond {limit} bytes");
        return Err(Error::new(Code::LimitExceeded, message));
    }
    Ok(())
}

/// Decompresses many frames of known size with one context.
pub struct Decompressor {
    inner: zstd::bulk::Decompressor<'static>,
}

impl Decompressor {
    /// A new context.
    pub fn new() -> Result<Self> {
        let inner = zstd::bulk::Decompressor::new()
            .map_err(|e| Error::new(Code::System, "Cannot set up decompression").because(e))?;
        Ok(Decompressor { inner })
    }

    /// Decompresses a frame of exactly `size` plain bytes (bounded by the caller) into `out`.
    pub fn decompress(&mut self, frame: &[u8], size: usize, out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        // What is claimed is only believed up to a size that is cheap to be wrong about.
        if size > 16 << 20 {
            decompress(frame, size as u64, out)?;
        } else {
            out.reserve(size);
            self.inner
                .decompress_to_buffer(frame, out)
                .map_err(|e| Error::new(Code::VaultDamaged, "Compressed data cannot be read").because(e))?;
        }
        if out.len() != size {
            return Err(Error::new(
                Code::VaultDamaged,
                "Compressed data has another size than the index says",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_shrink_is_left_alone_and_text_is_not() {
        let mut compressor = Compressor::new(3).unwrap();
        let mut random = vec![0u8; 100_000];
        crate::crypto::random(&mut random).unwrap();
        let mut room = vec![0u8; 200_000];
        assert_eq!(compressor.compress(&random, &mut room), None);
        assert_eq!(compressor.compress(&random[..5000], &mut room), None);
        let text = b"the same words again and again ".repeat(1000);
        let size = compressor.compress(&text, &mut room).unwrap();
        assert!(size < 200);
        let mut out = Vec::new();
        Decompressor::new().unwrap().decompress(&room[..size], text.len(), &mut out).unwrap();
        assert_eq!(out, text);
    }

    #[test]
    fn repeated_random_blocks_are_compressed_although_evenly_spread() {
        let mut block = vec![0u8; 1024];
        crate::crypto::random(&mut block).unwrap();
        let data = block.repeat(64);
        let mut room = vec![0u8; data.len()];
        assert!(Compressor::new(3).unwrap().compress(&data, &mut room).unwrap() < 4096);
    }

    #[test]
    fn bombs_stop_at_the_limit() {
        let bomb = zstd::bulk::compress(&vec![0u8; 50 << 20], 3).unwrap();
        let mut out = Vec::new();
        assert_eq!(decompress(&bomb, 1 << 20, &mut out).unwrap_err().code(), Code::LimitExceeded);
        assert!(Decompressor::new().unwrap().decompress(&bomb, 1 << 20, &mut out).is_err());
    }
}
