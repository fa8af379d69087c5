//! Loading the index: all of it, or all that can be read.
//!
//! Invariants: an index object that is deleted while the index is loaded makes the loading start again, because its
//! successor may not have been listed; so what is given back is a state that was true at some moment. Takes no lock.

use backstay_model::{Code, Error, Result};
use parking_lot::Mutex;

use crate::id::Id;
use crate::index::{BlobIndex, IndexFile};
use crate::vault::{Folder, Vault};
use crate::walk::parallel_on;

/// The index as far as it can be read.
#[derive(Default)]
pub struct Loaded {
    /// All blobs of the readable index objects.
    pub index: BlobIndex,
    /// The readable index objects.
    pub files: Vec<LoadedFile>,
    /// Those that cannot be read, with the reason.
    pub damaged: Vec<(Id, Error)>,
}

/// An index object that was read.
#[derive(Clone, Debug)]
pub struct LoadedFile {
    /// Its name.
    pub id: Id,
    /// The packs it lists.
    pub packs: Vec<Id>,
    /// How many blobs it lists.
    pub blobs: usize,
}

/// So often the loading starts again before it gives up.
const ATTEMPTS: usize = 5;

/// Whether an error is about the one object that was read, not about the storage or the format as a whole.
pub(crate) fn is_of_the_object(e: &Error) -> bool {
    matches!(e.code(), Code::VaultDamaged | Code::LimitExceeded | Code::StorageFailed)
}

impl Vault {
    /// Reads all index objects, several at a time; those that are damaged are told. Blobs in packs for which `keep`
    /// says no are left out.
    pub fn load_index_and_damage(&self, keep: &(dyn Fn(&Id) -> bool + Sync)) -> Result<Loaded> {
        for _ in 0..ATTEMPTS {
            if let Some(loaded) = self.try_load(keep)? {
                return Ok(loaded);
            }
        }
        Err(Error::new(Code::StorageUnavailable, "The index was rewritten again and again while it was read"))
    }

    /// `None` when an index object vanished meanwhile.
    fn try_load(&self, keep: &(dyn Fn(&Id) -> bool + Sync)) -> Result<Option<Loaded>> {
        let ids = self.ids(Folder::Index)?;
        let damaged = Mutex::new(Vec::new());
        let vanished = std::sync::atomic::AtomicBool::new(false);
        let parts = parallel_on(
            self.at_once(),
            &ids,
            || Ok(Loaded::default()),
            |part, id| {
                match self.get_json::<IndexFile>(Folder::Index, id) {
                    Ok(file) => {
                        part.index.add(&file.packs, keep);
                        part.files.push(LoadedFile {
                            id: *id,
                            packs: file.packs.iter().map(|p| p.id).collect(),
                            blobs: file.packs.iter().map(|p| p.blobs.len()).sum(),
                        });
                    }
                    Err(e) if e.code() == Code::ObjectNotFound => {
                        vanished.store(true, std::sync::atomic::Ordering::Relaxed);
                    }
                    Err(e) if is_of_the_object(&e) => damaged.lock().push((*id, e)),
                    Err(e) => return Err(e),
                }
                Ok(())
            },
        )?;
        if vanished.into_inner() {
            return Ok(None);
        }
        let mut all = Loaded { damaged: damaged.into_inner(), ..Loaded::default() };
        for part in parts {
            all.index.merge(part.index);
            all.files.extend(part.files);
        }
        all.index.sort();
        Ok(Some(all))
    }
}
