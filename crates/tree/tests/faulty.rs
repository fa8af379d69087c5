//! The file system that fails on request: it must itself be right, all crash tests stand on it.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

mod common;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use backstay_tree::compare;
use backstay_tree::fs::{Call, Fault, Faulty, FileSystem, Host, Kill, Kind, Rename};
use common::{Random, errno, host};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;
const ENOSYS: i32 = 38;
const EXDEV: i32 = 18;

fn n(name: &str) -> &OsStr {
    OsStr::new(name)
}

struct World {
    dir: tempfile::TempDir,
    fs: Faulty,
}

impl World {
    fn new() -> Self {
        // In memory where possible: real syncs would be most of the time, and the ledger stands in for the disk.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        for name in ["tree", "aside"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let fs = Faulty::with_power_loss(host(), &dir.path().join("aside")).unwrap();
        World { dir, fs }
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    fn root(&self) -> OwnedFd {
        self.fs.open_root(&self.tree()).unwrap()
    }

    fn put(&self, dir: BorrowedFd<'_>, name: &str, content: &[u8], sync: bool) {
        let file = self.fs.create_file(dir, n(name)).unwrap();
        self.fs.write_at(file.as_fd(), content, 0).unwrap();
        if sync {
            self.fs.sync(file.as_fd()).unwrap();
        }
    }

    fn mkdir(&self, dir: BorrowedFd<'_>, name: &str) -> OwnedFd {
        self.fs.create_dir(dir, n(name)).unwrap();
        self.fs.open_dir(dir, n(name)).unwrap()
    }

    /// All paths with contents (folders have none).
    fn see(&self) -> BTreeMap<String, Option<Vec<u8>>> {
        let mut seen = BTreeMap::new();
        let mut todo = vec![self.tree()];
        while let Some(at) = todo.pop() {
            for entry in std::fs::read_dir(at).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(self.tree()).unwrap().to_str().unwrap().to_owned();
                let meta = std::fs::symlink_metadata(&path).unwrap();
                seen.insert(name, if meta.is_file() { Some(std::fs::read(&path).unwrap()) } else { None });
                if meta.is_dir() {
                    todo.push(path);
                }
            }
        }
        seen
    }

    fn after_loss(&self) -> BTreeMap<String, Option<Vec<u8>>> {
        self.fs.power_loss().unwrap();
        assert_eq!(std::fs::read_dir(self.dir.path().join("aside")).unwrap().count(), 0, "cleaned up");
        self.see()
    }
}

fn tree(entries: &[(&str, Option<&[u8]>)]) -> BTreeMap<String, Option<Vec<u8>>> {
    entries.iter().map(|(k, v)| ((*k).to_owned(), v.map(<[u8]>::to_vec))).collect()
}

#[test]
fn a_kill_ends_everything_before_after_or_in_the_middle() {
    for (how, left) in [(Kill::Before, &b""[..]), (Kill::After, b"0123456789"), (Kill::Torn, b"01234")] {
        let (dir, _) = common::folder();
        let fs = Faulty::new(host());
        fs.kill_at(2, how);
        let root = fs.open_root(dir.path()).unwrap();
        let file = fs.create_file(root.as_fd(), n("f")).unwrap();
        let e = fs.write_at(file.as_fd(), b"0123456789", 0).unwrap_err();
        assert!(Faulty::is_killed(&e));
        assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), left);
        for e in [
            fs.sync(file.as_fd()).unwrap_err(),
            fs.stat(root.as_fd(), n("f")).unwrap_err(),
            fs.open_root(dir.path()).unwrap_err(),
            fs.unlink(root.as_fd(), n("f")).unwrap_err(),
        ] {
            assert!(Faulty::is_killed(&e));
        }
        assert!(dir.path().join("f").exists());
        let at = fs.killed_at().unwrap();
        assert_eq!((at.number, at.call, at.name.as_os_str()), (Some(2), Call::WriteAt, n("f")));
        assert_eq!(fs.points(), 2);
    }
    assert!(!Faulty::is_killed(&io::Error::from_raw_os_error(EIO)));
}

#[test]
fn calls_are_numbered_logged_and_counted_by_phase() {
    let (dir, _) = common::folder();
    let fs = Faulty::new(host());
    let root = fs.open_root(dir.path()).unwrap();
    fs.phase("make");
    let file = fs.create_file(root.as_fd(), n("f")).unwrap();
    fs.phase("move");
    fs.rename(root.as_fd(), n("f"), root.as_fd(), n("g"), Rename::NoReplace).unwrap();
    fs.stat(root.as_fd(), n("g")).unwrap();
    fs.sync(file.as_fd()).unwrap();
    assert_eq!(fs.phases(), [("make".to_owned(), 1), ("move".to_owned(), 2)]);
    let log: Vec<_> = fs.log().into_iter().map(|l| (l.number, l.call)).collect();
    assert_eq!(
        log,
        [
            (None, Call::OpenRoot),
            (Some(1), Call::CreateFile),
            (Some(2), Call::Rename),
            (None, Call::Stat),
            (Some(3), Call::Sync)
        ]
    );
}

#[test]
fn faults_strike_where_and_as_often_as_asked() {
    let (dir, _) = common::folder();
    std::fs::write(dir.path().join("a"), b"aa").unwrap();
    std::fs::write(dir.path().join("b"), b"bb").unwrap();
    let fs = Faulty::new(host());
    let root = fs.open_root(dir.path()).unwrap();
    let fd = root.as_fd();
    fs.fail(Fault::of(Call::ReadAt, EIO).named("a").after(1).times(2));
    let (a, b) = (fs.open_file(fd, n("a")).unwrap(), fs.open_file(fd, n("b")).unwrap());
    let mut buf = [0; 2];
    let got: Vec<_> = (0..4).map(|_| fs.read_at(a.as_fd(), &mut buf, 0).is_ok()).collect();
    assert_eq!(got, [true, false, false, true]);
    fs.read_at(b.as_fd(), &mut buf, 0).unwrap();
    fs.fail(Fault::about("b", EIO));
    assert_eq!(errno(fs.stat(fd, n("b"))), EIO);
    assert_eq!(errno(fs.unlink(fd, n("b"))), EIO);
    fs.stat(fd, n("a")).unwrap();
    fs.heal();
    fs.unlink(fd, n("b")).unwrap();
    // A full disk leaves half a write behind.
    let file = fs.create_file(fd, n("c")).unwrap();
    fs.fail(Fault::of(Call::WriteAt, ENOSPC));
    assert_eq!(errno(fs.write_at(file.as_fd(), b"0123456789", 0)), ENOSPC);
    assert_eq!(std::fs::read(dir.path().join("c")).unwrap(), b"01234");
}

#[test]
fn without_openat2_folders_are_opened_level_by_level() {
    let (dir, _) = common::folder();
    std::fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
    std::os::unix::fs::symlink("a", dir.path().join("l")).unwrap();
    let fs = Faulty::new(host());
    let root = fs.open_root(dir.path()).unwrap();
    fs.fail(Fault::of(Call::OpenDirBeneath, ENOSYS));
    let found = fs.open_dir_beneath(root.as_fd(), Path::new("a/b/c")).unwrap();
    let id = Host.stat_handle(found.as_fd()).unwrap().id();
    assert_eq!(id, Host.stat_handle(common::open(&dir.path().join("a/b/c")).as_fd()).unwrap().id());
    for bad in ["l/b", "a/../a", "/a", "", "a//b", "a/b/", "./a"] {
        assert!(fs.open_dir_beneath(root.as_fd(), Path::new(bad)).is_err(), "{bad}");
    }
    let ran = common::mounts::private(|| {
        common::mounts::tmpfs(&dir.path().join("a/b"));
        // A handle from before belongs to the other namespace, where nothing is mounted.
        let root = fs.open_root(dir.path()).unwrap();
        for slow in [true, false] {
            if !slow {
                fs.heal();
            }
            assert_eq!(errno(fs.open_dir_beneath(root.as_fd(), Path::new("a/b"))), EXDEV);
        }
    });
    if let Err(reason) = ran {
        println!("skipped: cannot mount here: {reason}");
    }
}

#[test]
fn what_was_synced_stays_and_the_rest_is_gone() {
    let w = World::new();
    let root = w.root();
    w.put(root.as_fd(), "kept", b"synced", true);
    w.put(root.as_fd(), "empty", b"name synced, content not", false);
    let sub = w.mkdir(root.as_fd(), "sub");
    w.fs.sync(root.as_fd()).unwrap();
    w.put(sub.as_fd(), "lost", b"folder not synced", true);
    w.put(root.as_fd(), "late", b"after the sync", true);
    assert_eq!(w.after_loss(), tree(&[("kept", Some(b"synced")), ("empty", Some(b"")), ("sub", None)]));
    assert!(Faulty::is_killed(&w.fs.stat(root.as_fd(), n("kept")).unwrap_err()));
}

#[test]
fn removals_and_moves_that_were_not_synced_are_undone() {
    let w = World::new();
    let root = w.root();
    let fd = root.as_fd();
    w.put(fd, "a", b"a", true);
    w.put(fd, "b", b"b", true);
    w.put(fd, "c", b"c", true);
    let old = w.mkdir(fd, "old");
    let from = w.mkdir(fd, "from");
    w.put(from.as_fd(), "x", b"x", true);
    w.fs.symlink(n("nowhere"), fd, n("link")).unwrap();
    w.fs.sync_all(fd).unwrap();
    let before = w.see();
    w.fs.unlink(fd, n("a")).unwrap();
    w.fs.rename(fd, n("b"), fd, n("c"), Rename::Replace).unwrap();
    w.fs.rename(fd, n("c"), fd, n("a"), Rename::NoReplace).unwrap();
    drop(old);
    w.fs.remove_dir(fd, n("old")).unwrap();
    w.put(fd, "old", b"now a file", true);
    w.fs.rename(fd, n("from"), fd, n("to"), Rename::NoReplace).unwrap();
    w.put(from.as_fd(), "y", b"y", true);
    w.fs.unlink(from.as_fd(), n("x")).unwrap();
    w.fs.unlink(fd, n("link")).unwrap();
    assert_ne!(w.see(), before);
    assert_eq!(w.after_loss(), before);
}

#[test]
fn a_synced_folder_that_moved_keeps_its_entries_at_the_old_place() {
    let w = World::new();
    let root = w.root();
    let (a, b) = (w.mkdir(root.as_fd(), "a"), w.mkdir(root.as_fd(), "b"));
    let sub = w.mkdir(a.as_fd(), "sub");
    w.fs.sync_all(root.as_fd()).unwrap();
    w.fs.rename(a.as_fd(), n("sub"), b.as_fd(), n("sub"), Rename::NoReplace).unwrap();
    w.put(sub.as_fd(), "f", b"1", true);
    w.fs.sync(sub.as_fd()).unwrap();
    // Half of the move is not enough.
    w.fs.sync(b.as_fd()).unwrap();
    assert_eq!(w.after_loss(), tree(&[("a", None), ("b", None), ("a/sub", None), ("a/sub/f", Some(b"1"))]));
}

#[test]
fn a_move_between_folders_is_durable_once_both_are_synced() {
    let w = World::new();
    let root = w.root();
    let (a, b) = (w.mkdir(root.as_fd(), "a"), w.mkdir(root.as_fd(), "b"));
    w.put(a.as_fd(), "f", b"1", true);
    w.fs.sync_all(root.as_fd()).unwrap();
    w.fs.rename(a.as_fd(), n("f"), b.as_fd(), n("g"), Rename::NoReplace).unwrap();
    w.fs.sync(b.as_fd()).unwrap();
    w.fs.sync(a.as_fd()).unwrap();
    assert_eq!(w.after_loss(), tree(&[("a", None), ("b", None), ("b/g", Some(b"1"))]));
}

#[test]
fn later_durable_changes_of_a_name_win_over_older_undone_ones() {
    let w = World::new();
    let root = w.root();
    let (a, b) = (w.mkdir(root.as_fd(), "a"), w.mkdir(root.as_fd(), "b"));
    w.put(a.as_fd(), "f", b"1", true);
    w.fs.sync_all(root.as_fd()).unwrap();
    w.fs.rename(a.as_fd(), n("f"), b.as_fd(), n("g"), Rename::NoReplace).unwrap();
    w.fs.sync(b.as_fd()).unwrap();
    w.fs.unlink(b.as_fd(), n("g")).unwrap();
    w.fs.sync(b.as_fd()).unwrap();
    // The unlink is on disk, the move is not: the old name leads to the file still.
    assert_eq!(w.after_loss(), tree(&[("a", None), ("b", None), ("a/f", Some(b"1"))]));

    let w = World::new();
    let root = w.root();
    let (a, b) = (w.mkdir(root.as_fd(), "a"), w.mkdir(root.as_fd(), "b"));
    w.fs.sync_all(root.as_fd()).unwrap();
    w.put(b.as_fd(), "g", b"1", true);
    w.fs.rename(b.as_fd(), n("g"), a.as_fd(), n("f"), Rename::NoReplace).unwrap();
    w.fs.sync(b.as_fd()).unwrap();
    // The creation is durable, the move away from it is not as a whole.
    assert_eq!(w.after_loss(), tree(&[("a", None), ("b", None), ("b/g", Some(b"1"))]));
}

#[test]
fn overwritten_and_cut_content_comes_back() {
    let w = World::new();
    let root = w.root();
    let file = w.fs.create_file(root.as_fd(), n("f")).unwrap();
    let fd = file.as_fd();
    w.fs.write_at(fd, b"0123456789", 0).unwrap();
    w.fs.sync(fd).unwrap();
    w.fs.sync(root.as_fd()).unwrap();
    w.fs.write_at(fd, b"XX", 2).unwrap();
    w.fs.truncate(fd, 5).unwrap();
    w.fs.write_at(fd, b"YYYYYYYYYYYY", 3).unwrap();
    w.fs.truncate(fd, 0).unwrap();
    w.fs.truncate(fd, 100).unwrap();
    assert_eq!(w.after_loss(), tree(&[("f", Some(b"0123456789"))]));
}

#[test]
fn a_failed_sync_makes_nothing_durable() {
    let w = World::new();
    let root = w.root();
    let file = w.fs.create_file(root.as_fd(), n("f")).unwrap();
    w.fs.sync(root.as_fd()).unwrap();
    w.fs.write_at(file.as_fd(), b"data", 0).unwrap();
    w.fs.fail(Fault::of(Call::Sync, EIO).times(1));
    assert_eq!(errno(w.fs.sync(file.as_fd())), EIO);
    assert_eq!(w.after_loss(), tree(&[("f", Some(b""))]));
}

#[test]
fn a_replacing_rename_over_an_empty_folder_is_undone() {
    let w = World::new();
    let root = w.root();
    let new = w.mkdir(root.as_fd(), "new");
    w.put(new.as_fd(), "f", b"1", true);
    w.mkdir(root.as_fd(), "target");
    w.fs.sync_all(root.as_fd()).unwrap();
    let before = w.see();
    w.fs.rename(root.as_fd(), n("new"), root.as_fd(), n("target"), Rename::Replace).unwrap();
    assert_eq!(w.see(), tree(&[("target", None), ("target/f", Some(b"1"))]));
    assert_eq!(w.after_loss(), before);
    assert!(w.fs.power_loss().is_err(), "once is all there is");
}

/// The usual way to write a file: after a kill and a loss at any point there is the old content or the new one.
#[test]
fn write_sync_rename_sync_is_safe_at_every_point_and_without_a_sync_it_is_not() {
    fn replace(fs: &dyn FileSystem, tree: &Path, sync: bool) -> io::Result<()> {
        let root = fs.open_root(tree)?;
        let file = fs.create_file(root.as_fd(), n("tmp"))?;
        fs.write_at(file.as_fd(), b"new content", 0)?;
        if sync {
            fs.sync(file.as_fd())?;
        }
        fs.rename(root.as_fd(), n("tmp"), root.as_fd(), n("f"), Rename::Replace)?;
        fs.sync(root.as_fd())
    }
    let (mut old, mut new, mut broken) = (0, 0, 0);
    for sync in [true, false] {
        for seed in 0..40 {
            for how in [Kill::Before, Kill::After, Kill::Torn] {
                for point in 1.. {
                    let w = World::new();
                    let root = w.root();
                    w.put(root.as_fd(), "f", b"old", true);
                    w.fs.sync(root.as_fd()).unwrap();
                    w.fs.kill_at(w.fs.points() + point, how);
                    let done = replace(&w.fs, &w.tree(), sync);
                    if seed == 0 { w.fs.power_loss() } else { w.fs.power_loss_some(seed) }.unwrap();
                    let seen = w.see();
                    match seen.get("f").unwrap().as_deref().unwrap() {
                        b"old" => old += 1,
                        b"new content" => new += 1,
                        _ if !sync => broken += 1,
                        other => panic!("{how:?} {point} {seed}: {other:?}"),
                    }
                    if done.is_ok() {
                        assert!(!sync || seen["f"].as_deref() == Some(b"new content"));
                        break;
                    }
                }
            }
        }
    }
    println!("old {old}, new {new}, broken without a sync {broken}");
    assert!(old > 0 && new > 0 && broken > 0);
}

/// Random changes of a random tree, through the seam.
fn churn(fs: &dyn FileSystem, tree: &Path, random: &mut Random, steps: u32) -> io::Result<()> {
    let names = ["a", "b", "c"];
    for _ in 0..steps {
        let mut folder = || {
            let mut at = fs.open_root(tree)?;
            while random.below(2) == 0 {
                match fs.open_dir(at.as_fd(), n(names[random.index(3)])) {
                    Ok(next) => at = next,
                    Err(_) => break,
                }
            }
            io::Result::Ok((at, names[random.index(3)]))
        };
        let ((d, x), (e, y)) = (folder()?, folder()?);
        let (d, x, e, y) = (d.as_fd(), n(x), e.as_fd(), n(y));
        // Most fail (names taken, missing, of the wrong kind): as in life.
        let _ignored: io::Result<()> = match random.below(12) {
            0..=2 => fs.create_file(d, x).and_then(|f| {
                fs.write_at(f.as_fd(), &random.below(1 << 40).to_le_bytes(), random.below(5000))?;
                if random.below(2) == 0 { fs.truncate(f.as_fd(), random.below(6000)) } else { Ok(()) }
            }),
            3 | 4 => fs.create_dir(d, x),
            5 => fs.unlink(d, x),
            6 => fs.remove_dir(d, x),
            7 => fs.rename(d, x, e, y, Rename::Replace),
            8 => fs.rename(d, x, e, y, Rename::Exchange),
            9 => fs.rename(d, x, e, y, Rename::NoReplace),
            10 => fs.link(d, x, e, y),
            _ => fs.symlink(x, d, y),
        };
    }
    Ok(())
}

#[test]
fn after_random_changes_the_loss_gives_back_the_synced_tree_exactly() {
    let options =
        compare::Options { folder_mtime: false, mtime: false, holes: false, ..compare::Options::default() };
    let mut changed = 0;
    for seed in 1..150 {
        let w = World::new();
        let mut random = Random(seed);
        churn(&w.fs, &w.tree(), &mut random, 60).unwrap();
        if seed % 2 == 0 {
            w.fs.sync_all(w.root().as_fd()).unwrap()
        } else {
            sync_each(&w)
        }
        let copy = w.dir.path().join("copy");
        let status = std::process::Command::new("cp").arg("-a").arg(w.tree()).arg(&copy).status().unwrap();
        assert!(status.success());
        churn(&w.fs, &w.tree(), &mut random, 60).unwrap();
        changed += u32::from(!compare::trees(&copy, &w.tree(), &options).is_empty());
        w.fs.power_loss().unwrap();
        let differences = compare::trees(&copy, &w.tree(), &options);
        assert!(differences.is_empty(), "seed {seed}: {differences:#?}");
    }
    assert!(changed > 100);
}

/// Syncs every file and folder by itself, as far as code under test could.
fn sync_each(w: &World) {
    let mut todo = vec![w.root()];
    while let Some(dir) = todo.pop() {
        for (name, kind) in w.fs.entries(dir.as_fd()).unwrap() {
            match kind.unwrap() {
                Kind::Dir => todo.push(w.fs.open_dir(dir.as_fd(), &name).unwrap()),
                Kind::File => {
                    let file = w.fs.open_file(dir.as_fd(), &name).unwrap();
                    w.fs.sync(file.as_fd()).unwrap();
                }
                _ => {}
            }
        }
        w.fs.sync(dir.as_fd()).unwrap();
    }
}

#[test]
fn a_folder_emptied_by_moves_and_removed_needs_no_sync_of_its_own() {
    let w = World::new();
    let root = w.root();
    let (a, b) = (w.mkdir(root.as_fd(), "a"), w.mkdir(root.as_fd(), "b"));
    w.put(a.as_fd(), "f", b"1", true);
    w.fs.sync_all(root.as_fd()).unwrap();
    w.fs.rename(a.as_fd(), n("f"), b.as_fd(), n("f"), Rename::NoReplace).unwrap();
    w.fs.remove_dir(root.as_fd(), n("a")).unwrap();
    w.fs.sync(b.as_fd()).unwrap();
    w.fs.sync(root.as_fd()).unwrap();
    assert_eq!(w.after_loss(), tree(&[("b", None), ("b/f", Some(b"1"))]));
}

#[test]
fn a_refused_move_over_a_folder_changes_nothing() {
    let w = World::new();
    let root = w.root();
    let outer = w.mkdir(root.as_fd(), "outer");
    w.mkdir(outer.as_fd(), "inner");
    w.fs.sync_all(root.as_fd()).unwrap();
    let e = w.fs.rename(root.as_fd(), n("outer"), outer.as_fd(), n("inner"), Rename::Replace);
    assert!(e.is_err());
    assert_eq!(w.see(), tree(&[("outer", None), ("outer/inner", None)]));
    assert_eq!(w.after_loss(), tree(&[("outer", None), ("outer/inner", None)]));
}

#[test]
fn random_survivors_can_always_be_made_and_vary_with_the_seed() {
    let mut outcomes = std::collections::BTreeSet::new();
    for seed in 1..300 {
        let w = World::new();
        churn(&w.fs, &w.tree(), &mut Random(7), 60).unwrap();
        w.fs.sync(w.root().as_fd()).unwrap();
        churn(&w.fs, &w.tree(), &mut Random(11), 40).unwrap();
        w.fs.power_loss_some(seed).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        outcomes.insert(w.see());
    }
    println!("{} different outcomes", outcomes.len());
    assert!(outcomes.len() > 100);
    for seed in 1..300 {
        let w = World::new();
        churn(&w.fs, &w.tree(), &mut Random(seed), 80).unwrap();
        w.fs.power_loss_some(seed).unwrap_or_else(|e| panic!("tree {seed}: {e}"));
        w.see();
    }
}
