//! Scheduled custom backups under a clock that the test moves: what is taken, what goes, what is told.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use backstay_engine::{
    BackupRequest, Control, CustomRequest, CustomView, Engine, ManualClock, NewContainer, ScheduleChange,
    SealBy, Setup, Status, StorageOptions, serve,
};
use backstay_model::{Cancel, Occasion, Result, Silent};
use backstay_testing::temp_dir;
use backstay_tree::fs::Host;

const HOUR: Duration = Duration::from_secs(3_600);

/// A state with the app `blog`, which is not backed up by itself otherwise, a container and a clock.
struct World {
    dir: tempfile::TempDir,
    clock: Arc<ManualClock>,
    server: Option<(Control, JoinHandle<Result<()>>)>,
    /// What the scheduler said.
    lines: Arc<Mutex<Vec<String>>>,
}

impl World {
    fn new() -> Self {
        let dir = temp_dir();
        let clock = ManualClock::new("2026-11-20T12:30:00Z".parse().unwrap(), Duration::from_secs(9_000));
        let world = World { dir, clock: Arc::new(clock), server: None, lines: Arc::default() };
        for folder in ["home", "blog"] {
            std::fs::create_dir(world.path(folder)).unwrap();
        }
        std::fs::write(world.path("home/backstay.toml"), "[automatic]\nvault_free = \"0B\"\n").unwrap();
        std::fs::write(world.path("blog/index.html"), "hello").unwrap();
        let engine = world.engine();
        engine.backup(&BackupRequest::of(&world.path("blog")), &Silent, &Cancel::new()).unwrap();
        let name = "blog".parse().unwrap();
        engine
            .app_set(&name, &mut |config| {
                config.automatic = false;
                Ok(())
            })
            .unwrap();
        let shelf = world.path("shelf").display().to_string();
        engine
            .container_add(&NewContainer {
                name: "shelf",
                address: Some(&shelf),
                credentials: None,
                options: StorageOptions::default(),
                create: true,
                replace: false,
                untested: false,
            })
            .unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn engine(&self) -> Engine {
        make(self.path("home"), Arc::clone(&self.clock)).unwrap()
    }

    fn set(&self, every: &str, keep: &str, keep_one: bool) {
        let change = ScheduleChange {
            every: Some(every),
            keep: Some(keep),
            keep_one: Some(keep_one),
            container: Some("shelf"),
            start: None,
        };
        self.engine().schedule_set("blog", &change).unwrap();
    }

    fn start(&mut self) {
        let control = Control::new();
        let lines = Arc::clone(&self.lines);
        let (theirs, state, clock) = (control.clone(), self.path("home"), Arc::clone(&self.clock));
        let thread = std::thread::spawn(move || {
            let log = |line: String| lines.lock().unwrap().push(line);
            serve(&|| make(state.clone(), Arc::clone(&clock)), &theirs, &log)
        });
        self.server = Some((control, thread));
    }

    fn stop(&mut self) {
        let (control, thread) = self.server.take().unwrap();
        control.stop();
        thread.join().unwrap().unwrap();
    }

    fn scheduled(&self) -> Vec<CustomView> {
        let mut all = self.engine().custom_backups(None).unwrap();
        all.retain(|v| v.custom.occasion == Occasion::Scheduled);
        all
    }

    /// Waits until it is as it should be, then a little for what should not happen.
    #[track_caller]
    fn wait(&self, what: &str, holds: impl Fn() -> bool) {
        let started = Instant::now();
        while !holds() {
            let backups: Vec<String> = self.scheduled().into_iter().map(|v| v.custom.name).collect();
            assert!(started.elapsed() < Duration::from_secs(120), "{what}: {backups:?} {:#?}", self.status());
            std::thread::sleep(Duration::from_millis(100));
        }
        std::thread::sleep(Duration::from_millis(1_500));
        assert!(holds(), "{what}: it did not stay so");
    }

    fn status(&self) -> Status {
        self.engine().status().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some((control, _)) = &self.server {
            control.stop();
        }
    }
}

fn make(state: PathBuf, clock: Arc<ManualClock>) -> Result<Engine> {
    Engine::new(Setup { state: Some(state), vault: None, clock, fs: Arc::new(Host) })
}

#[test]
fn backups_are_taken_go_by_age_and_are_made_up_for_once() {
    let mut world = World::new();
    let by_hand = CustomRequest {
        target: std::path::Path::new("blog"),
        named: None,
        container: "shelf",
        name: Some("by-hand"),
        seal: &SealBy::Server,
        databases: true,
        occasion: Occasion::Manual,
    };
    world.engine().custom_backup(&by_hand, &Silent, &Cancel::new()).unwrap();
    world.set("6h", "1d", false);
    world.start();
    world.wait("the first at once", || world.scheduled().len() == 1);
    for n in 2..=7_usize {
        world.clock.pass(6 * HOUR);
        // Kept for a day: the present one and the four before it.
        world.wait(&format!("run {n}"), || world.scheduled().len() == n.min(5) && newest_is_now(&world));
    }
    assert_eq!(files(&world), 3 * 6, "five scheduled ones and the one by hand, three files each");
    let next = world.status().apps[0].custom.clone().unwrap();
    assert!(next.next_run.is_some() && !next.last_result.unwrap().failed);
    // Two days without a scheduler are one backup, and what is too old goes.
    world.stop();
    world.clock.pass(48 * HOUR);
    assert_eq!(world.scheduled().len(), 5, "nothing goes by itself");
    world.start();
    world.wait("made up for once", || newest_is_now(&world) && world.scheduled().len() == 1);
    // Without a schedule nothing goes.
    world.stop();
    world.engine().schedule_clear("blog").unwrap();
    world.clock.pass(1_000 * HOUR);
    world.start();
    world.wait("it rests", || world.scheduled().len() == 1 && files(&world) == 3 * 2);
    world.stop();
}

fn newest_is_now(world: &World) -> bool {
    use backstay_engine::Clock as _;
    world.scheduled().first().is_some_and(|v| v.custom.time == world.clock.now())
}

fn files(world: &World) -> usize {
    std::fs::read_dir(world.path("shelf")).unwrap().count()
}

#[test]
fn a_place_that_is_gone_is_told_holds_no_queue_and_is_used_again_when_it_is_back() {
    let mut world = World::new();
    world.set("6h", "1d", true);
    world.start();
    world.wait("the first", || world.scheduled().len() == 1);
    std::fs::rename(world.path("shelf"), world.path("away")).unwrap();
    for _ in 0..3 {
        world.clock.pass(6 * HOUR);
        world.wait("it fails", || {
            let last = world.status().apps[0].custom.clone().unwrap().last_result.unwrap();
            use backstay_engine::Clock as _;
            last.failed && last.code.as_deref() == Some("StorageNotFound") && last.time == world.clock.now()
        });
    }
    world.wait("it is told", || world.status().alerts.iter().any(|a| a.kind == "custom-failed"));
    assert!(!world.status().well);
    world.clock.pass(48 * HOUR);
    assert_eq!(world.scheduled().len(), 1, "where backups fail nothing goes");
    std::fs::rename(world.path("away"), world.path("shelf")).unwrap();
    world.clock.pass(6 * HOUR);
    world.wait("one, and the old one goes", || world.scheduled().len() == 1 && newest_is_now(&world));
    world.wait("it is well", || world.status().alerts.is_empty());
    world.stop();
}

#[test]
fn a_passing_failure_is_tried_again_with_growing_pauses_and_not_beyond_the_next_time() {
    let mut world = World::new();
    // Nobody listens there.
    let options = StorageOptions {
        patience: serde_json::from_str(r#"{"attempts": 1, "connect_secs": 2}"#).unwrap(),
        ..StorageOptions::default()
    };
    let away = NewContainer {
        name: "shelf",
        address: Some("azure://devstoreaccount1/backups?endpoint=http://127.0.0.1:9/devstoreaccount1"),
        credentials: Some(backstay_model::Secret::new(backstay_testing::Azurite::KEY)),
        options,
        create: false,
        replace: true,
        untested: true,
    };
    let added = world.engine().container_add(&away).unwrap();
    assert!(!added.test.passed);
    world.set("6h", "1d", false);
    world.start();
    let tries = || {
        let lines = world.lines.lock().unwrap();
        lines.iter().filter(|l| l.contains("custom backup:") && l.contains("(StorageUnavailable)")).count()
    };
    world.wait("the first try", || tries() == 1);
    for (minutes, expected) in [(4, 1), (1, 2), (14, 2), (1, 3), (44, 3), (1, 4), (60, 4), (180, 4), (60, 5)]
    {
        world.clock.pass(Duration::from_secs(60 * minutes));
        world.wait(&format!("{expected} tries"), || tries() == expected);
    }
    let last = world.status().apps[0].custom.clone().unwrap().last_result.unwrap();
    assert!(last.failed && !last.message.contains(backstay_testing::Azurite::KEY), "{last:?}");
    world.stop();
}
