//! Dumps of linked databases in a point.
//!
//! Order: every database is looked at and its snapshot begun (`begin`), then the caller reads what of the files has changed since (or makes a
//! snapshot of their volume), then the dumps are streamed, one after the other. So the time between snapshots and files is short, however large the databases are.
//!
//! Invariants: a dump is in the point when its tool has ended well, its end mark was seen and its record could be
//! made, else nothing of it is, and the problem says why. Only what concerns the vault or the job itself ends the backup.

use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;

use backstay_archive::place::root_name;
use backstay_catalog::{App, Clock};
use backstay_database::{Dump, DumpRecord};
use backstay_model::{Code, Error, Origin, Phase, Progress as _, Result};
use backstay_vault::backup::{SavedStream, SnapshotWriter};
use jiff::Timestamp;

use super::begin::{Begun, Failure, Told, judge};
use super::linked::Linked;
use super::references::Files;
use crate::job::Running;
use crate::manifest::{DATABASES, Manifest, SavedDatabase, StepRecord};
use crate::state::Engine;

/// What was saved of the databases of an app.
#[derive(Default)]
pub(crate) struct Saved {
    pub databases: Vec<SavedDatabase>,
    pub told: Told,
    pub steps: Vec<StepRecord>,
}

impl Saved {
    /// Takes a dump that counts into the point.
    fn add(&mut self, link: &Linked, stored: Stored, writer: &mut SnapshotWriter) {
        let Stored { stream, record, database, started, ended } = stored;
        let names: Vec<String> = self.databases.iter().map(|d| d.file.clone()).collect();
        let file = root_name(&link.file_name(), &names);
        writer.add_stream(&format!("{DATABASES}/{file}"), stream);
        let position = record.position.clone();
        self.steps.push(StepRecord { what: "database".to_owned(), started, ended, position });
        self.told.notes(link, &record.notes);
        self.databases.push(SavedDatabase {
            connection: link.name.clone(),
            name: database,
            kind: link.kind(),
            version: Some(record.server.clone()),
            file,
            dump: Some(record),
            in_app: link.in_app,
        });
    }
}

/// A dump that counts, stored in the vault and not in the point yet.
struct Stored {
    stream: SavedStream,
    record: DumpRecord,
    database: String,
    started: Timestamp,
    ended: Timestamp,
}

/// How a dump that was begun gets into the point.
enum Way<'l, 'd, 's> {
    InTurn(Box<Begun<'l, 'd>>),
    Beside(&'l Linked, ScopedJoinHandle<'s, Result<Stored, Failure>>),
}

/// Whether nobody wants the dumps any more that are read beside.
#[derive(Default)]
struct Over(AtomicBool);

/// Says so when it is dropped.
struct Ends<'o>(&'o Over);

impl Over {
    fn with_this(&self) -> Ends<'_> {
        Ends(self)
    }
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

fn thread_failed() -> Failure {
    Failure::OfBackup(Error::new(Code::Internal, "A thread that stored a dump has failed"))
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
        let due = |link: &Linked, bytes| link.due(app, bytes, origin, past, self.clock.now());
        let mut open = self.look_at_linked(job, app, linked, due, &mut saved.told)?;
        ready()?;
        let (begun, named) = self.begin_linked(job, app, &mut open, &mut saved.told)?;
        let since = self.clock.now();
        let over = Over::default();
        let about = (job, &over, &*self.clock);
        let value = std::thread::scope(|scope| {
            // Also when it ends early: nobody wants them any more then.
            let _ends = over.with_this();
            let mut ways = Vec::new();
            for begun in begun {
                ways.push(match begun.waits {
                    true => Way::InTurn(Box::new(begun)),
                    false => {
                        let (saver, name) = (writer.begin_stream()?, begun.link.path());
                        let link = begun.link;
                        let save = move |dump: &mut dyn Read, bytes| saver.save(&name, dump, bytes);
                        Way::Beside(link, scope.spawn(|| store(begun, save, about)))
                    }
                });
            }
            let (still, value) = between(writer)?;
            // What changed since does not matter where the files stand still.
            let since = still.is_none().then_some(since);
            if let Some(home) = still.as_ref().or(app.home.as_ref()) {
                let files = Files { since, ..Files::of(home) };
                saved.told.problems.extend(named.iter().flat_map(|named| self.dangling(named, &files)));
            }
            if !ways.is_empty() {
                job.phase(Phase::Dumping);
            }
            for way in ways {
                job.still_ours()?;
                let (link, stored) = match way {
                    Way::InTurn(begun) => {
                        let (link, name) = (begun.link, begun.link.path());
                        let save = |dump: &mut dyn Read, bytes| writer.store_stream(&name, dump, bytes);
                        (link, store(*begun, save, about))
                    }
                    Way::Beside(link, thread) => {
                        (link, thread.join().unwrap_or_else(|_panic| Err(thread_failed())))
                    }
                };
                if let Some(stored) = saved.told.tell(job, link, stored)? {
                    saved.add(link, stored, writer);
                }
            }
            Ok::<_, Error>(value)
        })?;
        Ok((saved, value))
    }
}

/// Stores a dump that was begun.
fn store(
    Begun { mut dump, probe, started, .. }: Begun<'_, '_>,
    save: impl FnOnce(&mut dyn Read, u64) -> Result<Result<SavedStream>>,
    (job, over, clock): (&Running<'_>, &Over, &dyn Clock),
) -> Result<Stored, Failure> {
    let mut counted = Counted { inner: &mut *dump, job, over };
    let stored = save(&mut counted, probe.estimated_bytes).map_err(Failure::OfBackup)?;
    let stream = stored.map_err(|e| judge(job, e))?;
    let record = dump.finish().map_err(|e| judge(job, e))?;
    Ok(Stored { stream, record, database: probe.database, started, ended: clock.now() })
}

/// A dump whose bytes the job is told of.
struct Counted<'a> {
    inner: &'a mut dyn Dump,
    job: &'a Running<'a>,
    over: &'a Over,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.over.0.load(Ordering::Relaxed) {
            return Err(std::io::Error::other(Error::new(Code::Cancelled, "The backup has ended")));
        }
        let bytes = self.inner.read(buffer)?;
        self.job.done(0, u64::try_from(bytes).unwrap_or(0));
        Ok(bytes)
    }
}
