//! Custom backups: archives in a container, taken on demand or by a schedule.
//!
//! Invariants: pure. A schedule counts whole hours of real time from its start, in UTC, so zones and summer time have
//! no say; what is due follows from [`crate::schedule`], so clocks that are set neither double nor stop it. What goes by
//! age is decided by [`Schedule::expired`] alone: nothing that a person asked for is ever among it.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::schedule::{self, LastRun, Moment, Next};
use crate::{AppName, Code, Error, PointId, PointStatus, Result};

/// Seconds in an hour.
const HOUR: i64 = 3_600;
/// Seconds in a day.
const DAY: i64 = 86_400;
/// Longest time between two runs, in hours: a year.
const EVERY_MAX: u32 = 366 * 24;
/// Longest time that backups are kept by a schedule, in days: a hundred years.
const KEEP_MAX: u32 = 36_525;

/// Who asked for a custom backup; decides who may expire it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Occasion {
    /// A person; kept until deleted.
    Manual,
    /// A schedule; kept as long as the schedule says.
    Scheduled,
}

/// Who signed the manifest of a custom backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Signer {
    /// This server.
    ThisServer,
    /// Somebody whose key is not known here.
    Unknown,
    /// Nobody.
    Nobody,
}

/// A custom backup as listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustomBackup {
    /// Its id.
    pub id: PointId,
    /// Whose.
    pub app: AppName,
    /// The place it lies in, as an address without secrets.
    pub container: String,
    /// What its objects there are called, without their endings.
    pub name: String,
    /// When it was taken (start of the reading), by the clock of the machine that took it.
    pub time: Timestamp,
    /// Who asked for it.
    pub occasion: Occasion,
    /// How complete it is.
    pub status: PointStatus,
    /// Files in it.
    pub files: u64,
    /// Bytes of file content in it.
    pub bytes: u64,
    /// Bytes of its zip.
    pub stored_bytes: u64,
    /// The machine that took it.
    pub host: String,
    /// The app's home on that machine, escaped.
    pub home: String,
    /// Who signed its manifest.
    pub signer: Signer,
    /// Whether its removal has begun: the next command that looks ends it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub removing: bool,
    /// Rules of the filter that named nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unmatched: Vec<String>,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// When custom backups of an app are taken by themselves, where they go and how long they stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// Hours from one run to the next.
    pub every_hours: u32,
    /// The first run; the others follow from it.
    pub start: Timestamp,
    /// Days that its backups stay; 0 for ever.
    pub keep_days: u32,
    /// Whether the newest whole one stays whatever its age.
    #[serde(default)]
    pub keep_one: bool,
    /// The name of the container they go into.
    pub container: String,
}

impl Schedule {
    /// `InvalidValue` where something in it could not be meant.
    pub fn check(&self) -> Result<()> {
        let bad = |message: String| Err(Error::new(Code::InvalidValue, message));
        if !(1..=EVERY_MAX).contains(&self.every_hours) {
            return bad(format!("A schedule runs every 1 to {EVERY_MAX} hours"));
        }
        if self.keep_days > KEEP_MAX {
            return bad(format!("Backups are kept for at most {KEEP_MAX} days, or 0 for ever"));
        }
        Ok(())
    }

    /// Seconds from one run to the next.
    fn period(&self) -> i64 {
        i64::from(self.every_hours.max(1)) * HOUR
    }

    /// By how much its runs come after multiples of the period since 1970.
    fn offset(&self) -> i64 {
        self.start.as_second().rem_euclid(self.period())
    }

    /// What it asks for at a moment. Before its start: nothing.
    #[must_use]
    pub fn next(&self, moment: &Moment<'_>, last: Option<&LastRun>) -> Next {
        let ahead = self.start.as_second().saturating_sub(moment.now.as_second());
        match u64::try_from(ahead) {
            Ok(ahead) if ahead > 0 && last.is_none() => {
                Next::Wait { time: Duration::from_secs(ahead), settle: None }
            }
            _ => schedule::next_of(moment, last, self.offset(), self.period()),
        }
    }

    /// What is remembered when the time that runs now is to pass without a run.
    #[must_use]
    pub fn passed(&self, moment: &Moment<'_>) -> LastRun {
        schedule::passed(moment, self.offset(), self.period())
    }

    /// Until when a backup that it took stays; none for ever.
    #[must_use]
    pub fn keep_until(&self, time: Timestamp) -> Option<Timestamp> {
        let days = i64::from(self.keep_days);
        let until = time.as_second().saturating_add(days.saturating_mul(DAY));
        Timestamp::from_second(until).ok().filter(|_| days > 0)
    }

    /// Which of an app's custom backups go by age now, oldest first: those that it took and that are older than it
    /// keeps, but with `keep_one` for the newest whole one of them (the newest, where none is whole).
    #[must_use]
    pub fn expired<'b>(&self, backups: &'b [CustomBackup], now: Timestamp) -> Vec<&'b CustomBackup> {
        let mut own: Vec<&CustomBackup> =
            backups.iter().filter(|b| b.occasion == Occasion::Scheduled && !b.removing).collect();
        own.sort_by_key(|b| (b.time, b.id));
        let whole = own.iter().rev().find(|b| b.status == PointStatus::Succeeded).or(own.last());
        let kept = whole.filter(|_| self.keep_one).map(|b| b.id);
        own.retain(|b| self.keep_until(b.time).is_some_and(|until| until < now) && Some(b.id) != kept);
        own
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.every_hours {
            hours if hours % 24 == 0 => write!(f, "every {} d", hours / 24)?,
            hours => write!(f, "every {hours} h")?,
        }
        write!(f, " into {}, ", self.container)?;
        match self.keep_days {
            0 => f.write_str("kept for ever"),
            days => write!(f, "kept for {days} d{}", if self.keep_one { ", at least one" } else { "" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn plan(every_hours: u32, start: &str) -> Schedule {
        Schedule { every_hours, start: at(start), keep_days: 14, keep_one: false, container: "c".into() }
    }

    /// A machine whose clocks run and can be set, with a scheduler that looks every `step` seconds.
    struct Machine {
        schedule: Schedule,
        wall: i64,
        uptime: u64,
        boot: u32,
        last: Option<LastRun>,
        /// Seconds of real time and of the wall clock of each run, and what was missed before it.
        runs: Vec<(u64, i64, u64)>,
        real: u64,
    }

    impl Machine {
        fn new(schedule: Schedule, wall: &str) -> Self {
            let wall = at(wall).as_second();
            Machine { schedule, wall, uptime: 100, boot: 0, last: None, runs: Vec::new(), real: 0 }
        }

        fn look(&mut self) {
            let boot = self.boot.to_string();
            let now = Timestamp::from_second(self.wall).unwrap();
            let moment = Moment { now, boot: &boot, uptime: Duration::from_secs(self.uptime) };
            match self.schedule.next(&moment, self.last.as_ref()) {
                Next::Run { last, missed } => {
                    self.last = Some(last);
                    self.runs.push((self.real, self.wall, missed.map_or(0, |m| m.runs)));
                }
                Next::Wait { settle: Some(last), .. } => self.last = Some(last),
                Next::Wait { .. } => {}
            }
        }

        fn off(&mut self, seconds: u64) {
            self.wall += i64::try_from(seconds).unwrap();
            self.uptime += seconds;
            self.real += seconds;
        }

        fn run(&mut self, seconds: u64, step: u64) {
            for _ in 0..seconds / step {
                self.look();
                self.off(step);
            }
        }
    }

    /// A generator that is good enough to choose cases.
    fn random(seed: &mut u64) -> u64 {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        *seed
    }

    #[test]
    fn runs_come_at_multiples_from_the_start_whatever_zones_do() {
        // Over both nights in which clocks of Europe change, and those of America.
        for start in ["2026-03-01T02:30:00+01:00", "2026-10-01T02:30:00-04:00"] {
            for every in [1_u32, 6, 24, 48, 24 * 7] {
                let mut machine = Machine::new(plan(every, start), start);
                machine.off(17);
                machine.run(60 * 86_400, 60);
                let first = at(start).as_second();
                let period = i64::from(every) * HOUR;
                for (n, (_, wall, missed)) in machine.runs.iter().enumerate() {
                    let late = wall - first - period * i64::try_from(n).unwrap();
                    assert!((0..60).contains(&late), "{start}, every {every} h: run {n} is {late} s late");
                    assert_eq!(*missed, 0);
                }
                assert_eq!(
                    machine.runs.len(),
                    60 * 24 / usize::try_from(every).unwrap() + usize::from(60 * 24 % every != 0)
                );
            }
        }
    }

    #[test]
    fn nothing_before_the_start_and_nothing_at_once_when_the_present_time_is_passed_over() {
        let mut machine = Machine::new(plan(24, "2026-11-21T02:00:00Z"), "2026-11-20T16:00:00Z");
        machine.run(9 * 3_600, 60);
        assert_eq!(machine.runs, []);
        machine.run(2 * 3_600, 60);
        assert_eq!(machine.runs.len(), 1);

        let mut machine = Machine::new(plan(24, "2026-11-01T02:00:00Z"), "2026-11-20T16:00:00Z");
        let now = Timestamp::from_second(machine.wall).unwrap();
        let moment = Moment { now, boot: "0", uptime: Duration::from_secs(machine.uptime) };
        machine.last = Some(machine.schedule.passed(&moment));
        machine.run(9 * 3_600, 60);
        assert_eq!(machine.runs, []);
        machine.run(2 * 3_600, 60);
        assert_eq!(machine.runs.len(), 1);
        assert_eq!(machine.runs[0].2, 0, "nothing was missed");
    }

    #[test]
    fn runs_that_were_missed_are_made_up_for_once() {
        let mut machine = Machine::new(plan(6, "2026-11-20T00:00:00Z"), "2026-11-20T00:00:00Z");
        machine.run(60, 60);
        machine.off(5 * 86_400);
        machine.boot += 1;
        machine.uptime = 3;
        machine.run(3_600, 60);
        assert_eq!(machine.runs.len(), 2);
        assert_eq!(machine.runs[1].2, 19, "twenty times went by, the last one is made up for");
    }

    #[test]
    fn clocks_that_jump_neither_double_nor_stop_it() {
        let mut seed = 0x5eed_u64;
        for case in 0..300 {
            let every = [1_u32, 2, 5, 6, 24, 72][usize::try_from(random(&mut seed) % 6).unwrap()];
            let period = u64::from(every) * 3_600;
            let mut machine = Machine::new(plan(every, "2026-01-01T02:30:00Z"), "2026-01-01T02:30:00Z");
            machine.run(period * 5 + random(&mut seed) % period, 300);
            let before = machine.runs.len();
            let changed = machine.real;
            let by = i64::try_from(random(&mut seed) % (period * 40)).unwrap();
            let back = random(&mut seed).is_multiple_of(2);
            let reboot = random(&mut seed).is_multiple_of(2);
            machine.wall += if back { -by } else { by };
            if reboot {
                machine.boot += 1;
                machine.uptime = 1;
            }
            machine.run(period * 10, 300);
            let what = format!("case {case}: every {every} h, by {by} s, back {back}, reboot {reboot}");
            let after = machine.runs.len() - before;
            assert!((7..=11).contains(&after), "{what}: {after} runs in ten times");
            let times: Vec<u64> = machine.runs.iter().map(|r| r.0).collect();
            for pair in times.windows(2) {
                // Nothing is known of a time without power: two periods may be waited for after it.
                let most = if reboot && pair[1] >= changed { 3 } else { 2 };
                assert!(
                    pair[1] - pair[0] <= most * period + 600,
                    "{what}: nothing for {}",
                    pair[1] - pair[0]
                );
                // Only the run after the change may come early.
                let early = pair[0] <= changed && pair[1] >= changed;
                assert!(early || pair[1] - pair[0] >= 300, "{what}: twice at once");
            }
            let slots: Vec<i64> = machine.runs[before..]
                .iter()
                .map(|r| (r.1 - machine.schedule.offset()).div_euclid(machine.schedule.period()))
                .collect();
            assert!(slots.windows(2).all(|w| w[0] != w[1]), "{what}: twice in one time {slots:?}");
        }
    }

    fn backup(id: u8, days: i64, occasion: Occasion, status: PointStatus) -> CustomBackup {
        CustomBackup {
            id: PointId::from_bytes([id; 16]),
            app: AppName::suggest("blog"),
            container: "/c".into(),
            name: format!("b{id}"),
            time: Timestamp::from_second(1_000 * DAY - days * DAY).unwrap(),
            occasion,
            status,
            files: 1,
            bytes: 1,
            stored_bytes: 1,
            host: String::new(),
            home: String::new(),
            signer: Signer::ThisServer,
            removing: false,
            unmatched: Vec::new(),
        }
    }

    #[test]
    fn what_a_schedule_took_goes_by_age_and_nothing_else_does() {
        use Occasion::{Manual, Scheduled};
        use PointStatus::{PartiallySucceeded as Partial, Succeeded as Whole};
        let now = Timestamp::from_second(1_000 * DAY).unwrap();
        let all = [
            backup(1, 100, Manual, Whole),
            backup(2, 30, Scheduled, Whole),
            backup(3, 20, Scheduled, Whole),
            backup(4, 15, Scheduled, Partial),
            backup(5, 14, Scheduled, Whole),
        ];
        let gone = |schedule: &Schedule, all: &[CustomBackup]| -> Vec<String> {
            schedule.expired(all, now).iter().map(|b| b.name.clone()).collect()
        };
        let mut schedule = plan(24, "2026-01-01T00:00:00Z");
        assert_eq!(gone(&schedule, &all), ["b2", "b3", "b4"], "14 days are not more than 14 days");
        assert_eq!(gone(&schedule, &all[..4]), ["b2", "b3", "b4"], "without keep-one all may go");
        schedule.keep_one = true;
        assert_eq!(gone(&schedule, &all), ["b2", "b3", "b4"]);
        assert_eq!(gone(&schedule, &all[..4]), ["b2", "b4"], "the newest whole one stays");
        assert_eq!(gone(&schedule, &all[3..4]), [""; 0], "a partial one is better than none");
        schedule.keep_days = 0;
        assert_eq!(gone(&schedule, &all), [""; 0]);
        assert_eq!(schedule.keep_until(now), None);
    }

    #[test]
    fn it_reads_well_and_refuses_the_absurd() {
        let mut schedule = plan(48, "2026-01-01T00:00:00Z");
        assert_eq!(schedule.to_string(), "every 2 d into c, kept for 14 d");
        schedule.every_hours = 6;
        schedule.keep_one = true;
        assert_eq!(schedule.to_string(), "every 6 h into c, kept for 14 d, at least one");
        schedule.check().unwrap();
        for (every, keep) in [(0, 1), (EVERY_MAX + 1, 1), (1, KEEP_MAX + 1)] {
            schedule.every_hours = every;
            schedule.keep_days = keep;
            assert_eq!(schedule.check().unwrap_err().code(), Code::InvalidValue);
        }
    }
}
