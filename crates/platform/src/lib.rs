//! An app on a host: whether it runs, starting and stopping it, its health, its hooks, the texts that are replaced in a new
//! app, and snapshots of the volume that holds it.
//!
//! All calls block, look at a [`Cancel`](backstay_model::Cancel) and have a limit of time. Nothing here prints.
//!
//! Invariants:
//! * Starting and stopping hold the file `lock` in the app's run folder, so two commands never do it at once. The
//!   kernel gives the lock back when its holder dies. [`Runtime::lock`] hands it to a caller that must look at
//!   something else (a restore that runs, say) before it starts or stops.
//! * A process is signalled only after it was proved to be the app's, through a handle that cannot come to mean
//!   another process.
//! * What runs for a while (hooks, checks, `systemctl`) is in a process group of its own, which is killed when the time
//!   is up, when the work is cancelled, or when its leader has ended.
//! * No environment of Backstay's reaches an app or a hook: they get PATH, HOME, LANG and what is set for them. The app's
//!   settings reach its command alone.
//!
//! Files in `STATE/run/APP` (0700): `lock`, `process.json` (the command runtime's record), `log`, `log.1`.

mod app;
mod child;
mod command;
mod compose;
mod environment;
mod health;
mod hook;
mod log;
mod proc;
mod record;
mod replace;
mod session;
mod systemd;
pub mod volume;

pub use app::{Condition, Held, Runtime, State, Tended, WasRunning, start, state, stop, tend, wait_healthy};
pub use child::OUTPUT_MAX;
pub use command::has_account;
pub use environment::Environment;
pub use health::Healthy;
pub use hook::{HookOutput, HookTarget, run_hook};
pub use log::{LOG_MAX, tail as log_tail};
pub use replace::{Names, Replaced, replace};
