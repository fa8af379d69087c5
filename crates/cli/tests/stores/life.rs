//! The life of a vault in an object store: made, filled, looked at, restored from, cleaned, killed in the middle.

use std::time::{Duration, Instant};

use backstay_testing::fixtures::Random;
use backstay_testing::{Fault, Restic};

use crate::{Ran, Shop};

/// An app of a few hundred small files in folders, and some larger ones.
fn fill(shop: &Shop) {
    let mut random = Random::new(11);
    for n in 0..300 {
        shop.world.write(&format!("blog/posts/{}/{n}.md", n % 40), &random.bytes(700));
    }
    for n in 0..3 {
        shop.world.write(&format!("blog/media/{n}.bin"), &random.bytes(6_000_000));
    }
    shop.world.write("blog/index.html", b"<h1>first</h1>\n");
}

fn change(shop: &Shop) {
    shop.world.write("blog/index.html", b"<h1>second</h1>\n");
    shop.world.write("blog/posts/3/new.md", b"new");
    std::fs::remove_file(shop.world.path("blog/posts/4/4.md")).unwrap();
    std::fs::remove_dir_all(shop.world.path("blog/posts/5")).unwrap();
}

fn copy(shop: &Shop, to: &str) {
    let done = std::process::Command::new("cp")
        .arg("-a")
        .args([shop.world.path("blog"), shop.world.path(to)])
        .status()
        .unwrap();
    assert!(done.success());
}

/// Whether an object has a name that restic gives.
fn is_restics(name: &str) -> bool {
    let id = |s: &str| s.len() == 64 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    match name.split('/').collect::<Vec<_>>()[..] {
        ["config"] => true,
        ["keys" | "index" | "snapshots" | "locks", name] => id(name),
        ["data", two, name] => id(name) && name.starts_with(two),
        _ => false,
    }
}

fn live(shop: &Shop) {
    fill(shop);
    copy(shop, "first");
    shop.ok(&["--vault", &shop.address, "backup", "blog"]);
    change(shop);
    copy(shop, "second");
    // What the place is remembered by, so it need not be named again.
    let again = shop.requests_of(&["backup", "blog"]);
    assert!(again < 60, "a backup of a small change took {again} requests");
    assert_eq!(shop.points("blog").len(), 2);
    let objects = shop.objects();
    assert!(objects.iter().all(|name| is_restics(name)), "{objects:#?}");
    assert!(!objects.iter().any(|name| name.starts_with("locks/")), "a lock stayed");
    let checked = shop.requests_of(&["vault", "check", "--read-data"]);
    let packs = objects.iter().filter(|name| name.starts_with("data/")).count();
    assert!(checked < 40 + 4 * packs, "checking {packs} packs took {checked} requests");
    let verified = shop.requests_of(&["verify", "blog"]);
    assert!(verified < 60 + 15 * packs, "verifying {packs} packs took {verified} requests");
    witness(shop);

    // Back and forth in place; then into a folder.
    let restored = shop.requests_of(&["restore", "blog", "latest~1", "--yes"]);
    shop.world.assert_same(shop.world.path("blog"), shop.world.path("first"));
    assert!(restored < 150, "a restore of four differences took {restored} requests");
    shop.ok(&["undo", "blog", "--yes"]);
    shop.world.assert_same(shop.world.path("blog"), shop.world.path("second"));
    let all = shop.requests_of(&["restore", "blog", "latest~1", "--directory", "out"]);
    assert!(all < 60 + 10 * packs, "restoring everything took {all} requests for {packs} packs");

    // Points go, and their space comes back.
    shop.world.write("blog/media/more.bin", &Random::new(12).bytes(9_000_000));
    shop.ok(&["backup", "blog"]);
    let before = shop.objects().len();
    shop.ok(&["delete", "blog", "latest", "--yes"]);
    shop.ok(&["vault", "prune"]);
    assert!(shop.objects().len() < before);
    shop.ok(&["vault", "check", "--read-data"]);

    killed(shop);
    elsewhere(shop);
}

/// restic reads a copy of the objects, finds nothing wrong and restores the same tree.
fn witness(shop: &Shop) {
    shop.copy_to("copy");
    let restic = Restic::new(shop.world.path("copy"), &shop.password());
    restic.run(["check", "--read-data"]).ok();
    restic.run(["restore", "latest", "--target", shop.world.path("by-restic").to_str().unwrap()]).ok();
    shop.world.assert_same(shop.world.path("by-restic/content"), shop.world.path("blog"));
}

/// Killed while it uploads: nothing of it is to be seen, and the next backup works.
fn killed(shop: &Shop) {
    let points = shop.points("blog");
    for round in 0..3 {
        for n in 0..4 {
            let name = format!("blog/media/round{round}-{n}.bin");
            shop.world.write(&name, &Random::new(100 + round * 10 + n).bytes(9_000_000));
        }
        let packs = || shop.objects().iter().filter(|name| name.starts_with("data/")).count();
        let (before, begin) = (packs(), Instant::now());
        // Slowly, so that the kill comes in the middle.
        shop.proxy.always(Fault::Delay(40));
        let mut child = shop.command(&["backup", "blog"]).spawn().unwrap();
        while packs() == before {
            assert!(begin.elapsed() < Duration::from_secs(60), "the backup never wrote");
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().unwrap();
        let ran = Ran::of(child.wait_with_output().unwrap());
        shop.proxy.clear();
        assert_eq!(ran.status, -9, "it ended before the kill: {ran:?}");
        assert_eq!(shop.points("blog"), points, "a point came of a killed backup");
    }
    shop.ok(&["vault", "check"]);
    shop.ok(&["backup", "blog"]);
    shop.ok(&["vault", "check", "--read-data"]);
    assert_eq!(shop.points("blog").len(), points.len() + 1);
    assert!(!shop.objects().iter().any(|name| name.starts_with("locks/")), "a dead lock stayed");
    shop.ok(&["restore", "blog", "--directory", "after-kills"]);
    shop.world.assert_same(shop.world.path("blog"), shop.world.path("after-kills"));
}

/// A blank machine with the address and the password; and one whose key does not fit.
fn elsewhere(shop: &Shop) {
    shop.world.write("password", shop.password().as_bytes());
    let attach = ["vault", "attach", &shop.address, "--password-file", "password"];
    Ran::of(shop.command_at("blank", &attach).output().unwrap()).ok();
    let restore = ["restore", "blog", "--directory", "on-blank"];
    Ran::of(shop.command_at("blank", &restore).output().unwrap()).ok();
    shop.world.assert_same(shop.world.path("blog"), shop.world.path("on-blank"));
}

#[test]
fn a_vault_lives_in_an_azure_container() {
    if let Some(shop) = Shop::azure() {
        live(&shop);
    }
}

#[test]
fn a_vault_lives_in_an_s3_bucket() {
    if let Some(shop) = Shop::s3() {
        live(&shop);
    }
}

#[test]
fn a_vault_lives_in_a_google_bucket() {
    if let Some(shop) = Shop::google() {
        live(&shop);
    }
}

#[test]
fn a_bad_line_makes_it_slower_and_nothing_else() {
    let Some(shop) = Shop::s3() else { return };
    fill(&shop);
    shop.proxy.storm(150);
    shop.ok(&["--vault", &shop.address, "backup", "blog"]);
    change(&shop);
    shop.ok(&["backup", "blog"]);
    shop.ok(&["restore", "blog", "--directory", "out"]);
    println!("{:?}", shop.proxy.faults());
    assert!(shop.proxy.faults().len() > 6, "the line was too good to prove anything");
    shop.proxy.clear();
    shop.world.assert_same(shop.world.path("blog"), shop.world.path("out"));
    assert_eq!(shop.points("blog").len(), 2);
    shop.ok(&["vault", "check", "--read-data"]);
    assert!(shop.objects().iter().all(|name| is_restics(name) && !name.starts_with("locks/")));
}

#[test]
fn a_store_that_is_down_or_refuses_is_told_with_its_code() {
    let Some(shop) = Shop::azure() else { return };
    shop.world.write("blog/index.html", b"<h1>first</h1>\n");
    shop.ok(&["--vault", &shop.address, "backup", "blog"]);
    for fault in [Fault::Drop, Fault::Refuse(503, None)] {
        shop.proxy.always(fault);
        let (before, begin) = (shop.proxy.count(), Instant::now());
        let ran = shop.run(&["backup", "blog"]).fails("StorageUnavailable", 1);
        assert!(ran.stderr.contains("127.0.0.1"), "{ran:?}");
        assert!(begin.elapsed() < Duration::from_secs(100), "{:?}", begin.elapsed());
        assert!(shop.proxy.count() - before <= 30, "{} requests", shop.proxy.count() - before);
        shop.proxy.clear();
    }
    let other = "bm90IHRoZSBrZXkgb2YgdGhpcyBhY2NvdW50LCBidXQgYXMgbG9uZyBhcyBvbmU=";
    let refused = shop.command(&["backup", "blog"]).env("AZURE_STORAGE_KEY", other).output().unwrap();
    let refused = Ran::of(refused).fails("StorageDenied", 1);
    assert!(!format!("{refused:?}").contains(other), "{refused:?}");
    shop.ok(&["backup", "blog"]);
    assert_eq!(shop.points("blog").len(), 2);
}
