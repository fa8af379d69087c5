//! The second phase of prune: deleting, under the exclusive lock.
//!
//! Invariants: everything that decides is read again under this lock. Order: the new index, deletion of the old
//! index objects, deletion of packs; before each the lock is asked for. A crash leaves an index that names only packs
//! that exist, and packs that no index names.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};

use backstay_model::{Cancel, Progress, Result};

use super::plan::{damaged, roots};
use super::{Amount, PruneOutcome, Seen, cover, exists, refused};
use crate::blob::{BlobKind, Place};
use crate::check::pack::read_header;
use crate::id::Id;
use crate::index::{BLOBS_PER_INDEX, BlobIndex, IndexFile};
use crate::load::{Loaded, LoadedFile};
use crate::lock::Lock;
use crate::pack::PackedBlob;
use crate::transfer::write_index;
use crate::vault::{Folder, Vault};
use crate::walk::{Marks, Walk, each_blob, parallel};

/// Index objects below a quarter of the usual size are merged when there are more than so many.
const SMALL_INDEXES: usize = 32;
/// The lock is asked for once in so many deletions.
const DELETIONS_PER_CHECK: u64 = 64;

fn is_small(file: &LoadedFile) -> bool {
    file.blobs < BLOBS_PER_INDEX / 4
}

/// Whether there are so many small index objects that merging them is worth it.
pub(super) fn index_is_scattered(files: &[LoadedFile]) -> bool {
    files.iter().filter(|f| is_small(f)).count() > SMALL_INDEXES
}

/// Deletes the packs in `going` that nothing needs, and what no index names.
pub(super) fn sweep(
    vault: &Vault,
    seen: &Seen,
    mut going: HashSet<Id>,
    lock: &Lock,
    outcome: &mut PruneOutcome,
    (progress, cancel): (&dyn Progress, &Cancel),
) -> Result<()> {
    let snapshots = vault.ids(Folder::Snapshots)?;
    let loaded = vault.load_index_and_damage(&|_| true)?;
    if let Some((id, e)) = loaded.damaged.into_iter().next() {
        return Err(refused(&format!("the index object {} cannot be read", id.short())).because(e));
    }
    let loaded = Loaded { damaged: Vec::new(), ..loaded };
    let now: HashSet<Id> = loaded.files.iter().map(|f| f.id).collect();
    let (marks, complete) = seen.marks.carry(&seen.index, &loaded.index);
    if !complete || seen.files.iter().any(|f| !now.contains(&f.id)) {
        outcome.deferred = Some("Phase 2 deferred: another prune or repair worked at the same time".into());
        return Ok(());
    }
    let unseen: Vec<Id> = snapshots.into_iter().filter(|id| !seen.snapshots.contains(id)).collect();
    let roots = roots(vault, &unseen)?;
    Walk { vault, index: &loaded.index, marks: &marks, cancel }.mark_all(roots).map_err(damaged)?;
    let packs = vault.objects(Folder::Data)?;
    going.retain(|id| packs.contains_key(id));
    outcome.rescued_packs = cover(&loaded.index, &marks, &packs, &mut going)?;

    confirm(vault, &loaded.index, &marks, &packs, &going)?;

    lock.check()?;
    let stays = |id: &Id| packs.contains_key(id) && !going.contains(id);
    replace_index(vault, &loaded.files, &stays, lock, outcome)?;

    let listed: HashSet<Id> = loaded.index.packs().iter().copied().collect();
    let mut dead: Vec<(Id, u64)> = packs.iter().map(|(id, size)| (*id, *size)).collect();
    dead.retain(|(id, _)| going.contains(id) || !listed.contains(id));
    dead.sort_unstable();
    progress.expect(u64::try_from(dead.len()).unwrap_or(0), dead.iter().map(|(_, size)| size).sum());
    let removed = remove_packs(vault, &dead, lock, progress)?;
    outcome.deleted = removed;
    Ok(())
}

/// Makes sure that packs which stay hold what packs which go are deleted for: their headers must say the same as the
/// index. So an index that is wrong (written by a program with a mistake) costs no data.
fn confirm(
    vault: &Vault,
    index: &BlobIndex,
    marks: &Marks,
    packs: &HashMap<Id, u64>,
    going: &HashSet<Id>,
) -> Result<()> {
    let mut relied: BTreeMap<Id, Vec<PackedBlob>> = BTreeMap::new();
    for kind in [BlobKind::Data, BlobKind::Tree] {
        each_blob(index, kind, &mut |position, id, places| {
            if marks.has(kind, position) && places.iter().any(|p| going.contains(&p.pack)) {
                let stays = |p: &&Place| exists(packs, p) && !going.contains(&p.pack);
                for Place { pack, offset, length, uncompressed } in places.iter().filter(stays).copied() {
                    relied.entry(pack).or_default().push(PackedBlob {
                        id,
                        kind,
                        offset,
                        length,
                        uncompressed,
                    });
                }
            }
            Ok(())
        })?;
    }
    let relied: Vec<_> = relied.into_iter().collect();
    let look = |_: &mut (), (pack, blobs): &(Id, Vec<PackedBlob>)| {
        let size = packs.get(pack).copied().unwrap_or(0);
        let header = read_header(vault, pack, size).map_err(damaged)?;
        if blobs.iter().all(|blob| {
            header
                .binary_search_by_key(&blob.offset, |b| b.offset)
                .is_ok_and(|at| header.get(at) == Some(blob))
        }) {
            return Ok(());
        }
        Err(refused(&format!("the index says of the pack {} what its header does not", pack.short())))
    };
    parallel(&relied, || Ok(()), look).map(drop)
}

/// Writes index objects without the packs that do not stay, and deletes those they replace.
fn replace_index(
    vault: &Vault,
    files: &[LoadedFile],
    stays: &dyn Fn(&Id) -> bool,
    lock: &Lock,
    outcome: &mut PruneOutcome,
) -> Result<()> {
    let scattered = index_is_scattered(files);
    let old: Vec<Id> = files
        .iter()
        .filter(|f| (scattered && is_small(f)) || f.packs.is_empty() || !f.packs.iter().all(stays))
        .map(|f| f.id)
        .collect();
    if old.is_empty() {
        return Ok(());
    }
    let mut packs = Vec::new();
    for id in &old {
        let file: IndexFile = vault.get_json(Folder::Index, id)?;
        packs.extend(file.packs.into_iter().filter(|p| stays(&p.id)));
    }
    let written = write_index(vault, packs)?;
    outcome.index_written = u64::try_from(written.len()).unwrap_or(0);
    lock.check()?;
    for id in old.iter().filter(|id| !written.contains(id)) {
        vault.remove_if_there(Folder::Index, id)?;
        outcome.index_deleted += 1;
    }
    lock.check()
}

fn remove_packs(vault: &Vault, dead: &[(Id, u64)], lock: &Lock, progress: &dyn Progress) -> Result<Amount> {
    let begun = AtomicU64::new(0);
    let removed = parallel(
        dead,
        || Ok(Amount::default()),
        |sum, (id, size)| {
            if begun.fetch_add(1, Ordering::Relaxed) % DELETIONS_PER_CHECK == DELETIONS_PER_CHECK - 1 {
                lock.check()?;
            }
            // A power loss that brings it back leaves a pack that no index names, which the next prune deletes.
            vault.discard_if_there(Folder::Data, id)?;
            sum.add(*size);
            progress.done(1, *size);
            Ok(())
        },
    )?;
    Ok(removed.into_iter().fold(Amount::default(), |mut all, one| {
        all.count += one.count;
        all.bytes += one.bytes;
        all
    }))
}
