//! Two passes over the same tree, with the dumps of databases between them: files, databases, what changed in the files.
//!
//! Rules for the tree of the second pass: what is as the first pass saw it is taken from there and not read again; what
//! changed is taken as it is now; what is gone (or cannot be read any more) stays as the first pass read it, so that
//! nothing a database refers to is lost to the time a dump takes. Where an entry is now of another kind, the new one
//! counts. What a filter, a mount or a substitute leaves out now is not gone.
//!
//! Invariants: the second pass knows the first one by its blocks in the file index (or in memory), never by trees that are
//! in no pack yet. An entry that stayed is in the file index as it is in the tree: the next backup does not find it on the
//! disk and so leaves it out. A file with a substitute has no time of change, so its next look is a fresh one.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use backstay_model::{Code, Error, Phase, Problem, Progress, Result};
use backstay_tree::filter::Filter;
use backstay_tree::fs::{FileSystem, FileTime, Kind};
use backstay_tree::path::escape;
use backstay_tree::{Exclusions, Listing};

use super::folder::{Folder, Inner, Item};
use super::past::{Block, Origin, Past, PastEntry};
use super::read::is_whole;
use super::report::{SparseFile, Tally};
use super::walk::Walk;
use super::{PassSetup, SnapshotWriter, Still, TreeOptions, TreeSummary, limit_of, started};
use crate::id::Id;

/// What the header of every SQLite database begins with.
pub(crate) const SQLITE: &[u8; 16] = b"SQLite format 3\0";
/// Beside a SQLite database, files of these names belong to it.
const SIBLINGS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// A file whose bytes take the place of another file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Substitute {
    /// The file with the bytes. It is read in the second pass.
    pub content: PathBuf,
    /// Whether `-wal`, `-shm` and `-journal` beside the file are left out: the bytes stand for all of them.
    pub leave_out_siblings: bool,
}

/// Files that are not read as they are: deferred (none) or with a substitute. By folder and name.
#[derive(Debug, Default)]
pub(crate) struct Places(HashMap<PathBuf, BTreeMap<OsString, Option<Arc<Substitute>>>>);

impl Places {
    pub fn new<'p>(files: impl IntoIterator<Item = (&'p Path, Option<Arc<Substitute>>)>) -> Self {
        let mut places = Places::default();
        for (path, place) in files {
            if let (Some(folder), Some(name)) = (path.parent(), path.file_name()) {
                places.0.entry(folder.to_owned()).or_default().insert(name.to_owned(), place);
            }
        }
        places
    }

    fn of(&self, folder: &Folder) -> Option<&BTreeMap<OsString, Option<Arc<Substitute>>>> {
        if self.0.is_empty() { None } else { self.0.get(&folder.names().into_iter().collect::<PathBuf>()) }
    }
}

/// What a first pass leaves for a second one, beside its file index.
pub(crate) struct FirstPass {
    pub name: String,
    pub home: PathBuf,
    pub still: Option<Still>,
    pub exclusions: Exclusions,
    pub filter: Option<Filter>,
    /// The rules that named nothing.
    pub unmatched: Vec<usize>,
    pub held: Held,
    pub tally: Tally,
}

/// What a first pass told, as the second one asks for it.
#[derive(Debug)]
pub(crate) struct Held {
    problems: BTreeMap<String, Vec<Problem>>,
    sqlite: HashSet<PathBuf>,
    /// What changed at or after this time was counted by the first pass.
    limit: FileTime,
}

impl Held {
    pub fn new(summary: &TreeSummary, limit: FileTime) -> Self {
        let mut problems: BTreeMap<String, Vec<Problem>> = BTreeMap::new();
        for problem in &summary.problems {
            problems.entry(problem.path.clone()).or_default().push(problem.clone());
        }
        Held { problems, sqlite: summary.sqlite.iter().cloned().collect(), limit }
    }

    /// Whether the first pass told that already.
    pub fn has_told(&self, problem: &Problem) -> bool {
        self.problems.get(&problem.path).is_some_and(|p| p.iter().any(|p| p.kind == problem.kind))
    }

    /// Whether the first pass has counted a file that it saw like this as new or changed.
    pub fn has_counted(&self, known: &PastEntry) -> bool {
        known.ctime >= self.limit
    }

    /// Problems of a path and of all below it.
    fn problems_below(&self, path: &str) -> impl Iterator<Item = &Problem> {
        let below = format!("{path}/");
        let inside = self.problems.range(below.clone()..).take_while(move |(p, _)| p.starts_with(&below));
        self.problems.get(path).into_iter().chain(inside.map(|(_, problems)| problems)).flatten()
    }
}

impl SnapshotWriter {
    /// Saves a folder and all in it as `name` in the snapshot's root, as the first of two passes. Files at the paths in
    /// `defer` (relative to the home; SQLite databases, say) and what belongs to them are neither read nor in the tree.
    pub fn save_tree_first(
        &mut self,
        name: &str,
        fs: &Arc<dyn FileSystem>,
        home: &Path,
        options: TreeOptions,
        defer: &BTreeSet<PathBuf>,
        progress: &dyn Progress,
    ) -> Result<TreeSummary> {
        let places = Places::new(defer.iter().map(|path| (path.as_path(), None)));
        self.save_tree_with(name, fs, home, options, Some(places), progress)
    }

    /// Saves the same folder again; the result takes the place of the first pass's. What is as the first pass saw it is
    /// not read, what is gone since stays in the tree and is in [`TreeSummary::vanished`]. Files at the paths in
    /// `substitutes` get their metadata from where they are and their bytes from elsewhere; where no regular file is found
    /// at one of the paths, it is in [`TreeSummary::not_substituted`]. The first pass's exclusions and filter hold.
    pub fn save_tree_again(
        &mut self,
        name: &str,
        fs: &Arc<dyn FileSystem>,
        substitutes: &BTreeMap<PathBuf, Substitute>,
        progress: &dyn Progress,
    ) -> Result<TreeSummary> {
        progress.phase(Phase::Reading);
        let no_first = || Error::new(Code::Internal, format!("There was no first pass over `{name}`"));
        let first = self.first.iter().position(|f| f.name == name).ok_or_else(no_first)?;
        let index = self.indexes.iter().position(|i| i.name == name).ok_or_else(no_first)?;
        let (first, pending) = (self.first.swap_remove(first), self.indexes.swap_remove(index));
        let node = self.nodes.iter().position(|n| n.name == name).ok_or_else(no_first)?;
        let top = PastEntry::from_node(self.nodes.swap_remove(node)).ok_or_else(no_first)?;
        let limit = limit_of(pending.started);
        let index = pending.index.again(pending.tree, pending.block, pending.started);
        let index = index.ok_or_else(|| Error::new(Code::System, "Cannot read what the first pass wrote"))?;
        self.tally.take_off(&first.tally);
        let whole = |s: &Substitute| Some(Arc::new(s.clone()));
        let setup = PassSetup {
            name,
            home: &first.home,
            still: first.still.clone(),
            exclusions: first.exclusions.clone(),
            filter: first.filter.clone(),
            index: Some(index),
            root_past: Some(PastEntry { origin: Some(Origin::Block(pending.block)), ..top }),
            limit,
            started: started(first.still.as_ref()),
            places: Places::new(substitutes.iter().map(|(path, s)| (path.as_path(), whole(s)))),
            held: Some(first.held),
            first_tally: Some(first.tally),
            twice: true,
        };
        let mut summary = self.pass(setup, fs, progress)?;
        if let Some(filtered) = &mut summary.filtered {
            filtered.unmatched.retain(|rule| first.unmatched.contains(rule));
        }
        let done: HashSet<PathBuf> = std::mem::take(&mut summary.substituted);
        summary.not_substituted = substitutes.keys().filter(|p| !done.contains(*p)).cloned().collect();
        summary.substituted = done;
        Ok(summary)
    }
}

impl Walk<'_> {
    /// Takes out of what a folder holds what is not read as it is. Gives the substitutes of its files.
    pub fn set_aside(
        &self,
        folder: &Folder,
        listing: &mut Listing,
        inner: &mut Inner,
    ) -> HashMap<OsString, Arc<Substitute>> {
        let mut found = HashMap::new();
        let Some(places) = self.places.of(folder) else { return found };
        let mut out: HashSet<OsString> = HashSet::new();
        for (name, substitute) in places {
            if !listing.entries.iter().any(|e| e.name == *name && e.stat.kind == Kind::File) {
                continue;
            }
            match substitute {
                None => out.extend(siblings(name).chain([name.clone()])),
                Some(substitute) => {
                    if substitute.leave_out_siblings {
                        out.extend(siblings(name));
                    }
                    found.insert(name.clone(), Arc::clone(substitute));
                }
            }
        }
        inner.left_out.extend(out.iter().filter_map(|name| inner.past.position(name)));
        let mut left_out = Vec::new();
        listing.entries.retain(|e| {
            let goes = e.stat.kind == Kind::File && out.contains(&e.name);
            if goes {
                left_out.push(folder.path(&e.name));
            }
            !goes
        });
        if self.held.is_some() {
            self.report.lock().siblings.extend(left_out);
        }
        found
    }

    /// What the first pass told of a file that is as it was still holds.
    pub fn hold(&self, folder: &Folder, name: &OsStr) {
        let Some(held) = &self.held else { return };
        if held.problems.is_empty() && held.sqlite.is_empty() {
            return;
        }
        let path = folder.path(name);
        let problems = held.problems.get(&escape(path.as_os_str()));
        let mut report = self.report.lock();
        report.problems.extend(problems.into_iter().flatten().cloned());
        if held.sqlite.contains(&path) {
            report.sqlite.push(path);
        }
    }

    /// Positions in the past of the entries that a second pass keeps, where `items` are what it found.
    pub fn kept(&self, items: &[Item], past: &Past, left_out: &[usize]) -> Vec<usize> {
        if self.held.is_none() {
            return Vec::new();
        }
        let mut taken = vec![false; past.entries.len()];
        for n in items.iter().filter_map(|i| i.past).chain(left_out.iter().copied()) {
            if let Some(taken) = taken.get_mut(n) {
                *taken = true;
            }
        }
        taken.iter().enumerate().filter(|(_, taken)| !**taken).map(|(n, _)| n).collect()
    }

    /// Accounts for an entry that is kept, with all below it.
    pub fn keep(&self, folder: &Folder, entry: &PastEntry) {
        let Some(held) = &self.held else { return };
        let path = folder.path(&entry.name);
        let shown = escape(path.as_os_str());
        let sqlite = held.sqlite.iter().filter(|p| p.starts_with(&path)).cloned();
        {
            let mut report = self.report.lock();
            report.problems.extend(held.problems_below(&shown).cloned());
            report.sqlite.extend(sqlite);
            report.vanished.push(path.clone());
        }
        let mut open: Vec<(PathBuf, Block, Id)> = Vec::new();
        self.keep_one(path, entry, &mut open);
        while let Some((path, block, tree)) = open.pop() {
            let Some(index) = &self.index else { return };
            index.keep(block);
            self.tally.dirs_unmodified.fetch_add(1, Ordering::Relaxed);
            // What cannot be read back is in the tree all the same, only not in the counts.
            for entry in index.read(block, &tree).unwrap_or_default().entries {
                self.keep_one(path.join(&entry.name), &entry, &mut open);
            }
        }
    }

    fn keep_one(&self, path: PathBuf, entry: &PastEntry, open: &mut Vec<(PathBuf, Block, Id)>) {
        match (entry.kind, entry.origin, entry.tree) {
            (Kind::File, ..) => {
                self.tally.files.fetch_add(1, Ordering::Relaxed);
                self.tally.bytes.fetch_add(entry.size, Ordering::Relaxed);
                if let Some(data) = entry.extents.as_ref().filter(|e| !is_whole(Some(e), entry.size)) {
                    let path = escape(path.as_os_str());
                    self.report.lock().sparse.push(SparseFile { path, data: data.clone() });
                }
            }
            (Kind::Dir, Some(Origin::Block(block)), Some(tree)) => open.push((path, block, tree)),
            _ => {}
        }
    }
}

/// The names of files beside which there is a `-wal`.
pub(crate) fn with_wal(listing: &Listing) -> HashSet<OsString> {
    let base =
        |name: &OsString| name.as_bytes().strip_suffix(b"-wal").map(|b| OsStr::from_bytes(b).to_owned());
    listing.entries.iter().filter_map(|e| base(&e.name)).collect()
}

/// The names of the files that belong to a database.
fn siblings(name: &OsStr) -> impl Iterator<Item = OsString> {
    SIBLINGS.iter().map(move |end| {
        let mut sibling = name.to_owned();
        sibling.push(end);
        sibling
    })
}
