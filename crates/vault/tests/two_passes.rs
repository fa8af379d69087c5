//! Two passes over one tree with something between them: what the second one takes from the first, what it keeps of what
//! is gone, what it reads from elsewhere.

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
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_model::{Cancel, ProblemKind, Silent};
use backstay_testing::fixtures::{self, Random};
use backstay_testing::temp_dir;
use backstay_tree::filter::Filter;
use backstay_tree::fs::{Call, Fault, Faulty, FileSystem, FileTime, Host, Kind};
use backstay_vault::backup::{SnapshotDetails, Substitute, TreeOptions, TreeSummary};
use backstay_vault::check::{CheckOptions, check};
use backstay_vault::snapshot::Summary;
use backstay_vault::{Id, Node, Strength, Vault};
use rustix::io::Errno;
use support::hooked::{aged, aged_host};
use support::{Job, Parent, memory_vault, verify};

/// A backup of two passes.
struct Two<'a> {
    vault: &'a Vault,
    home: &'a Path,
    fs: Arc<dyn FileSystem>,
    index: Option<PathBuf>,
    defer: BTreeSet<PathBuf>,
    substitutes: BTreeMap<PathBuf, Substitute>,
    filter: Option<Filter>,
}

struct Taken {
    first: TreeSummary,
    second: TreeSummary,
    id: Id,
    summary: Summary,
}

impl<'a> Two<'a> {
    fn new(vault: &'a Vault, home: &'a Path) -> Self {
        Two {
            vault,
            home,
            fs: aged_host(),
            index: None,
            defer: BTreeSet::new(),
            substitutes: BTreeMap::new(),
            filter: None,
        }
    }

    fn run(&self, between: impl FnOnce()) -> Taken {
        let lock = self.vault.lock(Strength::Shared, Duration::ZERO, &Cancel::new()).unwrap();
        let parent = self.vault.snapshots().unwrap().last().map(|(id, _)| *id);
        let mut writer = self.vault.begin(&lock, 3, &Cancel::new()).unwrap();
        let options = TreeOptions {
            parent,
            file_index: self.index.clone(),
            filter: self.filter.clone(),
            ..TreeOptions::default()
        };
        let first =
            writer.save_tree_first("content", &self.fs, self.home, options, &self.defer, &Silent).unwrap();
        between();
        let second = writer.save_tree_again("content", &self.fs, &self.substitutes, &Silent).unwrap();
        let details =
            SnapshotDetails { time: writer.started(), paths: vec!["/x".into()], tags: Vec::new(), parent };
        let committed = writer.commit(&lock, details, &Silent).unwrap();
        lock.release().unwrap();
        let root = self.vault.reader().unwrap().tree(&committed.snapshot.tree).unwrap();
        assert_eq!(root.len(), 1, "the second pass takes the place of the first");
        assert_eq!(root[0].subtree, Some(second.tree));
        Taken { first, second, id: committed.id, summary: committed.snapshot.summary.unwrap() }
    }
}

/// All nodes of a tree by path, without the trees of folders.
fn nodes(vault: &Vault, tree: &Id) -> BTreeMap<PathBuf, Node> {
    let reader = vault.reader().unwrap();
    let mut found = BTreeMap::new();
    let mut open = vec![(PathBuf::new(), *tree)];
    while let Some((path, tree)) = open.pop() {
        for mut node in reader.tree(&tree).unwrap() {
            let path = path.join(&node.name);
            open.extend(node.subtree.take().map(|tree| (path.clone(), tree)));
            found.insert(path, node);
        }
    }
    found
}

fn totals(nodes: &BTreeMap<PathBuf, Node>) -> (u64, u64) {
    let files = nodes.values().filter(|n| n.kind == Some(Kind::File));
    files.fold((0, 0), |(files, bytes), n| (files + 1, bytes + n.size))
}

#[track_caller]
fn is_clean(vault: &Vault) {
    let report = check(vault, CheckOptions { read_data: true }, &Silent, &Cancel::new()).unwrap();
    assert!(report.is_clean(), "{:#?}", report.errors);
    verify(vault);
}

fn text(vault: &Vault, tree: &Id, path: &str) -> Option<Vec<u8>> {
    let reader = vault.reader().unwrap();
    let node = reader.find(tree, Path::new(path)).ok()?;
    let mut bytes = Vec::new();
    reader.cat(&node, &mut bytes).unwrap();
    Some(bytes)
}

fn paths(list: &[&str]) -> Vec<PathBuf> {
    list.iter().map(PathBuf::from).collect()
}

// --- the rule

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Makes or replaces something at a random place. Lengths differ each time: with everything aged, a change that keeps
/// length and time would be overlooked.
fn act(home: &Path, random: &mut Random, length: &mut usize) {
    let mut path = home.to_owned();
    for _ in 0..=random.below(3) {
        path.push(NAMES[random.below(4) as usize]);
    }
    let remove = |path: &Path| match fs::symlink_metadata(path) {
        Ok(m) if m.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    };
    let kind = random.below(8);
    if kind >= 6 {
        return remove(&path);
    }
    let mut above = home.to_owned();
    for part in path.parent().unwrap().strip_prefix(home).unwrap() {
        above.push(part);
        if fs::symlink_metadata(&above).is_ok_and(|m| !m.is_dir()) {
            remove(&above);
        }
        fs::create_dir_all(&above).unwrap();
    }
    *length += 1;
    match kind {
        0 => {
            remove(&path);
            fs::create_dir(&path).unwrap();
        }
        1 => {
            remove(&path);
            std::os::unix::fs::symlink(format!("to-{length}"), &path).unwrap();
        }
        2 if fs::symlink_metadata(&path).is_ok() => {
            if !fs::symlink_metadata(&path).unwrap().is_symlink() {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o700 + *length as u32 % 64)).unwrap();
            }
        }
        _ => {
            if fs::symlink_metadata(&path).is_ok_and(|m| !m.is_file()) {
                remove(&path);
            }
            fs::write(&path, vec![b'x'; *length]).unwrap();
        }
    }
}

/// What the tree of the second pass must be: the second state, and of the first what has no other thing in its way.
fn union(first: &BTreeMap<PathBuf, Node>, second: &BTreeMap<PathBuf, Node>) -> BTreeMap<PathBuf, Node> {
    let mut all = second.clone();
    for (path, node) in first {
        let is_in_the_way = |above: &Path| second.get(above).is_some_and(|n| n.kind != Some(Kind::Dir));
        if !second.contains_key(path) && !path.ancestors().any(is_in_the_way) {
            all.insert(path.clone(), node.clone());
        }
    }
    all
}

#[test]
fn the_second_tree_is_what_is_there_now_and_what_is_gone_since() {
    let mut kept = 0;
    for seed in 0..60 {
        let dir = temp_dir();
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        let (_memory, vault) = memory_vault();
        let mut random = Random::new(seed);
        let mut length = 0;
        let index = (seed % 3 != 0).then(|| dir.path().join("index"));
        for _ in 0..30 {
            act(&home, &mut random, &mut length);
        }
        if seed % 2 == 0 {
            let job = Job::new(&vault, &home).on(aged_host());
            index.iter().fold(job, |job, index| job.index(index)).run().unwrap();
            (0..10).for_each(|_| act(&home, &mut random, &mut length));
        }
        let two = Two { index: index.clone(), ..Two::new(&vault, &home) };
        let taken = two.run(|| (0..12).for_each(|_| act(&home, &mut random, &mut length)));
        let fresh = || Job::new(&vault, &home).on(aged_host()).parent(Parent::Nothing).run().unwrap();
        let (first, now) = (nodes(&vault, &taken.first.tree), nodes(&vault, &fresh().tree));
        let got = nodes(&vault, &taken.second.tree);
        let wanted = union(&first, &now);
        for (path, node) in &wanted {
            assert_eq!(got.get(path), Some(node), "seed {seed}: {}", path.display());
        }
        assert_eq!(got.len(), wanted.len(), "seed {seed}");
        let counts = taken.second.counts;
        assert_eq!((counts.files, counts.bytes), totals(&got), "seed {seed}: what is counted");
        let s = &taken.summary;
        assert_eq!(s.files_new + s.files_changed + s.files_unmodified, counts.files, "seed {seed}");
        // Told: each that is kept, by itself or by a folder above it.
        let gone: BTreeSet<&PathBuf> = wanted.keys().filter(|p| !now.contains_key(*p)).collect();
        for path in wanted.keys() {
            let told = path.ancestors().any(|p| taken.second.vanished.iter().any(|v| v == p));
            assert_eq!(told, gone.contains(path), "seed {seed}: {}", path.display());
        }
        kept += gone.len();
        // The next backup is as right as one that knows nothing.
        let parent = Parent::This(taken.id);
        let job = Job::new(&vault, &home).on(aged_host()).parent(parent);
        let next = index.iter().fold(job, |job, index| job.index(index)).run().unwrap();
        assert_eq!(next.tree, fresh().tree, "seed {seed}");
        (0..5).for_each(|_| act(&home, &mut random, &mut length));
        let job = Job::new(&vault, &home).on(aged_host()).parent(Parent::This(next.id));
        let next = index.iter().fold(job, |job, index| job.index(index)).run().unwrap();
        assert_eq!(next.tree, fresh().tree, "seed {seed}");
        is_clean(&vault);
    }
    println!("{kept} entries were kept");
    assert!(kept > 60, "{kept}");
}

// --- what it costs

fn count(fs: &Faulty, call: Call) -> usize {
    fs.log().iter().filter(|c| c.call == call).count()
}

#[test]
fn a_second_pass_over_a_tree_that_is_as_it_was_reads_and_stores_nothing() {
    let dir = temp_dir();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    fixtures::small(&home, 5, 120);
    for index in [None, Some(dir.path().join("index"))] {
        let (_memory, vault) = memory_vault();
        let log = Arc::new(Faulty::new(Arc::new(Host)));
        let opened = std::cell::Cell::new(0);
        let two = Two { index, fs: aged(log.clone()), ..Two::new(&vault, &home) };
        let taken = two.run(|| opened.set(count(&log, Call::OpenFile)));
        assert!(opened.get() >= 120);
        assert_eq!(count(&log, Call::OpenFile), opened.get(), "the second pass opens no file");
        assert_eq!(taken.first.tree, taken.second.tree);
        assert_eq!(taken.first.counts, taken.second.counts);
        assert_eq!((taken.summary.files_new, taken.summary.files_unmodified), (taken.first.counts.files, 0));
        assert!(taken.second.vanished.is_empty() && taken.second.problems.is_empty());
        is_clean(&vault);
    }
}

#[test]
fn a_second_pass_over_many_files_takes_about_as_long_as_a_backup_without_changes() {
    let dir = support::quick_dir();
    let home = dir.path().join("home");
    for folder in 0..100 {
        fs::create_dir_all(home.join(format!("{folder}"))).unwrap();
        for file in 0..100 {
            fs::write(home.join(format!("{folder}/{file}")), format!("{folder}-{file}")).unwrap();
        }
    }
    let (_memory, vault) = memory_vault();
    let index = dir.path().join("index");
    let job = Job::new(&vault, &home).on(aged_host()).index(&index);
    job.run().unwrap();
    let begun = Instant::now();
    job.run().unwrap();
    let without_changes = begun.elapsed();
    let between = std::cell::Cell::new(Instant::now());
    let two = Two { index: Some(index), ..Two::new(&vault, &home) };
    two.run(|| between.set(Instant::now()));
    let second = between.get().elapsed();
    println!(
        "10,000 files: a backup without changes {without_changes:?}, the second pass with its commit {second:?}"
    );
    assert!(
        second < without_changes * 3 + Duration::from_millis(200),
        "{second:?} against {without_changes:?}"
    );
}

// --- what is told

#[test]
fn problems_that_went_away_are_not_told_and_those_that_hold_are_told_once() {
    let dir = temp_dir();
    let home = dir.path().join("home");
    fs::create_dir_all(home.join("gone/sub")).unwrap();
    for path in ["read-later", "never", "lost", "fine", "gone/sub/bad", "gone/sub/good"] {
        fs::write(home.join(path), path).unwrap();
    }
    let socket = std::os::unix::net::UnixListener::bind(home.join("socket")).unwrap();
    let (_memory, vault) = memory_vault();
    let faulty = Arc::new(Faulty::new(Arc::new(Host)));
    let refuse =
        |name: &str| faulty.fail(Fault::of(Call::OpenFile, Errno::ACCESS.raw_os_error()).named(name));
    ["read-later", "never", "bad"].into_iter().for_each(refuse);
    let two = Two { fs: aged(faulty.clone()), ..Two::new(&vault, &home) };
    let taken = two.run(|| {
        faulty.heal();
        ["never", "lost"].into_iter().for_each(refuse);
        // It would be read again, and cannot be.
        fs::write(home.join("lost"), "lost and more").unwrap();
        fs::remove_dir_all(home.join("gone")).unwrap();
    });
    let told: Vec<_> = taken.second.problems.iter().map(|p| (p.path.as_str(), p.kind)).collect();
    let wanted = [
        ("gone/sub/bad", ProblemKind::Unreadable),
        ("lost", ProblemKind::Unreadable),
        ("never", ProblemKind::Unreadable),
        ("socket", ProblemKind::Socket),
    ];
    assert_eq!(told, wanted);
    assert_eq!(taken.second.vanished, paths(&["gone", "lost"]));
    let tree = taken.second.tree;
    assert_eq!(text(&vault, &tree, "read-later").unwrap(), b"read-later");
    assert_eq!(text(&vault, &tree, "lost").unwrap(), b"lost", "as the first pass read it");
    assert_eq!(text(&vault, &tree, "gone/sub/good").unwrap(), b"gone/sub/good");
    assert!(text(&vault, &tree, "gone/sub/bad").is_none() && text(&vault, &tree, "never").is_none());
    drop(socket);
    is_clean(&vault);
}

#[test]
fn holes_and_filters_are_those_of_the_tree_in_the_end() {
    let dir = temp_dir();
    let home = dir.path().join("home");
    fs::create_dir_all(home.join("folder/cache")).unwrap();
    let sparse = |path: &str| {
        let file = fs::File::create(home.join(path)).unwrap();
        file.write_all_at(&[1; 5000], 4 << 20).unwrap();
        file.set_len(6 << 20).unwrap();
    };
    ["stays", "folder/goes", "filled"].into_iter().for_each(sparse);
    for path in ["a.tmp", "folder/cache/x", "b.log"] {
        fs::write(home.join(path), path).unwrap();
    }
    let (_memory, vault) = memory_vault();
    let filter = Filter::from_lines(&["a.tmp", "b.log", "folder/cache", "nothing"]).unwrap();
    let two = Two { filter: Some(filter), ..Two::new(&vault, &home) };
    let taken = two.run(|| {
        fs::remove_dir_all(home.join("folder")).unwrap();
        fs::remove_file(home.join("b.log")).unwrap();
        fs::write(home.join("filled"), "small now").unwrap();
        sparse("new");
    });
    let holes: Vec<_> = taken.second.sparse.iter().map(|s| s.path.as_str()).collect();
    assert_eq!(holes, ["folder/goes", "new", "stays"]);
    let first = |path: &str| taken.first.sparse.iter().find(|s| s.path == path).unwrap();
    assert_eq!(&taken.second.sparse[0], first("folder/goes"));
    let filtered = taken.second.filtered.unwrap();
    assert_eq!(
        (filtered.left_out, filtered.unmatched),
        (1, vec![3]),
        "a rule named something in either pass"
    );
    assert_eq!(nodes(&vault, &taken.second.tree).len(), 5);
    is_clean(&vault);
}

// --- substitutes

const HEADER: &[u8] = b"SQLite format 3\0";

fn database(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = HEADER.to_vec();
    bytes.extend(Random::new(seed).bytes(length));
    bytes
}

struct WithDatabase {
    dir: tempfile::TempDir,
    home: PathBuf,
    vault: Vault,
}

impl WithDatabase {
    fn new() -> Self {
        let dir = temp_dir();
        let home = dir.path().join("home");
        fs::create_dir_all(home.join("data")).unwrap();
        fs::write(home.join("data/other"), "other").unwrap();
        fs::write(home.join("data/app.db"), database(9000, 1)).unwrap();
        for end in ["-wal", "-shm", "-journal"] {
            fs::write(home.join(format!("data/app.db{end}")), end).unwrap();
        }
        WithDatabase { vault: memory_vault().1, dir, home }
    }

    fn two(&self, content: &[u8]) -> Two<'_> {
        let path = self.dir.path().join("substitute");
        fs::write(&path, content).unwrap();
        let substitute = Substitute { content: path, leave_out_siblings: true };
        Two {
            index: Some(self.dir.path().join("index")),
            defer: BTreeSet::from(["data/app.db".into()]),
            substitutes: BTreeMap::from([("data/app.db".into(), substitute)]),
            ..Two::new(&self.vault, &self.home)
        }
    }
}

#[test]
fn a_substitute_gives_its_bytes_and_what_belongs_to_the_file_is_left_out() {
    let case = WithDatabase::new();
    let (home, vault) = (&case.home, &case.vault);
    fs::set_permissions(home.join("data/app.db"), fs::Permissions::from_mode(0o640)).unwrap();
    let log = Arc::new(Faulty::new(Arc::new(Host)));
    let content = database(20_000, 2);
    let taken = Two { fs: aged(log.clone()), ..case.two(&content) }.run(|| ());
    let first: Vec<_> = nodes(vault, &taken.first.tree).into_keys().collect();
    assert_eq!(first, paths(&["data", "data/other"]), "deferred with all that belongs to it");
    let opened =
        log.log().iter().any(|c| c.call == Call::OpenFile && c.name.to_string_lossy().contains("app.db"));
    assert!(!opened, "the database itself is never opened");
    assert_eq!(text(vault, &taken.second.tree, "data/app.db").unwrap(), content);
    let all = nodes(vault, &taken.second.tree);
    assert_eq!(all.keys().cloned().collect::<Vec<_>>(), paths(&["data", "data/app.db", "data/other"]));
    let node = &all[Path::new("data/app.db")];
    let live = fs::metadata(home.join("data/app.db")).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!((node.mode, node.inode, node.size), (0o640, live.ino(), content.len() as u64));
    assert_eq!(node.mtime.secs, live.mtime());
    assert_eq!(node.ctime, FileTime::default(), "it does not look unchanged to anybody");
    let second = &taken.second;
    assert_eq!(second.siblings, paths(&["data/app.db-journal", "data/app.db-shm", "data/app.db-wal"]));
    assert!(second.not_substituted.is_empty() && second.vanished.is_empty() && second.problems.is_empty());
    assert_eq!(second.sqlite, paths(&["data/app.db"]));
    assert_eq!(second.counts.files, 2);
    // Again with the same bytes: nothing is stored, the trees are the same.
    let again = case.two(&content).run(|| ());
    assert_eq!(again.second.tree, taken.second.tree);
    assert_eq!(again.summary.data_blobs, 0);
    assert_eq!((again.summary.files_new, again.summary.files_unmodified), (0, 1));
    // Other bytes while the file itself looks as before.
    let other = database(20_000, 3);
    let third = case.two(&other).run(|| ());
    assert_eq!(text(vault, &third.second.tree, "data/app.db").unwrap(), other);
    // Without a substitute the file itself is read, though it looks as it was.
    let index = case.dir.path().join("index");
    let plain = Job::new(vault, home).on(aged_host()).index(&index).run().unwrap();
    assert_eq!(text(vault, &plain.tree, "data/app.db").unwrap(), fs::read(home.join("data/app.db")).unwrap());
    let full = Job::new(vault, home).on(aged_host()).parent(Parent::Nothing).run().unwrap();
    assert_eq!(plain.tree, full.tree);
    is_clean(vault);
}

#[test]
fn a_substitute_takes_the_place_of_what_the_first_pass_read() {
    let case = WithDatabase::new();
    let content = database(30_000, 4);
    let two = Two { defer: BTreeSet::new(), ..case.two(&content) };
    let taken = two.run(|| {
        // Closed meanwhile: what belonged to it is gone, and does not stay either.
        fs::remove_file(case.home.join("data/app.db-wal")).unwrap();
    });
    assert_eq!(taken.first.sqlite, paths(&["data/app.db"]));
    assert_eq!(taken.first.counts.files, 5);
    let all: Vec<_> = nodes(&case.vault, &taken.second.tree).into_keys().collect();
    assert_eq!(all, paths(&["data", "data/app.db", "data/other"]));
    assert_eq!(text(&case.vault, &taken.second.tree, "data/app.db").unwrap(), content);
    assert!(taken.second.vanished.is_empty());
    assert_eq!(taken.second.counts.files, 2);
    is_clean(&case.vault);
}

#[test]
fn a_substitute_for_what_is_no_file_any_more_is_told() {
    let case = WithDatabase::new();
    let mut two = Two { defer: BTreeSet::new(), ..case.two(&database(100, 5)) };
    let missing = Substitute { content: case.dir.path().join("nothing"), leave_out_siblings: false };
    two.substitutes.insert("data/other".into(), missing.clone());
    two.substitutes.insert("nowhere/x".into(), missing);
    let taken = two.run(|| {
        fs::remove_file(case.home.join("data/app.db")).unwrap();
        fs::create_dir(case.home.join("data/app.db")).unwrap();
    });
    assert_eq!(taken.second.not_substituted, paths(&["data/app.db", "data/other", "nowhere/x"]));
    let told: Vec<_> = taken.second.problems.iter().map(|p| (p.path.as_str(), p.kind)).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].0, "data/other");
    assert_eq!(
        text(&case.vault, &taken.second.tree, "data/other").unwrap(),
        b"other",
        "as the first pass read it"
    );
    let all = nodes(&case.vault, &taken.second.tree);
    assert_eq!(all[Path::new("data/app.db")].kind, Some(Kind::Dir), "the new one counts");
    assert!(all.contains_key(Path::new("data/app.db-wal")));
    is_clean(&case.vault);
}

#[test]
fn databases_are_found_without_opening_what_is_as_it_was() {
    let dir = temp_dir();
    let home = dir.path().join("home");
    fs::create_dir_all(home.join("deep/er")).unwrap();
    fs::write(home.join("small.db"), database(50, 1)).unwrap();
    fs::write(home.join("deep/er/large.sqlite"), database(5 << 20, 2)).unwrap();
    fs::write(home.join("text"), "SQLite format 3 is what this begins with").unwrap();
    fs::write(home.join("with-log"), "anything").unwrap();
    fs::write(home.join("with-log-wal"), "its log").unwrap();
    let (_memory, vault) = memory_vault();
    let index = dir.path().join("index");
    let log = Arc::new(Faulty::new(Arc::new(Host)));
    let two = Two { index: Some(index), fs: aged(log.clone()), ..Two::new(&vault, &home) };
    let taken = two.run(|| fs::remove_file(home.join("small.db")).unwrap());
    let found = paths(&["deep/er/large.sqlite", "small.db"]);
    assert_eq!(taken.first.sqlite, found, "read, and begins like one");
    // In the second pass nothing is opened; what has a `-wal` beside it may be one.
    let found = paths(&["deep/er/large.sqlite", "small.db", "with-log"]);
    assert_eq!(taken.second.sqlite, found, "those of the first pass are still in the tree");
    let opened = count(&log, Call::OpenFile);
    fs::write(home.join("with-log-wal"), "its log goes on").unwrap();
    let taken = two.run(|| ());
    assert_eq!(count(&log, Call::OpenFile), opened + 1, "the log alone");
    assert_eq!(taken.first.sqlite, paths(&["with-log"]));
    assert_eq!(taken.second.sqlite, paths(&["with-log"]));
}

#[test]
fn restic_reads_what_two_passes_and_a_broken_stream_leave() {
    use std::io::{Error, Read};
    let dir = temp_dir();
    let (home, place) = (dir.path().join("home"), dir.path().join("vault"));
    fs::create_dir(&home).unwrap();
    fixtures::small(&home, 77, 60);
    fs::write(home.join("app.db"), database(3000, 1)).unwrap();
    let substitute = dir.path().join("substitute");
    fs::write(&substitute, database(4 << 20, 2)).unwrap();
    let vault = support::local_vault(&place);
    let lock = vault.lock(Strength::Shared, Duration::ZERO, &Cancel::new()).unwrap();
    let mut writer = vault.begin(&lock, 3, &Cancel::new()).unwrap();
    let fs_: Arc<dyn FileSystem> = aged_host();
    let defer = BTreeSet::from([PathBuf::from("app.db")]);
    writer.save_tree_first("content", &fs_, &home, TreeOptions::default(), &defer, &Silent).unwrap();
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(Error::other("broken"))
        }
    }
    let stream = Random::new(5).text(3 << 20);
    let mut broken = stream.as_slice().chain(Broken);
    writer.save_stream("databases/broken", &mut broken, 1).unwrap().unwrap_err();
    writer.save_stream("databases/whole", &mut stream.as_slice(), 1).unwrap().unwrap();
    fs::remove_dir_all(home.join("uploads")).unwrap();
    fs::write(home.join("new"), "new").unwrap();
    let substitutes = BTreeMap::from([(
        "app.db".into(),
        Substitute { content: substitute.clone(), leave_out_siblings: true },
    )]);
    let second = writer.save_tree_again("content", &fs_, &substitutes, &Silent).unwrap();
    let details =
        SnapshotDetails { time: writer.started(), paths: vec!["/x".into()], tags: Vec::new(), parent: None };
    let point = writer.commit(&lock, details, &Silent).unwrap();
    lock.release().unwrap();
    assert_eq!(second.vanished, paths(&["uploads"]));
    support::restic_check(&place);
    let target = dir.path().join("target");
    let restic = backstay_testing::Restic::new(&place, support::PASSWORD);
    let id = point.id.to_string();
    restic.restore(&id, &target).ok();
    assert!(fs::read(target.join("databases/whole")).unwrap() == stream);
    assert!(!target.join("databases/broken").exists());
    assert!(fs::read(target.join("content/app.db")).unwrap() == fs::read(&substitute).unwrap());
    assert!(target.join("content/uploads").is_dir() && target.join("content/new").is_file());
}
