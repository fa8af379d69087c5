//! What happens in a child between fork and exec.
//!
//! This is the one place with `unsafe` in this crate: `pre_exec` runs code between fork and exec, where only calls
//! that are safe in a signal handler may be made. It makes a few system calls and nothing else: no memory is
//! allocated, no lock is taken.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The child will lead a new process group, be killed when the thread that starts it is gone, and inherit those files.
/// They are kept open until the command is dropped, and no other child inherits them.
pub(super) fn prepare(command: &mut Command, files: Vec<OwnedFd>) {
    let parent = rustix::process::getpid();
    command.process_group(0);
    // SAFETY: a few system calls with plain arguments; nothing is allocated and no lock is taken. The descriptors are
    // open: the closure owns them.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            // The parent may have died before that call.
            if rustix::process::getppid() != Some(parent) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            for file in &files {
                rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty())?;
            }
            Ok(())
        })
    };
}
