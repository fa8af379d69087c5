//! Restores of apps that run: stopping, health, hooks, rules, and what is said of it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::{Ran, World, copy, facts, no_workplace};

/// Stops the app when the test ends, however it ends.
struct Stops<'a>(&'a World);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.run(&["app", "stop", "blog"]);
    }
}

/// The app runs; its point is well, what it is now too, in another way. Health is whether there is a file `well`.
fn running(options: &[&str]) -> World {
    let world = World::with_blog();
    world.write("blog/well", b"then");
    let line = "echo started >> ../starts; exec sleep 1000";
    let health = ["--health-command", "test -f well", "--health-deadline", "1s"];
    let add = ["app", "add", "blog", "blog", "--command", line];
    world.run(&[&add[..], &health, options].concat()).ok();
    world.run(&["backup", "blog"]).ok();
    world.run(&["app", "start", "blog"]).ok();
    world.write("blog/well", b"now");
    world.write("blog/new.txt", b"new");
    world
}

/// The same, but the point is one of an app that is not well.
fn with_an_unwell_point(options: &[&str]) -> (World, String) {
    let world = running(options);
    fs::remove_file(world.path("blog/well")).unwrap();
    world.run(&["backup", "blog"]).ok();
    let unwell = world.points("blog").remove(0);
    world.write("blog/well", b"now");
    copy(&world.path("blog"), &world.path("now"));
    (world, unwell)
}

fn runs(world: &World) -> Option<i64> {
    world.json(&["app", "show", "blog"])["app"]["condition"]["pid"].as_i64()
}

fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:#?}"))
}

#[test]
fn an_app_that_runs_is_stopped_and_runs_again() {
    let world = running(&[]);
    let _stops = Stops(&world);
    let before = runs(&world).unwrap();
    let report = world.json(&["restore", "blog", "--yes"]);
    assert_eq!(report["healthy"], true, "{report:#}");
    assert!(report["downtime_seconds"].as_f64().unwrap() > 0.0, "{report:#}");
    let after = runs(&world).unwrap();
    assert_ne!(before, after);
    assert_eq!(fs::read(world.path("blog/well")).unwrap(), b"then");
    assert_eq!(fs::read_to_string(world.path("starts")).unwrap(), "started\n".repeat(2));
    world.run(&["undo", "blog", "--yes"]).ok();
    assert_eq!(fs::read(world.path("blog/well")).unwrap(), b"now");
    assert_ne!(runs(&world).unwrap(), after);
    // One that was stopped stays so.
    world.run(&["app", "stop", "blog"]).ok();
    world.run(&["restore", "blog", "--yes"]).ok();
    assert_eq!(runs(&world), None);
}

#[test]
fn an_app_that_is_not_well_afterwards_is_told_and_can_be_taken_back() {
    let (world, unwell) = with_an_unwell_point(&[]);
    let _stops = Stops(&world);
    let ran = world.run(&["restore", "blog", &unwell, "--yes", "--json"]).ends(3);
    let report = json(&ran);
    assert_eq!((&report["healthy"], &report["taken_back"]), (&false.into(), &false.into()), "{report:#}");
    assert!(report["problems"].as_array().unwrap().iter().any(|p| p["kind"] == "unhealthy"), "{report:#}");
    assert!(ran.stderr.contains("backstay undo blog"), "{ran:#?}");
    assert!(!world.path("blog/well").exists());
    let job = report["job"].as_str().unwrap();
    let shown = world.json(&["job", "show", job]);
    assert_eq!(shown["job"]["code"], "HealthCheckFailed", "{shown:#}");
    world.run(&["undo", "blog", "--yes"]).ok();
    world.assert_same(world.path("now"), world.path("blog"));
    assert!(runs(&world).is_some(), "it runs again");
}

#[test]
fn an_app_that_is_not_well_afterwards_is_taken_back_where_that_is_asked_for() {
    for set in [false, true] {
        let (world, unwell) = with_an_unwell_point(&[]);
        let _stops = Stops(&world);
        let mut words = vec!["restore", "blog", &unwell, "--yes", "--json"];
        if set {
            world.run(&["app", "set", "blog", "--undo-on-unhealthy", "on"]).ok();
        } else {
            words.push("--undo-on-unhealthy");
        }
        let before = runs(&world).unwrap();
        let ran = world.run(&words).ends(1);
        let report = json(&ran);
        assert_eq!((&report["healthy"], &report["taken_back"]), (&false.into(), &true.into()), "{report:#}");
        assert!(ran.stderr.contains("everything was taken back"), "{ran:#?}");
        assert!(!ran.stderr.contains("To take this back"), "an undo would bring it back as it did not work");
        world.assert_same(world.path("now"), world.path("blog"));
        assert!(runs(&world).is_some_and(|pid| pid != before), "it is up");
        world.run(&["app", "show", "blog"]).ok();
    }
}

#[test]
fn hooks_run_around_a_restore() {
    let hook =
        |when: &str| format!("echo {when} $BACKSTAY_APP $(cat well 2>/dev/null || echo none) >> ../hooks");
    let (before, after) = (hook("before"), hook("after"));
    let world = running(&["--before-restore", &before, "--after-restore", &after]);
    let _stops = Stops(&world);
    world.run(&["restore", "blog", "--yes"]).ok();
    world.run(&["undo", "blog", "--yes"]).ok();
    let told = fs::read_to_string(world.path("hooks")).unwrap();
    assert!(
        told.starts_with("before blog now\nafter blog then\n") && told.ends_with("after blog now\n"),
        "{told}"
    );
}

#[test]
fn a_hook_that_fails_before_a_restore_ends_it_before_anything_was_done() {
    let world = running(&["--before-restore", "echo not now >&2; exit 7"]);
    let _stops = Stops(&world);
    let (before, points, pid) = (facts(&world.path("blog")), world.points("blog"), runs(&world));
    let ran = world.run(&["restore", "blog", "--yes"]).fails("HookFailed", 1);
    assert!(ran.stderr.contains("not now"), "{ran:#?}");
    assert_eq!(facts(&world.path("blog")), before);
    assert_eq!((world.points("blog"), runs(&world)), (points, pid), "no safety point, never stopped");
    no_workplace(&world.path("blog"));
    world.run(&["undo", "blog", "--yes"]).fails("NothingToUndo", 4);
}

#[test]
fn a_hook_that_fails_after_a_restore_makes_it_partial() {
    let world = running(&["--after-restore", "echo no cache to clear >&2; exit 1"]);
    let _stops = Stops(&world);
    let ran = world.run(&["restore", "blog", "--yes", "--json"]).ends(3);
    let report = json(&ran);
    let problems = report["problems"].as_array().unwrap();
    assert!(problems.iter().any(|p| p["kind"] == "hook"), "{report:#}");
    assert_eq!(report["healthy"], true);
    assert_eq!(fs::read(world.path("blog/well")).unwrap(), b"then");
    assert!(runs(&world).is_some());
    let job = report["job"].as_str().unwrap();
    let log = world.ok(&["job", "log", job]);
    assert!(log.contains("The after-restore hook of app `blog` ended"), "{log}");
}

#[test]
fn an_app_that_does_not_listen_is_killed() {
    let world = running(&["--grace", "1s"]);
    let _stops = Stops(&world);
    world.run(&["app", "stop", "blog"]).ok();
    let deaf = "trap '' TERM INT HUP; echo up > ../deaf; while :; do sleep 0.2; done";
    world.run(&["app", "set", "blog", "--command", deaf]).ok();
    world.run(&["app", "start", "blog"]).ok();
    let before = runs(&world).unwrap();
    world.run(&["restore", "blog", "--yes"]).ok();
    let stat = fs::read_to_string(format!("/proc/{before}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "the old one is gone: {stat}");
    assert!(runs(&world).is_some_and(|pid| pid != before));
    assert_eq!(fs::read(world.path("blog/well")).unwrap(), b"then");
}

const SYSTEMCTL: &str = r#"#!/bin/sh
dir=$(dirname "$0")
show() { printf 'LoadState=loaded\nActiveState=%s\nSubState=x\nMainPID=%s\nResult=success\n' "$1" "$2" > "$dir/state"; }
[ -f "$dir/state" ] || show active 4711
case "$*" in
*" show "*) cat "$dir/state" ;;
*" stop "*)
    echo "Job for blog.service canceled." >&2
    exit 1 ;;
*" start "*) show active 4712 ;;
esac
"#;

#[test]
fn an_app_that_does_not_stop_is_left_as_it_is() {
    let world = World::with_blog();
    world.write("bin/systemctl", SYSTEMCTL.as_bytes());
    fs::set_permissions(world.path("bin/systemctl"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", world.path("bin").display(), std::env::var("PATH").unwrap());
    let run = |words: &[&str]| Ran::of(world.command(words).env("PATH", &path).output().unwrap());
    run(&["app", "add", "blog", "blog", "--systemd", "blog.service"]).ok();
    run(&["backup", "blog"]).ok();
    world.write("blog/index.html", b"now\n");
    let (before, points) = (facts(&world.path("blog")), world.points("blog"));
    run(&["restore", "blog", "--yes"]).fails("AppStopFailed", 1);
    assert_eq!(facts(&world.path("blog")), before);
    assert_eq!(world.points("blog"), points, "the safety point of nothing is gone");
    no_workplace(&world.path("blog"));
    run(&["undo", "blog", "--yes"]).fails("NothingToUndo", 4);
}

#[test]
fn a_restore_that_was_killed_before_its_commit_is_no_way_back() {
    // Killed by its own hook of another kind: the command that stops the app kills the restore.
    let world = World::with_blog();
    world.write(
        "bin/systemctl",
        SYSTEMCTL.replace("exit 1 ;;", "kill -9 $PPID; sleep 1; exit 1 ;;").as_bytes(),
    );
    fs::set_permissions(world.path("bin/systemctl"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", world.path("bin").display(), std::env::var("PATH").unwrap());
    let run = |words: &[&str]| Ran::of(world.command(words).env("PATH", &path).output().unwrap());
    run(&["app", "add", "blog", "blog", "--systemd", "blog.service"]).ok();
    run(&["backup", "blog"]).ok();
    let points = world.points("blog");
    world.write("blog/index.html", b"now\n");
    let before = facts(&world.path("blog"));
    run(&["restore", "blog", "--yes"]).ends(-9);
    world.write("blog/later.html", b"later\n");
    let ran = run(&["undo", "blog", "--yes"]).fails("NothingToUndo", 4);
    assert!(ran.stderr.contains("was stopped before it changed anything"), "{ran:#?}");
    assert_eq!(world.points("blog"), points);
    assert_eq!(fs::read(world.path("blog/later.html")).unwrap(), b"later\n");
    fs::remove_file(world.path("blog/later.html")).unwrap();
    let mut after = facts(&world.path("blog"));
    let root = Path::new("").to_owned();
    after.insert(root.clone(), before[&root].clone());
    assert_eq!(after, before);
    no_workplace(&world.path("blog"));
}

#[test]
fn a_restore_that_is_finished_by_the_next_command_runs_its_hook() {
    let world = running(&["--after-restore", "echo after $BACKSTAY_POINT >> ../hooks"]);
    let _stops = Stops(&world);
    // Killed by the app that it starts: all is in its place, and the hook has not run.
    world.run(&["app", "stop", "blog"]).ok();
    let kills = "[ ! -f ../kill ] || { rm ../kill; kill -9 $(cat ../pid); }; exec sleep 1000";
    world.run(&["app", "set", "blog", "--command", kills]).ok();
    world.run(&["app", "start", "blog"]).ok();
    let point = world.points("blog").remove(0);
    world.write("kill", b"");
    let mut command = Command::new("sh");
    let line = "echo $$ > pid; exec \"$0\" restore blog --yes";
    let program = world.command(["status"]);
    command.args(["-c", line]).arg(program.get_program()).current_dir(world.path("")).env_clear();
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Ran::of(command.output().unwrap()).ends(-9);
    assert!(!world.path("hooks").exists());
    assert_eq!(fs::read(world.path("blog/well")).unwrap(), b"then");
    let ran = world.run(&["list", "blog"]).ok();
    assert!(ran.stderr.contains("the after-restore hook has run"), "{ran:#?}");
    assert!(ran.stderr.contains("the app runs again"), "{ran:#?}");
    assert_eq!(fs::read_to_string(world.path("hooks")).unwrap(), format!("after {point}\n"));
    assert!(runs(&world).is_some());
    let ran = world.run(&["list", "blog"]).ok();
    assert!(!ran.stderr.contains("hook"), "once: {ran:#?}");
    world.run(&["undo", "blog", "--yes"]).ok();
    assert_eq!(fs::read(world.path("blog/well")).unwrap(), b"now");
}

#[test]
fn a_new_app_gets_the_rules_and_the_hook_of_the_one_it_comes_from() {
    let world = World::with_blog();
    let home = world.path("blog").display().to_string();
    world.write("blog/config.ini", format!("host = blog.example\npath = {home}/data\n").as_bytes());
    let hook = "echo $BACKSTAY_APP > made-by-hook; [ \"$PWD\" = \"$BACKSTAY_TARGET\" ]";
    let add = ["app", "add", "blog", "blog", "--after-restore", hook];
    let rules = [
        ["--replace", "config.ini", "{app}.example", "{app}.test"],
        ["--replace", "*.ini", "{home}", "{home}"],
        ["--replace", "none.ini", "a", "b"],
    ];
    world.run(&[&add[..], &rules.concat()].concat()).ok();
    world.run(&["backup", "blog"]).ok();
    let ran = world.run(&["restore", "blog", "--to", "copy", "--directory", "copies/one"]).ok();
    assert!(ran.stderr.contains("none.ini"), "a rule that names nothing is told: {ran:#?}");
    let one = world.path("copies/one");
    let config = format!("host = copy.test\npath = {}/data\n", one.display());
    assert_eq!(fs::read_to_string(one.join("config.ini")).unwrap(), config);
    assert_eq!(fs::read_to_string(one.join("made-by-hook")).unwrap(), "copy\n");
    let untouched = format!("host = blog.example\npath = {home}/data\n");
    assert_eq!(fs::read_to_string(world.path("blog/config.ini")).unwrap(), untouched);
    // Into a folder that is no app nothing is changed.
    world.run(&["restore", "blog", "--directory", "plain"]).ok();
    assert_eq!(fs::read_to_string(world.path("plain/config.ini")).unwrap(), untouched);
    assert!(!world.path("plain/made-by-hook").exists());
    // A hook that fails makes the result partial, and the app is there.
    world.run(&["app", "set", "blog", "--after-restore", "exit 5"]).ok();
    let ran = world.run(&["restore", "blog", "--to", "second", "--json"]).ends(3);
    assert!(json(&ran)["problems"].as_array().unwrap().iter().any(|p| p["kind"] == "hook"), "{ran:#?}");
    world.run(&["app", "show", "second"]).ok();
}

#[test]
fn the_filter_that_an_automatic_point_obeyed_counts_at_its_restore() {
    let world = World::with_blog();
    world.write("blog/uploads/a", b"then");
    world.write("blog/_backup.filter", b"/uploads\n");
    world.run(&["app", "add", "blog", "blog", "--filter-automatic", "on"]).ok();
    world.run(&["backup", "blog"]).ok();
    assert!(!world.ok(&["files", "blog", "-r"]).contains("uploads"), "it is not in the point");
    // The target says nothing of it now, the point does.
    world.write("blog/_backup.filter", b"/elsewhere\n");
    world.write("blog/uploads/a", b"now");
    world.write("blog/uploads/b", b"new");
    world.write("blog/elsewhere/x", b"kept by the filter of now");
    world.write("blog/gone.txt", b"goes");
    let plan = world.json(&["restore", "blog", "--dry-run"]);
    let kept: Vec<_> = plan["kept"].as_array().unwrap().iter().map(|k| k["path"].as_str().unwrap()).collect();
    assert_eq!(kept, ["elsewhere", "uploads"], "{plan:#}");
    let now = facts(&world.path("blog"));
    world.run(&["restore", "blog", "--yes"]).ok();
    let read = |path: &str| fs::read(world.path("blog").join(path)).unwrap_or_default();
    assert_eq!((read("uploads/a"), read("uploads/b")), (b"now".to_vec(), b"new".to_vec()));
    assert_eq!(read("elsewhere/x"), b"kept by the filter of now");
    assert_eq!(read("_backup.filter"), b"/uploads\n");
    assert!(!world.path("blog/gone.txt").exists());
    world.run(&["undo", "blog", "--yes"]).ok();
    assert_eq!(facts(&world.path("blog")), now);
}
