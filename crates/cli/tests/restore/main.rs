//! Restores in place where the surroundings are hard: mounts, homes in homes, full disks, odd trees, filters.
//!
//! Each test runs the whole program and compares all that must stay, metadata included, before and after.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

mod facts;
mod filter;
mod mounts;
mod mounts_inside;
mod nested;
mod runtime;
mod surroundings;
mod trees;
#[path = "../program/world.rs"]
#[allow(dead_code, reason = "not everything of it is needed here")]
mod world;

pub(crate) use facts::{Facts, canary, copy, facts, no_workplace};
pub(crate) use world::{Ran, World};

/// The blog as point, as it was then (`before`), and as it is after an accident (`after`).
pub(crate) fn broken_blog() -> World {
    let world = World::with_blog();
    fill(&world, "blog");
    world.run(&["backup", "blog"]).ok();
    copy(&world.path("blog"), &world.path("before"));
    break_it(&world, "blog");
    copy(&world.path("blog"), &world.path("after"));
    world
}

/// Files of an app.
pub(crate) fn fill(world: &World, home: &str) {
    for (path, text) in [
        ("index.html", "hello\n"),
        ("keep/deep/same.txt", "stays\n"),
        ("old/gone.txt", "was there\n"),
        ("img/a", "a"),
    ] {
        world.write(&format!("{home}/{path}"), text.as_bytes());
    }
}

/// An accident: one file changed, one folder gone, one file and one folder new.
pub(crate) fn break_it(world: &World, home: &str) {
    world.write(&format!("{home}/index.html"), b"defaced!\n");
    world.write(&format!("{home}/shell.php"), b"<?php evil();\n");
    world.write(&format!("{home}/new/a/b.txt"), b"new\n");
    std::fs::remove_dir_all(world.path(home).join("old")).unwrap();
}

/// Whether [`fill`]'s files are there and those of [`break_it`] are not.
#[track_caller]
pub(crate) fn assert_healed(world: &World, home: &str) {
    let read = |path: &str| std::fs::read(world.path(home).join(path)).unwrap_or_default();
    assert_eq!(read("index.html"), b"hello\n");
    assert_eq!(read("keep/deep/same.txt"), b"stays\n");
    assert_eq!(read("old/gone.txt"), b"was there\n");
    assert!(!world.path(home).join("shell.php").exists());
    assert!(!world.path(home).join("new/a").exists());
}

/// The opposite of [`assert_healed`].
#[track_caller]
pub(crate) fn assert_broken(world: &World, home: &str) {
    let read = |path: &str| std::fs::read(world.path(home).join(path)).unwrap_or_default();
    assert_eq!(read("index.html"), b"defaced!\n");
    assert_eq!(read("keep/deep/same.txt"), b"stays\n");
    assert_eq!(read("shell.php"), b"<?php evil();\n");
    assert_eq!(read("new/a/b.txt"), b"new\n");
    assert!(!world.path(home).join("old").exists());
}
