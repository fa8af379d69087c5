//! A million random timelines: gaps, jitter, two points in an hour, partial and pinned ones, wall times that jump with
//! daylight saving, clocks that were wrong for a while. Each is expired at once by the code under test, step by step by
//! the same code, and step by step by the oracle (at other times): all three must agree.

use std::cell::RefCell;

use backstay_model::retention::{Entry, Keep, Verdict, expire};
use backstay_model::{Origin, PointStatus};

use crate::oracle::Cupboard;
use crate::{DAY, Dice, HOUR, at, point, survivors};

const TIMELINES: u64 = 1_000_000;

/// A moment in 2025 to 2027, any phase of the hour.
fn moment(dice: &mut Dice) -> i64 {
    dice.range(1_735_689_600, 1_830_000_000)
}

/// When points were taken: a run of hours that ends near a boundary of age, with what may happen to it.
fn times(dice: &mut Dice, now: i64) -> Vec<i64> {
    let boundary = [0, 3 * DAY, 14 * DAY, 30 * DAY][dice.range(0, 3) as usize];
    let last = now - boundary + dice.range(-4 * HOUR, 9 * HOUR);
    let count = dice.range(1, 14);
    let (jitter, gaps, doubles) = (dice.range(0, 2), dice.range(2, 12) as u64, dice.range(2, 30) as u64);
    // Wall time of a place whose clock goes back or forth by an hour in the middle of the run.
    let shift = [0, 0, HOUR, -HOUR][dice.range(0, 3) as usize];
    let shifts_after = dice.range(0, count);
    let mut times = Vec::new();
    for n in 0..count {
        let mut time = last - (count - n) * HOUR;
        time += if n > shifts_after { shift } else { 0 };
        time += [0, dice.range(0, 600), dice.range(-1_700, 1_700)][jitter as usize];
        if !dice.one_in(gaps) {
            times.push(time);
        }
        if dice.one_in(doubles) {
            times.push(time + dice.range(0, 1_800));
        }
    }
    // Some lie elsewhere: a second run, or what was stamped by a clock that was wrong.
    for _ in 0..dice.range(0, 4) {
        times.push(now - dice.range(-2 * DAY, 32 * DAY));
    }
    times
}

fn timeline(dice: &mut Dice, now: i64) -> Vec<Entry> {
    let partial = dice.range(1, 9) as u64;
    let mut points = Vec::new();
    for (n, time) in times(dice, now).into_iter().enumerate() {
        let mut p = point(n, time);
        if dice.one_in(partial) {
            p.status = PointStatus::PartiallySucceeded;
        }
        p.pinned = dice.one_in(20);
        p.origin = match dice.range(0, 30) {
            0 => Origin::Manual,
            1 => Origin::Safety,
            2 => Origin::Foreign,
            _ => Origin::Automatic,
        };
        points.push(p);
    }
    points
}

fn shuffle(dice: &mut Dice, points: &mut [Entry]) {
    for n in (1..points.len()).rev() {
        points.swap(n, dice.range(0, n as i64) as usize);
    }
}

/// Times at which somebody tidies before `now`.
fn visits(dice: &mut Dice, now: i64) -> Vec<i64> {
    let mut visits: Vec<i64> = (0..dice.range(0, 5)).map(|_| now - dice.range(0, 20 * DAY)).collect();
    if dice.one_in(4) {
        visits.extend((1..dice.range(2, 12)).map(|n| now - n * HOUR));
    }
    visits.sort_unstable();
    visits.push(now);
    visits
}

/// Takes the points as their times come, tidying at each visit; what is stamped later than the last visit is there too.
fn live(points: &[Entry], visits: &[i64], put: &mut dyn FnMut(Entry), tidy: &mut dyn FnMut(i64)) {
    let mut waiting = points.to_vec();
    for (n, visit) in visits.iter().enumerate() {
        let all = n + 1 == visits.len();
        waiting.retain(|p| {
            let here = all || p.time.as_second() <= *visit;
            if here {
                put(*p);
            }
            !here
        });
        tidy(*visit);
    }
}

fn sorted(mut points: Vec<Entry>) -> Vec<Entry> {
    points.sort_by_key(|p| (p.time, p.id));
    points
}

/// A point that was spared as the newest of its time may outlive the one that stood for both: nothing is wrong with
/// that.
fn without(mut points: Vec<Entry>, spared: &[Entry], unless: &[Entry]) -> Vec<Entry> {
    points.retain(|p| unless.contains(p) || !spared.contains(p));
    points
}

fn check(seed: u64) {
    let mut dice = Dice(seed);
    let now = moment(&mut dice);
    let mut points = timeline(&mut dice, now);
    shuffle(&mut dice, &mut points);
    let at_once = survivors(&points, now);
    assert_eq!(survivors(&at_once, now), at_once, "twice is once, seed {seed}");
    let at_once = sorted(at_once);

    let oracle = RefCell::new(Cupboard::default());
    let (put, tidy) = (&mut |p| oracle.borrow_mut().put(p), &mut |now| oracle.borrow_mut().tidy(now));
    live(&points, &visits(&mut dice, now), put, tidy);
    let Cupboard { points: kept, spared } = oracle.into_inner();
    assert_eq!(at_once, without(kept, &spared, &at_once), "the oracle, seed {seed}, {points:?}");

    let steps = RefCell::new((Vec::new(), Vec::new()));
    let (put, tidy) = (&mut |p| steps.borrow_mut().0.push(p), &mut |now| {
        let (points, spared) = &mut *steps.borrow_mut();
        let verdicts = expire(points, at(now));
        let newest = |(_, v): &(&Entry, &Verdict)| **v == Verdict::Keep(Keep::Newest);
        spared.extend(points.iter().zip(&verdicts).filter(newest).map(|(p, _)| *p));
        *points = survivors(points, now);
    });
    live(&points, &visits(&mut dice, now), put, tidy);
    let (kept, spared) = steps.into_inner();
    let kept = without(sorted(kept), &spared, &at_once);
    assert_eq!(at_once, kept, "step by step, seed {seed}, {points:?}");

    let whole = |list: &[Entry]| {
        list.iter().filter(|p| p.origin != Origin::Foreign && p.status == PointStatus::Succeeded).count()
    };
    assert!(whole(&points) == 0 || whole(&at_once) > 0, "nothing restorable is left, seed {seed}");
}

#[test]
fn a_million_timelines_agree_with_the_oracle() {
    let threads: u64 = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    std::thread::scope(|scope| {
        for first in 0..threads {
            scope.spawn(move || (first..TIMELINES).step_by(threads as usize).for_each(check));
        }
    });
}
