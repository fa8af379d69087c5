//! A file system that fails on request, for tests.
//!
//! [`Faulty`] wraps another [`FileSystem`], numbers the mutating calls from 1 and can stop the world at any of them
//! ([`Faulty::kill_at`]), let calls fail with an errno ([`Faulty::fail`]), and take away what was not synced
//! ([`Faulty::power_loss`]).
//!
//! Invariants: after a kill no call reaches the real file system; mutating calls are made one at a time, under
//! one lock, so numbers, log and ledger agree with what happened. It is a tool of tests, not of the product,
//! and trades speed and memory for that.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{FileSystem, FileTime, Kind, Rename, Stat};

mod ledger;
mod script;

use ledger::{Content, Ledger};
pub use script::{Call, Fault, Kill, Logged};

/// The error of every call from the kill on.
#[derive(Clone, Copy, Debug)]
struct Killed;

impl fmt::Display for Killed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("killed")
    }
}

impl std::error::Error for Killed {}

#[derive(Debug, Default)]
struct State {
    count: u64,
    kill: Option<(u64, Kill)>,
    killed: Option<Logged>,
    dead: bool,
    faults: Vec<Fault>,
    plain_renames: bool,
    log: Vec<Logged>,
    phase: String,
    phases: Vec<(String, u64)>,
    names: HashMap<(u64, u64), OsString>,
    ledger: Option<Ledger>,
}

impl State {
    fn alive(&self) -> io::Result<()> {
        if self.dead { Err(killed()) } else { Ok(()) }
    }

    fn fault(&mut self, call: Call, name: &OsStr) -> Option<i32> {
        self.faults.iter_mut().find_map(|fault| fault.strikes(call, name))
    }

    fn note(&mut self, number: Option<u64>, call: Call, name: &OsStr) -> Logged {
        let entry = Logged { number, call, name: name.to_owned(), phase: self.phase.clone() };
        self.log.push(entry.clone());
        if number.is_some() {
            match self.phases.iter_mut().find(|(phase, _)| *phase == entry.phase) {
                Some((_, points)) => *points += 1,
                None => self.phases.push((entry.phase.clone(), 1)),
            }
        }
        entry
    }
}

fn killed() -> io::Error {
    io::Error::other(Killed)
}

/// A file system that fails on request. See the module.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn FileSystem>,
    state: Mutex<State>,
}

impl Faulty {
    /// Logs, fails and kills, but does not remember what was not synced.
    #[must_use]
    pub fn new(inner: Arc<dyn FileSystem>) -> Self {
        Faulty { inner, state: Mutex::default() }
    }

    /// The same, and keeps what [`Faulty::power_loss`] needs. `aside` is an empty folder on the same file system
    /// that the code under test does not look into; removed entries are kept there until their removal is
    /// synced. Until then link counts may be one higher, and removed folders still work through old handles.
    pub fn with_power_loss(inner: Arc<dyn FileSystem>, aside: &Path) -> io::Result<Self> {
        let ledger = Ledger::new(inner.clone(), aside)?;
        Ok(Faulty { inner, state: Mutex::new(State { ledger: Some(ledger), ..State::default() }) })
    }

    /// Stops the world at the `number`-th mutating call, counted from 1 since the start.
    pub fn kill_at(&self, number: u64, how: Kill) {
        self.lock().kill = Some((number, how));
    }

    /// Stops the world now.
    pub fn kill(&self) {
        self.lock().dead = true;
    }

    /// Lets calls fail. Of several faults that match, the first one given strikes.
    pub fn fail(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    /// Ends all faults that were asked for by [`Faulty::fail`].
    pub fn heal(&self) {
        self.lock().faults.clear();
    }

    /// From now on renames are as on file systems that only know the plain one (NFS): others fail with `EINVAL`.
    pub fn plain_renames(&self) {
        self.lock().plain_renames = true;
    }

    /// Names the phase that the code under test is in from now on, for the log and [`Faulty::phases`].
    pub fn phase(&self, name: impl Into<String>) {
        self.lock().phase = name.into();
    }

    /// Mutating calls so far: the points where [`Faulty::kill_at`] can strike.
    #[must_use]
    pub fn points(&self) -> u64 {
        self.lock().count
    }

    /// Mutating calls so far by phase, in the order in which the phases came.
    #[must_use]
    pub fn phases(&self) -> Vec<(String, u64)> {
        self.lock().phases.clone()
    }

    /// The call at which the world was stopped by [`Faulty::kill_at`].
    #[must_use]
    pub fn killed_at(&self) -> Option<Logged> {
        self.lock().killed.clone()
    }

    /// All calls so far.
    #[must_use]
    pub fn log(&self) -> Vec<Logged> {
        self.lock().log.clone()
    }

    /// Whether an error is the one that every call gives from the kill on.
    #[must_use]
    pub fn is_killed(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Killed>())
    }

    /// Power fails: the world is dead, and of content and folder changes only what was synced is left. Let go of
    /// all handles before; look at the result with another file system. An error means that the state could not
    /// be made (or the wrapper was not made by [`Faulty::with_power_loss`]).
    pub fn power_loss(&self) -> io::Result<()> {
        self.lose(None)
    }

    /// Power fails, and of what was not synced a random part survives, in any order: some folder changes and
    /// not others, some writes whole or cut, lengths without their data. The same seed gives the same choice.
    pub fn power_loss_some(&self, seed: u64) -> io::Result<()> {
        self.lose(Some(seed))
    }

    fn lose(&self, seed: Option<u64>) -> io::Result<()> {
        let mut state = self.lock();
        state.dead = true;
        let ledger = state.ledger.take().ok_or_else(|| io::Error::other("power loss was not asked for"))?;
        ledger.lose(seed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that fails in one thread must not hide its reason behind poisoned locks in others.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name_of(&self, handle: BorrowedFd<'_>) -> OsString {
        let id = self.inner.stat_handle(handle).map(|stat| stat.id());
        id.ok().and_then(|id| self.lock().names.get(&id).cloned()).unwrap_or_default()
    }

    fn remember(&self, handle: &OwnedFd, name: &OsStr) {
        if let Ok(stat) = self.inner.stat_handle(handle.as_fd()) {
            self.lock().names.insert(stat.id(), name.to_owned());
        }
    }

    /// Before a reading call.
    fn read(&self, call: Call, name: &OsStr) -> io::Result<&dyn FileSystem> {
        let mut state = self.lock();
        state.alive()?;
        state.note(None, call, name);
        match state.fault(call, name) {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(&*self.inner),
        }
    }

    fn read_handle(&self, call: Call, handle: BorrowedFd<'_>) -> io::Result<&dyn FileSystem> {
        self.read(call, &self.name_of(handle))
    }

    /// A mutating call. `make` gets told whether only half of a write is to be made.
    fn mutate<T>(
        &self,
        call: Call,
        name: &OsStr,
        make: impl FnOnce(&dyn FileSystem, Option<&mut Ledger>, bool) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut guard = self.lock();
        let state = &mut *guard;
        state.alive()?;
        state.count += 1;
        let entry = state.note(Some(state.count), call, name);
        if let Some((number, how)) = state.kill
            && number == state.count
        {
            state.killed = Some(entry);
            state.dead = true;
            let torn = how == Kill::Torn && call == Call::WriteAt;
            if how == Kill::After || torn {
                make(&*self.inner, state.ledger.as_mut(), torn)?;
            }
            return Err(killed());
        }
        if let Some(errno) = state.fault(call, name) {
            if call == Call::WriteAt && errno == rustix::io::Errno::NOSPC.raw_os_error() {
                make(&*self.inner, state.ledger.as_mut(), true)?;
            }
            return Err(io::Error::from_raw_os_error(errno));
        }
        make(&*self.inner, state.ledger.as_mut(), false)
    }

    /// A change of one name.
    fn change<T>(
        &self,
        call: Call,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        make: impl FnOnce(&dyn FileSystem) -> io::Result<T>,
    ) -> io::Result<T> {
        self.mutate(call, name, |fs, ledger, _| match ledger {
            Some(ledger) => ledger.change(&[(dir, name)], || make(fs)),
            None => make(fs),
        })
    }

    /// A change of metadata: not part of what is lost.
    fn set(
        &self,
        call: Call,
        name: &OsStr,
        make: impl FnOnce(&dyn FileSystem) -> io::Result<()>,
    ) -> io::Result<()> {
        self.mutate(call, name, |fs, _, _| make(fs))
    }
}

impl FileSystem for Faulty {
    fn open_root(&self, path: &Path) -> io::Result<OwnedFd> {
        let name = path.file_name().unwrap_or_default();
        let handle = self.read(Call::OpenRoot, name)?.open_root(path)?;
        self.remember(&handle, name);
        Ok(handle)
    }

    fn open_dir(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        let handle = self.read(Call::OpenDir, name)?.open_dir(dir, name)?;
        self.remember(&handle, name);
        Ok(handle)
    }

    fn open_dir_beneath(&self, dir: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
        let name = path.file_name().unwrap_or_default();
        match self.read(Call::OpenDirBeneath, name) {
            // A kernel without `openat2` is made by that errno: the slower way, through this wrapper.
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NOSYS.raw_os_error()) => {
                super::open_level_by_level(self, dir, path)
            }
            fs => {
                let handle = fs?.open_dir_beneath(dir, path)?;
                self.remember(&handle, name);
                Ok(handle)
            }
        }
    }

    fn open_file(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        let handle = self.read(Call::OpenFile, name)?.open_file(dir, name)?;
        self.remember(&handle, name);
        Ok(handle)
    }

    fn entries(&self, dir: BorrowedFd<'_>) -> io::Result<Vec<(OsString, Option<Kind>)>> {
        self.read_handle(Call::Entries, dir)?.entries(dir)
    }

    fn stat(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Stat> {
        self.read(Call::Stat, name)?.stat(dir, name)
    }

    fn stat_handle(&self, handle: BorrowedFd<'_>) -> io::Result<Stat> {
        self.read_handle(Call::StatHandle, handle)?.stat_handle(handle)
    }

    fn read_at(&self, file: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read_handle(Call::ReadAt, file)?.read_at(file, buf, offset)
    }

    fn next_data(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<Option<(u64, u64)>> {
        self.read_handle(Call::NextData, file)?.next_data(file, offset)
    }

    fn read_link(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OsString> {
        self.read(Call::ReadLink, name)?.read_link(dir, name)
    }

    fn xattrs(&self, handle: BorrowedFd<'_>) -> io::Result<Vec<(OsString, Vec<u8>)>> {
        self.read_handle(Call::Xattrs, handle)?.xattrs(handle)
    }

    fn xattrs_at(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Vec<(OsString, Vec<u8>)>> {
        self.read(Call::XattrsAt, name)?.xattrs_at(dir, name)
    }

    fn create_dir(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        self.change(Call::CreateDir, dir, name, |fs| fs.create_dir(dir, name))
    }

    fn create_file(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
        let handle = self.mutate(Call::CreateFile, name, |fs, ledger, _| match ledger {
            Some(ledger) => {
                let handle = ledger.change(&[(dir, name)], || fs.create_file(dir, name))?;
                ledger.created(handle.as_fd())?;
                Ok(handle)
            }
            None => fs.create_file(dir, name),
        })?;
        self.remember(&handle, name);
        Ok(handle)
    }

    fn write_at(&self, file: BorrowedFd<'_>, buf: &[u8], offset: u64) -> io::Result<()> {
        self.mutate(Call::WriteAt, &self.name_of(file), |fs, ledger, torn| {
            let buf = if torn { buf.get(..buf.len() / 2).unwrap_or(buf) } else { buf };
            if let Some(ledger) = ledger {
                ledger.content(file, Content::Written(offset, buf.to_vec()))?;
            }
            fs.write_at(file, buf, offset)
        })
    }

    fn truncate(&self, file: BorrowedFd<'_>, len: u64) -> io::Result<()> {
        self.mutate(Call::Truncate, &self.name_of(file), |fs, ledger, _| {
            if let Some(ledger) = ledger {
                ledger.content(file, Content::Length(len))?;
            }
            fs.truncate(file, len)
        })
    }

    fn sync(&self, handle: BorrowedFd<'_>) -> io::Result<()> {
        self.mutate(Call::Sync, &self.name_of(handle), |fs, ledger, _| {
            fs.sync(handle)?;
            ledger.map_or(Ok(()), |ledger| ledger.synced(handle))
        })
    }

    fn sync_all(&self, handle: BorrowedFd<'_>) -> io::Result<()> {
        self.mutate(Call::SyncAll, &self.name_of(handle), |fs, ledger, _| {
            fs.sync_all(handle)?;
            ledger.map_or(Ok(()), Ledger::all_synced)
        })
    }

    fn rename(
        &self,
        from: BorrowedFd<'_>,
        from_name: &OsStr,
        to: BorrowedFd<'_>,
        to_name: &OsStr,
        how: Rename,
    ) -> io::Result<()> {
        if how != Rename::Replace && self.lock().plain_renames {
            return Err(rustix::io::Errno::INVAL.into());
        }
        self.mutate(Call::Rename, to_name, |fs, ledger, _| match ledger {
            Some(ledger) => ledger.rename(from, from_name, to, to_name, how),
            None => fs.rename(from, from_name, to, to_name, how),
        })
    }

    fn link(
        &self,
        from: BorrowedFd<'_>,
        from_name: &OsStr,
        to: BorrowedFd<'_>,
        to_name: &OsStr,
    ) -> io::Result<()> {
        self.change(Call::Link, to, to_name, |fs| fs.link(from, from_name, to, to_name))
    }

    fn unlink(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        self.mutate(Call::Unlink, name, |fs, ledger, _| match ledger {
            Some(ledger) => {
                ledger.keep_file(dir, name)?;
                ledger.change(&[(dir, name)], || fs.unlink(dir, name))
            }
            None => fs.unlink(dir, name),
        })
    }

    fn remove_dir(&self, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        self.mutate(Call::RemoveDir, name, |fs, ledger, _| match ledger {
            Some(ledger) => ledger.remove_dir(dir, name),
            None => fs.remove_dir(dir, name),
        })
    }

    fn symlink(&self, target: &OsStr, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        self.change(Call::Symlink, dir, name, |fs| fs.symlink(target, dir, name))
    }

    fn make_node(&self, dir: BorrowedFd<'_>, name: &OsStr, kind: Kind, rdev: u64) -> io::Result<()> {
        self.change(Call::MakeNode, dir, name, |fs| fs.make_node(dir, name, kind, rdev))
    }

    fn set_owner(&self, handle: BorrowedFd<'_>, uid: u32, gid: u32) -> io::Result<()> {
        self.set(Call::SetOwner, &self.name_of(handle), |fs| fs.set_owner(handle, uid, gid))
    }

    fn set_owner_at(&self, dir: BorrowedFd<'_>, name: &OsStr, uid: u32, gid: u32) -> io::Result<()> {
        self.set(Call::SetOwnerAt, name, |fs| fs.set_owner_at(dir, name, uid, gid))
    }

    fn set_mode(&self, handle: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
        self.set(Call::SetMode, &self.name_of(handle), |fs| fs.set_mode(handle, mode))
    }

    fn set_mode_at(&self, dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> io::Result<()> {
        self.set(Call::SetModeAt, name, |fs| fs.set_mode_at(dir, name, mode))
    }

    fn set_times(&self, handle: BorrowedFd<'_>, mtime: FileTime) -> io::Result<()> {
        self.set(Call::SetTimes, &self.name_of(handle), |fs| fs.set_times(handle, mtime))
    }

    fn set_times_at(&self, dir: BorrowedFd<'_>, name: &OsStr, mtime: FileTime) -> io::Result<()> {
        self.set(Call::SetTimesAt, name, |fs| fs.set_times_at(dir, name, mtime))
    }

    fn set_xattr(&self, handle: BorrowedFd<'_>, name: &OsStr, value: &[u8]) -> io::Result<()> {
        self.set(Call::SetXattr, &self.name_of(handle), |fs| fs.set_xattr(handle, name, value))
    }

    fn set_xattr_at(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        attribute: &OsStr,
        value: &[u8],
    ) -> io::Result<()> {
        self.set(Call::SetXattrAt, name, |fs| fs.set_xattr_at(dir, name, attribute, value))
    }

    fn remove_xattr(&self, handle: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
        self.set(Call::RemoveXattr, &self.name_of(handle), |fs| fs.remove_xattr(handle, name))
    }

    fn remove_xattr_at(&self, dir: BorrowedFd<'_>, name: &OsStr, attribute: &OsStr) -> io::Result<()> {
        self.set(Call::RemoveXattrAt, name, |fs| fs.remove_xattr_at(dir, name, attribute))
    }
}
