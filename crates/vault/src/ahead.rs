//! Small blobs of a distant storage: read in larger pieces than asked for, and kept for a while.
//!
//! Each folder has a tree of mostly less than a kilobyte, each small file a blob of its own, and blobs that are needed
//! together lie together in a pack: a walk that asked for each alone would wait for the network each time. Invariants:
//! bounded memory ([`KEPT`] pieces of [`PIECE`] bytes); nothing from here is believed more than the storage: whoever opens
//! it compares ids, and asks the storage itself when that fails. Packs never change under their names, so nothing here
//! grows old. Locks: one around the list of pieces, held while it is searched; one around each piece, held while it is
//! fetched, so that threads that want the same piece fetch it once.

use std::collections::VecDeque;
use std::sync::Arc;

use backstay_storage::Storage;
use parking_lot::Mutex;

use crate::blob::Place;
use crate::id::Id;
use crate::vault::Folder;

/// Bytes read at once.
const PIECE: u64 = 1 << 20;
/// Pieces kept.
const KEPT: usize = 16;

/// A piece that is there once somebody has fetched it.
#[derive(Debug)]
struct Piece {
    pack: Id,
    number: u64,
    bytes: Mutex<Option<Vec<u8>>>,
}

/// The pieces that were read last, the newest first.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    pieces: Mutex<VecDeque<Arc<Piece>>>,
    /// The size of the pack that was asked for last.
    size: Mutex<Option<(Id, u64)>>,
}

impl Ahead {
    /// The sealed bytes of a blob; none for large ones, and when they could not be read in this way.
    pub(crate) fn range(&self, storage: &dyn Storage, place: &Place) -> Option<Vec<u8>> {
        if u64::from(place.length) > PIECE / 2 {
            return None;
        }
        let (from, to) = (u64::from(place.offset), u64::from(place.offset) + u64::from(place.length));
        let mut out = Vec::with_capacity(usize::try_from(place.length).ok()?);
        for number in from / PIECE..to.div_ceil(PIECE) {
            let piece = self.piece(&place.pack, number);
            let mut bytes = piece.bytes.lock();
            if bytes.is_none() {
                *bytes = Some(self.fetch(storage, &place.pack, number)?);
            }
            let start = number * PIECE;
            let begin = usize::try_from(from.saturating_sub(start)).ok()?;
            let end = usize::try_from((to - start).min(PIECE)).ok()?;
            out.extend_from_slice(bytes.as_ref()?.get(begin..end)?);
        }
        Some(out)
    }

    /// A piece, fetched or to be fetched, now the newest.
    fn piece(&self, pack: &Id, number: u64) -> Arc<Piece> {
        let mut pieces = self.pieces.lock();
        let known = pieces.iter().position(|p| p.number == number && p.pack == *pack);
        let piece = known
            .and_then(|at| pieces.remove(at))
            .unwrap_or_else(|| Arc::new(Piece { pack: *pack, number, bytes: Mutex::new(None) }));
        pieces.push_front(Arc::clone(&piece));
        pieces.truncate(KEPT);
        piece
    }

    fn fetch(&self, storage: &dyn Storage, pack: &Id, number: u64) -> Option<Vec<u8>> {
        let name = Folder::Data.object(pack);
        let known = self.size.lock().filter(|(id, _)| id == pack).map(|(_, size)| size);
        let size = match known {
            Some(size) => size,
            None => {
                let size = storage.size(&name).ok()?;
                *self.size.lock() = Some((*pack, size));
                size
            }
        };
        let start = number * PIECE;
        let length = usize::try_from(size.checked_sub(start)?.min(PIECE)).ok()?;
        storage.get_range(&name, start, length).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use backstay_model::Result;
    use backstay_storage::{Memory, Object, Put};

    use super::*;

    /// Counts what is read.
    #[derive(Debug, Default)]
    struct Counting {
        memory: Memory,
        reads: AtomicUsize,
    }

    impl Storage for Counting {
        fn location(&self) -> String {
            self.memory.location()
        }
        fn put(&self, name: &str, bytes: &[u8], mode: Put) -> Result<()> {
            self.memory.put(name, bytes, mode)
        }
        fn get(&self, name: &str) -> Result<Vec<u8>> {
            self.memory.get(name)
        }
        fn get_range(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            self.memory.get_range(name, offset, len)
        }
        fn size(&self, name: &str) -> Result<u64> {
            self.memory.size(name)
        }
        fn list(&self, folder: &str, each: &mut dyn FnMut(Object) -> Result<()>) -> Result<()> {
            self.memory.list(folder, each)
        }
        fn delete(&self, name: &str) -> Result<()> {
            self.memory.delete(name)
        }
    }

    fn place(pack: Id, offset: usize, length: usize) -> Place {
        let number = |n: usize| u32::try_from(n).unwrap();
        Place { pack, offset: number(offset), length: number(length), uncompressed: None }
    }

    #[test]
    fn what_lies_together_is_read_once_and_exactly() {
        let storage = Counting::default();
        let piece = usize::try_from(PIECE).unwrap();
        let bytes: Vec<u8> = (0..2 * piece + 500).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect();
        let pack = Id::of(&bytes);
        storage.put(&Folder::Data.object(&pack), &bytes, Put::IfAbsent).unwrap();
        let ahead = Ahead::default();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (ahead, storage, bytes) = (&ahead, &storage, &bytes);
                scope.spawn(move || {
                    for n in 0..300 {
                        let (offset, length) = ((n * 6991 + thread) % (2 * piece), 1 + n % 400);
                        let got = ahead.range(storage, &place(pack, offset, length)).unwrap();
                        assert!(got == bytes[offset..offset + length], "{length} from {offset}");
                    }
                });
            }
        });
        assert_eq!(storage.reads.load(Ordering::Relaxed), 2, "two pieces are fetched once each");
        // Over an edge, the last bytes, the largest; beyond the end, larger ones and packs that are gone are none.
        for (offset, length) in [(piece - 1, 2), (2 * piece + 499, 1), (piece * 3 / 4, piece / 2)] {
            assert!(
                ahead.range(&storage, &place(pack, offset, length)).unwrap()
                    == bytes[offset..offset + length]
            );
        }
        assert!(ahead.range(&storage, &place(pack, 2 * piece + 499, 2)).is_none());
        assert!(ahead.range(&storage, &place(pack, 0, piece / 2 + 1)).is_none());
        assert!(ahead.range(&storage, &place(Id::of(b"gone"), 0, 1)).is_none());
        assert_eq!(storage.reads.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn memory_is_bounded_by_the_number_of_pieces() {
        let storage = Counting::default();
        let ahead = Ahead::default();
        for n in 0..3 * KEPT {
            let pack = Id::of(&n.to_le_bytes());
            storage.put(&Folder::Data.object(&pack), &[1; 100], Put::IfAbsent).unwrap();
            assert_eq!(ahead.range(&storage, &place(pack, 5, 50)).unwrap(), [1; 50]);
            assert!(ahead.pieces.lock().len() <= KEPT);
        }
    }
}
