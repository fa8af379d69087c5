//! restic, from the search path or where `BACKSTAY_RESTIC` says. Always there: the test script installs it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::{Outcome, run};

/// restic with a repository, its password in the environment and a cache of its own.
#[derive(Debug)]
pub struct Restic {
    repository: PathBuf,
    password: String,
    cache: TempDir,
}

impl Restic {
    /// For the repository at that path, which need not exist yet. Panics when restic is not installed.
    #[must_use]
    pub fn new(repository: impl Into<PathBuf>, password: &str) -> Self {
        let restic =
            Restic { repository: repository.into(), password: password.to_owned(), cache: crate::temp_dir() };
        let version = restic.command(["version"]).output();
        assert!(
            version.is_ok_and(|v| v.status.success()),
            "restic is not installed: run ./test, which installs it"
        );
        restic
    }

    /// A command with everything set but not started, for tests that kill it or run it beside another.
    pub fn command(&self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let program = std::env::var_os("BACKSTAY_RESTIC").unwrap_or_else(|| "restic".into());
        let mut command = Command::new(program);
        command
            .env("RESTIC_REPOSITORY", &self.repository)
            .env("RESTIC_PASSWORD", &self.password)
            .env("RESTIC_CACHE_DIR", self.cache.path())
            .args(words);
        command
    }

    /// Runs any restic command.
    pub fn run(&self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Outcome {
        run(&mut self.command(words))
    }

    /// Runs a restic command whose standard output is JSON: one value, or one per line.
    #[track_caller]
    pub fn json(&self, words: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Vec<Value> {
        let out = run(self.command(words).arg("--json")).ok();
        let values = serde_json::Deserializer::from_str(&out.stdout).into_iter::<Value>();
        values.map(|v| v.unwrap_or_else(|e| panic!("restic wrote no JSON ({e}): {}", out.stdout))).collect()
    }

    /// Makes a repository of format version 2.
    #[track_caller]
    pub fn init(&self) {
        self.init_version(2);
    }

    /// Makes a repository of format version 1 (never compressed) or 2.
    #[track_caller]
    pub fn init_version(&self, version: u32) {
        self.run(["init", "--repository-version", &version.to_string()]).ok();
    }

    /// Takes a snapshot of the entries of a folder (which are then the root of the snapshot's tree) and gives back
    /// its id. `options` are added to the command: `["--compression", "off"]`, say.
    #[track_caller]
    pub fn backup(&self, folder: &Path, options: &[&str]) -> String {
        let mut command = self.command(["backup", "--json"]);
        let out = run(command.args(options).arg(".").current_dir(folder)).ok();
        let summary = out.stdout.lines().last().unwrap_or_default();
        let summary: Value = serde_json::from_str(summary).unwrap_or_else(|e| panic!("{e}: {summary}"));
        summary["snapshot_id"].as_str().expect("restic tells the snapshot's id").to_owned()
    }

    /// Restores a snapshot into a folder, with holes where this restic can ([`Restic::makes_holes`]).
    pub fn restore(&self, snapshot: &str, target: &Path) -> Outcome {
        let mut command = self.command(["restore", snapshot, "--target"]);
        command.arg(target);
        if self.makes_holes() {
            command.arg("--sparse");
        }
        run(&mut command)
    }

    /// Whether this restic restores holes as holes (0.15 and newer).
    #[must_use]
    pub fn makes_holes(&self) -> bool {
        self.run(["restore", "--help"]).stdout.contains("--sparse")
    }

    /// `restic check --read-data`: every byte of the repository.
    pub fn check_read_data(&self) -> Outcome {
        self.run(["check", "--read-data"])
    }

    /// The snapshots as restic's JSON shows them, oldest first.
    #[track_caller]
    pub fn snapshots(&self) -> Vec<Value> {
        match self.json(["snapshots"]).into_iter().next() {
            Some(Value::Array(list)) => list,
            other => panic!("restic shows no list of snapshots: {other:?}"),
        }
    }

    /// The paths in a snapshot as restic lists them. Names that are not UTF-8 are not faithful here.
    #[track_caller]
    pub fn files(&self, snapshot: &str) -> Vec<String> {
        let nodes = self.json(["ls", snapshot]);
        nodes.iter().filter_map(|n| n["path"].as_str()).map(str::to_owned).collect()
    }

    /// `restic forget --keep-last N --prune` with every unused byte removed.
    #[track_caller]
    pub fn forget_and_prune(&self, keep_last: u32) {
        let keep = keep_last.to_string();
        let words = ["forget", "--keep-last", &keep, "--group-by", "", "--prune", "--max-unused", "0"];
        self.run(words).ok();
    }
}

#[cfg(test)]
mod tests {
    use backstay_tree::compare;

    use super::*;
    use crate::fixtures;

    /// restic keeps nothing about the root of a snapshot's tree.
    fn beside_the_root() -> compare::Options {
        compare::Options { root: false, ..compare::Options::default() }
    }

    #[test]
    fn keeps_restores_forgets_and_checks() {
        let dir = crate::temp_dir();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        std::fs::create_dir(&source).unwrap();
        let files = fixtures::small(&source, 1, 50);
        let restic = Restic::new(dir.path().join("repo"), "a password");
        restic.init();
        let first = restic.backup(&source, &[]);
        fixtures::change(&source, 1, &files);
        let second = restic.backup(&source, &["--compression", "off"]);
        assert_eq!(restic.snapshots().len(), 2);
        assert!(restic.files(&first).contains(&"/app".to_owned()));
        restic.forget_and_prune(1);
        let ids: Vec<_> = restic.snapshots().iter().map(|s| s["id"].as_str().unwrap().to_owned()).collect();
        assert!(matches!(ids.as_slice(), [id] if id.starts_with(&second)), "{ids:?}");
        restic.check_read_data().ok();
        restic.restore("latest", &target).ok();
        let differences = compare::trees(&source, &target, &beside_the_root());
        assert!(differences.is_empty(), "{differences:#?}");
        assert!(!Restic::new(dir.path().join("repo"), "wrong").run(["snapshots"]).is_ok());
    }
}
