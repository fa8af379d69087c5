//! The file index is a cache: whatever happens to it, or to the vault behind it, the result is that of a full read.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "test helpers"
)]

mod support;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backstay_model::{Cancel, Silent};
use backstay_storage::{Faulty as FaultyStorage, Memory, Op, Storage};
use backstay_testing::fixtures::{self, Random};
use backstay_testing::{Restic, temp_dir};
use backstay_tree::fs::{Call, Faulty, Host};
use backstay_vault::check::{CheckOptions, check};
use backstay_vault::{Folder, Strength, Vault};
use support::hooked::{aged, aged_host};
use support::{Job, PASSWORD, Parent, local_vault, memory_vault, names, new_vault, verify};

/// Files opened for reading in a backup.
fn files_opened(fs: &Faulty) -> usize {
    fs.log().iter().filter(|c| c.call == Call::OpenFile).count()
}

struct Case {
    _dir: tempfile::TempDir,
    home: PathBuf,
    index: PathBuf,
    vault: Vault,
}

impl Case {
    /// A tree that was backed up with an index and then changed a little.
    fn new() -> Self {
        let dir = temp_dir();
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        let files = fixtures::small(&home, 11, 60);
        let (_, vault) = memory_vault();
        let index = dir.path().join("index");
        Job::new(&vault, &home).on(aged_host()).index(&index).run().unwrap();
        fixtures::change(&home, 1, &files);
        Job::new(&vault, &home).on(aged_host()).index(&index).run().unwrap();
        fs::write(home.join("app/new"), b"new").unwrap();
        Case { _dir: dir, home, index, vault }
    }

    #[track_caller]
    fn same_as_full(&self, what: &str) {
        let by_index = Job::new(&self.vault, &self.home).on(aged_host()).index(&self.index).run().unwrap();
        let full = Job::new(&self.vault, &self.home).on(aged_host()).parent(Parent::Nothing).run().unwrap();
        assert_eq!(by_index.tree, full.tree, "{what}");
        assert_eq!(by_index.told(), full.told(), "{what}");
    }
}

#[test]
fn a_damaged_index_makes_no_wrong_backup() {
    let case = Case::new();
    let good = fs::read(&case.index).unwrap();
    let mut random = Random::new(4);
    let mut tried = 0;
    // Flips change only reads of damaged parts; each backup repairs or replaces the index, so it is put back.
    for round in 0..60 {
        let mut bad = good.clone();
        let what = match round % 3 {
            0 => {
                bad.truncate(random.below(good.len() as u64) as usize);
                format!("cut at {}", bad.len())
            }
            1 => {
                let at = random.below(good.len() as u64) as usize;
                bad[at] ^= 1 << random.below(8);
                format!("byte {at}")
            }
            _ => {
                let at = random.below(good.len() as u64) as usize;
                let end = (at + 1 + random.below(3000) as usize).min(good.len());
                bad[at..end].copy_from_slice(&random.bytes(end - at));
                format!("noise in {at}..{end}")
            }
        };
        fs::write(&case.index, &bad).unwrap();
        case.same_as_full(&what);
        tried += 1;
    }
    for (what, bytes) in
        [("empty", Vec::new()), ("noise", random.bytes(100_000)), ("a text", b"hello".to_vec())]
    {
        fs::write(&case.index, bytes).unwrap();
        case.same_as_full(what);
        tried += 1;
    }
    println!("{tried} damaged indexes");
    let census = verify(&case.vault);
    println!("{census:?}");
}

#[test]
fn an_index_that_cannot_be_used_is_no_obstacle() {
    let case = Case::new();
    fs::remove_file(&case.index).unwrap();
    fs::create_dir(&case.index).unwrap();
    case.same_as_full("a folder");
    fs::remove_dir(&case.index).unwrap();
    std::os::unix::fs::symlink("/nowhere/at/all", &case.index).unwrap();
    case.same_as_full("a dangling link");
    fs::remove_file(&case.index).unwrap();
    std::os::unix::fs::symlink("/dev/full", &case.index).unwrap();
    case.same_as_full("a full disk");
}

#[test]
fn an_index_of_another_vault_or_of_an_older_snapshot_is_not_believed() {
    let case = Case::new();
    // The same home in another vault, by the same index file.
    let (_, other) = memory_vault();
    let log = Arc::new(Faulty::new(Arc::new(Host)));
    let done = Job::new(&other, &case.home).on(aged(log.clone())).index(&case.index).run().unwrap();
    assert_eq!(files_opened(&log) as u64, done.counts.files, "all is read for a vault that has nothing");
    verify(&other);
    case.same_as_full("the other vault's index");

    // Newer snapshots were made without the index.
    let old = fs::read(&case.index).unwrap();
    fs::write(case.home.join("app/new"), b"newer").unwrap();
    Job::new(&case.vault, &case.home).on(aged_host()).run().unwrap();
    fs::write(case.home.join("app/new"), b"newest").unwrap();
    fs::write(&case.index, old).unwrap();
    case.same_as_full("older than the newest snapshot");
}

#[test]
fn two_backups_at_once_with_one_index_are_both_right() {
    let case = Case::new();
    let other = temp_dir();
    fixtures::small(other.path(), 5, 200);
    for round in 0..5 {
        fs::write(case.home.join("app/new"), format!("{round}")).unwrap();
        std::thread::scope(|scope| {
            let run = |home| Job::new(&case.vault, home).on(aged_host()).index(&case.index).run().unwrap();
            let threads: Vec<_> = [&*case.home, &*case.home, other.path()]
                .map(|home| scope.spawn(move || (home, run(home))))
                .into_iter()
                .collect();
            let done: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
            for (home, done) in done {
                let full = Job::new(&case.vault, home).on(aged_host()).parent(Parent::Nothing).run().unwrap();
                assert_eq!(done.tree, full.tree, "round {round}");
            }
        });
    }
    case.same_as_full("after");
    verify(&case.vault);
}

#[test]
fn the_index_does_not_grow_for_ever() {
    let dir = temp_dir();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    for i in 0..1500 {
        let folder = home.join(format!("stable/{}", i % 10));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("file {i}")), b"").unwrap();
    }
    let (_, vault) = memory_vault();
    let index = dir.path().join("index");
    let job = Job::new(&vault, &home).on(aged_host()).index(&index);
    job.run().unwrap();
    let first = fs::metadata(&index).unwrap().len();
    let (mut largest, mut shrunk, mut before) = (0, 0, first);
    let mut random = Random::new(8);
    for hour in 0..200 {
        // What sessions, caches and releases do: folders of new names come, old ones go.
        let folder = home.join(format!("cache-{hour}"));
        fs::create_dir(&folder).unwrap();
        for i in 0..60 {
            fs::write(folder.join(format!("entry {i} {}", "x".repeat(100))), b"").unwrap();
        }
        if hour >= 2 {
            fs::remove_dir_all(home.join(format!("cache-{}", hour - 2))).unwrap();
        }
        fs::write(home.join(format!("stable/{}/edited", hour % 10)), random.text(30)).unwrap();
        let done = job.run().unwrap();
        let size = fs::metadata(&index).unwrap().len();
        shrunk += u32::from(size < before);
        before = size;
        largest = largest.max(size);
        // Now and then: right, and everything known by the index is taken over (no file of the stable part is read).
        if hour % 25 == 24 {
            let full = Job::new(&vault, &home).on(aged_host()).parent(Parent::Nothing).run().unwrap();
            assert_eq!(done.tree, full.tree);
            // That one is the newest now, with the same tree: the index still fits it.
            let log = Arc::new(Faulty::new(Arc::new(Host)));
            Job::new(&vault, &home).on(aged(log.clone())).index(&index).run().unwrap();
            assert_eq!(files_opened(&log), 0, "hour {hour}");
        }
    }
    println!("index: first {first}, largest {largest}, compacted {shrunk} times");
    assert!(shrunk >= 1, "200 hours compact it at least once");
    assert!(largest < 3 * first + (2 << 20), "first {first}, largest {largest}");
}

// --- healing

#[track_caller]
fn is_clean(vault: &Vault) {
    let options = CheckOptions { read_data: true };
    let report = check(vault, options, &Silent, &Cancel::new()).unwrap();
    assert!(report.is_clean(), "{:#?}", report.errors);
}

#[test]
fn what_a_lost_pack_held_is_stored_anew_while_the_source_has_it() {
    for with_index in [true, false] {
        let dir = temp_dir();
        let (home, place) = (dir.path().join("home"), dir.path().join("vault"));
        fs::create_dir(&home).unwrap();
        fixtures::small(&home, 21, 100);
        let vault = local_vault(&place);
        let index = dir.path().join("index");
        let job = Job::new(&vault, &home).on(aged_host());
        let job = if with_index { job.index(&index) } else { job };
        let first = job.run().unwrap();
        let packs = vault.objects(Folder::Data).unwrap();
        assert!(packs.len() >= 2, "trees and data apart");
        for (round, pack) in packs.keys().enumerate() {
            fs::remove_file(place.join(Folder::Data.object(pack))).unwrap();
            let healed = job.run().unwrap();
            assert_eq!(healed.tree, first.tree, "round {round}");
            assert!(healed.summary.data_added > 0);
            // The old index objects still name the lost pack; that is for `repair` (or `restic rebuild-index`) to mend.
            let reader = vault.reader().unwrap();
            let mut pending = vec![vault.snapshot(&healed.id).unwrap().tree];
            while let Some(tree) = pending.pop() {
                for node in reader.tree(&tree).unwrap() {
                    pending.extend(node.subtree);
                    for id in &node.content {
                        reader.blob(backstay_vault::blob::BlobKind::Data, id).unwrap();
                    }
                }
            }
        }
        let restic = Restic::new(&place, PASSWORD);
        restic.run(["rebuild-index"]).ok();
        restic.check_read_data().ok();
        is_clean(&vault);
        // Nothing is stored twice once all is there.
        assert_eq!(job.run().unwrap().summary.data_added, 0);
    }
}

#[test]
fn a_lost_tree_of_an_unchanged_folder_is_stored_anew() {
    for with_index in [true, false] {
        let dir = temp_dir();
        let home = dir.path().join("home");
        for folder in ["changing", "stable/below"] {
            fs::create_dir_all(home.join(folder)).unwrap();
            fs::write(home.join(folder).join("file"), folder).unwrap();
        }
        let (memory, vault) = memory_vault();
        let index = dir.path().join("index");
        let job = Job::new(&vault, &home).on(aged_host());
        let job = if with_index { job.index(&index) } else { job };
        let first = job.run().unwrap();
        fs::write(home.join("changing/file"), b"changed").unwrap();
        job.run().unwrap();
        // The trees above what changed are in a newer pack; that of the unchanged folder goes.
        let tree = support::node_at(&vault, &first, "stable/below").unwrap().subtree.unwrap();
        let reader = vault.reader().unwrap();
        let place = reader.index().find(backstay_vault::blob::BlobKind::Tree, &tree).unwrap();
        memory.delete(&Folder::Data.object(&place.pack)).unwrap();
        let healed = job.run().unwrap();
        let full = Job::new(&vault, &home).on(aged_host()).parent(Parent::Nothing).run().unwrap();
        assert_eq!(healed.tree, full.tree);
        assert_eq!(full.summary.tree_blobs, 0, "the one before had stored all that was lost");
        assert_eq!(support::saved(&vault, &healed, "stable/below/file"), b"stable/below");
    }
}

#[test]
fn a_parent_that_is_gone_or_cannot_be_read_is_no_parent() {
    let case = Case::new();
    let newest = vault_newest(&case.vault);
    let full = Job::new(&case.vault, &case.home).on(aged_host()).parent(Parent::Nothing).run().unwrap();
    case.vault.forget(&[newest]).unwrap();
    let job =
        Job::new(&case.vault, &case.home).on(aged_host()).index(&case.index).parent(Parent::This(newest));
    assert_eq!(job.run().unwrap().tree, full.tree);
    verify(&case.vault);

    // Unreadable: the snapshot object is noise, or its trees are.
    let dir = temp_dir();
    let (home, place) = (dir.path().join("home"), dir.path().join("vault"));
    fs::create_dir(&home).unwrap();
    fixtures::small(&home, 22, 50);
    let vault = local_vault(&place);
    let first = Job::new(&vault, &home).on(aged_host()).run().unwrap();
    let snapshot = place.join(Folder::Snapshots.object(&first.id));
    let file = fs::File::options().write(true).open(&snapshot).unwrap();
    file.write_all_at(b"noise", 20).unwrap();
    let job = Job::new(&vault, &home).on(aged_host()).parent(Parent::This(first.id));
    assert_eq!(job.run().unwrap().tree, first.tree);
    fs::remove_file(&snapshot).unwrap();
    is_clean(&vault);
}

fn vault_newest(vault: &Vault) -> backstay_vault::Id {
    vault.snapshots().unwrap().last().unwrap().0
}

#[test]
fn a_tree_of_the_parent_that_is_damaged_makes_its_folder_be_read() {
    let dir = temp_dir();
    let (home, place) = (dir.path().join("home"), dir.path().join("vault"));
    fs::create_dir(&home).unwrap();
    fixtures::small(&home, 23, 50);
    let vault = local_vault(&place);
    let first = Job::new(&vault, &home).on(aged_host()).run().unwrap();
    // Noise in every pack of trees, with the packs still there.
    let index = vault.reader().unwrap();
    let trees: std::collections::HashSet<_> =
        index.index().blobs(backstay_vault::blob::BlobKind::Tree).map(|(_, place)| place.pack).collect();
    for pack in trees {
        let path = place.join(Folder::Data.object(&pack));
        let file = fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(&[0; 64], 20).unwrap();
    }
    let log = Arc::new(Faulty::new(Arc::new(Host)));
    let again = Job::new(&vault, &home).on(aged(log.clone())).run().unwrap();
    assert_eq!(again.tree, first.tree);
    assert!(files_opened(&log) > 0, "what cannot be known is read");
}

// --- what a cancelled or failed backup leaves

#[test]
fn a_backup_that_failed_leaves_the_index_of_the_one_before() {
    let dir = temp_dir();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    let files = fixtures::small(&home, 31, 80);
    let storage = Arc::new(FaultyStorage::new(Arc::new(Memory::new())));
    let vault = new_vault(storage.clone());
    let index = dir.path().join("index");
    let job = Job::new(&vault, &home).on(aged_host()).index(&index);
    job.run().unwrap();
    fixtures::change(&home, 3, &files);
    use backstay_model::Code;
    use backstay_storage::{Fault, Rule};
    for folder in ["data/", "index/", "snapshots/"] {
        storage.add(Rule::new(Fault::Fail(Code::StorageFull)).on(Op::Put).name(folder).times(1));
        assert_eq!(job.run().unwrap_err().code(), Code::StorageFull);
        storage.clear();
        assert_eq!(names(&*storage, "locks"), Vec::<String>::new());
    }
    let log = Arc::new(Faulty::new(Arc::new(Host)));
    let done = job.clone().on(aged(log.clone())).run().unwrap();
    let changed = done.summary.files_new + done.summary.files_changed;
    assert_eq!(files_opened(&log) as u64, changed);
    assert!(changed < done.counts.files / 2, "the rest was known");
    let full = Job::new(&vault, &home).on(aged_host()).parent(Parent::Nothing).run().unwrap();
    assert_eq!(done.tree, full.tree);
    verify(&vault);
}

#[test]
fn streams_are_cut_alike_however_they_arrive() {
    // Streams and documents beside the tree: cut alike every time, found again, nothing stored twice.
    let (memory, vault) = memory_vault();
    let stream = Random::new(9).text(5 << 20);
    let mut ids = Vec::new();
    for _ in 0..2 {
        let lock = vault.lock(Strength::Shared, Duration::ZERO, &Cancel::new()).unwrap();
        let mut writer = vault.begin(&lock, 3, &Cancel::new()).unwrap();
        // In pieces of odd sizes, as a pipe gives them.
        let mut reader = Dribble(&stream, 1);
        assert_eq!(writer.save_stream("databases/main", &mut reader, 5 << 20).unwrap().unwrap(), 5 << 20);
        writer.save_bytes("settings.json", b"{}").unwrap();
        let details = backstay_vault::backup::SnapshotDetails {
            time: writer.started(),
            paths: vec!["/x".into()],
            tags: Vec::new(),
            parent: None,
        };
        let committed = writer.commit(&lock, details, &Silent).unwrap();
        let node =
            vault.reader().unwrap().find(&committed.snapshot.tree, Path::new("databases/main")).unwrap();
        let mut out = Vec::new();
        vault.reader().unwrap().cat(&node, &mut out).unwrap();
        assert!(out == stream);
        ids.push((node.content, committed.snapshot.summary.unwrap().data_blobs));
    }
    assert_eq!(ids[0].0, ids[1].0);
    assert!(ids[0].1 > 10 && ids[1].1 == 0, "{:?}", (ids[0].1, ids[1].1));
    verify(&vault);
    support::restic_check_copy(&memory as &dyn Storage);
}

struct Dribble<'a>(&'a [u8], usize);

impl std::io::Read for Dribble<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.1 = self.1 * 7 % 65_521;
        let count = self.1.min(buf.len()).min(self.0.len());
        buf[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        Ok(count)
    }
}
