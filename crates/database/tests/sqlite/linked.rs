//! Files of SQLite as linked databases.

use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use backstay_database::connection::parse;
use backstay_database::sqlite::Sqlite;
use backstay_database::{ConnectionType, Database, DumpRecord, Options, Side};
use backstay_model::{Code, Error};
use backstay_testing::quick_dir;
use rusqlite::Connection;

use crate::writer::{Writer, database, insert, whole};
use crate::{child, state};

const JOB: &str = "0badcafe";

fn quickly() -> Options {
    Options { lock_wait: Duration::from_millis(300), ..Options::default() }
}

/// The file at that path as a linked database.
fn linked(path: &Path) -> Sqlite {
    let address = format!("sqlite://{}", path.display());
    Sqlite::new(&parse(&address, ConnectionType::Custom).unwrap(), None, child(), quickly()).unwrap()
}

fn dump(database: &mut dyn Database) -> (Vec<u8>, DumpRecord) {
    let mut dump = database.dump().unwrap();
    let mut bytes = Vec::new();
    dump.read_to_end(&mut bytes).unwrap();
    (bytes, dump.finish().unwrap())
}

#[test]
fn a_dump_is_restored_beside_the_one_in_use_and_changes_places_with_it() {
    let dir = quick_dir();
    let path = dir.path().join("app.db");
    let connection = database(&path, "wal", 40);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let mut it = linked(&path);
    let probe = it.probe().unwrap();
    assert_eq!((probe.database.as_str(), probe.missing.len(), probe.notes.len()), ("app.db", 0, 0));
    assert!(probe.version.starts_with("SQLite 3."), "{}", probe.version);
    let (bytes, record) = dump(&mut it);
    assert_eq!((record.format.as_str(), record.bytes), ("sqlite", bytes.len() as u64));
    let rows = record.tables.iter().find(|t| t.name == "rows").unwrap();
    assert!(rows.rows == 40 && rows.hash.is_some());
    (41..=50).for_each(|id| insert(&connection, id));
    drop(connection);

    let exchange = it.exchange_names(JOB);
    assert_eq!(
        [&exchange.live, &exchange.staged, &exchange.kept],
        ["app.db", "app.db.bs_0badcafe_new", "app.db.bs_0badcafe_old"]
    );
    let words = it.check_restore(&record, &exchange).unwrap();
    assert_eq!(
        words,
        [
            "`app.db.bs_0badcafe_new` is filled and checked beside `app.db`, which becomes `app.db.bs_0badcafe_old` by a rename"
        ]
    );
    let live = std::fs::read(&path).unwrap();
    assert_eq!(it.stage(&mut bytes.as_slice(), &record, &exchange).unwrap(), Vec::<String>::new());
    assert_eq!(std::fs::read(&path).unwrap(), live);
    assert_eq!(it.side(&exchange).unwrap(), Side::Old);
    it.exchange(&exchange, Side::New).unwrap();
    assert_eq!((it.side(&exchange).unwrap(), whole(&path).unwrap()), (Side::New, 40));
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o640);
    it.exchange(&exchange, Side::Old).unwrap();
    assert_eq!((it.side(&exchange).unwrap(), whole(&path).unwrap()), (Side::Old, 50));
    it.exchange(&exchange, Side::New).unwrap();
    for _ in 0..2 {
        it.discard(&exchange).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
    assert_eq!(whole(&path).unwrap(), 40);
}

#[test]
fn a_dump_under_load_is_what_its_record_says() {
    let dir = quick_dir();
    let path = dir.path().join("app.db");
    drop(database(&path, "wal", 100));
    let writer = Writer::start(&path, &["write"]);
    let mut it = linked(&path);
    let exchange = it.exchange_names(JOB);
    for _ in 0..10 {
        let before = writer.acknowledged();
        let (bytes, record) = dump(&mut it);
        it.stage(&mut bytes.as_slice(), &record, &exchange).unwrap();
        assert!(whole(&dir.path().join(&exchange.staged)).unwrap() >= before);
        it.discard(&exchange).unwrap();
    }
}

#[test]
fn what_does_not_fit_its_record_is_not_staged() {
    let dir = quick_dir();
    let path = dir.path().join("app.db");
    let connection = database(&path, "delete", 40);
    let mut it = linked(&path);
    let exchange = it.exchange_names(JOB);
    let (bytes, record) = dump(&mut it);
    insert(&connection, 41);
    let (more, other) = dump(&mut it);
    drop(connection);
    let mut broken = bytes.clone();
    broken[4096 * 2..4096 * 3].fill(0x55);
    let longer = DumpRecord { bytes: more.len() as u64, ..record.clone() };
    let mut rows = other.clone();
    rows.tables[0].hash = None;
    rows.tables[0].rows = 7;
    let structure = DumpRecord { schema_hash: "0".repeat(64), ..record.clone() };
    let form = DumpRecord { format: "mysql-sql".to_owned(), ..record.clone() };
    let cases = [
        (&bytes[..bytes.len() - 1], &record, Code::DatabaseDumpUnusable),
        (&broken[..], &record, Code::DatabaseDumpUnusable),
        (&more[..], &longer, Code::DatabaseMismatch),
        (&more[..], &rows, Code::DatabaseMismatch),
        (&bytes[..], &structure, Code::DatabaseMismatch),
        (&bytes[..], &form, Code::DatabaseDumpUnusable),
    ];
    let before = state(dir.path());
    for (n, (bytes, record, code)) in cases.into_iter().enumerate() {
        let error = it.stage(&mut { bytes }, record, &exchange).unwrap_err();
        assert_eq!(error.code(), code, "{n}: {error}");
        assert_eq!(state(dir.path()), before, "{n}");
    }
    // The dump fails in the middle.
    struct Fails(usize);
    impl std::io::Read for Fails {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            self.0 += 1;
            match self.0 {
                1 => Ok(buf.len()),
                _ => Err(std::io::Error::other(Error::new(Code::StorageUnavailable, "The vault is gone"))),
            }
        }
    }
    let error = it.stage(&mut Fails(0), &record, &exchange).unwrap_err();
    assert_eq!(error.code(), Code::StorageUnavailable);
    assert_eq!(state(dir.path()), before);
    // Something is in the way.
    std::fs::write(dir.path().join(format!("{}-wal", exchange.staged)), "x").unwrap();
    assert!(it.stage(&mut bytes.as_slice(), &record, &exchange).is_err());
}

#[test]
fn a_dump_that_was_not_read_to_its_end_does_not_count() {
    let dir = quick_dir();
    let path = dir.path().join("app.db");
    drop(database(&path, "delete", 40));
    let mut it = linked(&path);
    let mut half = it.dump().unwrap();
    half.read_exact(&mut [0; 5000]).unwrap();
    assert_eq!(half.finish().unwrap_err().code(), Code::DatabaseInterrupted);
}

#[test]
fn a_damaged_database_is_not_dumped() {
    let dir = quick_dir();
    let path = dir.path().join("app.db");
    drop(database(&path, "delete", 400));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4096 * 3..4096 * 4].fill(0x55);
    std::fs::write(&path, &bytes).unwrap();
    let error = linked(&path).dump().err().unwrap();
    assert_eq!(error.code(), Code::DatabaseFailed);
    assert!(error.message().contains("is damaged"), "{error}");
    std::fs::write(&path, vec![1; 4096]).unwrap();
    assert_eq!(linked(&path).probe().unwrap_err().code(), Code::DatabaseDumpUnusable);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(linked(&path).probe().unwrap_err().code(), Code::DatabaseNotFound);
}

#[test]
fn a_database_in_use_is_not_exchanged() {
    let dir = quick_dir();
    let path = dir.path().join("app.db");
    drop(database(&path, "wal", 40));
    let mut it = linked(&path);
    let exchange = it.exchange_names(JOB);
    let (bytes, record) = dump(&mut it);
    it.stage(&mut bytes.as_slice(), &record, &exchange).unwrap();
    let user = Writer::start(&path, &["hold", "SELECT * FROM total"]);
    let error = it.exchange(&exchange, Side::New).unwrap_err();
    assert_eq!(error.code(), Code::DatabaseLockTimeout, "{error}");
    assert_eq!(it.side(&exchange).unwrap(), Side::Old);
    drop(user);
    it.exchange(&exchange, Side::New).unwrap();
}

#[test]
fn one_that_does_not_exist_is_made() {
    let dir = quick_dir();
    let path = dir.path().join("app.db");
    drop(database(&path, "delete", 40));
    let mut it = linked(&path);
    let exchange = it.exchange_names(JOB);
    let (bytes, record) = dump(&mut it);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(it.check_restore(&record, &exchange).unwrap().len(), 1);
    it.stage(&mut bytes.as_slice(), &record, &exchange).unwrap();
    it.exchange(&exchange, Side::New).unwrap();
    assert_eq!((it.side(&exchange).unwrap(), whole(&path).unwrap()), (Side::New, 40));
    it.exchange(&exchange, Side::Old).unwrap();
    assert!(it.side(&exchange).unwrap() == Side::Old && !path.exists());
    it.exchange(&exchange, Side::New).unwrap();
    it.discard(&exchange).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn rows_that_refer_to_none_are_told_and_restored() {
    let dir = quick_dir();
    let path = dir.path().join("app.db");
    let connection = Connection::open(&path).unwrap();
    let sql = "PRAGMA foreign_keys=OFF; CREATE TABLE a (id INTEGER PRIMARY KEY);
               CREATE TABLE b (a REFERENCES a(id)); INSERT INTO b VALUES (1), (2)";
    connection.execute_batch(sql).unwrap();
    let mut it = linked(&path);
    let exchange = it.exchange_names(JOB);
    let (bytes, record) = dump(&mut it);
    let told = it.stage(&mut bytes.as_slice(), &record, &exchange).unwrap();
    assert_eq!(told, ["2 rows refer to others that are not there"]);
}

#[test]
fn within_the_home_no_link_is_followed() {
    let dir = quick_dir();
    let (home, elsewhere) = (dir.path().join("home"), dir.path().join("elsewhere"));
    for folder in [&home, &elsewhere] {
        std::fs::create_dir_all(folder.join("data")).unwrap();
    }
    drop(database(&elsewhere.join("data/app.db"), "delete", 3));
    drop(database(&home.join("data/own.db"), "delete", 3));
    symlink(elsewhere.join("data"), home.join("linked")).unwrap();
    symlink(elsewhere.join("data/app.db"), home.join("data/app.db")).unwrap();
    let probe = |address: &str| {
        let endpoint = parse(address, ConnectionType::Custom).unwrap();
        Sqlite::new(&endpoint, Some(&home), child(), quickly()).and_then(|mut it| it.probe())
    };
    let shown = home.display();
    assert!(probe("sqlite:data/own.db").is_ok());
    assert!(probe(&format!("sqlite://{shown}/data/own.db")).is_ok());
    assert!(probe(&format!("sqlite://{}/data/app.db", elsewhere.display())).is_ok());
    for address in [
        "sqlite:linked/app.db",
        "sqlite:data/app.db",
        "sqlite:../elsewhere/data/app.db",
        "sqlite:data/../../elsewhere/data/app.db",
    ] {
        assert!(probe(address).is_err(), "{address}");
        let absolute = address.replace("sqlite:", &format!("sqlite://{shown}/"));
        assert!(probe(&absolute).is_err(), "{absolute}");
    }
}

/// A folder of the home that is exchanged for a link out of it, all the time.
#[test]
fn a_folder_that_becomes_a_link_leads_nowhere_else() {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use std::sync::atomic::{AtomicBool, Ordering};
    struct End<'a>(&'a AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let dir = quick_dir();
    let (home, elsewhere) = (dir.path().join("home"), dir.path().join("elsewhere"));
    for (folder, mode, commits) in [(&home, "wal", 3), (&elsewhere, "wal", 9)] {
        std::fs::create_dir_all(folder.join("data")).unwrap();
        drop(database(&folder.join("data/app.db"), mode, commits));
    }
    let theirs = state(&elsewhere.join("data"));
    symlink(elsewhere.join("data"), home.join("link")).unwrap();
    let end = AtomicBool::new(false);
    let (mut dumped, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // For spans of all lengths up to that of a dump.
            for span in (0..).map(|n: u64| n * 701 % 9000) {
                if end.load(Ordering::Relaxed) {
                    break;
                }
                std::thread::sleep(Duration::from_micros(span));
                let flags = RenameFlags::EXCHANGE;
                renameat_with(CWD, home.join("data"), CWD, home.join("link"), flags).unwrap();
            }
        });
        // However this ends, the other thread does too.
        let _end = End(&end);
        let begin = Instant::now();
        for n in 0.. {
            if begin.elapsed() > Duration::from_secs(2) {
                break;
            }
            let endpoint = parse("sqlite:data/app.db", ConnectionType::Custom).unwrap();
            // Half of them while somebody has it open, so that it is read live.
            let user = (n % 2 == 0).then(|| Connection::open(home.join("data/app.db")).ok()).flatten();
            let taken = Sqlite::new(&endpoint, Some(&home), child(), quickly()).and_then(|mut it| {
                let mut dump = it.dump()?;
                std::io::copy(&mut dump, &mut std::io::sink()).unwrap();
                dump.finish()
            });
            drop(user);
            match taken {
                Ok(record) => {
                    let rows = record.tables.iter().find(|t| t.name == "rows").unwrap();
                    assert_eq!(rows.rows, 3, "another database was dumped");
                    dumped += 1;
                }
                Err(_) => refused += 1,
            }
        }
    });
    println!("{dumped} dumped, {refused} refused");
    assert!(dumped > 0 && refused > 0, "{dumped} dumped, {refused} refused");
    assert_eq!(state(&elsewhere.join("data")), theirs);
}

#[test]
fn a_kill_while_it_is_staged_leaves_what_a_discard_removes() {
    let dir = quick_dir();
    let path = dir.path().join("app.db");
    drop(database(&path, "delete", 40));
    let mut it = linked(&path);
    let exchange = it.exchange_names(JOB);
    let (bytes, record) = dump(&mut it);
    let before = state(dir.path());
    for length in [0, 1, 4096, bytes.len()] {
        std::fs::write(dir.path().join(&exchange.staged), &bytes[..length]).unwrap();
        assert_eq!(it.side(&exchange).unwrap(), Side::Old);
        it.discard(&exchange).unwrap();
        assert_eq!(state(dir.path()), before);
        it.stage(&mut bytes.as_slice(), &record, &exchange).unwrap();
        it.discard(&exchange).unwrap();
    }
}

#[test]
fn long_names_are_cut_so_that_all_of_their_files_have_names() {
    let dir = quick_dir();
    let path = dir.path().join(format!("{}.db", "é".repeat(115)));
    drop(database(&path, "delete", 3));
    let mut it = linked(&path);
    let exchange = it.exchange_names(JOB);
    assert!(exchange.staged.len() + "-journal".len() <= 255 && exchange.staged.ends_with(".bs_0badcafe_new"));
    let (bytes, record) = dump(&mut it);
    it.stage(&mut bytes.as_slice(), &record, &exchange).unwrap();
    it.exchange(&exchange, Side::New).unwrap();
    it.discard(&exchange).unwrap();
}
