//! Trying again: how often, how long, and when not.
//!
//! * Only what may pass is tried again, and only by callers whose request may be repeated without harm.
//! * Pauses are random between nothing and a limit that doubles (full jitter), so that clients do not come back
//!   together. When the service says how long to wait, nothing is sent before that.
//! * One operation has a number of attempts and a time; all operations of a place share a [`Budget`] that repetitions use
//!   up and successes refill, so a service that fails everything is not asked several times as often as before.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::failure::Failure;
use crate::options::Patience;

/// So many repetitions a place may make without any success between them.
const BUDGET: u32 = 60;

/// Repetitions that a place may still make.
#[derive(Debug)]
pub(crate) struct Budget(AtomicU32);

impl Budget {
    pub fn new() -> Self {
        Budget(AtomicU32::new(BUDGET))
    }

    fn spend(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    fn refill(&self) {
        let more = |left: u32| (left < BUDGET).then_some(left + 1);
        // Full already is as good.
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok();
    }
}

/// The attempts of one operation.
#[derive(Debug)]
pub(crate) struct Attempts {
    patience: Patience,
    budget: Arc<Budget>,
    begin: Instant,
    made: u32,
    /// Whether an attempt failed that may have been carried out all the same.
    pub unclear: bool,
}

impl Attempts {
    pub fn new(patience: &Patience, budget: &Arc<Budget>) -> Self {
        Attempts {
            patience: patience.clone(),
            budget: Arc::clone(budget),
            begin: Instant::now(),
            made: 0,
            unclear: false,
        }
    }

    /// Waits until the next attempt, or gives the failure back when there is to be none.
    pub async fn again(&mut self, failure: Failure) -> Result<(), Failure> {
        self.unclear |= failure.may_have_happened;
        self.made += 1;
        if !failure.is_passing() || self.made >= self.patience.attempts {
            return Err(failure);
        }
        let asked = failure.wait.unwrap_or_default();
        let pause = jittered(self.patience.pause(self.made - 1)).saturating_add(asked);
        if self.begin.elapsed().saturating_add(pause) > self.patience.total() || !self.budget.spend() {
            return Err(failure);
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Whether an attempt was made before.
    pub fn is_repetition(&self) -> bool {
        self.made > 0
    }

    /// Notes a success.
    pub fn succeeded(&self) {
        self.budget.refill();
    }
}

/// A random pause up to a limit.
fn jittered(most: Duration) -> Duration {
    let most = u64::try_from(most.as_micros()).unwrap_or(u64::MAX).max(1);
    // Without randomness from the system the longest pause is right too.
    Duration::from_micros(getrandom::u64().map_or(most, |random| random % most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::failure::Cause;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    fn quick(attempts: u32) -> Patience {
        Patience { attempts, first_pause_ms: 1, longest_pause_ms: 2, total_secs: 5, ..Patience::default() }
    }

    fn busy() -> Failure {
        Failure::new(Cause::Refused(503))
    }

    #[test]
    fn attempts_time_and_kind_end_it() {
        let budget = Arc::new(Budget::new());
        let mut tries = Attempts::new(&quick(3), &budget);
        run(async {
            assert!(tries.again(busy()).await.is_ok() && tries.again(busy()).await.is_ok());
            assert!(tries.again(busy()).await.is_err(), "three attempts are three requests");
        });
        let mut tries = Attempts::new(&quick(3), &budget);
        assert!(run(tries.again(Failure::new(Cause::Refused(403)))).is_err() && !tries.unclear);
        let mut tries = Attempts::new(&quick(3), &budget);
        let patient = Failure { wait: Some(Duration::from_secs(6)), ..busy() };
        assert!(run(tries.again(patient)).is_err(), "the service asks for more time than there is");
        let for_ever = Failure { wait: Some(Duration::MAX), ..busy() };
        assert!(run(tries.again(for_ever)).is_err());
    }

    #[test]
    fn what_the_service_asks_to_wait_is_waited() {
        let mut tries = Attempts::new(&quick(3), &Arc::new(Budget::new()));
        let begin = Instant::now();
        run(tries.again(Failure { wait: Some(Duration::from_secs(1)), ..busy() })).unwrap();
        assert!(begin.elapsed() >= Duration::from_secs(1));
    }

    #[test]
    fn all_operations_share_a_budget_that_successes_refill() {
        let budget = Arc::new(Budget::new());
        let one = || run(async { Attempts::new(&quick(9), &budget).again(busy()).await });
        let repeated = (0..200).filter(|_| one().is_ok()).count();
        assert_eq!(repeated, BUDGET as usize);
        (0..3).for_each(|_| Attempts::new(&quick(9), &budget).succeeded());
        assert_eq!((0..200).filter(|_| one().is_ok()).count(), 3);
    }

    #[test]
    fn pauses_are_spread_over_the_whole_range() {
        let most = Duration::from_millis(100);
        let pauses: Vec<_> = (0..200).map(|_| jittered(most)).collect();
        assert!(pauses.iter().all(|p| *p < most));
        assert!(pauses.iter().any(|p| *p < most / 4) && pauses.iter().any(|p| *p > most * 3 / 4));
    }
}
