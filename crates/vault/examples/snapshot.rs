//! The library by itself: saves a folder into a vault (made when missing) and prints what was done.
//!
//! `BACKSTAY_PASSWORD=… cargo run --release -p backstay-vault --example snapshot -- VAULT FOLDER [FILE-INDEX]`

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_model::{Cancel, Code, Error, Result, Secret, Silent};
use backstay_storage::{Local, Storage};
use backstay_tree::fs::{FileSystem, Host};
use backstay_vault::backup::{DEFAULT_LEVEL, SnapshotDetails, TreeOptions};
use backstay_vault::key::Cost;
use backstay_vault::{Strength, Vault};

fn main() -> Result<()> {
    let usage = || Error::new(Code::Usage, "VAULT FOLDER [FILE-INDEX] and BACKSTAY_PASSWORD are needed");
    let mut words = std::env::args_os().skip(1).map(PathBuf::from);
    let (place, home) = (words.next().ok_or_else(usage)?, words.next().ok_or_else(usage)?);
    let file_index = words.next();
    let password = Secret::new(std::env::var("BACKSTAY_PASSWORD").map_err(|_unset| usage())?);
    let begun = Instant::now();
    let storage: Arc<dyn Storage> = Arc::new(Local::create(&place)?);
    let vault = if Vault::exists(&*storage)? {
        Vault::open(storage, &password)?
    } else {
        Vault::init(storage, &password, Cost::RANDOM)?
    };
    let cancel = Cancel::new();
    let lock = vault.lock(Strength::Shared, Duration::ZERO, &cancel)?;
    let parent = vault.snapshots()?.last().map(|(id, _)| *id);
    let mut writer = vault.begin(&lock, DEFAULT_LEVEL, &cancel)?;
    let fs: Arc<dyn FileSystem> = Arc::new(Host);
    let options = TreeOptions { parent, file_index, ..TreeOptions::default() };
    let summary = writer.save_tree("content", &fs, &home, options, &Silent)?;
    let details = SnapshotDetails {
        time: writer.started(),
        paths: vec![home.display().to_string()],
        tags: Vec::new(),
        parent,
    };
    let committed = writer.commit(&lock, details, &Silent)?;
    lock.release()?;
    #[allow(clippy::print_stdout)]
    {
        println!("{} {:?} {:.3} s", committed.id, summary.counts, begun.elapsed().as_secs_f64());
        println!("{:?}", committed.snapshot.summary);
        summary.problems.iter().for_each(|p| println!("{p:?}"));
    }
    Ok(())
}
