//! What the tests of check, prune, repair and copy share.
#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backstay_model::{Cancel, Secret, Silent};
use backstay_storage::{Memory, Put, Storage};
use backstay_tree::fs::Host;
use backstay_tree::fs::Kind;
use backstay_vault::backup::{SnapshotDetails, TreeOptions};
use backstay_vault::check::{CheckOptions, CheckReport, check};
use backstay_vault::key::Cost;
use backstay_vault::prune::{Prune, PruneOptions, PruneOutcome, PrunePlan};
use backstay_vault::{Id, Reader, Strength, Vault};
use jiff::Timestamp;

pub const PASSWORD: &str = "a password";

pub fn password() -> Secret {
    Secret::new(PASSWORD)
}

/// A new vault in a storage, with cheap keys.
pub fn new_vault(storage: Arc<dyn Storage>) -> Vault {
    Vault::init(storage, &password(), Cost::RANDOM).unwrap()
}

pub fn open(storage: Arc<dyn Storage>) -> Vault {
    Vault::open(storage, &password()).unwrap()
}

/// Backs a folder up as `content`; the number of the backup makes times differ.
pub fn backup(vault: &Vault, home: &Path, number: i64) -> backstay_model::Result<Id> {
    let cancel = Cancel::new();
    let lock = vault.lock(Strength::Shared, Duration::from_secs(20), &cancel)?;
    let fs: Arc<dyn backstay_tree::fs::FileSystem> = Arc::new(Host);
    let mut writer = vault.begin(&lock, 3, &cancel)?;
    writer.save_tree("content", &fs, home, TreeOptions::default(), &Silent)?;
    let details = SnapshotDetails {
        time: Timestamp::from_second(1_700_000_000 + number * 3600).unwrap(),
        paths: vec![home.display().to_string()],
        tags: vec![format!("number={number}")],
        parent: None,
    };
    let id = writer.commit(&lock, details, &Silent)?.id;
    lock.release()?;
    Ok(id)
}

pub fn check_all(vault: &Vault) -> CheckReport {
    check(vault, CheckOptions { read_data: true }, &Silent, &Cancel::new()).unwrap()
}

/// Panics with what was found unless nothing was.
#[track_caller]
pub fn clean(vault: &Vault) -> CheckReport {
    let report = check_all(vault);
    assert!(report.is_clean(), "{:#?}", report.errors);
    report
}

/// Removes everything unused at once.
pub fn thorough() -> PruneOptions {
    PruneOptions { max_unused_percent: 0, wait: Duration::from_millis(200), ..PruneOptions::default() }
}

pub fn prune(vault: &Vault, options: PruneOptions) -> backstay_model::Result<(PrunePlan, PruneOutcome)> {
    let prune = Prune::plan(vault, options, &Silent, &Cancel::new())?;
    let plan = prune.value().clone();
    Ok((plan, prune.apply(&Silent, &Cancel::new())?))
}

/// Everything in a snapshot: paths with what they are, and the whole content of files.
pub type Everything = BTreeMap<PathBuf, String>;

/// Reads all of a snapshot, every byte. Nothing that cannot be read is passed over.
pub fn read(reader: &Reader, snapshot: &Id) -> backstay_model::Result<Everything> {
    let root = reader.vault().snapshot(snapshot)?.tree;
    let mut found = Everything::new();
    let mut pending = vec![(PathBuf::new(), root)];
    while let Some((path, tree)) = pending.pop() {
        for node in reader.tree(&tree)? {
            let path = path.join(&node.name);
            let mut what = format!("{:?} {:o} {:?} {:?}", node.kind, node.mode, node.mtime, node.link_target);
            if node.kind == Some(Kind::File) {
                let mut content = Vec::new();
                reader.cat(&node, &mut content)?;
                what += &format!(" {} {}", content.len(), Id::of(&content));
            }
            pending.extend(node.subtree.map(|t| (path.clone(), t)));
            found.insert(path, what);
        }
    }
    Ok(found)
}

/// Every snapshot's content, by the time of the snapshot.
pub fn read_all(vault: &Vault) -> backstay_model::Result<BTreeMap<Timestamp, Everything>> {
    let reader = vault.reader()?;
    vault.snapshots()?.into_iter().map(|(id, s)| Ok((s.time, read(&reader, &id)?))).collect()
}

/// An independent copy of all objects.
pub fn copy_of(storage: &dyn Storage) -> Memory {
    let copy = Memory::new();
    for name in names(storage) {
        copy.put(&name, &storage.get(&name).unwrap(), Put::Replace).unwrap();
    }
    copy
}

pub fn names(storage: &dyn Storage) -> Vec<String> {
    let mut names = Vec::new();
    storage
        .list("", &mut |o| {
            names.push(o.name);
            Ok(())
        })
        .unwrap();
    names.sort();
    names
}

/// Removes all locks, as if the processes that held them were gone. (A test that stops the world inside its own
/// process leaves locks of a process that lives.)
pub fn forget_locks(storage: &dyn Storage) {
    for name in names(storage).iter().filter(|n| n.starts_with("locks/")) {
        storage.delete(name).unwrap();
    }
}
