//! Killed at every call that changes the storage: the vault stays whole and the next run needs no manual step.

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

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use backstay_model::{Cancel, Result, Silent};
use backstay_storage::{Call, Faulty, Local, Memory, Op, Put, Storage};
use backstay_testing::fixtures;
use backstay_tree::fs::{self, Host};
use backstay_vault::Vault;
use backstay_vault::repair::{Repair, RepairOptions, RepairOutcome};
use jiff::Timestamp;
use maintenance_support::*;

type Points = BTreeMap<Timestamp, Everything>;

/// A vault with unused, partly used and left-over packs, and what its points hold.
fn base() -> (Memory, Points) {
    let dir = backstay_testing::quick_dir();
    let storage = Arc::new(Memory::new());
    let vault = new_vault(storage.clone());
    let mut files = fixtures::small(dir.path(), 8, 30);
    for number in 0..6 {
        backup(&vault, dir.path(), number).unwrap();
        files = fixtures::change(dir.path(), u64::try_from(number).unwrap(), &files);
    }
    // A backup that was killed before its index: packs that nobody names.
    let dying = Arc::new(Faulty::new(storage.clone()));
    dying.kill_at(3, false);
    backup(&open(dying), dir.path(), 9).unwrap_err();
    forget_locks(&*storage);
    let all = vault.snapshots().unwrap();
    vault.forget(&all.iter().take(4).map(|(id, _)| *id).collect::<Vec<_>>()).unwrap();
    let points = read_all(&vault).unwrap();
    (copy_of(&*storage), points)
}

/// What a call was for.
fn phase(call: &Call) -> String {
    let folder = call.name.split('/').next().unwrap_or_default();
    format!("{} {folder}", if call.op == Op::Put { "write" } else { "delete" })
}

/// Runs `work` on copies of `base`, stopped at every mutating call, before and after it; `verify` looks at what is
/// left each time. Prints how many points were hit in each phase.
fn at_every_call(
    name: &str,
    base: &Memory,
    work: &dyn Fn(Arc<dyn Storage>) -> Result<()>,
    verify: &dyn Fn(Arc<Memory>, &str),
) {
    let mut hits: BTreeMap<String, usize> = BTreeMap::new();
    for after in [false, true] {
        for nth in 1.. {
            let storage = Arc::new(copy_of(base));
            let faulty = Arc::new(Faulty::new(storage.clone()));
            faulty.kill_at(nth, after);
            let result = work(faulty.clone());
            if !faulty.was_killed() {
                result.unwrap();
                assert!(nth > 5, "{name} changes next to nothing");
                break;
            }
            let calls = faulty.calls();
            let last =
                calls.iter().filter(|c| c.op.mutates()).nth(usize::try_from(nth).unwrap() - 1).unwrap();
            *hits.entry(phase(last)).or_default() += 1;
            forget_locks(&*storage);
            verify(
                storage,
                &format!("{name} killed {} call {nth}: {last:?}", if after { "after" } else { "at" }),
            );
        }
    }
    println!("{name}: {} points: {hits:?}", hits.values().sum::<usize>());
}

#[track_caller]
fn whole(vault: &Vault, points: &Points, story: &str) {
    let report = check_all(vault);
    assert!(report.is_clean(), "{story}: {:#?}", report.errors);
    assert!(read_all(vault).unwrap() == *points, "{story}: a point reads differently");
}

#[test]
fn prune_stopped_anywhere_harms_nothing_and_the_next_one_cleans_up() {
    let (base, points) = base();
    let work = |storage: Arc<dyn Storage>| prune(&Vault::open(storage, &password())?, thorough()).map(drop);
    at_every_call("prune", &base, &work, &|storage, story| {
        let vault = open(storage.clone());
        whole(&vault, &points, story);
        let (_, outcome) = prune(&vault, thorough()).unwrap();
        assert_eq!(outcome.deferred, None, "{story}");
        whole(&vault, &points, story);
        assert_eq!(check_all(&vault).note_count, 0, "{story}: something is left over");
        let (plan, _) = prune(&vault, thorough()).unwrap();
        assert!(plan.is_empty() && plan.unused.count + plan.duplicate.count == 0, "{story}: {plan:#?}");
    });
}

#[test]
fn copy_stopped_anywhere_goes_on_where_it_stopped() {
    let (from, points) = base();
    let from = open(Arc::new(from));
    let ids: Vec<_> = from.snapshots().unwrap().iter().map(|(id, _)| *id).collect();
    let empty = Arc::new(Memory::new());
    drop(new_vault(empty.clone()));
    let work = |storage: Arc<dyn Storage>| {
        from.copy_to(&Vault::open(storage, &password())?, &ids, &Silent, &Cancel::new()).map(drop)
    };
    at_every_call("copy", &empty, &work, &|storage, story| {
        forget_locks(&**from.storage());
        let vault = open(storage.clone());
        let report = check_all(&vault);
        assert!(report.is_clean(), "{story}: {:#?}", report.errors);
        for (time, point) in read_all(&vault).unwrap() {
            assert!(points[&time] == point, "{story}: a copied point reads differently");
        }
        let outcome = from.copy_to(&vault, &ids, &Silent, &Cancel::new()).unwrap();
        assert_eq!(outcome.copied.len() + outcome.present.len(), ids.len(), "{story}");
        whole(&vault, &points, story);
        assert_eq!(vault.snapshots().unwrap().len(), ids.len(), "{story}: a point was copied twice");
        prune(&vault, thorough()).unwrap();
        whole(&vault, &points, story);
        assert_eq!(check_all(&vault).note_count, 0, "{story}");
    });
}

fn repair(vault: &Vault, remove_originals: bool) -> Result<RepairOutcome> {
    let options = RepairOptions { remove_originals, wait: Duration::from_millis(200), ..Default::default() };
    Repair::plan(vault, options, &Silent, &Cancel::new())?.apply(&Silent, &Cancel::new())
}

#[test]
fn repair_stopped_anywhere_is_done_by_the_next_one() {
    let (base, points) = base();
    // One bit in the middle of the largest pack, one index object broken, one pack gone.
    let packs: Vec<String> = names(&base).into_iter().filter(|n| n.starts_with("data/")).collect();
    let largest = packs.iter().max_by_key(|n| base.size(n).unwrap()).unwrap();
    let mut bytes = base.get(largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    base.put(largest, &bytes, Put::Replace).unwrap();
    let index = names(&base).into_iter().rfind(|n| n.starts_with("index/")).unwrap();
    base.put(&index, b"rubbish", Put::Replace).unwrap();

    let whole_points = |vault: &Vault| -> Points {
        let reader = vault.reader().unwrap();
        let all = vault.snapshots().unwrap().into_iter();
        all.filter_map(|(id, s)| Some((s.time, read(&reader, &id).ok()?))).collect()
    };
    let reference = Arc::new(copy_of(&base));
    let vault = open(reference.clone());
    let plan = Repair::plan(&vault, RepairOptions::default(), &Silent, &Cancel::new()).unwrap();
    println!("{:#?}", plan.value());
    assert!(!plan.value().is_empty() && plan.value().lost_blobs == 1);
    drop(plan);
    let outcome = repair(&vault, true).unwrap();
    assert_eq!((outcome.rewritten.len(), outcome.hopeless.len()), (outcome.removed.len(), 0));
    clean(&vault);
    let expected = whole_points(&vault);
    assert_eq!(expected.len(), points.len());
    for (time, point) in &expected {
        // Nothing new, nothing altered, and all but what was lost.
        assert!(point.iter().all(|(path, what)| points[time].get(path) == Some(what)));
        assert!(points[time].len() - point.len() <= 3);
    }

    for remove_originals in [false, true] {
        let name = if remove_originals { "repair, originals removed" } else { "repair" };
        let work = |storage: Arc<dyn Storage>| {
            repair(&Vault::open(storage, &password())?, remove_originals).map(drop)
        };
        at_every_call(name, &base, &work, &|storage, story| {
            let vault = open(storage.clone());
            repair(&vault, true).unwrap();
            whole(&vault, &expected, story);
            assert_eq!(
                vault.snapshots().unwrap().len(),
                expected.len(),
                "{story}: a point was written twice"
            );
            prune(&vault, thorough()).unwrap();
            whole(&vault, &expected, story);
            assert_eq!(check_all(&vault).note_count, 0, "{story}");
        });
    }
}

/// The objects as the files of a local folder, without the syncs that `Local` would make.
fn lay_out(base: &Memory, place: &std::path::Path) {
    for name in names(base) {
        let path = place.join(&name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, base.get(&name).unwrap()).unwrap();
    }
}

/// Runs `work` on local folders laid out as `base`, stopped at every system call that changes something; then what was
/// not synced is lost, and `verify` looks at what is left. Prints how many points were hit at which call.
fn at_every_system_call(
    name: &str,
    base: &Memory,
    kills: &[fs::Kill],
    work: &dyn Fn(Arc<dyn Storage>) -> Result<()>,
    verify: &dyn Fn(Arc<dyn Storage>, &str),
) {
    let dir = backstay_testing::quick_dir();
    let mut hits: BTreeMap<String, usize> = BTreeMap::new();
    for kill in kills {
        for nth in 1.. {
            let place = dir.path().join(format!("{kill:?}-{nth}"));
            lay_out(base, &place);
            let aside = backstay_testing::quick_dir();
            let faulty = Arc::new(fs::Faulty::with_power_loss(Arc::new(Host), aside.path()).unwrap());
            let storage = Arc::new(Local::open_on(faulty.clone(), &place).unwrap());
            faulty.kill_at(faulty.points() + nth, *kill);
            let result = work(storage);
            let Some(last) = faulty.killed_at() else {
                result.unwrap();
                break;
            };
            faulty.power_loss().unwrap();
            *hits.entry(format!("{:?}", last.call)).or_default() += 1;
            let storage = Arc::new(Local::open(&place).unwrap());
            forget_locks(&*storage);
            verify(storage, &format!("{name}, {kill:?} call {nth}: {last:?}"));
            std::fs::remove_dir_all(&place).unwrap();
        }
    }
    println!("{name} with power loss: {} points: {hits:?}", hits.values().sum::<usize>());
}

#[test]
fn prune_and_a_power_loss_at_every_system_call() {
    let (base, points) = base();
    let work = |storage: Arc<dyn Storage>| prune(&Vault::open(storage, &password())?, thorough()).map(drop);
    let kills = [fs::Kill::Before, fs::Kill::After, fs::Kill::Torn];
    at_every_system_call("prune", &base, &kills, &work, &|storage, story| {
        let vault = open(storage);
        whole(&vault, &points, story);
        assert_eq!(prune(&vault, thorough()).unwrap().1.deferred, None, "{story}");
        whole(&vault, &points, story);
        assert_eq!(check_all(&vault).note_count, 0, "{story}: something is left over");
    });
}

#[test]
fn repair_and_a_power_loss_at_every_system_call() {
    let (base, points) = base();
    let index = names(&base).into_iter().find(|n| n.starts_with("index/")).unwrap();
    base.put(&index, b"rubbish", Put::Replace).unwrap();
    let work = |storage: Arc<dyn Storage>| repair(&Vault::open(storage, &password())?, true).map(drop);
    at_every_system_call("repair", &base, &[fs::Kill::Before, fs::Kill::After], &work, &|storage, story| {
        let vault = open(storage);
        repair(&vault, true).unwrap();
        whole(&vault, &points, story);
        prune(&vault, thorough()).unwrap();
        whole(&vault, &points, story);
        assert_eq!(check_all(&vault).note_count, 0, "{story}: something is left over");
    });
}

#[test]
fn copy_and_a_power_loss_at_every_system_call() {
    let (from, points) = base();
    let from = open(Arc::new(from));
    let ids: Vec<_> = from.snapshots().unwrap().iter().map(|(id, _)| *id).collect();
    let empty = Arc::new(Memory::new());
    drop(new_vault(empty.clone()));
    let copy = |storage: Arc<dyn Storage>| {
        from.copy_to(&Vault::open(storage, &password())?, &ids, &Silent, &Cancel::new()).map(drop)
    };
    at_every_system_call("copy", &empty, &[fs::Kill::Before, fs::Kill::After], &copy, &|storage, story| {
        forget_locks(&**from.storage());
        let report = check_all(&open(storage.clone()));
        assert!(report.is_clean(), "{story}: {:#?}", report.errors);
        copy(storage.clone()).unwrap();
        whole(&open(storage), &points, story);
    });
}

/// A pack whose writer was killed before it was durable, named by no index: repair relies on it only once it is.
#[test]
fn a_pack_that_repair_found_survives_a_power_loss() {
    let (base, points) = base();
    let dir = backstay_testing::quick_dir();
    let place = dir.path().join("vault");
    lay_out(&base, &place);
    let aside = backstay_testing::quick_dir();
    let faulty = Arc::new(fs::Faulty::with_power_loss(Arc::new(Host), aside.path()).unwrap());
    let storage = Arc::new(Local::open_on(faulty.clone(), &place).unwrap());
    for name in names(&base).iter().filter(|n| n.starts_with("index/")) {
        storage.delete(name).unwrap();
    }
    // As if each pack had just been renamed to its name, and its folder not synced.
    for name in names(&base).iter().filter(|n| n.starts_with("data/")) {
        let path = place.join(name);
        let (folder, file) = (path.parent().unwrap(), path.file_name().unwrap());
        let folder = fs::FileSystem::open_root(&*faulty, folder).unwrap();
        let other = std::ffi::OsStr::new("elsewhere");
        for (from, to) in [(file, other), (other, file)] {
            let (here, how) = (folder.as_fd(), fs::Rename::NoReplace);
            fs::FileSystem::rename(&*faulty, here, from, here, to, how).unwrap();
            if to == other {
                fs::FileSystem::sync(&*faulty, folder.as_fd()).unwrap();
            }
        }
    }
    repair(&open(storage), false).unwrap();
    faulty.power_loss().unwrap();
    let storage = Arc::new(Local::open(&place).unwrap());
    forget_locks(&*storage);
    whole(&open(storage), &points, "after repair and a power loss");
}
