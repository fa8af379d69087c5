//! What every [`Database`] must do, as one suite that each implementation runs against a real server.
//!
//! Every check gets a database of its own. A check that fails panics with what was expected.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "this module is a test, made a module so that every kind can run it"
)]

use std::collections::BTreeSet;
use std::io::{self, Read};

use backstay_model::{Cancel, Code, Error, Result};

use crate::{Database, DumpRecord, Exchange, Hashes, Options, Side};

/// What the suite needs of a server: databases by their names, made and looked at by other means than those under test.
pub trait Bench {
    /// Makes a database of that name with content: several tables, together at least 300 KB in a dump.
    fn make(&self, name: &str);

    /// Changes the content: rows come, go and change, and so does the structure.
    fn change(&self, name: &str);

    /// A text that is the same for the same content and structure only; none where there is no such database.
    fn digest(&self, name: &str) -> Option<String>;

    /// Removes a database.
    fn remove(&self, name: &str);

    /// The names of all databases there are.
    fn names(&self) -> BTreeSet<String>;

    /// Statements that would change something.
    fn writes(&self) -> Vec<String>;

    /// How long a name may be, in bytes.
    fn name_max(&self) -> usize;

    /// The database under test.
    fn open(&self, name: &str, options: Options) -> Box<dyn Database>;
}

/// A check with its name, for a database of that name.
type Check = (&'static str, fn(&dyn Bench, &str));

/// The job of the exchanges.
const JOB: &str = "0a1b2c3d";

/// Runs every check.
pub fn suite(bench: &dyn Bench) {
    let checks: &[Check] = &[
        ("looking changes nothing", looking),
        ("a dump and its record", dumping),
        ("a dump that is not read to its end does not count", half_read),
        ("there and back and there", round_trip),
        ("two restores in a row", twice),
        ("the database in use is gone", live_missing),
        ("what is staged is not overwritten", staged_already),
        ("nothing staged, nothing to discard", nothing_staged),
        ("a dump that was cut off", cut_off),
        ("a dump with a flipped byte", flipped),
        ("a dump with another's record", wrong_record),
        ("a source that fails", failing_source),
        ("cancelled work", cancelled),
        ("texts of a query", texts),
    ];
    let before = bench.names();
    for (i, (name, check)) in checks.iter().enumerate() {
        println!("database contract: {name}");
        let database = format!("contract_{i}");
        bench.make(&database);
        check(bench, &database);
        if bench.digest(&database).is_some() {
            bench.remove(&database);
        }
        assert_eq!(bench.names(), before, "{name}: something is left behind");
    }
    println!("database contract: the longest name");
    let long = "n".repeat(bench.name_max());
    bench.make(&long);
    round_trip(bench, &long);
    bench.remove(&long);
    assert_eq!(bench.names(), before);
}

fn options() -> Options {
    Options { hashes: Hashes::All, ..Options::default() }
}

fn open(bench: &dyn Bench, name: &str) -> Box<dyn Database> {
    bench.open(name, options())
}

fn dump(database: &mut dyn Database) -> (Vec<u8>, DumpRecord) {
    let mut dump = database.dump().unwrap();
    let mut bytes = Vec::new();
    dump.read_to_end(&mut bytes).unwrap();
    (bytes, dump.finish().unwrap())
}

/// Stages and checks that nothing else than the staged database came of it.
fn stage(
    bench: &dyn Bench,
    database: &mut dyn Database,
    (bytes, record): &(Vec<u8>, DumpRecord),
    exchange: &Exchange,
) -> Result<Vec<String>> {
    let (names, live) = (bench.names(), bench.digest(&exchange.live));
    let result = database.stage(&mut bytes.as_slice(), record, exchange);
    let mut expected = names;
    if result.is_ok() {
        expected.insert(exchange.staged.clone());
    }
    assert_eq!(bench.names(), expected, "after staging ({result:?})");
    assert_eq!(bench.digest(&exchange.live), live, "staging changed the database in use");
    result
}

fn looking(bench: &dyn Bench, name: &str) {
    let (names, digest) = (bench.names(), bench.digest(name));
    let mut database = open(bench, name);
    let probe = database.probe().unwrap();
    assert!(probe.version.contains('.'), "{}", probe.version);
    assert!(probe.estimated_bytes > 100_000, "{}", probe.estimated_bytes);
    assert_eq!(probe.missing, [""; 0]);
    assert!(!probe.database.is_empty());
    let exchange = database.exchange_names(JOB);
    assert_eq!(exchange, database.exchange_names(JOB));
    assert_ne!(exchange, database.exchange_names("ffffffff"));
    assert_eq!(BTreeSet::from([&exchange.live, &exchange.staged, &exchange.kept]).len(), 3);
    let dumped = dump(&mut *database);
    assert!(!database.check_restore(&dumped.1, &exchange).unwrap().is_empty());
    assert_eq!(database.side(&exchange).unwrap(), Side::Old);
    assert_eq!((bench.names(), bench.digest(name)), (names, digest));
}

fn dumping(bench: &dyn Bench, name: &str) {
    let mut database = open(bench, name);
    let (bytes, record) = dump(&mut *database);
    assert_eq!(record.bytes, bytes.len() as u64);
    assert!(bytes.len() > 300_000, "the bench's database is too small: {}", bytes.len());
    assert!(record.tables.len() >= 2 && record.tables.iter().any(|table| table.rows > 0));
    assert!(record.tables.iter().all(|table| table.hash.is_some()), "{:?}", record.tables);
    let (_, again) = dump(&mut *database);
    assert_eq!((&again.tables, &again.schema_hash), (&record.tables, &record.schema_hash));
    assert!(again.snapshot >= record.snapshot);
    let mut plain = bench.open(name, Options { hashes: Hashes::None, ..Options::default() });
    let (_, counted) = dump(&mut *plain);
    assert!(counted.tables.iter().all(|table| table.hash.is_none()));
    bench.change(name);
    let (_, changed) = dump(&mut *database);
    assert_ne!(changed.schema_hash, record.schema_hash, "another structure has the same hash");
    assert_ne!(changed.tables, record.tables, "other rows have the same hashes");
}

fn half_read(bench: &dyn Bench, name: &str) {
    let digest = bench.digest(name);
    let mut database = open(bench, name);
    for length in [0, 1, 70_000] {
        let mut dump = database.dump().unwrap();
        dump.read_exact(&mut vec![0; length]).unwrap();
        assert!(dump.finish().is_err(), "a dump of which {length} bytes were read counts");
    }
    drop(database.dump().unwrap());
    let mut dump = database.dump().unwrap();
    dump.read_exact(&mut [0; 1000]).unwrap();
    drop(dump);
    assert_eq!(bench.digest(name), digest);
    dumping(bench, name);
}

fn round_trip(bench: &dyn Bench, name: &str) {
    let mut database = open(bench, name);
    let exchange = database.exchange_names(JOB);
    let before = bench.digest(name);
    let dumped = dump(&mut *database);
    bench.change(name);
    let after = bench.digest(name);
    assert_ne!(before, after);
    stage(bench, &mut *database, &dumped, &exchange).unwrap();
    assert_eq!(bench.digest(&exchange.staged), before);
    assert_eq!(database.side(&exchange).unwrap(), Side::Old);
    for _ in 0..2 {
        for (to, live, place, other) in
            [(Side::New, &before, &exchange.kept, &after), (Side::Old, &after, &exchange.staged, &before)]
        {
            // Again and again is no different, nor is it for whoever knows only the names.
            for _ in 0..2 {
                let mut later = open(bench, name);
                later.exchange(&exchange, to).unwrap();
                assert_eq!(later.side(&exchange).unwrap(), to);
                assert_eq!((&bench.digest(name), &bench.digest(place)), (live, other), "{to:?}");
            }
        }
    }
    database.exchange(&exchange, Side::New).unwrap();
    for _ in 0..2 {
        database.discard(&exchange).unwrap();
        assert_eq!(bench.digest(name), before);
        assert_eq!((bench.digest(&exchange.staged), bench.digest(&exchange.kept)), (None, None));
    }
}

fn twice(bench: &dyn Bench, name: &str) {
    let mut database = open(bench, name);
    let first = (bench.digest(name), dump(&mut *database));
    bench.change(name);
    let second = (bench.digest(name), dump(&mut *database));
    for (job, (digest, dumped)) in [("00000001", &first), ("00000002", &second), ("00000003", &first)] {
        let exchange = database.exchange_names(job);
        stage(bench, &mut *database, dumped, &exchange).unwrap();
        database.exchange(&exchange, Side::New).unwrap();
        assert_eq!(&bench.digest(name), digest);
        database.discard(&exchange).unwrap();
    }
    // And one that is given up.
    let exchange = database.exchange_names(JOB);
    stage(bench, &mut *database, &second.1, &exchange).unwrap();
    database.discard(&exchange).unwrap();
    assert_eq!(bench.digest(name), first.0);
    assert_eq!(bench.digest(&exchange.staged), None);
}

fn live_missing(bench: &dyn Bench, name: &str) {
    let mut database = open(bench, name);
    let exchange = database.exchange_names(JOB);
    let before = bench.digest(name);
    let dumped = dump(&mut *database);
    bench.remove(name);
    assert!(!database.check_restore(&dumped.1, &exchange).unwrap().is_empty());
    stage(bench, &mut *database, &dumped, &exchange).unwrap();
    assert_eq!(database.side(&exchange).unwrap(), Side::Old);
    for _ in 0..2 {
        database.exchange(&exchange, Side::New).unwrap();
        assert_eq!((database.side(&exchange).unwrap(), bench.digest(name)), (Side::New, before.clone()));
        database.exchange(&exchange, Side::Old).unwrap();
        assert_eq!((database.side(&exchange).unwrap(), bench.digest(name)), (Side::Old, None));
        assert_eq!(bench.digest(&exchange.staged), before);
    }
    database.exchange(&exchange, Side::New).unwrap();
    database.discard(&exchange).unwrap();
    database.discard(&exchange).unwrap();
    assert_eq!(bench.digest(name), before);
}

fn staged_already(bench: &dyn Bench, name: &str) {
    let mut database = open(bench, name);
    let exchange = database.exchange_names(JOB);
    bench.make(&exchange.staged);
    bench.change(&exchange.staged);
    let theirs = bench.digest(&exchange.staged);
    let dumped = dump(&mut *database);
    let error = database.stage(&mut dumped.0.as_slice(), &dumped.1, &exchange).unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    assert_eq!(bench.digest(&exchange.staged), theirs);
    bench.remove(&exchange.staged);
}

fn nothing_staged(bench: &dyn Bench, name: &str) {
    let digest = bench.digest(name);
    let mut database = open(bench, name);
    let exchange = database.exchange_names(JOB);
    database.discard(&exchange).unwrap();
    database.exchange(&exchange, Side::Old).unwrap();
    assert!(database.exchange(&exchange, Side::New).is_err());
    assert_eq!(database.side(&exchange).unwrap(), Side::Old);
    assert_eq!(bench.digest(name), digest);
}

fn cut_off(bench: &dyn Bench, name: &str) {
    let mut database = open(bench, name);
    let exchange = database.exchange_names(JOB);
    let (bytes, record) = dump(&mut *database);
    let length = bytes.len();
    for cut in [0, 100, length / 2, length - 1000, length - 1] {
        let half = (bytes[..cut].to_vec(), record.clone());
        let result = stage(bench, &mut *database, &half, &exchange);
        assert!(result.is_err(), "a dump of {length} bytes was taken when cut off after {cut}");
    }
    stage(bench, &mut *database, &(bytes, record), &exchange).unwrap();
    database.discard(&exchange).unwrap();
}

fn flipped(bench: &dyn Bench, name: &str) {
    let mut database = open(bench, name);
    let exchange = database.exchange_names(JOB);
    let before = bench.digest(name);
    let (bytes, record) = dump(&mut *database);
    let mut detected = 0;
    for i in 1..8 {
        let mut broken = (bytes.clone(), record.clone());
        broken.0[bytes.len() * i / 8] ^= 0x04;
        match stage(bench, &mut *database, &broken, &exchange) {
            Err(_) => detected += 1,
            // A comment, or a time that nobody reads: it makes no difference then.
            Ok(_) => {
                assert_eq!(bench.digest(&exchange.staged), before, "a flipped byte was taken");
                database.discard(&exchange).unwrap();
            }
        }
    }
    assert!(detected >= 4, "{detected} of 7 flipped bytes were noticed");
}

/// Another hash of the same form.
fn other_hash(hash: &str) -> String {
    let (most, last) = hash.split_at(hash.len() - 1);
    format!("{most}{}", if last == "0" { '1' } else { '0' })
}

fn wrong_record(bench: &dyn Bench, name: &str) {
    let mut database = open(bench, name);
    let exchange = database.exchange_names(JOB);
    let (bytes, record) = dump(&mut *database);
    let mut refused = |change: fn(&mut DumpRecord), code: Code| {
        let mut wrong = (bytes.clone(), record.clone());
        change(&mut wrong.1);
        let error = stage(bench, &mut *database, &wrong, &exchange).unwrap_err();
        assert_eq!(error.code(), code, "{error:?}");
    };
    refused(|record| record.tables[0].rows += 1, Code::DatabaseMismatch);
    refused(
        |record| record.tables[0].hash = record.tables[0].hash.as_deref().map(other_hash),
        Code::DatabaseMismatch,
    );
    refused(|record| record.tables[0].name.push('x'), Code::DatabaseMismatch);
    refused(|record| drop(record.tables.pop()), Code::DatabaseMismatch);
    refused(|record| record.schema_hash = "0".repeat(64), Code::DatabaseMismatch);
    refused(|record| record.format = "another".to_owned(), Code::DatabaseDumpUnusable);
}

/// Gives so many bytes, then does something and, where that says so, fails.
struct Then<'a, F> {
    bytes: &'a [u8],
    left: usize,
    then: F,
}

impl<F: FnMut() -> io::Result<()>> Read for Then<'_, F> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            (self.then)()?;
        }
        let most = if self.left == 0 { buf.len() } else { self.left.min(buf.len()) };
        let read = self.bytes.read(&mut buf[..most])?;
        self.left = self.left.saturating_sub(read);
        Ok(read)
    }
}

fn failing_source(bench: &dyn Bench, name: &str) {
    let names = bench.names();
    let mut database = open(bench, name);
    let exchange = database.exchange_names(JOB);
    let (bytes, record) = dump(&mut *database);
    for left in [0, bytes.len() / 2] {
        let then = || Err(io::Error::other(Error::new(Code::VaultDamaged, "A pack is broken")));
        let mut source = Then { bytes: &bytes, left, then };
        let error = database.stage(&mut source, &record, &exchange).unwrap_err();
        assert_eq!(error.code(), Code::VaultDamaged, "{error:?}");
        assert_eq!(bench.names(), names);
    }
}

fn cancelled(bench: &dyn Bench, name: &str) {
    let (names, digest) = (bench.names(), bench.digest(name));
    let dumped = dump(&mut *open(bench, name));
    let with = |cancel: &Cancel| bench.open(name, Options { cancel: cancel.clone(), ..options() });

    let cancel = Cancel::new();
    cancel.cancel();
    assert_eq!(with(&cancel).dump().err().map(|e| e.code()), Some(Code::Cancelled));

    let cancel = Cancel::new();
    let mut database = with(&cancel);
    let mut dump = database.dump().unwrap();
    dump.read_exact(&mut [0; 1000]).unwrap();
    cancel.cancel();
    let ended = dump.read_to_end(&mut Vec::new()).map_err(crate::tool::inner).map(drop);
    let ended = ended.and_then(|()| dump.finish().map(drop));
    assert_eq!(ended.unwrap_err().code(), Code::Cancelled);

    for left in [0, dumped.0.len() / 2] {
        let cancel = Cancel::new();
        let mut database = with(&cancel);
        let exchange = database.exchange_names(JOB);
        let then = || {
            cancel.cancel();
            Ok(())
        };
        let mut source = Then { bytes: &dumped.0, left, then };
        let error = database.stage(&mut source, &dumped.1, &exchange).unwrap_err();
        assert_eq!(error.code(), Code::Cancelled, "{error:?}");
        assert_eq!((bench.names(), bench.digest(name)), (names.clone(), digest.clone()));
    }
}

fn texts(bench: &dyn Bench, name: &str) {
    let digest = bench.digest(name);
    let mut database = open(bench, name);
    let many = "SELECT 'a' UNION ALL SELECT NULL UNION ALL SELECT 'c'";
    assert_eq!(database.texts(many, 10).unwrap(), ["a", "c"]);
    assert_eq!(database.texts("SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3", 2).unwrap().len(), 2);
    assert!(database.texts("SELECT no_such_column", 10).is_err());
    for write in bench.writes() {
        assert!(database.texts(&write, 10).is_err(), "`{write}` was run");
        assert_eq!(bench.digest(name), digest);
    }
}
