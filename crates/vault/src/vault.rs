//! A vault: objects in a storage, opened with a password.
//!
//! Invariants: objects other than `config` and keys are named by the SHA-256 of their bytes, put if absent and
//! never changed. What is read is authenticated before it is used. Opening changes nothing.
//!
//! Order of things that are written, and who may see what: packs, then the index objects that name them, then
//! the snapshot. A crash leaves packs or index entries that nothing needs; `prune` removes them.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use backstay_model::{Code, Error, Result, Secret};
use backstay_storage::{Object, Put, Storage};
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ahead::Ahead;
use crate::blob::{BlobKind, Place};
use crate::compress::{Decompressor, decompress};
use crate::config::Config;
use crate::crypto::{Cipher, MAC, MasterKey, NONCE};
use crate::id::Id;
use crate::index::BlobIndex;
use crate::key::{Cost, KeyFile};
use crate::process::Process;
use crate::snapshot::Snapshot;
use crate::walk::parallel_on;

/// The folders of a vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folder {
    /// Packs.
    Data,
    /// Index objects.
    Index,
    /// Key files.
    Keys,
    /// Locks.
    Locks,
    /// Snapshots.
    Snapshots,
}

impl Folder {
    fn name(self) -> &'static str {
        match self {
            Folder::Data => "data",
            Folder::Index => "index",
            Folder::Keys => "keys",
            Folder::Locks => "locks",
            Folder::Snapshots => "snapshots",
        }
    }

    /// The name of an object in the storage.
    #[must_use]
    pub fn object(self, id: &Id) -> String {
        let hex = id.hex();
        match self {
            Folder::Data => format!("data/{}/{}", hex.as_str().get(..2).unwrap_or_default(), hex.as_str()),
            _ => format!("{}/{}", self.name(), hex.as_str()),
        }
    }
}

const CONFIG: &str = "config";
/// Most plain bytes of an index, snapshot or lock object.
const OBJECT_MAX: u64 = 512 << 20;
/// So many answers of a distant storage are waited for at the same time.
const DISTANT_AT_ONCE: usize = 8;
/// Most key files that are tried.
const KEYS_MAX: usize = 64;

struct Inner {
    storage: Arc<dyn Storage>,
    ahead: Ahead,
    config: Config,
    key_id: Id,
    master: MasterKey,
    cipher: Cipher,
}

/// An open vault. Cheap to clone; all clones are the same vault.
#[derive(Clone)]
pub struct Vault(Arc<Inner>);

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Vault({})", self.location())
    }
}

/// The name of the user this process runs as, from the environment; empty when unknown.
pub(crate) fn username() -> String {
    std::env::var("USER").or_else(|_unset| std::env::var("LOGNAME")).unwrap_or_default()
}

fn hash_mismatch(name: &str) -> Error {
    Error::new(Code::VaultDamaged, format!("The object {name} was altered: its bytes do not match its name"))
}

impl Vault {
    /// Whether there is a vault in the storage.
    pub fn exists(storage: &dyn Storage) -> Result<bool> {
        match storage.size(CONFIG) {
            Ok(_) => Ok(true),
            Err(e) if e.code() == Code::ObjectNotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Makes a new vault with one key. A crash before the last step leaves no vault, and running it again
    /// completes it. `AlreadyExists` when there is one.
    pub fn init(storage: Arc<dyn Storage>, password: &Secret, cost: Cost) -> Result<Vault> {
        Self::init_with(storage, Config::generate()?, MasterKey::generate()?, (password, cost))
    }

    fn init_with(
        storage: Arc<dyn Storage>,
        config: Config,
        master: MasterKey,
        (password, cost): (&Secret, Cost),
    ) -> Result<Vault> {
        if Self::exists(&*storage)? {
            let message = format!("There is a vault already in {}", storage.location());
            return Err(Error::new(Code::AlreadyExists, message));
        }
        // A key without config is what an interrupted init left: it opens nothing and goes.
        let mut leftover = Vec::new();
        storage.list(Folder::Keys.name(), &mut |o| {
            leftover.push(o.name);
            Ok(())
        })?;
        for name in leftover {
            storage.delete(&name)?;
        }
        let key_id = put_key(&*storage, &master, password, cost)?;
        let cipher = Cipher::new(&master);
        let json = to_json(&config)?;
        storage.put(CONFIG, &cipher.sealed(&json)?, Put::IfAbsent)?;
        Ok(Vault(Arc::new(Inner { storage, ahead: Ahead::default(), config, key_id, master, cipher })))
    }

    /// Makes a new, empty vault elsewhere under the same master key: it has an identity of its own and cuts files in
    /// the same places, so that what is copied from it to this one is new to this one only where it is. Crashes as
    /// [`Vault::init`] does.
    pub fn init_twin(&self, storage: Arc<dyn Storage>, password: &Secret, cost: Cost) -> Result<Vault> {
        let polynomial = self.config().chunker_polynomial.clone();
        let config =
            Config { version: self.config().version, chunker_polynomial: polynomial, ..Config::generate()? };
        Self::init_with(storage, config, self.master().clone(), (password, cost))
    }

    /// Opens a vault. `VaultNotFound`, `WrongPassword`, `VaultUnsupported`, `VaultDamaged` say why not.
    pub fn open(storage: Arc<dyn Storage>, password: &Secret) -> Result<Vault> {
        if !Self::exists(&*storage)? {
            let message = format!("There is no vault in {}", storage.location());
            return Err(Error::new(Code::VaultNotFound, message));
        }
        let (key_id, master) = find_key(&*storage, password)?;
        let cipher = Cipher::new(&master);
        let mut sealed = storage.get(CONFIG)?;
        let json = cipher.open(&mut sealed).ok_or_else(|| hash_mismatch(CONFIG))?;
        let config: Config = serde_json::from_slice(json).map_err(|e| {
            Error::new(Code::VaultDamaged, "The vault's config cannot be understood").because(e)
        })?;
        config.check()?;
        Ok(Vault(Arc::new(Inner { storage, ahead: Ahead::default(), config, key_id, master, cipher })))
    }

    /// The place in words.
    #[must_use]
    pub fn location(&self) -> String {
        self.0.storage.location()
    }

    /// Its `config`.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// The storage below.
    #[must_use]
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.0.storage
    }

    pub(crate) fn cipher(&self) -> &Cipher {
        &self.0.cipher
    }

    pub(crate) fn master(&self) -> &MasterKey {
        &self.0.master
    }

    /// Whether blobs and objects may be compressed (format version 2).
    #[must_use]
    pub fn compresses(&self) -> bool {
        self.0.config.version >= 2
    }

    // --- objects

    /// The ids in a folder, sorted; foreign names are passed over.
    pub fn ids(&self, folder: Folder) -> Result<Vec<Id>> {
        Ok(self.objects(folder)?.into_keys().collect::<std::collections::BTreeSet<_>>().into_iter().collect())
    }

    /// The ids in a folder with their sizes in bytes.
    pub fn objects(&self, folder: Folder) -> Result<HashMap<Id, u64>> {
        let mut found = HashMap::new();
        self.0.storage.list(folder.name(), &mut |Object { name, size }| {
            let last = name.rsplit('/').next().unwrap_or_default();
            if let Some(id) = Id::from_hex(last.as_bytes())
                && folder.object(&id) == name
            {
                found.insert(id, size);
            }
            Ok(())
        })?;
        Ok(found)
    }

    pub(crate) fn object_size(&self, folder: Folder, id: &Id) -> Result<u64> {
        self.0.storage.size(&folder.object(id))
    }

    /// Deletes an object.
    pub(crate) fn remove(&self, folder: Folder, id: &Id) -> Result<()> {
        self.0.storage.delete(&folder.object(id))
    }

    /// Deletes an object that may have gone meanwhile.
    pub(crate) fn remove_if_there(&self, folder: Folder, id: &Id) -> Result<()> {
        match self.remove(folder, id) {
            Err(e) if e.code() == Code::ObjectNotFound => Ok(()),
            other => other,
        }
    }

    /// Deletes an object that nothing refers to any more and that may have gone meanwhile. It may come back after a
    /// power loss.
    pub(crate) fn discard_if_there(&self, folder: Folder, id: &Id) -> Result<()> {
        match self.0.storage.discard(&folder.object(id)) {
            Err(e) if e.code() == Code::ObjectNotFound => Ok(()),
            other => other,
        }
    }

    /// The plain bytes of an index, snapshot or lock object.
    pub(crate) fn get_object(&self, folder: Folder, id: &Id) -> Result<Vec<u8>> {
        let name = folder.object(id);
        let mut sealed = self.0.storage.get(&name)?;
        if Id::of(&sealed) != *id {
            return Err(hash_mismatch(&name));
        }
        let plain = self.0.cipher.open(&mut sealed).ok_or_else(|| hash_mismatch(&name))?;
        match plain.split_first() {
            Some((b'{' | b'[', _)) => Ok(plain.to_vec()),
            Some((2, frame)) => {
                let mut out = Vec::new();
                decompress(frame, OBJECT_MAX, &mut out).map_err(|e| e.context(name))?;
                Ok(out)
            }
            _ => {
                let message = format!("The object {name} is written in a way this program does not know");
                Err(Error::new(Code::VaultUnsupported, message))
            }
        }
    }

    /// Stores an index, snapshot or lock object; gives its id.
    pub(crate) fn put_object(&self, folder: Folder, plain: &[u8]) -> Result<Id> {
        let (id, sealed) = self.seal_object(plain)?;
        self.0.storage.put(&folder.object(&id), &sealed, Put::IfAbsent)?;
        Ok(id)
    }

    /// An object as it is stored, and the id it will have.
    pub(crate) fn seal_object(&self, plain: &[u8]) -> Result<(Id, Vec<u8>)> {
        let sealed = if self.compresses() {
            let mut framed = vec![2u8];
            let packed = zstd::bulk::compress(plain, 3)
                .map_err(|e| Error::new(Code::System, "Cannot compress").because(e))?;
            framed.extend_from_slice(&packed);
            self.0.cipher.sealed(&framed)?
        } else {
            self.0.cipher.sealed(plain)?
        };
        Ok((Id::of(&sealed), sealed))
    }

    pub(crate) fn get_json<T: DeserializeOwned>(&self, folder: Folder, id: &Id) -> Result<T> {
        let plain = self.get_object(folder, id)?;
        serde_json::from_slice(&plain).map_err(|e| {
            let message = format!("The object {} cannot be understood", folder.object(id));
            Error::new(Code::VaultDamaged, message).because(e)
        })
    }

    pub(crate) fn put_json<T: Serialize>(&self, folder: Folder, value: &T) -> Result<Id> {
        self.put_object(folder, &to_json(value)?)
    }

    /// Reads the config once more and makes sure that it is still the one the vault was opened with.
    pub(crate) fn reread_config(&self) -> Result<()> {
        let mut sealed = self.0.storage.get(CONFIG)?;
        let json = self.0.cipher.open(&mut sealed).ok_or_else(|| hash_mismatch(CONFIG))?;
        let same = serde_json::from_slice::<Config>(json).is_ok_and(|config| config == self.0.config);
        if same { Ok(()) } else { Err(hash_mismatch(CONFIG)) }
    }

    /// One key file.
    pub(crate) fn read_key_file(&self, id: &Id) -> Result<KeyFile> {
        read_key(&*self.0.storage, id)
    }

    // --- snapshots

    /// All snapshots, oldest first. One that cannot be read is an error; see [`Vault::snapshots_and_damage`].
    pub fn snapshots(&self) -> Result<Vec<(Id, Snapshot)>> {
        let (found, mut damaged) = self.snapshots_and_damage()?;
        match damaged.pop() {
            Some((_, error)) => Err(error),
            None => Ok(found),
        }
    }

    /// The readable snapshots, oldest first, and those that cannot be read with the reason.
    #[allow(clippy::type_complexity)]
    pub fn snapshots_and_damage(&self) -> Result<(Vec<(Id, Snapshot)>, Vec<(Id, Error)>)> {
        let ids = self.ids(Folder::Snapshots)?;
        let threads = if self.0.storage.is_distant() { self.at_once() } else { 1 };
        let parts = parallel_on(
            threads,
            &ids,
            || Ok((Vec::new(), Vec::new())),
            |(found, damaged), id| {
                match self.snapshot(id) {
                    Ok(snapshot) => found.push((*id, snapshot)),
                    // Deleted between listing and reading.
                    Err(e) if e.code() == Code::ObjectNotFound => {}
                    Err(e) if e.code() == Code::VaultDamaged => damaged.push((*id, e)),
                    Err(e) => return Err(e),
                }
                Ok(())
            },
        )?;
        let (mut found, mut damaged) = (Vec::new(), Vec::new());
        for (mut good, mut bad) in parts {
            found.append(&mut good);
            damaged.append(&mut bad);
        }
        damaged.sort_by_key(|(id, _)| *id);
        found.sort_by_key(|(id, s)| (s.time, *id));
        Ok((found, damaged))
    }

    /// One snapshot.
    pub fn snapshot(&self, id: &Id) -> Result<Snapshot> {
        Snapshot::parse(&self.get_object(Folder::Snapshots, id)?)
            .map_err(|e| e.context(Folder::Snapshots.object(id)))
    }

    /// Deletes snapshots. Their data stays until the next prune. The caller holds a lock.
    pub fn forget(&self, ids: &[Id]) -> Result<()> {
        ids.iter().try_for_each(|id| self.remove_if_there(Folder::Snapshots, id))
    }

    /// Gives a snapshot other tags: writes a new object, then deletes the old one. Gives the new id.
    /// The caller holds a lock.
    pub fn retag(&self, id: &Id, tags: Vec<String>) -> Result<Id> {
        let old = self.snapshot(id)?;
        if old.tags == tags {
            return Ok(*id);
        }
        let new = Snapshot { tags, original: Some(old.original.unwrap_or(*id)), ..old };
        let new_id = self.put_json(Folder::Snapshots, &new)?;
        self.remove_if_there(Folder::Snapshots, id)?;
        Ok(new_id)
    }

    // --- index

    /// Reads all index objects, several at a time. Blobs in packs for which `keep` says no are left out.
    /// Gives the index and the ids of the index objects it was read from.
    pub fn load_index(&self, keep: &(dyn Fn(&Id) -> bool + Sync)) -> Result<(BlobIndex, Vec<Id>)> {
        let mut loaded = self.load_index_and_damage(keep)?;
        match loaded.damaged.pop() {
            Some((_, error)) => Err(error),
            None => Ok((loaded.index, loaded.files.into_iter().map(|f| f.id).collect())),
        }
    }

    // --- blobs

    /// Reads one blob from its place and makes sure it is the one asked for.
    pub fn read_blob(&self, kind: BlobKind, id: &Id, place: &Place) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        self.read_blob_into(kind, id, place, &mut Decompressor::new()?, &mut out)?;
        Ok(out)
    }

    /// The same with buffers of the caller.
    pub(crate) fn read_blob_into(
        &self,
        kind: BlobKind,
        id: &Id,
        place: &Place,
        decompressor: &mut Decompressor,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let storage = &*self.0.storage;
        if storage.is_distant()
            && let Some(mut sealed) = self.0.ahead.range(storage, place)
            && self.open_blob(kind, id, place.uncompressed, &mut sealed, decompressor, out).is_ok()
        {
            return Ok(());
        }
        let length = usize::try_from(place.length).unwrap_or(usize::MAX);
        let mut sealed =
            storage.get_range(&Folder::Data.object(&place.pack), u64::from(place.offset), length)?;
        self.open_blob(kind, id, place.uncompressed, &mut sealed, decompressor, out)
    }

    /// How many answers of the storage are waited for at the same time.
    pub(crate) fn at_once(&self) -> usize {
        if self.0.storage.is_distant() { crate::workers().max(DISTANT_AT_ONCE) } else { crate::workers() }
    }

    /// Opens a sealed blob in place and leaves its plain content in `out`. `VaultDamaged` when it is not what its
    /// id says.
    pub fn open_blob(
        &self,
        kind: BlobKind,
        id: &Id,
        uncompressed: Option<u32>,
        sealed: &mut [u8],
        decompressor: &mut Decompressor,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let stored_plain = uncompressed.is_none();
        let plain = self.unseal(kind, id, uncompressed, sealed, decompressor, out)?;
        if Id::of(plain) != *id {
            return Err(altered(id));
        }
        if stored_plain {
            let plain = sealed.get(NONCE..sealed.len().saturating_sub(MAC)).unwrap_or_default();
            out.clear();
            out.extend_from_slice(plain);
        }
        Ok(())
    }

    /// Opens a sealed blob in place without comparing it with its id: the caller must. The plain content lies in
    /// `out`, or in `sealed` where it was not compressed.
    pub(crate) fn unseal<'a>(
        &self,
        kind: BlobKind,
        id: &Id,
        uncompressed: Option<u32>,
        sealed: &'a mut [u8],
        decompressor: &mut Decompressor,
        out: &'a mut Vec<u8>,
    ) -> Result<&'a [u8]> {
        let plain = self.0.cipher.open(sealed).ok_or_else(|| altered(id))?;
        match uncompressed {
            Some(size) if u64::from(size) > kind.limit() => {
                let message = format!("The blob {} claims to hold {size} bytes", id.short());
                Err(Error::new(Code::LimitExceeded, message))
            }
            Some(size) => {
                let size = usize::try_from(size).map_err(|_large| altered(id))?;
                decompressor
                    .decompress(plain, size, out)
                    .map_err(|e| e.context(format!("Blob {}", id.short())))?;
                Ok(out)
            }
            None => Ok(plain),
        }
    }

    // --- keys

    /// The keys, with the one in use marked.
    pub fn keys(&self) -> Result<Vec<(Id, KeyFile, bool)>> {
        let mut keys = Vec::new();
        for id in self.ids(Folder::Keys)? {
            keys.push((id, read_key(&*self.0.storage, &id)?, id == self.0.key_id));
        }
        keys.sort_by_key(|(_, key, _)| key.created);
        Ok(keys)
    }

    /// Adds a password for the same master key. (Real rotation is [`Vault::copy_to`] into a new vault.)
    pub fn add_key(&self, password: &Secret, cost: Cost) -> Result<Id> {
        put_key(&*self.0.storage, &self.0.master, password, cost)
    }

    /// Removes a key. The one this vault was opened with, and so the last one, is refused.
    pub fn remove_key(&self, id: &Id) -> Result<()> {
        if *id == self.0.key_id {
            return Err(Error::new(Code::LastKey, "This key is the one in use")
                .advise("Open the vault with another key to remove this one."));
        }
        self.remove(Folder::Keys, id)
    }
}

pub(crate) fn altered(id: &Id) -> Error {
    Error::new(Code::VaultDamaged, format!("The blob {} was altered", id.short()))
}

pub(crate) fn thread_failed() -> Error {
    Error::new(Code::Internal, "A worker thread failed")
}

pub(crate) fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| Error::new(Code::Internal, "Cannot write JSON").because(e))
}

fn put_key(storage: &dyn Storage, master: &MasterKey, password: &Secret, cost: Cost) -> Result<Id> {
    let who = (username(), Process::current().hostname);
    let json = to_json(&KeyFile::seal(master, password, cost, Timestamp::now(), who)?)?;
    let id = Id::of(&json);
    storage.put(&Folder::Keys.object(&id), &json, Put::IfAbsent)?;
    Ok(id)
}

fn read_key(storage: &dyn Storage, id: &Id) -> Result<KeyFile> {
    let name = Folder::Keys.object(id);
    let json = storage.get(&name)?;
    if Id::of(&json) != *id {
        return Err(hash_mismatch(&name));
    }
    serde_json::from_slice(&json).map_err(|e| {
        Error::new(Code::VaultDamaged, format!("The object {name} cannot be understood")).because(e)
    })
}

/// Tries the password on every key. A damaged or absurd key does not keep the others from opening.
fn find_key(storage: &dyn Storage, password: &Secret) -> Result<(Id, MasterKey)> {
    let mut ids = Vec::new();
    storage.list(Folder::Keys.name(), &mut |Object { name, .. }| {
        ids.extend(name.strip_prefix("keys/").and_then(|hex| Id::from_hex(hex.as_bytes())));
        Ok(())
    })?;
    ids.sort_unstable();
    let mut worst = None;
    for id in ids.into_iter().take(KEYS_MAX) {
        match read_key(storage, &id).and_then(|key| key.open(password)) {
            Ok(Some(master)) => return Ok((id, master)),
            Ok(None) => {}
            Err(e) => worst = Some(e),
        }
    }
    let message = format!("The password opens no key of the vault in {}", storage.location());
    Err(worst.unwrap_or_else(|| Error::new(Code::WrongPassword, message)))
}
