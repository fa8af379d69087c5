//! MySQL: a real MariaDB for each test.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests"
)]

mod contract;
mod exchange;
mod in_app;
mod interruptions;
mod refusals;
mod round_trip;
mod speed;
mod world;
