//! Open folders of a walk, counted.
//!
//! Invariant: at most about [`HANDLES_MAX`] folders stay open while their subfolders wait, however deep the tree: a
//! process may have no more than some hundred descriptors. A folder that waits without the handle of its parent is
//! opened by its path below the root when its turn comes; nothing on that way may be a link or a mount.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use backstay_tree::fs::Stat;
use backstay_tree::open_folder;

use super::folder::Folder;
use super::walk::Walk;

/// From so many open folders on, subfolders wait without a handle.
const HANDLES_MAX: usize = 100;
/// Longest path that is given to the kernel at once (its limit is 4096 bytes).
const PATH_STEP: usize = 3500;

/// An open folder.
pub(crate) struct Handle {
    fd: OwnedFd,
    open: Arc<AtomicUsize>,
}

impl Handle {
    /// Counted in `open` until it is dropped.
    pub fn new(fd: OwnedFd, open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Handle { fd, open: Arc::clone(open) }
    }

    /// Whether subfolders that wait may hold it.
    pub fn may_be_kept(&self) -> bool {
        self.open.load(Ordering::Relaxed) <= HANDLES_MAX
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Walk<'_> {
    /// Opens a folder of a folder: by the handle of that one, or by its path from the root.
    pub fn open(&self, folder: &Folder, above: Option<&Handle>, name: &OsStr) -> io::Result<(Stat, OwnedFd)> {
        let opened = match above {
            Some(above) => open_folder(&*self.fs, above.as_fd(), name, self.device),
            None => self.open_by_path(folder, name),
        };
        opened.map(|(handle, stat)| (stat, handle))
    }

    fn open_by_path(&self, folder: &Folder, name: &OsStr) -> io::Result<(OwnedFd, Stat)> {
        let mut at = None::<OwnedFd>;
        let mut step = PathBuf::new();
        let mut parts = folder.names().into_iter().peekable();
        while let Some(part) = parts.next() {
            step.push(part);
            if step.as_os_str().len() > PATH_STEP || parts.peek().is_none() {
                let from = at.as_ref().map_or(self.root.as_fd(), AsFd::as_fd);
                at = Some(self.fs.open_dir_beneath(from, &std::mem::take(&mut step))?);
            }
        }
        open_folder(&*self.fs, at.as_ref().map_or(self.root.as_fd(), AsFd::as_fd), name, self.device)
    }
}
