//! Pace: a limit over all connections of a place, and a watch over connections on which nothing moves.
//!
//! The limit is a reservation of time: whoever wants to send or has received n bytes gets the next n/rate seconds
//! and waits until they begin. So it is fair in the order of asking, and a change of the rate (another hour of the day)
//! holds from the next piece on. A quarter of a second may be saved up, no more.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::options::Pace;

const SAVED_UP: Duration = Duration::from_millis(250);

/// A limit that clones share.
#[derive(Clone)]
pub(crate) struct Limiter(Arc<Shared>);

struct Shared {
    pace: Pace,
    hour: fn() -> u8,
    next: Mutex<Instant>,
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.pace.fmt(f)
    }
}

/// The hour of the day in the machine's time zone.
fn hour_now() -> u8 {
    u8::try_from(jiff::Zoned::now().hour()).unwrap_or(0)
}

impl Limiter {
    pub fn new(pace: Pace) -> Self {
        Self::by_clock(pace, hour_now)
    }

    fn by_clock(pace: Pace, hour: fn() -> u8) -> Self {
        Limiter(Arc::new(Shared { pace, hour, next: Mutex::new(Instant::now()) }))
    }

    fn rate(&self) -> Option<u64> {
        self.0.pace.at((self.0.hour)()).map(|rate| rate.max(1))
    }

    /// A piece that takes about a tenth of a second, so that connections take turns.
    pub fn piece(&self) -> usize {
        self.rate().map_or(usize::MAX, |rate| usize::try_from(rate / 10).unwrap_or(usize::MAX).max(1024))
    }

    /// Waits until so many bytes may pass. Waiting is progress.
    pub async fn take(&self, bytes: usize, progress: &Progress) {
        let begin = self.reserve(bytes);
        while let Some(left) =
            begin.and_then(|b| b.checked_duration_since(Instant::now())).filter(|d| !d.is_zero())
        {
            progress.touch();
            tokio::time::sleep(left.min(Duration::from_secs(1))).await;
        }
    }

    /// When bytes may pass; none for at once.
    fn reserve(&self, bytes: usize) -> Option<Instant> {
        let rate = self.rate()?;
        let now = Instant::now();
        let earliest = now.checked_sub(SAVED_UP).unwrap_or(now);
        let mut next = self.0.next.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = (*next).max(earliest);
        let micros = (bytes as u128 * 1_000_000).checked_div(u128::from(rate)).unwrap_or(0);
        *next = begin + Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX).min(86_400_000_000));
        Some(begin)
    }
}

/// When something last moved.
#[derive(Clone)]
pub(crate) struct Progress(Arc<Mutex<Instant>>);

impl Progress {
    pub fn new() -> Self {
        Progress(Arc::new(Mutex::new(Instant::now())))
    }

    pub fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Ends when nothing has moved for so long.
    pub async fn stalled(&self, idle: Duration) {
        loop {
            let since = self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
            match idle.checked_sub(since) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    #[test]
    fn bytes_pass_at_the_rate_and_no_faster() {
        let limiter = Limiter::by_clock(Pace { bytes_per_second: Some(1_000_000), hours: vec![] }, || 3);
        assert_eq!(limiter.piece(), 100_000);
        let begin = Instant::now();
        run(async {
            for _ in 0..8 {
                limiter.take(100_000, &Progress::new()).await;
            }
        });
        // The eighth begins when seven have passed, less what was saved up.
        assert!(begin.elapsed() >= Duration::from_millis(440), "{:?}", begin.elapsed());
    }

    #[test]
    fn hours_without_a_limit_do_not_wait() {
        let night = crate::options::Hours { from: 22, to: 6, bytes_per_second: None };
        let limiter = Limiter::by_clock(Pace { bytes_per_second: Some(1), hours: vec![night] }, || 3);
        let begin = Instant::now();
        run(limiter.take(1 << 30, &Progress::new()));
        assert!(begin.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_stall_is_noticed_and_progress_puts_it_off() {
        let progress = Progress::new();
        let begin = Instant::now();
        run(async {
            let touch = async {
                for _ in 0..5 {
                    tokio::time::sleep(Duration::from_millis(40)).await;
                    progress.touch();
                }
                std::future::pending::<()>().await;
            };
            tokio::select! { () = touch => {}, () = progress.stalled(Duration::from_millis(100)) => {} }
        });
        assert!(begin.elapsed() >= Duration::from_millis(300));
    }
}
