//! A live folder, its points, and plans carried out in the plainest way; random trees.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test helpers; not every test file uses all of them"
)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use backstay_model::{Cancel, Silent};
use backstay_tree::compare;
use backstay_tree::fs::{FileSystem, Host, Kind};
use backstay_tree::metadata::{self, Wanted};
use backstay_tree::path;
use backstay_vault::Vault;
use backstay_vault::change::{Action, ChangePlan, Keep, Rules, Side, plan};
use backstay_vault::restore::{RestoreOptions, restore};
use proptest::prelude::*;

use crate::support::{self, Done, Job};

pub struct World {
    dir: tempfile::TempDir,
    pub vault: Vault,
    pub home: PathBuf,
    count: Cell<u32>,
}

impl World {
    pub fn new() -> Self {
        let dir = support::quick_dir();
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        World { dir, vault: support::memory_vault().1, home, count: Cell::new(0) }
    }

    fn fresh(&self, what: &str) -> PathBuf {
        self.count.set(self.count.get() + 1);
        self.dir.path().join(format!("{what}-{}", self.count.get()))
    }

    pub fn point(&self) -> Done {
        Job::new(&self.vault, &self.home).run().unwrap()
    }

    /// Plans from the home as it is now.
    pub fn plan(&self, target: &Done, rules: &Rules<'_>) -> ChangePlan {
        let live = self.point();
        self.plan_from(&live, target, rules)
    }

    pub fn plan_from(&self, live: &Done, target: &Done, rules: &Rules<'_>) -> ChangePlan {
        let tops = [live, target].map(|done| support::content_node(&self.vault, &done.id));
        let sides =
            [Side { tree: live.tree, top: Some(&tops[0]) }, Side { tree: target.tree, top: Some(&tops[1]) }];
        let reader = self.vault.reader().unwrap();
        let plan = plan(&reader, &sides[0], &sides[1], rules, &Cancel::new()).unwrap();
        for pair in plan.steps.windows(2) {
            assert!(pair[0].path < pair[1].path && !pair[1].path.starts_with(&pair[0].path), "{pair:?}");
        }
        plan
    }

    pub fn restore(&self, target: &Done, rules: &Rules<'_>) -> ChangePlan {
        let plan = self.plan(target, rules);
        self.carry_out(&plan, target);
        plan
    }

    /// Stages what is staged, moves the old aside and the new into place, sets metadata.
    pub fn carry_out(&self, plan: &ChangePlan, target: &Done) {
        assert_eq!(plan.conflicts, []);
        let (staged, aside) = (self.fresh("staged"), self.fresh("aside"));
        fs::create_dir(&staged).unwrap();
        let host: Arc<dyn FileSystem> = Arc::new(Host);
        let holes = target.sparse.iter();
        let holes = holes.map(|f| (path::unescape(&f.path).unwrap().into(), f.data.clone())).collect();
        let options = RestoreOptions { sync: false, ..plan.staging(holes) };
        let reader = self.vault.reader().unwrap();
        let outcome =
            restore(&reader, &host, &target.tree, None, &staged, &options, &Silent, &Cancel::new()).unwrap();
        assert!(outcome.is_complete(), "{:#?}", outcome.problems);
        for step in &plan.steps {
            let live = self.home.join(&step.path);
            if step.action != Action::Add {
                let seen = fs::symlink_metadata(&live).unwrap();
                assert_eq!(step.seen.map(|s| s.inode), Some(seen.ino()), "{step:?}");
                let aside = aside.join(&step.path);
                fs::create_dir_all(aside.parent().unwrap()).unwrap();
                fs::rename(&live, aside).unwrap();
            }
            if step.action != Action::Remove {
                assert!(fs::symlink_metadata(&live).is_err(), "{step:?}");
                fs::rename(staged.join(&step.path), live).unwrap();
            }
        }
        for change in &plan.metadata {
            let path = self.home.join(&change.path);
            assert_eq!(fs::symlink_metadata(&path).unwrap().ino(), change.seen.inode);
            let file = fs::File::open(&path).unwrap();
            let meta = &change.after;
            let wanted = Wanted {
                uid: meta.uid,
                gid: meta.gid,
                mode: meta.mode,
                mtime: meta.mtime,
                xattrs: &meta.xattrs,
            };
            let problems = metadata::apply(&*host, file.as_fd(), &wanted);
            assert!(problems.is_empty(), "{problems:?}");
        }
        fs::remove_dir_all(&staged).unwrap();
        fs::remove_dir_all(&aside).unwrap_or_default();
    }

    /// The point in a folder of its own.
    pub fn bring_out(&self, point: &Done) -> PathBuf {
        let target = self.fresh("expected");
        support::bring_out(&self.vault, point, &target);
        target
    }

    #[track_caller]
    pub fn assert_is(&self, point: &Done) {
        let expected = self.bring_out(point);
        support::assert_same(&self.home, &expected, &compare::Options::default(), |_| false);
    }
}

/// The steps of a plan.
pub fn actions(plan: &ChangePlan) -> Vec<(&str, Action)> {
    plan.steps.iter().map(|step| (step.path.to_str().unwrap(), step.action)).collect()
}

// --- random trees

#[derive(Clone, Debug)]
pub enum Op {
    File(PathBuf, u8),
    Dir(PathBuf),
    Symlink(PathBuf, u8),
    Fifo(PathBuf),
    Link(PathBuf, PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    Mode(PathBuf, bool),
    Time(PathBuf, u8),
}

fn some_path() -> impl Strategy<Value = PathBuf> {
    "[abc](/[abc]){0,2}".prop_map(PathBuf::from)
}

pub fn ops(count: Range<usize>) -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (some_path(), 0..3u8).prop_map(|(p, n)| Op::File(p, n)),
        2 => some_path().prop_map(Op::Dir),
        1 => (some_path(), 0..2u8).prop_map(|(p, n)| Op::Symlink(p, n)),
        1 => some_path().prop_map(Op::Fifo),
        4 => (some_path(), some_path()).prop_map(|(a, b)| Op::Link(a, b)),
        1 => (some_path(), some_path()).prop_map(|(a, b)| Op::Rename(a, b)),
        3 => some_path().prop_map(Op::Remove),
        1 => (some_path(), any::<bool>()).prop_map(|(p, b)| Op::Mode(p, b)),
        1 => (some_path(), 0..3u8).prop_map(|(p, n)| Op::Time(p, n)),
    ];
    proptest::collection::vec(op, count)
}

/// Does what can be done of it.
pub fn run_ops(home: &Path, ops: &[Op]) {
    for op in ops {
        run_op(home, op).unwrap_or_default();
    }
}

fn run_op(home: &Path, op: &Op) -> std::io::Result<()> {
    let clear = |path: &Path| -> std::io::Result<PathBuf> {
        let path = home.join(path);
        fs::create_dir_all(path.parent().unwrap())?;
        remove(&path)?;
        Ok(path)
    };
    match op {
        Op::File(path, content) => {
            let path = clear(path)?;
            fs::write(&path, vec![b'0' + content; usize::from(*content) * 100])?;
            set_time(&path, *content)
        }
        Op::Dir(path) => fs::create_dir_all(home.join(path)),
        Op::Symlink(path, n) => symlink(format!("target-{n}"), clear(path)?),
        Op::Fifo(path) => {
            let path = clear(path)?;
            let dir = fs::File::open(path.parent().unwrap())?;
            Host.make_node(dir.as_fd(), path.file_name().unwrap(), Kind::Fifo, 0)
        }
        Op::Link(from, to) if from != to && fs::symlink_metadata(home.join(from))?.is_file() => {
            let to = clear(to)?;
            fs::hard_link(home.join(from), to)
        }
        Op::Link(..) => Ok(()),
        Op::Rename(from, to) => {
            fs::create_dir_all(home.join(to).parent().unwrap())?;
            fs::rename(home.join(from), home.join(to))
        }
        Op::Remove(path) => remove(&home.join(path)),
        Op::Mode(path, wide) => {
            let meta = fs::symlink_metadata(home.join(path))?;
            let mode = match (meta.is_dir(), wide) {
                (true, true) => 0o755,
                (true, false) => 0o700,
                (false, true) => 0o644,
                (false, false) => 0o600,
            };
            if meta.is_symlink() {
                Ok(())
            } else {
                fs::set_permissions(home.join(path), fs::Permissions::from_mode(mode))
            }
        }
        Op::Time(path, n) => match fs::symlink_metadata(home.join(path))?.is_file() {
            true => set_time(&home.join(path), *n),
            false => Ok(()),
        },
    }
}

fn set_time(path: &Path, n: u8) -> std::io::Result<()> {
    let file = fs::File::options().write(true).open(path)?;
    file.set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000 + u64::from(n)))
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    }
}

/// Keeps these paths.
pub fn keep(paths: &[String], path: &Path, is_dir: bool) -> Keep {
    if paths.iter().any(|p| path.starts_with(p)) {
        Keep::Yes
    } else if is_dir && paths.iter().any(|p| Path::new(p).starts_with(path)) {
        Keep::MaybeBelow
    } else {
        Keep::No
    }
}

/// All paths below a folder.
pub fn paths(home: &Path) -> Vec<PathBuf> {
    let (mut found, mut pending) = (Vec::new(), vec![PathBuf::new()]);
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(home.join(&folder)).unwrap().flatten() {
            let path = folder.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                pending.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Inode, mode, time, and time of change.
type Touch = (u64, u32, i64, i64, Option<(i64, i64)>);

/// What tells whether entries were touched: inode, mode and time (and, where it has one name, time of change).
pub fn census(home: &Path, which: &dyn Fn(&Path) -> bool) -> BTreeMap<PathBuf, Touch> {
    let of = |path: PathBuf| {
        let m = fs::symlink_metadata(home.join(&path)).unwrap();
        let change = (m.nlink() == 1 || m.is_dir()).then_some((m.ctime(), m.ctime_nsec()));
        (path, (m.ino(), m.mode(), m.mtime(), m.mtime_nsec(), change))
    };
    paths(home).into_iter().filter(|path| which(path)).map(of).collect()
}
