//! Mounts that only one thread, and what it starts, can see.
//!
//! The thread ends with the test, so nothing leaks into other tests. `unsafe`: the call changes only the calling
//! thread; no descriptor table is split.
#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs in a thread with mounts of its own; where that is not allowed it is told.
pub(crate) fn alone(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: file descriptors are not unshared.
            if let Err(e) = unsafe { unshare_unsafe(UnshareFlags::NEWNS) } {
                println!("not shown: no mounts may be made here ({e})");
                assert!(!rustix::process::geteuid().is_root(), "root can mount: {e}");
                return;
            }
            run("mount", ["--make-rprivate".as_ref(), OsStr::new("/")]);
            work();
        });
        thread.join().unwrap();
    });
}

/// A file system in memory.
pub(crate) fn tmpfs(target: &Path) {
    run("mount", ["-t", "tmpfs", "tmpfs"].map(OsStr::new).into_iter().chain([target.as_os_str()]));
}

/// One that holds so much.
pub(crate) fn small_disk(target: &Path, size: &str) {
    std::fs::create_dir_all(target).unwrap();
    let options = format!("size={size}");
    let words = ["-t", "tmpfs", "-o", &options, "tmpfs"].map(OsStr::new);
    run("mount", words.into_iter().chain([target.as_os_str()]));
}

pub(crate) fn bind(source: &Path, target: &Path) {
    run("mount", [OsStr::new("--bind"), source.as_os_str(), target.as_os_str()]);
}

pub(crate) fn unmount(target: &Path) {
    run("umount", [target.as_os_str()]);
}

/// Namespaces are inherited by what a thread starts.
#[track_caller]
fn run<'a>(program: &str, words: impl IntoIterator<Item = &'a OsStr>) {
    // `-n`: the list of mounts in /etc is not ours to write.
    let done = Command::new(program).arg("-n").args(words).output().unwrap();
    assert!(done.status.success(), "{done:?}");
}
