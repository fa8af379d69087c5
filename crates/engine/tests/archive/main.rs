//! Archives and the vault: what goes out comes in again as it was, and what is not as it was does not come in.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod damage;
mod foreign;
mod round_trip;
mod world;
