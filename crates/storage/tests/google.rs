//! The contract and the errors of buckets of Google Cloud Storage, on gcp-storage-emulator.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "test helpers")]

mod common;

use backstay_storage::{Credentials, Options, Put, Remote, Storage};
use backstay_testing::Gcs;
use common::bucket;

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
