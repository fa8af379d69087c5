//! Custom backups: `backstay backup --container`, `list --container`, `download`, and what `show`, `verify` and `delete` do
//! with them.

use backstay_engine::{
    ContainerListing, CustomDetails, CustomReport, CustomRequest, CustomVerify, CustomView, Engine,
    PointOrCustom, UnreadableBackup, problem_name,
};
use backstay_model::{AppName, Code, Error, Occasion, PointStatus, Problem, ProblemKind, Result, Signer};
use serde::Serialize;

use crate::commands::{archive, backup};
use crate::failure::{self, partial, say};
use crate::out::Out;
use crate::progress::Meter;
use crate::text::{Table, count, duration, number, size, time};
use crate::{args, ask, signals};

#[derive(Serialize)]
struct One<'a> {
    custom: &'a CustomView,
}

/// One word for people.
pub fn origin(occasion: Occasion) -> &'static str {
    match occasion {
        Occasion::Manual => "custom",
        Occasion::Scheduled => "scheduled",
    }
}

/// One word for people.
pub fn status(status: PointStatus) -> &'static str {
    match status {
        PointStatus::Succeeded => "succeeded",
        PointStatus::PartiallySucceeded => "partial",
    }
}

/// Where a backup lies: the container's name, or its address, and the backup's name.
pub fn place(view: &CustomView) -> String {
    let container = view.container_name.as_deref().unwrap_or(&view.custom.container);
    format!("{container}:{}", view.custom.name)
}

/// What is to be noted of a backup in a list.
pub fn note(view: &CustomView) -> String {
    let mut notes = Vec::new();
    match view.custom.signer {
        Signer::ThisServer => {}
        Signer::Unknown => notes.push("signed by another server".to_owned()),
        Signer::Nobody => notes.push("not signed".to_owned()),
    }
    notes.extend(view.keep_until.map(|until| format!("kept until {}", time(until))));
    notes.join(", ")
}

/// Takes a custom backup and says what it holds.
pub fn take(engine: &Engine, args: &args::Backup, container: &str, out: &mut Out) -> Result<u8> {
    let named = args.app.as_deref().map(str::parse::<AppName>).transpose()?;
    let seal = archive::seal_by(&args.seal)?;
    let cancel = signals::watch()?;
    let report = {
        let meter = Meter::start();
        let request = CustomRequest {
            target: &args.target,
            named: named.as_ref(),
            container,
            name: args.name.as_deref(),
            seal: &seal,
            databases: !args.no_databases,
            occasion: Occasion::Manual,
        };
        engine.custom_backup(&request, &meter, &cancel)?
    };
    out.either(&report, text)?;
    out.finish()?;
    let app = &report.custom.app;
    if report.revived {
        say(format!("App `{app}` had been removed; it is protected again."));
    } else if report.new_app {
        say(format!("{} is app `{app}` from now on.", report.home));
    }
    if let Some(places) = &report.first_run {
        backup::tell_first_run(backup::FIRST, places);
    }
    if args.seal.plain_settings {
        say("note: whoever has the zip can read the app's settings");
    }
    for name in &report.cleared {
        say(format!("note: what a backup that was stopped had left of {name} was removed"));
    }
    if let Some(why) = &report.hook_failed {
        let job = report.job.short();
        say(format!(
            "warning: the backup is there, but what comes after it failed: {why} (`backstay job log {job}`)"
        ));
    }
    for left_out in report.problems.iter().filter(|p| !p.kind.is_failure()).take(5) {
        say(format!("note: {}: {} ({})", left_out.path, problem_name(left_out.kind), left_out.detail));
    }
    let failures = report.failures();
    if failures.is_empty() {
        return Ok(if report.hook_failed.is_some() { Code::PartiallySucceeded.exit() } else { 0 });
    }
    let n = u64::try_from(failures.len()).unwrap_or(u64::MAX);
    Ok(partial(&format!("the backup is not complete: {}", count(n, "problem")), &failures))
}

fn text(report: &CustomReport) -> String {
    let custom = &report.custom;
    let took = duration(std::time::Duration::try_from_secs_f64(report.seconds).unwrap_or_default());
    let mut lines = format!(
        "Custom backup {} of {} taken in {took}: {}, {}, {} in {}\n",
        custom.name,
        custom.app,
        count(custom.files, "file"),
        size(custom.bytes),
        size(custom.stored_bytes),
        report.container,
    );
    if report.filter.left_out > 0 {
        lines.push_str(&format!("{} left out by the filter\n", count(report.filter.left_out, "path")));
    }
    lines
}

/// What lies in a container.
pub fn list(engine: &Engine, app: Option<&str>, container: &str, out: &mut Out) -> Result<u8> {
    let mut listing = engine.list_container(container)?;
    if let Some(app) = app {
        listing.custom.retain(|v| v.custom.app.as_str() == app);
    }
    if listing.custom.is_empty() {
        let of = app.map(|app| format!(" of app `{app}`")).unwrap_or_default();
        say(format!("No backups{of} in {}.", listing.container));
    }
    out.either(&listing, |l| if l.custom.is_empty() { String::new() } else { table(l) })?;
    out.finish()?;
    for name in &listing.unfinished {
        say(format!(
            "note: {name} has no manifest: it is being written, or was stopped; the next backup clears it"
        ));
    }
    if listing.damaged.is_empty() {
        return Ok(0);
    }
    let lost = |d: &UnreadableBackup| Problem {
        path: d.name.clone(),
        kind: ProblemKind::Lost,
        detail: format!("{} ({})", d.reason, d.code),
    };
    let lost: Vec<Problem> = listing.damaged.iter().map(lost).collect();
    Ok(partial("backups that cannot be read", &lost))
}

fn table(listing: &ContainerListing) -> String {
    let mut table = Table::new(&[
        "APP", "POINT", "TIME", "ORIGIN", "STATUS", " FILES", " SIZE", " STORED", "NAME", "NOTE",
    ]);
    for view in &listing.custom {
        let custom = &view.custom;
        table.row([
            custom.app.to_string(),
            custom.id.short(),
            time(custom.time),
            origin(custom.occasion).to_owned(),
            status(custom.status).to_owned(),
            number(custom.files),
            size(custom.bytes),
            size(custom.stored_bytes),
            custom.name.clone(),
            note(view),
        ]);
    }
    table.to_string()
}

/// One backup in detail.
pub fn show(engine: &Engine, view: CustomView, out: &mut Out) -> Result<u8> {
    let details = engine.custom_show(view)?;
    out.either(&details, details_text)?;
    Ok(0)
}

fn details_text(details: &CustomDetails) -> String {
    let custom = &details.view.custom;
    let signed = match custom.signer {
        Signer::ThisServer => "by this server".to_owned(),
        Signer::Unknown => format!("by another server (key {})", details.key.as_deref().unwrap_or("")),
        Signer::Nobody => "by nobody".to_owned(),
    };
    let mut rows = vec![
        ("Backup", custom.name.clone()),
        ("Point", custom.id.to_string()),
        ("App", custom.app.to_string()),
        ("Time", time(custom.time)),
        ("Origin", origin(custom.occasion).to_owned()),
        ("Status", status(custom.status).to_owned()),
        ("Kept until", details.view.keep_until.map_or_else(|| "deleted".to_owned(), time)),
        ("Files", number(custom.files)),
        ("Size", format!("{} ({} bytes)", size(custom.bytes), number(custom.bytes))),
        ("Zip", format!("{} ({} bytes)", size(custom.stored_bytes), number(custom.stored_bytes))),
        ("SHA-256", details.sha256.clone()),
        ("Signed", signed),
        (
            "Settings",
            details.settings.map_or("none", |s| if s == "recipients" { "sealed" } else { s }).to_owned(),
        ),
        ("Container", details.view.container_name.clone().unwrap_or_else(|| "-".to_owned())),
        ("Address", custom.container.clone()),
        ("Host", custom.host.escape_debug().to_string()),
        ("From", custom.home.escape_debug().to_string()),
        ("Written by", details.program.clone()),
    ];
    rows.extend(details.databases.iter().map(|d| ("Database", d.escape_debug().to_string())));
    let shown = details.problems.iter().take(100);
    rows.extend(shown.map(|p| ("Note", format!("{}: {} ({})", p.path, problem_name(p.kind), p.detail))));
    if details.problems.len() > 100 {
        rows.push(("Note", format!("and {} more (--json shows all)", details.problems.len() - 100)));
    }
    rows.iter().map(|(name, value)| format!("{name:<12}{value}\n")).collect()
}

/// Reads every byte of a backup.
pub fn verify(engine: &Engine, view: CustomView, out: &mut Out) -> Result<u8> {
    let cancel = signals::watch()?;
    let report = {
        let meter = Meter::start();
        engine.custom_verify(view, &meter, &cancel)?
    };
    out.either(&report, verified)?;
    if report.whole {
        return Ok(0);
    }
    out.finish()?;
    let error =
        Error::new(Code::ArchiveDamaged, format!("{} is not what was written", report.view.custom.name))
            .advise("Nothing of it is restored. Use another backup; `backstay list` shows them.");
    say(failure::text(&error));
    Ok(error.code().exit())
}

fn verified(report: &CustomVerify) -> String {
    let custom = &report.view.custom;
    let how = if report.whole { "is whole" } else { "is NOT whole" };
    let signed = match report.signed_by {
        Some(Signer::ThisServer) => ", signed by this server",
        Some(Signer::Unknown) => ", signed by another server",
        Some(Signer::Nobody) => ", not signed",
        None => "",
    };
    let mut lines = format!("{} of {} {how}{signed}\n", custom.name, custom.app);
    for finding in report.findings.iter().take(100) {
        let entry = if finding.entry.is_empty() { "the archive" } else { &finding.entry };
        lines.push_str(&format!("  {entry}: {}\n", finding.detail));
    }
    if report.findings.len() > 100 {
        lines.push_str(&format!("  and {} more (--json shows all)\n", report.findings.len() - 100));
    }
    lines
}

/// Deletes a backup after asking.
pub fn delete(engine: &Engine, view: CustomView, yes: bool, out: &mut Out) -> Result<u8> {
    let custom = &view.custom;
    let from = view.container_name.as_deref().unwrap_or(&custom.container).to_owned();
    ask::confirm(
        &format!("Delete {} of {} from {}, {} for good?", custom.name, custom.app, time(custom.time), from),
        yes,
    )?;
    let deleted = engine.custom_delete(view, &signals::watch()?)?;
    say(format!("{} deleted from {from}.", deleted.custom.name));
    if out.json {
        out.value(&One { custom: &deleted })?;
    }
    Ok(0)
}

/// Copies a backup out.
pub fn download(engine: &Engine, args: &args::Download, out: &mut Out) -> Result<u8> {
    let PointOrCustom::Custom(view) = engine.point_or_custom(&args.at.app, &args.at.point)? else {
        let message = format!("{} is a point of the vault, not a custom backup", args.at.point);
        return Err(Error::new(Code::InvalidValue, message)
            .advise("`backstay restore APP POINT --directory DIR` brings out a point of the vault."));
    };
    let cancel = signals::watch()?;
    let done = {
        let meter = Meter::start();
        engine.custom_download(*view, &args.directory, &meter, &cancel)?
    };
    out.either(&done, |d| d.files.join("\n"))?;
    Ok(0)
}
