//! Reading what a point is to hold: from the home as it is, or from a snapshot of its volume.
//!
//! Order without a snapshot: files, databases, what of the files has changed since. With one: SQLite files are copied, databases begun, the
//! snapshot made; then the app goes on, dumps are streamed, and the tree is read from the snapshot (a second time, without
//! reading anything again, where copies take the place of SQLite files). Where the snapshot cannot be made, nothing has been read yet, and all of it is done
//! without.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use backstay_model::{Code, Error, Origin, Problem, ProblemKind, Progress, Result};
use backstay_platform::volume::Snapshot;
use backstay_tree::path::escape;
use backstay_vault::Id;
use backstay_vault::backup::{SnapshotWriter, Substitute, TreeOptions, TreeSummary};
use jiff::Timestamp;

use super::SnapshotTaken;
use super::still::{self, Held};
use super::take::Expecting;
use crate::adopt::Subject;
use crate::databases::copies::Copies;
use crate::databases::linked::Linked;
use crate::databases::quiet::Quiet;
use crate::databases::save::Saved;
use crate::filter::AppFilter;
use crate::job::Running;
use crate::manifest::{CONTENT, Manifest, StepRecord};
use crate::points::Points;
use crate::state::Engine;

/// A point on its way.
pub(super) struct Frame<'f> {
    pub job: &'f Running<'f>,
    pub points: &'f Points,
    pub subject: &'f Subject,
    pub home: &'f Path,
    pub origin: Origin,
    pub linked: Vec<Linked>,
    /// The snapshot object of the point before, and that point's manifest.
    pub parent: Option<Id>,
    pub past: Option<Manifest>,
    pub filter: Option<AppFilter>,
    /// Files and bytes of the point before.
    pub totals: (u64, u64),
}

/// The home as it was read.
pub(super) struct Content {
    pub tree: TreeSummary,
    pub started: Timestamp,
    pub steps: Vec<StepRecord>,
    /// What is to be told beside what the tree tells.
    pub problems: Vec<Problem>,
}

/// All that was read.
pub(super) struct Read {
    pub content: Content,
    pub saved: Saved,
    /// Whether a hook held the app's writing still, and whether it could be told to go on.
    pub quiesced: bool,
    pub resumed: Result<()>,
    /// The snapshot that the files were read from.
    pub snapshot: Option<SnapshotTaken>,
}

impl Engine {
    /// Reads files and databases into a point.
    pub(super) fn read(&self, frame: &Frame<'_>, writer: &mut SnapshotWriter) -> Result<Read> {
        let app = &frame.subject.app;
        let real = frame.home.canonicalize().unwrap_or_else(|_gone| frame.home.to_owned());
        let inside = self.not_of(app, &real, &frame.points.vault.address)?;
        let planned = self.planned(frame.job, app, &real, &inside, frame.filter.as_ref());
        let why = match planned {
            Ok(None) => return self.read_live(frame, writer),
            Ok(Some(snapshot)) => match self.read_still(frame, (&real, &inside), snapshot, writer)? {
                Ok(read) => return Ok(read),
                Err(why) => why,
            },
            Err(why) => why,
        };
        frame.job.cancel().check()?;
        let problem = still::without(app.config.snapshot, &why);
        frame.job.problem(&problem);
        let mut read = self.read_live(frame, writer)?;
        read.content.problems.push(problem);
        Ok(read)
    }

    /// Files, databases, what of the files has changed since. An app without databases is read once.
    fn read_live(&self, frame: &Frame<'_>, writer: &mut SnapshotWriter) -> Result<Read> {
        let (job, app) = (frame.job, &frame.subject.app);
        let started = self.clock.now();
        let options = self.tree_options(frame)?;
        let known = frame.known();
        let tree =
            writer.save_tree_first(CONTENT, &self.fs, frame.home, options, &known, &frame.expecting())?;
        let mut content = Content { tree, started, steps: Vec::new(), problems: Vec::new() };
        let sqlite: BTreeSet<PathBuf> = known.into_iter().chain(content.tree.sqlite.drain(..)).collect();
        let twice = !frame.linked.is_empty() || !sqlite.is_empty();
        if twice {
            content.steps.push(self.step("files", started));
        }
        let quiet = if twice { self.quiesce(app, frame.home, job)? } else { None };
        let quiesced = quiet.is_some();
        let before = (frame.origin, frame.past.as_ref());
        let between = |writer: &mut SnapshotWriter| {
            if twice {
                let started = self.clock.now();
                let copies = self.copies(job, app, frame.home, (0, sqlite.into_iter()))?;
                if !copies.files.is_empty() {
                    content.steps.push(self.step("sqlite", started));
                }
                self.read_again(job, (vec![copies], false), writer, &mut content)?;
            }
            Ok((None, quiet.map_or(Ok(()), Quiet::end)))
        };
        let (saved, resumed) =
            self.save_databases(job, app, &frame.linked, before, writer, (|| Ok(()), between))?;
        Ok(Read { content, saved, quiesced, resumed, snapshot: None })
    }

    /// Databases, a snapshot of the volume, the files from that. The inner error is that it could not be made; nothing was saved then.
    fn read_still(
        &self,
        frame: &Frame<'_>,
        place: (&Path, &[PathBuf]),
        snapshot: Snapshot,
        writer: &mut SnapshotWriter,
    ) -> Result<Result<Read>> {
        let (job, app, home) = (frame.job, &frame.subject.app, frame.home);
        // What is written already need not be waited for while the app is held still. Only time depends on it.
        self.fs.open_root(home).and_then(|dir| self.fs.sync_all(dir.as_fd())).unwrap_or_default();
        let quiet = self.quiesce(app, home, job)?;
        let quiesced = quiet.is_some();
        let before = (frame.origin, frame.past.as_ref());
        let (mut refused, mut copied) = (None, None);
        // They take as long as they are large: before the databases are begun, whose snapshots the files must follow at once.
        let ready = || {
            let started = self.clock.now();
            let copies = self.copies(job, app, home, (0, frame.known().into_iter()))?;
            copied = Some((copies, self.step("sqlite", started)));
            Ok(())
        };
        let between = |_: &mut SnapshotWriter| {
            let started = self.clock.now();
            let held = self.hold(job, app, snapshot).map_err(|e| {
                let again = Error::new(e.code(), e.message());
                refused = Some(e);
                again
            })?;
            let step = StepRecord { position: Some(held.volume()), ..self.step("snapshot", started) };
            let resumed = quiet.map_or(Ok(()), Quiet::end);
            Ok((Some(held.still().home), (held, started, step, resumed)))
        };
        let done = self.save_databases(job, app, &frame.linked, before, writer, (ready, between));
        let (saved, (held, time, step, resumed)) = match (done, refused) {
            (Err(_), Some(why)) if why.code() != Code::LeaseLost => return Ok(Err(why)),
            (done, _) => done?,
        };
        let lost = || Error::new(Code::Internal, "No SQLite file was looked at");
        let (copies, copying) = copied.ok_or_else(lost)?;
        let mut steps = vec![step];
        steps.extend((!copies.files.is_empty()).then_some(copying));
        let taken = SnapshotTaken { volume: held.volume(), time };
        let mut content = self.read_held(frame, place, (held, time), copies, writer)?;
        content.steps.extend(steps);
        Ok(Ok(Read { content, saved, quiesced, resumed, snapshot: Some(taken) }))
    }

    /// Reads the tree from a snapshot that stands, and removes that.
    fn read_held(
        &self,
        frame: &Frame<'_>,
        (real, inside): (&Path, &[PathBuf]),
        (held, time): (Held<'_>, Timestamp),
        copies: Copies,
        writer: &mut SnapshotWriter,
    ) -> Result<Content> {
        let (job, app) = (frame.job, &frame.subject.app);
        let started = self.clock.now();
        let options = TreeOptions {
            exclusions: self.exclusions_still(real, inside, &held)?,
            still: Some(held.still()),
            ..self.tree_options(frame)?
        };
        let known = frame.known();
        let tree =
            writer.save_tree_first(CONTENT, &self.fs, frame.home, options, &known, &frame.expecting())?;
        let mut content = Content { tree, started: time, steps: Vec::new(), problems: Vec::new() };
        content.steps.push(self.step("files", started));
        let new = still::new_ones(std::mem::take(&mut content.tree.sqlite), &known);
        if !known.is_empty() || !new.is_empty() {
            let late = self.copies(job, app, frame.home, (known.len(), new.into_iter()))?;
            content.problems.extend(late.files.keys().map(|path| still::late(path)));
            self.read_again(job, (vec![copies, late], true), writer, &mut content)?;
        }
        if let Err(e) = held.check() {
            let detail = format!("{}; some of what was read from it may be missing", e.message());
            content.problems.push(told(job, ProblemKind::Volume, detail));
        }
        if let Err(e) = held.end() {
            let causes: String = e.causes().iter().map(|c| format!(": {c}")).collect();
            let detail = format!("Its snapshot stays until the next command: {}{causes}", e.message());
            content.problems.push(told(job, ProblemKind::Told, detail));
        }
        Ok(content)
    }

    /// Reads once more what has changed since the first pass, with copies in the place of SQLite files. Where the files stand
    /// still there is nothing but those.
    fn read_again(
        &self,
        job: &Running<'_>,
        (copies, still): (Vec<Copies>, bool),
        writer: &mut SnapshotWriter,
        content: &mut Content,
    ) -> Result<()> {
        let started = self.clock.now();
        let substitute = |file: &PathBuf| Substitute { content: file.clone(), leave_out_siblings: true };
        let files = copies.iter().flat_map(|copies| &copies.files);
        let substitutes = files.map(|(path, file)| (path.clone(), substitute(file))).collect();
        content.tree = writer.save_tree_again(CONTENT, &self.fs, &substitutes, job)?;
        if !still {
            content.steps.push(self.step("files-delta", started));
        }
        content.problems.extend(copies.iter().flat_map(|copies| copies.problems.iter().cloned()));
        let vanished = content.tree.vanished.iter().map(|path| Problem {
            path: escape(path.as_os_str()),
            kind: ProblemKind::Vanished,
            detail: "It went while the point was taken; the point has it as it was read first".to_owned(),
        });
        content.problems.extend(vanished);
        Ok(())
    }

    /// What of the home is read, and with what it is compared.
    fn tree_options(&self, frame: &Frame<'_>) -> Result<TreeOptions> {
        let (app, vault) = (&frame.subject.app, &frame.points.vault);
        Ok(TreeOptions {
            exclusions: self.exclusions(app, frame.home, &vault.address)?,
            filter: frame.filter.as_ref().map(|f| f.filter.clone()),
            parent: frame.parent,
            file_index: Some(self.file_index(&vault.id, &app.name)?),
            still: None,
        })
    }

    fn step(&self, what: &str, started: Timestamp) -> StepRecord {
        StepRecord { what: what.to_owned(), started, ended: self.clock.now(), position: None }
    }
}

impl Frame<'_> {
    /// The SQLite files that the point before has.
    fn known(&self) -> BTreeSet<PathBuf> {
        self.past.as_ref().map(Manifest::sqlite_paths).unwrap_or_default()
    }

    fn expecting(&self) -> impl Progress {
        Expecting { job: self.job, totals: self.totals }
    }
}

fn told(job: &Running<'_>, kind: ProblemKind, detail: String) -> Problem {
    let problem = Problem { path: "volume".to_owned(), kind, detail };
    job.problem(&problem);
    problem
}
