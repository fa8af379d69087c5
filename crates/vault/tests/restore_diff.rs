//! Two snapshots of one tree: what differs is told, all of it and nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use backstay_model::{Cancel, Code, Error, Secret};
use backstay_storage::Local;
use backstay_testing::{Restic, temp_dir};
use backstay_vault::Vault;
use backstay_vault::diff::{Change, Difference, diff};

#[test]
fn every_way_in_which_paths_differ() {
    let dir = temp_dir();
    let (source, repository) = (dir.path().join("source"), dir.path().join("repository"));
    for folder in ["same/below", "gone/below", "other"] {
        fs::create_dir_all(source.join(folder)).unwrap();
    }
    let write = |name: &str, text: &str| fs::write(source.join(name), text).unwrap();
    for name in ["same/below/a", "gone/below/b", "other/content", "other/mode", "other/kind"] {
        write(name, "old");
    }
    symlink("old", source.join("other/link")).unwrap();
    let restic = Restic::new(&repository, "pw");
    restic.init();
    restic.backup(&source, &[]);

    fs::remove_dir_all(source.join("gone")).unwrap();
    write("other/content", "newer");
    fs::set_permissions(source.join("other/mode"), fs::Permissions::from_mode(0o400)).unwrap();
    fs::remove_file(source.join("other/kind")).unwrap();
    fs::create_dir(source.join("other/kind")).unwrap();
    write("other/kind/inside", "12345");
    fs::remove_file(source.join("other/link")).unwrap();
    symlink("new", source.join("other/link")).unwrap();
    fs::create_dir(source.join("same/below/new")).unwrap();
    restic.backup(&source, &[]);

    let vault =
        Vault::open(Arc::new(Local::open(&repository).unwrap()), &Secret::new("pw".to_owned())).unwrap();
    let reader = vault.reader().unwrap();
    let snapshots = vault.snapshots().unwrap();
    let (before, after) = (snapshots[0].1.tree, snapshots[1].1.tree);
    let collect = |a, b| {
        let mut found: BTreeMap<String, Difference> = BTreeMap::new();
        let totals = diff(&reader, a, b, &Cancel::new(), &mut |d| {
            assert!(found.insert(d.path.display().to_string(), d).is_none());
            Ok(())
        });
        (found, totals.unwrap())
    };
    let (found, totals) = collect(&before, &after);
    let changes: Vec<_> = found.iter().map(|(path, d)| (path.as_str(), d.change)).collect();
    let expected = [
        ("gone", Change::Removed),
        ("gone/below", Change::Removed),
        ("gone/below/b", Change::Removed),
        ("other/content", Change::Content),
        ("other/kind", Change::Kind),
        ("other/kind/inside", Change::Added),
        ("other/link", Change::Content),
        ("other/mode", Change::Metadata),
        ("same/below/new", Change::Added),
    ];
    assert_eq!(changes, expected);
    let sizes = |path: &str| (found[path].size_before, found[path].size_after);
    assert_eq!(sizes("other/content"), (Some(3), Some(5)));
    assert_eq!(sizes("gone/below/b"), (Some(3), None));
    assert_eq!((totals.added, totals.added_bytes, totals.removed, totals.removed_bytes), (2, 5, 3, 3));
    assert_eq!((totals.changed, totals.problems.len()), (4, 0));

    // The other way round, what was added is removed.
    let (back, _) = collect(&after, &before);
    assert_eq!(back.len(), expected.len());
    assert_eq!(back["other/kind/inside"].change, Change::Removed);
    assert_eq!(collect(&after, &after).0.len(), 0);

    // The receiver may stop it.
    let stop =
        diff(&reader, &before, &after, &Cancel::new(), &mut |_| Err(Error::new(Code::Cancelled, "Enough")));
    assert_eq!(stop.unwrap_err().code(), Code::Cancelled);

    // A lost tree is told, the rest is compared.
    for entry in fs::read_dir(repository.join("data")).unwrap().flatten() {
        remove_packs(&entry.path());
    }
    let totals = diff(&reader, &before, &after, &Cancel::new(), &mut |_| Ok(())).unwrap();
    assert!(!totals.problems.is_empty());
}

fn remove_packs(folder: &Path) {
    for pack in fs::read_dir(folder).unwrap().flatten() {
        fs::remove_file(pack.path()).unwrap();
    }
}
