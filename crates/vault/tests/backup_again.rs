//! Second backups: what is as it was is not read, what is not is noticed, and the result is always that of a
//! backup that reads everything.

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

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backstay_storage::{Faulty as FaultyStorage, Memory, Op};
use backstay_testing::fixtures::{self, Random};
use backstay_testing::temp_dir;
use backstay_tree::fs::{Call, Faulty, FileSystem, FileTime, Host, Stat};
use support::hooked::{Hooked, aged, aged_host};
use support::{Done, Job, Parent, memory_vault, new_vault, saved};

/// The names that were opened for reading.
fn opened(fs: &Faulty) -> BTreeSet<String> {
    let calls = fs.log();
    let opened = calls.iter().filter(|c| c.call == Call::OpenFile);
    opened.map(|c| c.name.to_string_lossy().into_owned()).collect()
}

fn count(fs: &Faulty, calls: &[Call]) -> usize {
    fs.log().iter().filter(|c| calls.contains(&c.call)).count()
}

#[test]
fn nothing_is_read_and_nothing_stored_when_nothing_changed() {
    let dir = temp_dir();
    let home = dir.path().join("home");
    fixtures::nasty(&home, &fixtures::Nasty::quick());
    let storage = Arc::new(FaultyStorage::new(Arc::new(Memory::new())));
    let vault = new_vault(storage.clone());
    let index = dir.path().join("index");
    // A change could hide behind the time stamps of the last second.
    std::thread::sleep(Duration::from_millis(1100));
    let first = Job::new(&vault, &home).index(&index).run().unwrap();
    let size = fs::metadata(&index).unwrap().len();
    for _ in 0..3 {
        let before = storage.calls().len();
        let host = Arc::new(Faulty::new(Arc::new(Host)));
        let again = Job::new(&vault, &home).on(host.clone()).index(&index).run().unwrap();
        assert_eq!(again.tree, first.tree);
        let reading =
            [Call::OpenFile, Call::ReadAt, Call::Xattrs, Call::XattrsAt, Call::ReadLink, Call::NextData];
        assert_eq!(count(&host, &reading), 0);
        let calls = &storage.calls()[before..];
        let put: Vec<_> = calls
            .iter()
            .filter(|c| c.op.mutates())
            .map(|c| (c.op, c.name.split('/').next().unwrap().to_owned()))
            .collect();
        let expected = [(Op::Put, "locks"), (Op::Put, "snapshots"), (Op::Delete, "locks")]
            .map(|(o, n)| (o, n.to_owned()));
        assert_eq!(put, expected);
        assert_eq!(again.summary.files_unmodified, first.counts.files);
        assert_eq!((again.summary.files_new, again.summary.files_changed), (0, 0));
        assert_eq!((again.summary.data_added, again.summary.dirs_changed), (0, 0));
        assert_eq!(again.counts, first.counts);
        // Nothing was written but the slot that says which backup it is of.
        assert_eq!(fs::metadata(&index).unwrap().len(), size);
    }
    backstay_testing::unlock(&home);
}

#[test]
fn exactly_what_changed_is_read() {
    let dir = temp_dir();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    let files = fixtures::small(&home, 3, 400);
    let (_, vault) = memory_vault();
    let index = dir.path().join("index");
    Job::new(&vault, &home).on(aged_host()).index(&index).run().unwrap();
    let mut random = Random::new(5);
    for round in 0..10 {
        let mut changed = BTreeSet::new();
        for _ in 0..=random.below(6) {
            let path = home.join(&files[random.below(files.len() as u64) as usize]);
            let inode = fs::metadata(&path).unwrap().ino();
            fs::write(&path, random.text(300)).unwrap();
            // All names of the file changed with it.
            let all = files.iter().filter(|f| fs::metadata(home.join(f)).unwrap().ino() == inode);
            changed.extend(all.map(|f| f.file_name().unwrap().to_string_lossy().into_owned()));
        }
        // The vault's own trees serve as well as the index.
        let log = Arc::new(Faulty::new(Arc::new(Host)));
        let job = Job::new(&vault, &home).on(aged(log.clone()));
        let by_trees = job.clone().run().unwrap();
        assert_eq!(opened(&log), changed, "round {round}");
        let log = Arc::new(Faulty::new(Arc::new(Host)));
        let again = Job::new(&vault, &home).on(aged(log.clone())).run().unwrap();
        assert_eq!(opened(&log), BTreeSet::new());
        assert_eq!(again.tree, by_trees.tree);
    }
    let log = Arc::new(Faulty::new(Arc::new(Host)));
    Job::new(&vault, &home).on(aged(log.clone())).index(&index).run().unwrap();
    assert_eq!(opened(&log), BTreeSet::new(), "an index of an older snapshot is no reason to read");
    let path = home.join(&files[9]);
    fs::write(&path, b"changed again").unwrap();
    let log = Arc::new(Faulty::new(Arc::new(Host)));
    let done = Job::new(&vault, &home).on(aged(log.clone())).index(&index).run().unwrap();
    assert_eq!(opened(&log), [files[9].file_name().unwrap().to_string_lossy().into_owned()].into());
    assert_eq!(saved(&vault, &done, &files[9]), b"changed again");
}

/// A change that some of the time stamps do not show.
#[track_caller]
fn is_noticed(change: impl Fn(&Path)) {
    for with_index in [true, false] {
        let dir = temp_dir();
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        fs::write(home.join("file"), b"one").unwrap();
        fs::write(home.join("other"), b"two").unwrap();
        let (_, vault) = memory_vault();
        let index = dir.path().join("index");
        let job = Job::new(&vault, &home).on(aged_host());
        let job = if with_index { job.index(&index) } else { job };
        job.run().unwrap();
        change(&home.join("file"));
        assert_eq!(fs::metadata(home.join("file")).unwrap().len(), 3);
        let done = job.run().unwrap();
        assert_eq!(saved(&vault, &done, "file"), b"two");
    }
}

fn set_mtime(path: &Path, like: &fs::Metadata) {
    File::options().write(true).open(path).unwrap().set_modified(like.modified().unwrap()).unwrap();
}

#[test]
fn a_change_with_the_old_size_and_mtime_is_noticed() {
    is_noticed(|file| {
        let before = fs::metadata(file).unwrap();
        fs::write(file, b"two").unwrap();
        set_mtime(file, &before);
    });
}

#[test]
fn a_file_that_another_was_renamed_over_is_noticed() {
    is_noticed(|file| {
        let before = fs::metadata(file).unwrap();
        let new = file.with_extension("new");
        fs::write(&new, b"two").unwrap();
        set_mtime(&new, &before);
        fs::rename(&new, file).unwrap();
    });
}

/// Shows all changes of `file` at one time, and whatever it is as one inode.
fn frozen(at: FileTime, inode: u64) -> Arc<dyn FileSystem> {
    Arc::new(Hooked::new(Arc::new(Host)).see(move |name, stat| {
        if name == "file" { Stat { mtime: at, ctime: at, inode, ..stat } } else { stat }
    }))
}

#[test]
fn another_inode_with_all_the_same_times_is_noticed() {
    let dir = temp_dir();
    fs::write(dir.path().join("file"), b"one").unwrap();
    let (_, vault) = memory_vault();
    let old = FileTime { secs: 1_700_000_000, nanos: 0 };
    Job::new(&vault, dir.path()).on(frozen(old, 1)).run().unwrap();
    fs::write(dir.path().join("file"), b"two").unwrap();
    for (inode, content) in [(1, b"one"), (2, b"two")] {
        let done = Job::new(&vault, dir.path()).on(frozen(old, inode)).run().unwrap();
        assert_eq!(saved(&vault, &done, "file"), content);
    }
}

#[test]
fn a_change_within_the_granularity_of_time_stamps_is_read_again() {
    for with_index in [true, false] {
        let dir = temp_dir();
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        let (_, vault) = memory_vault();
        let index = dir.path().join("index");
        let now = jiff::Timestamp::now();
        for (age, noticed) in [(0, true), (-30, true), (10, false)] {
            let fs = frozen(FileTime { secs: now.as_second() - age, nanos: 0 }, 1);
            let job = Job::new(&vault, &home).on(fs);
            let job = if with_index { job.index(&index) } else { job };
            fs::write(home.join("file"), b"one").unwrap();
            job.clone().parent(Parent::Nothing).run().unwrap();
            fs::write(home.join("file"), b"two").unwrap();
            let done = job.run().unwrap();
            // What is old for sure is not read again: else this test would show nothing.
            let expected: &[u8] = if noticed { b"two" } else { b"one" };
            assert_eq!(saved(&vault, &done, "file"), expected, "{age} s old, index: {with_index}");
        }
    }
}

#[test]
fn a_file_system_that_compresses_is_not_read_anew_each_time() {
    // Fewer blocks than bytes, and yet no holes: ZFS, or a file system that stores small files elsewhere.
    let dir = temp_dir();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("small"), Random::new(1).text(200_000)).unwrap();
    fs::write(home.join("large"), Random::new(1).text(20 << 20)).unwrap();
    let (_, vault) = memory_vault();
    let index = dir.path().join("index");
    let see = |log: &Arc<Faulty>| -> Arc<dyn FileSystem> {
        aged(Arc::new(Hooked::new(log.clone()).see(|_, stat| Stat { blocks: stat.size / 2048, ..stat })))
    };
    let log = Arc::new(Faulty::new(Arc::new(Host)));
    let first = Job::new(&vault, &home).on(see(&log)).index(&index).run().unwrap();
    assert_eq!(opened(&log).len(), 2);
    assert_eq!(first.sparse, []);
    let log = Arc::new(Faulty::new(Arc::new(Host)));
    let again = Job::new(&vault, &home).on(see(&log)).index(&index).run().unwrap();
    assert_eq!(again.tree, first.tree);
    assert_eq!(opened(&log), BTreeSet::new());
    assert_eq!(again.sparse, []);
}

// --- any sequence of changes

/// Paths below `home`, folders and others.
fn listing(home: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut folders, mut others) = (vec![home.to_owned()], Vec::new());
    let mut at = 0;
    while at < folders.len() {
        for entry in fs::read_dir(&folders[at]).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                others.push(entry.path());
            }
        }
        at += 1;
    }
    // The order of a folder's entries is the kernel's: a seed must mean the same every time.
    folders.sort();
    others.sort();
    (folders, others)
}

fn pick<'a>(random: &mut Random, list: &'a [PathBuf]) -> Option<&'a PathBuf> {
    if list.is_empty() { None } else { list.get(random.below(list.len() as u64) as usize) }
}

/// One random change; what it did, in words. Some do nothing, where the kernel refuses.
fn mutate(home: &Path, random: &mut Random, serial: u64) -> String {
    let (folders, others) = listing(home);
    let folder = pick(random, &folders).unwrap().clone();
    let other = pick(random, &others).cloned().unwrap_or_else(|| home.join("nothing"));
    let fresh = folder.join(format!("{}{serial}", ["a", "m", "z"][random.below(3) as usize]));
    let is_file = fs::symlink_metadata(&other).is_ok_and(|m| m.is_file());
    let longest = if random.below(10) == 0 { 3_000_000 } else { 5_000 };
    let length = 1 + random.below(longest) as usize;
    let what = random.below(14);
    let done = match what {
        0 | 1 => fs::write(&fresh, random.text(length)),
        2 => fs::create_dir(&fresh),
        3 if is_file => fs::write(&other, random.bytes(length)),
        4 if is_file => {
            let bytes = random.text(100);
            File::options()
                .append(true)
                .open(&other)
                .and_then(|mut f| std::io::Write::write_all(&mut f, &bytes))
        }
        5 => fs::rename(&other, &fresh),
        6 => fs::remove_file(&other),
        7 if is_file => {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(&other, fs::Permissions::from_mode(0o400 + random.below(0o400) as u32))
        }
        8 if is_file => {
            let value = random.bytes(8);
            rustix::fs::setxattr(&other, "user.test", &value, rustix::fs::XattrFlags::empty())
                .map_err(Into::into)
        }
        9 => fs::hard_link(&other, &fresh),
        10 => {
            fs::remove_file(&other).ok();
            std::os::unix::fs::symlink(format!("to {}", random.below(100)), &other)
        }
        11 => {
            // A folder where a file was, or the other way round.
            if is_file {
                fs::remove_file(&other).and_then(|()| fs::create_dir(&other))
            } else if folder != home {
                fs::remove_dir_all(&folder).and_then(|()| fs::write(&folder, random.text(length)))
            } else {
                Ok(())
            }
        }
        12 => fs::rename(&folder, pick(random, &folders).unwrap().join(format!("moved{serial}"))),
        _ => {
            // Same size and mtime, other bytes.
            let before = fs::metadata(&other);
            match before {
                Ok(before) if is_file && before.len() > 0 => {
                    let file = File::options().write(true).open(&other).unwrap();
                    file.write_all_at(&random.bytes(1), random.below(before.len())).unwrap();
                    file.set_modified(before.modified().unwrap())
                }
                _ => Ok(()),
            }
        }
    };
    format!("{what} {} {} {done:?}", other.display(), fresh.display())
}

fn sequence(seed: u64, steps: u64) -> (u64, u64) {
    let dir = temp_dir();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    fixtures::small(&home, seed, 40);
    let mut random = Random::new(seed);
    let (index, twin) = (dir.path().join("index"), dir.path().join("twin"));
    // Each way of comparing has a vault of its own, with the same keys, since the cuts depend on them; the last one
    // reads all, always.
    let vaults = support::twins(4);
    let fs = aged_host();
    let (mut reused, mut read) = (0, 0);
    for step in 0..steps {
        let mut log = Vec::new();
        for i in 0..random.below(6) {
            log.push(mutate(&home, &mut random, step * 10 + i));
        }
        if random.below(4) == 0 {
            fs::remove_file(&twin).ok();
        }
        let jobs = [
            Job::new(&vaults[0], &home).index(&index),
            Job::new(&vaults[1], &home).index(&twin),
            Job::new(&vaults[2], &home),
            Job::new(&vaults[3], &home).parent(Parent::Nothing),
        ];
        let done: Vec<Done> = jobs.into_iter().map(|job| job.on(fs.clone()).run().unwrap()).collect();
        for (way, one) in done.iter().enumerate() {
            if one.tree != done[3].tree {
                let first = support::first_difference((&vaults[way], one.tree), (&vaults[3], done[3].tree));
                panic!("seed {seed}, step {step}, way {way}: {log:#?}\n{first}");
            }
            assert_eq!(one.problems, done[3].problems);
            assert_eq!(one.counts, done[3].counts, "seed {seed}, step {step}, way {way}");
        }
        reused += done[0].summary.files_unmodified;
        read += done[0].summary.files_new + done[0].summary.files_changed;
    }
    // The vault that was only ever added to has everything.
    support::verify(&vaults[0]);
    (reused, read)
}

#[test]
fn any_sequence_of_changes_gives_what_a_full_backup_gives() {
    let totals: Vec<(u64, u64)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2u64)
            .map(|t| scope.spawn(move || (0..12).map(|n| sequence(2 * n + t + 1, 14)).collect::<Vec<_>>()))
            .collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    let (reused, read) = totals.iter().fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
    println!("{} sequences of 14 steps: {reused} files taken over, {read} read", totals.len());
    assert!(reused > 3 * read, "most files were taken over, else this shows little");
}
