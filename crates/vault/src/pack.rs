//! Packs: many sealed blobs in one object, a sealed header behind them, its length last.
//!
//! Invariants: a pack holds blobs of one kind; its object name is the SHA-256 of all its bytes; it is never
//! changed. [`PackBuffer`] is filled by one worker and has the size of one pack; nothing is copied but into it.

use backstay_model::{Code, Error, Result};

use crate::blob::BlobKind;
use crate::compress::Compressor;
use crate::crypto::{Cipher, MAC, NONCE, Nonces, OVERHEAD};
use crate::hash::{Running, digest_beside};
use crate::id::Id;

/// Size from which a pack of data is closed.
pub const DATA_PACK: usize = 16 << 20;
/// Size from which a pack of trees is closed.
pub const TREE_PACK: usize = 8 << 20;
/// Most header entries accepted; restic's own packs stay far below.
const HEADER_MAX: usize = 64 << 20;

/// A blob as a pack's header lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedBlob {
    /// Its id.
    pub id: Id,
    /// Its kind.
    pub kind: BlobKind,
    /// First byte in the pack.
    pub offset: u32,
    /// Bytes in the pack.
    pub length: u32,
    /// Plain bytes when compressed.
    pub uncompressed: Option<u32>,
}

/// A closed pack, ready to be stored.
#[derive(Debug)]
pub struct Pack {
    /// Its name.
    pub id: Id,
    /// Its bytes are the first `length` of the buffer.
    pub bytes: Vec<u8>,
    /// How many of the buffer's bytes count.
    pub length: usize,
    /// What it holds.
    pub blobs: Vec<PackedBlob>,
}

/// A pack being filled.
pub struct PackBuffer {
    kind: BlobKind,
    bytes: Vec<u8>,
    used: usize,
    blobs: Vec<PackedBlob>,
    /// The hash of the first `hashed` bytes.
    hash: Running,
    hashed: usize,
}

/// What became of a pack that another one was to take over.
pub enum Absorbed {
    /// All of it was taken; its buffer is free.
    Whole(Vec<u8>),
    /// It stays a pack of its own.
    TooLarge(PackBuffer),
}

fn too_large() -> Error {
    Error::new(Code::LimitExceeded, "A piece of data is too large for a pack")
}

impl PackBuffer {
    /// An empty pack over a buffer that is reused (its old content does not matter).
    #[must_use]
    pub fn new(kind: BlobKind, buffer: Vec<u8>) -> Self {
        PackBuffer { kind, bytes: buffer, used: 0, blobs: Vec::new(), hash: Running::default(), hashed: 0 }
    }

    /// Bytes so far, without the header.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blobs.is_empty()
    }

    /// Whether it is time to close it.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let limit = if self.kind == BlobKind::Data { DATA_PACK } else { TREE_PACK };
        self.used >= limit || self.blobs.len() >= 60_000
    }

    /// The id of a piece of content; what lies in the pack already is hashed beside it.
    pub fn id_of(&mut self, data: &[u8]) -> Id {
        let waiting = self.bytes.get(self.hashed..self.used).unwrap_or_default();
        let (id, taken) = digest_beside(data, &mut self.hash, waiting);
        self.hashed += taken;
        id
    }

    fn room(&mut self, size: usize) -> Result<&mut [u8]> {
        let end = self.used.checked_add(size).ok_or_else(too_large)?;
        if self.bytes.len() < end {
            let length = end.next_multiple_of(1 << 20);
            if self.bytes.capacity() < length {
                // All at once and no more: a buffer that doubles would take twice a pack. Untouched memory costs nothing.
                let whole = if self.kind == BlobKind::Data { DATA_PACK + (6 << 20) } else { 0 };
                self.bytes.reserve_exact(length.max(whole) - self.bytes.len());
            }
            self.bytes.resize(length, 0);
        }
        self.bytes.get_mut(self.used..end).ok_or_else(too_large)
    }

    /// Compresses where it helps, seals, appends. Gives the bytes it takes in the pack.
    pub fn push(
        &mut self,
        id: Id,
        data: &[u8],
        compressor: Option<&mut Compressor>,
        cipher: &Cipher,
        nonces: &mut Nonces,
    ) -> Result<u32> {
        let nonce = nonces.take()?;
        let room = self.room(data.len() + OVERHEAD)?;
        let (_, text) = room.split_at_mut_checked(NONCE).ok_or_else(too_large)?;
        let packed = compressor.and_then(|c| c.compress(data, text));
        let (size, uncompressed) = match packed {
            Some(size) => (size, Some(u32::try_from(data.len()).map_err(|_large| too_large())?)),
            None => {
                text.get_mut(..data.len()).ok_or_else(too_large)?.copy_from_slice(data);
                (data.len(), None)
            }
        };
        cipher.seal(nonce, room.get_mut(..size + OVERHEAD).ok_or_else(too_large)?)?;
        self.note(id, size + OVERHEAD, uncompressed)
    }

    /// Appends a blob that is sealed already (moved from another pack of the same vault).
    pub fn push_sealed(&mut self, id: Id, sealed: &[u8], uncompressed: Option<u32>) -> Result<u32> {
        self.room(sealed.len())?.copy_from_slice(sealed);
        self.note(id, sealed.len(), uncompressed)
    }

    fn note(&mut self, id: Id, length: usize, uncompressed: Option<u32>) -> Result<u32> {
        let offset = u32::try_from(self.used).map_err(|_large| too_large())?;
        let stored = u32::try_from(length).map_err(|_large| too_large())?;
        self.blobs.push(PackedBlob { id, kind: self.kind, offset, length: stored, uncompressed });
        self.used += length;
        Ok(stored)
    }

    /// Takes over the blobs of another pack of the same kind, as far as both together are about one pack.
    pub fn absorb(&mut self, other: PackBuffer) -> Result<Absorbed> {
        let limit = if self.kind == BlobKind::Data { DATA_PACK } else { TREE_PACK };
        if other.kind != self.kind || self.used + other.used > limit + (limit >> 2) {
            return Ok(Absorbed::TooLarge(other));
        }
        for blob in &other.blobs {
            let start = usize::try_from(blob.offset).map_err(|_large| too_large())?;
            let length = usize::try_from(blob.length).map_err(|_large| too_large())?;
            let sealed = other.bytes.get(start..start + length).ok_or_else(too_large)?;
            self.push_sealed(blob.id, sealed, blob.uncompressed)?;
        }
        Ok(Absorbed::Whole(other.bytes))
    }

    /// Adds the header and names the pack.
    pub fn close(mut self, cipher: &Cipher, nonces: &mut Nonces) -> Result<Pack> {
        let header = write_header(&self.blobs);
        let nonce = nonces.take()?;
        let size = header.len() + OVERHEAD;
        let room = self.room(size + 4)?;
        let (sealed, tail) = room.split_at_mut_checked(size).ok_or_else(too_large)?;
        sealed.get_mut(NONCE..size - MAC).ok_or_else(too_large)?.copy_from_slice(&header);
        cipher.seal(nonce, sealed)?;
        tail.copy_from_slice(&u32::try_from(size).map_err(|_large| too_large())?.to_le_bytes());
        let length = self.used + size + 4;
        let id = self.hash.finish(self.bytes.get(self.hashed..length).ok_or_else(too_large)?);
        Ok(Pack { id, length, bytes: self.bytes, blobs: self.blobs })
    }
}

impl Pack {
    /// The bytes to store.
    #[must_use]
    pub fn content(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

fn write_header(blobs: &[PackedBlob]) -> Vec<u8> {
    let mut out = Vec::with_capacity(blobs.len() * 41);
    for blob in blobs {
        let base = u8::from(blob.kind == BlobKind::Tree);
        out.push(base + if blob.uncompressed.is_some() { 2 } else { 0 });
        out.extend_from_slice(&blob.length.to_le_bytes());
        if let Some(plain) = blob.uncompressed {
            out.extend_from_slice(&plain.to_le_bytes());
        }
        out.extend_from_slice(&blob.id.0);
    }
    out
}

/// The size of the sealed header, from the last four bytes of a pack of `pack_size` bytes.
pub fn header_size(tail: [u8; 4], pack_size: u64) -> Result<usize> {
    let size = usize::try_from(u32::from_le_bytes(tail)).unwrap_or(usize::MAX);
    let fits = u64::try_from(size).is_ok_and(|s| s.saturating_add(4) <= pack_size);
    if !(OVERHEAD..=HEADER_MAX).contains(&size) || !fits {
        return Err(Error::new(Code::VaultDamaged, "The header of a pack has an impossible length"));
    }
    Ok(size)
}

/// Reads a plain header; `blobs_size` is where the blobs end (the header's first byte in the pack).
pub fn parse_header(header: &[u8], blobs_size: u64) -> Result<Vec<PackedBlob>> {
    let damaged = || Error::new(Code::VaultDamaged, "The header of a pack cannot be understood");
    let mut blobs = Vec::new();
    let mut rest = header;
    let mut offset = 0u32;
    while let Some((tag, after)) = rest.split_first() {
        let (length, after) = after.split_first_chunk::<4>().ok_or_else(damaged)?;
        let length = u32::from_le_bytes(*length);
        let (uncompressed, after) = match tag {
            0 | 1 => (None, after),
            2 | 3 => {
                let (plain, after) = after.split_first_chunk::<4>().ok_or_else(damaged)?;
                (Some(u32::from_le_bytes(*plain)), after)
            }
            _ => return Err(damaged()),
        };
        let (id, after) = after.split_first_chunk::<32>().ok_or_else(damaged)?;
        let kind = if tag & 1 == 1 { BlobKind::Tree } else { BlobKind::Data };
        if usize::try_from(length).map_or(true, |l| l < OVERHEAD) {
            return Err(damaged());
        }
        blobs.push(PackedBlob { id: Id(*id), kind, offset, length, uncompressed });
        offset = offset.checked_add(length).ok_or_else(damaged)?;
        rest = after;
    }
    if u64::from(offset) != blobs_size {
        return Err(damaged());
    }
    Ok(blobs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::MasterKey;

    #[test]
    fn a_pack_lists_what_was_put_in() {
        let cipher = Cipher::new(&MasterKey::generate().unwrap());
        let mut nonces = Nonces::default();
        let mut compressor = Compressor::new(3).unwrap();
        let mut pack = PackBuffer::new(BlobKind::Data, Vec::new());
        let mut second = PackBuffer::new(BlobKind::Data, vec![7; 100]);
        let text = b"words and words and words and words ".repeat(50);
        pack.push(Id::of(&text), &text, Some(&mut compressor), &cipher, &mut nonces).unwrap();
        pack.push(Id::of(b""), b"", None, &cipher, &mut nonces).unwrap();
        second.push(Id::of(b"xyz"), b"xyz", None, &cipher, &mut nonces).unwrap();
        assert!(matches!(pack.absorb(second).unwrap(), Absorbed::Whole(_)));
        let closed = pack.close(&cipher, &mut nonces).unwrap();
        let bytes = closed.content();
        assert_eq!(closed.id, Id::of(bytes));
        let tail = *bytes.last_chunk::<4>().unwrap();
        let size = header_size(tail, bytes.len() as u64).unwrap();
        let start = bytes.len() - 4 - size;
        let mut sealed = bytes[start..start + size].to_vec();
        let header = cipher.open(&mut sealed).unwrap();
        assert_eq!(parse_header(header, start as u64).unwrap(), closed.blobs);
        assert!(closed.blobs[0].uncompressed.is_some());
        assert!(parse_header(header, start as u64 + 1).is_err());
    }

    #[test]
    fn impossible_headers_are_refused() {
        assert!(header_size([0, 0, 0, 0], 100).is_err());
        assert!(header_size([255, 255, 255, 255], u64::MAX).is_err());
        assert!(parse_header(&[9; 37], 0).is_err());
        assert!(parse_header(&[0, 1, 2], 0).is_err());
    }
}
