//! A backup stopped at every point: by the storage, by the file system below it, with and without loss of what was
//! not synced, and by real kills. Afterwards the vault is sound, earlier points are whole, and the next backup works
//! without anybody doing anything.

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

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use backstay_model::{Cancel, Result, Silent};
use backstay_storage::{Faulty as FaultyStorage, Local, Memory, Put, Storage};
use backstay_testing::fixtures::{self, Random};
use backstay_testing::temp_dir;
use backstay_tree::fs::{Faulty, FileSystem, FileTime, Host, Kill, Stat};
use backstay_vault::backup::{DEFAULT_LEVEL, SnapshotDetails, Substitute, TreeOptions};
use backstay_vault::check::{CheckOptions, check};
use backstay_vault::{Folder, Id, Strength, Vault};
use support::hooked::Hooked;
use support::{Job, Parent, bury_locks, names, new_vault, open, quick_dir, verify};

#[track_caller]
fn is_clean(vault: &Vault, read_data: bool, what: &str) {
    let report = check(vault, CheckOptions { read_data }, &Silent, &Cancel::new()).unwrap();
    assert!(report.is_clean(), "{what}: {:#?}", report.errors);
}

/// The snapshots with their trees, by id.
fn points(vault: &Vault) -> BTreeMap<Id, Id> {
    vault.snapshots().unwrap().into_iter().map(|(id, s)| (id, s.tree)).collect()
}

/// A backup in named phases.
fn backup(storage: Arc<dyn Storage>, home: &Path, index: &Path, phase: &dyn Fn(&str)) -> Result<()> {
    phase("lock");
    let vault = Vault::open(storage, &support::secret())?;
    let lock = vault.lock(Strength::Shared, Duration::ZERO, &Cancel::new())?;
    phase("backup");
    Job::new(&vault, home).index(index).run_under(&lock, || phase("commit"))?;
    phase("unlock");
    lock.release()
}

/// A backup of two passes with documents between them, one of which fails; a file has a substitute, another changes
/// between the passes (or looks so).
fn backup_twice(storage: Arc<dyn Storage>, home: &Path, index: &Path, phase: &dyn Fn(&str)) -> Result<()> {
    phase("lock");
    let vault = Vault::open(storage, &support::secret())?;
    let lock = vault.lock(Strength::Shared, Duration::ZERO, &Cancel::new())?;
    phase("first pass");
    let parent = vault.snapshots()?.last().map(|(id, _)| *id);
    let mut writer = vault.begin(&lock, DEFAULT_LEVEL, &Cancel::new())?;
    let second = Arc::new(AtomicBool::new(false));
    let is_second = Arc::clone(&second);
    let host: Arc<dyn FileSystem> = Arc::new(Hooked::new(Arc::new(Host)).see(move |name, stat| {
        let changed = name == "large" && is_second.load(Ordering::SeqCst);
        Stat { mtime: if changed { FileTime::default() } else { stat.mtime }, ..stat }
    }));
    let options = TreeOptions { parent, file_index: Some(index.to_owned()), ..TreeOptions::default() };
    let defer = BTreeSet::from([PathBuf::from("app.db")]);
    writer.save_tree_first("content", &host, home, options, &defer, &Silent)?;
    phase("documents");
    let dump = Random::new(7).text(3 << 20);
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("broken"))
        }
    }
    let failed = writer.save_stream("databases/broken", &mut dump.as_slice().chain(Broken), 1)?;
    assert!(failed.is_err());
    writer.save_stream("databases/whole", &mut dump.as_slice(), 1)?.unwrap();
    phase("second pass");
    second.store(true, Ordering::SeqCst);
    let substitute = Substitute { content: home.with_file_name("substitute"), leave_out_siblings: true };
    let substitutes = BTreeMap::from([(PathBuf::from("app.db"), substitute)]);
    let done = writer.save_tree_again("content", &host, &substitutes, &Silent)?;
    assert!(done.not_substituted.is_empty());
    phase("commit");
    let paths = vec![home.display().to_string()];
    let details = SnapshotDetails { time: writer.started(), paths, tags: Vec::new(), parent };
    writer.commit(&lock, details, &Silent)?;
    phase("unlock");
    lock.release()
}

type Backup = fn(Arc<dyn Storage>, &Path, &Path, &dyn Fn(&str)) -> Result<()>;

const SCENARIOS: [(&str, Backup); 3] = [("first", backup), ("second", backup), ("two passes", backup_twice)];

/// What a backup of two passes needs.
fn with_database(home: &Path) {
    fs::write(home.join("app.db"), Random::new(3).bytes(5000)).unwrap();
    fs::write(home.join("app.db-wal"), "its log").unwrap();
    fs::write(home.with_file_name("substitute"), Random::new(4).bytes(9000)).unwrap();
}

/// What must hold after a backup was stopped. `before`: the points there were.
#[track_caller]
fn recovers(
    storage: &Arc<dyn Storage>,
    home: &Path,
    index: &Path,
    before: &BTreeMap<Id, Id>,
    what: &str,
) -> bool {
    bury_locks(storage);
    let vault = open(storage.clone());
    is_clean(&vault, true, what);
    let now = points(&vault);
    assert!(before.iter().all(|(id, tree)| now.get(id) == Some(tree)), "{what}: earlier points are there");
    assert!(now.len() <= before.len() + 1, "{what}");
    // The next backup: no manual step, and as right as one that reads all.
    let next = Job::new(&vault, home).index(index).run().unwrap();
    let full = Job::new(&vault, home).parent(Parent::Nothing).run().unwrap();
    assert_eq!(next.tree, full.tree, "{what}");
    assert_eq!(names(&**storage, "locks"), Vec::<String>::new(), "{what}: dead locks went by themselves");
    verify(&vault);
    now.len() > before.len()
}

// --- the storage stops

fn copy_of(memory: &Memory) -> Memory {
    let copy = Memory::new();
    for name in names(memory, "") {
        copy.put(&name, &memory.get(&name).unwrap(), Put::IfAbsent).unwrap();
    }
    copy
}

#[test]
fn stopped_at_every_call_of_the_storage() {
    let dir = temp_dir();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    let mut files = fixtures::small(&home, 51, 60);
    // More than one pack of data.
    fs::write(home.join("large"), Random::new(1).bytes(36 << 20)).unwrap();
    let empty = Memory::new();
    new_vault(Arc::new(empty.clone()));
    let index = dir.path().join("index");
    let mut told = Vec::new();
    let mut base = empty;
    with_database(&home);
    for (scenario, backup) in SCENARIOS {
        let before = points(&open(Arc::new(base.clone())));
        let kept = fs::read(&index).ok();
        let restore_index = |to: &Path| match &kept {
            Some(bytes) => fs::write(to, bytes).unwrap(),
            None => fs::remove_file(to).unwrap_or_default(),
        };
        // How many calls there are.
        let whole = copy_of(&base);
        let faulty = Arc::new(FaultyStorage::new(Arc::new(whole.clone())));
        backup(faulty.clone(), &home, &index, &|_| ()).unwrap();
        let calls = faulty.mutating_calls();
        let [next, hit, committed] = [const { AtomicUsize::new(0) }; 3];
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let (next, hit, committed) = (&next, &hit, &committed);
                let (home, base, before) = (&home, &base, &before);
                let own = dir.path().join(format!("index-{thread}"));
                let restore_index = &restore_index;
                scope.spawn(move || {
                    loop {
                        let n = next.fetch_add(1, Ordering::SeqCst) as u64;
                        let (call, after) = (n / 2 + 1, n % 2 == 1);
                        // How the data is spread over packs varies a little: one call more, one less.
                        if call > calls + 1 {
                            return;
                        }
                        restore_index(&own);
                        let inner: Arc<dyn Storage> = Arc::new(copy_of(base));
                        let faulty = Arc::new(FaultyStorage::new(inner.clone()));
                        faulty.kill_at(call, after);
                        let result = backup(faulty.clone(), home, &own, &|_| ());
                        if !faulty.was_killed() {
                            result.unwrap();
                            continue;
                        }
                        result.unwrap_err();
                        hit.fetch_add(1, Ordering::SeqCst);
                        let what = format!("{scenario}, call {call}, after: {after}");
                        let done = recovers(&inner, home, &own, before, &what);
                        committed.fetch_add(usize::from(done), Ordering::SeqCst);
                    }
                });
            }
        });
        let (hit, committed) = (hit.into_inner(), committed.into_inner());
        // The write of the snapshot (when it was done) and the calls after it (the lock's) leave a new point.
        assert!(hit as u64 >= 2 * calls - 2 && committed >= 2, "{scenario}: {hit} of {calls}, {committed}");
        told.push(format!(
            "{scenario}: {hit} stops, before and after each of {calls} calls; {committed} left a new point"
        ));
        base = whole;
        files = fixtures::change(&home, 1, &files);
        fs::write(home.join("large"), Random::new(2).bytes(36 << 20)).unwrap();
    }
    println!("storage stopped: {}", told.join("; "));
}

// --- the file system below the storage stops

#[derive(Clone, Copy, Debug, PartialEq)]
enum Loss {
    /// Only the process died.
    Nothing,
    /// Power failed: what was not synced is gone.
    All,
    /// Some of it is.
    Some(u64),
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

struct Stop {
    backup: Backup,
    at: u64,
    how: Kill,
    loss: Loss,
}

/// One backup that is stopped; whether it left a new point. None when it came to its end before: how many folders are
/// made for packs depends on their names, which are different each time.
fn stopped(
    base: &Path,
    home: &Path,
    index: Option<&Path>,
    before: &BTreeMap<Id, Id>,
    stop: &Stop,
    what: &str,
) -> Option<bool> {
    let dir = quick_dir();
    let (place, aside) = (dir.path().join("vault"), dir.path().join("aside"));
    copy_tree(base, &place);
    fs::create_dir(&aside).unwrap();
    let own = dir.path().join("index");
    if let Some(index) = index {
        fs::copy(index, &own).unwrap();
    }
    let faulty = Arc::new(Faulty::with_power_loss(Arc::new(Host), &aside).unwrap());
    faulty.kill_at(stop.at, stop.how);
    let storage = Local::open_on(faulty.clone(), &place).and_then(|local| {
        let storage: Arc<dyn Storage> = Arc::new(local);
        (stop.backup)(storage, home, &own, &|_| ())
    });
    if faulty.killed_at().is_none() {
        storage.unwrap();
        return None;
    }
    assert!(storage.is_err(), "{what}: it was stopped");
    match stop.loss {
        Loss::Nothing => {}
        Loss::All => faulty.power_loss().unwrap(),
        Loss::Some(seed) => faulty.power_loss_some(seed).unwrap(),
    }
    drop(faulty);
    let storage: Arc<dyn Storage> = Arc::new(Local::open(&place).unwrap());
    Some(recovers(&storage, home, &own, before, what))
}

#[test]
fn stopped_at_every_change_of_the_file_system_below() {
    let dir = quick_dir();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    let mut files = fixtures::small(&home, 52, 25);
    let base = dir.path().join("base");
    new_vault(Arc::new(Local::create(&base).unwrap()));
    let index = dir.path().join("index");
    with_database(&home);
    for (scenario, backup) in SCENARIOS {
        let kept = (scenario != "first").then(|| {
            fs::copy(&index, dir.path().join("kept")).unwrap();
            dir.path().join("kept")
        });
        let before = points(&open(Arc::new(Local::open(&base).unwrap())));
        let whole = dir.path().join(scenario);
        copy_tree(&base, &whole);
        let faulty = Arc::new(Faulty::new(Arc::new(Host)));
        let local: Arc<dyn Storage> = Arc::new(Local::open_on(faulty.clone(), &whole).unwrap());
        backup(local, &home, &index, &|phase| faulty.phase(phase)).unwrap();
        let calls = faulty.points();
        let mut stops = Vec::new();
        for at in 1..=calls {
            let losses = [Loss::Nothing, Loss::All, Loss::Some(at), Loss::Some(at + 1000)];
            stops.extend(losses.map(|loss| Stop { backup, at, how: Kill::Before, loss }));
            stops.push(Stop { backup, at, how: Kill::After, loss: Loss::Nothing });
            stops.push(Stop { backup, at, how: Kill::After, loss: Loss::Some(at + 2000) });
            stops.push(Stop { backup, at, how: Kill::Torn, loss: Loss::All });
        }
        let [next, hit, committed] = [const { AtomicUsize::new(0) }; 3];
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while let Some(stop) = stops.get(next.fetch_add(1, Ordering::SeqCst)) {
                        let what = format!("{scenario}, call {}, {:?}, {:?}", stop.at, stop.how, stop.loss);
                        let done = stopped(&base, &home, kept.as_deref(), &before, stop, &what);
                        hit.fetch_add(usize::from(done.is_some()), Ordering::SeqCst);
                        committed.fetch_add(usize::from(done == Some(true)), Ordering::SeqCst);
                    }
                });
            }
        });
        let hit = hit.into_inner();
        println!(
            "file system stopped, {scenario}: {hit} stops at {calls} calls {:?}; {} left a new point",
            faulty.phases(),
            committed.into_inner()
        );
        assert!(hit * 10 >= stops.len() * 8, "{hit} of {} stops were hit", stops.len());
        base_moves_on(&base, &whole);
        files = fixtures::change(&home, 1, &files);
    }
}

fn base_moves_on(base: &Path, whole: &Path) {
    fs::remove_dir_all(base).unwrap();
    copy_tree(whole, base);
}

// --- real kills

struct Killer {
    example: PathBuf,
    home: PathBuf,
    index: PathBuf,
}

impl Killer {
    fn command(&self, place: &Path) -> std::process::Command {
        let mut command = std::process::Command::new(&self.example);
        command
            .args([place, &self.home, &self.index])
            .env("BACKSTAY_PASSWORD", support::PASSWORD)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped());
        command
    }

    /// A backup to its end, without a manual step before it; how long it took.
    #[track_caller]
    fn complete(&self, place: &Path, what: &str) -> Duration {
        let begun = Instant::now();
        let output = self.command(place).output().unwrap();
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
        begun.elapsed()
    }

    /// A backup that is killed after so long; whether it was still running.
    fn kill(&self, place: &Path, after: Duration) -> bool {
        let mut child = self.command(place).spawn().unwrap();
        std::thread::sleep(after);
        let ended = child.try_wait().unwrap().is_some();
        child.kill().unwrap();
        child.wait().unwrap();
        !ended
    }
}

/// Kills spread evenly over the duration of a backup, on one vault that lives through all of them, and on new ones.
fn kills(seed: u64, rounds: u32, until: Instant) -> (u32, u32, u32) {
    let dir = temp_dir();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    let mut files = fixtures::small(&home, seed, 250);
    let large = |n: u64| fs::write(home.join("large"), Random::new(seed + n).bytes(12 << 20)).unwrap();
    large(0);
    let killer =
        Killer { example: support::example("snapshot"), home: home.clone(), index: dir.path().join("index") };
    let place = dir.path().join("vault");
    let first = killer.complete(&place, "the first");
    let mut length = Duration::ZERO;
    let (mut done, mut struck, mut left) = (0, 0, 0);
    for round in 0..rounds {
        if Instant::now() > until {
            break;
        }
        done += 1;
        let what = format!("seed {seed}, round {round}");
        // The order of fractions is mixed, so that the bound on time does not cut off the late ones.
        let fraction = f64::from(round * 7 % rounds) / f64::from(rounds);
        if round % 5 == 0 {
            // A new vault: the kill may strike while it is being made.
            let fresh = dir.path().join(format!("fresh-{round}"));
            fs::remove_file(&killer.index).unwrap_or_default();
            struck += u32::from(killer.kill(&fresh, first.mul_f64(fraction)));
            killer.complete(&fresh, &what);
            let vault = open(Arc::new(Local::open(&fresh).unwrap()));
            is_clean(&vault, true, &what);
            assert_eq!(names(&**vault.storage(), "locks"), Vec::<String>::new(), "{what}");
            fs::remove_dir_all(fresh).unwrap();
            continue;
        }
        files = fixtures::change(&home, u64::from(round), &files);
        large(u64::from(round));
        let before = points(&open(Arc::new(Local::open(&place).unwrap())));
        let planned = if length.is_zero() { first } else { length };
        struck += u32::from(killer.kill(&place, planned.mul_f64(fraction)));
        let vault = open(Arc::new(Local::open(&place).unwrap()));
        is_clean(&vault, round % 10 == 1, &what);
        let now = points(&vault);
        assert!(before.iter().all(|(id, tree)| now.get(id) == Some(tree)), "{what}");
        left += u32::from(now.len() > before.len());
        let took = killer.complete(&place, &what);
        if length.is_zero() {
            length = took;
        }
        assert_eq!(names(&**vault.storage(), "locks"), Vec::<String>::new(), "{what}");
    }
    let vault = open(Arc::new(Local::open(&place).unwrap()));
    let full = Job::new(&vault, &home).parent(Parent::Nothing).run().unwrap();
    let newest = vault.snapshots().unwrap();
    let newest = newest.iter().rev().nth(1).unwrap();
    let saved = vault.reader().unwrap().find(&newest.1.tree, Path::new("content")).unwrap();
    assert_eq!(saved.subtree, Some(full.tree), "what the last one saved is what is there");
    support::restic_check(&place);
    (done, struck, left)
}

#[test]
fn a_hundred_real_kills() {
    support::example("snapshot");
    let until = Instant::now() + Duration::from_secs(75);
    let totals = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|t| scope.spawn(move || kills(60 + t, 50, until))).collect();
        threads
            .into_iter()
            .map(|t| t.join().unwrap())
            .fold((0, 0, 0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2))
    });
    let (done, struck, left) = totals;
    println!("{done} kills, {struck} struck a running backup, {left} left a new point");
    assert!(done >= 40, "{done} kills within the time");
    assert!(struck * 10 >= done * 6, "{struck} of {done} struck");
}

#[test]
fn a_dead_lock_goes_by_itself_and_a_living_one_does_not() {
    let (memory, vault) = support::memory_vault();
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    let living = vault.lock(Strength::Shared, Duration::ZERO, &Cancel::new()).unwrap();
    let error = vault.lock(Strength::Exclusive, Duration::ZERO, &Cancel::new()).unwrap_err();
    assert_eq!(error.code(), backstay_model::Code::VaultLocked);
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    living.check().unwrap();
    assert_eq!(bury_locks(&storage), 1);
    let exclusive = vault.lock(Strength::Exclusive, Duration::ZERO, &Cancel::new()).unwrap();
    assert_eq!(names(&memory, "locks").len(), 1);
    exclusive.release().unwrap();
    assert_eq!(living.check().unwrap_err().code(), backstay_model::Code::LeaseLost);
    assert_eq!(vault.ids(Folder::Locks).unwrap(), []);
}
