//! Letting scheduled backups go by age.
//!
//! Invariants: what goes is decided by [`backstay_model::Schedule::expired`] alone, inside the app's exclusive job, and
//! only while the clock can be believed, as for points of the vault. It is done after a scheduled backup has succeeded:
//! where backups fail, nothing goes. Killed anywhere, the rest goes with the next run.

use backstay_catalog::App;
use backstay_model::retention::Trust;
use backstay_model::{Cancel, Code, JobKind, Origin, Result, Silent};
use serde::Serialize;

use crate::job::{Done, Task, run_for};
use crate::state::Engine;

/// What became of an app's scheduled backups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CustomExpiry {
    /// The names of those that went, oldest first.
    pub expired: Vec<String>,
    /// Why nothing goes for now, where that is so.
    pub held: Option<String>,
}

impl Engine {
    /// Removes the scheduled backups of an app that are older than its schedule keeps.
    pub fn expire_custom(&self, app: &App, cancel: &Cancel) -> Result<CustomExpiry> {
        let Some(schedule) = &app.config.schedule else { return Ok(CustomExpiry::default()) };
        let catalog = self.catalog()?;
        let now = self.clock.now();
        let backups = catalog.custom_backups(Some(&app.name))?;
        if schedule.expired(&backups, now).is_empty() {
            return Ok(CustomExpiry::default());
        }
        let newest = backups.iter().map(|b| b.time).max();
        if let Trust::Hold { why, .. } = self.judge_clock(newest)? {
            return Ok(CustomExpiry { held: Some(why), ..CustomExpiry::default() });
        }
        let task = Task { kind: JobKind::Delete, app: Some(&app.name), exclusive: true };
        let done = run_for(Origin::Automatic, catalog, &self.clock, &task, (&Silent, cancel), |job| {
            let backups = catalog.custom_backups(Some(&app.name))?;
            let mut expired = Vec::new();
            for backup in schedule.expired(&backups, now) {
                job.cancel().check()?;
                let container = self.open_at_address(&backup.container)?;
                self.remove_custom(job, &container, backup)?;
                job.log(format!(
                    "{} of {} is older than {} days",
                    backup.name, backup.time, schedule.keep_days
                ));
                expired.push(backup.name.clone());
            }
            let message = format!("{} scheduled backups expired", expired.len());
            Ok(Done { value: CustomExpiry { expired, held: None }, message, partial: None })
        });
        match done {
            // The next run does it.
            Err(e) if e.code() == Code::AppBusy => {
                Ok(CustomExpiry { held: Some(e.message().to_owned()), ..CustomExpiry::default() })
            }
            other => other,
        }
    }
}
