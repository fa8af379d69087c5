//! Backups with a filter: what it names is not opened, not told and not in the point, whatever the last backup had.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "test helpers"
)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backstay_model::ProblemKind;
use backstay_storage::Memory;
use backstay_testing::fixtures::Random;
use backstay_testing::temp_dir;
use backstay_tree::filter::Filter;
use backstay_tree::fs::{Call, Fault, Faulty, Host, Logged};
use backstay_vault::{Id, Vault};
use support::{Done, Job, Parent, memory_vault, new_vault};

/// All paths of a tree in the vault.
fn paths(vault: &Vault, tree: &Id) -> BTreeSet<PathBuf> {
    let reader = vault.reader().unwrap();
    let mut found = BTreeSet::new();
    let mut folders = vec![(PathBuf::new(), *tree)];
    while let Some((path, id)) = folders.pop() {
        for node in reader.tree(&id).unwrap() {
            let path = path.join(&node.name);
            folders.extend(node.subtree.map(|id| (path.clone(), id)));
            found.insert(path);
        }
    }
    found
}

/// All paths below a folder.
fn on_disk(home: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![home.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
            found.insert(entry.path().strip_prefix(home).unwrap().to_owned());
        }
    }
    found
}

/// An app with what apps like to leave out.
fn app(home: &Path) {
    for folder in
        ["site/wwwroot/Images/2013", "site/wwwroot/Images/2014", "logs/old", "node_modules/a/b", "tmp"]
    {
        fs::create_dir_all(home.join(folder)).unwrap();
    }
    for file in [
        "site/wwwroot/index.html",
        "site/wwwroot/Images/brand.png",
        "site/wwwroot/Images/2013/1.png",
        "site/wwwroot/Images/2014/1.png",
        "logs/app.log",
        "logs/old/1.log",
        "logs/keep.txt",
        "node_modules/a/index.js",
        "node_modules/a/b/index.js",
        "tmp/x",
    ] {
        fs::write(home.join(file), file).unwrap();
    }
    symlink("../logs", home.join("tmp/link")).unwrap();
}

#[test]
fn what_is_named_is_neither_opened_nor_in_the_point() {
    let dir = temp_dir();
    let home = dir.path().join("home");
    app(&home);
    let (_storage, vault) = memory_vault();
    let host = Arc::new(Faulty::new(Arc::new(Host)));
    let rules = [
        "\\site\\wwwroot\\Images\\2014",
        "site/wwwroot/Images/brand.png",
        "**/*.log",
        "node_modules",
        "tmp/link",
        "nothing/here",
    ];
    let done = Job::new(&vault, &home).on(host.clone()).filter(&rules).run().unwrap();
    let mut expected = on_disk(&home);
    expected.retain(|p| Filter::from_lines(&rules).unwrap().matches(p).is_none());
    assert_eq!(paths(&vault, &done.tree), expected);
    assert_eq!(done.counts.files, 4);
    assert_eq!(done.problems, []);
    let filtered = done.filtered.unwrap();
    assert_eq!((filtered.left_out, filtered.unmatched), (6, vec![5]));
    let touched = |c: &&Logged| matches!(c.call, Call::OpenFile | Call::OpenDir | Call::OpenDirBeneath);
    let names: Vec<_> = host.log().iter().filter(touched).map(|c| c.name.clone()).collect();
    for name in ["2014", "brand.png", "app.log", "node_modules"] {
        assert!(!names.iter().any(|n| n.to_string_lossy().contains(name)), "{name} was opened");
    }
}

#[test]
fn without_rules_nothing_is_different() {
    let dir = temp_dir();
    let home = dir.path().join("home");
    app(&home);
    let (_storage, vault) = memory_vault();
    let plain = Job::new(&vault, &home).run().unwrap();
    let empty = Job::new(&vault, &home).filter(&[]).run().unwrap();
    assert_eq!((plain.tree, plain.filtered, empty.filtered), (empty.tree, None, None));
}

#[test]
fn an_unreadable_folder_that_is_not_wanted_is_no_problem() {
    let dir = temp_dir();
    let home = dir.path().join("home");
    app(&home);
    let (_storage, vault) = memory_vault();
    let host = || {
        let host = Faulty::new(Arc::new(Host));
        host.fail(Fault::about("old", rustix::io::Errno::ACCESS.raw_os_error()));
        Arc::new(host)
    };
    let told = Job::new(&vault, &home).on(host()).run().unwrap();
    assert_eq!(told.told(), [("logs/old", ProblemKind::Unreadable)]);
    let silent = Job::new(&vault, &home).on(host()).filter(&["logs/old"]).run().unwrap();
    assert_eq!(silent.told(), []);
}

/// Backups one after the other with changing rules and changing files, each of them compared with one that has neither
/// a past nor an index.
#[test]
fn the_file_index_stays_right_when_rules_change() {
    let dir = temp_dir();
    let home = dir.path().join("home");
    app(&home);
    let vault = new_vault(Arc::new(Memory::new()));
    let index = dir.path().join("index");
    let pool = [
        "logs",
        "logs/*.log",
        "**/*.js",
        "node_modules/a/b",
        "site/wwwroot/Images",
        "tmp/*",
        "**",
        "logs/old",
        "site/**/1.png",
    ];
    let mut random = Random::new(5);
    for round in 0..40 {
        let count = random.below(4);
        let rules: Vec<&str> = (0..count).map(|_| pool[random.below(pool.len() as u64) as usize]).collect();
        if random.below(2) == 0 {
            let files: Vec<PathBuf> = on_disk(&home).into_iter().filter(|p| home.join(p).is_file()).collect();
            let file = &files[random.below(files.len() as u64) as usize];
            fs::write(home.join(file), format!("{round}")).unwrap();
        }
        let with = Job::new(&vault, &home).index(&index).filter(&rules).run().unwrap();
        let anew = Job::new(&vault, &home).parent(Parent::Nothing).filter(&rules).run().unwrap();
        assert_eq!(with.tree, anew.tree, "round {round}, {rules:?}");
        let same = |d: &Done| (d.counts.files, d.filtered.clone().map(|f| f.left_out));
        assert_eq!(same(&with), same(&anew));
        // The next one goes on from the filtered one with the index.
        vault.forget(&[anew.id]).unwrap();
    }
}

#[test]
fn the_file_of_the_filter_is_in_the_point_though_its_folder_is_not() {
    let dir = temp_dir();
    let home = dir.path().join("home");
    app(&home);
    fs::write(home.join("site/wwwroot/_backup.filter"), "site\n").unwrap();
    let (_storage, vault) = memory_vault();
    let mut job = Job::new(&vault, &home);
    job.filter = Some(
        Filter::parse(b"site\nlogs\nnode_modules\n").unwrap().never(Path::new("site/wwwroot/_backup.filter")),
    );
    let done = job.run().unwrap();
    let expected = ["site", "site/wwwroot", "site/wwwroot/_backup.filter", "tmp", "tmp/link", "tmp/x"];
    assert_eq!(paths(&vault, &done.tree), expected.iter().map(PathBuf::from).collect());
}

#[test]
fn workplaces_of_restores_are_left_out_everywhere_and_told() {
    let dir = temp_dir();
    let home = dir.path().join("home");
    app(&home);
    let name = format!(".backstay-{}", "0a".repeat(16));
    for folder in ["", "logs"] {
        fs::create_dir(home.join(folder).join(&name)).unwrap();
        fs::write(home.join(folder).join(&name).join("staged"), "x").unwrap();
    }
    fs::write(home.join("tmp").join(&name), "a file of that name is a file").unwrap();
    let (_storage, vault) = memory_vault();
    let done = Job::new(&vault, &home).run().unwrap();
    let mut expected = on_disk(&home);
    expected.retain(|p| p.starts_with("tmp") || !p.iter().any(|n| n == name.as_str()));
    assert_eq!(paths(&vault, &done.tree), expected);
    let told = done.told();
    assert_eq!(told.len(), 2);
    assert!(
        told.iter().all(|(path, kind)| path.ends_with(&name) && *kind == ProblemKind::Excluded),
        "{told:?}"
    );
}
