//! The work, cut into pieces that workers take.
//!
//! Invariants: a window is one ranged read of one pack, at most [`WINDOW`] long unless a single blob is longer, and of
//! at most [`FILES`] files; a slice is part of one large file. Every piece of the plan is in exactly one job. Jobs keep the order of packs and
//! so nearly that of folders; each worker has a run of neighbouring jobs, so that two rarely make files in the same
//! folder at once (the kernel lets only one). Locks: one per run, held for a few instructions.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::plan::{Piece, Plan};

/// Bytes of a pack that are read at once.
pub(super) const WINDOW: u64 = 4 << 20;
/// Bytes between two pieces that are read and thrown away rather than begin another read.
const GAP: u64 = 128 << 10;
/// Bytes of a large file that are one job.
const SLICE: u64 = 16 << 20;
/// Most pieces of a large file in one job.
const SLICE_PIECES: usize = 4096;
/// Files without content in one job.
const EMPTY: usize = 256;
/// Most files in one window: making files takes longer than reading a few bytes each, and is shared by the workers.
const FILES: usize = 512;

/// A piece of work.
#[derive(Debug)]
pub(super) enum Job {
    /// Whole files from one read: a range of [`Plan::small`].
    Window(Range<usize>),
    /// Part of a large file: which one, and a range of [`Plan::pieces`].
    Slice(usize, Range<usize>),
    /// A range of [`Plan::empty`].
    Empty(Range<usize>),
}

/// Sorts the plan's pieces and cuts the work. Gives the jobs and how many of them each large file has.
pub(super) fn cut(plan: &mut Plan) -> (Vec<Job>, Vec<usize>) {
    let mut jobs = Vec::new();
    let mut slices = Vec::with_capacity(plan.large.len());
    for (number, large) in plan.large.iter().enumerate() {
        let before = jobs.len();
        let mut rest = large.pieces.clone();
        while !rest.is_empty() {
            let end = slice_end(plan, &rest);
            jobs.push(Job::Slice(number, rest.start..end));
            rest.start = end;
        }
        slices.push(jobs.len() - before);
    }
    plan.small.sort_unstable_by_key(|p| (p.pack, p.offset, p.length, p.file));
    let mut start = 0;
    for end in 1..=plan.small.len() {
        let span = plan.small.get(start..end + 1).unwrap_or_default();
        if !fits(span) {
            jobs.push(Job::Window(start..end));
            start = end;
        }
    }
    for start in (0..plan.empty.len()).step_by(EMPTY) {
        jobs.push(Job::Empty(start..(start + EMPTY).min(plan.empty.len())));
    }
    (jobs, slices)
}

fn slice_end(plan: &Plan, rest: &Range<usize>) -> usize {
    let from = plan.pieces.get(rest.start).map_or(0, |(_, at)| *at);
    let within = |n: &usize| plan.pieces.get(*n).is_some_and(|(_, at)| at.saturating_sub(from) < SLICE);
    let last = (rest.start..rest.end).take(SLICE_PIECES).take_while(within).last();
    last.map_or(rest.start + 1, |n| n + 1)
}

/// Whether the last of these (sorted) pieces still belongs into one window with the others; no pieces do not.
fn fits(pieces: &[Piece]) -> bool {
    let [first, .., last] = pieces else { return false };
    let before = pieces.len().checked_sub(2).and_then(|n| pieces.get(n)).unwrap_or(first);
    pieces.len() <= FILES
        && first.pack == last.pack
        && u64::from(last.offset) <= before.end().saturating_add(GAP)
        && last.end().saturating_sub(u64::from(first.offset)) <= WINDOW
}

/// The jobs that are left.
pub(super) struct Queue {
    jobs: Vec<Job>,
    runs: Vec<Mutex<Range<usize>>>,
}

impl Queue {
    /// For so many workers.
    pub(super) fn new(jobs: Vec<Job>, workers: usize) -> Self {
        let workers = workers.max(1);
        let border = |n: usize| jobs.len() * n / workers;
        let runs = (0..workers).map(|n| Mutex::new(border(n)..border(n + 1))).collect();
        Queue { jobs, runs }
    }

    /// The next job for a worker: of its own run, then of the second half of the longest other one.
    pub(super) fn next(&self, worker: usize) -> Option<&Job> {
        let own = self.runs.get(worker)?;
        loop {
            if let Some(job) = own.lock().next() {
                return self.jobs.get(job);
            }
            let (longest, length) =
                self.runs.iter().map(|run| (run, run.lock().len())).max_by_key(|(_, length)| *length)?;
            if length == 0 {
                return None;
            }
            let mut theirs = longest.lock();
            if theirs.is_empty() {
                continue;
            }
            let half = theirs.start + theirs.len() / 2;
            let taken = half..theirs.end;
            theirs.end = half;
            drop(theirs);
            *own.lock() = taken;
        }
    }
}

/// What the workers on one large file share.
#[derive(Debug, Default)]
pub(super) struct Progressing {
    /// Slices that are not done.
    left: AtomicUsize,
    failed: AtomicBool,
}

impl Progressing {
    pub(super) fn new(slices: usize) -> Self {
        Progressing { left: AtomicUsize::new(slices), failed: AtomicBool::new(false) }
    }

    /// Notes that the file will not be whole; whether this is the first to say so.
    pub(super) fn fail(&self) -> bool {
        !self.failed.swap(true, Ordering::SeqCst)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// One slice is done; whether it was the last.
    pub(super) fn slice_is_done(&self) -> bool {
        self.left.fetch_sub(1, Ordering::SeqCst) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Id;
    use crate::restore::plan::Large;

    fn piece(pack: u32, offset: u32, length: u32) -> Piece {
        Piece { id: Id::default(), pack, offset, length, plain: 0, file: 0 }
    }

    #[test]
    fn neighbours_are_read_together_and_every_piece_once() {
        let mut plan = Plan {
            small: vec![
                piece(1, 0, 10),
                piece(0, 2 << 20, 3 << 20),
                piece(0, 0, 100),
                piece(0, 100, 2 << 20),
                piece(0, 9 << 20, 100),
                piece(1, 10, 9 << 20),
                piece(1, 10, u32::MAX),
            ],
            empty: vec![0; 300],
            ..Plan::default()
        };
        let zeros = |count: u64| (0..count).map(|n| (piece(2, 0, 100), n << 20));
        plan.pieces.extend(zeros(40).chain(zeros(1)));
        plan.large.push(Large { file: 0, pieces: 0..40, extents: None });
        plan.large.push(Large { file: 1, pieces: 40..41, extents: None });
        let (jobs, slices) = cut(&mut plan);
        assert_eq!(slices, [3, 1]);
        let text: Vec<_> = jobs.iter().map(|j| format!("{j:?}")).collect();
        assert_eq!(
            text,
            [
                "Slice(0, 0..16)",
                "Slice(0, 16..32)",
                "Slice(0, 32..40)",
                "Slice(1, 40..41)",
                "Window(0..2)",
                "Window(2..3)",
                "Window(3..4)",
                "Window(4..5)",
                "Window(5..6)",
                "Window(6..7)",
                "Empty(0..256)",
                "Empty(256..300)",
            ]
        );
    }

    #[test]
    fn many_small_files_are_shared() {
        let small = (0..2000).map(|n| piece(0, n * 100, 100)).collect();
        let mut plan = Plan { small, ..Plan::default() };
        let sizes: Vec<_> = cut(&mut plan)
            .0
            .into_iter()
            .map(|job| match job {
                Job::Window(range) => range.len(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(sizes, [512, 512, 512, 464]);
    }

    #[test]
    fn every_job_is_given_out_once() {
        for (count, workers) in [(0, 1), (1, 3), (100, 1), (1000, 4)] {
            let queue = Queue::new((0..count).map(|n| Job::Empty(n..n + 1)).collect(), workers);
            let done = Mutex::new(Vec::new());
            std::thread::scope(|scope| {
                for worker in 0..workers {
                    let (queue, done) = (&queue, &done);
                    scope.spawn(move || {
                        while let Some(Job::Empty(range)) = queue.next(worker) {
                            done.lock().push(range.start);
                        }
                    });
                }
            });
            let mut done = done.into_inner();
            done.sort_unstable();
            assert_eq!(done, (0..count).collect::<Vec<_>>());
        }
    }
}
