//! The key that signs this server's archives.
//!
//! Invariants: made once, under the set-up lock, and kept in `secrets.json`; never replaced.

use backstay_archive::{SigningKey, Trust};
use backstay_model::{Code, Error, Result, Secret};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::secrets::{Secrets, random};
use crate::state::Engine;

impl Engine {
    /// The key that signs this server's archives; made when there is none yet.
    pub(crate) fn signing_key(&self) -> Result<SigningKey> {
        let secrets = self.secrets_with(
            |s| s.signing_key.is_some(),
            |s| {
                s.signing_key = Some(Secret::new(STANDARD.encode(random::<32>()?)));
                Ok(())
            },
        )?;
        let key = secrets.signing_key.as_ref().map(key_of);
        key.unwrap_or_else(|| Err(Error::new(Code::Internal, "The signing key was not kept")))
    }

    /// Whose signatures are believed: this server's.
    pub(crate) fn trust(&self) -> Result<Trust> {
        let secrets = Secrets::load(&self.state)?;
        let key = secrets.and_then(|s| s.signing_key.clone()).as_ref().map(key_of).transpose()?;
        Ok(Trust { keys: key.iter().map(SigningKey::public).collect() })
    }
}

fn key_of(seed: &Secret) -> Result<SigningKey> {
    let bytes = STANDARD.decode(seed.reveal()).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let damaged = || {
        Error::new(Code::StateDamaged, "The key that signs archives cannot be read")
            .advise("Put `signing_key` in secrets.json back from the recovery kit, or take it out: a new one is made then.")
    };
    SigningKey::from_seed(&bytes.ok_or_else(damaged)?)
}
