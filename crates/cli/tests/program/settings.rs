//! Settings and connection strings: what is said about them, what an app finds, and that their values are nowhere else.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::{Ran, World, assert_text};

const CANARY: &str = "canary-9f86d081884c7d65";

/// Stops the app when the test ends, however it ends.
struct Stops<'a>(&'a World);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.run(&["app", "stop", "blog"]);
    }
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(30), "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn they_are_given_listed_and_taken_away_without_showing_values() {
    let world = World::new();
    world.run(&["setting", "list", "blog"]).fails("AppNotFound", 4);
    world.run_with("home", &["setting", "set", "blog", "A"], "x").fails("AppNotFound", 4);
    assert!(!world.path("home").exists(), "looking makes nothing");
    world.run(&["app", "add", "blog"]).ok();
    let url = "postgres://web:hunter2@db/shop?sslmode=require";
    let mut told = String::new();
    let cases: &[(&str, &str, i32)] = &[
        ("setting list blog", "", 0),
        ("connection list blog", "", 0),
        ("setting set blog LOG_LEVEL", "debug\n", 0),
        ("setting set blog Api:Key --slot-sticky", "hunter2", 0),
        ("setting set blog LOG_LEVEL", "hunter2", 0),
        ("setting set blog a/b", "hunter2", 2),
        ("setting set blog ZERO", "hunter2\0", 2),
        ("setting list blog", "", 0),
        ("setting list blog --reveal", "", 0),
        ("connection set blog DB --type PostgreSQL", url, 0),
        ("connection set blog Files", "Data Source=data/app.db", 0),
        ("connection set blog Cache", "redis://:hunter2@cache:6379", 0),
        ("connection set blog X --type MySql", url, 2),
        ("connection set blog X --type Oracle", url, 2),
        ("connection set blog X --type SQLServer", "hunter2", 2),
        ("connection set blog X", "", 2),
        ("connection set nobody X", url, 4),
        ("connection list blog", "", 0),
        ("setting delete blog LOG_LEVEL", "", 2),
        ("setting delete blog LOG_LEVEL --yes", "", 0),
        ("setting delete blog DB --yes", "", 4),
        ("connection delete blog Cache --yes", "", 0),
        ("connection delete blog Cache --yes", "", 4),
        ("setting rotate-key", "", 0),
    ];
    for (words, input, status) in cases {
        let args: Vec<&str> = words.split(' ').collect();
        let ran = world.run_with("home", &args, input).ends(*status);
        let revealed = words.ends_with("--reveal");
        assert_eq!(format!("{ran:?}").contains("hunter2"), revealed, "{words}: {ran:?}");
        told.push_str(&ran.told(&world, words));
        told.push('\n');
    }
    assert_text!("settings", without_key(&told));
    // Nothing but one newline is taken off.
    world.run_with("home", &["setting", "set", "blog", "LINES"], " two\nlines\n\n").ok();
    let shown = world.json(&["setting", "list", "blog", "--reveal"]);
    assert_eq!(shown["settings"][1]["value"], " two\nlines\n");
    let shown = world.ok(&["setting", "list", "blog", "--reveal"]);
    assert!(shown.contains(r" two\nlines\n"), "one line of the table: {shown}");
    let shown = world.json(&["connection", "list", "blog", "--reveal"]);
    assert_eq!(shown["connections"][0]["value"], url);
}

/// The id of a key differs from run to run.
fn without_key(text: &str) -> String {
    let line = |line: &str| match line.split_once("The key ") {
        Some((before, after)) => {
            format!("{before}The key [KEY] {}\n", after.split_once(' ').map_or("", |(_, rest)| rest))
        }
        None => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

#[test]
fn on_a_terminal_a_value_is_asked_for_and_not_shown() {
    let world = World::new();
    world.run(&["app", "add", "blog"]).ok();
    let mut script = Command::new("script");
    script.args(["-qec", &format!("{} setting set blog KEY", env!("CARGO_BIN_EXE_backstay")), "/dev/null"]);
    script.current_dir(world.path("")).env("BACKSTAY_HOME", world.path("home")).env("TERM", "xterm");
    script.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = script.spawn().unwrap();
    let mut shown = String::new();
    let mut out = child.stdout.take().unwrap();
    // The answer is given when it was asked for: what comes earlier may be echoed by the terminal itself.
    let mut buffer = [0; 1];
    while !shown.ends_with("Value of KEY: ") {
        assert_ne!(std::io::Read::read(&mut out, &mut buffer).unwrap(), 0, "{shown}");
        shown.push(char::from(buffer[0]));
    }
    std::thread::sleep(Duration::from_millis(100));
    child.stdin.as_mut().unwrap().write_all(format!("{CANARY}\n").as_bytes()).unwrap();
    let mut rest = Vec::new();
    std::io::Read::read_to_end(&mut out, &mut rest).unwrap();
    shown.push_str(&String::from_utf8_lossy(&rest));
    assert!(child.wait().unwrap().success(), "{shown}");
    assert!(shown.contains("Setting `KEY` of app `blog` is set") && !shown.contains(CANARY), "{shown}");
    assert_eq!(world.json(&["setting", "list", "blog", "--reveal"])["settings"][0]["value"], CANARY);
}

#[test]
fn a_command_finds_them_as_on_azure_and_what_is_set_for_it_wins() {
    let world = World::with_blog();
    let line = "env > ../env.new; mv ../env.new ../env; exec sleep 60";
    world.run(&["app", "add", "blog", "blog", "--command", line, "--env", "PLAIN=configured"]).ok();
    let _stops = Stops(&world);
    let set = |words: &[&str], value: &str| world.run_with("home", words, value).ok();
    set(&["setting", "set", "blog", "PLAIN"], "from the setting");
    set(&["setting", "set", "blog", "Logging:Level"], "debug");
    set(&["connection", "set", "blog", "DB", "--type", "MySql"], "mysql://web:p@db/shop");
    world.run(&["app", "start", "blog"]).ok();
    let env = || {
        wait_for("the app's word", || world.path("env").exists());
        let text = std::fs::read_to_string(world.path("env")).unwrap();
        std::fs::remove_file(world.path("env")).unwrap();
        text.lines().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let found = env();
    for line in [
        "PLAIN=configured",
        "APPSETTING_PLAIN=from the setting",
        "Logging__Level=debug",
        "APPSETTING_Logging__Level=debug",
        "MYSQLCONNSTR_DB=mysql://web:p@db/shop",
    ] {
        assert!(found.contains(line), "{line}: {found:?}");
    }
    // A change is told to need a restart, and is there after it.
    let changed = set(&["setting", "set", "blog", "Logging:Level"], "info");
    assert!(changed.stderr.contains("backstay app restart blog"), "{changed:?}");
    world.run(&["connection", "delete", "blog", "DB", "--yes"]).ok();
    world.run(&["app", "restart", "blog"]).ok();
    let found = env();
    assert!(found.contains("Logging__Level=info"), "{found:?}");
    assert!(!found.iter().any(|l| l.contains("CONNSTR")), "{found:?}");
    // Without the keys nothing is started half, and it is told.
    world.run(&["app", "stop", "blog"]).ok();
    let secrets = std::fs::read_to_string(world.path("home/secrets.json")).unwrap();
    std::fs::write(world.path("home/secrets.json"), secrets.replace("key_encryption_keys", "other")).unwrap();
    let ran = world.run(&["app", "start", "blog"]).fails("StateDamaged", 1);
    assert!(ran.stderr.contains("its key is not in the secrets"), "{ran:?}");
}

/// The files below a folder that hold a text.
fn holding(folder: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            found.extend(holding(&path, text));
        } else if std::fs::read(&path).is_ok_and(|b| b.windows(text.len()).any(|w| w == text.as_bytes())) {
            found.push(path.display().to_string());
        }
    }
    found
}

/// Looks at the arguments of every process of the machine, again and again, until told to stop.
fn watch_arguments(stop: &AtomicBool, looked: &AtomicU64) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    while !stop.load(Ordering::SeqCst) {
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&words).replace('\0', " ");
            if words.contains(CANARY) {
                found.insert(words);
            }
        }
        looked.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(1));
    }
    found
}

/// Runs commands while the arguments of all processes are watched; gives those that hold the canary.
fn watched(work: impl FnOnce()) -> BTreeSet<String> {
    let (stop, looked) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch_arguments(&stop, &looked));
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        let before = looked.load(Ordering::SeqCst);
        wait_for("a last look", || looked.load(Ordering::SeqCst) > before + 1);
        stop.store(true, Ordering::SeqCst);
        let found = watcher.join().unwrap();
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        found
    })
}

#[test]
fn a_secret_is_in_no_argument_no_file_and_no_output() {
    let world = World::with_blog();
    // What the app found is proved by a checksum, so that the test itself leaves no copy.
    let line = "for v in \"$KEY\" \"$POSTGRESQLCONNSTR_DB\"; do printf %s \"$v\" | sha256sum; done > ../sums.new; \
                mv ../sums.new ../sums; exec sleep 60";
    world.run(&["app", "add", "blog", "blog", "--command", line, "--before-backup", "env"]).ok();
    world.run(&["container", "add", "shelf", "backups", "--create"]).ok();
    let url = format!("postgres://web:{CANARY}@127.0.0.1:1/shop");
    let _stops = Stops(&world);
    let mut outputs = String::new();
    let arguments = watched(|| {
        let mut run = |words: &str, input: &str| {
            let args: Vec<&str> = words.split(' ').collect();
            let ran = world.run_with("home", &args, input);
            outputs.push_str(&format!("$ {words}\n{}\n{}\n", ran.stdout, ran.stderr));
            ran
        };
        run("setting set blog KEY", CANARY).ok();
        run("connection set blog DB --type PostgreSQL --json", &url).ok();
        run("app start blog", "").ok();
        wait_for("the app's word", || world.path("sums").exists());
        // There is no database where the string points to.
        run("backup blog", "").ends(3);
        run("backup blog --container shelf --name one", "").ends(3);
        run("setting rotate-key --json", "").ok();
        run("app restart blog --json", "").ok();
        for words in [
            "setting list blog",
            "setting list blog --json",
            "connection list blog",
            "connection list blog --json",
            "app show blog --json",
            "list --json",
            "show blog --json",
            "show blog one --json",
            "status --json",
            "job list --json",
            "restore blog --dry-run",
        ] {
            run(words, "");
        }
        run("connection set blog X --type MySql", &url).fails("InvalidValue", 2);
        run("connection set blog X --type SQLServer", CANARY).fails("InvalidValue", 2);
        run("connection set blog X --type PostgreSQL", &format!("postgres://{CANARY}:x"))
            .fails("InvalidValue", 2);
        run("connection set blog X", &format!("who knows what {CANARY} is")).ok();
        run("setting set blog a/b", CANARY).fails("InvalidValue", 2);
        run("setting set nobody A --json", CANARY).fails("AppNotFound", 4);
        run("setting set blog ZERO", &format!("{CANARY}\0")).fails("InvalidValue", 2);
        for job in world.json(&["job", "list"])["jobs"].as_array().unwrap() {
            run(&format!("job log {}", job["id"].as_str().unwrap()), "");
        }
    });
    let sums = std::fs::read_to_string(world.path("sums")).unwrap();
    let expected: String = [CANARY, &url].iter().map(|text| sha256_line(text)).collect();
    assert_eq!(sums, expected, "the app has both");
    assert!(arguments.is_empty(), "{arguments:?}");
    assert!(outputs.contains("PATH=") && !outputs.contains(CANARY), "{outputs}");
    assert_eq!(holding(&world.path("home"), CANARY), [""; 0]);
    assert_eq!(holding(&world.path("backups"), CANARY), [""; 0]);

    // All three would have found one.
    world.write("home/run/blog/planted", format!("before {CANARY} after").as_bytes());
    assert_eq!(holding(&world.path("home"), CANARY).len(), 1);
    let arguments = watched(|| {
        let planted = Command::new("sh").args(["-c", "sleep 0.2; true", CANARY]).status();
        assert!(planted.unwrap().success());
    });
    assert_eq!(arguments.len(), 1, "{arguments:?}");
    assert!(world.ok(&["setting", "list", "blog", "--reveal"]).contains(CANARY));
}

/// What `sha256sum` says of a text on its standard input.
fn sha256_line(text: &str) -> String {
    let mut sum = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    sum.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    Ran::of(sum.wait_with_output().unwrap()).ok().stdout
}
