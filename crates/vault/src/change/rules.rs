//! What a restore must not touch, and what is not known of the two sides.
//!
//! Invariant: a folder is judged [`Hold::Below`] whenever something below it might have to stay, so nothing that stays
//! is moved with a folder. Judging reads nothing but the rules.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd as _;
use std::path::{Component, Path, PathBuf};

use backstay_model::{Problem, ProblemKind};
use backstay_tree::beneath::Root;
use backstay_tree::fs::Kind;
use backstay_tree::path::unescape;

/// Whether a path is kept as it is, whatever both sides say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It is not, and neither is anything below it.
    No,
    /// It is, with all below it.
    Yes,
    /// It is not; something below it may be.
    MaybeBelow,
}

/// A live path of which the live tree tells nothing or not all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// Where.
    pub path: PathBuf,
    /// Whether it is a folder.
    pub is_dir: bool,
}

/// The rules of a restore in place. All paths are relative to the home.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    /// The filter: of the target as it is now, and of the point. The second word says whether the path is a folder.
    pub keep: &'a dyn Fn(&Path, bool) -> Keep,
    /// Paths that exist and are left alone with all below: mounts, homes of other apps, what is Backstay's own. A point
    /// may or may not have something there.
    pub protected: &'a [PathBuf],
    /// Live content that could not be read: it is taken to differ. See [`unknown`].
    pub unknown: &'a [Unknown],
    /// Paths of which the point does not know what was there: what is live there stays. See [`not_in_point`].
    pub not_in_point: &'a [PathBuf],
    /// Only these paths and what is below them; folders on the way are made where they are missing.
    pub select: Option<&'a [PathBuf]>,
}

impl Rules<'static> {
    /// Everything becomes as in the point.
    #[must_use]
    pub fn none() -> Self {
        Rules { keep: &|_, _| Keep::No, protected: &[], unknown: &[], not_in_point: &[], select: None }
    }
}

/// The live paths of which the live tree may tell too little, by the problems of the walk that made it. `home` is
/// asked what they are; what is gone meanwhile is passed over.
#[must_use]
pub fn unknown(home: &Root, problems: &[Problem]) -> Vec<Unknown> {
    let is_dir = |path: &Path| {
        let (parent, name) = (path.parent()?, path.file_name()?);
        let looked = home.open_dir(parent).map(|dir| home.fs().stat(dir.as_fd(), name));
        match looked {
            Ok(Ok(stat)) => Some(stat.kind == Kind::Dir),
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::NotFound => None,
            // Whatever it is: it is looked at again before it is touched.
            _ => Some(false),
        }
    };
    paths_of(problems, |kind| {
        matches!(
            kind,
            ProblemKind::Unreadable | ProblemKind::Changed | ProblemKind::Grew | ProblemKind::Metadata
        )
    })
    .filter_map(|path| Some(Unknown { is_dir: is_dir(&path)?, path }))
    .collect()
}

/// The paths of which a point does not know what was there, by the problems it was taken with.
#[must_use]
pub fn not_in_point(problems: &[Problem]) -> Vec<PathBuf> {
    let absent = |kind| matches!(kind, ProblemKind::Unreadable | ProblemKind::Mount | ProblemKind::Excluded);
    paths_of(problems, absent).collect()
}

fn paths_of(problems: &[Problem], which: impl Fn(ProblemKind) -> bool) -> impl Iterator<Item = PathBuf> {
    let listed = problems.iter().filter(move |problem| which(problem.kind) && !problem.path.is_empty());
    listed.filter_map(|problem| unescape(&problem.path).map(PathBuf::from))
}

/// What is special about a path and those below it.
#[derive(Debug, Default)]
pub(super) struct Special {
    below: HashMap<OsString, Special>,
    pub(super) protected: bool,
    pub(super) protected_below: bool,
    /// Whether the unknown thing is a folder.
    pub(super) unknown: Option<bool>,
    pub(super) not_in_point: bool,
    not_in_point_below: bool,
}

impl Special {
    pub(super) fn new(rules: &Rules<'_>) -> Self {
        let mut root = Special::default();
        for path in rules.protected {
            root.at(path, |on_the_way| on_the_way.protected_below = true).protected = true;
        }
        for path in rules.not_in_point {
            root.at(path, |on_the_way| on_the_way.not_in_point_below = true).not_in_point = true;
        }
        for Unknown { path, is_dir } in rules.unknown {
            root.at(path, |_| ()).unknown = Some(*is_dir);
        }
        root
    }

    fn at(&mut self, path: &Path, mut pass: impl FnMut(&mut Special)) -> &mut Special {
        let mut at = self;
        for part in path.components() {
            if let Component::Normal(name) = part {
                pass(at);
                at = at.below.entry(name.to_owned()).or_default();
            }
        }
        at
    }

    pub(super) fn entry(&self, name: &OsStr) -> Option<&Special> {
        if self.below.is_empty() { None } else { self.below.get(name) }
    }

    /// The names of entries that exist though nothing is known of them.
    pub(super) fn unknown_names(&self) -> impl Iterator<Item = &OsString> {
        self.below.iter().filter(|(_, special)| special.unknown.is_some()).map(|(name, _)| name)
    }

    /// Whether something that is not known of the live side lies below.
    pub(super) fn has_unknown_below(&self) -> bool {
        let mut pending: Vec<&Special> = self.below.values().collect();
        while let Some(special) = pending.pop() {
            if special.unknown.is_some() {
                return true;
            }
            pending.extend(special.below.values());
        }
        false
    }
}

/// What must stay of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// Nothing.
    Free,
    /// Perhaps something below it.
    Below,
    /// All of it, because of the filter.
    Filtered,
}

/// Judges a path that is not itself protected.
pub(super) fn hold(rules: &Rules<'_>, special: Option<&Special>, path: &Path, is_dir: bool) -> Hold {
    match (rules.keep)(path, is_dir) {
        Keep::Yes => Hold::Filtered,
        Keep::MaybeBelow if is_dir => Hold::Below,
        _ if is_dir && special.is_some_and(|s| s.protected_below || s.not_in_point_below) => Hold::Below,
        _ => Hold::Free,
    }
}
