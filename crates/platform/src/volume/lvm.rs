//! Snapshots of logical volumes, by `lvs`, `lvcreate`, `lvremove`, `mount` and `umount`.
//!
//! `lvcreate` freezes the file system for the moment. The snapshot is made writable and mounted read-only: a log that is to be replayed
//! (that of XFS always, for the inodes that were deleted and still open; that of ext4 after a crash before) is replayed at a
//! read-only mount too, when the device can be written. `norecovery` and `noload` would show the file system without what stands in its log. XFS
//! refuses two file systems of one id, hence `nouuid`.
//!
//! A thick snapshot has room for so many changes, and is worth nothing when that is full: [`Volume::check`] is asked after reading.

use std::path::{Path, PathBuf};

use backstay_model::{Cancel, Result};
use backstay_tree::mounts::{self, Mount};
use serde::{Deserialize, Serialize};

use super::tools::{Call, Tools};
use super::{
    INSIDE, Kind, Removed, Snapshot, Volume, Wish, failed, make_folder, name_of, remove_folder, text,
};

/// File systems that are known to be mounted a second time as said above.
const FILE_SYSTEMS: [&str; 3] = ["ext3", "ext4", "xfs"];
/// How much of the volume may change while it is read, as a part of its size.
const CHANGES: u64 = 5;
/// Least room for changes, in bytes.
const LEAST: u64 = 64 << 20;

/// What is to be known of a logical volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    /// `ext4`, `xfs`.
    file_system: String,
    /// Room for changes in bytes; none for a thin volume, which takes it from its pool.
    room: Option<u64>,
}

pub(super) struct Lvm;

impl Volume for Lvm {
    fn holds(&self, mount: &Mount) -> bool {
        let device = mount.source.to_string_lossy();
        device.starts_with("/dev/")
            && FILE_SYSTEMS.contains(&mount.file_system.as_str())
            && Path::new(&format!("/sys/dev/block/{}:{}/dm", mount.device.0, mount.device.1)).exists()
    }

    fn plan(&self, wish: &Wish<'_>, mount: &Mount, tools: &dyn Tools, cancel: &Cancel) -> Result<Snapshot> {
        let lv = parse(&tools.run(&lvs(FIELDS).arg(&mount.source), cancel)?)?;
        let room = match lv.pool.is_empty() {
            false => None,
            true => Some(lv.room()?),
        };
        let folder = wish.folder.join(wish.job.to_string());
        let below = wish.home.strip_prefix(&mount.at).unwrap_or(Path::new(""));
        let root = mount.root.strip_prefix("/").unwrap_or(&mount.root);
        let home: PathBuf = folder.join(INSIDE).join(root).join(below).components().collect();
        Ok(Snapshot {
            kind: Kind::Lvm,
            volume: format!("{}/{}", lv.group, lv.name),
            name: format!("{}/{}", lv.group, name_of(wish.job)),
            folder: Some(text(&folder)),
            home: text(&home),
            details: Some(Details { file_system: mount.file_system.clone(), room }),
            holes: None,
        })
    }

    fn make(&self, snapshot: &Snapshot, tools: &dyn Tools, cancel: &Cancel) -> Result<()> {
        cancel.check()?;
        let (group, name) = own(snapshot)?;
        let details = snapshot.details.as_ref().ok_or_else(|| failed("Its file system is not known"))?;
        let folder = snapshot.folder()?;
        make_folder(&folder)?;
        make_folder(&folder.join(INSIDE))?;
        let mut create = Call::new("lvcreate").words(&["--snapshot", "--name", name, "--addtag", "backstay"]);
        create = match details.room {
            Some(room) => create.words(&["--size", &format!("{room}b")]),
            // Thin snapshots are not activated by themselves.
            None => create.words(&["--setactivationskip", "n"]),
        };
        tools.run(&create.arg(&snapshot.volume).whole(), cancel)?;
        let mut options = "ro,nodev,nosuid,noexec".to_owned();
        if details.file_system == "xfs" {
            options.push_str(",nouuid");
        }
        let mount = Call::new("mount").words(&["-t", &details.file_system, "-o", &options]);
        let mount = mount.arg(format!("/dev/{group}/{name}")).arg(folder.join(INSIDE));
        tools.run(&mount.whole(), cancel).map(drop)
    }

    fn check(&self, snapshot: &Snapshot, tools: &dyn Tools) -> Result<()> {
        let said = tools.run(&lvs("lv_attr").arg(&snapshot.name), &Cancel::new())?;
        // The fifth letter is the state: `I` and `S` are those of a snapshot that ran full.
        match first(&said)?.get("lv_attr").and_then(|a| a.as_str()?.chars().nth(4)) {
            Some('I' | 'S') => Err(failed("Its room for changes was full before all was read")
                .advise("Give the volume group more free space: a fifth of the volume is taken.")),
            Some(_) => Ok(()),
            None => Err(failed("What `lvs` says cannot be understood").because(said)),
        }
    }

    fn remove(&self, snapshot: &Snapshot, tools: &dyn Tools) -> Result<Removed> {
        own(snapshot)?;
        let folder = snapshot.folder()?;
        let inside = folder.join(INSIDE);
        if mounts::all()?.contains(&inside) {
            tools.run(&Call::new("umount").arg(&inside).whole(), &Cancel::new())?;
        }
        let removed = match tools.run(&lvs("lv_name,lv_tags").arg(&snapshot.name), &Cancel::new()) {
            Err(e) if e.causes().iter().any(|cause| is_gone(cause)) => Removed::NotThere,
            Err(e) => return Err(e),
            Ok(said) => {
                let tagged = first(&said)?.get("lv_tags").and_then(|t| t.as_str().map(str::to_owned));
                if !tagged.unwrap_or_default().split(',').any(|tag| tag == "backstay") {
                    return Err(failed(format!("`{}` is not tagged as a snapshot of ours", snapshot.name)));
                }
                let remove = Call::new("lvremove").words(&["--yes"]).arg(&snapshot.name);
                tools.run(&remove.whole(), &Cancel::new())?;
                Removed::Now
            }
        };
        remove_folder(&inside)?;
        let folder = remove_folder(&folder)?;
        Ok(if folder == Removed::Now { folder } else { removed })
    }
}

const FIELDS: &str = "vg_name,lv_name,lv_size,pool_lv,vg_free";

fn lvs(fields: &str) -> Call {
    Call::new("lvs").words(&["--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields])
}

/// Group and name, when they are those of a snapshot such as this program makes.
fn own(snapshot: &Snapshot) -> Result<(&str, &str)> {
    let plain = |part: &str| {
        let good = |b: u8| b.is_ascii_alphanumeric() || b"_-.+".contains(&b);
        !part.is_empty() && !part.starts_with(['-', '.']) && part.bytes().all(good)
    };
    let ours = snapshot.name.split_once('/').filter(|(group, name)| {
        let job = name.strip_prefix("backstay-").unwrap_or_default();
        let of = snapshot.volume.split_once('/');
        let same = of.is_some_and(|(g, volume)| g == *group && plain(volume));
        same && plain(group) && job.len() == 32 && job.bytes().all(|b| b.is_ascii_hexdigit())
    });
    ours.ok_or_else(|| {
        failed(format!("`{}` is not the name of a snapshot of ours", snapshot.name.escape_debug()))
    })
}

fn is_gone(said: &str) -> bool {
    said.contains("Failed to find logical volume")
}

/// A logical volume.
#[derive(Debug, PartialEq, Eq)]
struct LogicalVolume {
    group: String,
    name: String,
    pool: String,
    size: u64,
    free: u64,
}

impl LogicalVolume {
    /// How much room for changes is taken.
    fn room(&self) -> Result<u64> {
        let wanted = (self.size / CHANGES).max(LEAST);
        if self.free < LEAST || self.free < wanted / 4 {
            return Err(failed(format!(
                "The volume group `{}` has {} bytes free: too few for a snapshot of `{}`",
                self.group, self.free, self.name
            )));
        }
        Ok(wanted.min(self.free) & !511)
    }
}

/// The first row of a report: `{"report": [{"lv": [{…}]}]}`, perhaps after warnings.
fn first(said: &str) -> Result<serde_json::Map<String, serde_json::Value>> {
    let begin = said.find('{').unwrap_or(0);
    let report = said.get(begin..).unwrap_or_default();
    let mut values = serde_json::Deserializer::from_str(report).into_iter::<serde_json::Value>();
    let row = values.next().and_then(std::result::Result::ok);
    let row = row.as_ref().and_then(|v| v.pointer("/report/0/lv/0")?.as_object()).cloned();
    row.ok_or_else(|| failed("What `lvs` says cannot be understood").because(said.to_owned()))
}

fn parse(said: &str) -> Result<LogicalVolume> {
    let row = first(said)?;
    let text = |name: &str| row.get(name).and_then(|v| v.as_str()).map(str::to_owned);
    let bytes = |name: &str| text(name).and_then(|t| t.split('.').next()?.parse().ok());
    let parsed = || {
        Some(LogicalVolume {
            group: text("vg_name")?,
            name: text("lv_name")?,
            pool: text("pool_lv")?,
            size: bytes("lv_size")?,
            free: bytes("vg_free")?,
        })
    };
    parsed().ok_or_else(|| failed("What `lvs` says cannot be understood").because(said.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"  WARNING: something about a device {not JSON}
  {
      "report": [
          {
              "lv": [
                  {"vg_name":"vg0", "lv_name":"srv", "lv_size":"10737418240", "pool_lv":"", "vg_free":"21474836480"}
              ]
          }
      ]
  }
"#;

    #[test]
    fn the_report_of_lvs_is_understood() {
        let report = REPORT.replace(" {not JSON}", "");
        let lv = parse(&report).unwrap();
        assert_eq!((lv.group.as_str(), lv.name.as_str(), lv.pool.as_str()), ("vg0", "srv", ""));
        assert_eq!((lv.size, lv.free), (10 << 30, 20 << 30));
        assert_eq!(lv.room().unwrap(), (2 << 30));
        assert!(parse(REPORT).is_err() && parse("").is_err() && parse(r#"{"report":[{"lv":[]}]}"#).is_err());
    }

    #[test]
    fn room_for_changes_is_what_is_free_and_not_too_little() {
        let lv = |size, free| LogicalVolume {
            group: "g".into(),
            name: "n".into(),
            pool: String::new(),
            size,
            free,
        };
        assert_eq!(lv(10 << 30, 1 << 30).room().unwrap(), 1 << 30);
        assert_eq!(lv(100 << 20, 1 << 30).room().unwrap(), 64 << 20);
        assert!(lv(100 << 30, 1 << 30).room().is_err());
        assert!(lv(1 << 20, 1 << 20).room().is_err());
    }
}
