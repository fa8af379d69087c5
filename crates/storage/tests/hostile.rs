//! Services that lie: lengths, listings, redirects and certificates that no honest one gives. A hand-written server stands
//! for them here, since no emulator does such things.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "test helpers"
)]

mod common;

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use backstay_model::{Code, Error};
use backstay_storage::{Credentials, Kind, Options, Patience, Put, Remote, Storage};
use backstay_testing::scripted::{Asked, answer};
use backstay_testing::{Azurite, Scripted};
use common::{bucket, impatient, names, shown};

const KINDS: [Kind; 3] = [Kind::Azure, Kind::S3, Kind::Google];
const S3_SECRET: &str = "aSecretThatNobodyMaySee";

fn patience() -> Patience {
    Patience { attempts: 3, idle_secs: 1, ..impatient() }
}

/// A place of a kind at a server of the tests.
fn at(kind: Kind, base: &str) -> backstay_model::Result<Remote> {
    let (place, key) = match kind {
        Kind::Azure => (format!("azure://account/bucket?endpoint={base}/account"), Azurite::KEY.to_owned()),
        Kind::S3 => (format!("s3://bucket?endpoint={base}"), format!("AKEY:{S3_SECRET}")),
        Kind::Google => (format!("gs://bucket?endpoint={base}"), "anonymous".to_owned()),
    };
    let place = bucket(&place);
    let credentials = Credentials::parse(&place, &key).unwrap();
    Remote::open(&place, &credentials, &Options { patience: patience(), ..Options::default() })
}

/// Whether a request asks for a page of a listing.
fn lists(asked: &Asked) -> bool {
    let line = asked.line();
    line.starts_with("GET")
        && (line.contains("comp=list") || line.contains("list-type=2") || line.contains("maxResults"))
}

/// A page of a listing: names, all of size 5, and where the next begins.
fn page(kind: Kind, names: &[&str], next: Option<&str>) -> String {
    match kind {
        Kind::Azure => {
            let blob = |n: &&str| {
                format!(
                    "<Blob><Name>{n}</Name><Properties><Content-Length>5</Content-Length></Properties></Blob>"
                )
            };
            let blobs: String = names.iter().map(blob).collect();
            let next = next.unwrap_or_default();
            format!(
                "<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker>{next}</NextMarker></EnumerationResults>"
            )
        }
        Kind::S3 => {
            let object = |n: &&str| format!("<Contents><Key>{n}</Key><Size>5</Size></Contents>");
            let objects: String = names.iter().map(object).collect();
            let token = |t| format!("<NextContinuationToken>{t}</NextContinuationToken>");
            let (truncated, next) = (next.is_some(), next.map(token).unwrap_or_default());
            format!(
                "<ListBucketResult>{objects}<IsTruncated>{truncated}</IsTruncated>{next}</ListBucketResult>"
            )
        }
        Kind::Google => {
            let items: Vec<_> =
                names.iter().map(|n| format!("{{\"name\":\"{n}\",\"size\":\"5\"}}")).collect();
            let next = next.map(|n| format!(",\"nextPageToken\":\"{n}\"")).unwrap_or_default();
            format!("{{\"items\":[{}]{next}}}", items.join(","))
        }
    }
}

/// A server whose first listing (by which a place is opened) is empty; what comes afterwards is up to the script.
fn liar(
    kind: Kind,
    script: impl Fn(&Asked, &mut TcpStream) -> bool + Send + Sync + 'static,
) -> (Scripted, Remote) {
    let server = Scripted::start(move |asked, stream| match asked.number {
        0 => answer(stream, 200, "", page(kind, &[], None).as_bytes()),
        _ => script(asked, stream),
    });
    let remote = at(kind, &format!("http://{}", server.address())).unwrap();
    (server, remote)
}

/// The error of a listing; and how many requests it took.
fn listing_fails(
    kind: Kind,
    script: impl Fn(&Asked, &mut TcpStream) -> bool + Send + Sync + 'static,
) -> (Error, usize) {
    let (server, remote) = liar(kind, script);
    let error = remote.list("", &mut |_| Ok(())).unwrap_err();
    (error, server.asked().len() - 1)
}

#[test]
fn a_stated_length_reserves_no_memory_and_a_longer_answer_is_refused() {
    for kind in KINDS {
        let (server, remote) = liar(kind, |asked, stream| {
            let head = match asked.line().contains("ranged") {
                true => "206 Some\r\nContent-Range: bytes 0-9/9000000000000000000",
                false => "200 All",
            };
            let length: u64 = match asked.line() {
                line if line.contains("below") => 1_000_000_000,
                line if line.contains("ranged") => 4_000_000_000_000_000_000,
                _ => 9_000_000_000_000_000_000,
            };
            write!(stream, "HTTP/1.1 {head}\r\nContent-Length: {length}\r\n\r\nonly these").ok();
            false
        });
        // More than is ever read as a whole: told at once, not asked for again.
        let error = remote.get("whole").unwrap_err();
        assert_eq!((error.code(), server.asked().len()), (Code::LimitExceeded, 2), "{error:?}");
        // As much as was asked for, and far more than there is: ends early.
        let error = remote.get_range("ranged", 0, usize::MAX / 4).unwrap_err();
        assert_eq!(error.code(), Code::StorageUnavailable, "{kind:?}: {error:?}");
        assert!(error.message().contains("was lost"), "{error:?}");
        // More than was asked for.
        let error = remote.get_range("ranged", 0, 10).unwrap_err();
        assert!(error.message().contains("not answer as an object store does"), "{error:?}");
        let error = remote.get("below").unwrap_err();
        assert_eq!(error.code(), Code::StorageUnavailable, "{error:?}");
        assert!(server.asked().len() <= 2 + 3 * 3);
    }
}

#[test]
fn a_range_is_the_one_that_was_asked_for() {
    for kind in KINDS {
        let (_server, remote) = liar(kind, |asked, stream| match asked.line() {
            line if line.contains("whole") => answer(stream, 200, "", b"0123456789"),
            line if line.contains("other") => answer(stream, 206, "Content-Range: bytes 0-3/10\r\n", b"0123"),
            _ => answer(stream, 206, "Content-Range: bytes 4-7/10\r\n", b"4567"),
        });
        assert_eq!(remote.get_range("right", 4, 4).unwrap(), b"4567");
        for name in ["whole", "other"] {
            let error = remote.get_range(name, 4, 4).unwrap_err();
            assert_eq!(error.code(), Code::StorageUnavailable, "{kind:?} {name}: {error:?}");
        }
    }
}

#[test]
fn listings_that_do_not_end_are_noticed() {
    for kind in KINDS {
        // One page for ever; and three in a circle, each with an object.
        for circle in [1, 3] {
            let (error, requests) = listing_fails(kind, move |asked, stream| {
                let next = format!("token{}", asked.number % circle);
                answer(stream, 200, "", page(kind, &["a"], Some(&next)).as_bytes())
            });
            assert_eq!(error.code(), Code::StorageUnavailable, "{error:?}");
            assert!(shown(&error).contains("circles"), "{}", shown(&error));
            assert!(requests <= 3 * (circle + 1), "{kind:?}: {requests} requests");
        }
        // Always another page, with nothing on it.
        let (error, requests) = listing_fails(kind, move |asked, stream| {
            answer(stream, 200, "", page(kind, &[], Some(&asked.number.to_string())).as_bytes())
        });
        assert!(shown(&error).contains("does not end") && requests == 1001, "{requests}: {}", shown(&error));
    }
    // S3 says that there is more, and not where.
    let (error, _) = listing_fails(Kind::S3, |_, stream| {
        let page = page(Kind::S3, &["a"], Some("x"));
        let (start, rest) = page.split_once("<NextC").unwrap();
        let rest = rest.split_once("Token>x</NextContinuationToken>").unwrap().1;
        answer(stream, 200, "", format!("{start}{rest}").as_bytes())
    });
    assert!(shown(&error).contains("ends before its end"), "{}", shown(&error));
}

#[test]
fn unfinished_uploads_that_do_not_end_are_noticed() {
    let (server, remote) = liar(Kind::S3, |asked, stream| {
        match asked.line().starts_with("DELETE") {
        true => answer(stream, 204, "", b""),
        false => answer(
            stream,
            200,
            "",
            b"<ListMultipartUploadsResult><Upload><Key>a</Key><UploadId>u</UploadId></Upload><IsTruncated>true\
              </IsTruncated><NextKeyMarker>a</NextKeyMarker><NextUploadIdMarker>u</NextUploadIdMarker>\
              </ListMultipartUploadsResult>",
        ),
    }
    });
    let error = remote.sweep(jiff::Timestamp::now()).unwrap_err();
    assert!(shown(&error).contains("circles"), "{}", shown(&error));
    assert!(server.asked().len() < 20, "{}", server.asked().len());
}

#[test]
fn answers_of_absurd_size_or_depth_are_refused() {
    for kind in KINDS {
        // Text without end in place of a listing.
        let begin = Instant::now();
        let (error, requests) = listing_fails(kind, move |_, stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").ok();
            let text = if kind == Kind::Google { "{\"items\":[" } else { "<ListBucketResult>" };
            write!(stream, "{:x}\r\n{text}\r\n", text.len()).ok();
            let chunk = [b"40000\r\n".as_slice(), &[b' '; 0x40000], b"\r\n"].concat();
            while stream.write_all(&chunk).is_ok() {}
            false
        });
        assert_eq!(error.code(), Code::StorageUnavailable, "{error:?}");
        assert!(shown(&error).contains("longer than what was asked for"), "{}", shown(&error));
        assert!(requests == 3 && begin.elapsed() < Duration::from_secs(60), "{requests}");
        // Deep nesting.
        let deep = match kind {
            Kind::Google => format!("{{\"items\":[],\"x\":{}", "[".repeat(1 << 20)),
            Kind::Azure => format!("<EnumerationResults>{}", "<a>".repeat(1 << 20)),
            Kind::S3 => format!("<ListBucketResult>{}", "<a>".repeat(1 << 20)),
        };
        let (error, _) = listing_fails(kind, move |_, stream| answer(stream, 200, "", deep.as_bytes()));
        assert!(shown(&error).contains("listing that is not understood"), "{}", shown(&error));
        // Headers without end.
        let (error, _) = listing_fails(kind, move |_, stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\n").ok();
            while stream.write_all(format!("X-Filler: {}\r\n", "x".repeat(1 << 16)).as_bytes()).is_ok() {}
            false
        });
        assert_eq!(error.code(), Code::StorageUnavailable, "{error:?}");
    }
}

#[test]
fn an_answer_that_trickles_is_a_stall() {
    for kind in KINDS {
        let (server, remote) = liar(kind, |asked, stream| {
            let head = match asked.line().contains("head") {
                true => "HTTP/1.1 200 OK\r\nX-Long: ",
                false => "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
            };
            stream.write_all(head.as_bytes()).ok();
            while stream.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(100));
            }
            false
        });
        for name in ["head", "body"] {
            let begin = Instant::now();
            let error = remote.get(name).unwrap_err();
            assert_eq!(error.code(), Code::StorageUnavailable, "{error:?}");
            assert!(error.message().contains("did not answer in time"), "{name}: {error:?}");
            assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
        }
        assert_eq!(server.asked().len(), 1 + 2 * 3);
    }
}

#[test]
fn redirects_are_not_followed_and_are_no_success() {
    for kind in KINDS {
        for status in [301, 302, 303, 307, 308] {
            let elsewhere = Scripted::start(|_, stream| answer(stream, 200, "", b"secret"));
            let there = elsewhere.address();
            let (server, remote) = liar(kind, move |asked, stream| {
                let path = asked.line().split_once(' ').unwrap().1;
                answer(stream, status, &format!("Location: http://{there}{path}\r\n"), b"")
            });
            let error = remote.get("a").unwrap_err();
            assert_eq!(error.code(), Code::StorageFailed, "{kind:?} {status}: {error:?}");
            assert!(error.message().contains(&format!("status {status}")), "{error:?}");
            assert!(remote.put("a", b"1", Put::IfAbsent).is_err(), "{kind:?} {status}");
            assert!(remote.delete("a").is_err() && remote.size("a").is_err());
            assert!(remote.list("", &mut |_| Ok(())).is_err());
            assert_eq!(elsewhere.connections(), 0, "{kind:?}: a redirect with status {status} was followed");
            assert_eq!(server.asked().len(), 6, "asked again although nothing had passed");
        }
    }
}

#[test]
fn an_upload_goes_to_no_other_service_than_the_one_that_was_named() {
    let elsewhere = Scripted::start(|_, stream| answer(stream, 200, "", b""));
    let other = elsewhere.address();
    for session in [
        format!("http://{other}/upload/1"),
        format!("https://{other}/upload/1"),
        "https://storage.googleapis.com/upload/1".to_owned(),
        "//upload/1".to_owned(),
        "file:///etc/passwd".to_owned(),
    ] {
        let (_server, remote) =
            liar(Kind::Google, move |asked, stream| match asked.line().starts_with("POST") {
                true => answer(stream, 200, &format!("Location: {session}\r\n"), b""),
                false => answer(stream, 404, "", b""),
            });
        let mut upload = remote.put_stream("a", Put::IfAbsent).unwrap();
        let sent = upload.write(&vec![7; 9 << 20]).and_then(|()| upload.commit());
        assert_eq!(sent.unwrap_err().code(), Code::StorageUnavailable);
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[test]
fn a_service_that_asks_to_wait_for_ever_is_not_waited_for() {
    for wait in [u64::MAX.to_string(), "86400".to_owned(), "Tue, 31 Dec 2999 23:59:59 GMT".to_owned()] {
        let (server, remote) = liar(Kind::S3, move |_, stream| {
            answer(stream, 503, &format!("Retry-After: {wait}\r\n"), b"<Error><Code>SlowDown</Code></Error>")
        });
        let begin = Instant::now();
        let error = remote.get("a").unwrap_err();
        assert_eq!(error.code(), Code::StorageUnavailable, "{error:?}");
        assert!(error.message().contains("asks for fewer requests"), "{error:?}");
        assert_eq!(server.asked().len(), 2, "asked again before the time that was asked for");
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    }
}

#[test]
fn what_a_service_says_is_short_plain_and_without_secrets() {
    let (_server, remote) = liar(Kind::S3, |_, stream| {
        let message = format!("Your \u{1b}[31mkey {S3_SECRET} is {}", "bad ".repeat(20_000));
        let body = format!("<Error><Code>{}</Code><Message>{message}</Message></Error>", "C".repeat(5000));
        answer(stream, 403, "", body.as_bytes())
    });
    let error = remote.get("a").unwrap_err();
    assert_eq!(error.code(), Code::StorageDenied);
    assert!(!shown(&error).contains(S3_SECRET) && !shown(&error).contains('\u{1b}'), "{}", shown(&error));
    assert!(error.message().len() < 600 && shown(&error).len() < 4000, "{}", shown(&error).len());
}

#[test]
fn only_what_is_wrong_with_a_certificate_is_not_trusted() {
    // No TLS at all, and a connection that is closed in the handshake.
    let plain = Scripted::start(|_, stream| answer(stream, 200, "", b""));
    let closing = TcpListener::bind("127.0.0.1:0").unwrap();
    let (plain, cut) = (plain.address(), closing.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in closing.incoming().flatten() {
            std::io::Read::read_exact(&mut &stream, &mut [0; 100]).ok();
        }
    });
    let speaks_nonsense = TcpListener::bind("127.0.0.1:0").unwrap();
    let nonsense = speaks_nonsense.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in speaks_nonsense.incoming().flatten() {
            stream.write_all(b"HTTP/1.1 400 This is not TLS\r\n\r\n").ok();
        }
    });
    for address in [plain, cut, nonsense] {
        let error = at(Kind::S3, &format!("https://{address}")).unwrap_err();
        assert_eq!(error.code(), Code::StorageUnavailable, "{error:?}");
        assert!(!shown(&error).contains("trusted"), "{}", shown(&error));
    }
    let error = at(Kind::S3, &format!("https://{nonsense}")).unwrap_err();
    assert!(error.message().contains("no secure connection to 127.0.0.1"), "{error:?}");
    // A certificate of an authority that nobody knows.
    let Some(azurite) = Azurite::start_tls() else { return };
    let place = bucket(&azurite.place("backups"));
    let key = Credentials::parse(&place, Azurite::KEY).unwrap();
    let mut options = Options { patience: patience(), ..Options::default() };
    let error = Remote::create(&place, &key, &options).unwrap_err();
    assert_eq!(error.code(), Code::StorageDenied, "{error:?}");
    assert!(error.message().contains("the certificate of 127.0.0.1 is not trusted"), "{error:?}");
    options.network.ca_file = azurite.authority().map(Into::into);
    let remote = Remote::create(&place, &key, &options).unwrap();
    remote.put("a", b"1", Put::IfAbsent).unwrap();
    assert_eq!(names(&remote), ["a"]);
}

#[test]
fn honest_pages_are_read_to_their_end() {
    for kind in KINDS {
        let (_server, remote) = liar(kind, move |asked, stream| {
            assert!(lists(asked), "{}", asked.line());
            let next = (asked.number < 40).then(|| format!("t{}", asked.number));
            let name = format!("o{}", asked.number);
            let names: &[&str] = if asked.number % 3 == 0 { &[] } else { &[&name] };
            answer(stream, 200, "", page(kind, names, next.as_deref()).as_bytes())
        });
        assert_eq!(names(&remote).len(), 27, "{kind:?}");
    }
}
