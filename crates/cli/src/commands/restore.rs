//! `backstay restore` and `backstay undo`
//!
//! Invariants: an app is changed only after its plan was shown and agreed to. What is carried out is planned anew from
//! the app as it is then; the point agreed to is named by its id, whatever `latest` means by now.

use std::path::Path;

use backstay_engine::{
    ArchiveSource, Elsewhere, Engine, InPlace, InPlaceReport, NewHome, RestorePlan, RestoreReport,
    RestoreRequest, Selector,
};
use backstay_model::{AppName, Code, Error, Result};

use super::{archive, places, plan_text};
use crate::args;
use crate::ask;
use crate::failure::{partial, say};
use crate::out::Out;
use crate::progress::Meter;
use crate::signals;
use crate::text::{count, duration, size, time};

/// Restores a point: over its app, over another, as a new app, or out into a folder.
pub fn run(engine: &Engine, args: &args::Restore, out: &mut Out) -> Result<u8> {
    let to = args.to.as_deref().map(str::parse::<AppName>).transpose()?;
    let known = match &to {
        Some(name) => engine.apps()?.iter().any(|a| a.name == *name && a.home.is_some()),
        None => false,
    };
    let archive = match archive::source(engine, args.file.as_deref(), &args.from)? {
        Some(archive) => Some(archive),
        None => custom_backup(engine, args)?,
    };
    let Some(archive) = archive else {
        let named = args.point.as_deref().unwrap_or("latest");
        let point = engine.selector(args.app.as_deref().unwrap_or_default(), named)?;
        let app = args.app.as_deref().unwrap_or_default();
        let request = RestoreRequest { app, point: &point, paths: &args.paths };
        return restore(engine, &request, (to.as_ref(), known), args, out);
    };
    let app = args.app.as_deref().map(str::parse::<AppName>).transpose()?;
    // What cannot be done is told before anything is brought in.
    if args.directory.is_some() || (to.is_some() && !known) {
        refuse_dry_run(args)?;
    } else if let Some(app) = app.as_ref().filter(|_| to.is_none())
        && !engine.apps()?.iter().any(|a| a.name == *app)
    {
        return Err(Error::new(Code::AppNotFound, format!("There is no app `{app}`"))
            .advise("`--to NAME` makes a new app of the archive, `--directory DIR` brings its files out."));
    }
    let report = archive::bring_in(engine, &archive, &args.from, app.as_ref())?;
    say(archive::imported(&report));
    archive::tell(&report);
    let point = Selector::Id(report.point.point.id.to_string());
    let request = RestoreRequest { app: report.point.point.app.as_str(), point: &point, paths: &args.paths };
    let status = restore(engine, &request, (to.as_ref(), known), args, out)?;
    Ok(match archive::sealed(&report) {
        Some(sealed) if status == 0 => sealed,
        _ => status,
    })
}

/// The custom backup that the words of a restore name, where they name one.
fn custom_backup(engine: &Engine, args: &args::Restore) -> Result<Option<ArchiveSource>> {
    let (Some(app), Some(point)) = (&args.app, &args.point) else { return Ok(None) };
    engine.find_custom(app, point)?.map(|custom| engine.archive_of(&custom)).transpose()
}

/// Restores a point of the vault.
fn restore(
    engine: &Engine,
    request: &RestoreRequest<'_>,
    (to, known): (Option<&AppName>, bool),
    args: &args::Restore,
    out: &mut Out,
) -> Result<u8> {
    let elsewhere = places::read(&args.beside.databases)?;
    match (to, args.directory.as_deref()) {
        (Some(name), home) if !known => {
            let how = NewHome {
                home,
                databases: args.beside.with_databases,
                elsewhere: &elsewhere,
                settings: !args.beside.content_only,
            };
            new_app(engine, request, name, &how, args, out)
        }
        (Some(_), Some(_)) => {
            Err(Error::new(Code::Usage, "--directory goes with --to only for the home of a new app"))
        }
        (None, Some(_)) if args.beside.with_databases => {
            Err(Error::new(Code::Usage, "--with-databases is for apps, not for folders").advise(
                "`backstay cat APP POINT` and `backstay export` bring the dumps out. With --to NAME the folder becomes a new app.",
            ))
        }
        (None, Some(directory)) => to_directory(engine, request, directory, args, out),
        (target, None) => in_place(engine, request, target, &elsewhere, args, out),
    }
}

fn to_directory(
    engine: &Engine,
    request: &RestoreRequest<'_>,
    directory: &Path,
    args: &args::Restore,
    out: &mut Out,
) -> Result<u8> {
    refuse_dry_run(args)?;
    let cancel = signals::watch()?;
    let report = {
        let meter = Meter::start();
        engine.restore_to_directory(request, directory, &meter, &cancel)?
    };
    show_filled(&report, out)
}

fn new_app(
    engine: &Engine,
    request: &RestoreRequest<'_>,
    name: &AppName,
    how: &NewHome<'_>,
    args: &args::Restore,
    out: &mut Out,
) -> Result<u8> {
    refuse_dry_run(args)?;
    let cancel = signals::watch()?;
    let report = {
        let meter = Meter::start();
        engine.restore_to_new_app(request, name, how, &meter, &cancel)?
    };
    let status = show_filled(&report, out)?;
    say(format!(
        "`{name}` is an app of its own now. It is not started: `backstay app set {name}` says how it runs."
    ));
    Ok(status)
}

/// A restore into a place of its own replaces nothing: there is no plan to show.
fn refuse_dry_run(args: &args::Restore) -> Result<()> {
    if !args.dry_run {
        return Ok(());
    }
    Err(backstay_model::Error::new(Code::Usage, "--dry-run is for restores over an app").advise(
        "A restore into a new folder or a new app replaces nothing. `backstay files APP POINT -r` shows what it would bring.",
    ))
}

fn in_place(
    engine: &Engine,
    request: &RestoreRequest<'_>,
    target: Option<&AppName>,
    elsewhere: &[Elsewhere],
    args: &args::Restore,
    out: &mut Out,
) -> Result<u8> {
    let how = InPlace {
        target,
        safety_point: !args.no_safety_point,
        undo_on_unhealthy: args.undo_on_unhealthy.then_some(true),
        databases: args.beside.with_databases,
        elsewhere,
        settings: !args.beside.content_only,
    };
    let cancel = signals::watch()?;
    let plan = |request: &RestoreRequest<'_>| {
        let meter = Meter::start();
        engine.plan_restore(request, &how, &meter, &cancel)
    };
    if args.dry_run {
        return show_plan(&plan(request)?, out);
    }
    if args.yes {
        let meter = Meter::start();
        let report = engine.restore_in_place(request, &how, &meter, &cancel)?;
        drop(meter);
        return show_done(&report, out);
    }
    let shown = plan(request)?;
    agree(&shown)?;
    let this = shown.point.as_ref().map(|p| Selector::Id(p.point.id.to_string()));
    let request = RestoreRequest { point: this.as_ref().unwrap_or(request.point), ..*request };
    let report = {
        let meter = Meter::start();
        engine.restore_in_place(&request, &how, &meter, &cancel)?
    };
    show_done(&report, out)
}

/// Takes the last restore of an app back, or the last undo.
pub fn undo(engine: &Engine, args: &args::Undo, out: &mut Out) -> Result<u8> {
    let how = InPlace { safety_point: !args.no_safety_point, ..InPlace::default() };
    let cancel = signals::watch()?;
    let plan = || {
        let meter = Meter::start();
        engine.plan_undo(&args.app, &how, &meter, &cancel)
    };
    if args.dry_run {
        return show_plan(&plan()?, out);
    }
    if !args.yes {
        agree(&plan()?)?;
    }
    let report = {
        let meter = Meter::start();
        engine.undo(&args.app, &how, &meter, &cancel)?
    };
    show_done(&report, out)
}

fn show_plan(plan: &RestorePlan, out: &mut Out) -> Result<u8> {
    out.either(plan, plan_text::plan)?;
    Ok(if plan.changes.conflicts.is_empty() { 0 } else { Code::Conflict.exit() })
}

/// Shows a plan and asks.
fn agree(plan: &RestorePlan) -> Result<()> {
    say(plan_text::plan(plan).trim_end());
    if plan.is_empty() && plan.changes.conflicts.is_empty() {
        return Ok(());
    }
    ask::confirm(&format!("Change `{}` as shown?", plan.app), false)
}

fn show_done(report: &InPlaceReport, out: &mut Out) -> Result<u8> {
    out.either(report, plan_text::done)?;
    out.finish()?;
    if report.plan.is_empty() {
        return Ok(0);
    }
    if let Some(safety) = report.safety.as_ref().filter(|_| !report.taken_back) {
        say(format!(
            "What was there before is point {}. To take this back: backstay undo {}",
            safety.point.id.short(),
            report.plan.app
        ));
    }
    for note in plan_text::notes(&report.problems) {
        say(format!("note: {note}"));
    }
    let failures = report.failures();
    if report.taken_back {
        say(format!("warning: `{}` did not work afterwards: everything was taken back", report.plan.app));
        return Ok(Code::HealthCheckFailed.exit());
    }
    if failures.is_empty() {
        return Ok(0);
    }
    let n = u64::try_from(failures.len()).unwrap_or(u64::MAX);
    Ok(partial(&format!("the app is at the point, with {}", count(n, "problem")), &failures))
}

fn show_filled(report: &RestoreReport, out: &mut Out) -> Result<u8> {
    out.either(report, filled)?;
    out.finish()?;
    for note in report.problems.iter().filter(|p| !p.kind.is_failure()).take(5) {
        match note.path.as_str() {
            "" => say(format!("note: {}", note.detail)),
            path => say(format!("note: {path}: {}", note.detail)),
        }
    }
    let failures = report.failures();
    if failures.is_empty() {
        return Ok(0);
    }
    let n = u64::try_from(failures.len()).unwrap_or(u64::MAX);
    Ok(partial(&format!("the folder is not complete: {}", count(n, "problem")), &failures))
}

fn filled(report: &RestoreReport) -> String {
    let point = &report.point.point;
    let took = duration(std::time::Duration::try_from_secs_f64(report.seconds).unwrap_or_default());
    format!(
        "Point {} of {} ({}) is in {}: {}, {}, {took}",
        point.id.short(),
        point.app,
        time(point.time),
        report.directory,
        count(report.counts.files, "file"),
        size(report.counts.bytes),
    )
}
