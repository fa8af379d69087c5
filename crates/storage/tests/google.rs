//! The contract and the errors of buckets of Google Cloud Storage, on gcp-storage-emulator.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "test helpers")]

mod common;

use backstay_model::Code;
use backstay_storage::{Credentials, Options, Put, Remote, Storage};
use backstay_testing::{Gcs, Scripted, scripted};
use common::{bucket, impatient};

#[test]
fn keeps_the_contract() {
    let Some(gcs) = Gcs::start() else { return };
    let number = std::cell::Cell::new(0);
    backstay_storage::conformance::suite(|| {
        number.set(number.get() + 1);
        let mut place = bucket(&gcs.place(&format!("con{}", number.get())));
        gcs.make(&place.name);
        if number.get() % 2 == 1 {
            let other = Remote::create(&place, &Credentials::Anonymous, &Options::default()).unwrap();
            for name in ["neighbour", "backups/blog-2/a", "backups/blo"] {
                other.put(name, b"not of this place", Put::IfAbsent).unwrap();
            }
            place.prefix = "backups/blog".into();
        }
        Box::new(Remote::create(&place, &Credentials::Anonymous, &Options::default()).unwrap())
    });
}

/// What Google says and the emulator, which checks no token, never does: the words are those of its documentation.
#[test]
fn refusals_that_no_emulator_gives_have_their_codes() {
    let cases = [
        (
            401,
            "authError",
            "Invalid Credentials",
            Code::StorageDenied,
            "key or token is not valid",
            "Give a new one",
        ),
        (
            403,
            "forbidden",
            "it does not have storage.objects.list access",
            Code::StorageDenied,
            "the permission is missing",
            "list",
        ),
        (
            403,
            "accountDisabled",
            "The account is disabled",
            Code::StorageDenied,
            "the service refuses access",
            "Check key",
        ),
        (
            404,
            "notFound",
            "The specified bucket does not exist.",
            Code::StorageNotFound,
            "There is no bucket backups",
            "Check the name",
        ),
        (
            429,
            "rateLimitExceeded",
            "Slow down",
            Code::StorageUnavailable,
            "asks for fewer requests",
            "Try again later",
        ),
        (
            503,
            "backendError",
            "Backend Error",
            Code::StorageUnavailable,
            "a fault of its own (status 503)",
            "",
        ),
    ];
    let options = Options { patience: impatient(), ..Options::default() };
    for (status, reason, message, want, words, advice) in cases {
        let server = Scripted::start(move |_, stream| {
            let body = format!(
                "{{\"error\":{{\"code\":{status},\"message\":\"{message}\",\"errors\":[{{\"reason\":\"{reason}\"}}]}}}}"
            );
            scripted::answer(stream, status, "", body.as_bytes())
        });
        let place = bucket(&format!("gs://backups?endpoint=http://{}", server.address()));
        let error = Remote::open(&place, &Credentials::Anonymous, &options).unwrap_err();
        assert_eq!(error.code(), want, "{reason}: {error:?}");
        assert!(error.message().contains(words), "{reason}: {error:?}");
        assert!(
            !error.advice().is_empty() && error.advice().contains(advice),
            "{reason}: {}",
            error.advice()
        );
    }
    // A key file whose key is none: told before anything is sent, and not repeated.
    let place = bucket("gs://backups?endpoint=http://127.0.0.1:9");
    let file =
        r#"{"type":"service_account","client_email":"a@b","private_key":"aSecretKey","private_key_id":"1"}"#;
    let error = Remote::open(&place, &Credentials::parse(&place, file).unwrap(), &options).unwrap_err();
    assert_eq!(error.code(), Code::StorageDenied, "{error:?}");
    assert!(error.message().contains("no usable credentials"), "{error:?}");
    assert!(!common::shown(&error).contains("aSecretKey"), "{}", common::shown(&error));
}

#[test]
fn a_bucket_that_is_not_there_is_told() {
    let Some(gcs) = Gcs::start() else { return };
    let options = Options { patience: impatient(), ..Options::default() };
    let error = Remote::open(&bucket(&gcs.place("gone")), &Credentials::Anonymous, &options).unwrap_err();
    assert_eq!(error.code(), Code::StorageNotFound, "{error:?}");
    // To make one takes a project.
    let error = Remote::create(&bucket(&gcs.place("gone")), &Credentials::Anonymous, &options).unwrap_err();
    assert_eq!(error.code(), Code::StorageDenied, "{error:?}");
    assert!(common::shown(&error).contains("the key names none"), "{}", common::shown(&error));
}
