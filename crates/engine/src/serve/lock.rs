//! One scheduler a state.
//!
//! Invariants: the lock is the kernel's (flock on `serve.lock`): it goes with its process, however that ends. The
//! number in the file is for people only.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use backstay_model::{Code, Error, Result};

const FILE: &str = "serve.lock";
/// `status` looks by taking the lock for a moment: so it is tried for a while.
const PATIENCE: Duration = Duration::from_secs(2);

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Error + '_ {
    move |e| Error::new(Code::StateAccess, format!("Cannot lock {}", path.display())).because(e)
}

/// Takes the lock for as long as the result lives. `ServerRunning` when another process has it.
pub(super) fn take(state: &Path) -> Result<File> {
    let path = state.join(FILE);
    let mut open = OpenOptions::new();
    open.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = open.open(&path).map_err(failed(&path))?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if started.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Only for the message.
                let _unread = file.read_to_string(&mut holder);
                let message = format!(
                    "`backstay serve` works on {} already (process {})",
                    state.display(),
                    holder.trim()
                );
                return Err(Error::new(Code::ServerRunning, message));
            }
            Err(TryLockError::Error(e)) => return Err(failed(&path)(e)),
        }
    }
    let written =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(failed(&path))?;
    Ok(file)
}

/// Whether a scheduler works on a state.
pub(crate) fn is_held(state: &Path) -> bool {
    let Ok(file) = File::open(state.join(FILE)) else { return false };
    // Given back when the file is closed, at once.
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_schedulers_one_is_told_who_the_other_is() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_held(dir.path()));
        let lock = take(dir.path()).unwrap();
        assert!(is_held(dir.path()));
        let error = take(dir.path()).unwrap_err();
        assert_eq!(error.code(), Code::ServerRunning);
        assert!(error.message().contains(&std::process::id().to_string()), "{error}");
        drop(lock);
        assert!(!is_held(dir.path()));
        take(dir.path()).unwrap();
    }
}
