//! Pace, path through the network, tokens and expiry: what the options of a place promise.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "test helpers"
)]

mod common;

use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use backstay_model::Code;
use backstay_storage::{Address, Credentials, Hours, Network, Options, Pace, Put, Remote, Storage};
use backstay_testing::scripted::answer;
use backstay_testing::{Azurite, Scripted, Terms, signature, signed};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::{bucket, impatient, names, shown};

const MB: usize = 1_000_000;
const EMPTY: &[u8] = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";

/// A bucket that takes everything and gives `MB` bytes four times over for each object.
fn bottomless() -> Scripted {
    Scripted::start(|asked, stream| match asked.line() {
        line if line.contains("list-type=2") => answer(stream, 200, "", EMPTY),
        line if line.starts_with("GET") => answer(stream, 200, "", &vec![7; 4 * MB]),
        _ => answer(stream, 200, "", b""),
    })
}

fn at(server: &Scripted, options: &Options) -> backstay_model::Result<Remote> {
    let place = bucket(&format!("s3://bucket?endpoint=http://{}", server.address()));
    Remote::open(&place, &Credentials::parse(&place, "any:key").unwrap(), options)
}

fn options(network: Network) -> Options {
    Options { network, patience: impatient(), ..Options::default() }
}

#[test]
fn a_limited_pace_is_kept_and_used() {
    const RATE: u64 = 4 * MB as u64;
    let flat = Pace { bytes_per_second: Some(RATE), hours: vec![] };
    let all_day = Hours { from: 0, to: 24, bytes_per_second: Some(RATE) };
    let by_hours = Pace { bytes_per_second: None, hours: vec![all_day] };
    let server = bottomless();
    for (what, pace) in [("flat", flat), ("by hours", by_hours)] {
        let remote = at(&server, &Options { pace, ..Options::default() }).unwrap();
        let sending = |remote: &Remote| {
            std::thread::scope(|s| {
                for thread in 0..4 {
                    s.spawn(move || remote.put(&thread.to_string(), &vec![7; 4 * MB], Put::Replace).unwrap());
                }
            });
        };
        let receiving = |remote: &Remote| {
            for _ in 0..4 {
                assert_eq!(remote.get("a").unwrap().len(), 4 * MB);
            }
        };
        for way in ["sending", "receiving"] {
            // A busy machine may be slower than the pace; faster than it nobody may be.
            let slowest_allowed = (0..3).any(|_| {
                let begin = Instant::now();
                if way == "sending" {
                    sending(&remote)
                } else {
                    receiving(&remote)
                }
                let rate = 16.0 * MB as f64 / begin.elapsed().as_secs_f64() / RATE as f64;
                println!("{what}, {way}: {:.1} % of the pace", rate * 100.0);
                assert!(rate < 1.15, "{what}, {way}: {rate}");
                rate > 0.85
            });
            assert!(slowest_allowed, "{what}, {way}: the pace is not used");
        }
    }
}

#[test]
fn a_proxy_takes_every_request_and_its_password_is_not_shown() {
    let proxy = bottomless();
    let place = bucket("s3://bucket?endpoint=http://store.backstay.invalid");
    let key = Credentials::parse(&place, "any:key").unwrap();
    let through = |proxy: String| options(Network { proxy: Some(proxy), ..Network::default() });
    // The name has no address: only a proxy can reach it.
    let remote =
        Remote::open(&place, &key, &through(format!("http://me:aSecretWord@{}", proxy.address()))).unwrap();
    remote.put("a", b"1", Put::IfAbsent).unwrap();
    let asked = proxy.asked();
    assert!(asked.iter().all(|a| a.line().contains(" http://store.backstay.invalid/bucket")), "{asked:#?}");
    assert!(asked.iter().all(|a| a.head.header("proxy-authorization").is_some()));
    // One that is down: no other way is tried.
    let closed = backstay_testing::server::free_port();
    let own = bottomless();
    let place = bucket(&format!("s3://bucket?endpoint=http://{}", own.address()));
    let gone = through(format!("http://me:aSecretWord@127.0.0.1:{closed}"));
    let error = Remote::open(&place, &key, &gone).unwrap_err();
    assert_eq!(error.code(), Code::StorageUnavailable, "{error:?}");
    assert!(!shown(&error).contains("aSecretWord"), "{}", shown(&error));
    assert_eq!(own.connections(), 0, "the proxy was gone round");
    // One that refuses, and texts that are no proxy.
    let refusing = Scripted::start(|_, stream| answer(stream, 407, "", b"<Message>aSecretWord</Message>"));
    let error = Remote::open(&place, &key, &through(format!("http://{}", refusing.address()))).unwrap_err();
    assert!(error.message().contains("status 407"), "{error:?}");
    for text in ["socks5://x:1", "aSecretWord@host", "http://", "http://a b:aSecretWord@"] {
        let error = Remote::open(&place, &key, &through(text.to_owned())).unwrap_err();
        assert_eq!(error.code(), Code::InvalidValue, "{text}: {error:?}");
        assert!(!shown(&error).contains("aSecretWord"), "{}", shown(&error));
    }
}

#[test]
fn connections_come_from_the_address_that_is_named() {
    let server = bottomless();
    let source: IpAddr = "127.0.0.9".parse().unwrap();
    let remote =
        at(&server, &options(Network { source_address: Some(source), ..Network::default() })).unwrap();
    remote.put("a", b"1", Put::IfAbsent).unwrap();
    assert!(server.asked().iter().all(|asked| asked.from == source));
}

#[test]
fn a_path_that_goes_away_is_an_error_and_no_other_is_taken() {
    let allowed = Command::new("unshare").args(["--map-root-user", "--net", "ip", "link"]).output();
    if !allowed.is_ok_and(|o| o.status.success()) {
        println!("left out: this machine lets no one make a network of their own (unshare, ip)");
        return;
    }
    let ran = Command::new("unshare")
        .args(["--map-root-user", "--net"])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "in_a_network_of_its_own", "--nocapture"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&ran.stdout).into_owned() + &String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && told.contains("1 passed"), "{told}");
    println!("{told}");
}

#[test]
#[ignore = "the test above runs it where it may change addresses"]
fn in_a_network_of_its_own() {
    let ip = |words: &str| Command::new("ip").args(words.split(' ')).status().unwrap().success();
    // The loopback of this machine is up and has no other address: the test above was forgotten.
    assert!(ip("link set lo up") && ip("address add 198.18.0.1/32 dev lo"));
    let server = bottomless();
    let source: IpAddr = "198.18.0.1".parse().unwrap();
    let bound = options(Network { source_address: Some(source), ..Network::default() });
    let remote = at(&server, &bound).unwrap();
    remote.put("a", b"1", Put::IfAbsent).unwrap();
    assert!(ip("address del 198.18.0.1/32 dev lo"));
    let (before, begin) = (server.asked().len(), Instant::now());
    let mut last = None;
    for _ in 0..3 {
        last = remote.put("b", b"2", Put::IfAbsent).err();
    }
    let error = last.expect("the address is gone");
    assert_eq!(error.code(), Code::NetworkPathGone, "{error:?}");
    assert!(error.message().contains("198.18.0.1"), "{error:?}");
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
    assert_eq!(at(&server, &bound).unwrap_err().code(), Code::NetworkPathGone);
    assert!(server.asked().iter().all(|asked| asked.from == source), "another path was taken");
    assert!(server.asked().len() <= before, "something arrived");
    assert!(ip("address add 198.18.0.1/32 dev lo"));
    remote.put("c", b"3", Put::IfAbsent).unwrap();
    // An interface: there, and gone. What listens on the loopback cannot be reached by it, nor by a detour.
    if !(ip("link add wg9 type veth peer name wg8")
        && ip("address add 198.18.9.1/24 dev wg9")
        && ip("link set wg9 up"))
    {
        println!("left out: no interfaces can be made here");
        return;
    }
    let bound = options(Network { interface: Some("wg9".into()), ..Network::default() });
    let connections = server.connections();
    assert!(at(&server, &bound).is_err(), "the loopback was reached by another interface");
    assert!(ip("link del wg9"));
    let error = at(&server, &bound).unwrap_err();
    assert_eq!(error.code(), Code::NetworkPathGone, "{error:?}");
    assert!(error.message().contains("the interface wg9"), "{error:?}");
    assert_eq!(server.connections(), connections);
}

/// A token as an identity's endpoint gives it, which Azurite takes by its claims.
fn token() -> String {
    let now = jiff::Timestamp::now().as_second();
    let claims = format!(
        "{{\"aud\":\"https://storage.azure.com\",\"iss\":\"https://sts.windows.net/ab1f708d-50f6-404c-a006-d71b2ac7a606/\",\
         \"iat\":{now},\"nbf\":{},\"exp\":{}}}",
        now - 60,
        now + 3600
    );
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.{}", part("{\"alg\":\"RS256\",\"typ\":\"JWT\"}"), part(&claims), part("signature"))
}

#[test]
fn the_machines_identity_opens_a_container() {
    let Some(azurite) = Azurite::start_tls() else { return };
    let place = bucket(&azurite.place("backups"));
    let network = Network { ca_file: azurite.authority().map(Into::into), ..Network::default() };
    let token = token();
    let given = token.clone();
    let endpoint = Scripted::start(move |_, stream| {
        let until = jiff::Timestamp::now().as_second() + 3600;
        let body =
            format!("{{\"access_token\":\"{given}\",\"expires_on\":\"{until}\",\"token_type\":\"Bearer\"}}");
        answer(stream, 200, "Content-Type: application/json\r\n", body.as_bytes())
    });
    let identity = |address: &str, rest: &str| {
        Credentials::parse(&place, &format!("identity:http://{address}/token{rest}")).unwrap()
    };
    let key = identity(&endpoint.address().to_string(), "?client_id=me");
    let remote = Remote::create(&place, &key, &options(network.clone())).unwrap();
    for name in ["a", "b", "c"] {
        remote.put(name, b"by token", Put::IfAbsent).unwrap();
    }
    assert_eq!(names(&remote), ["a", "b", "c"]);
    let asked = endpoint.asked();
    assert!(asked.len() <= 3, "the token was asked for {} times", asked.len());
    assert!(asked[0].line().contains("resource=https%3A%2F%2Fstorage.azure.com"), "{}", asked[0].line());
    assert!(asked[0].line().contains("client_id=me") && asked[0].head.header("metadata") == Some("true"));
    // Endpoints that refuse, redirect or are not there.
    let elsewhere = Scripted::start(|_, stream| answer(stream, 200, "", b"{}"));
    let other = elsewhere.address();
    let refusing = Scripted::start(move |asked, stream| match asked.line().contains("/token?") {
        true => answer(stream, 302, &format!("Location: http://{other}/\r\n"), b""),
        false => answer(stream, 400, "", b"{\"error\":\"invalid_request\"}"),
    });
    let closed = format!("127.0.0.1:{}", backstay_testing::server::free_port());
    for key in [identity(&refusing.address().to_string(), ""), identity(&closed, "")] {
        let begin = Instant::now();
        let error = Remote::open(&place, &key, &options(network.clone())).unwrap_err();
        assert_eq!(error.code(), Code::StorageDenied, "{error:?}");
        assert!(error.message().contains("no usable credentials"), "{error:?}");
        assert!(!shown(&error).contains(&token) && begin.elapsed() < Duration::from_secs(30));
    }
    assert_eq!(elsewhere.connections(), 0, "a redirect of the endpoint was followed");
    // A token that the service does not take.
    let bad = Scripted::start(|_, stream| {
        let until = jiff::Timestamp::now().as_second() + 3600;
        let body = format!("{{\"access_token\":\"not.a.token\",\"expires_on\":\"{until}\"}}");
        answer(stream, 200, "Content-Type: application/json\r\n", body.as_bytes())
    });
    let error =
        Remote::open(&place, &identity(&bad.address().to_string(), ""), &options(network)).unwrap_err();
    assert_eq!(error.code(), Code::StorageDenied, "{error:?}");
}

#[test]
fn a_container_is_made_by_who_may_and_not_by_a_signature_for_it() {
    let Some(azurite) = Azurite::start() else { return };
    let place = bucket(&azurite.place("newone"));
    let by_signature =
        Credentials::signature(&signature("newone", "racwdl", "2099-01-01", Azurite::KEY)).unwrap();
    let key = Credentials::parse(&place, Azurite::KEY).unwrap();
    let options = options(Network::default());
    assert_eq!(Remote::open(&place, &key, &options).unwrap_err().code(), Code::StorageNotFound);
    let error = Remote::create(&place, &by_signature, &options).unwrap_err();
    assert_eq!(error.code(), Code::StorageDenied, "{error:?}");
    assert!(!error.advice().is_empty());
    Remote::create(&place, &key, &options).unwrap().put("a", b"1", Put::IfAbsent).unwrap();
    // Once more: it is there, with what is in it.
    assert_eq!(names(&Remote::create(&place, &by_signature, &options).unwrap()), ["a"]);
}

#[test]
fn the_end_of_a_signature_is_known_long_before() {
    let Some(azurite) = Azurite::start() else { return };
    let place = bucket(&azurite.place("backups"));
    let key = Credentials::parse(&place, Azurite::KEY).unwrap();
    let options = options(Network::default());
    assert_eq!(Remote::create(&place, &key, &options).unwrap().expires_at(), None);
    let in_days = |days: i64| {
        let time = jiff::Timestamp::now() + Duration::from_secs(u64::try_from(days * 86_400).unwrap());
        jiff::Timestamp::from_second(time.as_second()).unwrap()
    };
    for days in [1, 7, 30] {
        let until = in_days(days);
        let terms = Terms { permissions: "racwdl", expires: &until.to_string(), ..Terms::default() };
        let query = signed("backups", terms, Azurite::KEY);
        let url = format!("{}/backups?{query}", azurite.endpoint());
        let (Address::Remote(place), Some(credentials)) = Address::parse(&url).unwrap() else {
            panic!("{url}")
        };
        let remote = Remote::open(&place, &credentials, &options).unwrap();
        assert_eq!(remote.expires_at(), Some(until));
        // It survives being kept.
        let kept = Credentials::parse(&place, credentials.sealed_text().reveal()).unwrap();
        assert_eq!(kept.expires(), Some(until));
        let text = format!("AccountName={};SharedAccessSignature={query}", Azurite::ACCOUNT);
        assert_eq!(Credentials::parse(&place, &text).unwrap().expires(), Some(until));
    }
}
