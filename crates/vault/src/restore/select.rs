//! Which paths of a tree are wanted.
//!
//! Invariant: nothing is taken that is neither a wanted path, below one, nor a folder on the way to one. Only
//! looked at while planning, by one thread.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use backstay_model::{Code, Error, Result};
use backstay_tree::path::escape;

/// A tree of wanted names.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    below: HashMap<OsString, Selection>,
    /// This entry and all below it are wanted.
    whole: bool,
    seen: AtomicBool,
}

/// What to do with an entry.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted<'s> {
    /// It and all below it.
    All,
    /// Only what the selection says of its entries.
    Some(&'s Selection),
}

impl Selection {
    /// Of paths relative to the root of the tree. `InvalidValue` for other paths.
    pub(crate) fn new(paths: &[PathBuf]) -> Result<Self> {
        let mut root = Selection::default();
        for path in paths {
            let mut at = &mut root;
            for part in path.components() {
                match part {
                    Component::Normal(name) => at = at.below.entry(name.to_owned()).or_default(),
                    Component::CurDir => {}
                    Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                        let path = escape(path.as_os_str());
                        let message = format!("`{path}` is not a path within the point");
                        return Err(Error::new(Code::InvalidValue, message));
                    }
                }
            }
            at.whole = true;
        }
        root.seen.store(true, Ordering::Relaxed);
        Ok(root)
    }

    /// The whole as it applies to the root.
    pub(crate) fn root(&self) -> Wanted<'_> {
        if self.whole { Wanted::All } else { Wanted::Some(self) }
    }

    /// The first wanted path that was not met.
    pub(crate) fn unmet(&self) -> Option<PathBuf> {
        let mut path = PathBuf::new();
        self.find_unmet(&mut path).then_some(path)
    }

    /// Takes everything below as met: it is told in another way why it is not restored.
    pub(crate) fn settle(&self) {
        self.seen.store(true, Ordering::Relaxed);
        self.below.values().for_each(Selection::settle);
    }

    fn find_unmet(&self, path: &mut PathBuf) -> bool {
        if !self.seen.load(Ordering::Relaxed) {
            return true;
        }
        // Below a wanted folder everything is taken and nothing looked up.
        if self.whole {
            return false;
        }
        for (name, below) in &self.below {
            path.push(name);
            if below.find_unmet(path) {
                return true;
            }
            path.pop();
        }
        false
    }
}

impl<'s> Wanted<'s> {
    /// What to do with the entry of that name; `None`: leave it out.
    pub(crate) fn entry(self, name: &OsStr) -> Option<Wanted<'s>> {
        match self {
            Wanted::All => Some(Wanted::All),
            Wanted::Some(selection) => {
                let found = selection.below.get(name)?;
                found.seen.store(true, Ordering::Relaxed);
                Some(found.root())
            }
        }
    }

    /// Takes everything that is wanted of it as met.
    pub(crate) fn settle(self) {
        if let Wanted::Some(selection) = self {
            selection.settle();
        }
    }

    /// Whether the entry itself is wanted, not only something below it.
    pub(crate) fn is_whole(self) -> bool {
        matches!(self, Wanted::All)
    }
}

/// What of a folder is restored: what is wanted, without what is omitted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scope<'s> {
    wanted: Wanted<'s>,
    omit: Option<&'s Selection>,
    /// On the way to something that will be taken out.
    taken: Option<&'s Selection>,
}

impl<'s> Scope<'s> {
    pub(super) fn new(wanted: &'s Selection, omit: &'s Selection, taken: &'s Selection) -> Self {
        let some = |selection: &'s Selection| (!selection.below.is_empty()).then_some(selection);
        Scope { wanted: wanted.root(), omit: some(omit), taken: some(taken) }
    }

    /// What to do with the entry of that name; `None`: leave it out.
    pub(super) fn entry(self, name: &OsStr) -> Option<Scope<'s>> {
        let wanted = self.wanted.entry(name)?;
        let omit = self.omit.and_then(|omit| omit.below.get(name));
        match omit {
            Some(omit) if omit.whole => {
                wanted.settle();
                None
            }
            omit => {
                let taken = self.taken.and_then(|taken| taken.below.get(name)).filter(|taken| !taken.whole);
                Some(Scope { wanted, omit, taken })
            }
        }
    }

    /// Whether it is a folder only on the way to what is taken out.
    pub(super) fn is_way(self) -> bool {
        self.taken.is_some()
    }

    /// Whether the entry itself is wanted, not only something below it.
    pub(super) fn is_whole(self) -> bool {
        self.wanted.is_whole()
    }
}

/// The error for a path that is asked for and not there.
pub(crate) fn not_there(path: &Path) -> Error {
    Error::new(Code::PathNotFound, format!("There is no `{}` in the point", escape(path.as_os_str())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_is_wanted_and_the_way_there() {
        let selection = Selection::new(&["a/b".into(), "./c".into(), "a/b/deeper".into()]).unwrap();
        let a = selection.root().entry(OsStr::new("a")).unwrap();
        assert!(!a.is_whole());
        let b = a.entry(OsStr::new("b")).unwrap();
        assert!(b.is_whole() && b.entry(OsStr::new("anything")).unwrap().is_whole());
        assert!(a.entry(OsStr::new("x")).is_none() && selection.root().entry(OsStr::new("x")).is_none());
        assert_eq!(selection.unmet(), Some("c".into()));
        selection.root().entry(OsStr::new("c")).unwrap();
        assert_eq!(selection.unmet(), None);
    }

    #[test]
    fn what_is_omitted_is_left_out_with_all_below() {
        let wanted = Selection::new(&["a".into(), "b/c".into()]).unwrap();
        let omit = Selection::new(&["a/x/y".into(), "b/c".into()]).unwrap();
        let taken = Selection::new(&["a/x".into()]).unwrap();
        let root = Scope::new(&wanted, &omit, &taken);
        assert!(root.entry(OsStr::new("a")).unwrap().is_way());
        let x = root.entry(OsStr::new("a")).unwrap().entry(OsStr::new("x")).unwrap();
        assert!(
            !x.is_way()
                && x.is_whole()
                && x.entry(OsStr::new("y")).is_none()
                && x.entry(OsStr::new("z")).is_some()
        );
        assert!(root.entry(OsStr::new("b")).unwrap().entry(OsStr::new("c")).is_none());
        assert_eq!(wanted.unmet(), None);
    }

    #[test]
    fn an_empty_path_is_everything_and_no_path_nothing() {
        assert!(Selection::new(&["".into()]).unwrap().root().is_whole());
        assert!(Selection::new(&[]).unwrap().root().entry(OsStr::new("a")).is_none());
        for bad in ["/etc", "..", "a/../b"] {
            assert_eq!(Selection::new(&[bad.into()]).unwrap_err().code(), Code::InvalidValue);
        }
    }
}
