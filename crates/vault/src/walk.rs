//! Walking everything that snapshots need: each distinct tree once, several at a time.
//!
//! Invariants: a blob is marked before its tree is visited, so no tree is visited twice whatever the number of
//! threads; memory is one bit a blob and the ids still to visit. Trees that cannot be read are told to the visitor,
//! who decides whether the walk goes on. Nothing is written; one lock, held only to take and give ids.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use backstay_model::{Cancel, Code, Error, Result};
use parking_lot::{Condvar, Mutex};
use serde::Deserialize;

use crate::blob::{BlobKind, Place};
use crate::compress::Decompressor;
use crate::id::Id;
use crate::index::BlobIndex;
use crate::vault::{Folder, Vault, thread_failed};

/// One bit for every place in a [`BlobIndex`]; of a blob with several places, the first one's is used.
pub(crate) struct Marks {
    data: Vec<AtomicU64>,
    trees: Vec<AtomicU64>,
}

impl Marks {
    pub(crate) fn new(index: &BlobIndex) -> Self {
        let bits = |kind| (0..index.count(kind).div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Marks { data: bits(BlobKind::Data), trees: bits(BlobKind::Tree) }
    }

    fn word(&self, kind: BlobKind, position: usize) -> Option<&AtomicU64> {
        let list = match kind {
            BlobKind::Data => &self.data,
            BlobKind::Tree => &self.trees,
        };
        list.get(position / 64)
    }

    /// Marks a position; says whether it was not marked before.
    pub(crate) fn set(&self, kind: BlobKind, position: usize) -> bool {
        let bit = 1u64 << (position % 64);
        self.word(kind, position).is_some_and(|w| w.fetch_or(bit, Ordering::Relaxed) & bit == 0)
    }

    pub(crate) fn has(&self, kind: BlobKind, position: usize) -> bool {
        let bit = 1u64 << (position % 64);
        self.word(kind, position).is_some_and(|w| w.load(Ordering::Relaxed) & bit != 0)
    }

    /// The same marks for another index; `false` when a marked blob is not in it.
    pub(crate) fn carry(&self, from: &BlobIndex, to: &BlobIndex) -> (Marks, bool) {
        let carried = Marks::new(to);
        let mut complete = true;
        for kind in [BlobKind::Data, BlobKind::Tree] {
            for position in (0..from.count(kind)).filter(|n| self.has(kind, *n)) {
                let there = from.at(kind, position).and_then(|(id, _)| to.position(kind, &id));
                match there {
                    Some(n) => _ = carried.set(kind, n),
                    None => complete = false,
                }
            }
        }
        (carried, complete)
    }
}

/// Opens blobs with buffers that are reused.
pub(crate) struct Opener {
    pub(crate) decompressor: Decompressor,
    pub(crate) plain: Vec<u8>,
}

impl Opener {
    pub(crate) fn new() -> Result<Self> {
        Ok(Opener { decompressor: Decompressor::new()?, plain: Vec::new() })
    }

    fn read(&mut self, vault: &Vault, kind: BlobKind, id: &Id, place: &Place) -> Result<()> {
        match vault.read_blob_into(kind, id, place, &mut self.decompressor, &mut self.plain) {
            Err(e) if e.code() == Code::ObjectNotFound => {
                let message = format!("The pack {} is missing", Folder::Data.object(&place.pack));
                Err(Error::new(Code::VaultDamaged, message).because(e))
            }
            other => other,
        }
    }

    /// The plain content of a blob, from whichever of its places is whole.
    pub(crate) fn blob(
        &mut self,
        vault: &Vault,
        index: &BlobIndex,
        kind: BlobKind,
        id: &Id,
    ) -> Result<&[u8]> {
        let mut problem = None;
        for place in index.find_all(kind, id) {
            match self.read(vault, kind, id, &place) {
                Ok(()) => return Ok(&self.plain),
                Err(e) => problem = Some(e),
            }
        }
        Err(problem.unwrap_or_else(|| not_indexed(kind, id)))
    }
}

fn not_indexed(kind: BlobKind, id: &Id) -> Error {
    let what = if kind == BlobKind::Tree { "tree" } else { "blob" };
    Error::new(Code::VaultDamaged, format!("The {what} {} is not in the index", id.short()))
}

/// Told about every distinct tree: its id, its plain content or why there is none, and where to put the ids of
/// the trees in it.
pub(crate) type Visit<'a> = dyn Fn(&Id, Result<&[u8]>, &mut Vec<Id>) -> Result<()> + Sync + 'a;

/// What is walked.
pub(crate) struct Walk<'a> {
    pub(crate) vault: &'a Vault,
    pub(crate) index: &'a BlobIndex,
    pub(crate) marks: &'a Marks,
    pub(crate) cancel: &'a Cancel,
}

struct Queue {
    ids: Vec<Id>,
    busy: usize,
    missing: HashSet<Id>,
}

/// Wakes the others when a worker ends, however it ends: a thread that waits for one that failed would wait for ever.
struct Ending<'a> {
    queue: &'a Mutex<Queue>,
    changed: &'a Condvar,
    failed: &'a AtomicBool,
    well: bool,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if !self.well {
            self.failed.store(true, Ordering::Relaxed);
        }
        // Whoever is about to wait holds the lock until it does: after this it has seen the failure or is woken.
        drop(self.queue.lock());
        self.changed.notify_all();
    }
}

impl Walk<'_> {
    /// Visits every tree that can be reached from `roots` and is not marked yet. Ends at the first error that
    /// `visit` gives back.
    pub(crate) fn trees(&self, roots: Vec<Id>, visit: &Visit<'_>) -> Result<()> {
        let queue = Mutex::new(Queue { ids: roots, busy: 0, missing: HashSet::new() });
        let changed = Condvar::new();
        let failed = AtomicBool::new(false);
        let work = || {
            let mut ending = Ending { queue: &queue, changed: &changed, failed: &failed, well: false };
            let result = self.work(&queue, &changed, &failed, visit);
            ending.well = result.is_ok();
            result
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..crate::workers()).map(|_| scope.spawn(work)).collect();
            let mut results = vec![work()];
            results
                .extend(others.into_iter().map(|t| t.join().unwrap_or_else(|_panic| Err(thread_failed()))));
            results.into_iter().collect()
        })
    }

    fn work(
        &self,
        queue: &Mutex<Queue>,
        changed: &Condvar,
        failed: &AtomicBool,
        visit: &Visit<'_>,
    ) -> Result<()> {
        let mut opener = Opener::new()?;
        let mut found = Vec::new();
        let mut state = queue.lock();
        loop {
            if failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            let Some(id) = state.ids.pop() else {
                if state.busy == 0 {
                    changed.notify_all();
                    return Ok(());
                }
                changed.wait(&mut state);
                continue;
            };
            let position = self.index.position(BlobKind::Tree, &id);
            let first = match position {
                Some(n) => self.marks.set(BlobKind::Tree, n),
                None => state.missing.insert(id),
            };
            if !first {
                continue;
            }
            state.busy += 1;
            drop(state);
            found.clear();
            let visited = self.cancel.check().and_then(|()| {
                visit(&id, opener.blob(self.vault, self.index, BlobKind::Tree, &id), &mut found)
            });
            state = queue.lock();
            state.busy -= 1;
            visited?;
            state.ids.append(&mut found);
            changed.notify_all();
        }
    }

    /// Marks everything that `roots` need, trees and data. Fails when a tree cannot be read or a blob is in no
    /// index: the marks are then incomplete and must not be used to delete anything.
    pub(crate) fn mark_all(&self, roots: Vec<Id>) -> Result<()> {
        self.trees(roots, &|id, json, subtrees| {
            let nodes = links(json?).map_err(|e| e.context(format!("Tree {}", id.short())))?;
            for node in nodes {
                subtrees.extend(node.subtree);
                for blob in node.content.iter().flatten() {
                    let position = self
                        .index
                        .position(BlobKind::Data, blob)
                        .ok_or_else(|| not_indexed(BlobKind::Data, blob))?;
                    self.marks.set(BlobKind::Data, position);
                }
            }
            Ok(())
        })
    }
}

/// Told about a blob: the position of its first place, its id, all its places.
pub(crate) type EachBlob<'a> = dyn FnMut(usize, Id, &[Place]) -> Result<()> + 'a;

/// Calls `each` for every blob of a kind with its position and all its places.
pub(crate) fn each_blob(index: &BlobIndex, kind: BlobKind, each: &mut EachBlob<'_>) -> Result<()> {
    let mut places = Vec::new();
    let mut position = 0;
    while let Some((id, place)) = index.at(kind, position) {
        let first = position;
        places.clear();
        places.push(place);
        position += 1;
        while let Some((_, more)) = index.at(kind, position).filter(|(other, _)| *other == id) {
            places.push(more);
            position += 1;
        }
        each(first, id, &places)?;
    }
    Ok(())
}

/// What a node refers to; all else of it is passed over.
#[derive(Deserialize)]
pub(crate) struct Links {
    #[serde(default)]
    pub(crate) content: Option<Vec<Id>>,
    #[serde(default)]
    pub(crate) subtree: Option<Id>,
    #[serde(default)]
    pub(crate) size: u64,
}

#[derive(Deserialize)]
struct LinksTree {
    nodes: Option<Vec<Links>>,
}

/// What the nodes of a tree refer to.
pub(crate) fn links(json: &[u8]) -> Result<Vec<Links>> {
    let tree: LinksTree = serde_json::from_slice(json)
        .map_err(|e| Error::new(Code::VaultDamaged, "A tree cannot be understood").because(e))?;
    Ok(tree.nodes.unwrap_or_default())
}

/// Does `each` for all items on several threads, with one state a thread that `make` makes. Gives the states back.
/// After the first error no new item is begun.
pub(crate) fn parallel<T: Sync, S: Send>(
    items: &[T],
    make: impl Fn() -> Result<S> + Sync,
    each: impl Fn(&mut S, &T) -> Result<()> + Sync,
) -> Result<Vec<S>> {
    parallel_on(crate::workers(), items, make, each)
}

/// The same on so many threads: more than there are processors where threads mostly wait for answers.
pub(crate) fn parallel_on<T: Sync, S: Send>(
    threads: usize,
    items: &[T],
    make: impl Fn() -> Result<S> + Sync,
    each: impl Fn(&mut S, &T) -> Result<()> + Sync,
) -> Result<Vec<S>> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let work = || -> Result<S> {
        let mut state = make()?;
        while !failed.load(Ordering::Relaxed) {
            let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            each(&mut state, item).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
        }
        Ok(state)
    };
    let threads = threads.min(items.len().max(1));
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut results = vec![work()];
        results.extend(others.into_iter().map(|t| t.join().unwrap_or_else(|_panic| Err(thread_failed()))));
        results.into_iter().collect()
    })
}
