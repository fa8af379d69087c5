//! Restores in place, case by case: what the tree looks like on both sides, and what is refused.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

mod apply_support;
mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use apply_support::{copy, host, job, plan, same, stage};
use backstay_model::Code;
use backstay_testing::{quick_dir, temp_dir};
use backstay_tree::apply::{
    Changes, Journal, Kept, Outcome, Seen, Settled, Side, Step, Workplace, is_workplace, list, recover,
};
use backstay_tree::fs::{Call, Fault, Faulty, FileSystem, Host, Kind, Stat};
use common::{as_user, is_root, mounts};
use serde_json::{Value, json};

/// A home, what it is to become, and copies of both to compare with.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    /// `old` makes the home, `new` changes a copy of it into what is to be restored.
    fn new(old: impl FnOnce(&Path), new: impl FnOnce(&Path)) -> Bench {
        Self::at(temp_dir(), old, new)
    }

    fn at(dir: tempfile::TempDir, old: impl FnOnce(&Path), new: impl FnOnce(&Path)) -> Bench {
        let bench = Bench { dir };
        fs::create_dir_all(bench.home()).unwrap();
        old(&bench.home());
        copy(&bench.home(), &bench.target());
        new(&bench.target());
        copy(&bench.home(), &bench.before());
        bench
    }

    /// Some files of an app, and some of them changed.
    fn small() -> Bench {
        Self::small_at(temp_dir())
    }

    fn small_at(dir: tempfile::TempDir) -> Bench {
        Bench::at(
            dir,
            |home| {
                for (path, text) in
                    [("index.php", "old"), ("a/b/c.txt", "old c"), ("a/gone.txt", "gone"), ("keep/x", "x")]
                {
                    write(&home.join(path), text);
                }
                symlink("a/b", home.join("link")).unwrap();
            },
            |target| {
                write(&target.join("index.php"), "new index");
                write(&target.join("a/b/c.txt"), "new c");
                fs::remove_file(target.join("a/gone.txt")).unwrap();
                write(&target.join("added/deep/er.txt"), "added");
            },
        )
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
    fn home(&self) -> PathBuf {
        self.dir.path().join("srv/home")
    }
    fn target(&self) -> PathBuf {
        self.dir.path().join("target")
    }
    fn before(&self) -> PathBuf {
        self.dir.path().join("before")
    }
    fn jobs(&self) -> PathBuf {
        self.dir.path().join("jobs")
    }

    fn changes(&self) -> Changes {
        plan(&self.home(), &self.target())
    }

    fn prepare(&self) -> Workplace {
        Workplace::prepare(host(), &self.home(), &self.jobs(), job(1), &json!({"app": "blog"})).unwrap()
    }

    fn staged(&self) -> (Workplace, Changes) {
        let workplace = self.prepare();
        let changes = self.changes();
        stage(&*host(), &self.target(), &workplace.staging_path(), &changes).unwrap();
        (workplace, changes)
    }

    fn committed(&self) -> Journal {
        let (mut workplace, changes) = self.staged();
        workplace.commit(&changes).unwrap()
    }

    #[track_caller]
    fn is_old(&self) {
        same(&self.home(), &self.before(), "old");
    }

    #[track_caller]
    fn is_new(&self) {
        same(&self.home(), &self.target(), "new");
    }

    /// No workplace and no journal is left.
    #[track_caller]
    fn nothing_left(&self) {
        for folder in [self.home(), self.home().parent().unwrap().to_owned()] {
            let left: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert!(!left.iter().any(|name| is_workplace(name)), "{left:?}");
        }
        assert_eq!(fs::read_dir(self.jobs()).unwrap().count(), 0);
    }
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[track_caller]
fn clean(settled: Settled) {
    assert!(settled.problems.is_empty() && settled.skipped.is_empty(), "{settled:?}");
}

#[test]
fn forth_and_back_and_forth() {
    let bench = Bench::small();
    let mut journal = bench.committed();
    bench.is_old();
    assert_eq!((journal.goal(), journal.is_settled(), journal.job()), (Side::New, false, job(1)));
    for _ in 0..2 {
        clean(journal.settle(Side::New).unwrap());
        bench.is_new();
        clean(journal.settle(Side::New).unwrap());
        bench.is_new();
        clean(journal.settle(Side::Old).unwrap());
        bench.is_old();
    }
    journal.close().unwrap();
    drop(journal);
    assert!(recover(&host(), &bench.jobs()).unwrap().is_empty());
    let kept = list(&host(), &bench.jobs()).unwrap();
    let [Kept { note, side: Side::Old, closed: true, home, .. }] = &kept[..] else { panic!("{kept:?}") };
    assert_eq!((&note["app"], home), (&json!("blog"), &bench.home()));
    let mut journal = Journal::open(host(), &bench.jobs(), job(1)).unwrap();
    clean(journal.settle(Side::New).unwrap());
    bench.is_new();
    journal.discard().unwrap();
    bench.is_new();
    bench.nothing_left();
}

// --- what is not touched

/// Inode, change time and links of all entries but the given ones.
fn untouched(root: &Path, but: &[&str]) -> BTreeMap<PathBuf, (u64, i64, i64, u64)> {
    let mut found = BTreeMap::new();
    apply_support::walk(root, Path::new(""), &mut |path, stat| {
        if !but.iter().any(|b| path == Path::new(b)) {
            found.insert(path.to_owned(), (stat.inode, stat.ctime.secs, stat.ctime.nanos.into(), stat.links));
        }
    });
    found
}

#[test]
fn what_is_unchanged_is_not_touched() {
    let bench = Bench::small();
    let home = bench.home();
    for n in 0..200 {
        write(&home.join(format!("keep/sub-{}/f{n}", n % 7)), "unchanged");
        copy_file(&home, &bench, &format!("keep/sub-{}/f{n}", n % 7));
    }
    fs::hard_link(home.join("keep/x"), home.join("keep/y")).unwrap();
    fs::hard_link(bench.target().join("keep/x"), bench.target().join("keep/y")).unwrap();
    let mut changes = bench.changes();
    // The small planner replaces all files with several names, to be sure; here they are the same.
    changes.steps.retain(|s| !s.path.starts_with("keep"));
    changes.metadata.retain(|m| !m.path.starts_with("keep"));
    let home_id = fs::metadata(&home).unwrap().ino();
    let before = untouched(&home, &[]);
    let mut workplace = bench.prepare();
    stage(&*host(), &bench.target(), &workplace.staging_path(), &changes).unwrap();
    let mut journal = workplace.commit(&changes).unwrap();
    clean(journal.settle(Side::New).unwrap());
    assert_eq!(fs::metadata(&home).unwrap().ino(), home_id);
    let changed =
        ["index.php", "a", "a/b", "a/b/c.txt", "a/gone.txt", "added", "added/deep", "added/deep/er.txt"];
    let expected: BTreeMap<_, _> =
        before.into_iter().filter(|(path, _)| !changed.iter().any(|c| path == Path::new(c))).collect();
    assert!(expected.len() > 200);
    assert_eq!(untouched(&home, &changed), expected);
    clean(journal.settle(Side::Old).unwrap());
    assert_eq!(untouched(&home, &changed), expected);
    assert_eq!(fs::read(home.join("index.php")).unwrap(), b"old");
    // Folders that stay are the same folders.
    assert_eq!(journal.goal(), Side::Old);
}

/// A file of the home in the target and in the copy too, with its times.
fn copy_file(home: &Path, bench: &Bench, path: &str) {
    for to in [bench.target(), bench.before()] {
        fs::create_dir_all(to.join(path).parent().unwrap()).unwrap();
        fs::copy(home.join(path), to.join(path)).unwrap();
        let time = fs::metadata(home.join(path)).unwrap().modified().unwrap();
        fs::File::options().write(true).open(to.join(path)).unwrap().set_modified(time).unwrap();
    }
}

#[test]
fn what_is_no_step_is_left_alone() {
    // A state with its vault, another app's home, and content that a filter keeps, all inside the home.
    let bench = Bench::small();
    for path in ["state/vault/data/00", "state/secrets.json", "sites/other/index.php", "uploads/kept.jpg"] {
        write(&bench.home().join(path), "not of this restore");
    }
    let mut changes = bench.changes();
    changes.steps.retain(|s| !["state", "sites", "uploads"].iter().any(|p| s.path.starts_with(p)));
    let mut workplace = bench.prepare();
    stage(&*host(), &bench.target(), &workplace.staging_path(), &changes).unwrap();
    let before = untouched(&bench.home().join("state"), &[]);
    let mut journal = workplace.commit(&changes).unwrap();
    clean(journal.settle(Side::New).unwrap());
    assert_eq!(untouched(&bench.home().join("state"), &[]), before);
    assert_eq!(fs::read(bench.home().join("uploads/kept.jpg")).unwrap(), b"not of this restore");
    journal.close().unwrap();
    journal.discard().unwrap();
    assert!(bench.home().join("sites/other/index.php").exists());
    bench.nothing_left();
}

#[test]
fn a_process_keeps_its_working_directory() {
    let bench = Bench::small();
    let start = |dir: PathBuf| {
        let mut child = std::process::Command::new("sh");
        child.args(["-c", "read line; cat c.txt; read line; cat c.txt; pwd"]).current_dir(dir);
        let piped = || std::process::Stdio::piped();
        child.stdin(piped()).stdout(piped()).spawn().unwrap()
    };
    let mut child = start(bench.home().join("a/b"));
    let mut journal = bench.committed();
    clean(journal.settle(Side::New).unwrap());
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    input.write_all(b"go\n").unwrap();
    let mut seen = [0; 5];
    output.read_exact(&mut seen).unwrap();
    clean(journal.settle(Side::Old).unwrap());
    input.write_all(b"go\n").unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!((&seen[..], &rest[..5]), (&b"new c"[..], "old c"));
    assert!(rest.trim_end().ends_with("srv/home/a/b"), "{rest}");
}

// --- where the workplace is

#[test]
fn a_home_named_by_a_link() {
    let bench = Bench::small();
    let link = bench.path().join("current");
    symlink("srv/home", &link).unwrap();
    let mut workplace = Workplace::prepare(host(), &link, &bench.jobs(), job(2), &Value::Null).unwrap();
    assert_eq!(workplace.home(), bench.home());
    assert_eq!(workplace.path().parent(), bench.home().parent());
    let changes = bench.changes();
    stage(&*host(), &bench.target(), &workplace.staging_path(), &changes).unwrap();
    // A deployment moves the link on: this job stays with the folder that it began with.
    fs::create_dir(bench.path().join("srv/next")).unwrap();
    fs::remove_file(&link).unwrap();
    symlink("srv/next", &link).unwrap();
    let journal = workplace.commit(&changes).unwrap();
    drop((journal, workplace));
    let found = recover(&host(), &bench.jobs()).unwrap();
    assert!(matches!(found[0].outcome, Outcome::Settled(..)), "{found:?}");
    bench.is_new();
    assert_eq!(fs::read_dir(bench.path().join("srv/next")).unwrap().count(), 0);
    assert_eq!(fs::read_link(&link).unwrap(), Path::new("srv/next"));
}

#[test]
fn a_parent_that_cannot_be_written() {
    if !is_root() {
        return println!("left out: not root");
    }
    let bench = Bench::small();
    own(bench.path(), USER);
    std::os::unix::fs::lchown(bench.path().join("srv"), Some(0), Some(0)).unwrap();
    fs::set_permissions(bench.path().join("srv"), fs::Permissions::from_mode(0o755)).unwrap();
    as_user(USER, || {
        let workplace = bench.prepare();
        assert_eq!(workplace.path().parent(), Some(&*bench.home()));
        let mut workplace = workplace;
        let changes = bench.changes();
        stage(&*host(), &bench.target(), &workplace.staging_path(), &changes).unwrap();
        let mut journal = workplace.commit(&changes).unwrap();
        for _ in 0..2 {
            clean(journal.settle(Side::New).unwrap());
            bench.is_new();
            clean(journal.settle(Side::Old).unwrap());
            bench.is_old();
        }
        journal.discard().unwrap();
        bench.is_old();
        bench.nothing_left();
        // Where neither can be written, nothing begins.
        fs::set_permissions(bench.home(), fs::Permissions::from_mode(0o555)).unwrap();
        let e = Workplace::prepare(host(), &bench.home(), &bench.jobs(), job(3), &Value::Null).unwrap_err();
        assert_eq!(e.code(), Code::TargetUnusable, "{e:?}");
        bench.nothing_left();
    });
}

const USER: u32 = 54_321;

/// Gives a tree to a user.
fn own(root: &Path, user: u32) {
    std::os::unix::fs::lchown(root, Some(user), Some(user)).unwrap();
    if fs::symlink_metadata(root).unwrap().is_dir() {
        for entry in fs::read_dir(root).unwrap() {
            own(&entry.unwrap().path(), user);
        }
    }
}

#[test]
fn read_only_folders_of_an_ordinary_user() {
    if !is_root() {
        return println!("left out: not root");
    }
    let locked = |path: PathBuf| fs::set_permissions(path, fs::Permissions::from_mode(0o555)).unwrap();
    let make = || {
        let bench = Bench::at(
            quick_dir(),
            |home| {
                write(&home.join("modules/pkg/old.js"), "old");
                write(&home.join("modules/gone/x/y"), "gone");
                write(&home.join("modules/kept"), "kept");
            },
            |target| {
                write(&target.join("modules/pkg/old.js"), "new");
                fs::remove_dir_all(target.join("modules/gone")).unwrap();
                write(&target.join("modules/more/z"), "added");
                locked(target.join("modules/more"));
            },
        );
        for tree in [bench.home(), bench.before(), bench.target()] {
            for path in ["modules/gone/x", "modules/gone", "modules/pkg", "modules", ""] {
                if tree.join(path).exists() {
                    locked(tree.join(path));
                }
            }
        }
        own(bench.path(), USER);
        bench
    };
    let bench = make();
    let points = as_user(USER, || {
        let bench = &bench;
        let faulty = Arc::new(Faulty::new(host()));
        both_ways(bench, &faulty).unwrap();
        bench.is_old();
        faulty.points()
    });
    // And after a kill at each call the modes are as they were.
    for number in 1..=points {
        let bench = make();
        as_user(USER, || {
            let faulty = Arc::new(Faulty::new(host()));
            faulty.kill_at(number, backstay_tree::fs::Kill::After);
            both_ways(&bench, &faulty).unwrap_err();
            let phase = faulty.killed_at().unwrap().phase;
            for found in recover(&host(), &bench.jobs()).unwrap() {
                match found.outcome {
                    Outcome::Settled(journal, settled) => {
                        clean(settled);
                        let tree = if journal.goal() == Side::Old { bench.before() } else { bench.target() };
                        same(&bench.home(), &tree, &format!("{number} {phase}"));
                    }
                    Outcome::NotCommitted => bench.is_old(),
                    other => panic!("{number}: {other:?}"),
                }
            }
        });
        backstay_testing::unlock(bench.path());
    }
}

/// A whole job through a file system that may stop: new, old, closed.
fn both_ways(bench: &Bench, faulty: &Arc<Faulty>) -> backstay_model::Result<()> {
    let fs: Arc<dyn FileSystem> = faulty.clone();
    let changes = bench.changes();
    faulty.phase("prepare");
    let mut workplace = Workplace::prepare(fs.clone(), &bench.home(), &bench.jobs(), job(1), &Value::Null)?;
    faulty.phase("stage");
    apply_support::staged(stage(&*fs, &bench.target(), &workplace.staging_path(), &changes))?;
    faulty.phase("commit");
    let mut journal = workplace.commit(&changes)?;
    faulty.phase("apply");
    clean(journal.settle(Side::New)?);
    faulty.phase("undo");
    clean(journal.settle(Side::Old)?);
    journal.close()
}

// --- mounts

/// Runs in a mount namespace of its own.
fn with_mounts(work: impl FnOnce() + Send) {
    match mounts::private(work) {
        Ok(()) => {}
        Err(reason) => println!("left out: cannot mount here: {reason}"),
    }
}

#[test]
fn mounts_at_or_below_a_step_are_refused_and_nothing_changes() {
    with_mounts(|| {
        for (point, bind) in
            [("a/gone", false), ("a/gone/deep", false), ("a/gone/deep", true), ("a/b/c.txt", true)]
        {
            let bench = Bench::small();
            fs::remove_file(bench.home().join("a/gone.txt")).unwrap();
            write(&bench.home().join("a/gone/deep/file"), "goes");
            let (mut workplace, changes) = bench.staged();
            let at = bench.home().join(point);
            let beside = bench.path().join("beside");
            if at.is_dir() {
                fs::create_dir(&beside).unwrap();
                fs::write(beside.join("precious"), "x").unwrap();
            } else {
                fs::write(&beside, "precious").unwrap();
            }
            if bind {
                mounts::bind(&beside, &at)
            } else {
                mounts::tmpfs(&at)
            }
            let e = workplace.commit(&changes).unwrap_err();
            assert_eq!(e.code(), Code::Conflict, "{point}: {e:?}");
            assert!(e.message().contains(point), "{e}");
            workplace.abandon().unwrap();
            rustix::mount::unmount(&at, rustix::mount::UnmountFlags::empty()).unwrap();
            assert_eq!(fs::read(bench.home().join("index.php")).unwrap(), b"old");
            assert!(bench.home().join("a/gone/deep/file").exists());
            bench.nothing_left();
        }
    });
}

#[test]
fn mounts_that_appear_after_the_commit_stop_it_until_they_are_gone() {
    with_mounts(|| {
        for bind in [false, true] {
            let bench = Bench::small();
            fs::remove_file(bench.home().join("a/gone.txt")).unwrap();
            write(&bench.home().join("a/gone/deep/file"), "goes");
            let journal = bench.committed();
            drop(journal);
            let at = bench.home().join("a/gone/deep");
            let beside = bench.path().join("beside");
            write(&beside.join("precious"), "x");
            if bind {
                mounts::bind(&beside, &at)
            } else {
                mounts::tmpfs(&at)
            }
            fs::write(at.join("more"), "x").unwrap();
            let [found] = &recover(&host(), &bench.jobs()).unwrap()[..] else { panic!() };
            let Outcome::Stuck(e) = &found.outcome else { panic!("{found:?}") };
            assert_eq!(e.code(), Code::RestoreUnfinished);
            assert!(at.join("more").exists());
            assert_eq!(fs::read(bench.home().join("index.php")).unwrap(), b"old");
            rustix::mount::unmount(&at, rustix::mount::UnmountFlags::empty()).unwrap();
            let found = recover(&host(), &bench.jobs()).unwrap();
            assert!(matches!(found[0].outcome, Outcome::Settled(..)), "{found:?}");
            bench.is_new();
            assert!(beside.join("precious").exists());
        }
    });
}

#[test]
fn mounts_elsewhere_are_left_alone() {
    with_mounts(|| {
        let bench = Bench::small();
        // In a folder in which something changes, and in one that stays.
        for point in ["a/b/share", "keep/share"] {
            for tree in [bench.home(), bench.target(), bench.before()] {
                fs::create_dir_all(tree.join(point)).unwrap();
            }
        }
        let mut changes = bench.changes();
        for point in ["a/b/share", "keep/share"] {
            mounts::tmpfs(&bench.home().join(point));
            fs::write(bench.home().join(point).join("precious"), "x").unwrap();
        }
        // Times of the mount points' folders are as the test made them; only entries matter here.
        changes.metadata.retain(|m| !m.path.starts_with("a/b/share") && !m.path.starts_with("keep/share"));
        let mut workplace = bench.prepare();
        stage(&*host(), &bench.target(), &workplace.staging_path(), &changes).unwrap();
        let mut journal = workplace.commit(&changes).unwrap();
        clean(journal.settle(Side::New).unwrap());
        assert_eq!(fs::read(bench.home().join("a/b/c.txt")).unwrap(), b"new c");
        clean(journal.settle(Side::Old).unwrap());
        clean(journal.settle(Side::New).unwrap());
        journal.discard().unwrap();
        for point in ["a/b/share", "keep/share"] {
            assert!(bench.home().join(point).join("precious").exists(), "{point}");
        }
    });
}

#[test]
fn a_home_that_is_a_bind_mount() {
    with_mounts(|| {
        let bench = Bench::small();
        let seen = bench.path().join("container");
        fs::create_dir(&seen).unwrap();
        mounts::bind(&bench.home(), &seen);
        let inode = fs::metadata(&seen).unwrap().ino();
        let mut workplace = Workplace::prepare(host(), &seen, &bench.jobs(), job(1), &Value::Null).unwrap();
        assert_eq!(workplace.path().parent(), Some(&*seen), "a mount has no beside");
        let changes = plan(&seen, &bench.target());
        stage(&*host(), &bench.target(), &workplace.staging_path(), &changes).unwrap();
        let mut journal = workplace.commit(&changes).unwrap();
        clean(journal.settle(Side::New).unwrap());
        // Seen through both names.
        bench.is_new();
        same(&seen, &bench.target(), "through the mount");
        assert_eq!(fs::metadata(&seen).unwrap().ino(), inode);
        clean(journal.settle(Side::Old).unwrap());
        journal.discard().unwrap();
        bench.is_old();
        bench.nothing_left();
    });
    // The other way: somebody else's mount of the home sees what changes.
    with_mounts(|| {
        let bench = Bench::small();
        let seen = bench.path().join("container");
        fs::create_dir(&seen).unwrap();
        mounts::bind(&bench.home(), &seen);
        let mut journal = bench.committed();
        clean(journal.settle(Side::New).unwrap());
        same(&seen, &bench.target(), "through the mount");
        clean(journal.settle(Side::Old).unwrap());
        same(&seen, &bench.before(), "through the mount");
    });
}

#[test]
fn a_home_that_is_the_root_folder() {
    if !is_root() {
        return println!("left out: not root");
    }
    // A small root of its own: what the process sees as `/` is the home, and has no parent.
    with_mounts(|| {
        let bench = Bench::small();
        let root = bench.path().join("root");
        fs::create_dir_all(root.join("proc")).unwrap();
        mounts::tmpfs(&root);
        for (path, text) in [("index.php", "old"), ("srv/x", "x")] {
            write(&root.join(path), text);
        }
        fs::create_dir(root.join("proc")).unwrap();
        mounts::bind(Path::new("/proc"), &root.join("proc"));
        fs::create_dir(root.join("state")).unwrap();
        let inside_root = std::thread::scope(|scope| scope.spawn(|| in_root(&root)).join().unwrap());
        assert!(inside_root.to_str().unwrap().starts_with("/.backstay-"), "{inside_root:?}");
        assert_eq!(fs::read(root.join("index.php")).unwrap(), b"new");
        assert!(!root.join("srv/x").exists() && root.join("added").exists());
        let left: Vec<_> = fs::read_dir(&root).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| is_workplace(name)), "{left:?}");
    });
}

/// Restores `/` with that folder as the root of the calling thread.
fn in_root(root: &Path) -> PathBuf {
    // SAFETY: no descriptor table is split; the thread ends soon.
    #[allow(unsafe_code)]
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }.unwrap();
    rustix::process::chroot(root).unwrap();
    rustix::process::chdir("/").unwrap();
    let seen = |path: &str| Seen::from(&stat(Path::new(path)));
    let step = |path: &str, old: bool, new: bool| Step {
        path: path.into(),
        old: old.then(|| seen(&format!("/{path}"))),
        new: new.then_some(Kind::File),
    };
    let changes = Changes {
        steps: vec![step("index.php", true, true), step("srv/x", true, false), step("added", false, true)],
        metadata: Vec::new(),
    };
    let mut workplace =
        Workplace::prepare(host(), Path::new("/"), Path::new("/state/jobs"), job(1), &Value::Null).unwrap();
    fs::write(workplace.staging_path().join("index.php"), "new").unwrap();
    fs::write(workplace.staging_path().join("added"), "new").unwrap();
    let path = workplace.path().to_owned();
    let mut journal = workplace.commit(&changes).unwrap();
    journal.settle(Side::New).unwrap();
    journal.settle(Side::Old).unwrap();
    assert_eq!(fs::read("/index.php").unwrap(), b"old");
    journal.settle(Side::New).unwrap();
    journal.close().unwrap();
    journal.discard().unwrap();
    path
}

fn stat(path: &Path) -> Stat {
    let parent = Host.open_root(path.parent().unwrap()).unwrap();
    Host.stat(parent.as_fd(), path.file_name().unwrap()).unwrap()
}

// --- what hinders, and what the app does meanwhile

#[test]
fn a_change_since_the_plan_is_found() {
    type Act = fn(&Path);
    let acts: [(&str, Act); 9] = [
        ("index.php", |home| write(&home.join("index.php"), "the app was faster")),
        ("index.php", |home| fs::remove_file(home.join("index.php")).unwrap()),
        ("index.php", |home| {
            // Same bytes, same length, another file.
            write(&home.join("other"), "old");
            fs::rename(home.join("other"), home.join("index.php")).unwrap();
        }),
        ("index.php", |home| {
            fs::remove_file(home.join("index.php")).unwrap();
            fs::create_dir(home.join("index.php")).unwrap();
        }),
        ("index.php", |home| {
            fs::set_permissions(home.join("index.php"), fs::Permissions::from_mode(0o600)).unwrap()
        }),
        ("added", |home| fs::create_dir(home.join("added")).unwrap()),
        ("a/b", |home| {
            fs::rename(home.join("a/b"), home.join("elsewhere")).unwrap();
            symlink("../elsewhere", home.join("a/b")).unwrap();
        }),
        ("a", |home| fs::rename(home.join("a"), home.join("elsewhere")).unwrap()),
        ("", |home| {
            fs::rename(home, home.with_file_name("moved")).unwrap();
            fs::create_dir(home).unwrap();
        }),
    ];
    for (n, (path, act)) in acts.into_iter().enumerate() {
        let bench = Bench::small();
        let (mut workplace, changes) = bench.staged();
        act(&bench.home());
        let now = bench.path().join("now");
        copy(&bench.home(), &now);
        let e = workplace.commit(&changes).unwrap_err();
        assert_eq!(e.code(), Code::HomeChanged, "{n}: {e:?}");
        assert!(
            e.message().contains(bench.home().join(path).to_str().unwrap().trim_end_matches('/')),
            "{n}: {e}"
        );
        same(&bench.home(), &now, "nothing was changed");
        workplace.abandon().unwrap();
        bench.nothing_left();
    }
}

#[test]
fn a_change_of_metadata_that_came_too_late_is_not_forced() {
    let bench = Bench::new(
        |home| write(&home.join("a/file"), "same"),
        |target| fs::set_permissions(target.join("a/file"), fs::Permissions::from_mode(0o600)).unwrap(),
    );
    let mut journal = bench.committed();
    // The app puts another file there, and gives the old one a second name.
    fs::hard_link(bench.home().join("a/file"), bench.home().join("a/kept")).unwrap();
    let settled = journal.settle(Side::New).unwrap();
    assert_eq!(settled.skipped, [Path::new("a/file")]);
    assert_eq!(stat(&bench.home().join("a/kept")).mode, 0o644);
    fs::remove_file(bench.home().join("a/kept")).unwrap();
    clean(journal.settle(Side::Old).unwrap());
    clean(journal.settle(Side::New).unwrap());
    assert_eq!(stat(&bench.home().join("a/file")).mode, 0o600);
}

#[test]
fn an_app_that_keeps_writing() {
    let bench = Bench::small();
    write(&bench.home().join("logs/app.log"), "");
    let stop = AtomicBool::new(false);
    let mut changes = bench.changes();
    changes.steps.retain(|s| !s.path.starts_with("logs"));
    let mut workplace = bench.prepare();
    stage(&*host(), &bench.target(), &workplace.staging_path(), &changes).unwrap();
    let lines = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut lines = 0;
            let mut log = fs::File::options().append(true).open(bench.home().join("logs/app.log")).unwrap();
            while !stop.load(Ordering::Relaxed) {
                writeln!(log, "line {lines}").unwrap();
                write(&bench.home().join(format!("a/cache-{}", lines % 50)), "cache");
                write(&bench.home().join(format!("sessions/{lines}")), "session");
                lines += 1;
            }
            lines
        });
        let mut journal = workplace.commit(&changes).unwrap();
        for _ in 0..20 {
            clean(journal.settle(Side::New).unwrap());
            assert_eq!(fs::read(bench.home().join("a/b/c.txt")).unwrap(), b"new c");
            clean(journal.settle(Side::Old).unwrap());
        }
        stop.store(true, Ordering::Relaxed);
        let lines = writer.join().unwrap();
        journal.settle(Side::New).unwrap();
        journal.discard().unwrap();
        lines
    });
    assert!(lines > 0);
    assert_eq!(fs::read_to_string(bench.home().join("logs/app.log")).unwrap().lines().count(), lines);
    assert_eq!(fs::read_dir(bench.home().join("sessions")).unwrap().count(), lines);
    assert!(bench.home().join("a/cache-0").exists());
}

#[test]
fn unexpected_entries_are_kept() {
    for plain in [false, true] {
        let bench = Bench::small();
        let faulty = Arc::new(Faulty::new(host()));
        if plain {
            faulty.plain_renames();
        }
        let fs_seam: Arc<dyn FileSystem> = faulty;
        let (mut workplace, changes) = bench.staged();
        drop(workplace.commit(&changes).unwrap());
        drop(workplace);
        // After the commit and before it is applied, the app replaces, removes and adds what is about to change.
        let home = bench.home();
        write(&home.join("fresh"), "the app's index");
        fs::rename(home.join("fresh"), home.join("index.php")).unwrap();
        fs::remove_file(home.join("a/b/c.txt")).unwrap();
        write(&home.join("added/mine"), "the app's folder");
        let found = recover(&fs_seam, &bench.jobs()).unwrap().pop().unwrap();
        let Outcome::Settled(mut journal, _) = found.outcome else { panic!("{found:?}") };
        bench.is_new();
        // Undo brings back what the app had.
        journal.settle(Side::Old).unwrap();
        assert_eq!(fs::read(home.join("index.php")).unwrap(), b"the app's index");
        assert_eq!(fs::read(home.join("added/mine")).unwrap(), b"the app's folder");
        assert!(!home.join("a/b/c.txt").exists() && home.join("a/gone.txt").exists());
        // What it makes on that side belongs to that side.
        write(&home.join("a/b/c.txt"), "c of the app");
        journal.settle(Side::New).unwrap();
        bench.is_new();
        write(&home.join("a/gone.txt"), "made on the new side");
        fs::remove_file(home.join("index.php")).unwrap();
        journal.settle(Side::Old).unwrap();
        assert_eq!(fs::read(home.join("a/b/c.txt")).unwrap(), b"c of the app");
        assert_eq!(fs::read(home.join("a/gone.txt")).unwrap(), b"gone");
        assert_eq!(fs::read(home.join("index.php")).unwrap(), b"the app's index");
        journal.settle(Side::New).unwrap();
        assert_eq!(fs::read(home.join("a/gone.txt")).unwrap(), b"made on the new side");
        assert!(!home.join("index.php").exists());
        assert_eq!(fs::read(home.join("a/b/c.txt")).unwrap(), b"new c");
        journal.discard().unwrap();
        bench.nothing_left();
    }
}

#[test]
fn a_full_disk_changes_nothing() {
    const ENOSPC: i32 = 28;
    // How many calls there are of the kinds that need room.
    let calls = [Call::WriteAt, Call::CreateDir, Call::CreateFile, Call::Sync, Call::SyncAll];
    let mut failed = 0;
    for call in calls {
        for skip in 0.. {
            let bench = Bench::small_at(quick_dir());
            let faulty = Arc::new(Faulty::new(host()));
            faulty.fail(Fault::of(call, ENOSPC).after(skip));
            let fs_seam: Arc<dyn FileSystem> = faulty.clone();
            let changes = bench.changes();
            let attempt = || {
                let prepared =
                    Workplace::prepare(fs_seam.clone(), &bench.home(), &bench.jobs(), job(1), &Value::Null);
                let mut workplace = prepared.map_err(|e| (e, None))?;
                let staging = workplace.staging_path();
                let staged = apply_support::staged(stage(&*fs_seam, &bench.target(), &staging, &changes));
                match staged.and_then(|()| workplace.commit(&changes).map(drop)) {
                    Ok(()) => Ok(()),
                    Err(e) => Err((e, Some(workplace))),
                }
            };
            let Err((e, workplace)) = attempt() else { break };
            failed += 1;
            assert!(matches!(e.code(), Code::TargetFull | Code::StateAccess), "{call:?} {skip}: {e:?}");
            bench.is_old();
            faulty.heal();
            if let Some(workplace) = workplace {
                workplace.abandon().unwrap();
            }
            let found = recover(&host(), &bench.jobs()).unwrap();
            assert!(
                found.iter().all(|r| matches!(r.outcome, Outcome::NotCommitted)),
                "{call:?} {skip}: {found:?}"
            );
            bench.is_old();
            if bench.jobs().exists() {
                bench.nothing_left();
            }
        }
    }
    println!("{failed} points of a full disk");
    assert!(failed >= 25);
}

#[test]
fn a_refused_rename_can_be_turned_round() {
    const EPERM: i32 = 1;
    const EXDEV: i32 = 18;
    for (errno, name) in [(EPERM, "gone.txt"), (EXDEV, "c.txt"), (EPERM, "index.php"), (EXDEV, "added")] {
        let bench = Bench::small();
        let (mut workplace, changes) = bench.staged();
        drop(workplace.commit(&changes).unwrap());
        drop(workplace);
        let faulty = Arc::new(Faulty::new(host()));
        faulty.fail(Fault::of(Call::Rename, errno).named(name));
        let fs_seam: Arc<dyn FileSystem> = faulty;
        let found = recover(&fs_seam, &bench.jobs()).unwrap().pop().unwrap();
        let Outcome::Stuck(e) = &found.outcome else { panic!("{found:?}") };
        assert_eq!(e.code(), Code::RestoreUnfinished);
        assert!(e.message().contains(name), "{e}");
        // Some steps are done, the refused one and later ones are not; back is possible without it.
        let mut journal = Journal::open(fs_seam.clone(), &bench.jobs(), job(1)).unwrap();
        clean(journal.settle(Side::Old).unwrap());
        bench.is_old();
        assert!(journal.settle(Side::New).is_err());
        clean(journal.settle(Side::Old).unwrap());
        bench.is_old();
        journal.close().unwrap();
        journal.discard().unwrap();
        bench.nothing_left();
    }
}

#[test]
fn a_replaced_folder_is_not_guessed() {
    let bench = Bench::small();
    drop(bench.committed());
    let home = bench.home();
    fs::rename(home.join("a"), home.join("was-a")).unwrap();
    write(&home.join("a/b/c.txt"), "another folder of that name");
    for _ in 0..2 {
        let found = recover(&host(), &bench.jobs()).unwrap().pop().unwrap();
        let Outcome::Stuck(e) = &found.outcome else { panic!("{found:?}") };
        assert_eq!(e.code(), Code::RestoreUnfinished, "{e:?}");
        assert_eq!(fs::read(home.join("a/b/c.txt")).unwrap(), b"another folder of that name");
    }
    fs::remove_dir_all(home.join("a")).unwrap();
    fs::rename(home.join("was-a"), home.join("a")).unwrap();
    let found = recover(&host(), &bench.jobs()).unwrap().pop().unwrap();
    let Outcome::Settled(mut journal, _) = found.outcome else { panic!("{found:?}") };
    bench.is_new();
    journal.close().unwrap();
    // Later a deployment replaces the folder: then the journal cannot undo, and says so before anything changes.
    fs::rename(home.join("a"), home.join("was-a")).unwrap();
    write(&home.join("a/b/c.txt"), "deployed");
    let e = journal.settle(Side::Old).unwrap_err();
    assert_eq!(e.code(), Code::HomeChanged, "{e:?}");
    assert_eq!(fs::read(home.join("index.php")).unwrap(), b"new index");
    assert!(journal.is_settled());
    // Reopened, it is told of until it is closed again.
    journal.reopen().unwrap();
    drop(journal);
    let found = recover(&host(), &bench.jobs()).unwrap().pop().unwrap();
    let Outcome::Settled(mut journal, _) = found.outcome else { panic!("{found:?}") };
    journal.close().unwrap();
    drop(journal);
    assert!(recover(&host(), &bench.jobs()).unwrap().is_empty());
}

#[test]
fn what_the_plan_could_not_look_at_is_looked_at() {
    let bench = Bench::small();
    let (workplace, _) = bench.staged();
    let seen = workplace.look(Path::new("a/b/c.txt")).unwrap().unwrap();
    assert_eq!(seen, Seen::from(&stat(&bench.home().join("a/b/c.txt"))));
    for nothing in ["nothing", "nothing/below"] {
        assert_eq!(workplace.look(Path::new(nothing)).unwrap(), None);
    }
    for bad in ["../target", "link/c.txt", "index.php/x"] {
        let code = workplace.look(Path::new(bad)).unwrap_err().code();
        assert!(matches!(code, Code::HomeChanged | Code::TargetUnusable), "{bad}: {code}");
    }
}

#[test]
fn a_home_that_is_gone_is_told() {
    for committed in [false, true] {
        let bench = Bench::small();
        let (mut workplace, changes) = bench.staged();
        if committed {
            drop(workplace.commit(&changes).unwrap());
        }
        drop(workplace);
        let moved = bench.path().join("moved");
        fs::rename(bench.home(), &moved).unwrap();
        for stand_in in [false, true] {
            if stand_in {
                fs::create_dir(bench.home()).unwrap();
            }
            let found = recover(&host(), &bench.jobs()).unwrap().pop().unwrap();
            let Outcome::Stuck(e) = &found.outcome else { panic!("{found:?}") };
            assert_eq!(e.code(), Code::RestoreUnfinished, "{e:?}");
            assert_eq!(found.home.as_deref(), Some(&*bench.home()));
        }
        fs::remove_dir(bench.home()).unwrap();
        fs::rename(&moved, bench.home()).unwrap();
        let found = recover(&host(), &bench.jobs()).unwrap().pop().unwrap();
        match found.outcome {
            Outcome::Settled(..) if committed => bench.is_new(),
            Outcome::NotCommitted if !committed => {
                bench.is_old();
                bench.nothing_left();
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_job_that_is_worked_on_is_left_alone() {
    let bench = Bench::small();
    let (mut workplace, changes) = bench.staged();
    assert!(recover(&host(), &bench.jobs()).unwrap().is_empty(), "before the commit");
    let mut journal = workplace.commit(&changes).unwrap();
    drop(workplace);
    assert!(recover(&host(), &bench.jobs()).unwrap().is_empty(), "after it");
    bench.is_old();
    let e = Journal::open(host(), &bench.jobs(), job(1)).unwrap_err();
    assert_eq!(e.code(), Code::AppBusy, "{e:?}");
    let e = Workplace::prepare(host(), &bench.home(), &bench.jobs(), job(1), &Value::Null).unwrap_err();
    assert_eq!(e.code(), Code::StateAccess, "{e:?}");
    // Another job of another home goes on beside it.
    let other = bench.path().join("srv/other");
    fs::create_dir(&other).unwrap();
    let second = Workplace::prepare(host(), &other, &bench.jobs(), job(2), &Value::Null).unwrap();
    journal.settle(Side::New).unwrap();
    second.abandon().unwrap();
    drop(journal);
    // Settled, but the caller has not said that it is done: told again, with its note.
    for _ in 0..2 {
        let found = recover(&host(), &bench.jobs()).unwrap().pop().unwrap();
        let Outcome::Settled(mut journal, _) = found.outcome else { panic!() };
        assert_eq!(found.note["app"], "blog");
        journal.set_note(&json!({"app": "blog", "again": true})).unwrap();
    }
    let found = recover(&host(), &bench.jobs()).unwrap().pop().unwrap();
    assert_eq!(found.note["again"], true);
    let e = Journal::open(host(), &bench.jobs(), job(9)).unwrap_err();
    assert_eq!(e.code(), Code::JobNotFound);
    assert!(recover(&host(), &bench.path().join("no-jobs")).unwrap().is_empty());
}
