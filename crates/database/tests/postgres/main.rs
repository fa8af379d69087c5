//! PostgreSQL as it is: a real server of its own for the tests.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests"
)]

mod bench;
mod everything;
mod failures;
mod kills;
mod tls;

use backstay_database::conformance;
use bench::Server;

#[test]
fn the_contract() {
    conformance::suite(&Server::new());
}
