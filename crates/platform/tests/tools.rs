//! The runtimes behind `systemctl` and `docker compose`.
//!
//! What these programs do when their service is there cannot be had on every machine, so a script of that name stands
//! first on PATH: it records how it was called and answers as the real one does. What they answer when their service
//! is not there is asked of the real ones, where they are installed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use backstay_model::app::Runtime as Kind;
use backstay_model::{Cancel, Code};
use backstay_platform::{State, wait_healthy};
use support::app;

const SYSTEMCTL: &str = r#"#!/bin/sh
echo "$*" >> "$FAKE/calls"
show() { printf 'LoadState=loaded\nActiveState=%s\nSubState=x\nMainPID=%s\nResult=%s\n' "$1" "$2" "$3" > "$FAKE/state"; }
[ -f "$FAKE/state" ] || show inactive 0 success
case "$*" in
*" show "*) cat "$FAKE/state" ;;
*" stop "*) [ -f "$FAKE/sticky" ] || show inactive 0 success ;;
*" start "*)
    if [ -f "$FAKE/broken" ]; then
        show failed 0 exit-code
        echo "Job for blog.service failed because the control process exited with error code." >&2
        exit 1
    fi
    show active 4711 success ;;
esac
"#;

const DOCKER: &str = r#"#!/bin/sh
echo "$*" >> "$FAKE/calls"
ps() { printf '{"Service":"web","State":"%s","ExitCode":%s}\n{"Service":"db","State":"%s","ExitCode":0}\n' "$1" "$2" "$1" > "$FAKE/state"; }
case "$*" in
*" ps "*) [ ! -f "$FAKE/state" ] || cat "$FAKE/state" ;;
*" stop") ps exited 143 ;;
*" start"|*" up --detach")
    if [ -f "$FAKE/broken" ]; then echo "Error response from daemon: no such image" >&2; exit 1; fi
    ps running 0 ;;
esac
"#;

/// Runs the test `name` of this file again in a process of its own in which `program` is the script.
fn with_fake(program: &str, script: &str, name: &str) {
    let dir = backstay_testing::temp_dir();
    let bin = dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join(program), script).unwrap();
    std::fs::set_permissions(bin.join(program), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("PATH", path)
        .env("FAKE", dir.path())
        .output()
        .unwrap();
    let told =
        format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && told.contains("1 passed"), "{told}");
}

fn fake() -> Option<PathBuf> {
    std::env::var_os("FAKE").map(PathBuf::from)
}

fn calls(fake: &Path) -> Vec<String> {
    let calls = std::fs::read_to_string(fake.join("calls")).unwrap_or_default();
    std::fs::write(fake.join("calls"), "").unwrap();
    calls.lines().map(str::to_owned).collect()
}

#[test]
fn a_unit_is_started_and_stopped() {
    with_fake("systemctl", SYSTEMCTL, "inner_systemd");
}

#[test]
fn inner_systemd() {
    let Some(fake) = fake() else { return };
    let app = app(Kind::Systemd { unit: "blog.service".into(), user: true });
    assert_eq!(app.state(), State::Stopped);
    let show = "--no-ask-password --no-pager --user show --property=LoadState,ActiveState,SubState,MainPID,Result -- blog.service";
    assert_eq!(calls(&fake), [show]);
    assert!(app.start().unwrap());
    let made = calls(&fake);
    assert_eq!(made[0], show);
    assert_eq!(made[1], "--no-ask-password --no-pager --user start -- blog.service");
    assert_eq!(app.condition().pid, Some(4711));
    assert!(!app.start().unwrap());
    assert_eq!(wait_healthy(&app.runtime, &Cancel::new()).unwrap().tries, 0);
    assert!(app.stop().unwrap().wanted);
    assert!(calls(&fake).contains(&"--no-ask-password --no-pager --user stop -- blog.service".to_owned()));
    assert_eq!(app.state(), State::Stopped);

    std::fs::write(fake.join("broken"), "").unwrap();
    let error = app.start().unwrap_err();
    assert_eq!(error.code(), Code::AppStartFailed);
    assert!(error.causes()[0].starts_with("Job for blog.service failed"), "{error:?}");
    assert_eq!(app.condition().detail.as_deref(), Some("unit `blog.service` is failed: exit-code"));
    let was = app.stop().unwrap();
    assert!(!was.running && was.wanted, "a unit that failed was meant to run");

    std::fs::remove_file(fake.join("broken")).unwrap();
    app.start().unwrap();
    std::fs::write(fake.join("sticky"), "").unwrap();
    let error = app.stop().unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::AppStopFailed, "Unit `blog.service` runs again"));
    std::fs::remove_file(fake.join("sticky")).unwrap();
}

#[test]
fn services_of_a_compose_file_are_started_and_stopped() {
    with_fake("docker", DOCKER, "inner_compose");
}

#[test]
fn inner_compose() {
    let Some(fake) = fake() else { return };
    let kind = Kind::Compose { file: "/srv/compose.yaml".into(), project: Some("blog".into()) };
    let app = app(kind);
    assert_eq!(app.state(), State::Stopped);
    let words = |verb: &str| format!("compose --file /srv/compose.yaml --project-name blog {verb}");
    assert_eq!(calls(&fake), [words("ps --all --format json")]);
    assert!(app.start().unwrap());
    assert_eq!(calls(&fake)[1], words("up --detach"), "nothing was there yet");
    assert_eq!(app.condition().detail.as_deref(), Some("up: web, db"));
    assert!(!app.start().unwrap());
    assert!(app.stop().unwrap().wanted);
    assert!(calls(&fake).contains(&words("stop")));
    assert_eq!(app.state(), State::Stopped);
    assert!(app.start().unwrap());
    assert!(calls(&fake).contains(&words("start")), "what is there is not made anew");
    app.stop().unwrap();

    std::fs::write(fake.join("broken"), "").unwrap();
    let error = app.start().unwrap_err();
    assert_eq!(error.code(), Code::AppStartFailed);
    assert!(error.causes()[0].contains("no such image"), "{error:?}");
    std::fs::write(fake.join("state"), "{\"Service\":\"web\",\"State\":\"exited\",\"ExitCode\":1}\n")
        .unwrap();
    assert_eq!(app.condition().detail.as_deref(), Some("ended by itself: web"));
    assert_eq!(app.state(), State::Failed);
}

/// The code of looking at an app whose service is not there; none where it is.
fn refused(kind: Kind) -> Option<Code> {
    backstay_platform::state(&app(kind).runtime, &Cancel::new()).err().map(|e| e.code())
}

#[test]
fn a_service_that_is_not_there_is_told_as_that() {
    if fake().is_some() {
        return;
    }
    let works =
        |program: &str, args: &[&str]| Command::new(program).args(args).output().map(|o| o.status.success());
    let unit = Kind::Systemd { unit: "blog.service".into(), user: false };
    match works("systemctl", &["show", "--property=Version"]) {
        Ok(true) => assert_eq!(
            backstay_platform::state(&app(unit).runtime, &Cancel::new()).unwrap().detail.as_deref(),
            Some("unit `blog.service` is not loaded: not-found")
        ),
        _ => assert_eq!(refused(unit), Some(Code::RuntimeUnavailable)),
    }
    let compose = Kind::Compose { file: "/nowhere/compose.yaml".into(), project: None };
    assert_eq!(refused(compose), Some(Code::RuntimeUnavailable), "no docker, no daemon, or no such file");
}
