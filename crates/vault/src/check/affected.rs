//! Which points and paths need what is lost.
//!
//! Invariants: every distinct tree is read once more and every tree is counted once, so the work does not grow with
//! the number of points; the lists are bounded, the counts are exact. No recursion: folders may be nested to any depth.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use backstay_model::{Cancel, Result};
use backstay_tree::fs::Kind;
use backstay_tree::path::escape;
use parking_lot::Mutex;

use super::survey::Survey;
use super::{AffectedPoint, Lost, PATHS_LISTED, count};
use crate::blob::BlobKind;
use crate::id::Id;
use crate::node::parse_tree;
use crate::vault::Vault;
use crate::walk::{Marks, Walk};

/// What a tree lost itself, and the folders in it.
#[derive(Default)]
struct Branch {
    lost: Vec<OsString>,
    folders: Vec<(OsString, Id)>,
}

/// The points that need anything in `lost`, oldest first.
pub(super) fn find(
    vault: &Vault,
    survey: &Survey,
    lost: &Lost,
    cancel: &Cancel,
) -> Result<Vec<AffectedPoint>> {
    let branches = Mutex::new(HashMap::new());
    let marks = Marks::new(&survey.index);
    let walk = Walk { vault, index: &survey.index, marks: &marks, cancel };
    walk.trees(survey.roots(), &|id, json, subtrees| {
        // A tree that cannot be read is in `lost`: whoever refers to it tells it.
        let mut branch = Branch::default();
        for node in json.and_then(parse_tree).unwrap_or_default() {
            match (node.kind, node.subtree) {
                (Some(Kind::Dir), Some(tree)) => {
                    subtrees.push(tree);
                    branch.folders.push((node.name, tree));
                }
                _ if node.content.iter().any(|blob| lost.contains(&(BlobKind::Data, *blob))) => {
                    branch.lost.push(node.name);
                }
                _ => {}
            }
        }
        branches.lock().insert(*id, branch);
        Ok(())
    })?;
    let branches = branches.into_inner();
    let is_lost = |tree: &Id| lost.contains(&(BlobKind::Tree, *tree));
    let counts = count_all(&branches, &is_lost, survey.roots());
    let mut affected = Vec::new();
    for (id, snapshot) in &survey.snapshots {
        let total =
            if is_lost(&snapshot.tree) { 1 } else { counts.get(&snapshot.tree).copied().unwrap_or(0) };
        if total > 0 {
            affected.push(AffectedPoint {
                snapshot: *id,
                time: snapshot.time,
                tags: snapshot.tags.clone(),
                paths: list(&branches, &counts, &is_lost, snapshot.tree),
                count: total,
            });
        }
    }
    Ok(affected)
}

/// How many paths each tree lost, in itself and below.
fn count_all(
    branches: &HashMap<Id, Branch>,
    is_lost: &dyn Fn(&Id) -> bool,
    roots: Vec<Id>,
) -> HashMap<Id, u64> {
    let mut counts: HashMap<Id, u64> = HashMap::new();
    let mut entered = HashSet::new();
    let mut stack = roots;
    while let Some(tree) = stack.last().copied() {
        let Some(branch) = branches.get(&tree).filter(|_| !counts.contains_key(&tree)) else {
            stack.pop();
            continue;
        };
        if entered.insert(tree) {
            stack.extend(branch.folders.iter().map(|(_, id)| *id).filter(|id| !entered.contains(id)));
            continue;
        }
        let below = branch.folders.iter().map(|(_, id)| match is_lost(id) {
            true => 1,
            false => counts.get(id).copied().unwrap_or(0),
        });
        let total = below.fold(count(branch.lost.len()), u64::saturating_add);
        counts.insert(tree, total);
        stack.pop();
    }
    counts
}

/// The first paths that were lost below a tree.
fn list(
    branches: &HashMap<Id, Branch>,
    counts: &HashMap<Id, u64>,
    is_lost: &dyn Fn(&Id) -> bool,
    root: Id,
) -> Vec<String> {
    if is_lost(&root) {
        return vec!["/".into()];
    }
    let mut paths = Vec::new();
    let mut stack = vec![(OsString::new(), root)];
    while let Some((path, tree)) = stack.pop() {
        let join = |name: &OsString| {
            let mut joined = path.clone();
            if !path.is_empty() {
                joined.push("/");
            }
            joined.push(name);
            joined
        };
        let Some(branch) = branches.get(&tree) else { continue };
        for name in &branch.lost {
            paths.push(escape(&join(name)));
        }
        for (name, id) in branch.folders.iter().rev() {
            if is_lost(id) {
                paths.push(escape(&join(name)) + "/");
            } else if counts.get(id).is_some_and(|n| *n > 0) && path.as_bytes().len() < 64 << 10 {
                stack.push((join(name), *id));
            }
        }
        if paths.len() >= PATHS_LISTED {
            paths.truncate(PATHS_LISTED);
            break;
        }
    }
    paths
}
