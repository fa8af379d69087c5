//! `backstay list`, `show`, `files`, `cat`, `diff`, `delete`, `pin`, `unpin`, `verify`

use std::io::Write as _;

use backstay_engine::{
    Change, Compared, CustomView, DamagedSnapshot, Difference, Engine, FileEntry, Listing, PointDetails,
    PointOrCustom, PointRecord, Selector, Waiting, problem_name, shown_path,
};
use backstay_model::{Cancel, Code, Error, Origin, Problem, ProblemKind, Result};
use serde::Serialize;

use crate::commands::backup::saved;
use crate::commands::custom::{self, status};
use crate::failure::{partial, say};
use crate::out::Out;
use crate::progress::Meter;
use crate::text::{Table, count, number, size, time};
use crate::{args, ask, signals};

#[derive(Serialize)]
struct OnePoint<'a> {
    point: &'a PointRecord,
}

#[derive(Serialize)]
struct Diff<'a> {
    #[serde(flatten)]
    compared: &'a Compared,
    differences: &'a [Difference],
}

/// One word for people.
pub fn origin(origin: Origin) -> &'static str {
    match origin {
        Origin::Automatic => "automatic",
        Origin::Manual => "manual",
        Origin::Safety => "safety",
        Origin::Imported => "imported",
        Origin::Foreign => "foreign",
        _ => "other",
    }
}

/// All points, or those of one app.
pub fn list(engine: &Engine, app: Option<&str>, removed: bool, out: &mut Out) -> Result<u8> {
    let listing = match removed && app.is_none() {
        true => engine.list_with_removed()?,
        false => engine.list(app)?,
    };
    if listing.points.is_empty() && listing.custom.is_empty() {
        match app {
            Some(app) => say(format!("App `{app}` has no points in the state {}.", engine.state().display())),
            None => say(format!(
                "No points yet: the state {} is empty. `backstay backup PATH` takes the first one.",
                engine.state().display()
            )),
        }
    }
    out.either(&listing, table)?;
    out.finish()?;
    if listing.of_removed_apps > 0 {
        let points = count(u64::try_from(listing.of_removed_apps).unwrap_or(u64::MAX), "point");
        say(format!("note: {points} of removed apps not shown (`backstay list --removed`)."));
    }
    if listing.damaged.is_empty() {
        return Ok(0);
    }
    let lost = |d: &DamagedSnapshot| Problem {
        path: format!("snapshots/{}", d.snapshot),
        kind: ProblemKind::Lost,
        detail: d.reason.clone(),
    };
    let lost: Vec<Problem> = listing.damaged.iter().map(lost).collect();
    Ok(partial("snapshots in the vault that cannot be read; `backstay vault check` says more", &lost))
}

/// Points and custom backups, newest first.
fn table(listing: &Listing) -> String {
    let foreign = listing.points.iter().any(|r| r.point.origin == Origin::Foreign);
    let mut headings = vec!["APP", "POINT", "TIME", "ORIGIN", "STATUS", " FILES", " SIZE", " ADDED", "NOTE"];
    let last = match (foreign, listing.custom.is_empty()) {
        (false, true) => None,
        (true, true) => Some("FROM"),
        (_, false) => Some("WHERE"),
    };
    headings.extend(last);
    let points = listing.points.iter().map(|r| (r.point.time, r.point.id, point_cells(r, last.is_some())));
    let custom = listing.custom.iter().map(|v| (v.custom.time, v.custom.id, custom_cells(v)));
    let mut rows: Vec<_> = points.chain(custom).collect();
    rows.sort_by_key(|(time, id, _)| std::cmp::Reverse((*time, *id)));
    if rows.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&headings);
    for (_, _, cells) in rows {
        table.row(cells);
    }
    table.to_string()
}

fn point_cells(record: &PointRecord, with_place: bool) -> Vec<String> {
    let point = &record.point;
    let mut cells = vec![
        point.app.to_string(),
        point.id.short(),
        time(point.time),
        origin(point.origin).to_owned(),
        status(point.status).to_owned(),
        number(point.files),
        size(point.bytes),
        size(point.added_bytes),
        if point.pinned { "pinned".to_owned() } else { String::new() },
    ];
    if point.origin == Origin::Foreign {
        let paths: Vec<String> = record.paths.iter().map(|p| p.escape_debug().to_string()).collect();
        cells.push(format!("{}:{}", record.host.escape_debug(), paths.join(",")));
    } else if with_place {
        cells.push("vault".to_owned());
    }
    cells
}

fn custom_cells(view: &CustomView) -> Vec<String> {
    let custom = &view.custom;
    vec![
        custom.app.to_string(),
        custom.id.short(),
        time(custom.time),
        custom::origin(custom.occasion).to_owned(),
        status(custom.status).to_owned(),
        number(custom.files),
        size(custom.bytes),
        size(custom.stored_bytes),
        custom::note(view),
        custom::place(view),
    ]
}

fn selector(text: &str) -> Result<Selector> {
    text.parse()
}

/// One point in detail.
pub fn show(engine: &Engine, at: &args::PointRef, out: &mut Out) -> Result<u8> {
    if let Some(view) = engine.find_custom(&at.app, &at.point)? {
        return custom::show(engine, view, out);
    }
    let details = engine.show(&at.app, &engine.selector(&at.app, &at.point)?)?;
    out.either(&details, details_text)?;
    Ok(0)
}

fn details_text(details: &PointDetails) -> String {
    let record = &details.point;
    let point = &record.point;
    let mut rows = vec![
        ("Point", point.id.to_string()),
        ("App", point.app.to_string()),
        ("Time", time(point.time)),
        ("Origin", origin(point.origin).to_owned()),
        ("Status", status(point.status).to_owned()),
        ("Pinned", if point.pinned { "yes" } else { "no" }.to_owned()),
        ("Files", number(point.files)),
        ("Size", format!("{} ({} bytes)", size(point.bytes), number(point.bytes))),
        ("Added", format!("{} to the vault", size(point.added_bytes))),
        ("Host", record.host.escape_debug().to_string()),
    ];
    rows.extend(record.paths.iter().map(|p| ("From", p.escape_debug().to_string())));
    rows.push(("Snapshot", point.snapshot.clone()));
    if let Some(manifest) = &details.manifest {
        rows.push(("Written by", manifest.program.clone()));
        rows.extend(
            manifest.archive.iter().map(|a| ("Archive", format!("{}, SHA-256 {}", a.name, a.sha256))),
        );
        rows.extend(manifest.databases.iter().map(|d| ("Database", saved(d))));
        rows.extend(manifest.waiting.iter().map(|w| ("Database", waiting(w))));
        rows.extend(manifest.sqlite.iter().map(|path| ("SQLite", path.clone())));
        let several = !manifest.databases.is_empty() || !manifest.sqlite.is_empty();
        if several || manifest.consistency == "snapshot" {
            rows.push(("Moment", manifest.consistency.clone()));
        }
        let shown = manifest.problems.iter().take(100);
        rows.extend(shown.map(|p| ("Note", format!("{}: {} ({})", p.path, problem_name(p.kind), p.detail))));
        if manifest.problems.len() > 100 {
            rows.push(("Note", format!("and {} more (--json shows all)", manifest.problems.len() - 100)));
        }
    }
    rows.iter().map(|(name, value)| format!("{name:<12}{value}\n")).collect()
}

/// A database that a point does not have, and the one that has it.
fn waiting(it: &Waiting) -> String {
    format!("{}: not in this point, the last one that has it is {}", it.connection, it.point.short())
}

/// The entries of a folder in a point. Long lists are written as they are read.
pub fn files(engine: &Engine, args: &args::Files, out: &mut Out) -> Result<u8> {
    let json = out.json;
    if json {
        write!(out, "{{\"files\":[").or_else(|e| written(e, out))?;
    }
    let mut first = true;
    let at = selector(&args.at.point)?;
    let mut each = |entry: FileEntry| -> Result<bool> {
        if json {
            let comma = if std::mem::take(&mut first) { "" } else { "," };
            let text = serde_json::to_string(&entry)
                .map_err(|e| Error::new(Code::Internal, "The result cannot be written as JSON").because(e))?;
            write!(out, "{comma}\n{text}").or_else(|e| written(e, out))?;
        } else {
            out.line(file_line(&entry))?;
        }
        Ok(!out.gone())
    };
    engine.files(&args.at.app, &at, args.path.as_deref(), args.recursive, &mut each)?;
    if json {
        out.line("\n]}")?;
    }
    Ok(0)
}

fn written(e: std::io::Error, out: &Out) -> Result<()> {
    if out.gone() {
        Ok(())
    } else {
        Err(Error::new(Code::System, "Cannot write to standard output").because(e))
    }
}

fn file_line(entry: &FileEntry) -> String {
    let slash = if entry.kind == "folder" { "/" } else { "" };
    let arrow = entry.target.as_ref().map(|t| format!(" -> {t}")).unwrap_or_default();
    let size = if entry.kind == "file" { number(entry.size) } else { entry.kind.to_owned() };
    let modified = entry.modified.map(time).unwrap_or_default();
    format!("{} {size:>15}  {modified:<19}  {}{slash}{arrow}", entry.mode, entry.path)
}

/// One file to standard output, as it is.
pub fn cat(engine: &Engine, args: &args::Cat, out: &mut Out) -> Result<u8> {
    engine.cat(&args.at.app, &selector(&args.at.point)?, &args.path, out)?;
    Ok(0)
}

/// What differs between two points.
pub fn diff(engine: &Engine, args: &args::Diff, out: &mut Out) -> Result<u8> {
    let (from, to) = (selector(&args.from)?, selector(&args.to)?);
    let cancel = signals::watch()?;
    let json = out.json;
    let mut all = Vec::new();
    let mut each = |difference: Difference| -> Result<()> {
        if json {
            all.push(difference);
            return Ok(());
        }
        if out.gone() {
            cancel.cancel();
        }
        out.line(difference_line(&difference))
    };
    let compared = engine.diff(&args.app, (&from, &to), &cancel, &mut each);
    if out.gone() {
        return Ok(0);
    }
    let compared = compared?;
    if json {
        out.value(&Diff { compared: &compared, differences: &all })?;
    }
    out.finish()?;
    let totals = &compared.totals;
    say(format!(
        "From {} ({}) to {} ({}): {} added, {} removed, {} changed",
        compared.from.point.id.short(),
        time(compared.from.point.time),
        compared.to.point.id.short(),
        time(compared.to.point.time),
        number(totals.added),
        number(totals.removed),
        number(totals.changed),
    ));
    if totals.problems.is_empty() {
        return Ok(0);
    }
    Ok(partial("some folders could not be compared", &totals.problems))
}

fn difference_line(difference: &Difference) -> String {
    let sign = match difference.change {
        Change::Added => '+',
        Change::Removed => '-',
        Change::Content => 'M',
        Change::Metadata => 'm',
        Change::Kind => 'T',
    };
    let slash = if difference.kind == "dir" { "/" } else { "" };
    let sizes = match (difference.size_before, difference.size_after) {
        (Some(before), Some(after)) if before != after => format!("  ({} -> {})", size(before), size(after)),
        _ => String::new(),
    };
    format!("{sign}  {}{slash}{sizes}", shown_path(difference))
}

/// Deletes a point after asking.
pub fn delete(engine: &Engine, args: &args::Delete, out: &mut Out) -> Result<u8> {
    let found = match engine.point_or_custom(&args.at.app, &args.at.point)? {
        PointOrCustom::Point(found) => found,
        PointOrCustom::Custom(view) => return custom::delete(engine, *view, args.yes, out),
    };
    let point = &found.point;
    ask::confirm(
        &format!("Delete point {} of {} from {} for good?", point.id.short(), point.app, time(point.time)),
        args.yes,
    )?;
    // What was agreed to is this very point, whatever `latest` means by now.
    let this = Selector::Id(point.id.to_string());
    let deleted = engine.delete(&args.at.app, &this, &signals::watch()?)?;
    say(format!("Point {} deleted. `backstay vault prune` frees its space.", deleted.point.id.short()));
    if out.json {
        out.value(&OnePoint { point: &deleted })?;
    }
    Ok(0)
}

/// Pins a point, or takes the pin away.
pub fn pin(engine: &Engine, at: &args::OnePoint, pinned: bool, out: &mut Out) -> Result<u8> {
    let record = engine.pin(&at.app, &selector(&at.point)?, pinned, &Cancel::new())?;
    let word = if pinned { "is pinned: it stays whatever its age" } else { "is not pinned" };
    say(format!("Point {} {word}.", record.point.id.short()));
    if out.json {
        out.value(&OnePoint { point: &record })?;
    }
    Ok(0)
}

/// Reads all data of a point.
pub fn verify(engine: &Engine, at: &args::PointRef, out: &mut Out) -> Result<u8> {
    if let Some(view) = engine.find_custom(&at.app, &at.point)? {
        return custom::verify(engine, view, out);
    }
    let cancel = signals::watch()?;
    let report = {
        let meter = Meter::start();
        engine.verify(&at.app, &engine.selector(&at.app, &at.point)?, &meter, &cancel)?
    };
    out.either(&report, |r| {
        let point = &r.point.point;
        let read = format!("{} and {} read", count(r.files, "file"), size(r.bytes));
        match r.problems.len() {
            0 => format!("Point {} of {} is whole: {read}", point.id.short(), point.app),
            _ => format!("Point {} of {} is NOT whole: {read}", point.id.short(), point.app),
        }
    })?;
    if report.problems.is_empty() {
        return Ok(0);
    }
    out.finish()?;
    let n = u64::try_from(report.problems.len()).unwrap_or(u64::MAX);
    partial(
        &format!("{} of the point lost or damaged; everything else is whole", count(n, "path")),
        &report.problems,
    );
    Ok(Code::VaultDamaged.exit())
}
