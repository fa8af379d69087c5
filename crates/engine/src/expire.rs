//! Letting points go by age, and giving their space back.
//!
//! Invariants: what goes is decided by [`backstay_model::retention`] alone, and decided again inside the app's exclusive job,
//! after a fresh look at the vault; so no other job of the app can take the newest restorable point away meanwhile, and
//! a point that is pinned at that moment stays (a pin writes another snapshot, which nobody deletes). Nothing goes
//! while the clock is in doubt. The reading of the clocks is stored before anything is deleted by it; when it cannot be
//! stored, nothing expires.
//!
//! Space is given back by a prune of its own, at most once a day and only where it is worth it, since it holds the vault
//! for a moment; a prune that fails or is put off changes nothing about what expired.
//!
//! Killed anywhere: some snapshots are gone, each with all its point; the next run deletes the rest. A kill before the
//! note of a prune is stored costs a look at the vault, nothing else.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use backstay_catalog::PointChanges;
use backstay_model::retention::{ClockWatch, Entry, Expire, Keep, Reading, Trust, Verdict, expire};
use backstay_model::{
    AppName, Cancel, Code, Error, JobKind, Origin, Phase, PointId, Progress, Result, Silent,
};
use backstay_vault::Id;
use backstay_vault::prune::{Prune, PruneOptions, PrunePlan};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::backup::seconds;
use crate::job::{Done, Running, Task, run_for};
use crate::maintain::PruneResult;
use crate::points::{Points, short_lock};
use crate::private;
use crate::state::{Engine, OpenVault};

/// What is remembered between runs, in the state folder.
const FILE: &str = "expiry.json";
/// Space is looked after at most once in so many hours.
const PRUNE_HOURS: i64 = 23;
/// A prune is worth it when it frees this share of the vault, in percent,
const WORTH_PERCENT: u64 = 10;
/// or when so many packs would go or be put together: many small ones make every backup slower.
const WORTH_PACKS: usize = 256;

/// Whose points are to expire.
#[derive(Clone, Copy, Debug)]
pub struct ExpireRequest<'a> {
    /// One app, or all of them.
    pub app: Option<&'a str>,
    /// Only say what would go.
    pub dry_run: bool,
    /// Who asks: a job of the scheduler is not cancelled by hand.
    pub origin: Origin,
}

/// What became of an app's points.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AppExpiry {
    /// The app.
    pub app: AppName,
    /// Points that stay.
    pub kept: usize,
    /// Points that went, or would go; oldest first.
    pub expired: Vec<ExpiredPoint>,
    /// Why its points did not expire this time: another job of the app runs. The next run does it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub put_off: Option<String>,
}

/// A point that went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ExpiredPoint {
    /// The point.
    pub id: PointId,
    /// When it was taken.
    pub time: Timestamp,
    /// Why it went.
    pub why: Expire,
}

/// Why nothing expires for now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hold {
    /// When it goes on if the clock stays steady.
    pub until: Timestamp,
    /// What happened to the clock.
    pub why: String,
}

/// What became of all points.
#[derive(Debug, Serialize)]
pub struct Expiry {
    /// The apps by name.
    pub apps: Vec<AppExpiry>,
    /// Set while nothing expires because the clock is in doubt.
    pub held: Option<Hold>,
    /// The prune that followed; none where it was not due, not worth it or only asked about.
    pub pruned: Option<PruneResult>,
    /// How long space was looked after.
    pub prune_seconds: f64,
    /// Why space could not be given back. What expired, expired.
    #[serde(skip)]
    pub prune_failed: Option<Error>,
}

/// What is remembered between runs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Memory {
    #[serde(default)]
    clock: ClockWatch,
    /// When space was last looked after.
    #[serde(default)]
    looked: Option<Timestamp>,
    /// Points that expired since.
    #[serde(default)]
    expired_since: u64,
}

impl Engine {
    /// Lets points go by age, all in one go for each app, then frees space where that is due and worth it.
    pub fn expire(
        &self,
        request: &ExpireRequest<'_>,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Expiry> {
        let mut result =
            Expiry { apps: Vec::new(), held: None, pruned: None, prune_seconds: 0.0, prune_failed: None };
        if !self.is_set_up()? {
            return match request.app {
                Some(app) => Err(self.nothing_yet(Code::AppNotFound, &format!("There is no app `{app}`"))),
                None => Ok(result),
            };
        }
        let points = self.points()?;
        let wanted = request.app.map(|app| self.listed_app(app, &points)).transpose()?;
        let now = self.clock.now();
        let newest = points
            .records
            .iter()
            .filter(|r| !matches!(r.point.origin, Origin::Foreign | Origin::Imported))
            .map(|r| r.point.time);
        let (reading, newest) = (self.reading(now), newest.max());
        let judge = |memory: &mut Memory| memory.clock.judge(&reading, newest);
        let trust = match request.dry_run {
            true => judge(&mut self.expiry_memory()?),
            false => self.change_memory(judge)?,
        };
        if let Trust::Hold { until, why } = trust {
            result.held = Some(Hold { until, why });
            return Ok(result);
        }
        let apps: BTreeSet<AppName> =
            own_apps(&points).filter(|a| wanted.as_ref().is_none_or(|w| w == a)).collect();
        for app in apps {
            cancel.check()?;
            result.apps.push(self.expire_app(&app, &points, now, request, cancel)?);
        }
        let gone: usize = result.apps.iter().map(|a| a.expired.len()).sum();
        if !request.dry_run && self.is_prune_due(u64::try_from(gone).unwrap_or(0))? {
            let begun = Instant::now();
            self.give_space_back(&points.vault, request.origin, &mut result, (progress, cancel))?;
            result.prune_seconds = seconds(begun.elapsed());
        }
        Ok(result)
    }

    /// Why nothing expires at present, as the last run found it.
    pub fn expiry_held(&self) -> Result<Option<String>> {
        Ok(self.expiry_memory()?.clock.held().map(str::to_owned))
    }

    fn expire_app(
        &self,
        app: &AppName,
        points: &Points,
        now: Timestamp,
        request: &ExpireRequest<'_>,
        cancel: &Cancel,
    ) -> Result<AppExpiry> {
        let planned = plan(app, points, now);
        if planned.expired.is_empty() || request.dry_run {
            return Ok(planned);
        }
        let task = Task { kind: JobKind::Delete, app: Some(app), exclusive: true };
        let done = run_for(request.origin, self.catalog()?, &self.clock, &task, (&Silent, cancel), |job| {
            let value = self.forget_expired(job, app, &points.vault, now)?;
            let message = match value.expired.len() {
                1 => "1 point expired".to_owned(),
                n => format!("{n} points expired"),
            };
            Ok(Done { value, message, partial: None })
        });
        match done {
            Err(e) if e.code() == Code::AppBusy => {
                let put_off = Some(e.message().to_owned());
                Ok(AppExpiry {
                    expired: Vec::new(),
                    kept: planned.kept + planned.expired.len(),
                    put_off,
                    ..planned
                })
            }
            other => other,
        }
    }

    /// Decides again, and deletes: the work of the job.
    fn forget_expired(
        &self,
        job: &Running<'_>,
        app: &AppName,
        vault: &OpenVault,
        now: Timestamp,
    ) -> Result<AppExpiry> {
        job.phase(Phase::Removing);
        let points = self.reconcile(vault.again())?;
        let decided = plan(app, &points, now);
        let going: BTreeSet<PointId> = decided.expired.iter().map(|e| e.id).collect();
        // All snapshots of a point: two, where a change of tags was interrupted.
        let all = self.catalog()?.points(&vault.id)?;
        let ids: Vec<Id> = all
            .iter()
            .filter(|r| r.point.app == *app && going.contains(&r.point.id))
            .map(|r| r.point.snapshot.parse::<Id>())
            .collect::<Result<_, _>>()?;
        let lock = short_lock(&vault.vault, job.cancel())?;
        job.still_ours()?;
        vault.vault.forget(&ids)?;
        drop(lock);
        for point in &decided.expired {
            job.log(format!("{} of {} {}", point.id.short(), point.time, reason(point.why)));
        }
        let remove = ids.iter().map(ToString::to_string).collect();
        self.catalog()?.change_points(&vault.id, &PointChanges { add: Vec::new(), remove }, &[])?;
        Ok(decided)
    }

    /// Whether space is to be looked after: a day has passed and points expired meanwhile. Whoever is told so does it;
    /// others, and another try when it fails, wait a day.
    fn is_prune_due(&self, gone: u64) -> Result<bool> {
        let now = self.clock.now();
        let day = SignedDuration::from_hours(PRUNE_HOURS);
        let memory = self.expiry_memory()?;
        // A clock that was set back does not put it off for long.
        let due = memory.looked.is_none_or(|looked| now < looked || now.duration_since(looked) >= day);
        let due = due && memory.expired_since + gone > 0;
        if due || gone > 0 {
            self.change_memory(|memory| {
                memory.expired_since += gone;
                memory.looked = if due { Some(now) } else { memory.looked };
            })?;
        }
        Ok(due)
    }

    /// Prunes where it is worth it.
    fn give_space_back(
        &self,
        vault: &OpenVault,
        origin: Origin,
        result: &mut Expiry,
        watch: (&dyn Progress, &Cancel),
    ) -> Result<()> {
        let task = Task { kind: JobKind::Prune, app: None, exclusive: false };
        let done = run_for(origin, self.catalog()?, &self.clock, &task, watch, |job| {
            let prune = Prune::plan(&vault.vault, PruneOptions::default(), job, job.cancel())?;
            let plan = prune.value().clone();
            let outcome = if is_worth_it(&plan) {
                job.still_ours()?;
                Some(prune.apply(job, job.cancel())?)
            } else {
                None
            };
            let message = match &outcome {
                None => format!("{} bytes could be freed: not worth it yet", plan.freed_bytes),
                Some(o) => format!("{} bytes deleted, {} written", o.deleted.bytes, o.written.bytes),
            };
            Ok(Done { value: PruneResult { plan, outcome }, message, partial: None })
        });
        match done {
            Err(e) if e.code() == Code::Cancelled => return Err(e),
            Err(e) => result.prune_failed = Some(e),
            Ok(pruned) => {
                if pruned.outcome.as_ref().is_some_and(|o| o.deferred.is_none()) {
                    self.change_memory(|memory| memory.expired_since = 0)?;
                }
                result.pruned = pruned.outcome.is_some().then_some(pruned);
            }
        }
        Ok(())
    }

    /// Whether the clock can be believed, by what is remembered of it and the newest thing that is known.
    pub(crate) fn judge_clock(&self, newest: Option<Timestamp>) -> Result<Trust> {
        let reading = self.reading(self.clock.now());
        self.change_memory(|memory| memory.clock.judge(&reading, newest))
    }

    fn reading(&self, wall: Timestamp) -> Reading {
        let since_boot_seconds = i64::try_from(self.clock.since_boot().as_secs()).unwrap_or(i64::MAX);
        Reading { wall, boot: self.clock.boot(), since_boot_seconds }
    }

    /// What the last run left. A file that cannot be understood is as good as none: the newest point stands for it.
    fn expiry_memory(&self) -> Result<Memory> {
        let bytes = private::read(&self.state.join(FILE))?;
        Ok(bytes.and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default())
    }

    /// Changes what is remembered. Of two processes that do so at once the last one counts: a reading that is lost is made
    /// up for by the next one, and the rest are hints.
    fn change_memory<T>(&self, change: impl FnOnce(&mut Memory) -> T) -> Result<T> {
        static ONE_THREAD: Mutex<()> = Mutex::new(());
        let _held = ONE_THREAD.lock().unwrap_or_else(PoisonError::into_inner);
        let mut memory = self.expiry_memory()?;
        let value = change(&mut memory);
        let json = serde_json::to_vec(&memory)
            .map_err(|e| Error::new(Code::Internal, "The state of expiry cannot be written").because(e))?;
        private::replace(&*self.fs, &self.state, FILE, &json)?;
        Ok(value)
    }
}

fn own_apps(points: &Points) -> impl Iterator<Item = AppName> {
    points.records.iter().filter(|r| r.point.origin != Origin::Foreign).map(|r| r.point.app.clone())
}

/// What would become of an app's points.
fn plan(app: &AppName, points: &Points, now: Timestamp) -> AppExpiry {
    let of_app: Vec<Entry> =
        points.records.iter().filter(|r| r.point.app == *app).map(|r| Entry::from(&r.point)).collect();
    let mut expired: Vec<ExpiredPoint> = of_app
        .iter()
        .zip(expire(&of_app, now))
        .filter_map(|(point, verdict)| match verdict {
            Verdict::Keep(_) => None,
            Verdict::Expire(why) => Some(ExpiredPoint { id: point.id, time: point.time, why }),
        })
        .collect();
    expired.sort_by_key(|p| (p.time, p.id));
    AppExpiry { app: app.clone(), kept: of_app.len() - expired.len(), expired, put_off: None }
}

fn is_worth_it(plan: &PrunePlan) -> bool {
    plan.freed_bytes.saturating_mul(100) >= plan.packs.bytes.saturating_mul(WORTH_PERCENT)
        && plan.freed_bytes > 0
        || plan.delete.len() + plan.repack.len() >= WORTH_PACKS
}

/// The words for why a point went.
fn reason(why: Expire) -> &'static str {
    match why {
        Expire::Thinned => "thinned: another one stands for its hours",
        _ => "older than 30 days",
    }
}

// --- what the policy keeps

/// What hourly points come to.
#[derive(Clone, Debug, Serialize)]
pub struct Simulation {
    /// Hours that were simulated, one point each.
    pub hours: u32,
    /// How many points stay at the end.
    pub kept_count: usize,
    /// How many of them for which reason.
    pub counts: KeptCounts,
    /// The fewest and the most that stayed at any hour from the 720th on; none where there were fewer hours.
    pub steady: Option<Steady>,
    /// The points that stay, newest first.
    pub kept: Vec<KeptPoint>,
}

/// How many points stay in the long run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Steady {
    /// The fewest.
    pub least: usize,
    /// The most.
    pub most: usize,
}

/// Points that stay, counted by the reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KeptCounts {
    /// All of three days.
    pub hourly: usize,
    /// One of every three hours.
    pub third_hour: usize,
    /// One of every six hours.
    pub sixth_hour: usize,
}

/// A point that stays.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct KeptPoint {
    /// When it was taken.
    pub time: Timestamp,
    /// Its age in hours.
    pub age_hours: i64,
    /// Why it stays.
    pub why: Keep,
}

/// Takes a point every hour, the last one at `end`, and lets the code that expires decide after each.
#[must_use]
pub fn simulate(end: Timestamp, hours: u32) -> Simulation {
    let mut points: Vec<Entry> = Vec::new();
    let mut verdicts = Vec::new();
    let mut steady: Option<Steady> = None;
    for hour in 0..hours {
        let age = SignedDuration::from_hours(i64::from(hours - 1 - hour));
        let now = end.saturating_sub(age).unwrap_or(end);
        points.push(Entry {
            id: PointId::from_bytes(u128::from(hour).to_be_bytes()),
            time: now,
            origin: Origin::Automatic,
            status: backstay_model::PointStatus::Succeeded,
            pinned: false,
        });
        verdicts = expire(&points, now);
        let mut at = verdicts.iter();
        points.retain(|_| at.next().is_some_and(Verdict::keeps));
        verdicts.retain(Verdict::keeps);
        if hour >= 720 {
            let n = points.len();
            let Steady { least, most } = steady.unwrap_or(Steady { least: n, most: n });
            steady = Some(Steady { least: least.min(n), most: most.max(n) });
        }
    }
    let mut counts = KeptCounts::default();
    let kept = |(point, verdict): (&Entry, &Verdict)| {
        let Verdict::Keep(why) = *verdict else { return None };
        match why {
            Keep::Hourly => counts.hourly += 1,
            Keep::ThirdHour => counts.third_hour += 1,
            _ => counts.sixth_hour += 1,
        }
        Some(KeptPoint { time: point.time, age_hours: end.duration_since(point.time).as_hours(), why })
    };
    let kept: Vec<KeptPoint> = points.iter().zip(&verdicts).rev().filter_map(kept).collect();
    Simulation { hours, kept_count: kept.len(), counts, steady, kept }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BackupRequest, ManualClock, Setup};
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn points_of_an_app_that_is_busy_are_put_off() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("blog");
        std::fs::create_dir(&home).unwrap();
        let clock = Arc::new(ManualClock::new("2026-03-01T00:00:00Z".parse().unwrap(), Duration::ZERO));
        let setup = Setup { state: Some(dir.path().join("state")), clock: clock.clone(), ..Setup::default() };
        let engine = Engine::new(setup).unwrap();
        let request = BackupRequest { origin: Origin::Automatic, ..BackupRequest::of(&home) };
        engine.backup(&request, &Silent, &Cancel::new()).unwrap();
        let app = engine.backup(&request, &Silent, &Cancel::new()).unwrap().point.point.app;
        let all = ExpireRequest { app: None, dry_run: false, origin: Origin::Automatic };
        let expire = || engine.expire(&all, &Silent, &Cancel::new()).unwrap();
        assert!(expire().apps[0].expired.is_empty());
        clock.pass(Duration::from_hours(24 * 31));
        let task = Task { kind: JobKind::Restore, app: Some(&app), exclusive: true };
        let watch = (&Silent as &dyn Progress, &Cancel::new());
        run_for(Origin::Manual, engine.catalog().unwrap(), &engine.clock, &task, watch, |_job| {
            let result = expire();
            let AppExpiry { kept, expired, put_off, .. } = &result.apps[0];
            assert_eq!((*kept, expired.len()), (2, 0));
            assert!(put_off.is_some());
            Ok(Done { value: (), message: String::new(), partial: None })
        })
        .unwrap();
        assert_eq!(expire().apps[0].expired.len(), 1);
        assert_eq!(engine.list(None).unwrap().points.len(), 1);
    }
}
