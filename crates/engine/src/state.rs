//! The state folder and what lies in it.
//!
//! Invariants: looking makes nothing; the first command that needs to write makes the folder (0700). The first run
//! goes in this order, each step synced before the next: folder, secrets, vault, the note in the secrets that the
//! vault exists. Killed between any two, the next command goes on from there: secrets without that note may make
//! the vault, secrets with it never do (a vault that is gone is told, not replaced by an empty one). The set-up lock
//! keeps two first runs apart; the kernel releases it when its holder dies.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use backstay_catalog::{Catalog, Clock, Sqlite, SystemClock};
use backstay_model::{Code, Error, Result, Secret};
use backstay_storage::Storage;
use backstay_tree::fs::{FileSystem, Host};
use backstay_vault::Vault;
use backstay_vault::key::Cost;

use crate::config::Config;
use crate::secrets::{Secrets, VaultRef};
use crate::{place, private};

/// The catalog's file in the state folder.
pub(crate) const CATALOG: &str = "hosting.db";
/// The default vault's folder in the state folder.
const VAULT: &str = "vault";
const LOCK: &str = ".lock";

/// What an [`Engine`] is made from.
pub struct Setup {
    /// The state folder; none for the default.
    pub state: Option<PathBuf>,
    /// Address of the vault for this command; none for the configured or recorded one.
    pub vault: Option<String>,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// The file system of the secrets and of local vaults.
    pub fs: Arc<dyn FileSystem>,
}

impl Default for Setup {
    fn default() -> Self {
        Setup { state: None, vault: None, clock: Arc::new(SystemClock), fs: Arc::new(Host) }
    }
}

/// The use cases over one state folder.
pub struct Engine {
    pub(crate) state: PathBuf,
    vault_for_now: Option<String>,
    pub(crate) config: Config,
    pub(crate) fs: Arc<dyn FileSystem>,
    pub(crate) clock: Arc<dyn Clock>,
    catalog: OnceLock<Arc<dyn Catalog>>,
}

/// An open vault and how it was reached.
pub(crate) struct OpenVault {
    pub vault: Vault,
    /// The vault's own id, by which the catalog keeps its points apart.
    pub id: String,
    /// Its address.
    pub address: String,
    /// Whether this command made it.
    pub new: bool,
}

impl OpenVault {
    /// The same vault, to be looked at once more.
    pub fn again(&self) -> Self {
        OpenVault {
            vault: self.vault.clone(),
            id: self.id.clone(),
            address: self.address.clone(),
            new: self.new,
        }
    }
}

/// The state folder for the present user: `/var/lib/backstay` for root, else `$XDG_DATA_HOME/backstay`.
pub fn default_state() -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/backstay"));
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let data = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
    data.map(|d| d.join("backstay")).ok_or_else(|| {
        Error::new(Code::Usage, "The state folder is not known: HOME is not set")
            .advise("Name the folder with --home DIR or BACKSTAY_HOME.")
    })
}

impl Engine {
    /// Over a state folder that may not exist yet. Reads the configuration, makes nothing.
    pub fn new(setup: Setup) -> Result<Self> {
        let state = match setup.state {
            Some(path) => std::path::absolute(&path)
                .map_err(|e| Error::new(Code::StateAccess, "The state folder is not known").because(e))?,
            None => default_state()?,
        };
        // Links are followed once, so that all names of the folder are the same state.
        let state = state.canonicalize().unwrap_or(state);
        let config = Config::load(&state)?;
        let vault_for_now = setup.vault.map(|address| place::absolute(&address, None)).transpose()?;
        Ok(Engine {
            state,
            vault_for_now,
            config,
            fs: setup.fs,
            clock: setup.clock,
            catalog: OnceLock::new(),
        })
    }

    /// The state folder.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The file with the secrets.
    #[must_use]
    pub fn secrets_file(&self) -> PathBuf {
        self.state.join(crate::secrets::FILE)
    }

    /// Whether this state has secrets; without them nothing was ever backed up from here.
    pub fn is_set_up(&self) -> Result<bool> {
        Ok(Secrets::load(&self.state)?.is_some())
    }

    /// Whether there is a catalog, in which apps may be known before anything was backed up.
    pub(crate) fn has_catalog(&self) -> bool {
        self.state.join(CATALOG).exists()
    }

    /// The catalog, which is made when it does not exist.
    pub(crate) fn catalog(&self) -> Result<&Arc<dyn Catalog>> {
        if let Some(catalog) = self.catalog.get() {
            return Ok(catalog);
        }
        private::make_folder(&*self.fs, &self.state)?;
        let opened: Arc<dyn Catalog> =
            Arc::new(Sqlite::open(&self.state.join(CATALOG), Arc::clone(&self.clock))?);
        opened.expire_jobs()?;
        Ok(self.catalog.get_or_init(|| opened))
    }

    /// The secrets, or what to do when there are none.
    pub(crate) fn secrets(&self) -> Result<Secrets> {
        Secrets::load(&self.state)?
            .ok_or_else(|| self.nothing_yet(Code::VaultNotFound, "There is no vault yet"))
    }

    /// An error that also says which state was looked at.
    pub(crate) fn nothing_yet(&self, code: Code, what: &str) -> Error {
        let state = self.state.display();
        Error::new(code, format!("{what}: the state {state} is empty")).advise(
            "`backstay backup PATH` makes the first point. On a new machine: `backstay kit open FILE` or `backstay vault \
             attach ADDRESS`. Another state: --home DIR.",
        )
    }

    /// The default vault's address.
    fn default_vault(&self) -> Result<String> {
        place::text(&self.state.join(VAULT))
    }

    /// The address of the vault for this command: the one named, the configured one, the recorded one, the default.
    pub(crate) fn vault_address(&self, secrets: Option<&Secrets>) -> Result<String> {
        match (&self.vault_for_now, secrets) {
            (Some(address), _) => Ok(address.clone()),
            (None, Some(secrets)) => self.usual_address(secrets),
            (None, None) => match &self.config.vault {
                Some(address) => place::absolute(address, Some(&self.state)),
                None => self.default_vault(),
            },
        }
    }

    /// The address named for this command only.
    pub(crate) fn vault_for_now(&self) -> Option<&str> {
        self.vault_for_now.as_deref()
    }

    /// The address that commands use which name none.
    pub(crate) fn usual_address(&self, secrets: &Secrets) -> Result<String> {
        if let Some(address) = &self.config.vault {
            return place::absolute(address, Some(&self.state));
        }
        match Some(secrets).and_then(|s| s.vault.as_ref()?.address.clone()) {
            Some(address) => Ok(address),
            None => self.default_vault(),
        }
    }

    /// Opens the vault, which must exist.
    pub(crate) fn vault(&self) -> Result<OpenVault> {
        let secrets = self.secrets()?;
        let address = self.vault_address(Some(&secrets))?;
        let opened = self.open_at(&address, &secrets.vault_password)?;
        self.check_identity(&secrets, &opened)?;
        if secrets.vault.is_none() {
            self.note_vault(secrets, &opened)?;
        }
        Ok(opened)
    }

    pub(crate) fn open_at(&self, address: &str, password: &Secret) -> Result<OpenVault> {
        let gone = |e: Error| {
            let message = format!("There is no vault in {address}");
            Error::new(Code::VaultNotFound, message).because(e).advise(
                "Check the place: is its disk mounted? `backstay vault init` makes a new vault; it is never done by itself \
                 where one was before.",
            )
        };
        let storage = place::open(&self.fs, address).map_err(|e| match e.code() {
            Code::StorageNotFound | Code::ObjectNotFound => gone(e),
            _ => e,
        })?;
        let vault = Vault::open(storage, password)?;
        Ok(OpenVault { id: vault.config().id.to_string(), vault, address: address.to_owned(), new: false })
    }

    /// A vault at the usual place must be the one that was there before; a place named on purpose may hold another.
    fn check_identity(&self, secrets: &Secrets, opened: &OpenVault) -> Result<()> {
        match &secrets.vault {
            Some(known) if known.id != opened.id && self.vault_for_now.is_none() => {
                let message =
                    format!("{} holds another vault than the one this state belongs to", opened.address);
                Err(Error::new(Code::Conflict, message).advise(
                    "If the vault was moved, name its place with --vault or in backstay.toml. Nothing was changed.",
                ))
            }
            _ => Ok(()),
        }
    }

    /// Notes in the secrets that the vault exists.
    pub(crate) fn note_vault(&self, mut secrets: Secrets, opened: &OpenVault) -> Result<()> {
        let address = (opened.address != self.default_vault()?).then(|| opened.address.clone());
        secrets.vault = Some(VaultRef { id: opened.id.clone(), address });
        secrets.update(&*self.fs, &self.state)
    }

    /// Opens the vault, after making secrets and vault where this is the first run.
    pub(crate) fn vault_or_new(&self) -> Result<OpenVault> {
        match Secrets::load(&self.state)? {
            Some(secrets) if secrets.vault.is_some() => self.vault(),
            _ => self.first_run(),
        }
    }

    fn first_run(&self) -> Result<OpenVault> {
        private::make_folder(&*self.fs, &self.state)?;
        let _lock = self.set_up_lock()?;
        let secrets = match Secrets::load(&self.state)? {
            // Another process was faster.
            Some(secrets) if secrets.vault.is_some() => {
                return self.vault();
            }
            Some(secrets) => secrets,
            None => {
                // A place with a vault of other secrets is refused before secrets of our own are written.
                self.refuse_foreign_vault()?;
                let secrets = Secrets::generate(None)?;
                secrets.create(&*self.fs, &self.state)?;
                secrets
            }
        };
        let opened = self.make_vault(&self.vault_address(Some(&secrets))?, &secrets.vault_password)?;
        self.note_vault(secrets, &opened)?;
        Ok(opened)
    }

    /// Makes a vault at a place, or opens the one that an interrupted first run made there.
    pub(crate) fn make_vault(&self, address: &str, password: &Secret) -> Result<OpenVault> {
        let storage = place::create(&self.fs, address)?;
        let new = !Vault::exists(&*storage)?;
        let vault = if new {
            refuse_occupied(&*storage, address)?;
            Vault::init(storage, password, Cost::RANDOM)?
        } else {
            Vault::open(storage, password).map_err(|e| match e.code() {
                Code::WrongPassword => foreign_vault(address).because(e),
                _ => e,
            })?
        };
        Ok(OpenVault { id: vault.config().id.to_string(), vault, address: address.to_owned(), new })
    }

    fn refuse_foreign_vault(&self) -> Result<()> {
        let address = self.vault_address(None)?;
        match place::open(&self.fs, &address) {
            Ok(storage) if Vault::exists(&*storage)? => Err(foreign_vault(&address)),
            Ok(_) => Ok(()),
            Err(e) if matches!(e.code(), Code::StorageNotFound | Code::ObjectNotFound) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Keeps other processes from setting up the same state; released when dropped or when the process dies.
    pub(crate) fn set_up_lock(&self) -> Result<File> {
        let path = self.state.join(LOCK);
        let failed = |e: std::io::Error| {
            Error::new(Code::StateAccess, format!("Cannot lock {}", path.display())).because(e)
        };
        let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        file.lock().map_err(failed)?;
        Ok(file)
    }

    /// Takes on secrets that belong to a vault that exists: from a kit, or made around its password. They must not
    /// replace others.
    pub(crate) fn adopt_vault(&self, mut secrets: Secrets, address: &str) -> Result<OpenVault> {
        let opened = self.open_at(address, &secrets.vault_password)?;
        private::make_folder(&*self.fs, &self.state)?;
        let _lock = self.set_up_lock()?;
        if let Some(present) = Secrets::load(&self.state)? {
            let same = present.vault.as_ref().is_some_and(|v| v.id == opened.id);
            if !same || present.vault_password != secrets.vault_password {
                let message = format!("The state {} has secrets of its own", self.state.display());
                return Err(Error::new(Code::AlreadyExists, message)
                    .advise("Use an empty state for the other vault: --home DIR. Nothing was changed."));
            }
            self.note_vault(present, &opened)?;
            return Ok(opened);
        }
        let address = (opened.address != self.default_vault()?).then(|| opened.address.clone());
        secrets.vault = Some(VaultRef { id: opened.id.clone(), address });
        secrets.create(&*self.fs, &self.state)?;
        Ok(opened)
    }

    /// Local folders that belong to Backstay itself: the state, and the vault where it is local.
    pub(crate) fn own_folders(&self, vault_address: &str) -> Vec<PathBuf> {
        let mut own = vec![self.state.clone()];
        own.extend(place::local(vault_address));
        own
    }
}

fn foreign_vault(address: &str) -> Error {
    Error::new(Code::Conflict, format!("{address} holds a vault with another password"))
        .advise("To use that vault here: `backstay vault attach ADDRESS` or `backstay kit open FILE`. For a new one name another place with --vault.")
}

/// A vault is only made in an empty place, so that nobody's files end up among its objects.
fn refuse_occupied(storage: &dyn Storage, address: &str) -> Result<()> {
    let mut foreign = None;
    storage.list("", &mut |object| {
        // What an interrupted first run leaves.
        if !object.name.starts_with("keys/") && foreign.is_none() {
            foreign = Some(object.name);
        }
        Ok(())
    })?;
    match foreign {
        None => Ok(()),
        Some(name) => Err(Error::new(Code::Conflict, format!("{address} is not empty (`{name}`)"))
            .advise("Name an empty or new folder for the vault with --vault.")),
    }
}
