//! Copies of databases in use.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay_database::sqlite::{self, Child, Journal, SnapshotRecord, Way};
use backstay_database::{Hashes, Options};
use backstay_model::{Code, Result};
use backstay_testing::quick_dir;
use rusqlite::Connection;

use crate::writer::{Writer, database, insert, whole};
use crate::{child, state};

fn options() -> Options {
    Options { lock_wait: Duration::from_secs(20), ..Options::default() }
}

fn copy(source: &Path, target: &Path) -> Result<SnapshotRecord> {
    sqlite::snapshot(source, target, &child(), &options())
}

/// Copies a database that must stay as it is to the byte, with nothing beside it that was not there.
fn copy_untouched(folder: &Path, target: &Path) -> SnapshotRecord {
    let before = state(folder);
    let record = copy(&folder.join("app.db"), target).unwrap();
    assert_eq!(state(folder), before);
    record
}

/// A folder for the database, and one for copies.
fn folders() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let dir = quick_dir();
    let (app, copies) = (dir.path().join("app"), dir.path().join("copies"));
    std::fs::create_dir(&app).unwrap();
    std::fs::create_dir(&copies).unwrap();
    (dir, app, copies)
}

/// 250 copies while commits go on; each is whole and has every commit that was acknowledged before it was asked for.
fn under_load(mode: &str) -> u32 {
    let (_dir, app, copies) = folders();
    let path = app.join("app.db");
    drop(database(&path, mode, 600));
    let writer = Writer::start(&path, &["write"]);
    let begin = writer.acknowledged();
    let mut torn = 0;
    for n in 0..250 {
        let target = copies.join("copy.db");
        let before = writer.acknowledged();
        let record = copy(&path, &target).unwrap();
        assert_eq!(record.content.damage, None);
        let journal = if mode == "wal" { Journal::Wal } else { Journal::Rollback };
        assert_eq!((record.way, record.content.journal), (Way::Live, journal), "{n}");
        assert_eq!(std::fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(record.bytes, record.content.pages * u64::from(record.content.page_size));
        let commits = whole(&target).unwrap();
        assert!(commits >= before, "{n}: {before} acknowledged, {commits} in the copy");
        std::fs::remove_file(&target).unwrap();
        // What a plain copy of the file would have been.
        if n % 5 == 0 {
            let before = writer.acknowledged();
            std::fs::copy(&path, &target).unwrap();
            torn += u32::from(whole(&target).map_or(true, |commits| commits < before));
        }
        for name in std::fs::read_dir(&copies).unwrap() {
            std::fs::remove_file(name.unwrap().path()).unwrap();
        }
    }
    println!(
        "{mode}: {} commits meanwhile, {torn} of 50 plain copies torn or late",
        writer.acknowledged() - begin
    );
    assert!(writer.acknowledged() > begin + 250);
    torn
}

#[test]
fn copies_of_a_log_under_load_are_whole_and_miss_no_commit() {
    // The log holds what a plain copy of the file lacks.
    assert!(under_load("wal") > 20);
}

#[test]
fn copies_of_a_rollback_database_under_load_are_whole_and_miss_no_commit() {
    assert!(under_load("delete") > 0);
}

#[test]
fn what_is_only_in_the_log_is_in_the_copy() {
    let (_dir, app, copies) = folders();
    let connection = database(&app.join("app.db"), "wal", 10);
    connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let main = std::fs::read(app.join("app.db")).unwrap();
    let first = copy(&app.join("app.db"), &copies.join("1")).unwrap();
    insert(&connection, 11);
    assert_eq!(std::fs::read(app.join("app.db")).unwrap(), main);
    let second = copy_untouched_but_index(&app, &copies.join("2"));
    assert_eq!((whole(&copies.join("1")).unwrap(), whole(&copies.join("2")).unwrap()), (10, 11));
    assert_ne!(first.sha256, second.sha256);
    assert_eq!((first.way, second.way), (Way::Live, Way::Live));
}

/// Readers note in the log's index how far they read; nothing else may change.
fn copy_untouched_but_index(folder: &Path, target: &Path) -> SnapshotRecord {
    let but_index = || {
        let mut all = state(folder);
        all.retain(|entry| entry.0 != "app.db-shm");
        (all, folder.join("app.db-shm").exists())
    };
    let before = but_index();
    let record = copy(&folder.join("app.db"), target).unwrap();
    assert_eq!(but_index(), before);
    record
}

#[test]
fn a_database_that_nobody_uses_is_not_touched_and_gets_no_files() {
    for mode in ["wal", "delete", "truncate", "persist"] {
        let (_dir, app, copies) = folders();
        drop(database(&app.join("app.db"), mode, 50));
        let record = copy_untouched(&app, &copies.join("copy"));
        assert_eq!(whole(&copies.join("copy")).unwrap(), 50, "{mode}");
        assert_eq!(record.way, if mode == "wal" { Way::Quiet } else { Way::Live }, "{mode}");
        let again = copy_untouched(&app, &copies.join("again"));
        assert_eq!(again.sha256, record.sha256, "{mode}");
    }
}

#[test]
fn the_same_pages_give_the_same_copy_by_whatever_way() {
    let (_dir, app, copies) = folders();
    let connection = database(&app.join("app.db"), "wal", 200);
    let live = copy(&app.join("app.db"), &copies.join("live")).unwrap();
    // As a crash leaves it: first with the index, which makes it look used; then without.
    let (_other, crashed, _) = folders();
    std::fs::copy(app.join("app.db"), crashed.join("app.db")).unwrap();
    std::fs::copy(app.join("app.db-wal"), crashed.join("app.db-wal")).unwrap();
    let plain = copy_untouched(&crashed, &copies.join("plain"));
    drop(connection);
    let closed = copy_untouched(&app, &copies.join("closed"));
    assert_eq!([live.way, plain.way, closed.way], [Way::Live, Way::Quiet, Way::Quiet]);
    assert_eq!((live.sha256.as_str(), &live.content), (plain.sha256.as_str(), &plain.content));
    assert_eq!((live.sha256.as_str(), &live.content), (closed.sha256.as_str(), &closed.content));
    assert_eq!(std::fs::read_dir(&copies).unwrap().count(), 3);
}

#[test]
fn a_hot_journal_is_rolled_back_in_the_copy_only() {
    let (_dir, app, copies) = folders();
    drop(database(&app.join("app.db"), "delete", 400));
    let main = std::fs::read(app.join("app.db")).unwrap();
    let sql = "PRAGMA cache_size=5; BEGIN; UPDATE rows SET text = 'half', turn = 0; DELETE FROM total";
    drop(Writer::start(&app.join("app.db"), &["hold", sql]));
    assert_ne!(std::fs::read(app.join("app.db")).unwrap(), main, "nothing was written before the kill");
    assert!(app.join("app.db-journal").metadata().unwrap().len() > 512);
    let record = copy_untouched(&app, &copies.join("copy"));
    assert_eq!(whole(&copies.join("copy")).unwrap(), 400);
    assert_eq!(record.way, Way::Quiet);
    assert_eq!(std::fs::read_dir(&copies).unwrap().count(), 1);
}

#[test]
fn a_log_that_a_kill_left_is_read_in_the_copy_only() {
    let (_dir, app, copies) = folders();
    drop(database(&app.join("app.db"), "wal", 30));
    let writer = Writer::start(&app.join("app.db"), &["write"]);
    while writer.acknowledged() < 60 {
        std::thread::yield_now();
    }
    let acknowledged = writer.acknowledged();
    drop(writer);
    // The index of the log is built anew where it lies: there is one already.
    let record = copy_untouched_but_index(&app, &copies.join("with"));
    assert!(whole(&copies.join("with")).unwrap() >= acknowledged);
    std::fs::remove_file(app.join("app.db-shm")).unwrap();
    let without = copy_untouched(&app, &copies.join("without"));
    assert_eq!(record.sha256, without.sha256);
}

#[test]
fn a_lock_that_stays_is_told_after_the_time_that_was_given() {
    let (_dir, app, copies) = folders();
    let connection = database(&app.join("app.db"), "delete", 5);
    connection.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let short = Options { lock_wait: Duration::from_millis(300), ..Options::default() };
    let target = copies.join("copy");
    let error = sqlite::snapshot(&app.join("app.db"), &target, &child(), &short).unwrap_err();
    assert_eq!(error.code(), Code::DatabaseLockTimeout);
    let message = format!("`{}`: Another process holds it locked", app.join("app.db").display());
    assert_eq!(error.message(), message);
    assert_eq!(std::fs::read_dir(&copies).unwrap().count(), 0);
    connection.execute_batch("COMMIT").unwrap();
    assert!(sqlite::snapshot(&app.join("app.db"), &target, &child(), &short).is_ok());
}

#[test]
fn a_lock_that_goes_is_waited_for() {
    let (_dir, app, copies) = folders();
    let connection = database(&app.join("app.db"), "delete", 5);
    connection.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let target = copies.join("copy");
    std::thread::scope(|scope| {
        let copied = scope.spawn(|| copy(&app.join("app.db"), &target));
        std::thread::sleep(Duration::from_millis(200));
        insert(&connection, 6);
        connection.execute_batch("COMMIT").unwrap();
        copied.join().unwrap().unwrap();
    });
    assert_eq!(whole(&target).unwrap(), 6);
}

#[test]
fn what_is_no_database_is_told_and_leaves_nothing() {
    let (_dir, app, copies) = folders();
    let path = app.join("app.db");
    let mut encrypted = vec![0x5a; 8192];
    let mut header = b"SQLite format 3\0".to_vec();
    header.resize(8192, 0xff);
    for bytes in [&b""[..], b"SQLite", &encrypted, &header] {
        std::fs::write(&path, bytes).unwrap();
        let error = copy(&path, &copies.join("copy")).unwrap_err();
        assert_eq!(error.code(), Code::DatabaseDumpUnusable, "{error}");
        assert!(error.message().contains("no database of SQLite, or an encrypted one"), "{error}");
        assert_eq!(std::fs::read_dir(&copies).unwrap().count(), 0);
    }
    encrypted.truncate(20);
    assert!(!sqlite::is_database(&encrypted) && sqlite::is_database(&header[..16]));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(copy(&path, &copies.join("copy")).unwrap_err().code(), Code::DatabaseNotFound);
    std::fs::create_dir(&path).unwrap();
    assert_eq!(copy(&path, &copies.join("copy")).unwrap_err().code(), Code::DatabaseFailed);
}

#[test]
fn damage_is_told_and_copied() {
    let (_dir, app, copies) = folders();
    let path = app.join("app.db");
    drop(database(&path, "delete", 400));
    let well = std::fs::read(&path).unwrap();
    let mut told = 0;
    for page in 1..well.len() / 4096 {
        let mut bytes = well.clone();
        bytes[page * 4096..page * 4096 + 64].fill(0xa5);
        std::fs::write(&path, &bytes).unwrap();
        let target = copies.join(page.to_string());
        let record = copy(&path, &target).unwrap();
        told += usize::from(record.content.damage.is_some());
        // Page by page the same, but for what is counted in the header.
        assert_eq!(std::fs::read(&target).unwrap()[4096..], bytes[4096..]);
        if page > 12 {
            break;
        }
    }
    assert_eq!(told, 13);
    // Cut off.
    std::fs::write(&path, &well[..well.len() / 2]).unwrap();
    let cut = copy(&path, &copies.join("cut"));
    assert!(cut.is_err() || cut.unwrap().content.damage.is_some());
}

#[test]
fn links_are_not_followed() {
    let (dir, app, copies) = folders();
    let secret = dir.path().join("secret.db");
    drop(database(&secret, "delete", 5));
    symlink(&secret, app.join("app.db")).unwrap();
    let error = copy(&app.join("app.db"), &copies.join("copy")).unwrap_err();
    assert!(error.message().ends_with("It cannot be read: it is a link"), "{error}");
    // The log of another database under this one's name.
    std::fs::remove_file(app.join("app.db")).unwrap();
    drop(database(&app.join("app.db"), "wal", 5));
    symlink(&secret, app.join("app.db-wal")).unwrap();
    assert!(copy(&app.join("app.db"), &copies.join("copy")).is_err());
    assert_eq!(std::fs::read_dir(&copies).unwrap().count(), 0);
}

#[test]
fn a_folder_that_is_open_already_can_be_named() {
    use std::os::fd::AsRawFd as _;
    let (_dir, app, copies) = folders();
    drop(database(&app.join("odd\n%?#name"), "delete", 5));
    let folder = std::fs::File::open(&app).unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}/odd\n%?#name", folder.as_raw_fd()));
    // The path by which it was opened may be another one since.
    std::fs::rename(&app, app.with_file_name("moved")).unwrap();
    copy(&path, &copies.join("copy")).unwrap();
    assert_eq!(whole(&copies.join("copy")).unwrap(), 5);
}

#[test]
fn a_folder_where_nobody_may_write_is_copied_from() {
    if !rustix::process::geteuid().is_root() {
        println!("left out: only root can become somebody who may not write");
        return;
    }
    let dir = tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    let (app, copies) = (dir.path().join("app"), dir.path().join("copies"));
    std::fs::create_dir(&app).unwrap();
    std::fs::create_dir(&copies).unwrap();
    std::fs::set_permissions(&copies, std::fs::Permissions::from_mode(0o777)).unwrap();
    let program = dir.path().join("program");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let mut args: Vec<_> =
        ["--reuid=65534", "--regid=65534", "--clear-groups", "--"].map(std::ffi::OsString::from).to_vec();
    args.push(program.into_os_string());
    args.extend(child().args);
    let nobody = Child { program: "setpriv".into(), args };
    let connection = database(&app.join("app.db"), "wal", 20);
    std::fs::set_permissions(app.join("app.db"), std::fs::Permissions::from_mode(0o444)).unwrap();
    for name in ["app.db-wal", "app.db-shm"] {
        std::fs::set_permissions(app.join(name), std::fs::Permissions::from_mode(0o444)).unwrap();
    }
    std::fs::set_permissions(&app, std::fs::Permissions::from_mode(0o555)).unwrap();
    let take =
        |target: &str| sqlite::snapshot(&app.join("app.db"), &copies.join(target), &nobody, &options());
    // Beside the app, then after a crash, then after it was closed.
    take("used").unwrap();
    std::fs::remove_file(app.join("app.db-shm")).unwrap();
    assert_eq!(take("crashed").unwrap().way, Way::Quiet);
    drop(connection);
    assert_eq!(take("closed").unwrap().way, Way::Quiet);
    for target in ["used", "crashed", "closed"] {
        assert_eq!(whole(&copies.join(target)).unwrap(), 20, "{target}");
    }
}

#[test]
fn tables_are_counted_and_hashed_whatever_the_order_of_their_rows() {
    let (_dir, app, copies) = folders();
    let make = |name: &str, sql: &str| {
        let connection = Connection::open(app.join(name)).unwrap();
        connection
            .execute_batch(
                "CREATE TABLE \"odd \"\"name\" (a, b); CREATE VIRTUAL TABLE words USING fts5(text)",
            )
            .unwrap();
        connection.execute_batch(sql).unwrap();
        drop(connection);
        copy(&app.join(name), &copies.join(name)).unwrap().content
    };
    let insert = |values: &str| format!("INSERT INTO \"odd \"\"name\" VALUES {values}");
    let one = make("1", &insert("(1, 'x'), (2, NULL), (3, x'00ff')"));
    let two = make("2", &insert("(3, x'00ff'), (1, 'x'), (2, NULL)"));
    let other = make("3", &insert("(3, x'00ff'), (1, 'x'), ('2', NULL)"));
    assert_eq!((&one.tables, &one.schema_hash), (&two.tables, &two.schema_hash));
    let odd =
        |content: &sqlite::Content| content.tables.iter().find(|t| t.name == "odd \"name").cloned().unwrap();
    assert_eq!(odd(&one).rows, 3);
    assert!(odd(&one).hash.is_some() && odd(&one).hash != odd(&other).hash);
    assert!(one.tables.iter().any(|t| t.name == "words_content"));
    assert!(one.tables.iter().all(|t| t.name != "words"), "{:?}", one.tables);
    let changed = make("4", "ALTER TABLE \"odd \"\"name\" ADD COLUMN c");
    assert_ne!(changed.schema_hash, one.schema_hash);
    let none = Options { hashes: Hashes::None, ..options() };
    let counted = sqlite::snapshot(&app.join("1"), &copies.join("none"), &child(), &none).unwrap();
    assert!(counted.content.tables.iter().all(|t| t.hash.is_none()));
}

#[test]
fn a_log_that_one_process_keeps_to_itself_is_copied_between_its_commits() {
    let (_dir, app, copies) = folders();
    let path = app.join("app.db");
    drop(database(&path, "delete", 5));
    let sql = "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; UPDATE rows SET turn = 0";
    let _writer = Writer::start(&path, &["hold", sql]);
    assert!(!app.join("app.db-shm").exists());
    assert_eq!(copy_untouched(&app, &copies.join("copy")).way, Way::Quiet);
    assert_eq!(whole(&copies.join("copy")).unwrap(), 5);
}

#[test]
fn who_stops_the_work_gets_no_copy() {
    let (_dir, app, copies) = folders();
    let connection = database(&app.join("app.db"), "delete", 5);
    connection.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let options = options();
    let error = std::thread::scope(|scope| {
        let copied = scope.spawn(|| {
            sqlite::snapshot(&app.join("app.db"), &copies.join("copy"), &child(), &options).unwrap_err()
        });
        std::thread::sleep(Duration::from_millis(50));
        options.cancel.cancel();
        copied.join().unwrap()
    });
    assert_eq!(error.code(), Code::Cancelled);
}

#[test]
fn a_target_that_exists_is_left_alone() {
    let (_dir, app, copies) = folders();
    drop(database(&app.join("app.db"), "delete", 5));
    std::fs::write(copies.join("copy"), "other").unwrap();
    assert!(copy(&app.join("app.db"), &copies.join("copy")).is_err());
    assert_eq!(std::fs::read(copies.join("copy")).unwrap(), b"other");
}

#[test]
fn siblings_have_the_names_that_sqlite_gives_them() {
    let [wal, shm, journal] = sqlite::siblings(Path::new("a/b.db"));
    assert_eq!([wal, shm, journal], ["a/b.db-wal", "a/b.db-shm", "a/b.db-journal"].map(PathBuf::from));
}

/// How long copies of a larger database take: printed, and bounded by far more than they should.
#[test]
fn a_larger_database_takes_seconds() {
    let (_dir, app, copies) = folders();
    let connection = Connection::open(app.join("app.db")).unwrap();
    let sql = "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF; CREATE TABLE rows (id INTEGER PRIMARY KEY, body BLOB);
               WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
               INSERT INTO rows SELECT i, randomblob(900) FROM n; PRAGMA wal_checkpoint(TRUNCATE)";
    connection.execute_batch(sql).unwrap();
    let begin = std::time::Instant::now();
    let record = copy(&app.join("app.db"), &copies.join("live")).unwrap();
    let live = begin.elapsed();
    drop(connection);
    let begin = std::time::Instant::now();
    let quiet = copy(&app.join("app.db"), &copies.join("quiet")).unwrap();
    println!("{} MB: live {live:?}, quiet {:?}", record.bytes >> 20, begin.elapsed());
    assert_eq!((record.sha256, quiet.way), (quiet.sha256, Way::Quiet));
    assert!(begin.elapsed() < Duration::from_secs(60));
}

/// Bytes changed anywhere in the file and its log, the more the nearer to the beginning: the child never dies of it.
#[test]
fn files_that_are_anything_end_with_a_copy_or_with_words() {
    let (_dir, app, copies) = folders();
    let connection = database(&app.join("app.db"), "wal", 20);
    connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    insert(&connection, 21);
    let (main, log) =
        (std::fs::read(app.join("app.db")).unwrap(), std::fs::read(app.join("app.db-wal")).unwrap());
    drop(connection);
    let (mut copied, mut told) = (0, 0);
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % u64::try_from(below).unwrap()).unwrap()
    };
    for n in 0..150 {
        let (mut main, mut log) = (main.clone(), log.clone());
        for _ in 0..=random(6) {
            let reach = [100, 4096, main.len()][random(3)];
            // What begins otherwise is no database.
            main[16 + random(reach - 16)] = u8::try_from(random(256)).unwrap();
        }
        if n % 3 == 0 {
            let at = random(log.len());
            log[at] ^= 0x40;
        }
        if n % 5 == 0 {
            main.truncate(100 + random(main.len() - 100));
        }
        std::fs::write(app.join("app.db"), main).unwrap();
        match n % 2 {
            0 => std::fs::write(app.join("app.db-wal"), log).unwrap(),
            _ => drop(std::fs::remove_file(app.join("app.db-wal"))),
        }
        let target = copies.join(n.to_string());
        match copy(&app.join("app.db"), &target) {
            Ok(_) => copied += 1,
            Err(e) => {
                let codes = [Code::DatabaseDumpUnusable, Code::DatabaseFailed];
                assert!(codes.contains(&e.code()), "{n}: {e:?}");
                assert!(!target.exists());
                told += 1;
            }
        }
    }
    println!("{copied} copied, {told} told");
    assert!(copied > 20 && told > 5, "{copied} copied, {told} told");
}
