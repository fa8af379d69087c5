//! Dumps of linked databases in a custom backup.
//!
//! A zip is written once, from the front to the back: databases come first, the files after them, so the class is
//! `database-first`. What a database refers to is in the backup unless it was deleted while the files were read.
//!
//! Invariants: a database that cannot be looked at, or whose dump cannot be begun, makes the backup partial. One that fails in
//! the middle ends the backup: what was written of it cannot be taken out of a stream.

use std::io::{self, Read};

use backstay_archive::place::{Zip, root_name};
use backstay_archive::source::Stream;
use backstay_archive::{Database as Described, Step, Writer};
use backstay_catalog::App;
use backstay_database::{Database, Dump, DumpRecord, Probe};
use backstay_model::{Error, Phase, Problem, Progress as _, Result};
use backstay_tree::fs::FileTime;
use crossbeam_channel::{Receiver, Sender, bounded};

use crate::databases::linked::{Linked, options};
use crate::databases::save;
use crate::job::Running;
use crate::limits::Metered;
use crate::state::Engine;

/// Bytes that are handed on at once.
const BLOCK: usize = 1 << 20;
/// Blocks that wait to be packed.
const WAITING: usize = 4;

/// What was packed of the databases of an app.
#[derive(Default)]
pub(super) struct Packed {
    pub databases: Vec<Described>,
    pub steps: Vec<Step>,
    pub problems: Vec<Problem>,
}

impl Engine {
    /// Puts the databases of an app into a zip.
    pub(super) fn pack_databases(
        &self,
        job: &Running<'_>,
        app: &App,
        metered: &Metered<'_>,
        zip: &mut Writer<Zip<'_>>,
        time: FileTime,
    ) -> Result<Packed> {
        let mut packed = Packed::default();
        let mut linked = self.linked(app)?;
        let _held = self.hold_linked(app, &mut linked, job.cancel());
        packed.problems.extend(self.told_of_in_app(app, &linked)?);
        if !linked.is_empty() {
            job.phase(Phase::Dumping);
        }
        let limits = self.limits(&app.config.plan);
        let counted = Metered::new(metered, job.cancel(), limits.databases);
        let mut names = Vec::new();
        for link in &linked {
            job.still_ours()?;
            let begun = begin(job, app, link, &mut packed)?;
            let Some((mut database, probe)) = begun else { continue };
            let mut dump = match database.dump() {
                Ok(dump) => dump,
                Err(e) => {
                    refused(job, link, &e, &mut packed)?;
                    continue;
                }
            };
            let started = self.clock.now();
            let file = root_name(&link.file_name(), &names);
            let streamed = stream(&mut *dump, &file, time, (&counted, job), zip);
            let streamed = counted.judge_databases(&app.config.plan, streamed);
            metered.judge(&app.config.plan, streamed)?;
            let record = dump.finish().map_err(|e| of(link, e))?;
            names.push(file.clone());
            packed.steps.push(Step {
                what: "database".to_owned(),
                started,
                ended: self.clock.now(),
                position: record.position.clone(),
            });
            packed.databases.push(described(link, probe, file, &record));
        }
        Ok(packed)
    }
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

/// Looks whether a database can be dumped.
fn begin(
    job: &Running<'_>,
    app: &App,
    link: &Linked,
    packed: &mut Packed,
) -> Result<Option<(Box<dyn Database>, Probe)>> {
    let opened = link.endpoint().and_then(|e| backstay_database::open(e, options(app, job.cancel())));
    let looked = opened.and_then(|mut database| {
        let probe = database.probe()?;
        Ok((database, probe))
    });
    match looked {
        Ok(looked) => Ok(Some(looked)),
        Err(e) => refused(job, link, &e, packed).map(|()| None),
    }
}

/// Tells of a database that is not in the backup.
fn refused(job: &Running<'_>, link: &Linked, e: &Error, packed: &mut Packed) -> Result<()> {
    job.cancel().check()?;
    let problem = save::problem(link, e);
    job.problem(&problem);
    packed.problems.push(problem);
    Ok(())
}

/// Packs a dump while a thread reads it.
fn stream(
    dump: &mut dyn Dump,
    file: &str,
    time: FileTime,
    (metered, job): (&Metered<'_>, &Running<'_>),
    zip: &mut Writer<Zip<'_>>,
) -> Result<()> {
    let (sender, receiver) = bounded(WAITING);
    std::thread::scope(|scope| {
        scope.spawn(move || hand_on(dump, &sender));
        let source = Stream::new(file, time, Handed { receiver, block: Vec::new(), at: 0 });
        // The receiver ends with the source, and so does the thread.
        zip.add(&source, metered, job.cancel())
    })
}

/// Reads a dump to its end, or until nobody wants it any more.
fn hand_on(dump: &mut dyn Dump, sender: &Sender<io::Result<Vec<u8>>>) {
    loop {
        let mut block = Vec::with_capacity(BLOCK);
        let read = Read::take(&mut *dump, BLOCK as u64).read_to_end(&mut block);
        let over = !matches!(read, Ok(bytes) if bytes > 0);
        let handed = match read {
            Ok(0) => Ok(()),
            Ok(_) => sender.send(Ok(block)),
            Err(e) => sender.send(Err(e)),
        };
        if over || handed.is_err() {
            return;
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
