//! `backstay status`
//!
//! Exit status: 0 when all is well, 3 when the only thing to look at is a backup that left something out, else 1.

use backstay_engine::{AppStatus, Engine, Status};
use backstay_model::{Code, JobState, Result};
use jiff::Timestamp;

use crate::commands::job;
use crate::failure::say;
use crate::out::Out;
use crate::text::{Table, age, count, size, time};

/// The whole at a glance.
pub fn run(engine: &Engine, out: &mut Out) -> Result<u8> {
    let mut status = engine.status()?;
    if let Some(vault) = status.vault.as_mut().filter(|v| v.reachable) {
        vault.bytes = engine.vault_bytes();
    }
    out.either(&status, text)?;
    out.finish()?;
    if !status.set_up && status.apps.is_empty() {
        say("Nothing was backed up from here yet. `backstay backup PATH` begins.");
    }
    if status.vault.as_ref().is_some_and(|v| v.same_disk_as_an_app) {
        say("warning: the vault lies on the disk of an app: it does not survive that disk");
    }
    if !status.server && status.apps.iter().any(|a| a.rpo_met == Some(false)) {
        say("warning: no scheduler runs: `backstay serve` takes points every hour (docs/operations.md)");
    }
    Ok(match (status.well, status.partial()) {
        (true, false) => 0,
        (true, true) => Code::PartiallySucceeded.exit(),
        (false, _) => 1,
    })
}

fn text(status: &Status) -> String {
    let mut lines = format!("State   {}\n", status.state);
    if let Some(vault) = &status.vault {
        lines.push_str(&format!("Vault   {}\n", vault.address));
        match &vault.error {
            Some(error) => {
                lines.push_str(&format!("        cannot be used: {} ({})\n", error.message, error.code))
            }
            None => {
                let bytes = vault.bytes.map(|b| format!("holds {}", size(b)));
                let free = vault.free_bytes.map(|b| format!("{} free", size(b)));
                let told: Vec<String> = bytes.into_iter().chain(free).collect();
                lines.push_str(&format!("        {}\n", told.join(", ")));
            }
        }
    }
    if !status.apps.is_empty() {
        lines.push_str(&format!("Server  {}\n\n", if status.server { "running" } else { "not running" }));
        lines.push_str(&apps(&status.apps));
        lines.push_str(&custom(&status.apps));
        for (app, view) in status.apps.iter().filter_map(|app| Some((app, app.in_app_mysql.as_ref()?))) {
            lines.push_str(&format!("\nMySQL in-app of {}: {}\n", app.name, view.state.word()));
        }
    }
    for container in &status.containers_expiring {
        lines.push_str(&format!(
            "\nThe signature of container {} ends {}\n",
            container.name,
            time(container.expires)
        ));
    }
    if status.spool.points > 0 {
        let n = u64::try_from(status.spool.points).unwrap_or(u64::MAX);
        lines.push_str(&format!("\n{} on this machine for the vault\n", waiting(n)));
    }
    if status.foreign_points > 0 {
        let foreign = u64::try_from(status.foreign_points).unwrap_or(u64::MAX);
        lines.push_str(&format!(
            "\n{} of other programs (`backstay list foreign`)\n",
            count(foreign, "snapshot")
        ));
    }
    for running in &status.running {
        let app = running.app.as_ref().map(|a| format!(" of {a}")).unwrap_or_default();
        lines.push_str(&format!("\nRunning: {}{app} (job {})\n", job::kind(running), running.id.short()));
    }
    for alert in &status.alerts {
        let app = alert.app.as_ref().map(|a| format!("{a}: ")).unwrap_or_default();
        lines.push_str(&format!(
            "\nAlert since {}: {app}{}\n  do: {}\n",
            time(alert.since),
            alert.message,
            alert.advice
        ));
        for (channel, why) in &alert.undelivered {
            lines.push_str(&format!("  not delivered to {channel}: {why}\n"));
        }
    }
    lines
}

fn waiting(n: u64) -> String {
    format!("{} wait{}", count(n, "point"), if n == 1 { "s" } else { "" })
}

fn apps(apps: &[AppStatus]) -> String {
    let now = Timestamp::now();
    let mut table = Table::new(&["APP", " POINTS", "NEWEST", "RPO", "LAST BACKUP", "NEXT", "HOME"]);
    for app in apps {
        table.row([
            app.name.clone(),
            app.points.saturating_add(app.spooled).to_string(),
            app.newest.map_or_else(|| "-".to_owned(), |t| age(t, now)),
            match app.rpo_met {
                Some(true) => "met".to_owned(),
                Some(false) => "MISSED".to_owned(),
                None => "-".to_owned(),
            },
            last(app),
            next(app, now),
            app.home.as_ref().map_or_else(
                || "not known here".to_owned(),
                |h| format!("{h}{}", if app.home_exists { "" } else { " (not there)" }),
            ),
        ]);
    }
    table.to_string()
}

fn last(app: &AppStatus) -> String {
    match (&app.last_result, &app.last_backup) {
        (Some(last), _) if last.failed => {
            format!("failed ({})", last.code.as_deref().unwrap_or("no code"))
        }
        (Some(last), _) => if last.code.is_some() { "partial" } else { "succeeded" }.to_owned(),
        (None, Some(job)) if job.state == JobState::Cancelled => job::state(job.state).to_owned(),
        (None, _) => "-".to_owned(),
    }
}

fn next(app: &AppStatus, now: Timestamp) -> String {
    if app.running {
        return "running".to_owned();
    }
    if let Some(pause) = &app.paused {
        return pause
            .until
            .map_or_else(|| "paused".to_owned(), |until| format!("paused until {}", time(until)));
    }
    match app.next_run {
        Some(at) if at <= now => "due".to_owned(),
        Some(at) => {
            let seconds = u64::try_from(at.as_second().saturating_sub(now.as_second())).unwrap_or(0);
            format!("in {} min", seconds.div_ceil(60))
        }
        None => "-".to_owned(),
    }
}

/// The schedules of custom backups.
fn custom(apps: &[AppStatus]) -> String {
    let scheduled: Vec<_> = apps.iter().filter_map(|a| Some((a, a.custom.as_ref()?))).collect();
    if scheduled.is_empty() {
        return String::new();
    }
    let now = Timestamp::now();
    let mut table = Table::new(&["CUSTOM", "SCHEDULE", "NEWEST", "LAST", "NEXT"]);
    for (app, custom) in scheduled {
        let last = match &custom.last_result {
            Some(last) if last.failed => format!("failed ({})", last.code.as_deref().unwrap_or("no code")),
            Some(last) => if last.code.is_some() { "partial" } else { "succeeded" }.to_owned(),
            None => "-".to_owned(),
        };
        let next = match custom.next_run {
            Some(at) if at <= now => "due".to_owned(),
            Some(at) => time(at),
            None => "-".to_owned(),
        };
        table.row([
            app.name.clone(),
            custom.schedule.to_string(),
            custom.newest.map_or_else(|| "none".to_owned(), |newest| age(newest, now)),
            last,
            next,
        ]);
    }
    format!("\n{table}")
}
