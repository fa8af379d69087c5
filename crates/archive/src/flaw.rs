//! What can be wrong with an archive.

use std::fmt;

use crate::record::shown;

/// The kinds of [`Finding`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Flaw {
    /// The manifest is not what was written.
    Manifest,
    /// The zip as a whole is not what was written.
    Archive,
    /// Headers cannot be read, or do not agree with each other or with the manifest.
    Header,
    /// The content is not what it must be.
    Content,
    /// The manifest has it, the zip does not.
    Missing,
    /// The zip has it, the manifest does not.
    Added,
    /// There is more than one of that name.
    Duplicate,
    /// It lies where another entry lies, or there are bytes that belong to nothing.
    Overlap,
    /// Its name would lead outside the target, or means different things to different programs.
    UnsafeName,
    /// It would become larger than is accepted.
    Bomb,
    /// It uses a part of the format that is not read: encryption, another compression.
    Unsupported,
    /// What is said about owners, links, times does not fit the entry.
    Metadata,
    /// Its name differs from another one only by the case of letters: on some systems one would replace the other.
    CaseCollision,
}

impl Flaw {
    /// Whether an archive with it is refused. Else it is only told.
    #[must_use]
    pub fn is_fatal(self) -> bool {
        self != Flaw::CaseCollision
    }
}

/// Something that is wrong with an archive.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The entry, escaped; empty when it is about the archive as a whole.
    pub entry: String,
    /// What kind.
    pub what: Flaw,
    /// In words; starts with a small letter, no full stop.
    pub detail: String,
}

impl Finding {
    pub(crate) fn of_entry(name: &[u8], what: Flaw, detail: impl Into<String>) -> Self {
        use std::os::unix::ffi::OsStrExt as _;
        Finding { entry: shown(std::ffi::OsStr::from_bytes(name)), what, detail: detail.into() }
    }

    pub(crate) fn of_archive(what: Flaw, detail: impl Into<String>) -> Self {
        Finding { entry: String::new(), what, detail: detail.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entry = if self.entry.is_empty() { "the archive" } else { &self.entry };
        write!(f, "{entry}: {}", self.detail)
    }
}

/// Findings as they are made: all are counted, so many are kept of those that are fatal and of those that are not.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    fatal: Vec<Finding>,
    told: Vec<Finding>,
    count: u64,
}

/// Findings that are kept of each sort. An archive may have millions of entries, all of them wrong.
const KEPT: usize = 10_000;

impl Findings {
    pub(crate) fn push(&mut self, finding: Finding) {
        self.count += 1;
        let list = if finding.what.is_fatal() { &mut self.fatal } else { &mut self.told };
        if list.len() < KEPT {
            list.push(finding);
        }
    }

    /// How many there were so far.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn any_fatal(&self) -> bool {
        !self.fatal.is_empty()
    }

    /// The fatal ones first.
    pub(crate) fn into_list(mut self) -> Vec<Finding> {
        self.fatal.append(&mut self.told);
        self.fatal
    }
}
