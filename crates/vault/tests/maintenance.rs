//! Check, prune, repair, copy and stats on vaults that were written here.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::unreachable,
    clippy::print_stdout,
    reason = "a helper outside a test function that fails is a failed test"
)]

mod maintenance_support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use backstay_model::{Cancel, Code, Secret, Silent};
use backstay_storage::{Fault, Faulty, Memory, Op, Put, Rule, Storage};
use backstay_testing::fixtures;
use backstay_vault::check::FindingKind;
use backstay_vault::crypto::Cipher;
use backstay_vault::key::Cost;
use backstay_vault::prune::{Prune, PruneOptions};
use backstay_vault::repair::{Repair, RepairOptions};
use backstay_vault::stats::stats;
use backstay_vault::{Id, Strength, Vault};
use maintenance_support::*;

/// A vault with backups of a tree that changes from one to the next; the last `keep` are kept.
fn vault_with_history(backups: i64, keep: usize) -> (Arc<Memory>, backstay_vault::Vault, tempfile::TempDir) {
    let dir = backstay_testing::quick_dir();
    let storage = Arc::new(Memory::new());
    let vault = new_vault(storage.clone());
    let mut files = fixtures::small(dir.path(), 5, 60);
    for number in 0..backups {
        backup(&vault, dir.path(), number).unwrap();
        files = fixtures::change(dir.path(), u64::try_from(number).unwrap(), &files);
    }
    let all = vault.snapshots().unwrap();
    let gone: Vec<_> = all.iter().take(all.len() - keep).map(|(id, _)| *id).collect();
    vault.forget(&gone).unwrap();
    (storage, vault, dir)
}

#[test]
fn prune_removes_what_is_unused_and_keeps_the_rest_byte_for_byte() {
    let (storage, vault, _dir) = vault_with_history(8, 3);
    let before = read_all(&vault).unwrap();
    let bytes = |s: &Memory| names(s).iter().map(|n| s.size(n).unwrap()).sum::<u64>();
    let full = bytes(&storage);
    let (plan, outcome) = prune(&vault, thorough()).unwrap();
    println!("{plan:#?}\n{outcome:#?}");
    assert!(plan.unused.count > 0 && !plan.repack.is_empty());
    assert_eq!(outcome.deferred, None);
    assert!(bytes(&storage) < full);
    let report = clean(&vault);
    assert_eq!(report.note_count, 0, "{:?}", report.notes);
    assert_eq!(read_all(&vault).unwrap(), before);
    let (plan, outcome) = prune(&vault, thorough()).unwrap();
    assert!(plan.is_empty() && plan.unused.count == 0 && plan.duplicate.count == 0, "{plan:#?}");
    assert_eq!(outcome, Default::default());
}

fn packs(storage: &dyn Storage) -> Vec<String> {
    names(storage).into_iter().filter(|n| n.starts_with("data/")).collect()
}

fn plan(vault: &Vault, options: PruneOptions) -> Prune {
    Prune::plan(vault, options, &Silent, &Cancel::new()).unwrap()
}

#[test]
fn the_plan_changes_nothing_and_says_what_happens() {
    let (storage, vault, _dir) = vault_with_history(6, 2);
    let before = names(&*storage);
    let prune = plan(&vault, thorough());
    let value = prune.value().clone();
    drop(prune);
    assert_eq!(names(&*storage), before);
    let json = serde_json::to_string(&value).unwrap();
    assert_eq!(serde_json::from_str::<backstay_vault::prune::PrunePlan>(&json).unwrap(), value);
    let size = |s: &Memory| packs(s).iter().map(|n| s.size(n).unwrap()).sum::<u64>();
    let full = size(&storage);
    assert_eq!(full, value.packs.bytes);
    prune_now(&vault);
    let freed = full - size(&storage);
    // New packs have headers of their own: a little more or less than planned.
    assert!(freed.abs_diff(value.freed_bytes) < 4096, "freed {freed}, planned {}", value.freed_bytes);
}

fn prune_now(vault: &Vault) {
    assert_eq!(prune(vault, thorough()).unwrap().1.deferred, None);
}

#[test]
fn some_waste_is_tolerated_and_without_repacking_only_dead_packs_go() {
    let (_storage, vault, _dir) = vault_with_history(8, 3);
    let lenient = PruneOptions { max_unused_percent: 100, small_packs: 1000, ..thorough() };
    let (planned, outcome) = prune(&vault, lenient).unwrap();
    assert!(planned.repack.is_empty() && outcome.written.count == 0, "{planned:#?}");
    assert!(planned.kept_unused_bytes > 0);
    let (planned, outcome) = prune(&vault, PruneOptions { repack: false, ..thorough() }).unwrap();
    assert!(planned.repack.is_empty() && outcome.written.count == 0);
    let five = plan(&vault, PruneOptions { max_unused_percent: 5, ..thorough() }).value().clone();
    assert!(five.kept_unused_bytes <= five.used.bytes / 20, "{five:#?}");
    clean(&vault);
}

#[test]
fn hourly_backups_of_little_data_leave_few_packs_and_index_objects() {
    let dir = backstay_testing::quick_dir();
    let storage = Arc::new(Memory::new());
    let vault = new_vault(storage.clone());
    fixtures::small(dir.path(), 2, 30);
    let (mut most_packs, mut most_indexes) = (0, 0);
    for number in 0..150 {
        std::fs::write(dir.path().join(format!("note-{number}")), format!("at {number}")).unwrap();
        backup(&vault, dir.path(), number).unwrap();
        prune(&vault, PruneOptions::default()).unwrap();
        let all = names(&*storage);
        most_packs = most_packs.max(packs(&*storage).len());
        most_indexes = most_indexes.max(all.iter().filter(|n| n.starts_with("index/")).count());
    }
    println!("at most {most_packs} packs, {most_indexes} index objects");
    assert!(most_packs <= 2 * 34 && most_indexes <= 35, "{most_packs} packs, {most_indexes} index objects");
    assert_eq!(read_all(&vault).unwrap().len(), 150);
    clean(&vault);
}

#[test]
fn a_backup_between_plan_and_deletion_keeps_what_it_relies_on() {
    let dir = backstay_testing::quick_dir();
    let storage = Arc::new(Memory::new());
    let vault = new_vault(storage.clone());
    fixtures::small(dir.path(), 4, 40);
    let old = backup(&vault, dir.path(), 1).unwrap();
    let empty = backstay_testing::quick_dir();
    backup(&vault, empty.path(), 2).unwrap();
    let before = read(&vault.reader().unwrap(), &old).unwrap();
    vault.forget(&[old]).unwrap();
    let planned = plan(&vault, thorough());
    assert!(!planned.value().delete.is_empty());
    // Everything of the deleted point is still there, so this backup stores next to nothing.
    let again = backup(&vault, dir.path(), 3).unwrap();
    let outcome = planned.apply(&Silent, &Cancel::new()).unwrap();
    assert!(outcome.rescued_packs > 0 && outcome.deferred.is_none(), "{outcome:#?}");
    clean(&vault);
    assert_eq!(read(&vault.reader().unwrap(), &again).unwrap(), before);
    prune_now(&vault);
    assert_eq!(clean(&vault).note_count, 0);
}

#[test]
fn with_a_backup_under_way_the_second_phase_is_deferred_and_made_up_for() {
    let (storage, vault, dir) = vault_with_history(6, 2);
    let before = read_all(&vault).unwrap();
    let lock = vault.lock(Strength::Shared, Duration::ZERO, &Cancel::new()).unwrap();
    let (planned, outcome) = prune(&vault, thorough()).unwrap();
    let why = outcome.deferred.unwrap();
    assert!(why.contains("deferred") && why.contains("locked"), "{why}");
    assert!(!planned.repack.is_empty() && outcome.deleted.count == 0 && outcome.written.count > 0);
    // As often as it is deferred, the data is moved once.
    let count = packs(&*storage).len();
    let (planned, outcome) = prune(&vault, thorough()).unwrap();
    assert!(outcome.deferred.is_some() && outcome.written.count == 0, "{planned:#?}");
    assert!(planned.repack.is_empty() && planned.duplicate.count > 0);
    assert_eq!(packs(&*storage).len(), count);
    clean(&vault);
    lock.release().unwrap();
    backup(&vault, dir.path(), 50).unwrap();
    prune_now(&vault);
    assert_eq!(clean(&vault).note_count, 0);
    let after = read_all(&vault).unwrap();
    assert!(before.iter().all(|(time, point)| after[time] == *point));
}

#[test]
fn of_two_prunes_one_does_the_work_and_the_other_ends_well() {
    let (_storage, vault, _dir) = vault_with_history(6, 2);
    let before = read_all(&vault).unwrap();
    let (first, second) = (plan(&vault, thorough()), plan(&vault, thorough()));
    let first = std::thread::scope(|scope| {
        // The first waits for the lock of the second plan, which goes when that is applied and deferred.
        let waiting = scope.spawn(move || first.apply(&Silent, &Cancel::new()).unwrap());
        let second = second.apply(&Silent, &Cancel::new()).unwrap();
        println!("{second:?}");
        waiting.join().unwrap()
    });
    println!("{first:?}");
    clean(&vault);
    assert_eq!(read_all(&vault).unwrap(), before);
    prune_now(&vault);
    assert_eq!(clean(&vault).note_count, 0);
    assert_eq!(read_all(&vault).unwrap(), before);
}

/// Refused, or done without a loss beyond the damage: with the damaged object put back, all reads as before.
#[test]
fn a_damaged_vault_is_not_made_worse_by_prune() {
    let (base, vault, _dir) = vault_with_history(5, 3);
    let before = read_all(&vault).unwrap();
    let (mut refused, mut harmless) = (0, 0);
    let damaged =
        |folder: &str| names(&*base).into_iter().filter(|n| n.starts_with(folder)).collect::<Vec<_>>();
    for name in ["snapshots", "index", "data"].iter().flat_map(|folder| damaged(folder)) {
        for delete in [false, true] {
            let storage = Arc::new(copy_of(&*base));
            let vault = open(storage.clone());
            let bytes = base.get(&name).unwrap();
            let mut bad = bytes.clone();
            bad[bytes.len() / 2] ^= 4;
            match delete {
                true if name.starts_with("snapshots") => continue,
                true => storage.delete(&name).unwrap(),
                false => storage.put(&name, &bad, Put::Replace).unwrap(),
            }
            let there = packs(&*storage);
            match prune(&vault, PruneOptions { small_packs: 0, ..thorough() }) {
                Err(e) => {
                    refused += 1;
                    assert_eq!(e.code(), Code::VaultDamaged, "{name}: {e:?}");
                    assert!(e.message().starts_with("Prune deletes nothing from a damaged vault"), "{e:?}");
                    assert!(e.advice().contains("repair"));
                    assert!(there.iter().all(|p| packs(&*storage).contains(p)), "{name}");
                }
                Ok(_) => harmless += 1,
            }
            storage.put(&name, &bytes, Put::Replace).unwrap();
            assert_eq!(read_all(&vault).unwrap(), before, "{name}");
        }
    }
    println!("{refused} refused, {harmless} of no matter to what is needed");
    assert!(refused > 10 && harmless > 0);
}

#[test]
fn a_prune_whose_lock_was_taken_away_stops() {
    let (storage, vault, _dir) = vault_with_history(5, 2);
    let before = read_all(&vault).unwrap();
    let planned = plan(&vault, thorough());
    assert!(!planned.value().repack.is_empty());
    forget_locks(&*storage);
    assert_eq!(planned.apply(&Silent, &Cancel::new()).unwrap_err().code(), Code::LeaseLost);
    clean(&vault);
    assert_eq!(read_all(&vault).unwrap(), before);
    prune_now(&vault);
    assert_eq!(clean(&vault).note_count, 0);
}

#[test]
fn cancelling_and_a_full_storage_lose_nothing() {
    let (storage, vault, _dir) = vault_with_history(5, 2);
    let before = read_all(&vault).unwrap();
    let cancel = Cancel::new();
    let planned = plan(&vault, thorough());
    cancel.cancel();
    assert_eq!(planned.apply(&Silent, &cancel).unwrap_err().code(), Code::Cancelled);
    for (op, folder) in [(Op::Put, "data"), (Op::Put, "index"), (Op::Delete, "index"), (Op::Delete, "data")] {
        let faulty = Arc::new(Faulty::new(storage.clone()));
        faulty.add(Rule::new(Fault::Fail(Code::StorageFull)).on(op).name(folder));
        let error = prune(&open(faulty), thorough()).unwrap_err();
        assert_eq!(error.code(), Code::StorageFull);
        clean(&vault);
        assert_eq!(read_all(&vault).unwrap(), before);
    }
    prune_now(&vault);
    assert_eq!(clean(&vault).note_count, 0);
    assert_eq!(read_all(&vault).unwrap(), before);
}

#[test]
fn a_blob_that_is_stored_twice_survives_the_loss_of_one_pack() {
    let (storage, vault, _dir) = vault_with_history(4, 2);
    let before = read_all(&vault).unwrap();
    let lock = vault.lock(Strength::Shared, Duration::ZERO, &Cancel::new()).unwrap();
    let old = packs(&*storage);
    let (planned, outcome) = prune(&vault, PruneOptions { small_packs: 0, ..thorough() }).unwrap();
    assert!(outcome.deferred.is_some());
    lock.release().unwrap();
    // All that is needed lies in the old packs and in the new ones: either half may be lost.
    let new: Vec<String> = packs(&*storage).into_iter().filter(|p| !old.contains(p)).collect();
    for lost in [&new, &planned.repack.iter().map(|p| pack_name(&p.id)).collect()] {
        let half = Arc::new(copy_of(&*storage));
        lost.iter().for_each(|name| half.delete(name).unwrap());
        let half = open(half);
        assert_eq!(read_all(&half).unwrap(), before);
        let report = check_all(&half);
        assert!(!report.is_clean() && report.affected.is_empty(), "{report:#?}");
        let repair = Repair::plan(&half, RepairOptions::default(), &Silent, &Cancel::new()).unwrap();
        assert_eq!(repair.value().lost_blobs, 0);
        repair.apply(&Silent, &Cancel::new()).unwrap();
        clean(&half);
        assert_eq!(read_all(&half).unwrap(), before);
    }
}

fn pack_name(id: &backstay_vault::Id) -> String {
    backstay_vault::Folder::Data.object(id)
}

#[test]
fn what_is_lost_heals_with_the_next_backup_when_the_source_still_has_it() {
    let dir = backstay_testing::quick_dir();
    let storage = Arc::new(Memory::new());
    let vault = new_vault(storage.clone());
    fixtures::small(dir.path(), 6, 40);
    backup(&vault, dir.path(), 1).unwrap();
    let before = read_all(&vault).unwrap();
    packs(&*storage).iter().for_each(|name| storage.delete(name).unwrap());
    let report = check_all(&vault);
    assert_eq!(report.affected.len(), 1);
    let repair = Repair::plan(&vault, RepairOptions::default(), &Silent, &Cancel::new()).unwrap();
    let outcome = repair.apply(&Silent, &Cancel::new()).unwrap();
    assert_eq!((outcome.rewritten.len(), outcome.hopeless.len()), (0, 1));
    backup(&vault, dir.path(), 2).unwrap();
    clean(&vault);
    let after = read_all(&vault).unwrap();
    assert!(before.iter().all(|(time, point)| after[time] == *point), "the first point is whole again");
}

#[test]
fn repair_keeps_originals_and_does_not_repeat_itself() {
    let (storage, vault, _dir) = vault_with_history(4, 3);
    let largest = packs(&*storage).into_iter().max_by_key(|n| storage.size(n).unwrap()).unwrap();
    let mut bytes = storage.get(&largest).unwrap();
    for at in (0..bytes.len()).step_by(3000) {
        bytes[at] ^= 1;
    }
    storage.put(&largest, &bytes, Put::Replace).unwrap();
    let affected = check_all(&vault).affected.len();
    assert!(affected > 0);
    let repair = || {
        let repair = Repair::plan(&vault, RepairOptions::default(), &Silent, &Cancel::new()).unwrap();
        let value = repair.value().clone();
        let json = serde_json::to_string(&value).unwrap();
        assert_eq!(serde_json::from_str::<backstay_vault::repair::RepairPlan>(&json).unwrap(), value);
        (value, repair.apply(&Silent, &Cancel::new()).unwrap())
    };
    let (value, outcome) = repair();
    assert_eq!((value.affected.len(), outcome.rewritten.len()), (affected, affected));
    assert!(value.damaged_packs[0].salvaged > 0 && value.damaged_packs[0].unreadable > 0);
    let snapshots = vault.snapshots().unwrap();
    for (old, new) in &outcome.rewritten {
        let (_, old_one) = snapshots.iter().find(|(id, _)| id == old).unwrap();
        let (_, new_one) = snapshots.iter().find(|(id, _)| id == new).unwrap();
        assert!(
            new_one.has_tag("repaired") && new_one.original == Some(*old) && new_one.time == old_one.time
        );
        read(&vault.reader().unwrap(), new).unwrap();
        read(&vault.reader().unwrap(), old).unwrap_err();
    }
    let (value, outcome) = repair();
    assert_eq!(value.affected.len(), affected, "the originals are still there, and still lack something");
    assert_eq!(outcome.rewritten, []);
    assert!(value.lost_blobs > 0 && value.damaged_packs.is_empty(), "{value:#?}");
}

#[test]
fn a_check_tells_which_points_and_paths_are_affected_and_notes_what_is_left_over() {
    let (storage, vault, dir) = vault_with_history(3, 3);
    let dying = Arc::new(Faulty::new(storage.clone()));
    dying.kill_at(3, false);
    std::fs::write(dir.path().join("new"), [7; 5000]).unwrap();
    backup(&open(dying), dir.path(), 9).unwrap_err();
    let report = clean(&vault);
    let kinds: BTreeSet<FindingKind> = report.notes.iter().map(|n| n.kind).collect();
    assert_eq!(kinds, BTreeSet::from([FindingKind::PackUnreferenced, FindingKind::Locked]));
    forget_locks(&*storage);
    let lock = format!("locks/{}", backstay_vault::Id::of(b"x"));
    storage.put(&lock, b"rubbish", Put::Replace).unwrap();
    let report = check_all(&vault);
    assert_eq!(report.errors.iter().map(|e| e.kind).collect::<Vec<_>>(), [FindingKind::LockDamaged]);
    assert!(backup(&vault, dir.path(), 10).is_err());
    assert_eq!(vault.unlock(false).unwrap(), 1);
    backup(&vault, dir.path(), 10).unwrap();
}

#[test]
fn a_check_beside_prunes_and_backups_finds_nothing() {
    let (_storage, vault, dir) = vault_with_history(4, 2);
    let home = dir.path().join("other");
    std::fs::create_dir(&home).unwrap();
    let files = fixtures::small(&home, 33, 30);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            let mut files = files.clone();
            for number in 100..130 {
                files = fixtures::change(&home, u64::try_from(number).unwrap(), &files);
                backup(&vault, &home, number).unwrap();
                let all = vault.snapshots().unwrap();
                vault
                    .forget(&all[..all.len().saturating_sub(2)].iter().map(|(id, _)| *id).collect::<Vec<_>>())
                    .unwrap();
                prune(&vault, PruneOptions { small_packs: 0, wait: Duration::from_secs(20), ..thorough() })
                    .unwrap();
            }
        });
        let mut checks = 0;
        while !busy.is_finished() {
            let report = check_all(&vault);
            // A snapshot that is deleted while it is checked may show as damage: then it must be gone.
            let there: Vec<_> = vault.snapshots().unwrap().into_iter().map(|(id, _)| id).collect();
            let real = report.affected.iter().any(|p| there.contains(&p.snapshot));
            assert!(!real, "{:#?}", report.errors);
            checks += 1;
        }
        println!("{checks} checks beside");
        assert!(checks > 3);
    });
    clean(&vault);
}

#[test]
fn a_copy_takes_the_points_to_a_vault_with_another_key() {
    let (_storage, vault, dir) = vault_with_history(5, 3);
    let target = Vault::init(Arc::new(Memory::new()), &Secret::new("other"), Cost::RANDOM).unwrap();
    let ids: Vec<_> = vault.snapshots().unwrap().iter().map(|(id, _)| *id).collect();
    let one = vault.copy_to(&target, &ids[..1], &Silent, &Cancel::new()).unwrap();
    assert_eq!(one.copied.len(), 1);
    let rest = vault.copy_to(&target, &ids, &Silent, &Cancel::new()).unwrap();
    assert_eq!((rest.copied.len(), rest.present.len()), (2, 1));
    assert_eq!(read_all(&vault).unwrap(), read_all(&target).unwrap());
    assert_eq!(clean(&target).note_count, 0);
    for (from, to) in one.copied.iter().chain(&rest.copied) {
        let (from_one, to_one) = (vault.snapshot(from).unwrap(), target.snapshot(to).unwrap());
        assert_eq!(to_one.original, Some(*from));
        assert_eq!((&to_one.tags, to_one.time, to_one.tree), (&from_one.tags, from_one.time, from_one.tree));
    }
    // Back again: the copies know what they are copies of.
    let back = Vault::init(Arc::new(Memory::new()), &password(), Cost::RANDOM).unwrap();
    let copies: Vec<_> = target.snapshots().unwrap().iter().map(|(id, _)| *id).collect();
    vault.copy_to(&back, &ids, &Silent, &Cancel::new()).unwrap();
    assert_eq!(target.copy_to(&back, &copies, &Silent, &Cancel::new()).unwrap().copied, []);
    backup(&target, dir.path(), 77).unwrap();
    clean(&target);
    let same = vault.copy_to(&vault, &ids, &Silent, &Cancel::new()).unwrap_err();
    assert_eq!(same.code(), Code::InvalidValue);
}

#[test]
fn stats_add_up() {
    let (storage, vault, _dir) = vault_with_history(6, 2);
    let before = stats(&vault, &Silent, &Cancel::new()).unwrap();
    let size: u64 = packs(&*storage).iter().map(|n| storage.size(n).unwrap()).sum();
    assert_eq!((before.packs.bytes, before.snapshots, before.version), (size, 2, 2));
    assert!(
        before.unused.count > 0 && before.dedup_factor > 1.0 && before.compression_ratio > 1.0,
        "{before:#?}"
    );
    let content: u64 = read_all(&vault)
        .unwrap()
        .values()
        .flatten()
        .filter_map(|(_, what)| what.strip_prefix("Some(File)")?.split(' ').rev().nth(1)?.parse::<u64>().ok())
        .sum();
    assert_eq!(before.points.bytes, content);
    prune_now(&vault);
    let after = stats(&vault, &Silent, &Cancel::new()).unwrap();
    assert_eq!((after.unused.count, after.duplicate.count, after.leftover.count), (0, 0, 0));
    assert_eq!(after.points, before.points);
    assert!(after.data.bytes + after.trees.bytes < after.packs.bytes);
}

/// A backup that is frozen, its lock removed as abandoned, its packs deleted by a prune: it wakes, and makes no point.
#[test]
fn a_backup_that_slept_through_a_prune_makes_no_point() {
    let (storage, vault, dir) = vault_with_history(3, 1);
    let before = read_all(&vault).unwrap();
    std::fs::write(dir.path().join("late"), vec![3; 100_000]).unwrap();
    for locked in [false, true] {
        let cancel = Cancel::new();
        let lock = vault.lock(Strength::Shared, Duration::ZERO, &cancel).unwrap();
        let fs: Arc<dyn backstay_tree::fs::FileSystem> = Arc::new(backstay_tree::fs::Host);
        let mut writer = vault.begin(&lock, 3, &cancel).unwrap();
        writer.save_tree("content", &fs, dir.path(), Default::default(), &Silent).unwrap();
        forget_locks(&*storage);
        prune_now(&vault);
        // Even if somebody gave it a lock again: the packs it relied on are looked for.
        let fresh = locked.then(|| vault.lock(Strength::Shared, Duration::ZERO, &cancel).unwrap());
        let details = backstay_vault::backup::SnapshotDetails {
            time: jiff::Timestamp::UNIX_EPOCH,
            paths: vec![],
            tags: vec![],
            parent: None,
        };
        let committed = writer.commit(fresh.as_ref().unwrap_or(&lock), details, &Silent);
        drop((lock, fresh));
        match committed {
            Err(e) => assert_eq!(e.code(), Code::LeaseLost),
            // The second time nothing it relied on was deleted.
            Ok(_) => assert!(locked),
        }
        clean(&vault);
        let after = read_all(&vault).unwrap();
        assert!(before.iter().all(|(time, point)| after[time] == *point));
    }
}

/// What a newer version may write is not damage: nothing is deleted or repaired, and the message says why.
#[test]
fn an_unknown_form_is_unsupported_and_left_alone() {
    let (storage, vault, _dir) = vault_with_history(4, 2);
    let (_, key, _) = vault.keys().unwrap().remove(0);
    let cipher = Cipher::new(&key.open(&password()).unwrap().unwrap());
    for folder in ["index", "snapshots"] {
        let sealed = cipher.sealed(b"\x03 a form of the future").unwrap();
        let name = format!("{folder}/{}", Id::of(&sealed));
        storage.put(&name, &sealed, Put::IfAbsent).unwrap();
        let before = names(&*storage);
        let (c, silent) = (Cancel::new(), &Silent);
        let check = backstay_vault::check::check(&vault, Default::default(), silent, &c).map(drop);
        let prune = prune(&vault, thorough()).map(drop);
        let repair = Repair::plan(&vault, RepairOptions::default(), silent, &c).map(drop);
        for error in [check.unwrap_err(), prune.unwrap_err(), repair.unwrap_err()] {
            assert_eq!(error.code(), Code::VaultUnsupported, "{error:?}");
        }
        assert_eq!(names(&*storage), before);
        storage.delete(&name).unwrap();
    }
    clean(&vault);
}

/// Index objects that nobody should write: positions beyond packs, overlaps, absurd lengths, unknown blobs. Nothing
/// panics, memory stays bounded, and prune deletes nothing that the points need.
#[test]
fn an_absurd_index_costs_no_point() {
    let (base, vault, _dir) = vault_with_history(4, 2);
    let points = read_all(&vault).unwrap();
    let (_, key, _) = vault.keys().unwrap().remove(0);
    let cipher = Cipher::new(&key.open(&password()).unwrap().unwrap());
    let (index, _) = vault.load_index(&|_| true).unwrap();
    let packs: Vec<Id> = index.packs().to_vec();
    let blobs: Vec<Id> = index.blobs(backstay_vault::blob::BlobKind::Data).map(|(id, _)| id).collect();
    let trees: Vec<Id> = index.blobs(backstay_vault::blob::BlobKind::Tree).map(|(id, _)| id).collect();
    let entry = |id: &Id, kind: &str, offset: u32, length: u32, plain: u32| {
        format!(
            r#"{{"id":"{id}","type":"{kind}","offset":{offset},"length":{length},"uncompressed_length":{plain}}}"#
        )
    };
    let nowhere = Id::of(b"nowhere");
    let cases = [
        entry(&blobs[0], "data", u32::MAX, u32::MAX, u32::MAX),
        entry(&blobs[0], "data", 0, u32::MAX, 1),
        entry(&trees[0], "tree", 0, 0, 0),
        entry(&trees[0], "data", 0, 40, 5),
        entry(&blobs[1], "tree", 1, 33, u32::MAX),
        entry(&nowhere, "tree", 0, 100, 100),
        (0..50).map(|n| entry(&blobs[0], "data", n, 5000, 70_000_000)).collect::<Vec<_>>().join(","),
        blobs.iter().map(|id| entry(id, "data", 7, 64, 9)).collect::<Vec<_>>().join(","),
    ];
    for (n, case) in cases.iter().enumerate() {
        for pack in [packs[n % packs.len()], nowhere] {
            let storage = Arc::new(copy_of(&*base));
            let vault = open(storage.clone());
            let sealed = cipher
                .sealed(format!(r#"{{"packs":[{{"id":"{pack}","blobs":[{case}]}}]}}"#).as_bytes())
                .unwrap();
            storage.put(&format!("index/{}", Id::of(&sealed)), &sealed, Put::IfAbsent).unwrap();
            assert!(!check_all(&vault).is_clean(), "case {n}");
            let _refused_or_done = prune(&vault, thorough());
            let repair = Repair::plan(&vault, RepairOptions::default(), &Silent, &Cancel::new()).unwrap();
            repair.apply(&Silent, &Cancel::new()).unwrap();
            assert_eq!(read_all(&vault).unwrap(), points, "case {n}");
        }
    }
}

/// An index that says of a whole pack that it holds what another one holds: the other one is not deleted for it.
#[test]
fn a_pack_is_not_deleted_for_the_sake_of_a_wrong_index() {
    let dir = backstay_testing::quick_dir();
    let storage = Arc::new(Memory::new());
    let vault = new_vault(storage.clone());
    // One pack of data with waste, and one without.
    std::fs::write(dir.path().join("kept"), vec![1; 900]).unwrap();
    std::fs::write(dir.path().join("waste"), vec![2; 900]).unwrap();
    backup(&vault, dir.path(), 1).unwrap();
    std::fs::remove_file(dir.path().join("waste")).unwrap();
    std::fs::write(dir.path().join("more"), fixtures::Random::new(1).bytes(5000)).unwrap();
    let second = backup(&vault, dir.path(), 2).unwrap();
    let first = vault.snapshots().unwrap().remove(0).0;
    vault.forget(&[first]).unwrap();
    let points = read_all(&vault).unwrap();
    let node = vault.reader().unwrap();
    let root = vault.snapshot(&second).unwrap().tree;
    let content =
        |name: &str| node.find(&root, std::path::Path::new(&format!("content/{name}"))).unwrap().content[0];
    let (index, _) = vault.load_index(&|_| true).unwrap();
    let data = backstay_vault::blob::BlobKind::Data;
    let whole = index.find(data, &content("more")).unwrap();
    let (_, key, _) = vault.keys().unwrap().remove(0);
    let cipher = Cipher::new(&key.open(&password()).unwrap().unwrap());
    let lie = format!(
        r#"{{"packs":[{{"id":"{}","blobs":[{{"id":"{}","type":"data","offset":32,"length":64}}]}}]}}"#,
        whole.pack,
        content("kept")
    );
    let sealed = cipher.sealed(lie.as_bytes()).unwrap();
    storage.put(&format!("index/{}", Id::of(&sealed)), &sealed, Put::IfAbsent).unwrap();
    let planned = plan(&vault, thorough());
    let doomed = index.find(data, &content("kept")).unwrap().pack;
    assert!(planned.value().delete.iter().any(|p| p.id == doomed), "the plan believes the index");
    let refused = planned.apply(&Silent, &Cancel::new()).unwrap_err();
    assert_eq!(refused.code(), Code::VaultDamaged, "{refused:?}");
    assert_eq!(read_all(&vault).unwrap(), points);
    Repair::plan(&vault, RepairOptions::default(), &Silent, &Cancel::new())
        .unwrap()
        .apply(&Silent, &Cancel::new())
        .unwrap();
    clean(&vault);
    prune_now(&vault);
    assert_eq!(read_all(&vault).unwrap(), points);
    assert_eq!(clean(&vault).note_count, 0);
}
