//! The scheduler as it is run: one process, told by signals, killed and started again.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_engine::{Clock as _, Control, Engine, ManualClock, Setup};
use backstay_testing::{HttpEndpoint, SmtpServer};
use rustix::process::{Pid, Signal, kill_process};

use crate::{Ran, World};

/// A running scheduler, ended with the test.
struct Server(Option<Child>);

impl Server {
    fn start(world: &World) -> Self {
        let mut command = world.command(["serve"]);
        let log = std::fs::File::create(world.path("log")).unwrap();
        Server(Some(command.stdout(Stdio::piped()).stderr(log).spawn().unwrap()))
    }

    fn child(&mut self) -> &mut Child {
        self.0.as_mut().unwrap()
    }

    fn signal(&mut self, signal: Signal) {
        kill_process(Pid::from_child(self.child()), signal).unwrap();
    }

    /// Asks it to stop and waits.
    fn stop(mut self) -> Ran {
        self.signal(Signal::TERM);
        Ran::of(self.0.take().unwrap().wait_with_output().unwrap())
    }

    fn kill(mut self) {
        let mut child = self.0.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            child.kill().unwrap_or_default();
            child.wait().map(drop).unwrap_or_default();
        }
    }
}

#[track_caller]
fn wait(world: &World, what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        let log = std::fs::read_to_string(world.path("log")).unwrap_or_default();
        assert!(started.elapsed() < Duration::from_secs(60), "{what}\n{log}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn automatic(world: &World) -> usize {
    let list = world.json(&["list"]);
    list["points"].as_array().unwrap().iter().filter(|p| p["origin"] == "automatic").count()
}

fn log(world: &World) -> String {
    std::fs::read_to_string(world.path("log")).unwrap()
}

/// An app that takes a while to read.
fn slow_world() -> World {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    let mut random = backstay_testing::fixtures::Random::new(7);
    for n in 0..40 {
        world.write(&format!("blog/data/{n}"), &random.bytes(6_000_000));
    }
    world
}

fn run_of_blog(world: &World) -> Option<serde_json::Value> {
    let jobs = world.json(&["job", "list"]);
    jobs["jobs"].as_array().unwrap().iter().find(|j| j["state"] == "running").cloned()
}

#[test]
fn it_takes_points_is_alone_and_ends_well_when_asked() {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    let begun = hour();
    let mut server = Server::start(&world);
    wait(&world, "a first point", || automatic(&world) >= 1);
    let status = world.json(&["status"]);
    assert_eq!(
        (status["server"].as_bool(), status["well"].as_bool()),
        (Some(true), Some(true)),
        "{status:#}"
    );
    assert!(status["apps"][0]["next_run"].is_string(), "{status:#}");
    world.run(&["serve"]).fails("ServerRunning", 1);
    world.write("home/backstay.toml", b"[automatic]\njitter = \"1m\"\n");
    server.signal(Signal::HUP);
    wait(&world, "the configuration is read", || log(&world).contains("configuration read anew"));
    world.write("home/backstay.toml", b"jitter = 1\n");
    server.signal(Signal::HUP);
    wait(&world, "the mistake is told", || log(&world).contains("the configuration stays as it was"));
    world.write("home/backstay.toml", b"");
    let ran = server.stop().ok();
    assert_eq!(ran.stdout, "");
    assert_eq!(world.json(&["status"])["server"], false);
    // Begun again within the hour it takes no further point.
    let server = Server::start(&world);
    wait(&world, "it serves", || log(&world).contains("serving"));
    std::thread::sleep(Duration::from_secs(2));
    let (points, hours) = (automatic(&world), 1 + hour() - begun);
    assert!((1..=hours).contains(&points), "{points} points in {hours} hours");
    server.stop().ok();
}

/// The hour that the clock of this machine shows, since 1970.
fn hour() -> usize {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    usize::try_from(now.as_secs() / 3_600).unwrap()
}

#[test]
fn a_run_has_the_lowest_priority_and_is_not_cancelled_by_job_cancel() {
    let world = slow_world();
    let mut server = Server::start(&world);
    wait(&world, "a run", || run_of_blog(&world).is_some());
    let job = run_of_blog(&world).unwrap();
    assert_eq!(job["automatic"], true);
    // Those that read and write the point, and the others: the scheduler itself must not be slowed down.
    let pid = server.child().id();
    let lowest = |threads: &[(String, i32)]| threads.iter().filter(|(_, n)| *n == 19).count();
    wait(&world, "threads of the lowest priority", || lowest(&nice_of_threads(pid)) >= 4);
    let nice = nice_of_threads(pid);
    assert!(nice.iter().any(|(_, n)| *n == 0), "{nice:?}");
    let refused = world.run(&["job", "cancel", job["id"].as_str().unwrap()]).fails("AutomaticJob", 1);
    assert!(refused.stderr.contains("backstay app pause"), "{refused:?}");
    // A backup that somebody asks for meanwhile is told that the app is busy.
    if run_of_blog(&world).is_some() {
        world.run(&["backup", "blog"]).fails("AppBusy", 1);
    }
    wait(&world, "its point", || automatic(&world) == 1);
    server.stop().ok();
}

/// Each thread's name and niceness.
fn nice_of_threads(pid: u32) -> Vec<(String, i32)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    stats
        .map(|stat| {
            let (name, rest) = stat.rsplit_once(')').unwrap();
            let nice = rest.split_ascii_whitespace().nth(16).unwrap().parse().unwrap();
            (name.split_once('(').unwrap().1.to_owned(), nice)
        })
        .collect()
}

#[test]
fn asked_to_stop_in_the_middle_of_a_run_it_leaves_nothing_half_done_and_goes_on_when_started() {
    let world = slow_world();
    let server = Server::start(&world);
    wait(&world, "a run", || run_of_blog(&world).is_some());
    server.stop().ok();
    assert_eq!(automatic(&world), 0, "nothing came of it");
    assert_eq!(world.json(&["job", "list"])["jobs"][0]["state"], "cancelled");
    assert_eq!(std::fs::read_dir(world.path("home/vault/locks")).unwrap().count(), 0);
    let server = Server::start(&world);
    wait(&world, "the point, at once", || automatic(&world) == 1);
    server.stop().ok();
}

#[test]
fn killed_in_the_middle_of_a_run_the_next_one_goes_on() {
    let world = slow_world();
    for _ in 0..2 {
        let server = Server::start(&world);
        wait(&world, "a run", || run_of_blog(&world).is_some());
        server.kill();
    }
    let server = Server::start(&world);
    wait(&world, "the point, at once", || automatic(&world) == 1);
    server.stop().ok();
    world.run(&["verify", "blog"]).ok();
    world.run(&["vault", "check"]).ok();
}

/// A state whose scheduler took a point two days ago and has not run since.
fn two_days_ago(world: &World) {
    world.run(&["backup", "blog"]).ok();
    let then = jiff::Timestamp::now() - Duration::from_secs(48 * 3_600);
    // The time since boot is the real one: leases of this boot are judged by it.
    let clock = Arc::new(ManualClock::new(then, backstay_engine::SystemClock.uptime()));
    let state: PathBuf = world.path("home");
    let make = || {
        let setup =
            Setup { state: Some(state.clone()), clock: Arc::clone(&clock) as Arc<_>, ..Setup::default() };
        Engine::new(setup)
    };
    assert!(clock.now() < jiff::Timestamp::now());
    let control = Control::new();
    std::thread::scope(|scope| {
        let server = scope.spawn(|| backstay_engine::serve(&make, &control, &|line| println!("{line}")));
        let started = Instant::now();
        while automatic(world) == 0 && started.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(50));
        }
        control.stop();
        server.join().unwrap().unwrap();
        assert_eq!(automatic(world), 1);
    });
}

#[test]
fn a_scheduler_that_was_down_for_two_days_says_so_by_mail_and_webhook() {
    let world = World::with_blog();
    two_days_ago(&world);
    world.run(&["delete", "blog", "latest", "--yes"]).ok();
    let (hook, mail) = (HttpEndpoint::start(), SmtpServer::starttls());
    world.write("password", format!("{}\n", SmtpServer::PASSWORD).as_bytes());
    world.write(
        "home/backstay.toml",
        format!(
            "[automatic]\nvault_free = \"0B\"\n[[notify.webhook]]\nurl = \"{}\"\n\
             [notify.mail]\nhost = \"localhost\"\nport = {}\nca_file = \"{}\"\nuser = \"backstay\"\n\
             password_file = \"{}\"\nfrom = \"backstay@example.org\"\nto = [\"ops@example.org\"]\n",
            hook.url("/hook"),
            mail.port(),
            mail.authority().display(),
            world.path("password").display()
        )
        .as_bytes(),
    );
    let tested = world.json(&["notify", "test"]);
    assert!(tested["channels"].as_array().unwrap().iter().all(|c| c["delivered"] == true), "{tested:#}");
    let server = Server::start(&world);
    wait(&world, "the catching up", || automatic(&world) == 1);
    let mails = mail.wait_for(2);
    let text = mails[1]["text"].as_str().unwrap();
    assert!(
        text.contains("No automatic points from ") && text.contains("missed): no scheduler ran"),
        "{text}"
    );
    assert!(text.contains("Code: BackupMissed"), "{text}");
    let missed: u32 = text.split(" (").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((46..=48).contains(&missed), "{text}");
    hook.wait_for("the webhook's message", |r| r.iter().any(|r| r.body.contains("scheduler-down")));
    server.stop().ok();
}

#[test]
fn messages_that_cannot_be_delivered_are_told_with_status_1() {
    let world = World::with_blog();
    world.run(&["notify", "test"]).ends(1);
    assert!(!world.path("home").exists(), "looking makes nothing");
    world.write("home/backstay.toml", b"[[notify.webhook]]\nurl = \"http://127.0.0.1:1/s3cret\"\n");
    let ran = world.run(&["notify", "test"]).ends(1);
    assert!(ran.stdout.contains("webhook-1  127.0.0.1:1  failed"), "{ran:?}");
    assert!(!format!("{ran:?}").contains("s3cret"));
}

#[test]
fn status_says_whether_all_is_well() {
    let world = World::with_blog();
    world.run(&["status"]).ends(0);
    world.run(&["backup", "blog"]).ok();
    world.run(&["status"]).ends(0);
    std::fs::rename(world.path("home/vault"), world.path("away")).unwrap();
    let ran = world.run(&["status", "--json"]).ends(1);
    let status: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(status["vault"]["reachable"], false);
    assert_eq!(status["vault"]["error"]["code"], "VaultNotFound");
    assert_eq!(status["apps"][0]["points"], 1, "as last seen");
    assert!(world.run(&["status"]).stdout.contains("cannot be used"));
    std::fs::rename(world.path("away"), world.path("home/vault")).unwrap();
    world.run(&["delete", "blog", "latest", "--yes"]).ok();
    let ran = world.run(&["status"]).ends(1);
    assert!(ran.stdout.contains("MISSED") && ran.stderr.contains("no scheduler runs"), "{ran:?}");
}
