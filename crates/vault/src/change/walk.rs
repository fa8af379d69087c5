//! The walk over both trees.
//!
//! Invariants: an explicit stack of folders, each in one of three roles: on both sides ([`Role::Both`]), going away
//! ([`Role::Going`]), coming ([`Role::Coming`]). A folder that goes is one step if nothing in it stays; until that is
//! known the steps for what is in it are provisional, and are taken back when it goes as a whole. Depth costs memory,
//! not stack. Trees of the point that are used again and again are gone into only so often ([`REPEATED`]).

mod folders;
mod pairs;

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use backstay_model::{Cancel, Code, Error, Problem, ProblemKind, Result};
use backstay_tree::fs::Kind;
use backstay_tree::path::escape;

use super::facts::{same_content, same_metadata};
use super::links::{Links, Skipped};
use super::rules::{Hold, Rules, Special, hold};
use super::{
    Action, ChangePlan, Conflict, Extent, Kept, LeftOut, Meta, MetaChange, Seen, Side, Step, WhyLeftOut,
};
use crate::id::Id;
use crate::node::Node;
use crate::reader::Reader;
use crate::restore::select::{Selection, Wanted, not_there};
use pairs::Pair;

/// Folders inside each other that are gone into; the same as in a restore.
const DEPTH_MAX: usize = 4096;
/// Entries that are looked at in all; more can only be a tree made to waste time.
const ENTRIES_MAX: u64 = 100_000_000;
/// Entries that may come from trees of the point that were added at another place already.
const REPEATED: u64 = 1_000_000;

/// What is live at a path.
#[derive(Debug)]
enum Live {
    Absent,
    /// Something that the live tree does not tell.
    Unknown {
        is_dir: bool,
    },
    /// What the live tree tells; `unsure` when that may not be all.
    Known {
        node: Box<Node>,
        unsure: bool,
    },
}

impl Live {
    fn is_dir(&self) -> bool {
        match self {
            Live::Absent => false,
            Live::Unknown { is_dir } => *is_dir,
            Live::Known { node, .. } => node.kind == Some(Kind::Dir),
        }
    }

    fn is_there(&self) -> bool {
        !matches!(self, Live::Absent)
    }

    fn seen(&self) -> Option<Seen> {
        if let Live::Known { node, unsure: false } = self { Seen::of(node) } else { None }
    }

    fn extent(&self) -> Option<Extent> {
        if let Live::Known { node, .. } = self { Extent::of(node) } else { None }
    }
}

/// Lengths of the lists of a plan, to take back what was added since.
#[derive(Clone, Copy, Debug)]
struct Mark {
    steps: usize,
    metadata: usize,
}

#[derive(Debug)]
enum Role {
    Both {
        live: Option<Rc<Node>>,
        target: Option<Box<Node>>,
        unsure: bool,
    },
    Going {
        live: Rc<Node>,
        /// What takes its place.
        replacement: Option<Box<Node>>,
        /// Something in it may have to stay, so there is a step for each of its entries until all are known.
        may_hold: bool,
        held: bool,
        mark: Mark,
    },
    Coming {
        replaced: Live,
        /// It lies in another that comes.
        inner: bool,
    },
}

#[derive(Debug)]
struct Frame<'a> {
    pairs: std::vec::IntoIter<Pair>,
    wanted: Wanted<'a>,
    special: Option<&'a Special>,
    role: Role,
    /// A step happens in it; or, of a folder that comes: something comes in it.
    touched: bool,
    /// What goes or comes.
    extent: Extent,
}

/// A path with all that decides about it.
struct Place<'a> {
    name: OsString,
    path: PathBuf,
    wanted: Wanted<'a>,
    special: Option<&'a Special>,
}

struct Walk<'a> {
    reader: &'a Reader,
    rules: &'a Rules<'a>,
    cancel: &'a Cancel,
    plan: ChangePlan,
    links: Links,
    skipped: Vec<Skipped<'a>>,
    frames: Vec<Frame<'a>>,
    /// The folder of the last frame.
    path: PathBuf,
    entries: u64,
    seen: HashSet<Id>,
    repeated: u64,
}

pub(super) fn plan(
    reader: &Reader,
    live: &Side<'_>,
    target: &Side<'_>,
    rules: &Rules<'_>,
    cancel: &Cancel,
) -> Result<ChangePlan> {
    let everything = [PathBuf::new()];
    let selection = Selection::new(rules.select.unwrap_or(&everything))?;
    let special = Special::new(rules);
    let mut walk = Walk {
        reader,
        rules,
        cancel,
        plan: ChangePlan { select: rules.select.map(<[PathBuf]>::to_vec), ..ChangePlan::default() },
        links: Links::default(),
        skipped: Vec::new(),
        frames: Vec::new(),
        path: PathBuf::new(),
        entries: 0,
        seen: HashSet::new(),
        repeated: 0,
    };
    walk.tell_protected();
    walk.enter_root(live, target, &selection, &special)?;
    while let Some(frame) = walk.frames.last_mut() {
        cancel.check()?;
        match frame.pairs.next() {
            Some(pair) => walk.pair(pair)?,
            None => walk.finish(),
        }
    }
    if let Some(path) = selection.unmet() {
        return Err(not_there(&path));
    }
    walk.conclude()
}

fn boxed(node: Node, special: Option<&Special>) -> Live {
    Live::Known { node: Box::new(node), unsure: special.is_some_and(|s| s.unknown.is_some()) }
}

impl<'a> Walk<'a> {
    fn tell_protected(&mut self) {
        let selected = |path: &PathBuf| {
            self.rules.select.is_none_or(|wanted| wanted.iter().any(|selected| path.starts_with(selected)))
        };
        let protected = self.rules.protected.iter().filter(|path| selected(path));
        let told = protected.map(|path| LeftOut { path: path.clone(), why: WhyLeftOut::Protected });
        self.plan.left_out.extend(told);
    }

    fn conclude(mut self) -> Result<ChangePlan> {
        let links = std::mem::take(&mut self.links);
        let (names, staged_twice) =
            links.resolve(self.reader, self.rules, std::mem::take(&mut self.skipped), self.cancel)?;
        if !names.is_empty() {
            self.replace_names(names);
        }
        let staged = self.plan.steps.iter().filter_map(|step| step.after).map(|after| after.bytes);
        self.plan.totals.stage_bytes = staged.fold(0, u64::saturating_add).saturating_sub(staged_twice);
        self.plan.count();
        Ok(self.plan)
    }

    /// Adds steps for names that are the same but must be replaced with the others of their file.
    fn replace_names(&mut self, names: Vec<super::links::Name>) {
        let mut listed: HashSet<PathBuf> =
            self.plan.metadata.iter().map(|change| change.path.clone()).collect();
        for name in names {
            let parent = name.path.parent().unwrap_or(Path::new(""));
            if let Some(folder) = name.folder.as_ref()
                && let Some(seen) = Seen::of(folder)
                && listed.insert(parent.to_owned())
            {
                // Not listed before: its metadata is to be what it is.
                let (path, meta) = (parent.to_owned(), Meta::of(folder));
                self.plan.metadata.push(MetaChange { path, seen, before: meta.clone(), after: meta });
            }
            let (before, after) = (Some(name.extent), Some(name.extent));
            let (action, seen) = (Action::Replace, Some(name.seen));
            self.plan.steps.push(Step { path: name.path, action, before, after, seen });
        }
        self.plan.steps.sort_by(|a, b| a.path.cmp(&b.path));
        // A folder comes after what is in it.
        self.plan.metadata.sort_by(|a, b| b.path.cmp(&a.path));
    }

    // --- telling

    fn problem(&mut self, path: &Path, kind: ProblemKind, detail: impl Into<String>) {
        let problem = Problem { path: escape(path.as_os_str()), kind, detail: detail.into() };
        self.plan.problems.push(problem);
    }

    fn kept(&mut self, path: PathBuf, live: bool, in_point: bool) {
        self.plan.kept.push(Kept { path, live, in_point });
    }

    fn conflict(&mut self, path: PathBuf, why: &str) {
        self.plan.conflicts.push(Conflict { path, why: why.to_owned() });
    }

    fn step(
        &mut self,
        path: PathBuf,
        action: Action,
        live: Option<Extent>,
        seen: Option<Seen>,
        after: Option<Extent>,
    ) {
        self.plan.steps.push(Step { path, action, before: live, after, seen });
        if let Some(frame) = self.frames.last_mut() {
            frame.touched = true;
        }
    }

    // --- one entry

    fn pair(&mut self, pair: Pair) -> Result<()> {
        self.entries += 1;
        if self.entries > ENTRIES_MAX {
            let message = format!("More than {ENTRIES_MAX} entries are to be compared");
            return Err(Error::new(Code::LimitExceeded, message));
        }
        let Some(frame) = self.frames.last() else { return Ok(()) };
        let Pair { name, live, target } = pair;
        let wanted = match frame.wanted {
            Wanted::All => Wanted::All,
            Wanted::Some(_) if target.is_none() => return Ok(()),
            some => match some.entry(&name) {
                Some(wanted) => wanted,
                None => return Ok(()),
            },
        };
        let special = frame.special.and_then(|special| special.entry(&name));
        let live = match (live, special.and_then(|s| s.unknown)) {
            (Some(node), _) => boxed(node, special),
            (None, Some(is_dir)) => Live::Unknown { is_dir },
            (None, None) => Live::Absent,
        };
        let place = Place { path: self.path.join(&name), name, wanted, special };
        let protected = special.is_some_and(|s| s.protected);
        match frame.role {
            Role::Both { .. } if protected => {
                self.pass(&live);
                if !place.wanted.is_whole() {
                    place.wanted.settle();
                    self.conflict(place.path, "It lies in something that is not part of the app");
                }
                Ok(())
            }
            Role::Both { .. } => self.both(place, live, target),
            Role::Going { .. } if protected => {
                self.pass(&live);
                Ok(())
            }
            Role::Going { .. } => self.going(place, live),
            Role::Coming { .. } if protected => {
                place.wanted.settle();
                self.plan.omit.extend(target.map(|_| place.path));
                Ok(())
            }
            Role::Coming { .. } => target.map_or(Ok(()), |target| self.coming(place, target)),
        }
    }

    /// Something live that is not touched, or goes with its folder.
    fn pass(&mut self, live: &Live) {
        if let Live::Known { node, .. } = live {
            self.links.live(node);
        }
    }

    fn hold(&self, place: &Place<'_>, is_dir: bool) -> Hold {
        hold(self.rules, place.special, &place.path, is_dir)
    }

    /// An entry of a folder that is on both sides.
    fn both(&mut self, place: Place<'a>, live: Live, target: Option<Node>) -> Result<()> {
        let Some(target) = self.restorable(&place, &live, target) else { return Ok(()) };
        let (there, there_then) = (live.is_there(), target.is_some());
        if there && place.special.is_some_and(|s| s.not_in_point) {
            self.pass(&live);
            place.wanted.settle();
            if !is_same(&live, target.as_ref()) {
                self.plan.left_out.push(LeftOut { path: place.path, why: WhyLeftOut::NotInPoint });
            }
            return Ok(());
        }
        let kept_live = there && self.hold(&place, live.is_dir()) == Hold::Filtered;
        let is_dir_then = target.as_ref().is_some_and(|node| node.kind == Some(Kind::Dir));
        let kept_then = there_then && self.hold(&place, is_dir_then) == Hold::Filtered;
        if kept_live || kept_then {
            place.wanted.settle();
        }
        match target {
            None if kept_live => self.keep(place, &live, false),
            None => self.remove(place, live)?,
            Some(target) if kept_live && (kept_then || live.is_dir() == is_dir_then) => {
                if !is_same(&live, Some(&target)) {
                    self.kept(place.path, true, true);
                }
                self.pass(&live);
            }
            Some(_) if kept_live => {
                self.pass(&live);
                self.conflict(place.path, "What is there is kept by the filter, and is something else");
            }
            Some(_) if kept_then => {
                self.kept(place.path.clone(), false, true);
                self.remove(place, live)?;
            }
            Some(target) => self.bring(place, live, target)?,
        }
        Ok(())
    }

    fn keep(&mut self, place: Place<'a>, live: &Live, in_point: bool) {
        self.pass(live);
        self.kept(place.path, true, in_point);
    }

    /// What of the point's entry can be restored: `None` if what is there stays as it is.
    fn restorable(&mut self, place: &Place<'_>, live: &Live, target: Option<Node>) -> Option<Option<Node>> {
        let Some(node) = target else { return Some(None) };
        if node.kind.is_none() {
            self.pass(live);
            let why = "It is of a kind that this program does not know; what is there stays";
            self.problem(&place.path, ProblemKind::Unsafe, why);
            return None;
        }
        if node.kind != Some(Kind::Socket) {
            return Some(Some(node));
        }
        if matches!(live, Live::Known { node, .. } if node.kind == Some(Kind::Socket)) {
            return None;
        }
        self.problem(&place.path, ProblemKind::Socket, "Sockets have no content to restore");
        Some(None)
    }

    /// Something live that the point does not have.
    fn remove(&mut self, place: Place<'a>, live: Live) -> Result<()> {
        match live {
            Live::Absent => {}
            Live::Unknown { is_dir } if self.hold(&place, is_dir) == Hold::Below => {
                self.kept(place.path, true, false);
            }
            Live::Known { node, .. } if node.kind == Some(Kind::Dir) => {
                self.enter_going(place, node, None)?
            }
            live => {
                self.pass(&live);
                self.step(place.path, Action::Remove, live.extent(), live.seen(), None);
            }
        }
        Ok(())
    }

    /// Something that the point has, and perhaps the live tree.
    fn bring(&mut self, place: Place<'a>, live: Live, target: Node) -> Result<()> {
        let is_dir_then = target.kind == Some(Kind::Dir);
        if live.is_there() && !place.wanted.is_whole() && !(live.is_dir() && is_dir_then) {
            // It is on the way to something that was asked for, and was not asked for itself.
            if is_dir_then {
                place.wanted.settle();
                self.conflict(place.path, "It is a folder in the point, and what is there is none");
            }
            return Ok(());
        }
        match live {
            Live::Known { node, unsure } if node.kind == Some(Kind::Dir) => {
                if is_dir_then {
                    self.enter_both(place, node, target, unsure)
                } else {
                    self.enter_going(place, node, Some(Box::new(target)))
                }
            }
            Live::Unknown { is_dir } if self.hold(&place, is_dir) == Hold::Below => {
                let why = "What is there cannot be read, and may hold what is to be kept";
                place.wanted.settle();
                self.conflict(place.path, why);
                Ok(())
            }
            live if is_dir_then => self.enter_coming(place, target, live, false),
            Live::Absent => {
                if place.wanted.is_whole() {
                    self.links.staged(&target);
                    self.step(place.path, Action::Add, None, None, Extent::of(&target));
                }
                Ok(())
            }
            Live::Unknown { .. } => {
                self.links.staged(&target);
                self.step(place.path, Action::Replace, None, None, Extent::of(&target));
                Ok(())
            }
            Live::Known { node, unsure } => {
                self.compare(place, &node, &target, unsure);
                Ok(())
            }
        }
    }

    /// Two entries that are no folders.
    fn compare(&mut self, place: Place<'a>, live: &Node, target: &Node, unsure: bool) {
        let content = !unsure && same_content(live, target);
        let is_same = content && same_metadata(live, target);
        let linked = live.links > 1 || target.links > 1;
        if is_same && !linked {
            return;
        }
        if is_same {
            let folder = self.frames.last().and_then(|frame| match &frame.role {
                Role::Both { live, .. } => live.clone(),
                _ => None,
            });
            self.links.same(place.path, live, target, folder);
        } else if content && !linked && live.kind == Some(Kind::File) {
            self.plan.metadata.extend(Seen::of(live).map(|seen| MetaChange {
                path: place.path,
                seen,
                before: Meta::of(live),
                after: Meta::of(target),
            }));
        } else {
            self.links.live(live);
            self.links.staged(target);
            let seen = if unsure { None } else { Seen::of(live) };
            self.step(place.path, Action::Replace, Extent::of(live), seen, Extent::of(target));
        }
    }

    /// An entry of a folder that goes.
    fn going(&mut self, place: Place<'a>, live: Live) -> Result<()> {
        let Some(Frame { role: Role::Going { may_hold: true, .. }, .. }) = self.frames.last() else {
            // The whole folder goes: it is only counted.
            return match live {
                Live::Known { node, .. } if node.kind == Some(Kind::Dir) => {
                    self.enter_going(place, node, None)
                }
                live => {
                    self.pass(&live);
                    self.add_extent(live.extent());
                    Ok(())
                }
            };
        };
        if !live.is_there() {
            return Ok(());
        }
        if place.special.is_some_and(|s| s.not_in_point) {
            self.pass(&live);
            self.hold_folder();
            self.plan.left_out.push(LeftOut { path: place.path, why: WhyLeftOut::NotInPoint });
            return Ok(());
        }
        let held = self.hold(&place, live.is_dir());
        if held == Hold::Filtered || (held == Hold::Below && matches!(live, Live::Unknown { .. })) {
            self.hold_folder();
            self.keep(place, &live, false);
            return Ok(());
        }
        if !live.is_dir() || matches!(live, Live::Unknown { .. }) {
            self.add_extent(live.extent());
        }
        self.remove(place, live)
    }

    fn add_extent(&mut self, extent: Option<Extent>) {
        if let (Some(frame), Some(extent)) = (self.frames.last_mut(), extent) {
            frame.extent.add(extent);
        }
    }

    /// Something in the folder stays, and so does the folder.
    fn hold_folder(&mut self) {
        if let Some(Frame { role: Role::Going { held, .. }, .. }) = self.frames.last_mut() {
            *held = true;
        }
    }

    /// An entry of a folder that comes.
    fn coming(&mut self, place: Place<'a>, target: Node) -> Result<()> {
        let is_dir = target.kind == Some(Kind::Dir);
        if self.hold(&place, is_dir) == Hold::Filtered {
            place.wanted.settle();
            self.plan.omit.push(place.path.clone());
            self.kept(place.path, false, true);
            return Ok(());
        }
        if is_dir {
            return self.enter_coming(place, target, Live::Absent, true);
        }
        // Whatever cannot be made is told by the restore that stages it.
        if place.wanted.is_whole() && !matches!(target.kind, None | Some(Kind::Socket)) {
            self.links.staged(&target);
            self.add_extent(Extent::of(&target));
            self.touch();
        }
        Ok(())
    }

    fn touch(&mut self) {
        if let Some(frame) = self.frames.last_mut() {
            frame.touched = true;
        }
    }
}

/// Whether a path that stays as it is does not differ anyway.
fn is_same(live: &Live, target: Option<&Node>) -> bool {
    let (Live::Known { node, unsure: false }, Some(target)) = (live, target) else { return false };
    same_content(node, target) && node.subtree == target.subtree && same_metadata(node, target)
}
