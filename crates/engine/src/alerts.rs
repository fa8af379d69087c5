//! Alerts: what is wrong, who was told.
//!
//! Invariants: what is wrong is worked out anew at each look from the catalog, the vault and the scheduler's notes
//! ([`Engine::conditions`]); only who was told is remembered, in notes of the catalog, written after each message
//! that a channel took. So a kill repeats at most one message and loses none. One alert stands for one cause: a
//! vault that cannot be reached is told once, not once for each app. Only `backstay serve` tells.

mod book;

use std::collections::BTreeMap;

use backstay_model::{AppName, Code, Error, Result};
use jiff::Timestamp;
use serde::Serialize;

use crate::manifest::host;
use crate::notify::{About, Message, Notifier, utc, why};
use crate::state::Engine;
use crate::status::{AppStatus, Status};

pub(crate) use self::book::Condition;
use self::book::{Alert, Book};

/// Names of the notes in the catalog.
const NOTES: &str = "alert/";

/// An alert that holds.
#[derive(Clone, Debug, Serialize)]
pub struct AlertView {
    /// What, as one word.
    pub kind: String,
    /// Whose; none for what is about the whole.
    pub app: Option<AppName>,
    /// The stable code, where there is one.
    pub code: Option<String>,
    /// What happened.
    pub message: String,
    /// What to do.
    pub advice: String,
    /// Since when it is known.
    pub since: Timestamp,
    /// Channels that could not be told yet, with the reason.
    pub undelivered: BTreeMap<String, String>,
}

impl AlertView {
    fn of(alert: Alert) -> Self {
        let failed = |(channel, told): (String, book::Told)| Some((channel, told.error?));
        AlertView {
            undelivered: alert.told.into_iter().filter_map(failed).collect(),
            kind: alert.kind,
            app: alert.app,
            code: alert.code,
            message: alert.message,
            advice: alert.advice,
            since: alert.since,
        }
    }
}

/// Whether a code says that the vault cannot be reached at all.
pub(crate) fn unreachable(code: Code) -> bool {
    matches!(code, Code::StorageUnavailable | Code::StorageNotFound | Code::VaultNotFound)
}

impl Engine {
    fn book(&self) -> Result<Book> {
        let notes = self.catalog()?.notes(NOTES)?;
        let alert = |(name, value): (String, String)| {
            // One that cannot be read is as good as none: it is raised anew.
            Some((name.strip_prefix(NOTES)?.to_owned(), serde_json::from_str(&value).ok()?))
        };
        Ok(Book(notes.into_iter().filter_map(alert).collect()))
    }

    /// Writes what differs between two states of the book.
    fn save_book(&self, before: &Book, after: &Book) -> Result<()> {
        let text = |alert: &Alert| {
            serde_json::to_string(alert)
                .map_err(|e| Error::new(Code::Internal, "An alert cannot be written").because(e))
        };
        let mut changes = Vec::new();
        for key in before.0.keys().filter(|k| !after.0.contains_key(*k)) {
            changes.push((format!("{NOTES}{key}"), None));
        }
        for (key, alert) in after.0.iter().filter(|(k, a)| before.0.get(*k) != Some(*a)) {
            changes.push((format!("{NOTES}{key}"), Some(text(alert)?)));
        }
        if changes.is_empty() { Ok(()) } else { self.catalog()?.set_notes(&changes) }
    }

    /// Notes an alert at once, so that it is told even when this process ends before the next look.
    pub(crate) fn note_alert(&self, condition: &Condition) -> Result<()> {
        let before = self.book()?;
        let mut book = before.clone();
        book.raise(condition, self.clock.now());
        self.save_book(&before, &book)
    }

    /// The alerts that hold, oldest first.
    pub(crate) fn alerts(&self) -> Result<Vec<AlertView>> {
        let mut alerts: Vec<Alert> = self.book()?.0.into_values().filter(|a| a.cleared.is_none()).collect();
        alerts.sort_by_key(|a| a.since);
        Ok(alerts.into_iter().map(AlertView::of).collect())
    }

    /// One look: takes in what is wrong and tells every channel what it has not heard. Gives what could not be
    /// delivered, as lines for the log.
    pub(crate) fn tell(&self, conditions: &[Condition]) -> Result<Vec<String>> {
        let now = self.clock.now();
        let notifier = Notifier::new(&self.config.notify);
        let channels = notifier.channels();
        let mut stored = self.book()?;
        let mut book = stored.clone();
        book.update(conditions, now);
        self.save_book(&stored, &book)?;
        stored = book.clone();
        let mut failed = Vec::new();
        for channel in &channels {
            loop {
                let due = book.due(&channel.name, now, self.config.notify.reminder);
                let Some((key, event)) = due.into_iter().next() else { break };
                let Some(alert) = book.0.get(&key) else { break };
                let about = About {
                    event,
                    kind: &alert.kind,
                    app: alert.app.as_ref(),
                    since: alert.since,
                    code: alert.code.as_deref(),
                    message: &alert.message,
                    advice: &alert.advice,
                };
                let sent = notifier.send(channel, &Message::new(&about, &host(), now));
                let refused = sent.is_err();
                match sent {
                    Ok(()) => book.told(&key, &channel.name, event, now),
                    Err(e) => {
                        failed.push(format!("message to {} not delivered: {}", channel.name, why(&e)));
                        book.refused(&key, &channel.name, why(&e), now);
                    }
                }
                self.save_book(&stored, &book)?;
                stored = book.clone();
                if refused {
                    // The others of this channel wait for the next look: each would wait for its limit of time.
                    break;
                }
            }
        }
        let names: Vec<String> = channels.into_iter().map(|c| c.name).collect();
        book.forget(&names);
        self.save_book(&stored, &book)?;
        Ok(failed)
    }

    /// What is wrong now.
    pub(crate) fn conditions(&self, status: &Status) -> Vec<Condition> {
        let mut found = Vec::new();
        let vault = status.vault.as_ref();
        if let Some(error) = vault.and_then(|v| v.error.as_ref()) {
            found.push(Condition {
                kind: "vault-unreachable",
                app: None,
                code: Some(error.code.clone()),
                message: format!("The vault cannot be used: {}", error.message),
                advice: error.advice.clone(),
            });
        }
        let full = status.apps.iter().any(|a| a.failed_with(Code::StorageFull));
        let free = vault.and_then(|v| v.free_bytes);
        let low = free.is_some_and(|free| free < self.config.automatic.vault_free);
        if full || low {
            let left = free.map_or_else(String::new, |free| format!(": {free} bytes are free"));
            found.push(Condition {
                kind: "vault-full",
                app: None,
                code: Some(Code::StorageFull.as_str().to_owned()),
                message: format!(
                    "The place of the vault {}{left}",
                    if full { "is full" } else { "is nearly full" }
                ),
                advice: Code::StorageFull.advice().to_owned(),
            });
        }
        if let Some(why) = &status.expiry_held {
            found.push(Condition {
                kind: "expiry-held",
                app: None,
                code: None,
                message: format!("No point expires for now: {why}"),
                advice: "See that the clock of this machine is right. Points expire again after 24 hours of steady clock."
                    .to_owned(),
            });
        }
        found.extend(expiring(status));
        found.extend(status.apps.iter().flat_map(custom_conditions));
        found.extend(status.apps.iter().filter(|a| a.watched).flat_map(|app| app_conditions(app, status)));
        found
    }
}

/// Containers whose keys end: one alert for all, which changes its words when there is another.
fn expiring(status: &Status) -> Option<Condition> {
    let each = status.containers_expiring.iter().map(|c| format!("`{}` on {}", c.name, utc(c.expires)));
    let each: Vec<String> = each.collect();
    (!each.is_empty()).then(|| Condition {
        kind: "container-expiring",
        app: None,
        code: None,
        message: format!("The signature of a container ends: {}", each.join(", ")),
        advice: "Make a new signature and give it to Backstay: `backstay container add NAME --replace`."
            .to_owned(),
    })
}

/// What is wrong with the scheduled custom backups of one app.
fn custom_conditions(app: &AppStatus) -> Option<Condition> {
    let custom = app.custom.as_ref()?;
    let last = custom.last_result.as_ref()?;
    let (kind, message, advice) = match (last.failed, last.code.as_deref()) {
        (true, _) => {
            let message = format!("The last scheduled custom backup failed: {}", last.message);
            ("custom-failed", message, last.advice.clone())
        }
        (false, Some(_)) => {
            let message = format!("The last scheduled custom backup is not complete: {}", last.message);
            let advice = format!(
                "`backstay list {}` shows it, `backstay show` lists what is missing and why.",
                app.name
            );
            ("custom-partial", message, advice)
        }
        (false, None) => return None,
    };
    Some(Condition { kind, app: app.name.parse().ok(), code: last.code.clone(), message, advice })
}

/// What is wrong with one app, without what the vault is the cause of.
fn app_conditions(app: &AppStatus, status: &Status) -> Vec<Condition> {
    let of = |kind, code: Option<&str>, message: String, advice: &str| Condition {
        kind,
        app: app.name.parse().ok(),
        code: code.map(str::to_owned),
        message,
        advice: advice.to_owned(),
    };
    let mut found = Vec::new();
    if app.failed_with(Code::SpoolFull) {
        let message =
            "Points that wait for the vault have reached their limit; no new one was taken".to_owned();
        found.push(of("spool-full", Some(Code::SpoolFull.as_str()), message, Code::SpoolFull.advice()));
    } else if let Some(last) = app.last_result.as_ref() {
        let code = last.code.as_deref();
        let by_vault = |c: &Code| *c == Code::StorageFull || unreachable(*c);
        let vault_is_told =
            status.vault.as_ref().is_some_and(|v| v.error.is_some()) || app.failed_with(Code::StorageFull);
        let caused = Code::ALL.iter().any(|c| by_vault(c) && code == Some(c.as_str()));
        if last.failed && !(caused && vault_is_told) {
            let message = format!("The last backup failed: {}", last.message);
            found.push(of("backup-failed", code, message, &last.advice));
        } else if !last.failed && code == Some(Code::PartiallySucceeded.as_str()) {
            let message = format!("The last backup is not complete: {}", last.message);
            let advice = format!("`backstay show {}` lists what is missing and why.", app.name);
            found.push(of("backup-partial", code, message, &advice));
        }
    }
    if !app.filter_unmatched.is_empty() {
        let shown: Vec<String> = app.filter_unmatched.iter().take(5).map(|r| format!("`{r}`")).collect();
        let message =
            format!("{} of the filter without a match: {}", lines(&app.filter_unmatched), shown.join(", "));
        let advice =
            "Correct or remove them: what they were to leave out is perhaps in the points (docs/filter.md).";
        found.push(of("filter-unmatched", None, message, advice));
    }
    if app.rpo_met == Some(false) {
        let message = match app.newest {
            Some(newest) => format!("The newest point is of {}, older than it may be", utc(newest)),
            None => "There is no point yet".to_owned(),
        };
        let code = Code::BackupMissed;
        found.push(of("backup-missed", Some(code.as_str()), message, code.advice()));
    }
    found
}

fn lines(rules: &[String]) -> String {
    match rules.len() {
        1 => "1 line".to_owned(),
        n => format!("{n} lines"),
    }
}
