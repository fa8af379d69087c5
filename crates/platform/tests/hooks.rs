//! Hooks, as their owners meet them.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use backstay_model::app::{CommandLine, Hook, Moment, Runtime as Kind};
use backstay_model::{Cancel, Code, JobId, PointId};
use backstay_platform::{HookTarget, OUTPUT_MAX, run_hook};
use support::{App, app, with_argument};

fn hooked(line: &str) -> App {
    let mut app = app(Kind::Static);
    app.runtime.config.hooks.before_backup = Some(Hook::new(CommandLine::Line(line.to_owned())));
    app
}

fn run(app: &App, about: &HookTarget<'_>) -> backstay_model::Result<String> {
    run_hook(&app.runtime, Moment::BeforeBackup, about, &Cancel::new()).map(|o| o.unwrap().output)
}

#[test]
fn a_hook_knows_the_work_and_nothing_else() {
    let app = hooked("pwd; env");
    let target = app.dir.path().canonicalize().unwrap();
    let about = HookTarget {
        job: Some(JobId::from_bytes([1; 16])),
        point: Some(PointId::from_bytes([2; 16])),
        target: Some(&target),
        failed: false,
    };
    let told = run(&app, &about).unwrap();
    let (folder, rest) = told.split_once('\n').unwrap();
    assert_eq!(folder, target.to_str().unwrap());
    let seen: BTreeMap<_, _> = rest.lines().filter_map(|l| l.split_once('=')).collect();
    assert_eq!(seen["BACKSTAY_APP"], "blog");
    assert_eq!(seen["BACKSTAY_HOME_DIR"], app.runtime.home.to_str().unwrap());
    assert_eq!(seen["BACKSTAY_JOB"], "01010101010101010101010101010101");
    assert_eq!(seen["BACKSTAY_POINT"], "02020202020202020202020202020202");
    assert_eq!(seen["BACKSTAY_TARGET"], target.to_str().unwrap());
    assert_eq!(seen["BACKSTAY_FAILED"], "0");
    let known = ["PATH", "HOME", "LANG", "PWD", "SHLVL", "_", "OLDPWD"];
    let ours = |name: &&&str| !name.starts_with("BACKSTAY_") && !known.contains(name);
    assert_eq!(seen.keys().filter(ours).count(), 0, "{seen:?}");
    let alone = run(&app, &HookTarget::default()).unwrap();
    assert!(
        alone.starts_with(app.runtime.home.to_str().unwrap()) && !alone.contains("BACKSTAY_POINT"),
        "{alone}"
    );
    assert_eq!(run_hook(&app.runtime, Moment::AfterRestore, &about, &Cancel::new()).unwrap(), None);
}

#[test]
fn a_hook_that_fails_says_what_it_said() {
    let app = hooked("echo dumping; echo no database >&2; exit 4");
    let error = run(&app, &HookTarget::default()).unwrap_err();
    assert_eq!(error.code(), Code::HookFailed);
    assert_eq!(error.message(), "The before-backup hook of app `blog` ended with status 4");
    assert_eq!(error.causes(), ["dumping\nno database"]);
    let mut missing = hooked("");
    let words = CommandLine::Words(vec!["no-such-program".into()]);
    missing.runtime.config.hooks.before_backup = Some(Hook::new(words));
    let error = run(&missing, &HookTarget::default()).unwrap_err();
    assert_eq!(error.message(), "The before-backup hook of app `blog` cannot be run");
    let killed = run(&hooked("kill -9 $$"), &HookTarget::default()).unwrap_err();
    assert!(killed.message().ends_with("ended with signal 9"), "{killed:?}");
}

#[test]
fn a_hook_that_takes_too_long_goes_with_all_it_started() {
    let mut app = hooked("echo begun; sleep 3171 & sleep 3172");
    app.runtime.config.hooks.before_backup.as_mut().unwrap().timeout = Duration::from_secs(1);
    let started = Instant::now();
    let error = run(&app, &HookTarget::default()).unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(8));
    assert_eq!(error.message(), "The before-backup hook of app `blog` took longer than 1 s and was killed");
    assert_eq!(error.causes(), ["begun"]);
    assert_eq!((with_argument("3171"), with_argument("3172")), (0, 0));
}

#[test]
fn only_the_end_of_much_output_is_kept() {
    let told = run(&hooked("yes line | head -c 5000000; echo the end"), &HookTarget::default()).unwrap();
    assert!(told.len() <= OUTPUT_MAX + 64 && told.ends_with("the end"), "{}", told.len());
    assert!(told.starts_with("[the beginning is left out]"));
}

/// The other half of the next test: runs only as its child, which is killed while the hook runs.
#[test]
fn hooks_when_asked() {
    if std::env::var_os("BACKSTAY_TEST_HOOK").is_none() {
        return;
    }
    let ended = run(&hooked("exec sleep 3173"), &HookTarget::default());
    panic!("{ended:?}");
}

#[test]
fn a_hook_does_not_go_on_when_we_are_killed() {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "hooks_when_asked"])
        .env("BACKSTAY_TEST_HOOK", "1")
        .spawn()
        .unwrap();
    support::wait_for("the hook", || with_argument("3173") == 1);
    child.kill().unwrap();
    child.wait().unwrap();
    support::wait_for("its end", || with_argument("3173") == 0);
}
