//! How long dumps take beside `pg_dump -Fc -Z0`, and a restore: `dump_speed CONNECTION_STRING [ROUNDS]`.
//!
//! Each is run in turn and the fastest of the rounds counts: whatever else runs on the machine only makes it slower.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::panic, reason = "a measurement, not the product")]

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use backstay_database::{ConnectionType, DumpRecord, Endpoint, Hashes, Options, Side, connection};

fn main() {
    let mut args = std::env::args().skip(1);
    let text = args.next().unwrap_or_else(|| panic!("dump_speed CONNECTION_STRING [ROUNDS]"));
    let rounds: u32 = args.next().map_or(3, |n| n.parse().unwrap());
    let endpoint = connection::parse(&text, ConnectionType::PostgreSql).unwrap();
    let mut tool = Vec::new();
    let mut ours = [Vec::new(), Vec::new(), Vec::new()];
    let kinds = [Hashes::None, Hashes::Affordable, Hashes::All];
    for _ in 0..rounds {
        tool.push(pg_dump(&text));
        for (times, hashes) in ours.iter_mut().zip(kinds) {
            times.push(dump(&endpoint, hashes).0);
        }
    }
    let best = |times: &[Duration]| times.iter().min().unwrap().as_secs_f64();
    println!("pg_dump -Fc -Z0 > file   {:6.2} s", best(&tool));
    for (times, hashes) in ours.iter().zip(kinds) {
        println!("hashes {hashes:<17?} {:6.2} s  {:.2} times", best(times), best(times) / best(&tool));
    }
    restore(&endpoint);
}

fn pg_dump(text: &str) -> Duration {
    let begin = Instant::now();
    let file = std::fs::File::create("/dev/shm/dump_speed").unwrap();
    let mut command = Command::new("pg_dump");
    assert!(command.args(["-Fc", "-Z0", "-d", text]).stdout(Stdio::from(file)).status().unwrap().success());
    let took = begin.elapsed();
    std::fs::remove_file("/dev/shm/dump_speed").unwrap();
    took
}

fn dump(endpoint: &Endpoint, hashes: Hashes) -> (Duration, Vec<u8>, DumpRecord) {
    let options = Options { hashes, ..Options::default() };
    let mut database = backstay_database::open(endpoint, options).unwrap();
    let begin = Instant::now();
    let mut dump = database.dump().unwrap();
    let mut bytes = Vec::with_capacity(400 << 20);
    dump.read_to_end(&mut bytes).unwrap();
    let record = dump.finish().unwrap();
    (begin.elapsed(), bytes, record)
}

fn restore(endpoint: &Endpoint) {
    let (_, bytes, record) = dump(endpoint, Hashes::All);
    println!("{} MB, {} tables", bytes.len() / 1_000_000, record.tables.len());
    let mut database = backstay_database::open(endpoint, Options::default()).unwrap();
    let exchange = database.exchange_names("00000000");
    let begin = Instant::now();
    database.stage(&mut bytes.as_slice(), &record, &exchange).unwrap();
    println!("staged and compared in   {:6.2} s", begin.elapsed().as_secs_f64());
    for side in [Side::New, Side::Old] {
        let begin = Instant::now();
        database.exchange(&exchange, side).unwrap();
        println!("exchanged in             {:6.3} s", begin.elapsed().as_secs_f64());
    }
    database.discard(&exchange).unwrap();
}
