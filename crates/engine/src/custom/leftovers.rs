//! What jobs that died left in a container.
//!
//! Invariants: a log names in its first line the job that wrote it. Leftovers are a log without a manifest whose job is in this
//! state's catalog, is over and did not succeed; and a removal that the catalog says was begun. Nothing else is
//! touched: not what other states write, not a backup whose manifest somebody took away. Removing is repeated by
//! the next run when it is stopped.

use std::collections::BTreeMap;

use backstay_archive::Name;
use backstay_archive::place::{self, Parts};
use backstay_catalog::CustomChanges;
use backstay_model::{Code, JobId, JobState, Occasion, Result};
use backstay_storage::Storage;
use jiff::SignedDuration;

use crate::containers::OpenContainer;
use crate::state::Engine;

/// What the first line of a log begins with, before the job's id.
const JOB: &str = "job ";
/// Uploads that nobody ended are given up after this, in hours. No upload takes so long.
const UPLOAD: i64 = 24;

/// The first line of a log.
pub(crate) fn first_line(job: &JobId, occasion: Occasion, rest: &str) -> String {
    format!("{JOB}{job} {} {rest}\n", word(occasion))
}

fn word(occasion: Occasion) -> &'static str {
    match occasion {
        Occasion::Manual => "manual",
        Occasion::Scheduled => "scheduled",
    }
}

/// Bytes of a log that hold what [`first_line`] says of job and occasion.
const HEAD: usize = JOB.len() + 32 + " scheduled ".len();

/// Whether a log says that a schedule asked for the backup.
fn is_scheduled(head: &[u8]) -> bool {
    let word = format!(" {} ", word(Occasion::Scheduled));
    head.get(JOB.len() + 32..).is_some_and(|rest| rest.starts_with(word.as_bytes()))
}

/// The job that a log names.
fn job_of(log: &[u8]) -> Option<JobId> {
    let text = log.get(..JOB.len() + 32)?;
    std::str::from_utf8(text).ok()?.strip_prefix(JOB)?.parse().ok()
}

impl Engine {
    /// Removes what dead jobs left in a container; gives the names.
    pub(crate) fn clear_leftovers(&self, container: &OpenContainer) -> Result<Vec<String>> {
        let storage = &*container.storage;
        let catalog = self.catalog()?;
        catalog.expire_jobs()?;
        let parts = place::list(storage)?;
        let mut cleared = Vec::new();
        for backup in catalog.custom_backups(None)? {
            if !backup.removing || backup.container != container.address {
                continue;
            }
            if catalog.exclusive_job(&backup.app)?.is_none_or(|j| j.kind != backstay_model::JobKind::Delete) {
                place::remove(storage, &Name::parse(&backup.name)?)?;
                let remove = vec![(backup.container.clone(), backup.name.clone())];
                catalog.change_custom_backups(&CustomChanges { put: Vec::new(), remove })?;
                cleared.push(backup.name);
            }
        }
        for name in self.dead(storage, &parts)? {
            place::remove(storage, &name)?;
            cleared.push(name.as_str().to_owned());
        }
        self.give_up_uploads(container, &cleared)?;
        Ok(cleared)
    }

    /// Who asked for a backup that the catalog has lost sight of: what its log says where that names a job of this state, else
    /// a person, so that it never goes by itself.
    pub(super) fn occasion_of(
        &self,
        storage: &dyn Storage,
        name: &Name,
        log: Option<u64>,
    ) -> Result<Occasion> {
        let Some(head) = head(storage, name, log)? else { return Ok(Occasion::Manual) };
        let known = match job_of(&head) {
            Some(id) if self.has_catalog() => self.catalog()?.job(&id)?.is_some(),
            _ => false,
        };
        Ok(if known && is_scheduled(&head) { Occasion::Scheduled } else { Occasion::Manual })
    }

    /// The names that dead jobs hold.
    fn dead(&self, storage: &dyn Storage, parts: &BTreeMap<Name, Parts>) -> Result<Vec<Name>> {
        let mut dead = Vec::new();
        for (name, parts) in parts {
            if parts.is_backup() {
                continue;
            }
            let Some(id) = head(storage, name, parts.log)?.and_then(|head| job_of(&head)) else { continue };
            let job = self.catalog()?.job(&id)?;
            if job.is_some_and(|j| matches!(j.state, JobState::Failed | JobState::Cancelled)) {
                dead.push(name.clone());
            }
        }
        Ok(dead)
    }

    /// Gives up uploads that nobody will end: those of names that were cleared, and archives that were begun long ago.
    fn give_up_uploads(&self, container: &OpenContainer, cleared: &[String]) -> Result<()> {
        let Some(remote) = &container.remote else { return Ok(()) };
        let now = self.clock.now();
        let day_ago = now.checked_sub(SignedDuration::from_hours(UPLOAD)).unwrap_or(now);
        remote.sweep_some(now, &|upload| {
            let Some(name) = upload.name.strip_suffix(".zip") else { return false };
            cleared.iter().any(|c| c == name) || upload.since.is_some_and(|since| since < day_ago)
        })?;
        Ok(())
    }
}

/// The beginning of a log; none where there is none, or it is shorter.
fn head(storage: &dyn Storage, name: &Name, size: Option<u64>) -> Result<Option<Vec<u8>>> {
    if size.is_none_or(|size| size < HEAD as u64) {
        return Ok(None);
    }
    match storage.get_range(&name.log(), 0, HEAD) {
        // Removed, or written anew, since it was listed.
        Err(e) if matches!(e.code(), Code::ObjectNotFound | Code::StorageFailed) => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_names_its_job() {
        let id = JobId::from_bytes([0xab; 16]);
        let line = first_line(&id, Occasion::Scheduled, "of x");
        assert_eq!(job_of(line.as_bytes()), Some(id));
        assert!(line.len() > HEAD && is_scheduled(&line.as_bytes()[..HEAD]));
        let line = first_line(&id, Occasion::Manual, "of x and more");
        assert!(line.len() > HEAD && !is_scheduled(&line.as_bytes()[..HEAD]));
        for log in ["", "job ", "job 0123", &line[1..], "log of somebody else that is longer than that"] {
            assert_eq!(job_of(log.as_bytes()), None, "{log}");
        }
    }
}
