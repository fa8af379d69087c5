//! A folder to run the program in, and what a run gave.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A folder with a state and sources, and the program to run on them.
pub(crate) struct World {
    dir: TempDir,
    root: PathBuf,
}

/// What a run gave.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl World {
    pub(crate) fn new() -> Self {
        World::within(backstay_testing::temp_dir())
    }

    /// In a folder made for it.
    pub(crate) fn within(dir: TempDir) -> Self {
        let root = dir.path().canonicalize().unwrap();
        World { dir, root }
    }

    /// With an app's folder `blog` of a few files.
    pub(crate) fn with_blog() -> Self {
        let world = World::new();
        world.write("blog/index.html", b"<h1>hello</h1>\n");
        world.write("blog/img/logo.png", &[0x89; 3000]);
        std::os::unix::fs::symlink("index.html", world.path("blog/start")).unwrap();
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// The program with the state `home` of this world; the current folder is the world's.
    pub(crate) fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        self.command_at("home", args)
    }

    /// The program with another state.
    pub(crate) fn command_at<A: AsRef<OsStr>>(
        &self,
        home: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_backstay"));
        command.current_dir(&self.root).args(args).env_clear();
        command.env("BACKSTAY_HOME", self.path(home)).env("TZ", "UTC").env("HOME", &self.root);
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("USER", "tester");
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().unwrap())
    }

    pub(crate) fn run_at(&self, home: &str, args: &[&str]) -> Ran {
        Ran::of(self.command_at(home, args).output().unwrap())
    }

    /// A run that is given a line on standard input.
    pub(crate) fn run_with(&self, home: &str, args: &[&str], input: &str) -> Ran {
        let mut command = self.command_at(home, args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A command that does not read its input may have ended already.
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap_or_default();
        Ran::of(child.wait_with_output().unwrap())
    }

    /// A run that must end well; gives its standard output.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        self.run(args).ok().stdout
    }

    /// A run with `--json` that must end well.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["--json"]].concat())).unwrap()
    }

    /// The ids of an app's points, newest first.
    pub(crate) fn points(&self, app: &str) -> Vec<String> {
        let list = self.json(&["list", app]);
        list["points"].as_array().unwrap().iter().map(|p| p["id"].as_str().unwrap().to_owned()).collect()
    }

    /// A folder compared with another, in everything.
    pub(crate) fn assert_same(&self, a: impl AsRef<Path>, b: impl AsRef<Path>) {
        let differences = backstay_tree::compare::trees(
            a.as_ref(),
            b.as_ref(),
            &backstay_tree::compare::Options::default(),
        );
        assert!(differences.is_empty(), "{differences:#?}");
    }

    /// A text with what differs from run to run replaced.
    pub(crate) fn normal(&self, text: &str) -> String {
        text.replace(self.root.to_str().unwrap(), "[DIR]")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        backstay_testing::unlock(self.dir.path());
    }
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        Ran {
            status: output.status.code().unwrap_or_else(|| -output.status.signal().unwrap_or(0)),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        self.ends(0)
    }

    #[track_caller]
    pub(crate) fn ends(self, status: i32) -> Self {
        assert_eq!(self.status, status, "{self:#?}");
        self
    }

    /// Ends with an error of that code.
    #[track_caller]
    pub(crate) fn fails(self, code: &str, status: i32) -> Self {
        assert!(self.stderr.contains(&format!("\n  code: {code}\n")), "{code} is expected: {self:#?}");
        self.ends(status)
    }

    /// As one text for a snapshot.
    pub(crate) fn told(&self, world: &World, what: &str) -> String {
        let part = |name: &str, text: &str| match text {
            "" => String::new(),
            text => format!("--- {name}\n{}\n", text.trim_end()),
        };
        let text = format!(
            "$ backstay {what}\n{}{}--- status {}\n",
            part("stdout", &self.stdout),
            part("stderr", &self.stderr),
            self.status
        );
        world.normal(&text)
    }
}
