//! The nasty tree and the comparison of trees, held against programs that are not ours: what they bring back is the
//! same but for what they are known not to keep. Were the comparison blind, or the tree tame, this would not hold.

#![allow(clippy::print_stdout, reason = "a test says what it met")]

use std::path::Path;

use backstay_testing::fixtures::{Nasty, nasty};
use backstay_testing::{Restic, Rustic, temp_dir};
use backstay_tree::compare::{self, Options, What};

/// Whether restic and rustic are known to lose this: second names of what is not a file; times that no 64-bit count
/// of nanoseconds holds; the exact place of holes; and by older versions attributes and odd targets of links.
fn known(path: &str, what: What) -> bool {
    match what {
        What::HardLinks => path == "links/b/linked link" || path == "nodes/fifo by a second name",
        What::Mtime => path.ends_with("2446"),
        What::Holes => path.starts_with("sparse/") || path.ends_with("zeros"),
        What::LinkTarget => path == "names/link",
        What::Xattrs => path == "attributes/link",
        // rustic: a file without any permission comes back readable for all.
        What::Mode => path == "modes/file 0",
        _ => false,
    }
}

fn hold(program: &str, source: &Path, target: &Path) {
    let options = Options { root: false, ..Options::default() };
    let (old, new): (Vec<_>, Vec<_>) = compare::trees(source, target, &options)
        .into_iter()
        .partition(|d| d.path.to_str().is_some_and(|path| known(path, d.what)));
    println!("{program} lost {} things that it is known to lose", old.len());
    // Both programs lose these two: a comparison that does not see them sees too little.
    assert!(old.iter().filter(|d| d.what == What::HardLinks).count() == 2, "{program}: {old:#?}");
    assert!(new.is_empty(), "{program}: {new:#?}");
}

#[test]
fn foreign_programs_bring_back_the_nasty_tree_but_for_what_they_never_keep() {
    let dir = temp_dir();
    let source = dir.path().join("source");
    nasty(&source, &Nasty { large: true, ..Nasty::quick() });
    let restic = Restic::new(dir.path().join("repo"), "a password");
    restic.init();
    restic.backup(&source, &[]);
    restic.check_read_data().ok();
    restic.restore("latest", &dir.path().join("by restic")).ok();
    hold("restic", &source, &dir.path().join("by restic"));
    let Some(rustic) = Rustic::find(dir.path().join("repo"), "a password") else { return };
    rustic.restore("latest", &dir.path().join("by rustic")).ok();
    hold("rustic", &source, &dir.path().join("by rustic"));
}
