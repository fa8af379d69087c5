//! Writing snapshots anew without what was lost.
//!
//! Invariants: the original is not touched. Trees that lost nothing keep their ids. The new snapshot is written after
//! its trees and their index; the same damage gives the same trees, so a repair that is repeated finds the snapshot it
//! wrote. No recursion: folders may be nested to any depth. Memory: one entry for each tree of the affected points.

use std::collections::{HashMap, HashSet};

use backstay_model::{Cancel, Result};
use backstay_tree::fs::Kind;

use super::{REPAIRED, RepairOutcome};
use crate::blob::BlobKind;
use crate::check::Lost;
use crate::compress::Compressor;
use crate::id::Id;
use crate::index::BlobIndex;
use crate::lock::Lock;
use crate::node::{Node, TreeBuilder, parse_tree};
use crate::snapshot::Snapshot;
use crate::transfer::{Filler, Packer, write_index};
use crate::vault::{Folder, Vault};
use crate::walk::Opener;

/// Writes the snapshots anew.
pub(super) fn snapshots(
    vault: &Vault,
    affected: &[Id],
    lost: &Lost,
    lock: &Lock,
    outcome: &mut RepairOutcome,
    cancel: &Cancel,
) -> Result<()> {
    if affected.is_empty() {
        return Ok(());
    }
    let (index, _) = vault.load_index(&|_| true)?;
    let packer = Packer::new(vault);
    let mut rewriter = Rewriter {
        vault,
        index: &index,
        lost,
        packer: &packer,
        filler: Filler::new(),
        opener: Opener::new()?,
        compressor: vault.compresses().then(|| Compressor::new(3)).transpose()?,
        done: HashMap::new(),
        written: HashSet::new(),
    };
    let mut new = Vec::new();
    for id in affected {
        let old = vault.snapshot(id)?;
        match rewriter.tree(old.tree, cancel)? {
            None => outcome.hopeless.push(*id),
            Some(tree) => new.push((*id, tree, old)),
        }
    }
    let Rewriter { filler, .. } = rewriter;
    packer.hand_in(filler);
    let (packs, ids, bytes) = packer.finish()?;
    outcome.written.count += crate::check::count(ids.len());
    outcome.written.bytes += bytes;
    lock.check()?;
    outcome.index_written += crate::check::count(write_index(vault, packs)?.len());
    let (there, _) = vault.snapshots_and_damage()?;
    for (id, tree, old) in new {
        let original = Some(old.original.unwrap_or(id));
        if tree == old.tree || there.iter().any(|(_, s)| s.tree == tree && s.original == original) {
            continue;
        }
        let mut tags = old.tags.clone();
        if !old.has_tag(REPAIRED) {
            tags.push(REPAIRED.into());
        }
        lock.check()?;
        // The totals in the summary were those of the original.
        let repaired = Snapshot { tree, tags, original, summary: None, ..old };
        outcome.rewritten.push((id, vault.put_json(Folder::Snapshots, &repaired)?));
    }
    Ok(())
}

struct Rewriter<'a> {
    vault: &'a Vault,
    index: &'a BlobIndex,
    lost: &'a Lost,
    packer: &'a Packer<'a>,
    filler: Filler,
    opener: Opener,
    compressor: Option<Compressor>,
    /// What became of each tree; none when nothing of it can be read.
    done: HashMap<Id, Option<Id>>,
    written: HashSet<Id>,
}

impl Rewriter<'_> {
    /// The id of a tree without what was lost, or none when it is lost itself.
    fn tree(&mut self, root: Id, cancel: &Cancel) -> Result<Option<Id>> {
        let mut stack = vec![root];
        while let Some(id) = stack.last().copied() {
            cancel.check()?;
            if self.done.contains_key(&id) {
                stack.pop();
                continue;
            }
            if self.lost.contains(&(BlobKind::Tree, id)) {
                self.done.insert(id, None);
                continue;
            }
            let json = self.opener.blob(self.vault, self.index, BlobKind::Tree, &id)?;
            let nodes = parse_tree(json)?;
            let waiting: Vec<Id> =
                nodes.iter().filter_map(|n| n.subtree).filter(|t| !self.done.contains_key(t)).collect();
            if waiting.is_empty() {
                let new = self.rebuild(id, nodes)?;
                self.done.insert(id, Some(new));
            } else {
                stack.extend(waiting);
            }
        }
        Ok(self.done.get(&root).copied().flatten())
    }

    /// All folders below are done.
    fn rebuild(&mut self, id: Id, nodes: Vec<Node>) -> Result<Id> {
        let mut changed = false;
        let mut kept = TreeBuilder::new(Vec::new());
        for mut node in nodes {
            let lost_content = node.content.iter().any(|b| self.lost.contains(&(BlobKind::Data, *b)));
            let subtree = node.subtree.map(|t| self.done.get(&t).copied().flatten());
            if lost_content || (node.kind == Some(Kind::Dir) && subtree == Some(None)) {
                changed = true;
                continue;
            }
            if let Some(new) = subtree
                && new != node.subtree
            {
                node.subtree = new;
                changed = true;
            }
            kept.push(&node);
        }
        if !changed {
            return Ok(id);
        }
        let json = kept.finish();
        let new = Id::of(&json);
        if !self.index.has(BlobKind::Tree, &new) && self.written.insert(new) {
            self.packer.push(&mut self.filler, BlobKind::Tree, new, &json, self.compressor.as_mut())?;
        }
        Ok(new)
    }
}
