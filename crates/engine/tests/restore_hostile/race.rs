//! Folders of the home are swapped for links out of it, 10,000 times and more, while restores and undos run.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use backstay_engine::BackupRequest;
use backstay_model::{Cancel, Code, Silent};
use backstay_tree::fs::{FileSystem as _, Host, Rename};

use crate::world::World;

/// Swaps that there must be.
const SWAPS: u64 = 10_000;
/// Restores and undos that must get through beside them.
const THROUGH: u64 = 20;
/// How long a swap is tried to be taken back.
const PATIENCE: Duration = Duration::from_secs(10);
/// When it is given up.
const LIMIT: Duration = Duration::from_secs(400);

/// Swaps a folder for the link beside it and back, again and again.
fn racer(world: &World, stop: &AtomicBool, swaps: &AtomicU64) {
    let mut turn = 0u64;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        // Long enough now and then for a restore to get through.
        match turn % 64 {
            0 => std::thread::sleep(Duration::from_millis(150)),
            n => (0..n * 1_000).for_each(|_| std::hint::spin_loop()),
        }
        let (dir, name) = if turn.is_multiple_of(3) { ("", "a") } else { ("a", "b") };
        // A restore may be replacing them right now.
        let Ok(handle) = Host.open_root(&world.home().join(dir)) else { continue };
        let link = format!("{name}.link");
        let swap =
            || Host.rename(handle.as_fd(), name.as_ref(), handle.as_fd(), link.as_ref(), Rename::Exchange);
        if swap().is_ok() {
            (0..(turn % 7) * 3_000).for_each(|_| std::hint::spin_loop());
            // Tried until it is as it was: what a restore moved away comes back, on a busy disk after seconds.
            let began = Instant::now();
            while swap().is_err() && began.elapsed() < PATIENCE {
                std::thread::yield_now();
            }
            swaps.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[test]
fn links_swapped_in_gain_nothing() {
    let world = World::new();
    let home = world.home();
    let write = |path: &str, text: &str| {
        let path = home.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    for path in ["a/b/c.txt", "a/b/gone.txt", "a/top.txt", "a/b/deep/x"] {
        write(path, "then");
    }
    // Outside there is something under every name, so that whatever lands there is noticed.
    for (link, to) in [("a.link", "../../outside"), ("a/b.link", "../../../outside/folder")] {
        symlink(to, home.join(link)).unwrap();
    }
    let back_up = || {
        let report = world.engine().backup(&BackupRequest::of(&home), &Silent, &Cancel::new()).unwrap();
        report.point.point.id.to_string()
    };
    let then = back_up();
    fs::remove_file(home.join("a/b/gone.txt")).unwrap();
    for path in ["a/b/c.txt", "a/b/secret", "a/folder/secret", "a/secret", "a/b/deep/y", "a/top.txt"] {
        write(path, "now, and of another length");
    }
    let points = [then, back_up()];
    let (stop, swaps) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut through, mut refused) = (0u64, 0u64);
    std::thread::scope(|scope| {
        scope.spawn(|| racer(&world, &stop, &swaps));
        let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let began = Instant::now();
            let mut number = 0u64;
            while swaps.load(Ordering::Relaxed) < SWAPS || through < THROUGH {
                assert!(began.elapsed() < LIMIT, "{through} through, {refused} refused, {swaps:?}");
                number += 1;
                world.engine().resume().unwrap();
                let done = match number % 3 {
                    0 => world.undo(),
                    n => world.restore(&points[usize::try_from(n - 1).unwrap()]),
                };
                match done {
                    Ok(_) => through += 1,
                    Err(e) => {
                        let known = [
                            Code::HomeChanged,
                            Code::RestoreUnfinished,
                            Code::Conflict,
                            Code::RestoreRefused,
                        ];
                        // The first restores may all have been refused.
                        let nothing = through == 0 && e.code() == Code::NothingToUndo;
                        assert!(nothing || known.contains(&e.code()), "{e:?}");
                        refused += 1;
                    }
                }
                assert!(world.outside_is_untouched());
            }
        }));
        stop.store(true, Ordering::Relaxed);
        tried.unwrap();
    });
    world.engine().resume().unwrap();
    for (point, text) in points.iter().zip(["then", "now, and of another length"]) {
        world.restore(point).unwrap();
        assert_eq!(fs::read_to_string(home.join("a/b/c.txt")).unwrap(), text);
        assert_eq!(fs::read_link(home.join("a.link")).unwrap().to_str(), Some("../../outside"));
    }
    assert!(world.outside_is_untouched());
    println!(
        "{} swaps, {through} restores and undos got through, {refused} were refused",
        swaps.into_inner()
    );
}
