//! Small private files, written so that a crash leaves the old one or the new one.
//!
//! Invariants: the file under its name is always whole: a temporary file is written and synced first, then renamed,
//! then the folder is synced. Mode 0600. A new file never takes the place of one that is there
//! ([`write_new`]); of two processes that make it at once, one is told `AlreadyExists`. Temporary files that a kill
//! left behind are harmless and are removed by the next writer of that name.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use backstay_model::{Code, Error, JobId, Result};
use backstay_tree::fs::{FileSystem, Rename};

/// Writes a file that must not exist yet.
pub(crate) fn write_new(fs: &dyn FileSystem, folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    write(fs, folder, name, bytes, Rename::NoReplace)
}

/// Writes a file over the one of that name.
pub(crate) fn replace(fs: &dyn FileSystem, folder: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    write(fs, folder, name, bytes, Rename::Replace)
}

/// The job that a file in a folder of notes (`<job>.json`) belongs to, and whether it is only the beginning of a note, left by
/// somebody who was killed while it was written.
pub(crate) fn note_of(file: &OsStr) -> Option<(JobId, bool)> {
    let (job, rest) = file.to_str()?.trim_start_matches('.').split_once(".json")?;
    Some((job.parse().ok()?, !rest.is_empty()))
}

fn write(fs: &dyn FileSystem, folder: &Path, name: &str, bytes: &[u8], how: Rename) -> Result<()> {
    let temporary = OsString::from(format!(".{name}.{}", std::process::id()));
    let done = fs.open_root(folder).and_then(|dir| {
        let dir = dir.as_fd();
        match fs.unlink(dir, &temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let renamed =
            fill(fs, dir, &temporary, bytes).and_then(|()| give_name(fs, dir, &temporary, name, how));
        if let Err(e) = renamed {
            // Best effort: what stays is removed by the next writer of that name, of notes by who finds it ([`note_of`]).
            let _stays = fs.unlink(dir, &temporary);
            return Err(e);
        }
        fs.sync(dir)
    });
    let path = folder.join(name);
    done.map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => {
            Error::new(Code::AlreadyExists, format!("{} exists already", path.display())).because(e)
        }
        _ => Error::new(Code::StateAccess, format!("Cannot write {}", path.display())).because(e),
    })
}

/// Renames without replacing also where the file system cannot do it in one call (NFS, FUSE, exFAT): by a second name,
/// which is as safe, or where there are none by looking first, which only a race of two writers could fool.
fn give_name(
    fs: &dyn FileSystem,
    dir: BorrowedFd<'_>,
    temporary: &OsString,
    name: &str,
    how: Rename,
) -> io::Result<()> {
    let refused =
        |e: &io::Error| matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported);
    match fs.rename(dir, temporary, dir, name.as_ref(), how) {
        Err(e) if how == Rename::NoReplace && refused(&e) => {}
        other => return other,
    }
    match fs.link(dir, temporary, dir, name.as_ref()) {
        Ok(()) => return fs.unlink(dir, temporary),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(e),
        Err(_) => {}
    }
    match fs.stat(dir, name.as_ref()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            fs.rename(dir, temporary, dir, name.as_ref(), Rename::Replace)
        }
        Err(e) => Err(e),
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
    }
}

fn fill(fs: &dyn FileSystem, dir: BorrowedFd<'_>, name: &OsString, bytes: &[u8]) -> io::Result<()> {
    let file = fs.create_file(dir, name)?;
    fs.write_at(file.as_fd(), bytes, 0)?;
    fs.sync(file.as_fd())
}

/// Removes a file, durably. One that is gone is no error.
pub(crate) fn remove(fs: &dyn FileSystem, folder: &Path, name: &str) -> Result<()> {
    let removed = fs.open_root(folder).and_then(|dir| {
        match fs.unlink(dir.as_fd(), name.as_ref()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        fs.sync(dir.as_fd())
    });
    removed.map_err(|e| {
        Error::new(Code::StateAccess, format!("Cannot remove {}", folder.join(name).display())).because(e)
    })
}

/// The content of a file; none when it does not exist.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::new(Code::StateAccess, format!("Cannot read {}", path.display())).because(e)),
    }
}

/// Makes a folder (mode 0700) with the folders above it, and syncs what holds each new one.
pub(crate) fn make_folder(fs: &dyn FileSystem, path: &Path) -> Result<()> {
    make_all(fs, path).map_err(|e| {
        Error::new(Code::StateAccess, format!("Cannot make the folder {}", path.display())).because(e)
    })
}

fn make_all(fs: &dyn FileSystem, path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::other("the path has no name"));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    make_all(fs, parent)?;
    let dir = fs.open_root(parent)?;
    match fs.create_dir(dir.as_fd(), name) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    fs.sync(dir.as_fd())
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_tree::fs::{Call, Fault, Faulty, Host};
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;

    #[test]
    fn file_systems_without_exclusive_renames_or_links_keep_the_promise() {
        const EINVAL: i32 = 22;
        const EPERM: i32 = 1;
        for links in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let write = |bytes: &[u8]| {
                let fs = Faulty::new(Arc::new(Host));
                fs.fail(Fault::of(Call::Rename, EINVAL).times(1));
                if !links {
                    fs.fail(Fault::of(Call::Link, EPERM));
                }
                write_new(&fs, dir.path(), "kit", bytes)
            };
            write(b"one").unwrap();
            assert_eq!(write(b"two").unwrap_err().code(), Code::AlreadyExists, "links: {links}");
            assert_eq!(read(&dir.path().join("kit")).unwrap().as_deref(), Some(&b"one"[..]));
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "links: {links}");
        }
    }

    #[test]
    fn a_new_file_is_private_and_never_takes_the_place_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b");
        make_folder(&Host, &folder).unwrap();
        make_folder(&Host, &folder).unwrap();
        assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        write_new(&Host, &folder, "x.json", b"one").unwrap();
        let again = write_new(&Host, &folder, "x.json", b"two").unwrap_err();
        assert_eq!(again.code(), Code::AlreadyExists);
        assert_eq!(read(&folder.join("x.json")).unwrap().as_deref(), Some(&b"one"[..]));
        replace(&Host, &folder, "x.json", b"three").unwrap();
        assert_eq!(read(&folder.join("x.json")).unwrap().as_deref(), Some(&b"three"[..]));
        assert_eq!(folder.join("x.json").metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "no temporary file stays");
    }
}
