//! Custom backups: an app as an open `.zip` with its `.xml` in a container.
//!
//! - [`take`] writes one, [`leftovers`] clears away what dead jobs left, [`known`] is the catalog's view of the
//!   containers, [`look`] shows, verifies, copies and deletes one, [`expire`] lets scheduled ones go by age.
//!
//! Invariants: a backup exists when its `.xml` does, which is written last, after the job's lease was looked at once
//! more (`docs/adr/0005-open-archives.md`). The container is the truth, the catalog a view of it. The vault is not
//! needed for any of this. What is left behind is removed only where the catalog knows that its job is over and did
//! not succeed, so nobody else's objects and no finished backup are ever taken for leftovers.
//!
//! Locks: the exclusive job of the app, while one is taken, deleted or expires.

mod databases;
mod expire;
mod filter;
mod known;
mod leftovers;
mod look;
mod take;

pub use expire::CustomExpiry;
pub use known::{ContainerListing, CustomView, UnreadableBackup};
pub(crate) use leftovers::first_line;
pub use look::{CustomDetails, CustomVerify, Downloaded, PointOrCustom};
pub use take::{CustomReport, CustomRequest};
