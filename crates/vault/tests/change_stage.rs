//! Staging what a plan brings: little is read for little, the way is only the way, holes stay holes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod change_support;
mod support;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_model::{Cancel, Silent};
use backstay_storage::{Faulty, Memory};
use backstay_tree::fs::{FileSystem, Host};
use backstay_vault::change::{Keep, Rules};
use backstay_vault::restore::{RestoreOptions, restore};
use change_support::World;
use support::{Job, new_vault};

fn stage(world: &World, done: &support::Done, options: &RestoreOptions) -> PathBuf {
    let target = world.home.parent().unwrap().join("staged");
    fs::create_dir(&target).unwrap();
    let host: Arc<dyn FileSystem> = Arc::new(Host);
    let reader = world.vault.reader().unwrap();
    let outcome =
        restore(&reader, &host, &done.tree, None, &target, options, &Silent, &Cancel::new()).unwrap();
    assert!(outcome.is_complete(), "{:?}", outcome.problems);
    target
}

#[test]
fn few_of_many_are_staged_by_reading_the_trees_on_the_way() {
    let storage = Arc::new(Faulty::new(Arc::new(Memory::new())));
    let vault = new_vault(storage.clone());
    let dir = support::quick_dir();
    let home = dir.path().join("home");
    for n in 0..5_000 {
        let folder = home.join(format!("{}/{:02}", n % 10, n / 10 % 20));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(n.to_string()), format!("file {n}")).unwrap();
    }
    let done = Job::new(&vault, &home).run().unwrap();
    let select: Vec<PathBuf> =
        (0..20).map(|n| n * 251).map(|n| format!("{}/{:02}/{n}", n % 10, n / 10 % 20).into()).collect();
    let way: std::collections::HashSet<&Path> = select.iter().flat_map(|p| p.ancestors().skip(1)).collect();
    let reader = vault.reader().unwrap();
    let target = dir.path().join("target");
    fs::create_dir(&target).unwrap();
    let before = storage.calls().len();
    let host: Arc<dyn FileSystem> = Arc::new(Host);
    let options = RestoreOptions { select: Some(select.clone()), sync: true, ..RestoreOptions::default() };
    let outcome =
        restore(&reader, &host, &done.tree, None, &target, &options, &Silent, &Cancel::new()).unwrap();
    assert_eq!(outcome.counts.files, 20);
    let reads = storage.calls().len() - before;
    // One for each tree, and at most one for each file: they lie in few packs.
    assert!(reads <= way.len() + 20, "{reads} reads for {} folders", way.len());
}

#[test]
fn folders_on_the_way_are_private_and_what_is_taken_is_as_in_the_point() {
    let world = World::new();
    for path in ["way/of/x", "way/of/new/deep/y", "way/of/new/cache/z", "other/file"] {
        let path = world.home.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "text").unwrap();
    }
    let mode = |path: PathBuf, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    for path in ["way/of/new/deep", "way/of/new", "way/of", "way"] {
        mode(world.home.join(path), 0o555);
    }
    let point = world.point();
    for path in ["way/of/new/deep", "way/of/new", "way/of", "way"] {
        mode(world.home.join(path), 0o755);
    }
    fs::write(world.home.join("way/of/x"), "changed").unwrap();
    fs::remove_dir_all(world.home.join("way/of/new")).unwrap();
    let keep = |path: &Path, _| match path {
        path if path.ends_with("cache") => Keep::Yes,
        path if path.ends_with("new") => Keep::MaybeBelow,
        _ => Keep::No,
    };
    let plan = world.plan(&point, &Rules { keep: &keep, ..Rules::none() });
    let staged = stage(&world, &point, &plan.staging(Default::default()));
    let mode_of = |path: &str| fs::metadata(staged.join(path)).unwrap().mode() & 0o7777;
    for (path, expected) in
        [("", 0o755), ("way", 0o700), ("way/of", 0o700), ("way/of/new", 0o555), ("way/of/new/deep", 0o555)]
    {
        assert_eq!(mode_of(path), if path.is_empty() { mode_of("") } else { expected }, "{path}");
    }
    assert_eq!(
        change_support::paths(&staged),
        ["way", "way/of", "way/of/new", "way/of/new/deep", "way/of/new/deep/y", "way/of/x"]
            .map(PathBuf::from)
    );
    for path in ["way/of/new/deep", "way/of/new", "way/of", "way"] {
        mode(staged.join(path), 0o755);
    }
    fs::remove_dir_all(&staged).unwrap();
    world.carry_out(&plan, &point);
    assert_eq!(fs::metadata(world.home.join("way/of")).unwrap().mode() & 0o7777, 0o555);
    assert!(world.plan(&point, &Rules { keep: &keep, ..Rules::none() }).is_empty());
}

#[test]
fn holes_are_staged_as_holes_and_equal_files_not_at_all() {
    let world = World::new();
    let sparse = |name: &str, text: &[u8]| {
        let file = fs::File::create(world.home.join(name)).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(text, 4 << 20).unwrap();
    };
    sparse("same", b"something");
    sparse("changed", b"something");
    let point = world.point();
    assert_eq!(point.sparse.len(), 2);
    sparse("changed", b"something else");
    let plan = world.plan(&point, &Rules::none());
    assert_eq!(change_support::actions(&plan).iter().map(|(path, _)| *path).collect::<Vec<_>>(), ["changed"]);
    world.carry_out(&plan, &point);
    // Holes are compared too.
    world.assert_is(&point);
    assert!(world.plan(&point, &Rules::none()).is_empty());
}
