//! Foreign backup programs as witnesses: what they read and write is not our opinion of the format.

mod restic;
mod rustic;
mod smtp;

use std::process::{Command, Stdio};

pub use restic::Restic;
pub use rustic::Rustic;
pub use smtp::SmtpServer;

/// How a program ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The command, for messages.
    pub command: String,
    /// Its exit status; none when a signal ended it.
    pub status: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Outcome {
    /// Whether it ended with status 0.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.status == Some(0)
    }

    /// Panics with everything it said unless it ended with status 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(
            self.is_ok(),
            "`{}` ended with {:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.status,
            self.stdout,
            self.stderr
        );
        self
    }
}

/// Runs a command to its end with nothing on its standard input.
pub fn run(command: &mut Command) -> Outcome {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|w| w.to_string_lossy())
        .collect();
    let words = words.join(" ");
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("`{words}` could not be started: {e}"));
    Outcome {
        command: words,
        status: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
