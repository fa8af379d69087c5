//! Points that go by age, in a state and a vault: what stays, what holds it, and what a stop in the middle leaves.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::cast_possible_truncation)]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backstay_engine::{
    BackupRequest, Engine, ExpireRequest, Expiry, ManualClock, PointRecord, Selector, Setup, Steady, simulate,
};
use backstay_model::retention::{Entry, expire};
use backstay_model::{Cancel, Code, Origin, PointId, Result, Silent};
use backstay_testing::quick_dir;
use backstay_tree::fs::{Faulty, FileSystem, Host, Kill};
use jiff::Timestamp;

const HOUR: Duration = Duration::from_hours(1);

struct World {
    dir: tempfile::TempDir,
    clock: Arc<ManualClock>,
    engine: Engine,
}

fn start() -> Timestamp {
    "2026-03-01T00:10:00Z".parse().unwrap()
}

fn engine_on(fs: Arc<dyn FileSystem>, clock: &Arc<ManualClock>, dir: &Path) -> Engine {
    let clock: Arc<ManualClock> = Arc::clone(clock);
    Engine::new(Setup { state: Some(dir.join("state")), vault: None, clock, fs }).unwrap()
}

impl World {
    fn new() -> Self {
        let dir = quick_dir();
        std::fs::create_dir(dir.path().join("blog")).unwrap();
        let clock = Arc::new(ManualClock::new(start(), HOUR));
        let engine = engine_on(Arc::new(Host), &clock, dir.path());
        World { dir, clock, engine }
    }

    /// Takes a point of the present hour. Its content is its own, so that it has something to free.
    fn point(&self, origin: Origin) -> PointRecord {
        let home = self.dir.path().join("blog");
        let now = self.engine_now();
        std::fs::write(home.join("now"), format!("{now}\n").repeat(2_000)).unwrap();
        let request = BackupRequest { origin, ..BackupRequest::of(&home) };
        self.engine.backup(&request, &Silent, &Cancel::new()).unwrap().point
    }

    fn engine_now(&self) -> Timestamp {
        backstay_engine::Clock::now(&*self.clock)
    }

    fn expire(&self) -> Expiry {
        run(&self.engine, false).unwrap()
    }

    fn points(&self) -> Vec<PointRecord> {
        self.engine.list(Some("blog")).unwrap().points
    }
}

fn run(engine: &Engine, dry_run: bool) -> Result<Expiry> {
    let request = ExpireRequest { app: Some("blog"), dry_run, origin: Origin::Automatic };
    engine.expire(&request, &Silent, &Cancel::new())
}

fn ids(points: &[PointRecord]) -> BTreeSet<PointId> {
    points.iter().map(|r| r.point.id).collect()
}

#[test]
fn over_forty_days_exactly_what_the_policy_keeps_stays_and_is_whole() {
    let world = World::new();
    let mut all = Vec::new();
    // Some hours of every day, as if the machine were off at night.
    for day in 0..40 {
        let per_day = if day % 7 == 3 { 0 } else { 2 };
        for _ in 0..per_day {
            all.push(world.point(Origin::Automatic).point);
            world.clock.pass(HOUR);
        }
        world.clock.pass(HOUR * (24 - per_day));
        let result = world.expire();
        assert_eq!(result.held, None);
        let entries: Vec<Entry> = all.iter().map(Entry::from).collect();
        let verdicts = expire(&entries, world.engine_now());
        let expected: BTreeSet<PointId> =
            entries.iter().zip(verdicts).filter(|(_, v)| v.keeps()).map(|(e, _)| e.id).collect();
        assert_eq!(ids(&world.points()), expected, "day {day}");
        assert_eq!(result.apps[0].kept, expected.len());
    }
    assert!(world.points().len() < all.len() / 2);
    let check = world.engine.vault_check(true, &Silent, &Cancel::new()).unwrap();
    assert!(check.clean, "{:?}", check.report.errors);
    for n in 0..world.points().len() {
        let mut content = Vec::new();
        world.engine.cat("blog", &Selector::Latest(n), "now", &mut content).unwrap();
        assert!(!content.is_empty());
    }
    // Space came back by itself.
    let stats = world.engine.vault_stats(&Silent, &Cancel::new()).unwrap().stats;
    let used = stats.data.bytes + stats.trees.bytes - stats.unused.bytes;
    assert!(stats.unused.bytes * 4 < used, "{} unused, {used} used", stats.unused.bytes);
}

#[test]
fn pins_people_and_the_newest_are_respected_and_a_dry_run_changes_nothing() {
    let world = World::new();
    let manual = world.point(Origin::Manual);
    world.clock.pass(HOUR);
    let pinned = world.point(Origin::Automatic);
    world.engine.pin("blog", &Selector::Latest(0), true, &Cancel::new()).unwrap();
    world.clock.pass(HOUR);
    let safety = world.point(Origin::Safety);
    world.clock.pass(HOUR);
    let old = world.point(Origin::Automatic);
    world.clock.pass(HOUR);
    let newest = world.point(Origin::Automatic);
    world.expire();
    world.clock.pass(HOUR * 24 * 31);
    let would = run(&world.engine, true).unwrap();
    assert_eq!(world.points().len(), 5);
    assert!(would.pruned.is_none());
    let result = world.expire();
    assert_eq!(result.apps, would.apps);
    let gone: BTreeSet<PointId> = result.apps[0].expired.iter().map(|e| e.id).collect();
    assert_eq!(gone, ids(&[safety, old]));
    assert_eq!(ids(&world.points()), ids(&[manual, pinned, newest]));
    // And told: a job with its log.
    let jobs = world.engine.jobs(10).unwrap();
    let job = jobs.iter().find(|j| j.message.as_deref() == Some("2 points expired")).unwrap();
    assert_eq!(world.engine.job_log(job).unwrap().len(), 2);
    assert!(world.expire().apps[0].expired.is_empty(), "twice is once");
}

#[test]
fn a_clock_that_jumps_holds_expiry_for_a_day_and_says_why() {
    let world = World::new();
    world.point(Origin::Automatic);
    world.clock.pass(HOUR);
    world.point(Origin::Automatic);
    assert_eq!(world.expire().held, None);
    world.clock.set_wall("2026-06-01T00:00:00Z".parse().unwrap());
    for _ in 0..24 {
        let result = world.expire();
        let hold = result.held.unwrap();
        assert!(hold.why.starts_with("The clock was set forward by 91 days"), "{hold:?}");
        assert_eq!(hold.until, "2026-06-02T00:00:00Z".parse::<Timestamp>().unwrap());
        assert!(result.apps.is_empty());
        assert!(world.engine.expiry_held().unwrap().is_some());
        world.clock.pass(HOUR);
    }
    assert_eq!(world.points().len(), 2);
    let result = world.expire();
    assert_eq!((result.held, result.apps[0].expired.len()), (None, 1));
    assert_eq!(world.engine.expiry_held().unwrap(), None);
    assert_eq!(world.points().len(), 1);
}

#[test]
fn a_state_that_was_lost_does_not_believe_a_clock_far_ahead_of_the_points() {
    let world = World::new();
    for _ in 0..3 {
        world.point(Origin::Automatic);
        world.clock.pass(HOUR);
    }
    world.clock.pass(HOUR * 24 * 400);
    std::fs::write(world.dir.path().join("state/expiry.json"), "not what it was").unwrap();
    let hold = world.expire().held.unwrap();
    assert!(hold.why.contains("since the newest point"), "{hold:?}");
    assert_eq!(world.points().len(), 3);
    world.clock.pass(HOUR * 25);
    assert_eq!(world.expire().apps[0].kept, 1);
}

#[test]
fn unknown_apps_are_told_and_an_empty_state_has_nothing_to_do() {
    let world = World::new();
    let unknown = ExpireRequest { app: Some("nobody"), dry_run: false, origin: Origin::Manual };
    let error = world.engine.expire(&unknown, &Silent, &Cancel::new()).unwrap_err();
    assert_eq!(error.code(), Code::AppNotFound);
    let all = ExpireRequest { app: None, ..unknown };
    assert!(world.engine.expire(&all, &Silent, &Cancel::new()).unwrap().apps.is_empty());
    world.point(Origin::Automatic);
    assert_eq!(world.engine.expire(&unknown, &Silent, &Cancel::new()).unwrap_err().code(), Code::AppNotFound);
    assert_eq!(world.engine.expire(&all, &Silent, &Cancel::new()).unwrap().apps.len(), 1);
}

#[test]
fn space_is_looked_after_once_a_day_at_most() {
    let world = World::new();
    for _ in 0..12 {
        world.point(Origin::Automatic);
        world.clock.pass(HOUR);
    }
    world.clock.pass(HOUR * 24 * 5);
    world.point(Origin::Automatic);
    let first = world.expire();
    assert_eq!(first.apps[0].expired.len(), 8);
    let pruned = first.pruned.unwrap();
    assert!(pruned.outcome.unwrap().deleted.bytes > 0);
    // More goes within the day: its space waits.
    for _ in 0..3 {
        world.point(Origin::Automatic);
    }
    world.clock.pass(HOUR * 10);
    assert!(world.expire().pruned.is_none());
    let jobs = |engine: &Engine| {
        engine.jobs(100).unwrap().iter().filter(|j| j.kind == backstay_model::JobKind::Prune).count()
    };
    assert_eq!(jobs(&world.engine), 1);
    // Nothing expired since: there is no use in looking.
    world.clock.pass(HOUR * 20);
    world.expire();
    assert_eq!(jobs(&world.engine), 1);
}

/// A state in which half the points are to go, and what stays.
struct Due {
    world: World,
    newest: PointId,
    stays: BTreeSet<PointId>,
}

impl Due {
    fn new() -> Self {
        let world = World::new();
        for _ in 0..8 {
            world.point(Origin::Automatic);
            world.clock.pass(HOUR);
        }
        let newest = world.point(Origin::Automatic).point.id;
        world.expire();
        world.clock.pass(HOUR * 24 * 4);
        let gone = run(&world.engine, true).unwrap();
        let gone: BTreeSet<PointId> = gone.apps[0].expired.iter().map(|e| e.id).collect();
        assert!(gone.len() >= 5);
        let stays = ids(&world.points()).difference(&gone).copied().collect();
        Due { world, newest, stays }
    }

    fn copy(&self) -> tempfile::TempDir {
        let dir = quick_dir();
        let state = self.world.dir.path().join("state");
        let copied = std::process::Command::new("cp").arg("-a").arg(state).arg(dir.path()).status();
        assert!(copied.unwrap().success());
        dir
    }

    /// How many calls change something when nothing stops it.
    fn calls(&self) -> u64 {
        let dir = self.copy();
        let fs = Arc::new(Faulty::new(Arc::new(Host)));
        run(&engine_on(fs.clone(), &self.world.clock, dir.path()), false).unwrap();
        assert!(fs.points() > 30, "only {} calls were counted", fs.points());
        fs.points()
    }

    /// Nothing that should stay is gone, and the next run finishes; true when there was something left to do.
    fn goes_on(&self, dir: &Path, what: &str) -> bool {
        let healthy = engine_on(Arc::new(Host), &self.world.clock, dir);
        let left = ids(&healthy.list(Some("blog")).unwrap().points);
        assert!(left.is_superset(&self.stays) && left.contains(&self.newest), "{what}");
        let again = run(&healthy, false).unwrap_or_else(|e| panic!("{what}: {e:?}"));
        assert_eq!(again.held, None, "{what}");
        assert_eq!(ids(&healthy.list(Some("blog")).unwrap().points), self.stays, "{what}");
        let check = healthy.vault_check(true, &Silent, &Cancel::new()).unwrap();
        assert!(check.clean, "{what}: {:?}", check.report.errors);
        left != self.stays
    }
}

#[test]
fn stopped_at_any_system_call_the_next_run_finishes() {
    let due = Due::new();
    let calls = due.calls();
    let mut unfinished = 0;
    for number in 1..=calls {
        let how = [Kill::Before, Kill::After, Kill::Torn][(number % 3) as usize];
        let dir = due.copy();
        let fs = Arc::new(Faulty::new(Arc::new(Host)));
        fs.kill_at(number, how);
        let died = run(&engine_on(fs, &due.world.clock, dir.path()), false);
        unfinished += u32::from(due.goes_on(dir.path(), &format!("call {number} ({how:?}, {died:?})")));
    }
    println!("{calls} system calls, each stopped at; {unfinished} times something was left to do");
}

#[test]
fn power_lost_at_any_system_call_the_next_run_finishes() {
    let due = Due::new();
    let calls = due.calls();
    for number in 1..=calls {
        let dir = due.copy();
        let aside = quick_dir();
        let fs = Arc::new(Faulty::with_power_loss(Arc::new(Host), aside.path()).unwrap());
        fs.kill_at(number, Kill::Before);
        let died = run(&engine_on(fs.clone(), &due.world.clock, dir.path()), false);
        if number % 2 == 0 {
            fs.power_loss().unwrap()
        } else {
            fs.power_loss_some(number).unwrap()
        }
        due.goes_on(dir.path(), &format!("power lost at call {number} of {calls} ({died:?})"));
    }
}

#[test]
fn the_simulation_is_that_of_the_policy() {
    let now = start();
    let steady = simulate(now, 2_160);
    assert_eq!(
        (steady.kept_count, steady.kept.len(), steady.steady),
        (224, 224, Some(Steady { least: 224, most: 224 }))
    );
    let counts = (steady.counts.hourly, steady.counts.third_hour, steady.counts.sixth_hour);
    assert_eq!(counts, (72, 88, 64));
    assert_eq!((steady.kept[0].age_hours, steady.kept[0].time), (0, now));
    assert!(steady.kept.last().unwrap().age_hours < 720);
    let few = simulate(now, 10);
    assert_eq!((few.kept_count, few.steady), (10, None));
}
