//! What is known about the process of a command runtime: `process.json` in the app's run folder.
//!
//! Invariants: mode 0600; written under a temporary name, synced, renamed, so it is whole or as before. It is there
//! from before the process exists until it was stopped on purpose: a record whose process is gone is that of an app
//! that ended by itself, or whose machine was booted anew. A newer format is unsupported, never guessed at.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use backstay_model::{Code, Error, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

const FILE: &str = "process.json";
const TEMPORARY: &str = ".process.json.new";
const FORMAT: u32 = 1;

/// The record of one start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub format: u32,
    /// A random word in the environment of the app's processes, by which they are known again.
    pub token: String,
    /// The boot and the process space in which the numbers count.
    pub boot: String,
    pub space: String,
    /// The leader, which waits for its go until it stands here; none while it is not there yet.
    pub leader: Option<Leader>,
    /// When it was started, by the wall clock and since boot.
    pub started: Timestamp,
    pub uptime_seconds: u64,
    /// How often it was started again without having run for long.
    #[serde(default)]
    pub restarts: u32,
    /// Set once it was asked to stop.
    #[serde(default)]
    pub stopping: bool,
}

/// The process that leads the app's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leader {
    pub pid: i32,
    pub start: u64,
}

impl Record {
    /// The record of a start that happens now.
    pub fn new(token: String, restarts: u32) -> Self {
        Record {
            format: FORMAT,
            token,
            boot: crate::proc::boot(),
            space: crate::proc::space(),
            leader: None,
            started: Timestamp::now(),
            uptime_seconds: crate::proc::uptime().as_secs(),
            restarts,
            stopping: false,
        }
    }

    /// The record in a run folder; none when nothing was started.
    pub fn load(run: &Path) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let path = run.join(FILE);
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| failed("read", &path, e))?,
        };
        let odd = |e: serde_json::Error| {
            Error::new(Code::StateDamaged, format!("{} cannot be understood", path.display()))
                .because(e)
                .advise("See that no process of the app runs any more, then delete that file.")
        };
        let Format { format } = serde_json::from_slice(&bytes).map_err(odd)?;
        if format > FORMAT {
            let message = format!("{} was written by a newer version", path.display());
            return Err(Error::new(Code::StateUnsupported, message));
        }
        serde_json::from_slice(&bytes).map(Some).map_err(odd)
    }

    /// Writes the record.
    pub fn save(&self, run: &Path) -> Result<()> {
        let bytes = serde_json::to_vec(self)
            .map_err(|e| Error::new(Code::Internal, "A record cannot be written").because(e))?;
        let temporary = run.join(TEMPORARY);
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, run.join(FILE))?;
            File::open(run)?.sync_all()
        };
        write().map_err(|e| failed("write", &run.join(FILE), e))
    }

    /// Takes the record away.
    pub fn remove(run: &Path) -> Result<()> {
        match fs::remove_file(run.join(FILE)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", &run.join(FILE), e)),
            _ => Ok(()),
        }
    }
}

/// Makes a run folder (0700) with the folders above it.
pub(crate) fn make_folder(run: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(run).map_err(|e| failed("make", run, e))
}

fn failed(what: &str, path: &Path, e: io::Error) -> Error {
    Error::new(Code::StateAccess, format!("Cannot {what} {}", path.display())).because(e)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_record_is_private_and_round_trips_and_a_newer_one_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run/blog");
        assert_eq!(Record::load(&run).unwrap(), None);
        make_folder(&run).unwrap();
        assert_eq!(run.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let mut record = Record::new("t".into(), 3);
        record.leader = Some(Leader { pid: 7, start: 9 });
        record.save(&run).unwrap();
        assert_eq!(run.join(FILE).metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Record::load(&run).unwrap(), Some(record));
        fs::write(run.join(FILE), r#"{"format": 2, "other": true}"#).unwrap();
        assert_eq!(Record::load(&run).unwrap_err().code(), Code::StateUnsupported);
        fs::write(run.join(FILE), "{").unwrap();
        assert_eq!(Record::load(&run).unwrap_err().code(), Code::StateDamaged);
        Record::remove(&run).unwrap();
        Record::remove(&run).unwrap();
        assert_eq!(Record::load(&run).unwrap(), None);
    }
}
