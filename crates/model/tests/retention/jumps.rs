//! Clocks that are set wrong and put right again while points are taken and expire every hour.

use backstay_model::retention::{ClockWatch, Entry, Reading, Trust};

use crate::{DAY, Dice, HOUR, at, point, survivors};

const START: i64 = 1_790_000_000 / HOUR * HOUR;
const HOURS: i64 = 45 * 24;

/// A machine whose wall clock is wrong by `wrong` seconds during some hours.
struct Machine {
    watch: ClockWatch,
    points: Vec<Entry>,
    held: u64,
}

impl Machine {
    fn tidy(&mut self, wall: i64, boot: &str, since_boot_seconds: i64) {
        let reading = Reading { wall: at(wall), boot: boot.to_owned(), since_boot_seconds };
        let newest = self.points.iter().map(|p| p.time).max();
        match self.watch.judge(&reading, newest) {
            Trust::Trust => self.points = survivors(&self.points, wall),
            Trust::Hold { .. } => self.held += 1,
        }
    }
}

/// Runs `HOURS` of hourly points on a machine whose clock is wrong for some hours from `from` on; gives the points
/// (those stamped by the wrong clock first) and the times at which expiry was held.
fn run(dice: &mut Dice, from: i64, hours: i64, wrong: i64, reboots: bool) -> (Vec<Entry>, Vec<Entry>, u64) {
    let mut machine = Machine { watch: ClockWatch::default(), points: Vec::new(), held: 0 };
    let phase = dice.range(0, 3_500);
    let (mut booted, mut boots) = (START - 50 * DAY, 0);
    let mut wrongly = Vec::new();
    for hour in 0..HOURS {
        let real = START + hour * HOUR + phase;
        let is_wrong = (from..from + hours).contains(&hour);
        if reboots && (hour == from || hour == from + hours || dice.one_in(100)) {
            (booted, boots) = (real - 60, boots + 1);
        }
        let wall = real + if is_wrong { wrong } else { 0 };
        let p = point(hour as usize, wall);
        if is_wrong {
            wrongly.push(p);
        }
        machine.points.push(p);
        machine.tidy(wall, &boots.to_string(), real - booted);
    }
    let (off, right) = machine.points.iter().partition(|p| wrongly.contains(p));
    (off, right, machine.held)
}

#[test]
fn a_clock_that_is_wrong_for_less_than_a_day_costs_no_point() {
    for seed in 0..400 {
        let mut dice = Dice(seed);
        let hours = dice.range(1, 23);
        let from = dice.range(24, HOURS - 60);
        let magnitude = [dice.range(400, 9_000), dice.range(1, 40) * DAY, dice.range(1, 3_000) * DAY];
        let wrong = magnitude[dice.range(0, 2) as usize] * if dice.one_in(2) { -1 } else { 1 };
        let reboots = dice.one_in(2) && wrong.abs() > 3 * DAY;
        let (off, right, held) = run(&mut Dice(seed), from, hours, wrong, reboots);
        let (_, expected, never) = run(&mut Dice(seed), from, hours, 0, reboots);
        assert!(held >= 24, "seed {seed}: held {held} times");
        assert_eq!(never, 0);
        for p in &expected {
            let bucket = |q: &Entry| q.time.as_second() / (3 * HOUR);
            // What the right clock would have kept is there, unless one that was stamped wrongly stands in its place.
            let stands_for = |q: &Entry| bucket(q) == bucket(p) || bucket(q) / 2 == bucket(p) / 2;
            let missed = (from..from + hours).contains(&((p.time.as_second() - START) / HOUR));
            assert!(
                missed || right.contains(p) || off.iter().any(stands_for),
                "seed {seed}: {p:?} was lost; clock wrong by {wrong} s from hour {from} for {hours} h"
            );
        }
    }
}

#[test]
fn without_the_watch_the_same_jump_would_have_cost_nearly_all() {
    // The test above proves nothing unless this is so.
    let points: Vec<Entry> = (0..HOURS).map(|n| point(n as usize, START + n * HOUR)).collect();
    let now = START + HOURS * HOUR - 1;
    assert_eq!(survivors(&points, now).len(), 224);
    assert_eq!(survivors(&points, now + 400 * DAY).len(), 1);
}
