//! The command runtime with real processes.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use backstay_model::app::{
    Check, CommandLine, CommandRuntime, Health, Hook, Moment, Runtime as Kind, StopSignal,
};
use backstay_model::{Cancel, Code, Error, Secret};
use backstay_platform::{Environment, HookTarget, State, Tended, run_hook, tend, wait_healthy};
use support::{app, command, lives, running, wait_for, with_argument};

/// A port that nobody listens on.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_web_server_is_started_is_healthy_and_is_stopped() {
    let port = free_port();
    let words = ["python3", "-m", "http.server", "--bind", "127.0.0.1", &port.to_string()];
    let line = CommandLine::Words(words.iter().map(|w| (*w).to_owned()).collect());
    let mut app = app(Kind::Command(CommandRuntime::new(line)));
    std::fs::write(app.home("index.html"), "hello").unwrap();
    app.runtime.config.health = Some(Health::new(Check::http(format!("http://127.0.0.1:{port}/?secret=1"))));
    assert_eq!(app.state(), State::Stopped);
    assert!(app.start().unwrap());
    let healthy = wait_healthy(&app.runtime, &Cancel::new()).unwrap();
    assert!(healthy.tries > 0);
    assert_eq!(healthy.check, Some(format!("http://127.0.0.1:{port}/")), "without the query");
    assert!(!app.start().unwrap(), "it runs already");
    let pid = app.pid();
    let was = app.stop().unwrap();
    assert!(was.running && was.wanted);
    assert!(!lives(pid));
    assert_eq!(app.state(), State::Stopped);
    assert_eq!(app.stop().unwrap(), backstay_platform::WasRunning::default());

    let mut short = Health::new(Check::http(format!("http://127.0.0.1:{port}/?secret=1")));
    short.deadline = Duration::from_secs(1);
    app.runtime.config.health = Some(short);
    let error = wait_healthy(&app.runtime, &Cancel::new()).unwrap_err();
    assert_eq!(error.code(), Code::HealthCheckFailed);
    assert!(!format!("{error:?} {}", error.advice()).contains("secret"), "{error:?}");
    assert!(backstay_platform::log_tail(&app.runtime.run, 1_000).unwrap().contains("GET /"), "its log");
}

#[test]
fn a_status_out_of_range_is_not_healthy_and_a_command_may_be_asked_instead() {
    let port = free_port();
    let mut app = running(&format!("exec python3 -m http.server --bind 127.0.0.1 {port}"));
    app.start().unwrap();
    let mut health = Health::new(Check::http(format!("http://127.0.0.1:{port}/nothing")));
    health.deadline = Duration::from_secs(20);
    wait_for("the server", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    health.deadline = Duration::from_secs(1);
    app.runtime.config.health = Some(health);
    let error = wait_healthy(&app.runtime, &Cancel::new()).unwrap_err();
    assert!(error.causes()[0].ends_with("/nothing answered with status 404"), "{error:?}");

    let ask = |line: &str| Health {
        deadline: Duration::from_secs(1),
        ..Health::new(Check::Command { command: CommandLine::Line(line.into()) })
    };
    app.runtime.config.health = Some(ask("echo $BACKSTAY_APP; exit 7"));
    let error = wait_healthy(&app.runtime, &Cancel::new()).unwrap_err();
    assert_eq!(error.causes(), ["`echo $BACKSTAY_APP; exit 7` ended with status 7", "blog"]);
    app.runtime.config.health = Some(ask("test -d ."));
    assert_eq!(wait_healthy(&app.runtime, &Cancel::new()).unwrap().tries, 1);

    // An app that has ended does not become well: this is told at once, not at the deadline.
    app.runtime.config.health = Some(Health { deadline: Duration::from_secs(600), ..ask("false") });
    Command::new("kill").args(["-9", &app.pid().to_string()]).status().unwrap();
    let error = wait_healthy(&app.runtime, &Cancel::new()).unwrap_err();
    assert!(error.message().ends_with("it has ended"), "{error:?}");
}

#[test]
fn an_app_that_cannot_start_says_what_it_said() {
    let app = running("echo here is why >&2; exit 3");
    let error = app.start().unwrap_err();
    assert_eq!(error.code(), Code::AppStartFailed);
    assert!(error.message().ends_with("it ended at once with status 3"), "{error:?}");
    assert_eq!(error.causes(), ["here is why"]);
    assert_eq!(app.state(), State::Stopped, "it is not meant to run");

    let missing =
        support::app(Kind::Command(CommandRuntime::new(CommandLine::Words(vec!["no-such-program".into()]))));
    let error = missing.start().unwrap_err();
    assert!(error.causes()[0].contains("no-such-program"), "{error:?}");

    let mut elsewhere = running("sleep 60");
    elsewhere.command().folder = Some("nowhere".into());
    assert_eq!(elsewhere.start().unwrap_err().code(), Code::AppStartFailed);
    elsewhere.command().folder = None;
    elsewhere.command().user = Some("nobody-of-that-name".into());
    assert!(elsewhere.start().unwrap_err().message().contains("there is no user"));
}

#[test]
fn settings_reach_the_command_alone_and_give_way_to_what_is_set_for_it() {
    let mut app = running("env > env; echo done > done; exec sleep 60");
    let given = [("A", "from the settings"), ("B", "two\nlines"), ("C", "c"), ("BACKSTAY_RUN", "forged")];
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    app.runtime.environment = Environment::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
        Ok(given.map(|(name, value)| (name.to_owned(), Secret::new(value))).to_vec())
    });
    std::fs::write(app.home("more.env"), "C=from the file\n").unwrap();
    app.command().env.insert("A".into(), "from the configuration".into());
    app.command().env_file = Some("more.env".into());
    app.runtime.config.hooks.before_backup = Some(Hook::new(CommandLine::Line("env".into())));
    assert_eq!(app.state(), State::Stopped);
    let hook = run_hook(&app.runtime, Moment::BeforeBackup, &HookTarget::default(), &Cancel::new());
    let output = hook.unwrap().unwrap().output;
    assert!(!output.contains("two") && !output.contains("settings"), "{output}");
    assert_eq!(asked.load(Ordering::SeqCst), 0, "only a start asks");
    app.start().unwrap();
    app.told("done");
    let env = std::fs::read_to_string(app.home("env")).unwrap();
    for line in ["A=from the configuration\n", "B=two\nlines\n", "C=from the file\n"] {
        assert!(env.contains(line), "{line}: {env}");
    }
    assert!(!env.contains("forged"), "the word by which its processes are known is its own: {env}");
    assert_eq!(app.state(), State::Running);
    assert!(format!("{:?}", app.runtime).contains("environment: ***"));
    app.stop().unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 1);

    app.runtime.environment = Environment::new(|| Err(Error::new(Code::StateDamaged, "No")));
    assert_eq!(app.start().unwrap_err().code(), Code::StateDamaged);
    assert_eq!(app.state(), State::Stopped);
}

#[test]
fn stopping_ends_the_children_too_also_those_that_do_not_listen_or_went_away() {
    // A shell that ignores the request, a child of it, and one in a session of its own.
    let app =
        running("trap '' TERM; sleep 3071 & setsid sleep 3072 & echo up > up; while :; do sleep 3073; done");
    app.start().unwrap();
    app.told("up");
    wait_for("the children", || [3071, 3072, 3073].iter().all(|n| with_argument(&n.to_string()) == 1));
    let started = Instant::now();
    app.stop().unwrap();
    let took = started.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(9), "the grace was given: {took:?}");
    for n in [3071, 3072, 3073] {
        assert_eq!(with_argument(&n.to_string()), 0, "sleep {n}");
    }
}

#[test]
fn the_signal_and_the_time_to_stop_are_those_that_are_set() {
    let mut app = running(
        "trap 'echo int > how; exit 0' INT; trap '' TERM; echo up > up; while :; do sleep 0.05; done",
    );
    app.command().stop_signal = StopSignal::Int;
    app.command().grace = Duration::from_secs(20);
    app.start().unwrap();
    app.told("up");
    let started = Instant::now();
    app.stop().unwrap();
    assert!(started.elapsed() < Duration::from_secs(15));
    assert_eq!(app.told("how"), "int");
}

#[test]
fn an_app_that_was_killed_is_told_and_started_again_with_growing_pauses() {
    let mut app = running("echo up >> ups; exec sleep 3074");
    app.start().unwrap();
    let always = || true;
    assert_eq!(tend(&app.runtime, &always, &Cancel::new()).unwrap(), Tended::Well);
    let mut waited = Duration::ZERO;
    for round in 0..2 {
        Command::new("kill").args(["-9", &app.pid().to_string()]).status().unwrap();
        wait_for("its end", || app.state() == State::Failed);
        assert_eq!(app.condition().detail.as_deref(), Some("It ended by itself"));
        let refused = tend(&app.runtime, &|| false, &Cancel::new()).unwrap();
        assert_ne!(refused, Tended::Restarted);
        let since = Instant::now();
        wait_for("the restart", || tend(&app.runtime, &always, &Cancel::new()).unwrap() == Tended::Restarted);
        assert_eq!(app.state(), State::Running);
        println!("round {round}: restarted after {:?}", since.elapsed());
        waited = since.elapsed();
    }
    assert!(waited >= Duration::from_millis(900), "the second time it waits: {waited:?}");
    app.command().restart = false;
    Command::new("kill").args(["-9", &app.pid().to_string()]).status().unwrap();
    wait_for("its end", || app.state() == State::Failed);
    assert_eq!(tend(&app.runtime, &always, &Cancel::new()).unwrap(), Tended::Well);
    let was = app.stop().unwrap();
    assert!(!was.running && was.wanted, "it was meant to run: {was:?}");
    assert_eq!(app.state(), State::Stopped);
}

#[test]
fn a_number_that_another_process_has_by_now_is_not_signalled() {
    let app = running("exec sleep 3075");
    app.start().unwrap();
    Command::new("kill").args(["-9", &app.pid().to_string()]).status().unwrap();
    wait_for("its end", || app.state() == State::Failed);
    // The record names a living process with another start time; and one that started before the app did.
    let mut other = Command::new("setsid").args(["sleep", "3076"]).spawn().unwrap();
    let path = app.runtime.run.join("process.json");
    let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    record["leader"]["pid"] = other.id().into();
    std::fs::write(&path, record.to_string()).unwrap();
    assert_eq!(app.state(), State::Failed);
    app.stop().unwrap();
    assert_eq!(other.try_wait().unwrap(), None, "a process that is not ours lives on");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn after_a_boot_nothing_is_signalled_and_it_is_started_again() {
    let app = running("exec sleep 3077");
    app.start().unwrap();
    let pid = app.pid();
    let path = app.runtime.run.join("process.json");
    let record = std::fs::read_to_string(&path).unwrap();
    let mut before: serde_json::Value = serde_json::from_str(&record).unwrap();
    before["boot"] = "another".into();
    std::fs::write(&path, before.to_string()).unwrap();
    assert_eq!(app.state(), State::Failed);
    assert_eq!(app.condition().detail.as_deref(), Some("It ran when the machine was shut down"));
    assert!(lives(pid));
    before["boot"] = serde_json::from_str::<serde_json::Value>(&record).unwrap()["boot"].clone();
    before["space"] = "pid:[1]".into();
    std::fs::write(&path, before.to_string()).unwrap();
    let refused = backstay_platform::state(&app.runtime, &Cancel::new()).unwrap_err();
    assert_eq!(refused.code(), Code::RuntimeUnavailable);
    std::fs::write(&path, record).unwrap();
    assert_eq!(app.state(), State::Running);
}

#[test]
fn the_environment_is_what_is_set_and_nothing_of_ours() {
    let mut app = running("env > env; echo end >> env; exec sleep 3078");
    std::fs::write(app.home(".env"), "# settings\nexport A=1\nQUOTED=\"two words\"\n\nB = x=y\n").unwrap();
    app.command().env_file = Some(".env".into());
    app.command().env.insert("B".into(), "set".into());
    app.start().unwrap();
    wait_for("all variables", || app.told("env").ends_with("end"));
    let told = app.told("env");
    for line in ["A=1", "QUOTED=two words", "B=set"] {
        assert!(told.lines().any(|l| l == line), "{line} in {told}");
    }
    let known = ["PATH", "HOME", "LANG", "PWD", "SHLVL", "_", "OLDPWD", "BACKSTAY_RUN", "A", "B", "QUOTED"];
    for name in told.lines().filter_map(|l| l.split_once('=')).map(|(name, _)| name) {
        assert!(known.contains(&name), "{name}");
    }
    app.stop().unwrap();
    std::fs::write(app.home(".env"), "A B\n").unwrap();
    let error = app.start().unwrap_err();
    assert!(error.message().contains("line 1 of"), "{error:?}");
}

#[test]
fn it_runs_as_the_user_that_is_set() {
    if !rustix::process::geteuid().is_root() {
        println!("left out: only root can run an app as another user");
        return;
    }
    let mut app = running("id -un > who; id -G > groups; echo $HOME > home; exec sleep 3079");
    std::fs::set_permissions(app.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&app.runtime.home, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    app.command().user = Some("nobody".into());
    app.start().unwrap();
    assert_eq!(app.told("who"), "nobody");
    assert_eq!(app.told("home"), "/nonexistent");
    assert_eq!(app.told("groups").split(' ').count(), 1, "no group of ours is kept");
    app.stop().unwrap();
}

#[test]
fn the_log_is_held_within_its_limit_while_the_app_writes() {
    let app = running("exec yes 0123456789012345678901234567890123456789");
    app.start().unwrap();
    let log = app.runtime.log_file().unwrap();
    let length = || log.metadata().unwrap().len();
    wait_for("a long log", || length() > 2 * backstay_platform::LOG_MAX);
    tend(&app.runtime, &|| true, &Cancel::new()).unwrap();
    app.stop().unwrap();
    app.start().unwrap();
    app.stop().unwrap();
    assert!(log.with_extension("1").metadata().unwrap().len() <= backstay_platform::LOG_MAX);
    use std::os::unix::fs::PermissionsExt as _;
    for file in ["log", "log.1", "lock"] {
        let mode = app.runtime.run.join(file).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{file}");
    }
}

#[test]
fn of_many_that_start_at_once_one_does() {
    let app = running("echo up >> ups; exec sleep 3080");
    let started: usize = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..6).map(|_| scope.spawn(|| usize::from(app.start().unwrap()))).collect();
        starts.into_iter().map(|s| s.join().unwrap()).sum()
    });
    assert_eq!(started, 1);
    assert_eq!(app.told("ups"), "up");
    assert_eq!(with_argument("3080"), 1);
}

#[test]
fn a_stop_that_is_cancelled_is_brought_to_its_end_by_the_next() {
    let mut app = running("trap '' TERM; echo $$ > up; while :; do sleep 0.2; done");
    app.command().grace = Duration::from_secs(60);
    app.start().unwrap();
    let first = app.told("up");
    let cancel = Cancel::new();
    let theirs = cancel.clone();
    let stopper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(500));
        theirs.cancel();
    });
    let error = backstay_platform::stop(&app.runtime, &cancel).unwrap_err();
    assert_eq!(error.code(), Code::Cancelled);
    stopper.join().unwrap();
    assert!(lives(first.parse().unwrap()));
    app.command().grace = Duration::from_millis(200);
    std::fs::remove_file(app.home("up")).unwrap();
    assert!(app.start().unwrap(), "the old one is ended, a new one started");
    assert!(!lives(first.parse().unwrap()));
    assert_ne!(app.told("up"), first);
}

#[test]
fn a_static_app_is_always_as_it_should_be() {
    let app = app(Kind::Static);
    assert_eq!(app.state(), State::Static);
    assert!(!app.start().unwrap());
    assert_eq!(app.stop().unwrap(), backstay_platform::WasRunning::default());
    assert_eq!(wait_healthy(&app.runtime, &Cancel::new()).unwrap().tries, 0);
    assert!(!app.runtime.run.exists(), "nothing is made for it");
    let _ = command("unused");
}

/// The other half of the next test: runs only as its child, starts the app and is killed.
#[test]
fn starts_when_asked() {
    let Some(state) = std::env::var_os("BACKSTAY_TEST_STATE") else { return };
    let home = std::env::var_os("BACKSTAY_TEST_APP_HOME").unwrap();
    let config = backstay_model::app::AppConfig {
        runtime: Kind::Command(command("echo up >> ups; exec sleep 3090")),
        ..Default::default()
    };
    let name = backstay_model::AppName::suggest("blog");
    let runtime = backstay_platform::Runtime::new(state.as_ref(), name, home.into(), config);
    println!("starting");
    backstay_platform::start(&runtime, &Cancel::new()).unwrap();
}

#[test]
fn killed_at_any_moment_of_a_start_there_is_never_a_second_instance() {
    let app = running("echo up >> ups; exec sleep 3090");
    let start = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "starts_when_asked", "--nocapture"])
            .env("BACKSTAY_TEST_STATE", app.dir.path().join("state"))
            .env("BACKSTAY_TEST_APP_HOME", &app.runtime.home)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let began = Instant::now();
    assert!(start().wait().unwrap().success());
    let whole = began.elapsed();
    app.stop().unwrap();
    let mut seen = [0, 0];
    let rounds = 40;
    // Most of a start is waiting whether the app stays up: three kills in four come before that.
    let (early, late) = (whole.saturating_sub(Duration::from_millis(400)), rounds * 3 / 4);
    for round in 0..rounds {
        let mut child = start();
        std::thread::sleep(if round < late { early * round / late } else { whole * round / rounds });
        child.kill().unwrap();
        child.wait().unwrap();
        // The gate of a start that was killed is gone in a moment; what runs is what the record says.
        wait_for("the gate to go", || with_argument("backstay-start") == 0);
        wait_for("the record to be right", || {
            assert!(with_argument("3090") <= 1, "round {round}");
            (with_argument("3090") == 1) == (app.state() == State::Running)
        });
        let running = with_argument("3090");
        seen[running] += 1;
        app.start().unwrap();
        wait_for("the app", || with_argument("3090") == 1);
        app.stop().unwrap();
        assert_eq!(with_argument("3090"), 0, "round {round}");
    }
    println!("a start takes {whole:?}; killed before it ran {} times, after {} times", seen[0], seen[1]);
    assert!(seen[0] > 5 && seen[1] > 5, "{seen:?}");
}
