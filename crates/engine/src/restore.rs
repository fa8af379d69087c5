//! Bringing a point out into a folder.
//!
//! Invariants: nothing that exists is replaced. A folder that does not exist yet is filled under a hidden name beside
//! it and takes its own name when all is done: killed before, there is no folder of that name, only the hidden one,
//! which the next restore to that place removes. An empty folder that exists (a mounted disk, say) is filled in
//! place; when the work fails or is stopped it is emptied again. Nothing of the vault is locked.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use backstay_catalog::PointRecord;
use backstay_model::{
    Cancel, Code, Counts, Error, JobId, JobKind, Origin, Problem, ProblemKind, Progress, Result,
};
use backstay_tree::fs::Rename;
use backstay_tree::path::escape;
use backstay_vault::restore::{RestoreOptions, restore};
use serde::Serialize;

use crate::browse::{content, typed_path};
use crate::job::{Done, Running, Task, run};
use crate::manifest::Manifest;
use crate::points::Found;
use crate::select::Selector;
use crate::state::Engine;

/// What is to be restored.
#[derive(Clone, Copy, Debug)]
pub struct RestoreRequest<'a> {
    /// The app.
    pub app: &'a str,
    /// The point.
    pub point: &'a Selector,
    /// The folder to make.
    pub directory: &'a Path,
    /// Only these paths, escaped; everything when empty.
    pub paths: &'a [String],
}

/// What became of a restore.
#[derive(Clone, Debug, Serialize)]
pub struct RestoreReport {
    /// The point.
    pub point: PointRecord,
    /// The folder.
    pub directory: String,
    /// Files and bytes of content written.
    pub counts: Counts,
    /// What a person should know, with what was wrong in the point already.
    pub problems: Vec<Problem>,
    /// The job that did it.
    pub job: JobId,
    /// How long it took.
    pub seconds: f64,
}

impl RestoreReport {
    /// The problems that make the result partial.
    #[must_use]
    pub fn failures(&self) -> Vec<Problem> {
        self.problems.iter().filter(|p| p.kind.is_failure()).cloned().collect()
    }
}

/// Where a restore writes and what the folder is called in the end.
struct Target {
    /// The folder that is filled.
    fill: PathBuf,
    /// Its name in the end.
    directory: PathBuf,
}

impl Engine {
    /// Restores a point, or some paths of it, into a folder that does not exist yet or is empty.
    pub fn restore(
        &self,
        request: &RestoreRequest<'_>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<RestoreReport> {
        let started = Instant::now();
        let select = request.paths.iter().map(|p| typed_path(p)).collect::<Result<Vec<_>>>()?;
        let directory =
            std::path::absolute(request.directory).map_err(|e| unusable(request.directory, "", e))?;
        check_free(&directory)?;
        let found = self.find(request.app, request.point)?;
        let name = found.record.point.app.clone();
        let task = Task { kind: JobKind::Restore, app: Some(&name), exclusive: false };
        run(self.catalog()?, &self.clock, &task, (progress, cancel), |job| {
            let target = Target::prepare(self, &directory, job)?;
            let select = (!select.is_empty()).then_some(select);
            let filled = self.fill(&found, &target, select, job).and_then(|filled| {
                job.still_ours()?;
                target.finish(self)?;
                Ok(filled)
            });
            let (counts, problems) = filled.map_err(|e| target.discard(self, e))?;
            let failures = problems.iter().filter(|p| p.kind.is_failure()).count();
            let short = found.record.point.id.short();
            Ok(Done {
                message: match failures {
                    0 => format!("Point {short} restored: {} files", counts.files),
                    n => format!("Point {short} restored with {n} problems: {} files", counts.files),
                },
                partial: (failures > 0).then_some(Code::RestoreIncomplete),
                value: RestoreReport {
                    point: found.record.clone(),
                    directory: directory.display().to_string(),
                    counts,
                    problems,
                    job: job.id(),
                    seconds: crate::backup::seconds(started.elapsed()),
                },
            })
        })
    }

    fn fill(
        &self,
        found: &Found,
        target: &Target,
        select: Option<Vec<PathBuf>>,
        job: &Running<'_>,
    ) -> Result<(Counts, Vec<Problem>)> {
        let reader = found.vault.vault.reader()?;
        let (tree, top) = content(&reader, &found.record)?;
        let mut problems = Vec::new();
        let manifest = match found.record.point.origin {
            Origin::Foreign => None,
            // Without it the files are restored all the same; only holes become zeros.
            _ => Manifest::load(&reader, &found.record.tree.parse()?).unwrap_or_else(|e| {
                let detail = format!("Files with holes are restored with zeros: {}", e.message());
                problems.push(Problem { path: String::new(), kind: ProblemKind::Metadata, detail });
                None
            }),
        };
        let sparse = manifest.as_ref().map(Manifest::holes).unwrap_or_default();
        let options = RestoreOptions { sparse, select, ..RestoreOptions::default() };
        let outcome =
            restore(&reader, &self.fs, &tree, top.as_ref(), &target.fill, &options, job, job.cancel())?;
        problems.extend(outcome.problems);
        Ok((outcome.counts, problems))
    }
}

impl Target {
    fn prepare(engine: &Engine, directory: &Path, job: &Running<'_>) -> Result<Self> {
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

    fn in_place(&self) -> bool {
        self.fill == self.directory
    }

    /// Gives the folder its name.
    fn finish(&self, engine: &Engine) -> Result<()> {
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
        let renamed = fs.open_root(parent).and_then(|dir| match rename(&dir, Rename::NoReplace) {
            // Not every file system can do it (NFS, FUSE). A folder replaces at most an empty folder.
            Err(e) if e.kind() == std::io::ErrorKind::InvalidInput => rename(&dir, Rename::Replace),
            other => other,
        });
        renamed.map_err(|e| unusable(&self.directory, "It appeared while the point was restored", e))
    }

    /// Removes what was written; gives the error that led to it, with a word when something had to stay.
    fn discard(&self, engine: &Engine, error: Error) -> Error {
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
fn check_free(directory: &Path) -> Result<()> {
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

fn unusable(directory: &Path, why: &str, e: std::io::Error) -> Error {
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

fn remove(engine: &Engine, path: &Path) -> Result<()> {
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
