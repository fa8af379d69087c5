//! A file in a folder that is held open, so that neither is another one a moment later.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use backstay_model::{Code, Error, Result};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// What SQLite appends to the name of a database for the files beside it.
pub(super) const ENDINGS: [&str; 3] = ["-wal", "-shm", "-journal"];

/// The files that SQLite keeps beside a database: write-ahead log, its index, rollback journal. Without the database they are
/// worth nothing, and beside another one they destroy it.
#[must_use]
pub fn siblings(path: &Path) -> [PathBuf; 3] {
    ENDINGS.map(|ending| with(path.as_os_str(), ending).into())
}

/// A name with something behind it.
pub(super) fn with(name: &OsStr, ending: &str) -> OsString {
    let mut name = name.to_owned();
    name.push(ending);
    name
}

/// A name in an open folder.
#[derive(Debug)]
pub(super) struct Place {
    folder: OwnedFd,
    name: OsString,
    path: PathBuf,
}

const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Place {
    /// Opens the folder of a path, links to it being followed. The last part is a name in it and need not exist.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let name = name(path)?;
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let folder =
            rustix::fs::openat(CWD, parent, FOLDER, Mode::empty()).map_err(|e| no_folder(path, e))?;
        Ok(Place { folder, name, path: path.to_owned() })
    }

    /// The same for a path beneath a home, where no link is followed and nothing leads out.
    pub(super) fn beneath(home: &Path, relative: &Path) -> Result<Self> {
        let path = home.join(relative);
        let name = name(relative)?;
        let mut folder =
            rustix::fs::openat(CWD, home, FOLDER, Mode::empty()).map_err(|e| no_folder(&path, e))?;
        for part in relative.parent().unwrap_or(Path::new("")).components() {
            match part {
                Component::CurDir => {}
                Component::Normal(part) => {
                    folder = rustix::fs::openat(&folder, part, FOLDER | OFlags::NOFOLLOW, Mode::empty())
                        .map_err(|e| no_folder(&path, e))?;
                }
                _ => {
                    let message = format!("`{}` leads out of the app's home", path.display());
                    return Err(Error::new(Code::InvalidValue, message));
                }
            }
        }
        Ok(Place { folder, name, path })
    }

    /// Another name in the same folder.
    pub(super) fn beside(&self, name: &str) -> Result<Self> {
        let folder = self.folder.try_clone().map_err(|e| self.failed("cannot be opened", e))?;
        Ok(Place { folder, name: self::name(Path::new(name))?, path: self.path.with_file_name(name) })
    }

    pub(super) fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    pub(super) fn name(&self) -> &OsStr {
        &self.name
    }

    /// The path, to be shown.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file; none where there is none. What is no regular file is an error.
    pub(super) fn look(&self) -> Result<Option<Stat>> {
        look(self.folder(), &self.name).map_err(|e| match e.raw_os_error() {
            None => Error::new(Code::DatabaseFailed, format!("`{}` is no regular file", self.path.display())),
            Some(_) => self.failed("cannot be looked at", e),
        })
    }

    /// Opens the file to read it.
    pub(super) fn read(&self) -> Result<File> {
        open(self.folder(), &self.name).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                Error::new(Code::DatabaseNotFound, format!("There is no `{}`", self.path.display()))
            }
            _ => self.failed("cannot be read", e),
        })
    }

    pub(super) fn failed(&self, what: &str, e: impl Into<io::Error>) -> Error {
        let e = e.into();
        let code = match e.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Code::DatabasePrivileges,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Code::DatabaseFull,
            _ => Code::DatabaseFailed,
        };
        Error::new(code, format!("`{}` {what}", self.path.display())).because(e)
    }
}

fn name(path: &Path) -> Result<OsString> {
    match path.components().next_back() {
        Some(Component::Normal(name)) => Ok(name.to_owned()),
        _ => Err(Error::new(Code::InvalidValue, format!("`{}` names no file", path.display()))),
    }
}

fn no_folder(path: &Path, e: Errno) -> Error {
    let (code, what) = match e {
        Errno::NOENT => (Code::DatabaseNotFound, "does not exist"),
        Errno::NOTDIR | Errno::LOOP => {
            (Code::DatabaseNotFound, "is no folder, or a link that is not followed")
        }
        Errno::ACCESS | Errno::PERM => (Code::DatabasePrivileges, "may not be opened"),
        _ => (Code::DatabaseFailed, "cannot be opened"),
    };
    Error::new(code, format!("The folder of `{}` {what}", path.display())).because(e)
}

/// What a name stands for in a folder, no link being followed. What is no regular file is an error without a number.
pub(super) fn look(folder: impl AsFd, name: &OsStr) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => Ok(Some(stat)),
        Ok(_) => Err(io::Error::other("no regular file")),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Opens a file in a folder to read it: no link, and never waiting for the other end of a pipe.
pub(super) fn open(folder: impl AsFd, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(folder, name, flags, Mode::empty())?))
}
