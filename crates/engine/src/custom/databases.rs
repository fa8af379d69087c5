//! Dumps of linked databases in a custom backup.
//!
//! A zip is written once, from the front to the back: databases come first, the files after them, so the class is
//! `database-first`. What a database refers to is in the backup unless it was deleted while the files were read, and that is told.
//! The dumps are begun one right after the other, while the app's own hook holds its writing still where it has one. Of those that may
//! not wait ([`backstay_database::Database::dump_waits`]) only one is begun then, and written first; each further one is begun when it is written.
//!
//! Invariants: a database that cannot be looked at, or whose dump cannot be begun, makes the backup partial. One that fails in
//! the middle ends the backup: what was written of it cannot be taken out of a stream.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use backstay_archive::place::{Zip, root_name};
use backstay_archive::source::Stream;
use backstay_archive::{Database as Described, EntryRecord, Step, Writer};
use backstay_catalog::App;
use backstay_database::{Dump, DumpRecord, Probe};
use backstay_model::{Code, Error, Problem, ProblemKind, Result};
use backstay_tree::fs::FileTime;
use crossbeam_channel::{Receiver, Sender, bounded};
use jiff::Timestamp;

use crate::databases::begin::{Begun, Open, Told};
use crate::databases::linked::{Due, Linked};
use crate::databases::quiet::Quiet;
use crate::databases::references::{Files, Named};
use crate::job::Running;
use crate::limits::Metered;
use crate::state::Engine;

/// Bytes that are handed on at once.
const BLOCK: usize = 1 << 20;
/// Blocks that wait to be packed.
const WAITING: usize = 4;
/// What the names of the home's entries begin with.
pub(super) const CONTENT: &[u8] = b"fs/";

/// What was packed of the databases of an app.
#[derive(Default)]
pub(super) struct Packed {
    pub databases: Vec<Described>,
    pub steps: Vec<Step>,
    pub problems: Vec<Problem>,
    /// What the rows name.
    pub named: Vec<Named>,
}

/// Where dumps go.
struct Packing<'i, 'z> {
    job: &'i Running<'i>,
    app: &'i App,
    metered: &'i Metered<'i>,
    counted: Metered<'i>,
    zip: &'i mut Writer<Zip<'z>>,
    time: FileTime,
    /// By connection.
    files: HashMap<String, String>,
}

impl Engine {
    /// Puts the databases of an app into a zip.
    pub(super) fn pack_databases(
        &self,
        job: &Running<'_>,
        (app, home): (&App, &Path),
        metered: &Metered<'_>,
        zip: &mut Writer<Zip<'_>>,
        time: FileTime,
    ) -> Result<Packed> {
        let mut packed = Packed::default();
        let mut linked = self.linked(app)?;
        let _held = self.hold_linked(app, &mut linked, job.cancel());
        packed.problems.extend(self.told_of_in_app(app, &linked)?);
        let mut told = Told::default();
        // Whoever asks for one, or sets a time for one, wants all of it.
        let open = self.look_at_linked(job, app, &linked, |_, _| Due::Now, &mut told)?;
        let files = file_names(&open);
        let (mut together, mut later) = by_patience(open);
        let quiet = if together.is_empty() { None } else { self.quiesce(app, home, job)? };
        let (mut begun, named) = self.begin_linked(job, app, &mut together, &mut told)?;
        packed.named = named;
        if let Err(e) = quiet.map_or(Ok(()), Quiet::end) {
            let detail = e.message().to_owned();
            packed.problems.push(Problem { path: String::new(), kind: ProblemKind::Hook, detail });
        }
        let limits = self.limits(&app.config.plan);
        let counted = Metered::new(metered, job.cancel(), limits.databases);
        let mut into = Packing { job, app, metered, counted, zip, time, files };
        begun.sort_by_key(|begun| begun.waits);
        for begun in begun {
            self.pack_database(begun, &mut into, &mut packed, &mut told)?;
        }
        for open in &mut later {
            let (begun, named) = self.begin_linked(job, app, std::slice::from_mut(open), &mut told)?;
            packed.named.extend(named);
            for begun in begun {
                self.pack_database(begun, &mut into, &mut packed, &mut told)?;
            }
        }
        packed.problems.append(&mut told.problems);
        Ok(packed)
    }

    /// Puts one dump that was begun into the zip.
    fn pack_database(
        &self,
        begun: Begun<'_, '_>,
        into: &mut Packing<'_, '_>,
        packed: &mut Packed,
        told: &mut Told,
    ) -> Result<()> {
        into.job.still_ours()?;
        let Begun { link, mut dump, probe, started, .. } = begun;
        let file = into.files.get(&link.name).cloned().unwrap_or_else(|| link.file_name());
        let (plan, about) = (&into.app.config.plan, (&into.counted, into.job, link));
        let streamed = stream(&mut *dump, &file, into.time, about, into.zip);
        let streamed = into.counted.judge_databases(plan, streamed);
        into.metered.judge(plan, streamed)?;
        let record = dump.finish().map_err(|e| of(link, e))?;
        told.notes(link, &record.notes);
        let position = record.position.clone();
        let what = "database".to_owned();
        packed.steps.push(Step { what, started, ended: self.clock.now(), position });
        packed.databases.push(described(link, probe, file, &record));
        Ok(())
    }

    /// What the rows name and is not among the entries of the zip, whose files were read from a time on.
    pub(super) fn dangling_in(
        &self,
        named: &[Named],
        home: &Path,
        entries: &[EntryRecord],
        reading: Timestamp,
    ) -> Vec<Problem> {
        if named.is_empty() {
            return Vec::new();
        }
        let below = |e: &'_ EntryRecord| e.name.strip_prefix(CONTENT).map(<[u8]>::to_vec);
        let paths: HashSet<Vec<u8>> = entries.iter().filter_map(below).collect();
        let has = |path: &Path| paths.contains(path.as_os_str().as_bytes());
        // What is reached through a link has no entry under that name.
        let files = Files { home, since: Some(reading), has: Some(&has) };
        named.iter().flat_map(|named| self.dangling(named, &files)).collect()
    }
}

/// How the dumps are called in the zip, by connection.
fn file_names(open: &[Open<'_>]) -> HashMap<String, String> {
    let mut files = Vec::new();
    for open in open {
        files.push(root_name(&open.link.file_name(), &files));
    }
    open.iter().map(|open| open.link.name.clone()).zip(files).collect()
}

/// Those that are begun together, and those that are begun when it is their turn: a zip is written one after the other, and of the dumps
/// that may not wait only one can come first.
fn by_patience(open: Vec<Open<'_>>) -> (Vec<Open<'_>>, Vec<Open<'_>>) {
    let mut taken = false;
    open.into_iter().partition(|open| open.waits() || !std::mem::replace(&mut taken, true))
}

fn described(link: &Linked, probe: Probe, file: String, record: &DumpRecord) -> Described {
    Described {
        connection: link.name.clone(),
        name: probe.database,
        kind: link.kind(),
        version: Some(record.server.clone()),
        file,
        record: record_text(link, record),
    }
}

/// The record as it stands in the manifest, with the word that it is of the app's own MySQL.
fn record_text(link: &Linked, record: &DumpRecord) -> Option<String> {
    if !link.in_app {
        return serde_json::to_string(record).ok();
    }
    let mut value = serde_json::to_value(record).ok()?;
    if let Some(fields) = value.as_object_mut() {
        fields.insert("in_app".to_owned(), true.into());
    }
    serde_json::to_string(&value).ok()
}

fn of(link: &Linked, e: Error) -> Error {
    e.context(format!("The database of `{}`", link.name))
}

/// Packs a dump while a thread reads it.
fn stream(
    dump: &mut dyn Dump,
    file: &str,
    time: FileTime,
    (metered, job, link): (&Metered<'_>, &Running<'_>, &Linked),
    zip: &mut Writer<Zip<'_>>,
) -> Result<()> {
    let (sender, receiver) = bounded(WAITING);
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || hand_on(dump, &sender));
        let source = Stream::new(file, time, Handed { receiver, block: Vec::new(), at: 0 });
        // The receiver ends with the source, and so does the thread.
        let added = zip.add(&source, metered, job.cancel());
        match (added, reader.join()) {
            // Why the dump has ended says more than that the zip could not go on.
            (Err(_), Ok(Err(why))) if job.cancel().check().is_ok() => Err(of(link, why)),
            (added, _) => added,
        }
    })
}

/// Reads a dump to its end, or until nobody wants it any more. The error is the dump's own.
fn hand_on(dump: &mut dyn Dump, sender: &Sender<io::Result<Vec<u8>>>) -> Result<()> {
    loop {
        let mut block = Vec::with_capacity(BLOCK);
        match Read::take(&mut *dump, BLOCK as u64).read_to_end(&mut block) {
            Ok(0) => return Ok(()),
            Ok(_) if sender.send(Ok(block)).is_ok() => {}
            Ok(_) => return Ok(()),
            Err(e) => {
                // The source must not take it for the end.
                sender.send(Err(io::Error::other("the dump has ended"))).unwrap_or_default();
                let failed = |e: io::Error| {
                    Error::new(Code::DatabaseInterrupted, "Reading the dump failed").because(e)
                };
                return Err(e.downcast::<Error>().unwrap_or_else(failed));
            }
        }
    }
}

/// What a thread reads.
struct Handed {
    receiver: Receiver<io::Result<Vec<u8>>>,
    block: Vec<u8>,
    at: usize,
}

impl Read for Handed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.block.len() {
            let Ok(next) = self.receiver.recv() else { return Ok(0) };
            (self.block, self.at) = (next?, 0);
        }
        let rest = self.block.get(self.at..).unwrap_or_default();
        let read = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..read), rest.get(..read)) {
            to.copy_from_slice(from);
        }
        self.at += read;
        Ok(read)
    }
}
