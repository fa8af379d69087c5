//! Names of objects and blobs: SHA-256 digests.

use std::fmt;
use std::str::FromStr;

use backstay_model::{Code, Error, ParseIdError, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The SHA-256 of an object's bytes (files of the vault) or of its plain content (blobs).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Id(pub [u8; 32]);

impl Id {
    /// The id of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Id(Sha256::digest(bytes).into())
    }

    /// From exactly 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Result<Self> {
        let array = bytes
            .try_into()
            .map_err(|_length| Error::new(Code::VaultDamaged, "An id in the vault is not 32 bytes long"))?;
        Ok(Id(array))
    }

    /// 64 hexadecimal digits in a buffer on the stack.
    #[must_use]
    pub fn hex(&self) -> HexId {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut out = [0u8; 64];
        for (pair, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(self.0) {
            let digit = |n: u8| DIGITS.get(usize::from(n)).copied().unwrap_or(b'?');
            *pair = [digit(byte >> 4), digit(byte & 15)];
        }
        HexId(out)
    }

    /// The first eight digits.
    #[must_use]
    pub fn short(&self) -> String {
        self.hex().as_str().chars().take(8).collect()
    }

    /// The first eight bytes as a number, for searching in sorted lists.
    #[must_use]
    pub fn prefix(&self) -> u64 {
        self.0.first_chunk::<8>().map_or(0, |b| u64::from_be_bytes(*b))
    }

    /// From 64 hexadecimal digits; none for anything else.
    #[must_use]
    pub fn from_hex(text: &[u8]) -> Option<Self> {
        let (pairs, rest) = text.as_chunks::<2>();
        if pairs.len() != 32 || !rest.is_empty() {
            return None;
        }
        let mut out = [0u8; 32];
        for (byte, [high, low]) in out.iter_mut().zip(pairs) {
            *byte = (nibble(*high)? << 4) | nibble(*low)?;
        }
        Some(Id(out))
    }
}

fn nibble(c: u8) -> Option<u8> {
    match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    }
}

/// Hexadecimal digits of an [`Id`].
#[derive(Clone, Copy)]
pub struct HexId([u8; 64]);

impl HexId {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// As bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.hex().as_str())
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl FromStr for Id {
    type Err = ParseIdError;
    fn from_str(s: &str) -> Result<Self, ParseIdError> {
        Id::from_hex(s.as_bytes()).ok_or_else(|| {
            ParseIdError(format!("`{}` is not an id: 64 hexadecimal digits", s.escape_debug()))
        })
    }
}

impl Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.hex().as_str())
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Hex;
        impl serde::de::Visitor<'_> for Hex {
            type Value = Id;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("64 hexadecimal digits")
            }
            fn visit_str<E: serde::de::Error>(self, s: &str) -> Result<Id, E> {
                Id::from_hex(s.as_bytes())
                    .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(s), &self))
            }
        }
        d.deserialize_str(Hex)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_refuse_what_is_not_one() {
        let id = Id::of(b"abc");
        assert_eq!(id.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(id.to_string().parse::<Id>(), Ok(id));
        for bad in ["", "ba78", &"g".repeat(64), &"A".repeat(64), &"a".repeat(65)] {
            assert!(bad.parse::<Id>().is_err());
        }
    }
}
