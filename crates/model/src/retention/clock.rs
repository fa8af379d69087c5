//! Whether the clock can be believed before something is deleted by it.
//!
//! A wall clock that jumps forward makes every point look old. So each time before points expire, the wall clock is
//! compared with the time since boot, which nobody can set. After a jump nothing expires until the clock has been
//! steady for 24 hours: time for a person, or for NTP, to put it right.
//!
//! Invariants: no clock is read here. A doubt holds, it never lets go; going on needs 24 hours measured by the time
//! since boot, also when the wall clock jumps on meanwhile. A reading that was lost or is stale makes the next
//! comparison a longer one, never a blind one. Clocks that drift apart by less than 5 minutes between two readings
//! (NTP that slews) are steady.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// Seconds by which wall clock and time since boot may differ between two readings.
const TOLERANCE: i64 = 5 * 60;
/// Seconds by which the wall clock may advance while the machine is off.
const OFF_MAX: i64 = 3 * 24 * 3_600;
/// Seconds of steady clock after a jump.
const STEADY_SECONDS: i64 = 24 * 3_600;

/// What both clocks showed at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// The wall clock.
    pub wall: Timestamp,
    /// The kernel's id of the boot; empty where it is not known.
    pub boot: String,
    /// Seconds since boot, sleep included.
    pub since_boot_seconds: i64,
}

/// Whether points may expire by the clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// The clock is steady.
    Trust,
    /// Nothing expires yet.
    Hold {
        /// When it goes on if the clock stays steady.
        until: Timestamp,
        /// What happened, as a sentence without a full stop.
        why: String,
    },
}

/// What is remembered between two looks at the clocks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockWatch {
    last: Option<Reading>,
    held: Option<Held>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    why: String,
    left_seconds: i64,
}

/// What happened since the last reading.
enum Since {
    Steady(i64),
    Jump(String),
}

impl ClockWatch {
    /// Takes in a reading and says whether the clock can be believed. Where no reading is remembered (a new state, a
    /// lost one), the time of the newest point stands for it.
    pub fn judge(&mut self, now: &Reading, newest_point: Option<Timestamp>) -> Trust {
        let since = match &self.last {
            Some(last) if last.boot == now.boot && !now.boot.is_empty() => same_boot(last, now),
            Some(last) => other_boot(last.wall, now, "while the machine was off"),
            None => newest_point.map_or(Since::Steady(0), |t| other_boot(t, now, "since the newest point")),
        };
        self.last = Some(now.clone());
        match since {
            Since::Jump(why) => self.held = Some(Held { why, left_seconds: STEADY_SECONDS }),
            Since::Steady(seconds) => {
                self.held = self.held.take().and_then(|held| {
                    let left_seconds = held.left_seconds.saturating_sub(seconds.max(0));
                    (left_seconds > 0).then_some(Held { left_seconds, ..held })
                });
            }
        }
        match &self.held {
            None => Trust::Trust,
            Some(held) => Trust::Hold {
                until: now
                    .wall
                    .saturating_add(SignedDuration::from_secs(held.left_seconds))
                    .unwrap_or(Timestamp::MAX),
                why: held.why.clone(),
            },
        }
    }

    /// What the last look found, without looking again; none where nothing is held.
    #[must_use]
    pub fn held(&self) -> Option<&str> {
        self.held.as_ref().map(|held| held.why.as_str())
    }
}

fn same_boot(last: &Reading, now: &Reading) -> Since {
    let wall = now.wall.duration_since(last.wall).as_secs();
    let real = now.since_boot_seconds.saturating_sub(last.since_boot_seconds);
    let jump = wall.saturating_sub(real);
    if jump.saturating_abs() > TOLERANCE {
        let way = if jump > 0 { "forward" } else { "back" };
        return Since::Jump(format!("The clock was set {way} by {}", in_words(jump)));
    }
    Since::Steady(real)
}

fn other_boot(last: Timestamp, now: &Reading, when: &str) -> Since {
    let advance = now.wall.duration_since(last).as_secs();
    if advance > OFF_MAX {
        return Since::Jump(format!("The clock went forward by {} {when}", in_words(advance)));
    }
    if advance < -TOLERANCE {
        return Since::Jump(format!("The clock went back by {} {when}", in_words(advance)));
    }
    // How long the machine was off is not known from itself: only the time since this boot counts as steady.
    Since::Steady(now.since_boot_seconds.min(advance))
}

fn in_words(seconds: i64) -> String {
    match seconds.saturating_abs() {
        s if s >= 2 * 86_400 => format!("{} days", s / 86_400),
        s if s >= 2 * 3_600 => format!("{} hours", s / 3_600),
        s => format!("{} minutes", s / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600;
    const DAY: i64 = 24 * HOUR;
    const START: i64 = 1_800_000_000;

    fn reading(boot: &str, wall: i64, since: i64) -> Reading {
        Reading {
            wall: Timestamp::from_second(START + wall).unwrap(),
            boot: boot.to_owned(),
            since_boot_seconds: since,
        }
    }

    fn holds(trust: &Trust) -> Option<(i64, &str)> {
        match trust {
            Trust::Trust => None,
            Trust::Hold { until, why } => Some((until.as_second() - START, why)),
        }
    }

    #[test]
    fn a_steady_clock_is_believed_over_any_time_and_over_sleep() {
        let mut watch = ClockWatch::default();
        for (wall, since) in
            [(0, 100), (HOUR, 100 + HOUR), (90 * DAY, 100 + 90 * DAY), (90 * DAY + 299, 100 + 90 * DAY)]
        {
            assert_eq!(watch.judge(&reading("a", wall, since), None), Trust::Trust);
        }
        // Off for a night, and booted anew.
        assert_eq!(watch.judge(&reading("b", 91 * DAY, 60), None), Trust::Trust);
        assert_eq!(watch.judge(&reading("c", 94 * DAY, 60), None), Trust::Trust);
    }

    #[test]
    fn a_jump_holds_for_a_day_of_steady_clock() {
        for (jump, why) in [
            (30 * DAY, "The clock was set forward by 29 days"),
            (-30 * DAY, "The clock was set back by 30 days"),
        ] {
            let mut watch = ClockWatch::default();
            watch.judge(&reading("a", 0, 0), None);
            let trust = watch.judge(&reading("a", jump, 60), None);
            assert_eq!(holds(&trust), Some((jump + DAY, why)));
            assert_eq!(watch.held(), Some(why));
            // It counts the time since boot.
            for hours in 1..24 {
                let now = reading("a", jump + hours * HOUR, 60 + hours * HOUR);
                assert_eq!(holds(&watch.judge(&now, None)), Some((jump + DAY, why)), "{hours}");
            }
            assert_eq!(watch.judge(&reading("a", jump + DAY, 60 + DAY), None), Trust::Trust);
            assert_eq!(watch.held(), None);
        }
    }

    #[test]
    fn a_second_jump_begins_the_day_anew_and_going_back_to_right_is_one() {
        let mut watch = ClockWatch::default();
        watch.judge(&reading("a", 0, 0), None);
        watch.judge(&reading("a", 40 * DAY, HOUR), None);
        let right_again = watch.judge(&reading("a", 23 * HOUR, 23 * HOUR), None);
        assert_eq!(holds(&right_again), Some((47 * HOUR, "The clock was set back by 39 days")));
        assert!(holds(&watch.judge(&reading("a", 46 * HOUR, 46 * HOUR), None)).is_some());
        assert!(holds(&watch.judge(&reading("a", 47 * HOUR, 47 * HOUR), None)).is_none());
    }

    #[test]
    fn minutes_are_tolerated_and_more_is_not() {
        for (drift, held) in [(300, false), (-300, false), (301, true), (-301, true)] {
            let mut watch = ClockWatch::default();
            watch.judge(&reading("a", 0, 0), None);
            assert_eq!(watch.judge(&reading("a", HOUR + drift, HOUR), None) != Trust::Trust, held, "{drift}");
        }
    }

    #[test]
    fn over_a_boot_more_than_three_days_or_backwards_holds() {
        for (advance, held) in
            [(3 * DAY, false), (3 * DAY + 1, true), (-300, false), (-301, true), (365 * DAY, true)]
        {
            let mut watch = ClockWatch::default();
            watch.judge(&reading("a", 0, 500), None);
            let trust = watch.judge(&reading("b", advance, 30), None);
            assert_eq!(trust != Trust::Trust, held, "{advance}");
        }
        // Being off does not count as steady.
        let mut watch = ClockWatch::default();
        watch.judge(&reading("a", 0, 0), None);
        watch.judge(&reading("a", DAY, 0), None);
        assert!(holds(&watch.judge(&reading("b", 3 * DAY, 60), None)).is_some());
        // A boot whose id is not known is another one.
        let mut watch = ClockWatch::default();
        watch.judge(&reading("", 0, 0), None);
        assert!(holds(&watch.judge(&reading("", DAY, 10), None)).is_none());
    }

    #[test]
    fn without_a_reading_the_newest_point_stands_for_it() {
        let at = |seconds: i64| Some(Timestamp::from_second(START + seconds).unwrap());
        let first = |newest| ClockWatch::default().judge(&reading("a", 0, 1_000 * DAY), newest);
        assert_eq!(first(None), Trust::Trust);
        assert_eq!(first(at(-3 * DAY)), Trust::Trust);
        assert_eq!(
            holds(&first(at(-400 * DAY))),
            Some((DAY, "The clock went forward by 400 days since the newest point"))
        );
        assert!(holds(&first(at(HOUR))).is_some());
    }

    #[test]
    fn a_stale_reading_hides_no_jump() {
        // Another process stored an older reading over a newer one: the jump is seen again from there.
        let mut stale = ClockWatch::default();
        stale.judge(&reading("a", 0, 0), None);
        let mut watch = stale.clone();
        assert!(holds(&watch.judge(&reading("a", 40 * DAY, 60), None)).is_some());
        assert!(holds(&stale.judge(&reading("a", 40 * DAY, 120), None)).is_some());
        // A reading taken before the stored one lets nothing go.
        assert!(holds(&watch.judge(&reading("a", 40 * DAY - 30, 30), None)).is_some());
        let json = serde_json::to_string(&watch).unwrap();
        assert_eq!(serde_json::from_str::<ClockWatch>(&json).unwrap(), watch);
    }
}
