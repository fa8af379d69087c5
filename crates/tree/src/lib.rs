//! File trees: reading with all metadata, writing safely beneath a root, comparing.
//!
//! - [`fs`] is the seam: every system call on file systems goes through [`fs::FileSystem`], so tests can count,
//!   fail, kill and lose them. [`fs::Host`] is the real thing, [`fs::Faulty`] the wrapper that injects faults.
//! - [`scan()`], [`open_folder`], [`open_regular`], [`Exclusions`], [`Owners`], [`Metadata`], [`sparse`] read.
//! - [`beneath::Root`], [`metadata::apply`], [`remove_tree`] write.
//! - [`apply`] changes a live tree by a journal, all or nothing, back and forth; [`mounts`] tells what is mounted.
//! - [`filter::Filter`] says what is left out.
//! - [`Trail`] walks deep trees with few open handles, [`compare::trees`] tells how two trees differ,
//!   [`path`] prints names that are not text.

pub mod apply;
pub mod beneath;
pub mod compare;
pub mod filter;
pub mod fs;
pub mod metadata;
pub mod mounts;
mod owners;
pub mod path;
mod remove;
mod scan;
pub mod sparse;
mod trail;

pub use metadata::Metadata;
pub use owners::Owners;
pub use remove::remove_tree;
pub use scan::{Entry, Exclusions, LeftOut, Listing, Why, open_folder, open_regular, scan};
pub use trail::Trail;
