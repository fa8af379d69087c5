//! Why a request failed, before anybody knows what it was for.
//!
//! Invariants: no text in here holds a secret: URLs are never kept, and what a service says is cut to one line and
//! looked over for the secrets of the place. `may_have_happened` is true whenever the service may have done what was
//! asked although no answer says so.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::time::Duration;

use backstay_model::Secret;

/// What kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The service answered with this status.
    Refused(u16),
    /// The service's name has no address.
    Resolve,
    /// No connection.
    Connect,
    /// The source address or interface is gone.
    PathGone,
    /// The other side is not who it must be.
    Untrusted,
    /// No common language with the other side (TLS), or it speaks none.
    Handshake,
    /// Nothing moved for too long.
    Timeout,
    /// The connection ended in the middle.
    Interrupted,
    /// The answer is not what the protocol says.
    Nonsense,
    /// The object is longer than what is read as a whole.
    TooLong,
    /// No token or key could be got.
    Credentials,
    /// A mistake of this program.
    Internal,
}

/// A failed request.
#[derive(Debug)]
pub(crate) struct Failure {
    pub cause: Cause,
    /// The service's own code: `AuthenticationFailed`, `SlowDown`.
    pub code: Option<String>,
    /// What the service said, in one line.
    pub said: Option<String>,
    /// How long the service asks to wait.
    pub wait: Option<Duration>,
    /// The region the service names instead (S3).
    pub region: Option<String>,
    /// Whether the request may have been carried out.
    pub may_have_happened: bool,
    pub source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Failure {
    pub fn new(cause: Cause) -> Self {
        let may_have_happened = match cause {
            Cause::Timeout | Cause::Interrupted | Cause::Nonsense => true,
            Cause::Refused(status) => status >= 500 || status == 408,
            _ => false,
        };
        Failure { cause, code: None, said: None, wait: None, region: None, may_have_happened, source: None }
    }

    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// An answer that is longer than what was asked for, or than what is read as a whole.
    pub fn too_long(most: usize) -> Self {
        match most == super::client::LONGEST_OBJECT {
            true => Failure::new(Cause::TooLong),
            false => Failure::nonsense("The answer is longer than what was asked for"),
        }
    }

    pub fn nonsense(what: &str) -> Self {
        let mut failure = Failure::new(Cause::Nonsense);
        failure.said = Some(what.to_owned());
        failure
    }

    pub fn status(&self) -> Option<u16> {
        match self.cause {
            Cause::Refused(status) => Some(status),
            _ => None,
        }
    }

    /// Whether the service's own code is one of these.
    pub fn is(&self, codes: &[&str]) -> bool {
        self.code.as_deref().is_some_and(|code| codes.contains(&code))
    }

    /// Whether the same request may succeed later.
    pub fn is_passing(&self) -> bool {
        match self.cause {
            Cause::Refused(status) => {
                matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504)
                    || self.is(&["ContainerBeingDeleted", "ConditionalRequestConflict", "OperationAborted"])
                    || (status == 400 && self.is(&["RequestTimeout"]))
            }
            Cause::Resolve
            | Cause::Connect
            | Cause::Handshake
            | Cause::Timeout
            | Cause::Interrupted
            | Cause::Nonsense => true,
            Cause::PathGone | Cause::Untrusted | Cause::TooLong | Cause::Credentials | Cause::Internal => {
                false
            }
        }
    }

    /// From what the HTTP client says. `bound`: whether only one network path may be taken.
    pub fn from_client(error: reqwest::Error, bound: bool) -> Self {
        let error = error.without_url();
        let mut cause = if error.is_timeout() {
            Cause::Timeout
        } else if error.is_connect() {
            Cause::Connect
        } else if error.is_builder() {
            Cause::Internal
        } else {
            Cause::Interrupted
        };
        let mut next: Option<&(dyn StdError + 'static)> = Some(&error);
        while let Some(e) = next {
            if e.is::<super::client::Unresolved>() {
                cause = Cause::Resolve;
            } else if let Some(tls) = e.downcast_ref::<rustls::Error>() {
                cause = verdict(tls);
            } else if let Some(io) = e.downcast_ref::<io::Error>() {
                cause = from_system(io, bound).unwrap_or(cause);
            }
            next = e.source();
        }
        Failure::new(cause).because(error)
    }
}

/// What an error of the system, or one that was packed into such (also several times), tells.
fn from_system(error: &io::Error, bound: bool) -> Option<Cause> {
    if bound && is_path_gone(error) {
        return Some(Cause::PathGone);
    }
    let inner = error.get_ref()?;
    if let Some(tls) = inner.downcast_ref::<rustls::Error>() {
        return Some(verdict(tls));
    }
    from_system(inner.downcast_ref::<io::Error>()?, bound)
}

/// Only what is wrong with a certificate is a reason not to trust the other side. A handshake that was cut off, that finds
/// no common version, or that meets something else than TLS, says nothing about who is there.
fn verdict(error: &rustls::Error) -> Cause {
    match error {
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => Cause::Untrusted,
        _ => Cause::Handshake,
    }
}

/// What the system says when a source address or an interface is not there (any more), or has no route.
fn is_path_gone(e: &io::Error) -> bool {
    use rustix::io::Errno;
    let gone = [
        Errno::ADDRNOTAVAIL,
        Errno::NODEV,
        Errno::NETUNREACH,
        Errno::HOSTUNREACH,
        Errno::NETDOWN,
        Errno::NXIO,
    ];
    e.raw_os_error().is_some_and(|n| gone.iter().any(|g| g.raw_os_error() == n))
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            Cause::Refused(status) => write!(f, "The service answered with status {status}")?,
            Cause::Resolve => f.write_str("The name has no address")?,
            Cause::Connect => f.write_str("No connection")?,
            Cause::PathGone => f.write_str("The source address or interface is not there")?,
            Cause::Untrusted => f.write_str("The service's certificate is not trusted")?,
            Cause::Handshake => f.write_str("No secure connection could be agreed on")?,
            Cause::Timeout => f.write_str("No answer in time")?,
            Cause::Interrupted => f.write_str("The connection was lost")?,
            Cause::Nonsense => f.write_str("The answer was not understood")?,
            Cause::TooLong => f.write_str("The object is longer than what is read as a whole")?,
            Cause::Credentials => f.write_str("No token or key to sign the request with")?,
            Cause::Internal => f.write_str("The request could not be made")?,
        }
        if let Some(code) = &self.code {
            write!(f, " ({code})")?;
        }
        match &self.said {
            Some(said) => write!(f, ": {said}"),
            None => Ok(()),
        }
    }
}

impl StdError for Failure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|s| s as &(dyn StdError + 'static))
    }
}

/// One line of what a service said, without secrets, without control characters, of bounded length.
pub(crate) fn said(text: &str, secrets: &[Secret]) -> Option<String> {
    let line = text.lines().map(str::trim).find(|l| !l.is_empty())?;
    let mut line: String = line.chars().filter(|c| !c.is_control()).take(600).collect();
    for secret in secrets {
        let secret = secret.reveal();
        if secret.len() >= 4 {
            line = line.replace(secret, "***");
        }
    }
    line.truncate(line.char_indices().nth(300).map_or(line.len(), |(at, _)| at));
    Some(line.trim_end_matches('.').to_owned()).filter(|l| !l.is_empty())
}
