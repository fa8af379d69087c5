//! The manifest: what was saved, and what the zip must be.
//!
//! Invariants: the bytes are a function of the value. The file ends with an `Integrity` element of fixed form, with the
//! SHA-256 of every byte before it and, where the writer has a key, a signature of that hash; it is checked before
//! any parser sees the rest. Names are escaped text (`\xNN`, `\\`), so any bytes survive. `docs/manifest.xsd`, which is
//! [`SCHEMA`], describes it.

mod integrity;
mod parse;
mod xml;

use backstay_model::{Error, PointId, Problem, ProblemKind, Result};
use jiff::Timestamp;

use crate::index::EntryRecord;
use crate::record::shown;
use crate::sign::{SigningKey, hex};
use xml::Xml;

pub use integrity::{Integrity, Trust};
pub(crate) use parse::databases_of_foreign;

/// The schema of manifests, as published in `docs/manifest.xsd`.
pub const SCHEMA: &str = include_str!("../../../docs/manifest.xsd");
/// The namespace of manifests.
pub(crate) const NAMESPACE: &str = "urn:backstay:manifest:1";
/// The version that this program writes.
pub(crate) const VERSION: u32 = 1;

/// What a backup says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The program that wrote it.
    pub program: String,
    /// The app.
    pub app: String,
    /// Its slot; none for production.
    pub slot: Option<String>,
    /// The point of the vault that this is a copy of.
    pub point: Option<PointId>,
    /// What kind of app.
    pub kind: String,
    /// The machine.
    pub host: String,
    /// The home on that machine, escaped.
    pub home: String,
    /// Host names under which the app is known.
    pub host_names: Vec<String>,
    /// When reading began.
    pub started: Timestamp,
    /// When the last byte was read.
    pub ended: Timestamp,
    /// How far files and databases belong to the same moment.
    pub consistency: Consistency,
    /// Dumps in the root of the zip.
    pub databases: Vec<Database>,
    /// The settings in the root of the zip.
    pub settings: Option<Settings>,
    /// The lines of the filter that was in force.
    pub filter: Vec<String>,
    /// What a person should know: what could not be read, what was left out.
    pub problems: Vec<Problem>,
    /// The zip.
    pub zip: ZipRecord,
    /// All of its entries, in its order.
    pub entries: Vec<EntryRecord>,
}

/// The zip that a manifest belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZipRecord {
    /// The name of the object.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Of all its bytes.
    pub sha256: [u8; 32],
}

/// How far files and databases belong to the same moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Consistency {
    /// In a word: `files-only`, `crash`, `database-first`, …
    pub class: String,
    /// What was read when, in the order in which it was done.
    pub steps: Vec<Step>,
}

/// Something that was read, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// `files`, `database`, `files-delta`.
    pub what: String,
    /// Begin.
    pub started: Timestamp,
    /// End.
    pub ended: Timestamp,
    /// Where a database stood: its log position, as it names it.
    pub position: Option<String>,
}

/// A dump in the root of the zip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    /// The name of the connection in the app's settings.
    pub connection: String,
    /// The database's own name.
    pub name: String,
    /// `PostgreSql`, `MySql`, `Sqlite`, `SqlServer`.
    pub kind: String,
    /// The server's version.
    pub version: Option<String>,
    /// The entry that holds the dump.
    pub file: String,
    /// What is known of the dump and needed to restore it over a database, as JSON: rows, hashes, structure.
    pub record: Option<String>,
}

/// How the settings lie in the zip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The entry.
    pub file: String,
    /// By what they are sealed.
    pub sealed: Sealed,
}

/// By what settings are sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sealed {
    /// age recipients: the identity of any of them opens.
    Recipients(Vec<String>),
    /// A passphrase.
    Passphrase,
    /// Nothing: anybody reads them.
    Plain,
}

/// A text of the manifest's attributes for each kind of problem: that of the JSON.
pub(crate) fn kind_text(kind: ProblemKind) -> String {
    serde_json::to_value(kind).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

impl Manifest {
    /// The bytes of the file, signed if there is a key.
    pub fn to_xml(&self, key: Option<&SigningKey>) -> Vec<u8> {
        let mut xml = Xml::new();
        xml.declaration();
        xml.open("BackupDescription", &[("xmlns", NAMESPACE), ("version", &VERSION.to_string())]);
        self.head(&mut xml);
        self.parts(&mut xml);
        self.archive(&mut xml);
        integrity::seal(xml.into_bytes(), key)
    }

    fn head(&self, xml: &mut Xml) {
        xml.text("Program", &[], &self.program);
        xml.text("App", &[], &self.app);
        if let Some(slot) = &self.slot {
            xml.text("Slot", &[], slot);
        }
        if let Some(point) = &self.point {
            xml.text("Point", &[], &point.to_string());
        }
        xml.text("Kind", &[], &self.kind);
        xml.text("Host", &[], &self.host);
        xml.text("Home", &[], &self.home);
        xml.open("HostNames", &[]);
        for name in &self.host_names {
            xml.text("HostName", &[], name);
        }
        xml.close("HostNames");
        xml.text("Started", &[], &self.started.to_string());
        xml.text("Ended", &[], &self.ended.to_string());
        xml.open("Consistency", &[("class", &self.consistency.class)]);
        for step in &self.consistency.steps {
            let (started, ended) = (step.started.to_string(), step.ended.to_string());
            let mut attributes = vec![("what", step.what.as_str()), ("started", &started), ("ended", &ended)];
            if let Some(position) = &step.position {
                attributes.push(("position", position));
            }
            xml.empty("Step", &attributes);
        }
        xml.close("Consistency");
    }

    fn parts(&self, xml: &mut Xml) {
        xml.open("Databases", &[]);
        for database in &self.databases {
            xml.open("DatabaseBackupDescription", &[]);
            xml.text("ConnectionName", &[], &database.connection);
            xml.text("DatabaseName", &[], &database.name);
            xml.text("DatabaseType", &[], &database.kind);
            if let Some(version) = &database.version {
                xml.text("ServerVersion", &[], version);
            }
            xml.text("FileName", &[], &database.file);
            if let Some(record) = &database.record {
                xml.text("Record", &[], record);
            }
            xml.close("DatabaseBackupDescription");
        }
        xml.close("Databases");
        if let Some(settings) = &self.settings {
            let sealed = match &settings.sealed {
                Sealed::Recipients(_) => "recipients",
                Sealed::Passphrase => "passphrase",
                Sealed::Plain => "plain",
            };
            xml.open("Settings", &[("file", &settings.file), ("sealed", sealed)]);
            if let Sealed::Recipients(recipients) = &settings.sealed {
                for recipient in recipients {
                    xml.text("Recipient", &[], recipient);
                }
            }
            xml.close("Settings");
        }
        xml.open("Filter", &[]);
        for line in &self.filter {
            xml.text("Line", &[], line);
        }
        xml.close("Filter");
        xml.open("Problems", &[]);
        for problem in &self.problems {
            let kind = kind_text(problem.kind);
            xml.text("Problem", &[("path", &problem.path), ("kind", &kind)], &problem.detail);
        }
        xml.close("Problems");
    }

    fn archive(&self, xml: &mut Xml) {
        let (size, sha256) = (self.zip.size.to_string(), hex(&self.zip.sha256));
        xml.empty("Archive", &[("name", &self.zip.name), ("size", &size), ("sha256", &sha256)]);
        xml.open("Entries", &[("count", &self.entries.len().to_string())]);
        for entry in &self.entries {
            let name = entry.shown();
            let (size, crc) = (entry.size.to_string(), format!("{:08x}", entry.crc));
            let attributes =
                [("name", &*name), ("size", &size), ("crc", &crc), ("sha256", &hex(&entry.sha256))];
            xml.empty("Entry", &attributes);
        }
        xml.close("Entries");
    }

    /// Reads the bytes of a manifest. `ArchiveDamaged` when they are not what was written, `ArchiveUnsupported` for
    /// newer versions and for manifests of other programs.
    pub fn from_xml(bytes: &[u8], trust: &Trust) -> Result<(Self, Integrity)> {
        let (body, integrity) = integrity::check(bytes, trust)?;
        parse::manifest(body).map(|manifest| (manifest, integrity))
    }
}

impl EntryRecord {
    /// The name as text that can be printed anywhere: bytes that are not UTF-8 and control characters as `\xNN`, a
    /// backslash doubled.
    #[must_use]
    pub fn shown(&self) -> String {
        use std::os::unix::ffi::OsStrExt as _;
        shown(std::ffi::OsStr::from_bytes(&self.name))
    }
}

/// An error about a manifest that is not what it must be.
pub(crate) fn damaged(why: impl std::fmt::Display) -> Error {
    Error::new(backstay_model::Code::ArchiveDamaged, format!("The manifest is damaged: {why}"))
}
