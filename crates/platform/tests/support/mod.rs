//! An app in a folder of its own, which is stopped when the test ends, however it ends.
#![allow(dead_code, clippy::unwrap_used, clippy::panic, reason = "helpers of several test files")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use backstay_model::app::{AppConfig, CommandLine, CommandRuntime, Runtime as Kind};
use backstay_model::{AppName, Cancel};
use backstay_platform::{Runtime, State};
use tempfile::TempDir;

pub(crate) struct App {
    pub(crate) runtime: Runtime,
    pub(crate) dir: TempDir,
}

/// An app with an empty home.
pub(crate) fn app(kind: Kind) -> App {
    let dir = backstay_testing::temp_dir();
    let home = dir.path().canonicalize().unwrap().join("home");
    std::fs::create_dir(&home).unwrap();
    let config = AppConfig { runtime: kind, ..AppConfig::default() };
    let name = AppName::suggest("blog");
    App { runtime: Runtime::new(&dir.path().join("state"), name, home, config), dir }
}

/// An app that runs a shell line, with a short time to stop.
pub(crate) fn running(line: &str) -> App {
    app(Kind::Command(CommandRuntime { grace: Duration::from_secs(2), ..command(line) }))
}

pub(crate) fn command(line: &str) -> CommandRuntime {
    CommandRuntime::new(CommandLine::Line(line.to_owned()))
}

impl App {
    pub(crate) fn home(&self, name: &str) -> PathBuf {
        self.runtime.home.join(name)
    }

    pub(crate) fn start(&self) -> backstay_model::Result<bool> {
        backstay_platform::start(&self.runtime, &Cancel::new())
    }

    pub(crate) fn stop(&self) -> backstay_model::Result<backstay_platform::WasRunning> {
        backstay_platform::stop(&self.runtime, &Cancel::new())
    }

    pub(crate) fn state(&self) -> State {
        self.condition().state
    }

    pub(crate) fn condition(&self) -> backstay_platform::Condition {
        backstay_platform::state(&self.runtime, &Cancel::new()).unwrap()
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.condition().pid.unwrap()).unwrap()
    }

    /// The command runtime, to be changed.
    pub(crate) fn command(&mut self) -> &mut CommandRuntime {
        match &mut self.runtime.config.runtime {
            Kind::Command(it) => it,
            other => panic!("{other:?}"),
        }
    }

    /// A text that the app writes into its home, once it is there and ends with a newline.
    pub(crate) fn told(&self, name: &str) -> String {
        let mut text = String::new();
        wait_for(&format!("{name} in the home"), || {
            text = std::fs::read_to_string(self.home(name)).unwrap_or_default();
            text.ends_with('\n')
        });
        text.trim_end().to_owned()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        // A test that failed has its own message.
        let _failed_before = self.stop();
    }
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(30), "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a process is there and has not ended.
pub(crate) fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with(['Z', 'X']))
}

/// How many processes have that text among their arguments.
pub(crate) fn with_argument(text: &str) -> usize {
    let mut found = 0;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        found += usize::from(words.split(|b| *b == 0).any(|w| w == text.as_bytes()));
    }
    found
}
