//! Custom backups and their removal, stopped at every system call and by losing power: what is listed is whole, and the
//! next backup leaves nothing of what was stopped.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

use std::path::Path;
use std::sync::Arc;

use backstay_engine::{CustomRequest, CustomView, Engine, SealBy, Setup};
use backstay_model::{Cancel, Occasion, Result, Silent};
use backstay_testing::quick_dir;
use backstay_tree::fs::{Call, Fault, Faulty, FileSystem, Host, Kill};

fn engine_on(fs: Arc<dyn FileSystem>, dir: &Path) -> Result<Engine> {
    Engine::new(Setup { state: Some(dir.join("home")), fs, ..Setup::default() })
}

fn healthy(dir: &Path) -> Engine {
    engine_on(Arc::new(Host), dir).unwrap()
}

fn take(engine: &Engine, dir: &Path, name: &str) -> Result<()> {
    let (app, shelf) = (dir.join("app"), dir.join("shelf"));
    let request = CustomRequest {
        target: &app,
        named: None,
        container: shelf.to_str().unwrap(),
        name: Some(name),
        seal: &SealBy::Server,
        databases: true,
        occasion: Occasion::Manual,
    };
    engine.custom_backup(&request, &Silent, &Cancel::new()).map(drop)
}

/// A state with one custom backup.
fn world() -> tempfile::TempDir {
    let dir = quick_dir();
    for folder in ["app", "shelf"] {
        std::fs::create_dir(dir.path().join(folder)).unwrap();
    }
    std::fs::write(dir.path().join("app/file"), "content").unwrap();
    take(&healthy(dir.path()), dir.path(), "before").unwrap();
    dir
}

fn listed(engine: &Engine, dir: &Path) -> Vec<CustomView> {
    let listing = engine.list_container(dir.join("shelf").to_str().unwrap()).unwrap();
    assert!(listing.damaged.is_empty(), "{:?}", listing.damaged);
    listing.custom
}

/// Everything listed verifies; after a further backup the container holds what is listed and nothing else.
fn all_is_well(dir: &Path, what: &str) {
    let engine = healthy(dir);
    for view in listed(&engine, dir) {
        let name = view.custom.name.clone();
        let verified = engine.custom_verify(view, &Silent, &Cancel::new()).unwrap();
        assert!(verified.whole, "{what}: {name}: {:?}", verified.findings);
    }
    take(&engine, dir, "after").unwrap_or_else(|e| panic!("{what}: {e:?}"));
    let mut names: Vec<String> = listed(&engine, dir).into_iter().map(|v| v.custom.name).collect();
    names.sort();
    let mut expected: Vec<String> =
        names.iter().flat_map(|n| ["log", "xml", "zip"].map(|e| format!("{n}.{e}"))).collect();
    expected.sort();
    let mut there: Vec<String> = std::fs::read_dir(dir.join("shelf"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        // Of this very process, which lives.
        .filter(|n| !n.starts_with(".tmp-"))
        .collect();
    there.sort();
    assert_eq!(there, expected, "{what}");
    let mut known: Vec<String> =
        engine.custom_backups(None).unwrap().into_iter().map(|v| v.custom.name).collect();
    known.sort();
    assert_eq!(known, names, "{what}");
}

/// The job of a process that died, which in these tests is this one: it ends it itself.
fn stopped(work: &dyn Fn(&Engine, &Path) -> Result<()>, mut check: impl FnMut(&Path, &str)) -> u64 {
    let dir = world();
    let fs = Arc::new(Faulty::new(Arc::new(Host)));
    work(&engine_on(fs.clone(), dir.path()).unwrap(), dir.path()).unwrap();
    let calls = fs.points();
    for how in [Kill::Before, Kill::After] {
        for number in 1..=calls {
            let dir = world();
            let fs = Arc::new(Faulty::new(Arc::new(Host)));
            fs.kill_at(number, how);
            let done = engine_on(fs.clone(), dir.path()).and_then(|e| work(&e, dir.path()));
            let at = fs.killed_at().map(|l| format!("{l:?}")).unwrap_or_default();
            check(dir.path(), &format!("call {number} of {calls} ({how:?}, {at}): {done:?}"));
        }
    }
    calls
}

#[test]
fn a_backup_stopped_at_any_system_call_is_whole_or_leaves_nothing() {
    let calls = stopped(&|engine, dir| take(engine, dir, "new"), |dir, what| {
        let names: Vec<String> = listed(&healthy(dir), dir).into_iter().map(|v| v.custom.name).collect();
        assert!(names.contains(&"before".to_owned()), "{what}");
        all_is_well(dir, what);
    });
    println!("{calls} system calls of a custom backup, each stopped before and after");
}

#[test]
fn a_removal_stopped_at_any_system_call_is_ended_by_the_next_backup() {
    let remove = |engine: &Engine, _: &Path| {
        let view = engine.find_custom("app", "before")?.unwrap();
        engine.custom_delete(view, &Cancel::new()).map(drop)
    };
    let mut both = [0, 0];
    let calls = stopped(&remove, |dir, what| {
        all_is_well(dir, what);
        let there = listed(&healthy(dir), dir).iter().any(|v| v.custom.name == "before");
        both[usize::from(there)] += 1;
    });
    println!("{calls} system calls of a removal: {} gone, {} there", both[0], both[1]);
    assert!(both[0] > 0);
}

#[test]
fn power_lost_at_any_system_call_leaves_what_was_listed_whole() {
    let dir = world();
    let fs = Arc::new(Faulty::new(Arc::new(Host)));
    take(&engine_on(fs.clone(), dir.path()).unwrap(), dir.path(), "new").unwrap();
    let calls = fs.points();
    for number in 1..=calls {
        let dir = world();
        let aside = tempfile::tempdir_in(dir.path()).unwrap();
        let fs = Arc::new(Faulty::with_power_loss(Arc::new(Host), aside.path()).unwrap());
        fs.kill_at(number, Kill::Before);
        let done = engine_on(fs.clone(), dir.path()).and_then(|e| take(&e, dir.path(), "new"));
        fs.power_loss().unwrap();
        all_is_well(dir.path(), &format!("power lost at call {number} of {calls}: {done:?}"));
    }
    println!("power lost at {calls} system calls of a custom backup");
}

#[test]
fn a_full_container_is_told_and_nothing_of_the_backup_stays() {
    let dir = world();
    let fs = Arc::new(Faulty::new(Arc::new(Host)));
    fs.fail(Fault::of(Call::WriteAt, 28));
    let error = take(&engine_on(fs, dir.path()).unwrap(), dir.path(), "new").unwrap_err();
    assert_eq!(error.code(), backstay_model::Code::StorageFull, "{error:?}");
    all_is_well(dir.path(), "a full disk");
    let jobs = healthy(dir.path()).jobs(10).unwrap();
    assert!(jobs.iter().any(|j| j.code.as_deref() == Some("StorageFull")), "{jobs:?}");
}

#[test]
fn a_lease_that_was_lost_commits_nothing_and_touches_nothing_of_its_successor() {
    let dir = world();
    // The hook runs in the middle of the job; it ends the job behind its back, as another process would that takes it for dead.
    let engine = healthy(dir.path());
    let db = dir.path().join("home/hosting.db");
    let line = format!(
        "python3 -c \"import sqlite3; c = sqlite3.connect('{}'); c.execute(\\\"update jobs set state = 'failed' where state = 'running'\\\"); c.commit()\"",
        db.display()
    );
    let name = "app".parse().unwrap();
    engine
        .app_set(&name, &mut |config| {
            let command = backstay_model::app::CommandLine::Line(line.clone());
            config.hooks.before_backup = Some(backstay_model::app::Hook::new(command));
            Ok(())
        })
        .unwrap();
    let error = take(&engine, dir.path(), "new").unwrap_err();
    assert_eq!(error.code(), backstay_model::Code::LeaseLost, "{error:?}");
    let names: Vec<String> = listed(&engine, dir.path()).into_iter().map(|v| v.custom.name).collect();
    assert_eq!(names, ["before"]);
    engine
        .app_set(&name, &mut |config| {
            config.hooks.before_backup = None;
            Ok(())
        })
        .unwrap();
    all_is_well(dir.path(), "a lost lease");
}
