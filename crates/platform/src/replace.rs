//! Texts that are replaced in the files of a new app made from a point: host names, paths.
//!
//! Invariants: only regular files beneath the folder are touched, through handles; no link is followed, no mount is
//! entered. A file is written anew beside the old one, with its metadata, synced, and takes its name: killed at any
//! moment, each file is as before or as wanted, and running it again goes on. Binary files, files with several hard
//! links and files larger than [`FILE_MAX`] are left as they are, and told.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_model::app::Replace;
use backstay_model::{Cancel, Code, Error, Result};
use backstay_tree::beneath::{Root, writing};
use backstay_tree::fs::{FileSystem, Kind, Rename, Stat};
use backstay_tree::metadata::{self, Wanted};
use backstay_tree::path::escape;
use backstay_tree::{Exclusions, open_folder, open_regular, scan};
use globset::{GlobBuilder, GlobMatcher};
use serde::Serialize;

/// The largest file that is changed, in bytes.
const FILE_MAX: u64 = 16 * 1024 * 1024;
/// How deep folders are looked into.
const DEPTH_MAX: usize = 512;
const TEMPORARY: &str = ".backstay-replace";

/// The name and home of an app, which stand for `{app}` and `{home}` in a rule.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// Its name.
    pub app: &'a str,
    /// Its home.
    pub home: &'a str,
}

impl Names<'_> {
    fn fill(&self, text: &str) -> String {
        text.replace("{app}", self.app).replace("{home}", self.home)
    }
}

/// What became of one file that a rule names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Replaced {
    /// The file, relative to the folder, escaped.
    pub path: String,
    /// How many texts were replaced in it.
    pub count: u64,
    /// Why it was left as it is, where it was.
    pub left: Option<String>,
}

struct Rule {
    file: GlobMatcher,
    from: Vec<u8>,
    to: Vec<u8>,
}

struct Work<'a> {
    fs: &'a dyn FileSystem,
    device: u64,
    rules: Vec<Rule>,
    cancel: &'a Cancel,
    found: Vec<Replaced>,
}

/// Applies rules to the files of a folder that is not in use yet. A rule that matches no file is told with an empty
/// count and the rule's own file as path.
pub fn replace(
    fs: &Arc<dyn FileSystem>,
    folder: &Path,
    rules: &[Replace],
    (from, to): (Names<'_>, Names<'_>),
    cancel: &Cancel,
) -> Result<Vec<Replaced>> {
    if rules.is_empty() {
        return Ok(Vec::new());
    }
    let compiled = rules.iter().map(|rule| compile(rule, from, to)).collect::<Result<Vec<_>>>()?;
    let root = Root::open(Arc::clone(fs), folder)?;
    let mut work = Work { fs: &**fs, device: root.device(), rules: compiled, cancel, found: Vec::new() };
    let top = root.handle().try_clone_to_owned();
    let top = top.map_err(|e| writing("Cannot open", folder, e))?;
    work.folder(top, Path::new(""), folder, 0)?;
    for (rule, compiled) in rules.iter().zip(&work.rules) {
        let is_matched = |r: &Replaced| {
            backstay_tree::path::unescape(&r.path).is_some_and(|path| compiled.file.is_match(path))
        };
        if !work.found.iter().any(is_matched) {
            let left = Some("no such file".to_owned());
            work.found.push(Replaced { path: rule.file.clone(), count: 0, left });
        }
    }
    Ok(work.found)
}

fn compile(rule: &Replace, from: Names<'_>, to: Names<'_>) -> Result<Rule> {
    let glob = GlobBuilder::new(&rule.file).literal_separator(true).backslash_escape(true).build();
    let glob = glob.map_err(|e| {
        Error::new(Code::InvalidValue, format!("`{}` is not a pattern of files", rule.file))
            .because(e.to_string())
    })?;
    let looked_for = from.fill(&rule.from).into_bytes();
    if looked_for.is_empty() {
        return Err(Error::new(Code::InvalidValue, "The text that a rule looks for is empty"));
    }
    Ok(Rule { file: glob.compile_matcher(), from: looked_for, to: to.fill(&rule.to).into_bytes() })
}

impl Work<'_> {
    fn folder(&mut self, dir: OwnedFd, path: &Path, base: &Path, depth: usize) -> Result<()> {
        self.cancel.check()?;
        let shown = base.join(path);
        let listing = scan(self.fs, dir.as_fd(), &Exclusions::new(), self.device)
            .map_err(|e| writing("Cannot read", &shown, e))?;
        for entry in listing.entries {
            let inner = path.join(&entry.name);
            let failed = |e: io::Error| writing("Cannot change", &base.join(&inner), e);
            match entry.stat.kind {
                Kind::Dir if depth < DEPTH_MAX => {
                    let (next, _) =
                        open_folder(self.fs, dir.as_fd(), &entry.name, self.device).map_err(failed)?;
                    self.folder(next, &inner, base, depth + 1)?;
                }
                Kind::File if self.rules.iter().any(|r| r.file.is_match(&inner)) => {
                    let became = self.file(dir.as_fd(), &entry.name, &inner).map_err(failed)?;
                    self.found.push(became);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn file(&self, dir: BorrowedFd<'_>, name: &OsStr, path: &Path) -> io::Result<Replaced> {
        let told = |count, left: Option<&str>| Replaced {
            path: escape(path.as_os_str()),
            count,
            left: left.map(str::to_owned),
        };
        let (file, stat) = open_regular(self.fs, dir, name, self.device)?;
        if stat.size > FILE_MAX {
            return Ok(told(0, Some("larger than 16 MiB")));
        }
        if stat.links > 1 {
            return Ok(told(0, Some("it has several hard links")));
        }
        let mut old = vec![0; usize::try_from(stat.size).unwrap_or(0)];
        let length = self.fs.read_at(file.as_fd(), &mut old, 0)?;
        old.truncate(length);
        if old.contains(&0) {
            return Ok(told(0, Some("it is not a text")));
        }
        let mut count = 0;
        let mut new = old;
        for rule in self.rules.iter().filter(|r| r.file.is_match(path)) {
            let (changed, times) = substitute(&new, &rule.from, &rule.to);
            new = changed;
            count += times;
        }
        if count > 0 {
            self.write(dir, name, &file, &stat, &new)?;
        }
        Ok(told(count, None))
    }

    fn write(
        &self,
        dir: BorrowedFd<'_>,
        name: &OsStr,
        old: &OwnedFd,
        stat: &Stat,
        bytes: &[u8],
    ) -> io::Result<()> {
        let temporary = OsString::from(TEMPORARY);
        match self.fs.unlink(dir, &temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let xattrs = self.fs.xattrs(old.as_fd())?;
        let file = self.fs.create_file(dir, &temporary)?;
        let fill = || {
            self.fs.write_at(file.as_fd(), bytes, 0)?;
            let wanted =
                Wanted { uid: stat.uid, gid: stat.gid, mode: stat.mode, xattrs: &xattrs, mtime: stat.mtime };
            let problem = metadata::apply(self.fs, file.as_fd(), &wanted).into_iter().next();
            problem.map_or(Ok(()), |p| Err(p.error))?;
            self.fs.sync(file.as_fd())?;
            self.fs.rename(dir, &temporary, dir, name, Rename::Replace)?;
            self.fs.sync(dir)
        };
        fill().inspect_err(|_| {
            // Best effort: what stays is removed by the next try.
            let _stays = self.fs.unlink(dir, &temporary);
        })
    }
}

/// Replaces every occurrence, from the left; gives how many there were.
fn substitute(text: &[u8], from: &[u8], to: &[u8]) -> (Vec<u8>, u64) {
    let mut out = Vec::with_capacity(text.len());
    let (mut rest, mut count) = (text, 0);
    while let Some((first, after)) = rest.split_first() {
        if let Some(tail) = rest.strip_prefix(from) {
            out.extend_from_slice(to);
            (rest, count) = (tail, count + 1);
        } else {
            out.push(*first);
            rest = after;
        }
    }
    (out, count)
}

/// The files that were changed, for a sentence: "3 texts in 2 files".
impl Replaced {
    /// Whether the file is as the rules want it.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.left.is_none()
    }

    /// The path as it is on disk.
    #[must_use]
    pub fn on_disk(&self) -> Option<PathBuf> {
        backstay_tree::path::unescape(&self.path).map(PathBuf::from)
    }
}
