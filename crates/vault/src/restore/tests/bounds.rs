//! What a small hostile vault may cost: memory and time of restores that a few kilobytes ask to be endless.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backstay_model::ProblemKind::Unsafe;
use backstay_model::{Cancel, Code};
use backstay_tree::fs::{FileSystem, Host};

use super::{Forge, Sandbox, folder, symlink};
use crate::blob::BlobKind;
use crate::restore::plan::DEPTH_MAX;
use crate::restore::{RestoreOptions, restore};

/// Peak memory of this process in MiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// Runs a test of this module alone in a process of its own and gives its peak memory in MiB.
fn alone(test: &str) -> u64 {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("restore::tests::bounds::{test}"), "--nocapture", "--test-threads=1"])
        .env("BACKSTAY_TEST_ALONE", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let peak = text.lines().find_map(|l| l.split("peak ").nth(1)?.split(' ').next()?.parse().ok());
    peak.unwrap_or_else(|| panic!("no peak in {text}"))
}

fn is_alone() -> bool {
    std::env::var_os("BACKSTAY_TEST_ALONE").is_some()
}

#[test]
fn a_million_entries_of_one_name() {
    if !is_alone() {
        let peak = alone("a_million_entries_of_one_name");
        assert!(peak < 400, "{peak} MiB");
        return;
    }
    let mut forge = Forge::new();
    let mut json = String::from(r#"{"nodes":["#);
    for n in 0..1_000_000 {
        json.push_str(if n == 0 { "" } else { "," });
        json.push_str(r#"{"name":"same","type":"fifo"}"#);
    }
    json.push_str("]}");
    let tree = forge.compressed(BlobKind::Tree, json.as_bytes(), u32::try_from(json.len()).unwrap());
    let sandbox = Sandbox::new();
    let outcome = sandbox.run(&forge.reader(), &tree, &RestoreOptions::default());
    assert!(
        outcome.problems.len() < 2000 && outcome.problems.iter().filter(|p| p.kind == Unsafe).count() > 1
    );
    assert!(sandbox.target().join("same").symlink_metadata().unwrap().file_type().is_fifo());
    println!("peak {} MiB", peak());
}

#[test]
fn folders_without_end() {
    if !is_alone() {
        let peak = alone("folders_without_end");
        assert!(peak < 400, "{peak} MiB");
        return;
    }
    // 10,000 levels: as many as are reasonable, then a word about the rest.
    let mut forge = Forge::new();
    let mut tree = forge.tree(&[]);
    for _ in 0..10_000 {
        tree = forge.tree(&[folder("d", tree)]);
    }
    let sandbox = Sandbox::new();
    let outcome = sandbox.run(&forge.reader(), &tree, &RestoreOptions::default());
    let [problem] = outcome.problems.as_slice() else { panic!("{:?}", outcome.problems.len()) };
    assert_eq!((problem.kind, problem.path.len()), (Unsafe, DEPTH_MAX as usize * 2 + 1));
    let host = Host;
    let root = host.open_root(&sandbox.target()).unwrap();
    backstay_tree::remove_tree(&host, std::os::fd::AsFd::as_fd(&root), "d".as_ref()).unwrap();

    // Eight levels of a hundred names each for the same folder: 10^16 folders from a few kilobytes.
    let mut forge = Forge::new();
    let mut tree = forge.tree(&[symlink("x", "y")]);
    for _ in 0..8 {
        let nodes: Vec<_> = (0..100).map(|n| folder(&format!("{n}"), tree)).collect();
        tree = forge.tree(&nodes);
    }
    let host: Arc<dyn FileSystem> = Arc::new(Host);
    let sandbox = Sandbox::new();
    let cancel = Cancel::new();
    let watch = StopAtRestoring(cancel.clone());
    let reader = forge.reader();
    let began = Instant::now();
    let target = sandbox.target();
    let result = restore(&reader, &host, &tree, None, &target, &RestoreOptions::default(), &watch, &cancel);
    // Planning ends by itself and says what it leaves out; the million folders that are left are not made in a test.
    assert_eq!(result.unwrap_err().code(), Code::Cancelled);
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    println!("peak {} MiB", peak());
}

/// Cancels when planning is over.
struct StopAtRestoring(Cancel);

impl backstay_model::Progress for StopAtRestoring {
    fn phase(&self, phase: backstay_model::Phase) {
        if phase == backstay_model::Phase::Restoring {
            self.0.cancel();
        }
    }
    fn done(&self, _: u64, _: u64) {}
    fn expect(&self, _: u64, _: u64) {}
    fn problem(&self, _: &backstay_model::Problem) {}
}
