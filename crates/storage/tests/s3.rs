//! The contract and the errors of S3 buckets, on s3s-fs.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "test helpers")]

mod common;

use std::path::PathBuf;

use backstay_model::{Code, Error, Result};
use backstay_storage::{Credentials, Object, Options, Put, Remote, Storage};
use backstay_testing::{Moto, S3, Scripted, scripted};
use common::{bucket, impatient, shown};

fn key(s3: &S3) -> Credentials {
    Credentials::parse(&bucket("s3://any"), &s3.key()).unwrap()
}

/// s3s-fs keeps objects as files, and answers "internal error" where a name is that of a folder. No S3 service has
/// folders, so here such names are what they are there: absent.
#[derive(Debug)]
struct WithoutFolders {
    remote: Remote,
    root: PathBuf,
}

impl WithoutFolders {
    fn look(&self, name: &str) -> Result<()> {
        match self.root.join(name).is_dir() && backstay_storage::check_name(name).is_ok() {
            true => Err(Error::new(Code::ObjectNotFound, "A folder of the server")),
            false => Ok(()),
        }
    }
}

impl Storage for WithoutFolders {
    fn location(&self) -> String {
        self.remote.location()
    }
    fn put(&self, name: &str, bytes: &[u8], mode: Put) -> Result<()> {
        self.remote.put(name, bytes, mode)
    }
    fn get(&self, name: &str) -> Result<Vec<u8>> {
        self.look(name).and_then(|()| self.remote.get(name))
    }
    fn get_range(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.look(name).and_then(|()| self.remote.get_range(name, offset, len))
    }
    fn size(&self, name: &str) -> Result<u64> {
        self.look(name).and_then(|()| self.remote.size(name))
    }
    fn list(&self, folder: &str, each: &mut dyn FnMut(Object) -> Result<()>) -> Result<()> {
        self.remote.list(folder, each)
    }
    fn delete(&self, name: &str) -> Result<()> {
        self.look(name).and_then(|()| self.remote.delete(name))
    }
}

#[test]
fn keeps_the_contract() {
    let Some(s3) = S3::start() else { return };
    let number = std::cell::Cell::new(0);
    let left_out = [
        ("good names", "s3s-fs keeps objects as files and takes no name of 200 bytes"),
        ("one winner", "s3s-fs looks first and writes then"),
        ("one winner of streams", "s3s-fs looks first and writes then"),
    ];
    backstay_storage::conformance::suite_without(&left_out, || {
        number.set(number.get() + 1);
        let mut place = bucket(&s3.place(&format!("con{}", number.get())));
        if number.get() % 2 == 1 {
            let other = Remote::create(&place, &key(&s3), &Options::default()).unwrap();
            for name in ["neighbour", "backups/blog-2/a", "backups/blo"] {
                other.put(name, b"not of this place", Put::IfAbsent).unwrap();
            }
            place.prefix = "backups/blog".into();
        }
        let remote = Remote::create(&place, &key(&s3), &Options::default()).unwrap();
        Box::new(WithoutFolders { remote, root: s3.root().join(&place.name).join(&place.prefix) })
    });
}

#[test]
fn keeps_the_contract_on_another_server() {
    let Some(moto) = Moto::start() else { return };
    let number = std::cell::Cell::new(0);
    backstay_storage::conformance::suite(|| {
        number.set(number.get() + 1);
        let place = bucket(&moto.place(&format!("con{}", number.get())));
        let key = Credentials::parse(&place, "any:key").unwrap();
        Box::new(Remote::create(&place, &key, &Options::default()).unwrap())
    });
}

fn options() -> Options {
    Options { patience: impatient(), ..Options::default() }
}

#[test]
fn keys_and_names_that_do_not_fit_are_told_apart() {
    let Some(s3) = S3::start() else { return };
    let place = bucket(&s3.place("backups"));
    Remote::create(&place, &key(&s3), &options()).unwrap().put("a", b"1", Put::IfAbsent).unwrap();
    let open = |place: &str, key: &str| {
        let place = bucket(&s3.place(place));
        let error = Remote::open(&place, &Credentials::parse(&place, key).unwrap(), &options()).unwrap_err();
        let secret = key.split(':').nth(1).unwrap();
        assert!(!shown(&error).contains(secret) && !error.advice().is_empty(), "{}", shown(&error));
        error
    };
    let error = open("backups", &format!("{}:anotherSecretHalf", S3::KEY_ID));
    assert_eq!(error.code(), Code::StorageDenied, "{error:?}");
    assert!(error.message().contains("the signature does not fit"), "{error:?}");
    let error = open("backups", &format!("ANOTHERKEY:{}", S3::SECRET));
    assert_eq!(error.code(), Code::StorageDenied, "{error:?}");
    assert!(error.message().contains("its key or token is not valid"), "{error:?}");
    let error = open("gone", &s3.key());
    assert_eq!(error.code(), Code::StorageNotFound, "{error:?}");
    assert!(error.message().contains("There is no bucket gone in 127.0.0.1"), "{error:?}");
}

/// What AWS says and the servers of the tests never do: the words are those of its documentation.
#[test]
fn refusals_that_no_emulator_gives_have_their_codes() {
    let region = "x-amz-bucket-region: eu-west-1\r\n";
    let cases = [
        (
            301,
            "PermanentRedirect",
            region,
            Code::InvalidValue,
            "is in the region eu-west-1",
            "?region=REGION",
        ),
        (
            400,
            "AuthorizationHeaderMalformed",
            "",
            Code::InvalidValue,
            "is in the region eu-central-1",
            "?region=",
        ),
        (403, "InvalidAccessKeyId", "", Code::StorageDenied, "key or token is not valid", "Give a new one"),
        (
            403,
            "SignatureDoesNotMatch",
            "",
            Code::StorageDenied,
            "the signature does not fit",
            "Give it again",
        ),
        (403, "AccessDenied", "", Code::StorageDenied, "the permission is missing", "delete and list"),
        (403, "RequestTimeTooSkewed", "", Code::StorageDenied, "too far from the service's", "clock"),
        (400, "ExpiredToken", "", Code::StorageDenied, "key or token is not valid", "Give a new one"),
        (400, "InvalidToken", "", Code::StorageDenied, "key or token is not valid", "Give a new one"),
        (404, "NoSuchBucket", "", Code::StorageNotFound, "There is no bucket backups", "Check the name"),
        (503, "SlowDown", "", Code::StorageUnavailable, "asks for fewer requests", "Try again later"),
        (500, "InternalError", "", Code::StorageUnavailable, "a fault of its own (status 500)", ""),
        (507, "XMinioStorageFull", "", Code::StorageFull, "it is full", ""),
    ];
    for (status, code, headers, want, words, advice) in cases {
        let server = Scripted::start(move |_, stream| {
            let region =
                if code == "AuthorizationHeaderMalformed" { "<Region>eu-central-1</Region>" } else { "" };
            let body = format!("<Error><Code>{code}</Code><Message>Said so</Message>{region}</Error>");
            scripted::answer(stream, status, headers, body.as_bytes())
        });
        let place = bucket(&format!("s3://backups?endpoint=http://{}", server.address()));
        let key = Credentials::parse(&place, "any:key:session").unwrap();
        let error = Remote::open(&place, &key, &options()).unwrap_err();
        assert_eq!(error.code(), want, "{code}: {error:?}");
        assert!(error.message().contains(words), "{code}: {error:?}");
        assert!(!error.advice().is_empty() && error.advice().contains(advice), "{code}: {}", error.advice());
    }
}
