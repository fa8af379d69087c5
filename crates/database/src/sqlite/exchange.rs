//! Files that change places.
//!
//! A database is up to three files that count: itself, its log (`-wal`) and its rollback journal (`-journal`). The index of the
//! log (`-shm`) says nothing that is not in the log, and is removed. What counts is never removed by an exchange and never
//! overwritten: a name that is taken is an error.
//!
//! Invariant: a log or journal never lies beside another database than its own. So those of the outgoing database leave before
//! it does, those of the incoming one come after it has come, and each of the three steps is synced before the next:
//!
//! | main files there | is | what lies beside |
//! |---|---|---|
//! | live, staged | old | `live-*` and `kept-*` belong to live |
//! | kept, staged | old, on its way | `kept-*` to kept, `staged-*` to staged; `live-*` cannot be |
//! | live, kept | new | `live-*` and `staged-*` belong to live |
//! | live | before staging, or after the other side was discarded | |
//! | staged | old: there was none | |
//!
//! Crash story: a kill leaves one of these rows, from each of which either side is reached. A database that did not exist is an
//! empty folder of the kept name once the new one is on its way. Locks: SQLite's exclusive lock on the outgoing database, in
//! this process, until it has left; somebody who reads or writes it, or has a log of it open, is waited for. A connection in
//! rollback mode that does nothing holds no lock: the app must be stopped.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use backstay_model::{Code, Error, Result};
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::place::{ENDINGS, Place, with};
use crate::adapter::{Exchange, Options, Side};

/// What belongs to a database and counts.
const BESIDE: [&str; 2] = ["-wal", "-journal"];

/// What stands at a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum There {
    Nothing,
    Database,
    /// The mark that there was no database.
    Mark,
}

/// The three names of an exchange in their folder.
pub(super) struct Files<'a> {
    place: &'a Place,
    live: OsString,
    staged: OsString,
    kept: OsString,
}

impl<'a> Files<'a> {
    pub(super) fn new(place: &'a Place, exchange: &Exchange) -> Result<Self> {
        for name in [&exchange.live, &exchange.staged, &exchange.kept] {
            place.beside(name)?;
        }
        Ok(Files {
            place,
            live: exchange.live.clone().into(),
            staged: exchange.staged.clone().into(),
            kept: exchange.kept.clone().into(),
        })
    }

    /// Which side is in use, and what stands at live, staged and kept.
    fn state(&self) -> Result<(Side, [There; 3])> {
        let there = [self.there(&self.live)?, self.there(&self.staged)?, self.there(&self.kept)?];
        let [live, staged, kept] = there;
        let side = match (live, staged, kept) {
            (There::Mark, ..) | (_, There::Mark, _) => {
                return Err(self.confused("a folder is in the place of a file"));
            }
            (There::Database, There::Nothing, There::Database | There::Mark) => Side::New,
            (There::Database, There::Database, There::Database) => {
                return Err(self.confused("somebody has made a new database in the middle of an exchange"));
            }
            _ => Side::Old,
        };
        Ok((side, there))
    }

    pub(super) fn side(&self) -> Result<Side> {
        self.state().map(|(side, _)| side)
    }

    /// Brings a side into use, from whatever state.
    pub(super) fn bring(&self, to: Side, options: &Options) -> Result<()> {
        let (side, [live, staged, kept]) = self.state()?;
        let (out, back) = match to {
            Side::New => (&self.kept, &self.staged),
            Side::Old => (&self.staged, &self.kept),
        };
        if side == to && live == There::Database {
            // At most the last step is missing.
            let home = if to == Side::New { &self.staged } else { &self.kept };
            self.beside(home, &self.live)?;
            return self.sync();
        }
        match (to, staged, kept) {
            (Side::New, There::Nothing, _) => return Err(self.confused("there is no restored database")),
            (Side::Old, _, There::Nothing) if live == There::Nothing && staged == There::Database => {
                return Ok(());
            }
            (Side::Old, _, There::Nothing) => return Err(self.confused("the database as it was is gone")),
            _ => {}
        }
        if live == There::Database {
            let _lock = self.lock(options)?;
            self.beside(&self.live, out)?;
            self.sync()?;
            if to == Side::Old && kept == There::Mark {
                self.rename(&self.live, out)?;
                self.sync()?;
                return self.unmark();
            }
            self.rename(&self.live, out)?;
            self.sync()?;
        } else if to == Side::Old && kept == There::Mark {
            return self.unmark();
        } else if to == Side::New && kept == There::Nothing {
            self.mark()?;
        }
        self.rename(back, &self.live)?;
        self.sync()?;
        self.beside(back, &self.live)?;
        self.sync()
    }

    /// Removes the side that is not in use.
    pub(super) fn discard(&self, options: &Options) -> Result<()> {
        match self.state()? {
            // One side is gone already; the other has all that is its own.
            (_, [_, There::Nothing, There::Nothing]) => {
                self.remove(&self.staged)?;
                self.remove(&self.kept)
            }
            (Side::Old, [live, _, kept]) => {
                // If it was on its way, the old one goes back first.
                if live != There::Nothing || kept != There::Nothing {
                    self.bring(Side::Old, options)?;
                }
                self.remove(&self.staged)
            }
            (Side::New, [_, _, kept]) => {
                self.beside(&self.staged, &self.live)?;
                self.sync()?;
                if kept == There::Mark { self.unmark() } else { self.remove(&self.kept) }
            }
        }
    }

    /// Removes a database, itself first: its log alone is nothing.
    pub(super) fn remove(&self, name: &OsStr) -> Result<()> {
        for ending in ["", "-wal", "-journal", "-shm"] {
            self.unlink(&with(name, ending))?;
        }
        self.sync()
    }

    /// Whether nothing lies at a name, and nothing beside it.
    pub(super) fn is_free(&self, name: &str) -> Result<bool> {
        let mut free = self.there(OsStr::new(name))? == There::Nothing;
        for ending in ENDINGS {
            free &= self.there(&with(OsStr::new(name), ending))? == There::Nothing;
        }
        Ok(free)
    }

    fn there(&self, name: &OsStr) -> Result<There> {
        match rustix::fs::statat(self.place.folder(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => Ok(There::Database),
                FileType::Directory => Ok(There::Mark),
                _ => Err(self.confused("a name is taken by something that is no file")),
            },
            Err(Errno::NOENT) => Ok(There::Nothing),
            Err(e) => Err(self.place.failed("cannot be looked at", e)),
        }
    }

    /// Moves what lies beside one database to another name of the same.
    fn beside(&self, from: &OsStr, to: &OsStr) -> Result<()> {
        for ending in BESIDE {
            let source = with(from, ending);
            if self.there(&source)? == There::Database {
                self.rename(&source, &with(to, ending))?;
            }
        }
        self.unlink(&with(from, "-shm"))
    }

    fn rename(&self, from: &OsStr, to: &OsStr) -> Result<()> {
        let folder = self.place.folder();
        let renamed = match rustix::fs::renameat_with(folder, from, folder, to, RenameFlags::NOREPLACE) {
            // A file system that cannot promise it.
            Err(Errno::INVAL | Errno::NOSYS) if self.there(to)? == There::Nothing => {
                rustix::fs::renameat(folder, from, folder, to)
            }
            other => other,
        };
        match renamed {
            Err(Errno::EXIST | Errno::INVAL | Errno::NOSYS) => Err(self.confused(&format!(
                "`{}` was made while it was exchanged; the database was used",
                to.to_string_lossy()
            ))),
            other => other.map_err(|e| self.place.failed("cannot be renamed", e)),
        }
    }

    fn unlink(&self, name: &OsStr) -> Result<()> {
        match rustix::fs::unlinkat(self.place.folder(), name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(self.place.failed("cannot be removed", e)),
        }
    }

    fn mark(&self) -> Result<()> {
        rustix::fs::mkdirat(self.place.folder(), &self.kept, Mode::RWXU)
            .map_err(|e| self.place.failed("cannot be exchanged", e))?;
        self.sync()
    }

    fn unmark(&self) -> Result<()> {
        rustix::fs::unlinkat(self.place.folder(), &self.kept, AtFlags::REMOVEDIR)
            .map_err(|e| self.place.failed("cannot be exchanged", e))?;
        self.sync()
    }

    /// Makes what was done in the folder last.
    pub(super) fn sync(&self) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(self.place.folder(), ".", flags, Mode::empty())
            .and_then(|folder: OwnedFd| rustix::fs::fsync(folder))
            .map_err(|e| self.place.failed("cannot be exchanged for good", e))
    }

    /// Waits until nobody uses the database in use, and keeps it so until the file is dropped. None where it may only be
    /// read: that is no lock that others would heed.
    fn lock(&self, options: &Options) -> Result<Option<File>> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(self.place.folder(), &self.live, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::ACCESS | Errno::PERM) => return Ok(None),
            Err(e) => return Err(self.place.failed("cannot be opened", e)),
        };
        let until = Instant::now() + options.lock_wait;
        loop {
            options.cancel.check()?;
            // The whole file, the bytes that SQLite locks among it.
            match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Some(file)),
                Err(Errno::AGAIN | Errno::ACCESS) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(Errno::AGAIN | Errno::ACCESS) => {
                    let message = format!("`{}` is in use by another process", self.place.path().display());
                    return Err(Error::new(Code::DatabaseLockTimeout, message)
                        .advise("Stop what uses it and run the command again. Nothing was changed."));
                }
                Err(e) => return Err(self.place.failed("cannot be locked", io::Error::from(e))),
            }
        }
    }

    fn confused(&self, why: &str) -> Error {
        let message = format!("The exchange of `{}` cannot go on: {why}", self.place.path().display());
        let advice = format!(
            "Look at the files beside it (`{}` is the restored one, `{}` the one before). Nothing was overwritten.",
            self.staged.to_string_lossy(),
            self.kept.to_string_lossy()
        );
        Error::new(Code::DatabaseFailed, message).advise(advice)
    }
}
