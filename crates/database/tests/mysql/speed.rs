//! What counting and hashing cost: `cargo test -p backstay-database --test mysql speed -- --ignored --nocapture`.

use std::io::Read as _;
use std::time::{Duration, Instant};

use backstay_database::{Database as _, Hashes, MySql, Options};
use backstay_testing::MariaDb;

use crate::world::{endpoint, options};

/// Reads a dump in blocks of 1 MiB to its end; its bytes.
fn read(mut dump: impl std::io::Read) -> u64 {
    let mut block = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match dump.read(&mut block).unwrap() {
            0 => return bytes,
            read => bytes += read as u64,
        }
    }
}

fn plain(server: &MariaDb) -> Duration {
    let begin = Instant::now();
    let mut child = server
        .client("mariadb-dump")
        .args([
            "--single-transaction",
            "--quick",
            "--routines",
            "--triggers",
            "--events",
            "--hex-blob",
            "shop",
        ])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    read(child.stdout.take().unwrap());
    assert!(child.wait().unwrap().success());
    begin.elapsed()
}

fn ours(server: &MariaDb, hashes: Hashes) -> Duration {
    let mut database = MySql::new(endpoint(server, "root"), Options { hashes, ..options() });
    let begin = Instant::now();
    let mut dump = database.dump().unwrap();
    read(&mut dump);
    let record = dump.finish().unwrap();
    assert_eq!(record.tables[0].hash.is_some(), hashes == Hashes::All);
    begin.elapsed()
}

#[test]
#[ignore = "takes a while and proves no property: measures"]
fn how_long_a_dump_of_300_mb_takes() {
    let server = MariaDb::start_with(&["--innodb-buffer-pool-size=1G"]);
    server.sql(
        "CREATE DATABASE shop; USE shop; CREATE TABLE posts (id INT PRIMARY KEY, a VARCHAR(200), b TEXT, c BIGINT, at DATETIME); \
         INSERT INTO posts SELECT seq, CONCAT(MD5(seq), ' it''s ', MD5(seq + 1)), REPEAT(CONCAT(MD5(seq * 7), ' \"text\", '), 7), seq * 12345, \
         '2026-01-01 00:00:00' FROM seq_1_to_700000;",
    );
    // In turns, so that all meet the same load of the machine; the best of each.
    let all = [Hashes::None, Hashes::Affordable, Hashes::All];
    let mut best = [Duration::MAX; 4];
    for _ in 0..5 {
        best[0] = best[0].min(plain(&server));
        for (best, hashes) in best[1..].iter_mut().zip(all) {
            *best = (*best).min(ours(&server, hashes));
        }
    }
    println!("the tool alone: {:?}", best[0]);
    for (ours, hashes) in best[1..].iter().zip(all) {
        println!("{hashes:?}: {ours:?}, {:.2} of the tool alone", ours.as_secs_f64() / best[0].as_secs_f64());
    }
    let mut database = MySql::new(endpoint(&server, "root"), options());
    let mut dump = database.dump().unwrap();
    let mut bytes = Vec::new();
    dump.read_to_end(&mut bytes).unwrap();
    let record = dump.finish().unwrap();
    println!("{} MB", bytes.len() >> 20);
    let exchange = database.exchange_names("0123abcd");
    let begin = Instant::now();
    database.stage(&mut bytes.as_slice(), &record, &exchange).unwrap();
    println!("staged and compared in {:?}", begin.elapsed());
    let begin = Instant::now();
    database.exchange(&exchange, backstay_database::Side::New).unwrap();
    println!("exchanged in {:?}", begin.elapsed());
}
