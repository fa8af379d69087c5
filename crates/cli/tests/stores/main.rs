//! Whole vaults in object stores: the program on emulators of each kind, with keys from the environment as
//! docs/operations.md says, every request counted by a proxy before the server.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

mod life;
mod shop;
#[path = "../program/world.rs"]
#[allow(dead_code, reason = "not everything of it is needed here")]
mod world;

pub(crate) use shop::Shop;
pub(crate) use world::{Ran, World};
