//! Snapshots of ZFS data sets, by `zfs`.
//!
//! A snapshot is seen below `.zfs/snapshot` of the data set's own mount, also where that folder is hidden. Data sets below it are mounts
//! of their own, as in the live tree.

use std::path::Path;

use backstay_model::{Cancel, Result};
use backstay_tree::mounts::Mount;

use super::tools::{Call, Tools};
use super::{Kind, Removed, Snapshot, Volume, Wish, failed, name_of, path, text};

/// The property that names whose it is, for people who look.
const JOB: &str = "backstay:job";

pub(super) struct Zfs;

impl Volume for Zfs {
    fn holds(&self, mount: &Mount) -> bool {
        mount.file_system == "zfs"
    }

    fn plan(&self, wish: &Wish<'_>, mount: &Mount, _: &dyn Tools, _: &Cancel) -> Result<Snapshot> {
        if mount.root != Path::new("/") {
            let message = format!("Only a part of its data set is mounted at {}", mount.at.display());
            return Err(failed(message));
        }
        let Some(dataset) = mount.source.to_str().filter(|name| is_dataset(name)) else {
            return Err(failed(format!("{} is not the name of a data set", mount.source.display())));
        };
        let name = name_of(wish.job);
        let below = wish.home.strip_prefix(&mount.at).unwrap_or(Path::new(""));
        let home = mount.at.join(".zfs/snapshot").join(&name).join(below);
        Ok(Snapshot {
            kind: Kind::Zfs,
            volume: dataset.to_owned(),
            name: format!("{dataset}@{name}"),
            folder: None,
            home: text(&home),
            details: None,
            holes: None,
        })
    }

    fn make(&self, snapshot: &Snapshot, tools: &dyn Tools, cancel: &Cancel) -> Result<()> {
        let name = own(snapshot)?;
        let job = name.rsplit_once('-').map_or("", |(_, job)| job);
        let property = format!("{JOB}={job}");
        tools.run(&Call::new("zfs").words(&["snapshot", "-o", &property, name]), cancel)?;
        // The first look mounts it.
        let _mounted = path(&snapshot.home).join(".").symlink_metadata();
        Ok(())
    }

    fn remove(&self, snapshot: &Snapshot, tools: &dyn Tools) -> Result<Removed> {
        let name = own(snapshot)?;
        let there = Call::new("zfs").words(&["list", "-H", "-t", "snapshot", "-o", "name", name]);
        match tools.run(&there, &Cancel::new()) {
            Ok(said) if said.trim() == name => {}
            Ok(said) => {
                return Err(failed(format!("`zfs list` names another snapshot than `{name}`")).because(said));
            }
            Err(e) if e.causes().iter().any(|cause| is_gone(cause)) => return Ok(Removed::NotThere),
            Err(e) => return Err(e),
        }
        tools.run(&Call::new("zfs").words(&["destroy", name]), &Cancel::new())?;
        Ok(Removed::Now)
    }
}

/// The full name, when it is that of a snapshot such as this program makes: `zfs destroy` of a name without `@` would take a
/// whole data set.
fn own(snapshot: &Snapshot) -> Result<&str> {
    let name = snapshot.name.as_str();
    let ours = name.split_once('@').is_some_and(|(dataset, of)| {
        let job = of.strip_prefix("backstay-").unwrap_or_default();
        dataset == snapshot.volume && job.len() == 32 && job.bytes().all(|b| b.is_ascii_hexdigit())
    });
    match ours && is_dataset(&snapshot.volume) {
        true => Ok(name),
        false => Err(failed(format!("`{}` is not the name of a snapshot of ours", name.escape_debug()))),
    }
}

/// Characters that ZFS allows, and nothing that its tools could take for something else.
fn is_dataset(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-.: /".contains(&b);
    name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) && name.bytes().all(plain)
}

fn is_gone(said: &str) -> bool {
    said.contains("dataset does not exist") || said.contains("could not find any snapshots to destroy")
}
