//! Linked databases: what a connection string says, whatever its form.
//!
//! - [`connection::parse`] reads a connection string of any form into an [`Endpoint`]. Drivers and tools are set up from
//!   the endpoint, never from the string: they read fewer forms, and each reads them differently.
//!
//! No I/O: nothing is looked up and nobody is asked.

pub mod connection;
mod endpoint;

pub use connection::ConnectionType;
pub use endpoint::{Endpoint, Host, Kind, Place, Tls, TlsMode};
