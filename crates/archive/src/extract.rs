//! Writing the home of an archive beneath a folder.
//!
//! Invariants: everything is written by handles beneath the target ([`backstay_tree::beneath`]), names that exist are
//! never replaced. Folders are private (0700) while the work runs and get their own mode and times last, the deepest
//! first. Under a file's name there is the whole, checked content or nothing when this returns; killed in between, a
//! private part of one file may be there. Nothing is synced, nothing is locked: the caller owns the target.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use backstay_model::{Cancel, Code, Counts, Error, Problem, ProblemKind, Progress, Result};
use backstay_tree::beneath::{Root, writing};
use backstay_tree::metadata::{self, Wanted};

use crate::bytes::Forward;
use crate::contents::{Contents, Node};
use crate::inflate::Unpacker;
use crate::record::{Record, RecordKind};
use crate::worker::problem;

/// Folders that are kept open.
const OPEN: usize = 16;

/// What is written and what became of it.
#[derive(Debug, Default)]
pub struct Extracted {
    /// Files and their bytes.
    pub counts: Counts,
    /// What a person should know.
    pub problems: Vec<Problem>,
}

impl Contents {
    /// Writes everything for which `select` says so (of a folder: itself, not what is in it) beneath `root`. What could
    /// not be written is in the result; an error ends the work: a full disk, an archive that has changed since it was
    /// looked at.
    pub fn extract(
        &self,
        root: &Root,
        select: &dyn Fn(&Record) -> bool,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Extracted> {
        let selected: Vec<&Node> = self.nodes().iter().filter(|node| select(&node.record)).collect();
        let mut work = Work {
            contents: self,
            root,
            progress,
            cancel,
            handles: Vec::new(),
            lost: HashSet::new(),
            done: Extracted::default(),
        };
        work.folders(&selected)?;
        work.files(&selected)?;
        work.others(&selected)?;
        work.links(&selected)?;
        work.finish_folders(&selected)?;
        Ok(work.done)
    }
}

struct Work<'w> {
    contents: &'w Contents,
    root: &'w Root,
    progress: &'w dyn Progress,
    cancel: &'w Cancel,
    /// The folders that were used last.
    handles: Vec<(PathBuf, OwnedFd)>,
    /// Folders that could not be made, and files that are not there.
    lost: HashSet<PathBuf>,
    done: Extracted,
}

impl Work<'_> {
    fn tell(&mut self, path: &Path, kind: ProblemKind, detail: impl Into<String>) {
        let problem = problem(path, kind, detail);
        self.progress.problem(&problem);
        self.done.problems.push(problem);
    }

    /// What could not be written is told; a full disk ends the work.
    fn failed(&mut self, path: &Path, what: &str, e: io::Error) -> Result<()> {
        let cause = e.to_string();
        let error = writing(&format!("Cannot {what}"), &self.root.path().join(path), e);
        let kind = match error.code() {
            Code::TargetFull => return Err(error),
            Code::UnsafePath => ProblemKind::Unsafe,
            _ => ProblemKind::Unwritable,
        };
        self.lost.insert(path.to_owned());
        self.tell(path, kind, format!("Cannot {what}: {cause}"));
        Ok(())
    }

    fn told_metadata(&mut self, path: &Path, problems: Vec<metadata::Problem>) {
        for problem in problems {
            self.tell(path, ProblemKind::Metadata, problem.to_string());
        }
    }

    /// Whether the folder of a path is there; else nothing below it is tried.
    fn is_reachable(&mut self, path: &Path) -> bool {
        let lost = path.parent().is_some_and(|folder| self.lost.contains(folder));
        if lost {
            self.lost.insert(path.to_owned());
        }
        !lost
    }

    fn folder(&mut self, path: &Path) -> io::Result<BorrowedFd<'_>> {
        let at = match self.handles.iter().rposition(|(open, _)| open == path) {
            Some(at) => at,
            None => {
                let handle = self.root.open_dir(path).map_err(into_io)?;
                if self.handles.len() == OPEN {
                    self.handles.remove(0);
                }
                self.handles.push((path.to_owned(), handle));
                self.handles.len() - 1
            }
        };
        let found = self.handles.get(at).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(found.1.as_fd())
    }

    /// The folder of an entry and its name in it.
    fn place<'p>(&mut self, path: &'p Path) -> io::Result<(BorrowedFd<'_>, &'p OsStr)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        Ok((self.folder(path.parent().unwrap_or(Path::new("")))?, name))
    }

    fn folders(&mut self, nodes: &[&Node]) -> Result<()> {
        for node in nodes.iter().filter(|n| n.record.kind == RecordKind::Folder) {
            self.cancel.check()?;
            let path = &node.record.path;
            if path.as_os_str().is_empty() || !self.is_reachable(path) {
                continue;
            }
            let made = match self.root.make_dirs(path.parent().unwrap_or(Path::new(""))) {
                Ok(folder) => match path.file_name() {
                    Some(name) => self.root.fs().create_dir(folder.as_fd(), name),
                    None => Err(io::ErrorKind::InvalidInput.into()),
                },
                Err(e) => Err(into_io(e)),
            };
            match made {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && self.folder(path).is_ok() => {}
                Err(e) => self.failed(path, "make the folder and all that is in it", e)?,
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn files(&mut self, nodes: &[&Node]) -> Result<()> {
        let is_file = |n: &&&Node| n.record.kind == RecordKind::File && n.record.link.is_none();
        let mut files: Vec<&Node> = nodes.iter().filter(is_file).copied().collect();
        files.sort_by_key(|node| self.contents.place(node));
        let contents = self.contents;
        let mut from = contents.forward();
        let mut unpacker = Unpacker::new();
        for node in files {
            self.cancel.check()?;
            if self.is_reachable(&node.record.path) {
                self.file(node, &mut from, &mut unpacker)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, node: &Node, from: &mut Forward<'_>, unpacker: &mut Unpacker) -> Result<()> {
        let record = &node.record;
        if record.incomplete {
            self.lost.insert(record.path.clone());
            self.tell(&record.path, ProblemKind::Lost, "It could not be read to its end when it was saved");
            return Ok(());
        }
        if let Some(folder) = record.path.parent()
            && let Err(e) = self.root.make_dirs(folder)
        {
            return self.failed(&record.path, "write it", into_io(e));
        }
        let (contents, root) = (self.contents, self.root);
        let fs = &**root.fs();
        let (dir, name) = match self.place(&record.path) {
            Ok(place) => place,
            Err(e) => return self.failed(&record.path, "write it", e),
        };
        let file = match fs.create_file(dir, name) {
            Ok(file) => file,
            Err(e) => return self.failed(&record.path, "write it", e),
        };
        let mut writer = FileWriter { root, file: &file, record, at: 0, error: None };
        let read = contents.read_with(from, unpacker, node, &mut |bytes| writer.take(bytes));
        let error = writer.error.take();
        let written = match (error, read) {
            (Some(e), _) => Err(e),
            (None, Ok(())) => writer.finish(),
            (None, Err(e)) => {
                fs.unlink(dir, name).ok();
                return Err(e);
            }
        };
        if let Err(e) = written {
            fs.unlink(dir, name).ok();
            return self.failed(&record.path, "write it", e);
        }
        let problems = metadata::apply(fs, file.as_fd(), &wanted(record));
        self.told_metadata(&record.path, problems);
        self.done.counts.files += 1;
        self.done.counts.bytes += record.size;
        self.progress.done(1, record.size);
        Ok(())
    }

    /// Symbolic links, FIFOs, devices.
    fn others(&mut self, nodes: &[&Node]) -> Result<()> {
        let is_other = |n: &&&Node| {
            !matches!(n.record.kind, RecordKind::File | RecordKind::Folder) && n.record.link.is_none()
        };
        for node in nodes.iter().filter(is_other) {
            self.cancel.check()?;
            let record = &node.record;
            if !self.is_reachable(&record.path) {
                continue;
            }
            let root = self.root;
            let fs = &**root.fs();
            let made = self.place(&record.path).and_then(|(dir, name)| {
                match (&record.target, record.kind) {
                    (Some(target), RecordKind::Symlink) => fs.symlink(target, dir, name)?,
                    (_, kind) => fs.make_node(dir, name, kind.kind(), record.device)?,
                }
                Ok(metadata::apply_at(fs, dir, name, &wanted(record)))
            });
            match made {
                Ok(problems) => self.told_metadata(&record.path, problems),
                Err(e) => self.failed(&record.path, "make it", e)?,
            }
        }
        Ok(())
    }

    /// Further names. Where the first one was not selected, the content is written once more.
    fn links(&mut self, nodes: &[&Node]) -> Result<()> {
        let mut unpacker = Unpacker::new();
        for node in nodes.iter().filter(|n| n.record.link.is_some()) {
            self.cancel.check()?;
            let record = &node.record;
            let Some(first) = record.link.as_deref().filter(|_| self.is_reachable(&record.path)) else {
                continue;
            };
            if self.lost.contains(first) {
                let why = format!(
                    "It is another name of {}, which is not restored",
                    backstay_tree::path::escape(first.as_os_str())
                );
                self.tell(&record.path, ProblemKind::Lost, why);
                continue;
            }
            match self.link(first, &record.path) {
                Ok(()) if record.kind == RecordKind::File => {
                    self.done.counts.files += 1;
                    self.progress.done(1, 0);
                }
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound && record.kind == RecordKind::File => {
                    let mut from = self.contents.forward();
                    self.file(node, &mut from, &mut unpacker)?;
                }
                Err(e) => self.failed(&record.path, "link it", e)?,
            }
        }
        Ok(())
    }

    fn link(&mut self, first: &Path, path: &Path) -> io::Result<()> {
        let root = self.root;
        let (dir, first) = self.place(first)?;
        let from = dir.try_clone_to_owned()?;
        let (to, name) = self.place(path)?;
        root.fs().link(from.as_fd(), first, to, name)
    }

    fn finish_folders(&mut self, nodes: &[&Node]) -> Result<()> {
        self.handles.clear();
        for node in nodes.iter().rev().filter(|n| n.record.kind == RecordKind::Folder) {
            self.cancel.check()?;
            let record = &node.record;
            if self.lost.contains(&record.path) {
                continue;
            }
            match self.root.open_dir(&record.path) {
                Ok(handle) => {
                    let problems = metadata::apply(&**self.root.fs(), handle.as_fd(), &wanted(record));
                    self.told_metadata(&record.path, problems);
                }
                Err(e) => self.failed(&record.path, "set the metadata", into_io(e))?,
            }
        }
        Ok(())
    }
}

/// The system's error within one of ours.
fn into_io(e: Error) -> io::Error {
    let kind = std::error::Error::source(&e).and_then(|s| s.downcast_ref::<io::Error>());
    match kind.and_then(io::Error::raw_os_error) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::other(e),
    }
}

fn wanted(record: &Record) -> Wanted<'_> {
    let details = &record.details;
    Wanted {
        uid: details.uid,
        gid: details.gid,
        mode: details.mode,
        mtime: details.mtime,
        xattrs: &details.xattrs,
    }
}

/// Writes content, but not its holes. What is no hole after all, having bytes that are not zero, is written too.
struct FileWriter<'f> {
    root: &'f Root,
    file: &'f OwnedFd,
    record: &'f Record,
    at: u64,
    error: Option<io::Error>,
}

impl FileWriter<'_> {
    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        if let Err(e) = self.put(bytes) {
            self.error = Some(e);
            return Err(Error::new(Code::RestoreIncomplete, "A file cannot be written"));
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let fs = self.root.fs();
        let end = self.at + bytes.len() as u64;
        let Some(extents) = &self.record.sparse else {
            fs.write_at(self.file.as_fd(), bytes, self.at)?;
            self.at = end;
            return Ok(());
        };
        let start = self.at;
        let part = |from: u64, to: u64| {
            let range = usize::try_from(from - start).ok().zip(usize::try_from(to - start).ok());
            range.and_then(|(from, to)| bytes.get(from..to)).unwrap_or_default()
        };
        let first = extents.partition_point(|(_, extent_end)| *extent_end <= start);
        let cut = extents.get(first..).unwrap_or_default().iter().take_while(|(s, _)| *s < end);
        let mut at = start;
        for (from, to) in cut.map(|(s, e)| ((*s).max(start), (*e).min(end))).chain([(end, end)]) {
            if part(at, from).iter().any(|byte| *byte != 0) {
                fs.write_at(self.file.as_fd(), part(at, from), at)?;
            }
            if to > from {
                fs.write_at(self.file.as_fd(), part(from, to), from)?;
            }
            at = to;
        }
        self.at = end;
        Ok(())
    }

    fn finish(self) -> io::Result<()> {
        if self.record.sparse.is_some() {
            self.root.fs().truncate(self.file.as_fd(), self.record.size)?;
        }
        Ok(())
    }
}
