//! What lies in a vault and what of it is broken, below the level of trees.
//!
//! Invariants: snapshots are listed before the index and the index before the packs, so what a backup adds meanwhile
//! never looks as if it were missing. Only errors about single objects are collected; a storage that does not answer,
//! or a format that is not known, ends the survey.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};

use backstay_model::{Cancel, Code, Error, Progress, Result};
use parking_lot::Mutex;

use super::pack::{PackFault, check_size, read_pack};
use super::{Lost, count};
use crate::blob::BlobKind;
use crate::id::Id;
use crate::index::BlobIndex;
use crate::load::is_of_the_object;
use crate::pack::PackedBlob;
use crate::snapshot::Snapshot;
use crate::vault::{Folder, Vault};
use crate::walk::{Opener, each_blob, parallel};

/// Everything but the trees.
pub(crate) struct Survey {
    pub(crate) snapshots: Vec<(Id, Snapshot)>,
    pub(crate) bad_snapshots: Vec<(Id, Error)>,
    pub(crate) index: BlobIndex,
    pub(crate) bad_index: Vec<(Id, Error)>,
    /// All packs that exist, with their sizes.
    pub(crate) packs: HashMap<Id, u64>,
    /// Packs that the index names and that do not exist.
    pub(crate) missing_packs: Vec<Id>,
    /// Packs that no index names, with their sizes.
    pub(crate) unindexed: Vec<(Id, u64)>,
    /// What is wrong with packs that exist and are named.
    pub(crate) faults: BTreeMap<Id, PackFault>,
    pub(crate) read_bytes: u64,
}

impl Survey {
    pub(crate) fn take(
        vault: &Vault,
        read_data: bool,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Self> {
        let (snapshots, bad_snapshots) = read_snapshots(vault)?;
        let loaded = vault.load_index_and_damage(&|_| true)?;
        let packs = vault.objects(Folder::Data)?;
        let listed: HashSet<Id> = loaded.index.packs().iter().copied().collect();
        let sorted = |mut ids: Vec<Id>| {
            ids.sort_unstable();
            ids
        };
        let missing_packs = sorted(listed.iter().filter(|id| !packs.contains_key(id)).copied().collect());
        let unindexed = sorted(packs.keys().filter(|id| !listed.contains(id)).copied().collect());
        let unindexed = unindexed.into_iter().filter_map(|id| Some((id, *packs.get(&id)?))).collect();
        let (faults, read_bytes) =
            look_at_packs(vault, &loaded.index, &packs, read_data, (progress, cancel))?;
        Ok(Survey {
            snapshots,
            bad_snapshots,
            index: loaded.index,
            bad_index: loaded.damaged,
            packs,
            missing_packs,
            unindexed,
            faults,
            read_bytes,
        })
    }

    pub(crate) fn roots(&self) -> Vec<Id> {
        self.snapshots.iter().map(|(_, s)| s.tree).collect()
    }

    /// Whether a blob in its pack is known to be unreadable.
    pub(crate) fn is_bad(&self, pack: &Id, kind: BlobKind, id: &Id) -> bool {
        !self.packs.contains_key(pack) || self.faults.get(pack).is_some_and(|f| f.bad.contains(&(kind, *id)))
    }

    /// Indexed blobs of which no place is good.
    pub(crate) fn lost(&self) -> Lost {
        let mut lost = Lost::new();
        if self.missing_packs.is_empty() && self.faults.is_empty() {
            return lost;
        }
        for kind in [BlobKind::Data, BlobKind::Tree] {
            let collected = each_blob(&self.index, kind, &mut |_, id, places| {
                if places.iter().all(|p| self.is_bad(&p.pack, kind, &id)) {
                    lost.insert((kind, id));
                }
                Ok(())
            });
            debug_assert!(collected.is_ok(), "the visitor cannot fail");
        }
        lost
    }
}

#[allow(clippy::type_complexity)]
fn read_snapshots(vault: &Vault) -> Result<(Vec<(Id, Snapshot)>, Vec<(Id, Error)>)> {
    let ids = vault.ids(Folder::Snapshots)?;
    let bad = Mutex::new(Vec::new());
    let good = parallel(
        &ids,
        || Ok(Vec::new()),
        |good, id| {
            match vault.snapshot(id) {
                Ok(snapshot) => good.push((*id, snapshot)),
                Err(e) if e.code() == Code::ObjectNotFound => {}
                Err(e) if is_of_the_object(&e) => bad.lock().push((*id, e)),
                Err(e) => return Err(e),
            }
            Ok(())
        },
    )?;
    let mut good: Vec<_> = good.into_iter().flatten().collect();
    good.sort_by_key(|(id, s)| (s.time, *id));
    Ok((good, bad.into_inner()))
}

/// Compares packs with the index: their sizes, or all their bytes.
fn look_at_packs(
    vault: &Vault,
    index: &BlobIndex,
    packs: &HashMap<Id, u64>,
    read_data: bool,
    (progress, cancel): (&dyn Progress, &Cancel),
) -> Result<(BTreeMap<Id, PackFault>, u64)> {
    let mut work: Vec<(Id, u64, Vec<PackedBlob>)> =
        index.by_pack().into_iter().filter_map(|(id, blobs)| Some((id, *packs.get(&id)?, blobs))).collect();
    work.sort_unstable_by_key(|(id, ..)| *id);
    if read_data {
        progress.expect(count(work.len()), work.iter().map(|(_, size, _)| size).sum());
    }
    let bytes = AtomicU64::new(0);
    let found = parallel(
        &work,
        || Ok((BTreeMap::new(), Opener::new()?)),
        |(faults, opener), (id, size, blobs)| {
            cancel.check()?;
            let fault = if read_data {
                let fault = read_pack(vault, id, *size, blobs, opener)?;
                bytes.fetch_add(*size, Ordering::Relaxed);
                progress.done(1, *size);
                fault
            } else {
                check_size(*size, blobs)
            };
            if !fault.is_empty() {
                faults.insert(*id, fault);
            }
            Ok(())
        },
    )?;
    Ok((found.into_iter().flat_map(|(faults, _)| faults).collect(), bytes.into_inner()))
}
