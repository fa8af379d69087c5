//! Every bit, every length, every swap: damage is detected or proved harmless, and never gives a wrong byte.
//!
//! A case is *detected* when opening fails or the check with all data finds an error. It is *harmless* when the check
//! finds nothing and every point still reads exactly as before. It is *a point less* when a snapshot object is deleted:
//! the other points read as before (the catalog tells that one is missing). Anything else fails the test.

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

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use backstay_model::{Cancel, Code, ProblemKind, Secret, Silent};
use backstay_storage::{Memory, Put, Storage};
use backstay_testing::fixtures::{self, Random};
use backstay_tree::fs::Host;
use backstay_vault::key::Cost;
use backstay_vault::restore::{RestoreOptions, restore};
use backstay_vault::{Strength, Vault};
use jiff::Timestamp;
use maintenance_support::*;

type Points = BTreeMap<Timestamp, Everything>;

/// A tiny vault with everything a vault can hold: two snapshots, two keys, packs of data and trees, compressed and
/// not, two index objects, a held lock.
fn tiny() -> (Memory, Points) {
    let dir = backstay_testing::temp_dir();
    let storage = Arc::new(Memory::new());
    let vault = new_vault(storage.clone());
    vault.add_key(&Secret::new("another"), Cost::RANDOM).unwrap();
    let mut random = Random::new(7);
    std::fs::create_dir(dir.path().join("folder")).unwrap();
    std::fs::write(dir.path().join("text"), random.text(700)).unwrap();
    std::fs::write(dir.path().join("folder/random"), random.bytes(500)).unwrap();
    std::fs::write(dir.path().join("folder/empty"), b"").unwrap();
    std::os::unix::fs::symlink("text", dir.path().join("link")).unwrap();
    backup(&vault, dir.path(), 1).unwrap();
    std::fs::write(dir.path().join("folder/more"), random.text(300)).unwrap();
    backup(&vault, dir.path(), 2).unwrap();
    let points = read_all(&vault).unwrap();
    let lock = vault.lock(Strength::Shared, Duration::ZERO, &Cancel::new()).unwrap();
    let base = copy_of(&*storage);
    lock.release().unwrap();
    (base, points)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Detected,
    Harmless,
    PointLess,
}

/// Whether opening looks at the object, so that it must be opened anew.
fn opens(name: &str) -> bool {
    name == "config" || name.starts_with("keys/")
}

/// Judges a vault with damage. Panics when damage went unseen, or when a wrong byte was read.
fn judge(
    vault: Result<Vault, backstay_model::Error>,
    points: &Points,
    story: &dyn Fn() -> String,
) -> Verdict {
    let Ok(vault) = vault else { return Verdict::Detected };
    let report = check_all(&vault);
    // Whatever the check says: what can be read is right.
    let mut wrong = false;
    let mut complete = true;
    let mut seen = 0;
    match (vault.reader(), vault.snapshots_and_damage()) {
        (Ok(reader), Ok((snapshots, damaged))) => {
            complete &= damaged.is_empty();
            for (id, snapshot) in snapshots {
                seen += 1;
                match read(&reader, &id) {
                    Ok(everything) => wrong |= points.get(&snapshot.time) != Some(&everything),
                    Err(_) => complete = false,
                }
            }
        }
        _ => complete = false,
    }
    assert!(!wrong, "{}: a point reads differently from what was saved", story());
    if !report.is_clean() {
        return Verdict::Detected;
    }
    assert!(complete, "{}: the check found nothing, but not everything can be read", story());
    if seen == points.len() { Verdict::Harmless } else { Verdict::PointLess }
}

/// What to do to the objects of a vault.
struct Case {
    story: String,
    /// Objects with their new bytes; none: deleted.
    change: Vec<(String, Option<Vec<u8>>)>,
}

/// Runs all cases on several threads, each on its own copy. Counts verdicts by kind of object.
fn run(base: &Memory, points: &Points, count: usize, case: &(dyn Fn(usize) -> Case + Sync)) {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut totals: BTreeMap<(String, Verdict), usize> = BTreeMap::new();
    let parts: Vec<_> = std::thread::scope(|scope| {
        let work = || {
            let storage = Arc::new(copy_of(base));
            let vault = open(storage.clone());
            let mut counts: BTreeMap<(String, Verdict), usize> = BTreeMap::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return counts;
                }
                let Case { story, change } = case(n);
                for (name, bytes) in &change {
                    match bytes {
                        Some(bytes) => storage.put(name, bytes, Put::Replace).unwrap(),
                        None => storage.delete(name).unwrap(),
                    }
                }
                let fresh = change.iter().any(|(name, _)| opens(name));
                let vault = if fresh { Vault::open(storage.clone(), &password()) } else { Ok(vault.clone()) };
                let verdict = judge(vault, points, &|| story.clone());
                let folder = change[0].0.split('/').next().unwrap().to_owned();
                *counts.entry((folder, verdict)).or_default() += 1;
                for (name, _) in &change {
                    storage.put(name, &base.get(name).unwrap(), Put::Replace).unwrap();
                }
            }
        };
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        handles.into_iter().map(|h| h.join().unwrap()).collect()
    });
    for part in parts {
        for (key, n) in part {
            *totals.entry(key).or_default() += n;
        }
    }
    let sum = |v: Verdict| totals.iter().filter(|((_, w), _)| *w == v).map(|(_, n)| n).sum::<usize>();
    println!(
        "{count} cases: {} detected, {} harmless, {} a point less",
        sum(Verdict::Detected),
        sum(Verdict::Harmless),
        sum(Verdict::PointLess)
    );
    for ((folder, verdict), n) in &totals {
        println!("  {folder}: {n} {verdict:?}");
    }
    assert_eq!(totals.values().sum::<usize>(), count);
}

/// All bytes of all objects, as (object, position).
fn positions(base: &Memory) -> Vec<(String, usize)> {
    let all = names(base).into_iter().map(|name| {
        let size = usize::try_from(base.size(&name).unwrap()).unwrap();
        (0..size).map(move |at| (name.clone(), at))
    });
    all.flatten().collect()
}

#[test]
fn every_bit_of_every_object_turned_over() {
    let (base, points) = tiny();
    let bytes = positions(&base);
    println!("{} objects, {} bytes", names(&base).len(), bytes.len());
    run(&base, &points, bytes.len() * 8, &|n| {
        let (name, at) = &bytes[n / 8];
        let mut changed = base.get(name).unwrap();
        changed[*at] ^= 1 << (n % 8);
        let story = format!("bit {} of byte {at} of {name}", n % 8);
        Case { story, change: vec![(name.clone(), Some(changed))] }
    });
}

#[test]
fn every_object_cut_at_every_length() {
    let (base, points) = tiny();
    let bytes = positions(&base);
    run(&base, &points, bytes.len(), &|n| {
        let (name, at) = &bytes[n];
        let cut = base.get(name).unwrap()[..*at].to_vec();
        Case { story: format!("{name} cut at {at}"), change: vec![(name.clone(), Some(cut))] }
    });
}

#[test]
fn every_object_lengthened() {
    let (base, points) = tiny();
    let names = names(&base);
    run(&base, &points, names.len(), &|n| {
        let mut longer = base.get(&names[n]).unwrap();
        longer.extend_from_slice(b"more");
        Case { story: format!("{} lengthened", names[n]), change: vec![(names[n].clone(), Some(longer))] }
    });
}

#[test]
fn every_two_objects_of_a_folder_swapped_or_one_put_in_the_others_place() {
    let (base, points) = tiny();
    let all = names(&base);
    let folder = |n: &String| n.split('/').next().unwrap().to_owned();
    let pairs: Vec<(String, String)> = all
        .iter()
        .flat_map(|a| all.iter().map(move |b| (a.clone(), b.clone())))
        .filter(|(a, b)| a != b && folder(a) == folder(b))
        .collect();
    run(&base, &points, pairs.len() * 2, &|n| {
        let (a, b) = &pairs[n / 2];
        let (bytes_a, bytes_b) = (base.get(a).unwrap(), base.get(b).unwrap());
        let mut change = vec![(a.clone(), Some(bytes_b))];
        if n % 2 == 0 {
            change.push((b.clone(), Some(bytes_a)));
        }
        Case { story: format!("{b} in the place of {a}, {} other", n % 2), change }
    });
}

#[test]
fn every_object_and_every_two_deleted() {
    let (base, points) = tiny();
    let all = names(&base);
    run(&base, &points, all.len() * all.len(), &|n| {
        let (a, b) = (&all[n / all.len()], &all[n % all.len()]);
        let mut change = vec![(a.clone(), None)];
        if a != b {
            change.push((b.clone(), None));
        }
        Case { story: format!("{a} and {b} deleted"), change }
    });
}

/// With any one pack lost, all that does not need it is restored, and what is lost is listed by path: the same paths
/// by the check and by the restore.
#[test]
fn with_one_pack_lost_the_rest_is_restored_and_what_is_lost_is_listed() {
    let dir = backstay_testing::temp_dir();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let storage = Arc::new(Memory::new());
    let vault = new_vault(storage.clone());
    let mut files = fixtures::small(&source, 21, 40);
    for number in 0..4 {
        backup(&vault, &source, number).unwrap();
        files = fixtures::change(&source, u64::try_from(number).unwrap(), &files);
    }
    let base = copy_of(&*storage);
    let points = read_all(&vault).unwrap();
    let mut lost_in_all = 0;
    for pack in names(&base).iter().filter(|n| n.starts_with("data/")) {
        storage.delete(pack).unwrap();
        let report = check_all(&vault);
        assert!(!report.is_clean());
        let reader = vault.reader().unwrap();
        for (id, snapshot) in vault.snapshots().unwrap() {
            let listed = report.affected.iter().find(|p| p.snapshot == id);
            let lost: BTreeSet<String> =
                listed.map(|p| p.paths.iter().cloned().collect()).unwrap_or_default();
            assert_eq!(listed.map_or(0, |p| p.count), u64::try_from(lost.len()).unwrap());
            lost_in_all += lost.len();
            let target = dir.path().join("target");
            std::fs::create_dir(&target).unwrap();
            let fs: Arc<dyn backstay_tree::fs::FileSystem> = Arc::new(Host);
            let (options, cancel) = (RestoreOptions::default(), Cancel::new());
            let result = restore(&reader, &fs, &snapshot.tree, None, &target, &options, &Silent, &cancel);
            let told: BTreeSet<String> = match result {
                Err(e) => {
                    assert_eq!(e.code(), Code::VaultDamaged);
                    BTreeSet::from(["/".to_owned()])
                }
                Ok(outcome) => outcome
                    .problems
                    .iter()
                    .filter(|p| p.kind == ProblemKind::Lost)
                    // A root that is lost has no path.
                    .map(|p| if p.path.is_empty() { "/".to_owned() } else { p.path.clone() })
                    .collect(),
            };
            let plain = |set: &BTreeSet<String>| -> BTreeSet<String> {
                set.iter()
                    .map(|p| if p == "/" { p.clone() } else { p.trim_end_matches('/').to_owned() })
                    .collect()
            };
            assert_eq!(plain(&told), plain(&lost), "pack {pack}, snapshot {}", id.short());
            for (path, what) in &points[&snapshot.time] {
                let gone = lost.iter().any(|l| l == "/" || path.starts_with(l.trim_end_matches('/')));
                if what.starts_with("Some(File)") && !gone {
                    let bytes = std::fs::read(target.join(path)).unwrap();
                    assert!(
                        what.ends_with(&backstay_vault::Id::of(&bytes).to_string()),
                        "{}",
                        path.display()
                    );
                }
            }
            std::fs::remove_dir_all(&target).unwrap();
        }
        storage.put(pack, &base.get(pack).unwrap(), Put::IfAbsent).unwrap();
    }
    println!("{lost_in_all} lost paths listed");
    assert!(lost_in_all > 100);
    clean(&vault);
}
