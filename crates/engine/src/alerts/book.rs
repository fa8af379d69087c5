//! Who was told of which alert, and what is to be told next.
//!
//! Invariants: pure. Each channel is told that an alert was raised, then reminded as long as it holds, then told that
//! it is well again; each of these once, in this order, and on its own: what one channel refuses is due again for it
//! alone. A channel that refuses rests: 1 minute, then 2, 4, … up to an hour, until it takes a message. An alert that
//! cleared before anybody could be told is told nevertheless. It is forgotten when every channel
//! that heard of it has heard the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use backstay_model::AppName;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::notify::Event;

/// Something that is wrong now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    /// What, as one word.
    pub kind: &'static str,
    /// Whose; none for what is about the whole.
    pub app: Option<AppName>,
    /// The stable code, where there is one.
    pub code: Option<String>,
    /// What happened.
    pub message: String,
    /// What to do.
    pub advice: String,
}

impl Condition {
    /// By what it is the same one at the next look.
    pub fn key(&self) -> String {
        match &self.app {
            Some(app) => format!("{}/{app}", self.kind),
            None => self.kind.to_owned(),
        }
    }
}

/// An alert as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Alert {
    pub kind: String,
    pub app: Option<AppName>,
    pub code: Option<String>,
    pub message: String,
    pub advice: String,
    /// When it was raised.
    pub since: Timestamp,
    /// When it was seen to be well again; none while it holds.
    pub cleared: Option<Timestamp>,
    /// By channel.
    #[serde(default)]
    pub told: BTreeMap<String, Told>,
}

/// What one channel knows of an alert.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    /// When it last heard that the alert holds.
    pub at: Option<Timestamp>,
    /// Whether it heard that it is well again.
    #[serde(default)]
    pub ended: bool,
    /// Failed tries since it last took a message.
    #[serde(default)]
    pub failures: u32,
    /// When the last one failed.
    #[serde(default)]
    pub tried: Option<Timestamp>,
    /// Why the last one failed.
    #[serde(default)]
    pub error: Option<String>,
}

/// All alerts by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Book(pub BTreeMap<String, Alert>);

impl Book {
    /// Takes in what is wrong now. What is not among it any more is well again.
    pub fn update(&mut self, conditions: &[Condition], now: Timestamp) {
        for condition in conditions {
            self.raise(condition, now);
        }
        let holds: BTreeSet<String> = conditions.iter().map(Condition::key).collect();
        for (key, alert) in &mut self.0 {
            if alert.cleared.is_none() && !holds.contains(key) {
                alert.cleared = Some(now);
            }
        }
    }

    /// Notes one alert, new or still true.
    pub fn raise(&mut self, condition: &Condition, now: Timestamp) {
        let Condition { kind, app, code, message, advice } = condition.clone();
        let alert = self.0.entry(condition.key()).or_insert_with(|| Alert {
            kind: kind.to_owned(),
            app,
            code: None,
            message: String::new(),
            advice: String::new(),
            since: now,
            cleared: None,
            told: BTreeMap::new(),
        });
        if alert.cleared.take().is_some() {
            // Who heard the end hears of it anew; for others it never ended.
            alert.told.retain(|_, told| !told.ended);
            if alert.told.is_empty() {
                alert.since = now;
            }
        }
        (alert.code, alert.message, alert.advice) = (code, message, advice);
    }

    /// Whether a channel has refused a message so lately that it is left alone.
    fn rests(&self, channel: &str, now: Timestamp) -> bool {
        self.0.values().filter_map(|alert| alert.told.get(channel)).any(|told| {
            let Some(tried) = told.tried else { return false };
            // A clock that was set back ends the rest: better once too often.
            let since = u64::try_from(now.as_second().saturating_sub(tried.as_second())).unwrap_or(u64::MAX);
            since < rest(told.failures).as_secs()
        })
    }

    /// What one channel is to be told, oldest alert first.
    pub fn due(&self, channel: &str, now: Timestamp, reminder: Duration) -> Vec<(String, Event)> {
        if self.rests(channel, now) {
            return Vec::new();
        }
        let mut due: Vec<(Timestamp, String, Event)> = self
            .0
            .iter()
            .filter_map(|(key, alert)| {
                let event = alert.due(channel, now, reminder)?;
                Some((alert.since, key.clone(), event))
            })
            .collect();
        due.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        due.into_iter().map(|(_, key, event)| (key, event)).collect()
    }

    /// Notes that a channel took a message.
    pub fn told(&mut self, key: &str, channel: &str, event: Event, now: Timestamp) {
        // It works again, for all that waits.
        for told in self.0.values_mut().filter_map(|alert| alert.told.get_mut(channel)) {
            (told.failures, told.tried) = (0, None);
        }
        let Some(alert) = self.0.get_mut(key) else { return };
        let told = alert.told.entry(channel.to_owned()).or_default();
        told.error = None;
        match event {
            Event::Cleared => told.ended = true,
            _ => told.at = Some(now),
        }
    }

    /// Notes that a channel did not take a message.
    pub fn refused(&mut self, key: &str, channel: &str, error: String, now: Timestamp) {
        let Some(alert) = self.0.get_mut(key) else { return };
        let told = alert.told.entry(channel.to_owned()).or_default();
        told.failures = told.failures.saturating_add(1);
        told.tried = Some(now);
        told.error = Some(error);
    }

    /// Forgets what every channel has heard the end of; gives the keys.
    pub fn forget(&mut self, channels: &[String]) -> Vec<String> {
        let over = |alert: &Alert| {
            let heard = |c: &String| alert.told.get(c).is_some_and(|t| t.ended);
            alert.cleared.is_some() && channels.iter().all(heard)
        };
        let keys: Vec<String> = self.0.iter().filter(|(_, a)| over(a)).map(|(k, _)| k.clone()).collect();
        for key in &keys {
            self.0.remove(key);
        }
        keys
    }
}

/// How long a channel rests after so many failures. Looks come once a minute, some seconds early or late.
fn rest(failures: u32) -> Duration {
    const SLACK: u64 = 20;
    let minutes = 1u64.checked_shl(failures.saturating_sub(1)).unwrap_or(u64::MAX).min(60);
    Duration::from_secs(if failures == 0 { 0 } else { minutes * 60 - SLACK })
}

impl Alert {
    fn due(&self, channel: &str, now: Timestamp, reminder: Duration) -> Option<Event> {
        let told = self.told.get(channel);
        let Some(at) = told.and_then(|t| t.at) else { return Some(Event::Raised) };
        if self.cleared.is_some() {
            return told.is_none_or(|t| !t.ended).then_some(Event::Cleared);
        }
        // A clock that was set back since counts as a reminder's time: better once too often.
        let since = u64::try_from(now.as_second().saturating_sub(at.as_second())).unwrap_or(u64::MAX);
        (since >= reminder.as_secs()).then_some(Event::Reminder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + hours * 3_600).unwrap()
    }

    fn failed(app: &str) -> Condition {
        Condition {
            kind: "backup-failed",
            app: Some(app.parse().unwrap()),
            code: Some("StorageFull".into()),
            message: "The place is full".into(),
            advice: "Free space.".into(),
        }
    }

    #[test]
    fn a_channel_that_refuses_is_tried_less_and_less_often() {
        let mut book = Book::default();
        let minute = |n: i64| Timestamp::from_second(1_700_000_000 + n * 60).unwrap();
        let mut tried = Vec::new();
        for n in 0..400 {
            book.update(&[failed("blog"), failed("shop")], minute(n));
            assert_eq!(book.due("mail", minute(n), DAY).len(), if n == 0 { 2 } else { 0 }, "{n}");
            // Others are told at once.
            if let Some((key, event)) = book.due("hook", minute(n), DAY).first().cloned() {
                if n < 130 {
                    book.refused(&key, "hook", "refused".into(), minute(n));
                } else {
                    book.told(&key, "hook", event, minute(n));
                }
                tried.push(n);
            }
            for (key, event) in book.due("mail", minute(n), DAY) {
                book.told(&key, "mail", event, minute(n));
            }
        }
        // The first message that it takes ends the rest for the second.
        assert_eq!(tried, [0, 1, 3, 7, 15, 31, 63, 123, 183, 184]);
        assert_eq!((rest(0).as_secs(), rest(40).as_secs(), rest(u32::MAX).as_secs()), (0, 3580, 3580));
        // A clock that was set back by a day.
        book.raise(&failed("late"), minute(400));
        book.refused("backup-failed/late", "hook", "refused".into(), minute(400));
        assert_eq!(book.due("hook", minute(400), DAY).len(), 0);
        assert_eq!(book.due("hook", minute(-1000), DAY).len(), 3, "reminders as well");
    }

    /// One look: what each channel was told, where `down` refuses everything.
    fn look(book: &mut Book, conditions: &[Condition], hours: i64, down: &str) -> Vec<String> {
        let now = at(hours);
        let channels = ["mail".to_owned(), "hook".to_owned()];
        book.update(conditions, now);
        let mut said = Vec::new();
        for channel in &channels {
            while let Some((key, event)) = book.due(channel, now, DAY).into_iter().next() {
                if channel == down {
                    book.refused(&key, channel, "refused".into(), now);
                    break;
                }
                book.told(&key, channel, event, now);
                said.push(format!("{channel} {event:?} {key}").to_lowercase());
            }
        }
        book.forget(&channels);
        said
    }

    #[test]
    fn it_is_told_once_then_reminded_then_told_to_be_well() {
        let mut book = Book::default();
        let blog = [failed("blog")];
        let both = |event: &str| {
            vec![format!("mail {event} backup-failed/blog"), format!("hook {event} backup-failed/blog")]
        };
        assert_eq!(look(&mut book, &blog, 0, ""), both("raised"));
        for hour in 1..24 {
            assert!(look(&mut book, &blog, hour, "").is_empty(), "hour {hour}");
        }
        assert_eq!(look(&mut book, &blog, 24, ""), both("reminder"));
        assert!(look(&mut book, &blog, 47, "").is_empty());
        assert_eq!(look(&mut book, &blog, 48, ""), both("reminder"));
        assert_eq!(look(&mut book, &[], 49, ""), both("cleared"));
        assert_eq!(book, Book::default(), "nothing is left");
        assert!(look(&mut book, &[], 50, "").is_empty());
        assert_eq!(look(&mut book, &blog, 51, ""), both("raised"));
        assert_eq!(book.0["backup-failed/blog"].since, at(51));
    }

    #[test]
    fn a_channel_that_is_down_misses_nothing_and_holds_up_nobody() {
        let mut book = Book::default();
        let both = [failed("blog"), failed("shop")];
        assert_eq!(look(&mut book, &both, 0, "mail").len(), 2, "the webhook was told of both");
        assert!(look(&mut book, &both, 1, "mail").is_empty());
        assert_eq!(book.0["backup-failed/blog"].told["mail"].failures, 2);
        // It is over before the mail server is back: it is told nevertheless, and its end.
        assert_eq!(look(&mut book, &both[1..], 2, "mail"), ["hook cleared backup-failed/blog"]);
        assert_eq!(
            look(&mut book, &both[1..], 3, ""),
            [
                "mail raised backup-failed/blog",
                "mail cleared backup-failed/blog",
                "mail raised backup-failed/shop",
            ]
        );
        assert_eq!(book.0.len(), 1);
    }

    #[test]
    fn what_comes_back_before_its_end_was_told_is_the_same_alert() {
        let mut book = Book::default();
        let blog = [failed("blog")];
        look(&mut book, &blog, 0, "");
        assert_eq!(look(&mut book, &[], 1, "mail"), ["hook cleared backup-failed/blog"]);
        // The mail server never heard the end; the webhook did and hears of it anew.
        assert_eq!(look(&mut book, &blog, 2, ""), ["hook raised backup-failed/blog"]);
        assert_eq!(book.0["backup-failed/blog"].since, at(0));
    }

    #[test]
    fn without_channels_alerts_are_kept_only_while_they_hold_and_a_clock_set_back_reminds() {
        let mut book = Book::default();
        book.update(&[failed("blog")], at(0));
        assert!(book.forget(&[]).is_empty());
        book.update(&[], at(1));
        assert_eq!(book.forget(&[]), ["backup-failed/blog"]);
        let mut book = Book::default();
        look(&mut book, &[failed("blog")], 100, "");
        assert_eq!(look(&mut book, &[failed("blog")], 50, "").len(), 2);
        assert!(look(&mut book, &[failed("blog")], 51, "").is_empty());
    }
}
