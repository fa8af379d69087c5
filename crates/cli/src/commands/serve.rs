//! `backstay serve`

use backstay_engine::{Control, Engine, serve};
use backstay_model::{Code, Error, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::failure::say;

/// Takes automatic points until it is asked to stop. `make` opens the state, again when the configuration is to be
/// read anew.
pub fn run(make: &(dyn Fn() -> Result<Engine> + Sync)) -> Result<u8> {
    let control = Control::new();
    let failed = |e: std::io::Error| Error::new(Code::System, "Cannot watch for signals").because(e);
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).map_err(failed)?;
    let asked = control.clone();
    let listen = move || {
        let mut stopping = false;
        for signal in signals.forever() {
            match signal {
                // restic sends it too, to see whether the holder of a lock lives: it does no harm.
                SIGHUP => asked.reload(),
                _ if stopping => std::process::exit(i32::from(Code::Cancelled.exit())),
                _ => {
                    stopping = true;
                    say("backstay: stopping; once more ends it at once");
                    asked.stop();
                }
            }
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(listen).map_err(failed)?;
    // The journal, or whoever keeps standard error, adds the time.
    serve(make, &control, &|line| say(format!("backstay: {line}"))).map(|()| 0)
}
