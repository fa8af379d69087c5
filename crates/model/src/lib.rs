//! The words of Backstay as types.
//!
//! Invariants: no I/O, no threads, no clock. Everything here is a value that can be compared, printed and
//! serialised; what a type means is said once, here, and used by every other crate.

pub mod app;
mod custom;
mod error;
mod id;
mod job;
mod point;
mod progress;
pub mod retention;
pub mod schedule;

pub use custom::{CustomBackup, Occasion, Schedule, Signer};
pub use error::{Code, Error, Result, Retry};
pub use id::{AppName, JobId, ParseIdError, PointId, Secret};
pub use job::{Job, JobKind, JobState, Step};
pub use point::{Origin, Point, PointStatus, Problem, ProblemKind};
pub use progress::{Cancel, Counts, Phase, Progress, Silent};
