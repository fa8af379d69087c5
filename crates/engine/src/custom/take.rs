//! Taking a custom backup.
//!
//! Order: leftovers of dead jobs go; the name is reserved; the zip is streamed; the lease is looked at once more; the log and
//! last the manifest are written. A run that fails takes back what it wrote, unless its lease is gone: then the name
//! may be somebody else's by now, and the next run clears it.

use std::collections::HashSet;
use std::path::Path;
use std::time::Instant;

use backstay_archive::source::Stream;
use backstay_archive::{
    Consistency, Live, Manifest, Name, Options, Seal, Settings, Step, Writer, Written, ZipRecord, is_partial,
    place as objects, seal,
};
use backstay_catalog::{App, CustomChanges};
use backstay_model::{
    AppName, Cancel, Code, CustomBackup, Error, JobId, JobKind, Occasion, Origin, Phase, PointId,
    PointStatus, Problem, Progress, Result, Signer,
};
use backstay_tree::fs::FileTime;
use backstay_tree::path::escape;
use jiff::Timestamp;
use serde::Serialize;

use super::databases;
use super::filter::Asked;
use super::leftovers::first_line;
use crate::adopt::Subject;
use crate::archive::SealBy;
use crate::backup::{home_of, problem_name, seconds};
use crate::containers::OpenContainer;
use crate::filter::{self, AppFilter, FilterRecord};
use crate::job::{Done, Running, Task, run_for};
use crate::limits::{Metered, estimate};
use crate::manifest::{PROGRAM, host};
use crate::notify::why;
use crate::place;
use crate::recover::Places;
use crate::secrets::{Secrets, random};
use crate::state::Engine;

/// So many numbers are tried behind a default name that is in use.
const VERSIONS: u32 = 99;
/// Most problems that are written into the log; all of them are in the manifest.
const LOGGED: usize = 1_000;

/// A custom backup to be taken.
#[derive(Clone, Copy, Debug)]
pub struct CustomRequest<'a> {
    /// Name of a known app, or a folder.
    pub target: &'a Path,
    /// Name for a folder that becomes an app; none for one after the folder.
    pub named: Option<&'a AppName>,
    /// Name or address of the container.
    pub container: &'a str,
    /// Its name there; none for one after the app and the time.
    pub name: Option<&'a str>,
    /// By what the app's settings are sealed.
    pub seal: &'a SealBy,
    /// Whether the linked databases are to be in it.
    pub databases: bool,
    /// Who asks for it.
    pub occasion: Occasion,
}

/// What became of a custom backup.
#[derive(Clone, Debug, Serialize)]
pub struct CustomReport {
    /// The backup.
    pub custom: CustomBackup,
    /// The container as it was named.
    pub container: String,
    /// The app's home.
    pub home: String,
    /// Whether the folder became an app by this.
    pub new_app: bool,
    /// Whether the app had been removed and is protected again.
    pub revived: bool,
    /// What a person should know: what could not be read, what was left out.
    pub problems: Vec<Problem>,
    /// The filter that was obeyed.
    pub filter: FilterRecord,
    /// What dead jobs had left in the container and was removed.
    pub cleared: Vec<String>,
    /// Why the hook after the backup failed, where it did. The backup is complete all the same.
    pub hook_failed: Option<String>,
    /// The job that did it.
    pub job: JobId,
    /// How long it took.
    pub seconds: f64,
    /// Where everything is, when this command made it.
    pub first_run: Option<Places>,
}

impl CustomReport {
    /// The problems that make the backup partial.
    #[must_use]
    pub fn failures(&self) -> Vec<Problem> {
        self.problems.iter().filter(|p| p.kind.is_failure()).cloned().collect()
    }
}

/// What a backup is made of.
struct Work<'a> {
    job: &'a Running<'a>,
    container: &'a OpenContainer,
    app: &'a App,
    home: &'a Path,
    secrets: &'a Secrets,
    seal: &'a Seal,
    databases: bool,
    occasion: Occasion,
}

/// What was written.
struct Taken {
    backup: CustomBackup,
    problems: Vec<Problem>,
    filter: FilterRecord,
    cleared: Vec<String>,
    job: JobId,
}

/// What is to be told of a zip that was packed.
struct Packed {
    settings: Settings,
    /// When reading began.
    reading: Timestamp,
    /// When the last byte was read.
    ended: Timestamp,
    problems: Vec<Problem>,
    filter: FilterRecord,
    databases: databases::Packed,
}

impl Engine {
    /// Takes a custom backup of the app that the target names, or of the folder at the target, which becomes one.
    pub fn custom_backup(
        &self,
        request: &CustomRequest<'_>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<CustomReport> {
        let begun = Instant::now();
        let chosen = request.name.map(Name::parse).transpose()?;
        self.check_target(request.target)?;
        let container = self.container_open(request.container)?;
        let (secrets, first_run) = self.secrets_or_new()?;
        let subject = self.subject(request.target, request.named)?;
        let app = &subject.app;
        let home = home_of(app)?;
        let seal = request.seal.of(&secrets)?;
        refuse_inside_out(&container, &home)?;
        let task = Task { kind: JobKind::CustomBackup, app: Some(&app.name), exclusive: true };
        // A scheduled one may be cancelled by hand, an automatic point may not.
        let watch = (progress, cancel);
        let (taken, hook_failed) =
            run_for(Origin::Manual, self.catalog()?, &self.clock, &task, watch, |job| {
                self.hook_before_backup(app, &home, job)?;
                let work = Work {
                    job,
                    container: &container,
                    app,
                    home: &home,
                    secrets: &secrets,
                    seal: &seal,
                    databases: request.databases,
                    occasion: request.occasion,
                };
                let taken = self.take_custom(&work, &subject, chosen.as_ref());
                let point = taken.as_ref().ok().map(|t| t.backup.id);
                let hook_failed = self.hook_after_backup(app, &home, point, job);
                Ok(told(taken?, hook_failed, &container))
            })?;
        Ok(CustomReport {
            custom: taken.backup,
            container: container.shown().to_owned(),
            home: escape(home.as_os_str()),
            new_app: subject.new,
            revived: subject.app.removed.is_some(),
            problems: taken.problems,
            filter: taken.filter,
            cleared: taken.cleared,
            hook_failed,
            job: taken.job,
            seconds: seconds(begun.elapsed()),
            first_run,
        })
    }

    /// The work of the job, from the leftovers of others to the commit.
    fn take_custom(&self, work: &Work<'_>, subject: &Subject, chosen: Option<&Name>) -> Result<Taken> {
        let storage = &*work.container.storage;
        let started = self.clock.now();
        let mut problems = Vec::new();
        let cleared = match self.tidy(work) {
            Ok(cleared) => cleared,
            Err(e) if e.code() == Code::Cancelled => return Err(e),
            // It stands in nobody's way; what hinders the backup itself is told by the backup.
            Err(e) => {
                let detail = format!("What is in the container could not be tidied: {}", why(&e));
                problems.push(Problem {
                    path: String::new(),
                    kind: backstay_model::ProblemKind::Told,
                    detail,
                });
                Vec::new()
            }
        };
        for name in &cleared {
            work.job.log(format!("Removed what a job that died left of {name}"));
        }
        let head = |name: &Name| {
            let about = format!("of {PROGRAM} on {}: {} into {}", host(), work.app.name, name.as_str());
            first_line(&work.job.id(), work.occasion, &format!("{about}, begun {started}"))
        };
        let name = reserve(work, chosen, started, &head)?;
        let done = self.write_custom(work, &name, &head(&name), started, problems);
        match done {
            Ok((backup, problems, filter)) => {
                self.remember_app(subject)?;
                let changes = CustomChanges { put: vec![backup.clone()], remove: Vec::new() };
                self.catalog()?.change_custom_backups(&changes)?;
                Ok(Taken { backup, problems, filter, cleared, job: work.job.id() })
            }
            Err(e) => {
                let lost = e.code() == Code::LeaseLost || work.job.lease_is_lost();
                if !lost && let Err(stays) = objects::remove(storage, &name) {
                    work.job.log(format!("What was written could not be removed: {}", why(&stays)));
                }
                Err(e)
            }
        }
    }

    /// Removes what dead jobs left. A scheduled run also looks what is there: one that was killed after its last write is known
    /// then, and goes when its time comes.
    fn tidy(&self, work: &Work<'_>) -> Result<Vec<String>> {
        let cleared = self.clear_leftovers(work.container)?;
        if work.occasion == Occasion::Scheduled {
            self.look_into(work.container)?;
        }
        Ok(cleared)
    }

    /// Writes zip, log and manifest of a name that is held.
    fn write_custom(
        &self,
        work: &Work<'_>,
        name: &Name,
        head: &str,
        started: Timestamp,
        problems: Vec<Problem>,
    ) -> Result<(CustomBackup, Vec<Problem>, FilterRecord)> {
        let (packed, written) = self.pack(work, name, started, problems)?;
        let (counts, id) = (content(&written.entries), PointId::from_bytes(random()?));
        let files =
            Step { what: "files".to_owned(), started: packed.reading, ended: packed.ended, position: None };
        let consistency = consistency(&packed.databases, files);
        let manifest = Manifest {
            program: PROGRAM.to_owned(),
            app: work.app.name.to_string(),
            slot: None,
            point: Some(id),
            kind: work.app.kind.clone(),
            host: host(),
            home: escape(work.home.as_os_str()),
            host_names: Vec::new(),
            started,
            ended: packed.ended,
            consistency,
            databases: packed.databases.databases,
            settings: Some(packed.settings),
            filter: packed.filter.rules.clone(),
            problems: packed.problems,
            zip: ZipRecord {
                name: last_part(&name.zip()).to_owned(),
                size: written.size,
                sha256: written.sha256,
            },
            entries: written.entries,
        };
        self.commit_custom(work, name, head, &manifest)?;
        let backup = CustomBackup {
            id,
            app: work.app.name.clone(),
            container: work.container.address.clone(),
            name: name.as_str().to_owned(),
            time: started,
            occasion: work.occasion,
            status: status(&manifest.problems),
            files: counts.0,
            bytes: counts.1,
            stored_bytes: written.size,
            host: manifest.host,
            home: manifest.home,
            signer: Signer::ThisServer,
            removing: false,
            unmatched: packed.filter.unmatched.clone(),
        };
        Ok((backup, manifest.problems, packed.filter))
    }

    /// Streams the home and the settings into the zip, and makes that durable.
    fn pack(
        &self,
        work: &Work<'_>,
        name: &Name,
        started: Timestamp,
        mut problems: Vec<Problem>,
    ) -> Result<(Packed, Written)> {
        let job = work.job;
        let settings = settings(work, &self.settings_document_for_archive(work.app)?)?;
        let app_filter = filter::load(&*self.fs, work.home, &work.app.config.excludes)?;
        let asked = Asked::new(app_filter.filter.clone());
        let before = self.catalog()?.custom_backups(Some(&work.app.name))?.into_iter().next();
        let plan = &work.app.config.plan;
        let limit = self.limits(plan).custom;
        if let Some(limit) = limit {
            let filter = Asked::new(app_filter.filter.clone());
            estimate(&self.live(work)?.leave_out(|path, _| filter.leaves_out(path)), plan, limit)?;
        }
        let mut zip = Writer::new(objects::Zip::begin(&*work.container.storage, name)?, Options::default())?;
        let metered = Metered::new(job, job.cancel(), limit);
        let time = FileTime { secs: started.as_second(), nanos: 0 };
        let mut databases = match work.databases {
            true => self.pack_databases(job, (work.app, work.home), &metered, &mut zip, time)?,
            false => databases::Packed {
                problems: self.told_of_in_app(work.app, &[])?,
                ..databases::Packed::default()
            },
        };
        problems.append(&mut databases.problems);
        job.phase(Phase::Reading);
        if let Some(before) = &before {
            job.expect(before.files, before.bytes);
        }
        let reading = self.clock.now();
        // The copies go when the zip is written.
        let copies = self.copier(job, work.app, work.home)?;
        let live = self.live(work)?.copied_by(copies.copier()).leave_out(|path, _| asked.leaves_out(path));
        metered.judge(plan, zip.add(&live, &metered, job.cancel()))?;
        let stream = Stream::new(settings.file, time, std::io::Cursor::new(settings.bytes));
        zip.add(&stream, &Metered::new(job, job.cancel(), None), job.cancel())?;
        let (out, mut written) = zip.finish(time)?;
        asked.thin(&mut written.problems);
        problems.append(&mut written.problems);
        problems.append(&mut copies.damaged());
        problems.extend(self.dangling_in(&databases.named, work.home, &written.entries, reading));
        let filter = tell_filter(&app_filter, &asked, before.as_ref(), job, &mut problems);
        let ended = self.clock.now();
        job.phase(Phase::Committing);
        job.still_ours()?;
        out.commit()?;
        let settings = Settings { file: settings.file.to_owned(), sealed: settings.sealed };
        Ok((Packed { settings, reading, ended, problems, filter, databases }, written))
    }

    /// Makes it a backup. A process that was frozen between its look at the lease and the last write may have lost its zip
    /// to a run that took it for dead: so it is looked at once more.
    fn commit_custom(&self, work: &Work<'_>, name: &Name, head: &str, manifest: &Manifest) -> Result<()> {
        let storage = &*work.container.storage;
        let xml = manifest.to_xml(Some(&self.signing_key()?));
        let log = log(head, manifest);
        work.job.still_ours()?;
        objects::commit(storage, name, &log, &xml)?;
        match storage.size(&name.zip()) {
            Ok(size) if size == manifest.zip.size => Ok(()),
            // It cannot be looked at just now: what was written is written.
            Err(e) if e.code() != Code::ObjectNotFound => Ok(()),
            _ => {
                // What stays is told as damaged by whoever looks into the container.
                let _stays = storage.delete(&name.xml());
                let message = format!("{} was removed while its manifest was written", name.zip());
                Err(Error::new(Code::LeaseLost, message))
            }
        }
    }

    /// The home as the source of an archive, without what is not part of it.
    fn live<'w>(&self, work: &Work<'_>) -> Result<Live<'w>> {
        let vault = self.vault_address(Some(work.secrets))?;
        let mut exclusions = self.exclusions(work.app, work.home, &vault)?;
        exclusions.add_workplaces();
        if let Some(folder) = place::local(&work.container.address) {
            exclusions.add_folder(&*self.fs, &folder).map_err(|e| {
                Error::new(Code::SourceNotFound, format!("Cannot look at {}", folder.display())).because(e)
            })?;
        }
        Live::open(self.fs.clone(), work.home, exclusions)
    }
}

/// The last component of an object's name.
pub(super) fn last_part(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

pub(super) fn status(problems: &[Problem]) -> PointStatus {
    if is_partial(problems) { PointStatus::PartiallySucceeded } else { PointStatus::Succeeded }
}

/// Files of the home among the entries, and the bytes of their content.
pub(super) fn content(entries: &[backstay_archive::EntryRecord]) -> (u64, u64) {
    let files = entries.iter().filter(|e| e.name.starts_with(databases::CONTENT) && !e.name.ends_with(b"/"));
    files.fold((0, 0), |(files, bytes), e| (files + 1, bytes + e.size))
}

/// What was read when. In a zip the databases come first.
fn consistency(databases: &databases::Packed, files: Step) -> Consistency {
    let class = if databases.databases.is_empty() { "files-only" } else { "database-first" };
    let steps = databases.steps.iter().cloned().chain([files]).collect();
    Consistency { class: class.to_owned(), steps }
}

/// A container in which the home itself lies, or is the home, would hold its own backups.
fn refuse_inside_out(container: &OpenContainer, home: &Path) -> Result<()> {
    let Some(folder) = place::local(&container.address) else { return Ok(()) };
    let real = |p: &Path| p.canonicalize().unwrap_or_else(|_gone| p.to_owned());
    if real(&folder) == real(home) {
        let message = format!("The container {} is the home of the app itself", folder.display());
        return Err(Error::new(Code::Conflict, message).advise("Name another folder, outside of the app."));
    }
    Ok(())
}

/// Takes a name: the chosen one or none, or the default one with the first number that is free.
fn reserve(
    work: &Work<'_>,
    chosen: Option<&Name>,
    started: Timestamp,
    head: &dyn Fn(&Name) -> String,
) -> Result<Name> {
    let storage = &*work.container.storage;
    if let Some(name) = chosen {
        let told = |e: Error| match e.code() {
            Code::AlreadyExists => e.advise("Choose another --name, or leave it out for one with the time."),
            _ => e,
        };
        return objects::reserve(storage, name, &head(name)).map(|()| name.clone()).map_err(told);
    }
    let base = Name::of(&work.app.name, started);
    let mut names = std::iter::once(base.clone()).chain((2..=VERSIONS).map(|n| base.version(n)));
    loop {
        let Some(name) = names.next() else {
            let message = format!("{} and {VERSIONS} names after it are in use", base.as_str());
            return Err(Error::new(Code::AlreadyExists, message).advise("Choose a name with --name."));
        };
        match objects::reserve(storage, &name, &head(&name)) {
            Err(e) if e.code() == Code::AlreadyExists => work.job.cancel().check()?,
            other => return other.map(|()| name),
        }
    }
}

/// The settings of the app, sealed as they are to be.
fn settings(work: &Work<'_>, document: &[u8]) -> Result<seal::SealedSettings> {
    seal::seal(document, work.seal)
}

/// What is to be told about the filter, and what the manifest says of it.
fn tell_filter(
    filter: &AppFilter,
    asked: &Asked,
    before: Option<&CustomBackup>,
    job: &Running<'_>,
    problems: &mut Vec<Problem>,
) -> FilterRecord {
    let filtered = asked.result();
    let before = before.map(|b| FilterRecord { unmatched: b.unmatched.clone(), ..FilterRecord::default() });
    for note in filter.problem().into_iter().chain(filter.notes(&filtered, before.as_ref())) {
        job.problem(&note);
        problems.push(note);
    }
    filter.record(&filtered)
}

/// The whole log of a backup.
fn log(head: &str, manifest: &Manifest) -> String {
    let (files, bytes) = content(&manifest.entries);
    let mut log = head.to_owned();
    log.push_str(&format!(
        "{} read from {} on: {files} files, {bytes} bytes\n",
        manifest.home, manifest.started
    ));
    let left = manifest.problems.len().saturating_sub(LOGGED);
    let mut told = HashSet::new();
    for problem in manifest.problems.iter().take(LOGGED).filter(|p| told.insert((&p.path, &p.detail))) {
        log.push_str(&format!("{}: {} ({})\n", problem.path, problem_name(problem.kind), problem.detail));
    }
    if left > 0 {
        log.push_str(&format!("and {left} more, which the manifest lists\n"));
    }
    log.push_str(&format!(
        "{} has {} bytes; ended {}\n",
        manifest.zip.name, manifest.zip.size, manifest.ended
    ));
    log
}

/// What the job's record says.
fn told(
    taken: Taken,
    hook_failed: Option<String>,
    container: &OpenContainer,
) -> Done<(Taken, Option<String>)> {
    let backup = &taken.backup;
    let failures = taken.problems.iter().filter(|p| p.kind.is_failure()).count();
    let with = if failures == 0 { String::new() } else { format!(" with {failures} problems") };
    let mut message =
        format!("{} written to {}{with}: {} files", backup.name, container.shown(), backup.files);
    if let Some(why) = &hook_failed {
        message.push_str(&format!(". {why}"));
    }
    let partial = match (failures, &hook_failed) {
        (0, None) => None,
        (0, Some(_)) => Some(Code::HookFailed),
        _ => Some(Code::PartiallySucceeded),
    };
    Done { value: (taken, hook_failed), message, partial }
}
