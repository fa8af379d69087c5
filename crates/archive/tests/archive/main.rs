//! Archives as other programs see them, round trips, damage, hostile zips.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests"
)]

mod craft;
mod damage;
mod foreign;
mod hostile;
mod order;
mod random;
mod round_trip;
mod world;
