//! Repair: mending what can be mended, and saying what cannot.
//!
//! Invariants:
//! * It works under the exclusive lock, which the plan takes and holds.
//! * It never deletes data: a damaged pack whose readable blobs were moved away stays as a leftover until the next
//!   prune, an index object goes only when new ones list everything that can be read. Snapshots that lost something
//!   are written anew without the lost files beside the original, which goes only when the caller says so.
//! * What it does not know (a newer format) is never repaired: opening such a vault fails before.
//!
//! Order: salvaged packs, new index, deletion of the old index objects, new trees and their index, new snapshots,
//! deletion of originals where wanted. A crash in between leaves a vault on which repair works again.
//!
//! What stays lost heals by itself when the source still has the data: the new index does not list it, so the next
//! backup stores it again, and the original snapshots are whole again.

mod rewrite;
mod salvage;

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use backstay_model::{Cancel, Phase, Progress, Result};
use serde::{Deserialize, Serialize};

use crate::blob::BlobKind;
use crate::check::{AffectedPoint, CheckOptions, Finding, FindingKind, Lost, count, examine, told};
use crate::id::Id;
use crate::index::{IndexedBlob, IndexedPack};
use crate::lock::{Lock, Strength};
use crate::pack::PackedBlob;
use crate::prune::Amount;
use crate::transfer::{Filler, Packer, each_sealed, write_index};
use crate::vault::{Folder, Vault};
use crate::walk::{Opener, parallel};

/// The tag of a snapshot that was written anew without what was lost.
pub const REPAIRED: &str = "repaired";

/// What repair does.
#[derive(Clone, Debug)]
pub struct RepairOptions {
    /// Read every pack. Without it only what shows in sizes, the index and the trees is found.
    pub read_data: bool,
    /// Delete the snapshots that lost something once they are written anew, and those that cannot be read at all.
    pub remove_originals: bool,
    /// How long others are waited for.
    pub wait: Duration,
}

impl Default for RepairOptions {
    fn default() -> Self {
        RepairOptions { read_data: true, remove_originals: false, wait: Duration::from_secs(60) }
    }
}

/// A pack that is damaged and named by the index, or that could replace such.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedPack {
    /// The pack.
    pub id: Id,
    /// Blobs that are moved to a new pack.
    pub salvaged: u64,
    /// Blobs that cannot be read from it.
    pub unreadable: u64,
}

/// What repair found and would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairPlan {
    /// Index objects that cannot be read; they are replaced.
    pub damaged_index: Vec<Id>,
    /// Packs that the index names and that do not exist; they leave the index.
    pub missing_packs: Vec<Id>,
    /// Whole packs that no index named and that hold something of use; they enter the index.
    pub found_packs: Vec<Id>,
    /// Damaged packs.
    pub damaged_packs: Vec<DamagedPack>,
    /// Pieces of content and trees that stay lost.
    pub lost_blobs: u64,
    /// The points that lost something for good, with the paths. They are written anew without these.
    pub affected: Vec<AffectedPoint>,
    /// What cannot be mended here, and why.
    pub beyond_repair: Vec<Finding>,
}

impl RepairPlan {
    /// Whether there is nothing to mend.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.changes_index() && self.affected.is_empty()
    }

    fn changes_index(&self) -> bool {
        !(self.damaged_index.is_empty()
            && self.missing_packs.is_empty()
            && self.found_packs.is_empty()
            && self.damaged_packs.is_empty())
    }
}

/// What repair did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairOutcome {
    /// Packs written, and their bytes.
    pub written: Amount,
    /// Index objects written.
    pub index_written: u64,
    /// Snapshots written anew, as (original, new).
    pub rewritten: Vec<(Id, Id)>,
    /// Snapshots deleted.
    pub removed: Vec<Id>,
    /// Snapshots of which nothing is left to write anew.
    pub hopeless: Vec<Id>,
}

/// A plan that can be carried out. It holds the exclusive lock until it is dropped.
pub struct Repair {
    vault: Vault,
    options: RepairOptions,
    lock: Lock,
    plan: RepairPlan,
    /// What the new index lists beside what is salvaged.
    healthy: Vec<IndexedPack>,
    /// Readable blobs of damaged packs that have no other place, by pack.
    salvage: Vec<(Id, Vec<PackedBlob>)>,
    lost: Lost,
    bad_snapshots: Vec<Id>,
}

impl std::fmt::Debug for Repair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Repair").field(&self.plan).finish()
    }
}

impl Repair {
    /// Looks at the whole vault and works out what can be mended. Nothing is changed but that the lock is taken.
    pub fn plan(
        vault: &Vault,
        options: RepairOptions,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Repair> {
        progress.phase(Phase::Checking);
        let lock = vault.lock(Strength::Exclusive, options.wait, cancel)?;
        let check = CheckOptions { read_data: options.read_data };
        let (report, mut survey, lost) = examine(vault, check, progress, cancel)?;
        let mended = salvage::mend(vault, &survey, &lost, cancel)?;
        let mut plan = RepairPlan {
            damaged_index: survey.bad_index.iter().map(|(id, _)| *id).collect(),
            missing_packs: survey.missing_packs.clone(),
            found_packs: mended.found,
            damaged_packs: mended.damaged,
            ..RepairPlan::default()
        };
        let fatal = [FindingKind::ConfigDamaged, FindingKind::KeyDamaged, FindingKind::EntryUnsound];
        plan.beyond_repair = report.errors.into_iter().filter(|f| fatal.contains(&f.kind)).collect();
        plan.beyond_repair.extend(survey.bad_snapshots.iter().map(|(id, e)| Finding {
            kind: FindingKind::SnapshotDamaged,
            object: Folder::Snapshots.object(id),
            detail: format!("{}; this point is lost", told(e)),
        }));
        // Once more with what was found: trees that were lost may lead to more that is needed.
        survey.index = mended.index;
        survey.faults.clear();
        let (affected, lost) = crate::check::affected_by_loss(vault, &survey, cancel)?;
        plan.lost_blobs = count(lost.len());
        plan.affected = affected;
        let bad_snapshots = survey.bad_snapshots.iter().map(|(id, _)| *id).collect();
        let (healthy, salvage) = (mended.healthy, mended.salvage);
        Ok(Repair { vault: vault.clone(), options, lock, plan, healthy, salvage, lost, bad_snapshots })
    }

    /// The plan as a value.
    #[must_use]
    pub fn value(&self) -> &RepairPlan {
        &self.plan
    }

    /// Carries the plan out.
    pub fn apply(self, progress: &dyn Progress, cancel: &Cancel) -> Result<RepairOutcome> {
        let mut outcome = RepairOutcome::default();
        if self.plan.changes_index() {
            progress.phase(Phase::Repacking);
            let old = self.vault.ids(Folder::Index)?;
            let (packs, written) = self.move_blobs(progress, cancel)?;
            outcome.written = written;
            self.settle_found_packs()?;
            self.lock.check()?;
            let new = write_index(&self.vault, self.healthy.iter().cloned().chain(packs))?;
            outcome.index_written = count(new.len());
            self.lock.check()?;
            for id in old.iter().filter(|id| !new.contains(id)) {
                self.vault.remove_if_there(Folder::Index, id)?;
            }
        }
        let affected: Vec<Id> = self.plan.affected.iter().map(|p| p.snapshot).collect();
        rewrite::snapshots(&self.vault, &affected, &self.lost, &self.lock, &mut outcome, cancel)?;
        if self.options.remove_originals {
            progress.phase(Phase::Removing);
            self.lock.check()?;
            outcome.removed = affected.iter().chain(&self.bad_snapshots).copied().collect();
            self.vault.forget(&outcome.removed)?;
        }
        self.lock.release()?;
        Ok(outcome)
    }

    /// Makes packs that no index named survive a power loss before one does: whoever wrote them may have been killed
    /// before that was so. Listing the very folder does it (see `Local` in crate `storage`).
    fn settle_found_packs(&self) -> Result<()> {
        let name = |id: &Id| Folder::Data.object(id);
        let folders: BTreeSet<String> = self
            .plan
            .found_packs
            .iter()
            .filter_map(|id| name(id).rsplit_once('/').map(|(folder, _)| folder.to_owned()))
            .collect();
        folders.iter().try_for_each(|folder| self.vault.storage().list(folder, &mut |_| Ok(())))
    }

    /// Moves what can be read of damaged packs into new ones.
    fn move_blobs(&self, progress: &dyn Progress, cancel: &Cancel) -> Result<(Vec<IndexedPack>, Amount)> {
        let vault = &self.vault;
        let packer = Packer::new(vault);
        let fillers = parallel(
            &self.salvage,
            || Ok((Filler::new(), Opener::new()?)),
            |(filler, opener), (pack, blobs)| {
                each_sealed(vault, pack, blobs, &mut |blob, sealed| {
                    cancel.check()?;
                    let PackedBlob { id, kind, uncompressed, .. } = *blob;
                    let sealed = sealed?;
                    let copy = sealed.to_vec();
                    let Opener { decompressor, plain } = &mut *opener;
                    vault.open_blob(kind, &id, uncompressed, sealed, decompressor, plain)?;
                    packer.push_sealed(filler, kind, id, &copy, uncompressed)
                })?;
                progress.done(1, 0);
                Ok(())
            },
        )?;
        for (filler, _) in fillers {
            packer.hand_in(filler);
        }
        let (packs, ids, bytes) = packer.finish()?;
        Ok((packs, Amount { count: count(ids.len()), bytes }))
    }
}

/// A pack as an index lists it.
fn listed(id: Id, blobs: &[PackedBlob]) -> IndexedPack {
    IndexedPack { id, blobs: blobs.iter().map(IndexedBlob::from).collect() }
}

/// The blobs of packs, as a set.
fn ids_of(packs: &[IndexedPack]) -> HashSet<(BlobKind, Id)> {
    packs.iter().flat_map(|p| &p.blobs).map(|b| (b.kind, b.id)).collect()
}
