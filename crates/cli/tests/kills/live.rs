//! An app that goes between two states, and what a killed restore or undo of it left.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use backstay_testing::fixtures::Random;
use serde_json::Value;
use tempfile::TempDir;

use crate::World;
use crate::calls::Scene;
use crate::kill::Blow;
use crate::phase::job_of;

/// The two states of the app, and the names of the copies of them.
pub(crate) const SIDES: [&str; 2] = ["good", "bad"];

/// The commands that take their turn as the first after a kill.
const NEXT: &[&str] =
    &["status", "list blog", "job list", "restore blog --dry-run", "vault stats", "files blog"];

/// An app `srv/blog` with a point of each of its states.
pub(crate) struct Live {
    pub(crate) world: World,
    /// The point of each side.
    pub(crate) points: [String; 2],
    /// How many restores and undos are done at a reset, before the kill: none, a restore, and an undo of it.
    pub(crate) done: usize,
    kills: Cell<usize>,
}

impl Live {
    /// The app is `bad`, its newest point holds it as it was `good`. With `files` more files that differ.
    pub(crate) fn new(dir: TempDir, files: usize) -> Self {
        let world = World::within(dir);
        let mut random = Random::new(3);
        for n in 0..30 {
            world.write(&format!("srv/blog/same/{n}.php"), &random.text(1_500));
        }
        bad(&world, &mut random, files);
        let second = take(&world, "bad");
        good(&world, &mut random, files);
        let first = take(&world, "good");
        fs::remove_dir_all(world.path("srv/blog")).unwrap();
        copy(&world, "bad", "srv/blog");
        for name in ["home", "srv"] {
            copy(&world, name, &format!("template/{name}"));
        }
        Live { world, points: [first, second], done: 0, kills: Cell::new(0) }
    }

    /// Whether the app is wholly on that side.
    fn differences(&self, side: &str) -> Vec<String> {
        let options = backstay_tree::compare::Options::default();
        let found =
            backstay_tree::compare::trees(&self.world.path(side), &self.world.path("srv/blog"), &options);
        // The home's own time: a kill between probing the folder above it and setting the time again.
        let own = |d: &&backstay_tree::compare::Difference| {
            d.path.as_os_str().is_empty() && d.what == backstay_tree::compare::What::Mtime
        };
        found.iter().filter(|d| !own(d)).map(ToString::to_string).collect()
    }

    /// The side on which the app is, wholly.
    #[track_caller]
    pub(crate) fn side(&self, what: &str) -> usize {
        let found = SIDES.map(|side| self.differences(side));
        found.iter().position(Vec::is_empty).unwrap_or_else(|| panic!("{what}: in between: {found:?}"))
    }

    /// The first command after a kill, another kind each time; then what must hold. Gives the side on which the app
    /// is, and the state of the killed job.
    pub(crate) fn settle(&self, before: &Trace, left: &Trace, blow: Blow) -> (usize, Option<String>) {
        let words = NEXT[self.kills.get() % NEXT.len()];
        self.kills.set(self.kills.get() + 1);
        let ran = self.world.run(&words.split(' ').collect::<Vec<_>>());
        // The status of `status` says whether all is well, of which a killed job is no part here.
        let fine = ran.status == 0 || (words == "status" && matches!(ran.status, 1 | 3));
        assert!(fine, "{ran:#?} after {left:?}");
        let what = format!("{words} after {left:?}");
        let side = self.side(&what);
        // Every turn of a journal is to the other side.
        let expected = if left.turned(before).is_some() { 1 - before.side } else { before.side };
        assert_eq!(SIDES[side], SIDES[expected], "{what}");
        let now = Trace::of(self, side);
        assert!(now.open().is_none(), "{what}: not finished: {now:?}");
        assert_eq!(now.journals.len(), now.workplaces, "{what}: {now:?}");
        let hidden = |name: &String| name.starts_with(".backstay");
        assert!(!names(&self.world, "srv/blog").iter().any(hidden), "{what}: a workplace in the home");
        if self.kills.get().is_multiple_of(20) {
            self.world.run(&["vault", "check", "--read-data"]).ok();
            for id in self.world.points("blog").iter().take(3).chain(&self.points) {
                self.world.run(&["verify", "blog", id]).ok();
            }
        }
        (side, job_of(&self.world, blow.process))
    }

    /// An undo brings the other side where there is a journal.
    pub(crate) fn undo_works(&self, side: usize) {
        if !Trace::of(self, side).journals.is_empty() {
            self.world.run(&["undo", "blog", "--yes"]).ok();
            assert_eq!(SIDES[self.side("undone")], SIDES[1 - side], "undone");
        }
    }
}

/// The app as a command that is run, told from all others by what it is called with.
pub(crate) struct Supervised<'a> {
    world: &'a World,
    seconds: String,
}

impl<'a> Supervised<'a> {
    pub(crate) fn start(world: &'a World) -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        // No other test has the same.
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let app = Supervised { world, seconds: format!("9{number}{}", std::process::id()) };
        let user = Command::new("id").arg("-un").output().unwrap().stdout;
        let user = String::from_utf8(user).unwrap();
        let line = format!("exec sleep {}", app.seconds);
        world.run(&["app", "set", "blog", "--command", &line, "--run-as", user.trim()]).ok();
        world.run(&["app", "start", "blog"]).ok();
        assert_eq!(app.instances(), 1, "it runs");
        app
    }

    /// How many of it run.
    pub(crate) fn instances(&self) -> usize {
        let line = format!("sleep\0{}\0", self.seconds);
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes.filter(|p| fs::read(p.path().join("cmdline")).is_ok_and(|c| c == line.as_bytes())).count()
    }
}

impl Drop for Supervised<'_> {
    fn drop(&mut self) {
        self.world.run(&["app", "stop", "blog"]);
    }
}

impl Scene for Live {
    type Before = Trace;

    fn world(&self) -> &World {
        &self.world
    }

    /// Puts everything back, does what is to be done before the kill, and syncs it.
    fn reset(&mut self) -> Trace {
        for name in ["home", "srv"] {
            fs::remove_dir_all(self.world.path(name)).unwrap();
            copy(&self.world, &format!("template/{name}"), name);
        }
        for n in 0..self.done {
            let words = if n == 0 { "restore blog --yes" } else { "undo blog --yes" };
            self.world.run(&words.split(' ').collect::<Vec<_>>()).ok();
        }
        rustix::fs::syncfs(fs::File::open(self.world.path("home")).unwrap()).unwrap();
        Trace::of(self, 1 - self.done % 2)
    }
}

/// What a restore or undo left on the disk.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    /// The side on which the app was.
    pub(crate) side: usize,
    snapshots: BTreeSet<String>,
    /// Folders of jobs that have no journal.
    staging: usize,
    journals: BTreeSet<Turn>,
    workplaces: usize,
}

/// How far a journal is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn {
    job: String,
    turn: u64,
    /// `applying` where there is no word of this turn.
    state: String,
}

impl Trace {
    pub(crate) fn of(live: &Live, side: usize) -> Self {
        let jobs = names(&live.world, "home/jobs");
        let read = |job: &str, file: &str| -> Option<Value> {
            serde_json::from_slice(&fs::read(live.world.path(&format!("home/jobs/{job}/{file}"))).ok()?).ok()
        };
        let turn = |job: &String| {
            let journal = read(job, "journal.json")?;
            let state = read(job, "state.json").filter(|s| s["turn"] == journal["turn"]);
            Some(Turn {
                job: job.clone(),
                turn: journal["turn"].as_u64().unwrap(),
                state: state.map_or("applying".to_owned(), |s| s["phase"].as_str().unwrap().to_owned()),
            })
        };
        let folders: Vec<&String> = jobs.iter().filter(|name| !name.starts_with('.')).collect();
        let journals: BTreeSet<Turn> = folders.iter().filter_map(|job| turn(job)).collect();
        let workplaces =
            names(&live.world, "srv").iter().filter(|name| name.starts_with(".backstay-")).count();
        Trace {
            side,
            snapshots: names(&live.world, "home/vault/snapshots"),
            staging: folders.len() - journals.len(),
            journals,
            workplaces,
        }
    }

    /// The journal that the next command finishes.
    fn open(&self) -> Option<&Turn> {
        self.journals.iter().find(|turn| turn.state == "applying" || turn.state == "settled")
    }

    /// The journal that has begun a turn since.
    fn turned(&self, before: &Trace) -> Option<&Turn> {
        let known = |turn: &Turn| before.journals.iter().any(|b| (&b.job, b.turn) == (&turn.job, turn.turn));
        self.journals.iter().find(|turn| !known(turn))
    }
}

pub(crate) const RESTORE: &[&str] = &[
    "before its job",
    "securing what is there",
    "planning",
    "staging",
    "applying",
    "app not started again",
    "done, job open",
    "job ended",
];

/// `before` and `left` are of the disk, `job` is what the record says after the next command.
pub(crate) fn of_restore(before: &Trace, left: &Trace, job: Option<&str>) -> &'static str {
    let secured = !left.snapshots.is_subset(&before.snapshots);
    match (job, left.turned(before).map(|turn| turn.state.as_str())) {
        (None, _) => RESTORE[0],
        (Some("succeeded"), _) => RESTORE[7],
        (_, Some("applying")) => RESTORE[4],
        (_, Some("settled")) => RESTORE[5],
        (_, Some(_)) => RESTORE[6],
        (_, None) if left.staging > 0 => RESTORE[3],
        (_, None) if secured => RESTORE[2],
        (_, None) => RESTORE[1],
    }
}

pub(crate) const UNDO: &[&str] = &[
    "before its job",
    "securing what is there",
    "planning, stopping the app",
    "applying",
    "app not started again",
    "done, job open",
    "job ended",
];

pub(crate) fn of_undo(before: &Trace, left: &Trace, job: Option<&str>) -> &'static str {
    let secured = !left.snapshots.is_subset(&before.snapshots);
    match (job, left.turned(before).map(|turn| turn.state.as_str())) {
        (None, _) => UNDO[0],
        (Some("succeeded"), _) => UNDO[6],
        (_, Some("applying")) => UNDO[3],
        (_, Some("settled")) => UNDO[4],
        (_, Some(_)) => UNDO[5],
        (_, None) if secured => UNDO[2],
        (_, None) => UNDO[1],
    }
}

fn good(world: &World, random: &mut Random, files: usize) {
    fs::remove_dir_all(world.path("srv/blog/added")).unwrap();
    world.write("srv/blog/index.php", b"<?php good();\n");
    world.write("srv/blog/lost/deep/x.jpg", &random.bytes(20_000));
    fs::remove_file(world.path("srv/blog/start")).unwrap();
    symlink("index.php", world.path("srv/blog/start")).unwrap();
    fs::remove_dir_all(world.path("srv/blog/changes")).unwrap();
    world.write("srv/blog/changes", b"a file\n");
    fs::hard_link(world.path("srv/blog/changes"), world.path("srv/blog/second-name")).unwrap();
    fs::set_permissions(world.path("srv/blog/same"), fs::Permissions::from_mode(0o750)).unwrap();
    more(world, random, files);
}

fn bad(world: &World, random: &mut Random, files: usize) {
    world.write("srv/blog/index.php", b"<?php evil();\n");
    world.write("srv/blog/added/shell.php", b"shell\n");
    world.write("srv/blog/changes/folder/y", b"a folder\n");
    symlink("nowhere", world.path("srv/blog/start")).unwrap();
    fs::set_permissions(world.path("srv/blog/same"), fs::Permissions::from_mode(0o700)).unwrap();
    more(world, random, files);
}

fn more(world: &World, random: &mut Random, files: usize) {
    for n in 0..files {
        world.write(&format!("srv/blog/media/{n}.jpg"), &random.bytes(30_000));
    }
}

/// Backs the app up and keeps a copy of it. Gives the point.
fn take(world: &World, side: &str) -> String {
    world.run(&["backup", "srv/blog"]).ok();
    copy(world, "srv/blog", side);
    world.points("blog")[0].clone()
}

/// A copy with everything.
pub(crate) fn copy(world: &World, from: &str, to: &str) {
    let to = world.path(to);
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    let out = Command::new("cp").arg("-a").arg("-T").arg(world.path(from)).arg(to).output().unwrap();
    assert!(out.status.success(), "{out:?}");
}

fn names(world: &World, folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(world.path(folder)).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().into_string().unwrap()).collect()
}
