//! The tree of a zip that another program made.
//!
//! Invariants: what is below `fs/`, where there is such a folder, is the home, else everything but the dumps that a
//! manifest names. Folders that are only implied are made, within a limit. Set-uid, set-gid and sticky bits are not taken over, owners neither: nobody vouches for them.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use backstay_tree::fs::FileTime;

use super::{Contents, Node, Seen};
use crate::flaw::{Finding, Findings, Flaw};
use crate::record::{Record, RecordKind};
use crate::source::Details;
use crate::zip::read::Central;

/// Most memory for folders that are only implied, roughly.
const IMPLIED_MAX: usize = 256 << 20;
/// What one takes beside its path.
const IMPLIED_BYTES: usize = 300;

impl Contents {
    /// The tree as the zip alone has it.
    pub(super) fn foreign(&mut self, paths: &[Vec<u8>], seen: &Seen, findings: &mut Findings) {
        let below = paths.iter().any(|path| path == b"fs" || path.starts_with(b"fs/"));
        let mut tree: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
        for (number, path) in paths.iter().enumerate() {
            let is_dump = self.dumps.iter().any(|dump| dump.as_bytes() == path);
            let inside = match path.strip_prefix(b"fs/") {
                Some(inside) if below => Some(inside),
                None if below && path == b"fs" => Some(b"".as_slice()),
                _ if below || is_dump => None,
                _ => Some(path.as_slice()),
            };
            match inside {
                Some(inside) => {
                    tree.insert(inside.to_vec(), number);
                }
                None => self.beside_entry(number, path, findings),
            }
        }
        let mut made: HashSet<PathBuf> = HashSet::new();
        let mut implied = 0;
        let newest = self.entries.iter().map(time_of).max().unwrap_or_default();
        self.implied(Path::new(""), newest, tree.get(b"".as_slice()).copied(), &mut made);
        for (path, number) in tree.iter().filter(|(path, _)| !path.is_empty()) {
            let Some(entry) = self.entries.get(*number) else { continue };
            if entry.is_special() {
                let detail = "it is a device, a FIFO or a socket";
                findings.push(Finding::of_entry(&entry.name, Flaw::Unsupported, detail));
                continue;
            }
            let target = seen.targets.get(number);
            if entry.is_link() && target.is_none() {
                let detail = "it is a link whose target is too long";
                findings.push(Finding::of_entry(&entry.name, Flaw::Unsupported, detail));
                continue;
            }
            let time = time_of(entry);
            let path = PathBuf::from(OsString::from_vec(path.clone()));
            let kind = match () {
                () if entry.is_link() => RecordKind::Symlink,
                () if entry.is_folder() => RecordKind::Folder,
                () => RecordKind::File,
            };
            let mut record = record(path.clone(), kind, mode_of(entry, kind), time);
            record.size = entry.size;
            record.target = target.map(|t| OsString::from_vec(t.0.clone()));
            if let Some(folder) = path.parent() {
                implied += self.implied(folder, time, None, &mut made);
            }
            if implied > IMPLIED_MAX {
                return findings.push(Finding::of_archive(Flaw::Bomb, "it would make too many folders"));
            }
            if kind == RecordKind::Folder {
                made.insert(path);
            }
            self.nodes.push(Node { record, entry: Some(*number) });
        }
    }

    /// Makes the folders that entries lie in without being entries themselves. Gives the memory they take.
    fn implied(
        &mut self,
        folder: &Path,
        time: FileTime,
        entry: Option<usize>,
        made: &mut HashSet<PathBuf>,
    ) -> usize {
        let mut missing = Vec::new();
        for above in folder.ancestors() {
            if made.contains(above) {
                break;
            }
            missing.push(above.to_owned());
        }
        let bytes = missing.iter().map(|path| IMPLIED_BYTES + 2 * path.as_os_str().len()).sum();
        for path in missing.into_iter().rev() {
            made.insert(path.clone());
            let of = entry.and_then(|n| self.entries.get(n));
            let mode = of.map_or(0o755, |entry| mode_of(entry, RecordKind::Folder));
            let time = of.map_or(time, time_of);
            self.nodes.push(Node { record: record(path, RecordKind::Folder, mode, time), entry });
        }
        bytes
    }
}

fn record(path: PathBuf, kind: RecordKind, mode: u32, mtime: FileTime) -> Record {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let details = Details { mode, uid, gid, user: None, group: None, mtime, xattrs: Vec::new() };
    Record {
        path,
        kind,
        details,
        device: 0,
        target: None,
        link: None,
        sparse: None,
        size: 0,
        incomplete: false,
    }
}

fn mode_of(entry: &Central, kind: RecordKind) -> u32 {
    match (entry.mode & 0o777, kind) {
        (0, RecordKind::Folder) => 0o755,
        (0, _) => 0o644,
        (mode, _) => mode,
    }
}

/// The time as the extra field or DOS has it; of DOS, whose zone is not known, as if it were UTC.
fn time_of(entry: &Central) -> FileTime {
    if let Some(secs) = entry.unix_time {
        return FileTime { secs: secs.into(), nanos: 0 };
    }
    let (time, date) = entry.dos;
    let small = |value: u16| i8::try_from(value).unwrap_or(0);
    let year = i16::try_from(1980 + (date >> 9)).unwrap_or(1980);
    let at = jiff::civil::DateTime::new(
        year,
        small(date >> 5 & 15),
        small(date & 31),
        small(time >> 11),
        small(time >> 5 & 63),
        small((time & 31) * 2),
        0,
    );
    let secs =
        at.ok().and_then(|at| jiff::tz::Offset::UTC.to_timestamp(at).ok()).map_or(0, |at| at.as_second());
    FileTime { secs, nanos: 0 }
}
