//! All that can be seen of a tree, mounts included, to compare with later.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is seen of each path, the root under the empty path.
pub(crate) type Facts = BTreeMap<PathBuf, (String, Vec<u8>)>;

/// A copy with everything, to compare with later. Mounts are empty folders in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").args(["-a", "-x"]).arg(from).arg(to).status().unwrap().success());
}

/// Kind, mode, owner, time and content of everything, but Backstay's workplaces.
pub(crate) fn facts(root: &Path) -> Facts {
    look(root, |m| format!("{:o} {}:{} {}.{}", m.mode(), m.uid(), m.gid(), m.mtime(), m.mtime_nsec()))
}

/// The same with inode, links and time of the last change: nobody has touched it.
pub(crate) fn canary(root: &Path) -> Facts {
    look(root, |m| {
        let times = (m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
        format!("{:o} {}:{} {} {} {times:?}", m.mode(), m.uid(), m.gid(), m.ino(), m.nlink())
    })
}

fn look(root: &Path, told: impl Fn(&fs::Metadata) -> String) -> Facts {
    let mut found = Facts::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let at = if path.as_os_str().is_empty() { root.to_owned() } else { root.join(&path) };
        let meta = fs::symlink_metadata(&at).unwrap();
        let mut content = Vec::new();
        if meta.is_dir() {
            for entry in fs::read_dir(&at).unwrap() {
                let name = entry.unwrap().file_name();
                if !name.to_string_lossy().starts_with(".backstay-") {
                    pending.push(path.join(name));
                }
            }
        } else if meta.is_symlink() {
            content = fs::read_link(&at).unwrap().into_os_string().into_encoded_bytes();
        } else if meta.is_file() {
            content = fs::read(&at).unwrap();
        }
        found.insert(path, (told(&meta), content));
    }
    found
}

/// Nothing of a restore is left beside the home or in it.
#[track_caller]
pub(crate) fn no_workplace(home: &Path) {
    for folder in [home, home.parent().unwrap()] {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            assert!(!entry.file_name().to_string_lossy().starts_with(".backstay-"), "{:?}", entry.path());
        }
    }
}
