//! SQLite files in the home: consistent in each point whatever the app does, and replaced with all that belongs to them.
//!
//! `BACKSTAY_POINTS` says how many points are taken under load; by default a few.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use backstay_testing::temp_dir;

use crate::World;

/// Writes rows in transactions of their own and says after each which one is safe.
const WRITER: &str = r"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
db.execute('PRAGMA journal_mode=' + sys.argv[2])
db.execute('PRAGMA synchronous=OFF')
db.execute('PRAGMA wal_autocheckpoint=50')
db.execute('CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, body TEXT)')
db.execute('CREATE INDEX IF NOT EXISTS i ON t (body)')
n = 0
while True:
    n += 1
    db.execute('BEGIN IMMEDIATE')
    db.execute('INSERT INTO t (id, body) VALUES (?, ?)', (n, str(n) * 50))
    if n % 7 == 0:
        db.execute('UPDATE t SET body = body || ? WHERE id % 13 = ?', ('x', n % 13))
    db.execute('COMMIT')
    with open(sys.argv[3], 'r+') as f:
        f.write(str(n).zfill(12))
";

/// What is in a database, and whether it is whole.
const LOOK: &str = r"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
print(db.execute('PRAGMA integrity_check').fetchone()[0], db.execute('SELECT count(*), max(id) FROM t').fetchone())
";

struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn python(code: &str, args: &[&str]) -> Command {
    let mut python = Command::new("python3");
    python.arg("-c").arg(code).args(args);
    python
}

fn write_to(world: &World, mode: &str) -> Writer {
    world.write("safe", b"000000000000");
    let path = |name: &str| world.path(name).to_str().unwrap().to_owned();
    let child = python(WRITER, &[&path("app/data/app.db"), mode, &path("safe")]).spawn().unwrap();
    let writer = Writer(child);
    let begin = Instant::now();
    while safe(world) < 200 {
        assert!(begin.elapsed() < Duration::from_secs(60), "nothing is written");
        std::thread::sleep(Duration::from_millis(10));
    }
    writer
}

/// The last transaction that is safe.
fn safe(world: &World) -> u64 {
    loop {
        // It may be read in the middle of a write.
        if let Ok(text) = std::fs::read_to_string(world.path("safe"))
            && let Ok(number) = text.trim().parse()
        {
            return number;
        }
    }
}

#[track_caller]
fn look(path: &std::path::Path) -> (String, u64) {
    let out = python(LOOK, &[path.to_str().unwrap()]).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let (whole, rows) =
        text.trim().split_once(' ').unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&out.stderr)));
    let rows = rows.trim_matches(['(', ')']).split_once(',').unwrap().0.parse().unwrap();
    (whole.to_owned(), rows)
}

#[test]
fn points_under_load_are_whole_and_hold_what_was_safe_before() {
    let points = std::env::var("BACKSTAY_POINTS").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    for mode in ["WAL", "DELETE"] {
        let world = World::within(temp_dir());
        world.write("app/index.html", b"x");
        std::fs::create_dir(world.path("app/data")).unwrap();
        let writer = write_to(&world, mode);
        for n in 0..points / 2 {
            let before = safe(&world);
            world.ok(&["backup", "app"].map(|w| if w == "app" && n == 0 { "./app" } else { w }));
            let out = world.path(&format!("out-{n}"));
            world.ok(&["restore", "app", "--directory", out.to_str().unwrap()]);
            assert!(!out.join("data/app.db-wal").exists() && !out.join("data/app.db-shm").exists());
            let (whole, rows) = look(&out.join("data/app.db"));
            assert_eq!(whole, "ok", "point {n}, {mode}");
            assert!(rows >= before, "point {n}, {mode}: {rows} of {before} rows that were safe");
            std::fs::remove_dir_all(out).unwrap();
        }
        let show = world.json(&["show", "app"]);
        assert_eq!(show["manifest"]["sqlite"], serde_json::json!(["data/app.db"]), "{show}");
        drop(writer);
    }
}

#[test]
fn custom_backups_under_load_are_whole_too() {
    for mode in ["WAL", "DELETE"] {
        let world = World::within(temp_dir());
        world.write("app/index.html", b"x");
        std::fs::create_dir_all(world.path("app/data")).unwrap();
        std::fs::create_dir(world.path("away")).unwrap();
        let writer = write_to(&world, mode);
        for n in 0..3 {
            let before = safe(&world);
            let name = format!("c{n}");
            world.ok(&["backup", "./app", "--container", "./away", "--name", &name]);
            let out = world.path(&format!("out-{n}"));
            let zip = world.path(&format!("away/{name}.zip"));
            assert!(Command::new("unzip").arg("-q").arg(zip).arg("-d").arg(&out).status().unwrap().success());
            assert!(!out.join("fs/data/app.db-wal").exists() && !out.join("fs/data/app.db-journal").exists());
            let (whole, rows) = look(&out.join("fs/data/app.db"));
            assert!(whole == "ok" && rows >= before, "{mode}: {whole}, {rows} of {before}");
        }
        drop(writer);
    }
}

#[test]
fn a_restore_replaces_the_log_with_the_file_and_an_undo_brings_both_back() {
    let world = World::within(temp_dir());
    world.write("app/index.html", b"one");
    std::fs::create_dir(world.path("app/data")).unwrap();
    let db = world.path("app/data/app.db");
    let writer = write_to(&world, "WAL");
    // Killed: the log stays beside the file and holds what only it has.
    drop(writer);
    assert!(world.path("app/data/app.db-wal").exists());
    world.ok(&["backup", "./app"]);
    let copy = world.path("copy.db");
    let before = {
        std::fs::copy(&db, &copy).unwrap();
        std::fs::copy(world.path("app/data/app.db-wal"), world.path("copy.db-wal")).unwrap();
        look(&copy)
    };
    let point = world.points("app")[0].clone();
    let writer = write_to_more(&world);
    drop(writer);
    world.write("app/index.html", b"two");
    let plan = world.ok(&["restore", "app", &point, "--dry-run"]);
    assert!(plan.contains("data/app.db"), "{plan}");
    world.ok(&["restore", "app", &point, "--yes"]);
    assert!(!world.path("app/data/app.db-wal").exists(), "a log of another database stays");
    assert_eq!(look(&db), before);
    world.ok(&["undo", "app", "--yes"]);
    assert_eq!(std::fs::read(world.path("app/index.html")).unwrap(), b"two");
    let (whole, rows) = look(&db);
    assert!(whole == "ok" && rows > before.1, "{rows}");
}

/// Goes on where a writer that was killed has stopped.
fn write_to_more(world: &World) -> Writer {
    let code = WRITER.replace("n = 0\n", "n = db.execute('SELECT max(id) FROM t').fetchone()[0]\n");
    let before = safe(world);
    let path = |name: &str| world.path(name).to_str().unwrap().to_owned();
    let mut python = python(&code, &[&path("app/data/app.db"), "WAL", &path("safe")]);
    let writer = Writer(python.stdout(Stdio::null()).spawn().unwrap());
    let begin = Instant::now();
    while safe(world) < before + 300 {
        assert!(begin.elapsed() < Duration::from_secs(60), "nothing is written");
        std::thread::sleep(Duration::from_millis(10));
    }
    writer
}

#[test]
fn a_database_that_is_damaged_itself_is_told_in_points_and_in_custom_backups() {
    let world = World::within(temp_dir());
    std::fs::create_dir_all(world.path("app/data")).unwrap();
    std::fs::create_dir(world.path("away")).unwrap();
    let path = world.path("app/data/app.db");
    let fill = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)')\n\
                db.executemany('INSERT INTO t (body) VALUES (?)', [(str(n) * 50,) for n in range(2000)]); db.commit()";
    assert!(python(fill, &[path.to_str().unwrap()]).status().unwrap().success());
    let custom = |name| ["backup", "app", "--container", "./away", "--name", name];
    world.ok(&["backup", "./app"]);
    world.ok(&custom("whole"));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096 * 3..4096 * 4].fill(0x55);
    std::fs::write(&path, &bytes).unwrap();
    for words in [&["backup", "app"][..], &custom("damaged")] {
        let ran = world.run(words).ends(3);
        assert!(
            ran.stderr.contains("data/app.db") && ran.stderr.contains("damaged"),
            "{words:?}: {}",
            ran.stderr
        );
    }
    assert!(
        std::fs::read_to_string(world.path("away/damaged.xml"))
            .unwrap()
            .contains("The database itself is damaged")
    );
}
