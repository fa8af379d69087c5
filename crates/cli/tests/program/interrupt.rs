//! Stopped, killed, resumed.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Ran, World};

/// A world with an app that takes a while to back up, after a first small point.
fn slow_world() -> World {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    let mut random = backstay_testing::fixtures::Random::new(7);
    for n in 0..24 {
        world.write(&format!("blog/data/{n}"), &random.bytes(6_000_000));
    }
    world
}

fn start(world: &World, args: &[&str]) -> Child {
    world.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until the vault has grown, so that the job is in the middle of its work.
fn wait_until_it_writes(world: &World) {
    let packs = || {
        let found = std::process::Command::new("find")
            .arg(world.path("home/vault/data"))
            .args(["-type", "f"])
            .output();
        found.unwrap().stdout.split(|b| *b == b'\n').count()
    };
    let (before, started) = (packs(), Instant::now());
    while packs() == before {
        assert!(started.elapsed() < Duration::from_secs(60), "the backup never wrote");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn newest_job(world: &World) -> serde_json::Value {
    world.json(&["job", "list"])["jobs"][0].clone()
}

#[test]
fn ctrl_c_stops_a_backup_with_nothing_half_done() {
    for signal in [Signal::INT, Signal::TERM] {
        let world = slow_world();
        let child = start(&world, &["backup", "blog"]);
        wait_until_it_writes(&world);
        kill_process(Pid::from_child(&child), signal).unwrap();
        let ran = Ran::of(child.wait_with_output().unwrap()).fails("Cancelled", 130);
        assert!(ran.stdout.is_empty(), "{ran:?}");
        assert_eq!(world.points("blog").len(), 1, "no point came of it");
        assert_eq!(newest_job(&world)["state"], "cancelled");
        assert_eq!(std::fs::read_dir(world.path("home/vault/locks")).unwrap().count(), 0, "its lock is gone");
        world.run(&["verify", "blog"]).ok();
        world.run(&["backup", "blog"]).ok();
        world.run(&["restore", "blog", "--directory", "out"]).ok();
        world.assert_same(world.path("blog"), world.path("out"));
    }
}

#[test]
fn another_process_can_stop_a_job() {
    let world = slow_world();
    for n in 24..72 {
        world.write(&format!("blog/data/{n}"), &backstay_testing::fixtures::Random::new(n).bytes(6_000_000));
    }
    let child = start(&world, &["backup", "blog"]);
    wait_until_it_writes(&world);
    let job = newest_job(&world);
    assert_eq!(job["state"], "running");
    world.run(&["backup", "blog"]).fails("AppBusy", 1);
    world.run(&["job", "cancel", &job["id"].as_str().unwrap()[..10]]).ok();
    Ran::of(child.wait_with_output().unwrap()).fails("Cancelled", 130);
    assert_eq!(newest_job(&world)["state"], "cancelled");
    world.run(&["job", "cancel", job["id"].as_str().unwrap()]).fails("Conflict", 1);
    assert_eq!(world.points("blog").len(), 1);
}

#[test]
fn a_stopped_restore_leaves_no_folder() {
    let world = slow_world();
    world.run(&["backup", "blog"]).ok();
    let child = start(&world, &["restore", "blog", "--directory", "out"]);
    let started = Instant::now();
    while !std::fs::read_dir(world.path(""))
        .unwrap()
        .flatten()
        .any(|e| e.file_name().to_string_lossy().starts_with(".out."))
    {
        assert!(started.elapsed() < Duration::from_secs(30), "the restore never began");
        std::thread::sleep(Duration::from_millis(1));
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    Ran::of(child.wait_with_output().unwrap()).fails("Cancelled", 130);
    let left: Vec<_> = std::fs::read_dir(world.path("")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(!left.iter().any(|n| n.to_string_lossy().contains("out")), "{left:?}");
}

#[test]
fn killed_at_any_moment_the_next_run_needs_no_help() {
    let world = slow_world();
    let started = Instant::now();
    world.run(&["backup", "blog"]).ok();
    let takes = started.elapsed();
    let mut points = world.points("blog").len();
    let mut random = backstay_testing::fixtures::Random::new(99);
    let mut killed = 0;
    for round in 1..=8_u32 {
        for n in 0..24 {
            world.write(&format!("blog/data/{n}"), &random.bytes(6_000_000));
        }
        let mut child = start(&world, &["backup", "blog"]);
        std::thread::sleep(takes * round / 9);
        killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        let now = world.points("blog").len();
        assert!(now == points || now == points + 1, "{now} after {points}");
        points = now;
        let jobs = world.json(&["job", "list"]);
        assert!(jobs["jobs"].as_array().unwrap().iter().all(|j| j["state"] != "running"), "{jobs}");
        world.run(&["verify", "blog"]).ok();
    }
    println!("{killed} of 8 were killed while they worked");
    assert!(killed >= 5, "only {killed} were killed while they worked");
    world.run(&["backup", "blog"]).ok();
    world.run(&["restore", "blog", "--directory", "out"]).ok();
    world.assert_same(world.path("blog"), world.path("out"));
    assert_eq!(std::fs::read_dir(world.path("home/vault/locks")).unwrap().count(), 0);
}

#[test]
fn a_killed_restore_leaves_only_a_hidden_folder_that_the_next_one_removes() {
    let world = slow_world();
    world.run(&["backup", "blog"]).ok();
    let hidden = || {
        let entries = std::fs::read_dir(world.path(""))
            .unwrap()
            .flatten()
            .map(|e| e.file_name().into_string().unwrap());
        entries.filter(|n| n.starts_with(".out.restore-")).count()
    };
    let mut child = start(&world, &["restore", "blog", "--directory", "out"]);
    while hidden() == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!world.path("out").exists(), "half a folder never has the name");
    assert_eq!(hidden(), 1);
    world.run(&["restore", "blog", "--directory", "out"]).ok();
    assert_eq!(hidden(), 0);
    world.assert_same(world.path("blog"), world.path("out"));
}
