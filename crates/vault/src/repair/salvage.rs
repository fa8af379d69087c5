//! What of the packs can be used, and what of damaged ones can be moved away.
//!
//! Invariants: nothing is written. A blob counts as readable only after it was opened and compared with its id, except
//! in packs in which the check found nothing.

use std::collections::{BTreeMap, HashSet};

use backstay_model::{Cancel, Result};
use parking_lot::Mutex;

use super::{DamagedPack, ids_of, listed};
use crate::blob::BlobKind;
use crate::check::pack::{read_header, read_pack};
use crate::check::survey::Survey;
use crate::check::{Lost, count};
use crate::id::Id;
use crate::index::{BlobIndex, IndexedPack};
use crate::load::is_of_the_object;
use crate::pack::PackedBlob;
use crate::vault::Vault;
use crate::walk::{Opener, parallel};

/// What can be used.
pub(super) struct Mended {
    /// Packs as the new index lists them.
    pub(super) healthy: Vec<IndexedPack>,
    /// Readable blobs of damaged packs that no healthy pack holds.
    pub(super) salvage: Vec<(Id, Vec<PackedBlob>)>,
    /// All of both, where they lie now.
    pub(super) index: BlobIndex,
    pub(super) found: Vec<Id>,
    pub(super) damaged: Vec<DamagedPack>,
}

/// A pack that was read blob by blob.
struct Read {
    readable: Vec<PackedBlob>,
    unreadable: u64,
    whole: bool,
}

/// Reads a pack by what its header says and what the index says.
fn read(vault: &Vault, id: &Id, size: u64, known: &[PackedBlob], opener: &mut Opener) -> Result<Read> {
    let header = match read_header(vault, id, size) {
        Ok(blobs) => blobs,
        Err(e) if is_of_the_object(&e) => Vec::new(),
        Err(e) => return Err(e),
    };
    let mut blobs: Vec<PackedBlob> = header.iter().chain(known).copied().collect();
    blobs.sort_unstable_by_key(|b| (b.offset, b.id, b.kind, b.length, b.uncompressed));
    blobs.dedup();
    let fault = read_pack(vault, id, size, &blobs, opener)?;
    let (bad, readable): (Vec<_>, Vec<_>) =
        blobs.into_iter().partition(|b| fault.bad.contains(&(b.kind, b.id)));
    Ok(Read { readable, unreadable: count(bad.len()), whole: fault.is_empty() && !header.is_empty() })
}

/// Works out what the new index can list.
pub(super) fn mend(vault: &Vault, survey: &Survey, lost: &Lost, cancel: &Cancel) -> Result<Mended> {
    let mut by_pack = survey.index.by_pack();
    let mut healthy: Vec<IndexedPack> = Vec::new();
    let mut doubtful: Vec<(Id, u64, Vec<PackedBlob>)> = Vec::new();
    for (id, size) in &survey.packs {
        let Some(blobs) = by_pack.remove(id) else { continue };
        if survey.faults.contains_key(id) {
            doubtful.push((*id, *size, blobs));
        } else {
            healthy.push(listed(*id, &blobs));
        }
    }
    // Packs without an index are looked at only when something is missing: else they are what was left over.
    let named = doubtful.len();
    if !lost.is_empty() || !survey.bad_index.is_empty() {
        doubtful.extend(survey.unindexed.iter().map(|(id, size)| (*id, *size, Vec::new())));
    }
    let order: BTreeMap<Id, bool> =
        doubtful.iter().enumerate().map(|(n, (id, ..))| (*id, n < named)).collect();
    let results = Mutex::new(BTreeMap::new());
    parallel(&doubtful, Opener::new, |opener, (id, size, known)| {
        cancel.check()?;
        let result = read(vault, id, *size, known, opener)?;
        results.lock().insert(*id, result);
        Ok(())
    })?;
    healthy.sort_unstable_by_key(|p| p.id);
    let mut have = ids_of(&healthy);
    let (mut found, mut damaged, mut salvage) = (Vec::new(), Vec::new(), Vec::new());
    let mut results = results.into_inner();
    // Whole packs first: what they hold need not be moved out of damaged ones.
    for (id, read) in results.iter().filter(|(_, r)| r.whole) {
        if has_new(&read.readable, &have) || order.get(id) == Some(&true) {
            have.extend(read.readable.iter().map(|b| (b.kind, b.id)));
            healthy.push(listed(*id, &read.readable));
            found.push(*id);
        }
    }
    results.retain(|_, r| !r.whole);
    for (id, read) in results {
        let unreadable = read.unreadable;
        let wanted: Vec<PackedBlob> =
            read.readable.into_iter().filter(|b| have.insert((b.kind, b.id))).collect();
        if order.get(&id) == Some(&true) || !wanted.is_empty() {
            damaged.push(DamagedPack { id, salvaged: count(wanted.len()), unreadable });
        }
        if !wanted.is_empty() {
            salvage.push((id, wanted));
        }
    }
    let mut index = BlobIndex::default();
    index.add(&healthy, |_| true);
    index.add(&salvage.iter().map(|(id, blobs)| listed(*id, blobs)).collect::<Vec<_>>(), |_| true);
    index.sort();
    Ok(Mended { healthy, salvage, index, found, damaged })
}

fn has_new(blobs: &[PackedBlob], have: &HashSet<(BlobKind, Id)>) -> bool {
    blobs.iter().any(|b| !have.contains(&(b.kind, b.id)))
}
