//! Real servers behind a bad line: answers lost, connections cut and reset, services that ask for patience.
//!
//! What holds on a good line must hold here too: what is read is right, an object is there whole or not at all, of several
//! writers one is told that it was first, and nobody is asked more often than patience allows.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "test helpers"
)]

mod common;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use backstay_model::{Code, Retry};
use backstay_storage::{Bucket, Credentials, Kind, Options, Patience, Put, Remote, Storage};
use backstay_testing::{Azurite, Dice, Fault, FaultProxy, Gcs, Moto};
use common::{bucket, names};

const MIB: usize = 1 << 20;

/// A real server of one kind, and a proxy before it.
struct Behind {
    kind: Kind,
    direct: SocketAddr,
    proxy: FaultProxy,
    _server: Box<dyn std::any::Any>,
    make: Box<dyn Fn(&str)>,
}

impl Behind {
    /// All kinds that are installed.
    fn all(seed: u64) -> Vec<Self> {
        let nothing = || Box::new(|_: &str| ()) as Box<dyn Fn(&str)>;
        let mut all = Vec::new();
        if let Some(azurite) = Azurite::start() {
            all.push(Self::new(Kind::Azure, azurite.address(), seed, Box::new(azurite), nothing()));
        }
        if let Some(moto) = Moto::start() {
            all.push(Self::new(Kind::S3, moto.address(), seed, Box::new(moto), nothing()));
        }
        if let Some(gcs) = Gcs::start() {
            let gcs = std::rc::Rc::new(gcs);
            let maker = std::rc::Rc::clone(&gcs);
            let make = Box::new(move |name: &str| maker.make(name));
            all.push(Self::new(Kind::Google, gcs.address(), seed, Box::new(gcs), make));
        }
        all
    }

    fn new(
        kind: Kind,
        direct: SocketAddr,
        seed: u64,
        server: Box<dyn std::any::Any>,
        make: Box<dyn Fn(&str)>,
    ) -> Self {
        Behind { kind, direct, proxy: FaultProxy::start(direct, seed), _server: server, make }
    }

    fn place(&self, address: SocketAddr, name: &str) -> (Bucket, Credentials) {
        let (place, key) = match self.kind {
            Kind::Azure => {
                let account = Azurite::ACCOUNT;
                (format!("azure://{account}/{name}?endpoint=http://{address}/{account}"), Azurite::KEY)
            }
            Kind::S3 => (format!("s3://{name}?endpoint=http://{address}"), "any:key"),
            Kind::Google => (format!("gs://{name}?endpoint=http://{address}"), "anonymous"),
        };
        let place = bucket(&place);
        let credentials = Credentials::parse(&place, key).unwrap();
        (place, credentials)
    }

    /// A new container: as it is, and through the proxy.
    fn container(&self, name: &str, patience: Patience) -> (Remote, Remote) {
        (self.make)(name);
        let (place, key) = self.place(self.direct, name);
        let direct = Remote::create(&place, &key, &Options::default()).unwrap();
        let (place, key) = self.place(self.proxy.address(), name);
        let options = Options { patience, ..Options::default() };
        (direct, Remote::open(&place, &key, &options).unwrap())
    }
}

fn patience() -> Patience {
    Patience {
        attempts: 9,
        first_pause_ms: 2,
        longest_pause_ms: 20,
        total_secs: 60,
        connect_secs: 5,
        idle_secs: 5,
    }
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut dice = Dice::new(seed + 77);
    (0..len).map(|_| u8::try_from(dice.below(256)).unwrap()).collect()
}

/// What a run knows of its objects: the content, or none where no call said what became of it.
type Known = Mutex<BTreeMap<String, Option<Vec<u8>>>>;

/// One thread's work on names of its own.
fn own_names(remote: &Remote, known: &Known, thread: u64) {
    for (i, len) in [0, 10, 5000, 300_000, 17 * MIB].into_iter().enumerate() {
        let name = format!("own/{thread}/{i}");
        let bytes = noise(len, thread * 100 + i as u64);
        let put = match len > MIB {
            true => stream(remote, &name, &bytes, Put::IfAbsent),
            false => remote.put(&name, &bytes, Put::IfAbsent),
        };
        match put {
            Ok(()) => {
                known.lock().unwrap().insert(name.clone(), Some(bytes.clone()));
                read_back(remote, &name, &bytes);
            }
            // `ObjectExists` would be a lie: nobody else writes this name.
            Err(e) => {
                assert_eq!(e.code(), Code::StorageUnavailable, "{e:?}");
                known.lock().unwrap().insert(name.clone(), None);
            }
        }
        if i % 2 == 1 {
            match remote.delete(&name) {
                Ok(()) => drop(known.lock().unwrap().remove(&name)),
                Err(e) => assert_eq!(e.code(), Code::StorageUnavailable, "{e:?}"),
            }
        }
    }
}

fn read_back(remote: &Remote, name: &str, bytes: &[u8]) {
    let unless_gone = |done: backstay_model::Result<Vec<u8>>, want: &[u8]| match done {
        Ok(got) => assert!(got == want, "{name} reads otherwise"),
        Err(e) => assert_eq!(e.code(), Code::StorageUnavailable, "{e:?}"),
    };
    unless_gone(remote.get(name), bytes);
    let (from, to) = (bytes.len() / 3, bytes.len() - bytes.len() / 5);
    unless_gone(remote.get_range(name, from as u64, to - from), &bytes[from..to]);
}

fn stream(remote: &Remote, name: &str, bytes: &[u8], mode: Put) -> backstay_model::Result<()> {
    let mut upload = remote.put_stream(name, mode)?;
    for piece in bytes.chunks(MIB) {
        upload.write(piece)?;
    }
    upload.commit().map(drop)
}

/// The work of four threads, each with names of its own and some for which all of them compete.
fn work(remote: &Remote, known: &Known) {
    let barrier = Barrier::new(4);
    let winners: Mutex<BTreeMap<String, Vec<u64>>> = Mutex::default();
    let failed: Mutex<BTreeMap<String, usize>> = Mutex::default();
    thread::scope(|s| {
        for thread in 0..4 {
            let (barrier, winners, failed) = (&barrier, &winners, &failed);
            s.spawn(move || {
                for round in 0..6 {
                    let name = format!("shared/{round}");
                    barrier.wait();
                    match remote.put(&name, &noise(3000, thread), Put::IfAbsent) {
                        Ok(()) => winners.lock().unwrap().entry(name).or_default().push(thread),
                        Err(e) if e.code() == Code::ObjectExists => {}
                        Err(e) => {
                            assert_eq!(e.code(), Code::StorageUnavailable, "{e:?}");
                            *failed.lock().unwrap().entry(name).or_default() += 1;
                        }
                    }
                }
                own_names(remote, known, thread);
            });
        }
    });
    let mut known = known.lock().unwrap();
    for round in 0..6 {
        let name = format!("shared/{round}");
        let won = winners.lock().unwrap().remove(&name).unwrap_or_default();
        let unclear = failed.lock().unwrap().contains_key(&name);
        assert!(
            won.len() == 1 || (won.is_empty() && unclear),
            "{name}: {won:?} were told that they were first"
        );
        known.insert(name, won.first().map(|thread| noise(3000, *thread)));
    }
}

#[test]
fn what_holds_on_a_good_line_holds_on_a_bad_one() {
    for behind in Behind::all(5) {
        let (_, calm) = behind.container("calm", patience());
        let before = behind.proxy.count();
        work(&calm, &Known::default());
        let usual = behind.proxy.count() - before;
        for round in 0..3 {
            let (direct, remote) = behind.container(&format!("round{round}"), patience());
            let (known, before, begin) = (Known::default(), behind.proxy.count(), Instant::now());
            behind.proxy.storm(300);
            work(&remote, &known);
            let took = begin.elapsed();
            let listed = names(&remote);
            behind.proxy.clear();
            let made = behind.proxy.count() - before;
            // Three of ten fail, so each takes 1.43 requests; those after a lost answer look what became of it.
            assert!(made <= usual * 5 / 2, "{made} requests where {usual} are usual");
            assert_eq!(listed, names(&direct), "a listing on a bad line is another one");
            let known = known.into_inner().unwrap();
            for (name, bytes) in &known {
                match (bytes, direct.get(name)) {
                    (Some(bytes), got) => assert!(got.unwrap() == *bytes, "{name} is otherwise"),
                    (None, Err(e)) => assert_eq!(e.code(), Code::ObjectNotFound),
                    (None, Ok(_)) => {}
                }
            }
            for name in names(&direct) {
                assert!(known.contains_key(&name), "{name} was deleted and is there");
            }
            println!(
                "{:?}: {made} requests ({usual} on a good line) in {took:?}, {} of {} calls without an end, {:?}",
                behind.kind,
                known.values().filter(|k| k.is_none()).count(),
                known.len(),
                behind.proxy.faults()
            );
        }
    }
}

#[test]
fn a_store_that_stays_down_is_given_up_soon_and_asked_seldom() {
    let down = [
        Fault::Refuse(503, None),
        Fault::Refuse(503, Some(3600)),
        Fault::Refuse(429, None),
        Fault::Drop,
        Fault::CutRequest,
        Fault::LoseAnswer,
        Fault::Silence,
    ];
    for behind in Behind::all(6) {
        for (number, fault) in down.into_iter().enumerate() {
            let patience = Patience { attempts: 4, idle_secs: 1, ..patience() };
            let (direct, remote) = behind.container(&format!("down{number}"), patience);
            behind.proxy.always(fault);
            let (before, begin) = (behind.proxy.count(), Instant::now());
            let calls = if fault == Fault::Silence { 2 } else { 10 };
            thread::scope(|s| {
                for thread in 0..4 {
                    let remote = &remote;
                    s.spawn(move || {
                        for i in 0..calls {
                            let error =
                                remote.put(&format!("{thread}/{i}"), b"x", Put::IfAbsent).unwrap_err();
                            assert_eq!(error.code(), Code::StorageUnavailable, "{fault:?}: {error:?}");
                            assert!(error.code().retry() == Retry::Later && !error.advice().is_empty());
                        }
                    });
                }
            });
            let (made, took) = (behind.proxy.count() - before, begin.elapsed());
            // Each call asks once; the 60 repetitions are shared by all. Looking what became of a lost put counts too.
            let most = 4 * calls * if fault == Fault::LoseAnswer { 3 } else { 1 } + 60;
            assert!(made <= most, "{:?} {fault:?}: {made} requests for {calls} calls of 4", behind.kind);
            assert!(took < Duration::from_secs(60), "{:?} {fault:?}: {took:?}", behind.kind);
            behind.proxy.clear();
            remote.put("after", b"well again", Put::IfAbsent).unwrap();
            assert_eq!(direct.get("after").unwrap(), b"well again");
            for name in names(&direct).into_iter().filter(|n| n != "after") {
                assert!(fault == Fault::LoseAnswer && direct.get(&name).unwrap() == b"x", "{name}");
            }
            println!("{:?} {fault:?}: {made} requests for {calls} calls of 4 in {took:?}", behind.kind);
        }
    }
}

#[test]
fn an_upload_that_is_cut_leaves_nothing_to_be_seen_and_is_swept() {
    for behind in Behind::all(7) {
        let patience = Patience { attempts: 2, ..patience() };
        let (direct, remote) = behind.container("uploads", patience);
        let bytes = noise(20 * MIB, 1);
        // Down after the first piece: neither a commit nor a removal gets through.
        let mut upload = remote.put_stream("cut", Put::IfAbsent).unwrap();
        upload.write(&bytes).unwrap();
        behind.proxy.always(Fault::Drop);
        let error = upload.commit().unwrap_err();
        assert_eq!(error.code(), Code::StorageUnavailable, "{error:?}");
        behind.proxy.clear();
        assert!(names(&direct).is_empty() && names(&remote).is_empty());
        let later = jiff::Timestamp::now() + Duration::from_secs(5);
        let found: Vec<_> = remote.abandoned(later).unwrap().into_iter().map(|a| a.name).collect();
        let want: &[&str] = if behind.kind == Kind::S3 { &["cut"] } else { &[] };
        assert_eq!(found, want, "{:?}", behind.kind);
        // One that may be running is left alone. (moto says 2010 of each.)
        let early = jiff::Timestamp::from_second(1_000_000_000).unwrap();
        assert!(remote.sweep(early).unwrap().is_empty());
        assert_eq!(remote.sweep(later).unwrap().len(), want.len());
        assert!(remote.abandoned(later).unwrap().is_empty());
        // The same name once more.
        stream(&remote, "cut", &bytes, Put::IfAbsent).unwrap();
        assert!(direct.get("cut").unwrap() == bytes);
        assert!(remote.abandoned(later).unwrap().is_empty(), "a finished upload is no rest");
    }
}

#[test]
fn a_commit_whose_answer_was_lost_is_recognised() {
    for behind in Behind::all(8) {
        for fault in [Fault::LoseAnswer, Fault::DoneBut(500), Fault::CutAnswer, Fault::Reset] {
            let name = format!("lost-{}", format!("{fault:?}").to_lowercase().replace(['(', ')'], "-"));
            let (direct, remote) = behind.container(name.trim_end_matches('-'), patience());
            // The first try of every request that makes an object.
            let seen = Mutex::new(std::collections::BTreeSet::new());
            behind.proxy.weather(move |head, _| {
                let line = &head.line;
                let is_write = line.starts_with("PUT ") || line.starts_with("POST ");
                (is_write && seen.lock().unwrap().insert(line.clone())).then_some(fault)
            });
            let bytes = noise(9 * MIB, 3);
            stream(&remote, "large", &bytes, Put::IfAbsent).unwrap();
            remote.put("small", b"small", Put::IfAbsent).unwrap();
            for name in ["large", "small"] {
                let again = remote.put(name, b"another", Put::IfAbsent).unwrap_err();
                assert_eq!(again.code(), Code::ObjectExists, "{again:?}");
            }
            behind.proxy.clear();
            assert!(direct.get("large").unwrap() == bytes && direct.get("small").unwrap() == b"small");
        }
    }
}

#[test]
fn a_service_that_asks_to_wait_is_given_the_time() {
    for behind in Behind::all(9) {
        let (_, remote) = behind.container("wait", patience());
        let first = Mutex::new(true);
        behind.proxy.weather(move |_, _| {
            std::mem::take(&mut *first.lock().unwrap()).then_some(Fault::Refuse(503, Some(2)))
        });
        let (before, begin) = (behind.proxy.count(), Instant::now());
        remote.put("a", b"1", Put::IfAbsent).unwrap();
        assert!(begin.elapsed() >= Duration::from_secs(2), "{:?}", begin.elapsed());
        assert_eq!(behind.proxy.count() - before, 2);
    }
}
