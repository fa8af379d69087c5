//! Recovery points: the vault's snapshots as the catalog shows them.
//!
//! Invariants: the vault is the truth. Whenever it is opened the catalog's view is made equal to it: what is not in
//! the vault any more goes, what is new is read. A snapshot is a point of Backstay's when its tags say so in full;
//! every other one is listed as foreign and never changed, only deleted when its id is given. Changing tags writes a
//! new snapshot before the old one goes; where a crash left both, one is shown and the next change removes the other.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use backstay_catalog::{App, PointChanges, PointRecord};
use backstay_model::{
    AppName, Cancel, Code, Error, JobKind, Origin, Phase, Point, PointId, PointStatus, Progress as _, Result,
    Silent,
};
use backstay_vault::{Folder, Id, Lock, Snapshot, Strength, Vault};

use backstay_vault::repair::REPAIRED;
use serde::Serialize;

use crate::adopt::FOREIGN;
use crate::custom::CustomView;
use crate::job::{Done, Task, run};
use crate::select::Selector;
use crate::state::{Engine, OpenVault};

/// The tag all points of Backstay have.
const MARK: &str = "backstay";
pub(crate) const PINNED: &str = "pinned";
const PARTIAL: &str = "status=partial";
/// How long a short command waits for another program to give the vault free.
pub(crate) const WAIT: Duration = Duration::from_secs(30);

/// The points of a vault with the vault they lie in.
pub(crate) struct Points {
    pub vault: OpenVault,
    /// Newest first.
    pub records: Vec<PointRecord>,
    /// Snapshots that cannot be read.
    pub damaged: Vec<DamagedSnapshot>,
}

/// A snapshot in the vault that cannot be read: its point is lost, the others are not touched by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DamagedSnapshot {
    /// The vault's id of the snapshot.
    pub snapshot: String,
    /// Why it cannot be read.
    pub reason: String,
}

/// Points as listed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Listing {
    /// Newest first.
    pub points: Vec<PointRecord>,
    /// Custom backups as last seen, newest first.
    pub custom: Vec<CustomView>,
    /// Snapshots of the vault that cannot be read; of which app is not known.
    pub damaged: Vec<DamagedSnapshot>,
    /// Points of removed apps that are not listed because they were not asked for.
    pub of_removed_apps: usize,
}

impl Points {
    /// Those of one app, newest first.
    pub fn of(&self, app: &AppName) -> Vec<PointRecord> {
        self.records.iter().filter(|r| r.point.app == *app).cloned().collect()
    }
}

/// What a command about one point works on.
pub(crate) struct Found {
    pub vault: OpenVault,
    pub record: PointRecord,
}

/// The tags of a new point.
pub(crate) fn tags(app: &AppName, id: &PointId, origin: Origin, status: PointStatus) -> Vec<String> {
    let origin = match origin {
        Origin::Automatic => "automatic",
        Origin::Safety => "safety",
        Origin::Imported => "imported",
        _ => "manual",
    };
    let mut tags =
        vec![MARK.to_owned(), format!("app={app}"), format!("point={id}"), format!("origin={origin}")];
    if status == PointStatus::PartiallySucceeded {
        tags.push(PARTIAL.to_owned());
    }
    tags
}

/// A snapshot as a point.
pub(crate) fn record(id: &Id, snapshot: &Snapshot) -> Result<PointRecord> {
    let summary = snapshot.summary.clone().unwrap_or_default();
    let point = Point {
        id: foreign_id(id)?,
        app: AppName::suggest(FOREIGN),
        time: snapshot.time,
        origin: Origin::Foreign,
        status: PointStatus::Succeeded,
        pinned: false,
        files: summary.total_files_processed,
        bytes: summary.total_bytes_processed,
        added_bytes: summary.data_added_packed,
        snapshot: id.to_string(),
    };
    Ok(PointRecord {
        point: own(snapshot).map_or(point.clone(), |(id, app, origin)| Point {
            id,
            app,
            origin,
            status: if snapshot.has_tag(PARTIAL) || snapshot.has_tag(REPAIRED) {
                PointStatus::PartiallySucceeded
            } else {
                PointStatus::Succeeded
            },
            pinned: snapshot.has_tag(PINNED),
            ..point
        }),
        host: snapshot.hostname.clone(),
        paths: snapshot.paths.clone(),
        tree: snapshot.tree.to_string(),
    })
}

/// A foreign snapshot's point id: the first half of the snapshot's.
fn foreign_id(id: &Id) -> Result<PointId> {
    let text: String = id.to_string().chars().take(32).collect();
    Ok(text.parse::<PointId>()?)
}

/// What the tags of a point of Backstay's say; none where one is missing.
fn own(snapshot: &Snapshot) -> Option<(PointId, AppName, Origin)> {
    if !snapshot.has_tag(MARK) {
        return None;
    }
    let origin = match snapshot.tag("origin")? {
        "automatic" => Origin::Automatic,
        "safety" => Origin::Safety,
        "manual" => Origin::Manual,
        "imported" => Origin::Imported,
        _ => return None,
    };
    let app: AppName = snapshot.tag("app")?.parse().ok()?;
    (app.as_str() != FOREIGN).then_some((snapshot.tag("point")?.parse().ok()?, app, origin))
}

impl Engine {
    /// All points of the vault, after the catalog was made equal to it.
    pub(crate) fn points(&self) -> Result<Points> {
        let vault = self.vault()?;
        self.reconcile(vault)
    }

    pub(crate) fn reconcile(&self, open: OpenVault) -> Result<Points> {
        let catalog = self.catalog()?;
        let mut known: HashMap<String, PointRecord> =
            catalog.points(&open.id)?.into_iter().map(|r| (r.point.snapshot.clone(), r)).collect();
        let mut changes = PointChanges::default();
        let mut records = Vec::new();
        let mut damaged = Vec::new();
        for id in open.vault.ids(Folder::Snapshots)? {
            if let Some(record) = known.remove(&id.to_string()) {
                records.push(record);
                continue;
            }
            match open.vault.snapshot(&id) {
                Ok(snapshot) => changes.add.push(record(&id, &snapshot)?),
                // Deleted between listing and reading.
                Err(e) if e.code() == Code::ObjectNotFound => {}
                Err(e) if e.code() == Code::VaultDamaged => {
                    damaged.push(DamagedSnapshot { snapshot: id.to_string(), reason: e.to_string() });
                }
                Err(e) => return Err(e),
            }
        }
        changes.remove = known.into_keys().collect();
        if !changes.is_empty() {
            catalog.change_points(&open.id, &changes, &apps_of(&changes.add))?;
            records.extend(changes.add);
        }
        Ok(Points { vault: open, records: one_each(records), damaged })
    }

    /// One point of an app.
    pub(crate) fn find(&self, app: &str, selector: &Selector) -> Result<Found> {
        let (points, record) = self.find_among(app, selector)?;
        Ok(Found { vault: points.vault, record })
    }

    /// One point of an app, with all others. The app is checked first, so that a wrong name is told as that.
    pub(crate) fn find_among(&self, app: &str, selector: &Selector) -> Result<(Points, PointRecord)> {
        if !self.is_set_up()? {
            return Err(self.nothing_yet(Code::AppNotFound, &format!("There is no app `{app}`")));
        }
        let points = self.points()?;
        let name = self.listed_app(app, &points)?;
        let of_app = points.of(&name);
        let record = selector.pick(app, &of_app)?.clone();
        Ok((points, record))
    }

    /// Takes one snapshot out of the vault and the catalog, for a job that has the app for itself.
    pub(crate) fn forget_point(
        &self,
        vault: &OpenVault,
        record: &PointRecord,
        cancel: &Cancel,
    ) -> Result<()> {
        let snapshot = record.point.snapshot.clone();
        let lock = short_lock(&vault.vault, cancel)?;
        vault.vault.forget(&[snapshot.parse()?])?;
        drop(lock);
        self.catalog()?.change_points(
            &vault.id,
            &PointChanges { add: Vec::new(), remove: vec![snapshot] },
            &[],
        )
    }

    /// The name of a known app, or of the foreign points.
    pub(crate) fn listed_app(&self, app: &str, points: &Points) -> Result<AppName> {
        if let Some(record) = points.records.iter().find(|r| r.point.app.as_str() == app) {
            return Ok(record.point.app.clone());
        }
        Ok(self.known_app(app)?.name)
    }

    /// The points of one app or of all that are protected, newest first; empty for a state in which nothing was done yet.
    pub fn list(&self, app: Option<&str>) -> Result<Listing> {
        self.listing(app, false)
    }

    /// The points of all apps, also of those that were removed.
    pub fn list_with_removed(&self) -> Result<Listing> {
        self.listing(None, true)
    }

    fn listing(&self, app: Option<&str>, removed: bool) -> Result<Listing> {
        if !self.is_set_up()? {
            return match app {
                Some(app) => Err(self.nothing_yet(Code::AppNotFound, &format!("There is no app `{app}`"))),
                None => Ok(Listing::default()),
            };
        }
        let all = self.points()?;
        let name = app.and_then(|app| app.parse::<AppName>().ok());
        let mut custom = match (app, &name) {
            (Some(_), None) => Vec::new(),
            _ => self.custom_backups(name.as_ref())?,
        };
        let mut points = match app.map(|app| self.listed_app(app, &all)) {
            Some(Ok(app)) => all.of(&app),
            // Known from a container only.
            Some(Err(e)) if e.code() == Code::AppNotFound && !custom.is_empty() => Vec::new(),
            Some(Err(e)) => return Err(e),
            None => all.records,
        };
        let before = points.len();
        if app.is_none() && !removed {
            let gone: HashSet<AppName> =
                self.catalog()?.removed_apps()?.into_iter().map(|a| a.name).collect();
            points.retain(|r| !gone.contains(&r.point.app));
            custom.retain(|v| !gone.contains(&v.custom.app));
        }
        let of_removed_apps = before - points.len();
        Ok(Listing { points, custom, damaged: all.damaged, of_removed_apps })
    }

    /// All snapshots of a point: one, or two where a change of tags was interrupted.
    fn snapshots_of(&self, found: &Found) -> Result<Vec<Id>> {
        let all = self.catalog()?.points(&found.vault.id)?;
        let same = all.iter().filter(|r| r.point.id == found.record.point.id);
        same.map(|r| r.point.snapshot.parse::<Id>().map_err(Error::from)).collect()
    }

    /// The point that a name means, to show before it is asked about.
    pub fn point(&self, app: &str, selector: &Selector) -> Result<PointRecord> {
        Ok(self.find(app, selector)?.record)
    }

    /// Deletes a point: its snapshot goes at once, its data with the next prune. A pinned point stays.
    pub fn delete(&self, app: &str, selector: &Selector, cancel: &Cancel) -> Result<PointRecord> {
        let found = self.find(app, selector)?;
        let point = found.record.point.clone();
        if point.pinned {
            return Err(Error::new(Code::Conflict, format!("Point {} is pinned", point.id.short())).advise(
                format!("To delete it after all: `backstay unpin {app} {}` first.", point.id.short()),
            ));
        }
        let task = Task { kind: JobKind::Delete, app: Some(&point.app), exclusive: true };
        run(self.catalog()?, &self.clock, &task, (&Silent, cancel), |job| {
            job.phase(Phase::Removing);
            let ids = self.snapshots_of(&found)?;
            let lock = short_lock(&found.vault.vault, cancel)?;
            job.still_ours()?;
            found.vault.vault.forget(&ids)?;
            drop(lock);
            let remove = ids.iter().map(ToString::to_string).collect();
            self.catalog()?.change_points(&found.vault.id, &PointChanges { add: Vec::new(), remove }, &[])?;
            let message = format!("Point {} deleted", point.id.short());
            Ok(Done { value: found.record.clone(), message, partial: None })
        })
    }

    /// Pins a point, or takes the pin away. Gives the point as it is then.
    pub fn pin(&self, app: &str, selector: &Selector, pinned: bool, cancel: &Cancel) -> Result<PointRecord> {
        let found = self.find(app, selector)?;
        let point = &found.record.point;
        if point.origin == Origin::Foreign {
            let message = format!("Snapshot {} was not written by Backstay", point.id.short());
            return Err(
                Error::new(Code::Conflict, message).advise("Only Backstay's own points can be pinned.")
            );
        }
        if point.pinned == pinned {
            return Ok(found.record);
        }
        let vault = &found.vault.vault;
        let ids = self.snapshots_of(&found)?;
        let shown: Id = point.snapshot.parse()?;
        let lock = short_lock(vault, cancel)?;
        let mut tags = vault.snapshot(&shown)?.tags;
        tags.retain(|t| t != PINNED);
        if pinned {
            tags.push(PINNED.to_owned());
        }
        let new_id = vault.retag(&shown, tags)?;
        let old: Vec<Id> = ids.into_iter().filter(|id| *id != new_id).collect();
        vault.forget(&old)?;
        let changed = record(&new_id, &vault.snapshot(&new_id)?)?;
        lock.release()?;
        let changes = PointChanges {
            add: vec![changed.clone()],
            remove: old.iter().map(ToString::to_string).collect(),
        };
        self.catalog()?.change_points(&found.vault.id, &changes, &[])?;
        Ok(changed)
    }
}

/// Sorts records, newest first, and keeps one of each point. There are two where a change of tags was interrupted (the
/// pinned one is shown, since what is pinned is kept) or where a repair left what it mended beside the original.
fn one_each(mut records: Vec<PointRecord>) -> Vec<PointRecord> {
    let rank = |r: &PointRecord| (r.point.pinned, r.point.status == PointStatus::Succeeded);
    records.sort_by_key(|r| std::cmp::Reverse((r.point.time, r.point.id, rank(r))));
    let mut seen = HashSet::new();
    records.retain(|r| seen.insert(r.point.id));
    records
}

pub(crate) fn short_lock(vault: &Vault, cancel: &Cancel) -> Result<Lock> {
    vault.lock(Strength::Shared, WAIT, cancel)
}

/// The apps that points tell of, each with the home of its newest point. A home that an archive tells of is that of
/// another machine, or of whoever made the archive: it is never taken for one of this machine.
pub(crate) fn apps_of(records: &[PointRecord]) -> Vec<App> {
    let mut newest: BTreeMap<&AppName, &PointRecord> = BTreeMap::new();
    let rank = |r: &PointRecord| (r.point.origin != Origin::Imported, r.point.time);
    for record in records.iter().filter(|r| r.point.origin != Origin::Foreign) {
        let at = newest.entry(&record.point.app).or_insert(record);
        if rank(at) < rank(record) {
            *at = record;
        }
    }
    let mut homes = HashSet::new();
    let app = |(name, record): (&AppName, &PointRecord)| {
        let home =
            record.paths.first().and_then(|p| backstay_tree::path::unescape(p)).map(std::path::PathBuf::from);
        let is_here = record.point.origin != Origin::Imported;
        let home = home.filter(|h| is_here && h.is_absolute() && homes.insert(h.clone()));
        App::new(name.clone(), home, "folder", record.point.time)
    };
    newest.into_iter().map(app).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn snapshot(tags: &[&str]) -> Snapshot {
        let mut snapshot = Snapshot::new(Timestamp::UNIX_EPOCH, Id::of(b"tree"));
        snapshot.tags = tags.iter().map(|t| (*t).to_owned()).collect();
        snapshot.paths = vec!["/srv/blog".to_owned()];
        snapshot
    }

    #[test]
    fn tags_of_a_point_are_read_back() {
        let app = AppName::suggest("blog");
        let id = PointId::from_bytes([9; 16]);
        for (origin, status) in [
            (Origin::Manual, PointStatus::Succeeded),
            (Origin::Automatic, PointStatus::PartiallySucceeded),
            (Origin::Safety, PointStatus::Succeeded),
            (Origin::Imported, PointStatus::PartiallySucceeded),
        ] {
            let mut it = snapshot(&[]);
            it.tags = tags(&app, &id, origin, status);
            let point = record(&Id::of(b"s"), &it).unwrap().point;
            assert_eq!((point.id, &point.app, point.origin, point.status), (id, &app, origin, status));
            assert!(!point.pinned);
        }
    }

    #[test]
    fn of_two_snapshots_of_one_point_the_pinned_or_the_whole_one_is_shown() {
        let id = PointId::from_bytes([9; 16]);
        let make = |name: &[u8], extra: &[&str]| {
            let mut it = snapshot(&[]);
            it.tags = tags(&AppName::suggest("blog"), &id, Origin::Manual, PointStatus::Succeeded);
            it.tags.extend(extra.iter().map(|t| (*t).to_owned()));
            record(&Id::of(name), &it).unwrap()
        };
        let (plain, pinned, repaired) = (make(b"1", &[]), make(b"2", &[PINNED]), make(b"3", &[REPAIRED]));
        for (pair, shown) in [([&plain, &pinned], &pinned), ([&plain, &repaired], &plain)] {
            for order in [[0, 1], [1, 0]] {
                let records = order.iter().map(|n| pair[*n].clone()).collect();
                assert_eq!(one_each(records).as_slice(), std::slice::from_ref(shown));
            }
        }
        assert_eq!(repaired.point.status, PointStatus::PartiallySucceeded);
    }

    #[test]
    fn what_is_not_wholly_ours_is_foreign() {
        let id = "point=09090909090909090909090909090909";
        let cases: [&[&str]; 6] = [
            &[],
            &["app=blog", id, "origin=manual"],
            &["backstay", id, "origin=manual"],
            &["backstay", "app=blog", "origin=manual"],
            &["backstay", "app=blog", "point=09", "origin=manual"],
            &["backstay", "app=foreign", id, "origin=manual"],
        ];
        for tags in cases {
            let record = record(&Id::of(b"s"), &snapshot(tags)).unwrap();
            assert_eq!(record.point.origin, Origin::Foreign, "{tags:?}");
            assert_eq!(record.point.app.as_str(), FOREIGN);
            assert!(record.point.snapshot.starts_with(&record.point.id.to_string()));
        }
    }
}
