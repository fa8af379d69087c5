//! The end of a manifest, which proves the rest.
//!
//! Invariants: the element is found by its place, its fields are cut out by their places, and what they say is written
//! again and compared byte for byte: so no byte of the file can change unnoticed, and no parser is needed. The hash
//! covers everything before the element.

use backstay_model::{Code, Error, Result};
use sha2::{Digest as _, Sha256};

use super::damaged;
use crate::sign::{PublicKey, SigningKey, hex, unhex};

const START: &str = "  <Integrity>\n";
const END: &str = "  </Integrity>\n</BackupDescription>\n";
/// Where the element begins, at most so many bytes from the end.
const LONGEST: usize = 512;

/// Whose signatures are believed.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// Keys of known servers, this one's among them.
    pub keys: Vec<PublicKey>,
}

/// What the end of a manifest proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integrity {
    /// Whole, and signed by a key that is known.
    Signed(PublicKey),
    /// Whole, and signed by a key that is not known: whoever has that key made it.
    UnknownKey(PublicKey),
    /// Whole, but not signed: protected against accidents, not against people.
    Unsigned,
}

/// Appends the element to a document whose root is still open.
pub(super) fn seal(mut body: Vec<u8>, key: Option<&SigningKey>) -> Vec<u8> {
    let sha256 = Sha256::digest(&body).into();
    let signature = key.map(|key| (key.public(), key.sign(&sha256)));
    body.extend_from_slice(tail(&sha256, signature.as_ref()).as_bytes());
    body
}

fn tail(sha256: &[u8; 32], signature: Option<&(PublicKey, [u8; 64])>) -> String {
    let mut text = format!("{START}    <Sha256>{}</Sha256>\n", hex(sha256));
    if let Some((key, signature)) = signature {
        let signature = hex(signature);
        text.push_str(&format!(
            "    <Signature algorithm=\"Ed25519\" key=\"{key}\">{signature}</Signature>\n"
        ));
    }
    text.push_str(END);
    text
}

/// What stands between two texts, and what follows.
fn between<'t>(text: &'t str, before: &str, after: &str) -> Option<(&'t str, &'t str)> {
    text.strip_prefix(before)?.split_once(after)
}

/// Checks the end of a manifest and gives the bytes before it.
pub(super) fn check<'b>(bytes: &'b [u8], trust: &Trust) -> Result<(&'b [u8], Integrity)> {
    let from = bytes.len().saturating_sub(LONGEST);
    let window = bytes.get(from..).unwrap_or_default();
    let Some(at) = window.windows(START.len()).rposition(|part| part == START.as_bytes()) else {
        return Err(no_end(bytes));
    };
    let (body, end) = bytes.split_at_checked(from + at).unwrap_or((bytes, &[]));
    let end = std::str::from_utf8(end).map_err(|_not_text| damaged("its last element is not text"))?;
    let parts = || {
        let (sha256, rest) = between(end, &format!("{START}    <Sha256>"), "</Sha256>\n")?;
        let sha256: [u8; 32] = unhex(sha256)?;
        let signature = match between(rest, "    <Signature algorithm=\"Ed25519\" key=\"", "\">") {
            Some((key, rest)) => {
                let (signature, _) = rest.split_once("</Signature>\n")?;
                Some((PublicKey(unhex(key)?), unhex::<64>(signature)?))
            }
            None => None,
        };
        Some((sha256, signature))
    };
    let (sha256, signature) = parts().ok_or_else(|| damaged("its last element is not as it was written"))?;
    if tail(&sha256, signature.as_ref()) != end {
        return Err(damaged("its last element is not as it was written"));
    }
    if <[u8; 32]>::from(Sha256::digest(body)) != sha256 {
        return Err(damaged("its content does not match its own hash"));
    }
    let integrity = match signature {
        None => Integrity::Unsigned,
        Some((key, signature)) if !key.verifies(&sha256, &signature) => {
            return Err(damaged("its signature is wrong"));
        }
        Some((key, _)) if trust.keys.contains(&key) => Integrity::Signed(key),
        Some((key, _)) => Integrity::UnknownKey(key),
    };
    Ok((body, integrity))
}

/// Cut off, altered there, or not one of ours.
fn no_end(bytes: &[u8]) -> Error {
    let ours =
        bytes.windows(super::NAMESPACE.len()).take(1024).any(|part| part == super::NAMESPACE.as_bytes());
    if ours {
        damaged("its last element is missing or altered")
    } else {
        Error::new(Code::ArchiveUnsupported, "The xml is not a manifest of Backstay")
            .advise("To restore an archive that another program made, add --accept-unverified.")
    }
}
