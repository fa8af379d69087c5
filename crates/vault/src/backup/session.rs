//! What all workers of a backup share: what the vault has already, the upload of packs, the index to be written.
//!
//! Invariants:
//! * A blob is stored once: the first worker that claims its id stores it. What is claimed is stored, or nothing is
//!   committed: a worker that ends early hands over what it has.
//! * An index object is put only after all packs it names are durable.
//! * A session that is dry ([`Session::dry`]) stores nothing: trees that the vault does not have are kept in memory.
//! * The first failure stops everybody and is the one that is told; nothing is committed after one.
//!
//! Memory: one pack a worker, one pack an uploading thread, one pack of trees. A worker waits for an uploader
//! to be free, so packs do not pile up when the storage is slow.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use backstay_model::{Cancel, Code, Error, Result};
use backstay_storage::Put;
use crossbeam_channel::{Receiver, Sender, bounded};
use hashbrown::HashSet as FastSet;
use parking_lot::Mutex;

use crate::blob::BlobKind;
use crate::chunker::Chunker;
use crate::compress::Compressor;
use crate::crypto::Nonces;
use crate::id::Id;
use crate::index::{BLOBS_PER_INDEX, BlobIndex, IndexFile, IndexedPack};
use crate::pack::{Absorbed, Pack, PackBuffer};
use crate::vault::{Folder, Vault, thread_failed};

const SHARDS: usize = 64;

/// Ids stored by this session.
struct Fresh(Vec<Mutex<FastSet<Id>>>);

impl Fresh {
    fn new() -> Self {
        Fresh((0..SHARDS * 2).map(|_| Mutex::new(FastSet::new())).collect())
    }

    fn shard(&self, kind: BlobKind, id: &Id) -> Option<&Mutex<FastSet<Id>>> {
        let first = id.0.first().map_or(0, |b| usize::from(*b) % SHARDS);
        self.0.get(first + if kind == BlobKind::Tree { SHARDS } else { 0 })
    }

    fn insert(&self, kind: BlobKind, id: &Id) -> bool {
        self.shard(kind, id).is_some_and(|s| s.lock().insert(*id))
    }

    fn contains(&self, kind: BlobKind, id: &Id) -> bool {
        self.shard(kind, id).is_some_and(|s| s.lock().contains(id))
    }
}

/// What was stored so far.
#[derive(Default)]
pub(crate) struct Added {
    pub data_blobs: AtomicU64,
    pub tree_blobs: AtomicU64,
    pub plain_bytes: AtomicU64,
    pub stored_bytes: AtomicU64,
}

pub(crate) struct Session {
    pub vault: Vault,
    pub cancel: Cancel,
    pub added: Added,
    pub chunker: Chunker,
    level: i32,
    index: BlobIndex,
    /// Packs that were there when the session began, of those the index names.
    packs: HashSet<Id>,
    fresh: Fresh,
    spare: Mutex<Vec<Vec<u8>>>,
    trees: Mutex<PackBuffer>,
    /// Packs that ended workers did not fill.
    unfilled: Mutex<Vec<PackBuffer>>,
    listed: Mutex<Vec<IndexedPack>>,
    stored_packs: Mutex<Vec<Id>>,
    failed: AtomicBool,
    failure: Mutex<Option<Error>>,
    /// Nothing is stored; new trees come here.
    dry: Option<Mutex<Vec<Vec<u8>>>>,
}

/// The threads that store packs. Two keep a disk busy while one waits for its sync. None outlives the backup:
/// dropping this waits for what is being stored, so nothing is written once the lock is given back.
pub(crate) struct Uploads {
    sender: Option<Sender<Pack>>,
    threads: Vec<JoinHandle<()>>,
}

impl Uploads {
    fn sender(&self) -> Result<&Sender<Pack>> {
        self.sender.as_ref().ok_or_else(|| Error::new(Code::Internal, "The backup has ended"))
    }

    fn end(&mut self) -> Result<()> {
        drop(self.sender.take());
        self.threads.drain(..).try_for_each(|thread| thread.join().map_err(|_panic| thread_failed()))
    }
}

impl Drop for Uploads {
    fn drop(&mut self) {
        // A failed thread has told its error to the session.
        self.end().unwrap_or_default();
    }
}

const UPLOADERS: usize = 2;

impl Session {
    /// Loads the index and looks which packs are really there: what lies in a pack that is gone is stored anew.
    pub fn begin(vault: &Vault, level: i32, cancel: &Cancel) -> Result<(Arc<Session>, Uploads)> {
        let present = vault.objects(Folder::Data)?;
        let (index, _) = vault.load_index(&|pack| present.contains_key(pack))?;
        let packs = index.packs().iter().copied().collect();
        let session = Arc::new(Session { level, packs, ..Self::new(vault, index, cancel) });
        let (sender, receiver) = bounded(0);
        let start = |_| {
            let (session, receiver) = (Arc::clone(&session), receiver.clone());
            std::thread::spawn(move || session.upload_all(&receiver))
        };
        let threads = (0..UPLOADERS).map(start).collect();
        Ok((session, Uploads { sender: Some(sender), threads }))
    }

    /// A session that looks and stores nothing.
    pub fn dry(vault: &Vault, index: BlobIndex, cancel: &Cancel) -> Arc<Session> {
        Arc::new(Session { dry: Some(Mutex::new(Vec::new())), ..Self::new(vault, index, cancel) })
    }

    fn new(vault: &Vault, index: BlobIndex, cancel: &Cancel) -> Self {
        Session {
            chunker: Chunker::new(vault.master(), crate::chunker::Sizes::FILES),
            vault: vault.clone(),
            cancel: cancel.clone(),
            added: Added::default(),
            level: 0,
            packs: HashSet::new(),
            index,
            fresh: Fresh::new(),
            spare: Mutex::new(Vec::new()),
            trees: Mutex::new(PackBuffer::new(BlobKind::Tree, Vec::new())),
            unfilled: Mutex::new(Vec::new()),
            listed: Mutex::new(Vec::new()),
            stored_packs: Mutex::new(Vec::new()),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
            dry: None,
        }
    }

    /// zstd's level.
    pub fn level(&self) -> i32 {
        self.level
    }

    pub fn is_dry(&self) -> bool {
        self.dry.is_some()
    }

    /// The index, and the trees that a dry session has kept.
    pub fn into_parts(self) -> (BlobIndex, Vec<Vec<u8>>) {
        (self.index, self.dry.map(Mutex::into_inner).unwrap_or_default())
    }

    /// Whether the vault has the blob or this session has stored it.
    pub fn has(&self, kind: BlobKind, id: &Id) -> bool {
        self.index.has(kind, id) || self.fresh.contains(kind, id)
    }

    /// The index as it was when the session began.
    pub fn index(&self) -> &BlobIndex {
        &self.index
    }

    fn claim(&self, kind: BlobKind, id: &Id) -> bool {
        !self.index.has(kind, id) && self.fresh.insert(kind, id)
    }

    /// Remembers the first failure and makes everybody stop.
    pub fn fail(&self, error: Error) {
        let mut failure = self.failure.lock();
        if failure.is_none() {
            *failure = Some(error);
        }
        self.failed.store(true, Ordering::SeqCst);
    }

    /// Whether somebody has failed or the work was cancelled.
    pub fn stopped(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.cancel.is_cancelled()
    }

    /// The failure, or the cancellation, as an error.
    pub fn check(&self) -> Result<()> {
        if self.failed.load(Ordering::Relaxed) {
            let failure = self.failure.lock().take();
            return Err(failure.unwrap_or_else(|| Error::new(Code::Internal, "The backup failed elsewhere")));
        }
        self.cancel.check()
    }

    /// An error that stops a worker when the session has stopped; the reason itself stays for [`Session::check`].
    pub fn go_on(&self) -> Result<()> {
        if self.stopped() { Err(Error::new(Code::Cancelled, "Stopped")) } else { Ok(()) }
    }

    fn buffer(&self) -> Vec<u8> {
        self.spare.lock().pop().unwrap_or_default()
    }

    fn submit(&self, sender: &Sender<Pack>, pack: PackBuffer, nonces: &mut Nonces) -> Result<()> {
        let closed = pack.close(self.vault.cipher(), nonces)?;
        sender.send(closed).map_err(|_ended| Error::new(Code::Cancelled, "Stopped"))
    }

    fn upload_all(&self, receiver: &Receiver<Pack>) {
        for pack in receiver {
            if self.stopped() {
                continue;
            }
            if let Err(e) = self.upload(pack) {
                self.fail(e);
            }
        }
    }

    fn upload(&self, pack: Pack) -> Result<()> {
        self.vault.storage().put(&Folder::Data.object(&pack.id), pack.content(), Put::IfAbsent)?;
        self.added.stored_bytes.fetch_add(u64::try_from(pack.length).unwrap_or(0), Ordering::Relaxed);
        self.stored_packs.lock().push(pack.id);
        let blobs = pack.blobs.iter().map(Into::into).collect();
        let full = {
            let mut listed = self.listed.lock();
            listed.push(IndexedPack { id: pack.id, blobs });
            let count: usize = listed.iter().map(|p| p.blobs.len()).sum();
            // A long first backup that is killed finds what it stored so far when it runs again.
            if count >= BLOBS_PER_INDEX || listed.len() >= 64 {
                std::mem::take(&mut *listed)
            } else {
                Vec::new()
            }
        };
        self.spare.lock().push(pack.bytes);
        self.write_index(full)
    }

    fn write_index(&self, packs: Vec<IndexedPack>) -> Result<()> {
        if packs.is_empty() {
            return Ok(());
        }
        let file = IndexFile { supersedes: Vec::new(), packs };
        let json = crate::vault::to_json(&file)?;
        self.added.stored_bytes.fetch_add(u64::try_from(json.len()).unwrap_or(0) / 3, Ordering::Relaxed);
        self.vault.put_object(Folder::Index, &json).map(|_id| ())
    }

    /// Stores what is left in buffers and the index; everything that this session stored is then in the vault.
    pub fn finish(&self, mut uploads: Uploads) -> Result<()> {
        let flushed = uploads.sender().and_then(|sender| self.flush(sender));
        uploads.end()?;
        self.check()?;
        flushed?;
        self.write_index(std::mem::take(&mut *self.listed.lock()))
    }

    fn flush(&self, sender: &Sender<Pack>) -> Result<()> {
        let mut nonces = Nonces::default();
        let mut merged: Vec<PackBuffer> = Vec::new();
        for pack in std::mem::take(&mut *self.unfilled.lock()) {
            let kept = match merged.last_mut() {
                Some(last) => last.absorb(pack)?,
                None => Absorbed::TooLarge(pack),
            };
            if let Absorbed::TooLarge(pack) = kept {
                merged.push(pack);
            }
        }
        merged.push(std::mem::replace(&mut *self.trees.lock(), PackBuffer::new(BlobKind::Tree, Vec::new())));
        merged.into_iter().filter(|p| !p.is_empty()).try_for_each(|p| self.submit(sender, p, &mut nonces))
    }

    /// Makes sure that every pack which was relied upon is still there.
    pub fn check_packs(&self) -> Result<()> {
        let present = self.vault.objects(Folder::Data)?;
        let stored = self.stored_packs.lock();
        match self.packs.iter().chain(stored.iter()).find(|id| !present.contains_key(*id)) {
            None => Ok(()),
            Some(gone) => {
                let message = format!("The pack {} was removed while this backup ran", gone.short());
                Err(Error::new(Code::LeaseLost, message))
            }
        }
    }
}

/// One thread's own tools: nothing in here is shared.
pub(crate) struct Worker {
    pub session: Arc<Session>,
    /// None of a dry session.
    sender: Option<Sender<Pack>>,
    compressor: Option<Compressor>,
    nonces: Nonces,
    data: PackBuffer,
    sealing: Vec<u8>,
    /// For reading files.
    pub buffer: Vec<u8>,
    /// For building trees.
    pub json: Vec<u8>,
}

impl Worker {
    pub fn new(session: &Arc<Session>, uploads: Option<&Uploads>, level: i32) -> Result<Self> {
        let compresses = session.vault.compresses() && !session.is_dry();
        let compressor = compresses.then(|| Compressor::new(level)).transpose()?;
        Ok(Worker {
            session: Arc::clone(session),
            sender: uploads.map(Uploads::sender).transpose()?.cloned(),
            compressor,
            nonces: Nonces::default(),
            data: PackBuffer::new(BlobKind::Data, Vec::new()),
            sealing: Vec::new(),
            buffer: Vec::new(),
            json: Vec::new(),
        })
    }

    /// Stores a piece of content unless the vault has it.
    pub fn store_data(&mut self, data: &[u8]) -> Result<Id> {
        let id = self.data.id_of(data);
        if self.session.is_dry() {
            return Ok(id);
        }
        if !self.session.claim(BlobKind::Data, &id) {
            return Ok(id);
        }
        self.data.push(id, data, self.compressor.as_mut(), self.session.vault.cipher(), &mut self.nonces)?;
        self.session.added.data_blobs.fetch_add(1, Ordering::Relaxed);
        self.note_plain(data.len());
        if self.data.is_full() {
            let full = std::mem::replace(&mut self.data, PackBuffer::new(BlobKind::Data, Vec::new()));
            self.submit(full)?;
            // Only now: a buffer that was free before would lie idle while this thread waited.
            self.data = PackBuffer::new(BlobKind::Data, self.session.buffer());
        }
        Ok(id)
    }

    /// Stores a tree unless the vault has it. It is sealed here and only its copying is done under the shared lock.
    pub fn store_tree(&mut self, json: &[u8]) -> Result<Id> {
        let id = Id::of(json);
        if !self.session.claim(BlobKind::Tree, &id) {
            return Ok(id);
        }
        if let Some(kept) = &self.session.dry {
            kept.lock().push(json.to_vec());
            return Ok(id);
        }
        let mut own = PackBuffer::new(BlobKind::Tree, std::mem::take(&mut self.sealing));
        own.push(id, json, self.compressor.as_mut(), self.session.vault.cipher(), &mut self.nonces)?;
        self.session.added.tree_blobs.fetch_add(1, Ordering::Relaxed);
        self.note_plain(json.len());
        let full = {
            let mut trees = self.session.trees.lock();
            match trees.absorb(own)? {
                Absorbed::TooLarge(large) => Some(large),
                Absorbed::Whole(spare) => {
                    self.sealing = spare;
                    trees.is_full().then(|| {
                        let empty = PackBuffer::new(BlobKind::Tree, self.session.buffer());
                        std::mem::replace(&mut *trees, empty)
                    })
                }
            }
        };
        if let Some(pack) = full {
            self.submit(pack)?;
        }
        Ok(id)
    }

    fn submit(&mut self, pack: PackBuffer) -> Result<()> {
        let ended = || Error::new(Code::Internal, "The backup has ended");
        self.session.submit(self.sender.as_ref().ok_or_else(ended)?, pack, &mut self.nonces)
    }

    fn note_plain(&self, bytes: usize) {
        self.session.added.plain_bytes.fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
    }
}

impl Drop for Worker {
    /// Hands over what is not a full pack yet. Always: others rely on what this worker has claimed, even when it ends
    /// early because a file or a stream could not be read to its end.
    fn drop(&mut self) {
        let data = std::mem::replace(&mut self.data, PackBuffer::new(BlobKind::Data, Vec::new()));
        if !data.is_empty() {
            self.session.unfilled.lock().push(data);
        }
    }
}
