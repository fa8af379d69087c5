//! The server's signature under a manifest: Ed25519.
//!
//! Invariant: what is signed is a SHA-256 behind a fixed text, so that a signature under a manifest means nothing
//! anywhere else. The secret key never leaves [`SigningKey`].

use backstay_model::{Code, Error, Result};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

/// What stands before the hash that is signed.
const CONTEXT: &[u8] = b"backstay manifest 1\n";

/// The key of a server, which signs.
pub struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    /// From 32 random bytes that are kept secret.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self> {
        Ed25519KeyPair::from_seed_unchecked(seed)
            .map(SigningKey)
            .map_err(|e| Error::new(Code::Internal, "The signing key cannot be used").because(e.to_string()))
    }

    /// The key that verifies.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        for (to, from) in bytes.iter_mut().zip(self.0.public_key().as_ref()) {
            *to = *from;
        }
        PublicKey(bytes)
    }

    pub(crate) fn sign(&self, sha256: &[u8; 32]) -> [u8; 64] {
        let mut bytes = [0; 64];
        for (to, from) in bytes.iter_mut().zip(self.0.sign(&message(sha256)).as_ref()) {
            *to = *from;
        }
        bytes
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SigningKey({})", self.public())
    }
}

/// The key by which a signature of a server is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    pub(crate) fn verifies(&self, sha256: &[u8; 32], signature: &[u8; 64]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(&message(sha256), signature).is_ok()
    }
}

impl std::fmt::Display for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl std::str::FromStr for PublicKey {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        unhex(text)
            .map(PublicKey)
            .ok_or_else(|| Error::new(Code::InvalidValue, "A public key is 64 hexadecimal digits"))
    }
}

fn message(sha256: &[u8; 32]) -> Vec<u8> {
    [CONTEXT, sha256].concat()
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.extend([byte >> 4, byte & 15].into_iter().filter_map(|d| char::from_digit(d.into(), 16)));
    }
    text
}

/// Bytes of exactly that many lower-case hexadecimal digits.
pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (to, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *to = match pair {
            [high, low] => digit(*high)? << 4 | digit(*low)?,
            _ => return None,
        };
    }
    Some(bytes)
}
