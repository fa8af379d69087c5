//! Writes whatever it is told into a vault.

use std::path::Path;
use std::sync::Arc;

use backstay_model::{PointId, Secret};
use backstay_storage::{Local, Put, Storage};
use backstay_vault::blob::BlobKind;
use backstay_vault::crypto::Cipher;
use backstay_vault::index::{IndexFile, IndexedBlob, IndexedPack};
use backstay_vault::{Folder, Id, Node, Snapshot, Vault};
use serde_json::{Value, json};

use crate::world::World;

/// The name of a point's manifest.
pub(crate) const MANIFEST: &str = "backstay.json";

pub(crate) struct Forge {
    storage: Arc<dyn Storage>,
    cipher: Cipher,
    packs: Vec<IndexedPack>,
    /// A sound point of the app, to be changed.
    snapshot: Snapshot,
    manifest: Node,
    /// Its manifest's text.
    pub text: Value,
    content: Node,
    number: u64,
}

impl Forge {
    pub fn of(world: &World) -> Forge {
        let secrets: Value =
            serde_json::from_slice(&std::fs::read(world.state("secrets.json")).unwrap()).unwrap();
        let password = Secret::new(secrets["vault_password"].as_str().unwrap().to_owned());
        let storage: Arc<dyn Storage> = Arc::new(Local::open(world.state("vault")).unwrap());
        let vault = Vault::open(storage.clone(), &password).unwrap();
        let master = vault.keys().unwrap().into_iter().find_map(|(_, key, _)| key.open(&password).unwrap());
        let snapshot = vault.snapshots().unwrap().pop().unwrap().1;
        let reader = vault.reader().unwrap();
        let find = |name: &str| reader.find(&snapshot.tree, Path::new(name)).unwrap();
        let (manifest, content) = (find(MANIFEST), find("content"));
        let mut text = Vec::new();
        reader.cat(&manifest, &mut text).unwrap();
        let text = serde_json::from_slice(&text).unwrap();
        let cipher = Cipher::new(&master.unwrap());
        Forge { storage, cipher, packs: Vec::new(), snapshot, manifest, text, content, number: 0 }
    }

    fn put(&self, folder: Folder, sealed: &[u8]) -> Id {
        let id = Id::of(sealed);
        self.storage.put(&folder.object(&id), sealed, Put::Replace).unwrap();
        id
    }

    /// A pack with one blob, listed as told.
    pub fn blob(&mut self, kind: BlobKind, text: &[u8], change: impl FnOnce(&mut IndexedBlob)) -> Id {
        let sealed = self.cipher.sealed(text).unwrap();
        self.pack(kind, Id::of(text), &sealed, change)
    }

    pub fn pack(
        &mut self,
        kind: BlobKind,
        id: Id,
        sealed: &[u8],
        change: impl FnOnce(&mut IndexedBlob),
    ) -> Id {
        let pack = self.put(Folder::Data, sealed);
        let length = u32::try_from(sealed.len()).unwrap();
        let mut blob = IndexedBlob { id, kind, offset: 0, length, uncompressed_length: None };
        change(&mut blob);
        let id = blob.id;
        self.packs.push(IndexedPack { id: pack, blobs: vec![blob] });
        id
    }

    /// A blob in a pack that is listed and not there.
    pub fn gone(&mut self, kind: BlobKind, text: &[u8]) -> Id {
        let id = self.blob(kind, text, |_| {});
        let pack = self.packs.last().unwrap().id;
        self.storage.delete(&Folder::Data.object(&pack)).unwrap();
        id
    }

    /// A compressed blob that claims to hold `claim` bytes.
    pub fn compressed(&mut self, kind: BlobKind, id: Id, frame: &[u8], claim: u32) -> Id {
        let sealed = self.cipher.sealed(frame).unwrap();
        self.pack(kind, id, &sealed, |b| b.uncompressed_length = Some(claim))
    }

    pub fn data(&mut self, text: &[u8]) -> Id {
        self.blob(BlobKind::Data, text, |_| {})
    }

    pub fn raw_tree(&mut self, text: &str) -> Id {
        self.blob(BlobKind::Tree, text.as_bytes(), |_| {})
    }

    pub fn tree(&mut self, nodes: &[Value]) -> Id {
        self.raw_tree(&json!({ "nodes": nodes }).to_string())
    }

    pub fn file(&mut self, name: &str, text: &[u8]) -> Value {
        let id = self.data(text);
        file(name, &[id], text.len() as u64)
    }

    /// A folder with one file.
    pub fn folder(&mut self, name: &str, file: &str) -> Value {
        let below = self.file(file, b"overwritten");
        let below = self.tree(&[below]);
        folder(name, below)
    }

    /// The node of the sound point's manifest.
    pub fn manifest(&self) -> Value {
        node(&self.manifest)
    }

    /// A manifest with that text.
    pub fn manifest_of(&mut self, text: &[u8]) -> Value {
        self.file(MANIFEST, text)
    }

    /// The node of the home, with another tree.
    pub fn content(&self, tree: &Id) -> Value {
        node(&Node { subtree: Some(*tree), ..self.content.clone() })
    }

    /// A point of a tree of content; gives its id.
    pub fn point(&mut self, tree: &Id) -> String {
        let nodes = [self.manifest(), self.content(tree)];
        let root = self.tree(&nodes);
        self.snapshot(&root, |_| {})
    }

    /// A point with another root.
    pub fn snapshot(&mut self, root: &Id, change: impl FnOnce(&mut Value)) -> String {
        self.number += 1;
        let point: PointId = format!("{:032x}", 0xbad0_0000_u64 + self.number).parse().unwrap();
        let mut snapshot = self.snapshot.clone();
        snapshot.tree = *root;
        snapshot.tags.retain(|tag| !tag.starts_with("point="));
        snapshot.tags.push(format!("point={point}"));
        let mut snapshot = serde_json::to_value(&snapshot).unwrap();
        change(&mut snapshot);
        let index = IndexFile { supersedes: Vec::new(), packs: std::mem::take(&mut self.packs) };
        for (folder, text) in [
            (Folder::Index, serde_json::to_vec(&index).unwrap()),
            (Folder::Snapshots, serde_json::to_vec(&snapshot).unwrap()),
        ] {
            self.put(folder, &self.cipher.sealed(&text).unwrap());
        }
        point.to_string()
    }
}

fn node(node: &Node) -> Value {
    let mut text = Vec::new();
    node.write_json(&mut text);
    serde_json::from_slice(&text).unwrap()
}

pub(crate) fn file(name: &str, content: &[Id], size: u64) -> Value {
    json!({ "name": name, "type": "file", "mode": 0o640, "size": size, "content": content,
            "uid": uid(), "gid": gid(), "mtime": "2020-01-02T03:04:05.123456789Z" })
}

pub(crate) fn folder(name: &str, subtree: Id) -> Value {
    json!({ "name": name, "type": "dir", "mode": 0x8000_01ed_u32, "subtree": subtree, "uid": uid(), "gid": gid() })
}

pub(crate) fn symlink(name: &str, target: &str) -> Value {
    json!({ "name": name, "type": "symlink", "mode": 0o777, "linktarget": target, "uid": uid(), "gid": gid() })
}

pub(crate) fn with(mut node: Value, field: &str, value: impl Into<Value>) -> Value {
    node[field] = value.into();
    node
}

pub(crate) fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

pub(crate) fn gid() -> u32 {
    rustix::process::getegid().as_raw()
}
