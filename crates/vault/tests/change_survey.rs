//! Looking at a live folder without storing: the same tree as a backup, nothing written, and a plan can be made of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod change_support;
mod support;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use backstay_model::{Cancel, Silent};
use backstay_testing::fixtures;
use backstay_tree::fs::{FileSystem, Host};
use backstay_vault::Id;
use backstay_vault::backup::{Survey, TreeOptions, survey};
use backstay_vault::change::{Rules, Side, plan};
use change_support::World;
use support::{Job, names};

fn look(world: &World, parent: Option<Id>, index: Option<&Path>) -> Survey {
    let fs: Arc<dyn FileSystem> = Arc::new(Host);
    let options = TreeOptions { parent, file_index: index.map(Into::into), ..TreeOptions::default() };
    let reader = world.vault.reader().unwrap();
    survey(reader, "content", &fs, &world.home, options, &Silent, &Cancel::new()).unwrap()
}

/// Every object of the vault and every file of a folder.
fn stored(world: &World, index: &Path) -> (Vec<String>, Vec<(String, Vec<u8>)>) {
    let files = fs::read_dir(index.parent().unwrap()).unwrap().flatten();
    let mut files: Vec<_> = files
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    (names(&**world.vault.storage(), ""), files)
}

#[test]
fn it_is_the_tree_that_a_backup_would_store_and_nothing_is_written() {
    let world = World::new();
    let index = world.home.parent().unwrap().join("index");
    let files = fixtures::small(&world.home, 1, 200);
    let before = stored(&world, &index);

    // Nothing is known.
    let first = look(&world, None, Some(&index));
    assert_eq!(stored(&world, &index), before);
    let point = Job::new(&world.vault, &world.home).index(&index).run().unwrap();
    assert_eq!((first.tree, first.counts), (point.tree, point.counts));
    let top = support::content_node(&world.vault, &point.id);
    assert_eq!((first.top.subtree, first.top.mtime, first.top.inode), (top.subtree, top.mtime, top.inode));

    // Something has changed; with a file index, and without.
    fixtures::change(&world.home, 2, &files);
    let before = stored(&world, &index);
    let with = look(&world, Some(point.id), Some(&index));
    let without = look(&world, Some(point.id), None);
    assert_eq!(stored(&world, &index), before);
    assert_eq!(with.tree, without.tree);

    // What it plans is what a safety point would.
    let target = Side { tree: point.tree, top: Some(&top) };
    let live = Side { tree: with.tree, top: Some(&with.top) };
    let dry = plan(&with.reader, &live, &target, &Rules::none(), &Cancel::new()).unwrap();
    let after = Job::new(&world.vault, &world.home).index(&index).run().unwrap();
    assert_eq!(after.tree, with.tree);
    assert_eq!(world.plan_from(&after, &point, &Rules::none()), dry);
    assert!(!dry.is_empty());
    world.carry_out(&dry, &point);
    world.assert_is(&point);
}

#[test]
fn it_neither_waits_for_a_backup_that_uses_the_index_nor_disturbs_it() {
    let world = World::new();
    let index = world.home.parent().unwrap().join("index");
    let files = fixtures::small(&world.home, 3, 100);
    let point = Job::new(&world.vault, &world.home).index(&index).run().unwrap();
    fixtures::change(&world.home, 4, &files);
    let lock = world
        .vault
        .lock(backstay_vault::Strength::Shared, std::time::Duration::ZERO, &Cancel::new())
        .unwrap();
    let job = Job::new(&world.vault, &world.home).index(&index);
    let mut tree = None;
    let done = job.run_under(&lock, || tree = Some(look(&world, Some(point.id), Some(&index)).tree)).unwrap();
    assert_eq!(tree, Some(done.tree));
    assert_eq!(look(&world, Some(done.id), Some(&index)).tree, done.tree);
}
