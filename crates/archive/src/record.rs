//! `metadata.jsonl`: what a zip cannot say about the entries of the home.
//!
//! Invariants: one JSON object a line; the first says the version, then comes one for every path of the home, the home
//! itself (an empty path) first, in the order of the archive. Names are escaped text, so bytes that are not UTF-8
//! survive. Fields that this version does not know are ignored.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use backstay_model::{Code, Error, Result};
use backstay_tree::fs::{FileTime, Kind};
use backstay_tree::path::{escape, unescape};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::source::Details;

/// Name of the entry that holds the records.
pub const METADATA: &str = "metadata.jsonl";
/// The version that this program writes.
pub(crate) const VERSION: u32 = 1;
/// Longest line, in bytes.
pub(crate) const LINE_MAX: usize = 4 << 20;

/// The first line.
#[derive(Serialize, Deserialize)]
pub(crate) struct Version {
    backstay_metadata: u32,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordKind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A character device.
    Char,
    /// A block device.
    Block,
}

/// One entry of the home.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its path below the home; empty for the home itself.
    pub path: PathBuf,
    /// What it is.
    pub kind: RecordKind,
    /// All about it but its content.
    pub details: Details,
    /// Device number, for devices.
    pub device: u64,
    /// Where a symbolic link points.
    pub target: Option<OsString>,
    /// The first path of the same file.
    pub link: Option<PathBuf>,
    /// Ranges `[start, end)` of data, of a file with holes.
    pub sparse: Option<Vec<(u64, u64)>>,
    /// Bytes of content of a file.
    pub size: u64,
    /// The content ends early: it could not be read to its end.
    pub incomplete: bool,
}

/// As it stands in a line.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    path: std::borrow::Cow<'a, str>,
    kind: RecordKind,
    mode: std::borrow::Cow<'a, str>,
    uid: u32,
    gid: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<std::borrow::Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group: Option<std::borrow::Cow<'a, str>>,
    mtime: std::borrow::Cow<'a, str>,
    #[serde(default, skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    device: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    link: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sparse: Option<Vec<(u64, u64)>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    xattrs: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    incomplete: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl RecordKind {
    pub(crate) fn of(kind: Kind) -> Option<Self> {
        Some(match kind {
            Kind::File => RecordKind::File,
            Kind::Dir => RecordKind::Folder,
            Kind::Symlink => RecordKind::Symlink,
            Kind::Fifo => RecordKind::Fifo,
            Kind::CharDevice => RecordKind::Char,
            Kind::BlockDevice => RecordKind::Block,
            Kind::Socket => return None,
        })
    }

    /// The kind as the file system has it.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            RecordKind::File => Kind::File,
            RecordKind::Folder => Kind::Dir,
            RecordKind::Symlink => Kind::Symlink,
            RecordKind::Fifo => Kind::Fifo,
            RecordKind::Char => Kind::CharDevice,
            RecordKind::Block => Kind::BlockDevice,
        }
    }
}

/// The first line of the file.
pub(crate) fn first_line() -> String {
    format!("{{\"backstay_metadata\":{VERSION}}}\n")
}

/// Checks the first line.
pub(crate) fn check_first_line(line: &[u8]) -> Result<()> {
    let Version { backstay_metadata: version } =
        serde_json::from_slice(line).map_err(|_not_it| damaged(1, "it does not begin with a version"))?;
    if version > VERSION {
        let message = format!("{METADATA} has version {version}, newest known is {VERSION}");
        return Err(Error::new(Code::ArchiveUnsupported, message));
    }
    Ok(())
}

pub(crate) fn damaged(line: u64, why: &str) -> Error {
    Error::new(Code::ArchiveDamaged, format!("{METADATA}, line {line}: {why}"))
}

fn text(path: &Path) -> String {
    escape(path.as_os_str())
}

impl Record {
    /// Appends the line.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let details = &self.details;
        let line = Line {
            path: text(&self.path).into(),
            kind: self.kind,
            mode: format!("{:o}", details.mode).into(),
            uid: details.uid,
            gid: details.gid,
            user: details.user.as_deref().map(Into::into),
            group: details.group.as_deref().map(Into::into),
            mtime: format!("{}.{:09}", details.mtime.secs, details.mtime.nanos).into(),
            size: self.size,
            device: self.device,
            target: self.target.as_deref().map(escape),
            link: self.link.as_deref().map(text),
            sparse: self.sparse.clone(),
            xattrs: details.xattrs.iter().map(|(n, v)| (escape(n), STANDARD.encode(v))).collect(),
            incomplete: self.incomplete,
        };
        // Writing numbers and text to memory cannot fail.
        serde_json::to_writer(&mut *out, &line).ok();
        out.push(b'\n');
    }

    /// Reads a line; `number` is for the message.
    pub(crate) fn read(line: &[u8], number: u64) -> Result<Self> {
        let line: Line<'_> = serde_json::from_slice(line)
            .map_err(|e| damaged(number, &format!("not understood (column {})", e.column())))?;
        let bad = |what: &str| damaged(number, &format!("{what} cannot be read"));
        let name = |text: &str| unescape(text);
        let path = |text: &str| name(text).map(PathBuf::from).ok_or_else(|| bad("a path"));
        let (secs, nanos) = line.mtime.split_once('.').ok_or_else(|| bad("the time"))?;
        let mtime = FileTime {
            secs: secs.parse().ok().ok_or_else(|| bad("the time"))?,
            nanos: nanos.parse().ok().filter(|n| *n < 1_000_000_000).ok_or_else(|| bad("the time"))?,
        };
        let mut xattrs: Vec<(OsString, Vec<u8>)> = Vec::with_capacity(line.xattrs.len());
        for (key, value) in &line.xattrs {
            let value = STANDARD.decode(value).ok();
            xattrs.push(name(key).zip(value).ok_or_else(|| bad("an attribute"))?);
        }
        Ok(Record {
            path: path(&line.path)?,
            kind: line.kind,
            details: Details {
                mode: u32::from_str_radix(&line.mode, 8)
                    .ok()
                    .filter(|mode| *mode <= 0o7777)
                    .ok_or_else(|| bad("the mode"))?,
                uid: line.uid,
                gid: line.gid,
                user: line.user.as_deref().map(Into::into),
                group: line.group.as_deref().map(Into::into),
                mtime,
                xattrs,
            },
            device: line.device,
            target: match &line.target {
                Some(target) => Some(name(target).ok_or_else(|| bad("the target"))?),
                None => None,
            },
            link: line.link.as_deref().map(path).transpose()?,
            sparse: line.sparse,
            size: line.size,
            incomplete: line.incomplete,
        })
    }
}

/// Text of a name for messages and the manifest: as [`escape`], and without the two characters that XML cannot hold.
pub(crate) fn shown(name: &OsStr) -> String {
    let text = escape(name);
    if text.contains(['\u{fffe}', '\u{ffff}']) {
        text.replace('\u{fffe}', "\\xef\\xbf\\xbe").replace('\u{ffff}', "\\xef\\xbf\\xbf")
    } else {
        text
    }
}
