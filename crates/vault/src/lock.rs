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
//! * Whoever commits asks [`Lock::check`] first: a lock that was taken away ends the work before it is visible.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use backstay_model::{Cancel, Code, Error, Result};
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
        self.vault.put_json(Folder::Locks, &file)
    }

    fn refresh(&self) -> Result<()> {
        let mut id = self.id.lock();
        let Some(old) = *id else { return Ok(()) };
        self.present(old)?;
        *id = Some(self.write()?);
        self.vault.remove(Folder::Locks, &old)
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
            Some(id) => match self.held.vault.remove(Folder::Locks, &id) {
                Err(e) if e.code() == Code::ObjectNotFound => Ok(()),
                other => other,
            },
            None => Ok(()),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A lock that cannot be removed now is removed by whoever finds this process gone.
        self.end().unwrap_or_default();
    }
}

impl Vault {
    /// Takes a lock, waiting up to `wait` for others to finish. Locks of processes of this machine that are gone are
    /// removed on the way. `VaultLocked` names the holder.
    pub fn lock(&self, strength: Strength, wait: Duration, cancel: &Cancel) -> Result<Lock> {
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
                        Ok(None) => return Ok(start_refreshing(held)),
                        result => {
                            *held.id.lock() = None;
                            self.remove(Folder::Locks, &id)?;
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
            if lock.process.is_gone() {
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

fn start_refreshing(held: Arc<Held>) -> Lock {
    let (stop, stopped) = mpsc::channel::<()>();
    let theirs = Arc::clone(&held);
    let refresher = std::thread::spawn(move || {
        while stopped.recv_timeout(REFRESH) == Err(RecvTimeoutError::Timeout) {
            // A refresh that fails for now is tried again next time; one that was taken away shows in `check`.
            theirs.refresh().unwrap_or_default();
        }
    });
    Lock { held, stop: Some(stop), refresher: Some(refresher) }
}
