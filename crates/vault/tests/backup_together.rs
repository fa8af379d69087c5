//! Several writers on one vault, of Backstay and of restic, at once; and writers whose lock was taken away.

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
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use backstay_model::{Cancel, Code, Result, Silent};
use backstay_storage::{Local, Object, Put, Storage};
use backstay_testing::fixtures::{self, Random};
use backstay_testing::{Restic, temp_dir};
use backstay_vault::prune::{Prune, PruneOptions};
use backstay_vault::{Folder, Strength, Vault};
use support::{Done, Job, PASSWORD, local_vault, names, open, put_lock, restic_check, verify};

/// A backup that waits for others to finish.
fn patient(vault: &Vault, job: &Job<'_>) -> Done {
    let lock = vault.lock(Strength::Shared, Duration::from_secs(60), &Cancel::new()).unwrap();
    let done = job.run_under(&lock, || ()).unwrap();
    lock.release().unwrap();
    done
}

#[test]
fn backups_of_backstay_and_restic_and_prunes_at_once_do_no_harm() {
    let dir = temp_dir();
    let place = dir.path().join("vault");
    local_vault(&place);
    let over = AtomicBool::new(false);
    let [ours, theirs, refused, prunes, deferred] = [const { AtomicU32::new(0) }; 5];
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2u64)
            .map(|n| {
                let (place, ours) = (&place, &ours);
                let home = dir.path().join(format!("home-{n}"));
                scope.spawn(move || {
                    fs::create_dir(&home).unwrap();
                    let mut files = fixtures::small(&home, n, 80);
                    let vault = open(Arc::new(Local::open(place).unwrap()));
                    let index = home.with_extension("index");
                    for round in 0..8 {
                        let done = patient(&vault, &Job::new(&vault, &home).index(&index));
                        ours.fetch_add(1, Ordering::SeqCst);
                        files = fixtures::change(&home, round, &files);
                        if round % 3 == 2 {
                            // Something for prune to do.
                            let _lock = vault
                                .lock(Strength::Shared, Duration::from_secs(60), &Cancel::new())
                                .unwrap();
                            vault.forget(&[done.id]).unwrap();
                        }
                    }
                })
            })
            .collect();
        let (over, place) = (&over, &place);
        let restic_home = dir.path().join("restic-home");
        let (theirs, refused, prunes, deferred) = (&theirs, &refused, &prunes, &deferred);
        scope.spawn(move || {
            fs::create_dir(&restic_home).unwrap();
            fixtures::small(&restic_home, 77, 60);
            let restic = Restic::new(place, PASSWORD);
            let mut round = 0;
            while !over.load(Ordering::SeqCst) {
                fs::write(restic_home.join("changing"), Random::new(round).bytes(20_000)).unwrap();
                round += 1;
                let mut command = restic.command(["backup", "."]);
                let out = command.current_dir(&restic_home).output().unwrap();
                let text = String::from_utf8_lossy(&out.stderr);
                match out.status.success() {
                    true => theirs.fetch_add(1, Ordering::SeqCst),
                    // It does not wait for the exclusive lock of a prune.
                    false => {
                        assert!(text.contains("already locked"), "{text}");
                        refused.fetch_add(1, Ordering::SeqCst)
                    }
                };
            }
        });
        scope.spawn(move || {
            let vault = open(Arc::new(Local::open(place).unwrap()));
            while !over.load(Ordering::SeqCst) {
                let options = PruneOptions {
                    max_unused_percent: 0,
                    wait: Duration::from_millis(500),
                    ..PruneOptions::default()
                };
                let pruned = Prune::plan(&vault, options, &Silent, &Cancel::new())
                    .and_then(|plan| plan.apply(&Silent, &Cancel::new()));
                match pruned {
                    Ok(outcome) => {
                        prunes.fetch_add(1, Ordering::SeqCst);
                        deferred.fetch_add(u32::from(outcome.deferred.is_some()), Ordering::SeqCst);
                    }
                    Err(e) => assert_eq!(e.code(), Code::VaultLocked, "{e}"),
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let results: Vec<_> = writers.into_iter().map(|w| w.join()).collect();
        over.store(true, Ordering::SeqCst);
        results.into_iter().for_each(|r| r.unwrap());
    });
    let get = |n: &AtomicU32| n.load(Ordering::SeqCst);
    println!(
        "{} backups of Backstay, {} of restic ({} refused by a lock), {} prunes ({} left the rest for later)",
        get(&ours),
        get(&theirs),
        get(&refused),
        get(&prunes),
        get(&deferred)
    );
    assert!(get(&ours) == 16 && get(&theirs) >= 1 && get(&prunes) >= 1);
    let vault = open(Arc::new(Local::open(&place).unwrap()));
    println!("{:?}", verify(&vault));
    restic_check(&place);
}

/// A local vault that calls a hook after an object was stored.
#[derive(Clone)]
struct After {
    inner: Arc<Local>,
    hook: Arc<dyn Fn(&str) + Send + Sync>,
}

impl std::fmt::Debug for After {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("After")
    }
}

impl Storage for After {
    fn location(&self) -> String {
        self.inner.location()
    }
    fn put(&self, name: &str, bytes: &[u8], mode: Put) -> Result<()> {
        self.inner.put(name, bytes, mode)?;
        (self.hook)(name);
        Ok(())
    }
    fn get(&self, name: &str) -> Result<Vec<u8>> {
        self.inner.get(name)
    }
    fn get_range(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.inner.get_range(name, offset, len)
    }
    fn size(&self, name: &str) -> Result<u64> {
        self.inner.size(name)
    }
    fn list(&self, folder: &str, each: &mut dyn FnMut(Object) -> Result<()>) -> Result<()> {
        self.inner.list(folder, each)
    }
    fn delete(&self, name: &str) -> Result<()> {
        self.inner.delete(name)
    }
}

/// A writer that stands still after the first object whose name begins with `at`, while `meanwhile` happens.
#[track_caller]
fn frozen(at: &'static str, meanwhile: impl Fn(&Path) + Send + Sync + 'static) {
    let dir = temp_dir();
    let (home, place) = (dir.path().join("home"), dir.path().join("vault"));
    fs::create_dir(&home).unwrap();
    fixtures::small(&home, 91, 40);
    let vault = local_vault(&place);
    let first = Job::new(&vault, &home).run().unwrap();
    fs::write(home.join("more"), Random::new(3).bytes(100_000)).unwrap();
    let (frozen, folder) = (AtomicBool::new(false), place.clone());
    let after = After {
        inner: Arc::new(Local::open(&place).unwrap()),
        hook: Arc::new(move |name| {
            if name.starts_with(at) && !frozen.swap(true, Ordering::SeqCst) {
                meanwhile(&folder);
            }
        }),
    };
    let error = Job::new(&open(Arc::new(after)), &home).run().unwrap_err();
    assert_eq!(error.code(), Code::LeaseLost, "after {at}: {error}");
    let storage = Local::open(&place).unwrap();
    assert_eq!(names(&storage, "snapshots"), [Folder::Snapshots.object(&first.id)], "nothing was committed");
    let restic = Restic::new(&place, PASSWORD);
    restic.run(["unlock"]).ok();
    // What the frozen one stored may be named by an index though it is gone: for restic to mend as well as for us.
    restic.run(["rebuild-index"]).ok();
    restic.check_read_data().ok();
    // Run again, as the error says.
    Job::new(&vault, &home).run().unwrap();
    verify(&vault);
    restic_check(&place);
}

fn foreign_prune(place: &Path) {
    let restic = Restic::new(place, PASSWORD);
    restic.run(["unlock", "--remove-all"]).ok();
    restic.run(["prune", "--max-unused", "0"]).ok();
}

#[test]
fn a_frozen_writer_whose_packs_were_pruned_away_does_not_commit() {
    frozen("index/", foreign_prune);
    frozen("data/", foreign_prune);
    frozen("locks/", foreign_prune);
    // The lock alone, and the packs alone.
    frozen("index/", |place| drop(Restic::new(place, PASSWORD).run(["unlock", "--remove-all"]).ok()));
    frozen("index/", |place| {
        let newest = fs::read_dir(place.join("data"))
            .unwrap()
            .flat_map(|d| fs::read_dir(d.unwrap().path()).unwrap())
            .map(|e| e.unwrap())
            .max_by_key(|e| e.metadata().unwrap().modified().unwrap())
            .unwrap();
        fs::remove_file(newest.path()).unwrap();
    });
}

#[test]
fn an_exclusive_lock_of_another_program_is_respected_and_its_holder_named() {
    let dir = temp_dir();
    let (home, place) = (dir.path().join("home"), dir.path().join("vault"));
    fs::create_dir(&home).unwrap();
    fixtures::small(&home, 92, 30);
    let vault = local_vault(&place);
    let storage = Local::open(&place).unwrap();
    let time = jiff::Timestamp::now();
    let json = format!(
        r#"{{"time":"{time}","exclusive":true,"hostname":"elsewhere","username":"root","pid":4711,"uid":0,"gid":0}}"#
    );
    let lock = put_lock(&storage, json.as_bytes());
    let error = Job::new(&vault, &home).run().unwrap_err();
    assert_eq!(error.code(), Code::VaultLocked);
    let text = error.to_string();
    assert!(text.contains("elsewhere") && text.contains("4711"), "{text}");
    assert_eq!(vault.unlock(false).unwrap(), 0, "it is neither old nor of a dead process of this machine");
    // A shared one hinders nobody.
    storage.delete(&Folder::Locks.object(&lock)).unwrap();
    let shared = put_lock(&storage, json.replace("true", "false").as_bytes());
    Job::new(&vault, &home).run().unwrap();
    storage.delete(&Folder::Locks.object(&shared)).unwrap();

    // Real ones: restic in the middle of a check, which is exclusive.
    let restic = Restic::new(&place, PASSWORD);
    let mut command = restic.command(["check", "--read-data"]);
    // A group of its own: the kernel has its own mind about stopped members of a group.
    let mut child = command.stdout(std::process::Stdio::null()).process_group(0).spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let begun = Instant::now();
    while vault.locks().unwrap().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(1));
    }
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let result = Job::new(&vault, &home).run();
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    let status = child.wait().unwrap();
    let error = result.expect_err("the lock of restic is respected");
    assert_eq!(error.code(), Code::VaultLocked);
    assert!(error.to_string().contains(&child.id().to_string()), "{error}");
    assert!(status.success());
    Job::new(&vault, &home).run().unwrap();
}

#[test]
fn restic_respects_our_locks() {
    let dir = temp_dir();
    let place = dir.path().join("vault");
    let vault = local_vault(&place);
    let restic = Restic::new(&place, PASSWORD);
    let shared = vault.lock(Strength::Shared, Duration::ZERO, &Cancel::new()).unwrap();
    let out = restic.run(["prune"]);
    assert!(!out.is_ok() && out.stderr.contains("already locked"), "{}", out.stderr);
    fs::write(dir.path().join("file"), b"x").unwrap();
    restic.run([Path::new("backup"), &dir.path().join("file")]).ok();
    shared.release().unwrap();
    let exclusive = vault.lock(Strength::Exclusive, Duration::ZERO, &Cancel::new()).unwrap();
    let out = restic.run([Path::new("backup"), &dir.path().join("file")]);
    assert!(!out.is_ok() && out.stderr.contains("already locked"), "{}", out.stderr);
    // What it takes for abandoned it removes, and ours is not.
    restic.run(["unlock"]).ok();
    exclusive.check().unwrap();
    exclusive.release().unwrap();
    restic.run(["prune"]).ok();
    restic_check(&place);
}
