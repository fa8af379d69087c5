//! Values sealed at rest: what opens a container, later the settings of apps.
//!
//! Envelope: each value has a key of its own, which lies beside it, sealed with a key-encryption key of `secrets.json`.
//! The newest of these seals, all of them open, so a new one can be added at any time and old values be sealed
//! again without being opened by anybody else.
//!
//! Invariants: authenticated encryption (ChaCha20-Poly1305) with the name of the record as associated data, so a sealed
//! text moved to another record does not open. A key-encryption key is on disk before anything is sealed with it.
//! Errors never repeat a value. Lock: the set-up lock while a key is made.

use backstay_model::{Code, Error, Result, Secret};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::recover::Places;
use crate::secrets::{Secrets, plain, random};
use crate::state::Engine;

/// What a sealed text begins with.
const FORMAT: &str = "sealed1";
/// Bytes of a key.
const KEY: usize = 32;

/// A key that seals the keys of values.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct KeyEncryptionKey {
    /// By which a sealed text names it.
    pub id: String,
    /// 32 bytes in base64.
    #[serde(with = "plain")]
    pub key: Secret,
}

impl KeyEncryptionKey {
    fn new() -> Result<Self> {
        let id = URL_SAFE_NO_PAD.encode(random::<6>()?);
        Ok(KeyEncryptionKey { id, key: Secret::new(STANDARD.encode(Zeroizing::new(random::<KEY>()?))) })
    }

    fn bytes(&self) -> Result<Zeroizing<Vec<u8>>> {
        let damaged = |_not_repeated| {
            Error::new(Code::StateDamaged, format!("The key {} in the secrets is not one", self.id))
        };
        STANDARD.decode(self.key.reveal()).map(Zeroizing::new).map_err(damaged)
    }
}

/// Seals a value for the record of that name with the newest key.
pub(crate) fn seal(keys: &[KeyEncryptionKey], record: &str, value: &Secret) -> Result<String> {
    let newest = keys
        .last()
        .ok_or_else(|| Error::new(Code::Internal, "There is no key-encryption key to seal with"))?;
    let own = Zeroizing::new(random::<KEY>()?);
    let wrapped = encrypt(&newest.bytes()?, &format!("{FORMAT}\n{}\n{record}", newest.id), &*own)?;
    let sealed = encrypt(&*own, &format!("{FORMAT}\n{record}"), value.reveal().as_bytes())?;
    Ok(format!("{FORMAT}.{}.{wrapped}.{sealed}", newest.id))
}

/// Opens what [`seal`] gave for the same record. `StateDamaged` when no key opens it or it was altered.
pub(crate) fn open(keys: &[KeyEncryptionKey], record: &str, text: &str) -> Result<Secret> {
    let refused = |why: &str| {
        Error::new(Code::StateDamaged, format!("What is sealed for {record} cannot be opened: {why}"))
            .advise("Put back the secrets.json that belongs to this state, or give the value again.")
    };
    let parts: Vec<&str> = text.split('.').collect();
    let &[format, id, wrapped, sealed] = parts.as_slice() else { return Err(refused("it is not whole")) };
    if format != FORMAT {
        let message = format!("What is sealed for {record} has a form that this version does not know");
        return Err(Error::new(Code::StateUnsupported, message));
    }
    let key = keys.iter().find(|k| k.id == id).ok_or_else(|| refused("its key is not in the secrets"))?;
    let altered = || refused("it was altered, or belongs to something else");
    let own = decrypt(&key.bytes()?, &format!("{FORMAT}\n{id}\n{record}"), wrapped).ok_or_else(altered)?;
    let value = decrypt(&own, &format!("{FORMAT}\n{record}"), sealed).ok_or_else(altered)?;
    std::str::from_utf8(&value).map(Secret::new).map_err(|_not_repeated| altered())
}

fn encrypt(key: &[u8], about: &str, plain: &[u8]) -> Result<String> {
    let failed = |_unspecified| Error::new(Code::Internal, "A value cannot be sealed");
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).map_err(failed)?);
    let nonce = random::<NONCE_LEN>()?;
    let mut bytes = Zeroizing::new(plain.to_vec());
    let aad = Aad::from(about.as_bytes());
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut *bytes).map_err(failed)?;
    Ok(URL_SAFE_NO_PAD.encode([&nonce, bytes.as_slice()].concat()))
}

fn decrypt(key: &[u8], about: &str, text: &str) -> Option<Zeroizing<Vec<u8>>> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (nonce, sealed) = bytes.split_at_checked(NONCE_LEN)?;
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).ok()?);
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut sealed = Zeroizing::new(sealed.to_vec());
    let plain = key.open_in_place(nonce, Aad::from(about.as_bytes()), &mut sealed).ok()?;
    Some(Zeroizing::new(plain.to_vec()))
}

impl Engine {
    /// The secrets, which are made with the vault on the very first run; then also where everything is. The vault is not
    /// looked at on later runs: what needs only the secrets works while it is away.
    pub(crate) fn secrets_or_new(&self) -> Result<(Secrets, Option<Places>)> {
        match Secrets::load(&self.state)? {
            Some(secrets) if secrets.vault.is_some() => Ok((secrets, None)),
            _ => {
                let made = self.vault_or_new()?;
                let places = made.new.then(|| self.places(&made));
                Ok((self.secrets()?, places))
            }
        }
    }

    /// The secrets after `lacking` was added to them where it is not there yet. Of two commands that do so at once one
    /// adds it and the other finds it.
    pub(crate) fn secrets_with(
        &self,
        has: impl Fn(&Secrets) -> bool,
        add: impl FnOnce(&mut Secrets) -> Result<()>,
    ) -> Result<Secrets> {
        let (secrets, _) = self.secrets_or_new()?;
        if has(&secrets) {
            return Ok(secrets);
        }
        let _lock = self.set_up_lock()?;
        let mut secrets = self.secrets()?;
        if !has(&secrets) {
            add(&mut secrets)?;
            secrets.update(&*self.fs, &self.state)?;
        }
        Ok(secrets)
    }

    /// Seals a value for the record of that name.
    pub(crate) fn seal_value(&self, record: &str, value: &Secret) -> Result<String> {
        let secrets = self.secrets_with(
            |s| !s.key_encryption_keys.is_empty(),
            |s| {
                s.key_encryption_keys.push(KeyEncryptionKey::new()?);
                Ok(())
            },
        )?;
        seal(&secrets.key_encryption_keys, record, value)
    }

    /// Opens a value that was sealed for the record of that name.
    pub(crate) fn open_value(&self, record: &str, sealed: &str) -> Result<Secret> {
        let secrets = Secrets::load(&self.state)?;
        let keys = secrets.map(|s| s.key_encryption_keys).unwrap_or_default();
        open(&keys, record, sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Setup;

    #[test]
    fn what_is_sealed_opens_for_its_record_alone_and_with_old_keys() {
        let mut keys = vec![KeyEncryptionKey::new().unwrap()];
        let value = Secret::new("sv=1&sig=s3cret");
        let old = seal(&keys, "container/a", &value).unwrap();
        assert_ne!(old, seal(&keys, "container/a", &value).unwrap(), "never the same text twice");
        keys.push(KeyEncryptionKey::new().unwrap());
        let new = seal(&keys, "container/a", &value).unwrap();
        assert!(new.contains(&keys[1].id) && !new.contains("s3cret"), "the newest one seals");
        for text in [&old, &new] {
            assert_eq!(open(&keys, "container/a", text).unwrap(), value);
            assert_eq!(open(&keys, "container/b", text).unwrap_err().code(), Code::StateDamaged);
            assert_eq!(open(&keys[..0], "container/a", text).unwrap_err().code(), Code::StateDamaged);
        }
        let mixed: Vec<&str> = old.rsplitn(2, '.').collect();
        let head: Vec<&str> = new.rsplitn(2, '.').collect();
        assert!(open(&keys, "container/a", &format!("{}.{}", head[1], mixed[0])).is_err());
    }

    #[test]
    fn every_altered_character_and_every_cut_is_refused_without_the_value() {
        let keys = vec![KeyEncryptionKey::new().unwrap()];
        let text = seal(&keys, "container/a", &Secret::new("s3cret")).unwrap();
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            for bad in [String::from_utf8(bytes).unwrap(), text[..at].to_owned()] {
                let e = open(&keys, "container/a", &bad).unwrap_err();
                assert!(matches!(e.code(), Code::StateDamaged | Code::StateUnsupported), "{e:?}");
                assert!(!format!("{e:?}{}", e.advice()).contains("s3cret"));
            }
        }
    }

    #[test]
    fn the_key_is_made_once_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let engine = || Engine::new(Setup { state: Some(state.clone()), ..Setup::default() }).unwrap();
        let sealed: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| engine().seal_value("a", &Secret::new("x")).unwrap()))
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        for text in sealed {
            assert_eq!(engine().open_value("a", &text).unwrap().reveal(), "x");
        }
        assert_eq!(engine().secrets().unwrap().key_encryption_keys.len(), 1);
    }
}
