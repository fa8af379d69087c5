//! Points that wait on this machine while the vault cannot be reached.
//!
//! The spool is a vault of its own in the state folder, made beside the real one while that could be reached: it has
//! the same master key, so files are cut the same way and what the vault has already is not moved twice.
//!
//! Invariants: a waiting point is a whole point under the same id, time and origin as it will have in the vault. It
//! is taken out of the spool only after it is in the vault; killed in between, the vault has it and the next move sees
//! that by its id. So no point is lost and none is doubled. Points move oldest first. The spool never grows beyond
//! its limit: the storage below it refuses, and what a refused point had stored is removed again.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use backstay_catalog::{PointChanges, PointRecord};
use backstay_model::{AppName, Cancel, Code, Error, JobKind, Origin, Result, Silent};
use backstay_storage::{Object, Put, Storage};
use backstay_vault::Vault;
use backstay_vault::key::Cost;
use backstay_vault::prune::{Prune, PruneOptions};

use crate::alerts::unreachable;
use crate::backup::{BackupReport, BackupRequest};
use crate::job::{Done, Task, run_for};
use crate::points::{Points, short_lock};
use crate::secrets::Secrets;
use crate::state::{Engine, OpenVault};
use crate::{place, private};

/// The spool's folder in the state folder.
const FOLDER: &str = "spool";

/// An automatic point.
pub(crate) struct Automatic {
    pub report: BackupReport,
    /// Whether it waits on this machine for the vault.
    pub spooled: bool,
}

impl Engine {
    /// Takes the automatic point of an app: into the vault, or into the spool when the vault cannot be reached.
    pub(crate) fn automatic_point(&self, app: &AppName, cancel: &Cancel) -> Result<Automatic> {
        // Half a restore is no state of the app to keep.
        self.refuse_unfinished(app)?;
        let request =
            BackupRequest { origin: Origin::Automatic, ..BackupRequest::of(Path::new(app.as_str())) };
        match self.backup(&request, &Silent, cancel) {
            Ok(report) => {
                // Kept ready for the day the vault cannot be reached. That day is not today: the point is taken.
                let _next_time = self.prepare_spool();
                Ok(Automatic { report, spooled: false })
            }
            Err(e) if unreachable(e.code()) && self.had_vault()? => self.spool(&request, cancel, e),
            Err(e) => Err(e),
        }
    }

    /// Whether this state had a vault, so that it is only away.
    fn had_vault(&self) -> Result<bool> {
        Ok(Secrets::load(&self.state)?.is_some_and(|s| s.vault.is_some()))
    }

    /// Makes the spool beside the vault, where there is none yet.
    fn prepare_spool(&self) -> Result<()> {
        let folder = self.state.join(FOLDER);
        if self.config.automatic.spool == 0 || folder.join("config").exists() {
            return Ok(());
        }
        let vault = self.vault()?;
        private::make_folder(&*self.fs, &folder)?;
        let storage = place::create(&self.fs, &place::text(&folder)?)?;
        vault.vault.init_twin(storage, &self.secrets()?.vault_password, Cost::RANDOM)?;
        Ok(())
    }

    /// The spool; none where there is none.
    fn open_spool(&self) -> Result<Option<OpenVault>> {
        let folder = self.state.join(FOLDER);
        if !folder.join("config").exists() {
            return Ok(None);
        }
        let address = place::text(&folder)?;
        let storage = Limited::new(place::open(&self.fs, &address)?, self.config.automatic.spool)?;
        let vault = Vault::open(Arc::new(storage), &self.secrets()?.vault_password)?;
        Ok(Some(OpenVault { id: vault.config().id.to_string(), vault, address, new: false }))
    }

    /// Takes a point into the spool; `away` is why the vault does not have it.
    fn spool(&self, request: &BackupRequest<'_>, cancel: &Cancel, away: Error) -> Result<Automatic> {
        if self.config.automatic.spool == 0 {
            return Err(away);
        }
        let open = match self.open_spool()? {
            Some(open) => open,
            // The vault was never reached since there are automatic points: one with a key of its own does too.
            None => {
                let folder = self.state.join(FOLDER);
                private::make_folder(&*self.fs, &folder)?;
                self.make_vault(&place::text(&folder)?, &self.secrets()?.vault_password)?;
                self.open_spool()?.ok_or(away)?
            }
        };
        let spool = open.vault.clone();
        match self.backup_to(open, request, &Silent, cancel) {
            Ok(report) => Ok(Automatic { report, spooled: true }),
            Err(e) => {
                if e.code() == Code::SpoolFull {
                    // What it stored until then is in nobody's way but the limit's.
                    let _stays_until_next_time = tidy(&spool, cancel);
                }
                Err(e)
            }
        }
    }

    /// The waiting points, oldest first, with the spool they lie in.
    fn spooled(&self) -> Result<Option<Points>> {
        let Some(open) = self.open_spool()? else { return Ok(None) };
        let mut points = self.reconcile(open)?;
        points.records.reverse();
        Ok(Some(points))
    }

    /// The waiting points, oldest first. Cheap where there is no spool.
    pub(crate) fn spooled_points(&self) -> Result<Vec<PointRecord>> {
        Ok(self.spooled()?.map_or_else(Vec::new, |p| p.records))
    }

    /// Moves waiting points into the vault, oldest first; gives their number.
    pub(crate) fn move_spooled(&self, cancel: &Cancel) -> Result<usize> {
        let Some(spool) = self.spooled()?.filter(|s| !s.records.is_empty()) else { return Ok(0) };
        let vault = self.points()?;
        let task = Task { kind: JobKind::Copy, app: None, exclusive: false };
        run_for(Origin::Automatic, self.catalog()?, &self.clock, &task, (&Silent, cancel), |job| {
            let mut moved = 0;
            for record in &spool.records {
                job.still_ours()?;
                let id = record.point.snapshot.parse()?;
                if !vault.records.iter().any(|r| r.point.id == record.point.id) {
                    spool.vault.vault.copy_to(&vault.vault.vault, &[id], job, cancel)?;
                }
                let lock = short_lock(&spool.vault.vault, cancel)?;
                spool.vault.vault.forget(&[id])?;
                drop(lock);
                let remove = vec![record.point.snapshot.clone()];
                let changes = PointChanges { add: Vec::new(), remove };
                self.catalog()?.change_points(&spool.vault.id, &changes, &[])?;
                job.log(format!("Point {} of {} moved", record.point.id.short(), record.point.app));
                moved += 1;
            }
            self.points()?;
            // The points are in the vault; space that is not freed now is freed after the next move.
            let _later = tidy(&spool.vault.vault, cancel);
            let message = format!("{moved} waiting points moved into the vault");
            Ok(Done { value: moved, message, partial: None })
        })
    }
}

/// Frees what no waiting point needs.
fn tidy(spool: &Vault, cancel: &Cancel) -> Result<()> {
    let options = PruneOptions { max_unused_percent: 0, ..PruneOptions::default() };
    Prune::plan(spool, options, &Silent, cancel)?.apply(&Silent, cancel)?;
    Ok(())
}

/// A storage that takes no more than so many bytes.
struct Limited {
    inner: Arc<dyn Storage>,
    limit: u64,
    used: AtomicU64,
}

impl Limited {
    fn new(inner: Arc<dyn Storage>, limit: u64) -> Result<Self> {
        let mut used = 0_u64;
        inner.list("", &mut |object| {
            used = used.saturating_add(object.size);
            Ok(())
        })?;
        Ok(Limited { inner, limit, used: AtomicU64::new(used) })
    }

    fn full(&self) -> Error {
        let message =
            format!("Points that wait for the vault have reached their limit of {} bytes", self.limit);
        Error::new(Code::SpoolFull, message)
    }
}

impl fmt::Debug for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {} bytes at most", self.inner, self.limit)
    }
}

impl Storage for Limited {
    fn location(&self) -> String {
        self.inner.location()
    }

    fn put(&self, name: &str, bytes: &[u8], mode: Put) -> Result<()> {
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        // Locks are small and gone soon; without them nothing could be freed.
        if !name.starts_with("locks/") {
            let used = self.used.fetch_add(size, Ordering::SeqCst).saturating_add(size);
            if used > self.limit {
                self.used.fetch_sub(size, Ordering::SeqCst);
                return Err(self.full());
            }
        }
        self.inner.put(name, bytes, mode).map_err(|e| match e.code() {
            Code::StorageFull => Error::new(Code::SpoolFull, "The disk of waiting points is full").because(e),
            _ => e,
        })
    }

    fn get(&self, name: &str) -> Result<Vec<u8>> {
        self.inner.get(name)
    }

    fn get_range(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.inner.get_range(name, offset, len)
    }

    fn size(&self, name: &str) -> Result<u64> {
        self.inner.size(name)
    }

    fn list(&self, folder: &str, each: &mut dyn FnMut(Object) -> Result<()>) -> Result<()> {
        self.inner.list(folder, each)
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.inner.delete(name)
    }

    fn discard(&self, name: &str) -> Result<()> {
        self.inner.discard(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    use backstay_tree::fs::{Faulty, FileSystem, Host, Kill};

    use crate::Setup;

    fn engine(fs: Arc<dyn FileSystem>, dir: &Path) -> Engine {
        let setup = Setup { state: Some(dir.join("home")), fs, ..Setup::default() };
        Engine::new(setup).unwrap()
    }

    fn app() -> AppName {
        AppName::suggest("blog")
    }

    /// A state with a point in the vault and two that wait; gives their ids, oldest first.
    fn prepared() -> (tempfile::TempDir, Vec<String>) {
        let dir = backstay_testing::quick_dir();
        let blog: PathBuf = dir.path().join("blog");
        std::fs::create_dir(&blog).unwrap();
        std::fs::write(blog.join("file"), "0").unwrap();
        let it = engine(Arc::new(Host), dir.path());
        it.backup(&BackupRequest::of(&blog), &Silent, &Cancel::new()).unwrap();
        it.prepare_spool().unwrap();
        let vault = dir.path().join("home/vault");
        let mut ids = vec![it.list(None).unwrap().points[0].point.id.to_string()];
        std::fs::rename(&vault, dir.path().join("away")).unwrap();
        for n in 1..=2 {
            std::fs::write(blog.join("file"), n.to_string()).unwrap();
            let taken = it.automatic_point(&app(), &Cancel::new()).unwrap();
            assert!(taken.spooled);
            ids.push(taken.report.point.point.id.to_string());
        }
        std::fs::rename(dir.path().join("away"), vault).unwrap();
        (dir, ids)
    }

    fn ids(points: &[PointRecord]) -> Vec<String> {
        points.iter().map(|r| r.point.id.to_string()).collect()
    }

    #[test]
    fn a_move_stopped_at_any_system_call_loses_no_point_and_doubles_none() {
        let (dir, _) = prepared();
        let fs = Arc::new(Faulty::new(Arc::new(Host)));
        assert_eq!(engine(fs.clone(), dir.path()).move_spooled(&Cancel::new()).unwrap(), 2);
        let calls = fs.points();
        assert!(calls > 40, "only {calls} calls");
        let mut between = 0;
        for how in [Kill::Before, Kill::After] {
            for number in 1..=calls {
                let (dir, expected) = prepared();
                let fs = Arc::new(Faulty::new(Arc::new(Host)));
                fs.kill_at(number, how);
                let _died = engine(fs, dir.path()).move_spooled(&Cancel::new());
                let what = format!("call {number} of {calls} ({how:?})");
                let it = engine(Arc::new(Host), dir.path());
                // Nothing is lost in between: each is in the vault or waits.
                let mut present = ids(&it.list(None).unwrap().points);
                present.reverse();
                between += usize::from((2..3).contains(&present.len()));
                assert_eq!(present, expected[..present.len()], "{what}: moved in order");
                let waiting = ids(&it.spooled_points().unwrap());
                assert!(expected.iter().all(|id| present.contains(id) || waiting.contains(id)), "{what}");
                it.move_spooled(&Cancel::new()).unwrap_or_else(|e| panic!("{what}: {e:?}"));
                let points = it.list(None).unwrap().points;
                let mut present = ids(&points);
                present.reverse();
                assert_eq!(present, expected, "{what}");
                assert!(points.iter().take(2).all(|p| p.point.origin == Origin::Automatic));
                assert!(it.spooled_points().unwrap().is_empty(), "{what}");
                let snapshots = it.vault().unwrap().vault.ids(backstay_vault::Folder::Snapshots).unwrap();
                assert_eq!(snapshots.len(), 3, "{what}: none is doubled");
                assert!(it.vault_check(true, &Silent, &Cancel::new()).unwrap().clean, "{what}");
            }
        }
        assert!(between > 0, "no stop fell between the two points");
        println!(
            "{calls} system calls of a move, each stopped before and after; {between} between the two points"
        );
    }

    #[test]
    fn what_the_vault_has_already_is_not_moved_again() {
        let dir = backstay_testing::quick_dir();
        let blog = dir.path().join("blog");
        std::fs::create_dir(&blog).unwrap();
        let mut seed = 7_u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed.to_be_bytes()[0]
        })
        .take(3_000_000)
        .collect();
        std::fs::write(blog.join("large"), noise).unwrap();
        let it = engine(Arc::new(Host), dir.path());
        it.backup(&BackupRequest::of(&blog), &Silent, &Cancel::new()).unwrap();
        it.prepare_spool().unwrap();
        let vault = dir.path().join("home/vault");
        std::fs::rename(&vault, dir.path().join("away")).unwrap();
        std::fs::write(blog.join("small"), "new").unwrap();
        it.automatic_point(&app(), &Cancel::new()).unwrap();
        std::fs::rename(dir.path().join("away"), &vault).unwrap();
        let before = it.vault_bytes().unwrap();
        it.move_spooled(&Cancel::new()).unwrap();
        let grown = it.vault_bytes().unwrap() - before;
        assert!(
            grown < 20_000,
            "{grown} bytes for a new file of 3 bytes: the large one was cut in other places"
        );
    }

    #[test]
    fn a_point_without_a_prepared_spool_waits_too_and_without_a_limit_none_does() {
        let dir = backstay_testing::quick_dir();
        let blog = dir.path().join("blog");
        std::fs::create_dir(&blog).unwrap();
        let it = engine(Arc::new(Host), dir.path());
        it.backup(&BackupRequest::of(&blog), &Silent, &Cancel::new()).unwrap();
        std::fs::rename(dir.path().join("home/vault"), dir.path().join("away")).unwrap();
        std::fs::write(dir.path().join("home/backstay.toml"), "[automatic]\nspool = \"0B\"\n").unwrap();
        let without = engine(Arc::new(Host), dir.path());
        let error = without.automatic_point(&app(), &Cancel::new()).err().unwrap();
        assert!(unreachable(error.code()), "{error:?}");
        assert!(it.automatic_point(&app(), &Cancel::new()).unwrap().spooled);
        std::fs::rename(dir.path().join("away"), dir.path().join("home/vault")).unwrap();
        assert_eq!(it.move_spooled(&Cancel::new()).unwrap(), 1);
        assert_eq!(it.move_spooled(&Cancel::new()).unwrap(), 0);
        assert_eq!(it.list(None).unwrap().points.len(), 2);
    }
}
