//! Names, and the order in which an archive's objects come and go.
//!
//! Invariants (`docs/adr/0005-open-archives.md` has the cases): the log is put if absent before anything else and so
//! reserves the name; the manifest is put if absent after everything else and is the commit. What has no manifest is
//! no backup. Objects go in the opposite order: manifest, zip, log. No locks: `IfAbsent` is atomic in every storage.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use backstay_model::{AppName, Code, Error, Result};
use backstay_storage::{Put, Storage, Upload};
use jiff::Timestamp;

use crate::record::METADATA;

/// Longest base name of an archive, in bytes.
const NAME_MAX: usize = 150;

/// The base name of an archive in a container: what is common to its three objects. It may have folders.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// `APP_YYYYMMDDHHMM` in UTC, as the default.
    #[must_use]
    pub fn of(app: &AppName, time: Timestamp) -> Self {
        Name(format!("{app}_{}", time.strftime("%Y%m%d%H%M")))
    }

    /// A name that somebody chose: letters, digits, `.`, `_`, `-`, folders with `/`.
    pub fn parse(text: &str) -> Result<Self> {
        let name = Name(text.to_owned());
        // Without the ending too: it would make a name of none.
        backstay_storage::check_name(text)
            .and_then(|()| backstay_storage::check_name(&name.zip()))
            .ok()
            .filter(|()| text.len() <= NAME_MAX)
            .ok_or_else(|| {
                let text = text.escape_debug();
                Error::new(
                    Code::InvalidValue,
                    format!("`{text}` is not a name of a backup: at most {NAME_MAX} of A-Z, a-z, 0-9, `.`, `_`, `-`"),
                )
            })
            .map(|()| name)
    }

    /// The same with a number behind it, for a further backup of that name.
    #[must_use]
    pub fn version(&self, number: u32) -> Self {
        Name(format!("{}-{number}", self.0))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The object with the content.
    #[must_use]
    pub fn zip(&self) -> String {
        format!("{}.zip", self.0)
    }

    /// The object with the manifest.
    #[must_use]
    pub fn xml(&self) -> String {
        format!("{}.xml", self.0)
    }

    /// The object with the log, which holds the name.
    #[must_use]
    pub fn log(&self) -> String {
        format!("{}.log", self.0)
    }
}

/// Takes a name for a backup that begins. `log` says who takes it, so that a later run can see whether that one is
/// still alive. `AlreadyExists` when the name is in use.
pub fn reserve(storage: &dyn Storage, name: &Name, log: &str) -> Result<()> {
    let used = || {
        let message = format!("There is a backup named {} in {} already", name.as_str(), storage.location());
        Error::new(Code::AlreadyExists, message)
    };
    match storage.put(&name.log(), log.as_bytes(), Put::IfAbsent) {
        Err(e) if e.code() == Code::ObjectExists => return Err(used()),
        other => other?,
    }
    for object in [name.xml(), name.zip()] {
        match storage.size(&object) {
            Err(e) if e.code() == Code::ObjectNotFound => {}
            Ok(_) => {
                storage.delete(&name.log())?;
                return Err(used());
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The zip of a backup on its way into a storage, for a [`crate::Writer`]. Nothing of it is to be seen before
/// [`Zip::commit`]; dropped without, it leaves nothing.
pub struct Zip<'s>(Box<dyn Upload + 's>);

impl<'s> Zip<'s> {
    /// Begins the object.
    pub fn begin(storage: &'s dyn Storage, name: &Name) -> Result<Self> {
        storage.put_stream(&name.zip(), Put::IfAbsent).map(Zip)
    }

    /// Makes it durable under its name. Returns its size in bytes.
    pub fn commit(self) -> Result<u64> {
        self.0.commit()
    }
}

impl std::io::Write for Zip<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // The storage's error comes out of the archive's writer as it is.
        self.0.write(bytes).map(|()| bytes.len()).map_err(std::io::Error::other)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Makes a backup of what was written: the whole log, then the manifest.
pub fn commit(storage: &dyn Storage, name: &Name, log: &str, manifest: &[u8]) -> Result<()> {
    storage.put(&name.log(), log.as_bytes(), Put::Replace)?;
    match storage.put(&name.xml(), manifest, Put::IfAbsent) {
        Ok(()) => Ok(()),
        // The answer may have been lost, or a second try have met the first: what is there decides.
        Err(e) => match storage.get(&name.xml()) {
            Ok(there) if there == manifest => Ok(()),
            Ok(_) => Err(Error::new(
                Code::ObjectExists,
                format!("{} was written by somebody else meanwhile", name.xml()),
            )),
            Err(_) => Err(e),
        },
    }
}

/// Removes a backup, or what is left of one. Returns whether anything was there.
pub fn remove(storage: &dyn Storage, name: &Name) -> Result<bool> {
    let mut any = false;
    for object in [name.xml(), name.zip(), name.log()] {
        match storage.delete(&object) {
            Ok(()) => any = true,
            Err(e) if e.code() == Code::ObjectNotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(any)
}

/// What a container holds of one name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Bytes of the manifest; with it, it is a backup.
    pub xml: Option<u64>,
    /// Bytes of the zip.
    pub zip: Option<u64>,
    /// Bytes of the log.
    pub log: Option<u64>,
}

impl Parts {
    /// Whether it is a backup, not the leftovers or the beginnings of one.
    #[must_use]
    pub fn is_backup(&self) -> bool {
        self.xml.is_some()
    }
}

/// Everything in a container that has the name of a part of an archive, by base name.
pub fn list(storage: &dyn Storage) -> Result<BTreeMap<Name, Parts>> {
    let mut found: BTreeMap<Name, Parts> = BTreeMap::new();
    storage.list("", &mut |object| {
        let Some((base, ending)) = object.name.rsplit_once('.') else { return Ok(()) };
        let Ok(name) = Name::parse(base) else { return Ok(()) };
        let part = match ending {
            "xml" => |parts: &mut Parts, size| parts.xml = Some(size),
            "zip" => |parts: &mut Parts, size| parts.zip = Some(size),
            "log" => |parts: &mut Parts, size| parts.log = Some(size),
            _ => return Ok(()),
        };
        part(found.entry(name).or_default(), object.size);
        Ok(())
    })?;
    Ok(found)
}

/// Entry with sealed settings.
pub const SETTINGS_SEALED: &str = "settings.age";
/// Entry with plain settings.
pub const SETTINGS_PLAIN: &str = "settings.json";

/// Whether an entry of the root may have that name: one component of printable text, not one that means something
/// else on any system.
#[must_use]
pub fn is_root_name(name: &str) -> bool {
    let plain =
        |c: char| !c.is_control() && !matches!(c, '/' | '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|');
    (1..=200).contains(&name.len())
        && name.chars().all(plain)
        && !name.starts_with(['.', ' '])
        && !name.ends_with(['.', ' '])
        && !name.eq_ignore_ascii_case("fs")
}

/// The name of a database's dump in the root of an archive: that of the database where it can be, else one that is
/// like it and not yet in `taken`.
#[must_use]
pub fn root_name(database: &str, taken: &[String]) -> String {
    let mut name = String::new();
    for c in database.chars() {
        let c = if c.is_control() || matches!(c, '/' | '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|') {
            '_'
        } else {
            c
        };
        if name.len() + c.len_utf8() > 150 {
            break;
        }
        name.push(c);
    }
    let name = name.trim_start_matches(['.', ' ']).trim_end_matches(['.', ' ']).to_owned();
    let reserved = ["fs", "", METADATA, SETTINGS_PLAIN, SETTINGS_SEALED];
    let used = |name: &str| {
        reserved.iter().any(|r| r.eq_ignore_ascii_case(name))
            || taken.iter().any(|t| t.to_lowercase() == name.to_lowercase())
    };
    let mut candidate = name.clone();
    let mut number = 1;
    while used(&candidate) {
        number += 1;
        candidate.clone_from(&name);
        if name.is_empty() {
            candidate.push_str("database");
        }
        write!(candidate, "-{number}").ok();
    }
    candidate
}
