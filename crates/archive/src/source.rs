//! What goes into an archive, from wherever it comes: a living home, a point of the vault, a dump.
//!
//! Invariants: a source gives its items in the order in which they are to stand in the archive, folders before what is in
//! them, the first name of a file before its further ones. Content is opened by the thread that packs it, not by the one
//! that walks, and may be opened again when it changed while it was read.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use backstay_model::{Error, Problem, ProblemKind, Result};
use backstay_tree::fs::{FileTime, Kind};

/// Everything about an item but its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Details {
    /// Permission bits (`0o7777`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Name of the owner, where known.
    pub user: Option<Arc<str>>,
    /// Name of the group, where known.
    pub group: Option<Arc<str>>,
    /// Last change of the content.
    pub mtime: FileTime,
    /// Extended attributes, POSIX ACLs among them, sorted by name.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
}

impl From<&backstay_tree::Metadata> for Details {
    fn from(from: &backstay_tree::Metadata) -> Self {
        Details {
            mode: from.stat.mode,
            uid: from.stat.uid,
            gid: from.stat.gid,
            user: from.user.clone(),
            group: from.group.clone(),
            mtime: from.stat.mtime,
            xattrs: from.xattrs.clone(),
        }
    }
}

/// One thing that goes into an archive.
#[derive(Debug)]
pub enum Item {
    /// An entry of the home.
    Tree(TreeItem),
    /// Something that lies beside the home in the archive: a dump, the settings.
    Root(RootItem),
}

/// An entry of the home.
#[derive(Debug)]
pub struct TreeItem {
    /// Its path below the home; empty for the home itself.
    pub path: PathBuf,
    /// What it is.
    pub what: What,
    /// Whether the same file has other names in the home.
    pub names: Names,
}

/// The names of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    /// It has one.
    One,
    /// This is the first of several.
    First,
    /// This is a further one; the path is the first one.
    Further(PathBuf),
}

/// What an entry of the home is.
#[derive(Debug)]
pub enum What {
    /// A folder.
    Folder(Details),
    /// A regular file.
    File {
        /// Bytes it had when it was listed: decides how it is packed.
        size: u64,
        /// Opens it.
        content: Box<dyn Content>,
    },
    /// A symbolic link and where it points.
    Symlink(OsString, Details),
    /// A FIFO or a device (kind and number).
    Special(Kind, u64, Details),
}

/// Something that lies beside the home in the archive.
#[derive(Debug)]
pub struct RootItem {
    /// Its name there (see [`crate::root_name`]).
    pub name: String,
    /// Its time.
    pub mtime: FileTime,
    /// Opens it. The size need not be known.
    pub content: Box<dyn Content>,
}

/// Why an item could not be read.
#[derive(Debug)]
pub enum Failure {
    /// It alone is affected.
    Item(ProblemKind, String),
    /// The whole work ends.
    Fatal(Error),
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Failure::Fatal(e)
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        Failure::Item(ProblemKind::Unreadable, e.to_string())
    }
}

/// Content that can be opened, several times if need be.
pub trait Content: Send + std::fmt::Debug {
    /// Opens it.
    fn open(&self) -> Result<Opened, Failure>;
}

/// Content that has been opened.
#[derive(Debug)]
pub struct Opened {
    /// What it is now; none for items of the root.
    pub details: Option<Details>,
    /// Most bytes that will be read, where that is known: what grew is taken at this length.
    pub size: Option<u64>,
    /// The ranges `[start, end)` that hold data, for files with holes.
    pub sparse: Option<Vec<(u64, u64)>>,
    /// Whether it is still the file that was listed: if not, it is no further name of another one.
    pub same: bool,
    /// Its bytes.
    pub reader: Box<dyn Reader>,
}

/// How content compares with what it was when it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steadiness {
    /// The same.
    Steady,
    /// Only longer.
    Grew,
    /// Something else.
    Changed,
}

/// Bytes that are read once, from the first to the last.
pub trait Reader: Send + std::fmt::Debug {
    /// Fills `buf` as far as there are bytes; fewer than asked for only at the end.
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, Failure>;

    /// Asked after the last byte, with the number of bytes read.
    fn steadiness(&mut self, read: u64) -> Steadiness {
        let _ = read;
        Steadiness::Steady
    }
}

/// Where a source puts what it finds.
pub trait Sink {
    /// The next item.
    fn item(&mut self, item: Item) -> Result<()>;
    /// Something about a path that a person should know.
    fn problem(&mut self, problem: Problem);
    /// An error when the work was asked to stop.
    fn check(&self) -> Result<()>;
}

/// Something that goes into an archive.
pub trait Source: Sync {
    /// Gives all items. An error ends the work.
    fn walk(&self, sink: &mut dyn Sink) -> Result<()>;
}

/// A stream of unknown length that goes into the root of an archive: a dump while it is made.
pub struct Stream<R> {
    name: String,
    mtime: FileTime,
    reader: Arc<parking_lot::Mutex<Option<R>>>,
}

impl<R: io::Read + Send + 'static> Stream<R> {
    /// Takes what `reader` gives, once, as the entry `name`.
    pub fn new(name: impl Into<String>, mtime: FileTime, reader: R) -> Self {
        Stream { name: name.into(), mtime, reader: Arc::new(parking_lot::Mutex::new(Some(reader))) }
    }
}

impl<R: io::Read + Send + 'static> Source for Stream<R> {
    fn walk(&self, sink: &mut dyn Sink) -> Result<()> {
        let content = Box::new(Once(Arc::clone(&self.reader)));
        sink.item(Item::Root(RootItem { name: self.name.clone(), mtime: self.mtime, content }))
    }
}

struct Once<R>(Arc<parking_lot::Mutex<Option<R>>>);

impl<R> std::fmt::Debug for Once<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a stream")
    }
}

impl<R: io::Read + Send + 'static> Content for Once<R> {
    fn open(&self) -> Result<Opened, Failure> {
        let reader = self.0.lock().take();
        let reader = reader.ok_or_else(|| io::Error::other("a stream can be read only once"))?;
        let reader = Box::new(Plain(reader));
        Ok(Opened { details: None, size: None, sparse: None, same: true, reader })
    }
}

struct Plain<R>(R);

impl<R> std::fmt::Debug for Plain<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a stream")
    }
}

impl<R: io::Read + Send> Reader for Plain<R> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, Failure> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.0.read(rest) {
                Ok(0) => break,
                Ok(more) => done += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(done)
    }
}
