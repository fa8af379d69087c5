//! Whatever is cut at whichever step: both sides can be had afterwards, and nothing is lost.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use backstay_database::conformance::Bench as _;
use backstay_database::{Database, Endpoint, Exchange, Host, Options, Place, Side};

use backstay_model::Code;
use backstay_testing::program;

use crate::bench::{PASSWORD, Server, dump, endpoint};

/// Stands before the server and cuts every connection when the client has sent so many messages, just before that one
/// arrives or just after it: to the server that is a client that was killed.
struct Cutter {
    port: u16,
    left: Arc<AtomicUsize>,
    cut: Arc<AtomicBool>,
    deliver: Arc<AtomicBool>,
}

impl Cutter {
    fn new(server: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let cutter = Cutter {
            port: listener.local_addr().unwrap().port(),
            left: Arc::new(AtomicUsize::new(usize::MAX)),
            cut: Arc::default(),
            deliver: Arc::default(),
        };
        let (left, cut, deliver) =
            (Arc::clone(&cutter.left), Arc::clone(&cutter.cut), Arc::clone(&cutter.deliver));
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(upstream) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                let answers = (upstream.try_clone().unwrap(), client.try_clone().unwrap(), Arc::clone(&cut));
                thread::spawn(move || {
                    let (from, to, cut) = answers;
                    pump(from, to, |_| !cut.load(Ordering::SeqCst), |_| true);
                });
                let (left, cut, deliver) = (Arc::clone(&left), Arc::clone(&cut), Arc::clone(&deliver));
                thread::spawn(move || {
                    let cutting = |_: &[u8]| {
                        let last =
                            left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
                        if last.is_err() {
                            cut.store(true, Ordering::SeqCst);
                        }
                        !cut.load(Ordering::SeqCst) || deliver.swap(false, Ordering::SeqCst)
                    };
                    pump(client, upstream, cutting, |_| !cut.load(Ordering::SeqCst));
                });
            }
        });
        cutter
    }

    /// Cuts at that message from now on; `deliver`: it still arrives.
    fn arm(&self, at: usize, deliver: bool) {
        self.cut.store(false, Ordering::SeqCst);
        self.deliver.store(deliver, Ordering::SeqCst);
        self.left.store(at, Ordering::SeqCst);
    }

    fn has_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }
}

/// Copies until there is no more, or until one of both says so before or after a block is passed on.
fn pump(
    mut from: TcpStream,
    mut to: TcpStream,
    mut before: impl FnMut(&[u8]) -> bool,
    mut after: impl FnMut(&[u8]) -> bool,
) {
    let mut block = [0; 64 << 10];
    while let Ok(read) = from.read(&mut block) {
        let block = &block[..read];
        if read == 0 || !before(block) || to.write_all(block).is_err() || !after(block) {
            break;
        }
    }
    from.shutdown(Shutdown::Both).ok();
    to.shutdown(Shutdown::Both).ok();
}

fn through(endpoint: &Endpoint, cutter: &Cutter) -> Box<dyn Database> {
    let place = Place::Hosts(vec![Host { name: "127.0.0.1".to_owned(), port: cutter.port }]);
    let options = Options { lock_wait: Duration::from_secs(10), ..Options::default() };
    backstay_database::open(&Endpoint { place, ..endpoint.clone() }, options).unwrap()
}

#[test]
fn an_exchange_that_is_cut_at_any_step_can_be_completed_for_either_side() {
    let server = Server::new();
    server.make("exchanged");
    let endpoint = endpoint(&server.0, "app", PASSWORD, "exchanged");
    let mut database = backstay_database::open(&endpoint, Options::default()).unwrap();
    let exchange = database.exchange_names("0a0b0c0d");
    let restored = server.digest("exchanged");
    let (bytes, record) = dump(&mut *database);
    server.change("exchanged");
    let changed = server.digest("exchanged");
    database.stage(&mut bytes.as_slice(), &record, &exchange).unwrap();

    let cutter = Cutter::new(server.0.port());
    let mut broken = through(&endpoint, &cutter);
    let (mut late, mut kills, mut after_commit) = (0, 0, 0);
    for at in 0.. {
        cutter.arm(at, at % 2 == 1);
        let result = broken.exchange(&exchange, Side::New);
        if !cutter.has_cut() {
            assert!(result.is_ok(), "{result:?}");
            late += 1;
        } else {
            kills += 1;
        }
        // The server may still be at what it was sent last: asking it again and again gives one answer in the end.
        let side = settled(&server, &mut *database, &exchange);
        after_commit += usize::from(cutter.has_cut() && side == Side::New);
        let (live, other) = match side {
            Side::New => (1500, &exchange.kept),
            Side::Old => (1351, &exchange.staged),
        };
        assert_eq!(posts(&server, "exchanged"), Some(live), "cut at {at}: {result:?}");
        assert_eq!(posts(&server, other), Some(1500 + 1351 - live), "cut at {at}: a side is lost");
        // Whoever comes later completes it, for the one side or for the other.
        let to = if at % 4 < 2 { Side::New } else { Side::Old };
        database.exchange(&exchange, to).unwrap();
        assert_eq!(posts(&server, "exchanged"), Some(if to == Side::New { 1500 } else { 1351 }));
        database.exchange(&exchange, Side::Old).unwrap();
        if late == 2 {
            break;
        }
    }
    println!("{kills} cuts of an exchange, {after_commit} of them after it was complete at the server");
    assert!(kills > 20 && after_commit > 0);
    assert_eq!(
        (server.digest("exchanged"), server.digest(&exchange.staged)),
        (changed.clone(), restored.clone())
    );

    // The same for giving up what was staged, and what was replaced.
    for side in [Side::Old, Side::New] {
        for at in 0.. {
            if at == 0 && side == Side::New {
                database.stage(&mut bytes.as_slice(), &record, &exchange).unwrap();
            }
            database.exchange(&exchange, side).unwrap();
            cutter.arm(at * 3, at % 2 == 1);
            let result = broken.discard(&exchange);
            let live = if side == Side::New { &restored } else { &changed };
            assert_eq!(&server.digest("exchanged"), live, "cut at {at}: {result:?}");
            if !cutter.has_cut() {
                break;
            }
            if server.digest(&exchange.kept).is_none() && server.digest(&exchange.staged).is_none() {
                break;
            }
        }
        database.discard(&exchange).unwrap();
        assert_eq!((server.digest(&exchange.kept), server.digest(&exchange.staged)), (None, None));
    }
    server.remove("exchanged");
}

/// The rows of one table: 1500 in the restored database, 1351 in the changed one.
fn posts(server: &Server, name: &str) -> Option<u32> {
    server.0.try_psql(name, "SELECT count(*) FROM posts").stdout.trim().parse().ok()
}

/// The side, once the server has done with whoever was cut off.
fn settled(server: &Server, database: &mut dyn Database, exchange: &Exchange) -> Side {
    let busy =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'backstay' AND datname = 'postgres'
                 AND (query LIKE '%exchanged%RENAME%' OR query IN ('BEGIN', 'COMMIT', 'ROLLBACK'))";
    while server.0.psql("postgres", busy) != "0\n" {
        thread::sleep(Duration::from_millis(5));
    }
    database.side(exchange).unwrap()
}

#[test]
fn a_restore_that_is_cut_at_any_step_leaves_the_database_in_use_alone() {
    let server = Server::new();
    server.make("staged");
    let endpoint = endpoint(&server.0, "app", PASSWORD, "staged");
    let mut database = backstay_database::open(&endpoint, Options::default()).unwrap();
    let exchange = database.exchange_names("0a0b0c0d");
    let before = server.digest("staged");
    let (bytes, record) = dump(&mut *database);
    let cutter = Cutter::new(server.0.port());
    let mut broken = through(&endpoint, &cutter);
    let (mut left_behind, mut at, mut kills) = (0, 0, 0);
    loop {
        cutter.arm(at, at % 2 == 1);
        let result = broken.stage(&mut bytes.as_slice(), &record, &exchange);
        assert_eq!(server.digest("staged"), before, "cut at {at}");
        if !cutter.has_cut() {
            result.unwrap();
            break;
        }
        let error = result.unwrap_err();
        kills += 1;
        if server.digest(&exchange.staged).is_some() {
            // The cleaner was cut off too; the error names what it could not remove.
            assert!(error.message().contains(&exchange.staged), "{error:?}");
            left_behind += 1;
        }
        database.discard(&exchange).unwrap();
        assert_eq!(server.digest(&exchange.staged), None);
        at += 11;
    }
    println!("{kills} cuts of a restore, after {left_behind} of them the new database was still there");
    assert!(kills > 5 && left_behind > 0);
    database.exchange(&exchange, Side::New).unwrap();
    database.discard(&exchange).unwrap();
    assert_eq!(server.digest("staged"), before);
    server.remove("staged");
}

#[test]
fn an_app_that_connects_again_and_again_does_not_hinder_an_exchange() {
    let server = Server::new();
    server.make("pooled");
    let endpoint = endpoint(&server.0, "app", PASSWORD, "pooled");
    let mut database = backstay_database::open(&endpoint, Options::default()).unwrap();
    let exchange = database.exchange_names("0a0b0c0d");
    let (bytes, record) = dump(&mut *database);
    server.0.psql("pooled", "DELETE FROM tags");
    database.stage(&mut bytes.as_slice(), &record, &exchange).unwrap();
    let over = AtomicBool::new(false);
    let seen = thread::scope(|scope| {
        let apps: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut seen = Vec::new();
                    while !over.load(Ordering::SeqCst) {
                        // An open transaction, as long as it may.
                        let mut psql = server.0.client("psql");
                        psql.env("PGUSER", "app").env("PGPASSWORD", PASSWORD).args(["-XAtq", "-c", "BEGIN"]);
                        psql.args([
                            "-c",
                            "SELECT count(*) FROM tags",
                            "-c",
                            "SELECT pg_sleep(600)",
                            "pooled",
                        ]);
                        let said = program::run(&mut psql);
                        seen.extend(said.stdout.lines().next().and_then(|line| line.parse::<u32>().ok()));
                    }
                    seen
                })
            })
            .collect();
        let live =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = 'pooled' AND query LIKE '%pg_sleep%'";
        for to in [Side::New, Side::Old, Side::New] {
            while server.0.psql("postgres", live).trim().parse::<u32>().unwrap() < 3 {
                thread::sleep(Duration::from_millis(10));
            }
            let begin = std::time::Instant::now();
            database.exchange(&exchange, to).unwrap();
            println!("exchanged under three sessions that come back at once in {:?}", begin.elapsed());
            assert_eq!(database.side(&exchange).unwrap(), to);
        }
        over.store(true, Ordering::SeqCst);
        server.0.psql(
            "postgres",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'pooled'",
        );
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'pooled'";
        while apps.iter().any(|app| !app.is_finished()) {
            server.0.psql("postgres", end);
        }
        apps.into_iter().flat_map(|app| app.join().unwrap()).collect::<Vec<_>>()
    });
    let refused = {
        let mut other =
            server.0.client("psql").args(["-c", "SELECT pg_sleep(20)", "pooled"]).spawn().unwrap();
        while server.0.psql("postgres", "SELECT count(*) FROM pg_stat_activity WHERE datname = 'pooled'")
            == "0\n"
        {
            thread::sleep(Duration::from_millis(10));
        }
        let options = Options { lock_wait: Duration::from_millis(1), ..Options::default() };
        let refused =
            backstay_database::open(&endpoint, options).unwrap().exchange(&exchange, Side::Old).unwrap_err();
        other.kill().unwrap();
        other.wait().unwrap();
        refused
    };
    assert_eq!(refused.code(), Code::DatabaseBusy, "{refused:?}");
    assert!(refused.message().contains("postgres (psql)"), "{refused:?}");
    assert_eq!(database.side(&exchange).unwrap(), Side::New);
    server
        .0
        .psql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'pooled'");
    assert!(seen.contains(&0) && seen.contains(&1500), "the app met both sides: {seen:?}");
    assert!(seen.iter().all(|count| [0, 1500].contains(count)), "the app met something else: {seen:?}");
    database.discard(&exchange).unwrap();
    server.remove("pooled");
}
