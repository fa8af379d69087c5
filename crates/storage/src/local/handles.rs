//! A few open files, by object name, the most recently used last.
//!
//! Bounded, so that a restore over thousands of packs never runs out of descriptors. The lock is held only to look
//! up or to insert; a handle that is dropped here stays open for those who still read from it.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// So many files stay open at most.
const LIMIT: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Handles(Mutex<Vec<(String, Arc<OwnedFd>)>>);

impl Handles {
    pub(super) fn get(&self, name: &str) -> Option<Arc<OwnedFd>> {
        self.with(|kept| {
            let at = kept.iter().position(|(n, _)| n == name)?;
            let entry = kept.remove(at);
            let handle = Arc::clone(&entry.1);
            kept.push(entry);
            Some(handle)
        })
    }

    pub(super) fn keep(&self, name: &str, handle: Arc<OwnedFd>) {
        let dropped = self.with(|kept| {
            let known = kept.iter().position(|(n, _)| n == name);
            let dropped = known.or((kept.len() >= LIMIT).then_some(0)).map(|at| kept.remove(at));
            kept.push((name.to_owned(), handle));
            dropped
        });
        drop(dropped); // closed outside the lock
    }

    pub(super) fn forget(&self, name: &str) {
        let dropped = self.with(|kept| Some(kept.remove(kept.iter().position(|(n, _)| n == name)?)));
        drop(dropped);
    }

    fn with<T>(&self, f: impl FnOnce(&mut Vec<(String, Arc<OwnedFd>)>) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_most_recently_used_and_no_more_than_the_limit() {
        let handles = Handles::default();
        let file = || Arc::new(OwnedFd::from(tempfile::tempfile().unwrap()));
        for i in 0..LIMIT {
            handles.keep(&i.to_string(), file());
        }
        assert!(handles.get("0").is_some());
        handles.keep("new", file());
        assert!(handles.get("0").is_some() && handles.get("1").is_none());
        handles.forget("0");
        assert!(handles.get("0").is_none());
        assert_eq!(handles.with(|kept| kept.len()), LIMIT - 1);
    }
}
