//! Addresses of vaults: paths, `file://` addresses and those of object stores.
//!
//! Invariants: an address that is stored is absolute, so that it means the same from any folder, and holds no secret.
//! Addresses of kinds that are not known are refused, without repeating their secrets, by the storage crate.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_model::{Code, Error, Result};
use backstay_storage::{Address, Storage};
use backstay_tree::fs::FileSystem;

/// A path as the text of an address.
pub(crate) fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Error::new(
            Code::InvalidValue,
            format!("`{}` cannot be the place of a vault: it is not UTF-8", path.display()),
        )
    })
}

/// The address with a relative path made absolute, from `base` or from the current folder. That of an object store in its
/// one form; refused where it holds credentials, since addresses are stored and shown.
pub(crate) fn absolute(address: &str, base: Option<&Path>) -> Result<String> {
    let path = match address.parse()? {
        Address::Local(path) => path,
        remote @ Address::Remote(_) => return Ok(remote.to_string()),
    };
    let path = base.map_or(path.clone(), |b| b.join(&path));
    let path = std::path::absolute(&path)
        .map_err(|e| Error::new(Code::InvalidValue, format!("`{address}` is not a place")).because(e))?;
    text(&path.canonicalize().unwrap_or(path))
}

/// The local folder that an address names; none for other kinds.
pub(crate) fn local(address: &str) -> Option<PathBuf> {
    backstay_storage::local_path(address).ok()
}

/// The storage at a place that exists.
pub(crate) fn open(fs: &Arc<dyn FileSystem>, address: &str) -> Result<Arc<dyn Storage>> {
    match local(address) {
        Some(path) => Ok(Arc::new(backstay_storage::Local::open_on(Arc::clone(fs), path)?)),
        None => backstay_storage::open(address),
    }
}

/// The storage at a place, which is made when it does not exist.
pub(crate) fn create(fs: &Arc<dyn FileSystem>, address: &str) -> Result<Arc<dyn Storage>> {
    match local(address) {
        Some(path) => Ok(Arc::new(backstay_storage::Local::create_on(Arc::clone(fs), path)?)),
        None => backstay_storage::create(address),
    }
}
