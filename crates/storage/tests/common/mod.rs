//! What the tests of all object stores share.

#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "test helpers, each used by some of the tests"
)]

use backstay_model::Error;
use backstay_storage::{Address, Bucket, Patience, Storage};

/// The place that an address names.
pub fn bucket(place: &str) -> Bucket {
    match place.parse().unwrap() {
        Address::Remote(bucket) => bucket,
        Address::Local(path) => panic!("{} is local", path.display()),
    }
}

/// Everything that a person or a log may get to see of an error.
pub fn shown(error: &Error) -> String {
    format!("{error} {error:?} {} {:?}", error.advice(), error.causes())
}

/// Repeats quickly and gives up soon.
pub fn impatient() -> Patience {
    Patience {
        attempts: 4,
        first_pause_ms: 5,
        longest_pause_ms: 50,
        total_secs: 20,
        connect_secs: 5,
        idle_secs: 3,
    }
}

/// The names of all objects, sorted.
pub fn names(storage: &dyn Storage) -> Vec<String> {
    let mut names = Vec::new();
    storage
        .list("", &mut |o| {
            names.push(o.name);
            Ok(())
        })
        .unwrap();
    names.sort();
    names
}
