//! The index: which pack holds which blob.
//!
//! Invariants: an index object names only packs that exist when it is written; it is never changed, only
//! superseded. In memory it is two sorted lists of 48 bytes a blob, nothing else, so a million blobs take
//! 48 MB. A blob may be listed more than once (two writers stored it at the same time); all places are kept.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::blob::{BlobKind, Place};
use crate::id::Id;
use crate::pack::PackedBlob;

/// Most blobs that one index object lists; restic's number.
pub const BLOBS_PER_INDEX: usize = 50_000;

/// The JSON of an index object.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct IndexFile {
    /// Index objects that this one replaces (old restic versions; read and ignored).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub supersedes: Vec<Id>,
    /// The packs it lists.
    pub packs: Vec<IndexedPack>,
}

/// A pack in an index object.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IndexedPack {
    /// The pack.
    pub id: Id,
    /// What is in it.
    pub blobs: Vec<IndexedBlob>,
}

/// A blob in an index object.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct IndexedBlob {
    /// The blob.
    pub id: Id,
    /// Its kind.
    #[serde(rename = "type")]
    pub kind: BlobKind,
    /// First byte in the pack.
    pub offset: u32,
    /// Bytes in the pack.
    pub length: u32,
    /// Plain bytes when compressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uncompressed_length: Option<u32>,
}

impl From<&PackedBlob> for IndexedBlob {
    fn from(b: &PackedBlob) -> Self {
        IndexedBlob {
            id: b.id,
            kind: b.kind,
            offset: b.offset,
            length: b.length,
            uncompressed_length: b.uncompressed,
        }
    }
}

impl From<&IndexedBlob> for PackedBlob {
    fn from(b: &IndexedBlob) -> Self {
        PackedBlob {
            id: b.id,
            kind: b.kind,
            offset: b.offset,
            length: b.length,
            uncompressed: b.uncompressed_length,
        }
    }
}

#[derive(Clone, Copy)]
struct Slot {
    id: Id,
    pack: u32,
    offset: u32,
    length: u32,
    /// Plain bytes when compressed, 0 when not (a compressed blob is never empty).
    plain: u32,
}

/// All blobs of a vault, for looking up.
#[derive(Default)]
pub struct BlobIndex {
    packs: Vec<Id>,
    data: Vec<Slot>,
    trees: Vec<Slot>,
    sorted: bool,
}

impl BlobIndex {
    /// Adds the packs of an index object, except those for which `keep` says no. Call [`BlobIndex::sort`] after the last.
    pub fn add(&mut self, packs: &[IndexedPack], keep: impl Fn(&Id) -> bool) {
        self.sorted = false;
        for pack in packs.iter().filter(|p| keep(&p.id)) {
            // More packs than that would not fit into memory in the first place.
            let Ok(number) = u32::try_from(self.packs.len()) else { return };
            self.packs.push(pack.id);
            for b in &pack.blobs {
                let slot = Slot {
                    id: b.id,
                    pack: number,
                    offset: b.offset,
                    length: b.length,
                    plain: b.uncompressed_length.unwrap_or(0),
                };
                match b.kind {
                    BlobKind::Data => self.data.push(slot),
                    BlobKind::Tree => self.trees.push(slot),
                }
            }
        }
    }

    /// Takes over all of another one.
    pub fn merge(&mut self, other: BlobIndex) {
        self.sorted = false;
        let Ok(shift) = u32::try_from(self.packs.len()) else { return };
        self.packs.extend(other.packs);
        let moved = |mut slot: Slot| {
            slot.pack = slot.pack.saturating_add(shift);
            slot
        };
        self.data.extend(other.data.into_iter().map(moved));
        self.trees.extend(other.trees.into_iter().map(moved));
    }

    /// Makes it searchable.
    pub fn sort(&mut self) {
        let key = |s: &Slot| (s.id, s.pack, s.offset);
        self.data.sort_unstable_by_key(key);
        self.trees.sort_unstable_by_key(key);
        let same = |a: &mut Slot, b: &mut Slot| key(a) == key(b);
        self.data.dedup_by(same);
        self.trees.dedup_by(same);
        self.sorted = true;
    }

    fn list(&self, kind: BlobKind) -> &[Slot] {
        match kind {
            BlobKind::Data => &self.data,
            BlobKind::Tree => &self.trees,
        }
    }

    fn range(&self, kind: BlobKind, id: &Id) -> &[Slot] {
        debug_assert!(self.sorted, "searched before sorted");
        let list = self.list(kind);
        // Ids are evenly spread, so the first eight bytes tell nearly where to look.
        let start = guess(list, id);
        let run = list.get(start..).unwrap_or_default().iter().take_while(|s| s.id == *id).count();
        list.get(start..start + run).unwrap_or_default()
    }

    fn place(&self, slot: &Slot) -> Option<Place> {
        let pack = usize::try_from(slot.pack).ok().and_then(|n| self.packs.get(n))?;
        Some(Place {
            pack: *pack,
            offset: slot.offset,
            length: slot.length,
            uncompressed: (slot.plain != 0).then_some(slot.plain),
        })
    }

    /// How many places of blobs of a kind are listed.
    #[must_use]
    pub fn count(&self, kind: BlobKind) -> usize {
        self.list(kind).len()
    }

    /// The blob at a position of the sorted list, with that place of it.
    #[must_use]
    pub fn at(&self, kind: BlobKind, position: usize) -> Option<(Id, Place)> {
        self.list(kind).get(position).and_then(|s| Some((s.id, self.place(s)?)))
    }

    /// The position of the first place of a blob; its other places follow.
    #[must_use]
    pub fn position(&self, kind: BlobKind, id: &Id) -> Option<usize> {
        let list = self.list(kind);
        let start = guess(list, id);
        list.get(start).is_some_and(|s| s.id == *id).then_some(start)
    }

    /// Whether the blob is listed.
    #[must_use]
    pub fn has(&self, kind: BlobKind, id: &Id) -> bool {
        !self.range(kind, id).is_empty()
    }

    /// A place of the blob.
    #[must_use]
    pub fn find(&self, kind: BlobKind, id: &Id) -> Option<Place> {
        self.range(kind, id).first().and_then(|s| self.place(s))
    }

    /// All places of the blob.
    pub fn find_all(&self, kind: BlobKind, id: &Id) -> impl Iterator<Item = Place> + '_ {
        self.range(kind, id).iter().filter_map(|s| self.place(s))
    }

    /// All blobs of a kind with their places, in the order of their ids.
    pub fn blobs(&self, kind: BlobKind) -> impl Iterator<Item = (Id, Place)> + '_ {
        self.list(kind).iter().filter_map(|s| Some((s.id, self.place(s)?)))
    }

    /// The packs that are listed, each once for every index object that lists it.
    #[must_use]
    pub fn packs(&self) -> &[Id] {
        &self.packs
    }

    /// How many places of blobs are listed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.data.len() + self.trees.len()
    }

    /// Whether nothing is listed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What each pack holds, in the order of offsets.
    #[must_use]
    pub fn by_pack(&self) -> HashMap<Id, Vec<PackedBlob>> {
        let mut out: HashMap<Id, Vec<PackedBlob>> = HashMap::new();
        for kind in [BlobKind::Data, BlobKind::Tree] {
            for (id, place) in self.blobs(kind) {
                out.entry(place.pack).or_default().push(PackedBlob {
                    id,
                    kind,
                    offset: place.offset,
                    length: place.length,
                    uncompressed: place.uncompressed,
                });
            }
        }
        for blobs in out.values_mut() {
            blobs.sort_unstable_by_key(|b| (b.offset, b.id));
            blobs.dedup();
        }
        out
    }
}

/// The first position whose id is not below `id`: interpolation to a window, then halving.
fn guess(list: &[Slot], id: &Id) -> usize {
    let count = list.len();
    let expected = usize::try_from((u128::from(id.prefix()) * count as u128) >> 64).unwrap_or(0);
    let reach = 16 + count.isqrt();
    let (low, high) = (expected.saturating_sub(reach), (expected + reach).min(count));
    let below = |n: usize| list.get(n).is_some_and(|s| s.id < *id);
    let low_fits = low == 0 || below(low - 1);
    let high_fits = high == count || !below(high);
    if low_fits && high_fits {
        low + list.get(low..high).unwrap_or_default().partition_point(|s| s.id < *id)
    } else {
        list.partition_point(|s| s.id < *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(number: u32, blobs: u32) -> IndexedPack {
        let blob = |n: u32| IndexedBlob {
            id: Id::of(&(number * 100_000 + n).to_le_bytes()),
            kind: if n.is_multiple_of(5) { BlobKind::Tree } else { BlobKind::Data },
            offset: n * 10,
            length: 40,
            uncompressed_length: n.is_multiple_of(2).then_some(n + 1),
        };
        IndexedPack { id: Id::of(&number.to_be_bytes()), blobs: (0..blobs).map(blob).collect() }
    }

    #[test]
    fn everything_that_was_added_is_found_and_nothing_else() {
        let packs = [pack(1, 3000), pack(2, 1), pack(3, 0)];
        let mut index = BlobIndex::default();
        index.add(&packs, |_| true);
        let mut more = BlobIndex::default();
        more.add(&[pack(4, 500), pack(1, 3000)], |_| true);
        index.merge(more);
        index.sort();
        for pack in packs.iter().chain([&pack(4, 500)]) {
            for blob in &pack.blobs {
                let place = index.find(blob.kind, &blob.id).unwrap();
                assert_eq!((place.pack, place.offset), (pack.id, blob.offset));
                assert_eq!(place.uncompressed, blob.uncompressed_length);
                let other = if blob.kind == BlobKind::Data { BlobKind::Tree } else { BlobKind::Data };
                assert!(!index.has(other, &blob.id));
            }
        }
        assert!(!index.has(BlobKind::Data, &Id::of(b"absent")));
        assert!(!index.has(BlobKind::Data, &Id([0; 32])));
        assert!(!index.has(BlobKind::Data, &Id([255; 32])));
    }

    #[test]
    fn packs_that_are_gone_are_left_out() {
        let mut index = BlobIndex::default();
        let gone = pack(1, 10);
        index.add(&[gone.clone(), pack(2, 10)], |id| *id != gone.id);
        index.sort();
        assert!(!index.has(gone.blobs[1].kind, &gone.blobs[1].id));
        assert_eq!(index.len(), 10);
    }

    #[test]
    fn the_json_is_restics() {
        let file = IndexFile { supersedes: vec![], packs: vec![pack(1, 2)] };
        let text = serde_json::to_string(&file).unwrap();
        assert!(text.starts_with(r#"{"packs":[{"id":""#), "{text}");
        assert!(text.contains(r#""type":"tree","offset":0,"length":40,"uncompressed_length":1}"#), "{text}");
        let again: IndexFile = serde_json::from_str(&text).unwrap();
        assert_eq!(again.packs[0].blobs.len(), 2);
    }
}
