//! `backstay vault stats`, `check`, `repair`, `prune`, `unlock`, `copy`

use std::path::Path;

use backstay_engine::{Affected, CheckResult, Engine, Finding, PruneResult, RepairResult, VaultStats};
use backstay_model::{Code, Result};
use serde::Serialize;

use crate::failure::{more, say};
use crate::out::Out;
use crate::progress::Meter;
use crate::text::{count, number, size, time};
use crate::{ask, signals};

/// Findings, points and paths that are listed one by one; all of them are in the JSON.
const SHOWN: usize = 20;

#[derive(Serialize)]
struct Unlocked {
    locks_removed: usize,
}

fn many(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

/// Numbers about the vault.
pub fn stats(engine: &Engine, out: &mut Out) -> Result<u8> {
    let stats = engine.vault_stats(&Meter::start(), &signals::watch()?)?;
    out.either(&stats, stats_text)?;
    Ok(0)
}

fn stats_text(stats: &VaultStats) -> String {
    let s = &stats.stats;
    let rows = [
        ("Vault", stats.address.clone()),
        ("Id", stats.id.clone()),
        ("Points", format!("{} ({} of content in all)", number(s.snapshots), size(s.points.bytes))),
        ("Stored", format!("{} in {}", size(s.packs.bytes), count(s.packs.count, "pack"))),
        ("Dedup", format!("{:.1} times", s.dedup_factor)),
        ("Compression", format!("{:.2} times", s.compression_ratio)),
        ("Unused", format!("{} (`backstay vault prune` frees it)", size(s.unused.bytes + s.leftover.bytes))),
        ("Keys", number(s.keys)),
        ("Locks", number(s.locks)),
    ];
    rows.iter().map(|(name, value)| format!("{name:<12}{value}\n")).collect()
}

/// Checks the vault.
pub fn check(engine: &Engine, read_data: bool, out: &mut Out) -> Result<u8> {
    let cancel = signals::watch()?;
    let result = {
        let meter = Meter::start();
        engine.vault_check(read_data, &meter, &cancel)?
    };
    out.either(&result, |r| check_text(r, read_data))?;
    out.finish()?;
    for note in result.report.notes.iter().take(SHOWN) {
        say(format!("note: {}: {}", note.object, note.detail));
    }
    if result.clean {
        return Ok(0);
    }
    damaged("the vault is damaged", &result.report.errors, result.report.error_count, &result.affected);
    Ok(Code::VaultDamaged.exit())
}

fn check_text(result: &CheckResult, read_data: bool) -> String {
    let r = &result.report;
    let word = if result.clean { "The vault is clean" } else { "The vault is DAMAGED" };
    let read = match read_data {
        true => format!("all data read ({})", size(r.read_bytes)),
        false => "data not read (--read-data does)".to_owned(),
    };
    format!(
        "{word}: {}, {}, {}, {read}",
        count(r.snapshots, "point"),
        count(r.packs, "pack"),
        count(r.blobs, "piece")
    )
}

/// Tells damage with the points and paths it affects.
fn damaged(what: &str, findings: &[Finding], all: u64, affected: &[Affected]) {
    let mut lines = vec![format!("error: {what}: {}", count(all, "finding"))];
    lines.extend(findings.iter().take(SHOWN).map(|f| format!("  {}: {}", f.object, f.detail)));
    if many(findings.len()) > many(SHOWN) {
        lines.push("  and more: all are in the JSON (--json)".to_owned());
    }
    for point in affected.iter().take(SHOWN) {
        let name = match (&point.app, &point.point) {
            (Some(app), Some(id)) => format!("point {} of {app}", id.chars().take(8).collect::<String>()),
            _ => format!("snapshot {}", point.snapshot.chars().take(8).collect::<String>()),
        };
        lines.push(format!("  {name} ({}) lost {}:", time(point.time), count(point.count, "path")));
        lines.extend(point.paths.iter().take(SHOWN).map(|p| format!("    {p}")));
    }
    if affected.len() > SHOWN {
        lines.push(format!("  and {} more points", affected.len() - SHOWN));
    }
    lines.push(format!("  code: {}", Code::VaultDamaged));
    lines.push(
        "  do: `backstay vault repair` mends what can be mended; all other points are whole.".to_owned(),
    );
    lines.push(format!("  more: {}", more(Code::VaultDamaged)));
    say(lines.join("\n"));
}

/// Frees space.
pub fn prune(engine: &Engine, dry_run: bool, out: &mut Out) -> Result<u8> {
    let cancel = signals::watch()?;
    let result = {
        let meter = Meter::start();
        engine.vault_prune(dry_run, &meter, &cancel)?
    };
    out.either(&result, prune_text)?;
    if let Some(why) = result.outcome.as_ref().and_then(|o| o.deferred.as_ref()) {
        say(format!("note: {why}. Nothing is lost; the next prune does it."));
    }
    Ok(0)
}

fn prune_text(result: &PruneResult) -> String {
    let plan = &result.plan;
    let found = format!(
        "{} in {}: {} used, {} unused",
        size(plan.packs.bytes),
        count(plan.packs.count, "pack"),
        size(plan.used.bytes),
        size(plan.unused.bytes + plan.duplicate.bytes)
    );
    match &result.outcome {
        None => format!(
            "{found}\nWould delete {}, move {} together, free {}",
            count(many(plan.delete.len() + plan.leftover.len()), "pack"),
            count(many(plan.repack.len()), "pack"),
            size(plan.freed_bytes)
        ),
        Some(done) => format!(
            "{found}\nDeleted {} ({}), wrote {} ({})",
            count(done.deleted.count, "pack"),
            size(done.deleted.bytes),
            count(done.written.count, "pack"),
            size(done.written.bytes)
        ),
    }
}

/// Mends the vault.
pub fn repair(engine: &Engine, args: &crate::args::Repair, out: &mut Out) -> Result<u8> {
    if args.remove_originals && !args.dry_run {
        ask::confirm("Replace points that lost something by what is left of them, for good?", args.yes)?;
    }
    let cancel = signals::watch()?;
    let result = {
        let meter = Meter::start();
        engine.vault_repair(args.dry_run, args.remove_originals, &meter, &cancel)?
    };
    out.either(&result, repair_text)?;
    out.finish()?;
    let plan = &result.plan;
    if result.affected.is_empty() && plan.beyond_repair.is_empty() {
        return Ok(0);
    }
    let beyond = many(plan.beyond_repair.len()) + plan.lost_blobs;
    damaged("what follows cannot be mended", &plan.beyond_repair, beyond, &result.affected);
    say("Files that still exist where the points were taken are saved anew by the next backup.");
    Ok(Code::VaultDamaged.exit())
}

fn repair_text(result: &RepairResult) -> String {
    let plan = &result.plan;
    if plan.is_empty() {
        return "There is nothing to mend".to_owned();
    }
    let mut lines = format!(
        "Index objects damaged: {}\nPacks missing: {}, damaged: {}, found again: {}\nPoints that lost something: {}\n",
        plan.damaged_index.len(),
        plan.missing_packs.len(),
        plan.damaged_packs.len(),
        plan.found_packs.len(),
        plan.affected.len()
    );
    match &result.outcome {
        None => lines.push_str("Nothing was changed (--dry-run)\n"),
        Some(done) => lines.push_str(&format!(
            "Mended: {} written, {} index objects, {} points written anew, {} removed\n",
            size(done.written.bytes),
            done.index_written,
            done.rewritten.len(),
            done.removed.len()
        )),
    }
    lines
}

/// Removes locks.
pub fn unlock(engine: &Engine, all: bool, yes: bool, out: &mut Out) -> Result<u8> {
    if all {
        ask::confirm("Remove every lock, also of programs that may still work on the vault?", yes)?;
    }
    let removed = engine.vault_unlock(all)?;
    say(format!("{} removed.", count(many(removed), "lock")));
    if out.json {
        out.value(&Unlocked { locks_removed: removed })?;
    }
    Ok(0)
}

/// Copies points to another vault.
pub fn copy(
    engine: &Engine,
    address: &str,
    app: Option<&str>,
    password_file: Option<&Path>,
    out: &mut Out,
) -> Result<u8> {
    let password = password_file.map(|f| ask::secret("Password of the other vault", Some(f))).transpose()?;
    let cancel = signals::watch()?;
    let result = {
        let meter = Meter::start();
        engine.vault_copy(address, app, password.as_ref(), &meter, &cancel)?
    };
    out.either(&result, |r| {
        let new = if r.new_vault { " (new)" } else { "" };
        format!(
            "{} copied to {}{new}, {} there already, {} written",
            count(many(r.outcome.copied.len()), "point"),
            r.address,
            number(many(r.outcome.present.len())),
            size(r.outcome.packs.bytes)
        )
    })?;
    Ok(0)
}
