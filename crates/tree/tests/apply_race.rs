//! Folders of the home are swapped for links out of it, again and again, while a restore commits, applies and is undone:
//! nothing outside is ever touched, and the home ends wholly on one side.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

mod apply_support;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use apply_support::{copy, host, job, plan, same, stage};
use backstay_model::Code;
use backstay_testing::quick_dir;
use backstay_tree::apply::{Side, Workplace};
use backstay_tree::fs::{Call, Fault, Faulty, FileSystem, Host, Rename};
use serde_json::Value;

const ENOSYS: i32 = 38;
/// Tries with each way of opening folders.
const TRIES: u64 = 5_000;

fn write(path: PathBuf, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// All about an entry that must not change, but its time of access: as text, and content.
type Canary = (String, Vec<u8>);

/// The entries of a tree that must not change, and its root.
fn canaries(root: &Path) -> BTreeMap<PathBuf, Canary> {
    let look = |path: &Path| {
        let at = if path.as_os_str().is_empty() { root.to_owned() } else { root.join(path) };
        let m = fs::symlink_metadata(&at).unwrap();
        let content = if m.is_file() { fs::read(&at).unwrap() } else { Vec::new() };
        let times = (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        (format!("{:?}", (m.dev(), m.ino(), m.mode(), m.nlink(), m.uid(), m.gid(), times)), content)
    };
    let mut found = BTreeMap::from([(PathBuf::new(), look(Path::new("")))]);
    apply_support::walk(root, Path::new(""), &mut |path, _| {
        found.insert(path.to_owned(), look(path));
    });
    found
}

fn spin(times: u64) {
    for _ in 0..times {
        std::hint::spin_loop();
    }
}

/// What was tried and what came of it.
#[derive(Debug, Default)]
struct Tally {
    commits: u64,
    turns: u64,
    refused_commits: u64,
    refused_turns: u64,
}

struct Race {
    dir: tempfile::TempDir,
    fs: Arc<dyn FileSystem>,
    /// Held by the racer while something is swapped, by the other side while nothing may be.
    calm: Mutex<()>,
    stop: AtomicBool,
    swaps: AtomicU64,
}

impl Race {
    fn new(fs: Arc<dyn FileSystem>) -> Race {
        let race = Race {
            dir: quick_dir(),
            fs,
            calm: Mutex::default(),
            stop: false.into(),
            swaps: AtomicU64::new(0),
        };
        for side in ["home", "target", "outside"] {
            let root = race.dir.path().join(side);
            for path in ["a/b/c.txt", "a/b/gone.txt", "a/top.txt", "a/b/deep/x"] {
                write(root.join(path), if side == "target" { "new" } else { side });
            }
        }
        let (home, target) = (race.home(), race.target());
        fs::remove_file(target.join("a/b/gone.txt")).unwrap();
        write(target.join("a/b/added"), "new");
        // Outside there is something under every name, so that whatever lands there is noticed.
        write(race.outside().join("a/b/added"), "outside");
        for (at, link) in [("a", "../outside/a"), ("a/b", "../../outside/a/b")] {
            let name = home.join(at).with_extension("link");
            symlink(link, name).unwrap();
            symlink(link, target.join(at).with_extension("link")).unwrap();
        }
        copy(&home, &race.dir.path().join("before"));
        race
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }
    fn target(&self) -> PathBuf {
        self.dir.path().join("target")
    }
    fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    /// Swaps a folder for a link, waits a little, and swaps it back.
    fn racer(&self) {
        let mut turn = 0u64;
        while !self.stop.load(Ordering::Relaxed) {
            turn += 1;
            // Long enough now and then for a commit or a turn to get through.
            spin((turn % 11) * 10_000);
            let _calm = self.calm.lock().unwrap();
            let (dir, name) = if turn.is_multiple_of(3) { ("", "a") } else { ("a", "b") };
            let handle = Host.open_root(&self.home().join(dir)).unwrap();
            let link = format!("{name}.link");
            let swap = || {
                let (handle, link) = (handle.as_fd(), link.as_ref());
                Host.rename(handle, name.as_ref(), handle, link, Rename::Exchange).unwrap();
            };
            swap();
            spin((turn % 5) * 500);
            swap();
            self.swaps.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn tries(&self, tally: &mut Tally) {
        let number = u8::try_from(tally.commits % 250).unwrap();
        let (mut workplace, changes) = {
            let _calm = self.calm.lock().unwrap();
            let jobs = self.dir.path().join("jobs");
            let workplace =
                Workplace::prepare(self.fs.clone(), &self.home(), &jobs, job(number), &Value::Null);
            let workplace = workplace.unwrap();
            let mut changes = plan(&self.home(), &self.target());
            // Of the links only the time differs; they are the racer's.
            changes.steps.retain(|s| s.path.extension().is_none_or(|e| e != "link"));
            stage(&Host, &self.target(), &workplace.staging_path(), &changes).unwrap();
            (workplace, changes)
        };
        let mut journal = loop {
            tally.commits += 1;
            match workplace.commit(&changes) {
                Ok(journal) => break journal,
                Err(e) => {
                    assert_eq!(e.code(), Code::HomeChanged, "{e:?}");
                    tally.refused_commits += 1;
                }
            }
        };
        for goal in [Side::New, Side::Old, Side::New, Side::Old] {
            loop {
                tally.turns += 1;
                match journal.settle(goal) {
                    Ok(_) => break,
                    Err(e) => {
                        let known = matches!(e.code(), Code::RestoreUnfinished | Code::HomeChanged);
                        assert!(known, "{e:?}");
                        tally.refused_turns += 1;
                    }
                }
            }
        }
        journal.discard().unwrap();
    }
}

#[test]
fn links_swapped_in_gain_nothing() {
    for slow in [false, true] {
        let faulty = Faulty::new(host());
        if slow {
            // A kernel without `openat2`.
            faulty.fail(Fault::of(Call::OpenDirBeneath, ENOSYS));
        }
        let race = Race::new(if slow { Arc::new(faulty) } else { host() });
        let before = canaries(&race.outside());
        let mut tally = Tally::default();
        std::thread::scope(|scope| {
            scope.spawn(|| race.racer());
            let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                while tally.commits + tally.turns < TRIES {
                    race.tries(&mut tally);
                    assert_eq!(canaries(&race.outside()), before);
                }
            }));
            race.stop.store(true, Ordering::Relaxed);
            tried.unwrap();
        });
        println!(
            "{}: {tally:?}, {} swaps",
            if slow { "level by level" } else { "openat2" },
            race.swaps.into_inner()
        );
        assert!(tally.refused_commits > 10 && tally.refused_turns > 10, "the race was met: {tally:?}");
        assert_eq!(fs::read(race.dir.path().join("home/a/b/c.txt")).unwrap(), b"home");
        let home = race.dir.path().join("home");
        let links = |path: &Path| path.extension().is_some_and(|e| e == "link");
        let mut names = Vec::new();
        apply_support::walk(&home, Path::new(""), &mut |path, _| names.push(path.to_owned()));
        let mut expected = Vec::new();
        apply_support::walk(&race.dir.path().join("before"), Path::new(""), &mut |path, _| {
            expected.push(path.to_owned());
        });
        assert_eq!(names, expected);
        assert_eq!(names.iter().filter(|p| links(p)).count(), 2);
        same(&home.join("a/b/deep"), &race.dir.path().join("before/a/b/deep"), "what is below");
    }
}
