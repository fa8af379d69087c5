//! Apps with linked databases, backed up and restored by the program: real PostgreSQL, real MariaDB.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

mod archives;
mod connections;
mod impatient;
mod in_app;
mod in_app_kills;
#[path = "../kills/kill.rs"]
#[allow(dead_code, reason = "kills at system calls are not used here")]
mod kill;
mod kills;
mod large;
mod new_app_kills;
mod points;
mod replica;
mod restore;
mod shop;
mod shop_watch;
mod sqlite;
mod unwell;
mod uploads;
mod volumes;
mod wordpress;
#[path = "../program/world.rs"]
#[allow(dead_code, reason = "what other tests use")]
mod world;

pub(crate) use shop::Shop;
pub(crate) use world::{Ran, World};
