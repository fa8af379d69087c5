//! Which points stay and which go: pure arithmetic, no clock and no I/O.
//!
//! Automatic points are kept by age: all of the first 72 hours, then of every three hours one until they are 14 days
//! old, then of every six hours one until they are 30 days old; one point an hour makes 224 in the long run. Hours are
//! counted in UTC from 1970, so the three and six hours are the same for everybody, never depend on when expiry runs,
//! and know no daylight saving.
//!
//! Invariants:
//! * A point is thinned or expired only when its full age has passed the boundary; it may stay longer, never shorter.
//! * Of a bucket (three or six hours) the earliest whole point stays; the earliest partial one only where no whole one
//!   is. So where hours were missed, what is there stays, and what was dropped would not have been kept later either:
//!   expiring every hour, once a day or once a month leaves the same points.
//! * Two points in one hour (catching up after downtime, say) both stay for the 72 hours, since both were wanted; a
//!   bucket keeps one of them later.
//! * What is pinned, asked for by a person or foreign stays. A pin adds to what stays and changes nothing else.
//! * The newest restorable point stays whatever its age and origin.
//! * A point of the future (the clock was set back) has no age yet and stays.
//!
//! Whether the clock can be believed at all is [`ClockWatch`]'s question, to be asked first.

mod clock;

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

pub use clock::{ClockWatch, Reading, Trust};

use crate::{Origin, Point, PointId, PointStatus};

/// Hours for which every automatic point stays: days 1 to 3.
pub const EVERY_HOURS: i64 = 72;
/// Hours until which one of every three hours stays: days 4 to 14.
pub const THIRD_HOURS: i64 = 14 * 24;
/// Hours until which one of every six hours stays, and safety points do: days 15 to 30.
pub const SIXTH_HOURS: i64 = 30 * 24;
/// How many automatic points stay when one is taken every hour.
pub const STEADY: usize = 224;

/// What decides about a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub id: PointId,
    /// When it was taken.
    pub time: Timestamp,
    /// Where it came from.
    pub origin: Origin,
    /// How complete it is.
    pub status: PointStatus,
    /// Kept whatever its age.
    pub pinned: bool,
}

impl From<&Point> for Entry {
    fn from(point: &Point) -> Self {
        let Point { id, time, origin, status, pinned, .. } = *point;
        Entry { id, time, origin, status, pinned }
    }
}

/// What becomes of a point, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It stays.
    Keep(Keep),
    /// It goes.
    Expire(Expire),
}

/// Why a point stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Keep {
    /// Automatic and younger than three days.
    Hourly,
    /// Automatic, at most 14 days old, the one of its three hours.
    ThirdHour,
    /// Automatic, at most 30 days old, the one of its six hours.
    SixthHour,
    /// Taken before something dangerous, at most 30 days ago.
    Safety,
    /// Asked for by a person: stays until it is deleted.
    Manual,
    /// Brought in from an archive: stays until it is deleted.
    Imported,
    /// Pinned; it would go otherwise.
    Pinned,
    /// The newest restorable point; it would go otherwise.
    Newest,
    /// Its time has not come yet: the clock was set back.
    Future,
    /// Written by another program.
    Foreign,
}

/// Why a point goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Expire {
    /// Another one of the same three or six hours stays or stood for them.
    Thinned,
    /// Older than 30 days.
    Old,
}

impl Verdict {
    /// Whether the point stays.
    #[must_use]
    pub fn keeps(&self) -> bool {
        matches!(self, Verdict::Keep(_))
    }
}

/// Decides about all points of one app, in the order given.
#[must_use]
pub fn expire(points: &[Entry], now: Timestamp) -> Vec<Verdict> {
    let thirds = Buckets::new(points, now, EVERY_HOURS, 3);
    let sixths = Buckets::new(points, now, THIRD_HOURS, 6);
    let newest = newest_restorable(points);
    let decide = |(at, point): (usize, &Entry)| {
        let by_age = by_age(point, now, &|buckets: &Buckets| buckets.stays(at, point), (&thirds, &sixths));
        match by_age {
            Verdict::Expire(_) if point.pinned => Verdict::Keep(Keep::Pinned),
            Verdict::Expire(_) if newest == Some(at) => Verdict::Keep(Keep::Newest),
            decided => decided,
        }
    };
    points.iter().enumerate().map(decide).collect()
}

fn by_age(
    point: &Entry,
    now: Timestamp,
    stays: &dyn Fn(&Buckets) -> bool,
    (thirds, sixths): (&Buckets, &Buckets),
) -> Verdict {
    match point.origin {
        Origin::Manual => return Verdict::Keep(Keep::Manual),
        Origin::Imported => return Verdict::Keep(Keep::Imported),
        Origin::Foreign => return Verdict::Keep(Keep::Foreign),
        Origin::Automatic | Origin::Safety => {}
    }
    if point.time > now {
        return Verdict::Keep(Keep::Future);
    }
    if is_past(point, now, SIXTH_HOURS) {
        return Verdict::Expire(Expire::Old);
    }
    let verdict = |kept: bool, keep| {
        if kept { Verdict::Keep(keep) } else { Verdict::Expire(Expire::Thinned) }
    };
    match point.origin {
        Origin::Safety => Verdict::Keep(Keep::Safety),
        // Both: whoever stays for six hours stayed for three of them before, also where expiry did not run then.
        _ if is_past(point, now, THIRD_HOURS) => verdict(stays(thirds) && stays(sixths), Keep::SixthHour),
        _ if is_past(point, now, EVERY_HOURS) => verdict(stays(thirds), Keep::ThirdHour),
        _ => Verdict::Keep(Keep::Hourly),
    }
}

/// Whether a point's age has reached so many hours.
fn is_past(point: &Entry, now: Timestamp, hours: i64) -> bool {
    now.duration_since(point.time) >= SignedDuration::from_hours(hours)
}

/// The newest whole point that was taken of the app itself, or the newest of all where none is whole.
fn newest_restorable(points: &[Entry]) -> Option<usize> {
    let own =
        points.iter().enumerate().filter(|(_, p)| !matches!(p.origin, Origin::Foreign | Origin::Imported));
    own.max_by_key(|(_, p)| (p.status == PointStatus::Succeeded, p.time, p.id)).map(|(at, _)| at)
}

/// Of each bucket the point that stays for it.
struct Buckets {
    hours: i64,
    best: HashMap<i64, usize>,
}

impl Buckets {
    /// Among the automatic points that are at least `age_hours` old, those beyond the last boundary too: what was
    /// thinned in favour of one of them does not come back when that one goes.
    fn new(points: &[Entry], now: Timestamp, age_hours: i64, hours: i64) -> Self {
        let mut best = HashMap::new();
        let rank = |p: &Entry| (p.status != PointStatus::Succeeded, p.time, p.id);
        for (at, point) in points.iter().enumerate() {
            if point.origin != Origin::Automatic || !is_past(point, now, age_hours) {
                continue;
            }
            match best.entry(bucket(point, hours)) {
                Slot::Vacant(free) => {
                    free.insert(at);
                }
                Slot::Occupied(mut taken) => {
                    if points.get(*taken.get()).is_some_and(|other| rank(point) < rank(other)) {
                        taken.insert(at);
                    }
                }
            }
        }
        Buckets { hours, best }
    }

    fn stays(&self, at: usize, point: &Entry) -> bool {
        self.best.get(&bucket(point, self.hours)) == Some(&at)
    }
}

fn bucket(point: &Entry, hours: i64) -> i64 {
    point.time.as_second().div_euclid(hours * 3_600)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600;
    /// Midnight, a multiple of six hours.
    const NOW: i64 = 20_000 * 24 * HOUR;

    fn now() -> Timestamp {
        Timestamp::from_second(NOW).unwrap()
    }

    /// An automatic point, so many seconds old.
    fn aged(seconds: i64) -> Entry {
        Entry {
            id: PointId::from_bytes(i128::from(seconds).to_be_bytes()),
            time: Timestamp::from_second(NOW - seconds).unwrap(),
            origin: Origin::Automatic,
            status: PointStatus::Succeeded,
            pinned: false,
        }
    }

    /// Verdicts about points beside a fresh one, so that none is the newest.
    fn verdicts(points: &[Entry]) -> Vec<Verdict> {
        let mut all = points.to_vec();
        all.push(aged(0));
        let mut verdicts = expire(&all, now());
        assert_eq!(verdicts.pop(), Some(Verdict::Keep(Keep::Hourly)));
        verdicts
    }

    const THINNED: Verdict = Verdict::Expire(Expire::Thinned);
    const OLD: Verdict = Verdict::Expire(Expire::Old);

    #[test]
    fn boundaries_are_full_ages() {
        // The three hours that end 72 hours ago: their last second is too young to be thinned.
        let (first, last) = (aged(75 * HOUR), aged(72 * HOUR + 1));
        assert_eq!(verdicts(&[first, last]), [Verdict::Keep(Keep::ThirdHour), THINNED]);
        let three_hours = |age: i64| [aged(age), aged(age - 1)];
        assert_eq!(
            verdicts(&three_hours(72 * HOUR)),
            [Verdict::Keep(Keep::ThirdHour), Verdict::Keep(Keep::Hourly)]
        );
        // Their boundary lies inside three and six hours alike when now is not a multiple of them.
        assert_eq!(
            verdicts(&[aged(336 * HOUR), aged(336 * HOUR - 1)]),
            [Verdict::Keep(Keep::SixthHour), THINNED]
        );
        assert_eq!(verdicts(&[aged(720 * HOUR), aged(720 * HOUR - 1)]), [OLD, THINNED]);
        assert_eq!(verdicts(&[aged(720 * HOUR - 1)]), [Verdict::Keep(Keep::SixthHour)]);
    }

    #[test]
    fn where_hours_were_missed_what_is_there_stays() {
        // Only the last hour of its three; only the fifth of its six.
        assert_eq!(verdicts(&[aged(100 * HOUR)]), [Verdict::Keep(Keep::ThirdHour)]);
        assert_eq!(verdicts(&[aged(500 * HOUR + 1)]), [Verdict::Keep(Keep::SixthHour)]);
    }

    #[test]
    fn a_whole_point_wins_over_an_earlier_partial_one_and_a_partial_one_over_nothing() {
        let partial = Entry { status: PointStatus::PartiallySucceeded, ..aged(99 * HOUR) };
        assert_eq!(verdicts(&[partial, aged(98 * HOUR)]), [THINNED, Verdict::Keep(Keep::ThirdHour)]);
        assert_eq!(verdicts(&[partial]), [Verdict::Keep(Keep::ThirdHour)]);
        // A whole one that is still in its first three days does not push it out yet.
        let partial = Entry { status: PointStatus::PartiallySucceeded, ..aged(72 * HOUR) };
        assert_eq!(
            verdicts(&[partial, aged(71 * HOUR)]),
            [Verdict::Keep(Keep::ThirdHour), Verdict::Keep(Keep::Hourly)]
        );
    }

    #[test]
    fn two_points_in_an_hour_stay_for_three_days_and_one_of_them_after() {
        let pair = |age: i64| [aged(age * HOUR), aged(age * HOUR - 600)];
        assert_eq!(verdicts(&pair(10)), [Verdict::Keep(Keep::Hourly); 2]);
        assert_eq!(verdicts(&pair(99)), [Verdict::Keep(Keep::ThirdHour), THINNED]);
    }

    #[test]
    fn a_pin_adds_and_changes_nothing_else() {
        let pinned = Entry { pinned: true, ..aged(98 * HOUR) };
        assert_eq!(
            verdicts(&[aged(99 * HOUR), pinned, aged(97 * HOUR)]),
            [Verdict::Keep(Keep::ThirdHour), Verdict::Keep(Keep::Pinned), THINNED]
        );
        let old = Entry { pinned: true, ..aged(9_000 * HOUR) };
        assert_eq!(verdicts(&[old]), [Verdict::Keep(Keep::Pinned)]);
    }

    #[test]
    fn what_is_not_automatic_stays_but_safety_points_go_after_30_days() {
        let of = |origin, hours: i64| Entry { origin, ..aged(hours * HOUR) };
        assert_eq!(
            verdicts(&[
                of(Origin::Manual, 9_000),
                of(Origin::Foreign, 9_000),
                of(Origin::Safety, 719),
                of(Origin::Safety, 718),
                of(Origin::Safety, 720),
            ]),
            [
                Verdict::Keep(Keep::Manual),
                Verdict::Keep(Keep::Foreign),
                Verdict::Keep(Keep::Safety),
                Verdict::Keep(Keep::Safety),
                OLD
            ]
        );
        // And none of them stands for an automatic one.
        assert_eq!(
            verdicts(&[of(Origin::Manual, 99), of(Origin::Safety, 98), aged(97 * HOUR)]),
            [Verdict::Keep(Keep::Manual), Verdict::Keep(Keep::Safety), Verdict::Keep(Keep::ThirdHour)]
        );
    }

    #[test]
    fn the_newest_restorable_point_never_goes() {
        assert_eq!(
            expire(&[aged(9_000 * HOUR), aged(8_000 * HOUR)], now()),
            [OLD, Verdict::Keep(Keep::Newest)]
        );
        // Partial ones that are newer do not take its place.
        let partial = |age: i64| Entry { status: PointStatus::PartiallySucceeded, ..aged(age * HOUR) };
        assert_eq!(
            expire(&[aged(9_000 * HOUR), partial(8_000), partial(1)], now()),
            [Verdict::Keep(Keep::Newest), OLD, Verdict::Keep(Keep::Hourly)]
        );
        assert_eq!(expire(&[partial(9_000), partial(8_000)], now()), [OLD, Verdict::Keep(Keep::Newest)]);
        // A foreign one is nobody's newest.
        let foreign = Entry { origin: Origin::Foreign, ..aged(0) };
        assert_eq!(
            expire(&[aged(9_000 * HOUR), foreign], now()),
            [Verdict::Keep(Keep::Newest), Verdict::Keep(Keep::Foreign)]
        );
        assert!(expire(&[], now()).is_empty());
    }

    #[test]
    fn a_point_of_the_future_stays_and_competes_with_nobody() {
        assert_eq!(verdicts(&[aged(-HOUR), aged(-9_000 * HOUR)]), [Verdict::Keep(Keep::Future); 2]);
        let partial = Entry { status: PointStatus::PartiallySucceeded, ..aged(-HOUR) };
        assert_eq!(expire(&[partial], now()), [Verdict::Keep(Keep::Future)]);
    }

    #[test]
    fn verdicts_are_read_by_people_and_programs() {
        let json = serde_json::to_string(&[Verdict::Keep(Keep::SixthHour), THINNED]).unwrap();
        assert_eq!(json, r#"[{"keep":"sixth-hour"},{"expire":"thinned"}]"#);
    }
}
