//! Archives and the vault: a point goes out as `.zip` and `.xml`, an archive comes in as a point.
//!
//! - [`import`]: an archive is looked at as a whole, then saved in the vault. A restore of an archive is the restore of
//!   that point, so there is one way over an app and not two (`docs/adr/0006-archives-through-the-vault.md`).
//! - [`export`]: the trees of a point as the source of an archive.
//!
//! Locks: an import holds the vault's shared lock while it writes; an export none.

mod export;
mod import;
mod listing;
mod tree_source;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_archive::{Bytes, LocalFile, Name, SigningKey, StoredObject, Trust};
use backstay_model::{Code, Error, Result, Secret};
use backstay_storage::Storage;
use backstay_tree::path::escape;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::place;
use crate::secrets::{Secrets, random};
use crate::state::Engine;

pub use self::export::{ExportReport, ExportRequest, SealBy};
pub use self::import::{ImportReport, ImportRequest};

/// Largest manifest that is read, in bytes.
const MANIFEST_MAX: u64 = 1 << 30;

/// Where an archive is.
#[derive(Clone, Debug)]
pub enum ArchiveSource {
    /// A zip on this machine; its manifest lies beside it, with the ending `.xml`.
    File(PathBuf),
    /// A backup in a container.
    Stored {
        /// The container.
        container: Arc<dyn Storage>,
        /// The backup's name in it.
        name: Name,
    },
}

/// An archive that can be read.
struct Opened {
    zip: Arc<dyn Bytes>,
    xml: Option<Vec<u8>>,
    /// Of the zip, without folders.
    name: String,
}

impl ArchiveSource {
    fn open(&self) -> Result<Opened> {
        match self {
            ArchiveSource::File(path) => {
                let zip: Arc<dyn Bytes> = Arc::new(LocalFile::open(path)?);
                let name = escape(path.file_name().unwrap_or(path.as_os_str()));
                Ok(Opened { zip, xml: read_beside(&path.with_extension("xml"))?, name })
            }
            ArchiveSource::Stored { container, name } => {
                let none = |e: Error| match e.code() {
                    Code::ObjectNotFound => {
                        let message =
                            format!("There is no backup {} in {}", name.as_str(), container.location());
                        Error::new(Code::SourceNotFound, message).because(e).advise("Check the name.")
                    }
                    _ => e,
                };
                let zip: Arc<dyn Bytes> =
                    Arc::new(StoredObject::open(Arc::clone(container), name.zip()).map_err(none)?);
                let xml = match container.size(&name.xml()) {
                    Ok(size) => {
                        check_manifest_size(size)?;
                        Some(container.get(&name.xml())?)
                    }
                    Err(e) if e.code() == Code::ObjectNotFound => None,
                    Err(e) => return Err(e),
                };
                Ok(Opened { zip, xml, name: name.zip() })
            }
        }
    }
}

/// The manifest beside a zip; none where there is none.
fn read_beside(path: &Path) -> Result<Option<Vec<u8>>> {
    let failed = |e: std::io::Error| {
        Error::new(Code::SourceNotFound, format!("Cannot read {}", escape(path.as_os_str()))).because(e)
    };
    match path.metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed(e)),
        Ok(meta) => {
            check_manifest_size(meta.len())?;
            std::fs::read(path).map(Some).map_err(failed)
        }
    }
}

fn check_manifest_size(size: u64) -> Result<()> {
    if size <= MANIFEST_MAX {
        return Ok(());
    }
    Err(Error::new(Code::LimitExceeded, format!("A manifest has at most {MANIFEST_MAX} bytes")))
}

impl Engine {
    /// The container at an address: a folder, or a place in an object store.
    pub fn open_container(&self, address: &str) -> Result<Arc<dyn Storage>> {
        place::open(&self.fs, &place::absolute(address, None)?)
    }

    /// A folder as a container, which is made when it does not exist.
    pub fn folder_container(&self, folder: &Path) -> Result<Arc<dyn Storage>> {
        let folder = std::path::absolute(folder).map_err(|e| {
            Error::new(Code::InvalidValue, format!("`{}` is not a folder", folder.display())).because(e)
        })?;
        Ok(Arc::new(backstay_storage::Local::create_on(Arc::clone(&self.fs), folder)?))
    }

    /// The key that signs this server's archives; made when there is none yet.
    pub(crate) fn signing_key(&self) -> Result<SigningKey> {
        let mut secrets = self.secrets()?;
        if secrets.signing_key.is_none() {
            let _lock = self.set_up_lock()?;
            secrets = self.secrets()?;
            if secrets.signing_key.is_none() {
                secrets.signing_key = Some(Secret::new(STANDARD.encode(random::<32>()?)));
                secrets.update(&*self.fs, &self.state)?;
            }
        }
        let key = secrets.signing_key.as_ref().map(key_of);
        key.unwrap_or_else(|| Err(Error::new(Code::Internal, "The signing key was not kept")))
    }

    /// Whose signatures are believed: this server's.
    fn trust(&self) -> Result<Trust> {
        let secrets = Secrets::load(&self.state)?;
        let key = secrets.and_then(|s| s.signing_key).as_ref().map(key_of).transpose()?;
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
