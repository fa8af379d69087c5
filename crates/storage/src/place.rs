//! From the text that names a place to the storage there.
//!
//! Invariant: a text that names no place this version knows is refused, never taken as a folder of that name.
//! Messages repeat only the scheme of such a text, since the rest may hold a password.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;

use backstay_model::{Code, Error, Result};

use crate::{Address, Credentials, Local, Options, Remote, Storage};

/// Prefixes by which other backup tools name places that are not local folders.
const FOREIGN: [&str; 9] = ["s3", "b2", "azure", "gs", "sftp", "rest", "swift", "rclone", "opendal"];

/// The storage at a place that exists: a path, a `file://` address, or the [`Address`] of an object store, whose
/// credentials are those of the environment ([`Credentials::from_environment`]).
///
/// Fails with `StorageNotFound` where nothing is, and with `InvalidValue` for places of other kinds.
pub fn open(place: &str) -> Result<Arc<dyn Storage>> {
    match place.parse()? {
        Address::Local(path) => Ok(Arc::new(Local::open(path)?)),
        Address::Remote(bucket) => {
            let credentials = Credentials::from_environment(&bucket)?;
            Ok(Arc::new(Remote::open(&bucket, &credentials, &Options::default())?))
        }
    }
}

/// The same, where the place (a folder with those above it, a container, a bucket) is made when it does not exist.
pub fn create(place: &str) -> Result<Arc<dyn Storage>> {
    match place.parse()? {
        Address::Local(path) => Ok(Arc::new(Local::create(path)?)),
        Address::Remote(bucket) => {
            let credentials = Credentials::from_environment(&bucket)?;
            Ok(Arc::new(Remote::create(&bucket, &credentials, &Options::default())?))
        }
    }
}

/// The local folder that a place names; `InvalidValue` for places of other kinds.
pub fn local_path(place: &str) -> Result<PathBuf> {
    path(place)
}

pub(crate) fn path(place: &str) -> Result<PathBuf> {
    if place.is_empty() {
        return Err(Error::new(Code::InvalidValue, "The place has no name"));
    }
    if let Some(rest) = place.strip_prefix("file://") {
        return file_address(rest);
    }
    let scheme = place.split(':').next().filter(|s| s.len() < place.len());
    let is_scheme = |s: &str| {
        s.starts_with(|c: char| c.is_ascii_alphabetic())
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
    };
    if let Some(scheme) = scheme.filter(|s| is_scheme(s)) {
        let rest = place.get(scheme.len() + 1..).unwrap_or_default();
        if rest.starts_with("//") || FOREIGN.contains(&scheme.to_ascii_lowercase().as_str()) {
            return Err(Error::new(
                Code::InvalidValue,
                format!("A place of the kind `{scheme}:` cannot be used"),
            )
            .advise(format!(
                "Give the path of a folder, azure://ACCOUNT/CONTAINER/PREFIX, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX. \
                 A local folder of that name is written ./{scheme}:…."
            )));
        }
    }
    Ok(PathBuf::from(place))
}

/// The path in what follows `file://`: an empty host or `localhost`, then an absolute path, `%XX` decoded.
fn file_address(rest: &str) -> Result<PathBuf> {
    let bad = |why: &str| {
        Error::new(Code::InvalidValue, format!("The address file://{} {why}", rest.escape_debug()))
            .advise("Write file:///PATH with an absolute path, or just the path.")
    };
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    if !path.starts_with('/') {
        return Err(bad("names another machine or a relative path"));
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut input = path.bytes();
    while let Some(b) = input.next() {
        if b != b'%' {
            bytes.push(b);
            continue;
        }
        let mut digit = || input.next().and_then(|d| char::from(d).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(bad("has a % that is not followed by two hexadecimal digits"));
        };
        match u8::try_from(high * 16 + low) {
            Ok(0) | Err(_) => return Err(bad("holds a NUL")),
            Ok(byte) => bytes.push(byte),
        }
    }
    Ok(PathBuf::from(OsString::from_vec(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_file_addresses_are_local_folders() {
        for (place, want) in [
            ("/srv/vault", "/srv/vault"),
            ("vault", "vault"),
            ("./s3:x", "./s3:x"),
            ("/odd:name", "/odd:name"),
            ("a b:c", "a b:c"),
            ("file:///srv/my%20vault", "/srv/my vault"),
            ("file://localhost/srv", "/srv"),
        ] {
            assert_eq!(path(place).unwrap(), PathBuf::from(want), "{place}");
        }
    }

    #[test]
    fn other_places_are_refused_without_repeating_their_secrets() {
        for place in [
            "s3://key:secret@host/bucket",
            "https://u:secret@h/x?sig=secret",
            "s3:secret",
            "SFTP:secret",
            "azure:secret:/",
        ] {
            let e = path(place).unwrap_err();
            assert_eq!(e.code(), Code::InvalidValue);
            assert!(!format!("{e:?}{}", e.advice()).contains("secret"), "{e:?}");
        }
        for place in ["", "file://host/x", "file://x", "file:///a%0", "file:///a%zz", "file:///a%00b"] {
            assert_eq!(path(place).unwrap_err().code(), Code::InvalidValue, "{place}");
        }
    }
}
