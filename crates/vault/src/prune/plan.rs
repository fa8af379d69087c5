//! What prune finds and decides.
//!
//! Invariants: nothing is written. Snapshots are listed before the index and the index before the packs, so that what
//! a backup adds meanwhile never looks as if it were missing.

use std::collections::{HashMap, HashSet};

use backstay_model::{Cancel, Code, Result};

use super::{Amount, PlannedPack, PruneOptions, PrunePlan, Seen, cover, exists, refused};
use crate::blob::BlobKind;
use crate::id::Id;
use crate::pack::{DATA_PACK, TREE_PACK};
use crate::vault::{Folder, Vault};
use crate::walk::{Marks, Walk, each_blob, parallel};

/// The root trees of snapshots. One that was deleted meanwhile is passed over; one that cannot be read is an error.
pub(super) fn roots(vault: &Vault, ids: &[Id]) -> Result<Vec<Id>> {
    let read = |roots: &mut Vec<Id>, id: &Id| {
        match vault.snapshot(id) {
            Ok(snapshot) => roots.push(snapshot.tree),
            Err(e) if e.code() == Code::ObjectNotFound => {}
            Err(e) if e.code() == Code::VaultDamaged => {
                return Err(refused(&format!("the snapshot {} cannot be read", id.short())).because(e));
            }
            Err(e) => return Err(e),
        }
        Ok(())
    };
    Ok(parallel(ids, || Ok(Vec::new()), read)?.concat())
}

pub(super) fn damaged(e: backstay_model::Error) -> backstay_model::Error {
    if e.code() == Code::VaultDamaged { refused(e.message()).because(e) } else { e }
}

/// Reads everything the decision needs.
pub(super) fn look(vault: &Vault, cancel: &Cancel) -> Result<Seen> {
    let snapshots = vault.ids(Folder::Snapshots)?;
    let roots = roots(vault, &snapshots)?;
    let loaded = vault.load_index_and_damage(&|_| true)?;
    if let Some((id, e)) = loaded.damaged.into_iter().next() {
        return Err(refused(&format!("the index object {} cannot be read", id.short())).because(e));
    }
    let index = loaded.index;
    let packs = vault.objects(Folder::Data)?;
    let marks = Marks::new(&index);
    Walk { vault, index: &index, marks: &marks, cancel }.mark_all(roots).map_err(damaged)?;
    cover(&index, &marks, &packs, &mut HashSet::new())?;
    Ok(Seen { index, files: loaded.files, marks, packs, snapshots: snapshots.into_iter().collect() })
}

/// What of a pack is used.
#[derive(Clone, Copy, Default)]
struct Usage {
    used: u64,
    unused: u64,
    trees: bool,
}

impl Usage {
    fn is_small(&self, size: u64) -> bool {
        let usual = if self.trees { TREE_PACK } else { DATA_PACK };
        size < (usual / 4) as u64
    }
}

/// Counts used and unused bytes of every pack. Of the places of a blob that is stored several times, the one in the
/// pack with the least waste counts as used.
fn usages(seen: &Seen, plan: &mut PrunePlan) -> Result<HashMap<Id, Usage>> {
    let mut usages: HashMap<Id, Usage> = HashMap::new();
    let mut several = Vec::new();
    for kind in [BlobKind::Data, BlobKind::Tree] {
        each_blob(&seen.index, kind, &mut |position, _, places| {
            let used = seen.marks.has(kind, position);
            for place in places.iter().filter(|p| exists(&seen.packs, p)) {
                let length = u64::from(place.length);
                let usage = usages.entry(place.pack).or_default();
                usage.trees = kind == BlobKind::Tree;
                *(if used { &mut usage.used } else { &mut usage.unused }) += length;
                if !used {
                    plan.unused.add(length);
                }
            }
            if used {
                plan.used.add(places.first().map_or(0, |p| u64::from(p.length)));
                if places.len() > 1 {
                    several.push(places.to_vec());
                }
            }
            Ok(())
        })?;
    }
    for places in several {
        let waste = |pack: &Id| {
            let usage = usages.get(pack).copied().unwrap_or_default();
            (usage.unused, u64::MAX - usage.used, *pack)
        };
        let there = || places.iter().filter(|p| exists(&seen.packs, p));
        let best = there().min_by_key(|p| waste(&p.pack)).map(|p| (p.pack, p.offset));
        for place in there().filter(|p| Some((p.pack, p.offset)) != best) {
            let length = u64::from(place.length);
            plan.duplicate.add(length);
            if let Some(usage) = usages.get_mut(&place.pack) {
                usage.used -= length;
                usage.unused += length;
            }
        }
    }
    Ok(usages)
}

/// Works out the plan.
pub(super) fn decide(seen: &Seen, options: &PruneOptions) -> Result<PrunePlan> {
    let mut plan =
        PrunePlan { snapshots: u64::try_from(seen.snapshots.len()).unwrap_or(0), ..PrunePlan::default() };
    let mut usages = usages(seen, &mut plan)?;
    for id in seen.index.packs() {
        // A pack in which the index lists nothing.
        if seen.packs.contains_key(id) {
            usages.entry(*id).or_default();
        }
    }
    let mut partly = Vec::new();
    let mut small: [Vec<PlannedPack>; 2] = Default::default();
    let mut waste_left = 0;
    for (id, bytes) in &seen.packs {
        plan.packs.add(*bytes);
        let Some(usage) = usages.get(id) else {
            plan.leftover.push(PlannedPack { id: *id, bytes: *bytes, used_bytes: 0 });
            continue;
        };
        let pack = PlannedPack { id: *id, bytes: *bytes, used_bytes: usage.used };
        if usage.used == 0 {
            plan.packs_unused += 1;
            plan.delete.push(pack);
            continue;
        }
        if usage.unused == 0 {
            plan.packs_used += 1;
        } else {
            plan.packs_partly_used += 1;
            waste_left += usage.unused;
            partly.push((usage.unused, pack.clone()));
        }
        if usage.is_small(*bytes) {
            let [data, trees] = &mut small;
            if usage.trees { trees.push(pack) } else { data.push(pack) }
        }
    }
    if options.repack {
        choose_repacks(&mut plan, partly, small, waste_left, options);
    }
    plan.kept_unused_bytes = usages.values().map(|u| u.unused).sum::<u64>();
    finish(&mut plan, &usages);
    Ok(plan)
}

fn choose_repacks(
    plan: &mut PrunePlan,
    mut partly: Vec<(u64, PlannedPack)>,
    small: [Vec<PlannedPack>; 2],
    mut waste_left: u64,
    options: &PruneOptions,
) {
    let allowed = plan.used.bytes / 100 * u64::from(options.max_unused_percent);
    // Largest share of waste first: the most is freed for the least that is moved.
    let share =
        |unused: u64, pack: &PlannedPack| u128::from(unused) * 1_000_000 / u128::from(pack.bytes.max(1));
    partly.sort_by_key(|(unused, pack)| (std::cmp::Reverse(share(*unused, pack)), pack.id));
    let mut chosen = HashSet::new();
    for (unused, pack) in partly {
        if waste_left <= allowed {
            break;
        }
        waste_left -= unused;
        chosen.insert(pack.id);
        plan.repack.push(pack);
    }
    for kind in small {
        if kind.len() > options.small_packs {
            plan.repack.extend(kind.into_iter().filter(|p| chosen.insert(p.id)));
        }
    }
}

/// Totals and a fixed order.
fn finish(plan: &mut PrunePlan, usages: &HashMap<Id, Usage>) {
    let unused =
        |list: &[PlannedPack]| list.iter().filter_map(|p| usages.get(&p.id)).map(|u| u.unused).sum::<u64>();
    plan.kept_unused_bytes =
        plan.kept_unused_bytes.saturating_sub(unused(&plan.delete) + unused(&plan.repack));
    let gone: u64 = [&plan.delete, &plan.leftover].into_iter().flatten().map(|p| p.bytes).sum();
    let moved: Amount = plan.repack.iter().fold(Amount::default(), |mut sum, p| {
        sum.add(p.bytes.saturating_sub(p.used_bytes));
        sum
    });
    plan.freed_bytes = gone + moved.bytes;
    for list in [&mut plan.delete, &mut plan.repack, &mut plan.leftover] {
        list.sort_unstable_by_key(|p| p.id);
    }
}
