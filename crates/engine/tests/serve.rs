//! The scheduler under a clock that the test moves: what is taken, what is told, what waits.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use backstay_engine::{BackupRequest, Clock as _, Control, Engine, ManualClock, Setup, Status, serve};
use backstay_model::{Cancel, Origin, Result, Silent};
use backstay_testing::{HttpEndpoint, temp_dir};
use backstay_tree::fs::Host;

const HOUR: Duration = Duration::from_secs(3_600);

/// A state with the app `blog`, a webhook and a clock.
struct World {
    dir: tempfile::TempDir,
    clock: Arc<ManualClock>,
    hook: HttpEndpoint,
}

/// A scheduler at work.
struct Server {
    control: Control,
    thread: JoinHandle<Result<()>>,
}

impl World {
    fn new(more: &str) -> Self {
        let dir = temp_dir();
        let clock = ManualClock::new("2026-11-20T12:30:00Z".parse().unwrap(), Duration::from_secs(9_000));
        let world = World { dir, clock: Arc::new(clock), hook: HttpEndpoint::start() };
        for folder in ["home", "blog"] {
            std::fs::create_dir(world.path(folder)).unwrap();
        }
        std::fs::write(world.path("blog/index.html"), "hello").unwrap();
        let hook = world.hook.url("/hook");
        let text = format!(
            "[automatic]\nvault_free = \"0B\"\n{more}\n[notify]\nreminder = \"24h\"\n[[notify.webhook]]\nurl = \"{hook}\"\n\
             [notify.ping]\nurl = \"{}\"\n",
            world.hook.url("/ping")
        );
        std::fs::write(world.path("home/backstay.toml"), text).unwrap();
        let blog = world.path("blog");
        world.engine().backup(&BackupRequest::of(&blog), &Silent, &Cancel::new()).unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn engine(&self) -> Engine {
        make(self.path("home"), Arc::clone(&self.clock)).unwrap()
    }

    fn start(&self) -> Server {
        let control = Control::new();
        let (theirs, state, clock) = (control.clone(), self.path("home"), Arc::clone(&self.clock));
        let thread = std::thread::spawn(move || {
            let log = |line: String| println!("{line}");
            serve(&|| make(state.clone(), Arc::clone(&clock)), &theirs, &log)
        });
        Server { control, thread }
    }

    fn automatic(&self) -> usize {
        let points = self.engine().list(Some("blog")).map_or_else(|_| Vec::new(), |l| l.points);
        points.iter().filter(|p| p.point.origin == Origin::Automatic).count()
    }

    /// Waits until the status is as it should be.
    #[track_caller]
    fn wait(&self, what: &str, holds: impl Fn(&Status) -> bool) -> Status {
        let started = Instant::now();
        loop {
            let status = self.engine().status().unwrap();
            if holds(&status) {
                return status;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "{what}: {status:#?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    #[track_caller]
    fn wait_points(&self, count: usize) {
        let started = Instant::now();
        while self.automatic() < count {
            assert!(started.elapsed() < Duration::from_secs(60), "{} of {count} points", self.automatic());
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(self.automatic(), count);
    }

    /// What the webhook was told, as `event kind`.
    fn told(&self) -> Vec<String> {
        let bodies = self.hook.requests().into_iter().filter(|r| r.line.starts_with("POST"));
        bodies
            .map(|r| {
                let body: serde_json::Value = serde_json::from_str(&r.body).unwrap();
                format!("{} {}", body["event"].as_str().unwrap(), body["kind"].as_str().unwrap())
            })
            .collect()
    }

    #[track_caller]
    fn wait_told(&self, expected: &[&str]) {
        let started = Instant::now();
        while self.told().len() < expected.len() {
            assert!(started.elapsed() < Duration::from_secs(60), "{expected:?}: {:?}", self.told());
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(self.told(), expected);
    }
}

impl Server {
    fn stop(self) {
        self.control.stop();
        self.thread.join().unwrap().unwrap();
    }
}

fn make(state: PathBuf, clock: Arc<ManualClock>) -> Result<Engine> {
    Engine::new(Setup { state: Some(state), vault: None, clock, fs: Arc::new(Host) })
}

#[test]
fn every_hour_a_point_is_taken_and_signs_of_life_are_sent() {
    let world = World::new("");
    let server = world.start();
    world.wait_points(1);
    world.wait("the server is seen", |s| s.server && s.well && s.apps[0].next_run.is_some());
    for n in 2..=4 {
        world.clock.pass(HOUR);
        world.wait_points(n);
    }
    world.clock.pass(Duration::from_secs(60));
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(world.automatic(), 4, "no more than one an hour");
    let pings = world.hook.wait_for("the signs of life", |r| r.len() >= 8);
    let lines: Vec<&str> = pings.iter().map(|r| r.line.as_str()).collect();
    assert_eq!(lines, ["GET /ping/start", "GET /ping"].repeat(4));
    server.stop();
    let status = world.engine().status().unwrap();
    assert!(!status.server && status.well, "{status:#?}");
    assert_eq!(status.apps[0].next_run, None);
}

#[test]
fn a_failure_is_told_once_reminded_and_told_to_be_well() {
    let world = World::new("");
    let server = world.start();
    world.wait_points(1);
    std::fs::rename(world.path("blog"), world.path("away")).unwrap();
    world.clock.pass(HOUR);
    world.wait_told(&["raised backup-failed"]);
    let status = world.wait("it is shown", |s| !s.well && !s.alerts.is_empty());
    assert_eq!(status.alerts[0].code.as_deref(), Some("SourceNotFound"), "{:#?}", status.alerts);
    let last = status.apps[0].last_result.as_ref().unwrap();
    assert!(last.failed && last.code.as_deref() == Some("SourceNotFound"));
    // The second hour is told by nobody; the third makes the newest point too old.
    let failures = |n| move |s: &Status| s.apps[0].last_result.as_ref().is_some_and(|r| r.time >= n);
    world.clock.pass(HOUR);
    world.wait("the second run", failures(world.clock.now()));
    world.clock.pass(HOUR);
    world.wait_told(&["raised backup-failed", "raised backup-missed"]);
    world.clock.pass(HOUR * 22);
    world.wait("a run of the next day", failures(world.clock.now()));
    world.wait_told(&["raised backup-failed", "raised backup-missed", "reminder backup-failed"]);
    std::fs::rename(world.path("away"), world.path("blog")).unwrap();
    world.clock.pass(HOUR);
    world.wait_points(2);
    let mut all = vec!["raised backup-failed", "raised backup-missed", "reminder backup-failed"];
    all.extend(["cleared backup-failed", "cleared backup-missed"]);
    world.wait_told(&all);
    world.wait("all is well", |s| s.well);
    server.stop();
    assert!(world.hook.requests().iter().any(|r| r.line == "GET /ping/fail"));
}

#[test]
fn two_days_without_a_scheduler_are_one_message_and_one_run() {
    let world = World::new("");
    let server = world.start();
    world.wait_points(1);
    server.stop();
    world.clock.pass(HOUR * 48);
    let server = world.start();
    world.wait_points(2);
    world.wait_told(&["raised scheduler-down", "cleared scheduler-down"]);
    let messages = world.hook.requests();
    let body = &messages.iter().find(|r| r.line.starts_with("POST")).unwrap().body;
    assert!(
        body.contains("No automatic points from 2026-11-20 13:03 UTC to 2026-11-22 12:30 UTC (47 missed)"),
        "{body}"
    );
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(world.automatic(), 2, "caught up by one run");
    server.stop();
}

#[test]
fn points_wait_for_the_vault_and_move_in_when_it_is_back() {
    let world = World::new("");
    let server = world.start();
    world.wait_points(1);
    world.wait("the spool is prepared", |_| world.path("home/spool/config").exists());
    let vault = || world.path("home/vault");
    std::fs::rename(vault(), world.path("unplugged")).unwrap();
    for n in 1..=3 {
        std::fs::write(world.path("blog/index.html"), format!("hello {n}")).unwrap();
        world.clock.pass(HOUR);
        world.wait("a point waits", |s| s.spool.points == n && s.apps[0].spooled == n);
    }
    world.wait_told(&["raised vault-unreachable"]);
    let status = world.engine().status().unwrap();
    assert!(!status.well && !status.vault.as_ref().unwrap().reachable);
    assert_eq!(status.apps[0].rpo_met, Some(true), "the waiting points are points");
    assert_eq!(status.apps[0].points, 2, "as last seen");
    std::fs::rename(world.path("unplugged"), vault()).unwrap();
    world.clock.pass(HOUR);
    world.wait_points(5);
    world.wait("nothing waits", |s| s.spool.points == 0 && s.well);
    world.wait_told(&["raised vault-unreachable", "cleared vault-unreachable"]);
    server.stop();
    let engine = world.engine();
    let points = engine.list(Some("blog")).unwrap().points;
    assert_eq!(points.len(), 6);
    let mut times: Vec<_> = points.iter().map(|p| p.point.time).collect();
    times.dedup();
    assert_eq!(times.len(), 5, "the asked-for point and the first are of one moment: {times:?}");
    for (n, back) in [(3, 1), (2, 2), (1, 3)] {
        let mut content = Vec::new();
        engine.cat("blog", &backstay_engine::Selector::Latest(back), "index.html", &mut content).unwrap();
        assert_eq!(String::from_utf8(content).unwrap(), format!("hello {n}"));
    }
    assert!(engine.vault_check(true, &Silent, &Cancel::new()).unwrap().clean);
    let data = walk(world.path("home/spool/data"));
    assert_eq!(data, 0, "the spool is empty again");
}

fn walk(folder: PathBuf) -> usize {
    let entries = std::fs::read_dir(folder).map(|d| d.flatten().collect::<Vec<_>>()).unwrap_or_default();
    entries.into_iter().map(|e| if e.path().is_dir() { walk(e.path()) } else { 1 }).sum()
}

#[test]
fn a_spool_that_is_full_is_told_and_harms_no_point_that_waits() {
    let world = World::new("spool = \"300kB\"");
    let server = world.start();
    world.wait_points(1);
    world.wait("the spool is prepared", |_| world.path("home/spool/config").exists());
    std::fs::rename(world.path("home/vault"), world.path("unplugged")).unwrap();
    world.clock.pass(HOUR);
    world.wait("a point waits", |s| s.spool.points == 1);
    let noise = backstay_testing::fixtures::Random::new(7).bytes(500_000);
    std::fs::write(world.path("blog/large"), noise).unwrap();
    world.clock.pass(HOUR);
    world.wait("it is told", |s| s.alerts.iter().any(|a| a.kind == "spool-full"));
    assert_eq!(world.engine().status().unwrap().spool.points, 1);
    std::fs::rename(world.path("unplugged"), world.path("home/vault")).unwrap();
    world.clock.pass(HOUR);
    world.wait("all is well", |s| s.well && s.spool.points == 0);
    assert_eq!(world.automatic(), 3);
    server.stop();
    assert!(world.engine().vault_check(true, &Silent, &Cancel::new()).unwrap().clean);
}

#[test]
fn a_second_scheduler_is_refused_and_a_configuration_that_is_wrong_changes_nothing() {
    let world = World::new("");
    let server = world.start();
    world.wait_points(1);
    let second = world.start();
    let error = second.thread.join().unwrap().unwrap_err();
    assert_eq!(error.code().as_str(), "ServerRunning");
    std::fs::write(world.path("home/backstay.toml"), "vualt = 1").unwrap();
    server.control.reload();
    world.clock.pass(HOUR);
    let started = Instant::now();
    while walk(world.path("home/vault/snapshots")) < 3 {
        assert!(started.elapsed() < Duration::from_secs(60), "it went on without its configuration");
        std::thread::sleep(Duration::from_millis(100));
    }
    server.stop();
}
