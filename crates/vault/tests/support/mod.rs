//! What the tests of the backup pipeline share: taking a backup in one call, a vault looked through to the last
//! byte, locks of processes that died.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "test helpers; not every test file uses all of them"
)]

pub mod hooked;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backstay_model::{Cancel, Counts, Problem, ProblemKind, Result, Secret, Silent};
use backstay_storage::{Local, Memory, Put, Storage};
use backstay_testing::Restic;
use backstay_tree::compare::{self, Difference};
use backstay_tree::filter::Filter;
use backstay_tree::fs::{FileSystem, Host, Kind};
use backstay_tree::{Exclusions, path};
use backstay_vault::backup::{DEFAULT_LEVEL, Filtered, SnapshotDetails, SparseFile, TreeOptions};
use backstay_vault::blob::BlobKind;
use backstay_vault::crypto::Cipher;
use backstay_vault::key::{Cost, KeyFile};
use backstay_vault::restore::{RestoreOptions, restore};
use backstay_vault::snapshot::Summary;
use backstay_vault::{Folder, Id, Node, Strength, Vault};

pub const PASSWORD: &str = "a password";

pub fn secret() -> Secret {
    Secret::new(PASSWORD)
}

/// A folder in memory where possible, for tests in which the disk would be most of the time.
pub fn quick_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| backstay_testing::temp_dir())
}

/// A new vault with a key that costs nothing.
pub fn new_vault(storage: Arc<dyn Storage>) -> Vault {
    Vault::init(storage, &secret(), Cost::RANDOM).unwrap()
}

pub fn memory_vault() -> (Memory, Vault) {
    let memory = Memory::new();
    let vault = new_vault(Arc::new(memory.clone()));
    (memory, vault)
}

/// Empty vaults with the same keys.
pub fn twins(count: usize) -> Vec<Vault> {
    let (first, vault) = memory_vault();
    let mut twins = vec![vault];
    for _ in 1..count {
        let twin = Memory::new();
        for name in names(&first, "") {
            twin.put(&name, &first.get(&name).unwrap(), Put::IfAbsent).unwrap();
        }
        twins.push(open(Arc::new(twin)));
    }
    twins
}

pub fn local_vault(path: &Path) -> Vault {
    new_vault(Arc::new(Local::create(path).unwrap()))
}

pub fn open(storage: Arc<dyn Storage>) -> Vault {
    Vault::open(storage, &secret()).unwrap()
}

/// What to compare a backup with.
#[derive(Clone, Copy, Debug)]
pub enum Parent {
    Newest,
    Nothing,
    This(Id),
}

/// A backup to be taken.
#[derive(Clone)]
pub struct Job<'a> {
    pub vault: &'a Vault,
    pub fs: Arc<dyn FileSystem>,
    pub home: &'a Path,
    pub parent: Parent,
    pub index: Option<PathBuf>,
    pub exclusions: Exclusions,
    pub filter: Option<Filter>,
    pub cancel: Cancel,
}

/// A backup that was taken.
#[derive(Clone, Debug)]
pub struct Done {
    pub id: Id,
    pub tree: Id,
    pub summary: Summary,
    pub counts: Counts,
    pub problems: Vec<Problem>,
    pub filtered: Option<Filtered>,
    pub sparse: Vec<SparseFile>,
}

impl Done {
    /// Problems as path and kind.
    pub fn told(&self) -> Vec<(&str, ProblemKind)> {
        self.problems.iter().map(|p| (p.path.as_str(), p.kind)).collect()
    }
}

impl<'a> Job<'a> {
    /// Of the real file system, compared with the newest snapshot by its trees.
    pub fn new(vault: &'a Vault, home: &'a Path) -> Self {
        Job {
            vault,
            fs: Arc::new(Host),
            home,
            parent: Parent::Newest,
            index: None,
            exclusions: Exclusions::new(),
            filter: None,
            cancel: Cancel::new(),
        }
    }

    pub fn on(mut self, fs: Arc<dyn FileSystem>) -> Self {
        self.fs = fs;
        self
    }

    pub fn index(mut self, path: &Path) -> Self {
        self.index = Some(path.to_owned());
        self
    }

    pub fn filter(mut self, rules: &[&str]) -> Self {
        self.filter = Some(Filter::from_lines(rules).unwrap());
        self
    }

    pub fn parent(mut self, parent: Parent) -> Self {
        self.parent = parent;
        self
    }

    pub fn run(&self) -> Result<Done> {
        let lock = self.vault.lock(Strength::Shared, Duration::ZERO, &self.cancel)?;
        let done = self.run_under(&lock, || ())?;
        lock.release()?;
        Ok(done)
    }

    /// The backup under a given lock, with something done between the last upload and the commit.
    pub fn run_under(&self, lock: &backstay_vault::Lock, before_commit: impl FnOnce()) -> Result<Done> {
        let parent = match self.parent {
            Parent::Newest => self.vault.snapshots()?.last().map(|(id, _)| *id),
            Parent::Nothing => None,
            Parent::This(id) => Some(id),
        };
        let mut writer = self.vault.begin(lock, DEFAULT_LEVEL, &self.cancel)?;
        let options = TreeOptions {
            exclusions: self.exclusions.clone(),
            filter: self.filter.clone(),
            parent,
            file_index: self.index.clone(),
            still: None,
        };
        let saved = writer.save_tree("content", &self.fs, self.home, options, &Silent)?;
        let details = SnapshotDetails {
            time: writer.started(),
            paths: vec![self.home.display().to_string()],
            tags: vec!["app=test".into()],
            parent,
        };
        before_commit();
        let committed = writer.commit(lock, details, &Silent)?;
        Ok(Done {
            id: committed.id,
            tree: saved.tree,
            summary: committed.snapshot.summary.unwrap(),
            counts: saved.counts,
            problems: saved.problems,
            filtered: saved.filtered,
            sparse: saved.sparse,
        })
    }
}

// --- looking through a vault

/// What was looked through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    pub snapshots: usize,
    pub trees: usize,
    pub blobs: usize,
    pub bytes: u64,
}

/// Reads every byte that any snapshot needs, each checked against its id, and makes sure that the index names no
/// pack that is missing. As ids are hashes of content, a snapshot whose id is there still holds what it held.
#[track_caller]
pub fn verify(vault: &Vault) -> Census {
    let packs = vault.objects(Folder::Data).unwrap();
    let reader = vault.reader().unwrap();
    for pack in reader.index().packs() {
        assert!(packs.contains_key(pack), "the index names the pack {pack}, which is missing");
    }
    let mut census = Census::default();
    let (mut trees, mut blobs) = (HashSet::new(), HashSet::new());
    for (_, snapshot) in vault.snapshots().unwrap() {
        census.snapshots += 1;
        let mut pending = vec![snapshot.tree];
        while let Some(id) = pending.pop() {
            if !trees.insert(id) {
                continue;
            }
            let nodes = reader.tree(&id).unwrap();
            assert!(nodes.windows(2).all(|w| w[0].name < w[1].name), "a tree is sorted");
            for node in nodes {
                pending.extend(node.subtree);
                let mut size = 0;
                for content in &node.content {
                    if blobs.insert(*content) {
                        let plain = reader.blob(BlobKind::Data, content).unwrap();
                        census.bytes += plain.len() as u64;
                    }
                    let place = reader.index().find(BlobKind::Data, content).unwrap();
                    size += place.plain_length();
                }
                if node.kind == Some(Kind::File) {
                    assert_eq!(node.size, size, "{}: its content is as long as it says", node.name.display());
                }
            }
        }
    }
    Census { trees: trees.len(), blobs: blobs.len(), ..census }
}

/// `restic check --read-data` of a vault in a folder.
#[track_caller]
pub fn restic_check(repository: &Path) {
    Restic::new(repository, PASSWORD).check_read_data().ok();
}

/// The same of a vault anywhere: its objects are copied to a folder first.
#[track_caller]
pub fn restic_check_copy(storage: &dyn Storage) {
    let dir = backstay_testing::temp_dir();
    export(storage, dir.path());
    restic_check(dir.path());
}

pub fn export(storage: &dyn Storage, folder: &Path) {
    for name in names(storage, "") {
        let path = folder.join(&name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, storage.get(&name).unwrap()).unwrap();
    }
    for wanted in ["data", "index", "keys", "locks", "snapshots"] {
        std::fs::create_dir_all(folder.join(wanted)).unwrap();
    }
}

/// The names of the objects in a folder of a storage, sorted.
pub fn names(storage: &dyn Storage, folder: &str) -> Vec<String> {
    let mut names = Vec::new();
    storage
        .list(folder, &mut |o| {
            names.push(o.name);
            Ok(())
        })
        .unwrap();
    names.sort();
    names
}

/// Turns the locks that are there into those of a process that has died: what a killed writer of this machine
/// leaves. (In these tests the killed writer lived in this process.)
pub fn bury_locks(storage: &Arc<dyn Storage>) -> usize {
    let vault = open(storage.clone());
    let mut count = 0;
    for (id, mut lock) in vault.locks().unwrap() {
        lock.process.process_start += 1;
        storage.delete(&Folder::Locks.object(&id)).unwrap();
        put_lock(&**storage, &serde_json::to_vec(&lock).unwrap());
        count += 1;
    }
    count
}

/// Puts a lock object with that JSON, as any program that knows the vault's key could.
pub fn put_lock(storage: &dyn Storage, json: &[u8]) -> Id {
    let key = storage.get(&names(storage, "keys")[0]).unwrap();
    let key: KeyFile = serde_json::from_slice(&key).unwrap();
    let master = key.open(&secret()).unwrap().expect("the key opens");
    let sealed = Cipher::new(&master).sealed(json).unwrap();
    let id = Id::of(&sealed);
    storage.put(&Folder::Locks.object(&id), &sealed, Put::IfAbsent).unwrap();
    id
}

// --- restoring and comparing

/// The node of the saved tree in a snapshot.
pub fn content_node(vault: &Vault, snapshot: &Id) -> Node {
    let root = vault.snapshot(snapshot).unwrap().tree;
    vault.reader().unwrap().find(&root, Path::new("content")).unwrap()
}

pub fn node_at(vault: &Vault, done: &Done, path: impl AsRef<Path>) -> Option<Node> {
    vault.reader().unwrap().find(&done.tree, path.as_ref()).ok()
}

/// A file's bytes in a snapshot.
#[track_caller]
pub fn saved(vault: &Vault, done: &Done, path: impl AsRef<Path>) -> Vec<u8> {
    let node = node_at(vault, done, path.as_ref()).expect("it is in the snapshot");
    let mut bytes = Vec::new();
    vault.reader().unwrap().cat(&node, &mut bytes).unwrap();
    bytes
}

/// Restores a backup into a new folder.
#[track_caller]
pub fn bring_out(vault: &Vault, done: &Done, target: &Path) {
    std::fs::create_dir(target).unwrap();
    let fs: Arc<dyn FileSystem> = Arc::new(Host);
    let sparse: HashMap<PathBuf, Vec<(u64, u64)>> =
        done.sparse.iter().map(|s| (path::unescape(&s.path).unwrap().into(), s.data.clone())).collect();
    let options = RestoreOptions { sparse, ..RestoreOptions::default() };
    let top = content_node(vault, &done.id);
    let reader = vault.reader().unwrap();
    let cancel = Cancel::new();
    let outcome = restore(&reader, &fs, &done.tree, Some(&top), target, &options, &Silent, &cancel).unwrap();
    assert!(outcome.is_complete(), "{:#?}", outcome.problems);
}

#[track_caller]
pub fn assert_same(a: &Path, b: &Path, options: &compare::Options, known: impl Fn(&Difference) -> bool) {
    let differences = compare::trees(a, b, options);
    let shown = |d: &Difference| d.to_string().chars().take(300).collect::<String>();
    let text: Vec<_> = differences.iter().filter(|d| !known(d)).take(20).map(shown).collect();
    assert!(text.is_empty(), "the trees differ:\n{}", text.join("\n"));
}

/// Where two trees differ first, for messages.
pub fn first_difference(a: (&Vault, Id), b: (&Vault, Id)) -> String {
    let (left, right) =
        (a.0.reader().unwrap().tree(&a.1).unwrap(), b.0.reader().unwrap().tree(&b.1).unwrap());
    for (x, y) in left.iter().zip(&right) {
        if x == y {
            continue;
        }
        return match (x.subtree, y.subtree) {
            (Some(s), Some(t)) if s != t => {
                format!("{}/{}", x.name.display(), first_difference((a.0, s), (b.0, t)))
            }
            _ => format!("{x:#?}\n{y:#?}"),
        };
    }
    format!("{} and {} entries", left.len(), right.len())
}

/// An example of this crate as a program. Cargo builds examples along with tests; where only one test was asked for it
/// is built here.
pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let target = test.ancestors().nth(2).unwrap();
    static BUILT: std::sync::Once = std::sync::Once::new();
    BUILT.call_once(|| {
        let status = std::process::Command::new(env!("CARGO"))
            .args(["build", "--quiet", "-p", "backstay-vault", "--examples", "--target-dir"])
            .arg(target.parent().unwrap())
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(status.success(), "the examples are built");
    });
    target.join("examples").join(name)
}
