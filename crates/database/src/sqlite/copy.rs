//! In the child: the copy itself. The folder of the database is the current one.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use backstay_model::{Code, Error, Result};
use jiff::Timestamp;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, ffi};
use rustix::fs::{CWD, Stat};
use sha2::{Digest as _, Sha256};

use super::place::{ENDINGS, look, open, with};
use super::{Journal, SnapshotRecord, Way, content, is_database};
use crate::adapter::Hashes;

/// Two changes of a file that are further apart than this have different times: the kernel's clock ticks at least each 10 ms.
const TICK: Duration = Duration::from_millis(25);

/// How a try ended that is not the last one.
enum Try {
    Done(Timestamp),
    /// The files changed under it, or SQLite would have to write there: why.
    Again(String),
}

/// Copies the database of that name, and reads the copy.
pub(super) fn snapshot(name: &Path, target: &Path, wait: Duration, hashes: Hashes) -> Result<SnapshotRecord> {
    if target.symlink_metadata().is_ok() {
        return Err(Error::new(Code::InvalidValue, "There is something in the place of its copy"));
    }
    let source = Source::new(name)?;
    let (taken, way) = source.copy(target, wait)?;
    let read = content::read(target, hashes, content::Depth::Quick)
        .and_then(|content| sum(target).map(|(bytes, sha256)| (content, bytes, sha256)));
    match read {
        Ok((content, bytes, sha256)) => Ok(SnapshotRecord { taken, way, bytes, sha256, content }),
        Err(e) => {
            remove(target);
            Err(e)
        }
    }
}

struct Source {
    name: PathBuf,
    /// By the real path of the folder, in which there is no link.
    absolute: PathBuf,
    /// What was open when the process began.
    inherited: BTreeSet<OsString>,
}

impl Source {
    fn new(name: &Path) -> Result<Self> {
        let folder = std::env::current_dir()
            .map_err(|e| Error::new(Code::DatabaseFailed, "Its folder has no path").because(e))?;
        let inherited = open_files().into_iter().collect();
        Ok(Source { name: name.to_owned(), absolute: folder.join(name), inherited })
    }

    fn copy(&self, target: &Path, wait: Duration) -> Result<(Timestamp, Way)> {
        let until = Instant::now() + wait;
        let mut live_fails = false;
        loop {
            let journal = self.journal()?;
            let seen = self.seen()?;
            let users = seen.wal.is_some() && seen.shm;
            let way = match journal {
                _ if live_fails => Way::Quiet,
                Journal::Wal if !users => Way::Quiet,
                _ => Way::Live,
            };
            let left = until.saturating_duration_since(Instant::now());
            let tried = match way {
                Way::Live => self.live(target, left),
                Way::Quiet => self.quiet(target),
            };
            let why = match tried {
                Ok(Try::Done(taken)) => return Ok((taken, way)),
                Ok(Try::Again(why)) => why,
                Err(e) => {
                    remove(target);
                    return Err(e);
                }
            };
            remove(target);
            live_fails = way == Way::Live;
            if Instant::now() >= until {
                let message =
                    format!("It is written to all the time, and cannot be read beside that ({why})");
                return Err(Error::new(Code::DatabaseLockTimeout, message));
            }
        }
    }

    /// The journal as the header says.
    fn journal(&self) -> Result<Journal> {
        let mut first = Vec::new();
        open(CWD, self.name.as_os_str())
            .and_then(|file| match file.metadata()?.is_file() {
                true => file.take(100).read_to_end(&mut first),
                false => Err(io::Error::other("it is no regular file")),
            })
            .map_err(|e| unreadable(&e))?;
        if !is_database(&first) {
            return Err(unusable("It is no database of SQLite, or an encrypted one"));
        }
        Ok(if first.get(18..20) == Some(&[2, 2]) { Journal::Wal } else { Journal::Rollback })
    }

    /// As one more reader.
    fn live(&self, target: &Path, wait: Duration) -> Result<Try> {
        let taken = Timestamp::now();
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let begin = || {
            let from = Connection::open_with_flags(&self.absolute, flags)?;
            // Who closes last writes the log into the database otherwise.
            from.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            from.busy_timeout(wait)?;
            from.execute_batch("BEGIN")?;
            // Begins to read without a look at the tables, which may be damaged.
            from.query_row("PRAGMA schema_version", (), |row| row.get::<_, i64>(0))?;
            Ok(from)
        };
        let from = match begin() {
            Ok(from) => from,
            Err(e) if wants_to_write(&e) => return Ok(Try::Again(e.to_string())),
            Err(e) => return Err(failed(&e)),
        };
        self.only_these_are_open()?;
        let mut to = create(target)?;
        step(&from, &mut to)?;
        Ok(Try::Done(taken))
    }

    /// As files that stand still.
    fn quiet(&self, target: &Path) -> Result<Try> {
        let changed = || Ok(Try::Again("its files change".to_owned()));
        let Some((taken, before)) = self.settled()? else { return changed() };
        if before.wal.is_none_or(|s| s.size == 0) && before.journal.is_none_or(|s| s.size == 0) {
            let from = open_immutable(&self.absolute).map_err(|e| failed(&e))?;
            self.only_these_are_open()?;
            let copied = create(target).and_then(|mut to| step(&from, &mut to));
            if self.seen()?.without_index() != before.without_index() {
                return changed();
            }
            return copied.map(|()| Try::Done(taken));
        }
        let private = Private::new(target);
        private.fill(&self.name).map_err(|e| unreadable(&e))?;
        if self.seen()?.without_index() != before.without_index() {
            return changed();
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        // Here the journal is rolled back, or the log read.
        let from = Connection::open_with_flags(&private.main, flags).map_err(|e| failed(&e))?;
        step(&from, &mut create(target)?)?;
        Ok(Try::Done(taken))
    }

    /// The files as they are, when their last change is so long ago that the next one must be seen; and the time then.
    fn settled(&self) -> Result<Option<(Timestamp, Seen)>> {
        let now = Timestamp::now();
        let first = self.seen()?;
        if first.without_index().iter().flatten().all(|stamp| stamp.is_before(now)) {
            return Ok(Some((now, first)));
        }
        std::thread::sleep(TICK);
        let now = Timestamp::now();
        let second = self.seen()?;
        Ok((first.without_index() == second.without_index()).then_some((now, second)))
    }

    fn seen(&self) -> Result<Seen> {
        let stamp = |name: &OsStr| {
            look(CWD, name).map(|stat| stat.map(|s| Stamp::from(&s))).map_err(|e| unreadable(&e))
        };
        let [wal, shm, journal] = ENDINGS.map(|ending| stamp(&with(self.name.as_os_str(), ending)));
        Ok(Seen { main: stamp(self.name.as_os_str())?, wal: wal?, shm: shm?.is_some(), journal: journal? })
    }

    /// Compares what this process has open with the names in the folder: a folder on the path may have been replaced by a link
    /// between SQLite's look at it and its opening of the file. Nothing is closed here.
    fn only_these_are_open(&self) -> Result<()> {
        let id = |ending| {
            look(CWD, &with(self.name.as_os_str(), ending)).ok().flatten().map(|s| (s.st_dev, s.st_ino))
        };
        let main = id("");
        let own = [main, id("-wal"), id("-shm"), id("-journal")];
        let mut has_main = false;
        for name in open_files().into_iter().filter(|name| !self.inherited.contains(name)) {
            let Ok(meta) = std::fs::metadata(Path::new(DESCRIPTORS).join(name)) else { continue };
            // A log that was removed meanwhile has no name left.
            if meta.is_file() && meta.nlink() > 0 {
                let opened = Some((meta.dev(), meta.ino()));
                has_main |= opened == main;
                if !own.contains(&opened) {
                    has_main = false;
                    break;
                }
            }
        }
        let replaced = || Error::new(Code::DatabaseFailed, "It was replaced while it was opened");
        if has_main { Ok(()) } else { Err(replaced()) }
    }
}

const DESCRIPTORS: &str = "/proc/self/fd";

fn open_files() -> Vec<OsString> {
    let all: Vec<OsString> = std::fs::read_dir(DESCRIPTORS)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    // The folder itself was among them, and its number is free again.
    all.into_iter().filter(|name| Path::new(DESCRIPTORS).join(name).symlink_metadata().is_ok()).collect()
}

/// The files of a database at one moment.
#[derive(Clone, Copy)]
struct Seen {
    main: Option<Stamp>,
    wal: Option<Stamp>,
    shm: bool,
    journal: Option<Stamp>,
}

impl Seen {
    /// Those that hold data. The index of the log changes when somebody reads.
    fn without_index(&self) -> [Option<Stamp>; 3] {
        [self.main, self.wal, self.journal]
    }
}

/// What changes when a file does.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    id: (u64, u64),
    size: i64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl From<&Stat> for Stamp {
    fn from(s: &Stat) -> Self {
        Stamp {
            id: (s.st_dev, s.st_ino),
            size: s.st_size,
            modified: (s.st_mtime, s.st_mtime_nsec),
            changed: (s.st_ctime, s.st_ctime_nsec),
        }
    }
}

impl Stamp {
    /// Whether it last changed more than a tick before that moment.
    fn is_before(&self, now: Timestamp) -> bool {
        let nanos = i128::from(self.changed.0) * 1_000_000_000 + i128::from(self.changed.1);
        let tick = i128::try_from(TICK.as_nanos()).unwrap_or(i128::MAX);
        nanos + tick < now.as_nanosecond()
    }
}

/// A copy of the plain files, removed when dropped.
struct Private {
    main: PathBuf,
}

impl Private {
    fn new(target: &Path) -> Self {
        Private { main: with(target.as_os_str(), ".plain").into() }
    }

    fn fill(&self, name: &Path) -> io::Result<()> {
        for ending in ["", "-wal", "-journal"] {
            let mut from = match open(CWD, &with(name.as_os_str(), ending)) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                from => from?,
            };
            let mut to = new_file(Path::new(&with(self.main.as_os_str(), ending)))?;
            io::copy(&mut from, &mut to)?;
        }
        Ok(())
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        remove(&self.main);
    }
}

/// Removes a file of ours with what SQLite may have put beside it.
fn remove(path: &Path) {
    for ending in ["", "-wal", "-shm", "-journal"] {
        // What stays is in a private folder, which its owner removes.
        std::fs::remove_file(with(path.as_os_str(), ending)).ok();
    }
}

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// A new database for a copy: no journal, no sync, nobody else.
fn create(target: &Path) -> Result<Connection> {
    new_file(target).map_err(|e| {
        let code =
            if e.kind() == io::ErrorKind::StorageFull { Code::DatabaseFull } else { Code::DatabaseFailed };
        Error::new(code, "Its copy cannot be made").because(e)
    })?;
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let made = Connection::open_with_flags(target, flags).and_then(|to| {
        to.execute_batch("PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF")?;
        Ok(to)
    });
    made.map_err(|e| failed(&e))
}

/// All pages in one step.
fn step(from: &Connection, to: &mut Connection) -> Result<()> {
    let stepped = Backup::new(from, to).and_then(|backup| backup.step(-1)).map_err(|e| failed(&e))?;
    match stepped {
        StepResult::Done => Ok(()),
        _ => Err(locked()),
    }
}

/// Opens a file that does not change: without locks, and without a look at what lies beside it.
pub(super) fn open_immutable(path: &Path) -> rusqlite::Result<Connection> {
    let escaped: String = path.as_os_str().as_bytes().iter().map(|b| format!("%{b:02x}")).collect();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    Connection::open_with_flags(format!("file:{escaped}?immutable=1"), flags)
}

fn sum(path: &Path) -> Result<(u64, String)> {
    let unreadable = |e: io::Error| Error::new(Code::DatabaseFailed, "Its copy cannot be read").because(e);
    let mut file = File::open(path).map_err(unreadable)?;
    let mut hash = Sha256::new();
    let mut block = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match file.read(&mut block) {
            Ok(0) => return Ok((bytes, crate::rows::hex(&hash.finalize()))),
            Ok(read) => {
                hash.update(block.get(..read).unwrap_or_default());
                bytes += read as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(unreadable(e)),
        }
    }
}

/// Whether SQLite cannot read it without writing: a hot journal, a log without an index, a folder where it may not write.
fn wants_to_write(e: &rusqlite::Error) -> bool {
    let Some(failure) = e.sqlite_error() else { return false };
    matches!(
        failure.extended_code & 0xff,
        ffi::SQLITE_READONLY | ffi::SQLITE_CANTOPEN | ffi::SQLITE_PERM | ffi::SQLITE_PROTOCOL
    )
}

fn unreadable(e: &io::Error) -> Error {
    let code = match e.kind() {
        io::ErrorKind::NotFound => Code::DatabaseNotFound,
        io::ErrorKind::PermissionDenied => Code::DatabasePrivileges,
        io::ErrorKind::StorageFull => Code::DatabaseFull,
        _ => Code::DatabaseFailed,
    };
    let why = match e.raw_os_error() {
        Some(number) if number == rustix::io::Errno::LOOP.raw_os_error() => "it is a link".to_owned(),
        _ => e.to_string(),
    };
    Error::new(code, format!("It cannot be read: {why}"))
}

fn unusable(message: &str) -> Error {
    Error::new(Code::DatabaseDumpUnusable, message)
}

fn locked() -> Error {
    Error::new(Code::DatabaseLockTimeout, "Another process holds it locked")
}

/// What SQLite says, with a code of ours.
pub(super) fn failed(e: &rusqlite::Error) -> Error {
    let code = e.sqlite_error().map_or(0, |failure| failure.extended_code & 0xff);
    match code {
        ffi::SQLITE_BUSY | ffi::SQLITE_LOCKED => locked(),
        ffi::SQLITE_NOTADB => unusable("It is no database of SQLite, or an encrypted one"),
        ffi::SQLITE_FULL => Error::new(Code::DatabaseFull, "There is no room for its copy"),
        ffi::SQLITE_PERM | ffi::SQLITE_AUTH => {
            Error::new(Code::DatabasePrivileges, format!("SQLite may not read it: {e}"))
        }
        ffi::SQLITE_CORRUPT => unusable(&format!("It is damaged: {e}")),
        _ => Error::new(Code::DatabaseFailed, format!("SQLite says: {e}")),
    }
}
