//! Copying snapshots to another vault, which has other keys: also how a master key is really changed.
//!
//! Invariants: a blob is opened and compared with its id before it is sealed for the other vault; a snapshot is written
//! there only when an index of that vault names all it needs in packs that exist. Both vaults are locked shared.
//! What was copied is listed in an index every few packs, so a copy that was killed goes on where it stopped, and a
//! copy that is repeated copies nothing twice.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use backstay_model::{Cancel, Code, Error, Phase, Progress, Result};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::blob::BlobKind;
use crate::compress::Compressor;
use crate::id::Id;
use crate::index::BlobIndex;
use crate::lock::{Lock, Strength};
use crate::pack::PackedBlob;
use crate::prune::Amount;
use crate::snapshot::Snapshot;
use crate::transfer::{Filler, Packer, each_sealed, write_index};
use crate::vault::{Folder, Vault};
use crate::walk::{Marks, Opener, Walk, each_blob, parallel};

/// After so many packs what was copied is listed in an index.
const PACKS_PER_INDEX: usize = 32;
/// How long others are waited for.
const WAIT: Duration = Duration::from_secs(60);

/// What was copied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyOutcome {
    /// Snapshots written, as (here, there).
    pub copied: Vec<(Id, Id)>,
    /// Snapshots that were there already, as (here, there).
    pub present: Vec<(Id, Id)>,
    /// Blobs written and their plain bytes.
    pub blobs: Amount,
    /// Packs written and their bytes.
    pub packs: Amount,
}

/// What a worker needs.
struct Worker {
    filler: Filler,
    opener: Opener,
    compressor: Compressor,
    blobs: Amount,
}

impl Vault {
    /// Copies snapshots, with all they need, to another vault.
    pub fn copy_to(
        &self,
        other: &Vault,
        snapshots: &[Id],
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<CopyOutcome> {
        if self.config().id == other.config().id {
            return Err(Error::new(Code::InvalidValue, "Source and target are the same vault")
                .advise("Name another vault to copy to; `backstay vault init` makes one."));
        }
        progress.phase(Phase::Planning);
        let here = self.lock(Strength::Shared, WAIT, cancel)?;
        let there = other.lock(Strength::Shared, WAIT, cancel)?;
        let mut outcome = CopyOutcome::default();
        let wanted = missing_snapshots(self, other, snapshots, &mut outcome)?;
        let (index, _) = self.load_index(&|_| true)?;
        let marks = Marks::new(&index);
        let roots: Vec<Id> = wanted.iter().map(|(_, s)| s.tree).collect();
        Walk { vault: self, index: &index, marks: &marks, cancel }.mark_all(roots)?;
        let copy = Copy { from: self, to: other, index: &index, progress, cancel };
        copy.blobs(&marks, &there, &mut outcome)?;
        make_sure(other, &index, &marks)?;
        for (id, snapshot) in wanted {
            here.check()?;
            there.check()?;
            let original = Some(snapshot.original.unwrap_or(id));
            let new = Snapshot { original, parent: None, ..snapshot };
            outcome.copied.push((id, other.put_json(Folder::Snapshots, &new)?));
        }
        there.release()?;
        here.release()?;
        Ok(outcome)
    }
}

/// The snapshots that the other vault does not have. It has one when it has a copy of the same original with the same
/// tree, time and tags.
fn missing_snapshots(
    from: &Vault,
    to: &Vault,
    ids: &[Id],
    outcome: &mut CopyOutcome,
) -> Result<Vec<(Id, Snapshot)>> {
    let there = to.snapshots()?;
    let mut wanted = Vec::new();
    for id in ids {
        let snapshot = from.snapshot(id)?;
        let original = snapshot.original.unwrap_or(*id);
        let same = |s: &Snapshot| {
            s.original == Some(original)
                && s.tree == snapshot.tree
                && s.time == snapshot.time
                && s.tags == snapshot.tags
        };
        match there.iter().find(|(_, s)| same(s)) {
            Some((present, _)) => outcome.present.push((*id, *present)),
            None => wanted.push((*id, snapshot)),
        }
    }
    Ok(wanted)
}

/// The other vault's index, of packs that exist only.
fn index_of(vault: &Vault) -> Result<BlobIndex> {
    // Index first: a pack that is written meanwhile is then merely not used.
    let loaded = vault.load_index_and_damage(&|_| true)?;
    if let Some((_, e)) = loaded.damaged.into_iter().next() {
        return Err(e);
    }
    let packs = vault.objects(Folder::Data)?;
    if loaded.index.packs().iter().all(|id| packs.contains_key(id)) {
        return Ok(loaded.index);
    }
    Ok(vault.load_index(&|id| packs.contains_key(id))?.0)
}

/// Fails unless everything that is marked is in the other vault.
fn make_sure(to: &Vault, index: &BlobIndex, marks: &Marks) -> Result<()> {
    let there = index_of(to)?;
    for kind in [BlobKind::Data, BlobKind::Tree] {
        each_blob(index, kind, &mut |position, id, _| {
            if marks.has(kind, position) && !there.has(kind, &id) {
                let message = format!("The blob {} did not arrive or was deleted meanwhile", id.short());
                return Err(Error::new(Code::LeaseLost, message));
            }
            Ok(())
        })?;
    }
    Ok(())
}

struct Copy<'a> {
    from: &'a Vault,
    to: &'a Vault,
    index: &'a BlobIndex,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
}

impl Copy<'_> {
    fn blobs(&self, marks: &Marks, there: &Lock, outcome: &mut CopyOutcome) -> Result<()> {
        self.progress.phase(Phase::Copying);
        let work = self.plan(marks)?;
        let plain = |blobs: &[PackedBlob]| blobs.iter().map(|b| u64::from(b.length)).sum::<u64>();
        self.progress.expect(0, work.iter().map(|(_, blobs)| plain(blobs)).sum());
        let packer = Packer::new(self.to);
        let flush = Mutex::new(Vec::new());
        let workers = parallel(
            &work,
            || {
                let (filler, opener) = (Filler::new(), Opener::new()?);
                Ok(Worker { filler, opener, compressor: Compressor::new(3)?, blobs: Amount::default() })
            },
            |worker, (pack, blobs)| {
                each_sealed(self.from, pack, blobs, &mut |blob, sealed| {
                    self.cancel.check()?;
                    self.one(&packer, worker, blob, sealed)
                })?;
                self.progress.done(0, plain(blobs));
                let mut pending = flush.lock();
                pending.extend(packer.take_stored());
                if pending.len() >= PACKS_PER_INDEX {
                    there.check()?;
                    write_index(self.to, std::mem::take(&mut *pending))?;
                }
                Ok(())
            },
        )?;
        for worker in workers {
            outcome.blobs.count += worker.blobs.count;
            outcome.blobs.bytes += worker.blobs.bytes;
            packer.hand_in(worker.filler);
        }
        let (rest, ids, bytes) = packer.finish()?;
        there.check()?;
        write_index(self.to, flush.into_inner().into_iter().chain(rest))?;
        outcome.packs = Amount { count: crate::check::count(ids.len()), bytes };
        Ok(())
    }

    /// What has to be copied, by the pack it is read from.
    fn plan(&self, marks: &Marks) -> Result<Vec<(Id, Vec<PackedBlob>)>> {
        let there = index_of(self.to)?;
        let exist: HashSet<Id> = self.from.ids(Folder::Data)?.into_iter().collect();
        let mut by_pack: HashMap<Id, Vec<PackedBlob>> = HashMap::new();
        for kind in [BlobKind::Data, BlobKind::Tree] {
            each_blob(self.index, kind, &mut |position, id, places| {
                if !marks.has(kind, position) || there.has(kind, &id) {
                    return Ok(());
                }
                let Some(place) = places.iter().find(|p| exist.contains(&p.pack)) else {
                    let message = format!("The blob {} is in no pack that exists", id.short());
                    return Err(Error::new(Code::VaultDamaged, message));
                };
                by_pack.entry(place.pack).or_default().push(PackedBlob {
                    id,
                    kind,
                    offset: place.offset,
                    length: place.length,
                    uncompressed: place.uncompressed,
                });
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

    fn one(
        &self,
        packer: &Packer<'_>,
        worker: &mut Worker,
        blob: &PackedBlob,
        sealed: Result<&mut [u8]>,
    ) -> Result<()> {
        let PackedBlob { id, kind, uncompressed, .. } = *blob;
        let Worker { filler, opener, compressor, blobs } = worker;
        let opened = sealed.and_then(|sealed| {
            self.from.open_blob(kind, &id, uncompressed, sealed, &mut opener.decompressor, &mut opener.plain)
        });
        let compressor = self.to.compresses().then_some(compressor);
        let plain = match opened {
            Ok(()) => opener.plain.as_slice(),
            Err(_) => opener.blob(self.from, self.index, kind, &id)?,
        };
        blobs.add(crate::check::count(plain.len()));
        packer.push(filler, kind, id, plain, compressor)
    }
}
