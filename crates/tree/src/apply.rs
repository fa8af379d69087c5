//! Changing a live tree by a journal: all or nothing, back and forth (`docs/adr/0004-restore-in-place.md`).
//!
//! One job goes this way: [`Workplace::prepare`] makes a private folder on the home's mount; the caller writes what
//! is new below [`Workplace::staging_path`]; [`Workplace::commit`] compares the home with the plan and writes the
//! journal; [`Journal::settle`] exchanges old and new, either way and any number of times; [`Journal::close`]
//! says that the caller is done; [`Journal::discard`] deletes the other side. [`recover`] finishes what was stopped.
//!
//! Invariants:
//! - Until the journal's rename nothing of the home has changed. From then on the tree is brought to the goal of
//!   the journal, by this process or by the next one that calls [`recover`].
//! - A step exchanges the live entry with the one in its *slot*, `staged/<path>` in the workplace. It is done when
//!   the slot no longer holds what the journal says it held. Only the workplace decides that.
//! - Nothing of the app is deleted before [`Journal::discard`], entries that it made meanwhile included.
//! - All is reached by handles beneath the home and the workplace: no links, no mounts, and each folder in which
//!   something changes must be the inode that was recorded.
//!
//! Crash: every file of the state is complete or absent; every step can be repeated; a turn counts as settled only
//! after all its folders are synced. Locks: the job's folder in the state is locked (`flock`) while a
//! [`Workplace`] or [`Journal`] lives; the folder of all jobs is locked for moments while one is made or found.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_model::{Code, Error, JobId, Result};
use serde_json::Value;

use crate::fs::{FileSystem, FileTime, Kind, Stat};
use crate::metadata;

mod commit;
mod place;
mod record;
mod recover;
mod settle;
mod state;

use place::Place;
pub use record::{Side, Values};
pub use recover::{Kept, Outcome, Recovered, list, recover};
use state::{Jobs, Phase, Taken};

/// What the names of all workplaces begin with.
const PREFIX: &str = ".backstay-";

/// Whether a name is that of a workplace: walks leave such folders out, in a home and beside it.
#[must_use]
pub fn is_workplace(name: &OsStr) -> bool {
    name.as_bytes()
        .strip_prefix(PREFIX.as_bytes())
        .is_some_and(|id| id.len() == 32 && id.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

/// The name of a job's workplace, which walks leave out.
#[must_use]
pub fn workplace_name(job: JobId) -> String {
    format!("{PREFIX}{job}")
}

/// A live entry as the plan saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What it was.
    pub kind: Kind,
    /// Its inode number.
    pub inode: u64,
    /// Its last change; not compared for folders, whose own change says nothing of what is below.
    pub ctime: FileTime,
    /// Its length; compared for files.
    pub size: u64,
}

impl From<&Stat> for Seen {
    fn from(stat: &Stat) -> Self {
        Seen { kind: stat.kind, inode: stat.inode, ctime: stat.ctime, size: stat.size }
    }
}

impl Seen {
    fn is_still(&self, now: &Stat) -> bool {
        let same = self.kind == now.kind && self.inode == now.inode;
        match self.kind {
            Kind::Dir => same,
            Kind::File => same && self.ctime == now.ctime && self.size == now.size,
            _ => same && self.ctime == now.ctime,
        }
    }
}

/// An entry that is added, replaced or removed, at the highest level that differs.
#[derive(Clone, Debug)]
pub struct Step {
    /// Path below the home, of plain components.
    pub path: PathBuf,
    /// What is there now; none for nothing.
    pub old: Option<Seen>,
    /// What was staged for it; none when the entry goes.
    pub new: Option<Kind>,
}

/// An entry that stays and gets other metadata: a folder, or a file with one name.
#[derive(Clone, Debug)]
pub struct MetaChange {
    /// Path below the home; empty for the home itself.
    pub path: PathBuf,
    /// What is there now.
    pub seen: Seen,
    /// What it is to have.
    pub new: Values,
}

/// All that is to change.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Entries; no path lies at or below another one.
    pub steps: Vec<Step>,
    /// Metadata of what stays. Folders in which entries change and that are not named here end with the times
    /// that they have now.
    pub metadata: Vec<MetaChange>,
}

/// What a turn could not do as wanted, though it is settled.
#[derive(Debug, Default)]
pub struct Settled {
    /// Metadata that could not be set (owners by an ordinary user, say).
    pub problems: Vec<(PathBuf, metadata::Problem)>,
    /// Entries whose metadata was to change and that the app has replaced or removed since the commit.
    pub skipped: Vec<PathBuf>,
}

/// A place to stage what is new; nothing of the home has changed yet. Dropped without [`Workplace::commit`] or
/// [`Workplace::abandon`], it is removed by the next [`recover`].
#[derive(Debug)]
pub struct Workplace {
    place: Arc<Place>,
    committed: bool,
}

impl Workplace {
    /// Makes the workplace of a job: beside the home, or inside where that cannot be. `home` may be a link, which
    /// is followed now and never again. `jobs` is the folder of all journals in the state; it is made when it
    /// is missing. `note` is kept for the caller and given back by [`recover`].
    pub fn prepare(
        fs: Arc<dyn FileSystem>,
        home: &Path,
        jobs: &Path,
        job: JobId,
        note: &Value,
    ) -> Result<Workplace> {
        let place = Place::make(fs, home, jobs, job, note)?;
        Ok(Workplace { place: Arc::new(place), committed: false })
    }

    /// The home, with links resolved.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.place.home.path()
    }

    /// Where the workplace is, for people.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.place.work.path()
    }

    /// Where new entries are to be written, under the paths that they will have in the home, with the folders on
    /// the way. It leads through a handle that is open as long as this value lives, so a home whose owner swaps
    /// folders cannot lead it elsewhere. What is written there must be synced before [`Workplace::commit`].
    #[must_use]
    pub fn staging_path(&self) -> PathBuf {
        place::path_of_handle(self.place.slots.handle())
    }

    /// What lies at a path below the home now: for a [`Step`] whose live entry the plan could not look at.
    pub fn look(&self, path: &Path) -> Result<Option<Seen>> {
        commit::live_entry(&self.place, path).map(|stat| stat.as_ref().map(Seen::from))
    }

    /// Compares the home with what the plan saw, and commits: after this returns, the changes are made, now by
    /// [`Journal::settle`] or later by [`recover`]. `HomeChanged` when the app was faster, `Conflict` when
    /// something is mounted where something is to change; then nothing was changed.
    pub fn commit(&mut self, changes: &Changes) -> Result<Journal> {
        if self.committed {
            return Err(Error::new(Code::Internal, "A restore was to be committed twice"));
        }
        let record = commit::check(&self.place, changes)?;
        if let Err(e) = self.place.state.write(state::JOURNAL, &record) {
            // It may be there, and only its sync have failed: who was told of a failure must not be surprised.
            self.place.state.remove(state::JOURNAL).ok();
            return Err(e);
        }
        self.committed = true;
        Ok(Journal { place: self.place.clone(), record, phase: Phase::Committed })
    }

    /// Replaces the caller's note.
    pub fn set_note(&self, note: &Value) -> Result<()> {
        self.place.write_note(note)
    }

    /// Gives up before the commit: removes the workplace and what the state knows of it.
    pub fn abandon(self) -> Result<()> {
        if self.committed {
            return Err(Error::new(Code::Internal, "A restore was to be abandoned after its commit"));
        }
        // A commit that failed at its last sync may have left one.
        self.place.state.remove(state::JOURNAL)?;
        self.place.remove()?;
        self.place.state.forget()
    }
}

/// A committed job: what changes, and what can be taken back.
pub struct Journal {
    place: Arc<Place>,
    record: record::Journal,
    phase: Phase,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Journal { place, record, phase } = self;
        let job = place.state.job();
        write!(
            f,
            "Journal({job}, turn {} to {:?}, {phase:?}, {:?})",
            record.turn,
            record.goal,
            place.home.path()
        )
    }
}

impl Journal {
    /// Takes a job up again, for an undo. `AppBusy` when another process works on it, `JobNotFound` when there is
    /// none or it was never committed.
    pub fn open(fs: Arc<dyn FileSystem>, jobs: &Path, job: JobId) -> Result<Journal> {
        let unknown = || Error::new(Code::JobNotFound, format!("There is no journal of the job {job}"));
        let Some(jobs) = Jobs::open(fs, jobs)? else { return Err(unknown()) };
        let guard = jobs.lock()?;
        let state = match jobs.take(job)? {
            Taken::Ours(state) => state,
            Taken::Gone => return Err(unknown()),
            Taken::Busy => {
                return Err(Error::new(Code::AppBusy, format!("Another process works on the restore {job}")));
            }
        };
        drop(guard);
        match recover::read(&state)? {
            recover::Found::Committed(place, record, phase) if phase != Phase::Discarding => {
                let place = Place::open(state, &place, &record)?;
                Ok(Journal { place: Arc::new(place), record, phase })
            }
            _ => Err(unknown()),
        }
    }

    /// The job.
    #[must_use]
    pub fn job(&self) -> JobId {
        self.place.state.job()
    }

    /// The home, with links resolved.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.place.home.path()
    }

    /// The side that the home is on, or is being brought to.
    #[must_use]
    pub fn goal(&self) -> Side {
        self.record.goal
    }

    /// The paths of the entries that change places, below the home.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.record.steps.iter().map(|step| step.path.as_path())
    }

    /// What of the entries that stay in their places is set on a side.
    pub fn metadata(&self, side: Side) -> impl Iterator<Item = (&Path, &Values)> {
        self.record.metadata.iter().map(move |record| match side {
            Side::Old => (record.path.as_path(), &record.old),
            Side::New => (record.path.as_path(), &record.new),
        })
    }

    /// Whether all of that side is there and synced.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Settled | Phase::Closed)
    }

    /// Brings the home to a side, from wherever it is, and syncs it. The other side lies in the workplace then.
    /// `RestoreUnfinished` when something hinders; the journal stays, and the same call or the one for the other
    /// side may be tried again.
    pub fn settle(&mut self, goal: Side) -> Result<Settled> {
        if self.record.goal == goal && self.is_settled() {
            return Ok(Settled::default());
        }
        if self.record.goal != goal {
            let record = self.turned(goal)?;
            self.place.state.remove(state::STATE)?;
            self.phase = Phase::Committed;
            self.place.state.write(state::JOURNAL, &record)?;
            self.record = record;
        }
        let settled = settle::settle(&self.place, &self.record)?;
        self.enter(Phase::Settled)?;
        Ok(settled)
    }

    fn turned(&self, goal: Side) -> Result<record::Journal> {
        settle::turned(&self.place, &self.record, goal).map_err(|e| match self.is_settled() {
            true => {
                Error::new(Code::HomeChanged, format!("The restore cannot be turned round: {}", e.message()))
                    .advise("Nothing was changed. Restore another point (the safety point, say) instead.")
                    .because(e)
            }
            false => e,
        })
    }

    /// Takes back [`Journal::close`], before the caller begins something that belongs to the next turn (stops the
    /// app): [`recover`] tells of the job again, even if it is killed before [`Journal::settle`].
    pub fn reopen(&mut self) -> Result<()> {
        if self.phase == Phase::Closed { self.enter(Phase::Settled) } else { Ok(()) }
    }

    /// Says that the caller has done all that belongs to this turn (has started the app again): [`recover`] does
    /// not tell of the job any more. It can still be undone.
    pub fn close(&mut self) -> Result<()> {
        match self.phase {
            Phase::Closed => Ok(()),
            Phase::Settled => self.enter(Phase::Closed),
            Phase::Committed | Phase::Discarding => Err(self.unsettled("closed")),
        }
    }

    /// Replaces the caller's note.
    pub fn set_note(&mut self, note: &Value) -> Result<()> {
        self.place.write_note(note)
    }

    /// Deletes the side that is not live, and the journal: the job cannot be undone any more.
    pub fn discard(mut self) -> Result<()> {
        if !self.is_settled() {
            return Err(self.unsettled("discarded"));
        }
        self.enter(Phase::Discarding)?;
        self.place.remove()?;
        self.place.state.forget()
    }

    fn unsettled(&self, what: &str) -> Error {
        let home = crate::path::escape(self.home().as_os_str());
        Error::new(Code::Internal, format!("The restore of {home} was to be {what} before it was settled"))
    }

    fn enter(&mut self, phase: Phase) -> Result<()> {
        self.place.state.write(state::STATE, &record::State::new(self.record.turn, phase))?;
        self.phase = phase;
        Ok(())
    }
}
