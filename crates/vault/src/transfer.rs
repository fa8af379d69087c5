//! Moving blobs in bulk: reading many blobs of a pack in few requests, and packing blobs into new packs.
//!
//! Invariants: a worker holds one window of a source pack and one open pack of each kind; what is packed is stored
//! before it is listed, and listed only when [`Packer::finish`] has stored all of it. Until an index names them the new
//! packs are leftovers that prune removes. The one lock guards the lists of finished packs.

use std::collections::BTreeMap;

use backstay_model::{Code, Result};
use backstay_storage::Put;
use parking_lot::Mutex;

use crate::blob::BlobKind;
use crate::compress::Compressor;
use crate::crypto::Nonces;
use crate::id::Id;
use crate::index::{BLOBS_PER_INDEX, IndexFile, IndexedBlob, IndexedPack};
use crate::pack::{Absorbed, Pack, PackBuffer, PackedBlob};
use crate::vault::{Folder, Vault};

/// Most bytes that are read from a pack at once, unless one blob is larger.
pub(crate) const WINDOW: u64 = 8 << 20;
/// Bytes between two wanted blobs that are read along rather than asked for anew.
const GAP: u64 = 64 << 10;

/// Groups blobs, sorted by offset, into ranges of a pack that are read at once. Blobs that overlap (in hostile packs)
/// have ranges of their own, because opening one alters its bytes. A range has at most `limit` bytes or one blob.
pub(crate) fn windows(blobs: &[PackedBlob], limit: u64) -> Vec<(u64, u64, &[PackedBlob])> {
    let mut out = Vec::new();
    let mut rest = blobs;
    while let Some(first) = rest.first() {
        let start = u64::from(first.offset);
        let mut end = start;
        let mut count = 0;
        for blob in rest {
            let (from, to) = (u64::from(blob.offset), u64::from(blob.offset) + u64::from(blob.length));
            if count > 0 && (from < end || from > end + GAP || to - start > limit) {
                break;
            }
            end = to;
            count += 1;
        }
        let (group, after) = rest.split_at(count);
        out.push((start, end, group));
        rest = after;
    }
    out
}

/// Told about a blob that was read: still sealed, or why it cannot be read.
pub(crate) type EachSealed<'a> = dyn FnMut(&PackedBlob, Result<&mut [u8]>) -> Result<()> + 'a;

/// Reads blobs of one pack, sorted by offset, and gives each, still sealed, to `each`. A range that cannot be read is
/// given as its error to every blob in it.
pub(crate) fn each_sealed(
    vault: &Vault,
    pack: &Id,
    blobs: &[PackedBlob],
    each: &mut EachSealed<'_>,
) -> Result<()> {
    let name = Folder::Data.object(pack);
    for (start, end, group) in windows(blobs, WINDOW) {
        let length = usize::try_from(end - start).unwrap_or(usize::MAX);
        match vault.storage().get_range(&name, start, length) {
            Ok(mut window) => {
                for blob in group {
                    let from = usize::try_from(u64::from(blob.offset) - start).unwrap_or(usize::MAX);
                    let to = from.saturating_add(usize::try_from(blob.length).unwrap_or(usize::MAX));
                    each(blob, Ok(window.get_mut(from..to).unwrap_or_default()))?;
                }
            }
            // One at a time: a pack that was cut short still has its first blobs.
            Err(_) => {
                for blob in group {
                    let length = usize::try_from(blob.length).unwrap_or(usize::MAX);
                    match vault.storage().get_range(&name, u64::from(blob.offset), length) {
                        Ok(mut sealed) => each(blob, Ok(&mut sealed))?,
                        Err(e) => each(blob, Err(e))?,
                    }
                }
            }
        }
    }
    Ok(())
}

/// Collects the packs that workers fill.
pub(crate) struct Packer<'a> {
    vault: &'a Vault,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    stored: Vec<IndexedPack>,
    partial: Vec<PackBuffer>,
    bytes: u64,
    all: Vec<Id>,
}

/// One worker's open packs.
pub(crate) struct Filler {
    data: PackBuffer,
    trees: PackBuffer,
    pub(crate) nonces: Nonces,
}

impl Filler {
    pub(crate) fn new() -> Self {
        Filler {
            data: PackBuffer::new(BlobKind::Data, Vec::new()),
            trees: PackBuffer::new(BlobKind::Tree, Vec::new()),
            nonces: Nonces::default(),
        }
    }

    fn buffer(&mut self, kind: BlobKind) -> &mut PackBuffer {
        match kind {
            BlobKind::Data => &mut self.data,
            BlobKind::Tree => &mut self.trees,
        }
    }
}

impl<'a> Packer<'a> {
    pub(crate) fn new(vault: &'a Vault) -> Self {
        Packer { vault, state: Mutex::default() }
    }

    /// Appends a blob that is sealed for this vault.
    pub(crate) fn push_sealed(
        &self,
        filler: &mut Filler,
        kind: BlobKind,
        id: Id,
        sealed: &[u8],
        uncompressed: Option<u32>,
    ) -> Result<()> {
        filler.buffer(kind).push_sealed(id, sealed, uncompressed)?;
        self.store_if_full(filler, kind)
    }

    /// Compresses where it helps, seals and appends a plain blob.
    pub(crate) fn push(
        &self,
        filler: &mut Filler,
        kind: BlobKind,
        id: Id,
        plain: &[u8],
        compressor: Option<&mut Compressor>,
    ) -> Result<()> {
        let Filler { data, trees, nonces } = filler;
        let buffer = if kind == BlobKind::Data { data } else { trees };
        buffer.push(id, plain, compressor, self.vault.cipher(), nonces)?;
        self.store_if_full(filler, kind)
    }

    fn store_if_full(&self, filler: &mut Filler, kind: BlobKind) -> Result<()> {
        if filler.buffer(kind).is_full() {
            let full = std::mem::replace(filler.buffer(kind), PackBuffer::new(kind, Vec::new()));
            let buffer = self.store(full, &mut filler.nonces)?;
            *filler.buffer(kind) = PackBuffer::new(kind, buffer);
        }
        Ok(())
    }

    /// Stores a pack and notes it; gives its buffer back.
    fn store(&self, pack: PackBuffer, nonces: &mut Nonces) -> Result<Vec<u8>> {
        let Pack { id, bytes, length, blobs } = pack.close(self.vault.cipher(), nonces)?;
        let content = bytes.get(..length).unwrap_or_default();
        match self.vault.storage().put(&Folder::Data.object(&id), content, Put::IfAbsent) {
            // The same bytes under the same name: an answer that was lost and a request that was repeated.
            Err(e) if e.code() == Code::ObjectExists => {}
            other => other?,
        }
        let mut state = self.state.lock();
        state.bytes += u64::try_from(length).unwrap_or(0);
        state.all.push(id);
        state.stored.push(IndexedPack { id, blobs: blobs.iter().map(IndexedBlob::from).collect() });
        drop(state);
        Ok(bytes)
    }

    /// Takes a worker's open packs over.
    pub(crate) fn hand_in(&self, filler: Filler) {
        let open = [filler.data, filler.trees].into_iter().filter(|b| !b.is_empty());
        self.state.lock().partial.extend(open);
    }

    /// The packs stored since the last call.
    pub(crate) fn take_stored(&self) -> Vec<IndexedPack> {
        std::mem::take(&mut self.state.lock().stored)
    }

    /// Stores what workers handed in, merged. Gives all packs not taken yet, the ids of all that were stored, and
    /// their bytes.
    pub(crate) fn finish(self) -> Result<(Vec<IndexedPack>, Vec<Id>, u64)> {
        let mut nonces = Nonces::default();
        let mut open: Vec<PackBuffer> = Vec::new();
        let partial = std::mem::take(&mut self.state.lock().partial);
        for buffer in partial {
            let mut rest = Some(buffer);
            for other in &mut open {
                if let Some(buffer) = rest.take()
                    && let Absorbed::TooLarge(back) = other.absorb(buffer)?
                {
                    rest = Some(back);
                }
            }
            open.extend(rest);
        }
        for buffer in open {
            self.store(buffer, &mut nonces)?;
        }
        let state = self.state.into_inner();
        Ok((state.stored, state.all, state.bytes))
    }
}

/// Writes index objects for packs; a pack that is given several times is listed once with all its blobs.
pub(crate) fn write_index(vault: &Vault, packs: impl IntoIterator<Item = IndexedPack>) -> Result<Vec<Id>> {
    let mut merged: BTreeMap<Id, IndexedPack> = BTreeMap::new();
    for pack in packs {
        match merged.entry(pack.id) {
            std::collections::btree_map::Entry::Vacant(new) => _ = new.insert(pack),
            std::collections::btree_map::Entry::Occupied(mut known) => {
                known.get_mut().blobs.extend(pack.blobs)
            }
        }
    }
    let mut written = Vec::new();
    let mut file = IndexFile::default();
    let mut count = 0;
    for mut pack in merged.into_values() {
        pack.blobs.sort_unstable_by_key(|b| (b.offset, b.id, b.kind));
        pack.blobs.dedup_by_key(|b| (b.offset, b.id, b.kind));
        if count > 0 && count + pack.blobs.len() > BLOBS_PER_INDEX {
            written.push(vault.put_json(Folder::Index, &std::mem::take(&mut file))?);
            count = 0;
        }
        count += pack.blobs.len();
        file.packs.push(pack);
    }
    if !file.packs.is_empty() {
        written.push(vault.put_json(Folder::Index, &file)?);
    }
    Ok(written)
}
