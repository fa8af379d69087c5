//! `backstay.json`: what a point says about itself.
//!
//! Invariants: lies in the root of the point's tree beside `content`, so it is as whole and as secret as the rest. A
//! restore needs only `sparse` from it; a point whose manifest cannot be read still restores (holes become zeros).
//! Paths are escaped text, so names that are not UTF-8 survive.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use backstay_database::DumpRecord;
use backstay_model::{AppName, Code, Counts, Error, PointId, Problem, Result};
use backstay_tree::path::unescape;
use backstay_vault::backup::SparseFile;
use backstay_vault::{Id, Reader};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::filter::FilterRecord;

/// Name of the manifest in a point's root.
pub(crate) const FILE: &str = "backstay.json";
/// Name of the app's home in a point's root.
pub(crate) const CONTENT: &str = "content";
/// Name of the folder of dumps in a point's root.
pub(crate) const DATABASES: &str = "databases";
/// Name of the app's settings in a point's root.
pub(crate) const SETTINGS: &str = "settings.json";
/// The same where they came sealed and could not be opened.
pub(crate) const SETTINGS_SEALED: &str = "settings.age";
const VERSION: u32 = 1;
/// The program that writes manifests, with its version.
pub(crate) const PROGRAM: &str = concat!("backstay ", env!("CARGO_PKG_VERSION"));

/// The name of this machine.
pub(crate) fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// What a point says about itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format.
    pub backstay: u32,
    /// The program that wrote it.
    pub program: String,
    /// The point.
    pub point: PointId,
    /// The app.
    pub app: AppName,
    /// What kind of app.
    pub kind: String,
    /// Its home on the machine that took the point.
    pub home: String,
    /// That machine.
    pub host: String,
    /// When reading began.
    pub started: Timestamp,
    /// When the last file was read.
    pub ended: Timestamp,
    /// Files and bytes of content.
    pub counts: Counts,
    /// What a person should know: what could not be read, what was left out.
    pub problems: Vec<Problem>,
    /// The filter that was obeyed; none where everything was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<FilterRecord>,
    /// Files with holes and where they have data.
    #[serde(default)]
    pub sparse: Vec<SparseFile>,
    /// The dumps in [`DATABASES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<SavedDatabase>,
    /// Databases that were not due when the point was taken, and where they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<Waiting>,
    /// SQLite files of the home whose bytes come from a consistent copy, escaped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sqlite: Vec<String>,
    /// How far files and databases belong to the same moment: `files-only`, `ordered`, `quiesced`,
    /// `snapshot` (all files are those of one moment).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub consistency: String,
    /// What was read when, where there is more than the files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepRecord>,
    /// The archive that the point was brought in from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<ArchiveRecord>,
}

/// A database that was not due, and the point that has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The name of the connection.
    pub connection: String,
    /// The last point that has it.
    pub point: PointId,
    /// When that was taken.
    pub at: Timestamp,
    /// How often it is due.
    pub every_seconds: u64,
    /// Its size, about.
    pub bytes: u64,
}

/// A dump of a linked database in a point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDatabase {
    /// The name of the connection in the app's settings.
    pub connection: String,
    /// The database's own name.
    pub name: String,
    /// `PostgreSql`, `MySql`, `Sqlite`, `SqlServer`.
    pub kind: String,
    /// The server's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The dump's name in [`DATABASES`].
    pub file: String,
    /// What is known of the dump; none where it came in with an archive of another program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dump: Option<DumpRecord>,
    /// Whether it is that of the app's own MySQL, which needs no connection string.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_app: bool,
}

/// What a point that was brought in from an archive remembers of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveRecord {
    /// The zip, as it was named.
    pub name: String,
    /// The app that it says it is of; empty without a manifest.
    #[serde(default)]
    pub app: String,
    /// SHA-256 of the zip.
    pub sha256: String,
    /// What vouched for it.
    pub proof: Proof,
    /// When it was brought in.
    pub imported: Timestamp,
    /// The point of another vault that it was a copy of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub point: Option<PointId>,
    /// The app's slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// Host names under which the app was known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_names: Vec<String>,
    /// How far files and databases belong to the same moment, in a word.
    #[serde(default)]
    pub consistency: String,
    /// What was read when.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepRecord>,
    /// The age recipients of settings that were not opened; empty for a passphrase; none where they were opened or there are
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_for: Option<Vec<String>>,
}

/// What vouches for an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proof {
    /// Its manifest, signed by this server.
    Signed,
    /// Its manifest, signed by a server whose key is not known here.
    UnknownKey,
    /// Its manifest, which nobody signed.
    Unsigned,
    /// Nothing: it has no manifest of Backstay's.
    Nothing,
}

/// Something that was read for an archive, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRecord {
    /// `files`, `database`, `sqlite`, `snapshot` (of the home's volume), `files-delta`.
    pub what: String,
    /// Begin.
    pub started: Timestamp,
    /// End.
    pub ended: Timestamp,
    /// Where a database stood: its log position, as it names it. Of a snapshot: the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
}

impl Manifest {
    /// The version that this program writes.
    pub const VERSION: u32 = VERSION;

    /// As the bytes of the file.
    pub(crate) fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self)
            .map_err(|e| Error::new(Code::Internal, "The manifest cannot be written").because(e))
    }

    /// The manifest of a point; none for snapshots of other programs.
    pub(crate) fn load(reader: &Reader, root: &Id) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Version {
            backstay: u32,
        }
        let node = match reader.find(root, FILE.as_ref()) {
            Ok(node) => node,
            Err(e) if e.code() == Code::PathNotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut bytes = Vec::new();
        reader.cat(&node, &mut bytes)?;
        let damaged = |e: serde_json::Error| {
            Error::new(Code::VaultDamaged, "The manifest of the point cannot be understood").because(e)
        };
        let Version { backstay: version } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if version > VERSION {
            let message = format!("The point's manifest has version {version}, newest known is {VERSION}");
            return Err(Error::new(Code::VaultUnsupported, message));
        }
        serde_json::from_slice(&bytes).map(Some).map_err(damaged)
    }

    /// The manifest of an earlier point, where it can be understood: only what saves work is taken from it.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(bytes).ok().filter(|m| m.backstay <= VERSION)
    }

    /// The SQLite files whose bytes are those of a copy.
    pub(crate) fn sqlite_paths(&self) -> BTreeSet<PathBuf> {
        self.sqlite.iter().filter_map(|path| Some(PathBuf::from(unescape(path)?))).collect()
    }

    /// Where the holes are, for a restore.
    pub(crate) fn holes(&self) -> HashMap<PathBuf, Vec<(u64, u64)>> {
        let file = |f: &SparseFile| Some((PathBuf::from(unescape(&f.path)?), f.data.clone()));
        self.sparse.iter().filter_map(file).collect()
    }
}
