//! How large backups may be, by the plan of the app.
//!
//! Invariants: the default plan, and every plan that nothing is said about, has no limits. Those of Azure App Service have
//! the limits that it has, unless `backstay.toml` says otherwise. An automatic point that is too large is taken all the same
//! and restored once the plan is raised; a custom backup that is too large fails, before it begins where its size can be
//! told by then, else at the byte that is too much. Errors have both figures.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use backstay_archive::source::{Item, Sink, Source, What};
use backstay_catalog::PointRecord;
use backstay_model::{Cancel, Code, Error, Origin, Phase, Problem, Progress, Result};
use serde::Deserialize;

use crate::state::Engine;

const GB: u64 = 1_000_000_000;
/// Plans of Azure App Service that can be backed up.
const AZURE: [&str; 4] = ["basic", "standard", "premium", "isolated"];

/// `[plans.NAME]`: most bytes of content; none for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// Of an automatic point that is restored.
    #[serde(deserialize_with = "crate::config::optional_size")]
    pub automatic: Option<u64>,
    /// Of a custom backup, databases included.
    #[serde(deserialize_with = "crate::config::optional_size")]
    pub custom: Option<u64>,
    /// Of the databases in a custom backup.
    #[serde(deserialize_with = "crate::config::optional_size")]
    pub databases: Option<u64>,
}

impl Limits {
    /// Those of a plan.
    pub(crate) fn of(plan: &str, configured: &BTreeMap<String, Limits>) -> Self {
        match configured.get(plan) {
            Some(limits) => *limits,
            None if AZURE.contains(&plan.to_ascii_lowercase().as_str()) => {
                Limits { automatic: Some(30 * GB), custom: Some(10 * GB), databases: Some(4 * GB) }
            }
            None => Limits::default(),
        }
    }
}

/// A size in GB as the message has it, rounded up so that it never reads as the limit itself.
fn gb(bytes: u64) -> String {
    let hundredths = bytes.div_ceil(GB / 100);
    match hundredths % 100 {
        0 => format!("{}", hundredths / 100),
        rest => format!("{}.{rest:02}", hundredths / 100),
    }
}

/// The seed's words for a backup that is too large, with both figures.
fn too_large(plan: &str, limit: u64, size: u64, at_least: bool) -> Error {
    exceeds("website and database", "content", plan, limit, size, at_least)
}

fn exceeds(what: &str, of: &str, plan: &str, limit: u64, size: u64, at_least: bool) -> Error {
    let at_least = if at_least { "at least " } else { "" };
    let (limit, size) = (gb(limit), gb(size));
    Error::new(
        Code::BackupTooLarge,
        format!(
            "The {what} size exceeds the {limit} GB limit for backups of the plan `{plan}`. The {of} size is {at_least}{size} GB"
        ),
    )
}

impl Engine {
    /// The limits of a plan.
    pub(crate) fn limits(&self, plan: &str) -> Limits {
        Limits::of(plan, &self.config.plans)
    }

    /// Refuses an automatic point that is larger than the app's plan lets be restored.
    pub(crate) fn check_restorable(&self, record: &PointRecord) -> Result<()> {
        let point = &record.point;
        if point.origin != Origin::Automatic {
            return Ok(());
        }
        let Some(app) = self.catalog()?.app(&point.app)? else { return Ok(()) };
        let plan = &app.config.plan;
        match self.limits(plan).automatic {
            Some(limit) if point.bytes > limit => Err(too_large(plan, limit, point.bytes, false)
                .context(format!("Point {} was taken but cannot be restored on this plan", point.id.short()))
                .advise(format!(
                    "Raise the plan, then restore it: `backstay app set {} --plan default` has no limits.",
                    point.app
                ))),
            _ => Ok(()),
        }
    }
}

/// Content that is counted and not read.
#[derive(Default)]
struct Count {
    bytes: u64,
}

impl Sink for Count {
    fn item(&mut self, item: Item) -> Result<()> {
        if let Item::Tree(item) = item
            && let What::File { size, .. } = item.what
        {
            self.bytes = self.bytes.saturating_add(size);
        }
        Ok(())
    }

    fn problem(&mut self, _: Problem) {}

    fn check(&self) -> Result<()> {
        Ok(())
    }
}

/// Fails when a source holds more than the limit, by what it says without being read.
pub(crate) fn estimate(source: &dyn Source, plan: &str, limit: u64) -> Result<()> {
    let mut count = Count::default();
    source.walk(&mut count)?;
    if count.bytes > limit {
        return Err(too_large(plan, limit, count.bytes, false));
    }
    Ok(())
}

/// Passes progress on, but for phases and totals, which the whole decides; stops the work at the byte that is too much.
pub(crate) struct Metered<'a> {
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
    limit: Option<u64>,
    bytes: AtomicU64,
    over: AtomicBool,
}

impl<'a> Metered<'a> {
    pub(crate) fn new(progress: &'a dyn Progress, cancel: &'a Cancel, limit: Option<u64>) -> Self {
        Metered { progress, cancel, limit, bytes: AtomicU64::new(0), over: AtomicBool::new(false) }
    }

    /// The same for databases alone.
    pub(crate) fn judge_databases<T>(&self, plan: &str, done: Result<T>) -> Result<T> {
        match (self.limit, self.over.load(Ordering::SeqCst)) {
            (Some(limit), true) => {
                let size = self.bytes.load(Ordering::SeqCst);
                Err(exceeds("database", "database", plan, limit, size, true).advise(
                    "Leave the databases out (`--no-databases`, `backstay app set APP --without-database NAME`) and save them otherwise, or \
                     give the app another plan: `backstay app set APP --plan NAME`.",
                ))
            }
            _ => done,
        }
    }

    /// The result of the work, or that it was too large.
    pub(crate) fn judge<T>(&self, plan: &str, done: Result<T>) -> Result<T> {
        match (self.limit, self.over.load(Ordering::SeqCst)) {
            (Some(limit), true) => Err(too_large(plan, limit, self.bytes.load(Ordering::SeqCst), true)),
            _ => done,
        }
    }
}

impl Progress for Metered<'_> {
    fn phase(&self, _: Phase) {}

    fn done(&self, files: u64, bytes: u64) {
        let before = self.bytes.fetch_add(bytes, Ordering::SeqCst);
        if self.limit.is_some_and(|limit| before.saturating_add(bytes) > limit) {
            self.over.store(true, Ordering::SeqCst);
            self.cancel.cancel();
        }
        self.progress.done(files, bytes);
    }

    fn expect(&self, _: u64, _: u64) {}

    fn problem(&self, problem: &Problem) {
        self.progress.problem(problem);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backstay_model::Silent;

    #[test]
    fn plans_of_azure_have_its_limits_and_others_none_unless_they_are_set() {
        let none = BTreeMap::new();
        assert_eq!(Limits::of("default", &none), Limits::default());
        assert_eq!(Limits::of("Standard", &none).custom, Some(10 * GB));
        assert_eq!(Limits::of("premium", &none).automatic, Some(30 * GB));
        assert_eq!(Limits::of("isolated", &none).databases, Some(4 * GB));
        let mine = Limits { custom: Some(5), ..Limits::default() };
        let set = BTreeMap::from([("standard".to_owned(), mine), ("mine".to_owned(), mine)]);
        assert_eq!((Limits::of("standard", &set), Limits::of("mine", &set)), (mine, mine));
    }

    #[test]
    fn the_stream_is_stopped_at_the_byte_that_is_too_much_and_both_figures_are_told() {
        let cancel = Cancel::new();
        let metered = Metered::new(&Silent, &cancel, Some(10 * GB));
        metered.done(1, 10 * GB);
        assert!(!cancel.is_cancelled());
        metered.judge("standard", Ok(())).unwrap();
        metered.done(1, 1);
        assert!(cancel.is_cancelled());
        let e = metered.judge("standard", cancel.check()).unwrap_err();
        assert_eq!(e.code(), Code::BackupTooLarge);
        assert!(e.message().contains("the 10 GB limit") && e.message().contains("at least 10.01 GB"), "{e}");
        let free = Metered::new(&Silent, &cancel, None);
        free.done(1, u64::MAX);
        free.judge("default", Ok(())).unwrap();
    }

    #[test]
    fn an_automatic_point_that_is_too_large_is_taken_and_restored_once_the_plan_is_raised() {
        use crate::{BackupRequest, RestoreRequest, Selector, Setup};
        let dir = tempfile::tempdir().unwrap();
        let (app, state) = (dir.path().join("app"), dir.path().join("state"));
        for folder in [&app, &state] {
            std::fs::create_dir(folder).unwrap();
        }
        std::fs::write(app.join("file"), [7; 5_000]).unwrap();
        std::fs::write(state.join("backstay.toml"), "[plans.small]\nautomatic = \"4kB\"\n").unwrap();
        let engine = Engine::new(Setup { state: Some(state), ..Setup::default() }).unwrap();
        let back_up = |origin| {
            let request = BackupRequest { origin, ..BackupRequest::of(&app) };
            engine.backup(&request, &Silent, &Cancel::new()).unwrap().point.point
        };
        let point = back_up(Origin::Automatic);
        let plan = |plan: &str| {
            engine
                .app_set(&point.app, &mut |config| {
                    config.plan = plan.to_owned();
                    Ok(())
                })
                .unwrap();
        };
        let restore = |to: &str| {
            let request = RestoreRequest { app: point.app.as_str(), point: &Selector::Latest(0), paths: &[] };
            engine.restore_to_directory(&request, &dir.path().join(to), &Silent, &Cancel::new())
        };
        plan("small");
        let e = restore("out").unwrap_err();
        assert_eq!(e.code(), Code::BackupTooLarge, "{e:?}");
        assert!(
            e.message().contains("was taken but cannot be restored") && !dir.path().join("out").exists(),
            "{e}"
        );
        plan("default");
        restore("out").unwrap();
        plan("small");
        back_up(Origin::Manual);
        restore("out2").unwrap();
    }
}
