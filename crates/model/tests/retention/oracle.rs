//! The promise, word by word and slowly: "days 1 to 3: hourly backups retained; days 4 to 14: every third hourly backup
//! retained; days 15 to 30: every sixth hourly backup retained". A cupboard of points is looked through from time to
//! time, window of the clock by window, as a person with a list would do it.

use backstay_model::retention::Entry;
use backstay_model::{Origin, PointStatus};

use crate::{DAY, HOUR};

/// What lies in the vault, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Cupboard {
    pub points: Vec<Entry>,
    /// What would have gone once and stayed because it was the newest then.
    pub spared: Vec<Entry>,
}

fn seconds(point: &Entry) -> i64 {
    point.time.as_second()
}

fn is_whole(point: &Entry) -> bool {
    point.status == PointStatus::Succeeded
}

impl Cupboard {
    pub fn put(&mut self, point: Entry) {
        self.points.push(point);
        self.points.sort_by_key(|p| (p.time, p.id));
    }

    /// Takes out what has to go at this time.
    pub fn tidy(&mut self, now: i64) {
        let mut goes: Vec<Entry> = Vec::new();
        self.thin(now - 3 * DAY, 3 * HOUR, &mut goes);
        self.thin(now - 14 * DAY, 6 * HOUR, &mut goes);
        for p in &self.points {
            let mortal = p.origin == Origin::Automatic || p.origin == Origin::Safety;
            if mortal && seconds(p) <= now - 30 * DAY {
                goes.push(*p);
            }
        }
        let whole = self.points.iter().rfind(|p| p.origin != Origin::Foreign && is_whole(p));
        let newest = whole.or_else(|| self.points.iter().rfind(|p| p.origin != Origin::Foreign)).copied();
        self.spared.extend(newest.filter(|p| goes.contains(p)));
        self.points.retain(|p| p.pinned || Some(*p) == newest || !goes.contains(p));
    }

    /// Of the points taken until `before` only one of each window of the clock stays.
    fn thin(&self, before: i64, width: i64, goes: &mut Vec<Entry>) {
        let mut rest: Vec<Entry> = self.points.clone();
        rest.retain(|p| p.origin == Origin::Automatic && seconds(p) <= before);
        while let Some(first) = rest.first().copied() {
            let begin = seconds(&first) - seconds(&first).rem_euclid(width);
            let (window, later): (Vec<Entry>, Vec<Entry>) =
                rest.into_iter().partition(|p| seconds(p) < begin + width);
            let chosen = window.iter().find(|p| is_whole(p)).unwrap_or(&first);
            goes.extend(window.iter().filter(|p| *p != chosen));
            rest = later;
        }
    }
}
