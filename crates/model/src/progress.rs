//! Watching and stopping long work.
//!
//! Invariants: the engine never prints; it reports to a [`Progress`] and asks a [`Cancel`]. Both are cheap
//! enough to be called for every file.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::{Code, Error, Problem, Result};

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Phase {
    /// Opening the vault, reading its index.
    Opening,
    /// Walking and reading the source.
    Reading,
    /// Writing the last objects of a point.
    Committing,
    /// Working out what to do.
    Planning,
    /// Writing files to a target.
    Restoring,
    /// Reading the vault to check it.
    Checking,
    /// Moving data together in the vault.
    Repacking,
    /// Deleting from the vault.
    Removing,
    /// Copying to another vault.
    Copying,
    /// Taking the point that keeps what a restore is about to replace.
    Securing,
    /// Stopping the app.
    Stopping,
    /// Putting restored entries in their places.
    Applying,
    /// Starting the app and waiting until it is well.
    Starting,
    /// Reading a linked database.
    Dumping,
    /// Filling a new database beside the one in use.
    Loading,
}

/// Running totals. What is not known (yet) is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Files done.
    pub files: u64,
    /// Bytes of content done.
    pub bytes: u64,
    /// Files in all, where known.
    pub total_files: u64,
    /// Bytes in all, where known.
    pub total_bytes: u64,
}

/// Who is told what happens. Called from several threads.
pub trait Progress: Send + Sync {
    /// A new phase begins.
    fn phase(&self, phase: Phase);
    /// So many more files and bytes of the phase are done.
    fn done(&self, files: u64, bytes: u64);
    /// So many more files and bytes are known to be ahead.
    fn expect(&self, files: u64, bytes: u64);
    /// Something about a path that a person should know. It is also in the result.
    fn problem(&self, problem: &Problem);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn phase(&self, _: Phase) {}
    fn done(&self, _: u64, _: u64) {}
    fn expect(&self, _: u64, _: u64) {}
    fn problem(&self, _: &Problem) {}
}

/// A request to stop that is shared between threads. It cannot be taken back.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks all work that looks at it to stop soon.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether stopping was asked for.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error if stopping was asked for.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::new(Code::Cancelled, "Stopped on request")) } else { Ok(()) }
    }
}
