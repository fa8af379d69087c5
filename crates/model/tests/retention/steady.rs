//! Months of hourly points: how many stay, hour by hour, and whether it matters when expiry runs.

use backstay_model::retention::{Entry, STEADY};

use crate::oracle::Cupboard;
use crate::{DAY, Dice, HOUR, point, survivors};

const START: i64 = 1_790_000_000 / HOUR * HOUR;
const HOURS: i64 = 120 * 24;

#[test]
fn exactly_224_at_every_hour_of_three_months_in_any_phase() {
    let mut dice = Dice(7);
    let mut phases = vec![0, 1, 420, 1_800, 3_599];
    phases.extend((0..7).map(|_| dice.range(0, 3_599)));
    for (n, phase) in phases.into_iter().enumerate() {
        let offset = n as i64 * HOUR;
        let mut points: Vec<Entry> = Vec::new();
        for hour in 0..HOURS {
            let time = START + offset + hour * HOUR + phase;
            points.push(point(hour as usize, time));
            // The moment of the point, some time after it, and just before the next one.
            for later in [0, 90, dice.range(0, 3_599), 3_599] {
                points = survivors(&points, time + later);
                match hour {
                    0..72 => assert_eq!(points.len() as i64, hour + 1),
                    720.. => assert_eq!(points.len(), STEADY, "hour {hour}, phase {phase} + {later}"),
                    // The first six hours may be broken ones.
                    _ => assert!(points.len() <= STEADY + 2),
                }
            }
        }
    }
}

#[test]
fn with_jitter_never_fewer_and_at_most_one_more_at_each_boundary() {
    let mut dice = Dice(8);
    for _ in 0..8 {
        let mut points: Vec<Entry> = Vec::new();
        let mut most = 0;
        for hour in 0..HOURS {
            let time = START + hour * HOUR + dice.range(0, 3_000);
            points.push(point(hour as usize, time));
            points = survivors(&points, time + dice.range(0, 500));
            if hour >= 720 {
                assert!((STEADY..=STEADY + 3).contains(&points.len()), "{} at {hour}", points.len());
                most = most.max(points.len());
            }
        }
        assert!(most > STEADY);
    }
}

#[test]
fn every_hour_every_day_every_month_or_once_leaves_the_same() {
    for (seed, every) in [(1, 1), (2, 24), (3, 37), (4, 30 * 24), (5, HOURS)] {
        let mut dice = Dice(seed);
        let mut all: Vec<Entry> = Vec::new();
        let (mut kept, mut oracle) = (Vec::new(), Cupboard::default());
        for hour in 0..HOURS {
            // Outages of hours and days, and single hours missed.
            if !dice.one_in(9) && !(900..950).contains(&hour) {
                let p = point(hour as usize, START + hour * HOUR + dice.range(0, 3_599));
                all.push(p);
                kept.push(p);
                oracle.put(p);
            }
            let now = START + (hour + 1) * HOUR;
            if hour % 24 == 5 {
                oracle.tidy(now);
            }
            if hour % every == every - 1 {
                kept = survivors(&kept, now);
            }
        }
        let now = START + HOURS * HOUR + DAY;
        oracle.tidy(now);
        let once = survivors(&all, now);
        assert_eq!(survivors(&kept, now), once);
        assert_eq!(oracle.points, once);
    }
}

#[test]
fn a_long_silence_leaves_the_newest_and_coming_back_goes_on() {
    let mut points: Vec<Entry> = (0..100).map(|n| point(n, START + n as i64 * HOUR)).collect();
    let newest = points[99];
    points = survivors(&points, START + 400 * DAY);
    assert_eq!(points, [newest]);
    let back = point(100, START + 401 * DAY);
    points.push(back);
    assert_eq!(survivors(&points, START + 401 * DAY), [back]);
}
