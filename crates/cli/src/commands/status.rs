//! `backstay status`

use backstay_engine::{Engine, Status};
use backstay_model::{JobState, Result};
use jiff::Timestamp;

use crate::commands::job;
use crate::failure::say;
use crate::out::Out;
use crate::text::{Table, age, count};

/// The whole at a glance.
pub fn run(engine: &Engine, out: &mut Out) -> Result<u8> {
    let status = engine.status()?;
    out.either(&status, text)?;
    if !status.set_up {
        say("Nothing was backed up from here yet. `backstay backup PATH` begins.");
    }
    if status.vault.as_ref().is_some_and(|v| v.same_disk_as_an_app) {
        say("warning: the vault lies on the disk of an app: it does not survive that disk");
    }
    Ok(0)
}

fn text(status: &Status) -> String {
    let mut lines = format!("State  {}\n", status.state);
    if let Some(vault) = &status.vault {
        lines.push_str(&format!("Vault  {}\n", vault.address));
    }
    if !status.apps.is_empty() {
        let now = Timestamp::now();
        let mut table = Table::new(&["APP", " POINTS", "NEWEST", "LAST BACKUP", "HOME"]);
        for app in &status.apps {
            let last = app.last_backup.as_ref().map(|j| match (j.state, &j.code) {
                (JobState::Succeeded, Some(_)) => "partial".to_owned(),
                (state, _) => job::state(state).to_owned(),
            });
            let missing = if app.home_exists { "" } else { " (not there)" };
            table.row([
                app.name.clone(),
                app.points.to_string(),
                app.newest.map_or_else(|| "-".to_owned(), |t| age(t, now)),
                last.unwrap_or_else(|| "-".to_owned()),
                app.home.as_ref().map_or_else(|| "not known here".to_owned(), |h| format!("{h}{missing}")),
            ]);
        }
        lines.push('\n');
        lines.push_str(&table.to_string());
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
    lines
}
