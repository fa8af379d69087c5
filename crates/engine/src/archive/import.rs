//! An archive becomes a point of the vault.
//!
//! Invariants: nothing is written before every byte of the archive was looked at and found right. The point exists when its
//! snapshot does, which is written last: killed before, nothing is to be seen; killed after, the point is there, listed,
//! and can be deleted. Its id is made of the zip's hash and the app's name, so the same archive is the same point however
//! often and by however many it is brought in. A home or a time that an archive tells of is believed only for show: the
//! app gets no home by it, and no point lies in the future.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use backstay_archive::place::{SETTINGS_PLAIN, SETTINGS_SEALED as SEALED_ENTRY};
use backstay_archive::seal::{self, Opener};
use backstay_archive::{Checks, Contents, Integrity, Manifest as ArchiveManifest, Sealed, Trust, verify};
use backstay_catalog::{PointChanges, PointRecord};
use backstay_model::{
    AppName, Cancel, Code, Counts, Error, JobId, JobKind, Origin, Phase, PointId, PointStatus, Problem,
    ProblemKind, Progress, Result, Secret,
};
use backstay_tree::filter::FILES;
use backstay_vault::backup::{DEFAULT_LEVEL, SnapshotDetails, SnapshotWriter};
use backstay_vault::{Id, Strength};
use serde::Serialize;

use super::listing::ArchiveListing;
use super::{ArchiveSource, Opened};
use crate::adopt::FOREIGN;
use crate::filter::FilterRecord;
use crate::job::{Done, Running, Task, run};
use crate::manifest::{
    ArchiveRecord, CONTENT, DATABASES, FILE, Manifest, Proof, SETTINGS, SETTINGS_SEALED, SavedDatabase,
    StepRecord,
};
use crate::points::{self, Points, WAIT, apps_of};
use crate::recover::Places;
use crate::state::Engine;

/// Most bytes of settings.
const SETTINGS_MAX: u64 = 65 << 20;

/// What is to be brought in.
#[derive(Clone, Copy, Debug)]
pub struct ImportRequest<'a> {
    /// The archive.
    pub from: &'a ArchiveSource,
    /// The app whose point it becomes; none for the one that the archive names.
    pub app: Option<&'a AppName>,
    /// Take a zip that no manifest vouches for.
    pub accept_unverified: bool,
    /// Opens settings that are sealed with a passphrase. Those sealed for this server open anyway.
    pub passphrase: Option<&'a Secret>,
}

/// What became of an import.
#[derive(Clone, Debug, Serialize)]
pub struct ImportReport {
    /// The point.
    pub point: PointRecord,
    /// Whether it was in the vault already; nothing was written then.
    pub already: bool,
    /// Whether the app became known by this. It has no home on this machine yet.
    pub new_app: bool,
    /// What is kept about the archive; none of a point that was taken here and is still in the vault.
    pub archive: Option<ArchiveRecord>,
    /// Names of the dumps in it.
    pub databases: Vec<String>,
    /// Whether the archive has settings that nothing given opens. They are kept sealed.
    pub settings_sealed: bool,
    /// What a person should know: what was missing in the archive from the start, what could not be opened.
    pub problems: Vec<Problem>,
    /// Where everything is, when this command made it.
    pub first_run: Option<Places>,
    /// The job that did it.
    pub job: JobId,
    /// How long it took.
    pub seconds: f64,
}

impl ImportReport {
    /// The problems that make the point partial.
    #[must_use]
    pub fn failures(&self) -> Vec<Problem> {
        self.problems.iter().filter(|p| p.kind.is_failure()).cloned().collect()
    }
}

/// Settings as they go into the point.
enum Settings {
    None,
    Open(Vec<u8>),
    Sealed { bytes: Vec<u8>, recipients: Vec<String> },
}

/// An archive that was looked at and found right.
struct Sound {
    contents: Contents,
    sha256: [u8; 32],
    proof: Proof,
    /// What is told though nothing is wrong.
    notes: Vec<Problem>,
}

impl Engine {
    /// Brings an archive into the vault as a point. On the very first run secrets and vault are made.
    pub fn import(
        &self,
        request: &ImportRequest<'_>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<ImportReport> {
        let started = Instant::now();
        let opened = request.from.open()?;
        let trust = self.trust()?;
        let known = opened.xml.as_deref().and_then(|xml| ArchiveManifest::from_xml(xml, &trust).ok());
        let app = app_of(request.app, known.as_ref().map(|(m, _)| m.app.as_str()), &opened.name)?;
        let open = self.vault_or_new()?;
        let first_run = open.new.then(|| self.places(&open));
        let task = Task { kind: JobKind::Import, app: Some(&app), exclusive: false };
        run(self.catalog()?, &self.clock, &task, (progress, cancel), |job| {
            job.phase(Phase::Checking);
            if let Some((manifest, _)) = &known {
                let bytes = manifest.entries.iter().map(|e| e.size).sum();
                job.expect(manifest.entries.len() as u64, bytes);
            }
            let sound = look(&opened, request.accept_unverified, trust, job)?;
            let points = self.reconcile(open)?;
            let (mut report, told) = self.bring_in(request, &opened.name, &app, sound, &points, job)?;
            report.first_run = first_run;
            report.seconds = crate::backup::seconds(started.elapsed());
            let failures = report.failures().len();
            let partial = match (report.settings_sealed, failures) {
                (true, _) => Some(Code::SettingsSealed),
                (false, 0) => None,
                _ => Some(Code::PartiallySucceeded),
            };
            Ok(Done { message: told, partial, value: report })
        })
    }

    fn bring_in(
        &self,
        request: &ImportRequest<'_>,
        name: &str,
        app: &AppName,
        sound: Sound,
        points: &Points,
        job: &Running<'_>,
    ) -> Result<(ImportReport, String)> {
        let id = point_id(&sound, app);
        let settings = self.settings_in_archive(&sound.contents, request.passphrase)?;
        let there = self.find_copy(points, app, id, &sound);
        if let Some((record, before)) = &there {
            let sealed =
                before.as_ref().and_then(|m| m.archive.as_ref()).is_some_and(|a| a.sealed_for.is_some());
            if !sealed || !matches!(settings, Settings::Open(_)) {
                let told = format!("Point {} was in the vault already", record.point.id.short());
                return Ok((already(record.clone(), before.clone(), sound.notes, job), told));
            }
        }
        let there = there.map(|(record, _)| record);
        let new_app = self.catalog()?.app(app)?.is_none();
        let pinned = there.as_ref().is_some_and(|there| there.point.pinned);
        let (record, manifest, databases) =
            self.save(name, app, (id, pinned), &sound, settings, points, job)?;
        let changes = PointChanges { add: vec![record.clone()], remove: Vec::new() };
        let apps = apps_of(std::slice::from_ref(&record));
        self.catalog()?.change_points(&points.vault.id, &changes, &apps)?;
        if let Some(sealed) = there.filter(|there| there.point.snapshot != record.point.snapshot) {
            self.forget_point(&points.vault, &sealed, job.cancel())?;
        }
        let told = format!("Point {} brought in: {} files", id.short(), record.point.files);
        let settings_sealed = manifest.archive.as_ref().is_some_and(|a| a.sealed_for.is_some());
        let mut problems = manifest.problems;
        problems.extend(sound.notes);
        let report = ImportReport {
            point: record,
            already: false,
            new_app,
            archive: manifest.archive,
            databases,
            settings_sealed,
            problems,
            first_run: None,
            job: job.id(),
            seconds: 0.0,
        };
        Ok((report, told))
    }

    /// The point that the archive is already, with what it says about itself.
    fn find_copy(
        &self,
        points: &Points,
        app: &AppName,
        id: PointId,
        sound: &Sound,
    ) -> Option<(PointRecord, Option<Manifest>)> {
        let of_vault = |id: PointId| points.records.iter().find(|r| r.point.id == id && r.point.app == *app);
        // A copy of a point that is still here; only our own signature says so.
        let original =
            sound.contents.manifest().and_then(|m| m.point).filter(|_| sound.proof == Proof::Signed);
        let record = of_vault(id).or_else(|| of_vault(original?))?.clone();
        // One that cannot be read is looked at by `verify`, not here.
        let manifest = record.tree.parse().ok().and_then(|tree| {
            let reader = points.vault.vault.reader().ok()?;
            Manifest::load(&reader, &tree).ok().flatten()
        });
        Some((record, manifest))
    }

    /// Writes the snapshot. Gives the point, what it says about itself, and the names of its dumps.
    #[allow(clippy::too_many_arguments)]
    fn save(
        &self,
        name: &str,
        app: &AppName,
        (id, pinned): (PointId, bool),
        sound: &Sound,
        settings: Settings,
        points: &Points,
        job: &Running<'_>,
    ) -> Result<(PointRecord, Manifest, Vec<String>)> {
        let contents = &sound.contents;
        let listing = ArchiveListing::new(contents)
            .ok_or_else(|| Error::new(Code::ArchiveUnsupported, "The archive holds no home of an app"))?;
        let vault = &points.vault.vault;
        let lock = vault.lock(Strength::Shared, WAIT, job.cancel())?;
        let mut writer = vault.begin(&lock, DEFAULT_LEVEL, job.cancel())?;
        let tree = writer.save_listing(CONTENT, &listing, job)?;
        let dumps = save_dumps(&mut writer, contents, job)?;
        let mut manifest = self.imported_manifest(name, app, id, sound, &listing)?;
        (manifest.counts, manifest.sparse) = (tree.counts, tree.sparse);
        save_settings(&mut writer, settings, &mut manifest)?;
        for problem in &manifest.problems {
            job.problem(problem);
        }
        writer.save_bytes(FILE, &manifest.to_json()?)?;
        let failed = manifest.problems.iter().any(|p| p.kind.is_failure());
        let status = if failed { PointStatus::PartiallySucceeded } else { PointStatus::Succeeded };
        let mut tags = points::tags(app, &id, Origin::Imported, status);
        tags.extend(pinned.then(|| points::PINNED.to_owned()));
        let details = SnapshotDetails {
            time: manifest.started,
            paths: vec![if manifest.home.is_empty() { name.to_owned() } else { manifest.home.clone() }],
            tags,
            parent: None,
        };
        job.still_ours()?;
        let committed = writer.commit(&lock, details, job)?;
        // When giving it back fails, it is removed later as that of a process that is gone.
        drop(lock);
        Ok((points::record(&committed.id, &committed.snapshot)?, manifest, dumps))
    }

    /// The settings in an archive, opened where something opens them.
    fn settings_in_archive(&self, contents: &Contents, passphrase: Option<&Secret>) -> Result<Settings> {
        let named = contents.manifest().and_then(|m| m.settings.as_ref());
        let is_settings = |name: &str| match named {
            Some(settings) => settings.file == name,
            None => is_settings(name),
        };
        let Some(beside) = contents.beside().iter().find(|b| is_settings(&b.name)) else {
            return Ok(Settings::None);
        };
        if beside.size > SETTINGS_MAX {
            return Err(Error::new(
                Code::LimitExceeded,
                format!("Settings have at most {SETTINGS_MAX} bytes"),
            ));
        }
        let mut bytes = Vec::new();
        contents.read_beside(&beside.name, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        let plain = match named {
            Some(settings) => settings.sealed == Sealed::Plain,
            None => beside.name == SETTINGS_PLAIN,
        };
        if plain {
            return Ok(Settings::Open(bytes));
        }
        let opener =
            Opener { identities: vec![self.secrets()?.age_identity], passphrase: passphrase.cloned() };
        match seal::open(&bytes, &opener) {
            Ok(open) => Ok(Settings::Open(open)),
            Err(e) if e.code() == Code::SettingsSealed => {
                let recipients = match named.map(|n| &n.sealed) {
                    Some(Sealed::Recipients(recipients)) => recipients.clone(),
                    _ => Vec::new(),
                };
                Ok(Settings::Sealed { bytes, recipients })
            }
            Err(e) => Err(e),
        }
    }

    /// What the point will say about itself.
    fn imported_manifest(
        &self,
        name: &str,
        app: &AppName,
        id: PointId,
        sound: &Sound,
        listing: &ArchiveListing<'_>,
    ) -> Result<Manifest> {
        let now = self.clock.now();
        let mut record = ArchiveRecord {
            name: name.to_owned(),
            app: String::new(),
            sha256: Id(sound.sha256).to_string(),
            proof: sound.proof,
            imported: now,
            point: None,
            slot: None,
            host_names: Vec::new(),
            consistency: String::new(),
            steps: Vec::new(),
            sealed_for: None,
        };
        let mut manifest = Manifest {
            backstay: Manifest::VERSION,
            program: "unknown".to_owned(),
            point: id,
            app: app.clone(),
            kind: "folder".to_owned(),
            home: String::new(),
            host: String::new(),
            started: now,
            ended: now,
            counts: Counts::default(),
            problems: Vec::new(),
            filter: None,
            sparse: Vec::new(),
            databases: Vec::new(),
            waiting: Vec::new(),
            sqlite: Vec::new(),
            consistency: String::new(),
            steps: Vec::new(),
            archive: None,
        };
        if let Some(told) = sound.contents.manifest() {
            manifest.program = printable(&told.program);
            manifest.kind = printable(&told.kind);
            manifest.home = printable(&told.home);
            manifest.host = printable(&told.host);
            manifest.started = told.started.min(now);
            manifest.ended = told.ended.min(now).max(manifest.started);
            manifest.problems = told.problems.iter().map(printable_problem).collect();
            manifest.databases = told.databases.iter().map(saved_database).collect();
            if !told.filter.is_empty() {
                let file = FILES.into_iter().find(|file| listing.has(Path::new(file))).map(str::to_owned);
                let filter = FilterRecord { file, rules: told.filter.clone(), ..FilterRecord::default() };
                // A restore must know what it may not take for removed.
                filter.filter()?;
                manifest.filter = Some(filter);
            }
            record.app.clone_from(&told.app);
            record.point = told.point;
            record.slot.clone_from(&told.slot);
            record.host_names.clone_from(&told.host_names);
            told.consistency.class.clone_into(&mut record.consistency);
            record.steps = told.consistency.steps.iter().map(step_record).collect();
        }
        let told: HashSet<String> = manifest.problems.iter().map(|p| p.path.clone()).collect();
        manifest.problems.extend(listing.problems().into_iter().filter(|p| !told.contains(&p.path)));
        manifest.archive = Some(record);
        Ok(manifest)
    }
}

/// Reads the whole archive, and accepts it.
fn look(opened: &Opened, accept_unverified: bool, trust: Trust, job: &Running<'_>) -> Result<Sound> {
    let checks = Checks { trust, accept_unverified, ..Checks::default() };
    let zip = Arc::clone(&opened.zip);
    let verified = verify(zip, opened.xml.as_deref(), &checks, job, job.cancel())?;
    for finding in &verified.findings {
        job.log(finding.to_string());
    }
    let proof = match &verified.integrity {
        Some(Integrity::Signed(_)) => Proof::Signed,
        Some(Integrity::UnknownKey(_)) => Proof::UnknownKey,
        Some(Integrity::Unsigned) => Proof::Unsigned,
        None => Proof::Nothing,
    };
    let note = |finding: &backstay_archive::Finding| Problem {
        path: finding.entry.clone(),
        kind: ProblemKind::Told,
        detail: finding.detail.clone(),
    };
    let notes = verified.findings.iter().filter(|f| !f.what.is_fatal()).map(note).collect();
    let sha256 = verified.sha256;
    let contents = verified.accept()?;
    let sha256 = sha256.ok_or_else(|| Error::new(Code::Internal, "An archive was accepted unread"))?;
    Ok(Sound { contents, sha256, proof, notes })
}

/// The report about a point that is in the vault already.
fn already(
    point: PointRecord,
    manifest: Option<Manifest>,
    mut notes: Vec<Problem>,
    job: &Running<'_>,
) -> ImportReport {
    let (mut archive, mut databases, mut problems) = (None, Vec::new(), Vec::new());
    if let Some(manifest) = manifest {
        archive = manifest.archive;
        databases = manifest.databases.into_iter().map(|d| d.file).collect();
        problems = manifest.problems;
    }
    problems.append(&mut notes);
    let settings_sealed = archive.as_ref().is_some_and(|a| a.sealed_for.is_some());
    ImportReport {
        point,
        already: true,
        new_app: false,
        archive,
        databases,
        settings_sealed,
        problems,
        first_run: None,
        job: job.id(),
        seconds: 0.0,
    }
}

/// The app whose point an archive becomes.
fn app_of(asked: Option<&AppName>, told: Option<&str>, zip: &str) -> Result<AppName> {
    let name = match (asked, told) {
        (Some(asked), _) => asked.clone(),
        (None, Some(told)) => told.parse().unwrap_or_else(|_no_name| AppName::suggest(told)),
        (None, None) => AppName::suggest(zip.trim_end_matches(".zip")),
    };
    if name.as_str() == FOREIGN {
        let message = format!("`{FOREIGN}` is kept for the snapshots of other programs");
        return Err(Error::new(Code::InvalidValue, message).advise("Name the app with --app."));
    }
    Ok(name)
}

/// The same archive is the same point of an app. Without its manifest it is another one: owners, links and exact times are
/// not believed then.
fn point_id(sound: &Sound, app: &AppName) -> PointId {
    let vouched = u8::from(sound.proof != Proof::Nothing);
    let parts = [b"backstay import 1\n", sound.sha256.as_slice(), &[vouched], app.as_str().as_bytes()];
    let hash = Id::of(&parts.concat());
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(hash.0) {
        *to = from;
    }
    PointId::from_bytes(bytes)
}

fn is_settings(name: &str) -> bool {
    [SETTINGS_PLAIN, SEALED_ENTRY].contains(&name)
}

/// Saves what lies beside the home and is not the settings; gives the names.
fn save_dumps(writer: &mut SnapshotWriter, contents: &Contents, job: &Running<'_>) -> Result<Vec<String>> {
    let settings = contents.manifest().and_then(|m| m.settings.as_ref()).map(|s| s.file.as_str());
    let is_dump = |name: &str| Some(name) != settings && (settings.is_some() || !is_settings(name));
    let mut names = Vec::new();
    for beside in contents.beside().iter().filter(|b| is_dump(&b.name)) {
        writer.save_given(&format!("{DATABASES}/{}", beside.name), beside.size, &mut |receive| {
            contents.read_beside(&beside.name, &mut |bytes| {
                job.done(0, bytes.len() as u64);
                receive(bytes)
            })
        })?;
        names.push(beside.name.clone());
    }
    Ok(names)
}

/// Saves the settings, as they are where they cannot be opened.
fn save_settings(writer: &mut SnapshotWriter, settings: Settings, manifest: &mut Manifest) -> Result<()> {
    match settings {
        Settings::None => Ok(()),
        Settings::Open(bytes) => writer.save_bytes(SETTINGS, &bytes),
        Settings::Sealed { bytes, recipients } => {
            if let Some(record) = &mut manifest.archive {
                record.sealed_for = Some(recipients);
            }
            manifest.problems.push(Problem {
                path: SETTINGS_SEALED.to_owned(),
                kind: ProblemKind::Sealed,
                detail: "The settings are sealed for somebody else; they are kept as they are".to_owned(),
            });
            writer.save_bytes(SETTINGS_SEALED, &bytes)
        }
    }
}

/// Text of an archive, of which nobody knows who wrote it, without what would do something to a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn printable_problem(told: &Problem) -> Problem {
    Problem { path: printable(&told.path), kind: told.kind, detail: printable(&told.detail) }
}

fn saved_database(told: &backstay_archive::Database) -> SavedDatabase {
    SavedDatabase {
        connection: printable(&told.connection),
        name: printable(&told.name),
        kind: printable(&told.kind),
        version: told.version.as_deref().map(printable),
        file: printable(&told.file),
        dump: told.record.as_deref().and_then(|record| serde_json::from_str(record).ok()),
        in_app: told.record.as_deref().is_some_and(is_in_app),
    }
}

/// Whether the record of a dump says that it is of an app's own MySQL.
fn is_in_app(record: &str) -> bool {
    #[derive(serde::Deserialize)]
    struct Said {
        #[serde(default)]
        in_app: bool,
    }
    serde_json::from_str::<Said>(record).is_ok_and(|said| said.in_app)
}

fn step_record(told: &backstay_archive::Step) -> StepRecord {
    StepRecord {
        what: told.what.clone(),
        started: told.started,
        ended: told.ended,
        position: told.position.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_app_is_the_one_that_was_asked_for_or_told() {
        let asked: AppName = "shop".parse().unwrap();
        let name = |asked, told, zip| app_of(asked, told, zip).map(|name| name.to_string());
        assert_eq!(name(Some(&asked), Some("blog"), "x.zip").unwrap(), "shop");
        assert_eq!(name(None, Some("blog"), "x.zip").unwrap(), "blog");
        assert_eq!(name(None, Some("My Blog!"), "x.zip").unwrap(), AppName::suggest("My Blog!").to_string());
        assert_eq!(name(None, None, "site.zip").unwrap(), "site");
        assert_eq!(name(None, Some(FOREIGN), "x.zip").unwrap_err().code(), Code::InvalidValue);
    }

    #[test]
    fn texts_of_archives_do_nothing_to_a_terminal() {
        assert_eq!(printable("a\u{1b}[2J\nb ü"), "a\u{fffd}[2J\u{fffd}b ü");
    }
}
