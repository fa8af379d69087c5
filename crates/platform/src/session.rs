//! A session of its own for a process that is to outlive the command that starts it.
//!
//! This is the one place with `unsafe` in this crate: `pre_exec` runs code between fork and exec, where only calls
//! that are safe in a signal handler may be made. It makes one system call and nothing else: no memory is
//! allocated, no lock is taken.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The process will lead a new session (and process group) without a terminal.
pub(crate) fn lead_new(command: &mut Command) -> &mut Command {
    // SAFETY: `setsid` is a single system call without arguments; it fails with an errno and touches no memory.
    unsafe { command.pre_exec(|| rustix::process::setsid().map(|_session| ()).map_err(io::Error::from)) }
}

/// The process is killed when the thread that starts it is gone, so that nothing goes on by itself after a kill of
/// Backstay. It will lead a new process group.
pub(crate) fn die_with_us(command: &mut Command) -> &mut Command {
    let parent = rustix::process::getpid();
    command.process_group(0);
    // SAFETY: two system calls with plain arguments; nothing is allocated and no lock is taken.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            // The parent may have died before that call.
            if rustix::process::getppid() == Some(parent) {
                Ok(())
            } else {
                Err(io::ErrorKind::Interrupted.into())
            }
        })
    }
}
