//! When automatic points are taken: every hour, each app at its own minute.
//!
//! Invariants: pure arithmetic, no clock. An hour is an hour of UTC counted from 1970, so zones and summer time have
//! no say. At most one run belongs to an hour; hours that went by without a scheduler are made up for by one run.
//! The wall clock may be set back or forward at any time: a clock set back neither makes two runs within one hour
//! of real time nor stops them for longer than two hours, because the time since boot is looked at too.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::AppName;

/// Seconds in an hour.
const HOUR: i64 = 3_600;

/// The present, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    /// The wall clock.
    pub now: Timestamp,
    /// The kernel's id of this boot.
    pub boot: &'a str,
    /// Time since that boot.
    pub uptime: Duration,
}

/// What is remembered of an app's last run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRun {
    /// The hour it belonged to, counted from 1970 in UTC.
    pub hour: i64,
    /// The latest hour any run belonged to; above `hour` only after the clock was set back.
    pub latest: i64,
    /// The boot in which it began.
    pub boot: String,
    /// Seconds from that boot to its beginning.
    pub uptime: u64,
}

/// Hours without a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missed {
    /// When the first of them should have been.
    pub from: Timestamp,
    /// How many.
    pub runs: u64,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Run now; afterwards `last` is what is to be remembered.
    Run {
        /// To be remembered.
        last: LastRun,
        /// Hours that went by before.
        missed: Option<Missed>,
    },
    /// Nothing yet.
    Wait {
        /// For so long, if no clock is set meanwhile.
        time: Duration,
        /// To be remembered from now on instead of what was: the clock was set back while the machine was off.
        settle: Option<LastRun>,
    },
}

/// By how much the runs of an app come after the full hour: the same for ever, different between apps, below `jitter`.
#[must_use]
pub fn offset(app: &AppName, jitter: Duration) -> Duration {
    // FNV-1a: stable over versions and machines, which the standard library's hashers do not promise.
    let hash = app.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    // The low bits of FNV are the poorer ones.
    Duration::from_secs((hash >> 16).checked_rem(jitter.as_secs()).unwrap_or(0))
}

/// What an app's schedule asks for at a moment.
#[must_use]
pub fn next(moment: &Moment<'_>, last: Option<&LastRun>, offset: Duration) -> Next {
    next_of(moment, last, i64::try_from(offset.as_secs()).unwrap_or(0), HOUR)
}

/// What is remembered when the period that runs now is to pass without a run.
pub(crate) fn passed(moment: &Moment<'_>, offset: i64, period: i64) -> LastRun {
    let hour = moment.now.as_second().saturating_sub(offset).div_euclid(period.max(1));
    LastRun { hour, latest: hour, boot: moment.boot.to_owned(), uptime: moment.uptime.as_secs() }
}

/// The same for periods of any length in seconds, which stand for the hours then. They begin `offset` seconds after
/// multiples of the period since 1970.
pub(crate) fn next_of(moment: &Moment<'_>, last: Option<&LastRun>, offset: i64, period: i64) -> Next {
    let period = period.max(1);
    let now = moment.now.as_second();
    let hour = now.saturating_sub(offset).div_euclid(period);
    let at = |hour: i64| hour.saturating_mul(period).saturating_add(offset);
    let until =
        |hour: i64| Duration::from_secs(u64::try_from(at(hour).saturating_sub(now)).unwrap_or(0).max(1));
    let remember = |latest: i64| LastRun { latest: latest.max(hour), ..passed(moment, offset, period) };
    let Some(last) = last else { return Next::Run { last: remember(hour), missed: None } };
    if hour > last.hour {
        let first = last.latest.max(last.hour).saturating_add(1);
        let runs = u64::try_from(hour.saturating_sub(first)).unwrap_or(0);
        let from = Timestamp::from_second(at(first)).ok().filter(|_| runs > 0);
        return Next::Run { last: remember(last.latest), missed: from.map(|from| Missed { from, runs }) };
    }
    if hour == last.hour {
        return Next::Wait { time: until(hour.saturating_add(1)), settle: None };
    }
    // The clock was set back.
    if last.boot != moment.boot {
        // How long ago the last run was is not known. A little (a clock that was put right): what was done is done.
        // More: this hour counts as done, the next one does not.
        if hour == last.hour.saturating_sub(1) {
            return Next::Wait { time: until(last.hour.saturating_add(1)), settle: None };
        }
        return Next::Wait { time: until(hour.saturating_add(1)), settle: Some(remember(last.latest)) };
    }
    let since = moment.uptime.saturating_sub(Duration::from_secs(last.uptime));
    match Duration::from_secs(period.unsigned_abs()).checked_sub(since) {
        None | Some(Duration::ZERO) => Next::Run { last: remember(last.latest), missed: None },
        Some(time) => Next::Wait { time, settle: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JITTER: Duration = Duration::from_secs(600);

    /// A machine whose clocks run and can be set, with a scheduler that looks every minute.
    struct Machine {
        wall: i64,
        uptime: u64,
        boot: String,
        offset: Duration,
        last: Option<LastRun>,
        /// Real seconds of each run, its wall clock, and what was missed before.
        runs: Vec<(u64, i64, u64)>,
        real: u64,
    }

    impl Machine {
        fn at(wall: &str) -> Self {
            let wall: Timestamp = wall.parse().unwrap();
            let offset = offset(&AppName::suggest("blog"), JITTER);
            let (boot, last, runs) = ("one".to_owned(), None, Vec::new());
            Machine { wall: wall.as_second(), uptime: 1_000, boot, offset, last, runs, real: 0 }
        }

        fn look(&mut self) {
            let now = Timestamp::from_second(self.wall).unwrap();
            let moment = Moment { now, boot: &self.boot, uptime: Duration::from_secs(self.uptime) };
            match next(&moment, self.last.as_ref(), self.offset) {
                Next::Run { last, missed } => {
                    self.last = Some(last);
                    self.runs.push((self.real, self.wall, missed.map_or(0, |m| m.runs)));
                }
                Next::Wait { time, settle } => {
                    assert!(time <= Duration::from_secs(7_200), "waits for {time:?}");
                    if settle.is_some() {
                        self.last = settle;
                    }
                }
            }
        }

        /// The scheduler runs for so many minutes.
        fn run(&mut self, minutes: u64) {
            for _ in 0..minutes {
                self.look();
                self.off(60);
            }
        }

        /// Time passes without a scheduler.
        fn off(&mut self, seconds: u64) {
            self.wall += i64::try_from(seconds).unwrap();
            self.uptime += seconds;
            self.real += seconds;
        }

        fn reboot(&mut self) {
            self.boot.push('+');
            self.uptime = 5;
        }
    }

    #[test]
    fn offsets_are_stable_spread_and_below_the_jitter() {
        assert_eq!(offset(&AppName::suggest("blog"), JITTER), Duration::from_secs(217));
        assert_eq!(offset(&AppName::suggest("blog"), Duration::ZERO), Duration::ZERO);
        let all: Vec<u64> =
            (0..1_000).map(|n| offset(&AppName::suggest(&format!("app-{n}")), JITTER).as_secs()).collect();
        assert!(all.iter().all(|s| *s < 600));
        for minute in 0..10 {
            let n = all.iter().filter(|s| **s / 60 == minute).count();
            assert!((60..=140).contains(&n), "{n} of 1,000 in minute {minute}");
        }
    }

    #[test]
    fn a_steady_clock_gives_one_run_an_hour_at_the_same_minute() {
        let mut machine = Machine::at("2026-11-20T12:34:00Z");
        machine.run(60 * 24 * 3);
        assert_eq!(machine.runs.len(), 1 + 72, "one at once, then hourly");
        let offset = i64::try_from(machine.offset.as_secs()).unwrap();
        for (_, wall, missed) in machine.runs.iter().skip(1) {
            let after = wall.rem_euclid(HOUR) - offset;
            assert!((0..60).contains(&after), "{after} s after its minute");
            assert_eq!(*missed, 0);
        }
    }

    #[test]
    fn hours_without_a_scheduler_are_made_up_for_by_one_run_that_tells_them() {
        let mut machine = Machine::at("2026-11-20T12:34:00Z");
        machine.run(60);
        let before = machine.runs.len();
        machine.off(48 * 3_600);
        machine.reboot();
        machine.run(20);
        assert_eq!(machine.runs.len(), before + 1, "once");
        assert_eq!(
            machine.runs.last().unwrap().2,
            47,
            "two days without, but for the hour it is caught up in"
        );
        machine.run(60);
        assert_eq!(machine.runs.last().unwrap().2, 0);
        // A restart within the hour misses nothing and runs nothing again.
        let before = machine.runs.len();
        machine.reboot();
        machine.run(1);
        assert_eq!(machine.runs.len(), before);
    }

    #[test]
    fn the_time_of_the_first_missed_run_is_told() {
        let last = LastRun { hour: 100, latest: 100, boot: "b".into(), uptime: 0 };
        let now = Timestamp::from_second(105 * HOUR + 300).unwrap();
        let moment = Moment { now, boot: "b", uptime: Duration::from_secs(50) };
        let Next::Run { last, missed } = next(&moment, Some(&last), Duration::from_secs(290)) else {
            panic!("it is due");
        };
        let from = Timestamp::from_second(101 * HOUR + 290).unwrap();
        assert_eq!((last.hour, missed), (105, Some(Missed { from, runs: 4 })));
    }

    /// Sets the wall clock by so much after some hours; looks at what follows.
    fn set(by: i64, reboot: bool) -> Machine {
        let mut machine = Machine::at("2026-11-20T12:00:00Z");
        machine.run(60 * 5 + 7);
        machine.wall += by;
        if reboot {
            machine.reboot();
        }
        machine.run(60 * 12);
        machine
    }

    #[test]
    fn a_clock_set_back_neither_doubles_nor_stops() {
        for by in
            [-1, -30, -400, -1_800, -3_599, -3_600, -3_601, -5_400, -7_200, -36_000, -864_000, -500_000_000]
        {
            for reboot in [false, true] {
                let machine = set(by, reboot);
                let gaps: Vec<u64> = machine.runs.windows(2).map(|w| w[1].0 - w[0].0).collect();
                for (n, gap) in gaps.iter().enumerate() {
                    // Nothing is known of a time without power: there an hour may be begun anew.
                    let least = if n == 0 || reboot { 1 } else { 600 };
                    assert!(*gap >= least, "by {by}, reboot {reboot}: {gap} s between runs");
                    assert!(*gap <= 7_320, "by {by}, reboot {reboot}: nothing for {gap} s");
                }
                let hours: Vec<i64> = machine.runs.iter().map(|r| r.1.div_euclid(HOUR)).collect();
                let after: Vec<i64> = hours.iter().skip(6).copied().collect();
                let mut once = after.clone();
                once.dedup();
                assert_eq!(after, once, "by {by}, reboot {reboot}: twice in an hour of the new time");
                assert!(
                    (16..=19).contains(&machine.runs.len()),
                    "by {by}: {} runs in 17 hours",
                    machine.runs.len()
                );
                assert!(machine.runs.iter().all(|r| r.2 == 0), "by {by}: nothing was missed");
            }
        }
    }

    #[test]
    fn within_one_boot_no_two_runs_come_within_an_hour_of_a_set_back() {
        for by in [-600, -1_800, -3_600, -36_000] {
            let machine = set(by, false);
            // The run after the one before the change.
            let change = 60 * (60 * 5 + 7);
            let before = machine.runs.iter().rev().find(|r| r.0 < change).unwrap().0;
            let after = machine.runs.iter().find(|r| r.0 >= change).unwrap().0;
            assert!(after - before >= 3_600, "by {by}: {} s", after - before);
        }
    }

    #[test]
    fn a_clock_set_forward_runs_once_and_back_again_does_not_stop() {
        let mut machine = Machine::at("2026-11-20T12:00:00Z");
        machine.run(130);
        let before = machine.runs.len();
        machine.wall += 5 * 3_600;
        machine.run(2);
        assert_eq!(machine.runs.len(), before + 1);
        machine.wall -= 5 * 3_600;
        machine.run(61);
        assert_eq!(machine.runs.len(), before + 2, "an hour later it goes on");
        machine.run(60 * 10);
        assert!((11..=13).contains(&(machine.runs.len() - before)), "{}", machine.runs.len() - before);
        // What was run before its time is not told as missed when it is run again, nor twice.
        assert_eq!(
            machine.runs.iter().map(|r| r.2).sum::<u64>(),
            4,
            "the jump itself looks like hours without runs"
        );
    }

    #[test]
    fn summer_time_has_no_say() {
        // The nights in which clocks of Europe change, in both directions.
        for night in ["2026-03-28T20:00:00Z", "2026-10-24T20:00:00Z"] {
            let mut machine = Machine::at(night);
            machine.run(60 * 12);
            assert_eq!(machine.runs.len(), 1 + 12, "{night}");
            assert!(machine.runs.iter().all(|r| r.2 == 0));
        }
    }
}
