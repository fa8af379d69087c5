//! Locks: restic's lock objects, so that restic, rustic and Backstay respect each other.
//!
//! Invariants:
//! * A writer holds a shared lock, what removes data holds an exclusive one; a shared lock excludes exclusive
//!   ones, an exclusive lock excludes all.
//! * A lock is written first and looked at afterwards: of two that exclude each other at least one sees the other
//!   and withdraws (listings are consistent in all our storages).
//! * A lock is refreshed every five minutes by writing a new object before deleting the old one. It holds after
//!   a crash until somebody finds that its process is gone: at once on the same machine
//!   ([`Process::is_gone`]), by [`Vault::unlock`] for other machines once it is 30 minutes old.
//! * Of this process's own locks only those it knows to hold count: one that could not be deleted when it was given
//!   back (the storage was away) is removed by the next that looks, however long the process lives.
//! * To see whether a lock's process lives, restic sends it SIGHUP, which would end it: a process that holds a lock
//!   survives that signal.
//! * Whoever commits asks [`Lock::check`] first: a lock that was taken away ends the work before it is visible.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use backstay_model::{Cancel, Code, Error, Result};
use backstay_storage::Put;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::id::Id;
use crate::process::Process;
use crate::vault::{Folder, Vault};

/// How often a held lock is written anew.
const REFRESH: Duration = Duration::from_secs(5 * 60);
/// From what age a lock counts as abandoned where its process cannot be looked at.
const STALE_AFTER_SECS: i64 = 30 * 60;

/// What a lock excludes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strength {
    /// Others may read and add at the same time.
    Shared,
    /// Nobody else may do anything but read.
    Exclusive,
}

/// The JSON of a lock object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockFile {
    /// When it was last refreshed, by its holder's clock.
    pub time: Timestamp,
    /// Whether it excludes all others.
    pub exclusive: bool,
    /// The user that holds it.
    #[serde(default)]
    pub username: String,
    /// That user's number.
    #[serde(default)]
    pub uid: u32,
    /// That user's group.
    #[serde(default)]
    pub gid: u32,
    /// The process that holds it.
    #[serde(flatten)]
    pub process: Process,
}

impl LockFile {
    /// Who holds it, in words.
    #[must_use]
    pub fn holder(&self) -> String {
        let kind = if self.exclusive { "exclusive" } else { "shared" };
        format!("{kind}, process {} on {}, refreshed {}", self.process.pid, self.process.hostname, self.time)
    }

    /// Whether it is so old that its holder has stopped refreshing it.
    #[must_use]
    pub fn is_stale(&self, now: Timestamp) -> bool {
        now.as_second().saturating_sub(self.time.as_second()) > STALE_AFTER_SECS
    }
}

/// The locks that this process holds or is about to write.
static OWN: Mutex<BTreeSet<Id>> = Mutex::new(BTreeSet::new());

/// Makes SIGHUP harmless, once for the process. Who else listens to it still gets it.
fn survive_hangups() -> Result<()> {
    static DONE: Once = Once::new();
    let mut result = Ok(());
    DONE.call_once(|| {
        let seen = Arc::new(AtomicBool::new(false));
        result = signal_hook::flag::register(signal_hook::consts::SIGHUP, seen).map(|_registered| ());
    });
    result.map_err(|e| Error::new(Code::System, "Cannot listen to signals").because(e))
}

struct Held {
    vault: Vault,
    strength: Strength,
    id: Mutex<Option<Id>>,
}

/// A held lock; released when dropped.
pub struct Lock {
    held: Arc<Held>,
    stop: Option<Sender<()>>,
    refresher: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Lock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lock").field("strength", &self.held.strength).finish_non_exhaustive()
    }
}

impl Held {
    fn write(&self) -> Result<Id> {
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let file = LockFile {
            time: Timestamp::now(),
            exclusive: self.strength == Strength::Exclusive,
            username: crate::vault::username(),
            uid,
            gid,
            process: Process::current(),
        };
        let (id, sealed) = self.vault.seal_object(&crate::vault::to_json(&file)?)?;
        OWN.lock().insert(id);
        let put = self.vault.storage().put(&Folder::Locks.object(&id), &sealed, Put::IfAbsent);
        if put.is_err() {
            OWN.lock().remove(&id);
        }
        put.map(|()| id)
    }

    /// Deletes a lock; whether that works or not, it is not ours any more.
    fn withdraw(&self, id: Id) -> Result<()> {
        let removed = self.vault.remove_if_there(Folder::Locks, &id);
        OWN.lock().remove(&id);
        removed
    }

    fn refresh(&self) -> Result<()> {
        let mut id = self.id.lock();
        let Some(old) = *id else { return Ok(()) };
        self.present(old)?;
        *id = Some(self.write()?);
        self.withdraw(old)
    }

    fn present(&self, id: Id) -> Result<()> {
        self.vault.object_size(Folder::Locks, &id).map(|_size| ()).map_err(|e| match e.code() {
            Code::ObjectNotFound => {
                Error::new(Code::LeaseLost, "The lock on the vault was taken away while working")
            }
            _ => e,
        })
    }
}

impl Lock {
    /// What it excludes.
    #[must_use]
    pub fn strength(&self) -> Strength {
        self.held.strength
    }

    /// `LeaseLost` if the lock is no longer there (somebody removed it as abandoned).
    pub fn check(&self) -> Result<()> {
        match *self.held.id.lock() {
            Some(id) => self.held.present(id),
            None => Err(Error::new(Code::LeaseLost, "The lock on the vault is gone")),
        }
    }

    /// Gives the lock back and says whether that worked. Dropping it does the same and cannot say.
    pub fn release(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        drop(self.stop.take());
        if let Some(thread) = self.refresher.take() {
            thread.join().map_err(|_panic| Error::new(Code::Internal, "The lock's thread failed"))?;
        }
        match self.held.id.lock().take() {
            Some(id) => self.held.withdraw(id),
            None => Ok(()),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A lock that cannot be removed now is removed by whoever looks next: see the top of this file.
        self.end().unwrap_or_default();
    }
}

impl Vault {
    /// Takes a lock, waiting up to `wait` for others to finish. Locks of processes of this machine that are gone are
    /// removed on the way. `VaultLocked` names the holder.
    pub fn lock(&self, strength: Strength, wait: Duration, cancel: &Cancel) -> Result<Lock> {
        self.lock_refreshed(strength, wait, cancel, REFRESH)
    }

    fn lock_refreshed(
        &self,
        strength: Strength,
        wait: Duration,
        cancel: &Cancel,
        every: Duration,
    ) -> Result<Lock> {
        survive_hangups()?;
        let held = Arc::new(Held { vault: self.clone(), strength, id: Mutex::new(None) });
        let deadline = Instant::now() + wait;
        let mut pause = Duration::from_millis(50);
        loop {
            cancel.check()?;
            let conflict = match self.conflict(strength, None)? {
                Some(conflict) => conflict,
                None => {
                    let id = held.write()?;
                    *held.id.lock() = Some(id);
                    match self.conflict(strength, Some(id)) {
                        Ok(None) => return Ok(start_refreshing(held, every)),
                        result => {
                            *held.id.lock() = None;
                            held.withdraw(id)?;
                            match result? {
                                Some(conflict) => conflict,
                                None => continue,
                            }
                        }
                    }
                }
            };
            if Instant::now() + pause > deadline {
                let message = format!("The vault is locked ({})", conflict.holder());
                return Err(Error::new(Code::VaultLocked, message));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    /// The locks that are there, with those of processes of this machine that are gone removed.
    pub fn locks(&self) -> Result<Vec<(Id, LockFile)>> {
        let here = Process::current();
        let mut live = Vec::new();
        for id in self.ids(Folder::Locks)? {
            let lock: LockFile = match self.get_json(Folder::Locks, &id) {
                Ok(lock) => lock,
                // Released between listing and reading.
                Err(e) if e.code() == Code::ObjectNotFound => continue,
                Err(e) if crate::load::is_of_the_object(&e) => {
                    return Err(e.advise("Nobody can rely on this lock. `backstay vault unlock` removes it."));
                }
                Err(e) => return Err(e),
            };
            let forgotten = lock.process == here && !OWN.lock().contains(&id);
            if forgotten || lock.process.is_gone() {
                self.remove_if_there(Folder::Locks, &id)?;
            } else {
                live.push((id, lock));
            }
        }
        Ok(live)
    }

    fn conflict(&self, strength: Strength, own: Option<Id>) -> Result<Option<LockFile>> {
        let other = |(id, lock): (Id, LockFile)| {
            let excludes = lock.exclusive || strength == Strength::Exclusive;
            (Some(id) != own && excludes).then_some(lock)
        };
        Ok(self.locks()?.into_iter().find_map(other))
    }

    /// Removes locks that nobody refreshes any more: those of processes that are gone, those older than 30 minutes,
    /// and those that cannot be read (whoever holds such a lock finds it gone when it asks); with `all`, every lock.
    /// Gives how many were removed.
    pub fn unlock(&self, all: bool) -> Result<usize> {
        let now = Timestamp::now();
        let mut removed = 0;
        for id in self.ids(Folder::Locks)? {
            let abandoned = match self.get_json::<LockFile>(Folder::Locks, &id) {
                Ok(lock) => lock.is_stale(now) || lock.process.is_gone(),
                Err(e) if e.code() == Code::ObjectNotFound => continue,
                Err(e) if crate::load::is_of_the_object(&e) => true,
                Err(_) if all => true,
                Err(e) => return Err(e),
            };
            if all || abandoned {
                self.remove_if_there(Folder::Locks, &id)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

fn start_refreshing(held: Arc<Held>, every: Duration) -> Lock {
    let (stop, stopped) = mpsc::channel::<()>();
    let theirs = Arc::clone(&held);
    let refresher = std::thread::spawn(move || {
        while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
            // A refresh that fails for now is tried again next time; one that was taken away shows in `check`.
            theirs.refresh().unwrap_or_default();
        }
    });
    Lock { held, stop: Some(stop), refresher: Some(refresher) }
}

#[cfg(test)]
mod tests {
    use backstay_model::Secret;
    use backstay_storage::{Fault, Faulty, Memory, Op, Rule};

    use super::*;
    use crate::key::Cost;

    fn vault() -> (Arc<Faulty>, Vault) {
        let storage = Arc::new(Faulty::new(Arc::new(Memory::new())));
        let vault = Vault::init(storage.clone(), &Secret::new("p"), Cost::RANDOM).unwrap();
        (storage, vault)
    }

    fn take(vault: &Vault, strength: Strength) -> Result<Lock> {
        vault.lock(strength, Duration::ZERO, &Cancel::new())
    }

    fn quickly_refreshed(vault: &Vault) -> Lock {
        let every = Duration::from_millis(5);
        vault.lock_refreshed(Strength::Shared, Duration::ZERO, &Cancel::new(), every).unwrap()
    }

    /// Waits until something holds.
    #[track_caller]
    fn soon(holds: impl Fn() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < Duration::from_secs(20), "it never came to hold");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_held_lock_is_written_anew_and_never_missing() {
        let (storage, vault) = vault();
        let lock = quickly_refreshed(&vault);
        let first = vault.locks().unwrap().pop().unwrap();
        soon(|| storage.count(Op::Put, "locks/") > 5);
        lock.check().unwrap();
        let locks = vault.locks().unwrap();
        assert!((1..=2).contains(&locks.len()), "the old one goes after the new one came");
        assert!(locks.iter().all(|(id, l)| *id != first.0 && l.time > first.1.time));
        assert_eq!(take(&vault, Strength::Exclusive).unwrap_err().code(), Code::VaultLocked);
        lock.release().unwrap();
        assert_eq!(vault.locks().unwrap(), []);
    }

    #[test]
    fn a_lock_that_was_taken_away_does_not_come_back() {
        let (_, vault) = vault();
        let lock = quickly_refreshed(&vault);
        soon(|| {
            vault.unlock(true).unwrap();
            lock.check().is_err_and(|e| e.code() == Code::LeaseLost)
        });
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(vault.locks().unwrap(), []);
        assert_eq!(lock.check().unwrap_err().code(), Code::LeaseLost);
    }

    #[test]
    fn a_refresh_that_fails_for_a_while_harms_nothing() {
        let (storage, vault) = vault();
        let lock = quickly_refreshed(&vault);
        storage.add(Rule::new(Fault::Fail(Code::StorageUnavailable)).name("locks"));
        let before = storage.calls().len();
        soon(|| storage.calls().len() > before + 5);
        storage.clear();
        lock.check().unwrap();
        storage.add(Rule::new(Fault::Fail(Code::StorageUnavailable)).on(Op::Delete).times(3));
        let before = storage.count(Op::Delete, "locks/");
        soon(|| storage.count(Op::Delete, "locks/") > before + 5);
        lock.release().unwrap();
        assert_eq!(vault.locks().unwrap(), [], "what could not be deleted then is deleted now");
    }

    #[test]
    fn a_lock_that_could_not_be_given_back_does_not_stay_while_the_process_lives() {
        let (storage, vault) = vault();
        storage.add(Rule::new(Fault::Fail(Code::StorageUnavailable)).on(Op::Delete).times(1));
        take(&vault, Strength::Shared).unwrap().release().unwrap_err();
        assert_eq!(vault.ids(Folder::Locks).unwrap().len(), 1);
        take(&vault, Strength::Exclusive).unwrap().release().unwrap();
        assert_eq!(vault.ids(Folder::Locks).unwrap(), []);
    }

    #[test]
    fn who_asks_whether_the_holder_lives_does_not_end_it() {
        let (_, vault) = vault();
        let lock = take(&vault, Strength::Shared).unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::HUP).unwrap();
        lock.check().unwrap();
    }
}
