//! Going into folders, and what is decided when all in them is known.
//!
//! Invariant: what a folder needs (a step, its metadata) is decided when its last entry is, so after all that is in it.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use backstay_model::{ProblemKind, Result};

use super::pairs::Pair;
use super::{
    Action, DEPTH_MAX, Extent, Frame, Hold, Live, Mark, Meta, MetaChange, Node, Place, REPEATED, Role, Seen,
    Side, Skipped, Special, Walk, Wanted, same_metadata,
};
use crate::restore::select::Selection;
use backstay_tree::fs::Kind;

impl<'a> Walk<'a> {
    /// The home itself.
    pub(super) fn enter_root(
        &mut self,
        live: &Side<'_>,
        target: &Side<'_>,
        selection: &'a Selection,
        special: &'a Special,
    ) -> Result<()> {
        // Without a node of its own, one that only says which tree it has.
        let node = |side: &Side<'_>| Node {
            kind: Some(Kind::Dir),
            subtree: Some(side.tree),
            ..side.top.cloned().unwrap_or_default()
        };
        let known = live.top.is_some() && target.top.is_some();
        let (live, target) = (Rc::new(node(live)), Box::new(node(target)));
        let (wanted, special) = (selection.root(), Some(special));
        let pairs = if is_skipped(&live, &target, wanted, special) {
            self.skipped.push(Skipped { path: PathBuf::new(), folder: Rc::clone(&live), special });
            Vec::new()
        } else {
            self.pairs(Path::new(""), live.subtree, target.subtree, special)?.unwrap_or_default()
        };
        let (live, target) = (known.then_some(live), known.then_some(target));
        self.push(pairs, wanted, special, Role::Both { live, target, unsure: false });
        Ok(())
    }

    fn push(&mut self, pairs: Vec<Pair>, wanted: Wanted<'a>, special: Option<&'a Special>, role: Role) {
        let (pairs, extent) = (pairs.into_iter(), Extent::folder());
        self.frames.push(Frame { pairs, wanted, special, role, touched: false, extent });
    }

    /// A folder that is on both sides.
    pub(super) fn enter_both(
        &mut self,
        place: Place<'a>,
        live: Box<Node>,
        target: Node,
        unsure: bool,
    ) -> Result<()> {
        let Place { path, name, wanted, special } = place;
        let live = Rc::new(*live);
        let pairs = if is_skipped(&live, &target, wanted, special) {
            self.skipped.push(Skipped { path, folder: Rc::clone(&live), special });
            Some(Vec::new())
        } else if self.frames.len() > DEPTH_MAX {
            let why = format!("More than {DEPTH_MAX} folders inside each other; it stays as it is");
            self.problem(&path, ProblemKind::Unsafe, why);
            None
        } else if target.subtree.is_none() || live.subtree.is_none() {
            self.problem(&path, ProblemKind::Lost, "What is in it is not said; it stays as it is");
            None
        } else {
            self.pairs(&path, live.subtree, target.subtree, special)?
        };
        if pairs.is_none() {
            wanted.settle();
        }
        self.path.push(name);
        let role = Role::Both { live: Some(live), target: Some(Box::new(target)), unsure };
        self.push(pairs.unwrap_or_default(), wanted, special, role);
        Ok(())
    }

    /// A live folder that goes, unless something in it stays.
    pub(super) fn enter_going(
        &mut self,
        place: Place<'a>,
        live: Box<Node>,
        replacement: Option<Box<Node>>,
    ) -> Result<()> {
        let goes_whole =
            matches!(self.frames.last(), Some(Frame { role: Role::Going { may_hold: false, .. }, .. }));
        let may_hold = !goes_whole && self.hold(&place, true) == Hold::Below;
        let Place { path, name, special, .. } = place;
        let pairs = self.pairs(&path, live.subtree, None, special)?;
        let held = may_hold && (pairs.is_none() || special.is_some_and(|s| s.protected_below));
        let mark = Mark { steps: self.plan.steps.len(), metadata: self.plan.metadata.len() };
        self.path.push(name);
        let role = Role::Going { live: Rc::new(*live), replacement, may_hold, held, mark };
        self.push(pairs.unwrap_or_default(), Wanted::All, special, role);
        Ok(())
    }

    /// A folder of the point that the live tree does not have.
    pub(super) fn enter_coming(
        &mut self,
        place: Place<'a>,
        target: Node,
        replaced: Live,
        inner: bool,
    ) -> Result<()> {
        let Place { path, name, wanted, special } = place;
        let repeated = target.subtree.is_some_and(|tree| self.seen.contains(&tree));
        let pairs = if self.frames.len() > DEPTH_MAX {
            let why = format!("More than {DEPTH_MAX} folders inside each other");
            self.problem(&path, ProblemKind::Unsafe, why);
            None
        } else if repeated && self.repeated > REPEATED {
            // Told once; a restore leaves them out too.
            None
        } else {
            self.pairs(&path, None, target.subtree, None)?
        };
        match (&pairs, target.subtree) {
            (Some(pairs), Some(tree)) if !pairs.is_empty() && !self.seen.insert(tree) => {
                let before = self.repeated;
                self.repeated += u64::try_from(pairs.len()).unwrap_or(u64::MAX);
                if before <= REPEATED && self.repeated > REPEATED {
                    let why = "The same folders are repeated too often in the point; more are left out";
                    self.problem(&path, ProblemKind::Unsafe, why);
                }
            }
            (None, _) => wanted.settle(),
            _ => {}
        }
        self.path.push(name);
        self.push(pairs.unwrap_or_default(), wanted, special, Role::Coming { replaced, inner });
        Ok(())
    }

    /// The last entry of the folder is done.
    pub(super) fn finish(&mut self) {
        let Some(frame) = self.frames.pop() else { return };
        let path = self.path.clone();
        self.path.pop();
        let Frame { wanted, role, touched, mut extent, .. } = frame;
        match role {
            Role::Both { live: Some(live), target: Some(target), unsure } => {
                let target = if wanted.is_whole() { &*target } else { &*live };
                self.folder_metadata(path, &live, target, touched || (unsure && wanted.is_whole()));
            }
            Role::Both { .. } => {}
            Role::Going { live, replacement, held: true, mark, .. } => {
                self.hold_folder();
                if replacement.is_some() {
                    self.take_back(mark);
                    self.conflict(
                        path,
                        "It is a folder that holds what is to be kept, and none in the point",
                    );
                } else {
                    self.folder_metadata(path, &live, &live, touched);
                }
            }
            Role::Going { live, replacement, mark, .. } => {
                self.take_back(mark);
                let counts = match self.frames.last_mut() {
                    Some(Frame { role: Role::Going { may_hold, .. }, extent: above, .. }) => {
                        above.add(extent);
                        !*may_hold
                    }
                    _ => false,
                };
                if counts {
                    return;
                }
                let action = if replacement.is_some() { Action::Replace } else { Action::Remove };
                let after = replacement.as_ref().and_then(|node| Extent::of(node));
                if let Some(node) = &replacement {
                    self.links.staged(node);
                }
                self.step(path, action, Some(extent), Seen::of(&live), after);
            }
            Role::Coming { inner: true, .. } => {
                if touched || wanted.is_whole() {
                    self.add_extent(Some(extent));
                    self.touch();
                }
            }
            Role::Coming { replaced, inner: false } => {
                if touched || wanted.is_whole() {
                    extent.kind = Kind::Dir;
                    self.pass(&replaced);
                    let action = if replaced.is_there() { Action::Replace } else { Action::Add };
                    self.step(path, action, replaced.extent(), replaced.seen(), Some(extent));
                }
            }
        }
    }

    /// What was provisional goes with the folder as a whole.
    fn take_back(&mut self, mark: Mark) {
        self.plan.steps.truncate(mark.steps);
        self.plan.metadata.truncate(mark.metadata);
    }

    /// The metadata of a folder that stays, where it differs or will have to be set again.
    fn folder_metadata(&mut self, path: PathBuf, live: &Node, target: &Node, touched: bool) {
        if !touched && same_metadata(live, target) {
            return;
        }
        if let Some(seen) = Seen::of(live) {
            let (before, after) = (Meta::of(live), Meta::of(target));
            self.plan.metadata.push(MetaChange { path, seen, before, after });
        }
    }
}

/// Whether a folder need not be gone into: it is the same tree, and nothing in it is unknown or to be looked up.
fn is_skipped(live: &Node, target: &Node, wanted: Wanted<'_>, special: Option<&Special>) -> bool {
    live.subtree.is_some()
        && live.subtree == target.subtree
        && wanted.is_whole()
        && !special.is_some_and(Special::has_unknown_below)
}
