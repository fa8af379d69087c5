//! Retention against an oracle that shares nothing with it but the words of the promise.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]

mod jumps;
mod oracle;
mod steady;
mod timelines;

use backstay_model::retention::{Entry, expire};
use backstay_model::{Origin, PointId, PointStatus};
use jiff::Timestamp;

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;

/// A small generator whose numbers are the same everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both possible.
    fn range(&mut self, low: i64, high: i64) -> i64 {
        low + (self.next() % u64::try_from(high - low + 1).unwrap()) as i64
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn point(number: usize, seconds: i64) -> Entry {
    Entry {
        id: PointId::from_bytes((number as u128).to_be_bytes()),
        time: at(seconds),
        origin: Origin::Automatic,
        status: PointStatus::Succeeded,
        pinned: false,
    }
}

/// Lets points expire by the code under test; gives what stays.
fn survivors(points: &[Entry], now: i64) -> Vec<Entry> {
    let verdicts = expire(points, at(now));
    assert_eq!(verdicts.len(), points.len());
    points.iter().zip(verdicts).filter(|(_, v)| v.keeps()).map(|(p, _)| *p).collect()
}
