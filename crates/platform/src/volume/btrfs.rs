//! Snapshots of Btrfs subvolumes, by `btrfs`.
//!
//! A snapshot holds one subvolume. Subvolumes nested in it are empty folders there, with an inode number that nothing else has, so
//! they are found also when they came after the plan.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use backstay_model::{Cancel, Result};
use backstay_tree::apply::{is_workplace, workplace_name};
use backstay_tree::mounts::{self, Mount};

use super::tools::{Call, Tools};
use super::{
    INSIDE, Kind, Removed, Snapshot, Volume, Wish, failed, is_guarded, make_folder, path, remove_folder, text,
};

/// The inode number of a subvolume's own folder.
const SUBVOLUME: u64 = 256;
/// The inode number of the empty folder in a snapshot where a subvolume was nested.
const PLACEHOLDER: u64 = 2;

pub(super) struct Btrfs;

impl Volume for Btrfs {
    fn holds(&self, mount: &Mount) -> bool {
        mount.file_system == "btrfs"
    }

    fn plan(&self, wish: &Wish<'_>, mount: &Mount, tools: &dyn Tools, cancel: &Cancel) -> Result<Snapshot> {
        let subvolume = subvolume_of(wish.home, &mount.at)?;
        let list = Call::new("btrfs").words(&["subvolume", "list", "-o"]).arg(&subvolume);
        let nested = nested(&tools.run(&list, cancel)?, mount, wish.home)?;
        let missing = nested.into_iter().find(|at| !at.iter().any(is_workplace) && !(wish.leaves_out)(at));
        if let Some(at) = missing {
            let message =
                format!("The subvolume {} lies in the home: a snapshot does not hold it", text(&at));
            return Err(failed(message));
        }
        let folder = place(wish, mount)?;
        let name = folder.join(INSIDE);
        let below = wish.home.strip_prefix(&subvolume).unwrap_or(Path::new(""));
        let home = if below.as_os_str().is_empty() { name.clone() } else { name.join(below) };
        Ok(Snapshot {
            kind: Kind::Btrfs,
            volume: text(&subvolume),
            name: text(&name),
            folder: Some(text(&folder)),
            home: text(&home),
            details: None,
            holes: Some((rustix::fs::makedev(mount.device.0, mount.device.1), PLACEHOLDER)),
        })
    }

    fn make(&self, snapshot: &Snapshot, tools: &dyn Tools, cancel: &Cancel) -> Result<()> {
        // Where the target is a folder that exists, the tool would put the snapshot into it.
        make_folder(&snapshot.folder()?)?;
        let (volume, name) = (path(&snapshot.volume), path(&snapshot.name));
        let call = Call::new("btrfs").words(&["subvolume", "snapshot", "-r"]).arg(volume).arg(&name);
        tools.run(&call, cancel)?;
        if is_subvolume(&name) {
            return Ok(());
        }
        Err(failed(format!("There is no snapshot at {}", name.display())))
    }

    fn remove(&self, snapshot: &Snapshot, tools: &dyn Tools) -> Result<Removed> {
        let (folder, name) = (snapshot.folder()?, path(&snapshot.name));
        if name.symlink_metadata().is_err() {
            return remove_folder(&folder);
        }
        let ours = folder.parent().is_some_and(is_guarded) && is_guarded(&folder);
        if name.parent() != Some(&folder) || !ours || !is_subvolume(&name) {
            return Err(failed(format!("What lies at {} is not taken for our snapshot", name.display())));
        }
        tools.run(&Call::new("btrfs").words(&["subvolume", "delete"]).arg(&name), &Cancel::new())?;
        remove_folder(&folder)?;
        Ok(Removed::Now)
    }
}

fn is_subvolume(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.is_dir() && meta.ino() == SUBVOLUME)
}

/// The innermost subvolume that holds the home.
fn subvolume_of(home: &Path, mounted: &Path) -> Result<PathBuf> {
    let seen = home.ancestors().take_while(|at| at.starts_with(mounted));
    let found = { seen }.find(|at| is_subvolume(at));
    found.map(Path::to_owned).ok_or_else(|| {
        failed(format!(
            "Only a part of its subvolume is mounted at {}, so none can be made",
            mounted.display()
        ))
    })
}

/// The subvolumes that lie in the home, relative to it. `said` lists those of its subvolume, by their paths from the top of the
/// file system.
fn nested(said: &str, mount: &Mount, home: &Path) -> Result<Vec<PathBuf>> {
    let below = home.strip_prefix(&mount.at).unwrap_or(Path::new(""));
    let top = mount.root.join(below);
    let mut found = Vec::new();
    for line in said.lines().filter(|line| !line.trim().is_empty()) {
        let at = line.strip_prefix("ID ").and_then(|line| line.split_once(" path "));
        let Some((_, at)) = at else {
            return Err(failed("The list of subvolumes cannot be understood").because(line.to_owned()));
        };
        let at = Path::new("/").join(at);
        if let Ok(relative) = at.strip_prefix(&top).map(Path::to_owned)
            && !relative.as_os_str().is_empty()
        {
            found.push(relative);
        }
    }
    Ok(found)
}

/// A new private folder on the same file system: ours, or beside a folder above the home.
fn place(wish: &Wish<'_>, mount: &Mount) -> Result<PathBuf> {
    let same = |folder: &Path| mounts::holding(folder).is_ok_and(|m| m.device == mount.device);
    let there = |folder: &Path| folder.ancestors().find(|at| at.exists()).map(Path::to_owned);
    if there(wish.folder).is_some_and(|at| same(&at) && is_guarded(&at)) {
        return Ok(wish.folder.join(wish.job.to_string()));
    }
    let mut above = wish.home.ancestors().skip(1).filter(|at| same(at));
    let guarded = above.find(|at| is_guarded(at)).map(|at| at.join(workplace_name(wish.job)));
    guarded.ok_or_else(|| {
        failed(
            "There is no place for a snapshot: neither Backstay's state nor a folder above the home that only root writes \
             lies on the same Btrfs file system",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(at: &str, root: &str) -> Mount {
        Mount {
            at: at.into(),
            root: root.into(),
            device: (0, 39),
            file_system: "btrfs".into(),
            source: "/dev/sda2".into(),
        }
    }

    #[test]
    fn subvolumes_in_the_home_are_told_by_their_paths_below_it() {
        let said = "ID 258 gen 10 top level 257 path @srv/blog/cache\n\
            ID 259 gen 11 top level 257 path @srv/blogger\nID 260 gen 12 top level 257 path @srv/blog/a path b\n";
        let found = nested(said, &mount("/srv", "/@srv"), Path::new("/srv/blog")).unwrap();
        assert_eq!(found, [PathBuf::from("cache"), PathBuf::from("a path b")]);
        assert!(nested(said, &mount("/srv", "/@srv"), Path::new("/srv/shop")).unwrap().is_empty());
        // The whole file system is mounted, or only a folder of a subvolume.
        let all = nested(said, &mount("/mnt", "/"), Path::new("/mnt/@srv/blog")).unwrap();
        assert_eq!(all.len(), 2);
        let part = nested(said, &mount("/b", "/@srv/blog"), Path::new("/b")).unwrap();
        assert_eq!(part.len(), 2);
        assert!(nested("", &mount("/srv", "/@srv"), Path::new("/srv/blog")).unwrap().is_empty());
        // A name with a newline in it: better no snapshot than one that lacks something.
        assert!(nested("ID 1 gen 1 top level 5 path a\nb\n", &mount("/", "/"), Path::new("/x")).is_err());
    }
}
