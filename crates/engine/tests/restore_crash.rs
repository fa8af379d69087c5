//! Restores over an app, undos and restores to a new app stopped at every call that changes something, by a kill and
//! by a power loss, and stopped again while the next command finishes them. After the next command the app is wholly
//! what it was or wholly what it was to be; the points are whole; what was committed can be taken back; a backup works.
//!
//! What was committed is told by the journal as it lies on the disk after the stop, which is read here by itself.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use backstay_engine::{
    BackupRequest, Engine, InPlace, NewHome, RestoreRequest, Selector, Setup, SystemClock, phase_name,
};
use backstay_model::{AppName, Cancel, Code, Phase, Problem, Progress, Result, Silent};
use backstay_testing::quick_dir;
use backstay_tree::apply::is_workplace;
use backstay_tree::compare;
use backstay_tree::fs::{Call, Faulty, FileSystem, Host, Kill};

/// Two threads, each with a folder of its own.
const THREADS: u64 = 2;

fn write(path: PathBuf, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn mode(path: PathBuf, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The app as its point holds it: the new side.
fn good(home: &Path) {
    write(home.join("index.php"), b"<?php good();\n");
    write(home.join("same/deep/stays.txt"), b"stays\n");
    write(home.join("lost/deep/was-here.txt"), b"was here\n");
    write(home.join("file-to-folder"), b"a file\n");
    write(home.join("folder-to-file/sub/x"), b"x\n");
    write(home.join("one"), b"two names\n");
    fs::hard_link(home.join("one"), home.join("two")).unwrap();
    symlink("index.php", home.join("start")).unwrap();
    write(home.join("modes/file"), b"same content\n");
    write(home.join(OsStr::from_bytes(b"odd\n\xff")), b"odd\n");
    mode(home.join("modes"), 0o750);
    mode(home.join("modes/file"), 0o640);
}

/// The same after an accident: the old side, which an undo brings back.
fn bad(home: &Path) {
    write(home.join("index.php"), b"<?php evil();\n");
    fs::remove_dir_all(home.join("lost")).unwrap();
    fs::remove_file(home.join("file-to-folder")).unwrap();
    write(home.join("file-to-folder/y"), b"y\n");
    fs::remove_dir_all(home.join("folder-to-file")).unwrap();
    write(home.join("folder-to-file"), b"now a file\n");
    fs::remove_file(home.join("two")).unwrap();
    fs::remove_file(home.join("start")).unwrap();
    symlink("nowhere", home.join("start")).unwrap();
    mode(home.join("modes"), 0o700);
    mode(home.join("modes/file"), 0o604);
    fs::remove_file(home.join(OsStr::from_bytes(b"odd\n\xff"))).unwrap();
    write(home.join("added/shell.php"), b"shell\n");
}

/// What the app writes between a restore and its undo, in the tests that have it write.
fn write_on(home: &Path) {
    write(home.join("visitors.log"), b"a visitor\n");
    write(home.join("index.php"), b"<?php better();\n");
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// A folder with a world in it that is made anew for each stop: `world/state`, `world/srv/app`, and copies of what the
/// app was: `old`, `new`.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// The good app is backed up, then it becomes the bad one.
    fn new() -> Self {
        let place = Place { dir: quick_dir() };
        fs::create_dir_all(place.home()).unwrap();
        good(&place.home());
        let engine = place.healthy();
        back_up(&engine, &place.home()).unwrap();
        drop(engine);
        copy(&place.home(), &place.path("new"));
        bad(&place.home());
        copy(&place.home(), &place.path("old"));
        copy(&place.path("world"), &place.path("template"));
        fs::create_dir(place.path("aside")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn home(&self) -> PathBuf {
        self.path("world/srv/app")
    }
    fn reset(&self) {
        for name in ["world", "aside"] {
            fs::remove_dir_all(self.path(name)).unwrap();
        }
        fs::create_dir(self.path("aside")).unwrap();
        copy(&self.path("template"), &self.path("world"));
    }

    fn healthy(&self) -> Engine {
        self.engine(Arc::new(Host)).unwrap()
    }

    fn engine(&self, fs: Arc<dyn FileSystem>) -> Result<Engine> {
        let state = Some(self.path("world/state"));
        Engine::new(Setup { state, vault: None, clock: Arc::new(SystemClock), fs })
    }

    fn faulty(&self, losing: bool) -> Arc<Faulty> {
        Arc::new(match losing {
            true => Faulty::with_power_loss(Arc::new(Host), &self.path("aside")).unwrap(),
            false => Faulty::new(Arc::new(Host)),
        })
    }

    /// How the app differs from one of the copies, in everything; the home's own time where asked.
    fn differences(&self, side: &str, root_time: bool) -> Vec<String> {
        let mut found = compare::trees(&self.home(), &self.path(side), &compare::Options::default());
        found.retain(|d| root_time || !(d.path.as_os_str().is_empty() && d.what == compare::What::Mtime));
        found.iter().map(ToString::to_string).collect()
    }

    #[track_caller]
    fn is(&self, side: &str, root_time: bool, what: &str) {
        let found = self.differences(side, root_time);
        assert!(found.is_empty(), "{what}: not {side}: {}", found.join("; "));
    }

    /// The side that journals name, where there is one, with whether it waits to be finished.
    fn journals(&self) -> Vec<(String, bool)> {
        let read = |path: PathBuf| -> Option<serde_json::Value> {
            serde_json::from_slice(&fs::read(path).ok()?).ok()
        };
        let jobs = fs::read_dir(self.path("world/state/jobs")).into_iter().flatten().flatten();
        let journal = |dir: PathBuf| {
            let journal = read(dir.join("journal.json"))?;
            let goal = journal["goal"].as_str().unwrap().to_owned();
            let state = read(dir.join("state.json")).filter(|s| s["turn"] == journal["turn"]);
            let ended = |s: serde_json::Value| s["phase"] == "closed" || s["phase"] == "discarding";
            Some((goal, !state.is_some_and(ended)))
        };
        jobs.filter_map(|job| journal(job.path())).collect()
    }

    fn nothing_left_in_the_home(&self, what: &str) {
        let left: Vec<_> = fs::read_dir(self.home()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| is_workplace(name)), "{what}: {left:?}");
    }

    /// The workplaces beside the home.
    fn workplaces(&self) -> usize {
        let names = fs::read_dir(self.path("world/srv")).unwrap().map(|e| e.unwrap().file_name());
        names.filter(|name| is_workplace(name)).count()
    }
}

fn back_up(engine: &Engine, home: &Path) -> Result<()> {
    engine.backup(&BackupRequest::of(home), &Silent, &Cancel::new()).map(drop)
}

/// Tells the file system in which phase the engine is, in the words of the architecture.
struct Watch<'a>(&'a Faulty, &'static str);

impl Watch<'_> {
    fn enter(&self, phase: &str) {
        self.0.phase(format!("{}: {phase}", self.1));
    }
}

impl Progress for Watch<'_> {
    fn phase(&self, phase: Phase) {
        self.enter(match phase {
            Phase::Opening | Phase::Securing | Phase::Reading | Phase::Committing => "secure",
            Phase::Planning => "prepare",
            Phase::Restoring => "stage",
            Phase::Applying => "apply",
            Phase::Starting => "close",
            other => phase_name(other),
        });
    }
    fn done(&self, _: u64, _: u64) {}
    fn expect(&self, _: u64, _: u64) {}
    fn problem(&self, _: &Problem) {}
}

fn restore(engine: &Engine, progress: &dyn Progress) -> Result<()> {
    let point = oldest(engine)?;
    let request = RestoreRequest { app: "app", point: &point, paths: &[] };
    let report = engine.restore_in_place(&request, &InPlace::default(), progress, &Cancel::new())?;
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    Ok(())
}

/// The point of the good app.
fn oldest(engine: &Engine) -> Result<Selector> {
    let points = engine.list(Some("app"))?.points;
    Ok(points.last().unwrap().point.id.to_string().parse().unwrap())
}

/// An undo; gives how many files were read for it.
fn undo(engine: &Engine, progress: &dyn Progress) -> Result<u64> {
    let report = engine.undo("app", &InPlace::default(), progress, &Cancel::new())?;
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    Ok(report.counts.files)
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

const STOPS: [Stop; 7] = [
    Stop::Killed(Kill::Before),
    Stop::Killed(Kill::After),
    Stop::Lost(Kill::Before),
    Stop::Lost(Kill::After),
    Stop::Partly(Kill::After, 1),
    Stop::Killed(Kill::Torn),
    Stop::Partly(Kill::Torn, 2),
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
            Stop::Partly(_, seed) => faulty.power_loss_some(seed * 10_000 + number).unwrap(),
        }
    }
}

/// Calls `work` with a place and each number from `first` to `last`, on some threads.
fn each(first: u64, last: u64, work: impl Fn(&Place, u64) + Sync) {
    let next = AtomicU64::new(first);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let place = Place::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number > last {
                        return;
                    }
                    work(&place, number);
                }
            });
        }
    });
}

/// Counts of what was hit, by phase.
#[derive(Default)]
struct Hits(Mutex<BTreeMap<String, BTreeMap<String, u32>>>);

impl Hits {
    fn add(&self, phase: &str, ended: &str) {
        let mut hits = self.0.lock().unwrap();
        *hits.entry(phase.to_owned()).or_default().entry(ended.to_owned()).or_default() += 1;
    }

    /// Prints the counts; each of these phases must have been hit.
    fn tell(&self, what: &str, phases: &[&str]) {
        let hits = self.0.lock().unwrap();
        println!("{what}: {} stops", hits.values().flat_map(BTreeMap::values).sum::<u32>());
        for (phase, ended) in &*hits {
            println!("    {phase}: {ended:?}");
        }
        let hit: BTreeSet<&str> = hits.keys().map(String::as_str).collect();
        let missed: Vec<_> = phases.iter().filter(|phase| !hit.contains(**phase)).collect();
        assert!(missed.is_empty(), "{what}: never hit: {missed:?}");
    }
}

/// The phase a stop was in: the journal's own write is the commit (and the turn of an undo).
fn phase_of(faulty: &Faulty) -> Option<(String, bool)> {
    let at = faulty.killed_at()?;
    let name = at.name.to_string_lossy();
    let phase = match at.phase.split_once(": ") {
        Some((action, _)) if name.contains("journal.json") => format!("{action}: commit"),
        _ => at.phase.clone(),
    };
    Some((phase, at.call == Call::WriteAt))
}

/// What must hold after a stop and the next command. `sides` are the old one and the new one of what was stopped.
/// Gives the side that the app is on.
fn holds(place: &Place, sides: &[&str; 2], losing: bool, deep: u64, phase: &str, what: &str) -> String {
    let open = place.journals().iter().find(|(_, open)| *open).cloned();
    let engine = place.healthy();
    let points_before = ids(&engine);
    let mut resumed = engine.resume().unwrap_or_else(|e| panic!("{what}: {e:?}"));
    // A program that another thread is just starting holds copies of our handles, locks included, until it runs.
    for _ in 0..100 {
        if open.is_none() || !resumed.is_empty() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        resumed = engine.resume().unwrap_or_else(|e| panic!("{what}: {e:?}"));
    }
    assert!(resumed.iter().all(|r| !r.stuck), "{what}: {resumed:?}");
    assert!(engine.resume().unwrap().is_empty(), "{what}: resumed twice");
    let root_time = !losing && !phase.contains("prepare");
    let side = match &open {
        // What the journal says, which the next command has finished.
        Some((goal, _)) => sides[usize::from(goal == "new")].to_owned(),
        None => match sides.iter().find(|side| place.differences(side, root_time).is_empty()) {
            Some(side) => (*side).to_owned(),
            None => panic!(
                "{what}: neither {} ({}) nor {} ({})",
                sides[0],
                place.differences(sides[0], root_time).join("; "),
                sides[1],
                place.differences(sides[1], root_time).join("; ")
            ),
        },
    };
    place.is(&side, root_time, what);
    place.nothing_left_in_the_home(what);
    let journals = place.journals();
    assert_eq!(journals.len(), place.workplaces(), "{what}: {journals:?}");
    // What goes is a safety point of what came to nothing; each one that stays is the way back of a journal.
    let points = ids(&engine);
    assert!(points.iter().all(|id| points_before.contains(id)), "{what}: points");
    let gone = points_before.len() - points.len();
    assert!(gone <= 2 && (gone == 0 || !phase.contains("close")), "{what}: {gone} points are gone");
    if deep.is_multiple_of(5) {
        all_whole(&engine, what);
    }
    side
}

fn ids(engine: &Engine) -> Vec<String> {
    let listing = engine.list(Some("app")).unwrap();
    assert!(listing.damaged.is_empty(), "{:?}", listing.damaged);
    listing.points.iter().map(|p| p.point.id.to_string()).collect()
}

/// Every point can be read as a whole, and the vault is clean.
fn all_whole(engine: &Engine, what: &str) {
    for id in ids(engine) {
        let report = engine.verify("app", &id.parse().unwrap(), &Silent, &Cancel::new()).unwrap();
        assert!(report.problems.is_empty(), "{what}: {id}: {:?}", report.problems);
    }
    let check = engine.vault_check(true, &Silent, &Cancel::new()).unwrap();
    assert!(check.clean, "{what}: {:?}", check.report.errors);
}

/// What an undo must do.
enum Undone<'a> {
    /// Go to that side by the journal, reading nothing.
    Turned(&'a str),
    /// Go there by whatever way.
    To(&'a str),
    /// Nothing.
    Nothing,
}

/// From there the app can be taken back where something was committed, and can be backed up.
fn goes_on(place: &Place, undone: &Undone<'_>, untimed: bool, deep: u64, what: &str) {
    let engine = place.healthy();
    let result = engine.undo("app", &InPlace::default(), &Silent, &Cancel::new());
    let what = format!("{what}, undone");
    match (result, undone) {
        (Ok(_), Undone::Turned(to) | Undone::To(to)) => {
            // By the journal or, where that does not do exactly what is wanted, by the safety point: the end is the same.
            place.is(to, !untimed, &what);
        }
        (Err(e), Undone::Nothing) if e.code() == Code::NothingToUndo => {}
        (Ok(report), Undone::Nothing) => panic!("{what}: took back what never was: {report:?}"),
        (Err(e), _) => panic!("{what}: {e:?}"),
    }
    if deep.is_multiple_of(3) {
        back_up(&engine, &place.home()).unwrap_or_else(|e| panic!("{what}: {e:?}"));
    }
    if deep.is_multiple_of(10) {
        all_whole(&engine, &what);
    }
}

/// What an undo does after a stop within [`there_back_and_there`].
fn turned(place: &Place, side: &str) -> Undone<'static> {
    match side {
        _ if place.journals().is_empty() => Undone::Nothing,
        "new" => Undone::Turned("old"),
        _ => Undone::Turned("new"),
    }
}

/// A restore, its undo, and the undo of that.
fn there_back_and_there(place: &Place, faulty: &Arc<Faulty>) -> Result<()> {
    let engine = place.engine(faulty.clone())?;
    let action = |name| {
        let watch = Watch(faulty, name);
        watch.enter("begin");
        watch
    };
    restore(&engine, &action("restore"))?;
    assert_eq!(undo(&engine, &action("undo"))?, 0, "it is done by the journal");
    assert_eq!(undo(&engine, &action("undo of undo"))?, 0, "it is done by the journal");
    Ok(())
}

fn told(phases: &[(String, u64)]) -> String {
    phases.iter().map(|(phase, n)| format!("{phase} {n}")).collect::<Vec<_>>().join(", ")
}

#[test]
fn stopped_at_every_call() {
    let place = Place::new();
    let reference = place.faulty(false);
    there_back_and_there(&place, &reference).unwrap();
    place.is("new", true, "undisturbed");
    println!("{} points: {}", reference.points(), told(&reference.phases()));
    let hits = Hits::default();
    each(1, reference.points(), |place, number| {
        let mut writes = false;
        for (n, stop) in STOPS.iter().enumerate() {
            let (kill, losing) = stop.how();
            if kill == Kill::Torn && !writes {
                continue;
            }
            place.reset();
            let faulty = place.faulty(losing);
            faulty.kill_at(number, kill);
            let result = there_back_and_there(place, &faulty);
            // Threads are not always equally fast: a run may have some calls less.
            let Some((phase, is_write)) = phase_of(&faulty) else { continue };
            writes |= is_write;
            stop.strike(&faulty, number);
            let what = format!("{stop:?} at {number}: {:?} ({result:?})", faulty.killed_at());
            let deep = number + n as u64;
            let side = holds(place, &["old", "new"], losing, deep, &phase, &what);
            if phase.starts_with("restore") && !phase.contains("apply") && !phase.contains("close") {
                assert!(side == "old" || phase.ends_with("commit") || phase.ends_with("stage"), "{what}");
            }
            hits.add(&phase, &side);
            let untimed = losing || phase.contains("prepare");
            goes_on(place, &turned(place, &side), untimed, deep, &what);
        }
    });
    let mut expected: Vec<String> = Vec::new();
    for phase in ["secure", "prepare", "stage", "apply", "close"] {
        expected.push(format!("restore: {phase}"));
    }
    for phase in ["secure", "prepare", "apply", "close"] {
        expected.extend([format!("undo: {phase}"), format!("undo of undo: {phase}")]);
    }
    hits.tell("there, back and there", &expected.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn stopped_again_while_the_next_command_finishes_it() {
    let place = Place::new();
    let reference = place.faulty(false);
    there_back_and_there(&place, &reference).unwrap();
    let hits = Hits::default();
    each(1, reference.points() / 3, |place, third| {
        let number = 3 * third;
        // How many calls the next command makes from there; then it is stopped at some of them.
        let stopped = |second: Option<(u64, bool)>| -> u64 {
            place.reset();
            let faulty = place.faulty(false);
            faulty.kill_at(number, Kill::After);
            let first = there_back_and_there(place, &faulty);
            let Some((phase, _)) = phase_of(&faulty) else { return 0 };
            let losing = second.is_some_and(|(_, losing)| losing);
            let again = place.faulty(losing);
            if let Some((point, _)) = second {
                again.kill_at(point, Kill::After);
            }
            let died = place.engine(again.clone()).unwrap().resume();
            let Some((point, _)) = second else { return again.points() };
            if losing {
                again.power_loss_some(number * 100 + point).unwrap();
            }
            let what = format!("{number}: {:?} ({first:?}), then {point}: {died:?}", faulty.killed_at());
            let untimed = losing || phase.contains("prepare");
            let side = holds(place, &["old", "new"], untimed, number + point, &phase, &what);
            hits.add(&phase, &side);
            goes_on(place, &turned(place, &side), untimed, number + point, &what);
            again.points()
        };
        let points = stopped(None);
        for point in (1 + third % 3..=points).step_by(3) {
            stopped(Some((point, point % 2 == 0)));
        }
    });
    hits.tell("stopped again", &["restore: stage", "restore: apply", "undo: apply", "undo of undo: apply"]);
}

#[test]
fn an_undo_of_an_app_that_has_written_since_stopped_at_every_call() {
    let prepared = |place: &Place| {
        place.reset();
        restore(&place.healthy(), &Silent).unwrap();
        write_on(&place.home());
        fs::remove_dir_all(place.path("since")).ok();
        copy(&place.home(), &place.path("since"));
    };
    let work = |place: &Place, faulty: &Arc<Faulty>| -> Result<u64> {
        let watch = Watch(faulty, "undo");
        watch.enter("begin");
        undo(&place.engine(faulty.clone())?, &watch)
    };
    let place = Place::new();
    prepared(&place);
    let reference = place.faulty(false);
    assert!(work(&place, &reference).unwrap() > 0, "the safety point is restored");
    place.is("old", true, "undisturbed");
    println!("{} points: {}", reference.points(), told(&reference.phases()));
    let hits = Hits::default();
    each(1, reference.points(), |place, number| {
        for (n, stop) in [Stop::Killed(Kill::After), Stop::Partly(Kill::After, 1), Stop::Lost(Kill::Before)]
            .iter()
            .enumerate()
        {
            let (kill, losing) = stop.how();
            prepared(place);
            let faulty = place.faulty(losing);
            faulty.kill_at(number, kill);
            let result = work(place, &faulty);
            let Some((phase, _)) = phase_of(&faulty) else { continue };
            stop.strike(&faulty, number);
            let what = format!("{stop:?} at {number}: {:?} ({result:?})", faulty.killed_at());
            let deep = number + n as u64;
            let side = holds(place, &["since", "old"], losing, deep, &phase, &what);
            hits.add(&phase, &side);
            let undone = if side == "old" { Undone::Turned("since") } else { Undone::To("old") };
            goes_on(place, &undone, losing || phase.contains("prepare"), deep, &what);
        }
    });
    let phases = ["secure", "prepare", "stage", "apply", "close"].map(|p| format!("undo: {p}"));
    hits.tell("undo by the point", &phases.each_ref().map(String::as_str));
}

#[test]
fn a_new_app_is_there_whole_or_not_at_all() {
    let name: AppName = "copy".parse().unwrap();
    let work = |engine: &Engine, progress: &dyn Progress| {
        let point = oldest(engine)?;
        let request = RestoreRequest { app: "app", point: &point, paths: &[] };
        engine.restore_to_new_app(&request, &name, &NewHome::default(), progress, &Cancel::new()).map(drop)
    };
    let stopped = |place: &Place, faulty: &Arc<Faulty>| {
        let watch = Watch(faulty, "new app");
        watch.enter("begin");
        work(&place.engine(faulty.clone())?, &watch)
    };
    let same = |place: &Place, what: &str| {
        let found = compare::trees(
            &place.path("world/state/sites/copy"),
            &place.path("new"),
            &compare::Options { root: false, ..compare::Options::default() },
        );
        assert!(found.is_empty(), "{what}: {found:?}");
    };
    let place = Place::new();
    let reference = place.faulty(false);
    stopped(&place, &reference).unwrap();
    same(&place, "undisturbed");
    println!("{} points: {}", reference.points(), told(&reference.phases()));
    let hits = Hits::default();
    each(1, reference.points(), |place, number| {
        for stop in STOPS {
            let (kill, losing) = stop.how();
            place.reset();
            let faulty = place.faulty(losing);
            faulty.kill_at(number, kill);
            let result = stopped(place, &faulty);
            let Some((phase, _)) = phase_of(&faulty) else { continue };
            stop.strike(&faulty, number);
            let what = format!("{stop:?} at {number}: {:?} ({result:?})", faulty.killed_at());
            let engine = place.healthy();
            engine.resume().unwrap_or_else(|e| panic!("{what}: {e:?}"));
            let known = engine.apps().unwrap().iter().any(|app| app.name == name);
            if known {
                same(place, &what);
            } else {
                assert!(!place.path("world/state/sites/copy").exists(), "{what}: a folder of no app");
                work(&engine, &Silent).unwrap_or_else(|e| panic!("{what}, again: {e:?}"));
                same(place, &what);
            }
            hits.add(&phase, if known { "there" } else { "not there" });
            let left: Vec<_> = [("sites", 1), ("arriving", 0)]
                .iter()
                .flat_map(|(folder, most)| {
                    let entries = fs::read_dir(place.path("world/state").join(folder));
                    let names: Vec<_> =
                        entries.into_iter().flatten().map(|e| e.unwrap().file_name()).collect();
                    if names.len() > *most { names } else { Vec::new() }
                })
                .collect();
            assert!(left.is_empty(), "{what}: {left:?}");
            place.is("old", true, &what);
        }
    });
    hits.tell("new app", &["new app: begin", "new app: stage"]);
}
