//! What only a file can show: damage, versions, modes, dead processes, clocks, kills.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_model::{Code, JobState};
use jiff::Timestamp;
use tempfile::TempDir;

use super::Sqlite;
use crate::conformance::{self, app, job, point};
use crate::{
    Catalog as _, LEASE, ManualClock, Owner, PRODUCTION, PointChanges, SettingKind, SystemClock, Work,
};

fn open(dir: &TempDir) -> backstay_model::Result<Sqlite> {
    Sqlite::open(&dir.path().join("hosting.db"), Arc::new(SystemClock))
}

#[test]
fn sqlite_keeps_the_promises() {
    let dirs = std::sync::Mutex::new(Vec::new());
    conformance::suite(|| {
        let dir = TempDir::new().unwrap();
        let state = open(&dir).unwrap();
        dirs.lock().unwrap().push(dir);
        state
    });
}

#[test]
fn the_file_is_private_and_so_are_its_side_files() {
    let dir = TempDir::new().unwrap();
    let state = open(&dir).unwrap();
    state.add_app(&app("blog", None)).unwrap();
    let mut seen = 0;
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
        seen += 1;
    }
    assert!(seen >= 2, "the main file and its log");
}

#[test]
fn what_was_written_is_there_after_closing_and_opening_is_quick() {
    let dir = TempDir::new().unwrap();
    let state = open(&dir).unwrap();
    state.add_app(&app("blog", Some("/srv/blog"))).unwrap();
    state.close().unwrap();
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let started = Instant::now();
        let state = open(&dir).unwrap();
        best = best.min(started.elapsed());
        assert_eq!(state.apps().unwrap().len(), 1);
        state.close().unwrap();
    }
    println!("opening takes {best:?}");
    assert!(best < Duration::from_millis(10), "opening takes {best:?}");
}

#[test]
fn many_that_open_a_new_state_at_once_all_succeed() {
    let dir = TempDir::new().unwrap();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let dir = &dir;
            scope.spawn(move || open(dir).unwrap().add_app(&app(&format!("app{n}"), None)).unwrap());
        }
    });
    assert_eq!(open(&dir).unwrap().apps().unwrap().len(), 8);
}

#[test]
fn a_newer_version_is_unsupported_and_untouched() {
    let dir = TempDir::new().unwrap();
    let state = open(&dir).unwrap();
    state
        .write(async |db| {
            sqlx::query(
                "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                         VALUES (99, 'future', 1, x'00', 0)",
            )
            .execute(db)
            .await?;
            Ok(())
        })
        .unwrap();
    state.close().unwrap();
    let before = std::fs::read(dir.path().join("hosting.db")).unwrap();
    assert_eq!(open(&dir).err().map(|e| e.code()), Some(Code::StateUnsupported));
    assert!(std::fs::read(dir.path().join("hosting.db")).unwrap() == before, "not a byte was changed");
}

#[test]
fn a_state_from_before_settings_opens_and_keeps_what_it_has() {
    let dir = TempDir::new().unwrap();
    let state = open(&dir).unwrap();
    state.add_app(&app("blog", Some("/srv/blog"))).unwrap();
    state
        .write(async |db| {
            sqlx::query("DROP TABLE settings").execute(&mut *db).await?;
            sqlx::query("DELETE FROM _sqlx_migrations WHERE version >= 5").execute(db).await?;
            Ok(())
        })
        .unwrap();
    state.close().unwrap();
    let state = open(&dir).unwrap();
    let blog = app("blog", Some("/srv/blog"));
    assert_eq!(state.apps().unwrap(), std::slice::from_ref(&blog));
    let new = conformance::setting(SettingKind::Setting, "A", "sealed");
    state.set_setting(&blog.name, PRODUCTION, &new).unwrap();
    assert_eq!(state.settings(&blog.name, PRODUCTION).unwrap(), [new]);
}

#[test]
fn damage_is_told_as_damage_with_advice() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("hosting.db");
    std::fs::write(&path, vec![b'x'; 8192]).unwrap();
    let error = open(&dir).err().unwrap();
    assert_eq!(error.code(), Code::StateDamaged);
    assert!(error.advice().contains("rebuilt from the vault"), "{}", error.advice());

    // Pages in the middle are gone: opening may not see it, using it must not give wrong answers or panic.
    std::fs::remove_file(&path).unwrap();
    let state = open(&dir).unwrap();
    let many = (0..200).map(|n| point("blog", n)).collect();
    state.change_points("v", &PointChanges { add: many, remove: vec![] }, &[app("blog", None)]).unwrap();
    state.close().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096..].fill(0xA5);
    std::fs::write(&path, bytes).unwrap();
    let used = open(&dir).and_then(|s| s.points("v"));
    assert_eq!(used.err().map(|e| e.code()), Some(Code::StateDamaged));
}

#[test]
fn a_job_of_a_dead_process_is_ended_by_the_next_that_looks() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("hosting.db");
    let mut child = Command::new("true").spawn().unwrap();
    let dead = Owner { pid: child.id(), ..Owner::current() };
    child.wait().unwrap();
    let before = Sqlite::open_as(&path, Arc::new(SystemClock), dead).unwrap();
    let lost = before.begin_job(&job(1, Some("blog"), true)).unwrap();
    before.close().unwrap();

    let state = open(&dir).unwrap();
    let next = state.begin_job(&job(2, Some("blog"), true)).unwrap();
    assert!(next.token > lost.token);
    let lost = state.job(&lost.id).unwrap().unwrap();
    assert_eq!((lost.state, lost.code.as_deref()), (JobState::Failed, Some("LeaseLost")));
    assert_eq!(lost.message.as_deref(), Some("Interrupted: its process is gone"));
    assert!(state.expire_jobs().unwrap().is_empty());
}

#[test]
fn a_lease_runs_out_by_time_since_boot_and_not_by_the_wall_clock() {
    let dir = TempDir::new().unwrap();
    let start: Timestamp = "2026-11-20T12:00:00Z".parse().unwrap();
    let clock = Arc::new(ManualClock::new(start, Duration::from_secs(500)));
    let state = Sqlite::open(&dir.path().join("hosting.db"), clock.clone()).unwrap();
    let it = state.begin_job(&job(1, Some("blog"), true)).unwrap();

    for wall in ["2020-01-01T00:00:00Z", "2036-01-01T00:00:00Z"] {
        clock.set_wall(wall.parse().unwrap());
        assert!(state.expire_jobs().unwrap().is_empty(), "the clock was set to {wall}");
        assert!(!state.renew_job(&it.id, it.token, &Work::default()).unwrap());
    }
    clock.pass(LEASE - Duration::from_secs(1));
    assert!(state.expire_jobs().unwrap().is_empty());
    clock.pass(Duration::from_secs(1));
    assert_eq!(state.expire_jobs().unwrap().len(), 1);
    assert_eq!(
        state.renew_job(&it.id, it.token, &Work::default()).err().map(|e| e.code()),
        Some(Code::LeaseLost)
    );
}

/// The other half of the next test: runs only as its child, writes until it is killed.
#[test]
fn writes_for_ever_when_asked() {
    let Some(path) = std::env::var_os("BACKSTAY_TEST_WRITE_TO") else { return };
    let state = Sqlite::open(path.as_ref(), Arc::new(SystemClock)).unwrap();
    for n in 0.. {
        let new = crate::NewJob {
            id: backstay_model::JobId::from_bytes(u128::to_be_bytes(
                u128::from(std::process::id()) << 64 | n,
            )),
            ..job(0, Some("blog"), true)
        };
        let it = state.begin_job(&new).unwrap();
        let end = crate::End { state: JobState::Succeeded, message: None, code: None };
        state.end_job(&it.id, it.token, &Work::default(), &end).unwrap();
        println!("{}", it.token);
    }
}

#[test]
fn killed_at_any_moment_it_opens_clean_and_tokens_only_grow() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("hosting.db");
    let mut newest = 0;
    for round in 0..40_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sqlite::tests::writes_for_ever_when_asked", "--nocapture"])
            .env("BACKSTAY_TEST_WRITE_TO", &path)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(5 + round * 3));
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        let last = told.rsplit_once('\n').and_then(|(whole, _)| whole.lines().last()?.parse::<i64>().ok());
        newest = newest.max(last.unwrap_or(0));

        let state = open(&dir).unwrap();
        let whole: String = state
            .read(async |db| {
                use sqlx::Row as _;
                Ok(sqlx::query("PRAGMA integrity_check").fetch_one(db).await?.try_get(0)?)
            })
            .unwrap();
        assert_eq!(whole, "ok");
        let it = state.begin_job(&job(u8::try_from(round).unwrap(), Some("blog"), true)).unwrap();
        assert!(it.token > newest, "{} after {newest}", it.token);
        newest = it.token;
        let end = crate::End { state: JobState::Succeeded, message: None, code: None };
        state.end_job(&it.id, it.token, &Work::default(), &end).unwrap();
        assert!(state.jobs(5_000).unwrap().iter().all(|j| j.state != JobState::Running));
    }
    assert!(newest > 80, "the child did real work: {newest} tokens");
}
