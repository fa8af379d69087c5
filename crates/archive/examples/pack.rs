//! Packs a folder into a zip and says what it took: for `bench/archive`.
//!
//!     pack FOLDER ZIP [LEVEL [WORKERS]]

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a tool for measurements")]

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use backstay_archive::{Consistency, Live, Manifest, Options, Writer, ZipRecord};
use backstay_model::{Cancel, Silent};
use backstay_tree::Exclusions;
use backstay_tree::fs::{FileTime, Host};
use jiff::Timestamp;

fn main() {
    let mut args = std::env::args().skip(1);
    let (home, zip) = (args.next().unwrap(), args.next().unwrap());
    let mut options = Options::default();
    if let Some(level) = args.next() {
        options.level = level.parse().unwrap();
    }
    if let Some(workers) = args.next() {
        options.workers = workers.parse().unwrap();
    }
    let started = Timestamp::now();
    let live = Live::open(Arc::new(Host), Path::new(&home), Exclusions::new()).unwrap();
    let mut writer = Writer::new(File::create(&zip).unwrap(), options).unwrap();
    writer.add(&live, &Silent, &Cancel::new()).unwrap();
    let (file, written) = writer.finish(FileTime { secs: started.as_second(), nanos: 0 }).unwrap();
    file.sync_all().unwrap();
    let manifest = Manifest {
        program: "backstay".into(),
        app: "bench".into(),
        slot: None,
        point: None,
        kind: "static".into(),
        host: "bench".into(),
        home,
        host_names: Vec::new(),
        started,
        ended: Timestamp::now(),
        consistency: Consistency { class: "files-only".into(), steps: Vec::new() },
        databases: Vec::new(),
        settings: None,
        filter: Vec::new(),
        problems: written.problems,
        zip: ZipRecord { name: "bench.zip".into(), size: written.size, sha256: written.sha256 },
        entries: written.entries,
    };
    let xml = manifest.to_xml(None);
    std::fs::write(Path::new(&zip).with_extension("xml"), &xml).unwrap();
    println!("{} bytes zip, {} bytes xml, {} problems", written.size, xml.len(), manifest.problems.len());
}
