//! `secrets.json`: what must not be lost nor seen.
//!
//! Invariants: mode 0600; written whole or not at all; made once and never replaced by other secrets. It is on disk
//! before a vault is sealed with its password, so a crash never leaves a vault nobody can open. Fields this version
//! does not know are kept.

use std::path::Path;

use age::secrecy::ExposeSecret as _;
use backstay_model::{Code, Error, Result, Secret};
use backstay_tree::fs::FileSystem;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::private;
use crate::sealed::KeyEncryptionKey;

/// The name of the file in the state folder.
pub(crate) const FILE: &str = "secrets.json";
const VERSION: u32 = 1;

/// The secrets of a state.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Secrets {
    version: u32,
    /// Opens the vault.
    #[serde(with = "plain")]
    pub vault_password: Secret,
    /// What is sealed for this server opens with it.
    #[serde(with = "plain")]
    pub age_identity: Secret,
    /// The seed of the key that signs archives (base64); made when it is first needed.
    #[serde(default, with = "maybe", skip_serializing_if = "Option::is_none")]
    pub signing_key: Option<Secret>,
    /// Keys that seal values in the catalog, oldest first: the last one seals, all of them open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key_encryption_keys: Vec<KeyEncryptionKey>,
    /// The vault these secrets belong to, once it is known to exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vault: Option<VaultRef>,
    #[serde(flatten)]
    other: serde_json::Map<String, serde_json::Value>,
}

/// Which vault and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultRef {
    /// The vault's own id.
    pub id: String,
    /// Its address; none for the folder `vault` in the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

impl Secrets {
    /// New secrets, or new ones around the password of a vault that exists.
    pub fn generate(vault_password: Option<Secret>) -> Result<Self> {
        let vault_password = match vault_password {
            Some(password) => password,
            None => Secret::new(URL_SAFE_NO_PAD.encode(random::<32>()?)),
        };
        let identity = age::x25519::Identity::generate();
        Ok(Secrets {
            version: VERSION,
            vault_password,
            age_identity: Secret::new(identity.to_string().expose_secret()),
            signing_key: Some(Secret::new(STANDARD.encode(random::<32>()?))),
            key_encryption_keys: Vec::new(),
            vault: None,
            other: serde_json::Map::new(),
        })
    }

    /// Reads the file; none when it does not exist.
    pub fn load(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        let Some(bytes) = private::read(&path)? else { return Ok(None) };
        Self::parse(&bytes).map(Some).map_err(|e| e.context(path.display()))
    }

    /// From the text of the file.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let damaged = |e: serde_json::Error| {
            // The parser's words may repeat a part of a secret: only the place is told.
            let place = format!("line {}, column {}", e.line(), e.column());
            Error::new(Code::StateDamaged, format!("The secrets cannot be read ({place})"))
                .advise("Put the file back from a copy, or move it away and run `backstay kit open`.")
        };
        let Version { version } = serde_json::from_slice(bytes).map_err(damaged)?;
        if version > VERSION {
            let message = format!("The secrets have version {version}, newest known is {VERSION}");
            return Err(Error::new(Code::StateUnsupported, message));
        }
        serde_json::from_slice(bytes).map_err(damaged)
    }

    /// Writes the file where there is none.
    pub fn create(&self, fs: &dyn FileSystem, folder: &Path) -> Result<()> {
        private::write_new(fs, folder, FILE, &self.to_json()?)
    }

    /// Writes the same secrets with changed details.
    pub fn update(&self, fs: &dyn FileSystem, folder: &Path) -> Result<()> {
        let before = Self::load(folder)?;
        let differs = |b: &Self| {
            let other_key =
                b.signing_key.is_some() && self.signing_key.is_some() && b.signing_key != self.signing_key;
            b.vault_password != self.vault_password || b.age_identity != self.age_identity || other_key
        };
        if before.as_ref().is_some_and(differs) {
            let message = format!("{} holds other secrets", folder.join(FILE).display());
            return Err(Error::new(Code::AlreadyExists, message));
        }
        let mut new = self.clone();
        // Another process may have made these since they were read: what was sealed or signed with them must stay so.
        if let Some(before) = before {
            new.signing_key = new.signing_key.or(before.signing_key);
            let lost = |k: &KeyEncryptionKey| new.key_encryption_keys.iter().all(|own| own.id != k.id);
            let mut keys: Vec<_> = before.key_encryption_keys.into_iter().filter(lost).collect();
            keys.append(&mut new.key_encryption_keys);
            new.key_encryption_keys = keys;
        }
        private::replace(fs, folder, FILE, &new.to_json()?)
    }

    fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self)
            .map_err(|e| Error::new(Code::Internal, "The secrets cannot be written").because(e))
    }
}

/// Random bytes of the system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::new(Code::System, "The system gives no random numbers").because(e.to_string()))?;
    Ok(bytes)
}

/// The same, where it may be missing.
mod maybe {
    use backstay_model::Secret;
    use serde::{Deserialize as _, Deserializer, Serializer};

    #[expect(clippy::ref_option, reason = "serde asks for it")]
    pub(super) fn serialize<S: Serializer>(secret: &Option<Secret>, s: S) -> Result<S::Ok, S::Error> {
        match secret {
            Some(secret) => s.serialize_some(secret.reveal()),
            None => s.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Secret>, D::Error> {
        Ok(Option::<String>::deserialize(d)?.map(Secret::new))
    }
}

/// A secret in the one file that holds it.
pub(crate) mod plain {
    use backstay_model::Secret;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(secret: &Secret, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(secret.reveal())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Secret, D::Error> {
        String::deserialize(d).map(Secret::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_tree::fs::Host;

    #[test]
    fn secrets_round_trip_keep_what_they_do_not_know_and_are_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Secrets::load(dir.path()).unwrap().is_none());
        let mut secrets = Secrets::generate(None).unwrap();
        assert_eq!(secrets.vault_password.reveal().len(), 43);
        assert!(secrets.age_identity.reveal().starts_with("AGE-SECRET-KEY-1"));
        secrets.other.insert("token_key".into(), "kept".into());
        secrets.create(&Host, dir.path()).unwrap();
        let mut read = Secrets::load(dir.path()).unwrap().unwrap();
        read.vault = Some(VaultRef { id: "ab".into(), address: None });
        read.update(&Host, dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(text.contains("\"token_key\": \"kept\"") && text.contains("\"id\": \"ab\""), "{text}");

        let others = Secrets::generate(None).unwrap();
        assert_eq!(others.create(&Host, dir.path()).unwrap_err().code(), Code::AlreadyExists);
        assert_eq!(others.update(&Host, dir.path()).unwrap_err().code(), Code::AlreadyExists);
    }

    #[test]
    fn damage_is_told_without_the_secret_and_the_future_is_unsupported() {
        let broken = br#"{"version":1,"vault_password":"hunter2","age_identity":}"#;
        let error = Secrets::parse(broken).err().unwrap();
        assert_eq!(error.code(), Code::StateDamaged);
        assert!(!format!("{error:?}").contains("hunter2"));
        let newer = br#"{"version":2,"everything":"else"}"#;
        assert_eq!(Secrets::parse(newer).err().map(|e| e.code()), Some(Code::StateUnsupported));
    }
}
