//! Dumps of linked databases in a point.
//!
//! Order: every database is looked at and its snapshot begun, then the caller reads what of the files has changed since (or makes a
//! snapshot of their volume), then the dumps are streamed, one after the other. So the time between snapshots and files is short, however large the databases are.
//!
//! Invariants: a dump is in the point when its tool has ended well, its end mark was seen and its record could be
//! made, else nothing of it is, and the problem says why. Only what concerns the vault or the job itself ends the backup.

use std::io::Read;
use std::path::PathBuf;

use backstay_archive::place::root_name;
use backstay_catalog::App;
use backstay_database::{Database, Dump, DumpRecord, Probe};
use backstay_model::{Code, Error, Origin, Phase, Problem, ProblemKind, Progress as _, Result};
use backstay_vault::backup::SnapshotWriter;
use jiff::Timestamp;

use super::linked::{Due, Linked, options};
use super::references::Named;
use crate::job::Running;
use crate::manifest::{DATABASES, Manifest, SavedDatabase, StepRecord, Waiting};
use crate::state::Engine;

/// What was saved of the databases of an app.
#[derive(Default)]
pub(crate) struct Saved {
    pub databases: Vec<SavedDatabase>,
    /// Those that are not due in this point.
    pub waiting: Vec<Waiting>,
    pub problems: Vec<Problem>,
    pub steps: Vec<StepRecord>,
}

/// A database that is due.
struct Open<'l> {
    link: &'l Linked,
    database: Box<dyn Database>,
    probe: Probe,
}

/// A database whose snapshot stands.
struct Begun<'l, 'd> {
    link: &'l Linked,
    dump: Box<dyn Dump + 'd>,
    probe: Probe,
    started: Timestamp,
}

/// Why a database is not in the point.
enum Failure {
    /// It is told; the others are saved all the same.
    OfDatabase(Error),
    /// The vault or the job itself.
    OfBackup(Error),
}

impl Saved {
    /// Tells of a database that is not in the point; gives the error back where it ends the backup.
    fn tell<T>(&mut self, job: &Running<'_>, link: &Linked, result: Result<T, Failure>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(Failure::OfBackup(e)) => Err(e),
            Err(Failure::OfDatabase(e)) => {
                let problem = problem(link, &e);
                job.problem(&problem);
                self.problems.push(problem);
                Ok(None)
            }
        }
    }
}

impl Engine {
    /// Saves the databases of an app that are due. `ready` runs when all that are due were looked at and no snapshot is begun, `between`
    /// when all snapshots stand; it gives the place where the files stand
    /// still, if there is one, so that they can be compared there with what the databases name.
    pub(crate) fn save_databases<T>(
        &self,
        job: &Running<'_>,
        app: &App,
        linked: &[Linked],
        (origin, past): (Origin, Option<&Manifest>),
        writer: &mut SnapshotWriter,
        (ready, between): (
            impl FnOnce() -> Result<()>,
            impl FnOnce(&mut SnapshotWriter) -> Result<(Option<PathBuf>, T)>,
        ),
    ) -> Result<(Saved, T)> {
        let mut saved = Saved::default();
        let mut open = Vec::new();
        if !linked.is_empty() {
            job.phase(Phase::Dumping);
        }
        for link in linked {
            let looked = self.look_at(job, app, link, (origin, past), &mut saved);
            open.extend(saved.tell(job, link, looked)?.flatten());
        }
        ready()?;
        let (mut begun, mut named) = (Vec::new(), Vec::new());
        for Open { link, database, probe } in &mut open {
            let started = self.clock.now();
            let before = self.names_of(app, link, job);
            let dump = database.dump().map_err(|e| judge(job, e));
            if let Some(mut dump) = saved.tell(job, link, dump)? {
                // Where the snapshot cannot be asked: what it names was there before it or is there after it.
                let exact = before.as_ref().and_then(|before| before.in_snapshot(&mut *dump));
                named.extend(exact.or_else(|| Named::of_both(before, self.names_of(app, link, job))));
                begun.push(Begun { link, dump, probe: probe.clone(), started });
            }
        }
        let since = self.clock.now();
        let (still, value) = between(writer)?;
        // What changed since does not matter where the files stand still.
        let since = still.is_none().then_some(since);
        if let Some(home) = still.as_ref().or(app.home.as_ref()) {
            let dangling = named.iter().flat_map(|named| self.dangling(named, home, since));
            saved.problems.extend(dangling);
        }
        let mut names = Vec::new();
        for Begun { link, dump, probe, started } in begun {
            job.still_ours()?;
            let file = root_name(&link.file_name(), &names);
            let stored = store(dump, &file, probe.estimated_bytes, job, writer);
            let Some(record) = saved.tell(job, link, stored)? else { continue };
            let position = record.position.clone();
            let what = "database".to_owned();
            saved.steps.push(StepRecord { what, started, ended: self.clock.now(), position });
            let told =
                |note: &String| Problem { path: link.path(), kind: ProblemKind::Told, detail: note.clone() };
            saved.problems.extend(record.notes.iter().map(told));
            names.push(file.clone());
            saved.databases.push(SavedDatabase {
                connection: link.name.clone(),
                name: probe.database,
                kind: link.kind(),
                version: Some(record.server.clone()),
                file,
                dump: Some(record),
                in_app: link.in_app,
            });
        }
        Ok((saved, value))
    }

    fn names_of(&self, app: &App, link: &Linked, job: &Running<'_>) -> Option<Named> {
        self.names(app, app.home.as_deref()?, (&link.name, link.endpoint().ok()?), job.cancel())
    }

    /// Looks whether a database can be dumped and is due.
    fn look_at<'l>(
        &self,
        job: &Running<'_>,
        app: &App,
        link: &'l Linked,
        (origin, past): (Origin, Option<&Manifest>),
        saved: &mut Saved,
    ) -> Result<Option<Open<'l>>, Failure> {
        let endpoint = link.endpoint().map_err(Failure::OfDatabase)?;
        let opened = backstay_database::open(endpoint, options(app, job.cancel()));
        let mut database = opened.map_err(Failure::OfDatabase)?;
        let probe = database.probe().map_err(|e| judge(job, e))?;
        if let Due::Later(waiting) = link.due(app, probe.estimated_bytes, origin, past, self.clock.now()) {
            saved.problems.push(waiting.told());
            saved.waiting.push(waiting);
            return Ok(None);
        }
        job.log(format!("{}: {}, {}", link.name, link.source(), probe.version));
        Ok(Some(Open { link, database, probe }))
    }
}

/// An error of a database, unless the job was told to stop.
fn judge(job: &Running<'_>, e: Error) -> Failure {
    match job.cancel().check() {
        Err(cancelled) => Failure::OfBackup(cancelled),
        Ok(()) => Failure::OfDatabase(e),
    }
}

/// Streams one dump into the point.
fn store(
    mut dump: Box<dyn Dump + '_>,
    file: &str,
    expected: u64,
    job: &Running<'_>,
    writer: &mut SnapshotWriter,
) -> Result<DumpRecord, Failure> {
    let name = format!("{DATABASES}/{file}");
    let mut counted = Counted { inner: &mut *dump, job };
    let stored = writer.save_stream(&name, &mut counted, expected).map_err(Failure::OfBackup)?;
    stored.map_err(|e| judge(job, e))?;
    dump.finish().map_err(|e| {
        writer.drop_document(&name);
        judge(job, e)
    })
}

/// A dump whose bytes the job is told of.
struct Counted<'a> {
    inner: &'a mut dyn Dump,
    job: &'a Running<'a>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let bytes = self.inner.read(buffer)?;
        self.job.done(0, u64::try_from(bytes).unwrap_or(0));
        Ok(bytes)
    }
}

/// What is told of a database that is not in the point.
pub(crate) fn problem(link: &Linked, e: &Error) -> Problem {
    let causes: String = e.causes().iter().map(|c| format!(": {c}")).collect();
    let code = if e.code() == Code::DatabaseFailed { String::new() } else { format!(" ({})", e.code()) };
    Problem {
        path: link.path(),
        kind: ProblemKind::Database,
        detail: format!("{}{code}{causes}", e.message()),
    }
}
