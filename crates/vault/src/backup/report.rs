//! What a pass over a tree tells beside the tree: what was counted, what a person should know.
//!
//! Invariant: of a second pass, both are about the tree in the end, compared with the last backup and not with the first
//! pass.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use backstay_model::{Counts, Problem};

use super::past::Extents;
use super::{Filtered, TreeSummary};
use crate::id::Id;

/// A sparse file and its ranges `[start, end)` of data; all else in it is holes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SparseFile {
    /// Its path below the tree, escaped as in [`backstay_tree::path::escape`].
    pub path: String,
    /// Ranges of data.
    pub data: Extents,
}

/// Files and folders of a tree, counted by what became of them.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub new: AtomicU64,
    pub changed: AtomicU64,
    pub unmodified: AtomicU64,
    pub dirs_new: AtomicU64,
    pub dirs_changed: AtomicU64,
    pub dirs_unmodified: AtomicU64,
    pub files: AtomicU64,
    pub bytes: AtomicU64,
}

impl Tally {
    fn all(&mut self) -> [&mut u64; 8] {
        let Tally { new, changed, unmodified, dirs_new, dirs_changed, dirs_unmodified, files, bytes } = self;
        [new, changed, unmodified, dirs_new, dirs_changed, dirs_unmodified, files, bytes]
            .map(AtomicU64::get_mut)
    }

    fn copy(&self) -> Tally {
        let copy = |n: &AtomicU64| AtomicU64::new(n.load(Ordering::Relaxed));
        Tally {
            new: copy(&self.new),
            changed: copy(&self.changed),
            unmodified: copy(&self.unmodified),
            dirs_new: copy(&self.dirs_new),
            dirs_changed: copy(&self.dirs_changed),
            dirs_unmodified: copy(&self.dirs_unmodified),
            files: copy(&self.files),
            bytes: copy(&self.bytes),
        }
    }

    /// Counts another tree too.
    pub fn add(&mut self, other: &Tally) {
        self.all().into_iter().zip(other.copy().all()).for_each(|(n, more)| *n += *more);
    }

    /// Does not count another tree any more.
    pub fn take_off(&mut self, other: &Tally) {
        self.all().into_iter().zip(other.copy().all()).for_each(|(n, less)| *n = n.saturating_sub(*less));
    }

    /// Of a second pass, which compared with the first one: what became of files and folders since the last backup.
    pub fn follow(&mut self, first: &Tally) {
        let mut first = first.copy();
        let [new, changed, unmodified, dirs_new, dirs_changed, dirs_unmodified, files, _] = self.all();
        let [first_new, first_changed, _, first_dirs_new, first_dirs_changed, ..] = first.all();
        let dirs = *dirs_new + *dirs_changed + *dirs_unmodified;
        let kinds = [
            (new, changed, unmodified, *first_new, *first_changed, *files),
            (dirs_new, dirs_changed, dirs_unmodified, *first_dirs_new, *first_dirs_changed, dirs),
        ];
        for (new, changed, unmodified, first_new, first_changed, all) in kinds {
            *new = (*new + first_new).min(all);
            *changed = (*changed + first_changed).min(all - *new);
            *unmodified = all - *new - *changed;
        }
    }
}

/// What a walk reports beside the tree.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub problems: Vec<Problem>,
    pub sparse: Vec<SparseFile>,
    pub sqlite: Vec<PathBuf>,
    pub vanished: Vec<PathBuf>,
    pub substituted: Vec<PathBuf>,
    pub siblings: Vec<PathBuf>,
}

impl Report {
    /// All of it in order, each once.
    pub fn summary(self, tree: Id, counts: Counts, filtered: Option<Filtered>) -> TreeSummary {
        let Report { mut problems, mut sparse, mut sqlite, mut vanished, substituted, mut siblings } = self;
        problems.sort_by(|a, b| a.path.cmp(&b.path));
        problems.dedup();
        sparse.sort_by(|a, b| a.path.cmp(&b.path));
        for paths in [&mut sqlite, &mut vanished, &mut siblings] {
            paths.sort_unstable();
            paths.dedup();
        }
        let (substituted, not_substituted) = (substituted.into_iter().collect(), Vec::new());
        TreeSummary {
            tree,
            counts,
            problems,
            filtered,
            sparse,
            sqlite,
            vanished,
            substituted,
            not_substituted,
            siblings,
        }
    }
}
