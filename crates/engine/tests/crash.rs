//! The first run stopped at every system call, and other things that need the seams.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backstay_engine::{BackupRequest, Clock, Engine, ManualClock, Selector, Setup, SystemClock};
use backstay_model::{Cancel, Code, Result, Silent};
use backstay_tree::fs::{Faulty, FileSystem, Host, Kill};

fn engine_on(fs: Arc<dyn FileSystem>, clock: Arc<dyn Clock>, dir: &Path) -> Result<Engine> {
    Engine::new(Setup { state: Some(dir.join("home")), vault: None, clock, fs })
}

fn back_up(engine: &Engine, dir: &Path) -> Result<()> {
    engine.backup(&BackupRequest::of(&dir.join("app")), &Silent, &Cancel::new()).map(|_report| ())
}

fn world() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("app")).unwrap();
    std::fs::write(dir.path().join("app/file"), "content").unwrap();
    dir
}

/// After whatever happened, a healthy process completes it and everything is as it should be.
fn completes(dir: &Path, what: &str) {
    let engine = engine_on(Arc::new(Host), Arc::new(SystemClock), dir).unwrap();
    back_up(&engine, dir).unwrap_or_else(|e| panic!("{what}: {e:?}"));
    let listing = engine.list(Some("app")).unwrap();
    assert!((1..=3).contains(&listing.points.len()), "{what}: {} points", listing.points.len());
    assert!(listing.damaged.is_empty());
    let mut content = Vec::new();
    engine.cat("app", &Selector::Latest(0), "file", &mut content).unwrap();
    assert_eq!(content, b"content", "{what}");
    let check = engine.vault_check(true, &Silent, &Cancel::new()).unwrap();
    assert!(check.clean, "{what}: {:?}", check.report.errors);
    assert_eq!(engine.keys().unwrap().len(), 1, "{what}: keys of an interrupted first run stay");
    let secrets = std::fs::read_dir(dir.join("home")).unwrap().flatten();
    let left: Vec<_> =
        secrets.map(|e| e.file_name()).filter(|n| n.to_string_lossy().starts_with(".secrets")).collect();
    assert!(left.len() <= 1, "{what}: {left:?}");
}

#[test]
fn a_first_run_stopped_at_any_system_call_is_completed_by_the_next() {
    let dir = world();
    let fs = Arc::new(Faulty::new(Arc::new(Host)));
    back_up(&engine_on(fs.clone(), Arc::new(SystemClock), dir.path()).unwrap(), dir.path()).unwrap();
    let calls = fs.points();
    assert!(calls > 30, "only {calls} calls were counted");
    for how in [Kill::Before, Kill::After] {
        for number in 1..=calls {
            let dir = world();
            let fs = Arc::new(Faulty::new(Arc::new(Host)));
            fs.kill_at(number, how);
            let died = engine_on(fs.clone(), Arc::new(SystemClock), dir.path())
                .and_then(|e| back_up(&e, dir.path()));
            if died.is_ok() {
                // The last calls are those of the lock and the cache, after the point was committed.
                assert!(number + 12 > calls, "call {number} of {calls} failed and nobody noticed");
            }
            let at = fs.killed_at().map(|l| format!("{l:?}")).unwrap_or_default();
            completes(dir.path(), &format!("stopped at call {number} of {calls} ({how:?}, {at})"));
        }
    }
    println!("{calls} system calls of a first run, each stopped before and after");
}

#[test]
fn a_first_run_that_loses_power_is_completed_by_the_next() {
    let dir = world();
    let fs = Arc::new(Faulty::new(Arc::new(Host)));
    back_up(&engine_on(fs.clone(), Arc::new(SystemClock), dir.path()).unwrap(), dir.path()).unwrap();
    let calls = fs.points();
    let mut lost = 0;
    for number in 1..=calls {
        let dir = world();
        let aside = tempfile::tempdir_in(dir.path()).unwrap();
        let fs = Arc::new(Faulty::with_power_loss(Arc::new(Host), aside.path()).unwrap());
        fs.kill_at(number, Kill::Before);
        let died =
            engine_on(fs.clone(), Arc::new(SystemClock), dir.path()).and_then(|e| back_up(&e, dir.path()));
        lost += u32::from(died.is_err());
        fs.power_loss().unwrap();
        completes(dir.path(), &format!("power lost at call {number} of {calls}"));
    }
    println!("power lost at {calls} system calls of a first run, {lost} of them before its end");
}

/// Does `work` on a state with two points, stopped at every system call before and after.
fn stopped_at_every_call(work: impl Fn(&Engine) -> Result<()>, holds: impl Fn(&Engine, &str)) -> u64 {
    let prepared = || {
        let dir = world();
        let engine = engine_on(Arc::new(Host), Arc::new(SystemClock), dir.path()).unwrap();
        back_up(&engine, dir.path()).unwrap();
        back_up(&engine, dir.path()).unwrap();
        dir
    };
    let dir = prepared();
    let fs = Arc::new(Faulty::new(Arc::new(Host)));
    work(&engine_on(fs.clone(), Arc::new(SystemClock), dir.path()).unwrap()).unwrap();
    let calls = fs.points();
    for how in [Kill::Before, Kill::After] {
        for number in 1..=calls {
            let dir = prepared();
            let fs = Arc::new(Faulty::new(Arc::new(Host)));
            fs.kill_at(number, how);
            let what = match engine_on(fs, Arc::new(SystemClock), dir.path()).and_then(|e| work(&e)) {
                Ok(()) => format!("call {number} of {calls} ({how:?}), which nobody noticed"),
                Err(e) => format!("call {number} of {calls} ({how:?}): {e:?}"),
            };
            let engine = engine_on(Arc::new(Host), Arc::new(SystemClock), dir.path()).unwrap();
            holds(&engine, &what);
            assert!(engine.vault_check(true, &Silent, &Cancel::new()).unwrap().clean, "{what}");
            completes(dir.path(), &what);
        }
    }
    calls
}

#[test]
fn a_pin_stopped_at_any_system_call_leaves_one_point_pinned_or_not() {
    let newest = Selector::Latest(0);
    let calls = stopped_at_every_call(
        |engine| engine.pin("app", &newest, true, &Cancel::new()).map(|_point| ()),
        |engine, what| {
            assert_eq!(engine.list(Some("app")).unwrap().points.len(), 2, "{what}");
            engine.pin("app", &newest, false, &Cancel::new()).unwrap();
            engine.pin("app", &newest, true, &Cancel::new()).unwrap();
            let points = engine.list(Some("app")).unwrap().points;
            assert_eq!((points.len(), points[0].point.pinned), (2, true), "{what}");
            // Nothing of the interrupted change is left: deleting the point deletes all of it.
            engine.pin("app", &newest, false, &Cancel::new()).unwrap();
            engine.delete("app", &newest, &Cancel::new()).unwrap();
            assert_eq!(engine.list(Some("app")).unwrap().points.len(), 1, "{what}");
        },
    );
    println!("{calls} system calls of a pin, each stopped before and after");
}

#[test]
fn a_delete_stopped_at_any_system_call_deletes_one_point_or_none() {
    let newest = Selector::Latest(0);
    let calls = stopped_at_every_call(
        |engine| engine.delete("app", &newest, &Cancel::new()).map(|_point| ()),
        |engine, what| {
            let left = engine.list(Some("app")).unwrap().points.len();
            assert!((1..=2).contains(&left), "{what}: {left} points");
        },
    );
    println!("{calls} system calls of a delete, each stopped before and after");
}

#[test]
fn a_clock_that_is_set_back_loses_no_point() {
    let dir = world();
    let clock =
        Arc::new(ManualClock::new("2026-11-20T12:00:00Z".parse().unwrap(), Duration::from_secs(1_000)));
    let engine = engine_on(Arc::new(Host), clock.clone(), dir.path()).unwrap();
    back_up(&engine, dir.path()).unwrap();
    for wall in ["2020-01-01T00:00:00Z", "2031-01-01T00:00:00Z", "1970-01-01T00:00:01Z"] {
        clock.set_wall(wall.parse().unwrap());
        back_up(&engine, dir.path()).unwrap();
    }
    let points = engine.list(Some("app")).unwrap().points;
    assert_eq!(points.len(), 4);
    let times: Vec<String> = points.iter().map(|p| p.point.time.to_string()).collect();
    assert_eq!(
        times,
        ["2031-01-01T00:00:00Z", "2026-11-20T12:00:00Z", "2020-01-01T00:00:00Z", "1970-01-01T00:00:01Z"]
    );
    assert!(engine.jobs(10).unwrap().iter().all(|j| j.state == backstay_model::JobState::Succeeded));
    engine.vault_prune(false, &Silent, &Cancel::new()).unwrap();
    for n in 0..4 {
        assert!(
            engine.verify("app", &Selector::Latest(n), &Silent, &Cancel::new()).unwrap().problems.is_empty()
        );
    }
}

#[test]
fn cancelled_before_it_begins_nothing_is_begun() {
    let dir = world();
    let engine = engine_on(Arc::new(Host), Arc::new(SystemClock), dir.path()).unwrap();
    let cancel = Cancel::new();
    cancel.cancel();
    let error = engine.backup(&BackupRequest::of(&dir.path().join("app")), &Silent, &cancel).unwrap_err();
    assert_eq!(error.code(), Code::Cancelled);
    assert!(engine.jobs(10).unwrap().is_empty());
}

#[test]
fn a_full_disk_is_told_and_loses_nothing() {
    use backstay_tree::fs::{Call, Fault};
    let dir = world();
    let healthy = engine_on(Arc::new(Host), Arc::new(SystemClock), dir.path()).unwrap();
    back_up(&healthy, dir.path()).unwrap();
    std::fs::write(dir.path().join("app/file2"), "more").unwrap();
    let fs = Arc::new(Faulty::new(Arc::new(Host)));
    fs.fail(Fault::of(Call::WriteAt, 28));
    let engine = engine_on(fs, Arc::new(SystemClock), dir.path()).unwrap();
    let error = back_up(&engine, dir.path()).unwrap_err();
    assert!(matches!(error.code(), Code::StorageFull), "{error:?}");
    assert_eq!(healthy.list(Some("app")).unwrap().points.len(), 1);
    assert_eq!(healthy.jobs(1).unwrap()[0].code.as_deref(), Some("StorageFull"));
    back_up(&healthy, dir.path()).unwrap();
}
