//! Files that are written piece by piece.
//!
//! The same way as a put: a file in the making, all bytes, fsync, rename, fsync of the folders. Dropped before that, the
//! file in the making is removed; killed before that, the next opening of the place removes it.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use backstay_model::Result;

use super::{Local, Unsettled, split, sync_folder};
use crate::{Put, Upload};

/// A file in the making.
pub(super) struct Stream<'a> {
    local: &'a Local,
    name: String,
    mode: Put,
    dir: OwnedFd,
    unsettled: Vec<Unsettled>,
    /// The name it has until it gets its own; none afterwards.
    temporary: Option<String>,
    file: OwnedFd,
    size: u64,
    failed: bool,
}

impl<'a> Stream<'a> {
    pub fn begin(local: &'a Local, name: &str, mode: Put) -> Result<Self> {
        let begun = || -> io::Result<_> {
            let (dir, unsettled) = local.folder_for_writing(split(name).0)?;
            let (temporary, file) = local.new_temporary(dir.as_fd())?;
            Ok((dir, unsettled, temporary, file))
        };
        let (dir, unsettled, temporary, file) = begun().map_err(|e| local.error(e, "write", name))?;
        let temporary = Some(temporary);
        Ok(Stream {
            local,
            name: name.to_owned(),
            mode,
            dir,
            unsettled,
            temporary,
            file,
            size: 0,
            failed: false,
        })
    }

    fn finish(&mut self) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("an earlier piece was not written"));
        }
        self.local.fs.sync(self.file.as_fd())?;
        let Some(temporary) = self.temporary.take() else { return Ok(()) };
        let published = self.local.publish(self.dir.as_fd(), &temporary, split(&self.name).1, self.mode);
        match published {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        sync_folder(&*self.local.fs, self.dir.as_fd())?;
        self.local.settle(std::mem::take(&mut self.unsettled))?;
        published
    }
}

impl Upload for Stream<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let written = self.local.fs.write_at(self.file.as_fd(), bytes, self.size);
        self.failed |= written.is_err();
        self.size += bytes.len() as u64;
        written.map_err(|e| self.local.error(e, "write", &self.name))
    }

    fn commit(mut self: Box<Self>) -> Result<u64> {
        let done = self.finish().map_err(|e| self.local.error(e, "write", &self.name));
        if self.mode == Put::Replace {
            self.local.handles.forget(&self.name);
        }
        done.map(|()| self.size)
    }
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            // What stays is removed when the place is opened next.
            self.local.fs.unlink(self.dir.as_fd(), temporary.as_ref()).ok();
        }
    }
}
