//! The work of a backup, from the lock to the commit.
//!
//! Order (`docs/adr/0008-databases-in-points-and-restores.md`): files and databases (`read`), settings, manifest, snapshot
//! object. Locks: the vault's shared lock all the time.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use backstay_catalog::PointRecord;
use backstay_model::{JobId, Origin, Phase, PointId, PointStatus, Problem, ProblemKind, Progress, Result};
use backstay_tree::path::escape;
use backstay_vault::backup::{DEFAULT_LEVEL, SnapshotDetails, SnapshotWriter};
use backstay_vault::{Id, Strength};

use super::SnapshotTaken;
use super::read::{Content, Frame, Read};
use crate::adopt::Subject;
use crate::databases::save::Saved;
use crate::filter::{self, AppFilter, FilterRecord};
use crate::job::Running;
use crate::manifest::{FILE, Manifest, PROGRAM, SETTINGS, SavedDatabase, host};
use crate::points::{self, Points, WAIT};
use crate::secrets::random;
use crate::state::Engine;

/// What a point is taken for and of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct What {
    pub origin: Origin,
    /// Whether the linked databases are to be in it.
    pub databases: bool,
}

/// A point that was taken.
pub(crate) struct Taken {
    pub record: PointRecord,
    /// New, changed and unchanged ones.
    pub files: [u64; 3],
    pub problems: Vec<Problem>,
    pub filter: Option<FilterRecord>,
    pub databases: Vec<SavedDatabase>,
    /// SQLite files whose bytes in the point are those of a copy.
    pub sqlite: BTreeSet<PathBuf>,
    /// The snapshot that the files were read from.
    pub snapshot: Option<SnapshotTaken>,
    pub job: JobId,
}

impl Engine {
    /// Takes a point.
    pub(crate) fn take(
        &self,
        job: &Running<'_>,
        points: &Points,
        subject: &Subject,
        home: &Path,
        what: What,
    ) -> Result<Taken> {
        let app = &subject.app;
        let vault = &points.vault.vault;
        let newest = points.records.iter().find(|r| r.point.app == app.name);
        let parent = newest.map(|r| r.point.snapshot.parse()).transpose()?;
        let mut linked = if what.databases { self.linked(app)? } else { Vec::new() };
        let _held = self.hold_linked(app, &mut linked, job.cancel());
        let lock = vault.lock(Strength::Shared, WAIT, job.cancel())?;
        let mut writer = vault.begin(&lock, DEFAULT_LEVEL, job.cancel())?;
        let past = parent.and_then(|parent| Manifest::parse(&writer.document_of(&parent, FILE)?));
        let filter = match filter::applies(what.origin, &app.config) {
            true => Some(filter::load(&*self.fs, home, &app.config.excludes)?),
            false => None,
        };
        let totals = newest.map_or((0, 0), |r| (r.point.files, r.point.bytes));
        let frame =
            Frame { job, points, subject, home, origin: what.origin, linked, parent, past, filter, totals };
        let read = self.read(&frame, &mut writer)?;
        if let Some(settings) = self.settings_document(&app.name)? {
            writer.save_bytes(SETTINGS, &settings)?;
        }
        let Read { mut content, saved, quiesced, resumed, snapshot } = read;
        let filtered = content.tree.filtered.take().unwrap_or_default();
        let mut problems = std::mem::take(&mut content.tree.problems);
        if what.origin != Origin::Safety {
            problems.extend(self.told_of_in_app(app, &frame.linked)?);
        }
        problems.append(&mut content.problems);
        if let Err(e) = resumed {
            let detail = e.message().to_owned();
            problems.push(Problem { path: String::new(), kind: ProblemKind::Hook, detail });
        }
        let filter = frame.filter.map(|filter| {
            let before = frame.past.as_ref().and_then(|p| p.filter.as_ref());
            told(&filter, &filtered, before, job, &mut problems);
            filter.record(&filtered)
        });
        let id = PointId::from_bytes(random()?);
        if what.origin == Origin::Safety {
            crate::restore::note_safety(self, job, id)?;
        }
        let mut manifest = self.manifest(id, subject, home, content, (problems, filter), saved);
        if snapshot.is_some() {
            "snapshot".clone_into(&mut manifest.consistency);
        } else if quiesced && !(manifest.databases.is_empty() && manifest.sqlite.is_empty()) {
            "quiesced".clone_into(&mut manifest.consistency);
        }
        let taken =
            self.commit_point(job, points, subject, (writer, lock), manifest, (what.origin, parent))?;
        Ok(Taken { snapshot, ..taken })
    }

    fn manifest(
        &self,
        id: PointId,
        subject: &Subject,
        home: &Path,
        content: Content,
        (mut problems, filter): (Vec<Problem>, Option<FilterRecord>),
        saved: Saved,
    ) -> Manifest {
        let Content { tree, started, mut steps, .. } = content;
        let mut sqlite: Vec<String> = tree.substituted.iter().map(|path| escape(path.as_os_str())).collect();
        sqlite.sort();
        problems.extend(saved.told.problems);
        steps.extend(saved.steps);
        steps.sort_by_key(|step| step.started);
        let consistency =
            if saved.databases.is_empty() && sqlite.is_empty() { "files-only" } else { "ordered" };
        Manifest {
            backstay: Manifest::VERSION,
            program: PROGRAM.to_owned(),
            point: id,
            app: subject.app.name.clone(),
            kind: subject.app.kind.clone(),
            home: escape(home.as_os_str()),
            host: host(),
            started,
            ended: self.clock.now(),
            counts: tree.counts,
            problems,
            filter,
            sparse: tree.sparse,
            databases: saved.databases,
            waiting: saved.told.waiting,
            sqlite,
            consistency: consistency.to_owned(),
            steps,
            archive: None,
        }
    }

    /// Writes the manifest and the snapshot object, and tells the catalog.
    fn commit_point(
        &self,
        job: &Running<'_>,
        points: &Points,
        subject: &Subject,
        (mut writer, lock): (SnapshotWriter, backstay_vault::Lock),
        manifest: Manifest,
        (origin, parent): (Origin, Option<Id>),
    ) -> Result<Taken> {
        writer.save_bytes(FILE, &manifest.to_json()?)?;
        let failed = manifest.problems.iter().any(|p| p.kind.is_failure());
        let status = if failed { PointStatus::PartiallySucceeded } else { PointStatus::Succeeded };
        let details = SnapshotDetails {
            time: manifest.started,
            paths: vec![manifest.home.clone()],
            tags: points::tags(&subject.app.name, &manifest.point, origin, status),
            parent,
        };
        job.still_ours()?;
        let committed = writer.commit(&lock, details, job)?;
        // When giving it back fails, it is removed later as that of a process that is gone.
        drop(lock);
        let record = points::record(&committed.id, &committed.snapshot)?;
        self.remember(points, subject, &record)?;
        let summary = committed.snapshot.summary.unwrap_or_default();
        let sqlite = manifest.sqlite_paths();
        Ok(Taken {
            record,
            files: [summary.files_new, summary.files_changed, summary.files_unmodified],
            problems: manifest.problems,
            filter: manifest.filter,
            sqlite,
            databases: manifest.databases,
            snapshot: None,
            job: job.id(),
        })
    }
}

/// What a person should know of the filter.
fn told(
    filter: &AppFilter,
    filtered: &backstay_vault::backup::Filtered,
    before: Option<&FilterRecord>,
    job: &Running<'_>,
    problems: &mut Vec<Problem>,
) {
    for note in filter.problem().into_iter().chain(filter.notes(filtered, before)) {
        job.problem(&note);
        problems.push(note);
    }
}

/// Passes progress on, and the totals of the last point when reading begins.
pub(super) struct Expecting<'a> {
    pub job: &'a Running<'a>,
    pub totals: (u64, u64),
}

impl Progress for Expecting<'_> {
    fn phase(&self, phase: Phase) {
        self.job.phase(phase);
        self.job.expect(self.totals.0, self.totals.1);
    }

    fn done(&self, files: u64, bytes: u64) {
        self.job.done(files, bytes);
    }

    fn expect(&self, _: u64, _: u64) {
        // The walk learns its totals as it goes; those of the last point are known from the start.
    }

    fn problem(&self, problem: &Problem) {
        self.job.problem(problem);
    }
}
