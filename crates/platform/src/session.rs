//! A session of its own for a process that is to outlive the command that starts it.
//!
//! This is the one place with `unsafe` in this crate: `pre_exec` runs code between fork and exec, where only calls
//! that are safe in a signal handler may be made. It makes a few system calls and nothing else: no memory is
//! allocated, no lock is taken.
//!
//! Signals that Backstay itself was told to ignore (by `nohup`, or by a shell that puts it in the background) are not
//! ignored by what it starts: a shell cannot catch again what was ignored when it began, so the app could not be stopped
//! by the signal that is set for it.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::sys::signal::{SigHandler, Signal, signal};

/// The process will lead a new session (and process group) without a terminal.
pub(crate) fn lead_new(command: &mut Command) -> &mut Command {
    // SAFETY: `setsid` is a single system call without arguments; it fails with an errno and touches no memory. For
    // `heed_signals` see there.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            heed_signals()
        })
    }
}

/// The process is killed when the thread that starts it is gone, so that nothing goes on by itself after a kill of
/// Backstay. It will lead a new process group.
pub(crate) fn die_with_us(command: &mut Command) -> &mut Command {
    let parent = rustix::process::getpid();
    command.process_group(0);
    // SAFETY: a few system calls with plain arguments; nothing is allocated and no lock is taken.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            // The parent may have died before that call.
            if rustix::process::getppid() == Some(parent) {
                heed_signals()
            } else {
                Err(io::ErrorKind::Interrupted.into())
            }
        })
    }
}

/// Between fork and exec: the signals by which programs are stopped do what they do by default.
fn heed_signals() -> io::Result<()> {
    for number in
        [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2]
    {
        // SAFETY: the default action replaces a handler, so none is made that could run; `sigaction` may be called
        // in a signal handler.
        unsafe { signal(number, SigHandler::SigDfl) }?;
    }
    Ok(())
}
