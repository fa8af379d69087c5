//! The contract and the errors of S3 buckets, on s3s-fs.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "test helpers")]

mod common;

use std::path::PathBuf;

use backstay_model::{Code, Error, Result};
use backstay_storage::{Credentials, Object, Options, Put, Remote, Storage};
use backstay_testing::{Moto, S3};
use common::bucket;

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
