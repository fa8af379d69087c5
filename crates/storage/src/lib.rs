//! Bytes in a place.
//!
//! One trait, [`Storage`], with the contract that the vault's safety rests on; implementations differ only in
//! where the bytes lie. Blocking by design: an implementation over a network owns its runtime.
//!
//! Invariants that every implementation keeps (held by the `conformance` suite):
//! * An object is there whole or not at all; a reader never sees half of one, a crash never leaves half of one
//!   under its name.
//! * When `put` returns `Ok`, the object survives a power loss.
//! * `Put::IfAbsent` is atomic: of several writers of one name, one succeeds.
//! * Errors carry a code: absent ([`backstay_model::Code::ObjectNotFound`]), there already
//!   (`ObjectExists`), full, denied, unavailable (may be retried), failed.

mod address;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
mod credentials;
mod faulty;
mod local;
mod memory;
mod options;
mod place;
mod remote;
mod upload;

use std::fmt;

use backstay_model::{Code, Error, Result};

pub use address::{Address, Bucket, Kind};
pub use credentials::{Credentials, Signature};
pub use faulty::{Call, Fault, Faulty, Op, Rule};
pub use local::Local;
pub use memory::Memory;
pub use options::{Hours, Network, Options, Pace, Patience};
pub use place::{create, local_path, open};
pub use remote::{Abandoned, Remote};
pub use upload::Upload;

/// How [`Storage::put`] treats an object that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// Fails with `ObjectExists` and changes nothing.
    IfAbsent,
    /// Takes its place, atomically.
    Replace,
}

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    /// Its name, relative to the place.
    pub name: String,
    /// Bytes.
    pub size: u64,
}

/// A place that holds named, immutable byte strings.
///
/// Names are relative, `/`-separated, 1 to 512 bytes, parts of `[A-Za-z0-9._-]`, no part empty, `.`, `..`, longer
/// than 200 bytes or starting with `.tmp-` ([`check_name`]). All methods may be called from several threads at once.
pub trait Storage: Send + Sync + fmt::Debug {
    /// The place in words for messages, without secrets.
    fn location(&self) -> String;

    /// Whether every call takes a while (a network lies in between), so that it pays to read more at once and to wait for
    /// several answers at the same time.
    fn is_distant(&self) -> bool {
        false
    }

    /// Stores an object and makes it durable. After an error other than `ObjectExists` the object is there whole or
    /// not at all; `ObjectExists` also says that the object that is there survives a power loss.
    fn put(&self, name: &str, bytes: &[u8], mode: Put) -> Result<()>;

    /// Begins an object whose length is not known: it is written in pieces and is there, whole and durable, once
    /// [`Upload::commit`] has returned. Nothing of it is to be seen before. The promises are those of
    /// [`Storage::put`], the errors may come from any call.
    ///
    /// Without an implementation of its own a storage collects the object in memory.
    fn put_stream<'a>(&'a self, name: &str, mode: Put) -> Result<Box<dyn Upload + 'a>> {
        check_name(name)?;
        Ok(Box::new(upload::Collected::new(self, name, mode)))
    }

    /// The whole object. One of more than a GiB is read by ranges: object stores refuse it here (`LimitExceeded`).
    fn get(&self, name: &str) -> Result<Vec<u8>>;

    /// Exactly `len` bytes from `offset`; `StorageFailed` when the object is shorter.
    fn get_range(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>>;

    /// Its size in bytes.
    fn size(&self, name: &str) -> Result<u64>;

    /// Calls `each` for every object whose name starts with `folder` + `/` (all objects for an empty `folder`),
    /// at any depth, in no particular order. Objects written or deleted meanwhile may be missed or shown. A folder
    /// without objects is an empty listing; a place that is gone is an error.
    /// What is not an object of this trait (temporary files, foreign names) is not shown.
    fn list(&self, folder: &str, each: &mut dyn FnMut(Object) -> Result<()>) -> Result<()>;

    /// Removes an object and makes that durable. Absent objects are `ObjectNotFound`.
    fn delete(&self, name: &str) -> Result<()>;

    /// Removes an object that nothing refers to any more. As [`Storage::delete`], but a power loss may bring it back,
    /// so it need not wait for the disk.
    fn discard(&self, name: &str) -> Result<()> {
        self.delete(name)
    }
}

/// How the names of files in the making start. No object has such a name.
pub(crate) const TEMPORARY: &str = ".tmp-";

/// Refuses names that are not of the form the trait takes.
pub fn check_name(name: &str) -> Result<()> {
    let part_ok = |p: &str| {
        (1..=200).contains(&p.len())
            && p != "."
            && p != ".."
            && !p.starts_with(TEMPORARY)
            && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    if name.len() <= 512 && name.split('/').all(part_ok) {
        Ok(())
    } else {
        Err(Error::new(Code::InvalidValue, format!("`{}` is not an object name", name.escape_debug())))
    }
}

/// The error of a ranged read that reaches beyond the end of an object.
pub(crate) fn too_short(name: &str, size: u64, offset: u64, len: usize) -> Error {
    Error::new(
        Code::StorageFailed,
        format!("The object {name} has {size} bytes, but {len} bytes from {offset} were asked for"),
    )
}
