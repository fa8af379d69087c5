//! A file of SQLite as a linked database: dumped as a copy of itself, restored as a file beside it.
//!
//! Invariants: a dump is a copy in a private temporary folder that is whole; what is streamed is that copy. A staged file is
//! complete, synced, checked, of the owner and mode of the one in use before it could be exchanged. Exchanges are those of
//! [`super::exchange`].

use std::fs::{File, Permissions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use backstay_model::{Code, Error, Result};
use jiff::Timestamp;
use rustix::fs::{Access, AtFlags, Gid, Mode, OFlags, Uid};
use tempfile::TempDir;

use super::exchange::Files;
use super::{Child, Content, Journal, SnapshotRecord, UNUSABLE, ask, check, is_database, snapshot_at};
use crate::adapter::{
    Database, Dump, DumpRecord, Exchange, Hashes, Options, Probe, Side, TableRecord, TlsSeen, Tool,
};
use crate::endpoint::{Endpoint, Kind, Place as Where};
use crate::sqlite::place::Place;

/// The form of a dump: the file itself.
const FORMAT: &str = "sqlite";
/// Longest name of a file, less the longest ending.
const NAME_MAX: usize = 255 - "-journal".len();

/// A linked file of SQLite.
#[derive(Debug)]
pub struct Sqlite {
    place: Place,
    child: Child,
    options: Options,
    temporary: PathBuf,
}

impl Sqlite {
    /// The file that an endpoint names. A relative path is one beneath the app's home. Within the home no link is followed,
    /// since the app can make them; elsewhere folders are found as the system finds them, and the file itself is no link.
    pub fn new(endpoint: &Endpoint, home: Option<&Path>, child: Child, options: Options) -> Result<Self> {
        let Where::File(path) = &endpoint.place else {
            return Err(Error::new(Code::InvalidValue, "The connection string names no file"));
        };
        let within = match home {
            Some(home) if path.is_relative() => Some((home, path.as_path())),
            Some(home) => path.strip_prefix(home).ok().map(|relative| (home, relative)),
            None => None,
        };
        let place = match within {
            Some((home, relative)) => Place::beneath(home, relative)?,
            None if path.is_relative() => {
                let message =
                    format!("`{}` is a relative path, and no folder is known for it", path.display());
                return Err(Error::new(Code::InvalidValue, message));
            }
            None => Place::open(path)?,
        };
        if place.name().to_str().is_none() {
            return Err(Error::new(Code::InvalidValue, "The name of the database's file is not UTF-8"));
        }
        Ok(Sqlite { place, child, options, temporary: std::env::temp_dir() })
    }

    /// Puts copies in private folders of that one instead of the system's temporary folder.
    #[must_use]
    pub fn temporary(mut self, folder: PathBuf) -> Self {
        self.temporary = folder;
        self
    }

    fn file_name(&self) -> String {
        self.place.name().to_string_lossy().into_owned()
    }

    /// A private folder for a copy.
    fn folder(&self) -> Result<TempDir> {
        tempfile::Builder::new()
            .prefix("backstay-sqlite-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&self.temporary)
            .map_err(|e| self.place.failed("cannot be copied: there is no temporary folder", e))
    }

    /// Bytes of the file with its log, and its journal.
    fn size(&self) -> Result<(u64, Journal)> {
        let mut first = [0; 20];
        let mut file = self.place.read()?;
        let read = file.read_exact(&mut first);
        if !is_database(&first) {
            let why = match read {
                Err(e) if e.kind() != io::ErrorKind::UnexpectedEof => {
                    return Err(self.place.failed("cannot be read", e));
                }
                _ => "is no database of SQLite, or an encrypted one",
            };
            let message = format!("`{}` {why}", self.place.path().display());
            return Err(Error::new(Code::DatabaseDumpUnusable, message).advise(UNUSABLE));
        }
        let journal = if first.ends_with(&[2, 2]) { Journal::Wal } else { Journal::Rollback };
        let log = self.place.beside(&format!("{}-wal", self.file_name()))?.look()?;
        let size = |stat: Option<rustix::fs::Stat>| stat.map_or(0, |s| s.st_size.try_into().unwrap_or(0));
        Ok((size(self.place.look()?) + size(log), journal))
    }

    /// Owner, group and mode for a restored file: those of the one in use, else its folder's owner and nobody else.
    fn rights(&self) -> Result<(u32, u32, u32)> {
        if let Some(stat) = self.place.look()? {
            return Ok((stat.st_uid, stat.st_gid, stat.st_mode & 0o777));
        }
        let folder = rustix::fs::statat(self.place.folder(), "", AtFlags::EMPTY_PATH)
            .map_err(|e| self.place.failed("has a folder that cannot be looked at", e))?;
        Ok((folder.st_uid, folder.st_gid, 0o600))
    }

    /// Writes the staged file to its end, and to the disk.
    fn fill(&self, staged: &Place, dump: &mut dyn Read, record: &DumpRecord) -> Result<()> {
        let (uid, gid, mode) = self.rights()?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(staged.folder(), staged.name(), flags, Mode::RUSR | Mode::WUSR);
        let mut file = File::from(made.map_err(|e| staged.failed("cannot be made", e))?);
        let mut block = vec![0; 1 << 20];
        let mut bytes = 0_u64;
        loop {
            self.options.cancel.check()?;
            let read = match dump.read(&mut block) {
                Ok(0) => break,
                Ok(read) => read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(crate::tool::inner(e)),
            };
            let part = block.get(..read).unwrap_or_default();
            file.write_all(part).map_err(|e| staged.failed("cannot be written", e))?;
            bytes += read as u64;
        }
        if bytes != record.bytes {
            let message = format!("The dump has {bytes} bytes, its record says {}", record.bytes);
            return Err(Error::new(Code::DatabaseDumpUnusable, message));
        }
        let owner = file.metadata().map_err(|e| staged.failed("cannot be looked at", e))?;
        let owner =
            (std::os::unix::fs::MetadataExt::uid(&owner), std::os::unix::fs::MetadataExt::gid(&owner));
        if owner != (uid, gid) {
            rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(|e| staged.failed("cannot be given to the owner of the database", e))?;
        }
        file.set_permissions(Permissions::from_mode(mode))
            .and_then(|()| file.sync_all())
            .map_err(|e| staged.failed("cannot be written for good", e))
    }
}

/// Compares what was restored with what was dumped.
fn compare(found: &Content, record: &DumpRecord) -> Result<Vec<String>> {
    let differs = |what: String| Error::new(Code::DatabaseMismatch, what);
    if let Some(damage) = &found.damage {
        return Err(Error::new(
            Code::DatabaseDumpUnusable,
            format!("The restored database is damaged: {damage}"),
        ));
    }
    if found.schema_hash != record.schema_hash {
        return Err(differs(
            "The structure of the restored database is not that of the dump's record".to_owned(),
        ));
    }
    let names = |tables: &[TableRecord]| tables.iter().map(|t| t.name.clone()).collect::<Vec<_>>();
    if names(&found.tables) != names(&record.tables) {
        return Err(differs("The restored database has other tables than the dump's record".to_owned()));
    }
    for (is, should) in found.tables.iter().zip(&record.tables) {
        if is.rows != should.rows {
            let (name, is, should) = (&is.name, is.rows, should.rows);
            return Err(differs(format!("`{name}` has {is} rows, the dump's record says {should}")));
        }
        if should.hash.is_some() && is.hash != should.hash {
            return Err(differs(format!("The content of `{}` is not that of the dump's record", is.name)));
        }
    }
    let mut told = found.notes.clone();
    if found.dangling > 0 {
        told.push(format!("{} rows refer to others that are not there", found.dangling));
    }
    Ok(told)
}

fn version() -> String {
    format!("SQLite {}", rusqlite::version())
}

fn tool() -> Tool {
    Tool { path: String::new(), version: version() }
}

impl Database for Sqlite {
    fn kind(&self) -> Kind {
        Kind::Sqlite
    }

    fn probe(&mut self) -> Result<Probe> {
        let (estimated_bytes, journal) = self.size()?;
        let notes = match journal {
            Journal::Wal => Vec::new(),
            Journal::Rollback => vec![
                "Who writes to it waits while it is copied; `PRAGMA journal_mode=WAL` would spare them"
                    .to_owned(),
            ],
        };
        Ok(Probe {
            version: version(),
            user: String::new(),
            database: self.file_name(),
            tls: TlsSeen::default(),
            estimated_bytes,
            tool: tool(),
            missing: Vec::new(),
            notes,
        })
    }

    fn texts(&mut self, sql: &str, limit: usize) -> Result<Vec<String>> {
        // Of a copy: reading itself would have to make files beside a database that nobody uses.
        let folder = self.folder()?;
        let target = folder.path().join("copy");
        let options = Options { hashes: Hashes::None, ..self.options.clone() };
        snapshot_at(&self.place, &target, &self.child, &options)?;
        let words = ["texts".into(), sql.into(), limit.to_string().into()];
        ask(&Place::open(&target)?, &words, &self.child, &self.options)
    }

    fn dump(&mut self) -> Result<Box<dyn Dump + '_>> {
        let folder = self.folder()?;
        let target = folder.path().join("copy");
        let record = snapshot_at(&self.place, &target, &self.child, &self.options)?;
        if let Some(damage) = &record.content.damage {
            let message = format!("`{}` is damaged: {damage}", self.place.path().display());
            return Err(Error::new(Code::DatabaseFailed, message)
                .advise("Repair it (`sqlite3 FILE .recover`), or bring back a point from before."));
        }
        let file = File::open(&target).map_err(|e| self.place.failed("has a copy that cannot be read", e))?;
        Ok(Box::new(Copy { file, read: 0, ended: false, record, options: &self.options, _folder: folder }))
    }

    fn exchange_names(&self, job: &str) -> Exchange {
        let live = self.file_name();
        let room = NAME_MAX.saturating_sub(".bs__new".len() + job.len());
        let mut stem = live.as_str();
        while stem.len() > room {
            stem = stem.char_indices().next_back().map_or("", |(at, _)| stem.get(..at).unwrap_or_default());
        }
        let name = |end: &str| format!("{stem}.bs_{job}_{end}");
        Exchange { staged: name("new"), kept: name("old"), live }
    }

    fn check_restore(&mut self, record: &DumpRecord, exchange: &Exchange) -> Result<Vec<String>> {
        if record.format != FORMAT {
            let message =
                format!("A dump of the form `{}` cannot be restored into a file of SQLite", record.format);
            return Err(Error::new(Code::DatabaseDumpUnusable, message));
        }
        Files::new(&self.place, exchange)?;
        let rights = Access::WRITE_OK | Access::EXEC_OK;
        rustix::fs::accessat(self.place.folder(), ".", rights, AtFlags::EACCESS)
            .map_err(|e| self.place.failed("lies in a folder where nothing can be made", e))?;
        let disk = rustix::fs::fstatvfs(self.place.folder())
            .map_err(|e| self.place.failed("lies on a disk that cannot be looked at", e))?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < record.bytes {
            let message = format!(
                "There is no room for {} bytes beside `{}`",
                record.bytes,
                self.place.path().display()
            );
            return Err(Error::new(Code::DatabaseFull, message));
        }
        let Exchange { live, staged, kept } = exchange;
        Ok(vec![match self.place.look()? {
            Some(_) => format!(
                "`{staged}` is filled and checked beside `{live}`, which becomes `{kept}` by a rename"
            ),
            None => format!("`{staged}` is filled and checked, and becomes `{live}`, which does not exist"),
        }])
    }

    fn stage(
        &mut self,
        dump: &mut dyn Read,
        record: &DumpRecord,
        exchange: &Exchange,
    ) -> Result<Vec<String>> {
        if record.format != FORMAT {
            let message =
                format!("A dump of the form `{}` cannot be restored into a file of SQLite", record.format);
            return Err(Error::new(Code::DatabaseDumpUnusable, message));
        }
        let files = Files::new(&self.place, exchange)?;
        if !files.is_free(&exchange.staged)? {
            let message = format!("There is a `{}` already", exchange.staged);
            return Err(Error::new(Code::AlreadyExists, message));
        }
        let staged = self.place.beside(&exchange.staged)?;
        let hashes = match record.tables.iter().any(|t| t.hash.is_some()) {
            true => Hashes::All,
            false => Hashes::None,
        };
        let done = self
            .fill(&staged, dump, record)
            .and_then(|()| check(&staged, hashes, &self.child, &self.options))
            .and_then(|found| compare(&found, record))
            .and_then(|told| files.sync().map(|()| told));
        done.map_err(|e| match files.remove(staged.name()) {
            Ok(()) => e,
            Err(left) => {
                let advice = format!("{} Remove `{}`.", e.advice(), staged.path().display());
                e.because(left).advise(advice)
            }
        })
    }

    fn exchange(&mut self, exchange: &Exchange, to: Side) -> Result<()> {
        Files::new(&self.place, exchange)?.bring(to, &self.options)
    }

    fn side(&mut self, exchange: &Exchange) -> Result<Side> {
        Files::new(&self.place, exchange)?.side()
    }

    fn discard(&mut self, exchange: &Exchange) -> Result<()> {
        Files::new(&self.place, exchange)?.discard(&self.options)
    }
}

/// A copy that is being read.
struct Copy<'a> {
    file: File,
    read: u64,
    ended: bool,
    record: SnapshotRecord,
    options: &'a Options,
    /// Removed when the dump is dropped.
    _folder: TempDir,
}

impl Read for Copy<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.options.cancel.check().map_err(io::Error::other)?;
        let read = self.file.read(buf)?;
        self.read += read as u64;
        self.ended |= read == 0 && !buf.is_empty();
        if self.ended && self.read != self.record.bytes {
            let message = "The copy of the database was cut off while it was read";
            return Err(io::Error::other(Error::new(Code::DatabaseInterrupted, message)));
        }
        Ok(read)
    }
}

impl Dump for Copy<'_> {
    fn position(&self) -> Option<&str> {
        None
    }

    fn snapshot(&self) -> Timestamp {
        self.record.taken
    }

    fn finish(self: Box<Self>) -> Result<DumpRecord> {
        if !self.ended {
            return Err(Error::new(Code::DatabaseInterrupted, "The dump was not read to its end"));
        }
        let SnapshotRecord { taken, bytes, content, .. } = self.record;
        Ok(DumpRecord {
            format: FORMAT.to_owned(),
            server: version(),
            tool: tool(),
            tls: TlsSeen::default(),
            snapshot: taken,
            position: None,
            bytes,
            tables: content.tables,
            schema_hash: content.schema_hash,
            roles: Vec::new(),
            notes: content.notes,
            settings: Default::default(),
        })
    }
}
