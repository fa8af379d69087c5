//! The record of something long.
//!
//! Invariants: a job that is `Running` has a lease; when the lease is over and its owner is gone, the next
//! command that looks marks it `Failed` ("interrupted"), so no job runs for ever. The fencing token only grows.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{AppName, JobId};

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum JobKind {
    /// Takes a recovery point.
    Backup,
    /// Takes a custom backup.
    #[serde(rename = "custom-backup")]
    CustomBackup,
    /// Brings a point out.
    Restore,
    /// Takes a restore back.
    Undo,
    /// Removes points.
    Delete,
    /// Frees space in a vault.
    Prune,
    /// Reads a vault or a point and says whether it is whole.
    Verify,
    /// Mends a vault.
    Repair,
    /// Copies points to another vault.
    Copy,
    /// Brings an archive into the vault.
    Import,
    /// Writes a point as an archive.
    Export,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Waiting for its turn.
    Queued,
    /// At work, under a lease.
    Running,
    /// Ended well; `problems` may still be above zero (a partial result).
    Succeeded,
    /// Ended badly, or its process is gone.
    Failed,
    /// Stopped on request.
    Cancelled,
}

/// One step of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What is done, in the present tense ("Reading files").
    pub name: String,
    /// When it began.
    pub started: Timestamp,
    /// When it ended; none while it runs or when the process died in it.
    pub ended: Option<Timestamp>,
}

/// The record of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// Whose app it works on; none for work on a whole vault.
    pub app: Option<AppName>,
    /// Where it stands.
    pub state: JobState,
    /// When it was asked for.
    pub created: Timestamp,
    /// When it began.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub ended: Option<Timestamp>,
    /// Who works on it: host, boot id and process, as one text.
    pub owner: String,
    /// The fencing token of its lease.
    pub token: i64,
    /// Until when the lease holds unless renewed.
    pub lease_until: Option<Timestamp>,
    /// Whether somebody asked it to stop.
    pub cancel_requested: bool,
    /// Whether the scheduler began it; such a job is stopped by pausing the app only.
    #[serde(default)]
    pub automatic: bool,
    /// What it did, in order.
    pub steps: Vec<Step>,
    /// Done and total bytes, where known.
    pub progress: crate::Counts,
    /// What to read when it ended: a summary, or the error with its code.
    pub message: Option<String>,
    /// The stable code of the error, where it failed or is partial.
    pub code: Option<String>,
}
