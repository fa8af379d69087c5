//! The whole program, run as a user runs it.
//!
//! Each test has a folder of its own with a state, a vault and sources in it. Texts are compared with snapshots in
//! which ids, times, durations and that folder are replaced (`cargo insta review`, or INSTA_UPDATE=always).

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

mod apps;
mod archive;
mod custom;
mod custom_azure;
mod custom_kills;
mod first_run;
mod foreign;
mod in_place;
mod interrupt;
mod json;
#[path = "../kills/kill.rs"]
#[allow(dead_code, reason = "the tests that kill the program use the rest")]
mod kill;
mod partial;
mod points;
mod recover;
mod retention;
mod serve;
mod settings;
mod texts;
mod together;
mod vault;
mod world;

pub(crate) use world::{Ran, World};

/// Compares with a snapshot after replacing ids, times, durations and the host.
#[macro_export]
macro_rules! assert_text {
    ($name:expr, $text:expr) => {
        insta::with_settings!({
            filters => vec![
                (r"\b[0-9a-f]{64}\b", "[SNAPSHOT]"),
                (r"\b[0-9a-f]{32}\b", "[ID]"),
                (r"\b[0-9a-f]{8}\b", "[ID]"),
                (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+Z)?", "[TIME]"),
                (r"\b\d+(\.\d)? s\b", "[DURATION]"),
                (r"\b\d+(\.\d)? (B|kB|MB|GB|TB)\b", "[SIZE]"),
                (r"(Host +)\S+", "${1}[HOST]"),
                (r"host=\S+ pid=\d+ start=\d+ boot=\S+ space=\S+ machine=\S*", "[OWNER]"),
                (r"backstay \d+\.\d+\.\d+", "backstay [VERSION]"),
                (r"tester +\S+ +in use", "tester [HOST] in use"),
                (r" {2,}", "  "),
            ],
            prepend_module_to_snapshot => false,
            omit_expression => true,
        }, {
            insta::assert_snapshot!($name, $text);
        });
    };
}
