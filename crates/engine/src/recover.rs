//! Bringing a blank machine back to work: the kit, attaching a vault; and the first vault.
//!
//! Invariants: a kit is only made for a vault that opens with what it holds; secrets are only taken on when the
//! vault opens with them; secrets that are there are never replaced.

use std::path::Path;

use backstay_model::{Code, Error, Result, Secret};
use serde::Serialize;

use crate::kit::{Kit, WORK};
use crate::manifest::host;
use crate::secrets::Secrets;
use crate::state::{Engine, OpenVault};
use crate::{place, private};

/// Where a state and its vault are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Places {
    /// The state folder.
    pub state: String,
    /// The file with the secrets.
    pub secrets: String,
    /// The vault's address.
    pub vault: String,
    /// The vault's own id.
    pub vault_id: String,
}

/// A vault that was taken on.
#[derive(Clone, Debug, Serialize)]
pub struct Attached {
    /// Where everything is.
    #[serde(flatten)]
    pub places: Places,
    /// Points in the vault.
    pub points: usize,
    /// The apps they are of.
    pub apps: Vec<String>,
}

/// A vault that was made.
#[derive(Clone, Debug, Serialize)]
pub struct Made {
    /// Where everything is.
    #[serde(flatten)]
    pub places: Places,
    /// Whether commands use this vault without `--vault`.
    pub default: bool,
}

/// A kit that was written.
#[derive(Clone, Debug, Serialize)]
pub struct Exported {
    /// The file.
    pub file: String,
    /// The vault it is for.
    pub vault: String,
    /// Whether file and vault lie on the same disk.
    pub same_disk_as_vault: bool,
}

impl Engine {
    pub(crate) fn places(&self, open: &OpenVault) -> Places {
        Places {
            state: self.state.display().to_string(),
            secrets: self.secrets_file().display().to_string(),
            vault: open.address.clone(),
            vault_id: open.id.clone(),
        }
    }

    /// Makes a new vault: that of a new state, or a further one for `--vault`.
    pub fn vault_init(&self) -> Result<Made> {
        let secrets = Secrets::load(&self.state)?;
        let Some(known) = secrets.as_ref().and_then(|s| s.vault.clone()) else {
            let open = self.vault_or_new()?;
            return Ok(Made { places: self.places(&open), default: true });
        };
        let address = self.vault_address(secrets.as_ref())?;
        let password = self.secrets()?.vault_password;
        let exists = || Error::new(Code::AlreadyExists, format!("There is a vault already in {address}"));
        match self.make_vault(&address, &password) {
            Ok(open) if open.new => {
                let default = self.becomes_default(&open)?;
                Ok(Made { places: self.places(&open), default })
            }
            Ok(open) if open.id == known.id => {
                Err(exists().advise("This state uses it; nothing is to be done."))
            }
            Ok(_) => Err(exists().advise("Name it with --vault to use it.")),
            Err(e) if e.code() == Code::Conflict => Err(exists().because(e)),
            Err(e) => Err(e),
        }
    }

    /// A new vault at the place where the state's own vault was takes its part: the person asked for it.
    fn becomes_default(&self, open: &OpenVault) -> Result<bool> {
        let _lock = self.set_up_lock()?;
        let mut secrets = self.secrets()?;
        let usual = self.usual_address(&secrets)?;
        if usual != open.address {
            return Ok(false);
        }
        if let Some(known) = &mut secrets.vault {
            known.id.clone_from(&open.id);
        }
        secrets.update(&*self.fs, &self.state)?;
        Ok(true)
    }

    /// Writes a recovery kit to a new file.
    pub fn kit_export(&self, file: &Path, passphrase: &Secret) -> Result<Exported> {
        let open = self.vault()?;
        // The kit is to hold it: what it signs is known by it on the next machine too.
        self.signing_key()?;
        let bytes = private::read(&self.secrets_file())?.unwrap_or_default();
        let secrets = Secrets::parse(&bytes)?;
        let text = String::from_utf8(bytes)
            .map_err(|e| Error::new(Code::StateDamaged, "The secrets are not text").because(e))?;
        let host = host();
        let vault = (open.address.clone(), open.id);
        let kit = Kit::new(self.clock.now(), host, vault, Secret::new(text), secrets.vault_password);
        kit.write(&*self.fs, file, passphrase, WORK)?;
        let same = place::local(&open.address).is_some_and(|v| same_disk(file, &v));
        Ok(Exported { file: file.display().to_string(), vault: open.address, same_disk_as_vault: same })
    }

    /// Takes on what a kit holds. `--vault` names the vault's place where it has moved.
    pub fn kit_open(&self, file: &Path, passphrase: &Secret) -> Result<Attached> {
        let kit = Kit::read(file, passphrase)?;
        let mut secrets = Secrets::parse(kit.secrets.reveal().as_bytes())?;
        secrets.vault = None;
        let address = self.vault_for_now().unwrap_or(&kit.vault_address).to_owned();
        let open = self.adopt_vault(secrets, &address).map_err(|e| match e.code() {
            Code::VaultNotFound => e.advise(
                "If the vault lies elsewhere on this machine, name its place: `backstay kit open FILE --vault ADDRESS`.",
            ),
            _ => e,
        })?;
        self.attached(open)
    }

    /// Makes a vault that opens with the password of this state (a copy, or one that `vault init` made elsewhere) the
    /// one that commands use without `--vault`. None when this state has no secrets or they do not open it.
    pub fn switch_vault(&self, address: &str) -> Result<Option<Attached>> {
        let address = place::absolute(address, None)?;
        let Some(secrets) = Secrets::load(&self.state)? else { return Ok(None) };
        let open = match self.open_at(&address, &secrets.vault_password) {
            Err(e) if e.code() == Code::WrongPassword => return Ok(None),
            other => other?,
        };
        let _lock = self.set_up_lock()?;
        self.note_vault(self.secrets()?, &open)?;
        self.attached(open).map(Some)
    }

    /// Uses an existing vault in an empty state.
    pub fn attach(&self, address: &str, password: &Secret) -> Result<Attached> {
        let address = place::absolute(address, None)?;
        let secrets = Secrets::generate(Some(password.clone()))?;
        let open = self.adopt_vault(secrets, &address)?;
        self.attached(open)
    }

    fn attached(&self, open: OpenVault) -> Result<Attached> {
        let places = self.places(&open);
        let points = self.reconcile(open)?;
        let apps = self.apps()?.into_iter().map(|a| a.name.to_string()).collect();
        Ok(Attached { places, points: points.records.len(), apps })
    }
}

/// Whether two paths lie on the same file system. What cannot be looked at is taken to be elsewhere.
pub(crate) fn same_disk(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let device = |p: &Path| p.metadata().ok().map(|m| m.dev());
    matches!((device(a), device(b)), (Some(a), Some(b)) if a == b)
}
