//! Sealing the settings with age, so that `age -d` opens them without Backstay.
//!
//! Invariants: settings are plain only by [`Seal::Plain`], which somebody asked for. What cannot be opened is told as
//! such, never taken for damage of the rest. Work that a hostile file may ask for is bounded.

use std::io::{Read as _, Write as _};

use age::secrecy::SecretString;
use backstay_model::{Code, Error, Result, Secret};

use crate::manifest::Sealed;
use crate::place::{SETTINGS_PLAIN, SETTINGS_SEALED};

/// Cost of trying a passphrase (2^n), as the program `age` sets it.
const WORK: u8 = 18;
/// Most work a file may ask for (2^n): some seconds and 1 GiB.
const WORK_MAX: u8 = 20;
/// Longest settings that are opened, in bytes.
const SIZE_MAX: u64 = 64 << 20;

/// By what settings are to be sealed.
#[derive(Clone, Debug)]
pub enum Seal {
    /// For the owners of these age recipients (`age1…`).
    Recipients(Vec<String>),
    /// By a passphrase.
    Passphrase(Secret),
    /// Not at all.
    Plain,
}

/// What may open sealed settings.
#[derive(Clone, Debug, Default)]
pub struct Opener {
    /// age identities (`AGE-SECRET-KEY-1…`).
    pub identities: Vec<Secret>,
    /// A passphrase.
    pub passphrase: Option<Secret>,
}

/// Settings as they lie in an archive.
#[derive(Clone, Debug)]
pub struct SealedSettings {
    /// Name of the entry.
    pub file: &'static str,
    /// Its content.
    pub bytes: Vec<u8>,
    /// For the manifest.
    pub sealed: Sealed,
}

/// The recipient for whom this identity opens.
pub fn recipient_of(identity: &Secret) -> Result<String> {
    Ok(parse_identity(identity)?.to_public().to_string())
}

fn parse_identity(identity: &Secret) -> Result<age::x25519::Identity> {
    identity
        .reveal()
        .trim()
        .parse()
        .map_err(|_text: &str| Error::new(Code::InvalidValue, "This is no age identity"))
}

fn secret(text: &Secret) -> SecretString {
    SecretString::from(text.reveal().to_owned())
}

/// Seals settings.
pub fn seal(settings: &[u8], by: &Seal) -> Result<SealedSettings> {
    seal_at_cost(settings, by, WORK)
}

fn seal_at_cost(settings: &[u8], by: &Seal, work: u8) -> Result<SealedSettings> {
    let failed = |e: String| Error::new(Code::System, "The settings cannot be sealed").because(e);
    let encrypt = |recipients: &[&dyn age::Recipient]| {
        let encryptor =
            age::Encryptor::with_recipients(recipients.iter().copied()).map_err(|e| failed(e.to_string()))?;
        let mut bytes = Vec::new();
        let mut writer = encryptor.wrap_output(&mut bytes).map_err(|e| failed(e.to_string()))?;
        writer
            .write_all(settings)
            .and_then(|()| writer.finish().map(|_| ()))
            .map_err(|e| failed(e.to_string()))?;
        Ok::<Vec<u8>, Error>(bytes)
    };
    match by {
        Seal::Plain => {
            Ok(SealedSettings { file: SETTINGS_PLAIN, bytes: settings.to_vec(), sealed: Sealed::Plain })
        }
        Seal::Passphrase(passphrase) => {
            let mut recipient = age::scrypt::Recipient::new(secret(passphrase));
            recipient.set_work_factor(work);
            let bytes = encrypt(&[&recipient])?;
            Ok(SealedSettings { file: SETTINGS_SEALED, bytes, sealed: Sealed::Passphrase })
        }
        Seal::Recipients(texts) => {
            let parse = |text: &String| {
                text.parse::<age::x25519::Recipient>().map_err(|_bad: &str| {
                    Error::new(Code::InvalidValue, format!("`{}` is no age recipient", text.escape_debug()))
                })
            };
            let recipients: Vec<_> = texts.iter().map(parse).collect::<Result<_>>()?;
            let borrowed: Vec<&dyn age::Recipient> = recipients.iter().map(|r| r as _).collect();
            let bytes = encrypt(&borrowed)?;
            Ok(SealedSettings { file: SETTINGS_SEALED, bytes, sealed: Sealed::Recipients(texts.clone()) })
        }
    }
}

/// Opens sealed settings. `SettingsSealed` when nothing given opens them.
pub fn open(bytes: &[u8], with: &Opener) -> Result<Vec<u8>> {
    let sealed =
        |why: &str| Error::new(Code::SettingsSealed, format!("The settings cannot be opened: {why}"));
    let decryptor = age::Decryptor::new(bytes).map_err(|e| sealed(&e.to_string()))?;
    let mut identities: Vec<Box<dyn age::Identity>> = Vec::new();
    if decryptor.is_scrypt() {
        let passphrase =
            with.passphrase.as_ref().ok_or_else(|| sealed("they are sealed with a passphrase"))?;
        let mut identity = age::scrypt::Identity::new(secret(passphrase));
        identity.set_max_work_factor(WORK_MAX);
        identities.push(Box::new(identity));
    } else {
        for identity in &with.identities {
            identities.push(Box::new(parse_identity(identity)?));
        }
    }
    let reader = decryptor.decrypt(identities.iter().map(|i| &**i)).map_err(|e| sealed(&e.to_string()))?;
    let mut settings = Vec::new();
    reader.take(SIZE_MAX + 1).read_to_end(&mut settings).map_err(|e| sealed(&e.to_string()))?;
    if settings.len() as u64 > SIZE_MAX {
        return Err(Error::new(Code::LimitExceeded, format!("Settings have at most {SIZE_MAX} bytes")));
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use age::secrecy::ExposeSecret as _;

    #[test]
    fn sealed_for_recipients_or_by_a_passphrase_and_opened_by_nobody_else() {
        let identity = || Secret::new(age::x25519::Identity::generate().to_string().expose_secret());
        let (one, two, other) = (identity(), identity(), identity());
        let recipients = vec![recipient_of(&one).unwrap(), recipient_of(&two).unwrap()];
        let sealed = seal(b"{\"a\":1}", &Seal::Recipients(recipients.clone())).unwrap();
        assert_eq!((sealed.file, &sealed.sealed), (SETTINGS_SEALED, &Sealed::Recipients(recipients)));
        for key in [&one, &two] {
            let with = Opener { identities: vec![other.clone(), key.clone()], passphrase: None };
            assert_eq!(open(&sealed.bytes, &with).unwrap(), b"{\"a\":1}");
        }
        let wrong = Opener { identities: vec![other], passphrase: Some(Secret::new("x")) };
        assert_eq!(open(&sealed.bytes, &wrong).unwrap_err().code(), Code::SettingsSealed);
        assert_eq!(open(&sealed.bytes, &Opener::default()).unwrap_err().code(), Code::SettingsSealed);

        let by = Seal::Passphrase(Secret::new("correct horse"));
        let sealed = seal_at_cost(b"plain", &by, 2).unwrap();
        let with = |text: &str| Opener { identities: Vec::new(), passphrase: Some(Secret::new(text)) };
        assert_eq!(open(&sealed.bytes, &with("correct horse")).unwrap(), b"plain");
        assert_eq!(open(&sealed.bytes, &with("wrong")).unwrap_err().code(), Code::SettingsSealed);
        assert_eq!(open(&sealed.bytes, &Opener::default()).unwrap_err().code(), Code::SettingsSealed);
    }

    #[test]
    fn every_flipped_byte_of_sealed_settings_is_noticed() {
        let identity = age::x25519::Identity::generate();
        let key = Secret::new(identity.to_string().expose_secret());
        let sealed = seal(b"secret", &Seal::Recipients(vec![identity.to_public().to_string()])).unwrap();
        let with = Opener { identities: vec![key], passphrase: None };
        for at in 0..sealed.bytes.len() {
            let mut bytes = sealed.bytes.clone();
            bytes[at] ^= 1;
            assert_ne!(open(&bytes, &with).ok().as_deref(), Some(&b"secret"[..]), "byte {at}");
            assert!(open(&bytes[..at], &with).is_err());
        }
    }
}
