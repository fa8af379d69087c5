//! Numbers about a vault.
//!
//! Invariants: nothing is written and no lock is taken; the numbers are those of the snapshots and the index that were
//! there when each was listed. Sizes of points are worked out from the trees, not taken from what a writer claimed.

use std::collections::HashMap;

use backstay_model::{Cancel, Phase, Progress, Result};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::blob::BlobKind;
use crate::check::count;
use crate::id::Id;
use crate::prune::Amount;
use crate::vault::{Folder, Vault};
use crate::walk::{Marks, Walk, each_blob, links};

/// What lies in a vault.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Format version.
    pub version: u32,
    /// Snapshots.
    pub snapshots: u64,
    /// Entries of all points together, and bytes of content that restoring all of them would write.
    pub points: Amount,
    /// Packs and their bytes.
    pub packs: Amount,
    /// Distinct pieces of content and their bytes in packs.
    pub data: Amount,
    /// Distinct trees and their bytes in packs.
    pub trees: Amount,
    /// Plain bytes of distinct pieces of content and trees.
    pub plain_bytes: u64,
    /// Further copies of blobs, and their bytes.
    pub duplicate: Amount,
    /// Blobs that no snapshot needs, and their bytes; the next prune may remove them.
    pub unused: Amount,
    /// Packs that no index names, and their bytes.
    pub leftover: Amount,
    /// Index objects and their bytes.
    pub index: Amount,
    /// Keys.
    pub keys: u64,
    /// Locks that are there, held or abandoned.
    pub locks: u64,
    /// Bytes of content of all points for each plain byte that is stored.
    pub dedup_factor: f64,
    /// Plain bytes for each byte in packs.
    pub compression_ratio: f64,
}

/// Of one tree: entries and bytes of its own, and the trees in it.
struct Branch {
    own: Amount,
    folders: Vec<Id>,
}

#[allow(clippy::cast_precision_loss)] // a ratio for people
fn ratio(of: u64, to: u64) -> f64 {
    if to == 0 { 1.0 } else { of as f64 / to as f64 }
}

/// Works the numbers out. Fails when a tree cannot be read.
pub fn stats(vault: &Vault, progress: &dyn Progress, cancel: &Cancel) -> Result<Stats> {
    progress.phase(Phase::Planning);
    let snapshots = vault.snapshots()?;
    let loaded = vault.load_index_and_damage(&|_| true)?;
    if let Some((_, e)) = loaded.damaged.into_iter().next() {
        return Err(e);
    }
    let index = loaded.index;
    let packs = vault.objects(Folder::Data)?;
    let marks = Marks::new(&index);
    let branches = Mutex::new(HashMap::new());
    let roots: Vec<Id> = snapshots.iter().map(|(_, s)| s.tree).collect();
    Walk { vault, index: &index, marks: &marks, cancel }.trees(roots.clone(), &|id, json, subtrees| {
        let mut branch = Branch { own: Amount::default(), folders: Vec::new() };
        for node in links(json?).map_err(|e| e.context(format!("Tree {}", id.short())))? {
            branch.own.add(if node.content.is_some() { node.size } else { 0 });
            branch.folders.extend(node.subtree);
            for blob in node.content.iter().flatten() {
                if let Some(position) = index.position(BlobKind::Data, blob) {
                    marks.set(BlobKind::Data, position);
                }
            }
        }
        subtrees.extend(&branch.folders);
        branches.lock().insert(*id, branch);
        Ok(())
    })?;
    let mut stats = Stats {
        version: vault.config().version,
        snapshots: count(snapshots.len()),
        points: sum_points(&branches.into_inner(), &roots),
        index: sizes(vault.objects(Folder::Index)?.values()),
        packs: sizes(packs.values()),
        keys: count(vault.ids(Folder::Keys)?.len()),
        locks: count(vault.ids(Folder::Locks)?.len()),
        ..Stats::default()
    };
    let listed: std::collections::HashSet<&Id> = index.packs().iter().collect();
    stats.leftover = sizes(packs.iter().filter(|(id, _)| !listed.contains(id)).map(|(_, size)| size));
    for kind in [BlobKind::Data, BlobKind::Tree] {
        each_blob(&index, kind, &mut |position, _, places| {
            let Some((first, more)) = places.split_first() else { return Ok(()) };
            let sum = if kind == BlobKind::Data { &mut stats.data } else { &mut stats.trees };
            sum.add(u64::from(first.length));
            stats.plain_bytes += first.plain_length();
            if !marks.has(kind, position) {
                stats.unused.add(u64::from(first.length));
            }
            more.iter().for_each(|p| stats.duplicate.add(u64::from(p.length)));
            Ok(())
        })?;
    }
    stats.dedup_factor = ratio(stats.points.bytes, stats.plain_bytes);
    stats.compression_ratio = ratio(stats.plain_bytes, stats.data.bytes + stats.trees.bytes);
    Ok(stats)
}

fn sizes<'a>(list: impl Iterator<Item = &'a u64>) -> Amount {
    let mut sum = Amount::default();
    list.for_each(|size| sum.add(*size));
    sum
}

/// Entries and bytes of all points. A tree is counted once for each time a point holds it, and worked out once.
fn sum_points(branches: &HashMap<Id, Branch>, roots: &[Id]) -> Amount {
    let mut sums: HashMap<Id, Amount> = HashMap::new();
    let mut entered = std::collections::HashSet::new();
    let mut stack = roots.to_vec();
    while let Some(tree) = stack.last().copied() {
        let Some(branch) = branches.get(&tree).filter(|_| !sums.contains_key(&tree)) else {
            stack.pop();
            continue;
        };
        if entered.insert(tree) {
            stack.extend(branch.folders.iter().filter(|id| !entered.contains(id)));
            continue;
        }
        let below = branch.folders.iter().filter_map(|id| sums.get(id));
        let sum = below.fold(branch.own, add);
        sums.insert(tree, sum);
        stack.pop();
    }
    roots.iter().filter_map(|root| sums.get(root)).fold(Amount::default(), add)
}

fn add(a: Amount, b: &Amount) -> Amount {
    Amount { count: a.count.saturating_add(b.count), bytes: a.bytes.saturating_add(b.bytes) }
}
