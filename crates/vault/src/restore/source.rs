//! Blobs out of the vault.
//!
//! Invariants: nothing leaves here that is not authenticated and does not hash to its id. A blob that cannot be read
//! from one place is read from another; when a pack is gone, the index is read again (a prune may have moved its
//! blobs while the restore ran), a few times at most. Lock: one around the newest index, held while it is loaded,
//! so that many workers that meet the same lost pack load it once.

use std::sync::Arc;

use backstay_model::{Code, Error, Result};
use parking_lot::Mutex;

use crate::blob::{BlobKind, Place};
use crate::compress::Decompressor;
use crate::crypto::{MAC, NONCE};
use crate::id::Id;
use crate::index::BlobIndex;
use crate::reader::Reader;
use crate::vault::Folder;

/// How often the index is read again because a pack was gone.
const RELOADS: usize = 3;

/// What a worker keeps from blob to blob.
pub(super) struct Scratch {
    pub(super) decompressor: Decompressor,
    /// The plain content of the blob that was read last.
    pub(super) plain: Vec<u8>,
}

impl Scratch {
    pub(super) fn new() -> Result<Self> {
        Ok(Scratch { decompressor: Decompressor::new()?, plain: Vec::new() })
    }
}

/// Where the plain content of a blob is after it was opened.
#[derive(Clone, Copy, Debug)]
pub(super) enum Opened {
    /// In the bytes that were sealed: [`plain_part`].
    InPlace,
    /// In [`Scratch::plain`].
    InScratch,
}

/// The plain content of a blob that was opened in place.
pub(super) fn plain_part(opened: &[u8]) -> &[u8] {
    opened.get(NONCE..opened.len().saturating_sub(MAC)).unwrap_or_default()
}

/// The vault as restore reads it.
pub(super) struct Source<'a> {
    reader: &'a Reader,
    /// Indexes that were loaded since, the newest last.
    newer: Mutex<Vec<Arc<BlobIndex>>>,
}

impl<'a> Source<'a> {
    pub(super) fn new(reader: &'a Reader) -> Self {
        Source { reader, newer: Mutex::default() }
    }

    /// A range of a pack as it lies in the storage.
    pub(super) fn range(&self, pack: &Id, offset: u64, length: usize) -> Result<Vec<u8>> {
        self.reader.vault().storage().get_range(&Folder::Data.object(pack), offset, length)
    }

    /// Opens a blob. Where it was not compressed its plain content stays in `sealed`, without a copy.
    pub(super) fn open(
        &self,
        kind: BlobKind,
        id: &Id,
        uncompressed: Option<u32>,
        sealed: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<Opened> {
        let vault = self.reader.vault();
        if uncompressed.is_some() {
            let Scratch { decompressor, plain } = scratch;
            vault.open_blob(kind, id, uncompressed, sealed, decompressor, plain)?;
            return Ok(Opened::InScratch);
        }
        match vault.cipher().open(sealed) {
            Some(plain) if Id::of(plain) == *id => Ok(Opened::InPlace),
            _ => Err(Error::new(Code::VaultDamaged, format!("The blob {} was altered", id.short()))),
        }
    }

    /// Reads one blob from wherever it can be read.
    pub(super) fn blob(&self, kind: BlobKind, id: &Id, scratch: &mut Scratch) -> Result<()> {
        let mut problem = match self.blob_from(self.reader.index(), kind, id, scratch) {
            Ok(()) => return Ok(()),
            Err(e) => e,
        };
        for attempt in 0..RELOADS {
            if !may_have_moved(&problem) {
                break;
            }
            let index = self.newer_index(attempt)?;
            match self.blob_from(&index, kind, id, scratch) {
                Ok(()) => return Ok(()),
                Err(e) => problem = e,
            }
        }
        Err(problem)
    }

    /// Where a blob lies; the index is read again when this one does not know it.
    pub(super) fn place(&self, kind: BlobKind, id: &Id) -> Option<Place> {
        self.reader
            .index()
            .find(kind, id)
            .or_else(|| self.newer_index(0).ok().and_then(|index| index.find(kind, id)))
    }

    fn newer_index(&self, which: usize) -> Result<Arc<BlobIndex>> {
        let mut newer = self.newer.lock();
        if let Some(index) = newer.get(which) {
            return Ok(Arc::clone(index));
        }
        let (index, _) = self.reader.vault().load_index(&|_| true)?;
        let index = Arc::new(index);
        newer.push(Arc::clone(&index));
        Ok(index)
    }

    fn blob_from(&self, index: &BlobIndex, kind: BlobKind, id: &Id, scratch: &mut Scratch) -> Result<()> {
        let mut problem = None;
        for place in index.find_all(kind, id) {
            match self.blob_at(kind, id, &place, scratch) {
                Ok(()) => return Ok(()),
                Err(e) => problem = Some(e),
            }
        }
        Err(problem.unwrap_or_else(|| {
            Error::new(Code::ObjectNotFound, format!("The blob {} is not in the index", id.short()))
        }))
    }

    fn blob_at(&self, kind: BlobKind, id: &Id, place: &Place, scratch: &mut Scratch) -> Result<()> {
        // Sealing and incompressible data add a little to what a blob may hold.
        let limit = kind.limit() + kind.limit() / 64;
        if u64::from(place.length) > limit {
            let message = format!("The blob {} claims to take {} bytes", id.short(), place.length);
            return Err(Error::new(Code::LimitExceeded, message));
        }
        let length = usize::try_from(place.length).unwrap_or(usize::MAX);
        let mut sealed = self.range(&place.pack, u64::from(place.offset), length)?;
        if matches!(self.open(kind, id, place.uncompressed, &mut sealed, scratch)?, Opened::InPlace) {
            scratch.plain.clear();
            scratch.plain.extend_from_slice(plain_part(&sealed));
        }
        Ok(())
    }
}

/// Whether a newer index may know better.
fn may_have_moved(e: &Error) -> bool {
    e.code() == Code::ObjectNotFound
}

/// Whether an error of the storage is about all of it and not about one object: the restore ends.
pub(super) fn is_fatal(e: &Error) -> bool {
    matches!(e.code(), Code::StorageUnavailable | Code::Cancelled)
}
