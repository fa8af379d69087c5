//! restic as the witness: it reads what we changed, we work on what it wrote, and both at once do no harm.

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

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use backstay_model::{Cancel, Code, Silent};
use backstay_storage::Local;
use backstay_testing::{Restic, Rustic, fixtures};
use backstay_tree::compare;
use backstay_vault::repair::{Repair, RepairOptions};
use backstay_vault::{Id, Vault};
use maintenance_support::*;

fn local(path: &Path) -> Arc<Local> {
    Arc::new(Local::create(path).unwrap())
}

/// restic keeps nothing about the root of a tree, and restic before 0.15 restores no holes.
fn as_restic_restores() -> compare::Options {
    compare::Options { root: false, holes: false, ..compare::Options::default() }
}

/// restic and rustic (where it is installed) find nothing in the repository,
/// and both restore the snapshot as the given tree.
#[track_caller]
fn witness((restic, place): (&Restic, &Path), snapshot: &Id, sub: &str, source: &Path, step: &str) {
    let out = restic.check_read_data();
    let said = format!("{}{}", out.stdout, out.stderr);
    assert!(out.is_ok() && said.contains("no errors were found"), "{step}: {said}");
    if let Some(rustic) = Rustic::find(place, PASSWORD) {
        let out = rustic.check_read_data().ok();
        assert!(!out.stderr.contains("ERROR") && !out.stdout.contains("ERROR"), "{step}: {out:?}");
    }
    let target = backstay_testing::temp_dir();
    if let Some(rustic) = Rustic::find(place, PASSWORD) {
        let by_rustic = backstay_testing::temp_dir();
        rustic.restore(&snapshot.to_string(), by_rustic.path()).ok();
        let differences = compare::trees(source, &by_rustic.path().join(sub), &as_restic_restores());
        assert!(differences.is_empty(), "{step}, rustic: {differences:#?}");
    }
    restic.restore(&snapshot.to_string(), target.path()).ok();
    let differences = compare::trees(source, &target.path().join(sub), &as_restic_restores());
    assert!(differences.is_empty(), "{step}: {differences:#?}");
}

fn latest(vault: &Vault) -> Id {
    vault.snapshots().unwrap().last().unwrap().0
}

/// Every operation of ours on a repository that restic wrote, with restic's word after each.
fn on_restics_repository(version: u32, options: &[&str]) {
    let dir = backstay_testing::temp_dir();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let mut files = fixtures::small(&source, 11, 120);
    let repo = dir.path().join("repo");
    let restic = Restic::new(&repo, PASSWORD);
    restic.init_version(version);
    for seed in 0..5 {
        restic.backup(&source, options);
        files = fixtures::change(&source, seed, &files);
    }
    restic.backup(&source, options);
    let vault = open(local(&repo));
    let before = read_all(&vault).unwrap();
    assert_eq!(before.len(), 6);
    let report = clean(&vault);
    assert!(report.read_bytes > 0 && report.note_count == 0, "{report:#?}");

    // Snapshots that restic forgot.
    restic.run(["forget", "--keep-last", "3", "--group-by", ""]).ok();
    let kept: Vec<_> = vault.snapshots().unwrap().iter().map(|(_, s)| s.time).collect();
    let expected: std::collections::BTreeMap<_, _> =
        before.into_iter().filter(|(time, _)| kept.contains(time)).collect();
    let (plan, outcome) = prune(&vault, thorough()).unwrap();
    assert!(plan.unused.count > 0 && outcome.deleted.count > 0, "{plan:#?}");
    assert_eq!(clean(&vault).note_count, 0);
    assert_eq!(read_all(&vault).unwrap(), expected);
    witness((&restic, &repo), &latest(&vault), "", &source, "after prune");

    // Ours added to it, restic's again, then ours forgotten.
    backup(&vault, &source, 1_000_000).unwrap();
    witness((&restic, &repo), &latest(&vault), "content", &source, "after our backup");
    fixtures::change(&source, 77, &files);
    let id: Id = restic_id(&vault, &restic.backup(&source, options));
    witness((&restic, &repo), &id, "", &source, "after both");
    let ours: Vec<Id> = vault
        .snapshots()
        .unwrap()
        .iter()
        .filter(|(_, s)| s.tag("number").is_some())
        .map(|(i, _)| *i)
        .collect();
    vault.forget(&ours).unwrap();
    prune(&vault, thorough()).unwrap();
    witness((&restic, &repo), &id, "", &source, "after our backup was pruned");

    // Copied to a vault with another key, and one of format 1 and 2 each.
    for (n, target_version) in [1, 2].into_iter().enumerate() {
        let place = dir.path().join(format!("copy-{n}"));
        let other = Restic::new(&place, PASSWORD);
        other.init_version(target_version);
        let target = open(local(&place));
        let ids: Vec<Id> = vault.snapshots().unwrap().iter().map(|(i, _)| *i).collect();
        let first = vault.copy_to(&target, &ids, &Silent, &Cancel::new()).unwrap();
        assert_eq!(first.copied.len(), ids.len());
        let again = vault.copy_to(&target, &ids, &Silent, &Cancel::new()).unwrap();
        assert_eq!((again.copied.len(), again.present.len(), again.blobs.count), (0, ids.len(), 0));
        assert_eq!(read_all(&vault).unwrap(), read_all(&target).unwrap());
        let copied = first.copied.iter().find(|(from, _)| *from == id).unwrap().1;
        witness((&other, &place), &copied, "", &source, "the copy");
        assert_eq!(clean(&target).note_count, 0);
    }

    // An index that is lost altogether is built anew from the packs.
    for name in names(&**vault.storage()).iter().filter(|n| n.starts_with("index/")) {
        vault.storage().delete(name).unwrap();
    }
    assert!(!check_all(&vault).is_clean());
    let repair = Repair::plan(&vault, RepairOptions::default(), &Silent, &Cancel::new()).unwrap();
    assert!(!repair.value().found_packs.is_empty() && repair.value().affected.is_empty());
    repair.apply(&Silent, &Cancel::new()).unwrap();
    clean(&vault);
    witness((&restic, &repo), &id, "", &source, "after repair");
    restic.forget_and_prune(1);
    clean(&vault);
    witness((&restic, &repo), &latest(&vault), "", &source, "after restic's own prune");
}

fn restic_id(vault: &Vault, short: &str) -> Id {
    vault.snapshots().unwrap().iter().map(|(id, _)| *id).find(|id| id.to_string().starts_with(short)).unwrap()
}

#[test]
fn a_repository_of_version_2() {
    on_restics_repository(2, &[]);
}

#[test]
fn a_repository_of_version_2_without_compression() {
    on_restics_repository(2, &["--compression", "off"]);
}

#[test]
fn a_repository_of_version_1() {
    on_restics_repository(1, &[]);
}

#[test]
fn a_vault_of_ours_after_every_prune() {
    let dir = backstay_testing::temp_dir();
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let mut files = fixtures::small(&source, 3, 150);
    let place = dir.path().join("vault");
    let vault = new_vault(local(&place));
    let restic = Restic::new(&place, PASSWORD);
    for number in 0..6 {
        files = fixtures::change(&source, u64::try_from(number).unwrap(), &files);
        let id = backup(&vault, &source, number).unwrap();
        let all = vault.snapshots().unwrap();
        if all.len() > 3 {
            vault.forget(&[all[0].0]).unwrap();
        }
        let options = if number % 2 == 0 { thorough() } else { Default::default() };
        assert_eq!(prune(&vault, options).unwrap().1.deferred, None);
        witness((&restic, &place), &id, "content", &source, &format!("backup {number}"));
    }
}

/// restic's prune waits for nobody, so it is tried some times. It may find a lock, and nothing else wrong.
fn theirs_pruned(restic: &Restic) -> bool {
    (0..40).any(|_| {
        let words = ["forget", "--keep-last", "3", "--group-by", "host,tags", "--prune", "--max-unused", "0"];
        let out = restic.run(words);
        assert!(out.is_ok() || out.stderr.contains("locked"), "{}", out.stderr);
        out.is_ok()
    })
}

/// Now and then nobody works, so that a prune of either side finds the vault unlocked.
fn pause(n: i64) {
    std::thread::sleep(Duration::from_millis([20, 150, 50, 600, 100, 1000][usize::try_from(n % 6).unwrap()]));
}

/// Loops of restic and of Backstay on one vault at once: backups, forgets and prunes of both. Whoever meets the
/// other's lock waits or comes again; nobody harms anybody.
#[test]
fn restic_and_backstay_at_once_on_one_vault() {
    let dir = backstay_testing::temp_dir();
    let place = dir.path().join("vault");
    let vault = new_vault(local(&place));
    let stop = AtomicBool::new(false);
    let counts: [AtomicU64; 5] = Default::default();
    let [ours, our_prunes, deferred, theirs, their_prunes] = &counts;
    let end = Instant::now() + Duration::from_secs(30);
    let running = || Instant::now() < end && !stop.load(Ordering::Relaxed);
    let trees: Vec<_> = (0..2)
        .map(|n| {
            let tree = dir.path().join(format!("tree-{n}"));
            std::fs::create_dir(&tree).unwrap();
            let files = fixtures::small(&tree, n, 60);
            (tree, files)
        })
        .collect();
    let [(our_tree, our_files), (their_tree, their_files)] = &trees[..] else { unreachable!() };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut files = our_files.clone();
            for number in 0.. {
                if !running() {
                    break;
                }
                match backup(&vault, our_tree, number) {
                    Ok(_) => _ = ours.fetch_add(1, Ordering::Relaxed),
                    Err(e) => assert!(matches!(e.code(), Code::VaultLocked | Code::LeaseLost), "{e:?}"),
                }
                files = fixtures::change(our_tree, u64::try_from(number).unwrap(), &files);
                pause(number);
            }
        });
        scope.spawn(|| {
            for n in 0.. {
                if !running() {
                    break;
                }
                let all = vault.snapshots().unwrap();
                let mine: Vec<Id> =
                    all.iter().filter(|(_, s)| s.tag("number").is_some()).map(|(id, _)| *id).collect();
                vault.forget(&mine[..mine.len().saturating_sub(2)]).unwrap();
                match prune(&vault, thorough()) {
                    Ok((_, outcome)) if outcome.deferred.is_some() => {
                        _ = deferred.fetch_add(1, Ordering::Relaxed)
                    }
                    Ok(_) => _ = our_prunes.fetch_add(1, Ordering::Relaxed),
                    Err(e) => assert_eq!(e.code(), Code::VaultLocked, "{e:?}"),
                }
                pause(n + 3);
            }
        });
        scope.spawn(|| {
            let restic = Restic::new(&place, PASSWORD);
            let mut files = their_files.clone();
            for seed in 100.. {
                if !running() {
                    break;
                }
                let mut command = restic.command(["backup", "."]);
                let out = backstay_testing::program::run(command.current_dir(their_tree));
                if out.is_ok() {
                    theirs.fetch_add(1, Ordering::Relaxed);
                } else {
                    assert!(out.stderr.contains("locked"), "{}", out.stderr);
                }
                files = fixtures::change(their_tree, seed, &files);
                if seed % 2 == 0 {
                    theirs_pruned(&restic).then(|| their_prunes.fetch_add(1, Ordering::Relaxed));
                }
                pause(i64::try_from(seed).unwrap());
            }
        });
    });
    let [ours, our_prunes, deferred, theirs, their_prunes] = counts.map(AtomicU64::into_inner);
    println!(
        "our backups {ours}, our prunes {our_prunes} ({deferred} more deferred), \
         restic's backups {theirs}, restic's prunes {their_prunes}"
    );
    assert!(ours > 2 && theirs > 2 && our_prunes > 0 && their_prunes > 0, "the loops did not meet");
    assert!(names(&**vault.storage()).iter().all(|n| !n.starts_with("locks/")), "locks left");
    prune(&vault, thorough()).unwrap();
    assert_eq!(clean(&vault).note_count, 0);
    read_all(&vault).unwrap();
    let restic = Restic::new(&place, PASSWORD);
    let id = backup(&vault, our_tree, 1_000_000).unwrap();
    witness((&restic, &place), &id, "content", our_tree, "at the end");
}
