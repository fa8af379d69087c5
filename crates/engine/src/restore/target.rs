//! The folder that a restore fills.
//!
//! Invariants: nothing that exists is replaced. A folder that does not exist yet is filled under a hidden name beside
//! it and takes its own name when all is done: killed before, there is no folder of that name, only the hidden one,
//! which the next restore to that place removes. An empty folder that exists (a mounted disk, say) is filled in
//! place; when the work fails or is stopped it is emptied again.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use backstay_model::{Code, Error, JobId, Result};
use backstay_tree::fs::Rename;
use backstay_tree::path::escape;

use crate::job::Running;
use crate::state::Engine;

/// Where a restore writes and what the folder is called in the end.
pub(super) struct Target {
    /// The folder that is filled.
    pub fill: PathBuf,
    /// Its name in the end.
    pub directory: PathBuf,
}

impl Target {
    pub fn prepare(engine: &Engine, directory: &Path, job: &Running<'_>) -> Result<Self> {
        check_free(directory)?;
        if directory.is_dir() {
            return Ok(Target { fill: directory.to_owned(), directory: directory.to_owned() });
        }
        let (Some(parent), Some(name)) = (directory.parent(), directory.file_name()) else {
            return Err(unusable(directory, "It has no name", std::io::ErrorKind::InvalidInput.into()));
        };
        std::fs::create_dir_all(parent).map_err(|e| unusable(directory, "", e))?;
        let mut name: String = escape(name).chars().take(40).filter(|c| *c != '/').collect();
        name.insert(0, '.');
        name.push_str(".restore-");
        sweep(engine, parent, &name);
        let fill = parent.join(format!("{name}{}", job.id()));
        let made = engine
            .fs
            .open_root(parent)
            .and_then(|dir| engine.fs.create_dir(dir.as_fd(), fill.file_name().unwrap_or_default()));
        made.map_err(|e| unusable(directory, "", e))?;
        Ok(Target { fill, directory: directory.to_owned() })
    }

    /// Whether the folder was there before.
    pub fn in_place(&self) -> bool {
        self.fill == self.directory
    }

    /// Gives the folder its name.
    pub fn finish(&self, engine: &Engine) -> Result<()> {
        if self.in_place() {
            return Ok(());
        }
        let (Some(parent), Some(from), Some(to)) =
            (self.fill.parent(), self.fill.file_name(), self.directory.file_name())
        else {
            return Ok(());
        };
        let fs = &*engine.fs;
        let rename = |dir: &std::os::fd::OwnedFd, how| fs.rename(dir.as_fd(), from, dir.as_fd(), to, how);
        let renamed = fs.open_root(parent).and_then(|dir| {
            match rename(&dir, Rename::NoReplace) {
                // Not every file system can do it (NFS, FUSE). A folder replaces at most an empty folder.
                Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => rename(&dir, Rename::Replace),
                other => other,
            }?;
            fs.sync(dir.as_fd())
        });
        renamed.map_err(|e| unusable(&self.directory, "It appeared while the point was restored", e))
    }

    /// Removes what was written; gives the error that led to it, with a word when something had to stay.
    pub fn discard(&self, engine: &Engine, error: Error) -> Error {
        let left = if self.in_place() { empty(engine, &self.fill) } else { remove(engine, &self.fill) };
        match left {
            Ok(()) => error,
            Err(_) => {
                let advice = format!(
                    "{} What was written so far is in {}: remove it.",
                    error.advice(),
                    self.fill.display()
                );
                error.advise(advice)
            }
        }
    }
}

/// Refuses a target that holds something.
pub(super) fn check_free(directory: &Path) -> Result<()> {
    let meta = match directory.symlink_metadata() {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(unusable(directory, "", e)),
    };
    if !directory.is_dir() {
        let what = if meta.is_symlink() { "It is a link to nowhere" } else { "It is not a folder" };
        return Err(unusable(directory, what, std::io::ErrorKind::NotADirectory.into()));
    }
    let mut entries = std::fs::read_dir(directory).map_err(|e| unusable(directory, "", e))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(unusable(directory, "It is not empty", std::io::ErrorKind::DirectoryNotEmpty.into())),
    }
}

pub(super) fn unusable(directory: &Path, why: &str, e: std::io::Error) -> Error {
    let message = format!("Cannot restore to {}", directory.display());
    let error = Error::new(Code::TargetUnusable, message);
    if why.is_empty() { error.because(e) } else { error.because(why.to_owned()) }
}

/// Removes the folders of restores to the same place that were killed. Those of restores that still work are in use
/// and are kept: their jobs run.
fn sweep(engine: &Engine, parent: &Path, prefix: &str) {
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let job = name.to_str().and_then(|n| n.strip_prefix(prefix)?.parse::<JobId>().ok());
        let Some(job) = job else { continue };
        let known = engine.catalog().and_then(|c| c.job(&job));
        let runs = known.is_ok_and(|j| j.is_none_or(|j| j.state == backstay_model::JobState::Running));
        if !runs {
            // What cannot be removed now is tried again by the next restore to this place.
            remove(engine, &entry.path()).unwrap_or_default();
        }
    }
}

/// Removes a folder with all that is in it.
pub(super) fn remove(engine: &Engine, path: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let dir = engine.fs.open_root(parent).map_err(|e| unusable(path, "", e))?;
    backstay_tree::remove_tree(&*engine.fs, dir.as_fd(), name)
}

fn empty(engine: &Engine, path: &Path) -> Result<()> {
    let dir = engine.fs.open_root(path).map_err(|e| unusable(path, "", e))?;
    for (name, _) in engine.fs.entries(dir.as_fd()).map_err(|e| unusable(path, "", e))? {
        backstay_tree::remove_tree(&*engine.fs, dir.as_fd(), &name)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_free_place_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("empty")).unwrap();
        std::fs::create_dir_all(path("full/x")).unwrap();
        std::fs::write(path("file"), "").unwrap();
        std::os::unix::fs::symlink("nowhere", path("dangling")).unwrap();
        std::os::unix::fs::symlink("full", path("link")).unwrap();
        for free in ["absent", "absent/below", "empty"] {
            check_free(&path(free)).unwrap();
        }
        for taken in ["full", "file", "dangling", "link", "file/below"] {
            assert_eq!(check_free(&path(taken)).unwrap_err().code(), Code::TargetUnusable, "{taken}");
        }
    }
}
