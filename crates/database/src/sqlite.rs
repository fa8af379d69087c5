//! Files of SQLite: copied while they are in use, and restored beside the one in use.
//!
//! Invariants:
//! * A copy is one state of the database, with every commit that was acknowledged before the call began.
//! * The database is never written to by looking at it or copying it: it is opened for reading only, and nothing that a
//!   crash left behind (a hot journal, a log without readers) is played into it but into a private copy of it.
//! * Everything is opened by its name in a folder that is held open, and no link is followed there. What SQLite has opened
//!   is compared with that before a page is copied.
//! * SQLite runs in a child ([`Child`]): its locks are those of a process and are lost when the same process closes *any*
//!   descriptor of the file, which whoever walks an app's content does all the time.
//! * The same pages give the same copy, to the byte.
//!
//! Two ways lead to a copy. *Live*: one step of the backup API under a read transaction, as any other reader, so writers of
//! a rollback-mode database wait meanwhile. That is safe where it makes no file: in rollback mode, and in WAL mode
//! while `-wal` and `-shm` are there. *Quiet*: where it would make them, or nobody may write there, or a journal is hot,
//! the files are copied as they are, and the copy counts when none of them has changed from before the first byte was read
//! until after the last: that is a moment as a crash would leave it, which SQLite repairs in the private copy.
//!
//! Where stray files cannot be avoided: when the last connection of the app closes between our look at `-wal` and `-shm` and
//! our opening of them, an empty `-wal` and a `-shm` stay. They say nothing and the next connection removes them.
//!
//! Crash story: a kill leaves nothing but files whose names begin with the target's. Locks: SQLite's shared lock, in the child,
//! for as long as pages are copied.

mod child;
mod content;
mod copy;
mod exchange;
mod linked;
mod place;

use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_model::{Code, Error, Result};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::adapter::{Hashes, Options, TableRecord};
use crate::tool::{self, Ended, Limits, Program};
pub use child::main as child_main;
pub use linked::Sqlite;
use place::Place;
pub use place::siblings;

/// The word by which the program is told to be the child.
pub const CHILD_WORD: &str = "internal-sqlite";
/// How every file of SQLite begins.
const MAGIC: &[u8; 16] = b"SQLite format 3\0";
/// What to do about a file that SQLite cannot read.
const UNUSABLE: &str = "See which program made the file. An encrypted database can be read by its app only, and is copied \
                        reliably only while that is stopped.";
/// Longest report of a child: some hundred thousand tables.
const REPORT_MAX: usize = 64 << 20;

/// Whether a file that begins with these bytes (16 are enough) is a database of SQLite.
#[must_use]
pub fn is_database(first_bytes: &[u8]) -> bool {
    first_bytes.starts_with(MAGIC)
}

/// How the child is started: a program that calls [`child_main`] with what stands behind `args`.
#[derive(Clone, Debug)]
pub struct Child {
    /// The program.
    pub program: PathBuf,
    /// What makes it call [`child_main`].
    pub args: Vec<OsString>,
}

impl Default for Child {
    /// This program itself, with [`CHILD_WORD`].
    fn default() -> Self {
        Child { program: "/proc/self/exe".into(), args: vec![CHILD_WORD.into()] }
    }
}

/// How a database guards its commits, as its header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Journal {
    /// A rollback journal: who reads makes writers wait.
    Rollback,
    /// A write-ahead log: nobody waits.
    Wal,
}

/// How a copy was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Beside its users, as one of them.
    Live,
    /// As plain files that stood still meanwhile.
    Quiet,
}

/// What is known of a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Every commit that was acknowledged before is in the copy.
    pub taken: Timestamp,
    /// How it was made.
    pub way: Way,
    /// Bytes of the copy.
    pub bytes: u64,
    /// SHA-256 of the copy.
    pub sha256: String,
    /// What is in it.
    #[serde(flatten)]
    pub content: Content,
}

/// What is in a file of SQLite that nobody uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Bytes of a page.
    pub page_size: u32,
    /// Pages.
    pub pages: u64,
    /// Its journal.
    pub journal: Journal,
    /// What is wrong with it; none where it is whole. Tables are missing here when they cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
    /// Rows that refer to others which are not there; counted by full checks only.
    #[serde(default)]
    pub dangling: u64,
    /// Its tables.
    pub tables: Vec<TableRecord>,
    /// A hash of its structure.
    pub schema_hash: String,
    /// What a person should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Makes `target`, which must not exist, a consistent copy of the database `source`. Its folder should be private: names that
/// begin with the target's are used there too. The folder of the source is opened as the system resolves its path, so
/// whoever has it open already gives `/proc/self/fd/N/name`; the file itself must be no link.
///
/// Waits `options.lock_wait` for a database that is locked, then ends with `DatabaseLockTimeout`. What is no database, or is
/// encrypted, is `DatabaseDumpUnusable`. A damaged database is copied as far as its pages can be read and told in
/// [`Content::damage`].
pub fn snapshot(source: &Path, target: &Path, child: &Child, options: &Options) -> Result<SnapshotRecord> {
    snapshot_at(&Place::open(source)?, target, child, options)
}

fn snapshot_at(source: &Place, target: &Path, child: &Child, options: &Options) -> Result<SnapshotRecord> {
    let target = std::path::absolute(target)
        .map_err(|e| Error::new(Code::System, "Cannot find the folder of a copy").because(e))?;
    let wait = options.lock_wait.as_millis().to_string();
    let words = ["snapshot".into(), target.into_os_string(), wait.into(), word(options.hashes).into()];
    ask(source, &words, child, options)
}

/// Reads a file that nobody uses and checks it from its first page to its last.
fn check(file: &Place, hashes: Hashes, child: &Child, options: &Options) -> Result<Content> {
    ask(file, &["check".into(), word(hashes).into()], child, options)
}

/// Starts a child for a file, and waits for its report.
fn ask<T: DeserializeOwned>(file: &Place, words: &[OsString], child: &Child, options: &Options) -> Result<T> {
    options.cancel.check()?;
    let mut program = Program::new(&child.program);
    program.args(&child.args);
    let folder = program.inherit(file.folder())?;
    program.arg(folder).arg(file.name()).args(words);
    // It has much to do that it says nothing about; a sign of life comes each second while it does.
    let idle = options.idle.max(Duration::from_secs(10)) + options.lock_wait;
    let limits = Limits { cancel: options.cancel.clone(), idle };
    let mut output = program.output(&limits, Box::new(died))?;
    let mut said = Vec::new();
    let mut block = vec![0; 64 << 10];
    loop {
        match output.read(&mut block) {
            Ok(0) => break,
            Ok(read) if said.len() < REPORT_MAX => {
                said.extend_from_slice(block.get(..read).unwrap_or_default());
            }
            Ok(_) => return Err(Error::new(Code::DatabaseFailed, "It says more than can be taken")),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(tool::inner(e)),
        }
    }
    child::report(&said).map_err(|e: Error| {
        let e = e.context(format!("`{}`", file.path().display()));
        match e.code() {
            Code::DatabaseDumpUnusable => e.advise(UNUSABLE),
            _ => e,
        }
    })
}

fn died(ended: &Ended) -> Error {
    let message = format!("The process that reads the database ended with {}", ended.status_text());
    Error::new(Code::DatabaseInterrupted, message)
}

fn word(hashes: Hashes) -> &'static str {
    match hashes {
        Hashes::None => "none",
        Hashes::Affordable => "affordable",
        Hashes::All => "all",
    }
}
