//! Dumps and loads that something ends in the middle.

use std::io::Read as _;
use std::process::Command;

use backstay_database::{Database as _, Dump, DumpRecord, Side};
use backstay_model::{Code, Error, Result};
use backstay_testing::MariaDb;

use crate::world::{OWNER, all_of, databases, dump, same, shop};

/// A `shop` whose dump is larger than all buffers on its way.
fn large(server: &MariaDb) {
    server.sql(&format!(
        "CREATE DATABASE shop; USE shop; CREATE TABLE a (id INT PRIMARY KEY AUTO_INCREMENT, body LONGTEXT); \
         INSERT INTO a (body) VALUES (REPEAT('some text ', 20000)); {OWNER}"
    ));
    for _ in 0..7 {
        server.sql("INSERT INTO shop.a (body) SELECT body FROM shop.a");
    }
}

fn rest(mut dump: Box<dyn Dump + '_>) -> Result<DumpRecord> {
    match dump.read_to_end(&mut Vec::new()) {
        Ok(_) => dump.finish(),
        Err(e) => Err(e.downcast::<Error>().expect("an error of ours")),
    }
}

#[test]
fn a_dump_whose_connection_or_server_is_killed_does_not_count() {
    let mut server = MariaDb::start();
    large(&server);
    let mut root = shop(&server, "root");
    let mut begun = root.dump().unwrap();
    begun.read_exact(&mut vec![0; 1_000_000]).unwrap();
    let running = "SELECT ID FROM information_schema.PROCESSLIST WHERE INFO LIKE '%SQL_NO_CACHE%' AND ID <> CONNECTION_ID()";
    for id in server.sql(running).lines() {
        server.sql(&format!("KILL {id}"));
    }
    let error = rest(begun).unwrap_err();
    assert_eq!(error.code(), Code::DatabaseInterrupted, "{error}");

    let mut begun = root.dump().unwrap();
    begun.read_exact(&mut vec![0; 1_000_000]).unwrap();
    server.kill();
    let error = rest(begun).unwrap_err();
    assert_eq!(error.code(), Code::DatabaseInterrupted, "{error}");
    assert_eq!(root.dump().err().map(|e| e.code()), Some(Code::DatabaseUnreachable));
    server.restart();
    assert_eq!(dump(&mut root).1.tables[0].rows, 128);
}

#[test]
fn a_load_whose_server_is_killed_is_cleared_away_afterwards() {
    let mut server = MariaDb::start();
    large(&server);
    let checksum = "CHECKSUM TABLE shop.a";
    let before = server.sql(checksum);
    let mut root = shop(&server, "root");
    let (bytes, record) = dump(&mut root);
    let exchange = root.exchange_names("0123abcd");
    struct Killing<'a>(&'a [u8], &'a mut MariaDb);
    impl std::io::Read for Killing<'_> {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            if self.0.len() < 10_000_000 {
                self.1.kill();
            }
            self.0.read(buf)
        }
    }
    let error = root.stage(&mut Killing(&bytes, &mut server), &record, &exchange).unwrap_err();
    assert_eq!(error.code(), Code::DatabaseInterrupted, "{error}");
    assert!(error.message().contains("`shop_bs_0123abcd_new` is left"), "{error}");
    server.restart();
    root.discard(&exchange).unwrap();
    assert_eq!(databases(&server), ["shop"]);
    assert_eq!(server.sql(checksum), before);
}

#[test]
fn rows_that_come_and_go_meanwhile_are_in_neither_dump_nor_record() {
    let server = MariaDb::start();
    large(&server);
    let mut root = shop(&server, "root");
    server.sql("CREATE TABLE shop.z (id INT PRIMARY KEY); INSERT INTO shop.z VALUES (1),(2)");
    let mut begun = root.dump().unwrap();
    // The snapshot stands as soon as a dump has begun.
    server.sql("DELETE FROM shop.z; INSERT INTO shop.z VALUES (7); DELETE FROM shop.a");
    let mut bytes = Vec::new();
    begun.read_to_end(&mut bytes).unwrap();
    let record = begun.finish().unwrap();
    assert_eq!(record.tables.iter().map(|table| table.rows).collect::<Vec<_>>(), [128, 2]);
    let exchange = root.exchange_names("0123abcd");
    root.stage(&mut bytes.as_slice(), &record, &exchange).unwrap();
    root.exchange(&exchange, Side::New).unwrap();
    assert_eq!(server.sql("SELECT id FROM shop.z"), "1\n2\n");
}

#[test]
fn a_table_that_is_altered_meanwhile_ends_the_dump() {
    let server = MariaDb::start();
    large(&server);
    server.sql("CREATE TABLE shop.z (id INT PRIMARY KEY); INSERT INTO shop.z VALUES (1),(2)");
    let mut root = shop(&server, "root");
    let mut begun = root.dump().unwrap();
    begun.read_exact(&mut vec![0; 100_000]).unwrap();
    server.sql("ALTER TABLE shop.z ADD COLUMN more INT, ALGORITHM=COPY");
    let error = rest(begun).unwrap_err();
    assert_eq!(error.code(), Code::DatabaseInterrupted, "{error}");
}

/// A small file system, gone with the test.
struct Small(tempfile::TempDir);

impl Small {
    fn mount() -> Option<Self> {
        let dir = backstay_testing::quick_dir();
        let options = ["-t", "tmpfs", "-o", "size=50m,mode=1777", "none"];
        let mounted = Command::new("mount").args(options).arg(dir.path()).status();
        mounted.is_ok_and(|status| status.success()).then_some(Small(dir))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(self.0.path()).status().ok();
    }
}

// With pages of large values a MariaDB whose disk is full gives up as a whole while it takes back the last statement, with its own
// data as with ours. Rows that fit their pages show what a server says that stays.
#[test]
fn a_full_disk_of_the_server_is_told_and_nothing_is_left() {
    let Some(small) = Small::mount() else {
        println!("no file system can be mounted here, this part is left out");
        return;
    };
    let server = MariaDb::start();
    let place = small.0.path().display();
    server.sql(&format!(
        "CREATE DATABASE shop; USE shop; CREATE TABLE a (id INT PRIMARY KEY AUTO_INCREMENT, body VARCHAR(400)) DATA DIRECTORY='{place}'; \
         INSERT INTO a (body) SELECT REPEAT('some text ', 30) FROM seq_1_to_90000; {OWNER}"
    ));
    let before = all_of(&server, "shop");
    let mut root = shop(&server, "root");
    let taken = dump(&mut root);
    let exchange = root.exchange_names("0123abcd");
    // The copy lies beside the original, where there is no room for both.
    let error = root.stage(&mut taken.0.as_slice(), &taken.1, &exchange).unwrap_err();
    assert_eq!(error.code(), Code::DatabaseFull, "{error}");
    assert!(!error.message().contains("some text"), "{error}");
    assert_eq!(databases(&server), ["shop"]);
    same(&all_of(&server, "shop"), &before);
}
