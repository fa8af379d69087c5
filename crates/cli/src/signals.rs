//! Stopping on request: SIGINT, SIGTERM.
//!
//! Not SIGHUP: restic sends it to the holder of a lock to see whether it lives, and means no harm. So a command
//! also goes on to its end when its terminal is closed.
//!
//! Invariants: the first signal asks the work to stop, which ends it with nothing half done; a second one ends the
//! process at once, which is safe too (as safe as a kill), only the job's record is completed later.

use backstay_model::{Cancel, Code, Error, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::failure::say;

/// From now on signals ask the work that looks at the result to stop.
pub fn watch() -> Result<Cancel> {
    let cancel = Cancel::new();
    let failed = |e: std::io::Error| Error::new(Code::System, "Cannot watch for signals").because(e);
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(failed)?;
    let theirs = cancel.clone();
    let listen = move || {
        for _ in signals.forever() {
            if theirs.is_cancelled() {
                std::process::exit(i32::from(Code::Cancelled.exit()));
            }
            theirs.cancel();
            say("backstay: stopping; once more ends it at once");
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(listen).map_err(failed)?;
    Ok(cancel)
}
