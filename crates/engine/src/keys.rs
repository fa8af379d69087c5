//! The passwords of a vault.
//!
//! Invariants: adding and removing keys re-wraps the vault's master key; it does not change it (a real change is a
//! copy into a new vault). The key this state itself uses is not removed.

use backstay_model::{Cancel, Code, Error, Result, Secret};
use backstay_vault::key::Cost;
use jiff::Timestamp;
use serde::Serialize;

use crate::points::short_lock;
use crate::state::Engine;

/// Shortest password taken, in characters.
pub const PASSWORD_MIN: usize = 8;

/// A key of a vault.
#[derive(Clone, Debug, Serialize)]
pub struct KeyInfo {
    /// Its id.
    pub id: String,
    /// When it was made.
    pub created: Timestamp,
    /// By whom.
    pub user: String,
    /// On which machine.
    pub host: String,
    /// Whether this state opens the vault with it.
    pub in_use: bool,
}

impl Engine {
    /// The keys of the vault, oldest first.
    pub fn keys(&self) -> Result<Vec<KeyInfo>> {
        let mut keys: Vec<KeyInfo> = self
            .vault()?
            .vault
            .keys()?
            .into_iter()
            .map(|(id, file, in_use)| KeyInfo {
                id: id.to_string(),
                created: file.created,
                user: file.username,
                host: file.hostname,
                in_use,
            })
            .collect();
        keys.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        Ok(keys)
    }

    /// Adds a password that a person chose; gives the new key's id.
    pub fn key_add(&self, password: &Secret, cancel: &Cancel) -> Result<String> {
        if password.reveal().chars().count() < PASSWORD_MIN {
            let message = format!("The password is shorter than {PASSWORD_MIN} characters");
            return Err(Error::new(Code::InvalidValue, message).advise("Choose a longer one."));
        }
        let open = self.vault()?;
        let lock = short_lock(&open.vault, cancel)?;
        let id = open.vault.add_key(password, Cost::PEOPLE)?;
        lock.release()?;
        Ok(id.to_string())
    }

    /// Removes the key of that id or unique prefix; gives its id.
    pub fn key_remove(&self, prefix: &str, cancel: &Cancel) -> Result<String> {
        let open = self.vault()?;
        let keys = open.vault.keys()?;
        let mut fits =
            keys.iter().filter(|(id, ..)| id.to_string().starts_with(&prefix.to_ascii_lowercase()));
        let (id, in_use) = match (fits.next(), fits.next()) {
            (Some((id, _, in_use)), None) if !prefix.is_empty() => (*id, *in_use),
            (None, _) => {
                return Err(Error::new(Code::KeyNotFound, format!("The vault has no key {prefix}")));
            }
            _ => {
                let message = format!("Several keys of the vault begin with {prefix}");
                return Err(Error::new(Code::InvalidValue, message).advise("Give more characters of the id."));
            }
        };
        if in_use && keys.len() > 1 {
            let message = format!("Key {} is the one this state opens the vault with", id.short());
            return Err(Error::new(Code::Conflict, message)
                .advise("Attach the vault in another state with another password first, and remove the key from there."));
        }
        let lock = short_lock(&open.vault, cancel)?;
        open.vault.remove_key(&id)?;
        lock.release()?;
        Ok(id.to_string())
    }
}
