//! Names of users and groups, and back.
//!
//! Invariant: a number or name is asked of the system (which may ask a directory service) once per [`Owners`];
//! that there is none is remembered too. Lock: a read lock for what is known, a write lock only to add; a panic
//! of another thread does not poison the cache, every entry is whole.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock};

use nix::unistd::{Gid, Group, Uid, User};

/// A cache between numbers and names of users and groups, for any number of threads.
#[derive(Debug, Default)]
pub struct Owners {
    users: Cache<u32, Arc<str>>,
    groups: Cache<u32, Arc<str>>,
    uids: Cache<String, u32>,
    gids: Cache<String, u32>,
}

impl Owners {
    /// An empty cache.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The name of a user; none when there is none, or when the system cannot tell.
    #[must_use]
    pub fn user(&self, uid: u32) -> Option<Arc<str>> {
        self.users.get(&uid, || User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|u| u.name.into()))
    }

    /// The name of a group; none when there is none, or when the system cannot tell.
    #[must_use]
    pub fn group(&self, gid: u32) -> Option<Arc<str>> {
        self.groups.get(&gid, || Group::from_gid(Gid::from_raw(gid)).ok().flatten().map(|g| g.name.into()))
    }

    /// The number of a user on this machine.
    #[must_use]
    pub fn uid(&self, name: &str) -> Option<u32> {
        self.uids.get(name, || User::from_name(name).ok().flatten().map(|u| u.uid.as_raw()))
    }

    /// The number of a group on this machine.
    #[must_use]
    pub fn gid(&self, name: &str) -> Option<u32> {
        self.gids.get(name, || Group::from_name(name).ok().flatten().map(|g| g.gid.as_raw()))
    }
}

#[derive(Debug)]
struct Cache<K, V>(RwLock<HashMap<K, Option<V>>>);

impl<K, V> Default for Cache<K, V> {
    fn default() -> Self {
        Cache(RwLock::default())
    }
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    fn get<Q>(&self, key: &Q, ask: impl FnOnce() -> Option<V>) -> Option<V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
    {
        if let Some(known) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(key) {
            return known.clone();
        }
        // Asked without the lock: two threads may ask the same, none waits for a slow directory service.
        let answer = ask();
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned(), answer.clone());
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_of_the_system_and_unknown_ones() {
        let owners = Owners::new();
        for _ in 0..2 {
            assert_eq!(owners.user(0).as_deref(), Some("root"));
            assert_eq!(owners.group(0).as_deref(), Some("root"));
            assert_eq!((owners.uid("root"), owners.gid("root")), (Some(0), Some(0)));
            assert_eq!(owners.user(3_999_999_999), None);
            assert_eq!((owners.uid("no such user"), owners.gid("nul\0")), (None, None));
        }
    }
}
