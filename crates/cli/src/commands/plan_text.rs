//! How the plan of a restore in place reads, and what was done.
//!
//! Invariants: pure; names come escaped. Long lists are cut, and the line that cuts says how to see all.

use std::fmt::Write as _;
use std::time::Duration;

use backstay_engine::change::{Action, ChangePlan, Extent, Step};
use backstay_engine::{DatabasePlan, InPlaceReport, Kind, PointRecord, RestorePlan, SettingsDiff, escape};
use backstay_model::{Origin, Problem, ProblemKind};

use crate::text::{count, duration, number, size, time};

/// Lines of each list that are shown.
const SHOWN: usize = 30;

/// A plan as text.
pub fn plan(plan: &RestorePlan) -> String {
    let mut text = format!("Restore of `{}` to {}\nin {}\n", plan.app, goal(plan), plan.home);
    let changes = &plan.changes;
    if plan.is_empty() {
        text.push_str("Nothing differs: there is nothing to do.\n");
    }
    list(&mut text, changes.steps.iter().map(step));
    let told = changes.metadata.iter().filter(|m| m.is_worth_telling());
    list(&mut text, told.map(|m| format!("  m  {}", home_or(&escape(m.path.as_os_str())))));
    if !changes.kept.is_empty() {
        text.push_str("Left as it is, because of the filter:\n");
        list(&mut text, changes.kept.iter().map(|k| format!("     {}", escape(k.path.as_os_str()))));
    }
    if !changes.left_out.is_empty() {
        text.push_str("Left as it is, because it is no part of the app or the point does not know it:\n");
        list(&mut text, changes.left_out.iter().map(|l| format!("     {}", escape(l.path.as_os_str()))));
    }
    if !changes.conflicts.is_empty() {
        text.push_str("In the way, so the restore would be refused:\n");
        let line =
            |c: &backstay_engine::change::Conflict| format!("  !  {}: {}", escape(c.path.as_os_str()), c.why);
        list(&mut text, changes.conflicts.iter().map(line));
    }
    text.push_str(&totals(changes));
    databases(&mut text, &plan.databases);
    if let Some(settings) = &plan.settings {
        settings_lines(&mut text, settings);
    }
    for note in notes(&changes.problems) {
        let _infallible = writeln!(text, "Note: {note}");
    }
    if !plan.is_empty() {
        if plan.stops {
            text.push_str("The app runs: it is stopped, and started again afterwards.\n");
        }
        text.push_str(if plan.safety_point {
            "What is there now is kept as a safety point first.\n"
        } else {
            "No safety point is taken: what is there now can be brought back only until the next restore.\n"
        });
    }
    text
}

/// What was done, as text.
pub fn done(report: &InPlaceReport) -> String {
    let plan = &report.plan;
    if plan.is_empty() {
        return format!("`{}` is at {} already: nothing was changed", plan.app, goal(plan));
    }
    let span = |seconds: f64| duration(Duration::try_from_secs_f64(seconds).unwrap_or_default());
    let mut text = match report.taken_back {
        false => format!("`{}` is at {}", plan.app, goal(plan)),
        true => format!("`{}` is as it was before", plan.app),
    };
    let files = tallies(&plan.changes);
    let files = if files.is_empty() { "no file changed" } else { &files };
    let _infallible = write!(text, ": {files}, {}", span(report.seconds));
    if !plan.databases.is_empty() {
        let names: Vec<String> = plan.databases.iter().map(|d| format!("`{}`", d.connection)).collect();
        let word = if names.len() == 1 { "database" } else { "databases" };
        let _infallible = write!(text, ", with the {word} of {}", names.join(", "));
    }
    if plan.settings.is_some() {
        text.push_str(", with settings");
    }
    if let Some(downtime) = report.downtime_seconds {
        let _infallible = write!(text, ", stopped for {}", span(downtime));
    }
    match report.healthy {
        Some(true) => text.push_str(", healthy"),
        Some(false) if !report.taken_back => text.push_str(", NOT HEALTHY"),
        _ => {}
    }
    text
}

fn databases(text: &mut String, databases: &[DatabasePlan]) {
    for database in databases {
        let tables = u64::try_from(database.tables).unwrap_or(u64::MAX);
        let _infallible = writeln!(
            text,
            "Database of `{}`, as it was at {}: {}, {}, {}, into {}",
            database.connection,
            time(database.snapshot),
            count(tables, "table"),
            count(database.rows, "row"),
            size(database.bytes),
            database.target
        );
        list(text, database.steps.iter().map(|step| format!("     {step}")));
    }
}

fn settings_lines(text: &mut String, settings: &SettingsDiff) {
    text.push_str("Settings and connection strings:\n");
    for (names, sign) in [(&settings.added, '+'), (&settings.changed, 'M'), (&settings.removed, '-')] {
        list(text, names.iter().map(|it| format!("  {sign}  {} ({})", it.name, it.kind)));
    }
}

/// What a person should hear of databases and settings, in sentences.
pub fn notes(problems: &[Problem]) -> impl Iterator<Item = String> + '_ {
    let told = |p: &&Problem| matches!(p.kind, ProblemKind::Told | ProblemKind::Dangling);
    problems.iter().filter(told).map(|p| match p.path.as_str() {
        "" => p.detail.clone(),
        path => format!("{path}: {}", p.detail),
    })
}

/// Where a plan leads, in words.
fn goal(plan: &RestorePlan) -> String {
    match &plan.point {
        Some(PointRecord { point, .. }) => {
            let of = if point.app == plan.app { String::new() } else { format!(" of `{}`", point.app) };
            let from = if point.origin == Origin::Imported { ", from an archive" } else { "" };
            format!("point {}{of} ({}{from})", point.id.short(), time(point.time))
        }
        None => "what its last restore replaced".to_owned(),
    }
}

/// What is to be done, as a line.
fn totals(changes: &ChangePlan) -> String {
    match tallies(changes).as_str() {
        "" => String::new(),
        tallies => format!("{tallies}; {} to write\n", size(changes.totals.stage_bytes)),
    }
}

/// How many entries are added, changed, removed.
fn tallies(changes: &ChangePlan) -> String {
    let t = &changes.totals;
    let mut parts = Vec::new();
    for (tally, word) in [(&t.added, "added"), (&t.changed, "changed"), (&t.removed, "removed")] {
        if tally.steps > 0 {
            parts.push(format!("{} {word}", number(tally.steps)));
        }
    }
    if t.metadata > 0 {
        parts.push(format!("{} with other metadata", t.metadata));
    }
    parts.join(", ")
}

fn list(text: &mut String, mut lines: impl Iterator<Item = String>) {
    for line in lines.by_ref().take(SHOWN) {
        text.push_str(&line);
        text.push('\n');
    }
    let rest = lines.count();
    if rest > 0 {
        let _infallible = writeln!(text, "     and {rest} more (--json shows all)");
    }
}

fn step(step: &Step) -> String {
    let path = escape(step.path.as_os_str());
    let slash = |e: Option<Extent>| if e.is_some_and(|e| e.kind == Kind::Dir) { "/" } else { "" };
    let of = |e: Option<Extent>| match e {
        Some(e) if e.kind == Kind::Dir => format!("{}, {}", count(e.files, "file"), size(e.bytes)),
        Some(e) if e.kind == Kind::File => size(e.bytes),
        Some(e) if e.kind == Kind::Symlink => "link".to_owned(),
        Some(_) => "special file".to_owned(),
        None => "unreadable".to_owned(),
    };
    match step.action {
        Action::Add => format!("  +  {path}{}  ({})", slash(step.after), of(step.after)),
        Action::Remove => format!("  -  {path}{}  ({})", slash(step.before), of(step.before)),
        Action::Replace if (step.before, step.after) == (None, None) => format!("  M  {path}"),
        Action::Replace => {
            format!("  M  {path}{}  ({} -> {})", slash(step.after), of(step.before), of(step.after))
        }
    }
}

fn home_or(path: &str) -> &str {
    if path.is_empty() { "(the home itself)" } else { path }
}
