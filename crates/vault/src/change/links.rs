//! Names of one file: which of them must be replaced so that the links become those of the point.
//!
//! Names that are one file in the point (a group) may stay only if all of them are the same in the live tree, are one
//! file there too, and none of the names that would stay is another file in the point. Otherwise all names of the
//! group are replaced by names of one new file. A group may have names in folders that are the same tree on both
//! sides and were not read; those folders are searched only where a name of the group differs and names are missing.
//!
//! Invariant: whether a group stays is decided for all its names at once. Memory: one record for each linked name in
//! folders that differ.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::rc::Rc;

use backstay_model::{Cancel, Code, Error, Result};
use backstay_tree::fs::Kind;

use super::rules::{Hold, Rules, Special, hold};
use super::{Extent, Seen};
use crate::id::Id;
use crate::node::Node;
use crate::reader::Reader;

/// Entries that are searched for further names.
const SEARCH_MAX: u64 = 100_000_000;

/// What tells one file from another within a tree.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    device_id: u64,
    inode: u64,
    kind: Kind,
    /// Names of one inode that differ in content are not taken for one file, as in a restore.
    content: Id,
    size: u64,
}

impl Key {
    /// None: it has only this name, or is something that cannot have others.
    fn of(node: &Node) -> Option<Self> {
        let kind = node.kind.filter(|kind| !matches!(kind, Kind::Dir | Kind::Socket) && node.links > 1)?;
        let content = crate::restore::content_id(node);
        Some(Key { device_id: node.device_id, inode: node.inode, kind, content, size: node.size })
    }
}

/// A name that is the same on both sides.
#[derive(Debug)]
pub(super) struct Name {
    pub(super) path: PathBuf,
    pub(super) seen: Seen,
    pub(super) extent: Extent,
    /// The live folder it lies in; none for the home where nothing is known of it.
    pub(super) folder: Option<Rc<Node>>,
    live: Option<Key>,
    target: Option<Key>,
}

/// Names of a file that were found, and how many it has.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    found: u64,
    links: u64,
}

/// A folder that is the same tree on both sides.
#[derive(Debug)]
pub(super) struct Skipped<'a> {
    pub(super) path: PathBuf,
    pub(super) folder: Rc<Node>,
    pub(super) special: Option<&'a Special>,
}

#[derive(Debug, Default)]
pub(super) struct Links {
    live: HashMap<Key, Count>,
    target: HashMap<Key, Count>,
    same: Vec<Name>,
    /// Groups of the point with a name that is replaced or added.
    broken: HashSet<Key>,
    /// Files that are not the same set of names on both sides.
    unclear: HashSet<Key>,
    staged: HashSet<Key>,
    /// Bytes of further names of files that are staged.
    pub(super) staged_twice: u64,
}

fn count(counts: &mut HashMap<Key, Count>, key: &Key, node: &Node) {
    let count = counts.entry(key.clone()).or_default();
    count.found += 1;
    count.links = count.links.max(node.links);
}

impl Links {
    /// A live name that goes, or that is no concern of the restore.
    pub(super) fn live(&mut self, node: &Node) {
        if let Some(key) = Key::of(node) {
            count(&mut self.live, &key, node);
        }
    }

    /// A name of the point that is staged.
    pub(super) fn staged(&mut self, node: &Node) {
        if let Some(key) = Key::of(node) {
            count(&mut self.target, &key, node);
            self.stage(&key);
            self.broken.insert(key.clone());
            self.unclear.insert(key);
        }
    }

    fn stage(&mut self, key: &Key) {
        if !self.staged.insert(key.clone()) && key.kind == Kind::File {
            self.staged_twice = self.staged_twice.saturating_add(key.size);
        }
    }

    /// A name that is the same on both sides. Whether it may stay is not known before the end.
    pub(super) fn same(&mut self, path: PathBuf, live: &Node, target: &Node, folder: Option<Rc<Node>>) {
        let (Some(seen), Some(extent)) = (Seen::of(live), Extent::of(live)) else { return };
        let (a, b) = (Key::of(live), Key::of(target));
        a.iter().for_each(|key| count(&mut self.live, key, live));
        b.iter().for_each(|key| count(&mut self.target, key, target));
        if a != b {
            self.unclear.extend(a.clone());
            self.unclear.extend(b.clone());
        }
        self.same.push(Name { path, seen, extent, folder, live: a, target: b });
    }

    /// The names that must be replaced though they are the same.
    pub(super) fn resolve(
        mut self,
        reader: &Reader,
        rules: &Rules<'_>,
        skipped: Vec<Skipped<'_>>,
        cancel: &Cancel,
    ) -> Result<(Vec<Name>, u64)> {
        let missing = |counts: &HashMap<Key, Count>, key: &Key| {
            counts.get(key).is_some_and(|count| count.found < count.links)
        };
        // A name that is replaced takes no others with it, so only live names that stay are looked for.
        let stays: HashSet<&Key> = self.same.iter().filter_map(|name| name.live.as_ref()).collect();
        let wanted: HashSet<Key> = self
            .unclear
            .iter()
            .filter(|key| missing(&self.target, key) || (stays.contains(key) && missing(&self.live, key)))
            .cloned()
            .collect();
        if !wanted.is_empty() {
            let mut search = Search { reader, rules, cancel, wanted, barren: HashSet::new(), entries: 0 };
            for folder in skipped {
                search.run(folder, &mut self.same)?;
            }
        }
        let replaced = self.replaced();
        for name in &replaced {
            if let Some(key) = &name.target {
                self.stage(key);
            }
        }
        Ok((replaced, self.staged_twice))
    }

    /// Takes the names of those groups that may not stay.
    fn replaced(&mut self) -> Vec<Name> {
        let is_clear = |name: &Name| {
            name.live == name.target && name.live.as_ref().is_none_or(|key| !self.unclear.contains(key))
        };
        let names: Vec<Name> =
            std::mem::take(&mut self.same).into_iter().filter(|name| !is_clear(name)).collect();
        let mut numbers: HashMap<Key, usize> = HashMap::new();
        let mut groups: Vec<Vec<Name>> = Vec::new();
        for name in names {
            let number = match &name.target {
                Some(key) => *numbers.entry(key.clone()).or_insert(groups.len()),
                None => groups.len(),
            };
            match groups.get_mut(number) {
                Some(group) => group.push(name),
                None => groups.push(vec![name]),
            }
        }
        // Of several groups that are one file now, the largest may keep it.
        let mut keeper: HashMap<Key, (usize, usize)> = HashMap::new();
        for (number, group) in groups.iter().enumerate() {
            if let Some(file) = self.one_file(group) {
                let best = keeper.entry(file.clone()).or_insert((0, number));
                if group.len() > best.0 {
                    *best = (group.len(), number);
                }
            }
        }
        let stays = |number: usize, group: &[Name]| match group {
            [only] if only.live.is_none() => {
                only.target.as_ref().is_none_or(|key| !self.broken.contains(key))
            }
            _ => self.one_file(group).is_some_and(|key| keeper.get(key).is_some_and(|k| k.1 == number)),
        };
        let replaced = groups.iter().enumerate().map(|(number, group)| !stays(number, group));
        let replaced: Vec<bool> = replaced.collect();
        groups
            .into_iter()
            .zip(replaced)
            .filter(|(_, replaced)| *replaced)
            .flat_map(|(group, _)| group)
            .collect()
    }

    /// The live file that all names of a group of the point are, if they are one and nothing of the group differs.
    fn one_file<'n>(&self, group: &'n [Name]) -> Option<&'n Key> {
        let first = group.first()?;
        let broken = first.target.as_ref().is_some_and(|key| self.broken.contains(key));
        let file = first.live.as_ref()?;
        (!broken && group.iter().all(|name| name.live.as_ref() == Some(file))).then_some(file)
    }
}

/// Looks for names of files in folders that are the same on both sides.
struct Search<'s> {
    reader: &'s Reader,
    rules: &'s Rules<'s>,
    cancel: &'s Cancel,
    wanted: HashSet<Key>,
    /// Trees without any such name in or below them.
    barren: HashSet<Id>,
    entries: u64,
}

struct Level<'a> {
    path: PathBuf,
    folder: Rc<Node>,
    tree: Id,
    special: Option<&'a Special>,
    nodes: std::vec::IntoIter<Node>,
    barren: bool,
}

impl Search<'_> {
    fn run<'a>(&mut self, start: Skipped<'a>, found: &mut Vec<Name>) -> Result<()> {
        let mut levels: Vec<Level<'a>> = Vec::new();
        levels.extend(self.level(start.path, start.folder, start.special)?);
        while let Some(level) = levels.last_mut() {
            self.cancel.check()?;
            let Some(node) = level.nodes.next() else {
                let done = levels.pop();
                if let Some(level) = done {
                    if level.barren {
                        self.barren.insert(level.tree);
                    } else if let Some(above) = levels.last_mut() {
                        above.barren = false;
                    }
                }
                continue;
            };
            self.entries += 1;
            if self.entries > SEARCH_MAX {
                let message = format!("More than {SEARCH_MAX} entries are to be searched for links");
                return Err(Error::new(Code::LimitExceeded, message));
            }
            let Some(name) = node.safe_name() else { continue };
            let path = level.path.join(name);
            let special = level.special.and_then(|special| special.entry(name));
            let is_dir = node.kind == Some(Kind::Dir);
            let key = Key::of(&node).filter(|key| self.wanted.contains(key));
            if !is_dir && key.is_none() {
                continue;
            }
            let left = special.is_some_and(|special| special.protected || special.not_in_point);
            if left || hold(self.rules, special, &path, is_dir) == Hold::Filtered {
                // Judged by its path: elsewhere the same tree may not be kept.
                level.barren = false;
                continue;
            }
            if is_dir {
                let next = self.level(path, Rc::new(node), special)?;
                levels.extend(next);
            } else if let (Some(seen), Some(extent)) = (Seen::of(&node), Extent::of(&node)) {
                level.barren = false;
                let folder = Some(Rc::clone(&level.folder));
                found.push(Name { path, seen, extent, folder, live: key.clone(), target: key });
            }
        }
        Ok(())
    }

    fn level<'a>(
        &self,
        path: PathBuf,
        folder: Rc<Node>,
        special: Option<&'a Special>,
    ) -> Result<Option<Level<'a>>> {
        let Some(tree) = folder.subtree.filter(|tree| !self.barren.contains(tree)) else { return Ok(None) };
        let nodes = match self.reader.tree(&tree) {
            Ok(nodes) => nodes,
            Err(e) if matches!(e.code(), Code::StorageUnavailable | Code::Cancelled) => return Err(e),
            // What is in it is the same on both sides and stays; a link from there is not known.
            Err(_) => return Ok(None),
        };
        Ok(Some(Level { path, folder, tree, special, nodes: nodes.into_iter(), barren: true }))
    }
}
