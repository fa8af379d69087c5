//! Prune: removing what no snapshot needs, in a plan and two phases (`docs/adr/0002-prune-in-two-phases.md`).
//!
//! Invariants: a pack is deleted only under the exclusive lock, when every blob that any snapshot needs has been found
//! in another existing pack, and after no index object names it. The plan and the first phase hold a shared lock; they
//! only add. No decision looks at a clock.

mod plan;
mod sweep;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use backstay_model::{Cancel, Code, Error, Phase, Progress, Result};
use serde::{Deserialize, Serialize};

use crate::blob::{BlobKind, Place};
use crate::id::Id;
use crate::index::BlobIndex;
use crate::load::LoadedFile;
use crate::lock::{Lock, Strength};
use crate::pack::PackedBlob;
use crate::transfer::{Filler, Packer, each_sealed, write_index};
use crate::vault::Vault;
use crate::walk::{Marks, Opener, each_blob, parallel};

/// How much prune does.
#[derive(Clone, Debug)]
pub struct PruneOptions {
    /// Unused bytes that may stay in packs that are partly used, in percent of the used bytes.
    pub max_unused_percent: u8,
    /// Packs below a quarter of the usual size are merged when there are more than so many of a kind.
    pub small_packs: usize,
    /// Whether data is moved at all; without it only packs without any used blob go (which needs no space).
    pub repack: bool,
    /// How long the second phase waits for backups to finish.
    pub wait: Duration,
}

impl Default for PruneOptions {
    fn default() -> Self {
        PruneOptions { max_unused_percent: 5, small_packs: 32, repack: true, wait: Duration::from_secs(60) }
    }
}

/// A number of blobs and their bytes in packs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// How many.
    pub count: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Amount {
    pub(crate) fn add(&mut self, bytes: u64) {
        self.count += 1;
        self.bytes += bytes;
    }
}

/// A pack in a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedPack {
    /// The pack.
    pub id: Id,
    /// Bytes of the object.
    pub bytes: u64,
    /// Bytes of it that are used and have no better place.
    pub used_bytes: u64,
}

/// What prune found and would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunePlan {
    /// Snapshots that were looked at.
    pub snapshots: u64,
    /// Packs in the vault, and their bytes.
    pub packs: Amount,
    /// Packs in which everything is used.
    pub packs_used: u64,
    /// Packs in which something is used.
    pub packs_partly_used: u64,
    /// Packs in which nothing is used.
    pub packs_unused: u64,
    /// Blobs that snapshots need.
    pub used: Amount,
    /// Blobs that no snapshot needs.
    pub unused: Amount,
    /// Further copies of blobs that are used.
    pub duplicate: Amount,
    /// Packs that go because nothing in them is used.
    pub delete: Vec<PlannedPack>,
    /// Packs whose used part is moved to new packs.
    pub repack: Vec<PlannedPack>,
    /// Packs that no index names: left by what was killed, or of a backup that runs now.
    pub leftover: Vec<PlannedPack>,
    /// Bytes that will be free when both phases are done.
    pub freed_bytes: u64,
    /// Unused bytes that stay in packs because moving them would cost more.
    pub kept_unused_bytes: u64,
}

impl PrunePlan {
    /// Whether there is nothing to delete or to move.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.repack.is_empty() && self.leftover.is_empty()
    }
}

/// What prune did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneOutcome {
    /// Packs written in the first phase, and their bytes.
    pub written: Amount,
    /// Packs deleted, and their bytes.
    pub deleted: Amount,
    /// Packs that were to go and stayed, because a backup meanwhile relied on them.
    pub rescued_packs: u64,
    /// Index objects written.
    pub index_written: u64,
    /// Index objects deleted.
    pub index_deleted: u64,
    /// Why the second phase did not take place; the next prune does it. Nothing was lost and nothing deleted.
    pub deferred: Option<String>,
}

/// A plan that can be carried out. It holds a shared lock until it is dropped.
pub struct Prune {
    vault: Vault,
    options: PruneOptions,
    plan: PrunePlan,
    lock: Lock,
    seen: Seen,
}

/// What the plan was made from.
struct Seen {
    index: BlobIndex,
    files: Vec<LoadedFile>,
    marks: Marks,
    packs: HashMap<Id, u64>,
    snapshots: HashSet<Id>,
}

impl std::fmt::Debug for Prune {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Prune").field(&self.plan).finish()
    }
}

/// Whether a place lies within a pack that exists.
fn exists(packs: &HashMap<Id, u64>, place: &Place) -> bool {
    packs.get(&place.pack).is_some_and(|size| u64::from(place.offset) + u64::from(place.length) <= *size)
}

pub(crate) fn refused(what: &str) -> Error {
    Error::new(Code::VaultDamaged, format!("Prune deletes nothing from a damaged vault: {what}")).advise(
        "Run `backstay vault check` to see what is affected, then `backstay vault repair`, then prune again.",
    )
}

/// Makes sure that every marked blob has a place in an existing pack that does not go. Packs that are the only place
/// leave the set `going`; how many did is given back. A blob without any place is an error.
fn cover(index: &BlobIndex, marks: &Marks, packs: &HashMap<Id, u64>, going: &mut HashSet<Id>) -> Result<u64> {
    let mut rescued = 0;
    for kind in [BlobKind::Data, BlobKind::Tree] {
        each_blob(index, kind, &mut |position, id, places| {
            if !marks.has(kind, position) {
                return Ok(());
            }
            let mut there = places.iter().filter(|p| exists(packs, p)).peekable();
            let Some(first) = there.peek().map(|p| p.pack) else {
                return Err(refused(&format!("the blob {} is in no pack that exists", id.short())));
            };
            if there.all(|p| going.contains(&p.pack)) {
                going.remove(&first);
                rescued += 1;
            }
            Ok(())
        })?;
    }
    Ok(rescued)
}

impl Prune {
    /// Looks at the whole vault and works out what could go. Nothing is changed but that a shared lock is taken.
    pub fn plan(
        vault: &Vault,
        options: PruneOptions,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Prune> {
        progress.phase(Phase::Planning);
        let lock = vault.lock(Strength::Shared, options.wait, cancel)?;
        let seen = plan::look(vault, cancel)?;
        let plan = plan::decide(&seen, &options)?;
        Ok(Prune { vault: vault.clone(), options, plan, lock, seen })
    }

    /// The plan as a value.
    #[must_use]
    pub fn value(&self) -> &PrunePlan {
        &self.plan
    }

    /// Carries the plan out.
    pub fn apply(self, progress: &dyn Progress, cancel: &Cancel) -> Result<PruneOutcome> {
        let mut outcome = PruneOutcome::default();
        let Prune { vault, options, plan, lock, seen } = self;
        let ids = |list: &[PlannedPack]| list.iter().map(|p| p.id).collect::<HashSet<Id>>();
        let repack = ids(&plan.repack);
        let mut going = ids(&plan.delete);
        going.extend(&repack);
        if !repack.is_empty() {
            progress.phase(Phase::Repacking);
            outcome.written = copy_live(&vault, &seen, &going, &lock, progress, cancel)?;
        }
        lock.release()?;
        if plan.is_empty() && !sweep::index_is_scattered(&seen.files) {
            return Ok(outcome);
        }
        progress.phase(Phase::Removing);
        let lock = match vault.lock(Strength::Exclusive, options.wait, cancel) {
            Err(e) if e.code() == Code::VaultLocked => {
                outcome.deferred = Some(format!("Phase 2 deferred: {}", e.message()));
                return Ok(outcome);
            }
            other => other?,
        };
        sweep::sweep(&vault, &seen, going, &lock, &mut outcome, (progress, cancel))?;
        lock.release()?;
        Ok(outcome)
    }
}

/// Phase 1: copies the blobs that only packs in `going` hold into new packs and lists these in new index objects.
fn copy_live(
    vault: &Vault,
    seen: &Seen,
    going: &HashSet<Id>,
    lock: &Lock,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Amount> {
    let work = live_blobs(seen, going)?;
    let bytes = |blobs: &[PackedBlob]| blobs.iter().map(|b| u64::from(b.length)).sum::<u64>();
    progress.expect(0, work.iter().map(|(_, blobs)| bytes(blobs)).sum());
    let packer = Packer::new(vault);
    let fillers = parallel(
        &work,
        || Ok((Filler::new(), Opener::new()?)),
        |(filler, opener), (pack, blobs)| {
            each_sealed(vault, pack, blobs, &mut |blob, sealed| {
                cancel.check()?;
                move_blob(vault, seen, &packer, (filler, opener), blob, sealed)
            })?;
            progress.done(0, bytes(blobs));
            Ok(())
        },
    )?;
    for (filler, _) in fillers {
        packer.hand_in(filler);
    }
    let (packs, ids, bytes) = packer.finish()?;
    lock.check()?;
    write_index(vault, packs)?;
    Ok(Amount { count: u64::try_from(ids.len()).unwrap_or(0), bytes })
}

/// The blobs to copy, by the pack they are read from, sorted by offset.
fn live_blobs(seen: &Seen, going: &HashSet<Id>) -> Result<Vec<(Id, Vec<PackedBlob>)>> {
    let mut by_pack: HashMap<Id, Vec<PackedBlob>> = HashMap::new();
    for kind in [BlobKind::Data, BlobKind::Tree] {
        each_blob(&seen.index, kind, &mut |position, id, places| {
            let mut there = places.iter().filter(|p| exists(&seen.packs, p)).peekable();
            let Some(place) = there.peek().copied().copied() else { return Ok(()) };
            if seen.marks.has(kind, position) && there.all(|p| going.contains(&p.pack)) {
                let Place { pack, offset, length, uncompressed } = place;
                by_pack.entry(pack).or_default().push(PackedBlob { id, kind, offset, length, uncompressed });
            }
            Ok(())
        })?;
    }
    let mut work: Vec<_> = by_pack.into_iter().collect();
    for (_, blobs) in &mut work {
        blobs.sort_unstable_by_key(|b| b.offset);
    }
    work.sort_unstable_by_key(|(pack, _)| *pack);
    Ok(work)
}

/// Moves one blob as it is sealed, after it was found to be what its id says; from another place when this one is
/// damaged.
fn move_blob(
    vault: &Vault,
    seen: &Seen,
    packer: &Packer<'_>,
    (filler, opener): (&mut Filler, &mut Opener),
    blob: &PackedBlob,
    sealed: Result<&mut [u8]>,
) -> Result<()> {
    let PackedBlob { id, kind, uncompressed, .. } = *blob;
    let moved = sealed.and_then(|sealed| {
        let copy = sealed.to_vec();
        vault.open_blob(kind, &id, uncompressed, sealed, &mut opener.decompressor, &mut opener.plain)?;
        Ok(copy)
    });
    match moved {
        Ok(sealed) => packer.push_sealed(filler, kind, id, &sealed, uncompressed),
        Err(_) => {
            let plain = opener
                .blob(vault, &seen.index, kind, &id)
                .map_err(|e| refused(&format!("the blob {} cannot be read", id.short())).because(e))?;
            packer.push(filler, kind, id, plain, None)
        }
    }
}
