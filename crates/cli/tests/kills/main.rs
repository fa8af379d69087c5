//! Real `kill -9` of the built program: spread evenly over the measured duration of a backup, a delete, an import, a prune, a
//! restore over an app and its undo, and right after the n-th system call that changes something.
//!
//! After every kill the next command, of whatever kind, works without help; no job stays running; the vault checks
//! clean; earlier points are whole; and what was in the making is wholly there or wholly absent. Each test prints how
//! many kills hit which phase, as told by what lies on the disk and by the job's record, and fails when a phase was
//! missed or when too many kills came after the end.
//!
//! A kill loses no page cache: what a power loss takes is tried through the seams (`docs/testing.md`).

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

mod backup;
mod calls;
mod delete;
mod import;
mod kill;
mod live;
mod phase;
mod prune;
mod restore;
mod site;
mod undo;
#[path = "../program/world.rs"]
#[allow(dead_code, reason = "the other tests of the program use the rest")]
mod world;

pub(crate) use world::World;
