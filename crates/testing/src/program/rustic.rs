//! rustic, where it is installed: `./test --rustic` builds it (some minutes), so tests that need it ask first.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::{Outcome, run};

/// rustic with a repository, its password in the environment and a home of its own.
#[derive(Debug)]
pub struct Rustic {
    program: PathBuf,
    repository: PathBuf,
    password: String,
    home: TempDir,
}

impl Rustic {
    /// For the repository at that path; none, and a line that says so, when rustic is not installed.
    ///
    /// Looked for in `$BACKSTAY_TOOLS/bin`, then `~/.cargo/bin`, then on the search path. With `BACKSTAY_NEED_RUSTIC`
    /// in the environment its absence is a failure: so the run that installs it cannot pass without it.
    #[must_use]
    pub fn find(repository: impl Into<PathBuf>, password: &str) -> Option<Self> {
        let places = [("BACKSTAY_TOOLS", "bin/rustic"), ("HOME", ".cargo/bin/rustic")];
        let program = places
            .iter()
            .filter_map(|(variable, file)| Some(PathBuf::from(std::env::var_os(variable)?).join(file)))
            .find(|p| p.exists())
            .unwrap_or_else(|| "rustic".into());
        if !Command::new(&program).arg("--version").output().is_ok_and(|o| o.status.success()) {
            let needed = std::env::var_os("BACKSTAY_NEED_RUSTIC").is_some();
            assert!(!needed, "rustic not installed, but this run needs it");
            println!("rustic not installed, this part is left out: ./test --rustic installs it and runs all");
            return None;
        }
        let home = crate::temp_dir();
        Some(Rustic { program, repository: repository.into(), password: password.to_owned(), home })
    }

    /// A command with everything set but not started.
    pub fn command(&self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env("HOME", self.home.path())
            .env("XDG_CONFIG_HOME", self.home.path())
            .env("RUSTIC_REPOSITORY", &self.repository)
            .env("RUSTIC_PASSWORD", &self.password)
            .env("RUSTIC_CACHE_DIR", self.home.path().join("cache"))
            .env("RUSTIC_NO_PROGRESS", "true")
            .env("RUSTIC_LOG_LEVEL", "warn")
            .args(words);
        command
    }

    /// Runs any rustic command.
    pub fn run(&self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Outcome {
        run(&mut self.command(words))
    }

    /// Makes a repository.
    #[track_caller]
    pub fn init(&self) {
        self.run(["init"]).ok();
    }

    /// Takes a snapshot of a folder, which is the root of the snapshot's tree.
    #[track_caller]
    pub fn backup(&self, folder: &Path) {
        run(self.command(["backup", "--as-path", "/"]).arg(folder)).ok();
    }

    /// Restores a snapshot (or `SNAPSHOT:PATH`) into a folder.
    pub fn restore(&self, snapshot: &str, target: &Path) -> Outcome {
        run(self.command(["restore", snapshot]).arg(target))
    }

    /// `rustic check --read-data`: every byte of the repository. It ends with status 0 whatever it finds, so look
    /// at what it says: nothing is good.
    pub fn check_read_data(&self) -> Outcome {
        self.run(["check", "--read-data"])
    }

    /// The snapshots as rustic's JSON shows them, in groups.
    #[track_caller]
    pub fn snapshots(&self) -> Value {
        let out = self.run(["snapshots", "--json"]).ok();
        serde_json::from_str(&out.stdout)
            .unwrap_or_else(|e| panic!("rustic wrote no JSON ({e}): {}", out.stdout))
    }

    /// `rustic forget --keep-last N`, then a prune that deletes at once.
    #[track_caller]
    pub fn forget_and_prune(&self, keep_last: u32) {
        self.run(["forget", "--keep-last", &keep_last.to_string()]).ok();
        self.run(["prune", "--instant-delete", "--max-unused", "0B"]).ok();
    }
}

#[cfg(test)]
mod tests {
    use backstay_tree::compare;

    use super::*;
    use crate::{Restic, fixtures};

    /// restic keeps nothing about the root of a snapshot's tree.
    fn beside_the_root() -> compare::Options {
        compare::Options { root: false, ..compare::Options::default() }
    }

    #[test]
    fn reads_what_restic_wrote_and_the_other_way_round() {
        let dir = crate::temp_dir();
        let (source, target, other) =
            (dir.path().join("source"), dir.path().join("target"), dir.path().join("other"));
        std::fs::create_dir(&source).unwrap();
        fixtures::small(&source, 1, 30);
        let Some(rustic) = Rustic::find(dir.path().join("repo"), "a password") else { return };
        let restic = Restic::new(dir.path().join("repo"), "a password");
        rustic.init();
        rustic.backup(&source);
        restic.check_read_data().ok();
        restic.restore("latest", &target).ok();
        restic.backup(&source, &[]);
        rustic.forget_and_prune(1);
        assert!(rustic.snapshots().as_array().is_some_and(|groups| !groups.is_empty()));
        rustic.restore("latest", &other).ok();
        for tree in [target, other] {
            let differences = compare::trees(&source, &tree, &beside_the_root());
            assert!(differences.is_empty(), "{differences:#?}");
        }
        let check = rustic.check_read_data().ok();
        assert!(!check.stderr.contains("ERROR") && !check.stdout.contains("ERROR"), "{check:?}");
    }
}
