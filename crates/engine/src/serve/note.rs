//! What is remembered of an app's automatic points.
//!
//! Invariants: written before a run begins (so that a run that ends this process is not tried for ever) and after it
//! has ended. A note that is lost costs one run too many, never a point.

use std::collections::BTreeMap;

use backstay_model::schedule::LastRun;
use backstay_model::{AppName, Code, Error, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::state::Engine;

/// Names of the notes in the catalog.
const NOTES: &str = "run/";

/// What is remembered of one app.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunNote {
    /// The hour that is done.
    #[serde(default)]
    pub last: Option<LastRun>,
    /// The hour that is being done, and how often it was begun.
    #[serde(default)]
    pub begun: Option<(i64, u32)>,
    /// How the last run ended.
    #[serde(default)]
    pub result: Option<RunResult>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunResult {
    pub ended: Timestamp,
    pub failed: bool,
    /// The stable code, where it failed or is partial.
    pub code: Option<String>,
    pub message: String,
    pub advice: String,
    /// Whether the point waits on this machine for the vault.
    #[serde(default)]
    pub spooled: bool,
    /// Rules of the filter that named nothing.
    #[serde(default)]
    pub unmatched: Vec<String>,
}

impl RunNote {
    /// How often the hour was begun already.
    pub fn tries(&self, hour: i64) -> u32 {
        self.begun.filter(|(of, _)| *of == hour).map_or(0, |(_, tries)| tries)
    }
}

impl Engine {
    /// The notes of all apps that have one.
    pub(crate) fn run_notes(&self) -> Result<BTreeMap<AppName, RunNote>> {
        let note = |(name, value): (String, String)| {
            Some((name.strip_prefix(NOTES)?.parse().ok()?, serde_json::from_str(&value).ok()?))
        };
        Ok(self.catalog()?.notes(NOTES)?.into_iter().filter_map(note).collect())
    }

    pub(crate) fn save_run_note(&self, app: &AppName, note: &RunNote) -> Result<()> {
        let text = serde_json::to_string(note)
            .map_err(|e| Error::new(Code::Internal, "A note of a run cannot be written").because(e))?;
        self.catalog()?.set_notes(&[(format!("{NOTES}{app}"), Some(text))])
    }
}
