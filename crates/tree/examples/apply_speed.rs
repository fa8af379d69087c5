//! How long a restore in place takes in a tree of 50,000 files, without staging: prints milliseconds for each part.
//! `cargo run -p backstay-tree --example apply_speed -- [FOLDER]` works in a new folder below FOLDER (`/tmp`).
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a tool for developers: what fails stops it"
)]

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use backstay_model::JobId;
use backstay_tree::apply::{Changes, Seen, Side, Step, Workplace, recover};
use backstay_tree::fs::{FileSystem, Host, Kind};

const FILES: usize = 50_000;
const PER_FOLDER: usize = 50;

fn file(n: usize) -> PathBuf {
    format!("site/{}/{}/file-{n}.txt", n / PER_FOLDER / 20, n / PER_FOLDER).into()
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let done = work();
    print!("  {what} {:.1} ms", begin.elapsed().as_secs_f64() * 1000.0);
    done
}

/// Replaces `steps` files, evenly spread, and takes it back.
fn restore(fs: &Arc<dyn FileSystem>, home: &Path, jobs: &Path, steps: usize) {
    let chosen: Vec<PathBuf> = (0..steps).map(|n| file(n * FILES / steps)).collect();
    let seen = |path: &Path| {
        let folder = fs.open_root(home.join(path).parent().unwrap()).unwrap();
        Seen::from(&fs.stat(folder.as_fd(), path.file_name().unwrap()).unwrap())
    };
    let step = |path: &PathBuf| Step { path: path.clone(), old: Some(seen(path)), new: Some(Kind::File) };
    let changes = Changes { steps: chosen.iter().map(step).collect(), metadata: Vec::new() };
    print!("{steps} steps:");
    let note = serde_json::Value::Null;
    let mut work = timed("prepare", || {
        Workplace::prepare(fs.clone(), home, jobs, JobId::from_bytes([1; 16]), &note).unwrap()
    });
    let staging = work.staging_path();
    for path in &chosen {
        fs::create_dir_all(staging.join(path).parent().unwrap()).unwrap();
        fs::write(staging.join(path), "new").unwrap();
    }
    rustix::fs::syncfs(fs.open_root(&staging).unwrap()).unwrap();
    let mut journal = timed("commit", || work.commit(&changes).unwrap());
    drop(work);
    timed("settle", || journal.settle(Side::New).unwrap());
    timed("close", || journal.close().unwrap());
    timed("undo", || journal.settle(Side::Old).unwrap());
    journal.close().unwrap();
    drop(journal);
    timed("recover", || recover(fs, jobs).unwrap());
    let journal = timed("open", || {
        backstay_tree::apply::Journal::open(fs.clone(), jobs, JobId::from_bytes([1; 16])).unwrap()
    });
    timed("discard", || journal.discard().unwrap());
    println!();
}

fn main() {
    let base = std::env::args_os().nth(1).unwrap_or_else(|| "/tmp".into());
    let dir = tempfile::tempdir_in(base).unwrap();
    let (home, jobs) = (dir.path().join("home"), dir.path().join("jobs"));
    for n in 0..FILES {
        let path = home.join(file(n));
        if n % PER_FOLDER == 0 {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        fs::write(path, "old").unwrap();
    }
    let fs: Arc<dyn FileSystem> = Arc::new(Host);
    rustix::fs::syncfs(fs.open_root(&home).unwrap()).unwrap();
    for _ in 0..2 {
        for steps in [20, 5_000] {
            restore(&fs, &home, &jobs, steps);
        }
    }
}
