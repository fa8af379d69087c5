//! Encryption as in restic's design document, section "Keys, Encryption and MAC": AES-256 in counter mode and
//! Poly1305-AES, laid out as `nonce (16) · ciphertext · mac (16)`.
//!
//! Invariants: nothing is decrypted before its MAC was found right; nonces are random and used once; key
//! material is wiped when dropped and never printed.

use std::fmt;

use aes::cipher::{BlockCipherEncrypt, InnerIvInit, KeyInit, StreamCipher, StreamCipherCoreWrapper};
use aes::{Aes128Enc, Aes256Enc};
use backstay_model::{Code, Error, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use poly1305::Poly1305;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Bytes of the nonce in front of a ciphertext.
pub const NONCE: usize = 16;
/// Bytes of the MAC behind a ciphertext.
pub const MAC: usize = 16;
/// What sealing adds to a text.
pub const OVERHEAD: usize = NONCE + MAC;

/// Fills a buffer from the system's random source.
pub(crate) fn random(buf: &mut [u8]) -> Result<()> {
    getrandom::fill(buf)
        .map_err(|e| Error::new(Code::System, "The system gives no random numbers").because(e))
}

/// A buffer of random nonces: one system call for many blobs.
#[derive(Default)]
pub struct Nonces {
    ready: Vec<[u8; NONCE]>,
}

impl Nonces {
    /// A fresh one.
    pub fn take(&mut self) -> Result<[u8; NONCE]> {
        if let Some(nonce) = self.ready.pop() {
            return Ok(nonce);
        }
        let mut bytes = [0u8; NONCE * 64];
        random(&mut bytes)?;
        let (first, more) = bytes.as_chunks::<NONCE>().0.split_first().ok_or_else(bug)?;
        self.ready.extend_from_slice(more);
        Ok(*first)
    }
}

fn bug() -> Error {
    Error::new(Code::Internal, "A buffer has the wrong length")
}

/// The keys of a vault, or those derived from a password.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct MasterKey {
    encrypt: [u8; 32],
    mac_k: [u8; 16],
    mac_r: [u8; 16],
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[derive(Serialize, Deserialize)]
struct MacJson {
    k: String,
    r: String,
}

#[derive(Serialize, Deserialize)]
struct KeyJson {
    mac: MacJson,
    encrypt: String,
}

impl MasterKey {
    /// New random keys.
    pub fn generate() -> Result<Self> {
        let mut bytes = [0u8; 64];
        random(&mut bytes)?;
        let key = Self::from_bytes(&bytes);
        bytes.zeroize();
        Ok(key)
    }

    /// 32 bytes for encryption, 16 and 16 for the MAC, as scrypt gives them.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; 64]) -> Self {
        let mut key = MasterKey { encrypt: [0; 32], mac_k: [0; 16], mac_r: [0; 16] };
        let (encrypt, rest) = bytes.split_at(32);
        let (k, r) = rest.split_at(16);
        key.encrypt.copy_from_slice(encrypt);
        key.mac_k.copy_from_slice(k);
        key.mac_r.copy_from_slice(r);
        key
    }

    /// The JSON that lies encrypted in a key file.
    pub(crate) fn to_json(&self) -> Result<Vec<u8>> {
        let json = KeyJson {
            mac: MacJson { k: BASE64.encode(self.mac_k), r: BASE64.encode(self.mac_r) },
            encrypt: BASE64.encode(self.encrypt),
        };
        serde_json::to_vec(&json).map_err(|e| Error::new(Code::Internal, "Cannot write a key").because(e))
    }

    /// Reads the JSON of a key file.
    pub(crate) fn from_json(json: &[u8]) -> Result<Self> {
        let damaged = || Error::new(Code::VaultDamaged, "The master key in a key file cannot be understood");
        let parsed: KeyJson = serde_json::from_slice(json).map_err(|e| damaged().because(e))?;
        let field = |text: &str| BASE64.decode(text).map_err(|e| damaged().because(e));
        let mut bytes = Vec::with_capacity(64);
        for part in [&parsed.encrypt, &parsed.mac.k, &parsed.mac.r] {
            bytes.extend_from_slice(&field(part)?);
        }
        let array: &[u8; 64] = bytes.as_slice().try_into().map_err(|_length| damaged())?;
        let key = Self::from_bytes(array);
        bytes.zeroize();
        Ok(key)
    }

    /// A number that depends on the key and a purpose and tells nothing about the key.
    #[must_use]
    pub(crate) fn derive(&self, purpose: &str) -> u64 {
        let mut hasher = blake3::Hasher::new_derive_key(purpose);
        hasher.update(&self.encrypt).update(&self.mac_k).update(&self.mac_r);
        hasher.finalize().as_bytes().first_chunk::<8>().map_or(1, |b| u64::from_le_bytes(*b))
    }
}

/// Ready-to-use ciphers of a [`MasterKey`]; cheap to share between threads.
#[derive(Clone)]
pub struct Cipher {
    stream: Aes256Enc,
    mac_block: Aes128Enc,
    mac_r: [u8; 16],
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

type Core = ctr::CtrCore<Aes256Enc, ctr::flavors::Ctr128BE>;

impl Cipher {
    /// Expands the keys.
    #[must_use]
    pub fn new(key: &MasterKey) -> Self {
        Cipher {
            stream: Aes256Enc::new(&key.encrypt.into()),
            mac_block: Aes128Enc::new(&key.mac_k.into()),
            mac_r: key.mac_r,
        }
    }

    fn mac(&self, nonce: &[u8; NONCE], ciphertext: &[u8]) -> [u8; MAC] {
        let mut pad = (*nonce).into();
        self.mac_block.encrypt_block(&mut pad);
        let mut key = [0u8; 32];
        let (r, s) = key.split_at_mut(16);
        r.copy_from_slice(&self.mac_r);
        s.copy_from_slice(&pad);
        let tag = Poly1305::new(&key.into()).compute_unpadded(ciphertext);
        let mut out = [0u8; MAC];
        out.copy_from_slice(&tag);
        out
    }

    fn apply_stream(&self, nonce: &[u8; NONCE], text: &mut [u8]) {
        let core = Core::inner_iv_init(self.stream.clone(), &(*nonce).into());
        StreamCipherCoreWrapper::from_core(core).apply_keystream(text);
    }

    /// Seals in place: `room` holds `NONCE` free bytes, the text, `MAC` free bytes.
    pub fn seal(&self, nonce: [u8; NONCE], room: &mut [u8]) -> Result<()> {
        let (head, rest) = room.split_first_chunk_mut::<NONCE>().ok_or_else(bug)?;
        let (text, tail) = rest.split_last_chunk_mut::<MAC>().ok_or_else(bug)?;
        *head = nonce;
        self.apply_stream(&nonce, text);
        *tail = self.mac(&nonce, text);
        Ok(())
    }

    /// A sealed copy of a text.
    pub fn sealed(&self, text: &[u8]) -> Result<Vec<u8>> {
        let mut nonce = [0u8; NONCE];
        random(&mut nonce)?;
        let mut room = vec![0u8; text.len() + OVERHEAD];
        room.get_mut(NONCE..NONCE + text.len()).ok_or_else(bug)?.copy_from_slice(text);
        self.seal(nonce, &mut room)?;
        Ok(room)
    }

    /// Checks and opens in place; gives back where in `sealed` the text now lies. `None`: altered, or another key.
    pub fn open<'a>(&self, sealed: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let (nonce, rest) = sealed.split_first_chunk_mut::<NONCE>()?;
        let (text, tag) = rest.split_last_chunk_mut::<MAC>()?;
        let expected = self.mac(nonce, text);
        let difference = expected.iter().zip(tag.iter()).fold(0u8, |sum, (a, b)| sum | (a ^ b));
        if difference != 0 {
            return None;
        }
        self.apply_stream(nonce, text);
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_noticed() {
        let cipher = Cipher::new(&MasterKey::generate().unwrap());
        let sealed = cipher.sealed(b"some text").unwrap();
        assert_eq!(cipher.open(&mut sealed.clone()).unwrap(), b"some text");
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(cipher.open(&mut bad).is_none(), "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert!(cipher.open(&mut sealed[..len].to_vec()).is_none());
        }
    }

    #[test]
    fn keys_survive_their_json_and_do_not_print() {
        let key = MasterKey::generate().unwrap();
        let again = MasterKey::from_json(&key.to_json().unwrap()).unwrap();
        let sealed = Cipher::new(&key).sealed(b"x").unwrap();
        assert!(Cipher::new(&again).open(&mut sealed.clone()).is_some());
        assert_eq!(format!("{key:?}"), "***");
    }
}
