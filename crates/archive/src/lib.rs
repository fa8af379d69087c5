//! Backups that anybody can open: a zip with the app and an xml that says what it must hold.
//!
//! - [`Writer`] packs [`source::Source`]s ([`Live`]: a folder on this machine; [`source::Stream`]: a dump while it is
//!   made) into a zip, as a stream.
//! - [`place`] names the objects of an archive and says in which order they come and go.
//!
//! `docs/adr/0005-open-archives.md` has the layout and its reasons.

mod budget;
mod bytes;
mod contents;
mod deflate;
mod extract;
mod flaw;
mod index;
mod inflate;
mod limits;
mod live;
mod manifest;
mod names;
mod pack;
pub mod place;
mod record;
pub mod seal;
mod sign;
pub mod source;
mod stream;
mod verify;
mod worker;
mod writer;
mod zip;

pub use bytes::{Bytes, LocalFile, StoredObject};
pub use contents::{Beside, Contents, Node, Receive};
pub use extract::Extracted;
pub use flaw::{Finding, Flaw};
pub use index::EntryRecord;
pub use live::{Copier, LeaveOut, Live, is_partial};
pub use manifest::{
    Consistency, Database, Integrity, Manifest, SCHEMA, Sealed, Settings, Step, Trust, ZipRecord,
};
pub use pack::Options;
pub use place::{Name, root_name};
pub use record::{METADATA, Record, RecordKind};
pub use seal::Seal;
pub use sign::{PublicKey, SigningKey};
pub use verify::{Checks, Verified, verify};
pub use writer::{Writer, Written};
