//! What time it is.
//!
//! Invariants: nothing that decides about a lease of this boot looks at the wall clock, which may be set back or
//! forward; it looks at the time since boot, which cannot. Wall-clock times are for people and for other machines.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use jiff::Timestamp;

/// A source of time.
pub trait Clock: Send + Sync {
    /// The wall clock, UTC.
    fn now(&self) -> Timestamp;
    /// Time the machine has run since boot; never goes back, stands still while the machine sleeps.
    fn uptime(&self) -> Duration;
    /// Time since boot, sleep included: what the wall clock is compared with.
    fn since_boot(&self) -> Duration {
        self.uptime()
    }
    /// The kernel's id of this boot, within which `since_boot` only grows; empty where it is not known.
    fn boot(&self) -> String {
        crate::Owner::current().boot
    }
}

/// The clocks of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn uptime(&self) -> Duration {
        read(rustix::time::ClockId::Monotonic)
    }

    fn since_boot(&self) -> Duration {
        read(rustix::time::ClockId::Boottime)
    }
}

fn read(clock: rustix::time::ClockId) -> Duration {
    let t = rustix::time::clock_gettime(clock);
    let secs = u64::try_from(t.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(t.tv_nsec).unwrap_or(0);
    Duration::new(secs, nanos)
}

/// A clock that stands still until it is told otherwise, for tests of what depends on time.
#[derive(Debug)]
pub struct ManualClock(Mutex<(Timestamp, Duration)>);

impl ManualClock {
    /// A clock that shows `now`, on a machine that has run for `uptime`.
    #[must_use]
    pub fn new(now: Timestamp, uptime: Duration) -> Self {
        ManualClock(Mutex::new((now, uptime)))
    }

    /// Sets the wall clock alone, back or forward.
    pub fn set_wall(&self, now: Timestamp) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = now;
    }

    /// Lets time pass on both clocks.
    pub fn pass(&self, time: Duration) {
        let mut both = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        both.0 = both.0.saturating_add(time).unwrap_or(both.0);
        both.1 += time;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    fn uptime(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}
