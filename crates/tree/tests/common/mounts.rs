//! Mounts and credentials of one thread.
//!
//! A thread gets a mount namespace or another user of its own and ends soon after, so nothing leaks into other
//! tests. `unsafe`: the two calls change only the calling thread; no descriptor table is split.
#![allow(unsafe_code)]

use std::io;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs in a thread whose mounts nobody else sees. An error says why that cannot be done here.
pub fn private<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: file descriptors are not unshared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            Ok(work())
        });
        thread.join().unwrap()
    })
}

pub fn tmpfs(target: &Path) {
    mount("tmpfs", target, "tmpfs", MountFlags::empty(), None).unwrap();
}

pub fn bind(source: &Path, target: &Path) {
    mount_bind(source, target).unwrap();
}

pub fn become_user(uid: u32) {
    let (u, g) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(uid));
    rustix::thread::set_thread_groups(&[]).unwrap();
    rustix::thread::set_thread_gid(g).unwrap();
    rustix::thread::set_thread_uid(u).unwrap();
    assert!(
        rustix::fs::accessat(CWD, "/root", rustix::fs::Access::READ_OK, rustix::fs::AtFlags::empty())
            .is_err()
    );
}
