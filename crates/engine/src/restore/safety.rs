//! Safety points of restores that have not come to anything yet.
//!
//! Invariants: a safety point of a restore is noted in the catalog before it can exist; the note goes when the restore
//! has ended well. As long as it is noted, no undo takes it for the way back. What a restore that failed leaves is
//! forgotten by itself, what one that was killed leaves by the next command, and where the vault cannot be used then, by a
//! later one. A point that a journal leads back to, or may lead back to, is never forgotten.
//!
//! Crash: forgetting a point is one deletion in the vault; the note goes after it. Locks: the vault's shared lock while
//! a point is forgotten.

use std::collections::HashSet;

use backstay_model::{Cancel, JobId, JobKind, JobState, PointId, Result};
use backstay_tree::apply;

use super::resume::kept;
use crate::job::Running;
use crate::state::Engine;

/// Names of the notes in the catalog: this, the job and the point.
const NOTES: &str = "safety/";

fn name(job: JobId, point: PointId) -> String {
    format!("{NOTES}{job}/{point}")
}

/// Notes a point that a job is about to take, if it is a restore or an undo.
pub(crate) fn note(engine: &Engine, job: &Running<'_>, point: PointId) -> Result<()> {
    match job.kind() {
        JobKind::Restore | JobKind::Undo => {
            engine.catalog()?.set_notes(&[(name(job.id(), point), Some(String::new()))])
        }
        _ => Ok(()),
    }
}

/// The points that are noted, with their jobs.
fn noted(engine: &Engine, prefix: &str) -> Result<Vec<(JobId, PointId)>> {
    let parse = |name: &String| {
        let (job, point) = name.strip_prefix(NOTES)?.split_once('/')?;
        Some((job.parse().ok()?, point.parse().ok()?))
    };
    Ok(engine.catalog()?.notes(prefix)?.keys().filter_map(parse).collect())
}

/// The points that are no way back (yet).
pub(super) fn pending(engine: &Engine) -> Result<HashSet<PointId>> {
    Ok(noted(engine, NOTES)?.into_iter().map(|(_, point)| point).collect())
}

/// The job has ended well: what it has taken is a point like any other.
pub(super) fn keep(engine: &Engine, job: JobId) -> Result<()> {
    let notes = noted(engine, &format!("{NOTES}{job}/"))?;
    let gone = |(job, point)| (name(job, point), None);
    match notes.is_empty() {
        true => Ok(()),
        false => engine.catalog()?.set_notes(&notes.into_iter().map(gone).collect::<Vec<_>>()),
    }
}

/// The job has failed: what it has taken goes, but what a journal leads back to.
pub(super) fn forget(engine: &Engine, job: JobId) -> Result<()> {
    forget_all(engine, &noted(engine, &format!("{NOTES}{job}/"))?)
}

/// Forgets what jobs that were killed have left. Cheap where there is nothing.
pub(super) fn resume(engine: &Engine) -> Result<()> {
    if !engine.has_catalog() {
        return Ok(());
    }
    let mut left = noted(engine, NOTES)?;
    let mut runs = Vec::new();
    for (job, _) in &left {
        if engine.catalog()?.job(job)?.is_some_and(|j| j.state == JobState::Running) {
            runs.push(*job);
        }
    }
    left.retain(|(job, _)| !runs.contains(job));
    forget_all(engine, &left)
}

fn forget_all(engine: &Engine, left: &[(JobId, PointId)]) -> Result<()> {
    if left.is_empty() {
        return Ok(());
    }
    // With a journal that cannot be read nobody knows where it leads back to.
    let Some(back) = ways_back(engine)? else { return Ok(()) };
    let points = engine.points()?;
    for (job, point) in left {
        let record = points.records.iter().find(|r| r.point.id == *point);
        if let Some(record) = record.filter(|_| !back.contains(point)) {
            engine.forget_point(&points.vault, record, &Cancel::new())?;
        }
        engine.catalog()?.set_notes(&[(name(*job, *point), None)])?;
    }
    Ok(())
}

/// The points that journals lead back to; none when one of the journals cannot be read.
fn ways_back(engine: &Engine) -> Result<Option<HashSet<PointId>>> {
    let folder = engine.jobs_folder();
    let journals = apply::list(&engine.fs, &folder)?;
    for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
        let is_listed = |name: &str| journals.iter().any(|kept| kept.job.to_string() == name);
        if entry.path().join("journal.json").exists() && !entry.file_name().to_str().is_some_and(is_listed) {
            return Ok(None);
        }
    }
    let kept: Option<Vec<_>> = journals.iter().map(kept).collect();
    Ok(kept.map(|kept| kept.iter().filter_map(|kept| kept.target()).collect()))
}
