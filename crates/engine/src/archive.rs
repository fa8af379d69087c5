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

use backstay_archive::{Bytes, LocalFile, Name, StoredObject};
use backstay_model::{Code, Error, Result};
use backstay_storage::Storage;
use backstay_tree::path::escape;

use crate::custom::CustomView;
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
    /// A custom backup that is known, as an archive.
    pub fn archive_of(&self, custom: &CustomView) -> Result<ArchiveSource> {
        Ok(ArchiveSource::Stored {
            container: self.open_at_address(&custom.custom.container)?.storage,
            name: Name::parse(&custom.custom.name)?,
        })
    }

    /// A folder as a container, which is made when it does not exist.
    pub fn folder_container(&self, folder: &Path) -> Result<Arc<dyn Storage>> {
        let folder = std::path::absolute(folder).map_err(|e| {
            Error::new(Code::InvalidValue, format!("`{}` is not a folder", folder.display())).because(e)
        })?;
        Ok(Arc::new(backstay_storage::Local::create_on(Arc::clone(&self.fs), folder)?))
    }
}
