//! An app with neighbours that nobody may touch.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_engine::{BackupRequest, Engine, InPlace, InPlaceReport, RestoreRequest, Setup, SystemClock};
use backstay_model::{Cancel, Result, Silent};
use backstay_testing::quick_dir;
use backstay_tree::apply::is_workplace;
use backstay_tree::compare;
use backstay_tree::fs::Host;

use crate::Must;

/// All that can be seen of each path.
type Canary = BTreeMap<PathBuf, (String, Vec<u8>)>;

pub(crate) struct World {
    dir: tempfile::TempDir,
    engine: Engine,
    outside: Canary,
}

impl World {
    pub fn new() -> World {
        let dir = quick_dir();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        for path in ["outside/secret", "outside/folder/secret", "srv/neighbour/index.html", "srv/app.conf"] {
            write(path, "nobody's business");
        }
        for (path, text) in [
            ("aa good", "old"),
            ("zz good", "old too"),
            ("dir/inner.txt", "inner"),
            ("file", "a file"),
            ("nested/index.html", "of another app"),
            ("dir/deep/x", "x"),
        ] {
            write(&format!("srv/app/{path}"), text);
        }
        let home = dir.path().join("srv/app");
        symlink("../../outside", home.join("out")).unwrap();
        symlink("../../outside/secret", home.join("dir/link")).unwrap();
        fs::hard_link(home.join("file"), home.join("dir/second")).unwrap();
        let setup = Setup {
            state: Some(dir.path().join("state")),
            vault: None,
            clock: Arc::new(SystemClock),
            fs: Arc::new(Host),
        };
        let engine = Engine::new(setup).unwrap();
        for home in [&home, &home.join("nested")] {
            engine.backup(&BackupRequest::of(home), &Silent, &Cancel::new()).unwrap();
        }
        // The last one is the one that is forged.
        engine.backup(&BackupRequest::of(&home), &Silent, &Cancel::new()).unwrap();
        assert!(
            Command::new("cp")
                .arg("-a")
                .arg(&home)
                .arg(dir.path().join("before"))
                .status()
                .unwrap()
                .success()
        );
        let mut world = World { dir, engine, outside: Canary::new() };
        world.outside = world.look_outside();
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    pub fn home(&self) -> PathBuf {
        self.path("srv/app")
    }
    pub fn state(&self, name: &str) -> PathBuf {
        self.path("state").join(name)
    }
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    fn look_outside(&self) -> Canary {
        let mut found = canary(&self.path("outside"));
        let srv = self.path("srv");
        for entry in fs::read_dir(&srv).unwrap().map(|e| e.unwrap()) {
            if entry.file_name() != "app" && !is_workplace(&entry.file_name()) {
                found.extend(canary(&entry.path()));
            }
        }
        // An app in the app.
        found.extend(canary(&self.home().join("nested")));
        found
    }

    /// How the app differs from what it was.
    fn changes(&self) -> Vec<String> {
        let found = compare::trees(&self.home(), &self.path("before"), &compare::Options::default());
        found.iter().map(ToString::to_string).collect()
    }

    fn workplaces(&self) -> usize {
        let count = |dir: PathBuf| {
            fs::read_dir(dir).unwrap().filter(|e| is_workplace(&e.as_ref().unwrap().file_name())).count()
        };
        count(self.home()) + count(self.path("srv"))
    }

    pub fn restore(&self, point: &str) -> Result<InPlaceReport> {
        let point = point.parse().unwrap();
        let request = RestoreRequest { app: "app", point: &point, paths: &[] };
        self.engine.restore_in_place(&request, &InPlace::default(), &Silent, &Cancel::new())
    }

    pub fn undo(&self) -> Result<InPlaceReport> {
        self.engine.undo("app", &InPlace::default(), &Silent, &Cancel::new())
    }

    pub fn outside_is_untouched(&self) -> bool {
        self.look_outside() == self.outside
    }

    /// Restores a point, looks, and takes it back. Says what is not as it must be; what must never be ends the test.
    pub fn restores(&self, point: &str, must: Must) -> std::result::Result<(), String> {
        let (began, journals) = (Instant::now(), self.workplaces());
        let result = self.restore(point);
        assert!(began.elapsed() < Duration::from_secs(60), "{point} took {:?}", began.elapsed());
        assert!(self.outside_is_untouched(), "something outside the home was changed: {result:?}");
        let report = match result {
            Err(e) => {
                assert_eq!(self.changes(), [""; 0], "refused, and changed all the same: {e:?}");
                assert_eq!(self.workplaces(), journals, "something is left: {e:?}");
                return match must {
                    Must::Refuse(code) if code == e.code() => Ok(()),
                    _ => Err(format!("{must:?}, but {:?} {e}", e.code())),
                };
            }
            Ok(report) => report,
        };
        let seen = self.seen(&report, must);
        let undone = self.undo().unwrap();
        assert!(undone.failures().is_empty(), "{:?}", undone.problems);
        assert_eq!(self.changes(), [""; 0], "after the undo");
        assert!(self.outside_is_untouched(), "the undo changed something outside the home");
        seen
    }

    /// The sound part must be there, with what else the case says.
    fn seen(&self, report: &InPlaceReport, must: Must) -> std::result::Result<(), String> {
        let read = |name: &str| fs::read(self.home().join(name)).unwrap_or_default();
        let problems = &report.problems;
        let Must::Restore { there, not, told } = must else {
            return Err(format!("{must:?}, but it was restored: {problems:?}"));
        };
        if (read("aa good"), read("zz good")) != (b"good".to_vec(), b"also good".to_vec()) {
            return Err(format!("what is sound is not there: {problems:?}"));
        }
        let exists = |path: &&&str| fs::symlink_metadata(self.home().join(path)).is_ok();
        if let Some(path) = there.iter().find(|path| !exists(path)) {
            return Err(format!("{path} should be there: {problems:?}"));
        }
        if let Some(path) = not.iter().find(exists) {
            return Err(format!("{path} should not be there: {problems:?}"));
        }
        if report.failures().is_empty() == told {
            return Err(format!("told: {problems:?}"));
        }
        Ok(())
    }
}

/// Everything of each entry but its time of access.
fn canary(root: &Path) -> Canary {
    let mut found = Canary::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let m = fs::symlink_metadata(&path).unwrap();
        let times = (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        let mut content = Vec::new();
        if m.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if m.is_file() {
            content = fs::read(&path).unwrap();
        }
        let text = format!("{:?}", (m.ino(), m.mode(), m.nlink(), m.uid(), m.gid(), times));
        found.insert(path, (text, content));
    }
    found
}
