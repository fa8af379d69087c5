//! How long a restore in place takes on the vault's side: a tree of many small files, some of which change.
//!
//! `cargo run --release -p backstay-vault --example change -- EMPTY-FOLDER [FILES]`

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_model::{Cancel, Code, Error, Result, Secret, Silent};
use backstay_storage::{Local, Storage};
use backstay_tree::fs::{FileSystem, Host};
use backstay_vault::backup::{DEFAULT_LEVEL, SnapshotDetails, TreeOptions, survey};
use backstay_vault::change::{ChangePlan, Rules, Side, plan};
use backstay_vault::key::Cost;
use backstay_vault::restore::restore;
use backstay_vault::{Id, Node, Strength, Vault};

struct Bench {
    vault: Vault,
    home: PathBuf,
    index: PathBuf,
    fs: Arc<dyn FileSystem>,
}

fn failed(e: std::io::Error) -> Error {
    Error::new(Code::System, "The benchmark cannot go on").because(e)
}

fn tell(what: &str, begun: Instant) {
    #[allow(clippy::print_stdout)]
    {
        println!("{what}: {:.1} ms", begun.elapsed().as_secs_f64() * 1000.0);
    }
}

impl Bench {
    fn path(&self, n: usize) -> PathBuf {
        self.home.join(format!("{:02}/{:02}/{n}.php", n % 40, n / 40 % 50))
    }

    fn write(&self, n: usize, salt: usize) -> Result<()> {
        let path = self.path(n);
        let line = format!("line {n} {salt} of a file as apps have them\n");
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).map_err(failed)?;
        std::fs::write(path, line.repeat(20 + n % 100)).map_err(failed)
    }

    fn options(&self, parent: Option<Id>) -> TreeOptions {
        TreeOptions { parent, file_index: Some(self.index.clone()), ..TreeOptions::default() }
    }

    fn point(&self) -> Result<Id> {
        let cancel = Cancel::new();
        let lock = self.vault.lock(Strength::Shared, Duration::ZERO, &cancel)?;
        let parent = self.vault.snapshots()?.last().map(|(id, _)| *id);
        let mut writer = self.vault.begin(&lock, DEFAULT_LEVEL, &cancel)?;
        writer.save_tree("content", &self.fs, &self.home, self.options(parent), &Silent)?;
        let details = SnapshotDetails { time: writer.started(), paths: vec![], tags: vec![], parent };
        let id = writer.commit(&lock, details, &Silent)?.id;
        lock.release()?;
        Ok(id)
    }

    fn content(&self, point: &Id) -> Result<Node> {
        self.vault.reader()?.find(&self.vault.snapshot(point)?.tree, Path::new("content"))
    }

    fn measure(&self, target: &Id, files: usize, count: usize) -> Result<()> {
        let begun = Instant::now();
        for k in 0..count {
            self.write(k * (files / count), count)?;
        }
        tell(&format!("--- {count} files changed"), begun);
        let then = self.content(target)?;
        let then = Side { tree: then.subtree.unwrap_or_default(), top: Some(&then) };
        let parent = self.vault.snapshots()?.last().map(|(id, _)| *id);
        let begun = Instant::now();
        let reader = self.vault.reader()?;
        tell("index loaded", begun);
        let begun = Instant::now();
        let cancel = Cancel::new();
        let now = survey(reader, "content", &self.fs, &self.home, self.options(parent), &Silent, &cancel)?;
        tell("survey", begun);
        let begun = Instant::now();
        let side = Side { tree: now.tree, top: Some(&now.top) };
        let dry = plan(&now.reader, &side, &then, &Rules::none(), &cancel)?;
        tell(&format!("plan over the survey, {} steps", dry.steps.len()), begun);
        let begun = Instant::now();
        let live = self.point()?;
        tell("safety point", begun);
        let (live, reader) = (self.content(&live)?, self.vault.reader()?);
        let live = Side { tree: live.subtree.unwrap_or_default(), top: Some(&live) };
        let mut best: Option<ChangePlan> = None;
        for _ in 0..5 {
            let begun = Instant::now();
            best = Some(plan(&reader, &live, &then, &Rules::none(), &cancel)?);
            tell("plan", begun);
        }
        let Some(plan) = best else { return Ok(()) };
        for sync in [false, true, true] {
            let staged = self.home.with_file_name("staged");
            std::fs::create_dir(&staged).map_err(failed)?;
            let begun = Instant::now();
            let options =
                backstay_vault::restore::RestoreOptions { sync, ..plan.staging(Default::default()) };
            let outcome = restore(&reader, &self.fs, &then.tree, None, &staged, &options, &Silent, &cancel)?;
            tell(&format!("{} files staged, synced: {sync}", outcome.counts.files), begun);
            std::fs::remove_dir_all(&staged).map_err(failed)?;
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let usage = || Error::new(Code::Usage, "EMPTY-FOLDER [FILES]");
    let mut words = std::env::args_os().skip(1);
    let place = PathBuf::from(words.next().ok_or_else(usage)?);
    let files = words.next().and_then(|n| n.to_str()?.parse().ok()).unwrap_or(50_000);
    let storage: Arc<dyn Storage> = Arc::new(Local::create(place.join("vault"))?);
    let vault = Vault::init(storage, &Secret::new("password"), Cost::RANDOM)?;
    let fs: Arc<dyn FileSystem> = Arc::new(Host);
    let bench = Bench { vault, home: place.join("home"), index: place.join("index"), fs };
    for n in 0..files {
        bench.write(n, 0)?;
    }
    std::thread::sleep(Duration::from_secs(2));
    let begun = Instant::now();
    let target = bench.point()?;
    tell("first point", begun);
    bench.measure(&target, files, 20)?;
    bench.measure(&target, files, 5_000)
}
