//! A home that stands still: in a snapshot of its volume, for the time of a backup.
//!
//! Invariants (`docs/adr/0010-volume-snapshots.md`): a note of the snapshot (`snapshots/<job>.json` in the state, written whole and synced)
//! is there before it is begun and goes after it is gone, so whatever a kill leaves is removed by the next command, and nothing
//! else ever is. A snapshot goes with the value that holds it. Those of jobs that run are left alone.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_catalog::App;
use backstay_model::app::VolumeSnapshot;
use backstay_model::{AppName, Code, Error, JobId, JobKind, JobState, Problem, ProblemKind, Result};
use backstay_platform::volume::{self, Kind, Removed, Snapshot, Wish};
use backstay_tree::Exclusions;
use backstay_tree::fs::Stat;
use backstay_tree::mounts;
use backstay_vault::backup::Still;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::filter::AppFilter;
use crate::job::Running;
use crate::private;
use crate::restore::Resumed;
use crate::state::Engine;

/// The folder of the notes, and of the snapshots that may lie there, in the state folder.
const FOLDER: &str = "snapshots";
const ENDING: &str = ".json";
/// A tool that must not be killed may go on for so long after a kill of ours.
const LINGERS: Duration = Duration::from_mins(2);

/// What is written down before a snapshot is made.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    app: AppName,
    at: Timestamp,
    snapshot: Snapshot,
}

/// A snapshot that stands. It goes with the value at the latest.
pub(crate) struct Held<'h> {
    engine: &'h Engine,
    job: JobId,
    snapshot: Snapshot,
    /// A time before it was begun, by the system's clock: that of files.
    since: Timestamp,
    over: bool,
}

impl Engine {
    /// The snapshot that is to be made for a backup; none where none is asked for. The error says why there can be none.
    pub(super) fn planned(
        &self,
        job: &Running<'_>,
        app: &App,
        real: &Path,
        inside: &[PathBuf],
        filter: Option<&AppFilter>,
    ) -> Result<Option<Snapshot>> {
        let kind = match app.config.snapshot {
            VolumeSnapshot::Off => return Ok(None),
            VolumeSnapshot::Auto => None,
            VolumeSnapshot::Btrfs => Some(Kind::Btrfs),
            VolumeSnapshot::Zfs => Some(Kind::Zfs),
            VolumeSnapshot::Lvm => Some(Kind::Lvm),
        };
        // A safety point is taken of an app that stands still, or of one that stops soon.
        if job.kind() != JobKind::Backup {
            return Ok(None);
        }
        let leaves_out = |path: &Path| {
            inside.iter().any(|own| path.starts_with(own))
                || filter.is_some_and(|f| f.filter.matches(path).is_some())
        };
        let folder = self.snapshots_folder();
        let wish = Wish { home: real, folder: &folder, job: job.id(), kind, leaves_out: &leaves_out };
        volume::plan(&wish, job.cancel()).map(Some)
    }

    /// Makes a snapshot that was planned.
    pub(super) fn hold<'h>(&'h self, job: &Running<'_>, app: &App, snapshot: Snapshot) -> Result<Held<'h>> {
        let folder = self.snapshots_folder();
        private::make_folder(&*self.fs, &folder)?;
        let note = Note { app: app.name.clone(), at: Timestamp::now(), snapshot };
        let json = serde_json::to_vec(&note)
            .map_err(|e| Error::new(Code::Internal, "The note of a snapshot cannot be written").because(e))?;
        private::write_new(&*self.fs, &folder, &note_name(job.id()), &json)?;
        let held = Held {
            engine: self,
            job: job.id(),
            snapshot: note.snapshot,
            since: Timestamp::now(),
            over: false,
        };
        volume::make(&held.snapshot, job.cancel())?;
        job.log(format!("Snapshot of {} made: {}", held.snapshot, held.snapshot.name));
        Ok(held)
    }

    /// Removes what backups that were killed have left. Cheap where there is nothing.
    pub(crate) fn resume_snapshots(&self) -> Vec<Resumed> {
        let folder = self.snapshots_folder();
        let mut told = Vec::new();
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Some((job, is_half)) = private::note_of(&entry.file_name()) else { continue };
            if is_half {
                // Nothing was begun.
                if !self.still_runs(job).unwrap_or(true) {
                    std::fs::remove_file(entry.path()).unwrap_or_default();
                }
                continue;
            }
            match self.resume_snapshot(&folder, job) {
                Ok(None) => {}
                Ok(Some((app, what))) => told.push(Resumed { job, app: Some(app), what, stuck: false }),
                Err(e) => {
                    let causes: String = e.causes().iter().map(|c| format!(": {c}")).collect();
                    let what = format!("A snapshot that a backup left cannot be removed: {e}{causes}");
                    told.push(Resumed { job, app: None, what, stuck: false });
                }
            }
        }
        told
    }

    fn still_runs(&self, job: JobId) -> Result<bool> {
        Ok(self.has_catalog() && self.catalog()?.job(&job)?.is_some_and(|j| j.state == JobState::Running))
    }

    fn resume_snapshot(&self, folder: &Path, job: JobId) -> Result<Option<(AppName, String)>> {
        if self.still_runs(job)? {
            return Ok(None);
        }
        let Some(bytes) = private::read(&folder.join(note_name(job)))? else { return Ok(None) };
        let note: Note = serde_json::from_slice(&bytes).map_err(|e| {
            let path = folder.join(note_name(job));
            Error::new(Code::StateAccess, format!("{} cannot be understood", path.display())).because(e)
        })?;
        let removed = volume::remove(&note.snapshot)?;
        let age = Timestamp::now().duration_since(note.at).unsigned_abs();
        if removed == Removed::NotThere && note.snapshot.kind == Kind::Lvm && age < LINGERS {
            // It may be on its way still.
            return Ok(None);
        }
        private::remove(&*self.fs, folder, &note_name(job))?;
        let what =
            format!("The snapshot of {} that a backup of `{}` left is removed", note.snapshot, note.app);
        Ok((removed == Removed::Now).then_some((note.app, what)))
    }

    fn snapshots_folder(&self) -> PathBuf {
        self.state.join(FOLDER)
    }

    /// What is not part of the home, as it is found in a snapshot: devices are others there, and mounts are not seen.
    pub(super) fn exclusions_still(
        &self,
        real: &Path,
        inside: &[PathBuf],
        held: &Held<'_>,
    ) -> Result<Exclusions> {
        let home = held.snapshot.home();
        let mut exclusions = self.exclusions_in(&home, inside)?;
        if let Some((device, inode)) = held.snapshot.holes {
            exclusions.add_hole(device, inode);
        }
        for at in mounts::below(real)? {
            let below = at.strip_prefix(real).unwrap_or(&at);
            // What is not in the snapshot need not be left out of it.
            let Ok(hidden) = self.look(&home.join(below)) else { continue };
            exclusions.add_mount(&hidden, self.look(&at).unwrap_or(hidden));
        }
        Ok(exclusions)
    }

    fn look(&self, path: &Path) -> std::io::Result<Stat> {
        use std::os::fd::AsFd as _;
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(std::io::ErrorKind::InvalidInput.into());
        };
        let folder = self.fs.open_root(folder)?;
        self.fs.stat(folder.as_fd(), name)
    }
}

fn note_name(job: JobId) -> String {
    format!("{job}{ENDING}")
}

impl Held<'_> {
    /// Where the home stands still.
    pub fn still(&self) -> Still {
        Still { home: self.snapshot.home(), since: self.since }
    }

    /// The volume that it is of.
    pub fn volume(&self) -> String {
        self.snapshot.to_string()
    }

    /// Whether all that was read is as it was when it was made.
    pub fn check(&self) -> Result<()> {
        volume::check(&self.snapshot)
    }

    /// Removes it.
    pub fn end(mut self) -> Result<()> {
        self.remove()
    }

    fn remove(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.over, true) {
            return Ok(());
        }
        volume::remove(&self.snapshot)?;
        private::remove(&*self.engine.fs, &self.engine.snapshots_folder(), &note_name(self.job))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // What stays is noted, and removed by the next command; something else has failed already.
        self.remove().unwrap_or_default();
    }
}

/// What is told where the files are read without the snapshot that was asked for.
pub(super) fn without(wanted: VolumeSnapshot, why: &Error) -> Problem {
    let causes: String = why.causes().iter().map(|c| format!(": {c}")).collect();
    let kind = if wanted == VolumeSnapshot::Auto { ProblemKind::Told } else { ProblemKind::Volume };
    Problem {
        path: "volume".to_owned(),
        kind,
        detail: format!("Read without a snapshot: {}{causes}", why.message()),
    }
}

/// What is told of SQLite files that no point has had before.
pub(super) fn late(path: &Path) -> Problem {
    Problem {
        path: backstay_tree::path::escape(path.as_os_str()),
        kind: ProblemKind::Told,
        detail: "A database that is new to Backstay: its copy was made after the snapshot".to_owned(),
    }
}

/// Those of `found` that are not in `known`.
pub(super) fn new_ones(found: Vec<PathBuf>, known: &BTreeSet<PathBuf>) -> Vec<PathBuf> {
    found.into_iter().filter(|path| !known.contains(path)).collect()
}
