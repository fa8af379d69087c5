//! The local folder stopped at every system call that changes something, with and without loss of what was not
//! synced: the old object or the new one, never half, and nothing else touched.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "test helpers"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_model::{Code, Result};
use backstay_storage::{Local, Put, Storage};
use backstay_tree::fs::{Call, Fault, Faulty, Host, Kill};
use rustix::io::Errno;
use tempfile::TempDir;

/// What a place holds: names and contents.
type Objects = BTreeMap<String, Vec<u8>>;

/// One change of a place.
#[derive(Clone, Debug)]
enum Change {
    Put(&'static str, Vec<u8>, Put),
    Delete(&'static str),
}

impl Change {
    fn make(&self, storage: &dyn Storage) -> Result<()> {
        match self {
            Change::Put(name, bytes, mode) => storage.put(name, bytes, *mode),
            Change::Delete(name) => storage.delete(name),
        }
    }

    /// What the place holds after it, and the error it is to give.
    fn foresee(&self, objects: &Objects) -> (Objects, Option<Code>) {
        let mut after = objects.clone();
        let refused = match self {
            Change::Put(name, _, Put::IfAbsent) if after.contains_key(*name) => Some(Code::ObjectExists),
            Change::Put(name, bytes, _) => {
                after.insert((*name).to_owned(), bytes.clone());
                None
            }
            Change::Delete(name) => after.remove(*name).is_none().then_some(Code::ObjectNotFound),
        };
        (after, refused)
    }
}

/// How much of what was not synced is lost.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// Nothing: only the process died.
    None,
    All,
    Some(u64),
}

struct World {
    dir: TempDir,
    faulty: Arc<Faulty>,
}

impl World {
    fn new(objects: &Objects) -> Self {
        let dir = backstay_testing::quick_dir();
        std::fs::create_dir(dir.path().join("aside")).unwrap();
        let place = Local::create(dir.path().join("place")).unwrap();
        for (name, bytes) in objects {
            place.put(name, bytes, Put::IfAbsent).unwrap();
        }
        let faulty = Faulty::with_power_loss(Arc::new(Host), &dir.path().join("aside")).unwrap();
        World { dir, faulty: Arc::new(faulty) }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("place")
    }

    fn open(&self) -> Local {
        Local::open_on(self.faulty.clone(), self.path()).unwrap()
    }

    fn lose(&self, loss: Loss) {
        match loss {
            Loss::None => {}
            Loss::All => self.faulty.power_loss().unwrap(),
            Loss::Some(seed) => self.faulty.power_loss_some(seed).unwrap(),
        }
    }
}

/// What another process finds there.
fn objects(path: &Path) -> Objects {
    let storage = Local::open(path).unwrap();
    let mut found = Objects::new();
    storage
        .list("", &mut |o| {
            let bytes = storage.get(&o.name)?;
            assert_eq!(bytes.len() as u64, o.size);
            assert!(found.insert(o.name, bytes).is_none());
            Ok(())
        })
        .unwrap();
    found
}

fn existing() -> Objects {
    [("config", &b"config"[..]), ("data/ab/old", b"old"), ("index/one", b"1")]
        .map(|(name, bytes)| (name.to_owned(), bytes.to_vec()))
        .into()
}

fn changes() -> Vec<Change> {
    let bytes = vec![7; 70_000];
    vec![
        Change::Put("new", bytes.clone(), Put::IfAbsent),
        Change::Put("data/ab/new", bytes.clone(), Put::IfAbsent),
        Change::Put("data/cd/new", bytes.clone(), Put::IfAbsent),
        Change::Put("a/b/c/d", bytes.clone(), Put::IfAbsent),
        Change::Put("data/ab/empty", Vec::new(), Put::IfAbsent),
        Change::Put("config", bytes.clone(), Put::IfAbsent),
        Change::Put("config", bytes.clone(), Put::Replace),
        Change::Put("data/ab/old", bytes.clone(), Put::Replace),
        Change::Put("x/y", bytes, Put::Replace),
        Change::Delete("data/ab/old"),
        Change::Delete("config"),
        Change::Delete("absent"),
    ]
}

const LOSSES: [Loss; 7] =
    [Loss::None, Loss::All, Loss::Some(1), Loss::Some(2), Loss::Some(3), Loss::Some(4), Loss::Some(5)];

#[test]
fn stopped_at_every_call_the_old_state_or_the_new_one_is_there() {
    let mut stops = 0;
    for change in changes() {
        let before = existing();
        let (after, refused) = change.foresee(&before);
        let world = World::new(&before);
        let done = change.make(&world.open());
        assert_eq!(done.err().map(|e| e.code()), refused, "{change:?}");
        assert_eq!(objects(&world.path()), after);
        for n in 1..=world.faulty.points() {
            for how in [Kill::Before, Kill::After, Kill::Torn] {
                for loss in LOSSES {
                    let world = World::new(&before);
                    world.faulty.kill_at(n, how);
                    let done = change.make(&world.open());
                    assert!(done.is_err(), "{change:?} went well though stopped at call {n}");
                    world.lose(loss);
                    let found = objects(&world.path());
                    assert!(
                        found == before || found == after,
                        "{change:?}, {how:?} {n}, {loss:?}: {found:?}"
                    );
                    // And the next try needs nobody's help.
                    let again = change.make(&Local::open(world.path()).unwrap());
                    assert!(again.is_ok() || found == after || refused.is_some(), "{again:?}");
                    assert_eq!(objects(&world.path()), after);
                    stops += 1;
                }
            }
        }
    }
    println!("stopped {stops} times");
    assert!(stops > 1000, "{stops}");
}

#[test]
fn what_was_told_to_be_done_survives_a_power_loss() {
    for change in changes() {
        let (after, _) = change.foresee(&existing());
        for loss in LOSSES {
            let world = World::new(&existing());
            change.make(&world.open()).ok();
            world.lose(loss);
            assert_eq!(objects(&world.path()), after, "{change:?} {loss:?}");
        }
    }
}

#[test]
fn a_place_that_was_made_survives_a_power_loss_and_a_stop_while_making_it() {
    let make = |world: &World| Local::create_on(world.faulty.clone(), world.path().join("a/b/c"));
    let world = World::new(&Objects::new());
    make(&world).unwrap();
    let points = world.faulty.points();
    world.lose(Loss::All);
    assert!(world.path().join("a/b/c").is_dir());
    for n in 1..=points {
        for how in [Kill::Before, Kill::After] {
            let world = World::new(&Objects::new());
            world.faulty.kill_at(n, how);
            make(&world).unwrap_err();
            // The next process finishes it; then the power fails.
            let aside = world.dir.path().join("aside too");
            std::fs::create_dir(&aside).unwrap();
            let faulty = Arc::new(Faulty::with_power_loss(Arc::new(Host), &aside).unwrap());
            drop(Local::create_on(faulty.clone(), world.path().join("a/b/c")).unwrap());
            faulty.power_loss().unwrap();
            assert!(world.path().join("a/b/c").is_dir(), "{how:?} {n}");
        }
    }
}

#[test]
fn what_a_listing_shows_or_a_refusal_speaks_of_survives_a_power_loss() {
    for listed in [true, false] {
        let world = World::new(&existing());
        let storage = world.open();
        // As a process would leave it that was killed between the rename and the sync of the folder.
        world.faulty.fail(Fault::of(Call::Sync, Errno::IO.raw_os_error()).named("index").times(1));
        let put = storage.put("index/two", b"2", Put::IfAbsent).unwrap_err();
        assert_eq!(put.code(), Code::StorageFailed, "{put:?}");
        if listed {
            let mut seen = false;
            storage
                .list("index", &mut |o| {
                    seen |= o.name == "index/two";
                    Ok(())
                })
                .unwrap();
            assert!(seen);
        } else {
            let again = storage.put("index/two", b"2", Put::IfAbsent).unwrap_err();
            assert_eq!(again.code(), Code::ObjectExists);
        }
        drop(storage);
        world.lose(Loss::All);
        assert_eq!(objects(&world.path()).get("index/two").map(Vec::as_slice), Some(&b"2"[..]));
    }
}

/// A number from a seed, for choices (SplitMix64).
fn random(seed: &mut u64) -> usize {
    *seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (*seed ^ (*seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    usize::try_from((x ^ (x >> 27)) >> 33).unwrap()
}

#[test]
fn random_histories_end_in_a_state_that_was_there() {
    const NAMES: [&str; 6] = ["a", "data/aa/x", "data/aa/y", "data/bb/x", "index/x", "deep/er/x"];
    for seed in 0..400 {
        let mut dice = seed;
        let mut state = Objects::new();
        let world = World::new(&state);
        let storage = world.open();
        world
            .faulty
            .kill_at(1 + random(&mut dice) as u64 % 120, [Kill::Before, Kill::After][random(&mut dice) % 2]);
        let mut allowed = vec![state.clone()];
        for _ in 0..60 {
            let name = NAMES[random(&mut dice) % NAMES.len()];
            let bytes = vec![u8::try_from(random(&mut dice) % 256).unwrap(); random(&mut dice) % 5000];
            let change = match random(&mut dice) % 4 {
                0 => Change::Delete(name),
                1 => Change::Put(name, bytes, Put::Replace),
                _ => Change::Put(name, bytes, Put::IfAbsent),
            };
            let (after, refused) = change.foresee(&state);
            let done = change.make(&storage);
            allowed = vec![state.clone(), after.clone()];
            match done {
                Ok(()) => assert_eq!(refused, None),
                Err(_) if world.faulty.killed_at().is_some() => break,
                Err(e) => assert_eq!(Some(e.code()), refused, "{e:?}"),
            }
            state = after;
            allowed = vec![state.clone()];
        }
        drop(storage);
        world.lose([Loss::None, Loss::All, Loss::Some(seed)][random(&mut dice) % 3]);
        let found = objects(&world.path());
        assert!(allowed.contains(&found), "seed {seed}: {:?} is none of {:?}", found.keys(), allowed);
    }
}

/// Runs a put with a fault and gives back its code; nothing of it may be left.
fn put_with(fault: Fault) -> Code {
    let world = World::new(&existing());
    let storage = world.open();
    world.faulty.fail(fault);
    let error = storage.put("data/ab/new", &[1; 10_000], Put::IfAbsent).unwrap_err();
    world.faulty.heal();
    assert!(error.message().contains("data/ab/new"), "{error:?}");
    assert!(error.message().starts_with(char::is_uppercase) && !error.message().ends_with('.'));
    let folder: Vec<_> = std::fs::read_dir(world.path().join("data/ab")).unwrap().collect();
    assert_eq!(folder.len(), 1, "something was left: {folder:?}");
    storage.put("data/ab/new", b"now", Put::IfAbsent).unwrap();
    error.code()
}

#[test]
fn each_failure_of_the_system_has_its_code_and_leaves_nothing() {
    for (errno, code) in [
        (Errno::NOSPC, Code::StorageFull),
        (Errno::DQUOT, Code::StorageFull),
        (Errno::ACCESS, Code::StorageDenied),
        (Errno::PERM, Code::StorageDenied),
        (Errno::ROFS, Code::StorageDenied),
        (Errno::IO, Code::StorageFailed),
        (Errno::MFILE, Code::StorageUnavailable),
        (Errno::STALE, Code::StorageUnavailable),
    ] {
        for call in [Call::CreateFile, Call::WriteAt, Call::Rename] {
            assert_eq!(put_with(Fault::of(call, errno.raw_os_error())), code, "{call:?} {errno}");
        }
    }
    assert_eq!(put_with(Fault::of(Call::Sync, Errno::IO.raw_os_error()).times(1)), Code::StorageFailed);
    assert_eq!(put_with(Fault::of(Call::Sync, Errno::NOSPC.raw_os_error()).times(1)), Code::StorageFull);
}

#[test]
fn failures_of_reading_have_their_codes() {
    let world = World::new(&existing());
    for (call, errno, code) in [
        (Call::ReadAt, Errno::IO, Code::StorageFailed),
        (Call::OpenFile, Errno::ACCESS, Code::StorageDenied),
        (Call::OpenFile, Errno::MFILE, Code::StorageUnavailable),
        (Call::OpenDir, Errno::ACCESS, Code::StorageDenied),
    ] {
        let storage = world.open(); // a new one, which has no handle from the turn before
        world.faulty.fail(Fault::of(call, errno.raw_os_error()));
        assert_eq!(storage.get("data/ab/old").unwrap_err().code(), code, "{call:?} {errno}");
        assert_eq!(storage.get_range("data/ab/old", 0, 1).unwrap_err().code(), code, "{call:?} {errno}");
        world.faulty.heal();
    }
    let storage = world.open();
    for (call, errno, code) in
        [(Call::Entries, Errno::IO, Code::StorageFailed), (Call::Stat, Errno::ACCESS, Code::StorageDenied)]
    {
        world.faulty.fail(Fault::of(call, errno.raw_os_error()));
        assert_eq!(storage.list("", &mut |_| Ok(())).unwrap_err().code(), code, "{call:?} {errno}");
        world.faulty.heal();
    }
    world.faulty.fail(Fault::of(Call::Unlink, Errno::ACCESS.raw_os_error()));
    assert_eq!(storage.delete("config").unwrap_err().code(), Code::StorageDenied);
}

#[test]
fn file_systems_without_a_guarded_rename_or_a_folder_sync_work_too() {
    let before = existing();
    for fault in [
        Fault::of(Call::Rename, Errno::INVAL.raw_os_error()),
        Fault::of(Call::Sync, Errno::INVAL.raw_os_error()).named("data"),
        Fault::of(Call::Sync, Errno::INVAL.raw_os_error()).named("ab"),
    ] {
        let world = World::new(&before);
        let storage = world.open();
        world.faulty.fail(fault);
        storage.put("data/ab/new", b"new", Put::IfAbsent).unwrap();
        assert_eq!(storage.put("data/ab/new", b"2", Put::IfAbsent).unwrap_err().code(), Code::ObjectExists);
        assert_eq!(storage.get("data/ab/new").unwrap(), b"new");
        assert_eq!(std::fs::read_dir(world.path().join("data/ab")).unwrap().count(), 2);
    }
}

#[test]
fn opening_a_place_that_was_named_by_mistake_does_not_walk_the_whole_disk() {
    let world = World::new(&existing());
    for i in 0..3000 {
        std::fs::create_dir(world.path().join(format!("{i}"))).unwrap();
    }
    world.open();
    let looked_at = world.faulty.log().iter().filter(|c| c.call == Call::Entries).count();
    assert!((300..=1000).contains(&looked_at), "{looked_at}");
}
