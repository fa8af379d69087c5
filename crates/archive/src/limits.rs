//! What is accepted at most, so that hostile or absurd archives cost little.

use backstay_model::{Code, Error};

/// Entries of an archive.
pub(crate) const ENTRIES_MAX: usize = 2_000_000;
/// Bytes of a manifest.
pub(crate) const MANIFEST_MAX: u64 = 1 << 30;

/// Bytes of a central directory.
pub(crate) const DIRECTORY_MAX: u64 = 1 << 30;

pub(crate) fn too_many() -> Error {
    Error::new(Code::LimitExceeded, format!("An archive holds at most {ENTRIES_MAX} entries"))
}
