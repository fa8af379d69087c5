//! Repositories that restic wrote, restored by us, must be the tree that restic saw.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::path::Path;
use std::sync::Arc;

use backstay_model::{Cancel, Secret, Silent};
use backstay_storage::Local;
use backstay_testing::fixtures::{self, Nasty};
use backstay_testing::{Restic, temp_dir};
use backstay_tree::compare::{self, Difference, Options, What};
use backstay_tree::fs::{FileSystem, Host};
use backstay_vault::restore::{RestoreOptions, RestoreOutcome, restore};
use backstay_vault::{Reader, Snapshot, Vault};

const PASSWORD: &str = "a password";

fn open(repository: &Path) -> (Reader, Snapshot) {
    let storage = Arc::new(Local::open(repository).unwrap());
    let vault = Vault::open(storage, &Secret::new(PASSWORD)).unwrap();
    let (_, snapshot) = vault.snapshots().unwrap().pop().unwrap();
    (vault.reader().unwrap(), snapshot)
}

fn bring_out(repository: &Path, target: &Path, options: &RestoreOptions) -> RestoreOutcome {
    let (reader, snapshot) = open(repository);
    let fs: Arc<dyn FileSystem> = Arc::new(Host);
    restore(&reader, &fs, &snapshot.tree, None, target, options, &Silent, &Cancel::new()).unwrap()
}

/// restic's nodes know neither holes nor the folder itself.
fn as_restic_saves() -> Options {
    Options { holes: false, root: false, ..Options::default() }
}

#[track_caller]
fn assert_same(a: &Path, b: &Path, options: &Options) {
    let differences = compare::trees(a, b, options);
    // What restic (older ones, or all) does not save: attributes of links, targets that are no text, names of FIFOs.
    let not_saved = [
        ("attributes/link", What::Xattrs),
        ("names/link", What::LinkTarget),
        ("nodes/fifo by a second name", What::HardLinks),
    ];
    let is_known =
        |d: &Difference| not_saved.iter().any(|(path, what)| d.path == Path::new(path) && d.what == *what);
    let differences: Vec<_> = differences.into_iter().filter(|d| !is_known(d)).collect();
    let text: Vec<_> = differences.iter().take(20).map(ToString::to_string).collect();
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), text.join("\n"));
}

#[test]
fn a_nasty_tree_from_every_version_of_restics_format() {
    for (version, options) in [
        (2, &["--compression", "auto"][..]),
        (2, &["--compression", "max"]),
        (2, &["--compression", "off"]),
        (1, &[]),
    ] {
        let dir = temp_dir();
        let (source, repository) = (dir.path().join("source"), dir.path().join("repository"));
        // The large one once; the others show that each way of storing blobs is read.
        let large = options.contains(&"auto");
        let tree = if large { Nasty { entries: 1000, ..Nasty::default() } } else { Nasty::quick() };
        fixtures::nasty(&source, &tree);
        let restic = Restic::new(&repository, PASSWORD);
        restic.init_version(version);
        restic.backup(&source, options);
        let target = dir.path().join("target");
        std::fs::create_dir(&target).unwrap();
        let outcome =
            bring_out(&repository, &target, &RestoreOptions { sync: large, ..RestoreOptions::default() });
        assert_eq!(outcome.problems, []);
        assert!(outcome.is_complete());
        assert_eq!(outcome.counts.files, outcome.counts.total_files);
        assert_eq!(outcome.counts.bytes, outcome.counts.total_bytes);
        assert_same(&source, &target, &as_restic_saves());
        backstay_testing::unlock(&source);
        backstay_testing::unlock(&target);
    }
}
