//! Exchanges killed at each call that changes something, and brought to either side from there.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use backstay_database::connection::parse;
use backstay_database::sqlite::Sqlite;
use backstay_database::{ConnectionType, Database, Exchange, Options, Side};
use backstay_testing::quick_dir;

use crate::writer::{Writer, database, whole};
use crate::{child, only};

const LIVE: &str = "app.db";
const STAGED: &str = "app.db.bs_0badcafe_new";
const KEPT: &str = "app.db.bs_0badcafe_old";
/// What changes something in a folder.
const CALLS: &str = "renameat2,renameat,unlinkat,mkdirat,fsync";

fn open(folder: &Path) -> (Sqlite, Exchange) {
    let address = format!("sqlite://{}/{LIVE}", folder.display());
    let endpoint = parse(&address, ConnectionType::Custom).unwrap();
    let it = Sqlite::new(&endpoint, None, child(), Options::default()).unwrap();
    let exchange = it.exchange_names("0badcafe");
    (it, exchange)
}

/// The child's side: `FOLDER new|old|discard`.
pub fn main(words: &[OsString]) {
    step(Path::new(&words[0]), words[1].to_str().unwrap());
}

fn step(folder: &Path, what: &str) {
    let (mut it, exchange) = open(folder);
    match what {
        "new" => it.exchange(&exchange, Side::New).unwrap(),
        "old" => it.exchange(&exchange, Side::Old).unwrap(),
        _ => it.discard(&exchange).unwrap(),
    }
}

/// Files by name; a folder has no bytes.
type Files = BTreeMap<String, Option<Vec<u8>>>;

fn files(folder: &Path) -> Files {
    let entries = std::fs::read_dir(folder).unwrap();
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).ok())
        })
        .collect()
}

fn lay(folder: &Path, all: &Files) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { std::fs::remove_dir(path) } else { std::fs::remove_file(path) }.unwrap();
    }
    for (name, bytes) in all {
        match bytes {
            Some(bytes) => std::fs::write(folder.join(name), bytes).unwrap(),
            None => std::fs::create_dir(folder.join(name)).unwrap(),
        }
    }
}

/// A database of `commits` commits as a kill leaves it: with a log that holds the last of them, or with a hot journal.
fn killed(mode: &str, commits: i64) -> Files {
    let dir = quick_dir();
    let path = dir.path().join("x");
    let sql = if mode == "wal" {
        let connection = database(&path, "wal", commits - 1);
        connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
        crate::writer::insert(&connection, commits);
        return files(dir.path());
    } else {
        drop(database(&path, "delete", commits));
        "PRAGMA cache_size=5; BEGIN; UPDATE rows SET text = 'half', turn = 0; DELETE FROM total"
    };
    drop(Writer::start(&path, &["hold", sql]));
    files(dir.path())
}

/// The files of a database under another name.
fn named(all: &Files, name: &str) -> Files {
    all.iter().map(|(file, bytes)| (file.replacen('x', name, 1), bytes.clone())).collect()
}

/// A log or a journal beside another database than its own: the worst that could be.
fn mispaired(found: &Files, pairs: &[&Files]) -> Option<String> {
    for (name, bytes) in found {
        let Some(main) = name.strip_suffix("-wal").or_else(|| name.strip_suffix("-journal")) else {
            continue;
        };
        let Some(main) = found.get(main) else { continue };
        let own = pairs.iter().any(|pair| {
            pair.get("x") == Some(main)
                && pair.iter().any(|(file, own)| file.len() > 1 && own == bytes && !file.ends_with("-shm"))
        });
        if !own {
            return Some(name.clone());
        }
    }
    None
}

/// The calls of one step in their order, each with how many of its kind came before it.
fn calls(folder: &Path, what: &str) -> Vec<(String, usize)> {
    let log = folder.with_extension("log");
    let status = traced(folder, what, &["-o", log.to_str().unwrap(), "-e", &format!("trace={CALLS}")]);
    assert!(status, "{what} fails");
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let text = std::fs::read_to_string(log).unwrap();
    let names = text.lines().filter_map(|line| {
        let call = line.split_whitespace().nth(1)?.split('(').next()?.to_owned();
        CALLS.split(',').any(|c| c == call).then_some(call)
    });
    names
        .map(|call| {
            let count = seen.entry(call.clone()).or_default();
            *count += 1;
            (call, *count)
        })
        .collect()
}

fn traced(folder: &Path, what: &str, options: &[&str]) -> bool {
    let output = Command::new("strace")
        .args(["-f", "-qq"])
        .args(options)
        .arg(std::env::current_exe().unwrap())
        .args(only("an_exchanger"))
        .arg(folder)
        .arg(what)
        .output()
        .expect("strace, which ./test installs");
    output.status.success()
}

/// Kills a step before each of its calls; what is left must be in order and lead to both sides.
fn kill_everywhere(begin: &Files, what: &str, old: Option<(&Files, i64)>, new: (&Files, i64)) -> usize {
    let dir = quick_dir();
    let folder = dir.path().join("app");
    std::fs::create_dir(&folder).unwrap();
    lay(&folder, begin);
    let calls = calls(&folder, what);
    assert!(calls.len() >= 2, "{what}: {calls:?}");
    let pairs: Vec<&Files> = old.iter().map(|(files, _)| *files).chain([new.0]).collect();
    for (call, nth) in &calls {
        lay(&folder, begin);
        let inject = format!("inject={call}:signal=KILL:when={nth}");
        assert!(!traced(&folder, what, &["-o", "/dev/null", "-e", &inject]), "{what} survives {call} {nth}");
        let left = files(&folder);
        let at = format!("{what} killed at {call} {nth}: {:?}", left.keys());
        assert_eq!(mispaired(&left, &pairs), None, "{at}");
        if what == "discard" {
            step(&folder, "discard");
            assert_eq!(files(&folder).keys().filter(|name| name.contains(".bs_")).count(), 0, "{at}");
            let commits =
                if begin.contains_key(LIVE) && begin.contains_key(KEPT) { new.1 } else { old.unwrap().1 };
            assert_eq!(whole(&folder.join(LIVE)), Ok(commits), "{at}");
            continue;
        }
        for way in [["new", "old"], ["old", "new"]] {
            lay(&folder, &left);
            for side in way {
                step(&folder, side);
                let settled = files(&folder);
                assert_eq!(mispaired(&settled, &pairs), None, "{at}, {side}");
                let (mut it, exchange) = open(&folder);
                let expected = if side == "new" { Side::New } else { Side::Old };
                assert_eq!(it.side(&exchange).unwrap(), expected, "{at}");
            }
            let expected = if way[1] == "new" { Some(new.1) } else { old.map(|(_, commits)| commits) };
            match expected {
                Some(commits) => assert_eq!(whole(&folder.join(LIVE)), Ok(commits), "{at}"),
                None => assert!(!folder.join(LIVE).exists(), "{at}"),
            }
            step(&folder, "discard");
            assert!(files(&folder).keys().all(|name| !name.contains(".bs_")), "{at}");
        }
    }
    calls.len()
}

#[test]
fn a_kill_at_any_call_leaves_what_leads_to_either_side() {
    let new = killed("wal", 7);
    let fresh: Files = [("x".to_owned(), Some(plain(5)))].into();
    let mut kills = 0;
    for mode in ["wal", "delete"] {
        let old = killed(mode, 30);
        assert!(old.len() > 1, "{:?}", old.keys());
        let join = |parts: &[Files]| parts.iter().flat_map(|part| part.clone()).collect::<Files>();
        // To the new side for the first time; back, after it was used and killed; and again.
        let begin = join(&[named(&old, LIVE), named(&fresh, STAGED)]);
        kills += kill_everywhere(&begin, "new", Some((&old, 30)), (&fresh, 5));
        let used = join(&[named(&new, LIVE), named(&old, KEPT)]);
        kills += kill_everywhere(&used, "old", Some((&old, 30)), (&new, 7));
        kills += kill_everywhere(&used, "discard", Some((&old, 30)), (&new, 7));
        let back = join(&[named(&old, LIVE), named(&new, STAGED)]);
        kills += kill_everywhere(&back, "new", Some((&old, 30)), (&new, 7));
        kills += kill_everywhere(&back, "discard", Some((&old, 30)), (&new, 7));
        // In the middle of an exchange nothing is thrown away that is in use.
        let between = join(&[named(&old, KEPT), named(&new, STAGED)]);
        kills += kill_everywhere(&between, "discard", Some((&old, 30)), (&new, 7));
    }
    // There was none.
    kills += kill_everywhere(&named(&fresh, STAGED), "new", None, (&fresh, 5));
    let mut used = named(&new, LIVE);
    used.insert(KEPT.to_owned(), None);
    kills += kill_everywhere(&used, "old", None, (&new, 7));
    kills += kill_everywhere(&used, "discard", None, (&new, 7));
    println!("{kills} kills");
    assert!(kills > 80, "{kills}");
}

fn plain(commits: i64) -> Vec<u8> {
    let dir = quick_dir();
    drop(database(&dir.path().join("x"), "delete", commits));
    std::fs::read(dir.path().join("x")).unwrap()
}

#[test]
fn what_a_discard_leaves_is_the_side_in_use_with_its_log() {
    let dir = quick_dir();
    let (old, new) = (killed("wal", 30), killed("wal", 7));
    let mut all = named(&old, KEPT);
    all.extend(named(&new, STAGED));
    lay(dir.path(), &all);
    step(dir.path(), "discard");
    assert_eq!(whole(&dir.path().join(LIVE)), Ok(30));
    all = named(&old, KEPT);
    all.extend(named(&new, LIVE));
    lay(dir.path(), &all);
    step(dir.path(), "discard");
    assert_eq!(whole(&dir.path().join(LIVE)), Ok(7));
}

#[test]
fn a_database_that_was_used_in_the_middle_of_an_exchange_is_not_overwritten() {
    let dir = quick_dir();
    let (old, new) = (killed("wal", 30), killed("wal", 7));
    // The log has left, and somebody has made another.
    let mut all = named(&old, LIVE);
    all.insert("app.db.bs_0badcafe_old-wal".to_owned(), old["x-wal"].clone());
    all.extend(named(&new, STAGED));
    lay(dir.path(), &all);
    let (mut it, exchange) = open(dir.path());
    for side in [Side::New, Side::Old] {
        let error = it.exchange(&exchange, side).unwrap_err();
        assert!(error.message().contains("the database was used"), "{error}");
    }
    // A new one in the place of the old one that has left.
    let mut all = named(&new, LIVE);
    all.extend(named(&old, KEPT));
    all.extend(named(&new, STAGED));
    lay(dir.path(), &all);
    let before = files(dir.path());
    assert!(it.exchange(&exchange, Side::New).is_err() && it.side(&exchange).is_err());
    assert!(it.discard(&exchange).is_err());
    assert_eq!(files(dir.path()), before);
}
