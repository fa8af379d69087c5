//! Databases of any size there and back: the same rows, the same structure, and memory that does not grow with them.
//!
//! `BACKSTAY_DATABASE_MB` says how many megabytes each of the two holds; by default a few.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::Shop;

/// What the program may use, in MB, however large the databases are.
const MEMORY: u64 = 250;

#[test]
fn databases_of_any_size_come_back_whole_in_bounded_memory() {
    let size: u64 = std::env::var("BACKSTAY_DATABASE_MB").ok().and_then(|n| n.parse().ok()).unwrap_or(12);
    let shop = Shop::new();
    fill(&shop, size);
    let before = sums(&shop);
    let backup = run(&shop, &["backup", "shop"]);
    let second = run(&shop, &["backup", "shop"]);
    let stored = Command::new("du").arg("-sm").arg(shop.world.path("home")).output().unwrap().stdout;
    let stored = String::from_utf8_lossy(&stored).split_whitespace().next().unwrap_or("?").to_owned();
    shop.pg.psql("postgres", "DROP DATABASE shop;");
    shop.maria.sql("DROP DATABASE shop;");
    let restore = run(&shop, &["restore", "shop", "--with-databases", "--yes"]);
    assert_eq!(sums(&shop), before, "everything is as it was");
    assert_eq!(shop.left(), "");
    println!(
        "two databases of {size} MB: backup {backup}, again {second}, vault {stored} MB, restore {restore}"
    );
}

/// Rows of all kinds, about a kilobyte each, that compression makes about half as large.
fn fill(shop: &Shop, size: u64) {
    let rows = size * 1_000;
    let drawn = |n: &str, many: u64| (1..=many).map(|k| format!("MD5({n} * 31 + {k})")).collect::<Vec<_>>();
    shop.pg.psql(
        "shop",
        &format!(
            "SET ROLE web;
             CREATE TABLE bulk (id bigint PRIMARY KEY, at timestamptz, price numeric(12, 4), tags text[], doc jsonb, raw bytea, note text,
                                twice numeric GENERATED ALWAYS AS (price * 2) STORED) PARTITION BY RANGE (id);
             CREATE TABLE bulk_low PARTITION OF bulk FOR VALUES FROM (0) TO ({half});
             CREATE TABLE bulk_high PARTITION OF bulk FOR VALUES FROM ({half}) TO (MAXVALUE);
             INSERT INTO bulk SELECT n, timestamptz '2026-01-01' + n * interval '1.000001 s', n / 7.0,
                    ARRAY['t' || n, NULL, 'a,\"b\"'], jsonb_build_object('n', n, 'text', md5(n::text)),
                    decode((SELECT string_agg(md5((n * 31 + k)::text), '') FROM generate_series(1, 12) k), 'hex'),
                    (SELECT string_agg(md5((n * 37 + k)::text), E'\\t\\\\\\n') FROM generate_series(1, 14) k)
             FROM generate_series(1, {rows}) n;
             CREATE INDEX by_doc ON bulk USING gin (tags);
             SELECT lo_from_bytea(0, decode(repeat('c0ffee', 100000), 'hex'));",
            half = rows / 2
        ),
    );
    shop.maria.sql(&format!(
        "USE shop;
         CREATE TABLE bulk (id bigint PRIMARY KEY, at datetime(6), price decimal(12, 4), kind enum('a', 'b', ''), flags bit(5), doc json,
                            raw varbinary(400), note text, twice decimal(13, 4) AS (price * 2) STORED, KEY (at), KEY (note(20))) ENGINE=InnoDB;
         INSERT INTO bulk (id, at, price, kind, flags, doc, raw, note)
         SELECT seq, '2026-01-01' + INTERVAL seq SECOND, seq / 7, ELT(1 + seq % 3, 'a', 'b', ''), seq % 32, JSON_OBJECT('n', seq),
                UNHEX(CONCAT({raw})), CONCAT_WS('\\t\\\\\\n\u{1f600}', {note})
         FROM seq_1_to_{rows};",
        raw = drawn("seq", 12).join(", "),
        note = drawn("seq + 7", 14).join(", "),
    ));
}

/// What the servers make of all rows, and the structure as their own tools write it.
fn sums(shop: &Shop) -> Vec<String> {
    let rows = "SELECT count(*), sum(hashtextextended(b::text, 0)), sum(twice) FROM bulk b;
                SELECT count(*), sum(hashtextextended(p::text, 0)) FROM posts p;
                SELECT count(*), md5(string_agg(data, '' ORDER BY pageno)) FROM pg_largeobject;";
    let mut sums = vec![shop.pg.psql("shop", rows)];
    sums.push(
        shop.maria
            .sql("USE shop; CHECKSUM TABLE bulk, customers, orders EXTENDED; SELECT SUM(twice) FROM bulk;"),
    );
    let pg = shop.pg.client("pg_dump").args(["--schema-only", "shop"]).output().unwrap();
    let maria = shop
        .maria
        .client("mariadb-dump")
        .args(["--skip-dump-date", "--no-data", "--routines", "--triggers", "--events", "shop"])
        .output()
        .unwrap();
    assert!(pg.status.success() && maria.status.success(), "{pg:?} {maria:?}");
    for text in [pg.stdout, maria.stdout] {
        let text = String::from_utf8_lossy(&text).into_owned();
        // pg_dump draws a new key for each dump.
        sums.extend(text.lines().filter(|l| !l.contains("restrict ")).map(str::to_owned));
    }
    sums
}

/// Runs the program, which must succeed within its memory; says what it took.
#[track_caller]
fn run(shop: &Shop, args: &[&str]) -> String {
    let begun = Instant::now();
    let mut child = shop.world.command(args).spawn().unwrap();
    let mut peak = 0;
    let status = loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let high = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let high = high.and_then(|line| line.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
        peak = peak.max(high.unwrap_or(0) >> 10);
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(status.success(), "{args:?}: {status}");
    assert!((1..MEMORY).contains(&peak), "{args:?} used {peak} MB");
    format!("{:.1} s with {peak} MB", begun.elapsed().as_secs_f64())
}
