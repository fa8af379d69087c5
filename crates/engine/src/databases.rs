//! Linked databases in points and restores (`docs/adr/0008-databases-in-points-and-restores.md`).
//!
//! - [`linked`]: which databases an app has, and which of them are due in a point.
//! - [`quiet`]: the hooks that hold an app still meanwhile.
//! - [`references`]: what a database says lies in the home.
//! - [`begin`]: which of them can be dumped, and the snapshots of those.
//! - [`save`]: dumps into a point.
//! - [`choose`]: which of them a restore brings back, and to where.
//! - [`exchange`]: what a restore does at the servers: noted, staged, exchanged, cleared away.
//!
//! Invariants: a dump is in a point only with its record; a connection string is never in a manifest, a plan or an error; what
//! an error of one database says never ends the backup of the others.

pub(crate) mod begin;
pub(crate) mod choose;
pub(crate) mod copies;
pub(crate) mod exchange;
pub(crate) mod linked;
pub(crate) mod quiet;
pub(crate) mod references;
pub(crate) mod save;
