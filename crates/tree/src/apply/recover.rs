//! Finding jobs that were stopped, and finishing them.
//!
//! Invariants: a job that a living process holds is not looked at. One that has not committed is removed, one that has
//! is brought to its goal; one that cannot be is told and left as it is. Killed here, the next call goes on. Locks:
//! the folder of all jobs while they are taken, each job while it is worked on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_model::{Error, JobId, Result};
use serde_json::Value;

use super::record::{Journal as JournalRecord, PlaceRecord, Side, State};
use super::state::{JOURNAL, JobDir, Jobs, PLACE, Phase, STATE, Taken, damaged};
use super::{Journal, Settled};
use crate::apply::place::Place;
use crate::fs::FileSystem;

/// A job that [`recover`] found.
#[derive(Debug)]
pub struct Recovered {
    /// Its id.
    pub job: JobId,
    /// The home, with links resolved; none when the state does not tell.
    pub home: Option<PathBuf>,
    /// The caller's note; null when the state does not tell.
    pub note: Value,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a job that was stopped.
#[derive(Debug)]
pub enum Outcome {
    /// It had not committed: the home is as it was, and nothing is left of the job.
    NotCommitted,
    /// It had committed, and the home is wholly on the side of [`Journal::goal`]. The caller does what else
    /// belongs to it (starts the app), then calls [`Journal::close`].
    Settled(Box<Journal>, Settled),
    /// The other side was being deleted, which is done now.
    Discarded,
    /// It could not be finished; nothing was given up, the next call tries again.
    Stuck(Error),
}

/// A job that can be undone, or be finished by [`recover`].
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its id.
    pub job: JobId,
    /// The home, with links resolved.
    pub home: PathBuf,
    /// The caller's note.
    pub note: Value,
    /// The side that the home is on, or is being brought to.
    pub side: Side,
    /// Whether the caller has said that it is done with it.
    pub closed: bool,
}

/// What the state knows of a job.
pub(super) enum Found {
    /// Nothing: its folder was just being made.
    Nothing,
    /// There is no journal.
    Uncommitted(PlaceRecord),
    /// There is one.
    Committed(PlaceRecord, JournalRecord, Phase),
}

pub(super) fn read(state: &JobDir) -> Result<Found> {
    let Some(place) = state.read::<PlaceRecord>(PLACE)? else { return Ok(Found::Nothing) };
    let Some(journal) = state.read::<JournalRecord>(JOURNAL)? else { return Ok(Found::Uncommitted(place)) };
    journal.check().map_err(|why| damaged(&state.path().join(JOURNAL), why))?;
    let phase = phase(state.read::<State>(STATE)?, &journal);
    Ok(Found::Committed(place, journal, phase))
}

/// How far the journal's turn is. A note of an earlier turn says nothing of this one.
fn phase(state: Option<State>, journal: &JournalRecord) -> Phase {
    state
        .filter(|s| s.turn == journal.turn || s.phase == Phase::Discarding)
        .map_or(Phase::Committed, |s| s.phase)
}

/// Finishes all jobs that no living process works on. Jobs that are closed are left alone and not told.
/// An error means that the jobs could not be listed; what hinders a single one is its [`Outcome::Stuck`].
pub fn recover(fs: &Arc<dyn FileSystem>, jobs: &Path) -> Result<Vec<Recovered>> {
    let Some(jobs) = Jobs::open(fs.clone(), jobs)? else { return Ok(Vec::new()) };
    let mut taken = Vec::new();
    {
        let _guard = jobs.lock()?;
        for job in jobs.ids(true)? {
            if let Taken::Ours(state) = jobs.take(job)? {
                taken.push(state);
            }
        }
    }
    Ok(taken.into_iter().filter_map(finish).collect())
}

fn finish(state: JobDir) -> Option<Recovered> {
    let mut recovered =
        Recovered { job: state.job(), home: None, note: Value::Null, outcome: Outcome::NotCommitted };
    // A new turn removes this file before it begins, so a long journal need not be read for nothing.
    if let Ok(Some(State { phase: Phase::Closed, .. })) = state.read(STATE) {
        return None;
    }
    let found = match read(&state) {
        Ok(found) => found,
        Err(e) => {
            recovered.outcome = Outcome::Stuck(e);
            return Some(recovered);
        }
    };
    let done = match found {
        Found::Nothing => match state.forget() {
            Ok(()) => return None,
            Err(e) => Err(e),
        },
        Found::Uncommitted(place) => {
            let done = Place::remove_any(&state, &place, None).and_then(|()| state.forget());
            (recovered.home, recovered.note) = (Some(place.home), place.note);
            done.map(|()| Outcome::NotCommitted)
        }
        Found::Committed(place, journal, Phase::Discarding) => {
            let done = Place::remove_any(&state, &place, Some(&journal)).and_then(|()| state.forget());
            (recovered.home, recovered.note) = (Some(place.home), place.note);
            done.map(|()| Outcome::Discarded)
        }
        Found::Committed(place, journal, phase) => {
            let done = settle(state, &place, journal, phase);
            (recovered.home, recovered.note) = (Some(place.home), place.note);
            done
        }
    };
    recovered.outcome = done.unwrap_or_else(Outcome::Stuck);
    Some(recovered)
}

fn settle(state: JobDir, place: &PlaceRecord, record: JournalRecord, phase: Phase) -> Result<Outcome> {
    let place = Place::open(state, place, &record)?;
    place.remove_probe()?;
    let goal = record.goal;
    let mut journal = Journal { place: Arc::new(place), record, phase };
    let settled = journal.settle(goal)?;
    Ok(Outcome::Settled(Box::new(journal), settled))
}

/// The jobs that have a journal, whether a process works on them or not. What cannot be read is left out:
/// [`recover`] tells of it.
pub fn list(fs: &Arc<dyn FileSystem>, jobs: &Path) -> Result<Vec<Kept>> {
    let Some(jobs) = Jobs::open(fs.clone(), jobs)? else { return Ok(Vec::new()) };
    let mut kept = Vec::new();
    for job in jobs.ids(false)? {
        let Ok(Some(place)) = jobs.peek::<PlaceRecord>(job, PLACE) else { continue };
        let Ok(Some(journal)) = jobs.peek::<JournalRecord>(job, JOURNAL) else { continue };
        let phase = phase(jobs.peek::<State>(job, STATE).ok().flatten(), &journal);
        if phase != Phase::Discarding {
            let closed = phase == Phase::Closed;
            kept.push(Kept { job, home: place.home, note: place.note, side: journal.goal, closed });
        }
    }
    Ok(kept)
}
