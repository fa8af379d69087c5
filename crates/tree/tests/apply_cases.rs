//! Restores in place, case by case: what the tree looks like on both sides, and what is refused.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

mod apply_support;
mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use apply_support::{copy, host, job, plan, same, stage};
use backstay_testing::temp_dir;
use backstay_tree::apply::{Changes, Journal, Kept, Settled, Side, Workplace, is_workplace, list, recover};
use serde_json::json;

/// A home, what it is to become, and copies of both to compare with.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    /// `old` makes the home, `new` changes a copy of it into what is to be restored.
    fn new(old: impl FnOnce(&Path), new: impl FnOnce(&Path)) -> Bench {
        let bench = Bench { dir: temp_dir() };
        fs::create_dir_all(bench.home()).unwrap();
        old(&bench.home());
        copy(&bench.home(), &bench.target());
        new(&bench.target());
        copy(&bench.home(), &bench.before());
        bench
    }

    /// Some files of an app, and some of them changed.
    fn small() -> Bench {
        Bench::new(
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
