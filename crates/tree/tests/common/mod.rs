//! What several tests of trees need.
#![allow(dead_code, unreachable_pub)]

pub mod mounts;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use backstay_tree::fs::{FileSystem, Host};

/// The real file system, shared.
pub fn host() -> Arc<dyn FileSystem> {
    Arc::new(Host)
}

/// A temporary folder and a handle on it.
pub fn folder() -> (tempfile::TempDir, OwnedFd) {
    let dir = tempfile::tempdir().unwrap();
    let handle = Host.open_root(dir.path()).unwrap();
    (dir, handle)
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

/// Small repeatable random numbers.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    pub fn index(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).unwrap()
    }
}

/// Raw form of a POSIX ACL with the usual entries and one more user.
pub fn acl(user: u32) -> Vec<u8> {
    let mut raw = 2u32.to_le_bytes().to_vec();
    let none = u32::MAX;
    for (tag, perm, id) in [(1u16, 6u16, none), (2, 4, user), (4, 0, none), (16, 4, none), (32, 0, none)] {
        raw.extend(tag.to_le_bytes());
        raw.extend(perm.to_le_bytes());
        raw.extend(id.to_le_bytes());
    }
    raw
}

/// Runs as another user in a thread of its own (credentials are per thread in the kernel).
pub fn as_user<T: Send>(uid: u32, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                mounts::become_user(uid);
                work()
            })
            .join()
            .unwrap()
    })
}

/// Opens a folder below a path, for tests.
pub fn open(path: &Path) -> OwnedFd {
    let handle = Host.open_root(path).unwrap();
    assert!(Host.stat_handle(handle.as_fd()).is_ok());
    handle
}
