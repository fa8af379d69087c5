//! Addresses: where a place is, as text and as a value, without what opens it.
//!
//! Invariants: an [`Address`] holds no secret. What opens a place (a key, the signature in a container's URL) is split
//! off when the text is read and travels as [`Credentials`]. Errors repeat only the scheme of a text that was not
//! understood, since the rest may hold a password. The text of an address (`Display`) reads back as the same address.
//!
//! | text | is |
//! |---|---|
//! | `PATH`, `file:///PATH` | a local folder |
//! | `azure://ACCOUNT/CONTAINER[/PREFIX][?endpoint=URL]` | an Azure Blob container |
//! | `https://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX]?sv=…&sig=…` | the same, with its signature |
//! | `s3://BUCKET[/PREFIX][?region=R&endpoint=URL&style=path]` | a bucket of S3 or a service like it |
//! | `gs://BUCKET[/PREFIX][?endpoint=URL]` | a bucket of Google Cloud Storage |

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use backstay_model::{Code, Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Url;

use crate::Credentials;

/// The suffix of accounts in the public cloud.
const AZURE_SUFFIX: &str = "blob.core.windows.net";

/// Where a place is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A local folder.
    Local(PathBuf),
    /// A place in an object store.
    Remote(Bucket),
}

/// A kind of object store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Azure Blob storage.
    Azure,
    /// S3, and services that speak its protocol.
    S3,
    /// Google Cloud Storage.
    Google,
}

/// A place in an object store: all objects of a container or bucket whose names start with a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    /// Which protocol.
    pub kind: Kind,
    /// The storage account; empty for kinds without accounts.
    pub account: String,
    /// The container or bucket.
    pub name: String,
    /// What the names of all objects start with, without `/` at its ends; may be empty.
    pub prefix: String,
    /// The service, where it is not the one of the public cloud. No `/` at the end.
    pub endpoint: Option<String>,
    /// The region; none for the service's own default.
    pub region: Option<String>,
    /// Whether the bucket is a part of the path, or of the host's name; none for what fits the endpoint.
    pub path_style: Option<bool>,
}

impl Kind {
    /// The scheme of its addresses.
    #[must_use]
    pub fn scheme(self) -> &'static str {
        match self {
            Kind::Azure => "azure",
            Kind::S3 => "s3",
            Kind::Google => "gs",
        }
    }
}

impl Address {
    /// Reads the text of an address. A container's URL also gives the credentials it holds.
    ///
    /// Fails with `InvalidValue`, or with `SignatureIncomplete` where a URL has a signature that lacks a part.
    pub fn parse(text: &str) -> Result<(Self, Option<Credentials>)> {
        if let Some((scheme, rest)) = text.split_once("://") {
            let scheme = scheme.to_ascii_lowercase();
            return match scheme.as_str() {
                "azure" => Ok((Address::Remote(azure(rest)?), None)),
                "s3" => Ok((Address::Remote(bucket(Kind::S3, rest)?), None)),
                "gs" => Ok((Address::Remote(bucket(Kind::Google, rest)?), None)),
                "http" | "https" => azure_url(text).map(|(b, c)| (Address::Remote(b), c)),
                _ => Ok((Address::Local(crate::place::path(text)?), None)),
            };
        }
        Ok((Address::Local(crate::place::path(text)?), None))
    }
}

impl FromStr for Address {
    type Err = Error;

    /// Reads an address that must not hold credentials.
    fn from_str(text: &str) -> Result<Self> {
        match Address::parse(text)? {
            (address, None) => Ok(address),
            (address, Some(_)) => Err(Error::new(
                Code::InvalidValue,
                format!("The address of {address} holds a signature, which must not stand in a configuration or on a command line"),
            )
            .advise(format!("Write {address} as the address, and give the signature apart from it."))),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Local(path) => path.display().fmt(f),
            Address::Remote(bucket) => bucket.fmt(f),
        }
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.kind.scheme())?;
        if self.kind == Kind::Azure {
            write!(f, "{}/", self.account)?;
        }
        f.write_str(&self.name)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        let style = self.path_style.map(|path| if path { "path" } else { "virtual" });
        let options =
            [("region", self.region.as_deref()), ("style", style), ("endpoint", self.endpoint.as_deref())];
        let mut mark = '?';
        for (key, value) in options {
            if let Some(value) = value {
                write!(f, "{mark}{key}={value}")?;
                mark = '&';
            }
        }
        Ok(())
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Bucket {
    /// The service's URL, the bucket's own where the bucket is a part of the host's name. No `/` at the end.
    #[must_use]
    pub fn service(&self) -> String {
        if let Some(endpoint) = &self.endpoint {
            return match (self.is_path_style(), endpoint.split_once("://")) {
                (false, Some((scheme, host))) => format!("{scheme}://{}.{host}", self.name),
                _ => endpoint.clone(),
            };
        }
        match self.kind {
            Kind::Azure => format!("https://{}.{AZURE_SUFFIX}", self.account),
            Kind::S3 if self.is_path_style() => format!("https://s3.{}.amazonaws.com", self.region()),
            Kind::S3 => format!("https://{}.s3.{}.amazonaws.com", self.name, self.region()),
            Kind::Google => "https://storage.googleapis.com".to_owned(),
        }
    }

    /// The region whose name goes into signatures.
    #[must_use]
    pub fn region(&self) -> &str {
        self.region.as_deref().unwrap_or("us-east-1")
    }

    /// Whether the bucket is a part of the path. A name with dots does not fit the certificate of a host's name.
    #[must_use]
    pub fn is_path_style(&self) -> bool {
        match self.kind {
            Kind::S3 => self.path_style.unwrap_or(self.endpoint.is_some() || self.name.contains('.')),
            _ => true,
        }
    }

    /// The name of the host that is talked to, for messages.
    #[must_use]
    pub fn host(&self) -> String {
        Url::parse(&self.service()).ok().and_then(|u| u.host_str().map(str::to_owned)).unwrap_or_default()
    }
}

fn bad(kind: &str, why: &str) -> Error {
    Error::new(Code::InvalidValue, format!("An address of the kind `{kind}:` {why}")).advise(
        "Addresses look like azure://ACCOUNT/CONTAINER/PREFIX, s3://BUCKET/PREFIX?region=R, gs://BUCKET/PREFIX, or the \
         URL of an Azure container with its signature. Keys are given apart from them.",
    )
}

/// `ACCOUNT/CONTAINER[/PREFIX][?endpoint=URL]`
fn azure(rest: &str) -> Result<Bucket> {
    let (path, options) = split_query(rest);
    let (account, rest) = path.split_once('/').unwrap_or((path, ""));
    let mut bucket = located(Kind::Azure, rest)?;
    bucket.account = checked_account(account)?;
    apply(&mut bucket, options)?;
    Ok(bucket)
}

/// `BUCKET[/PREFIX][?region=R&endpoint=URL&style=S]`
fn bucket(kind: Kind, rest: &str) -> Result<Bucket> {
    let (path, options) = split_query(rest);
    let mut bucket = located(kind, path)?;
    apply(&mut bucket, options)?;
    Ok(bucket)
}

fn split_query(rest: &str) -> (&str, &str) {
    rest.split_once('?').unwrap_or((rest, ""))
}

/// The bucket and prefix of a path.
fn located(kind: Kind, path: &str) -> Result<Bucket> {
    let (name, prefix) = path.split_once('/').unwrap_or((path, ""));
    let prefix = prefix.trim_end_matches('/');
    if !name_fits(kind, name) {
        return Err(bad(kind.scheme(), "has no valid name of a container or bucket"));
    }
    // The same letters as names of objects have, so nothing ever needs an escape. Room is left for those names.
    if !prefix.is_empty() && (crate::check_name(prefix).is_err() || prefix.len() > 400) {
        return Err(bad(kind.scheme(), "has a prefix with other characters than A-Za-z0-9._- and /"));
    }
    Ok(Bucket {
        kind,
        account: String::new(),
        name: name.to_owned(),
        prefix: prefix.to_owned(),
        endpoint: None,
        region: None,
        path_style: None,
    })
}

fn name_fits(kind: Kind, name: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    match kind {
        Kind::Azure if matches!(name, "$root" | "$web" | "$logs") => true,
        Kind::Azure => {
            (3..=63).contains(&name.len())
                && edge(name.bytes().next())
                && edge(name.bytes().last())
                && !name.contains("--")
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        }
        Kind::S3 | Kind::Google => {
            (3..=222).contains(&name.len())
                && edge(name.bytes().next())
                && edge(name.bytes().last())
                && !name.contains("..")
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        }
    }
}

fn checked_account(account: &str) -> Result<String> {
    let fits = (3..=63).contains(&account.len())
        && account.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if fits { Ok(account.to_owned()) } else { Err(bad("azure", "has no valid name of a storage account")) }
}

/// Takes the options behind `?`. Values stand as they are, without escapes: none of them needs one.
fn apply(bucket: &mut Bucket, options: &str) -> Result<()> {
    let scheme = bucket.kind.scheme();
    for option in options.split('&').filter(|o| !o.is_empty()) {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        match (key, bucket.kind) {
            ("endpoint", _) => bucket.endpoint = Some(endpoint(scheme, value)?),
            ("region", Kind::S3)
                if (1..=60).contains(&value.len())
                    && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') =>
            {
                bucket.region = Some(value.to_owned());
            }
            ("style", Kind::S3) if value == "path" => bucket.path_style = Some(true),
            ("style", Kind::S3) if value == "virtual" => bucket.path_style = Some(false),
            ("sig" | "sv", _) => {
                return Err(bad(
                    scheme,
                    "holds a signature; give it apart, or give the container's whole URL",
                ));
            }
            _ => return Err(bad(scheme, "has an option behind `?` that is not known or not valid")),
        }
    }
    Ok(())
}

/// A service's URL without user, query and the `/` at its end.
fn endpoint(scheme: &str, text: &str) -> Result<String> {
    let wrong = || bad(scheme, "has an endpoint that is not a plain http or https URL");
    let url = Url::parse(text).map_err(|_text_may_hold_a_secret| wrong())?;
    let plain = matches!(url.scheme(), "http" | "https")
        && url.host_str().is_some_and(|h| !h.is_empty())
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none()
        && url.path().bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'/'));
    if !plain {
        return Err(wrong());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// The URL of an Azure container, mostly with a signature behind `?`.
fn azure_url(text: &str) -> Result<(Bucket, Option<Credentials>)> {
    let kind = if text.starts_with("https") { "https" } else { "http" };
    let url = Url::parse(text).map_err(|_text_may_hold_a_secret| bad(kind, "is not a URL"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad(kind, "must not hold a user or password"));
    }
    let host = url.host_str().unwrap_or_default();
    let origin = url.origin().ascii_serialization();
    let path = url.path().trim_start_matches('/');
    let signed = url.query_pairs().any(|(k, _)| k == "sig" || k == "sv");
    let named = matches!(url.host(), Some(url::Host::Domain(_))) && host != "localhost";
    let (account, path, service) = if !named {
        // Emulators and appliances: the account is the first part of the path.
        let (account, rest) = path.split_once('/').unwrap_or((path, ""));
        (account, rest, format!("{origin}/{account}"))
    } else if host.split('.').nth(1) == Some("blob") || signed {
        (host.split('.').next().unwrap_or_default(), path, origin)
    } else {
        return Err(bad(kind, "is not the URL of a container that this version can use"));
    };
    if url.scheme() == "http" && !is_local(&url) {
        return Err(bad(kind, "would send its signature unprotected; use https"));
    }
    let mut bucket = located(Kind::Azure, path)?;
    bucket.account = checked_account(account)?;
    if service != format!("https://{account}.{AZURE_SUFFIX}") {
        bucket.endpoint = Some(service);
    }
    let credentials = match url.query() {
        Some(query) if !query.is_empty() => Some(Credentials::signature(query)?),
        _ => None,
    };
    Ok((bucket, credentials))
}

/// Whether a URL leads to this machine.
pub(crate) fn is_local(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}
