//! The thread that looks what is wrong and tells it; it also moves waiting points into the vault when it is back.
//!
//! Invariants: it holds no lock that a run needs while it talks to anybody. What it could not deliver is tried again
//! at the next look.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use backstay_model::{AppName, Cancel, Result};

use super::{FIRST_ROUND, Hub};
use crate::alerts::Condition;
use crate::notify::{Notifier, Ping, why};
use crate::state::Engine;

/// How often it looks.
const LOOK: Duration = Duration::from_secs(60);
/// After news it waits this long for more of them.
const SETTLE: Duration = Duration::from_millis(500);

/// Looks until the scheduler is asked to stop.
pub(super) fn watch(hub: &Hub<'_>) {
    let mut pings = BTreeMap::new();
    let mut news = hub.control.news();
    loop {
        hub.control.wait(news, LOOK);
        let settle = Instant::now();
        while settle.elapsed() < SETTLE && !hub.control.stopped() {
            std::thread::sleep(Duration::from_millis(50));
        }
        if hub.control.stopped() {
            return;
        }
        news = hub.control.news();
        if !hub.shared().first_look_done {
            continue;
        }
        let engine = hub.engine();
        if let Err(e) = hub.look(&engine) {
            (hub.log)(format!("cannot see what is wrong: {}", why(&e)));
        }
        hub.send_pings(&engine, &mut pings);
    }
}

impl Hub<'_> {
    fn look(&self, engine: &Engine) -> Result<()> {
        engine.catalog()?.expire_jobs()?;
        let mut status = engine.status()?;
        let vault_is_well = status.vault.as_ref().is_some_and(|v| v.error.is_none());
        if vault_is_well && status.spool.points > 0 && !self.control.stopped() {
            if let Err(e) = self.move_spooled(engine, &Cancel::new()) {
                (self.log)(format!("waiting points could not be moved into the vault: {}", why(&e)));
            }
            status = engine.status()?;
        }
        let mut conditions = engine.conditions(&status);
        let shared = self.shared();
        if self.started.elapsed() < FIRST_ROUND {
            let waits = |c: &Condition| c.app.as_ref().is_some_and(|app| shared.waiting.contains(app));
            conditions.retain(|c| c.kind != "backup-missed" || !waits(c));
        }
        if let Some((down, apps)) = &shared.down
            && !apps.is_empty()
            && self.started.elapsed() < FIRST_ROUND
        {
            conditions.push(down.clone());
        }
        drop(shared);
        for line in engine.tell(&conditions)? {
            (self.log)(line);
        }
        Ok(())
    }

    /// Moves waiting points into the vault, one thread at a time. Nothing where there are none.
    pub(super) fn move_spooled(&self, engine: &Engine, cancel: &Cancel) -> Result<()> {
        let _one = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        let moved = engine.move_spooled(cancel)?;
        if moved > 0 {
            (self.log)(format!("{moved} waiting points moved into the vault"));
        }
        Ok(())
    }

    /// Sends the signs of life. Of those that could not be sent the newest of each app is kept for the next look.
    fn send_pings(&self, engine: &Engine, kept: &mut BTreeMap<AppName, Ping>) {
        let new: Vec<(AppName, Ping)> = self.shared().pings.drain(..).collect();
        let notifier = Notifier::new(&engine.config.notify);
        for (app, _) in &new {
            kept.remove(app);
        }
        let old: Vec<(AppName, Ping)> = std::mem::take(kept).into_iter().collect();
        for (app, ping) in old.into_iter().chain(new) {
            if let Err(e) = notifier.ping(&app, ping) {
                (self.log)(format!("ping for {app} not delivered: {}", why(&e)));
                kept.insert(app, ping);
            } else {
                kept.remove(&app);
            }
        }
    }
}
