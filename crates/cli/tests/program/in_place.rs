//! Restoring over an app, and taking it back.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use backstay_testing::fixtures::{Nasty, nasty};

use crate::{World, assert_text};

/// A copy with everything, to compare with later.
fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// The blog as it was, and as it is after an accident.
fn broken_blog() -> World {
    let world = World::with_blog();
    world.write("blog/keep/deep/same.txt", b"stays\n");
    world.write("blog/old/gone.txt", b"was there\n");
    world.run(&["backup", "blog"]).ok();
    copy(&world.path("blog"), &world.path("before"));
    world.write("blog/index.html", b"defaced\n");
    world.write("blog/shell.php", b"<?php evil();\n");
    world.write("blog/new/a/b.txt", b"new\n");
    fs::remove_dir_all(world.path("blog/old")).unwrap();
    fs::remove_file(world.path("blog/start")).unwrap();
    fs::create_dir(world.path("blog/start")).unwrap();
    fs::set_permissions(world.path("blog/img"), fs::Permissions::from_mode(0o700)).unwrap();
    copy(&world.path("blog"), &world.path("after"));
    world
}

#[test]
fn there_back_and_there_again() {
    let world = broken_blog();
    let same = fs::metadata(world.path("blog/keep/deep/same.txt")).unwrap();
    let home = fs::metadata(world.path("blog")).unwrap().ino();
    let done = world.json(&["restore", "blog", "--yes"]);
    assert_eq!(done["problems"].as_array().unwrap().len(), 0, "{done:#}");
    world.assert_same(world.path("before"), world.path("blog"));
    for (undo, state) in [(1, "after"), (2, "before"), (3, "after")] {
        let done = world.json(&["undo", "blog", "--yes"]);
        assert_eq!(done["counts"]["files"], 0, "undo {undo} renames, it does not read: {done:#}");
        world.assert_same(world.path(state), world.path("blog"));
    }
    let still = fs::metadata(world.path("blog/keep/deep/same.txt")).unwrap();
    let id = |m: &fs::Metadata| (m.ino(), m.ctime(), m.ctime_nsec(), m.nlink());
    assert_eq!(id(&same), id(&still), "what is unchanged is not touched");
    assert_eq!(home, fs::metadata(world.path("blog")).unwrap().ino(), "the home keeps its inode");
}

#[test]
fn the_plan_is_shown_and_asked_about() {
    let world = broken_blog();
    let mut told = String::new();
    for words in [
        "restore blog --dry-run",
        "restore blog",
        "restore blog --yes",
        "restore blog --yes",
        "undo blog --dry-run",
        "undo blog",
        "undo blog --yes",
        "restore blog --path nothing --yes",
        "restore blog --path index.html --dry-run",
        "undo unknown --yes",
        "restore blog --to copy",
        "undo copy --yes",
        "restore blog --to copy --directory x",
        "restore blog --directory y --dry-run",
        "job list",
    ] {
        let args: Vec<&str> = words.split(' ').collect();
        told.push_str(&world.run(&args).told(&world, words));
        told.push('\n');
    }
    assert_text!("in_place", told);
    let points = world.points("blog").len();
    world.run(&["restore", "blog", "--dry-run"]).ok();
    assert_eq!(world.points("blog").len(), points, "a dry run takes no point");
}

#[test]
fn a_plan_changes_nothing() {
    let world = broken_blog();
    copy(&world.path("home"), &world.path("home-before"));
    let plan = world.json(&["restore", "blog", "--dry-run"]);
    assert_eq!(plan["totals"]["removed"]["steps"], 2, "{plan:#}");
    world.assert_same(world.path("after"), world.path("blog"));
    let list = |home: &str| {
        let mut names: Vec<_> = walk(&world.path(home).join("vault"));
        names.sort();
        names
    };
    assert_eq!(list("home-before"), list("home"), "nothing is written to the vault");
}

fn walk(path: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
            found.push(entry.path().strip_prefix(path).unwrap().to_owned());
        }
    }
    found
}

#[test]
fn a_nasty_tree_goes_to_and_fro() {
    let world = World::new();
    fs::create_dir(world.path("odd")).unwrap();
    nasty(&world.path("odd"), &Nasty::quick());
    world.run(&["backup", "odd", "--json"]).ok();
    copy(&world.path("odd"), &world.path("before"));
    // Everything is changed in some way: moved below another folder, with new things in its place.
    fs::create_dir(world.path("odd/moved")).unwrap();
    for (n, entry) in fs::read_dir(world.path("odd")).unwrap().flatten().enumerate() {
        if entry.file_name() != "moved" && n.is_multiple_of(2) {
            fs::rename(entry.path(), world.path("odd/moved").join(entry.file_name())).unwrap();
        }
    }
    copy(&world.path("odd"), &world.path("after"));
    world.run(&["restore", "odd", "--yes", "--json"]).ok();
    same_but_sockets(&world, "before");
    world.run(&["undo", "odd", "--yes", "--json"]).ok();
    same_but_sockets(&world, "after");
    world.run(&["undo", "odd", "--yes", "--json"]).ok();
    same_but_sockets(&world, "before");
}

fn same_but_sockets(world: &World, wanted: &str) {
    let options = backstay_tree::compare::Options::default();
    let differences = backstay_tree::compare::trees(&world.path(wanted), &world.path("odd"), &options);
    let left: Vec<_> = differences.iter().filter(|d| !d.path.to_string_lossy().contains("sock")).collect();
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn single_paths_come_back_and_the_rest_stays() {
    let world = broken_blog();
    world.run(&["restore", "blog", "--path", "index.html", "--path", "old", "--yes"]).ok();
    assert_eq!(fs::read(world.path("blog/index.html")).unwrap(), b"<h1>hello</h1>\n");
    assert_eq!(fs::read(world.path("blog/old/gone.txt")).unwrap(), b"was there\n");
    assert!(world.path("blog/shell.php").exists() && world.path("blog/start").is_dir());
    world.run(&["undo", "blog", "--yes"]).ok();
    world.assert_same(world.path("after"), world.path("blog"));
}

#[test]
fn to_a_new_app_and_over_another() {
    let world = broken_blog();
    world.run(&["restore", "blog", "--to", "copy"]).ok();
    let copied = world.path("home/sites/copy");
    world.assert_same(world.path("before"), &copied);
    world.run(&["backup", "copy"]).ok();
    world.write("blog/only.txt", b"x");
    world.run(&["backup", "blog"]).ok();
    // The newest point of the blog over the copy.
    world.run(&["restore", "blog", "--to", "copy", "--yes"]).ok();
    world.assert_same(world.path("blog"), &copied);
    world.run(&["undo", "copy", "--yes"]).ok();
    world.assert_same(world.path("before"), &copied);
    world.run(&["restore", "blog", "--to", "third", "--directory", "elsewhere"]).ok();
    world.assert_same(world.path("blog"), world.path("elsewhere"));
    world.run(&["restore", "blog", "--to", "fourth", "--directory", "elsewhere"]).fails("TargetUnusable", 1);
}

#[test]
fn an_undo_takes_back_what_the_app_did_since_and_keeps_it() {
    let world = broken_blog();
    world.run(&["restore", "blog", "--yes"]).ok();
    world.write("blog/upload.txt", b"after the restore\n");
    copy(&world.path("blog"), &world.path("restored"));
    world.run(&["undo", "blog", "--yes"]).ok();
    world.assert_same(world.path("after"), world.path("blog"));
    world.run(&["undo", "blog", "--yes"]).ok();
    world.assert_same(world.path("restored"), world.path("blog"));
}

#[test]
fn without_a_safety_point_the_journal_still_takes_it_back() {
    let world = broken_blog();
    let points = world.points("blog").len();
    world.run(&["restore", "blog", "--yes", "--no-safety-point"]).ok();
    world.assert_same(world.path("before"), world.path("blog"));
    assert_eq!(world.points("blog").len(), points);
    world.run(&["undo", "blog", "--yes"]).ok();
    world.assert_same(world.path("after"), world.path("blog"));
}

#[test]
fn a_home_that_is_a_link_stays_one() {
    let world = World::new();
    world.write("releases/42/index.html", b"one\n");
    symlink("releases/42", world.path("current")).unwrap();
    world.run(&["backup", "current"]).ok();
    world.write("releases/42/index.html", b"two\n");
    world.run(&["restore", "current", "--yes"]).ok();
    assert_eq!(fs::read(world.path("releases/42/index.html")).unwrap(), b"one\n");
    assert!(world.path("current").is_symlink());
}

#[test]
fn what_is_lost_in_the_vault_refuses_the_whole() {
    let world = broken_blog();
    world.write("blog/big.bin", &backstay_testing::fixtures::Random::new(1).bytes(3_000_000));
    world.run(&["backup", "blog"]).ok();
    copy(&world.path("blog"), &world.path("later"));
    fs::remove_file(world.path("blog/big.bin")).unwrap();
    fs::remove_file(world.path("blog/shell.php")).unwrap();
    copy(&world.path("blog"), &world.path("damaged"));
    let packs = walk(&world.path("home/vault/data"));
    let size = |p: &std::path::PathBuf| fs::metadata(world.path("home/vault/data").join(p)).unwrap().len();
    let largest = packs.iter().filter(|p| p.components().count() == 2).max_by_key(|p| size(p)).unwrap();
    fs::remove_file(world.path("home/vault/data").join(largest)).unwrap();
    let point = world.points("blog")[0].clone();
    world.run(&["restore", "blog", &point, "--yes"]).fails("RestoreRefused", 1);
    world.assert_same(world.path("damaged"), world.path("blog"));
    assert!(
        !fs::read_dir(world.path(""))
            .unwrap()
            .flatten()
            .any(|e| { e.file_name().to_string_lossy().starts_with(".backstay-") })
    );
}
