//! The contract and the errors of Azure containers, on Azurite.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "test helpers")]

mod common;

use backstay_model::{Code, Result};
use backstay_storage::{Address, Bucket, Credentials, Network, Options, Put, Remote, Storage};
use backstay_testing::{Azurite, Scripted, Terms, scripted, signature, signed};
use common::{bucket, impatient, names, shown};

const FAR: &str = "2099-01-01T00:00:00Z";

fn key() -> Credentials {
    Credentials::parse(&bucket("azure://devstoreaccount1/con"), Azurite::KEY).unwrap()
}

/// A new container of any name, opened by key.
fn container(azurite: &Azurite, name: &str) -> Remote {
    Remote::create(&bucket(&azurite.place(name)), &key(), &Options::default()).unwrap()
}

#[test]
fn keeps_the_contract() {
    let Some(azurite) = Azurite::start() else { return };
    let number = std::cell::Cell::new(0);
    backstay_storage::conformance::suite(|| {
        number.set(number.get() + 1);
        // Odd ones in a folder of a container that has more in it.
        let mut place = bucket(&azurite.place(&format!("con{}", number.get())));
        if number.get() % 2 == 1 {
            let other = Remote::create(&place, &key(), &Options::default()).unwrap();
            for name in ["neighbour", "backups/blog-2/a", "backups/blo", "backups/blog"] {
                other.put(name, b"not of this place", Put::IfAbsent).unwrap();
            }
            place.prefix = "backups/blog".into();
        }
        Box::new(Remote::create(&place, &key(), &Options::default()).unwrap())
    });
}

/// Options of the tests: no long waits.
fn options() -> Options {
    Options { patience: impatient(), ..Options::default() }
}

/// A container's place and credentials from its URL.
fn from_url(url: &str) -> (Bucket, Credentials) {
    match Address::parse(url).unwrap() {
        (Address::Remote(bucket), Some(credentials)) => (bucket, credentials),
        other => panic!("{other:?}"),
    }
}

fn open(url: &str) -> Result<Remote> {
    let (bucket, credentials) = from_url(url);
    Remote::open(&bucket, &credentials, &options())
}

#[test]
fn a_containers_url_with_its_signature_is_all_that_is_needed() {
    let Some(azurite) = Azurite::start() else { return };
    container(&azurite, "backups").put("first", b"1", Put::IfAbsent).unwrap();
    let url = azurite.url("backups", "racwdl", FAR);
    let remote = open(&url).unwrap();
    assert_eq!(remote.expires_at().unwrap().to_string(), FAR);
    assert_eq!(remote.get("first").unwrap(), b"1");
    remote.put("second", &[7; 70 << 20], Put::IfAbsent).unwrap();
    assert_eq!(remote.size("second").unwrap(), 70 << 20);
    assert_eq!(remote.put("second", b"", Put::IfAbsent).unwrap_err().code(), Code::ObjectExists);
    remote.delete("second").unwrap();
    assert_eq!(names(&remote), ["first"]);
    assert!(remote.abandoned(jiff::Timestamp::MAX).unwrap().is_empty());
    // Below a folder of the container, and the text of the address without any secret.
    let deeper = url.replace("/backups?", "/backups/apps/blog?");
    let (place, credentials) = from_url(&deeper);
    let remote = Remote::create(&place, &credentials, &options()).unwrap();
    remote.put("a", b"deep", Put::IfAbsent).unwrap();
    assert!(remote.location().ends_with(&format!("/backups/apps/blog?endpoint={}", azurite.endpoint())));
    assert!(!remote.location().contains("sig=") && !format!("{remote:?}{credentials:?}").contains("sig="));
    assert_eq!(container(&azurite, "backups").get("apps/blog/a").unwrap(), b"deep");
}

#[test]
fn each_way_to_be_refused_has_its_code_and_says_why() {
    let Some(azurite) = Azurite::start() else { return };
    container(&azurite, "backups").put("a", b"1", Put::IfAbsent).unwrap();
    let other_key = "bm90IHRoZSBrZXkgb2YgdGhpcyBhY2NvdW50LCBidXQgYXMgbG9uZyBhcyBvbmU=";
    let good = azurite.url("backups", "racwdl", FAR);
    let forged = format!("{}/backups?{}", azurite.endpoint(), signature("backups", "racwdl", FAR, other_key));
    let cases = [
        (
            azurite.url("backups", "racwdl", "2020-01-01T00:00:00Z"),
            Code::StorageDenied,
            "was valid until 2020-01-01T00:00:00Z",
        ),
        (
            azurite.url("backups", "rl", FAR),
            Code::StorageDenied,
            "the permission is missing (the signature allows `rl`)",
        ),
        (forged, Code::StorageDenied, "the signature does not fit"),
        (good.replace("/backups?", "/others?"), Code::StorageDenied, "the signature does not fit"),
        (
            azurite.url("gone", "racwdl", FAR),
            Code::StorageNotFound,
            "There is no container gone in 127.0.0.1",
        ),
    ];
    for (url, code, words) in cases {
        let done = open(&url).and_then(|remote| remote.put("b", b"2", Put::IfAbsent));
        let error = done.unwrap_err();
        assert_eq!(error.code(), code, "{error:?}");
        assert!(error.message().contains(words), "{error:?}");
        let secret = url.split("sig=").nth(1).unwrap();
        let plain = secret.replace("%2B", "+").replace("%2F", "/").replace("%3D", "=");
        assert!(!shown(&error).contains(secret) && !shown(&error).contains(&plain), "{}", shown(&error));
    }
    // Terms that are not met: not yet valid, and https only.
    let terms = Terms { permissions: "racwdl", expires: FAR, ..Terms::default() };
    for (terms, words, advice) in [
        (
            Terms { starts: "2098-01-01T00:00:00Z", ..terms },
            "is not valid before 2098-01-01T00:00:00Z",
            "clock",
        ),
        (Terms { protocol: "https", ..terms }, "it takes https only", "Write https"),
    ] {
        let query = signed("backups", terms, Azurite::KEY);
        let error = open(&format!("{}/backups?{query}", azurite.endpoint())).unwrap_err();
        assert_eq!(error.code(), Code::StorageDenied, "{error:?}");
        assert!(error.message().contains(words) && error.advice().contains(advice), "{}", shown(&error));
    }
    let terms = Terms { starts: "2020-01-01", protocol: "https,http", addresses: "127.0.0.1", ..terms };
    open(&format!("{}/backups?{}", azurite.endpoint(), signed("backups", terms, Azurite::KEY))).unwrap();
    // An account that this service does not have.
    let place = bucket(&azurite.place("backups").replace(Azurite::ACCOUNT, "nobody"));
    let error = Remote::open(&place, &key(), &options()).unwrap_err();
    assert_eq!(error.code(), Code::StorageNotFound, "{error:?}");
    // The account's key: another one, and one that fits but a container that is not there.
    let place = bucket(&azurite.place("backups"));
    let wrong = Credentials::parse(&place, other_key).unwrap();
    let error = Remote::open(&place, &wrong, &options()).unwrap_err();
    assert_eq!(error.code(), Code::StorageDenied, "{error:?}");
    assert!(!shown(&error).contains(other_key));
    let error = Remote::open(&bucket(&azurite.place("gone")), &key(), &options()).unwrap_err();
    assert_eq!(error.code(), Code::StorageNotFound, "{error:?}");
}

#[test]
fn signatures_that_lack_a_part_are_told_before_anything_is_sent() {
    let whole = "sv=2021-12-02&sp=racwdl&se=2099-01-01T00%3A00%3A00Z&sr=c&sig=aSecret%2Bx%3D";
    let at = |query: &str| format!("https://account.blob.core.windows.net/backups?{query}");
    assert!(Address::parse(&at(whole)).is_ok());
    for part in ["sv", "sp", "se", "sig"] {
        let query: Vec<_> = whole.split('&').filter(|p| !p.starts_with(&format!("{part}="))).collect();
        let error = Address::parse(&at(&query.join("&"))).unwrap_err();
        assert_eq!(error.code(), Code::SignatureIncomplete, "{part}");
        assert_eq!(error.message(), "Missing mandatory parameters for valid Shared Access Signature");
        assert!(!shown(&error).contains("aSecret"));
    }
    // A stored policy holds expiry and permissions.
    let (_, credentials) = from_url(&at("sv=2021-12-02&si=policy&sr=c&sig=aSecret%3D"));
    assert_eq!(credentials.expires(), None);
}

#[test]
fn services_that_are_not_there_are_told_apart() {
    let closed = backstay_testing::server::free_port();
    let refused = bucket(&format!("azure://account/backups?endpoint=http://127.0.0.1:{closed}/account"));
    let error = Remote::open(&refused, &key(), &options()).unwrap_err();
    assert_eq!(error.code(), Code::StorageUnavailable, "{error:?}");
    assert!(error.message().contains("no connection to 127.0.0.1"), "{error:?}");
    let nowhere = bucket("azure://account/backups?endpoint=https://account.blob.backstay.invalid");
    let error = Remote::open(&nowhere, &key(), &options()).unwrap_err();
    assert_eq!(error.code(), Code::CannotResolveStorage, "{error:?}");
    assert!(error.message().contains("Cannot resolve account.blob.backstay.invalid"), "{error:?}");
    // Takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent =
        bucket(&format!("azure://account/backups?endpoint=http://{}/account", silent.local_addr().unwrap()));
    let mut patience = impatient();
    (patience.attempts, patience.idle_secs) = (1, 1);
    let error = Remote::open(&silent, &key(), &Options { patience, ..Options::default() }).unwrap_err();
    assert_eq!(error.code(), Code::StorageUnavailable, "{error:?}");
    assert!(error.message().contains("did not answer in time"), "{error:?}");
}

#[test]
fn a_path_that_is_gone_is_an_error_and_no_other_is_taken() {
    let Some(azurite) = Azurite::start() else { return };
    container(&azurite, "backups").put("a", b"1", Put::IfAbsent).unwrap();
    let open = |network: Network| {
        let options = Options { network, ..options() };
        Remote::open(&bucket(&azurite.place("backups")), &key(), &options)
    };
    let by_address =
        |text: &str| Network { source_address: Some(text.parse().unwrap()), ..Network::default() };
    let by_interface = |text: &str| Network { interface: Some(text.into()), ..Network::default() };
    assert_eq!(open(by_address("127.0.0.1")).unwrap().get("a").unwrap(), b"1");
    assert_eq!(open(by_address("127.7.7.7")).unwrap().get("a").unwrap(), b"1");
    for network in [by_address("192.0.2.7"), by_interface("backstay-none")] {
        let error = open(network.clone()).unwrap_err();
        assert_eq!(error.code(), Code::NetworkPathGone, "{network:?}: {error:?}");
    }
    match open(by_interface("lo")) {
        Ok(remote) => assert_eq!(remote.get("a").unwrap(), b"1"),
        Err(error) => println!("left out: this machine lets no one choose the interface ({error:?})"),
    }
}

#[test]
fn a_connection_string_is_a_key() {
    let Some(azurite) = Azurite::start() else { return };
    let text = format!(
        "DefaultEndpointsProtocol=http;AccountName={};AccountKey={};BlobEndpoint={};",
        Azurite::ACCOUNT,
        Azurite::KEY,
        azurite.endpoint()
    );
    let place = bucket(&azurite.place("backups"));
    let credentials = Credentials::parse(&place, &text).unwrap();
    assert!(credentials == key());
    Remote::create(&place, &credentials, &options()).unwrap().put("a", b"1", Put::Replace).unwrap();
    let other = bucket("azure://another/backups");
    let error = Credentials::parse(&other, &text).unwrap_err();
    assert!(error.message().contains("of the account devstoreaccount1, not of another"), "{error:?}");
}

/// What Azure says and the emulator never does: the words are those of its documentation.
#[test]
fn refusals_that_no_emulator_gives_have_their_codes_too() {
    let cases = [
        (
            403,
            "AuthorizationSourceIPMismatch",
            Code::StorageDenied,
            "does not let this machine in",
            "firewall",
        ),
        (403, "AuthorizationFailure", Code::StorageDenied, "does not let this machine in", "firewall"),
        (403, "AuthenticationFailed", Code::StorageDenied, "the signature does not fit", "Give it again"),
        (
            403,
            "AuthorizationPermissionMismatch",
            Code::StorageDenied,
            "the permission is missing",
            "delete and list",
        ),
        (403, "KeyBasedAuthenticationNotPermitted", Code::StorageDenied, "takes no keys", "identity"),
        (403, "AccountIsDisabled", Code::StorageDenied, "the service refuses access", "Check key"),
        (
            400,
            "InvalidAuthenticationInfo",
            Code::StorageDenied,
            "key or token is not valid",
            "Give a new one",
        ),
        (404, "ContainerNotFound", Code::StorageNotFound, "There is no container backups", "Check the name"),
        (
            409,
            "ContainerBeingDeleted",
            Code::StorageNotFound,
            "There is no container backups",
            "Check the name",
        ),
        (409, "ContainerDisabled", Code::StorageNotFound, "There is no container backups", "Check the name"),
        (409, "BlobImmutableDueToPolicy", Code::StorageDenied, "protects it from changes", ""),
        (503, "ServerBusy", Code::StorageUnavailable, "asks for fewer requests", "Try again later"),
        (500, "OperationTimedOut", Code::StorageUnavailable, "a fault of its own (status 500)", ""),
        (507, "AccountIsOutOfSpace", Code::StorageFull, "it is full", ""),
    ];
    for (status, code, want, words, advice) in cases {
        let server = Scripted::start(move |_, stream| {
            let body = format!("<Error><Code>{code}</Code><Message>Said so.\nTime:2026</Message></Error>");
            scripted::answer(stream, status, &format!("x-ms-error-code: {code}\r\n"), body.as_bytes())
        });
        let place = bucket(&format!("azure://account/backups?endpoint=http://{}/account", server.address()));
        let error = Remote::open(&place, &key(), &options()).unwrap_err();
        assert_eq!(error.code(), want, "{code}: {error:?}");
        assert!(error.message().contains(words), "{code}: {error:?}");
        assert!(!error.advice().is_empty() && error.advice().contains(advice), "{code}: {}", error.advice());
    }
}
