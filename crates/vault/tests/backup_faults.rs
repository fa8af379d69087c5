//! Trees that do not hold still, cannot be read, or try to lead elsewhere; storages that fail; requests to stop.

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

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use backstay_model::{Code, ProblemKind};
use backstay_storage::{Fault as StorageFault, Faulty as FaultyStorage, Memory, Op, Rule};
use backstay_testing::fixtures::{self, Random};
use backstay_testing::temp_dir;
use backstay_tree::fs::{Call, Fault, Faulty, FileSystem, Host};
use rustix::io::Errno;
use support::hooked::{Hooked, aged};
use support::{Done, Job, Parent, memory_vault, names, new_vault, node_at, saved, verify};

fn errno(e: Errno) -> i32 {
    e.raw_os_error()
}

/// A small tree: `a/file`, `a/other`, `b/file2`, `link`, `fifo`.
fn tree(home: &Path) {
    fs::create_dir_all(home.join("a")).unwrap();
    fs::create_dir_all(home.join("b")).unwrap();
    fs::write(home.join("a/file"), b"file").unwrap();
    fs::write(home.join("a/other"), b"other").unwrap();
    fs::write(home.join("b/file2"), b"file2").unwrap();
    std::os::unix::fs::symlink("a/file", home.join("link")).unwrap();
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, home.join("fifo"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
}

/// One backup of the small tree with one fault; then one without, which must have everything.
#[track_caller]
fn with_fault(fault: Fault, check: impl Fn(&Done, &backstay_vault::Vault)) {
    let dir = temp_dir();
    tree(dir.path());
    let (_, vault) = memory_vault();
    let faulty = Arc::new(Faulty::new(Arc::new(Host)));
    faulty.fail(fault);
    // Everything counts as old: what is believed next time is believed for what it is.
    let index = temp_dir();
    let job = Job::new(&vault, dir.path()).on(aged(faulty.clone())).index(&index.path().join("index"));
    let done = job.run().unwrap();
    check(&done, &vault);
    verify(&vault);
    faulty.heal();
    let full = job.clone().parent(Parent::Nothing).run().unwrap();
    assert_eq!(full.told(), []);
    for job in
        [job.clone().parent(Parent::This(done.id)), Job { index: None, ..job }.parent(Parent::This(done.id))]
    {
        let healed = job.run().unwrap();
        assert_eq!(healed.told(), []);
        assert_eq!(healed.tree, full.tree, "the next backup has what this one could not read");
    }
}

#[test]
fn what_cannot_be_read_is_told_and_comes_with_the_next_backup() {
    let unreadable = |path: &'static str| {
        move |done: &Done, vault: &backstay_vault::Vault| {
            assert_eq!(done.told(), [(path, ProblemKind::Unreadable)]);
            assert!(node_at(vault, done, path).is_none());
            assert!(node_at(vault, done, "a/other").is_some() || path == "a");
        }
    };
    with_fault(Fault::of(Call::OpenFile, errno(Errno::ACCESS)).named("file"), unreadable("a/file"));
    with_fault(Fault::of(Call::ReadAt, errno(Errno::IO)).named("file"), unreadable("a/file"));
    with_fault(Fault::of(Call::StatHandle, errno(Errno::IO)).named("file"), unreadable("a/file"));
    with_fault(Fault::of(Call::Stat, errno(Errno::IO)).named("file"), unreadable("a/file"));
    with_fault(Fault::of(Call::OpenDirBeneath, errno(Errno::ACCESS)).named("a"), unreadable("a"));
    with_fault(Fault::of(Call::Entries, errno(Errno::IO)).named("a"), unreadable("a"));
    with_fault(Fault::of(Call::ReadLink, errno(Errno::IO)).named("link"), unreadable("link"));
}

#[test]
fn what_vanishes_between_listing_and_reading_is_told_as_that() {
    for (call, name, path) in [
        (Call::OpenFile, "file", "a/file"),
        (Call::OpenDirBeneath, "a", "a"),
        (Call::ReadLink, "link", "link"),
    ] {
        with_fault(Fault::of(call, errno(Errno::NOENT)).named(name), |done, vault| {
            assert_eq!(done.told(), [(path, ProblemKind::Vanished)]);
            assert!(node_at(vault, done, path).is_none());
        });
    }
}

#[test]
fn attributes_that_cannot_be_read_are_told_and_not_forgotten() {
    for (call, name, path) in [
        (Call::Xattrs, "file", "a/file"),
        (Call::Xattrs, "a", "a"),
        (Call::XattrsAt, "link", "link"),
        (Call::XattrsAt, "fifo", "fifo"),
    ] {
        with_fault(Fault::of(call, errno(Errno::IO)).named(name), |done, vault| {
            assert_eq!(done.told(), [(path, ProblemKind::Metadata)]);
            assert!(node_at(vault, done, path).is_some(), "{path} itself is there");
        });
    }
    // While it lasts it is told every time, not only once.
    let dir = temp_dir();
    tree(dir.path());
    rustix::fs::setxattr(dir.path().join("a/file"), "user.x", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    let (_, vault) = memory_vault();
    let faulty = Arc::new(Faulty::new(Arc::new(Host)));
    let index = dir.path().join("../index-of-attributes");
    let job = Job::new(&vault, dir.path()).on(aged(faulty.clone())).index(&index);
    faulty.fail(Fault::of(Call::Xattrs, errno(Errno::IO)).named("file"));
    for _ in 0..3 {
        assert_eq!(job.run().unwrap().told(), [("a/file", ProblemKind::Metadata)]);
    }
    faulty.heal();
    let done = job.run().unwrap();
    assert_eq!(node_at(&vault, &done, "a/file").unwrap().xattrs, [("user.x".into(), b"1".to_vec())]);
    fs::remove_file(index).unwrap();
}

#[test]
fn sockets_are_told_every_time() {
    let dir = temp_dir();
    tree(dir.path());
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let (_, vault) = memory_vault();
    let job = Job::new(&vault, dir.path()).on(support::hooked::aged_host());
    for _ in 0..2 {
        assert_eq!(job.run().unwrap().told(), [("socket", ProblemKind::Socket)]);
    }
}

#[test]
fn without_a_root_there_is_no_backup() {
    let dir = temp_dir();
    fs::write(dir.path().join("file"), b"").unwrap();
    tree(&dir.path().join("home"));
    let (memory, vault) = memory_vault();
    for (path, code) in [("nowhere", Code::SourceNotFound), ("file", Code::SourceNotFound)] {
        let error = Job::new(&vault, &dir.path().join(path)).run().unwrap_err();
        assert_eq!(error.code(), code, "{path}: {error}");
    }
    for call in [Call::OpenRoot, Call::Entries, Call::StatHandle] {
        let faulty = Arc::new(Faulty::new(Arc::new(Host)));
        faulty.fail(Fault::of(call, errno(Errno::ACCESS)).named("home"));
        let error = Job::new(&vault, &dir.path().join("home")).on(faulty).run().unwrap_err();
        assert_eq!(error.code(), Code::FileUnreadable, "{call:?}: {error}");
    }
    assert_eq!(names(&memory, "snapshots"), Vec::<String>::new());
    assert_eq!(names(&memory, "locks"), Vec::<String>::new());
}

// --- files that do not hold still

/// A backup during which something is done to the file `name` before its `nth` read.
fn while_read(
    home: &Path,
    name: &'static str,
    act: impl Fn(u32) + Send + Sync + 'static,
) -> (Done, backstay_vault::Vault) {
    let (_, vault) = memory_vault();
    let reads = AtomicU32::new(0);
    let hooked = Hooked::new(Arc::new(Host)).before(move |call, at, _| {
        if call == Call::ReadAt && at == name {
            act(reads.fetch_add(1, Ordering::SeqCst));
        }
    });
    let done = Job::new(&vault, home).on(Arc::new(hooked)).run().unwrap();
    verify(&vault);
    (done, vault)
}

#[test]
fn a_growing_log_is_saved_as_long_as_it_was() {
    for size in [100usize, 3 << 20, 20 << 20] {
        let dir = temp_dir();
        let log = dir.path().join("log");
        let content = Random::new(1).text(size);
        fs::write(&log, &content).unwrap();
        let path = log.clone();
        let (done, vault) = while_read(dir.path(), "log", move |_| {
            File::options().append(true).open(&path).unwrap().write_all(b"one more line\n").unwrap();
        });
        assert_eq!(done.told(), [("log", ProblemKind::Grew)]);
        assert!(saved(&vault, &done, "log") == content);
        assert_eq!(node_at(&vault, &done, "log").unwrap().size, size as u64);
        // It is not taken for unchanged.
        let again = Job::new(&vault, dir.path()).run().unwrap();
        assert_eq!(saved(&vault, &again, "log"), fs::read(&log).unwrap());
    }
}

#[test]
fn a_file_that_changes_once_is_read_again() {
    for size in [100usize, 20 << 20] {
        let dir = temp_dir();
        let file = dir.path().join("file");
        fs::write(&file, Random::new(1).text(size)).unwrap();
        let path = file.clone();
        let (done, vault) = while_read(dir.path(), "file", move |n| {
            if n == 0 {
                // Two changes: time stamps are coarse, and one must differ from that of the opened file.
                std::thread::sleep(Duration::from_millis(20));
                File::options().write(true).open(&path).unwrap().write_all_at(b"changed", 50).unwrap();
            }
        });
        assert_eq!(done.told(), []);
        assert!(saved(&vault, &done, "file") == fs::read(&file).unwrap());
    }
}

#[test]
fn a_file_that_changes_all_the_time_is_told() {
    for size in [100usize, 20 << 20] {
        let dir = temp_dir();
        let file = dir.path().join("file");
        fs::write(&file, Random::new(1).text(size)).unwrap();
        let path = file.clone();
        let (done, vault) = while_read(dir.path(), "file", move |n| {
            std::thread::sleep(Duration::from_millis(10));
            let number = format!("{n:07}");
            File::options().write(true).open(&path).unwrap().write_all_at(number.as_bytes(), 50).unwrap();
        });
        assert_eq!(done.told(), [("file", ProblemKind::Changed)]);
        assert_eq!(saved(&vault, &done, "file").len(), size);
    }
}

#[test]
fn a_file_that_shrinks_is_saved_as_it_is_then() {
    for size in [1000usize, 20 << 20] {
        let dir = temp_dir();
        let file = dir.path().join("file");
        let content = Random::new(1).text(size);
        fs::write(&file, &content).unwrap();
        let path = file.clone();
        let (done, vault) = while_read(dir.path(), "file", move |n| {
            if n == 0 {
                std::thread::sleep(Duration::from_millis(20));
                File::options().write(true).open(&path).unwrap().set_len(77).unwrap();
            }
        });
        assert_eq!(done.told(), []);
        assert_eq!(saved(&vault, &done, "file"), content[..77]);
    }
    // And one that shrinks every time is told, and consistent with itself.
    let dir = temp_dir();
    let file = dir.path().join("file");
    fs::write(&file, Random::new(1).text(20 << 20)).unwrap();
    let path = file.clone();
    let (done, vault) = while_read(dir.path(), "file", move |_| {
        let length = fs::metadata(&path).unwrap().len();
        File::options().write(true).open(&path).unwrap().set_len(length - length / 4).unwrap();
    });
    assert_eq!(done.told(), [("file", ProblemKind::Changed)]);
    let node = node_at(&vault, &done, "file").unwrap();
    assert_eq!(saved(&vault, &done, "file").len() as u64, node.size);
}

#[test]
fn an_error_in_the_middle_of_a_large_file_loses_that_file_only() {
    let dir = temp_dir();
    let large = Random::new(1).bytes(40 << 20);
    fs::write(dir.path().join("large"), &large).unwrap();
    fs::write(dir.path().join("small"), b"small").unwrap();
    let (_, vault) = memory_vault();
    for reads in 0..5 {
        let faulty = Arc::new(Faulty::new(Arc::new(Host)));
        faulty.fail(Fault::of(Call::ReadAt, errno(Errno::IO)).named("large").after(reads).times(1));
        let done = Job::new(&vault, dir.path()).on(faulty).parent(Parent::Nothing).run().unwrap();
        assert_eq!(done.told(), [("large", ProblemKind::Unreadable)]);
        assert!(node_at(&vault, &done, "large").is_none());
        assert_eq!(saved(&vault, &done, "small"), b"small");
    }
    let done = Job::new(&vault, dir.path()).run().unwrap();
    assert!(saved(&vault, &done, "large") == large);
    verify(&vault);
}

// --- swapped while one looks away

/// Replaces `home/a/file` by something else just before it is opened.
fn swapped(
    replace: impl Fn(&Path) + Send + Sync + 'static,
) -> (Done, backstay_vault::Vault, tempfile::TempDir) {
    let dir = temp_dir();
    fs::write(dir.path().join("secret"), b"secret").unwrap();
    let home = dir.path().join("home");
    tree(&home);
    let (_, vault) = memory_vault();
    let file = home.join("a/file");
    let hooked = Hooked::new(Arc::new(Host)).before(move |call, name, _| {
        if call == Call::OpenFile && name == "file" {
            fs::remove_file(&file).unwrap();
            replace(&file);
        }
    });
    let begun = Instant::now();
    let done = Job::new(&vault, &home).on(Arc::new(hooked)).run().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "it does not hang");
    verify(&vault);
    (done, vault, dir)
}

#[test]
fn what_takes_a_files_place_is_not_followed_and_not_waited_for() {
    let (done, vault, _dir) = swapped(|file| std::os::unix::fs::symlink("../../secret", file).unwrap());
    assert_eq!(done.told(), [("a/file", ProblemKind::Changed)]);
    assert!(node_at(&vault, &done, "a/file").is_none());

    let (done, vault, _dir) = swapped(|file| {
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, file, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    });
    assert_eq!(done.told(), [("a/file", ProblemKind::Changed)]);
    assert!(node_at(&vault, &done, "a/file").is_none());

    let (done, vault, _dir) = swapped(|file| fs::create_dir(file).unwrap());
    assert_eq!(done.told(), [("a/file", ProblemKind::Changed)]);
    assert!(node_at(&vault, &done, "a/file").is_none());

    // Another file: that is what is there now.
    let (done, vault, _dir) = swapped(|file| fs::write(file, b"another one").unwrap());
    assert_eq!(done.told(), []);
    assert_eq!(saved(&vault, &done, "a/file"), b"another one");
    assert_eq!(node_at(&vault, &done, "a/file").unwrap().size, 11);
}

#[test]
fn a_folder_that_becomes_a_link_is_not_entered() {
    let dir = temp_dir();
    fs::create_dir(dir.path().join("elsewhere")).unwrap();
    fs::write(dir.path().join("elsewhere/secret"), b"secret").unwrap();
    let home = dir.path().join("home");
    tree(&home);
    let (_, vault) = memory_vault();
    let (from, to) = (home.join("a"), dir.path().join("was-a"));
    let hooked = Hooked::new(Arc::new(Host)).before(move |call, name, _| {
        if call == Call::OpenDirBeneath && name == "a" && !to.exists() {
            fs::rename(&from, &to).unwrap();
            std::os::unix::fs::symlink("../elsewhere", &from).unwrap();
        }
    });
    let done = Job::new(&vault, &home).on(Arc::new(hooked)).run().unwrap();
    assert_eq!(done.told(), [("a", ProblemKind::Changed)]);
    assert!(node_at(&vault, &done, "a").is_none());
    assert!(node_at(&vault, &done, "b/file2").is_some());
    verify(&vault);
}

// --- large, deep, many

#[test]
fn a_large_file_comes_out_as_it_went_in() {
    let dir = temp_dir();
    // Random, repeated and zero parts, at odd places: 150 MB and a few bytes.
    let mut content = Random::new(2).bytes(60_000_007);
    content.extend_from_within(..30_000_000);
    content.resize(110_000_000, 0);
    content.extend(Random::new(3).text(40_000_011));
    fs::write(dir.path().join("large"), &content).unwrap();
    let (_, vault) = memory_vault();
    let done = Job::new(&vault, dir.path()).run().unwrap();
    assert!(saved(&vault, &done, "large") == content);
    // Cut alike whoever stored the pieces.
    let again = Job::new(&vault, dir.path()).parent(Parent::Nothing).run().unwrap();
    assert_eq!(again.tree, done.tree);
    assert_eq!(again.summary.data_blobs, 0);
    verify(&vault);
}

/// Folders inside each other, with a file and perhaps a sibling at each level, made by handles: paths get longer than
/// what the kernel takes.
fn deep(home: &Path, depth: usize, name: &str, siblings: bool) {
    use std::os::fd::AsFd;
    let host = Host;
    let mut at = host.open_root(home).unwrap();
    for _ in 0..depth {
        host.create_file(at.as_fd(), "a file".as_ref()).unwrap();
        if siblings {
            host.create_dir(at.as_fd(), "a sibling".as_ref()).unwrap();
        }
        host.create_dir(at.as_fd(), name.as_ref()).unwrap();
        at = host.open_dir(at.as_fd(), name.as_ref()).unwrap();
    }
}

fn remove(parent: &Path, name: &str) {
    use std::os::fd::AsFd;
    let parent = Host.open_root(parent).unwrap();
    backstay_tree::remove_tree(&Host, parent.as_fd(), name.as_ref()).unwrap();
}

#[test]
fn a_very_deep_tree_is_saved() {
    let dir = support::quick_dir();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    deep(&home, 3000, "zzz", true);
    let (_, vault) = memory_vault();
    let index = dir.path().join("index");
    let job = Job::new(&vault, &home).on(support::hooked::aged_host()).index(&index);
    let done = job.run().unwrap();
    assert_eq!(done.told(), []);
    assert_eq!(done.counts.files, 3000);
    assert!(verify(&vault).trees > 3000);
    let again = job.run().unwrap();
    assert_eq!(again.tree, done.tree);
    assert_eq!(again.summary.tree_blobs, 0);
    remove(dir.path(), "home");
}

#[test]
fn few_descriptors_are_enough_for_a_deep_tree() {
    // The limit is of the whole process: the backup runs in the example program.
    let dir = support::quick_dir();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    deep(&home, 700, "zzz", true);
    let example = support::example("snapshot");
    let script = format!("ulimit -n 256; exec {} \"$@\"", example.display());
    let output = std::process::Command::new("sh")
        .args(["-c", &script, "sh"])
        .args([&dir.path().join("vault"), &home])
        .env("BACKSTAY_PASSWORD", support::PASSWORD)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("files: 700") && !text.contains("Problem"), "{text}");
    remove(dir.path(), "home");
}

#[test]
fn stopping_in_a_very_deep_tree_is_no_matter_of_stack() {
    let dir = support::quick_dir();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    deep(&home, 8_000, "d", false);
    let (memory, vault) = memory_vault();
    let job = Job::new(&vault, &home);
    let cancel = job.cancel.clone();
    let folders = AtomicU32::new(0);
    let hooked = Hooked::new(Arc::new(Host)).without_names().before(move |call, _, _| {
        if call == Call::Entries && folders.fetch_add(1, Ordering::SeqCst) == 7_900 {
            cancel.cancel();
        }
    });
    let error = job.on(Arc::new(hooked)).run().unwrap_err();
    assert_eq!(error.code(), Code::Cancelled);
    assert_eq!(names(&memory, "locks"), Vec::<String>::new());
    remove(dir.path(), "home");
}

// --- mounts and what is left out

#[test]
fn mounts_inside_are_left_out_and_told() {
    // Mounts need a mount namespace of one's own, so the backup runs in the example program.
    let dir = temp_dir();
    let home = dir.path().join("home");
    tree(&home);
    fs::create_dir_all(home.join("mnt")).unwrap();
    fs::create_dir_all(dir.path().join("outside")).unwrap();
    fs::write(dir.path().join("outside/secret"), b"secret").unwrap();
    let example = support::example("snapshot");
    let script = r#"set -e
        mount --make-rprivate /
        mount -t tmpfs none "$2/mnt"
        echo in-the-tmpfs > "$2/mnt/secret"
        mount --bind "$2/../outside" "$2/b"
        mount --bind "$2/../outside/secret" "$2/a/other"
        exec "$0" "$1" "$2" "$3"
    "#;
    for run in 0..2 {
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "--", "sh", "-c", script]).arg(&example);
        command.args([dir.path().join("vault"), home.clone(), dir.path().join("index")]);
        let output = command.env("BACKSTAY_PASSWORD", support::PASSWORD).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "run {run} (it needs the right to mount): {text} {errors}");
        for path in ["mnt", "b", "a/other"] {
            assert!(text.contains(&format!("path: {path:?}, kind: Mount")), "{text}");
        }
        assert_eq!(text.matches("Problem").count(), 3, "{text}");
    }
    let vault = support::open(Arc::new(backstay_storage::Local::open(dir.path().join("vault")).unwrap()));
    let (_, snapshot) = vault.snapshots().unwrap().pop().unwrap();
    let reader = vault.reader().unwrap();
    let find = |path: &str| reader.find(&snapshot.tree, &Path::new("content").join(path));
    for path in ["mnt", "b"] {
        // The mount point is there, so that it can be mounted again; nothing is in it.
        assert!(reader.tree(&find(path).unwrap().subtree.unwrap()).unwrap().is_empty());
    }
    assert!(find("a/other").is_err() && find("a/file").is_ok());
    verify(&vault);
    support::restic_check(&dir.path().join("vault"));
}

#[test]
fn the_vault_inside_the_home_is_left_out_and_told() {
    let dir = temp_dir();
    tree(dir.path());
    let place = dir.path().join("state/vault");
    let vault = support::local_vault(&place);
    let mut exclusions = backstay_tree::Exclusions::new();
    assert!(exclusions.add_folder(&Host, &place).unwrap());
    let index = dir.path().join("state/index");
    File::create(&index).unwrap();
    let job = Job { exclusions, ..Job::new(&vault, dir.path()) };
    let mut sizes = Vec::new();
    for _ in 0..3 {
        let done = job.run().unwrap();
        assert_eq!(done.told(), [("state/vault", ProblemKind::Excluded)]);
        assert!(node_at(&vault, &done, "state/vault").is_none());
        assert!(node_at(&vault, &done, "state").is_some());
        sizes.push(names(&**vault.storage(), "data").len());
    }
    assert_eq!(sizes[0], sizes[2], "it does not eat itself");
    support::restic_check(&place);
}

// --- storage

#[test]
fn a_storage_that_fails_ends_the_backup_with_its_code_and_nothing_else() {
    let dir = temp_dir();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    let files = fixtures::small(&home, 41, 100);
    fs::write(home.join("large"), Random::new(5).bytes(40 << 20)).unwrap();
    let storage = Arc::new(FaultyStorage::new(Arc::new(Memory::new())));
    let vault = new_vault(storage.clone());
    let first = Job::new(&vault, &home).run().unwrap();
    fixtures::change(&home, 1, &files);
    fs::write(home.join("large"), Random::new(6).bytes(40 << 20)).unwrap();
    let mut tried = 0;
    for code in [Code::StorageFull, Code::StorageUnavailable, Code::StorageDenied, Code::StorageFailed] {
        for (op, folder) in [
            (Op::Put, "data/"),
            (Op::Put, "index/"),
            (Op::Put, "snapshots/"),
            (Op::Put, "locks/"),
            (Op::List, "data"),
            (Op::List, "index"),
            (Op::Get, "index/"),
        ] {
            for nth in 1..=3 {
                let snapshots = names(&*storage, "snapshots");
                storage.add(Rule::new(StorageFault::Fail(code)).on(op).name(folder).from_nth(nth).times(1));
                let result = Job::new(&vault, &home).parent(Parent::Nothing).run();
                storage.clear();
                tried += 1;
                match result {
                    // There was no such call.
                    Ok(done) => vault.forget(&[done.id]).unwrap(),
                    Err(error) => {
                        assert_eq!(error.code(), code, "{op:?} {folder} {nth}: {error}");
                        assert_eq!(names(&*storage, "snapshots"), snapshots, "nothing was committed");
                    }
                }
                assert_eq!(names(&*storage, "locks"), Vec::<String>::new());
            }
        }
    }
    println!("{tried} storage faults");
    // Earlier points are fine, and the next one works.
    assert_eq!(vault.snapshots().unwrap()[0].0, first.id);
    let done = Job::new(&vault, &home).run().unwrap();
    assert!(saved(&vault, &done, "large") == Random::new(6).bytes(40 << 20));
    verify(&vault);
}

#[test]
fn a_full_disk_is_told_and_works_again_when_there_is_room() {
    let dir = temp_dir();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("small"), b"small").unwrap();
    let script = r#"set -e
        mount --make-rprivate /
        mkdir "$1/mnt"; mount -t tmpfs -o size=24m none "$1/mnt"
        "$0" "$1/mnt/vault" "$1/home" "$1/index"
        head -c 40000000 /dev/urandom > "$1/home/large"
        ! "$0" "$1/mnt/vault" "$1/home" "$1/index" 2> "$1/error"
        rm "$1/mnt/filler" 2> /dev/null || true
        mount -o remount,size=200m "$1/mnt"
        "$0" "$1/mnt/vault" "$1/home" "$1/index"
        cp -r "$1/mnt/vault" "$1/vault"
    "#;
    let output = std::process::Command::new("unshare")
        .args(["--mount", "--", "sh", "-c", script])
        .args([&support::example("snapshot"), dir.path()])
        .env("BACKSTAY_PASSWORD", support::PASSWORD)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "(it needs the right to mount) {errors}");
    let error = fs::read_to_string(dir.path().join("error")).unwrap();
    assert!(error.contains("StorageFull"), "{error}");
    let vault = support::open(Arc::new(backstay_storage::Local::open(dir.path().join("vault")).unwrap()));
    assert_eq!(verify(&vault).snapshots, 2);
    assert_eq!(names(&**vault.storage(), "locks"), Vec::<String>::new());
    support::restic_check(&dir.path().join("vault"));
}

// --- stopping

#[test]
fn stopping_in_a_large_file_is_quick_and_leaves_nothing() {
    let dir = temp_dir();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("large"), Random::new(7).bytes(150 << 20)).unwrap();
    let place = dir.path().join("vault");
    let vault = support::local_vault(&place);
    for reads in [0, 3, 9] {
        let job = Job::new(&vault, &home);
        let cancel = job.cancel.clone();
        let at = Arc::new(parking_lot::Mutex::new(None::<Instant>));
        let (count, when) = (AtomicU32::new(0), at.clone());
        let hooked = Hooked::new(Arc::new(Host)).before(move |call, _, _| {
            if call == Call::ReadAt && count.fetch_add(1, Ordering::SeqCst) == reads {
                cancel.cancel();
                *when.lock() = Some(Instant::now());
            }
        });
        let error = job.on(Arc::new(hooked)).run().unwrap_err();
        let took = at.lock().unwrap().elapsed();
        assert_eq!(error.code(), Code::Cancelled);
        println!("stopped after {reads} reads: it took {took:?}");
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert_eq!(names(&**vault.storage(), "snapshots"), Vec::<String>::new());
        assert_eq!(names(&**vault.storage(), "locks"), Vec::<String>::new());
        // Nothing is written after that.
        let packs = names(&**vault.storage(), "");
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(names(&**vault.storage(), ""), packs);
    }
    Job::new(&vault, &home).run().unwrap();
    support::restic_check(&place);
}
