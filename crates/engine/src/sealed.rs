//! Values sealed at rest: what opens a container, the settings and connection strings of apps.
//!
//! Envelope: each value has a key of its own, which lies beside it, sealed with a key-encryption key of `secrets.json`.
//! The newest of these seals, all of them open, so a new one can be added at any time and the keys of old values be
//! sealed anew without their values being opened.
//!
//! Invariants: authenticated encryption (ChaCha20-Poly1305) with the name of the record as associated data, so a sealed
//! text moved to another record does not open. A key-encryption key is on disk before anything is sealed with it, and is
//! never taken away: what another process has just sealed, and the notes of restores, may still need it. Errors never
//! repeat a value. Lock: the set-up lock while a key is made.
//!
//! Crash story of a new key: first it is in the secrets, then all values are sealed anew in one transaction. Killed before,
//! in between or afterwards, every value opens; doing it again completes it.

use backstay_catalog::{SealedRecord, SettingKind};
use backstay_model::{Code, Error, Result, Secret};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::containers;
use crate::recover::Places;
use crate::secrets::{Secrets, plain, random};
use crate::settings;
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
    let opened = own_key(keys, record, text)?;
    let altered = || refused(record, ALTERED);
    let value = decrypt(&opened.own, &format!("{FORMAT}\n{record}"), opened.sealed).ok_or_else(altered)?;
    std::str::from_utf8(&value).map(Secret::new).map_err(|_not_repeated| altered())
}

/// The same value under the newest key; none where that seals it already. The value is not opened.
fn seal_anew(keys: &[KeyEncryptionKey], record: &str, text: &str) -> Result<Option<String>> {
    let opened = own_key(keys, record, text)?;
    let Some(newest) = keys.last().filter(|newest| newest.id != opened.id) else { return Ok(None) };
    let wrapped = encrypt(&newest.bytes()?, &format!("{FORMAT}\n{}\n{record}", newest.id), &opened.own)?;
    Ok(Some(format!("{FORMAT}.{}.{wrapped}.{}", newest.id, opened.sealed)))
}

const ALTERED: &str = "it was altered, or belongs to something else";

fn refused(record: &str, why: &str) -> Error {
    Error::new(Code::StateDamaged, format!("What is sealed for {record} cannot be opened: {why}"))
        .advise("Put back the secrets.json that belongs to this state, or give the value again.")
}

/// The parts of a sealed text, its own key opened.
struct Opened<'a> {
    id: &'a str,
    own: Zeroizing<Vec<u8>>,
    sealed: &'a str,
}

fn own_key<'a>(keys: &[KeyEncryptionKey], record: &str, text: &'a str) -> Result<Opened<'a>> {
    let parts: Vec<&str> = text.split('.').collect();
    let &[format, id, wrapped, sealed] = parts.as_slice() else {
        return Err(refused(record, "it is not whole"));
    };
    if format != FORMAT {
        let message = format!("What is sealed for {record} has a form that this version does not know");
        return Err(Error::new(Code::StateUnsupported, message));
    }
    let key = keys.iter().find(|k| k.id == id);
    let key = key.ok_or_else(|| refused(record, "its key is not in the secrets"))?;
    let own = decrypt(&key.bytes()?, &format!("{FORMAT}\n{id}\n{record}"), wrapped);
    Ok(Opened { id, own: own.ok_or_else(|| refused(record, ALTERED))?, sealed })
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

    /// Makes the state with its vault where there is none; then also where everything is.
    pub fn set_up(&self) -> Result<Option<Places>> {
        Ok(self.secrets_or_new()?.1)
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

    /// The keys to seal with; the first is made where there is none.
    pub(crate) fn sealing_keys(&self) -> Result<Vec<KeyEncryptionKey>> {
        let secrets = self.secrets_with(
            |s| !s.key_encryption_keys.is_empty(),
            |s| {
                s.key_encryption_keys.push(KeyEncryptionKey::new()?);
                Ok(())
            },
        )?;
        Ok(secrets.key_encryption_keys)
    }

    /// Seals a value for the record of that name.
    pub(crate) fn seal_value(&self, record: &str, value: &Secret) -> Result<String> {
        seal(&self.sealing_keys()?, record, value)
    }

    /// Opens a value that was sealed for the record of that name.
    pub(crate) fn open_value(&self, record: &str, sealed: &str) -> Result<Secret> {
        open(&opening_keys(&self.state)?, record, sealed)
    }

    /// Makes a new key-encryption key and seals everything with it that the catalog holds sealed. Older keys stay in
    /// the secrets.
    pub fn rotate_key(&self) -> Result<Rotated> {
        self.secrets()?;
        let keys = {
            let _lock = self.set_up_lock()?;
            let mut secrets = self.secrets()?;
            secrets.key_encryption_keys.push(KeyEncryptionKey::new()?);
            secrets.update(&*self.fs, &self.state)?;
            secrets.key_encryption_keys
        };
        let mut left = Vec::new();
        let resealed = match self.has_catalog() {
            false => 0,
            true => self.catalog()?.reseal(&mut |record, text| {
                // One that cannot be opened must not hinder the others.
                seal_anew(&keys, &name_of(record), text).or_else(|e| {
                    left.push(LeftSealed { what: shown(record), code: e.code(), reason: e.message().into() });
                    Ok(None)
                })
            })?,
        };
        let key = keys.last().map(|k| k.id.clone()).unwrap_or_default();
        Ok(Rotated { key, keys: keys.len(), resealed, left })
    }
}

/// What became of making a new key-encryption key.
#[derive(Clone, Debug, Serialize)]
pub struct Rotated {
    /// The id of the new key.
    pub key: String,
    /// How many keys there are now.
    pub keys: usize,
    /// How many values were sealed anew.
    pub resealed: u64,
    /// Values that cannot be opened, which stay as they are.
    pub left: Vec<LeftSealed>,
}

/// A sealed value that cannot be opened.
#[derive(Clone, Debug, Serialize)]
pub struct LeftSealed {
    /// Of what.
    pub what: String,
    /// The stable code.
    pub code: Code,
    /// Why not.
    pub reason: String,
}

/// The keys that open, in a state folder; none where it has no secrets.
pub(crate) fn opening_keys(state: &std::path::Path) -> Result<Vec<KeyEncryptionKey>> {
    Ok(Secrets::load(state)?.map(|s| s.key_encryption_keys).unwrap_or_default())
}

/// The name that a record is sealed for.
fn name_of(record: &SealedRecord) -> String {
    match record {
        SealedRecord::Container { name } => containers::record_of(name),
        SealedRecord::Setting { app, slot, kind, name } => settings::record_of(app, slot, *kind, name),
    }
}

/// A record in words.
fn shown(record: &SealedRecord) -> String {
    match record {
        SealedRecord::Container { name } => format!("container `{name}`"),
        SealedRecord::Setting { app, kind: SettingKind::Setting, name, .. } => {
            format!("setting `{name}` of app `{app}`")
        }
        SealedRecord::Setting { app, kind: SettingKind::Connection, name, .. } => {
            format!("connection string `{name}` of app `{app}`")
        }
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
    fn a_value_is_sealed_anew_for_its_record_alone_and_then_needs_the_newest_key_alone() {
        let mut keys = vec![KeyEncryptionKey::new().unwrap()];
        let value = Secret::new("s3cret");
        let old = seal(&keys, "a", &value).unwrap();
        assert_eq!(seal_anew(&keys, "a", &old).unwrap(), None);
        keys.push(KeyEncryptionKey::new().unwrap());
        let new = seal_anew(&keys, "a", &old).unwrap().unwrap();
        assert_eq!(open(&keys[1..], "a", &new).unwrap(), value);
        assert_eq!(open(&keys, "a", &old).unwrap(), value);
        assert_eq!(open(&keys[1..], "a", &old).unwrap_err().code(), Code::StateDamaged);
        assert_eq!(open(&keys, "b", &new).unwrap_err().code(), Code::StateDamaged);
        assert_eq!(seal_anew(&keys, "b", &old).unwrap_err().code(), Code::StateDamaged);
        assert_eq!(seal_anew(&keys, "a", &new).unwrap(), None);
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
