//! Read-only snapshots of the volume that holds an app's home: Btrfs, ZFS, LVM.
//!
//! Invariants (`docs/adr/0010-volume-snapshots.md`):
//! * [`plan`] changes nothing. What it gives names the snapshot completely, so a caller writes it down before [`make`].
//! * [`make`] never takes over something that exists, [`remove`] removes that one snapshot by its full name and nothing else; both can
//!   be asked again after a kill at any moment.
//! * Nothing that the snapshot does not hold is passed over: a plan is refused where another volume lies in the home.
//! * A private folder is made only where nobody but root and this user can put something else in its place.
//!
//! Tools run as children with our environment and `LC_ALL=C`. Those of LVM hold the file system still while they work: they are
//! never killed.

mod btrfs;
mod lvm;
mod tools;
mod zfs;

use std::fmt;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use backstay_model::{Cancel, Code, Error, JobId, Result};
use backstay_tree::mounts::{self, Mount};
use backstay_tree::path::{escape, unescape};
use serde::{Deserialize, Serialize};

use tools::{Host, Tools};

/// What the snapshot is called in a private folder.
const INSIDE: &str = "volume";
/// Mode bits of those who are not the owner, for writing.
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// A kind of volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Kind {
    Btrfs,
    Zfs,
    Lvm,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Btrfs => "Btrfs",
            Kind::Zfs => "ZFS",
            Kind::Lvm => "LVM",
        })
    }
}

/// What a snapshot is wanted of, and for whom.
pub struct Wish<'w> {
    /// The home: absolute, without links.
    pub home: &'w Path,
    /// A folder of our own, for snapshots; it need not exist yet.
    pub folder: &'w Path,
    /// The job, whose id is in the snapshot's name.
    pub job: JobId,
    /// Of which kind it is to be; none for the one that is there.
    pub kind: Option<Kind>,
    /// Whether a path relative to the home is left out of the backup, so that it may be missing.
    pub leaves_out: &'w dyn Fn(&Path) -> bool,
}

/// A snapshot that is to be made, or was. All paths are escaped text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Of which kind.
    pub kind: Kind,
    /// The volume that it is of: a subvolume's folder, a data set, `GROUP/VOLUME`.
    pub volume: String,
    /// The snapshot as its tools name it: a folder, `DATASET@NAME`, `GROUP/NAME`.
    pub name: String,
    /// The private folder that is made for it; none where there is none.
    pub folder: Option<String>,
    /// Where the home is found in it.
    pub home: String,
    /// What else its kind needs to know: for LVM the file system, and the size in bytes of the space for changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<lvm::Details>,
    /// The device number of the file system that other volumes' places have in it, for Btrfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holes: Option<(u64, u64)>,
}

impl Snapshot {
    /// Where the home is found in it.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        path(&self.home)
    }

    fn folder(&self) -> Result<PathBuf> {
        self.folder.as_deref().map(path).ok_or_else(|| failed("The folder of a snapshot is not known"))
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.volume)
    }
}

/// Whether there was something to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It is gone now.
    Now,
    /// It was not there.
    NotThere,
}

/// What each kind of volume can do.
trait Volume {
    /// Whether a mount is of this kind, as far as its table says.
    fn holds(&self, mount: &Mount) -> bool;
    /// The snapshot that would be made. `VolumeSnapshotFailed` says why there can be none.
    fn plan(&self, wish: &Wish<'_>, mount: &Mount, tools: &dyn Tools, cancel: &Cancel) -> Result<Snapshot>;
    /// Makes it, so that the home is found in it.
    fn make(&self, snapshot: &Snapshot, tools: &dyn Tools, cancel: &Cancel) -> Result<()>;
    /// Whether what is read in it is still what it was when it was made.
    fn check(&self, _snapshot: &Snapshot, _tools: &dyn Tools) -> Result<()> {
        Ok(())
    }
    /// Removes it and all that was made for it.
    fn remove(&self, snapshot: &Snapshot, tools: &dyn Tools) -> Result<Removed>;
}

fn of(kind: Kind) -> &'static dyn Volume {
    match kind {
        Kind::Btrfs => &btrfs::Btrfs,
        Kind::Zfs => &zfs::Zfs,
        Kind::Lvm => &lvm::Lvm,
    }
}

/// Which snapshot would be made of the volume that holds a home; `VolumeSnapshotFailed` says why there can be none. Nothing is
/// changed.
pub fn plan(wish: &Wish<'_>, cancel: &Cancel) -> Result<Snapshot> {
    plan_with(wish, &Host, cancel)
}

fn plan_with(wish: &Wish<'_>, tools: &dyn Tools, cancel: &Cancel) -> Result<Snapshot> {
    let mount = mounts::holding(wish.home)?;
    let found = [Kind::Btrfs, Kind::Zfs, Kind::Lvm].into_iter().find(|kind| of(*kind).holds(&mount));
    let is = format!("lies on {} ({})", mount.file_system, escape(&mount.source));
    let kind = match (found, wish.kind) {
        (Some(found), None) => found,
        (Some(found), Some(wanted)) if found == wanted => found,
        (_, Some(wanted)) => return Err(failed(format!("The home {is}, not on {wanted}"))),
        (None, None) => return Err(failed(format!("The home {is}, of which no snapshots can be made"))),
    };
    if !may_administer() {
        return Err(failed(format!("Snapshots of {kind} can be made and removed by root only")));
    }
    of(kind).plan(wish, &mount, tools, cancel)
}

/// Makes a snapshot that was planned. After an error, as after a kill, [`remove`] takes away what there is of it.
pub fn make(snapshot: &Snapshot, cancel: &Cancel) -> Result<()> {
    of(snapshot.kind).make(snapshot, &Host, cancel)?;
    let home = snapshot.home();
    match home.symlink_metadata() {
        Ok(meta) if meta.is_dir() => Ok(()),
        _ => Err(failed(format!("The home is not found in the snapshot at {}", home.display()))),
    }
}

/// Whether what was read in it is what it was when it was made.
pub fn check(snapshot: &Snapshot) -> Result<()> {
    of(snapshot.kind).check(snapshot, &Host)
}

/// Removes a snapshot and all that was made for it, as far as it is there.
pub fn remove(snapshot: &Snapshot) -> Result<Removed> {
    of(snapshot.kind).remove(snapshot, &Host)
}

fn failed(message: impl Into<String>) -> Error {
    Error::new(Code::VolumeSnapshotFailed, message)
}

fn path(escaped: &str) -> PathBuf {
    unescape(escaped).map_or_else(|| PathBuf::from(escaped), PathBuf::from)
}

fn text(path: &Path) -> String {
    escape(path.as_os_str())
}

/// The name of a job's snapshot where it has no folder.
fn name_of(job: JobId) -> String {
    format!("backstay-{job}")
}

/// Whether this process may make snapshots and, above all, remove them again: as root of the whole machine, not of a
/// namespace, and with the right to administer it.
fn may_administer() -> bool {
    const ADMINISTER: u64 = 1 << 21;
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let whole = map.split_whitespace().eq(["0", "0", "4294967295"]);
    rustix::process::geteuid().is_root() && effective & ADMINISTER != 0 && whole
}

/// Whether nobody but root and this user can put something else in the place of what lies in a folder: each folder from the root
/// down to it belongs to one of them and is written by no one else, or keeps others' entries from being renamed.
fn is_guarded(folder: &Path) -> bool {
    let ours = rustix::process::geteuid().as_raw();
    folder.ancestors().all(|at| {
        at.symlink_metadata().is_ok_and(|meta| {
            let owned = meta.uid() == 0 || meta.uid() == ours;
            meta.is_dir() && owned && (meta.mode() & OTHERS_WRITE == 0 || meta.mode() & STICKY != 0)
        })
    })
}

/// Makes the private folder of a snapshot; one that exists is somebody else's.
fn make_folder(folder: &Path) -> Result<()> {
    let made = folder
        .parent()
        .map_or(Ok(()), |above| std::fs::DirBuilder::new().recursive(true).mode(0o700).create(above))
        .and_then(|()| std::fs::DirBuilder::new().mode(0o700).create(folder));
    made.map_err(|e| failed(format!("Cannot make the folder {}", folder.display())).because(e))
}

/// Removes the private folder, which is empty.
fn remove_folder(folder: &Path) -> Result<Removed> {
    match std::fs::remove_dir(folder) {
        Ok(()) => Ok(Removed::Now),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Removed::NotThere),
        Err(e) => Err(failed(format!("Cannot remove the folder {}", folder.display())).because(e)),
    }
}

#[cfg(test)]
mod tests;
