//! What is backed up comes back: by our restore and by restic's.

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

use std::fs;
use std::path::Path;

use backstay_testing::fixtures::{self, Nasty};
use backstay_testing::{Restic, temp_dir};
use backstay_tree::compare::{Difference, Options, What};
use support::{Job, PASSWORD, Parent, assert_same, bring_out, local_vault, restic_check, verify};

/// What restic 0.14 does not restore: attributes of links (it sets them on the target), link targets that are no
/// text, further names of what is no file, times after 2262.
fn not_by_restic(d: &Difference) -> bool {
    [
        ("attributes/link", What::Xattrs),
        ("attributes/file", What::Xattrs),
        ("links/b/linked link", What::HardLinks),
        ("times/2446", What::Mtime),
        ("times/link 2446", What::Mtime),
        ("times/folder 2446", What::Mtime),
        ("names/link", What::LinkTarget),
        ("nodes/fifo by a second name", What::HardLinks),
    ]
    .iter()
    .any(|(path, what)| d.path == Path::new(path) && d.what == *what)
}

#[test]
fn the_nasty_tree_comes_back_from_restic_as_it_was() {
    let dir = temp_dir();
    let (home, repository) = (dir.path().join("home"), dir.path().join("vault"));
    fixtures::nasty(&home, &Nasty { entries: 2000, sparse_bytes: 20 << 20, ..Nasty::default() });
    let vault = local_vault(&repository);
    let done = Job::new(&vault, &home).run().unwrap();
    assert_eq!(done.told(), []);
    restic_check(&repository);
    let restic = Restic::new(&repository, PASSWORD);
    restic.restore("latest", &dir.path().join("out")).ok();
    let options = Options { holes: restic.makes_holes(), ..Options::default() };
    assert_same(&home, &dir.path().join("out/content"), &options, not_by_restic);
    backstay_testing::unlock(dir.path());
}

#[test]
fn everything_a_file_system_holds_comes_back_as_it_was() {
    let dir = temp_dir();
    let (home, repository) = (dir.path().join("home"), dir.path().join("vault"));
    let made = fixtures::nasty(&home, &Nasty::full());
    let vault = local_vault(&repository);
    let done = Job::new(&vault, &home).run().unwrap();
    assert_eq!(done.told(), []);
    println!("{} entries, {} files, {} bytes", made.entries, done.counts.files, done.counts.bytes);
    bring_out(&vault, &done, &dir.path().join("out"));
    assert_same(&home, &dir.path().join("out"), &Options::default(), |_| false);
    restic_check(&repository);

    // Once more with a file index, twice: the same trees, and the holes are known without reading.
    let index = dir.path().join("index");
    for parent in [Parent::Nothing, Parent::Newest] {
        let again = Job::new(&vault, &home).index(&index).parent(parent).run().unwrap();
        assert_eq!(again.tree, done.tree);
        assert_eq!(again.sparse, done.sparse);
        assert_eq!(again.counts, done.counts);
    }
    restic_check(&repository);
    // The tree holds folders beyond what a path can name: they are removed by handles.
    let fs = backstay_tree::fs::Host;
    let parent = backstay_tree::fs::FileSystem::open_root(&fs, dir.path()).unwrap();
    for name in ["home", "out"] {
        use std::os::fd::AsFd;
        backstay_tree::remove_tree(&fs, parent.as_fd(), name.as_ref()).unwrap();
    }
}

#[test]
fn changes_of_some_hours_come_back_from_each_point() {
    let dir = temp_dir();
    let (home, repository) = (dir.path().join("home"), dir.path().join("vault"));
    fs::create_dir(&home).unwrap();
    let mut files = fixtures::small(&home, 7, 300);
    let vault = local_vault(&repository);
    let index = dir.path().join("index");
    let mut kept = Vec::new();
    for hour in 0..4 {
        if hour > 0 {
            files = fixtures::change(&home, hour, &files);
        }
        let copy = dir.path().join(format!("copy-{hour}"));
        assert!(std::process::Command::new("cp").arg("-a").arg(&home).arg(&copy).status().unwrap().success());
        kept.push((copy, Job::new(&vault, &home).index(&index).run().unwrap()));
        restic_check(&repository);
    }
    // `cp` gives new inodes and so other link groups only where it splits them; it keeps them with `-a`.
    for (hour, (copy, done)) in kept.iter().enumerate() {
        let out = dir.path().join(format!("out-{hour}"));
        bring_out(&vault, done, &out);
        assert_same(copy, &out, &Options::default(), |_| false);
    }
    assert_eq!(verify(&vault).snapshots, 4);
}
