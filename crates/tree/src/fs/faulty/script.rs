//! What a test asks of the faulty file system, and what it learns from it: values only, no I/O, no locks.
//!
//! Invariant: a [`Fault`] counts the calls that match it, so the same calls give the same failures.

use std::ffi::{OsStr, OsString};

/// The methods of [`crate::fs::FileSystem`], as values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Call {
    OpenRoot,
    OpenDir,
    OpenDirBeneath,
    OpenFile,
    Entries,
    Stat,
    StatHandle,
    ReadAt,
    NextData,
    ReadLink,
    Xattrs,
    XattrsAt,
    CreateDir,
    CreateFile,
    WriteAt,
    Truncate,
    Sync,
    SyncAll,
    Rename,
    Link,
    Unlink,
    RemoveDir,
    Symlink,
    MakeNode,
    SetOwner,
    SetOwnerAt,
    SetMode,
    SetModeAt,
    SetTimes,
    SetTimesAt,
    SetXattr,
    SetXattrAt,
    RemoveXattr,
    RemoveXattrAt,
}

/// How the world stops at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kill {
    /// The call is not made.
    Before,
    /// The call is made; its caller does not learn it.
    After,
    /// Of a write the first half is made; other calls are not made.
    Torn,
}

/// A call as it was logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// Number among the mutating calls, from 1; none for reading calls.
    pub number: Option<u64>,
    /// Which method.
    pub call: Call,
    /// Name of the entry it was about (of a handle: the name it was opened or created by, as far as known).
    pub name: OsString,
    /// The phase the test was in, see [`super::Faulty::phase`].
    pub phase: String,
}

/// Calls that are to fail.
#[derive(Clone, Debug)]
pub struct Fault {
    call: Option<Call>,
    name: Option<OsString>,
    skip: u64,
    times: Option<u64>,
    errno: i32,
}

impl Fault {
    /// Every call of a method fails with that errno. A write that fails with `ENOSPC` writes its first half.
    #[must_use]
    pub fn of(call: Call, errno: i32) -> Self {
        Fault { call: Some(call), name: None, skip: 0, times: None, errno }
    }

    /// Every call about a name fails with that errno.
    #[must_use]
    pub fn about(name: impl Into<OsString>, errno: i32) -> Self {
        Fault { call: None, name: Some(name.into()), skip: 0, times: None, errno }
    }

    /// Only calls about this name.
    #[must_use]
    pub fn named(mut self, name: impl Into<OsString>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The first `calls` that match go through.
    #[must_use]
    pub fn after(mut self, calls: u64) -> Self {
        self.skip = calls;
        self
    }

    /// Only that many calls fail, then it is over.
    #[must_use]
    pub fn times(mut self, calls: u64) -> Self {
        self.times = Some(calls);
        self
    }

    /// The errno for this call, counting it.
    pub(super) fn strikes(&mut self, call: Call, name: &OsStr) -> Option<i32> {
        let meant = self.call.is_none_or(|c| c == call) && self.name.as_deref().is_none_or(|n| n == name);
        if !meant {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        match &mut self.times {
            Some(0) => return None,
            Some(left) => *left -= 1,
            None => {}
        }
        Some(self.errno)
    }
}
