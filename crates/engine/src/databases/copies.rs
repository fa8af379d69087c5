//! Consistent copies of the SQLite files of a home, for the time of a backup.
//!
//! Invariants: a copy lies in a private folder of the state (0700) and goes with the value; what a kill leaves goes with the next
//! backup. A file that cannot be copied is told, and its plain bytes are in the point, as those of any file that is written
//! meanwhile (in a zip it is left out, and told). Lock: one over what is told of copies that several threads make; held for one entry.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use backstay_archive::Copier;
use backstay_catalog::App;
use backstay_database::Options;
use backstay_database::sqlite::{Child, snapshot};
use backstay_model::{Code, Error, JobId, JobState, Problem, ProblemKind, Progress as _, Result};
use backstay_tree::beneath::Root;
use backstay_tree::path::escape;

use super::linked::options;
use crate::job::Running;
use crate::private;
use crate::state::Engine;

/// The folder of the copies, in the state folder.
const FOLDER: &str = "copies";

/// Copies of SQLite files.
pub(crate) struct Copies {
    folder: Option<PathBuf>,
    /// By path below the home: the copy.
    pub files: BTreeMap<PathBuf, PathBuf>,
    pub problems: Vec<Problem>,
}

impl Drop for Copies {
    fn drop(&mut self) {
        // What stays is removed by the next backup.
        let removed = self.folder.take().map(std::fs::remove_dir_all);
        removed.unwrap_or(Ok(())).unwrap_or_default();
    }
}

/// Copies that are made one by one, as the files are met. They go with the value.
pub(crate) struct OneByOne {
    _copies: Copies,
    copier: Arc<Copier>,
    damaged: Arc<Mutex<Vec<Problem>>>,
}

impl OneByOne {
    pub fn copier(&self) -> Arc<Copier> {
        Arc::clone(&self.copier)
    }

    /// What is to be told of databases that were copied and are damaged themselves.
    pub fn damaged(&self) -> Vec<Problem> {
        std::mem::take(&mut *self.damaged.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Engine {
    /// What copies the SQLite files of a home one by one, as they are met.
    pub(crate) fn copier(&self, job: &Running<'_>, app: &App, home: &Path) -> Result<OneByOne> {
        let all = self.state.join(FOLDER);
        self.sweep_copies(&all)?;
        let folder = all.join(job.id().to_string());
        let copies = Copies { folder: Some(folder.clone()), files: BTreeMap::new(), problems: Vec::new() };
        let root = Root::open(self.fs.clone(), home)?;
        let (fs, options, number) = (self.fs.clone(), options(app, job.cancel()), AtomicU64::new(0));
        let damaged = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&damaged);
        let copier = move |path: &Path| {
            private::make_folder(&*fs, &folder)?;
            let target = folder.join(number.fetch_add(1, Ordering::Relaxed).to_string());
            match copy(&root, path, &target, &options) {
                Ok(damage) => {
                    let mut tell = tell.lock().unwrap_or_else(PoisonError::into_inner);
                    tell.extend(damage.map(|detail| problem(path, ProblemKind::Changed, detail)));
                    Ok(Some(target))
                }
                Err(e) if e.code() == Code::DatabaseDumpUnusable => Ok(None),
                Err(e) => Err(e),
            }
        };
        Ok(OneByOne { _copies: copies, copier: Arc::new(copier), damaged })
    }

    /// Copies SQLite files of a home. `first` is the number of the first copy, where the job has made some before.
    pub(crate) fn copies(
        &self,
        job: &Running<'_>,
        app: &App,
        home: &Path,
        (first, paths): (usize, impl Iterator<Item = PathBuf>),
    ) -> Result<Copies> {
        let mut copies = Copies { folder: None, files: BTreeMap::new(), problems: Vec::new() };
        let mut paths = paths.peekable();
        if paths.peek().is_none() {
            return Ok(copies);
        }
        let all = self.state.join(FOLDER);
        self.sweep_copies(&all)?;
        let folder = all.join(job.id().to_string());
        private::make_folder(&*self.fs, &folder)?;
        copies.folder = Some(folder.clone());
        let root = Root::open(self.fs.clone(), home)?;
        for (number, path) in paths.enumerate() {
            job.still_ours()?;
            let target = folder.join((first + number).to_string());
            match copy(&root, &path, &target, &options(app, job.cancel())) {
                Ok(damage) => {
                    copies.problems.extend(damage.map(|detail| problem(&path, ProblemKind::Changed, detail)));
                    copies.files.insert(path, target);
                }
                // It is no database any more, or none of SQLite's: its bytes are all that can be had.
                Err(e) if e.code() == Code::DatabaseDumpUnusable => {
                    let detail = format!("It is saved as it lies there: {}", e.message());
                    copies.problems.push(problem(&path, ProblemKind::Told, detail));
                }
                Err(_) if home.join(&path).symlink_metadata().is_err() => {}
                Err(e) => {
                    job.cancel().check()?;
                    let detail = format!("It is no consistent copy: {} ({})", e.message(), e.code());
                    let problem = problem(&path, ProblemKind::Changed, detail);
                    job.problem(&problem);
                    copies.problems.push(problem);
                }
            }
        }
        Ok(copies)
    }

    /// Removes copies of jobs that are over.
    fn sweep_copies(&self, all: &Path) -> Result<()> {
        for entry in std::fs::read_dir(all).into_iter().flatten().flatten() {
            let job = entry.file_name().to_str().and_then(|n| n.parse::<JobId>().ok());
            let Some(job) = job else { continue };
            if self.catalog()?.job(&job)?.is_none_or(|j| j.state != JobState::Running) {
                std::fs::remove_dir_all(entry.path()).unwrap_or_default();
            }
        }
        Ok(())
    }
}

/// Copies one file; gives what is wrong with it.
fn copy(root: &Root, path: &Path, target: &Path, options: &Options) -> Result<Option<String>> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::new(Code::InvalidValue, "It has no name"));
    };
    let folder = root.open_dir(folder)?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", folder.as_fd().as_raw_fd())).join(name);
    let record = snapshot(&source, target, &Child::default(), options)?;
    let damage = record.content.damage;
    Ok(damage.map(|damage| format!("The database itself is damaged: {damage}")))
}

fn problem(path: &Path, kind: ProblemKind, detail: String) -> Problem {
    Problem { path: escape(path.as_os_str()), kind, detail }
}
