//! Looking after the vault: stats, check, prune, repair, unlock, copy; and comparing two points.
//!
//! Invariants: each long one is a job without an app; what excludes what is decided by the vault's own locks. Plans
//! are values: with `dry_run` they are shown, else carried out. A check never mends, a prune never deletes from a
//! damaged vault, a repair deletes nothing unless told to.

use backstay_catalog::PointRecord;
use backstay_model::{Cancel, Code, Error, JobKind, Progress, Result, Secret};
use backstay_tree::path::escape;
use backstay_vault::check::{AffectedPoint, CheckOptions, CheckReport, check};
use backstay_vault::copy::CopyOutcome;
use backstay_vault::diff::{DiffTotals, Difference, diff};
use backstay_vault::prune::{Prune, PruneOptions, PruneOutcome, PrunePlan};
use backstay_vault::repair::{Repair, RepairOptions, RepairOutcome, RepairPlan};
use backstay_vault::stats::{Stats, stats};
use backstay_vault::{Id, Vault};
use jiff::Timestamp;
use serde::Serialize;

use crate::browse::content;
use crate::job::{Done, Running, Task, run};
use crate::place;
use crate::points::Points;
use crate::select::Selector;
use crate::state::Engine;

/// Numbers about the vault, with its place.
#[derive(Clone, Debug, Serialize)]
pub struct VaultStats {
    /// Its address.
    pub address: String,
    /// Its own id.
    pub id: String,
    /// The numbers.
    #[serde(flatten)]
    pub stats: Stats,
}

/// A point that lost something.
#[derive(Clone, Debug, Serialize)]
pub struct Affected {
    /// The app; none for snapshots of other programs.
    pub app: Option<String>,
    /// The point; none for snapshots of other programs.
    pub point: Option<String>,
    /// The vault's id of its snapshot.
    pub snapshot: String,
    /// When it was taken.
    pub time: Timestamp,
    /// The first paths that are lost, escaped.
    pub paths: Vec<String>,
    /// How many there are.
    pub count: u64,
}

/// The result of a check.
#[derive(Clone, Debug, Serialize)]
pub struct CheckResult {
    /// Whether nothing is wrong.
    pub clean: bool,
    /// What was found.
    pub report: CheckReport,
    /// The points that lost something.
    pub affected: Vec<Affected>,
}

/// The result of a prune.
#[derive(Clone, Debug, Serialize)]
pub struct PruneResult {
    /// What was found.
    pub plan: PrunePlan,
    /// What was done; none with `dry_run`.
    pub outcome: Option<PruneOutcome>,
}

/// The result of a repair.
#[derive(Clone, Debug, Serialize)]
pub struct RepairResult {
    /// What was found.
    pub plan: RepairPlan,
    /// The points that lost something for good.
    pub affected: Vec<Affected>,
    /// What was done; none with `dry_run`.
    pub outcome: Option<RepairOutcome>,
}

/// The result of copying points.
#[derive(Clone, Debug, Serialize)]
pub struct CopyResult {
    /// The other vault.
    pub address: String,
    /// Its own id.
    pub vault_id: String,
    /// Whether it was made for this.
    pub new_vault: bool,
    /// What was copied.
    #[serde(flatten)]
    pub outcome: CopyOutcome,
}

/// Which points were compared.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// The older one.
    pub from: PointRecord,
    /// The newer one.
    pub to: PointRecord,
    /// What differs, in numbers.
    #[serde(flatten)]
    pub totals: DiffTotals,
}

fn affected(points: &[AffectedPoint]) -> Vec<Affected> {
    let tag = |p: &AffectedPoint, name: &str| {
        p.tags.iter().find_map(|t| t.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
    };
    points
        .iter()
        .map(|p| Affected {
            app: tag(p, "app"),
            point: tag(p, "point"),
            snapshot: p.snapshot.to_string(),
            time: p.time,
            paths: p
                .paths
                .iter()
                .map(|path| path.strip_prefix("content/").unwrap_or(path).to_owned())
                .collect(),
            count: p.count,
        })
        .collect()
}

impl Engine {
    /// Does work on the whole vault as a job.
    fn vault_job<T>(
        &self,
        kind: JobKind,
        watch: (&dyn Progress, &Cancel),
        work: impl FnOnce(&Running<'_>, &Vault) -> Result<Done<T>>,
    ) -> Result<T> {
        let open = self.vault()?;
        let task = Task { kind, app: None, exclusive: false };
        run(self.catalog()?, &self.clock, &task, watch, |job| work(job, &open.vault))
    }

    /// Numbers about the vault.
    pub fn vault_stats(&self, progress: &dyn Progress, cancel: &Cancel) -> Result<VaultStats> {
        let open = self.vault()?;
        let stats = stats(&open.vault, progress, cancel)?;
        Ok(VaultStats { address: open.address, id: open.id, stats })
    }

    /// Checks the vault; with `read_data` all of its data too. Damage is in the result, not an error.
    pub fn vault_check(
        &self,
        read_data: bool,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<CheckResult> {
        self.vault_job(JobKind::Verify, (progress, cancel), |job, vault| {
            let report = check(vault, CheckOptions { read_data }, job, job.cancel())?;
            for finding in report.errors.iter().chain(&report.notes) {
                job.log(format!("{}: {}", finding.object, finding.detail));
            }
            let clean = report.is_clean();
            let value = CheckResult { clean, affected: affected(&report.affected), report };
            Ok(Done {
                message: match value.report.error_count {
                    0 => "The vault is clean".to_owned(),
                    n => format!(
                        "The vault is damaged: {n} findings, {} points affected",
                        value.affected.len()
                    ),
                },
                partial: (!clean).then_some(Code::VaultDamaged),
                value,
            })
        })
    }

    /// Frees space that no point needs, or only says what would be freed.
    pub fn vault_prune(
        &self,
        dry_run: bool,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<PruneResult> {
        self.vault_job(JobKind::Prune, (progress, cancel), |job, vault| {
            let prune = Prune::plan(vault, PruneOptions::default(), job, job.cancel())?;
            let plan = prune.value().clone();
            let outcome = if dry_run {
                None
            } else {
                job.still_ours()?;
                Some(prune.apply(job, job.cancel())?)
            };
            let message = match &outcome {
                None => format!("{} bytes could be freed", plan.freed_bytes),
                Some(o) => format!("{} bytes deleted, {} written", o.deleted.bytes, o.written.bytes),
            };
            Ok(Done { value: PruneResult { plan, outcome }, message, partial: None })
        })
    }

    /// Mends the vault, or only says what would be done. With `remove_originals` the points that lost something are
    /// replaced by what is left of them; else both stay.
    pub fn vault_repair(
        &self,
        dry_run: bool,
        remove_originals: bool,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<RepairResult> {
        self.vault_job(JobKind::Repair, (progress, cancel), |job, vault| {
            let options = RepairOptions { remove_originals, ..RepairOptions::default() };
            let repair = Repair::plan(vault, options, job, job.cancel())?;
            let plan = repair.value().clone();
            let outcome = if dry_run {
                None
            } else {
                job.still_ours()?;
                Some(repair.apply(job, job.cancel())?)
            };
            let lost = plan.affected.len();
            let value = RepairResult { affected: affected(&plan.affected), plan, outcome };
            let message = match (&value.outcome, lost) {
                (None, _) => "Looked at what could be mended".to_owned(),
                (Some(_), 0) => "Repaired; nothing is lost".to_owned(),
                (Some(_), n) => format!("Repaired; {n} points lost something for good"),
            };
            let damaged = lost > 0 || !value.plan.beyond_repair.is_empty();
            Ok(Done { value, message, partial: damaged.then_some(Code::VaultDamaged) })
        })
    }

    /// Removes abandoned locks, or all; gives how many.
    pub fn vault_unlock(&self, all: bool) -> Result<usize> {
        self.vault()?.vault.unlock(all)
    }

    /// Copies the points of one app, or all, to another vault, which is made when it does not exist.
    pub fn vault_copy(
        &self,
        address: &str,
        app: Option<&str>,
        password: Option<&Secret>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<CopyResult> {
        let points = self.points()?;
        let ids = copied(&points, app)?;
        if let (Some(app), true) = (app, ids.is_empty()) {
            self.known_app(app)?;
            return Err(Error::new(Code::PointNotFound, format!("App `{app}` has no points")));
        }
        let address = place::absolute(address, None)?;
        let own = self.secrets()?.vault_password;
        let task = Task { kind: JobKind::Copy, app: None, exclusive: false };
        run(self.catalog()?, &self.clock, &task, (progress, cancel), |job| {
            let other = self.make_vault(&address, password.unwrap_or(&own))?;
            let outcome = points.vault.vault.copy_to(&other.vault, &ids, job, job.cancel())?;
            let message = format!(
                "{} points copied, {} were there already",
                outcome.copied.len(),
                outcome.present.len()
            );
            let value = CopyResult { address, vault_id: other.id, new_vault: other.new, outcome };
            Ok(Done { value, message, partial: None })
        })
    }

    /// Compares two points of an app and hands over each difference.
    pub fn diff(
        &self,
        app: &str,
        (from, to): (&Selector, &Selector),
        cancel: &Cancel,
        each: &mut dyn FnMut(Difference) -> Result<()>,
    ) -> Result<Compared> {
        let to = self.find(app, to)?;
        let from = self.find(app, from)?.record;
        let reader = to.vault.vault.reader()?;
        let (before, _) = content(&reader, &from)?;
        let (after, _) = content(&reader, &to.record)?;
        let totals = diff(&reader, &before, &after, cancel, each)?;
        Ok(Compared { from, to: to.record, totals })
    }
}

/// A path of a difference as text.
#[must_use]
pub fn shown_path(difference: &Difference) -> String {
    escape(difference.path.as_os_str())
}

fn copied(points: &Points, app: Option<&str>) -> Result<Vec<Id>> {
    let wanted = points.records.iter().filter(|r| app.is_none_or(|a| r.point.app.as_str() == a));
    wanted.map(|r| r.point.snapshot.parse::<Id>().map_err(Error::from)).collect()
}
