//! What cannot be read: the point is partial, and everybody is told.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use crate::{Ran, World, assert_text};

/// The program as a user who may not read everything: `nobody` when the tests run as root.
fn as_user(world: &World, args: &[&str]) -> Ran {
    if !rustix::process::geteuid().is_root() {
        return world.run(args);
    }
    // The build folder may be out of that user's reach.
    let program = world.path("backstay");
    if !program.exists() {
        std::fs::copy(env!("CARGO_BIN_EXE_backstay"), &program).unwrap();
        assert!(
            Command::new("chown").args(["-R", "65534:65534"]).arg(world.path("")).status().unwrap().success()
        );
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program).args(args);
    command.current_dir(world.path("")).env("BACKSTAY_HOME", world.path("home")).env("TZ", "UTC");
    Ran::of(command.output().unwrap())
}

#[test]
fn an_unreadable_file_makes_the_point_partial_everywhere() {
    let world = World::with_blog();
    world.write("blog/private/key", b"secret");
    world.write("blog/secret", b"secret");
    std::fs::set_permissions(world.path("blog/secret"), Permissions::from_mode(0o000)).unwrap();
    std::fs::set_permissions(world.path("blog/private"), Permissions::from_mode(0o000)).unwrap();
    let taken = as_user(&world, &["backup", "blog"]).ends(3);
    let mut told = taken.told(&world, "backup blog");
    assert!(taken.stdout.contains("Point "), "the rest is saved: {taken:?}");
    for words in ["list", "show blog", "job list", "status"] {
        let args: Vec<&str> = words.split(' ').collect();
        let ran = as_user(&world, &args).ends(if words == "status" { 3 } else { 0 });
        assert!(words == "show blog" || ran.stdout.contains("partial"), "{ran:?}");
        told.push('\n');
        told.push_str(&ran.told(&world, words));
    }
    assert_text!("partial", told);
    as_user(&world, &["restore", "blog", "--directory", "out"]).ok();
    assert!(world.path("out/index.html").exists() && !world.path("out/secret").exists());
    // When it can be read again the next point is whole.
    std::fs::set_permissions(world.path("blog/secret"), Permissions::from_mode(0o600)).unwrap();
    std::fs::set_permissions(world.path("blog/private"), Permissions::from_mode(0o700)).unwrap();
    as_user(&world, &["backup", "blog"]).ok();
    as_user(&world, &["restore", "blog", "--directory", "out2"]).ok();
    world.assert_same(world.path("blog"), world.path("out2"));
}

#[test]
fn places_that_refuse_access_are_told_by_code() {
    let world = World::with_blog();
    as_user(&world, &["backup", "blog"]).ok();
    let home = world.path("home");
    let mode = |path: &str, mode: u32| {
        // SQLite's side files are not always there.
        std::fs::set_permissions(home.join(path), Permissions::from_mode(mode)).unwrap_or_default();
    };
    mode("vault/snapshots", 0o500);
    as_user(&world, &["backup", "blog"]).fails("StorageDenied", 1);
    mode("vault/snapshots", 0o700);
    mode("secrets.json", 0);
    as_user(&world, &["list"]).fails("StateAccess", 1);
    mode("secrets.json", 0o600);
    mode("hosting.db", 0o400);
    as_user(&world, &["backup", "blog"]).fails("StateAccess", 1);
    for file in ["hosting.db", "hosting.db-wal", "hosting.db-shm"] {
        mode(file, 0o600);
    }
    as_user(&world, &["backup", "blog"]).ok();
    as_user(&world, &["restore", "blog", "--directory", "/proc/nowhere"]).fails("TargetUnusable", 1);
}

#[test]
fn a_vault_that_lost_data_is_told_with_the_paths() {
    let world = World::with_blog();
    world.write("blog/big", &vec![7; 600_000]);
    world.run(&["backup", "blog"]).ok();
    world.run(&["verify", "blog"]).ok();
    // Every data pack but the trees' own: told apart by trying.
    let packs =
        Command::new("find").arg(world.path("home/vault/data")).args(["-type", "f"]).output().unwrap();
    let packs = String::from_utf8(packs.stdout).unwrap();
    let mut lost = 0;
    for pack in packs.lines() {
        let bytes = std::fs::read(pack).unwrap();
        let mut broken = bytes.clone();
        broken[5] ^= 1;
        std::fs::set_permissions(pack, Permissions::from_mode(0o600)).unwrap();
        std::fs::write(pack, broken).unwrap();
        let ran = world.run(&["verify", "blog"]);
        let out = format!("out{lost}");
        if ran.status != 0 {
            lost += 1;
            assert_eq!(ran.status, 1, "{ran:?}");
            let restored = world.run(&["restore", "blog", "--directory", &out]);
            assert!(restored.status == 3 || restored.status == 1, "{restored:?}");
        }
        std::fs::write(pack, bytes).unwrap();
    }
    assert!(lost > 0, "no pack mattered");
    world.run(&["verify", "blog"]).ok();
}
