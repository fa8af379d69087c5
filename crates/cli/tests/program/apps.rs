//! Apps: how they run, what is set about them, hooks, removing and bringing back.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{World, assert_text};

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Stops the app when the test ends, however it ends.
struct Stops<'a>(&'a World, &'a str);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.run(&["app", "stop", self.1]);
    }
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(30), "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_real_web_server_is_run_by_commands() {
    let world = World::with_blog();
    let port = free_port().to_string();
    let line = format!("exec python3 -m http.server --bind 127.0.0.1 {port}");
    let url = format!("http://127.0.0.1:{port}/");
    // Said outright, so that root is not told that the command runs as root.
    let user = std::process::Command::new("id").arg("-un").output().unwrap().stdout;
    let user = String::from_utf8(user).unwrap().trim().to_owned();
    let mut told = String::new();
    let mut tell = |words: &[&str]| {
        let ran = world.run(words);
        told.push_str(&ran.told(&world, &words.join(" ")));
        told.push('\n');
        ran
    };
    tell(&["app", "add", "blog", "blog", "--command", &line, "--health", &url, "--run-as", &user]).ok();
    let _stops = Stops(&world, "blog");
    tell(&["app", "start", "blog"]).ok();
    tell(&["app", "start", "blog"]).ok();
    tell(&["app", "list"]).ok();
    tell(&["app", "show", "blog"]).ok();
    tell(&["app", "set", "blog", "--static"]).fails("Conflict", 1);
    tell(&["app", "remove", "blog", "--yes"]).fails("Conflict", 1);
    let before = world.json(&["app", "show", "blog"])["app"]["condition"]["pid"].clone();
    tell(&["app", "restart", "blog"]).ok();
    assert_ne!(world.json(&["app", "show", "blog"])["app"]["condition"]["pid"], before);
    tell(&["app", "stop", "blog"]).ok();
    tell(&["app", "stop", "blog"]).ok();
    tell(&["app", "set", "blog", "--health-deadline", "1s", "--health", &format!("{url}nothing")]).ok();
    tell(&["app", "start", "blog"]).fails("HealthCheckFailed", 1);
    tell(&["app", "stop", "blog"]).ok();
    tell(&["app", "set", "blog", "--command", "echo no such thing >&2; exit 4"]).ok();
    tell(&["app", "start", "blog"]).fails("AppStartFailed", 1);
    let told = told.replace(&port, "[PORT]");
    let told = told.replace(&format!("--run-as {user}"), "--run-as [USER]");
    let told = told.replace(&format!("Runs as         {user}"), "Runs as         [USER]");
    let told: Vec<String> = told.lines().map(without_process).collect();
    assert_text!("app-runs", told.join("\n"));
}

/// `nohup`, and a shell that puts a program in the background, have it ignore signals: those by which apps are stopped.
#[test]
fn an_app_heeds_the_signals_that_we_were_told_to_ignore() {
    let world = World::with_blog();
    let line = "grep SigIgn /proc/self/status > signals; exec sleep 60";
    world.run(&["app", "add", "blog", "blog", "--command", line]).ok();
    let _stops = Stops(&world, "blog");
    let start = world.command(["app", "start", "blog"]);
    let mut ignoring = std::process::Command::new("sh");
    ignoring.args(["-c", "trap '' HUP INT QUIT TERM USR1 USR2; exec \"$0\" \"$@\""]);
    ignoring.arg(start.get_program()).args(start.get_args());
    ignoring.envs(start.get_envs().filter_map(|(name, value)| Some((name, value?))));
    assert!(ignoring.current_dir(world.path("")).status().unwrap().success());
    wait_for("the app's word", || std::fs::read(world.path("blog/signals")).is_ok_and(|s| !s.is_empty()));
    let said = std::fs::read_to_string(world.path("blog/signals")).unwrap();
    let ignored = u64::from_str_radix(said.trim().rsplit('\t').next().unwrap(), 16).unwrap();
    let stopping = [1, 2, 3, 10, 12, 15].iter().fold(0, |mask, signal| mask | 1 << (signal - 1));
    assert_eq!(ignored & stopping, 0, "{said}");
}

/// Numbers of processes differ from run to run.
fn without_process(line: &str) -> String {
    match line.split_once("process ") {
        Some((before, after)) => {
            format!("{before}process [PID]{}", after.trim_start_matches(|c: char| c.is_ascii_digit()))
        }
        None => line.to_owned(),
    }
}

#[test]
fn what_is_set_is_shown_and_refused_where_it_does_not_fit() {
    let world = World::with_blog();
    world.write("compose.yaml", b"services: {}\n");
    // Looking makes nothing.
    world.run(&["app", "list"]).ok();
    world.run(&["app", "show", "shop"]).fails("AppNotFound", 4);
    world.run(&["app", "restore-deleted", "shop"]).fails("AppNotFound", 4);
    assert!(!world.path("home").exists());
    let mut told = String::new();
    let cases: &[(&[&str], i32)] = &[
        (&["app", "list"], 0),
        (&["app", "add", "shop"], 0),
        (&["app", "add", "shop"], 1),
        (&["app", "add", "copy", "home/sites/shop"], 1),
        (&["app", "add", "state", "home"], 1),
        (&["app", "add", "gone", "nowhere"], 4),
        (&["app", "add", "foreign"], 2),
        (&["app", "add", "unit", "--systemd", "blog", "--exclude", "cache/*", "--filter-automatic", "on"], 0),
        (&["app", "set", "shop", "--compose", "compose.yaml", "--project", "shop", "--rpo", "4h"], 0),
        (&["app", "set", "shop", "--static", "--before-backup", "true", "--undo-on-unhealthy", "on"], 0),
        (&["app", "set", "shop", "--replace", "config.php", "{app}.test", "{app}.example"], 0),
        (&["app", "set", "shop", "--grace", "1s"], 2),
        (&["app", "set", "shop", "--health", "http://user:secret@localhost/"], 2),
        (&["app", "set", "shop", "--command", "a", "--static"], 2),
        (&["app", "set", "nobody", "--static"], 4),
        (&["app", "start", "shop"], 1),
        (&["app", "pause", "shop", "--reason", "moving house", "--for", "2h"], 0),
        (&["app", "pause", "shop", "--for", "soon"], 2),
        (&["app", "show", "shop"], 0),
        (&["app", "resume", "shop"], 0),
        (&["app", "remove", "shop"], 2),
        (&["app", "remove", "shop", "--yes"], 0),
        (&["app", "remove", "shop", "--yes"], 4),
        (&["app", "show", "nobody"], 4),
        (&["app", "list", "--removed"], 0),
        (&["app", "restore-deleted", "shop"], 0),
        (&["app", "restore-deleted", "shop"], 1),
        (&["app", "restore-deleted", "nobody"], 4),
    ];
    for (words, status) in cases {
        let ran = world.run(words);
        let text = ran.told(&world, &words.join(" "));
        assert!(!text.contains("user:secret") || words.contains(&"http://user:secret@localhost/"), "{text}");
        told.push_str(&text.replace("user:secret", "USER:SECRET"));
        told.push('\n');
        ran.ends(*status);
    }
    // Whether units can be asked about depends on the machine.
    let told: Vec<&str> = told.lines().filter(|l| !l.starts_with("State ")).collect();
    assert_text!("app-set", told.join("\n"));
    assert!(world.path("home/sites/shop").is_dir());
}

#[test]
fn a_made_home_is_backed_up_by_the_name_of_its_app() {
    let world = World::new();
    world.ok(&["app", "add", "shop"]);
    std::fs::write(world.path("home/sites/shop/index.html"), "hello").unwrap();
    world.run(&["backup", "shop"]).ok();
    world.run(&["backup", "home/sites/shop"]).ok();
    assert_eq!(world.points("shop").len(), 2);
    world.run(&["restore", "shop", "--directory", "out"]).ok();
    world.assert_same(world.path("home/sites/shop"), world.path("out"));
}

fn points_listed(list: &Value) -> usize {
    list["points"].as_array().unwrap().len()
}

#[test]
fn a_removed_app_keeps_its_points_and_comes_back_in_three_ways() {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    world.ok(&["app", "set", "blog", "--rpo", "5h"]);
    let rpo = || world.json(&["app", "show", "blog"])["app"]["config"]["rpo_seconds"].clone();
    let removed = || {
        world.ok(&["app", "remove", "blog", "--yes"]);
        // Neither listing nor the vault brings it back.
        let list = world.json(&["list"]);
        assert_eq!((points_listed(&list), list["of_removed_apps"].as_u64()), (0, world_points(&world)));
        assert!(points_listed(&world.json(&["list", "--removed"])) > 0);
        assert!(points_listed(&world.json(&["list", "blog"])) > 0);
        world.run(&["backup", "other-name"]).fails("SourceNotFound", 4);
        assert_eq!(world.json(&["app", "list"])["apps"].as_array().unwrap().len(), 0);
        let of = world.json(&["app", "list", "--removed"]);
        assert_eq!(of["apps"][0]["name"], "blog");
    };
    removed();
    world.run(&["restore", "blog", "--directory", "out"]).ok();
    world.assert_same(world.path("blog"), world.path("out"));
    world.ok(&["app", "restore-deleted", "blog"]);
    assert_eq!(rpo(), 18_000);

    removed();
    let again = world.run(&["backup", "blog"]).ok();
    assert!(again.stderr.contains("App `blog` had been removed; it is protected again."), "{again:?}");
    assert_eq!((rpo(), world.points("blog").len()), (18_000.into(), 2));

    removed();
    // Its folder may belong to another app meanwhile; then it comes back with another one.
    world.ok(&["app", "add", "second", "blog"]);
    let taken = world.run(&["app", "restore-deleted", "blog"]).fails("Conflict", 1);
    assert!(taken.stderr.contains("belongs to app `second` by now"), "{taken:?}");
    world.write("moved/index.html", b"new");
    let back = world.json(&["app", "add", "blog", "moved"]);
    assert_eq!((&back["revived"], rpo()), (&Value::Bool(true), 18_000.into()));
    world.run(&["backup", "blog"]).ok();
    assert_eq!(world.points("blog").len(), 3);
    world.run(&["app", "remove", "nobody", "--yes"]).fails("AppNotFound", 4);
}

/// How many points `list` keeps back.
fn world_points(world: &World) -> Option<u64> {
    Some(world.json(&["list", "--removed"])["points"].as_array().unwrap().len() as u64)
}

#[test]
fn hooks_run_around_a_backup() {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    let set = |flag: &str, line: &str| world.ok(&["app", "set", "blog", flag, line]);
    set("--before-backup", "echo dumping; date > dump.sql");
    set("--after-backup", "rm dump.sql; echo point=$BACKSTAY_POINT failed=$BACKSTAY_FAILED > ../after");
    let report = world.json(&["backup", "blog"]);
    let id = report["point"]["id"].as_str().unwrap();
    let after = std::fs::read_to_string(world.path("after")).unwrap();
    assert_eq!(after, format!("point={id} failed=0\n"));
    assert!(world.ok(&["files", "blog"]).contains("dump.sql"));
    assert!(!world.path("blog/dump.sql").exists());
    let log = world.ok(&["job", "log", report["job"].as_str().unwrap()]);
    assert!(log.contains("The before-backup hook ended well") && log.contains("  dumping"), "{log}");

    set("--after-backup", "echo cannot clean up; exit 9");
    let ran = world.run(&["backup", "blog"]).ends(3);
    assert!(ran.stderr.contains("The after-backup hook of app `blog` ended with status 9"), "{ran:?}");
    assert_eq!(world.points("blog").len(), 3, "the point is there");
    let job = &world.json(&["job", "list", "--limit", "1"])["jobs"][0];
    assert_eq!((&job["state"], &job["code"]), (&"succeeded".into(), &"HookFailed".into()));

    set("--before-backup", "echo no database >&2; exit 4");
    set("--after-backup", "echo ran > ../after");
    let ran = world.run(&["backup", "blog"]).fails("HookFailed", 1);
    assert!(ran.stderr.contains("  cause: no database"), "{ran:?}");
    assert_eq!(world.points("blog").len(), 3, "no point was taken");
    assert_eq!(std::fs::read_to_string(world.path("after")).unwrap(), after, "nothing came after it");

    // A backup that fails, or is stopped, is followed by the hook too.
    set("--before-backup", "date > new.txt; mv ../home/vault/data ../away; touch ../home/vault/data");
    set(
        "--after-backup",
        "rm ../home/vault/data; mv ../away ../home/vault/data; echo $BACKSTAY_FAILED > ../after",
    );
    assert_ne!(world.run(&["backup", "blog"]).status, 0);
    assert_eq!(std::fs::read_to_string(world.path("after")).unwrap(), "1\n");
    set("--before-backup", "touch ../begun; sleep 60");
    let mut child = world.command(["backup", "blog"]).stderr(std::process::Stdio::null()).spawn().unwrap();
    wait_for("the hook", || world.path("begun").exists());
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let started = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(started.elapsed() < Duration::from_secs(20), "the hook is not waited for");
}
