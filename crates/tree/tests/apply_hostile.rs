//! Journals that Backstay did not write, or not this version of it: refused as a whole, and nothing is changed.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

mod apply_support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use apply_support::{copy, host, job, plan, same, stage};
use backstay_model::Code;
use backstay_testing::quick_dir;
use backstay_tree::apply::{Journal, Outcome, Workplace, list, recover};
use serde_json::{Value, json};

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    /// A committed job that nobody works on.
    fn new() -> Bench {
        let bench = Bench { dir: quick_dir() };
        for (tree, text) in [("all/home", "old"), ("target", "new"), ("all/outside", "outside")] {
            let tree = bench.path(tree);
            fs::create_dir_all(tree.join("a/b")).unwrap();
            for path in ["index.php", "a/b/c.txt"] {
                fs::write(tree.join(path), text).unwrap();
            }
        }
        symlink("../outside", bench.path("all/home/link")).unwrap();
        let (home, target) = (bench.path("all/home"), bench.path("target"));
        let mut changes = plan(&home, &target);
        changes.steps.retain(|s| s.path != Path::new("link"));
        let mut work = Workplace::prepare(host(), &home, &bench.path("jobs"), job(1), &Value::Null).unwrap();
        stage(&*host(), &target, &work.staging_path(), &changes).unwrap();
        drop(work.commit(&changes).unwrap());
        drop(work);
        copy(&bench.path("all"), &bench.path("before"));
        bench
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path("jobs").join(job(1).to_string()).join(name)
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.file(name)).unwrap()).unwrap()
    }

    /// Recovery refuses, twice, and nothing in or beside the home has changed.
    #[track_caller]
    fn is_refused(&self, codes: &[Code], what: &str) {
        let state = fs::read(self.file("journal.json")).unwrap();
        for _ in 0..2 {
            let mut found = recover(&host(), &self.path("jobs")).unwrap();
            assert_eq!(found.len(), 1, "{what}");
            let Some(Outcome::Stuck(e)) = found.pop().map(|r| r.outcome) else {
                panic!("{what}: not refused")
            };
            assert!(codes.contains(&e.code()), "{what}: {e:?}");
        }
        Journal::open(host(), &self.path("jobs"), job(1)).unwrap_err();
        list(&host(), &self.path("jobs")).unwrap();
        same(&self.path("all"), &self.path("before"), what);
        assert!(fs::read(self.file("journal.json")).unwrap() == state, "{what}: the journal was changed");
    }
}

#[test]
fn hostile_journals_are_refused() {
    type Change = fn(&mut Value);
    fn path(journal: &mut Value, path: impl Into<String>) {
        journal["steps"][0]["path"] = path.into().into();
    }
    let cases: Vec<(&str, Change)> = vec![
        ("out of the home", |j| path(j, "../outside/index.php")),
        ("out of it later", |j| path(j, "a/../../outside/index.php")),
        ("dots at the end", |j| path(j, "a/..")),
        ("absolute", |j| path(j, "/etc/passwd")),
        ("empty", |j| path(j, "")),
        ("empty component", |j| path(j, "a//b")),
        ("slash at the end", |j| path(j, "a/b/")),
        ("slash alone", |j| path(j, "/")),
        ("a dot", |j| path(j, "./index.php")),
        ("a dot alone", |j| path(j, ".")),
        ("NUL", |j| path(j, "a\\x00b")),
        ("a wrong escape", |j| path(j, "a\\q")),
        ("a workplace", |j| path(j, format!(".backstay-{}", "ab".repeat(16)))),
        ("in a workplace", |j| path(j, format!(".backstay-{}/staged/x", "01".repeat(16)))),
        ("absurdly long", |j| path(j, "x/".repeat(1 << 20) + "x")),
        ("a folder that is not recorded", |j| path(j, "link/index.php")),
        ("a path that is no text", |j| j["steps"][0]["path"] = json!(5)),
        ("steps below each other", |j| {
            let mut step = j["steps"][0].clone();
            step["path"] = "a".into();
            j["steps"].as_array_mut().unwrap().push(step);
        }),
        ("the same step twice", |j| {
            let step = j["steps"][0].clone();
            j["steps"].as_array_mut().unwrap().push(step);
        }),
        ("metadata below a step", |j| j["metadata"][0]["path"] = "index.php/x".into()),
        ("metadata of a step", |j| j["metadata"][0]["path"] = "index.php".into()),
        ("metadata out of the home", |j| j["metadata"][0]["path"] = "../outside".into()),
        ("metadata twice", |j| {
            let meta = j["metadata"][0].clone();
            j["metadata"].as_array_mut().unwrap().push(meta);
        }),
        ("no metadata", |j| j["metadata"] = json!([])),
        ("metadata of a link", |j| {
            let mut meta = j["metadata"][0].clone();
            (meta["path"], meta["id"]["kind"]) = ("link".into(), "symlink".into());
            j["metadata"].as_array_mut().unwrap().push(meta);
        }),
        ("an unknown kind", |j| j["steps"][0]["slot"]["kind"] = "door".into()),
        ("a wrong time", |j| j["metadata"][0]["old"]["mtime"] = json!([0, 1_000_000_000])),
        ("a negative inode", |j| j["steps"][0]["slot"]["inode"] = json!(-1)),
        ("a huge mode", |j| j["metadata"][0]["new"]["mode"] = json!(1u64 << 40)),
        ("turn 0", |j| j["turn"] = json!(0)),
        ("an unknown goal", |j| j["goal"] = "sideways".into()),
        ("no steps at all", |j| drop(j.as_object_mut().unwrap().remove("steps"))),
        ("a list", |j| *j = json!([1, 2, 3])),
        ("null", |j| *j = Value::Null),
    ];
    let count = cases.len();
    for (what, change) in cases {
        let bench = Bench::new();
        let mut journal = bench.json("journal.json");
        change(&mut journal);
        fs::write(bench.file("journal.json"), serde_json::to_vec(&journal).unwrap()).unwrap();
        bench.is_refused(&[Code::StateDamaged], what);
    }
    println!("{count} hostile journals");
}

#[test]
fn files_that_are_no_journals_are_refused() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for (what, bytes) in [
        ("empty", Vec::new()),
        ("half", br#"{"format":1,"turn":1,"goal":"new","ste"#.to_vec()),
        ("bytes", vec![0xff; 4096]),
        ("deep", deep.clone().into_bytes()),
        ("deep within", format!(r#"{{"format":1,"turn":{deep}}}"#).into_bytes()),
    ] {
        let bench = Bench::new();
        fs::write(bench.file("journal.json"), &bytes).unwrap();
        bench.is_refused(&[Code::StateDamaged], what);
        fs::write(bench.file("place.json"), &bytes).unwrap();
        bench.is_refused(&[Code::StateDamaged], what);
    }
    let bench = Bench::new();
    fs::File::options().write(true).open(bench.file("journal.json")).unwrap().set_len(3 << 30).unwrap();
    let found = recover(&host(), &bench.path("jobs")).unwrap();
    assert!(matches!(&found[0].outcome, Outcome::Stuck(e) if e.code() == Code::StateAccess), "{found:?}");
    same(&bench.path("all"), &bench.path("before"), "absurd size");
}

#[test]
fn newer_formats_are_unsupported_and_left_alone() {
    for file in ["journal.json", "place.json"] {
        let bench = Bench::new();
        let mut json = bench.json(file);
        json["format"] = json!(2);
        json["steps"] = json!("of another kind");
        fs::write(bench.file(file), serde_json::to_vec(&json).unwrap()).unwrap();
        bench.is_refused(&[Code::StateUnsupported], file);
    }
    let bench = Bench::new();
    fs::write(bench.file("state.json"), br#"{"format":9,"phase":"hibernating"}"#).unwrap();
    bench.is_refused(&[Code::StateUnsupported], "state.json");
}

#[test]
fn a_place_that_is_not_the_jobs_is_refused() {
    // Another folder than the recorded one, a folder that is not there, a home that is no path.
    for (what, change) in [
        ("another inode", json!({"inode": 1})),
        ("another folder", json!({"home": "/"})),
        ("nothing", json!({"home": "/nonexistent/home"})),
        ("relative", json!({"home": "../../all/outside"})),
        ("empty", json!({"home": ""})),
    ] {
        let bench = Bench::new();
        let mut place = bench.json("place.json");
        place.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        fs::write(bench.file("place.json"), serde_json::to_vec(&place).unwrap()).unwrap();
        bench.is_refused(&[Code::RestoreUnfinished], what);
    }
    // The workplace is not the one of the commit.
    let bench = Bench::new();
    let mut journal = bench.json("journal.json");
    journal["workplace"] = json!(1);
    fs::write(bench.file("journal.json"), serde_json::to_vec(&journal).unwrap()).unwrap();
    bench.is_refused(&[Code::RestoreUnfinished], "workplace");
    // A link in its place.
    let bench = Bench::new();
    let name = format!("all/.backstay-{}", job(1));
    fs::rename(bench.path(&name), bench.path("moved")).unwrap();
    symlink("../moved", bench.path(&name)).unwrap();
    let found = recover(&host(), &bench.path("jobs")).unwrap();
    assert!(
        matches!(&found[0].outcome, Outcome::Stuck(e) if e.code() == Code::RestoreUnfinished),
        "{found:?}"
    );
    assert_eq!(fs::read(bench.path("all/home/index.php")).unwrap(), b"old");
    // What is no job is not looked at.
    let bench = Bench::new();
    fs::rename(bench.path("jobs").join(job(1).to_string()), bench.path("jobs/notes")).unwrap();
    fs::write(bench.path("jobs/README"), "mine").unwrap();
    assert!(recover(&host(), &bench.path("jobs")).unwrap().is_empty());
    assert!(bench.path("jobs/README").exists() && bench.path("jobs/notes/journal.json").exists());
}

/// Whoever may rename in the home's folder puts another folder under the workplace's name.
#[test]
fn only_the_workplace_is_deleted() {
    for (committed, bait) in [(false, "all/precious"), (true, "all/precious"), (false, "all/outside")] {
        let bench = Bench::new();
        if !committed {
            fs::remove_file(bench.file("journal.json")).unwrap();
        } else {
            fs::write(bench.file("state.json"), br#"{"format":1,"turn":1,"phase":"discarding"}"#).unwrap();
        }
        fs::create_dir_all(bench.path("all/precious/staged")).unwrap();
        fs::write(bench.path("all/precious/data"), "x").unwrap();
        fs::write(bench.path("all/precious/staged/data"), "x").unwrap();
        let mode = if bait == "all/outside" { 0o755 } else { 0o700 };
        fs::set_permissions(bench.path(bait), fs::Permissions::from_mode(mode)).unwrap();
        let name = format!("all/.backstay-{}", job(1));
        fs::rename(bench.path(&name), bench.path("moved")).unwrap();
        fs::rename(bench.path(bait), bench.path(&name)).unwrap();
        let found = recover(&host(), &bench.path("jobs")).unwrap();
        let [found] = &found[..] else { panic!("{found:?}") };
        assert!(matches!(&found.outcome, Outcome::Stuck(e) if e.code() == Code::System), "{found:?}");
        let kept = if bait == "all/precious" { "data" } else { "index.php" };
        assert!(bench.path(&name).join(kept).exists(), "{committed} {bait}");
        if committed {
            assert!(bench.path(&name).join("staged/data").exists());
        }
        fs::rename(bench.path(&name), bench.path("bait")).unwrap();
        fs::rename(bench.path("moved"), bench.path(&name)).unwrap();
        let found = recover(&host(), &bench.path("jobs")).unwrap();
        assert!(matches!(found[0].outcome, Outcome::Discarded | Outcome::NotCommitted), "{found:?}");
        assert!(!bench.path(&name).exists());
    }
}
