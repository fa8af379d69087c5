//! A connection string from its parts: written as an address, and read back.

use backstay_model::Secret;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{Found, of_kind};
use crate::connection;
use crate::endpoint::{Endpoint, Kind, Place};

/// Everything but what never means anything.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// What files say of a database, part by part.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts {
    pub host: Option<String>,
    pub port: Option<u16>,
    pub socket: Option<String>,
    pub database: Option<String>,
    pub user: Option<String>,
    pub password: Option<Secret>,
    /// Options that are passed on.
    pub options: Vec<(&'static str, String)>,
    pub note: Option<String>,
}

impl Parts {
    /// Adds it to what was found.
    pub(super) fn put(self, name: &str, kind: Kind, found_in: &str, found: &mut Found) {
        let text = self.address(kind);
        let read = connection::parse(&text, of_kind(kind));
        match read {
            Ok(endpoint) if self.is(&endpoint, kind) => {
                found.add(name, of_kind(kind), Secret::new(text), found_in, self.note);
            }
            Ok(_) => found.unread(name, found_in, "it cannot be written as a connection string"),
            Err(e) => found.unread(name, found_in, e.message()),
        }
    }

    /// The string.
    pub(super) fn address(&self, kind: Kind) -> String {
        let escape = |text: &str| utf8_percent_encode(text, ESCAPED).to_string();
        let database = self.database.as_deref().unwrap_or_default();
        let scheme = match kind {
            Kind::PostgreSql => "postgresql",
            Kind::MySql => "mysql",
            Kind::SqlServer => "sqlserver",
            Kind::Sqlite => {
                let path: Vec<String> = database.split('/').map(escape).collect();
                // With two slashes more, since what stands behind two is a host.
                let slashes = if database.starts_with('/') { "//" } else { "" };
                return format!("sqlite:{slashes}{}", path.join("/"));
            }
        };
        let mut text = format!("{scheme}://");
        if let Some(user) = &self.user {
            text += &escape(user);
        }
        if let Some(password) = &self.password {
            text += &format!(":{}", escape(password.reveal()));
        }
        if self.user.is_some() || self.password.is_some() {
            text.push('@');
        }
        let mut options: Vec<(&str, &str)> = Vec::new();
        let port = self.port.map(|port| port.to_string());
        match (&self.socket, &self.host) {
            (Some(socket), _) => {
                options.push((if kind == Kind::PostgreSql { "host" } else { "socket" }, socket));
                options.extend(port.as_deref().map(|port| ("port", port)));
            }
            (None, host) => {
                let host = host.as_deref().unwrap_or("localhost");
                text += &if host.contains(':') { format!("[{host}]") } else { escape(host) };
                text += &port.map(|port| format!(":{port}")).unwrap_or_default();
            }
        }
        text += &format!("/{}", escape(database));
        options.extend(self.options.iter().map(|(key, value)| (*key, value.as_str())));
        for (n, (key, value)) in options.into_iter().enumerate() {
            text += &format!("{}{key}={}", if n == 0 { '?' } else { '&' }, escape(value));
        }
        text
    }

    /// Whether an endpoint is what was meant.
    fn is(&self, endpoint: &Endpoint, kind: Kind) -> bool {
        let full = |text: &Option<String>| text.clone().filter(|t| !t.is_empty());
        if kind == Kind::Sqlite {
            return matches!(&endpoint.place, Place::File(path) if path.to_str() == self.database.as_deref());
        }
        let port = self.port.unwrap_or(kind.port());
        let place = match (&endpoint.place, &self.socket) {
            (Place::Socket(path, at), Some(socket)) => path.to_str() == Some(socket) && *at == port,
            (Place::Hosts(hosts), None) => match hosts.as_slice() {
                [host] => host.name == self.host.as_deref().unwrap_or("localhost") && host.port == port,
                _ => false,
            },
            _ => false,
        };
        place
            && endpoint.kind == kind
            && endpoint.database == full(&self.database)
            && endpoint.user == full(&self.user)
            && endpoint.password.as_ref().map(Secret::reveal) == self.password.as_ref().map(Secret::reveal)
    }
}
