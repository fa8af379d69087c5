//! A filter that is asked about paths, one after the other, in the order of a walk.
//!
//! Invariant: says the same as the walk of the vault does: what a rule names is as if it were not there. Lock: one, over
//! where the last folder stands, held for one answer.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use backstay_model::Problem;
use backstay_tree::filter::{At, Filter, Hits, Step};
use backstay_tree::path::unescape;
use backstay_vault::backup::Filtered;

/// See the module.
pub(super) struct Asked {
    filter: Filter,
    hits: Hits,
    /// The folder that was asked about last, and where it stands; none where it is left out itself.
    last: Mutex<(PathBuf, Option<At>)>,
}

impl Asked {
    pub(super) fn new(filter: Filter) -> Self {
        let home = (PathBuf::new(), Some(filter.home()));
        Asked { hits: Hits::new(&filter), filter, last: Mutex::new(home) }
    }

    /// Whether a path below the home is left out.
    pub(super) fn leaves_out(&self, path: &Path) -> bool {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return false };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0 != folder {
            *last = (folder.to_owned(), self.at(folder));
        }
        match &last.1 {
            Some(at) => matches!(self.filter.enter(at, name, Some(&self.hits)), Step::LeftOut(_)),
            None => true,
        }
    }

    fn at(&self, folder: &Path) -> Option<At> {
        let mut at = self.filter.home();
        for name in folder {
            at = match self.filter.enter(&at, name, None) {
                Step::Inside(below) => below,
                Step::LeftOut(_) => return None,
            };
        }
        Some(at)
    }

    /// Takes away what was told about paths that are left out.
    pub(super) fn thin(&self, problems: &mut Vec<Problem>) {
        let named = |p: &Problem| unescape(&p.path).and_then(|path| self.filter.matches(Path::new(&path)));
        problems.retain(|p| p.path.is_empty() || named(p).is_none());
    }

    pub(super) fn result(&self) -> Filtered {
        Filtered { left_out: self.hits.left_out(), unmatched: self.hits.unmatched() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_the_rules_say_in_any_order() {
        let filter = Filter::from_lines(&["/logs", "**/node_modules", "a/b/*.tmp", "gone"]).unwrap();
        let asked = Asked::new(filter.clone());
        for path in [
            "index",
            "logs",
            "a",
            "a/b",
            "a/b/x.tmp",
            "a/b/x",
            "a/node_modules",
            "b/c/node_modules",
            "a/b/y.tmp",
            "logs/1",
        ] {
            assert_eq!(
                asked.leaves_out(Path::new(path)),
                filter.matches(Path::new(path)).is_some(),
                "{path}"
            );
        }
        assert_eq!(asked.result(), Filtered { left_out: 5, unmatched: vec![3] });
        assert!(!asked.leaves_out(Path::new("")));
    }
}
