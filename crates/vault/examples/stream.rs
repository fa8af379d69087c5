//! How fast a stream is saved, and how fast it is read back: saves what comes in at the standard input as a document.
//!
//! `pg_dump -Fc -Z0 … | BACKSTAY_PASSWORD=… cargo run --release -p backstay-vault --example stream -- VAULT BYTES`

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_model::{Cancel, Code, Error, Result, Secret, Silent};
use backstay_storage::{Local, Storage};
use backstay_vault::backup::{DEFAULT_LEVEL, SnapshotDetails};
use backstay_vault::key::Cost;
use backstay_vault::{Strength, Vault};

fn main() -> Result<()> {
    let usage = || Error::new(Code::Usage, "VAULT BYTES and BACKSTAY_PASSWORD are needed");
    let mut words = std::env::args().skip(1);
    let place = words.next().map(PathBuf::from).ok_or_else(usage)?;
    let expected: u64 = words.next().and_then(|w| w.parse().ok()).ok_or_else(usage)?;
    let password = Secret::new(std::env::var("BACKSTAY_PASSWORD").map_err(|_unset| usage())?);
    let storage: Arc<dyn Storage> = Arc::new(Local::create(&place)?);
    let vault = if Vault::exists(&*storage)? {
        Vault::open(storage, &password)?
    } else {
        Vault::init(storage, &password, Cost::RANDOM)?
    };
    let cancel = Cancel::new();
    let lock = vault.lock(Strength::Shared, Duration::ZERO, &cancel)?;
    let mut writer = vault.begin(&lock, DEFAULT_LEVEL, &cancel)?;
    let begun = Instant::now();
    let size = writer.save_stream("databases/main", &mut std::io::stdin().lock(), expected)??;
    let streamed = begun.elapsed();
    let details =
        SnapshotDetails { time: writer.started(), paths: Vec::new(), tags: Vec::new(), parent: None };
    let committed = writer.commit(&lock, details, &Silent)?;
    let saved = begun.elapsed();
    lock.release()?;
    let reader = vault.reader()?;
    let node = reader.find(&committed.snapshot.tree, "databases/main".as_ref())?;
    let begun = Instant::now();
    let failed = |e| Error::new(Code::System, "Reading back failed").because(e);
    std::io::copy(&mut reader.stream(&node)?, &mut std::io::sink()).map_err(failed)?;
    let read = begun.elapsed();
    #[allow(clippy::print_stdout, clippy::cast_precision_loss)]
    {
        let rate = |time: Duration| size as f64 / 1e6 / time.as_secs_f64();
        println!("{size} bytes in {} pieces", node.content.len());
        println!("read to its end after {streamed:?} ({:.0} MB/s)", rate(streamed));
        println!(
            "committed after {saved:?} ({:.0} MB/s), read back in {read:?} ({:.0} MB/s)",
            rate(saved),
            rate(read)
        );
        println!("{:?}", committed.snapshot.summary);
    }
    Ok(())
}
