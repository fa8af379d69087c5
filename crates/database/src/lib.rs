//! Linked databases: what a connection string says, whatever its form, and what is done with the database behind it.
//!
//! - [`connection::parse`] reads a connection string of any form into an [`Endpoint`]. Drivers and tools are set up from
//!   the endpoint, never from the string: they read fewer forms, and each reads them differently.
//! - [`Database`] is the one trait of all kinds: looked at, dumped, filled anew beside the one in use, exchanged.

mod adapter;
pub mod connection;
mod endpoint;

pub use adapter::{
    Database, Dump, DumpRecord, Exchange, Hashes, Options, Probe, Side, TableRecord, TlsSeen, Tool,
};
pub use connection::ConnectionType;
pub use endpoint::{Endpoint, Host, Kind, Place, Tls, TlsMode};
