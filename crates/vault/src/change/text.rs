//! How the parts of a plan look in JSON.
//!
//! Invariant: what is written is read back as the same value, whatever bytes names have.

use std::ffi::OsString;
use std::path::PathBuf;

use backstay_tree::path::unescape;

fn read_path<E: serde::de::Error>(text: &str) -> Result<PathBuf, E> {
    unescape(text).map(PathBuf::from).ok_or_else(|| E::custom("a path is not escaped as it should be"))
}

/// A path.
pub(super) mod path {
    use std::path::{Path, PathBuf};

    use backstay_tree::path::escape;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::change) fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&escape(path.as_os_str()))
    }

    pub(in crate::change) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        super::read_path(&String::deserialize(from)?)
    }
}

/// Paths.
pub(super) mod paths {
    use std::path::PathBuf;

    use backstay_tree::path::escape;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::change) fn serialize<S: Serializer>(paths: &[PathBuf], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(paths.iter().map(|path| escape(path.as_os_str())))
    }

    pub(in crate::change) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<PathBuf>, D::Error> {
        Vec::<String>::deserialize(from)?.iter().map(|text| super::read_path(text)).collect()
    }
}

/// Paths, or none.
pub(super) mod maybe_paths {
    use std::path::PathBuf;

    use serde::{Deserializer, Serializer};

    #[allow(clippy::ref_option, reason = "serde gives it so")]
    pub(in crate::change) fn serialize<S: Serializer>(
        paths: &Option<Vec<PathBuf>>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        super::paths::serialize(paths.as_deref().unwrap_or_default(), to)
    }

    pub(in crate::change) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Vec<PathBuf>>, D::Error> {
        super::paths::deserialize(from).map(Some)
    }
}

/// What an entry is, by the names that trees use.
pub(super) mod kind {
    use backstay_tree::fs::Kind;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    const NAMES: [(Kind, &str); 7] = [
        (Kind::File, "file"),
        (Kind::Dir, "dir"),
        (Kind::Symlink, "symlink"),
        (Kind::Fifo, "fifo"),
        (Kind::Socket, "socket"),
        (Kind::CharDevice, "chardev"),
        (Kind::BlockDevice, "dev"),
    ];

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives it so")]
    pub(in crate::change) fn serialize<S: Serializer>(kind: &Kind, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(NAMES.iter().find(|(k, _)| k == kind).map_or("", |(_, name)| name))
    }

    pub(in crate::change) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Kind, D::Error> {
        let text = String::deserialize(from)?;
        let found = NAMES.iter().find(|(_, name)| *name == text);
        found.map(|(kind, _)| *kind).ok_or_else(|| D::Error::custom("an unknown kind of entry"))
    }
}

/// A time: seconds and nanoseconds.
pub(super) mod time {
    use backstay_tree::fs::FileTime;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives it so")]
    pub(in crate::change) fn serialize<S: Serializer>(time: &FileTime, to: S) -> Result<S::Ok, S::Error> {
        (time.secs, time.nanos).serialize(to)
    }

    pub(in crate::change) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<FileTime, D::Error> {
        let (secs, nanos) = Deserialize::deserialize(from)?;
        Ok(FileTime { secs, nanos })
    }
}

/// Extended attributes: names escaped, values in base64.
pub(super) mod xattrs {
    use backstay_tree::path::escape;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD as BASE64;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{OsString, PathBuf, read_path};

    pub(in crate::change) fn serialize<S: Serializer>(
        xattrs: &[(OsString, Vec<u8>)],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(xattrs.iter().map(|(name, value)| (escape(name), BASE64.encode(value))))
    }

    pub(in crate::change) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<(OsString, Vec<u8>)>, D::Error> {
        let read = |(name, value): (String, String)| {
            let value = BASE64.decode(value).map_err(super::custom::<D::Error>)?;
            Ok((PathBuf::into_os_string(read_path(&name)?), value))
        };
        Vec::<(String, String)>::deserialize(from)?.into_iter().map(read).collect()
    }
}

fn custom<E: serde::de::Error>(e: base64::DecodeError) -> E {
    E::custom(e)
}
