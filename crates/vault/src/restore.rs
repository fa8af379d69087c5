//! Restoring: a tree of the vault into a folder.
//!
//! How it goes: the trees are walked and judged ([`plan`]), folders and links are made, workers read packs in large
//! ranges and write files ([`write`]), then further names of files, and last the metadata of folders, deepest first.
//!
//! Invariants:
//! * Nothing is written outside the target: every name is checked, every entry is made through the handle of its
//!   folder, links are made and never followed, nothing that exists is replaced.
//! * Every byte that is written was authenticated and hashed to the id that the tree names.
//! * One damaged pack costs the files that need it and nothing else. What is lost, unsafe or cannot be written is
//!   in the outcome by path. A file of which a part is lost is not left behind: what is there is whole.
//! * It ends early only when the target is full, the storage as a whole fails, or it is cancelled; then what was
//!   written so far stays, private folders and all, and the caller removes it.
//! * Nothing of the vault is locked or changed: a prune that moves blobs meanwhile is noticed and followed.
//!
//! Nothing is synced unless asked for: a restore that must survive a power loss sets [`RestoreOptions::sync`].

mod content;
mod folders;
mod jobs;
mod plan;
mod problems;
pub(crate) mod select;
mod source;
#[cfg(test)]
mod tests;
mod write;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use backstay_model::{Cancel, Code, Error, Phase, Problem, Result};
use backstay_model::{Counts, Progress};
use backstay_tree::beneath::Root;
use backstay_tree::fs::FileSystem;
use backstay_tree::path::escape;
use serde::Serialize;

pub use self::content::Content;
use self::folders::Target;
use self::jobs::Queue;
use self::plan::Planner;
pub(crate) use self::plan::content_id;
use self::problems::Problems;
use self::select::{Scope, Selection};
use self::source::Source;
use self::write::{Shared, Site, Worker};
use crate::id::Id;
use crate::node::Node;
use crate::reader::Reader;

/// What a restore is to do beside the obvious.
#[derive(Clone, Debug, Default)]
pub struct RestoreOptions {
    /// Files with holes, by path below the root of the tree: the ranges `[start, end)` in bytes where they have
    /// data. Everything else becomes a hole, except where the content is not zero after all.
    pub sparse: HashMap<PathBuf, Vec<(u64, u64)>>,
    /// Only these paths and what is below them, with the folders on the way there. A path that is not in the tree
    /// is an error before anything is written.
    pub select: Option<Vec<PathBuf>>,
    /// Paths that are left out with all below them although they are selected. None of them need be in the tree.
    pub omit: Vec<PathBuf>,
    /// Where not empty: the caller takes these paths out of the target one by one, and folders on the way to them are
    /// nothing but the way. They stay private (0700), so that whoever restores can do so whatever modes they have.
    pub taken: Vec<PathBuf>,
    /// Make everything survive a power loss before it returns.
    pub sync: bool,
}

/// What a restore did.
#[derive(Clone, Debug, Serialize)]
pub struct RestoreOutcome {
    /// Regular files restored (all their names count), bytes of content written, and how many were to be.
    pub counts: Counts,
    /// What is not as it was, sorted by path; the summaries of many come last.
    pub problems: Vec<Problem>,
}

impl RestoreOutcome {
    /// Whether everything that was asked for is there, as it was.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !self.problems.iter().any(|p| p.kind.is_failure())
    }
}

/// Restores `tree` into the existing empty folder `target`, which gets the metadata of `top`. Owners are set by
/// number.
///
/// Errors: `TargetUnusable` (not there, not empty), `TargetFull`, `PathNotFound` (a selected path),
/// `StorageUnavailable`, `Cancelled`. Everything else is in the outcome's problems.
#[allow(clippy::too_many_arguments)]
pub fn restore(
    reader: &Reader,
    fs: &Arc<dyn FileSystem>,
    tree: &Id,
    top: Option<&Node>,
    target: &Path,
    options: &RestoreOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<RestoreOutcome> {
    let root = open_empty(fs, target)?;
    progress.phase(Phase::Planning);
    let problems = Problems::new(progress);
    let source = Source::new(reader);
    let everything = [PathBuf::new()];
    let selection = Selection::new(options.select.as_deref().unwrap_or(&everything))?;
    let omit = Selection::new(&options.omit)?;
    let taken = Selection::new(&options.taken)?;
    let scope = Scope::new(&selection, &omit, &taken);
    let mut plan = Planner::new(&source, &problems, options, cancel).plan(tree, top, scope)?;
    if let Some(path) = selection.unmet() {
        return Err(select::not_there(&path));
    }
    let (jobs, slices) = jobs::cut(&mut plan);
    progress.phase(Phase::Restoring);
    progress.expect(plan.total_files, plan.total_bytes);

    let target = Target::new(root, &plan, &problems, cancel);
    target.make_folders()?;
    target.make_specials();
    let workers = writers(&plan).min(jobs.len()).max(1);
    let site = Site {
        source: &source,
        plan: &plan,
        target: &target,
        queue: Queue::new(jobs, workers),
        large: slices.into_iter().map(Shared::new).collect(),
        progress,
        files: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
    };
    crew(workers, |number| {
        Worker::new(&site, number)?.run();
        Ok(())
    })?;
    let (mut files, bytes) = (site.files.load(Ordering::Relaxed), site.bytes.load(Ordering::Relaxed));
    drop(site);
    let links = target.make_links();
    progress.done(links, 0);
    files += links;
    target.finish_folders()?;
    let synced = if options.sync && !target.is_stopped() { sync(&target) } else { Ok(()) };
    if let Some(error) = target.into_error() {
        return Err(error);
    }
    synced?;
    let counts = Counts { files, bytes, total_files: plan.total_files, total_bytes: plan.total_bytes };
    Ok(RestoreOutcome { counts, problems: problems.finish() })
}

/// Bytes of a file up to which making it takes longer than filling it.
const SMALL: u64 = 64 << 10;

/// How many threads write. Making a small file waits for the file system's log more than for a processor.
fn writers(plan: &plan::Plan) -> usize {
    let workers = crate::workers();
    let small = plan.total_bytes / plan.total_files.max(1) < SMALL;
    if small { workers.saturating_mul(2).clamp(4, 8) } else { workers }
}

fn open_empty(fs: &Arc<dyn FileSystem>, target: &Path) -> Result<Root> {
    let root = Root::open(Arc::clone(fs), target)?;
    let path = || escape(target.as_os_str());
    let entries = fs.entries(root.handle()).map_err(|e| {
        Error::new(Code::TargetUnusable, format!("Cannot read the folder {}", path())).because(e)
    })?;
    if entries.is_empty() {
        Ok(root)
    } else {
        Err(Error::new(Code::TargetUnusable, format!("The folder {} is not empty", path())))
    }
}

fn sync(target: &Target<'_>) -> Result<()> {
    let root = &target.root;
    root.fs()
        .sync_all(root.handle())
        .map_err(|e| backstay_tree::beneath::writing("Cannot make durable what is in", root.path(), e))
}

/// Runs the same work on so many threads, this one among them; the first error, if there is one.
fn crew(threads: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let work = &work;
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.max(1)).map(|n| scope.spawn(move || work(n))).collect();
        let mut results = vec![work(0)];
        results.extend(
            others.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(crate::vault::thread_failed()))),
        );
        results.into_iter().collect()
    })
}
