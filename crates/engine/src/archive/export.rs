//! A point of the vault becomes an archive.
//!
//! Invariants: those of [`backstay_archive::place`]: the name is reserved first, the manifest is written last, and what
//! has no manifest is no backup. What fails takes its leftovers away again. Settings leave the vault sealed, unless
//! somebody asked for plain ones. The point is only read; nothing is locked.

use std::sync::Arc;
use std::time::Instant;

use backstay_archive::place::{self, Zip};
use backstay_archive::seal::{self, SealedSettings};
use backstay_archive::source::Stream;
use backstay_archive::{
    Consistency, Database, Manifest as ArchiveManifest, Name, Options, Seal, Sealed, Settings, Step, Writer,
    Written, ZipRecord,
};
use backstay_catalog::PointRecord;
use backstay_model::{
    Cancel, Code, Error, JobId, JobKind, Occasion, Origin, Phase, Problem, Progress, Result, Secret,
};
use backstay_storage::Storage;
use backstay_tree::fs::FileTime;
use backstay_vault::{Id, Node, Reader};
use serde::Serialize;

use super::tree_source::{Beside, TreeSource};
use crate::browse::content;
use crate::custom::first_line;
use crate::job::{Done, Running, Task, run};
use crate::manifest::{DATABASES, Manifest, PROGRAM, SETTINGS, SETTINGS_SEALED, host};
use crate::points::Found;
use crate::secrets::Secrets;
use crate::select::Selector;
use crate::state::Engine;

/// What is to go out.
#[derive(Clone, Copy, Debug)]
pub struct ExportRequest<'a> {
    /// The app whose point it is.
    pub app: &'a str,
    /// The point.
    pub point: &'a Selector,
    /// The container that it goes to.
    pub to: &'a Arc<dyn Storage>,
    /// Its name there; none for `APP_YYYYMMDDHHMM`.
    pub name: Option<&'a Name>,
    /// By what its settings are sealed.
    pub seal: &'a SealBy,
}

/// By what settings are sealed that leave the vault.
#[derive(Clone, Debug, Default)]
pub enum SealBy {
    /// This server's identity, which the kit holds.
    #[default]
    Server,
    /// age recipients (`age1…`).
    Recipients(Vec<String>),
    /// A passphrase.
    Passphrase(Secret),
    /// Nothing: they are plain.
    Plain,
}

impl SealBy {
    /// What seals. A recipient that is none is told here, before anything is done and where there is nothing to seal too.
    pub(crate) fn of(&self, secrets: &Secrets) -> Result<Seal> {
        let seal = match self {
            SealBy::Server => Seal::Recipients(vec![seal::recipient_of(&secrets.age_identity)?]),
            SealBy::Recipients(recipients) => Seal::Recipients(recipients.clone()),
            SealBy::Passphrase(passphrase) => Seal::Passphrase(passphrase.clone()),
            SealBy::Plain => Seal::Plain,
        };
        if let Seal::Recipients(_) = seal {
            seal::seal(&[], &seal)?;
        }
        Ok(seal)
    }
}

/// What became of an export.
#[derive(Clone, Debug, Serialize)]
pub struct ExportReport {
    /// The point.
    pub point: PointRecord,
    /// The container.
    pub container: String,
    /// The archive's name in it: that of zip, xml and log without their endings.
    pub name: String,
    /// Bytes of the zip.
    pub bytes: u64,
    /// SHA-256 of the zip.
    pub sha256: String,
    /// How the settings lie in it: `recipients`, `passphrase`, `plain`; none where the point has none.
    pub settings: Option<&'static str>,
    /// What a person should know: what does not fit an archive.
    pub problems: Vec<Problem>,
    /// The job that did it.
    pub job: JobId,
    /// How long it took.
    pub seconds: f64,
}

impl ExportReport {
    /// The problems that make the archive less than the point.
    #[must_use]
    pub fn failures(&self) -> Vec<Problem> {
        self.problems.iter().filter(|p| p.kind.is_failure()).cloned().collect()
    }
}

/// A point and all that is read of it.
struct Scene {
    record: PointRecord,
    reader: Arc<Reader>,
    tree: Id,
    top: Option<Node>,
    manifest: Option<Manifest>,
    dumps: Vec<Node>,
    settings: Option<SealedSettings>,
}

impl Engine {
    /// Writes a point as an archive into a container.
    pub fn export(
        &self,
        request: &ExportRequest<'_>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<ExportReport> {
        let started = Instant::now();
        let found = self.find(request.app, request.point)?;
        let app = found.record.point.app.clone();
        let default = Name::of(&app, found.record.point.time);
        let name = request.name.unwrap_or(&default);
        let task = Task { kind: JobKind::Export, app: Some(&app), exclusive: false };
        run(self.catalog()?, &self.clock, &task, (progress, cancel), |job| {
            let scene = self.export_scene(found, request.seal)?;
            job.phase(Phase::Reading);
            job.expect(scene.record.point.files, scene.record.point.bytes);
            let to = &**request.to;
            let log = self.log_of(job, &scene.record);
            place::reserve(to, name, &log).map_err(|e| match (e.code(), request.name) {
                (Code::AlreadyExists, None) => e.advise("Give it another name with --name."),
                _ => e,
            })?;
            let written = self.write_archive(&scene, to, name, &log, job).inspect_err(|_| {
                // What stays has no manifest, so it is no backup.
                place::remove(to, name).unwrap_or_default();
            })?;
            let short = scene.record.point.id.short();
            let report = ExportReport {
                container: to.location(),
                name: name.as_str().to_owned(),
                bytes: written.size,
                sha256: Id(written.sha256).to_string(),
                settings: scene.settings.as_ref().map(|s| sealed_name(&s.sealed)),
                problems: written.problems,
                job: job.id(),
                seconds: crate::backup::seconds(started.elapsed()),
                point: scene.record,
            };
            let failures = report.failures().len();
            Ok(Done {
                message: match failures {
                    0 => format!("Point {short} written as {}", report.name),
                    n => format!("Point {short} written as {} with {n} problems", report.name),
                },
                partial: (failures > 0).then_some(Code::PartiallySucceeded),
                value: report,
            })
        })
    }

    fn export_scene(&self, found: Found, by: &SealBy) -> Result<Scene> {
        let Found { vault, record } = found;
        let by = by.of(&self.secrets()?)?;
        let reader = Arc::new(vault.vault.reader()?);
        let root: Id = record.tree.parse()?;
        let (tree, top) = content(&reader, &record)?;
        let (mut manifest, mut dumps, mut settings) = (None, Vec::new(), None);
        if record.point.origin != Origin::Foreign {
            manifest = Manifest::load(&reader, &root)?;
            let beside = reader.tree(&root)?;
            let named = |name: &str| beside.iter().find(|node| node.name == name);
            if let Some(folder) = named(DATABASES).and_then(|node| node.subtree) {
                dumps = reader.tree(&folder)?;
            }
            settings = match (named(SETTINGS), named(SETTINGS_SEALED)) {
                (Some(open), _) => Some(sealed(&reader, open, &by)?),
                (None, Some(sealed)) => Some(still_sealed(&reader, sealed, manifest.as_ref())?),
                (None, None) => None,
            };
        }
        Ok(Scene { record, reader, tree, top, manifest, dumps, settings })
    }

    /// The log of an export: who took the name.
    fn log_of(&self, job: &Running<'_>, record: &PointRecord) -> String {
        let about = format!("of {PROGRAM} on {}: export", host());
        let point = format!("point {} of {}, begun {}", record.point.id, record.point.app, self.clock.now());
        first_line(&job.id(), Occasion::Manual, &format!("{about} of {point}"))
    }

    /// Zip, log, manifest.
    fn write_archive(
        &self,
        scene: &Scene,
        to: &dyn Storage,
        name: &Name,
        log: &str,
        job: &Running<'_>,
    ) -> Result<Written> {
        let time = scene.record.point.time;
        let time = FileTime { secs: time.as_second(), nanos: 0 };
        let mut writer = Writer::new(Zip::begin(to, name)?, Options::default())?;
        let home = TreeSource {
            reader: Arc::clone(&scene.reader),
            tree: scene.tree,
            top: scene.top.clone(),
            holes: scene.manifest.as_ref().map(Manifest::holes).unwrap_or_default(),
            time,
        };
        writer.add(&home, job, job.cancel())?;
        for node in &scene.dumps {
            let name = node.name.to_str().ok_or_else(|| {
                Error::new(Code::VaultDamaged, "A dump of the point has a name that is not text")
            })?;
            let (reader, name, node) = (Arc::clone(&scene.reader), name.to_owned(), node.clone());
            writer.add(&Beside { reader, name, node }, job, job.cancel())?;
        }
        if let Some(settings) = &scene.settings {
            let bytes = std::io::Cursor::new(settings.bytes.clone());
            writer.add(&Stream::new(settings.file, time, bytes), job, job.cancel())?;
        }
        let (zip, written) = writer.finish(time)?;
        job.phase(Phase::Committing);
        let key = self.signing_key()?;
        let xml = manifest_of(scene, name, &written).to_xml(Some(&key));
        let log = format!(
            "{log}{} {} entries, {} bytes, {} problems\n",
            self.clock.now(),
            written.entries.len(),
            written.size,
            written.problems.len()
        );
        job.still_ours()?;
        zip.commit()?;
        place::commit(to, name, &log, &xml)?;
        Ok(written)
    }
}

/// Settings that are open in the vault.
fn sealed(reader: &Reader, node: &Node, by: &Seal) -> Result<SealedSettings> {
    let mut bytes = Vec::new();
    reader.cat(node, &mut bytes)?;
    seal::seal(&bytes, by)
}

/// Settings that came sealed and were never opened go out as they came.
fn still_sealed(reader: &Reader, node: &Node, manifest: Option<&Manifest>) -> Result<SealedSettings> {
    let mut bytes = Vec::new();
    reader.cat(node, &mut bytes)?;
    let recipients = manifest.and_then(|m| m.archive.as_ref()?.sealed_for.clone()).unwrap_or_default();
    let sealed = if recipients.is_empty() { Sealed::Passphrase } else { Sealed::Recipients(recipients) };
    Ok(SealedSettings { file: place::SETTINGS_SEALED, bytes, sealed })
}

fn sealed_name(sealed: &Sealed) -> &'static str {
    match sealed {
        Sealed::Recipients(_) => "recipients",
        Sealed::Passphrase => "passphrase",
        Sealed::Plain => "plain",
    }
}

/// What the archive says about itself: what the point does.
fn manifest_of(scene: &Scene, name: &Name, written: &Written) -> ArchiveManifest {
    let record = &scene.record;
    let manifest = scene.manifest.as_ref();
    let came = manifest.and_then(|m| m.archive.as_ref());
    let (started, ended) = manifest.map_or((record.point.time, record.point.time), |m| (m.started, m.ended));
    let consistency = match came.filter(|c| !c.consistency.is_empty()) {
        Some(came) => {
            Consistency { class: came.consistency.clone(), steps: came.steps.iter().map(step).collect() }
        }
        None => Consistency {
            class: "files-only".to_owned(),
            steps: vec![Step { what: "files".to_owned(), started, ended, position: None }],
        },
    };
    let mut problems = manifest.map(|m| m.problems.clone()).unwrap_or_default();
    problems.retain(|p| p.kind != backstay_model::ProblemKind::Sealed);
    problems.extend(written.problems.iter().cloned());
    ArchiveManifest {
        program: PROGRAM.to_owned(),
        app: record.point.app.to_string(),
        slot: came.and_then(|c| c.slot.clone()),
        point: Some(record.point.id),
        kind: manifest.map_or_else(|| "folder".to_owned(), |m| m.kind.clone()),
        host: manifest.map_or_else(|| record.host.clone(), |m| m.host.clone()),
        home: manifest.map_or_else(|| record.paths.join(", "), |m| m.home.clone()),
        host_names: came.map(|c| c.host_names.clone()).unwrap_or_default(),
        started,
        ended,
        consistency,
        databases: manifest.iter().flat_map(|m| &m.databases).map(database).collect(),
        settings: scene
            .settings
            .as_ref()
            .map(|s| Settings { file: s.file.to_owned(), sealed: s.sealed.clone() }),
        filter: manifest.and_then(|m| m.filter.as_ref()).map(|f| f.rules.clone()).unwrap_or_default(),
        problems,
        zip: ZipRecord { name: name.zip(), size: written.size, sha256: written.sha256 },
        entries: written.entries.clone(),
    }
}

fn database(saved: &crate::manifest::SavedDatabase) -> Database {
    Database {
        connection: saved.connection.clone(),
        name: saved.name.clone(),
        kind: saved.kind.clone(),
        version: saved.version.clone(),
        file: saved.file.clone(),
        record: saved.dump.as_ref().and_then(|dump| serde_json::to_string(dump).ok()),
    }
}

fn step(saved: &crate::manifest::StepRecord) -> Step {
    Step {
        what: saved.what.clone(),
        started: saved.started,
        ended: saved.ended,
        position: saved.position.clone(),
    }
}
