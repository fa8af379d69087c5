//! What is known of custom backups: the catalog's view, made equal to a container when that is looked into.
//!
//! Invariants: looking into a container changes nothing in it. A manifest is read once, then the catalog has what is
//! shown of it. What this state did not take, or has forgotten, counts as asked for by a person: it never expires.

use std::collections::{BTreeMap, HashMap};

use backstay_archive::{Integrity, Manifest, Name, Trust, place};
use backstay_catalog::CustomChanges;
use backstay_model::{AppName, Code, CustomBackup, Error, Occasion, PointId, Result, Signer};
use backstay_storage::Storage;
use jiff::Timestamp;
use serde::Serialize;

use super::take::{content, status};
use crate::containers::OpenContainer;
use crate::secrets::Secrets;
use crate::select::Selector;
use crate::state::Engine;

/// Largest manifest that is read, in bytes.
pub(super) const MANIFEST_MAX: u64 = 1 << 30;

/// A custom backup as shown.
#[derive(Clone, Debug, Serialize)]
pub struct CustomView {
    /// The backup.
    #[serde(flatten)]
    pub custom: CustomBackup,
    /// The name of its container, where it has one here.
    pub container_name: Option<String>,
    /// Until when it stays, where a schedule lets it go.
    pub keep_until: Option<Timestamp>,
}

/// A backup in a container that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnreadableBackup {
    /// Its name.
    pub name: String,
    /// The stable code.
    pub code: Code,
    /// Why.
    pub reason: String,
}

/// What is in a container.
#[derive(Clone, Debug, Serialize)]
pub struct ContainerListing {
    /// Its address.
    pub container: String,
    /// Newest first.
    pub custom: Vec<CustomView>,
    /// Manifests that cannot be read.
    pub damaged: Vec<UnreadableBackup>,
    /// Names that are held by a backup at work, or by what is left of one.
    pub unfinished: Vec<String>,
}

impl Engine {
    /// The custom backups of one app or of all as last seen, newest first.
    pub fn custom_backups(&self, app: Option<&AppName>) -> Result<Vec<CustomView>> {
        if !self.has_catalog() {
            return Ok(Vec::new());
        }
        let backups = self.catalog()?.custom_backups(app)?.into_iter().filter(|b| !b.removing);
        self.custom_views(backups.collect())
    }

    /// Looks into a container: what lies there, of every app.
    pub fn list_container(&self, container: &str) -> Result<ContainerListing> {
        let open = self.container_open(container)?;
        self.look_into(&open)
    }

    /// Makes the catalog's view of a container equal to it.
    pub(super) fn look_into(&self, container: &OpenContainer) -> Result<ContainerListing> {
        let parts = place::list(&*container.storage)?;
        let trust = self.trust()?;
        let mut known: HashMap<String, CustomBackup> = match self.has_catalog() {
            true => self.catalog()?.custom_backups(None)?.into_iter(),
            false => Vec::new().into_iter(),
        }
        .filter(|b| b.container == container.address)
        .map(|b| (b.name.clone(), b))
        .collect();
        let (mut backups, mut damaged, mut unfinished) = (Vec::new(), Vec::new(), Vec::new());
        let mut changes = CustomChanges::default();
        for (name, parts) in &parts {
            if !parts.is_backup() {
                unfinished.extend(parts.log.map(|_| name.as_str().to_owned()));
                continue;
            }
            let before = known.remove(name.as_str());
            // A backup of the same name that is another one has another size, or was written by other hands: then verifying
            // tells.
            if let Some(before) = before.filter(|b| parts.zip == Some(b.stored_bytes)) {
                backups.push(before);
                continue;
            }
            match read(container, name, parts.xml.unwrap_or(0), parts.zip, &trust) {
                Ok(mut backup) => {
                    if backup.signer == Signer::ThisServer {
                        backup.occasion = self.occasion_of(&*container.storage, name, parts.log)?;
                    }
                    changes.put.push(backup.clone());
                    backups.push(backup);
                }
                // Deleted between listing and reading.
                Err(e) if e.code() == Code::ObjectNotFound => {}
                Err(e) if is_about_one(e.code()) => damaged.push(UnreadableBackup {
                    name: name.as_str().to_owned(),
                    code: e.code(),
                    reason: e.message().to_owned(),
                }),
                Err(e) => return Err(e),
            }
        }
        // What is being removed is forgotten by whoever ends that.
        let gone = known.into_values().filter(|b| !b.removing);
        changes.remove = gone.map(|b| (b.container, b.name)).collect();
        if !(changes.put.is_empty() && changes.remove.is_empty()) {
            self.catalog()?.change_custom_backups(&changes)?;
        }
        backups.retain(|b| !b.removing);
        backups.sort_by_key(|b| (std::cmp::Reverse(b.time), b.id));
        Ok(ContainerListing {
            container: container.address.clone(),
            custom: self.custom_views(backups)?,
            damaged,
            unfinished,
        })
    }

    fn custom_views(&self, backups: Vec<CustomBackup>) -> Result<Vec<CustomView>> {
        if backups.is_empty() {
            return Ok(Vec::new());
        }
        let catalog = self.catalog()?;
        let names: BTreeMap<String, String> =
            catalog.containers()?.into_iter().map(|c| (c.address, c.name)).collect();
        let schedules: BTreeMap<AppName, _> =
            catalog.apps()?.into_iter().filter_map(|a| Some((a.name, a.config.schedule?))).collect();
        let view = |custom: CustomBackup| CustomView {
            container_name: names.get(&custom.container).cloned(),
            keep_until: schedules
                .get(&custom.app)
                .filter(|_| custom.occasion == Occasion::Scheduled)
                .and_then(|s| s.keep_until(custom.time)),
            custom,
        };
        Ok(backups.into_iter().map(view).collect())
    }

    /// The custom backup of an app that a text names: its name, or its id or the unique beginning of one. None when it names
    /// none, or is a form that only points of the vault have. `PointAmbiguous` when several begin so, points of the
    /// vault (as last seen) included.
    pub fn find_custom(&self, app: &str, text: &str) -> Result<Option<CustomView>> {
        let Ok(app) = app.parse::<AppName>() else { return Ok(None) };
        let selector = text.parse::<Selector>().ok();
        if matches!(selector, Some(Selector::Latest(_))) {
            return Ok(None);
        }
        let all = self.custom_backups(Some(&app))?;
        let mut named = all.iter().filter(|b| b.custom.name == text);
        match (named.next(), named.next()) {
            (Some(one), None) => return Ok(Some(one.clone())),
            (Some(_), Some(_)) => {
                let message = format!("Several containers have a backup of app `{app}` named {text}");
                return Err(Error::new(Code::PointAmbiguous, message)
                    .advise("Give its id: `backstay list` shows it."));
            }
            _ => {}
        }
        let Some(Selector::Id(prefix)) = selector else { return Ok(None) };
        let begins = |id: PointId| id.to_string().starts_with(&prefix);
        let mut fits = all.iter().filter(|b| begins(b.custom.id));
        let Some(first) = fits.next() else { return Ok(None) };
        let in_vault =
            self.points_last_seen()?.into_iter().filter(|(of, id)| *of == app && begins(*id)).count();
        match fits.count() + in_vault {
            0 => Ok(Some(first.clone())),
            more => {
                let message = format!("{} points of app `{app}` begin with {prefix}", more + 1);
                Err(Error::new(Code::PointAmbiguous, message))
            }
        }
    }

    fn points_last_seen(&self) -> Result<Vec<(AppName, PointId)>> {
        let Some(vault) = Secrets::load(&self.state)?.and_then(|s| s.vault) else { return Ok(Vec::new()) };
        let points = self.catalog()?.points(&vault.id)?;
        Ok(points.into_iter().map(|r| (r.point.app, r.point.id)).collect())
    }
}

/// Whether a failure says something about one backup, not about the place.
fn is_about_one(code: Code) -> bool {
    matches!(code, Code::ArchiveDamaged | Code::ArchiveUnsupported | Code::LimitExceeded)
}

/// The bytes of a manifest.
pub(super) fn manifest_bytes(storage: &dyn Storage, name: &Name, size: u64) -> Result<Vec<u8>> {
    if size > MANIFEST_MAX {
        return Err(Error::new(Code::LimitExceeded, format!("A manifest has at most {MANIFEST_MAX} bytes")));
    }
    storage.get(&name.xml())
}

pub(super) fn signer(integrity: &Integrity) -> Signer {
    match integrity {
        Integrity::Signed(_) => Signer::ThisServer,
        Integrity::UnknownKey(_) => Signer::Unknown,
        Integrity::Unsigned => Signer::Nobody,
    }
}

/// A backup that the catalog does not know, from its manifest.
fn read(
    container: &OpenContainer,
    name: &Name,
    size: u64,
    zip: Option<u64>,
    trust: &Trust,
) -> Result<CustomBackup> {
    let bytes = manifest_bytes(&*container.storage, name, size)?;
    let (manifest, integrity) = Manifest::from_xml(&bytes, trust)?;
    let damaged = |why: String| Error::new(Code::ArchiveDamaged, why);
    if zip != Some(manifest.zip.size) {
        let has = zip.map_or_else(|| "is not there".to_owned(), |size| format!("has {size} bytes"));
        return Err(damaged(format!("Its zip {has} and should have {} bytes", manifest.zip.size)));
    }
    let app = manifest.app.parse().map_err(|_not_a_name| damaged("Its manifest names no app".to_owned()))?;
    let (files, bytes) = content(&manifest.entries);
    // Without an id of its own it has one that follows from its content.
    let of_zip = || -> [u8; 16] {
        let mut id = [0; 16];
        for (to, from) in id.iter_mut().zip(manifest.zip.sha256) {
            *to = from;
        }
        id
    };
    Ok(CustomBackup {
        id: manifest.point.unwrap_or_else(|| PointId::from_bytes(of_zip())),
        app,
        container: container.address.clone(),
        name: name.as_str().to_owned(),
        time: manifest.started,
        occasion: Occasion::Manual,
        status: status(&manifest.problems),
        files,
        bytes,
        stored_bytes: manifest.zip.size,
        host: manifest.host,
        home: manifest.home,
        signer: signer(&integrity),
        removing: false,
        unmatched: Vec::new(),
    })
}
