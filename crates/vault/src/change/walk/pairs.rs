//! The entries of two folders, matched by name.
//!
//! Invariant: names are safe, each comes once, in the order of their bytes. A tree of which any entry cannot be
//! understood counts as unreadable: what its name would be is not known, so nothing in the folder may be taken for
//! absent.

use std::cmp::Ordering;
use std::ffi::OsString;
use std::path::Path;

use backstay_model::{Code, ProblemKind, Result};
use backstay_tree::path::escape;

use super::{Special, Walk};
use crate::id::Id;
use crate::node::Node;

/// An entry on either side or both; on neither where something is there that the live tree does not tell.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) name: OsString,
    pub(super) live: Option<Node>,
    pub(super) target: Option<Node>,
}

impl Walk<'_> {
    /// The entries of a folder; none when one side cannot be read, which is told.
    pub(super) fn pairs(
        &mut self,
        path: &Path,
        live: Option<Id>,
        target: Option<Id>,
        special: Option<&Special>,
    ) -> Result<Option<Vec<Pair>>> {
        let Some(live) = self.nodes(path, live)? else { return Ok(None) };
        let Some(target) = self.nodes(path, target)? else { return Ok(None) };
        let mut pairs = merge(live, target);
        let unknown = special.into_iter().flat_map(Special::unknown_names);
        let missing: Vec<Pair> = unknown
            .filter(|name| pairs.binary_search_by(|pair| pair.name.cmp(name)).is_err())
            .map(|name| Pair { name: name.clone(), live: None, target: None })
            .collect();
        if !missing.is_empty() {
            pairs.extend(missing);
            pairs.sort_by(|a, b| a.name.cmp(&b.name));
        }
        Ok(Some(pairs))
    }

    /// The nodes of a tree. Of several with one name the first counts, as in a restore.
    fn nodes(&mut self, path: &Path, tree: Option<Id>) -> Result<Option<Vec<Node>>> {
        let Some(tree) = tree else { return Ok(Some(Vec::new())) };
        let mut nodes = match self.reader.tree(&tree) {
            Ok(nodes) => nodes,
            Err(e) if matches!(e.code(), Code::StorageUnavailable | Code::Cancelled) => return Err(e),
            Err(e) => {
                self.problem(path, ProblemKind::Lost, format!("What is in it cannot be read: {e}"));
                return Ok(None);
            }
        };
        let all = nodes.len();
        let refused = nodes.iter().find(|node| node.safe_name().is_none()).map(|node| escape(&node.name));
        if let Some(name) = refused {
            nodes.retain(|node| node.safe_name().is_some());
            let count = all - nodes.len();
            let why = format!("{count} of its entries are left out: nothing can be named `{name}`");
            self.problem(path, ProblemKind::Unsafe, why);
        }
        if !nodes.is_sorted_by(|a, b| a.name < b.name) {
            let all = nodes.len();
            nodes.sort_by(|a, b| a.name.cmp(&b.name));
            nodes.dedup_by(|later, first| later.name == first.name);
            if nodes.len() < all {
                let count = all - nodes.len();
                let why = format!("{count} of its entries are left out: others have the same names");
                self.problem(path, ProblemKind::Unsafe, why);
            }
        }
        Ok(Some(nodes))
    }
}

fn merge(live: Vec<Node>, target: Vec<Node>) -> Vec<Pair> {
    let mut pairs: Vec<Pair> = Vec::with_capacity(live.len().max(target.len()));
    let (mut live, mut target) = (live.into_iter().peekable(), target.into_iter().peekable());
    loop {
        let order = match (live.peek(), target.peek()) {
            (Some(a), Some(b)) => a.name.cmp(&b.name),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return pairs,
        };
        let first = if order == Ordering::Greater { None } else { live.next() };
        let second = if order == Ordering::Less { None } else { target.next() };
        let name = first.as_ref().or(second.as_ref()).map(|node| node.name.clone()).unwrap_or_default();
        pairs.push(Pair { name, live: first, target: second });
    }
}
