//! What an app of a command runtime writes: `log` in its run folder, the part before in `log.1`.
//!
//! Invariants: mode 0600; opened for appending, so that emptying it under a writer leaves no hole. Nobody stands between
//! the app and its log, hence a limit is held whenever the app is started or looked after (`serve` does so all the
//! time): both files together hold at most twice [`LOG_MAX`] then. What is written while the log is moved may be
//! lost.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use backstay_model::{Code, Error, Result};

const FILE: &str = "log";
const BEFORE: &str = "log.1";

/// Bytes that a log may have before it is moved.
pub const LOG_MAX: u64 = 4 * 1024 * 1024;

fn failed(run: &Path, e: io::Error) -> Error {
    Error::new(Code::StateAccess, format!("Cannot write {}", run.join(FILE).display())).because(e)
}

/// Opens the log for a process that is about to start.
pub(crate) fn open(run: &Path) -> Result<File> {
    hold_limit(run)?;
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(run.join(FILE));
    log.map_err(|e| failed(run, e))
}

/// Moves the end of a log that is too long to `log.1` and empties it. A writer goes on at the beginning.
pub(crate) fn hold_limit(run: &Path) -> Result<()> {
    let path = run.join(FILE);
    let length = match path.metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| failed(run, e))?.len(),
    };
    if length <= LOG_MAX {
        return Ok(());
    }
    let shift = || {
        let mut from = OpenOptions::new().read(true).write(true).open(&path)?;
        from.seek(SeekFrom::Start(length - LOG_MAX))?;
        let before = run.join(BEFORE);
        let mut to = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(before)?;
        io::copy(&mut (&from).take(LOG_MAX), &mut to)?;
        from.set_len(0)
    };
    shift().map_err(|e| failed(run, e))
}

/// The last bytes of a log as text; empty when there is none.
pub fn tail(run: &Path, bytes: u64) -> Result<String> {
    let path = run.join(FILE);
    let read = || {
        let mut file = File::open(&path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
        let mut end = Vec::new();
        file.take(bytes).read_to_end(&mut end).map(|_length| end)
    };
    match read() {
        Ok(end) => Ok(String::from_utf8_lossy(&end).trim_end().to_owned()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(e) => Err(Error::new(Code::StateAccess, format!("Cannot read {}", path.display())).because(e)),
    }
}

/// The length of a log.
pub(crate) fn length(run: &Path) -> u64 {
    fs::metadata(run.join(FILE)).map_or(0, |m| m.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_log_that_is_too_long_is_moved_under_its_writer() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path();
        assert_eq!(tail(run, 10).unwrap(), "");
        let mut log = open(run).unwrap();
        let line = [b'x'; 1023];
        for n in 0..5_000_u64 {
            log.write_all(&line).unwrap();
            log.write_all(b"\n").unwrap();
            if n % 1_000 == 0 {
                hold_limit(run).unwrap();
            }
        }
        log.write_all(b"the end\n").unwrap();
        hold_limit(run).unwrap();
        log.write_all(b"after\n").unwrap();
        assert_eq!(tail(run, 100).unwrap(), "after");
        assert_eq!(length(run), 6);
        let before = fs::read(run.join(BEFORE)).unwrap();
        assert_eq!(before.len() as u64, LOG_MAX);
        assert!(before.ends_with(b"the end\n"));
    }
}
