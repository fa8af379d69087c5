//! One pack against the index: its size, or every byte of it.
//!
//! Invariants: a pack is read once, from its first byte to its last, in windows of bounded size; every byte goes into
//! the hash that is compared with its name, every blob is opened and compared with its id, and the header is compared
//! with the index. What is wrong is told; only a storage that does not answer is an error.

use std::collections::HashSet;

use backstay_model::{Code, Error, Result};
use sha2::{Digest, Sha256};

use super::told;
use crate::blob::BlobKind;
use crate::crypto::OVERHEAD;
use crate::hash::{Running, digest_beside};
use crate::id::Id;
use crate::pack::{PackedBlob, header_size, parse_header};
use crate::transfer::{WINDOW, each_sealed, windows};
use crate::vault::{Folder, Vault, altered};
use crate::walk::Opener;

/// Bytes of a block of the hash.
const BLOCK: usize = 64;

/// Most bytes of a pack that are in memory while it is checked: a usual pack as a whole, so that there is nearly always
/// something to hash ahead.
const AHEAD: u64 = 20 << 20;

/// What is wrong with a pack.
#[derive(Debug, Default)]
pub(crate) struct PackFault {
    /// With the pack as a whole.
    pub(crate) what: Vec<String>,
    /// With blobs in it.
    pub(crate) blobs: Vec<(Id, String)>,
    /// The blobs that cannot be read from it.
    pub(crate) bad: HashSet<(BlobKind, Id)>,
}

impl PackFault {
    pub(crate) fn is_empty(&self) -> bool {
        self.what.is_empty() && self.blobs.is_empty()
    }

    fn bad_blob(&mut self, blob: &PackedBlob, what: String) {
        if self.bad.insert((blob.kind, blob.id)) {
            self.blobs.push((blob.id, what));
        }
    }
}

/// Where the blobs end, if they lie one behind the other from the first byte on.
fn end_of(blobs: &[PackedBlob]) -> Option<u64> {
    blobs.iter().try_fold(0u64, |at, b| (u64::from(b.offset) == at).then_some(at + u64::from(b.length)))
}

fn header_length(blobs: &[PackedBlob]) -> u64 {
    let entries: usize = blobs.iter().map(|b| if b.uncompressed.is_some() { 41 } else { 37 }).sum();
    super::count(entries + OVERHEAD + 4)
}

/// Compares the size of a pack with what the index says about its blobs.
pub(crate) fn check_size(size: u64, blobs: &[PackedBlob]) -> PackFault {
    let mut fault = PackFault::default();
    match end_of(blobs) {
        None => fault.what.push("The index says that its blobs overlap or leave gaps".into()),
        Some(end) if end + header_length(blobs) != size => {
            let expected = end + header_length(blobs);
            fault.what.push(format!("It has {size} bytes, by the index it should have {expected}"));
        }
        Some(_) => {}
    }
    for blob in blobs.iter().filter(|b| u64::from(b.offset) + u64::from(b.length) > size) {
        fault.bad_blob(blob, "It lies beyond the end of the pack".into());
    }
    fault
}

/// Whether an error of a read is about this pack. One about the storage as a whole ends the check.
fn of_the_pack(e: &Error) -> bool {
    matches!(e.code(), Code::StorageFailed | Code::ObjectNotFound | Code::VaultDamaged | Code::LimitExceeded)
}

/// Reads a whole pack and compares everything.
pub(crate) fn read_pack(
    vault: &Vault,
    id: &Id,
    size: u64,
    blobs: &[PackedBlob],
    opener: &mut Opener,
) -> Result<PackFault> {
    let mut fault = check_size(size, blobs);
    let read = if fault.is_empty() {
        read_regular(vault, id, size, blobs, opener, &mut fault)
    } else {
        read_irregular(vault, id, size, blobs, opener, &mut fault)
    };
    match read {
        Err(e) if of_the_pack(&e) => {
            fault.what.push(told(&e));
            for blob in blobs {
                fault.bad_blob(blob, "Its pack cannot be read".into());
            }
            Ok(fault)
        }
        other => other.map(|()| fault),
    }
}

fn open(vault: &Vault, blob: &PackedBlob, sealed: &mut [u8], opener: &mut Opener, fault: &mut PackFault) {
    let Opener { decompressor, plain } = opener;
    if let Err(e) = vault.open_blob(blob.kind, &blob.id, blob.uncompressed, sealed, decompressor, plain) {
        fault.bad_blob(blob, told(&e));
    }
}

/// The hash of a pack that runs ahead of the opening of its blobs.
///
/// Opening alters the bytes, so every byte of a blob is hashed before; what follows is hashed beside the blob's content
/// (`hash::digest_beside`), which costs next to nothing. `hashed` counts whole blocks.
struct Ahead {
    hash: Running,
    hashed: u64,
}

impl Ahead {
    /// The blocks of a window that are not hashed yet; `start` is where the window begins in the pack.
    fn waiting<'a>(&self, window: &'a [u8], start: u64) -> &'a [u8] {
        let at = usize::try_from(self.hashed.saturating_sub(start)).unwrap_or(usize::MAX);
        window.get(at..).unwrap_or_default()
    }

    /// Hashes the blocks up to the one that holds the byte before `end`, as far as the window has them whole.
    fn reach(&mut self, window: &[u8], start: u64, end: u64) {
        let blocks = self.waiting(window, start).as_chunks::<BLOCK>().0;
        let wanted = end.saturating_sub(self.hashed).div_ceil(super::count(BLOCK));
        let count = usize::try_from(wanted).unwrap_or(usize::MAX).min(blocks.len());
        self.hash.update(blocks.get(..count).unwrap_or_default());
        self.hashed += super::count(count * BLOCK);
    }
}

/// The usual case: blobs one behind the other, then the header.
fn read_regular(
    vault: &Vault,
    id: &Id,
    size: u64,
    blobs: &[PackedBlob],
    opener: &mut Opener,
    fault: &mut PackFault,
) -> Result<()> {
    let name = Folder::Data.object(id);
    let get = |from: u64, to: u64| {
        vault.storage().get_range(&name, from, usize::try_from(to.saturating_sub(from)).unwrap_or(usize::MAX))
    };
    let mut ahead = Ahead { hash: Running::default(), hashed: 0 };
    let mut blobs_end = 0;
    for (_, end, group) in windows(blobs, AHEAD) {
        // From the first block that is not hashed: it may begin in the last blob of the window before.
        let start = ahead.hashed;
        let mut window = get(start, end)?;
        for blob in group {
            let blob_end = u64::from(blob.offset) + u64::from(blob.length);
            ahead.reach(&window, start, blob_end);
            let from = usize::try_from(u64::from(blob.offset).saturating_sub(start)).unwrap_or(usize::MAX);
            let until = usize::try_from(blob_end.saturating_sub(start)).unwrap_or(usize::MAX);
            // What is hashed beside lies behind the blob.
            let (before, behind) = window.split_at_mut_checked(until).unwrap_or_default();
            let skip = usize::try_from(ahead.hashed.saturating_sub(blob_end)).unwrap_or(usize::MAX);
            let waiting = behind.get(skip..).unwrap_or_default();
            let sealed = before.get_mut(from..).unwrap_or_default();
            let Opener { decompressor, plain } = opener;
            let opened = vault
                .unseal(blob.kind, &blob.id, blob.uncompressed, sealed, decompressor, plain)
                .map(|plain| digest_beside(plain, &mut ahead.hash, waiting));
            match opened {
                Err(e) => fault.bad_blob(blob, told(&e)),
                Ok((found, taken)) => {
                    ahead.hashed += super::count(taken);
                    if found != blob.id {
                        fault.bad_blob(blob, told(&altered(&blob.id)));
                    }
                }
            }
        }
        blobs_end = end;
    }
    // What is left of the last blob's last block lies in front of the header.
    let mut tail = get(ahead.hashed, size)?;
    let found = ahead.hash.finish(&tail);
    let header = usize::try_from(blobs_end.saturating_sub(ahead.hashed)).unwrap_or(usize::MAX);
    if let Err(e) = check_header(vault, tail.get_mut(header..).unwrap_or_default(), size, blobs) {
        fault.what.push(told(&e));
    }
    if found != *id {
        fault.what.push("Its bytes do not match its name".into());
    }
    Ok(())
}

fn check_header(vault: &Vault, tail: &mut [u8], size: u64, blobs: &[PackedBlob]) -> Result<()> {
    let found = open_header(vault, tail, size)?;
    if found != blobs {
        return Err(Error::new(Code::VaultDamaged, "Its header lists other blobs than the index"));
    }
    Ok(())
}

/// The blobs that a sealed header lists; `tail` is the header and its length, the end of a pack of `size` bytes.
fn open_header(vault: &Vault, tail: &mut [u8], size: u64) -> Result<Vec<PackedBlob>> {
    let damaged = || Error::new(Code::VaultDamaged, "The header of a pack was altered");
    let (sealed, length) = tail.split_last_chunk_mut::<4>().ok_or_else(damaged)?;
    let length = header_size(*length, size)?;
    let start = sealed.len().checked_sub(length).ok_or_else(damaged)?;
    let header = vault.cipher().open(sealed.get_mut(start..).ok_or_else(damaged)?).ok_or_else(damaged)?;
    parse_header(header, size.saturating_sub(super::count(length) + 4))
}

/// Reads the header of a pack of `size` bytes.
pub(crate) fn read_header(vault: &Vault, id: &Id, size: u64) -> Result<Vec<PackedBlob>> {
    let name = Folder::Data.object(id);
    let too_short = || Error::new(Code::VaultDamaged, format!("The pack {name} is too short to be one"));
    let tail = vault.storage().get_range(&name, size.checked_sub(4).ok_or_else(too_short)?, 4)?;
    let tail: [u8; 4] = tail.as_slice().try_into().map_err(|_length| too_short())?;
    let length = header_size(tail, size)?;
    let from = size.saturating_sub(super::count(length) + 4);
    let mut sealed = vault.storage().get_range(&name, from, length + 4)?;
    open_header(vault, &mut sealed, size).map_err(|e| e.context(name))
}

/// A pack that does not fit the index: its hash in plain windows, its blobs one by one where the index says.
fn read_irregular(
    vault: &Vault,
    id: &Id,
    size: u64,
    blobs: &[PackedBlob],
    opener: &mut Opener,
    fault: &mut PackFault,
) -> Result<()> {
    let name = Folder::Data.object(id);
    let mut hasher = Sha256::new();
    let mut at = 0;
    while at < size {
        let length = usize::try_from((size - at).min(WINDOW)).unwrap_or(usize::MAX);
        hasher.update(&vault.storage().get_range(&name, at, length)?);
        at += super::count(length);
    }
    if Id(hasher.finalize().into()) != *id {
        fault.what.push("Its bytes do not match its name".into());
    }
    let within: Vec<PackedBlob> =
        blobs.iter().filter(|b| u64::from(b.offset) + u64::from(b.length) <= size).copied().collect();
    each_sealed(vault, id, &within, &mut |blob, sealed| {
        match sealed {
            Ok(sealed) => open(vault, blob, sealed, opener, fault),
            Err(e) if of_the_pack(&e) => fault.bad_blob(blob, told(&e)),
            Err(e) => return Err(e),
        }
        Ok(())
    })
}
