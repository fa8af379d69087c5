//! The recovery kit: one passphrase-sealed file with what a blank machine needs.
//!
//! Invariants: an ordinary armored age file, so that `age -d` opens it without Backstay; what is inside is JSON that
//! says how to go on with `restic` alone. The passphrase never stands in argv. A kit file is written whole, mode
//! 0600, and never over another file.

use std::io::{Read as _, Write as _};
use std::path::Path;

use age::armor::{ArmoredReader, ArmoredWriter, Format};
use age::secrecy::SecretString;
use backstay_model::{Code, Error, Result, Secret};
use backstay_tree::fs::FileSystem;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::private;
use crate::secrets::plain;

const VERSION: u32 = 1;
/// Shortest passphrase taken, in characters.
pub const PASSPHRASE_MIN: usize = 8;
/// Cost of trying a passphrase (2^n), as the program `age` sets it: about a second and 256 MiB.
pub(crate) const WORK: u8 = 18;
/// Most work a kit may ask for (2^n): some seconds and 1 GiB.
const WORK_MAX: u8 = 20;
/// Longest kit read, in bytes.
const SIZE_MAX: u64 = 1 << 20;
const README: &str = "Recovery kit of Backstay. On a machine with Backstay: `backstay kit open FILE`, then `backstay list`. \
Without Backstay: the vault is a restic repository; `restic -r ADDRESS snapshots` asks for the password below.";

/// What a kit holds.
#[derive(Serialize, Deserialize)]
pub(crate) struct Kit {
    backstay_kit: u32,
    #[serde(default)]
    readme: String,
    /// When it was made.
    pub created: Timestamp,
    /// The machine that made it.
    #[serde(default)]
    pub host: String,
    /// Address of the vault.
    pub vault_address: String,
    /// The vault's own id.
    pub vault_id: String,
    /// The whole of `secrets.json`.
    #[serde(with = "plain")]
    pub secrets: Secret,
    /// The vault's password once more, for people who open the kit without Backstay.
    #[serde(with = "plain")]
    vault_password: Secret,
}

impl Kit {
    /// A kit around the text of `secrets.json`.
    pub fn new(
        created: Timestamp,
        host: String,
        (vault_address, vault_id): (String, String),
        secrets: Secret,
        vault_password: Secret,
    ) -> Self {
        let readme = README.to_owned();
        Kit { backstay_kit: VERSION, readme, created, host, vault_address, vault_id, secrets, vault_password }
    }

    /// Seals the kit and writes it to a new file.
    pub fn write(&self, fs: &dyn FileSystem, path: &Path, passphrase: &Secret, work: u8) -> Result<()> {
        check_passphrase(passphrase)?;
        let sealed = self.seal(passphrase, work)?;
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let name = path.file_name().and_then(|n| n.to_str()).ok_or_else(|| {
            Error::new(Code::InvalidValue, format!("`{}` does not name a file", path.display()))
        })?;
        private::write_new(fs, folder, name, &sealed).map_err(|e| match e.code() {
            Code::AlreadyExists => e,
            _ => Error::new(Code::TargetUnusable, format!("The kit cannot be written to {}", path.display()))
                .because(e)
                .advise("Name a file in a folder that exists and that you may write to."),
        })
    }

    fn seal(&self, passphrase: &Secret, work: u8) -> Result<Vec<u8>> {
        let wrong = |e: std::io::Error| Error::new(Code::Internal, "The kit cannot be sealed").because(e);
        let json = Zeroizing::new(
            serde_json::to_vec_pretty(self)
                .map_err(|e| Error::new(Code::Internal, "The kit cannot be written").because(e))?,
        );
        let mut recipient = age::scrypt::Recipient::new(secret(passphrase));
        recipient.set_work_factor(work);
        let encryptor = age::Encryptor::with_recipients(std::iter::once(&recipient as _))
            .map_err(|e| Error::new(Code::Internal, "The kit cannot be sealed").because(e))?;
        let armor = ArmoredWriter::wrap_output(Vec::new(), Format::AsciiArmor).map_err(wrong)?;
        let mut writer = encryptor.wrap_output(armor).map_err(wrong)?;
        writer.write_all(&json).map_err(wrong)?;
        writer.finish().and_then(ArmoredWriter::finish).map_err(wrong)
    }

    /// Opens a kit. `KitUnreadable` when the file is no kit or the passphrase is wrong.
    pub fn read(path: &Path, passphrase: &Secret) -> Result<Self> {
        let named = |e: Error| e.context(path.display());
        let file = std::fs::File::open(path).map_err(|e| {
            Error::new(Code::KitUnreadable, format!("Cannot open {}", path.display())).because(e)
        })?;
        let mut sealed = Vec::new();
        file.take(SIZE_MAX).read_to_end(&mut sealed).map_err(|e| {
            Error::new(Code::KitUnreadable, format!("Cannot read {}", path.display())).because(e)
        })?;
        Self::open(&sealed, passphrase).map_err(named)
    }

    fn open(sealed: &[u8], passphrase: &Secret) -> Result<Self> {
        use age::DecryptError as Why;
        let no_kit = |e: Why| Error::new(Code::KitUnreadable, "The file is not a kit").because(e.to_string());
        let decryptor = age::Decryptor::new(ArmoredReader::new(sealed)).map_err(no_kit)?;
        let mut identity = age::scrypt::Identity::new(secret(passphrase));
        identity.set_max_work_factor(WORK_MAX);
        let mut reader = decryptor.decrypt(std::iter::once(&identity as _)).map_err(|e| match e {
            Why::DecryptionFailed | Why::KeyDecryptionFailed | Why::NoMatchingKeys => {
                Error::new(Code::KitUnreadable, "The passphrase does not open the kit")
            }
            other => no_kit(other),
        })?;
        let mut json = Zeroizing::new(Vec::new());
        reader
            .read_to_end(&mut json)
            .map_err(|e| Error::new(Code::KitUnreadable, "The kit is damaged").because(e))?;
        Self::parse(&json)
    }

    fn parse(json: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            backstay_kit: u32,
        }
        let no_kit = |e: serde_json::Error| {
            let place = format!("line {}, column {}", e.line(), e.column());
            Error::new(Code::KitUnreadable, format!("The sealed file does not hold a kit ({place})"))
        };
        let Version { backstay_kit: version } = serde_json::from_slice(json).map_err(no_kit)?;
        if version > VERSION {
            let message = format!("The kit has version {version}, newest known is {VERSION}");
            return Err(Error::new(Code::StateUnsupported, message));
        }
        serde_json::from_slice(json).map_err(no_kit)
    }
}

/// Refuses passphrases that are too short to protect anything.
pub fn check_passphrase(passphrase: &Secret) -> Result<()> {
    if passphrase.reveal().chars().count() >= PASSPHRASE_MIN {
        return Ok(());
    }
    Err(Error::new(Code::InvalidValue, format!("The passphrase is shorter than {PASSPHRASE_MIN} characters"))
        .advise("Choose a longer one: whoever finds the kit can try passphrases for as long as they like."))
}

fn secret(passphrase: &Secret) -> SecretString {
    SecretString::from(passphrase.reveal().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_tree::fs::Host;

    fn kit() -> Kit {
        let address = ("/srv/vault".to_owned(), "ab".to_owned());
        Kit::new(Timestamp::UNIX_EPOCH, "h".into(), address, Secret::new("{}"), Secret::new("s3cret"))
    }

    #[test]
    fn a_kit_opens_with_its_passphrase_only_and_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kit.age");
        let passphrase = Secret::new("correct horse");
        assert_eq!(
            kit().write(&Host, &path, &Secret::new("short"), 2).unwrap_err().code(),
            Code::InvalidValue
        );
        kit().write(&Host, &path, &passphrase, 2).unwrap();
        assert_eq!(kit().write(&Host, &path, &passphrase, 2).unwrap_err().code(), Code::AlreadyExists);

        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("-----BEGIN AGE ENCRYPTED FILE-----") && !text.contains("s3cret"));
        let opened = Kit::read(&path, &passphrase).unwrap();
        assert_eq!((opened.vault_address.as_str(), opened.secrets.reveal()), ("/srv/vault", "{}"));
        let wrong = Kit::read(&path, &Secret::new("wrong horse")).err().unwrap();
        assert_eq!(wrong.code(), Code::KitUnreadable);
        assert!(wrong.message().contains("passphrase"), "{wrong}");
    }

    #[test]
    fn what_is_no_kit_is_told_whatever_it_is() {
        let passphrase = Secret::new("correct horse");
        let good = kit().seal(&passphrase, 2).unwrap();
        let mut files = vec![Vec::new(), b"hello".to_vec(), vec![0; 1000], good[..good.len() / 2].to_vec()];
        for at in (40..good.len()).step_by(17) {
            let mut changed = good.clone();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            if changed != good {
                files.push(changed);
            }
        }
        for file in files {
            let code = Kit::open(&file, &passphrase).err().map(|e| e.code());
            assert_eq!(code, Some(Code::KitUnreadable), "{}", String::from_utf8_lossy(&file));
        }
    }

    #[test]
    fn a_kit_that_asks_for_absurd_work_is_refused_at_once() {
        let passphrase = Secret::new("correct horse");
        let header = "age-encryption.org/v1\n-> scrypt AAAAAAAAAAAAAAAAAAAAAA 40\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n--- AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n";
        let code = Kit::open(header.as_bytes(), &passphrase).err().map(|e| e.code());
        assert_eq!(code, Some(Code::KitUnreadable));
    }
}
