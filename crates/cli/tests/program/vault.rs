//! Looking after the vault, and comparing points.

use std::path::PathBuf;

use crate::{World, assert_text};

fn packs(world: &World) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in std::fs::read_dir(world.path("home/vault/data")).unwrap().flatten() {
        found.extend(std::fs::read_dir(folder.path()).unwrap().flatten().map(|e| e.path()));
    }
    found.sort();
    found
}

#[test]
fn space_is_freed_when_points_are_gone() {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    let before = packs(&world).len();
    world.write("blog/large", &backstay_testing::fixtures::Random::new(1).bytes(3_000_000));
    world.run(&["backup", "blog"]).ok();
    world.run(&["delete", "blog", "latest", "--yes"]).ok();
    let plan = world.json(&["vault", "prune", "--dry-run"]);
    assert!(plan["plan"]["freed_bytes"].as_u64().unwrap() > 2_900_000, "{plan}");
    assert!(plan["outcome"].is_null());
    assert!(packs(&world).len() > before, "a dry run deletes nothing");
    world.run(&["vault", "prune"]).ok();
    let size: u64 = packs(&world).iter().map(|p| p.metadata().unwrap().len()).sum();
    assert!(size < 100_000, "{size} bytes stayed");
    world.run(&["vault", "check", "--read-data"]).ok();
    world.run(&["restore", "blog", "--directory", "out"]).ok();
    assert!(!world.path("out/large").exists());
}

#[test]
fn a_clean_vault_is_called_clean() {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    let mut told = String::new();
    for words in [
        "vault check",
        "vault check --read-data",
        "vault repair",
        "vault prune",
        "vault unlock",
        "vault key list",
    ] {
        let args: Vec<&str> = words.split(' ').collect();
        told.push_str(&world.run(&args).ok().told(&world, words));
        told.push('\n');
    }
    assert_text!("clean_vault", told);
    let stats = world.json(&["vault", "stats"]);
    assert_eq!(stats["snapshots"], 1);
    world.run(&["vault", "stats"]).ok();
}

#[test]
fn damage_is_found_told_by_path_and_mended_as_far_as_it_goes() {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    let good = packs(&world);
    world.write("blog/lost/one.bin", &backstay_testing::fixtures::Random::new(2).bytes(400_000));
    world.run(&["backup", "blog"]).ok();
    let new: Vec<PathBuf> = packs(&world).into_iter().filter(|p| !good.contains(p)).collect();
    let largest = new.iter().max_by_key(|p| p.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(largest).unwrap();
    bytes[1000] ^= 0x10;
    std::fs::write(largest, bytes).unwrap();

    let check = world.run(&["vault", "check", "--read-data"]).fails("VaultDamaged", 1);
    assert!(check.stderr.contains("lost/one.bin") && check.stderr.contains("of blog"), "{check:?}");
    world.run(&["verify", "blog"]).fails("PartiallySucceeded", 1);
    world.run(&["verify", "blog", "latest~1"]).ok();
    let restored = world.run(&["restore", "blog", "--directory", "out"]).ends(3);
    assert!(restored.stderr.contains("lost/one.bin"), "{restored:?}");
    assert!(world.path("out/index.html").exists() && !world.path("out/lost/one.bin").exists());

    world.run(&["vault", "repair", "--dry-run"]).fails("VaultDamaged", 1);
    world.run(&["vault", "repair", "--remove-originals"]).fails("ConfirmationNeeded", 2);
    world.run(&["vault", "repair"]).fails("VaultDamaged", 1);
    assert_eq!(world.points("blog").len(), 2, "no point is gone and none is there twice");
    // The source still has it: the next backup saves it anew, and the old point is whole again.
    world.run(&["backup", "blog"]).ok();
    world.run(&["verify", "blog"]).ok();
    world.run(&["restore", "blog", "--directory", "out2"]).ok();
    world.assert_same(world.path("blog"), world.path("out2"));
    world.run(&["vault", "repair", "--remove-originals", "--yes"]);
    world.run(&["vault", "prune"]).ok();
    world.run(&["vault", "check", "--read-data"]).ok();
}

#[test]
fn a_snapshot_that_cannot_be_read_hides_no_other() {
    let world = World::with_blog();
    for n in 0..3 {
        world.write("blog/n", &[n]);
        world.run(&["backup", "blog"]).ok();
    }
    let list = world.json(&["list"]);
    let snapshot = list["points"][1]["snapshot"].as_str().unwrap();
    std::fs::write(world.path("home/vault/snapshots").join(snapshot), b"rubbish").unwrap();
    std::fs::remove_file(world.path("home/hosting.db")).unwrap();
    let listed = world.run(&["list"]).fails("PartiallySucceeded", 3);
    assert!(listed.stderr.contains(snapshot), "{listed:?}");
    assert_eq!(listed.stdout.lines().count(), 3, "the other two are there: {listed:?}");
    world.run(&["restore", "blog", "--directory", "out"]).ok();
    world.run(&["backup", "blog"]).ok();
}

#[test]
fn points_are_copied_to_another_vault_once() {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    world.run(&["backup", "blog"]).ok();
    world.run(&["pin", "blog", "latest"]).ok();
    world.write("shop/x", b"x");
    world.run(&["backup", "shop"]).ok();
    world.run(&["vault", "copy", "second", "--app", "shop"]).ok();
    assert_eq!(world.json(&["list", "--vault", "second"])["points"].as_array().unwrap().len(), 1);
    let copied = world.json(&["vault", "copy", "second"]);
    assert_eq!(copied["copied"].as_array().unwrap().len(), 2);
    assert_eq!(copied["present"].as_array().unwrap().len(), 1);
    let ids = |vault: &str| {
        let list = world.json(&["list", "--vault", vault]);
        let points = list["points"].as_array().unwrap().iter();
        points.map(|p| (p["id"].clone(), p["pinned"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(ids("home/vault"), ids("second"), "the same points, whatever their snapshots are called");
    world.run(&["vault", "check", "--read-data", "--vault", "second"]).ok();
    world.run(&["restore", "blog", "--directory", "out", "--vault", "second"]).ok();
    world.assert_same(world.path("blog"), world.path("out"));
    // The copy can take the place of the first one for good.
    let switched = world.run(&["vault", "attach", "second"]).ok();
    assert!(switched.stderr.contains("second"), "{switched:?}");
    std::fs::rename(world.path("home/vault"), world.path("first")).unwrap();
    world.run(&["backup", "blog"]).ok();
    assert_eq!(world.points("blog").len(), 3);
    std::fs::rename(world.path("first"), world.path("home/vault")).unwrap();
    world.run(&["vault", "attach", "home/vault"]).ok();
    assert_eq!(world.points("blog").len(), 2);
    world.run(&["vault", "copy", "home/vault"]).fails("InvalidValue", 2);
    world.run(&["vault", "copy", "third", "--app", "nobody"]).fails("AppNotFound", 4);
    assert!(!world.path("third").exists());
}

#[test]
fn a_further_vault_is_made_on_purpose_only() {
    let world = World::with_blog();
    world.run(&["vault", "init"]).ok();
    world.run(&["vault", "init"]).fails("AlreadyExists", 1);
    world.run(&["backup", "blog"]).ok();
    world.run(&["list", "--vault", "extra"]).fails("VaultNotFound", 4);
    world.run(&["backup", "blog", "--vault", "extra"]).fails("VaultNotFound", 4);
    world.run(&["vault", "init", "--vault", "extra"]).ok();
    world.run(&["backup", "blog", "--vault", "extra"]).ok();
    assert_eq!(world.points("blog").len(), 1, "points of one vault are not those of the other");
    // The first vault is gone for good: a new one in its place is asked for.
    std::fs::remove_dir_all(world.path("home/vault")).unwrap();
    world.run(&["backup", "blog"]).fails("VaultNotFound", 4);
    world.run(&["vault", "init"]).ok();
    world.run(&["backup", "blog"]).ok();
    assert_eq!(world.points("blog").len(), 1);
}

#[test]
fn what_differs_between_points_is_told() {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    world.write("blog/index.html", b"<h1>other</h1>\n");
    world.write("blog/new/page.html", b"new\n");
    std::fs::remove_file(world.path("blog/img/logo.png")).unwrap();
    std::fs::remove_file(world.path("blog/start")).unwrap();
    std::fs::create_dir(world.path("blog/start")).unwrap();
    world.run(&["backup", "blog"]).ok();
    let diff = world.run(&["diff", "blog"]).ok();
    assert_text!("diff", diff.told(&world, "diff blog"));
    let json = world.json(&["diff", "blog", "latest~1", "latest"]);
    assert_eq!(
        json["removed"],
        json["differences"].as_array().unwrap().iter().filter(|d| d["change"] == "removed").count()
    );
    assert_eq!(world.ok(&["diff", "blog", "latest", "latest"]), "");
    world.run(&["diff", "blog", "latest~2"]).fails("PointNotFound", 4);
}

#[test]
fn locks_of_others_stop_what_they_must_and_unlock_ends_them() {
    let world = World::with_blog();
    world.run(&["backup", "blog"]).ok();
    let text = std::fs::read_to_string(world.path("home/secrets.json")).unwrap();
    let secrets: serde_json::Value = serde_json::from_str(&text).unwrap();
    let restic =
        backstay_testing::Restic::new(world.path("home/vault"), secrets["vault_password"].as_str().unwrap());
    // restic's own exclusive lock, as `restic check` leaves it when it is killed.
    let locks = || {
        let names =
            std::fs::read_dir(world.path("home/vault/locks")).unwrap().flatten().map(|e| e.file_name());
        names.filter(|n| n.len() == 64).count()
    };
    let mut left = false;
    for _ in 0..20 {
        let mut child =
            restic.command(["check", "--read-data"]).stdout(std::process::Stdio::null()).spawn().unwrap();
        while locks() == 0 && child.try_wait().unwrap().is_none() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        left = locks() == 1;
        if left {
            break;
        }
    }
    assert!(left, "restic could not be killed while it held its lock");
    // Its process is gone, but restic's locks do not say so in a way that is proof.
    world.run(&["list"]).ok();
    world.run(&["vault", "unlock", "--all"]).fails("ConfirmationNeeded", 2);
    world.run(&["vault", "unlock", "--all", "--yes"]).ok();
    assert_eq!(locks(), 0);
    world.run(&["backup", "blog"]).ok();
}
