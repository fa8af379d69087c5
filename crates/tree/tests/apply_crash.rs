//! A restore in place stopped at every call that changes something, by a kill and by a power loss, in each phase from
//! prepare to discard, and again while it is recovered: the home is wholly old or wholly new, nothing is left over,
//! and undo works from there.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

mod apply_support;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use apply_support::{copy, differences, host, job, plan, shown, stage, staged};
use backstay_model::Result;
use backstay_testing::quick_dir;
use backstay_tree::apply::{Outcome, Recovered, Side, Workplace, is_workplace, recover};
use backstay_tree::fs::{Call, Fault, Faulty, FileSystem, Kill};
use serde_json::json;

const EACCES: i32 = 13;

/// What a home is and becomes, and on what kind of file system.
struct Scenario {
    name: &'static str,
    old: fn(&Path),
    new: fn(&Path),
    inside: bool,
    plain: bool,
}

fn write(path: PathBuf, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn mode(path: PathBuf, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn some_files(home: &Path) {
    for (path, text) in
        [("index.php", "old"), ("a/b/c.txt", "old c"), ("a/gone.txt", "gone"), ("keep/x", "x")]
    {
        write(home.join(path), text);
    }
}

fn other_files(home: &Path) {
    write(home.join("index.php"), "new index");
    write(home.join("a/b/c.txt"), "new c");
    fs::remove_file(home.join("a/gone.txt")).unwrap();
    write(home.join("new.txt"), "new");
}

fn kinds(home: &Path) {
    write(home.join("file-to-folder"), "file");
    write(home.join("folder-to-file/deep/x"), "x");
    write(home.join("one"), "linked");
    fs::hard_link(home.join("one"), home.join("two")).unwrap();
    symlink("one", home.join("link-to-file")).unwrap();
    symlink("nowhere", home.join("retarget")).unwrap();
    write(home.join("set-uid"), "x");
    mode(home.join("set-uid"), 0o4755);
}

fn other_kinds(home: &Path) {
    fs::remove_file(home.join("file-to-folder")).unwrap();
    write(home.join("file-to-folder/sub/y"), "y");
    mode(home.join("file-to-folder/sub"), 0o500);
    fs::remove_dir_all(home.join("folder-to-file")).unwrap();
    write(home.join("folder-to-file"), "file now");
    fs::remove_file(home.join("one")).unwrap();
    write(home.join("one"), "linked anew");
    fs::remove_file(home.join("link-to-file")).unwrap();
    fs::hard_link(home.join("one"), home.join("link-to-file")).unwrap();
    fs::remove_file(home.join("retarget")).unwrap();
    symlink("one", home.join("retarget")).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, home.join("fifo"), fifo, 0o640.into(), 0).unwrap();
}

fn metadata(home: &Path) {
    write(home.join("a/b/file"), "same");
    write(home.join("a/other"), "same");
    mode(home.join("a/b"), 0o755);
}

fn other_metadata(home: &Path) {
    mode(home.join("a/b/file"), 0o600);
    mode(home.join("a/b"), 0o2750);
    mode(home.to_owned(), 0o711);
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(home.join("a"), "user.note", b"\xff\\x", flags).ok();
    let other = fs::File::options().write(true).open(home.join("a/other")).unwrap();
    other.set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 5)).unwrap();
}

fn names(home: &Path) {
    for name in odd_names() {
        write(home.join(OsStr::from_bytes(&name)).join("f"), "f");
    }
    write(home.join("Case"), "C");
}

fn other_names(home: &Path) {
    for (n, name) in odd_names().iter().enumerate() {
        let path = home.join(OsStr::from_bytes(name));
        if n % 2 == 0 {
            fs::remove_dir_all(path).unwrap()
        } else {
            write(path.join(OsStr::from_bytes(name)), "g")
        }
    }
    write(home.join("case"), "c");
}

fn odd_names() -> Vec<Vec<u8>> {
    vec![
        b"\xff\xfe".to_vec(),
        b"new\nline".to_vec(),
        vec![b'l'; 255],
        b"back\\slash \t".to_vec(),
        b"\\x41".to_vec(),
    ]
}

fn deep(home: &Path) {
    let mut path = home.to_owned();
    for level in 0..12 {
        path.push(format!("level-{level}"));
    }
    write(path.join("leaf"), "old leaf");
    write(home.join("tree/1/2/3"), "gone with its folders");
    write(home.join("tree/1/4"), "too");
}

fn other_deep(home: &Path) {
    let mut path = home.to_owned();
    for level in 0..12 {
        path.push(format!("level-{level}"));
    }
    write(path.join("leaf"), "new leaf");
    fs::remove_dir_all(home.join("tree/1")).unwrap();
    write(home.join("grown/1/2/3"), "added with its folders");
}

fn removals(home: &Path) {
    fs::remove_file(home.join("index.php")).unwrap();
    fs::remove_dir_all(home.join("a/b")).unwrap();
}

const SCENARIOS: [Scenario; 9] = [
    Scenario { name: "files", old: some_files, new: other_files, inside: false, plain: false },
    Scenario { name: "inside the home", old: some_files, new: other_files, inside: true, plain: false },
    Scenario { name: "plain renames", old: some_files, new: other_files, inside: false, plain: true },
    Scenario { name: "kinds", old: kinds, new: other_kinds, inside: false, plain: false },
    Scenario { name: "kinds, plain renames", old: kinds, new: other_kinds, inside: true, plain: true },
    Scenario { name: "metadata", old: metadata, new: other_metadata, inside: false, plain: false },
    Scenario { name: "names", old: names, new: other_names, inside: false, plain: false },
    Scenario { name: "deep", old: deep, new: other_deep, inside: false, plain: false },
    Scenario { name: "removals", old: some_files, new: removals, inside: true, plain: false },
];

/// Old and new tree of a scenario, and a home that is made anew for each run.
struct Bench<'a> {
    scenario: &'a Scenario,
    dir: tempfile::TempDir,
}

impl<'a> Bench<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let bench = Bench { scenario, dir: quick_dir() };
        fs::create_dir(bench.old()).unwrap();
        (scenario.old)(&bench.old());
        copy(&bench.old(), &bench.new_tree());
        (scenario.new)(&bench.new_tree());
        bench
    }

    fn old(&self) -> PathBuf {
        self.dir.path().join("old")
    }
    fn new_tree(&self) -> PathBuf {
        self.dir.path().join("new")
    }
    fn tree(&self, side: Side) -> PathBuf {
        if side == Side::Old { self.old() } else { self.new_tree() }
    }

    fn run(&self) -> Run<'_> {
        let run = Run { bench: self, dir: quick_dir() };
        fs::create_dir(run.dir.path().join("srv")).unwrap();
        fs::create_dir(run.dir.path().join("lost")).unwrap();
        copy(&self.old(), &run.home());
        run
    }
}

struct Run<'a> {
    bench: &'a Bench<'a>,
    dir: tempfile::TempDir,
}

impl Run<'_> {
    fn home(&self) -> PathBuf {
        self.dir.path().join("srv/home")
    }
    fn jobs(&self) -> PathBuf {
        self.dir.path().join("jobs")
    }

    fn faulty(&self, losing: bool) -> Arc<Faulty> {
        let faulty = match losing {
            true => Faulty::with_power_loss(host(), &self.dir.path().join("lost")).unwrap(),
            false => Faulty::new(host()),
        };
        if self.bench.scenario.plain {
            faulty.plain_renames();
        }
        if self.bench.scenario.inside {
            // The folder beside the home cannot be written.
            let workplace = format!(".backstay-{}", job(7));
            faulty.fail(Fault::of(Call::CreateDir, EACCES).named(workplace).times(1));
        }
        Arc::new(faulty)
    }

    /// A job from its beginning to its end, both ways and forth again.
    fn job(&self, faulty: &Arc<Faulty>) -> Result<()> {
        let fs: Arc<dyn FileSystem> = faulty.clone();
        let target = self.bench.new_tree();
        let changes = plan(&self.home(), &target);
        faulty.phase("prepare");
        let mut workplace =
            Workplace::prepare(fs.clone(), &self.home(), &self.jobs(), job(7), &json!({"app": "blog"}))?;
        faulty.phase("stage");
        staged(stage(&*fs, &target, &workplace.staging_path(), &changes))?;
        faulty.phase("commit");
        let mut journal = workplace.commit(&changes)?;
        drop(workplace);
        faulty.phase("apply");
        journal.settle(Side::New)?;
        faulty.phase("close");
        journal.close()?;
        faulty.phase("undo");
        journal.settle(Side::Old)?;
        faulty.phase("undo of undo");
        journal.settle(Side::New)?;
        journal.close()?;
        faulty.phase("discard");
        journal.discard()
    }

    /// Recovers with that file system; tells what was found.
    fn recover(&self, faulty: &Arc<Faulty>) -> Result<Vec<Recovered>> {
        let fs: Arc<dyn FileSystem> = faulty.clone();
        recover(&fs, &self.jobs())
    }

    #[track_caller]
    fn is(&self, side: Side, root_time: bool, what: &str) {
        let found = differences(&self.home(), &self.bench.tree(side), root_time);
        assert!(found.is_empty(), "{what}: not {side:?}: {}", shown(&found));
    }

    /// What must hold after a stop in `phase`, when nobody works on the job any more. The home's own time is not
    /// looked at where a call between was just to set it again, or where the power loss itself touched it.
    fn recovers(&self, phase: &str, untimed: bool, what: &str) -> &'static str {
        let faulty = self.faulty(false);
        faulty.heal();
        let mut found = self.recover(&faulty).unwrap_or_else(|e| panic!("{what}: {e:?}"));
        assert!(found.len() <= 1, "{what}: {found:?}");
        let early = matches!(phase, "prepare" | "stage" | "commit");
        let time = !untimed && phase != "prepare";
        let ended = match found.pop().map(|r| (r.note, r.outcome)) {
            None => {
                // Closed, or nothing was ever there, or all is gone.
                match phase {
                    _ if early => self.is(Side::Old, time, what),
                    "undo" | "close" | "discard" | "undo of undo" => {
                        self.is(Side::New, phase != "discard", what)
                    }
                    other => panic!("{what}: nothing was found after {other}"),
                }
                "nothing to do"
            }
            Some((_, Outcome::NotCommitted)) => {
                assert!(early, "{what}");
                self.is(Side::Old, time, what);
                "not committed"
            }
            Some((_, Outcome::Discarded)) => {
                assert_eq!(phase, "discard", "{what}");
                self.is(Side::New, false, what);
                "discarded"
            }
            Some((note, Outcome::Settled(mut journal, settled))) => {
                assert_eq!(note["app"], "blog", "{what}");
                assert!(settled.problems.is_empty() && settled.skipped.is_empty(), "{what}: {settled:?}");
                let side = journal.goal();
                let may = match phase {
                    "undo" | "undo of undo" => true,
                    _ => side == Side::New,
                };
                assert!(may, "{what}: {side:?}");
                self.is(side, true, what);
                // From there both ways are open.
                journal.settle(side.other()).unwrap_or_else(|e| panic!("{what}: {e:?}"));
                self.is(side.other(), true, what);
                journal.settle(side).unwrap();
                self.is(side, true, what);
                journal.close().unwrap();
                journal.discard().unwrap();
                self.is(side, true, what);
                if side == Side::Old { "old" } else { "new" }
            }
            Some((_, Outcome::Stuck(e))) => panic!("{what}: stuck: {e:?}"),
        };
        let again = self.recover(&faulty).unwrap();
        assert!(again.is_empty(), "{what}: {again:?}");
        self.nothing_left(what, ended == "nothing to do");
        ended
    }

    fn nothing_left(&self, what: &str, may_be_closed: bool) {
        if may_be_closed && fs::read_dir(self.jobs()).is_ok_and(|mut jobs| jobs.next().is_some()) {
            let fs: Arc<dyn FileSystem> = host();
            let journal = backstay_tree::apply::Journal::open(fs, &self.jobs(), job(7));
            journal.unwrap_or_else(|e| panic!("{what}: {e:?}")).discard().unwrap();
        }
        for folder in [self.home(), self.dir.path().join("srv")] {
            let left: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert!(!left.iter().any(|name| is_workplace(name)), "{what}: {left:?}");
        }
        assert!(fs::read_dir(self.jobs()).map_or(0, Iterator::count) == 0, "{what}: a journal is left");
    }
}

/// How the world stops.
#[derive(Clone, Copy, Debug)]
enum Stop {
    Killed(Kill),
    /// All that was not synced is lost.
    Lost(Kill),
    /// A random part of it.
    Partly(Kill, u64),
}

const STOPS: [Stop; 8] = [
    Stop::Killed(Kill::Before),
    Stop::Killed(Kill::After),
    Stop::Killed(Kill::Torn),
    Stop::Lost(Kill::Before),
    Stop::Lost(Kill::After),
    Stop::Partly(Kill::After, 1),
    Stop::Partly(Kill::After, 2),
    Stop::Partly(Kill::Torn, 3),
];

impl Stop {
    fn how(self) -> (Kill, bool) {
        match self {
            Stop::Killed(kill) => (kill, false),
            Stop::Lost(kill) | Stop::Partly(kill, _) => (kill, true),
        }
    }

    fn strike(self, faulty: &Faulty, number: u64) {
        match self {
            Stop::Killed(_) => {}
            Stop::Lost(_) => faulty.power_loss().unwrap(),
            Stop::Partly(_, seed) => faulty.power_loss_some(seed * 1000 + number).unwrap(),
        }
    }
}

/// Calls `work` with each number from 1 to `last`, on two threads, until one fails.
fn each(last: u64, work: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(1);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number > last {
                        return;
                    }
                    if let Err(failed) = catch_unwind(AssertUnwindSafe(|| work(number))) {
                        next.store(last + 1, Ordering::Relaxed);
                        resume_unwind(failed);
                    }
                }
            });
        }
    });
}

/// Counts of what was hit, by phase.
#[derive(Default)]
struct Hits(Mutex<BTreeMap<String, BTreeMap<&'static str, u32>>>);

impl Hits {
    fn add(&self, phase: &str, ended: &'static str) {
        *self.0.lock().unwrap().entry(phase.to_owned()).or_default().entry(ended).or_default() += 1;
    }

    fn print(&self, what: &str, phases: &[(String, u64)]) {
        let points: Vec<String> = phases.iter().map(|(phase, n)| format!("{phase} {n}")).collect();
        println!("{what}: points {}", points.join(", "));
        for (phase, ended) in &*self.0.lock().unwrap() {
            println!("    {phase}: {ended:?}");
        }
    }
}

#[test]
fn stopped_at_every_call() {
    for scenario in &SCENARIOS {
        let bench = Bench::new(scenario);
        let run = bench.run();
        let faulty = run.faulty(false);
        run.job(&faulty).unwrap_or_else(|e| panic!("{}: {e:?}", scenario.name));
        run.is(Side::New, !scenario.inside, scenario.name);
        run.nothing_left(scenario.name, false);
        let writes = faulty.log().into_iter().filter(|call| call.call == Call::WriteAt);
        let writes: BTreeSet<u64> = writes.filter_map(|call| call.number).collect();
        let hits = Hits::default();
        each(faulty.points(), |number| {
            for stop in STOPS {
                let (kill, losing) = stop.how();
                if kill == Kill::Torn && !writes.contains(&number) {
                    continue;
                }
                let run = bench.run();
                let faulty = run.faulty(losing);
                faulty.kill_at(number, kill);
                let e = run.job(&faulty).expect_err("it was killed");
                let at = faulty.killed_at().unwrap_or_else(|| panic!("{}: not killed: {e:?}", scenario.name));
                stop.strike(&faulty, number);
                let what = format!("{}, {stop:?} at {number}: {at:?}", scenario.name);
                hits.add(&at.phase, run.recovers(&at.phase, losing, &what));
            }
        });
        hits.print(scenario.name, &faulty.phases());
    }
}

#[test]
fn killed_again_while_recovering() {
    for scenario in
        SCENARIOS.iter().filter(|s| ["inside the home", "plain renames", "kinds"].contains(&s.name))
    {
        let bench = Bench::new(scenario);
        let run = bench.run();
        let faulty = run.faulty(false);
        run.job(&faulty).unwrap();
        let hits = Hits::default();
        each(faulty.points(), |number| {
            // How many points the recovery has from there, then every third of them.
            let stopped = |second: Option<(u64, bool)>| {
                let run = bench.run();
                let faulty = run.faulty(false);
                faulty.kill_at(number, Kill::After);
                run.job(&faulty).expect_err("it was killed");
                let at = faulty.killed_at().unwrap();
                let again = run.faulty(second.is_some_and(|(_, losing)| losing));
                again.heal();
                if let Some((point, _)) = second {
                    again.kill_at(point, Kill::After);
                }
                drop(run.recover(&again));
                if let Some((point, losing)) = second {
                    if losing {
                        again.power_loss_some(number * 100 + point).unwrap();
                    }
                    let what = format!("{}, {number}: {at:?}, then {point}", scenario.name);
                    let phase = if at.phase == "close" { "undo" } else { &at.phase };
                    let untimed = losing || scenario.inside;
                    hits.add(&at.phase, run.recovers(phase, untimed, &what));
                }
                again.points()
            };
            let points = stopped(None);
            for point in (1 + number % 3..=points).step_by(3) {
                stopped(Some((point, point % 2 == 0)));
            }
        });
        hits.print(&format!("killed again, {}", scenario.name), &faulty.phases());
    }
}
