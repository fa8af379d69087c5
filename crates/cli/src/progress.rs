//! Showing what long work does.
//!
//! Invariants: only standard error is written to. On a terminal one line that is drawn over, ten times a second;
//! elsewhere a plain line every ten seconds, so that a log stays readable. Work that ends at once shows nothing.
//! Counting costs two atomic additions per call; drawing has its own thread.

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use backstay_engine::phase_name;
use backstay_model::{Phase, Problem, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::failure::say;
use crate::text::{count, duration, number, size};

const ON_TERMINAL: Duration = Duration::from_millis(100);
const IN_LOG: Duration = Duration::from_secs(10);
/// Rates are told once so much time has passed.
const SETTLE: Duration = Duration::from_millis(500);

#[derive(Default)]
struct Totals {
    files: AtomicU64,
    bytes: AtomicU64,
    total_files: AtomicU64,
    total_bytes: AtomicU64,
    phase: Mutex<Option<(Phase, Instant)>>,
}

/// Shows progress until it is dropped.
pub struct Meter {
    totals: Arc<Totals>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Meter {
    /// Starts to show.
    pub fn start() -> Self {
        let totals = Arc::new(Totals::default());
        let (stop, stopped) = channel::<()>();
        let shared = Arc::clone(&totals);
        let terminal = std::io::stderr().is_terminal();
        let draw = move || {
            let every = if terminal { ON_TERMINAL } else { IN_LOG };
            let mut bar = None;
            while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                let Some(line) = shared.line() else { continue };
                if terminal {
                    bar.get_or_insert_with(line_on_terminal).set_message(line);
                } else {
                    say(format!("backstay: {line}"));
                }
            }
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
        };
        // Without the thread there is no progress to see, but the work goes on.
        let thread = std::thread::Builder::new().name("progress".to_owned()).spawn(draw).ok();
        Meter { totals, stop: Some(stop), thread }
    }
}

fn line_on_terminal() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{spinner} {wide_msg}");
    bar.set_style(style.unwrap_or_else(|_bad_template| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(ON_TERMINAL);
    bar
}

impl Drop for Meter {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It only draws: a panic in it changes nothing.
            let _drawn = thread.join();
        }
    }
}

impl Totals {
    fn line(&self) -> Option<String> {
        let (phase, since) = (*self.phase.lock().unwrap_or_else(PoisonError::into_inner))?;
        let get = |n: &AtomicU64| n.load(Relaxed);
        let done = (get(&self.files), get(&self.bytes));
        let total = (get(&self.total_files), get(&self.total_bytes));
        Some(line(phase, done, total, since.elapsed()))
    }
}

/// `Reading files: 1,234 of 50,000 files, 120 MB of 1.1 GB, 80 MB/s, about 12 s left`
fn line(phase: Phase, done: (u64, u64), total: (u64, u64), elapsed: Duration) -> String {
    let mut parts = Vec::new();
    let ((files, bytes), (total_files, total_bytes)) = (done, total);
    if total_files >= files && total_files > 0 {
        parts.push(format!("{} of {}", number(files), count(total_files, "file")));
    } else if files > 0 {
        parts.push(count(files, "file"));
    }
    if total_bytes >= bytes && total_bytes > 0 {
        parts.push(format!("{} of {}", size(bytes), size(total_bytes)));
    } else if bytes > 0 {
        parts.push(size(bytes));
    }
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    let per_second = |n: u64| u64::try_from(u128::from(n) * 1_000 / u128::from(millis)).unwrap_or(u64::MAX);
    if bytes > 0 && elapsed >= SETTLE {
        parts.push(format!("{}/s", size(per_second(bytes))));
    } else if files > 0 && elapsed >= SETTLE {
        parts.push(format!("{}/s", count(per_second(files), "file")));
    }
    // What is slower of files and bytes decides; both are known only where a total is.
    let left = |done: u64, total: u64| {
        let rate = per_second(done);
        (rate > 0 && total >= done && total > 0).then(|| (total - done) / rate)
    };
    let seconds = left(files, total_files).max(left(bytes, total_bytes));
    if let Some(seconds) = seconds.filter(|_| elapsed >= SETTLE * 4) {
        parts.push(format!("about {} left", duration(Duration::from_secs(seconds))));
    }
    match parts.is_empty() {
        true => phase_name(phase).to_owned(),
        false => format!("{}: {}", phase_name(phase), parts.join(", ")),
    }
}

impl Progress for Meter {
    fn phase(&self, phase: Phase) {
        let totals = &self.totals;
        for n in [&totals.files, &totals.bytes, &totals.total_files, &totals.total_bytes] {
            n.store(0, Relaxed);
        }
        *totals.phase.lock().unwrap_or_else(PoisonError::into_inner) = Some((phase, Instant::now()));
    }

    fn done(&self, files: u64, bytes: u64) {
        self.totals.files.fetch_add(files, Relaxed);
        self.totals.bytes.fetch_add(bytes, Relaxed);
    }

    fn expect(&self, files: u64, bytes: u64) {
        self.totals.total_files.fetch_add(files, Relaxed);
        self.totals.total_bytes.fetch_add(bytes, Relaxed);
    }

    fn problem(&self, _: &Problem) {
        // Problems are told together at the end.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_what_is_known() {
        let secs = Duration::from_secs;
        assert_eq!(line(Phase::Opening, (0, 0), (0, 0), secs(1)), "Opening the vault");
        assert_eq!(
            line(Phase::Reading, (1_000, 80_000_000), (0, 0), secs(2)),
            "Reading files: 1,000 files, 80 MB, 40 MB/s"
        );
        assert_eq!(
            line(Phase::Reading, (1_000, 80_000_000), (50_000, 1_000_000_000), secs(2)),
            "Reading files: 1,000 of 50,000 files, 80 MB of 1.0 GB, 40 MB/s, about 98 s left"
        );
        assert_eq!(
            line(Phase::Reading, (11, 80), (10, 70), Duration::from_millis(10)),
            "Reading files: 11 files, 80 B",
            "more than expected: the totals are not told"
        );
    }
}
