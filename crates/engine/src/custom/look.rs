//! Showing, verifying, copying out and deleting one custom backup.
//!
//! Invariants: deleting notes in the catalog that it begins, then removes manifest, zip and log in this order: killed
//! anywhere, the backup is whole or no backup, and the next run that looks into the container ends it. A copy gets its
//! manifest last and only when the bytes of its zip are those of the manifest.

use std::path::Path;
use std::sync::Arc;

use backstay_archive::{Checks, Finding, Integrity, Manifest, Name, PublicKey, StoredObject, place, verify};
use backstay_catalog::{CustomChanges, PointRecord};
use backstay_model::{
    Cancel, Code, CustomBackup, Error, JobKind, Origin, Phase, Problem, Progress, Result, Signer,
};
use backstay_storage::{Local, Put, Storage};
use jiff::Timestamp;
use ring::digest;
use serde::Serialize;

use super::known::{CustomView, manifest_bytes, signer};
use super::take::last_part;
use crate::containers::OpenContainer;
use crate::job::{Done, Running, Task, run, run_for};
use crate::select::Selector;
use crate::state::Engine;

/// Bytes copied at a time.
const PIECE: u64 = 4 << 20;

/// A custom backup in detail.
#[derive(Clone, Debug, Serialize)]
pub struct CustomDetails {
    /// The backup.
    #[serde(flatten)]
    pub view: CustomView,
    /// When reading began.
    pub started: Timestamp,
    /// When the last byte was read.
    pub ended: Timestamp,
    /// The program that wrote it.
    pub program: String,
    /// SHA-256 of the zip.
    pub sha256: String,
    /// The key that signed it, where one did.
    pub key: Option<String>,
    /// By what the settings are sealed: `recipients`, `passphrase`, `plain`; none where there are none.
    pub settings: Option<&'static str>,
    /// The databases in it.
    pub databases: Vec<String>,
    /// The rules of the filter that was obeyed.
    pub filter: Vec<String>,
    /// What a person should know.
    pub problems: Vec<Problem>,
}

/// Whether a custom backup is whole.
#[derive(Clone, Debug, Serialize)]
pub struct CustomVerify {
    /// The backup.
    #[serde(flatten)]
    pub view: CustomView,
    /// Whether every byte is what was written.
    pub whole: bool,
    /// Who signed the manifest, where it is whole.
    pub signed_by: Option<Signer>,
    /// What is wrong, by entry.
    pub findings: Vec<FindingView>,
}

/// Something that is wrong with an archive.
#[derive(Clone, Debug, Serialize)]
pub struct FindingView {
    /// The entry; empty when it is about the archive as a whole.
    pub entry: String,
    /// What.
    pub detail: String,
    /// Whether the archive is refused for it.
    pub fatal: bool,
}

impl From<Finding> for FindingView {
    fn from(f: Finding) -> Self {
        FindingView { fatal: f.what.is_fatal(), entry: f.entry, detail: f.detail }
    }
}

/// A custom backup that was copied out.
#[derive(Clone, Debug, Serialize)]
pub struct Downloaded {
    /// The backup.
    #[serde(flatten)]
    pub view: CustomView,
    /// The files that were written.
    pub files: Vec<String>,
}

/// What a name on the command line means.
#[derive(Clone, Debug)]
pub enum PointOrCustom {
    /// A point of the vault.
    Point(Box<PointRecord>),
    /// A custom backup.
    Custom(Box<CustomView>),
}

impl Engine {
    /// The point or custom backup of an app that a text names. `latest` and times mean points of the vault.
    pub fn point_or_custom(&self, app: &str, text: &str) -> Result<PointOrCustom> {
        if let Some(custom) = self.find_custom(app, text)? {
            return Ok(PointOrCustom::Custom(Box::new(custom)));
        }
        self.point(app, &self.selector(app, text)?).map(|point| PointOrCustom::Point(Box::new(point)))
    }

    /// A point of the vault as it is named on the command line, where it is no custom backup that is known.
    pub fn selector(&self, app: &str, text: &str) -> Result<Selector> {
        text.parse().map_err(|e: Error| {
            let known = self.has_catalog()
                && self.custom_backups(None).is_ok_and(|all| all.iter().any(|v| v.custom.app.as_str() == app));
            match known {
                true => e.advise(format!(
                    "Give an id or a prefix of it, latest, latest~2, a time such as 2026-11-20T14:00, or the name of a custom \
                     backup: `backstay list {app}` shows those last seen, `backstay list --container NAME` looks into a container."
                )),
                false => e,
            }
        })
    }

    /// A custom backup in detail, from its manifest.
    pub fn custom_show(&self, view: CustomView) -> Result<CustomDetails> {
        let container = self.open_at_address(&view.custom.container)?;
        let (manifest, integrity) = self.manifest_of(&container, &view.custom)?;
        let key = |key: PublicKey| Some(key.to_string());
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect();
        Ok(CustomDetails {
            started: manifest.started,
            ended: manifest.ended,
            program: manifest.program,
            sha256: hex(&manifest.zip.sha256),
            key: match integrity {
                Integrity::Signed(by) | Integrity::UnknownKey(by) => key(by),
                Integrity::Unsigned => None,
            },
            settings: manifest.settings.map(|s| match s.sealed {
                backstay_archive::Sealed::Recipients(_) => "recipients",
                backstay_archive::Sealed::Passphrase => "passphrase",
                backstay_archive::Sealed::Plain => "plain",
            }),
            databases: manifest.databases.into_iter().map(|d| d.name).collect(),
            filter: manifest.filter,
            problems: manifest.problems,
            view,
        })
    }

    fn manifest_of(&self, container: &OpenContainer, backup: &CustomBackup) -> Result<(Manifest, Integrity)> {
        let name = Name::parse(&backup.name)?;
        let storage = &*container.storage;
        let size = storage.size(&name.xml()).map_err(|e| gone(e, backup))?;
        Manifest::from_xml(&manifest_bytes(storage, &name, size)?, &self.trust()?)
    }

    /// Reads every byte of a custom backup and compares it with its manifest.
    pub fn custom_verify(
        &self,
        view: CustomView,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<CustomVerify> {
        let backup = &view.custom;
        let container = self.open_at_address(&backup.container)?;
        let task = Task { kind: JobKind::Verify, app: Some(&backup.app), exclusive: false };
        let verified = run(self.catalog()?, &self.clock, &task, (progress, cancel), |job| {
            job.phase(Phase::Checking);
            let name = Name::parse(&backup.name)?;
            let storage = &container.storage;
            let size = storage.size(&name.xml()).map_err(|e| gone(e, backup))?;
            let xml = manifest_bytes(&**storage, &name, size)?;
            let checks = Checks { trust: self.trust()?, ..Checks::default() };
            let verified = match StoredObject::open(Arc::clone(storage), name.zip()) {
                Ok(zip) => verify(Arc::new(zip), Some(&xml), &checks, job, job.cancel())?,
                Err(e) => return Err(gone(e, backup)),
            };
            let whole = verified.is_sound();
            let message = format!("{} is {}", backup.name, if whole { "whole" } else { "NOT whole" });
            let partial = (!whole).then_some(Code::ArchiveDamaged);
            Ok(Done { value: verified, message, partial })
        })?;
        Ok(CustomVerify {
            whole: verified.is_sound(),
            signed_by: verified.integrity.as_ref().map(signer),
            findings: verified.findings.into_iter().map(FindingView::from).collect(),
            view,
        })
    }

    /// Deletes a custom backup: manifest, zip and log.
    pub fn custom_delete(&self, view: CustomView, cancel: &Cancel) -> Result<CustomView> {
        let container = self.open_at_address(&view.custom.container)?;
        let app = view.custom.app.clone();
        let task = Task { kind: JobKind::Delete, app: Some(&app), exclusive: true };
        let watch = (&backstay_model::Silent as &dyn Progress, cancel);
        run_for(Origin::Manual, self.catalog()?, &self.clock, &task, watch, |job| {
            self.remove_custom(job, &container, &view.custom)?;
            let message = format!("{} deleted from {}", view.custom.name, container.shown());
            Ok(Done { value: view, message, partial: None })
        })
    }

    /// Removes one backup, for a job that has its app for itself.
    pub(super) fn remove_custom(
        &self,
        job: &Running<'_>,
        container: &OpenContainer,
        backup: &CustomBackup,
    ) -> Result<()> {
        job.phase(Phase::Removing);
        let catalog = self.catalog()?;
        job.still_ours()?;
        let begun = CustomBackup { removing: true, ..backup.clone() };
        catalog.change_custom_backups(&CustomChanges { put: vec![begun], remove: Vec::new() })?;
        place::remove(&*container.storage, &Name::parse(&backup.name)?)?;
        let remove = vec![(backup.container.clone(), backup.name.clone())];
        catalog.change_custom_backups(&CustomChanges { put: Vec::new(), remove })
    }

    /// Copies the files of a custom backup into a folder, which is made when it does not exist. `AlreadyExists` when one
    /// of them is there already.
    pub fn custom_download(
        &self,
        view: CustomView,
        folder: &Path,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Downloaded> {
        let container = self.open_at_address(&view.custom.container)?;
        let name = Name::parse(&view.custom.name)?;
        let to = Local::create_on(Arc::clone(&self.fs), folder)?;
        let own = Name::parse(last_part(&view.custom.name))?;
        let taken = |e: Error, file: &str| match e.code() {
            Code::ObjectExists => {
                Error::new(Code::AlreadyExists, format!("{} exists already", folder.join(file).display()))
                    .advise("Name another folder. Nothing in it was replaced.")
            }
            _ => e,
        };
        for file in [own.xml(), own.zip(), own.log()] {
            match to.size(&file) {
                Err(e) if e.code() == Code::ObjectNotFound => {}
                Err(e) => return Err(e),
                Ok(_) => return Err(taken(Error::new(Code::ObjectExists, ""), &file)),
            }
        }
        let storage = &*container.storage;
        progress.phase(Phase::Copying);
        let size = storage.size(&name.xml()).map_err(|e| gone(e, &view.custom))?;
        let xml = manifest_bytes(storage, &name, size)?;
        let (manifest, _) = Manifest::from_xml(&xml, &self.trust()?)?;
        progress.expect(1, manifest.zip.size);
        let sha256 = copy(storage, &name, &to, &own, manifest.zip.size, (progress, cancel))
            .map_err(|e| taken(e, &own.zip()))?;
        if sha256.as_ref() != manifest.zip.sha256 {
            to.delete(&own.zip())?;
            let message = format!("{} is not what its manifest says: nothing was kept", name.zip());
            return Err(Error::new(Code::ArchiveDamaged, message).advise(format!(
                "`backstay verify {} {}` names what differs.",
                view.custom.app, view.custom.name
            )));
        }
        let mut files = vec![own.zip()];
        match storage.get(&name.log()) {
            Ok(log) => {
                to.put(&own.log(), &log, Put::IfAbsent).map_err(|e| taken(e, &own.log()))?;
                files.push(own.log());
            }
            Err(e) if e.code() == Code::ObjectNotFound => {}
            Err(e) => return Err(e),
        }
        to.put(&own.xml(), &xml, Put::IfAbsent).map_err(|e| taken(e, &own.xml()))?;
        files.push(own.xml());
        let files = files.iter().map(|f| folder.join(f).display().to_string()).collect();
        Ok(Downloaded { view, files })
    }
}

/// A backup whose parts are not where they were last seen.
fn gone(e: Error, backup: &CustomBackup) -> Error {
    match e.code() {
        Code::ObjectNotFound => {
            let message = format!("{} is not in {} any more, or not whole", backup.name, backup.container);
            Error::new(Code::PointNotFound, message)
                .because(e)
                .advise("`backstay list --container NAME` looks into the container and forgets what is gone.")
        }
        _ => e,
    }
}

/// Copies a zip; gives the SHA-256 of what was copied.
fn copy(
    from: &dyn Storage,
    name: &Name,
    to: &dyn Storage,
    own: &Name,
    size: u64,
    (progress, cancel): (&dyn Progress, &Cancel),
) -> Result<digest::Digest> {
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut upload = to.put_stream(&own.zip(), Put::IfAbsent)?;
    let mut at = 0;
    while at < size {
        cancel.check()?;
        let length = PIECE.min(size - at);
        let piece = from.get_range(&name.zip(), at, usize::try_from(length).unwrap_or(0))?;
        hash.update(&piece);
        upload.write(&piece)?;
        progress.done(0, length);
        at += length;
    }
    upload.commit()?;
    progress.done(1, 0);
    Ok(hash.finish())
}
