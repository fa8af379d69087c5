//! `backstay.toml`: the operator's configuration. Every key has a default, the file may be absent.
//!
//! Invariants: Backstay reads it and never writes it. An unknown key is an error, since a misspelt one would be
//! obeyed by nobody.

use std::path::Path;

use backstay_model::{Code, Error, Result};
use serde::Deserialize;

use crate::private;

/// The name of the file in the state folder.
pub(crate) const FILE: &str = "backstay.toml";

/// The configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Address of the vault: a folder. Relative paths count from the state folder.
    pub vault: Option<String>,
}

impl Config {
    /// Reads the file of a state.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let Some(bytes) = private::read(&path)? else { return Ok(Self::default()) };
        let text = String::from_utf8_lossy(&bytes);
        toml::from_str(&text).map_err(|e| {
            Error::new(Code::InvalidValue, format!("{} is not a valid configuration", path.display()))
                .because(e)
                .advise("Correct the line named. Known keys: vault.")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_key_is_told_and_an_absent_file_is_the_default() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Config::load(dir.path()).unwrap(), Config::default());
        std::fs::write(dir.path().join(FILE), "vault = \"/mnt/v\"\n").unwrap();
        assert_eq!(Config::load(dir.path()).unwrap().vault.as_deref(), Some("/mnt/v"));
        std::fs::write(dir.path().join(FILE), "vualt = \"/mnt/v\"\n").unwrap();
        let error = Config::load(dir.path()).unwrap_err();
        assert_eq!(error.code(), Code::InvalidValue);
        assert!(error.causes().concat().contains("vualt"), "{error:?}");
    }
}
