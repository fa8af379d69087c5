//! `backstay backup`

use backstay_engine::{BackupReport, BackupRequest, Engine, Places, SavedDatabase, problem_name};
use backstay_model::{AppName, Code, Result};

use crate::args;
use crate::commands::{connection, custom};
use crate::failure::{partial, say};
use crate::out::Out;
use crate::progress::Meter;
use crate::signals;
use crate::text::{count, duration, number, size, time};

/// Takes a point and says what it holds.
pub fn run(engine: &Engine, args: &args::Backup, out: &mut Out) -> Result<u8> {
    if let Some(container) = &args.container {
        return custom::take(engine, args, container, out);
    }
    let name = args.app.as_deref().map(str::parse::<AppName>).transpose()?;
    let adopted = match args.no_databases {
        false => connection::before_first_backup(engine, (&args.target, name.as_ref()), args.yes)?,
        true => None,
    };
    let cancel = signals::watch()?;
    let mut report = {
        let meter = Meter::start();
        let request = BackupRequest {
            named: name.as_ref(),
            databases: !args.no_databases,
            ..BackupRequest::of(&args.target)
        };
        engine.backup(&request, &meter, &cancel)?
    };
    if let Some(adopted) = adopted {
        report.new_app = true;
        report.first_run = report.first_run.or(adopted.first_run);
    }
    out.either(&report, text)?;
    // The data is on its way before anything about it is said on the other stream.
    out.finish()?;
    tell_places(&report);
    let failures = report.failures();
    if let Some(why) = &report.hook_failed {
        say(format!(
            "warning: the point is there, but what comes after it failed: {why} (`backstay job log {}`)",
            report.job.short()
        ));
    }
    for left_out in report.problems.iter().filter(|p| !p.kind.is_failure()).take(5) {
        say(format!("note: {}: {} ({})", left_out.path, problem_name(left_out.kind), left_out.detail));
    }
    if failures.is_empty() {
        return Ok(if report.hook_failed.is_some() { Code::PartiallySucceeded.exit() } else { 0 });
    }
    let n = u64::try_from(failures.len()).unwrap_or(u64::MAX);
    Ok(partial(&format!("the point is not complete: {}", count(n, "problem")), &failures))
}

fn text(report: &BackupReport) -> String {
    let point = &report.point.point;
    let took = duration(std::time::Duration::try_from_secs_f64(report.seconds).unwrap_or_default());
    let mut lines = format!(
        "Point {} of {} taken in {took}: {}, {}, {} added to the vault\n",
        point.id.short(),
        point.app,
        count(point.files, "file"),
        size(point.bytes),
        size(point.added_bytes),
    );
    if !report.new_app {
        lines.push_str(&format!(
            "{} new, {} changed, {} unchanged\n",
            number(report.files_new),
            number(report.files_changed),
            number(report.files_unchanged)
        ));
    }
    if let Some(snapshot) = &report.snapshot {
        let at = time(snapshot.time);
        lines.push_str(&format!("Files as they were at {at}, from a snapshot of {}\n", snapshot.volume));
    }
    for database in &report.databases {
        lines.push_str(&format!("Database {}\n", saved(database)));
    }
    if let Some(filter) = report.filter.as_ref().filter(|f| f.left_out > 0) {
        lines.push_str(&format!("{} left out by the filter\n", count(filter.left_out, "path")));
    }
    lines
}

/// A database that is in a point, in a line.
pub fn saved(database: &SavedDatabase) -> String {
    let version = database.version.as_deref().unwrap_or(&database.kind);
    let of = format!("`{}` of connection `{}` ({version})", database.name, database.connection);
    match &database.dump {
        Some(dump) => {
            let rows: u64 = dump.tables.iter().map(|t| t.rows).sum();
            let tables = u64::try_from(dump.tables.len()).unwrap_or(u64::MAX);
            format!("{of}: {}, {}, {}", count(tables, "table"), count(rows, "row"), size(dump.bytes))
        }
        None => of,
    }
}

/// What a first run made, and what a person must know about it.
fn tell_places(report: &BackupReport) {
    let app = &report.point.point.app;
    if report.revived {
        say(format!("App `{app}` had been removed; it is protected again."));
    } else if report.new_app {
        say(format!("{} is app `{app}` from now on.", report.home));
    }
    let Some(places) = &report.first_run else { return };
    tell_made(FIRST, places);
    if report.vault_on_same_disk {
        say(
            "The vault lies on the same disk as the app: it does not survive that disk. To put it elsewhere:\n  \
             backstay vault copy DIR && backstay vault attach DIR      (or --vault DIR on a first backup)",
        );
    }
    tell_kit();
    say(format!(
        "To bring the app back:\n  backstay restore {app}      (into another folder: --directory DIR)"
    ));
}

/// Why something was made.
pub const FIRST: &str = "This was the first backup. Made for it";

/// What was made for a first backup.
fn tell_made(what: &str, places: &Places) {
    say(format!(
        "\n{what}:\n  state    {}\n  secrets  {}\n  vault    {}",
        places.state, places.secrets, places.vault
    ));
}

/// Why a kit is needed.
fn tell_kit() {
    say(
        "Keep a recovery kit away from this machine: without it, or the secrets, nobody can open the vault.\n  \
         backstay kit export FILE",
    );
}

/// The same where it was something about a container.
pub fn tell_first_run(what: &str, places: &Places) {
    tell_made(what, places);
    tell_kit();
}
