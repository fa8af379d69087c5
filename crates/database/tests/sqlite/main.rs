//! Files of SQLite: copied under load, damaged, locked, in odd places; restored beside the one in use.
//!
//! This program is also its own child: the tests `the_child`, `a_writer` and `an_exchanger` do nothing unless words follow their name.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests"
)]

mod contract;
mod exchange;
mod linked;
mod snapshot;
mod writer;

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use backstay_database::sqlite::{self, Child};

/// The words behind a name among those that this program was started with.
fn words(name: &str) -> Vec<OsString> {
    std::env::args_os().skip_while(|arg| arg != name).skip(1).collect()
}

/// How this program is started to run one test only, in which words that follow are found.
fn only(name: &str) -> Vec<OsString> {
    ["--exact", "--nocapture", "--quiet", "--test-threads=1", name].map(OsString::from).to_vec()
}

fn child() -> Child {
    Child { program: std::env::current_exe().unwrap(), args: only("the_child") }
}

#[test]
fn the_child() {
    let words = words("the_child");
    if !words.is_empty() {
        std::process::exit(sqlite::child_main(words).into());
    }
}

#[test]
fn a_writer() {
    let words = words("a_writer");
    if !words.is_empty() {
        writer::main(&words);
    }
}

#[test]
fn an_exchanger() {
    let words = words("an_exchanger");
    if !words.is_empty() {
        exchange::main(&words);
    }
}

/// Name, inode, mode, time of change, content.
type Seen = (OsString, u64, u32, (i64, i64), Vec<u8>);

/// Everything in a folder that a reader could have changed, but when it was read.
fn state(folder: &Path) -> Vec<Seen> {
    let mut all: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            let bytes = std::fs::read(entry.path()).unwrap();
            (entry.file_name(), meta.ino(), meta.mode(), (meta.mtime(), meta.mtime_nsec()), bytes)
        })
        .collect();
    all.sort();
    all
}
