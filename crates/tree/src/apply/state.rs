//! The folder of a job in the state: its files and its lock.
//!
//! Invariants: a file is complete or absent (written under another name, synced, renamed, folder synced). What is
//! read is bounded and of a known format. A job's folder vanishes at once, by a rename to a name that [`Jobs`]
//! deletes whenever it is met. Locks: `lock` in the job's folder (`flock`) as long as a [`JobDir`] lives; the folder of
//! all jobs while a job's folder is made or looked for, so that nobody takes one that is just being made for a dead one.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backstay_model::{Code, Error, JobId, Result};
use rustix::fs::FlockOperation;
use rustix::io::{Errno, retry_on_intr};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::FORMAT;
pub(super) use super::record::Phase;
use crate::fs::{FileSystem, Rename};
use crate::path::escape;

/// Where and for whom a job works.
pub(super) const PLACE: &str = "place.json";
/// The commit.
pub(super) const JOURNAL: &str = "journal.json";
/// How far it is.
pub(super) const STATE: &str = "state.json";
const LOCK: &str = "lock";
/// What the names of folders that are being deleted begin with.
const GONE: &str = ".gone-";
/// Bytes of a file at most: a journal of some million steps.
const MAX_FILE: u64 = 1 << 30;

/// The folder of all jobs.
#[derive(Debug)]
pub(super) struct Jobs {
    fs: Arc<dyn FileSystem>,
    handle: Arc<OwnedFd>,
    path: PathBuf,
}

/// What came of the wish to take up a job.
#[derive(Debug)]
pub(super) enum Taken {
    /// It is ours.
    Ours(JobDir),
    /// Another process has it.
    Busy,
    /// There is no such job.
    Gone,
}

/// The lock of the folder of all jobs, given back when dropped.
pub(super) struct Guard(#[allow(dead_code, reason = "held for its lock")] OwnedFd);

/// The folder of one job, locked.
#[derive(Debug)]
pub(super) struct JobDir {
    fs: Arc<dyn FileSystem>,
    jobs: Arc<OwnedFd>,
    handle: OwnedFd,
    #[allow(dead_code, reason = "held for its lock")]
    lock: OwnedFd,
    path: PathBuf,
    job: JobId,
}

fn failed(what: &str, path: &Path, e: io::Error) -> Error {
    Error::new(Code::StateAccess, format!("Cannot {what} {}", escape(path.as_os_str()))).because(e)
}

fn is_absent(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound
}

impl Jobs {
    /// Opens it; none when there is no such folder.
    pub fn open(fs: Arc<dyn FileSystem>, path: &Path) -> Result<Option<Jobs>> {
        match fs.open_root(path) {
            Ok(handle) => Ok(Some(Jobs { fs, handle: Arc::new(handle), path: path.to_owned() })),
            Err(e) if is_absent(&e) => Ok(None),
            Err(e) => Err(failed("open", path, e)),
        }
    }

    /// Opens it, making it when it is missing (not the folders above it).
    pub fn make(fs: Arc<dyn FileSystem>, path: &Path) -> Result<Jobs> {
        if let Some(jobs) = Jobs::open(fs.clone(), path)? {
            return Ok(jobs);
        }
        let make = || {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return Err(Errno::INVAL.into());
            };
            let parent = fs.open_root(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?;
            match fs.create_dir(parent.as_fd(), name) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            fs.sync(parent.as_fd())?;
            fs.open_dir(parent.as_fd(), name)
        };
        let handle = make().map_err(|e| failed("make the folder", path, e))?;
        Ok(Jobs { fs, handle: Arc::new(handle), path: path.to_owned() })
    }

    /// Locks it for a moment, waiting for others.
    pub fn lock(&self) -> Result<Guard> {
        // A handle of its own: the lock goes with it.
        let handle = self.fs.open_root(&self.path).map_err(|e| failed("open", &self.path, e))?;
        retry_on_intr(|| rustix::fs::flock(&handle, FlockOperation::LockExclusive))
            .map_err(|e| failed("lock", &self.path, e.into()))?;
        Ok(Guard(handle))
    }

    /// The jobs that have a folder, in the order of their ids. Under the lock, what was being deleted goes.
    pub fn ids(&self, under_lock: bool) -> Result<Vec<JobId>> {
        let names = self.fs.entries(self.handle.as_fd()).map_err(|e| failed("list", &self.path, e))?;
        let mut ids = Vec::new();
        for (name, _) in names {
            if name.as_bytes().starts_with(GONE.as_bytes()) && under_lock {
                crate::remove_tree(&*self.fs, self.handle.as_fd(), &name)?;
            }
            if let Some(id) = name.to_str().and_then(|name| Some((name, name.parse::<JobId>().ok()?)))
                && id.1.to_string() == id.0
            {
                ids.push(id.1);
            }
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// Makes the folder of a new job, locked.
    pub fn create(&self, job: JobId) -> Result<JobDir> {
        let name = OsString::from(job.to_string());
        let path = self.path.join(&name);
        let make = || -> io::Result<JobDir> {
            let guard = self.lock().map_err(io::Error::other)?;
            self.fs.create_dir(self.handle.as_fd(), &name)?;
            let handle = self.fs.open_dir(self.handle.as_fd(), &name)?;
            let lock = self.fs.create_file(handle.as_fd(), OsStr::new(LOCK))?;
            try_lock(lock.as_fd())?;
            drop(guard);
            self.fs.sync(self.handle.as_fd())?;
            Ok(self.job_dir(handle, lock, path.clone(), job))
        };
        make().map_err(|e| failed("make the folder", &path, e))
    }

    /// Takes up the folder of a job. Called under the lock: a folder without a file to lock was being made when its
    /// process died.
    pub fn take(&self, job: JobId) -> Result<Taken> {
        let name = OsString::from(job.to_string());
        let path = self.path.join(&name);
        let take = || -> io::Result<Taken> {
            let handle = match self.fs.open_dir(self.handle.as_fd(), &name) {
                Err(e) if is_absent(&e) => return Ok(Taken::Gone),
                opened => opened?,
            };
            let lock = match self.fs.open_file(handle.as_fd(), OsStr::new(LOCK)) {
                // A power loss may have taken the lock's name and left the rest.
                Err(e) if is_absent(&e) => self.fs.create_file(handle.as_fd(), OsStr::new(LOCK))?,
                opened => opened?,
            };
            match try_lock_patiently(lock.as_fd()) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Taken::Busy),
                Err(e) => Err(e),
                Ok(()) => Ok(Taken::Ours(self.job_dir(handle, lock, path.clone(), job))),
            }
        };
        take().map_err(|e| failed("open", &path, e))
    }

    /// Reads a file of a job without its lock; none when there is no such file.
    pub fn peek<T: DeserializeOwned>(&self, job: JobId, name: &str) -> Result<Option<T>> {
        let folder = OsString::from(job.to_string());
        match self.fs.open_dir(self.handle.as_fd(), &folder) {
            Ok(handle) => read(&*self.fs, handle.as_fd(), &self.path.join(folder), name),
            Err(e) if is_absent(&e) => Ok(None),
            Err(e) => Err(failed("open", &self.path.join(folder), e)),
        }
    }

    fn job_dir(&self, handle: OwnedFd, lock: OwnedFd, path: PathBuf, job: JobId) -> JobDir {
        JobDir { fs: self.fs.clone(), jobs: self.handle.clone(), handle, lock, path, job }
    }
}

fn try_lock(file: BorrowedFd<'_>) -> io::Result<()> {
    Ok(retry_on_intr(|| rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive))?)
}

/// A lock that was given back is still held for a moment where another thread was just starting a program: until that
/// one runs, it has all that was open.
fn try_lock_patiently(file: BorrowedFd<'_>) -> io::Result<()> {
    for _ in 0..5 {
        match try_lock(file) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(10)),
            other => return other,
        }
    }
    try_lock(file)
}

impl JobDir {
    pub fn fs(&self) -> &Arc<dyn FileSystem> {
        &self.fs
    }

    pub fn job(&self) -> JobId {
        self.job
    }

    /// Its path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file, whole and for good, in place of the one there was.
    pub fn write(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let path = self.path.join(name);
        let bytes = serde_json::to_vec(value).map_err(|e| {
            Error::new(Code::Internal, format!("Cannot write {} as JSON", escape(path.as_os_str())))
                .because(e)
        })?;
        let fresh = OsString::from(format!("{name}.new"));
        let dir = self.handle.as_fd();
        let write = || {
            let file = match self.fs.create_file(dir, &fresh) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    self.fs.unlink(dir, &fresh)?;
                    self.fs.create_file(dir, &fresh)?
                }
                made => made?,
            };
            self.fs.write_at(file.as_fd(), &bytes, 0)?;
            self.fs.sync(file.as_fd())?;
            self.fs.rename(dir, &fresh, dir, OsStr::new(name), Rename::Replace)?;
            self.fs.sync(dir)
        };
        write().map_err(|e| failed("write", &path, e))
    }

    /// Reads a file; none when there is no such file. Damaged and newer ones are errors.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        read(&*self.fs, self.handle.as_fd(), &self.path, name)
    }

    /// Removes a file for good; none is fine.
    pub fn remove(&self, name: &str) -> Result<()> {
        let remove = || match self.fs.unlink(self.handle.as_fd(), OsStr::new(name)) {
            Err(e) if is_absent(&e) => Ok(()),
            Err(e) => Err(e),
            Ok(()) => self.fs.sync(self.handle.as_fd()),
        };
        remove().map_err(|e| failed("remove", &self.path.join(name), e))
    }

    /// Removes the folder with all that is known of the job, at once.
    pub fn forget(&self) -> Result<()> {
        let (name, gone) =
            (OsString::from(self.job.to_string()), OsString::from(format!("{GONE}{}", self.job)));
        let jobs = self.jobs.as_fd();
        let forget = || {
            self.fs.rename(jobs, &name, jobs, &gone, Rename::Replace)?;
            self.fs.sync(jobs)
        };
        forget().map_err(|e| failed("remove", &self.path, e))?;
        crate::remove_tree(&*self.fs, jobs, &gone)
    }
}

fn read<T: DeserializeOwned>(
    fs: &dyn FileSystem,
    dir: BorrowedFd<'_>,
    dir_path: &Path,
    name: &str,
) -> Result<Option<T>> {
    let path = dir_path.join(name);
    let get = || -> io::Result<Option<Vec<u8>>> {
        let file = match fs.open_file(dir, OsStr::new(name)) {
            Err(e) if is_absent(&e) => return Ok(None),
            opened => opened?,
        };
        let size = fs.stat_handle(file.as_fd())?.size;
        if size > MAX_FILE {
            return Err(Errno::FBIG.into());
        }
        let mut bytes = vec![0; usize::try_from(size).map_err(io::Error::other)?];
        let got = fs.read_at(file.as_fd(), &mut bytes, 0)?;
        bytes.truncate(got);
        Ok(Some(bytes))
    };
    let Some(bytes) = get().map_err(|e| failed("read", &path, e))? else { return Ok(None) };
    parse(&bytes, &path).map(Some)
}

#[derive(serde::Deserialize)]
struct Format {
    format: u32,
}

fn parse<T: DeserializeOwned>(bytes: &[u8], path: &Path) -> Result<T> {
    let format: Format = serde_json::from_slice(bytes).map_err(|e| damaged(path, e))?;
    if format.format != FORMAT {
        let path = escape(path.as_os_str());
        return Err(Error::new(
            Code::StateUnsupported,
            format!("{path} has format {}; this version knows {FORMAT}", format.format),
        ));
    }
    serde_json::from_slice(bytes).map_err(|e| damaged(path, e))
}

/// The error for a file of a job that cannot be what Backstay wrote.
pub(super) fn damaged(path: &Path, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    let path = escape(path.as_os_str());
    Error::new(Code::StateDamaged, format!("The journal of a restore is damaged: {path}"))
        .advise(
            "Nothing was changed because of it. What the restore replaced lies in a folder `.backstay-…` beside or \
             in the app's home. Restore the app again, then remove that folder and the journal's.",
        )
        .because(why)
}
