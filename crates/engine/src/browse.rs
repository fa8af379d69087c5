//! Looking into points: show, files, cat, verify.
//!
//! Invariants: nothing in the vault is changed or locked. Paths are those below the app's home, escaped. Memory is
//! bounded by one folder and its ancestors (and, for verify, one small record per distinct blob).

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use backstay_catalog::PointRecord;
use backstay_model::{Cancel, Code, Error, JobKind, Origin, Phase, Problem, ProblemKind, Progress, Result};
use backstay_tree::fs::Kind;
use backstay_tree::path::{escape, unescape};
use backstay_vault::blob::BlobKind;
use backstay_vault::{Id, Node, Reader};
use jiff::Timestamp;
use serde::Serialize;

use crate::job::{Done, Task, run};
use crate::manifest::{ArchiveRecord, CONTENT, Manifest, SavedDatabase, StepRecord, Waiting};
use crate::points::Found;
use crate::select::Selector;
use crate::state::Engine;

/// Deepest nesting that is followed.
const DEPTH_MAX: usize = 20_000;

/// A point in detail.
#[derive(Clone, Debug, Serialize)]
pub struct PointDetails {
    /// The point.
    pub point: PointRecord,
    /// What it says about itself; none for snapshots of other programs.
    pub manifest: Option<ManifestView>,
}

/// A manifest as shown.
#[derive(Clone, Debug, Serialize)]
pub struct ManifestView {
    /// The app's home on the machine that took it.
    pub home: String,
    /// When reading began.
    pub started: Timestamp,
    /// When the last file was read.
    pub ended: Timestamp,
    /// The program that wrote it.
    pub program: String,
    /// Files with holes.
    pub sparse_files: usize,
    /// What a person should know.
    pub problems: Vec<Problem>,
    /// The dumps of databases in it.
    pub databases: Vec<SavedDatabase>,
    /// Databases that were not due, and the points that have them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<Waiting>,
    /// SQLite files whose bytes come from a consistent copy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sqlite: Vec<String>,
    /// How far files and databases belong to the same moment: `files-only`, `ordered`, `quiesced`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub consistency: String,
    /// What was read when.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepRecord>,
    /// The archive that it was brought in from.
    pub archive: Option<ArchiveRecord>,
}

/// An entry of a point.
#[derive(Clone, Debug, Serialize)]
pub struct FileEntry {
    /// Its path below the app's home, escaped.
    pub path: String,
    /// `file`, `folder`, `link`, `fifo`, `socket`, `device`.
    pub kind: &'static str,
    /// Bytes of content.
    pub size: u64,
    /// Permission bits, octal.
    pub mode: String,
    /// Owner's number.
    pub uid: u32,
    /// Group's number.
    pub gid: u32,
    /// Owner's name, where known.
    pub user: String,
    /// Group's name, where known.
    pub group: String,
    /// Last change of content.
    pub modified: Option<Timestamp>,
    /// Target of a link, escaped.
    pub target: Option<String>,
}

/// Whether a point is whole.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    /// The point.
    pub point: PointRecord,
    /// Files read.
    pub files: u64,
    /// Distinct pieces of data read.
    pub blobs: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// What is lost or damaged, by path.
    pub problems: Vec<Problem>,
}

/// The tree that holds the app's home, with the node of the home itself where there is one.
pub(crate) fn content(reader: &Reader, record: &PointRecord) -> Result<(Id, Option<Node>)> {
    let root: Id = record.tree.parse()?;
    if record.point.origin == Origin::Foreign {
        return Ok((root, None));
    }
    let node = reader.find(&root, CONTENT.as_ref()).map_err(|e| match e.code() {
        Code::PathNotFound => Error::new(Code::VaultDamaged, "The point has no content").because(e),
        _ => e,
    })?;
    let tree = node
        .subtree
        .ok_or_else(|| Error::new(Code::VaultDamaged, "The content of the point is no folder"))?;
    Ok((tree, Some(node)))
}

/// A path as typed: escaped, relative to the home.
pub(crate) fn typed_path(text: &str) -> Result<PathBuf> {
    let bad = || {
        Error::new(
            Code::InvalidValue,
            format!("`{}` is not a path as `backstay files` shows them", text.escape_debug()),
        )
        .advise("A backslash is written twice; bytes that are not text are written \\xNN.")
    };
    Ok(unescape(text)
        .map(PathBuf::from)
        .ok_or_else(bad)?
        .components()
        .filter(|c| !matches!(c, std::path::Component::RootDir | std::path::Component::CurDir))
        .collect())
}

fn kind_name(kind: Option<Kind>) -> &'static str {
    match kind {
        Some(Kind::File) => "file",
        Some(Kind::Dir) => "folder",
        Some(Kind::Symlink) => "link",
        Some(Kind::Fifo) => "fifo",
        Some(Kind::Socket) => "socket",
        Some(Kind::CharDevice | Kind::BlockDevice) => "device",
        None => "unknown",
    }
}

fn entry(path: &Path, node: &Node) -> FileEntry {
    let nanos = i32::try_from(node.mtime.nanos).unwrap_or(0);
    FileEntry {
        path: escape(path.as_os_str()),
        kind: kind_name(node.kind),
        size: node.size,
        mode: format!("{:04o}", node.mode & 0o7777),
        uid: node.uid,
        gid: node.gid,
        user: node.user.to_string(),
        group: node.group.to_string(),
        modified: Timestamp::new(node.mtime.secs, nanos).ok(),
        target: (node.kind == Some(Kind::Symlink)).then(|| escape(&node.link_target)),
    }
}

impl Engine {
    /// One point in detail.
    pub fn show(&self, app: &str, selector: &Selector) -> Result<PointDetails> {
        let Found { vault, record } = self.find(app, selector)?;
        let reader = vault.vault.reader()?;
        let manifest = match record.point.origin {
            Origin::Foreign => None,
            _ => Manifest::load(&reader, &record.tree.parse()?)?,
        };
        let manifest = manifest.map(|m| ManifestView {
            home: m.home,
            started: m.started,
            ended: m.ended,
            program: m.program,
            sparse_files: m.sparse.len(),
            problems: m.problems,
            databases: m.databases,
            waiting: m.waiting,
            sqlite: m.sqlite,
            consistency: m.consistency,
            steps: m.steps,
            archive: m.archive,
        });
        Ok(PointDetails { point: record, manifest })
    }

    /// Calls `each` for the entries of a folder of a point (or for one file), in the order of their names, with
    /// everything below when `recursive`. It stops early when `each` says false.
    pub fn files(
        &self,
        app: &str,
        selector: &Selector,
        path: Option<&str>,
        recursive: bool,
        each: &mut dyn FnMut(FileEntry) -> Result<bool>,
    ) -> Result<PointRecord> {
        let Found { vault, record } = self.find(app, selector)?;
        let reader = vault.vault.reader()?;
        let (root, _) = content(&reader, &record)?;
        let path = path.map(typed_path).transpose()?.unwrap_or_default();
        let mut start = root;
        if path.components().next().is_some() {
            let node = reader.find(&root, &path)?;
            match node.subtree {
                Some(tree) => start = tree,
                None => {
                    each(entry(&path, &node))?;
                    return Ok(record);
                }
            }
        }
        walk(&reader, start, &path, recursive, &mut |path, node| match node {
            Ok(node) => each(entry(path, node)),
            Err(e) => Err(e),
        })?;
        Ok(record)
    }

    /// Writes one file of a point to `out`.
    pub fn cat(&self, app: &str, selector: &Selector, path: &str, out: &mut dyn Write) -> Result<u64> {
        let Found { vault, record } = self.find(app, selector)?;
        let reader = vault.vault.reader()?;
        let (root, _) = content(&reader, &record)?;
        let node = reader.find(&root, &typed_path(path)?)?;
        reader.cat(&node, out)
    }

    /// Reads all data of one point and says what is lost. Nothing is changed.
    pub fn verify(
        &self,
        app: &str,
        selector: &Selector,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<VerifyReport> {
        let Found { vault, record } = self.find(app, selector)?;
        let name = record.point.app.clone();
        let task = Task { kind: JobKind::Verify, app: Some(&name), exclusive: false };
        run(self.catalog()?, &self.clock, &task, (progress, cancel), |job| {
            job.phase(Phase::Checking);
            job.expect(record.point.files, record.point.bytes);
            let reader = vault.vault.reader()?;
            let report = read_all(&reader, record, job, job.cancel())?;
            let short = report.point.point.id.short();
            Ok(Done {
                message: match report.problems.len() {
                    0 => format!("Point {short} is whole: {} files", report.files),
                    n => format!("Point {short} has lost something: {n} paths"),
                },
                partial: (!report.problems.is_empty()).then_some(Code::VaultDamaged),
                value: report,
            })
        })
    }
}

/// What a walk calls for an entry, or for a folder that cannot be read.
type Visit<'a> = dyn FnMut(&Path, Result<&Node>) -> Result<bool> + 'a;

/// Walks a tree of the vault in the order of names, without recursion on the stack.
fn walk(reader: &Reader, tree: Id, path: &Path, recursive: bool, visit: &mut Visit<'_>) -> Result<()> {
    let mut open: Vec<(PathBuf, std::vec::IntoIter<Node>)> =
        vec![(path.to_owned(), reader.tree(&tree)?.into_iter())];
    while let Some((folder, nodes)) = open.last_mut() {
        let Some(node) = nodes.next() else {
            open.pop();
            continue;
        };
        let path = folder.join(&node.name);
        if !visit(&path, Ok(&node))? {
            return Ok(());
        }
        let Some(subtree) = node.subtree.filter(|_| recursive) else { continue };
        if open.len() > DEPTH_MAX {
            return Err(Error::new(
                Code::LimitExceeded,
                format!("Folders are nested deeper than {DEPTH_MAX}"),
            ));
        }
        match reader.tree(&subtree) {
            Ok(nodes) => open.push((path, nodes.into_iter())),
            Err(e) => {
                if !visit(&path, Err(e))? {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// What is known of the pieces of data met so far: their lengths, or that they are lost and why.
type Seen = HashMap<Id, Result<u64, String>>;

fn read_all(
    reader: &Reader,
    record: PointRecord,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<VerifyReport> {
    let root: Id = record.tree.parse()?;
    let foreign = record.point.origin == Origin::Foreign;
    let mut report = VerifyReport { point: record, files: 0, blobs: 0, bytes: 0, problems: Vec::new() };
    let seen: Mutex<Seen> = Mutex::default();
    let lost = Mutex::new(Vec::new());
    let found = |path: &Path, detail: String| {
        let shown = path.strip_prefix(CONTENT).unwrap_or(path);
        let problem = Problem { path: escape(shown.as_os_str()), kind: ProblemKind::Lost, detail };
        progress.problem(&problem);
        lost.lock().unwrap_or_else(PoisonError::into_inner).push(problem);
    };
    let (send, receive) = std::sync::mpsc::sync_channel::<(PathBuf, Node)>(256);
    let receive = Mutex::new(receive);
    let walked = std::thread::scope(|scope| {
        for _ in 0..backstay_vault::workers() {
            scope.spawn(|| {
                loop {
                    let next = receive.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((path, node)) = next else { return };
                    if cancel.is_cancelled() {
                        continue;
                    }
                    match read_file(reader, &node, &seen) {
                        Ok(bytes) => progress.done(1, bytes),
                        Err(detail) => found(&path, detail),
                    }
                }
            });
        }
        let mut files = 0;
        let walked = walk(reader, root, Path::new(""), true, &mut |path, node| {
            cancel.check()?;
            match node {
                Err(e) => found(path, e.to_string()),
                Ok(node) if node.kind == Some(Kind::File) => {
                    // The manifest and the dumps are read as well, and are no files of the app.
                    files += u64::from(path.starts_with(CONTENT) || foreign);
                    let gone = |_| Error::new(Code::Internal, "The readers have ended");
                    send.send((path.to_owned(), node.clone())).map_err(gone)?;
                }
                Ok(_) => {}
            }
            Ok(true)
        });
        drop(send);
        walked.map(|()| files)
    });
    report.files = walked?;
    cancel.check()?;
    let seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.blobs = u64::try_from(seen.len()).unwrap_or(u64::MAX);
    report.bytes = seen.values().flatten().sum();
    report.problems = lost.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.problems.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(report)
}

/// Reads what a file is made of, each piece once for all files; gives its bytes or why it is lost.
fn read_file(reader: &Reader, node: &Node, seen: &Mutex<Seen>) -> Result<u64, String> {
    let lock = || seen.lock().unwrap_or_else(PoisonError::into_inner);
    let mut total = 0;
    for id in &node.content {
        let known = lock().get(id).cloned();
        let piece = match known {
            Some(known) => known,
            None => {
                let read = reader.blob(BlobKind::Data, id);
                let read = read.map(|b| u64::try_from(b.len()).unwrap_or(0)).map_err(|e| e.to_string());
                lock().insert(*id, read.clone());
                read
            }
        };
        total += piece?;
    }
    if total == node.size {
        Ok(total)
    } else {
        Err(format!("It has {total} bytes and should have {}", node.size))
    }
}
